//! The whole host in process: everything but its servers, its election and the compiler.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use nagaya::{
    access::authority::Authority,
    apiserver::ApiServer,
    clock, events,
    journal::Journals,
    leader::fence::Claim,
    manager::{Directory, Host as Parts, Manager},
    metrics::Metrics,
    model::digest::Digest,
    modules::{
        Modules, Nowhere,
        oci::{self, Registries},
        policy::Policy,
    },
    preview::Previews,
    sandbox::{Allocation, CompilerConfig, Sandbox, SandboxConfig},
    share::slots::Slots,
    watch::Hub,
};
use serde_json::{Value, json};
use tokio::{runtime::Handle, sync::watch, task::JoinSet};
use tracing::{Instrument, trace_span};

use super::{Fake, Guest};

/// The largest module of a test.
const MODULE: u64 = 16 << 20;
/// Bytes of caches that each team may use.
pub(crate) const TEAM_CACHES: usize = 8 << 20;
/// Epochs grow over all hosts of a test.
static EPOCHS: AtomicI64 = AtomicI64::new(1);

/// A host that works.
#[derive(Debug)]
pub(crate) struct Host {
    api: Fake,
    pub(crate) sandbox: Sandbox,
    pub(crate) modules: Modules,
    pub(crate) hub: Hub,
    pub(crate) metrics: Metrics,
    claim: watch::Sender<Option<Claim>>,
    stop: watch::Sender<bool>,
    manager: JoinSet<()>,
    _around: JoinSet<()>,
    /// Modules are under `modules/`.
    pub(crate) folder: tempfile::TempDir,
}

impl Host {
    /// A host whose one controller is `demo/sites`, which is this guest and is live.
    pub(crate) async fn over(api: &Fake, guest: &Guest) -> Self {
        let host = Self::start(api).await;
        host.deploy("demo/sites", guest).await;
        host
    }

    /// A host without controllers, which holds its claim and has read the API.
    pub(crate) async fn start(api: &Fake) -> Self {
        let host = Self::standby(api, None).await;
        host.lead();
        host
    }

    /// One that does not lead; `controllers`: its `--controllers`.
    pub(crate) async fn standby(api: &Fake, controllers: Option<&str>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = sandbox_config();
        let (memory_ceiling, slots) = (config.memory_ceiling, config.slots as usize);
        let sandbox = Sandbox::start(config, Handle::current()).unwrap();
        let modules = Modules::open(&folder.path().join("modules")).unwrap();
        let own = ApiServer::over(api.clone(), "nagaya");
        let hub = Hub::new(own.clone(), Handle::current());
        let metrics = Metrics::default();
        let authority = Authority::new(own.clone(), metrics.clone());
        let (recorder, sender) = events::recorder(own.clone(), "test".to_owned());
        let (claim, held) = watch::channel(None);
        let parts = Parts {
            api: own,
            guests: ApiServer::over(api.clone(), "nagaya"),
            hub: hub.clone(),
            authority: authority.clone(),
            sandbox: sandbox.clone(),
            modules: modules.clone(),
            registries: Registries::new(oci::Settings::default(), MODULE, None),
            policy: Policy::default(),
            elsewhere: std::sync::Arc::new(Nowhere),
            journals: Journals::default(),
            directory: Directory::default(),
            recorder,
            metrics: metrics.clone(),
            previews: Previews::new(ApiServer::over(api.clone(), "nagaya")),
            slots: Slots::new(slots),
            claim: held,
            reachable: hub.reachable(),
            write_timeout: Duration::from_secs(4),
            user: "system:serviceaccount:nagaya-system:nagaya".into(),
            memory_ceiling,
            team_caches: TEAM_CACHES,
        };
        let mut around = JoinSet::new();
        around.spawn(authority.clone().run().instrument(trace_span!("loop", of = "rights")));
        around.spawn(sender.run().instrument(trace_span!("loop", of = "events")));
        let (manager, mut ready) = Manager::new(parts, controllers).unwrap();
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let managed = async move { manager.run(stopped).await.unwrap() };
        tasks.spawn(managed.instrument(trace_span!("loop", of = "manager")));
        let _ = ready.wait_for(|ready| *ready).await;
        Self {
            api: api.clone(),
            sandbox,
            modules,
            hub,
            metrics,
            claim,
            stop,
            manager: tasks,
            _around: around,
            folder,
        }
    }

