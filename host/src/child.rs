//! The same binary as a child process under limits, for what comes from outside and may do anything to whoever reads it: a
//! component to be compiled, the answers of a registry.
//!
//! Its standard input is a sealed memory file, its standard output and what it says are memory files; it has no environment and
//! sets its own limits before it reads anything. Whatever becomes of it, the host lives.

use std::{
    fs::File,
    io::{self, Read, Seek, Write},
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    path::Path,
    process::{ExitCode, ExitStatus, Stdio},
    time::Duration,
};

use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create},
    process::{Resource, Rlimit, nice, setrlimit},
};
use tokio::process::Command;

/// How much of what a child says is kept.
const WORDS: u64 = 4 << 10;

/// What a child may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of address space, code and libraries included.
    pub memory: u64,
    /// Bytes that it may write to: what it costs whoever pays for the host.
    pub heap: u64,
    /// Seconds of CPU time.
    pub cpu: u64,
    /// Bytes of output.
    pub output: u64,
}

/// How a child ended.
#[derive(Debug)]
pub struct Ended {
    /// Its status.
    pub status: ExitStatus,
    /// What it wrote.
    pub output: Vec<u8>,
    /// What it said on standard error, or the beginning of that.
    pub words: String,
}

/// Why a child did not come to an end of its own.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It took too long, and was killed.
    #[error("it took more than {0:?}")]
    TooLong(Duration),
    /// The host's own trouble.
    #[error("cannot {what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// Why a child failed that did not say so by its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Excess {
    /// It used all its CPU time.
    Cpu,
    /// It wrote more than it may.
    Output,
    /// It asked for more memory than it may have.
    Memory,
}

impl Ended {
    /// The limit that ended it, if one did.
    pub fn excess(&self) -> Option<Excess> {
        const SIGXCPU: i32 = 24;
        const SIGXFSZ: i32 = 25;
        let out_of_memory = ["memory allocation of", "Cannot allocate memory", "out of memory"];
        match self.status.signal() {
            Some(SIGXCPU) => Some(Excess::Cpu),
            Some(SIGXFSZ) => Some(Excess::Output),
            _ if self.status.success() => None,
            _ => out_of_memory.iter().any(|it| self.words.contains(it)).then_some(Excess::Memory),
        }
    }
}

/// Runs `program`, or the one that runs, with these arguments over `input`, for so long at most. `limits.output` is how much of
/// the output is read; the child keeps the others itself.
pub async fn run(
    (program, arguments): (Option<&Path>, &[&str]),
    input: &[u8],
    (limits, wall): (Limits, Duration),
) -> Result<Ended, Error> {
    let host = |what| move |source| Error::Host { what, source };
    // The running binary itself, even if its file has been replaced by an upgrade since.
    let own = Path::new("/proc/self/exe");
    let input = sealed(input).map_err(host("make a memory file for a child's input"))?;
    let (mut output, output_end) =
        shared("output").map_err(host("make a memory file for a child's output"))?;
    let (mut words, words_end) =
        shared("words").map_err(host("make a memory file for a child's words"))?;
    let mut child = Command::new(program.unwrap_or(own))
        .args(arguments)
        .args([limits.memory, limits.heap, limits.cpu, limits.output].map(|it| it.to_string()))
        .env_clear()
        // A thread for each of many cores would use up the address space with its stack and heap.
        .env("RAYON_NUM_THREADS", "2")
        .current_dir("/")
        .stdin(Stdio::from(input))
        .stdout(Stdio::from(output_end))
        .stderr(Stdio::from(words_end))
        .kill_on_drop(true)
        .spawn()
        .map_err(host("start a child"))?;
    let status = match tokio::time::timeout(wall, child.wait()).await {
        Ok(status) => status.map_err(host("wait for a child"))?,
        Err(_) => {
            child.kill().await.map_err(host("kill a child"))?;
            return Err(Error::TooLong(wall));
        }
    };
    let words = contents(&mut words, WORDS).map_err(host("read a child's words"))?;
    let words = String::from_utf8_lossy(&words).trim().to_owned();
    let output = if status.success() {
        contents(&mut output, limits.output).map_err(host("read a child's output"))?
    } else {
        vec![]
    };
    Ok(Ended { status, output, words })
}

/// What the child does: sets its limits, reads its input, does its `work` and writes what came of it. An error ends it with the
/// given code and its words on standard error.
pub fn main(
    limits: Limits,
    work: impl FnOnce(Vec<u8>) -> Result<Vec<u8>, (u8, String)>,
) -> ExitCode {
    let result = limit_myself(limits)
        .map_err(|error| (1, format!("cannot set limits: {error}")))
        .and_then(|()| {
            let mut input = vec![];
            io::stdin().lock().read_to_end(&mut input).map_err(|error| (1, error.to_string()))?;
            let output = work(input)?;
            io::stdout().lock().write_all(&output).map_err(|error| (1, error.to_string()))
        });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, words)) => {
            // Nobody is left to tell if this fails.
            let _ = writeln!(io::stderr(), "{words}");
            ExitCode::from(code)
        }
    }
}

fn limit_myself(limits: Limits) -> io::Result<()> {
    for (resource, most) in [
        (Resource::As, limits.memory),
        (Resource::Data, limits.heap),
        (Resource::Cpu, limits.cpu),
        (Resource::Fsize, limits.output),
        (Resource::Core, 0),
    ] {
        // One second more until the kernel kills: the signal before says which limit it was.
        let maximum = if resource == Resource::Cpu { most + 1 } else { most };
        setrlimit(resource, Rlimit { current: Some(most), maximum: Some(maximum) })?;
    }
    nice(19)?;
    Ok(())
}

/// A memory file that nobody can change any more.
fn sealed(bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut file = memory_file("input", MemfdFlags::ALLOW_SEALING)?;
    file.write_all(bytes)?;
    file.rewind()?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}

/// A memory file and a second handle on it for the child.
fn shared(name: &str) -> io::Result<(File, OwnedFd)> {
    let file = memory_file(name, MemfdFlags::empty())?;
    let other = file.try_clone()?;
    Ok((file, other.into()))
}

fn memory_file(name: &str, flags: MemfdFlags) -> io::Result<File> {
    Ok(memfd_create(name, flags | MemfdFlags::CLOEXEC)?.into())
}

/// The two handles share one position, so it is set back first.
fn contents(file: &mut File, limit: u64) -> io::Result<Vec<u8>> {
    file.rewind()?;
    let mut bytes = vec![];
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}
