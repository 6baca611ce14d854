//! Decides what is told of runs that go wrong: an object's trouble, or the revision's; pure.
//!
//! A run fails when its guest says so or breaks down: traps, exits, or meets a limit. One object that fails is that
//! object's trouble: the controller tells of it and goes on. Many different ones that break down are the revision's, and
//! so are all that there are. What is said names an object that fails now: one that is deleted or well is forgotten.
//!
//! Invariants, each held by the test of that name:
//!
//! - `one_object_that_breaks_down_is_its_own_trouble`
//! - `many_objects_that_break_down_are_the_revisions_trouble`
//! - `a_revision_that_has_never_answered_is_ill_with_its_only_object`
//! - `what_is_said_follows_the_present_cause`
//! - `a_failing_object_is_told_after_three_failures_and_seldom_again`
//! - `what_is_said_does_not_flap`
//! - `whatever_happens_what_is_told_is_true`

use std::{
    collections::HashMap,
    fmt::Display,
    hash::Hash,
    time::{Duration, Instant},
};

use crate::text;

/// Failures in a row after which an object is told: one or two are every controller's daily life.
const TOLD_AFTER: u32 = 3;
/// How often it is told again on the object: its Events live for an hour.
const TOLD_AGAIN: Duration = Duration::from_secs(600);
/// Breakdowns in a row that make an object a sign of a breakdown.
const IN_A_ROW: u32 = 5;
/// A revision is ill with one in so many of all objects,
const SHARE: usize = 4;
/// with at least so many,
const FEW: usize = 3;
/// and with so many in any case.
const MANY: usize = 100;
/// An object that failed is well when it has not failed for so long after a good run.
const WELL_AFTER: Duration = Duration::from_secs(10);
/// How often the words change while their object still fails: each change is a write.
const REWORDED: Duration = Duration::from_secs(60);
/// Objects that are remembered; more are only counted as "at least".
const REMEMBERED: usize = 500;
/// Bytes that are kept of what went wrong.
const WORDS: usize = 256;

/// How a run ended, as far as its health goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It says nothing: it was not tried, or was cut off.
    Untold,
    /// The object is no longer the controller's.
    Left,
    /// As it should.
    Well,
    /// The guest answered with an error, or the host could not run it.
    Failed(String),
    /// The same, for as long as nothing changes: who is concerned has been told.
    Refused(String),
    /// The guest broke down.
    Broke(String),
}

/// What is known of the runs of one revision.
#[derive(Debug)]
pub struct Health<K> {
    objects: HashMap<K, Record>,
    /// Whether some run has ended in an answer.
    has_answered: bool,
    /// Whether more objects failed than are remembered.
    is_full: bool,
    failing: Option<Said<K>>,
    breakdown: Option<Said<K>>,
}

/// Objects that fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failing {
    /// How many.
    pub objects: usize,
    /// Which and how, for people.
    pub message: String,
}

#[derive(Debug)]
struct Record {
    /// In a row.
    failures: u32,
    /// The same, of breakdowns.
    breakdowns: u32,
    how: String,
    failed_at: Instant,
    told_at: Option<Instant>,
    /// Since its last good run.
    well_since: Option<Instant>,
    /// Whether the object existed when it was run.
    existed: bool,
}

/// What is said at present, and of which object.
#[derive(Debug)]
struct Said<K> {
    key: K,
    objects: usize,
    how: String,
    message: String,
    at: Instant,
}

impl<K> Default for Health<K> {
    fn default() -> Self {
        Self {
            objects: HashMap::new(),
            has_answered: false,
            is_full: false,
            failing: None,
            breakdown: None,
        }
    }
}

impl<K: Clone + Eq + Ord + Hash + Display> Health<K> {
    /// A run of `key` has ended; the words with which it is to be told on the object now, if it is.
    pub fn ran(&mut self, key: &K, ended: &Ended, existed: bool, now: Instant) -> Option<String> {
        let (how, breaks, told) = match ended {
            Ended::Untold => return None,
            Ended::Left => {
                self.objects.remove(key);
                return None;
            }
            Ended::Well => {
                self.has_answered = true;
                self.went_well(key, now);
                return None;
            }
            Ended::Failed(how) => (how, false, false),
            Ended::Refused(how) => (how, false, true),
            Ended::Broke(how) => (how, true, false),
        };
        self.has_answered |= !breaks;
        if !self.objects.contains_key(key) && self.objects.len() >= REMEMBERED {
            self.is_full = true;
            return None;
        }
        let record = self.objects.entry(key.clone()).or_insert_with(|| Record::new(now));
        record.fail(how, breaks, now);
        record.existed = existed;
        if told {
            record.failures = record.failures.max(TOLD_AFTER);
            record.told_at = Some(now);
        }
        record
            .is_to_be_told(now)
            .then(|| format!("this object's runs keep failing: {}", record.how))
    }

