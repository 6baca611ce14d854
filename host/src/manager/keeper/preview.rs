//! The plans and the shadow of a controller's next revision: begun, told in its status, and judged by the gates.
//!
//! What is looked at is whatever would go live next: the revision that `spec.rollout.active` names, else the candidate. A
//! rollback is never held: to the revision that was live before nothing here applies.

use std::sync::Arc;

use serde_json::json;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tracing::{Instrument, trace_span};

use super::{
    super::{
        plan::{self, Plan},
        status::Gated,
    },
    Keeper,
    load::Task,
};
use crate::{
    controller::run::Executor,
    model::{
        crd::{WasmController, WasmRevision, canonical, hashed},
        object::ObjectKey,
        plan::{Enforcement, PlanLine, PlanPhase, PlanPolicy, PlanStatus, ShadowStatus},
    },
    preview::{Pair, gates, plan::Planner, shadow::Shadow},
};

/// A new value of it asks for a plan.
const ANNOTATION: &str = "nagaya.dev/plan";
/// Plans that are made for people at the same time and kept nowhere.
const ONES: usize = 4;

/// Somebody wants a plan, and to hear of it.
#[derive(Debug)]
pub struct PlanAsk {
    /// The revision; `None`: the one that would go live next.
    pub revision: Option<String>,
    /// Only this object; that plan is kept nowhere.
    pub object: Option<ObjectKey>,
    /// Where its lines go.
    pub lines: mpsc::Sender<PlanLine>,
}

/// What is under way.
#[derive(Default)]
pub(super) struct Trials {
    plan: Option<Trial<PlanStatus>>,
    shadow: Option<Trial<ShadowStatus>>,
    ones: JoinSet<()>,
}

struct Trial<S> {
    revision: String,
    /// What it is made of.
    of: String,
    told: watch::Receiver<S>,
    /// Of a shadow its share; of a plan the annotation that asked for it.
    setting: String,
    pair: Pair,
    _task: Task,
}

impl Trials {
    /// Returns when something has news.
    pub(super) async fn changed(&mut self) {
        async fn of<S>(trial: Option<&mut Trial<S>>) {
            if let Some(trial) = trial
                && trial.told.changed().await.is_ok()
            {
                return;
            }
            // One that has ended has told its last.
            std::future::pending::<()>().await;
        }
        tokio::select! {
            () = of(self.plan.as_mut()) => (),
            () = of(self.shadow.as_mut()) => (),
        }
    }

    /// Gives everything up.
    pub(super) fn end(&mut self) {
        *self = Self::default();
    }
}

impl Keeper {
    /// Which revision would go live next, of those that can run, if there is a live one to compare it with.
    fn next_up(
        &self,
        controller: &WasmController,
        plan: &Plan,
        known: &[WasmRevision],
    ) -> Option<String> {
        self.loads.ready(&plan::status(controller).active?)?;
        let mut next = next_names(controller, plan, known).into_iter();
        next.find(|name| self.loads.ready(name).is_some())
    }

    fn pair(&self, controller: &WasmController, revision: &str) -> Option<Pair> {
        let live: Arc<Executor> = self.loads.ready(&plan::status(controller).active?)?.clone();
        Some(Pair { candidate: self.loads.ready(revision)?.clone(), live })
    }

