//! Sends a component's bytes to a host: asks first, then streams. Through the API server, or at an address of the host's own.
//!
//! Invariant: `every_answer_of_a_host_has_one_meaning`.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures::stream;
use reqwest::{Body, Client, Method, StatusCode, Url, header, redirect};
use serde::Deserialize;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::{cluster::Cluster, print::Progress};
use crate::model::digest::Digest;

/// How long the host may take to say whether it wants the bytes.
const ASK_LIMIT: Duration = Duration::from_secs(5);
/// A little more than the 30 s that the host itself waits for a body.
const SEND_LIMIT: Duration = Duration::from_secs(40);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(300);
/// Bytes between two steps of the bar.
const STEP: usize = 64 << 10;

/// The upload interface of one host.
#[derive(Clone, Debug)]
pub(super) struct Host {
    way: Way,
    /// It has said that it takes nothing now: another host may be the one that works.
    passes: watch::Sender<bool>,
}

/// How it is reached.
#[derive(Clone, Debug)]
enum Way {
    /// Through the API server, which passes on to the host that works.
    Through(Cluster),
    /// At an address of its own.
    At(Client, Url),
}

/// How the bytes came to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// They were sent.
    Now,
    /// The host had them.
    Before,
}

/// What an answer means for the upload.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Meaning {
    /// The host has the bytes.
    Stored,
    /// It wants them.
    Wanted,
    /// Not now; try again, and say this if time runs out.
    Later(String),
    /// No.
    Refused(String),
}

#[derive(Default, Deserialize)]
struct Answer {
    message: String,
}

impl Host {
    /// The host that works, through the API server.
    pub(super) fn through(cluster: &Cluster) -> Self {
        Self { way: Way::Through(cluster.clone()), passes: watch::channel(false).0 }
    }

    /// The host at `url`, for example `http://127.0.0.1:7420`.
    pub(super) fn at(url: &str) -> Result<Self> {
        let url: Url = url
            .parse()
            .with_context(|| format!("--host {url:?} is not a URL like http://127.0.0.1:7420"))?;
        let plain = url.scheme() == "http";
        if !(plain || url.scheme() == "https") || !url.has_host() {
            bail!("--host {url} is not a URL like http://127.0.0.1:7420");
        }
        let mut client =
            Client::builder().redirect(redirect::Policy::none()).connect_timeout(ASK_LIMIT);
        if plain {
            // The system's certificates are not needed, and may not be there.
            client = client.tls_certs_only([]);
        }
        if url.host_str().is_some_and(is_loopback) {
            client = client.no_proxy();
        }
        let client = client.build().context("cannot set up an HTTP client")?;
        Ok(Self { way: Way::At(client, url), passes: watch::channel(false).0 })
    }

    /// Makes sure that a host answers at all, before anything is changed.
    pub(super) async fn reach(&self, digest: &Digest) -> Result<()> {
        match &self.way {
            Way::Through(cluster) => cluster.reach_own().await,
            Way::At(..) => self.ask(digest).await.map(drop),
        }
    }

    fn name(&self) -> &str {
        match &self.way {
            Way::Through(_) => "the host",
            Way::At(_, url) => url.as_str(),
        }
    }

    /// Returns once the host has said that it takes nothing now.
    pub(super) async fn passes(&self) {
        // The sender is this host's own.
        let _ = self.passes.subscribe().wait_for(|passes| *passes).await;
    }

