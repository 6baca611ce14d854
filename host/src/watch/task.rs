//! The task of one watch: asks what the [`Stream`] says, writes the cache, wakes the subscribers.

use std::{
    collections::BTreeMap,
    error::Error as _,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use http::Method;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};

use super::{
    Cache, Change, Fault, Hub, Message, State, Stream, Subscriber, WatchKey, Watching,
    stream::{Effect, Step},
};
use crate::{
    apiserver::{self, Call, query},
    manifest::Projection,
    queue::{self, Urgency},
};

/// How long a watch without users stays open (R40).
const LINGER: Duration = Duration::from_secs(60);
/// No LIST takes longer; a page has 500 objects.
const LIST_LIMIT: Duration = Duration::from_secs(60);
/// The server sends headers at once, except for a version that it does not have yet: then after 3 s.
const OPEN_LIMIT: Duration = Duration::from_secs(10);

const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
const METADATA_LIST: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";

pub(super) struct Task {
    hub: Hub,
    key: WatchKey,
    stream: Stream,
    cache: Arc<Cache>,
    subscribers: BTreeMap<u64, Subscriber>,
    messages: mpsc::UnboundedReceiver<Message>,
    state: watch::Sender<State>,
    idle_since: Option<Instant>,
    /// Held while an initial state is being received.
    listing: Option<OwnedSemaphorePermit>,
}

/// Nobody uses the watch any more.
struct Unused;

impl Task {
    pub(super) fn new(hub: Hub, key: WatchKey) -> (Watching, Self) {
        let (messages, inbox) = mpsc::unbounded_channel();
        let (state, state_seen) = watch::channel(State::default());
        let cache = Arc::new(Cache::default());
        let watching = Watching { messages, cache: cache.clone(), state: state_seen };
        let task = Self {
            stream: Stream::new(key.resource.kind.clone(), seed()),
            hub,
            key,
            cache,
            subscribers: BTreeMap::new(),
            messages: inbox,
            state,
            idle_since: None,
            listing: None,
        };
        (watching, task)
    }

    pub(super) async fn run(mut self) {
        tracing::debug!(watch = %self.key, "a watch begins");
        while let Ok(()) = self.step().await {
            self.publish();
        }
        tracing::debug!(watch = %self.key, "a watch that nobody uses ends");
    }

    async fn step(&mut self) -> Result<(), Unused> {
        if self.stream.is_listing() && self.listing.is_none() {
            let lists = self.hub.0.lists.clone();
            self.listing = self.serving(async { lists.acquire_owned().await.ok() }).await?;
        }
        match self.stream.next(now()) {
            Step::Wait(at) => {
                self.listing = None;
                self.publish();
                self.serving(tokio::time::sleep_until(at.into())).await
            }
            Step::List(query) => self.list(&query).await,
            Step::Watch(query) => self.watch(&query).await,
        }
    }

