//! Two writers that want the same field otherwise: our controllers are told, and do not keep the API server busy.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::account::GUEST_RULES;
use e2e::component::Component;
use e2e::controller::{self, Controller};
use e2e::site::{datum, owning, website};
use e2e::wait::within;
use e2e::{Test, test};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, Patch, PatchParams};
use nagaya::model::crd::Phase;
use serde_json::{Value, json};
use tokio::time::{Instant, interval, sleep};

const TOLD_WITHIN: Duration = Duration::from_secs(60);
/// A horizontal pod autoscaler looks so often.
const AUTOSCALER: Duration = Duration::from_secs(15);
/// What is counted: within it each of the two may write twice, and once more at its beginning.
const LOOKED_AT: Duration = Duration::from_secs(40);
const WRITES: usize = 6;
/// A fight is over when a minute has passed without a bout.
const OVER_WITHIN: Duration = Duration::from_secs(100);

/// A controller of these Websites that makes the child of each say `value`.
async fn writer(test: &mut Test, value: &str, selector: Option<&str>) -> Result<Controller> {
    let mut config = owning("write");
    config["value"] = json!(value);
    if let Some(selector) = selector {
        config["manifest"]["primary"]["labelSelector"] = json!(selector);
    }
    let spec = json!({"limits": {"writesPerMinute": 60_000}});
    let controller = test.guest(value, GUEST_RULES, spec).await?;
    let revision = controller.push_config(&Component::load("hostile")?, &config).await?;
    controller.active(&revision).await?;
    Ok(controller)
}

fn site(test: &Test, name: &str, title: &str, labels: Value) -> Value {
    let mut site = website(&test.namespace, name, title);
    site["metadata"]["labels"] = labels;
    site
}

async fn is_told(controller: &Controller) -> Result<()> {
    within(TOLD_WITHIN, "the fight is told", async || {
        let seen = controller.get().await?;
        let told = controller::condition(&seen, "Degraded").context("no condition")?;
        ensure!(told.reason == "Fighting", "{}: {}", told.reason, told.message);
        for words in ["ConfigMap ", "/web;", "once in 20s", "kubectl get configmap web -n "] {
            ensure!(told.message.contains(words), "{words} is not in: {}", told.message);
        }
        let phase = seen.status.map(|status| status.phase);
        ensure!(phase == Some(Phase::Running), "{phase:?}: the other objects are served");
        Ok(())
    })
    .await
}

#[test]
fn f11_two_controllers_that_fight_are_told_and_slowed() -> Result<()> {
    test(async |test| {
        let one = writer(test, "one", None).await?;
        let two = writer(test, "two", Some("team=two")).await?;
        let began = Instant::now();
        test.apply(&[
            site(test, "quiet", "Quiet", json!({})),
            site(test, "web", "Web", json!({"team": "two"})),
        ])
        .await?;
        is_told(&one).await?;
        is_told(&two).await?;
        let told = began.elapsed();
        println!("both are told {told:.1?} after the fight began (bound 60 s)");
        ensure!(told <= TOLD_WITHIN, "told after {told:?}");

        let log = test.audit().context("writes are counted by the audit log")?;
        let before = log.from_now()?;
        sleep(LOOKED_AT).await;
        let events = before.events()?;
        let writes = events.iter().filter(|event| {
            event.is_write()
                && event.is_about("configmaps", &test.namespace)
                && event.object_ref.as_ref().is_some_and(|object| object.name == "web")
        });
        let writes = writes.count();
        println!("{writes} writes of the object in {LOOKED_AT:?} (bound 6 a minute)");
        ensure!((1..=WRITES).contains(&writes), "{writes} writes");

        let maps = test.api::<ConfigMap>();
        ensure!(datum(&maps, "quiet", "config").await? == "one");
        maps.delete("quiet", &DeleteParams::default()).await?;
        within(Duration::from_secs(15), "the other object is put right at once", async || {
            ensure!(datum(&maps, "quiet", "config").await? == "one");
            Ok(())
        })
        .await?;

        two.patch(&json!({"spec": {"suspend": true}})).await?;
        within(OVER_WITHIN, "the fight is over", async || {
            let seen = one.get().await?;
            let told = controller::condition(&seen, "Degraded").context("no condition")?;
            ensure!(told.reason == "AsExpected", "{}: {}", told.reason, told.message);
            Ok(())
        })
        .await?;
        ensure!(datum(&maps, "web", "config").await? == "one");
        Ok(())
    })
}

/// Four changes 15 s apart are told within 60 s, three are not.
#[test]
fn f11_a_writer_who_comes_every_fifteen_seconds_is_told() -> Result<()> {
    test(async |test| {
        let one = writer(test, "one", None).await?;
        test.apply(&[site(test, "web", "Web", json!({}))]).await?;
        test.written("web", "one").await?;
        let maps = test.api::<ConfigMap>();
        let theirs = Patch::Merge(json!({"data": {"config": "theirs"}}));
        let mut ticks = interval(AUTOSCALER);
        for time in 1..=4 {
            ticks.tick().await;
            let seen = one.condition("Degraded", "False").await?;
            ensure!(seen.reason == "AsExpected", "after {} changes: {}", time - 1, seen.message);
            maps.patch("web", &PatchParams::default(), &theirs).await?;
            test.written("web", "one").await?;
        }
        is_told(&one).await
    })
}
