//! The kinds that the fake API server serves, and what a path names.

use std::time::Duration;

use nagaya::model::kind::Kind;
use serde_json::{Value, json};

/// A kind and how it behaves.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "facts that do not exclude each other")]
pub(crate) struct Served {
    pub(crate) kind: Kind,
    pub(crate) plural: String,
    pub(crate) namespaced: bool,
    pub(crate) has_status: bool,
    /// A deleted object stays so long; `None`: it goes at once.
    pub(crate) grace: Option<Duration>,
    /// Whether `metadata.generation` counts changes.
    pub(crate) counts: bool,
    /// Whether `status.conditions` is one value instead of a list by type, as kube's derive makes it.
    pub(crate) atomic_conditions: bool,
}

impl Served {
    /// A namespaced kind with a status subresource.
    pub(crate) fn new(api_version: &str, kind: &str, plural: &str) -> Self {
        Self {
            kind: Kind::new(api_version, kind),
            plural: plural.to_owned(),
            namespaced: true,
            has_status: true,
            grace: None,
            counts: true,
            atomic_conditions: false,
        }
    }

    pub(crate) fn cluster_scoped(self) -> Self {
        Self { namespaced: false, ..self }
    }

    pub(crate) fn without_status(self) -> Self {
        Self { has_status: false, ..self }
    }

    pub(crate) fn with_grace(self, grace: Duration) -> Self {
        Self { grace: Some(grace), ..self }
    }

    pub(crate) fn with_atomic_conditions(self) -> Self {
        Self { atomic_conditions: true, ..self }
    }

    fn plain(api_version: &str, kind: &str, plural: &str) -> Self {
        Self { has_status: false, counts: false, ..Self::new(api_version, kind, plural) }
    }

    /// Whether the server lists its objects without apiVersion and kind, as it does with its own kinds.
    pub(crate) fn is_built_in(&self) -> bool {
        !self.kind.group.contains('.') || self.kind.group.ends_with(".k8s.io")
    }
}

/// What every test finds: some kinds of Kubernetes, the host's own, `Site` and the cluster-scoped `Zone`.
pub(crate) fn usual() -> Vec<Served> {
    vec![
        Served::plain("v1", "ConfigMap", "configmaps"),
        Served::plain("v1", "Secret", "secrets"),
        Served::plain("v1", "ServiceAccount", "serviceaccounts"),
        Served::new("v1", "Service", "services"),
        Served::new("v1", "Namespace", "namespaces").cluster_scoped(),
        Served::new("v1", "Node", "nodes").cluster_scoped(),
        Served::new("v1", "Pod", "pods").with_grace(Duration::from_secs(30)),
        Served::new("apps/v1", "Deployment", "deployments"),
        Served::new("apps/v1", "StatefulSet", "statefulsets"),
        Served::new("batch/v1", "Job", "jobs"),
        Served::plain("events.k8s.io/v1", "Event", "events"),
        Served::plain("coordination.k8s.io/v1", "Lease", "leases"),
        Served::new("nagaya.dev/v1alpha1", "WasmController", "wasmcontrollers"),
        Served::new("nagaya.dev/v1alpha1", "WasmRevision", "wasmrevisions"),
        Served::new("example.io/v1", "Site", "sites"),
        Served::new("example.io/v1", "Zone", "zones").cluster_scoped(),
    ]
}

/// What the server says of one group and version; `None` if it serves nothing of it.
pub(crate) fn discovery(served: &[Served], api_version: &str) -> Option<Value> {
    let mut resources = vec![];
    for one in served.iter().filter(|one| one.kind.api_version() == api_version) {
        let resource = |name: String| {
            json!({
                "name": name, "singularName": "", "namespaced": one.namespaced, "kind": one.kind.kind,
                "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"],
            })
        };
        resources.push(resource(one.plural.clone()));
        if one.has_status {
            resources.push(resource(format!("{}/status", one.plural)));
        }
    }
    (!resources.is_empty()).then(|| {
        json!({
            "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version,
            "resources": resources,
        })
    })
}

/// What a path names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) api_version: String,
    pub(crate) namespace: Option<String>,
    pub(crate) plural: String,
    pub(crate) name: Option<String>,
    pub(crate) subresource: Option<String>,
}

impl Target {
    /// Of `/api/v1/…` and `/apis/group/version/…`; an empty plural: the discovery document.
    pub(crate) fn parse(path: &str) -> Option<Self> {
        let mut segments = path.split('/').skip(1).map(decoded).collect::<Vec<_>>();
        let core = match segments.first().map(String::as_str) {
            Some("api") => true,
            Some("apis") => false,
            _ => return None,
        };
        let length = if core { 2 } else { 3 };
        if segments.len() < length {
            return None;
        }
        let rest = segments.split_off(length);
        let api_version = segments[1..].join("/");
        let is_in_namespace = rest.len() > 2 && rest[0] == "namespaces" && rest[2] != "status";
        let (namespace, rest) =
            if is_in_namespace { (Some(rest[1].clone()), &rest[2..]) } else { (None, &rest[..]) };
        let mut rest = rest.iter().cloned();
        Some(Self {
            api_version,
            namespace,
            plural: rest.next().unwrap_or_default(),
            name: rest.next(),
            subresource: rest.next(),
        })
    }
}

/// Without percent-encoding.
pub(crate) fn decoded(text: &str) -> String {
    let mut bytes = vec![];
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let hex = |one: Option<u8>| one.and_then(|c| char::from(c).to_digit(16));
        match byte {
            b'%' => {
                let (high, low) = (hex(rest.next()), hex(rest.next()));
                bytes.push(u8::try_from(high.unwrap() * 16 + low.unwrap()).unwrap());
            }
            b'+' => bytes.push(b' '),
            other => bytes.push(other),
        }
    }
    String::from_utf8(bytes).unwrap()
}

#[test]
fn a_path_names_what_the_server_would_take_it_for() {
    let parse = |path| {
        let Target { api_version, namespace, plural, name, subresource } =
            Target::parse(path).unwrap();
        [api_version, namespace.unwrap_or_default(), plural]
            .into_iter()
            .chain(name)
            .chain(subresource)
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(parse("/api/v1"), "v1  ");
    assert_eq!(parse("/api/v1/namespaces/demo"), "v1  namespaces demo");
    assert_eq!(parse("/api/v1/namespaces/demo/configmaps/a%3Ab"), "v1 demo configmaps a:b");
    assert_eq!(
        parse("/apis/example.io/v1/namespaces/demo/sites/web/status"),
        "example.io/v1 demo sites web status"
    );
    assert_eq!(parse("/apis/example.io/v1/zones"), "example.io/v1  zones");
    assert_eq!(Target::parse("/readyz"), None);
}
