//! `cargo xtask bench`: builds the guests, the host and the benchmark for release, and measures.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use e2e::cargo::cargo;
use e2e::component::{BINARY, profile_folder};
use e2e::control_plane::{ControlPlane, Options, SHARED_INSTANCE};

use crate::guests;

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Handed on: `run`, `memory`, `watches`, `swap`, `--json`, …; `-- --help` lists all
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
    pass: Vec<String>,
}

/// Builds, starts an API server and measures on it.
pub(crate) async fn run(args: Args) -> Result<()> {
    let root = crate::root()?;
    guests::build()?;
    build(&root, &["--package", "nagaya", "--bin", "nagaya"])?;
    build(&root, &["--package", "bench"])?;
    let debug = profile_folder()?;
    let folder = debug.parent().context("the profile's folder lies nowhere")?.join("release");
    // Without a controller manager, which would take its share of the processors.
    let control_plane = ControlPlane::start(Options::default()).await?;
    let mut bench = std::process::Command::new(folder.join("bench"));
    bench
        .args(&args.pass)
        // As in production: with it, every error that has one costs a backtrace.
        .env_remove("RUST_BACKTRACE")
        .env(SHARED_INSTANCE, control_plane.folder())
        .env(BINARY, folder.join("nagaya"));
    let status = tokio::task::spawn_blocking(move || bench.status()).await?;
    control_plane.stop().await?;
    let status = status.context("starting the benchmark")?;
    ensure!(status.success(), "the benchmark failed: {status}");
    Ok(())
}

fn build(root: &Path, what: &[&str]) -> Result<()> {
    let mut cargo = cargo(root);
    let status = cargo.args(["build", "--release", "--locked"]).args(what).status();
    let status = status.context("starting cargo")?;
    ensure!(status.success(), "cargo build {}: {status}", what.join(" "));
    Ok(())
}
