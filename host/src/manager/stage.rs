//! Makes a revision ready to run: bytes, code, manifest, rights, watches. Nothing changes for anybody meanwhile.
//!
//! A candidate that fails here never replaces anything; the reason becomes a condition.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error as _,
    sync::Arc,
    time::Duration,
};

use tokio::sync::watch;

pub(super) use super::refusal::Refusal;
use super::{
    estate::Estate,
    primaries::{Claimant, Entered},
    room::{self, Room},
};
use crate::{
    access::{
        grant::{self, Right, Verdict},
        needs::{reading, resource},
        view::{Outlet, Source, View, WakeFilter},
    },
    apiserver::{Identity, Resource},
    cluster::Refusing,
    controller::run::{Executor, Shared},
    fail,
    journal::Speaker,
    model::{
        crd::LimitsSpec,
        digest::Digest,
        kind::{Kind, same_kind},
        manifest::Manifest,
    },
    queue::shared::SharedQueue,
    sandbox::{Chance, Program, Run, RunLimits},
    watch::{State, Subscriber, Subscription, Trigger, WatchKey},
};

/// Guests that describe themselves at the same time.
pub(super) const DESCRIBES: usize = 8;
/// Of these so many of one team.
pub(super) const DESCRIBES_OF_ONE_TEAM: usize = 2;
/// How long the watches of a revision may take to sync.
const SYNC_LIMIT: Duration = Duration::from_secs(120);

/// One revision to be staged.
#[derive(Clone, Debug)]
pub(super) struct Staging {
    pub(super) estate: Arc<Estate>,
    pub(super) shared: Arc<Shared>,
    pub(super) queue: Arc<SharedQueue>,
    /// `spec.scope.namespaces`; `None`: the whole cluster.
    pub(super) namespaces: Option<Arc<[Arc<str>]>>,
    /// The controller's primary kind, if a revision has fixed it.
    pub(super) primary: Option<Kind>,
    /// Whether the controller asks for its primary kind alone.
    pub(super) exclusive: bool,
    /// The controller's finalizer, if a revision has fixed it; empty: it has none.
    pub(super) finalizer: Option<String>,
    pub(super) limits: RunLimits,
    /// What the team asks for; `limits` is what it gets.
    pub(super) asked: LimitsSpec,
    pub(super) name: String,
    /// It was accepted before, and is only loaded again: what it ran without then does not stop it now.
    pub(super) is_live: bool,
    pub(super) digest: String,
    /// Where the component can be pulled.
    pub(super) image: Option<String>,
    pub(super) config: Arc<str>,
}

impl Staging {
    /// Stages the revision.
    pub(super) async fn run(self) -> Result<Executor, Refusal> {
        let (digest, bytes) = self.bytes().await?;
        // What is live runs with what this host gives.
        if let Some(text) = self.estate.host.over_ceiling(&self.asked).filter(|_| !self.is_live) {
            return Err(Refusal::failed("LimitTooHigh", text));
        }
        fail::point("compile-start");
        let team = self.shared.account.team();
        let program = self.estate.host.sandbox.compile(bytes, &digest, team).await;
        let program = program.map_err(|error| Refusal::compile(&error))?;
        fail::point("compiled");
        let manifest = self.describe(&program).await?;
        fail::point("instantiate");
        self.check_fixed(&manifest)?;
        fail::point("describe");
        let resources = self.resources(&manifest).await?;
        let watched = manifest.all_watches().filter_map(|watch| resource(&resources, &watch.kind));
        room::check_count(watched.map(|resource| self.scopes(resource).len()).sum())?;
        let rights = self.check_rights(&manifest, &resources).await;
        rights.map_err(|refusal| refusal.of(&manifest))?;
        // Behind the rights: who may not reconcile stands in nobody's way.
        let claim = self.check_claims(&manifest)?;
        let view = self.watch(manifest, resources).await?;
        if let Some(claim) = claim {
            claim.keep();
        }
        self.shared.account.metrics.revision(&self.name);
        Ok(Executor { name: self.name, digest, config: self.config, program, view: Arc::new(view) })
    }

    /// Asks the guest what it needs, in a turn of its team: first among those who describe, then among all who run.
    async fn describe(&self, program: &Program) -> Result<Manifest, Refusal> {
        let team = self.shared.account.team();
        let _turn = self.estate.describes.take(team).await;
        let _slot = self.estate.host.slots.take(team).await;
        let manifest = self.estate.host.sandbox.describe(program, self.describing()).await;
        manifest.map_err(|error| Refusal::describe(&error))
    }

