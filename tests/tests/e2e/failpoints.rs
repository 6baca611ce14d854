//! The host is killed at each step of a swap and between the writes of a run, and comes back with nothing lost.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::account::GUEST_RULES;
use e2e::component::{Component, digest};
use e2e::controller::Controller;
use e2e::load::Load;
use e2e::site::{copied, datum};
use e2e::wait::within;
use e2e::{Test, long, test};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::ListParams;
use nagaya::model::crd::{RevisionPhase, WasmRevision};
use serde_json::{Value, json};

const SITES: usize = 10;
const RATE: u32 = 20;
/// A killed host is followed when its Lease has expired.
const LIMIT: Duration = Duration::from_secs(60);

/// Waits until the failpoint has ended the host, and starts one without.
async fn reborn(test: &mut Test, point: &str) -> Result<()> {
    within(LIMIT, &format!("{point} has ended the host"), async || {
        test.host.ended()?.context("it runs").map(drop)
    })
    .await?;
    test.start_host_failing("").await
}

/// What a revision is told: only of runs that take a while some are in flight at each swap.
fn config(point: &str, mark: &str) -> Value {
    let pause = if point.starts_with("drained") { 300 } else { 0 };
    json!({"mark": mark, "pause": pause})
}

/// Pushes, whatever the host does meanwhile: a failed upload is sent again by whoever pushes.
async fn push(copier: &Controller, component: &Component, config: &Value) -> Result<String> {
    let name = nagaya::model::crd::revision_name("copier", &component.digest, Some(config));
    copier
        .patch(&json!({"spec": {"module": {"digest": component.digest}, "config": config}}))
        .await?;
    // Whether it arrives is what the failpoint decides.
    let _ =
        within(LIMIT, "the upload is answered", async || match copier.upload(component).await {
            Ok((200 | 201, _)) => Ok(true),
            Ok((status, answer)) => anyhow::bail!("{status} {answer}"),
            Err(_) => Ok(false),
        })
        .await?;
    Ok(name)
}

/// The host begins anew with this failpoint.
async fn armed(test: &mut Test, point: &str) -> Result<()> {
    test.host.stop().await?;
    // What is known already is not compiled.
    if point.starts_with("compile") {
        test.forget_code()?;
    }
    test.start_host_failing(point).await
}

/// The second revision's way is interrupted at `point`, under load.
async fn swap_through(test: &mut Test, point: &str) -> Result<()> {
    armed(test, point).await?;
    let plain = Component::load("copier")?;
    // The first revision is named from the start: one of no component would count as a passage.
    let spec = json!({
        "limits": {"writesPerMinute": 60_000},
        "revisionHistoryLimit": 0,
        "module": {"digest": plain.digest},
        "config": config(point, "a"),
    });
    let copier = test.guest("copier", GUEST_RULES, spec).await?;
    let a = push(&copier, &plain, &config(point, "a")).await?;
    copier.active(&a).await?;
    let mut names = vec![];
    for number in 0..SITES {
        names.push(format!("site-{number}"));
        test.website(&names[number], "first").await?;
    }
    copied(&test.api(), &names.iter().map(|name| (name.clone(), "first".into())).collect(), LIMIT)
        .await?;
    let load = Load::start(test.admin.clone(), &test.namespace, names.clone(), RATE);

    // Until the host is gone, and once more with the next one: what is asked for stands in the API.
    let marks = if point.starts_with("gc") { vec!["b", "c"] } else { vec!["b"] };
    let mut last = String::new();
    let mut was_killed = false;
    for mark in &marks {
        let component = plain.marked(mark)?;
        last = push(&copier, &component, &config(point, mark)).await?;
        if !was_killed && test.host.ended()?.is_some() {
            was_killed = true;
            reborn(test, point).await?;
            last = push(&test.controller("copier")?, &component, &config(point, mark)).await?;
        }
        copier.promote(&last).await?;
        let found = within(LIMIT, "it is promoted, or the host is killed", async || {
            if test.host.ended()?.is_some() {
                return Ok(false);
            }
            let status = copier.get().await?.status.unwrap_or_default();
            ensure!(status.active.as_ref() == Some(&last), "{:?}", status.active);
            Ok(!point.starts_with("drained"))
        })
        .await?;
        if !found && !was_killed {
            was_killed = true;
            reborn(test, point).await?;
            push(&test.controller("copier")?, &component, &config(point, mark)).await?;
        }
    }
    if !was_killed {
        reborn(test, point).await?;
    }
    copier.active(&last).await?;
    let titles = load.stop().await?;
    copied(&test.api(), &titles, LIMIT).await?;
    let mark = marks.last().context("a mark")?;
    all_marked(test, &names, mark).await?;
    only_active(&copier, &last).await?;
    whole_files(test.folder())
}

