//! Reads name, uid, version, labels and owners out of an object's JSON text and leaves the rest as text; pure.
//!
//! The body is never parsed into a tree. `metadata.managedFields` is cut out around its raw span, and apiVersion and
//! kind are put in where the server leaves them out (items of a LIST) or says `PartialObjectMetadata`.
//!
//! Invariants, each held by the test of that name:
//!
//! - `managed_fields_are_cut_and_nothing_else_changes`
//! - `every_object_says_its_own_kind`
//! - `what_a_server_leaves_out_or_says_is_null_is_empty`

use std::{borrow::Cow, cmp::Ordering, collections::BTreeMap, fmt, sync::Arc};

use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use super::{
    intern::{Interner, Labels},
    lenient::{or_default, raw, text},
};
use crate::model::{kind::Kind, object::ObjectKey};

/// An object as it was last seen: what the host must know of it, and its text.
#[derive(Debug)]
pub struct Entry {
    key: ObjectKey,
    uid: Box<str>,
    version: Version,
    generation: Option<i64>,
    deleting: bool,
    labels: Labels,
    owners: Box<[Owner]>,
    finalizers: Box<[Arc<str>]>,
    body: Arc<str>,
}

/// An owner reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// API group of the owner; the version is ignored.
    pub group: Arc<str>,
    /// Kind of the owner.
    pub kind: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Its uid.
    pub uid: Arc<str>,
    /// Whether it is the controller.
    pub controller: bool,
}

/// A resourceVersion: comparable if it is a number, as the API promises, else only equal or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Version {
    /// Digits without a leading zero.
    Number(u128),
    /// Anything else.
    Text(Box<str>),
}

/// One line of a watch.
#[derive(Debug)]
pub enum Line {
    /// An object was added or has changed.
    Changed(Entry),
    /// An object is gone; its last state.
    Deleted(Entry),
    /// Nothing older than this will come any more.
    Bookmark {
        /// The version up to which everything was sent.
        version: String,
        /// Whether the initial state is complete (`k8s.io/initial-events-end`).
        initial_end: bool,
    },
    /// An event of a type that this host does not know.
    Unknown(String),
    /// The server ends the watch.
    Error {
        /// HTTP status code; 500 where the server gives none.
        code: u16,
        /// One CamelCase word.
        reason: String,
        /// For people.
        message: String,
        /// Wait at least so many seconds.
        retry_after: Option<u64>,
    },
}

/// A page of a LIST.
#[derive(Debug)]
pub struct List {
    /// Its objects.
    pub entries: Vec<Entry>,
    /// The version of the list.
    pub version: String,
    /// How the next page is asked for.
    pub next: Option<String>,
}

/// Not what the API promises.
#[derive(Debug, thiserror::Error)]
#[error("cannot read an object or event of the API server")]
pub struct Error(#[from] serde_json::Error);

#[derive(Deserialize)]
struct RawEvent<'a> {
    #[serde(rename = "type", borrow, default, deserialize_with = "text")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    object: Option<&'a RawValue>,
}

/// Empty collections are null where a server written in Go builds its list by hand.
#[derive(Deserialize)]
struct RawList<'a> {
    #[serde(default, deserialize_with = "or_default")]
    kind: String,
    metadata: Option<ListMeta>,
    #[serde(borrow)]
    items: Option<Vec<Option<&'a RawValue>>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ListMeta {
    #[serde(deserialize_with = "or_default")]
    resource_version: String,
    #[serde(rename = "continue")]
    next: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawObject<'a> {
    #[serde(borrow, default, deserialize_with = "raw")]
    api_version: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "raw")]
    kind: Option<&'a RawValue>,
    #[serde(borrow)]
    metadata: &'a RawValue,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawMetadata<'a> {
    #[serde(borrow, default, deserialize_with = "text")]
    name: Cow<'a, str>,
    #[serde(borrow, default, deserialize_with = "text")]
    namespace: Cow<'a, str>,
    #[serde(borrow, default, deserialize_with = "text")]
    uid: Cow<'a, str>,
    #[serde(borrow, default, deserialize_with = "text")]
    resource_version: Cow<'a, str>,
    generation: Option<i64>,
    #[serde(borrow)]
    deletion_timestamp: Option<&'a RawValue>,
    #[serde(borrow)]
    labels: Option<BTreeMap<Cow<'a, str>, Option<Cow<'a, str>>>>,
    #[serde(borrow, default, deserialize_with = "or_default")]
    owner_references: Vec<RawOwner<'a>>,
    #[serde(borrow, default, deserialize_with = "or_default")]
    finalizers: Vec<Cow<'a, str>>,
    #[serde(borrow)]
    managed_fields: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawOwner<'a> {
    #[serde(borrow, default, deserialize_with = "text")]
    api_version: Cow<'a, str>,
    #[serde(borrow, default, deserialize_with = "text")]
    kind: Cow<'a, str>,
    #[serde(borrow, default, deserialize_with = "text")]
    name: Cow<'a, str>,
    #[serde(borrow, default, deserialize_with = "text")]
    uid: Cow<'a, str>,
    controller: Option<bool>,
}

