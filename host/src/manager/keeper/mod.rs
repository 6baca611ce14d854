//! Keeps one WasmController: stages its revisions, decides who is live, and says in status what became of it.
//!
//! A pass reads the object and what exists, writes the decision to the status, and only then hands it to the running
//! controller: after a crash the last accepted intent alone decides what runs. A pass that changes nothing
//! writes nothing. What was accepted runs whatever else goes wrong: a write that fails, a candidate, an object that cannot
//! be read.

mod deletion;
mod held;
mod images;
mod load;
mod preview;
mod rights;
mod tell;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinSet,
    time::Instant,
};

use super::{
    estate::Estate,
    least,
    loads::{Loads, Question},
    objects::{Objects, Version},
    patience::Patience,
    plan::{self, Plan},
    refusal::Refusal,
    running::Running,
    unfit::Looks,
};
use crate::{
    apiserver::Error,
    controller::{rollout::Rollout, run::Executor},
    fail,
    leader::fence::Claim,
    model::{
        crd::{self, FINALIZER, ModuleStatus, WasmController, WasmRevision},
        object::ObjectKey,
        stored::{self, Stored, Unreadable},
    },
    watch::{Entry, Query},
};
use load::{Staged, Task};
use tell::STATUS;

pub use preview::PlanAsk;
use preview::Trials;
use rights::Unheard;

/// How often a controller is looked at even if nothing has changed.
const AT_LEAST_EVERY: Duration = Duration::from_secs(60);
/// How often a standby looks for modules that the leader has taken.
const WARM_AGAIN: Duration = Duration::from_secs(5);
/// The same while its kind is somebody's alone: who comes and goes does not wake it.
const WHILE_CONTESTED: Duration = Duration::from_secs(5);
/// Two looks for want of something else are so far apart.
const NOT_BEFORE: Duration = Duration::from_secs(1);
/// Questions for a plan that wait.
const ASKS: usize = 8;
/// What a keeper writes besides the status.
const REVISION: &str = "the WasmRevision";
const FINALIZERS: &str = "the finalizer";
const HISTORY: &str = "the history";

/// The task of one WasmController.
pub(super) struct Keeper {
    key: ObjectKey,
    estate: Arc<Estate>,
    objects: Objects,
    wake: Arc<Notify>,
    stop: watch::Receiver<bool>,
    claim: watch::Receiver<Option<Claim>>,
    arrivals: watch::Receiver<u64>,
    /// Others begin and end to ask for their kinds alone.
    rivals: watch::Receiver<BTreeSet<String>>,
    /// What the API server answered to the last write, until the cache shows it.
    own: Option<Stored>,
    /// Revisions as the API server answered, until the cache shows them.
    own_revisions: BTreeMap<String, WasmRevision>,
    running: Option<Running>,
    loads: Loads<Executor, Task>,
    /// What is to take the place of a revision that is loaded, while that one runs on.
    renewals: Loads<Executor, Task>,
    /// What is known of the spec's image.
    images: Loads<ModuleStatus, Task>,
    resolving: JoinSet<images::Answered>,
    /// What the end of the controller waits for, and since when it is to end.
    held: Option<String>,
    ends_since: Option<Instant>,
    /// Whether a revision is loaded to clean up for a controller that was being deleted when this host began to keep it.
    resumes: bool,
    /// What a revision's account lacks to tell people of their objects.
    unheard: Option<Unheard>,
    /// What was asked at the last pass.
    asked: Question,
    /// Whether anything can be staged.
    stages: bool,
    staging: JoinSet<Staged>,
    /// Plans and shadow of what would go live next.
    trials: Trials,
    /// Who asks for a plan.
    asks: mpsc::Receiver<PlanAsk>,
    /// The other end, for whoever lists the controller.
    door: mpsc::Sender<PlanAsk>,
    /// Writes that have failed.
    patience: Patience,
    /// A write was refused because the cache is behind: its next event, or a moment, brings the next pass.
    is_behind: bool,
    /// Why the object cannot be read, as it was logged.
    unreadable: Option<String>,
    /// Whether the primary kind has a place for the condition of a refused object.
    looks: Looks,
}

