//! The upload interface, in process: who may send what, and how much.

#![cfg(test)] // Tells clippy that helpers are test code too.

use std::{
    collections::HashSet,
    convert::Infallible,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    http::{Method, Request, StatusCode, header},
};
use futures::{StreamExt, stream};
use nagaya::{
    http::{
        door::{self, Door, Patience},
        uploads::{Uploads, router, router_with_limit},
    },
    leader::fence::Claim,
    model::digest::Digest,
    modules::Modules,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tower::ServiceExt;

const MAX: u64 = 64 << 10;

struct Host {
    folder: tempfile::TempDir,
    modules: Modules,
}

impl Host {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let modules = Modules::open(folder.path()).unwrap();
        Self { folder, modules }
    }

    /// A host whose API names `digests`.
    fn naming(digests: &[&Digest]) -> Self {
        let host = Self::new();
        host.modules.name("demo/web", digests.iter().map(|digest| (*digest).clone()).collect());
        host
    }

    fn uploads(&self) -> Uploads {
        Uploads { modules: self.modules.clone(), claim: claim(Duration::MAX), max_bytes: MAX }
    }

    fn files(&self) -> usize {
        count(self.folder.path())
    }

    async fn put(&self, digest: &Digest, body: Body) -> StatusCode {
        send(router(self.uploads()), request(Method::PUT, &digest.to_string(), body)).await
    }

    async fn head(&self, digest: &str) -> StatusCode {
        send(router(self.uploads()), request(Method::HEAD, digest, Body::empty())).await
    }
}

/// What a host holds that leads until then, counted from its boot.
#[expect(clippy::disallowed_methods, reason = "an arbitrary starting point")]
fn claim(until: Duration) -> watch::Receiver<Option<Claim>> {
    watch::channel(Some(Claim::new(1, std::time::Instant::now(), until))).1
}

fn count(folder: &Path) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

fn request(method: Method, digest: &str, body: Body) -> Request<Body> {
    Request::builder().method(method).uri(format!("/v1/modules/{digest}")).body(body).unwrap()
}

async fn send(router: Router, request: Request<Body>) -> StatusCode {
    router.oneshot(request).await.unwrap().status()
}

fn component(length: usize) -> Vec<u8> {
    let mut bytes = b"\0asm\x0d\0\x01\0".to_vec();
    bytes.resize(length, b'x');
    bytes
}

/// A body in pieces, and how many of them were asked for.
fn counted(pieces: Vec<Vec<u8>>) -> (Body, Arc<AtomicUsize>) {
    let read = Arc::new(AtomicUsize::new(0));
    let counter = read.clone();
    let body = Body::from_stream(stream::iter(pieces).map(move |piece| {
        counter.fetch_add(1, Ordering::Relaxed);
        Ok::<_, Infallible>(Bytes::from(piece))
    }));
    (body, read)
}

/// A body whose rest never comes.
fn stuck(first: Vec<u8>) -> Body {
    let first = stream::iter([Ok::<_, Infallible>(Bytes::from(first))]);
    Body::from_stream(first.chain(stream::pending()))
}

#[tokio::test]
async fn bytes_nobody_waits_for_are_refused_unread() {
    let bytes = component(100);
    let digest = Digest::of(&bytes);
    let refused = async |host: &Host, expected: StatusCode| {
        let files = host.files();
        let (body, read) = counted(vec![bytes.clone()]);
        assert_eq!(host.put(&digest, body).await, expected);
        assert_eq!(read.load(Ordering::Relaxed), 0, "{expected}: the body was read");
        assert_eq!(host.files(), files, "{expected}: something was stored");
    };

    let host = Host::new();
    refused(&host, StatusCode::SERVICE_UNAVAILABLE).await;
    assert_eq!(host.head(&digest.to_string()).await, StatusCode::SERVICE_UNAVAILABLE);

    host.modules.name("demo/web", HashSet::from([Digest::of(b"another")]));
    refused(&host, StatusCode::NOT_FOUND).await;
    assert_eq!(host.head(&digest.to_string()).await, StatusCode::NOT_FOUND);

    host.modules.name("demo/web", HashSet::from([digest.clone()]));
    assert_eq!(host.head(&digest.to_string()).await, StatusCode::ACCEPTED);
    assert_eq!(host.put(&digest, Body::from(bytes.clone())).await, StatusCode::CREATED);
    assert_eq!(host.modules.read(&digest).unwrap().as_deref(), Some(bytes.as_slice()));
    assert_eq!(host.head(&digest.to_string()).await, StatusCode::OK);
    refused(&host, StatusCode::OK).await;

    host.modules.name("demo/web", HashSet::new());
    refused(&host, StatusCode::NOT_FOUND).await;
}

