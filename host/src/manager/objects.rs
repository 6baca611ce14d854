//! Reads and writes the host's own kinds, as the host.

use http::Method;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::{
    apiserver::{ApiServer, Call, Error, Media, Resource},
    leader::fence::Claim,
    metrics::ConditionStats,
    model::{
        crd::{self, WasmController, WasmRevision},
        object::ObjectKey,
        stored::{self, Stored},
    },
    text,
    watch::{Cache, Entry},
};

/// Conditions of one controller that are counted: what others write there is theirs, and has an end.
const CONDITIONS: usize = 16;

/// The API server, for WasmControllers and WasmRevisions: written only while the host holds its claim.
#[derive(Clone, Debug)]
pub(super) struct Objects {
    pub(super) api: ApiServer,
    pub(super) claim: watch::Receiver<Option<Claim>>,
}

/// How WasmControllers are served.
pub(super) fn controllers() -> Resource {
    own("WasmController", "wasmcontrollers")
}

/// How WasmRevisions are served.
pub(super) fn revisions() -> Resource {
    own("WasmRevision", "wasmrevisions")
}

fn own(kind: &str, plural: &str) -> Resource {
    Resource {
        kind: crd::own_watch(kind).kind,
        plural: plural.to_owned(),
        namespaced: true,
        has_status: true,
    }
}

/// A cached WasmController; `None` if it cannot be read, which its own keeper tells.
pub(super) fn controller(entry: &Entry) -> Option<WasmController> {
    stored::controller(entry.body()).ok().map(|stored| stored.controller)
}

/// What the conditions of the cached WasmControllers say, in so far as they are of the kind that this host writes.
pub(super) fn conditions(cache: &Cache) -> Vec<ConditionStats> {
    let mut all = vec![];
    for entry in cache.entries() {
        let Some(controller) = controller(&entry) else { continue };
        let name = entry.key().to_string();
        let conditions = controller.status.map(|status| status.conditions).unwrap_or_default();
        all.extend(conditions.into_iter().take(CONDITIONS).map(|condition| ConditionStats {
            controller: name.clone(),
            kind: text::cut_owned(condition.type_, text::NAME),
            status: condition.status,
        }));
    }
    all
}

impl Objects {
    /// Writes `status` over the old one, if the object is still the one that was read; returns it as it now is.
    pub(super) async fn set_status(
        &self,
        controller: &WasmController,
        status: Value,
    ) -> Result<Stored, Error> {
        let old = serde_json::to_value(&controller.status).unwrap_or_default();
        let body = json!({ "status": with_removals(&old, status) });
        self.patch(&Version::of(&controller.metadata), Some("status"), body).await
    }

    /// Sets some fields of a status that cannot be read as a whole.
    pub(super) async fn set_fields_of_status(
        &self,
        at: &Version,
        status: Value,
    ) -> Result<(), Error> {
        match self.patch(at, Some("status"), json!({ "status": status })).await {
            // It is as unreadable as before, and written.
            Err(Error::Answer(_)) => Ok(()),
            result => result.map(drop),
        }
    }

