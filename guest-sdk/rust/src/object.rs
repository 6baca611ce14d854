//! Objects as the author's types, and their text at the guest's boundary.
//!
//! Invariant: `what_the_server_owns_is_never_sent`.

use std::marker::PhantomData;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use crate::{Error, Kind, bindings::nagaya::controller::common::ObjectReference, body};

/// Metadata that only the server writes; sent in an apply it would be refused or owned by mistake.
const SERVER_METADATA: [&str; 6] = [
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "generation",
    "managedFields",
    "selfLink",
];

/// Every Kubernetes object type known at compile time: k8s-openapi's, those of kube's `CustomResource` derive,
/// and `kube_core::metadata::PartialObjectMeta` of either, for kinds watched metadata-only.
pub trait Object: kube_core::Resource<DynamicType = ()> + Serialize + DeserializeOwned {}

impl<K> Object for K where K: kube_core::Resource<DynamicType = ()> + Serialize + DeserializeOwned {}

/// An object as the API server has it now; parsed only if asked, since most writers do not look at it.
#[derive(Clone, Debug)]
pub struct Stored<K> {
    text: String,
    object: PhantomData<K>,
}

impl<K: Object> Stored<K> {
    pub(crate) fn new(text: String) -> Self {
        Self { text, object: PhantomData }
    }

    /// The object. Of a kind watched metadata-only, an apply that changed nothing returns the applied fields
    /// under the current metadata.
    pub fn read(&self) -> Result<K, Error> {
        decode(&self.text)
    }
}

/// Metadata of an object that `owner` controls: the name, the owner's namespace, and the controller reference, by
/// which the host recognises a child and the garbage collector deletes it after its owner.
pub fn child<K: Object>(owner: &K, name: impl Into<String>) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.into()),
        namespace: owner.meta().namespace.clone(),
        owner_references: owner.controller_owner_ref(&()).map(|reference| vec![reference]),
        ..ObjectMeta::default()
    }
}

/// Group, version and kind of a type.
pub(crate) fn kind_of<K: Object>() -> Kind {
    Kind {
        group: K::group(&()).into_owned(),
        version: K::version(&()).into_owned(),
        name: K::kind(&()).into_owned(),
    }
}

/// What names the object of this namespace and name.
pub(crate) fn at<K: Object>(namespace: Option<&str>, name: &str) -> ObjectReference {
    ObjectReference {
        kind: kind_of::<K>(),
        namespace: namespace.unwrap_or_default().to_owned(),
        name: name.to_owned(),
    }
}

/// What names `object`, which must have a name.
pub(crate) fn reference<K: Object>(object: &K) -> Result<ObjectReference, Error> {
    let metadata = object.meta();
    match metadata.name.as_deref() {
        Some(name) => Ok(at::<K>(metadata.namespace.as_deref(), name)),
        None => Err(Error::terminal(format!("a {} has no name", K::kind(&())))),
    }
}

/// The type read from an object's text.
///
/// Metadata may arrive under the server's name for it, `PartialObjectMetadata`, which k8s-openapi's types refuse.
pub(crate) fn decode<K: Object>(text: &str) -> Result<K, Error> {
    let read = serde_json::from_str(text).or_else(|error| {
        let mut object: Value = serde_json::from_str(text)?;
        if object["kind"] != "PartialObjectMetadata" {
            return Err(error);
        }
        object["apiVersion"] = K::api_version(&()).into();
        object["kind"] = K::kind(&()).into();
        // From text again, so that the component holds one deserializer of the type and not two.
        serde_json::from_str(&object.to_string())
    });
    read.map_err(|error| {
        Error::terminal(format!("a {} does not have the expected form: {error}", K::kind(&())))
    })
}

/// What is sent of an object: apiVersion, kind and the fields that are set, without what only the server writes.
pub(crate) fn encode<K: Object>(object: &K) -> Result<Map<String, Value>, Error> {
    let mut body = match body::to_value(object).map_err(cannot_write::<K>)? {
        Value::Object(body) => body,
        other => return Err(Error::terminal(format!("not an object: {other}"))),
    };
    body.insert("apiVersion".to_owned(), K::api_version(&()).into());
    body.insert("kind".to_owned(), K::kind(&()).into());
    if let Some(Value::Object(metadata)) = body.get_mut("metadata") {
        metadata.retain(|key, _| !SERVER_METADATA.contains(&key.as_str()));
    }
    Ok(body)
}

