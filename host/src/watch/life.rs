//! When a watch last showed that it lives: by a byte, or by the headers of a new connection.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// Written by the task of the watch, read by whoever scrapes.
#[derive(Debug)]
pub(super) struct Life {
    begun: Instant,
    /// Milliseconds after `begun`.
    seen: AtomicU64,
}

impl Life {
    /// A watch that begins at `now`.
    pub(super) fn new(now: Instant) -> Self {
        Self { begun: now, seen: AtomicU64::new(0) }
    }

    /// It lives at `now`.
    pub(super) fn seen(&self, now: Instant) {
        let after = now.saturating_duration_since(self.begun).as_millis();
        self.seen.store(u64::try_from(after).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// When it last lived.
    pub(super) fn last(&self) -> Instant {
        self.begun + Duration::from_millis(self.seen.load(Ordering::Relaxed))
    }
}
