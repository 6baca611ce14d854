//! Decides which events are written, and which only counted; pure.
//!
//! An event that comes again is one series: written once, counted at the second time, then every half hour and when it
//! has ended. Many similar ones become one. Nobody's writes about one object exceed a burst and a slow rate, nor a
//! controller's about all objects: what is over is counted where there is something to count it in, and dropped elsewhere.
//!
//! Invariants, each held by the test of that name:
//!
//! - `one_object_cannot_flood`
//! - `one_controller_cannot_flood`
//! - `the_same_event_again_is_counted_and_not_written`
//! - `many_similar_events_become_one`
//! - `what_is_remembered_has_an_end`

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasher, RandomState},
    num::NonZeroUsize,
    time::{Duration, Instant},
};

use k8s_openapi::jiff::Timestamp;
use lru::LruCache;

use super::Event;
use crate::{
    model::object::{ObjectReference, Severity},
    rate::Bucket,
    text,
};

/// Writes about one object in a row; then one every [`REFILL`].
const BURST: f64 = 25.0;
/// The time in which an object earns one more write.
const REFILL: Duration = Duration::from_secs(300);
/// So many different events of one reason about one object within [`SIMILAR_WITHIN`] are one from then on.
const SIMILAR: usize = 10;
/// See [`SIMILAR`].
const SIMILAR_WITHIN: Duration = Duration::from_secs(600);
/// A series that was not heard of for so long has ended.
const ENDS_AFTER: Duration = Duration::from_secs(360);
/// How often the count of a series is written.
const REFRESH: Duration = Duration::from_secs(1_800);
/// Objects and series that are remembered.
const REMEMBERED: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4_095);
/// Writes of one controller in a row, about whatever; then so many a second.
const CONTROLLER_BURST: f64 = 300.0;
/// See [`CONTROLLER_BURST`].
const CONTROLLER_RATE: f64 = 5.0;

/// What is to be written.
#[derive(Clone, Debug)]
pub(super) struct Order {
    /// Names the series within this process.
    pub(super) series: u64,
    pub(super) event: Event,
    /// When it was last heard of.
    pub(super) at: Timestamp,
    /// 1: it is new; more: so often by now.
    pub(super) count: u64,
}

/// What has been heard.
#[derive(Debug)]
pub(super) struct Filter {
    controllers: LruCache<Key, Bucket>,
    subjects: LruCache<Key, Subject>,
    series: LruCache<Key, Series>,
    started: u64,
    /// Nobody can tell which texts have the same key.
    keys: [RandomState; 2],
}

/// Stands for texts that need not be kept.
type Key = [u64; 2];

#[derive(Debug)]
struct Subject {
    writes: Bucket,
    /// By type and reason: different events, and when the last one came.
    similar: HashMap<Key, (HashSet<Key>, Instant)>,
}

#[derive(Debug)]
struct Series {
    number: u64,
    controller: Key,
    subject: Key,
    event: Event,
    count: u64,
    last: (Instant, Timestamp),
    written: (u64, Instant),
}

impl Filter {
    pub(super) fn new() -> Self {
        Self {
            controllers: LruCache::sparse(REMEMBERED),
            subjects: LruCache::sparse(REMEMBERED),
            series: LruCache::sparse(REMEMBERED),
            started: 0,
            keys: [RandomState::new(), RandomState::new()],
        }
    }

    fn key(&self, texts: &[&str]) -> Key {
        [self.keys[0].hash_one(texts), self.keys[1].hash_one(texts)]
    }

    fn names(&self, event: &Event) -> Names {
        let Event { controller, regarding, severity, reason, action, note, .. } = event;
        let ObjectReference { kind, namespace, name } = regarding;
        let namespace = namespace.as_deref().unwrap_or_default();
        let subject: [&str; 5] = [controller, &kind.group, &kind.kind, namespace, name];
        let severity = if *severity == Severity::Warning { "warning" } else { "normal" };
        let similar = [subject.as_slice(), &[severity, reason]].concat();
        Names {
            controller: self.key(&[controller]),
            subject: self.key(&subject),
            own: self.key(&[similar.as_slice(), &[action.as_str(), note]].concat()),
            similar: self.key(&similar),
        }
    }

