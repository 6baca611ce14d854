//! What one previewed run would have left: objects as they would be, which its own reads see first; pure.
//!
//! Invariants: `a_run_reads_what_it_would_have_written`, `what_only_this_run_makes_is_not_changed_again`,
//! `what_is_made_and_deleted_is_nothing`.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::Value;

use super::{keys::Keys, merge};
use crate::{
    model::{kind::Kind, manifest::Verb, object::ObjectKey},
    watch::Entry,
};

/// One run's writes may keep so many objects and bytes; beyond that nobody can tell.
const OBJECTS: usize = 2_000;
const BYTES: usize = 16 << 20;

/// What would become of an object.
#[derive(Clone, Debug)]
pub struct Would {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace and name; the name that a dry run chose, where the server is to choose one.
    pub key: ObjectKey,
    /// What that name begins with.
    pub generated: Option<String>,
    /// As it is; `None`: there is none.
    pub stored: Option<Arc<Entry>>,
    /// As it would be; `None`: gone.
    pub left: Option<Arc<Entry>>,
    /// Whether it is deleted; one that finalizers hold is left for now.
    pub deleted: bool,
    /// How its lists are told apart.
    pub keys: Keys,
    /// Its place among all that the run has written.
    pub order: usize,
    /// What was done to it, in order.
    verbs: Vec<Verb>,
}

/// The objects that a run would have written, and their bytes.
#[derive(Debug, Default)]
pub(super) struct Overlay(BTreeMap<(String, String, ObjectKey), Would>, usize);

/// What the server has answered to one dry run.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) verb: Verb,
    pub(super) generated: Option<String>,
    pub(super) stored: Option<Arc<Entry>>,
    /// `None`: gone.
    pub(super) left: Option<Arc<Entry>>,
    pub(super) keys: Keys,
}

/// Whether another write of an object can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The server can be asked.
    Ask,
    /// It is gone.
    Gone,
    /// It exists, and is to be made.
    Exists,
    /// It exists only in this run, and goes with this.
    Undone,
    /// The server cannot be asked: why.
    Untold(&'static str),
}

impl Overlay {
    /// As the run would find it; `None`: as it is.
    pub(super) fn get(&self, kind: &Kind, key: &ObjectKey) -> Option<&Would> {
        self.0.get(&id(kind, key))
    }

    /// All of a kind.
    pub(super) fn of_kind(&self, kind: &Kind) -> impl Iterator<Item = &Would> {
        self.0.values().filter(move |would| crate::model::kind::same_kind(&would.kind, kind))
    }

    /// What is to be done about one more write.
    pub(super) fn next(&self, verb: Verb, kind: &Kind, key: &ObjectKey) -> Next {
        if self.0.len() >= OBJECTS || self.1 >= BYTES {
            return Next::Untold("one run writes more than a preview keeps");
        }
        let Some(would) = self.get(kind, key) else { return Next::Ask };
        match (&would.stored, &would.left, verb) {
            (_, None, Verb::Patch | Verb::ApplyStatus | Verb::Delete) => Next::Gone,
            (_, None, _) => Next::Untold("it is deleted and made again in one run"),
            (None, Some(_), Verb::Delete) => Next::Undone,
            (None, Some(_), Verb::Patch | Verb::ApplyStatus) => Next::Untold(
                "only this run would make it, and so nobody can say what a change of it leads to",
            ),
            (_, Some(_), Verb::Create) => Next::Exists,
            _ => Next::Ask,
        }
    }

    /// Takes an answer; false: it does not fit to what the run had written before.
    pub(super) fn put(&mut self, kind: &Kind, key: &ObjectKey, answered: Answered) -> bool {
        let Answered { verb, generated, stored, left, keys } = answered;
        let new = Would {
            kind: kind.clone(),
            key: key.clone(),
            generated,
            stored,
            left,
            deleted: verb == Verb::Delete,
            keys,
            order: self.0.len(),
            verbs: vec![verb],
        };
        let id = id(kind, key);
        self.1 += new.bytes();
        let Some(old) = self.0.remove(&id) else {
            self.0.insert(id, new);
            return true;
        };
        let both = old.clone().and_then(new);
        let fits = both.is_some();
        self.0.insert(id, both.unwrap_or(old));
        fits
    }

