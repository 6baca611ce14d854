//! `cargo xtask demo`: the main job, for a stranger to watch. Fifty Websites are kept as they should
//! be by a reconciler in WebAssembly, and its next version goes live and back by a pointer.
//!
//! Every claim it prints is checked first; a check that fails ends it with an error.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::component::Component;
use e2e::control_plane::{Route, locate};
use e2e::witness::Change;
use serde_json::json;
use tokio::time::Instant;

use crate::guests;
use crate::progress::{Progress, span};
use crate::test::build_host;
use sites::{DESIGN, KINDS, Sites};
use stage::Stage;

mod sites;
mod stage;

/// The namespace that the examples' files are written for.
const NAMESPACE: &str = "demo";
const SITES: usize = 50;
const STEPS: usize = 10;

/// How to run the demo.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Leave everything running at the end, to try things, until Ctrl-C
    #[arg(long)]
    keep: bool,
}

/// What the summary repeats.
#[derive(Debug, Default)]
struct Times {
    deleted: Duration,
    edited: Duration,
    first: Duration,
    last: Duration,
    back: Duration,
}

/// Plays the demo and cleans up.
pub(crate) async fn run(args: Args) -> Result<()> {
    // Before minutes of building.
    if let Route::Missing(missing) = locate() {
        return Err(missing.into());
    }
    let mut progress = Progress::new(STEPS);
    let built = build(&mut progress).await?;
    let started = Instant::now();
    let mut stage = Stage::set(&mut progress).await?;
    let play = async {
        let times = play(&stage, &mut progress, &built).await?;
        summary(&stage, &progress, &times, started.elapsed());
        if args.keep {
            stage.invite(&progress, &built);
            std::future::pending::<()>().await;
        }
        Ok(())
    };
    let ended = tokio::select! {
        played = play => played,
        interrupted = tokio::signal::ctrl_c() => interrupted.context("waiting for Ctrl-C"),
    };
    let struck = match &ended {
        Ok(()) => {
            progress.heading("Stopping the host and the API server");
            stage.strike().await
        }
        Err(_) => {
            stage.leave_evidence();
            Ok(())
        }
    };
    ended.and(struck)
}

async fn build(progress: &mut Progress) -> Result<[Component; 3]> {
    progress.step("Build the host, the example reconcilers and the API server (minutes, once)");
    build_host(&crate::root()?)?;
    guests::build()?;
    match locate() {
        Route::Cluster(file) => {
            progress.good(&format!("the cluster of {} is used", file.display()));
        }
        route => {
            let programs = tokio::task::spawn_blocking(|| route.programs()).await;
            let programs = programs.context("building")??;
            progress
                .good(&format!("kube-apiserver and etcd are in {}", programs.folder().display()));
        }
    }
    let built = ["website_v1", "website_hasty", "website_v2"].map(Component::load);
    let [v1, v2, v3] = built;
    let (v1, v2, v3) = (v1?, v2?, v3?);
    let size = |component: &Component| component.bytes.len() / 1024;
    progress.good(&format!(
        "website v1 is {} KiB of WebAssembly, v2 {} KiB, v3 {} KiB",
        size(&v1),
        size(&v2),
        size(&v3)
    ));
    Ok([v1, v2, v3])
}

async fn play(
    stage: &Stage,
    progress: &mut Progress,
    [v1, v2, v3]: &[Component; 3],
) -> Result<Times> {
    let mut times = Times::default();
    let first = push_first(stage, progress, v1).await?;
    let sites = Sites::start(stage).await?;
    make_sites(&sites, progress).await?;
    (times.deleted, times.edited) = damage(&sites, progress).await?;
    hold_second(stage, &sites, progress, (v2, &first)).await?;
    let third = push_third(stage, &sites, progress, v3).await?;
    (times.first, times.last) = promote(stage, &sites, progress, &third).await?;
    times.back = roll_back(stage, &sites, progress, &first).await?;
    sites.only_the_account_wrote(progress)?;
    Ok(times)
}

async fn push_first(stage: &Stage, progress: &mut Progress, v1: &Component) -> Result<String> {
    progress.step("A team installs its controller and pushes version 1");
    progress
        .command("kubectl apply -f examples/website/rbac.yaml -f examples/website/controller.yaml");
    stage.install_website().await?;
    stage.nagaya(progress, &["push", "website"], Some(v1)).await?;
    let revision = stage.revision(v1);
    stage.website.active(&revision).await?;
    progress.good(&format!("{revision} is active: the first revision needs no promotion"));
    Ok(revision)
}

async fn make_sites(sites: &Sites<'_>, progress: &mut Progress) -> Result<()> {
    progress.step(&format!("Make {SITES} Websites"));
    let before = Instant::now();
    sites.create(SITES).await?;
    let created = before.elapsed();
    sites.complete(SITES).await?;
    progress.good(&format!(
        "{SITES} Websites made in {}, all of their {} children there after {}",
        span(created),
        SITES * KINDS.len(),
        span(before.elapsed())
    ));
    sites.show(progress).await
}

async fn damage(sites: &Sites<'_>, progress: &mut Progress) -> Result<(Duration, Duration)> {
    progress.step("Delete one child and edit another by hand");
    progress.command(&format!("kubectl delete service site-07 -n {NAMESPACE}"));
    let deleted = sites.delete_service("site-07").await?;
    progress.good(&format!("the Service is back after {}", span(deleted)));
    let patch = r#"--type merge -p '{"data":{"index.html":"<h1>Hacked</h1>"}}'"#;
    progress.command(&format!("kubectl patch configmap site-08 -n {NAMESPACE} {patch}"));
    let edited = sites.edit_page("site-08").await?;
    progress.good(&format!("the page is as it was after {}", span(edited)));
    Ok((deleted, edited))
}

