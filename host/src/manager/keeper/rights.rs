//! What a controller's account may no longer, or not yet: to reconcile, to watch in another way, to tell people.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    super::{
        plan::{self, Plan},
        running::Setup,
        status::Standing,
    },
    Keeper, has_account,
};
use crate::{access::view::WatchFailure, model::crd::WasmController};

/// How often the rights to write Events and conditions are asked for.
const HEARD_AGAIN: Duration = Duration::from_secs(600);
/// The same while one is missing.
const UNHEARD_AGAIN: Duration = Duration::from_secs(15);

/// An answer about the rights to tell people what became of their objects.
#[derive(Debug)]
pub(super) struct Unheard {
    /// The revision that was looked at.
    of: String,
    /// When it is asked again.
    again: Instant,
    /// What is missing, and the YAML that gives it.
    lacks: Option<String>,
}

impl Unheard {
    /// When it is to be asked again, if anybody waits for another answer.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.lacks.as_ref().map(|_| self.again)
    }
}

impl Keeper {
    /// Whether the live revision is known to lack the rights to reconcile.
    pub(super) fn lacks_rights(&self, controller: &WasmController) -> bool {
        let lost = self.running.as_ref().is_some_and(|running| running.trouble().may_not_reconcile);
        let active = plan::status(controller).active;
        let standing = active.and_then(|name| self.loads.standing(&name));
        let is_refused = matches!(standing, Some(Standing::Failed(it)) if it.lacks_rights());
        lost || is_refused || !has_account(&self.estate, controller)
    }

    /// A kind that cannot be watched at present, and why it cannot be watched in another way either.
    pub(super) fn blind(&self, active: Option<&str>) -> Option<WatchFailure> {
        let mut blind = self.running.as_ref()?.trouble().blind?;
        let renewal = active.and_then(|name| self.renewals.standing(name));
        if let Some(Standing::Failed(refusal) | Standing::Staging(Some(refusal))) = renewal {
            blind.message = format!("{}; {}", blind.message, refusal.message);
        }
        Some(blind)
    }

    /// What is missing to tell people what became of their objects.
    pub(super) fn unheard(&self) -> Option<String> {
        self.unheard.as_ref().and_then(|unheard| unheard.lacks.clone())
    }

    /// Asks whether the account may tell people what became of their objects.
    pub(super) async fn listen(&mut self, controller: &WasmController, plan: &Plan) {
        let mut names = plan::status(controller).active.into_iter().chain(plan.desired.clone());
        let Some(executor) = names.find_map(|name| self.loads.ready(&name)) else {
            return;
        };
        let Some(running) = &self.running else { return };
        let known = self.unheard.as_ref().filter(|unheard| unheard.of == executor.name);
        if known.is_some_and(|unheard| unheard.again > Instant::now()) {
            return;
        }
        let Setup { account, namespaces, .. } = &running.setup;
        let host = &self.estate.host;
        match host.unheard(account, &executor.view, namespaces.as_deref()).await {
            Ok(lacks) => {
                let pause = if lacks.is_some() { UNHEARD_AGAIN } else { HEARD_AGAIN };
                let (of, again) = (executor.name.clone(), Instant::now() + pause);
                self.unheard = Some(Unheard { of, again, lacks });
            }
            Err(error) => {
                tracing::debug!(controller = %self.key, %error, "cannot ask for the rights to report");
            }
        }
    }
}
