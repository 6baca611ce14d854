//! What a controller tells of its work: collected from its runs, its watches and its rights.
//!
//! Whatever is told of an object is forgotten when the object is gone or well.

use std::{collections::BTreeMap, time::Instant};

use crate::{
    access::view::{View, WatchFailure},
    controller::{
        health::{Failing, Health},
        run::End,
        strays::Strays,
    },
    model::object::ObjectKey,
    queue::Outcome,
};

/// Of more objects it is not remembered what stood in their way: one is enough to tell.
const REMEMBERED: usize = 1_000;
/// A watch that fails for as many looks is told: one that fails once is back before anybody has read of it.
const BLIND_TIMES: u32 = 3;
/// The same of a connection: an API server that is begun anew takes its time.
const CUT_OFF_TIMES: u32 = 30;
/// A watch that is well for as many looks in a row is. One that is opened and cut off again, each time anew, looks well
/// for a moment.
const WELL_TIMES: u32 = 2;

/// What the team should know of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trouble {
    /// A right that the account does not have.
    pub forbidden: Option<String>,
    /// Whether the account may not watch what is reconciled.
    pub may_not_reconcile: bool,
    /// What the code writes and the cluster's schema does not have.
    pub outdated: Option<String>,
    /// How the live revision keeps breaking down.
    pub breakdown: Option<String>,
    /// Objects whose runs keep failing.
    pub failing: Option<Failing>,
    /// An object that another writer keeps changing back, and what to do about it.
    pub fight: Option<String>,
    /// A kind that cannot be watched at present, and why.
    pub blind: Option<WatchFailure>,
}

/// A watch that fails, and at how many looks it was seen like that and, since, like another.
#[derive(Debug)]
struct Dark {
    blind: WatchFailure,
    times: u32,
    well: u32,
}

#[derive(Debug, Default)]
pub(super) struct Report {
    /// Of each live revision, by its name.
    of: BTreeMap<String, Work>,
    /// A right to read that the account has lost.
    lost: Option<String>,
    /// A watch that fails.
    blind: Option<Dark>,
    /// What each object's last run was refused, until one of its runs is not.
    refused: BTreeMap<ObjectKey, String>,
}

/// What the runs of one revision tell of it.
#[derive(Debug, Default)]
struct Work {
    health: Health<ObjectKey>,
    /// What of each object's last run did not fit the cluster's schema, until one of its runs does.
    outdated: BTreeMap<ObjectKey, String>,
}

impl Report {
    /// These revisions are live: what others have told is over.
    pub(super) fn begin<'a>(&mut self, live: impl Iterator<Item = &'a str>) {
        let mut before = std::mem::take(&mut self.of);
        self.of =
            live.map(|name| (name.to_owned(), before.remove(name).unwrap_or_default())).collect();
    }

    /// A run of this revision has ended; the words with which its object is to be told, if it is. One of a replaced revision
    /// says nothing of those that are live.
    pub(super) fn ended(
        &mut self,
        (revision, key): (&str, &ObjectKey),
        end: &End,
        now: Instant,
    ) -> Option<String> {
        remember(&mut self.refused, key, end.forbidden.as_deref(), end.outcome);
        let work = self.of.get_mut(revision)?;
        remember(&mut work.outdated, key, end.outdated.as_deref(), end.outcome);
        work.health.ran(key, &end.ended, end.uid.is_some(), now)
    }

    /// Looks at what no run tells of.
    pub(super) fn look(&mut self, view: &View, strays: &Strays, account: &str, now: Instant) {
        let exists = |key: &ObjectKey| view.primary(key).is_some() || strays.has(key);
        self.refused.retain(|key, _| exists(key));
        for work in self.of.values_mut() {
            work.health.forget(exists, now);
            work.outdated.retain(|key, _| exists(key));
        }
        self.blind = seen(self.blind.take(), view.blind());
        self.lost = view.lost_right().map(|right| format!("{account} may not {right}"));
    }

    /// A lost right to read concerns every object; a refusal of one run the object.
    pub(super) fn trouble(
        &mut self,
        view: Option<&View>,
        fight: Option<String>,
        now: Instant,
    ) -> Trouble {
        let blind = self.blind.as_ref().filter(|dark| dark.is_told());
        let objects = view.map_or(0, objects);
        let (mut outdated, mut breakdown, mut failing) = (None, None, None);
        for work in self.of.values_mut() {
            outdated = outdated.or_else(|| work.outdated.values().next().cloned());
            breakdown =
                breakdown.or_else(|| work.health.breakdown(objects, now).map(str::to_owned));
            failing = failing.or_else(|| work.health.failing(now));
        }
        Trouble {
            forbidden: self.lost.clone().or_else(|| self.refused.values().next().cloned()),
            may_not_reconcile: view.is_some_and(View::may_not_reconcile),
            outdated,
            breakdown,
            failing,
            fight,
            blind: blind.map(|dark| dark.blind.clone()),
        }
    }
}

