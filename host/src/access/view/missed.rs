//! Decides what is remembered of wake-ups that could not be delivered, so that all of them come again; pure.
//!
//! A key is remembered, never the change: what a deletion woke is known no more once its object has left the cache.
//! Beyond [`MOST`] keys the primaries that exist are no longer told apart, all of them come again, and only keys of
//! objects that are gone are kept one by one.
//!
//! Invariants: `beyond_the_limit_all_primaries_come_again_and_the_gone_one_by_one`,
//! `what_waits_for_its_view_to_go_live_grows_old`.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::{model::object::ObjectKey, queue::Urgency};

/// So many keys are told apart: some 6 MB a watch at worst, and only while its right is not confirmed.
pub(super) const MOST: usize = 50_000;
/// What a view that is not live yet has missed is forgotten after one to two of these: the view that is live has
/// delivered it, and where there is none, going live takes seconds.
pub(super) const GROWS_OLD: Duration = Duration::from_secs(300);

/// What was woken while it could not be delivered.
#[derive(Debug, Default)]
pub(super) struct Missed {
    recent: BTreeMap<ObjectKey, Urgency>,
    older: BTreeMap<ObjectKey, Urgency>,
    all: Option<Urgency>,
    /// Since when `recent` grows.
    since: Option<Instant>,
}

impl Missed {
    /// Remembers `key`; `exists` says whether a primary is in the cache.
    pub(super) fn remember(
        &mut self,
        key: ObjectKey,
        urgency: Urgency,
        exists: impl Fn(&ObjectKey) -> bool,
    ) {
        if self.len() >= MOST && !self.recent.contains_key(&key) {
            if self.all.is_none() {
                self.retain(|key| !exists(key));
            }
            self.remember_all(urgency);
            if self.len() >= MOST {
                return;
            }
        }
        if self.all.is_some() && exists(&key) {
            self.remember_all(urgency);
            return;
        }
        add(&mut self.recent, key, urgency);
    }

    /// Remembers every primary.
    pub(super) fn remember_all(&mut self, urgency: Urgency) {
        self.all = Some(self.all.map_or(urgency, |known| known.max(urgency)));
    }

    /// Forgets what is old, for a view that is not live.
    pub(super) fn grow_old(&mut self, now: Instant) {
        let since = *self.since.get_or_insert(now);
        let age = now.saturating_duration_since(since);
        if age < GROWS_OLD {
            return;
        }
        let last = std::mem::take(&mut self.recent);
        self.older = if age < GROWS_OLD * 2 { last } else { BTreeMap::new() };
        self.since = Some(now);
    }

    /// Every primary that there is comes anyway: only keys of those that do not exist are kept.
    pub(super) fn keep_gone(&mut self, exists: impl Fn(&ObjectKey) -> bool) {
        self.all = None;
        self.retain(|key| !exists(key));
    }

    fn retain(&mut self, keeps: impl Fn(&ObjectKey) -> bool) {
        self.recent.retain(|key, _| keeps(key));
        self.older.retain(|key, _| keeps(key));
    }

    /// Everything that was missed: every primary or not, and the keys.
    pub(super) fn take(&mut self) -> (Option<Urgency>, BTreeMap<ObjectKey, Urgency>) {
        let mut taken = std::mem::take(self);
        for (key, urgency) in taken.older {
            add(&mut taken.recent, key, urgency);
        }
        (taken.all, taken.recent)
    }

    fn len(&self) -> usize {
        self.recent.len() + self.older.len()
    }
}

fn add(keys: &mut BTreeMap<ObjectKey, Urgency>, key: ObjectKey, urgency: Urgency) {
    keys.entry(key).and_modify(|known| *known = known.max(urgency)).or_insert(urgency);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::{BACKGROUND, CHANGE};

    fn key(number: usize) -> ObjectKey {
        ObjectKey::new(Some("n"), &format!("o{number}"))
    }

    #[test]
    fn beyond_the_limit_all_primaries_come_again_and_the_gone_one_by_one() {
        // Even numbers exist.
        let exists = |key: &ObjectKey| key.name[1..].parse::<usize>().unwrap() % 2 == 0;
        for count in [MOST - 1, MOST, MOST + 1, 2 * MOST - 1] {
            let mut missed = Missed::default();
            for number in 0..count {
                missed.remember(key(number), Urgency::news(CHANGE), exists);
            }
            let (all, keys) = missed.take();
            assert_eq!(all.is_some(), count > MOST, "{count}");
            let gone = (0..count).filter(|number| number % 2 == 1);
            assert!(gone.map(key).all(|key| keys.contains_key(&key)), "{count}");
            let there = (0..count).filter(|number| number % 2 == 0);
            assert!(all.is_some() || there.map(key).all(|key| keys.contains_key(&key)), "{count}");
            assert!(keys.len() <= MOST);
            assert_eq!(missed.take().1.len(), 0, "nothing comes twice");
        }
        let mut flood = Missed::default();
        for number in 0..3 * MOST {
            flood.remember(key(number), Urgency::news(CHANGE), |_| false);
        }
        assert_eq!(flood.take().1.len(), MOST, "memory has an end");
    }

    #[test]
    fn the_more_urgent_of_two_wakes_counts() {
        let mut missed = Missed::default();
        missed.remember(key(1), Urgency::news(BACKGROUND), |_| true);
        missed.remember(key(1), Urgency::touch(CHANGE), |_| true);
        assert_eq!(missed.take().1[&key(1)], Urgency::news(CHANGE));
    }

    #[test]
    fn what_waits_for_its_view_to_go_live_grows_old() {
        let start = crate::clock::now();
        let mut missed = Missed::default();
        for minute in 0..60 {
            missed.grow_old(start + Duration::from_secs(60) * minute);
            missed.remember(key(minute as usize), Urgency::news(CHANGE), |_| false);
        }
        let (_, keys) = missed.take();
        assert!(keys.contains_key(&key(59)) && keys.contains_key(&key(56)));
        assert!(keys.len() <= 10, "{}", keys.len());
    }
}
