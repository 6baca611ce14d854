//! Decides which primaries a changed object wakes; pure.
//!
//! Predicates and mappings see the object before and after the change, so that a primary hears of an object that has
//! just left it. What comes out are keys, never objects, and never many: an object that names more
//! primaries than [`NAMES`] wakes all of them.
//!
//! Invariants, each held by the test of that name:
//!
//! - `both_the_old_and_the_new_owner_are_woken`
//! - `a_predicate_reads_as_its_postfix_text`
//! - `an_unchanged_object_passes_no_changed_test`
//! - `an_object_that_names_thousands_costs_no_more_than_all`

use std::{collections::HashSet, sync::Arc};

use nagaya_selector::Selector;

use super::{
    cache::Change,
    envelope::{self, Entry},
};
use crate::{
    apiserver::Resource,
    model::{
        manifest::{self, Mapping, PredicateStep, Reference},
        object::ObjectKey,
    },
    text,
};

/// An object may name so many primaries before and after a change together; one that names more wakes every primary
/// there is, and none that is not.
const NAMES: usize = 500;

/// Whom to wake.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Wake {
    /// One primary.
    One(ObjectKey),
    /// Every primary.
    Every,
    /// The primaries that an index finds.
    Indexed {
        /// The index's name in the manifest.
        index: String,
        /// Namespaces of primaries (`None`: any) and the values to look up.
        values: Vec<(Option<Arc<str>>, String)>,
    },
}

/// The predicate and mapping of one watch.
#[derive(Clone, Debug)]
pub struct Trigger {
    mapping: Mapping,
    predicate: Vec<Test>,
    /// Group and kind of the primaries.
    group: String,
    kind: String,
    namespaced: bool,
}

#[derive(Clone, Debug)]
enum Test {
    Plain(PredicateStep),
    Labels(Selector),
}

impl Trigger {
    /// The trigger of `watch` for primaries of the kind `primary`.
    pub fn new(
        watch: &manifest::Watch,
        primary: &Resource,
    ) -> Result<Self, nagaya_selector::Error> {
        let test = |step: &PredicateStep| match step {
            PredicateStep::MatchesLabels(text) => Selector::parse(text).map(Test::Labels),
            plain => Ok(Test::Plain(plain.clone())),
        };
        Ok(Self {
            mapping: watch.mapping.clone(),
            predicate: watch.predicate.iter().map(test).collect::<Result<_, _>>()?,
            group: primary.kind.group.clone(),
            kind: primary.kind.kind.clone(),
            namespaced: primary.namespaced,
        })
    }

    /// Whom `change` wakes, nobody twice.
    pub fn wakes(&self, change: &Change) -> Vec<Wake> {
        let (old, new) = (change.old.as_deref(), change.new.as_deref());
        if !self.passes(old, new) {
            return vec![];
        }
        let mut wakes = vec![];
        let mut known = HashSet::new();
        for wake in [old, new].into_iter().flatten().flat_map(|entry| self.map(entry)) {
            if known.len() == NAMES && !known.contains(&wake) {
                return vec![Wake::Every];
            }
            if known.insert(wake.clone()) {
                wakes.push(wake);
            }
        }
        wakes
    }

    fn passes(&self, old: Option<&Entry>, new: Option<&Entry>) -> bool {
        let mut stack = vec![];
        for test in &self.predicate {
            let value = match test {
                Test::Labels(selector) => [old, new]
                    .into_iter()
                    .flatten()
                    .any(|entry| selector.matches(|key| entry.label(key))),
                Test::Plain(PredicateStep::Both) => pop(&mut stack) & pop(&mut stack),
                Test::Plain(PredicateStep::Either) => pop(&mut stack) | pop(&mut stack),
                Test::Plain(PredicateStep::Negate) => !pop(&mut stack),
                Test::Plain(step) => match (old, new) {
                    (Some(old), Some(new)) => has_changed(step, old, new),
                    _ => true,
                },
            };
            stack.push(value);
        }
        stack.pop().unwrap_or(true)
    }

