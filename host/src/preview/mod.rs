//! What a revision would do, before it does it: run as ever, with writes that are only tried.
//!
//! A preview takes its place behind all live work: slots of its own, permits to compute that nobody else waits for, memory
//! of which a quarter stays for others, connections and a pace of its own. It touches no queue, no failure count, no budget.
//! The live revision is previewed on the same object wherever the candidate differs, at the same moment and with the same
//! chances, and what it would do as well is no difference.
//!
//! [`Previewer`] looks at one object, [`plan`] at all, [`shadow`] at some that have just run live; [`gates`] says what of
//! that stands in the way of a promotion.
//!
//! Invariants, on a real server: `a_preview_changes_nothing_whatever_the_guest`, `an_identical_candidate_shows_nothing`.

mod difference;
pub mod gates;
mod looked;
pub mod plan;
pub mod shadow;
mod tally;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::{sync::watch, time::sleep};

use crate::{
    access::{
        grant::Right,
        needs::{self, Needs, Whose},
    },
    apiserver::ApiServer,
    client::{
        Client, Mode, Run as ClientRun,
        dry::{Bench, Dry, Pace, Support, Trial, Use},
    },
    controller::run::{Executor, Shared},
    journal::Speaker,
    model::{digest::Digest, kind::Kind, object::ObjectKey, plan::PlannedObject},
    sandbox::{Chance, ControllerLog, Failure, Returned, Run, RunLimits},
    share::slots::Slots,
    text,
};
use looked::Looked;

/// Previews at the same time, all controllers together; the sandbox has so many slots besides those of live runs.
pub const AT_ONCE: usize = 2;
/// Of these so many of one team.
const OF_ONE_TEAM: usize = 2;
/// How often an object is looked at while its state moves, and the pause before another look; it grows.
const LOOKS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(100);

/// What all previews of a host share; cheap to clone.
#[derive(Clone, Debug)]
pub struct Previews {
    api: ApiServer,
    support: Support,
    pace: Arc<Pace>,
    slots: Slots,
}

impl Previews {
    /// Over connections of their own.
    pub fn new(api: ApiServer) -> Self {
        let support = Support::new(api.clone());
        let (pace, slots) = (Arc::new(Pace::of_host()), Slots::with_most(AT_ONCE, OF_ONE_TEAM));
        Self { api, support, pace, slots }
    }

    /// What all previews of a controller share.
    pub fn bench(&self, writes_per_minute: u32) -> Arc<Bench> {
        let pace = (writes_per_minute, self.pace.clone());
        Arc::new(Bench::new(self.api.clone(), self.support.clone(), pace))
    }

    /// For one controller.
    pub fn of(&self, shared: &Arc<Shared>, limits: RunLimits, bench: Arc<Bench>) -> Previewer {
        let log = ControllerLog::silent(shared.account.metrics.clone());
        Previewer {
            shared: shared.clone(),
            limits,
            bench,
            log: Arc::new(log),
            slots: self.slots.clone(),
        }
    }
}

/// Looks at the objects of one controller; cheap to clone.
#[derive(Clone, Debug)]
pub struct Previewer {
    shared: Arc<Shared>,
    limits: RunLimits,
    bench: Arc<Bench>,
    log: Arc<ControllerLog>,
    slots: Slots,
}

/// Whom a preview is of, and whom it is compared with.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The revision that is looked at.
    pub candidate: Arc<Executor>,
    /// The live one.
    pub live: Arc<Executor>,
}

impl Pair {
    /// Whether these are the same two, as they are loaded now.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.candidate, &other.candidate) && Arc::ptr_eq(&self.live, &other.live)
    }
}

/// What became of one object.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) planned: PlannedObject,
    pub(crate) used: BTreeSet<(Kind, Use)>,
    pub(crate) events: usize,
}

/// One look at an object by one revision.
#[derive(Debug)]
struct Look {
    looked: Looked,
    /// What was read, to be compared with another look.
    trial: Trial,
    /// It came to nothing for want of the host's or the API server's time.
    is_passing: bool,
}

impl Previewer {
    /// What the candidate would do for one object and the live revision would not.
    pub(crate) async fn find(&self, pair: &Pair, key: &ObjectKey, why: &'static str) -> Found {
        let object = key.to_string();
        let mut pause = PAUSE;
        for _ in 0..LOOKS {
            let chance = Chance::fixed(seed(key));
            let mut one = self.look(&pair.candidate, key, (chance, why)).await;
            let (used, events) = (std::mem::take(&mut one.looked.used), one.looked.events);
            let found = |planned| Found { planned, used, events };
            if one.looked.is_quiet() && !one.is_passing {
                return found(one.looked.planned(object, None));
            }
            let live = self.look(&pair.live, key, (chance, why)).await;
            let mut moved = one.trial.saw_another_state(&live.trial);
            moved |= one.is_passing || live.is_passing;
            if one.looked.subtract(&live.looked, None) {
                let again = self.look(&pair.live, key, (chance.another(), why)).await;
                moved |= live.trial.saw_another_state(&again.trial) || again.is_passing;
                one.looked.subtract(&live.looked, Some(&again.looked));
            }
            if !moved || (one.looked.is_quiet() && !one.is_passing) {
                return found(one.looked.planned(object, Some(&live.looked)));
            }
            // Somebody, mostly the live revision itself, has changed something between the two.
            sleep(pause).await;
            pause *= 2;
        }
        let why = "the object and what belongs to it kept changing, or the host or the API server had no time or memory";
        let untold = vec![why.to_owned()];
        let planned = PlannedObject { object, untold, ..PlannedObject::default() };
        Found { planned, used: BTreeSet::new(), events: 0 }
    }

