//! How many writes and deletes a controller has left; pure.
//!
//! Two token buckets, shared by all revisions of a controller. They bound a mistake; they do not pace normal work.
//!
//! Invariants: `no_window_holds_more_than_the_rate_and_one_burst`, `a_delete_takes_of_both_or_of_neither`.

use std::time::{Duration, Instant};

use crate::rate::Bucket;

/// What a controller may still write.
#[derive(Debug)]
pub struct Budget {
    writes: Bucket,
    deletes: Bucket,
}

/// The budget is used up; there is some again after this long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exceeded(pub Duration);

impl Budget {
    /// A full budget: bursts are a sixth of a minute's writes (1,000 of the default 6,000) and a tenth of an
    /// hour's deletes.
    pub fn new(writes_per_minute: u32, deletes_per_hour: u32) -> Self {
        let (writes, deletes) = (f64::from(writes_per_minute), f64::from(deletes_per_hour));
        Self {
            writes: Bucket::new(writes / 60.0, writes / 6.0),
            deletes: Bucket::new(deletes / 3_600.0, deletes / 10.0),
        }
    }

    /// Takes one write.
    pub fn write(&mut self, now: Instant) -> Result<(), Exceeded> {
        self.writes.take(now).map_err(Exceeded)
    }

    /// Takes one delete, which is a write too: of both, or of neither.
    pub fn delete(&mut self, now: Instant) -> Result<(), Exceeded> {
        match self.writes.wait(now) {
            Duration::ZERO => {
                self.deletes.take(now).map_err(Exceeded)?;
                self.writes.take(now).map_err(Exceeded)
            }
            wait => Err(Exceeded(wait)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an arbitrary starting point")]
    fn no_window_holds_more_than_the_rate_and_one_burst() {
        let start = Instant::now();
        let mut budget = Budget::new(6_000, 1_000);
        let mut written = 0;
        for millis in 0..10_000 {
            let now = start + Duration::from_millis(millis);
            written += i32::from(budget.write(now).is_ok());
            written += i32::from(budget.write(now).is_ok());
        }
        assert!((1_990..=2_001).contains(&written), "1,000 at once and 100 a second: {written}");
        let now = start + Duration::from_secs(20);
        let deleted = (0..500).filter(|_| budget.delete(now).is_ok()).count();
        assert_eq!(deleted, 100);
        let Err(Exceeded(wait)) = budget.delete(now) else { panic!("the deletes are used up") };
        assert!(wait > Duration::from_secs(3) && wait < Duration::from_secs(4), "{wait:?}");
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an arbitrary starting point")]
    fn a_delete_takes_of_both_or_of_neither() {
        let start = Instant::now();
        // Bursts of ten each, and a write a second.
        let mut budget = Budget::new(60, 100);
        while budget.write(start).is_ok() {}
        for _ in 0..20 {
            assert!(budget.delete(start).is_err(), "there is no write for it");
        }
        let later = start + Duration::from_secs(10);
        let deleted = (0..20).filter(|_| budget.delete(later).is_ok()).count();
        assert_eq!(deleted, 10, "those that were refused have cost no delete");
        assert!(budget.write(later).is_err(), "and each was a write");
    }
}
