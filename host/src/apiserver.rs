//! The only module that holds kube's client: one connection pool, one place for identity, limits and errors.
//!
//! kube's own retries are off: whether a request may be sent again is the caller's to know. Every call has
//! a time limit, which also goes out as the `timeout` parameter. A request is made as the host or, with
//! the single header `Impersonate-User`, as a ServiceAccount; no other input can set a header.
//!
//! Invariants: `a_name_cannot_leave_its_path`, `only_one_impersonation_header_is_ever_sent`.

mod connect;
mod lines;
mod token;

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::TryStreamExt;
use http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use kube::client::Body;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, de::DeserializeOwned};
use tower::BoxError;

pub use lines::Lines;

use crate::{
    causes, clock,
    kubeconfig::Source,
    metrics::{Metrics, Requests},
    model::kind::Kind,
    text,
};
use connect::{Connection, connection};
use token::TokenFile;

/// How long a call may take unless it says otherwise.
pub const CALL_LIMIT: Duration = Duration::from_secs(5);

/// No answer may be larger: the API server's own objects end at 3 MiB, and a list that is larger is asked for in pages.
const BODY_LIMIT: usize = 64 << 20;

/// How much of why the server refuses is kept.
const REFUSAL: usize = 4 * text::MESSAGE;

/// A kind as the API server serves it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Resource {
    /// Group, version and kind.
    pub kind: Kind,
    /// The plural under which it is served.
    pub plural: String,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// Whether it has the subresource `status`.
    pub has_status: bool,
}

/// As whom a request is made.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Identity {
    /// The host's own account.
    Host,
    /// A team's ServiceAccount, impersonated.
    ServiceAccount {
        /// Its namespace.
        namespace: Arc<str>,
        /// Its name.
        name: Arc<str>,
    },
}

/// The media type of a request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Media {
    /// A whole object.
    Json,
    /// RFC 6902.
    JsonPatch,
    /// RFC 7386.
    MergePatch,
    /// Server-side apply; JSON is YAML.
    Apply,
}

/// One request.
#[derive(Clone, Debug)]
pub struct Call {
    /// HTTP method.
    pub method: Method,
    /// Path and query; built by [`Resource::path`] and [`query`].
    pub path: String,
    /// As whom.
    pub identity: Identity,
    /// Media type and text of the body.
    pub body: Option<(Media, String)>,
    /// What is asked for; `None`: plain JSON.
    pub accept: Option<&'static str>,
    /// Who really asks; `None`: the host itself.
    pub user_agent: Option<String>,
    /// Give up after this long.
    pub limit: Duration,
}

impl Call {
    /// A call as the host with the default limit.
    pub fn new(method: Method, path: impl Into<String>) -> Self {
        Self {
            method,
            path: path.into(),
            identity: Identity::Host,
            body: None,
            accept: None,
            user_agent: None,
            limit: CALL_LIMIT,
        }
    }

    /// Sets as whom the call is made.
    #[must_use]
    pub fn identity(self, identity: Identity) -> Self {
        Self { identity, ..self }
    }

    /// Sets the body.
    #[must_use]
    pub fn body(self, media: Media, text: impl Into<String>) -> Self {
        Self { body: Some((media, text.into())), ..self }
    }
}

/// The API server's `Status`: why it refused.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// HTTP status code.
    pub code: u16,
    /// One CamelCase word, for example `AlreadyExists`.
    pub reason: String,
    /// For people.
    pub message: String,
    /// Details, of which only the wait is of interest.
    pub details: StatusDetails,
}

/// The part of a `Status`'s details that the host reads.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StatusDetails {
    /// Wait at least this long before the next try.
    pub retry_after_seconds: Option<u64>,
}

