//! Every object of one watch, as it was last seen, with indexes: one writer, many readers.
//!
//! Readers get shared, immutable entries; nothing they do reaches the cache. The writer is the task of the watch,
//! and the only one that calls the methods that change something. Nothing is evaluated, read or indexed under the lock: it
//! is held for a batch of pointers at a time, or for one object.
//!
//! Invariants, each held by the test of that name:
//!
//! - `a_relist_is_a_list_of_differences`
//! - `an_older_state_never_replaces_a_newer_one`
//! - `what_is_gone_stays_gone`
//! - `an_index_agrees_with_a_scan`
//! - `a_scan_holds_the_lock_for_a_batch_at_a_time`
//! - `an_index_goes_with_its_last_user`

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound,
    sync::Arc,
};

use nagaya_selector::Selector;
use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::sync::watch;

use super::{
    envelope::{self, Entry, Version},
    index::Index,
};
use crate::model::object::ObjectKey;

/// The objects of one watch.
#[derive(Debug)]
pub struct Cache {
    state: RwLock<State>,
    /// The version up to which everything was seen; moves with every event, bookmark and list.
    observed: watch::Sender<Option<Version>>,
}

impl Default for Cache {
    fn default() -> Self {
        Self { state: RwLock::default(), observed: watch::channel(None).0 }
    }
}

#[derive(Debug, Default)]
struct State {
    entries: BTreeMap<ObjectKey, Arc<Entry>>,
    owners: Index,
    fields: BTreeMap<String, Index>,
    /// Bytes of the entries' texts.
    bytes: usize,
    /// The last versions of objects that are gone.
    gone: HashMap<ObjectKey, Version>,
}

/// So many deletions are remembered, to know their late lines by.
const TOMBSTONES: usize = 1_024;
/// Objects that are looked at without letting others in between.
const BATCH: usize = 256;
/// What an object costs besides its text: names, labels, owners, its places in the maps.
const EACH: usize = 512;

/// Which entries [`Cache::list`] returns; all conditions hold together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Query<'a> {
    /// Only this namespace.
    pub namespace: Option<&'a str>,
    /// Only these labels.
    pub selector: Option<&'a Selector>,
    /// Only objects whose field at this path has this value; the path must be indexed.
    pub index: Option<(&'a str, &'a str)>,
    /// Only objects with an owner of this uid.
    pub owner: Option<&'a str>,
    /// Only keys behind this one.
    pub after: Option<&'a ObjectKey>,
    /// At most so many; 0: all.
    pub limit: usize,
}

/// What became of one object.
#[derive(Clone, Debug)]
pub struct Change {
    /// Before; `None`: it was not there.
    pub old: Option<Arc<Entry>>,
    /// After; `None`: it is gone.
    pub new: Option<Arc<Entry>>,
}

impl Change {
    /// Whether a run that failed may do better now: the object came or went, is being deleted, or has another
    /// generation; where its kind has none, another version.
    pub fn is_news(&self) -> bool {
        let (Some(old), Some(new)) = (&self.old, &self.new) else { return true };
        let changed = match (old.generation(), new.generation()) {
            (Some(old), Some(new)) => old != new,
            _ => old.version() != new.version(),
        };
        changed || old.uid() != new.uid() || old.is_deleting() != new.is_deleting()
    }
}

impl Cache {
    /// One object.
    pub fn get(&self, key: &ObjectKey) -> Option<Arc<Entry>> {
        self.read().entries.get(key).cloned()
    }

    /// The matching objects in the order of their keys, and whether there are more than the limit.
    pub fn list(&self, query: &Query<'_>) -> (Vec<Arc<Entry>>, bool) {
        let mut scan = self.scan(query);
        while scan.step() {}
        scan.found()
    }

    /// The same, a batch at a time, so that whoever asks can let others work in between.
    pub fn scan<'a>(&'a self, query: &Query<'a>) -> Scan<'a> {
        Scan { cache: self, query: *query, at: None, found: vec![] }
    }

    /// The keys of all objects.
    pub fn keys(&self) -> Vec<ObjectKey> {
        self.read().entries.keys().cloned().collect()
    }

    /// All objects.
    pub fn entries(&self) -> Vec<Arc<Entry>> {
        self.read().entries.values().cloned().collect()
    }

