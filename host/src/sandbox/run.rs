//! One run: a slot, a permit to compute, a fresh store, one call on the guests' threads, and all of it dropped.
//!
//! Ticks end a guest that computes, a timeout one that waits, the stop flag either.
//!
//! Invariants, held by `tests/sandbox.rs`: `a_slot_is_free_again_after_every_end`, `a_stop_flag_ends_a_run`,
//! `an_endless_loop_does_not_keep_others_from_running`.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
};
use tracing::{Instrument, Span};
use wasmtime::{Engine, Store, UpdateDeadline, component::ResourceTable};
use wasmtime_wasi::WasiCtx;

use super::{
    Sandbox,
    chance::Chance,
    failure::{self, Failure, Returned},
    idle::Code,
    imports::{
        AbortOnDrop, Calls, Cut, State,
        bindings::{
            Reconciler,
            exports::nagaya::controller::guest::{self as wit, Request},
        },
    },
    limits::{HANDLES, HOSTCALL_FUEL, Meter, RunLimits},
    log::{ControllerLog, GuestLog},
    memory::Share,
    program::{Guest, Program},
    wasi,
};
use crate::{
    cluster::{Cluster, Refusing},
    journal::Speaker,
    model::{
        digest::Digest,
        manifest::{self, Manifest},
    },
    share::cpu::TurnClock,
};

/// CPU time of a turn below which a tick says nothing about it.
const JUST_BEGUN: Duration = Duration::from_millis(2);

/// What one run is given.
#[derive(Clone, Debug)]
pub struct Run {
    /// Who answers what the guest asks of its cluster.
    pub cluster: Arc<dyn Cluster>,
    /// Whose CPU time it is.
    pub team: Arc<str>,
    /// Whether it comes behind all that are not: computes only while nobody else waits to, and leaves memory to others.
    pub behind: bool,
    /// What it is told of time and chance.
    pub chance: Chance,
    /// The config as JSON text.
    pub config: Arc<str>,
    /// Ceilings.
    pub limits: RunLimits,
    /// Becomes true when the run must end.
    pub stop: watch::Receiver<bool>,
    /// What log lines are written under.
    pub span: Span,
    /// In whose name they are kept for the team.
    pub speaker: Speaker,
    /// Where they go besides, and how many still may.
    pub log: Arc<ControllerLog>,
}

/// What the guest wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing until something changes.
    AwaitChange,
    /// Another run then.
    RequeueAfter(Duration),
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

impl Sandbox {
    /// Asks the revision what it needs, and checks it.
    pub async fn describe(&self, program: &Program, run: Run) -> Result<Manifest, NoManifest> {
        let run = Run { cluster: Arc::new(Refusing), ..run };
        let answer = match &program.guest {
            Guest::Component(code) => {
                let call = self.call(code, &program.digest, run, |guest, store| {
                    async move { guest.nagaya_controller_guest().call_describe(store).await }
                        .boxed()
                });
                call.await?.map(|text| Manifest::parse(&text))
            }
            Guest::Native(native) => {
                let work = native.describe(run.config.clone());
                self.call_native(run, work).await?.map(Ok)
            }
        };
        let manifest = answer.map_err(|text| NoManifest::Refused(failure::said(&text)))??;
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
        let name = name.to_owned();
        let code = match &program.guest {
            Guest::Component(code) => code,
            Guest::Native(native) => {
                let namespace = namespace.map(str::to_owned);
                return self.reconcile_native(&**native, run, (namespace, name)).await;
            }
        };
        let request = Request { namespace: namespace.unwrap_or_default().to_owned(), name };
        let answer = self
            .call(code, &program.digest, run, move |guest, store| {
                async move { guest.nagaya_controller_guest().call_reconcile(store, &request).await }
                    .boxed()
            })
            .await?;
        match answer {
            Ok(wit::Action::AwaitChange) => Ok(Action::AwaitChange),
            Ok(wit::Action::RequeueAfter(delay)) => {
                Ok(Action::RequeueAfter(Duration::from_millis(delay.into())))
            }
            Ok(wit::Action::Terminal(text)) => failed(Returned::Terminal, &text),
            Ok(wit::Action::Invalid(text)) => failed(Returned::Invalid, &text),
            Err(text) => failed(Returned::Retry, &text),
        }
    }

