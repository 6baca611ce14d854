//! A host with a guest that does harm, a bystander, and what both are without harm.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::Test;
use e2e::account::GUEST_RULES;
use e2e::bystander::{Bystander, SLACK, Window, limit};
use e2e::component::Component;
use e2e::controller::Controller;
use e2e::log::Log;
use e2e::manifest::api_of;
use e2e::memory::{MIB, Memory};
use e2e::site::website;
use e2e::wait::within;
use k8s_openapi::api::events::v1::Event;
use kube::api::{DeleteParams, ListParams};
use serde_json::json;
use tokio::time::{Instant, sleep_until};

use crate::harm::{Harm, Traces, is_long};
use crate::table::{Row, mib};

/// Changes of the bystander's objects a second.
const CHANGES: u32 = 25;
/// Guests that do the same harm at once, at most: the concurrency of a controller.
const MOST: usize = 8;
/// What the host may keep of a guest that is gone, and how long it may take to let go of the rest.
const KEEPS: u64 = 16 * MIB;
const LETS_GO_WITHIN: Duration = Duration::from_secs(10);
/// Longer than the longest run.
const ENDS_WITHIN: Duration = Duration::from_secs(60);

pub(crate) struct Arena {
    pub(crate) hostile: Controller,
    pub(crate) bystander: Bystander,
    pub(crate) memory: Memory,
    /// What the host holds.
    pub(crate) base: u64,
    /// The bystander's p99.
    pub(crate) alone: Duration,
    /// How long each row is looked at.
    span: Duration,
}

impl Arena {
    pub(crate) async fn start(test: &mut Test) -> Result<Self> {
        let spec = json!({"limits": {"deadline": "100ms"}});
        let hostile = test.guest("hostile", GUEST_RULES, spec).await?;
        let config = json!({"reconcile": "write", "value": "well"});
        let revision = hostile.push_config(&Component::load("hostile")?, &config).await?;
        hostile.active(&revision).await?;
        let bystander = Bystander::start(test, CHANGES).await?;
        let memory = Memory::of(test.host.id());
        let span = if is_long() { Duration::from_secs(5) } else { Duration::from_millis(1_600) };
        let mut arena = Self { hostile, bystander, memory, base: 0, alone: Duration::ZERO, span };
        // As many runs at once as there will be: a slot that was used once keeps some pages for the next.
        let log = test.host.log().from_now()?;
        arena.make(test, "fill:60", MOST).await?;
        arena.ended(test, &log, MOST).await?;
        arena.remove(test, MOST).await?;
        arena.alone = arena.bystander_alone().await?;
        arena.base = memory.resident()?;
        Ok(arena)
    }

    /// Lets the guest do it and looks at everything; the row, and what is not as it should be.
    pub(crate) async fn look_at(&self, test: &Test, harm: &Harm) -> Result<(Row, Vec<String>)> {
        let patched = self.hostile.patch(&json!({"spec": {"limits": harm.limits}})).await?;
        self.hostile.observed(patched.metadata.generation.unwrap_or_default()).await?;
        let log = test.host.log().from_now()?;
        let window = self.bystander.window()?;
        self.memory.forget_peak()?;
        let (began, dropped) = (Instant::now(), self.dropped(test).await?);
        self.make(test, harm.steps, harm.objects).await?;
        self.ended(test, &log, harm.objects).await?;
        sleep_until(began + self.span).await;
        let bystander = self.bystander.latencies(&window).await?.percentile(99);
        let peak = self.memory.peak()?;
        let mut wrong = vec![];
        let all = self.failures(test, &log)?;
        let took: Vec<Duration> = all.iter().map(|(_, took)| *took).collect();
        let dropped = self.dropped(test).await? - dropped;
        let seen = Seen { log, window, span: began.elapsed(), ran: took.iter().sum(), dropped };
        let traces = match harm.traces {
            Traces::None => None,
            allowed => Some(seen.traces(test, allowed).await?),
        };
        wrong.extend(traces.iter().filter_map(|(_, wrong)| wrong.clone()));
        self.remove(test, harm.objects).await?;
        let after = self.let_go().await;

        let (ends, strange) = counted(&all, harm);
        wrong.extend(strange);
        let most = took.iter().max().copied().unwrap_or_default();
        let bound = harm.after.map(|(end, late)| end + late * SLACK);
        if let Some(bound) = bound.filter(|bound| most > *bound) {
            wrong.push(format!("a run took {most:?}, its limit {bound:?}"));
        }
        if harm.holds.is_some_and(|more| peak > self.base + more) {
            wrong.push(format!("the host held {}, before {}", mib(peak), mib(self.base)));
        }
        wrong.extend(self.too_slow(bystander, harm.others).await?);
        wrong.extend(after.as_ref().err().map(|error| format!("{error:#}")));
        let after = after.unwrap_or(self.memory.resident()?);
        let Harm { fault, name, .. } = *harm;
        let traces = traces.map(|(said, _)| said);
        Ok((Row { fault, name, ends, took, bystander, peak, after, traces }, wrong))
    }

    /// The bystander's p99 while nothing else happens.
    async fn bystander_alone(&self) -> Result<Duration> {
        let window = self.bystander.window()?;
        sleep_until(Instant::now() + 2 * self.span).await;
        Ok(self.bystander.latencies(&window).await?.percentile(99))
    }

    /// Applies Websites for which the guest does `steps`.
    pub(crate) async fn make(&self, test: &Test, steps: &str, count: usize) -> Result<()> {
        let objects = (0..count).map(|number| {
            let mut object = website(&test.namespace, &format!("harm-{number}"), "Harm");
            object["metadata"]["annotations"] = json!({"hostile.nagaya.dev/reconcile": steps});
            object
        });
        test.apply(&objects.collect::<Vec<_>>()).await
    }