    /// The component, pulled if it is in a registry and not here; only if it is signed as demanded.
    async fn bytes(&self) -> Result<(Digest, Arc<[u8]>), Refusal> {
        let digest: Digest = self
            .digest
            .parse()
            .map_err(|error| Refusal::failed("BadDigest", format!("{error}")))?;
        self.check_signed(&digest).await?;
        if let Some(bytes) = self.stored(&digest).await? {
            return Ok((digest, bytes));
        }
        if let Some(image) = &self.image {
            self.estate.pull(&self.shared.account.identity, image, &digest).await?;
        } else {
            self.estate.host.elsewhere.fetch(digest.clone()).await;
        }
        match self.stored(&digest).await? {
            Some(bytes) => Ok((digest, bytes)),
            None => {
                let (namespace, name) =
                    self.shared.account.controller.split_once('/').unwrap_or_default();
                let text = format!(
                    "the host has no component with the digest {digest}; send it: nagaya push {name} FILE -n {namespace}"
                );
                Err(Refusal::without_bytes(text))
            }
        }
    }

    async fn stored(&self, digest: &Digest) -> Result<Option<Arc<[u8]>>, Refusal> {
        let (modules, wanted) = (self.estate.host.modules.clone(), digest.clone());
        let read = tokio::task::spawn_blocking(move || modules.read(&wanted)).await;
        match read {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(error)) => {
                let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
                Err(Refusal::waiting("ModuleUnreadable", format!("{error}{cause}")))
            }
            Err(error) => Err(Refusal::waiting(
                "ModuleUnreadable",
                format!("cannot read the module: {error}"),
            )),
        }
    }

    fn describing(&self) -> Run {
        Run {
            cluster: Arc::new(Refusing),
            team: self.shared.account.team().into(),
            behind: false,
            chance: Chance::Live,
            config: self.config.clone(),
            limits: self.limits.clone(),
            // Nobody stops it: a superseded staging is dropped as a whole.
            stop: watch::channel(false).1,
            span: tracing::info_span!(
                "describe",
                controller = self.shared.account.controller,
                revision = self.name
            ),
            speaker: Speaker { revision: self.name.as_str().into(), ..Speaker::default() },
            log: self.shared.log.clone(),
        }
    }

    /// What the first revision has fixed for the controller's life.
    fn check_fixed(&self, manifest: &Manifest) -> Result<(), Refusal> {
        let kind = &manifest.primary.kind;
        if let Some(fixed) = self.primary.as_ref().filter(|fixed| !same_kind(fixed, kind)) {
            let text = format!(
                "the revision reconciles {kind}, but this controller reconciles {fixed} for its life; make another WasmController for {kind}"
            );
            return Err(Refusal::failed("PrimaryChanged", text));
        }
        let finalizer = manifest.finalizer.clone().unwrap_or_default();
        match &self.finalizer {
            Some(fixed) if *fixed != finalizer => {
                let show =
                    |name: &str| if name.is_empty() { "none".to_owned() } else { name.to_owned() };
                let text = format!(
                    "the revision's finalizer is {}, but this controller's is {} for its life: objects that carry the old one would never go",
                    show(&finalizer),
                    show(fixed)
                );
                Err(Refusal::failed("FinalizerChanged", text))
            }
            _ => Ok(()),
        }
    }

    /// The first revision of a controller needs a primary kind that nobody has for himself.
    fn check_claims(&self, manifest: &Manifest) -> Result<Option<Entered>, Refusal> {
        let controller = &self.shared.account.controller;
        self.estate.primaries.confirm(controller, self.namespaces.clone());
        if self.primary.is_some() {
            return Ok(None);
        }
        let claimant = Claimant {
            controller: controller.clone(),
            kind: manifest.primary.kind.clone(),
            namespaces: self.namespaces.clone(),
            exclusive: self.exclusive,
        };
        if let Some(text) = self.estate.primaries.enter(claimant) {
            return Err(Refusal::conflict(text));
        }
        Ok(Some(Entered::new(self.estate.primaries.clone(), controller)))
    }

    /// How each kind of the manifest is served, by group and kind.
    async fn resources(
        &self,
        manifest: &Manifest,
    ) -> Result<BTreeMap<(String, String), Resource>, Refusal> {
        let kinds: BTreeSet<&Kind> = manifest
            .all_watches()
            .map(|watch| &watch.kind)
            .chain(&manifest.live)
            .chain(manifest.writes.iter().map(|write| &write.kind))
            .collect();
        let mut resources = BTreeMap::new();
        for kind in kinds {
            let found = self.shared.account.api.discover(kind).await;
            let found =
                found.map_err(|error| Refusal::api("ask which kinds are served", &error))?;
            let Some(resource) = found else {
                let text = format!(
                    "the cluster does not serve {kind} in version {}; install its CustomResourceDefinition",
                    kind.version
                );
                return Err(Refusal::waiting("KindMissing", text));
            };
            resources.insert((kind.group.clone(), kind.kind.clone()), resource);
        }
        for write in &manifest.writes {
            let Some(resource) = resource(&resources, &write.kind) else { continue };
            if let Some(why) = grant::denied_to_guests(&resource.kind.group, &resource.plural) {
                let text = format!("the manifest writes {}, which no guest may: {why}", write.kind);
                return Err(Refusal::failed("KindDenied", text));
            }
        }
        let is_namespaced = |kind: &Kind| resource(&resources, kind).map(|found| found.namespaced);
        manifest
            .check_owned(is_namespaced)
            .map_err(|error| Refusal::failed("ManifestRefused", error.to_string()))?;
        Ok(resources)
    }

    async fn watch(
        &self,
        manifest: Manifest,
        resources: BTreeMap<(String, String), Resource>,
    ) -> Result<View, Refusal> {
        let account = self.shared.account.identity.clone();
        let (authority, reader) = (self.estate.host.authority.clone(), account.clone());
        let may = move |right: &Right| authority.verdict(&reader, right) == Verdict::Allowed;
        let outlet = Arc::new(Outlet::new(self.queue.clone(), may));
        let Some(primary) = resource(&resources, &manifest.primary.kind).cloned() else {
            return Err(Refusal::failed("ManifestRefused", "the manifest has no primary kind"));
        };
        let team = self.shared.account.team();
        let room = Room::of(&self.estate.host.hub, team, self.estate.host.team_caches);
        let deadline = tokio::time::Instant::now() + SYNC_LIMIT;
        let mut sources = vec![];
        for watch in manifest.all_watches() {
            let Some(resource) = resource(&resources, &watch.kind) else { continue };
            for namespace in self.scopes(resource) {
                let shared = self.is_shared(resource, namespace.as_deref()).await?;
                let key = WatchKey {
                    resource: resource.clone(),
                    namespace: namespace.clone(),
                    label_selector: watch.label_selector.clone(),
                    field_selector: watch.field_selector.clone(),
                    projection: watch.projection,
                    identity: if shared { Identity::Host } else { account.clone() },
                };
                let rights =
                    reading(watch.field_selector.as_deref(), resource, namespace.as_deref());
                let gate = Arc::new(WakeFilter::new(
                    outlet.clone(),
                    rights.into(),
                    self.namespaces.clone(),
                    &manifest,
                ));
                let trigger = Trigger::new(watch, &primary)
                    .map_err(|error| Refusal::failed("ManifestRefused", error.to_string()))?;
                let indexes =
                    manifest.indexes.iter().filter(|index| same_kind(&index.kind, &watch.kind));
                let subscriber = Subscriber {
                    trigger,
                    wakes: gate.clone(),
                    indexes: indexes.map(|index| index.path.clone()).collect(),
                };
                let subscription =
                    self.estate.host.hub.subscribe(&key, subscriber).charged_to(team);
                sources.push(Source::new(watch.clone(), namespace, subscription, gate));
                if sources.len().is_multiple_of(room::AT_ONCE) {
                    sources = fitting(sources, &room, deadline).await?;
                }
            }
        }
        let sources = fitting(sources, &room, deadline).await?;
        Ok(View::new(
            (account, self.estate.host.authority.clone()),
            manifest,
            resources,
            sources,
            outlet,
        ))
    }
}

