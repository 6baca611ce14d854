//! Writes Kubernetes Events (`events.k8s.io/v1`): bounded, limited per object, never in anybody's way.
//!
//! Events of the host are written as the host; events of a guest as its controller's account. What cannot be sent is
//! dropped and said in the log: an Event is news, not state. Every team has a lane of its own for what waits, and
//! one request under way at a time.
//!
//! Invariants: `one_object_cannot_flood`, `a_flood_in_one_lane_leaves_the_others_theirs`,
//! `an_event_has_a_name_that_the_server_takes`, `no_text_of_an_event_is_longer_than_the_server_takes`.

mod lanes;
mod series;

use std::{collections::HashMap, sync::Arc, time::Duration};

use http::Method;
use k8s_openapi::jiff::Timestamp;
use parking_lot::{Mutex, MutexGuard};
use serde_json::{Value, json};
use tokio::{
    sync::{Semaphore, mpsc},
    task::{self, JoinSet},
    time::Instant,
};
use tracing::{Instrument, trace_span};

use self::{
    lanes::Lanes,
    series::{Filter, Order},
};
use crate::{
    apiserver::{self, ApiServer, Call, Identity, Media},
    model::{
        crd::{GROUP, hashed},
        object::{ObjectReference, Severity},
    },
    text,
};

/// Requests at the same time.
const REQUESTS: usize = 8;
/// Bytes of a reason or an action.
const WORD: usize = 128;
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
    /// `namespace/name` of the WasmController that reports it, the same for all its revisions.
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

impl Event {
    /// The same with no text longer than the server takes: names of a guest may have megabytes.
    fn cut(self) -> Self {
        let ObjectReference { mut kind, namespace, name } = self.regarding;
        for part in [&mut kind.group, &mut kind.version, &mut kind.kind] {
            *part = text::cut_owned(std::mem::take(part), text::NAME);
        }
        let namespace = namespace.map(|namespace| text::cut_owned(namespace, text::NAME));
        let name = text::cut_owned(name, text::NAME);
        Self {
            regarding: ObjectReference { kind, namespace, name },
            uid: self.uid.map(|uid| text::cut_owned(uid, text::NAME)),
            reason: text::cut_owned(self.reason, WORD),
            action: text::cut_owned(self.action, WORD),
            note: text::cut_owned(self.note, text::MESSAGE),
            ..self
        }
    }

    /// Whose lane it waits in: the host has one for what it says to each team.
    fn lane(&self) -> String {
        let team = self.controller.split_once('/').map_or("", |(namespace, _)| namespace);
        let by = if self.identity == Identity::Host { "host" } else { "team" };
        format!("{by} {team}")
    }

    /// About how many bytes of memory it takes.
    fn size(&self) -> usize {
        let ObjectReference { kind, namespace, name } = &self.regarding;
        let texts = [&kind.group, &kind.version, &kind.kind, name, &self.reason, &self.action];
        let texts: usize = texts.into_iter().map(String::len).sum();
        let more = [namespace.as_ref(), self.uid.as_ref()];
        let more: usize = more.into_iter().flatten().map(String::len).sum();
        texts + more + self.note.len() + self.controller.len() + size_of::<Self>()
    }
}

/// Takes events from everywhere; cheap to clone.
#[derive(Clone, Debug)]
pub struct Recorder {
    waiting: Waiting,
    ring: mpsc::Sender<()>,
}

/// Events that nobody has looked at yet.
#[derive(Clone, Debug)]
struct Waiting(Arc<Mutex<Lanes<(Event, Timestamp)>>>);

impl Waiting {
    fn lanes(&self) -> MutexGuard<'_, Lanes<(Event, Timestamp)>> {
        self.0.lock()
    }
}

/// The task that sends them.
#[derive(Debug)]
pub struct Sender {
    writer: Writer,
    waiting: Waiting,
    rings: mpsc::Receiver<()>,
    filter: Filter,
    /// What is to be written.
    orders: Lanes<Order>,
    /// The lane of each request under way, by its task.
    busy: HashMap<task::Id, Arc<str>>,
    writes: JoinSet<()>,
}

/// A recorder and the task behind it; `instance` names this host.
pub fn recorder(api: ApiServer, instance: String) -> (Recorder, Sender) {
    let (ring, rings) = mpsc::channel(1);
    let waiting = Waiting(Arc::new(Mutex::new(Lanes::new())));
    let began = format!("{:x}", Timestamp::now().as_microsecond());
    let requests = Arc::new(Semaphore::new(REQUESTS));
    let sender = Sender {
        writer: Writer { api, instance: instance.into(), began: began.into(), requests },
        waiting: waiting.clone(),
        rings,
        filter: Filter::new(),
        orders: Lanes::new(),
        busy: HashMap::new(),
        writes: JoinSet::new(),
    };
    (Recorder { waiting, ring }, sender)
}

