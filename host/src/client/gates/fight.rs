//! Decides whether another writer keeps taking back what a controller writes; pure.
//!
//! A revert is a write that changed what it names to what the controller's write before had made of it: somebody else had
//! changed that in between. A user who edits an object by hand is put right at once; with four reverts within a
//! minute it is a fight. The controller may then write the contested side of that object once in 20 s: two controllers of
//! one host that fight write it six times a minute together. A fight is over when a minute has passed without a revert.
//!
//! Four, because that is more than the three a minute that a fighter is left, and because a horizontal pod autoscaler, which
//! looks every 15 s, would never be seen five times within a minute.
//!
//! Invariants, each held by the test of that name:
//!
//! - `four_bouts_within_a_minute_are_a_fight_and_three_are_none`
//! - `two_fighters_write_an_object_six_times_a_minute`
//! - `a_fight_is_about_one_side_of_one_object_and_ends_by_itself`
//! - `only_what_a_body_names_can_be_taken_back`

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    client::gates::budget::Exceeded,
    model::{kind::Kind, object::ObjectKey},
    rate::Bucket,
};

/// Reverts within [`WINDOW`] that are a fight.
const ENOUGH: usize = 4;
/// The time whose reverts are counted.
const WINDOW: Duration = Duration::from_secs(60);
/// How often a controller may write what it fights over.
const EVERY: Duration = Duration::from_secs(20);
/// Reverts that are too old are looked for this often.
const SWEEP: Duration = Duration::from_secs(1);

/// What is written: a fight over one says nothing of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// The object without its status.
    Object,
    /// Its status.
    Status,
}

/// Fields that change with every write or with time.
const COUNTED: &[&str] = &["resourceVersion", "generation", "managedFields", "lastTransitionTime"];

/// One side of one object.
pub type Place = (Kind, ObjectKey, Side);

/// What others have changed back, of all that a controller writes.
#[derive(Debug, Default)]
pub struct Fights {
    /// The reverts of the last minute, by place; [`ENOUGH`] at most.
    reverts: HashMap<Place, VecDeque<Instant>>,
    open: BTreeMap<Place, Fight>,
    swept: Option<Instant>,
}

#[derive(Debug)]
struct Fight {
    last: Instant,
    writes: Bucket,
}

impl Fights {
    /// A write has taken back what somebody else had made of it; true: a fight has begun by that.
    pub fn took_back(&mut self, place: Place, now: Instant) -> bool {
        self.sweep(now);
        if let Some(fight) = self.open.get_mut(&place) {
            fight.last = now;
            return false;
        }
        let reverts = self.reverts.entry(place.clone()).or_default();
        reverts.retain(|at| !is_old(*at, now));
        reverts.push_back(now);
        if reverts.len() < ENOUGH {
            return false;
        }
        self.reverts.remove(&place);
        let mut writes = Bucket::new(1.0 / EVERY.as_secs_f64(), 1.0);
        // The write that this was.
        let _ = writes.take(now);
        self.open.insert(place, Fight { last: now, writes });
        true
    }

    /// Whether this may be written now, as far as it is fought over.
    pub fn allows(&self, place: &Place, now: Instant) -> Result<(), Exceeded> {
        let fight = self.open.get(place).filter(|fight| !is_old(fight.last, now));
        match fight.map_or(Duration::ZERO, |fight| fight.writes.wait(now)) {
            Duration::ZERO => Ok(()),
            wait => Err(Exceeded(wait)),
        }
    }

    /// It is written: if it is fought over, not so soon again.
    pub fn write(&mut self, place: &Place, now: Instant) {
        if let Some(fight) = self.open.get_mut(place) {
            let _ = fight.writes.take(now);
        }
    }