    async fn list(&mut self, parameters: &[(&'static str, String)]) -> Result<(), Unused> {
        let api = self.hub.0.api.clone();
        let Some(call) = self.call(parameters, METADATA_LIST, LIST_LIMIT) else {
            return Err(Unused);
        };
        match self.serving(api.call(call)).await? {
            Ok(text) => {
                let effect = self.stream.page(&text, now());
                self.apply(effect);
            }
            Err(error) => self.stream.failed(fault(&error), now()),
        }
        Ok(())
    }

    async fn watch(&mut self, parameters: &[(&'static str, String)]) -> Result<(), Unused> {
        let api = self.hub.0.api.clone();
        let Some(call) = self.call(parameters, METADATA, OPEN_LIMIT) else { return Err(Unused) };
        let mut lines = match self.serving(api.lines(call)).await? {
            Ok(lines) => lines,
            Err(error) => {
                self.stream.failed(fault(&error), now());
                return Ok(());
            }
        };
        self.stream.opened(now());
        loop {
            match self.serving(lines.next()).await? {
                Some(Ok(line)) => {
                    let effect = self.stream.line(&line, now());
                    let reopen = matches!(effect, Effect::Reopen);
                    self.apply(effect);
                    self.publish();
                    if reopen {
                        return Ok(());
                    }
                }
                Some(Err(error)) => {
                    self.stream.failed(fault(&error), now());
                    return Ok(());
                }
                None => {
                    self.stream.closed(now());
                    return Ok(());
                }
            }
        }
    }

    fn call(
        &self,
        parameters: &[(&'static str, String)],
        media: &'static str,
        limit: Duration,
    ) -> Option<Call> {
        let path = match self.key.resource.path(self.key.namespace.as_deref(), None, None) {
            Ok(path) => path,
            Err(error) => {
                tracing::error!(watch = %self.key, %error, "the watch has no path");
                return None;
            }
        };
        let selectors = [
            ("labelSelector", &self.key.label_selector),
            ("fieldSelector", &self.key.field_selector),
        ];
        let selectors =
            selectors.into_iter().filter_map(|(name, text)| Some((name, text.as_deref()?)));
        let parameters = parameters.iter().map(|(name, value)| (*name, value.as_str()));
        let call = Call::new(Method::GET, query(&path, parameters.chain(selectors)));
        let accept = (self.key.projection == Projection::Metadata).then_some(media);
        Some(Call { accept, limit, ..call.identity(self.key.identity.clone()) })
    }

    /// Waits for `work` and serves messages meanwhile; ends if nobody has used the watch for a while.
    async fn serving<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Unused> {
        let mut work = pin!(work);
        loop {
            let lingers_until = self.idle_since.map(|since| since + LINGER);
            tokio::select! {
                biased;
                Some(message) = self.messages.recv() => self.serve(message),
                done = &mut work => return Ok(done),
                () = sleep_until(lingers_until) => if self.give_up() { return Err(Unused) },
            }
        }
    }

    fn serve(&mut self, message: Message) {
        match message {
            Message::Subscribe(id, subscriber) => {
                if self.state.borrow().synced {
                    self.deliver_all(&subscriber, queue::BACKGROUND);
                }
                self.subscribers.insert(id, subscriber);
                self.idle_since = None;
            }
            Message::Unsubscribe(id) => {
                self.subscribers.remove(&id);
                if self.subscribers.is_empty() {
                    self.idle_since = Some(now());
                }
            }
            Message::Resync(id, priority) => {
                if let Some(subscriber) = self.subscribers.get(&id) {
                    self.deliver_all(subscriber, priority);
                }
            }
            Message::Barrier(done) => drop(done.send(())),
        }
    }

    fn deliver_all(&self, subscriber: &Subscriber, priority: i32) {
        for entry in self.cache.entries() {
            deliver(subscriber, &Change { old: None, new: Some(entry) }, priority);
        }
    }

    /// Under the hub's lock, so that no subscription comes in between.
    fn give_up(&mut self) -> bool {
        let mut open = self.hub.open();
        if !self.messages.is_empty() {
            return false;
        }
        open.remove(&self.key);
        self.messages.close();
        true
    }

    fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::None | Effect::Reopen => (),
            Effect::Changed(entry) => {
                let change = self.cache.put(entry);
                self.tell(change, queue::CHANGE);
            }
            Effect::Deleted(entry) => {
                let change = self.cache.remove(&entry);
                self.tell(change, queue::CHANGE);
            }
            Effect::Replaced(entries) => {
                let first = !self.state.borrow().synced;
                let changes = self.cache.replace(entries);
                self.listing = None;
                self.tell(changes, if first { queue::BACKGROUND } else { queue::CHANGE });
                self.state.send_modify(|state| state.synced = true);
            }
        }
    }

    fn tell(&self, changes: impl IntoIterator<Item = Change>, priority: i32) {
        for change in changes {
            for subscriber in self.subscribers.values() {
                deliver(subscriber, &change, priority);
            }
        }
    }

    fn publish(&self) {
        if let Some(version) = self.stream.version() {
            self.cache.observe(version);
        }
        self.state.send_if_modified(|state| {
            let trouble = self.stream.trouble();
            let moved = state.trouble.as_ref() != trouble;
            if moved {
                if let Some(fault) = trouble {
                    tracing::info!(watch = %self.key, code = fault.code, message = fault.message, "a watch has failed");
                }
                state.trouble = trouble.cloned();
            }
            moved
        });
    }
}

fn deliver(subscriber: &Subscriber, change: &Change, priority: i32) {
    let urgency = Urgency { priority, is_news: change.is_news() };
    for wake in subscriber.trigger.wakes(change) {
        subscriber.wakes.wake(wake, urgency);
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

fn fault(error: &apiserver::Error) -> Fault {
    let apiserver::Error::Refused(status) = error else {
        let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
        return Fault { message: format!("{error}{cause}"), ..Fault::default() };
    };
    Fault {
        code: Some(status.code),
        reason: status.reason.clone(),
        message: status.message.clone(),
        retry_after: error.retry_after(),
    }
}

#[expect(clippy::disallowed_methods, reason = "the edge where time enters")]
fn now() -> Instant {
    Instant::now()
}

/// Spreads the watches' pauses; it need not be hard to guess.
fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}
