//! Decides which object of a controller runs next; pure.
//!
//! There is one [`Queue`] per controller, never one per revision (R78): swapping revisions moves no work, and
//! two revisions can never run one object at the same time. It is client-go's work queue with
//! controller-runtime's priorities (R13–R16): a set of keys, ready ones by priority and then by arrival, waiting
//! ones by due time, and a key in flight in neither.
//!
//! Invariants, each held by the test of that name:
//!
//! - `a_key_is_in_flight_at_most_once_and_none_is_lost`
//! - `a_change_during_a_run_runs_again_once`
//! - `many_changes_cost_one_run`
//! - `the_higher_priority_and_the_earlier_time_win`
//! - `failures_back_off_and_success_forgets`
//!
//! The queue reads no clock and awaits nothing: callers pass `now` and sleep until [`Queue::next_due`].

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    hash::Hash,
    time::{Duration, Instant},
};

/// Priority of a change.
pub const CHANGE: i32 = 0;
/// Priority of what nobody waits for: the initial list, a resync, the re-run after a promotion (R14, R83).
pub const BACKGROUND: i32 = -100;

/// The keys of one controller that are to run.
#[derive(Debug)]
pub struct Queue<K> {
    backoff: Backoff,
    entries: HashMap<K, Entry>,
    ready: BTreeMap<(Reverse<i32>, u64), K>,
    waiting: BTreeMap<(Instant, u64), K>,
    depth: BTreeMap<i32, usize>,
    in_flight: HashMap<K, Instant>,
    arrivals: u64,
}

/// How long a failing key waits before its next try (R15).
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

/// What became of a run, as far as the queue cares (R19).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Wait for the next change; failures are forgotten.
    Done,
    /// Run again after this long, or sooner after a change; failures are forgotten.
    RequeueAfter(Duration),
    /// Run again after the backoff.
    Failed,
    /// Run again after this long without counting a failure: the run could not even be tried.
    Postponed(Duration),
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
    /// What was asked for while in flight: due time and priority.
    again: Option<(Instant, i32)>,
    failures: u32,
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
    },
    InFlight {
        priority: i32,
    },
}

impl<K: Clone + Eq + Hash> Queue<K> {
    /// An empty queue.
    pub fn new(backoff: Backoff) -> Self {
        Self {
            backoff,
            entries: HashMap::new(),
            ready: BTreeMap::new(),
            waiting: BTreeMap::new(),
            depth: BTreeMap::new(),
            in_flight: HashMap::new(),
            arrivals: 0,
        }
    }

    /// Asks for `key` to run at `due`, or sooner if it was to run sooner, at `priority` or the higher one it had.
    pub fn add(&mut self, key: &K, priority: i32, due: Instant, now: Instant) {
        let place = match self.entries.get_mut(key) {
            None => Place::Nowhere,
            Some(entry) => match entry.place {
                Place::InFlight { .. } => {
                    let (earlier, higher) = entry.again.unwrap_or((due, priority));
                    entry.again = Some((earlier.min(due), higher.max(priority)));
                    return;
                }
                place => place,
            },
        };
        let (due, priority, old) = match place {
            Place::Ready { priority: old, .. } if old >= priority => return,
            Place::Ready { since, .. } => (since.min(due), priority, place),
            Place::Waiting { due: old, priority: was, .. } => {
                (old.min(due), was.max(priority), place)
            }
            Place::Nowhere | Place::InFlight { .. } => (due, priority, place),
        };
        self.remove(old);
        let since = if let Place::Ready { since, .. } = old { since } else { now };
        self.put(key.clone(), priority, due, (now, since));
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
        let failures = entry.failures;
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
        match outcome {
            Outcome::Failed => entry.failures = entry.failures.saturating_add(1),
            Outcome::Done | Outcome::RequeueAfter(_) => entry.failures = 0,
            Outcome::Postponed(_) => (),
        }
        let delay = match outcome {
            Outcome::Done => None,
            Outcome::RequeueAfter(delay) | Outcome::Postponed(delay) => Some(delay),
            Outcome::Failed => Some(self.backoff.delay(entry.failures)),
        };
        let again = entry.again.take();
        if again.is_none() && delay.is_none() && entry.failures == 0 {
            self.entries.remove(key);
        }
        if let Some(delay) = delay {
            self.add(key, priority, now + delay, now);
        }
        if let Some((due, priority)) = again {
            self.add(key, priority, due, now);
        }
    }

    /// Forgets all failures (R83): the next failure starts again at the base delay.
    pub fn forget_failures(&mut self) {
        for entry in self.entries.values_mut() {
            entry.failures = 0;
        }
    }

    /// When [`Queue::take`] next has a reason to be called; `now` or earlier if a key is ready.
    pub fn next_due(&self, now: Instant) -> Option<Instant> {
        if !self.ready.is_empty() {
            return Some(now);
        }
        self.waiting.first_key_value().map(|((due, _), _)| *due)
    }

