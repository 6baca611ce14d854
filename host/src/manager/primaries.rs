//! Decides who may reconcile a kind where a controller asks for it alone (`spec.exclusive`), and who shares one.
//!
//! Whoever reconciles it already comes first, the oldest before the younger; then whoever was staged first. What the
//! API server keeps of that is enough for the same answer after a restart. A claim counts only as far as its account
//! has the rights to reconcile: asking costs nothing, so asking alone stops nobody. Controllers of other namespaces are
//! named to nobody but the host's log.
//!
//! Invariants: `of_two_that_collide_the_first_has_it`, `who_was_refused_stands_in_nobodys_way`,
//! `who_may_not_reconcile_stands_in_nobodys_way`, `no_message_names_a_controller_of_another_namespace`; on a real
//! server `f46_two_teams_claim_one_kind_at_once`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use super::objects;
use crate::{
    model::{
        kind::{Kind, same_kind},
        object::ObjectKey,
    },
    watch::{Cache, Entry},
};

/// Namespaces, of a scope or of rights; `None`: all.
type Namespaces = Option<Arc<[Arc<str>]>>;

/// A controller as one who reconciles a kind in some namespaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claimant {
    /// `namespace/name`.
    pub(super) controller: String,
    pub(super) kind: Kind,
    pub(super) namespaces: Namespaces,
    /// Whether it asks for the kind alone.
    pub(super) exclusive: bool,
}

/// All claimants of this host.
#[derive(Debug)]
pub(super) struct Primaries {
    controllers: Arc<Cache>,
    state: Mutex<State>,
    /// Those who ask for a kind alone; moves when one begins or ends to.
    alone: watch::Sender<BTreeSet<String>>,
}

#[derive(Debug, Default)]
struct State {
    /// What the objects say, read once for each version of them.
    read: BTreeMap<ObjectKey, (Arc<Entry>, Option<Arc<Live>>)>,
    /// Those whose first revision was described and is not live yet, in that order.
    staged: Vec<Claimant>,
    /// What this host has found out of each controller's rights.
    rights: BTreeMap<String, Rights>,
    /// Who was in whose way when it was logged.
    told: BTreeMap<String, String>,
}

/// A controller that is live.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Live {
    created: String,
    claimant: Claimant,
}

/// What this host has found out of a controller's rights.
#[derive(Clone, Debug, Default)]
struct Rights {
    /// Where a revision of it has passed the check of rights; `None`: nobody has looked since the host began.
    confirmed: Option<Namespaces>,
    /// It may not reconcile at present.
    lacking: bool,
}

/// Who else reconciles a kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sharing {
    /// In the same namespace: `namespace/name`.
    pub(super) with: Vec<String>,
    /// In other namespaces: how many.
    pub(super) elsewhere: usize,
}

/// The claim of a first revision that is still being staged: given up when it is dropped.
#[derive(Debug)]
pub(super) struct Entered {
    primaries: Option<Arc<Primaries>>,
    controller: String,
}

impl Entered {
    pub(super) fn new(primaries: Arc<Primaries>, controller: &str) -> Self {
        Self { primaries: Some(primaries), controller: controller.to_owned() }
    }

    /// The revision is staged: its claim stays.
    pub(super) fn keep(mut self) {
        self.primaries = None;
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        if let Some(primaries) = &self.primaries {
            primaries.withdraw(&self.controller);
        }
    }
}

impl PartialOrd for Claimant {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Claimant {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.controller.cmp(&other.controller)
    }
}

impl Primaries {
    pub(super) fn new(controllers: Arc<Cache>) -> Self {
        Self { controllers, state: Mutex::default(), alone: watch::channel(BTreeSet::new()).0 }
    }

    /// Moves when a controller begins or ends to ask for its kind alone: it may be in another's way since.
    pub(super) fn changes(&self) -> watch::Receiver<BTreeSet<String>> {
        self.alone.subscribe()
    }

