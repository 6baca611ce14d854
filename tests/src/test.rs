//! One end-to-end test: a namespace, a host, and the evidence if it fails.

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::{FutureExt, StreamExt, TryStreamExt};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{DeleteParams, ListParams, ObjectMeta, PostParams};
use kube::{Api, Client, ResourceExt};
use nagaya::model::crd::WasmController;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::account::{self, GUEST_RULES, Rule};
use crate::cli::Cli;
use crate::code;
use crate::component::{Component, profile_folder};
use crate::control_plane::{ControlPlane, GIVEN_CLUSTER, Options, Route, User, audit, locate};
use crate::controller::{Controller, NO_DIGEST, SEEN_WITHIN};
use crate::evidence;
use crate::history::History;
use crate::host::{self, Host};
use crate::install;
use crate::log::Line;
use crate::manifest;
use crate::proxy::Proxy;
use crate::site;
use crate::wait::within;

/// Runs take milliseconds; a busy machine takes seconds.
const WRITTEN_WITHIN: Duration = Duration::from_secs(30);

/// The label that says which host serves a controller; its value is the test's namespace.
const LABEL: &str = "nagaya.dev/test";

/// More at once would only wait for the server.
const AT_ONCE: usize = 8;

/// The host answers a change within milliseconds.
const QUIET: Duration = Duration::from_secs(1);

/// A host that dies is followed within seconds.
const QUICK_LEASE: [&str; 2] = ["--lease-profile", "fast"];

/// What a test has for itself.
pub struct Test {
    /// The server; whose it is, [`test`] and [`test_alone`] say.
    pub control_plane: ControlPlane,
    /// The administrator.
    pub admin: Client,
    /// The namespace.
    pub namespace: String,
    /// The host, which serves the controllers of this test and no others.
    pub host: Host,
    options: host::Options,
    others: Vec<String>,
    expected: Vec<&'static str>,
    proxy: Option<Arc<Proxy>>,
    /// The audit log at the start.
    log: Option<audit::Log>,
}

/// Runs `body` with a namespace and a host of its own on the shared server, and looks after both
/// afterwards: the host must end well when asked, without having logged an error, and the history of
/// its writes must be clean. A failure
/// keeps the namespace's objects, the host's log and the audit lines, and says where.
pub fn test(body: impl AsyncFnOnce(&mut Test) -> Result<()>) -> Result<()> {
    block_on(async { Test::start(install::shared().await?).await?.run(body).await })
}

/// The same for a test that compares times: those of one test program take turns, since two that
/// load the machine at once measure each other.
pub fn test_in_turn(body: impl AsyncFnOnce(&mut Test) -> Result<()>) -> Result<()> {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    test(body)
}

/// The same on a server of its own, which `body` may stop and kill. On a given cluster nothing is
/// run, which is said.
pub fn test_alone(
    options: Options,
    body: impl AsyncFnOnce(&mut Test, &mut ControlPlane) -> Result<()>,
) -> Result<()> {
    block_on(async {
        if matches!(locate(), Route::Cluster(_)) {
            eprintln!("not run: {GIVEN_CLUSTER} is set, and this stops the server");
            return Ok(());
        }
        let mut own = ControlPlane::start(options).await?;
        install::install(&own).await?;
        let test = Test::start(&own).await?;
        let outcome = test.run(async |test| body(test, &mut own).await).await;
        if outcome.is_err() {
            own.keep();
        }
        let stopped = own.stop().await;
        outcome.and(stopped)
    })
}

fn block_on(test: impl Future<Output = Result<()>>) -> Result<()> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(2).enable_all().build().context("starting a runtime")?.block_on(test)
}

impl Test {
    async fn start(server: &ControlPlane) -> Result<Self> {
        let control_plane = ControlPlane::attach(server.folder())?;
        let admin = control_plane.client(User::Admin).await?;
        let namespace = create_namespace(&admin, None).await?;
        let folder = new_folder()?;
        let options = host::Options {
            folder,
            kubeconfig: host::kubeconfig(&control_plane, &format!("host-{namespace}")).await?,
            controllers: Some(format!("{LABEL}={namespace}")),
            arguments: vec![],
            environment: vec![],
            wrapper: vec![],
        };
        let log = control_plane.audit().ok().map(|log| log.from_now()).transpose()?;
        let host = Host::start(&options).await?;
        let (others, expected) = (vec![], vec![]);
        let proxy = None;
        Ok(Self { control_plane, admin, namespace, host, options, others, expected, proxy, log })
    }

