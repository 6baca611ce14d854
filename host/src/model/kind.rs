//! A kind of object, as `apiVersion` and `kind` name it.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The groups of Kubernetes' own kinds.
const OF_KUBERNETES: [&str; 19] = [
    "",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "apiregistration.k8s.io",
    "apps",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "coordination.k8s.io",
    "discovery.k8s.io",
    "events.k8s.io",
    "flowcontrol.apiserver.k8s.io",
    "networking.k8s.io",
    "node.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "resource.k8s.io",
    "scheduling.k8s.io",
    "storage.k8s.io",
];

/// A kind of object as `apiVersion` and `kind` name it.
#[derive(
    Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "camelCase")]
pub struct Kind {
    /// API group; empty for the core group.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Version without the group.
    pub version: String,
    /// The kind's singular CamelCase name.
    pub kind: String,
}

impl Kind {
    /// `group/version`, or `version` alone for the core group.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.clone()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// The kind that an object's `apiVersion` and `kind` name.
    pub fn new(api_version: &str, kind: &str) -> Self {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        Self { group: group.to_owned(), version: version.to_owned(), kind: kind.to_owned() }
    }

    /// Whether Kubernetes itself has it, so that no `CustomResourceDefinition` and no other server can.
    pub fn is_built_in(&self) -> bool {
        OF_KUBERNETES.contains(&self.group.as_str())
    }

    /// Whether this is the core Secret, which is never cached with its values.
    pub fn is_secret(&self) -> bool {
        self.group.is_empty() && self.kind == "Secret"
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.group.is_empty() {
            write!(f, "{}", self.kind)
        } else {
            write!(f, "{}.{}", self.kind, self.group)
        }
    }
}

/// Group and kind agree; the version may differ, as owner references of an older version must still match.
pub fn same_kind(a: &Kind, b: &Kind) -> bool {
    a.group == b.group && a.kind == b.kind
}
