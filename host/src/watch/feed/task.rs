//! The task of one feed: keeps its connection and sorts its lines; keeps no object.

use std::{
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Interval, MissedTickBehavior},
};

use super::{
    Feed, Message,
    route::{self, Route},
    routes::Routes,
    worth::Worth,
};
use crate::{
    clock,
    watch::{
        Fault, Hub, Stream, WatchKey,
        asks::Asks,
        envelope::Version,
        health::Failing,
        life::Life,
        stream::Step,
        task::{self, BRIEFLY, LINGER, OPEN_LIMIT, PROOF_LIMIT, RETURN_WITHIN, SILENCE},
        wire::{Heard, Second, Wire},
    },
};

/// The pause after a begin that failed; doubles with each refusal up to the longest: a server that has just started refuses
/// what it allows a moment later.
const REST: Duration = Duration::from_secs(4);
const LONGEST_REST: Duration = Duration::from_secs(300);
/// A feed most of which was for nobody begins again after so long.
const TOO_DEAR: Duration = Duration::from_secs(600);
/// Followers do not wait longer for a connection that each could have for itself.
const BLIND: Duration = Duration::from_secs(20);

/// Keeps a feed.
pub(in crate::watch) struct Task {
    hub: Hub,
    key: WatchKey,
    asks: Asks,
    routes: Routes,
    messages: mpsc::UnboundedReceiver<Message>,
    /// `None` until it is known where to begin.
    stream: Option<Stream>,
    worth: Worth,
    trouble: watch::Sender<Option<Fault>>,
    life: Arc<Life>,
    failing: Option<Failing>,
    again: Arc<Notify>,
    /// A brief connection must get as far as its bookmark before there is another one.
    brief_until: Option<Instant>,
    resting_until: Option<Instant>,
    /// Failures in a row that need somebody, or something else, to change.
    refusals: u32,
    /// Whether its watch runs: who joins then is brought what comes from here on.
    is_open: bool,
    look: Interval,
    /// Whether too few watches could use it when it was last looked.
    was_unused: bool,
}

/// Too few watches can use the feed.
struct Unused;

impl Task {
    /// The feed `key`, of all namespaces.
    pub(in crate::watch) fn new(hub: Hub, key: WatchKey) -> (Feed, Self) {
        let (messages, inbox) = mpsc::unbounded_channel();
        let (trouble, troubled) = watch::channel(None);
        let life = Arc::new(Life::new(clock::now()));
        let feed = Feed { messages, trouble: troubled, life: life.clone(), joined: Arc::default() };
        let mut look = tokio::time::interval_at((clock::now() + LINGER).into(), LINGER);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let task = Self {
            asks: Asks::new(hub.api().clone(), key.clone()),
            hub,
            key,
            routes: Routes::default(),
            messages: inbox,
            stream: None,
            worth: Worth::new(clock::now()),
            trouble,
            life,
            failing: None,
            again: Arc::default(),
            brief_until: None,
            resting_until: None,
            refusals: 0,
            is_open: false,
            look,
            was_unused: false,
        };
        (feed, task)
    }

    pub(in crate::watch) async fn run(mut self) {
        tracing::debug!(watch = %self.key, "a feed begins");
        while let Ok(()) = self.step().await {
            self.publish();
        }
        tracing::debug!(watch = %self.key, "a feed that too few use ends");
    }

    /// Tells the followers whether it is well.
    fn publish(&self) {
        let trouble = self.stream.as_ref().and_then(Stream::trouble);
        self.trouble.send_if_modified(|known| {
            let moved = known.as_ref() != trouble;
            if moved {
                *known = trouble.cloned();
            }
            moved
        });
    }

    async fn step(&mut self) -> Result<(), Unused> {
        let now = clock::now();
        if let Some(until) = self.resting_until.take_if(|until| *until > now) {
            self.resting_until = Some(until);
            // Who joins meanwhile keeps a connection of its own.
            return self.until_a_message(Some(until)).await;
        }
        if self.routes.is_empty() {
            self.stream = None;
            self.failing = None;
            return self.until_a_message(None).await;
        }
        let Some(stream) = &mut self.stream else { return self.begin().await };
        match stream.next(now) {
            Step::Wait(at) => self.wait(at).await,
            Step::Watch(query) => self.watch(&query).await,
            Step::List(_) => {
                self.lose();
                Ok(())
            }
        }
    }

