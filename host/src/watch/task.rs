//! The task of one watch: asks what the [`Stream`] says, writes the cache, wakes the subscribers.

use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};

use super::{
    Cache, Change, Entry, Fault, Hub, Message, State, Stream, Subscriber, WatchKey, Watching,
    asks::{Asks, Parameters},
    envelope::Version,
    fault::Flaw,
    feed::{Feed, Following},
    health::Failing,
    life::Life,
    stream::{Effect, Step},
    wire::{Heard, Second, Wire},
};
use crate::{
    apiserver::{self, TooLarge},
    causes, clock,
    queue::{self, Urgency},
    text,
};

/// How long a watch without users stays open.
pub(super) const LINGER: Duration = Duration::from_secs(60);
/// No LIST takes longer; a page has 500 objects.
const LIST_LIMIT: Duration = Duration::from_secs(60);
/// The server sends headers at once, except for a version that it does not have yet: then after 3 s.
pub(super) const OPEN_LIMIT: Duration = Duration::from_secs(10);
/// A watch that says nothing for so long must prove that it lives.
pub(super) const SILENCE: Duration = Duration::from_secs(15);
/// An initial state comes without a pause; its end is at most three seconds behind the last object.
const STALLED: Duration = Duration::from_secs(10);
/// The proof is the headers of a second connection, within this.
pub(super) const PROOF_LIMIT: Duration = Duration::from_secs(5);
/// The API server sends a bookmark 2 s before the end of a watch, looking once a second.
pub(super) const BRIEFLY: u32 = 3;
/// After an outage the watches come back spread over this.
pub(super) const RETURN_WITHIN: Duration = Duration::from_secs(3);
/// A watch that a feed has let go follows one again after this at the earliest.
const REJOIN: Duration = Duration::from_secs(10);

pub(super) struct Task {
    hub: Hub,
    key: WatchKey,
    asks: Asks,
    stream: Stream,
    cache: Arc<Cache>,
    subscribers: BTreeMap<u64, Subscriber>,
    messages: mpsc::UnboundedReceiver<Message>,
    state: watch::Sender<State>,
    idle_since: Option<Instant>,
    /// Held while an initial state is being received.
    listing: Option<OwnedSemaphorePermit>,
    /// Since when the newest state is being asked for.
    asked_newest: Option<Instant>,
    /// Rings when the watch is to be opened anew.
    again: Arc<Notify>,
    life: Arc<Life>,
    /// Held while the API server cannot be reached for this watch.
    failing: Option<Failing>,
    /// The feed that brings the lines of its namespace, if there is one.
    feed: Option<Feed>,
    /// When it may follow the feed again.
    rejoin_at: Instant,
}

/// Nobody uses the watch any more.
struct Unused;

