//! Every metric of the host, by the names that existing dashboards know.
//!
//! `controller` and `name` carry the WasmController's `namespace/name`; no key and no revision is in those labels.
//! The list of names is committed and compared: `the_metric_names_are_the_committed_ones`.

mod conditions;
mod process;
mod requests;
mod series;
mod watches;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{
        MetricType, counter::Counter, family::Family, gauge::ConstGauge, gauge::Gauge,
        histogram::Histogram, info::Info,
    },
    registry::Registry,
};

pub use conditions::ConditionStats;
use conditions::Conditions;
pub use requests::Requests;
use series::{AllSeries, Series};
pub use watches::WatchStats;
use watches::Watches;

/// Buckets of the reconcile time, as controller-runtime has them.
const RECONCILE_SECONDS: [f64; 40] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8, 0.9,
    1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 15.0, 20.0,
    25.0, 30.0, 40.0, 50.0, 60.0,
];
/// Buckets of the queue's and the work's duration, as client-go has them: 1e-8 × 10^k.
const QUEUE_SECONDS: [f64; 12] =
    [1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3];

/// Why a write was refused by the fence, a call for want of budget, a run was ended, a guest broke down: what a counter
/// begins with 0 for, so that an alert sees the first one.
const FENCED: [&str; 3] = ["superseded", "demoted", "ended"];
const QUOTAS: [&str; 3] = ["writes", "deletes", "fights"];
const INTERRUPTS: [&str; 1] = ["deadline"];
const TRAPS: [&str; 5] = ["trap", "memory", "too-large", "exit", "host-panic"];

type Labels = Vec<(&'static str, String)>;

/// The registry and the families in it; cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Mutex<Registry>,
    queues: Queues,
    families: Families,
    requests: requests::Families,
    series: AllSeries,
}

struct Families {
    reconciles: Family<Labels, Counter>,
    errors: Family<Labels, Counter>,
    terminal_errors: Family<Labels, Counter>,
    panics: Family<Labels, Counter>,
    timeouts: Family<Labels, Counter>,
    reconcile_time: Family<Labels, Histogram>,
    max_concurrent: Family<Labels, Gauge>,
    active_workers: Family<Labels, Gauge>,
    adds: Family<Labels, Counter>,
    retries: Family<Labels, Counter>,
    promoted: Family<Labels, Counter>,
    queue_time: Family<Labels, Histogram>,
    work_time: Family<Labels, Histogram>,
    fenced: Family<Labels, Counter>,
    traps: Family<Labels, Counter>,
    interrupts: Family<Labels, Counter>,
    log_dropped: Family<Labels, Counter>,
    quota: Family<Labels, Counter>,
    previews: Family<Labels, Counter>,
    preview_writes: Family<Labels, Counter>,
    shadow_runs: Family<Labels, Counter>,
    own_wait: Family<Labels, Histogram>,
    own_unseen: Family<Labels, Counter>,
    status_errors: Family<Labels, Counter>,
    leader: Family<Labels, Gauge>,
    lease_slow_path: Family<Labels, Counter>,
    access_reviews: Family<Labels, Counter>,
}

/// What one queue says of itself at the moment of a scrape.
#[derive(Clone, Debug, Default)]
pub struct QueueStats {
    /// Ready keys by priority.
    pub depth: BTreeMap<i32, usize>,
    /// Sum of the ages of all runs in flight, in seconds.
    pub unfinished: f64,
    /// Age of the oldest run in flight, in seconds.
    pub longest: f64,
    /// Runs in flight.
    pub running: usize,
    /// Keys that wait for a time of their own.
    pub later: usize,
}

/// Answers for a queue.
pub trait Watched: Send + Sync {
    /// The state now.
    fn stats(&self) -> QueueStats;
}

/// How much of something there is and may be, if that is known.
type Count = Box<dyn Fn() -> Option<(usize, usize)> + Send + Sync>;

struct Bounded {
    /// Name and help of what there is, and of what there may be.
    names: [(&'static str, &'static str); 2],
    count: Count,
}

