//! The revisions of the controller's present setup: staged, taken, and forgotten with it.

use std::{any::Any, collections::BTreeSet, panic::AssertUnwindSafe};

use futures::FutureExt;
use tokio::{task::AbortHandle, time::Instant};

use super::{
    super::{
        loads::{Question, Taken},
        plan::{self, Plan},
        refusal::{Again, Refusal},
        running::{Running, Setup},
        stage::Staging,
    },
    Keeper, Latest, has_account,
};
use crate::{
    controller::run::Executor,
    model::{
        crd::{WasmController, WasmRevision},
        stored::Stored,
    },
};

/// A result with its target, the ticket of its attempt and the revision's name.
pub(super) type Staged = (Target, u64, String, Result<Executor, Refusal>);

/// Where a result belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// Nothing is loaded under this name.
    New,
    /// It takes the place of what is loaded.
    Renewal,
}

/// An attempt, which ends when nobody wants it any more.
#[derive(Debug)]
pub(super) struct Task(pub(super) AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Keeper {
    pub(super) fn take_staged(&mut self, (target, ticket, name, result): Staged) {
        if let Latest::Here(stored) = self.latest() {
            self.asked = question(&stored.controller);
        }
        let now = (&self.asked, *self.arrivals.borrow());
        let loads = match target {
            Target::New => &mut self.loads,
            Target::Renewal => &mut self.renewals,
        };
        match loads.finish((ticket, &name), result, now, Instant::now()) {
            Taken::Ready => {
                if let Some(renewed) = self.renewals.take(&name) {
                    self.loads.replace(&name, renewed);
                }
                tracing::info!(controller = %self.key, revision = name, "a revision is staged");
            }
            Taken::Refused(refusal) => {
                tracing::info!(controller = %self.key, revision = name, reason = refusal.reason, message = refusal.message, "a revision is not ready");
            }
            Taken::Stale => {
                tracing::debug!(controller = %self.key, revision = name, "a revision was staged for what has changed meanwhile");
            }
        }
    }

    /// Limits act at once; another account, scope or field manager drains first.
    pub(super) async fn set_up(&mut self, controller: &WasmController) {
        let setup = Setup::of(controller);
        if self.running.as_ref().is_some_and(|running| running.setup != setup) {
            self.tell_left_outside(controller, setup.namespaces.as_deref());
            self.end().await;
        }
        let lacks_rights = self.lacks_rights(controller);
        let exclusive = controller.spec.exclusive;
        self.estate.primaries.note(&self.key.to_string(), exclusive, lacks_rights);
        let conflict = self.conflict(controller).is_some();
        let estate = &self.estate;
        let running = self.running.get_or_insert_with(|| {
            Running::start(estate, (&self.key, self.door.clone()), setup, controller)
        });
        if running.set(controller, !has_account(estate, controller) || conflict) {
            self.loads.hurry(Instant::now(), |refusal| !refusal.waits);
        }
    }

    /// Whether a kind is served in another way than when a revision was staged: that one watches a place where nothing
    /// comes any more, and must be staged again.
    pub(super) async fn drop_outdated(&mut self) {
        for executor in self.loads.all_ready() {
            let missing = executor.view.blind().filter(|blind| blind.code == 404);
            let Some(blind) = missing else { continue };
            if let Ok(Some(resource)) = self.estate.host.guests.discover(&blind.kind).await {
                executor.view.learn(resource);
            }
        }
        self.loads.drop_ready(|executor| executor.view.is_outdated());
    }

    /// Loads what the plan wants and is not loaded; drops what it no longer wants.
    pub(super) fn stage(
        &mut self,
        controller: &WasmController,
        plan: &Plan,
        known: &[WasmRevision],
    ) {
        let Some(running) = &self.running else { return };
        self.asked = question(controller);
        self.loads.keep(&plan.loaded);
        // One that watches as the host a kind that is no longer shared is staged anew, beside the one that runs.
        let estranged = self.loads.all_ready().filter(|executor| executor.view.is_estranged());
        let estranged = estranged.map(|executor| executor.name.clone()).collect::<BTreeSet<_>>();
        self.renewals.keep(&estranged);
        self.stages = has_account(&self.estate, controller);
        if !self.stages {
            return;
        }
        let active = plan::status(controller).active;
        let module = self.module(controller).unwrap_or_default();
        let (now, arrivals) = (Instant::now(), *self.arrivals.borrow());
        for revision in known {
            let name = revision.metadata.name.clone().unwrap_or_default();
            let (target, loads) = if estranged.contains(&name) {
                (Target::Renewal, &mut self.renewals)
            } else {
                (Target::New, &mut self.loads)
            };
            if !plan.loaded.contains(&name) || !loads.is_due(&name, now) {
                continue;
            }
            let config = revision.spec.config.as_ref();
            let staging = Staging {
                estate: self.estate.clone(),
                shared: running.controller.shared.clone(),
                queue: running.controller.queue.clone(),
                namespaces: running.setup.namespaces.clone(),
                primary: self.asked.fixed.0.clone(),
                exclusive: self.asked.exclusive,
                finalizer: self.asked.fixed.1.clone(),
                limits: running.limits(),
                asked: self.asked.limits.clone(),
                name: name.clone(),
                is_live: active.as_ref() == Some(&name),
                image: Some(module.pinned.clone())
                    .filter(|pinned| module.digest == revision.spec.digest && !pinned.is_empty())
                    .or_else(|| revision.spec.image.clone()),
                digest: revision.spec.digest.clone(),
                config: config.map_or_else(|| "null".to_owned(), ToString::to_string).into(),
            };
            let (tasks, label) = (&mut self.staging, name.clone());
            loads.begin(&name, self.asked.clone(), arrivals, |ticket| {
                Task(tasks.spawn(async move {
                    let staged = caught(&label, staging.run()).await;
                    (target, ticket, label, staged)
                }))
            });
        }
    }

    /// A host that begins with a controller that is being deleted loads its guest once more: objects may wait for it.
    pub(super) async fn resume(&mut self, stored: &Stored) {
        let controller = &stored.controller;
        let status = plan::status(controller);
        let cleans_up = status.finalizer.is_some_and(|name| !name.is_empty());
        let Some(active) = status.active.filter(|_| cleans_up) else { return };
        self.resumes |= self.ends_since.is_none() && self.running.is_none();
        if !self.resumes {
            return;
        }
        let known = self.known(controller);
        let plan = Plan { desired: None, loaded: BTreeSet::from([active.clone()]) };
        self.name_digests(&plan, &known);
        self.set_up(controller).await;
        self.hand_over(Some(&active), status.executor_generation);
        self.stage(controller, &plan, &known);
    }

    /// Ends all runs, within the drain's limit, and forgets what was loaded: none of it is of the next setup.
    pub(super) async fn end(&mut self) {
        self.loads.clear();
        self.renewals.clear();
        self.images.clear();
        self.trials.end();
        self.staging.abort_all();
        self.resolving.abort_all();
        if let Some(running) = self.running.take() {
            running.end().await;
        }
    }
}

/// What a revision of this controller is staged for.
fn question(controller: &WasmController) -> Question {
    let status = plan::status(controller);
    Question {
        fixed: (status.primary, status.finalizer),
        exclusive: controller.spec.exclusive,
        limits: controller.spec.limits.clone(),
    }
}

/// What comes of `work` for this revision or image. A bug of the host that it has hit stops it alone.
pub(super) async fn caught<T>(
    name: &str,
    work: impl Future<Output = Result<T, Refusal>>,
) -> Result<T, Refusal> {
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|panic| {
        let panic: &(dyn Any + Send) = &*panic;
        let words = panic.downcast_ref::<&str>().copied().map(str::to_owned);
        let words = words.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        tracing::error!(what = name, panic = words, "the host panicked while it made a revision ready");
        let text = "the host panicked while it made the revision ready, which is a bug of the host: its log says where; the host tries again";
        Err(Refusal { again: Again::Growing, ..Refusal::failed("HostFault", text) })
    })
}
