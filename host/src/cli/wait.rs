//! What a waiting command makes of what it sees; pure.
//!
//! Invariants: `a_wait_ends_when_the_revision_is_staged_or_cannot_be`, `an_edit_by_somebody_else_ends_a_wait`,
//! `a_wait_that_takes_too_long_says_what_is_missing`, `a_wait_for_what_somebody_must_do_ends_with_what_that_is`.

use std::ops::ControlFlow::{self, Break, Continue};

use super::edit::Seen;
use crate::model::crd::RevisionPhase;

/// Reasons of conditions that only somebody else can end.
const BLOCKS: [&str; 13] = [
    "ServiceAccountMissing",
    "KindMissing",
    "ConfigRefused",
    "RevisionNotMade",
    "Unreadable",
    "BadImage",
    "BadPullSecret",
    "RegistryNotAllowed",
    "ImageUnauthorized",
    "ImageRefused",
    "ImageHasNoComponent",
    "ImageTooLarge",
    "ImageTampered",
];

/// Where a pushed revision ended up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Staged {
    /// It is live.
    Live,
    /// It waits for its promotion.
    Candidate,
    /// The team has rejected it, so it is no candidate.
    Rejected,
}

/// Why there is nothing left to wait for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Error {
    /// The revision cannot run.
    #[error("{revision} failed: {message}")]
    Failed {
        /// The revision.
        revision: String,
        /// What the host says.
        message: String,
    },
    /// The host waits for somebody, and has said for what.
    #[error(
        "{revision} waits: {message}\nthe host goes on by itself as soon as that is done; `nagaya get {name}` shows it"
    )]
    Blocked {
        /// The controller.
        name: String,
        /// The revision.
        revision: String,
        /// What the host waits for.
        message: String,
    },
    /// Its gates hold it.
    #[error("{revision} is named, and goes live once its gates pass: {message}")]
    Gated {
        /// The revision.
        revision: String,
        /// What the host says.
        message: String,
    },
    /// Another push.
    #[error(
        "somebody else changed the module or the config of {0} meanwhile; `nagaya get {0}` shows what is there now"
    )]
    OtherModule(String),
    /// Another promote, abort or rollback.
    #[error(
        "somebody else changed the rollout of {0} meanwhile; `nagaya get {0}` shows what is there now"
    )]
    OtherDecision(String),
}

/// Whether the host has read the spec's `generation`.
pub(super) fn noticed(seen: &Seen, generation: i64) -> ControlFlow<()> {
    let observed = seen.status().observed_generation;
    if observed.is_some_and(|observed| observed >= generation) { Break(()) } else { Continue(()) }
}

/// Whether `revision`, made by a push, is staged.
pub(super) fn staged(seen: &Seen, revision: &str) -> Result<ControlFlow<Staged>, Error> {
    let status = seen.status();
    if status.active.as_deref() == Some(revision) {
        return Ok(Break(Staged::Live));
    }
    if seen.rejects(revision) {
        return Ok(Break(Staged::Rejected));
    }
    if status.candidate.as_deref() == Some(revision) {
        return Ok(Break(Staged::Candidate));
    }
    // As long as its image is not resolved, nobody knows what the spec names.
    if seen.controller.module().is_some() && seen.desired() != revision {
        return Err(Error::OtherModule(seen.name().to_owned()));
    }
    unless_failed(seen, revision)?;
    unless_blocked(seen, revision)?;
    Ok(Continue(()))
}

/// Whether `revision`, named by a promote or a rollback, is live.
pub(super) fn live(seen: &Seen, revision: &str) -> Result<ControlFlow<()>, Error> {
    if seen.status().active.as_deref() == Some(revision) {
        return Ok(Break(()));
    }
    if seen.controller.spec.rollout.active.as_deref() != Some(revision) {
        return Err(Error::OtherDecision(seen.name().to_owned()));
    }
    unless_failed(seen, revision)?;
    unless_blocked(seen, revision)?;
    unless_gated(seen, revision)?;
    Ok(Continue(()))
}

/// Whether `revision`, rejected by an abort, is out of the way.
pub(super) fn gone(seen: &Seen, revision: &str) -> Result<ControlFlow<()>, Error> {
    if !seen.rejects(revision) {
        return Err(Error::OtherDecision(seen.name().to_owned()));
    }
    let candidate = seen.status().candidate;
    let out = candidate.as_deref() != Some(revision) && noticed(seen, seen.generation()).is_break();
    Ok(if out { Break(()) } else { Continue(()) })
}

