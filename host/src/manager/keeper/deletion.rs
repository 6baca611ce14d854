//! The end of a controller: drained, what it leaves behind counted and told, and then let go.

use std::{sync::Arc, time::Duration};

use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;

use super::{
    super::{news, objects::Version, plan, running::Setup},
    AT_LEAST_EVERY, FINALIZERS, Keeper, Next,
    held::HELD_AGAIN,
};
use crate::{
    apiserver::{ApiServer, Error},
    controller::{
        rollout::Decision,
        run::Executor,
        strays::{self, carriers},
    },
    leader::fence::Claim,
    model::{
        crd::{FINALIZER, Phase, WasmController},
        kind::Kind,
        stored::Stored,
    },
    watch::Entry,
};

/// A controller that is being deleted for so long, and that no host drains, was some host's before.
const ORPHAN_AFTER: Duration = Duration::from_secs(120);
/// Counting may not hold up the end for longer.
const COUNT_LIMIT: Duration = Duration::from_secs(10);

impl Keeper {
    /// The object is not this host's any more: it is gone, or `--controllers` does not select it. Then its runs are
    /// drained and it is let go, so that another host, or nobody, keeps it.
    pub(super) async fn leave(&mut self) -> Next {
        let stored = match self.objects.controller(&self.key).await {
            Ok(Some(stored)) => stored,
            Ok(None) => return Next::Gone,
            Err(error) => {
                self.put_off(FINALIZERS, &error);
                return self.next(AT_LEAST_EVERY);
            }
        };
        if self.estate.controllers.get(&self.key).is_some() {
            return Next::At(Instant::now());
        }
        let meta = &stored.controller.metadata;
        if meta.deletion_timestamp.is_some() {
            let is_ours = self.running.is_some() || is_orphan(&stored.controller, Timestamp::now());
            return if is_ours { self.delete(stored).await } else { Next::Gone };
        }
        tracing::info!(controller = %self.key, "a controller is not selected any more: it is drained and let go");
        self.end().await;
        let finalizers = meta.finalizers.clone().unwrap_or_default();
        if finalizers.iter().any(|name| name == FINALIZER) {
            let at = Version::of(meta);
            if !self.let_go(&at, finalizers).await {
                return self.next(AT_LEAST_EVERY);
            }
        }
        Next::Gone
    }

    /// Drains, warns of what stays behind, and lets the object go.
    pub(super) async fn delete(&mut self, stored: Stored) -> Next {
        let finalizers = stored.controller.metadata.finalizers.clone().unwrap_or_default();
        if !finalizers.iter().any(|name| name == FINALIZER) {
            self.end().await;
            return self.next(AT_LEAST_EVERY);
        }
        if !self.patience.may(FINALIZERS, Instant::now()) {
            return self.next(AT_LEAST_EVERY);
        }
        self.held = self.holds(&stored.controller).await;
        let controller = self.say_deleting(stored).await;
        if self.held.is_some() {
            return self.next(HELD_AGAIN);
        }
        // What could not be let go before was counted and told before.
        let is_first = self.patience.why(FINALIZERS).is_none();
        let left = if is_first { self.left(&controller).await } else { None };
        self.end().await;
        // After the drain nothing is loaded again, although the finalizer may still have to be taken off.
        self.resumes = false;
        if let Some((count, finalizer)) = left.filter(|(count, _)| *count != Some(0)) {
            self.estate.host.recorder.record(news::left_behind(&controller, count, &finalizer));
        }
        self.let_go(&Version::of(&controller.metadata), finalizers).await;
        self.next(AT_LEAST_EVERY)
    }

    /// The same of an object that cannot be read.
    pub(super) async fn delete_unreadable(&mut self, entry: &Entry) -> Next {
        self.end().await;
        let finalizers: Vec<String> = entry.finalizers().map(str::to_owned).collect();
        let is_held = finalizers.iter().any(|name| name == FINALIZER);
        if !is_held || !self.patience.may(FINALIZERS, Instant::now()) {
            return self.next(AT_LEAST_EVERY);
        }
        self.let_go(&Version::of_entry(entry), finalizers).await;
        self.next(AT_LEAST_EVERY)
    }

