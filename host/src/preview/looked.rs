//! What a revision would do for one object, less what the live one would do as well; pure.
//!
//! The live revision is the control: what it is about to change by itself, a drift that it repairs, a time that it writes, is
//! no difference between the two. Where both change the same field to something else, a second look at the live one, at
//! another time and with other chances, tells a field that moves by itself from one that differs.
//!
//! Invariants: `what_the_live_revision_does_as_well_is_no_difference`, `a_field_that_moves_by_itself_is_no_difference`,
//! `what_both_make_under_a_random_name_is_the_same`.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{BuildHasher, RandomState},
    sync::LazyLock,
};

use serde_json::Value;

use super::difference::{between, plain};
use crate::{
    client::dry::{Keys, Trial, Use, Would},
    model::{
        kind::Kind,
        plan::{ChangeSort, PathChange, PlannedChange, PlannedObject},
    },
};

/// What stands in the place of a Secret's values.
const REDACTED: &str = "(not shown)";

/// What one revision would do for one object.
#[derive(Debug, Default)]
pub(super) struct Looked {
    pub(super) changes: Vec<Change>,
    /// Why the run has failed: in which way, and in words.
    pub(super) error: Option<(&'static str, String)>,
    pub(super) untold: BTreeSet<String>,
    pub(super) used: BTreeSet<(Kind, Use)>,
    pub(super) events: usize,
}

/// What would become of one object.
#[derive(Clone, Debug)]
pub(super) struct Change {
    /// Names the object in both revisions' runs.
    id: Id,
    keys: Keys,
    pub(super) planned: PlannedChange,
}

/// Kind, namespace, name, and of those with a random name what it begins with and a number.
type Id = (Kind, Option<String>, String, usize);

impl Looked {
    /// Reads it off a run that has ended.
    pub(super) fn of(trial: Trial, error: Option<(&'static str, String)>) -> Self {
        let mut random: BTreeMap<(Kind, Option<String>, String), usize> = BTreeMap::new();
        let mut changes = vec![];
        let mut writes = trial.writes;
        // Those whose names are random are told apart by the order in which they were made.
        writes.sort_by_key(|would| would.order);
        for would in writes {
            let namespace = would.key.namespace.as_deref().map(str::to_owned);
            let id = match &would.generated {
                Some(stem) => {
                    let stem = (would.kind.clone(), namespace.clone(), stem.clone());
                    let count = random.entry(stem.clone()).or_default();
                    *count += 1;
                    (stem.0, stem.1, stem.2, *count)
                }
                None => (would.kind.clone(), namespace, would.key.name.to_string(), 0),
            };
            changes.extend(Change::of(id, &would));
        }
        // A guest may live with a refusal; people should hear of it.
        let refused = trial.refused.into_iter().next();
        let error = match (error, refused) {
            (Some((way, error)), Some(refused)) if !error.contains(&refused) => {
                Some((way, format!("{error} (the API server refused: {refused})")))
            }
            (None, Some(refused)) => {
                Some(("refused", format!("the API server refuses: {refused}")))
            }
            (error, _) => error,
        };
        Self { changes, error, untold: trial.untold, used: trial.used, events: trial.events }
    }

    /// Whether there is anything to say of it.
    pub(super) fn is_quiet(&self) -> bool {
        self.changes.is_empty() && self.error.is_none() && self.untold.is_empty()
    }

    /// Takes away what the live revision does as well. True: a field of both differs, so that only another look at the live one,
    /// `again`, tells whether it moves by itself.
    pub(super) fn subtract(&mut self, live: &Self, again: Option<&Self>) -> bool {
        let mut doubts = false;
        let by_id = |all: &Self| {
            let changes = all.changes.iter().map(|change| (change.id.clone(), change.clone()));
            changes.collect::<BTreeMap<_, _>>()
        };
        let (live_changes, again_changes) = (by_id(live), again.map(by_id));
        self.changes.retain_mut(|change| {
            let Some(other) = live_changes.get(&change.id) else { return true };
            let moved = again_changes.as_ref().map(|again| {
                again.get(&change.id).map_or_else(BTreeSet::new, |again| other.apart(again))
            });
            let (stays, is_doubtful) = change.less(other, moved.as_ref());
            doubts |= is_doubtful;
            stays
        });
        doubts
    }

    /// As it is told.
    pub(super) fn planned(self, object: String, live: Option<&Self>) -> PlannedObject {
        let way = |looked: &Self| looked.error.as_ref().map(|(way, _)| *way);
        let failing_already =
            self.error.is_some() && live.is_some_and(|live| way(live) == way(&self));
        PlannedObject {
            object,
            changes: self.changes.into_iter().map(|change| change.planned).collect(),
            error: self.error.map(|(_, words)| words),
            failing_already,
            untold: self.untold.into_iter().collect(),
        }
    }
}

impl Change {
    /// `None`: nothing would change.
    fn of(id: Id, would: &Would) -> Option<Self> {
        let value = |entry: &crate::watch::Entry| {
            let object = serde_json::from_str(entry.body()).unwrap_or_default();
            plain(redacted(&would.kind, object))
        };
        let before = would.stored.as_deref().map(value);
        let after = would.left.as_deref().map(value);
        let sort = match (&before, would.deleted) {
            (_, true) => ChangeSort::Delete,
            (None, _) => ChangeSort::Create,
            (Some(_), _) => ChangeSort::Update,
        };
        let after = after.filter(|_| sort != ChangeSort::Delete);
        let paths = match (sort, &before, &after) {
            (ChangeSort::Update, Some(before), Some(after)) => between(before, after, &would.keys),
            _ => vec![],
        };
        if sort == ChangeSort::Update && paths.is_empty() {
            return None;
        }
        let planned = PlannedChange {
            change: sort,
            api_version: would.kind.api_version(),
            kind: would.kind.kind.clone(),
            namespace: would.key.namespace.as_deref().map(str::to_owned),
            name: would.key.name.to_string(),
            paths,
            before: before.unwrap_or_default(),
            after: after.unwrap_or_default(),
        };
        Some(Self { id, keys: would.keys.clone(), planned })
    }