#[derive(Deserialize)]
struct RawBookmark {
    #[serde(default, deserialize_with = "or_default")]
    metadata: BookmarkMeta,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct BookmarkMeta {
    #[serde(deserialize_with = "or_default")]
    resource_version: String,
    #[serde(deserialize_with = "or_default")]
    annotations: BTreeMap<String, Option<String>>,
}

/// Reads one object that says its own kind, such as the answer to a write.
pub fn object(text: &str) -> Result<Entry, Error> {
    entry(text, None, &mut Interner::default())
}

/// Reads one line of a watch of `kind`.
pub fn line(text: &str, kind: &Kind, interner: &mut Interner) -> Result<Line, Error> {
    let event: RawEvent<'_> = serde_json::from_str(braced(text)?)?;
    let object = event.object.map_or("null", RawValue::get);
    match &*event.kind {
        "ADDED" | "MODIFIED" => Ok(Line::Changed(named(object, kind, interner)?)),
        "DELETED" => Ok(Line::Deleted(named(object, kind, interner)?)),
        "BOOKMARK" => {
            let RawBookmark { metadata } = serde_json::from_str(object)?;
            let end = metadata.annotations.get("k8s.io/initial-events-end");
            let initial_end = end.is_some_and(|value| value.as_deref() == Some("true"));
            Ok(Line::Bookmark { version: metadata.resource_version, initial_end })
        }
        "ERROR" => Ok(error(&serde_json::from_str(object)?)),
        // A refusal that came without an envelope.
        "" => match serde_json::from_str::<Value>(text)? {
            status if status["kind"] == "Status" => Ok(error(&status)),
            _ => Err(unlike("an event has no type")),
        },
        other => Ok(Line::Unknown(other.to_owned())),
    }
}

/// Whatever the server says as the reason for an end is one.
fn error(status: &Value) -> Line {
    let text = |name: &str| status[name].as_str().unwrap_or_default().to_owned();
    let code = status["code"].as_u64().and_then(|code| u16::try_from(code).ok());
    let message = match text("message") {
        message if message.is_empty() => format!("the watch has ended with an error: {status}"),
        message => message,
    };
    Line::Error {
        code: code.filter(|code| *code != 0).unwrap_or(500),
        reason: crate::text::cut_owned(text("reason"), crate::text::NAME),
        message: crate::text::line(&message, crate::text::MESSAGE).into_owned(),
        retry_after: status["details"]["retryAfterSeconds"].as_u64(),
    }
}

/// Reads one page of a LIST of `kind`.
pub fn list(text: &str, kind: &Kind, interner: &mut Interner) -> Result<List, Error> {
    let list: RawList<'_> = serde_json::from_str(braced(text)?)?;
    // Whatever is taken for an empty list deletes everything.
    let says_so = list.kind.ends_with("List");
    let looks_so = list.kind.is_empty() && (list.metadata.is_some() || list.items.is_some());
    if !says_so && !looks_so {
        return Err(unlike("instead of a list there is something else"));
    }
    let items = list.items.iter().flatten().flatten();
    let entries = items.map(|item| named(item.get(), kind, interner));
    let metadata = list.metadata.unwrap_or_default();
    Ok(List {
        entries: entries.collect::<Result<_, _>>()?,
        version: metadata.resource_version,
        next: metadata.next.filter(|next| !next.is_empty()),
    })
}

/// A JSON object; what is read into a struct could be an array as well.
pub(super) fn braced(text: &str) -> Result<&str, Error> {
    if text.trim_ascii_start().starts_with('{') {
        Ok(text)
    } else {
        Err(unlike("it is no JSON object"))
    }
}

/// An object that can be found again.
fn named(text: &str, kind: &Kind, interner: &mut Interner) -> Result<Entry, Error> {
    let entry = entry(braced(text)?, Some(kind), interner)?;
    if entry.key.name.is_empty() { Err(unlike("an object has no name")) } else { Ok(entry) }
}

fn unlike(what: &str) -> Error {
    Error(serde::de::Error::custom(what))
}

fn entry(text: &str, kind: Option<&Kind>, interner: &mut Interner) -> Result<Entry, Error> {
    let object: RawObject<'_> = serde_json::from_str(text)?;
    let metadata: RawMetadata<'_> = serde_json::from_str(object.metadata.get())?;
    let labels = metadata.labels.unwrap_or_default();
    let labels = labels.into_iter().map(|(name, value)| (name, value.unwrap_or_default()));
    let body = body(text, &object, metadata.managed_fields, kind);
    let owners = metadata.owner_references.iter().map(|owner| Owner {
        group: interner.text(owner.api_version.split_once('/').map_or("", |(group, _)| group)),
        kind: interner.text(&owner.kind),
        name: interner.text(&owner.name),
        uid: interner.text(&owner.uid),
        controller: owner.controller.unwrap_or(false),
    });
    let owners = owners.collect();
    Ok(Entry {
        key: ObjectKey {
            namespace: Some(metadata.namespace)
                .filter(|text| !text.is_empty())
                .map(|text| interner.text(&text)),
            name: metadata.name.as_ref().into(),
        },
        uid: metadata.uid.as_ref().into(),
        version: Version::parse(&metadata.resource_version),
        generation: metadata.generation,
        deleting: metadata.deletion_timestamp.is_some(),
        labels: interner.labels(&labels.collect()),
        owners,
        finalizers: metadata.finalizers.iter().map(|name| interner.text(name)).collect(),
        body,
    })
}

/// The text without managedFields and with the right apiVersion and kind.
fn body(
    text: &str,
    object: &RawObject<'_>,
    managed: Option<&RawValue>,
    kind: Option<&Kind>,
) -> Arc<str> {
    let mut edits: Vec<(usize, usize, String)> = vec![];
    if let Some((from, to)) =
        managed.and_then(|raw| member(text, span(text, raw.get()), "managedFields"))
    {
        edits.push((from, to, String::new()));
    }
    if let Some(kind) = kind {
        let mut missing = String::new();
        for (name, value, wanted) in [
            ("kind", object.kind, kind.kind.as_str()),
            ("apiVersion", object.api_version, &kind.api_version()),
        ] {
            let wanted = serde_json::Value::from(wanted).to_string();
            match value.map(RawValue::get) {
                Some(raw) if raw == wanted => (),
                Some(raw) => {
                    let (from, to) = span(text, raw);
                    edits.push((from, to, wanted));
                }
                None => missing.push_str(&format!("\"{name}\":{wanted},")),
            }
        }
        if !missing.is_empty() {
            // An object has metadata, so something follows the brace.
            let inside = text.find('{').map_or(0, |at| at + 1);
            edits.push((inside, inside, missing));
        }
    }
    if edits.is_empty() {
        return text.into();
    }
    edits.sort_unstable();
    let (mut result, mut at) = (String::with_capacity(text.len() + 128), 0);
    for (from, to, replacement) in edits {
        result.push_str(&text[at..from]);
        result.push_str(&replacement);
        at = to;
    }
    result.push_str(&text[at..]);
    result.into()
}

/// Where `part`, which was borrowed from `text`, stands in it.
fn span(text: &str, part: &str) -> (usize, usize) {
    let from = part.as_ptr().addr() - text.as_ptr().addr();
    (from, from + part.len())
}

/// The span of a whole member of an object, with one comma, given that of its value.
fn member(text: &str, (from, to): (usize, usize), name: &str) -> Option<(usize, usize)> {
    let before = text[..from].trim_end().strip_suffix(':')?.trim_end();
    let before = before.strip_suffix('"')?.strip_suffix(name)?.strip_suffix('"')?.trim_end();
    if let Some(before) = before.strip_suffix(',') {
        return Some((before.len(), to));
    }
    let after = text[to..].trim_start();
    let after = after.strip_prefix(',').unwrap_or(after);
    Some((before.len(), text.len() - after.len()))
}

/// The text values at `path` (segments separated by dots) of an object: one, or each of a list; none if it is absent
/// or no text.
pub fn field(text: &str, path: &str) -> Vec<String> {
    let mut at = text;
    for segment in path.split('.') {
        let Ok(fields) = serde_json::from_str::<BTreeMap<Cow<'_, str>, &RawValue>>(at) else {
            return vec![];
        };
        match fields.get(segment) {
            Some(value) => at = value.get(),
            None => return vec![],
        }
    }
    match serde_json::from_str(at) {
        Ok(serde_json::Value::String(value)) => vec![value],
        Ok(serde_json::Value::Array(items)) => {
            items.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect()
        }
        _ => vec![],
    }
}

