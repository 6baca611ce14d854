//! Decides who may reconcile a kind where a controller asks for it alone (`spec.exclusive`).
//!
//! Whoever reconciles it already comes first, the oldest before the younger; then whoever was staged first. What the
//! API server keeps of that is enough for the same answer after a restart.
//!
//! Invariants: `of_two_that_collide_the_first_has_it`, `who_was_refused_stands_in_nobodys_way`; on a real server
//! `f46_two_teams_claim_one_kind_at_once`.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;

use super::objects;
use crate::{
    manifest::{Kind, same_kind},
    watch::{Cache, Entry},
};

/// A controller as one who reconciles a kind in some namespaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claimant {
    /// `namespace/name`.
    pub(super) controller: String,
    pub(super) kind: Kind,
    /// `None`: all.
    pub(super) namespaces: Option<Arc<[Arc<str>]>>,
    /// Whether it asks for the kind alone.
    pub(super) exclusive: bool,
}

/// All claimants of this host.
#[derive(Debug)]
pub(super) struct Primaries {
    controllers: Arc<Cache>,
    /// Those whose first revision was described and is not live yet, in that order.
    staged: Mutex<Vec<Claimant>>,
    /// Those who ask for a kind alone; moves when one begins or ends to.
    alone: watch::Sender<BTreeSet<String>>,
}

impl Primaries {
    pub(super) fn new(controllers: Arc<Cache>) -> Self {
        Self { controllers, staged: Mutex::default(), alone: watch::channel(BTreeSet::new()).0 }
    }

    /// Moves when a controller begins or ends to ask for its kind alone: it may be in another's way since.
    pub(super) fn changes(&self) -> watch::Receiver<BTreeSet<String>> {
        self.alone.subscribe()
    }

    /// Says whether a controller asks for its kind alone.
    pub(super) fn note(&self, controller: &str, exclusive: bool) {
        self.alone.send_if_modified(|alone| {
            if exclusive { alone.insert(controller.to_owned()) } else { alone.remove(controller) }
        });
    }

    /// Enters a controller whose first revision wants to go live; what is in its way.
    pub(super) fn enter(&self, claimant: Claimant) -> Option<String> {
        let mut staged = self.staged.lock().unwrap_or_else(PoisonError::into_inner);
        let controller = claimant.controller.clone();
        match staged.iter_mut().find(|other| other.controller == controller) {
            Some(before) => *before = claimant,
            None => staged.push(claimant),
        }
        verdict(&self.in_order(&staged), &controller)
    }

    /// What is in the way of a controller that is live; none for most without a look at the others.
    pub(super) fn in_the_way_of(&self, controller: &str) -> Option<String> {
        let entries = self.controllers.entries();
        entries.iter().any(|entry| claims(entry)).then_some(())?;
        verdict(&self.in_order(&[]), controller)
    }

    /// Whether anybody asks for this kind alone, so that what is in the way may change at any time.
    pub(super) fn is_contested(&self, kind: &Kind) -> bool {
        let claiming = self.controllers.entries().into_iter().filter(|entry| claims(entry));
        claiming
            .filter_map(|entry| objects::controller(&entry)?.status?.primary)
            .any(|primary| same_kind(&primary, kind))
    }

    /// The controller is gone.
    pub(super) fn forget(&self, controller: &str) {
        let mut staged = self.staged.lock().unwrap_or_else(PoisonError::into_inner);
        staged.retain(|other| other.controller != controller);
        drop(staged);
        self.note(controller, false);
    }

    /// Those who are live, by age, then those who are not.
    fn in_order(&self, staged: &[Claimant]) -> Vec<Claimant> {
        let entries = self.controllers.entries();
        let mut live: Vec<_> = entries.iter().filter_map(|entry| live(entry)).collect();
        live.sort_by(|one, other| {
            (&one.0, &one.1.controller).cmp(&(&other.0, &other.1.controller))
        });
        let mut all: Vec<_> = live.into_iter().map(|(_, claimant)| claimant).collect();
        let is_new = |one: &&Claimant| all.iter().all(|live| live.controller != one.controller);
        let new: Vec<_> = staged.iter().filter(is_new).cloned().collect();
        all.extend(new);
        all
    }
}

