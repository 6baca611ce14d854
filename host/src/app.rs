//! Starts the parts in order, and ends them in the opposite one.
//!
//! Probes and metrics come first and go last. Whatever ends by itself ends the process: Kubernetes restarts it,
//! and half a host helps nobody.

use std::{
    future::Future,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use axum::Router;
use http::Method;
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::{Value, json};
use tokio::{net::TcpListener, runtime::Handle, sync::watch, task::JoinSet};
use tracing::{Instrument, trace_span};

use crate::{
    access::authority::Authority,
    apiserver::{ApiServer, Call, Media},
    causes, clock,
    config::Config,
    events,
    http::{
        admin::{self, Admin},
        aggregated::{self, Hosts, Served, Upkeep},
        door::{self, Door},
        uploads::{self, Uploads},
    },
    journal::Journals,
    leader::{
        fence::Claim,
        lease::{self, Elector},
    },
    manager::{Directory, Host, Manager},
    metrics::{Metrics, WatchStats},
    model::crd,
    modules::{Elsewhere, Modules, Nowhere, oci::Registries},
    preview::{self, Previews},
    sandbox::{Mappings, Sandbox, SandboxConfig, division},
    share::slots::Slots,
    watch::Hub,
};

/// How often an API server that does not answer is asked again at the start.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// How often the sandbox is asked whether it may go on: swap that was just added is not used within seconds.
const ASK_SANDBOX: Duration = Duration::from_secs(10);

/// A host that starts alone has its Lease in a moment: what it reads after that is fresh and needs no proof.
const LEASE_FIRST: Duration = Duration::from_millis(500);

/// A standby that still lacks a module is ready all the same after this: perhaps nobody has sent it.
const WARM_WITHIN: Duration = Duration::from_secs(20);
const WARM_EVERY: Duration = Duration::from_millis(250);

/// A host whose parts are there, but not yet at work.
#[derive(Debug)]
pub struct App {
    config: Config,
    api: ApiServer,
    /// For what guests ask: the host's own requests never wait behind theirs.
    guests: ApiServer,
    /// For runs whose writes are only tried: no live one waits behind them.
    previews: ApiServer,
    claim: watch::Sender<Option<Claim>>,
    modules: Modules,
    sandbox: Sandbox,
    metrics: Metrics,
    journals: Journals,
    directory: Directory,
    /// The path of the Lease, once it is known.
    lease: Arc<OnceLock<String>>,
    /// Other hosts, which may have what this one lacks.
    elsewhere: Option<Arc<dyn Elsewhere>>,
    /// Where other hosts ask this one.
    address: Option<SocketAddr>,
    /// Name and listener of each server.
    listeners: Option<Listeners>,
}

#[derive(Debug)]
struct Listeners {
    api: TcpListener,
    aggregated: Option<TcpListener>,
    probes: TcpListener,
    metrics: TcpListener,
}

impl App {
    /// Opens the store, the sandbox and the listeners; an error says what cannot be had.
    pub async fn new(config: Config) -> Result<Self> {
        let metrics = Metrics::default();
        let connect = async || {
            let api = ApiServer::connect(&config.kubeconfig, "nagaya").await;
            api.map(|api| api.counted(&metrics)).context("reading the kubeconfig")
        };
        let (api, guests, previews) = (connect().await?, connect().await?, connect().await?);
        if let Some(user) = api.acting_as() {
            bail!(
                "the kubeconfig's user acts as {user}, but the host acts as the account of each controller, and a request has room for one: give the host credentials of its own, without `as`"
            );
        }
        let (mut aggregated, mut address) = (None, None);
        if let Some(settings) = &config.aggregated {
            let listener = listen("aggregated", settings.bind).await?;
            address = listener.local_addr().ok().and_then(|local| settings.address(local));
            aggregated = Some(listener);
        }
        let listeners = Listeners {
            api: listen("api", config.api).await?,
            aggregated,
            probes: listen("probes", config.probes).await?,
            metrics: listen("metrics", config.metrics).await?,
        };
        let folder = |name: &str| config.data.join(name);
        let modules = Modules::open(&folder("modules")).context("opening the module store")?;
        let sandbox = SandboxConfig {
            // Those of previews are beside those of live runs.
            slots: config.slots.saturating_add(u32::try_from(preview::AT_ONCE).unwrap_or(0)),
            memory_ceiling: config.memory_ceiling,
            ..SandboxConfig::new(folder("code"))
        };
        let guest_memory = config.guest_memory.unwrap_or(sandbox.guest_memory);
        let sandbox = SandboxConfig { guest_memory, ..sandbox };
        let sandbox = Sandbox::start(sandbox, Handle::current()).context("starting the sandbox")?;
        metrics.mappings(|| Mappings::now().map(|now| (now.used, now.limit)));
        let guests_hold = sandbox.clone();
        metrics.guest_memory(move || Some(guests_hold.guest_memory()));
        let claim = watch::channel(None).0;
        Ok(Self {
            config,
            api,
            guests,
            previews,
            claim,
            modules,
            sandbox,
            metrics,
            journals: Journals::default(),
            directory: Directory::default(),
            lease: Arc::default(),
            elsewhere: None,
            address,
            listeners: Some(listeners),
        })
    }

    /// Works until `stop` becomes true or a part fails, and drains.
    pub async fn run(mut self, stop: watch::Receiver<bool>) -> Result<()> {
        let (shut, shut_seen) = watch::channel(false);
        let (ready, is_ready) = watch::channel(false);
        let mut servers = self.serve(&is_ready, &shut_seen);
        let mut around = JoinSet::new();
        let worked = tokio::select! {
            worked = work(self, stop, ready, &mut around) => worked,
            Some(ended) = servers.join_next() => ended.context("a server panicked")?.and_then(|()| bail!("a server ended by itself")),
        };
        shut.send_replace(true);
        while let Some(ended) = servers.join_next().await {
            ended.context("a server panicked")??;
        }
        worked
    }

    /// The Lease that decides whether this host works. It lies beside the host's own account, if it has one.
    fn lease(&self, user: &str) -> Result<lease::Options> {
        let name = &self.config.lease;
        let account = user.strip_prefix("system:serviceaccount:");
        let own =
            account.and_then(|account| account.split_once(':')).map(|(namespace, _)| namespace);
        let namespace = name.namespace.as_deref().or(own).unwrap_or(self.api.default_namespace());
        // As client-go has it: the machine's name, and something that no other process has.
        let mut bytes = [0; 16];
        if SystemRandom::new().fill(&mut bytes).is_err() {
            bail!("this machine gives no random bytes");
        }
        let machine = rustix::system::uname();
        Ok(lease::Options {
            namespace: namespace.to_owned(),
            name: name.name.clone(),
            identity: format!("{}_{}", machine.nodename().to_string_lossy(), hex::encode(bytes)),
            address: self.address,
            profile: self.config.lease_profile,
            kubeconfig: self.config.kubeconfig.clone(),
        })
    }

    /// The servers. They answer while the rest still starts.
    fn serve(
        &mut self,
        ready: &watch::Receiver<bool>,
        shut: &watch::Receiver<bool>,
    ) -> JoinSet<Result<()>> {
        let admin = Admin { metrics: self.metrics.clone(), ready: ready.clone() };
        let uploads = Uploads {
            modules: self.modules.clone(),
            claim: self.claim.subscribe(),
            max_bytes: self.config.max_module,
        };
        let mut servers = JoinSet::new();
        let Some(Listeners { api, aggregated, probes, metrics }) = self.listeners.take() else {
            return servers;
        };
        if let (Some(listener), Some(settings)) = (aggregated, &self.config.aggregated) {
            let (tell, standing) = watch::channel(None);
            let upkeep = Upkeep::new(self.api.clone(), settings.service.clone(), tell);
            servers.spawn(until(shut.clone(), upkeep.run()));
            let served = Served {
                api: self.api.clone(),
                service: settings.service.clone(),
                uploads: uploads.clone(),
                journals: self.journals.clone(),
                directory: self.directory.clone(),
                lease: self.lease.clone(),
                standing: standing.clone(),
                stop: shut.clone(),
            };
            self.elsewhere = Some(Arc::new(Hosts(served.clone())));
            let (router, door) = (aggregated::router(served), aggregated::door(standing));
            servers.spawn(server("aggregated", listener, (router, door), shut.clone()));
        }
        for (name, listener, router) in [
            ("api", api, uploads::router(uploads)),
            ("probes", probes, admin::router(admin.clone())),
            ("metrics", metrics, admin::router(admin)),
        ] {
            servers.spawn(server(name, listener, (router, Door::default()), shut.clone()));
        }
        servers
    }
}

async fn work(
    app: App,
    mut stop: watch::Receiver<bool>,
    ready: watch::Sender<bool>,
    around: &mut JoinSet<Result<()>>,
) -> Result<()> {
    let user = tokio::select! {
        user = introduce(&app.api) => user?,
        _ = stop.wait_for(|stop| *stop) => return Ok(()),
    };
    tracing::info!(user = &*user, controllers = app.config.controllers, "the host starts");
    let mut claim = app.claim.subscribe();
    let lease = app.lease(&user)?;
    let _ = app.lease.set(lease::path_of(&lease));
    let elector = Elector::start(lease, app.claim.clone(), app.metrics.clone())
        .context("starting the thread of the Lease")?;
    around.spawn(ending("the election", elector.ended()));
    let _ = tokio::time::timeout(LEASE_FIRST, claim.wait_for(Option::is_some)).await;
    let authority = Authority::new(app.api.clone(), app.metrics.clone());
    let (recorder, sender) = events::recorder(app.api.clone(), instance());
    let hub = Hub::new(app.api.clone(), Handle::current());
    around.spawn(ending("the review of rights", authority.clone().run()));
    around.spawn(ending("the sender of events", sender.run()));
    watch_metrics(&app.metrics, &hub);
    let reachable = hub.reachable();
    let host = Host {
        api: app.api.clone(),
        guests: app.guests.clone(),
        hub,
        authority,
        sandbox: app.sandbox.clone(),
        modules: app.modules.clone(),
        registries: Registries::new(app.config.registries.clone(), app.config.max_module, None),
        elsewhere: app.elsewhere.clone().unwrap_or_else(|| Arc::new(Nowhere)),
        policy: app.config.policy.clone(),
        recorder,
        metrics: app.metrics.clone(),
        journals: app.journals.clone(),
        directory: app.directory.clone(),
        previews: Previews::new(app.previews.clone()),
        slots: Slots::new(usize::try_from(app.config.slots).unwrap_or(1)),
        claim: app.claim.subscribe(),
        reachable,
        write_timeout: app.config.lease_profile.write(),
        user,
        memory_ceiling: app.config.memory_ceiling,
        team_caches: app.config.team_caches.unwrap_or_else(|| division().caches_of_a_team),
    };
    let (manager, synced) =
        Manager::new(host, app.config.controllers.as_deref()).context("reading --controllers")?;
    let told = tell(synced, ready, &app);
    let sandbox = app.sandbox.clone();
    let managed = keep(manager, reason_to_end(stop, ASK_SANDBOX, move || sandbox.must_restart()));
    let worked = tokio::select! {
        ended = managed => ended,
        () = told => Ok(()),
        Some(ended) = around.join_next() => ended.context("a part of the host panicked")?,
    };
    // Its runs are over: the next host need not wait until the Lease expires.
    around.abort_all();
    elector.release().await;
    worked
}

/// Keeps the controllers until there is a reason to end, and drains before it says which.
async fn keep(manager: Manager, reason: impl Future<Output = Result<()>>) -> Result<()> {
    let (drain, drained) = watch::channel(false);
    let managed = async { manager.run(drained).await.context("keeping the controllers") };
    let ended = async {
        let reason = reason.await;
        drain.send_replace(true);
        Ok(reason)
    };
    let ((), reason) = tokio::try_join!(managed, ended)?;
    reason
}

/// Waits until the host is told to stop, which is no error, or `must_restart`, which is one.
async fn reason_to_end(
    mut stop: watch::Receiver<bool>,
    ask_every: Duration,
    must_restart: impl Fn() -> bool,
) -> Result<()> {
    let mut asks = tokio::time::interval(ask_every);
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return Ok(()),
            _ = asks.tick() => if must_restart() { break },
        }
    }
    tracing::error!(
        "swap was added to this machine: memories of guests are cleaned page by page, which misses pages in swap, so \
         the host drains and ends to be started anew; set memory.swap.max to 0 for it to keep the faster way"
    );
    bail!(
        "swap was added, and the sandbox must start anew to clean memories in the way that is safe with it"
    )
}

