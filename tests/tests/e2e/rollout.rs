//! Versions: staged beside what runs, promoted, aborted and rolled back by one write each.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::account::GUEST_RULES;
use e2e::component::Component;
use e2e::control_plane::audit;
use e2e::controller::{Controller, condition};
use e2e::site::{DESIGN, children, datum, owning};
use e2e::wait::within;
use e2e::{Test, test};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;
use nagaya::model::crd::{RevisionPhase, WasmController};
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(30);

/// The example with version 1 live and version 2 staged; the revisions' names.
async fn staged(test: &Test) -> Result<(Controller, String, String)> {
    let website = test.example("website").await?;
    let v1 = website.push(&Component::load("website_v1")?).await?;
    website.active(&v1).await?;
    let v2 = website.push(&Component::load("website_v2")?).await?;
    website.candidate(&v2).await?;
    Ok((website, v1, v2))
}

/// Waits until exactly so many children carry version 2's label.
async fn labelled(test: &Test, wanted: usize) -> Result<()> {
    within(LIMIT, &format!("{wanted} children of version 2"), async || {
        let all = children(&test.admin, &test.namespace).await?;
        let labelled = all.iter().filter(|child| child.labels().contains_key(DESIGN)).count();
        ensure!(labelled == wanted, "{labelled} of {}", all.len());
        Ok(())
    })
    .await
}

fn status(seen: &WasmController) -> (Option<&str>, Option<&str>, Option<&str>) {
    let status = seen.status.as_ref();
    let of =
        |pick: fn(&nagaya::model::crd::WasmControllerStatus) -> Option<&str>| status.and_then(pick);
    (of(|s| s.active.as_deref()), of(|s| s.candidate.as_deref()), of(|s| s.previous.as_deref()))
}

fn writes_of(log: &audit::Log, account: &str) -> Result<Vec<audit::Event>> {
    let mut events = log.events()?;
    events.retain(|event| event.actor() == account && event.is_write());
    Ok(events)
}

#[test]
fn promote_moves_every_object_and_one_writer_remains() -> Result<()> {
    test(async |test| {
        let v1_file = Component::load("website_v1")?;
        let website = test.example("website").await?;
        let v1 = website.push(&v1_file).await?;
        website.active(&v1).await?;
        for number in 0..20 {
            test.website(&format!("site-{number}"), "A site").await?;
        }
        within(LIMIT, "sixty children", async || {
            let there = children(&test.admin, &test.namespace).await?.len();
            ensure!(there == 60, "{there}");
            Ok(())
        })
        .await?;
        test.deployed(20).await?;
        test.quiet("website").await?;

        // Staged: nothing has changed for anybody.
        let account = test.username("website");
        let log = test.audit().map(|log| log.from_now()).transpose()?;
        let v2_file = Component::load("website_v2")?;
        let v2 = website.push(&v2_file).await?;
        let seen = website.candidate(&v2).await?;
        assert_eq!(status(&seen).0, Some(&*v1));
        labelled(test, 0).await?;
        if let Some(log) = &log {
            let writes = writes_of(log, &account)?;
            assert!(writes.is_empty(), "{}", writes[0].summary());
        }

        website.promote(&v2).await?;
        let seen = website.active(&v2).await?;
        assert_eq!(status(&seen), (Some(&*v2), None, Some(&*v1)));
        labelled(test, 60).await?;
        test.quiet("website").await?;
        let Some(log) = log else { return Ok(()) };
        let by = |component: &Component| component.digest["sha256:".len()..][..12].to_owned();
        let (old, new) = (by(&v1_file), by(&v2_file));
        let mut written: BTreeMap<String, usize> = BTreeMap::new();
        for event in writes_of(&log, &account)? {
            let path = event.request_uri.split('?').next().unwrap_or_default().to_owned();
            let is_new = event.user_agent.contains(&format!("revision={new}"));
            let is_old = event.user_agent.contains(&format!("revision={old}"));
            assert!(is_new != is_old, "whose write is it? {}", event.user_agent);
            assert!(
                is_new || !written.contains_key(&path),
                "the old one wrote {path} after the new one"
            );
            if is_new {
                *written.entry(path).or_default() += 1;
            }
        }
        let children = written.keys().filter(|path| !path.contains("/websites/")).count();
        assert_eq!(children, 60, "{written:?}");
        Ok(())
    })
}

