//! `nagaya abort`: rejects the candidate.

use anyhow::Result;

use super::{
    cluster::Cluster,
    decision::{Waiting, carry_out},
    edit, say, wait,
};

/// Whose candidate to reject.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  nagaya abort website      the candidate, or the revision that is being staged, never goes live

It writes the revision into spec.rollout.rejected of the WasmController. What is live stays live; the spec's module
stays too, until another one is pushed.")]
pub(super) struct Args {
    /// The WasmController
    name: String,
    #[command(flatten)]
    waiting: Waiting,
}

/// Rejects the candidate and says what is live.
pub(super) async fn run(args: Args, cluster: Cluster) -> Result<()> {
    let done = carry_out(&cluster, &args.name, args.waiting, edit::abort, wait::gone).await?;
    let live = done.before.map(|active| format!(", {active} is live")).unwrap_or_default();
    say(&format!("{} is rejected{live}\n", done.revision))
}
