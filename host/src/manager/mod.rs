//! Turns WasmControllers and WasmRevisions into running controllers: one keeper task each.
//!
//! The manager owns the host's own watches. It tells keepers that something about their object has changed, never
//! what: they read it themselves.

mod garbage;
mod keeper;
mod least;
mod loads;
mod news;
mod objects;
mod patience;
mod plan;
mod primaries;
mod refusal;
mod rights;
mod room;
mod running;
mod stage;
mod status;
mod unfit;

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    task::{Id, JoinSet},
    time::MissedTickBehavior,
};
use tracing::{Instrument, trace_span};

use crate::{
    access::authority::Authority,
    apiserver::{ApiServer, Identity, Resource},
    causes,
    controller::strays,
    events::Recorder,
    leader::fence::Claim,
    metrics::Metrics,
    model::{
        crd::{FINALIZER, own_watch},
        kind::Kind,
        manifest::{Mapping, Projection, Watch},
        object::ObjectKey,
        selector,
    },
    modules::Modules,
    queue::{CHANGE, Outcome, Urgency, shared::SharedQueue},
    sandbox::Sandbox,
    share::places::Places,
    watch::{Cache, Entry, Hub, Subscriber, Subscription, Trigger, Wake, Wakes, WatchKey},
};
use garbage::Collector;
use keeper::{Died, Estate, Keeper};
use primaries::Primaries;

/// How often controllers are looked for that nobody keeps.
const ORPHANS_EVERY: Duration = Duration::from_secs(60);
/// Where a WasmController names its account.
const ACCOUNT: &str = "spec.serviceAccountName";

/// What the manager needs of the host.
#[derive(Debug)]
pub struct Needs {
    /// The API server, for the host's own requests.
    pub api: ApiServer,
    /// The API server over connections of their own, for what guests ask.
    pub guests: ApiServer,
    /// The watches.
    pub hub: Hub,
    /// Answers about rights.
    pub authority: Authority,
    /// The guests' home.
    pub sandbox: Sandbox,
    /// The stored components.
    pub modules: Modules,
    /// Where events go.
    pub recorder: Recorder,
    /// Counters.
    pub metrics: Metrics,
    /// Places for runs.
    pub places: Places,
    /// The host's claim on its controllers.
    pub claim: watch::Receiver<Option<Claim>>,
    /// Whether the API server answers.
    pub reachable: watch::Receiver<bool>,
    /// A write takes no longer.
    pub write_timeout: Duration,
    /// The host's own user name.
    pub user: Arc<str>,
    /// Only WasmControllers that match this label selector.
    pub controllers: Option<String>,
    /// No guest may have more memory, in bytes.
    pub memory_ceiling: usize,
    /// No team may have more bytes in caches.
    pub team_caches: usize,
}

/// Keeps all WasmControllers of this host.
#[derive(Debug)]
pub struct Manager {
    estate: Estate,
    own_wakes: Arc<OwnWakes>,
    watches: [Subscription; 3],
    /// What the host holds, and what keepers may act on: the same, once the host's own caches are fresh.
    claim: watch::Receiver<Option<Claim>>,
    confirmed: watch::Sender<Option<Claim>>,
    ready: watch::Sender<bool>,
    keepers: HashMap<ObjectKey, Arc<Notify>>,
    keys: HashMap<Id, ObjectKey>,
    tasks: JoinSet<Result<(), Died>>,
    collector: Arc<Mutex<Collector>>,
    /// A look for files that nobody needs.
    collecting: JoinSet<()>,
    /// Whether the host keeps some WasmControllers only.
    selects: bool,
    /// Controllers that are being deleted and not selected: perhaps nobody's.
    orphans: JoinSet<Vec<ObjectKey>>,
}

/// Takes the wake-ups of the host's own watches.
#[derive(Debug, Default)]
struct OwnWakes {
    inbox: SharedQueue,
    controllers: OnceLock<Arc<Cache>>,
}

impl Wakes for OwnWakes {
    fn wake(&self, wake: Wake, urgency: Urgency) {
        match wake {
            Wake::One(key) => self.inbox.add(&key, urgency),
            Wake::Indexed { values, .. } => {
                let Some(cache) = self.controllers.get() else { return };
                for (namespace, value) in values {
                    self.inbox
                        .add_all(cache.indexed(ACCOUNT, namespace.as_deref(), &value), urgency);
                }
            }
            Wake::Every => (),
        }
    }
}