    /// The controller as the API server has it, whatever is watched; `None`: it is gone.
    pub(super) async fn controller(&self, key: &ObjectKey) -> Result<Option<Stored>, Error> {
        let path = controllers().path(key.namespace.as_deref(), Some(&key.name), None)?;
        match self.api.call(Call::new(Method::GET, path)).await {
            Ok(text) => {
                stored::controller(&text).map(Some).map_err(|error| Error::Answer(error.into()))
            }
            Err(error) if error.code() == Some(404) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sets the finalizers, if the object is still the one that was read.
    pub(super) async fn set_finalizers(
        &self,
        at: &Version,
        finalizers: &[String],
    ) -> Result<Stored, Error> {
        self.patch(at, None, json!({ "metadata": { "finalizers": finalizers } })).await
    }

    async fn patch(
        &self,
        at: &Version,
        subresource: Option<&str>,
        mut body: Value,
    ) -> Result<Stored, Error> {
        body["metadata"]["uid"] = json!(at.uid);
        body["metadata"]["resourceVersion"] = json!(at.at);
        let path = controllers().path(at.namespace.as_deref(), Some(&at.name), subresource)?;
        let text = self.fenced()?.call(merge(path, &body)).await?;
        stored::controller(&text).map_err(|error| Error::Answer(error.into()))
    }

    /// Creates a revision; one of the same name is the same revision, since the name says its content.
    pub(super) async fn create_revision(
        &self,
        revision: &WasmRevision,
    ) -> Result<WasmRevision, Error> {
        let found = match self.post(revision).await {
            Err(error) if error.code() == Some(409) => self.find(revision).await?,
            result => return result,
        };
        if is_the_same(&found, revision) {
            return Ok(found);
        }
        if is_left_over(&found, revision) {
            self.delete_revision(&found).await?;
            return self.post(revision).await;
        }
        Err(Error::Request(format!(
            "the WasmRevision {} exists already and is not this controller's: delete it",
            revision.metadata.name.as_deref().unwrap_or_default()
        )))
    }

    async fn post(&self, revision: &WasmRevision) -> Result<WasmRevision, Error> {
        let path = revisions().path(revision.metadata.namespace.as_deref(), None, None)?;
        let text =
            serde_json::to_string(revision).map_err(|error| Error::Request(error.to_string()))?;
        self.fenced()?.fetch(Call::new(Method::POST, path).body(Media::Json, text)).await
    }

    async fn find(&self, revision: &WasmRevision) -> Result<WasmRevision, Error> {
        let meta = &revision.metadata;
        let path = revisions().path(meta.namespace.as_deref(), meta.name.as_deref(), None)?;
        self.api.fetch(Call::new(Method::GET, path)).await
    }

    /// Writes a revision's status over the old one.
    pub(super) async fn set_revision_status(
        &self,
        revision: &WasmRevision,
        status: Value,
    ) -> Result<WasmRevision, Error> {
        let meta = &revision.metadata;
        let old = serde_json::to_value(&revision.status).unwrap_or_default();
        let body =
            json!({ "metadata": { "uid": meta.uid }, "status": with_removals(&old, status) });
        let path =
            revisions().path(meta.namespace.as_deref(), meta.name.as_deref(), Some("status"))?;
        self.fenced()?.fetch(merge(path, &body)).await
    }

    /// A host that was frozen past the end of its claim writes nothing when it wakes.
    fn fenced(&self) -> Result<&ApiServer, Error> {
        if self.claim.borrow().as_ref().is_some_and(Claim::holds) {
            return Ok(&self.api);
        }
        Err(Error::Request("this host does not hold its Lease: nothing was written".to_owned()))
    }

    /// Deletes a revision that is history.
    pub(super) async fn delete_revision(&self, revision: &WasmRevision) -> Result<(), Error> {
        let meta = &revision.metadata;
        let body = json!({
            "apiVersion": "v1", "kind": "DeleteOptions", "preconditions": { "uid": meta.uid },
        });
        let path = revisions().path(meta.namespace.as_deref(), meta.name.as_deref(), None)?;
        let call = Call::new(Method::DELETE, path).body(Media::Json, body.to_string());
        match self.fenced()?.call(call).await {
            Err(error) if error.code() != Some(404) => Err(error),
            _ => Ok(()),
        }
    }
}

/// Which object is written, and what it must still be.
#[derive(Clone, Debug)]
pub(super) struct Version {
    pub(super) namespace: Option<String>,
    pub(super) name: String,
    pub(super) uid: Option<String>,
    /// Its `resourceVersion`.
    pub(super) at: Option<String>,
}

impl Version {
    pub(super) fn of(meta: &ObjectMeta) -> Self {
        Self {
            namespace: meta.namespace.clone(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone(),
            at: meta.resource_version.clone(),
        }
    }

    /// That of an object whose text cannot be read.
    pub(super) fn of_entry(entry: &Entry) -> Self {
        Self {
            namespace: entry.key().namespace.as_deref().map(str::to_owned),
            name: entry.key().name.to_string(),
            uid: Some(entry.uid().to_owned()),
            at: Some(entry.resource_version()),
        }
    }
}

/// Whether a revision that exists is the one that was to be made: of the same controller, with the same content.
fn is_the_same(found: &WasmRevision, wanted: &WasmRevision) -> bool {
    let has_owner = |owner: &OwnerReference| owners(found).any(|other| other.uid == owner.uid);
    found.spec.digest == wanted.spec.digest
        && found.spec.config == wanted.spec.config
        && owners(wanted).all(has_owner)
}

/// Whether it is of a controller that had the same name before, and only has not been collected yet.
fn is_left_over(found: &WasmRevision, wanted: &WasmRevision) -> bool {
    let mut names = owners(wanted).map(|owner| (&owner.kind, &owner.name));
    names.any(|name| owners(found).any(|other| (&other.kind, &other.name) == name))
}

fn owners(revision: &WasmRevision) -> impl Iterator<Item = &OwnerReference> {
    revision.metadata.owner_references.iter().flatten()
}

fn merge(path: String, body: &Value) -> Call {
    Call::new(Method::PATCH, path).body(Media::MergePatch, body.to_string())
}

/// `new` as a merge patch over `old`: what is gone becomes null.
fn with_removals(old: &Value, new: Value) -> Value {
    let mut new = new;
    if let (Some(old), Some(fields)) = (old.as_object(), new.as_object_mut()) {
        for key in old.keys() {
            fields.entry(key).or_insert(Value::Null);
        }
    }
    new
}