/// What an apply sends: [`encode`] without the status, which is written apart.
pub(crate) fn encode_main<K: Object>(object: &K) -> Result<String, Error> {
    let mut body = encode(object)?;
    body.remove("status");
    Ok(Value::Object(body).to_string())
}

/// What an apply of the status sends: identity and status alone. No resourceVersion: the host binds the write to
/// the object by its uid and settles races with other writers of the object.
pub(crate) fn encode_status<K: Object>(
    object: &K,
    status: &impl Serialize,
) -> Result<String, Error> {
    let status = body::to_value(status).map_err(cannot_write::<K>)?;
    let mut metadata = json!({ "name": reference(object)?.name });
    let meta = object.meta();
    for (field, value) in [("namespace", &meta.namespace), ("uid", &meta.uid)] {
        if let Some(value) = value {
            metadata[field] = json!(value);
        }
    }
    let (api_version, kind) = (K::api_version(&()), K::kind(&()));
    let body =
        json!({ "apiVersion": api_version, "kind": kind, "metadata": metadata, "status": status });
    Ok(body.to_string())
}

fn cannot_write<K: Object>(error: impl std::fmt::Display) -> Error {
    Error::terminal(format!("cannot write a {}: {error}", K::kind(&())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::{apps::v1::Deployment, core::v1::ConfigMap};
    use kube_core::metadata::PartialObjectMeta;

    #[test]
    fn what_the_server_owns_is_never_sent() {
        let text = json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {
                "name": "web", "namespace": "demo", "uid": "u", "resourceVersion": "7", "generation": 3,
                "creationTimestamp": "2026-01-01T00:00:00Z", "managedFields": [{"manager": "x"}],
            },
            "spec": {"selector": {}, "template": {}}, "status": {"replicas": 1},
        });
        let deployment: Deployment = decode(&text.to_string()).unwrap();
        let sent = |text: String| serde_json::from_str::<Value>(&text).unwrap();
        let main = sent(encode_main(&deployment).unwrap());
        let metadata =
            json!({"name": "web", "namespace": "demo", "uid": "u", "resourceVersion": "7"});
        assert_eq!(main["metadata"], metadata, "what is left of it is a precondition");
        assert_eq!((&main["kind"], &main["status"]), (&json!("Deployment"), &Value::Null));
        let status = sent(encode_status(&deployment, &deployment.status).unwrap());
        let metadata = json!({"name": "web", "namespace": "demo", "uid": "u"});
        let expected = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "status": {"replicas": 1}});
        assert_eq!(status, expected);
    }

    #[test]
    fn bare_metadata_is_read_as_its_kind() {
        let text = |kind: &str| {
            json!({"apiVersion": "x/v1", "kind": kind, "metadata": {"name": "web"}}).to_string()
        };
        let bare: ConfigMap = decode(&text("PartialObjectMetadata")).unwrap();
        assert_eq!(bare.metadata.name.as_deref(), Some("web"));
        assert!(decode::<ConfigMap>(&text("Secret")).is_err());
        let partial: PartialObjectMeta<ConfigMap> = decode(&text("ConfigMap")).unwrap();
        assert_eq!(partial.metadata.name.as_deref(), Some("web"));
        assert_eq!(kind_of::<PartialObjectMeta<ConfigMap>>().name, "ConfigMap");
    }

    #[test]
    fn a_child_names_its_controller() {
        let mut owner = ConfigMap::default();
        owner.metadata.name = Some("web".into());
        owner.metadata.namespace = Some("demo".into());
        owner.metadata.uid = Some("u".into());
        let metadata = child(&owner, "web-1");
        assert_eq!(metadata.namespace.as_deref(), Some("demo"));
        let owners = serde_json::to_value(&metadata.owner_references).unwrap();
        let expected = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "web", "uid": "u", "controller": true}]);
        assert_eq!(owners, expected);
    }
}
