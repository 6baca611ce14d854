//! Counts what a plan finds, in a fixed space; pure.
//!
//! Invariants: `a_tally_keeps_its_size`, `what_is_protected_is_counted_below_its_path`,
//! `a_tally_goes_on_from_its_status`.

use std::collections::{BTreeMap, BTreeSet};

use super::difference::MORE;
use crate::{
    model::plan::{
        ChangeSort, Count, KindCount, PathCount, PlanStatus, PlannedChange, PlannedObject,
        ProtectedPath, Sample,
    },
    text::cut,
};

/// Kinds, paths, samples and texts that a status has room for.
const SHOWN: usize = 20;
const SAMPLES: usize = 20;
const TEXTS: usize = 10;
/// More paths are not told apart.
const PATHS: usize = 5_000;
/// Bytes of a path and of a sample's text.
const PATH: usize = 240;
const TEXT: usize = 400;
/// Primaries that are named for a path.
const NAMED: usize = 3;

/// What a plan has found so far.
#[derive(Debug)]
pub(super) struct Tally {
    status: PlanStatus,
    protected: Vec<ProtectedPath>,
    kinds: BTreeMap<(ChangeSort, String), i64>,
    paths: BTreeMap<(String, String), i64>,
    more: i64,
}

impl Tally {
    /// Goes on from what a status says.
    pub(super) fn from(status: PlanStatus, protected: Vec<ProtectedPath>) -> Self {
        let kinds = [
            (ChangeSort::Create, &status.creates),
            (ChangeSort::Update, &status.updates),
            (ChangeSort::Delete, &status.deletes),
        ];
        let kinds = kinds.into_iter().flat_map(|(sort, counts)| {
            counts.iter().map(move |count| ((sort, count.kind.clone()), count.objects))
        });
        let paths = status.paths.iter();
        let paths = paths.map(|count| ((count.kind.clone(), count.path.clone()), count.objects));
        let (kinds, paths, more) = (kinds.collect(), paths.collect(), status.more_paths);
        Self { status, protected, kinds, paths, more }
    }

    /// Counts one object.
    pub(super) fn add(&mut self, found: &PlannedObject, rights: BTreeSet<String>, events: usize) {
        let counts = &mut self.status.objects;
        counts.looked += 1;
        counts.changed += i64::from(!found.changes.is_empty());
        counts.failed += i64::from(found.error.is_some() && !found.failing_already);
        counts.failing_already += i64::from(found.failing_already);
        counts.untold += i64::from(!found.untold.is_empty());
        self.status.position = Some(found.object.clone());
        self.status.events = self.status.events.saturating_add(i64::try_from(events).unwrap_or(0));
        for change in &found.changes {
            self.count(&found.object, change);
        }
        for text in &found.untold {
            self.sample("Untold", &found.object, text);
            let text = cut(text, TEXT).into_owned();
            let known = self.status.untold.iter_mut().find(|count| count.text == text);
            if let Some(count) = known {
                count.objects += 1;
            } else if self.status.untold.len() < TEXTS {
                self.status.untold.push(Count { text, objects: 1 });
            }
        }
        if let Some(error) = found.error.as_ref().filter(|_| !found.failing_already) {
            self.sample("Error", &found.object, error);
        }
        let mut all: BTreeSet<String> =
            std::mem::take(&mut self.status.rights).into_iter().collect();
        all.extend(rights);
        self.status.rights = all.into_iter().collect();
    }

    fn count(&mut self, object: &str, change: &PlannedChange) {
        let counts = &mut self.status.objects;
        *match change.change {
            ChangeSort::Create => &mut counts.creates,
            ChangeSort::Update => &mut counts.updates,
            ChangeSort::Delete => &mut counts.deletes,
        } += 1;
        let kind = change.named_kind();
        *self.kinds.entry((change.change, kind.clone())).or_default() += 1;
        let named = &change.name;
        let sort = if change.change == ChangeSort::Delete { "Delete" } else { "Change" };
        let paths: Vec<_> = change.paths.iter().map(|one| cut(&one.path, PATH)).collect();
        let text = match change.change {
            ChangeSort::Create => format!("creates {kind} {named}"),
            ChangeSort::Delete => format!("deletes {kind} {named}"),
            ChangeSort::Update => format!("{kind} {named}: {}", paths.join(", ")),
        };
        self.sample(sort, object, &text);
        for path in paths {
            let id = (kind.clone(), path.into_owned());
            if let Some(count) = self.paths.get_mut(&id) {
                *count += 1;
            } else if self.paths.len() < PATHS {
                self.paths.insert(id, 1);
            } else {
                self.more += 1;
            }
        }
        for guarded in &self.protected {
            if !touches(guarded, &kind, change) {
                continue;
            }
            let all = &mut self.status.protected;
            let is_it = |one: &PathCount| one.kind == guarded.kind && one.path == guarded.path;
            let at = all.iter().position(is_it).unwrap_or(all.len());
            if at == all.len() {
                let (kind, path) = (guarded.kind.clone(), guarded.path.clone());
                all.push(PathCount { kind, path, objects: 0, samples: vec![] });
            }
            let count = &mut all[at];
            count.objects += 1;
            if count.samples.len() < NAMED {
                count.samples.push(object.to_owned());
            }
        }
    }

