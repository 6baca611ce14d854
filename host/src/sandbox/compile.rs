//! Compiles a component in a child process under limits.
//!
//! The same binary is started with a hidden subcommand. Its standard input is the component in a sealed memory file,
//! its standard output the memory file for the code; it has no environment and sets its own limits before it reads
//! anything. Whatever becomes of it, the host lives: a crash, a panic, a limit or silence refuses the revision with a
//! sentence that says which.
//!
//! Invariants, held by `tests/sandbox.rs`: `a_compile_bomb_is_refused_and_the_host_lives`,
//! `a_compile_that_takes_too_long_is_killed_and_named`.

use std::{
    fs::File,
    io::{self, Read, Seek, Write},
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{ExitCode, ExitStatus, Stdio},
    time::Duration,
};

use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create},
    process::{Resource, Rlimit, nice, setrlimit},
};
use tokio::process::Command;

use super::engine::{self, Role};
use crate::share::slots::{Slot, Slots};

/// The hidden subcommand.
pub const SUBCOMMAND: &str = "compile-child";

/// Address space of the child where there is room for it: most real modules take 171 MB, but an operator that reads
/// workloads whole came to 1 GiB once, built for size.
pub(super) const ADDRESS_SPACE: u64 = 3 << 29;
/// CPU seconds of the child: `CPython` takes 17, Go with `k8s.io/api` 25.
const CPU_SECONDS: u64 = 60;
/// Bytes that the child may write.
const OUTPUT: u64 = 256 << 20;
/// How much of what the child says is shown.
const WORDS: u64 = 4 << 10;
/// The child's exit code for a component that the compiler refuses.
const REFUSED: u8 = 3;
/// Compilations at the same time; they must not take all cores.
pub(super) const AT_ONCE: usize = 2;
/// Of these so many of one team: whoever sends many components leaves the rest to others.
const OF_ONE_TEAM: usize = 1;

/// How the child is started and how long it may take.
#[derive(Clone, Debug)]
pub struct CompilerConfig {
    /// The binary; `None`: the one that runs.
    pub program: Option<PathBuf>,
    /// Time until it is killed.
    pub wall: Duration,
    /// Its address space.
    pub memory: u64,
    /// Children at the same time.
    pub at_once: usize,
}

impl Default for CompilerConfig {
    fn default() -> Self {
        let division = super::division();
        let (memory, at_once) = (division.compile_child, division.compile_children);
        // The child is nice: on a busy machine it waits for twice as long as it computes.
        Self { program: None, wall: Duration::from_secs(180), memory, at_once }
    }
}

/// Why there is no code.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The compiler says why.
    #[error(
        "the compiler refuses the component: {0}; if that names a feature of WebAssembly, build without it: plain \
         wasm32-wasip2 needs none that is refused"
    )]
    Refused(String),
    /// A limit of the child.
    #[error(
        "compiling the component took more than {0}, which is the limit; make it smaller or simpler"
    )]
    Limit(String),
    /// The compiler has a bug that this component triggers.
    #[error("the compiler crashed on the component ({status}): {words}")]
    Crashed {
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        words: String,
    },
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

/// Starts the children.
#[derive(Debug)]
pub(super) struct Compiler {
    config: CompilerConfig,
    turns: Slots,
}

impl Compiler {
    pub(super) fn new(config: CompilerConfig) -> Self {
        let turns = Slots::with_most(config.at_once, OF_ONE_TEAM);
        Self { config, turns }
    }

    /// Waits until it is the turn of `team` to compile.
    pub(super) async fn turn(&self, team: &str) -> Slot {
        self.turns.take(team).await
    }

