//! Keeps one WasmController: stages its revisions, decides who is live, and says in status what became of it.
//!
//! A pass reads the object and what exists, writes the decision to the status, and only then hands it to the running
//! controller: after a crash the last accepted intent alone decides what runs (R80). A pass that changes nothing
//! writes nothing.

mod deletion;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tokio::{
    sync::{Notify, watch},
    task::{AbortHandle, JoinSet},
    time::Instant,
};

use super::{
    news,
    objects::{Objects, typed},
    plan::{self, Plan},
    running::{Running, Setup},
    stage::{Host, Refusal, Staging},
    status::{self, Facts, Standing},
    unfit::Looks,
};
use crate::{
    apiserver::{ApiServer, Error},
    crd::{self, FINALIZER, WasmController, WasmControllerStatus, WasmRevision},
    events::Recorder,
    fail,
    fence::Claim,
    metrics::Metrics,
    places::Places,
    rollout::{self, Decision, Intent, Rollout, Stage},
    run::Executor,
    watch::{Cache, ObjectKey, Query},
};

/// How often a controller is looked at even if nothing has changed.
const AT_LEAST_EVERY: Duration = Duration::from_secs(60);
/// How often a standby looks for modules that the leader has taken.
const WARM_AGAIN: Duration = Duration::from_secs(5);
/// The same while its kind is somebody's alone: who comes and goes does not wake it.
const WHILE_CONTESTED: Duration = Duration::from_secs(5);
/// The pause after a failed pass.
const AFTER_ERROR: Duration = Duration::from_secs(1);

/// What every keeper needs of the host.
#[derive(Clone, Debug)]
pub(super) struct Estate {
    pub(super) api: ApiServer,
    /// For what guests ask.
    pub(super) guests: ApiServer,
    pub(super) staging: Host,
    pub(super) recorder: Recorder,
    pub(super) metrics: Metrics,
    pub(super) places: Places,
    pub(super) claim: watch::Receiver<Option<Claim>>,
    pub(super) reachable: watch::Receiver<bool>,
    pub(super) write_timeout: Duration,
    pub(super) controllers: Arc<Cache>,
    pub(super) revisions: Arc<Cache>,
    pub(super) accounts: Arc<Cache>,
}

/// The task of one WasmController.
pub(super) struct Keeper {
    key: ObjectKey,
    estate: Estate,
    objects: Objects,
    wake: Arc<Notify>,
    stop: watch::Receiver<bool>,
    claim: watch::Receiver<Option<Claim>>,
    arrivals: watch::Receiver<u64>,
    /// Others begin and end to ask for their kinds alone.
    rivals: watch::Receiver<BTreeSet<String>>,
    /// What the API server answered to the last write, until the cache shows it.
    own: Option<WasmController>,
    /// Revisions as the API server answered, until the cache shows them.
    own_revisions: BTreeMap<String, WasmRevision>,
    running: Option<Running>,
    executors: BTreeMap<String, Arc<Executor>>,
    refusals: BTreeMap<String, (Refusal, Option<Instant>)>,
    staging: JoinSet<(String, Result<Executor, Refusal>)>,
    /// What is being staged, and how many modules had arrived when that began.
    staged: BTreeMap<String, (AbortHandle, u64)>,
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

type Staged = Result<(String, Result<Executor, Refusal>), tokio::task::JoinError>;

enum Heard {
    Nothing,
    Staged(Staged),
    Arrival,
    Ended,
    Stop,
}

impl Keeper {
    pub(super) fn new(
        key: ObjectKey,
        estate: Estate,
        wake: Arc<Notify>,
        stop: watch::Receiver<bool>,
    ) -> Self {
        Self {
            objects: Objects { api: estate.api.clone(), claim: estate.claim.clone() },
            claim: estate.claim.clone(),
            arrivals: estate.staging.modules.arrivals(),
            rivals: estate.staging.primaries.changes(),
            key,
            estate,
            wake,
            stop,
            own: None,
            own_revisions: BTreeMap::new(),
            running: None,
            executors: BTreeMap::new(),
            refusals: BTreeMap::new(),
            staging: JoinSet::new(),
            staged: BTreeMap::new(),
            looks: Looks::default(),
        }
    }