/// Why a call has no good answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server answered, and refused.
    #[error("{} {}", .0.code, .0.message)]
    Refused(Box<Status>),
    /// No answer in time; what a write did is unknown.
    #[error("no answer from the API server within {0:?}")]
    Timeout(Duration),
    /// The connection failed; what a write did is unknown.
    #[error("cannot talk to the API server")]
    Connection(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The answer is not what the API promises.
    #[error("cannot read the API server's answer")]
    Answer(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The request cannot be built; nothing was sent.
    #[error("{0}")]
    Request(String),
}

impl Error {
    /// The HTTP status, if there was an answer.
    pub fn code(&self) -> Option<u16> {
        if let Self::Refused(status) = self { Some(status.code) } else { None }
    }

    /// How long the server asks to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        let Self::Refused(status) = self else { return None };
        status.details.retry_after_seconds.map(Duration::from_secs)
    }
}

/// The cause of an [`Error::Answer`] that was not read to its end.
#[derive(Debug, thiserror::Error)]
#[error("it has more than {0} bytes")]
pub struct TooLarge(usize);

/// A connection to one API server, shared by everything in the process.
#[derive(Clone)]
pub struct ApiServer {
    client: kube::Client,
    user_agent: Arc<str>,
    /// The namespace of the kubeconfig's context or of the pod.
    default_namespace: Arc<str>,
    url: Arc<str>,
    /// A token that may change.
    token: Option<Arc<TokenFile>>,
    /// As whom the kubeconfig says that all is done.
    acting_as: Option<Arc<str>>,
    requests: Option<Requests>,
}

impl fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiServer").finish_non_exhaustive()
    }
}

impl ApiServer {
    /// Reads the kubeconfig and prepares a client; nothing is sent yet.
    pub async fn connect(source: &Source, program: &str) -> Result<Self, Error> {
        let user_agent = user_agent(program);
        let source = source.clone();
        // A program that gives credentials takes its time, and kube panics over a token that no header can carry.
        let made = tokio::task::spawn_blocking(move || Self::made(&source, user_agent)).await;
        made.map_err(|error| {
            Error::Request(format!("the kubeconfig's credentials cannot be used: {error}"))
        })?
    }

    fn made(source: &Source, user_agent: Arc<str>) -> Result<Self, Error> {
        let wrong = |error: &dyn std::error::Error| Error::Request(causes::all(error));
        let access = source.load().map_err(|error| wrong(&error))?;
        let Connection { mut config, token } =
            connection(access, &source.environment.proxies).map_err(|error| wrong(&*error))?;
        config.default_retry = false;
        config.read_timeout = None;
        config.connect_timeout = Some(CALL_LIMIT);
        let default_namespace = config.default_namespace.as_str().into();
        let url = config.cluster_url.to_string().into();
        let acting_as = config.auth_info.impersonate.as_deref().map(Into::into);
        let client = kube::Client::try_from(config).map_err(|error| wrong(&error))?;
        let token = token.map(Arc::new);
        Ok(Self { client, user_agent, default_namespace, url, token, acting_as, requests: None })
    }

