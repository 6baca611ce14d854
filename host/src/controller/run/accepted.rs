//! Decides when the condition `Accepted` of an object is written: once for each state, never in a loop, and again if it
//! could not be; pure.
//!
//! A write of the condition wakes the object, and the run that follows may have other words: a time, a count. So the
//! words of one generation change seldom, and ever more seldom while they keep changing; in between the object is run
//! again when they may. A new generation is judged at once, and an object that is accepted is acquitted at once.
//!
//! Invariants, each held by the test of that name:
//!
//! - `a_message_with_a_time_in_it_is_written_ever_more_seldom`
//! - `a_new_generation_is_said_at_once_with_the_same_words`
//! - `what_could_not_be_written_is_tried_again_and_told_once`
//! - `who_cannot_decide_writes_ever_more_seldom`
//! - `the_last_words_are_said_in_the_end`

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    time::{Duration, Instant},
};

use serde::Deserialize;

use crate::model::object::ObjectKey;

/// Its type, and its reason where the guest refuses the object.
pub(super) const TYPE: &str = "Accepted";
pub(super) const REASON: &str = "Invalid";
/// How long the words of a generation stand at least; doubles while they keep changing.
const STANDS: Duration = Duration::from_secs(30);
/// They never stand longer against new ones.
const STANDS_AT_MOST: Duration = Duration::from_secs(600);
/// The pause after a write that failed; doubles.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
/// It never is longer.
const AFTER_FAILURE_AT_MOST: Duration = Duration::from_secs(300);

/// What the guest says of an object.
#[derive(Clone, Copy, Debug)]
pub(super) struct Opinion<'a> {
    pub(super) uid: &'a str,
    pub(super) generation: Option<i64>,
    pub(super) message: &'a str,
}

/// What the object shows of it.
#[derive(Debug)]
pub(super) enum Shown {
    /// Its kind has no place for conditions.
    Nowhere,
    /// The condition, if there is one.
    Here(Option<Condition>),
}

/// The condition as it stands on the object.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Condition {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) status: String,
    pub(super) reason: String,
    pub(super) message: String,
    pub(super) observed_generation: Option<i64>,
    pub(super) last_transition_time: Option<String>,
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing.
    Rest,
    /// Write it.
    Write,
    /// Run the object again after this long: then it may be written.
    Wait(Duration),
}

/// A write that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failed {
    /// When it may be tried again.
    pub(super) wait: Duration,
    /// Whether it is to be told.
    pub(super) tell: bool,
}

/// What was said of objects, and when.
#[derive(Debug, Default)]
pub struct Ledger(HashMap<ObjectKey, Record>);

#[derive(Debug)]
struct Record {
    uid: Box<str>,
    said: Option<Said>,
    /// Whether a condition like ours stayed when ours was taken back: somebody else's.
    is_foreign: bool,
    /// In a row.
    failures: u32,
    next_try: Option<Instant>,
}

#[derive(Debug)]
struct Said {
    generation: Option<i64>,
    /// `None`: it was taken back.
    words: Option<u64>,
    at: Instant,
    /// How often the words of this generation have changed, each time as soon as they could.
    changes: u32,
}

impl Shown {
    /// What an object shows, by its JSON text.
    pub(super) fn of(body: &str) -> Self {
        #[derive(Default, Deserialize)]
        struct Object {
            #[serde(default)]
            status: Status,
        }
        #[derive(Default, Deserialize)]
        struct Status {
            #[serde(default)]
            conditions: Vec<Condition>,
        }
        // Most objects have none, and are not worth a second look.
        if !body.contains(r#""Accepted""#) {
            return Self::Here(None);
        }
        let conditions = serde_json::from_str(body).map(|object: Object| object.status.conditions);
        let mut conditions = conditions.unwrap_or_default().into_iter();
        Self::Here(conditions.find(|condition| condition.kind == TYPE))
    }

    /// The condition, if it refuses the object.
    pub(super) fn refusal(&self) -> Option<&Condition> {
        let Self::Here(Some(condition)) = self else { return None };
        Some(condition).filter(|one| one.status == "False" && one.reason == REASON)
    }
}

impl Ledger {
    /// The guest refuses the object.
    pub(super) fn refused(
        &mut self,
        key: &ObjectKey,
        verdict: Opinion<'_>,
        shown: &Shown,
        now: Instant,
    ) -> Step {
        let says = |condition: &Condition| {
            condition.message == verdict.message
                && condition.observed_generation == verdict.generation
        };
        if shown.refusal().is_some_and(says) {
            // Also after a restart, and after a write whose answer was lost.
            let record = self.record(key, verdict.uid);
            (record.failures, record.next_try) = (0, None);
            if !record.says_something() {
                record.said = Some(Said::new(verdict.generation, Some(verdict.message), now));
            }
            return Step::Rest;
        }
        let Some(record) = self.of(key, verdict.uid) else { return Step::Write };
        if let Some(wait) = record.pause(now) {
            return Step::Wait(wait);
        }
        let Some(said) = &record.said else { return Step::Write };
        let is_same = said.words == Some(words(verdict.message));
        match shown {
            _ if said.generation != verdict.generation => Step::Write,
            Shown::Nowhere if is_same => Step::Rest,
            _ => said.may_change(now).map_or(Step::Write, Step::Wait),
        }
    }