impl Recorder {
    /// Hands an event over; it is dropped if too many of its team wait.
    pub fn record(&self, event: Event) {
        let event = event.cut();
        let (lane, bytes) = (event.lane(), event.size());
        if self.waiting.lanes().push(&lane, (event, Timestamp::now()), bytes).is_err() {
            tracing::debug!(lane, "an event is dropped: too many of its team wait");
        }
        // One ring is enough for all that wait.
        let _ = self.ring.try_send(());
    }
}

impl Sender {
    /// Sends events until every [`Recorder`] is gone.
    pub async fn run(mut self) {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        let mut is_open = true;
        while is_open || !self.orders.is_empty() || !self.busy.is_empty() {
            tokio::select! {
                rung = self.rings.recv(), if is_open => {
                    is_open = rung.is_some();
                    self.hear();
                }
                _ = looks.tick() => {
                    let due = self.filter.due(Instant::now().into_std());
                    for order in due {
                        self.order(order);
                    }
                }
                Some(ended) = self.writes.join_next_with_id(), if !self.busy.is_empty() => {
                    let id = ended.map_or_else(|error| error.id(), |(id, ())| id);
                    self.busy.remove(&id);
                }
            }
            self.write();
        }
    }

    /// Looks at everything that waits; that takes no time that anybody would notice.
    fn hear(&mut self) {
        loop {
            let next = self.waiting.lanes().pop(|_| true);
            let Some((_, (event, at))) = next else { return };
            if let Some(order) = self.filter.heard(event, at, Instant::now().into_std()) {
                self.order(order);
            }
        }
    }

    fn order(&mut self, order: Order) {
        let (lane, bytes) = (order.event.lane(), order.event.size());
        if self.orders.push(&lane, order, bytes).is_err() {
            tracing::debug!(
                lane,
                "an event is dropped: the API server does not take them fast enough"
            );
        }
    }

    /// One at a time in each lane, so that what is about one object stays in its order.
    fn write(&mut self) {
        while let Some((lane, order)) =
            self.orders.pop(|lane| self.busy.values().all(|busy| **busy != *lane))
        {
            let write = self.writer.clone().write(order);
            let write = write.instrument(trace_span!("loop", of = "events-writer"));
            let id = self.writes.spawn(write).id();
            self.busy.insert(id, lane);
        }
    }
}

/// Writes one Event.
#[derive(Clone, Debug)]
struct Writer {
    api: ApiServer,
    instance: Arc<str>,
    began: Arc<str>,
    /// Held during a request, not during the pauses between them.
    requests: Arc<Semaphore>,
}

impl Writer {
    async fn write(self, order: Order) {
        for tries in 1..=TRIES {
            let answer = {
                let Ok(_permit) = self.requests.acquire().await else { return };
                self.api.call(self.call(&order)).await
            };
            let Err(error) = answer else { return };
            if !is_worth_another_try(&error) || tries == TRIES {
                tracing::debug!(reason = order.event.reason, %error, "cannot write an event");
                return;
            }
            tokio::time::sleep(error.retry_after().unwrap_or(PAUSE).min(PAUSE)).await;
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
        "reportingInstance": text::cut(instance, WORD),
        "regarding": regarding,
        "type": match event.severity { Severity::Normal => "Normal", Severity::Warning => "Warning" },
        "reason": event.reason,
        "action": event.action,
        "note": text::cut(&event.note, text::MESSAGE),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::kind::Kind;

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

    fn event(size: usize) -> Event {
        let text = || "ä".repeat(size / 2);
        let kind = Kind { group: text(), version: text(), kind: text() };
        Event {
            identity: Identity::Host,
            controller: "n/c".to_owned(),
            regarding: ObjectReference { kind, namespace: Some(text()), name: text() },
            uid: Some(text()),
            severity: Severity::Normal,
            reason: text(),
            action: text(),
            note: text(),
        }
    }

    /// Seen from outside: 100 Events with a name of 600 kB were 400 MiB for good.
    #[test]
    fn no_text_of_an_event_is_longer_than_the_server_takes() {
        let event = event(600_000).cut();
        assert!(event.size() < 4_096, "{}", event.size());
        let body = body(&event, ("n", "e"), &"i".repeat(1_000), Timestamp::UNIX_EPOCH);
        for (pointer, most) in [
            ("/regarding/name", 253),
            ("/regarding/namespace", 253),
            ("/reason", 128),
            ("/action", 128),
            ("/note", 1_024),
            ("/reportingInstance", 128),
        ] {
            let length = body.pointer(pointer).and_then(Value::as_str).map(str::len);
            assert!(length.is_some_and(|length| length <= most), "{pointer}: {length:?}");
        }
        assert!(body.to_string().len() < 8_192);
    }

    #[test]
    fn what_the_host_says_to_a_team_waits_apart_from_what_the_team_says() {
        let of_host = event(2);
        let account = Identity::ServiceAccount { namespace: "n".into(), name: "a".into() };
        let of_guest = Event { identity: account, ..event(2) };
        assert_ne!(of_host.lane(), of_guest.lane());
        let other = Event { controller: "n/other".to_owned(), ..of_guest.clone() };
        assert_eq!(of_guest.lane(), other.lane(), "the team has one lane");
    }
}
