//! A running controller: its identity, its loop, and the settings that act at once.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tracing::{Instrument, trace_span};

use super::{
    PlanAsk,
    directory::{Listed, Listing},
    estate::Estate,
};
use crate::{
    apiserver::Identity,
    client::{
        Account, Applied,
        dry::Bench,
        gates::{barrier::Barrier, budget::Budget},
    },
    controller::{Controller, Parts, Settings, Trouble, run::Shared},
    metrics::Watched,
    model::{
        crd::{LimitsSpec, WasmController},
        digest::Digest,
        object::ObjectKey,
    },
    queue::shared::SharedQueue,
    sandbox::{ControllerLog, RunLimits},
};

/// Field managers may have 128 characters.
const LONGEST_MANAGER: usize = 128;

/// What a controller cannot change while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setup {
    /// Of the WasmController: one that was made anew under the same name is another.
    pub(super) uid: String,
    pub(super) account: Identity,
    pub(super) namespaces: Option<Arc<[Arc<str>]>>,
    pub(super) field_manager: String,
}

impl Setup {
    /// What the object says.
    pub(super) fn of(controller: &WasmController) -> Self {
        let namespace = controller.metadata.namespace.as_deref().unwrap_or_default();
        let name = controller.metadata.name.as_deref().unwrap_or_default();
        let scope = controller.spec.scope.as_ref();
        Self {
            uid: controller.metadata.uid.clone().unwrap_or_default(),
            account: account(controller),
            namespaces: scope
                .map(|scope| scope.namespaces.iter().map(|name| name.as_str().into()).collect()),
            field_manager: controller
                .spec
                .field_manager
                .clone()
                .unwrap_or_else(|| field_manager(namespace, name)),
        }
    }
}

/// As whom a controller reads and writes.
pub(super) fn account(controller: &WasmController) -> Identity {
    Identity::ServiceAccount {
        namespace: controller.metadata.namespace.as_deref().unwrap_or_default().into(),
        name: controller.spec.service_account_name.as_str().into(),
    }
}

/// `nagaya/<namespace>/<name>`, hashed where that is too long.
fn field_manager(namespace: &str, name: &str) -> String {
    let plain = format!("nagaya/{namespace}/{name}");
    if plain.len() <= LONGEST_MANAGER {
        return plain;
    }
    format!("nagaya/{}", Digest::of(plain.as_bytes()).hex())
}

/// The loop of one controller and the handles to it.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) setup: Setup,
    pub(super) controller: Controller,
    /// What all its previews share.
    pub(super) bench: Arc<Bench>,
    pub(super) trouble: watch::Receiver<Trouble>,
    pub(super) tasks: JoinSet<()>,
    _listing: Listing,
    settings: Settings,
    limits: LimitsSpec,
    /// No guest gets more memory, in bytes.
    memory_ceiling: usize,
}

