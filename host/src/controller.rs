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

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::{
    sync::{oneshot, watch},
    task::{AbortHandle, Id, JoinError, JoinSet},
    time::{Instant, MissedTickBehavior},
};
use tracing::{Instrument, trace_span};

use crate::{
    client::Client,
    controller::{
        rollout::Rollout,
        run::{End, Executor, SERVER_PAUSE, Shared, Start, told},
    },
    fail,
    leader::fence::{Claim, Fence, Gate},
    model::object::ObjectKey,
    queue::{Outcome, shared::SharedQueue},
    sandbox::RunLimits,
    share::places::{Guest, Place, Places},
};
use report::Report;
pub use report::Trouble;
pub use swap::DRAIN;
use swap::{Do, Event, Swap};

/// How often missed wake-ups and lost rights are looked for.
const HOUSEKEEPING: Duration = Duration::from_millis(1_500);
/// How often every object is delivered once more, a tenth of it sooner or later.
const RESYNC: Duration = Duration::from_secs(10 * 3_600);
/// How often objects that nobody saw leave are looked for, after the first time; and after a look that failed.
const SEARCH: Duration = Duration::from_secs(3_600);
const SEARCH_AGAIN: Duration = Duration::from_secs(30);

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
    pub inbox: Arc<SharedQueue>,
    /// What its runs share.
    pub shared: Arc<Shared>,
    ended: watch::Receiver<bool>,
}

/// What a controller needs besides its revisions.
#[derive(Debug)]
pub struct Parts {
    /// What its runs share.
    pub shared: Arc<Shared>,
    /// Its queue.
    pub inbox: Arc<SharedQueue>,
    /// Where it gets places for its runs.
    pub places: Places,
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
        let (inbox, shared) = (parts.inbox.clone(), parts.shared.clone());
        let swap = Swap::new(parts.claim.borrow().clone());
        let gate = watch::channel(swap.gate().clone()).0;
        let looping = Loop {
            guest: parts.places.register(shared.account.team()),
            parts,
            rollout: rollout_seen,
            settings: settings_seen,
            stop: stop_seen,
            trouble: trouble_told,
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
            resync_at: Instant::now() + resync_after(share()),
            search_at: None,
            searching: None,
        };
        (Self { rollout, settings, stop, trouble, inbox, shared, ended }, looping)
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

    /// Sets limits and suspension.
    pub fn set(&self, settings: Settings) {
        let concurrency = i64::try_from(settings.concurrency).unwrap_or(i64::MAX);
        self.shared.account.metrics.max_concurrent.set(concurrency);
        self.settings.send_if_modified(|old| {
            let same = *old == settings;
            *old = settings;
            !same
        });
    }

