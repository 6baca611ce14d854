//! Which fields differ between an object as it is and as it would be; pure.
//!
//! The server's own bookkeeping is left out. The items of a list are told apart by key where managedFields show the key;
//! another list is one value. What is added or gone is told field by field, so that the same change has the same path in
//! every object.
//!
//! Invariants: `a_difference_is_told_by_its_path`, `bookkeeping_is_no_difference`, `a_difference_has_an_end`.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
};

use serde_json::{Map, Value};

use crate::{
    client::dry::{Keys, List},
    model::plan::PathChange,
};

/// No more of one object's fields are told; all others are one more, under this path.
const CHANGES: usize = 300;
pub(super) const MORE: &str = "(more)";
/// Deeper than this a value is one value.
const DEPTH: usize = 60;
/// What the server moves by itself.
const BOOKKEEPING: [&str; 8] = [
    "resourceVersion",
    "generation",
    "managedFields",
    "uid",
    "creationTimestamp",
    "selfLink",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
];

/// An object without the server's bookkeeping.
pub(super) fn plain(mut object: Value) -> Value {
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.retain(|name, _| !BOOKKEEPING.contains(&name.as_str()));
    }
    object
}

/// The fields in which two plain objects differ, in the order of their paths.
pub(super) fn between(before: &Value, after: &Value, keys: &Keys) -> Vec<PathChange> {
    let mut walk = Walk { keys, found: vec![], rest: DefaultHasher::new() };
    walk.compare(At::default(), Some(before), Some(after));
    if walk.found.len() > CHANGES {
        walk.found.truncate(CHANGES);
        let rest = format!("{:016x}", walk.rest.finish());
        walk.found.push(PathChange { path: MORE.to_owned(), from: None, to: Some(rest.into()) });
    }
    walk.found
}

struct Walk<'a> {
    keys: &'a Keys,
    found: Vec<PathChange>,
    /// What is beyond: two objects that differ there are told to differ.
    rest: DefaultHasher,
}

/// Where in an object.
#[derive(Clone, Debug, Default)]
struct At {
    /// As it is told.
    path: String,
    /// As [`Keys`] name it.
    pattern: String,
    depth: usize,
}

impl At {
    fn field(&self, name: &str) -> Self {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        let dot = |text: &str| if text.is_empty() { "" } else { "." };
        let path = if !name.is_empty() && name.chars().all(is_plain) {
            format!("{}{}{name}", self.path, dot(&self.path))
        } else {
            format!("{}[{name:?}]", self.path)
        };
        let pattern = format!("{}{}{name}", self.pattern, dot(&self.pattern));
        Self { path, pattern, depth: self.depth + 1 }
    }

    fn item(&self, key: &str) -> Self {
        Self {
            path: format!("{}[{key}]", self.path),
            pattern: format!("{}[]", self.pattern),
            depth: self.depth + 1,
        }
    }
}