#[derive(Clone, Default)]
struct Queues(Arc<Mutex<BTreeMap<String, Weak<dyn Watched>>>>);

/// The metrics of one controller, looked up once.
#[derive(Clone)]
pub struct ControllerMetrics {
    metrics: Metrics,
    controller: String,
    series: Series,
    reconcile_time: Histogram,
    /// Keys added to the queue.
    pub adds: Counter,
    /// Of these with a delay.
    pub retries: Counter,
    /// How long a key was ready before it ran.
    pub queue_time: Histogram,
    /// How long it ran.
    pub work_time: Histogram,
    /// Runs at this moment.
    pub active_workers: Gauge,
    /// Runs allowed at the same time.
    pub max_concurrent: Gauge,
}

/// How a run ended, for the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunEnd {
    /// await-change.
    Success,
    /// requeue-after.
    RequeueAfter,
    /// The queue tries again at once or later without a failure.
    Requeue,
    /// retry.
    Error,
    /// terminal or invalid.
    Terminal,
    /// A trap.
    Panic,
    /// A deadline.
    Timeout,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let queues = Queues::default();
        let families = Families::register(&mut registry);
        registry.register_collector(Box::new(queues.clone()));
        let requests = requests::Families::register(&mut registry);
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("nagaya_build", "What runs here", build);
        registry.register_collector(Box::new(process::Process));
        let series = AllSeries::default();
        Self(Arc::new(Inner { registry: Mutex::new(registry), queues, families, requests, series }))
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// The page in the text format of `OpenMetrics`. Asking for it may read files.
    pub fn page(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        let registry = self.0.registry.lock();
        prometheus_client::encoding::text::encode(&mut text, &registry)?;
        Ok(text)
    }

    /// Adds the process's memory mappings: `count` is asked at every scrape how many there are and may be.
    pub fn mappings(&self, count: impl Fn() -> Option<(usize, usize)> + Send + Sync + 'static) {
        let used = ("nagaya_memory_mappings", "Lines of the process's memory map");
        let limit =
            ("nagaya_memory_mappings_limit", "How many lines it may have: vm.max_map_count");
        self.bounded([used, limit], Box::new(count));
    }

    /// Adds the memory of guests: `count` is asked at every scrape how many bytes they have and may have.
    pub fn guest_memory(&self, count: impl Fn() -> Option<(usize, usize)> + Send + Sync + 'static) {
        let used = ("nagaya_guest_memory_bytes", "Bytes that runs of guests hold at present");
        let limit = ("nagaya_guest_memory_limit_bytes", "Bytes that all guests together may have");
        self.bounded([used, limit], Box::new(count));
    }

    fn bounded(&self, names: [(&'static str, &'static str); 2], count: Count) {
        let mut registry = self.0.registry.lock();
        registry.register_collector(Box::new(Bounded { names, count }));
    }

    /// Adds the open watches, for which `ask` is asked at every scrape.
    pub fn watches(&self, ask: impl Fn() -> Vec<WatchStats> + Send + Sync + 'static) {
        let mut registry = self.0.registry.lock();
        registry.register_collector(Box::new(Watches(Box::new(ask))));
    }

    /// Adds the conditions of all controllers, for which `ask` is asked at every scrape.
    pub fn conditions(&self, ask: impl Fn() -> Vec<ConditionStats> + Send + Sync + 'static) {
        let mut registry = self.0.registry.lock();
        registry.register_collector(Box::new(Conditions(Box::new(ask))));
    }

    /// Counts the requests to the API server at `host`.
    pub fn requests(&self, host: &str) -> Requests {
        self.0.requests.to(host)
    }

    /// 1 while this host holds the Lease `name`, else 0.
    pub fn leader(&self, name: &str) -> Gauge {
        drop(self.lease_slow_path(name));
        self.0.families.leader.get_or_create_owned(&vec![("name", name.to_owned())])
    }

    /// Writes of the Lease `name` that had to be repeated after reading it.
    pub fn lease_slow_path(&self, name: &str) -> Counter {
        self.0.families.lease_slow_path.get_or_create_owned(&vec![("name", name.to_owned())])
    }

    /// Access reviews that ended like this: `allowed`, `denied` or `error`.
    pub fn access_reviews(&self, result: &str) -> Counter {
        let label = vec![("result", result.to_owned())];
        self.0.families.access_reviews.get_or_create_owned(&label)
    }

    /// The metrics of `controller` (`namespace/name`), whose queue is asked at every scrape.
    pub fn controller(&self, controller: &str, queue: Weak<dyn Watched>) -> ControllerMetrics {
        let families = &self.0.families;
        let one = vec![("controller", controller.to_owned())];
        let two = queue_labels(controller);
        let queues = &self.0.queues.0;
        queues.lock().insert(controller.to_owned(), queue);
        // As controller-runtime does: a counter that is 0 can be alerted on, one that is absent cannot.
        for result in ["success", "error", "requeue", "requeue_after"] {
            let mut labels = one.clone();
            labels.push(("result", result.to_owned()));
            drop(families.reconciles.get_or_create(&labels));
        }
        for family in [
            &families.errors,
            &families.terminal_errors,
            &families.panics,
            &families.timeouts,
            &families.promoted,
            &families.own_unseen,
            &families.log_dropped,
            &families.status_errors,
        ] {
            drop(family.get_or_create(&one));
        }
        drop(families.own_wait.get_or_create(&one));
        for (family, label, values) in
            [(&families.fenced, "reason", FENCED), (&families.quota, "quota", QUOTAS)]
        {
            for value in values {
                let labels = [one.clone(), vec![(label, value.to_owned())]].concat();
                let series = self.0.series.of(controller);
                series.count(labels, |labels| drop(family.get_or_create(labels)));
            }
        }
        ControllerMetrics {
            metrics: self.clone(),
            controller: controller.to_owned(),
            series: self.0.series.of(controller),
            reconcile_time: families.reconcile_time.get_or_create_owned(&one),
            adds: families.adds.get_or_create_owned(&two),
            retries: families.retries.get_or_create_owned(&two),
            queue_time: families.queue_time.get_or_create_owned(&two),
            work_time: families.work_time.get_or_create_owned(&two),
            active_workers: families.active_workers.get_or_create_owned(&one),
            max_concurrent: families.max_concurrent.get_or_create_owned(&one),
        }
    }
}

