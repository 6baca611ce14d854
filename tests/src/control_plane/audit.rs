//! Reads the audit log: who did what, as whom, in which order, seen from outside the host.
//!
//! The server writes a line before it ends its answer, so a test that has the whole answer finds
//! the line.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::{Instant, sleep};

/// The audit log of one server, from some point on.
#[derive(Debug, Clone)]
pub struct Log {
    path: PathBuf,
    from: u64,
}

impl Log {
    /// The whole log in `path`.
    pub fn open(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), from: 0 }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The same log without what is in it now, and without the line that is being written.
    pub fn from_now(&self) -> Result<Self> {
        let metadata = std::fs::metadata(&self.path).context("looking at the audit log")?;
        Ok(Self { path: self.path.clone(), from: metadata.len() })
    }

    /// Everything so far, in the order in which requests ended (or watches started).
    pub fn events(&self) -> Result<Vec<Event>> {
        let mut reader = BufReader::new(File::open(&self.path).context("opening the audit log")?);
        let mut events = Vec::new();
        let mut line = Vec::new();
        // The file grows page by page while a line is written, so its length can be inside of one:
        // what stands before the next line's start is not ours.
        if let Some(before) = self.from.checked_sub(1) {
            reader.seek(SeekFrom::Start(before)).context("reading the audit log")?;
            reader.read_until(b'\n', &mut line).context("reading the audit log")?;
        }
        loop {
            line.clear();
            reader.read_until(b'\n', &mut line).context("reading the audit log")?;
            // A line without its end is still being written.
            if line.last() != Some(&b'\n') {
                return Ok(events);
            }
            let event = serde_json::from_slice(&line);
            events.push(event.with_context(|| {
                format!("understanding the audit line {}", String::from_utf8_lossy(&line))
            })?);
        }
    }

    /// The request URIs of watches that are open now and that `wanted` accepts. A watch that was
    /// opened before [`from_now`](Self::from_now) is not seen.
    pub fn open_watches(&self, wanted: impl Fn(&Event) -> bool) -> Result<Vec<String>> {
        let events = self.events()?;
        let ended: BTreeSet<&str> = events
            .iter()
            .filter(|event| event.stage != Stage::ResponseStarted)
            .map(|event| &*event.audit_id)
            .collect();
        let open = events.iter().filter(|event| {
            event.verb == "watch" && !ended.contains(&*event.audit_id) && wanted(event)
        });
        Ok(open.map(|event| event.request_uri.clone()).collect())
    }

    /// Waits for an event of another's request; the error shows the last events there were.
    pub async fn wait_for(
        &self,
        limit: Duration,
        wanted: impl Fn(&Event) -> bool,
    ) -> Result<Event> {
        let deadline = Instant::now() + limit;
        loop {
            let events = self.events()?;
            if Instant::now() > deadline {
                let last = events.iter().rev().take(10).map(Event::summary).collect::<Vec<_>>();
                bail!("no such audit event within {limit:?}; the last were\n{}", last.join("\n"));
            }
            if let Some(event) = events.into_iter().find(|event| wanted(event)) {
                return Ok(event);
            }
            sleep(Duration::from_millis(50)).await;
        }
    }
}

