//! One connection of a client, and the one to the server that belongs to it.

use std::convert::Infallible;
use std::future::pending;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::rule::Asked;
use super::rules::Fate;
use super::tls::Upstream;
use super::{Connection, End, Seen, Shared, stream};

/// The body of an answer.
pub(super) type Body = UnsyncBoxBody<Bytes, anyhow::Error>;

/// Serves whoever connects, until it is dropped together with all connections.
pub(super) async fn listen(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // An error is about one client that has gone already.
                if let Ok((client, _)) = accepted {
                    connections.spawn(serve(client, shared.clone()));
                }
            }
            Some(_) = connections.join_next() => (),
        }
    }
}

/// Moves the bytes of the server's side; ends when dropped.
struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn connect(upstream: &Upstream) -> Result<(SendRequest<Incoming>, Driver)> {
    let server = TcpStream::connect((&*upstream.host, upstream.port)).await?;
    server.set_nodelay(true)?;
    let connector = TlsConnector::from(upstream.config.clone());
    let server = connector.connect(upstream.name.clone(), server).await?;
    let (requests, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(server)).await?;
    // How it ends is seen by whoever waits for an answer.
    let driver = tokio::spawn(async move { drop(connection.await) });
    Ok((requests, Driver(driver)))
}

async fn serve(client: TcpStream, shared: Arc<Shared>) {
    let upstream = shared.state().upstream.clone();
    let Ok((requests, mut driver)) = connect(&upstream).await else {
        reset(&client);
        return;
    };
    // No Nagle: a line of a watch must not wait for the next. It is only slower without.
    let _ = client.set_nodelay(true);
    let acceptor = TlsAcceptor::from(shared.server());
    // Who does not like the certificate goes away.
    let Ok(client) = acceptor.accept(client).await else { return };

    let breaks = Arc::new(Notify::new());
    let registered = Registered::new(&shared, breaks.clone());
    let requests = Mutex::new(Some(requests));
    let exchange =
        Exchange { shared: shared.clone(), id: registered.id, breaks: breaks.clone(), requests };
    let exchange = Arc::new(exchange);
    let service = service_fn(move |request| exchange.clone().answer(request));
    let io = TokioIo::new(client);
    let mut connection = hyper::server::conn::http1::Builder::new().serve_connection(io, service);
    let mut closing = false;
    loop {
        tokio::select! {
            // Whichever way it ended, the client knows.
            _ = &mut connection => return,
            () = breaks.notified() => {
                let (client, _) = connection.into_parts().io.into_inner().into_inner();
                reset(&client);
                return;
            }
            _ = &mut driver.0, if !closing => {
                closing = true;
                Pin::new(&mut connection).graceful_shutdown();
            }
        }
    }
}

/// Lets the connection end with a reset instead of a polite end, once it is dropped.
fn reset(client: &TcpStream) {
    // Without it the end is only more polite.
    let _ = client.set_zero_linger();
}

/// The connection's place among all.
struct Registered {
    shared: Arc<Shared>,
    id: u64,
}

impl Registered {
    fn new(shared: &Arc<Shared>, breaks: Arc<Notify>) -> Self {
        let mut state = shared.state();
        let id = state.next_connection;
        state.next_connection += 1;
        state.connections.insert(id, Connection { asked: None, breaks });
        Self { shared: shared.clone(), id }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.shared.state().connections.remove(&self.id);
    }
}

/// The requests of one connection, one after another.
struct Exchange {
    shared: Arc<Shared>,
    id: u64,
    breaks: Arc<Notify>,
    /// Taken while a request is being sent.
    requests: Mutex<Option<SendRequest<Incoming>>>,
}

impl Exchange {
    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Infallible> {
        if let Some(answer) = self.try_answer(request).await {
            return Ok(answer);
        }
        self.breaks.notify_one();
        pending().await
    }

