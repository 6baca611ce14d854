//! Resolves the image of a spec, once: what it was then stands in the status, and in the revision that is made of it.

use tokio::time::Instant;

use super::{
    super::{
        loads::{Question, Taken},
        status::Standing,
    },
    Keeper, has_account,
    load::{Task, caught},
};
use crate::model::crd::{ModuleStatus, WasmController};

/// What became of a question: its ticket, the image, and the answer.
pub(super) type Answered = (u64, String, Result<ModuleStatus, super::super::refusal::Refusal>);

impl Keeper {
    /// The component of the spec, as far as it is known.
    pub(super) fn module(&self, controller: &WasmController) -> Option<ModuleStatus> {
        let image = controller.spec.module.image.as_ref();
        let resolved = || self.images.ready(image?).map(|module| (**module).clone());
        controller.module().or_else(resolved)
    }

    /// Asks what the spec's image is, where nobody knows it yet.
    pub(super) fn resolve(&mut self, controller: &WasmController) {
        let image = controller.spec.module.image.clone();
        self.images.keep(&image.iter().cloned().collect());
        let Some(image) = image.filter(|_| self.module(controller).is_none()) else { return };
        if !self.images.is_due(&image, Instant::now()) || !has_account(&self.estate, controller) {
            return;
        }
        let (estate, account) = (self.estate.clone(), super::super::running::account(controller));
        let (tasks, label) = (&mut self.resolving, image.clone());
        self.images.begin(&image, Question::default(), 0, |ticket| {
            Task(tasks.spawn(async move {
                let resolved = caught(&label, estate.resolve(&account, &label)).await;
                (ticket, label, resolved)
            }))
        });
    }

    pub(super) fn take_resolved(&mut self, (ticket, image, answer): Answered) {
        let asked = (&Question::default(), 0);
        let taken = self.images.finish((ticket, &image), answer, asked, Instant::now());
        match taken {
            Taken::Ready => {
                let pinned = self.images.ready(&image).map(|module| module.pinned.clone());
                tracing::info!(controller = %self.key, image, pinned, "an image is resolved");
            }
            Taken::Refused(refusal) => {
                tracing::info!(controller = %self.key, image, reason = refusal.reason, message = refusal.message, "an image is not resolved");
            }
            Taken::Stale => (),
        }
    }

    /// Where the image stands that nobody knows yet.
    pub(super) fn unresolved(
        &self,
        controller: &WasmController,
    ) -> Option<(String, Option<Standing>)> {
        let image = controller.spec.module.image.clone()?;
        let standing = self.images.standing(&image);
        self.module(controller).is_none().then_some((image, standing))
    }
}