impl Running {
    /// Starts the loop; nothing runs before it gets a revision.
    pub(super) fn start(
        estate: &Estate,
        (key, asks): (&ObjectKey, mpsc::Sender<PlanAsk>),
        setup: Setup,
        controller: &WasmController,
    ) -> Self {
        let name = key.to_string();
        let watched = |queue: &Arc<SharedQueue>| {
            let queue: Arc<dyn Watched> = queue.clone();
            Arc::downgrade(&queue)
        };
        let queue = SharedQueue::new(|queue| estate.host.metrics.controller(&name, watched(queue)));
        let metrics = estate.host.metrics.controller(&name, watched(&queue));
        let limits = controller.spec.limits.clone();
        let journal = estate.host.journals.of(&name);
        let account = Account {
            controller: name,
            api: estate.host.guests.clone(),
            control: tokio::runtime::Handle::current(),
            identity: setup.account.clone(),
            field_manager: setup.field_manager.clone(),
            authority: estate.host.authority.clone(),
            recorder: estate.host.recorder.clone(),
            budget: Mutex::new(budget(&limits)),
            fights: Mutex::default(),
            flow: Mutex::default(),
            write_timeout: estate.host.write_timeout,
            reachable: estate.host.reachable.clone(),
            applied: Mutex::new(Applied::default()),
            own: watch::channel(Barrier::default()).0,
            metrics: metrics.clone(),
        };
        let shared = Arc::new(Shared {
            sandbox: estate.host.sandbox.clone(),
            account: Arc::new(account),
            log: Arc::new(ControllerLog::new(metrics, journal)),
            accepted: Mutex::default(),
            strays: Mutex::default(),
        });
        let parts =
            Parts { shared, queue, slots: estate.host.slots.clone(), claim: estate.claim.clone() };
        let bench = estate.host.previews.bench(limits.writes_per_minute);
        let memory_ceiling = estate.host.memory_ceiling;
        let settings = settings(controller, true, memory_ceiling);
        let (controller, work) = Controller::new(parts, settings.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(work.run().instrument(trace_span!("loop", of = "controller")));
        let trouble = controller.trouble();
        let rollout = controller.rollout();
        let listing = estate
            .host
            .directory
            .list(key, Listed { queue: controller.queue.clone(), rollout, asks });
        Self {
            setup,
            controller,
            bench,
            trouble,
            tasks,
            _listing: listing,
            settings,
            limits,
            memory_ceiling,
        }
    }

    /// Sets limits and suspension, by the spec or for want of what a run needs; true if the limits are others than before.
    pub(super) fn set(&mut self, controller: &WasmController, suspended: bool) -> bool {
        self.settings = settings(controller, suspended, self.memory_ceiling);
        self.controller.set(self.settings.clone());
        let limits = &controller.spec.limits;
        let changed = self.limits != *limits;
        let rate = |limits: &LimitsSpec| (limits.writes_per_minute, limits.deletes_per_hour);
        if rate(&self.limits) != rate(limits) {
            let mut old = self.controller.shared.account.budget.lock();
            *old = budget(limits);
        }
        self.limits = limits.clone();
        changed
    }

    /// Ceilings of one run.
    pub(super) fn limits(&self) -> RunLimits {
        self.settings.limits.clone()
    }

    /// What the team should know of.
    pub(super) fn trouble(&self) -> Trouble {
        self.trouble.borrow().clone()
    }

    /// Starts no more runs and waits for the last one.
    pub(super) async fn end(mut self) {
        self.controller.stop();
        while self.tasks.join_next().await.is_some() {}
    }
}

fn budget(limits: &LimitsSpec) -> Budget {
    Budget::new(limits.writes_per_minute.max(1), limits.deletes_per_hour.max(1))
}

fn settings(controller: &WasmController, suspended: bool, memory_ceiling: usize) -> Settings {
    let spec = &controller.spec;
    let usual = RunLimits::default();
    // The CRD's patterns let nothing else through than what these read.
    let memory = spec.limits.memory_bytes().ok().and_then(|bytes| usize::try_from(bytes).ok());
    let deadline = spec.limits.deadline().unwrap_or(usual.deadline).min(usual.wall);
    Settings {
        suspend: spec.suspend || suspended,
        // Within the CRD's limits, whatever was stored before it had them.
        concurrency: usize::try_from(spec.limits.concurrency).unwrap_or(1).clamp(1, 64),
        limits: RunLimits {
            memory: memory.unwrap_or(usual.memory).min(memory_ceiling),
            deadline,
            ..usual
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_manager_fits_whatever_the_name() {
        assert_eq!(field_manager("storage", "bucket"), "nagaya/storage/bucket");
        let long = field_manager(&"n".repeat(63), &"c".repeat(242));
        assert!(long.len() <= LONGEST_MANAGER && long.starts_with("nagaya/"), "{long}");
        assert_ne!(long, field_manager(&"n".repeat(63), &"d".repeat(242)));
    }
}
