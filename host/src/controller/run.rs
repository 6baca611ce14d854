//! One run: the finalizer before the first side effect, the guest, and what its answer means to the queue.
//!
//! Gone means gone: an object that the watches do not show because it is not selected any more is no reason to tell the
//! guest so. It is left alone; if it carries the controller's finalizer, the guest is run for it once it is deleted.

mod accepted;
mod condition;
pub(crate) mod told;

use std::{sync::Arc, time::Duration};

use parking_lot::{Mutex, MutexGuard};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::watch;

use crate::{
    access::view::View,
    client::{Account, Client, Mode, Run as ClientRun},
    clock,
    cluster::Error,
    controller::{health::Ended, strays::Strays},
    journal::Speaker,
    leader::fence::Fence,
    metrics::RunEnd,
    model::{digest::Digest, object::ObjectKey},
    queue::{Outcome, Taken},
    sandbox::{Action, Chance, ControllerLog, Failure, Program, Returned, Run, RunLimits, Sandbox},
    text,
    watch::Entry,
};
pub use accepted::Ledger;

/// How long nothing runs after a run has found the API server down.
pub const SERVER_PAUSE: Duration = Duration::from_secs(1);

/// A revision that can run: compiled, described, its watches synced.
#[derive(Debug)]
pub struct Executor {
    /// The WasmRevision's name.
    pub name: String,
    /// The component.
    pub digest: Digest,
    /// The config as JSON text.
    pub config: Arc<str>,
    /// The compiled component.
    pub program: Program,
    /// What it sees.
    pub view: Arc<View>,
}

/// What all runs of a controller share.
#[derive(Debug)]
pub struct Shared {
    /// The guests' home.
    pub sandbox: Sandbox,
    /// Identity, budget, counters.
    pub account: Arc<Account>,
    /// What its guests say.
    pub log: Arc<ControllerLog>,
    /// Objects that the guest has called invalid, and what was said of it.
    pub accepted: Mutex<Ledger>,
    /// Objects that have left what the controller selects, and carry its finalizer.
    pub strays: Mutex<Strays>,
}

/// One run about to start.
#[derive(Debug)]
pub struct Start {
    /// What all runs share.
    pub shared: Arc<Shared>,
    /// The live revision when the key was taken.
    pub executor: Arc<Executor>,
    /// The key.
    pub taken: Taken<ObjectKey>,
    /// Ceilings.
    pub limits: RunLimits,
    /// Whether the run may write.
    pub fence: Fence,
    /// Becomes true when the run must end.
    pub stop: watch::Receiver<bool>,
}

/// How a run ended.
#[derive(Debug)]
pub struct End {
    /// What the queue hears.
    pub outcome: Outcome,
    /// What its health hears.
    pub ended: Ended,
    /// The object's uid; `None`: it was gone.
    pub uid: Option<Arc<str>>,
    /// A right that the account turned out not to have.
    pub forbidden: Option<String>,
    /// What the code writes and the cluster's schema does not have.
    pub outdated: Option<String>,
    /// The API server is down, and with it every run.
    pub server_is_down: bool,
    /// Knows whether the cache has what the run wrote.
    pub client: Client,
}

/// Where the object of a run is.
enum Whereabouts {
    /// In a cache.
    Shown(Arc<Entry>),
    /// Not selected any more, and being deleted with the controller's finalizer on it.
    Going(Arc<Entry>),
    /// Not selected any more, with the controller's finalizer on it or without.
    Left { carries: bool },
    /// Nowhere.
    Gone,
}

