//! Knows which of a controller's own writes its caches have not shown yet; pure.
//!
//! A write is registered before it is sent, and forgotten once every cache that shows the object has it: so a run never
//! acts on a state older than what the controller itself has done. What cannot be compared sets no gate, and a cache
//! that does not select the object is not waited for: nothing would come.
//!
//! Invariants, each held by the test of that name:
//!
//! - `a_write_is_awaited_until_the_cache_has_it`
//! - `an_older_answer_never_lowers_the_gate`
//! - `a_deletion_is_seen_by_the_uid`
//! - `an_object_that_is_being_deleted_is_seen_as_soon_as_it_is_marked`
//! - `each_cache_is_asked_for_what_it_selects`
//! - `whatever_order_events_come_in_nothing_older_is_called_seen`

use std::{collections::HashMap, sync::Arc};

use crate::{
    model::{kind::Kind, object::ObjectKey},
    watch::{Entry, envelope::Version},
};

/// So many states of one object are remembered until the caches have them: the newest, and some that a cache with
/// another selector may yet show.
const STATES: usize = 16;

/// What a controller waits for, by kind and object.
#[derive(Debug, Default)]
pub struct Barrier {
    of: HashMap<(String, String), HashMap<ObjectKey, Awaited>>,
    /// Counts what was learnt.
    serial: u64,
}

/// What the caches must show of one object.
#[derive(Clone, Debug, Default)]
pub struct Awaited {
    /// Changes with whatever is learnt.
    serial: u64,
    /// Writes that were sent and not answered yet.
    in_flight: u32,
    /// What the controller's writes have left, the newest last.
    states: Vec<Arc<Entry>>,
    /// These uids are gone, or on their way, the last one last.
    deleted: Vec<String>,
    /// The last word was a deletion.
    is_gone: bool,
    /// A write was given up, and may have been executed: only the API server knows.
    unknown: bool,
    /// The cache was waited for in vain: reads go to the API server.
    late: bool,
}

/// How a write ended.
#[derive(Clone, Debug)]
pub enum Answer {
    /// The object as it is now.
    Written(Arc<Entry>),
    /// The object of this uid is gone, or on its way.
    Deleted(String),
    /// Nothing was done.
    Refused,
    /// Nobody knows.
    Unknown,
}

impl Barrier {
    /// A write of an object is about to be sent.
    pub fn sent(&mut self, kind: &Kind, key: &ObjectKey) {
        self.entry(kind, key).in_flight += 1;
    }

    /// A write that was registered by [`Barrier::sent`] has ended.
    pub fn answered(&mut self, kind: &Kind, key: &ObjectKey, answer: Answer) {
        let awaited = self.entry(kind, key);
        awaited.in_flight = awaited.in_flight.saturating_sub(1);
        match answer {
            Answer::Written(entry) => awaited.written(entry),
            Answer::Deleted(uid) => awaited.deleted(uid),
            Answer::Unknown => awaited.unknown = true,
            Answer::Refused => (),
        }
        self.forget_if_empty(kind, key);
    }

    /// The API server was asked for an object with an unknown write, and this is what became of it.
    pub fn found_out(&mut self, kind: &Kind, key: &ObjectKey, answer: Answer) {
        let awaited = self.entry(kind, key);
        awaited.unknown = false;
        awaited.in_flight += 1;
        self.answered(kind, key, answer);
    }

    /// What is awaited of one object.
    pub fn awaited(&self, kind: &Kind, key: &ObjectKey) -> Option<&Awaited> {
        self.of.get(&id(kind))?.get(key)
    }

    /// The objects of a kind of which something is awaited, of all namespaces or of one.
    pub fn keys(&self, kind: &Kind, namespace: Option<&str>) -> Vec<ObjectKey> {
        let in_it = |key: &&ObjectKey| namespace.is_none() || key.namespace.as_deref() == namespace;
        let keys = self.of.get(&id(kind)).into_iter().flat_map(HashMap::keys);
        keys.filter(in_it).cloned().collect()
    }

    /// Forgets what is awaited of an object, unless more has been written since.
    pub fn seen(&mut self, kind: &Kind, key: &ObjectKey, what: &Awaited) {
        if self.awaited(kind, key).is_some_and(|awaited| awaited.serial == what.serial) {
            self.forget(kind, key);
        }
    }

