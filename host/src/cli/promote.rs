//! `nagaya promote`: makes the candidate live.

use anyhow::Result;

use super::{
    cluster::Cluster,
    decision::{Waiting, carry_out},
    edit, print, say, wait,
};

/// Which revision is to be live.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  nagaya promote website                                   the candidate
  nagaya promote website --revision website-5f2c9e01ab     any revision, also one that was rejected

It writes spec.rollout.active of the WasmController and takes the revision out of spec.rollout.rejected.")]
pub(super) struct Args {
    /// The WasmController
    name: String,
    /// The revision [default: the candidate]
    #[arg(long)]
    revision: Option<String>,
    #[command(flatten)]
    waiting: Waiting,
}

/// Promotes and says how long it took.
pub(super) async fn run(args: Args, cluster: Cluster) -> Result<()> {
    let edit = |seen: &edit::Seen| edit::promote(seen, args.revision.as_deref());
    let done = carry_out(&cluster, &args.name, args.waiting, edit, wait::live).await?;
    let revision = &done.revision;
    let (name, namespace) = (&args.name, cluster.namespace());
    if done.stood && done.before.as_ref() == Some(revision) {
        return say(&format!("{revision} is live already\n"));
    }
    let before = done.before.filter(|before| before != revision);
    let mut text = match (done.took, &before) {
        (None, _) => format!("{revision} is to be live\n"),
        (Some(took), Some(before)) => {
            format!("{revision} is live after {}, {before} is kept warm\n", print::span(took))
        }
        (Some(took), None) => format!("{revision} is live after {}\n", print::span(took)),
    };
    if before.is_some() {
        text.push_str(&format!("back again: nagaya rollback {name} -n {namespace}\n"));
    }
    say(&text)
}
