//! The project's own commands, run as `cargo xtask <command>`.

use clap::{Parser, Subcommand};

mod control_plane;
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
    /// Build kube-apiserver and etcd for tests and the demo, once
    ControlPlane(control_plane::Args),
    /// Build the reconcilers of examples/ and tests/guests for WebAssembly, and print their paths
    Guests,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Args::parse().command {
        Command::ControlPlane(args) => control_plane::run(args).await,
        Command::Guests => guests::run(),
    }
}
