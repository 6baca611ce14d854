//! Which changes of an object count.
//!
//! Invariant: `an_expression_is_written_as_it_is_read`.

use std::ops::{BitAnd, BitOr, Not};

use serde_json::{Value, json};

/// A condition on the object before and after a change; combine with `&`, `|` and `!`.
///
/// Creation and deletion always pass the `…_changed` tests.
#[derive(Clone, Debug, PartialEq)]
pub struct Predicate(pub(crate) Value);

impl Predicate {
    /// `metadata.generation` differs: the spec changed, or deletion began. The right choice for a primary whose
    /// status the controller writes, since a status write changes no generation.
    pub fn generation_changed() -> Self {
        Self("generationChanged".into())
    }

    /// `metadata.resourceVersion` differs.
    pub fn resource_version_changed() -> Self {
        Self("resourceVersionChanged".into())
    }

    /// `metadata.labels` differ.
    pub fn labels_changed() -> Self {
        Self("labelsChanged".into())
    }

    /// `metadata.annotations` differ.
    pub fn annotations_changed() -> Self {
        Self("annotationsChanged".into())
    }

    /// The object, before or after the change, matches this label selector.
    pub fn matches_labels(selector: impl Into<String>) -> Self {
        Self(json!({ "matchesLabels": selector.into() }))
    }

    /// One list of conditions, not lists in lists.
    fn joined(self, word: &str, other: Self) -> Self {
        let parts = [self, other].into_iter().flat_map(|Self(part)| match part.get(word) {
            Some(Value::Array(parts)) => parts.clone(),
            _ => vec![part],
        });
        Self(json!({ word: parts.collect::<Vec<_>>() }))
    }
}

impl BitAnd for Predicate {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        self.joined("all", other)
    }
}

impl BitOr for Predicate {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.joined("any", other)
    }
}

impl Not for Predicate {
    type Output = Self;

    fn not(self) -> Self {
        Self(json!({ "not": self.0 }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_is_written_as_it_is_read() {
        let changed = || Predicate::generation_changed() | Predicate::annotations_changed();
        let predicate = changed() & !Predicate::matches_labels("a=b") & Predicate::labels_changed();
        let any = json!(["generationChanged", "annotationsChanged"]);
        let all = json!([{"any": any}, {"not": {"matchesLabels": "a=b"}}, "labelsChanged"]);
        assert_eq!(predicate.0, json!({ "all": all }));
    }
}