    /// The fields in which what two runs of one revision leave differ.
    fn apart(&self, again: &Self) -> BTreeSet<String> {
        let found = between(&self.content(), &again.content(), &self.keys);
        found.into_iter().map(|change| change.path).collect()
    }

    /// What is left of the object, without a name that is random.
    fn content(&self) -> Value {
        let mut after = self.planned.after.clone();
        if self.id.3 > 0
            && let Some(metadata) = after["metadata"].as_object_mut()
        {
            metadata.remove("name");
        }
        after
    }

    /// Takes away what `live` does as well; `moved`: the fields that move by themselves, if that is known. Whether something is
    /// left, and whether `moved` would tell more.
    fn less(&mut self, live: &Self, moved: Option<&BTreeSet<String>>) -> (bool, bool) {
        let moves = |path: &str| moved.is_some_and(|moved| moved.contains(path));
        match (self.planned.change, live.planned.change) {
            (ChangeSort::Delete, ChangeSort::Delete) => (false, false),
            (ChangeSort::Create, ChangeSort::Create) => {
                let mut paths = between(&live.content(), &self.content(), &self.keys);
                let differ = !paths.is_empty();
                paths.retain(|change| !moves(&change.path));
                // Both make it: what is told is how the candidate makes it otherwise.
                let stays = !paths.is_empty();
                self.planned.paths = paths;
                (stays, differ && moved.is_none())
            }
            (ChangeSort::Update, ChangeSort::Update) => {
                let theirs: BTreeMap<&str, &PathChange> =
                    live.planned.paths.iter().map(|one| (one.path.as_str(), one)).collect();
                let mut doubts = false;
                self.planned.paths.retain(|change| {
                    let Some(other) = theirs.get(change.path.as_str()) else { return true };
                    if other.to == change.to || moves(&change.path) {
                        return false;
                    }
                    doubts |= moved.is_none();
                    true
                });
                (!self.planned.paths.is_empty(), doubts)
            }
            _ => (true, false),
        }
    }
}

/// A Secret's values are nobody's business, but whether they change is; what was applied last is in its annotations, too. The
/// key is this process's: nobody can guess a value by its fingerprint.
fn redacted(kind: &Kind, mut object: Value) -> Value {
    static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    if kind.is_secret() {
        for part in ["/data", "/stringData", "/metadata/annotations"] {
            let values = object.pointer_mut(part).and_then(Value::as_object_mut);
            for (_, value) in values.into_iter().flatten() {
                *value = format!("{REDACTED} {:016x}", KEY.hash_one(value.to_string())).into();
            }
        }
    }
    object
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::{model::object::ObjectKey, watch::envelope};

    fn entry(name: &str, data: &Value) -> Arc<crate::watch::Entry> {
        let object = json!({ "apiVersion": "v1", "kind": "ConfigMap", "data": data,
            "metadata": { "name": name, "namespace": "demo" } });
        Arc::new(envelope::object(&object.to_string()).unwrap())
    }

    fn would(name: &str, before: Option<Value>, after: Option<Value>) -> Would {
        let kind = Kind::new("v1", "ConfigMap");
        let deleted = after.is_none();
        let [stored, left] = [before, after].map(|data| data.map(|data| entry(name, &data)));
        Would::for_tests((kind, ObjectKey::new(Some("demo"), name)), (stored, left), deleted)
    }

    fn looked(writes: Vec<Would>) -> Looked {
        Looked::of(Trial { writes, ..Trial::default() }, None)
    }

    fn told(mut candidate: Looked, live: &Looked, again: Option<&Looked>) -> (Vec<String>, bool) {
        let doubts = candidate.subtract(live, again);
        let told = candidate.changes.iter().map(|change| {
            let paths: Vec<_> =
                change.planned.paths.iter().map(|path| path.path.as_str()).collect();
            format!("{:?} {} {}", change.planned.change, change.planned.name, paths.join(" "))
        });
        (told.collect(), doubts)
    }

    #[test]
    fn what_the_live_revision_does_as_well_is_no_difference() {
        let old = || Some(json!({ "a": "1", "b": "1" }));
        let both = || looked(vec![would("x", old(), Some(json!({ "a": "2", "b": "1" })))]);
        assert_eq!(told(both(), &both(), None), (vec![], false));
        let more = looked(vec![would("x", old(), Some(json!({ "a": "2", "b": "2" })))]);
        assert_eq!(told(more, &both(), None), (vec!["Update x data.b".to_owned()], false));
        let gone = || looked(vec![would("x", old(), None)]);
        assert_eq!(told(gone(), &gone(), None).0, Vec::<String>::new());
        assert_eq!(told(gone(), &both(), None).0, ["Delete x "]);
        let made = |value: &str| looked(vec![would("y", None, Some(json!({ "a": value })))]);
        assert_eq!(told(made("1"), &made("1"), None).0, Vec::<String>::new());
        let (found, doubts) = told(made("1"), &made("2"), Some(&made("2")));
        assert_eq!((found, doubts), (vec!["Create y data.a".to_owned()], false));
        assert_eq!(told(made("1"), &looked(vec![]), None).0, ["Create y "]);
        assert!(looked(vec![would("x", old(), old())]).is_quiet());
    }

    #[test]
    fn a_field_that_moves_by_itself_is_no_difference() {
        let at = |time: &str, size: &str| {
            let after = json!({ "time": time, "size": size });
            looked(vec![would("x", Some(json!({ "time": "0", "size": "1" })), Some(after))])
        };
        let (found, doubts) = told(at("1", "1"), &at("2", "1"), None);
        assert_eq!((found.len(), doubts), (1, true), "nobody knows yet");
        let (found, doubts) = told(at("1", "1"), &at("2", "1"), Some(&at("3", "1")));
        assert_eq!((found, doubts), (vec![], false));
        let (found, _) = told(at("1", "9"), &at("2", "5"), Some(&at("3", "5")));
        assert_eq!(found, ["Update x data.size"], "a drift that is repaired in another way");
    }

    #[test]
    fn what_both_make_under_a_random_name_is_the_same() {
        let made = |name: &str, value: &str| {
            let mut would = would(name, None, Some(json!({ "a": value })));
            would.generated = Some("job-".to_owned());
            would
        };
        let candidate = || looked(vec![made("job-1", "x"), made("job-2", "y")]);
        let live = looked(vec![made("job-8", "x")]);
        assert_eq!(told(candidate(), &live, None).0, ["Create job-2 "]);
        let (first, mut second) = (made("job-9", "x"), made("job-7", "y"));
        second.order = 1;
        let live = looked(vec![second, first]);
        assert_eq!(
            told(candidate(), &live, None).0,
            Vec::<String>::new(),
            "in the order of making"
        );
    }

    #[test]
    fn a_secrets_values_are_not_shown_and_their_change_is() {
        let secret = |value: &str| {
            let applied = json!({ "kubectl.kubernetes.io/last-applied-configuration": value });
            let object =
                json!({ "data": { "password": value }, "metadata": { "annotations": applied } });
            let shown = redacted(&Kind::new("v1", "Secret"), object);
            assert!(!shown.to_string().contains(value), "{shown}");
            shown["data"]["password"].clone()
        };
        assert_ne!(secret("hunter2"), secret("hunter3"));
        assert_eq!(secret("hunter2"), secret("hunter2"));
        assert!(secret("hunter2").as_str().unwrap().starts_with(REDACTED));
    }

    #[test]
    fn what_the_server_refuses_is_told_even_if_the_guest_lives_with_it() {
        let trial = || Trial { refused: vec!["no".to_owned()], ..Trial::default() };
        let error = |error: Option<&str>| {
            Looked::of(trial(), error.map(|text| ("retry", text.to_owned()))).error.unwrap().1
        };
        assert_eq!(error(None), "the API server refuses: no");
        assert_eq!(error(Some("it said no")), "it said no");
        assert_eq!(error(Some("bad")), "bad (the API server refused: no)");
    }
}
