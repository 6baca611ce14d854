//! Which owner references a write may leave on an object; pure.
//!
//! The garbage collector deletes an object whose owners are gone, and takes an owner that it cannot find for gone: one in
//! another namespace, one of another name than the uid's. So a reference that Kubernetes does not allow is refused where
//! it is written, as controller-runtime does; and an object that exists gets no new owner unless the guest says that it
//! means to take it over.
//!
//! Invariants, each held by the test of that name:
//!
//! - `an_owner_that_the_collector_would_not_find_is_refused`
//! - `an_object_of_somebody_else_gets_no_new_owner`
//! - `a_patch_shows_the_owners_it_leaves`

use serde_json::Value;

use super::{Error, PatchBody};
use crate::{
    model::{kind::Kind, object::ObjectKey},
    watch::envelope::Owner,
};

/// More operations are not evaluated.
const OPERATIONS: usize = 1_000;

/// The primary of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Primary<'a> {
    pub(super) kind: &'a Kind,
    pub(super) key: &'a ObjectKey,
    /// `None`: it is gone.
    pub(super) uid: Option<&'a str>,
}

impl Primary<'_> {
    fn is(&self, owner: &Owner) -> bool {
        self.uid.is_some_and(|uid| uid == &*owner.uid)
    }

    fn is_kind_of(&self, owner: &Owner) -> bool {
        *owner.group == *self.kind.group && *owner.kind == *self.kind.kind
    }

    /// Whether it is among the owners.
    pub(super) fn is_among(&self, owners: &[Owner]) -> bool {
        owners.iter().any(|owner| self.is(owner))
    }

    /// Whether it is the one that controls.
    pub(super) fn controls(&self, owners: &[Owner]) -> bool {
        owners.iter().any(|owner| owner.controller && self.is(owner))
    }
}

/// Refuses references that Kubernetes does not allow. `is_namespaced` says it of a kind by group and name, as far as it
/// is known.
pub(super) fn check(
    owners: &[Owner],
    primary: Primary<'_>,
    (kind, key): (&Kind, &ObjectKey),
    is_namespaced: impl Fn(&str, &str) -> Option<bool>,
) -> Result<(), Error> {
    for owner in owners {
        let named = primary.is_kind_of(owner) && owner.name == primary.key.name;
        let whose = format!("the owner reference of {kind} {key} to {} {}", owner.kind, owner.name);
        if primary.is(owner) {
            if !named {
                return Err(Error::Invalid(format!(
                    "{whose} has the uid of {} {}: the garbage collector would delete the object; take the reference from the primary as it was read",
                    primary.kind, primary.key
                )));
            }
            check_namespace(&whose, primary.key.namespace.as_deref(), key.namespace.as_deref())?;
        } else if named && is_beside(primary.key, key) {
            let why = match primary.uid {
                Some(uid) => format!("this run is about the one with the uid {uid}"),
                None => "which is gone".to_owned(),
            };
            return Err(Error::Conflict(format!(
                "{whose} has the uid {}, but {why}: the garbage collector would delete the object",
                owner.uid
            )));
        } else if key.namespace.is_none() && is_namespaced(&owner.group, &owner.kind) == Some(true)
        {
            return Err(Error::Invalid(format!(
                "{whose}: a cluster-scoped object cannot have an owner that lies in a namespace; the garbage collector would delete it"
            )));
        }
    }
    Ok(())
}

/// Whether a reference by that name means the primary, as far as its place goes.
fn is_beside(primary: &ObjectKey, key: &ObjectKey) -> bool {
    primary.namespace.is_none() || primary.namespace == key.namespace
}

fn check_namespace(whose: &str, owner: Option<&str>, object: Option<&str>) -> Result<(), Error> {
    match (owner, object) {
        (Some(owner), None) => Err(Error::Invalid(format!(
            "{whose}: a cluster-scoped object cannot have an owner that lies in a namespace, here {owner}; the garbage collector would delete it. Leave the reference out, and delete the object yourself when the primary goes (finalizer)"
        ))),
        (Some(owner), Some(object)) if owner != object => Err(Error::Invalid(format!(
            "{whose} crosses namespaces, from {object} to {owner}: the garbage collector would delete it. Leave the reference out, and delete the object yourself when the primary goes (finalizer)"
        ))),
        _ => Ok(()),
    }
}