impl Start {
    /// Runs the guest once and waits for its last write.
    pub async fn run(self) -> End {
        let started = clock::now();
        let id = reconcile_id();
        let span = tracing::info_span!(
            "reconcile",
            controller = self.shared.account.controller,
            revision = self.executor.name,
            object = %text::line(&self.taken.key.to_string(), text::MESSAGE),
            attempt = self.taken.failures + 1,
            reconcile_id = id,
        );
        let (primary, result, client) = match self.find(&id).await {
            Ok(Whereabouts::Left { carries }) => return self.leave(carries, &id),
            Ok(found) => {
                let (primary, is_hidden) = match found {
                    Whereabouts::Shown(entry) => (Some(entry), false),
                    Whereabouts::Going(entry) => (Some(entry), true),
                    Whereabouts::Left { .. } | Whereabouts::Gone => (None, false),
                };
                let client = self.client(primary.as_deref(), is_hidden, &id);
                let result = self.call(&client, primary.as_deref(), (span.clone(), &id)).await;
                (primary, result, client)
            }
            Err((error, client)) => {
                let words = format!(
                    "cannot find out whether the object is gone or only not selected any more: {error}"
                );
                (None, Err(Failure::Returned(Returned::Retry(words))), client)
            }
        };
        if let Err(failure) = &result {
            let seconds = clock::now().saturating_duration_since(started).as_secs_f64();
            let was_stopped = matches!(failure, Failure::Drained);
            let failure = text::line(&failure.to_string(), text::MESSAGE).into_owned();
            if was_stopped {
                // Somebody wanted it: a deletion, a new revision, the end of the host.
                span.in_scope(|| tracing::info!(seconds, "the run was stopped"));
            } else if self
                .shared
                .log
                .takes(&self.speaker(&id), &format!("the run failed: {failure}"))
            {
                // What a guest says counts as its log, wherever it is written.
                span.in_scope(|| tracing::warn!(%failure, seconds, "the run failed"));
            }
        }
        client.settle().await;
        let (mut outcome, mut end) = self.judge(&client, primary.as_deref(), &result).await;
        let server_is_down = outcome == Outcome::Failed && client.server_is_down().await;
        if server_is_down {
            (outcome, end) = (Outcome::Postponed(SERVER_PAUSE), RunEnd::Requeue);
        }
        self.shared.account.metrics.ran(end, clock::now().saturating_duration_since(started));
        let ended = if server_is_down { Ended::Untold } else { ended(&result, outcome) };
        let uid = primary.map(|entry| entry.uid().into());
        let (forbidden, outdated) = (client.forbidden(), client.outdated_schema());
        End { outcome, ended, uid, forbidden, outdated, server_is_down, client }
    }

    /// Where the object is, by the caches; by the API server where they need not show what is there.
    async fn find(&self, id: &str) -> Result<Whereabouts, (Error, Client)> {
        let (key, view) = (&self.taken.key, &self.executor.view);
        if let Some(entry) = view.primary(key) {
            self.strays().forget(key);
            return Ok(Whereabouts::Shown(entry));
        }
        let manifest = view.manifest();
        let primary = &manifest.primary;
        let covers = |namespace| view.sources(&primary.kind).any(|source| source.covers(namespace));
        let shows_all = primary.label_selector.is_none()
            && primary.field_selector.is_none()
            && covers(key.namespace.as_deref());
        let found = if shows_all {
            None
        } else {
            let client = self.client(None, false, id);
            client.look().await.map_err(|error| (error, client))?
        };
        let Some(entry) = found else {
            self.strays().forget(key);
            return Ok(Whereabouts::Gone);
        };
        let finalizer = manifest.finalizer.as_deref();
        let carries = entry.finalizers().any(|name| Some(name) == finalizer);
        if carries && entry.is_deleting() {
            return Ok(Whereabouts::Going(entry));
        }
        Ok(Whereabouts::Left { carries })
    }

    /// The object is somebody else's now. What it carries of the controller is looked for again.
    fn leave(&self, carries: bool, id: &str) -> End {
        self.ledger().forget(&self.taken.key);
        let outcome = if carries {
            Outcome::RequeueAfter(self.strays().found(&self.taken.key))
        } else {
            self.strays().forget(&self.taken.key);
            Outcome::Done
        };
        let client = self.client(None, false, id);
        End {
            outcome,
            ended: Ended::Left,
            uid: None,
            forbidden: None,
            outdated: None,
            server_is_down: false,
            client,
        }
    }

