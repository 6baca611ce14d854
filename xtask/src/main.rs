//! The project's own commands, run as `cargo xtask <command>`.

use clap::{Parser, Subcommand};

mod control_plane;
mod demo;
mod guests;
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
    /// Build kube-apiserver and etcd for tests and the demo, once
    ControlPlane(control_plane::Args),
    /// Show the main job on a real API server, step by step
    Demo(demo::Args),
    /// Build the reconcilers of examples/ and tests/guests for WebAssembly, and print their paths
    Guests,
    /// Run every test there is
    Test(test::Args),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Args::parse().command {
        Command::ControlPlane(args) => control_plane::run(args).await,
        Command::Demo(args) => demo::run(args).await,
        Command::Guests => guests::run(),
        Command::Test(args) => test::run(args).await,
    }
}
