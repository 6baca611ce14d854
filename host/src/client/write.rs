//! What a guest writes besides by apply, and what the host writes for it; what all writes pass is in [`super::intent`].
//!
//! Invariant, on a real server: `f11_two_controllers_that_fight_are_told_and_slowed`.

use std::sync::Arc;

use http::Method;
use serde_json::{Value, json};

use super::{
    Client, DeleteOptions, Error, PatchBody, Propagation, answer,
    gates::noop::{Record, Target},
    intent::Intent,
    object::{Object, check_size, key},
    owners,
    read::as_object,
    send::Unwritten,
};
use crate::{
    apiserver::{Call, Media, Resource, query},
    client::gates::fight::{Place, Side, named},
    model::{kind::Kind, manifest::Verb, object::ObjectKey},
    watch::{
        Entry, envelope,
        fingerprint::{Fingerprint, Part},
    },
};

/// The API server takes no longer name of a field manager.
const LONGEST_MANAGER: usize = 128;

impl Client {
    /// Creates an object.
    pub async fn create(&self, text: String, child: bool) -> Result<String, Error> {
        let object = Object::parse(text)?;
        let resource = self.may_write(&object.kind, Verb::Create)?;
        let object = if child { self.as_child(object)? } else { object };
        if object.name.is_none() && !object.generate_name {
            return Err(Error::Invalid("the object has neither name nor generateName".to_owned()));
        }
        let key = key(object.namespace.as_deref(), object.name.as_deref().unwrap_or_default())?;
        self.check_owners(&object.owners, (&object.kind, &key))?;
        // A name would be chosen for an object of any scope: the path says whether it has one.
        let path = resource
            .path(object.namespace.as_deref(), None, None)
            .map_err(|e| answer::error(&e))?;
        let path = query(&path, [("fieldManager", self.0.account.field_manager.as_str())]);
        let call = self.call(Method::POST, path).body(Media::Json, object.text.clone());
        let answer = self.write(Intent::new(Verb::Create, (&object.kind, &key), call)).await;
        let text = self.written(&object.kind, &key, answer)?;
        Ok(as_object(&text)?.body().to_string())
    }

    /// Patches an object.
    pub async fn patch(
        &self,
        kind: &Kind,
        namespace: Option<&str>,
        name: &str,
        body: PatchBody,
    ) -> Result<String, Error> {
        let resource = self.may_write(kind, Verb::Patch)?;
        let key = key(namespace, name)?;
        let (PatchBody::Json(text) | PatchBody::Merge(text)) = &body;
        check_size("patch", text)?;
        let path = path(&resource, &key, None)?;
        let body = self.keep_owners(kind, &key, body).await?;
        let path = query(&path, [("fieldManager", self.0.account.field_manager.as_str())]);
        let (media, text) = match body {
            PatchBody::Json(text) => (Media::JsonPatch, text),
            PatchBody::Merge(text) => (Media::MergePatch, text),
        };
        let at = (Target::Patch, kind.clone(), key.clone());
        let before = self.seen_before(kind, &key);
        let call = self.call(Method::PATCH, path).body(media, text.clone());
        let intent = Intent::new(Verb::Patch, (kind, &key), call);
        let answer = self.write(Intent { side: Some(Side::Object), ..intent }).await;
        let sent = text;
        let text = self.written(kind, &key, answer)?;
        let now = as_object(&text)?;
        self.learn(at, (&sent, Part::Main), (before.as_deref(), &now));
        Ok(now.body().to_string())
    }

    /// A patch takes over no object: one that changes owners is judged by what it leaves, and holds for that state.
    async fn keep_owners(
        &self,
        kind: &Kind,
        key: &ObjectKey,
        body: PatchBody,
    ) -> Result<PatchBody, Error> {
        if !owners::touches(&body)? {
            return Ok(body);
        }
        let current = self.look_at(kind, key).await?.ok_or(Error::NotFound)?;
        let left = envelope::object(&owners::patched(current.body(), &body)?).map_err(|error| {
            Error::Invalid(format!("the patch does not leave an object: {error}"))
        })?;
        self.check_owners(left.owners(), (kind, key))?;
        self.keep_from(left.owners(), (kind, &current), false)?;
        owners::bound(body, current.uid(), &current.resource_version())
    }