/// What a write would do to an object that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Its owners stay, or the primary owns it already.
    Fits,
    /// It would get an owner that it does not have, and nobody controls it.
    TakesOver,
    /// It has another controller.
    Contends(Owner),
}

/// Compares the owners that a write names with those that the object has.
pub(super) fn change(named: &[Owner], has: &[Owner], primary: Primary<'_>) -> Change {
    let is_new = |owner: &&Owner| !has.iter().any(|known| known.uid == owner.uid);
    // A child that the primary hands on has no rival.
    let rival = has.iter().find(|known| known.controller && !primary.is(known));
    let controls = |owner: &&Owner| owner.controller && rival.is_some_and(|it| it.uid != owner.uid);
    match rival {
        Some(rival) if named.iter().any(|owner| controls(&owner)) => {
            Change::Contends(rival.clone())
        }
        _ if primary.is_among(has) => Change::Fits,
        _ if named.iter().any(|owner| is_new(&owner)) => Change::TakesOver,
        _ => Change::Fits,
    }
}

/// Why an existing object is not taken over.
pub(super) fn refusal(change: &Change, (kind, key): (&Kind, &ObjectKey)) -> Option<Error> {
    match change {
        Change::Fits => None,
        Change::TakesOver => Some(Error::Conflict(format!(
            "{kind} {key} exists and is not this primary's: with its owner reference it would be deleted together with the primary. Choose another name or delete it; to take it over, apply it with the ownership `adopt` (in Rust cx.adopt)"
        ))),
        Change::Contends(owner) => Some(Error::Conflict(format!(
            "{kind} {key} is controlled by {} {}: choose another name, or have its controller let go of it",
            owner.kind, owner.name
        ))),
    }
}

/// Whether a patch can change the owners; an error if it cannot be told.
pub(super) fn touches(body: &PatchBody) -> Result<bool, Error> {
    let read = |text: &str| {
        serde_json::from_str::<Value>(text)
            .map_err(|error| Error::Invalid(format!("the patch is no JSON: {error}")))
    };
    match body {
        PatchBody::Merge(text) => Ok(match read(text)?.get("metadata") {
            Some(Value::Object(metadata)) => {
                metadata.get("ownerReferences").is_some_and(|owners| !owners.is_null())
            }
            _ => false,
        }),
        PatchBody::Json(text) => {
            let Value::Array(operations) = read(text)? else {
                return Err(Error::Invalid("a JSON patch is a list of operations".to_owned()));
            };
            Ok(operations.iter().any(may_touch))
        }
    }
}

/// The server's library ignores what stands before the first slash, so only the segments count.
fn may_touch(operation: &Value) -> bool {
    if matches!(operation["op"].as_str(), Some("test" | "remove")) {
        return false;
    }
    let path = operation["path"].as_str().unwrap_or_default();
    let mut segments = path.split('/').skip(1);
    matches!(
        (segments.next(), segments.next()),
        (None, _) | (Some("metadata"), None | Some("ownerReferences"))
    )
}

/// The object as a patch that touches owners would leave it.
pub(super) fn patched(object: &str, body: &PatchBody) -> Result<String, Error> {
    let unread = |error: serde_json::Error| Error::Invalid(format!("not read: {error}"));
    let mut object: Value = serde_json::from_str(object).map_err(unread)?;
    match body {
        PatchBody::Merge(text) => {
            let patch = serde_json::from_str(text).map_err(unread)?;
            json_patch::merge(&mut object, &patch);
        }
        PatchBody::Json(text) => {
            let operations: Vec<Value> = serde_json::from_str(text).map_err(unread)?;
            let is_odd = |operation: &Value| {
                // Copies of copies grow without bounds, and a path that is read in two ways hides what it means.
                operation["op"] == "copy"
                    || !operation["path"].as_str().unwrap_or("/").starts_with('/')
            };
            if operations.len() > OPERATIONS || operations.iter().any(is_odd) {
                return Err(Error::Invalid(format!(
                    "a JSON patch that changes owner references may have {OPERATIONS} operations, none of them copy, each with a path that begins with a slash"
                )));
            }
            let patch: json_patch::Patch = serde_json::from_str(text).map_err(unread)?;
            json_patch::patch(&mut object, &patch).map_err(|error| {
                Error::Conflict(format!("the JSON patch does not fit the object as it is: {error}"))
            })?;
        }
    }
    Ok(object.to_string())
}

