//! Histories made by hand: each violation is found, and a clean history passes.

use serde_json::{Value, json};

use super::*;

/// One line of an audit log in the making.
struct Line(Value);

fn agent(generation: u64, epoch: Option<u64>, key: &str, run: &str) -> String {
    let epoch = epoch.map(|epoch| format!("epoch={epoch}; ")).unwrap_or_default();
    format!(
        "nagaya/0.1.0 (controller=a/web; revision=0123456789ab; generation={generation}; \
         {epoch}key={key}; reconcile={run})"
    )
}

impl Line {
    fn new(verb: &str, name: &str, code: u16) -> Self {
        Self(json!({
            "auditID": "x",
            "stage": "ResponseComplete",
            "verb": verb,
            "requestURI": format!("/api/v1/namespaces/a/configmaps/{name}"),
            "user": {"username": "host"},
            "userAgent": agent(1, None, "k", "r1"),
            "objectRef": {"resource": "configmaps", "namespace": "a", "name": name},
            "responseStatus": {"code": code},
            "requestReceivedTimestamp": "2026-01-02T03:04:05.000001Z",
            "stageTimestamp": "2026-01-02T03:04:05.000002Z",
        }))
    }

    fn create(name: &str, uid: &str, version: u32) -> Self {
        Self::new("create", name, 201).answer(name, uid, version)
    }

    fn patch(name: &str, uid: &str, version: u32) -> Self {
        Self::new("patch", name, 200).answer(name, uid, version)
    }

    /// A deletion that says what it means.
    fn delete(name: &str, uid: &str) -> Self {
        let mut line = Self::new("delete", name, 200);
        line.0["responseObject"] =
            json!({"kind": "Status", "metadata": {}, "details": {"name": name, "uid": uid}});
        line.0["requestObject"] = json!({"preconditions": {"uid": uid, "resourceVersion": "1"}});
        line
    }

    fn answer(mut self, name: &str, uid: &str, version: u32) -> Self {
        let version = version.to_string();
        let meta = json!({"namespace": "a", "name": name, "uid": uid, "resourceVersion": version});
        self.0["responseObject"] = json!({"kind": "ConfigMap", "metadata": meta});
        self
    }

    fn agent(mut self, agent: &str) -> Self {
        self.0["userAgent"] = json!(agent);
        self
    }

    fn at(mut self, from: u32, to: u32) -> Self {
        let time = |seconds: u32| json!(format!("2026-01-02T03:04:{seconds:02}Z"));
        self.0["requestReceivedTimestamp"] = time(from);
        self.0["stageTimestamp"] = time(to);
        self
    }

    fn by(self, generation: u64, run: &str) -> Self {
        self.agent(&agent(generation, None, "k", run))
    }

    fn meta(mut self, key: &str, value: Value) -> Self {
        self.0["responseObject"]["metadata"][key] = value;
        self
    }
}

fn history(lines: impl IntoIterator<Item = Line>) -> History {
    let events: Vec<Event> =
        lines.into_iter().map(|line| serde_json::from_value(line.0).unwrap()).collect();
    History::of(&events)
}

/// The violations of `found`, which must be as many as `texts`, each with its text.
#[track_caller]
fn assert_found(found: &[Violation], texts: &[&str]) {
    assert_eq!(found.len(), texts.len(), "{found:?}");
    for (violation, text) in found.iter().zip(texts) {
        assert!(violation.0.contains(text), "{violation} does not say {text}");
    }
}

#[test]
fn a_clean_history_passes() {
    let owner = json!([{"uid": "owner"}]);
    let lines = [
        Line::create("x", "u1", 10).meta("ownerReferences", owner),
        Line::patch("x", "u1", 12),
        // Another key at the same time, and others that are no runs.
        Line::create("y", "u2", 11).agent(&agent(1, None, "l", "s1")),
        Line::create("z", "u3", 13).agent("kubectl/1.36"),
        Line::patch("x", "u1", 14).by(2, "r2"),
        Line::delete("x", "u1").by(2, "r2"),
        Line::create("x", "u4", 20).by(2, "r3"),
        Line::new("patch", "y", 409).by(1, "r4"),
        Line::delete("z", "u3").agent("kubectl/1.36"),
    ];
    let history = history(lines);
    assert_eq!(history.writes().len(), 9);
    assert_eq!(history.by_runs().count(), 6);
    history.check().unwrap();
    assert_found(&history.duplicate_children("configmaps"), &[]);
    assert_eq!(history.most_tries(), 1);
}

