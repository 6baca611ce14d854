//! `nagaya rollback`: goes back to the revision that was live before, and rejects the one that is.

use anyhow::Result;

use super::{
    cluster::Cluster,
    decision::{Waiting, carry_out},
    edit, print, say, wait,
};

/// Where to go back to.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  nagaya rollback website                             to the previous revision, which is kept warm
  nagaya rollback website --to website-5f2c9e01ab     to any other

It writes spec.rollout.active and spec.rollout.rejected of the WasmController in one patch: the loser must not become a
candidate again.")]
pub(super) struct Args {
    /// The WasmController
    name: String,
    /// The revision [default: the previous one]
    #[arg(long, value_name = "REVISION")]
    to: Option<String>,
    #[command(flatten)]
    waiting: Waiting,
}

/// Rolls back and says how long it took.
pub(super) async fn run(args: Args, cluster: Cluster) -> Result<()> {
    let edit = |seen: &edit::Seen| edit::rollback(seen, args.to.as_deref());
    let done = carry_out(&cluster, &args.name, args.waiting, edit, wait::live).await?;
    let loser = done.before.unwrap_or_default();
    let revision = &done.revision;
    say(&match done.took {
        Some(took) => {
            format!("{revision} is live again after {}, {loser} is rejected\n", print::span(took))
        }
        None => format!("{revision} is to be live again, {loser} is rejected\n"),
    })
}
