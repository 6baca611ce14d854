//! Every object of one watch, as it was last seen, with indexes: one writer, many readers.
//!
//! Readers get shared, immutable entries; nothing they do reaches the cache (R10). The writer is the task of the watch,
//! and the only one that calls the methods that change something.
//!
//! Invariants, each held by the test of that name:
//!
//! - `a_relist_is_a_list_of_differences`
//! - `an_older_state_never_replaces_a_newer_one`
//! - `what_is_gone_stays_gone`
//! - `an_index_agrees_with_a_scan`

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use tokio::sync::watch;

use super::{
    envelope::{self, Entry, ObjectKey, Version},
    selector::Selector,
};

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
    /// The last versions of objects that are gone.
    gone: HashMap<ObjectKey, Version>,
}

/// So many deletions are remembered, to know their late lines by (F36).
const TOMBSTONES: usize = 1_024;

type Index = HashMap<Arc<str>, BTreeSet<ObjectKey>>;

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
    /// Whether a run that failed may do better now (R76): the object came or went, is being deleted, or has another
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
        let state = self.read();
        let limit = if query.limit == 0 { usize::MAX } else { query.limit };
        let mut found = vec![];
        let mut take = |entry: &Arc<Entry>| {
            let matches = query
                .namespace
                .is_none_or(|ns| entry.key().namespace.as_deref() == Some(ns))
                && query.after.is_none_or(|after| entry.key() > after)
                && query.selector.is_none_or(|selector| selector.matches(|key| entry.label(key)));
            if matches {
                found.push(entry.clone());
            }
            found.len() <= limit
        };
        match state.candidates(query) {
            Some(keys) => {
                keys.iter().filter_map(|key| state.entries.get(key)).all(&mut take);
            }
            None => {
                state.from(query).map(|(_, entry)| entry).all(&mut take);
            }
        }
        let more = found.len() > limit;
        found.truncate(limit);
        (found, more)
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
        let state = self.read();
        let keys = state.fields.get(path).and_then(|index| index.get(value)).into_iter().flatten();
        let wanted =
            |key: &&ObjectKey| namespace.is_none_or(|ns| key.namespace.as_deref() == Some(ns));
        keys.filter(wanted).cloned().collect()
    }

    /// The version up to which everything was seen, and all that follow (R32).
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
        self.read().entries.values().map(|entry| entry.body().len()).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Indexes the field at `path` from now on.
    pub(super) fn add_index(&self, path: &str) {
        let mut state = self.write();
        if state.fields.contains_key(path) {
            return;
        }
        let mut index = Index::new();
        for entry in state.entries.values() {
            insert(&mut index, envelope::field(entry.body(), path), entry.key());
        }
        state.fields.insert(path.to_owned(), index);
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

    /// Makes the objects exactly these; returns what that changed. An object of the same version is no change (R5).
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
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
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
        let owners = new.owners().iter().map(|owner| owner.uid.clone());
        for uid in owners {
            self.owners.entry(uid).or_default().insert(new.key().clone());
        }
        for (path, index) in &mut self.fields {
            insert(index, envelope::field(new.body(), path), new.key());
        }
        Change { old, new: Some(new) }
    }

    fn remove(&mut self, key: &ObjectKey) -> Option<Change> {
        let old = self.entries.remove(key)?;
        self.unindex(&old);
        Some(Change { old: Some(old), new: None })
    }

    fn unindex(&mut self, entry: &Entry) {
        for owner in entry.owners() {
            erase(&mut self.owners, &owner.uid, entry.key());
        }
        for (path, index) in &mut self.fields {
            for value in envelope::field(entry.body(), path) {
                erase(index, &value, entry.key());
            }
        }
    }

    /// The keys that an index names for `query`; `None` if it names no index.
    fn candidates(&self, query: &Query<'_>) -> Option<BTreeSet<ObjectKey>> {
        let by = |index: Option<&Index>, value: &str| {
            index.and_then(|index| index.get(value)).cloned().unwrap_or_default()
        };
        let field = query.index.map(|(path, value)| by(self.fields.get(path), value));
        let owner = query.owner.map(|uid| by(Some(&self.owners), uid));
        match (field, owner) {
            (Some(field), Some(owner)) => Some(&field & &owner),
            (one, other) => one.or(other),
        }
    }

    /// The entries from where `query` can begin, to the end of its namespace.
    fn from<'a>(
        &'a self,
        query: &Query<'a>,
    ) -> impl Iterator<Item = (&'a ObjectKey, &'a Arc<Entry>)> + use<'a> {
        let first = query.namespace.map(|namespace| ObjectKey::new(Some(namespace), ""));
        let start = match (query.after, first) {
            (Some(after), Some(first)) if first > *after => Bound::Included(first),
            (Some(after), _) => Bound::Excluded(after.clone()),
            (None, Some(first)) => Bound::Included(first),
            (None, None) => Bound::Unbounded,
        };
        let namespace = query.namespace;
        let inside = move |key: &ObjectKey| {
            namespace.is_none_or(|namespace| key.namespace.as_deref() == Some(namespace))
        };
        self.entries.range((start, Bound::Unbounded)).take_while(move |(key, _)| inside(key))
    }
}

fn insert(index: &mut Index, values: Vec<String>, key: &ObjectKey) {
    for value in values {
        index.entry(value.into()).or_default().insert(key.clone());
    }
}

fn erase(index: &mut Index, value: &str, key: &ObjectKey) {
    if let Some(keys) = index.get_mut(value) {
        keys.remove(key);
        if keys.is_empty() {
            index.remove(value);
        }
    }
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

    /// R76.
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
        assert_eq!(cache.indexed("spec.ref", None, "new").len(), 0, "not indexed yet");
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
        let mut random = 7_u64;
        for version in 1..2_000 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
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
        }
    }
}
