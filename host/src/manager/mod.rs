//! Turns WasmControllers and WasmRevisions into running controllers: one keeper task each.
//!
//! The manager owns the host's own watches. It tells keepers that something about their object has changed, never
//! what: they read it themselves.

mod directory;
mod estate;
mod garbage;
mod images;
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
mod signed;
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
    apiserver::{Identity, Resource},
    causes,
    controller::strays,
    leader::fence::Claim,
    model::{
        crd::{FINALIZER, own_watch},
        kind::Kind,
        manifest::{Mapping, Projection, Watch},
        object::ObjectKey,
    },
    queue::{CHANGE, Outcome, Urgency, shared::SharedQueue},
    share::slots::Slots,
    watch::{Cache, Entry, Subscriber, Subscription, Trigger, Wake, Wakes, WatchKey},
};
pub use directory::Directory;
use estate::Estate;
pub use estate::Host;
use garbage::Collector;
pub use keeper::PlanAsk;
use keeper::{Died, Keeper};
use primaries::Primaries;

/// How often controllers are looked for that nobody keeps.
const ORPHANS_EVERY: Duration = Duration::from_secs(60);
/// Where a WasmController names its account.
const ACCOUNT: &str = "spec.serviceAccountName";

/// Keeps all WasmControllers of this host.
#[derive(Debug)]
pub struct Manager {
    estate: Arc<Estate>,
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
    queue: SharedQueue,
    controllers: OnceLock<Arc<Cache>>,
}

impl Wakes for OwnWakes {
    fn wake(&self, wake: Wake, urgency: Urgency) {
        match wake {
            Wake::One(key) => self.queue.add(&key, urgency),
            Wake::Indexed { values, .. } => {
                let Some(cache) = self.controllers.get() else { return };
                for (namespace, value) in values {
                    self.queue
                        .add_all(cache.indexed(ACCOUNT, namespace.as_deref(), &value), urgency);
                }
            }
            Wake::Every => (),
        }
    }
}

impl Manager {
    /// Opens the host's own watches; the receiver is true once they are synced.
    ///
    /// Only WasmControllers that match the label selector `controllers` are kept, if there is one.
    pub fn new(
        host: Host,
        controllers: Option<&str>,
    ) -> Result<(Self, watch::Receiver<bool>), nagaya_selector::Error> {
        let (own_wakes, selected) = (Arc::new(OwnWakes::default()), controllers);
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
            Ok(host.hub.subscribe(&key, Subscriber { trigger, wakes: own_wakes.clone(), indexes }))
        };
        let watch = own_watch("WasmController");
        let mine = Watch { label_selector: selected.map(str::to_owned), ..watch };
        let controllers = open(objects::controllers(), mine, Some(ACCOUNT))?;
        let _ = own_wakes.controllers.set(controllers.cache().clone());
        let revision = Watch { mapping: Mapping::Controller, ..own_watch("WasmRevision") };
        let revisions = open(objects::revisions(), revision, None)?;
        let (resource, watch) = service_accounts();
        let accounts = open(resource, watch, None)?;
        let seen = controllers.cache().clone();
        host.metrics.conditions(move || objects::conditions(&seen));
        host.directory.open(controllers.cache(), revisions.cache());
        let (confirmed, claim) = watch::channel(None);
        let host_claim = host.claim.clone();
        let estate = Estate {
            host,
            claim,
            primaries: Arc::new(Primaries::new(controllers.cache().clone())),
            describes: Slots::with_most(stage::DESCRIBES, stage::DESCRIBES_OF_ONE_TEAM),
            pulls: Slots::with_most(images::PULLS, images::PULLS_OF_ONE_TEAM),
            controllers: controllers.cache().clone(),
            revisions: revisions.cache().clone(),
            accounts: accounts.cache().clone(),
        };
        let (ready, is_ready) = watch::channel(false);
        let manager = Self {
            estate: Arc::new(estate),
            own_wakes,
            watches: [controllers, revisions, accounts],
            claim: host_claim,
            confirmed,
            ready,
            keepers: HashMap::new(),
            keys: HashMap::new(),
            tasks: JoinSet::new(),
            collector: Arc::default(),
            collecting: JoinSet::new(),
            selects: selected.is_some(),
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
        self.estate.host.modules.synced();
        self.ready.send_replace(true);
        self.claim.mark_changed();
        let mut collects = tokio::time::interval(garbage::LOOK_EVERY);
        collects.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looks = tokio::time::interval(ORPHANS_EVERY);
        while !*stop.borrow() {
            let due = self.own_wakes.queue.next_due();
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
                () = self.own_wakes.queue.changed() => (),
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
        let (collector, estate) = (self.collector.clone(), self.estate.clone());
        self.collecting.spawn_blocking(move || {
            let mut collector = collector.lock();
            let files = (&estate.host.modules, &estate.host.sandbox);
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
        while let Some(taken) = self.own_wakes.queue.take() {
            let key = taken.key;
            if let Some(keeper) = self.keepers.get(&key) {
                keeper.notify_one();
            } else if self.estate.controllers.get(&key).is_some() {
                self.keep(key.clone(), stop);
            }
            self.own_wakes.queue.done(&key, Outcome::Done);
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
        let (api, cache) = (self.estate.host.api.clone(), self.estate.controllers.clone());
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
            self.own_wakes.queue.add(&key, Urgency::news(CHANGE));
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