impl Manager {
    /// Opens the host's own watches; the receiver is true once they are synced.
    #[expect(clippy::too_many_lines, reason = "every part is handed on by its name")]
    pub fn new(needs: Needs) -> Result<(Self, watch::Receiver<bool>), selector::Error> {
        let own_wakes = Arc::new(OwnWakes::default());
        let open = |resource: Resource, watch: Watch, index: Option<&str>| {
            let key = WatchKey {
                resource,
                namespace: None,
                label_selector: watch.label_selector.clone(),
                field_selector: None,
                projection: watch.projection,
                identity: Identity::Host,
            };
            let trigger = Trigger::new(&watch, &objects::controllers())?;
            let indexes = index.into_iter().map(str::to_owned).collect();
            Ok(needs.hub.subscribe(&key, Subscriber { trigger, wakes: own_wakes.clone(), indexes }))
        };
        let watch = own_watch("WasmController");
        let mine = Watch { label_selector: needs.controllers.clone(), ..watch };
        let controllers = open(objects::controllers(), mine, Some(ACCOUNT))?;
        let _ = own_wakes.controllers.set(controllers.cache().clone());
        let revision = Watch { mapping: Mapping::Controller, ..own_watch("WasmRevision") };
        let revisions = open(objects::revisions(), revision, None)?;
        let (resource, watch) = service_accounts();
        let accounts = open(resource, watch, None)?;
        let (confirmed, claim) = watch::channel(None);
        let estate = Estate {
            guests: needs.guests,
            staging: stage::Host {
                hub: needs.hub,
                authority: needs.authority,
                sandbox: needs.sandbox,
                modules: needs.modules,
                user: needs.user,
                memory_ceiling: needs.memory_ceiling,
                team_caches: needs.team_caches,
                primaries: Arc::new(Primaries::new(controllers.cache().clone())),
                places: needs.places.clone(),
                describes: Places::with_most(stage::DESCRIBES, stage::DESCRIBES_OF_ONE_TEAM),
            },
            api: needs.api,
            recorder: needs.recorder,
            metrics: needs.metrics,
            places: needs.places,
            claim,
            reachable: needs.reachable,
            write_timeout: needs.write_timeout,
            controllers: controllers.cache().clone(),
            revisions: revisions.cache().clone(),
            accounts: accounts.cache().clone(),
        };
        let (ready, is_ready) = watch::channel(false);
        let manager = Self {
            estate,
            own_wakes,
            watches: [controllers, revisions, accounts],
            claim: needs.claim,
            confirmed,
            ready,
            keepers: HashMap::new(),
            keys: HashMap::new(),
            tasks: JoinSet::new(),
            collector: Arc::default(),
            collecting: JoinSet::new(),
            selects: needs.controllers.is_some(),
            orphans: JoinSet::new(),
        };
        Ok((manager, is_ready))
    }

