//! WASI 0.2, denied by default: it is there so that ordinary toolchains link.
//!
//! Linked interface by interface. No files, no environment, no arguments but a name, closed standard input; standard output and
//! error go to the guest's log; sockets and name lookups are refused before a socket exists; `wasi:http` is not
//! linked. Time and chance come from the same source as `nagaya:controller/runtime`, time in whole milliseconds.
//!
//! Invariants: `no_clock_is_finer_than_a_millisecond`, `nothing_is_opened_and_nothing_inherited`,
//! `a_guest_that_looks_at_clock_and_name_at_once_loads`; by `tests/sandbox.rs`:
//! `a_sleep_is_cut_by_the_limit_of_a_host_call`.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime::component::{HasData, Linker, Resource, ResourceTable};
use wasmtime_wasi::{
    HostMonotonicClock, HostWallClock, WasiCtx, WasiCtxView, WasiView,
    cli::{IsTerminal, StdoutStream, WasiCli, WasiCliView},
    clocks::{WasiClocks, WasiClocksView},
    filesystem::{WasiFilesystem, WasiFilesystemView},
    p2::{
        DynPollable, OutputStream, Pollable, StreamResult,
        bindings::{LinkOptions, cli, clocks, filesystem, random, sockets},
    },
    sockets::{WasiSockets, WasiSocketsView},
};
use wasmtime_wasi_io::bindings::wasi::io::{error, poll, streams};

use super::{
    chance::{Chance, Source},
    imports::State,
    log::{GuestLog, Level, Lines},
};

/// The finest step of any clock: nothing to time another team's work by.
const STEP: Duration = Duration::from_millis(1);
/// Bytes that a stream takes at once; wasi-libc writes in pieces of 4 KiB.
const WRITE: usize = 64 << 10;

/// A host call took longer than it may.
#[derive(Debug, thiserror::Error)]
#[error("the guest waited longer than {0:?} in one call")]
pub(super) struct WaitedTooLong(Duration);

/// What one run's guest sees of WASI.
pub(super) fn context(log: &GuestLog, chance: Chance) -> WasiCtx {
    WasiCtx::builder()
        // Programs take it for granted that somebody called them by a name: Go's klog looks at it while it loads.
        .arg("guest")
        .stdout(Output { log: log.clone(), level: Level::Info, stream: "stdout" })
        .stderr(Output { log: log.clone(), level: Level::Warn, stream: "stderr" })
        .wall_clock(WallClock(chance.into()))
        .monotonic_clock(MonotonicClock::start())
        .allow_tcp(false)
        .allow_udp(false)
        .allow_ip_name_lookup(false)
        .build()
}

/// Links what a guest may import.
pub(super) fn link(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    error::add_to_linker::<State, HasTable>(linker, table)?;
    streams::add_to_linker::<State, HasTable>(linker, table)?;
    poll::add_to_linker::<State, HasWaits>(linker, waits)?;

    cli::environment::add_to_linker::<State, WasiCli>(linker, State::cli)?;
    cli::exit::add_to_linker::<State, WasiCli>(linker, State::cli)?;
    cli::stdin::add_to_linker::<State, WasiCli>(linker, State::cli)?;
    cli::stdout::add_to_linker::<State, WasiCli>(linker, State::cli)?;
    cli::stderr::add_to_linker::<State, WasiCli>(linker, State::cli)?;
    cli::terminal_input::add_to_linker::<State, WasiCli>(linker, State::cli)?;
    cli::terminal_output::add_to_linker::<State, WasiCli>(linker, State::cli)?;
    cli::terminal_stdin::add_to_linker::<State, WasiCli>(linker, State::cli)?;
    cli::terminal_stdout::add_to_linker::<State, WasiCli>(linker, State::cli)?;
    cli::terminal_stderr::add_to_linker::<State, WasiCli>(linker, State::cli)?;

    clocks::wall_clock::add_to_linker::<State, WasiClocks>(linker, State::clocks)?;
    clocks::monotonic_clock::add_to_linker::<State, WasiClocks>(linker, State::clocks)?;
    random::random::add_to_linker::<State, HasChance>(linker, chance)?;
    random::insecure::add_to_linker::<State, HasChance>(linker, chance)?;
    random::insecure_seed::add_to_linker::<State, HasChance>(linker, chance)?;

    // Without preopens there is no descriptor, and so nothing of `types` can be called.
    filesystem::types::add_to_linker::<State, WasiFilesystem>(linker, State::filesystem)?;
    filesystem::preopens::add_to_linker::<State, WasiFilesystem>(linker, State::filesystem)?;
    link_sockets(linker)
}

