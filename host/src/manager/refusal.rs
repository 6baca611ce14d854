//! Why a revision is not ready, and when it is tried again; pure.
//!
//! Nothing is final: what a guest or a registry was refused today may be given tomorrow, and the host may have been short
//! of something. What others must provide is looked for every few seconds, what may have been chance more and more seldom,
//! and what nothing suggests to end otherwise every half hour.
//!
//! Invariants: `every_refusal_is_tried_again`, `a_refusal_is_cut`.

use std::{error::Error as _, sync::Arc, time::Duration};

use crate::{
    apiserver::Error as CallError,
    model::manifest::Manifest,
    sandbox::{self, Failure, NoManifest},
    text::{MESSAGE, cut, cut_owned},
};

/// How often something that others must provide is looked for again.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// The same for bytes, whose arrival is heard of by other ways mostly.
const LOOK_FOR_BYTES: Duration = Duration::from_secs(30);
/// The pause after the first failure that may have been chance; it doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// How often is tried what will most likely end in the same way.
const SLOWLY: Duration = Duration::from_secs(1_800);
/// The longest pause between two tries to pull.
const PULL_AGAIN: Duration = Duration::from_secs(300);
/// So often in a row what may be chance is not called a failure yet.
const CHANCES: u32 = 3;

/// The longest text of the host's own with YAML in it.
pub(super) const LONG: usize = 16 << 10;

/// Why a revision is not ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// One CamelCase word.
    pub(super) reason: &'static str,
    /// What is wrong and what to do.
    pub(super) message: String,
    /// Whether it waits for something rather than being refused.
    pub(super) waits: bool,
    /// When to try again, if nothing about it changes before.
    pub(super) again: Again,
    /// What the guest has said it needs, if it came so far: people see which rights to give.
    pub(super) manifest: Option<Arc<Manifest>>,
}

/// When to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    /// At this pace: somebody else must give something, and need not tell the host.
    Every(Duration),
    /// When the bytes arrive, of which the host hears; and now and then, lest it has not heard.
    WithBytes,
    /// When somebody gives the rights, of which nobody tells.
    WithRights,
    /// More and more seldom: the host, the disk or the machine may have been short of something.
    Growing,
    /// The same for images, but every five minutes at least, as the kubelet pulls them: a tag may be pushed at any time.
    Pulling,
    /// Every half hour.
    Slowly,
}

impl Again {
    /// The pause after so many failures in a row, at least one.
    pub(super) fn pause(self, failures: u32) -> Duration {
        match self {
            Self::Every(pause) => pause,
            Self::WithBytes => LOOK_FOR_BYTES,
            Self::WithRights => LOOK_AGAIN,
            Self::Growing => doubled(failures).min(SLOWLY),
            Self::Pulling => doubled(failures).min(PULL_AGAIN),
            Self::Slowly => SLOWLY,
        }
    }
}

fn doubled(failures: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1)))
}

impl Refusal {
    pub(super) fn failed(reason: &'static str, message: impl AsRef<str>) -> Self {
        let message = cut(message.as_ref(), MESSAGE).into_owned();
        Self { reason, message, waits: false, again: Again::Slowly, manifest: None }
    }

    pub(super) fn waiting(reason: &'static str, message: impl AsRef<str>) -> Self {
        Self { waits: true, again: Again::Every(LOOK_AGAIN), ..Self::failed(reason, message) }
    }

    /// Nobody has sent the bytes yet.
    pub(super) fn without_bytes(message: impl AsRef<str>) -> Self {
        Self { again: Again::WithBytes, ..Self::waiting("ModuleMissing", message) }
    }

    /// Whether it waits for bytes.
    pub(super) fn lacks_bytes(&self) -> bool {
        self.again == Again::WithBytes
    }

    /// Whether its account, or the host, lacks a right.
    pub(super) fn lacks_rights(&self) -> bool {
        self.again == Again::WithRights
    }

    /// Refused for now: whoever gives the right need not tell the host. The message has the YAML that gives it.
    pub(super) fn forbidden(message: String) -> Self {
        let message = cut_owned(message, LONG);
        let again = Again::WithRights;
        Self { message, again, ..Self::failed("Forbidden", "") }
    }

    /// The same, of a guest that has described itself.
    pub(super) fn of(self, manifest: &Manifest) -> Self {
        Self { manifest: Some(Arc::new(manifest.clone())), ..self }
    }

