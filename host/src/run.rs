//! One run: the finalizer before the first side effect, the guest, and what its answer means to the queue.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use ring::rand::{SecureRandom, SystemRandom};
use serde_json::json;
use tokio::sync::watch;

use crate::{
    client::{Account, Client, ObjectReference, Run as ClientRun, Severity},
    crd::{self, hex},
    events::Event,
    fence::Fence,
    metrics::RunEnd,
    module::Digest,
    queue::{Outcome, Taken},
    sandbox::{Action, Failure, LogQuota, Program, Returned, Run, RunLimits, Sandbox},
    text,
    view::View,
    watch::{Entry, ObjectKey},
};

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
    /// What is left of the guest's log this second.
    pub log: Arc<LogQuota>,
    /// Objects that the guest called invalid: uid and message of the condition that was written.
    pub invalid: Mutex<HashMap<ObjectKey, (String, String)>>,
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
    /// How the guest broke down, if it did.
    pub broken: Option<String>,
    /// A right that the account turned out not to have.
    pub forbidden: Option<String>,
    /// The API server is down, and with it every run (R46).
    pub server_is_down: bool,
    /// Knows whether the cache has what the run wrote.
    pub client: Client,
}

impl Start {
    /// Runs the guest once and waits for its last write.
    #[expect(clippy::disallowed_methods, reason = "the edge where time enters")]
    pub async fn run(self) -> End {
        let started = Instant::now();
        let id = reconcile_id();
        let span = tracing::info_span!(
            "reconcile",
            controller = self.shared.account.controller,
            revision = self.executor.name,
            object = %self.taken.key,
            attempt = self.taken.failures + 1,
            reconcile_id = id,
        );
        let primary = self.executor.view.primary(&self.taken.key);
        let client = self.client(primary.as_deref(), &id);
        let result = self.call(&client, primary.as_deref(), span.clone()).await;
        if let Err(failure) = &result {
            let seconds = started.elapsed().as_secs_f64();
            // What the guest says is on one line, and within its log's limit.
            let failure = text::line(&failure.to_string(), text::MESSAGE).into_owned();
            if self.shared.log.admits(failure.len()) {
                span.in_scope(|| tracing::warn!(failure, seconds, "the run failed"));
            }
        }
        client.settle().await;
        let (mut outcome, mut end) = self.judge(&client, primary.as_deref(), &result).await;
        let server_is_down = outcome == Outcome::Failed && client.server_is_down().await;
        if server_is_down {
            (outcome, end) = (Outcome::Postponed(SERVER_PAUSE), RunEnd::Requeue);
        }
        self.shared.account.metrics.ran(end, started.elapsed());
        let broken = match &result {
            Err(failure) if failure.is_breakdown() && !server_is_down => {
                Some(format!("object {}: {failure}", self.taken.key))
            }
            _ => None,
        };
        End { outcome, broken, forbidden: client.forbidden(), server_is_down, client }
    }

