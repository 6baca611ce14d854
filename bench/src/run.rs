//! One run: a fresh instance that does the crate `work`'s work on an object of 4 KB, against the same code natively.
//!
//! The host's own `Sandbox` is used, threads, permits, ticks and all; no cluster, so `apply` is answered at once. The
//! three loops take turns, so that other load of the machine meets all of them.

use std::hint::black_box;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use anyhow::{Context, Result};
use e2e::component::{self, Component};
use nagaya::journal::Speaker;
use nagaya::metrics::{Metrics, QueueStats, Watched};
use nagaya::model::digest::Digest;
use nagaya::sandbox::{
    Chance, CompilerConfig, ControllerLog, Program, Run, RunLimits, Sandbox, SandboxConfig,
};
use serde_json::Value;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::figure::{Figure, median, micros, millis};
use crate::process::own_cpu_time;
use crate::waits;

/// Turns of each loop, and runs in a turn: some seconds in all.
const TURNS: usize = 40;
const RUNS: u32 = 250;
/// Runs of the measurement of throughput, and how many are asked for at a time for each slot.
const MANY: u32 = 20_000;
const ASKED: u32 = 2;

/// An object beside which an instance costs little: what is left is the guest's code against native code.
const LARGER: usize = 16;

/// Measures.
pub(crate) async fn measure() -> Result<Vec<Figure>> {
    let component = Component::load("worker")?;
    let folder = tempfile::tempdir().context("creating a folder for code")?;
    // The child that compiles starts in another folder.
    let program = component::binary().await?.canonicalize().context("looking for the host")?;
    let compiler = CompilerConfig { program: Some(program), ..CompilerConfig::default() };
    let config = SandboxConfig { compiler, ..SandboxConfig::new(folder.path().to_owned()) };
    let slots = config.slots;
    let sandbox = Sandbox::start(config, Handle::current())?;
    let compiled = Instant::now();
    compile(&sandbox, &component).await?;
    let compiled = compiled.elapsed();
    let loaded = Instant::now();
    let program = compile(&sandbox, &component).await?;
    let loaded = loaded.elapsed();
    let guest = Guest::new(sandbox, program);

    let mut figures = in_turns(&guest).await?;
    figures.extend(at_once(&guest, slots).await?);
    figures.extend(waits::measure(&guest).await?);
    figures.extend([
        Figure::new("compile the component", "ms", millis(compiled)),
        Figure::new("load it from the cache of code", "ms", millis(loaded)),
        Figure::new("the component", "KiB", kib(std::fs::metadata(&component.path)?.len())),
        Figure::new("its native code", "KiB", kib(code_size(folder.path())?)),
    ]);
    Ok(figures)
}

/// Compiles or loads.
pub(crate) async fn compile(sandbox: &Sandbox, component: &Component) -> Result<Program> {
    let digest = Digest::of(&component.bytes);
    Ok(sandbox.compile(component.bytes.clone(), &digest, "bench").await?)
}

/// A component that can be run.
#[derive(Clone)]
pub(crate) struct Guest {
    pub(crate) sandbox: Sandbox,
    program: Program,
    limits: RunLimits,
    log: Arc<ControllerLog>,
    stop: watch::Receiver<bool>,
}

/// Nobody waits.
struct NoQueue;

impl Watched for NoQueue {
    fn stats(&self) -> QueueStats {
        QueueStats::default()
    }
}

impl Guest {
    fn new(sandbox: Sandbox, program: Program) -> Self {
        let queue: Weak<NoQueue> = Weak::new();
        let log = Arc::new(ControllerLog::new(
            Metrics::default().controller("bench/worker", queue),
            Arc::default(),
        ));
        // A stop flag whose sender is gone is never raised.
        let stop = watch::channel(false).1;
        Self { sandbox, program, limits: RunLimits::default(), log, stop }
    }

    /// A call without a cluster.
    pub(crate) fn prepared(&self, config: &Arc<str>) -> Run {
        Run {
            cluster: Arc::new(nagaya::cluster::Refusing),
            behind: false,
            chance: Chance::Live,
            team: "bench".into(),
            config: config.clone(),
            limits: self.limits.clone(),
            stop: self.stop.clone(),
            span: tracing::Span::none(),
            speaker: Speaker::default(),
            log: self.log.clone(),
        }
    }

    async fn run(&self, config: &Arc<str>) -> Result<()> {
        let run = self.prepared(config);
        let ended = self.sandbox.reconcile(&self.program, run, Some("shop"), "orders").await;
        ended.map(drop).map_err(|failure| anyhow::anyhow!("the guest failed: {failure}"))
    }
}

/// What a loop took, one value a run; CPU time is a mean over each turn.
#[derive(Default)]
struct Taken {
    wall: Vec<f64>,
    cpu: Vec<f64>,
}