    /// The host holds its claim from now on: a new one, if it had one.
    pub(crate) fn lead(&self) {
        let epoch = EPOCHS.fetch_add(1, Ordering::SeqCst);
        self.claim.send_replace(Some(Claim::new(epoch, clock::now(), Duration::MAX)));
    }

    /// The host has lost its claim.
    pub(crate) fn follow(&self) {
        self.claim.send_replace(None);
    }

    /// Makes a module of the guest and stores it, as an upload does.
    pub(crate) fn upload(&self, guest: &Guest) {
        self.sandbox.add_native(guest.digest(), guest.native());
        self.store(&guest.bytes());
    }

    /// Stores a module; what it is called by.
    pub(crate) fn store(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        let mut upload = self.modules.upload(digest.clone(), MODULE).unwrap();
        upload.write(bytes).unwrap();
        upload.finish().unwrap();
        digest
    }

    /// A WasmController with its ServiceAccount; returns once the guest is live.
    pub(crate) async fn deploy(&self, name: &str, guest: &Guest) -> Value {
        self.upload(guest);
        self.api.put(account(name));
        self.api.put(controller(name, &guest.digest()));
        self.ready(name).await
    }

    /// Until a controller is ready, its present spec having been seen.
    #[track_caller]
    pub(crate) fn ready<'a>(&'a self, name: &str) -> impl Future<Output = Value> + use<'a> {
        self.api.until_object(&what(name), |controller| {
            let seen = &controller["status"]["observedGeneration"];
            *seen == controller["metadata"]["generation"]
                && condition(controller, "Ready")["status"] == "True"
        })
    }

    /// Drains, and ends.
    pub(crate) async fn stop(mut self) {
        self.stop.send_replace(true);
        while let Some(ended) = self.manager.join_next().await {
            ended.unwrap();
        }
    }
}

/// The WasmController `namespace/name` as a path of the fake API server names it.
pub(crate) fn what(name: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap();
    format!("{namespace}/wasmcontrollers/{name}")
}

/// The ServiceAccount of a WasmController, which has its name.
pub(crate) fn account(name: &str) -> Value {
    let (namespace, name) = name.split_once('/').unwrap();
    json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": { "namespace": namespace, "name": name },
    })
}

/// A WasmController whose revisions go live as soon as they are staged.
pub(crate) fn controller(name: &str, digest: &Digest) -> Value {
    let (namespace, name) = name.split_once('/').unwrap();
    json!({
        "apiVersion": "nagaya.dev/v1alpha1", "kind": "WasmController",
        "metadata": { "namespace": namespace, "name": name },
        "spec": {
            "serviceAccountName": name,
            "module": { "digest": digest.to_string() },
            "rollout": { "strategy": "Immediate" },
        },
    })
}

/// A condition of an object; `null` if it has none of this type.
pub(crate) fn condition(object: &Value, kind: &str) -> Value {
    let all = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    all.into_iter().find(|condition| condition["type"] == kind).unwrap_or_default()
}

fn sandbox_config() -> SandboxConfig {
    SandboxConfig {
        slots: 8,
        allocation: Allocation::OnDemand,
        compiler: CompilerConfig {
            program: Some(PathBuf::from(env!("CARGO_BIN_EXE_nagaya"))),
            ..CompilerConfig::default()
        },
        ..SandboxConfig::new(Path::new(env!("CARGO_TARGET_TMPDIR")).join("in-process-code"))
    }
}
