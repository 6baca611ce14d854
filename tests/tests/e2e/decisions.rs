//! What a team decides by its WasmController, and what nobody may decide any more.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::account::{self, GUEST_RULES};
use e2e::component::Component;
use e2e::control_plane::audit;
use e2e::controller::condition;
use e2e::wait::within;
use e2e::{Test, test};
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, ValidationDirective};
use nagaya::model::crd::{Phase, RevisionPhase, WasmController, WasmRevision, revision_name};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(30);

fn writing(value: &str) -> Value {
    json!({"reconcile": "write", "value": value})
}

/// Where the host keeps a component.
fn stored(test: &Test, component: &Component) -> Result<PathBuf> {
    let mut words = test.host.command().split(' ');
    let folder = words.by_ref().skip_while(|word| *word != "--data-dir").nth(1);
    let hex = component.digest.trim_start_matches("sha256:");
    let folder = folder.context("a host without --data-dir")?;
    Ok([folder, "modules", &format!("{hex}.wasm")].iter().collect())
}

/// Writes of ConfigMaps, by whomever.
fn map_writes(log: &audit::Log, namespace: &str) -> Result<Vec<audit::Event>> {
    let mut events = log.events()?;
    events.retain(|event| {
        event.is_about("configmaps", namespace) && !["get", "list", "watch"].contains(&&*event.verb)
    });
    Ok(events)
}

#[test]
fn another_account_drains_first() -> Result<()> {
    test(async |test| {
        let config = json!({"reconcile": "sleep:4000,sleep:2000,write", "value": "x"});
        let (hostile, revision) = test.hostile(json!({}), &config).await?;
        test.apply(&account::objects(&test.namespace, "second", GUEST_RULES)).await?;
        let log = test.audit().map(|log| log.from_now()).transpose()?;
        test.website("web", "Web").await?;
        within(LIMIT, "a run in flight", async || {
            let running = test.running("hostile").await?;
            ensure!(running == 1.0, "{running}");
            Ok(())
        })
        .await?;
        hostile.patch(&json!({"spec": {"serviceAccountName": "second"}})).await?;
        // The old one's last write.
        test.written("web", "x").await?;
        let seen = hostile.active(&revision).await?;
        assert_eq!(seen.status.context("no status")?.executor_generation, 1, "nobody was swapped");
        let Some(log) = log else { return Ok(()) };
        let (old, new) = (test.username("hostile"), test.username("second"));
        let both = async || {
            let writes = map_writes(&log, &test.namespace)?;
            let by = |who: &str| writes.iter().filter(|w| w.actor() == who).cloned().collect();
            let (old, new): (Vec<_>, Vec<_>) = (by(&old), by(&new));
            ensure!(!new.is_empty(), "{} writes of the old account alone", old.len());
            Ok((old, new))
        };
        let (before, after) = within(LIMIT, "a write as the new account", both).await?;
        let last = before.iter().map(|event| event.stage_timestamp).max();
        let first = after.iter().map(|event| event.request_received_timestamp).min();
        assert!(last.context("the run in flight did not write")? < first.context("no write")?);

        test.website("other", "Other").await?;
        test.written("other", "x").await?;
        test.idle("hostile").await?;
        let (all_before, all_after) = both().await?;
        assert_eq!(all_before.len(), before.len(), "the old account wrote again");
        assert!(all_after.len() > after.len());
        Ok(())
    })
}

#[test]
fn a_newer_spec_wins_over_a_revision_whose_bytes_never_came() -> Result<()> {
    test(async |test| {
        let component = Component::load("hostile")?;
        let never = component.marked("never sent")?;
        let spec = json!({"module": {"digest": never.digest}, "config": writing("x")});
        let hostile = test.guest("hostile", GUEST_RULES, spec.clone()).await?;
        let first = revision_name("hostile", &never.digest, Some(&spec["config"]));
        hostile.stands(&first, RevisionPhase::Pending).await?;

        let second = hostile.push(&component).await?;
        let seen = hostile.active(&second).await?;
        let status = seen.status.context("no status")?;
        assert_eq!((status.executor_generation, status.previous), (1, None), "the first was live");
        hostile.stands(&first, RevisionPhase::Retired).await?;
        let (code, answer) = hostile.upload(&never).await?;
        assert_eq!(code, 404, "nobody wants it any more: {answer}");
        test.website("web", "Web").await?;
        test.written("web", "x").await
    })
}

