//! By which fields the items of a list are told apart, as an object's managedFields show it; pure.
//!
//! A server that merges by server-side apply writes down who owns which item of a list, and names the item by its keys:
//! `k:{"name":"web"}`. A list of which nothing of the kind is written is one value.
//!
//! Invariant: `keys_are_read_where_somebody_owns_an_item`.

use std::collections::BTreeMap;

use serde_json::Value;

/// Deeper than this nothing is read.
const DEPTH: usize = 64;

/// How the lists of one object are told apart, by their path: fields joined by dots, `[]` for an item.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys(BTreeMap<String, List>);

/// One list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum List {
    /// Its items are objects, told apart by these fields.
    Map(Vec<String>),
    /// Its items are plain values, each at most once.
    Set,
}

impl Keys {
    /// What the managedFields of an object's JSON show.
    pub fn of(object: &Value) -> Self {
        let mut keys = Self::default();
        let managers = object["metadata"]["managedFields"].as_array();
        for manager in managers.into_iter().flatten() {
            keys.read(&manager["fieldsV1"], "", DEPTH);
        }
        keys
    }

    /// How the list at `path` is told apart; `None`: it is one value.
    pub fn at(&self, path: &str) -> Option<&List> {
        self.0.get(path)
    }

    fn read(&mut self, fields: &Value, path: &str, depth: usize) {
        let (Some(fields), Some(depth)) = (fields.as_object(), depth.checked_sub(1)) else {
            return;
        };
        for (name, inner) in fields {
            match name.split_once(':') {
                Some(("f", field)) => {
                    let dot = if path.is_empty() { "" } else { "." };
                    self.read(inner, &format!("{path}{dot}{field}"), depth);
                }
                Some(("k", key)) => {
                    let Ok(Value::Object(key)) = serde_json::from_str(key) else { continue };
                    let names = key.into_iter().map(|(name, _)| name).collect();
                    self.0.entry(path.to_owned()).or_insert(List::Map(names));
                    self.read(inner, &format!("{path}[]"), depth);
                }
                Some(("v", _)) => {
                    self.0.entry(path.to_owned()).or_insert(List::Set);
                }
                _ => (),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_are_read_where_somebody_owns_an_item() {
        let ports =
            json!({ r#"k:{"containerPort":80,"protocol":"TCP"}"#: { ".": {}, "f:name": {} } });
        let container = json!({ ".": {}, "f:image": {}, "f:ports": ports });
        let spec = json!({ "f:containers": { r#"k:{"name":"web"}"#: container } });
        let fields = json!({
            "f:metadata": { "f:finalizers": { r#"v:"x.io/a""#: {} } },
            "f:spec": spec,
        });
        let object = json!({ "metadata": { "managedFields": [{ "fieldsV1": fields }, 1] } });
        let keys = Keys::of(&object);
        assert_eq!(keys.at("metadata.finalizers"), Some(&List::Set));
        assert_eq!(keys.at("spec.containers"), Some(&List::Map(vec!["name".into()])));
        let both = ["containerPort", "protocol"].map(str::to_owned).into();
        assert_eq!(keys.at("spec.containers[].ports"), Some(&List::Map(both)));
        assert_eq!(keys.at("spec"), None);
        assert_eq!(Keys::of(&json!({})), Keys::default());
        let deep = (0..200).fold(json!({}), |inner, _| json!({ "f:a": inner }));
        let deep = json!({ "metadata": { "managedFields": [{ "fieldsV1": deep }] } });
        assert_eq!(Keys::of(&deep), Keys::default(), "nothing to fall over");
    }
}
