//! Between a revision's watches and its controller's queue: only what the account may see gets through.
//!
//! A wake-up that cannot be delivered now, because its right is not confirmed or the view is not live, is remembered
//! and delivered later: nothing that was dropped is gone. Two rights count: the one to the watch that saw the change,
//! and the one to the primaries, whose names are what comes out.
//!
//! Invariant: `whatever_happens_every_changed_key_is_woken_at_last`.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use super::missed::Missed;
use crate::{
    access::grant::Right,
    clock,
    model::{manifest::Manifest, object::ObjectKey},
    queue::{Urgency, shared::SharedQueue},
    watch::{Cache, Wake, Wakes},
};
use parking_lot::{Mutex, MutexGuard};

/// Where the wake-ups of all watches of a view come out: the controller's queue, while the view is live.
pub struct Outlet {
    queue: Arc<SharedQueue>,
    may: Box<dyn Fn(&Right) -> bool + Send + Sync>,
    open: AtomicBool,
    primaries: OnceLock<Vec<Primary>>,
}

/// One watch of the reconciled kind.
pub(super) struct Primary {
    pub(super) namespace: Option<Arc<str>>,
    pub(super) cache: Arc<Cache>,
    pub(super) door: Arc<Door>,
}

/// The rights to one watch, and what could not be delivered without them.
#[derive(Debug)]
pub(super) struct Door {
    pub(super) rights: Arc<[Right]>,
    missed: Mutex<Missed>,
}

/// Stands between a shared watch and the controller's queue.
#[derive(Debug)]
pub struct WakeFilter {
    outlet: Arc<Outlet>,
    door: Arc<Door>,
    namespaces: Option<Arc<[Arc<str>]>>,
    index_paths: BTreeMap<String, String>,
}

impl fmt::Debug for Outlet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outlet").field("open", &self.open).finish_non_exhaustive()
    }
}

impl Outlet {
    /// Closed at first; `may` says whether the account's right is confirmed at this moment.
    pub fn new(
        queue: Arc<SharedQueue>,
        may: impl Fn(&Right) -> bool + Send + Sync + 'static,
    ) -> Self {
        let (open, primaries) = (AtomicBool::new(false), OnceLock::new());
        Self { queue, may: Box::new(may), open, primaries }
    }

    /// From now on it is known which primaries there are.
    pub(super) fn set_primaries(&self, primaries: Vec<Primary>) {
        let _ = self.primaries.set(primaries);
    }

    /// Opens, and wakes every primary; `doors` are all of the view, which may have kept back what is gone.
    pub(super) fn open<'a>(&self, doors: impl Iterator<Item = &'a Arc<Door>>, urgency: Urgency) {
        self.open.store(true, Ordering::SeqCst);
        self.keep_gone(doors);
        self.wake_all(urgency);
    }

    /// Forgets wake-ups of primaries that exist: going live wakes those anyway.
    pub(super) fn keep_gone<'a>(&self, doors: impl Iterator<Item = &'a Arc<Door>>) {
        for door in doors {
            door.missed().keep_gone(|key| self.exists(key));
        }
    }

    /// Delivers nothing any more.
    pub(super) fn close(&self) {
        self.open.store(false, Ordering::SeqCst);
    }

    pub(super) fn primaries(&self) -> impl Iterator<Item = &Primary> {
        self.primaries.get().into_iter().flatten()
    }

    fn is_open(&self) -> bool {
        self.open.load(Ordering::SeqCst)
    }

    fn passes(&self, door: &Door) -> bool {
        self.is_open() && door.rights.iter().all(&self.may)
    }

    fn exists(&self, key: &ObjectKey) -> bool {
        self.primaries().any(|primary| primary.cache.get(key).is_some())
    }

    /// Every primary, as far as the account may see it.
    pub(super) fn wake_all(&self, urgency: Urgency) {
        for primary in self.primaries() {
            if self.passes(&primary.door) {
                self.queue.add_all(primary.cache.keys(), urgency);
            } else {
                primary.door.missed().remember_all(urgency);
            }
        }
    }

    /// One primary, if the account may see those of its namespace.
    pub(super) fn wake(&self, key: ObjectKey, urgency: Urgency) {
        let covers =
            |primary: &&Primary| primary.namespace.is_none() || primary.namespace == key.namespace;
        match self.primaries().find(covers) {
            Some(primary) if !self.passes(&primary.door) => self.keep(&primary.door, key, urgency),
            _ => self.queue.add(&key, urgency),
        }
    }

    fn keep(&self, door: &Door, key: ObjectKey, urgency: Urgency) {
        let mut missed = door.missed();
        if !self.is_open() {
            missed.grow_old(clock::now());
        }
        missed.remember(key, urgency, |key| self.exists(key));
    }

    /// Delivers what `door` has kept back, if it may pass now.
    pub(super) fn deliver(&self, door: &Door) {
        if self.passes(door) {
            self.take_over(door);
        }
    }

    /// Delivers what `door` has kept back, as far as the primaries' own doors let it pass: also of a closed view.
    pub(super) fn take_over(&self, door: &Door) {
        let (all, keys) = door.missed().take();
        if let Some(urgency) = all {
            self.wake_all(urgency);
        }
        for (key, urgency) in keys {
            self.wake(key, urgency);
        }
    }
}

