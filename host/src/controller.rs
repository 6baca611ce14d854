//! The loop of one controller: take a key, pick the revision, run it, tell the queue.
//!
//! The queue, the budget and the hashes belong to the controller and outlive every revision. Promotion is a new
//! [`Rollout`] value: runs in flight keep their revision and their keys stay locked; the old ones may end within 30 s,
//! then they are stopped and the fence closes behind them.
//!
//! Invariants, on a real server: `promote_moves_every_object_and_one_writer_remains`,
//! `a_deleted_controller_drains_its_runs`, `a_suspended_controller_starts_no_run`.

pub mod health;
mod report;
pub mod rollout;
pub mod run;
pub mod strays;
mod swap;
mod upkeep;

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::{
    sync::{broadcast, oneshot, watch},
    task::{AbortHandle, Id, JoinError, JoinSet},
    time::{Instant, MissedTickBehavior},
};
use tracing::{Instrument, trace_span};

use crate::{
    client::Client,
    clock,
    controller::{
        health::Ended,
        rollout::Rollout,
        run::{End, Executor, SERVER_PAUSE, Shared, Start, told},
    },
    fail,
    leader::fence::{Claim, Fence, Gate},
    model::object::ObjectKey,
    queue::{Outcome, shared::SharedQueue},
    sandbox::RunLimits,
    share::slots::{Guest, Slot, Slots},
};
use report::Report;
pub use report::Trouble;
pub use swap::DRAIN;
use swap::{Do, Input, Swap};
use upkeep::Upkeep;

/// How often missed wake-ups and lost rights are looked for.
const HOUSEKEEPING: Duration = Duration::from_millis(1_500);
/// Objects whose run is over, for who repeats it.
const RAN: usize = 64;
/// What acts at once and is no part of a revision.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// No new runs.
    pub suspend: bool,
    /// Runs at the same time.
    pub concurrency: usize,
    /// Ceilings of one run.
    pub limits: RunLimits,
}

/// The handle of a running controller.
#[derive(Debug)]
pub struct Controller {
    rollout: watch::Sender<Rollout<Executor>>,
    settings: watch::Sender<Settings>,
    stop: watch::Sender<bool>,
    trouble: watch::Receiver<Trouble>,
    /// The queue, which watches insert into.
    pub queue: Arc<SharedQueue>,
    /// What its runs share.
    pub shared: Arc<Shared>,
    /// Objects whose run is over.
    ran: broadcast::Sender<ObjectKey>,
    ended: watch::Receiver<bool>,
}

/// What a controller needs besides its revisions.
#[derive(Debug)]
pub struct Parts {
    /// What its runs share.
    pub shared: Arc<Shared>,
    /// Its queue.
    pub queue: Arc<SharedQueue>,
    /// Where it gets slots for its runs.
    pub slots: Slots,
    /// Its claim; `None`: another replica's.
    pub claim: watch::Receiver<Option<Claim>>,
}

impl Controller {
    /// The loop, to be spawned by whoever owns the host's tasks, and its handle.
    pub fn new(parts: Parts, settings: Settings) -> (Self, Loop) {
        let (rollout, rollout_seen) = watch::channel(Rollout::default());
        let (settings, settings_seen) = watch::channel(settings);
        let (stop, stop_seen) = watch::channel(false);
        let (trouble_told, trouble) = watch::channel(Trouble::default());
        let (ended_told, ended) = watch::channel(false);
        let (queue, shared) = (parts.queue.clone(), parts.shared.clone());
        let ran = broadcast::channel(RAN).0;
        let swap = Swap::new(parts.claim.borrow().clone());
        let gate = watch::channel(swap.gate().clone()).0;
        let looping = Loop {
            guest: parts.slots.register(shared.account.team()),
            parts,
            rollout: rollout_seen,
            settings: settings_seen,
            stop: stop_seen,
            trouble: trouble_told,
            ran: ran.clone(),
            ended: ended_told,
            gate,
            reachable: shared.account.reachable.clone(),
            paused_until: None,
            swap,
            runs: JoinSet::new(),
            flights: HashMap::new(),
            chores: JoinSet::new(),
            report: Report::default(),
            fresh: None,
            opened: 0,
            refreshing: None,
            upkeep: Upkeep::new(clock::now()),
            searching: None,
        };
        (Self { rollout, settings, stop, trouble, queue, shared, ran, ended }, looping)
    }