/// The loop of a controller ended by itself: the host must not go on with half of it.
#[derive(Debug, thiserror::Error)]
#[error("the loop of controller {0} ended unexpectedly")]
pub struct Died(pub(super) String);

enum Next {
    Gone,
    At(Instant),
}

enum Heard {
    Nothing,
    Staged(Staged),
    Resolved(images::Answered),
    Arrival,
    Asked(PlanAsk),
    Ended,
    Stop,
}

/// The object as it was last seen or written.
enum Latest {
    Gone,
    Unreadable(Arc<Entry>, Unreadable),
    Here(Box<Stored>),
}

impl Keeper {
    pub(super) fn new(
        key: ObjectKey,
        estate: Arc<Estate>,
        wake: Arc<Notify>,
        stop: watch::Receiver<bool>,
    ) -> Self {
        let (door, asks) = mpsc::channel(ASKS);
        Self {
            objects: Objects { api: estate.host.api.clone(), claim: estate.claim.clone() },
            claim: estate.claim.clone(),
            arrivals: estate.host.modules.arrivals(),
            rivals: estate.primaries.changes(),
            key,
            estate,
            wake,
            stop,
            own: None,
            own_revisions: BTreeMap::new(),
            running: None,
            loads: Loads::default(),
            renewals: Loads::default(),
            images: Loads::default(),
            resolving: JoinSet::new(),
            held: None,
            ends_since: None,
            resumes: false,
            unheard: None,
            asked: Question::default(),
            stages: false,
            staging: JoinSet::new(),
            trials: Trials::default(),
            asks,
            door,
            patience: Patience::default(),
            is_behind: false,
            unreadable: None,
            looks: Looks::default(),
        }
    }

    /// Keeps the controller until it is gone or the host stops.
    pub(super) async fn run(mut self) -> Result<(), Died> {
        let is_gone = loop {
            let Next::At(next) = self.pass().await else { break true };
            if self.wait(next).await? {
                break false;
            }
        };
        let name = self.key.to_string();
        self.estate.host.modules.forget(&name);
        self.estate.primaries.forget(&name);
        self.end().await;
        if is_gone {
            self.estate.host.metrics.forget(&name);
            self.estate.host.journals.forget(&name);
        }
        Ok(())
    }

    /// Waits for a reason to look again; true: the host stops.
    async fn wait(&mut self, until: Instant) -> Result<bool, Died> {
        let heard = tokio::select! {
            () = self.wake.notified() => Heard::Nothing,
            // One that was ended has no result.
            Some(result) = self.staging.join_next() => result.map_or(Heard::Nothing, Heard::Staged),
            Some(Ok(answered)) = self.resolving.join_next() => Heard::Resolved(answered),
            Ok(()) = self.arrivals.changed() => Heard::Arrival,
            // Bytes may have come while another host took them.
            Ok(()) = self.claim.changed() => Heard::Arrival,
            Ok(()) = self.rivals.changed() => Heard::Nothing,
            () = self.trials.changed() => Heard::Nothing,
            Some(ask) = self.asks.recv() => Heard::Asked(ask),
            ended = unrest(&mut self.running) => if ended { Heard::Ended } else { Heard::Nothing },
            () = tokio::time::sleep_until(until) => Heard::Nothing,
            _ = self.stop.wait_for(|stop| *stop) => Heard::Stop,
        };
        match heard {
            Heard::Nothing => (),
            Heard::Staged(result) => self.take_staged(result),
            Heard::Resolved(answered) => self.take_resolved(answered),
            Heard::Arrival => {
                self.loads.hurry(Instant::now(), Refusal::lacks_bytes);
            }
            Heard::Asked(ask) => self.answer(&ask),
            Heard::Ended => return Err(Died(self.key.to_string())),
            Heard::Stop => return Ok(true),
        }
        Ok(false)
    }

