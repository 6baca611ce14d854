//! Decides which events are written, and which only counted; pure (R25).
//!
//! An event that comes again is one series: written once, counted at the second time, then every half hour and when it
//! has ended. Many similar ones become one. Nobody's writes about one object exceed a burst and a slow rate: what is
//! over is counted where there is something to count it in, and dropped elsewhere.
//!
//! Invariants, each held by the test of that name:
//!
//! - `one_object_cannot_flood`
//! - `the_same_event_again_is_counted_and_not_written`
//! - `many_similar_events_become_one`
//! - `what_is_remembered_has_an_end`

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use k8s_openapi::jiff::Timestamp;

use super::{Event, lru::Lru};
use crate::{client::Severity, rate::Bucket};

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
const REMEMBERED: usize = 4_096;

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
    subjects: Lru<String, Subject>,
    series: Lru<String, Series>,
    started: u64,
}

#[derive(Debug)]
struct Subject {
    writes: Bucket,
    /// By type and reason: different events, and when the last one came.
    similar: HashMap<(bool, String), (HashSet<String>, Instant)>,
}

#[derive(Debug)]
struct Series {
    number: u64,
    subject: String,
    event: Event,
    count: u64,
    last: (Instant, Timestamp),
    written: (u64, Instant),
}

impl Filter {
    pub(super) fn new() -> Self {
        Self { subjects: Lru::new(REMEMBERED), series: Lru::new(REMEMBERED), started: 0 }
    }

    /// An event has come; what to write about it now.
    pub(super) fn heard(&mut self, mut event: Event, at: Timestamp, now: Instant) -> Option<Order> {
        let name = subject(&event);
        let subject = self.subjects.get_or(&name, Subject::new);
        let is_one_of_many = subject.is_one_of_many(&event, now);
        let key = key(&name, &event, is_one_of_many);
        if is_one_of_many {
            event.note = format!("(combined from similar events): {}", event.note);
        }
        let number = self.started;
        let series = self.series.get_or(&key, || Series {
            number,
            subject: name,
            event,
            count: 0,
            last: (now, at),
            written: (0, now),
        });
        self.started += u64::from(series.number == number);
        series.count += 1;
        series.last = (now, at);
        let is_due = match series.written.0 {
            0 | 1 => true,
            _ => now.saturating_duration_since(series.written.1) >= REFRESH,
        };
        if !is_due || subject.writes.take(now).is_err() {
            return None;
        }
        Some(series.write(now))
    }

    /// What is to be written because of the time; series that have ended are forgotten.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Order> {
        let mut orders = vec![];
        for series in self.series.values_mut().filter(|series| series.is_due(now)) {
            let subject = self.subjects.get_or(&series.subject, Subject::new);
            if subject.writes.take(now).is_ok() {
                orders.push(series.write(now));
            }
        }
        self.series.retain(|series| !series.has_ended(now));
        self.subjects.retain(|subject| !subject.is_as_new(now));
        orders
    }
}

impl Subject {
    fn new() -> Self {
        let writes = Bucket::new(1.0 / REFILL.as_secs_f64(), BURST);
        Self { writes, similar: HashMap::new() }
    }

    fn is_one_of_many(&mut self, event: &Event, now: Instant) -> bool {
        let of = (event.severity == Severity::Warning, event.reason.clone());
        let (different, last) = self.similar.entry(of).or_insert_with(|| (HashSet::new(), now));
        if now.saturating_duration_since(*last) > SIMILAR_WITHIN {
            different.clear();
        }
        *last = now;
        let this = format!("{}|{}", event.action, event.note);
        if different.len() < SIMILAR {
            different.insert(this);
            return false;
        }
        !different.contains(&this)
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
        written > 0 && self.count > written && refresh
    }

    fn write(&mut self, now: Instant) -> Order {
        // What was never written begins as an event, however often it has come.
        let count = if self.written.0 == 0 { 1 } else { self.count };
        self.written = (count, now);
        Order { series: self.number, event: self.event.clone(), at: self.last.1, count }
    }
}

/// Who says something about which object.
pub(super) fn subject(event: &Event) -> String {
    let regarding = &event.regarding;
    format!(
        "{}|{}|{}|{}",
        event.controller,
        regarding.kind,
        regarding.namespace.as_deref().unwrap_or_default(),
        regarding.name
    )
}

fn key(subject: &str, event: &Event, is_one_of_many: bool) -> String {
    let Event { severity, reason, action, note, .. } = event;
    if is_one_of_many {
        format!("{subject}|{severity:?}|{reason}")
    } else {
        format!("{subject}|{severity:?}|{reason}|{action}|{note}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{apiserver::Identity, client::ObjectReference, manifest::Kind};

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
        for n in 0..2 * REMEMBERED {
            heard(&mut filter, event(&n.to_string(), "R", ""), now);
        }
        assert_eq!((filter.series.len(), filter.subjects.len()), (REMEMBERED, REMEMBERED));
        filter.due(now + REFILL * 30);
        assert_eq!((filter.series.len(), filter.subjects.len()), (0, 0));
    }
}