    /// One call on the guests' threads. It dies with the caller's future; the writes it has begun do not.
    async fn call<T, F>(
        &self,
        code: &Arc<Code>,
        digest: &Digest,
        run: Run,
        call: F,
    ) -> Result<T, Failure>
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
        let cluster = run.cluster.clone();
        let (open, mut all_answered) = mpsc::channel(1);
        let (code, permits, stop) = (code.clone(), self.0.permits.clone(), run.stop.clone());
        let (inner, memory_of) = (self.0.clone(), run.team.clone());
        let (engine, control, span) =
            (self.0.engine.clone(), self.0.control.clone(), run.span.clone());
        let (cpu, team, turned) =
            (self.0.cpu.clone(), run.team.clone(), Arc::<TurnClock>::default());
        let once = async move {
            let Ok(_permit) = permits.acquire_owned().await else { return Err(Failure::Drained) };
            let (wall, behind) = (run.limits.wall, run.behind);
            let share = if behind {
                inner.memory.begin_behind().await
            } else {
                inner.memory.begin(&memory_of).await
            };
            let Some(share) = share else { return Err(Failure::Drained) };
            let mut store = store((&engine, share), run, control, open, turned.clone());
            let instance_and_call = async {
                let guest = code.used().instantiate_async(&mut store).await?;
                call(&guest, &mut store).await
            };
            let mut metered = cpu.metered((&team, behind), turned, instance_and_call);
            metered.turn().await;
            let Ok(result) = tokio::time::timeout(wall, &mut metered).await else {
                return Err(Failure::Wall);
            };
            drop(metered);
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
        cluster.guest_is_gone();
        // Nothing is ever sent: it ends when the guest and all its writes have let go of the other end.
        let _ = all_answered.recv().await;
        match result {
            Ok(result) => result,
            Err(error) if error.is_panic() => {
                tracing::error!(%error, %digest, "the host panicked in a run");
                Err(Failure::Panicked)
            }
            Err(_) => Err(Failure::Drained),
        }
    }
}

fn failed(way: fn(String) -> Returned, text: &str) -> Result<Action, Failure> {
    Err(Failure::Returned(way(failure::said(text))))
}

/// A store for one call.
fn store(
    (engine, share): (&Engine, Share),
    run: Run,
    control: Handle,
    open: mpsc::Sender<()>,
    turned: Arc<TurnClock>,
) -> Store<State> {
    let log = GuestLog::new(run.span, run.speaker, run.log);
    let wasi: WasiCtx = wasi::context(&log, run.chance);
    let mut table = ResourceTable::new();
    table.set_max_capacity(HANDLES);
    let state = State {
        table,
        wasi,
        meter: Meter::new(&run.limits, share),
        log,
        calls: Calls { cluster: run.cluster, control, limit: run.limits.host_call, open },
        config: run.config,
        chance: run.chance.into(),
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
            // It has only just begun its turn: the tick was due while it waited for that, or for the host.
            (false, _) if turned.used() < JUST_BEGUN => return Ok(UpdateDeadline::Continue(1)),
            (false, 0) => Cut::Deadline,
            (false, _) => {
                left -= 1;
                turned.tick();
                return Ok(UpdateDeadline::Yield(1));
            }
        };
        store.data_mut().cut = Some(cut);
        Ok(UpdateDeadline::Interrupt)
    });
    store
}

/// Returns when the run must end.
pub(super) async fn stopped(mut stop: watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        // Whoever could have stopped it is gone.
        std::future::pending::<()>().await;
    }
}
