//! Remembers what a controller wrote last, so that an apply which would change nothing is not sent, and one that takes
//! back what somebody else did is known; pure.
//!
//! An apply is a no-op only if its body is the last one applied to that uid *and* the cached object is still what
//! that apply returned. Comparing values is not enough: it cannot see a field that the new version no longer sets.
//!
//! Invariants: `only_the_same_body_on_an_untouched_object_is_a_no_op`, `a_write_that_leaves_the_same_repeats_the_last`.

use std::collections::HashMap;

use crate::{
    model::{kind::Kind, object::ObjectKey},
    watch::fingerprint::Fingerprint,
};

/// More objects than this are not remembered: the table is emptied, which costs one apply each.
const REMEMBERED: usize = 200_000;

/// The last writes of a controller, by object.
#[derive(Debug, Default)]
pub struct Applied(HashMap<(Target, Kind, ObjectKey), Record>);

/// What was written, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// The object without its status, applied.
    Main,
    /// The status alone, applied.
    Status,
    /// The object, patched; no patch is a no-op.
    Patch,
}

/// A write and what it led to.
#[derive(Debug)]
pub struct Record {
    /// The object's.
    pub uid: String,
    /// What was sent.
    pub body: Fingerprint,
    /// What was returned, as far as the cache would show it.
    pub returned: Fingerprint,
    /// What was returned of what was sent.
    pub left: Fingerprint,
}

impl Applied {
    /// Forgets everything: others may have applied meanwhile.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Whether applying `body` to the object that is cached as `cached` would change nothing.
    pub fn is_no_op(
        &self,
        at: &(Target, Kind, ObjectKey),
        uid: &str,
        body: Fingerprint,
        cached: Fingerprint,
    ) -> bool {
        self.0.get(at).is_some_and(|record| {
            record.uid == uid && record.body == body && record.returned == cached
        })
    }

    /// Remembers a write; true: what it has left is what the one before it had left.
    pub fn learn(&mut self, at: (Target, Kind, ObjectKey), record: Record) -> bool {
        if self.0.len() >= REMEMBERED {
            self.0.clear();
        }
        let (uid, left) = (record.uid.clone(), record.left);
        self.0.insert(at, record).is_some_and(|old| old.uid == uid && old.left == left)
    }

    /// Forgets an object: it was deleted, or the outcome of a write is unknown.
    pub fn forget(&mut self, kind: &Kind, key: &ObjectKey) {
        for target in [Target::Main, Target::Status, Target::Patch] {
            self.0.remove(&(target, kind.clone(), key.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(target: Target, name: &str) -> (Target, Kind, ObjectKey) {
        (target, Kind::new("v1", "ConfigMap"), ObjectKey::new(Some("demo"), name))
    }

    fn print(text: u8) -> Fingerprint {
        Fingerprint::of_text(&text.to_string())
    }

    fn record(uid: &str, body: u8, returned: u8) -> Record {
        let (body, returned) = (print(body), print(returned));
        Record { uid: uid.to_owned(), body, returned, left: returned }
    }

    #[test]
    fn only_the_same_body_on_an_untouched_object_is_a_no_op() {
        let mut applied = Applied::default();
        let (body, returned) = (print(1), print(2));
        let web = at(Target::Main, "web");
        assert!(!applied.is_no_op(&web, "uid", body, returned), "nothing was applied yet");
        applied.learn(web.clone(), record("uid", 1, 2));
        assert!(applied.is_no_op(&web, "uid", body, returned));
        assert!(!applied.is_no_op(&web, "uid", print(3), returned), "another body");
        assert!(!applied.is_no_op(&web, "uid", body, print(3)), "somebody touched the object");
        assert!(!applied.is_no_op(&web, "another", body, returned), "it was made again");
        assert!(!applied.is_no_op(&at(Target::Status, "web"), "uid", body, returned));
        assert!(!applied.is_no_op(&at(Target::Main, "db"), "uid", body, returned));
        applied.learn(web.clone(), record("uid", 4, 5));
        assert!(!applied.is_no_op(&web, "uid", body, returned), "only the last apply counts");
    }

    #[test]
    fn an_unknown_outcome_is_forgotten_for_object_and_status() {
        let mut applied = Applied::default();
        for target in [Target::Main, Target::Status] {
            for name in ["web", "db"] {
                applied.learn(at(target, name), record("uid", 1, 2));
            }
        }
        let (_, kind, key) = at(Target::Main, "web");
        applied.forget(&kind, &key);
        for target in [Target::Main, Target::Status] {
            assert!(!applied.is_no_op(&at(target, "web"), "uid", print(1), print(2)));
            assert!(applied.is_no_op(&at(target, "db"), "uid", print(1), print(2)));
        }
    }

    #[test]
    fn a_write_that_leaves_the_same_repeats_the_last() {
        let mut applied = Applied::default();
        let web = || at(Target::Main, "web");
        assert!(!applied.learn(web(), record("uid", 1, 2)), "the first one");
        assert!(applied.learn(web(), record("uid", 1, 2)));
        assert!(!applied.learn(web(), record("uid", 1, 3)), "the object has become another one");
        assert!(applied.learn(web(), record("uid", 4, 3)), "in other words");
        assert!(!applied.learn(web(), record("another", 4, 3)), "it was made again");
        let counted = Record { returned: print(9), ..record("another", 4, 3) };
        assert!(applied.learn(web(), counted), "somebody has changed what was not sent");
        assert!(!applied.learn(at(Target::Patch, "web"), record("another", 4, 3)));
    }
}
