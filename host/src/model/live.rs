//! How a controller does at this moment, as the host serves it and `nagaya get` shows it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The group of the host's own API, behind the API server.
pub const GROUP: &str = "run.nagaya.dev";
/// Its version.
pub const VERSION: &str = "v1alpha1";

/// A WasmController with all that belongs to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Live {
    /// The WasmController as the host sees it.
    pub controller: Value,
    /// Its WasmRevisions.
    pub revisions: Vec<Value>,
    /// `None`: nothing runs.
    pub queue: Option<Queue>,
    /// What the live revision watches.
    pub watches: Vec<Watch>,
}

/// The objects that wait for a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Queue {
    /// Objects that could run now.
    pub ready: usize,
    /// Objects that wait for a time of their own: retries, and runs that were asked for later.
    pub later: usize,
    /// Objects whose run is under way.
    pub running: usize,
    /// How long the longest of these has run, in milliseconds.
    pub longest_millis: u64,
}

/// One watch of a revision.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Watch {
    /// Group and version, as in `apiVersion`.
    pub api_version: String,
    /// Kind.
    pub kind: String,
    /// Of this namespace; none: of all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Whether its first list was complete.
    pub synced: bool,
    /// Objects in its cache, which others may use as well.
    pub objects: usize,
    /// Bytes of their texts.
    pub bytes: usize,
    /// Why it fails at present.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}
