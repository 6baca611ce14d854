//! What controllers that are bound to one namespace each cost the API server and the host: connections, memory, CPU at
//! rest, and CPU of changes in their namespaces and in others.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use e2e::Test;
use e2e::account::{self, GUEST_RULES, host_username};
use e2e::component::Component;
use e2e::control_plane::audit;
use e2e::manifest;
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};

use crate::figure::{Figure, millis};
use crate::process::Process;
use crate::server::with_host;

/// Of the same code, in so many namespaces.
const CONTROLLERS: u32 = 100;
/// ConfigMaps changed a second, and for how long.
const CHANGES: u32 = 50;
const SPAN: Duration = Duration::from_secs(20);
/// What is freed late is free by then, and connections that are not needed any more are closed.
const QUIET: Duration = Duration::from_secs(15);
/// Bytes of a ConfigMap that is changed.
const SIZE: usize = 2_000;
/// At the same time.
const REQUESTS: usize = 4;

/// What it is measured on.
struct Bench<'a> {
    test: &'a Test,
    host: Process,
    servers: Vec<Process>,
}

/// Measures.
pub(crate) fn measure() -> Result<Vec<Figure>> {
    with_host(async |test| on(test).await)
}

async fn on(test: &mut Test) -> Result<Vec<Figure>> {
    let Some(log) = test.audit() else { bail!("there is no audit log") };
    let log = log.from_now()?;
    let elsewhere = test.another_namespace(&[]).await?;
    let mut namespaces = vec![];
    for _ in 0..CONTROLLERS {
        namespaces.push(test.another_namespace(&[]).await?);
    }
    let servers = Process::of_server(test.control_plane.folder());
    ensure!(servers.len() == 2, "the API server's two processes are not found");
    let bench = Bench { test, host: Process::new(test.host.id()), servers };
    bench.changes(std::slice::from_ref(&elsewhere)).await?;
    tokio::time::sleep(QUIET).await;
    let (host, server) = (bench.host.anonymous_mib()?, bench.server_mib()?);
    bench.controllers(&namespaces).await?;
    tokio::time::sleep(QUIET).await;
    let each = |more: f64| more * 1024.0 / f64::from(CONTROLLERS);
    let mut figures = vec![
        Figure::new("connections of shared kinds", "", open_watches(&log)?).headline(),
        Figure::new("host, a controller more", "KiB", each(bench.host.anonymous_mib()? - host)),
        Figure::new("API server, a controller more", "KiB", each(bench.server_mib()? - server)),
    ];
    for (what, changed) in [
        ("at rest", &[][..]),
        ("changes elsewhere", std::slice::from_ref(&elsewhere)),
        ("changes in their namespaces", &namespaces[..]),
    ] {
        let before = bench.cpu()?;
        if changed.is_empty() {
            tokio::time::sleep(SPAN).await;
        } else {
            bench.changes(changed).await?;
        }
        let after = bench.cpu()?;
        for (who, at) in [("host", 0), ("API server", 1)] {
            let a_second = (after[at] - before[at]) / SPAN.as_secs_f64();
            figures.push(Figure::new(format!("CPU of the {who}, {what}"), "ms/s", a_second));
        }
    }
    Ok(figures)
}

impl Bench<'_> {
    fn server_mib(&self) -> Result<f64> {
        self.servers.iter().map(Process::anonymous_mib).sum()
    }

    /// Milliseconds of the host and of the API server.
    fn cpu(&self) -> Result<[f64; 2]> {
        let served: Duration = self.servers.iter().map(Process::cpu_time).sum::<Result<_>>()?;
        Ok([millis(self.host.cpu_time()?), millis(served)])
    }

    /// One for each namespace, all live.
    async fn controllers(&self, namespaces: &[String]) -> Result<()> {
        let component = Component::load("copier")?;
        let made = namespaces.iter().map(async |namespace| {
            self.test.apply(&account::objects(namespace, "team", GUEST_RULES)).await?;
            let controller = self.test.controller_in(namespace, "c", "team", json!({})).await?;
            let revision = controller.push_config(&component, &json!({})).await?;
            controller.active(&revision).await.map(drop)
        });
        stream::iter(made).buffer_unordered(REQUESTS).try_collect().await
    }

    /// Changes ConfigMaps in turn, as many a second and for as long as is measured.
    async fn changes(&self, namespaces: &[String]) -> Result<()> {
        let mut ticks = tokio::time::interval(Duration::from_secs(1) / CHANGES);
        let end = tokio::time::Instant::now() + SPAN;
        let (mut number, mut open) = (0_usize, tokio::task::JoinSet::new());
        while tokio::time::Instant::now() < end {
            ticks.tick().await;
            let object = config_map(&namespaces[number % namespaces.len()], number);
            let client = self.test.admin.clone();
            open.spawn(async move { manifest::apply(&client, &[object]).await });
            number += 1;
            while let Some(done) = open.try_join_next() {
                done??;
            }
        }
        open.join_all().await.into_iter().collect()
    }
}

fn config_map(namespace: &str, number: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "changing", "namespace": namespace},
        "data": {"number": number.to_string(), "text": "x".repeat(SIZE)},
    })
}

/// Of the host, as itself.
fn open_watches(log: &audit::Log) -> Result<f64> {
    let kinds = ["/websites?", "/configmaps?"];
    let open = log.open_watches(|event| {
        event.user.username == host_username()
            && kinds.iter().any(|kind| event.request_uri.contains(kind))
    })?;
    Ok(f64::from(u32::try_from(open.len())?))
}
