//! Compiles a component in a child process under limits.
//!
//! A crash, a panic, a limit or silence of the child refuses the revision with a sentence that says which.
//!
//! Invariants, held by `tests/sandbox.rs`: `a_compile_bomb_is_refused_and_the_host_lives`,
//! `a_compile_that_takes_too_long_is_killed_and_named`.

use std::{
    path::PathBuf,
    process::{ExitCode, ExitStatus},
    time::Duration,
};

use super::engine::{self, Role};
use crate::{
    child::{self, Excess, Limits},
    share::slots::{Slot, Slots},
};

/// The hidden subcommand.
pub const SUBCOMMAND: &str = "compile-child";

/// Address space of the child where there is room for it: most real modules take 171 MB, but an operator that reads
/// workloads whole came to 1 GiB once, built for size.
pub(super) const ADDRESS_SPACE: u64 = 3 << 29;
/// CPU seconds of the child: `CPython` takes 17, Go with `k8s.io/api` 25.
const CPU_SECONDS: u64 = 60;
/// Bytes that the child may write.
const OUTPUT: u64 = 256 << 20;
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
    #[error("cannot compile the component")]
    Host(#[source] child::Error),
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
        let limits = Limits {
            memory: self.config.memory,
            heap: self.config.memory,
            cpu: CPU_SECONDS,
            output: OUTPUT,
        };
        let program = (self.config.program.as_deref(), &[SUBCOMMAND][..]);
        let ended = child::run(program, component, (limits, self.config.wall)).await;
        let ended = ended.map_err(|error| match error {
            child::Error::TooLong(wall) => Error::Limit(format!("{wall:?}")),
            error @ child::Error::Host { .. } => Error::Host(error),
        })?;
        judge(&ended, self.config.memory)?;
        Ok(ended.output)
    }
}

fn judge(ended: &child::Ended, memory: u64) -> Result<(), Error> {
    let words = ended.words.clone();
    if ended.status.success() {
        return Ok(());
    }
    if ended.status.code() == Some(REFUSED.into()) {
        return Err(Error::Refused(words));
    }
    Err(match ended.excess() {
        Some(Excess::Cpu) => Error::Limit(format!("{CPU_SECONDS} s of CPU time")),
        Some(Excess::Output) => Error::Limit(format!("{} MiB of code", OUTPUT >> 20)),
        Some(Excess::Memory) => Error::Limit(format!("{} MiB of memory", memory >> 20)),
        None => Error::Crashed { status: ended.status, words },
    })
}

/// The child: the component from standard input, its code to standard output.
pub fn child_main(limits: Limits) -> ExitCode {
    child::main(limits, |component| {
        compile_here(&component).map_err(|error| (REFUSED, format!("{error:#}")))
    })
}

fn compile_here(component: &[u8]) -> wasmtime::Result<Vec<u8>> {
    engine::engine(Role::CompileChild)?.precompile_component(component)
}