#[test]
fn the_order_is_the_stores_not_the_logs() {
    let lines = [
        Line::delete("x", "u1"),
        Line::patch("x", "u1", 30).by(2, "r2"),
        Line::patch("x", "u1", 20),
        Line::create("x", "u5", 40).by(2, "r3"),
    ];
    let history = history(lines);
    let versions: Vec<_> = history.writes().iter().map(|write| write.version).collect();
    assert_eq!(versions, [Some(20), Some(30), None, Some(40)]);
    // Only the removal is late: the patch with version 20 was there before.
    assert_found(&history.late_generations(), &["generation 1 writes after 2"]);
}

#[test]
fn an_old_generation_must_not_write_after_the_new_one() {
    let lines = [
        Line::patch("x", "u1", 10).by(2, "r2"),
        Line::patch("x", "u1", 11).by(1, "r1"),
        // Another object has not been taken over yet; this one is refused, this one changes nothing.
        Line::patch("y", "u2", 12).by(1, "r1"),
        Line::new("patch", "x", 409).by(1, "r1"),
    ];
    assert_found(&history(lines).late_generations(), &["configmaps a/x by a/web"]);
    let same = [Line::patch("x", "u1", 10).by(2, "r2"), Line::patch("x", "u1", 10).by(1, "r1")];
    assert_found(&history(same).late_generations(), &[]);
    let other = agent(1, None, "k", "r9").replace("a/web", "a/other");
    let controllers =
        [Line::patch("x", "u1", 10).by(2, "r2"), Line::patch("x", "u1", 11).agent(&other)];
    assert_found(&history(controllers).late_generations(), &[]);
}

#[test]
fn a_write_that_changes_nothing_is_told_from_the_one_that_did() {
    let changed = |lines| {
        let history = history(lines);
        let changed = history.writes().iter().map(|write| write.changed);
        changed.collect::<Vec<_>>()
    };
    let twice = |from| {
        [
            Line::patch("x", "u1", 10).at(1, 2).agent("the deployment controller"),
            Line::patch("x", "u1", 10).at(from, 4).by(1, "r1"),
        ]
    };
    assert_eq!(changed(twice(3)), [true, false]);
    assert_eq!(changed(twice(1)), [false, false], "nobody knows which");
    let [patch, _] = twice(1);
    assert_eq!(changed([Line::create("x", "u1", 10).at(1, 3), patch]), [true, false]);
    let different = [Line::patch("x", "u1", 10), Line::patch("y", "u2", 10)];
    assert_eq!(changed(different), [true, true], "two objects");
    // Whoever wrote version 10 was cut off before the log had it.
    let others = [Line::patch("y", "u2", 11).at(1, 2), Line::patch("x", "u1", 10).at(3, 4)];
    assert_eq!(changed(others), [false, true], "in the store's order");
    let late = [Line::patch("y", "u2", 11).at(1, 3), Line::patch("x", "u1", 10).at(2, 4)];
    assert_eq!(changed(late), [true, true], "it was under way");
}

#[test]
fn an_old_leader_must_not_write_after_the_new_one_anywhere() {
    let by = |epoch, run: &str| agent(1, Some(epoch), run, run);
    let lines = [
        Line::patch("x", "u1", 10).agent(&by(5, "r1")),
        Line::patch("y", "u2", 11).agent(&by(6, "r2")),
        Line::patch("z", "u3", 12).agent(&by(5, "r3")),
    ];
    assert_found(&history(lines).late_leaders(), &["leader's epoch 5 writes after 6"]);
    let deletion = [
        Line::patch("x", "u1", 10).agent(&by(6, "r1")),
        Line::delete("x", "u1").agent(&by(5, "r2")),
        Line::delete("y", "u2").agent(&by(5, "r3")),
    ];
    let found = history(deletion).late_leaders();
    assert_found(&found, &["configmaps a/x"]);
}

