//! What a WasmController and its WasmRevisions say of themselves; pure.
//!
//! Invariants: `nothing_new_is_the_same_status`, `every_trouble_is_said_with_its_remedy`,
//! `failing_objects_are_told_and_the_controller_stays_ready`.

use serde_json::Value;

use super::{
    primaries::Sharing,
    refusal::{LONG, Refusal},
    unfit::Unfit,
};
use crate::{
    access::view::WatchFailure,
    controller::{
        Trouble,
        rollout::{Decision, Problem},
    },
    model::{
        crd::{
            ModuleStatus, Phase, RevisionPhase, WasmController, WasmControllerStatus,
            WasmRevisionStatus, condition, set_condition,
        },
        kind::Kind,
    },
    preview::gates::Held,
    text::{MESSAGE, NAME, cut},
};

/// The largest manifest that is shown.
const MANIFEST: usize = 64 << 10;
/// The condition of a controller some of whose objects' runs keep failing.
pub(super) const FAILING: &str = "ObjectsFailing";
/// The condition of a controller whose next revision its gates hold.
pub(super) const GATED: &str = "Gated";
/// Its reason, if a gate is known to hold.
pub(super) const HOLDS: &str = "GateHolds";
/// The condition of a controller whose primary kind has no fit place for the condition `Accepted`.
const ACCEPTED: &str = "AcceptedWritable";

/// Where a revision stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It can run.
    Ready,
    /// It is being staged, or waits for something.
    Staging(Option<Refusal>),
    /// It was refused.
    Failed(Refusal),
}

/// What stands before the revision that would go live next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Gated {
    pub(super) revision: String,
    /// The gates that hold, or cannot be judged yet.
    pub(super) held: Vec<Held>,
    /// Whether they hold a promotion by hand as well.
    pub(super) enforced: bool,
    /// What its plan came to.
    pub(super) summary: Option<String>,
}

impl Gated {
    /// Whether nobody can promote it now.
    pub(super) fn holds(&self) -> bool {
        self.enforced && !self.held.is_empty()
    }

    /// What to say if it goes live all the same.
    pub(super) fn passed_over(&self) -> Option<String> {
        (!self.held.is_empty()).then(|| {
            let words = self.words();
            format!(
                "{} was promoted by hand over its gates: {}",
                self.revision,
                cut(&words, MESSAGE)
            )
        })
    }

    fn words(&self) -> String {
        let gates: Vec<_> =
            self.held.iter().map(|held| format!("{}: {}", held.gate, held.text)).collect();
        gates.join("; ")
    }
}

/// What is known of a controller.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "facts that do not exclude each other")]
pub(super) struct Facts<'a> {
    pub(super) controller: &'a WasmController,
    pub(super) decision: &'a Decision,
    pub(super) desired: &'a str,
    pub(super) desired_standing: Option<Standing>,
    /// What the spec's image was resolved to.
    pub(super) module: Option<ModuleStatus>,
    pub(super) active_standing: Option<Standing>,
    /// Grows with each change of the active revision.
    pub(super) generation: i64,
    pub(super) primary: Option<Kind>,
    pub(super) finalizer: Option<String>,
    /// Who else reconciles its primary kind.
    pub(super) sharing: Sharing,
    /// The ServiceAccount does not exist.
    pub(super) account_missing: bool,
    /// Who has its primary kind instead of it.
    pub(super) conflict: Option<String>,
    /// What its runs and its watches tell.
    pub(super) trouble: Trouble,
    /// What is missing to write Events and the condition `Accepted`.
    pub(super) unheard: Option<String>,
    /// The spec asks for more than the host gives.
    pub(super) over_ceiling: Option<String>,
    /// Why the host cannot say on an object that the guest refuses it.
    pub(super) unfit: Option<Unfit>,
    /// The stored bytes of the active revision are gone.
    pub(super) module_lost: bool,
    pub(super) deleting: bool,
    /// What its end waits for, besides the last runs.
    pub(super) held: Option<String>,
    /// Why the spec's config cannot be used.
    pub(super) unusable: Option<&'a str>,
    /// What stands before the revision that would go live next.
    pub(super) gated: Option<&'a Gated>,
    /// Why the WasmRevision of the spec could not be made.
    pub(super) not_made: Option<&'a str>,
    /// The WasmRevision of the live revision is gone, and it is not loaded.
    pub(super) active_gone: bool,
}