#[tokio::test]
async fn a_standby_takes_no_upload() {
    let digest = Digest::of(&component(10));
    let host = Host::naming(&[&digest]);
    for claim in [claim(Duration::ZERO), watch::channel(None).1] {
        let uploads = Uploads { claim, ..host.uploads() };
        for method in [Method::PUT, Method::HEAD] {
            let (body, read) = counted(vec![component(10)]);
            let request = request(method, &digest.to_string(), body);
            assert_eq!(
                send(router(uploads.clone()), request).await,
                StatusCode::SERVICE_UNAVAILABLE
            );
            assert_eq!(read.load(Ordering::SeqCst), 0);
        }
    }
    assert_eq!(host.files(), 0);
}

/// Both as a client sees them that sends all before it reads.
#[tokio::test]
async fn a_refusal_reaches_a_client_that_is_still_sending() {
    let bytes = component(8 << 20);
    let digest = Digest::of(&bytes).to_string();
    let another = Digest::of(b"another").to_string();
    let host = Host::naming(&[&Digest::of(&bytes)]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = watch::channel(false);
    let server =
        tokio::spawn(door::serve(listener, router(host.uploads()), Door::default(), stopped));
    let mut connection = BufReader::new(TcpStream::connect(address).await.unwrap());
    for (name, status) in [("nonsense", 400), (&another, 404), (&digest, 413)] {
        let length = bytes.len();
        let head = format!(
            "PUT /v1/modules/{name} HTTP/1.1\r\nHost: it\r\nContent-Length: {length}\r\n\r\n"
        );
        connection.write_all(head.as_bytes()).await.unwrap();
        connection.write_all(&bytes).await.unwrap_or_else(|error| panic!("{status}: {error}"));
        let answer = answer(&mut connection).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
    assert_eq!(host.files(), 0);
    drop(connection);
    stop.send_replace(true);
    tokio::time::timeout(Duration::from_secs(20), server).await.unwrap().unwrap();
}

/// Somebody who asks every ten seconds, or every minute, must not meet the end of a connection that is idle.
#[test]
fn an_idle_connection_lasts_longer_than_clients_keep_it() {
    assert!(Patience::default().head > Duration::from_secs(90));
}

/// A server that is impatient, and what stops it.
async fn impatient(host: &Host, patience: Patience) -> (std::net::SocketAddr, watch::Sender<bool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(door::serve(
        listener,
        router(host.uploads()),
        Door { patience, tls: None },
        stopped,
    ));
    (address, stop)
}

/// Slow heads held a connection, its task and its buffers for as long as the client liked.
#[tokio::test]
async fn a_client_that_never_ends_its_head_is_cut_off() {
    let host = Host::new();
    let patience = Patience { head: Duration::from_millis(200), ..Patience::default() };
    let (address, _stop) = impatient(&host, patience).await;
    let silent = TcpStream::connect(address).await.unwrap();
    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(b"GET /v1/modules/x HTTP/1.1\r\nHost: it\r\nX: ").await.unwrap();
    let mut answered = BufReader::new(TcpStream::connect(address).await.unwrap());
    answered.write_all(b"GET /v1/nothing HTTP/1.1\r\nHost: it\r\n\r\n").await.unwrap();
    assert!(answer(&mut answered).await.starts_with("HTTP/1.1 404"));
    for (mut stream, what) in [(silent, "silent"), (slow, "slow"), (answered.into_inner(), "idle")]
    {
        let ended = tokio::time::timeout(Duration::from_secs(20), async {
            let mut rest = vec![];
            // Whether it ends with a reset or an answer: it ends.
            let _ = stream.read_to_end(&mut rest).await;
        });
        ended.await.unwrap_or_else(|_| panic!("the {what} one is still open"));
    }
}

#[tokio::test]
async fn idle_connections_keep_nobody_out() {
    let host = Host::new();
    let patience =
        Patience { head: Duration::from_secs(600), connections: 4, ..Patience::default() };
    let (address, stop) = impatient(&host, patience).await;
    let mut idle = vec![];
    for _ in 0..50 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        idle.push(stream);
    }
    for _ in 0..10 {
        let mut client = BufReader::new(TcpStream::connect(address).await.unwrap());
        client.write_all(b"GET /v1/nothing HTTP/1.1\r\nHost: it\r\n\r\n").await.unwrap();
        let heard = tokio::time::timeout(Duration::from_secs(20), answer(&mut client)).await;
        assert!(heard.unwrap().starts_with("HTTP/1.1 404"));
        idle.push(client.into_inner());
    }
    let mut large = TcpStream::connect(address).await.unwrap();
    let head = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(64 << 10));
    let _ = large.write_all(head.as_bytes()).await;
    let mut heard = vec![];
    // The end of a connection with bytes unread may overtake the answer.
    let _ = large.read_to_end(&mut heard).await;
    assert!(heard.is_empty() || heard.starts_with(b"HTTP/1.1 431"), "a head has an end");
    stop.send_replace(true);
}

