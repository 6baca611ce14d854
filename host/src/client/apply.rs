//! Server-side apply, of an object and of its status.
//!
//! An object that carries an owner reference is applied only to what the primary owns already, or to nothing: whether
//! there is something the API server itself says, in the same transaction. An apply that names a resourceVersion holds
//! for that version alone, and makes the object if there is none.
//!
//! Invariants, on a real server: `an_object_of_somebody_else_is_not_taken_over`,
//! `f11_two_controllers_that_fight_are_told_and_slowed`.

use std::sync::Arc;

use http::Method;

use super::{
    Client, Error, Ownership, answer,
    gates::{fight::Side, noop::Target},
    intent::Intent,
    object::Object,
    owners::{self, Change, Primary},
    read::as_object,
    send::Unwritten,
    shown,
    write::path,
};
use crate::{
    apiserver::{Media, query},
    model::{kind::Kind, manifest::Verb, object::ObjectKey},
    watch::{
        Entry,
        envelope::Owner,
        fingerprint::{Fingerprint, Part},
    },
};

/// No object has it: the store begins to count at 1, and its first object has 2.
const NO_VERSION: &str = "1";
/// Looks at one object before an apply, while others make and delete it.
const LOOKS: u32 = 3;

/// What an apply is made for.
#[derive(Debug)]
enum Standing {
    /// Whatever there is, bound to this uid if one is known.
    Any(Option<String>),
    /// There is no such object.
    Absent,
    /// The object as it was seen, which may get the owners.
    Seen(Arc<Entry>),
}

impl Client {
    /// Server-side apply; returns the object as it now is.
    ///
    /// Of a kind cached metadata-only a no-op returns the guest's own object under the cached metadata.
    pub async fn apply(&self, text: String, ownership: Ownership) -> Result<Arc<str>, Error> {
        let object = Object::parse(text)?;
        let resource = self.may_write(&object.kind, Verb::Apply)?;
        let object = match ownership {
            Ownership::Child | Ownership::Adopt => self.as_child(object)?,
            Ownership::Standard | Ownership::Force => object,
        };
        let key = object.key()?;
        let path = path(&resource, &key, None)?;
        self.check_owners(&object.owners, (&object.kind, &key))?;
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
        let before = self.seen_before(&object.kind, &key);
        let text = self.apply_where_it_may(&object, &key, &path, ownership).await?;
        let now = as_object(&text)?;
        self.learn(at, (&object.text, part), (before.as_deref(), &now));
        Ok(now.body().clone())
    }

    async fn apply_where_it_may(
        &self,
        object: &Object,
        key: &ObjectKey,
        path: &str,
        ownership: Ownership,
    ) -> Result<String, Error> {
        let kind = &object.kind;
        let mut standing = self.standing(object, key, ownership).await?;
        for looks in 1.. {
            let (seen, uid, version) = match &standing {
                Standing::Any(uid) => (self.cached(kind, key), uid.as_deref(), None),
                Standing::Absent => (None, None, Some(NO_VERSION)),
                Standing::Seen(entry) => (Some(entry.clone()), Some(entry.uid()), None),
            };
            let is_child = seen.is_some_and(|entry| self.primary().controls(entry.owners()));
            let force = matches!(ownership, Ownership::Force | Ownership::Adopt) || is_child;
            let bound = object.bound_to(uid, version);
            let intent = Intent::new(Verb::Apply, (kind, key), self.apply_call(path, force, bound));
            // One call of the guest is one revert at most.
            let side = (looks == 1).then_some(Side::Object);
            let is_probe = version.is_some();
            let answer = self.write(Intent { side, is_probe, ..intent }).await;
            let exists = version.is_some()
                && matches!(&answer, Err(Unwritten::Call(error)) if answer::is_conflict(error));
            if !exists || looks > LOOKS {
                return self.written(kind, key, answer);
            }
            standing = self.look_for(object, key, ownership).await?;
        }
        Err(Error::Unavailable("no look was left".to_owned()))
    }

    /// What is known of the object before it is applied. The cache is believed as far as nobody can be harmed by it.
    async fn standing(
        &self,
        object: &Object,
        key: &ObjectKey,
        ownership: Ownership,
    ) -> Result<Standing, Error> {
        let kind = &object.kind;
        let cached = self.cached(kind, key);
        if object.owners.is_empty() {
            return Ok(Standing::Any(cached.map(|entry| entry.uid().to_owned())));
        }
        if object.has_version || !self.is_visible(kind, key) {
            return self.look_for(object, key, ownership).await;
        }
        let adopts = ownership == Ownership::Adopt;
        match cached {
            Some(entry) if self.keep_from(&object.owners, (kind, &entry), adopts).is_ok() => {
                Ok(Standing::Seen(entry))
            }
            None if self.would_show(kind, key, &object.text) => Ok(Standing::Absent),
            _ => self.look_for(object, key, ownership).await,
        }
    }

    /// The same, from the API server.
    async fn look_for(
        &self,
        object: &Object,
        key: &ObjectKey,
        ownership: Ownership,
    ) -> Result<Standing, Error> {
        let Some(entry) = self.look_at(&object.kind, key).await? else {
            return Ok(Standing::Absent);
        };
        let adopts = ownership == Ownership::Adopt;
        self.keep_from(&object.owners, (&object.kind, &entry), adopts)?;
        Ok(Standing::Seen(entry))
    }

    /// The object as the run finds it on the API server; `None`: there is none.
    pub(super) async fn look_at(
        &self,
        kind: &Kind,
        key: &ObjectKey,
    ) -> Result<Option<Arc<Entry>>, Error> {
        match self.dry().and_then(|dry| dry.overlaid(kind, key)) {
            Some(left) => Ok(left.here()),
            None => self.look_past(kind, key).await,
        }
    }

