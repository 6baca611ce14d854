//! What one revision sees: its watches, their caches, and the account's right to each.
//!
//! The grant filters both what a guest reads and which keys are woken, because names leak too. A right that
//! nobody could confirm lately counts as none; what was missed meanwhile is delivered once it is confirmed again, so
//! that closing a watch loses nothing.

mod gate;
mod missed;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

pub use gate::{Outlet, WakeFilter};

use crate::{
    access::{
        authority::{Authority, Interest},
        grant::{Right, Verdict},
    },
    apiserver::{Identity, Resource},
    model::{
        kind::{Kind, same_kind},
        manifest::{Manifest, Watch},
        object::ObjectKey,
    },
    queue::{self, Urgency},
    watch::{Cache, Entry, Subscription},
};
use gate::{Door, Primary};
use parking_lot::RwLock;

/// One revision's window on the cluster.
pub struct View {
    account: Identity,
    authority: Authority,
    manifest: Manifest,
    resources: RwLock<BTreeMap<(String, String), Arc<Resource>>>,
    /// A kind that it watches is served in another way by now.
    outdated: AtomicBool,
    sources: Vec<Source>,
    outlet: Arc<Outlet>,
    _interest: Interest,
}

/// One subscription and the rights it rests on.
pub struct Source {
    /// What the manifest asked for.
    pub watch: Watch,
    /// The one namespace; `None`: all.
    pub namespace: Option<Arc<str>>,
    /// The shared watch.
    pub subscription: Subscription,
    /// get, list and watch.
    pub rights: Arc<[Right]>,
    gate: Arc<WakeFilter>,
}

/// A watch that fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchFailure {
    /// What cannot be watched.
    pub kind: Kind,
    /// HTTP status; 0: no answer, or none that is one.
    pub code: u16,
    /// The server's words, or what became of the connection.
    pub message: String,
    /// Whether only the connection has failed, which mostly comes back by itself.
    pub may_pass: bool,
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").field("account", &self.account).finish_non_exhaustive()
    }
}

impl Source {
    /// Puts a subscription together with the rights it rests on and its filter.
    pub fn new(
        watch: Watch,
        namespace: Option<Arc<str>>,
        subscription: Subscription,
        gate: Arc<WakeFilter>,
    ) -> Self {
        let rights = gate.door().rights.clone();
        Self { watch, namespace, subscription, rights, gate }
    }

    /// Whether `namespace` may hold objects of this watch.
    pub fn covers(&self, namespace: Option<&str>) -> bool {
        self.namespace.is_none() || self.namespace.as_deref() == namespace
    }

    /// The cache.
    pub fn cache(&self) -> &Arc<Cache> {
        self.subscription.cache()
    }

    fn door(&self) -> &Arc<Door> {
        self.gate.door()
    }

    fn as_primary(&self) -> Primary {
        Primary {
            namespace: self.namespace.clone(),
            cache: self.cache().clone(),
            door: self.door().clone(),
        }
    }
}

impl View {
    /// A view that is not live yet.
    pub fn new(
        (account, authority): (Identity, Authority),
        manifest: Manifest,
        resources: BTreeMap<(String, String), Resource>,
        mut sources: Vec<Source>,
        outlet: Arc<Outlet>,
    ) -> Self {
        // An object in two caches is read whole: the first that has it counts.
        sources.sort_by_key(|source| source.watch.projection);
        let primaries = sources.iter().filter(|source| source.watch == manifest.primary);
        outlet.set_primaries(primaries.map(Source::as_primary).collect());
        outlet.keep_gone(sources.iter().map(Source::door));
        let rights = sources.iter().flat_map(|source| source.rights.iter().cloned()).collect();
        let interest = authority.keep_fresh(account.clone(), rights);
        Self {
            account,
            authority,
            manifest,
            resources: RwLock::new(
                resources.into_iter().map(|(kind, resource)| (kind, Arc::new(resource))).collect(),
            ),
            outdated: AtomicBool::new(false),
            sources,
            outlet,
            _interest: interest,
        }
    }

    /// What the revision declared.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// How `kind` is served, if the manifest names it.
    pub fn resource(&self, kind: &Kind) -> Option<Arc<Resource>> {
        let resources = self.resources.read();
        resources.get(&(kind.group.clone(), kind.kind.clone())).cloned()
    }

    /// A kind that the manifest names turned out to be served like this.
    pub fn learn(&self, resource: Resource) {
        let mut resources = self.resources.write();
        let id = (resource.kind.group.clone(), resource.kind.kind.clone());
        let Some(known) = resources.get_mut(&id).filter(|known| ***known != resource) else {
            return;
        };
        tracing::warn!(kind = %resource.kind, plural = resource.plural, namespaced = resource.namespaced, has_status = resource.has_status, "a kind is served in another way than before");
        let is_elsewhere =
            known.plural != resource.plural || known.namespaced != resource.namespaced;
        if is_elsewhere && self.sources(&resource.kind).next().is_some() {
            self.outdated.store(true, Ordering::SeqCst);
        }
        *known = Arc::new(resource);
    }

    /// Whether one of its watches asks where nothing is served any more: the revision must be staged again.
    pub fn is_outdated(&self) -> bool {
        self.outdated.load(Ordering::SeqCst)
    }

    /// How the kinds of the manifest are served, by group and kind.
    pub fn resources(&self) -> BTreeMap<(String, String), Resource> {
        let resources = self.resources.read();
        resources.iter().map(|(kind, resource)| (kind.clone(), Resource::clone(resource))).collect()
    }