impl Door {
    /// A door of these rights.
    pub(super) fn new(rights: Arc<[Right]>) -> Self {
        Self { rights, missed: Mutex::default() }
    }

    fn missed(&self) -> MutexGuard<'_, Missed> {
        self.missed.lock()
    }
}

impl WakeFilter {
    /// A filter of one watch of a revision, which rests on `rights`.
    pub fn new(
        outlet: Arc<Outlet>,
        rights: Arc<[Right]>,
        namespaces: Option<Arc<[Arc<str>]>>,
        manifest: &Manifest,
    ) -> Self {
        let index_paths =
            manifest.indexes.iter().map(|index| (index.name.clone(), index.path.clone())).collect();
        Self { outlet, door: Arc::new(Door::new(rights)), namespaces, index_paths }
    }

    pub(super) fn door(&self) -> &Arc<Door> {
        &self.door
    }

    /// A scope of namespaces says nothing about primaries that lie in none.
    fn in_scope(&self, key: &ObjectKey) -> bool {
        let (Some(namespaces), Some(own)) = (&self.namespaces, &key.namespace) else { return true };
        namespaces.contains(own)
    }

    /// The primaries of an index lookup as they are now: one that comes to match later is woken by its own change.
    fn indexed(&self, index: &str, values: &[(Option<Arc<str>>, String)]) -> Vec<ObjectKey> {
        let Some(path) = self.index_paths.get(index) else { return vec![] };
        let find = |primary: &Primary| {
            let keys = values.iter().flat_map(|(namespace, value)| {
                primary.cache.indexed(path, namespace.as_deref(), value)
            });
            keys.collect::<Vec<_>>()
        };
        self.outlet.primaries().flat_map(find).collect()
    }
}