    /// Says whether a controller asks for its kind alone, and whether it lacks the rights to reconcile at all.
    pub(super) fn note(&self, controller: &str, exclusive: bool, lacks_rights: bool) {
        let mut state = self.state();
        let rights = state.rights.entry(controller.to_owned()).or_default();
        rights.lacking = lacks_rights;
        if lacks_rights {
            // What its spec says next counts only when it was looked at.
            rights.confirmed.get_or_insert_with(|| Some([].into()));
            state.staged.retain(|other| other.controller != controller);
        }
        drop(state);
        let asks = exclusive && !lacks_rights;
        self.alone.send_if_modified(|alone| {
            if asks { alone.insert(controller.to_owned()) } else { alone.remove(controller) }
        });
    }

    /// A revision of the controller has passed the check of rights.
    pub(super) fn confirm(&self, controller: &str, namespaces: Namespaces) {
        let rights = Rights { confirmed: Some(namespaces), lacking: false };
        self.state().rights.insert(controller.to_owned(), rights);
    }

    /// Enters a controller whose first revision wants to go live; what is in its way. Who is refused claims nothing.
    pub(super) fn enter(&self, claimant: Claimant) -> Option<String> {
        let mut state = self.state();
        let controller = claimant.controller.clone();
        match state.staged.iter_mut().find(|other| other.controller == controller) {
            Some(before) => *before = claimant,
            None => state.staged.push(claimant),
        }
        let staged = std::mem::take(&mut state.staged);
        let in_the_way = state.verdict(&self.controllers, &staged, &controller);
        state.staged = staged;
        if in_the_way.is_some() {
            state.staged.retain(|other| other.controller != controller);
        }
        in_the_way
    }

    /// The first revision of a controller has failed after all: it claims nothing.
    pub(super) fn withdraw(&self, controller: &str) {
        self.state().staged.retain(|other| other.controller != controller);
    }

    /// What is in the way of a controller that is live; none for most without a look at the others.
    pub(super) fn in_the_way_of(&self, controller: &str) -> Option<String> {
        let mut state = self.state();
        state.read(&self.controllers).iter().any(|live| live.claimant.exclusive).then_some(())?;
        state.verdict(&self.controllers, &[], controller)
    }

    /// Whether anybody asks for this kind alone, so that what is in the way may change at any time.
    pub(super) fn is_contested(&self, kind: &Kind) -> bool {
        let lives = self.state().read(&self.controllers);
        lives.iter().any(|live| live.claimant.exclusive && same_kind(&live.claimant.kind, kind))
    }

    /// Who else reconciles `kind`, as the team of `controller` may know it.
    pub(super) fn sharing(&self, controller: &str, kind: &Kind) -> Sharing {
        let mut sharing = Sharing::default();
        for live in self.state().read(&self.controllers) {
            let other = &live.claimant;
            if other.controller == controller || !same_kind(&other.kind, kind) {
                continue;
            }
            if namespace(&other.controller) == namespace(controller) {
                sharing.with.push(other.controller.clone());
            } else {
                sharing.elsewhere += 1;
            }
        }
        sharing
    }

