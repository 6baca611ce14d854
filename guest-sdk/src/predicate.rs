//! Which changes of an object count.
//!
//! Invariant: `an_expression_becomes_its_postfix_form`.

use std::ops::{BitAnd, BitOr, Not};

use crate::bindings::exports::nagaya::controller::guest::PredicateStep;

/// A condition on the object before and after a change; combine with `&`, `|` and `!`.
///
/// Creation and deletion always pass the `…_changed` tests.
#[derive(Clone, Debug, PartialEq)]
pub struct Predicate(pub(crate) Vec<PredicateStep>);

impl Predicate {
    /// `metadata.generation` differs: the spec changed, or deletion began. The right choice for a primary whose
    /// status the controller writes, since a status write changes no generation.
    pub fn generation_changed() -> Self {
        Self(vec![PredicateStep::GenerationChanged])
    }

    /// `metadata.resourceVersion` differs.
    pub fn resource_version_changed() -> Self {
        Self(vec![PredicateStep::ResourceVersionChanged])
    }

    /// `metadata.labels` differ.
    pub fn labels_changed() -> Self {
        Self(vec![PredicateStep::LabelsChanged])
    }

    /// `metadata.annotations` differ.
    pub fn annotations_changed() -> Self {
        Self(vec![PredicateStep::AnnotationsChanged])
    }

    /// The object, before or after the change, matches this label selector.
    pub fn matches_labels(selector: impl Into<String>) -> Self {
        Self(vec![PredicateStep::MatchesLabels(selector.into())])
    }

    fn then(mut self, other: Vec<PredicateStep>, step: PredicateStep) -> Self {
        self.0.extend(other);
        self.0.push(step);
        self
    }
}

impl BitAnd for Predicate {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        self.then(other.0, PredicateStep::Both)
    }
}

impl BitOr for Predicate {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.then(other.0, PredicateStep::Either)
    }
}

impl Not for Predicate {
    type Output = Self;

    fn not(self) -> Self {
        self.then(vec![], PredicateStep::Negate)
    }
}

#[cfg(test)]
mod tests {
    use PredicateStep::{
        AnnotationsChanged, Both, Either, GenerationChanged, MatchesLabels, Negate,
    };

    use super::*;

    #[test]
    fn an_expression_becomes_its_postfix_form() {
        let predicate = (Predicate::generation_changed() | Predicate::annotations_changed())
            & !Predicate::matches_labels("a=b");
        let label = MatchesLabels("a=b".into());
        let expected = vec![GenerationChanged, AnnotationsChanged, Either, label, Negate, Both];
        assert_eq!(predicate.0, expected);
    }
}