    /// Keeps the controller until it is gone or the host stops.
    pub(super) async fn run(mut self) -> Result<(), Died> {
        loop {
            let next = match self.pass().await {
                Ok(Next::Gone) => break,
                Ok(Next::At(at)) => at,
                Err(error) => {
                    // A conflict only says that the cache is behind; its next event brings the next pass.
                    if error.code() != Some(409) {
                        tracing::warn!(controller = %self.key, error = crate::causes::all(&error), "cannot keep a controller");
                    }
                    self.own = None;
                    Instant::now() + AFTER_ERROR
                }
            };
            if self.wait(next).await? {
                break;
            }
        }
        self.estate.staging.modules.forget(&self.key.to_string());
        self.estate.staging.primaries.forget(&self.key.to_string());
        self.end().await;
        Ok(())
    }

    /// Waits for a reason to look again; true: the host stops.
    async fn wait(&mut self, until: Instant) -> Result<bool, Died> {
        let heard = tokio::select! {
            () = self.wake.notified() => Heard::Nothing,
            Some(result) = self.staging.join_next() => Heard::Staged(result),
            Ok(()) = self.arrivals.changed() => Heard::Arrival,
            // Bytes may have come while another host took them.
            Ok(()) = self.claim.changed() => Heard::Arrival,
            Ok(()) = self.rivals.changed() => Heard::Nothing,
            ended = unrest(&mut self.running) => if ended { Heard::Ended } else { Heard::Nothing },
            () = tokio::time::sleep_until(until) => Heard::Nothing,
            _ = self.stop.wait_for(|stop| *stop) => Heard::Stop,
        };
        match heard {
            Heard::Nothing => (),
            Heard::Staged(result) => self.take_staged(result),
            Heard::Arrival => {
                self.refusals.retain(|_, (refusal, _)| refusal.reason != "ModuleMissing");
            }
            Heard::Ended => return Err(Died(self.key.to_string())),
            Heard::Stop => return Ok(true),
        }
        Ok(false)
    }

    fn take_staged(&mut self, result: Staged) {
        let Ok((name, result)) = result else { return };
        let Some((_, arrivals)) = self.staged.remove(&name) else { return };
        match result {
            Ok(executor) => {
                tracing::info!(controller = %self.key, revision = name, "a revision is staged");
                self.refusals.remove(&name);
                self.executors.insert(name, Arc::new(executor));
            }
            Err(refusal) => {
                tracing::info!(controller = %self.key, revision = name, reason = refusal.reason, message = refusal.message, "a revision is not ready");
                // Its bytes may have come after it had looked, and before anybody knew that it waits for them.
                let missed =
                    refusal.reason == "ModuleMissing" && *self.arrivals.borrow() != arrivals;
                let pause = if missed { Some(Duration::ZERO) } else { refusal.retry };
                let retry = pause.map(|pause| Instant::now() + pause);
                self.refusals.insert(name, (refusal, retry));
            }
        }
    }

    async fn pass(&mut self) -> Result<Next, Error> {
        let holds = self.claim.borrow().as_ref().is_some_and(Claim::holds);
        let Some(mut controller) = self.latest() else {
            return if holds { self.leave().await } else { Ok(Next::Gone) };
        };
        if !self.claim.borrow().as_ref().is_some_and(Claim::holds) {
            return Ok(self.keep_warm(&controller).await);
        }
        if controller.metadata.deletion_timestamp.is_some() {
            return self.delete(&controller).await;
        }
        let mut finalizers = controller.metadata.finalizers.clone().unwrap_or_default();
        if !finalizers.iter().any(|name| name == FINALIZER) {
            finalizers.push(FINALIZER.to_owned());
            controller = self.objects.set_finalizers(&controller, &finalizers).await?;
            self.own = Some(controller.clone());
        }
        let mut known = self.known(&controller);
        let is_known = |name: &str| {
            known.iter().any(|revision| revision.metadata.name.as_deref() == Some(name))
        };
        let plan = plan::plan(&controller, is_known);
        if !is_known(&plan.desired) {
            let revision = plan::new_revision(&controller, &plan.desired, &known);
            let made = self.objects.create_revision(&revision).await?;
            fail::point("cr-written");
            self.own_revisions.insert(plan.desired.clone(), made.clone());
            known.push(made);
        }
        self.name_digests(&plan, &known);
        self.set_up(&controller).await;
        self.drop_outdated().await;
        self.stage(&controller, &plan, &known);
        let live = plan::status(&controller).active;
        let live = live.and_then(|name| self.executors.get(&name)).cloned();
        self.looks.look(&self.estate.api, live.as_ref().map(|live| &*live.view)).await;
        self.decide(&controller, &plan).await?;
        let controller = self.latest().unwrap_or(controller);
        self.tell_revisions(&controller, &plan, &known).await;
        for revision in plan::history(&controller, &plan, &known) {
            self.objects.delete_revision(revision).await?;
            fail::point("gc");
            self.own_revisions.remove(revision.metadata.name.as_deref().unwrap_or_default());
        }
        let resting = self.refusals.iter().filter(|(name, _)| !self.staged.contains_key(*name));
        // Without its account nothing is staged: a time that has come would come again at once, for ever.
        let account = has_account(&self.estate, &controller);
        let soonest = resting.filter_map(|(_, (_, retry))| *retry).min().filter(|_| account);
        let primary = plan::status(&controller).primary;
        let contested = primary.is_some_and(|it| self.estate.staging.primaries.is_contested(&it));
        let latest = Instant::now() + if contested { WHILE_CONTESTED } else { AT_LEAST_EVERY };
        Ok(Next::At(soonest.map_or(latest, |at| at.min(latest))))
    }

