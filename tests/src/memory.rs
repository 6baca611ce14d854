//! What a process has in memory, by `/proc`.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// Bytes of a MiB.
pub const MIB: u64 = 1 << 20;

/// A process whose memory is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Memory(u32);

impl Memory {
    /// Of the process with this id.
    pub fn of(id: u32) -> Self {
        Self(id)
    }

    /// Bytes that are resident now.
    pub fn resident(self) -> Result<u64> {
        self.line("VmRSS:")
    }

    /// The most bytes that were resident at once since [`forget_peak`](Self::forget_peak).
    pub fn peak(self) -> Result<u64> {
        self.line("VmHWM:")
    }

    /// The peak is what is resident now.
    pub fn forget_peak(self) -> Result<()> {
        let file = self.file("clear_refs");
        fs::write(&file, "5").with_context(|| format!("writing {}", file.display()))
    }

    fn line(self, name: &str) -> Result<u64> {
        let file = self.file("status");
        let text = fs::read_to_string(&file);
        let text = text.with_context(|| format!("reading {}", file.display()))?;
        let number = text.lines().find_map(|line| {
            line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse::<u64>().ok()
        });
        Ok(number.with_context(|| format!("{} has no {name}", file.display()))? << 10)
    }

    fn file(self, name: &str) -> PathBuf {
        ["/proc", &self.0.to_string(), name].iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_outlives_what_made_it_and_can_be_forgotten() {
        let own = Memory::of(std::process::id());
        let block = std::hint::black_box(vec![1_u8; 96 << 20]);
        let with = own.resident().unwrap();
        drop(block);
        assert!(with >= 96 * MIB && own.peak().unwrap() >= with - MIB);
        own.forget_peak().unwrap();
        assert!(own.peak().unwrap() < with - 32 * MIB);
    }
}
