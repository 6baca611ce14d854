//! A guest's API client: reads the cache, writes through grant, no-op check, budget and fence.
//!
//! Every request that leaves is made as the controller's ServiceAccount and says in its User-Agent which run made it
//!. It runs on the control runtime: a write that was sent outlives its guest, and the run is over only when the
//! write is ([`Client::settle`]).
//!
//! Invariants, held on a real server: `every_write_is_made_as_the_service_account`,
//! `an_account_without_a_right_reads_nothing`, `a_second_run_without_a_change_writes_nothing`.

mod answer;
mod answers;
mod apply;
mod child;
pub mod dry;
mod flow;
pub mod gates;
mod intent;
mod object;
mod own;
mod owners;
mod read;
mod send;
mod shown;
mod write;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{runtime::Handle, sync::watch};

use crate::{
    access::{authority::Authority, view::View},
    apiserver::{ApiServer, Identity, Resource},
    client::gates::{
        barrier::Barrier,
        budget::Budget,
        fight::{Fights, Place},
    },
    clock,
    cluster::{
        DeleteOptions, Error, GuestEvent, ListOptions, Ownership, Page, PatchBody, Propagation,
    },
    events::{Event, Recorder},
    leader::fence::Fence,
    metrics::ControllerMetrics,
    model::{
        kind::Kind,
        manifest::Verb,
        object::{ObjectKey, ObjectReference},
    },
};

use dry::{Dry, Use};
pub use flow::Flow;
pub use gates::noop::Applied;

/// What all runs of a controller share, whatever their revision.
pub struct Account {
    /// `namespace/name` of the WasmController.
    pub controller: String,
    /// The API server.
    pub api: ApiServer,
    /// The runtime on which requests are made.
    pub control: Handle,
    /// The controller's ServiceAccount.
    pub identity: Identity,
    /// The controller's field manager.
    pub field_manager: String,
    /// Answers about rights.
    pub authority: Authority,
    /// Where events go.
    pub recorder: Recorder,
    /// Writes left.
    pub budget: Mutex<Budget>,
    /// Objects that others keep changing back.
    pub fights: Mutex<Fights>,
    /// What the API server has asked of the account.
    pub flow: Mutex<Flow>,
    /// A write takes no longer, and nobody waits longer for one whose run is over: at most the time between the
    /// end of a Lease's renewals and its expiry.
    pub write_timeout: Duration,
    /// Whether the API server answers, as far as the host's watches can tell.
    pub reachable: watch::Receiver<bool>,
    /// What was applied last.
    pub applied: Mutex<Applied>,
    /// Writes that the caches have not shown yet; moves with every answer.
    pub own: watch::Sender<Barrier>,
    /// Counters.
    pub metrics: ControllerMetrics,
}

impl Account {
    /// Another host may have applied meanwhile: nothing counts as applied last.
    pub fn forget_applied(&self) {
        self.applied.lock().clear();
    }

    /// What others keep changing back, for people.
    pub fn fight(&self, now: Instant) -> Option<String> {
        self.fights.lock().told(now)
    }

    /// The team: whoever owns the controller's namespace.
    pub fn team(&self) -> &str {
        self.controller.split_once('/').map_or("", |(namespace, _)| namespace)
    }
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Account").field("controller", &self.controller).finish_non_exhaustive()
    }
}

/// The API client of one run; cheap to clone.
#[derive(Clone, Debug)]
pub struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    account: Arc<Account>,
    view: Arc<View>,
    run: Run,
    sent: watch::Sender<usize>,
    unsettled: AtomicBool,
    /// The guest has ended.
    gone: AtomicBool,
    obstacles: Mutex<send::Obstacles>,
    /// What this run has written.
    wrote: Mutex<Vec<(Kind, ObjectKey)>>,
}

/// What a client must know of its run.
#[derive(Clone, Debug)]
pub struct Run {
    /// The primary.
    pub request: ObjectKey,
    /// Its uid when the run began; `None` if it was gone.
    pub uid: Option<Arc<str>>,
    /// Whether no cache shows it, so that the guest reads it from the API server.
    pub is_hidden: bool,
    /// What becomes of its writes.
    pub mode: Mode,
    /// Goes out with every request.
    pub user_agent: String,
}

/// What becomes of a run's writes.
#[derive(Clone, Debug)]
pub enum Mode {
    /// They are made, as long as this allows it.
    Live(Fence),
    /// They are only tried.
    Dry(Arc<Dry>),
}