/// By name only: stock builds of Python and Go import them, and every creation and lookup is refused.
fn link_sockets(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    let options = LinkOptions::default();
    sockets::network::add_to_linker::<State, WasiSockets>(
        linker,
        &(&options).into(),
        State::sockets,
    )?;
    sockets::instance_network::add_to_linker::<State, WasiSockets>(linker, State::sockets)?;
    sockets::ip_name_lookup::add_to_linker::<State, WasiSockets>(linker, State::sockets)?;
    sockets::tcp::add_to_linker::<State, WasiSockets>(linker, State::sockets)?;
    sockets::tcp_create_socket::add_to_linker::<State, WasiSockets>(linker, State::sockets)?;
    sockets::udp::add_to_linker::<State, WasiSockets>(linker, State::sockets)?;
    sockets::udp_create_socket::add_to_linker::<State, WasiSockets>(linker, State::sockets)
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

struct HasTable;

impl HasData for HasTable {
    type Data<'a> = &'a mut ResourceTable;
}

fn table(state: &mut State) -> &mut ResourceTable {
    &mut state.table
}

/// Waiting, which is limited as every host call is.
struct Waits<'a> {
    table: &'a mut ResourceTable,
    limit: Duration,
}

struct HasWaits;

impl HasData for HasWaits {
    type Data<'a> = Waits<'a>;
}

fn waits(state: &mut State) -> Waits<'_> {
    Waits { table: &mut state.table, limit: state.calls.limit }
}

async fn within<T>(
    limit: Duration,
    wait: impl Future<Output = wasmtime::Result<T>>,
) -> wasmtime::Result<T> {
    tokio::time::timeout(limit, wait).await.unwrap_or_else(|_| Err(WaitedTooLong(limit).into()))
}

impl poll::Host for Waits<'_> {
    async fn poll(&mut self, list: Vec<Resource<DynPollable>>) -> wasmtime::Result<Vec<u32>> {
        within(self.limit, poll::Host::poll(self.table, list)).await
    }
}

impl poll::HostPollable for Waits<'_> {
    async fn block(&mut self, one: Resource<DynPollable>) -> wasmtime::Result<()> {
        within(self.limit, poll::HostPollable::block(self.table, one)).await
    }

    async fn ready(&mut self, one: Resource<DynPollable>) -> wasmtime::Result<bool> {
        poll::HostPollable::ready(self.table, one).await
    }

    fn drop(&mut self, one: Resource<DynPollable>) -> wasmtime::Result<()> {
        poll::HostPollable::drop(self.table, one)
    }
}

/// Randomness of all three kinds: the seed fixes the order of a guest's hash maps, so it is an input like the others.
struct HasChance;

impl HasData for HasChance {
    type Data<'a> = &'a mut Source;
}

fn chance(state: &mut State) -> &mut Source {
    &mut state.chance
}

impl random::random::Host for Source {
    fn get_random_bytes(&mut self, length: u64) -> wasmtime::Result<Vec<u8>> {
        self.random(length)
    }

    fn get_random_u64(&mut self) -> wasmtime::Result<u64> {
        self.number()
    }
}

impl random::insecure::Host for Source {
    fn get_insecure_random_bytes(&mut self, length: u64) -> wasmtime::Result<Vec<u8>> {
        self.random(length)
    }

    fn get_insecure_random_u64(&mut self) -> wasmtime::Result<u64> {
        self.number()
    }
}

