//! Decides which revision is live, which one waits and which one stays warm; pure.
//!
//! [`decide`] turns the team's declared intent and what is known of the revisions into a [`Decision`]; the manager
//! writes it to the WasmController's status and hands the controller a [`Rollout`]. Replacing that value *is* the
//! blue-green swap: no queue, watch or cache is touched.
//!
//! Invariants, each held by the test of that name:
//!
//! - `only_a_ready_revision_that_is_not_rejected_goes_live`
//! - `the_named_revision_wins_over_every_strategy`
//! - `deciding_twice_changes_nothing`
//! - `an_unknown_name_keeps_what_runs`
//! - `gates_hold_a_promotion_and_never_a_rollback`
//! - `promote_then_rollback_is_the_identity`

use std::sync::Arc;

use crate::model::{crd::Strategy, object::ObjectKey};

/// Where a revision stands, as far as the decision cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// There is no such revision.
    Unknown,
    /// It exists, but cannot run yet.
    Staging,
    /// It can run.
    Ready,
    /// It was refused.
    Failed,
}

/// What the team wants and what was live so far.
#[derive(Clone, Debug, Default)]
pub struct Wanted<'a> {
    /// `spec.rollout.strategy`.
    pub strategy: Strategy,
    /// `spec.rollout.active`; `None` if empty.
    pub named: Option<&'a str>,
    /// `spec.rollout.rejected`.
    pub rejected: &'a [String],
    /// The revision of the spec's digest and config.
    pub desired: &'a str,
    /// `status.active`.
    pub active: Option<&'a str>,
    /// `status.previous`.
    pub previous: Option<&'a str>,
    /// `spec.rollout.autoPromote`, and no gate holds the revision that would go live next.
    pub auto: bool,
    /// The revision that nobody may promote now, for its gates.
    pub held: Option<&'a str>,
}

/// Who is live, who waits, who stays warm.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// The live revision; it may still be loading after a restart.
    pub active: Option<String>,
    /// The staged revision that waits for its promotion.
    pub candidate: Option<String>,
    /// The one that was live before.
    pub previous: Option<String>,
    /// Why the intent is not met.
    pub problem: Option<Problem>,
}

/// Why the intent is not met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// `spec.rollout.active` names no revision of this controller.
    Unknown(String),
    /// The named revision is not staged yet.
    Waiting(String),
    /// The named revision was refused.
    Failed(String),
    /// The named revision is held by its gates.
    Gated(String),
    /// The live revision is rejected, and there is no other to go to.
    NothingElse(String),
}

impl Wanted<'_> {
    /// Whether the revision of the spec goes live as soon as it can.
    fn goes_by_itself(&self) -> bool {
        self.strategy == Strategy::Immediate || self.auto
    }
}

/// Decides, given where each revision stands.
pub fn decide(intent: &Wanted<'_>, stage: impl Fn(&str) -> Stage) -> Decision {
    let rejected = |name: &str| intent.rejected.iter().any(|other| other == name);
    let may_start = |name: &str| stage(name) == Stage::Ready && !rejected(name);
    let (target, problem) = match intent.named {
        Some(name) if intent.active == Some(name) => (Some(name), None),
        Some(name) => match stage(name) {
            Stage::Ready if intent.active.is_some() && intent.held == Some(name) => {
                (intent.active, Some(Problem::Gated(name.to_owned())))
            }
            Stage::Ready => (Some(name), None),
            Stage::Unknown => (intent.active, Some(Problem::Unknown(name.to_owned()))),
            Stage::Staging => (intent.active, Some(Problem::Waiting(name.to_owned()))),
            Stage::Failed => (intent.active, Some(Problem::Failed(name.to_owned()))),
        },
        None => unnamed(intent, rejected, may_start),
    };
    let changed = target != intent.active;
    let before = if changed { intent.active } else { intent.previous };
    let keep =
        |name: &&str| Some(*name) != target && stage(name) != Stage::Unknown && !rejected(name);
    let waits = may_start(intent.desired) && Some(intent.desired) != target;
    Decision {
        active: target.map(str::to_owned),
        candidate: waits.then(|| intent.desired.to_owned()),
        previous: before.filter(keep).map(str::to_owned),
        problem,
    }
}