#[test]
fn a_newer_spec_wins_over_a_revision_that_is_being_staged() -> Result<()> {
    test(async |test| {
        let spec = json!({"rollout": {"strategy": "Immediate"}});
        let (hostile, first) = test.hostile(spec, &writing("first")).await?;
        let slow = json!({
            "describe": "sleep:4000,sleep:4000,sleep:4000,sleep:4000",
            "reconcile": "grab:slow",
            "value": "slow",
        });
        let slow = hostile.push_config(&Component::load("hostile")?, &slow).await?;
        hostile.stands(&slow, RevisionPhase::Loading).await?;
        // A patch merges: what the slow one said of describe is to go.
        let third = json!({"describe": null, "reconcile": "write", "value": "third"});
        let third = hostile.push_config(&Component::load("hostile")?, &third).await?;
        let seen = hostile.active(&third).await?;
        let status = seen.status.context("no status")?;
        assert_eq!(status.executor_generation, 2, "the one in between was live");
        assert_eq!(status.previous, Some(first));
        hostile.stands(&slow, RevisionPhase::Retired).await?;
        test.website("web", "Web").await?;
        test.written("web", "third").await?;
        assert_eq!(test.api::<ConfigMap>().get_opt("slow").await?, None);
        Ok(())
    })
}

#[test]
fn a_waiting_candidate_gives_way_to_a_newer_one() -> Result<()> {
    test(async |test| {
        let (hostile, first) = test.hostile(json!({}), &writing("first")).await?;
        let component = Component::load("hostile")?;
        let second = hostile.push_config(&component, &writing("second")).await?;
        hostile.candidate(&second).await?;
        let third = hostile.push_config(&component, &writing("third")).await?;
        let seen = hostile.candidate(&third).await?;
        assert_eq!(seen.status.and_then(|status| status.active), Some(first));
        hostile.stands(&second, RevisionPhase::Retired).await?;
        // History, but not rejected: naming it brings it back.
        hostile.promote(&second).await?;
        hostile.active(&second).await?;
        test.website("web", "Web").await?;
        test.written("web", "second").await
    })
}

#[test]
fn a_controller_that_drains_says_so() -> Result<()> {
    test(async |test| {
        let config =
            json!({"reconcile": "sleep:4000,sleep:4000,sleep:4000,sleep:4000,write", "value": "x"});
        let (hostile, _) = test.hostile(json!({}), &config).await?;
        test.website("web", "Web").await?;
        within(LIMIT, "a run in flight", async || {
            let running = test.running("hostile").await?;
            ensure!(running == 1.0, "{running}");
            Ok(())
        })
        .await?;
        hostile.delete().await?;
        let seen = hostile.phase(Phase::Deleting).await?;
        assert!(condition(&seen, "Ready").is_some_and(|ready| ready.reason == "Deleting"));
        assert_eq!(test.api::<ConfigMap>().get_opt("web").await?, None, "its run has ended");
        hostile.gone(LIMIT).await?;
        test.written("web", "x").await
    })
}

#[test]
fn a_lost_component_is_a_condition_until_it_is_pushed_again() -> Result<()> {
    test(async |test| {
        let (hostile, revision) = test.hostile(json!({}), &writing("x")).await?;
        let component = Component::load("hostile")?;
        std::fs::remove_file(stored(test, &component)?)?;
        // By itself the host looks once a minute; a change makes it look now.
        hostile.patch(&json!({"spec": {"limits": {"concurrency": 3}}})).await?;
        let lost = hostile.condition("ModuleStored", "False").await?;
        assert!(lost.message.contains("nagaya push"), "{}", lost.message);
        let seen = hostile.active(&revision).await?;
        assert!(condition(&seen, "Ready").is_some_and(|ready| ready.status == "True"));
        test.website("web", "Web").await?;
        test.written("web", "x").await?;

        let (code, answer) = hostile.upload(&component).await?;
        assert_eq!(code, 201, "{answer}");
        let is_gone = |seen: &WasmController| condition(seen, "ModuleStored").is_none();
        hostile.until(LIMIT, "no condition", is_gone).await?;
        let status = hostile.get().await?.status.context("no status")?;
        assert_eq!(status.executor_generation, 1, "nothing was swapped");
        Ok(())
    })
}

#[test]
fn a_restarted_host_asks_for_a_lost_component() -> Result<()> {
    test(async |test| {
        let (_, revision) = test.hostile(json!({}), &writing("x")).await?;
        let component = Component::load("hostile")?;
        test.host.stop().await?;
        std::fs::remove_file(stored(test, &component)?)?;
        test.start_host().await?;
        let hostile = test.controller("hostile")?;
        let not_ready = hostile.condition("Ready", "False").await?;
        let seen = hostile
            .until(LIMIT, "it says how to push", |seen| {
                let ready = condition(seen, "Ready");
                ready.is_some_and(|ready| ready.message.contains("nagaya push"))
            })
            .await
            .with_context(|| not_ready.message.clone())?;
        assert_eq!(seen.status.and_then(|status| status.active), Some(revision.clone()));
        test.website("web", "Web").await?;
        let (code, answer) = hostile.upload(&component).await?;
        assert_eq!(code, 201, "{answer}");
        hostile.condition("Ready", "True").await?;
        test.written("web", "x").await
    })
}