    /// Begins what is wanted and gives up what is not.
    pub(super) fn preview(
        &mut self,
        controller: &WasmController,
        plan: &Plan,
        known: &[WasmRevision],
    ) {
        while self.trials.ones.try_join_next().is_some() {}
        let next = self.next_up(controller, plan, known);
        let pair = next.as_ref().and_then(|next| self.pair(controller, next));
        let (Some(next), Some(pair)) = (next, pair) else {
            (self.trials.plan, self.trials.shadow) = (None, None);
            return;
        };
        let of = made_of(controller);
        let stands = |one: (&str, &str, &Pair)| one.0 == next && one.1 == of && one.2.is(&pair);
        self.trials.plan.take_if(|one| !stands((&one.revision, &one.of, &one.pair)));
        self.trials.shadow.take_if(|one| !stands((&one.revision, &one.of, &one.pair)));
        let revision = known.iter().find(|one| one.metadata.name.as_ref() == Some(&next));
        let Some(revision) = revision else { return };
        let stored = revision.status.clone().unwrap_or_default();
        self.begin_shadow(controller, (&next, &of), stored.shadow);
        let request = requested(controller);
        let running = self.trials.plan.as_ref();
        let is_asked_anew = |known: Option<&str>| {
            controller.spec.rollout.plan != PlanPolicy::Off
                && request.is_some()
                && request.as_deref() != known
        };
        if let Some(running) = running {
            if !is_asked_anew(Some(&running.setting)) {
                return;
            }
        } else if !wants(controller.spec.rollout.plan, stored.plan.as_deref(), &of)
            && !is_asked_anew(stored.plan.as_ref().and_then(|plan| plan.request.as_deref()))
        {
            return;
        }
        let goes_on = stored.plan.filter(|plan| {
            plan.of == of
                && matches!(plan.phase, PlanPhase::Running | PlanPhase::Interrupted)
                && plan.request == request
        });
        let from = goes_on.map_or_else(
            || PlanStatus { request: request.clone(), ..PlanStatus::default() },
            |plan| PlanStatus { phase: PlanPhase::Running, message: None, ..*plan },
        );
        self.begin_plan(controller, &next, (from, None));
    }

    fn begin_plan(
        &mut self,
        controller: &WasmController,
        revision: &str,
        (from, follower): (PlanStatus, Option<mpsc::Sender<PlanLine>>),
    ) {
        let Some(planner) = self.planner(controller, revision, follower) else { return };
        let of = made_of(controller);
        let against = planner.pair.live.name.clone();
        let from = PlanStatus { of: of.clone(), against, ..from };
        let (setting, pair) = (from.request.clone().unwrap_or_default(), planner.pair.clone());
        let (tell, told) = watch::channel(from.clone());
        let work = planner.run(from, tell).instrument(trace_span!("loop", of = "plan"));
        let task = tokio::spawn(work).abort_handle();
        tracing::info!(controller = %self.key, revision, "a plan is made");
        let revision = revision.to_owned();
        self.trials.plan = Some(Trial { revision, of, told, setting, pair, _task: Task(task) });
    }

    fn planner(
        &self,
        controller: &WasmController,
        revision: &str,
        follower: Option<mpsc::Sender<PlanLine>>,
    ) -> Option<Planner> {
        let pair = self.pair(controller, revision)?;
        let running = self.running.as_ref()?;
        running.bench.set_pace(controller.spec.limits.writes_per_minute);
        let (shared, bench) = (&running.controller.shared, running.bench.clone());
        let previewer = self.estate.host.previews.of(shared, running.limits(), bench);
        let gates = controller.spec.rollout.gates.clone().unwrap_or_default();
        let (protected, follower) = (gates.protected_paths, follower.map(Into::into));
        Some(Planner { previewer, pair, protected, follower, is_kept: true })
    }

    fn begin_shadow(
        &mut self,
        controller: &WasmController,
        (next, of): (&str, &str),
        stored: Option<ShadowStatus>,
    ) {
        let shadow = controller.spec.rollout.shadow.as_ref();
        let percent = shadow.map_or(0, |shadow| shadow.percent);
        let setting = percent.to_string();
        let is_it = |one: &Trial<_>| one.setting == setting;
        if percent == 0 || self.trials.shadow.as_ref().is_some_and(|one| !is_it(one)) {
            self.trials.shadow = None;
        }
        if percent == 0 || self.trials.shadow.is_some() {
            return;
        }
        let Some(planner) = self.planner(controller, next, None) else { return };
        let Some(running) = &self.running else { return };
        let ran = running.controller.ran();
        let Planner { previewer, pair, .. } = planner;
        let (against, kept) = (pair.live.name.clone(), pair.clone());
        let new = ShadowStatus { against, of: of.to_owned(), ..ShadowStatus::default() };
        let from = stored.filter(|stored| stored.of == of).unwrap_or(new);
        let (tell, told) = watch::channel(from.clone());
        let shadow = Shadow { previewer, pair, percent, ran };
        let work = shadow.run(from, tell).instrument(trace_span!("loop", of = "shadow"));
        let task = tokio::spawn(work).abort_handle();
        let (revision, of) = (next.to_owned(), of.to_owned());
        let pair = kept;
        self.trials.shadow = Some(Trial { revision, of, told, setting, pair, _task: Task(task) });
    }