    /// Sends `bytes` unless the host has them; tries again until `deadline` while the host is not ready for them.
    pub(super) async fn send(
        &self,
        digest: &Digest,
        bytes: &Bytes,
        deadline: Instant,
        progress: &Progress,
    ) -> Result<Sent> {
        let mut said = String::new();
        loop {
            let later = match self.ask(digest).await? {
                Meaning::Stored => return Ok(Sent::Before),
                Meaning::Later(why) => why,
                Meaning::Refused(why) => bail!("{} refuses the component: {why}", self.name()),
                Meaning::Wanted => match self.put(digest, bytes, progress).await? {
                    Meaning::Stored | Meaning::Wanted => return Ok(Sent::Now),
                    Meaning::Later(why) => why,
                    Meaning::Refused(why) => bail!("{} refuses the component: {why}", self.name()),
                },
            };
            if Instant::now() + PAUSE >= deadline {
                bail!(
                    "{} did not take the component in time: {later}. The WasmController names it since this push: as soon as the host that works has the bytes, it stages them",
                    self.name()
                );
            }
            if later != said {
                progress.wait(&later);
                said = later;
            }
            sleep(PAUSE).await;
        }
    }

    async fn ask(&self, digest: &Digest) -> Result<Meaning> {
        let status = match &self.way {
            Way::Through(cluster) => {
                let (status, text) = cluster.ask_for_module(digest).await?;
                match status.as_u16() {
                    403 => return Ok(Meaning::Refused(text)),
                    503 => return Ok(Meaning::Later(text)),
                    _ => status,
                }
            }
            Way::At(client, url) => {
                let request = client.request(Method::HEAD, place(url, digest)?).timeout(ASK_LIMIT);
                request.send().await.map_err(|error| unreachable(url, &error))?.status()
            }
        };
        if status == StatusCode::SERVICE_UNAVAILABLE {
            self.passes.send_replace(true);
        }
        Ok(asked(status))
    }

    async fn put(&self, digest: &Digest, bytes: &Bytes, progress: &Progress) -> Result<Meaning> {
        let (client, url) = match &self.way {
            Way::At(client, url) => (client, url),
            Way::Through(cluster) => {
                progress.wait(format!("sending {} KiB through the API server", bytes.len() >> 10));
                let (status, text) = cluster.send_module(digest, bytes).await?;
                return Ok(match status.as_u16() {
                    403 => Meaning::Refused(text),
                    503 => Meaning::Later(text),
                    _ => self::sent(status, &text),
                });
            }
        };
        let bar = progress.bytes(u64::try_from(bytes.len())?);
        let (step, all) = (bar.clone(), bytes.clone());
        let chunks = (0..all.len()).step_by(STEP).map(move |start| {
            let chunk = all.slice(start..all.len().min(start + STEP));
            step.inc(u64::try_from(chunk.len()).unwrap_or_default());
            Ok::<_, std::io::Error>(chunk)
        });
        let request = client
            .put(place(url, digest)?)
            .timeout(SEND_LIMIT)
            .header(header::CONTENT_LENGTH, bytes.len())
            .header(header::CONTENT_TYPE, "application/wasm")
            .body(Body::wrap_stream(stream::iter(chunks)));
        let answer = request.send().await;
        bar.finish_and_clear();
        match answer {
            Ok(answer) => {
                let status = answer.status();
                let Answer { message } = answer.json().await.unwrap_or_default();
                Ok(sent(status, &message))
            }
            Err(error) if error.is_connect() => Err(unreachable(url, &error)),
            // A host that refuses a body closes the connection; asking again tells why.
            Err(error) => {
                Ok(Meaning::Later(format!("the upload broke off: {}", innermost(&error))))
            }
        }
    }
}

fn place(url: &Url, digest: &Digest) -> Result<Url> {
    url.join(&format!("v1/modules/{digest}"))
        .with_context(|| format!("cannot make an address for uploads from {url}"))
}

fn unreachable(url: &Url, error: &reqwest::Error) -> anyhow::Error {
    let text = format!(
        "cannot reach a host at {url}, the address of --host or NAGAYA_HOST; without one the component goes through the API server"
    );
    let cause = if error.is_timeout() {
        format!("no answer within {ASK_LIMIT:?}")
    } else {
        innermost(error)
    };
    anyhow::anyhow!(cause).context(text)
}