    /// The cache was waited for in vain.
    pub fn gave_up(&mut self, kind: &Kind, key: &ObjectKey) {
        if self.awaited(kind, key).is_some() {
            self.entry(kind, key).late = true;
        }
    }

    fn entry(&mut self, kind: &Kind, key: &ObjectKey) -> &mut Awaited {
        self.serial += 1;
        let awaited = self.of.entry(id(kind)).or_default().entry(key.clone()).or_default();
        awaited.serial = self.serial;
        awaited
    }

    fn forget_if_empty(&mut self, kind: &Kind, key: &ObjectKey) {
        if self.awaited(kind, key).is_some_and(Awaited::is_nothing) {
            self.forget(kind, key);
        }
    }

    fn forget(&mut self, kind: &Kind, key: &ObjectKey) {
        if let Some(keys) = self.of.get_mut(&id(kind)) {
            keys.remove(key);
            if keys.is_empty() {
                self.of.remove(&id(kind));
            }
        }
    }
}

impl Awaited {
    /// Whether only the API server knows what became of the object.
    pub fn is_unknown(&self) -> bool {
        self.unknown
    }

    /// Whether reads should not wait any longer.
    pub fn is_late(&self) -> bool {
        self.late
    }

    /// Whether nothing is on its way any more, so that the caches can be asked.
    pub fn is_settled(&self) -> bool {
        self.in_flight == 0 && !self.unknown
    }

    /// Whether one cache shows it: what it selects, its object, and the version up to which it has seen everything.
    pub fn is_visible(
        &self,
        selects: impl Fn(&Entry) -> bool,
        cached: Option<&Entry>,
        observed: Option<&Version>,
    ) -> bool {
        let has_passed = |state: &Entry| observed.is_some_and(|seen| seen >= state.version());
        let is_newer = |cached: &Entry, state: &Entry| cached.version() >= state.version();
        let newest = self.states.last();
        if let Some(newest) = newest.filter(|_| !self.is_gone)
            && selects(newest)
        {
            return has_passed(newest) || cached.is_some_and(|cached| is_newer(cached, newest));
        }
        // The object is not to be shown in the end. What the cache was to show before it may still show in passing.
        if self.states.iter().rev().find(|state| selects(state)).is_some_and(|s| !has_passed(s)) {
            return false;
        }
        cached.is_none_or(|cached| {
            let is_deleted = self.deleted.iter().any(|uid| uid == cached.uid());
            newest.is_none_or(|newest| is_newer(cached, newest))
                && (!is_deleted || cached.is_deleting())
        })
    }

    fn written(&mut self, entry: Arc<Entry>) {
        let Version::Number(_) = entry.version() else { return };
        if self.states.last().is_some_and(|known| known.version() >= entry.version()) {
            return;
        }
        self.is_gone = false;
        self.states.push(entry);
        if self.states.len() > STATES {
            self.states.remove(0);
        }
    }

    fn deleted(&mut self, uid: String) {
        self.is_gone = true;
        self.deleted.retain(|known| *known != uid);
        self.deleted.push(uid);
        if self.deleted.len() > STATES {
            self.deleted.remove(0);
        }
    }

    fn is_nothing(&self) -> bool {
        self.is_settled() && self.states.is_empty() && self.deleted.is_empty()
    }
}

