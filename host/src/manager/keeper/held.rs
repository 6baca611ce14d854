//! What the end of a controller waits for: objects that are being deleted and that only its guest can let go.
//!
//! A namespace that is deleted takes its controller, the account and its rights away while objects in it still wait for
//! the guest's finalizer. As long as the guest can work, it cleans up first. If it no longer can, the WasmController
//! stays and says what to do: in such a namespace nobody can write an Event.

use std::time::Duration;

use http::Method;
use serde_json::Value;
use tokio::time::Instant;

use super::{super::plan, Keeper, has_account};
use crate::{apiserver::Call, crd::WasmController, view::View};

/// How often it is looked at meanwhile.
pub(super) const HELD_AGAIN: Duration = Duration::from_secs(2);
/// A guest that has not cleaned up by then will not.
const CLEAN_UP_LIMIT: Duration = Duration::from_secs(300);

impl Keeper {
    /// Why the controller cannot end yet, for people.
    pub(super) async fn holds(&mut self, controller: &WasmController) -> Option<String> {
        let since = *self.ends_since.get_or_insert_with(Instant::now);
        let status = plan::status(controller);
        let finalizer = status.finalizer.filter(|name| !name.is_empty())?;
        let view = &self.loads.ready(&status.active?)?.view;
        let waiting = view.primaries().filter(|entry| {
            entry.is_deleting() && entry.finalizers().any(|name| *name == finalizer)
        });
        let count = waiting.count();
        if count == 0 || view.blind().is_some() {
            return None;
        }
        let objects = if count == 1 { "1 object".to_owned() } else { format!("{count} objects") };
        let works = has_account(&self.estate, controller)
            && view.lost_right().is_none()
            && !controller.spec.suspend
            && self.conflict(controller).is_none();
        if works {
            return (since.elapsed() < CLEAN_UP_LIMIT).then(|| {
                format!(
                    "waiting for {objects} that are being deleted to be cleaned up by the guest, whose finalizer {finalizer} they carry; for {} minutes at most",
                    CLEAN_UP_LIMIT.as_secs() / 60
                )
            });
        }
        let namespace = controller.metadata.namespace.as_deref().unwrap_or_default();
        self.is_terminating(namespace).await.then(|| {
            let kind = plural(view);
            format!(
                "the namespace {namespace} is being deleted, and the account of this controller, or a right of it, went before {objects} that carry the finalizer {finalizer}: nobody can clean those up any more. Clean up by hand what they stand for, then take the finalizers off: kubectl get {kind} -n {namespace} -o name | xargs -I% kubectl patch % -n {namespace} --type merge -p '{{\"metadata\":{{\"finalizers\":null}}}}'"
            )
        })
    }

    /// Whether the namespace is being deleted; no, where the host may not look.
    async fn is_terminating(&self, namespace: &str) -> bool {
        let call = Call::new(Method::GET, format!("/api/v1/namespaces/{namespace}"));
        match self.estate.api.fetch::<Value>(call).await {
            Ok(object) => object["metadata"].get("deletionTimestamp").is_some(),
            Err(error) => {
                tracing::debug!(controller = %self.key, %error, "cannot look at a namespace");
                false
            }
        }
    }
}

/// The reconciled kind, as kubectl takes it.
fn plural(view: &View) -> String {
    let kind = &view.manifest().primary.kind;
    match view.resource(kind) {
        Some(resource) if kind.group.is_empty() => resource.plural.clone(),
        Some(resource) => format!("{}.{}", resource.plural, kind.group),
        None => kind.to_string(),
    }
}