impl Task {
    /// The watch `key`; `feed`: what may bring its lines.
    pub(super) fn new(hub: Hub, key: WatchKey, feed: Option<Feed>) -> (Watching, Self) {
        let (messages, inbox) = mpsc::unbounded_channel();
        let (state, state_seen) = watch::channel(State::default());
        let cache = Arc::new(Cache::default());
        let life = Arc::new(Life::new(now()));
        let watching = Watching {
            messages,
            cache: cache.clone(),
            state: state_seen,
            life: life.clone(),
            proving: Arc::new(Semaphore::new(1)),
            asks: Asks::new(hub.api().clone(), key.clone()),
            teams: Arc::default(),
        };
        let task = Self {
            stream: Stream::new(key.resource.kind.clone(), seed()),
            asks: watching.asks.clone(),
            hub,
            key,
            cache,
            subscribers: BTreeMap::new(),
            messages: inbox,
            state,
            idle_since: None,
            listing: None,
            asked_newest: None,
            again: Arc::default(),
            life,
            failing: None,
            feed,
            rejoin_at: now(),
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
        let newest = self.stream.asks_newest();
        match self.stream.next(now()) {
            Step::Wait(at) => {
                self.listing = None;
                self.publish();
                return self.wait(at).await;
            }
            Step::List(query) => {
                // A list of many pages is as new as its first one.
                if !query.iter().any(|(name, _)| *name == "continue") {
                    self.asked_newest = newest.then(now);
                }
                self.list(&query).await?;
            }
            Step::Watch(query) => {
                self.asked_newest = newest.then(now);
                self.watch(&query).await?;
            }
        }
        Ok(())
    }

    /// Waits out a pause, or until the API server has come back.
    async fn wait(&mut self, at: Instant) -> Result<(), Unused> {
        // An answer of no use came from a server that is there: its recovery would be no news.
        let unreachable = self.stream.trouble().is_some_and(|fault| fault.number().is_none());
        let health = self.hub.health().clone();
        self.failing = unreachable.then(|| health.failing());
        let again = self.again.clone();
        let spread = unreachable.then(|| RETURN_WITHIN.mul_f64(self.stream.share()));
        let hurry = async {
            tokio::select! {
                is_back = health.pause(at, spread) => is_back,
                () = again.notified() => true,
            }
        };
        if self.serving(hurry).await? {
            self.stream.hurry();
        }
        Ok(())
    }

    async fn list(&mut self, parameters: &Parameters) -> Result<(), Unused> {
        let answer = self.asks.list(parameters, LIST_LIMIT);
        match self.serving(answer).await? {
            Ok(text) => {
                self.life.seen(now());
                let effect = self.stream.page(&text, now());
                self.apply(effect);
            }
            Err(apiserver::Error::Timeout(limit)) => {
                let message = format!("a list was not complete within {limit:?}");
                self.stream.failed(Fault::flawed(Flaw::Slow, message), now());
            }
            Err(error) => self.stream.failed(fault(&error), now()),
        }
        Ok(())
    }

    async fn watch(&mut self, parameters: &Parameters) -> Result<(), Unused> {
        // Before the request: what it is answered is then no older than the feed's first line.
        let joining = self.join();
        let opening = self.asks.open(parameters, OPEN_LIMIT);
        let lines = match self.serving(opening).await? {
            Ok(lines) => lines,
            Err(error) => {
                self.stream.failed(fault(&error), now());
                return Ok(());
            }
        };
        self.begun();
        let mut wire = Wire::new(lines, joining);
        while self.hear(&mut wire).await?.is_continue() {
            self.go_over(&mut wire);
        }
        self.life.follow(None);
        Ok(())
    }

    /// Hears one thing, and whether the watch ends with it.
    async fn hear(&mut self, wire: &mut Wire) -> Result<ControlFlow<()>, Unused> {
        let again = self.again.clone();
        let silent_at = self.life.last() + self.patience();
        match self.serving(wire.hear(silent_at, &again, None)).await? {
            Heard::Line(Some(Ok(line))) => {
                self.life.seen(now());
                wire.is_alive();
                return Ok(self.line(&line));
            }
            Heard::Fed(line) => return Ok(self.line(&line)),
            Heard::Line(Some(Err(error))) | Heard::NotOpened(error) => {
                self.stream.failed(fault(&error), now());
                return Ok(ControlFlow::Break(()));
            }
            Heard::Line(None) => {
                if wire.is_opening_briefly() {
                    self.again.notify_one();
                }
                self.stream.closed(now());
                return Ok(ControlFlow::Break(()));
            }
            Heard::FeedEnd => return Ok(ControlFlow::Break(())),
            Heard::Opened => {
                tracing::trace!(watch = %self.key, "a watch goes on over its second connection");
                self.begun();
                wire.join(|| self.join());
            }
            Heard::Silence => match self.reopen(None) {
                Some(second) => wire.set_second(Some(second)),
                None => {
                    let patience = self.patience();
                    let message = format!("the initial state has not gone on for {patience:?}");
                    self.stream.failed(Fault::flawed(Flaw::Endless, message), now());
                    return Ok(ControlFlow::Break(()));
                }
            },
            Heard::Again => {
                if let Some(feed) = wire.feed() {
                    feed.again();
                } else {
                    wire.join(|| self.join());
                    wire.set_second(self.reopen(Some(BRIEFLY)));
                }
            }
            Heard::FeedTrouble(trouble) => {
                self.stream.set_trouble(trouble);
                self.publish();
            }
            Heard::Joined => {
                // The end of a brief connection is a bookmark, which brings it as far as the feed is.
                if wire.is_joining() && !self.go_over(wire) {
                    wire.set_second(self.reopen(Some(BRIEFLY)));
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn line(&mut self, line: &str) -> ControlFlow<()> {
        let effect = self.stream.line(line, now());
        let reopen = matches!(effect, Effect::Reopen);
        self.apply(effect);
        self.publish();
        if reopen { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Follows the feed, if there is one.
    fn join(&mut self) -> Option<Following> {
        self.feed.take_if(|feed| feed.is_closed());
        let (feed, namespace) = (self.feed.as_ref()?, self.key.namespace.clone()?);
        (self.rejoin_at <= now()).then(|| feed.join(namespace))
    }

    /// Goes over to the feed once that leaves nothing out; whether it has.
    fn go_over(&mut self, wire: &mut Wire) -> bool {
        let version = self.stream.version().filter(|_| !self.stream.is_listing());
        if !version.is_some_and(|version| wire.go_over(&Version::parse(version))) {
            return false;
        }
        self.begun();
        self.rejoin_at = now() + REJOIN;
        self.life.follow(wire.feed().map(|feed| feed.life().clone()));
        tracing::debug!(watch = %self.key, "a watch goes on over the feed of all namespaces");
        true
    }

    /// How long the connection may be silent.
    fn patience(&self) -> Duration {
        if self.stream.is_listing() { STALLED } else { SILENCE }
    }

    /// Begins a second connection beside the one that runs; `None` while the initial state is being received.
    fn reopen(&mut self, lasting: Option<u32>) -> Option<Second> {
        let query = self.stream.reopening(lasting)?;
        let opening = self.asks.open(&query, PROOF_LIMIT);
        Some(Second { opening, is_brief: lasting.is_some() })
    }

    /// The watch runs over a new connection.
    fn begun(&mut self) {
        self.stream.opened(now());
        self.life.seen(now());
        self.failing = None;
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
                for path in &subscriber.indexes {
                    self.cache.add_index(path);
                }
                if self.state.borrow().synced {
                    self.deliver_all(&subscriber, |_| None);
                }
                self.subscribers.insert(id, subscriber);
                self.idle_since = None;
            }
            Message::Unsubscribe(id, lingers) => {
                let gone = self.subscribers.remove(&id);
                for path in gone.iter().flat_map(|gone| &gone.indexes) {
                    self.cache.remove_index(path);
                }
                if self.subscribers.is_empty() {
                    let now = now();
                    let before = if lingers { Duration::ZERO } else { LINGER };
                    self.idle_since = Some(now.checked_sub(before).unwrap_or(now));
                }
            }
            Message::Resync(id) => {
                if let Some(subscriber) = self.subscribers.get(&id) {
                    self.deliver_all(subscriber, |entry| Some(entry.clone()));
                }
            }
            Message::Barrier(done) => drop(done.send(())),
            Message::Again => self.again.notify_one(),
            Message::Share(feed) => {
                self.feed = Some(feed);
                self.again.notify_one();
            }
            Message::Fresh(since) => self.fresh(since),
        }
    }

    /// What was asked for at `since` or later, and is the newest state, is in the cache.
    fn fresh(&self, since: Instant) {
        self.state.send_modify(|state| state.fresh = state.fresh.max(Some(since)));
    }

    /// Every object, with what is to be taken for its state before.
    fn deliver_all(
        &self,
        subscriber: &Subscriber,
        old: impl Fn(&Arc<Entry>) -> Option<Arc<Entry>>,
    ) {
        for entry in self.cache.entries() {
            let change = Change { old: old(&entry), new: Some(entry) };
            deliver(subscriber, &change, queue::BACKGROUND);
        }
    }

    /// Under the hub's lock, so that no subscription comes in between.
    fn give_up(&mut self) -> bool {
        let mut open = self.hub.open();
        if !self.messages.is_empty() {
            return false;
        }
        open.watches.remove(&self.key);
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
                if let Some(since) = self.asked_newest.take() {
                    self.fresh(since);
                }
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
                    tracing::info!(watch = %self.key, code = fault.code, error = fault.message, "a watch has failed");
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

pub(super) fn fault(error: &apiserver::Error) -> Fault {
    let apiserver::Error::Refused(status) = error else {
        let flaw = match error {
            apiserver::Error::Answer(cause) if cause.is::<TooLarge>() => Some(Flaw::TooLarge),
            apiserver::Error::Answer(_) => Some(Flaw::Unreadable),
            _ => None,
        };
        let message = text::line(&causes::all(error), text::MESSAGE).into_owned();
        return Fault { message, flaw, ..Fault::default() };
    };
    Fault {
        code: Some(status.code),
        reason: status.reason.clone(),
        message: text::line(&status.message, text::MESSAGE).into_owned(),
        retry_after: error.retry_after(),
        flaw: None,
    }
}

fn now() -> Instant {
    clock::now()
}

/// Spreads the watches' pauses; it need not be hard to guess.
pub(super) fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}
