//! A controller's life beside its versions: suspended, deleted.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::account::GUEST_RULES;
use e2e::component::Component;
use e2e::controller::Controller;
use e2e::manifest::resource;
use e2e::site::datum;
use e2e::wait::within;
use e2e::witness::{Change, Witness};
use e2e::{Test, test};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;
use nagaya::model::crd::Phase;
use serde_json::json;
use tokio::time::Instant;

const LIMIT: Duration = Duration::from_secs(20);

/// A guest under this name that does these steps.
async fn guest(test: &Test, name: &str, steps: &str) -> Result<Controller> {
    let guest = test.guest(name, GUEST_RULES, json!({})).await?;
    let config = json!({"reconcile": steps, "value": name});
    let revision = guest.push_config(&Component::load("hostile")?, &config).await?;
    guest.active(&revision).await?;
    Ok(guest)
}

#[test]
fn a_suspended_controller_starts_no_run() -> Result<()> {
    test(async |test| {
        let quiet = guest(test, "quiet", "grab:quiet").await?;
        guest(test, "awake", "grab:awake").await?;
        quiet.patch(&json!({"spec": {"suspend": true}})).await?;
        quiet.phase(Phase::Suspended).await?;
        test.website("web", "Web").await?;
        let maps = test.api::<ConfigMap>();
        // The other one shows that the change has gone through the watch that they share.
        within(LIMIT, "the other's write", async || datum(&maps, "awake", "config").await).await?;
        assert_eq!(test.runs("quiet").await?, 0.0);

        // Staging and promotes go on.
        let again = json!({"reconcile": "grab:quiet", "value": "second"});
        let second = quiet.push_config(&Component::load("hostile")?, &again).await?;
        quiet.candidate(&second).await?;
        quiet.promote(&second).await?;
        quiet.active(&second).await?;
        assert_eq!((test.runs("quiet").await?, maps.get_opt("quiet").await?), (0.0, None));

        quiet.patch(&json!({"spec": {"suspend": false}})).await?;
        let value =
            within(LIMIT, "a write", async || datum(&maps, "quiet", "config").await).await?;
        assert_eq!(value, "second", "what was missed is not lost");
        Ok(())
    })
}

#[test]
fn a_deleted_controller_drains_its_runs() -> Result<()> {
    test(async |test| {
        let slow = guest(test, "slow", "sleep:4000,sleep:2000,write").await?;
        let kinds =
            [resource("v1", "ConfigMap"), resource("nagaya.dev/v1alpha1", "WasmController")];
        let witness = Witness::start(&test.admin, &test.namespace, &kinds, "").await?;
        let before = Instant::now();
        test.website("web", "Web").await?;
        within(LIMIT, "a run in flight", async || {
            let running = test.running("slow").await?;
            ensure!(running == 1.0, "{running}");
            Ok(())
        })
        .await?;
        let seen = slow.get().await?;
        assert!(!seen.finalizers().is_empty(), "nothing would hold it");
        slow.delete().await?;
        slow.gone(Duration::from_secs(30)).await?;

        let at = |kind: &str, name: &str, change| {
            let seen = witness.since(before)?;
            let mut seen = seen.into_iter();
            let sight =
                seen.find(|one| (&*one.kind, &*one.name, one.change) == (kind, name, change));
            sight
                .map(|sight| sight.version)
                .with_context(|| format!("{kind} {name}: no {change:?}"))
        };
        let (written, gone) = within(LIMIT, "both were seen", async || {
            let written = at("ConfigMap", "web", Change::Added)?;
            Ok((written, at("WasmController", "slow", Change::Deleted)?))
        })
        .await?;
        assert!(written < gone, "it was gone before its run had written");
        // Children stay; revisions go with their owner.
        assert_eq!(datum(&test.api(), "web", "config").await?, "slow");
        if test.control_plane.has_controller_manager() {
            // The collector looks for new kinds every 30 s.
            within(Duration::from_secs(90), "no revision", async || {
                let left = slow.revisions().await?.len();
                ensure!(left == 0, "{left}");
                Ok(())
            })
            .await?;
        }
        Ok(())
    })
}

#[test]
fn a_deleted_controller_starts_no_run_any_more() -> Result<()> {
    test(async |test| {
        let gone = guest(test, "gone", "grab:gone").await?;
        guest(test, "stays", "grab:stays").await?;
        gone.delete().await?;
        gone.gone(LIMIT).await?;
        test.website("web", "Web").await?;
        let maps = test.api::<ConfigMap>();
        within(LIMIT, "the other's write", async || datum(&maps, "stays", "config").await).await?;
        assert_eq!(maps.get_opt("gone").await?, None);

        // The same name again is a controller like any other, and needs no second upload.
        let again = test.bare_controller("gone", "gone", json!({})).await?;
        let component = Component::load("hostile")?;
        let config = json!({"reconcile": "grab:gone", "value": "again"});
        let patch = json!({"spec": {"module": {"digest": component.digest}, "config": config}});
        again.patch(&patch).await?;
        let value = within(LIMIT, "a write", async || datum(&maps, "gone", "config").await).await?;
        assert_eq!(value, "again");
        Ok(())
    })
}
