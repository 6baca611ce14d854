//! The finalizer: on an object before its first run, off when the guest has cleaned up, and left in
//! peace when the controller goes.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::component::Component;
use e2e::control_plane::audit;
use e2e::manifest::{self, api_of};
use e2e::site::{datum, website};
use e2e::wait::within;
use e2e::{Test, test};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::api::events::v1::Event;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(30);

/// The finalizer of `mirror`.
const MIRROR: &str = "mirror.examples.nagaya.dev/copies";
/// A finalizer that no run takes away.
const KEPT: &str = "hostile.nagaya.dev/kept";

/// A guest that writes `value` and never takes its finalizer away.
fn keeping(finalizer: Option<&str>, value: &str) -> Value {
    json!({
        "reconcile": "write",
        "value": value,
        "manifest": {
            "primary": {
                "apiVersion": "examples.nagaya.dev/v1", "kind": "Website",
                "when": "generationChanged",
            },
            "writes": [{"apiVersion": "v1", "kind": "ConfigMap", "verbs": ["apply"]}],
            "finalizer": finalizer,
        },
    })
}

async fn finalizers(test: &Test, name: &str) -> Result<Vec<String>> {
    let websites = api_of(&test.admin, &website(&test.namespace, name, ""))?;
    Ok(websites.get(name).await?.finalizers().to_vec())
}

/// A person lets the Websites go: nobody else does any more.
async fn release(test: &Test, names: &[&str]) -> Result<()> {
    for name in names {
        let websites = api_of(&test.admin, &website(&test.namespace, name, ""))?;
        let patch = Patch::Merge(json!({"metadata": {"finalizers": null}}));
        websites.patch(name, &PatchParams::default(), &patch).await?;
    }
    Ok(())
}

/// What the account wrote since then, in the order in which it was answered, without Events.
fn writes(log: &audit::Log, account: &str) -> Result<Vec<audit::Event>> {
    let mut events = log.events()?;
    events.retain(|event| {
        event.actor() == account
            && ["create", "update", "patch", "delete"].contains(&&*event.verb)
            && event.object_ref.as_ref().is_some_and(|object| object.resource != "events")
    });
    events.sort_by_key(|event| event.stage_timestamp);
    Ok(events)
}

#[test]
fn a_finalizer_is_there_before_the_first_write_and_goes_after_the_last() -> Result<()> {
    test(async |test| {
        let labels = [("trusts", test.namespace.clone())];
        let labels = labels.each_ref().map(|(key, value)| (*key, &**value));
        let other = test.another_namespace(&labels).await?;
        let mirror = test.example("mirror").await?;
        let revision = mirror.push(&Component::load("mirror")?).await?;
        mirror.active(&revision).await?;
        let log = test.audit().map(|log| log.from_now()).transpose()?;
        let sample = manifest::read("examples/mirror/sample.yaml")?;
        let sample: Vec<_> =
            sample.iter().map(|object| manifest::moved(object, &test.namespace)).collect();
        test.apply(&sample).await?;
        let copies = Api::<ConfigMap>::namespaced(test.admin.clone(), &other);
        within(LIMIT, "a copy", async || datum(&copies, "ca", "ca.crt").await).await?;
        let mirrors = api_of(&test.admin, &sample[1])?;
        assert_eq!(mirrors.get("ca").await?.finalizers(), [MIRROR]);

        let after = log.as_ref().map(audit::Log::from_now).transpose()?;
        mirrors.delete("ca", &DeleteParams::default()).await?;
        within(LIMIT, "neither Mirror nor copy", async || {
            ensure!(mirrors.get_opt("ca").await?.is_none(), "the Mirror is still there");
            ensure!(copies.get_opt("ca").await?.is_none(), "the copy is still there");
            Ok(())
        })
        .await?;

        test.idle("mirror").await?;
        let (Some(log), Some(after)) = (log, after) else { return Ok(()) };
        let account = test.username("mirror");
        let is_of = |event: &audit::Event, resource: &str| {
            event.object_ref.as_ref().is_some_and(|object| {
                object.resource == resource && object.name == "ca" && object.subresource.is_empty()
            })
        };
        let all = writes(&log, &account)?;
        let first = all.first().context("it wrote nothing")?;
        assert!(is_of(first, "mirrors"), "{}", first.summary());
        let added = first.response_object.as_ref().context("no answer in the log")?;
        assert_eq!(added["metadata"]["finalizers"], json!([MIRROR]));
        let all = writes(&after, &account)?;
        let mut deleted = all.iter().filter(|w| w.verb == "delete" && is_of(w, "configmaps"));
        let deleted = deleted.next().context("who deleted the copy?")?;
        let removed = all.iter().rfind(|write| write.verb == "patch" && is_of(write, "mirrors"));
        let removed = removed.context("who took the finalizer away?")?;
        assert!(deleted.stage_timestamp < removed.request_received_timestamp, "{all:?}");
        Ok(())
    })
}

