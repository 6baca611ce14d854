//! Runs guests: each call in a fresh instance, under limits, on threads that nothing else of the host uses.
//!
//! [`Sandbox::compile`] makes a [`Program`] of bytes, [`Sandbox::reconcile`] runs it once. Programs that do not run
//! give their memory back.
//!
//! Invariants, held by `tests/sandbox.rs`: `an_instance_lives_for_one_call`,
//! `a_guest_may_refuse_its_config_and_the_host_its_manifest`.

mod cache;
mod chance;
mod compile;
mod engine;
mod entrance;
mod failure;
mod idle;
mod imports;
mod limits;
mod loaded;
mod log;
mod machine;
mod memory;
mod native;
mod program;
mod run;
mod wasi;

use std::{
    fmt, io, os::unix::process::ExitStatusExt, path::PathBuf, sync::Arc, thread, time::Duration,
};

use tokio::{
    runtime::{Handle, Runtime},
    sync::Semaphore,
};
use wasmtime::{Engine, component::Linker};

use self::{
    cache::CodeCache, compile::Compiler, engine::Role, idle::Idle, imports::State, limits::TICK,
    loaded::Loaded, machine::Reset, memory::GuestMemory, native::Natives,
};
pub use self::{
    chance::Chance,
    compile::{CompilerConfig, SUBCOMMAND, child_main},
    engine::Allocation,
    failure::{Failure, Returned},
    limits::RunLimits,
    log::ControllerLog,
    machine::{Division, Mappings},
    native::{Native, NativeCall},
    program::Program,
    run::{Action, NoManifest, Run},
};
use crate::{model::digest::Digest, modules::screen, share::cpu::Cpu};

/// The signal that nothing can catch.
const SIGKILL: i32 = 9;

/// How the sandbox is built.
#[derive(Clone, Debug)]
pub struct SandboxConfig {
    /// Runs at the same time.
    pub slots: u32,
    /// The largest memory of a guest; a controller may not ask for more.
    pub memory_ceiling: usize,
    /// The memory of all guests together.
    pub guest_memory: usize,
    /// How guests get their memories.
    pub allocation: Allocation,
    /// Where compiled code is kept: the host's alone, on a disk.
    pub cache_folder: PathBuf,
    /// How components are compiled.
    pub compiler: CompilerConfig,
    /// Without a run for this long a program's code pages are given back.
    pub quiet: Duration,
}

impl SandboxConfig {
    /// The usual values, and what the machine has.
    pub fn new(cache_folder: PathBuf) -> Self {
        Self {
            slots: 64,
            memory_ceiling: 64 << 20,
            guest_memory: division().guests,
            allocation: Allocation::default(),
            cache_folder,
            compiler: CompilerConfig::default(),
            quiet: idle::QUIET,
        }
    }
}

/// How this machine's memory is divided.
pub fn division() -> Division {
    Division::of_this_machine(compile::ADDRESS_SPACE, compile::AT_ONCE)
}

/// Why there is no sandbox, or no program.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host cannot be built as configured.
    #[error("cannot start the sandbox: {0}")]
    Start(String),
    /// The bytes are not those of the digest.
    #[error("the bytes have the digest {found}, not {named}")]
    OtherBytes {
        /// The digest asked for.
        named: Digest,
        /// The digest they have.
        found: Digest,
    },
    /// The screen refused the bytes.
    #[error(transparent)]
    Screen(#[from] screen::Error),
    /// The compiler did not make code of them.
    #[error(transparent)]
    Compile(#[from] compile::Error),
    /// The component wants what no slot of the sandbox has.
    #[error("the component does not fit into the sandbox: {0}")]
    DoesNotFit(String),
    /// The component imports what is not offered, or lacks an export.
    #[error("the component cannot be linked: {0}")]
    Link(String),
    /// The cache's disk.
    #[error("the host cannot {what} in its code cache; whoever runs it must see to its disk")]
    Disk {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The host's own trouble.
    #[error("the host cannot load the component: {0}")]
    Host(String),
}

impl Error {
    /// Whether the component's author must act; otherwise it may be tried again.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Screen(_) | Self::DoesNotFit(_) | Self::Link(_) | Self::OtherBytes { .. } => true,
            Self::Compile(error) => !matches!(error, compile::Error::Host(_)),
            Self::Start(_) | Self::Disk { .. } | Self::Host(_) => false,
        }
    }

    /// Whether the same bytes may do better soon: the host had trouble, or the compiler too little of the machine.
    pub fn may_pass(&self) -> bool {
        let is_chance = |error: &compile::Error| match error {
            compile::Error::Host(_) | compile::Error::Limit(_) => true,
            // By somebody else's hand, for example the kernel's for want of memory.
            compile::Error::Crashed { status, .. } => status.signal() == Some(SIGKILL),
            compile::Error::Refused(_) => false,
        };
        match self {
            Self::Compile(error) => is_chance(error),
            _ => !self.is_refusal(),
        }
    }
}