    /// Keeps the controllers until `stop` becomes true, then drains them all.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) -> Result<(), Died> {
        let synced = async {
            for subscription in &self.watches {
                let _ = subscription.state().wait_for(|state| state.synced).await;
            }
        };
        tokio::select! {
            () = synced => (),
            _ = stop.wait_for(|stop| *stop) => return Ok(()),
        }
        self.estate.staging.modules.synced();
        self.ready.send_replace(true);
        self.claim.mark_changed();
        let mut collects = tokio::time::interval(garbage::LOOK_EVERY);
        collects.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looks = tokio::time::interval(ORPHANS_EVERY);
        while !*stop.borrow() {
            let due = self.own_wakes.inbox.next_due();
            let unconfirmed = self.unconfirmed();
            tokio::select! {
                Ok(()) = self.claim.changed() => {
                    // A claim that is lost is lost at once; one that was won waits until the caches are fresh.
                    self.confirmed.send_replace(None);
                }
                () = fresh(&self.watches, unconfirmed.as_ref()), if unconfirmed.is_some() => {
                    self.confirmed.send_replace(unconfirmed);
                }
                () = sleep(due) => self.dispatch(&stop),
                () = self.own_wakes.inbox.changed() => (),
                Some(ended) = self.tasks.join_next_with_id() => self.reap(ended)?,
                _ = collects.tick() => self.collect(),
                Some(_) = self.collecting.join_next() => (),
                _ = looks.tick(), if self.selects => self.look_for_orphans(),
                Some(Ok(found)) = self.orphans.join_next(), if !self.orphans.is_empty() => {
                    for key in found {
                        self.keep(key, &stop);
                    }
                }
                Ok(()) = stop.changed() => (),
            }
        }
        self.ready.send_replace(false);
        while let Some(ended) = self.tasks.join_next_with_id().await {
            self.reap(ended)?;
        }
        Ok(())
    }

    /// Looks for files that nobody needs, if this host works and sees everything that names one.
    fn collect(&mut self) {
        let sees = |watch: &Subscription| {
            let state = watch.state().borrow().clone();
            state.synced && state.trouble.is_none()
        };
        let works = self.confirmed.borrow().as_ref().is_some_and(Claim::holds);
        if !works || !self.watches.iter().all(sees) || !self.collecting.is_empty() {
            return;
        }
        let needed = garbage::named(&self.estate.controllers, &self.estate.revisions);
        let (collector, host) = (self.collector.clone(), self.estate.staging.clone());
        self.collecting.spawn_blocking(move || {
            let mut collector = collector.lock();
            let files = (&host.modules, &host.sandbox);
            if let Err(error) = collector.look(files, &needed, crate::clock::now()) {
                tracing::warn!(
                    error = causes::all(&*error),
                    "cannot look for files that nobody needs"
                );
            }
        });
    }

    fn unconfirmed(&self) -> Option<Claim> {
        let claim = self.claim.borrow().clone();
        claim.filter(|claim| self.confirmed.borrow().as_ref() != Some(claim))
    }

    /// Wakes the keeper of each waiting key; makes one for a new object.
    fn dispatch(&mut self, stop: &watch::Receiver<bool>) {
        while let Some(taken) = self.own_wakes.inbox.take() {
            let key = taken.key;
            if let Some(keeper) = self.keepers.get(&key) {
                keeper.notify_one();
            } else if self.estate.controllers.get(&key).is_some() {
                self.keep(key.clone(), stop);
            }
            self.own_wakes.inbox.done(&key, Outcome::Done);
        }
    }

    fn keep(&mut self, key: ObjectKey, stop: &watch::Receiver<bool>) {
        if self.keepers.contains_key(&key) {
            return;
        }
        let wake = Arc::new(Notify::new());
        let keeper = Keeper::new(key.clone(), self.estate.clone(), wake.clone(), stop.clone());
        let kept = keeper.run().instrument(trace_span!("loop", of = "keeper"));
        let id = self.tasks.spawn(kept).id();
        self.keys.insert(id, key.clone());
        self.keepers.insert(key, wake);
    }

    /// A controller may have left the selector while no host was there; deleted, it would wait for one for ever.
    fn look_for_orphans(&mut self) {
        if self.confirmed.borrow().is_none() || !self.orphans.is_empty() {
            return;
        }
        let (api, cache) = (self.estate.api.clone(), self.estate.controllers.clone());
        self.orphans.spawn(async move {
            let has = |name: &str| name == FINALIZER;
            let waits = |entry: &Entry| entry.is_deleting() && entry.finalizers().any(has);
            let all = (&objects::controllers(), None);
            let found = strays::those(&api, all, Identity::Host, waits).await;
            let found = found.unwrap_or_else(|error| {
                let error = crate::causes::all(&error);
                tracing::debug!(error, "cannot look for controllers that nobody keeps");
                vec![]
            });
            found.into_iter().filter(|key| cache.get(key).is_none()).collect()
        });
    }

    fn reap(
        &mut self,
        ended: Result<(Id, Result<(), Died>), tokio::task::JoinError>,
    ) -> Result<(), Died> {
        let (id, result) = match ended {
            Ok(ended) => ended,
            Err(error) => {
                let key =
                    self.keys.remove(&error.id()).map(|key| key.to_string()).unwrap_or_default();
                tracing::error!(controller = key, %error, "a keeper ended unexpectedly");
                return Err(Died(key));
            }
        };
        let Some(key) = self.keys.remove(&id) else { return result };
        self.keepers.remove(&key);
        // It may have been made again between the keeper's last look and its end.
        if self.estate.controllers.get(&key).is_some() {
            self.own_wakes.inbox.add(&key, Urgency::news(CHANGE));
        }
        result
    }
}

fn service_accounts() -> (Resource, Watch) {
    let kind = Kind::new("v1", "ServiceAccount");
    let resource = Resource {
        kind: kind.clone(),
        plural: "serviceaccounts".to_owned(),
        namespaced: true,
        has_status: false,
    };
    let watch = Watch {
        kind,
        projection: Projection::Metadata,
        label_selector: None,
        field_selector: None,
        predicate: vec![],
        mapping: Mapping::Index(ACCOUNT.to_owned()),
    };
    (resource, watch)
}

/// Waits until the host's own caches have what the last holder of `claim` wrote.
async fn fresh(watches: &[Subscription], claim: Option<&Claim>) {
    if let Some(claim) = claim {
        futures::future::join_all(watches.iter().map(|watch| watch.fresh(claim.since))).await;
    }
}

async fn sleep(due: Option<Duration>) {
    match due {
        Some(due) => tokio::time::sleep(due).await,
        None => std::future::pending().await,
    }
}