    /// The keys of the objects, in `namespace` or anywhere, whose field at the indexed `path` has `value`.
    pub fn indexed(&self, path: &str, namespace: Option<&str>, value: &str) -> Vec<ObjectKey> {
        let query = Query { namespace, index: Some((path, value)), ..Query::default() };
        self.list(&query).0.iter().map(|entry| entry.key().clone()).collect()
    }

    /// The version up to which everything was seen, and all that follow.
    pub fn observed(&self) -> watch::Receiver<Option<Version>> {
        self.observed.subscribe()
    }

    /// Everything up to `version` was seen, and is in the cache.
    pub(super) fn observe(&self, version: &str) {
        let version = Version::parse(version);
        self.observed.send_if_modified(|observed| {
            let moved = observed.as_ref() != Some(&version);
            *observed = Some(version);
            moved
        });
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.read().entries.len()
    }

    /// How many bytes their texts have.
    pub fn bytes(&self) -> usize {
        self.read().bytes
    }

    /// About how many bytes of memory the objects take.
    pub fn cost(&self) -> usize {
        let state = self.read();
        state.bytes + state.entries.len() * EACH
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Indexes the field at `path` from now on, for one user more.
    pub(super) fn add_index(&self, path: &str) {
        if let Some(index) = self.write().fields.get_mut(path) {
            index.users += 1;
            return;
        }
        // Nothing changes meanwhile: the only writer is here.
        let mut index = Index::used();
        for entry in self.entries() {
            index.insert(&envelope::field(entry.body(), path), entry.key());
        }
        self.write().fields.insert(path.to_owned(), index);
    }

    /// One user of the index at `path` is gone; with the last one it goes, too.
    pub(super) fn remove_index(&self, path: &str) {
        let mut state = self.write();
        let Some(index) = state.fields.get_mut(path) else { return };
        index.users = index.users.saturating_sub(1);
        let unused = if index.users == 0 { state.fields.remove(path) } else { None };
        drop(state);
        drop(unused);
    }

    /// Puts an object in its place; `None` if this state of it, or a newer one, was there.
    pub(super) fn put(&self, entry: Entry) -> Option<Change> {
        let mut state = self.write();
        if state.is_newer_than(&entry) || state.has(&entry) {
            return None;
        }
        Some(state.put(entry))
    }

    /// Takes an object away; `None` if it is not there, or newer than this last state.
    pub(super) fn remove(&self, last: &Entry) -> Option<Change> {
        let mut state = self.write();
        if state.is_newer_than(last) {
            return None;
        }
        if state.gone.len() >= TOMBSTONES {
            state.gone.clear();
        }
        state.gone.insert(last.key().clone(), last.version().clone());
        state.remove(last.key())
    }

    /// Makes the objects exactly these; returns what that changed. An object of the same version is no change.
    pub(super) fn replace(&self, entries: Vec<Entry>) -> Vec<Change> {
        let mut state = self.write();
        state.gone.clear();
        let mut gone: BTreeSet<ObjectKey> = state.entries.keys().cloned().collect();
        let mut changes = vec![];
        for entry in entries {
            gone.remove(entry.key());
            if state.has(&entry) {
                continue;
            }
            changes.push(state.put(entry));
        }
        changes.extend(gone.iter().filter_map(|key| state.remove(key)));
        changes
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read()
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write()
    }
}

impl State {
    /// A deletion's version is newer than every state of the object that it ended.
    fn is_newer_than(&self, entry: &Entry) -> bool {
        let gone = self.gone.get(entry.key());
        self.entries.get(entry.key()).is_some_and(|known| known.version() > entry.version())
            || gone.is_some_and(|gone| gone >= entry.version())
    }

    fn has(&self, entry: &Entry) -> bool {
        let known = self.entries.get(entry.key());
        known.is_some_and(|known| known.version() == entry.version() && known.uid() == entry.uid())
    }

    fn put(&mut self, entry: Entry) -> Change {
        let new = Arc::new(entry);
        let old = self.entries.insert(new.key().clone(), new.clone());
        if let Some(old) = &old {
            self.unindex(old);
        }
        self.bytes += new.body().len();
        self.owners.insert(&uids(&new), new.key());
        for (path, index) in &mut self.fields {
            index.insert(&envelope::field(new.body(), path), new.key());
        }
        Change { old, new: Some(new) }
    }

