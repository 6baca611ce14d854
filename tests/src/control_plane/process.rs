//! One of the three programs, running.
//!
//! Our binaries end at once when their stdin closes (the lifeline): this process holds the other
//! end and never writes, so no server outlives a killed test run
//! (`a_killed_parent_leaves_no_server`).

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{sleep, timeout};

use super::program::{Program, Programs};
use crate::standstill;

/// A polite end takes 0.2 s; a server that cannot reach its etcd takes minutes.
const PATIENCE: Duration = Duration::from_secs(10);

/// Keeps the memory of a loaded server near 420 MiB.
const SERVER_MEMORY: (&str, &str) = ("GOMEMLIMIT", "350MiB");

/// What to run, so that it can be run again.
#[derive(Debug, Clone)]
pub(super) struct Launch {
    program: Program,
    file: PathBuf,
    arguments: Vec<String>,
    folder: PathBuf,
}

impl Launch {
    pub(super) fn new(
        programs: &Programs,
        program: Program,
        arguments: Vec<String>,
        folder: &Path,
    ) -> Self {
        Self { program, file: programs.path(program), arguments, folder: folder.to_owned() }
    }

    pub(super) fn start(self) -> Result<Process> {
        let name = self.program.name();
        let path = self.folder.join(format!("{name}.log"));
        let log = File::options().create(true).append(true).open(&path);
        let log = log.with_context(|| format!("opening the log of {name}"))?;
        let log_start = log.metadata().with_context(|| format!("reading the log of {name}"))?.len();
        let mut command = Command::new(&self.file);
        if self.program == Program::ApiServer {
            command.env(SERVER_MEMORY.0, SERVER_MEMORY.1);
        }
        let mut child = command
            .args(&self.arguments)
            .env("NAGAYA_LIFELINE", "stdin")
            .current_dir(&self.folder)
            .stdin(Stdio::piped())
            .stdout(log.try_clone().context("duplicating the log's handle")?)
            .stderr(log)
            // A group of its own: Ctrl-C would otherwise end all three at once, and the server
            // hangs if etcd goes first.
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {}", self.file.display()))?;
        // Out of the child: `Child::wait` closes what it finds there, which is the lifeline.
        let lifeline = child.stdin.take();
        Ok(Process { launch: self, child, _lifeline: lifeline, log: path, log_start })
    }
}

/// A running program, killed when dropped.
#[derive(Debug)]
pub(super) struct Process {
    launch: Launch,
    child: Child,
    _lifeline: Option<ChildStdin>,
    log: PathBuf,
    log_start: u64,
}

impl Process {
    pub(super) fn name(&self) -> &'static str {
        self.launch.program.name()
    }

    pub(super) fn launch(&self) -> &Launch {
        &self.launch
    }

    /// Its exit status, if it has ended.
    pub(super) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("looking after {}", self.name()))
    }

    /// Stops all its threads where they are.
    pub(super) fn freeze(&mut self) -> Result<()> {
        self.signal(Signal::STOP)?;
        standstill::wait(self.child.id()).with_context(|| format!("freezing {}", self.name()))
    }

    pub(super) fn signal(&mut self, signal: Signal) -> Result<()> {
        // A reaped process's number may be another's by now.
        if self.ended()?.is_some() {
            return Ok(());
        }
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.context("a process id out of range")?;
        kill_process(pid, signal).with_context(|| format!("signalling {}", self.name()))
    }

    /// Asks, waits, then insists.
    pub(super) async fn stop(mut self) -> Result<()> {
        self.signal(Signal::TERM)?;
        // A stopped process would not hear it before it goes on.
        self.signal(Signal::CONT)?;
        // Polled, because the process outlives the runtime it was started on when tests share it.
        let ended = async {
            while self.ended()?.is_none() {
                sleep(Duration::from_millis(5)).await;
            }
            anyhow::Ok(())
        };
        if let Ok(ended) = timeout(PATIENCE, ended).await {
            return ended;
        }
        tracing::warn!(program = self.name(), "did not end when asked, killing it");
        self.child.kill().with_context(|| format!("killing {}", self.name()))
    }

    /// What it logged since it was started, the last lines of it.
    pub(super) fn last_lines(&self) -> String {
        let text = self.read_log().unwrap_or_else(|error| format!("(no log: {error})"));
        let lines: Vec<_> = text.lines().collect();
        // Enough for a Go panic's first frames or for a flag error with its message.
        lines.get(lines.len().saturating_sub(20)..).unwrap_or_default().join("\n")
    }

    fn read_log(&self) -> std::io::Result<String> {
        let mut log = File::open(&self.log)?;
        log.seek(SeekFrom::Start(self.log_start))?;
        let mut bytes = Vec::new();
        log.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The processes that run one of our programs in `folder`, by `/proc`; none where there is no
/// `/proc`.
///
/// Looked for rather than written down: a list of numbers misses a process started just before a
/// kill, and names strangers after a reboot.
pub fn running_in(folder: &Path) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| belongs_to(*pid, folder))
        .collect()
}

fn belongs_to(pid: u32, folder: &Path) -> bool {
    let process = Path::new("/proc").join(pid.to_string());
    // The working directory alone could be a shell of someone who looks around.
    fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd == folder)
        && fs::read(process.join("cmdline")).is_ok_and(|line| {
            let first = line.split(|byte| *byte == 0).next().unwrap_or_default();
            let name = String::from_utf8_lossy(first);
            let name = name.rsplit('/').next().unwrap_or_default();
            Program::ALL.iter().any(|program| program.name() == name)
        })
}

/// Kills what `running_in` finds.
pub(super) fn kill_in(folder: &Path) {
    // A second look, because ending takes a moment and etcd writes until then.
    for _ in 0..100 {
        let pids = running_in(folder);
        if pids.is_empty() {
            return;
        }
        for pid in pids.into_iter().filter_map(|pid| Pid::from_raw(i32::try_from(pid).ok()?)) {
            // It may have ended since we looked.
            let _ = kill_process(pid, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