/// A quick look, for what few controllers do.
fn claims(entry: &Entry) -> bool {
    entry.body().contains(r#""exclusive":true"#)
}

fn live(entry: &Entry) -> Option<(String, Claimant)> {
    let controller = objects::controller(entry)?;
    let created = controller.metadata.creation_timestamp.map(|at| at.0.to_string());
    let scope = controller.spec.scope;
    let claimant = Claimant {
        controller: entry.key().to_string(),
        kind: controller.status?.primary?,
        namespaces: scope
            .map(|scope| scope.namespaces.iter().map(|name| name.as_str().into()).collect()),
        exclusive: controller.spec.exclusive,
    };
    Some((created.unwrap_or_default(), claimant))
}

/// Who of `all` is in the way of `controller`, in words: each is refused if it collides with one that was not.
fn verdict(all: &[Claimant], controller: &str) -> Option<String> {
    let mut holders: Vec<&Claimant> = vec![];
    for claimant in all {
        let holder = holders.iter().find(|holder| holder.collides(claimant));
        if claimant.controller == controller {
            return holder.map(|holder| claimant.refused_for(holder));
        }
        if holder.is_none() {
            holders.push(claimant);
        }
    }
    None
}

impl Claimant {
    fn collides(&self, other: &Self) -> bool {
        let meet = match (&self.namespaces, &other.namespaces) {
            (Some(some), Some(others)) => some.iter().any(|name| others.contains(name)),
            _ => true,
        };
        (self.exclusive || other.exclusive) && same_kind(&self.kind, &other.kind) && meet
    }

    fn refused_for(&self, holder: &Self) -> String {
        let (kind, holder_name) = (&self.kind, &holder.controller);
        if holder.exclusive {
            return format!(
                "the controller {holder_name} has {kind} for itself (its spec.exclusive): choose namespaces in spec.scope that it does not work in, or have it give them up"
            );
        }
        format!(
            "spec.exclusive asks for {kind} alone, but the controller {holder_name} reconciles it already: choose other namespaces in spec.scope, or share it without spec.exclusive"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claimant(name: &str, namespaces: &[&str], exclusive: bool) -> Claimant {
        let namespaces: Arc<[Arc<str>]> = namespaces.iter().map(|name| (*name).into()).collect();
        Claimant {
            controller: format!("x/{name}"),
            kind: Kind::new("x.io/v1", "Bucket"),
            namespaces: Some(namespaces).filter(|names| !names.is_empty()),
            exclusive,
        }
    }

    #[test]
    fn of_two_that_collide_the_first_has_it() {
        for (first, second, collide) in [
            (claimant("a", &["n"], true), claimant("b", &["n"], false), true),
            (claimant("a", &["n"], false), claimant("b", &["m", "n"], true), true),
            (claimant("a", &[], true), claimant("b", &["n"], true), true),
            (claimant("a", &["n"], false), claimant("b", &["n"], false), false),
            (claimant("a", &["n"], true), claimant("b", &["m"], true), false),
        ] {
            let all = [first, second];
            assert_eq!(verdict(&all, "x/a"), None);
            let refused = verdict(&all, "x/b");
            assert_eq!(refused.is_some(), collide, "{refused:?}");
            assert!(refused.is_none_or(|text| text.contains("x/a")));
        }
        let mut other = claimant("b", &["n"], true);
        other.kind = Kind::new("y.io/v1", "Bucket");
        assert_eq!(verdict(&[claimant("a", &["n"], true), other], "x/b"), None);
    }

    #[test]
    fn who_was_refused_stands_in_nobodys_way() {
        let all = [
            claimant("a", &["n"], true),
            claimant("b", &["n", "m"], true),
            claimant("c", &["m"], true),
        ];
        assert!(verdict(&all, "x/b").is_some_and(|text| text.contains("x/a")));
        assert_eq!(verdict(&all, "x/c"), None);
    }
}
