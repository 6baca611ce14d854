//! Which Events a change of a controller's status is worth; pure.
//!
//! Invariant: `a_swap_is_told_once_and_by_its_name`.

use super::status::{FAILING, GATED, HOLDS};
use crate::{
    apiserver::Identity,
    events::Event,
    model::{
        crd::{self, WasmController, WasmControllerStatus},
        object::{ObjectReference, Severity},
    },
};

/// The events between two statuses of `controller`.
pub(super) fn between(
    controller: &WasmController,
    (old, new): (&WasmControllerStatus, &WasmControllerStatus),
    passed_over: Option<String>,
) -> Vec<Event> {
    let mut events = vec![];
    let mut say = |severity, reason: &str, action: &str, note: String| {
        events.push(event(controller, severity, reason, action, note));
    };
    if let Some((reason, action, note)) = of_swap(old, new) {
        say(Severity::Normal, reason, action, note);
    }
    if let Some(candidate) = new.candidate.as_ref().filter(|_| old.candidate != new.candidate) {
        say(
            Severity::Normal,
            "CandidateReady",
            "Stage",
            format!("{candidate} is staged and waits for its promotion"),
        );
    }
    let degraded = |status: &WasmControllerStatus| {
        let found = status.conditions.iter().find(|c| c.type_ == "Degraded" && c.status == "True");
        found.map(|condition| (condition.reason.clone(), condition.message.clone()))
    };
    if let Some((reason, message)) = degraded(new).filter(|new| degraded(old).as_ref() != Some(new))
    {
        say(Severity::Warning, &reason, "Keep", message);
    }
    let failing = |status: &WasmControllerStatus| {
        let found = status.conditions.iter().find(|condition| condition.type_ == FAILING);
        found.map(|condition| condition.message.clone())
    };
    if let (Some(message), None) = (failing(new), failing(old)) {
        say(Severity::Warning, FAILING, "Keep", message);
    }
    if let Some(message) = passed_over {
        say(Severity::Warning, "GatesPassedOver", "Promote", message);
    }
    if let Some(message) = held(old, new) {
        say(Severity::Warning, HOLDS, "Plan", message);
    }
    if new.phase != old.phase && new.phase == crd::Phase::Suspended {
        say(
            Severity::Normal,
            "Suspended",
            "Suspend",
            "no new runs until spec.suspend is false".to_owned(),
        );
    }
    events
}

/// What has become live.
fn of_swap(
    old: &WasmControllerStatus,
    new: &WasmControllerStatus,
) -> Option<(&'static str, &'static str, String)> {
    let active = new.active.as_ref().filter(|_| old.active != new.active)?;
    Some(match &old.active {
        None => ("Promoted", "Promote", format!("{active} is the first live revision")),
        Some(before) if old.previous.as_ref() == Some(active) => {
            ("RolledBack", "RollBack", format!("back to {active} from {before}"))
        }
        Some(before) => ("Promoted", "Promote", format!("{active} has replaced {before}")),
    })
}

/// A gate that has begun to hold.
fn held(old: &WasmControllerStatus, new: &WasmControllerStatus) -> Option<String> {
    let holds = |status: &WasmControllerStatus| {
        let mut all = status.conditions.iter();
        all.find(|one| one.type_ == GATED && one.reason == HOLDS).map(|one| one.message.clone())
    };
    holds(new).filter(|_| holds(old).is_none())
}

/// The warning of a deleted controller whose objects still wait for its finalizer.
///
/// Without a count, because nobody could count them.
pub(super) fn left_behind(
    controller: &WasmController,
    count: Option<usize>,
    finalizer: &str,
) -> Event {
    let carriers = match count {
        Some(1) => "1 object still carries".to_owned(),
        Some(count) => format!("{count} objects still carry"),
        None => "objects that could not be counted may still carry".to_owned(),
    };
    let note = format!(
        "{carriers} the finalizer {finalizer}, which nobody removes now: make the controller again, or remove it by hand"
    );
    event(controller, Severity::Warning, "FinalizersLeft", "Delete", note)
}

/// The warning that objects outside of a smaller scope still wait for the finalizer.
pub(super) fn left_outside(controller: &WasmController, count: usize, finalizer: &str) -> Event {
    let carriers =
        if count == 1 { "1 object carries".to_owned() } else { format!("{count} objects carry") };
    let note = format!(
        "{carriers} the finalizer {finalizer} in namespaces that spec.scope no longer names, and nobody removes it there now: name the namespaces again until those objects are gone, or remove it by hand"
    );
    event(controller, Severity::Warning, "FinalizersLeft", "Scope", note)
}

fn event(
    controller: &WasmController,
    severity: Severity,
    reason: &str,
    action: &str,
    note: String,
) -> Event {
    let meta = &controller.metadata;
    Event {
        identity: Identity::Host,
        controller: crd::full_name(meta),
        regarding: ObjectReference {
            kind: crd::own_watch("WasmController").kind,
            namespace: meta.namespace.clone(),
            name: meta.name.clone().unwrap_or_default(),
        },
        uid: meta.uid.clone(),
        severity,
        reason: reason.to_owned(),
        action: action.to_owned(),
        note,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_swap_is_told_once_and_by_its_name() {
        let controller = WasmController::new("web", crd::WasmControllerSpec::default());
        let status = |active: &str, previous: Option<&str>| WasmControllerStatus {
            active: Some(active.to_owned()),
            previous: previous.map(str::to_owned),
            ..WasmControllerStatus::default()
        };
        let reasons = |old: &WasmControllerStatus, new: &WasmControllerStatus| {
            between(&controller, (old, new), None)
                .into_iter()
                .map(|event| event.reason)
                .collect::<Vec<_>>()
        };
        let (v1, v2) = (status("v1", None), status("v2", Some("v1")));
        assert_eq!(reasons(&WasmControllerStatus::default(), &v1), ["Promoted"]);
        assert_eq!(reasons(&v1, &v2), ["Promoted"]);
        assert_eq!(reasons(&v2, &v1), ["RolledBack"]);
        assert!(reasons(&v2, &v2).is_empty());
    }
}