/// Waits until everything is the new revision's work.
async fn all_marked(test: &Test, names: &[String], mark: &str) -> Result<()> {
    let maps = test.api::<ConfigMap>();
    within(LIMIT, "everything is the new revision's work", async || {
        for name in names {
            let found = datum(&maps, name, "mark").await?;
            ensure!(found == mark, "{name} is marked {found}");
        }
        Ok(())
    })
    .await
}

async fn only_active(copier: &Controller, name: &str) -> Result<()> {
    within(LIMIT, "exactly one revision is active", async || {
        let is_active = |one: &WasmRevision| {
            one.status.as_ref().is_some_and(|status| status.phase == RevisionPhase::Active)
        };
        let revisions = copier.revisions().await?.into_iter().filter(is_active);
        let active: Vec<_> = revisions.filter_map(|one| one.metadata.name).collect();
        ensure!(active == [name], "{active:?}");
        Ok(())
    })
    .await
}

/// Every stored module is what its name says.
fn whole_files(folder: &Path) -> Result<()> {
    for entry in
        std::fs::read_dir(folder.join("data/modules")).context("listing the module store")?
    {
        let path = entry?.path();
        let name =
            path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if let Some(hex) = name.strip_suffix(".wasm") {
            let found = digest(&std::fs::read(&path)?);
            ensure!(found == format!("sha256:{hex}"), "{name} has the digest {found}");
        }
    }
    Ok(())
}

fn swap_steps(points: &[&str]) -> Result<()> {
    for round in 0..if long() { 5 } else { 1 } {
        for point in points {
            test(async |test| swap_through(test, point).await)
                .with_context(|| format!("{point}, round {round}"))?;
            println!("f14: killed at {point}: one revision is active, nothing is lost");
        }
    }
    Ok(())
}

#[test]
fn f14_a_host_killed_while_it_takes_a_module_loses_nothing() -> Result<()> {
    swap_steps(&["recv:kill@2", "hash:kill@2", "verify:kill@2", "fsync:kill@2", "rename:kill@2"])
}

#[test]
fn f14_a_host_killed_while_it_stages_loses_nothing() -> Result<()> {
    swap_steps(&[
        "cr-written:kill@2",
        "compile-start:kill@2",
        "compiled:kill@2",
        "instantiate:kill@2",
        "describe:kill@2",
    ])
}

#[test]
fn f14_a_host_killed_while_it_swaps_loses_nothing() -> Result<()> {
    swap_steps(&[
        "intent-cas:kill@2",
        "gate-closed:kill@2",
        "requeue:kill@2",
        "drained:kill",
        "gate-open:kill@2",
        "gc:kill",
    ])
}

/// Three writes a run: killed before each of them, and after the last.
#[test]
fn f15_a_host_killed_between_writes_finishes_them_once() -> Result<()> {
    for point in ["write:kill@1", "write:kill@2", "write:kill@3", "written:kill@3"] {
        test(async |test| {
            test.host.stop().await?;
            test.start_host_failing(point).await?;
            test.copier("copier", &json!({"mark": "a", "maps": 3})).await?;
            test.website("site", "only").await?;
            reborn(test, point).await?;
            let names = ["site", "site-1", "site-2"];
            copied(&test.api(), &names.map(|name| (name.into(), "only".into())).into(), LIMIT)
                .await?;
            test.idle("copier").await?;
            let maps = test.api::<ConfigMap>().list(&ListParams::default()).await?.items;
            let made = maps
                .iter()
                .filter(|map| map.data.is_some() && map.metadata.owner_references.is_some());
            ensure!(made.count() == names.len(), "{} ConfigMaps", maps.len());
            let Some(history) = test.history()? else { return Ok(()) };
            let created = history.by_runs().filter(|(write, _)| write.is_creation()).count();
            // One whose answer was lost is no creation in the log, and was not made again.
            ensure!(created <= names.len(), "{created} creations");
            Ok(())
        })
        .context(point)?;
        println!("f15: killed at {point}: each object was made once");
    }
    Ok(())
}

/// The instance is dropped, the object is tried again, and nobody else notices.
#[test]
fn f23_a_panic_in_a_host_function_fails_one_run() -> Result<()> {
    test(async |test| {
        test.host.stop().await?;
        test.start_host_failing("host-call:panic").await?;
        test.copier("copier", &json!({"mark": "a"})).await?;
        test.website("site", "only").await?;
        copied(&test.api(), &[("site".into(), "only".into())].into(), LIMIT).await?;
        let metrics = test.host.metrics().await?;
        let caught = metrics.sum("nagaya_guest_traps_total", &[("kind", "host-panic")]);
        ensure!(caught == 1.0, "{caught} panics are counted");
        // It has logged the bug as an error, as it should.
        test.host.stop().await?;
        test.start_host_failing("").await
    })
}