    /// Whether `kind` is the reconciled one.
    pub fn is_primary(&self, kind: &Kind) -> bool {
        same_kind(&self.manifest.primary.kind, kind)
    }

    /// Every subscription.
    pub fn all_sources(&self) -> &[Source] {
        &self.sources
    }

    /// The subscriptions to `kind`.
    pub fn sources(&self, kind: &Kind) -> impl Iterator<Item = &Source> {
        self.sources.iter().filter(|source| same_kind(&source.watch.kind, kind))
    }

    /// The cached object, without asking who may see it: for the host's own use.
    pub fn entry(&self, kind: &Kind, namespace: Option<&str>, name: &str) -> Option<Arc<Entry>> {
        let key = ObjectKey::new(namespace, name);
        self.sources(kind)
            .filter(|source| source.covers(namespace))
            .find_map(|source| source.cache().get(&key))
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
    ) -> Result<Vec<&Source>, (Right, Verdict)> {
        let mut readable = vec![];
        for source in self.sources(kind) {
            if namespace.is_some() && !source.covers(namespace) {
                continue;
            }
            for right in &*source.rights {
                match self.authority.allows(&self.account, right).await {
                    Ok(true) => (),
                    Ok(false) => return Err((right.clone(), Verdict::Denied)),
                    Err(_) => return Err((right.clone(), Verdict::Unknown)),
                }
            }
            readable.push(source);
        }
        Ok(readable)
    }

    /// All cached primaries.
    pub fn primaries(&self) -> impl Iterator<Item = Arc<Entry>> {
        self.outlet.primaries().flat_map(|primary| primary.cache.entries())
    }

    /// Returns once every change that its watches saw before this call has been delivered.
    pub async fn barrier(&self) {
        for source in &self.sources {
            source.subscription.barrier().await;
        }
    }

    /// Whether every cache has all that was written before `since`.
    pub fn is_fresh(&self, since: Instant) -> bool {
        self.sources.iter().all(|source| source.subscription.is_fresh(since))
    }

    /// Waits until every cache has all that was written before `since`.
    pub async fn fresh(&self, since: Instant) {
        let all = self.sources.iter().map(|source| source.subscription.fresh(since));
        futures::future::join_all(all).await;
    }

    /// Lets the watches wake the controller, and wakes every primary.
    pub fn go_live(&self) {
        self.outlet.open(self.sources.iter().map(Source::door), Urgency::news(queue::BACKGROUND));
    }

    /// Wakes the primaries that `old` still had, under the same selectors, and that are gone since: no watch told it.
    pub fn wake_gone(&self, old: &Self) {
        let (one, other) = (&self.manifest.primary, &old.manifest.primary);
        if (&one.label_selector, &one.field_selector)
            != (&other.label_selector, &other.field_selector)
        {
            return;
        }
        for before in old.outlet.primaries() {
            let now = self.outlet.primaries().find(|now| now.namespace == before.namespace);
            let Some(now) = now.filter(|now| !Arc::ptr_eq(&now.cache, &before.cache)) else {
                continue;
            };
            let seen = now.cache.observed().borrow().clone();
            let is_gone = |entry: &&Arc<Entry>| {
                seen.as_ref().is_some_and(|seen| seen >= entry.version())
                    && now.cache.get(entry.key()).is_none()
            };
            for entry in before.cache.entries().iter().filter(is_gone) {
                self.outlet.wake(entry.key().clone(), Urgency::news(queue::CHANGE));
            }
        }
    }

    /// Stops the watches from waking the controller; what they could not deliver is left to `next`.
    pub fn close(&self, next: Option<&Self>) {
        self.outlet.close();
        if let Some(next) = next {
            for source in &self.sources {
                next.outlet.take_over(source.door());
            }
        }
    }

    /// Delivers what a watch could not deliver while its right was not confirmed.
    pub fn deliver_missed(&self) {
        for source in &self.sources {
            self.outlet.deliver(source.door());
        }
    }

    /// Delivers every object once more, as unchanged.
    pub fn resync(&self) {
        for source in &self.sources {
            source.subscription.resync();
        }
    }

    /// The first watch that fails at present, if any; one that the API server refuses before others.
    pub fn blind(&self) -> Option<WatchFailure> {
        let blind = |source: &Source| {
            let state = source.subscription.state();
            let state = state.borrow();
            let fault = state.trouble.as_ref()?;
            let (kind, number) = (source.watch.kind.clone(), fault.number());
            let message = fault.message.clone();
            Some(WatchFailure {
                kind,
                code: number.unwrap_or(0),
                message,
                may_pass: number.is_none(),
            })
        };
        self.sources.iter().filter_map(blind).min_by_key(|blind| blind.may_pass)
    }

    /// Whether a watch that the host has opened as itself is refused since: the kind is no longer shared.
    pub fn is_estranged(&self) -> bool {
        self.sources.iter().any(|source| {
            let state = source.subscription.state();
            let code = state.borrow().trouble.as_ref().and_then(|fault| fault.code);
            *source.subscription.identity() == Identity::Host && matches!(code, Some(401 | 403))
        })
    }

    /// Whether the account has lost a right to what is reconciled.
    pub fn may_not_reconcile(&self) -> bool {
        let is_lost =
            |right: &Right| self.authority.verdict(&self.account, right) == Verdict::Denied;
        self.outlet.primaries().any(|primary| primary.door.rights.iter().any(is_lost))
    }

    /// The first right that the account has lost, if any.
    pub fn lost_right(&self) -> Option<&Right> {
        self.sources
            .iter()
            .flat_map(|source| source.rights.iter())
            .find(|right| self.authority.verdict(&self.account, right) == Verdict::Denied)
    }
}
