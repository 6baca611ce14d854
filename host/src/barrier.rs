//! Knows which of a controller's own writes its caches have not shown yet; pure.
//!
//! A write is registered before it is sent, and forgotten once the cache has it: so a run never acts on a state older
//! than what the controller itself has done (R91–R95). What cannot be compared sets no gate (R31).
//!
//! Invariants, each held by the test of that name:
//!
//! - `a_write_is_awaited_until_the_cache_has_it`
//! - `an_older_answer_never_lowers_the_gate`
//! - `a_deletion_is_seen_by_the_uid`

use std::collections::HashMap;

use crate::{
    manifest::Kind,
    watch::{Entry, ObjectKey, envelope::Version},
};

/// What a controller waits for, by kind and object.
#[derive(Debug, Default)]
pub struct Barrier(HashMap<(String, String), HashMap<ObjectKey, Awaited>>);

/// What the cache must show of one object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Awaited {
    /// Writes that were sent and not answered yet.
    in_flight: u32,
    /// At least this version.
    version: Option<Version>,
    /// Not this uid any more.
    deleted: Option<String>,
    /// A write was given up, and may have been executed: only the API server knows.
    unknown: bool,
    /// The cache was waited for in vain: reads go to the API server.
    late: bool,
}

/// How a write ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The object has this version now.
    Written(Version),
    /// The object of this uid is gone.
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
            Answer::Written(version @ Version::Number(_)) => {
                awaited.deleted = None;
                if awaited.version.as_ref().is_none_or(|known| *known < version) {
                    awaited.version = Some(version);
                }
            }
            Answer::Deleted(uid) => {
                awaited.version = None;
                awaited.deleted = Some(uid);
            }
            Answer::Unknown => awaited.unknown = true,
            Answer::Written(Version::Text(_)) | Answer::Refused => (),
        }
        self.forget_if_empty(kind, key);
    }

    /// The API server was asked for an object with an unknown write, and this is what it has.
    pub fn found_out(&mut self, kind: &Kind, key: &ObjectKey, version: Option<Version>) {
        let awaited = self.entry(kind, key);
        awaited.unknown = false;
        awaited.in_flight += 1;
        self.answered(kind, key, version.map_or(Answer::Refused, Answer::Written));
    }

    /// What is awaited of one object.
    pub fn awaited(&self, kind: &Kind, key: &ObjectKey) -> Option<&Awaited> {
        self.0.get(&id(kind))?.get(key)
    }

    /// The objects of a kind of which something is awaited.
    pub fn keys(&self, kind: &Kind) -> Vec<ObjectKey> {
        self.0.get(&id(kind)).map(|keys| keys.keys().cloned().collect()).unwrap_or_default()
    }

    /// Forgets what is awaited of an object, unless more has been written since.
    pub fn seen(&mut self, kind: &Kind, key: &ObjectKey, what: &Awaited) {
        if self.awaited(kind, key) == Some(what) {
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
        self.0.entry(id(kind)).or_default().entry(key.clone()).or_default()
    }

    fn forget_if_empty(&mut self, kind: &Kind, key: &ObjectKey) {
        if self.awaited(kind, key).is_some_and(Awaited::is_nothing) {
            self.forget(kind, key);
        }
    }

    fn forget(&mut self, kind: &Kind, key: &ObjectKey) {
        if let Some(keys) = self.0.get_mut(&id(kind)) {
            keys.remove(key);
            if keys.is_empty() {
                self.0.remove(&id(kind));
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

    /// Whether a cache shows it: the cached object, and the version up to which the cache has seen everything.
    pub fn is_visible(&self, cached: Option<&Entry>, observed: Option<&Version>) -> bool {
        if self.in_flight > 0 || self.unknown {
            return false;
        }
        if let Some(uid) = &self.deleted {
            return cached.is_none_or(|entry| entry.uid() != uid);
        }
        let Some(wanted) = &self.version else { return true };
        cached.is_some_and(|entry| entry.version() >= wanted)
            || observed.is_some_and(|seen| seen >= wanted)
    }

    fn is_nothing(&self) -> bool {
        self.in_flight == 0 && self.version.is_none() && self.deleted.is_none() && !self.unknown
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

    fn cached(uid: &str, version: u64) -> Entry {
        let text = json!({"kind": "ConfigMap", "apiVersion": "v1",
            "metadata": {"name": "a", "namespace": "n", "uid": uid, "resourceVersion": version.to_string()}});
        envelope::object(&text.to_string()).unwrap()
    }

    fn version(number: u128) -> Version {
        Version::Number(number)
    }

    #[test]
    fn a_write_is_awaited_until_the_cache_has_it() {
        let mut barrier = Barrier::default();
        barrier.sent(&kind(), &key());
        let sent = barrier.awaited(&kind(), &key()).unwrap().clone();
        assert!(
            !sent.is_visible(Some(&cached("u", 99)), Some(&version(99))),
            "nobody knows its version yet"
        );
        barrier.answered(&kind(), &key(), Answer::Written(version(10)));
        let written = barrier.awaited(&kind(), &key()).unwrap().clone();
        assert!(!written.is_visible(Some(&cached("u", 9)), Some(&version(9))));
        assert!(written.is_visible(Some(&cached("u", 10)), None));
        assert!(
            written.is_visible(None, Some(&version(11))),
            "seen and gone again, or outside the selector"
        );
        barrier.sent(&kind(), &key());
        barrier.seen(&kind(), &key(), &written);
        assert!(barrier.awaited(&kind(), &key()).is_some(), "more was written meanwhile");
        barrier.answered(&kind(), &key(), Answer::Refused);
        barrier.seen(&kind(), &key(), &written);
        assert!(barrier.0.is_empty(), "nothing is left behind");
    }

    #[test]
    fn an_older_answer_never_lowers_the_gate() {
        let mut barrier = Barrier::default();
        for number in [10, 7] {
            barrier.sent(&kind(), &key());
            barrier.answered(&kind(), &key(), Answer::Written(version(number)));
        }
        let awaited = barrier.awaited(&kind(), &key()).unwrap();
        assert!(!awaited.is_visible(Some(&cached("u", 9)), None));
    }

    #[test]
    fn a_deletion_is_seen_by_the_uid() {
        let mut barrier = Barrier::default();
        barrier.sent(&kind(), &key());
        barrier.answered(&kind(), &key(), Answer::Deleted("u".into()));
        let awaited = barrier.awaited(&kind(), &key()).unwrap().clone();
        assert!(!awaited.is_visible(Some(&cached("u", 99)), Some(&version(99))));
        assert!(awaited.is_visible(Some(&cached("other", 1)), None));
        assert!(awaited.is_visible(None, None));
    }

    #[test]
    fn an_unknown_write_waits_for_the_api_server() {
        let mut barrier = Barrier::default();
        barrier.sent(&kind(), &key());
        barrier.answered(&kind(), &key(), Answer::Unknown);
        assert!(barrier.awaited(&kind(), &key()).unwrap().is_unknown());
        barrier.found_out(&kind(), &key(), Some(version(5)));
        let awaited = barrier.awaited(&kind(), &key()).unwrap();
        assert!(!awaited.is_unknown() && !awaited.is_visible(Some(&cached("u", 4)), None));
        barrier.sent(&kind(), &key());
        barrier.answered(&kind(), &key(), Answer::Written(Version::parse("odd")));
        assert!(!barrier.awaited(&kind(), &key()).unwrap().is_visible(Some(&cached("u", 4)), None));
        let mut fresh = Barrier::default();
        fresh.sent(&kind(), &key());
        fresh.answered(&kind(), &key(), Answer::Unknown);
        fresh.found_out(&kind(), &key(), None);
        assert!(fresh.0.is_empty(), "it is not there");
    }
}