    /// Begins a plan that somebody asks for; who cannot have one is told why.
    pub(super) fn answer(&mut self, ask: &PlanAsk) {
        let refused = match self.try_answer(ask) {
            Ok(()) => return,
            Err(message) => message,
        };
        // A channel that was just made has room.
        let _ = ask.lines.try_send(PlanLine::Failed { message: refused });
    }

    fn try_answer(&mut self, ask: &PlanAsk) -> Result<(), String> {
        let super::Latest::Here(stored) = self.latest() else {
            return Err("the host cannot read the WasmController".to_owned());
        };
        let controller = stored.controller;
        let known = self.known(&controller);
        let revisions = self.plan(&controller, stored.unusable.is_none(), &known);
        let next = self.next_up(&controller, &revisions, &known);
        let revision = ask.revision.clone().or_else(|| next.clone());
        let revision = revision.ok_or_else(|| nothing_to_plan(&controller))?;
        let status = plan::status(&controller);
        if status.active.as_deref() == Some(&*revision) {
            return Err(format!("{revision} is live: there is nothing that it would change"));
        }
        let follower = Some(ask.lines.clone());
        let planner = self.planner(&controller, &revision, follower.clone());
        let planner = planner.ok_or_else(|| {
            format!("{revision} is not staged, or no revision is live to compare it with: nagaya get {} says why", self.key.name)
        })?;
        let is_running = self.trials.plan.as_ref().is_some_and(|one| {
            one.revision == revision && one.told.borrow().phase == PlanPhase::Running
        });
        // One that is being made goes on: gates wait for it. What else is asked for is kept nowhere.
        let is_apart = ask.object.is_some() || next.as_ref() != Some(&revision) || is_running;
        if is_apart {
            if self.trials.ones.len() >= ONES {
                return Err("too many plans are made for others already; try again".to_owned());
            }
            let planner = Planner { is_kept: false, ..planner };
            match &ask.object {
                Some(object) => drop(self.trials.ones.spawn(planner.one(object.clone()))),
                None => {
                    let (tell, _) = watch::channel(PlanStatus::default());
                    self.trials.ones.spawn(planner.run(PlanStatus::default(), tell));
                }
            }
            return Ok(());
        }
        let from = PlanStatus { request: requested(&controller), ..PlanStatus::default() };
        self.begin_plan(&controller, &revision, (from, follower));
        Ok(())
    }

    /// What is said of a revision's plan and shadow.
    pub(super) fn told_of(
        &self,
        controller: &WasmController,
        revision: &WasmRevision,
        next: &[String],
    ) -> (Option<Box<PlanStatus>>, Option<ShadowStatus>) {
        let name = revision.metadata.name.as_deref().unwrap_or_default();
        let stored = revision.status.clone().unwrap_or_default();
        let running = self.trials.plan.as_ref().filter(|one| one.revision == name);
        let plan = match running {
            Some(running) => Some(Box::new(running.told.borrow().clone())),
            None => stored.plan.map(|plan| {
                // It goes on as soon as both revisions are loaded.
                let goes_on = next.iter().any(|one| one == name);
                Box::new(aged(*plan, (name, goes_on), (controller, &made_of(controller))))
            }),
        };
        let shadow = self.trials.shadow.as_ref().filter(|one| one.revision == name);
        let shadow = shadow.map(|one| one.told.borrow().clone()).or(stored.shadow);
        (plan, shadow)
    }

