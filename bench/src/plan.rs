//! Plans over many objects with one child each: how long they take, what they ask of the API server, what they cost a stream
//! of live changes beside them, and what memory they need.
//!
//! A plan is asked for by the annotation and is over when the revision's status says so; the host tells it every two
//! seconds and at its end.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::Test;
use e2e::account::GUEST_RULES;
use e2e::bystander::Bystander;
use e2e::component::Component;
use e2e::controller::Controller;
use e2e::site::owning;
use e2e::wait::within;
use nagaya::model::plan::{PlanPhase, PlanStatus};
use serde_json::{Value, json};
use tokio::time::{Instant, interval};

use crate::figure::{Figure, millis};
use crate::process::Process;
use crate::server::{done, make_websites, with_host};
use crate::steady::CHANGES;

const CONTROLLER: &str = "planned";
/// So that the objects are there soon; plans are measured with the default.
const WRITES_PER_MINUTE: u32 = 600_000;
const DEFAULT_WRITES_PER_MINUTE: u32 = 6_000;
/// For ten thousand objects on a busy machine.
const WITHIN: Duration = Duration::from_secs(300);
/// The host, the API server and its disk have come to rest.
const QUIET: Duration = Duration::from_secs(3);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long the live changes are looked at alone.
const SPAN: Duration = Duration::from_secs(20);
/// Plans beside them.
const BESIDE: u32 = 3;

/// Measures plans over so many objects.
pub(crate) fn measure(objects: u32) -> Result<Vec<Figure>> {
    with_host(async |test| on(test, objects).await)
}

/// Measures the memory of a plan over so many objects.
pub(crate) fn memory(objects: u32) -> Result<Vec<Figure>> {
    with_host(async |test| {
        let stage = Stage::set(test, objects).await?;
        let changed = stage.candidate("changed").await?;
        tokio::time::sleep(QUIET).await;
        let before = stage.host.anonymous_mib()?;
        let mut most = before;
        let mut looks = interval(Duration::from_millis(100));
        let mut plan = std::pin::pin!(stage.plan(test, &changed, "memory"));
        let took = loop {
            tokio::select! {
                took = &mut plan => break took?,
                _ = looks.tick() => most = most.max(stage.host.anonymous_mib()?),
            }
        };
        Ok(vec![
            Figure::new(
                format!("memory of a plan over {objects} objects, above"),
                "MiB",
                most - before,
            )
            .at_most(32.0),
            Figure::new("the host before it, anonymous", "MiB", before),
            Figure::new("that plan", "s", took.time.as_secs_f64()),
        ])
    })
}

async fn on(test: &mut Test, objects: u32) -> Result<Vec<Figure>> {
    let stage = Stage::set(test, objects).await?;
    let same = stage.candidate("same").await?;
    tokio::time::sleep(QUIET).await;
    let quiet = stage.plan(test, &same, "same").await?;
    ensure!(quiet.plan.objects.changed == 0, "{}", json!(quiet.plan));
    let changed = stage.candidate("changed").await?;
    tokio::time::sleep(QUIET).await;
    let loud = stage.plan(test, &changed, "changed").await?;
    ensure!(loud.plan.objects.changed == i64::from(objects), "{}", json!(loud.plan));

    let bystander = Bystander::start(test, CHANGES).await?;
    tokio::time::sleep(QUIET).await;
    let alone = bystander.window()?;
    tokio::time::sleep(SPAN).await;
    let alone = millis(bystander.latencies(&alone).await?.percentile(99));
    let beside = bystander.window()?;
    let mut slowest = Duration::ZERO;
    for round in 0..BESIDE {
        let took = stage.plan(test, &changed, &format!("beside-{round}")).await?;
        slowest = slowest.max(took.time);
    }
    let beside = millis(bystander.latencies(&beside).await?.percentile(99));

    let each = |took: &Took, of: Duration| {
        millis(of) / f64::from(i32::try_from(took.plan.objects.looked).unwrap_or(1))
    };
    Ok(vec![
        Figure::new(
            format!("an unchanged candidate over {objects} objects"),
            "s",
            quiet.time.as_secs_f64(),
        )
        .at_most(2.0),
        Figure::new("dry runs for it", "", quiet.writes).at_most(0.0),
        Figure::new("CPU of the host for an object of it", "ms", each(&quiet, quiet.host)),
        Figure::new(
            format!("every child changed, over {objects} objects"),
            "s",
            loud.time.as_secs_f64(),
        )
        .at_most(10.0),
        Figure::new("dry runs for it, an object", "", loud.writes / f64::from(objects)),
        Figure::new("CPU of the host for an object of it", "ms", each(&loud, loud.host)),
        Figure::new(
            "CPU of kube-apiserver and etcd for an object of it",
            "ms",
            each(&loud, loud.server),
        ),
        Figure::new(format!("{CHANGES} live changes a second alone, p99"), "ms", alone),
        Figure::new("the same beside that plan, p99, more by", "ms", beside - alone).at_most(25.0),
        Figure::new("that plan beside them, the slowest", "s", slowest.as_secs_f64()),
    ])
}

