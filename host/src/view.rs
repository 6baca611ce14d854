//! What one revision sees: its watches, their caches, and the account's right to each.
//!
//! The grant filters both what a guest reads and which keys are woken, because names leak too (R54). A right that
//! nobody could confirm lately counts as none; what was missed meanwhile is delivered once it is confirmed again, so
//! that closing a watch loses nothing.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use crate::{
    apiserver::{Identity, Resource},
    authority::{Authority, Interest},
    grant::{Right, Verdict},
    inbox::Inbox,
    manifest::{self, Kind, Manifest},
    queue::{self, Urgency},
    watch::{Cache, Entry, ObjectKey, Subscription, Wake, Wakes},
};

/// One revision's window on the cluster.
pub struct View {
    account: Identity,
    authority: Authority,
    manifest: Manifest,
    resources: RwLock<BTreeMap<(String, String), Arc<Resource>>>,
    /// A kind that it watches is served in another way by now.
    outdated: AtomicBool,
    sights: Vec<Sight>,
    gatekeeper: Arc<Live>,
    _interest: Interest,
}

/// One subscription and the rights it rests on.
pub struct Sight {
    /// What the manifest asked for.
    pub watch: manifest::Watch,
    /// The one namespace; `None`: all.
    pub namespace: Option<Arc<str>>,
    /// The shared watch.
    pub subscription: Subscription,
    /// get, list and watch.
    pub rights: Arc<[Right]>,
    gate: Arc<Gatekeeper>,
}

/// Whether the revision's watches wake anything: true for the live revision only.
#[derive(Debug, Default)]
pub struct Live {
    open: AtomicBool,
    primaries: OnceLock<Vec<Arc<Cache>>>,
}

/// Stands between a shared watch and the controller's queue.
#[derive(Debug)]
pub struct Gatekeeper {
    live: Arc<Live>,
    inbox: Arc<Inbox>,
    account: Identity,
    authority: Authority,
    rights: Arc<[Right]>,
    namespaces: Option<Arc<[Arc<str>]>>,
    index_paths: BTreeMap<String, String>,
    missed: AtomicBool,
}

/// A watch that the API server refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blind {
    /// What cannot be watched.
    pub kind: Kind,
    /// HTTP status.
    pub code: u16,
    /// The server's words.
    pub message: String,
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").field("account", &self.account).finish_non_exhaustive()
    }
}

impl Sight {
    /// Puts a subscription together with the rights it rests on and its gatekeeper.
    pub fn new(
        watch: manifest::Watch,
        namespace: Option<Arc<str>>,
        subscription: Subscription,
        gate: Arc<Gatekeeper>,
    ) -> Self {
        Self { watch, namespace, subscription, rights: gate.rights.clone(), gate }
    }

    /// Whether `namespace` may hold objects of this watch.
    pub fn covers(&self, namespace: Option<&str>) -> bool {
        self.namespace.is_none() || self.namespace.as_deref() == namespace
    }

    /// The cache.
    pub fn cache(&self) -> &Arc<Cache> {
        self.subscription.cache()
    }
}

impl View {
    /// A view that is not live yet.
    pub fn new(
        (account, authority): (Identity, Authority),
        manifest: Manifest,
        resources: BTreeMap<(String, String), Resource>,
        sights: Vec<Sight>,
        live: Arc<Live>,
    ) -> Self {
        let primaries = sights
            .iter()
            .filter(|sight| sight.watch == manifest.primary)
            .map(|sight| sight.cache().clone())
            .collect();
        let _ = live.primaries.set(primaries);
        let rights = sights.iter().flat_map(|sight| sight.rights.iter().cloned()).collect();
        let interest = authority.keep_fresh(account.clone(), rights);
        Self {
            account,
            authority,
            manifest,
            resources: RwLock::new(
                resources.into_iter().map(|(kind, resource)| (kind, Arc::new(resource))).collect(),
            ),
            outdated: AtomicBool::new(false),
            sights,
            gatekeeper: live,
            _interest: interest,
        }
    }