    async fn pass(&mut self) -> Next {
        let holds = self.claim.borrow().as_ref().is_some_and(Claim::holds);
        let stored = match self.latest() {
            Latest::Gone if holds => return self.leave().await,
            Latest::Gone => return Next::Gone,
            Latest::Unreadable(entry, why) => return self.keep_unreadable(&entry, &why).await,
            Latest::Here(stored) => *stored,
        };
        self.unreadable = None;
        if !self.claim.borrow().as_ref().is_some_and(Claim::holds) {
            return self.keep_warm(&stored).await;
        }
        if stored.controller.metadata.deletion_timestamp.is_some() {
            self.resume(&stored).await;
            return self.delete(stored).await;
        }
        let Stored { controller, unusable } = self.hold(stored).await;
        let mut known = self.known(&controller);
        self.resolve(&controller);
        let plan = self.plan(&controller, unusable.is_none(), &known);
        if let Some(made) = self.make_revision(&controller, &plan, &known).await {
            known.push(made);
        }
        self.name_digests(&plan, &known);
        self.set_up(&controller).await;
        let accepted = plan::status(&controller);
        // What was accepted waits for nothing of what follows.
        self.hand_over(accepted.active.as_deref(), accepted.executor_generation);
        self.drop_outdated().await;
        self.stage(&controller, &plan, &known);
        self.listen(&controller, &plan).await;
        let live = accepted.active.and_then(|name| self.loads.ready(&name)).cloned();
        self.looks.look(&self.estate.host.api, live.as_ref().map(|live| &*live.view)).await;
        self.preview(&controller, &plan, &known);
        let gated = self.gated(&controller, &plan, &known);
        self.decide(&controller, &plan, (unusable.as_deref(), gated)).await;
        let controller = match self.latest() {
            Latest::Here(stored) => stored.controller,
            _ => controller,
        };
        self.tell_revisions(&controller, &plan, &known).await;
        self.end_history(&controller, &plan, &known).await;
        let primary = plan::status(&controller).primary;
        let contested = primary.is_some_and(|it| self.estate.primaries.is_contested(&it));
        self.next(if contested { WHILE_CONTESTED } else { AT_LEAST_EVERY })
    }

    /// The next look: so much later at the latest. What is due and was not begun by this one waits for something else.
    fn next(&mut self, at_most: Duration) -> Next {
        let now = Instant::now();
        let soonest = now + NOT_BEFORE;
        let behind = std::mem::take(&mut self.is_behind).then_some(soonest);
        // Without its account nothing is staged: a time that has come would come again at once, for ever.
        let staging = [self.loads.next_due(), self.renewals.next_due(), self.images.next_due()];
        let staging = staging.into_iter().flatten();
        let staging = staging.min().filter(|_| self.stages);
        let unheard = self.unheard.as_ref().and_then(Unheard::next_due);
        let dues = [staging, self.patience.next_due(), unheard, behind, Some(now + at_most)];
        Next::At(dues.into_iter().flatten().min().unwrap_or(now + at_most).max(soonest))
    }

    /// A write did not work: it is tried again later, and told once.
    fn put_off(&mut self, what: &str, error: &Error) {
        self.own = None;
        if matches!(error.code(), Some(404 | 409)) {
            self.is_behind = true;
            return;
        }
        let why = crate::causes::all(error);
        if self.patience.failed(what, &why, Instant::now()) {
            tracing::warn!(controller = %self.key, what, error = why, "cannot write, and what was accepted runs on; the host tries again");
        }
    }

