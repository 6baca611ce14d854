//! Decides which object of a controller runs next; pure.
//!
//! There is one [`Queue`] per controller, never one per revision: swapping revisions moves no work, and
//! two revisions can never run one object at the same time. It is client-go's work queue with
//! controller-runtime's priorities: a set of keys, ready ones by priority and then by arrival, waiting
//! ones by due time, and a key in flight in neither. Three flaws of the field are not copied: a key nobody waits
//! for comes up after a minute, failures that an event has cut short do not add up, and retries of all keys
//! share a rate.
//!
//! Invariants, each held by the test of that name:
//!
//! - `a_key_is_in_flight_at_most_once_and_none_is_lost`
//! - `a_change_during_a_run_runs_again_once`
//! - `many_changes_cost_one_run`
//! - `the_higher_priority_and_the_earlier_time_win`
//! - `failures_back_off_and_success_forgets`
//! - `a_failure_counts_only_if_half_of_its_delay_had_passed`
//! - `only_news_cut_a_backoff`
//! - `what_may_pass_is_tried_slowly_and_apart_from_failures`
//! - `nothing_cuts_a_hold`
//! - `a_key_that_waited_a_minute_comes_up`
//! - `retries_share_a_rate_and_first_runs_do_not`
//!
//! The queue reads no clock and awaits nothing: callers pass `now` and sleep until [`Queue::next_due`].

pub mod shared;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    hash::Hash,
    time::{Duration, Instant},
};

use crate::rate::Bucket;

/// Priority of a change.
pub const CHANGE: i32 = 0;
/// Priority of what nobody waits for: the initial list, a resync, the re-run after a promotion.
pub const BACKGROUND: i32 = -100;
/// A key that was ready for so long at a negative priority is promoted to [`CHANGE`].
const AGES_AFTER: Duration = Duration::from_secs(60);
/// Retries a second of one controller, and how many at once: client-go's values.
const RETRIES: (f64, f64) = (10.0, 100.0);
/// No delay is longer: beyond it a clock may end.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);

/// How long a key waits whose run was refused for a state that others may change: nobody is to be asked much, and
/// nobody is to wait for half a day.
const SLOW: Backoff = Backoff { base: Duration::from_secs(15), max: Duration::from_secs(10 * 60) };

/// The keys of one controller that are to run.
#[derive(Debug)]
pub struct Queue<K> {
    backoff: Backoff,
    retries: Bucket,
    entries: HashMap<K, Entry>,
    ready: BTreeMap<(Reverse<i32>, u64), K>,
    /// The ready keys of a negative priority, by how long they have been ready.
    ageing: BTreeMap<(Instant, u64), K>,
    waiting: BTreeMap<(Instant, u64), K>,
    /// Keys that failed: what is due still needs a token.
    retrying: BTreeMap<(Instant, u64), K>,
    depth: BTreeMap<i32, usize>,
    in_flight: HashMap<K, Instant>,
    arrivals: u64,
    promoted: u64,
}

/// How long a failing key waits before its next try.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// Delay after the first failure; doubles with each failure after it.
    pub base: Duration,
    /// The delay never exceeds this.
    pub max: Duration,
}

impl Default for Backoff {
    /// The field's values: 5 ms, doubling, at most 1,000 s.
    fn default() -> Self {
        Self { base: Duration::from_millis(5), max: Duration::from_secs(1_000) }
    }
}

/// How much a wake-up matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Urgency {
    /// The higher one runs first.
    pub priority: i32,
    /// Whether it ends the backoff of a failure: the state is another than the one that failed.
    pub is_news: bool,
}

impl Urgency {
    /// What may make a failing run succeed.
    pub const fn news(priority: i32) -> Self {
        Self { priority, is_news: true }
    }

    /// What is worth a run, but not an early retry: a status written, a resync.
    pub const fn touch(priority: i32) -> Self {
        Self { priority, is_news: false }
    }

    /// Both at once.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self { priority: self.priority.max(other.priority), is_news: self.is_news || other.is_news }
    }
}

