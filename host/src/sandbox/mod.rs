//! Runs guests: each call in a fresh instance, under limits, on threads that nothing else of the host uses.
//!
//! From bytes to a [`Program`]: the screen, a compile child under limits, an authenticated cache of native code, the
//! linker. One run: a permit, a fresh store, one call, and all of it dropped. Ticks end a guest that computes, timeouts
//! one that waits, the stop flag either.
//!
//! Invariants, held by `tests/sandbox.rs`: `a_slot_is_free_again_after_every_end`, `a_stop_flag_ends_a_run`,
//! `an_endless_loop_does_not_keep_others_from_running`, `loaded_code_needs_no_second_compilation`,
//! `changed_code_on_disk_is_compiled_again`.

mod cache;
mod compile;
mod describe;
mod engine;
mod failure;
mod imports;
mod limits;
mod log;
mod machine;
mod wasi;

use std::{
    fmt,
    future::Future,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    path::PathBuf,
    sync::Arc,
    thread,
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use tokio::{
    runtime::{Handle, Runtime},
    sync::{Semaphore, mpsc, watch},
};
use tracing::{Instrument, Span};
use wasmtime::{
    Engine, Store, UpdateDeadline,
    component::{Component, Linker, ResourceTable},
};
use wasmtime_wasi::WasiCtx;

use self::{
    cache::{CodeCache, Verified},
    compile::Compiler,
    engine::Role,
    imports::{
        AbortOnDrop, Calls, Cut, State,
        bindings::{
            Reconciler, ReconcilerPre,
            exports::nagaya::controller::guest::{self as wit, Request},
        },
    },
    limits::{HANDLES, HOSTCALL_FUEL, Meter, TICK},
    log::GuestLog,
    machine::Reset,
};
pub use self::{
    compile::{CompilerConfig, SUBCOMMAND, child_main},
    engine::Allocation,
    failure::{Failure, Returned},
    limits::RunLimits,
    log::LogQuota,
    machine::Mappings,
};
use crate::{
    client::Client,
    manifest::{self, Manifest},
    module::{
        Digest,
        screen::{self, screen},
    },
};

/// How the sandbox is built.
#[derive(Clone, Debug)]
pub struct SandboxConfig {
    /// Runs at the same time.
    pub slots: u32,
    /// The largest memory of a guest; a controller may not ask for more.
    pub memory_ceiling: usize,
    /// How guests get their memories.
    pub allocation: Allocation,
    /// Where compiled code is kept: the host's alone, on a disk.
    pub cache_folder: PathBuf,
    /// How components are compiled.
    pub compiler: CompilerConfig,
}

impl SandboxConfig {
    /// The usual values.
    pub fn new(cache_folder: PathBuf) -> Self {
        Self {
            slots: 64,
            memory_ceiling: 64 << 20,
            allocation: Allocation::default(),
            cache_folder,
            compiler: CompilerConfig::default(),
        }
    }
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
    #[error("cannot {what} in the code cache")]
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
            Self::Compile(error) => !matches!(error, compile::Error::Host { .. }),
            Self::Start(_) | Self::Disk { .. } | Self::Host(_) => false,
        }
    }
}

/// Why there is no manifest.
#[derive(Debug, thiserror::Error)]
pub enum NoManifest {
    /// The guest refuses its config.
    #[error("describe refused: {0}")]
    Refused(String),
    /// What it declares cannot be served.
    #[error(transparent)]
    Unfit(#[from] manifest::Error),
    /// It broke down.
    #[error("describe failed: {0}")]
    Failed(#[from] Failure),
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
    memory_ceiling: usize,
    reset: Reset,
    control: Handle,
    guests: Option<Runtime>,
}

/// A component ready to run; cheap to clone.
#[derive(Clone)]
pub struct Program {
    pre: Arc<ReconcilerPre<State>>,
    digest: Digest,
}

/// What one run is given.
#[derive(Clone, Debug)]
pub struct Run {
    /// The way to the cluster; `None`: there is none.
    pub client: Option<Client>,
    /// The config as JSON text.
    pub config: Arc<str>,
    /// Ceilings.
    pub limits: RunLimits,
    /// Becomes true when the run must end.
    pub stop: watch::Receiver<bool>,
    /// What log lines are written under.
    pub span: Span,
    /// What is left of the log.
    pub log: Arc<LogQuota>,
}

/// What the guest wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing until something changes.
    AwaitChange,
    /// Another run then.
    RequeueAfter(Duration),
}

impl Sandbox {
    /// Builds the engine with all its slots, starts the guests' threads and the ticks.
    ///
    /// `control` is the runtime of everything that is not a guest.
    pub fn start(config: SandboxConfig, control: Handle) -> Result<Self, Error> {
        let start = |error: wasmtime::Error| Error::Start(format!("{error:#}"));
        let reset = Reset::for_this_machine();
        let SandboxConfig { slots, memory_ceiling, allocation, .. } = config;
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
        tracing::info!(slots, ?allocation, memory_reset = reset.name(), threads, "sandbox started");
        Ok(Self(Arc::new(Inner {
            engine,
            linker,
            compiler: Compiler::new(config.compiler),
            cache,
            permits: Arc::new(Semaphore::new(slots as usize)),
            memory_ceiling,
            reset,
            control,
            guests: Some(guests),
        })))
    }