    /// A standby stages what the leader runs and what it would run next, and writes nothing (R28).
    async fn keep_warm(&mut self, controller: &WasmController) -> Next {
        let again = Instant::now() + WARM_AGAIN;
        if controller.metadata.deletion_timestamp.is_some() {
            return Next::At(again);
        }
        let known = self.known(controller);
        let is_known = |name: &str| {
            known.iter().any(|revision| revision.metadata.name.as_deref() == Some(name))
        };
        let plan = plan::plan(controller, is_known);
        self.name_digests(&plan, &known);
        self.set_up(controller).await;
        // The leader takes the uploads: what is missing is looked for in the folder that they share.
        self.refusals.retain(|_, (refusal, _)| refusal.reason != "ModuleMissing");
        self.stage(controller, &plan, &known);
        let status = plan::status(controller);
        let active = status.active.as_ref().and_then(|name| self.executors.get(name)).cloned();
        if let Some(running) = &self.running {
            running
                .controller
                .set_rollout(Rollout { active, generation: status.executor_generation });
        }
        Next::At(again)
    }

    /// The object as it was last seen or written.
    fn latest(&mut self) -> Option<WasmController> {
        let cached: Option<WasmController> = typed(&*self.estate.controllers.get(&self.key)?);
        let cached = cached?;
        match self.own.take_if(|own| is_newer(&own.metadata, &cached.metadata)) {
            Some(own) => {
                self.own = Some(own.clone());
                Some(own)
            }
            None => {
                self.own = None;
                Some(cached)
            }
        }
    }

    /// The controller's revisions; one that somebody made by hand under a wrong name is none (U10).
    fn known(&mut self, controller: &WasmController) -> Vec<WasmRevision> {
        let query = Query { owner: controller.metadata.uid.as_deref(), ..Query::default() };
        let mut found: BTreeMap<String, WasmRevision> = BTreeMap::new();
        for revision in self
            .estate
            .revisions
            .list(&query)
            .0
            .iter()
            .filter_map(|entry| typed::<WasmRevision>(entry))
        {
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
            let name = revision.metadata.name.as_deref().unwrap_or_default();
            name == plan.desired || plan.loaded.contains(name)
        };
        let digests =
            known.iter().filter(wanted).filter_map(|revision| revision.spec.digest.parse().ok());
        self.estate.staging.modules.name(&self.key.to_string(), digests.collect::<HashSet<_>>());
    }

    /// Limits act at once; another account, scope or field manager drains first.
    async fn set_up(&mut self, controller: &WasmController) {
        let setup = Setup::of(controller);
        if self.running.as_ref().is_some_and(|running| running.setup != setup) {
            self.end().await;
        }
        self.estate.staging.primaries.note(&self.key.to_string(), controller.spec.exclusive);
        let conflict = self.conflict(controller).is_some();
        let estate = &self.estate;
        let running = self
            .running
            .get_or_insert_with(|| Running::start(estate, &self.key, setup, controller));
        if running.set(controller, !has_account(estate, controller) || conflict) {
            self.refusals.retain(|_, (refusal, _)| refusal.waits);
        }
    }