impl Client {
    /// The client of one run.
    pub fn new(account: Arc<Account>, view: Arc<View>, run: Run) -> Self {
        Self(Arc::new(Inner {
            account,
            view,
            run,
            sent: watch::channel(0).0,
            unsettled: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            obstacles: Mutex::default(),
            wrote: Mutex::default(),
        }))
    }

    /// Whether no cache shows the primary, which is there.
    pub fn is_hidden(&self) -> bool {
        self.0.run.is_hidden
    }

    /// Waits until every write that was sent has been answered or given up.
    pub async fn settle(&self) {
        let _ = self.0.sent.subscribe().wait_for(|count| *count == 0).await;
    }

    /// Whether some write's outcome is unknown: the object must not be reported clean.
    pub fn is_unsettled(&self) -> bool {
        self.0.unsettled.load(Ordering::Relaxed)
    }

    /// Hands an Event over, if it is about the primary or an object of a declared kind that the guest can see.
    pub fn emit(&self, event: GuestEvent) -> Result<(), Error> {
        let regarding = &event.regarding;
        let uid = self.uid_of(regarding)?;
        for (what, text) in [("reason", &event.reason), ("action", &event.action)] {
            if text.is_empty() || text.len() > 128 {
                return Err(Error::Invalid(format!("the {what} must have 1 to 128 bytes")));
            }
        }
        if let Some(dry) = self.dry() {
            dry.event();
            return Ok(());
        }
        self.0.account.recorder.record(Event {
            identity: self.0.account.identity.clone(),
            controller: self.0.account.controller.clone(),
            uid,
            regarding: event.regarding,
            severity: event.severity,
            reason: event.reason,
            action: event.action,
            note: event.note,
        });
        Ok(())
    }

    /// The server does not check what an Event is about; so the host does.
    fn uid_of(&self, regarding: &ObjectReference) -> Result<Option<String>, Error> {
        let view = &self.0.view;
        let resource = self.resource(&regarding.kind)?;
        let namespace = regarding.namespace.as_deref();
        let key = ObjectKey::new(namespace, &regarding.name);
        let entry = self.cached(&regarding.kind, &key);
        let is_primary = view.is_primary(&regarding.kind)
            && self.0.run.request.name.as_ref() == regarding.name
            && self.0.run.request.namespace.as_deref() == namespace;
        match entry {
            Some(entry) => Ok(Some(entry.uid().to_owned())),
            None if is_primary => Ok(self.0.run.uid.as_deref().map(str::to_owned)),
            None if view.sources(&regarding.kind).next().is_some() => Err(Error::NotFound),
            None if resource.namespaced && namespace == self.0.run.request.namespace.as_deref() => {
                Ok(None)
            }
            None => Err(Error::NotDeclared(format!(
                "an event about {} {} of another namespace, which the manifest does not watch",
                regarding.kind, regarding.name
            ))),
        }
    }

    fn resource(&self, kind: &Kind) -> Result<Arc<Resource>, Error> {
        self.0
            .view
            .resource(kind)
            .ok_or_else(|| Error::NotDeclared(format!("{kind} is not in the manifest")))
    }

    /// Grant: the manifest names the verb, and the kind is none that no guest may touch.
    fn may_write(&self, kind: &Kind, verb: Verb) -> Result<Arc<Resource>, Error> {
        if !self.0.view.manifest().verbs(kind).contains(&verb) {
            return Err(Error::NotDeclared(format!(
                "the manifest does not declare {verb:?} on {kind}"
            )));
        }
        let resource = self.resource(kind)?;
        if let Some(why) =
            crate::access::grant::denied_to_guests(&resource.kind.group, &resource.plural)
        {
            return Err(Error::Forbidden(format!("no guest may write {kind}: {why}")));
        }
        if let Some(dry) = self.dry() {
            dry.used(kind, Use::Write(verb));
        }
        Ok(resource)
    }

    /// What the run has instead of the right to write, if it is a preview.
    fn dry(&self) -> Option<&Arc<Dry>> {
        match &self.0.run.mode {
            Mode::Live(_) => None,
            Mode::Dry(dry) => Some(dry),
        }
    }

    fn took_back(&self, place: Place) {
        let (kind, key, side) = place.clone();
        if self.fights().took_back(place, clock::now()) {
            tracing::warn!(
                controller = self.0.account.controller,
                kind = %kind,
                object = %key,
                ?side,
                "another writer keeps changing an object back"
            );
        }
    }

    fn fights(&self) -> parking_lot::MutexGuard<'_, Fights> {
        self.0.account.fights.lock()
    }
}
