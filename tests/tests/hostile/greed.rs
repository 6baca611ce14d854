//! Guests that want more than their share before or while they run: of watches, of the compiler, of memory.

use std::sync::PoisonError;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::component::Component;
use e2e::memory::MIB;
use e2e::{Test, test_in_turn};
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::json;
use tokio::time::{Instant, sleep_until};

use crate::arena::Arena;
use crate::harm::is_long;
use crate::table::{Row, Table, mib};
use crate::{ONE_AT_A_TIME, none};

/// A bystander may be this much slower meanwhile.
const OTHERS: Duration = Duration::from_millis(25);
/// What a host may keep of what it has refused.
const REFUSED_KEEPS: u64 = 32 * MIB;

/// What `describe` does, and words of the sentence that refuses it.
const GREED: &[(&str, &str, &str)] = &[
    ("150 watches under 150 selectors", "watches:150", "may have at most 64"),
    ("9 watches of one kind", "watches:9", "more than 8 different selectors"),
    ("label selector of 700 kB", "selects:700", "there may be at most 65536 in all"),
    ("finalizer and index of 900 kB", "words:900", "there may be at most"),
    ("refusal of 900 kB", "refuse:900", "describe refused"),
];

#[test]
fn greedy_manifests_are_refused_with_a_sentence() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    test_in_turn(async |test| {
        if test.audit().is_none() {
            return Ok(());
        }
        let arena = Arena::start(test).await?;
        let table = Table::begin("greedy manifest", arena.alone, arena.base);
        let component = Component::load("hostile")?;
        let greedy = test.bare_controller("greedy", "hostile", json!({})).await?;
        let mut problems = vec![];
        for &(name, describe, words) in GREED {
            let window = arena.bystander.window()?;
            arena.memory.forget_peak()?;
            let began = Instant::now();
            let revision = greedy.push_config(&component, &json!({"describe": describe})).await?;
            let said = greedy.refused(&revision, "DescribeFailed").await?;
            let took = began.elapsed();
            sleep_until(began + Duration::from_secs(1)).await;
            let bystander = arena.bystander.latencies(&window).await?.percentile(99);
            let (peak, after) = (arena.memory.peak()?, arena.memory.resident()?);
            let mut wrong = vec![];
            if !said.contains(words) || said.len() > 2_048 {
                wrong.push(format!("it is refused with {} bytes: {said:.500}", said.len()));
            }
            if after > arena.base + REFUSED_KEEPS {
                wrong.push(format!("the host holds {}", mib(after)));
            }
            wrong.extend(arena.too_slow(bystander, OTHERS).await?);
            let ends = "manifest limit".to_owned();
            let took = vec![took];
            table.print(&Row {
                fault: "C2",
                name,
                ends,
                took,
                bystander,
                peak,
                after,
                traces: None,
            });
            problems.extend(wrong.into_iter().map(|wrong| format!("{name}: {wrong}")));
        }
        none(&problems)
    })
}

/// Each sleeps for as long as it may; they are of one team.
#[test]
fn eighty_slow_describes_delay_no_other_team() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let count = if is_long() { 80 } else { 12 };
    test_in_turn(async |test| {
        if test.audit().is_none() {
            return Ok(());
        }
        let arena = Arena::start(test).await?;
        let table = Table::begin("slow describes", arena.alone, arena.base);
        let (shared, component) = (&*test, &Component::load("hostile")?);
        let slow = |number: usize| async move {
            let name = format!("slow-{number}");
            let controller = shared.bare_controller(&name, "hostile", json!({})).await?;
            let describe = "sleep:4000,sleep:4000,sleep:4000";
            let config = json!({"describe": describe, "number": number});
            controller.push_config(component, &config).await?;
            anyhow::Ok(controller)
        };
        let window = arena.bystander.window()?;
        arena.memory.forget_peak()?;
        let began = Instant::now();
        // Four at a time: what 80 at once ask of the API server on these cores is nobody's doing here.
        let all: Vec<_> = stream::iter((0..count).map(slow)).buffered(4).try_collect().await?;
        let newcomer = newcomer(test).await?;
        sleep_until(began + Duration::from_secs(6)).await;
        let bystander = arena.bystander.latencies(&window).await?.percentile(99);
        let mut wrong: Vec<_> = arena.too_slow(bystander, OTHERS).await?.into_iter().collect();
        if newcomer > Duration::from_secs(20) {
            wrong.push(format!("another team's first revision took {newcomer:?}"));
        }
        let (peak, after) = (arena.memory.peak()?, arena.memory.resident()?);
        let (fault, name, ends) = ("C3", "slow describes of one team", format!("{count} of them"));
        let took = vec![newcomer];
        table.print(&Row { fault, name, ends, took, bystander, peak, after, traces: None });
        for controller in &all {
            controller.delete().await?;
        }
        none(&wrong)
    })
}

