//! The Events that runs are worth, on the object or on its WasmController.

use crate::{
    apiserver::Identity,
    client::Account,
    events::Event,
    model::{
        crd,
        kind::Kind,
        object::{ObjectKey, ObjectReference, Severity},
    },
};

/// On the object: written as the controller's account, as what the guest itself says of it.
pub(crate) fn on_object(
    account: &Account,
    (kind, key, uid): (&Kind, &ObjectKey, Option<&str>),
    reason: &str,
    note: String,
) -> Event {
    Event {
        identity: account.identity.clone(),
        controller: account.controller.clone(),
        regarding: ObjectReference {
            kind: kind.clone(),
            namespace: key.namespace.as_deref().map(str::to_owned),
            name: key.name.to_string(),
        },
        uid: uid.map(str::to_owned),
        severity: Severity::Warning,
        reason: reason.to_owned(),
        action: "Reconcile".to_owned(),
        note,
    }
}

/// On the WasmController.
pub(super) fn on_controller(account: &Account, reason: &str, note: String) -> Event {
    let (namespace, name) = account.controller.split_once('/').unwrap_or(("", &account.controller));
    Event {
        identity: Identity::Host,
        controller: account.controller.clone(),
        regarding: ObjectReference {
            kind: crd::own_watch("WasmController").kind,
            namespace: Some(namespace.to_owned()),
            name: name.to_owned(),
        },
        uid: None,
        severity: Severity::Warning,
        reason: reason.to_owned(),
        action: "Reconcile".to_owned(),
        note,
    }
}