    /// Whether a kind is served in another way than when a revision was staged: that one watches a place where nothing
    /// comes any more, and must be staged again.
    async fn drop_outdated(&mut self) {
        for executor in self.executors.values() {
            let missing = executor.view.blind().filter(|blind| blind.code == 404);
            let Some(blind) = missing else { continue };
            if let Ok(Some(resource)) = self.estate.guests.discover(&blind.kind).await {
                executor.view.learn(resource);
            }
        }
        self.executors.retain(|_, executor| !executor.view.is_outdated());
    }

    /// Loads what the plan wants and is not loaded; drops what it no longer wants.
    fn stage(&mut self, controller: &WasmController, plan: &Plan, known: &[WasmRevision]) {
        let Some(running) = &self.running else { return };
        self.executors.retain(|name, _| plan.loaded.contains(name));
        self.refusals.retain(|name, _| plan.loaded.contains(name));
        self.staged.retain(|name, (task, _)| {
            let wanted = plan.loaded.contains(name);
            if !wanted {
                task.abort();
            }
            wanted
        });
        let status = plan::status(controller);
        for revision in known {
            let name = revision.metadata.name.clone().unwrap_or_default();
            let waits = self
                .refusals
                .get(&name)
                .is_some_and(|(_, retry)| retry.is_none_or(|at| at > Instant::now()));
            let busy =
                self.executors.contains_key(&name) || self.staged.contains_key(&name) || waits;
            if busy || !plan.loaded.contains(&name) || !has_account(&self.estate, controller) {
                continue;
            }
            let config = revision
                .spec
                .config
                .as_ref()
                .map_or_else(|| "null".to_owned(), ToString::to_string);
            let staging = Staging {
                host: self.estate.staging.clone(),
                shared: running.controller.shared.clone(),
                inbox: running.controller.inbox.clone(),
                namespaces: running.setup.namespaces.clone(),
                primary: status.primary.clone(),
                exclusive: controller.spec.exclusive,
                finalizer: status.finalizer.clone(),
                limits: running.limits(),
                asked: controller.spec.limits.clone(),
                name: name.clone(),
                digest: revision.spec.digest.clone(),
                config: config.into(),
            };
            let label = name.clone();
            let arrivals = *self.arrivals.borrow();
            let task = self.staging.spawn(async move { (label, staging.run().await) });
            self.staged.insert(name, (task, arrivals));
        }
    }

    fn standing(&self, name: &str) -> Option<Standing> {
        if self.executors.contains_key(name) {
            return Some(Standing::Ready);
        }
        match self.refusals.get(name) {
            Some((refusal, _)) if refusal.waits => Some(Standing::Staging(Some(refusal.clone()))),
            Some((refusal, _)) => Some(Standing::Failed(refusal.clone())),
            None => self.staged.contains_key(name).then_some(Standing::Staging(None)),
        }
    }

    /// Writes the decision, then hands it over.
    async fn decide(&mut self, controller: &WasmController, plan: &Plan) -> Result<(), Error> {
        let old = plan::status(controller);
        let rollout = &controller.spec.rollout;
        let intent = Intent {
            strategy: rollout.strategy,
            named: rollout.active.as_deref().filter(|name| !name.is_empty()),
            rejected: &rollout.rejected,
            desired: &plan.desired,
            active: old.active.as_deref(),
            previous: old.previous.as_deref(),
        };
        let decision = rollout::decide(&intent, |name| match self.standing(name) {
            Some(Standing::Ready) => Stage::Ready,
            Some(Standing::Staging(_)) => Stage::Staging,
            Some(Standing::Failed(_)) => Stage::Failed,
            None if plan.loaded.contains(name) => Stage::Staging,
            None => Stage::Unknown,
        });
        let status = self.status(controller, plan, &old, &decision);
        if controller.status.as_ref() != Some(&status) {
            let value = serde_json::to_value(&status).unwrap_or_default();
            let written = self.objects.set_status(controller, value).await?;
            if status.active != old.active {
                fail::point("intent-cas");
            }
            self.own = Some(written);
        }
        let Some(running) = &self.running else { return Ok(()) };
        let active = decision.active.as_ref().and_then(|name| self.executors.get(name)).cloned();
        running.controller.set_rollout(Rollout { active, generation: status.executor_generation });
        for event in news::between(controller, &old, &status) {
            self.estate.recorder.record(event);
        }
        Ok(())
    }

