//! A swap of revisions with a thousand objects of one ConfigMap each: promoted and rolled back, each by one patch of
//! the WasmController, while the host is idle.
//!
//! All times are the API server's own, out of its audit log: from the patch's answer (or its arrival) to the answer to
//! a write. The writes' order is that of their resource versions.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::Test;
use e2e::account::GUEST_RULES;
use e2e::component::Component;
use e2e::control_plane::audit::{Event, Log, Stage};
use e2e::controller::Controller;
use e2e::site::owning;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::figure::{Figure, millis};
use crate::process::Process;
use crate::server::{done, make_websites, with_host};

const CONTROLLER: &str = "swap";
/// Far more than is written, so that the budget is not what is measured.
const WRITES_PER_MINUTE: u32 = 600_000;
/// Between swaps: the host, the API server and its disk have come to rest.
const QUIET: Duration = Duration::from_secs(3);

/// Measures so many swaps, there and back.
pub(crate) fn measure(objects: u32, swaps: u32) -> Result<Vec<Figure>> {
    with_host(async |test| on(test, objects, swaps).await)
}

async fn on(test: &Test, objects: u32, swaps: u32) -> Result<Vec<Figure>> {
    let stage = SwapStage::set(test, objects).await?;
    let (mut there, mut back) = (vec![], vec![]);
    for _ in 0..swaps {
        there.push(stage.swap(&stage.second, "second").await?);
        back.push(stage.swap(&stage.first, "first").await?);
    }
    let mut figures = there_or_back("promote", objects, &there);
    figures.extend(there_or_back("roll back", objects, &back));
    let both: Vec<_> = there.into_iter().chain(back).collect();
    figures.extend([
        few("CPU of the host for one swap", "s", &both, |took| took.host.as_secs_f64()),
        few("CPU of kube-apiserver and etcd meanwhile", "s", &both, |took| {
            took.server.as_secs_f64()
        }),
        few("runs of the guest for one swap", "", &both, |took| took.runs),
    ]);
    Ok(figures)
}

fn there_or_back(verb: &str, objects: u32, took: &[Took]) -> Vec<Figure> {
    vec![
        few(format!("{verb} to the first write"), "ms", took, |took| took.first).at_most(50.0),
        few(format!("{verb} to the last of {objects}"), "ms", took, |took| took.last)
            .at_most(4_500.0),
        few(format!("{verb}, from the arrival of the patch to its answer"), "ms", took, |took| {
            took.answer
        }),
    ]
}

fn few(what: impl Into<String>, unit: &'static str, took: &[Took], of: fn(&Took) -> f64) -> Figure {
    Figure::of_few(what, unit, &took.iter().map(of).collect::<Vec<_>>())
}

/// What one swap took; times in milliseconds from the answer to the patch.
struct Took {
    answer: f64,
    first: f64,
    last: f64,
    runs: f64,
    host: Duration,
    server: Duration,
}

/// A controller with many objects and two revisions, which differ in the value that they write.
struct SwapStage<'a> {
    test: &'a Test,
    controller: Controller,
    log: Log,
    host: Process,
    server: Vec<Process>,
    objects: u32,
    first: String,
    second: String,
}

impl<'a> SwapStage<'a> {
    async fn set(test: &'a Test, objects: u32) -> Result<Self> {
        let Some(log) = test.audit() else { bail!("there is no audit log") };
        let spec = json!({"limits": {"writesPerMinute": WRITES_PER_MINUTE}});
        let controller = test.guest(CONTROLLER, GUEST_RULES, spec).await?;
        let component = Component::load("hostile")?;
        let first = controller.push_config(&component, &writing("first")).await?;
        controller.active(&first).await?;
        make_websites(&test.admin, &test.namespace, objects).await?;
        done(test, CONTROLLER, f64::from(objects)).await?;
        let second = controller.push_config(&component, &writing("second")).await?;
        controller.candidate(&second).await?;
        let (host, server) =
            (Process::new(test.host.id()), Process::of_server(test.control_plane.folder()));
        ensure!(server.len() == 2, "the API server's two processes are not found");
        Ok(Self { test, controller, log, host, server, objects, first, second })
    }

    /// Makes `revision`, which writes `value`, the live one; waits until all is done.
    async fn swap(&self, revision: &str, value: &str) -> Result<Took> {
        tokio::time::sleep(QUIET).await;
        let log = self.log.from_now()?;
        let runs = self.test.runs(CONTROLLER).await?;
        let (host, server) = (self.host.cpu_time()?, self.server_time()?);
        self.controller.patch(&json!({"spec": {"rollout": {"active": revision}}})).await?;
        done(self.test, CONTROLLER, runs + f64::from(self.objects)).await?;
        let (host, server) = (
            self.host.cpu_time()?.saturating_sub(host),
            self.server_time()?.saturating_sub(server),
        );
        let runs = self.test.runs(CONTROLLER).await? - runs;

        let events = log.events()?;
        let pointer = self.pointer(&events)?;
        let from = pointer.stage_timestamp;
        let writes = self.writes(&events, value)?;
        let (first, last) =
            (writes.first().context("no write")?, writes.last().context("no write")?);
        let answer = since(pointer.request_received_timestamp, from);
        Ok(Took {
            answer,
            first: since(from, *first),
            last: since(from, *last),
            runs,
            host,
            server,
        })
    }

    fn server_time(&self) -> Result<Duration> {
        self.server.iter().map(Process::cpu_time).sum()
    }

    /// The one patch.
    fn pointer<'e>(&self, events: &'e [Event]) -> Result<&'e Event> {
        let is_pointer = |event: &&Event| {
            event.is_about("wasmcontrollers", &self.test.namespace)
                && event.verb == "patch"
                && event.object_ref.as_ref().is_some_and(|object| object.subresource.is_empty())
                && event.code() == Some(200)
        };
        events.iter().find(is_pointer).context("the audit log has no patch of the WasmController")
    }

    /// When each object was first written by the revision that writes `value`, in the order of resource versions.
    /// Whatever else was written meanwhile would mean that two revisions were live.
    fn writes(&self, events: &[Event], value: &str) -> Result<Vec<Timestamp>> {
        let mut by_version = BTreeMap::new();
        let mut names = std::collections::BTreeSet::new();
        for event in events.iter().filter(|event| self.is_write(event)) {
            let (Some(sent), Some(made)) = (&event.request_object, &event.response_object) else {
                bail!("the audit log lacks the objects of {}", event.summary());
            };
            ensure!(sent["data"]["config"] == value, "the other revision wrote {sent}");
            let version = made["metadata"]["resourceVersion"].as_str().context("no version")?;
            if names.insert(sent["metadata"]["name"].clone().to_string()) {
                by_version.insert(version.parse::<u64>()?, event.stage_timestamp);
            }
        }
        let (found, wanted) = (names.len(), self.objects);
        ensure!(u32::try_from(found)? == wanted, "{found} of {wanted} objects were written");
        Ok(by_version.into_values().collect())
    }

    fn is_write(&self, event: &Event) -> bool {
        event.is_about("configmaps", &self.test.namespace)
            && event.verb == "patch"
            && event.stage == Stage::ResponseComplete
            && event.code().is_some_and(|code| code < 300)
    }
}

fn writing(value: &str) -> Value {
    let mut config = owning("write");
    config["value"] = json!(value);
    config
}

fn since(from: Timestamp, to: Timestamp) -> f64 {
    let span = to.duration_since(from);
    millis(span.unsigned_abs()) * if span.is_negative() { -1.0 } else { 1.0 }
}