    /// Over any HTTP service; [`ApiServer::connect`] is this over the network. A test's service answers in process.
    pub fn over<S, B>(service: S, program: &str) -> Self
    where
        S: tower::Service<Request<Body>, Response = http::Response<B>> + Send + 'static,
        S::Future: Send,
        S::Error: Into<BoxError>,
        B: BodyExt<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        Self {
            client: kube::Client::new(service, "default"),
            user_agent: user_agent(program),
            default_namespace: "default".into(),
            url: "in process".into(),
            token: None,
            acting_as: None,
            requests: None,
        }
    }

    /// The same connection, its requests counted.
    #[must_use]
    pub fn counted(self, metrics: &Metrics) -> Self {
        let uri = self.url.parse::<http::Uri>().ok();
        let host = uri.as_ref().and_then(http::Uri::authority).map_or("", |host| host.as_str());
        let requests = Some(metrics.requests(host));
        Self { requests, ..self }
    }

    /// As whom everything is done, if the kubeconfig has `as`.
    pub fn acting_as(&self) -> Option<&str> {
        self.acting_as.as_deref()
    }

    /// Where the API server is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The namespace that a command means when it names none.
    pub fn default_namespace(&self) -> &str {
        &self.default_namespace
    }

    /// Makes one call and reads the whole answer, which is UTF-8 JSON text.
    pub async fn call(&self, call: Call) -> Result<String, Error> {
        let limit = call.limit;
        tokio::time::timeout(limit, self.answer(call)).await.map_err(|_| Error::Timeout(limit))?
    }

    /// Makes one call and decodes the answer.
    pub async fn fetch<T: DeserializeOwned>(&self, call: Call) -> Result<T, Error> {
        let text = self.call(call).await?;
        serde_json::from_str(&text).map_err(|error| Error::Answer(error.into()))
    }

    /// Opens a watch; the call's limit holds for the response headers only.
    pub async fn lines(&self, call: Call) -> Result<Lines, Error> {
        let limit = call.limit;
        let opened = async {
            let response = self.send(call).await?;
            refuse_unless_ok(response).await
        };
        let response =
            tokio::time::timeout(limit, opened).await.map_err(|_| Error::Timeout(limit))??;
        Ok(Lines::new(response.into_body().into_data_stream().map_err(Into::into)))
    }

    /// Makes one call whose body is no text.
    pub async fn send_bytes(&self, call: Call, bytes: Bytes) -> Result<String, Error> {
        let limit = call.limit;
        let mut request = self.request(call)?;
        *request.body_mut() = Body::from(bytes);
        let answered = async {
            let response = refuse_unless_ok(self.made_as_configured(request).await?).await?;
            read(response).await
        };
        tokio::time::timeout(limit, answered).await.map_err(|_| Error::Timeout(limit))?
    }

    /// Asks how `kind` is served; `None` if it is not.
    pub async fn discover(&self, kind: &Kind) -> Result<Option<Resource>, Error> {
        let root = if kind.group.is_empty() { "api" } else { "apis" };
        let call = Call::new(
            Method::GET,
            format!("/{root}/{}", utf8_percent_encode(&kind.api_version(), IN_PATH)),
        );
        match self.fetch::<ResourceList>(call).await {
            Ok(list) => Ok(list.find(kind)),
            Err(error) if error.code() == Some(404) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn answer(&self, call: Call) -> Result<String, Error> {
        let response = refuse_unless_ok(self.send(call).await?).await?;
        read(response).await
    }

    async fn send(&self, call: Call) -> Result<http::Response<Body>, Error> {
        let request = self.request(call)?;
        self.made_as_configured(request).await
    }

    /// Sends it with the kubeconfig's credentials.
    async fn made_as_configured(
        &self,
        mut request: Request<Body>,
    ) -> Result<http::Response<Body>, Error> {
        if let Some(token) = &self.token {
            request.headers_mut().insert(header::AUTHORIZATION, token.header());
        }
        let (method, begun) = (request.method().clone(), clock::now());
        let sent = self.client.send(request).await;
        if let Some(requests) = &self.requests {
            let code = sent.as_ref().ok().map(http::Response::status);
            requests.sent(&method, code, clock::now().saturating_duration_since(begun));
        }
        sent.map_err(|error| Error::Connection(error.into()))
    }

    fn request(&self, call: Call) -> Result<Request<Body>, Error> {
        let mut request = Request::builder()
            .method(call.method)
            .uri(call.path)
            .header(header::ACCEPT, call.accept.unwrap_or("application/json"))
            .header(header::ACCEPT_ENCODING, "identity")
            .header(header::USER_AGENT, call.user_agent.as_deref().unwrap_or(&self.user_agent));
        if let Identity::ServiceAccount { .. } = &call.identity {
            request = request.header("Impersonate-User", call.identity.to_string());
        }
        let body = match call.body {
            Some((media, text)) => {
                request = request.header(header::CONTENT_TYPE, media.content_type());
                Body::from(text.into_bytes())
            }
            None => Body::empty(),
        };
        request
            .body(body)
            .map_err(|error| Error::Request(format!("cannot build the request: {error}")))
    }
}

fn user_agent(program: &str) -> Arc<str> {
    format!("{program}/{}", env!("CARGO_PKG_VERSION")).into()
}

async fn refuse_unless_ok(response: http::Response<Body>) -> Result<http::Response<Body>, Error> {
    let code = response.status();
    if code.is_success() {
        return plain(response);
    }
    let retry_after = response
        .headers()
        .get(header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse().ok());
    let text = read(response).await?;
    let mut status = serde_json::from_str::<Status>(&text).unwrap_or_default();
    status.code = code.as_u16();
    status.details.retry_after_seconds = status.details.retry_after_seconds.or(retry_after);
    if status.message.is_empty() {
        status.message = if text.is_empty() { reason(code).to_owned() } else { text };
    }
    // Field values and names of others are quoted in it, however long they are.
    status.message = text::cut_owned(status.message, REFUSAL);
    status.reason = text::cut_owned(status.reason, text::NAME);
    Err(Error::Refused(Box::new(status)))
}

/// Every request asks for an answer without compression; something on the way may add it all the same.
fn plain(response: http::Response<Body>) -> Result<http::Response<Body>, Error> {
    match response.headers().get(header::CONTENT_ENCODING) {
        Some(coding) if !coding.as_bytes().eq_ignore_ascii_case(b"identity") => {
            let coding = String::from_utf8_lossy(coding.as_bytes());
            Err(Error::Answer(
                format!(
                    "it is compressed ({coding}), for which nobody asked: is there a proxy that does this?"
                )
                .into(),
            ))
        }
        _ => Ok(response),
    }
}

fn reason(code: StatusCode) -> &'static str {
    code.canonical_reason().unwrap_or("refused")
}