    /// The largest `limits.memory` that can be served.
    pub fn memory_ceiling(&self) -> usize {
        self.0.memory_ceiling
    }

    /// Whether swap has come to the machine while used memories are cleaned page by page: a page in swap would not
    /// be cleaned. The host must then drain and start anew.
    pub fn must_restart(&self) -> bool {
        self.0.reset == Reset::Scan && Reset::for_this_machine() == Reset::Memset
    }

    /// Makes a program of a component: screened, compiled or found in the cache, loaded and linked.
    pub async fn compile(&self, bytes: Arc<[u8]>, digest: &Digest) -> Result<Program, Error> {
        let (inner, named, screened) = (self.0.clone(), digest.clone(), bytes.clone());
        let (name, found) = blocking(move || {
            let found = Digest::of(&screened);
            if found != named {
                return Err(Error::OtherBytes { named, found });
            }
            screen(&screened)?;
            if let Some(Mappings { used, limit }) = Mappings::now().filter(|now| now.are_scarce()) {
                return Err(Error::Host(format!(
                    "{used} of {limit} memory mappings are in use; raise vm.max_map_count or remove controllers"
                )));
            }
            let name = inner.code_name(&named);
            let found = inner.find(&name);
            Ok((name, found))
        })
        .await?;
        let component = match found {
            Some(component) => component,
            None => {
                let code = self.0.compiler.compile(&bytes).await?;
                let inner = self.0.clone();
                blocking(move || inner.keep_and_load(&name, &code)).await?
            }
        };
        let inner = self.0.clone();
        let pre = blocking(move || inner.link(&component)).await?;
        Ok(Program { pre: Arc::new(pre), digest: digest.clone() })
    }

    /// Asks the revision what it needs, and checks it.
    pub async fn describe(&self, program: &Program, run: Run) -> Result<Manifest, NoManifest> {
        let run = Run { client: None, ..run };
        let answer = self
            .call(program, run, |guest, store| {
                async move { guest.nagaya_controller_guest().call_describe(store).await }.boxed()
            })
            .await?;
        let manifest: Manifest = answer.map_err(NoManifest::Refused)?.into();
        manifest.check()?;
        Ok(manifest)
    }

    /// Runs the guest for one object, until its answer and the answers to its writes.
    pub async fn reconcile(
        &self,
        program: &Program,
        run: Run,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Action, Failure> {
        let request = Request { namespace: namespace.map(str::to_owned), name: name.to_owned() };
        let answer = self
            .call(program, run, move |guest, store| {
                async move { guest.nagaya_controller_guest().call_reconcile(store, &request).await }
                    .boxed()
            })
            .await?;
        match answer {
            Ok(wit::Action::AwaitChange) => Ok(Action::AwaitChange),
            Ok(wit::Action::RequeueAfter(delay)) => {
                Ok(Action::RequeueAfter(Duration::from_millis(delay.into())))
            }
            Err(failure) => Err(Failure::Returned(match failure {
                wit::Failure::Retry(text) => Returned::Retry(text),
                wit::Failure::Terminal(text) => Returned::Terminal(text),
                wit::Failure::Invalid(text) => Returned::Invalid(text),
            })),
        }
    }

    /// One call on the guests' threads. It dies with the caller's future; the writes it has begun do not.
    async fn call<T, F>(&self, program: &Program, run: Run, call: F) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: for<'a> FnOnce(
                &'a Reconciler,
                &'a mut Store<State>,
            ) -> BoxFuture<'a, wasmtime::Result<T>>
            + Send
            + 'static,
    {
        let Some(guests) = &self.0.guests else { return Err(Failure::Drained) };
        let (open, mut all_answered) = mpsc::channel(1);
        let (pre, permits, stop) = (program.pre.clone(), self.0.permits.clone(), run.stop.clone());
        let (engine, control, span) =
            (self.0.engine.clone(), self.0.control.clone(), run.span.clone());
        let once = async move {
            let Ok(_permit) = permits.acquire_owned().await else { return Err(Failure::Drained) };
            let wall = run.limits.wall;
            let mut store = store(&engine, run, control, open);
            let instance_and_call = async {
                let guest = pre.instantiate_async(&mut store).await?;
                call(&guest, &mut store).await
            };
            let result = match tokio::time::timeout(wall, instance_and_call).await {
                Err(_) => return Err(Failure::Wall),
                Ok(result) => result,
            };
            result.map_err(|error| failure::judge(&error, store.data()))
        };
        let stoppable = async move {
            tokio::select! {
                biased;
                () = stopped(stop) => Err(Failure::Drained),
                result = once => result,
            }
        };
        let mut task = AbortOnDrop(guests.spawn(stoppable.instrument(span)));
        let result = (&mut task.0).await;
        // Nothing is ever sent: it ends when the guest and all its writes have let go of the other end.
        let _ = all_answered.recv().await;
        match result {
            Ok(result) => result,
            Err(error) if error.is_panic() => {
                tracing::error!(%error, digest = %program.digest, "the host panicked in a run");
                Err(Failure::Host("the host panicked".to_owned()))
            }
            Err(_) => Err(Failure::Drained),
        }
    }
}

/// A store for one call.
fn store(engine: &Engine, run: Run, control: Handle, open: mpsc::Sender<()>) -> Store<State> {
    let log = GuestLog::new(run.span, run.log);
    let wasi: WasiCtx = wasi::context(&log);
    let mut table = ResourceTable::new();
    table.set_max_capacity(HANDLES);
    let state = State {
        table,
        wasi,
        meter: Meter::new(&run.limits),
        log,
        calls: Calls { client: run.client, control, limit: run.limits.host_call, open },
        config: run.config,
        cut: None,
        last_call: "none",
    };
    let mut store = Store::new(engine, state);
    store.limiter(|state| &mut state.meter);
    store.set_hostcall_fuel(HOSTCALL_FUEL);
    store.set_max_component_handles(HANDLES);
    store.set_epoch_deadline(1);
    let (mut left, stop) = (run.limits.ticks(), run.stop);
    // Counting its own calls makes a late burst of ticks count once.
    store.epoch_deadline_callback(move |mut store| {
        let cut = match (*stop.borrow(), left) {
            (true, _) => Cut::Drained,
            (false, 0) => Cut::Deadline,
            (false, _) => {
                left -= 1;
                return Ok(UpdateDeadline::Yield(1));
            }
        };
        store.data_mut().cut = Some(cut);
        Ok(UpdateDeadline::Interrupt)
    });
    store
}

async fn stopped(mut stop: watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        // Whoever could have stopped it is gone.
        std::future::pending().await
    }
}

fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> impl Future<Output = Result<T, Error>> {
    let task = tokio::task::spawn_blocking(work);
    async move { task.await.unwrap_or_else(|error| Err(Error::Host(error.to_string()))) }
}

impl Inner {
    /// Component and engine; `DefaultHasher::new()` has no random state, so that a restart finds the file again.
    fn code_name(&self, digest: &Digest) -> String {
        let mut hasher = DefaultHasher::new();
        self.engine.precompile_compatibility_hash().hash(&mut hasher);
        format!("{}-{:016x}", digest.hex(), hasher.finish())
    }

    /// Loads from the cache. Whatever is wrong with it, the component can be compiled again.
    fn find(&self, name: &str) -> Option<Component> {
        let found = match self.cache.find(name) {
            Ok(found) => found?,
            Err(error) => {
                tracing::error!(%error, name, "cannot read cached code");
                return None;
            }
        };
        match found.load(&self.engine) {
            Ok(component) => Some(component),
            Err(error) => {
                tracing::warn!(error = %format!("{error:#}"), name, "cached code does not load and is deleted");
                if let Err(error) = self.cache.remove(name) {
                    tracing::error!(%error, name, "cannot delete cached code");
                }
                None
            }
        }
    }

    fn keep_and_load(&self, name: &str, code: &[u8]) -> Result<Component, Error> {
        let kept: Verified = self
            .cache
            .keep(name, code)
            .map_err(|source| Error::Disk { what: "write a file", source })?;
        // The caps of a slot are checked here and not by the compiler.
        kept.load(&self.engine).map_err(|error| Error::DoesNotFit(format!("{error:#}")))
    }

    fn link(&self, component: &Component) -> Result<ReconcilerPre<State>, Error> {
        let kind = component.component_type();
        let refused: Vec<String> =
            kind.imports(&self.engine).filter_map(|(name, _)| refusal(name)).collect();
        if !refused.is_empty() {
            return Err(Error::Link(refused.join("; ")));
        }
        let pre = self.linker.instantiate_pre(component).and_then(ReconcilerPre::new);
        pre.map_err(|error| Error::Link(format!("{error:#}")))
    }
}

/// What to say of an import that is known and not offered.
fn refusal(import: &str) -> Option<String> {
    let advice = if import.starts_with("nagaya:controller/http@") {
        "outbound HTTP is not built yet; remove the calls of `http`"
    } else if import.starts_with("wasi:http/") {
        "it is not offered, and outbound HTTP through nagaya:controller is not built yet; leave it out of the build \
         (for JavaScript: `componentize-js --disable http`)"
    } else if import.starts_with("wasi:sockets/") && !import.contains("@0.2.") {
        "there is no network in the sandbox; build for wasm32-wasip2 (WASI 0.2), where opening a socket fails"
    } else {
        return None;
    };
    Some(format!("it imports {import}: {advice}"))
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

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program").field("digest", &self.digest).finish_non_exhaustive()
    }
}