    fn map(&self, entry: &Entry) -> Vec<Wake> {
        let key = entry.key();
        match &self.mapping {
            Mapping::Same => {
                self.primary(key.namespace.as_deref(), &key.name).into_iter().collect()
            }
            Mapping::Owner => self.owners(entry, |_| true),
            Mapping::Controller => self.owners(entry, |owner| owner.controller),
            Mapping::Label(reference) => self.named(entry, reference, |name| {
                entry.label(name).map(str::to_owned).into_iter().collect()
            }),
            Mapping::Annotation(reference) => {
                let annotations = entry.annotations();
                self.named(entry, reference, |name| {
                    annotations.get(name).cloned().into_iter().collect()
                })
            }
            Mapping::Field(reference) => {
                self.named(entry, reference, |path| envelope::field(entry.body(), path))
            }
            Mapping::Index(index) => {
                let mut values = vec![];
                match &key.namespace {
                    Some(namespace) => {
                        values.push((Some(namespace.clone()), key.name.to_string()));
                        values.push((None, format!("{namespace}/{}", key.name)));
                    }
                    None => values.push((None, key.name.to_string())),
                }
                vec![Wake::Indexed { index: index.clone(), values }]
            }
            Mapping::Every => vec![Wake::Every],
        }
    }

    fn owners(&self, entry: &Entry, counts: impl Fn(&envelope::Owner) -> bool) -> Vec<Wake> {
        let ours = |owner: &&envelope::Owner| {
            *owner.group == self.group && *owner.kind == self.kind && counts(owner)
        };
        let namespace = entry.key().namespace.as_deref();
        entry
            .owners()
            .iter()
            .filter(ours)
            .filter_map(|owner| self.primary(namespace, &owner.name))
            .collect()
    }

    fn named(
        &self,
        entry: &Entry,
        reference: &Reference,
        read: impl Fn(&str) -> Vec<String>,
    ) -> Vec<Wake> {
        let namespace = match &reference.namespace {
            Some(place) => read(place).into_iter().next(),
            None => entry.key().namespace.as_deref().map(str::to_owned),
        };
        let names = read(&reference.name);
        names.iter().filter_map(|name| self.primary(namespace.as_deref(), name)).collect()
    }

    /// The primary of that name; `None` if there cannot be one.
    fn primary(&self, namespace: Option<&str>, name: &str) -> Option<Wake> {
        if name.is_empty()
            || name.len() > text::NAME
            || (self.namespaced && namespace.is_none_or(str::is_empty))
        {
            return None;
        }
        Some(Wake::One(ObjectKey::new(namespace.filter(|_| self.namespaced), name)))
    }
}

/// A manifest is checked to leave no stack short.
fn pop(stack: &mut Vec<bool>) -> bool {
    stack.pop().unwrap_or(true)
}

