//! Reads of a line of a watch only where it belongs: what nobody follows is never read as an object; pure.
//!
//! Invariant: `a_line_belongs_where_its_object_does`.

use std::borrow::Cow;

use serde::Deserialize;

use super::super::{
    envelope::{Error, Version, braced},
    lenient::text,
};

/// Where a line of a watch of many namespaces belongs.
#[derive(Debug)]
pub(crate) enum Route<'a> {
    /// An object was added, has changed or is gone.
    Change {
        /// Its namespace.
        namespace: Cow<'a, str>,
        /// The version of the change.
        version: Version,
        /// Whether it is gone.
        is_gone: bool,
    },
    /// Nothing older than this will come any more.
    Bookmark(Version),
    /// An event of a type that this host does not know.
    Unknown,
    /// The server ends the watch.
    End,
}

#[derive(Deserialize)]
struct RoutedEvent<'a> {
    #[serde(rename = "type", borrow, default, deserialize_with = "text")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    object: Option<RoutedObject<'a>>,
}

#[derive(Deserialize)]
struct Typed<'a> {
    #[serde(rename = "type", borrow, default, deserialize_with = "text")]
    kind: Cow<'a, str>,
}

#[derive(Deserialize)]
struct RoutedObject<'a> {
    #[serde(borrow)]
    metadata: Option<RoutedMeta<'a>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct RoutedMeta<'a> {
    #[serde(borrow, default, deserialize_with = "text")]
    namespace: Cow<'a, str>,
    #[serde(borrow, default, deserialize_with = "text")]
    resource_version: Cow<'a, str>,
}

/// Reads of a line of a watch only where it belongs.
pub(crate) fn route(text: &str) -> Result<Route<'_>, Error> {
    let event: RoutedEvent<'_> = match serde_json::from_str(braced(text)?) {
        Ok(event) => event,
        Err(error) => {
            // The object of an end may be anything, and that of an event which nobody knows.
            let Typed { kind } = serde_json::from_str(text)?;
            return match &*kind {
                "ERROR" | "" => Ok(Route::End),
                "ADDED" | "MODIFIED" | "DELETED" | "BOOKMARK" => Err(error.into()),
                _ => Ok(Route::Unknown),
            };
        }
    };
    let meta = event.object.and_then(|object| object.metadata).unwrap_or_default();
    let version = Version::parse(&meta.resource_version);
    match &*event.kind {
        "ADDED" | "MODIFIED" | "DELETED" => {
            let is_gone = event.kind == "DELETED";
            Ok(Route::Change { namespace: meta.namespace, version, is_gone })
        }
        "BOOKMARK" => Ok(Route::Bookmark(version)),
        "ERROR" | "" => Ok(Route::End),
        _ => Ok(Route::Unknown),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        model::kind::Kind,
        watch::{
            envelope::{self, Line},
            intern::Interner,
        },
    };

    /// What the whole line says, as its route does.
    fn read(text: &str) -> Option<(String, Option<String>, Option<Version>)> {
        let kind = Kind::new("v1", "ConfigMap");
        let of = |word: &str, entry: envelope::Entry| {
            let namespace = entry.key().namespace.as_deref().unwrap_or_default().to_owned();
            (word.to_owned(), Some(namespace), Some(entry.version().clone()))
        };
        Some(match envelope::line(text, &kind, &mut Interner::default()).ok()? {
            Line::Changed(entry) => of("changed", entry),
            Line::Deleted(entry) => of("gone", entry),
            Line::Bookmark { version, .. } => {
                ("bookmark".to_owned(), None, Some(Version::parse(&version)))
            }
            Line::Unknown(_) => ("unknown".to_owned(), None, None),
            Line::Error { .. } => ("end".to_owned(), None, None),
        })
    }

    fn routed(text: &str) -> Option<(String, Option<String>, Option<Version>)> {
        Some(match route(text).ok()? {
            Route::Change { namespace, version, is_gone } => {
                let word = if is_gone { "gone" } else { "changed" };
                (word.to_owned(), Some(namespace.into_owned()), Some(version))
            }
            Route::Bookmark(version) => ("bookmark".to_owned(), None, Some(version)),
            Route::Unknown => ("unknown".to_owned(), None, None),
            Route::End => ("end".to_owned(), None, None),
        })
    }

    /// Whatever can be read as a whole is routed as it says; seeded, over odd values of everything that counts.
    #[test]
    fn a_line_belongs_where_its_object_does() {
        let mut random = fastrand::Rng::with_seed(12);
        let mut read_as_a_whole = 0;
        for _ in 0..20_000 {
            let mut one = |of: &[Value]| of[random.usize(..of.len())].clone();
            let kinds = ["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR", "PAUSED", ""];
            let mut meta = json!({
                "namespace": one(&[json!("a"), json!("b\u{e9}\"\\c"), json!(""), Value::Null, json!("a")]),
                "name": one(&[json!("x"), json!("namespace"), json!("")]),
                "resourceVersion": one(&[json!("12"), json!(""), json!("0"), Value::Null, json!("x1")]),
                "labels": one(&[Value::Null, json!({"namespace": "z", "resourceVersion": "99"})]),
                "managedFields": one(&[Value::Null, json!([{"fieldsV1": {"f:metadata": {}}}])]),
            });
            if let Some(name) = one(&[Value::Null, json!("namespace"), json!("name")]).as_str() {
                meta.as_object_mut().unwrap().remove(name);
            }
            let mut object = json!({
                "kind": one(&[json!("ConfigMap"), json!("Status"), Value::Null]),
                "data": {"metadata": "{}", "type": "DELETED"},
                "metadata": meta,
                "spec": {"metadata": {"namespace": "y", "resourceVersion": "77"}},
            });
            if one(&[json!(0), json!(1), json!(2), json!(3), json!(4), json!(5)]) == 0 {
                object = one(&[Value::Null, json!([]), json!("text"), json!({})]);
            }
            let kind = one(&kinds.map(Value::from));
            let text = json!({"type": kind, "object": object}).to_string();
            let is_cut = one(&[json!(false), json!(false), json!(false), json!(true)]) == true;
            let cut = text.len() - usize::from(is_cut);
            let text = &text[..cut];
            // One of an object without a name is its follower's to refuse.
            let Some(whole) = read(text) else { continue };
            // Without a version it is of no use to anybody.
            if matches!(&whole, (word, _, Some(Version::Text(_))) if word == "bookmark") {
                continue;
            }
            read_as_a_whole += 1;
            assert_eq!(routed(text), Some(whole), "{text}");
        }
        assert!(read_as_a_whole > 5_000, "{read_as_a_whole}");
    }
}