    /// Another controller has the kind.
    pub(super) fn conflict(message: impl AsRef<str>) -> Self {
        Self { again: Again::Every(LOOK_AGAIN), ..Self::failed("Conflict", message) }
    }

    pub(super) fn api(what: &str, error: &CallError) -> Self {
        let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
        let words = format!("{error}{cause}");
        let words = cut(&words, MESSAGE / 2);
        Self::waiting(
            "ApiServerUnavailable",
            format!("cannot {what}: {words}; the host tries again"),
        )
    }

    /// There is no program.
    pub(super) fn compile(error: &sandbox::Error) -> Self {
        let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
        let again = if error.may_pass() { Again::Growing } else { Again::Slowly };
        Self { again, ..Self::failed("CompileFailed", format!("{error}{cause}")) }
    }

    /// The guest has not said what it needs.
    pub(super) fn describe(error: &NoManifest) -> Self {
        let again = match error {
            // It ran out of time, which may have been the machine's; or it was not its own fault at all.
            NoManifest::Failed(
                Failure::Deadline
                | Failure::Wall
                | Failure::Drained
                | Failure::Panicked
                | Failure::Host(_),
            ) => Again::Growing,
            NoManifest::Failed(_) | NoManifest::Refused(_) | NoManifest::Unfit(_) => Again::Slowly,
        };
        let text = format!("the component does not describe itself: {error}");
        Self { again, ..Self::failed("DescribeFailed", text) }
    }

    /// The same after so many failures in a row: what may be chance only waits at first.
    pub(super) fn after(mut self, failures: u32) -> Self {
        self.waits |= self.again == Again::Growing && failures <= CHANCES;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::Returned;

    #[test]
    fn every_refusal_is_tried_again() {
        let refused = NoManifest::Refused("bad config".into());
        let failed = |failure| Refusal::describe(&NoManifest::Failed(failure));
        for (refusal, again) in [
            (Refusal::describe(&refused), Again::Slowly),
            (failed(Failure::Trap("x".into())), Again::Slowly),
            (failed(Failure::Memory), Again::Slowly),
            (failed(Failure::Returned(Returned::Retry("x".into()))), Again::Slowly),
            (failed(Failure::Deadline), Again::Growing),
            (failed(Failure::Wall), Again::Growing),
            (failed(Failure::Drained), Again::Growing),
            (failed(Failure::Host("no slot".into())), Again::Growing),
            (Refusal::without_bytes("push it"), Again::WithBytes),
            (Refusal::forbidden("give it".into()), Again::WithRights),
            (Refusal::conflict("x/y has it"), Again::Every(LOOK_AGAIN)),
        ] {
            assert_eq!(refusal.again, again, "{refusal:?}");
            let pauses: Vec<_> = (1..50).map(|failures| again.pause(failures)).collect();
            assert!(pauses.is_sorted() && pauses.iter().all(|pause| *pause <= SLOWLY));
            assert!(pauses[0] >= FIRST_PAUSE, "no spin");
        }
        assert_eq!(Again::Growing.pause(3), FIRST_PAUSE * 4);
        assert_eq!(
            (Again::Pulling.pause(3), Again::Pulling.pause(40)),
            (FIRST_PAUSE * 4, PULL_AGAIN)
        );
        let once = failed(Failure::Deadline).after(1);
        assert!(once.waits, "it may be the host's fault");
        assert!(!failed(Failure::Deadline).after(CHANCES + 1).waits);
        assert!(!failed(Failure::Memory).after(1).waits);
    }

    #[test]
    fn a_refusal_is_cut() {
        let long = "ä".repeat(450_000);
        for refusal in [
            Refusal::describe(&NoManifest::Refused(long.clone())),
            Refusal::describe(&NoManifest::Failed(Failure::Host(long.clone()))),
            Refusal::compile(&sandbox::Error::Link(long.clone())),
            Refusal::api("ask", &CallError::Request(long.clone())),
            Refusal::failed("ManifestRefused", &long),
        ] {
            assert!(refusal.message.len() <= MESSAGE, "{}", refusal.message.len());
        }
        let text = Refusal::api("ask", &CallError::Request(long)).message;
        assert!(text.ends_with("the host tries again"), "{text}");
    }
}
