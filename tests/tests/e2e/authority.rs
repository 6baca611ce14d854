//! Whose rights count: every read and write of a controller is its own ServiceAccount's.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::account::{self, GUEST_RULES, Rule, host_username};
use e2e::component::Component;
use e2e::control_plane::{User, audit};
use e2e::controller::Controller;
use e2e::site::{children, datum, owning};
use e2e::wait::within;
use e2e::{Test, manifest, test};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::api::DeleteParams;
use nagaya::model::crd::WasmController;
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(30);

/// All that the guest needs but reading ConfigMaps.
const BLIND_RULES: &[Rule] = &[
    GUEST_RULES[0],
    GUEST_RULES[1],
    Rule { group: "", resource: "configmaps", verbs: &["create", "patch", "delete"] },
    GUEST_RULES[3],
];

fn owning_config() -> Value {
    let mut config = owning("write");
    config["value"] = json!("written");
    config
}

/// Waits for a condition whose message has `text`; the message.
async fn message_with(controller: &Controller, text: &str) -> Result<String> {
    let find = |seen: &WasmController| {
        let conditions = seen.status.iter().flat_map(|status| &status.conditions);
        let mut messages = conditions.map(|condition| condition.message.clone());
        messages.find(|message| message.contains(text))
    };
    let what = format!("a condition that says {text}");
    let seen = controller.until(LIMIT, &what, |seen| find(seen).is_some()).await?;
    find(&seen).context("no such message")
}

/// Applies the YAML that a message ends with: what it tells a person to do.
pub(super) async fn do_as_told(test: &Test, message: &str) -> Result<()> {
    let start = message.find("apiVersion:").with_context(|| format!("no YAML in {message}"))?;
    let documents = message[start..].split("---\n");
    let objects =
        documents.map(|text| Ok(serde_saphyr::from_str(text)?)).collect::<Result<Vec<_>>>();
    test.apply(&objects.with_context(|| format!("the YAML of {message}"))?).await
}

#[test]
fn every_write_is_made_as_the_service_account() -> Result<()> {
    test(async |test| {
        let Some(log) = test.audit() else { return Ok(()) };
        let log = log.from_now()?;
        let website = test.example("website").await?;
        let v1 = website.push(&Component::load("website_v1")?).await?;
        website.active(&v1).await?;
        test.website("one", "One").await?;
        test.website("two", "Two").await?;
        within(LIMIT, "six children", async || {
            let there = children(&test.admin, &test.namespace).await?.len();
            ensure!(there == 6, "{there}");
            Ok(())
        })
        .await?;
        test.idle("website").await?;

        let (host, account) = (host_username(), test.username("website"));
        let mut events = log.events()?;
        events.retain(|event| {
            let object = event.object_ref.as_ref();
            event.user.username == host
                && ["create", "update", "patch", "delete"].contains(&&*event.verb)
                && object.is_some_and(|object| object.namespace == test.namespace)
        });
        let mut of_account = 0;
        for event in &events {
            let object = event.object_ref.as_ref().context("about nothing")?;
            match &*object.resource {
                "websites" | "configmaps" | "deployments" | "services" => {
                    assert_eq!(event.actor(), account, "{}", event.summary());
                    let by = event.authentication_metadata.clone().unwrap_or_default();
                    assert_eq!(by.impersonation_constraint, "impersonate:serviceaccount");
                    assert!(event.user_agent.contains("revision="), "{}", event.user_agent);
                    of_account += 1;
                }
                // What is the host's own work.
                "wasmcontrollers" | "wasmrevisions" | "events" => {
                    assert_eq!(event.actor(), host, "{}", event.summary());
                }
                _ => panic!("what is the host doing there? {}", event.summary()),
            }
            // A server that is slow gives up, and is asked again.
            let code = event.code().unwrap_or_default();
            assert!(code < 400 || code == 409 || code >= 500, "{}", event.summary());
        }
        assert!(of_account >= 8, "six children and two statuses, but only {of_account} writes");
        Ok(())
    })
}

