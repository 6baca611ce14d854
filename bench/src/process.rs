//! What a process takes, as the kernel counts it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::time::{ClockId, clock_gettime};

/// The unit of times in `/proc/<pid>/stat`; 100 a second on every Linux that Rust runs on.
const TICK: Duration = Duration::from_millis(10);

/// A running process.
#[derive(Clone, Debug)]
pub(crate) struct Process(PathBuf);

impl Process {
    /// By its number.
    pub(crate) fn new(id: u32) -> Self {
        Self(Path::new("/proc").join(id.to_string()))
    }

    /// The processes that make up the API server in `folder`: kube-apiserver and etcd.
    pub(crate) fn of_server(folder: &Path) -> Vec<Self> {
        let all = e2e::control_plane::running_in(folder).into_iter().map(Self::new);
        all.filter(|one| matches!(one.name().as_deref(), Ok("kube-apiserver" | "etcd"))).collect()
    }

    /// The first letters of its name.
    fn name(&self) -> Result<String> {
        Ok(self.read("comm")?.trim().to_owned())
    }

    /// Time on a processor so far, user and system.
    pub(crate) fn cpu_time(&self) -> Result<Duration> {
        let stat = self.read("stat")?;
        // The name stands in parentheses and may have spaces; then come the fields from the third on.
        let (_, fields) = stat.rsplit_once(") ").context("a strange /proc/<pid>/stat")?;
        let times = fields.split(' ').skip(11).take(2).map(str::parse::<u32>);
        let ticks = times.collect::<Result<Vec<_>, _>>().context("a strange /proc/<pid>/stat")?;
        Ok(TICK * ticks.iter().sum())
    }

    /// Memory of its own that is no file's, in MiB.
    pub(crate) fn anonymous_mib(&self) -> Result<f64> {
        mib(&self.read("smaps_rollup")?, "Anonymous:")
    }

    /// All memory that it has pages of, files included, in MiB.
    pub(crate) fn resident_mib(&self) -> Result<f64> {
        mib(&self.read("smaps_rollup")?, "Rss:")
    }

    fn read(&self, file: &str) -> Result<String> {
        let path = self.0.join(file);
        std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    }
}

/// Time that this process has spent on processors, all threads together.
pub(crate) fn own_cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let (seconds, nanos) = (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec));
    Duration::new(seconds.unwrap_or_default(), nanos.unwrap_or_default())
}

fn mib(text: &str, name: &str) -> Result<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let line = line.with_context(|| format!("smaps_rollup has no {name}"))?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().context("a strange smaps_rollup")?;
    Ok(kib / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_takes_time_and_memory() {
        let process = Process::new(std::process::id());
        let anonymous = process.anonymous_mib().unwrap();
        assert!(anonymous > 0.0 && anonymous < process.resident_mib().unwrap());
        let (known, counted) = (own_cpu_time(), process.cpu_time().unwrap());
        assert!(counted <= own_cpu_time() + TICK && known <= counted + TICK * 3);
    }
}
