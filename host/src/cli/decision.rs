//! What promote, abort and rollback share: one patch, then a wait until the status says the same.

use std::{ops::ControlFlow, time::Duration};

use anyhow::{Result, bail};
use tokio::time::Instant;

use super::{
    Patience,
    cluster::Cluster,
    edit::{self, Edit, Seen},
    print::Progress,
    wait,
};

/// Whether and how long to wait.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct Waiting {
    #[command(flatten)]
    patience: Patience,
    /// Do not wait until the host has acted
    #[arg(long)]
    no_wait: bool,
}

/// A decision that was written.
#[derive(Clone, Debug)]
pub(super) struct Done {
    /// The revision that it is about.
    pub(super) revision: String,
    /// What was live before.
    pub(super) before: Option<String>,
    /// From the patch to the status that confirms it; `None`: nobody waited.
    pub(super) took: Option<Duration>,
    /// The spec said so before; nothing was written.
    pub(super) stood: bool,
}

/// Writes `edit` and waits until `is_so`.
pub(super) async fn carry_out(
    cluster: &Cluster,
    name: &str,
    waiting: Waiting,
    edit: impl Fn(&Seen) -> Result<Edit, edit::Error>,
    is_so: impl Fn(&Seen, &str) -> Result<ControlFlow<()>, wait::Error>,
) -> Result<Done> {
    let deadline = Instant::now() + waiting.patience.timeout;
    let seen = cluster.must_see(name).await?;
    let sent = Instant::now();
    let (plan, controller) = cluster.make_so(&seen, edit).await?;
    let generation = controller.metadata.generation.unwrap_or_default();
    let revision = plan.revision().to_owned();
    let stood = matches!(plan, Edit::Stands { .. });
    let before = seen.status().active;
    let mut done = Done { revision: revision.clone(), before, took: None, stood };
    if waiting.no_wait {
        return Ok(done);
    }
    let progress = Progress::new();
    let (mut last, mut said) = (seen, String::new());
    let waited = cluster.until(name, deadline, |seen| {
        last = seen.clone();
        // A watch may still show the object as it was before the patch.
        if seen.generation() < generation {
            return Ok(ControlFlow::Continue(()));
        }
        let answer = is_so(seen, &revision)?;
        let news = wait::news(seen, &revision);
        if answer.is_continue() && news != said {
            progress.wait(&news);
            said = news;
        }
        Ok(answer)
    });
    if waited.await?.is_none() {
        let limit = waiting.patience.timeout;
        bail!(
            "it is written, but not done after {limit:?}: {}",
            wait::overdue(&last, generation, &revision)
        );
    }
    done.took = Some(sent.elapsed());
    Ok(done)
}