async fn read(response: http::Response<Body>) -> Result<String, Error> {
    let body = http_body_util::Limited::new(response.into_body(), BODY_LIMIT);
    let bytes = body.collect().await.map_err(broken_off)?.to_bytes();
    String::from_utf8(bytes.into()).map_err(|error| Error::Answer(error.into()))
}

fn broken_off(error: Box<dyn std::error::Error + Send + Sync>) -> Error {
    if error.is::<http_body_util::LengthLimitError>() {
        Error::Answer(TooLarge(BODY_LIMIT).into())
    } else {
        Error::Connection(error)
    }
}

impl Media {
    fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::JsonPatch => "application/json-patch+json",
            Self::MergePatch => "application/merge-patch+json",
            Self::Apply => "application/apply-patch+yaml",
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => write!(f, "the host's own account"),
            Self::ServiceAccount { namespace, name } => {
                write!(f, "system:serviceaccount:{namespace}:{name}")
            }
        }
    }
}

impl Resource {
    /// The path of this kind's objects, of one of them, or of its subresource.
    ///
    /// Names come from guests: whatever could leave the path is refused, the rest is percent-encoded.
    pub fn path(
        &self,
        namespace: Option<&str>,
        name: Option<&str>,
        subresource: Option<&str>,
    ) -> Result<String, Error> {
        let root = if self.kind.group.is_empty() { "api" } else { "apis" };
        let mut path =
            format!("/{root}/{}", utf8_percent_encode(&self.kind.api_version(), IN_PATH));
        let mut push = |segment: &str| {
            if segment.is_empty()
                || segment == "."
                || segment == ".."
                || segment.contains(['/', '%'])
            {
                return Err(Error::Request(format!(
                    "{segment:?} is not a name of an object or namespace"
                )));
            }
            path.push('/');
            path.extend(utf8_percent_encode(segment, IN_SEGMENT));
            Ok(())
        };
        match namespace {
            Some(_) if !self.namespaced => {
                return Err(Error::Request(format!(
                    "{} is cluster-scoped, but a namespace was given",
                    self.kind
                )));
            }
            Some(namespace) => {
                push("namespaces")?;
                push(namespace)?;
            }
            None if self.namespaced && name.is_some() => {
                return Err(Error::Request(format!(
                    "{} is namespaced, but no namespace was given",
                    self.kind
                )));
            }
            None => (),
        }
        push(&self.plural)?;
        for segment in [name, subresource].into_iter().flatten() {
            push(segment)?;
        }
        Ok(path)
    }
}

