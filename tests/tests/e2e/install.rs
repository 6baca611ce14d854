//! What `deploy/` does to a real server, by the commands of its README as they stand there: installed, upgraded, uninstalled.
//!
//! No kubelet runs the host's pods here, so that the `APIService` is one that cannot be reached.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::control_plane::{ControlPlane, GIVEN_CLUSTER, Options, Route, User, client, locate};
use e2e::helm::Helm;
use e2e::manifest::{api_of, read, resource, root};
use e2e::wait::within;
use e2e::{host, install};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Pod, Secret};
use kube::api::{DynamicObject, ListParams, Patch, PatchParams, PostParams, ValidationDirective};
use kube::{Api, Client, ResourceExt};
use nagaya::model::crd::WasmController;
use serde_json::json;

use crate::chart::{everything, file, rendered};

/// Kinds of the Prometheus operator, which this server does not know.
const NOT_HERE: [&str; 2] = ["ServiceMonitor/nagaya", "PrometheusRule/nagaya"];

/// The controller manager looks for new kinds every 30 s, and asks again after a failure.
const DELETED_WITHIN: Duration = Duration::from_secs(90);

const UPGRADE: &str = "helm upgrade nagaya deploy/chart -n nagaya-system --reset-then-reuse-values";
const TAKE_OVER: &str = "helm install --take-ownership";
const CONFLICTS: &str = "--force-conflicts";
const APPLY: &str = "kubectl apply --server-side -f deploy/install.yaml";
const NO_API: &str = "kubectl delete apiservice v1alpha1.run.nagaya.dev";
const API: &str = "v1alpha1.run.nagaya.dev";

/// A server of its own, for what is the whole cluster's.
struct Cluster {
    server: ControlPlane,
    admin: Client,
    helm: Helm,
    readme: String,
}

impl Cluster {
    async fn with(body: impl AsyncFnOnce(&Self) -> Result<()>) -> Result<()> {
        if matches!(locate(), Route::Cluster(_)) {
            eprintln!("not run: {GIVEN_CLUSTER} is set, and this changes the cluster for all");
            return Ok(());
        }
        let helm = tokio::task::spawn_blocking(Helm::find).await??;
        let options = Options { controller_manager: true, ..Options::default() };
        let server = ControlPlane::start(options).await?;
        let admin = server.client(User::Admin).await?;
        let readme = std::fs::read_to_string(root().join("deploy/README.md"))?;
        let mut cluster = Self { server, admin, helm, readme };
        let outcome = body(&cluster).await;
        if outcome.is_err() {
            cluster.server.keep();
        }
        outcome.and(cluster.server.stop().await)
    }

    /// Runs a command that the README has, followed by `more`.
    async fn run(&self, command: &str, more: &str) -> Result<String> {
        // There a command may go on in the next line.
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let has = words(&self.readme).contains(&words(command));
        ensure!(has, "deploy/README.md does not say `{command}`");
        self.shell(&format!("{command} {more}")).await
    }

    /// Runs a block of the README.
    async fn block(&self, heading: &str, number: usize) -> Result<String> {
        let part = self.readme.split_once(heading).context("no such heading")?.1;
        let block = part.split("```sh\n").nth(number + 1).and_then(|rest| rest.split("```").next());
        let block = block.with_context(|| format!("no block {number} below {heading}"))?;
        // Nobody starts the pods.
        let block = block.lines().filter(|line| !line.starts_with("kubectl rollout status"));
        self.shell(&block.collect::<Vec<_>>().join("\n")).await
    }

    async fn shell(&self, lines: &str) -> Result<String> {
        self.helm.shell(&self.server.kubeconfig(User::Admin), lines).await
    }

    /// Names of this kind that are the installation's.
    async fn ours(&self, api_version: &str, kind: &str) -> Result<BTreeSet<String>> {
        let api = Api::<DynamicObject>::all_with(self.admin.clone(), &resource(api_version, kind));
        let all = api.list(&ListParams::default()).await?;
        let names = all.items.iter().map(ResourceExt::name_any);
        Ok(names.filter(|name| name.contains("nagaya")).collect())
    }