    /// Says that the host is to log an error whose message begins so, which is then no failure of the test.
    pub fn expect_error(&mut self, message: &'static str) {
        self.expected.push(message);
    }

    /// How the host is started.
    pub fn options(&self) -> host::Options {
        self.options.clone()
    }

    /// Starts the host again in another way, after [`Host::stop`] or [`Host::kill`].
    pub async fn start_host_as(&mut self, options: host::Options) -> Result<()> {
        self.options = options;
        self.start_host().await
    }

    async fn run(mut self, body: impl AsyncFnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let outcome = AssertUnwindSafe(async {
            body(&mut self).await?;
            self.end().await
        });
        match outcome.catch_unwind().await {
            Ok(Ok(())) => {
                code::take(&self.options.folder.join("data"))?;
                // Nothing else in it is needed any more; a leftover is removed by the next run.
                let _ = fs::remove_dir_all(&self.options.folder);
                Ok(())
            }
            Ok(Err(error)) => {
                let kept = self.keep_evidence().await;
                Err(error.context(kept))
            }
            Err(panic) => {
                eprintln!("{}", self.keep_evidence().await);
                resume_unwind(panic)
            }
        }
    }

    /// Starts the host again with the same credentials, now behind a fault proxy, which stays until the
    /// host has ended.
    pub async fn behind_proxy(&mut self, seed: u64) -> Result<Arc<Proxy>> {
        let proxy = Arc::new(Proxy::start(&self.control_plane, seed).await?);
        self.host.stop().await?;
        self.options.kubeconfig = proxy.kubeconfig(&self.options.kubeconfig)?;
        self.proxy = Some(proxy.clone());
        self.start_host().await?;
        Ok(proxy)
    }

    /// The folder of this test, for its files; the host's data and log are in it.
    pub fn folder(&self) -> &Path {
        &self.options.folder
    }

    /// The next host has to compile everything, as if no test had done so before.
    pub fn forget_code(&self) -> Result<()> {
        code::begin(&self.options.folder.join("data"))
    }

    /// Hosts that are started from now on have these credentials.
    pub fn use_kubeconfig(&mut self, file: PathBuf) {
        self.options.kubeconfig = file;
    }

    /// Starts the host again on the same data, after [`Host::stop`] or [`Host::kill`].
    pub async fn start_host(&mut self) -> Result<()> {
        self.host = Host::start(&self.options).await?;
        Ok(())
    }

    /// Starts the host again with a Lease that ends within seconds, for what is about a host that dies. A machine that stands
    /// still for as long is like one, so all else has the usual times.
    pub async fn follow_quickly(&mut self) -> Result<()> {
        self.options.arguments = QUICK_LEASE.map(str::to_owned).to_vec();
        self.host.stop().await?;
        self.start_host().await
    }

    /// Another host of the same deployment: the same controllers, Lease and data folder.
    pub async fn standby(&self, name: &str) -> Result<Host> {
        let folder = self.options.folder.join(name);
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        let shared = std::os::unix::fs::symlink("../data", folder.join("data"));
        shared.context("sharing the data folder")?;
        Host::start(&host::Options { folder, ..self.options.clone() }).await
    }

    /// Makes `other` the host that [`Test::controller`] sends to and whose metrics are asked; returns the old one.
    pub fn switch_to(&mut self, other: Host) -> Host {
        std::mem::replace(&mut self.host, other)
    }

    /// The guest `copier`, live, with `config`; and its revision. Its budget is for load.
    pub async fn copier(&self, name: &str, config: &Value) -> Result<(Controller, String)> {
        let spec = json!({"limits": {"writesPerMinute": 60_000}});
        let copier = self.guest(name, GUEST_RULES, spec).await?;
        let revision = copier.push_config(&Component::load("copier")?, config).await?;
        copier.active(&revision).await?;
        Ok((copier, revision))
    }

