//! The owner references that a write may leave on an object of the in-memory cluster, as the host judges them.
//!
//! Invariants, held by the tests of `testing`: `an_object_of_somebody_else_is_taken_over_only_by_adopting_it`,
//! `an_owner_reference_that_kubernetes_does_not_allow_is_refused`.

use serde_json::{Value, json};

use crate::{bindings::nagaya::controller::cluster::Error, memory::Key};

/// The object that a run is about.
#[derive(Clone, Debug, Default)]
pub(crate) struct Primary {
    pub(crate) key: Option<Key>,
    /// `None`: it is gone.
    pub(crate) uid: Option<String>,
}

impl Primary {
    fn is(&self, owner: &Value) -> bool {
        self.uid.is_some() && owner["uid"].as_str() == self.uid.as_deref()
    }

    pub(crate) fn is_among(&self, owners: &[Value]) -> bool {
        owners.iter().any(|owner| self.is(owner))
    }

    /// Makes `object` its child, unless it names it as an owner already; `version` is that of its kind.
    pub(crate) fn take(
        &self,
        object: &mut Value,
        version: &str,
        is_deleting: bool,
    ) -> Result<(), Error> {
        if self.is_among(of(object)) {
            return Ok(());
        }
        let (Some((group, kind, _, name)), Some(uid), false) = (&self.key, &self.uid, is_deleting)
        else {
            let why = if is_deleting { "is being deleted" } else { "is gone" };
            return Err(Error::Conflict(format!(
                "it cannot become a child of the primary, which {why}"
            )));
        };
        let group = if group.is_empty() { String::new() } else { format!("{group}/") };
        let owner = json!({
            "apiVersion": format!("{group}{version}"), "kind": kind, "name": name, "uid": uid,
            "controller": true,
        });
        match &mut object["metadata"]["ownerReferences"] {
            Value::Array(owners) => owners.push(owner),
            none => *none = json!([owner]),
        }
        Ok(())
    }

    /// Refuses owners that the garbage collector would not find.
    pub(crate) fn check(&self, owners: &[Value], object: &Key) -> Result<(), Error> {
        let Some((group, kind, namespace, name)) = &self.key else { return Ok(()) };
        for owner in owners {
            let owner_group = owner["apiVersion"].as_str().unwrap_or_default().split_once('/');
            let is_named = owner_group.map_or("", |(group, _)| group) == group
                && owner["kind"] == **kind
                && owner["name"] == **name;
            let whose =
                format!("the owner reference of {} {} to {kind} {name}", object.1, object.3);
            match (self.is(owner), is_named) {
                (true, false) => {
                    return Err(Error::Invalid(format!("{whose} has another object's name")));
                }
                (true, true) if namespace.is_some() && object.2.is_none() => {
                    return Err(Error::Invalid(format!(
                        "{whose}: a cluster-scoped object cannot have an owner that lies in a namespace"
                    )));
                }
                (true, true) if namespace.is_some() && *namespace != object.2 => {
                    return Err(Error::Invalid(format!("{whose} crosses namespaces")));
                }
                (false, true) if namespace.is_none() || *namespace == object.2 => {
                    return Err(Error::Conflict(format!(
                        "{whose} has the uid of another object than the one of this run"
                    )));
                }
                _ => (),
            }
        }
        Ok(())
    }

    /// Keeps a write with these owners from an object that is not the primary's.
    pub(crate) fn keep(
        &self,
        named: &[Value],
        has: &[Value],
        object: &Key,
        adopts: bool,
    ) -> Result<(), Error> {
        let what = format!("{} {}", object.1, object.3);
        let rival = has.iter().find(|known| known["controller"] == true && !self.is(known));
        let contends = |owner: &Value| {
            owner["controller"] == true && rival.is_some_and(|rival| rival["uid"] != owner["uid"])
        };
        let is_new = |owner: &Value| !has.iter().any(|known| known["uid"] == owner["uid"]);
        if let Some(rival) = rival.filter(|_| named.iter().any(contends)) {
            let (kind, name) = (&rival["kind"], &rival["name"]);
            return Err(Error::Conflict(format!("{what} is controlled by {kind} {name}")));
        }
        if !adopts && !self.is_among(has) && named.iter().any(is_new) {
            return Err(Error::Conflict(format!(
                "{what} exists and is not this primary's; to take it over, use Context::adopt"
            )));
        }
        Ok(())
    }
}

/// The owner references of an object.
pub(crate) fn of(object: &Value) -> &[Value] {
    object["metadata"]["ownerReferences"].as_array().map_or(&[], Vec::as_slice)
}
