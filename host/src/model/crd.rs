//! The custom resources of `nagaya.dev/v1alpha1`: what a team asks for and what became of it.
//!
//! A field that is not built yet is absent, so that strict validation refuses it instead of ignoring it.
//! The generated YAML is in `deploy/crd/`, compared by `the_committed_crds_are_the_generated_ones`.

#![expect(unreachable_pub, reason = "KubeSchema repeats each struct inside a function")]

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{
    CustomResource, KubeSchema,
    core::{CustomResourceExt, ObjectMeta},
};
use ring::digest::{SHA256, digest};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    kind::Kind,
    manifest::{Manifest, Mapping, Projection, Watch},
    plan::{GatesSpec, PlanPolicy, PlanStatus, ShadowSpec, ShadowStatus},
};
use crate::text::cut;

/// The API group.
pub const GROUP: &str = "nagaya.dev";
/// The finalizer by which the host holds a deleted controller until its runs are drained.
pub const FINALIZER: &str = "nagaya.dev/drain";

/// The API server lets no longer message of a condition in, and counts its characters.
const MESSAGE: usize = 32_000;

/// A named reconciler with an identity, an owner and a history.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "nagaya.dev",
    version = "v1alpha1",
    kind = "WasmController",
    doc = "A Kubernetes controller whose reconciler is a WebAssembly component, run by the Nagaya host.",
    namespaced,
    shortname = "wc",
    category = "nagaya",
    status = "WasmControllerStatus",
    derive = "Default",
    derive = "PartialEq",
    validation = Rule::new("size(self.metadata.name) <= 242").message("the name may have at most 242 characters: revisions are called <name>-<10 hex>"),
    printcolumn = r#"{"name":"Phase","type":"string","jsonPath":".status.phase","description":"what the controller is doing"}"#,
    printcolumn = r#"{"name":"Active","type":"string","jsonPath":".status.active","description":"the revision that is live"}"#,
    printcolumn = r#"{"name":"Candidate","type":"string","jsonPath":".status.candidate","description":"the revision that waits for its promotion"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name":"Previous","type":"string","priority":1,"jsonPath":".status.previous","description":"the revision that a rollback returns to"}"#,
    printcolumn = r#"{"name":"Message","type":"string","priority":1,"jsonPath":".status.message","description":"what to know or to do now"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.fieldManager) == has(oldSelf.fieldManager) && (!has(self.fieldManager) || self.fieldManager == oldSelf.fieldManager)").message("fieldManager is immutable")
)]
pub struct WasmControllerSpec {
    /// The ServiceAccount of the same namespace as which every read and write is authorised.
    #[schemars(length(min = 1, max = 253))]
    pub service_account_name: String,
    /// The component.
    pub module: ModuleSpec,
    /// Free JSON, handed to the guest; a change of it is a new revision. At most 512 KiB, and 100 levels deep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-preserve-unknown-fields" = true, "type" = "object"))]
    pub config: Option<Value>,
    /// Which namespaces the controller works in; absent: the whole cluster, which needs cluster-wide rights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<ScopeSpec>,
    /// True: no other controller of this host may reconcile the same primary kind in a namespace of this one's scope.
    #[serde(default)]
    pub exclusive: bool,
    /// The field manager to write as, to take over from an operator that wrote under this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub field_manager: Option<String>,
    /// Which revision is to be live.
    #[serde(default)]
    pub rollout: RolloutSpec,
    /// Ceilings of one run and of the controller.
    #[serde(default)]
    pub limits: LimitsSpec,
    /// True: no new runs. Watches, staging and promotions go on.
    #[serde(default)]
    pub suspend: bool,
    /// How many revisions beside active, candidate and previous are kept.
    #[serde(default = "default_history", deserialize_with = "number")]
    #[schemars(range(min = 0, max = 100))]
    pub revision_history_limit: u32,
}