    /// What the revision declared.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// How `kind` is served, if the manifest names it.
    pub fn resource(&self, kind: &Kind) -> Option<Arc<Resource>> {
        let resources = self.resources.read().unwrap_or_else(PoisonError::into_inner);
        resources.get(&(kind.group.clone(), kind.kind.clone())).cloned()
    }

    /// A kind that the manifest names turned out to be served like this.
    pub fn learn(&self, resource: Resource) {
        let mut resources = self.resources.write().unwrap_or_else(PoisonError::into_inner);
        let id = (resource.kind.group.clone(), resource.kind.kind.clone());
        let Some(known) = resources.get_mut(&id).filter(|known| ***known != resource) else {
            return;
        };
        tracing::warn!(kind = %resource.kind, plural = resource.plural, namespaced = resource.namespaced, has_status = resource.has_status, "a kind is served in another way than before");
        let is_elsewhere =
            known.plural != resource.plural || known.namespaced != resource.namespaced;
        if is_elsewhere && self.sights(&resource.kind).next().is_some() {
            self.outdated.store(true, Ordering::SeqCst);
        }
        *known = Arc::new(resource);
    }

    /// Whether one of its watches asks where nothing is served any more: the revision must be staged again.
    pub fn is_outdated(&self) -> bool {
        self.outdated.load(Ordering::SeqCst)
    }

    /// Whether `kind` is the reconciled one.
    pub fn is_primary(&self, kind: &Kind) -> bool {
        manifest::same_kind(&self.manifest.primary.kind, kind)
    }

    /// Every subscription.
    pub fn all_sights(&self) -> &[Sight] {
        &self.sights
    }

    /// The subscriptions to `kind`.
    pub fn sights(&self, kind: &Kind) -> impl Iterator<Item = &Sight> {
        self.sights.iter().filter(|sight| manifest::same_kind(&sight.watch.kind, kind))
    }

    /// The cached object, without asking who may see it: for the host's own use.
    pub fn entry(&self, kind: &Kind, namespace: Option<&str>, name: &str) -> Option<Arc<Entry>> {
        let key = ObjectKey::new(namespace, name);
        self.sights(kind)
            .filter(|sight| sight.covers(namespace))
            .find_map(|sight| sight.cache().get(&key))
    }

    /// The cached primary.
    pub fn primary(&self, key: &ObjectKey) -> Option<Arc<Entry>> {
        self.entry(&self.manifest.primary.kind, key.namespace.as_deref(), &key.name)
    }

    /// The subscriptions to `kind` that cover `namespace` (`None`: any), as far as the account may read them now.
    ///
    /// An error is the first right that is missing or cannot be confirmed.
    pub async fn readable(
        &self,
        kind: &Kind,
        namespace: Option<&str>,
    ) -> Result<Vec<&Sight>, (Right, Verdict)> {
        let mut readable = vec![];
        for sight in self.sights(kind) {
            if namespace.is_some() && !sight.covers(namespace) {
                continue;
            }
            for right in &*sight.rights {
                match self.authority.allows(&self.account, right).await {
                    Ok(true) => (),
                    Ok(false) => return Err((right.clone(), Verdict::Denied)),
                    Err(_) => return Err((right.clone(), Verdict::Unknown)),
                }
            }
            readable.push(sight);
        }
        Ok(readable)
    }

    /// All cached primaries.
    pub fn primaries(&self) -> impl Iterator<Item = Arc<Entry>> {
        self.gatekeeper.primaries().flat_map(|cache| cache.entries())
    }

    /// Returns once every change that its watches saw before this call has been delivered.
    pub async fn barrier(&self) {
        for sight in &self.sights {
            sight.subscription.barrier().await;
        }
    }

    /// Whether every cache has all that was written before `since`.
    pub fn is_fresh(&self, since: Instant) -> bool {
        self.sights.iter().all(|sight| sight.subscription.is_fresh(since))
    }

