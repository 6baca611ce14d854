//! Decides who is live, writes it, hands it over, and tells what became of each revision.
//!
//! A decision runs once it is written. One that cannot be written changes nothing: what was accepted before runs on, or
//! starts to, and the write is tried again.

use std::collections::BTreeSet;

use tokio::time::Instant;

use super::{
    super::{
        least, news,
        plan::{self, Plan},
        running::Running,
        status::{self, Facts, Gated, Standing},
    },
    Keeper, REVISION, has_account,
    preview::next_names,
};
use crate::{
    apiserver::Error,
    controller::rollout::{self, Decision, Rollout, Stage, Wanted},
    fail,
    model::crd::{self, WasmController, WasmControllerStatus, WasmRevision, WasmRevisionStatus},
};

/// Whether what a status decides is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    Before,
    Now,
    No,
}

/// What a keeper writes.
pub(super) const STATUS: &str = "the status";

impl Keeper {
    /// Writes the decision, then hands it over.
    pub(super) async fn decide(
        &mut self,
        controller: &WasmController,
        plan: &Plan,
        (unusable, gated): (Option<&str>, Option<Gated>),
    ) {
        let old = plan::status(controller);
        let rollout = &controller.spec.rollout;
        let intent = Wanted {
            strategy: rollout.strategy,
            named: rollout.active.as_deref().filter(|name| !name.is_empty()),
            rejected: &rollout.rejected,
            desired: plan.desired.as_deref().unwrap_or_default(),
            active: old.active.as_deref(),
            previous: old.previous.as_deref(),
            auto: rollout.auto_promote && gated.as_ref().is_some_and(|it| it.held.is_empty()),
            held: gated.as_ref().filter(|it| it.holds()).map(|it| it.revision.as_str()),
        };
        let decision = rollout::decide(&intent, |name| match self.loads.standing(name) {
            Some(Standing::Ready) => Stage::Ready,
            Some(Standing::Staging(_)) => Stage::Staging,
            Some(Standing::Failed(_)) => Stage::Failed,
            None if plan.loaded.contains(name) => Stage::Staging,
            None => Stage::Unknown,
        });
        let status = self.status(controller, plan, &decision, (unusable, gated.as_ref()));
        let written = self.write_status(controller, &status).await;
        if written != Written::No {
            self.hand_over(status.active.as_deref(), status.executor_generation);
        }
        if written == Written::Now {
            // A promotion by hand of what a gate would have held.
            let passed = gated.as_ref().filter(|gated| {
                status.active != old.active && status.active.as_ref() == Some(&gated.revision)
            });
            let passed = passed.and_then(Gated::passed_over);
            for event in news::between(controller, (&old, &status), passed) {
                self.estate.host.recorder.record(event);
            }
        }
    }

    /// Makes a revision what runs from now on; nothing runs while it is not loaded.
    pub(super) fn hand_over(&self, active: Option<&str>, generation: i64) {
        let Some(running) = &self.running else { return };
        let active = active.and_then(|name| self.loads.ready(name)).cloned();
        running.controller.set_rollout(Rollout { active, generation });
    }

    /// Writes a status if it is news.
    pub(super) async fn write_status(
        &mut self,
        controller: &WasmController,
        status: &WasmControllerStatus,
    ) -> Written {
        if controller.status.as_ref() == Some(status) {
            self.patience.worked(STATUS);
            return Written::Before;
        }
        let bare = least::bare(status);
        let has_bare = controller.status.as_ref() == Some(&bare);
        let before = if has_bare { Written::Before } else { Written::No };
        if !self.patience.may(STATUS, Instant::now()) {
            return before;
        }
        let Err(error) = self.try_status(controller, status).await else {
            self.patience.worked(STATUS);
            return Written::Now;
        };
        self.miss_status(&error);
        if has_bare || !is_refused_for_its_content(&error) {
            return before;
        }
        match self.try_status(controller, &bare).await {
            Ok(()) => Written::Now,
            Err(_) => before,
        }
    }

    async fn try_status(
        &mut self,
        controller: &WasmController,
        status: &WasmControllerStatus,
    ) -> Result<(), Error> {
        let value = serde_json::to_value(status).unwrap_or_default();
        let written = self.objects.set_status(controller, value).await?;
        if status.active != plan::status(controller).active {
            fail::point("intent-cas");
        }
        self.own = Some(written);
        Ok(())
    }

    fn miss_status(&mut self, error: &Error) {
        self.put_off(STATUS, error);
        // A deletion that was faster is no fault either.
        if !matches!(error.code(), Some(404 | 409)) {
            self.estate.host.metrics.status_not_written(&self.key.to_string());
        }
    }