/// The answer to `HEAD`, which has no text.
fn asked(status: StatusCode) -> Meaning {
    match status {
        StatusCode::OK => Meaning::Stored,
        StatusCode::ACCEPTED => Meaning::Wanted,
        StatusCode::NOT_FOUND => Meaning::Later(
            "the host does not know yet that a WasmController names this component; is it the host of this cluster?".to_owned(),
        ),
        StatusCode::SERVICE_UNAVAILABLE => {
            Meaning::Later("the host is a standby, or has not read the WasmControllers yet; if it stays so, push with --host to the one that holds the Lease (`nagaya get` names it)".to_owned())
        }
        other => Meaning::Refused(format!("it answered {other}; is it a nagaya host?")),
    }
}

/// The answer to `PUT`.
fn sent(status: StatusCode, message: &str) -> Meaning {
    match status {
        StatusCode::OK | StatusCode::CREATED => Meaning::Stored,
        StatusCode::NOT_FOUND | StatusCode::SERVICE_UNAVAILABLE => asked(status),
        StatusCode::CONFLICT => {
            Meaning::Later("another upload of this component is under way".to_owned())
        }
        StatusCode::REQUEST_TIMEOUT => Meaning::Refused(
            "the bytes did not arrive within the host's 30 s; the way to it is too slow".to_owned(),
        ),
        StatusCode::PAYLOAD_TOO_LARGE => Meaning::Refused(format!(
            "{message}; a release build and `opt-level = \"s\"` make it smaller too"
        )),
        StatusCode::UNSUPPORTED_MEDIA_TYPE => Meaning::Refused(message.to_owned()),
        StatusCode::UNPROCESSABLE_ENTITY => {
            Meaning::Refused(format!("something on the way to it changed the bytes: {message}"))
        }
        StatusCode::INSUFFICIENT_STORAGE => Meaning::Refused(
            "its disk is full or read-only; whoever runs the host must make room, then push again"
                .to_owned(),
        ),
        other => Meaning::Refused(format!("it answered {other} {message}")),
    }
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// The last cause, which says what happened; those before it say only that something did.
fn innermost(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_of_a_host_has_one_meaning() {
        let code = |code| StatusCode::from_u16(code).unwrap();
        assert_eq!(asked(code(200)), Meaning::Stored);
        assert_eq!(asked(code(202)), Meaning::Wanted);
        assert_eq!(sent(code(201), ""), Meaning::Stored);
        for later in [404, 503] {
            assert!(matches!(asked(code(later)), Meaning::Later(_)), "{later}");
            assert!(matches!(sent(code(later), ""), Meaning::Later(_)), "{later}");
        }
        assert!(matches!(sent(code(409), ""), Meaning::Later(_)));
        for (refused, expected) in [
            (400, "it answered 400"),
            (408, "too slow"),
            (413, "larger than 5 bytes; a release build"),
            (415, "larger"),
            (422, "changed the bytes"),
            (507, "disk is full"),
            (500, "it answered 500"),
        ] {
            let Meaning::Refused(text) = sent(code(refused), "the module is larger than 5 bytes")
            else {
                panic!("{refused} must be a refusal");
            };
            assert!(text.contains(expected), "{refused}: {text}");
        }
        assert!(matches!(asked(code(302)), Meaning::Refused(_)));
    }

    #[test]
    fn only_a_url_is_a_host() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let host = Host::at("http://127.0.0.1:7420").unwrap();
        let digest = Digest::of(b"");
        let place = place(&host.name().parse().unwrap(), &digest).unwrap();
        assert_eq!(place.as_str(), format!("http://127.0.0.1:7420/v1/modules/{digest}"));
        for bad in ["127.0.0.1:7420", "ftp://x", "", "unix:/run/x"] {
            assert!(Host::at(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn no_proxy_stands_before_this_machine() {
        for here in ["localhost", "127.0.0.1", "[::1]"] {
            assert!(is_loopback(here), "{here}");
        }
        assert!(!is_loopback("nagaya.example.com"));
    }
}