    /// What the team should know of.
    pub fn trouble(&self) -> watch::Receiver<Trouble> {
        self.trouble.clone()
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
    /// When every object is delivered once more.
    resync_at: Instant,
    /// When objects are looked for that have left what is selected; `None`: under another claim or revision.
    search_at: Option<Instant>,
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
    _place: Place,
}

impl Loop {
    /// Runs until [`Controller::stop`], then drains.
    pub async fn run(mut self) {
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        housekeeping.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut asked: Option<oneshot::Receiver<Place>> = None;
        while !*self.stop.borrow() {
            let due = self.parts.inbox.next_due();
            let may_start = self.may_start();
            let ready = may_start && due.is_some_and(|wait| wait.is_zero());
            if !ready {
                asked = None;
            } else if asked.is_none() {
                asked = Some(self.parts.places.ask(self.guest));
            }
            let due = due.filter(|_| may_start && !ready);
            let due = due.and_then(|wait| Instant::now().checked_add(wait));
            let next = [due, self.paused_until, self.swap.due().map(Into::into)];
            tokio::select! {
                place = granted(&mut asked) => {
                    asked = None;
                    if let Some(place) = place {
                        self.start(place);
                    }
                }
                Some(ended) = self.runs.join_next_with_id(), if !self.runs.is_empty() => self.finish(ended),
                Some(done) = self.chores.join_next(), if !self.chores.is_empty() => self.take(done),
                () = sleep_until(next.into_iter().flatten().min()) => self.wake(),
                Ok(()) = self.rollout.changed() => self.replace(),
                Ok(()) = self.parts.claim.changed() => self.take_claim(),
                () = changes(&self.parts.inbox, &mut self.settings, &mut self.reachable, &mut self.stop) => (),
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

    fn start(&mut self, place: Place) {
        let Some(claim) = self.fresh.clone() else { return };
        let Some(taken) = self.parts.inbox.take() else { return };
        let (key, current) = (taken.key.clone(), self.swap.current());
        let generation = current.generation;
        let Some(executor) = current.pick(&key).cloned() else {
            return self.parts.inbox.done(&key, Outcome::Postponed(HOUSEKEEPING));
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
        self.flights.insert(id, Flight { key, executor, stop, _place: place });
        self.act(Event::Began(id, generation));
        self.count_workers();
    }

    /// What the swap wants done.
    fn act(&mut self, event: Event<Executor, Id>) {
        for one in self.swap.next(event, Instant::now().into_std()) {
            match one {
                Do::Admit(gate) => drop(self.gate.send_replace(gate)),
                Do::Open(new) => {
                    self.parts.inbox.forget_failures();
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
                        let active = self.swap.current().active.as_ref();
                        if active.is_some_and(|active| !Arc::ptr_eq(active, &flight.executor)) {
                            tracing::warn!(object = %flight.key, "a run of the replaced revision is stopped");
                        }
                        flight.stop.send_replace(true);
                    }
                }
                Do::Drained => fail::point("drained"),
            }
        }
    }

    /// Some time has come.
    fn wake(&mut self) {
        self.paused_until = self.paused_until.filter(|at| *at > Instant::now());
        self.act(Event::Tick);
    }

    fn take(&mut self, done: Result<Chore, JoinError>) {
        match done {
            Ok(Chore::Fresh(claim, of)) => self.refreshed(claim, &of),
            Ok(Chore::Seen(key, outcome)) => self.parts.inbox.done(&key, outcome),
            Ok(Chore::Delivered(old)) => self.act(Event::Delivered(old)),
            Ok(Chore::Searched(went_well)) => {
                let pause = if went_well { SEARCH } else { SEARCH_AGAIN };
                self.search_at = self.search_at.map(|_| Instant::now() + pause);
            }
            Err(error) if error.is_panic() => {
                tracing::error!(%error, "a controller's chore ended in a panic of the host");
            }
            // It was given up.
            Err(_) => (),
        }
    }

    fn finish(&mut self, ended: Result<(Id, End), JoinError>) {
        let (id, ended) = match ended {
            Ok((id, end)) => (id, Some(end)),
            Err(error) => {
                tracing::error!(%error, "a run ended in a panic of the host");
                (error.id(), None)
            }
        };
        if ended.as_ref().is_some_and(|end| end.server_is_down) {
            self.paused_until = Some(Instant::now() + SERVER_PAUSE);
        }
        if let Some(flight) = self.flights.remove(&id) {
            if let Some(end) = &ended {
                self.note(&flight, end);
            }
            let (outcome, client) =
                ended.map_or((Outcome::Failed, None), |end| (end.outcome, Some(end.client)));
            self.park(flight.key, outcome, client);
        }
        self.act(Event::Ended(id));
        self.tell();
        self.count_workers();
    }

    /// What a run says of the controller; an object whose runs keep failing hears of it.
    fn note(&mut self, flight: &Flight, end: &End) {
        let now = Instant::now().into_std();
        let told = self.report.ended((&flight.executor.name, &flight.key), end, now);
        if let Some(note) = told {
            let account = &self.parts.shared.account;
            let kind = &flight.executor.view.manifest().primary.kind;
            let object = (kind, &flight.key, end.uid.as_deref());
            account.recorder.record(told::on_object(account, object, "ReconcileFailing", note));
        }
    }

    /// Gives the key back, once the cache shows what the run wrote: until then it stays taken, without a place.
    fn park(&mut self, key: ObjectKey, outcome: Outcome, client: Option<Client>) {
        match client.filter(Client::has_unseen) {
            None => self.parts.inbox.done(&key, outcome),
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
        self.act(Event::Rollout(next));
        self.refresh();
        if is_another {
            self.report.begin(live.iter().map(|live| live.name.as_str()));
            self.tell();
        }
    }

    /// The claim was acquired, lost, or acquired anew. A lost one ends all runs at once: there is no drain.
    fn take_claim(&mut self) {
        let claim = self.parts.claim.borrow_and_update().clone();
        self.act(Event::Claim(claim));
        // What was applied last may have been applied differently by another host since.
        self.parts.shared.account.forget_applied();
        self.refresh();
    }

    /// Before anything runs under a claim, the live revision's caches must have what its last holder wrote.
    fn refresh(&mut self) {
        self.fresh = None;
        self.search_at = None;
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
            self.parts.inbox.works();
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
        if Instant::now() >= self.resync_at {
            self.resync_at = Instant::now() + resync_after(share());
            active.view.resync();
        }
        let shared = &self.parts.shared;
        let account = shared.account.identity.to_string();
        let strays = shared.strays.lock();
        self.report.look(&active.view, &strays, &account, Instant::now().into_std());
        drop(strays);
        self.search();
        self.tell();
    }

    /// Looks for objects that left while nobody saw it: the host was away, or another revision was live.
    fn search(&mut self) {
        let Some(active) = self.swap.current().active.clone() else { return };
        let is_due = self.search_at.is_none_or(|at| Instant::now() >= at);
        if !is_due || self.fresh.is_none() || !strays::are_possible(&active.view) {
            return;
        }
        self.search_at = Some(Instant::now() + SEARCH);
        let (account, inbox) = (self.parts.shared.account.clone(), self.parts.inbox.clone());
        self.searching = Some(self.chores.spawn(async move {
            Chore::Searched(strays::search(&account, &active.view, &inbox).await)
        }));
    }

    fn tell(&mut self) {
        let now = Instant::now().into_std();
        let fight = self.parts.shared.account.fight(now);
        let view = self.swap.current().active.as_ref().map(|active| &*active.view);
        let now = self.report.trouble(view, fight, now);
        self.trouble.send_if_modified(|trouble| {
            let changed = *trouble != now;
            *trouble = now;
            changed
        });
    }

    fn count_workers(&self) {
        let running = i64::try_from(self.runs.len()).unwrap_or(i64::MAX);
        self.parts.shared.account.metrics.active_workers.set(running);
    }

    async fn drain(&mut self) {
        self.act(Event::End);
        while !self.runs.is_empty() {
            tokio::select! {
                Some(ended) = self.runs.join_next_with_id() => self.finish(ended),
                () = sleep_until(self.swap.due().map(Into::into)) => self.act(Event::Tick),
            }
        }
    }
}

/// Returns when it is to be looked again whether a run may start, or whether the loop is to end.
async fn changes(
    inbox: &SharedQueue,
    settings: &mut watch::Receiver<Settings>,
    reachable: &mut watch::Receiver<bool>,
    stop: &mut watch::Receiver<bool>,
) {
    tokio::select! {
        () = inbox.changed() => (),
        Ok(()) = settings.changed() => (),
        Ok(()) = reachable.changed() => (),
        Ok(()) = stop.changed() => (),
    }
}

async fn granted(asked: &mut Option<oneshot::Receiver<Place>>) -> Option<Place> {
    match asked {
        Some(place) => place.await.ok(),
        None => std::future::pending().await,
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// The time to the next resync, for a share of chance from 0 to 1.
fn resync_after(share: f64) -> Duration {
    RESYNC.mul_f64(0.9 + 0.2 * share)
}

/// Spreads the resyncs of controllers; it need not be hard to guess.
fn share() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    f64::from(u32::try_from(RandomState::new().hash_one(0) >> 32).unwrap_or_default())
        / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resync_comes_after_nine_to_eleven_hours() {
        let hours = |count: u64| Duration::from_secs(count * 3_600);
        let (least, most) = (resync_after(0.0), resync_after(1.0));
        assert!(least >= hours(9) && most <= hours(11), "{least:?} to {most:?}");
        let shares: Vec<_> = (0..100).map(|_| share()).collect();
        assert!(shares.iter().all(|share| (0.0..=1.0).contains(share)));
        assert!(shares.iter().any(|share| *share < 0.5) && shares.iter().any(|share| *share > 0.5));
    }
}