    pub(super) fn status(
        &self,
        controller: &WasmController,
        plan: &Plan,
        decision: &Decision,
        (unusable, gated): (Option<&str>, Option<&Gated>),
    ) -> WasmControllerStatus {
        let old = plan::status(controller);
        let active = decision.active.as_ref().and_then(|name| self.loads.ready(name));
        let manifest = active.map(|executor| executor.view.manifest());
        let primary = old.primary.clone().or_else(|| Some(manifest?.primary.kind.clone()));
        let finalizer = old.finalizer.clone();
        let finalizer = finalizer.or_else(|| Some(manifest?.finalizer.clone().unwrap_or_default()));
        let swapped = decision.active != old.active;
        let unresolved = self.unresolved(controller);
        let (desired, desired_standing) = match &unresolved {
            Some((image, standing)) => (Some(&**image), standing.clone()),
            None => {
                let desired = plan.desired.as_deref();
                (desired, desired.and_then(|name| self.loads.standing(name)))
            }
        };
        let is_gone = |name: &String| !plan.loaded.contains(name);
        let mut trouble = self.running.as_ref().map(Running::trouble).unwrap_or_default();
        trouble.blind = self.blind(decision.active.as_deref());
        // What is to be live has not run yet.
        trouble.breakdown = trouble.breakdown.filter(|_| !swapped);
        let facts = Facts {
            controller,
            decision,
            desired: desired.unwrap_or_default(),
            desired_standing,
            module: controller.spec.module.image.as_ref().and_then(|_| self.module(controller)),
            active_standing: decision.active.as_deref().and_then(|name| self.loads.standing(name)),
            generation: old.executor_generation.saturating_add(i64::from(swapped)),
            sharing: primary
                .as_ref()
                .map(|kind| self.estate.primaries.sharing(&self.key.to_string(), kind))
                .unwrap_or_default(),
            primary,
            finalizer,
            account_missing: !has_account(&self.estate, controller),
            trouble,
            conflict: self.conflict(controller),
            over_ceiling: self.estate.host.over_ceiling(&controller.spec.limits),
            unheard: self.unheard(),
            unfit: self.looks.found(),
            module_lost: active.is_some_and(|active| !self.estate.host.modules.has(&active.digest)),
            deleting: controller.metadata.deletion_timestamp.is_some(),
            held: self.held.clone(),
            unusable,
            gated: gated.filter(|_| !swapped),
            not_made: self.patience.why(REVISION),
            active_gone: decision.active.as_ref().is_some_and(is_gone),
        };
        facts.status()
    }

    /// What is in the way of a controller that has been live.
    pub(super) fn conflict(&self, controller: &WasmController) -> Option<String> {
        controller.status.as_ref()?.primary.as_ref()?;
        self.estate.primaries.in_the_way_of(&self.key.to_string())
    }

    pub(super) async fn tell_revisions(
        &mut self,
        controller: &WasmController,
        plan: &Plan,
        known: &[WasmRevision],
    ) {
        let next = next_names(controller, plan, known);
        let active = plan::status(controller).active;
        let breakdown = self.running.as_ref().and_then(|running| running.trouble().breakdown);
        let mut told = BTreeSet::new();
        for revision in known {
            let name = revision.metadata.name.clone().unwrap_or_default();
            let ready = self.loads.ready(&name);
            let manifest = ready.and_then(|executor| crd::manifest_value(executor.view.manifest()));
            // What is wanted and not begun, for want of its account, is no history.
            let wanted = || plan.loaded.contains(&name).then_some(Standing::Staging(None));
            let standing = self.loads.standing(&name).or_else(wanted);
            let refused = match &standing {
                Some(Standing::Failed(refusal) | Standing::Staging(Some(refusal))) => {
                    refusal.manifest.as_deref().and_then(crd::manifest_value)
                }
                _ => None,
            };
            let manifest = manifest.or(refused);
            let is_active = active.as_deref() == Some(&name);
            let breakdown = breakdown.as_deref().filter(|_| is_active);
            let standing = (standing.as_ref(), is_active);
            let mut new = status::revision(revision.status.as_ref(), standing, breakdown, manifest);
            (new.plan, new.shadow) = self.told_of(controller, revision, &next);
            new.was_live |= is_active;
            let what = format!("{STATUS} of {name}");
            let answered = self.tell_revision(revision, &new, &what).await;
            told.insert(what);
            if !answered {
                // Each of the others would wait as long for the same.
                return;
            }
        }
        let of_revision = format!("{STATUS} of ");
        self.patience.keep(|what| !what.starts_with(&of_revision) || told.contains(what));
    }

    /// False: the API server did not answer.
    async fn tell_revision(
        &mut self,
        revision: &WasmRevision,
        new: &WasmRevisionStatus,
        what: &str,
    ) -> bool {
        if revision.status.as_ref() == Some(new) {
            self.patience.worked(what);
            return true;
        }
        if !self.patience.may(what, Instant::now()) {
            return true;
        }
        let name = revision.metadata.name.clone().unwrap_or_default();
        let value = serde_json::to_value(new).unwrap_or_default();
        match self.objects.set_revision_status(revision, value).await {
            Ok(written) => {
                self.patience.worked(what);
                self.own_revisions.insert(name, written);
            }
            Err(error) if error.code() == Some(404) => drop(self.own_revisions.remove(&name)),
            Err(error) => {
                let own = self.own.take();
                self.put_off(what, &error);
                self.own = own;
                return error.code().is_some();
            }
        }
        true
    }
}

/// Whether less of it might be let in: too large for the server or its etcd, or against the schema that it has.
fn is_refused_for_its_content(error: &Error) -> bool {
    matches!(error.code(), Some(400 | 413 | 422 | 500))
}
