//! What the machine allows: whether a used memory may be cleaned page by page, and how many mappings are left.
//!
//! Invariants: `pages_are_scanned_only_where_swap_cannot_touch_them`, `mappings_are_scarce_above_four_fifths`.

use std::{fs, path::Path};

/// How a used memory is made clean for the next guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reset {
    /// Only the pages that were written, found by `PAGEMAP_SCAN`. A dirty page that is in swap is not found.
    Scan,
    /// All of the first pages, by `memset`.
    Memset,
}

impl Reset {
    /// Scans only where no page of this process can be in swap.
    pub(super) fn for_this_machine() -> Self {
        let cgroup = read("/proc/self/cgroup");
        let limit = cgroup.as_deref().and_then(swap_limit_file).and_then(read);
        Self::choose(read("/proc/meminfo").as_deref(), limit.as_deref())
    }

    fn choose(meminfo: Option<&str>, swap_limit: Option<&str>) -> Self {
        let total =
            meminfo.and_then(|text| text.lines().find_map(|line| line.strip_prefix("SwapTotal:")));
        let none = total.is_some_and(|total| total.split_whitespace().next() == Some("0"));
        let forbidden = swap_limit.is_some_and(|limit| limit.trim() == "0");
        if none || forbidden { Self::Scan } else { Self::Memset }
    }

    /// For the log.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Scan => "scan",
            Self::Memset => "memset",
        }
    }
}

/// The cgroup (version 2) limit that speaks of this process's swap.
fn swap_limit_file(cgroup: &str) -> Option<String> {
    let path = cgroup.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(format!("/sys/fs/cgroup{}/memory.swap.max", path.trim_end_matches('/')))
}

/// Lines in the process's memory map: each loaded component and each live instance takes some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mappings {
    /// How many there are.
    pub used: usize,
    /// `vm.max_map_count`: how many there may be.
    pub limit: usize,
}

impl Mappings {
    /// Counts them; `None` where the machine does not say.
    pub fn now() -> Option<Self> {
        let used = read("/proc/self/maps")?.lines().count();
        let limit = read("/proc/sys/vm/max_map_count")?.trim().parse().ok()?;
        Some(Self { used, limit })
    }

    /// Whether no further component should be loaded: the rest is for runs.
    pub(super) fn are_scarce(self) -> bool {
        self.used > self.limit / 5 * 4
    }
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_scanned_only_where_swap_cannot_touch_them() {
        let (without, with) = ("MemFree: 5 kB\nSwapTotal:       0 kB", "SwapTotal:  2048 kB\n");
        for (meminfo, limit, expected) in [
            (Some(without), None, Reset::Scan),
            (Some(without), Some("max\n"), Reset::Scan),
            (Some(with), Some("0\n"), Reset::Scan),
            (Some(with), Some("max\n"), Reset::Memset),
            (Some(with), Some("4096"), Reset::Memset),
            (Some(with), None, Reset::Memset),
            (None, None, Reset::Memset),
        ] {
            assert_eq!(Reset::choose(meminfo, limit), expected, "{meminfo:?} {limit:?}");
        }
        let file = swap_limit_file("12:pids:/a\n0::/kubepods/x\n");
        assert_eq!(file.as_deref(), Some("/sys/fs/cgroup/kubepods/x/memory.swap.max"));
        assert_eq!(swap_limit_file("0::/").as_deref(), Some("/sys/fs/cgroup/memory.swap.max"));
    }

    #[test]
    fn mappings_are_scarce_above_four_fifths() {
        let mappings = |used| Mappings { used, limit: 65_530 };
        assert!(!mappings(52_424).are_scarce() && mappings(52_425).are_scarce());
        let now = Mappings::now().unwrap();
        assert!(now.used > 10 && now.limit > 1_000, "{now:?}");
    }
}