impl Wakes for WakeFilter {
    fn wake(&self, wake: Wake, urgency: Urgency) {
        let (outlet, door) = (&self.outlet, &self.door);
        let passes = outlet.passes(door);
        let keys = match wake {
            Wake::Every if passes => return outlet.wake_all(urgency),
            Wake::Every => return door.missed().remember_all(urgency),
            Wake::One(key) if self.in_scope(&key) => vec![key],
            Wake::One(_) => vec![],
            Wake::Indexed { index, values } => self.indexed(&index, &values),
        };
        for key in keys {
            if passes {
                outlet.wake(key, urgency);
            } else {
                outlet.keep(door, key, urgency);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashSet};

    use serde_json::json;

    use super::*;
    use crate::{
        apiserver::Resource,
        model::{
            kind::Kind,
            manifest::{Index, Mapping, PredicateStep, Projection, Reference, Watch},
        },
        queue::{BACKGROUND, CHANGE, Outcome},
        watch::{Change, Entry, Trigger, envelope},
    };

    const KINDS: [&str; 5] = ["Site", "ConfigMap", "Setting", "Link", "Note"];
    const PATH: &str = "spec.ref";

    fn resource(kind: &str) -> Resource {
        let plural = format!("{}s", kind.to_lowercase());
        let kind = Kind::new("x.io/v1", kind);
        Resource { kind, plural, namespaced: true, has_status: true }
    }

    fn watch(number: usize) -> Watch {
        let (mapping, predicate) = match number {
            0 => (Mapping::Same, vec![PredicateStep::GenerationChanged]),
            1 => (Mapping::Controller, vec![PredicateStep::MatchesLabels("on=yes".into())]),
            2 => (Mapping::Every, vec![]),
            3 => (Mapping::Index("by".into()), vec![]),
            _ => {
                let reference = Reference { name: PATH.into(), namespace: None };
                (Mapping::Field(reference), vec![])
            }
        };
        Watch {
            kind: Kind::new("x.io/v1", KINDS[number]),
            projection: Projection::Full,
            label_selector: None,
            field_selector: None,
            predicate,
            mapping,
        }
    }

    fn manifest() -> Manifest {
        let index = Index { name: "by".into(), kind: watch(0).kind, path: PATH.into() };
        Manifest {
            primary: watch(0),
            owned: vec![watch(1)],
            watches: (2..KINDS.len()).map(watch).collect(),
            live: vec![],
            writes: vec![],
            indexes: vec![index],
            http: vec![],
            finalizer: None,
        }
    }

    /// A view without its hub: what its watches would tell is told by the test.
    struct Window {
        outlet: Arc<Outlet>,
        gates: Vec<(Trigger, WakeFilter)>,
    }

    impl Window {
        fn doors(&self) -> impl Iterator<Item = &Arc<Door>> {
            self.gates.iter().map(|(_, gate)| gate.door())
        }

        fn tell(&self, kind: usize, change: &Change, priority: i32) {
            let (trigger, gate) = &self.gates[kind];
            for wake in trigger.wakes(change) {
                gate.wake(wake, Urgency::news(priority));
            }
        }
    }

    struct World {
        random: fastrand::Rng,
        caches: Vec<Arc<Cache>>,
        version: u64,
        refused: Arc<Mutex<HashSet<Arc<str>>>>,
        queue: Arc<SharedQueue>,
        live: Option<Window>,
        staged: Option<Window>,
        closing: Vec<Window>,
        /// Must be woken after its last change.
        pending: BTreeSet<ObjectKey>,
    }

    impl World {
        fn new(seed: u64) -> Self {
            let caches: Vec<Arc<Cache>> = KINDS.iter().map(|_| Arc::default()).collect();
            caches[0].index(PATH);
            Self {
                random: fastrand::Rng::with_seed(seed),
                caches,
                version: 0,
                refused: Arc::default(),
                queue: Arc::default(),
                live: None,
                staged: None,
                closing: vec![],
                pending: BTreeSet::new(),
            }
        }

        fn stage(&self) -> Window {
            let refused = self.refused.clone();
            let may = move |right: &Right| !refused.lock().contains(&right.resource);
            let outlet = Arc::new(Outlet::new(self.queue.clone(), may));
            let gate = |number: usize| {
                let rights = [Right::on("watch", &resource(KINDS[number]), Some("n"))];
                let scope = Some([Arc::from("n")].into());
                let gate = WakeFilter::new(outlet.clone(), rights.into(), scope, &manifest());
                (Trigger::new(&watch(number), &resource("Site")).unwrap(), gate)
            };
            let gates: Vec<_> = (0..KINDS.len()).map(gate).collect();
            let window = Window { outlet, gates };
            for (kind, cache) in self.caches.iter().enumerate() {
                for entry in cache.entries() {
                    window.tell(kind, &Change { old: None, new: Some(entry) }, BACKGROUND);
                }
            }
            window.outlet.set_primaries(vec![Primary {
                namespace: Some("n".into()),
                cache: self.caches[0].clone(),
                door: window.gates[0].1.door().clone(),
            }]);
            window.outlet.keep_gone(window.doors());
            window
        }

        fn entry(&mut self, kind: usize, name: &str) -> Entry {
            self.version += 1;
            let (on, owner, of) =
                (self.random.u64(..2), self.random.u64(..6), self.random.u64(..6));
            let text = json!({
                "apiVersion": "x.io/v1", "kind": KINDS[kind], "spec": {"ref": format!("o{of}")},
                "metadata": {
                    "name": name, "namespace": "n", "uid": name,
                    "resourceVersion": self.version.to_string(),
                    "generation": self.version / (1 + on),
                    "labels": {"on": if on == 0 { "no" } else { "yes" }},
                    "ownerReferences": [{"apiVersion": "x.io/v1", "kind": "Site", "uid": "u",
                        "name": format!("o{owner}"), "controller": true}],
                },
            });
            envelope::object(&text.to_string()).unwrap()
        }

        /// Changes or deletes an object, and notes whom that must wake.
        fn change(&mut self, kind: usize, deletes: bool) {
            let name = format!("o{}", self.random.u64(..6));
            let entry = self.entry(kind, &name);
            let cache = self.caches[kind].clone();
            let change = if deletes { cache.deleted(&entry) } else { cache.written(entry) };
            let Some(change) = change else { return };
            let Some(first) = self.live.as_ref().or(self.staged.as_ref()) else { return };
            let primaries = &self.caches[0];
            for wake in first.gates[kind].0.wakes(&change) {
                match wake {
                    Wake::One(key) => self.pending.extend([key]),
                    Wake::Every => self.pending.extend(primaries.keys()),
                    Wake::Indexed { values, .. } => {
                        self.pending.extend(values.iter().flat_map(|(namespace, value)| {
                            primaries.indexed(PATH, namespace.as_deref(), value)
                        }));
                    }
                }
            }
            let windows = self.live.iter().chain(&self.staged).chain(&self.closing);
            for window in windows {
                window.tell(kind, &change, CHANGE);
            }
        }

        fn swap(&mut self) {
            let Some(next) = self.staged.take() else {
                self.staged = Some(self.stage());
                return;
            };
            next.outlet.open(next.doors(), Urgency::news(BACKGROUND));
            self.closing.extend(self.live.replace(next));
        }

        fn close(&mut self) {
            for old in std::mem::take(&mut self.closing) {
                old.outlet.close();
                for door in old.doors() {
                    self.live.as_ref().unwrap().outlet.take_over(door);
                }
            }
        }

        fn deliver(&self) {
            for door in self.live.iter().flat_map(Window::doors) {
                self.live.as_ref().unwrap().outlet.deliver(door);
            }
        }

        fn run_all(&mut self) -> usize {
            let mut count = 0;
            while let Some(taken) = self.queue.take() {
                self.pending.remove(&taken.key);
                self.queue.done(&taken.key, Outcome::Done);
                count += 1;
            }
            count
        }

        fn step(&mut self) {
            match self.random.u64(..14) {
                0..=2 => self.change(0, false),
                3..=4 => self.change(0, true),
                5..=6 => {
                    let kind = 1 + self.random.u64(..4);
                    self.change(usize::try_from(kind).unwrap(), false);
                }
                7 => {
                    let kind = 1 + self.random.u64(..4);
                    self.change(usize::try_from(kind).unwrap(), true);
                }
                8..=9 => {
                    let kind = usize::try_from(self.random.u64(..5)).unwrap();
                    let plural: Arc<str> = resource(KINDS[kind]).plural.into();
                    let mut refused = self.refused.lock();
                    if !refused.remove(&plural) {
                        refused.insert(plural);
                    }
                }
                10 => self.swap(),
                11 => self.close(),
                12 => self.deliver(),
                _ => drop(self.run_all()),
            }
        }
    }

    /// Random changes, deletions, rights that come and go, and swaps, against the set of keys that each must wake.
    #[test]
    fn whatever_happens_every_changed_key_is_woken_at_last() {
        for seed in 1..400 {
            let mut world = World::new(0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(seed));
            for _ in 0..120 {
                let hidden = world.refused.lock().contains("sites");
                let before = hidden.then(|| world.run_all());
                world.step();
                if before.is_some() && world.refused.lock().contains("sites") {
                    assert_eq!(world.run_all(), 0, "seed {seed}: a name has leaked");
                }
            }
            world.refused.lock().clear();
            while world.live.is_none() {
                world.swap();
            }
            world.close();
            world.deliver();
            world.run_all();
            assert_eq!(world.pending, BTreeSet::new(), "seed {seed}");
        }
    }
}
