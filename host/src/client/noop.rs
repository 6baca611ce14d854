//! Remembers what a controller applied last, so that an apply which would change nothing is not sent; pure.
//!
//! An apply is a no-op only if its body is the last one applied to that uid *and* the cached object is still what
//! that apply returned. Comparing values is not enough: it cannot see a field that the new version no longer sets.
//!
//! Invariant: `only_the_same_body_on_an_untouched_object_is_a_no_op`.

use std::collections::HashMap;

use crate::{
    manifest::Kind,
    watch::{ObjectKey, envelope::Fingerprint},
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