    /// Finds out where to begin.
    async fn begin(&mut self) -> Result<(), Unused> {
        let asks = self.asks.clone();
        match self.serving(async move { asks.newest().await }).await? {
            Ok((_, version @ Version::Number(_))) => {
                self.life.seen(clock::now());
                let kind = self.key.resource.kind.clone();
                self.stream = Some(Stream::resuming(kind, task::seed(), &version));
                self.worth = Worth::new(clock::now());
            }
            Ok((_, Version::Text(version))) => {
                tracing::debug!(watch = %self.key, %version, "versions that cannot be compared make no feed");
                self.refused();
            }
            Err(error) => {
                tracing::debug!(watch = %self.key, %error, "a feed cannot begin");
                let fault = task::fault(&error);
                if fault.is_passing() && !fault.is_refusal() {
                    self.rest(REST);
                } else {
                    self.refused();
                }
            }
        }
        Ok(())
    }

    async fn wait(&mut self, at: Instant) -> Result<(), Unused> {
        // An answer of no use came from a server that is there: its recovery would be no news.
        let trouble = self.stream.as_ref().and_then(Stream::trouble);
        let unreachable = trouble.is_some_and(|fault| fault.number().is_none());
        let health = self.hub.health().clone();
        self.failing = unreachable.then(|| health.failing());
        let share = self.stream.as_mut().map_or(0.0, Stream::share);
        let spread = unreachable.then(|| RETURN_WITHIN.mul_f64(share));
        if self.serving(async move { health.pause(at, spread).await }).await?
            && let Some(stream) = &mut self.stream
        {
            stream.hurry();
        }
        Ok(())
    }