/// What became of a run, as far as the queue cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Wait for the next change; failures are forgotten.
    Done,
    /// Run again after this long, or sooner after a change; failures are forgotten.
    RequeueAfter(Duration),
    /// Run again after the backoff.
    Failed,
    /// Run again after a slow backoff of its own: it was refused for a state that others may change, of which nobody
    /// may tell.
    Slow,
    /// Run again after this long, or sooner after a change, without counting a failure: the run could not even be tried.
    Postponed(Duration),
    /// The same, and not sooner whatever happens: a server has asked for it.
    Held(Duration),
}

/// A key that was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken<K> {
    /// The key.
    pub key: K,
    /// How long it was ready.
    pub waited: Duration,
    /// Failures in a row before this run.
    pub failures: u32,
}

#[derive(Debug, Default)]
struct Entry {
    place: Place,
    /// What was asked for while in flight.
    again: Option<(Instant, Urgency)>,
    failures: u32,
    /// The same of refusals that may pass: the two back off apart from each other.
    refusals: u32,
    /// When the last failure was, and how long it was to wait then.
    planned: Option<(Instant, Duration)>,
    /// Whether another failure of this run counts.
    counts: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Nowhere,
    Ready {
        priority: i32,
        arrival: u64,
        since: Instant,
    },
    Waiting {
        priority: i32,
        arrival: u64,
        due: Instant,
        until: Until,
    },
    InFlight {
        priority: i32,
    },
}

/// What ends a wait before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    /// Every wake-up.
    Woken,
    /// News.
    News,
    /// Nothing.
    Due,
}

impl<K: Clone + Eq + Hash> Queue<K> {
    /// An empty queue.
    pub fn new(backoff: Backoff) -> Self {
        Self {
            backoff,
            retries: Bucket::new(RETRIES.0, RETRIES.1),
            entries: HashMap::new(),
            ready: BTreeMap::new(),
            ageing: BTreeMap::new(),
            waiting: BTreeMap::new(),
            retrying: BTreeMap::new(),
            depth: BTreeMap::new(),
            in_flight: HashMap::new(),
            arrivals: 0,
            promoted: 0,
        }
    }

    /// Asks for `key` to run at `due`, or sooner if it was to run sooner, with the higher priority of the two. A key
    /// that failed stays where it is unless this is news, and one that is held in any case.
    pub fn add(&mut self, key: &K, urgency: Urgency, due: Instant, now: Instant) {
        self.put_or_keep(key, urgency, (due, Until::Woken), now);
    }

    /// Takes the first ready key; give it back with [`Queue::done`].
    pub fn take(&mut self, now: Instant) -> Option<Taken<K>> {
        self.advance(now);
        let (_, key) = self.ready.first_key_value()?;
        let key = key.clone();
        let entry = self.entries.get_mut(&key)?;
        let place = std::mem::take(&mut entry.place);
        let Place::Ready { priority, since, .. } = place else { return None };
        entry.place = Place::InFlight { priority };
        entry.counts = entry
            .planned
            .is_none_or(|(failed, delay)| now.saturating_duration_since(failed) >= delay / 2);
        let failures = entry.failures.saturating_add(entry.refusals);
        self.remove(place);
        self.in_flight.insert(key.clone(), now);
        Some(Taken { key, waited: now.saturating_duration_since(since), failures })
    }

    /// Ends a run started by [`Queue::take`].
    pub fn done(&mut self, key: &K, outcome: Outcome, now: Instant) {
        self.in_flight.remove(key);
        let Some(entry) = self.entries.get_mut(key) else { return };
        let Place::InFlight { priority } = entry.place else { return };
        entry.place = Place::Nowhere;
        let wait = match outcome {
            Outcome::Done => None,
            Outcome::RequeueAfter(delay) | Outcome::Postponed(delay) => Some((delay, Until::Woken)),
            Outcome::Held(delay) => Some((delay, Until::Due)),
            Outcome::Failed => Some(entry.failed(self.backoff, now)),
            Outcome::Slow => Some(entry.refused(now)),
        };
        let wait = wait.map(|(delay, until)| (delay.min(LONGEST), until));
        if matches!(outcome, Outcome::Done | Outcome::RequeueAfter(_)) {
            entry.forget_failures();
        }
        let again = entry.again.take();
        if again.is_none() && wait.is_none() {
            self.entries.remove(key);
        }
        if let Some((delay, until)) = wait {
            let due = now + delay;
            self.put_or_keep(key, Urgency::touch(priority), (due, until), now);
        }
        if let Some((due, urgency)) = again {
            self.add(key, urgency, due, now);
        }
    }