    /// Deletes an object, bound to the uid and version that the guest names or the cache shows.
    pub async fn delete(
        &self,
        kind: &Kind,
        namespace: Option<&str>,
        name: &str,
        options: DeleteOptions,
    ) -> Result<(), Error> {
        let resource = self.may_write(kind, Verb::Delete)?;
        let key = key(namespace, name)?;
        let path = path(&resource, &key, None)?;
        // Both go out always: what is deleted is what was seen.
        let (uid, version) = match (options.uid, options.resource_version) {
            (Some(uid), Some(version)) => (uid, Some(version)),
            (uid, version) => {
                let entry = match self.cached(kind, &key) {
                    Some(entry) => entry,
                    None => self.live(kind, &key).await?,
                };
                let uid = uid.unwrap_or_else(|| entry.uid().to_owned());
                // Of another object the server says so itself, by the uid.
                let seen = (entry.uid() == uid).then(|| entry.resource_version());
                (uid, version.or(seen))
            }
        };
        let propagation = match options.propagation {
            Propagation::Background => "Background",
            Propagation::Foreground => "Foreground",
            Propagation::Orphan => "Orphan",
        };
        let body = json!({
            "apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation,
            "preconditions": { "uid": uid, "resourceVersion": version },
        });
        let call = self.call(Method::DELETE, path).body(Media::Json, body.to_string());
        let intent = Intent::new(Verb::Delete, (kind, &key), call);
        let answer = self.write(Intent { deletes: Some(uid), ..intent }).await;
        self.written(kind, &key, answer)?;
        self.forget(kind, &key);
        Ok(())
    }

    /// Puts `text` as this controller's status condition under a second field manager, without force.
    pub async fn apply_condition(&self, text: String) -> Result<(), Error> {
        let object = Object::parse(text)?;
        let resource = self.resource(&object.kind)?;
        let key = object.key()?;
        let path = path(&resource, &key, Some("status"))?;
        let manager = host_manager(&self.0.account.field_manager);
        let path = query(&path, [("fieldManager", manager.as_str()), ("force", "false")]);
        let call = self.call(Method::PATCH, path).body(Media::Apply, object.bound_to(None, None));
        let intent = Intent::new(Verb::ApplyStatus, (&object.kind, &key), call);
        let answer = self.write(Intent { by_host: true, ..intent }).await;
        self.written(&object.kind, &key, answer).map(drop)
    }

    /// Adds `finalizer` to the primary, bound to the version that the cache shows.
    pub async fn add_finalizer(&self, primary: &Entry, finalizer: &str) -> Result<(), Error> {
        let kind = self.0.view.manifest().primary.kind.clone();
        let resource = self.resource(&kind)?;
        let key = primary.key();
        let path = path(&resource, key, None)?;
        let path = query(&path, [("fieldManager", self.0.account.field_manager.as_str())]);
        let mut finalizers: Vec<String> = primary.finalizers().map(ToString::to_string).collect();
        finalizers.push(finalizer.to_owned());
        let body = json!({ "metadata": {
            "uid": primary.uid(), "resourceVersion": primary.resource_version(),
            "finalizers": finalizers,
        } });
        let call = self.call(Method::PATCH, path).body(Media::MergePatch, body.to_string());
        let intent = Intent::new(Verb::Patch, (&kind, key), call);
        let answer = self.write(Intent { by_host: true, ..intent }).await;
        self.written(&kind, key, answer).map(drop)
    }

    /// The call of an apply under the controller's field manager.
    pub(super) fn apply_call(&self, path: &str, force: bool, text: String) -> Call {
        let force = if force { "true" } else { "false" };
        let manager = self.0.account.field_manager.as_str();
        let path = query(path, [("fieldManager", manager), ("force", force)]);
        self.call(Method::PATCH, path).body(Media::Apply, text)
    }

    /// What a write is going to change, if that is known: a cache that does not show an own write yet says nothing.
    pub(super) fn seen_before(&self, kind: &Kind, key: &ObjectKey) -> Option<Arc<Entry>> {
        self.is_visible(kind, key).then(|| self.cached(kind, key)).flatten()
    }

