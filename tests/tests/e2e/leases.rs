//! Two hosts of one deployment: one works, the other waits with warm caches, and never do both write.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::component::Component;
use e2e::host::Host;
use e2e::site::copied;
use e2e::wait::within;
use e2e::{Test, test};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::ListParams;
use serde_json::json;
use tokio::time::Instant;

/// With the profile `fast`; five times the bounds.
const AFTER_A_CRASH: Duration = Duration::from_secs(5 * 10);
const AFTER_A_STOP: Duration = Duration::from_secs(5 * 2);
const COPIED_WITHIN: Duration = Duration::from_secs(60);
const SITES: usize = 20;

/// Gives each site a new title.
async fn retitle(test: &Test, titles: &mut BTreeMap<String, String>, title: &str) -> Result<()> {
    for number in 0..SITES {
        let name = format!("site-{number}");
        test.website(&name, title).await?;
        titles.insert(name, title.to_owned());
    }
    Ok(())
}

async fn leads(host: &Host, limit: Duration) -> Result<Duration> {
    let begun = Instant::now();
    within(limit, "the other host leads", async || {
        ensure!(host.leads().await?, "it does not");
        Ok(())
    })
    .await?;
    Ok(begun.elapsed())
}

#[test]
fn a_standby_waits_warm_and_takes_no_upload() -> Result<()> {
    test(async |test| {
        let (copier, _) = test.copier("copier", &json!({"mark": "one"})).await?;
        let standby = test.standby("standby").await?;
        ensure!(test.host.leads().await? && !standby.leads().await?, "the first host leads");
        ensure!(
            standby.probe("/readyz").await? == 200,
            "a standby is ready, or no rollout would go on"
        );
        let component = Component::load("copier")?.marked("two")?;
        let patched =
            copier.patch(&json!({"spec": {"module": {"digest": component.digest}}})).await?;
        copier.observed(patched.metadata.generation.unwrap_or_default()).await?;
        let other = e2e::controller::Controller::new(
            &test.admin,
            &test.namespace,
            "copier",
            standby.api(),
        )?;
        let (status, answer) = other.upload(&component).await?;
        ensure!(status == 503 && answer.contains("standby"), "{status} {answer}");
        let (status, answer) = copier.upload(&component).await?;
        ensure!(status == 201, "{status} {answer}");
        standby
            .logged(COPIED_WITHIN, "the standby stages what the leader was sent", |line| {
                line.message() == "a revision is staged"
            })
            .await?;
        let leases = Api::<Lease>::namespaced(test.admin.clone(), "nagaya-system");
        let held = leases.list(&ListParams::default()).await?.items;
        ensure!(
            held.iter().any(|lease| lease
                .spec
                .as_ref()
                .and_then(|spec| spec.holder_identity.as_ref())
                .is_some()),
            "a Lease"
        );
        Ok(())
    })
}

#[test]
fn f19_a_dead_leader_is_followed_and_nothing_is_lost() -> Result<()> {
    test(async |test| {
        test.follow_quickly().await?;
        test.copier("copier", &json!({"mark": "one"})).await?;
        let maps = test.api::<ConfigMap>();
        let mut titles = BTreeMap::new();
        retitle(test, &mut titles, "first").await?;
        copied(&maps, &titles, COPIED_WITHIN).await?;

        // A crash in the middle of a burst.
        let standby = test.standby("second").await?;
        retitle(test, &mut titles, "second").await?;
        test.host.kill()?;
        let mut took = vec![("kill -9", leads(&standby, AFTER_A_CRASH).await?)];
        test.switch_to(standby);
        copied(&maps, &titles, COPIED_WITHIN).await?;

        // The dead one may have written all of that. This is written by its successor.
        retitle(test, &mut titles, "between").await?;
        copied(&maps, &titles, COPIED_WITHIN).await?;

        // A polite stop, as a rolling update of the Deployment does it.
        let standby = test.standby("third").await?;
        retitle(test, &mut titles, "third").await?;
        test.host.stop().await?;
        took.push(("SIGTERM, from the end of the drain", leads(&standby, AFTER_A_STOP).await?));
        test.switch_to(standby);
        copied(&maps, &titles, COPIED_WITHIN).await?;
        retitle(test, &mut titles, "fourth").await?;
        copied(&maps, &titles, COPIED_WITHIN).await?;
        for (what, time) in took {
            println!("f19: {what}: the next host leads after {time:.1?}");
        }
        // That no epoch wrote after a later one is checked of every test when it ends.
        let Some(history) = test.history()? else { return Ok(()) };
        let epochs: BTreeSet<_> =
            history.by_runs().filter_map(|(_, author)| author.epoch).collect();
        // A machine that stands still for seconds ends a claim too, and makes one more.
        ensure!(epochs.len() >= 3, "each take-over is an epoch: {epochs:?}");
        Ok(())
    })
}

#[test]
fn f20_a_frozen_leader_writes_nothing_when_it_wakes() -> Result<()> {
    test(async |test| {
        test.follow_quickly().await?;
        test.copier("copier", &json!({"mark": "one", "pause": 300})).await?;
        let maps = test.api::<ConfigMap>();
        let mut titles = BTreeMap::new();
        let mut standby = test.standby("second").await?;
        retitle(test, &mut titles, "zeroth").await?;
        copied(&maps, &titles, COPIED_WITHIN).await?;
        // Frozen with runs between their reads and their writes.
        retitle(test, &mut titles, "first").await?;
        within(COPIED_WITHIN, "runs are going on", async || {
            ensure!(test.running("copier").await? >= 1.0, "none");
            Ok(())
        })
        .await?;
        let frozen = Instant::now();
        test.host.freeze()?;
        let took = leads(&standby, AFTER_A_CRASH).await?;
        println!("f20: the next host leads {took:.1?} after the freeze");
        retitle(test, &mut titles, "second").await?;
        copied(&maps, &titles, COPIED_WITHIN).await?;
        tokio::time::sleep_until(frozen + Duration::from_secs(60)).await;
        test.host.thaw()?;
        within(COPIED_WITHIN, "the woken host has seen that it leads no more", async || {
            ensure!(!test.host.leads().await?, "it still says that it leads");
            Ok(())
        })
        .await?;
        ensure!(standby.leads().await?, "the second host leads");
        let fenced = test.host.metrics().await?.sum("nagaya_writes_fenced_total", &[]);
        println!("f20: {fenced} writes of the woken host were refused by its own fence");
        retitle(test, &mut titles, "third").await?;
        copied(&maps, &titles, COPIED_WITHIN).await?;
        if let Some(history) = test.history()? {
            let epochs: BTreeSet<_> =
                history.by_runs().filter_map(|(_, author)| author.epoch).collect();
            ensure!(epochs.len() >= 2, "both have written: {epochs:?}");
        }
        standby.stop().await
    })
}