    async fn deleted(&self, namespace: &str) -> Result<()> {
        let namespaces = Api::<Namespace>::all(self.admin.clone());
        within(DELETED_WITHIN, &format!("{namespace} is gone"), async || {
            let left = namespaces.get_opt(namespace).await?;
            ensure!(left.is_none(), "{:?}", left.and_then(|left| left.status));
            Ok(())
        })
        .await
    }

    /// A WasmController that a host has taken on.
    async fn controller(&self, namespace: &str, name: &str) -> Result<()> {
        let object = json!({
            "apiVersion": "nagaya.dev/v1alpha1", "kind": "WasmController",
            "metadata": {"name": name, "namespace": namespace, "finalizers": ["nagaya.dev/drain"]},
            "spec": {
                "serviceAccountName": name,
                "module": {"digest": format!("sha256:{}", "0".repeat(64))},
                "scope": {"namespaces": [namespace]},
            },
        });
        let api = Api::<WasmController>::namespaced(self.admin.clone(), namespace);
        let object = serde_json::from_value(object)?;
        api.create(&PostParams::default(), &object).await.map(drop).context("making a controller")
    }
}

fn api_services(client: &Client) -> Api<DynamicObject> {
    Api::all_with(client.clone(), &resource("apiregistration.k8s.io/v1", "APIService"))
}

#[tokio::test]
async fn the_server_takes_every_object_with_every_value_and_lets_the_pod_in() -> Result<()> {
    let server = install::shared().await?;
    let admin = server.client(User::Admin).await?;
    let helm = tokio::task::spawn_blocking(Helm::find).await??;
    let values = file(&everything())?;
    let mut all = rendered(&helm, &["--values", values.path().to_str().context("a path")?])?;
    for kind in NOT_HERE {
        all.remove(kind).with_context(|| format!("no {kind}"))?;
    }
    let plain = read("deploy/install.yaml")?;
    let parameters = PatchParams {
        field_validation: Some(ValidationDirective::Strict),
        ..PatchParams::apply("chart").force().dry_run()
    };
    for object in plain.iter().chain(all.values()) {
        let name = object["metadata"]["name"].as_str().context("no name")?;
        let applied = api_of(&admin, object)?.patch(name, &parameters, &Patch::Apply(object)).await;
        applied.with_context(|| format!("{} {name}", object["kind"]))?;
    }

    // A Deployment whose pods are not let in is taken all the same.
    let deployment = plain.iter().find(|object| object["kind"] == "Deployment");
    let mut pod: Pod =
        serde_json::from_value(deployment.context("no host")?["spec"]["template"].clone())?;
    pod.metadata.generate_name = Some("nagaya-".into());
    let pods = Api::<Pod>::namespaced(admin, "nagaya-system");
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    pods.create(&dry, &pod).await.context("as pod security has it")?;
    // The namespace is one that refuses.
    for container in pod.spec.iter_mut().flat_map(|spec| &mut spec.containers) {
        container.security_context = None;
    }
    let refused = pods.create(&dry, &pod).await.map(drop).expect_err("an unrestricted pod");
    assert!(refused.to_string().contains("PodSecurity"), "{refused}");
    Ok(())
}

