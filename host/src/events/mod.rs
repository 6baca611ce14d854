//! Writes Kubernetes Events (`events.k8s.io/v1`): bounded, limited per object, never in anybody's way.
//!
//! Events of the host are written as the host; events of a guest as its controller's account. What cannot be sent is
//! dropped and said in the log: an Event is news, not state (R25).
//!
//! Invariants: `one_object_cannot_flood`, `an_event_has_a_name_that_the_server_takes`.

mod lru;
mod series;

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use http::Method;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tokio::{sync::mpsc, task::JoinSet, time::Instant};
use tracing::{Instrument, trace_span};

use self::series::{Filter, Order};
use crate::{
    apiserver::{self, ApiServer, Call, Identity, Media},
    client::{ObjectReference, Severity},
    crd::{GROUP, hashed},
};

/// Events waiting to be looked at; more are dropped.
const WAITING: usize = 1_000;
/// Workers that send; what is about one object is always the same one's, in order.
const WORKERS: usize = 8;
/// Events waiting for one of them.
const WAITING_EACH: usize = WAITING / WORKERS;
/// Bytes of a note.
const NOTE: usize = 1_024;
/// Tries of a write in all.
const TRIES: u32 = 12;
/// The pause between two of them.
const PAUSE: Duration = Duration::from_secs(10);
/// How often series are looked at whose count is due.
const LOOK_EVERY: Duration = Duration::from_secs(30);

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
pub struct Recorder(mpsc::Sender<(Event, Timestamp)>);

/// The task that sends them.
#[derive(Debug)]
pub struct Sender {
    api: ApiServer,
    instance: String,
    waiting: mpsc::Receiver<(Event, Timestamp)>,
    filter: Filter,
}

/// A recorder and the task behind it; `instance` names this host.
pub fn recorder(api: ApiServer, instance: String) -> (Recorder, Sender) {
    let (sender, waiting) = mpsc::channel(WAITING);
    (Recorder(sender), Sender { api, instance, waiting, filter: Filter::new() })
}

impl Recorder {
    /// Hands an event over; it is dropped if too many wait.
    pub fn record(&self, mut event: Event) {
        // Before it waits: a guest's may have megabytes.
        event.note.truncate(event.note.floor_char_boundary(NOTE));
        event.note.shrink_to_fit();
        if let Err(error) = self.0.try_send((event, Timestamp::now())) {
            tracing::debug!(%error, "an event is dropped");
        }
    }
}

impl Sender {
    /// Sends events until every [`Recorder`] is gone.
    pub async fn run(mut self) {
        let began = format!("{:x}", Timestamp::now().as_microsecond());
        let mut workers = JoinSet::new();
        let orders = [(); WORKERS].map(|()| {
            let (orders, waiting) = mpsc::channel(WAITING_EACH);
            let writer = Writer {
                api: self.api.clone(),
                instance: self.instance.clone(),
                began: began.clone(),
            };
            workers
                .spawn(writer.run(waiting).instrument(trace_span!("loop", of = "events-writer")));
            orders
        });
        let mut looks = tokio::time::interval(LOOK_EVERY);
        loop {
            let due = tokio::select! {
                heard = self.waiting.recv() => {
                    let Some((event, at)) = heard else { break };
                    self.filter.heard(event, at, Instant::now().into_std()).into_iter().collect()
                }
                _ = looks.tick() => self.filter.due(Instant::now().into_std()),
            };
            for order in due {
                let worker = worker(&order, WORKERS);
                if let Err(error) = orders[worker].try_send(order) {
                    tracing::debug!(%error, "an event is dropped");
                }
            }
        }
        drop(orders);
        while workers.join_next().await.is_some() {}
    }
}

/// Sends what it is told to, one after the other.
struct Writer {
    api: ApiServer,
    instance: String,
    began: String,
}

impl Writer {
    async fn run(self, mut waiting: mpsc::Receiver<Order>) {
        while let Some(order) = waiting.recv().await {
            for tries in 1..=TRIES {
                let Err(error) = self.api.call(self.call(&order)).await else { break };
                if !is_worth_another_try(&error) || tries == TRIES {
                    tracing::debug!(reason = order.event.reason, %error, "cannot write an event");
                    break;
                }
                tokio::time::sleep(error.retry_after().unwrap_or(PAUSE).min(PAUSE)).await;
            }
        }
    }