    /// Of each sort some have room, whatever came first.
    fn sample(&mut self, sort: &str, object: &str, text: &str) {
        let all = &mut self.status.samples;
        let same = all.iter().filter(|sample| sample.sort == sort).count();
        if all.len() < SAMPLES && same < SAMPLES / 4 * 2 || same < SAMPLES / 5 {
            if all.len() >= SAMPLES
                && let Some(at) = all.iter().rposition(|sample| sample.sort == "Change")
            {
                all.remove(at);
            }
            if all.len() < SAMPLES {
                let (object, text) = (object.to_owned(), cut(text, TEXT).into_owned());
                all.push(Sample { object, sort: sort.to_owned(), text });
            }
        }
    }

    /// As it is told.
    pub(super) fn status(&self) -> PlanStatus {
        let of = |sort: ChangeSort| {
            let kinds = self.kinds.iter().filter(|((one, _), _)| *one == sort);
            let mut counts: Vec<_> = kinds
                .map(|((_, kind), objects)| KindCount { kind: kind.clone(), objects: *objects })
                .collect();
            counts.sort_by_key(|count| std::cmp::Reverse(count.objects));
            counts.truncate(SHOWN);
            counts
        };
        let mut paths: Vec<_> = self.paths.iter().collect();
        paths.sort_by_key(|(_, objects)| std::cmp::Reverse(**objects));
        let left = paths.len().saturating_sub(SHOWN);
        let shown = paths.into_iter().take(SHOWN).map(|((kind, path), objects)| PathCount {
            kind: kind.clone(),
            path: path.clone(),
            objects: *objects,
            samples: vec![],
        });
        PlanStatus {
            creates: of(ChangeSort::Create),
            updates: of(ChangeSort::Update),
            deletes: of(ChangeSort::Delete),
            paths: shown.collect(),
            more_paths: self.more.saturating_add(i64::try_from(left).unwrap_or(i64::MAX)),
            ..self.status.clone()
        }
    }
}

/// Whether a change is of a protected path, of something above it that comes or goes, or of something below.
fn touches(guarded: &ProtectedPath, kind: &str, change: &PlannedChange) -> bool {
    let is_kind = guarded.kind == kind || guarded.kind == change.kind;
    // What is deleted loses all its fields; what is made has had none.
    let is_gone = change.change == ChangeSort::Delete;
    let is_update = change.change == ChangeSort::Update;
    is_kind
        && (is_gone
            || is_update
                && change.paths.iter().any(|one| {
                    if one.path == MORE {
                        return true;
                    }
                    let (path, guarded) = (segments(&one.path), segments(&guarded.path));
                    path.iter()
                        .zip(&guarded)
                        .all(|(one, other)| one == other || (other == "[]" && one.starts_with('[')))
                }))
}