/// One answer with a length: its head.
async fn answer(connection: &mut BufReader<TcpStream>) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(connection.read_line(&mut head).await.unwrap(), 0, "closed after {head:?}");
    }
    let lower = head.to_lowercase();
    let length = lower.split("content-length: ").nth(1).unwrap().split("\r\n").next().unwrap();
    connection.read_exact(&mut vec![0; length.parse().unwrap()]).await.unwrap();
    head
}

#[tokio::test]
async fn an_upload_has_limits() {
    let full = component(usize::try_from(MAX).unwrap());
    let large = component(full.len() + 1);
    let (full_digest, large_digest) = (Digest::of(&full), Digest::of(&large));
    let host = Host::naming(&[&full_digest, &large_digest]);

    let mut announced = request(Method::PUT, &large_digest.to_string(), stuck(large.clone()));
    announced.headers_mut().insert(header::CONTENT_LENGTH, large.len().into());
    let answer = send(router(host.uploads()), announced).await;
    assert_eq!(answer, StatusCode::PAYLOAD_TOO_LARGE, "by its own announcement, unread");

    let pieces: Vec<_> = component(100 * full.len()).chunks(1_000).map(<[u8]>::to_vec).collect();
    let (body, read) = counted(pieces);
    assert_eq!(host.put(&large_digest, body).await, StatusCode::PAYLOAD_TOO_LARGE);
    let needed = full.len() / 1_000 + 1;
    let read = read.load(Ordering::Relaxed);
    assert!(read <= needed + 1, "{read} pieces were read, {needed} hold the limit");
    assert_eq!(host.files(), 0, "a partial file is left");

    let (body, _) = counted(full.chunks(1_000).map(<[u8]>::to_vec).collect());
    assert_eq!(
        host.put(&full_digest, body).await,
        StatusCode::CREATED,
        "the limit itself is allowed"
    );
}

#[tokio::test]
async fn a_body_that_does_not_arrive_in_time_is_refused() {
    let bytes = component(100);
    let digest = Digest::of(&bytes);
    let host = Host::naming(&[&digest]);
    let router = router_with_limit(host.uploads(), Duration::from_millis(50));
    let request = request(Method::PUT, &digest.to_string(), stuck(bytes[..50].to_vec()));
    let answer = tokio::time::timeout(Duration::from_secs(20), send(router, request)).await;
    assert_eq!(answer.unwrap(), StatusCode::REQUEST_TIMEOUT);
    // A write that was under way ends on its own thread, and takes its file with it.
    let emptied = async {
        while host.files() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), emptied).await.unwrap();
}

#[tokio::test]
async fn only_the_named_bytes_in_plain_are_taken() {
    let bytes = component(100);
    let digest = Digest::of(&bytes);
    let zip = b"PK\x03\x04 and so on";
    let host = Host::naming(&[&digest, &Digest::of(zip), &Digest::of(b"\0a")]);

    let mut other = bytes.clone();
    other[99] = b'y';
    assert_eq!(host.put(&digest, Body::from(other)).await, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(host.put(&digest, Body::empty()).await, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let archive = host.put(&Digest::of(zip), Body::from(zip.to_vec())).await;
    assert_eq!(archive, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let short = host.put(&Digest::of(b"\0a"), Body::from("\0a")).await;
    assert_eq!(short, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let mut packed = request(Method::PUT, &digest.to_string(), Body::from(bytes.clone()));
    packed.headers_mut().insert(header::CONTENT_ENCODING, header::HeaderValue::from_static("gzip"));
    let packed = send(router(host.uploads()), packed).await;
    assert_eq!(packed, StatusCode::UNSUPPORTED_MEDIA_TYPE);

    let broken =
        stream::iter([Ok(Bytes::from(bytes[..50].to_vec())), Err(std::io::Error::other("reset"))]);
    assert_eq!(host.put(&digest, Body::from_stream(broken)).await, StatusCode::BAD_REQUEST);
    assert_eq!(host.files(), 0);
    for path in ["sha256:..%2F..%2Fetc%2Fpasswd", "latest", "sha256:ABCD"] {
        assert_eq!(host.head(path).await, StatusCode::BAD_REQUEST, "{path}");
    }

    let (body, _) = counted(bytes.chunks(1).map(<[u8]>::to_vec).collect());
    assert_eq!(host.put(&digest, body).await, StatusCode::CREATED, "a byte at a time");
}

#[tokio::test]
async fn a_store_without_room_says_so() {
    let bytes = component(100);
    let digest = Digest::of(&bytes);
    let host = Host::naming(&[&digest]);
    std::fs::remove_dir_all(host.folder.path()).unwrap();
    std::fs::write(host.folder.path(), "in the way").unwrap();
    let answer = host.put(&digest, Body::from(bytes.clone())).await;
    assert_eq!(answer, StatusCode::INSUFFICIENT_STORAGE);
    std::fs::remove_file(host.folder.path()).unwrap();
    assert_eq!(host.put(&digest, Body::from(bytes)).await, StatusCode::CREATED, "it is made again");
}
