//! Reconcilers that are part of the process: for tests of the host, which then need no component, no second thread and no
//! real time.
//!
//! A native program is found by its digest, as a component's code is, so that staging, swaps and several revisions go
//! their usual way. Slots, the wall and the stop flag hold as for every run; memory and computing time are nobody's
//! business here. Nothing but a test may add one: no byte of a module ever becomes one.
//!
//! Invariants, held by `tests/native.rs`: `a_native_guest_ends_at_its_wall`, `a_native_guest_that_panics_is_a_trap`.

use std::{any::Any, collections::HashMap, fmt, sync::Arc};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tracing::Instrument;

use super::{
    Action, Failure, Returned, Run, RunLimits, Sandbox,
    failure::{cut, said},
    imports::AbortOnDrop,
    run::stopped,
};
use crate::{
    cluster::Cluster,
    model::{digest::Digest, manifest::Manifest},
};

/// A reconciler in Rust.
pub trait Native: Send + Sync + 'static {
    /// What it needs, or why it refuses `config`.
    fn describe(&self, config: Arc<str>) -> BoxFuture<'static, Result<Manifest, String>>;
    /// One run.
    fn reconcile(&self, call: NativeCall) -> BoxFuture<'static, Result<Action, Returned>>;
}

/// What one run of a native reconciler is given.
#[derive(Clone, Debug)]
pub struct NativeCall {
    /// The object's namespace.
    pub namespace: Option<String>,
    /// The object's name.
    pub name: String,
    /// Who answers what it asks of its cluster.
    pub cluster: Arc<dyn Cluster>,
    /// The config as JSON text.
    pub config: Arc<str>,
    /// Ceilings; that of one host call is the reconciler's to keep.
    pub limits: RunLimits,
}

/// Those of one sandbox, by digest.
#[derive(Default)]
pub(super) struct Natives(Mutex<HashMap<Digest, Arc<dyn Native>>>);

impl Natives {
    pub(super) fn get(&self, digest: &Digest) -> Option<Arc<dyn Native>> {
        self.0.lock().get(digest).cloned()
    }
}

impl Sandbox {
    /// For tests: the module of this digest is `native` from now on, whatever its bytes say.
    pub fn add_native(&self, digest: Digest, native: Arc<dyn Native>) {
        self.0.natives.0.lock().insert(digest, native);
    }

    /// One run of a native program.
    pub(super) async fn reconcile_native(
        &self,
        native: &dyn Native,
        run: Run,
        (namespace, name): (Option<String>, String),
    ) -> Result<Action, Failure> {
        let (config, limits) = (run.config.clone(), run.limits.clone());
        let call = NativeCall { namespace, name, cluster: run.cluster.clone(), config, limits };
        let work = native.reconcile(call);
        self.call_native(run, work).await?.map_err(|returned| {
            Failure::Returned(match returned {
                Returned::Retry(text) => Returned::Retry(said(&text)),
                Returned::Terminal(text) => Returned::Terminal(said(&text)),
                Returned::Invalid(text) => Returned::Invalid(said(&text)),
            })
        })
    }

    /// One call on the control runtime, so that a paused clock is the guest's, too. It dies with the caller's future.
    pub(super) async fn call_native<T: Send + 'static>(
        &self,
        run: Run,
        work: BoxFuture<'static, T>,
    ) -> Result<T, Failure> {
        let Ok(_permit) = self.0.permits.clone().acquire_owned().await else {
            return Err(Failure::Drained);
        };
        let (stop, wall) = (run.stop, run.limits.wall);
        let stoppable = async move {
            tokio::select! {
                biased;
                () = stopped(stop) => Err(Failure::Drained),
                result = tokio::time::timeout(wall, work) => result.map_err(|_| Failure::Wall),
            }
        };
        let mut task = AbortOnDrop(self.0.control.spawn(stoppable.instrument(run.span)));
        let result = (&mut task.0).await;
        run.cluster.guest_is_gone();
        match result {
            Ok(result) => result,
            Err(error) if error.is_panic() => {
                Err(Failure::Trap(cut(&format!("it panicked: {}", words(&*error.into_panic())))))
            }
            Err(_) => Err(Failure::Drained),
        }
    }
}

/// What a panic said.
fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or_default()
}

impl fmt::Debug for Natives {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Natives").finish_non_exhaustive()
    }
}
