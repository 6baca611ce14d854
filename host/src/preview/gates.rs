//! Which gates stand in the way of a promotion, by a plan and by shadow runs; pure.
//!
//! Invariant: `each_gate_holds_and_lets_pass`.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::model::plan::{GatesSpec, NewRights, PlanPhase, PlanStatus, ShadowStatus};

/// Objects that are named.
const NAMED: usize = 3;

/// A gate that holds, or cannot be judged yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its field in `spec.rollout.gates`.
    pub gate: String,
    /// The figure and the objects, for people.
    pub text: String,
    /// It is not known yet whether it holds.
    pub waits: bool,
}

/// The gates that hold, given what is known of the revision.
pub fn held(
    gates: &GatesSpec,
    plan: Option<&PlanStatus>,
    shadow: Option<&ShadowStatus>,
) -> Vec<Held> {
    let mut all = vec![];
    if needs_plan(gates) {
        match plan.filter(|plan| plan.phase == PlanPhase::Complete) {
            Some(plan) => all.extend(by_plan(gates, plan)),
            None => all.push(Held { gate: "plan".to_owned(), text: no_plan(plan), waits: true }),
        }
    }
    if let Some(wanted) = gates.min_shadow_runs.filter(|wanted| *wanted > 0) {
        all.extend(by_shadow(wanted.into(), shadow));
    }
    all
}

/// Whether some gate judges by a plan.
pub fn needs_plan(gates: &GatesSpec) -> bool {
    let numbers = [gates.max_creates, gates.max_deletes, gates.max_errors];
    gates.max_changed_objects.is_some()
        || numbers.iter().any(Option::is_some)
        || !gates.protected_paths.is_empty()
        || gates.new_rights == NewRights::Deny
}

fn no_plan(plan: Option<&PlanStatus>) -> String {
    match plan {
        None => "there is no plan yet".to_owned(),
        Some(plan) => {
            let counts = &plan.objects;
            match plan.phase {
                PlanPhase::Running => {
                    format!("its plan has looked at {} of {} objects", counts.looked, counts.total)
                }
                _ => plan.message.clone().unwrap_or_else(|| "its plan is stale".to_owned()),
            }
        }
    }
}

fn by_plan(gates: &GatesSpec, plan: &PlanStatus) -> Vec<Held> {
    let counts = &plan.objects;
    let (creates, deletes) = (counts.creates, counts.deletes);
    let errors = counts.failed + counts.untold;
    let number = |most: Option<u32>| most.map(|most| (i64::from(most), most.to_string()));
    let changed = gates.max_changed_objects.as_ref().map(|most| share(most, counts.total));
    let figures = [
        ("maxChangedObjects", changed, counts.changed, "objects would change", "Change"),
        ("maxCreates", number(gates.max_creates), creates, "objects would be made", "Change"),
        ("maxDeletes", number(gates.max_deletes), deletes, "objects would be deleted", "Delete"),
        ("maxErrors", number(gates.max_errors), errors, "objects fail or cannot be told", "Error"),
    ];
    let mut all = vec![];
    for (gate, most, found, what, sort) in figures {
        let Some((_, limit)) = most.filter(|(most, _)| found > *most) else { continue };
        let text = format!("{found} {what}, and {limit} may{}", named(plan, sort));
        all.push(Held { gate: gate.to_owned(), text, waits: false });
    }
    for guarded in &gates.protected_paths {
        let is_it = |one: &&crate::model::plan::PathCount| {
            one.kind == guarded.kind && one.path == guarded.path && one.objects > 0
        };
        if let Some(found) = plan.protected.iter().find(is_it) {
            let text = format!(
                "{} of {} would change in {} objects: {}",
                found.path,
                found.kind,
                found.objects,
                found.samples.join(", ")
            );
            all.push(Held { gate: "protectedPaths".to_owned(), text, waits: false });
        }
    }
    if gates.new_rights == NewRights::Deny && !plan.new_rights.is_empty() {
        let rights: Vec<_> = plan.new_rights.iter().map(|one| one.right.as_str()).collect();
        let text =
            format!("it declares rights that the live revision does not: {}", rights.join(", "));
        all.push(Held { gate: "newRights".to_owned(), text, waits: false });
    }
    all
}

fn by_shadow(wanted: i64, shadow: Option<&ShadowStatus>) -> Option<Held> {
    let none = ShadowStatus::default();
    let shadow = shadow.unwrap_or(&none);
    let bad = shadow.differing + shadow.failed;
    let gate = "minShadowRuns".to_owned();
    if bad > 0 {
        let last: Vec<_> = shadow.last.iter().take(NAMED).map(|one| one.object.as_str()).collect();
        let text = format!(
            "of {} shadow runs {} would have changed something and {} failed: {}",
            shadow.runs,
            shadow.differing,
            shadow.failed,
            last.join(", ")
        );
        return Some(Held { gate, text, waits: false });
    }
    // Those of which something cannot be told say nothing.
    let runs = shadow.runs - shadow.untold;
    (runs < wanted).then(|| {
        let text = format!("there were {runs} shadow runs, and {wanted} are wanted");
        Held { gate, text, waits: true }
    })
}