    /// What is fought over and what to do about it, for people; `None`: nothing is.
    pub fn told(&self, now: Instant) -> Option<String> {
        let mut fights = self.open.iter().filter(|(_, fight)| !is_old(fight.last, now));
        let ((kind, key, side), _) = fights.next()?;
        let others = match fights.count() {
            0 => String::new(),
            more => format!(" and of {more} more"),
        };
        let side = if *side == Side::Status { "the status of " } else { "" };
        let namespace = key.namespace.as_ref().map(|name| format!(" -n {name}"));
        Some(format!(
            "another writer keeps taking back what this controller makes of {side}{kind} {key}{others}; until this ends it is written once in {EVERY:?}. Let each field have one owner: kubectl get {} {}{} -o yaml --show-managed-fields says who owns which",
            kind.to_string().to_lowercase(),
            key.name,
            namespace.unwrap_or_default(),
        ))
    }

    fn sweep(&mut self, now: Instant) {
        if self.swept.is_some_and(|at| now.saturating_duration_since(at) < SWEEP) {
            return;
        }
        self.swept = Some(now);
        self.reverts.retain(|_, reverts| reverts.back().is_some_and(|at| !is_old(*at, now)));
        self.open.retain(|_, fight| !is_old(fight.last, now));
    }
}

fn is_old(at: Instant, now: Instant) -> bool {
    now.saturating_duration_since(at) >= WINDOW
}