    /// Deletes them and waits until nobody works on them.
    pub(crate) async fn remove(&self, test: &Test, count: usize) -> Result<()> {
        let websites = api_of(&test.admin, &website(&test.namespace, "", ""))?;
        for number in 0..count {
            websites.delete(&format!("harm-{number}"), &DeleteParams::default()).await?;
        }
        within(ENDS_WITHIN, "the guest is gone", async || {
            let left = websites.list(&ListParams::default()).await?.items.len();
            let running = test.running("hostile").await?;
            ensure!(left == 0 && running == 0.0, "{left} objects, {running} runs");
            Ok(())
        })
        .await
    }

    /// Waits until so many runs have failed.
    pub(crate) async fn ended(&self, test: &Test, log: &Log, count: usize) -> Result<()> {
        within(ENDS_WITHIN, "the guest was ended", async || {
            let failures = self.failures(test, log)?;
            ensure!(failures.len() >= count, "{} of {count} runs failed", failures.len());
            Ok(())
        })
        .await
    }

    /// Bytes of log that the host has dropped so far.
    async fn dropped(&self, test: &Test) -> Result<f64> {
        let controller = format!("{}/{}", test.namespace, self.hostile.name());
        let labels = [("controller", &*controller)];
        Ok(test.host.metrics().await?.sum("nagaya_guest_log_dropped_bytes_total", &labels))
    }

    /// Why runs of the guest failed, and after how long.
    pub(crate) fn failures(&self, test: &Test, log: &Log) -> Result<Vec<(String, Duration)>> {
        let controller = format!("{}/{}", test.namespace, self.hostile.name());
        let lines = log.lines()?;
        let lines = lines.iter().filter(|line| {
            line.message() == "the run failed" && line.text("controller") == Some(&controller)
        });
        lines
            .map(|line| {
                let failure = line.text("failure").context("a failure without a word")?;
                let seconds = line.field("seconds").and_then(serde_json::Value::as_f64);
                let seconds = seconds.context("a failure without a time")?;
                Ok((failure.to_owned(), Duration::from_secs_f64(seconds)))
            })
            .collect()
    }

    /// Has the host let go within its time: what it holds then.
    pub(crate) async fn let_go(&self) -> Result<u64> {
        within(LETS_GO_WITHIN, "the host has given the memory back", async || {
            let now = self.memory.resident()?;
            ensure!(now <= self.base + KEEPS, "it holds {}, before {}", mib(now), mib(self.base));
            Ok(now)
        })
        .await
    }

    /// Whether the bystander is slower than it may be. Then it is measured alone once more, because the machine may
    /// have become slower for everybody.
    pub(crate) async fn too_slow(
        &self,
        bystander: Duration,
        more: Duration,
    ) -> Result<Option<String>> {
        if bystander <= limit(self.alone, more) {
            return Ok(None);
        }
        let limit = limit(self.bystander_alone().await?.max(self.alone), more);
        Ok((bystander > limit)
            .then(|| format!("the bystander's p99 was {bystander:?}, its limit is {limit:?}")))
    }
}

/// What ended the runs, each with how often; and failures that are none of those.
fn counted(all: &[(String, Duration)], harm: &Harm) -> (String, Vec<String>) {
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    let mut strange = vec![];
    for (failure, _) in all {
        match harm.ends.iter().position(|(_, words)| failure.contains(words)) {
            Some(end) => *counts.entry(end).or_default() += 1,
            None => strange.push(format!("a run failed with {failure:?}")),
        }
    }
    if !counts.contains_key(&0) {
        strange.push(format!("no run was ended by the {}", harm.ends[0].0));
    }
    let said = counts.iter().map(|(end, count)| format!("{count} × {}", harm.ends[*end].0));
    (said.collect::<Vec<_>>().join(", "), strange)
}

/// Where a row has left its traces.
struct Seen {
    log: Log,
    window: Window,
    /// How long it was looked at.
    span: Duration,
    /// How long the guest ran of that.
    ran: Duration,
    /// Bytes of log that the host dropped.
    dropped: f64,
}

impl Seen {
    /// What of the harm has reached the world, and what is wrong with that.
    async fn traces(&self, test: &Test, allowed: Traces) -> Result<(String, Option<String>)> {
        let seconds = usize::try_from(self.span.as_secs() + 1)?;
        let (what, count, most) = match allowed {
            Traces::None => ("traces".to_owned(), 0, 0),
            Traces::Log(a_second) => {
                let lines = self.log.lines()?;
                let kept = lines.iter().filter(|line| line.text("target") == Some("guest"));
                let megabytes = self.dropped / 1e6;
                let rate = megabytes / self.ran.as_secs_f64();
                let what = format!("bytes of log kept, {megabytes:.0} MB dropped, {rate:.0} MB/s");
                // The bucket is full at the start.
                (what, kept.map(|line| line.message().len()).sum(), a_second * (seconds + 1))
            }
            Traces::Events(most) => {
                let events = test.api::<Event>().list(&ListParams::default()).await?.items;
                let about = events.iter().filter(|event| {
                    let regarding = event.regarding.as_ref();
                    regarding.and_then(|object| object.name.as_deref()) == Some("harm-0")
                });
                ("Events written".to_owned(), about.count(), most)
            }
            Traces::Writes { burst, a_second } => {
                let account = test.username("hostile");
                let writes = self.window.events()?;
                let writes = writes.iter().filter(|one| one.is_write() && one.actor() == account);
                ("writes".to_owned(), writes.count(), burst + a_second * (seconds + 1))
            }
        };
        let said = format!("{count} {what}; in {seconds} s, {most} may be");
        Ok((said.clone(), (count > most || count == 0).then_some(said)))
    }
}