    /// The same with a failpoint armed, such as `gate-closed:kill@2`; none with an empty one. Whoever follows a host that it
    /// kills need not wait long.
    pub async fn start_host_failing(&mut self, point: &str) -> Result<()> {
        self.options.arguments = QUICK_LEASE.map(str::to_owned).to_vec();
        let armed = ("NAGAYA_FAIL".to_owned(), point.to_owned());
        let environment = if point.is_empty() { vec![] } else { vec![armed] };
        self.host = Host::start(&host::Options { environment, ..self.options.clone() }).await?;
        Ok(())
    }

    /// Another namespace, with labels.
    pub async fn another_namespace(&mut self, labels: &[(&str, &str)]) -> Result<String> {
        let labels = labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        let name = create_namespace(&self.admin, Some(labels)).await?;
        self.others.push(name.clone());
        Ok(name)
    }

    /// Installs an example in this test's namespace: its rights and its WasmController, without a
    /// component.
    pub async fn example(&self, name: &str) -> Result<Controller> {
        let mut objects = manifest::read(&format!("examples/{name}/rbac.yaml"))?;
        objects.extend(manifest::read(&format!("examples/{name}/controller.yaml"))?);
        for object in &mut objects {
            *object = manifest::moved(object, &self.namespace);
            if object["kind"] == "WasmController" {
                object["metadata"]["labels"] = json!({LABEL: self.namespace});
            }
        }
        manifest::apply(&self.admin, &objects).await?;
        self.controller(name)
    }

    /// Makes a controller for a guest of `tests/guests`, with an account that has `rules`.
    pub async fn guest(&self, name: &str, rules: &[Rule], spec: Value) -> Result<Controller> {
        self.apply(&account::objects(&self.namespace, name, rules)).await?;
        self.bare_controller(name, name, spec).await
    }

    /// The guest `hostile`, live, doing what `config` says; and its revision. `spec` goes over the usual one.
    pub async fn hostile(&self, spec: Value, config: &Value) -> Result<(Controller, String)> {
        let hostile = self.guest("hostile", GUEST_RULES, spec).await?;
        let revision = hostile.push_config(&Component::load("hostile")?, config).await?;
        hostile.active(&revision).await?;
        Ok((hostile, revision))
    }

    /// Waits until the ConfigMap that `hostile` writes for `name` says `value`.
    pub async fn written(&self, name: &str, value: &str) -> Result<()> {
        let maps = self.api::<ConfigMap>();
        within(WRITTEN_WITHIN, &format!("{name} says {value}"), async || {
            let now = site::datum(&maps, name, "config").await?;
            ensure!(now == value, "it says {now}");
            Ok(())
        })
        .await
    }

    /// Makes a WasmController without an account of its own; `spec` goes over the usual one.
    pub async fn bare_controller(
        &self,
        name: &str,
        service_account: &str,
        spec: Value,
    ) -> Result<Controller> {
        self.controller_in(&self.namespace, name, service_account, spec).await
    }

    /// The same in another namespace, whose objects it then works on.
    pub async fn controller_in(
        &self,
        namespace: &str,
        name: &str,
        service_account: &str,
        spec: Value,
    ) -> Result<Controller> {
        let mut object = json!({
            "apiVersion": "nagaya.dev/v1alpha1",
            "kind": "WasmController",
            "metadata": {
                "name": name,
                "namespace": namespace,
                "labels": {LABEL: self.namespace},
            },
            "spec": {
                "serviceAccountName": service_account,
                "module": {"digest": NO_DIGEST},
                "scope": {"namespaces": [namespace]},
            },
        });
        if let (Some(fields), Value::Object(more)) = (object["spec"].as_object_mut(), spec) {
            fields.extend(more);
        }
        self.apply(&[object]).await?;
        Controller::new(&self.admin, namespace, name, self.host.api())
    }

    /// The WasmController of this name.
    pub fn controller(&self, name: &str) -> Result<Controller> {
        Controller::new(&self.admin, &self.namespace, name, self.host.api())
    }

    /// Applies objects as the administrator.
    pub async fn apply(&self, objects: &[Value]) -> Result<()> {
        manifest::apply(&self.admin, objects).await
    }

    /// Applies a Website with this title.
    pub async fn website(&self, name: &str, title: &str) -> Result<()> {
        self.apply(&[site::website(&self.namespace, name, title)]).await
    }