/// The patch, bound to the object that it was judged for.
pub(super) fn bound(body: PatchBody, uid: &str, version: &str) -> Result<PatchBody, Error> {
    let unread = |error: serde_json::Error| Error::Invalid(format!("not read: {error}"));
    Ok(match body {
        PatchBody::Merge(text) => {
            let mut patch: Value = serde_json::from_str(&text).map_err(unread)?;
            patch["metadata"]["uid"] = uid.into();
            patch["metadata"]["resourceVersion"] = version.into();
            PatchBody::Merge(patch.to_string())
        }
        PatchBody::Json(text) => {
            let test = |path: &str, value: &str| serde_json::json!({"op": "test", "path": path, "value": value});
            let mut operations =
                vec![test("/metadata/uid", uid), test("/metadata/resourceVersion", version)];
            operations.extend(serde_json::from_str::<Vec<Value>>(&text).map_err(unread)?);
            PatchBody::Json(Value::from(operations).to_string())
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn owner(kind: &str, name: &str, uid: &str, controller: bool) -> Owner {
        Owner {
            group: "example.com".into(),
            kind: kind.into(),
            name: name.into(),
            uid: uid.into(),
            controller,
        }
    }

    fn site() -> Kind {
        Kind::new("example.com/v1", "Site")
    }

    #[test]
    fn an_owner_that_the_collector_would_not_find_is_refused() {
        let (kind, object) = (site(), Kind::new("v1", "ConfigMap"));
        let answer = |owner: Owner, primary: (Option<&str>, Option<&str>), namespace| {
            let key = ObjectKey::new(primary.0, "web");
            let primary = Primary { kind: &kind, key: &key, uid: primary.1 };
            let at = ObjectKey::new(namespace, "a");
            let known = |_: &str, kind: &str| match kind {
                "Site" | "Box" => Some(true),
                "World" => Some(false),
                _ => None,
            };
            check(&[owner], primary, (&object, &at), known)
        };
        let mine = || owner("Site", "web", "u", true);
        let (demo, other) = (Some("demo"), Some("other"));
        let invalid = |result| matches!(result, Err(Error::Invalid(_)));
        let conflict = |result| matches!(result, Err(Error::Conflict(_)));
        assert_eq!(answer(mine(), (demo, Some("u")), demo), Ok(()));
        assert!(invalid(answer(mine(), (demo, Some("u")), other)), "another namespace");
        assert!(invalid(answer(mine(), (demo, Some("u")), None)), "cluster-scoped");
        assert_eq!(answer(mine(), (None, Some("u")), demo), Ok(()), "a cluster-scoped owner");
        assert_eq!(answer(mine(), (None, Some("u")), None), Ok(()));
        assert!(conflict(answer(mine(), (demo, Some("v")), demo)), "its predecessor");
        assert!(conflict(answer(mine(), (demo, None), demo)), "it is gone");
        assert!(invalid(answer(owner("Site", "db", "u", true), (demo, Some("u")), demo)));
        assert!(invalid(answer(owner("Box", "web", "u", false), (demo, Some("u")), demo)));
        assert_eq!(answer(owner("Box", "b", "x", true), (demo, Some("u")), demo), Ok(()));
        assert!(invalid(answer(owner("Box", "b", "x", true), (demo, Some("u")), None)));
        assert_eq!(answer(owner("World", "w", "x", true), (demo, Some("u")), None), Ok(()));
        assert_eq!(answer(owner("Unknown", "w", "x", true), (demo, Some("u")), None), Ok(()));
    }

    #[test]
    fn an_object_of_somebody_else_gets_no_new_owner() {
        let (kind, key) = (site(), ObjectKey::new(Some("demo"), "web"));
        let primary = Primary { kind: &kind, key: &key, uid: Some("u") };
        let mine = |controller| owner("Site", "web", "u", controller);
        let box_of = |uid: &str, controller| owner("Box", "b", uid, controller);
        for (named, has, expected) in [
            (vec![], vec![], Change::Fits),
            (vec![], vec![box_of("x", true)], Change::Fits),
            (vec![mine(true)], vec![mine(true)], Change::Fits),
            (vec![mine(true)], vec![mine(false)], Change::Fits),
            (vec![mine(true)], vec![], Change::TakesOver),
            (vec![mine(false)], vec![], Change::TakesOver),
            (vec![mine(true)], vec![box_of("x", false)], Change::TakesOver),
            (vec![mine(false)], vec![box_of("x", true)], Change::TakesOver),
            (vec![mine(true)], vec![box_of("x", true)], Change::Contends(box_of("x", true))),
            (
                vec![mine(true)],
                vec![mine(false), box_of("x", true)],
                Change::Contends(box_of("x", true)),
            ),
            // A child of a child.
            (vec![box_of("x", true)], vec![], Change::TakesOver),
            (vec![box_of("x", true)], vec![box_of("x", true)], Change::Fits),
            (vec![box_of("y", false)], vec![mine(true)], Change::Fits),
            (vec![box_of("y", true)], vec![mine(true)], Change::Fits),
        ] {
            assert_eq!(change(&named, &has, primary), expected, "{named:?} over {has:?}");
        }
        let at = (&kind, &key);
        assert_eq!(refusal(&Change::Fits, at), None);
        let text = |change| refusal(&change, at).unwrap().to_string();
        assert!(text(Change::TakesOver).contains("cx.adopt"));
        assert!(text(Change::Contends(box_of("x", true))).contains("controlled by Box b"));
    }

    #[test]
    fn a_patch_shows_the_owners_it_leaves() {
        let owners = json!([{"apiVersion": "v1", "kind": "Site", "name": "web", "uid": "u"}]);
        let object = json!({"metadata": {"name": "a", "labels": {"x": "y"}}}).to_string();
        let json = |operations: Value| PatchBody::Json(operations.to_string());
        for patch in [
            PatchBody::Merge(json!({"metadata": {"ownerReferences": owners}}).to_string()),
            json(json!([{"op": "add", "path": "/metadata/ownerReferences", "value": owners}])),
            json(json!([{"op": "add", "path": "/metadata/ownerReferences", "value": []},
                {"op": "add", "path": "/metadata/ownerReferences/-", "value": owners[0]}])),
            json(
                json!([{"op": "replace", "path": "/metadata", "value": {"name": "a", "ownerReferences": owners}}]),
            ),
            json(
                json!([{"op": "replace", "path": "", "value": {"metadata": {"ownerReferences": owners}}}]),
            ),
            json(json!([{"op": "add", "path": "/spec", "value": owners},
                {"op": "move", "from": "/spec", "path": "/metadata/ownerReferences"}])),
        ] {
            assert!(touches(&patch).unwrap(), "{patch:?}");
            if !matches!(&patch, PatchBody::Json(text) if text.contains(r#""path":"""#)) {
                let left: Value = serde_json::from_str(&patched(&object, &patch).unwrap()).unwrap();
                assert_eq!(left["metadata"]["ownerReferences"], owners, "{patch:?}");
            }
            let bound = bound(patch, "u1", "7").unwrap();
            let (PatchBody::Json(text) | PatchBody::Merge(text)) = bound;
            assert!(text.contains("u1") && text.contains(r#""7""#), "{text}");
        }
        // The server's library would read these as the paths above.
        for path in
            ["x/metadata/ownerReferences", "x/metadata/ownerReferences/0", "metadata/metadata"]
        {
            let patch = json(json!([{"op": "add", "path": path, "value": owners}]));
            assert!(touches(&patch).unwrap() && patched(&object, &patch).is_err(), "{path}");
        }
        for copies in [1, 40] {
            let copy =
                json!({"op": "copy", "from": "/metadata", "path": "/metadata/ownerReferences"});
            assert!(patched(&object, &json(Value::from(vec![copy; copies]))).is_err());
        }
        for harmless in [
            json!([{"op": "remove", "path": "/metadata/ownerReferences"}]),
            json!([{"op": "test", "path": "/metadata/ownerReferences", "value": null}]),
            json!([{"op": "add", "path": "/metadata/labels/a", "value": "b"}]),
            json!([{"op": "add", "path": "/spec/metadata/ownerReferences", "value": owners}]),
        ] {
            assert!(!touches(&json(harmless)).unwrap());
        }
        for harmless in
            [json!({"metadata": {"ownerReferences": null}}), json!({"data": {"a": "b"}}), json!([])]
        {
            assert!(!touches(&PatchBody::Merge(harmless.to_string())).unwrap());
        }
        assert!(
            touches(&json(json!({}))).is_err() && touches(&PatchBody::Json("x".into())).is_err()
        );
    }
}
