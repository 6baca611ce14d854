//! A live revision that keeps breaking down says so, and says what to do; nothing is rolled back by itself.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::component::Component;
use e2e::controller::{self, Controller};
use e2e::test;
use e2e::wait::within;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use nagaya::model::crd::Phase;
use serde_json::json;
use tokio::time::Instant;

/// Five times the bound, which is 5 s.
const TOLD_WITHIN: Duration = Duration::from_secs(25);

async fn degraded(hostile: &Controller) -> Result<Condition> {
    within(TOLD_WITHIN, "it is degraded", async || {
        let seen = hostile.get().await?;
        let condition = controller::condition(&seen, "Degraded").cloned();
        let condition = condition.context("no condition")?;
        ensure!(condition.status == "True", "{}", condition.message);
        Ok(condition)
    })
    .await
}

async fn told_once(events: &Api<Event>) -> Result<()> {
    within(TOLD_WITHIN, "one event", async || {
        let all = events.list(&ListParams::default()).await?.items;
        let told = all.iter().filter(|one| {
            one.reason.as_deref() == Some("GuestBreaksDown")
                && one.regarding.as_ref().and_then(|one| one.name.as_deref()) == Some("hostile")
        });
        let count = told.count();
        ensure!(
            count == 1,
            "{count} of {:?}",
            all.iter().map(ResourceExt::name_any).collect::<Vec<_>>()
        );
        Ok(())
    })
    .await
}

#[test]
fn f2_a_revision_that_keeps_trapping_is_degraded_until_the_team_acts() -> Result<()> {
    test(async |test| {
        let good = json!({"reconcile": "write", "value": "good"});
        let (hostile, first) = test.hostile(json!({}), &good).await?;
        test.website("web", "Web").await?;
        test.written("web", "good").await?;
        assert_eq!(hostile.condition("Degraded", "False").await?.reason, "AsExpected");

        let bad = json!({"reconcile": "panic"});
        let second = hostile.push_config(&Component::load("hostile")?, &bad).await?;
        hostile.candidate(&second).await?;
        hostile.promote(&second).await?;
        hostile.active(&second).await?;
        let promoted = Instant::now();
        let ill = degraded(&hostile).await?;
        println!(
            "Degraded {:?} after the promote (bound 5 s after the fifth trap)",
            promoted.elapsed()
        );
        assert_eq!(ill.reason, "GuestBreaksDown");
        for words in [
            &*second,
            "5 runs in a row",
            &format!("object {}/web", test.namespace),
            "this guest was told to panic",
            &format!("nagaya rollback hostile -n {}", test.namespace),
        ] {
            assert!(ill.message.contains(words), "{words} is not in: {}", ill.message);
        }
        let seen = hostile.phase(Phase::Degraded).await?.status.context("no status")?;
        assert_eq!(seen.active.as_ref(), Some(&second), "nothing is rolled back by itself");
        let revision = hostile.revision(&second, "is degraded", |status| {
            status.conditions.iter().any(|one| one.type_ == "Degraded" && one.status == "True")
        });
        revision.await?;
        told_once(&test.api()).await?;

        hostile.roll_back(&second, &first).await?;
        hostile.active(&first).await?;
        let well = hostile.condition("Degraded", "False").await?;
        assert_eq!(well.reason, "AsExpected");
        hostile.phase(Phase::Running).await?;
        test.website("web", "Changed").await?;
        test.written("web", "good").await
    })
}
