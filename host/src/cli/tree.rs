//! One controller as a tree: its account, its conditions, its revisions and what it watches; pure.
//!
//! Invariants: `problems_are_shown_in_full`, `every_revision_has_the_role_that_matters_most`.

use std::time::Duration;

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Condition, jiff::Timestamp};

use super::{
    edit::Seen,
    presence::{Presence, doubt},
    print::{Tree, age, short, span},
    wait::is_trouble,
};
use crate::model::{
    crd::{RevisionPhase, WasmRevision, WasmRevisionStatus},
    kind::Kind,
    live::{Live, Queue, Watch},
    manifest::{Manifest, Mapping, Projection},
    plan::PlanPhase,
};

/// Draws what was seen, as of `now`, with what the host itself says of it if it can be asked.
pub(super) fn draw(
    seen: &Seen,
    live: Option<&Live>,
    presence: &Presence,
    now: Timestamp,
) -> String {
    let status = seen.status();
    let meta = &seen.controller.metadata;
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let made = age(meta.creation_timestamp.as_ref().map(|time| time.0), now);
    let message = status.message.as_deref().map(|text| format!("\n{text}")).unwrap_or_default();
    let head = format!("{namespace}/{}  {:?}  {made}{message}", seen.name(), status.phase);
    let mut tree = Tree::new(&head);
    if let Some(doubt) = doubt(&seen.controller, presence) {
        tree.push(Tree::new(&format!("✗ {doubt}")));
    }
    if let Presence::Here(text) = presence {
        tree.push(Tree::new(&format!("host  {text}")));
    }
    let account = &seen.controller.spec.service_account_name;
    tree.push(Tree::new(&format!("account  {namespace}/{account}")));
    if let Some(primary) = &status.primary {
        tree.push(Tree::new(&format!("primary  {primary}")));
    }
    let mut others = status.shares_primary_with.clone();
    if status.shares_primary_elsewhere > 0 {
        others.push(format!("{} of other namespaces", status.shares_primary_elsewhere));
    }
    if !others.is_empty() {
        tree.push(Tree::new(&format!("shares its primary with  {}", others.join(", "))));
    }
    if status.conditions.is_empty() {
        tree.push(Tree::new("conditions: none; no host has looked at it yet"));
    } else {
        let conditions = status.conditions.iter().map(|condition| of_condition(condition, now));
        tree.push(Tree::with("conditions", conditions));
    }
    let revisions =
        seen.newest_first().into_iter().map(|revision| of_revision(seen, revision, now));
    let title = if seen.revisions.is_empty() { "revisions: none" } else { "revisions" };
    tree.push(Tree::with(title, revisions));
    if let Some(queue) = live.and_then(|live| live.queue.as_ref()) {
        tree.push(Tree::new(&of_queue(queue)));
    }
    tree.push(watches(seen, live));
    tree.draw()
}

fn of_queue(queue: &Queue) -> String {
    let Queue { ready, later, running, longest_millis } = queue;
    let longest = match running {
        0 => String::new(),
        _ => format!(", the longest for {}", span(Duration::from_millis(*longest_millis))),
    };
    format!("queue  {ready} ready  {later} later  {running} running{longest}")
}

fn of_condition(condition: &Condition, now: Timestamp) -> Tree {
    let mark = if is_trouble(condition) { "✗" } else { "✓" };
    let since = age(Some(condition.last_transition_time.0), now);
    let Condition { type_, status, reason, message, .. } = condition;
    let message = if message.is_empty() { String::new() } else { format!("\n{message}") };
    Tree::new(&format!("{mark} {type_}={status}  {reason}  {since}{message}"))
}

fn of_revision(seen: &Seen, revision: &WasmRevision, now: Timestamp) -> Tree {
    let name = revision.metadata.name.as_deref().unwrap_or_default();
    let made = age(revision.metadata.creation_timestamp.as_ref().map(|time| time.0), now);
    let digest = short(&revision.spec.digest);
    let message = revision.status.as_ref().and_then(|status| status.message.as_deref());
    let message = message.map(|text| format!("\n{text}")).unwrap_or_default();
    let image = revision.spec.image.as_deref();
    let image = image.map(|text| format!("\n{text}")).unwrap_or_default();
    let plan = revision.status.as_ref().and_then(of_plan);
    let plan = plan.map(|text| format!("\n{text}")).unwrap_or_default();
    let (role, number) = (role(seen, revision), revision.spec.number);
    Tree::new(&format!("{name}  {role}  #{number}  {digest}  {made}{image}{message}{plan}"))
}