impl Metrics {
    /// Counts a status of `controller` that the API server did not take.
    pub fn status_not_written(&self, controller: &str) {
        let one = vec![("controller", controller.to_owned())];
        self.0.series.of(controller).count(one, |one| {
            self.0.families.status_errors.get_or_create(one).inc();
        });
    }

    /// Ends every series of a controller that is gone.
    pub fn forget(&self, controller: &str) {
        let mut all = self.0.series.end(controller);
        let one = vec![("controller", controller.to_owned())];
        for result in ["success", "error", "requeue", "requeue_after"] {
            let mut labels = one.clone();
            labels.push(("result", result.to_owned()));
            all.insert(labels);
        }
        all.insert(one);
        all.insert(queue_labels(controller));
        for labels in all {
            self.0.families.remove(&labels);
        }
    }

    /// Ends the series of one revision of a controller.
    pub fn forget_revision(&self, controller: &str, revision: &str) {
        for labels in self.0.series.take(controller, "revision", revision) {
            self.0.families.remove(&labels);
        }
    }
}

impl fmt::Debug for ControllerMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControllerMetrics")
            .field("controller", &self.controller)
            .finish_non_exhaustive()
    }
}

impl ControllerMetrics {
    /// Counts a run that took `time`.
    pub fn ran(&self, end: RunEnd, time: Duration) {
        let families = &self.metrics.0.families;
        let one = vec![("controller", self.controller.clone())];
        let result = match end {
            RunEnd::Success => "success",
            RunEnd::RequeueAfter => "requeue_after",
            RunEnd::Requeue => "requeue",
            RunEnd::Error | RunEnd::Terminal | RunEnd::Panic | RunEnd::Timeout => "error",
        };
        let mut labels = one.clone();
        labels.push(("result", result.to_owned()));
        self.series.count(labels, |labels| {
            families.reconciles.get_or_create(labels).inc();
            if result == "error" {
                families.errors.get_or_create(&one).inc();
            }
            match end {
                RunEnd::Terminal => drop(families.terminal_errors.get_or_create(&one).inc()),
                RunEnd::Panic => drop(families.panics.get_or_create(&one).inc()),
                RunEnd::Timeout => drop(families.timeouts.get_or_create(&one).inc()),
                _ => (),
            }
        });
        self.reconcile_time.observe(time.as_secs_f64());
        self.work_time.observe(time.as_secs_f64());
    }

