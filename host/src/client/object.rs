//! Reads the head of an object that a guest hands over, and adds to its metadata, without parsing the rest; pure.
//!
//! Invariant: `what_is_added_lands_in_the_metadata_and_nowhere_else`.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{client::Error, manifest::Kind, text::NAME, watch::ObjectKey};

/// A guest's object may not be larger (TN8).
const LIMIT: usize = 1 << 20;

/// The head of an object.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) kind: Kind,
    pub(super) namespace: Option<String>,
    pub(super) name: Option<String>,
    pub(super) generate_name: bool,
    pub(super) uid: Option<String>,
    pub(super) text: String,
    /// Just behind the metadata's opening brace.
    inside_metadata: usize,
    metadata_is_empty: bool,
    has_version: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head<'a> {
    #[serde(borrow)]
    api_version: Cow<'a, str>,
    #[serde(borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    metadata: &'a RawValue,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    generate_name: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
}

impl Object {
    pub(super) fn parse(text: String) -> Result<Self, Error> {
        if text.len() > LIMIT {
            return Err(Error::Invalid(format!(
                "the object has {} bytes, more than {LIMIT}",
                text.len()
            )));
        }
        let wrong = |error: serde_json::Error| {
            Error::Invalid(format!("not an object with apiVersion, kind and metadata: {error}"))
        };
        let head: Head<'_> = serde_json::from_str(&text).map_err(wrong)?;
        let raw = head.metadata.get();
        let metadata: Metadata = serde_json::from_str(raw).map_err(wrong)?;
        // A name that the server cannot have would be in every message about it.
        for (what, name, most) in [
            ("metadata.name", metadata.name.as_deref(), NAME),
            ("metadata.generateName", metadata.generate_name.as_deref(), NAME),
            ("metadata.namespace", metadata.namespace.as_deref(), NAME),
            ("metadata.uid", metadata.uid.as_deref(), NAME),
            ("apiVersion", Some(&*head.api_version), 2 * NAME),
            ("kind", Some(&*head.kind), NAME),
        ] {
            if let Some(bytes) = name.map(str::len).filter(|bytes| *bytes > most) {
                let text = format!("{what} has {bytes} bytes, and there may be at most {most}");
                return Err(Error::Invalid(text));
            }
        }
        let start = raw.as_ptr().addr() - text.as_ptr().addr();
        let inner = raw.trim_start_matches('{').trim();
        Ok(Self {
            kind: Kind::new(&head.api_version, &head.kind),
            namespace: metadata.namespace,
            name: metadata.name,
            generate_name: metadata.generate_name.is_some(),
            uid: metadata.uid,
            has_version: metadata.resource_version.is_some(),
            inside_metadata: start + 1,
            metadata_is_empty: inner == "}",
            text,
        })
    }

    /// Namespace and name; an error if there is no name.
    pub(super) fn key(&self) -> Result<ObjectKey, Error> {
        let name = self.name.as_deref().filter(|name| !name.is_empty());
        let name =
            name.ok_or_else(|| Error::Invalid("the object has no metadata.name".to_owned()))?;
        Ok(ObjectKey::new(self.namespace.as_deref(), name))
    }

    /// The text with `uid` and `resource_version` in its metadata, where it has none of its own.
    pub(super) fn bound_to(&self, uid: Option<&str>, resource_version: Option<&str>) -> String {
        let mut added = String::new();
        let mut add = |key: &str, value: Option<&str>| {
            if let Some(value) = value {
                added.push_str(&format!("{key:?}:{},", serde_json::Value::from(value)));
            }
        };
        add("uid", uid.filter(|_| self.uid.is_none()));
        add("resourceVersion", resource_version.filter(|_| !self.has_version));
        if self.metadata_is_empty {
            added.pop();
        }
        let (before, after) = self.text.split_at(self.inside_metadata);
        [before, &added, after].concat()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn what_is_added_lands_in_the_metadata_and_nowhere_else() {
        let text = r#"{"spec":{"metadata":{"uid":"no"}},"kind":"Thing","metadata": {"name":"a"},"apiVersion":"x.io/v1"}"#;
        let object = Object::parse(text.to_owned()).unwrap();
        assert_eq!(object.kind, Kind::new("x.io/v1", "Thing"));
        assert_eq!(object.key().unwrap(), ObjectKey::new(None, "a"));
        let bound: Value = serde_json::from_str(&object.bound_to(Some("u\"1"), Some("7"))).unwrap();
        let expected = json!({"name": "a", "uid": "u\"1", "resourceVersion": "7"});
        assert_eq!(bound["metadata"], expected);
        assert_eq!(bound["spec"]["metadata"], json!({"uid": "no"}));
        assert_eq!(object.bound_to(None, None), text);
        let empty =
            Object::parse(r#"{"kind":"T","apiVersion":"v1","metadata":{ }}"#.to_owned()).unwrap();
        assert!(empty.key().is_err());
        let bound: Value = serde_json::from_str(&empty.bound_to(Some("u"), None)).unwrap();
        assert_eq!(bound["metadata"], json!({"uid": "u"}));
        for bad in ["", "[]", "{}", r#"{"kind":"T","apiVersion":"v1"}"#, r#"{"kind":1}"#] {
            assert!(matches!(Object::parse(bad.to_owned()), Err(Error::Invalid(_))), "{bad}");
        }
        let own =
            Object::parse(r#"{"kind":"T","apiVersion":"v1","metadata":{"uid":"mine"}}"#.to_owned());
        assert!(!own.unwrap().bound_to(Some("other"), None).contains("other"));
    }
}
