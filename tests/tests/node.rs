//! The host as it is installed: its image in pods of a real kubelet, by the README's lines. Run by `cargo xtask test --node`.
//!
//! What only a node can show: that the image starts, that the security context, the probes and the token of a pod do, that the API
//! server reaches pods, and that nothing is lost when pods go. Its times are printed.

#![cfg(test)] // Tells clippy that helpers are test code too.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::account::{self, GUEST_RULES, HOST};
use e2e::cli::Cli;
use e2e::component::Component;
use e2e::control_plane::{ControlPlane, Options, User};
use e2e::controller::NO_DIGEST;
use e2e::helm::Helm;
use e2e::load::Load;
use e2e::wait::within;
use e2e::{host, manifest, site};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::ListParams;
use kube::{Api, Client};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::time::Instant;

const LIMIT: Duration = Duration::from_secs(120);
const TEAM: &str = "demo";
const SITES: usize = 50;
/// Changes a second.
const RATE: u32 = 50;
/// Small, so that guests who want memory meet its end; the host has 2 GiB by default.
const MEMORY: &str = "512Mi";

struct Node {
    control_plane: ControlPlane,
    admin: Client,
    helm: Helm,
    /// Somebody with the role `edit` in the team's namespace.
    editor: Cli,
    began: Instant,
}

#[test]
#[ignore = "needs a node: cargo xtask test --node"]
fn the_host_runs_as_it_is_installed() -> Result<()> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build().context("starting a runtime")?;
    runtime.block_on(async {
        let mut node = Node::begin().await?;
        node.the_readme_installs_it().await?;
        let names = node.a_team_ships_through_the_api_server().await?;
        node.a_rolling_update_loses_nothing(&names).await?;
        node.a_killed_pod_loses_nothing(&names).await?;
        node.guests_that_want_all_memory_end_no_pod().await
    })
}

impl Node {
    async fn begin() -> Result<Self> {
        let helm = tokio::task::spawn_blocking(Helm::find).await??;
        let control_plane = ControlPlane::start(Options::default()).await?;
        ensure!(control_plane.is_given(), "cargo xtask test --node gives the cluster");
        let admin = control_plane.client(User::Admin).await?;
        let kubeconfig = control_plane.kubeconfig(User::Admin);
        let editor = Cli { kubeconfig, host: String::new() };
        Ok(Self { control_plane, admin, helm, editor, began: Instant::now() })
    }

    fn told(&mut self, what: &str) {
        eprintln!("{:>7.1} s  {what}", self.began.elapsed().as_secs_f64());
        self.began = Instant::now();
    }

    /// The README's lines, as they stand there.
    async fn the_readme_installs_it(&mut self) -> Result<()> {
        let readme = fs::read_to_string(manifest::root().join("README.md"))?;
        let part = readme.split_once("## Install it").context("no section")?.1;
        let block = part.split("```sh\n").nth(1).and_then(|rest| rest.split("```").next());
        self.shell(block.context("no block")?).await?;
        self.rolled_out().await?;
        self.told("installed by the lines of the README, both replicas ready, the API available");
        for example in ["crd", "platform"] {
            let objects = manifest::read(&format!("examples/website/{example}.yaml"))?;
            manifest::apply(&self.admin, &objects).await?;
        }
        Ok(())
    }

    async fn shell(&self, lines: &str) -> Result<String> {
        self.helm.shell(&self.control_plane.kubeconfig(User::Admin), lines).await
    }

    /// Every replica is of the newest kind and ready, and no other is left.
    async fn rolled_out(&self) -> Result<()> {
        let deployments = Api::<Deployment>::namespaced(self.admin.clone(), HOST.0);
        within(LIMIT, "the rollout is done", async || {
            let deployment = deployments.get("nagaya").await?;
            let wanted = deployment.spec.and_then(|spec| spec.replicas);
            let status = deployment.status.unwrap_or_default();
            let done = status.observed_generation >= deployment.metadata.generation
                && [status.updated_replicas, status.replicas, status.available_replicas]
                    == [wanted; 3];
            ensure!(done, "{status:?}");
            Ok(())
        })
        .await
    }