    /// Begins what is counted for each revision.
    pub fn revision(&self, revision: &str) {
        let families = &self.metrics.0.families;
        for kind in TRAPS {
            self.count(&families.traps, &[("revision", revision), ("kind", kind)], 0);
        }
        for reason in INTERRUPTS {
            self.count(&families.interrupts, &[("revision", revision), ("reason", reason)], 0);
        }
    }

    /// Counts keys that came up because of their age.
    pub fn promoted(&self, keys: u64) {
        self.count(&self.metrics.0.families.promoted, &[], keys);
    }

    /// Counts a write that the fence refused.
    pub fn fenced(&self, reason: &str) {
        self.count(&self.metrics.0.families.fenced, &[("reason", reason)], 1);
    }

    /// Counts a trap.
    pub fn trapped(&self, revision: &str, kind: &str) {
        self.count(&self.metrics.0.families.traps, &[("revision", revision), ("kind", kind)], 1);
    }

    /// Counts a run that was ended by the clock or by a drain.
    pub fn interrupted(&self, revision: &str, reason: &str) {
        let labels = [("revision", revision), ("reason", reason)];
        self.count(&self.metrics.0.families.interrupts, &labels, 1);
    }

    /// Counts a refusal for want of budget.
    pub fn over_quota(&self, quota: &str) {
        self.count(&self.metrics.0.families.quota, &[("quota", quota)], 1);
    }

    /// Counts a run of a `plan` or a `shadow`, and its writes that were tried.
    pub fn previewed(&self, of: &str, writes: usize) {
        let families = &self.metrics.0.families;
        self.count(&families.previews, &[("of", of)], 1);
        let writes = u64::try_from(writes).unwrap_or(u64::MAX);
        self.count(&families.preview_writes, &[("of", of)], writes);
    }

    /// Counts a live run that a candidate has repeated, and whether it came to the same.
    pub fn shadowed(&self, is_same: bool) {
        let result = if is_same { "same" } else { "different" };
        self.count(&self.metrics.0.families.shadow_runs, &[("result", result)], 1);
    }

    /// Records how long an object waited for the cache to show its run's writes.
    pub fn own_writes_seen(&self, waited: Duration) {
        let labels = vec![("controller", self.controller.clone())];
        self.series.count(labels, |labels| {
            self.metrics.0.families.own_wait.get_or_create(labels).observe(waited.as_secs_f64());
        });
    }

    /// Counts a write that the cache did not show in time.
    pub fn own_write_unseen(&self) {
        self.count(&self.metrics.0.families.own_unseen, &[], 1);
    }

    /// Counts bytes of the guest's log that were dropped.
    pub fn log_dropped(&self, bytes: u64) {
        self.count(&self.metrics.0.families.log_dropped, &[], bytes);
    }