#[test]
fn runs_of_one_key_must_not_write_in_turns() {
    let lines = |last: &str| {
        [
            Line::patch("x", "u1", 10).by(1, "r1"),
            Line::patch("y", "u2", 11).by(1, "r2"),
            Line::patch("z", "u3", 12).by(1, last),
        ]
    };
    assert_found(&history(lines("r1")).interleaved_runs(), &["run r1 of key k"]);
    assert_found(&history(lines("r2")).interleaved_runs(), &[]);
    assert_found(&history(lines("r3")).interleaved_runs(), &[]);
    let [first, second, third] = lines("r1");
    let other = second.agent(&agent(1, None, "l", "s1"));
    assert_found(&history([first, other, third]).interleaved_runs(), &[]);
}

#[test]
fn an_object_must_not_be_created_twice() {
    let twice = || [Line::create("x", "u1", 10), Line::create("x", "u2", 20).by(1, "r2")];
    assert_found(&history(twice()).duplicate_creates(), &["configmaps a/x is created while u1"]);
    let between = |line: Line| {
        let [first, second] = twice();
        history([first, line, second]).duplicate_creates()
    };
    assert_found(&between(Line::delete("x", "u1")), &[]);
    assert_found(between(Line::delete("y", "u9")).as_slice(), &["u1"]);
    assert_found(&between(Line::new("delete", "x", 504)), &[]);
    assert_found(&between(Line::new("deletecollection", "", 200).answer("", "", 15)), &[]);
    let ended = |finalizers| {
        Line::patch("x", "u1", 15)
            .meta("deletionTimestamp", json!("2026-01-02T03:04:05Z"))
            .meta("finalizers", finalizers)
    };
    assert_found(&between(ended(json!([]))), &[]);
    assert_found(&between(ended(json!(["a/b"]))), &["u1"]);
}

#[test]
fn an_owner_must_not_have_two_children_of_a_run() {
    let child = |name: &str, uid: &str, version, run: &str| {
        Line::create(name, uid, version)
            .meta("ownerReferences", json!([{"uid": "owner"}]))
            .by(1, run)
    };
    let lines = || [child("x-1", "u1", 10, "r1"), child("x-2", "u2", 20, "r2")];
    assert_found(
        &history(lines()).duplicate_children("configmaps"),
        &["owner owner has 2: configmaps a/x-1, configmaps a/x-2"],
    );
    assert_found(&history(lines()).duplicate_children("secrets"), &[]);
    let [first, mut unknown] = lines();
    unknown.0["responseStatus"] = json!({"code": 504});
    unknown.0["responseObject"] = json!({"kind": "Status"});
    assert_found(&history([first, unknown]).duplicate_children("configmaps"), &[]);
}

#[test]
fn a_deletion_says_what_it_means() {
    let half = |field: &str| {
        let mut line = Line::delete("x", "u1");
        line.0["requestObject"]["preconditions"][field] = Value::Null;
        history([line]).bare_deletes()
    };
    assert_found(&half("uid"), &["without uid and resourceVersion"]);
    assert_found(&half("resourceVersion"), &["without uid and resourceVersion"]);
    assert_found(&half("other"), &[]);
    let collection = Line::new("deletecollection", "", 200);
    assert_found(&history([collection]).bare_deletes(), &["deletecollection"]);
    let bare = Line::new("delete", "x", 200).agent("kubectl/1.36");
    assert_found(&history([bare]).bare_deletes(), &[]);
}

#[test]
fn a_check_names_all_there_is() {
    let bare = Line::new("delete", "x", 200);
    let lines = [Line::create("x", "u1", 10), Line::create("x", "u2", 20).by(1, "r2"), bare];
    let error = history(lines).check().unwrap_err().to_string();
    assert!(error.contains("2 violations") && error.contains("created while"), "{error}");
    assert!(error.contains("without uid"), "{error}");
}

#[test]
fn tries_are_counted_by_run_and_object() {
    let conflict = |run: &str| Line::new("patch", "x", 409).by(1, run);
    let lines = [conflict("r1"), conflict("r1"), conflict("r2"), Line::patch("x", "u1", 9)];
    assert_eq!(history(lines).most_tries(), 3);
}

#[test]
fn the_end_is_compared_with_what_it_should_be() {
    let map = |pairs: &[(&str, u32)]| -> BTreeMap<String, u32> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
    };
    let expected = map(&[("a", 1), ("b", 2), ("c", 3)]);
    assert_found(&differences(&expected, &expected), &[]);
    assert_found(
        &differences(&expected, &map(&[("a", 1), ("b", 9), ("d", 4)])),
        &["b says 9 instead of 2", "c is missing; it should say 3", "d should not be"],
    );
}
