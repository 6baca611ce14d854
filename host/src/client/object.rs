//! Reads the head of an object that a guest hands over, and adds to its metadata, without parsing the rest; pure.
//!
//! Invariants: `what_is_added_lands_in_the_metadata_and_nowhere_else`, `what_is_too_long_is_refused_by_its_length`.

use std::{borrow::Cow, ops::Range};

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    cluster::Error,
    model::{kind::Kind, object::ObjectKey},
    watch::envelope::Owner,
};

/// A guest's object, or patch, may not be larger: the store of the API server takes 1.5 MiB.
const LIMIT: usize = 1 << 20;
/// No name is longer, and no namespace than [`LONGEST_NAMESPACE`].
const LONGEST_NAME: usize = 253;
const LONGEST_NAMESPACE: usize = 63;
/// More owners are not read.
const OWNERS: usize = 100;

/// The head of an object.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) kind: Kind,
    pub(super) namespace: Option<String>,
    pub(super) name: Option<String>,
    pub(super) generate_name: bool,
    pub(super) uid: Option<String>,
    pub(super) owners: Vec<Owner>,
    pub(super) text: String,
    /// Where in it the metadata stands.
    metadata: Range<usize>,
    metadata_is_empty: bool,
    pub(super) has_version: bool,
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
    owner_references: Option<Vec<Reference>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Reference {
    api_version: String,
    kind: String,
    name: String,
    uid: String,
    controller: Option<bool>,
}

impl Object {
    pub(super) fn parse(text: String) -> Result<Self, Error> {
        check_size("object", &text)?;
        let wrong = |error: serde_json::Error| {
            Error::Invalid(format!("not an object with apiVersion, kind and metadata: {error}"))
        };
        let head: Head<'_> = serde_json::from_str(&text).map_err(wrong)?;
        let raw = head.metadata.get();
        let metadata: Metadata = serde_json::from_str(raw).map_err(wrong)?;
        // What the server cannot have would be in every message about it.
        for (what, text, most) in [
            ("metadata.generateName", metadata.generate_name.as_deref(), LONGEST_NAME),
            ("metadata.uid", metadata.uid.as_deref(), LONGEST_NAME),
            ("apiVersion", Some(&*head.api_version), 2 * LONGEST_NAME),
            ("kind", Some(&*head.kind), LONGEST_NAME),
        ] {
            if let Some(bytes) = text.map(str::len).filter(|bytes| *bytes > most) {
                let text = format!("{what} has {bytes} bytes, and there may be at most {most}");
                return Err(Error::Invalid(text));
            }
        }
        let owners = metadata.owner_references.unwrap_or_default();
        if owners.len() > OWNERS {
            let text = format!("the object has {} owners, more than {OWNERS}", owners.len());
            return Err(Error::Invalid(text));
        }
        let start = raw.as_ptr().addr() - text.as_ptr().addr();
        let inner = raw.trim_start_matches('{').trim();
        Ok(Self {
            kind: Kind::new(&head.api_version, &head.kind),
            namespace: metadata.namespace,
            name: metadata.name,
            generate_name: metadata.generate_name.is_some(),
            uid: metadata.uid,
            owners: owners.into_iter().map(Into::into).collect(),
            has_version: metadata.resource_version.is_some(),
            metadata: start..start + raw.len(),
            metadata_is_empty: inner == "}",
            text,
        })
    }

    /// Namespace and name; an error if there is no name.
    pub(super) fn key(&self) -> Result<ObjectKey, Error> {
        let name = self.name.as_deref().filter(|name| !name.is_empty());
        let name =
            name.ok_or_else(|| Error::Invalid("the object has no metadata.name".to_owned()))?;
        key(self.namespace.as_deref(), name)
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
        let (before, after) = self.text.split_at(self.metadata.start + 1);
        [before, &added, after].concat()
    }