    /// Makes `rollout` what runs from now on; nothing happens if it is what runs already.
    pub fn set_rollout(&self, rollout: Rollout<Executor>) {
        self.rollout.send_if_modified(|old| {
            let same = old.generation == rollout.generation
                && old.active.as_ref().map(Arc::as_ptr) == rollout.active.as_ref().map(Arc::as_ptr);
            *old = rollout;
            !same
        });
    }

    /// What runs.
    pub fn rollout(&self) -> watch::Receiver<Rollout<Executor>> {
        self.rollout.subscribe()
    }

    /// Sets limits and suspension.
    pub fn set(&self, settings: Settings) {
        let concurrency = i64::try_from(settings.concurrency).unwrap_or(i64::MAX);
        self.shared.account.metrics.max_concurrent.set(concurrency);
        send_if_news(&self.settings, settings);
    }

    /// What the team should know of.
    pub fn trouble(&self) -> watch::Receiver<Trouble> {
        self.trouble.clone()
    }

    /// The objects whose run was successful, as each is over; who reads slowly misses some.
    pub fn ran(&self) -> broadcast::Receiver<ObjectKey> {
        self.ran.subscribe()
    }

    /// Starts no more runs; [`Controller::ended`] becomes true when the last one is over, within [`DRAIN`].
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Whether the loop has ended.
    pub fn ended(&self) -> watch::Receiver<bool> {
        self.ended.clone()
    }
}

/// The task of one controller.
#[derive(Debug)]
pub struct Loop {
    guest: Guest,
    parts: Parts,
    rollout: watch::Receiver<Rollout<Executor>>,
    settings: watch::Receiver<Settings>,
    stop: watch::Receiver<bool>,
    trouble: watch::Sender<Trouble>,
    ran: broadcast::Sender<ObjectKey>,
    ended: watch::Sender<bool>,
    gate: watch::Sender<Gate>,
    /// Whether the API server answers.
    reachable: watch::Receiver<bool>,
    /// No run starts before, because the last one has found the API server down.
    paused_until: Option<Instant>,
    /// Which revision is live, and who may write.
    swap: Swap<Executor, Id>,
    runs: JoinSet<End>,
    flights: HashMap<Id, Flight>,
    chores: JoinSet<Chore>,
    report: Report,
    /// The executor generation of the newest run.
    opened: i64,
    /// The claim whose predecessor's writes the live revision's caches are known to have.
    fresh: Option<Claim>,
    refreshing: Option<AbortHandle>,
    upkeep: Upkeep,
    searching: Option<AbortHandle>,
}

/// What was waited for beside the runs, and has come.
#[derive(Debug)]
enum Chore {
    /// The revision's caches have what the claim's last holder wrote.
    Fresh(Claim, Arc<Executor>),
    /// The caches show what a run wrote, or nobody waits any longer: its key is given back.
    Seen(ObjectKey, Outcome),
    /// The watches have delivered what they saw before this revision was replaced.
    Delivered(Arc<Executor>),
    /// Objects that have left were looked for; whether it went well.
    Searched(bool),
}

#[derive(Debug)]
struct Flight {
    key: ObjectKey,
    executor: Arc<Executor>,
    stop: watch::Sender<bool>,
    _slot: Slot,
}

impl Flight {
    /// Tells the run to end: `active` is live now.
    fn end(&self, active: Option<&Arc<Executor>>) {
        if active.is_some_and(|active| !Arc::ptr_eq(active, &self.executor)) {
            tracing::warn!(object = %self.key, "a run of the replaced revision is stopped");
        }
        self.stop.send_replace(true);
    }
}

