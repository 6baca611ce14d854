//! A steady stream of changes: how long each takes to its child, and what it costs the host and the API server.
//!
//! Fifty Websites of one controller are changed in turn, so many changes a second in all; the guest writes one ConfigMap
//! for each. Times are the API server's own, out of its audit log, from the arrival of the change to the answer to the write
//! of the child.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::Test;
use e2e::bystander::Bystander;

use crate::figure::{Figure, millis};
use crate::process::Process;
use crate::server::with_host;

/// Changes a second, and for how long they are looked at.
pub(crate) const CHANGES: u32 = 50;
const SPAN: Duration = Duration::from_secs(20);
/// The first changes make the children; their time is another figure.
const SETTLE: Duration = Duration::from_secs(5);
/// Host CPU of a change: what a controller of its own would take, kube-rs 1.7 ms, and what isolation may add.
const CPU_MILLIS: f64 = 2.5;

/// Measures.
pub(crate) fn measure() -> Result<Vec<Figure>> {
    with_host(async |test| on(test).await)
}

async fn on(test: &mut Test) -> Result<Vec<Figure>> {
    let bystander = Bystander::start(test, CHANGES).await?;
    tokio::time::sleep(SETTLE).await;
    let host = Process::new(test.host.id());
    let servers = Process::of_server(test.control_plane.folder());
    ensure!(servers.len() == 2, "the API server's two processes are not found");
    let cpu = || -> Result<[f64; 2]> {
        let served: Duration = servers.iter().map(Process::cpu_time).sum::<Result<_>>()?;
        Ok([millis(host.cpu_time()?), millis(served)])
    };

    let (window, before) = (bystander.window()?, cpu()?);
    let runs = runs(test).await?;
    tokio::time::sleep(SPAN).await;
    let (after, runs) = (cpu()?, self::runs(test).await? - runs);
    let latencies = bystander.latencies(&window).await?;
    let changes = f64::from(u32::try_from(latencies.count())?);
    let each = |of: usize| (after[of] - before[of]) / changes;
    let percentile = |percent| {
        let what = format!("change to child at {CHANGES} changes a second, p{percent}");
        Figure::new(what, "ms", millis(latencies.percentile(percent))).headline()
    };
    Ok(vec![
        percentile(50),
        percentile(99),
        Figure::new("CPU of the host for a change", "ms", each(0)).at_most(CPU_MILLIS),
        Figure::new("CPU of kube-apiserver and etcd for a change", "ms", each(1)).headline(),
        Figure::new("changes", "", changes),
        Figure::new("runs for a change", "", runs / changes),
    ])
}

/// Of all controllers; there is one.
async fn runs(test: &Test) -> Result<f64> {
    Ok(test.host.metrics().await?.sum("controller_runtime_reconcile_total", &[]))
}