    /// The object with one owner more.
    pub(super) fn owned_by(self, owner: serde_json::Value) -> Result<Self, Error> {
        let unread = |error: serde_json::Error| Error::Invalid(format!("not read: {error}"));
        let (before, after) = (&self.text[..self.metadata.start], &self.text[self.metadata.end..]);
        let mut metadata: serde_json::Value =
            serde_json::from_str(&self.text[self.metadata.clone()]).map_err(unread)?;
        match &mut metadata["ownerReferences"] {
            serde_json::Value::Array(owners) => owners.push(owner),
            none => *none = serde_json::json!([owner]),
        }
        Self::parse([before, &metadata.to_string(), after].concat())
    }
}

impl From<Reference> for Owner {
    fn from(reference: Reference) -> Self {
        let Reference { api_version, kind, name, uid, controller } = reference;
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        Self {
            group: group.into(),
            kind: kind.into(),
            name: name.into(),
            uid: uid.into(),
            controller: controller.unwrap_or(false),
        }
    }
}

/// Namespace and name as a guest gives them.
pub(super) fn key(namespace: Option<&str>, name: &str) -> Result<ObjectKey, Error> {
    let longest = [("name", name, LONGEST_NAME)];
    let namespaces = namespace.map(|text| ("namespace", text, LONGEST_NAMESPACE));
    for (what, text, most) in longest.into_iter().chain(namespaces) {
        if text.len() > most {
            return Err(Error::Invalid(format!(
                "the {what} has {} bytes, more than {most}",
                text.len()
            )));
        }
    }
    Ok(ObjectKey::new(namespace, name))
}

/// Refuses what no API server would store.
pub(super) fn check_size(what: &str, text: &str) -> Result<(), Error> {
    if text.len() <= LIMIT {
        return Ok(());
    }
    let text = format!("the {what} has {} bytes, more than {LIMIT}", text.len());
    Err(Error::Invalid(text))
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

    #[test]
    fn what_is_too_long_is_refused_by_its_length() {
        let text = |name: &str, namespace: &str, fill: usize| {
            json!({"kind": "T", "apiVersion": "v1", "x": "y".repeat(fill),
                "metadata": {"name": name, "namespace": namespace}})
            .to_string()
        };
        let refused = |text: String| match Object::parse(text).and_then(|object| object.key()) {
            Err(Error::Invalid(text)) => Some(text),
            other => other.map(|_| None).unwrap(),
        };
        let around = text("a", "b", 0).len();
        assert_eq!(refused(text("a", "b", LIMIT - around)), None);
        let message = refused(text("a", "b", LIMIT - around + 1)).unwrap();
        assert!(message.contains("1048577 bytes, more than 1048576"), "{message}");
        assert_eq!(refused(text(&"a".repeat(253), &"b".repeat(63), 0)), None);
        assert!(refused(text(&"a".repeat(254), "b", 0)).unwrap().contains("name has 254"));
        assert!(refused(text("a", &"b".repeat(64), 0)).unwrap().contains("namespace has 64"));
        let owned = |count: usize| {
            let owner = json!({"apiVersion": "g/v1", "kind": "K", "name": "n", "uid": "u"});
            json!({"kind": "T", "apiVersion": "v1", "metadata": {"ownerReferences": vec![owner; count]}})
        };
        assert_eq!(Object::parse(owned(OWNERS).to_string()).unwrap().owners.len(), OWNERS);
        assert!(Object::parse(owned(OWNERS + 1).to_string()).is_err());
    }

    /// Whoever reads another one of two equal names than the server does can be told two stories.
    #[test]
    fn a_name_that_comes_twice_is_refused() {
        for metadata in [
            r#"{"name":"a","name":"b"}"#,
            r#"{"name":"a","ownerReferences":[],"ownerReferences":[]}"#,
            r#"{"name":"a","owner\u0052eferences":[],"ownerReferences":[]}"#,
        ] {
            let text = format!(r#"{{"kind":"T","apiVersion":"v1","metadata":{metadata}}}"#);
            assert!(Object::parse(text).is_err(), "{metadata}");
        }
        let text =
            r#"{"kind":"T","apiVersion":"v1","metadata":{"name":"a"},"metadata":{"name":"b"}}"#;
        assert!(Object::parse(text.to_owned()).is_err());
    }
}