/// The parts of a path: fields, and items in brackets.
fn segments(path: &str) -> Vec<String> {
    let (mut all, mut current, mut inside, mut quoted) = (vec![], String::new(), false, false);
    for c in path.chars() {
        match c {
            '"' if inside => quoted = !quoted,
            '.' if !inside => {
                if !current.is_empty() {
                    all.push(std::mem::take(&mut current));
                }
                continue;
            }
            '[' if !inside => {
                if !current.is_empty() {
                    all.push(std::mem::take(&mut current));
                }
                inside = true;
            }
            ']' if inside && !quoted => {
                current.push(c);
                // A field with odd characters is a field.
                let field = current.strip_prefix("[\"").and_then(|rest| rest.strip_suffix("\"]"));
                let field = field.map(str::to_owned);
                all.push(field.unwrap_or_else(|| current.clone()));
                current.clear();
                inside = false;
                continue;
            }
            _ => (),
        }
        current.push(c);
    }
    if !current.is_empty() {
        all.push(current);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::plan::PathChange;

    fn change(kind: &str, sort: ChangeSort, paths: &[&str]) -> PlannedChange {
        let path = |path: &&str| PathChange { path: (*path).to_owned(), ..PathChange::default() };
        PlannedChange {
            change: sort,
            api_version: "apps/v1".into(),
            kind: kind.into(),
            name: "x".into(),
            paths: paths.iter().map(path).collect(),
            ..PlannedChange::default()
        }
    }

    fn object(number: usize, changes: Vec<PlannedChange>) -> PlannedObject {
        PlannedObject { object: format!("demo/{number}"), changes, ..PlannedObject::default() }
    }

    #[test]
    fn a_tally_keeps_its_size() {
        let mut tally = Tally::from(PlanStatus::default(), vec![]);
        for number in 0..10_000 {
            let path = format!("spec.{}", "x".repeat(number % 700));
            let kind = format!("Kind{}", number % 50);
            let mut found = object(number, vec![change(&kind, ChangeSort::Update, &[&path])]);
            if number % 2 == 0 {
                found.error = Some("e".repeat(number));
                found.untold = vec!["u".repeat(number)];
            }
            if number == 9_999 {
                found.changes.push(change("Last", ChangeSort::Delete, &[]));
            }
            tally.add(&found, BTreeSet::from(["patch deployments.apps".to_owned()]), 1);
        }
        let status = tally.status();
        assert_eq!(
            (status.objects.looked, status.objects.failed, status.events),
            (10_000, 5_000, 10_000)
        );
        assert!(status.samples.iter().any(|one| one.sort == "Delete"), "{:?}", status.samples);
        assert!(status.samples.iter().filter(|one| one.sort == "Error").count() >= 4);
        let text = serde_json::to_string(&status).unwrap();
        assert!(text.len() < 32 << 10, "{} bytes", text.len());
    }

    #[test]
    fn what_is_protected_is_counted_below_its_path() {
        let guard = |kind: &str, path: &str| ProtectedPath { kind: kind.into(), path: path.into() };
        for (guarded, paths, expected) in [
            (guard("Deployment", "spec.template"), &["spec.template.spec.x"][..], true),
            (guard("Deployment.apps", "spec.template.spec.x"), &["spec.template"], true),
            (guard("Deployment.other", "spec.template"), &["spec.template"], false),
            (guard("Deployment", "spec.temp"), &["spec.template"], false),
            (guard("Deployment", "spec.c[].image"), &["spec.c[web].image"], true),
            (guard("Deployment", "spec.c[].image"), &["spec.c[log]"], true),
            (guard("Deployment", "spec.c[].image"), &["spec.c[web].name"], false),
            (guard("Deployment", "spec.c[a.b].image"), &["spec.c[a.b].image"], true),
            (guard("Deployment", "metadata.labels.a"), &[r#"metadata.labels["a.b/c"]"#], false),
            (
                guard("Deployment", r#"metadata.labels["a.b/c"]"#),
                &[r#"metadata.labels["a.b/c"]"#],
                true,
            ),
            (guard("Service", "spec"), &["spec.x"], false),
        ] {
            let it = change("Deployment", ChangeSort::Update, paths);
            assert_eq!(
                touches(&guarded, "Deployment.apps", &it),
                expected,
                "{guarded:?} {paths:?}"
            );
        }
        let guarded = guard("Deployment", "spec.template");
        let gone = change("Deployment", ChangeSort::Delete, &[]);
        assert!(touches(&guarded, "Deployment.apps", &gone), "it goes with its object");
        let made = change("Deployment", ChangeSort::Create, &[]);
        assert!(!touches(&guarded, "Deployment.apps", &made));
    }

    #[test]
    fn a_tally_goes_on_from_its_status() {
        let guarded = || vec![ProtectedPath { kind: "Deployment".into(), path: "spec".into() }];
        let add = |tally: &mut Tally, from: usize| {
            for number in from..from + 3 {
                let changes = vec![
                    change("Deployment", ChangeSort::Update, &["spec.a"]),
                    change("Service", ChangeSort::Create, &[]),
                ];
                tally.add(&object(number, changes), BTreeSet::new(), 0);
            }
        };
        let mut whole = Tally::from(PlanStatus::default(), guarded());
        add(&mut whole, 0);
        let mut rest = Tally::from(whole.status(), guarded());
        add(&mut whole, 3);
        add(&mut rest, 3);
        assert_eq!(rest.status(), whole.status());
        assert_eq!(rest.status().position.as_deref(), Some("demo/5"));
        assert_eq!(rest.status().protected[0].objects, 6);
    }
}
