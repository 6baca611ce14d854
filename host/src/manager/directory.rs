//! The controllers that this host keeps, for whoever asks how one of them does.
//!
//! What it says is read where it is when it is asked for; nothing of it is kept here.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
};

use parking_lot::Mutex;
use serde_json::Value;

use super::PlanAsk;
use crate::{
    access::view::Source,
    controller::{rollout::Rollout, run::Executor},
    metrics::Watched,
    model::{
        live::{Live, Queue, Watch},
        object::ObjectKey,
        stored,
    },
    queue::shared::SharedQueue,
    watch::{Cache, Entry, Query},
};
use tokio::sync::{mpsc, watch};

/// The controllers of a host; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Directory(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    caches: OnceLock<Caches>,
    running: Mutex<HashMap<ObjectKey, Listed>>,
}

#[derive(Debug)]
struct Caches {
    controllers: Arc<Cache>,
    revisions: Arc<Cache>,
}

/// A controller that runs.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    pub(super) queue: Arc<SharedQueue>,
    pub(super) rollout: watch::Receiver<Rollout<Executor>>,
    /// Its keeper, for whoever wants a plan.
    pub(super) asks: mpsc::Sender<PlanAsk>,
}

/// Lists a controller as long as it is there.
#[derive(Debug)]
pub(super) struct Listing {
    directory: Directory,
    key: ObjectKey,
    queue: Arc<SharedQueue>,
}

impl Directory {
    /// Where WasmControllers and WasmRevisions are read.
    pub(super) fn open(&self, controllers: &Arc<Cache>, revisions: &Arc<Cache>) {
        let (controllers, revisions) = (controllers.clone(), revisions.clone());
        let _ = self.0.caches.set(Caches { controllers, revisions });
    }

    /// Lists a controller that runs.
    pub(super) fn list(&self, key: &ObjectKey, listed: Listed) -> Listing {
        let queue = listed.queue.clone();
        self.0.running.lock().insert(key.clone(), listed);
        Listing { directory: self.clone(), key: key.clone(), queue }
    }

    /// Passes a question for a plan on; false: nobody keeps such a controller, or too many ask.
    pub fn ask(&self, key: &ObjectKey, ask: PlanAsk) -> bool {
        let asks = self.0.running.lock().get(key).map(|listed| listed.asks.clone());
        asks.is_some_and(|asks| asks.try_send(ask).is_ok())
    }

    /// Whether there is a WasmController of this name.
    pub fn has(&self, key: &ObjectKey) -> bool {
        self.0.caches.get().is_some_and(|caches| caches.controllers.get(key).is_some())
    }

    /// How many WasmControllers there are.
    pub fn len(&self) -> usize {
        self.0.caches.get().map_or(0, |caches| caches.controllers.len())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How a controller does now; `None`: there is none that this host sees.
    pub fn look(&self, key: &ObjectKey) -> Option<Live> {
        let caches = self.0.caches.get()?;
        let controller = shown(&*caches.controllers.get(key)?);
        let query = Query { namespace: key.namespace.as_deref(), ..Query::default() };
        let (revisions, _) = caches.revisions.list(&query);
        let revisions = revisions.iter().map(|entry| shown(entry));
        let revisions = revisions.filter(|one| one["spec"]["controller"] == *key.name).collect();
        let listed = self.0.running.lock().get(key).cloned();
        let queue = listed.as_ref().map(|listed| queue(&listed.queue));
        let active = listed.and_then(|listed| listed.rollout.borrow().active.clone());
        let watches = active.map(|active| active.view.all_sources().iter().map(watch).collect());
        Some(Live { controller, revisions, queue, watches: watches.unwrap_or_default() })
    }
}

impl Drop for Listing {
    fn drop(&mut self) {
        let mut running = self.directory.0.running.lock();
        // One that was made anew under the same name has an entry of its own.
        if running.get(&self.key).is_some_and(|one| Arc::ptr_eq(&one.queue, &self.queue)) {
            running.remove(&self.key);
        }
    }
}

/// Without the field managers' bookkeeping, and without a config that is nested too deep to be read.
fn shown(entry: &Entry) -> Value {
    let text = stored::shown(entry.body()).unwrap_or_default();
    let mut object: Value = serde_json::from_str(&text).unwrap_or_default();
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("managedFields");
    }
    object
}

fn queue(queue: &SharedQueue) -> Queue {
    let stats = queue.stats();
    Queue {
        ready: stats.depth.values().sum(),
        later: stats.later,
        running: stats.running,
        longest_millis: std::time::Duration::from_secs_f64(stats.longest)
            .as_millis()
            .try_into()
            .unwrap_or(u64::MAX),
    }
}

fn watch(source: &Source) -> Watch {
    let state = source.subscription.state().borrow().clone();
    let kind = &source.watch.kind;
    Watch {
        api_version: kind.api_version(),
        kind: kind.kind.clone(),
        namespace: source.namespace.as_deref().map(str::to_owned),
        synced: state.synced,
        objects: source.cache().len(),
        bytes: source.cache().bytes(),
        trouble: state.trouble.map(|fault| fault.message),
    }
}