    /// `None`: the connection is to break.
    async fn try_answer(&self, request: Request<Incoming>) -> Option<Response<Body>> {
        let asked = Asked::of(&request);
        let (entry, wait, fate) = self.decide(&asked);
        sleep(wait).await;
        match fate {
            Fate::Reset => {
                self.shared.ended(entry, End::Broken);
                None
            }
            Fate::Hold(rule) => {
                self.shared.without(rule).await;
                self.shared.ended(entry, End::Broken);
                None
            }
            Fate::Answer { code, retry_after } => {
                // Read to its end, so that the connection can be used again.
                let _ = request.into_body().collect().await;
                self.shared.ended(entry, End::Answered(code));
                refusal(&asked, code, retry_after).ok()
            }
            Fate::Frozen(rule, records) => {
                self.shared.ended(entry, End::Answered(200));
                let record = records.iter().find(|record| record.is_of(&asked))?;
                let text = record.answer(&asked);
                let body = stream::frozen(self.shared.clone(), self.breaks.clone(), rule, text);
                let answer = Response::builder().header(header::CONTENT_TYPE, "application/json");
                answer.body(body).ok()
            }
            Fate::Forward | Fate::LoseAnswer => {
                let Ok(answer) = self.forward(request).await else {
                    self.shared.ended(entry, End::Broken);
                    return None;
                };
                let code = answer.status().as_u16();
                if matches!(fate, Fate::LoseAnswer) {
                    if !asked.is_watch() {
                        // The server is done only at the end of its answer.
                        let _ = answer.into_body().collect().await;
                    }
                    self.shared.ended(entry, End::Lost(code));
                    return None;
                }
                self.shared.ended(entry, End::Forwarded(code));
                Some(self.pass_on(asked, answer))
            }
        }
    }

    fn decide(&self, asked: &Asked) -> (usize, std::time::Duration, Fate) {
        let mut state = self.shared.state();
        if let Some(connection) = state.connections.get_mut(&self.id) {
            connection.asked = Some(asked.clone());
        }
        state.log.push(Seen { at: Instant::now(), asked: asked.clone(), end: End::Open });
        let (wait, fate) = state.rules.request(asked);
        (state.log.len() - 1, wait, fate)
    }

    async fn forward(&self, request: Request<Incoming>) -> Result<Response<Incoming>> {
        let taken = self.lock().take();
        let mut requests = taken.context("two requests at once on one connection")?;
        // Not ready for a moment after the answer before this one.
        requests.ready().await?;
        let answer = requests.send_request(request).await;
        *self.lock() = Some(requests);
        Ok(answer?)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<SendRequest<Incoming>>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pass_on(&self, asked: Asked, answer: Response<Incoming>) -> Response<Body> {
        let (mut parts, body) = answer.into_parts();
        if !asked.is_watch() || parts.status != StatusCode::OK {
            return Response::from_parts(parts, body.map_err(Into::into).boxed_unsync());
        }
        // The proxy frames the lines itself.
        parts.headers.remove(header::TRANSFER_ENCODING);
        let body = stream::follow(self.shared.clone(), asked, body, self.breaks.clone());
        Response::from_parts(parts, body)
    }
}

impl Asked {
    fn of(request: &Request<Incoming>) -> Self {
        let header = |name: &str| text(request.headers(), name);
        Self {
            method: request.method().to_string(),
            uri: request.uri().to_string(),
            agent: header("user-agent"),
            actor: header("impersonate-user"),
            accept: header("accept"),
            credential: hash(&header("authorization")),
        }
    }
}

fn hash(text: &str) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

fn text(headers: &HeaderMap, name: &str) -> String {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

/// What the API server would say.
fn refusal(asked: &Asked, code: u16, retry_after: Option<u64>) -> Result<Response<Body>> {
    let status = StatusCode::from_u16(code)?;
    let reason = match code {
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        410 => "Expired",
        429 => "TooManyRequests",
        503 => "ServiceUnavailable",
        504 => "Timeout",
        _ => "InternalError",
    };
    let mut body = json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": format!("a fault of the test: {} {}", asked.method, asked.path()),
        "reason": reason,
        "code": code,
    });
    let mut answer = Response::builder().status(status);
    answer = answer.header(header::CONTENT_TYPE, "application/json");
    if let Some(seconds) = retry_after {
        body["details"] = json!({"retryAfterSeconds": seconds});
        answer = answer.header(header::RETRY_AFTER, seconds);
    }
    let body = Full::from(body.to_string()).map_err(|never| match never {}).boxed_unsync();
    Ok(answer.body(body)?)
}