    /// Forgets the objects that are gone, and those that have been well for a while.
    pub fn forget(&mut self, exists: impl Fn(&K) -> bool, now: Instant) {
        self.objects.retain(|key, record| {
            let is_well = record
                .well_since
                .is_some_and(|since| now.saturating_duration_since(since) >= WELL_AFTER);
            // Of one that was gone already nobody hears any more, once its runs have ended.
            let is_old = now.saturating_duration_since(record.failed_at) >= 3 * TOLD_AGAIN;
            let is_gone = if record.existed { !exists(key) } else { is_old };
            !is_well && !is_gone
        });
        self.is_full &= self.objects.len() >= REMEMBERED;
    }

    /// The objects whose runs keep failing, if there are any.
    pub fn failing(&mut self, now: Instant) -> Option<Failing> {
        let fails = |record: &Record| record.failures >= TOLD_AFTER;
        let objects = self.objects.values().filter(|record| fails(record)).count();
        let at_least = if self.is_full { "at least " } else { "" };
        let worded = |said: &K, how: &str| match objects {
            1 => format!("the runs of {said} keep failing: {how}"),
            _ => format!(
                "the runs of {at_least}{objects} objects keep failing, like those of {said}: {how}"
            ),
        };
        follow(&mut self.failing, &self.objects, (objects, now), fails, worded);
        let said = self.failing.as_ref()?;
        Some(Failing { objects: said.objects, message: said.message.clone() })
    }

    /// What is wrong with the revision, which has `total` objects; `None`: it is well.
    pub fn breakdown(&mut self, total: usize, now: Instant) -> Option<&str> {
        let is_sign = |record: &Record| record.breakdowns >= IN_A_ROW && record.existed;
        let broken = self.objects.values().filter(|record| is_sign(record)).count();
        let many = broken >= (total / SHARE).clamp(FEW, MANY);
        let all = broken >= total && (broken >= 2 || !self.has_answered);
        let broken = if many || all { broken } else { 0 };
        let worded = |said: &K, how: &str| match broken {
            1 => format!(
                "{IN_A_ROW} runs in a row broke down, the last one like this: object {said}: {how}"
            ),
            _ => format!(
                "{broken} of {total} objects broke down in {IN_A_ROW} runs in a row, one of them like this: object {said}: {how}"
            ),
        };
        follow(&mut self.breakdown, &self.objects, (broken, now), is_sign, worded);
        self.breakdown.as_ref().map(|said| &*said.message)
    }

    fn went_well(&mut self, key: &K, now: Instant) {
        let Some(record) = self.objects.get_mut(key) else { return };
        if record.failures < TOLD_AFTER || !record.existed {
            self.objects.remove(key);
            return;
        }
        record.well_since.get_or_insert(now);
    }
}

/// Says what is to be said of `objects` records that count: of the one that was named as long as it still does, in new
/// words seldom.
fn follow<K: Clone + Eq + Ord + Hash>(
    said: &mut Option<Said<K>>,
    records: &HashMap<K, Record>,
    (objects, now): (usize, Instant),
    counts: impl Fn(&Record) -> bool,
    worded: impl Fn(&K, &str) -> String,
) {
    if objects == 0 {
        *said = None;
        return;
    }
    if let Some(old) = said {
        let record = records.get(&old.key).filter(|record| counts(record));
        let is_fresh = now.saturating_duration_since(old.at) < REWORDED;
        let is_same = |record: &Record| record.how == old.how && objects == old.objects;
        if record.is_some_and(|record| is_fresh || is_same(record)) {
            return;
        }
    }
    let named = said.as_ref().and_then(|said| records.get_key_value(&said.key));
    let latest = || {
        let all = records.iter().filter(|(_, record)| counts(record));
        all.max_by_key(|(key, record)| (record.well_since.is_none(), record.failed_at, *key))
    };
    let found = named.filter(|(_, record)| counts(record)).or_else(latest);
    *said = found.map(|(key, record)| Said {
        key: key.clone(),
        objects,
        how: record.how.clone(),
        message: worded(key, &record.how),
        at: now,
    });
}

impl Record {
    fn new(now: Instant) -> Self {
        Self {
            failures: 0,
            breakdowns: 0,
            how: String::new(),
            failed_at: now,
            told_at: None,
            well_since: None,
            existed: true,
        }
    }

    fn fail(&mut self, how: &str, breaks: bool, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        self.breakdowns = if breaks { self.breakdowns.saturating_add(1) } else { 0 };
        self.how = text::cut(how, WORDS).into_owned();
        (self.failed_at, self.well_since) = (now, None);
    }