    /// Takes the host's finalizer off; whether it is off.
    async fn let_go(&mut self, at: &Version, mut finalizers: Vec<String>) -> bool {
        finalizers.retain(|name| name != FINALIZER);
        match self.objects.set_finalizers(at, &finalizers).await {
            Ok(written) => self.own = Some(written),
            // What cannot be read has been written all the same.
            Err(Error::Answer(_)) => (),
            Err(error) => {
                self.put_off(FINALIZERS, &error);
                return false;
            }
        }
        self.patience.worked(FINALIZERS);
        true
    }

    /// Draining takes a while, and whoever waits for it reads why. It does not wait for that to be written.
    async fn say_deleting(&mut self, stored: Stored) -> WasmController {
        let controller = stored.controller;
        let old = plan::status(&controller);
        let decision = Decision {
            active: old.active,
            candidate: old.candidate,
            previous: old.previous,
            problem: None,
        };
        let module = self.module(&controller).filter(|_| stored.unusable.is_none());
        let digest = module.as_ref().map(|module| &*module.digest);
        let plan = plan::plan(&controller, digest, |_| true);
        let status = self.status(&controller, &plan, &decision, (None, None));
        self.write_status(&controller, &status).await;
        self.own.as_ref().map_or(controller, |own| own.controller.clone())
    }

    /// Warns of objects that carry the finalizer in a namespace that is not among `namespaces`, the new scope.
    pub(super) fn tell_left_outside(
        &self,
        controller: &WasmController,
        namespaces: Option<&[Arc<str>]>,
    ) {
        let status = plan::status(controller);
        let live = status.active.and_then(|name| self.loads.ready(&name));
        let (Some(namespaces), Some(finalizer), Some(live)) = (namespaces, status.finalizer, live)
        else {
            return;
        };
        let is_outside = |entry: &Arc<Entry>| {
            let namespace = entry.key().namespace.as_ref();
            namespace.is_some_and(|namespace| !namespaces.contains(namespace))
                && entry.finalizers().any(|name| *name == finalizer)
        };
        let count = live.view.primaries().filter(is_outside).count();
        if count > 0 && self.claim.borrow().as_ref().is_some_and(Claim::holds) {
            self.estate.host.recorder.record(news::left_outside(controller, count, &finalizer));
        }
    }

    /// How many objects carry the finalizer that nobody removes from now on, and its name; `None` of them: nobody could count.
    async fn left(&self, controller: &WasmController) -> Option<(Option<usize>, String)> {
        let status = plan::status(controller);
        let finalizer = status.finalizer.filter(|name| !name.is_empty())?;
        // A selector may hide some that carry it.
        let sees_all = |executor: &&Arc<Executor>| !strays::are_possible(&executor.view);
        if let Some(executor) = self.loads.all_ready().next().filter(sees_all) {
            let carriers =
                executor.view.primaries().filter(|e| e.finalizers().any(|name| *name == finalizer));
            return Some((Some(carriers.count()), finalizer));
        }
        let primary = status.primary?;
        let counted = count(&self.estate.host.api, controller, &primary, &finalizer);
        let why = match tokio::time::timeout(COUNT_LIMIT, counted).await {
            Ok(Ok(count)) => return Some((Some(count), finalizer)),
            Ok(Err(error)) => crate::causes::all(&error),
            Err(_) => format!("there are too many to count within {COUNT_LIMIT:?}"),
        };
        tracing::warn!(controller = %self.key, finalizer, error = why, "cannot count the objects that carry the finalizer");
        Some((None, finalizer))
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

/// How many objects of `primary` in the controller's scope carry `finalizer`, as the account sees them: what the host may
/// read besides is none of its team's.
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
        let place = (&resource, namespace);
        count += carriers(api, place, setup.account.clone(), finalizer).await?.len();
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;
    use crate::model::crd::{WasmControllerSpec, WasmControllerStatus};

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