    /// Puts the host's finalizer on the object, so that its end can be drained.
    async fn hold(&mut self, stored: Stored) -> Stored {
        let meta = &stored.controller.metadata;
        let mut finalizers = meta.finalizers.clone().unwrap_or_default();
        let has_it = finalizers.iter().any(|name| name == FINALIZER);
        if has_it || !self.patience.may(FINALIZERS, Instant::now()) {
            return stored;
        }
        finalizers.push(FINALIZER.to_owned());
        match self.objects.set_finalizers(&Version::of(meta), &finalizers).await {
            Ok(written) => {
                self.patience.worked(FINALIZERS);
                self.own = Some(written.clone());
                written
            }
            Err(error) => {
                self.put_off(FINALIZERS, &error);
                stored
            }
        }
    }

    fn plan(&self, controller: &WasmController, has_config: bool, known: &[WasmRevision]) -> Plan {
        let module = self.module(controller).filter(|_| has_config);
        // One that is loaded can run on even if somebody has deleted its object.
        plan::plan(controller, module.as_ref().map(|module| &*module.digest), |name| {
            is_known(known, name) || self.loads.ready(name).is_some()
        })
    }

    async fn make_revision(
        &mut self,
        controller: &WasmController,
        plan: &Plan,
        known: &[WasmRevision],
    ) -> Option<WasmRevision> {
        let desired = plan.desired.as_ref().filter(|name| !is_known(known, name));
        let Some(desired) = desired else {
            self.patience.worked(REVISION);
            return None;
        };
        let module = self.module(controller)?;
        if !self.patience.may(REVISION, Instant::now()) {
            return None;
        }
        let revision = plan::new_revision(controller, (desired, &module), known);
        match self.objects.create_revision(&revision).await {
            Ok(made) => {
                fail::point("cr-written");
                self.patience.worked(REVISION);
                self.own_revisions.insert(desired.clone(), made.clone());
                Some(made)
            }
            Err(error) => {
                self.put_off(REVISION, &error);
                None
            }
        }
    }

    async fn end_history(
        &mut self,
        controller: &WasmController,
        plan: &Plan,
        known: &[WasmRevision],
    ) {
        for revision in plan::history(controller, plan, known) {
            if !self.patience.may(HISTORY, Instant::now()) {
                return;
            }
            let name = revision.metadata.name.as_deref().unwrap_or_default();
            match self.objects.delete_revision(revision).await {
                Ok(()) => {
                    fail::point("gc");
                    self.patience.worked(HISTORY);
                    self.own_revisions.remove(name);
                    self.estate.host.metrics.forget_revision(&self.key.to_string(), name);
                }
                Err(error) => self.put_off(HISTORY, &error),
            }
        }
    }

    /// A standby stages what the leader runs and what it would run next, and writes nothing.
    async fn keep_warm(&mut self, stored: &Stored) -> Next {
        self.trials.end();
        let (controller, again) = (&stored.controller, Instant::now() + WARM_AGAIN);
        if controller.metadata.deletion_timestamp.is_some() {
            return Next::At(again);
        }
        let known = self.known(controller);
        let plan = self.plan(controller, stored.unusable.is_none(), &known);
        self.name_digests(&plan, &known);
        self.set_up(controller).await;
        // The leader takes the uploads: what is missing is looked for in the folder that they share.
        self.loads.hurry(Instant::now(), Refusal::lacks_bytes);
        self.stage(controller, &plan, &known);
        let status = plan::status(controller);
        let active = status.active.as_ref().and_then(|name| self.loads.ready(name)).cloned();
        if let Some(running) = &self.running {
            running
                .controller
                .set_rollout(Rollout { active, generation: status.executor_generation });
        }
        Next::At(again)
    }

