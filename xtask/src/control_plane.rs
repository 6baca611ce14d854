//! `cargo xtask control-plane`: makes sure that the programs of a control plane are there.

use anyhow::{Context, Result};
use e2e::control_plane::{GIVEN_CLUSTER, Route, locate};

/// What to do with the programs.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print the folder that holds kube-apiserver and etcd, and nothing else on stdout
    #[arg(long)]
    print: bool,
}

/// Builds the programs into the user's cache, unless they are there or given.
pub(crate) async fn run(args: Args) -> Result<()> {
    let route = locate();
    if let (Route::Cluster(file), false) = (&route, args.print) {
        eprintln!("nothing to build: {GIVEN_CLUSTER} names the cluster of {}", file.display());
        return Ok(());
    }
    let programs = tokio::task::spawn_blocking(|| route.programs()).await.context("building")??;
    if args.print {
        println!("{}", programs.folder().display());
    } else {
        eprintln!("kube-apiserver and etcd are in {}", programs.folder().display());
    }
    Ok(())
}