#[test]
fn an_account_without_a_right_reads_nothing() -> Result<()> {
    test(async |test| {
        let log = test.audit().map(|log| log.from_now()).transpose()?;
        test.apply(&account::own(&test.namespace, "blind", BLIND_RULES)).await?;
        test.apply(&account::impersonation(&test.namespace, "blind", GUEST_RULES)).await?;
        let blind = test.bare_controller("blind", "blind", json!({})).await?;
        test.website("web", "Web").await?;
        let revision = blind.push_config(&Component::load("hostile")?, &owning_config()).await?;

        let message = message_with(&blind, "configmaps").await?;
        for part in ["blind", "list", "watch", "kind: Role"] {
            assert!(message.contains(part), "no {part} in {message}");
        }
        let seen = blind.get().await?.status.unwrap_or_default();
        assert_eq!((seen.active, test.runs("blind").await?), (None, 0.0));
        if let Some(log) = log {
            let account = test.username("blind");
            let mut events = log.events()?;
            events.retain(|event| {
                event.actor() == account
                    || event.user.username == host_username()
                        && event.is_about("configmaps", &test.namespace)
            });
            let said: Vec<_> = events.iter().map(audit::Event::summary).collect();
            assert!(said.is_empty(), "{said:#?}");
        }

        do_as_told(test, &message).await?;
        blind.active(&revision).await?;
        let maps = test.api::<ConfigMap>();
        within(LIMIT, "a write", async || datum(&maps, "web", "config").await).await?;
        Ok(())
    })
}

#[test]
fn a_host_that_may_not_act_as_the_account_says_what_to_apply() -> Result<()> {
    test(async |test| {
        test.apply(&account::own(&test.namespace, "shy", GUEST_RULES)).await?;
        let shy = test.bare_controller("shy", "shy", json!({})).await?;
        test.website("web", "Web").await?;
        let revision = shy.push_config(&Component::load("hostile")?, &owning_config()).await?;
        let message = message_with(&shy, "impersonate:serviceaccount").await?;
        assert!(shy.get().await?.status.unwrap_or_default().active.is_none());
        do_as_told(test, &message).await?;
        shy.active(&revision).await?;
        let maps = test.api::<ConfigMap>();
        within(LIMIT, "a write", async || datum(&maps, "web", "config").await).await?;
        Ok(())
    })
}

#[test]
fn a_right_that_is_taken_away_ends_the_work_until_it_is_back() -> Result<()> {
    test(async |test| {
        let hostile = test.guest("hostile", GUEST_RULES, json!({})).await?;
        let revision = hostile.push_config(&Component::load("hostile")?, &owning_config()).await?;
        hostile.active(&revision).await?;
        test.website("before", "Before").await?;
        let maps = test.api::<ConfigMap>();
        within(LIMIT, "a write", async || datum(&maps, "before", "config").await).await?;

        let bindings = test.api::<RoleBinding>();
        let binding = bindings.get("hostile").await?;
        bindings.delete("hostile", &DeleteParams::default()).await?;
        message_with(&hostile, &test.username("hostile")).await?;
        let runs = test.runs("hostile").await?;
        test.website("meanwhile", "Meanwhile").await?;

        let again = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": "hostile", "namespace": test.namespace},
            "roleRef": binding.role_ref, "subjects": binding.subjects,
        });
        assert_eq!(maps.get_opt("meanwhile").await?, None);
        test.apply(&[again]).await?;
        // A denial counts for 30 s at most; what was missed is delivered then.
        let limit = Duration::from_secs(45);
        within(limit, "the missed write", async || datum(&maps, "meanwhile", "config").await)
            .await?;
        // A run is counted when it ends, which is after its write is seen.
        within(LIMIT, "a run is counted", async || {
            ensure!(test.runs("hostile").await? > runs, "none");
            Ok(())
        })
        .await?;
        Ok(())
    })
}

/// What docs/provider.md says of who can do what: with crd.yaml and platform.yaml there, an admin of a namespace does the rest.
#[test]
fn an_admin_of_a_namespace_installs_a_controller_alone() -> Result<()> {
    test(async |test| {
        if test.audit().is_none() || !test.control_plane.has_controller_manager() {
            return Ok(());
        }
        let admin_of_it = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "alice", "namespace": test.namespace},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "admin"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "alice"}],
        });
        test.apply(&[admin_of_it]).await?;
        let alice = test.control_plane.client(User::Alice).await?;
        let mut own = manifest::read("examples/website/rbac.yaml")?;
        own.extend(manifest::read("examples/website/controller.yaml")?);
        own.extend(manifest::read("examples/website/sample.yaml")?);
        let own: Vec<_> =
            own.iter().map(|object| manifest::moved(object, &test.namespace)).collect();
        // The roles come together a moment after the platform's files are applied.
        within(LIMIT, "Alice may do it all", async || {
            for object in &own {
                let what = format!("{} {}", object["kind"], object["metadata"]["name"]);
                let applied = manifest::apply(&alice, std::slice::from_ref(object)).await;
                applied.with_context(|| format!("Alice applies {what}"))?;
            }
            Ok(())
        })
        .await?;
        for file in ["crd", "platform"] {
            let objects = manifest::read(&format!("examples/website/{file}.yaml"))?;
            let refused = manifest::apply(&alice, &objects).await.expect_err("a cluster admin's");
            assert!(format!("{refused:#}").contains("forbidden"), "{file}: {refused:#}");
        }
        Ok(())
    })
}