    /// Forgets all failures: the next failure starts again at the base delay.
    pub fn forget_failures(&mut self) {
        self.entries.values_mut().for_each(Entry::forget_failures);
    }

    /// When [`Queue::take`] next has a reason to be called; `now` or earlier if a key is ready.
    pub fn next_due(&self, now: Instant) -> Option<Instant> {
        if !self.ready.is_empty() {
            return Some(now);
        }
        let first =
            |of: &BTreeMap<(Instant, u64), K>| of.first_key_value().map(|((due, _), _)| *due);
        let retry = first(&self.retrying).map(|due| due.max(now + self.retries.wait(now)));
        first(&self.waiting).into_iter().chain(retry).min()
    }

    /// How many keys are ready, by priority.
    pub fn depth(&self) -> &BTreeMap<i32, usize> {
        &self.depth
    }

    /// How many keys wait for a time of their own.
    pub fn later(&self) -> usize {
        self.waiting.len() + self.retrying.len()
    }

    /// How many keys were promoted because of their age since the last call.
    pub fn take_promoted(&mut self) -> u64 {
        std::mem::take(&mut self.promoted)
    }

    /// Since when each key in flight runs.
    pub fn in_flight(&self) -> impl Iterator<Item = (&K, Instant)> {
        self.in_flight.iter().map(|(key, since)| (key, *since))
    }

    /// How many keys are known: ready, waiting, in flight, or remembered for their failures.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no key is known.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn put_or_keep(
        &mut self,
        key: &K,
        urgency: Urgency,
        (due, until): (Instant, Until),
        now: Instant,
    ) {
        let place = match self.entries.get_mut(key) {
            None => Place::Nowhere,
            Some(entry) => match entry.place {
                Place::InFlight { .. } => {
                    let (earlier, more) = entry.again.unwrap_or((due, urgency));
                    entry.again = Some((earlier.min(due), more.max(urgency)));
                    return;
                }
                place => place,
            },
        };
        let (due, until, priority) = match place {
            Place::Ready { priority: old, .. } if old >= urgency.priority => return,
            Place::Ready { since, .. } => (since.min(due), until, urgency.priority),
            Place::Waiting { due: old, until: end, priority, .. } => {
                let ends = match end {
                    Until::Woken => true,
                    Until::News => urgency.is_news,
                    Until::Due => false,
                };
                let (due, until) = if ends && due <= old { (due, until) } else { (old, end) };
                (due, until, priority.max(urgency.priority))
            }
            Place::Nowhere | Place::InFlight { .. } => (due, until, urgency.priority),
        };
        self.remove(place);
        let since = if let Place::Ready { since, .. } = place { since } else { now };
        self.put(key.clone(), priority, (due, until), (now, since));
    }

    /// Moves what is due from waiting to ready, each to the end of its priority, and up what has waited for long.
    fn advance(&mut self, now: Instant) {
        while let Some((slot, key)) = first_due(&mut self.waiting, now) {
            self.make_ready(key, slot, now);
        }
        while self.retries.wait(now).is_zero()
            && let Some((slot, key)) = first_due(&mut self.retrying, now)
        {
            let _ = self.retries.take(now);
            self.make_ready(key, slot, now);
        }
        while let Some(((since, _), key)) = self.ageing.first_key_value() {
            if now.saturating_duration_since(*since) < AGES_AFTER {
                return;
            }
            let (since, key) = (*since, key.clone());
            let Some(entry) = self.entries.get(&key) else { return };
            self.remove(entry.place);
            self.promoted += 1;
            self.put(key, CHANGE, (since, Until::Woken), (now, since));
        }
    }

    fn make_ready(&mut self, key: K, due: Instant, now: Instant) {
        let priority = match self.entries.get(&key).map(|entry| entry.place) {
            Some(Place::Waiting { priority, .. }) => priority,
            _ => BACKGROUND,
        };
        self.put(key, priority, (due, Until::Woken), (now, due));
    }

    fn put(
        &mut self,
        key: K,
        priority: i32,
        (due, until): (Instant, Until),
        (now, since): (Instant, Instant),
    ) {
        let arrival = self.arrivals;
        self.arrivals += 1;
        let place = if due <= now && until != Until::News {
            self.ready.insert((Reverse(priority), arrival), key.clone());
            *self.depth.entry(priority).or_default() += 1;
            if priority < CHANGE {
                self.ageing.insert((since, arrival), key.clone());
            }
            Place::Ready { priority, arrival, since }
        } else {
            self.waiting(until).insert((due, arrival), key.clone());
            Place::Waiting { priority, arrival, due, until }
        };
        self.entries.entry(key).or_default().place = place;
    }

    fn remove(&mut self, place: Place) {
        match place {
            Place::Ready { priority, arrival, since } => {
                self.ready.remove(&(Reverse(priority), arrival));
                self.ageing.remove(&(since, arrival));
                if let Some(count) = self.depth.get_mut(&priority) {
                    *count -= 1;
                }
            }
            Place::Waiting { due, arrival, until, .. } => {
                self.waiting(until).remove(&(due, arrival));
            }
            Place::Nowhere | Place::InFlight { .. } => (),
        }
    }

    fn waiting(&mut self, until: Until) -> &mut BTreeMap<(Instant, u64), K> {
        if until == Until::News { &mut self.retrying } else { &mut self.waiting }
    }
}

