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
    let (compiler, packages) = compiler(arch);
    find(compiler, packages)?;
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
        .env(format!("CARGO_TARGET_{}_LINKER", variable.to_uppercase()), compiler)
        .env(format!("CC_{variable}"), compiler)
        .env(format!("CFLAGS_{variable}"), of_c.join(" "));
    let status = cargo.status().context("starting cargo")?;
    ensure!(status.success(), "cargo built no host for {}: {status}", arch.name());
    Ok(target.join(triple).join("release/nagaya"))
}

/// The C compiler for `arch`, which also links, and the packages that have it on Debian and Ubuntu.
fn compiler(arch: Arch) -> (&'static str, &'static str) {
    match arch {
        arch if Arch::here().is_ok_and(|here| here == arch) => ("cc", "gcc libc6-dev"),
        Arch::Amd64 => ("x86_64-linux-gnu-gcc", "gcc-x86-64-linux-gnu libc6-dev-amd64-cross"),
        Arch::Arm64 => ("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu libc6-dev-arm64-cross"),
    }
}

/// Whether `compiler` is there, and a static C library with it.
fn find(compiler: &str, packages: &str) -> Result<()> {
    let help = format!("on Debian and Ubuntu: apt-get install {packages}");
    let output = Command::new(compiler).arg("-print-file-name=libc.a").output();
    let output =
        output.with_context(|| format!("there is no {compiler}, which links the host; {help}"))?;
    // The compiler repeats the name of a file that it does not know.
    let found = Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_absolute();
    ensure!(found, "{compiler} has no static C library, libc.a; {help}");
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_compiler_is_named_with_the_command_that_installs_it() {
        let (_, packages) = compiler(Arch::Arm64);
        let error = find("no-such-compiler", packages).unwrap_err().to_string();
        assert!(error.contains("there is no no-such-compiler"), "{error}");
        assert!(error.contains(&format!("apt-get install {packages}")), "{error}");
        // It prints nothing, so it knows no library.
        let error = find("true", "gcc").unwrap_err().to_string();
        assert!(error.contains("no static C library"), "{error}");
    }

    #[test]
    fn the_folders_of_this_machine_are_mapped_away() {
        let root = crate::root().unwrap();
        let moved = moved(&root, &root.join("target")).unwrap();
        let names: Vec<_> = moved.iter().map(|(_, to)| to.as_str()).collect();
        assert_eq!(names[..3], ["/nagaya", "/target", "/cargo"]);
        assert!(names[3].starts_with("/rustc/") && names[3].len() == "/rustc/".len() + 40);
        assert!(moved.iter().all(|(from, _)| Path::new(from).is_absolute()));
    }
}
