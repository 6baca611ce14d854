//! What the parts on an API server share: the server itself, many objects, and waiting for a host to be done.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::wait::within;
use e2e::{Test, install, manifest, test};
use futures::{StreamExt, TryStreamExt, stream};
use kube::Client;

use crate::figure::Figure;

/// For a thousand objects on a busy machine.
const DONE_WITHIN: Duration = Duration::from_secs(120);
/// Looking at the host's metrics must not be what is measured.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Requests at a time that make objects.
const REQUESTS: usize = 8;

/// Puts everything on the server that tests use, too.
///
/// The controller manager is better not there: it would share two cores with the host. What it does for the host is
/// to fill one role, which is done here instead.
pub(crate) async fn prepare() -> Result<()> {
    let control_plane = install::shared().await?;
    control_plane.audit().context("the figures are read off the audit log")?;
    if control_plane.has_controller_manager() {
        return Ok(());
    }
    install::share_kinds(control_plane).await
}

/// What `measure` finds with a host of its own on the server.
pub(crate) fn with_host(
    measure: impl AsyncFnOnce(&mut Test) -> Result<Vec<Figure>>,
) -> Result<Vec<Figure>> {
    let mut figures = vec![];
    test(async |test| {
        figures = measure(test).await?;
        Ok(())
    })?;
    Ok(figures)
}

/// Makes so many Websites, called `site-0` and so on.
pub(crate) async fn make_websites(client: &Client, namespace: &str, count: u32) -> Result<()> {
    let requests = (0..count).map(|number| {
        let site = e2e::site::website(namespace, &format!("site-{number}"), "A title");
        async move { manifest::apply(client, &[site]).await }
    });
    stream::iter(requests).buffer_unordered(REQUESTS).try_collect().await
}

/// Waits until so many runs of the controller have ended and it has nothing to do.
pub(crate) async fn done(test: &Test, controller: &str, runs: f64) -> Result<()> {
    within(DONE_WITHIN, &format!("{controller} has done {runs} runs"), async || {
        tokio::time::sleep(LOOK_EVERY).await;
        let ended = test.runs(controller).await?;
        ensure!(ended >= runs, "{ended} have ended");
        Ok(())
    })
    .await?;
    test.idle(controller).await
}