#[test]
fn a_run_in_flight_ends_before_the_new_revision_has_its_object() -> Result<()> {
    test(async |test| {
        let config = json!({"reconcile": "sleep:4000,sleep:2000,write", "value": "old"});
        let (hostile, _) = test.hostile(json!({}), &config).await?;
        let config = json!({"reconcile": "write", "value": "new"});
        let second = hostile.push_config(&Component::load("hostile")?, &config).await?;
        hostile.candidate(&second).await?;
        let log = test.audit().map(|log| log.from_now()).transpose()?;
        test.website("web", "Web").await?;
        within(LIMIT, "a run in flight", async || {
            let running = test.running("hostile").await?;
            ensure!(running == 1.0, "{running}");
            Ok(())
        })
        .await?;
        hostile.promote(&second).await?;
        hostile.active(&second).await?;
        // Other objects do not wait for it.
        test.website("other", "Other").await?;
        test.written("other", "new").await?;
        test.written("web", "new").await?;
        // A write is in the log once its run has its answer.
        test.idle("hostile").await?;
        let Some(log) = log else { return Ok(()) };
        let said = writes_of(&log, &test.username("hostile"))?
            .iter()
            .filter(|event| event.object_ref.as_ref().is_some_and(|object| object.name == "web"))
            .filter_map(|event| {
                Some(event.request_object.as_ref()?["data"]["config"].as_str()?.to_owned())
            })
            .collect::<Vec<_>>();
        assert_eq!(
            said,
            ["old", "new"],
            "the old run was let finish, and the new one came after it"
        );
        Ok(())
    })
}

#[test]
fn an_aborted_candidate_is_none_until_it_is_promoted() -> Result<()> {
    test(async |test| {
        let (website, v1, v2) = staged(test).await?;
        let patched = website.abort(&v2).await?;
        website.observed(patched.metadata.generation.context("no generation")?).await?;
        let seen = website
            .until(LIMIT, "no candidate", |seen| status(seen) == (Some(&*v1), None, None))
            .await?;
        assert_eq!(seen.spec.rollout.rejected, [v2.clone()]);
        // What runs, runs on.
        test.website("web", "Web").await?;
        labelled(test, 0).await?;
        let maps = test.api::<ConfigMap>();
        within(LIMIT, "version 1's page", async || datum(&maps, "web", "index.html").await).await?;

        website.promote(&v2).await?;
        let seen = website.active(&v2).await?;
        assert!(seen.spec.rollout.rejected.is_empty());
        labelled(test, 3).await
    })
}

#[test]
fn a_rollback_takes_back_what_the_new_revision_added() -> Result<()> {
    test(async |test| {
        let (website, v1, v2) = staged(test).await?;
        for name in ["a", "b", "c"] {
            test.website(name, "A site").await?;
        }
        let maps = test.api::<ConfigMap>();
        let page = async || datum(&maps, "a", "index.html").await;
        let before = within(LIMIT, "a page", page).await?;
        website.promote(&v2).await?;
        labelled(test, 9).await?;
        assert_ne!(page().await?, before);

        website.roll_back(&v2, &v1).await?;
        website
            .until(LIMIT, "version 1 alone", |seen| {
                let (active, candidate, _) = status(seen);
                (active, candidate) == (Some(&*v1), None)
            })
            .await?;
        labelled(test, 0).await?;
        within(LIMIT, "the page as before", async || {
            let now = page().await?;
            ensure!(now == before, "{now}");
            Ok(())
        })
        .await
    })
}

#[test]
fn the_first_digest_pushed_again_is_the_first_revision() -> Result<()> {
    test(async |test| {
        let (website, v1, v2) = staged(test).await?;
        website.promote(&v2).await?;
        website.active(&v2).await?;
        let again = website.push(&Component::load("website_v1")?).await?;
        assert_eq!(again, v1);
        website.candidate(&v1).await?;
        let names: Vec<_> = website.revisions().await?.iter().map(ResourceExt::name_any).collect();
        assert_eq!(names, [v1.clone(), v2.clone()], "no third one");
        test.website("web", "Web").await?;
        labelled(test, 3).await?;
        website.promote(&v1).await?;
        labelled(test, 0).await
    })
}

#[test]
fn a_candidate_that_traps_in_describe_is_never_noticed() -> Result<()> {
    test(async |test| {
        let config = json!({"reconcile": "write", "value": "fine"});
        let (hostile, first) = test.hostile(json!({}), &config).await?;
        test.website("before", "Before").await?;
        test.written("before", "fine").await?;
        for (describe, says) in [("trap", "trap"), ("refuse", "not with this config")] {
            let config = json!({"describe": describe, "message": "not with this config"});
            let broken = hostile.push_config(&Component::load("hostile")?, &config).await?;
            let seen = hostile
                .revision(&broken, "failed", |status| status.phase == RevisionPhase::Failed)
                .await?;
            let message = seen.status.unwrap_or_default().message.unwrap_or_default();
            assert!(message.contains(says), "{describe}: {message}");
            // The team reads it on its WasmController.
            let seen = hostile
                .until(LIMIT, "a condition with the reason", |seen| {
                    let conditions = seen.status.iter().flat_map(|status| &status.conditions);
                    conditions.into_iter().any(|condition| condition.message.contains(says))
                })
                .await?;
            assert_eq!((status(&seen).0, status(&seen).1), (Some(&*first), None));
            assert!(condition(&seen, "Ready").is_some_and(|ready| ready.status == "True"));
            // Naming it does not help it.
            hostile.promote(&broken).await?;
            test.website(describe, "Web").await?;
            test.written(describe, "fine").await?;
            let seen = hostile.get().await?;
            assert_eq!(status(&seen).0, Some(&*first));
        }
        Ok(())
    })
}

