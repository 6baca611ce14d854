//! The history checker: reads from the audit log who wrote what in which order, and says what must
//! not be.
//!
//! The order is that of the resourceVersions in the answers, which is the store's; lines of the log
//! stand in the order in which requests ended. A write whose answer is a 504, or none, may or may not
//! have happened and breaks no rule.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Result, bail};
use jiff::Timestamp;
use serde_json::Value;

use crate::control_plane::audit::{Event, Stage};

mod author;
mod checks;

pub use author::Author;
pub use checks::differences;

/// An object, whatever its uid.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Object {
    /// Empty: the core group.
    pub group: String,
    /// The plural.
    pub resource: String,
    /// Empty: cluster scope.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It happened.
    Done,
    /// The server refused it.
    Refused,
    /// It happened or not.
    Unknown,
}

/// One write.
#[derive(Debug, Clone)]
pub struct Write {
    /// The run that sent it; none: somebody else.
    pub author: Option<Author>,
    /// What it was about.
    pub object: Object,
    /// `status` and so on; empty: the object itself.
    pub subresource: String,
    /// `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub verb: String,
    /// What became of it.
    pub outcome: Outcome,
    /// The HTTP status; 0: none.
    pub code: u16,
    /// The resourceVersion in the answer.
    pub version: Option<u128>,
    /// Whether the object is different since then; false too where that is not clear.
    pub changed: bool,
    /// The object's uid in the answer.
    pub uid: String,
    /// The uids of its owners in the answer.
    pub owners: Vec<String>,
    /// Of a deletion: uid and resourceVersion that it is for.
    pub preconditions: (Option<String>, Option<String>),
    /// Whether the object was gone with it.
    pub removes: bool,
    /// When the request came and when it was answered.
    pub time: (Timestamp, Timestamp),
    /// The line of the log, for people.
    pub line: String,
}

/// Something that must not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation(pub String);

/// All writes of a log, in the store's order.
#[derive(Debug, Default)]
pub struct History {
    writes: Vec<Write>,
}

impl Write {
    /// Whether it made the object.
    pub fn is_creation(&self) -> bool {
        self.code == 201
    }

    fn of(event: &Event) -> Option<Self> {
        let writes = ["create", "update", "patch", "delete", "deletecollection"];
        let about = event.object_ref.as_ref()?;
        let is_write = writes.contains(&&*event.verb) && !event.is_dry_run();
        if event.stage == Stage::ResponseStarted || !is_write {
            return None;
        }
        let answer = event.response_object.as_ref().unwrap_or(&Value::Null);
        let meta = &answer["metadata"];
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let code = event.code().unwrap_or_default();
        let outcome = match code {
            200..300 => Outcome::Done,
            // 500 too: the server may fail after its store has not.
            0 | 500.. => Outcome::Unknown,
            _ => Outcome::Refused,
        };
        let is_status = answer["kind"] == "Status";
        let uid = if is_status { &answer["details"]["uid"] } else { &meta["uid"] };
        let owners = meta["ownerReferences"].as_array();
        let conditions =
            event.request_object.as_ref().map_or(&Value::Null, |body| &body["preconditions"]);
        Some(Self {
            author: Author::of(&event.user_agent),
            object: Object {
                group: about.api_group.clone(),
                resource: about.resource.clone(),
                namespace: about.namespace.clone(),
                name: text(&meta["name"]).unwrap_or_else(|| about.name.clone()),
            },
            subresource: about.subresource.clone(),
            verb: event.verb.clone(),
            outcome,
            code,
            version: meta["resourceVersion"].as_str().and_then(|version| version.parse().ok()),
            changed: outcome == Outcome::Done,
            uid: text(uid).unwrap_or_default(),
            owners: owners.into_iter().flatten().filter_map(|one| text(&one["uid"])).collect(),
            removes: removes(&event.verb, answer),
            preconditions: (text(&conditions["uid"]), text(&conditions["resourceVersion"])),
            time: (event.request_received_timestamp, event.stage_timestamp),
            line: format!("{} at {}", event.summary(), event.stage_timestamp),
        })
    }
}