/// What a plan took.
struct Took {
    plan: PlanStatus,
    time: Duration,
    writes: f64,
    host: Duration,
    server: Duration,
}

/// A live controller with many objects.
struct Stage {
    controller: Controller,
    host: Process,
    server: Vec<Process>,
}

impl Stage {
    async fn set(test: &Test, objects: u32) -> Result<Self> {
        let spec = json!({
            "limits": {"writesPerMinute": WRITES_PER_MINUTE}, "rollout": {"plan": "Manual"},
        });
        let controller = test.guest(CONTROLLER, GUEST_RULES, spec).await?;
        let component = Component::load("hostile")?;
        let first = controller.push_config(&component, &writing("first", 0)).await?;
        controller.active(&first).await?;
        make_websites(&test.admin, &test.namespace, objects).await?;
        done(test, CONTROLLER, f64::from(objects)).await?;
        let limits = json!({"spec": {"limits": {"writesPerMinute": DEFAULT_WRITES_PER_MINUTE}}});
        controller.patch(&limits).await?;
        let host = Process::new(test.host.id());
        let server = Process::of_server(test.control_plane.folder());
        ensure!(server.len() == 2, "the API server's two processes are not found");
        Ok(Self { controller, host, server })
    }

    /// Stages one that writes the same, or something else.
    async fn candidate(&self, which: &str) -> Result<String> {
        let config = if which == "same" { writing("first", 1) } else { writing(which, 0) };
        let revision = self.controller.push_config(&Component::load("hostile")?, &config).await?;
        self.controller.candidate(&revision).await?;
        Ok(revision)
    }

    async fn plan(&self, test: &Test, revision: &str, request: &str) -> Result<Took> {
        let cpu = || -> Result<[Duration; 2]> {
            let served = self.server.iter().map(Process::cpu_time).sum::<Result<_>>()?;
            Ok([self.host.cpu_time()?, served])
        };
        let (writes, before, begun) = (Self::writes(test).await?, cpu()?, Instant::now());
        let annotation = json!({"metadata": {"annotations": {"nagaya.dev/plan": request}}});
        self.controller.patch(&annotation).await?;
        let plan = within(WITHIN, &format!("{revision} is planned"), async || {
            let seen = self.controller.revisions().await?;
            let one = seen.into_iter().find(|one| one.metadata.name.as_deref() == Some(revision));
            let plan = one.and_then(|one| one.status).and_then(|status| status.plan);
            let plan = plan.context("there is no plan")?;
            let is_it = plan.request.as_deref() == Some(request);
            if !(is_it && plan.phase == PlanPhase::Complete) {
                tokio::time::sleep(LOOK_EVERY).await;
                anyhow::bail!("{:?}", plan.objects);
            }
            Ok(*plan)
        })
        .await?;
        let (time, after) = (begun.elapsed(), cpu()?);
        let [host, server] = [0, 1].map(|of| after[of].saturating_sub(before[of]));
        Ok(Took { plan, time, writes: Self::writes(test).await? - writes, host, server })
    }

    /// Dry runs of the controller so far.
    async fn writes(test: &Test) -> Result<f64> {
        let controller = format!("{}/{CONTROLLER}", test.namespace);
        let metrics = test.host.metrics().await?;
        Ok(metrics.sum("nagaya_preview_writes_total", &[("controller", &controller)]))
    }
}

fn writing(value: &str, revision: u32) -> Value {
    let mut config = owning("write");
    config["value"] = json!(value);
    config["none"] = json!(revision);
    config
}