/// The component of a controller: one that is sent to the host, or one in a registry.
#[derive(Clone, Debug, Default, PartialEq, KubeSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.digest) != has(self.image)").message("name the component by its digest or by an image, and not by both")
)]
pub struct ModuleSpec {
    /// SHA-256 of a component uploaded to the host, as `sha256:<64 hex digits>`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(regex(pattern = r"^sha256:[0-9a-f]{64}$"))]
    pub digest: String,
    /// An OCI artifact with the component as its layer, as `registry/repository:tag` or `registry/repository@sha256:…`. A tag is
    /// resolved once; the revision names what it was then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 3, max = 600))]
    pub image: Option<String>,
}

/// What the spec's image was resolved to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ModuleStatus {
    /// The image, as the spec names it.
    pub image: String,
    /// The same by the digest of its manifest.
    pub pinned: String,
    /// The component in it.
    pub digest: String,
}

/// Where a controller works.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScopeSpec {
    /// The namespaces.
    #[schemars(length(min = 1, max = 100), extend("x-kubernetes-list-type" = "set"), inner(length(max = 63)))]
    pub namespaces: Vec<String>,
}

/// How a new revision becomes live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Strategy {
    /// It waits, compiled and with synced watches, until `rollout.active` names it.
    #[default]
    BlueGreen,
    /// It becomes active as soon as it is staged, unless `rollout.active` names another.
    Immediate,
}

/// The team's decisions.
#[derive(Clone, Debug, Default, PartialEq, KubeSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.active) || !has(self.rejected) || !(self.active in self.rejected)").message("a revision cannot be both active and rejected"),
    validation = Rule::new("!has(self.autoPromote) || !self.autoPromote || !has(self.strategy) || self.strategy == 'BlueGreen'").message("autoPromote is for the strategy BlueGreen: Immediate asks no gates"),
    validation = Rule::new("!has(self.gates) || !has(self.gates.enforcement) || self.gates.enforcement == 'Advise' || !has(self.strategy) || self.strategy == 'BlueGreen'").message("gates can be enforced with the strategy BlueGreen: Immediate asks no gates")
)]
pub struct RolloutSpec {
    /// How a new revision becomes live.
    #[serde(default)]
    pub strategy: Strategy,
    /// The revision that is to be live; empty: the one that is, else the first that is staged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub active: Option<String>,
    /// Revisions that must not go live.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), extend("x-kubernetes-list-type" = "set"), inner(length(max = 253)))]
    pub rejected: Vec<String>,
    /// When a candidate is run over the fleet without writing.
    #[serde(default)]
    pub plan: PlanPolicy,
    /// True: a staged candidate goes live by itself once its gates pass. It waits while `active` names another.
    #[serde(default)]
    pub auto_promote: bool,
    /// Live runs that the candidate repeats without writing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<ShadowSpec>,
    /// What must be so before a revision goes live.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gates: Option<GatesSpec>,
}

/// Ceilings. They act at once; they are no part of the revision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct LimitsSpec {
    /// Memory of one run, summed over all its linear memories, for example `64Mi`.
    #[schemars(regex(pattern = r"^[1-9][0-9]{0,5}(Ki|Mi|Gi)$"))]
    pub memory: String,
    /// Time in guest code of one run, for example `5s` or `250ms`; at most the 30 s of a whole run.
    #[schemars(regex(pattern = r"^[1-9][0-9]{0,5}(ms|s)$"))]
    pub deadline: String,
    /// Runs at the same time.
    #[serde(deserialize_with = "number")]
    #[schemars(range(min = 1, max = 64))]
    pub concurrency: u32,
    /// Writes a minute, in bursts of a tenth of it at most.
    #[serde(deserialize_with = "number")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub writes_per_minute: u32,
    /// Deletes an hour.
    #[serde(deserialize_with = "number")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub deletes_per_hour: u32,
}

impl Default for LimitsSpec {
    fn default() -> Self {
        Self {
            memory: "64Mi".to_owned(),
            deadline: "5s".to_owned(),
            concurrency: 8,
            writes_per_minute: 6_000,
            deletes_per_hour: 1_000,
        }
    }
}

fn default_history() -> u32 {
    5
}