/// How each watch is doing, asked at every scrape.
fn watch_metrics(metrics: &Metrics, hub: &Hub) {
    let hub = hub.clone();
    metrics.watches(move || {
        let stats = hub.stats(clock::now());
        stats
            .into_iter()
            .map(|stats| WatchStats {
                group: stats.key.resource.kind.group,
                version: stats.key.resource.kind.version,
                resource: stats.key.resource.plural,
                projection: stats.key.projection.name(),
                objects: stats.objects,
                bytes: stats.bytes,
                silent: stats.silent,
            })
            .collect()
    });
}

/// Says when the host is ready, for as long as it works.
async fn tell(mut synced: watch::Receiver<bool>, ready: watch::Sender<bool>, app: &App) {
    while synced.changed().await.is_ok() {
        let is_synced = *synced.borrow();
        if is_synced && app.elsewhere.is_some() {
            let all = warm(&app.modules, &app.directory, app.claim.subscribe());
            let _ = tokio::time::timeout(WARM_WITHIN, all).await;
        }
        ready.send_replace(is_synced);
    }
    std::future::pending::<()>().await;
}

/// Waits until a standby has the modules of all controllers: before that a rolling update must not end the host that has them.
async fn warm(modules: &Modules, directory: &Directory, claim: watch::Receiver<Option<Claim>>) {
    let works = || claim.borrow().as_ref().is_some_and(Claim::holds);
    while !works() && !modules.has_all_of(directory.len()) {
        tokio::time::sleep(WARM_EVERY).await;
    }
}