    /// It was made by this run alone, and is no more.
    pub(super) fn undo(&mut self, kind: &Kind, key: &ObjectKey) {
        self.0.remove(&id(kind, key));
    }

    /// Whether this run would make the namespace.
    pub(super) fn makes_namespace(&self, name: &str) -> bool {
        let kind = Kind::new("v1", "Namespace");
        self.get(&kind, &ObjectKey::new(None, name)).is_some_and(|would| would.stored.is_none())
    }

    /// Everything, in the order of kind and name.
    pub(super) fn into_all(self) -> Vec<Would> {
        self.0.into_values().collect()
    }
}

impl Would {
    fn bytes(&self) -> usize {
        let of = |entry: &Option<Arc<Entry>>| entry.as_ref().map_or(0, |entry| entry.body().len());
        of(&self.stored) + of(&self.left)
    }

    /// What one write would leave.
    #[cfg(test)]
    pub(crate) fn for_tests(
        (kind, key): (Kind, ObjectKey),
        (stored, left): (Option<Arc<Entry>>, Option<Arc<Entry>>),
        deleted: bool,
    ) -> Self {
        let (keys, verbs) = (Keys::default(), vec![]);
        Self { kind, key, generated: None, stored, left, deleted, keys, order: 0, verbs }
    }

    /// This and then `new`, of which the server was asked alone; `None`: nobody knows.
    fn and_then(mut self, new: Self) -> Option<Self> {
        let left = match (&self.left, &new.left) {
            (Some(first), Some(second)) if !new.deleted => {
                Some(Arc::new(self.combined(first, second, new.verbs[0])?))
            }
            _ => new.left,
        };
        self.verbs.extend(new.verbs);
        Some(Self { left, deleted: self.deleted || new.deleted, keys: new.keys, ..self })
    }

    fn combined(&self, first: &Entry, second: &Entry, verb: Verb) -> Option<Entry> {
        let value = |entry: &Entry| serde_json::from_str::<Value>(entry.body()).ok();
        let (first, second) = (value(first)?, value(second)?);
        let stored = self.stored.as_deref().and_then(value).unwrap_or_default();
        // An apply takes the place of the manager's last one.
        let is_main = |verb: &Verb| *verb != Verb::ApplyStatus;
        let mut main = self.verbs.iter().filter(|one| is_main(one));
        let replaces = verb == Verb::Apply && main.clone().all(|one| *one == verb);
        // What its last apply had and this one has not goes, and the patch between the two stays.
        if verb == Verb::Apply && !replaces && main.any(|one| *one == verb) {
            return None;
        }
        let left = if replaces {
            let mut left = second;
            if left["status"] == stored["status"] && !first["status"].is_null() {
                left["status"] = first["status"].clone();
            }
            left
        } else if verb == Verb::ApplyStatus {
            let mut left = first;
            let status = second.get("status").cloned();
            match (left.as_object_mut(), status) {
                (Some(left), Some(status)) => drop(left.insert("status".to_owned(), status)),
                (Some(left), None) => drop(left.remove("status")),
                (None, _) => return None,
            }
            left
        } else {
            merge::merged(&stored, &first, &second)?
        };
        crate::watch::envelope::object(&left.to_string()).ok()
    }
}