    /// Which gates stand before the revision that would go live next, whether or not anything is loaded yet.
    pub(super) fn gated(
        &self,
        controller: &WasmController,
        plan: &Plan,
        known: &[WasmRevision],
    ) -> Option<Gated> {
        let all = next_names(controller, plan, known);
        let next = all.first()?.clone();
        let revision = known.iter().find(|one| one.metadata.name.as_ref() == Some(&next));
        let told = revision.map(|revision| self.told_of(controller, revision, &all));
        let (plan, shadow) = told.unwrap_or_default();
        let of = made_of(controller);
        let shadow = shadow.filter(|shadow| shadow.of == of);
        let none = crate::model::plan::GatesSpec::default();
        let gates = controller.spec.rollout.gates.as_ref().unwrap_or(&none);
        let held = gates::held(gates, plan.as_deref(), shadow.as_ref());
        let enforced = gates.enforcement == Enforcement::Enforce;
        let summary = plan.filter(|plan| plan.phase == PlanPhase::Complete);
        let summary = summary.and_then(|plan| plan.message);
        Some(Gated { revision: next, held, enforced, summary })
    }
}

/// Which revision would go live next, whether or not it can run yet: the one that is named, else the candidate. A rollback is none.
pub(super) fn next_names(
    controller: &WasmController,
    plan: &Plan,
    known: &[WasmRevision],
) -> Vec<String> {
    let status = plan::status(controller);
    let Some(active) = status.active else { return vec![] };
    let rollout = &controller.spec.rollout;
    // Whoever goes back to what was live once goes back.
    let was_live = |name: &str| {
        let revision = known.iter().find(|one| one.metadata.name.as_deref() == Some(name));
        let told = revision.and_then(|revision| revision.status.as_ref());
        status.previous.as_deref() == Some(name) || told.is_some_and(|told| told.was_live)
    };
    let named = rollout.active.as_ref().filter(|name| !name.is_empty() && !was_live(name));
    let desired = plan.desired.as_ref().filter(|name| !rollout.rejected.contains(name));
    let all = named.into_iter().chain(desired).filter(|name| **name != active);
    all.cloned().collect()
}

/// Whether a plan is begun by itself.
fn wants(policy: PlanPolicy, stored: Option<&PlanStatus>, of: &str) -> bool {
    let is_open =
        |plan: &PlanStatus| matches!(plan.phase, PlanPhase::Running | PlanPhase::Interrupted);
    match (policy, stored) {
        (PlanPolicy::OnStage, None) => true,
        (PlanPolicy::OnStage, Some(plan)) => plan.of != of || plan.phase != PlanPhase::Complete,
        // One that was asked for and cut off goes on.
        (_, Some(plan)) => plan.of == of && is_open(plan),
        (_, None) => false,
    }
}

/// A stored plan as it counts now.
fn aged(
    plan: PlanStatus,
    (name, goes_on): (&str, bool),
    (controller, of): (&WasmController, &str),
) -> PlanStatus {
    let is_live = plan::status(controller).active.as_deref() == Some(name);
    match plan.phase {
        PlanPhase::Running if goes_on && plan.of == of => plan,
        PlanPhase::Running => {
            let message = format!(
                "it was given up after {} of {} objects: another revision took its place, or what it was made of has changed",
                plan.objects.looked, plan.objects.total
            );
            PlanStatus { phase: PlanPhase::Interrupted, message: Some(message), ..plan }
        }
        PlanPhase::Complete if plan.of != of && !is_live => {
            let message = format!(
                "it was made against {} or under another account, scope, limits or protected paths; make it again: nagaya plan {} -n {}",
                plan.against,
                controller.metadata.name.as_deref().unwrap_or_default(),
                controller.metadata.namespace.as_deref().unwrap_or_default()
            );
            PlanStatus { phase: PlanPhase::Stale, message: Some(message), ..plan }
        }
        _ => plan,
    }
}

