//! The host's HTTP interface: uploads. Whoever may name a digest in a WasmController may send its bytes.
//!
//! The handler knows nothing of its transport: the API group behind the API server serves it too.
//!
//! Invariants, in `host/tests/api.rs`: `bytes_nobody_waits_for_are_refused_unread`, `an_upload_has_limits`.

use std::time::Duration;

use axum::{
    Router,
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::put,
};
use http_body_util::BodyExt;
use tokio::sync::watch;

use super::answer::status as answer;
use crate::{
    fail,
    leader::fence::Claim,
    model::digest::Digest,
    modules::{Error, Modules, Upload, Welcome},
};

/// The whole body must be here within this time.
pub(super) const BODY_LIMIT: Duration = Duration::from_secs(30);

/// What the handlers share.
#[derive(Clone, Debug)]
pub struct Uploads {
    /// Where modules go.
    pub modules: Modules,
    /// Held by the host of a deployment that takes the uploads.
    pub claim: watch::Receiver<Option<Claim>>,
    /// Larger modules are refused while they are being received.
    pub max_bytes: u64,
}

impl Uploads {
    /// Whether this host is the one that takes them.
    pub(super) fn leads(&self) -> bool {
        self.claim.borrow().as_ref().is_some_and(Claim::holds)
    }
}

/// `PUT` and `HEAD /v1/modules/{digest}`.
pub fn router(uploads: Uploads) -> Router {
    router_with_limit(uploads, BODY_LIMIT)
}

/// The same with another time limit for a whole body.
pub fn router_with_limit(uploads: Uploads, body_limit: Duration) -> Router {
    Router::new()
        .route("/v1/modules/{digest}", put(receive).head(look))
        .with_state(Uploading { uploads, body_limit })
}

#[derive(Clone)]
struct Uploading {
    uploads: Uploads,
    body_limit: Duration,
}

async fn look(State(state): State<Uploading>, Path(digest): Path<String>) -> Response {
    if !state.uploads.leads() {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    match digest.parse::<Digest>() {
        Ok(digest) => match state.uploads.modules.welcome(&digest, None) {
            Welcome::Stored => StatusCode::OK.into_response(),
            Welcome::Wanted => StatusCode::ACCEPTED.into_response(),
            Welcome::Unnamed => StatusCode::NOT_FOUND.into_response(),
            Welcome::NotSynced => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        },
        Err(_) => StatusCode::BAD_REQUEST.into_response(),
    }
}

async fn receive(
    State(Uploading { uploads, body_limit }): State<Uploading>,
    Path(digest): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    take(&uploads, (&digest, None), body_limit, &headers, body).await
}

/// Takes the bytes of a digest that a WasmController names, of the namespace if one is given.
pub(super) async fn take(
    uploads: &Uploads,
    (digest, namespace): (&str, Option<&str>),
    body_limit: Duration,
    headers: &HeaderMap,
    body: Body,
) -> Response {
    let digest = match digest.parse::<Digest>() {
        Ok(digest) => digest,
        Err(error) => return answer(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    if !uploads.leads() {
        let text = "this host is a standby: another one of its deployment holds the Lease and takes the uploads; send it there, or try again in a moment";
        return answer(StatusCode::SERVICE_UNAVAILABLE, text);
    }
    match uploads.modules.welcome(&digest, namespace) {
        Welcome::Wanted => (),
        Welcome::Stored => return answer(StatusCode::OK, "the module is stored already"),
        Welcome::NotSynced => {
            let text = "the host has not read the WasmControllers yet; try again in a moment";
            return answer(StatusCode::SERVICE_UNAVAILABLE, text);
        }
        Welcome::Unnamed => {
            let place = namespace.map(|name| format!(" of namespace {name}")).unwrap_or_default();
            let text = format!(
                "no WasmController{place} names {digest}: set spec.module.digest first (nagaya push does), then send the bytes"
            );
            return answer(StatusCode::NOT_FOUND, &text);
        }
    }
    if headers.contains_key(header::CONTENT_ENCODING) {
        let text = "send the component as it is, without a Content-Encoding";
        return answer(StatusCode::UNSUPPORTED_MEDIA_TYPE, text);
    }
    let length =
        headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if length.is_some_and(|length: u64| length > uploads.max_bytes) {
        return refused(&Error::TooLarge(uploads.max_bytes));
    }
    match tokio::time::timeout(body_limit, store(uploads, digest, body)).await {
        Ok(Ok(())) => answer(StatusCode::CREATED, "stored"),
        Ok(Err(Failure::Store(error))) => refused(&error),
        Ok(Err(Failure::Body(text))) => answer(StatusCode::BAD_REQUEST, &text),
        Ok(Err(Failure::NotWasm)) => {
            let text =
                "the body is not WebAssembly; send the component as it is, not in an archive";
            answer(StatusCode::UNSUPPORTED_MEDIA_TYPE, text)
        }
        Err(_) => {
            let text = format!("the body did not arrive within {body_limit:?}");
            answer(StatusCode::REQUEST_TIMEOUT, &text)
        }
    }
}

enum Failure {
    Store(Error),
    Body(String),
    NotWasm,
}

/// Looks at the first bytes of a body as they come: archives and texts are refused before they reach the disk.
struct Start(&'static [u8]);

impl Start {
    fn new() -> Self {
        Self(b"\0asm")
    }

    fn admit(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let (due, later) = self.0.split_at(bytes.len().min(self.0.len()));
        self.0 = later;
        if bytes.starts_with(due) { Ok(()) } else { Err(Failure::NotWasm) }
    }

    fn finish(&self) -> Result<(), Failure> {
        if self.0.is_empty() { Ok(()) } else { Err(Failure::NotWasm) }
    }
}

/// Writes go to a blocking thread a chunk at a time, so that a slow disk holds up one upload and nothing else.
async fn store(uploads: &Uploads, digest: Digest, mut body: Body) -> Result<(), Failure> {
    let modules = uploads.modules.clone();
    let max_bytes = uploads.max_bytes;
    let mut start = Start::new();
    let mut upload = blocking(move || modules.upload(digest, max_bytes)).await?;
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|error| Failure::Body(format!("the upload broke off: {error}")))?;
        let Ok(bytes) = frame.into_data() else { continue };
        start.admit(&bytes)?;
        upload = blocking(move || {
            let mut upload: Upload = upload;
            upload.write(&bytes).map(|()| upload)
        })
        .await?;
    }
    start.finish()?;
    fail::point("recv");
    blocking(move || upload.finish()).await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(Failure::Store),
        Err(error) => Err(Failure::Body(format!("the upload was given up: {error}"))),
    }
}

fn refused(error: &Error) -> Response {
    let code = match error {
        Error::NotADigest(_) => StatusCode::BAD_REQUEST,
        Error::OtherBytes { .. } => StatusCode::UNPROCESSABLE_ENTITY,
        Error::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
        Error::Disk { .. } => {
            tracing::error!(error = crate::causes::all(error), "an upload cannot be stored");
            StatusCode::INSUFFICIENT_STORAGE
        }
    };
    answer(code, &error.to_string())
}
