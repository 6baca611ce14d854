//! The owner reference that makes the primary the controller of what a guest writes.
//!
//! The host adds it, because it alone is sure of the primary's uid. Nothing becomes the child of an object that is going
//! away: the garbage collector would delete it, or the object would never go.
//!
//! Invariants: `a_child_gets_its_owner_and_no_other`; on a real server
//! `a_child_is_made_by_the_host_and_refused_where_kubernetes_allows_none`.

use serde_json::{Value, json};

use super::{Client, Error, object::Object, owners::Primary};

impl Client {
    /// The object as a child of the primary; one that names it as an owner already stays as it is.
    pub(super) fn as_child(&self, object: Object) -> Result<Object, Error> {
        let primary = self.primary();
        if primary.is_among(&object.owners) {
            return Ok(object);
        }
        let seen = self.0.view.primary(primary.key);
        let is_deleting = seen.is_some_and(|entry| entry.is_deleting());
        let owner = reference(primary, is_deleting).map_err(|why| {
            let (kind, key) = (primary.kind, primary.key);
            Error::Conflict(format!(
                "{} cannot become a child of {kind} {key}, which {why}",
                object.kind
            ))
        })?;
        object.owned_by(owner)
    }
}

/// The reference to a primary that is there to stay; else why not.
fn reference(primary: Primary<'_>, is_deleting: bool) -> Result<Value, &'static str> {
    match primary.uid {
        Some(uid) if !is_deleting => Ok(json!({
            "apiVersion": primary.kind.api_version(),
            "kind": primary.kind.kind,
            "name": primary.key.name,
            "uid": uid,
            "controller": true,
        })),
        Some(_) => Err("is being deleted"),
        None => Err("is gone"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{kind::Kind, object::ObjectKey};

    #[test]
    fn a_child_gets_its_owner_and_no_other() {
        let (kind, key) =
            (Kind::new("example.com/v1", "Site"), ObjectKey::new(Some("demo"), "web"));
        let primary = |uid| Primary { kind: &kind, key: &key, uid };
        assert_eq!(reference(primary(None), false), Err("is gone"));
        assert_eq!(reference(primary(Some("u")), true), Err("is being deleted"));
        let owner = reference(primary(Some("u")), false).unwrap();
        let head = r#"{"apiVersion":"v1","kind":"ConfigMap","data":{"n":"1e400"},"metadata":"#;
        for (metadata, owners) in [
            ("{}", 1),
            (r#"{"name":"a"}"#, 1),
            (r#"{ "ownerReferences":null , "name":"a" }"#, 1),
            (r#"{"name":"a","ownerReferences":[]}"#, 1),
            (
                r#"{"ownerReferences":[{"apiVersion":"v1","kind":"Pod","name":"p","uid":"x"}],"name":"a"}"#,
                2,
            ),
        ] {
            // Nothing outside of the metadata is read, so a number that no float holds stays too.
            let text = format!("{head}{metadata},\"big\":123456789012345678901234567890}}");
            let child = Object::parse(text).unwrap().owned_by(owner.clone()).unwrap();
            assert_eq!(child.owners.len(), owners, "{metadata}");
            assert!(primary(Some("u")).controls(&child.owners) && child.text.ends_with("567890}"));
            let again = child.owned_by(json!({"apiVersion": "v1"}));
            assert!(again.is_err(), "an owner without a name is none");
        }
    }
}
