//! The host's own API behind a test's API server: what the chart does with pods, on loopback.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;

use crate::host::{Host, Options};
use crate::log::Line;
use crate::manifest;
use crate::wait::within;

/// Name and namespace of the Service that the `APIService` names, and of the Secret with the CA.
pub const SERVICE: (&str, &str) = ("nagaya-api", "nagaya-system");
/// The `APIService`.
pub const API: &str = "v1alpha1.run.nagaya.dev";
/// The API server looks at an `APIService` every few seconds.
const LIMIT: Duration = Duration::from_secs(60);

/// The same host, which serves the API on a port of its own choice.
#[must_use]
pub fn serving(mut options: Options) -> Options {
    let arguments = ["--aggregated-bind-address", "127.0.0.1:0", "--aggregated-service"];
    options.arguments.extend(arguments.map(str::to_owned));
    options.arguments.push(format!("{}.{}.svc", SERVICE.0, SERVICE.1));
    options
}

/// Makes the API server pass on to `host`, with what the chart has for that, and waits until it does.
pub async fn pass_on_to(admin: &Client, host: &Host) -> Result<()> {
    let (name, namespace) = SERVICE;
    let port = port(host).await?;
    let there = Api::<APIService>::all(admin.clone()).get_opt(API).await?;
    if there.is_none() {
        let mut objects = manifest::read("deploy/install.yaml")?;
        objects.retain(|object| object["kind"] == "Secret" || object["kind"] == "APIService");
        ensure!(objects.len() == 2, "the chart has one Secret and one APIService");
        manifest::apply(admin, &objects).await?;
    }
    // On loopback a Service of type ExternalName leads to any port, where one in a cluster leads to pods.
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"type": "ExternalName", "externalName": "localhost"},
    });
    manifest::apply(admin, &[service]).await?;
    let patch = json!({"spec": {"service": {"name": name, "namespace": namespace, "port": port}}});
    let services = Api::<APIService>::all(admin.clone());
    services.patch(API, &PatchParams::default(), &Patch::Merge(patch)).await?;
    is_available(admin, true).await
}

/// Where the host serves it.
pub async fn port(host: &Host) -> Result<u16> {
    let is_it =
        |line: &Line| line.message() == "listening" && line.text("server") == Some("aggregated");
    let line = host.logged(LIMIT, "the host serves its API", is_it).await?;
    let port = line.text("address").and_then(|address| address.rsplit(':').next());
    port.context("no port")?.parse().context("reading the port")
}

/// Waits until the API server says that it reaches a host, or that it does not.
pub async fn is_available(admin: &Client, wanted: bool) -> Result<()> {
    let services = Api::<APIService>::all(admin.clone());
    let wanted = if wanted { "True" } else { "False" };
    within(LIMIT, &format!("the API is available: {wanted}"), async || {
        let status = services.get(API).await?.status.unwrap_or_default();
        let conditions = status.conditions.unwrap_or_default();
        let available = conditions.iter().find(|one| one.type_ == "Available");
        let available = available.context("nothing is known")?;
        ensure!(available.status == wanted, "{:?}", available.message);
        Ok(())
    })
    .await
}