/// What `object` has in the fields that `body` names, of a list all of it; a body that is no object, such as a JSON patch,
/// names everything. What the server or the clock counts is left out.
pub fn named(body: &Value, object: &Value) -> Value {
    match (body, object) {
        (Value::Object(fields), Value::Object(all)) => fields
            .iter()
            .filter(|(name, _)| !COUNTED.contains(&name.as_str()))
            .filter_map(|(name, field)| Some((name.clone(), named(field, all.get(name)?))))
            .collect(),
        (_, Value::Object(all)) => all
            .iter()
            .filter(|(name, _)| !COUNTED.contains(&name.as_str()))
            .map(|(name, field)| (name.clone(), named(&Value::Null, field)))
            .collect(),
        (_, Value::Array(items)) => items.iter().map(|item| named(&Value::Null, item)).collect(),
        (_, object) => object.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    struct Ring {
        fights: Fights,
        start: Instant,
    }

    impl Ring {
        #[expect(clippy::disallowed_methods, reason = "an arbitrary starting point")]
        fn new() -> Self {
            Self { fights: Fights::default(), start: Instant::now() }
        }

        fn revert(&mut self, name: &str, seconds: f64) -> bool {
            let now = self.at(seconds);
            self.fights.took_back(place(name), now)
        }

        fn may_write(&mut self, name: &str, seconds: f64) -> bool {
            let now = self.at(seconds);
            let may = self.fights.allows(&place(name), now).is_ok();
            if may {
                self.fights.write(&place(name), now);
            }
            may
        }

        fn told(&self, seconds: f64) -> Option<String> {
            self.fights.told(self.at(seconds))
        }

        fn at(&self, seconds: f64) -> Instant {
            self.start + Duration::from_secs_f64(seconds)
        }
    }

    fn place(name: &str) -> Place {
        (Kind::new("v1", "ConfigMap"), ObjectKey::new(Some("demo"), name), Side::Object)
    }

    /// Whoever asks, and is then refused for something else, has written nothing.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "an arbitrary starting point")]
    fn asking_whether_it_may_be_written_costs_nothing() {
        let (mut fights, start) = (Fights::default(), Instant::now());
        let place = (Kind::new("v1", "ConfigMap"), ObjectKey::new(None, "x"), Side::Object);
        for _ in 0..ENOUGH {
            fights.took_back(place.clone(), start);
        }
        assert!(fights.allows(&place, start).is_err(), "it is fought over");
        let later = start + EVERY;
        for _ in 0..5 {
            assert!(fights.allows(&place, later).is_ok());
        }
        fights.write(&place, later);
        assert!(fights.allows(&place, later).is_err(), "written, it is charged");
    }

    #[test]
    fn four_bouts_within_a_minute_are_a_fight_and_three_are_none() {
        let mut ring = Ring::new();
        for second in [0.0, 1.0, 2.0] {
            assert!(!ring.revert("web", second));
        }
        assert!(ring.may_write("web", 4.0) && ring.told(4.0).is_none());
        assert!(!ring.revert("web", 61.0), "the first two are a minute old");
        assert!(!ring.revert("web", 61.0), "the third one is not");
        assert!(ring.revert("web", 61.5));
        assert!(!ring.revert("web", 62.0), "it has begun already");
        assert!(ring.told(62.0).is_some());
        let mut slow = Ring::new();
        let begun = (0..4).map(|revert| slow.revert("web", 15.1 * f64::from(revert)));
        assert_eq!(begun.collect::<Vec<_>>(), [false, false, false, true], "a look every 15 s");
    }

    #[test]
    fn two_fighters_write_an_object_six_times_a_minute() {
        let mut both = [Ring::new(), Ring::new()];
        for ring in &mut both {
            for _ in 0..4 {
                ring.revert("web", 0.0);
            }
            assert!(!ring.may_write("web", 0.0), "the write that began it counts");
        }
        let mut written = 0;
        for second in 1..=61 {
            for ring in &mut both {
                if ring.may_write("web", f64::from(second)) {
                    written += 1;
                    ring.revert("web", f64::from(second));
                }
            }
        }
        assert_eq!(written, 6);
    }

    #[test]
    fn a_fight_is_about_one_side_of_one_object_and_ends_by_itself() {
        let mut ring = Ring::new();
        for name in ["web", "db", "web", "db", "web", "db", "web"] {
            ring.revert(name, 10.0);
        }
        let told = ring.told(10.0).unwrap();
        for words in
            ["of ConfigMap demo/web;", "once in 20s", "kubectl get configmap web -n demo -o"]
        {
            assert!(told.contains(words), "{words} is not in: {told}");
        }
        assert!(!ring.may_write("web", 10.0));
        assert!(ring.may_write("db", 10.0) && ring.may_write("db", 10.0));
        let (kind, key, _) = place("web");
        let now = ring.at(10.0);
        assert!(ring.fights.allows(&(kind, key, Side::Status), now).is_ok());
        assert!(ring.may_write("web", 30.1), "nobody was in the way of this one");
        assert!(!ring.may_write("web", 49.0), "that one counts");
        assert!(ring.told(69.0).is_some());
        assert!(ring.told(70.0).is_none());
        assert!(ring.may_write("web", 70.0) && ring.may_write("web", 70.0));
        assert!(!ring.revert("web", 71.0), "it begins anew");
    }

    #[test]
    fn only_what_a_body_names_can_be_taken_back() {
        let body =
            json!({"metadata": {"labels": {"a": "1"}}, "spec": {"replicas": 2, "args": ["x"]}});
        let before = json!({"metadata": {"labels": {"a": "1", "b": "2"}, "generation": 1, "annotations": {"r": "1"}},
            "spec": {"replicas": 2, "args": ["x"], "paused": true}, "status": {}});
        for (pointer, new, expected) in [
            ("/metadata/labels/b", json!("3"), false),
            ("/metadata/generation", json!(2), false),
            ("/metadata/annotations/r", json!("2"), false),
            ("/spec/paused", json!(false), false),
            ("/metadata/labels/a", json!("2"), true),
            ("/spec/replicas", json!(3), true),
            ("/spec/args", json!(["x", "y"]), true),
            ("/spec", json!({}), true),
        ] {
            let mut after = before.clone();
            *after.pointer_mut(pointer).unwrap() = new;
            let differ = named(&body, &before) != named(&body, &after);
            assert_eq!(differ, expected, "{pointer}");
        }
        let patch = json!([{"op": "add"}]);
        assert_eq!(named(&patch, &before)["spec"], before["spec"], "a JSON patch names everything");
        let status = |time: &str| json!({"c": [{"type": "Ready", "lastTransitionTime": time}]});
        assert_eq!(named(&status("1"), &status("2")), named(&status("3"), &status("4")));
    }
}