/// What its plan and its shadow say; of what is live or history they say nothing that matters now.
fn of_plan(status: &WasmRevisionStatus) -> Option<String> {
    if status.phase != RevisionPhase::Ready {
        return None;
    }
    let plan = status.plan.as_ref().map(|plan| {
        let counts = &plan.objects;
        match (plan.phase, &plan.message) {
            (PlanPhase::Running, _) => {
                format!("plan: {} of {} objects", counts.looked, counts.total)
            }
            (PlanPhase::Complete, Some(message)) => format!("plan: {message}"),
            (phase, message) => {
                let message = message.as_deref().unwrap_or_default();
                format!("plan ({}): {message}", format!("{phase:?}").to_lowercase())
            }
        }
    });
    let shadow = status.shadow.as_ref().map(|shadow| {
        let bad = shadow.differing + shadow.failed + shadow.untold;
        format!("shadow: {} runs, {bad} of them other than the live ones", shadow.runs)
    });
    let all: Vec<_> = plan.into_iter().chain(shadow).collect();
    (!all.is_empty()).then(|| all.join("\n"))
}

/// What a revision is to its controller; else where it stands.
fn role(seen: &Seen, revision: &WasmRevision) -> String {
    let status = seen.status();
    let name = revision.metadata.name.as_deref();
    let phase = revision.status.as_ref().map(|status| status.phase).unwrap_or_default();
    if name == status.active.as_deref() {
        return "active".to_owned();
    }
    if name == status.candidate.as_deref() {
        return "candidate".to_owned();
    }
    if name == status.previous.as_deref() {
        return "previous".to_owned();
    }
    if name.is_some_and(|name| seen.rejects(name)) {
        return "rejected".to_owned();
    }
    if phase == RevisionPhase::Failed {
        return "failed".to_owned();
    }
    format!("{phase:?}").to_lowercase()
}

/// What the live revision watches, else what the newest one does that has said so.
fn watches(seen: &Seen, live: Option<&Live>) -> Tree {
    let status = seen.status();
    let active = status.active.as_deref().and_then(|name| seen.revision(name));
    let found = active.into_iter().chain(seen.newest_first()).find_map(|revision| {
        let manifest = revision.status.as_ref()?.manifest.clone()?;
        Some((revision, serde_json::from_value::<Manifest>(manifest).ok()?))
    });
    let Some((revision, manifest)) = found else {
        return Tree::new("watches: not known yet");
    };
    let children = manifest.all_watches().map(|watch| {
        let projection = match watch.projection {
            Projection::Full => "",
            Projection::Metadata => "  metadata only",
        };
        let selector = watch.label_selector.as_deref().map(|text| format!("  {text}"));
        let wakes = wakes(&watch.mapping);
        let selector = selector.unwrap_or_default();
        let now = live.map(|live| doing(live, &watch.kind)).unwrap_or_default();
        Tree::new(&format!(
            "{} {}  {wakes}{projection}{selector}{now}",
            watch.kind, watch.kind.version
        ))
    });
    let name = revision.metadata.name.as_deref().unwrap_or_default();
    Tree::with(&format!("watches of {name}"), children)
}

/// How the watches of a kind do, one a namespace where the controller is bound to some.
fn doing(live: &Live, kind: &Kind) -> String {
    let of = |one: &&Watch| one.api_version == kind.api_version() && one.kind == kind.kind;
    let watches: Vec<_> = live.watches.iter().filter(of).collect();
    if watches.is_empty() {
        return String::new();
    }
    let objects: usize = watches.iter().map(|one| one.objects).sum();
    let trouble = watches.iter().find_map(|one| one.trouble.as_deref());
    let state = match trouble {
        Some(text) => format!("\n✗ {text}"),
        None if watches.iter().any(|one| !one.synced) => "  not synced yet".to_owned(),
        None => String::new(),
    };
    format!("  {objects} objects{state}")
}