/// One thing to say: a CamelCase word, and for people.
type Saying = (&'static str, String);

impl Facts<'_> {
    /// The whole status.
    pub(super) fn status(&self) -> WasmControllerStatus {
        let old = self.controller.status.clone().unwrap_or_default();
        let generation = self.controller.metadata.generation;
        let trouble = self.trouble();
        let mut status = WasmControllerStatus {
            observed_generation: generation,
            phase: self.phase(),
            message: Some(cut(&self.message(trouble.as_ref()), LONG).into_owned()),
            active: self.decision.active.clone(),
            candidate: self.decision.candidate.clone(),
            previous: self.decision.previous.clone(),
            executor_generation: self.generation,
            module: self.module.clone(),
            primary: self.primary.clone(),
            finalizer: self.finalizer.clone(),
            shares_primary_with: self.sharing.with.clone(),
            shares_primary_elsewhere: i64::try_from(self.sharing.elsewhere).unwrap_or(i64::MAX),
            failing_objects: self
                .trouble
                .failing
                .as_ref()
                .and_then(|it| i64::try_from(it.objects).ok()),
            conditions: old.conditions,
        };
        let (ready, why) = self.ready(trouble.as_ref());
        let (progressing, how) = self.progressing();
        let well = ("AsExpected", "nothing keeps the controller from working".to_owned());
        let lasting = [
            ("Ready", ready, Some(why)),
            ("Progressing", progressing, Some(how)),
            ("Degraded", trouble.is_some(), Some(trouble.unwrap_or(well))),
        ];
        for (kind, holds, saying) in lasting.into_iter().chain(self.passing()) {
            match saying {
                Some((reason, message)) => set_condition(
                    &mut status.conditions,
                    condition(kind, holds, reason, &message, generation),
                ),
                None => status.conditions.retain(|condition| condition.type_ != kind),
            }
        }
        status
    }

    /// What is said only while it is so, with whether the condition then holds.
    fn passing(&self) -> [(&'static str, bool, Option<Saying>); 5] {
        // Objects' trouble is not the controller's: it is told apart.
        let failing = self
            .trouble
            .failing
            .as_ref()
            .map(|failing| ("RunsFail", cut(&failing.message, MESSAGE).into_owned()));
        let lost = self.module_lost.then(|| {
            let message = "the active revision runs, but its stored component is gone: after a restart of the host it could not be loaded. Send it again: nagaya push";
            ("Lost", message.to_owned())
        });
        let unfit = self.unfit.as_ref().map(|unfit| (unfit.reason, unfit.message.clone()));
        let unheard = self.unheard.as_ref().map(|text| {
            let text = format!(
                "the controller runs, but cannot tell people what became of their objects, by Events and by the condition Accepted: {text}"
            );
            ("Forbidden", text)
        });
        [
            (GATED, true, self.held()),
            (FAILING, true, failing),
            ("ModuleStored", false, lost),
            (ACCEPTED, false, unfit),
            ("Reporting", false, unheard),
        ]
    }

    /// Which gates hold the revision that would go live next.
    fn held(&self) -> Option<Saying> {
        let gated = self.gated.filter(|gated| !gated.held.is_empty())?;
        let waits = gated.held.iter().all(|held| held.waits);
        let whom = if gated.enforced {
            "nobody can promote it before that"
        } else {
            "a promotion by hand passes over it"
        };
        let text = format!(
            "{} is held by its gates, and {whom}: {}. {} makes a plan and shows it",
            gated.revision,
            cut(&gated.words(), MESSAGE),
            self.command("plan")
        );
        Some((if waits { "GatesWait" } else { HOLDS }, text))
    }

    fn phase(&self) -> Phase {
        let lost_its_way = self.lost_its_way();
        match (&self.decision.active, &self.active_standing) {
            _ if self.deleting => Phase::Deleting,
            _ if self.controller.spec.suspend => Phase::Suspended,
            (Some(_), Some(Standing::Ready)) if !lost_its_way => Phase::Running,
            (Some(_), Some(Standing::Staging(None)) | None) if !lost_its_way => Phase::Staging,
            (Some(_), _) => Phase::Degraded,
            (None, _) => match &self.desired_standing {
                Some(Standing::Staging(None) | Standing::Ready) => Phase::Staging,
                _ => Phase::Pending,
            },
        }
    }

    /// Whether a revision that could run does not do its work.
    fn lost_its_way(&self) -> bool {
        let words = [
            &self.conflict,
            &self.trouble.forbidden,
            &self.trouble.outdated,
            &self.trouble.breakdown,
        ];
        let is_told = words.into_iter().any(Option::is_some);
        self.account_missing || self.active_gone || self.trouble.blind.is_some() || is_told
    }

    fn message(&self, trouble: Option<&Saying>) -> String {
        if self.deleting {
            let usual = || "waiting for the last runs to end".to_owned();
            return self.held.clone().unwrap_or_else(usual);
        }
        if let Some((_, message)) = trouble {
            return message.clone();
        }
        if let Some(Standing::Staging(waiting)) = &self.desired_standing {
            let message = waiting.as_ref().map(|refusal| refusal.message.clone());
            return message.unwrap_or_else(|| format!("{} is being staged", self.desired));
        }
        if self.is_on_its_way() {
            return format!("{} is about to be staged", self.desired);
        }
        if self.controller.spec.suspend {
            return "suspended: no new runs until spec.suspend is false".to_owned();
        }
        match (&self.decision.candidate, &self.decision.active) {
            (Some(candidate), _) => self.waiting(candidate),
            (None, Some(active)) => match &self.trouble.failing {
                Some(failing) => format!("{active} is live, but {}", failing.message),
                None => format!("{active} is live"),
            },
            (None, None) => "no revision is live: the one of the spec is rejected".to_owned(),
        }
    }

    fn waiting(&self, candidate: &str) -> String {
        if let Some((_, held)) = self.held() {
            return held;
        }
        let summary = self.gated.filter(|gated| gated.revision == candidate);
        let summary = summary.and_then(|gated| gated.summary.as_deref());
        let plan = summary.map(|summary| format!("; it {summary}")).unwrap_or_default();
        format!("{candidate} is staged and waits: {}{plan}", self.command("promote"))
    }

    fn ready(&self, trouble: Option<&Saying>) -> (bool, Saying) {
        if self.deleting {
            let usual = || "the controller is being deleted".to_owned();
            return (false, ("Deleting", self.held.clone().unwrap_or_else(usual)));
        }
        if self.lost_its_way() {
            let (reason, message) = trouble.cloned().unwrap_or(("Degraded", String::new()));
            return (false, (reason, message));
        }
        if self.controller.spec.suspend {
            return (false, ("Suspended", "spec.suspend is set: no new runs".to_owned()));
        }
        match (&self.decision.active, &self.active_standing) {
            (Some(active), Some(Standing::Ready)) => {
                (true, ("Running", format!("{active} is live")))
            }
            (Some(active), Some(Standing::Failed(refusal) | Standing::Staging(Some(refusal)))) => {
                (false, (refusal.reason, format!("{active} cannot run: {}", refusal.message)))
            }
            (Some(active), _) => (false, ("Loading", format!("{active} is being loaded"))),
            (None, _) => (false, ("NoRevision", "no revision has been staged yet".to_owned())),
        }
    }

    fn progressing(&self) -> (bool, Saying) {
        match (&self.desired_standing, &self.decision.candidate) {
            (Some(Standing::Staging(None)), _) => (
                true,
                ("Staging", format!("{} is being compiled, described and synced", self.desired)),
            ),
            (Some(Standing::Staging(Some(refusal))), _) => {
                (true, (refusal.reason, refusal.message.clone()))
            }
            (Some(Standing::Failed(refusal)), _) => {
                (false, (refusal.reason, format!("{}: {}", self.desired, refusal.message)))
            }
            (_, Some(candidate)) => {
                (false, ("CandidateReady", format!("{candidate} waits for its promotion")))
            }
            _ => self.at_rest(),
        }
    }

    /// What is so where nothing is being staged and nothing waits for its promotion.
    fn at_rest(&self) -> (bool, Saying) {
        let desired = self.desired;
        if let Some(why) = self.unusable {
            return (false, ("ConfigRefused", why.to_owned()));
        }
        if let Some(why) = self.not_made {
            return (true, ("RevisionNotMade", self.unmade(why)));
        }
        if self.account_missing && self.desired_standing.is_none() {
            return (
                true,
                ("ServiceAccountMissing", format!("{desired} waits for its ServiceAccount")),
            );
        }
        match &self.decision.active {
            Some(active) if self.active_standing != Some(Standing::Ready) => {
                (true, ("Loading", format!("{active} is being loaded")))
            }
            Some(active) if active == desired => {
                (false, ("Complete", format!("{desired} is live")))
            }
            _ if self.is_rejected() => {
                (false, ("Complete", format!("{desired}, the revision of the spec, is rejected")))
            }
            _ => (true, ("Staging", format!("{desired} is about to be staged"))),
        }
    }

    fn is_rejected(&self) -> bool {
        self.controller.spec.rollout.rejected.iter().any(|name| name == self.desired)
    }

    /// Whether the revision of the spec is wanted, and nothing has been begun for it yet.
    fn is_on_its_way(&self) -> bool {
        self.desired_standing.is_none() && !self.desired.is_empty() && !self.is_rejected()
    }

    fn unmade(&self, why: &str) -> String {
        format!(
            "the WasmRevision {} could not be made, and the host tries again: {why}",
            self.desired
        )
    }

    /// What keeps the controller from doing what its team wants, most urgent first.
    fn trouble(&self) -> Option<Saying> {
        if self.account_missing {
            return Some(missing(self.controller));
        }
        if let Some(conflict) = &self.conflict {
            return Some(("Conflict", conflict.clone()));
        }
        if let (Some(active), true) = (&self.decision.active, self.active_gone) {
            let text = format!(
                "the live revision {active} cannot be loaded: it has no WasmRevision any more that this host can read. Name another one: {}",
                self.command("promote")
            );
            return Some(("RevisionGone", text));
        }
        if let Some(forbidden) = &self.trouble.forbidden {
            return Some(("Forbidden", format!("a run was refused: {}", cut(forbidden, LONG))));
        }
        if let (Some(active), Some(Standing::Failed(refusal) | Standing::Staging(Some(refusal)))) =
            (&self.decision.active, &self.active_standing)
        {
            return Some((
                refusal.reason,
                format!("the live revision {active} cannot run: {}", refusal.message),
            ));
        }
        if let Some(blind) = &self.trouble.blind {
            return Some(unwatched(blind));
        }
        if let (Some(active), Some(gap)) = (&self.decision.active, &self.trouble.outdated) {
            let text = format!(
                "{active} writes what the cluster's schema does not have: {}. Apply the CustomResourceDefinition that it was built with. {}",
                cut(gap, MESSAGE),
                self.remedy()
            );
            return Some(("SchemaMismatch", text));
        }
        if let (Some(active), Some(breakdown)) = (&self.decision.active, &self.trouble.breakdown) {
            let words = cut(breakdown, MESSAGE);
            return Some(("GuestBreaksDown", format!("{active}: {words}. {}", self.remedy())));
        }
        if let Some(fight) = &self.trouble.fight {
            return Some(("Fighting", cut(fight, MESSAGE).into_owned()));
        }
        // What the gates hold is told by itself, and is no trouble of what runs.
        let problem = self.decision.problem.as_ref();
        if let Some(problem) = problem.filter(|it| !matches!(it, Problem::Gated(_))) {
            return Some(told(problem));
        }
        if let Some(why) = self.unusable {
            return Some(("ConfigRefused", why.to_owned()));
        }
        if let Some(why) = self.not_made {
            return Some(("RevisionNotMade", self.unmade(why)));
        }
        if let Some(Standing::Failed(refusal)) = &self.desired_standing {
            return Some((refusal.reason, format!("{}: {}", self.desired, refusal.message)));
        }
        self.over_ceiling.clone().map(|text| ("LimitTooHigh", text))
    }
}

impl Facts<'_> {
    /// How a verb of the command line is typed for this controller.
    fn command(&self, verb: &str) -> String {
        let meta = &self.controller.metadata;
        let name = meta.name.as_deref().unwrap_or_default();
        format!("nagaya {verb} {name} -n {}", meta.namespace.as_deref().unwrap_or_default())
    }

    /// What a team does about a live revision that keeps breaking down: nothing happens by itself.
    fn remedy(&self) -> String {
        let meta = &self.controller.metadata;
        let name = meta.name.as_deref().unwrap_or_default();
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        match &self.decision.previous {
            Some(previous) => format!(
                "It stays live until you go back to {previous}, nagaya rollback {name} -n {namespace}, or push a repaired component"
            ),
            None => format!(
                "It stays live until you push a repaired component and promote it: nagaya push {name} -n {namespace} FILE"
            ),
        }
    }
}