/// A number that was stored before it had a maximum is read as the largest there is.
fn number<'de, D: Deserializer<'de>>(text: D) -> Result<u32, D::Error> {
    let number = serde_json::Number::deserialize(text)?;
    let whole = number.as_u64().map(|whole| u32::try_from(whole).unwrap_or(u32::MAX));
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "`as` ends at the limits"
    )]
    Ok(whole.unwrap_or_else(|| number.as_f64().unwrap_or_default() as u32))
}

/// What another version of the host has written for people, and this one does not know, decides nothing.
fn or_default<'de, D: Deserializer<'de>, T: DeserializeOwned + Default>(
    text: D,
) -> Result<T, D::Error> {
    let value = Value::deserialize(text)?;
    Ok(serde_json::from_value(value).unwrap_or_default())
}

/// What the controller is doing, in one word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// No revision has ever been live, and none can be yet.
    #[default]
    Pending,
    /// A first revision is being staged.
    Staging,
    /// The active revision runs.
    Running,
    /// `spec.suspend` is set.
    Suspended,
    /// Something keeps it from working; see the conditions.
    Degraded,
    /// It is being deleted.
    Deleting,
}

/// What became of a controller.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WasmControllerStatus {
    /// The `metadata.generation` that the host has seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// What the controller is doing.
    #[serde(default, deserialize_with = "or_default")]
    pub phase: Phase,
    /// What to know or to do now, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The revision that is live.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<String>,
    /// The staged revision that waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<String>,
    /// The revision that was live before, kept warm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<String>,
    /// Grows by one with each change of `active`; never decreases.
    #[serde(default)]
    pub executor_generation: i64,
    /// What `spec.module.image` was resolved to.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "or_default")]
    pub module: Option<ModuleStatus>,
    /// Group and kind of the primary, fixed by the first revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primary: Option<Kind>,
    /// The controller's finalizer, fixed by the first revision that went live; empty if it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finalizer: Option<String>,
    /// Other controllers of this namespace with the same primary kind.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shares_primary_with: Vec<String>,
    /// How many controllers of other namespaces have the same primary kind.
    #[serde(default)]
    pub shares_primary_elsewhere: i64,
    /// How many objects' runs keep failing; none where none do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failing_objects: Option<i64>,
    /// Ready, Progressing, Degraded; `Gated` while its gates hold the next revision; `ObjectsFailing` while the runs of some objects keep failing.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// One immutable version of a controller; made by the host.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "nagaya.dev",
    version = "v1alpha1",
    kind = "WasmRevision",
    doc = "One immutable version of a WasmController: a component and its config. Made by the host.",
    namespaced,
    shortname = "wr",
    category = "nagaya",
    status = "WasmRevisionStatus",
    derive = "PartialEq",
    printcolumn = r#"{"name":"Controller","type":"string","jsonPath":".spec.controller"}"#,
    printcolumn = r#"{"name":"Number","type":"integer","jsonPath":".spec.number"}"#,
    printcolumn = r#"{"name":"Phase","type":"string","jsonPath":".status.phase"}"#,
    printcolumn = r#"{"name":"Digest","type":"string","priority":1,"jsonPath":".spec.digest"}"#,
    printcolumn = r#"{"name":"Message","type":"string","priority":1,"jsonPath":".status.message"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self == oldSelf").message("a revision is immutable"))]
pub struct WasmRevisionSpec {
    /// The WasmController that it belongs to.
    pub controller: String,
    /// Orders the history for people; it decides nothing.
    pub number: i64,
    /// The component.
    #[schemars(regex(pattern = r"^sha256:[0-9a-f]{64}$"))]
    pub digest: String,
    /// Where the component can be pulled, by the digest of a manifest; absent: it is sent to the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The config.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-preserve-unknown-fields" = true, "type" = "object"))]
    pub config: Option<Value>,
}