impl Taken {
    async fn turn(&mut self, once: impl AsyncFn() -> Result<()>) -> Result<()> {
        let before = own_cpu_time();
        for _ in 0..RUNS {
            let started = Instant::now();
            once().await?;
            self.wall.push(micros(started.elapsed()));
        }
        self.cpu.push(micros(own_cpu_time().saturating_sub(before)) / f64::from(RUNS));
        Ok(())
    }

    fn figures(&self, what: &str) -> [Figure; 2] {
        [
            Figure::of_many(format!("{what}, wall"), "µs", &self.wall),
            Figure::of_many(format!("{what}, CPU"), "µs", &self.cpu),
        ]
    }
}

async fn in_turns(guest: &Guest) -> Result<Vec<Figure>> {
    let mut object = Pair::new(work::GATEWAY.to_owned());
    let mut large = Pair::new(larger(work::GATEWAY, LARGER)?);
    let (mut instance, nothing) = (Taken::default(), Arc::from(""));
    // Warms caches and slots; its figures are thrown away.
    Pair::new(work::GATEWAY.to_owned()).turn(guest).await?;
    for _ in 0..TURNS {
        object.turn(guest).await?;
        large.turn(guest).await?;
        instance.turn(async || guest.run(&nothing).await).await?;
    }
    let [wall, cpu] = object.ratios();
    let mut figures = vec![wall.at_most(2.0), cpu.at_most(2.0)];
    figures.extend(object.native.figures("the same code natively"));
    figures.extend(object.fresh.figures("fresh instance and reconcile"));
    figures.extend(instance.figures("fresh instance that does nothing"));
    figures.extend(large.ratios());
    figures.extend(large.native.figures(&format!("natively, {} KB", large.text.len() / 1_000)));
    Ok(figures)
}

/// One object, for both.
struct Pair {
    text: Arc<str>,
    native: Taken,
    fresh: Taken,
}

impl Pair {
    fn new(text: String) -> Self {
        Self { text: text.into(), native: Taken::default(), fresh: Taken::default() }
    }

    async fn turn(&mut self, guest: &Guest) -> Result<()> {
        let natively = async || {
            black_box(work::work(black_box(&self.text))?);
            Ok(())
        };
        self.native.turn(natively).await?;
        self.fresh.turn(async || guest.run(&self.text).await).await
    }

    fn ratios(&self) -> [Figure; 2] {
        let size = self.text.len() / 1_000;
        let ratio = |clock: &str, of: fn(&Taken) -> &[f64]| {
            let ratio = median(of(&self.fresh)) / median(of(&self.native));
            Figure::new(format!("reconcile / native, {size} KB, {clock}"), "×", ratio)
        };
        [ratio("wall", |taken| &taken.wall), ratio("CPU", |taken| &taken.cpu)]
    }
}

/// The same object with so many times the routes, variables and backends.
fn larger(text: &str, times: usize) -> Result<String> {
    let mut object: Value = serde_json::from_str(text)?;
    let fields = object["spec"].as_object_mut().context("the object has no spec")?;
    for items in fields.values_mut().filter_map(Value::as_array_mut) {
        *items = std::iter::repeat_n(&*items, times).flatten().cloned().collect();
    }
    Ok(object.to_string())
}

/// As many as there is room for, and as many again that wait.
async fn at_once(guest: &Guest, slots: u32) -> Result<Vec<Figure>> {
    let (left, object) = (Arc::new(AtomicU32::new(MANY)), Arc::<str>::from(work::GATEWAY));
    let (started, before) = (Instant::now(), own_cpu_time());
    let mut tasks = JoinSet::new();
    for _ in 0..slots * ASKED {
        let (guest, left, object) = (guest.clone(), left.clone(), object.clone());
        tasks.spawn(async move {
            let takes_one = || {
                left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
            };
            while takes_one().is_ok() {
                guest.run(&object).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.context("a task of the benchmark")??;
    }
    let (wall, cpu) = (started.elapsed(), own_cpu_time().saturating_sub(before));
    let asked = slots * ASKED;
    Ok(vec![
        Figure::new(
            format!("throughput, {asked} asked for at a time"),
            "/s",
            f64::from(MANY) / wall.as_secs_f64(),
        ),
        Figure::new("CPU of each of these", "µs", micros(cpu) / f64::from(MANY)),
    ])
}

fn code_size(folder: &Path) -> Result<u64> {
    let mut size = 0;
    for entry in std::fs::read_dir(folder).context("reading the folder of code")? {
        let entry = entry?;
        if entry.path().extension().is_some_and(|extension| extension == "cwasm") {
            size += entry.metadata()?.len();
        }
    }
    Ok(size)
}

fn kib(bytes: u64) -> f64 {
    u32::try_from(bytes / 1024).map_or(f64::INFINITY, f64::from)
}
