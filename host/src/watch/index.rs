//! The objects of a watch by the values of one of their fields; pure.
//!
//! What an index costs is bounded by the objects, whatever is in them: one of many or long values is kept once, as one
//! that may have any value, and is looked at when it is asked for.
//!
//! Invariants: `an_object_is_found_by_each_of_its_values`, `an_object_of_many_values_is_kept_once`.

use std::{
    collections::{BTreeSet, HashMap},
    ops::Bound,
    sync::Arc,
};

use crate::model::object::ObjectKey;

/// An object of more values may have any.
const VALUES: usize = 100;
/// Bytes of a value: namespace, slash and name, and room. A longer one makes its object one that may have any.
const VALUE: usize = 512;

/// An index and how many use it.
#[derive(Debug, Default)]
pub(super) struct Index {
    pub(super) users: usize,
    keys: HashMap<Arc<str>, BTreeSet<ObjectKey>>,
    /// Objects that may have any value.
    any: BTreeSet<ObjectKey>,
}

/// The part of a set that is asked for.
type Range<'a> = (Bound<&'a ObjectKey>, Bound<&'a ObjectKey>);

impl Index {
    /// An empty one with one user.
    pub(super) fn used() -> Self {
        Self { users: 1, ..Self::default() }
    }

    /// Puts an object under its values.
    pub(super) fn insert<T: AsRef<str>>(&mut self, values: &[T], key: &ObjectKey) {
        if is_wide(values) {
            self.any.insert(key.clone());
            return;
        }
        for value in values {
            match self.keys.get_mut(value.as_ref()) {
                Some(keys) => drop(keys.insert(key.clone())),
                None => drop(self.keys.insert(value.as_ref().into(), [key.clone()].into())),
            }
        }
    }

    /// Takes an object away from its values.
    pub(super) fn erase<T: AsRef<str>>(&mut self, values: &[T], key: &ObjectKey) {
        if is_wide(values) {
            self.any.remove(key);
            return;
        }
        for value in values {
            if let Some(keys) = self.keys.get_mut(value.as_ref()) {
                keys.remove(key);
                if keys.is_empty() {
                    self.keys.remove(value.as_ref());
                }
            }
        }
    }

    /// The first `count` keys in a range that may have `value`, in their order.
    pub(super) fn some(&self, value: &str, range: Range<'_>, count: usize) -> Vec<&ObjectKey> {
        let sure =
            self.keys.get(value).into_iter().flat_map(|keys| keys.range::<ObjectKey, _>(range));
        let mut found: Vec<_> =
            sure.take(count).chain(self.any.range::<ObjectKey, _>(range).take(count)).collect();
        found.sort_unstable();
        found.truncate(count);
        found
    }

    /// Whether only a look at the object says whether it has a value.
    pub(super) fn is_unsure(&self, key: &ObjectKey) -> bool {
        self.any.contains(key)
    }
}

fn is_wide<T: AsRef<str>>(values: &[T]) -> bool {
    values.len() > VALUES || values.iter().any(|value| value.as_ref().len() > VALUE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Range<'_> = (Bound::Unbounded, Bound::Unbounded);

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new(None, name)
    }

    fn found(index: &Index, value: &str) -> Vec<String> {
        index.some(value, ALL, 10).into_iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_object_is_found_by_each_of_its_values() {
        let mut index = Index::default();
        index.insert(&["x", "y"], &key("b"));
        index.insert(&["x"], &key("a"));
        assert_eq!(found(&index, "x"), ["a", "b"]);
        assert_eq!(index.some("x", (Bound::Excluded(&key("a")), Bound::Unbounded), 1), [&key("b")]);
        index.erase(&["x", "y"], &key("b"));
        assert_eq!((found(&index, "x"), found(&index, "y").len()), (vec!["a".to_owned()], 0));
        index.erase(&["x"], &key("a"));
        assert!(index.keys.is_empty());
    }

    #[test]
    fn an_object_of_many_values_is_kept_once() {
        let many: Vec<_> = (0..=VALUES).map(|n| n.to_string()).collect();
        let long = ["v".repeat(VALUE + 1)];
        let mut index = Index::default();
        index.insert(&many[1..], &key("c"));
        assert_eq!(index.keys.len(), VALUES);
        index.erase(&many[1..], &key("c"));
        index.insert(&many, &key("c"));
        index.insert(&long, &key("a"));
        index.insert(&["1"], &key("b"));
        assert_eq!((index.keys.len(), index.any.len()), (1, 2));
        assert_eq!(found(&index, "1"), ["a", "b", "c"]);
        assert!(index.is_unsure(&key("a")) && !index.is_unsure(&key("b")));
        index.erase(&many, &key("c"));
        index.erase(&long, &key("a"));
        assert_eq!(found(&index, "1"), ["b"]);
    }
}
