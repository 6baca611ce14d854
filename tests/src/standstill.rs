//! A process that was told to stop stands still when all its threads do: one that computes goes on for a moment.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// How often it is looked: for ten seconds at least, in which every thread stops however busy the machine is.
const LOOKS: u32 = 10_000;

/// Waits until every thread of the process is stopped (`T` in `/proc/<pid>/task/<tid>/stat`).
pub(crate) fn wait(pid: u32) -> Result<()> {
    for _ in 0..LOOKS {
        if all_stopped(pid)? {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    bail!("process {pid} was told to stop and does not stand still");
}

fn all_stopped(pid: u32) -> Result<bool> {
    let tasks = Path::new("/proc").join(pid.to_string()).join("task");
    let threads = std::fs::read_dir(&tasks);
    for thread in threads.with_context(|| format!("reading {}", tasks.display()))? {
        // A thread may end in between.
        let Ok(stat) = std::fs::read_to_string(thread?.path().join("stat")) else { continue };
        // The name stands in parentheses and may have spaces.
        let state = stat.rsplit_once(") ").and_then(|(_, fields)| fields.chars().next());
        if !matches!(state, Some('T' | 't')) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use rustix::process::{Pid, Signal, kill_process};

    use super::*;

    #[test]
    fn a_process_stands_still_when_it_was_stopped_and_not_before() {
        let mut child = Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        assert!(!all_stopped(child.id()).unwrap());
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        kill_process(pid, Signal::STOP).unwrap();
        wait(child.id()).unwrap();
        assert!(all_stopped(child.id()).unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