    fn count(&self, family: &Family<Labels, Counter>, labels: &[(&'static str, &str)], by: u64) {
        let mut all = vec![("controller", self.controller.clone())];
        all.extend(labels.iter().map(|(key, value)| (*key, (*value).to_owned())));
        self.series.count(all, |all| {
            family.get_or_create(all).inc_by(by);
        });
    }
}

fn queue_labels(controller: &str) -> Labels {
    vec![("name", controller.to_owned()), ("controller", controller.to_owned())]
}

impl Families {
    /// Ends the series with these labels, in whichever family they are.
    fn remove(&self, labels: &Labels) {
        for family in [
            &self.reconciles,
            &self.errors,
            &self.terminal_errors,
            &self.panics,
            &self.timeouts,
            &self.adds,
            &self.retries,
            &self.promoted,
            &self.fenced,
            &self.traps,
            &self.interrupts,
            &self.log_dropped,
            &self.quota,
            &self.previews,
            &self.preview_writes,
            &self.shadow_runs,
            &self.own_unseen,
            &self.status_errors,
        ] {
            family.remove(labels);
        }
        for family in [&self.max_concurrent, &self.active_workers] {
            family.remove(labels);
        }
        for family in [&self.reconcile_time, &self.queue_time, &self.work_time, &self.own_wait] {
            family.remove(labels);
        }
    }

    #[expect(clippy::too_many_lines, reason = "every name on one page")]
    fn register(registry: &mut Registry) -> Self {
        let mut counter = |name: &str, help: &str| {
            let family = Family::<Labels, Counter>::default();
            registry.register(name, help, family.clone());
            family
        };
        let reconciles = counter("controller_runtime_reconcile", "Runs by result");
        let errors = counter("controller_runtime_reconcile_errors", "Runs that ended in an error");
        let terminal_errors = counter(
            "controller_runtime_terminal_reconcile_errors",
            "Runs that ended in a terminal error",
        );
        let panics = counter("controller_runtime_reconcile_panics", "Runs that trapped");
        let timeouts =
            counter("controller_runtime_reconcile_timeouts", "Runs that ran out of time");
        let adds = counter("workqueue_adds", "Keys added to the queue");
        let retries = counter("workqueue_retries", "Keys added to the queue with a delay");
        let promoted = counter(
            "nagaya_queue_promoted",
            "Keys promoted because they had waited for a minute behind others",
        );
        let fenced = counter("nagaya_writes_fenced", "Writes refused by the fence");
        let traps = counter("nagaya_guest_traps", "Traps of guests");
        let interrupts = counter("nagaya_guest_interrupts", "Runs ended by the clock or a drain");
        let log_dropped =
            counter("nagaya_guest_log_dropped_bytes", "Log bytes over the guest's quota");
        let quota = counter("nagaya_quota_rejections", "Calls refused for want of budget");
        let previews = counter("nagaya_previews", "Runs whose writes were only tried");
        let preview_writes = counter("nagaya_preview_writes", "Writes that were only tried");
        let shadow_runs = counter(
            "nagaya_shadow_runs",
            "Live runs that a candidate has repeated without writing",
        );
        let own_unseen =
            counter("nagaya_ryow_timeouts", "Own writes that the cache did not show in time");
        let status_errors = counter(
            "nagaya_status_write_errors",
            "Statuses of the host's own kinds that the API server did not take",
        );
        let access_reviews = counter(
            "nagaya_access_reviews",
            "Questions to the API server about rights of accounts",
        );
        let lease_slow_path = counter(
            "leader_election_slowpath",
            "Writes of the Lease that had to be repeated after reading it",
        );
        let mut gauge = |name: &str, help: &str| {
            let family = Family::<Labels, Gauge>::default();
            registry.register(name, help, family.clone());
            family
        };
        let max_concurrent =
            gauge("controller_runtime_max_concurrent_reconciles", "Runs allowed at once");
        let active_workers = gauge("controller_runtime_active_workers", "Runs at this moment");
        let leader = gauge("leader_election_master_status", "1: this host holds the Lease");
        let mut histogram = |name: &str, help: &str, new: fn() -> Histogram| {
            let family = Family::<Labels, Histogram>::new_with_constructor(new);
            registry.register(name, help, family.clone());
            family
        };
        let queue_seconds: fn() -> Histogram = || Histogram::new(QUEUE_SECONDS);
        Self {
            reconciles,
            errors,
            terminal_errors,
            panics,
            timeouts,
            reconcile_time: histogram(
                "controller_runtime_reconcile_time_seconds",
                "How long a run took",
                || Histogram::new(RECONCILE_SECONDS),
            ),
            max_concurrent,
            active_workers,
            adds,
            retries,
            promoted,
            queue_time: histogram(
                "workqueue_queue_duration_seconds",
                "How long a key was ready before it ran",
                queue_seconds,
            ),
            work_time: histogram(
                "workqueue_work_duration_seconds",
                "How long a key ran",
                queue_seconds,
            ),
            own_wait: histogram(
                "nagaya_ryow_wait_seconds",
                "How long an object waited for the cache to show its run's writes",
                queue_seconds,
            ),
            own_unseen,
            status_errors,
            leader,
            lease_slow_path,
            access_reviews,
            fenced,
            traps,
            interrupts,
            log_dropped,
            quota,
            previews,
            preview_writes,
            shadow_runs,
        }
    }
}

impl fmt::Debug for Queues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queues").finish_non_exhaustive()
    }
}

