//! `cargo xtask guests`: builds the components of `examples/` and `tests/guests/`.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

const TARGET: &str = "wasm32-wasip2";
const WORKSPACES: [&str; 2] = ["examples", "tests/guests"];

/// What of the caller's cargo would leak into the guests' build, which has a target folder and flags of its own.
const LEAKS: [&str; 6] = [
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_TARGET_DIR",
    "CARGO_TARGET_WASM32_WASIP2_RUSTFLAGS",
    "RUSTFLAGS",
];

/// Builds all components and prints their paths.
pub(crate) fn run() -> Result<()> {
    for component in build()? {
        println!("{}", component.display());
    }
    Ok(())
}

/// Builds all components as they are shipped; returns their paths, sorted within each workspace.
pub(crate) fn build() -> Result<Vec<PathBuf>> {
    let root =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask has no parent folder")?;
    install_target(root, TARGET)?;
    let mut components = vec![];
    for workspace in WORKSPACES {
        let workspace = root.join(workspace);
        let mut cargo = e2e::cargo::cargo(&workspace);
        succeed(cargo.args(["build", "--release", "--locked", "--target", TARGET]))?;
        components.extend(components_of(&workspace)?);
    }
    Ok(components)
}

/// The `.wasm` files of the members: cargo's folder may still hold those of members that are gone.
fn components_of(workspace: &Path) -> Result<Vec<PathBuf>> {
    let folder = workspace.join("target").join(TARGET).join("release");
    let mut components = vec![];
    for member in
        std::fs::read_dir(workspace).with_context(|| format!("reading {}", workspace.display()))?
    {
        let member = member?;
        let name = member.file_name().to_string_lossy().replace('-', "_");
        let component = folder.join(name).with_extension("wasm");
        if member.path().join("Cargo.toml").is_file() && component.is_file() {
            components.push(component);
        }
    }
    components.sort();
    ensure!(!components.is_empty(), "cargo left no component in {}", folder.display());
    Ok(components)
}

/// Without rustup the toolchain is somebody else's to set up; cargo says what is missing.
pub(crate) fn install_target(root: &Path, target: &str) -> Result<()> {
    let installed =
        Command::new("rustup").args(["target", "list", "--installed"]).current_dir(root).output();
    match installed {
        Ok(list) if !String::from_utf8_lossy(&list.stdout).lines().any(|line| line == target) => {
            succeed(Command::new("rustup").args(["target", "add", target]).current_dir(root))
        }
        _ => Ok(()),
    }
}

/// Runs `command` with its output shown.
fn succeed(command: &mut Command) -> Result<()> {
    for variable in LEAKS {
        command.env_remove(variable);
    }
    let status = command.status().with_context(|| format!("starting {command:?}"))?;
    ensure!(status.success(), "{command:?} failed: {status}");
    Ok(())
}