/// Without its account nothing of it is loaded, and yet the live revision is no history.
#[test]
fn a_missing_account_is_a_condition_and_retires_nothing() -> Result<()> {
    test(async |test| {
        let (hostile, revision) = test.hostile(json!({}), &writing("x")).await?;
        let account = hostile.get().await?.spec.service_account_name;
        let accounts = test.api::<ServiceAccount>();
        test.host.stop().await?;
        accounts.delete(&account, &DeleteParams::default()).await?;
        test.start_host().await?;
        let hostile = test.controller("hostile")?;
        let degraded = hostile.condition("Degraded", "True").await?;
        assert_eq!(degraded.reason, "ServiceAccountMissing");
        assert!(degraded.message.contains("kubectl create serviceaccount"), "{}", degraded.message);
        test.website("web", "Web").await?;
        let revisions = test.api::<WasmRevision>();
        within(LIMIT, "the live revision waits", async || {
            let phase = revisions.get(&revision).await?.status.unwrap_or_default().phase;
            ensure!(phase == RevisionPhase::Loading, "it is {phase:?}");
            Ok(())
        })
        .await?;
        let metadata = ObjectMeta { name: Some(account), ..ObjectMeta::default() };
        let account = ServiceAccount { metadata, ..ServiceAccount::default() };
        accounts.create(&PostParams::default(), &account).await?;
        hostile.condition("Ready", "True").await?;
        test.written("web", "x").await
    })
}

#[test]
fn an_upload_of_a_stored_component_is_not_read() -> Result<()> {
    test(async |test| {
        test.hostile(json!({}), &writing("x")).await?;
        let address = test.host.api().trim_start_matches("http://").to_owned();
        let digest = Component::load("hostile")?.digest;
        let head = format!(
            "PUT /v1/modules/{digest} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 1000000\r\n\r\n"
        );
        let mut stream = TcpStream::connect(&address).await?;
        stream.write_all(head.as_bytes()).await?;
        let mut answer = [0; "HTTP/1.1 200".len()];
        let read = timeout(LIMIT, stream.read_exact(&mut answer)).await;
        read.context("the host waits for the body")??;
        assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 200");
        Ok(())
    })
}

#[test]
fn the_history_has_a_limit_that_spares_what_may_run() -> Result<()> {
    test(async |test| {
        let spec = json!({"rollout": {"strategy": "Immediate"}, "revisionHistoryLimit": 1});
        let (hostile, first) = test.hostile(spec, &writing("1")).await?;
        let component = Component::load("hostile")?;
        let mut names = vec![first.clone()];
        for value in ["2", "3", "4"] {
            names.push(hostile.push_config(&component, &writing(value)).await?);
            hostile.active(&names[names.len() - 1]).await?;
        }
        let kept = async |wanted: &[String]| {
            within(LIMIT, &format!("the revisions {wanted:?}"), async || {
                let names: Vec<_> =
                    hostile.revisions().await?.iter().map(ResourceExt::name_any).collect();
                ensure!(names == wanted, "{names:?}");
                Ok(())
            })
            .await
        };
        kept(&names[1..]).await?;
        hostile.patch(&json!({"spec": {"revisionHistoryLimit": 0}})).await?;
        kept(&names[2..]).await?;
        hostile.roll_back(&names[3], &names[2]).await?;
        hostile.active(&names[2]).await?;
        test.website("web", "Web").await?;
        test.written("web", "3").await?;

        // What was forgotten is made again, like any other.
        hostile
            .patch(&json!({"spec": {"config": writing("1"), "rollout": {"active": null}}}))
            .await?;
        hostile.active(&first).await?;
        test.written("web", "1").await?;
        let numbers = hostile.revisions().await?;
        let made = numbers.iter().find(|one| one.name_any() == first);
        assert!(made.context("it does not exist")?.spec.number > 3, "it is the first one still");
        Ok(())
    })
}