    /// It was said.
    pub(super) fn written(&mut self, key: &ObjectKey, verdict: Opinion<'_>, now: Instant) {
        let record = self.record(key, verdict.uid);
        record.is_foreign = false;
        record.say(Said::new(verdict.generation, Some(verdict.message), now));
    }

    /// It could not be written, or not be taken back.
    pub(super) fn failed(&mut self, key: &ObjectKey, uid: &str, now: Instant) -> Failed {
        let record = self.record(key, uid);
        let doublings = record.failures.min(16);
        let wait = AFTER_FAILURE.saturating_mul(1 << doublings).min(AFTER_FAILURE_AT_MOST);
        record.failures = record.failures.saturating_add(1);
        record.next_try = Some(now + wait);
        Failed { wait, tell: record.failures == 1 }
    }

    /// The guest accepts the object.
    pub(super) fn accepted(
        &mut self,
        key: &ObjectKey,
        uid: &str,
        shown: &Shown,
        now: Instant,
    ) -> Step {
        let is_marked = shown.refusal().is_some();
        let Some(record) = self.of(key, uid) else {
            return if is_marked { Step::Write } else { Step::Rest };
        };
        if matches!(shown, Shown::Nowhere) {
            self.0.remove(key);
            return Step::Rest;
        }
        if record.says_something() || (is_marked && !record.is_foreign) {
            return record.pause(now).map_or(Step::Write, Step::Wait);
        }
        if !is_marked && record.said.as_ref().is_none_or(|said| said.is_calm(now)) {
            self.0.remove(key);
        }
        Step::Rest
    }

    /// It was taken back; what still stands there afterwards is not ours.
    pub(super) fn taken_back(
        &mut self,
        key: &ObjectKey,
        (uid, generation): (&str, Option<i64>),
        shown: &Shown,
        now: Instant,
    ) {
        let record = self.record(key, uid);
        record.is_foreign = shown.refusal().is_some();
        record.say(Said::new(generation, None, now));
    }

    /// The object is gone, or no longer the controller's.
    pub(super) fn forget(&mut self, key: &ObjectKey) {
        self.0.remove(key);
    }

    fn of(&self, key: &ObjectKey, uid: &str) -> Option<&Record> {
        self.0.get(key).filter(|record| &*record.uid == uid)
    }

    /// Of this object; what is known of another one of its name is forgotten.
    fn record(&mut self, key: &ObjectKey, uid: &str) -> &mut Record {
        let new = || Record {
            uid: uid.into(),
            said: None,
            is_foreign: false,
            failures: 0,
            next_try: None,
        };
        let record = self.0.entry(key.clone()).or_insert_with(new);
        if &*record.uid != uid {
            *record = new();
        }
        record
    }
}

impl Record {
    fn says_something(&self) -> bool {
        self.said.as_ref().is_some_and(|said| said.words.is_some())
    }

    fn say(&mut self, mut new: Said) {
        (self.failures, self.next_try) = (0, None);
        if let Some(old) = self.said.take().filter(|old| old.generation == new.generation) {
            new.changes = if old.is_calm(new.at) { 0 } else { old.changes.saturating_add(1) };
        }
        self.said = Some(new);
    }

    fn pause(&self, now: Instant) -> Option<Duration> {
        let wait = self.next_try?.saturating_duration_since(now);
        Some(wait).filter(|wait| !wait.is_zero())
    }
}

impl Said {
    fn new(generation: Option<i64>, message: Option<&str>, at: Instant) -> Self {
        Self { generation, words: message.map(words), at, changes: 0 }
    }

    fn stands(&self) -> Duration {
        STANDS.saturating_mul(1 << self.changes.min(8)).min(STANDS_AT_MOST)
    }

    /// How much longer it stands against other words.
    fn may_change(&self, now: Instant) -> Option<Duration> {
        let wait = (self.at + self.stands()).saturating_duration_since(now);
        Some(wait).filter(|wait| !wait.is_zero())
    }

    /// Whether it has stood for so long that the next change is as good as the first.
    fn is_calm(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.at) >= 2 * STANDS_AT_MOST
    }
}