/// What goes on, and who can do what about it: the watch itself is asked for again within seconds.
fn missing(controller: &WasmController) -> Saying {
    let namespace = controller.metadata.namespace.as_deref().unwrap_or_default();
    let name = &controller.spec.service_account_name;
    let text = format!(
        "there is no ServiceAccount {namespace}/{name}, and without it nothing runs: kubectl create serviceaccount {name} -n {namespace}"
    );
    ("ServiceAccountMissing", text)
}

fn unwatched(WatchFailure { kind, code, message, .. }: &WatchFailure) -> Saying {
    let (kind, message) = (kind.to_string(), cut(message, MESSAGE));
    let kind = cut(&kind, NAME);
    let failing = |why: &str| {
        format!(
            "{kind} cannot be watched at present, so its changes are not seen: {why}; the host asks again by itself"
        )
    };
    match code {
        404 => (
            "KindNotServed",
            format!(
                "the API server does not serve {kind} any more, so its changes are not seen: apply its CustomResourceDefinition again; the watch comes back by itself"
            ),
        ),
        401 | 403 => (
            "WatchForbidden",
            format!(
                "{kind} may not be watched any more, so its changes are not seen: {message}; the watch comes back by itself when it may be"
            ),
        ),
        // An answer that is none: see `Fault::number`.
        0 => ("WatchFailing", failing(&message)),
        _ => ("WatchFailing", failing(&format!("{code} {message}"))),
    }
}

