//! Shares the texts that many objects have in common: namespaces, label sets, owners, finalizers; pure.
//!
//! One interner belongs to one watch. What nobody uses any more is swept out now and then, so that it holds about as
//! many bytes as the objects do.
//!
//! Invariant: `what_nobody_uses_is_swept_out`.

use std::{borrow::Cow, collections::BTreeMap, collections::HashSet, sync::Arc};

/// So many bytes it may hold before it first looks for what is no longer used.
const FIRST_SWEEP: usize = 128 << 10;
/// What a text costs besides its bytes, and what a pair of a label set does.
const EACH: usize = 48;

/// The texts and label sets in use.
#[derive(Debug)]
pub struct Interner {
    texts: HashSet<Arc<str>>,
    labels: HashSet<Labels>,
    /// Bytes of all, used or not.
    held: usize,
    sweep_at: usize,
}

/// A set of labels, sorted by key and shared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Labels(Arc<[(Arc<str>, Arc<str>)]>);

impl Default for Interner {
    fn default() -> Self {
        Self { texts: HashSet::new(), labels: HashSet::new(), held: 0, sweep_at: FIRST_SWEEP }
    }
}

impl Interner {
    /// The shared form of `text`.
    pub fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return known.clone();
        }
        self.sweep();
        let shared: Arc<str> = text.into();
        self.held += shared.len() + EACH;
        self.texts.insert(shared.clone());
        shared
    }

    /// The shared form of a label set.
    pub fn labels(&mut self, labels: &BTreeMap<Cow<'_, str>, Cow<'_, str>>) -> Labels {
        let pairs = labels.iter().map(|(key, value)| (self.text(key), self.text(value)));
        let labels = Labels(pairs.collect());
        if let Some(known) = self.labels.get(&labels) {
            return known.clone();
        }
        self.held += labels.size();
        self.labels.insert(labels.clone());
        labels
    }

    fn sweep(&mut self) {
        if self.held < self.sweep_at {
            return;
        }
        self.labels.retain(|labels| Arc::strong_count(&labels.0) > 1);
        self.texts.retain(|text| Arc::strong_count(text) > 1);
        let texts: usize = self.texts.iter().map(|text| text.len() + EACH).sum();
        self.held = texts + self.labels.iter().map(Labels::size).sum::<usize>();
        self.sweep_at = FIRST_SWEEP.max(2 * self.held);
    }
}

impl Labels {
    fn size(&self) -> usize {
        EACH * (self.0.len() + 1)
    }

    /// The value of a label.
    pub fn get(&self, key: &str) -> Option<&str> {
        let at = self.0.binary_search_by(|(known, _)| known.as_ref().cmp(key)).ok()?;
        self.0.get(at).map(|(_, value)| value.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(
        pairs: &[(&'static str, &'static str)],
    ) -> BTreeMap<Cow<'static, str>, Cow<'static, str>> {
        pairs.iter().map(|(key, value)| (Cow::from(*key), Cow::from(*value))).collect()
    }

    #[test]
    fn equal_texts_are_one() {
        let mut interner = Interner::default();
        assert!(Arc::ptr_eq(&interner.text("a"), &interner.text("a")));
        let (one, two) =
            (interner.labels(&labels(&[("k", "v")])), interner.labels(&labels(&[("k", "v")])));
        assert!(Arc::ptr_eq(&one.0, &two.0));
        assert_eq!((one.get("k"), one.get("x")), (Some("v"), None));
    }

    #[test]
    fn what_nobody_uses_is_swept_out() {
        let mut interner = Interner::default();
        let kept = interner.text("kept");
        for number in 0..100_000 {
            interner.text(&number.to_string());
        }
        assert!(interner.held <= 2 * FIRST_SWEEP, "{}", interner.held);
        for number in 0..200 {
            interner.text(&format!("{number}{}", "x".repeat(1_000_000)));
        }
        let held: usize = interner.texts.iter().map(|text| text.len()).sum();
        assert!(held <= FIRST_SWEEP + 1_100_000, "names of an owner may be long: {held}");
        assert!(Arc::ptr_eq(&kept, &interner.text("kept")));
    }
}