impl Loop {
    /// Runs until [`Controller::stop`], then drains.
    pub async fn run(mut self) {
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        housekeeping.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut asked: Option<oneshot::Receiver<Slot>> = None;
        while !*self.stop.borrow() {
            let due = self.parts.queue.next_due();
            let may_start = self.may_start();
            let ready = may_start && due.is_some_and(|wait| wait.is_zero());
            if !ready {
                asked = None;
            } else if asked.is_none() {
                asked = Some(self.parts.slots.ask(self.guest));
            }
            let due = due.filter(|_| may_start && !ready);
            let due = due.and_then(|wait| Instant::now().checked_add(wait));
            let next = [due, self.paused_until, self.swap.due().map(Into::into)];
            tokio::select! {
                slot = granted(&mut asked) => {
                    asked = None;
                    if let Some(slot) = slot {
                        self.start(slot);
                    }
                }
                Some(ended) = self.runs.join_next_with_id(), if !self.runs.is_empty() => self.finish(ended),
                Some(done) = self.chores.join_next(), if !self.chores.is_empty() => self.take(done),
                () = sleep_until(next.into_iter().flatten().min()) => self.wake(),
                Ok(()) = self.rollout.changed() => self.replace(),
                Ok(()) = self.parts.claim.changed() => self.take_claim(),
                () = changes(&self.parts.queue, &mut self.settings, &mut self.reachable, &mut self.stop) => (),
                _ = housekeeping.tick() => self.tick(),
            }
        }
        self.drain().await;
        self.ended.send_replace(true);
    }

    fn may_start(&mut self) -> bool {
        let settings = self.settings.borrow_and_update();
        self.swap.current().active.is_some()
            && self.fresh.is_some()
            && *self.reachable.borrow_and_update()
            && self.paused_until.is_none()
            && !settings.suspend
            && self.runs.len() < settings.concurrency
    }

    fn start(&mut self, slot: Slot) {
        let Some(claim) = self.fresh.clone() else { return };
        let Some(taken) = self.parts.queue.take() else { return };
        let (key, current) = (taken.key.clone(), self.swap.current());
        let generation = current.generation;
        let Some(executor) = current.pick(&key).cloned() else {
            return self.parts.queue.done(&key, Outcome::Postponed(HOUSEKEEPING));
        };
        let (stop, stop_seen) = watch::channel(false);
        let start = Start {
            shared: self.parts.shared.clone(),
            executor: executor.clone(),
            taken,
            limits: self.settings.borrow().limits.clone(),
            fence: Fence { generation, claim, gate: self.gate.subscribe() },
            stop: stop_seen,
        };
        if self.opened < generation {
            self.opened = generation;
            fail::point("gate-open");
        }
        let id = self.runs.spawn(start.run()).id();
        self.flights.insert(id, Flight { key, executor, stop, _slot: slot });
        self.act(Input::Began(id, generation));
        self.count_workers();
    }

    /// What the swap wants done.
    fn act(&mut self, event: Input<Executor, Id>) {
        for one in self.swap.next(event, clock::now()) {
            match one {
                Do::Admit(gate) => drop(self.gate.send_replace(gate)),
                Do::Open(new) => {
                    self.parts.queue.forget_failures();
                    new.view.go_live();
                    fail::point("requeue");
                }
                Do::Hand { old, new } => {
                    new.view.wake_gone(&old.view);
                    self.chores.spawn(async move {
                        new.view.barrier().await;
                        Chore::Delivered(old)
                    });
                }
                Do::Close { old, next } => old.view.close(next.as_ref().map(|next| &*next.view)),
                Do::Stop(id) => {
                    if let Some(flight) = self.flights.get(&id) {
                        flight.end(self.swap.current().active.as_ref());
                    }
                }
                Do::Drained => fail::point("drained"),
            }
        }
    }