    fn remove(&mut self, key: &ObjectKey) -> Option<Change> {
        let old = self.entries.remove(key)?;
        self.unindex(&old);
        Some(Change { old: Some(old), new: None })
    }

    fn unindex(&mut self, entry: &Entry) {
        self.bytes -= entry.body().len();
        self.owners.erase(&uids(entry), entry.key());
        for (path, index) in &mut self.fields {
            index.erase(&envelope::field(entry.body(), path), entry.key());
        }
    }

    /// The next entries that may match `query` behind `at`; the flag says that an index has yet to be believed.
    fn batch(&self, query: &Query<'_>, at: Option<&ObjectKey>) -> Vec<(Arc<Entry>, bool)> {
        let first = query.namespace.map(|namespace| ObjectKey::new(Some(namespace), ""));
        let start = match (at.or(query.after), &first) {
            (Some(after), Some(first)) if first > after => Bound::Included(first),
            (Some(after), _) => Bound::Excluded(after),
            (None, Some(first)) => Bound::Included(first),
            (None, None) => Bound::Unbounded,
        };
        let range = (start, Bound::Unbounded);
        let field = query.index.and_then(|(path, value)| Some((self.fields.get(path)?, value)));
        let index = field.or(query.owner.map(|uid| (&self.owners, uid)));
        let Some((index, value)) = index else {
            let entries = self.entries.range::<ObjectKey, _>(range).take(BATCH);
            return entries.map(|(_, entry)| (entry.clone(), true)).collect();
        };
        let keys = index.some(value, range, BATCH).into_iter();
        // What one index says, the other one may not.
        let both = query.index.is_some() && query.owner.is_some();
        let entry = |key| Some((self.entries.get(key)?.clone(), both || index.is_unsure(key)));
        keys.filter_map(entry).collect()
    }
}

/// A look at the objects that match a query.
#[derive(Debug)]
pub struct Scan<'a> {
    cache: &'a Cache,
    query: Query<'a>,
    /// The last one that was looked at.
    at: Option<ObjectKey>,
    found: Vec<Arc<Entry>>,
}

impl Scan<'_> {
    /// Looks at the next objects; false: there is nothing more to look at.
    pub fn step(&mut self) -> bool {
        let batch = self.cache.read().batch(&self.query, self.at.as_ref());
        let is_last = batch.len() < BATCH;
        self.at = batch.last().map(|(entry, _)| entry.key().clone());
        for (entry, unsure) in batch {
            if self.query.is_beyond(&entry) {
                return false;
            }
            if self.query.matches(&entry, unsure) {
                self.found.push(entry);
                if self.found.len() > self.limit() {
                    return false;
                }
            }
        }
        !is_last
    }

    /// The objects that were found, and whether there are more than the limit.
    pub fn found(mut self) -> (Vec<Arc<Entry>>, bool) {
        let more = self.found.len() > self.limit();
        self.found.truncate(self.limit());
        (self.found, more)
    }

    fn limit(&self) -> usize {
        if self.query.limit == 0 { usize::MAX } else { self.query.limit }
    }
}

impl Query<'_> {
    /// Whether an object lies behind the namespace that is asked for, and all that follow with it.
    fn is_beyond(&self, entry: &Entry) -> bool {
        self.namespace.is_some_and(|ns| entry.key().namespace.as_deref() != Some(ns))
    }

    fn matches(&self, entry: &Entry, unsure: bool) -> bool {
        let has = |(path, value): (&str, &str)| {
            envelope::field(entry.body(), path).iter().any(|has| has == value)
        };
        let owned = |uid: &str| entry.owners().iter().any(|owner| &*owner.uid == uid);
        self.selector.is_none_or(|selector| selector.matches(|key| entry.label(key)))
            && (!unsure || (self.index.is_none_or(has) && self.owner.is_none_or(owned)))
    }
}

fn uids(entry: &Entry) -> Vec<&str> {
    entry.owners().iter().map(|owner| &*owner.uid).collect()
}

/// For tests of other modules, which have no watch.
#[cfg(test)]
impl Cache {
    pub(crate) fn written(&self, entry: Entry) -> Option<Change> {
        self.put(entry)
    }

    pub(crate) fn deleted(&self, last: &Entry) -> Option<Change> {
        self.remove(last)
    }

