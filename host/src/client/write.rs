//! Writes: grant, no-op check, budget, and last the fence; then the request, on the control runtime.
//!
//! Invariant, on a real server: `f11_two_controllers_that_fight_are_told_and_slowed`.

use std::sync::{Arc, PoisonError};

use http::Method;
use serde_json::{Value, json};

use super::{
    Client, DeleteOptions, Error, Ownership, PatchBody, Propagation, answer,
    noop::{Record, Target},
    object::Object,
    send::{Failure, Write},
};
use crate::{
    apiserver::{Media, Resource, query},
    fight::{Place, Side, named},
    manifest::{Kind, Verb},
    watch::{
        Entry, ObjectKey, envelope,
        fingerprint::{Fingerprint, Part},
    },
};

impl Client {
    /// Server-side apply; returns the object as it now is.
    ///
    /// Of a kind cached metadata-only a no-op returns the guest's own object under the cached metadata.
    pub async fn apply(&self, text: String, ownership: Ownership) -> Result<Arc<str>, Error> {
        let object = Object::parse(text)?;
        let resource = self.may_write(&object.kind, Verb::Apply)?.clone();
        let key = object.key()?;
        let path = path(&resource, &key, None)?;
        let cached = self.cached(&object.kind, &key);
        let body = Fingerprint::of_text(&object.text);
        let at = (Target::Main, object.kind.clone(), key.clone());
        let part = self.part(&object.kind);
        if let Some(entry) = &cached {
            let now = Fingerprint::of_part(entry.body(), part);
            if self.is_no_op(&at, entry.uid(), body, now) {
                return Ok(merged(&object, entry, part));
            }
        }
        let force = ownership == Ownership::Force
            || cached.as_ref().is_some_and(|entry| self.is_controlled_by_primary(entry));
        let bound = object.bound_to(cached.as_ref().map(|entry| entry.uid()), None);
        self.may_fight(&at)?;
        let before = self.seen_before(&object.kind, &key);
        let answer = self.patch_as_manager((&object.kind, &key), &path, force, bound).await;
        let text = self.written(&object.kind, &key, answer)?;
        let now = envelope::object(&text).map_err(|error| Error::Unavailable(error.to_string()))?;
        self.learn(at, (&object.text, part), (before.as_deref(), &now));
        Ok(now.body().clone())
    }

    /// Server-side apply of the status, retried against other writers as long as the object is the same.
    pub async fn apply_status(&self, text: String) -> Result<Arc<str>, Error> {
        let object = Object::parse(text)?;
        let resource = self.may_write(&object.kind, Verb::ApplyStatus)?.clone();
        let key = object.key()?;
        let path = path(&resource, &key, Some("status"))?;
        let body = Fingerprint::of_text(&object.text);
        let at = (Target::Status, object.kind.clone(), key.clone());
        let mut current = match self.cached(&object.kind, &key) {
            Some(entry) => entry,
            None => self.live(&resource, &key).await?,
        };
        let uid = self.expected_uid(&object, &key).unwrap_or_else(|| current.uid().to_owned());
        if self.is_no_op(
            &at,
            current.uid(),
            body,
            Fingerprint::of_part(current.body(), Part::Status),
        ) {
            return Ok(current.body().clone());
        }
        self.may_fight(&at)?;
        let mut before = self.seen_before(&object.kind, &key);
        loop {
            if current.uid() != uid {
                let text =
                    format!("{} {key} is another object than the one of this run", object.kind);
                return Err(Error::Conflict(text));
            }
            let version = current.resource_version();
            let bound = object.bound_to(Some(&uid), Some(&version));
            let answer = self.patch_as_manager((&object.kind, &key), &path, true, bound).await;
            if matches!(&answer, Err(Failure::Call(error)) if answer::is_conflict(error))
                && self.may_try_again(&object.kind, &key)
            {
                current = self.live(&resource, &key).await?;
                before = Some(current.clone());
                continue;
            }
            let text = self.written(&object.kind, &key, answer)?;
            let now =
                envelope::object(&text).map_err(|error| Error::Unavailable(error.to_string()))?;
            self.learn(at, (&object.text, Part::Status), (before.as_deref(), &now));
            return Ok(now.body().clone());
        }
    }

