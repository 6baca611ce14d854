//! A real kube-apiserver and etcd on loopback: started in seconds, thrown away at the end, no
//! Docker, no root. For the demo, the tests and the benchmark.
//!
//! ```no_run
//! # use e2e::control_plane::{ControlPlane, Options, User};
//! # async fn example() -> anyhow::Result<()> {
//! let control_plane = ControlPlane::start(Options::default()).await?;
//! let client = control_plane.client(User::Admin).await?;
//! println!("export KUBECONFIG={}", control_plane.kubeconfig(User::Admin).display());
//! # drop(client);
//! control_plane.stop().await
//! # }
//! ```

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use kube::config::{KubeConfigOptions, Kubeconfig};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

pub mod audit;
mod build;
mod certificates;
mod etcd;
mod flags;
mod folder;
mod kubeconfig;
mod process;
mod program;
mod route;
mod running;
mod user;

pub use build::Build;
pub use flags::Reads;
pub use kubeconfig::through as kubeconfig_through;
pub use process::running_in;
pub use program::{Program, Programs};
pub use route::{ENVTEST_PROGRAMS, GIVEN_CLUSTER, GIVEN_PROGRAMS, Missing, Route, locate};
pub use user::User;

use folder::Folder;
use kubeconfig::Cluster;
use running::Running;
use user::Tokens;

/// Names the folder of an instance that the test run shares.
pub const SHARED_INSTANCE: &str = "NAGAYA_TEST_CONTROL_PLANE";

/// What is in the folder for those who attach.
const INSTANCE: &str = "instance.json";

/// How to start a control plane.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Also run the controller manager: garbage collection, namespace deletion, `default`
    /// `ServiceAccount`s (8 to 10 s after the start).
    pub controller_manager: bool,
    /// Keep the folder after the end.
    pub keep: bool,
    /// What of the reads the audit log has.
    pub reads: Reads,
    /// More flags for kube-apiserver, such as `--watch-cache=false`.
    pub apiserver_flags: Vec<String>,
}

/// A control plane: one we run, one another process runs, or a given cluster.
#[derive(Debug)]
pub struct ControlPlane {
    // Before the folder: the programs must have ended when it is removed.
    running: Option<Running>,
    owned: Option<Folder>,
    folder: PathBuf,
    cluster: Cluster,
    instance: Instance,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Instance {
    given: bool,
    controller_manager: bool,
}

impl ControlPlane {
    /// Starts one of our own, or uses the given cluster if there is one. Builds the programs first
    /// if need be, which takes minutes once. The error is a [`Missing`] if there is no way.
    pub async fn start(options: Options) -> Result<Self> {
        match locate() {
            Route::Cluster(file) => Self::given(&file, &options).await,
            route => {
                let programs = tokio::task::spawn_blocking(|| route.programs());
                Self::from_programs(&programs.await.context("building")??, &options).await
            }
        }
    }

    /// The one that all tests of a run share: named by `NAGAYA_TEST_CONTROL_PLANE`, else started
    /// once a process. It has a controller manager if there is one, and audits reads.
    ///
    /// One started here ends with this process, by the lifeline; its folder stays until the next
    /// start anywhere, so that the logs of a failed test can be read.
    pub async fn shared() -> Result<&'static Self> {
        static SHARED: OnceCell<ControlPlane> = OnceCell::const_new();
        let start = || async {
            if let Some(folder) = std::env::var_os(SHARED_INSTANCE).filter(|path| !path.is_empty())
            {
                return Self::attach(folder);
            }
            let mut options = Options { controller_manager: true, ..Options::default() };
            if let Route::Programs(programs) = locate() {
                options.controller_manager = programs.has(Program::ControllerManager);
            }
            Self::start(options).await
        };
        SHARED.get_or_try_init(start).await
    }