/// The words as a number: an object is known for as long as it is refused.
fn words(message: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    message.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// An object with a status that may be written, run as the queue would run it.
    struct World {
        ledger: Ledger,
        now: Instant,
        generation: i64,
        shown: Option<Condition>,
        refuses: bool,
        writes: u32,
        due: Option<Instant>,
    }

    impl World {
        #[expect(clippy::disallowed_methods, reason = "an arbitrary starting point")]
        fn new() -> Self {
            Self {
                ledger: Ledger::default(),
                now: Instant::now(),
                generation: 1,
                shown: None,
                refuses: false,
                writes: 0,
                due: None,
            }
        }

        fn key() -> ObjectKey {
            ObjectKey::new(Some("n"), "o")
        }

        /// A run that refuses the object; runs again as long as its own writes wake it.
        fn refuse(&mut self, message: impl Fn(&Self) -> String) -> Step {
            loop {
                let message = message(self);
                let verdict =
                    Opinion { uid: "u", generation: Some(self.generation), message: &message };
                let shown = Shown::Here(self.shown.clone());
                let step = self.ledger.refused(&Self::key(), verdict, &shown, self.now);
                self.due = match step {
                    Step::Wait(wait) => Some(self.now + wait),
                    _ => None,
                };
                if step != Step::Write {
                    return step;
                }
                self.writes += 1;
                if self.refuses {
                    let failed = self.ledger.failed(&Self::key(), "u", self.now);
                    self.due = Some(self.now + failed.wait);
                    return Step::Wait(failed.wait);
                }
                self.ledger.written(&Self::key(), verdict, self.now);
                self.shown = Some(Condition {
                    kind: TYPE.into(),
                    status: "False".into(),
                    reason: REASON.into(),
                    observed_generation: Some(self.generation),
                    message,
                    last_transition_time: None,
                });
                self.now += Duration::from_millis(5);
            }
        }

        fn accept(&mut self) -> Step {
            let shown = Shown::Here(self.shown.clone());
            let step = self.ledger.accepted(&Self::key(), "u", &shown, self.now);
            if step == Step::Write {
                self.writes += 1;
                let of = ("u", Some(self.generation));
                self.ledger.taken_back(&Self::key(), of, &shown, self.now);
                self.shown = None;
            }
            step
        }
    }

    #[test]
    fn a_message_with_a_time_in_it_is_written_ever_more_seldom() {
        let mut world = World::new();
        let start = world.now;
        let hour = start + SECOND * 3_600;
        while world.now < hour {
            let told = world.writes;
            world.refuse(|world| format!("at {:?}", world.now));
            assert!(world.writes <= told + 1, "its own write leads to no other");
            world.now = world.due.unwrap();
        }
        assert!((8..=12).contains(&world.writes), "{} writes in an hour", world.writes);
        // Also if it is woken all the time.
        let (mut world, start) = (World::new(), world.now);
        world.now = start;
        for _ in 0..3_600 {
            world.refuse(|world| format!("at {:?}", world.now));
            world.now += SECOND;
        }
        assert!((8..=12).contains(&world.writes), "{} writes in an hour", world.writes);
    }

    #[test]
    fn a_new_generation_is_said_at_once_with_the_same_words() {
        let mut world = World::new();
        for generation in 1..=9 {
            world.generation = generation;
            assert_eq!(world.refuse(|_| "no such colour".into()), Step::Rest);
            assert_eq!(world.shown.as_ref().unwrap().observed_generation, Some(generation));
            assert_eq!(world.writes, u32::try_from(generation).unwrap());
            assert_eq!(world.refuse(|_| "no such colour".into()), Step::Rest);
        }
        // A host that knows nothing of it reads it on the object.
        world.ledger = Ledger::default();
        assert_eq!(world.refuse(|_| "no such colour".into()), Step::Rest);
        assert_eq!(world.writes, 9);
        assert_eq!((world.accept(), world.accept()), (Step::Write, Step::Rest));
        world.now += SECOND * 1_200;
        assert_eq!((world.accept(), world.ledger.0.len()), (Step::Rest, 0), "nothing is left");
    }

    #[test]
    fn what_could_not_be_written_is_tried_again_and_told_once() {
        let mut world = World::new();
        world.refuses = true;
        let mut waits = vec![];
        for _ in 0..12 {
            let Step::Wait(wait) = world.refuse(|_| "no".into()) else { panic!("it waits") };
            waits.push(wait.as_secs());
            // Whoever wakes it meanwhile changes nothing.
            assert!(matches!(world.refuse(|_| "no".into()), Step::Wait(_)));
            world.now = world.due.unwrap();
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        assert_eq!(world.writes, 12);
        let mut told = Ledger::default();
        let tell = (0..9).map(|_| told.failed(&World::key(), "u", world.now).tell);
        assert_eq!(tell.filter(|tell| *tell).count(), 1);
        world.refuses = false;
        assert_eq!(world.refuse(|_| "no".into()), Step::Rest);
        assert!(world.ledger.failed(&World::key(), "u", world.now).tell, "a new trouble");
        // Taking it back is tried again in the same way.
        assert!(matches!(world.accept(), Step::Wait(_)));
        world.now += SECOND * 2;
        assert_eq!(world.accept(), Step::Write);
    }

    #[test]
    fn who_cannot_decide_writes_ever_more_seldom() {
        let mut world = World::new();
        for _ in 0..36_000 {
            world.refuse(|_| "no".into());
            world.accept();
            world.now += Duration::from_millis(100);
        }
        assert!((10..=24).contains(&world.writes), "{} writes in an hour", world.writes);
        // A new generation is another matter.
        world.generation += 1;
        let before = world.writes;
        assert_eq!((world.refuse(|_| "no".into()), world.accept()), (Step::Rest, Step::Write));
        assert_eq!(world.writes, before + 2);
    }

    #[test]
    fn a_condition_of_somebody_else_is_let_alone() {
        let mut world = World::new();
        let theirs = Condition {
            kind: TYPE.into(),
            status: "False".into(),
            reason: REASON.into(),
            ..Condition::default()
        };
        world.shown = Some(theirs.clone());
        assert_eq!(world.accept(), Step::Write, "nobody knows whose it is");
        world.shown = Some(theirs);
        for _ in 0..9 {
            assert_eq!(world.accept(), Step::Rest);
        }
        world.now += SECOND * 60;
        assert_eq!(world.refuse(|_| "no".into()), Step::Rest, "ours is said");
        assert_eq!(world.writes, 2);
        assert_eq!(world.accept(), Step::Write, "and taken back");
    }

    #[test]
    fn a_kind_without_conditions_is_told_once_for_each_message() {
        let (mut ledger, key) = (Ledger::default(), World::key());
        let now = World::new().now;
        let mut told = 0;
        for second in 0..100 {
            let verdict = Opinion { uid: "u", generation: Some(1), message: "no" };
            let at = now + SECOND * second;
            if ledger.refused(&key, verdict, &Shown::Nowhere, at) == Step::Write {
                ledger.written(&key, verdict, at);
                told += 1;
            }
        }
        assert_eq!(told, 1);
        assert_eq!(ledger.accepted(&key, "u", &Shown::Nowhere, now), Step::Rest);
        assert!(ledger.0.is_empty());
    }

    #[test]
    fn the_condition_is_read_from_the_object() {
        let body = json!({"spec": {"type": "Accepted"}, "status": {"conditions": [
            {"type": "Ready", "status": "False", "reason": "Invalid"},
            {"type": "Accepted", "status": "False", "reason": "Invalid", "message": "m",
             "observedGeneration": 3, "lastTransitionTime": "t", "other": [1]},
        ]}});
        let shown = Shown::of(&body.to_string());
        let refusal = shown.refusal().unwrap();
        assert_eq!((&*refusal.message, refusal.observed_generation), ("m", Some(3)));
        for other in ["{}", r#"{"spec":"Accepted"}"#, r#"{"status":{"conditions":"Accepted"}}"#] {
            assert_eq!(Shown::of(other).refusal(), None, "{other}");
        }
    }

    /// Random words, generations, failures, foreign hands and wakes: in the end the last words of the last generation
    /// stand there, or nothing does, and never were there more writes than time allows.
    #[test]
    fn the_last_words_are_said_in_the_end() {
        for seed in 1..=200_u64 {
            let mut random = fastrand::Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let mut below = move |bound: u64| random.u64(..) % bound;
            let mut world = World::new();
            let (mut words, mut refuses) = (0, true);
            let mut hands = 1;
            for _ in 0..200 {
                match below(10) {
                    0 => (world.generation, hands) = (world.generation + 1, hands + 1),
                    1 => words = below(1_000),
                    2 => refuses = below(3) > 0,
                    3 => world.refuses = below(2) == 0,
                    4 if below(4) == 0 => world.shown = None,
                    5 if below(9) == 0 => (world.ledger, hands) = (Ledger::default(), hands + 1),
                    _ => world.now += SECOND * u32::try_from(below(20)).unwrap(),
                }
                if refuses {
                    world.refuse(|_| format!("words {words}"));
                } else {
                    world.accept();
                }
            }
            let most = hands * 60;
            assert!(world.writes <= most, "seed {seed}: {} of {most} writes", world.writes);
            world.refuses = false;
            for _ in 0..3 {
                world.refuse(|_| format!("words {words}"));
                if let Some(due) = world.due {
                    world.now = due;
                }
            }
            let shown = world.shown.clone().unwrap();
            let expected = (format!("words {words}"), Some(world.generation));
            assert_eq!((shown.message, shown.observed_generation), expected, "seed {seed}");
            world.now += SECOND * 600;
            world.accept();
            assert_eq!(world.shown, None, "seed {seed}");
        }
    }
}