    /// Some time has come.
    fn wake(&mut self) {
        self.paused_until = self.paused_until.filter(|at| *at > Instant::now());
        self.act(Input::Tick);
    }

    fn take(&mut self, done: Result<Chore, JoinError>) {
        match done {
            Ok(Chore::Fresh(claim, of)) => self.refreshed(claim, &of),
            Ok(Chore::Seen(key, outcome)) => self.parts.queue.done(&key, outcome),
            Ok(Chore::Delivered(old)) => self.act(Input::Delivered(old)),
            Ok(Chore::Searched(went_well)) => self.upkeep.searched(went_well, clock::now()),
            Err(error) if error.is_panic() => {
                tracing::error!(%error, "a controller's chore ended in a panic of the host");
            }
            // It was given up.
            Err(_) => (),
        }
    }

    fn finish(&mut self, ended: Result<(Id, End), JoinError>) {
        let (id, ended) = end_of(ended);
        if ended.as_ref().is_some_and(|end| end.server_is_down) {
            self.paused_until = Some(Instant::now() + SERVER_PAUSE);
        }
        if let Some(flight) = self.flights.remove(&id) {
            if let Some(end) = &ended {
                self.note(&flight, end);
                if end.ended == Ended::Well && self.ran.receiver_count() > 0 {
                    let _ = self.ran.send(flight.key.clone());
                }
            }
            let end = ended.map(|end| (end.outcome, Some(end.client)));
            self.park(flight.key, end.unwrap_or((Outcome::Failed, None)));
        }
        self.act(Input::Ended(id));
        self.tell();
        self.count_workers();
    }

    /// What a run says of the controller; an object whose runs keep failing hears of it.
    fn note(&mut self, flight: &Flight, end: &End) {
        let now = clock::now();
        let told = self.report.ended((&flight.executor.name, &flight.key), end, now);
        if let Some(note) = told {
            let account = &self.parts.shared.account;
            let kind = &flight.executor.view.manifest().primary.kind;
            let object = (kind, &flight.key, end.uid.as_deref());
            account.recorder.record(told::on_object(account, object, "ReconcileFailing", note));
        }
    }

    /// Gives the key back, once the cache shows what the run wrote: until then it stays taken, without a slot.
    fn park(&mut self, key: ObjectKey, (outcome, client): (Outcome, Option<Client>)) {
        match client.filter(Client::has_unseen) {
            None => self.parts.queue.done(&key, outcome),
            Some(client) => {
                let seen = async move {
                    client.seen().await;
                    Chore::Seen(key, outcome)
                };
                self.chores.spawn(seen.instrument(trace_span!("loop", of = "own-writes")));
            }
        }
    }

    /// A new value from the manager.
    fn replace(&mut self) {
        let next = self.rollout.borrow_and_update().clone();
        let is_another = next.generation != self.swap.current().generation;
        if is_another {
            fail::point("gate-closed");
        }
        let live = next.active.clone();
        self.act(Input::Rollout(next));
        self.refresh();
        if is_another {
            self.report.begin(live.iter().map(|live| live.name.as_str()));
            self.tell();
        }
    }

    /// The claim was acquired, lost, or acquired anew. A lost one ends all runs at once: there is no drain.
    fn take_claim(&mut self) {
        let claim = self.parts.claim.borrow_and_update().clone();
        self.act(Input::Claim(claim));
        // What was applied last may have been applied differently by another host since.
        self.parts.shared.account.forget_applied();
        self.refresh();
    }

    /// Before anything runs under a claim, the live revision's caches must have what its last holder wrote.
    fn refresh(&mut self) {
        self.fresh = None;
        self.upkeep.restart();
        for outdated in self.refreshing.take().into_iter().chain(self.searching.take()) {
            outdated.abort();
        }
        let claim = self.parts.claim.borrow().clone();
        let active = self.swap.current().active.clone();
        let (Some(claim), Some(active)) = (claim, active) else { return };
        if active.view.is_fresh(claim.since) {
            self.works_under(claim);
            return;
        }
        self.refreshing = Some(self.chores.spawn(async move {
            active.view.fresh(claim.since).await;
            Chore::Fresh(claim, active)
        }));
    }