#[tokio::test]
async fn what_the_host_has_written_survives_every_way_to_upgrade() -> Result<()> {
    Cluster::with(async |cluster| {
        cluster.shell("kubectl apply -f deploy/namespace.yaml").await?;
        cluster.run(APPLY, "").await?;

        // As the host does, with the host's rights.
        let host = host::kubeconfig(&cluster.server, "host").await?;
        let host = client(&host).await?;
        let secrets = Api::<Secret>::namespaced(host.clone(), "nagaya-system");
        let mut secret = secrets.get("nagaya-api").await?;
        secret.string_data = Some([("tls.key".into(), "mine".into())].into());
        secrets.replace("nagaya-api", &PostParams::default(), &secret).await?;
        let services = api_services(&host);
        let bundle = json!({"spec": {"caBundle": "bWluZQ=="}});
        let as_host = PatchParams { field_manager: Some("nagaya".into()), ..Default::default() };
        services.patch(API, &as_host, &Patch::Merge(&bundle)).await?;

        let stays = async |what: &str, replicas: i32| {
            let api = Api::<Deployment>::namespaced(cluster.admin.clone(), "nagaya-system");
            let seen = api.get("nagaya").await?.spec.and_then(|spec| spec.replicas);
            ensure!(seen == Some(replicas), "{what}: {seen:?} replicas");
            let data = secrets.get("nagaya-api").await?.data.unwrap_or_default();
            let key = data.get("tls.key").map(|key| &*key.0);
            ensure!(key == Some(b"mine"), "{what}: the Secret has {:?}", data.keys());
            let service = services.get(API).await?;
            ensure!(service.data["spec"]["caBundle"] == "bWluZQ==", "{what}: {service:?}");
            Ok(())
        };
        stays("kubectl", 2).await?;
        cluster.run(APPLY, CONFLICTS).await?;
        stays("kubectl again", 2).await?;
        ensure!(cluster.readme.contains(CONFLICTS), "{CONFLICTS} is not said");
        let rest = format!("{CONFLICTS} nagaya deploy/chart -n nagaya-system --set replicas=3");
        cluster.run(TAKE_OVER, &rest).await?;
        stays("helm after kubectl", 3).await?;
        cluster.run(UPGRADE, &format!("{CONFLICTS} --set replicas=4")).await?;
        stays("helm", 4).await?;
        // What was set before is kept, as the flag says.
        cluster.run(UPGRADE, &format!("{CONFLICTS} --set logFormat=text")).await?;
        stays("helm again", 4).await
    })
    .await
}

#[tokio::test]
async fn an_api_that_cannot_be_reached_holds_namespaces_until_it_is_deleted() -> Result<()> {
    Cluster::with(async |cluster| {
        cluster.block("# Installing", 0).await?;
        cluster
            .shell("kubectl create namespace other && kubectl delete namespace other --wait=false")
            .await?;
        let namespaces = Api::<Namespace>::all(cluster.admin.clone());
        within(DELETED_WITHIN, "the namespace is held", async || {
            let status = namespaces.get("other").await?.status.unwrap_or_default();
            let conditions: Vec<_> = status.conditions.unwrap_or_default();
            let held = conditions.iter().find(|one| {
                one.type_ == "NamespaceDeletionDiscoveryFailure" && one.status == "True"
            });
            let message = held.and_then(|held| held.message.as_deref()).unwrap_or_default();
            ensure!(message.contains("run.nagaya.dev/v1alpha1"), "{conditions:?}");
            Ok(())
        })
        .await?;
        cluster.run(NO_API, "").await?;
        cluster.deleted("other").await?;
        // Without force: what Helm alone has installed has no other owner.
        cluster.run(UPGRADE, "--set logFormat=text").await?;
        api_services(&cluster.admin).get(API).await.context("an upgrade brings it back")?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_uninstallation_leaves_nothing_that_waits() -> Result<()> {
    Cluster::with(async |cluster| {
        cluster.block("# Installing", 0).await?;
        for namespace in ["storage", "web"] {
            cluster.shell(&format!("kubectl create namespace {namespace}")).await?;
            for name in ["one", "two"] {
                cluster.controller(namespace, name).await?;
            }
        }
        // One that somebody has deleted already, and there was no host to let it go.
        cluster.shell("kubectl delete wasmcontroller one -n web --wait=false").await?;
        let controllers = Api::<WasmController>::all(cluster.admin.clone());
        assert_eq!(controllers.list(&ListParams::default()).await?.items.len(), 4);

        // The host is gone: the second block first. Then the first, as if it were there.
        cluster.block("## Uninstalling", 1).await?;
        assert_eq!(controllers.list(&ListParams::default()).await?.items.len(), 0);
        cluster.block("## Uninstalling", 0).await?;

        let rbac = "rbac.authorization.k8s.io/v1";
        for (api_version, kind) in [
            ("v1", "Namespace"),
            ("apiextensions.k8s.io/v1", "CustomResourceDefinition"),
            ("apiregistration.k8s.io/v1", "APIService"),
            (rbac, "ClusterRole"),
            (rbac, "ClusterRoleBinding"),
            (rbac, "RoleBinding"),
        ] {
            assert_eq!(cluster.ours(api_version, kind).await?, BTreeSet::new(), "{kind}");
        }
        cluster.shell("kubectl delete namespace storage web --wait=false").await?;
        cluster.deleted("storage").await?;
        cluster.deleted("web").await
    })
    .await
}
