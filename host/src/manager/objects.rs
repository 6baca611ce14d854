//! Reads and writes the host's own kinds, as the host.

use http::Method;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::{
    apiserver::{ApiServer, Call, Error, Media, Resource},
    crd::{self, WasmController, WasmRevision},
    fence::Claim,
    watch::{Entry, ObjectKey},
};

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

/// The typed form of a cached object; `None` if a newer version of the CRD has made it something else.
pub(super) fn typed<T: DeserializeOwned>(entry: &Entry) -> Option<T> {
    match serde_json::from_str(entry.body()) {
        Ok(object) => Some(object),
        Err(error) => {
            tracing::error!(object = %entry.key(), %error, "an object of the host's own kinds cannot be read");
            None
        }
    }
}

impl Objects {
    /// Writes `status` over the old one, if the object is still the one that was read (R80); returns it as it now is.
    pub(super) async fn set_status(
        &self,
        controller: &WasmController,
        status: Value,
    ) -> Result<WasmController, Error> {
        let meta = &controller.metadata;
        let old = serde_json::to_value(&controller.status).unwrap_or_default();
        let body = json!({
            "metadata": { "uid": meta.uid, "resourceVersion": meta.resource_version },
            "status": with_removals(&old, status),
        });
        let path =
            controllers().path(meta.namespace.as_deref(), meta.name.as_deref(), Some("status"))?;
        self.fenced()?.fetch(merge(path, &body)).await
    }

    /// The controller as the API server has it, whatever is watched; `None`: it is gone.
    pub(super) async fn controller(
        &self,
        key: &ObjectKey,
    ) -> Result<Option<WasmController>, Error> {
        let path = controllers().path(key.namespace.as_deref(), Some(&key.name), None)?;
        match self.api.fetch(Call::new(Method::GET, path)).await {
            Ok(controller) => Ok(Some(controller)),
            Err(error) if error.code() == Some(404) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sets the finalizers, if the object is still the one that was read.
    pub(super) async fn set_finalizers(
        &self,
        controller: &WasmController,
        finalizers: &[String],
    ) -> Result<WasmController, Error> {
        let meta = &controller.metadata;
        let body = json!({ "metadata": {
            "uid": meta.uid, "resourceVersion": meta.resource_version, "finalizers": finalizers,
        } });
        let path = controllers().path(meta.namespace.as_deref(), meta.name.as_deref(), None)?;
        self.fenced()?.fetch(merge(path, &body)).await
    }

    /// Creates a revision; one of the same name is the same revision, since the name says its content.
    pub(super) async fn create_revision(
        &self,
        revision: &WasmRevision,
    ) -> Result<WasmRevision, Error> {
        let meta = &revision.metadata;
        let path = revisions().path(meta.namespace.as_deref(), None, None)?;
        let text =
            serde_json::to_string(revision).map_err(|error| Error::Request(error.to_string()))?;
        match self.fenced()?.fetch(Call::new(Method::POST, path).body(Media::Json, text)).await {
            Err(error) if error.code() == Some(409) => {
                let path =
                    revisions().path(meta.namespace.as_deref(), meta.name.as_deref(), None)?;
                self.api.fetch(Call::new(Method::GET, path)).await
            }
            result => result,
        }
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

    /// A host that was frozen past the end of its claim writes nothing when it wakes (R64).
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