impl Version {
    /// Reads a resourceVersion.
    pub fn parse(text: &str) -> Self {
        let digits = !text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse() {
            Ok(number) if digits => Self::Number(number),
            _ => Self::Text(text.into()),
        }
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Number(a), Self::Number(b)) => Some(a.cmp(b)),
            (a, b) if a == b => Some(Ordering::Equal),
            _ => None,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

impl Entry {
    /// Namespace and name.
    pub fn key(&self) -> &ObjectKey {
        &self.key
    }

    /// The uid.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// The resourceVersion as text.
    pub fn resource_version(&self) -> String {
        self.version.to_string()
    }

    /// The resourceVersion.
    pub fn version(&self) -> &Version {
        &self.version
    }

    /// `metadata.generation`, if the kind has one.
    pub fn generation(&self) -> Option<i64> {
        self.generation
    }

    /// Whether it has a deletionTimestamp.
    pub fn is_deleting(&self) -> bool {
        self.deleting
    }

    /// The value of a label.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.get(key)
    }

    /// All labels.
    pub fn labels(&self) -> &Labels {
        &self.labels
    }

    /// `metadata.annotations` as the server wrote them; read anew from the text at each call.
    pub fn annotations(&self) -> BTreeMap<String, String> {
        #[derive(Deserialize)]
        struct Object {
            metadata: Annotated,
        }
        #[derive(Deserialize)]
        struct Annotated {
            #[serde(default, deserialize_with = "or_default")]
            annotations: BTreeMap<String, Option<String>>,
        }
        let object = serde_json::from_str(&self.body).map(|o: Object| o.metadata.annotations);
        let annotations = object.unwrap_or_default().into_iter();
        annotations.map(|(name, value)| (name, value.unwrap_or_default())).collect()
    }