    /// Uses the instance in `folder`, which stays its owner's: dropping or stopping this ends
    /// nothing.
    pub fn attach(folder: impl Into<PathBuf>) -> Result<Self> {
        install_tls_provider();
        let folder = folder.into();
        let read = || -> Result<_> {
            let text = std::fs::read_to_string(folder.join(INSTANCE))?;
            Ok((Cluster::read(&folder)?, serde_json::from_str(&text)?))
        };
        let (cluster, instance) =
            read().with_context(|| format!("attaching to the instance in {}", folder.display()))?;
        Ok(Self { running: None, owned: None, folder, cluster, instance })
    }

    async fn given(file: &Path, options: &Options) -> Result<Self> {
        install_tls_provider();
        if !options.apiserver_flags.is_empty() {
            bail!("{GIVEN_CLUSTER} is set, and this needs a server with flags of its own");
        }
        let owned = Folder::create(options.keep)?;
        let cluster = kubeconfig::write_given(file, owned.path())
            .with_context(|| format!("using the cluster of {}", file.display()))?;
        // It is the controller manager that makes this account; asking also shows that the cluster
        // answers.
        let admin = client(&kubeconfig::path(owned.path(), User::Admin.name())).await?;
        let account = Api::<ServiceAccount>::namespaced(admin, "default").get_opt("default").await;
        let controller_manager = account.context("asking the given cluster")?.is_some();
        if options.controller_manager && !controller_manager {
            tracing::warn!("the given cluster seems to have no controller manager");
        }
        Self::owner(None, owned, cluster, Instance { given: true, controller_manager })
    }

    async fn from_programs(programs: &Programs, options: &Options) -> Result<Self> {
        install_tls_provider();
        let controller_manager = options.controller_manager;
        if controller_manager && !programs.has(Program::ControllerManager) {
            let (folder, name) = (programs.folder().display(), Program::ControllerManager.name());
            bail!("{folder} has no {name}, and this needs it");
        }
        let mut owned = Folder::create(options.keep)?;
        let (running, cluster) = match launch(programs, owned.path(), options).await {
            Ok(started) => started,
            Err(error) => {
                owned.keep();
                let folder = owned.path().display().to_string();
                return Err(error.context(format!("starting a control plane in {folder}")));
            }
        };
        Self::owner(Some(running), owned, cluster, Instance { given: false, controller_manager })
    }

    fn owner(
        running: Option<Running>,
        owned: Folder,
        cluster: Cluster,
        instance: Instance,
    ) -> Result<Self> {
        let folder = owned.path().to_owned();
        let text = serde_json::to_string(&instance)?;
        std::fs::write(folder.join(INSTANCE), text).context("describing the instance")?;
        Ok(Self { running, owned: Some(owned), folder, cluster, instance })
    }

    /// Where the API server is.
    pub fn url(&self) -> &str {
        &self.cluster.url
    }

    /// The CA of the API server's certificate.
    pub fn ca_pem(&self) -> &str {
        &self.cluster.ca_pem
    }

    /// The instance's folder: kubeconfigs, logs, data.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether it is a given cluster: no audit log, no tokens, no restarts; namespaces are to be
    /// deleted there.
    pub fn is_given(&self) -> bool {
        self.instance.given
    }

    /// Whether a controller manager runs: garbage collection and namespace deletion work.
    pub fn has_controller_manager(&self) -> bool {
        self.instance.controller_manager
    }

    /// The kubeconfig of `user`.
    pub fn kubeconfig(&self, user: User) -> PathBuf {
        kubeconfig::path(&self.folder, user.name())
    }

    /// Writes a kubeconfig for a token from elsewhere, such as a `ServiceAccount`'s. `name` must
    /// be one nobody else uses in a shared instance.
    pub fn kubeconfig_with_token(&self, name: &str, token: &str) -> Result<PathBuf> {
        if User::ALL.iter().any(|user| user.name() == name) {
            bail!("{name} is the kubeconfig of a user");
        }
        self.cluster.write(&self.folder, name, &json!({"token": token}))
    }

    /// The bearer token of `user`; the given cluster has none.
    pub fn token(&self, user: User) -> Result<String> {
        Ok(Tokens::read(&self.folder)?.of(user)?.to_owned())
    }

    /// A client that acts as `user`. It belongs to the runtime it is made on.
    pub async fn client(&self, user: User) -> Result<kube::Client> {
        client(&self.kubeconfig(user)).await
    }

