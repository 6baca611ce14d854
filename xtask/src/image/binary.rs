//! A host's binary, as its header tells: for which processor, and whether it needs shared libraries; then which.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::arch::Arch;

/// What a program's header says of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Binary {
    pub(super) arch: Arch,
    /// It names a loader of shared libraries.
    pub(super) dynamic: bool,
}

/// The type of the program header that names a loader.
const PT_INTERP: u32 = 3;

impl Binary {
    /// Reads the header of an ELF file of 64 bits, little endian.
    pub(super) fn read(elf: &[u8]) -> Result<Self> {
        ensure!(elf.starts_with(b"\x7fELF\x02\x01"), "not a Linux program of 64 bits");
        let arch = match u16::from_le_bytes(bytes(elf, 18)?) {
            62 => Arch::Amd64,
            183 => Arch::Arm64,
            machine => bail!("a program for another processor (ELF machine {machine})"),
        };
        let table = usize::try_from(u64::from_le_bytes(bytes(elf, 32)?))?;
        let size = usize::from(u16::from_le_bytes(bytes(elf, 54)?));
        let mut dynamic = false;
        for number in 0..usize::from(u16::from_le_bytes(bytes(elf, 56)?)) {
            dynamic |= u32::from_le_bytes(bytes(elf, table + number * size)?) == PT_INTERP;
        }
        Ok(Self { arch, dynamic })
    }
}

fn bytes<const N: usize>(elf: &[u8], place: usize) -> Result<[u8; N]> {
    let found = elf.get(place..).and_then(|rest| rest.first_chunk());
    found.copied().context("a program that is cut off")
}

/// The shared libraries of `program` and their loader, as this machine would load them.
pub(super) fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output();
    let output = output.context("starting ldd, which names the libraries of a dynamic program")?;
    let told = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "ldd {}: {}", program.display(), output.status);
    listed(&told)
}

/// Reads what ldd prints: `NAME => PATH (ADDRESS)`, and `PATH (ADDRESS)` for the loader.
fn listed(told: &str) -> Result<Vec<PathBuf>> {
    let mut paths = vec![];
    for line in told.lines().map(str::trim) {
        ensure!(!line.ends_with("=> not found"), "{line}");
        let path = line.split_once("=> ").map_or(line, |(_, path)| path);
        let path = path.split(" (").next().unwrap_or_default();
        // The kernel's own, linux-vdso.so.1, has no path.
        if path.starts_with('/') {
            paths.push(PathBuf::from(path));
        }
    }
    ensure!(!paths.is_empty(), "ldd names no library");
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_tells_processor_and_loader() {
        let elf = |machine: u16, header: u32| {
            let mut elf = b"\x7fELF\x02\x01".to_vec();
            elf.resize(64, 0);
            elf[18..20].copy_from_slice(&machine.to_le_bytes());
            (elf[32], elf[54], elf[56]) = (64, 56, 1);
            elf.extend(header.to_le_bytes());
            elf
        };
        let read = |elf: &[u8]| Binary::read(elf).map_err(|error| error.to_string());
        assert_eq!(read(&elf(62, 3)).unwrap(), Binary { arch: Arch::Amd64, dynamic: true });
        assert_eq!(read(&elf(183, 1)).unwrap(), Binary { arch: Arch::Arm64, dynamic: false });
        assert!(read(&elf(243, 1)).unwrap_err().contains("another processor"));
        assert!(read(&elf(62, 3)[..66]).unwrap_err().contains("cut off"));
        assert!(read(b"#!/bin/sh").unwrap_err().contains("not a Linux program"));
    }

    #[test]
    fn every_library_of_a_list_is_found_and_one_that_is_missing_is_named() {
        let told = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/libc.so.6 (0x00007f2e)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f2f)\n";
        let paths = ["/lib/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(listed(told).unwrap(), paths);
        let missing = listed("\tlibzstd.so.1 => not found\n").unwrap_err();
        assert!(missing.to_string().contains("libzstd.so.1"));
    }

    #[test]
    fn this_test_finds_its_own_libraries() {
        let program = std::env::current_exe().unwrap();
        let binary = Binary::read(&std::fs::read(&program).unwrap()).unwrap();
        if binary.dynamic {
            assert!(libraries(&program).unwrap().iter().all(|library| library.is_file()));
        }
    }
}
