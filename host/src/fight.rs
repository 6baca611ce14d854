//! Decides whether another writer keeps taking back what a controller applies; pure (R69, F11).
//!
//! A write is such a bout if it left the object as the same write had left it before, and somebody had changed it in
//! between. A user who edits an object by hand is put right at once; with five bouts within a minute it is a fight. The
//! controller may then write that object once in 20 s: two controllers of one host that fight write it six times a
//! minute together. A fight is over when a minute has passed without a bout.
//!
//! Invariants, each held by the test of that name:
//!
//! - `five_bouts_within_a_minute_are_a_fight_and_four_are_none`
//! - `two_fighters_write_an_object_six_times_a_minute`
//! - `a_fight_is_about_one_object_and_ends_by_itself`

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use crate::{budget::Exceeded, manifest::Kind, rate::Bucket, watch::ObjectKey};

/// Bouts within [`WINDOW`] that are a fight.
const ENOUGH: usize = 5;
/// The time whose bouts are counted.
const WINDOW: Duration = Duration::from_secs(60);
/// How often a controller may write an object that it fights over.
const EVERY: Duration = Duration::from_secs(20);

/// The objects of a controller that others have changed back within the last minute.
#[derive(Debug, Default)]
pub struct Fights(BTreeMap<(Kind, ObjectKey), Fight>);

/// What goes on about one object.
#[derive(Debug)]
struct Fight {
    /// The last bouts, [`ENOUGH`] at most.
    bouts: VecDeque<Instant>,
    /// The writes that are left; `None`: as many as the budget allows.
    writes: Option<Bucket>,
}

impl Fights {
    /// A write of the object has taken back what somebody else had made of it; true: a fight has begun by that.
    pub fn took_back(&mut self, kind: &Kind, key: &ObjectKey, now: Instant) -> bool {
        self.forget_old(now);
        let fight = self.0.entry((kind.clone(), key.clone())).or_insert_with(Fight::new);
        if fight.bouts.len() == ENOUGH {
            fight.bouts.pop_front();
        }
        fight.bouts.push_back(now);
        let is_young = |at: &Instant| now.saturating_duration_since(*at) < WINDOW;
        let begins = fight.writes.is_none()
            && fight.bouts.len() == ENOUGH
            && fight.bouts.front().is_some_and(is_young);
        if begins {
            let mut writes = Bucket::new(1.0 / EVERY.as_secs_f64(), 1.0);
            // The write that this was.
            let _ = writes.take(now);
            fight.writes = Some(writes);
        }
        begins
    }

    /// Takes one write of the object, if it is fought over.
    pub fn write(&mut self, kind: &Kind, key: &ObjectKey, now: Instant) -> Result<(), Exceeded> {
        if self.0.is_empty() {
            return Ok(());
        }
        self.forget_old(now);
        let fight = self.0.get_mut(&(kind.clone(), key.clone()));
        let writes = fight.and_then(|fight| fight.writes.as_mut());
        writes.map_or(Ok(()), |writes| writes.take(now).map_err(Exceeded))
    }

    /// What is fought over and what to do about it, for people; `None`: nothing is.
    pub fn told(&mut self, now: Instant) -> Option<String> {
        self.forget_old(now);
        let mut fights = self.0.iter().filter(|(_, fight)| fight.writes.is_some());
        let ((kind, key), _) = fights.next()?;
        let others = match fights.count() {
            0 => String::new(),
            more => format!(", as of {more} more"),
        };
        let namespace = key.namespace.as_ref().map(|name| format!(" -n {name}"));
        Some(format!(
            "another writer keeps taking back what this controller makes of {kind} {key}{others}; it writes that object once in {EVERY:?} until this ends. Let each field have one owner: kubectl get {} {}{} -o yaml --show-managed-fields says who owns which",
            kind.to_string().to_lowercase(),
            key.name,
            namespace.unwrap_or_default(),
        ))
    }

    fn forget_old(&mut self, now: Instant) {
        let is_old = |at: &Instant| now.saturating_duration_since(*at) >= WINDOW;
        self.0.retain(|_, fight| !fight.bouts.back().is_none_or(is_old));
    }
}

impl Fight {
    fn new() -> Self {
        Self { bouts: VecDeque::with_capacity(ENOUGH), writes: None }
    }
}

#[cfg(test)]
mod tests {
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

        fn bout(&mut self, name: &str, seconds: u64) -> bool {
            let (kind, key, now) = self.at(name, seconds);
            self.fights.took_back(&kind, &key, now)
        }

        fn may_write(&mut self, name: &str, seconds: u64) -> bool {
            let (kind, key, now) = self.at(name, seconds);
            self.fights.write(&kind, &key, now).is_ok()
        }

        fn told(&mut self, seconds: u64) -> Option<String> {
            let (_, _, now) = self.at("", seconds);
            self.fights.told(now)
        }

        fn at(&self, name: &str, seconds: u64) -> (Kind, ObjectKey, Instant) {
            let now = self.start + Duration::from_secs(seconds);
            (Kind::new("v1", "ConfigMap"), ObjectKey::new(Some("demo"), name), now)
        }
    }

    #[test]
    fn five_bouts_within_a_minute_are_a_fight_and_four_are_none() {
        let mut ring = Ring::new();
        for second in [0, 1, 2, 3] {
            assert!(!ring.bout("web", second));
        }
        assert!(ring.may_write("web", 4) && ring.told(4).is_none());
        assert!(!ring.bout("web", 60), "the first one is a minute old");
        assert!(ring.bout("web", 60), "the second one is not");
        assert!(!ring.bout("web", 60), "it has begun already");
        assert!(ring.told(60).is_some());
    }

    #[test]
    fn two_fighters_write_an_object_six_times_a_minute() {
        let mut both = [Ring::new(), Ring::new()];
        for ring in &mut both {
            for _ in 0..5 {
                ring.bout("web", 0);
            }
            assert!(!ring.may_write("web", 0), "the write that began it counts");
        }
        let mut written = 0;
        for second in 1..=61 {
            for ring in &mut both {
                if ring.may_write("web", second) {
                    written += 1;
                    ring.bout("web", second);
                }
            }
        }
        assert_eq!(written, 6);
    }

    #[test]
    fn a_fight_is_about_one_object_and_ends_by_itself() {
        let mut ring = Ring::new();
        for name in ["web", "db", "web", "db", "web", "db", "web", "db", "web"] {
            ring.bout(name, 10);
        }
        let told = ring.told(10).unwrap();
        for words in
            ["ConfigMap demo/web;", "once in 20s", "kubectl get configmap web -n demo -o yaml"]
        {
            assert!(told.contains(words), "{words} is not in: {told}");
        }
        assert!(ring.may_write("db", 10) && ring.may_write("db", 10) && !ring.may_write("web", 10));
        assert!(ring.may_write("web", 30), "nobody was in the way of this one");
        assert!(!ring.may_write("web", 49), "that one counts");
        assert!(ring.told(69).is_some());
        assert!(ring.told(70).is_none());
        assert!(ring.may_write("web", 70) && ring.may_write("web", 70));
    }
}
