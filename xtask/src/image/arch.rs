//! The processors that images are made for, and how each is called by whom.

use anyhow::{Context, Result};

/// A kind of processor, by the name that images know it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Arch {
    /// x86-64
    Amd64,
    /// ARM, 64 bits
    Arm64,
}

impl Arch {
    /// This machine's.
    pub(super) fn here() -> Result<Self> {
        let all = [Self::Amd64, Self::Arm64];
        let arch = all.into_iter().find(|arch| arch.machine() == std::env::consts::ARCH);
        arch.context("images are for x86-64 and AArch64, and this machine is neither: give --arch")
    }

    /// In images.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// Of the compilers for C and of Rust.
    pub(super) const fn machine(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64",
            Self::Arm64 => "aarch64",
        }
    }
}