impl Walk<'_> {
    fn compare(&mut self, at: At, before: Option<&Value>, after: Option<&Value>) {
        // A field that is null is none.
        let [before, after] = [before, after].map(|value| value.filter(|value| !value.is_null()));
        if before == after {
            return;
        }
        let none = Map::new();
        let fields = |value: Option<&'_ Value>| value.is_none_or(Value::is_object);
        if fields(before) && fields(after) && at.depth < DEPTH {
            let [one, other] =
                [before, after].map(|value| value.and_then(Value::as_object).unwrap_or(&none));
            // An object without fields is a value.
            if !(one.is_empty() && other.is_empty()) {
                let names: std::collections::BTreeSet<_> = one.keys().chain(other.keys()).collect();
                for name in names {
                    self.compare(at.field(name), one.get(name), other.get(name));
                }
                return;
            }
        }
        if let (Some(Value::Array(one)), Some(Value::Array(other))) = (before, after)
            && self.compare_items(&at, one, other)
        {
            return;
        }
        self.found(at.path, before, after);
    }

    fn found(&mut self, path: String, before: Option<&Value>, after: Option<&Value>) {
        if self.found.len() >= CHANGES {
            let text = |value: Option<&Value>| value.map(ToString::to_string);
            (&path, text(before), text(after)).hash(&mut self.rest);
            // One above the limit stands for all of them.
            self.found.truncate(CHANGES);
        }
        self.found.push(PathChange { path, from: before.cloned(), to: after.cloned() });
    }

    /// False: the list is one value.
    fn compare_items(&mut self, at: &At, before: &[Value], after: &[Value]) -> bool {
        let Some(list) = self.keys.at(&at.pattern) else { return false };
        let (Some(one), Some(other)) = (items(list, before), items(list, after)) else {
            return false;
        };
        let names: std::collections::BTreeSet<_> = one.keys().chain(other.keys()).collect();
        let mut differs = false;
        for name in names {
            let (before, after) = (one.get(name).copied(), other.get(name).copied());
            differs |= before != after;
            match (before, after) {
                (Some(before), Some(after)) => {
                    self.compare(at.item(name), Some(before), Some(after));
                }
                // A whole item comes or goes.
                _ => self.found(at.item(name).path, before, after),
            }
        }
        // Another order alone is a change as well, but not of a set.
        differs || *list == List::Set
    }
}

