//! One shared list-watch per kind, scope, selector, projection and identity, counted by its users.
//!
//! A task per [`WatchKey`] owns the [`Stream`] and is the [`Cache`]'s only writer. Subscribers are told
//! keys, never objects, by inserting into a set that never blocks. A watch that nobody uses lingers for a minute, so
//! that a swap of revisions never lists a kind again.
//!
//! Invariant, on a real server: `thirty_controllers_and_two_revisions_share_one_watch_a_kind`.

mod asks;
pub mod cache;
pub mod envelope;
pub mod fault;
mod feed;
pub mod fingerprint;
mod health;
mod index;
pub mod intern;
mod lenient;
mod life;
mod proof;
pub mod stream;
mod task;
pub mod trigger;
mod wire;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};
use tokio::{
    runtime::Handle,
    sync::{Semaphore, mpsc, oneshot, watch},
};
use tracing::{Instrument, trace_span};

pub use cache::{Cache, Change, Query};
pub use envelope::Entry;
pub use fault::Fault;
pub use stream::Stream;
pub use trigger::{Trigger, Wake};

use crate::{
    apiserver::{ApiServer, Identity, Resource},
    model::manifest::Projection,
    queue::Urgency,
};
use asks::Asks;
use feed::Feed;
use health::Health;
use life::Life;

/// Namespaces of which a kind is watched, from which on one connection serves them all.
/// See `docs/decisions/0014-one-connection-for-many-namespaces.md`.
const SHARED_FROM: usize = 2;
/// Initial lists at the same time, to bound the peak of memory.
const LISTS_AT_ONCE: usize = 4;

/// What one watch is about; equal keys share a watch.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WatchKey {
    /// The kind, as it is served.
    pub resource: Resource,
    /// The one namespace; `None`: all.
    pub namespace: Option<Arc<str>>,
    /// Label selector on the server.
    pub label_selector: Option<String>,
    /// Field selector on the server.
    pub field_selector: Option<String>,
    /// How much of each object is kept.
    pub projection: Projection,
    /// As whom it is opened.
    pub identity: Identity,
}

/// Hears of changes. It is called by the watch's task: it must neither block nor wait.
pub trait Wakes: Send + Sync {
    /// Wakes primaries.
    fn wake(&self, wake: Wake, urgency: Urgency);
}

/// Who hears of a watch's changes, and how they are turned into primaries.
pub struct Subscriber {
    /// Predicate and mapping.
    pub trigger: Trigger,
    /// Whom to tell.
    pub wakes: Arc<dyn Wakes>,
    /// Paths of fields that the cache must index.
    pub indexes: Vec<String>,
}

/// How a watch is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Whether the first state was complete: the cache can be read.
    pub synced: bool,
    /// The last failure, unless something has gone well since.
    pub trouble: Option<Fault>,
    /// The cache has all that was written before this; `None`: nobody knows.
    pub fresh: Option<Instant>,
}

/// All watches of the host; cheap to clone.
#[derive(Clone, Debug)]
pub struct Hub(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    api: ApiServer,
    control: Handle,
    lists: Arc<Semaphore>,
    health: Health,
    subscribed: AtomicU64,
    open: Mutex<Open>,
}

/// What runs.
#[derive(Debug, Default)]
struct Open {
    watches: HashMap<WatchKey, Watching>,
    feeds: HashMap<WatchKey, Feed>,
}

#[derive(Clone, Debug)]
struct Watching {
    messages: Messages,
    cache: Arc<Cache>,
    state: watch::Receiver<State>,
    life: Arc<Life>,
    /// Held by whoever asks whether the cache is fresh: one question serves all.
    proving: Arc<Semaphore>,
    asks: Asks,
    /// The teams that use it, and how often.
    teams: Arc<Mutex<BTreeMap<Arc<str>, usize>>>,
}