    fn works_under(&mut self, claim: Claim) {
        if self.fresh.as_ref() != Some(&claim) {
            self.parts.queue.works();
        }
        self.fresh = Some(claim);
    }

    fn refreshed(&mut self, claim: Claim, of: &Arc<Executor>) {
        let active = self.swap.current().active.as_ref();
        let is_live = active.is_some_and(|active| Arc::ptr_eq(active, of));
        if is_live && self.parts.claim.borrow().as_ref() == Some(&claim) {
            self.works_under(claim);
        }
    }

    fn tick(&mut self) {
        let Some(active) = &self.swap.current().active else { return };
        active.view.deliver_missed();
        if self.upkeep.resyncs(clock::now()) {
            active.view.resync();
        }
        let shared = &self.parts.shared;
        let account = shared.account.identity.to_string();
        let strays = shared.strays.lock();
        self.report.look(&active.view, &strays, &account, clock::now());
        drop(strays);
        self.search();
        self.tell();
    }

    /// Looks for objects that left while nobody saw it: the host was away, or another revision was live.
    fn search(&mut self) {
        let Some(active) = self.swap.current().active.clone() else { return };
        let may_search = self.fresh.is_some() && strays::are_possible(&active.view);
        if !may_search || !self.upkeep.searches(clock::now()) {
            return;
        }
        let (account, queue) = (self.parts.shared.account.clone(), self.parts.queue.clone());
        self.searching = Some(self.chores.spawn(async move {
            Chore::Searched(strays::search(&account, &active.view, &queue).await)
        }));
    }

    fn tell(&mut self) {
        let now = clock::now();
        let fight = self.parts.shared.account.fight(now);
        let view = self.swap.current().active.as_ref().map(|active| &*active.view);
        let now = self.report.trouble(view, fight, now);
        send_if_news(&self.trouble, now);
    }

    fn count_workers(&self) {
        let running = i64::try_from(self.runs.len()).unwrap_or(i64::MAX);
        self.parts.shared.account.metrics.active_workers.set(running);
    }

    async fn drain(&mut self) {
        self.act(Input::End);
        while !self.runs.is_empty() {
            tokio::select! {
                Some(ended) = self.runs.join_next_with_id() => self.finish(ended),
                () = sleep_until(self.swap.due().map(Into::into)) => self.act(Input::Tick),
            }
        }
    }
}

/// Wakes those who listen only if the value is another one.
fn send_if_news<T: PartialEq>(to: &watch::Sender<T>, value: T) {
    to.send_if_modified(|old| {
        let is_news = *old != value;
        *old = value;
        is_news
    });
}

/// How a run ended; `None`: in a panic of the host.
fn end_of(ended: Result<(Id, End), JoinError>) -> (Id, Option<End>) {
    match ended {
        Ok((id, end)) => (id, Some(end)),
        Err(error) => {
            tracing::error!(%error, "a run ended in a panic of the host");
            (error.id(), None)
        }
    }
}

/// Returns when it is to be looked again whether a run may start, or whether the loop is to end.
async fn changes(
    queue: &SharedQueue,
    settings: &mut watch::Receiver<Settings>,
    reachable: &mut watch::Receiver<bool>,
    stop: &mut watch::Receiver<bool>,
) {
    tokio::select! {
        () = queue.changed() => (),
        Ok(()) = settings.changed() => (),
        Ok(()) = reachable.changed() => (),
        Ok(()) = stop.changed() => (),
    }
}

async fn granted(asked: &mut Option<oneshot::Receiver<Slot>>) -> Option<Slot> {
    match asked {
        Some(slot) => slot.await.ok(),
        None => std::future::pending().await,
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