#[test]
fn the_field_manager_is_the_one_of_the_spec_for_life() -> Result<()> {
    test(async |test| {
        let spec = json!({"fieldManager": "old-operator"});
        let (hostile, _) = test.hostile(spec, &writing("x")).await?;
        test.website("web", "Web").await?;
        test.written("web", "x").await?;
        let map = test.api::<ConfigMap>().get("web").await?;
        let managers = map.managed_fields().iter().filter_map(|entry| entry.manager.as_deref());
        assert_eq!(managers.collect::<Vec<_>>(), ["old-operator"]);

        let plain = test.bare_controller("plain", "hostile", json!({})).await?;
        for (controller, to) in
            [(&hostile, json!("another")), (&hostile, Value::Null), (&plain, json!("another"))]
        {
            let patch = json!({"spec": {"fieldManager": to}});
            let error = controller.patch(&patch).await.err().context("it was changed")?;
            let text = format!("{error:#}");
            assert!(text.contains("fieldManager is immutable"), "{text}");
        }
        Ok(())
    })
}

#[test]
fn a_revision_is_immutable() -> Result<()> {
    test(async |test| {
        let (_, revision) = test.hostile(json!({}), &writing("x")).await?;
        let revisions = test.api::<WasmRevision>();
        let zeros = format!("sha256:{}", "0".repeat(64));
        for spec in [json!({"number": 7}), json!({"digest": zeros}), json!({"config": {}})] {
            let mut spec = spec;
            if spec["config"].is_object() {
                spec["config"] = json!({"value": "another"});
            }
            let patch = Patch::Merge(json!({"spec": spec}));
            let answer = revisions.patch(&revision, &PatchParams::default(), &patch).await;
            let text = answer.err().with_context(|| format!("{spec} was taken"))?.to_string();
            assert!(text.contains("a revision is immutable"), "{text}");
        }
        Ok(())
    })
}

#[test]
fn a_revision_made_by_hand_under_a_wrong_name_gains_nothing() -> Result<()> {
    test(async |test| {
        let (hostile, first) = test.hostile(json!({}), &writing("x")).await?;
        let component = Component::load("hostile")?;
        let stranger = component.marked("stranger")?;
        let owner = json!({
            "apiVersion": "nagaya.dev/v1alpha1", "kind": "WasmController", "name": "hostile",
            "uid": hostile.get().await?.uid(), "controller": true,
        });
        let forged = |name: &str, digest: &str| {
            json!({
                "apiVersion": "nagaya.dev/v1alpha1",
                "kind": "WasmRevision",
                "metadata": {
                    "name": name, "namespace": test.namespace, "ownerReferences": [owner],
                },
                "spec": {
                    "controller": "hostile", "number": 9, "digest": digest,
                    "config": {"reconcile": "grab:stolen", "value": "stolen"},
                },
            })
        };
        let (known, unknown) = ("hostile-0123456789", "hostile-aaaaaaaaaa");
        test.apply(&[forged(known, &component.digest), forged(unknown, &stranger.digest)]).await?;
        for name in [known, unknown] {
            hostile.promote(name).await?;
            let seen = hostile
                .until(LIMIT, &format!("{name} is called unknown"), |seen| {
                    let degraded = condition(seen, "Degraded");
                    degraded.is_some_and(|degraded| {
                        degraded.reason == "UnknownRevision" && degraded.message.contains(name)
                    })
                })
                .await?;
            assert_eq!(seen.status.and_then(|status| status.active), Some(first.clone()));
            assert_eq!(test.api::<WasmRevision>().get(name).await?.status, None);
        }
        let (code, answer) = hostile.upload(&stranger).await?;
        assert_eq!(code, 404, "{answer}");
        test.website("web", "Web").await?;
        test.written("web", "x").await?;
        assert_eq!(test.api::<ConfigMap>().get_opt("stolen").await?, None);
        Ok(())
    })
}

#[test]
fn a_field_that_is_not_built_is_refused() -> Result<()> {
    test(async |test| {
        test.guest("hostile", GUEST_RULES, json!({})).await?;
        let controllers = test.api::<WasmController>();
        let strict = PatchParams {
            field_validation: Some(ValidationDirective::Strict),
            ..PatchParams::default()
        };
        for (field, spec) in [
            ("spec.rollout.canary", json!({"rollout": {"canary": {"steps": []}}})),
            ("spec.rollout.analysis", json!({"rollout": {"analysis": {}}})),
            ("spec.channels", json!({"channels": []})),
        ] {
            let patch = Patch::Merge(json!({"spec": spec}));
            let answer = controllers.patch("hostile", &strict, &patch).await;
            let text = answer.err().with_context(|| format!("{field} was taken"))?.to_string();
            assert!(text.contains(&format!("unknown field \"{field}\"")), "{text}");
        }
        let patch = Patch::Merge(json!({"spec": {"rollout": {"strategy": "Immediate"}}}));
        controllers.patch("hostile", &strict, &patch).await?;
        Ok(())
    })
}