    /// Creates an object.
    pub async fn create(&self, text: String) -> Result<String, Error> {
        let object = Object::parse(text)?;
        let resource = self.may_write(&object.kind, Verb::Create)?.clone();
        if object.name.is_none() && !object.generate_name {
            return Err(Error::Invalid("the object has neither name nor generateName".to_owned()));
        }
        let path = resource
            .path(object.namespace.as_deref(), None, None)
            .map_err(|e| answer::error(&e))?;
        let path = query(&path, [("fieldManager", self.0.account.field_manager.as_str())]);
        self.spend(Verb::Create)?;
        let name = object.name.as_deref().unwrap_or_default();
        let key = ObjectKey::new(object.namespace.as_deref(), name);
        let call = self.call(Method::POST, path).body(Media::Json, object.text.clone());
        let answer = self.send(Write::of(&object.kind, &key), call).await;
        let text = self.written(&object.kind, &key, answer)?;
        stripped(&text)
    }

    /// Patches an object.
    pub async fn patch(
        &self,
        kind: &Kind,
        namespace: Option<&str>,
        name: &str,
        body: PatchBody,
    ) -> Result<String, Error> {
        let resource = self.may_write(kind, Verb::Patch)?.clone();
        let key = ObjectKey::new(namespace, name);
        let path = path(&resource, &key, None)?;
        let path = query(&path, [("fieldManager", self.0.account.field_manager.as_str())]);
        let (media, text) = match body {
            PatchBody::Json(text) => (Media::JsonPatch, text),
            PatchBody::Merge(text) => (Media::MergePatch, text),
        };
        let at = (Target::Patch, kind.clone(), key.clone());
        self.may_fight(&at)?;
        self.spend(Verb::Patch)?;
        let before = self.seen_before(kind, &key);
        let call = self.call(Method::PATCH, path).body(media, text.clone());
        let answer = self.send(Write::of(kind, &key), call).await;
        let sent = text;
        let text = self.written(kind, &key, answer)?;
        let now = envelope::object(&text).map_err(|error| Error::Unavailable(error.to_string()))?;
        self.learn(at, (&sent, Part::Main), (before.as_deref(), &now));
        Ok(now.body().to_string())
    }