/// A write that changes nothing is answered with the version of one that did. The store's versions only grow: if a
/// higher one, or the same, had been answered before the write came, it changed nothing. Where two were under way with
/// one version nobody knows whose it is, unless one made the object.
fn find_changes(writes: &mut [Write]) {
    let mut answered: Vec<_> =
        writes.iter().filter_map(|write| Some((write.time.1, write.version?))).collect();
    answered.sort();
    let mut highest = 0;
    for (_, version) in &mut answered {
        highest = highest.max(*version);
        *version = highest;
    }
    let mut same = BTreeMap::<_, Vec<&mut Write>>::new();
    for write in writes.iter_mut().filter(|write| write.changed) {
        let Some(version) = write.version else { continue };
        let before = answered.partition_point(|(at, _)| *at < write.time.0);
        let seen = before.checked_sub(1).map_or(0, |last| answered[last].1);
        write.changed = write.is_creation() || version > seen;
        if write.changed {
            same.entry((write.object.clone(), version)).or_default().push(write);
        }
    }
    for same in same.values_mut().filter(|same| same.len() > 1) {
        for write in same {
            write.changed = write.is_creation();
        }
    }
}

/// A deletion, unless a finalizer or a grace period holds the object; else the write that took the last
/// finalizer away.
fn removes(verb: &str, answer: &Value) -> bool {
    let meta = &answer["metadata"];
    let held = meta["finalizers"].as_array().is_some_and(|held| !held.is_empty())
        || meta["deletionGracePeriodSeconds"].as_i64().is_some_and(|seconds| seconds > 0);
    !held && (verb == "delete" || meta["deletionTimestamp"].is_string())
}

impl History {
    /// The writes among `events`. Events of `events.k8s.io` are news and do not count.
    pub fn of(events: &[Event]) -> Self {
        let mut writes: Vec<_> = events.iter().filter_map(Write::of).collect();
        writes.retain(|write| write.object.resource != "events");
        Self::new(writes)
    }

    fn new(mut writes: Vec<Write>) -> Self {
        find_changes(&mut writes);
        // A deletion's answer has no version: it comes after all else that was written to that uid.
        let mut last = BTreeMap::<String, u128>::new();
        for write in &writes {
            if let Some(version) = write.version {
                let last = last.entry(write.uid.clone()).or_default();
                *last = version.max(*last);
            }
        }
        writes.sort_by_key(|write| match write.version {
            Some(version) => (version, false),
            None => (last.get(&write.uid).copied().unwrap_or_default(), true),
        });
        Self { writes }
    }

    /// All writes.
    pub fn writes(&self) -> &[Write] {
        &self.writes
    }

    /// What runs of guests changed.
    pub fn by_runs(&self) -> impl Iterator<Item = (&Write, &Author)> {
        let done = self.writes.iter().filter(|write| write.changed);
        done.filter_map(|write| Some((write, write.author.as_ref()?)))
    }

    /// An error that names all violations, if there are any.
    pub fn check(&self) -> Result<()> {
        let all = [
            self.late_generations(),
            self.late_leaders(),
            self.interleaved_runs(),
            self.duplicate_creates(),
            self.bare_deletes(),
        ];
        none(&all.concat())
    }
}

/// An error that names all of them, if there are any.
pub fn none(violations: &[Violation]) -> Result<()> {
    if violations.is_empty() {
        return Ok(());
    }
    let lines: Vec<_> = violations.iter().map(ToString::to_string).collect();
    bail!("the history has {} violations:\n{}", lines.len(), lines.join("\n"))
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let group = if self.group.is_empty() { "" } else { "." };
        write!(f, "{}{group}{} {}/{}", self.resource, self.group, self.namespace, self.name)
    }
}

#[cfg(test)]
mod tests;