fn told(problem: &Problem) -> Saying {
    // The names are the team's, and no longer than the CRD lets them be.
    match problem {
        Problem::Unknown(name) => (
            "UnknownRevision",
            format!(
                "spec.rollout.active names {name}, which is no revision of this controller; what runs goes on"
            ),
        ),
        Problem::Waiting(name) => (
            "RevisionNotReady",
            format!(
                "spec.rollout.active names {name}, which is not staged yet; what runs goes on until it is"
            ),
        ),
        Problem::Failed(name) => (
            "RevisionFailed",
            format!(
                "spec.rollout.active names {name}, which was refused; what runs goes on. Its status says why: kubectl get wasmrevision {name} -o yaml"
            ),
        ),
        Problem::Gated(name) => (
            "Gated",
            format!("spec.rollout.active names {name}, which its gates hold; what runs goes on"),
        ),
        Problem::NothingElse(name) => (
            "NothingElse",
            format!(
                "the live revision {name} is rejected, but there is none to go back to; name one in spec.rollout.active, or push another"
            ),
        ),
    }
}

/// A revision's status.
pub(super) fn revision(
    old: Option<&WasmRevisionStatus>,
    (standing, is_active): (Option<&Standing>, bool),
    breakdown: Option<&str>,
    manifest: Option<Value>,
) -> WasmRevisionStatus {
    let old = old.cloned().unwrap_or_default();
    let (phase, message) = match standing {
        Some(Standing::Ready) if is_active => (RevisionPhase::Active, None),
        Some(Standing::Ready) => (RevisionPhase::Ready, None),
        Some(Standing::Staging(None)) => (RevisionPhase::Loading, None),
        Some(Standing::Staging(Some(refusal))) if refusal.lacks_bytes() => {
            (RevisionPhase::Pending, Some(refusal))
        }
        Some(Standing::Staging(Some(refusal))) => (RevisionPhase::Loading, Some(refusal)),
        Some(Standing::Failed(refusal)) => (RevisionPhase::Failed, Some(refusal)),
        None => (RevisionPhase::Retired, None),
    };
    let (reason, text) = match (message, phase) {
        (Some(refusal), _) => (refusal.reason, refusal.message.clone()),
        (None, RevisionPhase::Active) => ("Active", "it is live".to_owned()),
        (None, RevisionPhase::Ready) => ("Ready", "it could go live at once".to_owned()),
        (None, RevisionPhase::Retired) => ("Retired", "it is history".to_owned()),
        (None, _) => ("Loading", "it is being compiled, described and synced".to_owned()),
    };
    let mut conditions = old.conditions;
    let ready = matches!(phase, RevisionPhase::Active | RevisionPhase::Ready);
    set_condition(&mut conditions, condition("Ready", ready, reason, &text, None));
    match breakdown {
        Some(breakdown) => {
            let breakdown = cut(breakdown, MESSAGE);
            let ill = condition("Degraded", true, "GuestBreaksDown", &breakdown, None);
            set_condition(&mut conditions, ill);
        }
        None => conditions.retain(|condition| condition.type_ != "Degraded"),
    }
    WasmRevisionStatus {
        phase,
        message: message.map(|_| text),
        manifest: manifest.or(old.manifest).filter(is_shown),
        plan: old.plan,
        shadow: old.shadow,
        was_live: old.was_live,
        conditions,
    }
}