    fn speaker(&self, id: &str) -> Speaker {
        Speaker {
            revision: self.executor.name.as_str().into(),
            object: self.taken.key.to_string().into(),
            run: id.into(),
        }
    }

    fn client(&self, primary: Option<&Entry>, is_hidden: bool, id: &str) -> Client {
        let account = &self.shared.account;
        let key = Digest::of(self.taken.key.to_string().as_bytes());
        let user_agent = format!(
            "nagaya/{} (controller={}; revision={}; generation={}; epoch={}; key={}; reconcile={id})",
            env!("CARGO_PKG_VERSION"),
            account.controller,
            self.executor.digest.short(),
            self.fence.generation,
            self.fence.claim.epoch,
            &key.short()[..8],
        );
        let run = ClientRun {
            request: self.taken.key.clone(),
            uid: primary.map(|entry| entry.uid().into()),
            is_hidden,
            mode: Mode::Live(self.fence.clone()),
            user_agent,
        };
        Client::new(account.clone(), self.executor.view.clone(), run)
    }

    async fn call(
        &self,
        client: &Client,
        primary: Option<&Entry>,
        (span, id): (tracing::Span, &str),
    ) -> Result<Action, Failure> {
        if let (Some(primary), Some(finalizer)) =
            (primary, &self.executor.view.manifest().finalizer)
        {
            let has = primary.finalizers().any(|name| name == finalizer);
            if !has && !primary.is_deleting() {
                client.add_finalizer(primary, finalizer).await.map_err(|error| {
                    Failure::Returned(Returned::Retry(format!(
                        "cannot add the finalizer {finalizer}: {error}"
                    )))
                })?;
            }
        }
        let run = Run {
            cluster: Arc::new(client.clone()),
            team: self.shared.account.team().into(),
            behind: false,
            chance: Chance::Live,
            config: self.executor.config.clone(),
            limits: self.limits.clone(),
            stop: self.stop.clone(),
            span,
            speaker: self.speaker(id),
            log: self.shared.log.clone(),
        };
        let ObjectKey { namespace, name } = &self.taken.key;
        self.shared.sandbox.reconcile(&self.executor.program, run, namespace.as_deref(), name).await
    }

    async fn judge(
        &self,
        client: &Client,
        primary: Option<&Entry>,
        result: &Result<Action, Failure>,
    ) -> (Outcome, RunEnd) {
        // The cluster may allow another time what it has refused the guest.
        let given_up = if client.was_refused() { Outcome::Slow } else { Outcome::Done };
        let (outcome, end) = match result {
            Ok(_) if client.is_unsettled() || client.is_beaten() => {
                (Outcome::Failed, RunEnd::Error)
            }
            Ok(Action::AwaitChange) => (Outcome::Done, RunEnd::Success),
            Ok(Action::RequeueAfter(delay)) => {
                (Outcome::RequeueAfter(*delay), RunEnd::RequeueAfter)
            }
            Err(Failure::Drained) => (Outcome::Postponed(Duration::ZERO), RunEnd::Requeue),
            Err(Failure::Returned(Returned::Terminal(message))) => {
                self.tell(primary, "ReconcileFailed", message);
                (given_up, RunEnd::Terminal)
            }
            Err(Failure::Returned(Returned::Invalid(message))) => {
                let wait = match primary {
                    Some(entry) => self.refuse(client, entry, message).await,
                    None => None,
                };
                (wait.map_or(given_up, Outcome::RequeueAfter), RunEnd::Terminal)
            }
            Err(Failure::Returned(Returned::Retry(_)) | Failure::Host(_)) => {
                (Outcome::Failed, RunEnd::Error)
            }
            Err(failure) => (Outcome::Failed, self.broke(failure)),
        };
        let outcome = self.again(client, primary, result, outcome).await;
        let is_for_good = outcome == Outcome::Done && result.is_err();
        match (client.held(), client.over_budget()) {
            _ if is_for_good => (outcome, end),
            (Some(wait), _) => (Outcome::Held(wait), RunEnd::Requeue),
            (None, Some(wait)) => (Outcome::Postponed(wait), RunEnd::Requeue),
            (None, None) => (outcome, end),
        }
    }

