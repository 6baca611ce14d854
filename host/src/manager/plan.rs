//! Decides which revisions of a controller are loaded and which are history; pure.
//!
//! Invariants: `what_may_still_run_is_never_forgotten`, `the_desired_revision_is_made_once`.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::model::crd::{
    self, ModuleStatus, WasmController, WasmControllerStatus, WasmRevision, WasmRevisionSpec,
};

/// The names that matter to a controller now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// The revision of the spec's digest and config; none if that config cannot be used.
    pub(super) desired: Option<String>,
    /// The revisions to load and keep warm.
    pub(super) loaded: BTreeSet<String>,
}

/// Which revisions `controller` needs, given those that exist; `digest`: the component of the spec, if it is known and the spec's
/// config can be used.
pub(super) fn plan(
    controller: &WasmController,
    digest: Option<&str>,
    exists: impl Fn(&str) -> bool,
) -> Plan {
    let name = controller.metadata.name.as_deref().unwrap_or_default();
    let (spec, status) = (&controller.spec, status(controller));
    let desired = digest.map(|digest| crd::revision_name(name, digest, spec.config.as_ref()));
    let rejected = |name: &String| spec.rollout.rejected.contains(name);
    let mut loaded = BTreeSet::from_iter(status.active.clone());
    loaded.extend(status.previous.filter(|name| !rejected(name)));
    loaded.extend(spec.rollout.active.clone());
    loaded.extend(desired.clone().filter(|name| !rejected(name)));
    loaded.retain(|name| Some(name) == desired.as_ref() || exists(name));
    Plan { desired, loaded }
}

/// The revision of the spec's digest and config, to be created.
pub(super) fn new_revision(
    controller: &WasmController,
    (name, module): (&str, &ModuleStatus),
    known: &[WasmRevision],
) -> WasmRevision {
    let meta = &controller.metadata;
    let owner = OwnerReference {
        api_version: format!("{}/v1alpha1", crd::GROUP),
        kind: "WasmController".to_owned(),
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    };
    let spec = WasmRevisionSpec {
        controller: owner.name.clone(),
        number: known
            .iter()
            .map(|revision| revision.spec.number)
            .max()
            .unwrap_or(0)
            .saturating_add(1),
        digest: module.digest.clone(),
        image: Some(module.pinned.clone()).filter(|pinned| !pinned.is_empty()),
        config: controller.spec.config.clone(),
    };
    let metadata = ObjectMeta {
        name: Some(name.to_owned()),
        namespace: meta.namespace.clone(),
        labels: meta.labels.clone(),
        owner_references: Some(vec![owner]),
        ..ObjectMeta::default()
    };
    WasmRevision { metadata, spec, status: None }
}

/// The revisions beyond `spec.revisionHistoryLimit`, oldest first; none that is loaded.
pub(super) fn history<'a>(
    controller: &WasmController,
    plan: &Plan,
    known: &'a [WasmRevision],
) -> Vec<&'a WasmRevision> {
    let name = |revision: &WasmRevision| revision.metadata.name.clone().unwrap_or_default();
    let mut past: Vec<_> =
        known.iter().filter(|revision| !plan.loaded.contains(&name(revision))).collect();
    past.retain(|revision| Some(name(revision)) != plan.desired);
    past.sort_by_key(|revision| revision.spec.number);
    let keep = usize::try_from(controller.spec.revision_history_limit).unwrap_or(usize::MAX);
    past.truncate(past.len().saturating_sub(keep));
    past
}

/// The status, or the one of an object that has none yet.
pub(super) fn status(controller: &WasmController) -> WasmControllerStatus {
    controller.status.clone().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::crd::{ModuleSpec, RolloutSpec, WasmControllerSpec};

    fn controller(
        active: Option<&str>,
        previous: Option<&str>,
        rollout: RolloutSpec,
    ) -> WasmController {
        let spec = WasmControllerSpec {
            module: ModuleSpec { digest: "sha256:2".into(), image: None },
            rollout,
            revision_history_limit: 1,
            ..WasmControllerSpec::default()
        };
        let mut controller = WasmController::new("web", spec);
        controller.status = Some(WasmControllerStatus {
            active: active.map(Into::into),
            previous: previous.map(Into::into),
            ..WasmControllerStatus::default()
        });
        controller
    }

    fn revision(name: &str, number: i64) -> WasmRevision {
        let spec = WasmRevisionSpec {
            controller: "web".into(),
            number,
            digest: "sha256:1".into(),
            image: None,
            config: None,
        };
        WasmRevision::new(name, spec)
    }

    #[test]
    fn what_may_still_run_is_never_forgotten() {
        let known: Vec<_> = (1..=6).map(|number| revision(&format!("v{number}"), number)).collect();
        let rollout = RolloutSpec { active: Some("v3".into()), ..RolloutSpec::default() };
        let controller = controller(Some("v1"), Some("v2"), rollout);
        let plan = plan(&controller, Some("sha256:2"), |name| name.starts_with('v'));
        let desired = crd::revision_name("web", "sha256:2", None);
        assert_eq!(plan.loaded, ["v1", "v2", "v3", &desired].map(str::to_owned).into());
        let gone: Vec<_> =
            history(&controller, &plan, &known).iter().map(|r| r.spec.number).collect();
        assert_eq!(gone, [4, 5], "one of the history is kept");
    }

    #[test]
    fn a_rejected_revision_is_loaded_only_if_it_runs() {
        let desired = crd::revision_name("web", "sha256:2", None);
        let rejected =
            RolloutSpec { rejected: vec![desired.clone(), "v1".into()], ..RolloutSpec::default() };
        let plan_of = |active| {
            plan(&controller(active, Some("v1"), rejected.clone()), Some("sha256:2"), |_| true)
                .loaded
        };
        assert_eq!(plan_of(Some("v0")), ["v0".to_owned()].into());
        assert_eq!(plan_of(Some(&desired)), [desired.clone()].into());
    }

    #[test]
    fn a_config_that_cannot_be_used_leaves_what_runs() {
        let controller = controller(Some("v1"), Some("v0"), RolloutSpec::default());
        let plan = plan(&controller, None, |_| true);
        assert_eq!((plan.desired, plan.loaded), (None, ["v0", "v1"].map(str::to_owned).into()));
    }

    #[test]
    fn the_desired_revision_is_made_once() {
        let controller = controller(None, None, RolloutSpec::default());
        let plan = plan(&controller, Some("sha256:2"), |_| false);
        let desired = plan.desired.clone().unwrap();
        let module = controller.module().unwrap();
        let made = new_revision(&controller, (&desired, &module), &[revision("v1", 7)]);
        assert_eq!((made.metadata.name.as_ref(), made.spec.number), (Some(&desired), 8));
        let last = new_revision(&controller, (&desired, &module), &[revision("v1", i64::MAX)]);
        assert_eq!(last.spec.number, i64::MAX, "made by hand");
        assert_eq!(made.spec.digest, "sha256:2");
        let again = super::plan(&controller, Some("sha256:2"), |name| name == desired);
        assert_eq!(again, plan);
    }
}