    /// Gives the Websites `site-0` … `site-<count - 1>` this title, a few at a time, and writes down in `titles` what
    /// each says.
    pub async fn retitle(
        &self,
        titles: &mut BTreeMap<String, String>,
        count: usize,
        title: &str,
    ) -> Result<()> {
        let names = (0..count).map(|number| format!("site-{number}"));
        let set = futures::stream::iter(names).map(async |name| {
            self.website(&name, title).await?;
            anyhow::Ok(name)
        });
        let mut set = std::pin::pin!(set.buffer_unordered(AT_ONCE));
        while let Some(name) = set.try_next().await? {
            titles.insert(name, title.to_owned());
        }
        Ok(())
    }

    /// Waits until `copier` has copied these titles; how long it took.
    pub async fn copied(
        &self,
        titles: &BTreeMap<String, String>,
        limit: Duration,
    ) -> Result<Duration> {
        let begun = Instant::now();
        site::copied(&self.api(), titles, limit).await?;
        Ok(begun.elapsed())
    }

    /// These titles are copied, and no late event has brought an older one back.
    pub async fn stays(&self, titles: &BTreeMap<String, String>) -> Result<()> {
        site::all_copied(&self.api(), titles).await
    }

    /// Waits until Kubernetes has put its revision number into so many Deployments, for which their owners run once more.
    pub async fn deployed(&self, wanted: usize) -> Result<()> {
        if !self.control_plane.has_controller_manager() {
            return Ok(());
        }
        let deployments = self.api::<Deployment>();
        within(SEEN_WITHIN, "the Deployments are numbered", async || {
            let all = deployments.list(&ListParams::default()).await?.items;
            let number = "deployment.kubernetes.io/revision";
            let numbered = all.iter().filter(|one| one.annotations().contains_key(number)).count();
            ensure!(numbered == wanted, "{numbered} of {}", all.len());
            Ok(())
        })
        .await
    }

