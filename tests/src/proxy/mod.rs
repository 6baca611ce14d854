//! The fault proxy: stands between the host and the API server and does to their requests what a
//! bad day does.
//!
//! ```no_run
//! # use e2e::proxy::{Action, Matcher, Proxy, Rule};
//! # use std::time::Duration;
//! # async fn example(control_plane: &e2e::control_plane::ControlPlane) -> anyhow::Result<()> {
//! let proxy = Proxy::start(control_plane, 7).await?;
//! let late = Action::DelayLines(Duration::from_secs(5));
//! let guard = proxy.add(Rule::new(Matcher::watches().uri("/configmaps"), late));
//! // … a host that was started with `proxy.kubeconfig(…)` sees ConfigMaps 5 s later …
//! drop(guard);
//! # Ok(())
//! # }
//! ```
//!
//! It speaks HTTP/1.1 and TLS on both sides. To each connection belongs one to the server, opened
//! first and closed together with it, so that a server that is down or frozen looks from outside
//! as it is. Credentials pass through. Without rules nothing is changed, and watches pass line by line.
//!
//! In reading order: [`Matcher`], [`Action`] and [`Rule`] say what is to happen, `rules` decides
//! about one request or line, `line` holds the lines of a watch on their way, `connection` and
//! `stream` move the bytes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::control_plane::ControlPlane;

mod connection;
mod frozen;
mod line;
mod rule;
mod rules;
mod stream;
mod tls;

pub use frozen::Recording;
pub use rule::{Action, Asked, Matcher, Rule};
pub use tls::Authority;

use rules::Rules;
use tls::Upstream;

/// One request that came.
#[derive(Debug, Clone)]
pub struct Seen {
    /// When it came.
    pub at: Instant,
    /// What was asked.
    pub asked: Asked,
    /// What became of it.
    pub end: End,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Nothing yet, or never.
    Open,
    /// The server answered with this status, and the answer was passed on.
    Forwarded(u16),
    /// The server answered with this status, and the answer was thrown away.
    Lost(u16),
    /// The proxy answered with this status itself.
    Answered(u16),
    /// The connection broke before an answer.
    Broken,
}

/// A running proxy; ends, with all its connections, when dropped. It belongs to the runtime it is
/// started on.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    url: String,
    ca_pem: String,
    listening: JoinHandle<()>,
}

/// A rule in force; ends when dropped.
#[derive(Debug)]
#[must_use = "the rule ends with it"]
pub struct Guard {
    shared: Arc<Shared>,
    id: u64,
    hits: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Changes whenever rules come or go.
    changed: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    /// What connections to come are shown.
    server: Arc<rustls::ServerConfig>,
    upstream: Upstream,
    rules: Rules,
    log: Vec<Seen>,
    next_connection: u64,
    connections: BTreeMap<u64, Connection>,
    next_stream: u64,
    streams: BTreeMap<u64, Stream>,
}

/// A connection, as those see it who break it.
#[derive(Debug)]
struct Connection {
    asked: Option<Asked>,
    breaks: Arc<tokio::sync::Notify>,
}

/// An open watch.
#[derive(Debug)]
struct Stream {
    asked: Asked,
    orders: mpsc::Sender<Order>,
}

/// What an open watch is told.
#[derive(Debug)]
enum Order {
    /// Sends these lines.
    Send(Vec<String>),
    /// Says what it has sent so far.
    Tell(tokio::sync::oneshot::Sender<Vec<String>>),
}