fn id(kind: &Kind, key: &ObjectKey) -> (String, String, ObjectKey) {
    (kind.group.clone(), kind.kind.clone(), key.clone())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn map() -> (Kind, ObjectKey) {
        (Kind::new("v1", "ConfigMap"), ObjectKey::new(Some("demo"), "x"))
    }

    fn entry(version: &str, data: &Value, status: &Value) -> Arc<Entry> {
        let object = json!({ "apiVersion": "v1", "kind": "ConfigMap", "data": data, "status": status,
            "metadata": { "name": "x", "namespace": "demo", "resourceVersion": version } });
        Arc::new(crate::watch::envelope::object(&object.to_string()).unwrap())
    }

    fn answered(verb: Verb, stored: Option<&Arc<Entry>>, left: Option<Arc<Entry>>) -> Answered {
        let (stored, keys) = (stored.cloned(), Keys::default());
        Answered { verb, generated: None, stored, left, keys }
    }

    fn left(overlay: &Overlay) -> Value {
        let (kind, key) = map();
        let left = overlay.get(&kind, &key).unwrap().left.clone().unwrap();
        serde_json::from_str(left.body()).unwrap()
    }

    #[test]
    fn a_run_reads_what_it_would_have_written() {
        let ((kind, key), mut overlay) = (map(), Overlay::default());
        assert_eq!(overlay.next(Verb::Apply, &kind, &key), Next::Ask);
        let stored = entry("7", &json!({ "a": "1" }), &json!(0));
        let first = entry("7", &json!({ "a": "1", "b": "2" }), &json!(0));
        assert!(overlay.put(&kind, &key, answered(Verb::Apply, Some(&stored), Some(first))));
        let status = entry("7", &json!({ "a": "1" }), &json!(5));
        assert!(overlay.put(&kind, &key, answered(Verb::ApplyStatus, Some(&stored), Some(status))));
        assert_eq!(
            (&left(&overlay)["data"]["b"], &left(&overlay)["status"]),
            (&json!("2"), &json!(5))
        );
        let again = entry("7", &json!({ "c": "3" }), &json!(0));
        assert!(overlay.put(&kind, &key, answered(Verb::Apply, Some(&stored), Some(again))));
        assert_eq!(left(&overlay)["data"], json!({ "c": "3" }), "in place of the last one");
        assert_eq!(left(&overlay)["status"], 5);
        let patched = entry("7", &json!({ "a": "9" }), &json!(0));
        let patch = answered(Verb::Patch, Some(&stored), Some(patched));
        assert!(!overlay.put(&kind, &key, patch), "it changes what was taken away");
        assert_eq!(left(&overlay)["data"], json!({ "c": "3" }));
        assert_eq!(overlay.next(Verb::Create, &kind, &key), Next::Exists);
        assert!(overlay.put(&kind, &key, answered(Verb::Delete, Some(&stored), None)));
        let would = overlay.get(&kind, &key).unwrap();
        assert!(would.deleted && would.left.is_none() && would.stored.is_some());
        assert_eq!(overlay.next(Verb::Delete, &kind, &key), Next::Gone);
        assert!(matches!(overlay.next(Verb::Apply, &kind, &key), Next::Untold(_)));
    }

    #[test]
    fn a_deletion_that_waits_for_finalizers_stays_one() {
        let ((kind, key), mut overlay) = (map(), Overlay::default());
        let stored = entry("7", &json!({ "a": "1" }), &json!(0));
        let waits = answered(Verb::Delete, Some(&stored), Some(stored.clone()));
        assert!(overlay.put(&kind, &key, waits));
        let patched = entry("7", &json!({ "a": "2" }), &json!(0));
        assert!(overlay.put(&kind, &key, answered(Verb::Patch, Some(&stored), Some(patched))));
        assert!(overlay.get(&kind, &key).unwrap().deleted);
    }

    #[test]
    fn what_only_this_run_makes_is_not_changed_again() {
        let ((kind, key), mut overlay) = (map(), Overlay::default());
        let made = entry("", &json!({}), &json!(0));
        assert!(overlay.put(&kind, &key, answered(Verb::Create, None, Some(made.clone()))));
        for verb in [Verb::Patch, Verb::ApplyStatus] {
            assert!(matches!(overlay.next(verb, &kind, &key), Next::Untold(_)));
        }
        assert_eq!(overlay.next(Verb::Apply, &kind, &key), Next::Ask, "as if it were made by it");
        let namespace = (Kind::new("v1", "Namespace"), ObjectKey::new(None, "new"));
        assert!(overlay.put(&namespace.0, &namespace.1, answered(Verb::Create, None, Some(made))));
        assert!(overlay.makes_namespace("new") && !overlay.makes_namespace("demo"));
    }

    #[test]
    fn what_is_made_and_deleted_is_nothing() {
        let ((kind, key), mut overlay) = (map(), Overlay::default());
        let made = entry("", &json!({}), &json!(0));
        overlay.put(&kind, &key, answered(Verb::Create, None, Some(made)));
        assert_eq!(overlay.next(Verb::Delete, &kind, &key), Next::Undone);
        overlay.undo(&kind, &key);
        assert!(overlay.into_all().is_empty());
    }
}
