//! When a watch last showed that it lives: by a byte, or by the headers of a new connection.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// Written by the task of the watch, read by whoever scrapes.
#[derive(Debug)]
pub(super) struct Life {
    begun: Instant,
    /// Milliseconds after `begun`.
    seen: AtomicU64,
    /// Of the feed that brings the lines.
    feed: Mutex<Option<Arc<Life>>>,
}

impl Life {
    /// A watch that begins at `now`.
    pub(super) fn new(now: Instant) -> Self {
        Self { begun: now, seen: AtomicU64::new(0), feed: Mutex::default() }
    }

    /// It lives at `now`.
    pub(super) fn seen(&self, now: Instant) {
        let after = now.saturating_duration_since(self.begun).as_millis();
        self.seen.store(u64::try_from(after).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// From now on it lives as long as `feed` does, too.
    pub(super) fn follow(&self, feed: Option<Arc<Self>>) {
        self.seen(self.last());
        *self.feed.lock() = feed;
    }

    /// When it last lived.
    pub(super) fn last(&self) -> Instant {
        let own = self.begun + Duration::from_millis(self.seen.load(Ordering::Relaxed));
        let feed = self.feed.lock().as_ref().map(|feed| feed.last());
        feed.map_or(own, |feed| feed.max(own))
    }
}
