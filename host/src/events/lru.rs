//! A map that forgets what was used least recently; pure.
//!
//! Invariant: `what_was_not_used_for_longest_is_forgotten`.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
};

/// At most so many values, by key.
#[derive(Debug)]
pub(super) struct Lru<K, V> {
    limit: usize,
    values: HashMap<K, (u64, V)>,
    order: BTreeMap<u64, K>,
    uses: u64,
}

impl<K: Clone + Eq + Hash, V> Lru<K, V> {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, values: HashMap::new(), order: BTreeMap::new(), uses: 0 }
    }

    /// The value of `key`, which counts as used; a new one forgets the oldest if there are too many.
    pub(super) fn get_or(&mut self, key: &K, new: impl FnOnce() -> V) -> &mut V {
        if !self.values.contains_key(key)
            && self.values.len() >= self.limit
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.values.remove(&oldest);
        }
        self.uses += 1;
        let used = self.uses;
        self.order.insert(used, key.clone());
        let (last, value) = self.values.entry(key.clone()).or_insert_with(|| (used, new()));
        if *last != used {
            self.order.remove(last);
            *last = used;
        }
        value
    }

    /// All values, without using them.
    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.values.values_mut().map(|(_, value)| value)
    }

    /// Forgets what `keep` does not want.
    pub(super) fn retain(&mut self, keep: impl Fn(&V) -> bool) {
        self.values.retain(|_, (_, value)| keep(value));
        self.order.retain(|_, key| self.values.contains_key(key));
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.values.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_used_for_longest_is_forgotten() {
        let mut lru = Lru::new(2);
        *lru.get_or(&'a', || 0) += 1;
        *lru.get_or(&'b', || 0) += 1;
        assert_eq!(*lru.get_or(&'a', || 9), 1, "it is there");
        lru.get_or(&'c', || 5);
        assert_eq!((*lru.get_or(&'a', || 9), lru.len()), (1, 2));
        assert_eq!(*lru.get_or(&'b', || 9), 9, "forgotten");
        lru.retain(|value| *value == 9);
        assert_eq!((lru.len(), lru.order.len()), (1, 1));
        assert_eq!(lru.values_mut().count(), 1);
    }
}
