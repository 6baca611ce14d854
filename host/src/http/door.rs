//! Takes connections and hands their requests over: to who says nothing for long, or is one too many, the door is shut.
//!
//! A client has some time for the head of a request, or to send another one, and a connection ends some time. If there are too many, the one
//! that has waited longest for its client goes: whoever only opens connections keeps nobody else out.
//!
//! Invariants, in `host/tests/api.rs`: `a_client_that_never_ends_its_head_is_cut_off`,
//! `idle_connections_keep_nobody_out`.

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes, HttpBody},
    extract::Request,
    middleware,
    response::Response,
};
use hyper::{
    body::{Frame, Incoming, SizeHint},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{AbortHandle, JoinSet},
};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use super::linger;

/// How patient the host is with its clients.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For the head of a request, also of the next one on a connection. Longer than clients keep one that they do not use (90 s by
    /// default in Go's and in hyper's): else a request meets the end of its connection. It keeps nobody else out.
    pub head: Duration,
    /// For a connection; what is under way then may go on for [`LAST`].
    pub connection: Duration,
    /// Connections at the same time.
    pub connections: usize,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(100),
            connection: Duration::from_secs(300),
            connections: 128,
        }
    }
}

/// What a connection must show and see before it may speak; `None`: it is not known yet.
pub type Tls = Arc<dyn Fn() -> Option<Arc<ServerConfig>> + Send + Sync>;

/// A handshake takes no longer.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A request that was begun may end within this; an upload has 30 s.
const LAST: Duration = Duration::from_secs(40);
/// Bytes of a head, and of what is read of a body at once.
const BUFFER: usize = 32 << 10;
/// Header fields of a request.
const HEADERS: usize = 64;
/// After a failed accept, which is mostly for want of file handles.
const PAUSE: Duration = Duration::from_millis(100);

/// How a listener's connections are treated.
#[derive(Clone, Default)]
pub struct Door {
    /// Limits of time and number.
    pub patience: Patience,
    /// `None`: anybody may speak, in the clear.
    pub tls: Option<Tls>,
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door").field("patience", &self.patience).finish_non_exhaustive()
    }
}

/// Serves `router` until `stop` becomes true, and then what is under way. Answers reach clients that are still sending.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    door: Door,
    mut stop: watch::Receiver<bool>,
) {
    let router = router.layer(middleware::map_request(linger::over));
    let patience = door.patience;
    let mut connections = JoinSet::new();
    let mut open: Vec<Open> = vec![];
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                pause_after(&error).await;
                continue;
            }
        };
        open.retain(|one| !one.task.is_finished());
        if open.len() >= patience.connections && !make_room(&mut open) {
            // All of them work: this one is told by the end of its connection.
            continue;
        }
        let busy = Arc::new(AtomicUsize::new(0));
        let service = Service { router: router.clone(), busy: busy.clone() };
        let serving = connection(stream, service, door.clone(), stop.clone());
        open.push(Open { task: connections.spawn(serving), busy });
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

struct Open {
    task: AbortHandle,
    /// Requests that are being answered.
    busy: Arc<AtomicUsize>,
}

/// Ends the oldest connection whose client has nothing under way.
fn make_room(open: &mut Vec<Open>) -> bool {
    let idle = open.iter().position(|one| one.busy.load(Ordering::Relaxed) == 0);
    idle.map(|at| open.remove(at).task.abort()).is_some()
}

async fn pause_after(error: &io::Error) {
    let is_clients = matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
    );
    if !is_clients {
        tracing::warn!(%error, "a connection cannot be accepted");
        tokio::time::sleep(PAUSE).await;
    }
}

#[derive(Clone)]
struct Service {
    router: Router,
    busy: Arc<AtomicUsize>,
}

async fn connection(stream: TcpStream, service: Service, door: Door, stop: watch::Receiver<bool>) {
    let Some(tls) = door.tls else { return talk(stream, service, door.patience, stop).await };
    let Some(config) = tls() else { return };
    match tokio::time::timeout(HANDSHAKE, TlsAcceptor::from(config).accept(stream)).await {
        Ok(Ok(stream)) => talk(stream, service, door.patience, stop).await,
        // A probe of a port, or somebody without a certificate.
        Ok(Err(error)) => tracing::debug!(%error, "a handshake failed"),
        Err(_) => (),
    }
}

async fn talk(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    service: Service,
    patience: Patience,
    mut stop: watch::Receiver<bool>,
) {
    let service = service_fn(move |request| answer(service.clone(), request));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(patience.head)
        .max_buf_size(BUFFER)
        .max_headers(HEADERS);
    let mut serving = pin!(http.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = &mut serving => Some(ended),
        _ = stop.wait_for(|stop| *stop) => None,
        () = tokio::time::sleep(patience.connection) => None,
    };
    if ended.is_none() {
        serving.as_mut().graceful_shutdown();
        // Who does not read the answer by then does not want it.
        let _ = tokio::time::timeout(LAST, serving).await;
    }
}

fn answer(
    service: Service,
    request: http::Request<Incoming>,
) -> impl Future<Output = Result<Response, Infallible>> {
    let busy = Busy::new(service.busy);
    let request: Request = request.map(Body::new);
    async move {
        let answer = service.router.oneshot(request).await?;
        Ok(answer.map(|body| Body::new(Sending { body, _busy: busy })))
    }
}

/// The body of an answer: as long as it is sent, the request is under way.
struct Sending {
    body: Body,
    _busy: Busy,
}

impl HttpBody for Sending {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Counts one request as long as it is there.
struct Busy(Arc<AtomicUsize>);

impl Busy {
    fn new(count: Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