    pub(crate) fn index(&self, path: &str) {
        self.add_index(path);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn entry(namespace: &str, name: &str, version: u64, value: &str) -> Entry {
        let text = json!({
            "kind": "T", "apiVersion": "v1", "spec": {"ref": value},
            "metadata": {"name": name, "namespace": namespace, "uid": name, "resourceVersion": version.to_string(),
                "labels": {"v": value},
                "ownerReferences": [{"apiVersion": "v1", "kind": "O", "name": "o", "uid": format!("o-{value}")}]},
        });
        envelope::object(&text.to_string()).unwrap()
    }

    fn names(cache: &Cache, query: &Query<'_>) -> Vec<String> {
        cache.list(query).0.iter().map(|entry| entry.key().to_string()).collect()
    }

    #[test]
    fn a_relist_is_a_list_of_differences() {
        let cache = Cache::default();
        assert_eq!(cache.replace(vec![entry("a", "x", 1, "1"), entry("a", "y", 2, "1")]).len(), 2);
        let changes = cache.replace(vec![entry("a", "y", 2, "1"), entry("a", "z", 3, "1")]);
        let told: Vec<_> = changes
            .iter()
            .map(|change| {
                let name =
                    |entry: &Option<Arc<Entry>>| entry.as_ref().map(|e| e.key().name.to_string());
                (name(&change.old), name(&change.new))
            })
            .collect();
        assert_eq!(told, [(None, Some("z".to_owned())), (Some("x".to_owned()), None)]);
        assert_eq!(names(&cache, &Query::default()), ["a/y", "a/z"]);
        let reborn = envelope::object(
            &entry("a", "y", 2, "1").body().replace(r#""uid":"y""#, r#""uid":"other""#),
        );
        assert_eq!(cache.replace(vec![reborn.unwrap(), entry("a", "z", 3, "1")]).len(), 1);
    }

    #[test]
    fn a_status_written_is_no_news() {
        let object = |version: &str, generation: Option<i64>, deleting: bool| {
            let mut text = json!({"kind": "T", "apiVersion": "v1", "metadata": {"name": "a", "uid": "u", "resourceVersion": version}});
            if let Some(generation) = generation {
                text["metadata"]["generation"] = json!(generation);
            }
            if deleting {
                text["metadata"]["deletionTimestamp"] = json!("2020-01-01T00:00:00Z");
            }
            Some(Arc::new(envelope::object(&text.to_string()).unwrap()))
        };
        let is_news = |old, new| Change { old, new }.is_news();
        let first = || object("1", Some(1), false);
        assert!(!is_news(first(), object("2", Some(1), false)));
        assert!(is_news(first(), object("2", Some(2), false)));
        assert!(is_news(first(), object("2", Some(1), true)));
        assert!(is_news(None, first()) && is_news(first(), None));
        assert!(is_news(object("1", None, false), object("2", None, false)), "no generation");
        assert!(!is_news(object("1", None, false), object("1", None, false)), "a resync");
    }

    #[test]
    fn an_older_state_never_replaces_a_newer_one() {
        let cache = Cache::default();
        assert!(cache.put(entry("a", "x", 10, "new")).is_some());
        assert!(cache.put(entry("a", "x", 9, "old")).is_none());
        assert!(cache.remove(&entry("a", "x", 9, "old")).is_none());
        cache.add_index("spec.ref");
        assert_eq!(cache.indexed("spec.ref", None, "new").len(), 1);
        assert!(cache.remove(&entry("a", "x", 11, "new")).is_some());
        assert!(cache.is_empty() && cache.indexed("spec.ref", None, "new").is_empty());
    }

    #[test]
    fn what_is_gone_stays_gone() {
        let cache = Cache::default();
        cache.put(entry("a", "x", 10, "1"));
        assert!(
            cache.put(entry("a", "x", 10, "1")).is_none(),
            "a line that comes twice is no change"
        );
        assert!(cache.remove(&entry("a", "x", 12, "1")).is_some());
        assert!(cache.put(entry("a", "x", 11, "late")).is_none());
        assert!(cache.put(entry("a", "x", 13, "reborn")).is_some());
        assert!(cache.remove(&entry("a", "x", 12, "1")).is_none(), "the old deletion comes twice");
        assert_eq!(cache.len(), 1);
    }

    /// A list that matches nothing looks at everything, and the writer gets in between.
    #[test]
    fn a_scan_holds_the_lock_for_a_batch_at_a_time() {
        let cache = Cache::default();
        let name = |number: usize| format!("n{number:05}");
        for number in 0..=3 * BATCH {
            cache.put(entry("a", &name(number), 1, "1"));
        }
        let selector = Selector::parse("v=2").unwrap();
        let query = Query { namespace: Some("a"), selector: Some(&selector), ..Query::default() };
        let mut scan = cache.scan(&query);
        assert!(scan.step());
        assert!(cache.put(entry("a", &name(0), 2, "2")).is_some(), "behind the look");
        assert!(cache.put(entry("a", &name(BATCH), 2, "2")).is_some(), "before it");
        assert!(cache.remove(&entry("a", &name(BATCH - 1), 2, "2")).is_some(), "where it is");
        assert!(cache.put(entry("b", &name(0), 1, "2")).is_some(), "another namespace");
        let mut steps = 1;
        while scan.step() {
            steps += 1;
        }
        let (found, more) = scan.found();
        let found: Vec<_> = found.iter().map(|entry| entry.key().to_string()).collect();
        assert_eq!((found, more, steps), (vec![format!("a/{}", name(BATCH))], false, 3));
    }

    #[test]
    fn an_index_goes_with_its_last_user() {
        let cache = Cache::default();
        cache.put(entry("a", "x", 1, "1"));
        cache.add_index("spec.ref");
        cache.add_index("spec.ref");
        cache.put(entry("a", "y", 2, "1"));
        cache.remove_index("spec.ref");
        assert_eq!(cache.indexed("spec.ref", Some("a"), "1").len(), 2, "one user is left");
        cache.remove_index("spec.ref");
        assert!(cache.read().fields.is_empty());
        assert_eq!(
            cache.indexed("spec.ref", Some("a"), "1").len(),
            2,
            "then every object is looked at"
        );
        cache.remove_index("spec.ref");
        assert_eq!(cache.bytes(), cache.entries().iter().map(|e| e.body().len()).sum::<usize>());
        cache.replace(vec![]);
        assert_eq!((cache.bytes(), cache.cost()), (0, 0));
    }

    #[test]
    fn pages_meet_without_gap_or_overlap() {
        let cache = Cache::default();
        for namespace in ["a", "b", "c"] {
            for number in 0..7 {
                cache.put(entry(namespace, &format!("n{number}"), 1, "1"));
            }
        }
        for namespace in [None, Some("b")] {
            let mut pages = vec![];
            let mut after: Option<ObjectKey> = None;
            loop {
                let query =
                    Query { namespace, after: after.as_ref(), limit: 4, ..Query::default() };
                let (page, more) = cache.list(&query);
                after = page.last().map(|entry| entry.key().clone());
                pages.extend(page.iter().map(|entry| entry.key().to_string()));
                if !more {
                    break;
                }
            }
            assert_eq!(pages, names(&cache, &Query { namespace, ..Query::default() }));
            assert_eq!(pages.len(), if namespace.is_some() { 7 } else { 21 });
        }
    }

    #[test]
    fn an_index_agrees_with_a_scan() {
        let cache = Cache::default();
        cache.add_index("spec.ref");
        let mut rng = fastrand::Rng::with_seed(7);
        for version in 1..2_000 {
            let random = rng.u64(..);
            let (name, value) = (format!("n{}", random % 20), (random >> 8) % 4);
            let object =
                entry(["a", "b"][(random >> 20) as usize % 2], &name, version, &value.to_string());
            if random.is_multiple_of(5) {
                cache.remove(&object);
            } else {
                cache.put(object);
            }
            let selector = Selector::parse("v=2").unwrap();
            let scan = names(&cache, &Query { selector: Some(&selector), ..Query::default() });
            assert_eq!(
                names(&cache, &Query { index: Some(("spec.ref", "2")), ..Query::default() }),
                scan
            );
            assert_eq!(names(&cache, &Query { owner: Some("o-2"), ..Query::default() }), scan);
            let both =
                Query { index: Some(("spec.ref", "2")), owner: Some("o-3"), ..Query::default() };
            assert!(names(&cache, &both).is_empty());
            let both = Query { owner: Some("o-2"), ..both };
            assert_eq!(names(&cache, &both), scan);
        }
    }
}