/// The items by their keys; `None`: some have none, or the same.
fn items<'a>(list: &List, values: &'a [Value]) -> Option<BTreeMap<String, &'a Value>> {
    let mut items = BTreeMap::new();
    for value in values {
        let key = match list {
            List::Set => match value {
                Value::String(text) => text.clone(),
                Value::Number(_) | Value::Bool(_) => value.to_string(),
                _ => return None,
            },
            List::Map(names) => {
                let parts = names.iter().map(|name| match value.get(name) {
                    Some(Value::String(text)) => text.clone(),
                    Some(other) => other.to_string(),
                    None => String::new(),
                });
                let parts: Vec<_> = parts.collect();
                if !value.is_object() || parts.iter().all(String::is_empty) {
                    return None;
                }
                parts.join(",")
            }
        };
        if items.insert(key, value).is_some() {
            return None;
        }
    }
    Some(items)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn keys() -> Keys {
        let container = json!({ "f:ports": { r#"k:{"port":80,"protocol":"TCP"}"#: {} } });
        let fields = json!({
            "f:metadata": { "f:finalizers": { r#"v:"a""#: {} } },
            "f:spec": { "f:containers": { r#"k:{"name":"web"}"#: container } },
        });
        Keys::of(&json!({ "metadata": { "managedFields": [{ "fieldsV1": fields }] } }))
    }

    fn paths(before: &Value, after: &Value) -> Vec<String> {
        between(before, after, &keys()).into_iter().map(|change| change.path).collect()
    }

    #[test]
    fn a_difference_is_told_by_its_path() {
        let web =
            |image: &str, ports: Value| json!({ "name": "web", "image": image, "ports": ports });
        let port = |port: u16| json!({ "port": port, "protocol": "TCP" });
        let with = |containers: Value| json!({ "spec": { "containers": containers } });
        let sidecar = json!({ "name": "log" });
        for (before, after, expected) in [
            (
                with(json!([sidecar, web("1", json!([port(80)]))])),
                with(json!([web("2", json!([port(80), port(81)]))])),
                vec![
                    "spec.containers[log]",
                    "spec.containers[web].image",
                    "spec.containers[web].ports[81,TCP]",
                ],
            ),
            (
                with(json!([sidecar, web("1", json!([]))])),
                with(json!([web("1", json!([])), sidecar])),
                vec!["spec.containers"],
            ),
            (with(json!([1])), with(json!([2])), vec!["spec.containers"]),
            (with(json!([sidecar, sidecar])), with(json!([sidecar])), vec!["spec.containers"]),
            (
                json!({ "metadata": { "finalizers": ["a", "b"] } }),
                json!({ "metadata": { "finalizers": ["b", "c", "a"] } }),
                vec!["metadata.finalizers[c]"],
            ),
            (
                json!({ "metadata": { "finalizers": ["a", "b"] } }),
                json!({ "metadata": { "finalizers": ["b", "a"] } }),
                vec![],
            ),
            (
                json!({ "metadata": {} }),
                json!({ "metadata": { "labels": { "app.kubernetes.io/name": "x", "b": "y" } } }),
                vec![r#"metadata.labels["app.kubernetes.io/name"]"#, "metadata.labels.b"],
            ),
            (json!({ "a": null }), json!({}), vec![]),
            (json!({}), json!({ "a": {} }), vec!["a"]),
            (json!({ "a": { "b": 1 } }), json!({ "a": 1 }), vec!["a"]),
            (json!({ "l": [1] }), json!({ "l": [1, 2] }), vec!["l"]),
        ] {
            assert_eq!(paths(&before, &after), expected, "{before} {after}");
        }
        let change = &between(&json!({ "a": 1 }), &json!({ "a": 2 }), &keys())[0];
        assert_eq!((&change.from, &change.to), (&Some(json!(1)), &Some(json!(2))));
    }

    #[test]
    fn bookkeeping_is_no_difference() {
        let one = json!({ "metadata": { "name": "x", "uid": "1", "resourceVersion": "7", "generation": 1, "managedFields": [],
            "creationTimestamp": "t" }, "spec": { "uid": "kept" } });
        let other = json!({ "metadata": { "name": "x", "uid": "2" }, "spec": { "uid": "kept" } });
        assert_eq!(paths(&plain(one.clone()), &plain(other)), Vec::<String>::new());
        assert_eq!(plain(one)["spec"]["uid"], "kept");
    }

    #[test]
    fn a_difference_has_an_end() {
        let deep = |leaf: u8| (0..200).fold(json!(leaf), |inner, _| json!({ "a": inner }));
        assert_eq!(paths(&deep(1), &deep(2)).len(), 1);
        let wide: Map<_, _> = (0..10_000).map(|at| (format!("k{at}"), json!(at))).collect();
        let mut other = wide.clone();
        other.insert("k9999".to_owned(), json!(0));
        let of = |wide| between(&json!({}), &Value::Object(wide), &keys());
        let (one, other) = (of(wide), of(other));
        assert_eq!((one.len(), other.len()), (CHANGES + 1, CHANGES + 1));
        assert_eq!(one[..CHANGES], other[..CHANGES]);
        assert_ne!(one[CHANGES].to, other[CHANGES].to, "what is beyond counts");
    }

    /// Whatever differs is told, and nothing else: random objects, changed in one place.
    #[test]
    fn one_change_is_one_path() {
        for seed in 0..500_u64 {
            let mut random = fastrand::Rng::with_seed(seed);
            let object = grown(&mut random, 4);
            assert!(paths(&object, &object).is_empty(), "seed {seed}");
            let mut changed = object.clone();
            if change(&mut changed, &mut random) {
                let found = paths(&object, &changed);
                assert_eq!(found.len(), 1, "seed {seed}: {object} {changed}: {found:?}");
            }
        }
    }

    fn grown(random: &mut fastrand::Rng, depth: u8) -> Value {
        let fields = (0..random.usize(1..4)).map(|at| {
            let value = match random.u8(0..3) {
                0 if depth > 0 => grown(random, depth - 1),
                1 => json!([random.u8(..), "x"]),
                _ => json!(random.u8(..)),
            };
            (format!("f{at}"), value)
        });
        Value::Object(fields.collect())
    }

    fn change(value: &mut Value, random: &mut fastrand::Rng) -> bool {
        match value {
            Value::Object(fields) => {
                let at = random.usize(0..fields.len());
                fields.values_mut().nth(at).is_some_and(|inner| change(inner, random))
            }
            Value::Array(items) => {
                items.push(json!("new"));
                true
            }
            other => {
                *other = json!("changed");
                true
            }
        }
    }
}
