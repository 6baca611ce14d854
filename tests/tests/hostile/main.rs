//! Guests that mean harm: what ends each, after how long, and what another team and the host's memory notice of it.
//!
//! `cargo xtask test --hostile` runs these alone, with longer windows, and shows the figures.

#![cfg(test)] // Tells clippy that helpers are test code too.

mod arena;
mod greed;
mod harm;
mod table;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::bombs;
use e2e::component::Component;
use e2e::manifest::api_of;
use e2e::memory::MIB;
use e2e::site::{datum, website};
use e2e::test_in_turn;
use e2e::wait::within;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams};
use nagaya::model::crd::RevisionPhase;
use serde_json::json;
use tokio::time::Instant;

use arena::Arena;
use harm::harms;
use table::{Row, Table};

const LIMIT: Duration = Duration::from_secs(30);
/// What the host may hold while it refuses a compile bomb, and how long that may take.
const BOMB_HOLDS: u64 = 64 * MIB;
const BOMB_REFUSED_WITHIN: Duration = Duration::from_secs(120);
/// A bystander may be this much slower meanwhile.
const BOMB_OTHERS: Duration = Duration::from_millis(25);

/// Figures are measured one after the other, whatever the test harness does at once.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Fails with all problems at once, each on a line.
fn none(problems: &[String]) -> Result<()> {
    ensure!(problems.is_empty(), "\n{}", problems.join("\n"));
    Ok(())
}

#[test]
fn f01_to_f11_each_is_caught_and_no_other_team_notices() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    test_in_turn(async |test| {
        if test.audit().is_none() {
            return Ok(());
        }
        let arena = Arena::start(test).await?;
        let table = Table::begin("hostile guest", arena.alone, arena.base);
        let mut problems = vec![];
        for harm in harms() {
            let (row, wrong) = arena.look_at(test, &harm).await.context(harm.name)?;
            table.print(&row);
            problems.extend(wrong.into_iter().map(|wrong| format!("{}: {wrong}", harm.name)));
        }
        none(&problems)
    })
}

#[test]
fn g04_eight_compile_bombs_are_refused() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    test_in_turn(async |test| {
        if test.audit().is_none() {
            return Ok(());
        }
        let arena = Arena::start(test).await?;
        let active = arena.hostile.get().await?.status.and_then(|status| status.active);
        let table = Table::begin("compile bomb", arena.alone, arena.base);
        let mut problems = vec![];
        for bomb in bombs::all() {
            let window = arena.bystander.window()?;
            arena.memory.forget_peak()?;
            let began = Instant::now();
            let revision = arena.hostile.push(&bomb.component).await?;
            let failed = arena
                .hostile
                .revision(&revision, "is refused", |status| status.phase == RevisionPhase::Failed);
            let said = failed.await?.status.and_then(|status| status.message).unwrap_or_default();
            let took = began.elapsed();
            let mut wrong = vec![];
            if took > BOMB_REFUSED_WITHIN {
                wrong.push(format!("refused after {took:?}"));
            }
            let by_child = said.contains("compiling the component took more than");
            if by_child != bomb.passes_the_screen || !said.contains("limit") {
                wrong.push(format!("it is refused with {said:?}"));
            }
            let peak = arena.memory.peak()?;
            if peak > arena.base + BOMB_HOLDS {
                wrong.push(format!("the host held {}", table::mib(peak)));
            }
            let bystander = arena.bystander.latencies(&window).await?.percentile(99);
            wrong.extend(arena.too_slow(bystander, BOMB_OTHERS).await?);
            let after = arena.let_go().await;
            wrong.extend(after.as_ref().err().map(|error| format!("{error:#}")));
            let ends = if by_child { "compile child" } else { "screen" };
            table.print(&Row {
                fault: "G4",
                name: bomb.name,
                ends: ends.to_owned(),
                took: vec![took],
                bystander,
                peak,
                after: after.unwrap_or_default(),
                traces: None,
            });
            problems.extend(wrong.into_iter().map(|wrong| format!("{}: {wrong}", bomb.name)));
        }
        let seen = arena.hostile.get().await?.status.and_then(|status| status.active);
        assert_eq!(seen, active, "what runs goes on");
        test.website("web", "Web").await?;
        test.written("web", "well").await?;
        none(&problems)
    })
}

/// Its finalizer stays for ever, because the guest does nothing when its object is deleted.
#[test]
fn f13_an_ignored_deletion_holds_up_that_object_alone() -> Result<()> {
    const KEPT: &str = "hostile.nagaya.dev/kept";
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let config = |value: &str| {
        json!({
            "reconcile": "write",
            "value": value,
            "manifest": {
                "primary": {
                    "apiVersion": "examples.nagaya.dev/v1", "kind": "Website",
                    "when": "generationChanged",
                },
                "writes": [{"apiVersion": "v1", "kind": "ConfigMap", "verbs": ["apply"]}],
                "finalizer": KEPT,
            },
        })
    };
    test_in_turn(async |test| {
        let (hostile, _) = test.hostile(json!({}), &config("one")).await?;
        for name in ["stuck", "other"] {
            test.website(name, "Web").await?;
            test.written(name, "one").await?;
        }
        let websites = api_of(&test.admin, &website(&test.namespace, "stuck", ""))?;
        websites.delete("stuck", &DeleteParams::default()).await?;
        test.idle("hostile").await?;
        let second = hostile.push_config(&Component::load("hostile")?, &config("two")).await?;
        hostile.candidate(&second).await?;
        hostile.promote(&second).await?;
        hostile.active(&second).await?;
        test.written("other", "two").await?;
        test.website("new", "New").await?;
        test.written("new", "two").await?;
        let stuck = websites.get("stuck").await?;
        assert!(stuck.metadata.deletion_timestamp.is_some());
        assert_eq!(stuck.finalizers(), [KEPT], "that it stays is the guest's affair");
        for name in ["stuck", "other", "new"] {
            let patch = Patch::Merge(json!({"metadata": {"finalizers": null}}));
            websites.patch(name, &PatchParams::default(), &patch).await?;
        }
        Ok(())
    })
}

#[test]
fn a_guest_finds_nothing_of_the_machine() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    test_in_turn(async |test| {
        test.hostile(json!({}), &json!({"reconcile": "explore"})).await?;
        test.website("web", "Web").await?;
        let maps = test.api::<ConfigMap>();
        let found =
            within(LIMIT, "its report", async || datum(&maps, "web", "config").await).await?;
        assert_eq!(found, "nothing");
        Ok(())
    })
}