/// Names what a plan is made of, besides the cluster: when that is another, the plan is stale.
fn made_of(controller: &WasmController) -> String {
    let (spec, gates) = (&controller.spec, controller.spec.rollout.gates.as_ref());
    let made_of = json!({
        "active": plan::status(controller).active,
        "account": spec.service_account_name,
        "scope": spec.scope,
        "fieldManager": spec.field_manager,
        "memory": spec.limits.memory,
        "deadline": spec.limits.deadline,
        "protected": gates.map(|gates| &gates.protected_paths),
    });
    hashed(&canonical(&made_of))[..16].to_owned()
}

fn requested(controller: &WasmController) -> Option<String> {
    let annotations = controller.metadata.annotations.as_ref()?;
    annotations
        .get(ANNOTATION)
        .filter(|text| !text.is_empty())
        .map(|text| crate::text::cut(text, crate::text::NAME).into_owned())
}

fn nothing_to_plan(controller: &WasmController) -> String {
    match plan::status(controller).active {
        Some(active) => {
            format!(
                "no revision waits: {active} is live, and nothing is staged beside it; push another one, or name one of \
                 those that were before it (--revision)"
            )
        }
        None => "no revision is live, and so there is nothing to compare with".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::crd::WasmControllerStatus;

    fn plan(phase: PlanPhase, of: &str) -> PlanStatus {
        PlanStatus { phase, of: of.to_owned(), ..PlanStatus::default() }
    }

    #[test]
    fn a_plan_is_begun_once_and_goes_on() {
        use PlanPhase::{Complete, Interrupted, Running, Stale};
        for (policy, stored, expected) in [
            (PlanPolicy::OnStage, None, true),
            (PlanPolicy::OnStage, Some(plan(Complete, "now")), false),
            (PlanPolicy::OnStage, Some(plan(Complete, "before")), true),
            (PlanPolicy::OnStage, Some(plan(Stale, "before")), true),
            (PlanPolicy::OnStage, Some(plan(Stale, "now")), true),
            (PlanPolicy::Manual, Some(plan(Interrupted, "now")), true),
            (PlanPolicy::OnStage, Some(plan(Running, "now")), true),
            (PlanPolicy::OnStage, Some(plan(Interrupted, "now")), true),
            (PlanPolicy::Manual, None, false),
            (PlanPolicy::Manual, Some(plan(Running, "now")), true),
            (PlanPolicy::Manual, Some(plan(Running, "before")), false),
            (PlanPolicy::Manual, Some(plan(Complete, "before")), false),
            (PlanPolicy::Off, None, false),
        ] {
            assert_eq!(wants(policy, stored.as_ref(), "now"), expected, "{policy:?} {stored:?}");
        }
    }

    #[test]
    fn a_plan_goes_stale_with_what_it_was_made_of() {
        let mut controller =
            WasmController::new("web", crate::model::crd::WasmControllerSpec::default());
        let active = Some("web-1".to_owned());
        controller.status =
            Some(WasmControllerStatus { active, ..WasmControllerStatus::default() });
        let of = made_of(&controller);
        let now = |controller: &WasmController, phase| {
            aged(plan(phase, &of), ("web-2", false), (controller, &made_of(controller))).phase
        };
        assert_eq!(now(&controller, PlanPhase::Complete), PlanPhase::Complete);
        assert_eq!(now(&controller, PlanPhase::Running), PlanPhase::Interrupted);
        let loading = aged(plan(PlanPhase::Running, &of), ("web-2", true), (&controller, &of));
        assert_eq!(loading.phase, PlanPhase::Running, "it goes on");
        controller.spec.suspend = true;
        assert_eq!(now(&controller, PlanPhase::Complete), PlanPhase::Complete, "no matter for it");
        controller.spec.limits.memory = "8Mi".to_owned();
        assert_eq!(now(&controller, PlanPhase::Complete), PlanPhase::Stale);
        controller.spec.limits = crate::model::crd::LimitsSpec::default();
        let active = Some("web-2".to_owned());
        controller.status =
            Some(WasmControllerStatus { active, ..WasmControllerStatus::default() });
        assert_eq!(
            now(&controller, PlanPhase::Complete),
            PlanPhase::Complete,
            "it is live: history"
        );
    }
}