fn unless_failed(seen: &Seen, revision: &str) -> Result<(), Error> {
    match seen.standing(revision) {
        Some((RevisionPhase::Failed, message)) => {
            Err(Error::Failed { revision: revision.to_owned(), message })
        }
        _ => Ok(()),
    }
}

/// A gate that holds goes on holding until somebody changes something; one that waits for a plan is waited for.
fn unless_gated(seen: &Seen, revision: &str) -> Result<(), Error> {
    if noticed(seen, seen.generation()).is_continue() {
        return Ok(());
    }
    let status = seen.status();
    let gated = status.conditions.iter().find(|condition| condition.type_ == "Gated");
    match gated.filter(|gated| gated.status == "True" && gated.reason == "GateHolds") {
        Some(gated) if seen.enforces_gates() => {
            Err(Error::Gated { revision: revision.to_owned(), message: gated.message.clone() })
        }
        _ => Ok(()),
    }
}

/// No wait makes an account, a kind or a config: whoever waits for them reads at once what to do.
fn unless_blocked(seen: &Seen, revision: &str) -> Result<(), Error> {
    if noticed(seen, seen.generation()).is_continue() {
        return Ok(());
    }
    let status = seen.status();
    let found = status.conditions.iter().find(|condition| {
        let holds = match condition.type_.as_str() {
            "Degraded" | "Progressing" => condition.status == "True",
            _ => false,
        };
        holds && BLOCKS.contains(&&*condition.reason)
    });
    match found {
        None => Ok(()),
        Some(condition) => Err(Error::Blocked {
            name: seen.name().to_owned(),
            revision: revision.to_owned(),
            message: condition.message.clone(),
        }),
    }
}

/// How `revision` is doing, in words.
pub(super) fn news(seen: &Seen, revision: &str) -> String {
    match seen.standing(revision) {
        None => format!("{revision} is not there yet"),
        Some((phase, message)) if message.is_empty() => format!("{revision}: {phase:?}"),
        Some((phase, message)) => format!("{revision}: {phase:?}: {message}"),
    }
}

/// Why a wait for `revision` took too long, and what to do.
pub(super) fn overdue(seen: &Seen, generation: i64, revision: &str) -> String {
    let name = seen.name();
    if noticed(seen, generation).is_continue() {
        let observed = seen.status().observed_generation.unwrap_or_default();
        return format!(
            "no host has read the change of {name} (it is generation {generation}, the host has read {observed}): is \
             a host running for this cluster? See `kubectl get pods --namespace nagaya-system`"
        );
    }
    let mut text = news(seen, revision);
    for condition in seen.status().conditions.iter().filter(|condition| is_trouble(condition)) {
        text.push_str(&format!("\n{}: {}", condition.reason, condition.message));
    }
    text.push_str(&format!(
        "\nthe host goes on by itself; `nagaya get {name}` shows how far it is"
    ));
    text
}