impl Entry {
    fn failed(&mut self, backoff: Backoff, now: Instant) -> (Duration, Until) {
        if self.counts || self.failures == 0 {
            self.failures = self.failures.saturating_add(1);
        }
        self.wait(backoff.delay(self.failures), now)
    }

    fn refused(&mut self, now: Instant) -> (Duration, Until) {
        if self.counts || self.refusals == 0 {
            self.refusals = self.refusals.saturating_add(1);
        }
        self.wait(SLOW.delay(self.refusals), now)
    }

    fn wait(&mut self, delay: Duration, now: Instant) -> (Duration, Until) {
        self.planned = Some((now, delay));
        (delay, Until::News)
    }

    fn forget_failures(&mut self) {
        (self.failures, self.refusals, self.planned) = (0, 0, None);
    }
}

fn first_due<K>(of: &mut BTreeMap<(Instant, u64), K>, now: Instant) -> Option<(Instant, K)> {
    let first = of.first_entry().filter(|entry| entry.key().0 <= now)?;
    let ((due, _), key) = first.remove_entry();
    Some((due, key))
}

impl Backoff {
    fn delay(self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        self.base.saturating_mul(1 << doublings).min(self.max)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn queue() -> (Queue<u64>, Instant) {
        (Queue::new(Backoff { base: SECOND, max: SECOND * 60 }), epoch())
    }

    #[expect(clippy::disallowed_methods, reason = "an arbitrary starting point")]
    fn epoch() -> Instant {
        Instant::now()
    }

    const NEWS: Urgency = Urgency::news(CHANGE);
    const TOUCH: Urgency = Urgency::touch(CHANGE);
    const BEHIND: Urgency = Urgency::news(BACKGROUND);

    fn take(queue: &mut Queue<u64>, now: Instant) -> Option<u64> {
        queue.take(now).map(|taken| taken.key)
    }

    #[test]
    fn a_change_during_a_run_runs_again_once() {
        let (mut queue, now) = queue();
        queue.add(&1, NEWS, now, now);
        assert_eq!(take(&mut queue, now), Some(1));
        queue.add(&1, NEWS, now, now);
        queue.add(&1, BEHIND, now, now);
        assert_eq!(take(&mut queue, now), None);
        queue.done(&1, Outcome::Done, now);
        assert_eq!(take(&mut queue, now), Some(1));
        queue.done(&1, Outcome::Done, now);
        assert_eq!(take(&mut queue, now), None);
        assert!(queue.is_empty(), "a finished key leaves nothing behind");
    }

    #[test]
    fn many_changes_cost_one_run() {
        let (mut queue, now) = queue();
        for _ in 0..100 {
            queue.add(&1, NEWS, now, now);
            queue.add(&2, NEWS, now, now);
        }
        assert_eq!(queue.depth()[&CHANGE], 2);
        for key in [1, 2] {
            assert_eq!(take(&mut queue, now), Some(key), "in order of arrival");
            queue.done(&key, Outcome::Done, now);
        }
        assert_eq!((take(&mut queue, now), queue.depth()[&CHANGE]), (None, 0));
    }

    #[test]
    fn the_higher_priority_and_the_earlier_time_win() {
        let (mut queue, now) = queue();
        queue.add(&1, BEHIND, now, now);
        queue.add(&2, BEHIND, now, now);
        queue.add(&3, BEHIND, now + SECOND * 9, now);
        queue.add(&3, NEWS, now + SECOND * 99, now);
        queue.add(&2, NEWS, now, now);
        queue.add(&2, BEHIND, now, now);
        assert_eq!(take(&mut queue, now), Some(2), "the change overtakes");
        assert_eq!(queue.depth()[&BACKGROUND], 1);
        let later = now + SECOND * 9;
        assert_eq!(
            take(&mut queue, later),
            Some(3),
            "due at the earlier time, at the higher priority"
        );
        assert_eq!(queue.take(later), Some(Taken { key: 1, waited: SECOND * 9, failures: 0 }));
        queue.done(&2, Outcome::RequeueAfter(SECOND), later);
        assert_eq!(queue.next_due(later), Some(later + SECOND));
    }

    #[test]
    fn failures_back_off_and_success_forgets() {
        let (mut queue, mut now) = queue();
        queue.add(&1, NEWS, now, now);
        for (failures, expected) in [1, 2, 4, 8, 16, 32, 60, 60].into_iter().enumerate() {
            let taken = queue.take(now).unwrap();
            assert_eq!(taken.failures as usize, failures);
            queue.done(&1, Outcome::Failed, now);
            assert_eq!(queue.next_due(now), Some(now + SECOND * expected));
            now += SECOND * expected;
        }
        assert!(queue.take(now).is_some());
        queue.done(&1, Outcome::RequeueAfter(SECOND * 9), now);
        now += SECOND * 9;
        assert_eq!(queue.take(now).unwrap().failures, 0);
        queue.done(&1, Outcome::Failed, now);
        queue.forget_failures();
        now += SECOND;
        assert_eq!(queue.take(now).unwrap().failures, 0);
        queue.done(&1, Outcome::Done, now);
        assert!(queue.is_empty());
    }

    #[test]
    fn a_failure_counts_only_if_half_of_its_delay_had_passed() {
        let (mut queue, mut now) = queue();
        queue.add(&1, NEWS, now, now);
        let runs = [(0, 0), (0, 1), (0, 1), (1, 1), (0, 2), (0, 2), (1, 2), (1, 3), (2, 3)];
        for (passed, failures) in runs {
            now += SECOND * passed;
            queue.add(&1, NEWS, now, now);
            assert_eq!(queue.take(now).unwrap().failures, failures, "after {passed} s");
            queue.done(&1, Outcome::Failed, now);
        }
        assert_eq!(queue.next_due(now), Some(now + SECOND * 8), "four failures have counted");
    }

    #[test]
    fn only_news_cut_a_backoff() {
        let (mut queue, now) = queue();
        let failed = |queue: &mut Queue<u64>, meanwhile| {
            queue.add(&1, NEWS, now, now);
            assert_eq!(take(queue, now), Some(1));
            if let Some(urgency) = meanwhile {
                queue.add(&1, urgency, now, now);
            }
            queue.done(&1, Outcome::Failed, now);
        };
        failed(&mut queue, None);
        queue.add(&1, TOUCH, now, now);
        assert_eq!(take(&mut queue, now), None);
        queue.add(&1, NEWS, now, now);
        assert_eq!(take(&mut queue, now), Some(1));
        queue.done(&1, Outcome::Done, now);
        failed(&mut queue, Some(TOUCH));
        assert_eq!(take(&mut queue, now), None);
        queue.add(&1, NEWS, now, now);
        assert_eq!(take(&mut queue, now), Some(1));
        queue.done(&1, Outcome::Done, now);
        failed(&mut queue, Some(NEWS));
        assert_eq!(take(&mut queue, now), Some(1));
        queue.done(&1, Outcome::RequeueAfter(SECOND * 9), now);
        queue.add(&1, TOUCH, now, now);
        assert_eq!(take(&mut queue, now), Some(1), "requeue-after is no backoff");
    }

    #[test]
    fn what_may_pass_is_tried_slowly_and_apart_from_failures() {
        let (mut queue, mut now) = queue();
        queue.add(&1, NEWS, now, now);
        for (refusals, expected) in [15, 30, 60, 120, 240, 480, 600, 600].into_iter().enumerate() {
            assert_eq!(queue.take(now).unwrap().failures as usize, refusals);
            queue.done(&1, Outcome::Slow, now);
            queue.add(&1, TOUCH, now, now);
            assert_eq!(take(&mut queue, now), None, "only news cut it short");
            assert_eq!(queue.next_due(now), Some(now + SECOND * expected));
            now += SECOND * expected;
        }
        assert!(queue.take(now).is_some());
        queue.done(&1, Outcome::Failed, now);
        assert_eq!(queue.next_due(now), Some(now + SECOND), "a first failure is no ninth");
        now += SECOND;
        assert!(queue.take(now).is_some());
        queue.done(&1, Outcome::Slow, now);
        assert_eq!(queue.next_due(now), Some(now + SECOND * 600), "and the refusals still count");
        queue.add(&1, NEWS, now, now);
        assert!(queue.take(now).is_some());
        queue.done(&1, Outcome::Done, now);
        assert!(queue.is_empty());
        queue.add(&1, NEWS, now, now);
        for _ in 0..9 {
            assert!(queue.take(now).is_some());
            queue.done(&1, Outcome::Slow, now);
            queue.add(&1, NEWS, now, now);
        }
        assert!(queue.take(now).is_some());
        queue.done(&1, Outcome::Slow, now);
        assert_eq!(queue.next_due(now), Some(now + SECOND * 15), "cut short they do not add up");
    }

    #[test]
    fn nothing_cuts_a_hold() {
        let (mut queue, now) = queue();
        queue.add(&1, NEWS, now, now);
        assert_eq!(take(&mut queue, now), Some(1));
        queue.add(&1, NEWS, now, now);
        queue.done(&1, Outcome::Held(SECOND * 7), now);
        queue.add(&1, NEWS, now, now);
        assert_eq!(take(&mut queue, now + SECOND * 6), None);
        assert_eq!(queue.next_due(now), Some(now + SECOND * 7));
        let taken = queue.take(now + SECOND * 7).unwrap();
        assert_eq!((taken.key, taken.failures), (1, 0));
        queue.done(&1, Outcome::Postponed(Duration::MAX), now);
        assert_eq!(take(&mut queue, now + SECOND * 86_400), None, "and no clock ends");
    }

    #[test]
    fn a_key_that_waited_a_minute_comes_up() {
        let (mut queue, now) = queue();
        queue.add(&1, BEHIND, now, now);
        queue.add(&2, BEHIND, now + SECOND, now);
        let changes = 10..;
        for (second, change) in (0..60).zip(changes) {
            queue.add(&change, NEWS, now + SECOND * second, now + SECOND * second);
            assert_eq!(take(&mut queue, now + SECOND * second), Some(change));
        }
        let minute = now + SECOND * 60;
        queue.add(&3, NEWS, minute, minute);
        assert_eq!(take(&mut queue, minute), Some(3), "at the end of its new priority");
        assert_eq!((queue.take_promoted(), queue.take_promoted()), (1, 0));
        assert_eq!((queue.depth()[&CHANGE], queue.depth()[&BACKGROUND]), (1, 1));
        queue.add(&4, NEWS, minute, minute);
        assert_eq!(queue.take(minute), Some(Taken { key: 1, waited: SECOND * 60, failures: 0 }));
        assert_eq!(take(&mut queue, minute + SECOND), Some(4));
        assert_eq!(take(&mut queue, minute + SECOND), Some(2));
        assert_eq!(queue.take_promoted(), 1);
    }

    #[test]
    fn retries_share_a_rate_and_first_runs_do_not() {
        let (mut queue, now) = queue();
        let all = |queue: &mut Queue<u64>, now| {
            std::iter::from_fn(|| take(queue, now)).collect::<Vec<_>>()
        };
        for key in 0..150 {
            queue.add(&key, NEWS, now, now);
        }
        let first = all(&mut queue, now);
        assert_eq!(first.len(), 150, "first runs are not limited");
        for key in &first {
            queue.done(key, Outcome::Failed, now);
        }
        let later = now + SECOND;
        assert_eq!(all(&mut queue, later).len(), 100, "a burst");
        assert!(queue.next_due(later).unwrap() > later, "nobody spins until there is a token");
        assert_eq!(all(&mut queue, later + SECOND).len(), 10);
        queue.add(&149, NEWS, later, later + SECOND);
        queue.add(&999, NEWS, later, later + SECOND);
        assert_eq!(all(&mut queue, later + SECOND), [149, 999], "news need no token");
    }

    /// Random operations against the obvious model, which keeps a list and looks through all of it: no key twice in
    /// flight, none lost, each at its time, the highest priority first.
    #[test]
    fn a_key_is_in_flight_at_most_once_and_none_is_lost() {
        for seed in 1..=300_u64 {
            let mut random = fastrand::Rng::with_seed(seed);
            let (mut queue, mut now) = queue();
            let mut model = Model::default();
            for _ in 0..500 {
                let key = random.u64(..8);
                match random.u64(..6) {
                    0 | 1 => {
                        let urgency =
                            [NEWS, TOUCH, BEHIND][usize::try_from(random.u64(..3)).unwrap()];
                        let due = now + SECOND * u32::try_from(random.u64(..4)).unwrap();
                        queue.add(&key, urgency, due, now);
                        model.add(key, urgency, due);
                    }
                    2 => now += SECOND * u32::try_from(random.u64(..20)).unwrap(),
                    3 | 4 => {
                        let best = model.best(now);
                        let taken = take(&mut queue, now);
                        assert_eq!(taken.is_some(), best.is_some(), "seed {seed}");
                        if let Some(key) = taken {
                            let priority = model.take(key, now);
                            assert_eq!(priority, best, "seed {seed}: {key}");
                        }
                    }
                    _ if model.in_flight.contains_key(&key) => {
                        let delay = SECOND * u32::try_from(random.u64(..6)).unwrap();
                        let outcome = match random.u64(..6) {
                            0 | 1 => Outcome::Done,
                            2 => Outcome::RequeueAfter(delay),
                            3 => Outcome::Held(delay),
                            4 => Outcome::Slow,
                            _ => Outcome::Failed,
                        };
                        queue.done(&key, outcome, now);
                        model.done(key, outcome, now);
                    }
                    _ => (),
                }
            }
            for key in model.in_flight.keys().copied().collect::<Vec<_>>() {
                queue.done(&key, Outcome::Done, now);
                model.done(key, Outcome::Done, now);
            }
            now += SECOND * 1_000;
            while let Some(key) = take(&mut queue, now) {
                model.take(key, now);
                queue.done(&key, Outcome::Done, now);
                model.done(key, Outcome::Done, now);
            }
            assert!(model.owed.is_empty(), "seed {seed}: lost {:?}", model.owed);
            let left =
                (queue.ready.len(), queue.ageing.len(), queue.waiting.len(), queue.retrying.len());
            assert!(queue.is_empty() && left == (0, 0, 0, 0), "seed {seed}: leak");
        }
    }

    /// Its priority, what was asked for meanwhile, and whether it is a retry.
    type InFlight = (i32, Vec<(Instant, Urgency)>, bool);

    /// With eight keys the retries never meet their rate: that has a test of its own.
    #[derive(Default)]
    struct Model {
        owed: HashMap<u64, (Instant, i32, Until)>,
        in_flight: HashMap<u64, InFlight>,
        failures: HashMap<u64, Failures>,
    }

    /// Failures, refusals, when the last was, and how long it was to wait then.
    type Failures = (u32, u32, Instant, Duration);

    impl Model {
        fn add(&mut self, key: u64, urgency: Urgency, due: Instant) {
            if let Some((_, again, _)) = self.in_flight.get_mut(&key) {
                again.push((due, urgency));
                return;
            }
            let (owed, priority, until) =
                self.owed.entry(key).or_insert((due, urgency.priority, Until::Woken));
            *priority = urgency.priority.max(*priority);
            let ends = *until == Until::Woken || (*until == Until::News && urgency.is_news);
            if ends && due <= *owed {
                (*owed, *until) = (due, Until::Woken);
            }
        }

        fn priority(&self, key: u64, now: Instant) -> Option<i32> {
            let (due, priority, _) = self.owed.get(&key)?;
            let aged = now.checked_duration_since(*due)? >= AGES_AFTER;
            Some(if aged { CHANGE } else { *priority })
        }

        fn best(&self, now: Instant) -> Option<i32> {
            self.owed.keys().filter_map(|key| self.priority(*key, now)).max()
        }

        fn take(&mut self, key: u64, now: Instant) -> Option<i32> {
            let priority = self.priority(key, now);
            self.owed.remove(&key);
            let counts =
                self.failures.get(&key).is_none_or(|(_, _, at, delay)| now - *at >= *delay / 2);
            let twice = self.in_flight.insert(key, (priority.unwrap_or_default(), vec![], counts));
            assert!(twice.is_none(), "{key} is twice in flight");
            priority
        }

        fn done(&mut self, key: u64, outcome: Outcome, now: Instant) {
            let (priority, again, counts) = self.in_flight.remove(&key).unwrap();
            let failures = self.failures.remove(&key);
            let wait = match outcome {
                Outcome::Done => None,
                Outcome::RequeueAfter(delay) => Some((delay, Until::Woken)),
                Outcome::Postponed(delay) | Outcome::Held(delay) => {
                    self.failures.extend(failures.map(|failed| (key, failed)));
                    Some((delay, Until::Due))
                }
                Outcome::Failed | Outcome::Slow => {
                    let (mut failed, mut refused) = failures.map_or((0, 0), |(f, r, ..)| (f, r));
                    let is_slow = outcome == Outcome::Slow;
                    let (count, base, most) =
                        if is_slow { (&mut refused, 15, 600) } else { (&mut failed, 1, 60) };
                    *count = if counts { *count + 1 } else { (*count).max(1) };
                    let delay = (SECOND * base * 2_u32.pow((*count - 1).min(9))).min(SECOND * most);
                    self.failures.insert(key, (failed, refused, now, delay));
                    Some((delay, Until::News))
                }
            };
            if let Some((delay, until)) = wait {
                self.owed.insert(key, (now + delay, priority, until));
            }
            if let Some(due) = again.iter().map(|(due, _)| *due).min() {
                let priority = again.iter().map(|(_, urgency)| urgency.priority).max().unwrap();
                let is_news = again.iter().any(|(_, urgency)| urgency.is_news);
                self.add(key, Urgency { priority, is_news }, due.max(now));
            }
        }
    }
}
