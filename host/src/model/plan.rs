//! What a revision would do before it does it, as specs ask for it and statuses tell it: plans, shadow runs, gates.
//!
//! Everything in a status is of a fixed size, however many objects there are.

use k8s_openapi::apimachinery::pkg::{apis::meta::v1::Time, util::intstr::IntOrString};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// When a candidate is run over the fleet without writing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PlanPolicy {
    /// As soon as it is staged, and again when that plan is stale.
    #[default]
    OnStage,
    /// When somebody asks: `nagaya plan`, or a new value of the annotation `nagaya.dev/plan`.
    Manual,
    /// Only if somebody asks the host for it: no annotation counts.
    Off,
}

/// Live runs that the candidate repeats without writing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ShadowSpec {
    /// So many of a hundred live runs; fewer where the host has no room for more.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100))]
    pub percent: u32,
}

/// Whom gates hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Enforcement {
    /// What promotes itself. A promotion by hand goes through, and an Event says what was passed over.
    #[default]
    Advise,
    /// A promotion by hand as well, whoever makes it.
    Enforce,
}

/// What is done about a revision that declares rights that the live one does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum NewRights {
    /// Nothing.
    #[default]
    Allow,
    /// It is held.
    Deny,
}

/// What must be so before a revision goes live. A gate that is absent holds nothing; none holds a rollback.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GatesSpec {
    /// Whom they hold.
    #[serde(default)]
    pub enforcement: Enforcement,
    /// At most so many primaries for which something would change: a number, or a share like `5%`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "type(self) == int ? self >= 0 : self.matches('^(100|[0-9]{1,2})%$')",
        "message": "must be a number, or a share like 5%",
    }]))]
    pub max_changed_objects: Option<IntOrString>,
    /// At most so many objects made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_creates: Option<u32>,
    /// At most so many objects deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_deletes: Option<u32>,
    /// At most so many primaries for which the candidate fails and the live revision does not, or of which it cannot be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_errors: Option<u32>,
    /// What must not change.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 50))]
    pub protected_paths: Vec<ProtectedPath>,
    /// What is done about rights that the live revision does not declare.
    #[serde(default)]
    pub new_rights: NewRights,
    /// At least so many shadow runs, and no failure or difference among them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_shadow_runs: Option<u32>,
}

/// A field of a kind, and all that is below it.
#[derive(
    Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "camelCase")]
pub struct ProtectedPath {
    /// `Kind`, or `Kind.group`.
    #[schemars(length(min = 1, max = 300))]
    pub kind: String,
    /// Fields joined by dots, as a plan shows them; `[]` is every item of a list: `spec.template.spec.containers[].image`.
    #[schemars(length(min = 1, max = 500))]
    pub path: String,
}

/// How far a plan is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PlanPhase {
    /// It is being made.
    #[default]
    Running,
    /// It is whole.
    Complete,
    /// It is whole, but what it was made of has changed since.
    Stale,
    /// It was given up; the message says why.
    Interrupted,
}

/// What a revision would change, were it live.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PlanStatus {
    /// How far it is.
    pub phase: PlanPhase,
    /// What to know or to do now, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The live revision that it is compared with.
    pub against: String,
    /// Names what it was made of: live revision, account, scope, limits, protected paths.
    pub of: String,
    /// The value of the annotation `nagaya.dev/plan` that asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// When it was begun.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When it was whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Time>,
    /// The last primary that is counted, as `namespace/name`: from there an interrupted plan goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub position: Option<String>,
    /// Primaries.
    pub objects: PlanCounts,
    /// Objects that would be made, by kind.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub creates: Vec<KindCount>,
    /// Objects that would be changed, by kind.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub updates: Vec<KindCount>,
    /// Objects that would be deleted, by kind.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deletes: Vec<KindCount>,
    /// The paths that change in most objects.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<PathCount>,
    /// Paths that are not listed.
    pub more_paths: i64,
    /// Protected paths that would change.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub protected: Vec<PathCount>,
    /// Some of what it found.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub samples: Vec<Sample>,
    /// Rights that the revision declares and the live one does not; `used` ones were needed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub new_rights: Vec<NewRight>,
    /// Rights that were needed, like `patch deployments.apps`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rights: Vec<String>,
    /// What cannot be told, and for how many primaries.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub untold: Vec<Count>,
    /// Events that would have been sent.
    pub events: i64,
}