async fn hold_second(
    stage: &Stage,
    sites: &Sites<'_>,
    progress: &mut Progress,
    (v2, first): (&Component, &str),
) -> Result<()> {
    progress.step("Push version 2, which hides a mass change: its plan shows it, a gate holds it");
    let gates = json!({"spec": {"rollout": {"gates": {
        "enforcement": "Enforce",
        "protectedPaths": [{"kind": "Deployment.apps", "path": "spec.template"}],
    }}}});
    progress.command(&format!("kubectl patch wc website -n {NAMESPACE} --type merge -p '{gates}'"));
    stage.website.patch(&gates).await?;
    sites.quiet().await?;
    let before = sites.mark()?;
    stage.nagaya(progress, &["push", "website"], Some(v2)).await?;
    let revision = stage.revision(v2);
    stage.website.candidate(&revision).await?;
    let plan = stage.plan(&revision).await?;
    let changed = i64::try_from(SITES)?;
    ensure!(plan.objects.changed == changed, "the plan says {:?}", plan.objects);
    if stage.has_own_api() {
        stage.nagaya(progress, &["plan", "website"], None).await?;
    } else {
        progress.say(&plan.message.unwrap_or_default());
    }
    progress.good("the plan shows what nobody announced: every server would be restarted");
    stage.nagaya_refuses(progress, &["promote", "website"]).await?;
    let active = stage.website.get().await?.status.and_then(|status| status.active);
    ensure!(active.as_deref() == Some(first), "{active:?} is live");
    let writes = sites.writes_since(&before)?;
    ensure!(writes == 0, "{writes} writes since the push of version 2");
    progress.good("the gate holds it, kubectl's promotion too; nothing was written");
    stage.nagaya(progress, &["abort", "website"], None).await
}

async fn push_third(
    stage: &Stage,
    sites: &Sites<'_>,
    progress: &mut Progress,
    v3: &Component,
) -> Result<String> {
    progress.step("Push version 3: staged beside version 1, changing nothing");
    sites.quiet().await?;
    let before = sites.mark()?;
    stage.nagaya(progress, &["push", "website"], Some(v3)).await?;
    let revision = stage.revision(v3);
    stage.website.candidate(&revision).await?;
    let plan = stage.plan(&revision).await?;
    ensure!(plan.protected.is_empty(), "the plan says {:?}", plan.protected);
    stage.nagaya(progress, &["get", "website"], None).await?;
    let labelled = sites.labelled().await?;
    ensure!(labelled == 0, "{labelled} children have version 3's label before its promotion");
    let writes = sites.writes_since(&before)?;
    ensure!(writes == 0, "{writes} writes since the push of version 3");
    progress.good(&format!(
        "{revision} is the candidate: compiled, its watches synced, its gates pass"
    ));
    progress.good("no child has version 3's label, and nothing was written since the push");
    Ok(revision)
}

async fn promote(
    stage: &Stage,
    sites: &Sites<'_>,
    progress: &mut Progress,
    revision: &str,
) -> Result<(Duration, Duration)> {
    progress.step("Promote version 3: one pointer moves");
    let before = Instant::now();
    stage.nagaya(progress, &["promote", "website"], None).await?;
    stage.website.active(revision).await?;
    sites.all_labelled(SITES * KINDS.len()).await?;
    let pointer = sites.pointer_moved(before)?;
    let seen = sites.first_labelled(before)?;
    ensure!(seen.len() == SITES * KINDS.len(), "{} children were seen to change", seen.len());
    let since = |at: Option<&Instant>| {
        at.map(|at| at.saturating_duration_since(pointer)).context("no child was seen to change")
    };
    let (first, last) = (since(seen.first())?, since(seen.last())?);
    progress.good(&format!(
        "all {SITES} Websites are on version 3: the first write {} after the pointer moved, the last of {} after {}",
        span(first),
        seen.len(),
        span(last)
    ));
    ensure!(sites.witnessed(before, Change::Deleted)? == 0, "a child was deleted meanwhile");
    progress.good("no child was made anew: every one kept its uid");
    Ok((first, last))
}

async fn roll_back(
    stage: &Stage,
    sites: &Sites<'_>,
    progress: &mut Progress,
    first: &str,
) -> Result<Duration> {
    progress.step("It was a mistake: roll back");
    let before = Instant::now();
    stage.nagaya(progress, &["rollback", "website"], None).await?;
    stage.website.active(first).await?;
    sites.all_labelled(0).await?;
    let pointer = sites.pointer_moved(before)?;
    let last = sites.last_unlabelled(before)?.saturating_duration_since(pointer);
    sites.complete(SITES).await?;
    progress.good(&format!(
        "the label {DESIGN} is gone from every child {} after the pointer moved back",
        span(last)
    ));
    Ok(last)
}

fn summary(stage: &Stage, progress: &Progress, times: &Times, took: Duration) {
    progress.heading("Summary");
    let children = SITES * KINDS.len();
    let mut lines = vec![
        ("a deleted child is back after", span(times.deleted)),
        ("an edited child is back after", span(times.edited)),
        ("promote to the first write", span(times.first)),
        ("promote to the last write", format!("{} ({children} children)", span(times.last))),
        ("rollback to the last write", span(times.back)),
        ("the whole demo, without the builds", span(took)),
    ];
    if let Some(memory) = stage.host_memory() {
        lines.insert(5, ("memory of the host (anonymous)", memory));
    }
    for (what, value) in lines {
        progress.say(&format!("{what:<36} {value}"));
    }
}