    /// The controller is gone.
    pub(super) fn forget(&self, controller: &str) {
        let mut state = self.state();
        state.staged.retain(|other| other.controller != controller);
        state.rights.remove(controller);
        state.told.remove(controller);
        drop(state);
        self.alone.send_if_modified(|alone| alone.remove(controller));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl State {
    /// The live controllers in the order of their keys.
    fn read(&mut self, controllers: &Cache) -> Vec<Arc<Live>> {
        let entries = controllers.entries();
        for entry in &entries {
            let known = self.read.get(entry.key());
            if !known.is_some_and(|(known, _)| Arc::ptr_eq(known, entry)) {
                let read = (entry.clone(), live(entry).map(Arc::new));
                self.read.insert(entry.key().clone(), read);
            }
        }
        if self.read.len() > entries.len() {
            let there: BTreeSet<_> = entries.iter().map(|entry| entry.key()).collect();
            self.read.retain(|key, _| there.contains(key));
        }
        self.read.values().filter_map(|(_, live)| live.clone()).collect()
    }

    /// Those who are live, by age, then those who are not; as far as their claims count.
    fn in_order(&mut self, controllers: &Cache, staged: &[Claimant]) -> Vec<Claimant> {
        let mut live = self.read(controllers);
        live.sort();
        let is_live =
            |one: &&Claimant| live.iter().any(|it| it.claimant.controller == one.controller);
        let new: Vec<_> = staged.iter().filter(|one| !is_live(one)).cloned().collect();
        let live = live.iter().filter_map(|live| self.counts(&live.claimant));
        live.chain(new).collect()
    }

    /// The claim as far as there are rights behind it; after a restart it counts until somebody has looked.
    fn counts(&self, claimant: &Claimant) -> Option<Claimant> {
        let rights = self.rights.get(&claimant.controller).cloned().unwrap_or_default();
        let namespaces: Namespaces = match (&claimant.namespaces, rights.confirmed.flatten()) {
            (Some(asked), Some(may)) => {
                Some(asked.iter().filter(|name| may.contains(name)).cloned().collect())
            }
            (asked, may) => asked.clone().or(may),
        };
        if rights.lacking || namespaces.as_ref().is_some_and(|some| some.is_empty()) {
            return None;
        }
        Some(Claimant { namespaces, ..claimant.clone() })
    }

    fn verdict(
        &mut self,
        controllers: &Cache,
        staged: &[Claimant],
        controller: &str,
    ) -> Option<String> {
        let all = self.in_order(controllers, staged);
        let Some((claimant, holder)) = verdict(&all, controller) else {
            self.told.remove(controller);
            return None;
        };
        let name = &holder.controller;
        if self.told.insert(controller.to_owned(), name.clone()).as_ref() != Some(name) {
            tracing::info!(controller, holder = name, kind = %claimant.kind, "a controller is refused a kind that another one has");
        }
        Some(claimant.refused_for(holder))
    }
}

fn live(entry: &Entry) -> Option<Live> {
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
    Some(Live { created: created.unwrap_or_default(), claimant })
}

/// Who of `all` is in the way of `controller`, behind itself: each is refused if it collides with one that was not.
fn verdict<'a>(all: &'a [Claimant], controller: &str) -> Option<(&'a Claimant, &'a Claimant)> {
    let mut holders: Vec<&Claimant> = vec![];
    for claimant in all {
        let holder = holders.iter().find(|holder| holder.collides(claimant));
        if claimant.controller == controller {
            return holder.map(|holder| (claimant, *holder));
        }
        if holder.is_none() {
            holders.push(claimant);
        }
    }
    None
}

fn namespace(controller: &str) -> &str {
    controller.split_once('/').map_or("", |(namespace, _)| namespace)
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
        let kind = &self.kind;
        let is_neighbour = namespace(&self.controller) == namespace(&holder.controller);
        let (who, whom) = if is_neighbour {
            (format!("the controller {}", holder.controller), "")
        } else {
            let whom = "; the platform team finds in the host's log whose it is";
            ("another controller, of another namespace,".to_owned(), whom)
        };
        if holder.exclusive {
            return format!(
                "{who} has {kind} for itself (its spec.exclusive): choose namespaces in spec.scope that it does not work in, or have it give them up{whom}"
            );
        }
        format!(
            "spec.exclusive asks for {kind} alone, but {who} reconciles it already: choose other namespaces in spec.scope, or share it without spec.exclusive{whom}"
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

    fn words(all: &[Claimant], controller: &str) -> Option<String> {
        verdict(all, controller).map(|(claimant, holder)| claimant.refused_for(holder))
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
            assert_eq!(words(&all, "x/a"), None);
            let refused = words(&all, "x/b");
            assert_eq!(refused.is_some(), collide, "{refused:?}");
            assert!(refused.is_none_or(|text| text.contains("x/a")));
        }
        let mut other = claimant("b", &["n"], true);
        other.kind = Kind::new("y.io/v1", "Bucket");
        assert_eq!(words(&[claimant("a", &["n"], true), other], "x/b"), None);
    }

    #[test]
    fn who_was_refused_stands_in_nobodys_way() {
        let all = [
            claimant("a", &["n"], true),
            claimant("b", &["n", "m"], true),
            claimant("c", &["m"], true),
        ];
        assert!(words(&all, "x/b").is_some_and(|text| text.contains("x/a")));
        assert_eq!(words(&all, "x/c"), None);
        let primaries = Primaries::new(Arc::default());
        let [a, b, c] = all;
        assert_eq!(primaries.enter(a.clone()), None);
        assert!(primaries.enter(b.clone()).is_some());
        primaries.withdraw("x/a");
        assert_eq!(primaries.enter(c), None, "a refused claim is none");
        assert!(primaries.enter(b).is_some(), "it is behind whoever came meanwhile");
        assert_eq!(primaries.enter(a), None);
    }

    #[test]
    fn no_message_names_a_controller_of_another_namespace() {
        for (first, second) in [(true, false), (false, true), (true, true)] {
            let mut holder = claimant("secret-project", &["n"], first);
            holder.controller = "other-team/secret-project".into();
            let all = [holder, claimant("b", &["n"], second)];
            let text = words(&all, "x/b").unwrap();
            assert!(!text.contains("secret-project") && !text.contains("other-team"), "{text}");
            assert!(text.contains("another controller") && text.contains("host's log"), "{text}");
        }
    }

    /// A WasmController that is live, as the host's cache has it.
    fn object(namespace: &str, name: &str, scope: &[&str], exclusive: bool) -> Entry {
        static VERSION: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
        let version = VERSION.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let text = serde_json::json!({
            "apiVersion": "nagaya.dev/v1alpha1", "kind": "WasmController",
            "metadata": {"name": name, "namespace": namespace, "uid": name,
                "resourceVersion": version.to_string(), "creationTimestamp": "2024-01-01T00:00:00Z"},
            "spec": {"module": {"digest": "sha256:1"}, "serviceAccountName": "a",
                "exclusive": exclusive, "scope": {"namespaces": scope}},
            "status": {"primary": {"group": "x.io", "version": "v1", "kind": "Bucket"},
                "phase": "Running"},
        });
        crate::watch::envelope::object(&text.to_string()).unwrap()
    }

    #[test]
    fn who_may_not_reconcile_stands_in_nobodys_way() {
        let cache: Arc<Cache> = Arc::default();
        let primaries = Primaries::new(cache.clone());
        cache.written(object("x", "a", &["n"], true));
        let newcomer = || claimant("z", &["n"], false);
        assert!(primaries.enter(newcomer()).is_some(), "after a restart it counts at first");
        primaries.note("x/a", true, true);
        assert_eq!(primaries.enter(newcomer()), None, "its account may nothing");
        primaries.withdraw("x/z");
        primaries.note("x/a", true, false);
        assert_eq!(primaries.enter(newcomer()), None, "nobody has looked at its rights again");
        primaries.withdraw("x/z");
        primaries.confirm("x/a", Some([Arc::from("n")].into()));
        assert!(primaries.enter(newcomer()).is_some(), "it has its rights again");

        // A scope that is written into the spec claims nothing before its rights were looked at.
        cache.written(object("x", "a", &["n", "m"], true));
        assert_eq!(primaries.enter(claimant("y", &["m"], true)), None);
        primaries.withdraw("x/y");
        primaries.confirm("x/a", Some([Arc::from("n"), Arc::from("m")].into()));
        assert!(primaries.enter(claimant("y", &["m"], true)).is_some());
        assert!(primaries.changes().borrow().contains("x/a"));
        primaries.forget("x/a");
        assert!(!primaries.changes().borrow().contains("x/a"));
    }

    #[test]
    fn others_are_named_in_the_same_namespace_and_counted_elsewhere() {
        let cache: Arc<Cache> = Arc::default();
        let primaries = Primaries::new(cache.clone());
        for (namespace, name) in [("x", "a"), ("x", "b"), ("y", "c"), ("z", "d")] {
            cache.written(object(namespace, name, &["n"], false));
        }
        let kind = Kind::new("x.io/v2", "Bucket");
        let sharing = Sharing { with: vec!["x/b".into()], elsewhere: 2 };
        assert_eq!(primaries.sharing("x/a", &kind), sharing);
        assert_eq!(primaries.sharing("x/a", &Kind::new("y.io/v1", "Bucket")), Sharing::default());
        cache.deleted(&object("y", "c", &["n"], false));
        assert_eq!(primaries.sharing("x/a", &kind).elsewhere, 1);
        let read = |key: &str| {
            let state = primaries.state();
            let (_, live) = state.read.iter().find(|(at, _)| at.to_string() == key).unwrap();
            live.1.clone().unwrap()
        };
        let before = read("x/b");
        cache.written(object("x", "a", &["m"], false));
        primaries.sharing("x/a", &kind);
        assert!(Arc::ptr_eq(&before, &read("x/b")), "what has not changed is not read again");
    }
}
