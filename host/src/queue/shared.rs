//! A controller's queue as others reach it: watches insert keys, the controller's loop takes them.
//!
//! Inserting never blocks and never waits: the queue is a set, bounded by the number of keys.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use crate::{
    clock,
    metrics::{ControllerMetrics, QueueStats, Watched},
    model::object::ObjectKey,
    queue::{Backoff, Outcome, Queue, Taken, Urgency},
};

/// The queue of one controller, shared by its watches and its loop.
#[derive(Debug)]
pub struct SharedQueue {
    queue: Mutex<Queue<ObjectKey>>,
    changed: Notify,
    metrics: OnceLock<ControllerMetrics>,
    /// Since when this host works; a standby's keys wait for nobody.
    works_since: Mutex<Option<Instant>>,
}

impl Default for SharedQueue {
    fn default() -> Self {
        Self {
            queue: Mutex::new(Queue::new(Backoff::default())),
            changed: Notify::new(),
            metrics: OnceLock::new(),
            works_since: Mutex::default(),
        }
    }
}

impl SharedQueue {
    /// An empty queue whose numbers go to the controller's metrics.
    pub fn new(metrics: impl FnOnce(&Arc<Self>) -> ControllerMetrics) -> Arc<Self> {
        let queue = Arc::new(Self::default());
        let _ = queue.metrics.set(metrics(&queue));
        queue
    }

    /// Asks for `key` to run now.
    pub fn add(&self, key: &ObjectKey, urgency: Urgency) {
        self.add_all([key.clone()], urgency);
    }

    /// Asks for all of `keys` to run now.
    pub fn add_all(&self, keys: impl IntoIterator<Item = ObjectKey>, urgency: Urgency) {
        let now = clock::now();
        let mut queue = self.queue();
        let mut count = 0;
        for key in keys {
            queue.add(&key, urgency, now, now);
            count += 1;
        }
        drop(queue);
        if count > 0 {
            if let Some(metrics) = self.metrics.get() {
                metrics.adds.inc_by(count);
            }
            self.changed.notify_one();
        }
    }

    /// Takes the next ready key.
    pub fn take(&self) -> Option<Taken<ObjectKey>> {
        let now = clock::now();
        let mut queue = self.queue();
        let taken = queue.take(now);
        let promoted = queue.take_promoted();
        drop(queue);
        let metrics = self.metrics.get();
        if let Some(metrics) = metrics.filter(|_| promoted > 0) {
            metrics.promoted(promoted);
        }
        let taken = taken?;
        if let Some(metrics) = metrics {
            let since = *self.works_since();
            let works = since.map_or(Duration::MAX, |since| now.saturating_duration_since(since));
            metrics.queue_time.observe(taken.waited.min(works).as_secs_f64());
        }
        Some(taken)
    }

    /// The host works from now on: what keys have waited for before is no delay of the queue.
    pub fn works(&self) {
        *self.works_since() = Some(clock::now());
    }

    fn works_since(&self) -> MutexGuard<'_, Option<Instant>> {
        self.works_since.lock()
    }

    /// Ends a run.
    pub fn done(&self, key: &ObjectKey, outcome: Outcome) {
        self.queue().done(key, outcome, clock::now());
        if let (Some(metrics), false) = (self.metrics.get(), outcome == Outcome::Done) {
            metrics.retries.inc();
        }
        self.changed.notify_one();
    }

    /// Whether a key is ready, or when the next one will be.
    pub fn next_due(&self) -> Option<Duration> {
        let now = clock::now();
        Some(self.queue().next_due(now)?.saturating_duration_since(now))
    }

    /// Returns once something was added or ended since the last call.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Starts every key's backoff from the beginning.
    pub fn forget_failures(&self) {
        self.queue().forget_failures();
    }

    fn queue(&self) -> MutexGuard<'_, Queue<ObjectKey>> {
        self.queue.lock()
    }
}

impl Watched for SharedQueue {
    fn stats(&self) -> QueueStats {
        let now = clock::now();
        let queue = self.queue();
        let ages: Vec<_> = queue
            .in_flight()
            .map(|(_, since)| now.saturating_duration_since(since).as_secs_f64())
            .collect();
        QueueStats {
            depth: queue.depth().clone(),
            unfinished: ages.iter().sum(),
            running: ages.len(),
            later: queue.later(),
            longest: ages.into_iter().fold(0.0, f64::max),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[tokio::test(start_paused = true)]
    async fn what_keys_of_a_standby_have_waited_for_is_no_delay_of_the_queue() {
        let metrics = Metrics::default();
        let queue = SharedQueue::new(|queue| {
            let queue: std::sync::Weak<SharedQueue> = Arc::downgrade(queue);
            metrics.controller("a/b", queue)
        });
        queue.add(&ObjectKey::new(None, "x"), Urgency { priority: 0, is_news: true });
        tokio::time::advance(Duration::from_secs(159)).await;
        queue.works();
        assert!(queue.take().is_some());
        let page = metrics.page().unwrap();
        let sum = page
            .lines()
            .find_map(|line| line.strip_prefix("workqueue_queue_duration_seconds_sum{"));
        let sum: f64 = sum.unwrap().rsplit_once(' ').unwrap().1.parse().unwrap();
        assert!(sum < 0.05, "{sum}");
    }
}
