//! The project's own commands, run as `cargo xtask <command>`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Parser, Subcommand};

mod check;
mod control_plane;
mod crds;
mod guests;

/// The project's own commands.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Format, lints, tidy tests, generated files and dependencies
    Check,
    /// Build kube-apiserver and etcd for tests and the demo, once
    ControlPlane(control_plane::Args),
    /// Generate the CustomResourceDefinitions in deploy/crd
    Crds(crds::Args),
    /// Build the reconcilers of examples/ and tests/guests for WebAssembly, and print their paths
    Guests,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Args::parse().command {
        Command::Check => check::run(),
        Command::ControlPlane(args) => control_plane::run(args).await,
        Command::Crds(args) => crds::run(&args),
        Command::Guests => guests::run(),
    }
}

/// The repository's top folder.
fn root() -> anyhow::Result<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    folder.map(Path::to_path_buf).context("xtask has no parent folder")
}