    /// Waits until every cache has all that was written before `since`.
    pub async fn fresh(&self, since: Instant) {
        let all = self.sights.iter().map(|sight| sight.subscription.fresh(since));
        futures::future::join_all(all).await;
    }

    /// Lets the watches wake the controller, or stops them.
    pub fn set_live(&self, live: bool) {
        self.gatekeeper.open.store(live, Ordering::SeqCst);
    }

    /// Wakes every primary (R83).
    pub fn wake_all(&self, inbox: &Inbox) {
        for cache in self.gatekeeper.primaries() {
            inbox.add_all(cache.keys(), Urgency::news(queue::BACKGROUND));
        }
    }

    /// Delivers what a watch could not deliver while its right was not confirmed.
    pub fn deliver_missed(&self) {
        for sight in &self.sights {
            if sight.gate.may_see() && sight.gate.missed.swap(false, Ordering::SeqCst) {
                sight.subscription.redeliver();
            }
        }
    }

    /// Delivers every object once more, as unchanged (R7).
    pub fn resync(&self) {
        for sight in &self.sights {
            sight.subscription.resync();
        }
    }

    /// The first watch that the API server refuses at present, if any.
    pub fn blind(&self) -> Option<Blind> {
        self.sights.iter().find_map(|sight| {
            let state = sight.subscription.state();
            let state = state.borrow();
            let fault = state.trouble.as_ref()?;
            let (kind, code) = (sight.watch.kind.clone(), fault.number()?);
            Some(Blind { kind, code, message: fault.message.clone() })
        })
    }

    /// The first right that the account has lost, if any.
    pub fn lost_right(&self) -> Option<&Right> {
        self.sights
            .iter()
            .flat_map(|sight| sight.rights.iter())
            .find(|right| self.authority.verdict(&self.account, right) == Verdict::Denied)
    }
}

impl Live {
    fn primaries(&self) -> impl Iterator<Item = &Arc<Cache>> {
        self.primaries.get().into_iter().flatten()
    }
}

impl Gatekeeper {
    /// A gatekeeper of one watch of a revision.
    pub fn new(
        (live, inbox): (Arc<Live>, Arc<Inbox>),
        (account, authority): (Identity, Authority),
        rights: Arc<[Right]>,
        namespaces: Option<Arc<[Arc<str>]>>,
        manifest: &Manifest,
    ) -> Self {
        let index_paths =
            manifest.indexes.iter().map(|index| (index.name.clone(), index.path.clone())).collect();
        let missed = AtomicBool::new(false);
        Self { live, inbox, account, authority, rights, namespaces, index_paths, missed }
    }

    fn may_see(&self) -> bool {
        let allowed =
            |right: &Right| self.authority.verdict(&self.account, right) == Verdict::Allowed;
        self.rights.iter().all(allowed)
    }

    /// A scope of namespaces says nothing about primaries that lie in none.
    fn in_scope(&self, key: &ObjectKey) -> bool {
        let (Some(namespaces), Some(own)) = (&self.namespaces, &key.namespace) else { return true };
        namespaces.contains(own)
    }
}

impl Wakes for Gatekeeper {
    fn wake(&self, wake: Wake, urgency: Urgency) {
        if !self.live.open.load(Ordering::SeqCst) {
            return;
        }
        if !self.may_see() {
            self.missed.store(true, Ordering::SeqCst);
            return;
        }
        match wake {
            Wake::One(key) if self.in_scope(&key) => self.inbox.add(&key, urgency),
            Wake::One(_) => (),
            Wake::Every => {
                for cache in self.live.primaries() {
                    self.inbox.add_all(cache.keys(), urgency);
                }
            }
            Wake::Indexed { index, values } => {
                let Some(path) = self.index_paths.get(&index) else { return };
                for cache in self.live.primaries() {
                    for (namespace, value) in &values {
                        self.inbox
                            .add_all(cache.indexed(path, namespace.as_deref(), value), urgency);
                    }
                }
            }
        }
    }
}
