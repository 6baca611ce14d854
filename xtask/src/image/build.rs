//! Builds the host for images: static, and without a path of this machine in it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use e2e::cargo::cargo;

use super::arch::Arch;
use crate::guests::install_target;

/// Between the flags in `CARGO_ENCODED_RUSTFLAGS`.
const SEPARATOR: &str = "\x1f";

/// Builds the host for `arch` into cargo's folder `target`; returns its file.
pub(super) fn host(root: &Path, target: &Path, arch: Arch) -> Result<PathBuf> {
    let triple = format!("{}-unknown-linux-gnu", arch.machine());
    install_target(root, &triple)?;
    let linker = linker(arch)?;
    let moved = moved(root, target)?;
    let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned()];
    flags.extend(moved.iter().map(|(from, to)| format!("--remap-path-prefix={from}={to}")));
    let of_c: Vec<_> =
        moved.iter().map(|(from, to)| format!("-ffile-prefix-map={from}={to}")).collect();
    let variable = triple.replace('-', "_");
    let mut cargo = cargo(root);
    cargo
        .args(["build", "--release", "--locked", "--package", "nagaya", "--bin", "nagaya"])
        .args(["--target", &triple])
        .env("CARGO_TARGET_DIR", target)
        // Line tables would be two thirds of what is pulled; the names of functions stay, for backtraces.
        .env("CARGO_PROFILE_RELEASE_DEBUG", "false")
        .env("CARGO_PROFILE_RELEASE_STRIP", "debuginfo")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join(SEPARATOR))
        .env(format!("CARGO_TARGET_{}_LINKER", variable.to_uppercase()), &linker)
        .env(format!("CC_{variable}"), &linker)
        .env(format!("CFLAGS_{variable}"), of_c.join(" "));
    let status = cargo.status().context("starting cargo")?;
    ensure!(status.success(), "cargo built no host for {}: {status}", arch.name());
    Ok(target.join(triple).join("release/nagaya"))
}

/// The C compiler for `arch`, which also links; it must know a static C library.
fn linker(arch: Arch) -> Result<String> {
    let native = Arch::here().is_ok_and(|here| here == arch);
    let compiler =
        if native { "cc".to_owned() } else { format!("{}-linux-gnu-gcc", arch.machine()) };
    let packages = match (native, arch) {
        (true, _) => "gcc libc6-dev",
        (false, Arch::Amd64) => "gcc-x86-64-linux-gnu libc6-dev-amd64-cross",
        (false, Arch::Arm64) => "gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
    };
    let help = format!("`apt-get install {packages}` on Debian and Ubuntu");
    let output = Command::new(&compiler).arg("-print-file-name=libc.a").output();
    let output = output.with_context(|| {
        format!("there is no {compiler}, which links for {}: {help}", arch.name())
    })?;
    // One that it does not know, the compiler repeats.
    let found = Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_absolute();
    ensure!(found, "{compiler} finds no static C library (libc.a): {help}");
    Ok(compiler)
}

/// The folders of this machine, with what stands for them in the binary. The standard library's is what it is called
/// where its sources are not installed.
fn moved(root: &Path, target: &Path) -> Result<Vec<(String, String)>> {
    let rustc = |arguments: &[&str]| -> Result<String> {
        let output = Command::new("rustc").args(arguments).current_dir(root).output();
        Ok(String::from_utf8(output.context("starting rustc")?.stdout)?)
    };
    let version = rustc(&["-vV"])?;
    let commit = version.lines().find_map(|line| line.strip_prefix("commit-hash: "));
    let commit = commit.context("rustc does not say what it is made of")?;
    let sysroot = rustc(&["--print", "sysroot"])?;
    let registry = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let registry = registry.or_else(|| Some(std::env::home_dir()?.join(".cargo")));
    let text = |path: &Path| path.to_str().map(str::to_owned).context("a path that is no text");
    // The last one that fits counts, so folders in others come last.
    let mut moved =
        vec![(text(root)?, "/nagaya".to_owned()), (text(target)?, "/target".to_owned())];
    if let Some(registry) = registry {
        moved.push((text(&registry)?, "/cargo".to_owned()));
    }
    moved.push((format!("{}/lib/rustlib/src/rust", sysroot.trim()), format!("/rustc/{commit}")));
    Ok(moved)
}