impl random::insecure_seed::Host for Source {
    fn insecure_seed(&mut self) -> wasmtime::Result<(u64, u64)> {
        Ok((self.number()?, self.number()?))
    }
}

struct WallClock(Source);

impl HostWallClock for WallClock {
    fn resolution(&self) -> Duration {
        STEP
    }

    fn now(&self) -> Duration {
        Duration::from_millis(self.0.now())
    }
}

struct MonotonicClock(Instant);

impl MonotonicClock {
    #[expect(clippy::disallowed_methods, reason = "the edge where time enters")]
    fn start() -> Self {
        Self(Instant::now())
    }
}

impl HostMonotonicClock for MonotonicClock {
    fn resolution(&self) -> u64 {
        nanoseconds(STEP)
    }

    fn now(&self) -> u64 {
        // Never zero: to Go's runtime that is a machine without a clock.
        let elapsed = nanoseconds(self.0.elapsed().saturating_add(STEP));
        elapsed - elapsed % nanoseconds(STEP)
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Standard output or error, into the guest's log.
struct Output {
    log: GuestLog,
    level: Level,
    stream: &'static str,
}

impl IsTerminal for Output {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Output {
    /// Of WASI 0.3, which is not linked.
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(tokio::io::sink())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(OutputLines(Lines::new(self.log.clone(), self.level, self.stream)))
    }
}

/// Never full and never failing: a failing `println!` panics.
struct OutputLines(Lines);

#[wasmtime_wasi::async_trait]
impl Pollable for OutputLines {
    async fn ready(&mut self) {}
}

#[wasmtime_wasi::async_trait]
impl OutputStream for OutputLines {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.0.write(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Speaker;

    #[test]
    fn no_clock_is_finer_than_a_millisecond() {
        let (clock, wall) = (MonotonicClock::start(), WallClock(Source::Live));
        for _ in 0..1_000 {
            assert!(clock.now() > 0, "which Go takes for a machine without a clock");
            assert_eq!(clock.now() % 1_000_000, 0);
            assert_eq!(wall.now().subsec_nanos() % 1_000_000, 0);
        }
        assert_eq!((clock.resolution(), wall.resolution()), (1_000_000, STEP));
    }

    /// What Go's runtime does before `main`: it throws "nanotime returning zero".
    const CLOCK: &str = r#"(component
        (import "wasi:clocks/monotonic-clock@0.2.6" (instance $clock
            (export "now" (func (result u64)))
            (export "resolution" (func (result u64)))))
        (core func $now (canon lower (func $clock "now")))
        (core module $guest
            (import "" "now" (func $now (result i64)))
            (func $start (if (i64.eqz (call $now)) (then unreachable)))
            (start $start))
        (core instance (instantiate $guest (with "" (instance (export "now" (func $now))))))
    )"#;

    /// What `k8s.io/klog` does when it is loaded: `filepath.Base(os.Args[0])`.
    const NAME: &str = r#"(component
        (import "wasi:cli/environment@0.2.6" (instance $environment
            (export "get-arguments" (func (result (list string))))))
        (core module $heap
            (memory (export "memory") 1)
            (global $next (mut i32) (i32.const 1024))
            (func (export "realloc") (param i32 i32 i32 i32) (result i32)
                (local $at i32)
                (local.set $at (i32.and (i32.add (global.get $next) (i32.const 7)) (i32.const -8)))
                (global.set $next (i32.add (local.get $at) (local.get 3)))
                (local.get $at)))
        (core instance $heap (instantiate $heap))
        (core func $arguments (canon lower (func $environment "get-arguments")
            (memory $heap "memory") (realloc (func $heap "realloc"))))
        (core module $guest
            (import "" "memory" (memory 1))
            (import "" "arguments" (func $arguments (param i32)))
            (func $start
                (call $arguments (i32.const 0))
                (if (i32.eqz (i32.load (i32.const 4))) (then unreachable))
                (if (i32.eqz (i32.load offset=4 (i32.load (i32.const 0)))) (then unreachable)))
            (start $start))
        (core instance (instantiate $guest (with "" (instance
            (export "memory" (memory $heap "memory"))
            (export "arguments" (func $arguments))))))
    )"#;

    #[tokio::test]
    async fn a_guest_that_looks_at_clock_and_name_at_once_loads() {
        use crate::sandbox::{
            engine::{self, Role},
            imports::Calls,
            limits::{Meter, RunLimits},
            memory,
        };

        let engine = engine::engine(Role::CompileChild).unwrap();
        let mut linker = Linker::new(&engine);
        link(&mut linker).unwrap();
        let metrics = crate::metrics::Metrics::default();
        let quota = crate::sandbox::log::tests::quota(&metrics);
        for text in [CLOCK, NAME] {
            let component = wat::parse_str(text).unwrap();
            let component = wasmtime::component::Component::new(&engine, component).unwrap();
            let log = GuestLog::new(tracing::Span::none(), Speaker::default(), quota.clone());
            let state = State {
                table: ResourceTable::new(),
                wasi: context(&log, Chance::Live),
                chance: Chance::Live.into(),
                meter: Meter::new(&RunLimits::default(), memory::tests::share()),
                log,
                calls: Calls {
                    cluster: std::sync::Arc::new(crate::cluster::Refusing),
                    control: tokio::runtime::Handle::current(),
                    limit: Duration::from_secs(60),
                    open: tokio::sync::mpsc::channel(1).0,
                },
                config: "null".into(),
                cut: None,
                last_call: "none",
            };
            let mut store = wasmtime::Store::new(&engine, state);
            store.set_epoch_deadline(1);
            let loaded = linker.instantiate_async(&mut store, &component).await;
            loaded.unwrap_or_else(|error| panic!("{error:?}: {text}"));
        }
    }

    struct Guest(WasiCtx, ResourceTable);

    impl WasiView for Guest {
        fn ctx(&mut self) -> WasiCtxView<'_> {
            WasiCtxView { ctx: &mut self.0, table: &mut self.1 }
        }
    }