impl Collector for Queues {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let mut queues = self.0.lock();
        queues.retain(|_, queue| queue.strong_count() > 0);
        let stats: Vec<_> = queues
            .iter()
            .filter_map(|(name, queue)| Some((name.clone(), queue.upgrade()?.stats())))
            .collect();
        drop(queues);
        let mut depth = vec![];
        for (name, stats) in &stats {
            for (priority, count) in &stats.depth {
                let mut labels = queue_labels(name);
                labels.push(("priority", priority.to_string()));
                depth.push((labels, i64::try_from(*count).unwrap_or(i64::MAX)));
            }
        }
        gauges(&mut encoder, "workqueue_depth", "Keys that are ready", depth)?;
        let of = |value: fn(&QueueStats) -> f64| {
            // A sum of nothing is -0.
            let value = |stats| value(stats) + 0.0;
            stats.iter().map(|(name, stats)| (queue_labels(name), value(stats))).collect::<Vec<_>>()
        };
        gauges(
            &mut encoder,
            "workqueue_unfinished_work_seconds",
            "Sum of the ages of the runs in flight",
            of(|stats| stats.unfinished),
        )?;
        gauges(
            &mut encoder,
            "workqueue_longest_running_processor_seconds",
            "Age of the oldest run in flight",
            of(|stats| stats.longest),
        )
    }
}

impl fmt::Debug for Bounded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bounded").field("names", &self.names).finish_non_exhaustive()
    }
}

impl Collector for Bounded {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let Some((used, limit)) = (self.count)() else { return Ok(()) };
        for ((name, help), count) in self.names.into_iter().zip([used, limit]) {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            let gauge = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(count).encode(gauge)?;
        }
        Ok(())
    }
}

