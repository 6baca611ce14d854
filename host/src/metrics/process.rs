//! What the machine says of this process, by the names of every Prometheus client library.

use std::{fmt, fs, time::Duration};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};
use rustix::time::{ClockId, clock_gettime};

/// Ticks a second in `/proc`: part of the kernel's interface, whatever the kernel was built with.
const TICKS: f64 = 100.0;

/// Reads `/proc` at every scrape; what it does not say is left out.
#[derive(Debug)]
pub(super) struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let mut gauge = |name: &str, help: &str, value: Option<f64>| {
            let Some(value) = value else { return Ok(()) };
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value).encode(metric)
        };
        let status = read("/proc/self/status");
        let memory = |name| status.as_deref().and_then(|text| kibibytes(text, name));
        let (resident, virtual_) = (memory("VmRSS"), memory("VmSize"));
        gauge("process_resident_memory_bytes", "Memory that is in use", resident)?;
        gauge("process_virtual_memory_bytes", "Address space that is taken", virtual_)?;
        gauge("process_open_fds", "Open file descriptors", open_files())?;
        let limit = read("/proc/self/limits").as_deref().and_then(file_limit);
        gauge("process_max_fds", "How many there may be", limit)?;
        let started = started(read("/proc/self/stat").as_deref(), read("/proc/stat").as_deref());
        gauge("process_start_time_seconds", "When it started, since 1970", started)?;
        let help = "User and system time";
        let counter =
            encoder.encode_descriptor("process_cpu_seconds", help, None, MetricType::Counter)?;
        ConstCounter::new(cpu_seconds()).encode(counter)
    }
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

fn cpu_seconds() -> f64 {
    let time: Duration = clock_gettime(ClockId::ProcessCPUTime).try_into().unwrap_or_default();
    time.as_secs_f64()
}

fn kibibytes(status: &str, name: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let count: f64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(count * 1024.0)
}

fn open_files() -> Option<f64> {
    let count = u32::try_from(fs::read_dir("/proc/self/fd").ok()?.count()).ok()?;
    // One was open for counting.
    Some(f64::from(count.saturating_sub(1)))
}

fn file_limit(limits: &str) -> Option<f64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The name of the program, in parentheses, may have blanks and parentheses in it.
fn started(stat: Option<&str>, machine: Option<&str>) -> Option<f64> {
    let ticks: f64 = stat?.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    let booted = machine?.lines().find_map(|line| line.strip_prefix("btime "))?;
    Some(booted.trim().parse::<f64>().ok()? + ticks / TICKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_words_are_understood() {
        let status = "Name:\tx\nVmSize:\t  200 kB\nVmRSS:\t 12345 kB\nVmRSSx:\t1 kB\n";
        assert_eq!(kibibytes(status, "VmRSS"), Some(12_345.0 * 1024.0));
        assert_eq!(kibibytes(status, "VmSwap"), None);
        let limits = "Limit  Soft Limit  Hard Limit  Units\nMax open files            1024                 524288               files\n";
        assert_eq!(file_limit(limits), Some(1024.0));
        assert_eq!(file_limit("Max open files unlimited"), None);
        let stat = "42 (a (b) c) S 1 42 42 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 9 0 4250 1000 200";
        assert_eq!(started(Some(stat), Some("cpu 1\nbtime 1700000000\n")), Some(1_700_000_042.5));
        assert_eq!(started(Some("42 (x"), Some("btime 1")), None);
    }

    #[test]
    fn this_process_has_memory_files_and_a_start() {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_secs_f64();
        let begun =
            started(read("/proc/self/stat").as_deref(), read("/proc/stat").as_deref()).unwrap();
        assert!(begun > now - 86_400.0 && begun < now + 2.0, "{begun} {now}");
        assert!(cpu_seconds() > 0.0 && open_files() > Some(2.0));
    }
}