    #[tokio::test]
    async fn nothing_is_opened_and_nothing_inherited() {
        use sockets::network::{ErrorCode, IpAddressFamily::Ipv4};
        use wasmtime_wasi::p2::SocketError;

        let metrics = crate::metrics::Metrics::default();
        let quota = crate::sandbox::log::tests::quota(&metrics);
        let log = GuestLog::new(tracing::Span::none(), Speaker::default(), quota);
        let mut guest = Guest(context(&log, Chance::Live), ResourceTable::new());

        assert!(cli::environment::Host::get_environment(&mut guest.cli()).unwrap().is_empty());
        assert_eq!(cli::environment::Host::get_arguments(&mut guest.cli()).unwrap(), ["guest"]);
        assert!(
            cli::terminal_stdout::Host::get_terminal_stdout(&mut guest.cli()).unwrap().is_none()
        );
        let directories = filesystem::preopens::Host::get_directories(&mut guest.filesystem());
        assert!(directories.unwrap().is_empty());
        let stdin = cli::stdin::Host::get_stdin(&mut guest.cli()).unwrap();
        assert!(guest.1.get_mut(&stdin).unwrap().read(1).is_err(), "closed");

        let denied = |error: SocketError| {
            let code = error.downcast().unwrap();
            assert!(
                matches!(code, ErrorCode::AccessDenied | ErrorCode::PermanentResolverFailure),
                "{code:?}"
            );
        };
        denied(
            sockets::tcp_create_socket::Host::create_tcp_socket(&mut guest.sockets(), Ipv4)
                .unwrap_err(),
        );
        denied(
            sockets::udp_create_socket::Host::create_udp_socket(&mut guest.sockets(), Ipv4)
                .await
                .unwrap_err(),
        );
        let network =
            sockets::instance_network::Host::instance_network(&mut guest.sockets()).unwrap();
        let name = "localhost".to_owned();
        let looked_up =
            sockets::ip_name_lookup::Host::resolve_addresses(&mut guest.sockets(), network, name);
        denied(looked_up.unwrap_err());
    }
}