    /// The code of `component`, made in a turn.
    pub(super) async fn compile(&self, component: &[u8], _turn: &Slot) -> Result<Vec<u8>, Error> {
        let host = |what| move |source| Error::Host { what, source };
        // The running binary itself, even if its file has been replaced by an upgrade since.
        let own = Path::new("/proc/self/exe");
        let program = self.config.program.as_deref().unwrap_or(own);
        let input = sealed(component).map_err(host("make a memory file for the component"))?;
        let (mut code, code_end) =
            shared("code").map_err(host("make a memory file for the code"))?;
        let (mut words, words_end) =
            shared("words").map_err(host("make a memory file for errors"))?;
        let mut child = Command::new(program)
            .arg(SUBCOMMAND)
            .arg(self.config.memory.to_string())
            .env_clear()
            // A thread for each of many cores would use up the address space with its stack and heap.
            .env("RAYON_NUM_THREADS", "2")
            .current_dir("/")
            .stdin(Stdio::from(input))
            .stdout(Stdio::from(code_end))
            .stderr(Stdio::from(words_end))
            .kill_on_drop(true)
            .spawn()
            .map_err(host("start the compile child"))?;
        let status = match tokio::time::timeout(self.config.wall, child.wait()).await {
            Ok(status) => status.map_err(host("wait for the compile child"))?,
            Err(_) => {
                child.kill().await.map_err(host("kill the compile child"))?;
                return Err(Error::Limit(format!("{:?}", self.config.wall)));
            }
        };
        let words = contents(&mut words, WORDS).map_err(host("read the compiler's words"))?;
        judge(status, String::from_utf8_lossy(&words).trim(), self.config.memory)?;
        contents(&mut code, OUTPUT).map_err(host("read the code"))
    }
}

fn judge(status: ExitStatus, words: &str, memory: u64) -> Result<(), Error> {
    const SIGXCPU: i32 = 24;
    const SIGXFSZ: i32 = 25;
    if status.success() {
        return Ok(());
    }
    if status.code() == Some(REFUSED.into()) {
        return Err(Error::Refused(words.to_owned()));
    }
    let out_of_memory = words.contains("memory allocation of")
        || words.contains("Cannot allocate memory")
        || words.contains("out of memory");
    Err(match status.signal() {
        Some(SIGXCPU) => Error::Limit(format!("{CPU_SECONDS} s of CPU time")),
        Some(SIGXFSZ) => Error::Limit(format!("{} MiB of code", OUTPUT >> 20)),
        _ if out_of_memory => Error::Limit(format!("{} MiB of memory", memory >> 20)),
        _ => Error::Crashed { status, words: words.to_owned() },
    })
}

/// A memory file that nobody can change any more.
fn sealed(bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut file = memory_file("component", MemfdFlags::ALLOW_SEALING)?;
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

/// The child: limits, of them so many bytes of address space, then the component from standard input, then its code to standard output.
pub fn child_main(memory: Option<u64>) -> ExitCode {
    let result = limit_myself(memory.unwrap_or(ADDRESS_SPACE))
        .map_err(|error| (1, format!("cannot set limits: {error}")))
        .and_then(|()| {
            let mut component = vec![];
            io::stdin()
                .lock()
                .read_to_end(&mut component)
                .map_err(|error| (1, error.to_string()))?;
            let code = compile_here(&component).map_err(|error| (REFUSED, format!("{error:#}")))?;
            io::stdout().lock().write_all(&code).map_err(|error| (1, error.to_string()))
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

fn limit_myself(memory: u64) -> io::Result<()> {
    for (resource, most) in [
        (Resource::As, memory),
        (Resource::Cpu, CPU_SECONDS),
        (Resource::Fsize, OUTPUT),
        (Resource::Core, 0),
    ] {
        // One second more until the kernel kills: the signal before says which limit it was.
        let maximum = if resource == Resource::Cpu { most + 1 } else { most };
        setrlimit(resource, Rlimit { current: Some(most), maximum: Some(maximum) })?;
    }
    nice(19)?;
    Ok(())
}

fn compile_here(component: &[u8]) -> wasmtime::Result<Vec<u8>> {
    engine::engine(Role::CompileChild)?.precompile_component(component)
}