/// A manifest is there to be read: a huge one would keep the rest from being stored.
fn is_shown(manifest: &Value) -> bool {
    manifest.to_string().len() <= MANIFEST
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{controller::health::Failing, model::crd};

    fn facts<'a>(controller: &'a WasmController, decision: &'a Decision) -> Facts<'a> {
        Facts {
            controller,
            decision,
            desired: "web-2",
            desired_standing: Some(Standing::Ready),
            module: None,
            active_standing: Some(Standing::Ready),
            generation: 1,
            primary: None,
            finalizer: None,
            sharing: Sharing::default(),
            account_missing: false,
            conflict: None,
            unheard: None,
            over_ceiling: None,
            trouble: Trouble::default(),
            unfit: None,
            module_lost: false,
            deleting: false,
            held: None,
            unusable: None,
            gated: None,
            not_made: None,
            active_gone: false,
        }
    }

    fn controller() -> WasmController {
        let mut controller = WasmController::new("web", crd::WasmControllerSpec::default());
        controller.metadata.namespace = Some("demo".into());
        controller.spec.service_account_name = "web".into();
        controller
    }

    fn is(status: &WasmControllerStatus, kind: &str) -> (String, String) {
        let found = status.conditions.iter().find(|condition| condition.type_ == kind).unwrap();
        (found.status.clone(), found.reason.clone())
    }

    #[test]
    fn nothing_new_is_the_same_status() {
        let mut controller = controller();
        let decision = Decision {
            active: Some("web-1".into()),
            candidate: Some("web-2".into()),
            ..Decision::default()
        };
        let first = facts(&controller, &decision).status();
        assert_eq!(first.phase, Phase::Running);
        assert_eq!(
            first.message.as_deref(),
            Some("web-2 is staged and waits: nagaya promote web -n demo")
        );
        controller.status = Some(first.clone());
        assert_eq!(facts(&controller, &decision).status(), first);
        let told = revision(None, (Some(&Standing::Ready), true), None, None);
        assert_eq!(revision(Some(&told), (Some(&Standing::Ready), true), None, None), told);
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "every trouble on one page")]
    fn every_trouble_is_said_with_its_remedy() {
        let controller = controller();
        let live = Decision { active: Some("web-1".into()), ..Decision::default() };
        let failed = Standing::Failed(Refusal::failed("CompileFailed", "too big"));
        let gone = WatchFailure {
            kind: Kind::new("v1", "Gadget"),
            code: 404,
            message: "no".into(),
            may_pass: false,
        };
        let base = || facts(&controller, &live);
        for (facts, phase, ready, reason, words) in [
            (
                Facts { account_missing: true, ..base() },
                Phase::Degraded,
                "False",
                "ServiceAccountMissing",
                "kubectl create serviceaccount web -n demo",
            ),
            (
                Facts {
                    trouble: Trouble { forbidden: Some("x may not".into()), ..Trouble::default() },
                    ..base()
                },
                Phase::Degraded,
                "False",
                "Forbidden",
                "x may not",
            ),
            (
                Facts { conflict: Some("x/other has it".into()), ..base() },
                Phase::Degraded,
                "False",
                "Conflict",
                "x/other has it",
            ),
            (
                Facts { over_ceiling: Some("ask for less".into()), ..base() },
                Phase::Running,
                "True",
                "LimitTooHigh",
                "ask for less",
            ),
            (
                Facts {
                    trouble: Trouble {
                        breakdown: Some("5 runs in a row broke down".into()),
                        ..Trouble::default()
                    },
                    ..base()
                },
                Phase::Degraded,
                "False",
                "GuestBreaksDown",
                "web-1: 5 runs in a row broke down. It stays live until you push a repaired component",
            ),
            (
                Facts {
                    trouble: Trouble {
                        outdated: Some(".status.x: field not declared".into()),
                        ..Trouble::default()
                    },
                    ..base()
                },
                Phase::Degraded,
                "False",
                "SchemaMismatch",
                "does not have: .status.x: field not declared. Apply the CustomResourceDefinition",
            ),
            (
                Facts {
                    trouble: Trouble {
                        fight: Some("another writer keeps".into()),
                        ..Trouble::default()
                    },
                    ..base()
                },
                Phase::Running,
                "True",
                "Fighting",
                "another writer keeps",
            ),
            (
                Facts { trouble: Trouble { blind: Some(gone), ..Trouble::default() }, ..base() },
                Phase::Degraded,
                "False",
                "KindNotServed",
                "apply its CustomResourceDefinition again",
            ),
            (
                Facts { unusable: Some("spec.config is too deep"), ..base() },
                Phase::Running,
                "True",
                "ConfigRefused",
                "spec.config is too deep",
            ),
            (
                Facts { not_made: Some("exceeded quota"), ..base() },
                Phase::Running,
                "True",
                "RevisionNotMade",
                "the WasmRevision web-2 could not be made, and the host tries again: exceeded quota",
            ),
            (
                Facts { active_gone: true, active_standing: None, ..base() },
                Phase::Degraded,
                "False",
                "RevisionGone",
                "it has no WasmRevision any more",
            ),
            (
                Facts { desired_standing: Some(failed.clone()), ..base() },
                Phase::Running,
                "True",
                "CompileFailed",
                "web-2: too big",
            ),
            (
                Facts { active_standing: Some(failed.clone()), ..base() },
                Phase::Degraded,
                "False",
                "CompileFailed",
                "the live revision web-1 cannot run",
            ),
        ] {
            let status = facts.status();
            assert_eq!(status.phase, phase, "{words}");
            assert_eq!(is(&status, "Ready").0, ready, "{words}");
            assert_eq!(is(&status, "Degraded"), ("True".to_owned(), reason.to_owned()));
            assert!(status.message.unwrap().contains(words));
        }
        let unknown = Decision { problem: Some(Problem::Unknown("web-9".into())), ..live.clone() };
        let status = facts(&controller, &unknown).status();
        assert_eq!(is(&status, "Degraded").1, "UnknownRevision");
        assert_eq!(status.phase, Phase::Running, "what runs goes on");
    }

    #[test]
    fn failing_objects_are_told_and_the_controller_stays_ready() {
        let mut controller = controller();
        let live = Decision { active: Some("web-1".into()), ..Decision::default() };
        let failing =
            Failing { objects: 3, message: "the runs of 3 objects keep failing".to_owned() };
        let told = Facts {
            trouble: Trouble { failing: Some(failing), ..Trouble::default() },
            ..facts(&controller, &live)
        }
        .status();
        assert_eq!((told.phase, told.failing_objects), (Phase::Running, Some(3)));
        assert_eq!(is(&told, "Ready").0, "True");
        assert_eq!(is(&told, "Degraded").0, "False");
        assert_eq!(is(&told, FAILING), ("True".to_owned(), "RunsFail".to_owned()));
        let message = told.message.clone().unwrap();
        assert_eq!(message, "web-1 is live, but the runs of 3 objects keep failing");
        controller.status = Some(told);
        let well = facts(&controller, &live).status();
        assert_eq!(well.failing_objects, None);
        assert!(well.conditions.iter().all(|condition| condition.type_ != FAILING));
    }

    #[test]
    fn progressing_says_what_is_so() {
        let controller = controller();
        let live = |name: &str| Decision { active: Some(name.into()), ..Decision::default() };
        let (first, second, none) = (live("web-1"), live("web-2"), Decision::default());
        let said = |facts: Facts<'_>| {
            let status = facts.status();
            let found = status.conditions.iter().find(|c| c.type_ == "Progressing").unwrap();
            (found.status.clone(), found.message.clone())
        };
        let base = |controller, decision| facts(controller, decision);
        let unbegun = |facts| Facts { desired_standing: None, ..facts };
        for (facts, progressing, words) in [
            (base(&controller, &second), "False", "web-2 is live"),
            (
                Facts { active_standing: None, ..base(&controller, &second) },
                "True",
                "web-2 is being loaded",
            ),
            (unbegun(base(&controller, &first)), "True", "web-2 is about to be staged"),
            (unbegun(base(&controller, &none)), "True", "web-2 is about to be staged"),
            (
                Facts { account_missing: true, ..unbegun(base(&controller, &none)) },
                "True",
                "web-2 waits for its ServiceAccount",
            ),
            (
                Facts {
                    desired_standing: Some(Standing::Staging(None)),
                    ..base(&controller, &first)
                },
                "True",
                "web-2 is being compiled, described and synced",
            ),
        ] {
            assert_eq!(said(facts), (progressing.to_owned(), words.to_owned()));
        }
        let mut rejecting = controller.clone();
        rejecting.spec.rollout.rejected = vec!["web-2".into()];
        let (progressing, words) = said(unbegun(facts(&rejecting, &first)));
        assert_eq!(
            (&*progressing, &*words),
            ("False", "web-2, the revision of the spec, is rejected")
        );
        let loading = Facts { active_standing: None, ..unbegun(facts(&rejecting, &first)) };
        assert_eq!(said(loading).1, "web-1 is being loaded");
    }

    #[test]
    fn a_status_fits_whatever_others_have_said() {
        let controller = controller();
        let decision = Decision { active: Some("web-1".into()), ..Decision::default() };
        let long = || Some("ß".repeat(500_000));
        let kind = Kind::new("v1", &"K".repeat(500_000));
        let refusal = Refusal::failed("DescribeFailed", "ß".repeat(450_000));
        let base = || facts(&controller, &decision);
        for facts in [
            Facts { trouble: Trouble { forbidden: long(), ..Trouble::default() }, ..base() },
            Facts { trouble: Trouble { breakdown: long(), ..Trouble::default() }, ..base() },
            Facts { trouble: Trouble { fight: long(), ..Trouble::default() }, ..base() },
            Facts {
                trouble: Trouble {
                    blind: Some(WatchFailure {
                        kind,
                        code: 403,
                        message: long().unwrap(),
                        may_pass: false,
                    }),
                    ..Trouble::default()
                },
                ..base()
            },
            Facts { desired_standing: Some(Standing::Failed(refusal.clone())), ..base() },
            Facts { active_standing: Some(Standing::Failed(refusal)), ..base() },
        ] {
            let status = facts.status();
            let size = serde_json::to_string(&status).unwrap().len();
            assert!(size < 100 << 10, "{size}");
            let least = super::super::least::bare(&status);
            assert!(serde_json::to_string(&least).unwrap().len() < 4 << 10);
            assert_eq!((&least.active, least.conditions.len()), (&status.active, 3));
        }
        let manifest = serde_json::json!({"finalizer": "x".repeat(900_000)});
        let breakdown = long();
        let standing = (Some(&Standing::Ready), true);
        let told = revision(None, standing, breakdown.as_deref(), Some(manifest));
        assert!(serde_json::to_string(&told).unwrap().len() < 8 << 10);
    }

    #[test]
    fn a_revision_waits_for_its_bytes() {
        let refusal = Refusal::without_bytes("push it");
        let status = revision(None, (Some(&Standing::Staging(Some(refusal))), false), None, None);
        assert_eq!(
            (status.phase, status.message.as_deref()),
            (RevisionPhase::Pending, Some("push it"))
        );
        assert_eq!(
            revision(Some(&status), (None, false), None, None).phase,
            RevisionPhase::Retired
        );
    }
}