/// One line of the log.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// The same for all stages of one request.
    #[serde(rename = "auditID")]
    pub audit_id: String,
    /// How far the request was.
    pub stage: Stage,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`; an apply is a `patch`.
    pub verb: String,
    /// Path and query.
    #[serde(rename = "requestURI")]
    pub request_uri: String,
    /// Who sent it.
    pub user: UserInfo,
    /// Whom the sender acted as.
    pub impersonated_user: Option<UserInfo>,
    /// What the sender calls itself.
    #[serde(default)]
    pub user_agent: String,
    /// What it was about; none for `/readyz` and the like.
    pub object_ref: Option<ObjectRef>,
    /// How it ended; none in [`Stage::ResponseStarted`] of some watches.
    pub response_status: Option<ResponseStatus>,
    /// The body, where the policy asks for it.
    pub request_object: Option<Value>,
    /// The answer, where the policy asks for it.
    pub response_object: Option<Value>,
    /// When the request came.
    pub request_received_timestamp: Timestamp,
    /// When this stage was.
    pub stage_timestamp: Timestamp,
    /// How the sender was allowed to act as another.
    pub authentication_metadata: Option<AuthenticationMetadata>,
    /// Among others which RBAC rule allowed it.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

impl Event {
    /// The user in whose name it was done: the impersonated one, else the sender.
    pub fn actor(&self) -> &str {
        &self.impersonated_user.as_ref().unwrap_or(&self.user).username
    }

    /// Whether it only asks what a write would lead to.
    pub fn is_dry_run(&self) -> bool {
        self.request_uri.contains("dryRun=All")
    }

    /// Whether it writes an object. Events are news and do not count.
    pub fn is_write(&self) -> bool {
        !self.is_dry_run()
            && ["create", "update", "patch", "delete"].contains(&&*self.verb)
            && self.object_ref.as_ref().is_some_and(|object| object.resource != "events")
    }

    /// The HTTP status.
    pub fn code(&self) -> Option<u16> {
        self.response_status.as_ref().map(|status| status.code)
    }

    /// Whether it is about `resource` (the plural) in `namespace` (empty for cluster scope).
    pub fn is_about(&self, resource: &str, namespace: &str) -> bool {
        self.object_ref
            .as_ref()
            .is_some_and(|object| object.resource == resource && object.namespace == namespace)
    }

    /// One line for a person.
    pub fn summary(&self) -> String {
        let code = self.code().unwrap_or_default();
        format!(
            "{} {} {} as {} → {code}",
            self.verb,
            self.request_uri,
            self.user.username,
            self.actor()
        )
    }
}

/// How far a request was when its event was written. `RequestReceived` is left out by our policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Stage {
    /// Only with another policy than ours.
    RequestReceived,
    /// The headers of a long answer are sent: a watch is open.
    ResponseStarted,
    /// All is sent.
    ResponseComplete,
    /// The server failed inside.
    Panic,
}

/// A user as the server knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct UserInfo {
    /// The name RBAC sees.
    #[serde(default)]
    pub username: String,
    /// The groups RBAC sees.
    #[serde(default)]
    pub groups: Vec<String>,
}

/// What a request is about; empty where it does not say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ObjectRef {
    /// The plural.
    pub resource: String,
    /// Empty for cluster scope.
    pub namespace: String,
    /// Empty for collections, and for creates with `generateName`.
    pub name: String,
    /// `status`, `token` and so on.
    pub subresource: String,
    /// Empty for the core group.
    pub api_group: String,
    /// Without the group.
    pub api_version: String,
    /// Of the body, for writes.
    pub uid: String,
    /// Of the body, for writes.
    pub resource_version: String,
}

/// How a request ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct ResponseStatus {
    /// The HTTP status.
    #[serde(default)]
    pub code: u16,
}

/// How the sender came to act as another.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AuthenticationMetadata {
    /// The verb of the constrained impersonation rule that allowed it; empty for the older way.
    pub impersonation_constraint: String,
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn line(id: &str, stage: &str, verb: &str) -> String {
        format!(
            r#"{{"level":"Metadata","auditID":"{id}","stage":"{stage}","requestURI":"/{id}","verb":"{verb}","user":{{"username":"alice","groups":["team-a"]}},"impersonatedUser":{{"username":"system:serviceaccount:a:b"}},"sourceIPs":["127.0.0.1"],"objectRef":{{"resource":"configmaps","namespace":"a","apiVersion":"v1"}},"responseStatus":{{"metadata":{{}},"code":200}},"requestReceivedTimestamp":"2026-01-02T03:04:05.000001Z","stageTimestamp":"2026-01-02T03:04:05.000002Z"}}"#
        )
    }

    fn log(text: &str) -> (tempfile::NamedTempFile, Log) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let log = Log::open(file.path());
        (file, log)
    }

    #[test]
    fn an_event_tells_the_sender_from_the_one_it_acts_as() {
        let (_file, log) = log(&(line("1", "ResponseComplete", "get") + "\n"));
        let events = log.events().unwrap();
        assert_eq!(
            (&*events[0].user.username, events[0].actor()),
            ("alice", "system:serviceaccount:a:b")
        );
        assert_eq!(events[0].code(), Some(200));
        assert!(events[0].is_about("configmaps", "a"));
    }

    #[test]
    fn a_line_that_is_being_written_is_left_for_later() {
        let whole = line("1", "ResponseComplete", "get");
        let (mut file, log) = log(&format!("{whole}\n{}", &whole[..40]));
        assert_eq!(log.events().unwrap().len(), 1);
        file.write_all(format!("{}\n", &whole[40..]).as_bytes()).unwrap();
        assert_eq!(log.events().unwrap().len(), 2);
        assert_eq!(log.from_now().unwrap().events().unwrap().len(), 0);
    }

    #[test]
    fn a_line_that_was_half_there_is_none_of_the_later_ones() {
        let whole = line("1", "ResponseComplete", "get");
        let (mut file, log) = log(&whole[..40]);
        let later = log.from_now().unwrap();
        assert_eq!(later.events().unwrap().len(), 0);
        let next = line("2", "ResponseComplete", "get");
        file.write_all(format!("{}\n{next}\n", &whole[40..]).as_bytes()).unwrap();
        let ids = later.events().unwrap().into_iter().map(|event| event.audit_id);
        assert_eq!(ids.collect::<Vec<_>>(), ["2"]);
    }

    #[test]
    fn a_watch_is_open_between_its_two_lines() {
        let started = line("1", "ResponseStarted", "watch");
        let other = line("2", "ResponseStarted", "watch");
        let (mut file, log) = log(&format!("{started}\n{other}\n"));
        assert_eq!(log.open_watches(|_| true).unwrap(), ["/1", "/2"]);
        assert_eq!(log.open_watches(|event| event.audit_id == "2").unwrap(), ["/2"]);
        file.write_all((line("1", "ResponseComplete", "watch") + "\n").as_bytes()).unwrap();
        assert_eq!(log.open_watches(|_| true).unwrap(), ["/2"]);
    }
}