    /// The audit log; the given cluster has none.
    pub fn audit(&self) -> Result<audit::Log> {
        if self.is_given() {
            bail!("{GIVEN_CLUSTER} is set, and this needs the audit log of a server of ours");
        }
        Ok(audit::Log::open(self.folder.join(flags::AUDIT_LOG)))
    }

    /// Lets `program` stand still (SIGSTOP) until [`resume`](Self::resume); it does when this returns.
    pub fn pause(&mut self, program: Program) -> Result<()> {
        self.running()?.freeze(program)
    }

    /// Lets `program` go on.
    pub fn resume(&mut self, program: Program) -> Result<()> {
        self.running()?.signal(program, Signal::CONT)
    }

    /// Kills `program`; it stays down until [`revive`](Self::revive).
    pub async fn kill(&mut self, program: Program) -> Result<()> {
        let name = program.name();
        self.running()?.kill(program).await.with_context(|| format!("killing {name}"))
    }

    /// Starts a killed program again on the same port and data, and waits for readiness.
    pub async fn revive(&mut self, program: Program) -> Result<()> {
        let name = program.name();
        self.running()?.revive(program).await.with_context(|| format!("restarting {name}"))
    }

    /// Both in one.
    pub async fn restart(&mut self, program: Program) -> Result<()> {
        self.kill(program).await?;
        self.revive(program).await
    }

    /// Lets etcd forget all versions but the newest: whoever asks for what came after an older one is
    /// told that it is gone. With its watch cache the API server remembers more by itself.
    pub async fn compact(&self) -> Result<()> {
        etcd::compact(&self.folder).await.context("compacting etcd")
    }

    /// Puts an object into etcd as it is, past everything that the API server would say of it: one that an older
    /// server has left there. `key` begins after the registry's prefix.
    pub async fn store(&self, key: &str, object: &Value) -> Result<()> {
        let (key, value) = (format!("/registry/{key}"), object.to_string());
        etcd::put(&self.folder, &key, &value).await.with_context(|| format!("storing {key}"))
    }

    fn running(&mut self) -> Result<&mut Running> {
        self.running.as_mut().context("this needs a control plane that this process runs itself")
    }

    /// Keeps the folder after the end.
    pub fn keep(&mut self) {
        if let Some(folder) = &mut self.owned {
            folder.keep();
        }
    }

    /// Stops the programs politely and removes the folder. Without it they are killed on drop.
    pub async fn stop(mut self) -> Result<()> {
        match self.running.take() {
            Some(running) => running.stop().await.context("stopping the control plane"),
            None => Ok(()),
        }
    }
}

async fn launch(
    programs: &Programs,
    folder: &Path,
    options: &Options,
) -> Result<(Running, Cluster)> {
    let ca_pem = certificates::write(folder)?;
    let tokens = Tokens::write(folder)?;
    std::fs::write(folder.join(flags::AUDIT_POLICY), flags::audit_policy(options.reads))
        .context("writing the audit policy")?;
    let mut running = Running::start(programs, folder, &ca_pem, options).await?;
    let cluster = Cluster::new(running.url().to_owned(), ca_pem)?;
    cluster.write_users(folder, &tokens)?;
    if options.controller_manager {
        running.start_manager(programs, folder)?;
    }
    Ok((running, cluster))
}

/// A client for a kubeconfig file, such as that of a `ServiceAccount`.
pub async fn client(file: &Path) -> Result<kube::Client> {
    install_tls_provider();
    let load = async {
        let kubeconfig = Kubeconfig::read_from(file)?;
        kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await
    };
    let mut config = load.await.with_context(|| format!("reading {}", file.display()))?;
    config.connect_timeout = Some(Duration::from_secs(5));
    // Bookmarks come every minute, so a watch that is silent for longer is dead.
    config.read_timeout = Some(Duration::from_secs(90));
    config.reset_reader_on_write = true;
    kube::Client::try_from(config).context("building a client")
}

/// kube and reqwest take the process's provider.
fn install_tls_provider() {
    // An error means that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
