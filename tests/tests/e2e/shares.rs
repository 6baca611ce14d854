//! Teams share the cores: one that computes without end on every thread leaves the others theirs.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::account::GUEST_RULES;
use e2e::bystander::{Bystander, again, limit};
use e2e::component::Component;
use e2e::test;
use e2e::wait::within;
use serde_json::json;

/// Changes of the bystander's objects a second.
const CHANGES: u32 = 20;
/// How long is measured.
const SPAN: Duration = Duration::from_secs(10);
/// Controllers that do harm, each with eight runs.
const FLOODING: [&str; 3] = ["flood-a", "flood-b", "flood-c"];
const LIMIT: Duration = Duration::from_secs(30);
/// What a bystander may be slower while guests loop; one without its share would wait for their runs, one after the other.
const SLOWER: Duration = Duration::from_millis(25);

/// The log is read once, at the end: to read it takes a core.
async fn measured(bystander: &Bystander, what: &str) -> Result<Duration> {
    let window = bystander.window()?;
    tokio::time::sleep(SPAN).await;
    let latencies = bystander.latencies(&window).await?;
    let [p50, p90, p99] = [50, 90, 99].map(|percent| latencies.percentile(percent));
    let count = latencies.count();
    println!("{what}: {count} changes of a bystander, p50 {p50:?}, p90 {p90:?}, p99 {p99:?}");
    Ok(p99)
}

#[test]
fn a_team_that_loops_on_every_thread_leaves_another_its_share() -> Result<()> {
    test(async |test| {
        if test.audit().is_none() {
            return Ok(());
        }
        let bystander = Bystander::start(test, CHANGES).await?;
        let before = measured(&bystander, "alone").await?;

        for name in FLOODING {
            let spec = json!({"limits": {"concurrency": 8, "deadline": "2s"}});
            let flood = test.guest(name, GUEST_RULES, spec).await?;
            let loops = json!({"reconcile": "loop"});
            let revision = flood.push_config(&Component::load("hostile")?, &loops).await?;
            flood.active(&revision).await?;
        }
        for number in 0..8 {
            test.website(&format!("site-{number}"), "Loops").await?;
        }
        within(LIMIT, "all runs of the flood", async || {
            let mut running = 0.0;
            for name in FLOODING {
                running += test.running(name).await?;
            }
            ensure!(running >= 20.0, "{running} run");
            Ok(())
        })
        .await?;
        let limit = limit(before, SLOWER);
        let beside = again(limit, async || measured(&bystander, "beside 24 endless loops").await);
        let after = beside.await?;
        ensure!(after <= limit, "{after:?} instead of {before:?}");
        Ok(())
    })
}