fn id(kind: &Kind) -> (String, String) {
    (kind.group.clone(), kind.kind.clone())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::watch::envelope;

    fn kind() -> Kind {
        Kind::new("v1", "ConfigMap")
    }

    fn key() -> ObjectKey {
        ObjectKey::new(Some("n"), "a")
    }

    fn object(uid: &str, version: &str, app: &str, is_deleting: bool) -> Entry {
        let mut text = json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {
            "name": "a", "namespace": "n", "uid": uid, "resourceVersion": version, "labels": {"app": app}}});
        if is_deleting {
            text["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        envelope::object(&text.to_string()).unwrap()
    }

    fn cached(uid: &str, version: u64) -> Entry {
        object(uid, &version.to_string(), "web", false)
    }

    fn written(version: u64) -> Answer {
        Answer::Written(Arc::new(cached("u", version)))
    }

    fn version(number: u128) -> Version {
        Version::Number(number)
    }

    fn every(_: &Entry) -> bool {
        true
    }

    fn none(_: &Entry) -> bool {
        false
    }

    fn after(answers: impl IntoIterator<Item = Answer>) -> (Barrier, Awaited) {
        let mut barrier = Barrier::default();
        for answer in answers {
            barrier.sent(&kind(), &key());
            barrier.answered(&kind(), &key(), answer);
        }
        let awaited = barrier.awaited(&kind(), &key()).cloned().unwrap_or_default();
        (barrier, awaited)
    }

    #[test]
    fn a_write_is_awaited_until_the_cache_has_it() {
        let mut barrier = Barrier::default();
        barrier.sent(&kind(), &key());
        assert!(
            !barrier.awaited(&kind(), &key()).unwrap().is_settled(),
            "nobody knows its version yet"
        );
        barrier.answered(&kind(), &key(), written(10));
        let awaited = barrier.awaited(&kind(), &key()).unwrap().clone();
        assert!(awaited.is_settled());
        assert!(!awaited.is_visible(every, Some(&cached("u", 9)), Some(&version(9))));
        assert!(awaited.is_visible(every, Some(&cached("u", 10)), None));
        assert!(awaited.is_visible(every, None, Some(&version(11))), "seen and gone again");
        barrier.sent(&kind(), &key());
        barrier.seen(&kind(), &key(), &awaited);
        assert!(barrier.awaited(&kind(), &key()).is_some(), "more was written meanwhile");
        barrier.answered(&kind(), &key(), Answer::Refused);
        let awaited = barrier.awaited(&kind(), &key()).unwrap().clone();
        barrier.seen(&kind(), &key(), &awaited);
        assert!(barrier.of.is_empty(), "nothing is left behind");
    }

    #[test]
    fn an_older_answer_never_lowers_the_gate() {
        let (_, awaited) = after([written(10), written(7)]);
        assert!(!awaited.is_visible(every, Some(&cached("u", 9)), None));
    }

    #[test]
    fn a_deletion_is_seen_by_the_uid() {
        let (_, awaited) = after([Answer::Deleted("u".into())]);
        assert!(!awaited.is_visible(every, Some(&cached("u", 99)), Some(&version(99))));
        assert!(awaited.is_visible(every, Some(&cached("other", 1)), None));
        assert!(awaited.is_visible(every, None, None));
    }

    /// A Pod in its grace period, a Namespace, anything with a finalizer.
    #[test]
    fn an_object_that_is_being_deleted_is_seen_as_soon_as_it_is_marked() {
        let (_, awaited) = after([Answer::Deleted("u".into())]);
        assert!(awaited.is_visible(every, Some(&object("u", "7", "web", true)), None));
        let (_, awaited) = after([written(5), Answer::Deleted("u".into())]);
        assert!(!awaited.is_visible(every, None, Some(&version(4))), "it will come and go yet");
        assert!(awaited.is_visible(every, None, Some(&version(6))));
        let (_, awaited) = after([Answer::Deleted("u".into()), written(8)]);
        assert!(!awaited.is_visible(every, None, Some(&version(7))), "it was made again");
    }

    #[test]
    fn each_cache_is_asked_for_what_it_selects() {
        let app = |wanted: &'static str| move |entry: &Entry| entry.label("app") == Some(wanted);
        let (_, awaited) = after([Answer::Written(Arc::new(object("u", "10", "b", false)))]);
        let old = object("u", "9", "a", false);
        assert!(!awaited.is_visible(app("b"), None, Some(&version(9))), "it will come");
        assert!(!awaited.is_visible(app("a"), Some(&old), Some(&version(9))), "it will go");
        assert!(awaited.is_visible(app("a"), None, Some(&version(9))), "it was never there");
        assert!(awaited.is_visible(none, None, None), "nobody will ever show it");
        let first = || Answer::Written(Arc::new(object("u", "10", "a", false)));
        let second = || Answer::Written(Arc::new(object("u", "11", "b", false)));
        let (_, awaited) = after([first(), second()]);
        assert!(!awaited.is_visible(app("a"), None, Some(&version(9))), "it will come and go yet");
        assert!(awaited.is_visible(app("a"), None, Some(&version(11))));
    }

    /// A controller writes; two caches follow, each at its own pace. Whatever is called seen shows nothing older than
    /// the last write, and when the caches have everything all is called seen.
    #[test]
    #[expect(clippy::too_many_lines, reason = "one server, two caches, one walk")]
    fn whatever_order_events_come_in_nothing_older_is_called_seen() {
        for seed in 1..=400_u64 {
            let mut random = fastrand::Rng::with_seed(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
            let mut next = |below: u64| random.u64(..) % below;
            let mut barrier = Barrier::default();
            // What the server has had, by version; `None`: it is gone.
            let mut history: Vec<(u64, Option<Arc<Entry>>)> = vec![];
            let mut at = [0_usize; 2];
            let apps = ["a", "b", "c"];
            let (mut now, mut uid) = (10, 0);
            for _ in 0..60 {
                match next(4) {
                    0 if history.len() < 12 => {
                        now += 1;
                        let last = history.last().and_then(|(_, state)| state.clone());
                        barrier.sent(&kind(), &key());
                        let is_delete = next(3) == 0;
                        let answer = match &last {
                            Some(last) if is_delete => {
                                let is_graceful = next(2) == 0;
                                let app = last.label("app").unwrap_or_default();
                                let left = is_graceful.then(|| {
                                    Arc::new(object(last.uid(), &now.to_string(), app, true))
                                });
                                history.push((now, left));
                                Answer::Deleted(last.uid().to_owned())
                            }
                            _ => {
                                uid += u64::from(last.is_none());
                                let app = apps[usize::try_from(next(3)).unwrap()];
                                let entry = Arc::new(object(
                                    &format!("u{uid}"),
                                    &now.to_string(),
                                    app,
                                    last.is_some_and(|l| l.is_deleting()),
                                ));
                                history.push((now, Some(entry.clone())));
                                Answer::Written(entry)
                            }
                        };
                        barrier.answered(&kind(), &key(), answer);
                    }
                    which => {
                        let cache = usize::try_from(which % 2).unwrap();
                        at[cache] = (at[cache] + 1).min(history.len());
                    }
                }
                let Some(awaited) = barrier.awaited(&kind(), &key()) else { continue };
                for (cache, app) in at.iter().zip(apps) {
                    let selects = |entry: &Entry| entry.label("app") == Some(app);
                    // A cache advances only with what concerns it.
                    let shown = |upto: usize| {
                        history
                            .get(upto.wrapping_sub(1))
                            .and_then(|(_, state)| state.clone())
                            .filter(|e| selects(e))
                    };
                    let events = (1..=*cache)
                        .filter(|upto| shown(*upto).is_some() || shown(upto - 1).is_some());
                    let observed =
                        events.max().map(|upto| version(u128::from(history[upto - 1].0)));
                    let cached = shown(*cache);
                    let seen = awaited.is_visible(selects, cached.as_deref(), observed.as_ref());
                    if *cache == history.len() {
                        assert!(seen, "seed {seed}: nothing more will come");
                    }
                    if seen {
                        let end = shown(history.len());
                        let state = |e: &Option<Arc<Entry>>| {
                            e.as_ref().filter(|e| !e.is_deleting()).map(|e| e.version().clone())
                        };
                        assert_eq!(state(&cached), state(&end), "seed {seed}");
                    }
                }
            }
        }
    }

    #[test]
    fn an_unknown_write_waits_for_the_api_server() {
        let (mut barrier, awaited) = after([Answer::Unknown]);
        assert!(awaited.is_unknown());
        barrier.found_out(&kind(), &key(), written(5));
        let awaited = barrier.awaited(&kind(), &key()).unwrap();
        assert!(awaited.is_settled() && !awaited.is_visible(every, Some(&cached("u", 4)), None));
        let odd = Answer::Written(Arc::new(object("u", "odd", "web", false)));
        barrier.sent(&kind(), &key());
        barrier.answered(&kind(), &key(), odd);
        assert!(!barrier.awaited(&kind(), &key()).unwrap().is_visible(
            every,
            Some(&cached("u", 4)),
            None
        ));
        let (mut fresh, _) = after([Answer::Unknown]);
        fresh.found_out(&kind(), &key(), Answer::Refused);
        assert!(fresh.of.is_empty(), "it is not there");
    }
}
