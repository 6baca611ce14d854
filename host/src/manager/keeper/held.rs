//! What the end of a controller waits for: objects that are being deleted and that only its guest can let go.
//!
//! A namespace that is deleted takes its controller, the account and its rights away while objects in it still wait for
//! the guest's finalizer. As long as the guest can work, it cleans up first. If it no longer can, the WasmController
//! stays and says what to do: in such a namespace nobody can write an Event.

use std::time::Duration;

use http::Method;
use serde_json::Value;
use tokio::time::Instant;

use super::{
    super::{plan, status::Standing},
    Keeper, has_account,
};
use crate::{
    access::view::View,
    apiserver::Call,
    model::{crd::WasmController, kind::Kind},
};

/// How often it is looked at meanwhile.
pub(super) const HELD_AGAIN: Duration = Duration::from_secs(2);
/// A guest that has not cleaned up by then will not.
const CLEAN_UP_LIMIT: Duration = Duration::from_secs(300);

/// Objects that are being deleted and carry the guest's finalizer.
struct Waiting {
    /// As kubectl takes it.
    kind: String,
    /// `None`: the API server alone knows whether there are any.
    count: Option<usize>,
    finalizer: String,
}

impl Keeper {
    /// Why the controller cannot end yet, for people.
    pub(super) async fn holds(&mut self, controller: &WasmController) -> Option<String> {
        let since = *self.ends_since.get_or_insert_with(Instant::now);
        let has_time = since.elapsed() < CLEAN_UP_LIMIT;
        let minutes = CLEAN_UP_LIMIT.as_secs() / 60;
        let status = plan::status(controller);
        let finalizer = status.finalizer.filter(|name| !name.is_empty())?;
        let active = status.active?;
        let Some(executor) = self.loads.ready(&active) else {
            if has_time && self.resumes && self.is_loading(&active) {
                return Some(format!(
                    "its revision {active} is loaded once more, because objects that are being deleted may wait for it to clean up; for {minutes} minutes at most"
                ));
            }
            let kind = status.primary.as_ref().map_or_else(String::new, by_kubectl);
            let waiting = Waiting { kind, count: None, finalizer };
            return self.unattended(controller, &waiting).await;
        };
        let view = &executor.view;
        let waiting = view.primaries().filter(|entry| {
            entry.is_deleting() && entry.finalizers().any(|name| *name == finalizer)
        });
        let count = waiting.count();
        if count == 0 || view.blind().is_some() {
            return None;
        }
        let works = has_account(&self.estate, controller)
            && view.lost_right().is_none()
            && !controller.spec.suspend
            && self.conflict(controller).is_none();
        if works {
            return has_time.then(|| {
                let objects = objects(count);
                format!(
                    "waiting for {objects} that are being deleted to be cleaned up by the guest, whose finalizer {finalizer} they carry; for {minutes} minutes at most"
                )
            });
        }
        let waiting = Waiting { kind: plural(view), count: Some(count), finalizer };
        self.unattended(controller, &waiting).await
    }

    /// Whether the revision may be live soon.
    fn is_loading(&self, revision: &str) -> bool {
        self.stages && !matches!(self.loads.standing(revision), Some(Standing::Failed(_)))
    }

    /// What to do about objects that nobody can clean up any more, where nothing else can say it: in a namespace that is
    /// being deleted.
    async fn unattended(&self, controller: &WasmController, waiting: &Waiting) -> Option<String> {
        let namespace = controller.metadata.namespace.as_deref().unwrap_or_default();
        let call = Call::new(Method::GET, format!("/api/v1/namespaces/{namespace}"));
        let seen = match self.estate.host.api.fetch::<Value>(call).await {
            Ok(seen) => seen,
            Err(error) => {
                tracing::debug!(controller = %self.key, %error, "cannot look at a namespace");
                return None;
            }
        };
        let Waiting { kind, count, finalizer } = waiting;
        let is_terminating = seen["metadata"].get("deletionTimestamp").is_some();
        let holds = is_terminating && (count.is_some() || holds_up(&seen, finalizer));
        let objects = count.map_or_else(|| "objects".to_owned(), objects);
        holds.then(|| {
            format!(
                "the namespace {namespace} is being deleted, and the account of this controller, or a right of it, went before {objects} that carry the finalizer {finalizer}: nobody can clean those up any more. Clean up by hand what they stand for, then take the finalizers off: kubectl get {kind} -n {namespace} -o name | xargs -I% kubectl patch % -n {namespace} --type merge -p '{{\"metadata\":{{\"finalizers\":null}}}}'"
            )
        })
    }
}

fn objects(count: usize) -> String {
    if count == 1 { "1 object".to_owned() } else { format!("{count} objects") }
}

/// Whether a namespace that is being deleted waits for objects that carry `finalizer`, as kube-controller-manager says in
/// the condition `NamespaceFinalizersRemaining` (`pkg/controller/namespace/deletion/status_condition_utils.go`).
fn holds_up(namespace: &Value, finalizer: &str) -> bool {
    let conditions = namespace["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|condition| {
        condition["type"] == "NamespaceFinalizersRemaining"
            && condition["status"] == "True"
            && condition["message"].as_str().is_some_and(|text| text.contains(finalizer))
    })
}

/// The reconciled kind, as kubectl takes it.
fn plural(view: &View) -> String {
    let kind = &view.manifest().primary.kind;
    match view.resource(kind) {
        Some(resource) if kind.group.is_empty() => resource.plural.clone(),
        Some(resource) => format!("{}.{}", resource.plural, kind.group),
        None => by_kubectl(kind),
    }
}

/// A kind whose plural is not known.
fn by_kubectl(kind: &Kind) -> String {
    let version = if kind.group.is_empty() { "" } else { &kind.version };
    let parts = [&*kind.kind, version, &kind.group];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_namespace_names_the_finalizers_that_it_waits_for() {
        let seen = |kind: &str, status: &str| {
            let message = "Some content in the namespace has finalizers remaining: example.io/cleanup in 2 resource instances";
            let condition = json!({ "type": kind, "status": status, "message": message });
            json!({ "status": { "conditions": [condition] } })
        };
        let it = seen("NamespaceFinalizersRemaining", "True");
        assert!(holds_up(&it, "example.io/cleanup"));
        assert!(!holds_up(&it, "example.io/other"));
        assert!(!holds_up(&seen("NamespaceFinalizersRemaining", "False"), "example.io/cleanup"));
        assert!(!holds_up(&seen("NamespaceContentRemaining", "True"), "example.io/cleanup"));
        assert!(!holds_up(&json!({}), "example.io/cleanup"));
    }

    #[test]
    fn a_kind_is_named_as_kubectl_takes_it() {
        assert_eq!(by_kubectl(&Kind::new("v1", "ConfigMap")), "ConfigMap");
        assert_eq!(by_kubectl(&Kind::new("example.io/v1", "Site")), "Site.v1.example.io");
    }
}