#[test]
fn the_finalizer_is_fixed_for_life() -> Result<()> {
    test(async |test| {
        let (hostile, first) = test.hostile(json!({}), &keeping(None, "first")).await?;
        let component = Component::load("hostile")?;
        let other = hostile.push_config(&component, &keeping(Some(KEPT), "other")).await?;
        let message = hostile.refused(&other, "FinalizerChanged").await?;
        assert!(message.contains(KEPT), "{message}");
        // Naming it does not help it.
        let patched = hostile.promote(&other).await?;
        let seen = hostile.observed(patched.metadata.generation.context("no generation")?).await?;
        assert_eq!(seen.status.and_then(|status| status.active), Some(first));
        test.website("web", "Web").await?;
        test.written("web", "first").await?;
        assert!(finalizers(test, "web").await?.is_empty());
        Ok(())
    })
}

#[test]
fn a_deleted_controller_leaves_its_finalizers_and_counts_them() -> Result<()> {
    test(async |test| {
        let (hostile, revision) = test.hostile(json!({}), &keeping(Some(KEPT), "stays")).await?;
        for name in ["a", "b"] {
            test.website(name, "Web").await?;
            test.written(name, "stays").await?;
            assert_eq!(finalizers(test, name).await?, [KEPT]);
        }
        hostile.delete().await?;
        hostile.gone(LIMIT).await?;
        for name in ["a", "b"] {
            assert_eq!(finalizers(test, name).await?, [KEPT]);
            assert_eq!(datum(&test.api(), name, "config").await?, "stays");
        }
        let events = test.api::<Event>();
        let left = within(LIMIT, "an event FinalizersLeft", async || {
            let all = events.list(&ListParams::default()).await?.items;
            let found = all.into_iter().find(|one| one.reason.as_deref() == Some("FinalizersLeft"));
            found.context("no such event")
        })
        .await?;
        let about = left.regarding.unwrap_or_default();
        assert_eq!(
            (about.kind.as_deref(), about.name.as_deref()),
            (Some("WasmController"), Some("hostile"))
        );
        assert_eq!(left.type_.as_deref(), Some("Warning"));
        let note = left.note.unwrap_or_default();
        assert!(note.starts_with("2 objects") && note.contains(KEPT), "{note}");
        if test.control_plane.has_controller_manager() {
            // The collector looks for new kinds every 30 s.
            within(3 * LIMIT, "no revision", async || {
                let left = hostile.revisions().await?;
                ensure!(left.is_empty(), "{} of {revision}", left.len());
                Ok(())
            })
            .await?;
        } else {
            eprintln!("not looked at: the revisions, as there is no controller manager");
        }
        release(test, &["a", "b"]).await
    })
}

#[test]
fn a_host_that_was_away_counts_the_finalizers_too() -> Result<()> {
    test(async |test| {
        let (hostile, _) = test.hostile(json!({}), &keeping(Some(KEPT), "stays")).await?;
        test.website("web", "Web").await?;
        test.written("web", "stays").await?;
        test.host.stop().await?;
        hostile.delete().await?;
        assert!(!hostile.get().await?.finalizers().is_empty(), "the host's finalizer holds it");
        test.start_host().await?;
        hostile.gone(LIMIT).await?;
        assert_eq!(finalizers(test, "web").await?, [KEPT]);
        let events = test.api::<Event>();
        let note = within(LIMIT, "an event FinalizersLeft", async || {
            let all = events.list(&ListParams::default()).await?.items;
            let found = all.into_iter().find(|one| one.reason.as_deref() == Some("FinalizersLeft"));
            found.and_then(|event| event.note).context("no such event")
        })
        .await?;
        assert!(note.starts_with("1 object still carries") && note.contains(KEPT), "{note}");
        release(test, &["web"]).await
    })
}