    /// An API in this test's namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.admin.clone(), &self.namespace)
    }

    /// The command line in the administrator's hands.
    pub fn cli(&self) -> Cli {
        let kubeconfig = self.control_plane.kubeconfig(User::Admin);
        Cli { kubeconfig, host: self.host.api().to_owned() }
    }

    /// The audit log; none on a given cluster, which is said.
    pub fn audit(&self) -> Option<audit::Log> {
        let log = self.control_plane.audit().ok();
        if log.is_none() {
            eprintln!("not looked at: the audit log ({GIVEN_CLUSTER} is set)");
        }
        log
    }

    /// What was written in this test's namespaces; none on a given cluster.
    pub fn history(&self) -> Result<Option<History>> {
        let Some(log) = &self.log else { return Ok(None) };
        let mut events = log.events()?;
        events.retain(|event| {
            event.object_ref.as_ref().is_some_and(|object| {
                object.namespace == self.namespace || self.others.contains(&object.namespace)
            })
        });
        Ok(Some(History::of(&events)))
    }

    /// The name by which the server knows an account of this test.
    pub fn username(&self, account: &str) -> String {
        account::username(&self.namespace, account)
    }

    /// How many runs of this controller have ended.
    pub async fn runs(&self, controller: &str) -> Result<f64> {
        let controller = format!("{}/{controller}", self.namespace);
        let metrics = self.host.metrics().await?;
        Ok(metrics.sum("controller_runtime_reconcile_total", &[("controller", &controller)]))
    }

    /// How many runs of this controller are going on.
    pub async fn running(&self, controller: &str) -> Result<f64> {
        let controller = format!("{}/{controller}", self.namespace);
        let metrics = self.host.metrics().await?;
        Ok(metrics.sum("controller_runtime_active_workers", &[("controller", &controller)]))
    }

    /// Waits until the controller has nothing to do now.
    pub async fn idle(&self, controller: &str) -> Result<()> {
        let name = format!("{}/{controller}", self.namespace);
        within(SEEN_WITHIN, &format!("{controller} is idle"), async || {
            let metrics = self.host.metrics().await?;
            let now = |metric: &str| metrics.sum(metric, &[("controller", &name)]);
            let waiting = now("workqueue_depth");
            let running = now("controller_runtime_active_workers");
            // Also a key that waits until the cache shows what its run wrote.
            let unfinished = now("workqueue_unfinished_work_seconds");
            ensure!(
                waiting + running + unfinished == 0.0,
                "{waiting} wait, {running} run, {unfinished} s of work unfinished"
            );
            Ok(())
        })
        .await
    }

    /// Waits until the controller has written nothing for a second: Kubernetes' own controllers
    /// touch a new Deployment once more, which wakes its owner again. Without an audit log it only
    /// waits until the controller is idle.
    pub async fn quiet(&self, controller: &str) -> Result<()> {
        let Some(log) = self.audit() else { return self.idle(controller).await };
        let account = self.username(controller);
        within(SEEN_WITHIN, &format!("{controller} is quiet"), async || {
            let events = log.events()?;
            let last = events.iter().rev().find(|one| one.is_write() && one.actor() == account);
            let last = last.context("it never wrote")?;
            let age = Timestamp::now().duration_since(last.stage_timestamp);
            let age = Duration::try_from(age).unwrap_or_default();
            ensure!(age > QUIET, "{age:?} ago: {}", last.summary());
            Ok(())
        })
        .await?;
        self.idle(controller).await
    }

    async fn end(&mut self) -> Result<()> {
        if let Some(history) = self.history()? {
            history.check()?;
        }
        if self.control_plane.is_given() {
            self.clear().await?;
        }
        self.host.stop().await?;
        let errors: Vec<_> = self.host.log().lines()?;
        let is_expected =
            |line: &Line| self.expected.iter().any(|text| line.message().starts_with(text));
        let errors: Vec<_> =
            errors.iter().filter(|line| line.level() == "ERROR" && !is_expected(line)).collect();
        ensure!(errors.is_empty(), "the host logged an error: {}", errors[0]);
        if self.control_plane.is_given() {
            let namespaces = Api::<Namespace>::all(self.admin.clone());
            for name in self.others.iter().chain([&self.namespace]) {
                namespaces.delete(name, &DeleteParams::default()).await.context("cleaning up")?;
            }
        }
        Ok(())
    }

    /// While the host lives: its finalizer holds the controllers.
    async fn clear(&self) -> Result<()> {
        let controllers = self.api::<WasmController>();
        let (delete, list) = (DeleteParams::default(), ListParams::default());
        controllers.delete_collection(&delete, &list).await.context("deleting the controllers")?;
        within(Duration::from_secs(60), "the controllers are gone", async || {
            let left = controllers.list(&list).await?.items.len();
            ensure!(left == 0, "{left} are left");
            Ok(())
        })
        .await
    }

    async fn keep_evidence(&mut self) -> String {
        let folder = self.options.folder.clone();
        let mut kept = format!("the evidence is in {}", folder.display());
        let objects = evidence::objects(&self.admin, &self.namespace, &folder).await;
        let audit = match self.control_plane.audit() {
            Ok(log) => evidence::audit_lines(&log, &self.namespace, &folder),
            Err(_) => Ok(()),
        };
        for error in [objects.err(), audit.err()].into_iter().flatten() {
            kept += &format!("\nnot all of it: {error:#}");
        }
        kept
    }
}

async fn create_namespace(
    admin: &Client,
    labels: Option<BTreeMap<String, String>>,
) -> Result<String> {
    let metadata = ObjectMeta { generate_name: Some("t-".into()), labels, ..ObjectMeta::default() };
    let namespace = Namespace { metadata, ..Namespace::default() };
    let created = Api::all(admin.clone()).create(&PostParams::default(), &namespace).await;
    created.context("creating a namespace")?.metadata.name.context("a namespace without name")
}

/// `target/<profile>/e2e/<test>`, empty.
fn new_folder() -> Result<PathBuf> {
    // The test harness names each test's thread after it.
    let name = std::thread::current().name().unwrap_or("test").replace("::", "-");
    let program = std::env::current_exe().context("looking for this program")?;
    let program = program.file_name().map(|name| name.to_string_lossy().into_owned());
    let theme = program.unwrap_or_default();
    let theme = theme.rsplit_once('-').map_or(theme.as_str(), |(theme, _)| theme);
    let folder = profile_folder()?.join("e2e").join(format!("{theme}-{name}"));
    remove(&folder)?;
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    Ok(folder)
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", folder.display()))
        }
        _ => Ok(()),
    }
}