/// How long another team's first revision takes to be live meanwhile.
async fn newcomer(test: &mut Test) -> Result<Duration> {
    let namespace = test.another_namespace(&[]).await?;
    let rules = e2e::account::GUEST_RULES;
    test.apply(&e2e::account::objects(&namespace, "newcomer", rules)).await?;
    let controller = test.controller_in(&namespace, "newcomer", "newcomer", json!({})).await?;
    let began = Instant::now();
    let revision = controller.push_config(&Component::load("hostile")?, &json!({})).await?;
    controller.active(&revision).await?;
    Ok(began.elapsed())
}

/// 48 slots of 60 MiB are 2.8 GiB; the host is told to give guests 256 MiB.
#[test]
fn the_memory_of_48_slots_stays_within_what_the_host_gives_guests() -> Result<()> {
    const GIVES: u64 = 256 * MIB;
    const OBJECTS: usize = 48;
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    test_in_turn(async |test| {
        if test.audit().is_none() {
            return Ok(());
        }
        test.host.stop().await?;
        let mut options = test.options();
        options.arguments.extend(["--guest-memory", "256Mi"].map(str::to_owned));
        test.start_host_as(options).await?;
        let arena = Arena::start(test).await?;
        let table = Table::begin("memory of all", arena.alone, arena.base);
        let limits = json!({"deadline": "5s", "concurrency": OBJECTS, "writesPerMinute": 6_000});
        let patched = arena.hostile.patch(&json!({"spec": {"limits": limits}})).await?;
        arena.hostile.observed(patched.metadata.generation.unwrap_or_default()).await?;
        let (log, window) = (test.host.log().from_now()?, arena.bystander.window()?);
        arena.memory.forget_peak()?;
        let began = Instant::now();
        arena.make(test, "hold:56,retry", OBJECTS).await?;
        arena.ended(test, &log, 2 * OBJECTS).await?;
        sleep_until(began + Duration::from_secs(4)).await;
        let bystander = arena.bystander.latencies(&window).await?.percentile(99);
        let peak = arena.memory.peak()?;
        let failures = arena.failures(test, &log)?;
        let refused = |failure: &&(String, Duration)| failure.0.contains("guests is used up");
        let refused: Vec<_> = failures.iter().filter(refused).map(|(_, took)| *took).collect();
        arena.remove(test, OBJECTS).await?;
        let mut wrong: Vec<_> = arena.too_slow(bystander, OTHERS).await?.into_iter().collect();
        let own = failures.iter().filter(|(failure, _)| failure.contains("as configured")).count();
        if refused.is_empty() || own == 0 || refused.len() + own < failures.len() {
            let (all, refused) = (failures.len(), refused.len());
            wrong.push(format!("of {all} runs {refused} were refused memory, {own} had theirs"));
        }
        // What stays of 48 used memories, and what the bystander takes.
        if peak > arena.base + GIVES + 96 * MIB {
            wrong.push(format!("the host held {}, before {}", mib(peak), mib(arena.base)));
        }
        let after = arena.memory.resident()?;
        let ends = format!("{} × the host's memory", refused.len());
        let (fault, name) = ("C4", "56 MiB in each of 48 runs");
        let row = Row { fault, name, ends, took: refused, bystander, peak, after, traces: None };
        table.print(&row);
        none(&wrong)?;
        let seen = arena.hostile.get().await?;
        let status = seen.status.context("no status")?;
        ensure!(!format!("{status:?}").contains("GuestBreaksDown"), "the guest is blamed");
        Ok(())
    })
}