async fn ending(what: &'static str, work: impl Future<Output = ()>) -> Result<()> {
    work.await;
    bail!("{what} ended by itself")
}

async fn listen(name: &str, address: SocketAddr) -> Result<TcpListener> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address} for {name}"))?;
    let address = listener.local_addr().context("reading the address of a listener")?;
    tracing::info!(server = name, %address, "listening");
    Ok(listener)
}

async fn server(
    name: &'static str,
    listener: TcpListener,
    (router, door): (Router, Door),
    shut: watch::Receiver<bool>,
) -> Result<()> {
    door::serve(listener, router, door, shut).instrument(trace_span!("server", of = name)).await;
    Ok(())
}

/// Works until `shut` becomes true.
async fn until(mut shut: watch::Receiver<bool>, work: impl Future<Output = ()>) -> Result<()> {
    tokio::select! {
        () = work => bail!("the upkeep of the host's own API ended by itself"),
        _ = shut.wait_for(|shut| *shut) => Ok(()),
    }
}

/// Asks the API server who the host is and whether it knows the host's kinds; waits for a server that is down.
async fn introduce(api: &ApiServer) -> Result<Arc<str>> {
    let body = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview" });
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let review = Call::new(Method::POST, path).body(Media::Json, body.to_string());
    let who: Value = loop {
        match api.fetch(review.clone()).await {
            Ok(who) => break who,
            Err(error) if matches!(error.code(), Some(400..500)) => {
                return Err(error).context("the API server does not let the host in: are the credentials of its kubeconfig still valid?");
            }
            Err(error) => {
                tracing::warn!(
                    error = causes::all(&error),
                    server = api.url(),
                    "the API server does not answer, the host asks again; is it the one that the kubeconfig should name?"
                );
                tokio::time::sleep(ASK_AGAIN).await;
            }
        }
    };
    let user = who["status"]["userInfo"]["username"].as_str().unwrap_or_default().into();
    let kind = crd::own_watch("WasmController").kind;
    if api.discover(&kind).await.context("asking for the host's own kinds")?.is_none() {
        bail!(
            "the cluster does not know {kind}: apply deploy/crd first (kubectl apply -f deploy/crd)"
        );
    }
    Ok(user)
}

/// Names this process in events.
fn instance() -> String {
    let name = rustix::system::uname();
    format!("{}-{}", name.nodename().to_string_lossy(), std::process::id())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn a_sandbox_that_must_restart_ends_the_host_with_an_error() {
        let (stop, stopping) = watch::channel(false);
        let asked = Cell::new(0);
        let third = || asked.replace(asked.get() + 1) == 2;
        let ended = reason_to_end(stopping.clone(), Duration::from_millis(1), third).await;
        assert!(ended.unwrap_err().to_string().contains("swap was added"));
        assert_eq!(asked.get(), 3);
        stop.send_replace(true);
        let told = reason_to_end(stopping, Duration::from_millis(1), || true).await;
        told.expect("to be told is no error");
    }
}