    /// Deletes an object, bound to the uid and version that the guest names or the cache shows (R65).
    pub async fn delete(
        &self,
        kind: &Kind,
        namespace: Option<&str>,
        name: &str,
        options: DeleteOptions,
    ) -> Result<(), Error> {
        let resource = self.may_write(kind, Verb::Delete)?.clone();
        let key = ObjectKey::new(namespace, name);
        let path = path(&resource, &key, None)?;
        // Both go out always: what is deleted is what was seen (R65).
        let (uid, version) = match (options.uid, options.resource_version) {
            (Some(uid), Some(version)) => (uid, Some(version)),
            (uid, version) => {
                let entry = match self.cached(kind, &key) {
                    Some(entry) => entry,
                    None => self.live(&resource, &key).await?,
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
        self.spend(Verb::Delete)?;
        let write = Write { deletes: Some(uid), ..Write::of(kind, &key) };
        let call = self.call(Method::DELETE, path).body(Media::Json, body.to_string());
        let answer = self.send(write, call).await;
        self.written(kind, &key, answer)?;
        self.applied().forget(kind, &key);
        Ok(())
    }

    /// Puts `text` as this controller's status condition under a second field manager, without force.
    pub async fn apply_condition(&self, text: String) -> Result<(), Error> {
        let object = Object::parse(text)?;
        let resource = self.resource(&object.kind)?.clone();
        let key = object.key()?;
        let path = path(&resource, &key, Some("status"))?;
        let manager = format!("{}/host", self.0.account.field_manager);
        let path = query(&path, [("fieldManager", manager.as_str()), ("force", "false")]);
        self.spend(Verb::ApplyStatus)?;
        let call = self.call(Method::PATCH, path).body(Media::Apply, object.bound_to(None, None));
        let write = Write { by_host: true, ..Write::of(&object.kind, &key) };
        let answer = self.send(write, call).await;
        self.written(&object.kind, &key, answer).map(drop)
    }

    /// Adds `finalizer` to the primary, bound to the version that the cache shows (R23).
    pub async fn add_finalizer(&self, primary: &Entry, finalizer: &str) -> Result<(), Error> {
        let kind = self.0.view.manifest().primary.kind.clone();
        let resource = self.resource(&kind)?.clone();
        let key = primary.key();
        let path = path(&resource, key, None)?;
        let path = query(&path, [("fieldManager", self.0.account.field_manager.as_str())]);
        let mut finalizers: Vec<String> = primary.finalizers().map(ToString::to_string).collect();
        finalizers.push(finalizer.to_owned());
        let body = json!({ "metadata": {
            "uid": primary.uid(), "resourceVersion": primary.resource_version(),
            "finalizers": finalizers,
        } });
        self.spend(Verb::Patch)?;
        let call = self.call(Method::PATCH, path).body(Media::MergePatch, body.to_string());
        let write = Write { by_host: true, ..Write::of(&kind, key) };
        let answer = self.send(write, call).await;
        self.written(&kind, key, answer).map(drop)
    }

    async fn patch_as_manager(
        &self,
        (kind, key): (&Kind, &ObjectKey),
        path: &str,
        force: bool,
        text: String,
    ) -> Result<String, Failure> {
        let force = if force { "true" } else { "false" };
        let path = query(
            path,
            [("fieldManager", self.0.account.field_manager.as_str()), ("force", force)],
        );
        self.spend(Verb::Apply).map_err(Failure::Refused)?;
        let call = self.call(Method::PATCH, path).body(Media::Apply, text);
        self.send(Write::of(kind, key), call).await
    }

    /// What a write is going to change, if that is known: a cache that does not show an own write yet says nothing.
    fn seen_before(&self, kind: &Kind, key: &ObjectKey) -> Option<Arc<Entry>> {
        self.is_visible(kind, key).then(|| self.cached(kind, key)).flatten()
    }

    /// Remembers what was written, and whether that took back what somebody else had done.
    fn learn(
        &self,
        at: (Target, Kind, ObjectKey),
        (sent, part): (&str, Part),
        (before, now): (Option<&Entry>, &Entry),
    ) {
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

    fn written(
        &self,
        kind: &Kind,
        key: &ObjectKey,
        answer: Result<String, Failure>,
    ) -> Result<String, Error> {
        match answer {
            Ok(text) => Ok(text),
            Err(Failure::Refused(error)) => Err(error),
            Err(Failure::Call(error)) => {
                self.applied().forget(kind, key);
                Err(self.heard(&error))
            }
        }
    }

    async fn live(&self, resource: &Resource, key: &ObjectKey) -> Result<Arc<Entry>, Error> {
        let path = path(resource, key, None)?;
        let text = self.read(self.call(Method::GET, path)).await.map_err(|e| self.heard(&e))?;
        envelope::object(&text).map(Arc::new).map_err(|error| Error::Unavailable(error.to_string()))
    }

    fn cached(&self, kind: &Kind, key: &ObjectKey) -> Option<Arc<Entry>> {
        self.0.view.entry(kind, key.namespace.as_deref(), &key.name)
    }

    /// What an apply's effect on the cached object shows in: all of it, or its metadata where only that is cached.
    fn part(&self, kind: &Kind) -> Part {
        match self.0.view.manifest().projection(kind) {
            Some(crate::manifest::Projection::Metadata) => Part::Metadata,
            _ => Part::Main,
        }
    }

    fn is_no_op(
        &self,
        at: &(Target, Kind, ObjectKey),
        uid: &str,
        body: Fingerprint,
        cached: Fingerprint,
    ) -> bool {
        self.applied().is_no_op(at, uid, body, cached)
    }

    fn is_controlled_by_primary(&self, entry: &Entry) -> bool {
        let Some(primary) = &self.0.run.uid else { return false };
        entry
            .owners()
            .iter()
            .any(|owner| owner.controller && owner.uid.as_ref() == primary.as_ref())
    }

    /// The uid that a status write is bound to: the run's own for the primary, else the one that the guest gave.
    fn expected_uid(&self, object: &Object, key: &ObjectKey) -> Option<String> {
        let own = self.0.view.is_primary(&object.kind) && *key == self.0.run.request;
        let run = self.0.run.uid.as_deref().filter(|_| own).map(str::to_owned);
        run.or_else(|| object.uid.clone())
    }

    fn applied(&self) -> std::sync::MutexGuard<'_, super::Applied> {
        self.0.account.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a write of this target can be fought over.
pub(super) fn place((target, kind, key): &(Target, Kind, ObjectKey)) -> Place {
    let side = if *target == Target::Status { Side::Status } else { Side::Object };
    (kind.clone(), key.clone(), side)
}

fn path(resource: &Resource, key: &ObjectKey, subresource: Option<&str>) -> Result<String, Error> {
    resource
        .path(key.namespace.as_deref(), Some(&key.name), subresource)
        .map_err(|error| answer::error(&error))
}

fn stripped(text: &str) -> Result<String, Error> {
    match envelope::object(text) {
        Ok(entry) => Ok(entry.body().to_string()),
        Err(error) => Err(Error::Unavailable(error.to_string())),
    }
}

/// What a no-op answers.
fn merged(object: &Object, entry: &Entry, part: Part) -> Arc<str> {
    if part != Part::Metadata {
        return entry.body().clone();
    }
    let cached: serde_json::Value = serde_json::from_str(entry.body()).unwrap_or_default();
    let mut own: serde_json::Value = serde_json::from_str(&object.text).unwrap_or_default();
    own["metadata"] = cached["metadata"].clone();
    own.to_string().into()
}