    fn status(
        &self,
        controller: &WasmController,
        plan: &Plan,
        old: &WasmControllerStatus,
        decision: &Decision,
    ) -> WasmControllerStatus {
        let active = decision.active.as_ref().and_then(|name| self.executors.get(name));
        let manifest = active.map(|executor| executor.view.manifest());
        let primary = old.primary.clone().or_else(|| Some(manifest?.primary.kind.clone()));
        let finalizer = old.finalizer.clone();
        let finalizer = finalizer.or_else(|| Some(manifest?.finalizer.clone().unwrap_or_default()));
        let swapped = decision.active != old.active;
        let facts = Facts {
            controller,
            decision,
            desired: &plan.desired,
            desired_standing: self.standing(&plan.desired),
            active_standing: decision.active.as_deref().and_then(|name| self.standing(name)),
            generation: old.executor_generation + i64::from(swapped),
            shares_primary_with: self.others_with(primary.as_ref()),
            primary,
            finalizer,
            account_missing: !has_account(&self.estate, controller),
            forbidden: self.running.as_ref().and_then(Running::forbidden),
            conflict: self.conflict(controller),
            over_ceiling: self.estate.staging.over_ceiling(&controller.spec.limits),
            blind: self.running.as_ref().and_then(Running::blind),
            fight: self.running.as_ref().and_then(Running::fight),
            illness: self.illness(decision.active.as_deref(), old.active.as_deref()),
            outdated: self.running.as_ref().and_then(Running::outdated),
            failing: self.running.as_ref().and_then(Running::failing),
            unfit: self.looks.found(),
            module_lost: active
                .is_some_and(|active| !self.estate.staging.modules.has(&active.digest)),
            deleting: controller.metadata.deletion_timestamp.is_some(),
        };
        facts.status()
    }

    /// Of the live revision; what is to replace it has not run yet.
    fn illness(&self, active: Option<&str>, was_active: Option<&str>) -> Option<String> {
        let running = self.running.as_ref().filter(|_| active == was_active)?;
        running.illness()
    }

    /// What is in the way of a controller that has been live.
    fn conflict(&self, controller: &WasmController) -> Option<String> {
        controller.status.as_ref()?.primary.as_ref()?;
        self.estate.staging.primaries.in_the_way_of(&self.key.to_string())
    }

    /// Other controllers of this host with the same primary kind.
    fn others_with(&self, primary: Option<&crate::manifest::Kind>) -> Vec<String> {
        let Some(primary) = primary else { return vec![] };
        let others =
            self.estate.controllers.entries().into_iter().filter(|entry| *entry.key() != self.key);
        let same = others.filter(|entry| {
            let field = |path| crate::watch::envelope::field(entry.body(), path).into_iter().next();
            field("status.primary.kind").as_deref() == Some(&primary.kind)
                && field("status.primary.group").unwrap_or_default() == primary.group
        });
        same.map(|entry| entry.key().to_string()).collect()
    }

    async fn tell_revisions(
        &mut self,
        controller: &WasmController,
        plan: &Plan,
        known: &[WasmRevision],
    ) {
        let active = plan::status(controller).active;
        let illness = self.running.as_ref().and_then(Running::illness);
        for revision in known {
            let name = revision.metadata.name.clone().unwrap_or_default();
            let manifest = self
                .executors
                .get(&name)
                .and_then(|executor| crd::manifest_value(executor.view.manifest()));
            // What is wanted and not begun, for want of its account, is no history.
            let wanted = || plan.loaded.contains(&name).then_some(Standing::Staging(None));
            let standing = self.standing(&name).or_else(wanted);
            let is_active = active.as_deref() == Some(&name);
            let illness = illness.as_deref().filter(|_| is_active);
            let standing = (standing.as_ref(), is_active);
            let new = status::revision(revision.status.as_ref(), standing, illness, manifest);
            if revision.status.as_ref() == Some(&new) {
                continue;
            }
            let value = serde_json::to_value(&new).unwrap_or_default();
            match self.objects.set_revision_status(revision, value).await {
                Ok(written) => drop(self.own_revisions.insert(name, written)),
                Err(error) if error.code() == Some(404) => drop(self.own_revisions.remove(&name)),
                Err(error) => {
                    tracing::debug!(revision = name, %error, "cannot write a revision's status");
                }
            }
        }
    }

    /// Ends all runs, within the drain's limit, and forgets what was loaded.
    async fn end(&mut self) {
        if let Some(running) = self.running.take() {
            running.end().await;
        }
        self.staging.abort_all();
        self.staged.clear();
        self.executors.clear();
        self.refusals.clear();
    }
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
