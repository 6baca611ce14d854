//! Remembers what a controller applied last, so that an apply which would change nothing is not sent; pure.
//!
//! An apply is a no-op only if its body is the last one applied to that uid *and* the cached object is still what
//! that apply returned. Comparing values is not enough: it cannot see a field that the new version no longer sets.
//!
//! Invariant: `only_the_same_body_on_an_untouched_object_is_a_no_op`.

use std::collections::HashMap;

use crate::{
    manifest::Kind,
    watch::{ObjectKey, fingerprint::Fingerprint},
};

/// More objects than this are not remembered: the table is emptied, which costs one apply each.
const REMEMBERED: usize = 200_000;

/// The last applies of a controller, by object.
#[derive(Debug, Default)]
pub struct Applied(HashMap<(Target, Kind, ObjectKey), Record>);

/// What was applied: the object, or its status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// The object without its status.
    Main,
    /// The status alone.
    Status,
}

#[derive(Debug)]
struct Record {
    uid: String,
    body: Fingerprint,
    returned: Fingerprint,
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

    /// Remembers that applying `body` returned an object with this uid and fingerprint.
    pub fn learn(
        &mut self,
        at: (Target, Kind, ObjectKey),
        uid: &str,
        body: Fingerprint,
        returned: Fingerprint,
    ) {
        if self.0.len() >= REMEMBERED {
            self.0.clear();
        }
        self.0.insert(at, Record { uid: uid.to_owned(), body, returned });
    }

    /// Forgets an object: it was deleted, or the outcome of a write is unknown.
    pub fn forget(&mut self, kind: &Kind, key: &ObjectKey) {
        for target in [Target::Main, Target::Status] {
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

    #[test]
    fn only_the_same_body_on_an_untouched_object_is_a_no_op() {
        let mut applied = Applied::default();
        let (body, returned) = (print(1), print(2));
        let web = at(Target::Main, "web");
        assert!(!applied.is_no_op(&web, "uid", body, returned), "nothing was applied yet");
        applied.learn(web.clone(), "uid", body, returned);
        assert!(applied.is_no_op(&web, "uid", body, returned));
        assert!(!applied.is_no_op(&web, "uid", print(3), returned), "another body");
        assert!(!applied.is_no_op(&web, "uid", body, print(3)), "somebody touched the object");
        assert!(!applied.is_no_op(&web, "another", body, returned), "it was made again");
        assert!(!applied.is_no_op(&at(Target::Status, "web"), "uid", body, returned));
        assert!(!applied.is_no_op(&at(Target::Main, "db"), "uid", body, returned));
        applied.learn(web.clone(), "uid", print(4), print(5));
        assert!(!applied.is_no_op(&web, "uid", body, returned), "only the last apply counts");
    }

    #[test]
    fn an_unknown_outcome_is_forgotten_for_object_and_status() {
        let mut applied = Applied::default();
        for target in [Target::Main, Target::Status] {
            for name in ["web", "db"] {
                applied.learn(at(target, name), "uid", print(1), print(2));
            }
        }
        let (_, kind, key) = at(Target::Main, "web");
        applied.forget(&kind, &key);
        for target in [Target::Main, Target::Status] {
            assert!(!applied.is_no_op(&at(target, "web"), "uid", print(1), print(2)));
            assert!(applied.is_no_op(&at(target, "db"), "uid", print(1), print(2)));
        }
    }
}