    async fn a_team_ships_through_the_api_server(&mut self) -> Result<Vec<String>> {
        let admin = &self.admin;
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": TEAM}});
        let person = json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": "ann", "namespace": TEAM},
        });
        let edits = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "ann", "namespace": TEAM},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"},
            "subjects": [{"kind": "ServiceAccount", "name": "ann", "namespace": TEAM}],
        });
        manifest::apply(admin, &[namespace, person, edits]).await?;
        manifest::apply(admin, &account::objects(TEAM, "copier", GUEST_RULES)).await?;
        manifest::apply(
            admin,
            &[controller("copier", json!({"limits": {"writesPerMinute": 60_000}}))],
        )
        .await?;
        let token = host::token_of(&self.control_plane, (TEAM, "ann")).await?;
        self.editor.kubeconfig = self.control_plane.kubeconfig_with_token("ann", &token)?;
        self.push("copier").await?;
        self.told("nagaya push by an editor of the namespace, through the API server: live");
        let names: Vec<_> = (0..SITES).map(|number| format!("site-{number}")).collect();
        let sites: Vec<_> = names.iter().map(|name| site::website(TEAM, name, "first")).collect();
        manifest::apply(&self.admin, &sites).await?;
        let titles = names.iter().map(|name| (name.clone(), "first".to_owned())).collect();
        self.copied(&titles).await?;
        self.told(&format!("{SITES} Websites applied and reconciled"));
        let said = self.editor.run(&["get", "copier", "-n", TEAM]).await?;
        ensure!(said.contains("queue  "), "no live state: {said}");
        Ok(names)
    }

    async fn push(&self, name: &str) -> Result<()> {
        let file = std::env::temp_dir().join(format!("nagaya-node-{name}.wasm"));
        fs::write(&file, &Component::load(name)?.bytes)?;
        let shown = file.display().to_string();
        let pushed = self.editor.run(&["push", name, &shown, "-n", TEAM, "--timeout", "90s"]).await;
        fs::remove_file(file)?;
        pushed.map(drop)
    }

    async fn copied(&self, titles: &BTreeMap<String, String>) -> Result<()> {
        let maps = Api::<ConfigMap>::namespaced(self.admin.clone(), TEAM);
        site::copied(&maps, titles, LIMIT).await
    }

    async fn a_rolling_update_loses_nothing(&mut self, names: &[String]) -> Result<()> {
        let load = Load::start(self.admin.clone(), TEAM, names.to_vec(), RATE);
        let upgrade = "helm upgrade nagaya deploy/chart -n nagaya-system --reset-then-reuse-values";
        self.shell(&format!("{upgrade} --set resources.limits.memory={MEMORY}")).await?;
        self.rolled_out().await?;
        let took = self.began.elapsed();
        let titles = load.stop().await?;
        ensure!(!titles.is_empty(), "nothing was changed meanwhile");
        self.copied(&titles).await?;
        self.told(&format!(
            "helm upgrade of both pods under {RATE} changes/s ({:.1} s), and every change done; no team had to push again",
            took.as_secs_f64()
        ));
        Ok(())
    }

    async fn a_killed_pod_loses_nothing(&mut self, names: &[String]) -> Result<()> {
        let load = Load::start(self.admin.clone(), TEAM, names.to_vec(), RATE);
        let before = self.restarts().await?;
        let leader = self.leader().await?;
        kill_process(process_of(&leader)?, Signal::KILL).context("killing the leader's pod")?;
        within(LIMIT, "the kubelet has begun it anew", async || {
            let now = self.restarts().await?;
            ensure!(now > before, "{now} restarts");
            Ok(())
        })
        .await?;
        self.rolled_out().await?;
        let titles = load.stop().await?;
        self.copied(&titles).await?;
        self.told(&format!(
            "kill -9 of the leader's pod under {RATE} changes/s, and every change done"
        ));
        Ok(())
    }

    async fn pods(&self) -> Result<Vec<Pod>> {
        let pods = Api::<Pod>::namespaced(self.admin.clone(), HOST.0);
        Ok(pods.list(&ListParams::default()).await?.items)
    }

    /// How often containers of the host were begun anew.
    async fn restarts(&self) -> Result<i32> {
        let of =
            |pod: Pod| pod.status.and_then(|status| status.container_statuses).unwrap_or_default();
        Ok(self.pods().await?.into_iter().flat_map(of).map(|one| one.restart_count).sum())
    }

    /// The address of the pod that works.
    async fn leader(&self) -> Result<String> {
        let leases = Api::<Lease>::namespaced(self.admin.clone(), HOST.0);
        within(LIMIT, "somebody leads", async || {
            let holder = leases.get("nagaya").await?.spec.and_then(|spec| spec.holder_identity);
            let holder = holder.context("nobody")?;
            let pods = self.pods().await?;
            let leads = |pod: &Pod| {
                pod.metadata
                    .name
                    .as_deref()
                    .is_some_and(|name| holder.starts_with(&format!("{name}_")))
            };
            let pod = pods.into_iter().find(leads).with_context(|| holder.clone())?;
            pod.status.and_then(|status| status.pod_ip).context("it has no address")
        })
        .await
    }

    async fn guests_that_want_all_memory_end_no_pod(&mut self) -> Result<()> {
        let before = self.restarts().await?;
        let spec = json!({
            "config": {"reconcile": "alloc"},
            "limits": {"memory": "64Mi", "concurrency": 16},
            "scope": {"namespaces": [TEAM]},
        });
        manifest::apply(&self.admin, &account::objects(TEAM, "hostile", GUEST_RULES)).await?;
        manifest::apply(&self.admin, &[controller("hostile", spec)]).await?;
        self.push("hostile").await?;
        let logs = ["logs", "hostile", "-n", TEAM, "--level", "warn"];
        within(LIMIT, "its runs end for want of memory", async || {
            let said = self.editor.run(&logs).await?;
            let ended = said.lines().filter(|line| line.contains("the run failed")).count();
            ensure!(
                ended >= SITES,
                "{ended} of {SITES}: {}",
                said.lines().last().unwrap_or_default()
            );
            Ok(())
        })
        .await?;
        let names = (0..SITES).map(|number| format!("site-{number}")).collect();
        let load = Load::start(self.admin.clone(), TEAM, names, RATE);
        tokio::time::sleep(Duration::from_secs(2)).await;
        self.copied(&load.stop().await?).await?;
        let now = self.restarts().await?;
        ensure!(now == before, "{} restarts", now - before);
        self.told(&format!(
            "guests that take memory without end, on each of {SITES} objects, in pods of {MEMORY}: no restart, the other controller goes on"
        ));
        Ok(())
    }
}

fn controller(name: &str, spec: Value) -> Value {
    let mut object = json!({
        "apiVersion": "nagaya.dev/v1alpha1",
        "kind": "WasmController",
        "metadata": {"name": name, "namespace": TEAM},
        "spec": {"serviceAccountName": name, "module": {"digest": NO_DIGEST}, "scope": {"namespaces": [TEAM]}},
    });
    if let (Some(fields), Value::Object(more)) = (object["spec"].as_object_mut(), spec) {
        fields.extend(more);
    }
    object
}

/// The host's process in the pod of this address, as it is seen from outside of the pod.
fn process_of(address: &str) -> Result<Pid> {
    let wanted = format!("NAGAYA_POD_IP={address}");
    for entry in fs::read_dir("/proc").context("looking for processes")? {
        let name = entry?.file_name();
        let Some(number) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let environment = fs::read(format!("/proc/{number}/environ")).unwrap_or_default();
        let is_it = environment.split(|byte| *byte == 0).any(|pair| pair == wanted.as_bytes());
        if let Some(pid) = Pid::from_raw(number).filter(|_| is_it) {
            return Ok(pid);
        }
    }
    anyhow::bail!("no process has {wanted}")
}
