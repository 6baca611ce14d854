//! What every keeper shares: the parts of the host, and what the manager adds to them.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;

use super::{directory::Directory, primaries::Primaries};
use crate::{
    access::authority::Authority,
    apiserver::ApiServer,
    events::Recorder,
    journal::Journals,
    leader::fence::Claim,
    metrics::Metrics,
    model::crd::LimitsSpec,
    modules::{Elsewhere, Modules, oci::Registries, policy::Policy},
    preview::Previews,
    sandbox::Sandbox,
    share::slots::Slots,
    watch::{Cache, Hub},
};

/// The parts of the host that controllers are made of.
#[derive(Debug)]
pub struct Host {
    /// The API server, for the host's own requests.
    pub api: ApiServer,
    /// The API server over connections of their own, for what guests ask.
    pub guests: ApiServer,
    /// The watches.
    pub hub: Hub,
    /// Answers about rights.
    pub authority: Authority,
    /// The guests' home.
    pub sandbox: Sandbox,
    /// The stored components.
    pub modules: Modules,
    /// Where others are pulled from.
    pub registries: Registries,
    /// Where uploads may be that are not here.
    pub elsewhere: Arc<dyn Elsewhere>,
    /// Who must have signed them.
    pub policy: Policy,
    /// Where events go.
    pub recorder: Recorder,
    /// Counters.
    pub metrics: Metrics,
    /// What guests have said.
    pub journals: Journals,
    /// The controllers that are kept, for whoever asks.
    pub directory: Directory,
    /// Runs whose writes are only tried.
    pub previews: Previews,
    /// Slots for runs, of which a describe is one.
    pub slots: Slots,
    /// The host's claim on its controllers.
    pub claim: watch::Receiver<Option<Claim>>,
    /// Whether the API server answers.
    pub reachable: watch::Receiver<bool>,
    /// A write takes no longer.
    pub write_timeout: Duration,
    /// The host's own user name.
    pub user: Arc<str>,
    /// No guest may have more memory, in bytes.
    pub memory_ceiling: usize,
    /// No team may have more bytes in caches.
    pub team_caches: usize,
}

/// What every keeper needs.
#[derive(Debug)]
pub(super) struct Estate {
    pub(super) host: Host,
    /// What keepers may act on: the host's claim, once the host's own caches are fresh.
    pub(super) claim: watch::Receiver<Option<Claim>>,
    /// Who has which kind for itself.
    pub(super) primaries: Arc<Primaries>,
    /// Who may describe now: however many a team has to describe, its own runs and other teams have slots left.
    pub(super) describes: Slots,
    /// Who may ask a registry now.
    pub(super) pulls: Slots,
    pub(super) controllers: Arc<Cache>,
    pub(super) revisions: Arc<Cache>,
    pub(super) accounts: Arc<Cache>,
}

impl Host {
    /// What to say of limits that this host does not give.
    pub(super) fn over_ceiling(&self, asked: &LimitsSpec) -> Option<String> {
        let most = self.memory_ceiling;
        let is_over = asked.memory_bytes().is_ok_and(|bytes| bytes > most as u64);
        is_over.then(|| {
            format!(
                "limits.memory is {}, but this host gives a guest at most {}Mi: ask for less, or have its --memory-ceiling raised",
                asked.memory,
                most >> 20
            )
        })
    }
}
