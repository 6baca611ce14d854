//! Swaps under load: nothing is missed, and no old revision writes after a new one, with the audit log as the oracle.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::component::Component;
use e2e::control_plane::audit::Event;
use e2e::controller::Controller;
use e2e::load::Load;
use e2e::site::{copied, datum};
use e2e::wait::within;
use e2e::{Test, long, test};
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::json;

const SITES: usize = 50;
const RATE: u32 = 50;
const LIMIT: Duration = Duration::from_secs(60);

/// When a swap was asked for, and the executor generation that it led to.
struct Swap {
    kind: &'static str,
    generation: i64,
    resource_version: String,
}

async fn sites(test: &Test, count: usize) -> Result<Vec<String>> {
    let names: Vec<_> = (0..count).map(|number| format!("site-{number}")).collect();
    for name in &names {
        test.website(name, "first").await?;
    }
    Ok(names)
}

/// Waits until every site's copy carries the mark of the live revision.
async fn marked(test: &Test, names: &[String], mark: &str) -> Result<()> {
    let maps = test.api::<ConfigMap>();
    within(LIMIT, &format!("everything is marked {mark}"), async || {
        for name in names {
            let found = datum(&maps, name, "mark").await?;
            ensure!(found == mark, "{name} is marked {found}");
        }
        Ok(())
    })
    .await
}

async fn swapped(
    copier: &Controller,
    kind: &'static str,
    to: &str,
    patched: nagaya::model::crd::WasmController,
) -> Result<Swap> {
    let seen = copier.active(to).await?;
    let generation = seen.status.context("no status")?.executor_generation;
    let resource_version = patched.metadata.resource_version.context("no version")?;
    Ok(Swap { kind, generation, resource_version })
}

/// 200 swaps with `cargo xtask test --long`, 20 otherwise: promote, roll back, push and abort in turn.
#[test]
fn swaps_under_load_miss_nothing_and_leave_one_writer() -> Result<()> {
    let swaps = if long() { 200 } else { 20 };
    test(async |test| {
        let (copier, a) = test.copier("copier", &json!({"mark": "a"})).await?;
        let component = Component::load("copier")?;
        let names = sites(test, SITES).await?;
        let load = Load::start(test.admin.clone(), &test.namespace, names.clone(), RATE);
        let b = copier.push_config(&component, &json!({"mark": "b"})).await?;
        copier.candidate(&b).await?;
        let mut done = vec![];
        for number in 0..swaps {
            match number % 4 {
                0 => {
                    let patched = copier.promote(&b).await?;
                    done.push(swapped(&copier, "promote", &b, patched).await?);
                }
                1 => {
                    let patched = copier.roll_back(&b, &a).await?;
                    done.push(swapped(&copier, "roll back", &a, patched).await?);
                }
                2 => {
                    // A candidate that is never live; then the spec wants `b` again, which is rejected still.
                    let config = json!({"mark": format!("c{number}")});
                    let c = copier.push_config(&component, &config).await?;
                    copier.candidate(&c).await?;
                    copier.abort(&c).await?;
                    copier.patch(&json!({"spec": {"config": {"mark": "b"}, "rollout": {"rejected": [b]}}})).await?;
                }
                _ => {
                    let patched = copier.promote(&b).await?;
                    done.push(swapped(&copier, "promote", &b, patched).await?);
                    let patched = copier.promote(&a).await?;
                    done.push(swapped(&copier, "promote back", &a, patched).await?);
                }
            }
        }
        let titles = load.stop().await?;
        let last =
            copier.get().await?.status.context("no status")?.active.context("nobody lives")?;
        let mark = if last == b { "b" } else { "a" };
        copied(&test.api(), &titles, LIMIT).await?;
        marked(test, &names, mark).await?;
        // The history is checked for late writers when the test ends.
        let Some(log) = test.audit() else { return Ok(()) };
        report(&done, &log.events()?, &test.namespace)
    })
}

/// Prints how long it took from each accepted promote to the first write of the revision.
fn report(swaps: &[Swap], events: &[Event], namespace: &str) -> Result<()> {
    let asked: BTreeMap<_, _> = events
        .iter()
        .filter(|event| {
            event.verb == "patch" && event.request_uri.contains("/wasmcontrollers/copier")
        })
        .filter_map(|event| {
            let version =
                event.response_object.as_ref()?["metadata"]["resourceVersion"].as_str()?;
            Some((version.to_owned(), event.stage_timestamp))
        })
        .collect();
    let mut first = BTreeMap::new();
    for event in events {
        let agent = &event.user_agent;
        if event.is_write() && agent.contains(&format!("controller={namespace}/copier;")) {
            let generation =
                agent.split("generation=").nth(1).and_then(|rest| rest.split(';').next());
            let generation: i64 =
                generation.and_then(|text| text.parse().ok()).context("no generation")?;
            first.entry(generation).or_insert(event.stage_timestamp);
        }
    }
    let mut times = vec![];
    for swap in swaps {
        let (Some(asked), Some(first)) =
            (asked.get(&swap.resource_version), first.get(&swap.generation))
        else {
            // A swap may be followed by the next one before anything has changed.
            println!("swap to generation {} ({}) wrote nothing", swap.generation, swap.kind);
            continue;
        };
        times.push(Duration::try_from(first.duration_since(*asked)).unwrap_or_default());
    }
    times.sort_unstable();
    let at = |share: usize| times[(times.len() - 1) * share / 100];
    println!(
        "{} swaps; from promote to first write: p50 {:.1?}, p99 {:.1?}, longest {:.1?}",
        times.len(),
        at(50),
        at(99),
        at(100)
    );
    ensure!(times.len() * 2 > swaps.len(), "most swaps wrote something");
    Ok(())
}