impl Proxy {
    /// Starts one before this server; `seed` decides whatever is left to chance.
    pub async fn start(control_plane: &ControlPlane, seed: u64) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.context("opening a port")?;
        let url = format!("https://{}", listener.local_addr()?);
        let authority = Authority::new()?;
        let state = State {
            server: Arc::new(authority.server()?),
            upstream: Upstream::new(control_plane.url(), control_plane.ca_pem())?,
            rules: Rules::new(seed),
            log: vec![],
            next_connection: 0,
            connections: BTreeMap::new(),
            next_stream: 0,
            streams: BTreeMap::new(),
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: watch::Sender::new(0) });
        let listening = tokio::spawn(connection::listen(listener, shared.clone()));
        Ok(Self { shared, url, ca_pem: authority.pem(), listening })
    }

    /// Where it listens.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The authority of its first certificate.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// Writes beside the kubeconfig `original` one with the same credentials that leads through
    /// this proxy.
    pub fn kubeconfig(&self, original: &Path) -> Result<PathBuf> {
        crate::control_plane::kubeconfig_through(original, &self.url, &self.ca_pem)
    }

    /// Puts a rule in force until the guard is dropped. Open watches obey at once.
    pub fn add(&self, rule: Rule) -> Guard {
        let mut state = self.shared.state();
        let watches = state.next_stream;
        let (id, hits) = state.rules.add(rule, watches);
        drop(state);
        self.shared.changed.send_modify(|count| *count += 1);
        Guard { shared: self.shared.clone(), id, hits }
    }

    /// From now on what `matcher` means is as it is now for all watches that are opened: their
    /// initial state and what is newer than the version they ask for come from a record of the
    /// watches that are open now, and nothing else. [`cut`](Self::cut) makes the host open them.
    pub async fn freeze(&self, matcher: Matcher) -> Result<Guard> {
        let open: Vec<_> = self.open(&matcher);
        let mut records = vec![];
        for (asked, orders) in open {
            let (told, tell) = tokio::sync::oneshot::channel();
            orders.send(Order::Tell(told)).await.context("asking a watch that has ended")?;
            let lines = tell.await.context("asking a watch that has ended")?;
            records.push(Recording { asked, lines });
        }
        Ok(self.add(Rule::new(matcher, Action::Frozen(Arc::new(records)))))
    }

    /// Sends lines into all open watches that `matcher` means, behind what they wait to send; to how many.
    pub async fn inject(&self, matcher: &Matcher, lines: &[String]) -> usize {
        let mut reached = 0;
        for (_, orders) in self.open(matcher) {
            // An error means that the watch has just ended.
            reached += usize::from(orders.send(Order::Send(lines.to_vec())).await.is_ok());
        }
        reached
    }

    /// Breaks the connections on which such a request is under way or was the last; how many.
    pub fn cut(&self, matcher: &Matcher) -> usize {
        let state = self.shared.state();
        let meant = state.connections.values().filter(|connection| {
            connection.asked.as_ref().is_some_and(|asked| matcher.matches(asked))
        });
        meant.map(|connection| connection.breaks.notify_one()).count()
    }

    /// Leads to another server from now on, and breaks all connections to the old one.
    pub fn upstream(&self, other: &ControlPlane) -> Result<()> {
        let upstream = Upstream::new(other.url(), other.ca_pem())?;
        self.shared.state().upstream = upstream;
        self.cut(&Matcher::all());
        Ok(())
    }

    /// Shows connections to come a new certificate, of this authority.
    pub fn show(&self, authority: &Authority) -> Result<()> {
        self.shared.state().server = Arc::new(authority.server()?);
        Ok(())
    }

    /// The requests that came so far, in their order.
    pub fn log(&self) -> Vec<Seen> {
        self.shared.state().log.clone()
    }

    /// How many requests came that `matcher` means.
    pub fn count(&self, matcher: &Matcher) -> usize {
        self.shared.state().log.iter().filter(|seen| matcher.matches(&seen.asked)).count()
    }

    /// The watches that are open now.
    pub fn open_watches(&self, matcher: &Matcher) -> Vec<Asked> {
        self.open(matcher).into_iter().map(|(asked, _)| asked).collect()
    }

    fn open(&self, matcher: &Matcher) -> Vec<(Asked, mpsc::Sender<Order>)> {
        let state = self.shared.state();
        let streams = state.streams.values().filter(|stream| matcher.matches(&stream.asked));
        streams.map(|stream| (stream.asked.clone(), stream.orders.clone())).collect()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

impl Guard {
    /// How many requests, or lines of watches, it has struck. Stalls are not counted.
    pub fn hits(&self) -> u64 {
        self.hits.load(Ordering::Relaxed)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.shared.state().rules.remove(self.id);
        self.shared.changed.send_modify(|count| *count += 1);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn server(&self) -> Arc<rustls::ServerConfig> {
        self.state().server.clone()
    }

    /// Waits until the rule is gone.
    async fn without(&self, rule: u64) {
        let mut changed = self.changed.subscribe();
        while self.state().rules.has(rule) {
            // The sender is in `self`.
            let _ = changed.changed().await;
        }
    }

    fn ended(&self, entry: usize, end: End) {
        if let Some(seen) = self.state().log.get_mut(entry) {
            seen.end = end;
        }
    }
}