#[test]
fn a_change_of_config_is_a_new_revision() -> Result<()> {
    test(async |test| {
        let mut config = owning("write");
        config["value"] = json!("one");
        let (hostile, first) = test.hostile(json!({}), &config).await?;
        test.website("web", "Web").await?;
        test.written("web", "one").await?;
        config["value"] = json!("two");
        hostile.patch(&json!({"spec": {"config": config}})).await?;
        let seen = hostile.until(LIMIT, "a candidate", |seen| status(seen).1.is_some()).await?;
        let second = status(&seen).1.context("no candidate")?.to_owned();
        assert_ne!(second, first);
        test.written("web", "one").await?;
        hostile.promote(&second).await?;
        test.written("web", "two").await?;
        // Going back to a config is going back to its revision.
        config["value"] = json!("one");
        hostile.patch(&json!({"spec": {"config": config}})).await?;
        hostile.candidate(&first).await?;
        Ok(())
    })
}

#[test]
fn a_change_of_limits_is_no_new_revision() -> Result<()> {
    test(async |test| {
        let config = json!({"reconcile": "write", "value": "written"});
        let (hostile, first) = test.hostile(json!({}), &config).await?;
        let patch = json!({"spec": {"limits": {"concurrency": 3}}});
        let patched = hostile.patch(&patch).await?;
        hostile.observed(patched.metadata.generation.context("no generation")?).await?;
        let name = format!("{}/hostile", test.namespace);
        within(LIMIT, "the new limit", async || {
            let metrics = test.host.metrics().await?;
            let limit = "controller_runtime_max_concurrent_reconciles";
            let limit = metrics.sum(limit, &[("controller", &name)]);
            ensure!(limit == 3.0, "{limit}");
            Ok(())
        })
        .await?;
        assert_eq!(hostile.revisions().await?.len(), 1);
        assert_eq!(status(&hostile.get().await?).0, Some(&*first));
        Ok(())
    })
}

#[test]
fn an_immediate_revision_goes_live_by_itself() -> Result<()> {
    test(async |test| {
        let website = test.example("website").await?;
        website.patch(&json!({"spec": {"rollout": {"strategy": "Immediate"}}})).await?;
        let v1 = website.push(&Component::load("website_v1")?).await?;
        website.active(&v1).await?;
        test.website("web", "Web").await?;
        let v2 = website.push(&Component::load("website_v2")?).await?;
        let seen = website.active(&v2).await?;
        assert!(seen.spec.rollout.active.is_none(), "what a strategy decides is no one's spec");
        labelled(test, 3).await?;
        // A name in the spec wins over the strategy.
        website.promote(&v1).await?;
        website.active(&v1).await?;
        labelled(test, 0).await
    })
}

#[test]
fn an_unknown_active_name_keeps_what_runs_and_says_so() -> Result<()> {
    test(async |test| {
        let config = json!({"reconcile": "write", "value": "still here"});
        let (hostile, first) = test.hostile(json!({}), &config).await?;
        hostile.promote("hostile-0000000000").await?;
        let seen = hostile
            .until(LIMIT, "a condition with the unknown name", |seen| {
                let conditions = seen.status.iter().flat_map(|status| &status.conditions);
                conditions
                    .into_iter()
                    .any(|condition| condition.message.contains("hostile-0000000000"))
            })
            .await?;
        assert_eq!(status(&seen).0, Some(&*first));
        test.website("web", "Web").await?;
        test.written("web", "still here").await
    })
}

#[test]
fn a_revision_cannot_be_wanted_and_rejected() -> Result<()> {
    test(async |test| {
        let hostile = test.guest("hostile", GUEST_RULES, json!({})).await?;
        let rollout = json!({"active": "hostile-1", "rejected": ["hostile-1"]});
        let error = hostile.patch(&json!({"spec": {"rollout": rollout}})).await.unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("both active and rejected"), "{text}");
        Ok(())
    })
}