    fn is_to_be_told(&mut self, now: Instant) -> bool {
        let is_due =
            self.told_at.is_none_or(|told| now.saturating_duration_since(told) >= TOLD_AGAIN);
        let tell = is_due && self.failures >= TOLD_AFTER;
        if tell {
            self.told_at = Some(now);
        }
        tell
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[expect(clippy::disallowed_methods, reason = "an arbitrary starting point")]
    fn health() -> (Health<String>, Instant) {
        (Health::default(), Instant::now())
    }

    fn broke(how: &str) -> Ended {
        Ended::Broke(how.to_owned())
    }

    fn failed(how: &str) -> Ended {
        Ended::Failed(how.to_owned())
    }

    impl Health<String> {
        fn run(&mut self, key: &str, ended: &Ended, times: u32, now: Instant) -> Vec<String> {
            (0..times).filter_map(|_| self.ran(&key.to_owned(), ended, true, now)).collect()
        }

        fn said(&mut self, now: Instant) -> String {
            self.failing(now).map(|failing| failing.message).unwrap_or_default()
        }
    }

    #[test]
    fn one_object_that_breaks_down_is_its_own_trouble() {
        let (mut health, now) = health();
        health.run("well", &Ended::Well, 1, now);
        for second in 0..1_000 {
            health.run("bad", &broke("a trap"), 1, now + SECOND * second);
        }
        let later = now + SECOND * 1_000;
        for total in [1, 2, 3, 10, 1_000] {
            assert_eq!(health.breakdown(total, later), None, "of {total}");
        }
        assert_eq!(health.failing(later).unwrap().objects, 1);
        assert!(health.said(later).contains("bad") && health.said(later).contains("a trap"));
        // Two of many are no sign either.
        health.run("worse", &broke("a trap"), 9, later);
        assert_eq!(health.breakdown(10, later), None);
        assert!(health.breakdown(2, later).is_some(), "but all of them are");
    }

    #[test]
    fn many_objects_that_break_down_are_the_revisions_trouble() {
        for (total, enough) in [(3, 3), (8, 3), (12, 3), (20, 5), (400, 100), (50_000, 100)] {
            let (mut health, now) = health();
            health.run("well", &Ended::Well, 1, now);
            for number in 0..enough {
                assert_eq!(health.breakdown(total, now), None, "{number} of {total}");
                health.run(&format!("o{number}"), &broke("a trap"), IN_A_ROW - 1, now);
                assert_eq!(health.breakdown(total, now), None, "four in a row are none");
                health.run(&format!("o{number}"), &broke("a trap"), 1, now);
            }
            let said = health.breakdown(total, now).unwrap();
            assert!(said.contains(&format!("{enough} of {total} objects")), "{said}");
        }
        // What a guest answers is no breakdown, however often.
        let (mut health, now) = health();
        for number in 0..9 {
            health.run(&format!("o{number}"), &failed("no"), 9, now);
        }
        assert_eq!(health.breakdown(9, now), None);
        assert_eq!(health.failing(now).unwrap().objects, 9);
    }

    #[test]
    fn a_revision_that_has_never_answered_is_ill_with_its_only_object() {
        let (mut health, now) = health();
        health.run("only", &broke("a trap"), 4, now);
        assert_eq!(health.breakdown(1, now), None);
        health.run("only", &broke("a trap"), 1, now);
        let said = health.breakdown(1, now).unwrap();
        assert!(said.starts_with("5 runs in a row") && said.contains("object only: a trap"));
        assert_eq!(health.breakdown(2, now), None, "the other one has not been tried");
    }

    #[test]
    fn what_is_said_follows_the_present_cause() {
        let (mut health, now) = health();
        for name in ["a", "b", "c", "d"] {
            health.run(name, &broke(&format!("trap of {name}")), 5, now);
        }
        let named = |said: &str| said.split("object ").nth(1).unwrap()[..1].to_owned();
        let first = named(health.breakdown(4, now).unwrap());
        assert!(health.said(now).contains(&format!("trap of {first}")));
        // It is deleted: at the next look another one is named.
        health.forget(|key| *key != first, now + SECOND);
        let second = named(health.breakdown(4, now + SECOND).unwrap());
        assert_ne!(first, second);
        assert!(!health.said(now + SECOND).contains(&format!("trap of {first}")));
        // It fails in another way: told, but not at once.
        health.run(&second, &broke("memory"), 5, now + SECOND * 2);
        assert!(health.breakdown(4, now + SECOND * 2).unwrap().contains("trap of"));
        assert!(health.breakdown(4, now + SECOND * 62).unwrap().contains("memory"));
        // All are deleted.
        health.forget(|_| false, now + SECOND * 63);
        assert_eq!(health.breakdown(4, now + SECOND * 63), None);
        assert_eq!(health.failing(now + SECOND * 63), None);
    }

    #[test]
    fn a_failing_object_is_told_after_three_failures_and_seldom_again() {
        let (mut health, now) = health();
        assert!(health.run("a", &failed("no bucket"), 2, now).is_empty());
        assert_eq!(health.failing(now), None);
        let told = health.run("a", &failed("no bucket"), 1, now);
        assert_eq!(told, ["this object's runs keep failing: no bucket"]);
        let hour = (1..3_600).flat_map(|second| {
            health.run("a", &failed(&format!("at {second}")), 1, now + SECOND * second)
        });
        assert_eq!(hour.count(), 5, "six times an hour");
        // One that is told by its own Event is not told twice.
        assert!(health.run("b", &Ended::Refused("never".into()), 9, now).is_empty());
        assert_eq!(health.failing(now).unwrap().objects, 2);
        let long = failed(&"long ".repeat(1_000));
        let told = health.run("c", &long, 3, now);
        assert!(told[0].len() < 400, "{}", told[0].len());
    }

    #[test]
    fn what_is_said_does_not_flap() {
        let (mut health, now) = health();
        let mut changes = 0;
        let mut before = None;
        for second in 0..600 {
            let at = now + SECOND * second;
            health.run("a", &failed(&format!("failed at {second}")), 3, at);
            health.run("a", &Ended::Well, 1, at);
            health.forget(|_| true, at);
            let said = health.failing(at);
            changes += u32::from(said != before);
            before = said;
        }
        assert!(changes <= 11, "{changes} changes in ten minutes");
        health.forget(|_| true, now + SECOND * 610);
        assert_eq!(health.failing(now + SECOND * 610), None, "well at last");
    }

    #[test]
    fn no_more_is_remembered_than_can_be_told() {
        let (mut health, now) = health();
        for number in 0..10_000 {
            health.run(&format!("o{number}"), &broke("a trap"), 5, now);
        }
        assert_eq!(health.objects.len(), REMEMBERED);
        assert!(health.said(now).contains("at least 500 objects"), "{}", health.said(now));
        assert!(health.breakdown(50_000, now).is_some());
        // The objects that are gone leave room.
        health.forget(|_| false, now);
        assert_eq!(health.failing(now), None);
    }

    /// Random runs, deletions and looks against the obvious model: what is told is of objects that exist and fail, as
    /// many as there are, and nothing is told of others.
    #[test]
    fn whatever_happens_what_is_told_is_true() {
        for seed in 1..=200_u64 {
            let mut random = fastrand::Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let mut below = move |bound: u64| random.u64(..) % bound;
            let (mut health, mut now) = health();
            // Failures and breakdowns in a row, and since when it is well.
            let mut model: BTreeMap<String, (u32, u32, Option<Instant>)> = BTreeMap::new();
            for _ in 0..400 {
                let key = format!("o{}", below(8));
                match below(6) {
                    0 => {
                        model.remove(&key);
                        health.forget(|known| *known != key, now);
                    }
                    1 => now += SECOND * u32::try_from(below(8)).unwrap(),
                    2 => {
                        health.ran(&key, &Ended::Well, true, now);
                        if let Some(of) = model.get_mut(&key) {
                            of.2.get_or_insert(now);
                        }
                        model.retain(|_, of| of.0 >= TOLD_AFTER || of.2.is_none());
                    }
                    what => {
                        let breaks = what > 3;
                        let ended = if breaks { broke("trap") } else { failed("no") };
                        health.ran(&key, &ended, true, now);
                        let of = model.entry(key).or_default();
                        *of = (of.0 + 1, if breaks { of.1 + 1 } else { 0 }, None);
                    }
                }
                health.forget(|_| true, now);
                model.retain(|_, of| of.2.is_none_or(|since| now - since < WELL_AFTER));
                let failing: Vec<_> =
                    model.iter().filter(|(_, of)| of.0 >= TOLD_AFTER).map(|(key, _)| key).collect();
                let ill = model.values().filter(|of| of.1 >= IN_A_ROW).count();
                let told = health.failing(now);
                assert_eq!(told.is_some(), !failing.is_empty(), "seed {seed}");
                let names = |said: &str| failing.iter().any(|key| said.contains(&***key));
                assert!(told.is_none_or(|told| names(&told.message)), "seed {seed}");
                let breakdown = health.breakdown(8, now);
                assert_eq!(breakdown.is_some(), ill >= FEW, "seed {seed}: {ill}");
                assert!(breakdown.is_none_or(names), "seed {seed}");
            }
        }
    }
}