impl WasmController {
    /// The component of the spec, and where it can be pulled; `None`: its image is still to be resolved.
    pub fn module(&self) -> Option<ModuleStatus> {
        let spec = &self.spec.module;
        let Some(image) = &spec.image else {
            return Some(ModuleStatus { digest: spec.digest.clone(), ..ModuleStatus::default() });
        };
        let known = self.status.as_ref().and_then(|status| status.module.clone());
        known.filter(|module| module.image == *image)
    }
}

/// Where a revision stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RevisionPhase {
    /// It waits for its component.
    #[default]
    Pending,
    /// It is being compiled, described and its watches synced.
    Loading,
    /// It could go live at once.
    Ready,
    /// It is live.
    Active,
    /// It was live; its last runs are ending.
    Draining,
    /// It is history.
    Retired,
    /// It cannot go live; the message says why.
    Failed,
}

/// What became of a revision. Of it the host reads back its plan and its shadow alone, which go on from there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WasmRevisionStatus {
    /// Where it stands.
    #[serde(default, deserialize_with = "or_default")]
    pub phase: RevisionPhase,
    /// What to know or to do now, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What the component said it needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-preserve-unknown-fields" = true, "type" = "object"))]
    pub manifest: Option<Value>,
    /// What it would change, were it live.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "or_default")]
    pub plan: Option<Box<PlanStatus>>,
    /// Whether it has ever been live: going back to it is a rollback, which no gate holds.
    #[serde(default)]
    pub was_live: bool,
    /// What it did beside the live revision.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "or_default")]
    pub shadow: Option<ShadowStatus>,
    /// Ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// Limits that do not make sense; the text is shown to the team.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadLimits(String);

impl LimitsSpec {
    /// `memory` in bytes.
    pub fn memory_bytes(&self) -> Result<u64, BadLimits> {
        let wrong = || BadLimits(format!("limits.memory {:?} is not like 64Mi", self.memory));
        let (number, shift) = [("Ki", 10), ("Mi", 20), ("Gi", 30)]
            .into_iter()
            .find_map(|(unit, shift)| Some((self.memory.strip_suffix(unit)?, shift)))
            .ok_or_else(wrong)?;
        Ok(number.parse::<u64>().map_err(|_| wrong())? << shift)
    }

    /// `deadline` as a span.
    pub fn deadline(&self) -> Result<Duration, BadLimits> {
        let wrong =
            || BadLimits(format!("limits.deadline {:?} is not like 5s or 250ms", self.deadline));
        if let Some(number) = self.deadline.strip_suffix("ms") {
            return Ok(Duration::from_millis(number.parse().map_err(|_| wrong())?));
        }
        let number = self.deadline.strip_suffix('s').ok_or_else(wrong)?;
        Ok(Duration::from_secs(number.parse().map_err(|_| wrong())?))
    }
}

/// The name of the revision of `controller` with this digest and config: the controller's name and ten hex
/// digits of SHA-256 over both, so that going back to them means going back to it.
pub fn revision_name(controller: &str, digest_text: &str, config: Option<&Value>) -> String {
    let text = format!("{digest_text}\n{}", canonical(config.unwrap_or(&Value::Null)));
    let hash = digest(&SHA256, text.as_bytes());
    format!("{controller}-{}", &hex::encode(hash.as_ref())[..10])
}

/// JSON text with sorted keys: equal values have equal texts.
pub fn canonical(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let sorted: BTreeMap<_, _> = fields.iter().collect();
            let fields: Vec<_> = sorted
                .into_iter()
                .map(|(key, value)| format!("{}:{}", Value::from(key.as_str()), canonical(value)))
                .collect();
            format!("{{{}}}", fields.join(","))
        }
        Value::Array(items) => {
            format!("[{}]", items.iter().map(canonical).collect::<Vec<_>>().join(","))
        }
        plain => plain.to_string(),
    }
}

/// SHA-256 of a text in hexadecimal, for names that would be too long.
pub fn hashed(text: &str) -> String {
    hex::encode(digest(&SHA256, text.as_bytes()).as_ref())
}

