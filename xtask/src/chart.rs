//! `cargo xtask chart`: renders `deploy/install.yaml` and `deploy/rbac.yaml` from `deploy/chart`.

use anyhow::Result;
use e2e::helm::Helm;

use crate::generated::{Args, Files};

/// Writes or compares the files; builds Helm first, once a machine.
pub(crate) fn run(args: &Args) -> Result<()> {
    let files = Files {
        folder: crate::root()?.join("deploy"),
        texts: &Helm::find()?.rendered()?,
        source: "deploy/chart",
        command: "cargo xtask chart",
    };
    files.settle(args)
}

/// Compares them; without Go the check is left to CI, and that is said.
pub(crate) fn check() -> Result<()> {
    if let Some(missing) = Helm::missing() {
        eprintln!("chart: {missing}, deploy/install.yaml and deploy/rbac.yaml are not checked");
        return Ok(());
    }
    run(&Args::checking())
}