/// What is written with percent signs in one segment of a path, or in a value of a query: all but the unreserved characters
/// of RFC 3986 §2.3.
const IN_SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// The same in a path of several segments.
const IN_PATH: &AsciiSet = &IN_SEGMENT.remove(b'/');

/// Appends `pairs` to `path` as a query.
pub fn query<'a>(path: &str, pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut text = path.to_owned();
    for (position, (key, value)) in pairs.into_iter().enumerate() {
        text.push(if position == 0 { '?' } else { '&' });
        text.push_str(key);
        text.push('=');
        text.extend(utf8_percent_encode(value, IN_SEGMENT));
    }
    text
}

#[derive(Deserialize)]
struct ResourceList {
    #[serde(default)]
    resources: Vec<ServedResource>,
}

#[derive(Deserialize)]
struct ServedResource {
    name: String,
    kind: String,
    namespaced: bool,
}

impl ResourceList {
    fn find(&self, kind: &Kind) -> Option<Resource> {
        let served =
            self.resources.iter().find(|r| r.kind == kind.kind && !r.name.contains('/'))?;
        let status = format!("{}/status", served.name);
        Some(Resource {
            kind: kind.clone(),
            plural: served.name.clone(),
            namespaced: served.namespaced,
            has_status: self.resources.iter().any(|r| r.name == status),
        })
    }
}

/// An API server that answers each path and query in one way; `None`: with a body that never comes.
#[cfg(test)]
pub(crate) fn answering(
    answer: impl Fn(&str) -> (u16, Option<String>) + Clone + Send + 'static,
) -> ApiServer {
    use axum::body::Body as Answer;
    let service = tower::service_fn(move |request: Request<Body>| {
        let (code, body) = answer(&request.uri().to_string());
        let never = || Answer::from_stream(futures::stream::pending::<Result<Bytes, BoxError>>());
        let mut response = http::Response::new(body.map_or_else(never, Answer::from));
        *response.status_mut() = StatusCode::from_u16(code).unwrap_or_default();
        std::future::ready(Ok::<_, BoxError>(response))
    });
    ApiServer::over(service, "test")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config_maps() -> Resource {
        Resource {
            kind: Kind::new("v1", "ConfigMap"),
            plural: "configmaps".into(),
            namespaced: true,
            has_status: false,
        }
    }

    #[test]
    fn a_name_cannot_leave_its_path() {
        let path = |namespace, name| config_maps().path(Some(namespace), Some(name), None);
        assert_eq!(path("a", "b").unwrap(), "/api/v1/namespaces/a/configmaps/b");
        assert_eq!(path("a", "b:c?d#e").unwrap(), "/api/v1/namespaces/a/configmaps/b%3Ac%3Fd%23e");
        for bad in ["", ".", "..", "../secrets/x", "x%2Fy", "a/b"] {
            assert!(path("a", bad).is_err() && path(bad, "b").is_err(), "{bad:?} must be refused");
        }
        assert!(config_maps().path(None, Some("b"), None).is_err());
    }

    #[tokio::test]
    async fn only_one_impersonation_header_is_ever_sent() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = kube::Config::new(http::Uri::from_static("http://127.0.0.1:1"));
        let api = ApiServer {
            client: kube::Client::try_from(config).unwrap(),
            user_agent: "t".into(),
            default_namespace: "default".into(),
            url: "http://127.0.0.1".into(),
            token: None,
            acting_as: None,
            requests: None,
        };
        let account = Identity::ServiceAccount { namespace: "n".into(), name: "s".into() };
        let request = api.request(Call::new(Method::GET, "/x").identity(account)).unwrap();
        let sent: Vec<_> = request
            .headers()
            .iter()
            .filter(|(k, _)| k.as_str().starts_with("impersonate"))
            .collect();
        assert_eq!(sent.len(), 1);
        assert_eq!(sent[0].1, "system:serviceaccount:n:s");
        let request = api.request(Call::new(Method::GET, "/x")).unwrap();
        assert!(!request.headers().contains_key("impersonate-user"));
    }
}