/// How many objects a number or a share allows, and how it is written.
fn share(most: &IntOrString, total: i64) -> (i64, String) {
    match most {
        IntOrString::Int(most) => (i64::from(*most), most.to_string()),
        IntOrString::String(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            let most = total.saturating_mul(percent) / 100;
            (most, format!("{text} of {total}, that is {most},"))
        }
    }
}

fn named(plan: &PlanStatus, sort: &str) -> String {
    let is_it = |one: &&crate::model::plan::Sample| {
        one.sort == sort
            || (sort == "Error" && one.sort == "Untold")
            || (sort == "Change" && one.sort == "Delete")
    };
    let mut objects: Vec<_> =
        plan.samples.iter().filter(is_it).map(|one| one.object.as_str()).collect();
    objects.dedup();
    objects.truncate(NAMED);
    if objects.is_empty() { String::new() } else { format!(": {}", objects.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::plan::{NewRight, PathCount, PlanCounts, ProtectedPath, Sample};

    fn plan() -> PlanStatus {
        let sample = |object: &str, sort: &str| Sample {
            object: object.into(),
            sort: sort.into(),
            text: "x".into(),
        };
        PlanStatus {
            phase: PlanPhase::Complete,
            objects: PlanCounts {
                total: 50,
                looked: 50,
                changed: 10,
                failed: 3,
                untold: 1,
                creates: 4,
                deletes: 2,
                ..PlanCounts::default()
            },
            protected: vec![PathCount {
                kind: "Deployment".into(),
                path: "spec.replicas".into(),
                objects: 5,
                samples: ["a/1", "a/2", "a/3"].map(str::to_owned).into(),
            }],
            samples: vec![
                sample("a/1", "Change"),
                sample("a/2", "Delete"),
                sample("a/3", "Error"),
                sample("a/3", "Untold"),
            ],
            new_rights: vec![NewRight { right: "delete configmaps".into(), used: true }],
            ..PlanStatus::default()
        }
    }

    fn words(
        gates: &GatesSpec,
        plan: Option<&PlanStatus>,
        shadow: Option<&ShadowStatus>,
    ) -> Vec<String> {
        held(gates, plan, shadow)
            .into_iter()
            .map(|held| format!("{} {}", held.gate, held.text))
            .collect()
    }

    #[test]
    fn each_gate_holds_and_lets_pass() {
        let none = GatesSpec::default();
        let guarded =
            |path: &str| vec![ProtectedPath { kind: "Deployment".into(), path: path.into() }];
        let percent = |text: &str| Some(IntOrString::String(text.into()));
        for (holds, passes, expected) in [
            (
                GatesSpec { max_changed_objects: Some(IntOrString::Int(9)), ..none.clone() },
                GatesSpec { max_changed_objects: Some(IntOrString::Int(10)), ..none.clone() },
                "maxChangedObjects 10 objects would change, and 9 may: a/1, a/2",
            ),
            (
                GatesSpec { max_changed_objects: percent("19%"), ..none.clone() },
                GatesSpec { max_changed_objects: percent("20%"), ..none.clone() },
                "maxChangedObjects 10 objects would change, and 19% of 50, that is 9, may: a/1, a/2",
            ),
            (
                GatesSpec { max_creates: Some(3), ..none.clone() },
                GatesSpec { max_creates: Some(4), ..none.clone() },
                "maxCreates 4 objects would be made, and 3 may: a/1, a/2",
            ),
            (
                GatesSpec { max_deletes: Some(0), ..none.clone() },
                GatesSpec { max_deletes: Some(2), ..none.clone() },
                "maxDeletes 2 objects would be deleted, and 0 may: a/2",
            ),
            (
                GatesSpec { max_errors: Some(3), ..none.clone() },
                GatesSpec { max_errors: Some(4), ..none.clone() },
                "maxErrors 4 objects fail or cannot be told, and 3 may: a/3",
            ),
            (
                GatesSpec { protected_paths: guarded("spec.replicas"), ..none.clone() },
                GatesSpec { protected_paths: guarded("spec.selector"), ..none.clone() },
                "protectedPaths spec.replicas of Deployment would change in 5 objects: a/1, a/2, a/3",
            ),
            (
                GatesSpec { new_rights: NewRights::Deny, ..none.clone() },
                none.clone(),
                "newRights it declares rights that the live revision does not: delete configmaps",
            ),
        ] {
            assert_eq!(words(&holds, Some(&plan()), None), [expected]);
            assert_eq!(words(&passes, Some(&plan()), None), Vec::<String>::new());
            assert!(held(&holds, None, None).iter().all(|held| held.waits), "no plan yet");
            let running = PlanStatus { phase: PlanPhase::Running, ..plan() };
            assert_eq!(
                words(&holds, Some(&running), None),
                ["plan its plan has looked at 50 of 50 objects"]
            );
        }
        let wants = GatesSpec { min_shadow_runs: Some(10), ..none };
        let runs = |runs, differing| ShadowStatus { runs, differing, ..ShadowStatus::default() };
        assert!(held(&wants, None, None)[0].waits);
        assert!(held(&wants, None, Some(&runs(9, 0)))[0].waits);
        assert!(held(&wants, None, Some(&runs(10, 0))).is_empty());
        let differs = held(&wants, None, Some(&runs(10, 1)));
        assert!(
            !differs[0].waits && differs[0].text.contains("1 would have changed"),
            "{differs:?}"
        );
    }
}
