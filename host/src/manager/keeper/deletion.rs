//! The end of a controller: drained, what it leaves behind counted and told, and then let go.

use std::{sync::Arc, time::Duration};

use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;

use super::{
    super::{news, plan, running::Setup},
    AT_LEAST_EVERY, Keeper, Next,
};
use crate::{
    apiserver::{ApiServer, Error, Identity},
    crd::{FINALIZER, Phase, WasmController},
    manifest::Kind,
    rollout::Decision,
    run::Executor,
    strays::{self, carriers},
};

/// A controller that is being deleted for so long, and that no host drains, was some host's before.
const ORPHAN_AFTER: Duration = Duration::from_secs(120);

impl Keeper {
    /// The object is not this host's any more: it is gone, or `--controllers` does not select it. Then its runs are
    /// drained and it is let go, so that another host, or nobody, keeps it.
    pub(super) async fn leave(&mut self) -> Result<Next, Error> {
        let Some(controller) = self.objects.controller(&self.key).await? else {
            return Ok(Next::Gone);
        };
        if self.estate.controllers.get(&self.key).is_some() {
            return Ok(Next::At(Instant::now()));
        }
        if controller.metadata.deletion_timestamp.is_some() {
            let is_ours = self.running.is_some() || is_orphan(&controller, Timestamp::now());
            return if is_ours { self.delete(&controller).await } else { Ok(Next::Gone) };
        }
        tracing::info!(controller = %self.key, "a controller is not selected any more: it is drained and let go");
        self.end().await;
        let mut finalizers = controller.metadata.finalizers.clone().unwrap_or_default();
        if finalizers.iter().any(|name| name == FINALIZER) {
            finalizers.retain(|name| name != FINALIZER);
            self.objects.set_finalizers(&controller, &finalizers).await?;
        }
        Ok(Next::Gone)
    }

    /// Drains, warns of what stays behind, and lets the object go.
    pub(super) async fn delete(&mut self, controller: &WasmController) -> Result<Next, Error> {
        let mut finalizers = controller.metadata.finalizers.clone().unwrap_or_default();
        if !finalizers.iter().any(|name| name == FINALIZER) {
            self.end().await;
            return Ok(Next::At(Instant::now() + AT_LEAST_EVERY));
        }
        let controller = self.say_deleting(controller).await?;
        let left = self.left(&controller).await;
        self.end().await;
        if let Some((count, finalizer)) = left.filter(|(count, _)| *count != Some(0)) {
            self.estate.recorder.record(news::left_behind(&controller, count, &finalizer));
        }
        finalizers.retain(|name| name != FINALIZER);
        self.own = Some(self.objects.set_finalizers(&controller, &finalizers).await?);
        Ok(Next::At(Instant::now() + AT_LEAST_EVERY))
    }

    /// Draining takes a while, and whoever waits for it reads why.
    async fn say_deleting(&mut self, controller: &WasmController) -> Result<WasmController, Error> {
        let old = plan::status(controller);
        let decision = Decision {
            active: old.active.clone(),
            candidate: old.candidate.clone(),
            previous: old.previous.clone(),
            problem: None,
        };
        let plan = plan::plan(controller, |_| true);
        let status = self.status(controller, &plan, &old, &decision);
        if controller.status.as_ref() == Some(&status) {
            return Ok(controller.clone());
        }
        let value = serde_json::to_value(&status).unwrap_or_default();
        let written = self.objects.set_status(controller, value).await?;
        self.own = Some(written.clone());
        Ok(written)
    }

    /// How many objects carry the finalizer that nobody removes from now on, and its name; `None` of them: nobody could count.
    async fn left(&self, controller: &WasmController) -> Option<(Option<usize>, String)> {
        let status = plan::status(controller);
        let finalizer = status.finalizer.filter(|name| !name.is_empty())?;
        // A selector may hide some that carry it.
        let sees_all = |executor: &&Arc<Executor>| !strays::are_possible(&executor.view);
        if let Some(executor) = self.executors.values().next().filter(sees_all) {
            let carriers =
                executor.view.primaries().filter(|e| e.finalizers().any(|name| *name == finalizer));
            return Some((Some(carriers.count()), finalizer));
        }
        match count(&self.estate.api, controller, &status.primary?, &finalizer).await {
            Ok(count) => Some((Some(count), finalizer)),
            Err(error) => {
                tracing::warn!(controller = %self.key, finalizer, error = crate::causes::all(&error), "cannot count the objects that carry the finalizer");
                Some((None, finalizer))
            }
        }
    }
}

/// Whether a controller that no watch of this host shows waits for a host in vain: one that keeps it would have begun to
/// drain it.
fn is_orphan(controller: &WasmController, now: Timestamp) -> bool {
    let deleted = controller.metadata.deletion_timestamp.as_ref();
    let waited = deleted.map(|at| now.duration_since(at.0).unsigned_abs());
    let is_drained_elsewhere = plan::status(controller).phase == Phase::Deleting;
    waited.is_some_and(|waited| waited >= ORPHAN_AFTER) && !is_drained_elsewhere
}

/// How many objects of `primary` in the controller's scope carry `finalizer`.
async fn count(
    api: &ApiServer,
    controller: &WasmController,
    primary: &Kind,
    finalizer: &str,
) -> Result<usize, Error> {
    let Some(resource) = api.discover(primary).await? else { return Ok(0) };
    let setup = Setup::of(controller);
    let namespaces = match &setup.namespaces {
        Some(namespaces) if resource.namespaced => {
            namespaces.iter().map(|ns| Some(&**ns)).collect()
        }
        _ => vec![None],
    };
    let mut count = 0;
    for namespace in namespaces {
        // A shared kind is the host's to read, another only the account's.
        let place = (&resource, namespace);
        let own = carriers(api, place, Identity::Host, finalizer).await;
        let found = match own {
            Err(error) if error.code() == Some(403) => {
                carriers(api, place, setup.account.clone(), finalizer).await?
            }
            result => result?,
        };
        count += found.len();
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;
    use crate::crd::{WasmControllerSpec, WasmControllerStatus};

    #[test]
    fn only_what_no_host_drains_is_an_orphan() {
        let now = Timestamp::now();
        let mut controller = WasmController::new("web", WasmControllerSpec::default());
        assert!(!is_orphan(&controller, now), "nobody deletes it");
        for (ago, phase, expected) in [
            (10, Phase::Running, false),
            (119, Phase::Running, false),
            (121, Phase::Running, true),
            (9_999, Phase::Pending, true),
            (9_999, Phase::Deleting, false),
        ] {
            controller.metadata.deletion_timestamp = Some(Time(now - Duration::from_secs(ago)));
            let status = WasmControllerStatus { phase, ..WasmControllerStatus::default() };
            controller.status = Some(status);
            assert_eq!(is_orphan(&controller, now), expected, "{ago} s, {phase:?}");
        }
    }
}
