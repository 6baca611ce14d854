//! `nagaya promote`: makes the candidate live.

use std::io::{self, BufRead, IsTerminal, Write};

use anyhow::{Context, Result, bail};

use super::{
    cluster::Cluster,
    decision::{Waiting, carry_out},
    edit, plan, print, say, wait,
};
use crate::preview::gates;

/// Which revision is to be live.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  nagaya promote website                                   the candidate
  nagaya promote website --revision website-5f2c9e01ab     any revision, also one that was rejected

What its plan says is shown first. On a terminal it asks if something would be deleted or a gate fails.
It writes spec.rollout.active of the WasmController and takes the revision out of spec.rollout.rejected.")]
pub(super) struct Args {
    /// The WasmController
    name: String,
    /// The revision [default: the candidate]
    #[arg(long)]
    revision: Option<String>,
    /// Do not ask, whatever the plan says
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    waiting: Waiting,
}

/// Promotes and says how long it took.
pub(super) async fn run(args: Args, cluster: Cluster) -> Result<()> {
    confirm(&args, &cluster.must_see(&args.name).await?)?;
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

/// Shows what the plan says, and asks where that matters; without a terminal there is nobody to ask.
fn confirm(args: &Args, seen: &edit::Seen) -> Result<()> {
    let Ok(edit) = edit::promote(seen, args.revision.as_deref()) else { return Ok(()) };
    let revision = edit.revision();
    let status = seen.status();
    if status.active.as_deref() == Some(revision) || status.previous.as_deref() == Some(revision) {
        return Ok(());
    }
    let told = seen.revision(revision).and_then(|one| one.status.clone()).unwrap_or_default();
    let (planned, shadow) = (told.plan.as_deref(), told.shadow.as_ref());
    let gates = seen.controller.spec.rollout.gates.as_ref();
    let mut text = planned.map(|it| plan::summary(revision, it)).unwrap_or_default();
    let mut is_grave = planned.is_some_and(|it| it.objects.deletes > 0);
    if let Some(gates) = gates {
        is_grave |= !gates::held(gates, planned, shadow).is_empty();
        text.push_str(&plan::of_gates(gates, planned, shadow));
    }
    if text.is_empty() {
        return Ok(());
    }
    eprintln!("{text}");
    if !is_grave || args.yes || !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Ok(());
    }
    eprint!("Promote {revision} all the same? [y/N] ");
    io::stderr().flush().context("cannot write to stderr")?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).context("cannot read the answer")?;
    if ["y", "yes"].contains(&answer.trim().to_lowercase().as_str()) {
        return Ok(());
    }
    bail!("nothing was promoted")
}