    /// Runs one revision for one object, without writing.
    async fn look(
        &self,
        executor: &Arc<Executor>,
        key: &ObjectKey,
        (chance, why): (Chance, &'static str),
    ) -> Look {
        self.bench.turn().await;
        let account = &self.shared.account;
        let _slot = self.slots.take(account.team()).await;
        let client = self.client(executor, key, why);
        let run = Run {
            cluster: Arc::new(client.clone()),
            team: account.team().into(),
            behind: true,
            chance,
            config: executor.config.clone(),
            limits: self.limits.clone(),
            // Who gives it up drops it.
            stop: watch::channel(false).1,
            span: tracing::Span::none(),
            speaker: Speaker::default(),
            log: self.log.clone(),
        };
        let (namespace, name) = (key.namespace.as_deref(), &*key.name);
        let result = self.shared.sandbox.reconcile(&executor.program, run, namespace, name).await;
        let mut trial = client.trial();
        account.metrics.previewed(why, trial.asked);
        let is_passing = client.was_short_of_time()
            || matches!(
                result,
                Err(Failure::Wall | Failure::Drained | Failure::Host(_) | Failure::Panicked)
            );
        let error = result.err().map(|failure| words(&failure));
        // What cannot be told is not the guest's failure.
        let error = error.filter(|_| trial.untold.is_empty() && !is_passing);
        let read = trial.without_writes();
        Look { looked: Looked::of(trial, error), trial: read, is_passing }
    }

    /// Counts a repeated live run.
    fn shadowed(&self, is_same: bool) {
        self.shared.account.metrics.shadowed(is_same);
    }

    fn client(&self, executor: &Arc<Executor>, key: &ObjectKey, why: &'static str) -> Client {
        let account = &self.shared.account;
        let user_agent = format!(
            "nagaya/{} (controller={}; revision={}; preview={why}; key={})",
            env!("CARGO_PKG_VERSION"),
            account.controller,
            executor.digest.short(),
            &Digest::of(key.to_string().as_bytes()).short()[..8],
        );
        let run = ClientRun {
            request: key.clone(),
            uid: executor.view.primary(key).map(|entry| entry.uid().into()),
            is_hidden: false,
            mode: Mode::Dry(Arc::new(Dry::new(self.bench.clone()))),
            user_agent,
        };
        Client::new(account.clone(), executor.view.clone(), run)
    }
}

/// The rights that were used, in the words of RBAC.
pub(crate) fn rights(executor: &Executor, used: &BTreeSet<(Kind, Use)>) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for (kind, what) in used {
        let Some(resource) = executor.view.resource(kind) else { continue };
        match what {
            Use::Live => drop(all.insert(Right::on("get", &resource, None).plain())),
            Use::Write(verb) => {
                let rights = needs::writing((*verb, Whose::Account), &resource, None);
                all.extend(rights.iter().map(Right::plain));
            }
        }
    }
    all
}

/// The rights that a revision declares, in the same words.
pub(crate) fn declared(executor: &Executor) -> BTreeSet<String> {
    let resources = executor.view.resources();
    let manifest = executor.view.manifest();
    let needs = Needs { manifest, resources: &resources, namespaces: None };
    let all = needs.reads().into_iter().chain(needs.writes(Whose::Account));
    all.map(|right| right.plain()).collect()
}

/// In which way a run has failed, and why, for people.
fn words(failure: &Failure) -> (&'static str, String) {
    let (way, words) = match failure {
        Failure::Returned(Returned::Invalid(words)) => {
            ("invalid", format!("it calls the object invalid: {words}"))
        }
        Failure::Returned(Returned::Retry(_)) => ("retry", failure.to_string()),
        Failure::Returned(Returned::Terminal(_)) => ("terminal", failure.to_string()),
        Failure::Deadline => ("deadline", failure.to_string()),
        Failure::Memory => ("memory", failure.to_string()),
        other => ("trap", other.to_string()),
    };
    (way, text::line(&words, text::MESSAGE).into_owned())
}

/// The same for both revisions, and another for each object.
fn seed(key: &ObjectKey) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}
