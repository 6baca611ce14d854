//! Reads the lines of a plan as the host makes it, and says how far it is.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{cluster::Cluster, own_api, print::Progress};
use crate::model::plan::{PlanLine, PlanStatus, PlannedObject};

/// What to ask for.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    /// The WasmController.
    pub(super) name: String,
    /// The revision; `None`: the one that would go live next.
    pub(super) revision: Option<String>,
    /// One object alone.
    pub(super) object: Option<String>,
    /// Whether whole objects are wanted.
    pub(super) values: bool,
}

/// A plan that is whole.
#[derive(Clone, Debug)]
pub(super) struct Planned {
    /// The revision.
    pub(super) revision: String,
    /// What it came to.
    pub(super) plan: PlanStatus,
}

/// Asks for a plan and hands each object to `each` as it comes.
pub(super) async fn follow(
    cluster: &Cluster,
    wanted: &Wanted,
    limit: Duration,
    mut each: impl FnMut(PlannedObject) -> Result<()>,
) -> Result<Planned> {
    let what = format!("cannot make a plan of {}/{}", cluster.namespace(), wanted.name);
    let mut lines = match cluster.plan(wanted).await {
        Ok(lines) => lines,
        Err(error) => return Err(own_api::explained(error, &what)),
    };
    let progress = Progress::new();
    let read = async {
        while let Some(text) = lines.next().await {
            let text = text.context(
                "the plan's lines have broken off; the host goes on with it: nagaya get shows it",
            )?;
            let line: PlanLine = serde_json::from_str(&text)
                .with_context(|| format!("cannot read a line of the plan: {text}"))?;
            match line {
                PlanLine::Progress { revision, looked, total } => {
                    progress.wait(format!("{revision}: {looked} of {total} objects"));
                }
                PlanLine::Object(object) => each(object)?,
                PlanLine::Plan { revision, plan } => return Ok(Planned { revision, plan: *plan }),
                PlanLine::Failed { message } => bail!("{what}: {message}"),
            }
        }
        bail!(
            "{what}: its lines ended before it was whole. Another plan was asked for, or the revision, the controller or its host has changed meanwhile: nagaya get {} shows it",
            wanted.name
        )
    };
    match tokio::time::timeout(limit, read).await {
        Ok(read) => read,
        Err(_) => bail!(
            "{what}: it is not whole after {limit:?}; the host goes on with it, and nagaya get shows it"
        ),
    }
}
