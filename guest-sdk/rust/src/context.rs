//! What a reconciler may do while it runs.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Condition, jiff::Timestamp};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    Config, Error, Event, Level, Object, Propagation, Query, Statement, Stored,
    api::Api,
    bindings::nagaya::controller::{
        cluster::{self, Ownership, PatchBody, Removal},
        common::Field,
    },
    object::{at, decode, encode, encode_main, encode_status, kind_of, reference},
};

/// The cluster as the controller's `ServiceAccount`, and the runtime.
pub struct Context(Box<dyn Api>);

/// The body of [`Context::patch`].
#[derive(Clone, Debug)]
pub enum Patch {
    /// RFC 6902: a list of operations.
    Json(Value),
    /// RFC 7386: a merge patch.
    Merge(Value),
}

impl Context {
    pub(crate) fn new(api: impl Api + 'static) -> Self {
        Self(Box::new(api))
    }

    /// Reads one object of a watched kind from the host's cache. Of a kind watched metadata-only, read it as
    /// `PartialObjectMeta<K>` unless all of its other fields are optional.
    pub fn get<'a, K: Object>(
        &self,
        namespace: impl Into<Option<&'a str>>,
        name: &str,
    ) -> Result<Option<K>, Error> {
        found(self.0.get(&at::<K>(namespace.into(), name)))
    }

    /// Reads one object from the API server. Secrets are read in no other way.
    pub fn get_live<'a, K: Object>(
        &self,
        namespace: impl Into<Option<&'a str>>,
        name: &str,
    ) -> Result<Option<K>, Error> {
        match found(self.0.get_live(&at::<K>(namespace.into(), name))) {
            // Nobody tells of a change of it: the next run looks again.
            Err(Error::Terminal(message)) => Err(Error::Retry(message)),
            other => other,
        }
    }

    /// Reads objects of a watched kind from the host's cache, in the order of namespace and name.
    pub fn list<K: Object>(&self, query: Query) -> Result<Vec<K>, Error> {
        let (kind, mut options) = (kind_of::<K>(), query.0);
        let mut objects = vec![];
        loop {
            let page = self.0.find(&kind, &options)?;
            for text in &page.items {
                objects.push(decode(text)?);
            }
            if page.next.is_empty() {
                return Ok(objects);
            }
            options.after = page.next;
        }
    }

    /// Server-side apply: the object will have these fields, and those of the controller's last apply that are
    /// missing here go away. Fields of a type that are not set, the status and what only the server writes are not
    /// sent; a null within a free-form value (a `serde_json::Value`, a map, a list) is. A field that
    /// another manager owns is taken over in the primary's children, elsewhere it is a [`Error::Conflict`].
    ///
    /// Apply what you built, not what you read: whoever applies what it read owns all of it. An object with a
    /// resourceVersion is applied only if that is still the current one.
    ///
    /// An object that is there and not the primary's does not become its child by accident: with an owner reference
    /// that it does not have this is a [`Error::Conflict`]; [`Context::adopt`] takes it over.
    pub fn apply<K: Object>(&self, object: &K) -> Result<Stored<K>, Error> {
        Ok(Stored::new(self.0.apply(&encode_main(object)?, Ownership::Standard)?))
    }

    /// As [`Context::apply`], and fields that others own are taken over in any case. Objects are not: see
    /// [`Context::adopt`].
    pub fn apply_forced<K: Object>(&self, object: &K) -> Result<Stored<K>, Error> {
        Ok(Stored::new(self.0.apply(&encode_main(object)?, Ownership::Force)?))
    }

    /// As [`Context::apply`], and the object becomes the primary's child: the host adds the owner reference that makes the
    /// primary its controller, unless `object` names the primary as an owner already (see [`child`](crate::child)).
    /// Where Kubernetes allows none, across namespaces or from a cluster-scoped object to a namespaced one, it is
    /// [`Error::Rejected`]; while the primary is being deleted, [`Error::Conflict`].
    pub fn apply_child<K: Object>(&self, object: &K) -> Result<Stored<K>, Error> {
        Ok(Stored::new(self.0.apply(&encode_main(object)?, Ownership::Child)?))
    }

    /// As [`Context::apply_child`] with the force of [`Context::apply_forced`], and an object that exists and is nobody's
    /// becomes the primary's child, to be deleted with it.
    ///
    /// Use it where the object's name says that it is meant: data that a user has restored, or a child of a controller
    /// that this one replaces. In any other call, and for an object that another one controls, it is a
    /// [`Error::Conflict`], because the garbage collector would delete somebody's data together with the primary.
    pub fn adopt<K: Object>(&self, object: &K) -> Result<Stored<K>, Error> {
        Ok(Stored::new(self.0.apply(&encode_main(object)?, Ownership::Adopt)?))
    }

    /// Server-side apply of the status of `object`, mostly the primary. State the whole status anew, and the
    /// controller's own conditions only (see [`Context::condition`]).
    pub fn apply_status<K: Object>(
        &self,
        object: &K,
        status: &impl Serialize,
    ) -> Result<Stored<K>, Error> {
        Ok(Stored::new(self.0.apply_status(&encode_status(object, status)?)?))
    }

    /// Creates an object; `metadata.generateName` instead of a name is allowed.
    pub fn create<K: Object>(&self, object: &K) -> Result<Stored<K>, Error> {
        Ok(Stored::new(self.0.create(&Value::Object(encode(object)?).to_string(), false)?))
    }

    /// As [`Context::create`], and the object becomes the primary's child, as by [`Context::apply_child`].
    pub fn create_child<K: Object>(&self, object: &K) -> Result<Stored<K>, Error> {
        Ok(Stored::new(self.0.create(&Value::Object(encode(object)?).to_string(), true)?))
    }

    /// Patches an object.
    pub fn patch<'a, K: Object>(
        &self,
        namespace: impl Into<Option<&'a str>>,
        name: &str,
        patch: &Patch,
    ) -> Result<Stored<K>, Error> {
        let body = match patch {
            Patch::Json(operations) => PatchBody::Json(operations.to_string()),
            Patch::Merge(fields) => PatchBody::Merge(fields.to_string()),
        };
        Ok(Stored::new(self.0.patch(&at::<K>(namespace.into(), name), &body)?))
    }

    /// Deletes an object and then its dependents; one that is gone already is no error.
    ///
    /// The deletion holds for the very object that was read: if `object` has a uid and a resourceVersion and is
    /// another by now, it is a [`Error::Conflict`]. If it has none, the host takes those of its cache.
    pub fn delete<K: Object>(&self, object: &K) -> Result<(), Error> {
        self.delete_with(object, Propagation::Background)
    }

    /// As [`Context::delete`], with another fate of the dependents.
    pub fn delete_with<K: Object>(
        &self,
        object: &K,
        propagation: Propagation,
    ) -> Result<(), Error> {
        let metadata = object.meta();
        let removal = Removal {
            uid: metadata.uid.clone().unwrap_or_default(),
            resource_version: metadata.resource_version.clone().unwrap_or_default(),
            propagation,
        };
        match self.0.remove(&reference(object)?, &removal) {
            Ok(()) | Err(cluster::Error::NotFound) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes `finalizer` away from an object: the cleanup is done, it may go. Nothing happens if it is not there.
    pub fn remove_finalizer<K: Object>(&self, object: &K, finalizer: &str) -> Result<(), Error> {
        let metadata = object.meta();
        let finalizers = metadata.finalizers.as_deref().unwrap_or_default();
        let Some(place) = finalizers.iter().position(|name| name == finalizer) else {
            return Ok(());
        };
        let path = format!("/metadata/finalizers/{place}");
        let removal = json!([
            { "op": "test", "path": "/metadata/uid", "value": metadata.uid },
            { "op": "test", "path": path, "value": finalizer },
            { "op": "remove", "path": path },
        ]);
        match self.0.patch(&reference(object)?, &PatchBody::Json(removal.to_string())) {
            Ok(_) | Err(cluster::Error::NotFound) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// A condition for the status of `object`: its generation, and the date of the one of its type in `before`
    /// (the conditions in the status that was read) unless the status changed.
    pub fn condition<K: Object>(
        &self,
        object: &K,
        before: &[Condition],
        statement: Statement,
    ) -> Condition {
        statement.dated(before, object.meta().generation, self.now())
    }

    /// Tells people about the primary, or an object of a declared kind. The host sends it in its own time.
    pub fn event<K: Object>(&self, regarding: &K, event: Event) -> Result<(), Error> {
        let regarding = reference(regarding)?;
        let Event { severity, reason, action, note } = event;
        Ok(self.0.emit_event(&cluster::Event { regarding, severity, reason, action, note })?)
    }

    /// The time, in whole milliseconds; it is part of what a replay repeats.
    pub fn now(&self) -> Timestamp {
        #[expect(clippy::cast_possible_truncation, reason = "whole milliseconds, far below 2^53")]
        let millis = self.0.now() as i64;
        Timestamp::from_millisecond(millis).unwrap_or_default()
    }

    /// Random bytes, at most 65,536; they are part of what a replay repeats.
    pub fn random(&self, length: u32) -> Vec<u8> {
        self.0.random(length)
    }

    /// The controller's configuration.
    pub fn config(&self) -> Config {
        Config::new(self.0.config())
    }

    /// Writes a line to the host's log, which adds controller, revision, object and run.
    pub fn log(&self, level: Level, message: &str, fields: &[(&str, &str)]) {
        let owned =
            |(key, value): &(&str, &str)| Field { key: (*key).into(), value: (*value).into() };
        self.0.log(level, message, &fields.iter().map(owned).collect::<Vec<_>>());
    }
}

fn found<K: Object>(answer: Result<String, cluster::Error>) -> Result<Option<K>, Error> {
    match answer {
        Ok(text) => decode(&text).map(Some),
        Err(cluster::Error::NotFound) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
