//! How many watches many controllers of one kind open, and what one controller more costs.
//!
//! Each has code of its own, as controllers of different teams have: the same guest under another digest.

use std::time::Duration;

use anyhow::{Result, bail};
use e2e::Test;
use e2e::account::{self, GUEST_RULES, host_username};
use e2e::component::Component;
use e2e::control_plane::audit;
use e2e::site::owning;
use serde_json::json;

use crate::figure::Figure;
use crate::process::Process;
use crate::server::{done, with_host};

/// Of one kind.
const CONTROLLERS: u32 = 30;
/// What is freed late is free by then.
const QUIET: Duration = Duration::from_secs(10);

/// Measures.
pub(crate) fn measure() -> Result<Vec<Figure>> {
    with_host(async |test| on(test).await)
}

async fn on(test: &Test) -> Result<Vec<Figure>> {
    let Some(log) = test.audit() else { bail!("there is no audit log") };
    let log = log.from_now()?;
    let host = Process::new(test.host.id());
    let component = Component::load("hostile")?;
    test.apply(&account::objects(&test.namespace, "team", GUEST_RULES)).await?;
    test.website("web", "Web").await?;
    let mut first = 0.0;
    for number in 0..CONTROLLERS {
        let name = format!("c{number}");
        let spec = json!({"config": owning("ok")});
        let controller = test.bare_controller(&name, "team", spec).await?;
        let revision = controller.push_config(&component.marked(&name)?, &owning("ok")).await?;
        controller.active(&revision).await?;
        done(test, &name, 1.0).await?;
        if number == 0 {
            tokio::time::sleep(QUIET).await;
            first = host.anonymous_mib()?;
        }
    }
    tokio::time::sleep(QUIET).await;
    let all = host.anonymous_mib()?;
    let more = f64::from(CONTROLLERS - 1);
    let [primaries, children] =
        ["websites", "configmaps"].map(|kind| open_watches(&log, &test.namespace, kind));
    Ok(vec![
        Figure::new(format!("watches of the kind that {CONTROLLERS} reconcile"), "", primaries?)
            .at_most(1.0),
        Figure::new("watches of the kind that they own", "", children?).at_most(1.0),
        Figure::new(format!("{CONTROLLERS} controllers, anonymous"), "MiB", all),
        Figure::new("a controller more, anonymous", "KiB", (all - first) * 1024.0 / more),
    ])
}

/// Of the host, under whatever identity.
fn open_watches(log: &audit::Log, namespace: &str, kind: &str) -> Result<f64> {
    let path = format!("/namespaces/{namespace}/{kind}?");
    let open = log.open_watches(|event| {
        event.user.username == host_username() && event.request_uri.contains(&path)
    })?;
    Ok(f64::from(u32::try_from(open.len())?))
}