/// Whether a condition tells of a problem: Degraded, not Ready, or one that is there only while something is wrong.
pub(super) fn is_trouble(
    condition: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition,
) -> bool {
    match condition.type_.as_str() {
        "Degraded" | "ObjectsFailing" => condition.status == "True",
        "Ready" | "ModuleStored" => condition.status != "True",
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::edit::tests::{revision, seen, v},
        *,
    };
    use crate::model::crd::condition;

    const OLD: &str = "sha256:1111111111111111111111111111111111111111111111111111111111111111";
    const NEW: &str = "sha256:2222222222222222222222222222222222222222222222222222222222222222";

    #[test]
    fn a_wait_ends_when_the_revision_is_staged_or_cannot_be() {
        let mut seen = seen();
        assert_eq!(staged(&seen, &v(NEW)), Ok(Break(Staged::Candidate)));
        assert_eq!(staged(&seen, &v(OLD)), Ok(Break(Staged::Live)));
        seen.controller.status.as_mut().unwrap().candidate = None;
        assert_eq!(staged(&seen, &v(NEW)), Ok(Continue(())));
        seen.controller.spec.rollout.rejected = vec![v(NEW)];
        assert_eq!(staged(&seen, &v(NEW)), Ok(Break(Staged::Rejected)));
        seen.controller.spec.rollout.rejected.clear();
        seen.revisions[1] = revision(NEW, 2, RevisionPhase::Failed);
        assert!(matches!(staged(&seen, &v(NEW)), Err(Error::Failed { .. })));
        seen.controller.spec.rollout.active = Some(v(NEW));
        assert!(matches!(live(&seen, &v(NEW)), Err(Error::Failed { .. })));
        seen.controller.status.as_mut().unwrap().active = Some(v(NEW));
        assert_eq!(live(&seen, &v(NEW)), Ok(Break(())));
    }

    #[test]
    fn a_wait_for_what_somebody_must_do_ends_with_what_that_is() {
        let mut seen = seen();
        seen.controller.spec.rollout.active = Some(v(NEW));
        let status = seen.controller.status.as_mut().unwrap();
        (status.active, status.candidate) = (None, None);
        seen.revisions[1] = revision(NEW, 2, RevisionPhase::Loading);
        for (kind, holds, reason, ends) in [
            ("Degraded", true, "ServiceAccountMissing", true),
            ("Progressing", true, "KindMissing", true),
            ("Degraded", true, "ConfigRefused", true),
            ("Degraded", true, "GuestBreaksDown", false),
            ("Progressing", true, "Staging", false),
            ("Ready", false, "ServiceAccountMissing", false),
        ] {
            let told =
                vec![condition(kind, holds, reason, "kubectl create serviceaccount x", None)];
            seen.controller.status.as_mut().unwrap().conditions = told;
            for answer in [staged(&seen, &v(NEW)).map(|_| ()), live(&seen, &v(NEW)).map(|_| ())] {
                assert_eq!(answer.is_err(), ends, "{reason}");
                let said = answer.err().map(|error| error.to_string());
                assert!(said.is_none_or(|said| said.contains("kubectl create serviceaccount x")));
            }
        }
        let old = vec![condition("Degraded", true, "ServiceAccountMissing", "", None)];
        seen.controller.status.as_mut().unwrap().conditions = old;
        seen.controller.metadata.generation = Some(9);
        assert_eq!(staged(&seen, &v(NEW)), Ok(Continue(())), "the host has not looked again yet");
    }

    #[test]
    fn an_edit_by_somebody_else_ends_a_wait() {
        let mut seen = seen();
        seen.controller.spec.rollout.active = Some("web-other".into());
        assert_eq!(live(&seen, &v(NEW)), Err(Error::OtherDecision("web".into())));
        assert_eq!(gone(&seen, &v(NEW)), Err(Error::OtherDecision("web".into())));
        seen.controller.status.as_mut().unwrap().candidate = None;
        seen.controller.spec.module.digest = OLD.into();
        assert_eq!(staged(&seen, &v(NEW)), Err(Error::OtherModule("web".into())));
    }

    #[test]
    fn an_aborted_candidate_is_gone_once_the_host_has_read_it() {
        let mut seen = seen();
        seen.controller.spec.rollout.rejected = vec![v(NEW)];
        seen.controller.metadata.generation = Some(4);
        assert_eq!(gone(&seen, &v(NEW)), Ok(Continue(())));
        let status = seen.controller.status.as_mut().unwrap();
        status.candidate = None;
        assert_eq!(gone(&seen, &v(NEW)), Ok(Continue(())), "the status is older than the patch");
        seen.controller.status.as_mut().unwrap().observed_generation = Some(4);
        assert_eq!(gone(&seen, &v(NEW)), Ok(Break(())));
    }

    #[test]
    fn a_wait_that_takes_too_long_says_what_is_missing() {
        let mut seen = seen();
        let text = overdue(&seen, 4, &v(NEW));
        assert!(text.contains("generation 4, the host has read 3"), "{text}");
        let status = seen.controller.status.as_mut().unwrap();
        status.conditions = vec![
            condition("Ready", true, "Running", "fine", None),
            condition("Degraded", true, "MissingRight", "apply this:\nkind: Role", None),
        ];
        let text = overdue(&seen, 3, &v(NEW));
        assert!(text.contains("MissingRight: apply this:\nkind: Role"), "{text}");
        assert!(!text.contains("fine"), "{text}");
    }
}