impl Watching {
    fn teams(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, usize>> {
        self.teams.lock()
    }
}

/// Unbounded, but every subscription sends one message at its start, one at its end, and waits for the others.
type Messages = mpsc::UnboundedSender<Message>;

enum Message {
    Subscribe(u64, Subscriber),
    /// The subscriber, and whether a watch that nobody uses any more stays open for a while.
    Unsubscribe(u64, bool),
    /// Deliver every object to one subscriber as it was.
    Resync(u64),
    /// Answer once everything before was done.
    Barrier(oneshot::Sender<()>),
    /// Open the watch anew, so that the server sends a bookmark soon.
    Again,
    /// There is a feed that may bring the lines.
    Share(Feed),
    /// Everything that was written before this is in the cache.
    Fresh(Instant),
}

/// One use of a watch; dropping it gives it up.
#[derive(Debug)]
pub struct Subscription {
    id: u64,
    key: WatchKey,
    watching: Watching,
    /// Whose share of memory it counts to.
    team: Option<Arc<str>>,
    lingers: bool,
}

/// One watch, for metrics.
#[derive(Clone, Debug)]
pub struct Stats {
    /// What it is about.
    pub key: WatchKey,
    /// Objects in its cache.
    pub objects: usize,
    /// Bytes of their texts.
    pub bytes: usize,
    /// How long ago it last showed that it lives.
    pub silent: Duration,
}

impl Hub {
    /// No watches yet; their tasks run on `control`.
    pub fn new(api: ApiServer, control: Handle) -> Self {
        let health = Health::default();
        control
            .spawn(health.clone().run(api.clone()).instrument(trace_span!("loop", of = "health")));
        Self(Arc::new(Inner {
            api,
            control,
            lists: Arc::new(Semaphore::new(LISTS_AT_ONCE)),
            health,
            subscribed: AtomicU64::new(0),
            open: Mutex::default(),
        }))
    }

    /// Uses the watch `key`, opening it if nobody does yet. The subscriber first hears of all objects that are there.
    pub fn subscribe(&self, key: &WatchKey, subscriber: Subscriber) -> Subscription {
        let id = self.0.subscribed.fetch_add(1, Ordering::Relaxed);
        let mut open = self.open();
        let known = open.watches.get(key).filter(|watching| !watching.messages.is_closed());
        let watching = match known.cloned() {
            Some(known) => known,
            None => self.begin(&mut open, key),
        };
        // Sent under the lock: the task gives up only under it, and only if nothing was sent.
        let _ = watching.messages.send(Message::Subscribe(id, subscriber));
        drop(open);
        Subscription { id, key: key.clone(), watching, team: None, lingers: true }
    }

    fn begin(&self, open: &mut Open, key: &WatchKey) -> Watching {
        let of_all = key.of_all_namespaces();
        let feed = of_all.as_ref().and_then(|of_all| self.feed(open, of_all));
        let (watching, task) = task::Task::new(self.clone(), key.clone(), feed);
        open.watches.insert(key.clone(), watching.clone());
        self.0.control.spawn(task.run().instrument(trace_span!("loop", of = "watch")));
        watching
    }

    /// The feed for one namespace more, if there is one or is to be one now.
    fn feed(&self, open: &mut Open, of_all: &WatchKey) -> Option<Feed> {
        if let Some(feed) = open.feeds.get(of_all).filter(|feed| !feed.is_closed()) {
            return Some(feed.clone());
        }
        if open.namespaces_of(of_all).count() + 1 < SHARED_FROM {
            return None;
        }
        let (feed, task) = feed::Task::new(self.clone(), of_all.clone());
        self.0.control.spawn(task.run().instrument(trace_span!("loop", of = "feed")));
        for watching in open.namespaces_of(of_all) {
            let _ = watching.messages.send(Message::Share(feed.clone()));
        }
        open.feeds.insert(of_all.clone(), feed.clone());
        Some(feed)
    }

    /// Whether too few watches could use the feed.
    fn is_feed_unused(&self, key: &WatchKey) -> bool {
        self.open().namespaces_of(key).count() < SHARED_FROM
    }

    /// Ends the feed, unless it can be used again: under the lock, so that no watch begins meanwhile.
    fn end_feed(&self, key: &WatchKey) -> bool {
        let mut open = self.open();
        let ends = open.namespaces_of(key).count() < SHARED_FROM;
        if ends {
            open.feeds.remove(key);
        }
        ends
    }

    fn api(&self) -> &ApiServer {
        &self.0.api
    }

    fn health(&self) -> &Health {
        &self.0.health
    }

    /// About how many bytes of memory the caches take that `team` uses: of one that others use too, its part.
    pub fn held_by(&self, team: &str) -> usize {
        let open = self.open();
        let parts = open.watches.values().filter_map(|watching| {
            let teams = watching.teams();
            teams.contains_key(team).then(|| watching.cache.cost() / teams.len())
        });
        parts.sum()
    }