    async fn watch(&mut self, parameters: &[(&'static str, String)]) -> Result<(), Unused> {
        let opening = self.asks.open(parameters, OPEN_LIMIT);
        let lines = match self.serving(opening).await? {
            Ok(lines) => lines,
            Err(error) => {
                self.failed(task::fault(&error));
                return Ok(());
            }
        };
        self.begun();
        if let Some(version) = self.version() {
            self.routes.begin(&version);
        }
        self.is_open = true;
        self.publish();
        let mut wire = Wire::new(lines, None);
        // Without followers it ends with the next line, at the latest with a bookmark.
        while !self.routes.is_empty() && self.stream.is_some() && self.hear(&mut wire).await? {
            self.publish();
        }
        self.is_open = false;
        Ok(())
    }

    /// Hears one thing; whether the connection goes on.
    async fn hear(&mut self, wire: &mut Wire) -> Result<bool, Unused> {
        let (again, not_before) = (self.again.clone(), self.brief_until);
        let silent_at = self.life.last() + SILENCE;
        match self.serving(wire.hear(silent_at, &again, not_before)).await? {
            Heard::Line(Some(Ok(line))) => {
                self.life.seen(clock::now());
                wire.is_alive();
                return Ok(self.sort(&line));
            }
            Heard::Line(Some(Err(error))) | Heard::NotOpened(error) => {
                self.failed(task::fault(&error));
                return Ok(false);
            }
            Heard::Line(None) => {
                if wire.is_opening_briefly() {
                    self.brief_until = None;
                    self.again.notify_one();
                }
                let closed = |stream: &mut Stream| stream.closed(clock::now());
                self.stream.as_mut().map(closed);
                self.kept();
                return Ok(false);
            }
            Heard::Opened => self.begun(),
            Heard::Silence => self.reopen(wire, None),
            Heard::Again if wire.is_opening_briefly() => (),
            Heard::Again => {
                self.brief_until = Some(clock::now() + Duration::from_secs(BRIEFLY.into()));
                self.reopen(wire, Some(BRIEFLY));
            }
            Heard::Fed(_) | Heard::FeedEnd | Heard::FeedTrouble(_) | Heard::Joined => (),
        }
        Ok(true)
    }

    /// Hands a line to whom it concerns; whether the connection goes on.
    fn sort(&mut self, line: &str) -> bool {
        let Some(stream) = &mut self.stream else { return false };
        match route::route(line) {
            Ok(Route::Change { namespace, version: version @ Version::Number(_), is_gone }) => {
                stream.passed(&version);
                if !self.routes.change(&namespace, version, is_gone, line) {
                    self.worth.unfollowed(line.len());
                }
                true
            }
            Ok(Route::Bookmark(version @ Version::Number(_))) => {
                stream.passed(&version);
                self.routes.all(line);
                true
            }
            Ok(Route::Unknown) => true,
            _ if line.trim_ascii().is_empty() => true,
            Ok(Route::End) => {
                stream.line(line, clock::now());
                self.kept();
                false
            }
            // Whose it is nobody knows: who is concerned meets it over its own connection.
            _ => {
                tracing::debug!(watch = %self.key, "a line of a feed cannot be sorted");
                self.refused();
                false
            }
        }
    }

    fn failed(&mut self, fault: Fault) {
        if let Some(stream) = &mut self.stream {
            stream.failed(fault, clock::now());
        }
        self.kept();
    }

    /// After a failure: without its place in the server's history there is no feed, nor without the right to one, nor where the
    /// server answers everybody else and has not answered it for a while.
    fn kept(&mut self) {
        let Some(stream) = &self.stream else { return };
        let trouble = stream.trouble();
        let is_refused = trouble.is_some_and(Fault::is_refusal);
        let is_blind = self.life.last() + BLIND <= clock::now();
        let is_alone = is_blind && trouble.is_some() && *self.hub.reachable().borrow();
        if trouble.is_some_and(Fault::is_expired) {
            self.lose();
        } else if is_refused || is_alone || stream.is_listing() {
            self.refused();
        }
    }

    /// Lets all followers go: they know themselves how they go on.
    fn lose(&mut self) {
        tracing::debug!(watch = %self.key, "a feed lets its followers go");
        self.routes = Routes::default();
        self.stream = None;
        self.failing = None;
    }

    /// Begins again only after a while.
    fn rest(&mut self, span: Duration) {
        self.resting_until = Some(clock::now() + span);
    }

    /// Lets all go, and begins again only after a while, longer with each time.
    fn refused(&mut self) {
        if self.stream.is_some() {
            self.lose();
        }
        self.rest(REST.saturating_mul(1 << self.refusals.min(10)).min(LONGEST_REST));
        self.refusals += 1;
    }

    fn version(&self) -> Option<Version> {
        self.stream.as_ref().and_then(Stream::version).map(Version::parse)
    }

    fn begun(&mut self) {
        let now = clock::now();
        if let Some(stream) = &mut self.stream {
            stream.opened(now);
        }
        self.life.seen(now);
        self.failing = None;
    }

    fn reopen(&mut self, wire: &mut Wire, lasting: Option<u32>) {
        let query = self.stream.as_mut().and_then(|stream| stream.reopening(lasting));
        let second = query.map(|query| Second {
            opening: self.asks.open(&query, PROOF_LIMIT),
            is_brief: lasting.is_some(),
        });
        wire.set_second(second);
    }

    async fn until_a_message(&mut self, until: Option<Instant>) -> Result<(), Unused> {
        let timer = async {
            match until {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(message) = self.messages.recv() => self.serve(message),
            () = timer => (),
            _ = self.look.tick() => return self.look_after(),
        }
        Ok(())
    }

    /// Waits for `work` and serves messages meanwhile; ends if too few watches could use the feed for a while.
    async fn serving<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Unused> {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                biased;
                Some(message) = self.messages.recv() => self.serve(message),
                done = &mut work => return Ok(done),
                _ = self.look.tick() => self.look_after()?,
            }
        }
    }

    fn serve(&mut self, message: Message) {
        let version = self.version().filter(|_| self.is_open);
        match message {
            Message::Join(namespace, follower) => {
                self.routes.join(namespace, follower, version.as_ref());
            }
            Message::Leave(namespace, id) => self.routes.leave(&namespace, id),
            Message::Again(namespace, id) => {
                if let Some(version) = version {
                    // Whatever is older was sent already, and the watch runs.
                    let bookmark = format!(
                        r#"{{"type":"BOOKMARK","object":{{"metadata":{{"resourceVersion":"{version}"}}}}}}"#
                    );
                    self.routes.one(&namespace, id, &bookmark);
                }
                self.again.notify_one();
            }
        }
    }

    /// Ends if for a whole turn there were too few watches that could use it, and rests if it costs too much.
    fn look_after(&mut self) -> Result<(), Unused> {
        if self.was_unused && self.hub.end_feed(&self.key) {
            return Err(Unused);
        }
        self.was_unused = self.hub.is_feed_unused(&self.key);
        if self.is_open {
            self.refusals = 0;
        }
        let followers = self.routes.len();
        if self.stream.is_some() && self.worth.is_too_dear(followers, clock::now()) {
            tracing::debug!(watch = %self.key, followers, "most of a feed is for nobody");
            self.lose();
            self.rest(TOO_DEAR);
        }
        Ok(())
    }
}