fn gauges<N>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: Vec<(Labels, N)>,
) -> Result<(), fmt::Error>
where
    Labels: EncodeLabelSet,
    ConstGauge<N>: EncodeMetric,
{
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in values {
        ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A queue without keys, whose sum is what Rust says the sum of no floats is.
    struct Empty;

    impl Watched for Empty {
        fn stats(&self) -> QueueStats {
            let none: [f64; 0] = [];
            QueueStats { unfinished: none.into_iter().sum(), ..QueueStats::default() }
        }
    }

    #[test]
    fn nothing_is_zero_and_not_minus_zero() {
        let metrics = Metrics::default();
        let queue: Arc<dyn Watched> = Arc::new(Empty);
        let _controller = metrics.controller("a/b", Arc::downgrade(&queue));
        let page = metrics.page().unwrap();
        assert!(page.contains("workqueue_unfinished_work_seconds{"), "{page}");
        assert!(!page.contains(" -0"), "{page}");
    }

    #[test]
    fn every_counter_begins_with_zero() {
        let metrics = Metrics::default();
        let queue: Arc<dyn Watched> = Arc::new(Fixed);
        let controller = metrics.controller("a/b", Arc::downgrade(&queue));
        controller.revision("b-1");
        metrics.leader("nagaya").set(0);
        let page = metrics.page().unwrap();
        for line in [
            r#"nagaya_writes_fenced_total{controller="a/b",reason="superseded"} 0"#,
            r#"nagaya_quota_rejections_total{controller="a/b",quota="writes"} 0"#,
            r#"nagaya_guest_log_dropped_bytes_total{controller="a/b"} 0"#,
            r#"nagaya_guest_traps_total{controller="a/b",revision="b-1",kind="trap"} 0"#,
            r#"nagaya_guest_interrupts_total{controller="a/b",revision="b-1",reason="deadline"} 0"#,
            r#"nagaya_ryow_timeouts_total{controller="a/b"} 0"#,
            r#"nagaya_ryow_wait_seconds_count{controller="a/b"} 0"#,
            r#"leader_election_slowpath_total{name="nagaya"} 0"#,
        ] {
            assert!(page.contains(line), "{line} is not in\n{page}");
        }
        let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/platform.md");
        let docs = std::fs::read_to_string(docs).unwrap();
        let words = docs.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let prefixes = [
            "nagaya_",
            "process_",
            "rest_client_",
            "workqueue_",
            "controller_runtime_",
            "leader_election_",
        ];
        let named: std::collections::BTreeSet<_> = words
            .filter(|word| {
                prefixes.iter().any(|prefix| word.starts_with(prefix) && *word != *prefix)
            })
            .collect();
        assert!(named.len() > 12, "{named:?}");
        let list = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("metrics.txt");
        let list = std::fs::read_to_string(list).unwrap();
        for name in named {
            let bare = name.strip_suffix("_total").or(name.strip_suffix("_info")).unwrap_or(name);
            assert!(
                list.lines().any(|line| line.split(' ').next() == Some(bare)),
                "{name} is not in metrics.txt"
            );
        }
    }

    struct Fixed;

    impl Watched for Fixed {
        fn stats(&self) -> QueueStats {
            QueueStats {
                depth: [(0, 3), (-100, 1)].into(),
                unfinished: 1.5,
                longest: 1.0,
                running: 2,
                later: 0,
            }
        }
    }

    #[test]
    fn a_controller_that_is_gone_leaves_no_series() {
        let metrics = Metrics::default();
        let queue: Arc<dyn Watched> = Arc::new(Fixed);
        let other = metrics.controller("storage/other", Arc::downgrade(&queue));
        let sorted = || {
            let page = metrics.page().unwrap();
            // The process's own figures move by themselves.
            let lines = page.lines().filter(|line| !line.starts_with("process_"));
            let mut lines: Vec<_> = lines.map(str::to_owned).collect();
            lines.sort();
            lines
        };
        let kept = sorted();
        let second: Arc<dyn Watched> = Arc::new(Fixed);
        let gone = metrics.controller("storage/bucket", Arc::downgrade(&second));
        for end in [RunEnd::Success, RunEnd::Terminal, RunEnd::Panic, RunEnd::Timeout] {
            gone.ran(end, Duration::from_millis(20));
        }
        gone.fenced("demoted");
        gone.over_quota("writes");
        gone.own_writes_seen(Duration::from_millis(1));
        gone.own_write_unseen();
        gone.log_dropped(7);
        gone.adds.inc();
        metrics.status_not_written("storage/bucket");
        for revision in ["bucket-1", "bucket-2"] {
            gone.trapped(revision, "panic");
            gone.interrupted(revision, "deadline");
        }
        let of = |page: &str, name: &str| page.lines().filter(|line| line.contains(name)).count();
        let page = metrics.page().unwrap();
        assert!(of(&page, "storage/bucket") > 80, "{page}");
        metrics.forget_revision("storage/bucket", "bucket-1");
        let page = metrics.page().unwrap();
        assert_eq!((of(&page, "bucket-1"), of(&page, "bucket-2")), (0, 2));
        metrics.forget("storage/bucket");
        drop(second);
        // Its last run ends late.
        gone.ran(RunEnd::Error, Duration::from_millis(20));
        gone.trapped("bucket-2", "panic");
        gone.own_writes_seen(Duration::from_millis(1));
        assert_eq!(sorted(), kept);
        let again = metrics.controller("storage/bucket", Arc::downgrade(&queue));
        again.ran(RunEnd::Success, Duration::from_millis(20));
        assert!(of(&metrics.page().unwrap(), "storage/bucket") > 40, "it counts anew");
        drop(other);
    }

    fn watched(bytes: usize, silent: u64) -> WatchStats {
        WatchStats {
            group: "apps".into(),
            version: "v1".into(),
            resource: "deployments".into(),
            projection: "full",
            objects: 2,
            bytes,
            silent: Duration::from_secs(silent),
        }
    }

    #[test]
    fn the_metric_names_are_the_committed_ones() {
        let metrics = Metrics::default();
        let queue: Arc<dyn Watched> = Arc::new(Fixed);
        let controller = metrics.controller("storage/bucket", Arc::downgrade(&queue));
        controller.ran(RunEnd::Panic, Duration::from_millis(20));
        controller.ran(RunEnd::Success, Duration::from_millis(20));
        controller.adds.inc();
        metrics.mappings(|| Some((431, 65_530)));
        metrics.guest_memory(|| Some((2 << 20, 64 << 20)));
        metrics.access_reviews("allowed").inc();
        metrics.leader("nagaya").set(1);
        controller.revision("bucket-1");
        controller.previewed("plan", 3);
        controller.shadowed(true);
        let requests = metrics.requests("host:6443");
        requests.sent(&http::Method::GET, Some(http::StatusCode::OK), Duration::from_millis(7));
        requests.sent(&http::Method::PATCH, None, Duration::from_secs(5));
        metrics.watches(move || vec![watched(30, 1), watched(12, 21)]);
        let ready = ConditionStats {
            controller: "storage/bucket".into(),
            kind: "Ready".into(),
            status: "False".into(),
        };
        metrics.conditions(move || vec![ready.clone()]);
        let page = metrics.page().unwrap();
        for line in [
            r#"controller_runtime_reconcile_total{controller="storage/bucket",result="success"} 1"#,
            r#"controller_runtime_reconcile_panics_total{controller="storage/bucket"} 1"#,
            r#"workqueue_adds_total{name="storage/bucket",controller="storage/bucket"} 1"#,
            r#"workqueue_depth{name="storage/bucket",controller="storage/bucket",priority="-100"} 1"#,
            r#"leader_election_master_status{name="nagaya"} 1"#,
            r#"nagaya_watch_staleness_seconds{group="apps",version="v1",resource="deployments"} 21.0"#,
            r#"nagaya_store_objects{group="apps",version="v1",resource="deployments",projection="full"} 4"#,
            r#"nagaya_store_bytes{group="apps",version="v1",resource="deployments",projection="full"} 42"#,
            r#"nagaya_controller_condition{controller="storage/bucket",type="Ready",status="False"} 1"#,
            r#"nagaya_controller_condition{controller="storage/bucket",type="Ready",status="True"} 0"#,
            r#"rest_client_requests_total{code="200",method="GET",host="host:6443"} 1"#,
            r#"rest_client_requests_total{code="<error>",method="PATCH",host="host:6443"} 1"#,
            r#"rest_client_request_duration_seconds_bucket{le="0.025",verb="GET",host="host:6443"} 1"#,
            concat!(r#"nagaya_build_info{version=""#, env!("CARGO_PKG_VERSION"), r#""} 1"#),
            "process_cpu_seconds_total ",
            "nagaya_memory_mappings 431",
            "nagaya_memory_mappings_limit 65530",
            "nagaya_guest_memory_bytes 2097152",
            "nagaya_guest_memory_limit_bytes 67108864",
            r#"nagaya_access_reviews_total{result="allowed"} 1"#,
        ] {
            assert!(page.contains(line), "{line} is not in\n{page}");
        }
        let names: Vec<_> = page
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "))
            .map(|line| line.to_owned() + "\n")
            .collect();
        let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("metrics.txt");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&file, names.concat()).unwrap();
        }
        assert_eq!(names.concat(), std::fs::read_to_string(file).unwrap(), "run with UPDATE=1");
    }
}