    /// An event has come; what to write about it now. What may not be written is not remembered either.
    pub(super) fn heard(&mut self, mut event: Event, at: Timestamp, now: Instant) -> Option<Order> {
        let names = self.names(&event);
        let subject = self.subjects.get_or_insert_mut(names.subject, Subject::new);
        let is_one_of_many =
            self.series.get(&names.own).is_none() && subject.has_many(names.similar, now);
        let key = if is_one_of_many { names.similar } else { names.own };
        let writes = self.controllers.get_or_insert_mut(names.controller, of_controller);
        if let Some(series) = self.series.get_mut(&key) {
            series.count += 1;
            series.last = (now, at);
            let again = now.saturating_duration_since(series.written.1) >= REFRESH;
            let is_due = series.written.0 == 1 || again;
            return (is_due && subject.may_write(writes, now)).then(|| series.write(now));
        }
        if !subject.may_write(writes, now) {
            return None;
        }
        if is_one_of_many {
            let note = format!("(combined from similar events): {}", event.note);
            event.note = text::cut_owned(note, text::MESSAGE);
        } else {
            subject.remember(&names, now);
        }
        self.started += 1;
        let new = Series {
            number: self.started,
            controller: names.controller,
            subject: names.subject,
            event,
            count: 1,
            last: (now, at),
            written: (0, now),
        };
        Some(self.series.get_or_insert_mut(key, || new).write(now))
    }

    /// What is to be written because of the time; series that have ended are forgotten.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Order> {
        let mut orders = vec![];
        for series in
            self.series.iter_mut().map(|(_, series)| series).filter(|series| series.is_due(now))
        {
            let subject = self.subjects.get_or_insert_mut(series.subject, Subject::new);
            let writes = self.controllers.get_or_insert_mut(series.controller, of_controller);
            if subject.may_write(writes, now) {
                orders.push(series.write(now));
            }
        }
        self.series.retain(|_, series| !series.has_ended(now));
        self.subjects.retain(|_, subject| !subject.is_as_new(now));
        self.controllers.retain(|_, writes| !writes.is_full(now));
        orders
    }
}

/// What an event is known by.
struct Names {
    controller: Key,
    /// Who says something about which object.
    subject: Key,
    /// The event itself.
    own: Key,
    /// Type and reason besides, by which events are similar.
    similar: Key,
}

fn of_controller() -> Bucket {
    Bucket::new(CONTROLLER_RATE, CONTROLLER_BURST)
}

impl Subject {
    fn new() -> Self {
        let writes = Bucket::new(1.0 / REFILL.as_secs_f64(), BURST);
        Self { writes, similar: HashMap::new() }
    }

    fn may_write(&mut self, of_controller: &mut Bucket, now: Instant) -> bool {
        self.writes.take(now).is_ok() && of_controller.take(now).is_ok()
    }

    /// Whether so many similar events have come lately that this one is none of its own.
    fn has_many(&mut self, similar: Key, now: Instant) -> bool {
        let Some((different, last)) = self.similar.get_mut(&similar) else { return false };
        if now.saturating_duration_since(*last) > SIMILAR_WITHIN {
            different.clear();
        }
        *last = now;
        different.len() >= SIMILAR
    }

    /// Only of what is written: so the bucket bounds it.
    fn remember(&mut self, names: &Names, now: Instant) {
        let new = || (HashSet::new(), now);
        let (different, _) = self.similar.entry(names.similar).or_insert_with(new);
        different.insert(names.own);
    }

    fn is_as_new(&self, now: Instant) -> bool {
        let is_old = |last: &Instant| now.saturating_duration_since(*last) > SIMILAR_WITHIN;
        self.writes.is_full(now) && self.similar.values().all(|(_, last)| is_old(last))
    }
}