/// Puts `condition` in the place of the one of its type; its transition time moves only with its status.
pub fn set_condition(conditions: &mut Vec<Condition>, mut condition: Condition) {
    match conditions.iter_mut().find(|old| old.type_ == condition.type_) {
        Some(old) => {
            if old.status == condition.status {
                condition.last_transition_time = old.last_transition_time.clone();
            }
            *old = condition;
        }
        None => conditions.push(condition),
    }
}

/// A condition as of now.
pub fn condition(
    kind: &str,
    status: bool,
    reason: &str,
    message: &str,
    generation: Option<i64>,
) -> Condition {
    Condition {
        type_: kind.to_owned(),
        status: if status { "True" } else { "False" }.to_owned(),
        reason: reason.to_owned(),
        message: cut(message, MESSAGE).into_owned(),
        observed_generation: generation,
        last_transition_time: Time(k8s_openapi::jiff::Timestamp::now()),
    }
}

/// The watch of one of the host's own kinds.
pub fn own_watch(kind: &str) -> Watch {
    Watch {
        kind: Kind::new(&format!("{GROUP}/v1alpha1"), kind),
        projection: Projection::Full,
        label_selector: None,
        field_selector: None,
        predicate: vec![],
        mapping: Mapping::Same,
    }
}

/// Every CustomResourceDefinition as YAML, with the file's name.
pub fn definitions() -> Result<Vec<(&'static str, String)>, serde_saphyr::ser::Error> {
    Ok(vec![
        ("nagaya.dev_wasmcontrollers.yaml", serde_saphyr::to_string(&WasmController::crd())?),
        ("nagaya.dev_wasmrevisions.yaml", serde_saphyr::to_string(&WasmRevision::crd())?),
    ])
}

/// What a revision's status says of its manifest.
pub fn manifest_value(manifest: &Manifest) -> Option<Value> {
    serde_json::to_value(manifest).ok()
}

/// Namespace and name, for logs and labels: `namespace/name`.
pub fn full_name(meta: &ObjectMeta) -> String {
    format!(
        "{}/{}",
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_same_digest_and_config_name_the_same_revision() {
        let a = json!({"b": 1, "a": {"y": [1, 2], "x": null}});
        let b = json!({"a": {"x": null, "y": [1, 2]}, "b": 1});
        assert_eq!(
            revision_name("web", "sha256:1", Some(&a)),
            revision_name("web", "sha256:1", Some(&b))
        );
        assert_ne!(
            revision_name("web", "sha256:1", Some(&a)),
            revision_name("web", "sha256:1", None)
        );
        assert_ne!(revision_name("web", "sha256:1", None), revision_name("web", "sha256:2", None));
        assert_eq!(revision_name("web", "sha256:1", None).len(), "web-".len() + 10);
    }

    #[test]
    fn a_condition_keeps_its_time_until_its_status_moves() {
        let mut conditions = vec![condition("Ready", true, "A", "", None)];
        let time = Time("2026-01-01T00:00:00Z".parse().unwrap());
        conditions[0].last_transition_time = time.clone();
        set_condition(&mut conditions, condition("Ready", true, "B", "", None));
        assert_eq!(
            (&conditions[0].last_transition_time, conditions[0].reason.as_str()),
            (&time, "B")
        );
        set_condition(&mut conditions, condition("Ready", false, "B", "", None));
        assert_ne!(conditions[0].last_transition_time, time);
        assert_eq!(conditions.len(), 1);
    }

    #[test]
    fn limits_have_units() {
        let limits = LimitsSpec::default();
        assert_eq!(limits.memory_bytes().unwrap(), 64 << 20);
        assert_eq!(limits.deadline().unwrap(), Duration::from_secs(5));
        let odd = LimitsSpec { memory: "64".into(), deadline: "5".into(), ..limits };
        assert!(odd.memory_bytes().is_err() && odd.deadline().is_err());
    }

    #[test]
    fn the_committed_crds_are_the_generated_ones() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/crd");
        for (name, text) in definitions().unwrap() {
            let committed = std::fs::read_to_string(folder.join(name)).unwrap_or_default();
            assert_eq!(committed, text, "deploy/crd/{name} is old: run `cargo xtask crds`");
        }
    }
}