impl Dark {
    fn is_told(&self) -> bool {
        self.times >= if self.blind.may_pass { CUT_OFF_TIMES } else { BLIND_TIMES }
    }
}

/// What is known of a watch that fails, after one more look.
fn seen(known: Option<Dark>, now: Option<WatchFailure>) -> Option<Dark> {
    match (known, now) {
        // Each way of asking fails with words of its own: the first ones stay.
        (Some(dark), Some(now)) if dark.blind.kind == now.kind => {
            let blind = if dark.blind.code == now.code { dark.blind } else { now };
            Some(Dark { blind, times: dark.times + 1, well: 0 })
        }
        (Some(dark), None) if dark.well + 1 < WELL_TIMES => {
            Some(Dark { well: dark.well + 1, ..dark })
        }
        (_, now) => now.map(|blind| Dark { blind, times: 1, well: 0 }),
    }
}

/// What stood in the way of an object's last run, until a run of it meets something else or nothing. One that was not tried
/// says nothing.
fn remember(
    known: &mut BTreeMap<ObjectKey, String>,
    key: &ObjectKey,
    found: Option<&str>,
    outcome: Outcome,
) {
    match found {
        Some(found) if known.len() < REMEMBERED || known.contains_key(key) => {
            known.insert(key.clone(), found.to_owned());
        }
        None if !matches!(outcome, Outcome::Postponed(_) | Outcome::Held(_)) => {
            known.remove(key);
        }
        Some(_) | None => (),
    }
}

/// How many objects the revision has.
fn objects(view: &View) -> usize {
    let primary = &view.manifest().primary;
    let sources = view.all_sources().iter().filter(|source| source.watch == *primary);
    sources.map(|source| source.cache().len()).sum()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// kube-apiserver behind a balancer that accepts every watch and ends it.
    #[test]
    fn a_watch_that_is_opened_and_cut_off_again_is_told() {
        let kind = crate::model::kind::Kind::new("v1", "Pod");
        let blind = |code, may_pass| WatchFailure {
            kind: kind.clone(),
            code,
            message: String::new(),
            may_pass,
        };
        let dark = |code| Some(blind(code, false));
        let is_told = |known: &Option<Dark>| known.as_ref().is_some_and(Dark::is_told);
        let mut known = None;
        for _ in 0..BLIND_TIMES {
            known = seen(seen(known, dark(0)), None);
        }
        assert!(is_told(&known), "{known:?}");
        known = seen(seen(known, None), None);
        assert!(known.is_none(), "well at two looks in a row");
        known = seen(seen(known, dark(500)), dark(500));
        assert!(!is_told(&known), "not yet");
        assert!(is_told(&seen(known, dark(500))));
        let mut known = None;
        for times in 1..=CUT_OFF_TIMES {
            known = seen(known, Some(blind(0, true)));
            assert_eq!(is_told(&known), times == CUT_OFF_TIMES, "{times}");
        }
    }

    #[test]
    fn what_stands_in_the_way_is_what_the_last_run_met() {
        let mut known = BTreeMap::new();
        let key = |name: usize| ObjectKey::new(Some("a"), &name.to_string());
        let failed = Outcome::Failed;
        for name in 0..=REMEMBERED {
            remember(&mut known, &key(name), Some("may not patch"), failed);
        }
        assert_eq!(known.len(), REMEMBERED, "one is enough to tell");
        remember(&mut known, &key(0), Some("may not create"), failed);
        assert_eq!(known[&key(0)], "may not create", "another cause");
        remember(&mut known, &key(0), None, Outcome::Postponed(Duration::ZERO));
        assert_eq!(known.len(), REMEMBERED, "it was not tried");
        (0..REMEMBERED).for_each(|name| remember(&mut known, &key(name), None, failed));
        assert!(known.is_empty(), "nothing stays of what is over");
    }
}