    /// The object as the API server has it; `None`: there is none. Who may patch may look: an account that may not get
    /// it makes a patch of nothing, of which nothing is stored.
    pub(super) async fn look_past(
        &self,
        kind: &Kind,
        key: &ObjectKey,
    ) -> Result<Option<Arc<Entry>>, Error> {
        let resource = self.resource(kind)?;
        let path = path(&resource, key, None)?;
        let mut answer = self.read(self.call(Method::GET, path.clone())).await;
        let may_not = answer.as_ref().is_err_and(|error| answer::missing_right(error).is_some());
        if may_not && self.takes_dry_runs(kind).await {
            let path = query(&path, [("dryRun", "All")]);
            answer = self.read(self.call(Method::PATCH, path).body(Media::MergePatch, "{}")).await;
        }
        match answer {
            Ok(text) => as_object(&text).map(Some),
            Err(error) => match self.heard(&error) {
                Error::NotFound => Ok(None),
                other => {
                    self.learn_anew(kind, &error).await;
                    Err(other)
                }
            },
        }
    }

    /// Whether some cache would show an object like this one if it were there.
    fn would_show(&self, kind: &Kind, key: &ObjectKey, text: &str) -> bool {
        let Ok(entry) = as_object(text) else { return false };
        self.0.view.sources(kind).any(|source| {
            source.covers(key.namespace.as_deref()) && shown::selects(&source.watch, &entry)
        })
    }

    /// Refuses owners that the garbage collector would not find.
    pub(super) fn check_owners(
        &self,
        owners: &[Owner],
        at: (&Kind, &ObjectKey),
    ) -> Result<(), Error> {
        let is_namespaced = |group: &str, kind: &str| {
            let kind = Kind { group: group.to_owned(), kind: kind.to_owned(), ..Kind::default() };
            self.0.view.resource(&kind).map(|resource| resource.namespaced)
        };
        owners::check(owners, self.primary(), at, is_namespaced)
    }

    /// Keeps a write with these owners from an object that is not the primary's.
    pub(super) fn keep_from(
        &self,
        owners: &[Owner],
        (kind, entry): (&Kind, &Entry),
        adopts: bool,
    ) -> Result<(), Error> {
        let change = owners::change(owners, entry.owners(), self.primary());
        if adopts && change == Change::TakesOver {
            return Ok(());
        }
        owners::refusal(&change, (kind, entry.key())).map_or(Ok(()), Err)
    }

    pub(super) fn primary(&self) -> Primary<'_> {
        let run = &self.0.run;
        let kind = &self.0.view.manifest().primary.kind;
        Primary { kind, key: &run.request, uid: run.uid.as_deref() }
    }

    /// Server-side apply of the status, retried against other writers as long as the object is the same.
    pub async fn apply_status(&self, text: String) -> Result<Arc<str>, Error> {
        let object = Object::parse(text)?;
        let resource = self.may_write(&object.kind, Verb::ApplyStatus)?;
        let kind = &object.kind;
        let key = object.key()?;
        let path = path(&resource, &key, Some("status"))?;
        let body = Fingerprint::of_text(&object.text);
        let at = (Target::Status, kind.clone(), key.clone());
        let mut current = match self.cached(kind, &key) {
            Some(entry) => entry,
            None => self.live(kind, &key).await?,
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
        let (mut before, mut side) = (self.seen_before(kind, &key), Some(Side::Status));
        loop {
            if current.uid() != uid {
                let text = format!("{kind} {key} is another object than the one of this run");
                return Err(Error::Conflict(text));
            }
            // Some kinds take metadata with their status.
            self.check_owners(&object.owners, (kind, &key))?;
            self.keep_from(&object.owners, (kind, &current), false)?;
            let version = current.resource_version();
            let bound = object.bound_to(Some(&uid), Some(&version));
            let call = self.apply_call(&path, true, bound);
            let intent = Intent::new(Verb::ApplyStatus, (kind, &key), call);
            let answer = self.write(Intent { side: side.take(), ..intent }).await;
            if matches!(&answer, Err(Unwritten::Call(error)) if answer::is_conflict(error))
                && self.may_try_again(kind, &key)
            {
                current = self.live(kind, &key).await?;
                before = Some(current.clone());
                continue;
            }
            let text = match self.written(kind, &key, answer) {
                // The object may be there, and its status not be served.
                Err(Error::NotFound) => return Err(self.without_status(kind, &key).await),
                other => other?,
            };
            let now = as_object(&text)?;
            self.learn(at, (&object.text, Part::Status), (before.as_deref(), &now));
            return Ok(now.body().clone());
        }
    }

    async fn without_status(&self, kind: &Kind, key: &ObjectKey) -> Error {
        let Ok(_) = self.live(kind, key).await else { return Error::NotFound };
        self.ask_how_it_is_served(kind).await;
        Error::Unavailable(format!(
            "{kind} has no subresource status any more: its CustomResourceDefinition must have `subresources: {{status: {{}}}}`"
        ))
    }

    /// The uid that a status write is bound to: the run's own for the primary, else the one that the guest gave.
    fn expected_uid(&self, object: &Object, key: &ObjectKey) -> Option<String> {
        let own = self.0.view.is_primary(&object.kind) && *key == self.0.run.request;
        let run = self.0.run.uid.as_deref().filter(|_| own).map(str::to_owned);
        run.or_else(|| object.uid.clone())
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
