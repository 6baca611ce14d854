//! When a write that failed is tried again, and whether its failure is worth a line: what runs never waits for it.
//!
//! Invariant: `what_fails_is_tried_more_and_more_seldom_and_said_once`.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use crate::text::{MESSAGE, cut};

/// The pause after a first failure; it doubles.
const FIRST: Duration = Duration::from_secs(1);
/// The longest.
const LONGEST: Duration = Duration::from_secs(60);

/// The writes of one keeper that have failed, by what they write.
#[derive(Debug, Default)]
pub(super) struct Patience(BTreeMap<String, Failing>);

#[derive(Debug)]
struct Failing {
    failures: u32,
    /// Not before.
    until: Instant,
    why: String,
}

impl Patience {
    /// Whether it may be tried now.
    pub(super) fn may(&self, what: &str, now: Instant) -> bool {
        self.0.get(what).is_none_or(|failing| failing.until <= now)
    }

    /// It failed; true: for another reason than before, so that it is worth a line.
    pub(super) fn failed(&mut self, what: &str, why: &str, now: Instant) -> bool {
        let new = || Failing { failures: 0, until: now, why: String::new() };
        let failing = self.0.entry(what.to_owned()).or_insert_with(new);
        let pause = FIRST.saturating_mul(2_u32.saturating_pow(failing.failures)).min(LONGEST);
        failing.failures += 1;
        failing.until = now + pause;
        let why = cut(why, MESSAGE);
        let is_news = failing.why != why;
        failing.why = why.into_owned();
        is_news
    }

    /// It worked, or need not be done any more; true: it had failed before.
    pub(super) fn worked(&mut self, what: &str) -> bool {
        self.0.remove(what).is_some()
    }

    /// Why it failed the last time, unless it has worked since.
    pub(super) fn why(&self, what: &str) -> Option<&str> {
        self.0.get(what).map(|failing| failing.why.as_str())
    }

    /// Forgets what is written no more.
    pub(super) fn keep(&mut self, is_written: impl Fn(&str) -> bool) {
        self.0.retain(|what, _| is_written(what));
    }

    /// When the next one may be tried.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.0.values().map(|failing| failing.until).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_is_tried_more_and_more_seldom_and_said_once() {
        let (mut patience, mut now, mut said) = (Patience::default(), Instant::now(), 0);
        let start = now;
        let mut tries = 0;
        while now < start + Duration::from_secs(600) {
            assert!(patience.may("the status", now));
            tries += 1;
            said += u32::from(patience.failed("the status", "413 too large", now));
            assert!(!patience.may("the status", now) && patience.may("another", now));
            now = patience.next_due().unwrap();
        }
        assert!((10..20).contains(&tries), "{tries} in ten minutes");
        assert_eq!(said, 1);
        assert!(patience.failed("the status", "403 forbidden", now), "another reason");
        assert_eq!(patience.why("the status"), Some("403 forbidden"));
        assert!(patience.worked("the status") && !patience.worked("the status"));
        assert!(patience.failed("the status", "403 forbidden", now), "it had worked");
        patience.keep(|what| what == "another");
        assert_eq!(patience.next_due(), None);
        patience.failed("x", &"y".repeat(900_000), now);
        assert!(patience.why("x").is_some_and(|why| why.len() <= MESSAGE));
    }
}
