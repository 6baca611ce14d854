//! Writes Kubernetes Events (`events.k8s.io/v1`): bounded, limited per object, never in anybody's way.
//!
//! Events of the host are written as the host; events of a guest as its controller's account. What cannot be sent is
//! dropped and counted in the log: an Event is news, not state (R25).
//!
//! Invariant: `one_object_cannot_flood`.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use http::Method;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::{
    apiserver::{ApiServer, Call, Identity, Media},
    client::{ObjectReference, Severity},
};

/// Events waiting to be sent; more are dropped.
const WAITING: usize = 1_000;
/// Events about one object in a row; then one every [`REFILL`].
const BURST: f64 = 25.0;
/// The time in which an object earns one more event.
const REFILL: Duration = Duration::from_secs(300);
/// Objects whose count is remembered.
const REMEMBERED: usize = 4_096;

/// One piece of news.
#[derive(Clone, Debug)]
pub struct Event {
    /// As whom it is written.
    pub identity: Identity,
    /// `namespace/name` of the WasmController that reports it, the same for all its revisions (R87).
    pub controller: String,
    /// What it is about.
    pub regarding: ObjectReference,
    /// That object's uid, if known.
    pub uid: Option<String>,
    /// Normal or Warning.
    pub severity: Severity,
    /// Why, in one CamelCase word.
    pub reason: String,
    /// What was done, in one CamelCase word.
    pub action: String,
    /// For people.
    pub note: String,
}

/// Takes events from everywhere; cheap to clone.
#[derive(Clone, Debug)]
pub struct Recorder(mpsc::Sender<Event>);

/// The task that sends them.
#[derive(Debug)]
pub struct Sender {
    api: ApiServer,
    instance: String,
    waiting: mpsc::Receiver<Event>,
    spam: Spam,
}

#[derive(Debug, Default)]
struct Spam(HashMap<String, (f64, Instant)>);

/// A recorder and the task behind it; `instance` names this host.
pub fn recorder(api: ApiServer, instance: String) -> (Recorder, Sender) {
    let (sender, waiting) = mpsc::channel(WAITING);
    (Recorder(sender), Sender { api, instance, waiting, spam: Spam::default() })
}

impl Recorder {
    /// Hands an event over; it is dropped if too many wait.
    pub fn record(&self, event: Event) {
        if let Err(error) = self.0.try_send(event) {
            tracing::debug!(%error, "an event is dropped");
        }
    }
}

impl Sender {
    /// Sends events until every [`Recorder`] is gone.
    #[expect(clippy::disallowed_methods, reason = "the edge where time enters")]
    pub async fn run(mut self) {
        while let Some(event) = self.waiting.recv().await {
            if !self.spam.admits(&subject(&event), Instant::now()) {
                continue;
            }
            let namespace = event.regarding.namespace.as_deref().unwrap_or("default").to_owned();
            let body = body(&event, &namespace, &self.instance);
            let path = format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events");
            let call = Call::new(Method::POST, path)
                .identity(event.identity.clone())
                .body(Media::Json, body.to_string());
            if let Err(error) = self.api.call(call).await {
                tracing::debug!(reason = event.reason, %error, "cannot write an event");
            }
        }
    }
}

impl Spam {
    fn admits(&mut self, subject: &str, now: Instant) -> bool {
        if self.0.len() >= REMEMBERED && !self.0.contains_key(subject) {
            let full = |(tokens, at): &(f64, Instant)| refilled(*tokens, *at, now) >= BURST;
            self.0.retain(|_, bucket| !full(bucket));
            if self.0.len() >= REMEMBERED {
                return false;
            }
        }
        let (tokens, at) = self.0.entry(subject.to_owned()).or_insert((BURST, now));
        *tokens = refilled(*tokens, *at, now);
        *at = now;
        let admitted = *tokens >= 1.0;
        if admitted {
            *tokens -= 1.0;
        }
        admitted
    }
}

fn refilled(tokens: f64, at: Instant, now: Instant) -> f64 {
    let earned = now.saturating_duration_since(at).as_secs_f64() / REFILL.as_secs_f64();
    (tokens + earned).min(BURST)
}

fn subject(event: &Event) -> String {
    let ObjectReference { kind, namespace, name } = &event.regarding;
    format!("{}|{kind}|{}|{name}", event.controller, namespace.as_deref().unwrap_or_default())
}

fn body(event: &Event, namespace: &str, instance: &str) -> Value {
    let mut regarding = json!({
        "apiVersion": event.regarding.kind.api_version(),
        "kind": event.regarding.kind.kind,
        "name": event.regarding.name,
        "namespace": event.regarding.namespace,
    });
    if let Some(uid) = &event.uid {
        regarding["uid"] = Value::from(uid.as_str());
    }
    let prefix: String = event.regarding.name.chars().take(200).collect();
    // Not a dot as in client-go's names: the server checks a generateName as if the dash alone were a fit end.
    let prefix = prefix.trim_end_matches('.');
    json!({
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": { "generateName": format!("{prefix}-"), "namespace": namespace },
        "eventTime": k8s_openapi::jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string(),
        "reportingController": reporter(&event.controller),
        "reportingInstance": cut(instance, 128),
        "regarding": regarding,
        "type": match event.severity { Severity::Normal => "Normal", Severity::Warning => "Warning" },
        "reason": cut(&event.reason, 128),
        "action": cut(&event.action, 128),
        "note": cut(&event.note, 1_024),
    })
}

/// `nagaya.dev/` and namespace and name of the controller: the server wants one slash and at most 63 characters behind
/// it, so a longer name is hashed.
fn reporter(controller: &str) -> String {
    let name = controller.replace('/', ".");
    if name.len() <= 63 {
        return format!("{}/{name}", crate::crd::GROUP);
    }
    let hash = ring::digest::digest(&ring::digest::SHA256, name.as_bytes());
    format!("{}/{}", crate::crd::GROUP, &crate::crd::hex(hash.as_ref())[..40])
}

/// At most `limit` bytes, cut between characters.
fn cut(text: &str, limit: usize) -> &str {
    &text[..text.floor_char_boundary(limit)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an arbitrary starting point")]
    fn one_object_cannot_flood() {
        let (mut spam, now) = (Spam::default(), Instant::now());
        assert_eq!((0..100).filter(|_| spam.admits("a", now)).count(), 25);
        assert!(spam.admits("b", now), "another object is not affected");
        assert!(!spam.admits("a", now + REFILL.saturating_sub(Duration::from_secs(1))));
        assert!(spam.admits("a", now + REFILL + Duration::from_secs(2)));
        for object in 0..2 * REMEMBERED {
            spam.admits(&object.to_string(), now);
        }
        assert!(spam.0.len() <= REMEMBERED);
    }

    #[test]
    fn a_reporter_is_a_qualified_name_whatever_the_controller() {
        assert_eq!(reporter("storage/bucket"), "nagaya.dev/storage.bucket");
        let long = reporter(&format!("{}/{}", "n".repeat(63), "c".repeat(242)));
        assert!(long.len() <= 11 + 63 && long.matches('/').count() == 1, "{long}");
    }

    #[test]
    fn a_note_is_cut_between_characters() {
        assert_eq!(cut("äöü", 3), "ä");
        assert_eq!(cut("abc", 3), "abc");
    }
}