/// The guests' home; cheap to clone. Everything ends when the last clone is dropped.
#[derive(Clone)]
pub struct Sandbox(Arc<Inner>);

struct Inner {
    engine: Engine,
    linker: Linker<State>,
    compiler: Compiler,
    cache: CodeCache,
    permits: Arc<Semaphore>,
    memory: GuestMemory,
    cpu: Cpu,
    memory_ceiling: usize,
    reset: Reset,
    idle: Idle,
    loaded: Loaded,
    natives: Natives,
    control: Handle,
    guests: Option<Runtime>,
}

impl Sandbox {
    /// Builds the engine with all its slots, starts the guests' threads and the ticks.
    ///
    /// `control` is the runtime of everything that is not a guest.
    pub fn start(config: SandboxConfig, control: Handle) -> Result<Self, Error> {
        let start = |error: wasmtime::Error| Error::Start(format!("{error:#}"));
        let reset = Reset::for_this_machine();
        let SandboxConfig { slots, memory_ceiling, guest_memory, allocation, .. } = config;
        if guest_memory < memory_ceiling {
            let (all, one) = (guest_memory >> 20, memory_ceiling >> 20);
            return Err(Error::Start(format!(
                "all guests together may have {all} MiB, and one of them {one} MiB: lower --memory-ceiling, raise \
                 --guest-memory, or give the host's container more memory"
            )));
        }
        let role = Role::Host { allocation, slots, memory_ceiling, reset };
        let engine = engine::engine(role).map_err(start)?;
        let mut linker = Linker::new(&engine);
        imports::link(&mut linker).and_then(|()| wasi::link(&mut linker)).map_err(start)?;
        let cache = CodeCache::open(&config.cache_folder)
            .map_err(|source| Error::Disk { what: "open the folder and its key", source })?;
        // Two at least: one guest that computes must not stop all others.
        let threads = thread::available_parallelism().map_or(2, usize::from).max(2);
        let guests = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("guest")
            // A turn may take a tick: who was woken from outside must not wait behind several.
            .global_queue_interval(1)
            .enable_time()
            .build()
            .map_err(|error| Error::Start(format!("no threads for guests: {error}")))?;
        let ticks = engine.weak();
        thread::Builder::new()
            .name("tick".to_owned())
            .spawn(move || {
                // A late tick is skipped, never made up for: the next sleep begins after it.
                while let Some(engine) = ticks.upgrade() {
                    engine.increment_epoch();
                    drop(engine);
                    thread::sleep(TICK);
                }
            })
            .map_err(|error| Error::Start(format!("no thread for ticks: {error}")))?;
        tracing::info!(
            slots,
            guest_memory,
            ?allocation,
            memory_reset = reset.name(),
            threads,
            "sandbox started"
        );
        Ok(Self(Arc::new(Inner {
            engine,
            linker,
            compiler: Compiler::new(config.compiler),
            cache,
            permits: Arc::new(Semaphore::new(slots as usize)),
            memory: GuestMemory::new(guest_memory, memory_ceiling),
            cpu: Cpu::new(threads),
            memory_ceiling,
            reset,
            idle: Idle::start(config.quiet, &control),
            loaded: Loaded::default(),
            natives: Natives::default(),
            control,
            guests: Some(guests),
        })))
    }

    /// The largest `limits.memory` that can be served.
    pub fn memory_ceiling(&self) -> usize {
        self.0.memory_ceiling
    }

    /// Bytes of memory that runs of guests hold at present, and those that there are for them.
    pub fn guest_memory(&self) -> (usize, usize) {
        self.0.memory.held()
    }

    /// Whether swap has come to the machine while used memories are cleaned page by page: a page in swap would not
    /// be cleaned. The host must then drain and start anew.
    pub fn must_restart(&self) -> bool {
        self.0.reset == Reset::Scan && Reset::for_this_machine() == Reset::Memset
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The last clone may be dropped inside a runtime, where waiting is not allowed.
        if let Some(guests) = self.guests.take() {
            guests.shutdown_background();
        }
    }
}

impl fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sandbox").finish_non_exhaustive()
    }
}
