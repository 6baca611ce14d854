//! What the demo is played on: an API server, the host under its own ServiceAccount, the command
//! line.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::account::host_username;
use e2e::cli::Cli;
use e2e::component::Component;
use e2e::control_plane::{ControlPlane, Options, Program, Route, User, locate};
use e2e::controller::Controller;
use e2e::host::{self, Host};
use e2e::{install, manifest, own_api};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::DeleteParams;
use kube::{Api, Client};
use nagaya::model::crd::revision_name;
use nagaya::model::plan::{PlanPhase, PlanStatus};
use serde_json::json;

use super::NAMESPACE;
use crate::progress::Progress;

/// All that runs.
pub(super) struct Stage {
    pub(super) control_plane: ControlPlane,
    pub(super) admin: Client,
    /// The example's controller.
    pub(super) website: Controller,
    host: Host,
    cli: Cli,
    folder: tempfile::TempDir,
}

impl Stage {
    /// Starts everything.
    pub(super) async fn set(progress: &mut Progress) -> Result<Self> {
        progress.step("Start a Kubernetes API server");
        let controller_manager = match locate() {
            Route::Programs(programs) => programs.has(Program::ControllerManager),
            _ => true,
        };
        let options = Options { controller_manager, ..Options::default() };
        let control_plane = ControlPlane::start(options).await?;
        let admin = control_plane.client(User::Admin).await?;
        let version = admin.apiserver_version().await.context("asking for the server's version")?;
        progress.good(&format!(
            "kube-apiserver {} on {}",
            version.git_version,
            control_plane.url()
        ));

        progress.step("Install Nagaya as a platform team would, and start the host");
        progress.command(
            "kubectl apply -f deploy/crd/ -f deploy/rbac.yaml -f examples/website/crd.yaml -f examples/website/platform.yaml",
        );
        take_namespace(&admin).await?;
        install::install(&control_plane).await?;
        let folder = tempfile::Builder::new().prefix("nagaya-demo-").tempdir();
        let folder = folder.context("creating the host's folder")?;
        let options = host::Options {
            folder: folder.path().to_owned(),
            kubeconfig: host::kubeconfig(&control_plane, "nagaya-demo-host").await?,
            ..host::Options::default()
        };
        // A given cluster may be somewhere else, and finds no way to a host on this machine.
        let is_far = control_plane.is_given();
        let options = if is_far { options } else { own_api::serving(options) };
        let host = Host::start(&options).await?;
        if !is_far {
            own_api::pass_on_to(&admin, &host).await?;
        }
        progress.command(host.command());
        progress.good(&format!("the host runs as {}, never as an administrator", host_username()));
        let address = if is_far { host.api().to_owned() } else { String::new() };
        let cli = Cli { kubeconfig: control_plane.kubeconfig(User::Admin), host: address };
        let website = Controller::new(&admin, NAMESPACE, "website", host.api())?;
        Ok(Self { control_plane, admin, website, host, cli, folder })
    }

    /// The account, its rights and the WasmController, as the example's files have them.
    pub(super) async fn install_website(&self) -> Result<()> {
        for file in ["rbac", "controller"] {
            let objects = manifest::read(&format!("examples/website/{file}.yaml"))?;
            manifest::apply(&self.admin, &objects).await?;
        }
        Ok(())
    }

    /// Shows a command of ours and runs it, its output on this terminal.
    pub(super) async fn nagaya(
        &self,
        progress: &Progress,
        arguments: &[&str],
        component: Option<&Component>,
    ) -> Result<()> {
        let file = component.map(short);
        let mut arguments: Vec<_> = arguments.to_vec();
        arguments.extend(file.as_deref());
        arguments.extend(["--namespace", NAMESPACE]);
        progress.command(&format!("nagaya {}", arguments.join(" ")));
        let mut command = self.cli.command(&arguments).await?;
        let status =
            command.current_dir(manifest::root()).status().await.context("starting nagaya")?;
        ensure!(status.success(), "nagaya {}: {status}", arguments.join(" "));
        Ok(())
    }

    /// The same, of a command that is to fail.
    pub(super) async fn nagaya_refuses(
        &self,
        progress: &Progress,
        arguments: &[&str],
    ) -> Result<()> {
        let arguments = [arguments, &["--namespace", NAMESPACE]].concat();
        progress.command(&format!("nagaya {}", arguments.join(" ")));
        let status = self.cli.command(&arguments).await?.current_dir(manifest::root()).status();
        let status = status.await.context("starting nagaya")?;
        ensure!(!status.success(), "nagaya {} was not refused", arguments.join(" "));
        Ok(())
    }