fn wakes(mapping: &Mapping) -> String {
    match mapping {
        Mapping::Same => "primary".to_owned(),
        Mapping::Controller => "owned".to_owned(),
        Mapping::Owner => "by owner reference".to_owned(),
        Mapping::Label(reference) => format!("by label {}", reference.name),
        Mapping::Annotation(reference) => format!("by annotation {}", reference.name),
        Mapping::Field(reference) => format!("by field {}", reference.name),
        Mapping::Index(name) => format!("by index {name}"),
        Mapping::Every => "wakes every primary".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::edit::tests::{revision, seen, v},
        *,
    };
    use crate::model::{
        crd::{condition, manifest_value},
        manifest::tests::manifest,
    };

    const OLD: &str = "sha256:1111111111111111111111111111111111111111111111111111111111111111";
    const NEW: &str = "sha256:2222222222222222222222222222222222222222222222222222222222222222";
    const BAD: &str = "sha256:3333333333333333333333333333333333333333333333333333333333333333";

    #[test]
    fn problems_are_shown_in_full() {
        let mut seen = seen();
        let yaml = "the account may not list configmaps; apply:\nkind: Role\nmetadata: { name: x }";
        let status = seen.controller.status.as_mut().unwrap();
        status.conditions = vec![condition("Degraded", true, "MissingRight", yaml, None)];
        let text = draw(&seen, None, &Presence::Unknown, Timestamp::now());
        for line in yaml.lines() {
            assert!(text.contains(line), "{text}");
        }
        assert!(text.contains("✗ Degraded=True  MissingRight"), "{text}");
        let gone = Presence::Gone("no host runs: since yesterday".to_owned());
        assert!(
            draw(&seen, None, &gone, Timestamp::now()).contains("✗ no host runs: since yesterday")
        );
        assert!(text.contains("watches: not known yet"), "{text}");
    }

    #[test]
    fn every_revision_has_the_role_that_matters_most() {
        let mut seen = seen();
        let mut bad = revision(BAD, 3, RevisionPhase::Failed);
        let image = format!("ghcr.io/team/web@{NEW}");
        bad.spec.image = Some(image.clone());
        seen.revisions.push(bad);
        let text = draw(&seen, None, &Presence::Unknown, Timestamp::now());
        for (digest, expected) in [
            (OLD, "active  #1  111111111111"),
            (NEW, "candidate  #2  222222222222"),
            (BAD, "failed  #3  333333333333"),
        ] {
            assert!(text.contains(&format!("{}  {expected}", v(digest))), "{text}");
        }
        assert!(text.find(&v(BAD)) < text.find(&v(OLD)), "the newest is on top: {text}");
        assert!(text.contains(&image), "{text}");
        seen.controller.status.as_mut().unwrap().candidate = None;
        seen.controller.spec.rollout.rejected = vec![v(NEW), v(BAD)];
        let text = draw(&seen, None, &Presence::Unknown, Timestamp::now());
        assert!(text.contains(&format!("{}  rejected", v(NEW))), "{text}");
        seen.controller.status.as_mut().unwrap().previous = Some(v(NEW));
        let text = draw(&seen, None, &Presence::Unknown, Timestamp::now());
        assert!(text.contains(&format!("{}  previous", v(NEW))), "{text}");
    }

    #[test]
    fn what_the_host_says_is_shown_beside_what_is_stored() {
        let mut seen = seen();
        seen.revisions[0].status.as_mut().unwrap().manifest = manifest_value(&manifest());
        let watch = |kind: &str, objects| Watch {
            api_version: "v1".into(),
            kind: kind.into(),
            synced: true,
            objects,
            ..Watch::default()
        };
        let queue = Queue { ready: 3, later: 2, running: 1, longest_millis: 40 };
        let mut live = Live {
            queue: Some(queue),
            watches: vec![watch("ConfigMap", 7), watch("ConfigMap", 5)],
            ..Live::default()
        };
        let text = draw(&seen, Some(&live), &Presence::Unknown, Timestamp::now());
        assert!(
            text.contains("queue  3 ready  2 later  1 running, the longest for 40 ms"),
            "{text}"
        );
        assert!(text.contains("ConfigMap v1  owned  12 objects\n"), "{text}");
        live.watches[1].trouble = Some("403 forbidden".into());
        let text = draw(&seen, Some(&live), &Presence::Unknown, Timestamp::now());
        assert!(text.contains("✗ 403 forbidden"), "{text}");
    }

    #[test]
    fn the_watched_kinds_are_those_of_the_live_revision() {
        let mut seen = seen();
        seen.revisions[0].status.as_mut().unwrap().manifest = manifest_value(&manifest());
        let text = draw(&seen, None, &Presence::Unknown, Timestamp::now());
        assert!(text.contains(&format!("watches of {}", v(OLD))), "{text}");
        assert!(text.contains("Site.example.com v1  primary"), "{text}");
        assert!(text.contains("ConfigMap v1  owned"), "{text}");
    }
}