fn has_changed(step: &PredicateStep, old: &Entry, new: &Entry) -> bool {
    let version = old.version() != new.version();
    match step {
        PredicateStep::GenerationChanged => match (old.generation(), new.generation()) {
            (Some(before), Some(after)) => before != after,
            _ => version,
        },
        PredicateStep::LabelsChanged => old.labels() != new.labels(),
        PredicateStep::AnnotationsChanged => version && old.annotations() != new.annotations(),
        _ => version,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::model::{
        kind::Kind,
        manifest::{Projection, Watch},
    };

    fn site() -> Resource {
        Resource {
            kind: Kind::new("example.com/v1", "Site"),
            plural: "sites".into(),
            namespaced: true,
            has_status: true,
        }
    }

    fn trigger(mapping: Mapping, predicate: Vec<PredicateStep>) -> Trigger {
        let watch = Watch {
            kind: Kind::new("v1", "ConfigMap"),
            projection: Projection::Full,
            label_selector: None,
            field_selector: None,
            predicate,
            mapping,
        };
        Trigger::new(&watch, &site()).unwrap()
    }

    #[expect(clippy::unnecessary_wraps, reason = "what a Change is made of")]
    fn object(change: impl FnOnce(&mut Value)) -> Option<Arc<Entry>> {
        let mut value = json!({
            "kind": "ConfigMap", "apiVersion": "v1", "spec": {"site": "f"},
            "metadata": {"name": "c", "namespace": "n", "resourceVersion": "1", "generation": 1,
                "labels": {"site": "l", "ns": "other"}, "annotations": {"site": "a"},
                "ownerReferences": [
                    {"apiVersion": "example.com/v9", "kind": "Site", "name": "one", "uid": "1", "controller": true},
                    {"apiVersion": "example.com/v1", "kind": "Site", "name": "two", "uid": "2"},
                    {"apiVersion": "other.com/v1", "kind": "Site", "name": "three", "uid": "3"}]},
        });
        change(&mut value);
        Some(Arc::new(envelope::object(&value.to_string()).unwrap()))
    }

    fn one(name: &str) -> Wake {
        Wake::One(ObjectKey::new(Some("n"), name))
    }

    fn reference(name: &str, namespace: Option<&str>) -> Reference {
        Reference { name: name.into(), namespace: namespace.map(Into::into) }
    }

    #[test]
    fn each_mapping_names_its_primaries() {
        let created = Change { old: None, new: object(|_| ()) };
        let other = Wake::One(ObjectKey::new(Some("other"), "l"));
        for (mapping, expected) in [
            (Mapping::Same, vec![one("c")]),
            (Mapping::Owner, vec![one("one"), one("two")]),
            (Mapping::Controller, vec![one("one")]),
            (Mapping::Label(reference("site", None)), vec![one("l")]),
            (Mapping::Label(reference("site", Some("ns"))), vec![other]),
            (Mapping::Label(reference("site", Some("absent"))), vec![]),
            (Mapping::Annotation(reference("site", None)), vec![one("a")]),
            (Mapping::Field(reference("spec.site", None)), vec![one("f")]),
            (Mapping::Field(reference("spec.nothing", None)), vec![]),
            (Mapping::Every, vec![Wake::Every]),
            (
                Mapping::Index("by".into()),
                vec![Wake::Indexed {
                    index: "by".into(),
                    values: vec![(Some("n".into()), "c".into()), (None, "n/c".into())],
                }],
            ),
        ] {
            assert_eq!(trigger(mapping.clone(), vec![]).wakes(&created), expected, "{mapping:?}");
        }
    }

    #[test]
    fn both_the_old_and_the_new_owner_are_woken() {
        let moved = object(|value| value["metadata"]["ownerReferences"][0]["name"] = json!("new"));
        let change = Change { old: object(|_| ()), new: moved };
        assert_eq!(trigger(Mapping::Controller, vec![]).wakes(&change), [one("one"), one("new")]);
        let deleted = Change { old: object(|_| ()), new: None };
        assert_eq!(trigger(Mapping::Controller, vec![]).wakes(&deleted), [one("one")]);
    }

    /// Seen from outside: 40,000 names took 33 s an event, in the watch of everybody.
    #[test]
    fn an_object_that_names_thousands_costs_no_more_than_all() {
        let owned_by = |names: std::ops::Range<usize>| {
            object(|value| {
                let owner = |n| json!({"apiVersion": "example.com/v1", "kind": "Site", "name": format!("n{n}"), "uid": "1", "controller": true});
                value["metadata"]["ownerReferences"] = names.map(owner).collect();
            })
        };
        let wakes = |old, new| trigger(Mapping::Owner, vec![]).wakes(&Change { old, new });
        assert_eq!(wakes(None, owned_by(0..NAMES)).len(), NAMES);
        assert_eq!(wakes(owned_by(0..NAMES), owned_by(0..NAMES)).len(), NAMES, "nobody twice");
        assert_eq!(wakes(None, owned_by(0..NAMES + 1)), [Wake::Every]);
        assert_eq!(wakes(owned_by(0..NAMES), owned_by(1..NAMES + 1)), [Wake::Every]);
        let many = owned_by(0..40_000);
        assert_eq!(wakes(many.clone(), many), [Wake::Every]);
        let named = |name: &str| object(|value| value["spec"]["site"] = json!(name));
        let field = trigger(Mapping::Field(reference("spec.site", None)), vec![]);
        let wakes = |name: &str| field.wakes(&Change { old: None, new: named(name) }).len();
        assert_eq!((wakes(&"n".repeat(253)), wakes(&"n".repeat(254))), (1, 0), "no such name");
    }

    #[test]
    fn an_unchanged_object_passes_no_changed_test() {
        let same = Change { old: object(|_| ()), new: object(|_| ()) };
        let relabelled = Change {
            old: object(|_| ()),
            new: object(|value| {
                value["metadata"]["labels"]["site"] = json!("x");
                value["metadata"]["resourceVersion"] = json!("2");
            }),
        };
        for (step, passes) in [
            (PredicateStep::GenerationChanged, false),
            (PredicateStep::ResourceVersionChanged, true),
            (PredicateStep::LabelsChanged, true),
            (PredicateStep::AnnotationsChanged, false),
        ] {
            let trigger = trigger(Mapping::Every, vec![step.clone()]);
            assert!(trigger.wakes(&same).is_empty(), "{step:?}");
            assert_eq!(!trigger.wakes(&relabelled).is_empty(), passes, "{step:?}");
            assert_eq!(
                trigger.wakes(&Change { old: None, ..same.clone() }).len(),
                1,
                "creation passes"
            );
        }
        assert_eq!(
            trigger(Mapping::Every, vec![]).wakes(&same).len(),
            1,
            "no predicate, a resync passes"
        );
    }

    /// Random predicates against an evaluator that builds the formula as a tree.
    #[test]
    #[expect(clippy::too_many_lines, reason = "the evaluator is a part of the test")]
    fn a_predicate_reads_as_its_postfix_text() {
        enum Formula {
            Leaf(PredicateStep),
            Not(Box<Formula>),
            Two(bool, Box<Formula>, Box<Formula>),
        }
        fn make(random: &mut u64, depth: u32) -> Formula {
            let mut below = |bound: u64| {
                *random = fastrand::Rng::with_seed(*random).u64(..);
                *random % bound
            };
            match if depth == 0 { 0 } else { below(4) } {
                0 => Formula::Leaf(match below(4) {
                    0 => PredicateStep::GenerationChanged,
                    1 => PredicateStep::LabelsChanged,
                    2 => PredicateStep::MatchesLabels("site=x".into()),
                    _ => PredicateStep::ResourceVersionChanged,
                }),
                1 => Formula::Not(Box::new(make(random, depth - 1))),
                both => {
                    let left = make(random, depth - 1);
                    Formula::Two(both == 2, Box::new(left), Box::new(make(random, depth - 1)))
                }
            }
        }
        fn postfix(formula: &Formula, steps: &mut Vec<PredicateStep>) {
            match formula {
                Formula::Leaf(step) => steps.push(step.clone()),
                Formula::Not(inner) => {
                    postfix(inner, steps);
                    steps.push(PredicateStep::Negate);
                }
                Formula::Two(both, left, right) => {
                    postfix(left, steps);
                    postfix(right, steps);
                    steps.push(if *both { PredicateStep::Both } else { PredicateStep::Either });
                }
            }
        }
        fn holds(formula: &Formula, truth: &dyn Fn(&PredicateStep) -> bool) -> bool {
            match formula {
                Formula::Leaf(step) => truth(step),
                Formula::Not(inner) => !holds(inner, truth),
                Formula::Two(true, left, right) => holds(left, truth) && holds(right, truth),
                Formula::Two(false, left, right) => holds(left, truth) || holds(right, truth),
            }
        }
        let mut random = 11_u64;
        for _ in 0..2_000 {
            let formula = make(&mut random, 4);
            let mut steps = vec![];
            postfix(&formula, &mut steps);
            let (generation, label) = (random >> 9 & 1 == 1, random >> 10 & 1 == 1);
            let new = object(|value| {
                value["metadata"]["resourceVersion"] = json!("2");
                value["metadata"]["generation"] = json!(if generation { 2 } else { 1 });
                value["metadata"]["labels"]["site"] = json!(if label { "x" } else { "l" });
            });
            let change = Change { old: object(|_| ()), new };
            let truth = |step: &PredicateStep| match step {
                PredicateStep::GenerationChanged => generation,
                PredicateStep::LabelsChanged | PredicateStep::MatchesLabels(_) => label,
                _ => true,
            };
            let woken = !trigger(Mapping::Every, steps.clone()).wakes(&change).is_empty();
            assert_eq!(woken, holds(&formula, &truth), "{steps:?}");
        }
    }
}