    /// What a revision's plan says, once it is whole.
    pub(super) async fn plan(&self, revision: &str) -> Result<PlanStatus> {
        let whole = self.website.revision(revision, "has a plan", |status| {
            status.plan.as_ref().is_some_and(|plan| plan.phase == PlanPhase::Complete)
        });
        Ok(*whole.await?.status.and_then(|status| status.plan).context("there is no plan")?)
    }

    /// Whether the host is reached through the API server.
    pub(super) fn has_own_api(&self) -> bool {
        self.cli.host.is_empty()
    }

    /// The revision of this component.
    pub(super) fn revision(&self, component: &Component) -> String {
        revision_name(self.website.name(), &component.digest, None)
    }

    /// The host's anonymous memory, where the system tells.
    pub(super) fn host_memory(&self) -> Option<String> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.host.id())).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
        let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
        Some(format!("{} MiB, a build without optimisation", kibibytes / 1024))
    }

    /// What to try, for a person with a terminal.
    pub(super) fn invite(&self, progress: &Progress, [v1, v2, v3]: &[Component; 3]) {
        progress.heading("Everything is left running. In another terminal:");
        let binary = e2e::component::profile_folder().map(|folder| folder.display().to_string());
        progress.say(&format!("cd {}", root()));
        progress.say(&format!("export KUBECONFIG={}", self.cli.kubeconfig.display()));
        if !self.cli.host.is_empty() {
            progress.say(&format!("export NAGAYA_HOST={}", self.cli.host));
        }
        progress.say(&format!("export PATH={}:$PATH", binary.unwrap_or_default()));
        println!();
        for (command, why) in [
            ("kubectl get wc,wr,websites,configmaps,deployments,services -n demo", "what there is"),
            ("kubectl edit website site-01 -n demo", "change a title, see the page follow"),
            ("kubectl delete configmap site-02 -n demo", "see it come back"),
            ("nagaya get website -n demo", "the controller, its revisions, its queue"),
            ("nagaya logs website -n demo -f", "what its guests say"),
            ("nagaya push website -n demo FILE", "another version: v1, v2 and v3 are below"),
            ("nagaya plan website -n demo", "what it would change"),
            ("nagaya diff website site-01 -n demo", "in full, of one Website"),
            ("nagaya promote website -n demo --revision …", "version 3 again; `get` has its name"),
            ("nagaya rollback website -n demo", "and back"),
        ] {
            progress.say(&format!("{command:<72} # {why}"));
        }
        println!();
        progress.say(&format!("v1 is {}", short(v1)));
        progress.say(&format!("v2 is {}", short(v2)));
        progress.say(&format!("v3 is {}", short(v3)));
        progress.say(&format!("the host's log is {}", self.host.log().path().display()));
        progress.say("Ctrl-C here stops it all.");
    }

    /// Stops everything politely.
    pub(super) async fn strike(mut self) -> Result<()> {
        let given = self.control_plane.is_given();
        if given {
            self.website.delete().await?;
            self.website.gone(Duration::from_secs(45)).await?;
        }
        self.host.stop().await?;
        if given {
            let namespaces = Api::<Namespace>::all(self.admin.clone());
            namespaces.delete(NAMESPACE, &DeleteParams::default()).await.context("cleaning up")?;
        }
        self.control_plane.stop().await
    }

    /// After a failure: what is needed to understand it stays.
    pub(super) fn leave_evidence(&mut self) {
        self.control_plane.keep();
        self.folder.disable_cleanup(true);
        eprintln!("\nthe host's last lines, of {}:", self.host.log().path().display());
        eprintln!("{}", self.host.log().tail(20));
    }
}

/// The demo's namespace must be the demo's alone.
async fn take_namespace(admin: &Client) -> Result<()> {
    let there = Api::<Namespace>::all(admin.clone()).get_opt(NAMESPACE).await;
    ensure!(
        there.context("asking for the namespace")?.is_none(),
        "the cluster has a namespace {NAMESPACE} already, which the demo would fill and then delete: \
         delete it first, or use another cluster"
    );
    let namespace =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
    manifest::apply(admin, &[namespace]).await
}

/// A component's path as one would type it at the repository's root.
fn short(component: &Component) -> String {
    let path = component.path.strip_prefix(root()).unwrap_or(&component.path);
    path.display().to_string()
}

fn root() -> String {
    let root = manifest::root();
    root.canonicalize().unwrap_or(root).display().to_string()
}