    /// The outcome with what the object itself still needs: its condition, and a look at one that no watch shows.
    async fn again(
        &self,
        client: &Client,
        primary: Option<&Entry>,
        result: &Result<Action, Failure>,
        outcome: Outcome,
    ) -> Outcome {
        let key = &self.taken.key;
        let Some(entry) = primary else {
            self.ledger().forget(key);
            return outcome;
        };
        let mut wait = None;
        if result.is_ok() {
            wait = self.accept(client, entry).await;
        }
        if client.is_hidden() {
            let look = self.strays().found(key);
            wait = Some(wait.map_or(look, |wait| wait.min(look)));
        }
        match (outcome, wait) {
            (Outcome::Done, Some(wait)) => Outcome::RequeueAfter(wait),
            (Outcome::RequeueAfter(delay), Some(wait)) => Outcome::RequeueAfter(delay.min(wait)),
            (outcome, _) => outcome,
        }
    }

    /// A guest that did not answer: counted, and told to the team.
    fn broke(&self, failure: &Failure) -> RunEnd {
        let metrics = &self.shared.account.metrics;
        let revision = &self.executor.name;
        let end = match failure {
            Failure::Deadline | Failure::Wall => {
                metrics.interrupted(revision, "deadline");
                RunEnd::Timeout
            }
            _ => {
                let kind = match failure {
                    Failure::Memory => "memory",
                    Failure::TooLarge(_) => "too-large",
                    Failure::Exit(_) => "exit",
                    Failure::Panicked => "host-panic",
                    _ => "trap",
                };
                metrics.trapped(revision, kind);
                RunEnd::Panic
            }
        };
        let note = format!("revision {revision}, object {}: {failure}", self.taken.key);
        let account = &self.shared.account;
        account.recorder.record(told::on_controller(account, "Trapped", note));
        end
    }

    fn tell(&self, primary: Option<&Entry>, reason: &str, note: &str) {
        let account = &self.shared.account;
        let kind = &self.executor.view.manifest().primary.kind;
        let object = (kind, &self.taken.key, primary.map(Entry::uid));
        account.recorder.record(told::on_object(account, object, reason, note.to_owned()));
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.shared.accepted.lock()
    }

    fn strays(&self) -> MutexGuard<'_, Strays> {
        self.shared.strays.lock()
    }
}

/// What a run says of its revision and its object.
fn ended(result: &Result<Action, Failure>, outcome: Outcome) -> Ended {
    let was_tried = !matches!(outcome, Outcome::Postponed(_) | Outcome::Held(_));
    match result {
        Err(failure) if failure.is_breakdown() => Ended::Broke(failure.to_string()),
        _ if !was_tried => Ended::Untold,
        Err(Failure::Drained) => Ended::Untold,
        Ok(_) if outcome == Outcome::Failed => Ended::Failed(
            "the answer to a write is not known, or other writers of an object were faster every time"
                .to_owned(),
        ),
        Ok(_) | Err(Failure::Returned(Returned::Invalid(_))) => Ended::Well,
        Err(Failure::Returned(Returned::Terminal(text))) => Ended::Refused(text.clone()),
        Err(failure) => Ended::Failed(failure.to_string()),
    }
}

/// Names one run in every log line and request.
fn reconcile_id() -> String {
    let mut bytes = [0; 8];
    match SystemRandom::new().fill(&mut bytes) {
        Ok(()) => hex::encode(bytes),
        Err(_) => "unknown".to_owned(),
    }
}
