//! `nagaya plan`: what a revision would change in the whole fleet, without changing anything.

use std::{collections::BTreeMap, fmt::Write, time::Duration};

use anyhow::Result;
use serde_json::json;

use super::{
    Output,
    cluster::Cluster,
    planned::{Planned, Wanted, follow},
    say, span,
};
use crate::{
    model::plan::{GatesSpec, PlanStatus, PlannedObject, ShadowStatus},
    preview::gates,
};

/// Paths that are shown.
const PATHS: usize = 20;
/// Columns of an ordinary terminal.
const WIDTH: usize = 79;
/// Objects that are named for each thing.
const NAMED: usize = 10;

/// Which revision to look at.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  nagaya plan website                               the candidate against the live revision
  nagaya plan website --revision website-5f2c9e01ab
  nagaya plan website -o json                       every object that would change, with the fields

Each object is run as ever, and its writes are tried on the API server (dryRun=All): nothing is stored. What the live
revision would change as well is left out. The role `edit` of the namespace is needed. One object in full: nagaya diff.")]
pub(super) struct Args {
    /// The WasmController
    name: String,
    /// The revision [default: the one that would go live next]
    #[arg(long, value_name = "NAME")]
    revision: Option<String>,
    /// Give up waiting after this long; the host goes on with it
    #[arg(long, value_name = "TIME", default_value = "30m", value_parser = span)]
    timeout: Duration,
    /// The form
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

/// Makes a plan and prints what it came to.
pub(super) async fn run(args: Args, cluster: Cluster) -> Result<()> {
    let wanted = Wanted {
        name: args.name.clone(),
        revision: args.revision,
        object: None,
        values: args.output == Output::Json,
    };
    let (mut objects, mut paths) = (vec![], Paths::default());
    let is_json = args.output == Output::Json;
    let planned = follow(&cluster, &wanted, args.timeout, |object| {
        paths.add(&object);
        if is_json {
            objects.push(object);
        }
        Ok(())
    });
    let planned = planned.await?;
    if is_json {
        let Planned { revision, plan } = planned;
        let all = json!({ "revision": revision, "plan": plan, "objects": objects });
        return say(&(serde_json::to_string_pretty(&all)? + "\n"));
    }
    let gates = match cluster.must_see(&args.name).await {
        Ok(seen) => {
            let shadow = seen.revision(&planned.revision).and_then(|one| one.status.clone());
            let shadow = shadow.and_then(|status| status.shadow);
            seen.controller.spec.rollout.gates.map(|gates| (gates, shadow))
        }
        Err(_) => None,
    };
    let mut text = drawn(&planned, &paths, gates.as_ref());
    if planned.plan.objects.changed > 0 {
        let _ = writeln!(
            text,
            "\nin full: nagaya diff {} -n {} [OBJECT]",
            args.name,
            cluster.namespace()
        );
    }
    say(&text)
}

/// In how many objects each path changes: a status has room for a few of them.
#[derive(Debug, Default)]
struct Paths(BTreeMap<(String, String), usize>);

impl Paths {
    fn add(&mut self, object: &PlannedObject) {
        for change in &object.changes {
            for path in &change.paths {
                *self.0.entry((change.named_kind(), path.path.clone())).or_default() += 1;
            }
        }
    }
}

fn drawn(
    planned: &Planned,
    paths: &Paths,
    gates: Option<&(GatesSpec, Option<ShadowStatus>)>,
) -> String {
    let Planned { revision, plan } = planned;
    let mut text = summary(revision, plan);
    let mut all: Vec<_> = paths.0.iter().collect();
    all.sort_by_key(|(_, objects)| std::cmp::Reverse(**objects));
    if !all.is_empty() {
        text.push('\n');
    }
    for ((kind, path), objects) in all.iter().take(PATHS) {
        let _ = writeln!(text, "{objects:>8} {kind}: {path}");
    }
    if all.len() > PATHS {
        let _ = writeln!(text, "         and {} more paths: -o json has them", all.len() - PATHS);
    }
    text.push_str(&findings(plan));
    if let Some((gates, shadow)) = gates {
        text.push_str(&of_gates(gates, Some(plan), shadow.as_ref()));
    }
    text
}

/// What a plan came to, in a few lines.
pub(super) fn summary(revision: &str, plan: &PlanStatus) -> String {
    let message = plan.message.as_deref().unwrap_or_default();
    // What follows is in the lines below.
    let message = message.split_once(": ").map_or(message, |(head, _)| head);
    let at = plan.completed_at.as_ref().or(plan.started_at.as_ref());
    let at = at.map(|time| format!(", as of {}", time.0)).unwrap_or_default();
    let mut text = format!("{revision} {message}\n  against {}{at}\n", plan.against);
    for (word, kinds) in
        [("create", &plan.creates), ("update", &plan.updates), ("delete", &plan.deletes)]
    {
        for count in kinds {
            let _ = writeln!(text, "  {word} {:>7} {}", count.objects, count.kind);
        }
    }
    let counts = &plan.objects;
    for (count, words) in [
        (counts.failed, "fail, and the live revision does not"),
        (counts.failing_already, "fail already"),
        (counts.untold, "cannot be told"),
    ] {
        if count > 0 {
            let _ = writeln!(text, "  {count:>14} {words}");
        }
    }
    text
}

/// A line that may be long, in several: the rest stands under its beginning.
pub(super) fn wrapped(line: &str, indent: usize) -> String {
    let (mut text, mut column) = (String::new(), 0);
    for word in line.split_inclusive(' ') {
        let width = word.trim_end().chars().count();
        if column + width > WIDTH && column > indent {
            text.truncate(text.trim_end().len());
            let _ = write!(text, "\n{:indent$}", "");
            column = indent;
        }
        text.push_str(word);
        column += word.chars().count();
    }
    text.push('\n');
    text
}

/// Deletions, errors, what cannot be told, and new rights.
fn findings(plan: &PlanStatus) -> String {
    let mut text = String::new();
    for (sort, title) in [
        ("Delete", "\ndeletes, for\n"),
        ("Error", "\nfails, for\n"),
        ("Untold", "\ncannot be told, for\n"),
    ] {
        let found: Vec<_> = plan.samples.iter().filter(|sample| sample.sort == sort).collect();
        if found.is_empty() {
            continue;
        }
        text.push_str(title);
        for sample in found.iter().take(NAMED) {
            text.push_str(&wrapped(&format!("  {}: {}", sample.object, sample.text), 4));
        }
    }
    if !plan.new_rights.is_empty() {
        text.push_str("\ndeclares rights that the live revision does not\n");
        for right in &plan.new_rights {
            let used = if right.used { "  (used in this plan)" } else { "" };
            let _ = writeln!(text, "  {}{used}", right.right);
        }
    }
    text
}

/// Which gates hold, by a plan that was just made.
pub(super) fn of_gates(
    gates: &GatesSpec,
    plan: Option<&PlanStatus>,
    shadow: Option<&ShadowStatus>,
) -> String {
    let held = gates::held(gates, plan, shadow);
    if held.is_empty() {
        return "\ngates: all pass\n".to_owned();
    }
    let mut text = "\ngates\n".to_owned();
    for held in held {
        let mark = if held.waits { "…" } else { "✗" };
        text.push_str(&wrapped(&format!("  {mark} {}: {}", held.gate, held.text), 4));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::plan::{KindCount, NewRight, PathChange, PlanCounts, PlannedChange, Sample};

    #[test]
    fn a_long_line_fits_a_terminal() {
        let text = wrapped(&format!("  ✗ gate: {}", "some words ".repeat(30)), 4);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert!(
            text.lines().skip(1).all(|line| line.starts_with("    s") || line.starts_with("    w")),
            "{text}"
        );
        let long = "x".repeat(200);
        assert_eq!(wrapped(&long, 4), format!("{long}\n"), "nothing to break it at");
    }

    #[test]
    fn a_plan_is_shown_with_its_paths_grouped() {
        let path = |path: &str| PathChange { path: path.into(), ..PathChange::default() };
        let change = PlannedChange {
            api_version: "apps/v1".into(),
            kind: "Deployment".into(),
            paths: vec![
                path("spec.template.spec.containers[web].image"),
                path("metadata.labels.tier"),
            ],
            ..PlannedChange::default()
        };
        let mut paths = Paths::default();
        for _ in 0..500 {
            paths.add(&PlannedObject { changes: vec![change.clone()], ..PlannedObject::default() });
        }
        let sample = |sort: &str, text: &str| Sample {
            object: "demo/shop".into(),
            sort: sort.into(),
            text: text.into(),
        };
        let plan = PlanStatus {
            message: Some(
                "changes 500 of 1000 objects: updates 500 Deployment.apps; 3 fail".into(),
            ),
            against: "web-1".into(),
            updates: vec![KindCount { kind: "Deployment.apps".into(), objects: 500 }],
            objects: PlanCounts { total: 1_000, changed: 500, failed: 3, ..PlanCounts::default() },
            samples: vec![sample("Delete", "deletes ConfigMap old"), sample("Error", "it trapped")],
            new_rights: vec![NewRight { right: "delete configmaps".into(), used: true }],
            ..PlanStatus::default()
        };
        let gates = GatesSpec { max_errors: Some(0), max_deletes: Some(0), ..GatesSpec::default() };
        let text = drawn(&Planned { revision: "web-2".into(), plan }, &paths, Some(&(gates, None)));
        let expected = "\
web-2 changes 500 of 1000 objects
  against web-1
  update     500 Deployment.apps
               3 fail, and the live revision does not

     500 Deployment.apps: metadata.labels.tier
     500 Deployment.apps: spec.template.spec.containers[web].image

deletes, for
  demo/shop: deletes ConfigMap old

fails, for
  demo/shop: it trapped

declares rights that the live revision does not
  delete configmaps  (used in this plan)

gates
  … plan: its plan has looked at 0 of 1000 objects
";
        assert_eq!(text, expected);
    }
}
