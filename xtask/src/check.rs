//! `cargo xtask check`: everything that can be said about the code without running a server.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::{chart, crds, generated};

/// Folders with a cargo workspace of their own.
const WORKSPACES: [&str; 3] = [".", "examples", "tests/guests"];
/// Runs every check, the quick ones first, and names those that failed.
pub(crate) fn run() -> Result<()> {
    let root = crate::root()?;
    let mut failed = vec![];
    let mut step = |name: &str, result: Result<()>| {
        if let Err(error) = result {
            eprintln!("{name}: {error:#}");
            failed.push(name.to_owned());
        }
    };
    for workspace in WORKSPACES {
        step(&format!("rustfmt in {workspace}"), rustfmt(&root.join(workspace)));
    }
    step("crds", crds::run(&generated::Args::checking()));
    step("chart", chart::check());
    step("tidy", cargo(&root, &["test", "--package", "xtask", "--test", "tidy"]));
    step(
        "clippy",
        cargo(&root, &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]),
    );
    step("cargo deny", deny(&root));
    ensure!(failed.is_empty(), "these checks failed: {}", failed.join(", "));
    eprintln!("all checks passed");
    Ok(())
}

fn rustfmt(workspace: &Path) -> Result<()> {
    ensure!(
        workspace.join("Cargo.toml").is_file(),
        "there is no workspace in {}",
        workspace.display()
    );
    cargo(workspace, &["fmt", "--all", "--check"])
}

/// The one tool that does not come with the toolchain: without it the check is left to CI, and that is said.
fn deny(root: &Path) -> Result<()> {
    let installed = Command::new("cargo")
        .args(["deny", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !installed {
        eprintln!(
            "cargo deny: not installed, licences and advisories are not checked (`cargo install cargo-deny`)"
        );
        return Ok(());
    }
    cargo(root, &["deny", "check"])
}

/// Runs cargo with its output shown.
fn cargo(folder: &Path, args: &[&str]) -> Result<()> {
    eprintln!("cargo {} in {}", args.join(" "), folder.display());
    let status = e2e::cargo::cargo(folder)
        .args(args)
        .status()
        .with_context(|| format!("starting cargo {}", args.join(" ")))?;
    ensure!(status.success(), "cargo {} failed: {status}", args.join(" "));
    Ok(())
}