    /// Whether the API server can be reached, as far as a watch has had a reason to ask.
    pub fn reachable(&self) -> watch::Receiver<bool> {
        self.0.health.reachable()
    }

    /// How each open watch is doing at `now`.
    pub fn stats(&self, now: Instant) -> Vec<Stats> {
        let open = self.open();
        let stats = open.watches.iter().map(|(key, watching)| Stats {
            key: key.clone(),
            objects: watching.cache.len(),
            bytes: watching.cache.bytes(),
            silent: now.saturating_duration_since(watching.life.last()),
        });
        stats.collect()
    }

    /// The keys of all open watches, for people and tests.
    pub fn open_watches(&self) -> Vec<WatchKey> {
        let mut keys: Vec<_> = self.open().watches.keys().cloned().collect();
        keys.sort_unstable();
        keys
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.0.open.lock()
    }
}

impl Open {
    /// The watches of single namespaces that the feed `of_all` could serve.
    fn namespaces_of(&self, of_all: &WatchKey) -> impl Iterator<Item = &Watching> {
        let fits = |key: &WatchKey| key.namespace.is_some() && key.is_but_for_namespace(of_all);
        self.watches.iter().filter(move |(key, _)| fits(key)).map(|(_, watching)| watching)
    }
}

impl WatchKey {
    /// The same of all namespaces, if this is of one and the host asks for itself.
    fn of_all_namespaces(&self) -> Option<Self> {
        let is_shared = self.namespace.is_some() && self.identity == Identity::Host;
        is_shared.then(|| Self { namespace: None, ..self.clone() })
    }

    fn is_but_for_namespace(&self, other: &Self) -> bool {
        let Self { resource, namespace: _, label_selector, field_selector, projection, identity } =
            self;
        *resource == other.resource
            && *label_selector == other.label_selector
            && *field_selector == other.field_selector
            && *projection == other.projection
            && *identity == other.identity
    }
}

impl Subscription {
    fn asks(&self) -> &Asks {
        &self.watching.asks
    }

    /// Counts the cache to what `team` holds.
    #[must_use]
    pub fn charged_to(mut self, team: &str) -> Self {
        let team: Arc<str> = team.into();
        *self.watching.teams().entry(team.clone()).or_default() += 1;
        self.team = Some(team);
        self
    }

    /// Gives the use up, and the watch with it at once if nobody else uses it: its cache is too large to be kept.
    pub fn forsake(mut self) {
        self.lingers = false;
    }

    /// The objects.
    pub fn cache(&self) -> &Arc<Cache> {
        &self.watching.cache
    }

    /// As whom the watch was opened.
    pub fn identity(&self) -> &Identity {
        &self.key.identity
    }

    /// How the watch is doing.
    pub fn state(&self) -> watch::Receiver<State> {
        self.watching.state.clone()
    }

    /// Delivers every object once more as unchanged, behind all changes: predicates that want a change refuse it.
    pub fn resync(&self) {
        let _ = self.watching.messages.send(Message::Resync(self.id));
    }

    /// Returns once every change that the watch saw before this call has been delivered.
    pub async fn barrier(&self) {
        let (done, waiting) = oneshot::channel();
        let _ = self.watching.messages.send(Message::Barrier(done));
        let _ = waiting.await;
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Some(team) = &self.team {
            let mut teams = self.watching.teams();
            if let Some(uses) = teams.get_mut(team) {
                *uses -= 1;
                if *uses == 0 {
                    teams.remove(team);
                }
            }
        }
        let _ = self.watching.messages.send(Message::Unsubscribe(self.id, self.lingers));
    }
}

impl fmt::Debug for Subscriber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscriber").field("trigger", &self.trigger).finish_non_exhaustive()
    }
}

impl fmt::Display for WatchKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.resource.kind)?;
        if let Some(namespace) = &self.namespace {
            write!(f, " in {namespace}")?;
        }
        for selector in [&self.label_selector, &self.field_selector].into_iter().flatten() {
            write!(f, " with {selector}")?;
        }
        if self.projection == Projection::Metadata {
            f.write_str(", metadata only")?;
        }
        write!(f, ", as {}", self.identity)
    }
}