/// Primaries of a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PlanCounts {
    /// All that there are.
    pub total: i64,
    /// Those that were looked at.
    pub looked: i64,
    /// Those for which something would change.
    pub changed: i64,
    /// Those for which the revision fails and the live one does not.
    pub failed: i64,
    /// Those for which both fail.
    pub failing_already: i64,
    /// Those of which something cannot be told.
    pub untold: i64,
    /// Objects of any kind that would be made.
    pub creates: i64,
    /// Objects that would be changed.
    pub updates: i64,
    /// Objects that would be deleted.
    pub deletes: i64,
}

/// So many objects of a kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct KindCount {
    /// `Kind`, or `Kind.group`.
    pub kind: String,
    /// Objects.
    pub objects: i64,
}

/// A path that changes in so many objects of a kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PathCount {
    /// `Kind`, or `Kind.group`.
    pub kind: String,
    /// The path.
    pub path: String,
    /// Objects.
    pub objects: i64,
    /// Three of their primaries at most.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub samples: Vec<String>,
}

/// Something that a plan found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Sample {
    /// The primary, as `namespace/name`.
    pub object: String,
    /// `Change`, `Delete`, `Error` or `Untold`.
    #[serde(rename = "type")]
    pub sort: String,
    /// For people.
    pub text: String,
}

/// A right that the live revision does not declare.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NewRight {
    /// Like `delete configmaps`.
    pub right: String,
    /// Whether the plan has needed it.
    pub used: bool,
}

/// So many times a text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Count {
    /// For people.
    pub text: String,
    /// Primaries.
    pub objects: i64,
}

/// What the candidate did on objects that the live revision had just run for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ShadowStatus {
    /// The live revision that it is compared with.
    pub against: String,
    /// Names what it was made of, as that of a plan.
    pub of: String,
    /// Runs.
    pub runs: i64,
    /// Those that would have changed something.
    pub differing: i64,
    /// Those that failed where the live revision did not.
    pub failed: i64,
    /// Those of which something cannot be told.
    pub untold: i64,
    /// Live runs that were chosen and not repeated, for want of room.
    pub skipped: i64,
    /// What was found last.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub last: Vec<Sample>,
}

/// One line of a plan on its way to whoever asked for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum PlanLine {
    /// How far it is.
    Progress {
        /// The revision.
        revision: String,
        /// Primaries that were looked at.
        looked: i64,
        /// All of them.
        total: i64,
    },
    /// A primary for which something would change, or of which there is something to say.
    Object(PlannedObject),
    /// It is whole.
    Plan {
        /// The revision.
        revision: String,
        /// What it came to.
        plan: Box<PlanStatus>,
    },
    /// It came to nothing.
    Failed {
        /// Why.
        message: String,
    },
}

/// What would become of the things of one primary.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PlannedObject {
    /// The primary, as `namespace/name`.
    pub object: String,
    /// What would change.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<PlannedChange>,
    /// Why the revision fails for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Whether the live revision fails for it as well.
    pub failing_already: bool,
    /// What cannot be told.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub untold: Vec<String>,
}

/// What a write would do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ChangeSort {
    /// It makes an object.
    Create,
    /// It changes one.
    #[default]
    Update,
    /// It deletes one.
    Delete,
}

/// What would become of one object.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PlannedChange {
    /// What happens to it.
    pub change: ChangeSort,
    /// Group and version.
    pub api_version: String,
    /// Kind.
    pub kind: String,
    /// Namespace, if it lies in one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Name; that which a dry run chose, where the server is to choose one.
    pub name: String,
    /// The fields that change; of an object that is made or deleted none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<PathChange>,
    /// As it is, without the server's bookkeeping.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub before: Value,
    /// As it would be.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub after: Value,
}

/// One field.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PathChange {
    /// Fields joined by dots, items of lists in brackets.
    pub path: String,
    /// As it is; none: there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Value>,
    /// As it would be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Value>,
}

impl PlannedChange {
    /// `Kind`, or `Kind.group`.
    pub fn named_kind(&self) -> String {
        named_kind(&self.kind, self.api_version.split_once('/').map_or("", |(group, _)| group))
    }
}

/// `Kind`, or `Kind.group`.
pub fn named_kind(kind: &str, group: &str) -> String {
    if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") }
}