    /// How many keys are ready, by priority.
    pub fn depth(&self) -> &BTreeMap<i32, usize> {
        &self.depth
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

    /// Moves what is due from waiting to ready, each to the end of its priority.
    fn advance(&mut self, now: Instant) {
        while let Some(((due, arrival), _)) = self.waiting.first_key_value() {
            if *due > now {
                return;
            }
            let slot = (*due, *arrival);
            let Some(key) = self.waiting.remove(&slot) else { return };
            let priority = match self.entries.get(&key).map(|entry| entry.place) {
                Some(Place::Waiting { priority, .. }) => priority,
                _ => BACKGROUND,
            };
            self.put(key, priority, slot.0, (now, slot.0));
        }
    }

    fn put(&mut self, key: K, priority: i32, due: Instant, (now, since): (Instant, Instant)) {
        let arrival = self.arrivals;
        self.arrivals += 1;
        let place = if due <= now {
            self.ready.insert((Reverse(priority), arrival), key.clone());
            *self.depth.entry(priority).or_default() += 1;
            Place::Ready { priority, arrival, since }
        } else {
            self.waiting.insert((due, arrival), key.clone());
            Place::Waiting { priority, arrival, due }
        };
        self.entries.entry(key).or_default().place = place;
    }

    fn remove(&mut self, place: Place) {
        match place {
            Place::Ready { priority, arrival, .. } => {
                self.ready.remove(&(Reverse(priority), arrival));
                if let Some(count) = self.depth.get_mut(&priority) {
                    *count -= 1;
                }
            }
            Place::Waiting { due, arrival, .. } => drop(self.waiting.remove(&(due, arrival))),
            Place::Nowhere | Place::InFlight { .. } => (),
        }
    }
}

impl Backoff {
    fn delay(self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        self.base.saturating_mul(1 << doublings).min(self.max)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn queue() -> (Queue<u64>, Instant) {
        (Queue::new(Backoff { base: SECOND, max: SECOND * 60 }), epoch())
    }

    #[expect(clippy::disallowed_methods, reason = "an arbitrary starting point")]
    fn epoch() -> Instant {
        Instant::now()
    }

    fn take(queue: &mut Queue<u64>, now: Instant) -> Option<u64> {
        queue.take(now).map(|taken| taken.key)
    }

    #[test]
    fn a_change_during_a_run_runs_again_once() {
        let (mut queue, now) = queue();
        queue.add(&1, CHANGE, now, now);
        assert_eq!(take(&mut queue, now), Some(1));
        queue.add(&1, CHANGE, now, now);
        queue.add(&1, BACKGROUND, now, now);
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
            queue.add(&1, CHANGE, now, now);
            queue.add(&2, CHANGE, now, now);
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
        queue.add(&1, BACKGROUND, now, now);
        queue.add(&2, BACKGROUND, now, now);
        queue.add(&3, BACKGROUND, now + SECOND * 9, now);
        queue.add(&3, CHANGE, now + SECOND * 99, now);
        queue.add(&2, CHANGE, now, now);
        queue.add(&2, BACKGROUND, now, now);
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
        queue.add(&1, CHANGE, now, now);
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

    /// Random operations against the obvious model: no key twice in flight, no wake-up lost, priorities kept.
    #[test]
    fn a_key_is_in_flight_at_most_once_and_none_is_lost() {
        for seed in 1..=300_u64 {
            let mut random = Random(seed);
            let (mut queue, mut now) = queue();
            let mut in_flight = HashSet::new();
            let mut owed: HashMap<u64, (Instant, i32)> = HashMap::new();
            for _ in 0..500 {
                let key = random.below(8);
                match random.below(5) {
                    0 | 1 => {
                        let priority = if random.below(2) == 0 { CHANGE } else { BACKGROUND };
                        let due = now + SECOND * u32::try_from(random.below(4)).unwrap();
                        queue.add(&key, priority, due, now);
                        let (d, p) = owed.get(&key).copied().unwrap_or((due, priority));
                        owed.insert(key, (d.min(due), p.max(priority)));
                    }
                    2 => now += SECOND * u32::try_from(random.below(3)).unwrap(),
                    3 => {
                        let runnable = |(k, (due, _)): (&u64, &(Instant, i32))| {
                            *due <= now && !in_flight.contains(k)
                        };
                        let best = owed
                            .iter()
                            .filter(|(k, v)| runnable((k, v)))
                            .map(|(_, (_, priority))| *priority)
                            .max();
                        let taken = take(&mut queue, now);
                        assert_eq!(taken.is_some(), best.is_some(), "seed {seed}");
                        if let Some(key) = taken {
                            let (due, priority) = owed.remove(&key).unwrap();
                            assert!(due <= now && Some(priority) == best, "seed {seed}");
                            assert!(in_flight.insert(key), "seed {seed}: {key} twice in flight");
                        }
                    }
                    _ if in_flight.remove(&key) => queue.done(&key, Outcome::Done, now),
                    _ => (),
                }
            }
            for key in in_flight.drain() {
                queue.done(&key, Outcome::Done, now);
            }
            now += SECOND * 100;
            while let Some(key) = take(&mut queue, now) {
                owed.remove(&key);
                queue.done(&key, Outcome::Done, now);
            }
            assert!(owed.is_empty(), "seed {seed}: lost {owed:?}");
            assert!(queue.is_empty() && queue.waiting.is_empty(), "seed {seed}: leak");
        }
    }

    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % bound
        }
    }
}
