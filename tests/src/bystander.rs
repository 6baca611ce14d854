//! Another team's controller that works all the time: how long its objects take says whether anybody disturbs it.
//!
//! Its Websites are changed in turn at a steady rate; each change carries the next number, and the guest writes that
//! number into the ConfigMap. The audit log then has both ends of each change by one clock, the server's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::Test;
use crate::account::{self, GUEST_RULES};
use crate::component::Component;
use crate::control_plane::audit;
use crate::manifest::{FIELD_MANAGER, api_of};
use crate::site::website;
use crate::wait::within;

/// Its Websites: each rests long enough between two changes that no change swallows another.
const OBJECTS: u64 = 50;
/// How long the last change of a window may take to come through.
const COMES_WITHIN: Duration = Duration::from_secs(30);
/// Beside this a p99 says nothing of the host: a busy machine has stalls of its own, and who waits for another team waits for
/// a run of seconds, a describe of twelve, a flood of fifteen. What it should be on a quiet machine is in `bench`.
const STALL: Duration = Duration::from_secs(2);
/// How much slower than on a quiet machine, with cores to spare, is slower by the machine.
pub const SLACK: u32 = 5;
/// The annotation whose value the guest writes.
const VALUE: &str = "hostile.nagaya.dev/value";

/// The controller, in a namespace of its own, and those who change its objects.
#[derive(Debug)]
pub struct Bystander {
    namespace: String,
    log: audit::Log,
    _changes: JoinSet<()>,
}

/// The time in which some changes were made.
#[derive(Debug, Clone)]
pub struct Window {
    log: audit::Log,
    from: Timestamp,
}

/// How long changes took, from the request that made each to the answer to the write that followed from it.
#[derive(Debug, Clone)]
pub struct Latencies(Vec<Duration>);

impl Bystander {
    /// Makes it live and begins to change its objects, so many a second.
    pub async fn start(test: &mut Test, a_second: u32) -> Result<Self> {
        let log = test.audit().context("a bystander is measured by the audit log")?;
        let namespace = test.another_namespace(&[]).await?;
        test.apply(&account::objects(&namespace, "bystander", GUEST_RULES)).await?;
        let controller =
            test.controller_in(&namespace, "bystander", "bystander", json!({})).await?;
        let component = Component::load("hostile")?.marked("bystander")?;
        let revision = controller.push_config(&component, &json!({"reconcile": "write"})).await?;
        controller.active(&revision).await?;
        let changes = change_for_ever(test, &namespace, a_second)?;
        Ok(Self { namespace, log, _changes: changes })
    }

    /// Opens a window now.
    pub fn window(&self) -> Result<Window> {
        Ok(Window { log: self.log.from_now()?, from: Timestamp::now() })
    }

    /// What the changes took that were made between the opening of `window` and now.
    pub async fn latencies(&self, window: &Window) -> Result<Latencies> {
        let until = Timestamp::now();
        within(COMES_WITHIN, "the bystander's last changes have come through", async || {
            let events = window.log.events()?;
            let (mut asked, mut written) = (BTreeMap::new(), BTreeMap::new());
            for event in &events {
                let Some(number) = self.number_of(event) else { continue };
                let name = event.object_ref.as_ref().map(|object| object.name.as_str());
                let name = name.unwrap_or_default();
                if event.is_about("configmaps", &self.namespace) {
                    written.entry((name, number)).or_insert(event.stage_timestamp);
                } else if (window.from..until).contains(&event.request_received_timestamp) {
                    asked.entry((name, number)).or_insert(event.request_received_timestamp);
                }
            }
            let mut all = vec![];
            for ((name, number), from) in asked {
                // A later change may have come before the run for this one: then its write is this one's too.
                let by = written.range((name, number)..=(name, u64::MAX)).map(|(_, at)| *at).min();
                let by = by.with_context(|| format!("{name} does not say {number} yet"))?;
                all.push(Duration::try_from(by.duration_since(from)).unwrap_or_default());
            }
            ensure!(!all.is_empty(), "no change was made");
            all.sort();
            Ok(Latencies(all))
        })
        .await
    }

    /// The number that a successful write of a Website or of its ConfigMap carries.
    fn number_of(&self, event: &audit::Event) -> Option<u64> {
        let is_ours = event.is_write()
            && event.code().is_some_and(|code| code < 300)
            && event.object_ref.as_ref().is_some_and(|object| {
                object.namespace == self.namespace && object.subresource.is_empty()
            });
        let body = event.request_object.as_ref().filter(|_| is_ours)?;
        let value = body["data"]["config"].as_str();
        value.or_else(|| body["metadata"]["annotations"][VALUE].as_str())?.parse().ok()
    }
}

/// What the p99 of one that took `alone` without the others and may take `more` beside them is asserted to be at most.
pub fn limit(alone: Duration, more: Duration) -> Duration {
    ((alone + more) * SLACK).max(STALL)
}

/// What `measure` finds at its first try within `limit`; else the least of three tries. A stall of the whole machine is
/// over by then, a disturbance comes again.
pub async fn again(
    limit: Duration,
    mut measure: impl AsyncFnMut() -> Result<Duration>,
) -> Result<Duration> {
    let mut least = measure().await?;
    for _ in 1..3 {
        if least <= limit {
            break;
        }
        println!("a bystander's p99 was {least:.1?} (limit {limit:.1?}): once more");
        least = least.min(measure().await?);
    }
    Ok(least)
}

impl Window {
    /// Everything in the audit log since it was opened, by whomever.
    pub fn events(&self) -> Result<Vec<audit::Event>> {
        self.log.events()
    }
}

impl Latencies {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The nearest-rank percentile.
    pub fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.0.len() * percent).div_ceil(100).max(1);
        self.0.get(rank - 1).copied().unwrap_or_default()
    }
}

/// Each change is a task of its own: a slow answer must not thin the changes out.
fn change_for_ever(test: &Test, namespace: &str, a_second: u32) -> Result<JoinSet<()>> {
    let websites = api_of(&test.admin, &website(namespace, "", ""))?;
    let (namespace, numbers) = (namespace.to_owned(), Arc::new(AtomicU64::new(0)));
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_secs(1) / a_second);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut open = JoinSet::new();
        loop {
            ticks.tick().await;
            while open.try_join_next().is_some() {}
            let number = numbers.fetch_add(1, Ordering::Relaxed);
            let name = format!("site-{}", number % OBJECTS);
            let object = numbered(&namespace, &name, number);
            let websites = websites.clone();
            open.spawn(async move {
                let parameters = PatchParams::apply(FIELD_MANAGER).force();
                // What the server does not take is in the audit log, and is not counted.
                let _ = websites.patch(&name, &parameters, &Patch::Apply(&object)).await;
            });
        }
    });
    Ok(tasks)
}

fn numbered(namespace: &str, name: &str, number: u64) -> Value {
    let mut object = website(namespace, name, &format!("Number {number}"));
    object["metadata"]["annotations"] = json!({VALUE: number.to_string()});
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let latencies = |count: u64| Latencies((1..=count).map(Duration::from_millis).collect());
        for (count, percent, rank) in [(1, 99, 1), (80, 99, 80), (200, 99, 198), (200, 50, 100)] {
            let found = latencies(count).percentile(percent);
            assert_eq!(found, Duration::from_millis(rank), "p{percent} of {count}");
        }
    }
}