    /// Under a name of our own, so that a second try cannot make a second event.
    fn call(&self, order: &Order) -> Call {
        let Order { series, event, at, count } = order;
        let namespace = event.regarding.namespace.as_deref().unwrap_or("default");
        let name = name(&event.regarding.name, &self.began, *series);
        let path = format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events");
        let call = if *count == 1 {
            let body = body(event, (namespace, &name), &self.instance, *at);
            Call::new(Method::POST, path).body(Media::Json, body.to_string())
        } else {
            let series = json!({ "count": count, "lastObservedTime": micros(*at) });
            let body = json!({ "series": series });
            Call::new(Method::PATCH, format!("{path}/{name}"))
                .body(Media::MergePatch, body.to_string())
        };
        call.identity(event.identity.clone())
    }
}

fn worker(order: &Order, workers: usize) -> usize {
    let mut hasher = DefaultHasher::new();
    series::subject(&order.event).hash(&mut hasher);
    usize::try_from(hasher.finish() % workers as u64).unwrap_or_default()
}

fn is_worth_another_try(error: &apiserver::Error) -> bool {
    match error {
        apiserver::Error::Refused(status) => status.code == 429 || status.code >= 500,
        apiserver::Error::Timeout(_) | apiserver::Error::Connection(_) => true,
        apiserver::Error::Request(_) | apiserver::Error::Answer(_) => false,
    }
}

/// The object's name as far as an event's may have it, and what no other event has.
fn name(of: &str, began: &str, series: u64) -> String {
    let fit = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' };
    let parts = of.split('.').map(|part| part.chars().map(fit).collect::<String>());
    let parts: Vec<_> = parts
        .map(|part| part.trim_matches('-').to_owned())
        .filter(|part| !part.is_empty())
        .collect();
    let all: String = parts.join(".").chars().take(200).collect();
    let stem = all.trim_end_matches(['-', '.']);
    let stem = if stem.is_empty() { "event" } else { stem };
    format!("{stem}.{began}-{series:x}")
}

fn micros(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

fn body(event: &Event, (namespace, name): (&str, &str), instance: &str, at: Timestamp) -> Value {
    let mut regarding = json!({
        "apiVersion": event.regarding.kind.api_version(),
        "kind": event.regarding.kind.kind,
        "name": event.regarding.name,
        "namespace": event.regarding.namespace,
    });
    if let Some(uid) = &event.uid {
        regarding["uid"] = Value::from(uid.as_str());
    }
    json!({
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": { "name": name, "namespace": namespace },
        "eventTime": micros(at),
        "reportingController": reporter(&event.controller),
        "reportingInstance": cut(instance, 128),
        "regarding": regarding,
        "type": match event.severity { Severity::Normal => "Normal", Severity::Warning => "Warning" },
        "reason": cut(&event.reason, 128),
        "action": cut(&event.action, 128),
        "note": cut(&event.note, NOTE),
    })
}

/// `nagaya.dev/` and namespace and name of the controller: the server wants one slash and at most 63 characters behind
/// it, so a longer name is hashed.
fn reporter(controller: &str) -> String {
    let name = controller.replace('/', ".");
    if name.len() <= 63 {
        return format!("{GROUP}/{name}");
    }
    format!("{GROUP}/{}", &hashed(&name)[..40])
}

/// At most `limit` bytes, cut between characters.
fn cut(text: &str, limit: usize) -> &str {
    &text[..text.floor_char_boundary(limit)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_a_name_that_the_server_takes() {
        assert_eq!(name("web", "5f", 10), "web.5f-a");
        assert_eq!(name("system:Nodes..x-", "5f", 1), "system--odes.x.5f-1");
        assert_eq!(name(":::", "5f", 1), "event.5f-1");
        assert!(name(&"n".repeat(253), "64a1b2c3d4e5f", u64::from(u32::MAX)).len() <= 253);
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
