//! The project's own commands, run as `cargo xtask <command>`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};

mod bench;
mod chart;
mod check;
mod control_plane;
mod crds;
mod demo;
mod generated;
mod guests;
mod image;
mod languages;
mod long;
mod node;
mod progress;
mod test;

/// The project's own commands.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure speed and memory on an API server, in a build for release
    Bench(bench::Args),
    /// Render deploy/install.yaml and deploy/rbac.yaml from deploy/chart
    Chart(generated::Args),
    /// Format, lints, tidy tests, generated files and dependencies
    Check,
    /// Build kube-apiserver and etcd for tests and the demo, once
    ControlPlane(control_plane::Args),
    /// Generate the CustomResourceDefinitions in deploy/crd
    Crds(generated::Args),
    /// Show the main job on a real API server, step by step
    Demo(demo::Args),
    /// Build the reconcilers of examples/ and tests/guests for WebAssembly, and print their paths
    Guests,
    /// Build the container image, without a container engine
    Image(image::Args),
    /// Run every test there is
    Test(test::Args),
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse().command).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let causes: Vec<_> = error.chain().map(ToString::to_string).collect();
            eprintln!("error: {}", causes.join("\n  caused by: "));
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Bench(args) => bench::run(args).await,
        Command::Chart(args) => chart::run(&args),
        Command::Check => check::run(),
        Command::ControlPlane(args) => control_plane::run(args).await,
        Command::Crds(args) => crds::run(&args),
        Command::Demo(args) => demo::run(args).await,
        Command::Guests => guests::run(),
        Command::Image(args) => image::run(args),
        Command::Test(args) if args.long => long::run().await,
        Command::Test(args) => test::run(args).await,
    }
}

/// The repository's top folder.
fn root() -> anyhow::Result<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    folder.map(Path::to_path_buf).context("xtask has no parent folder")
}
