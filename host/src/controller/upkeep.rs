//! When a controller is to do what no event asks for: deliver every object once more, and look for objects that have left
//! what it selects while nobody saw it; pure.

use std::time::{Duration, Instant};

/// How often every object is delivered once more, a tenth of it sooner or later.
const RESYNC: Duration = Duration::from_secs(10 * 3_600);
/// How often objects that nobody saw leave are looked for, after the first time; and after a look that failed.
const SEARCH: Duration = Duration::from_secs(3_600);
const SEARCH_AGAIN: Duration = Duration::from_secs(30);

/// What is due, and when.
#[derive(Debug)]
pub(super) struct Upkeep {
    resync_at: Instant,
    /// `None`: under this claim and revision nobody has looked yet.
    search_at: Option<Instant>,
}

impl Upkeep {
    /// Of a controller that begins.
    pub(super) fn new(now: Instant) -> Self {
        Self { resync_at: now + resync_after(fastrand::f64()), search_at: None }
    }

    /// Another claim or revision: what was looked for under the last one says nothing.
    pub(super) fn restart(&mut self) {
        self.search_at = None;
    }

    /// Whether every object is to be delivered now.
    pub(super) fn resyncs(&mut self, now: Instant) -> bool {
        let is_due = now >= self.resync_at;
        if is_due {
            self.resync_at = now + resync_after(fastrand::f64());
        }
        is_due
    }

    /// Whether objects that have left are to be looked for now.
    pub(super) fn searches(&mut self, now: Instant) -> bool {
        let is_due = self.search_at.is_none_or(|at| now >= at);
        if is_due {
            self.search_at = Some(now + SEARCH);
        }
        is_due
    }

    /// A look has ended. One of an earlier claim or revision says nothing.
    pub(super) fn searched(&mut self, went_well: bool, now: Instant) {
        let pause = if went_well { SEARCH } else { SEARCH_AGAIN };
        self.search_at = self.search_at.map(|_| now + pause);
    }
}

/// The time to the next resync, for a share of chance from 0 to 1: the resyncs of many controllers spread.
fn resync_after(share: f64) -> Duration {
    RESYNC.mul_f64(0.9 + 0.2 * share)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn a_resync_comes_after_nine_to_eleven_hours() {
        let hours = |count: u64| Duration::from_secs(count * 3_600);
        let (least, most) = (resync_after(0.0), resync_after(1.0));
        assert!(least >= hours(9) && most <= hours(11), "{least:?} to {most:?}");
        let begun = clock::now();
        let mut upkeep = Upkeep::new(begun);
        assert!(!upkeep.resyncs(begun + hours(8)));
        assert!(upkeep.resyncs(begun + hours(11)));
        assert!(!upkeep.resyncs(begun + hours(19)), "once each time");
        assert!(upkeep.resyncs(begun + hours(22)));
    }

    #[test]
    fn those_who_left_are_looked_for_at_once_and_sooner_after_a_look_that_failed() {
        let now = clock::now();
        let mut upkeep = Upkeep::new(now);
        assert!(upkeep.searches(now));
        assert!(!upkeep.searches(now), "it goes on");
        upkeep.searched(false, now);
        assert!(!upkeep.searches(now + SEARCH_AGAIN / 2) && upkeep.searches(now + SEARCH_AGAIN));
        upkeep.searched(true, now);
        assert!(!upkeep.searches(now + SEARCH / 2) && upkeep.searches(now + SEARCH));
        upkeep.restart();
        upkeep.searched(true, now);
        assert!(upkeep.searches(now), "what ended was of another claim or revision");
    }
}
