//! Speaks to etcd over its socket, in JSON.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use http::{Request, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use k8s_openapi::ByteString;
use serde_json::{Value, json};
use tokio::net::UnixStream;

use super::flags::ETCD_SOCKET;

/// Compacts up to the newest revision.
pub(super) async fn compact(folder: &Path) -> Result<()> {
    let status = ask(folder, "/v3/maintenance/status", &json!({})).await?;
    let newest = &status["header"]["revision"];
    let request = json!({"revision": newest, "physical": true});
    ask(folder, "/v3/kv/compaction", &request).await.map(drop)
}

/// Stores a value, whatever it is.
pub(super) async fn put(folder: &Path, key: &str, value: &str) -> Result<()> {
    let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
    let request = json!({"key": bytes(key), "value": bytes(value)});
    ask(folder, "/v3/kv/put", &request).await.map(drop)
}

async fn ask(folder: &Path, path: &str, body: &Value) -> Result<Value> {
    let socket = UnixStream::connect(folder.join(ETCD_SOCKET)).await.context("connecting")?;
    let (mut requests, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(socket)).await?;
    // It ends with `requests`.
    tokio::spawn(async move { drop(connection.await) });
    let request = Request::post(path).header(header::HOST, "etcd");
    let request = request.body(Full::<Bytes>::from(body.to_string()))?;
    let answer = requests.send_request(request).await?;
    let status = answer.status();
    let text = answer.into_body().collect().await?.to_bytes();
    ensure!(status.is_success(), "{path} is answered {status}: {}", String::from_utf8_lossy(&text));
    serde_json::from_slice(&text).with_context(|| format!("understanding the answer of {path}"))
}