    /// What runs goes on as it is, and the object says why nothing else happens.
    async fn keep_unreadable(&mut self, entry: &Entry, why: &Unreadable) -> Next {
        let text = format!(
            "this host cannot read the WasmController, so what runs goes on as it was: {why}. Set the field to what `kubectl explain wasmcontroller.spec` says, or have the host brought up to date"
        );
        if self.unreadable.as_ref() != Some(&text) {
            tracing::error!(controller = %self.key, %why, "a WasmController cannot be read; what runs goes on as it was");
        }
        self.unreadable = Some(text.clone());
        if !self.claim.borrow().as_ref().is_some_and(Claim::holds) {
            return self.next(AT_LEAST_EVERY);
        }
        if entry.is_deleting() {
            return self.delete_unreadable(entry).await;
        }
        let fields = least::unreadable(entry.body(), entry.generation(), &text);
        if let Some(fields) = fields.filter(|_| self.patience.may(STATUS, Instant::now())) {
            let at = Version::of_entry(entry);
            match self.objects.set_fields_of_status(&at, fields).await {
                Ok(()) => drop(self.patience.worked(STATUS)),
                Err(error) => self.put_off(STATUS, &error),
            }
        }
        self.next(AT_LEAST_EVERY)
    }

    fn latest(&mut self) -> Latest {
        let Some(entry) = self.estate.controllers.get(&self.key) else { return Latest::Gone };
        let cached = match stored::controller(entry.body()) {
            Ok(cached) => cached,
            Err(why) => return Latest::Unreadable(entry, why),
        };
        let is_newer =
            |own: &mut Stored| is_newer(&own.controller.metadata, &cached.controller.metadata);
        self.own = self.own.take_if(is_newer);
        Latest::Here(Box::new(self.own.clone().unwrap_or(cached)))
    }

    /// The controller's revisions; one that somebody made by hand under a wrong name is none.
    fn known(&mut self, controller: &WasmController) -> Vec<WasmRevision> {
        let query = Query { owner: controller.metadata.uid.as_deref(), ..Query::default() };
        let mut found: BTreeMap<String, WasmRevision> = BTreeMap::new();
        let (entries, _) = self.estate.revisions.list(&query);
        for revision in entries.iter().filter_map(|entry| stored::revision(entry.body()).ok()) {
            let name = revision.metadata.name.clone().unwrap_or_default();
            let made_of = crd::revision_name(
                &self.key.name,
                &revision.spec.digest,
                revision.spec.config.as_ref(),
            );
            if name == made_of
                && revision.metadata.namespace.as_deref() == self.key.namespace.as_deref()
            {
                found.insert(name, revision);
            }
        }
        self.own_revisions.retain(|name, own| {
            found.get(name).is_none_or(|cached| is_newer(&own.metadata, &cached.metadata))
        });
        found.extend(self.own_revisions.clone());
        found.into_values().collect()
    }

    /// Before the status says that this generation was seen, its bytes are welcome.
    fn name_digests(&self, plan: &Plan, known: &[WasmRevision]) {
        let wanted = |revision: &&WasmRevision| {
            let name = revision.metadata.name.as_ref();
            name.is_some_and(|name| {
                plan.desired.as_ref() == Some(name) || plan.loaded.contains(name)
            })
        };
        let digests =
            known.iter().filter(wanted).filter_map(|revision| revision.spec.digest.parse().ok());
        self.estate.host.modules.name(&self.key.to_string(), digests.collect::<HashSet<_>>());
    }
}

fn is_known(known: &[WasmRevision], name: &str) -> bool {
    known.iter().any(|revision| revision.metadata.name.as_deref() == Some(name))
}

/// Returns when the running controller has something to tell; true: its loop has ended.
async fn unrest(running: &mut Option<Running>) -> bool {
    let Some(running) = running else { return std::future::pending().await };
    tokio::select! {
        _ = running.trouble.changed() => false,
        _ = running.tasks.join_next() => true,
    }
}

fn has_account(estate: &Estate, controller: &WasmController) -> bool {
    let namespace = controller.metadata.namespace.as_deref();
    estate.accounts.get(&ObjectKey::new(namespace, &controller.spec.service_account_name)).is_some()
}

fn is_newer(own: &ObjectMeta, cached: &ObjectMeta) -> bool {
    let version = |meta: &ObjectMeta| {
        crate::watch::envelope::Version::parse(meta.resource_version.as_deref().unwrap_or_default())
    };
    own.uid == cached.uid && version(own) > version(cached)
}