    /// The owner references.
    pub fn owners(&self) -> &[Owner] {
        &self.owners
    }

    /// The finalizers.
    pub fn finalizers(&self) -> impl Iterator<Item = &str> {
        self.finalizers.iter().map(AsRef::as_ref)
    }

    /// The JSON text.
    pub fn body(&self) -> &Arc<str> {
        &self.body
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn kind() -> Kind {
        Kind::new("v1", "ConfigMap")
    }

    fn read(text: &str) -> Entry {
        entry(text, Some(&kind()), &mut Interner::default()).unwrap()
    }

    fn value(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn managed_fields_are_cut_and_nothing_else_changes() {
        let managed = r#""managedFields":[{"manager":"a","fieldsV1":{"f:data":{}}}]"#;
        let spec = r#""spec":{"managedFields":"mine","x":"\"managedFields\":["}"#;
        for metadata in [
            format!(r"{{{managed}}}"),
            format!(r#"{{{managed},"name":"a"}}"#),
            format!(r#"{{"name":"a",{managed}}}"#),
            format!(r#"{{ "name":"a" , {managed} ,"uid":"u"}}"#),
        ] {
            let text =
                format!(r#"{{"kind":"ConfigMap","apiVersion":"v1","metadata":{metadata},{spec}}}"#);
            let mut expected = value(&text);
            expected["metadata"].as_object_mut().unwrap().remove("managedFields");
            assert_eq!(value(read(&text).body()), expected, "{text}");
        }
        let plain = r#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a"}}"#;
        assert_eq!(&**read(plain).body(), plain);
    }

    #[test]
    fn every_object_says_its_own_kind() {
        for (head, expected) in [
            ("", json!({"kind": "ConfigMap", "apiVersion": "v1"})),
            (
                r#""kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","#,
                json!({"kind": "ConfigMap", "apiVersion": "v1"}),
            ),
            (r#""apiVersion":"v1","#, json!({"kind": "ConfigMap", "apiVersion": "v1"})),
        ] {
            let text = format!(r#"{{{head}"metadata":{{"name":"a","managedFields":[]}}}}"#);
            let body = value(read(&text).body());
            assert_eq!(
                (&body["kind"], &body["apiVersion"]),
                (&expected["kind"], &expected["apiVersion"])
            );
            assert_eq!(body["metadata"], json!({"name": "a"}));
        }
    }

    #[test]
    fn the_head_is_read_once() {
        let text = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {
                "name": "a", "namespace": "n", "uid": "u-1", "resourceVersion": "42", "generation": 3,
                "deletionTimestamp": "2026-01-01T00:00:00Z", "labels": {"b": "2", "a": "1\n"},
                "annotations": {"x": "y"}, "finalizers": ["f/1"],
                "ownerReferences": [
                    {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "o", "controller": true},
                    {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "q"},
                ],
            },
            "data": {"deep": {"list": ["x", 1, "y"], "text": "z"}},
        });
        let entry = read(&text.to_string());
        assert_eq!(entry.key(), &ObjectKey::new(Some("n"), "a"));
        assert_eq!(
            (entry.uid(), entry.version(), entry.generation()),
            ("u-1", &Version::Number(42), Some(3))
        );
        assert_eq!((entry.label("a"), entry.label("c")), (Some("1\n"), None));
        assert!(entry.is_deleting() && entry.finalizers().eq(["f/1"]));
        let [owner, other] = entry.owners() else { panic!("two owners") };
        assert_eq!(
            (&*owner.group, &*owner.kind, &*owner.uid, owner.controller),
            ("apps", "ReplicaSet", "o", true)
        );
        assert_eq!((&*other.group, other.controller), ("", false));
        assert_eq!(entry.annotations()["x"], "y");
        assert_eq!(field(entry.body(), "data.deep.list"), ["x", "y"]);
        assert_eq!(field(entry.body(), "data.deep.text"), ["z"]);
        assert!(
            field(entry.body(), "data.nothing").is_empty()
                && field(entry.body(), "kind.x").is_empty()
        );
    }

    #[test]
    fn versions_compare_as_numbers_or_not_at_all() {
        assert!(Version::parse("9") < Version::parse("10"));
        for odd in ["", "abc", "007", "1.5", "-1", "340282366920938463463374607431768211456"] {
            assert!(matches!(Version::parse(odd), Version::Text(_)), "{odd}");
            assert_eq!(Version::parse(odd).partial_cmp(&Version::parse("5")), None);
            assert_eq!(Version::parse(odd).to_string(), odd);
        }
    }

    #[test]
    fn lines_are_told_apart() {
        let mut interner = Interner::default();
        let mut read = |text: Value| line(&text.to_string(), &kind(), &mut interner).unwrap();
        let object = json!({"metadata": {"name": "a"}});
        assert!(matches!(read(json!({"type": "ADDED", "object": object})), Line::Changed(_)));
        assert!(matches!(read(json!({"type": "DELETED", "object": object})), Line::Deleted(_)));
        let end = json!({"metadata": {"resourceVersion": "7", "annotations": {"k8s.io/initial-events-end": "true"}}});
        let Line::Bookmark { version, initial_end: true } =
            read(json!({"type": "BOOKMARK", "object": end}))
        else {
            panic!("the end of the initial events")
        };
        assert_eq!(version, "7");
        let status = json!({"code": 410, "reason": "Expired", "message": "too old"});
        assert!(matches!(
            read(json!({"type": "ERROR", "object": status})),
            Line::Error { code: 410, .. }
        ));
        let Line::Unknown(name) = read(json!({"type": "PAUSED", "object": object})) else {
            panic!("a type of a later server")
        };
        assert_eq!(name, "PAUSED");
    }

    #[test]
    fn what_a_server_leaves_out_or_says_is_null_is_empty() {
        for text in [
            r#"{"metadata":{"resourceVersion":"9"},"items":null}"#,
            r#"{"metadata":{"resourceVersion":"9","continue":null}}"#,
            r#"{"kind":null,"metadata":{"resourceVersion":"9","continue":""},"items":[]}"#,
            r#"{"metadata":{"resourceVersion":"9","remainingItemCount":null},"items":[null]}"#,
        ] {
            let list = list(text, &kind(), &mut Interner::default()).unwrap();
            let seen = (list.entries.len(), list.version.as_str(), list.next.as_deref());
            assert_eq!(seen, (0, "9", None), "{text}");
        }
        for text in [
            r#"{"kind":"ConfigMapList","items":null}"#,
            r#"{"metadata":null,"items":[]}"#,
            r#"{"metadata":{"resourceVersion":null}}"#,
        ] {
            let list = list(text, &kind(), &mut Interner::default()).unwrap();
            assert_eq!((list.entries.len(), list.version.as_str()), (0, ""), "{text}");
        }
        let bare = read(r#"{"metadata":{"name":"a"}}"#);
        let nulls = read(
            r#"{"kind":null,"apiVersion":null,"metadata":{"name":"a","namespace":null,"uid":null,"resourceVersion":null,
                "generation":null,"deletionTimestamp":null,"labels":null,"annotations":null,"ownerReferences":null,
                "finalizers":null,"managedFields":null}}"#,
        );
        for entry in [&bare, &nulls] {
            assert_eq!(entry.key(), &ObjectKey::new(None, "a"));
            assert_eq!((entry.uid(), entry.generation(), entry.is_deleting()), ("", None, false));
            assert!(entry.owners().is_empty() && entry.finalizers().next().is_none());
            assert!(entry.annotations().is_empty() && entry.label("x").is_none());
            assert_eq!(value(entry.body())["kind"], "ConfigMap");
        }
        let odd = read(
            r#"{"metadata":{"name":"a","labels":{"x":null},"annotations":{"y":null},"ownerReferences":[{"kind":"K","uid":null}]}}"#,
        );
        assert_eq!((odd.label("x"), odd.annotations()["y"].as_str()), (Some(""), ""));
        assert_eq!((&*odd.owners()[0].kind, &*odd.owners()[0].uid), ("K", ""));
    }

    #[test]
    fn what_is_no_list_and_no_object_is_not_taken_for_one() {
        let mut interner = Interner::default();
        for text in [
            "",
            "{}",
            "[]",
            r#"[null,{"resourceVersion":"1"},[]]"#,
            r#"{"kind":"Pod","metadata":{"name":"a"},"items":[]}"#,
            "null",
            "{",
            r#"{"items":{}}"#,
            r#"{"items":[{}]}"#,
            r#"{"items":[{"metadata":{}}]}"#,
            r#"{"items":[{"metadata":{"name":""}}]}"#,
            r#"{"items":[{"metadata":{"name":3}}]}"#,
            r#"{"kind":"Status","metadata":{},"code":500}"#,
        ] {
            assert!(list(text, &kind(), &mut interner).is_err(), "{text}");
        }
        for text in [
            "",
            "{}",
            "null",
            r#"{"type":"ADDED"}"#,
            r#"{"type":"ADDED","object":null}"#,
            r#"{"type":"DELETED","object":{"metadata":{}}}"#,
            r#"{"type":3,"object":{}}"#,
            r#"{"kind":"ConfigMapList","metadata":{"resourceVersion":"1"},"items":[]}"#,
        ] {
            assert!(line(text, &kind(), &mut interner).is_err(), "{text}");
        }
    }

    #[test]
    fn an_error_of_any_form_is_an_end_with_a_reason() {
        let mut interner = Interner::default();
        let mut read = |text: &str| match line(text, &kind(), &mut interner).unwrap() {
            Line::Error { code, reason, message, retry_after } => {
                (code, reason, message, retry_after)
            }
            other => panic!("{text}: {other:?}"),
        };
        let full = r#"{"type":"ERROR","object":{"code":429,"reason":"TooManyRequests","message":"m","details":{"retryAfterSeconds":3}}}"#;
        assert_eq!(read(full), (429, "TooManyRequests".into(), "m".into(), Some(3)));
        let expired = r#"{"type":"ERROR","object":{"reason":"Expired","message":"old","details":null,"code":null}}"#;
        assert_eq!(read(expired), (500, "Expired".into(), "old".into(), None));
        let bare = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"m","code":403}"#;
        assert_eq!(read(bare), (403, String::new(), "m".into(), None));
        for odd in
            ["null", "{}", r#""closed""#, r#"{"code":0}"#, r#"{"code":-1}"#, r#"{"code":99999}"#]
        {
            let (code, _, message, _) = read(&format!(r#"{{"type":"ERROR","object":{odd}}}"#));
            assert_eq!(code, 500, "{odd}");
            assert!(message.contains(odd), "{message}");
        }
    }

    #[test]
    fn a_list_item_is_an_object() {
        let text = r#"{"metadata":{"resourceVersion":"9","continue":"c"},"items":[{"metadata":{"name":"a"}},{"metadata":{"name":"b"}}]}"#;
        let list = list(text, &kind(), &mut Interner::default()).unwrap();
        assert_eq!(
            (list.entries.len(), list.version.as_str(), list.next.as_deref()),
            (2, "9", Some("c"))
        );
        assert!(list.entries[0].body().contains(r#""kind":"ConfigMap""#));
    }
}