    /// Remembers what was written, and whether that took back what somebody else had done. What was only tried is neither.
    pub(super) fn learn(
        &self,
        at: (Target, Kind, ObjectKey),
        (sent, part): (&str, Part),
        (before, now): (Option<&Entry>, &Entry),
    ) {
        if self.dry().is_some() {
            return;
        }
        let value = |text: &str| serde_json::from_str::<Value>(text).unwrap_or_default();
        let (body, is_status) = (value(sent), at.0 == Target::Status);
        let shown = |entry: &Entry| {
            let mut fields = named(&body, &value(entry.body()));
            if let Some(fields) = fields.as_object_mut() {
                fields.retain(|name, _| (name == "status") == is_status);
            }
            fields
        };
        let after = shown(now);
        let record = Record {
            uid: now.uid().to_owned(),
            body: Fingerprint::of_text(sent),
            returned: Fingerprint::of_part(now.body(), part),
            left: Fingerprint::of_text(&after.to_string()),
        };
        let place = place(&at);
        let is_partial = self.part(&at.1) == Part::Metadata;
        let repeats = self.applied().learn(at, record);
        let changed = before.filter(|_| repeats).is_some_and(|before| {
            let metadata = |all: &Value| all["metadata"].clone();
            let seen = shown(before);
            if is_partial {
                // Of a status the cache shows nothing.
                let grew = before.generation() != now.generation();
                !is_status && (grew || metadata(&seen) != metadata(&after))
            } else {
                seen != after
            }
        });
        if changed {
            self.took_back(place);
        }
    }

    pub(super) fn written(
        &self,
        kind: &Kind,
        key: &ObjectKey,
        answer: Result<String, Unwritten>,
    ) -> Result<String, Error> {
        match answer {
            Ok(text) => Ok(text),
            Err(Unwritten::Refused(error)) => Err(error),
            Err(Unwritten::Call(error)) => {
                self.forget(kind, key);
                Err(self.heard(&error))
            }
        }
    }

    pub(super) fn cached(&self, kind: &Kind, key: &ObjectKey) -> Option<Arc<Entry>> {
        match self.dry() {
            Some(dry) => match dry.overlaid(kind, key) {
                Some(left) => left.here(),
                None => {
                    let entry = self.0.view.entry(kind, key.namespace.as_deref(), &key.name);
                    match &entry {
                        Some(entry) => dry.saw(kind, entry),
                        None => dry.missed(kind, key),
                    }
                    entry
                }
            },
            None => self.0.view.entry(kind, key.namespace.as_deref(), &key.name),
        }
    }

    /// What was applied last to the object is not known any more.
    fn forget(&self, kind: &Kind, key: &ObjectKey) {
        if self.dry().is_none() {
            self.applied().forget(kind, key);
        }
    }

    /// What an apply's effect on the cached object shows in: all of it, or its metadata where only that is cached.
    pub(super) fn part(&self, kind: &Kind) -> Part {
        match self.0.view.manifest().projection(kind) {
            Some(crate::model::manifest::Projection::Metadata) => Part::Metadata,
            _ => Part::Main,
        }
    }

    pub(super) fn is_no_op(
        &self,
        at: &(Target, Kind, ObjectKey),
        uid: &str,
        body: Fingerprint,
        cached: Fingerprint,
    ) -> bool {
        self.applied().is_no_op(at, uid, body, cached)
    }

    fn applied(&self) -> parking_lot::MutexGuard<'_, super::Applied> {
        self.0.account.applied.lock()
    }
}

/// Where a write of this target can be fought over.
pub(super) fn place((target, kind, key): &(Target, Kind, ObjectKey)) -> Place {
    let side = if *target == Target::Status { Side::Status } else { Side::Object };
    (kind.clone(), key.clone(), side)
}

pub(super) fn path(
    resource: &Resource,
    key: &ObjectKey,
    subresource: Option<&str>,
) -> Result<String, Error> {
    resource
        .path(key.namespace.as_deref(), Some(&key.name), subresource)
        .map_err(|error| answer::error(&error))
}

/// The manager of what the host says in an object's status; the API server takes 128 bytes.
fn host_manager(own: &str) -> String {
    let plain = format!("{own}/host");
    if plain.len() <= LONGEST_MANAGER {
        return plain;
    }
    format!("nagaya/{}/host", Fingerprint::of_text(&plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manager_of_a_condition_fits_whatever_the_controllers() {
        assert_eq!(host_manager("nagaya/demo/web"), "nagaya/demo/web/host");
        for length in 100..=128 {
            let (own, other) = ("m".repeat(length), "n".repeat(length));
            let manager = host_manager(&own);
            assert!(manager.len() <= LONGEST_MANAGER && manager != own, "{manager}");
            assert_ne!(manager, host_manager(&other));
        }
    }
}