/// The same sources, once they are synced, if there is room for them; else what they read is dropped at once.
async fn fitting(
    sources: Vec<Source>,
    room: &Room,
    deadline: tokio::time::Instant,
) -> Result<Vec<Source>, Refusal> {
    synced(sources.iter().map(|source| (&source.watch.kind, &source.subscription)), deadline)
        .await?;
    if let Err(refusal) = room.check() {
        for source in sources {
            source.subscription.forsake();
        }
        return Err(refusal);
    }
    Ok(sources)
}

/// Waits until every watch has a complete first state and the indexes; the error has the real cause.
async fn synced<'a>(
    watches: impl Iterator<Item = (&'a Kind, &'a Subscription)>,
    deadline: tokio::time::Instant,
) -> Result<(), Refusal> {
    for (kind, subscription) in watches {
        let state = settled(subscription, deadline).await;
        if state.synced && !is_refused(&state) {
            subscription.barrier().await;
            continue;
        }
        let cause = state.trouble.map_or_else(|| "no answer yet".to_owned(), |fault| fault.message);
        return Err(Refusal::waiting(
            "WatchFailed",
            format!("the watch of {kind} has not synced: {cause}"),
        ));
    }
    Ok(())
}

/// How the watch is once it has settled, or at the deadline.
async fn settled(subscription: &Subscription, deadline: tokio::time::Instant) -> State {
    let mut state = subscription.state();
    match tokio::time::timeout_at(deadline, state.wait_for(is_settled)).await {
        Ok(Ok(state)) => state.clone(),
        Ok(Err(_)) => State::default(),
        Err(_) => subscription.state().borrow().clone(),
    }
}

/// Synced, or refused in a way that waiting does not mend.
fn is_settled(state: &State) -> bool {
    state.synced || is_refused(state)
}

/// Also a watch that has synced once may be refused by now.
fn is_refused(state: &State) -> bool {
    let refused = |code: u16| matches!(code, 401 | 403 | 404);
    state.trouble.as_ref().and_then(|fault| fault.code).is_some_and(refused)
}