    fn client(&self, primary: Option<&Entry>, id: &str) -> Client {
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
            fence: self.fence.clone(),
            user_agent,
        };
        Client::new(account.clone(), self.executor.view.clone(), run)
    }

    async fn call(
        &self,
        client: &Client,
        primary: Option<&Entry>,
        span: tracing::Span,
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
            client: Some(client.clone()),
            team: self.shared.account.team().into(),
            config: self.executor.config.clone(),
            limits: self.limits.clone(),
            stop: self.stop.clone(),
            span,
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
                (Outcome::Done, RunEnd::Terminal)
            }
            Err(Failure::Returned(Returned::Invalid(message))) => {
                self.call_invalid(client, primary, message).await;
                (Outcome::Done, RunEnd::Terminal)
            }
            Err(Failure::Returned(Returned::Retry(_)) | Failure::Host(_)) => {
                (Outcome::Failed, RunEnd::Error)
            }
            Err(failure) => (Outcome::Failed, self.broke(failure)),
        };
        if result.is_ok() {
            self.call_valid(client, primary).await;
        }
        let is_for_good = outcome == Outcome::Done && result.is_err();
        match (client.held(), client.over_budget()) {
            _ if is_for_good => (outcome, end),
            (Some(wait), _) => (Outcome::Held(wait), RunEnd::Requeue),
            (None, Some(wait)) => (Outcome::Postponed(wait), RunEnd::Requeue),
            (None, None) => (outcome, end),
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
        self.shared.account.recorder.record(self.event_on_controller("Trapped", note));
        end
    }

    fn event_on_controller(&self, reason: &str, note: String) -> Event {
        let account = &self.shared.account;
        let (namespace, name) =
            account.controller.split_once('/').unwrap_or(("", &account.controller));
        Event {
            identity: crate::apiserver::Identity::Host,
            controller: account.controller.clone(),
            regarding: ObjectReference {
                kind: crd::own_watch("WasmController").kind,
                namespace: Some(namespace.to_owned()),
                name: name.to_owned(),
            },
            uid: None,
            severity: Severity::Warning,
            reason: reason.to_owned(),
            action: "Reconcile".to_owned(),
            note,
        }
    }

    fn tell(&self, primary: Option<&Entry>, reason: &str, note: &str) {
        let ObjectKey { namespace, name } = &self.taken.key;
        let account = &self.shared.account;
        account.recorder.record(Event {
            identity: account.identity.clone(),
            controller: account.controller.clone(),
            regarding: ObjectReference {
                kind: self.executor.view.manifest().primary.kind.clone(),
                namespace: namespace.as_deref().map(str::to_owned),
                name: name.to_string(),
            },
            uid: primary.map(|entry| entry.uid().to_owned()),
            severity: Severity::Warning,
            reason: reason.to_owned(),
            action: "Reconcile".to_owned(),
            note: note.to_owned(),
        });
    }

    /// `invalid(message)`: a condition on the object under a second field manager; an Event where that cannot be.
    async fn call_invalid(&self, client: &Client, primary: Option<&Entry>, message: &str) {
        let Some(entry) = primary else { return };
        let said = (entry.uid().to_owned(), message.to_owned());
        if self.invalid().get(&self.taken.key) == Some(&said) {
            return;
        }
        let condition = json!({ "conditions": [{
            "type": "Accepted", "status": "False", "reason": "Invalid", "message": message,
            "observedGeneration": entry.generation(),
            "lastTransitionTime": k8s_openapi::jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        }] });
        let resource = self.executor.view.resource(&self.executor.view.manifest().primary.kind);
        let written = match resource.filter(|resource| resource.has_status) {
            Some(_) => client.apply_condition(self.status(entry, &condition)).await,
            None => Err(crate::client::Error::Invalid("the kind has no status".to_owned())),
        };
        if let Err(error) = written {
            tracing::debug!(%error, object = %self.taken.key, "no condition, an event instead");
            self.tell(primary, "Invalid", message);
        }
        self.invalid().insert(self.taken.key.clone(), said);
    }

    /// Takes the condition back once the guest accepts the object.
    async fn call_valid(&self, client: &Client, primary: Option<&Entry>) {
        let known = self.invalid().remove(&self.taken.key).is_some();
        let Some(entry) = primary else { return };
        let marked = entry.body().contains(r#""type":"Accepted""#)
            && entry.body().contains(r#""reason":"Invalid""#);
        if !known && !marked {
            return;
        }
        if let Err(error) = client.apply_condition(self.status(entry, &json!({}))).await {
            tracing::debug!(%error, object = %self.taken.key, "cannot take back the condition");
        }
    }

    fn status(&self, entry: &Entry, status: &serde_json::Value) -> String {
        let kind = &self.executor.view.manifest().primary.kind;
        let ObjectKey { namespace, name } = &self.taken.key;
        let mut object = json!({
            "apiVersion": kind.api_version(), "kind": kind.kind,
            "metadata": { "name": name, "uid": entry.uid() }, "status": status,
        });
        if let Some(namespace) = namespace {
            object["metadata"]["namespace"] = json!(namespace);
        }
        object.to_string()
    }

    fn invalid(&self) -> std::sync::MutexGuard<'_, HashMap<ObjectKey, (String, String)>> {
        self.shared.invalid.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Names one run in every log line and request.
fn reconcile_id() -> String {
    let mut bytes = [0; 8];
    match SystemRandom::new().fill(&mut bytes) {
        Ok(()) => hex(&bytes),
        Err(_) => "unknown".to_owned(),
    }
}