impl Series {
    fn has_ended(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last.0) >= ENDS_AFTER
    }

    fn is_due(&self, now: Instant) -> bool {
        let (written, at) = self.written;
        let refresh = self.has_ended(now) || now.saturating_duration_since(at) >= REFRESH;
        self.count > written && refresh
    }

    fn write(&mut self, now: Instant) -> Order {
        self.written = (self.count, now);
        Order { series: self.number, event: self.event.clone(), at: self.last.1, count: self.count }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        apiserver::Identity,
        model::{kind::Kind, object::ObjectReference},
    };

    const SECOND: Duration = Duration::from_secs(1);

    fn event(name: &str, reason: &str, note: &str) -> Event {
        let kind = Kind::new("v1", "ConfigMap");
        Event {
            identity: Identity::Host,
            controller: "n/c".to_owned(),
            regarding: ObjectReference { kind, namespace: None, name: name.to_owned() },
            uid: None,
            severity: Severity::Normal,
            reason: reason.to_owned(),
            action: "Act".to_owned(),
            note: note.to_owned(),
        }
    }

    #[expect(clippy::disallowed_methods, reason = "an arbitrary starting point")]
    fn filter() -> (Filter, Instant) {
        (Filter::new(), Instant::now())
    }

    fn heard(filter: &mut Filter, event: Event, now: Instant) -> Option<u64> {
        filter.heard(event, Timestamp::UNIX_EPOCH, now).map(|order| order.count)
    }

    #[test]
    fn one_object_cannot_flood() {
        let (mut filter, now) = filter();
        let written = |filter: &mut Filter, name: &str, now: Instant| {
            let all = 0..100;
            all.filter(|n| heard(filter, event(name, &format!("R{n}"), ""), now).is_some()).count()
        };
        assert_eq!(written(&mut filter, "a", now), 25);
        assert_eq!(written(&mut filter, "b", now), 25, "another object is not affected");
        let other = event("a", "Other", "");
        assert_eq!(heard(&mut filter, other.clone(), now + REFILL.saturating_sub(SECOND)), None);
        assert_eq!(heard(&mut filter, other.clone(), now + REFILL + SECOND), Some(1), "begun late");
        assert_eq!(heard(&mut filter, other, now + REFILL + SECOND), None);
        assert_eq!(filter.series.len(), 51, "what is dropped takes no memory");
        let similar: usize = filter.subjects.iter().map(|(_, one)| one.similar.len()).sum();
        assert_eq!(similar, 51);
    }

    #[test]
    fn one_controller_cannot_flood() {
        let (mut filter, now) = filter();
        let mut written = |controller: &str, now: Instant| {
            let of = |n: u32| Event {
                controller: controller.to_owned(),
                ..event(&n.to_string(), "R", "")
            };
            (0..10_000).filter(|n| heard(&mut filter, of(*n), now).is_some()).count()
        };
        assert_eq!(written("n/a", now), 300);
        assert_eq!(written("n/b", now), 300, "another controller is not affected");
        assert_eq!(written("n/a", now + SECOND), 5);
    }

    #[test]
    fn the_same_event_again_is_counted_and_not_written() {
        let (mut filter, now) = filter();
        let after = |seconds| now + SECOND * seconds;
        let same = || event("a", "Same", "note");
        assert_eq!(heard(&mut filter, same(), now), Some(1));
        assert_eq!(heard(&mut filter, same(), now), Some(2), "a series begins");
        for second in 1..1_800 {
            assert_eq!(heard(&mut filter, same(), after(second)), None, "{second}");
            assert!(filter.due(after(second)).is_empty(), "{second}");
        }
        assert_eq!(heard(&mut filter, same(), after(1_800)), Some(1_802), "half an hour");
        assert_eq!(heard(&mut filter, same(), after(1_801)), None);
        assert!(filter.due(after(1_801 + 359)).is_empty());
        let end = filter.due(after(1_801 + 360));
        assert_eq!(end.iter().map(|order| order.count).collect::<Vec<_>>(), [1_803], "its end");
        assert_eq!(filter.series.len(), 0);
        let next = filter.heard(same(), Timestamp::UNIX_EPOCH, after(3_000)).unwrap();
        assert_eq!((next.count, next.series != end[0].series), (1, true), "another series");
    }

    #[test]
    fn many_similar_events_become_one() {
        let (mut filter, now) = filter();
        let note = |n: u64| event("a", "Similar", &format!("note {n}"));
        let counts: Vec<_> = (0..14).map(|n| heard(&mut filter, note(n), now)).collect();
        let mut expected = vec![Some(1); 11];
        expected.extend([Some(2), None, None]);
        assert_eq!(counts, expected, "ten, and one for all others");
        assert_eq!(heard(&mut filter, note(3), now), Some(2), "a known one keeps its series");
        assert_eq!(heard(&mut filter, event("a", "Another", "note"), now), Some(1));
        let later = now + SIMILAR_WITHIN + SECOND;
        assert_eq!(heard(&mut filter, note(99), later), Some(1));
        let order = filter.heard(note(98), Timestamp::UNIX_EPOCH, later).unwrap();
        assert_eq!(order.event.note, "note 98", "after a quiet time each is its own again");
    }

    #[test]
    fn what_is_remembered_has_an_end() {
        let (mut filter, now) = filter();
        for n in 0..2 * REMEMBERED.get() {
            let controller = format!("n/c{n}");
            heard(&mut filter, Event { controller, ..event(&n.to_string(), "R", "") }, now);
        }
        let held = |filter: &Filter| {
            [filter.series.len(), filter.subjects.len(), filter.controllers.len()]
        };
        assert_eq!(held(&filter), [REMEMBERED.get(); 3]);
        filter.due(now + REFILL * 30);
        assert_eq!(held(&filter), [0; 3]);
    }
}
