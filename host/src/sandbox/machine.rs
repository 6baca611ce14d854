//! What the machine allows: how much memory there is and for what, whether a used memory may be cleaned page by page, and
//! how many mappings are left.
//!
//! Invariants: `guests_caches_and_compilers_fit_into_the_containers_limit`,
//! `pages_are_scanned_only_where_swap_cannot_touch_them`, `mappings_are_scarce_above_four_fifths`.

use std::{fs, path::Path};

/// How the memory of this process and its children is divided. A quarter is left for the host itself: watches, code, what
/// stays resident of used memories.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Division {
    /// For all guests together.
    pub guests: usize,
    /// For one compile child.
    pub compile_child: u64,
    /// Compile children at the same time.
    pub compile_children: usize,
    /// For the caches that one team uses.
    pub caches_of_a_team: usize,
}

impl Division {
    /// Of what the container, or else the machine, has. A child wants `child` bytes, and there may be `at_once`.
    pub(super) fn of_this_machine(child: u64, at_once: usize) -> Self {
        let cgroup = read("/proc/self/cgroup").unwrap_or_default();
        let limits = memory_limit_files(&cgroup).into_iter().filter_map(read);
        Self::of(least(read("/proc/meminfo").as_deref(), limits), child, at_once)
    }

    /// Of `total` bytes.
    fn of(total: u64, child: u64, at_once: usize) -> Self {
        let quarter = total / 4;
        let fitting = usize::try_from(quarter / child.max(1)).unwrap_or(at_once);
        let compile_children = fitting.clamp(1, at_once.max(1));
        let compile_child = child.min(total / 2);
        let compiling = compile_child.saturating_mul(compile_children as u64);
        let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        Self {
            guests: bytes(total - quarter - compiling.min(total / 2)),
            compile_child,
            compile_children,
            caches_of_a_team: bytes(total / 8),
        }
    }
}

/// The least of what there is and what may be used; 2 GiB where nobody says.
fn least(meminfo: Option<&str>, limits: impl Iterator<Item = String>) -> u64 {
    let total = meminfo.and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        Some(line.split_whitespace().next()?.parse::<u64>().ok()? << 10)
    });
    // No limit is `max`, or a number that no machine has.
    let limits = limits.filter_map(|text| text.trim().parse().ok());
    limits.chain(total).min().unwrap_or(2 << 30)
}

/// The files that limit this process's memory: its group's and those of all groups around it, in both versions of cgroups.
fn memory_limit_files(cgroup: &str) -> Vec<String> {
    let mut files = vec![];
    for line in cgroup.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (root, name) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            list if list.split(',').any(|one| one == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let mut group = path.trim_end_matches('/');
        loop {
            files.push(format!("{root}{group}/{name}"));
            let Some((parent, _)) = group.rsplit_once('/') else { break };
            group = parent;
        }
    }
    files
}

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
    fn guests_caches_and_compilers_fit_into_the_containers_limit() {
        const MIB: u64 = 1 << 20;
        for (total, guests, child, children) in [
            (512, 128, 256, 1),
            (2_048, 512, 1_024, 1),
            (4_096, 2_048, 1_024, 1),
            (8_192, 4_096, 1_024, 2),
            (24_576, 16_384, 1_024, 2),
        ] {
            let division = Division::of(total * MIB, 1 << 30, 2);
            let found = (division.guests as u64 / MIB, division.compile_child / MIB);
            assert_eq!((found, division.compile_children), ((guests, child), children), "{total}");
            let spent = division.guests as u64 + division.compile_child * children as u64;
            assert!(spent <= total * MIB / 4 * 3, "a quarter is the host's own");
        }
        let files = memory_limit_files("9:name=systemd:/x\n4:cpu,memory:/a/b\n0::/kube/pod/\n");
        assert_eq!(
            files,
            [
                "/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory/a/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes",
                "/sys/fs/cgroup/kube/pod/memory.max",
                "/sys/fs/cgroup/kube/memory.max",
                "/sys/fs/cgroup/memory.max",
            ]
        );
        let meminfo = "MemTotal:       4 kB\nMemFree: 1 kB";
        for (limits, expected) in [
            (&["max\n", "9223372036854771712"][..], 4_096),
            (&["max", "1024\n"], 1_024),
            (&[], 4_096),
        ] {
            assert_eq!(least(Some(meminfo), limits.iter().map(ToString::to_string)), expected);
        }
        assert_eq!(least(None, std::iter::empty()), 2 << 30);
        let here = Division::of_this_machine(1 << 30, 2);
        assert!(here.guests > 16 << 20, "{here:?}");
    }

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