fn unnamed<'a>(
    intent: &Wanted<'a>,
    rejected: impl Fn(&str) -> bool,
    may_start: impl Fn(&str) -> bool,
) -> (Option<&'a str>, Option<Problem>) {
    let wanted = may_start(intent.desired).then_some(intent.desired);
    match intent.active {
        None => (wanted, None),
        Some(_) if intent.goes_by_itself() && wanted.is_some() => (wanted, None),
        Some(active) if rejected(active) => match intent.previous.filter(|name| may_start(name)) {
            Some(previous) => (Some(previous), None),
            None => (Some(active), Some(Problem::NothingElse(active.to_owned()))),
        },
        Some(active) => (Some(active), None),
    }
}

/// What a controller runs: a value that the manager replaces and the controller reads once per run.
#[derive(Debug)]
pub struct Rollout<R> {
    /// The live revision.
    pub active: Option<Arc<R>>,
    /// Grows with each change of `active`; never decreases.
    pub generation: i64,
}

impl<R> Clone for Rollout<R> {
    fn clone(&self) -> Self {
        Self { active: self.active.clone(), generation: self.generation }
    }
}

impl<R> Default for Rollout<R> {
    fn default() -> Self {
        Self { active: None, generation: 0 }
    }
}

impl<R> Rollout<R> {
    /// The revision that runs this object now. The answer is the same for every key until canaries are built.
    pub fn pick(&self, _key: &ObjectKey) -> Option<&Arc<R>> {
        self.active.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn intent<'a>(desired: &'a str, active: Option<&'a str>) -> Wanted<'a> {
        Wanted { desired, active, ..Wanted::default() }
    }

    fn ready(_: &str) -> Stage {
        Stage::Ready
    }

    #[test]
    fn the_first_staged_revision_goes_live_and_the_next_one_waits() {
        let first = decide(&intent("v1", None), ready);
        assert_eq!(first.active.as_deref(), Some("v1"));
        let second = decide(&intent("v2", Some("v1")), ready);
        assert_eq!(
            (second.active.as_deref(), second.candidate.as_deref()),
            (Some("v1"), Some("v2"))
        );
        let immediate = Wanted { strategy: Strategy::Immediate, ..intent("v2", Some("v1")) };
        let third = decide(&immediate, ready);
        assert_eq!((third.active.as_deref(), third.previous.as_deref()), (Some("v2"), Some("v1")));
    }

    #[test]
    fn the_named_revision_wins_over_every_strategy() {
        for strategy in [Strategy::BlueGreen, Strategy::Immediate] {
            let intent = Wanted { strategy, named: Some("v1"), ..intent("v2", Some("v1")) };
            let decision = decide(&intent, ready);
            assert_eq!(decision.active.as_deref(), Some("v1"));
            assert_eq!(decision.candidate.as_deref(), Some("v2"));
        }
    }

    #[test]
    fn an_unknown_name_keeps_what_runs() {
        let intent = Wanted { named: Some("v9"), ..intent("v1", Some("v1")) };
        let decision =
            decide(&intent, |name| if name == "v9" { Stage::Unknown } else { Stage::Ready });
        assert_eq!(decision.active.as_deref(), Some("v1"));
        assert_eq!(decision.problem, Some(Problem::Unknown("v9".into())));
    }

    #[test]
    fn gates_hold_a_promotion_and_never_a_rollback() {
        let auto = Wanted { auto: true, ..intent("v2", Some("v1")) };
        assert_eq!(decide(&auto, ready).active.as_deref(), Some("v2"), "by itself");
        let by_hand = Wanted { named: Some("v2"), held: Some("v2"), ..intent("v2", Some("v1")) };
        let decision = decide(&by_hand, ready);
        assert_eq!(decision.active.as_deref(), Some("v1"));
        assert_eq!(decision.candidate.as_deref(), Some("v2"));
        assert_eq!(decision.problem, Some(Problem::Gated("v2".into())));
        let passed = Wanted { held: None, ..by_hand.clone() };
        assert_eq!(decide(&passed, ready).active.as_deref(), Some("v2"));
        let first = Wanted { active: None, ..by_hand };
        assert_eq!(decide(&first, ready).active.as_deref(), Some("v2"), "nothing to compare with");
        let back = Wanted {
            named: Some("v1"),
            previous: Some("v1"),
            held: Some("v3"),
            ..intent("v3", Some("v2"))
        };
        assert_eq!(decide(&back, ready).active.as_deref(), Some("v1"));
        let twice = Wanted {
            active: Some("v2"),
            named: Some("v2"),
            held: Some("v2"),
            ..intent("v2", None)
        };
        assert_eq!(decide(&twice, ready).active.as_deref(), Some("v2"), "what is live is not held");
    }

    #[test]
    fn promote_then_rollback_is_the_identity() {
        let promote = Wanted { named: Some("v2"), ..intent("v2", Some("v1")) };
        let promoted = decide(&promote, ready);
        assert_eq!(
            (promoted.active.as_deref(), promoted.previous.as_deref()),
            (Some("v2"), Some("v1"))
        );
        let rejected = ["v2".to_owned()];
        let rollback = Wanted {
            named: Some("v1"),
            rejected: &rejected,
            previous: Some("v1"),
            ..intent("v2", Some("v2"))
        };
        let back = decide(&rollback, ready);
        assert_eq!(back, Decision { active: Some("v1".into()), ..Decision::default() });
    }

    #[test]
    fn rejecting_the_live_revision_alone_goes_back_to_the_previous_one() {
        let rejected = ["v2".to_owned()];
        let back = Wanted { rejected: &rejected, previous: Some("v1"), ..intent("v2", Some("v2")) };
        assert_eq!(decide(&back, ready).active.as_deref(), Some("v1"));
        let nowhere = Wanted { previous: None, ..back };
        let decision = decide(&nowhere, ready);
        assert_eq!(decision.active.as_deref(), Some("v2"));
        assert_eq!(decision.problem, Some(Problem::NothingElse("v2".into())));
    }

    /// Random intents and random stages against the rules, with each decision fed back as status.
    #[test]
    fn only_a_ready_revision_that_is_not_rejected_goes_live() {
        walk(|before, after, intent, stages| {
            let Some(active) = &after.active else { return };
            if before.active.as_ref() == Some(active) {
                return;
            }
            assert_eq!(stages[active.as_str()], Stage::Ready);
            assert!(intent.named == Some(active) || !intent.rejected.contains(active));
            assert_ne!(after.candidate.as_ref(), Some(active));
            assert_ne!(after.previous.as_ref(), Some(active));
        });
    }

    #[test]
    fn deciding_twice_changes_nothing() {
        walk(|_, after, intent, stages| {
            let again = Wanted {
                active: after.active.as_deref(),
                previous: after.previous.as_deref(),
                ..intent.clone()
            };
            let second = decide(&again, |name| stages.get(name).copied().unwrap_or(Stage::Unknown));
            assert_eq!(&second, after);
        });
    }

    fn walk(check: impl Fn(&Decision, &Decision, &Wanted<'_>, &HashMap<&str, Stage>)) {
        const NAMES: [&str; 5] = ["v1", "v2", "v3", "v4", "v5"];
        for seed in 1..=400_u64 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut status = Decision::default();
            let mut stages: HashMap<&str, Stage> = HashMap::new();
            for _ in 0..60 {
                let name = NAMES[random.usize(..5)];
                let stage =
                    [Stage::Staging, Stage::Ready, Stage::Ready, Stage::Failed][random.usize(..4)];
                if status.active.as_deref() != Some(name) {
                    stages.insert(name, stage);
                }
                let named = (random.usize(..2) == 0).then(|| NAMES[random.usize(..5)]);
                let rejected: Vec<String> = NAMES
                    .iter()
                    .filter(|other| random.usize(..4) == 0 && named != Some(**other))
                    .map(|name| (*name).to_owned())
                    .collect();
                let intent = Wanted {
                    strategy: [Strategy::BlueGreen, Strategy::Immediate][random.usize(..2)],
                    named,
                    rejected: &rejected,
                    desired: NAMES[random.usize(..5)],
                    active: status.active.as_deref(),
                    previous: status.previous.as_deref(),
                    auto: false,
                    held: None,
                };
                let after =
                    decide(&intent, |name| stages.get(name).copied().unwrap_or(Stage::Unknown));
                check(&status, &after, &intent, &stages);
                status = after;
            }
        }
    }
}
