//! The host's own API group, `run.nagaya.dev`, behind the API server: what a person needs is a kubeconfig and rights in a namespace.
//!
//! The API server authenticates and authorises each request and passes it on; its client certificate is what lets it in. Every host
//! of a deployment serves, from its first moment: an `APIService` that does not answer keeps every namespace of the cluster from
//! being deleted. A standby passes on to the host that works.
//!
//! The rights are asked for here once more: those on this group, and for what is told of a controller the right to read it.
//!
//! Invariants, on a real server: `the_api_lets_in_whom_the_cluster_lets_in`, `a_standby_passes_on_to_the_host_that_works`,
//! `namespaces_are_deleted_again_as_soon_as_a_host_answers`.

mod certificates;
mod forward;
mod front;
mod hosts;
mod log;
mod plan;
mod standing;
mod tls;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::{
    Extension, Json, Router,
    body::Body,
    extract::{Path, Query, Request, State, rejection::QueryRejection},
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use http::Method;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{
    answer::status,
    door::{Door, Patience, Tls},
    uploads::{self, Uploads},
};
use crate::{
    apiserver::{ApiServer, Call, Media},
    causes,
    journal::Journals,
    manager::Directory,
    model::{
        crd,
        digest::Digest,
        live::{GROUP, VERSION},
        object::ObjectKey,
    },
    modules::Welcome,
};
use front::User;
pub use hosts::Hosts;
use log::{Question, Seats};
pub use standing::{Standing, Upkeep};

/// How the API server reaches this host, and other hosts do.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where it listens.
    pub bind: SocketAddr,
    /// Where other hosts ask it; `None`: where it listens.
    pub advertise: Option<IpAddr>,
    /// Under which name it is asked.
    pub service: Service,
}

/// The Service that the `APIService` names. The Secret with the CA has the same name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
}

impl Service {
    /// The name for which the API server asks of a certificate.
    pub fn host(&self) -> String {
        format!("{}.{}.svc", self.name, self.namespace)
    }
}

impl FromStr for Service {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_label = |part: &&str| {
            let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            !part.is_empty() && part.len() <= 63 && part.chars().all(good)
        };
        match text.split('.').collect::<Vec<_>>()[..] {
            [name, namespace, "svc"] if [name, namespace].iter().all(is_label) => {
                Ok(Self { name: name.to_owned(), namespace: namespace.to_owned() })
            }
            _ => Err("a Service is called NAME.NAMESPACE.svc".to_owned()),
        }
    }
}

impl Settings {
    /// Where other hosts ask this one, which listens at `local`; `None`: it cannot be told.
    pub fn address(&self, local: SocketAddr) -> Option<SocketAddr> {
        let ip = self.advertise.unwrap_or(local.ip());
        (!ip.is_unspecified()).then(|| SocketAddr::new(ip, local.port()))
    }
}

/// What the handlers share.
#[derive(Clone)]
pub struct Served {
    /// For questions about rights.
    pub api: ApiServer,
    /// Under which name this is served.
    pub service: Service,
    /// Where modules go, and whether this host works.
    pub uploads: Uploads,
    /// What guests have said.
    pub journals: Journals,
    /// How controllers do.
    pub directory: Directory,
    /// The Lease's path, once it is known.
    pub lease: Arc<OnceLock<String>>,
    /// What it takes to serve, once it is known.
    pub standing: watch::Receiver<Option<Arc<Standing>>>,
    /// Becomes true when the host ends: a log that is followed through it does not keep it.
    pub stop: watch::Receiver<bool>,
}

impl fmt::Debug for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Served").field("service", &self.service).finish_non_exhaustive()
    }
}

/// Connections are the API server's and other hosts', of which a stream has one each.
const CONNECTIONS: usize = 256;
/// Longer than any stream.
const CONNECTION: Duration = Duration::from_secs(900);

/// How its connections are treated.
pub fn door(standing: watch::Receiver<Option<Arc<Standing>>>) -> Door {
    let tls: Tls = Arc::new(move || Some(standing.borrow().as_ref()?.server.clone()));
    let patience =
        Patience { connections: CONNECTIONS, connection: CONNECTION, ..Patience::default() };
    Door { patience, tls: Some(tls) }
}

/// The group.
pub fn router(served: Served) -> Router {
    let root = format!("/apis/{GROUP}/{VERSION}");
    let of = |rest: &str| format!("{root}/namespaces/{{namespace}}/{rest}");
    let (streams, unknown) = (Extension(Seats::default()), "the host serves no such path");
    let namespaced = Router::new()
        .route(&of("modules/{digest}"), get(look_for_module).put(take_module))
        .route(&of("controllers/{name}"), get(live))
        .route(&of("controllers/{name}/log"), get(lines))
        .route(&of("plans"), get(plan::plan))
        .route_layer(middleware::from_fn_with_state(served.clone(), admit))
        .layer(streams);
    Router::new()
        // The API server passes on what is of the group: this is for hosts.
        .route("/v1/modules/{digest}", get(hosts::give))
        .route("/apis", get(async || Json(groups())))
        .route(&format!("/apis/{GROUP}"), get(async || Json(group())))
        .route(&root, get(async || Json(resources())))
        .merge(namespaced)
        .fallback(async move || status(StatusCode::NOT_FOUND, unknown))
        .with_state(served)
}

/// Finds out who asks, and passes on what another host must answer.
async fn admit(State(served): State<Served>, mut request: Request, next: Next) -> Response {
    let standing = served.standing.borrow().clone();
    let Some(standing) = standing else {
        return status(StatusCode::SERVICE_UNAVAILABLE, "this host has only just begun");
    };
    let Some(user) = standing.front.user(request.headers()) else {
        let text = "the request names no user: it must come from the API server";
        return status(StatusCode::UNAUTHORIZED, text);
    };
    if !served.uploads.leads() {
        return forward::forward(&served, &standing, request).await;
    }
    request.extensions_mut().insert(user);
    next.run(request).await
}

/// What a request is about.
struct About<'a> {
    verb: &'a str,
    group: &'a str,
    resource: &'a str,
    subresource: &'a str,
    namespace: &'a str,
    name: &'a str,
}

impl Served {
    /// An error is the answer to whoever may not.
    async fn authorise(&self, user: &User, about: About<'_>) -> Result<(), Response> {
        let About { verb, group, resource, subresource, namespace, name } = about;
        let attributes = json!({
            "verb": verb, "group": group, "resource": resource, "subresource": subresource,
            "namespace": namespace, "name": name,
        });
        let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
        let body = user.review(&attributes).to_string();
        let review = self.api.fetch(Call::new(Method::POST, path).body(Media::Json, body)).await;
        let review: Value = review.map_err(|error| {
            let text =
                format!("the API server does not say whether you may: {}", causes::all(&error));
            status(StatusCode::SERVICE_UNAVAILABLE, &text)
        })?;
        if review["status"]["allowed"] == true {
            return Ok(());
        }
        let slash = if subresource.is_empty() { "" } else { "/" };
        let text = format!(
            "{resource}{slash}{subresource}.{group} {name:?} is forbidden: User {:?} cannot {verb} it in the namespace {namespace:?}",
            user.name
        );
        Err(status(StatusCode::FORBIDDEN, &text))
    }

    /// Whoever may read the WasmController may see how it does.
    async fn authorise_reading(
        &self,
        user: &User,
        namespace: &str,
        name: &str,
    ) -> Result<(), Response> {
        let (group, resource) = (crd::GROUP, "wasmcontrollers");
        let about = About { verb: "get", group, resource, subresource: "", namespace, name };
        self.authorise(user, about).await
    }
}

async fn look_for_module(
    State(served): State<Served>,
    Path((namespace, digest)): Path<(String, String)>,
) -> Response {
    let Ok(parsed) = digest.parse::<Digest>() else {
        return status(
            StatusCode::BAD_REQUEST,
            &format!("{digest:?} is no digest like sha256:0a…"),
        );
    };
    let phase = match served.uploads.modules.welcome(&parsed, Some(&namespace)) {
        Welcome::Stored => "Stored",
        Welcome::Wanted => "Wanted",
        Welcome::Unnamed => {
            let text = format!("no WasmController of namespace {namespace} names {digest}");
            return status(StatusCode::NOT_FOUND, &text);
        }
        Welcome::NotSynced => {
            let text = "the host has not read the WasmControllers yet; try again in a moment";
            return status(StatusCode::SERVICE_UNAVAILABLE, text);
        }
    };
    Json(json!({
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "kind": "Module",
        "metadata": { "name": digest, "namespace": namespace },
        "status": { "phase": phase },
    }))
    .into_response()
}

async fn take_module(
    State(served): State<Served>,
    Extension(user): Extension<User>,
    Path((namespace, digest)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let about = About {
        verb: "update",
        group: GROUP,
        resource: "modules",
        subresource: "",
        namespace: &namespace,
        name: &digest,
    };
    if let Err(refused) = served.authorise(&user, about).await {
        return refused;
    }
    let named = (&*digest, Some(&*namespace));
    uploads::take(&served.uploads, named, uploads::BODY_LIMIT, &headers, body).await
}

async fn live(
    State(served): State<Served>,
    Extension(user): Extension<User>,
    Path((namespace, name)): Path<(String, String)>,
) -> Response {
    if let Err(refused) = served.authorise_reading(&user, &namespace, &name).await {
        return refused;
    }
    let key = ObjectKey { namespace: Some(namespace.as_str().into()), name: name.as_str().into() };
    let Some(live) = served.directory.look(&key) else { return missing(&namespace, &name) };
    let mut object = json!(live);
    object["apiVersion"] = format!("{GROUP}/{VERSION}").into();
    object["kind"] = "Controller".into();
    object["metadata"] = json!({ "name": name, "namespace": namespace });
    Json(object).into_response()
}

async fn lines(
    State(served): State<Served>,
    Extension(user): Extension<User>,
    Extension(seats): Extension<Seats>,
    Path((namespace, name)): Path<(String, String)>,
    question: Result<Query<Question>, QueryRejection>,
) -> Response {
    if let Err(refused) = served.authorise_reading(&user, &namespace, &name).await {
        return refused;
    }
    let question = match question {
        Ok(Query(question)) => question,
        Err(error) => return status(StatusCode::BAD_REQUEST, &error.body_text()),
    };
    let key = ObjectKey { namespace: Some(namespace.as_str().into()), name: name.as_str().into() };
    if !served.directory.has(&key) {
        return missing(&namespace, &name);
    }
    let journal = served.journals.of(&key.to_string());
    let body = if question.follow {
        let Some(seat) = seats.take(&namespace) else {
            let text = "too many follow the logs of this namespace, or of this host, already";
            return status(StatusCode::TOO_MANY_REQUESTS, text);
        };
        log::followed(journal, &question, served.uploads.claim.clone(), seat)
    } else {
        log::kept(&journal, &question)
    };
    ([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}

fn missing(namespace: &str, name: &str) -> Response {
    let text =
        format!("there is no WasmController {name} in namespace {namespace} that this host keeps");
    status(StatusCode::NOT_FOUND, &text)
}

fn group() -> Value {
    let version = json!({ "groupVersion": format!("{GROUP}/{VERSION}"), "version": VERSION });
    json!({
        "kind": "APIGroup", "apiVersion": "v1", "name": GROUP,
        "versions": [version], "preferredVersion": version,
    })
}

fn groups() -> Value {
    json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": [group()] })
}

fn resources() -> Value {
    let resource = |name: &str, kind: &str, verbs: &[&str]| json!({ "name": name, "singularName": "", "namespaced": true, "kind": kind, "verbs": verbs });
    json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": format!("{GROUP}/{VERSION}"),
        "resources": [
            resource("modules", "Module", &["get", "update"]),
            resource("controllers", "Controller", &["get"]),
            resource("controllers/log", "Controller", &["get"]),
            resource("plans", "Plan", &["watch"]),
        ],
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use tower::ServiceExt;

    use super::*;
    use crate::{apiserver::answering, leader::fence::Claim, modules::Modules};

    /// What this host answers to a component that `user` sends, who `may` or may not; and whether it has it then.
    async fn sent(user: &str, may: bool) -> (u16, bool) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let key = rcgen::KeyPair::generate().unwrap();
        let pem = rcgen::CertificateParams::default().self_signed(&key).unwrap().pem();
        let front = front::Front::read(&front::tests::config(&pem)).unwrap();
        let service: Service = "a.b.svc".parse().unwrap();
        let standing = Standing::for_tests(front, &service);
        let folder = tempfile::tempdir().unwrap();
        let modules = Modules::open(folder.path()).unwrap();
        let bytes = b"\0asm\x0d\0\x01\0";
        let digest = Digest::of(bytes);
        modules.name("demo/web", HashSet::from([digest.clone()]));
        let claim = Claim::new(1, crate::clock::now(), Duration::MAX);
        let review = json!({ "status": { "allowed": may } }).to_string();
        let served = Served {
            api: answering(move |_| (201, Some(review.clone()))),
            service,
            uploads: Uploads {
                modules: modules.clone(),
                claim: watch::channel(Some(claim)).1,
                max_bytes: 1 << 10,
            },
            journals: Journals::default(),
            directory: Directory::default(),
            lease: Arc::default(),
            standing: watch::channel(Some(Arc::new(standing))).1,
            stop: watch::channel(false).1,
        };
        let path = format!("/apis/{GROUP}/{VERSION}/namespaces/demo/modules/{digest}");
        let request = Request::put(path).header("X-Remote-User", user).body(Body::from(&bytes[..]));
        let answer = router(served).oneshot(request.unwrap()).await.unwrap();
        (answer.status().as_u16(), modules.has(&digest))
    }

    /// The API server asks before; this holds if somebody lets it ask for less.
    #[tokio::test]
    async fn nobody_sends_bytes_without_the_right_or_a_name() {
        assert_eq!(sent("ann", true).await, (201, true));
        assert_eq!(sent("ann", false).await, (403, false));
        assert_eq!(sent("", true).await, (401, false));
    }

    #[test]
    fn a_service_is_named_with_its_namespace() {
        let service: Service = "nagaya-api.nagaya-system.svc".parse().unwrap();
        assert_eq!(service.host(), "nagaya-api.nagaya-system.svc");
        for bad in ["", "nagaya-api", "a.b", "a.b.svc.cluster.local", "A.b.svc", ".b.svc", "a..svc"]
        {
            assert!(bad.parse::<Service>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_host_tells_no_address_at_which_nobody_can_ask_it() {
        let settings = |advertise: Option<&str>| Settings {
            bind: "0.0.0.0:7443".parse().unwrap(),
            advertise: advertise.map(|ip| ip.parse().unwrap()),
            service: "a.b.svc".parse().unwrap(),
        };
        let local = "0.0.0.0:7443".parse().unwrap();
        assert_eq!(settings(None).address(local), None);
        let told = settings(Some("10.1.2.3")).address(local);
        assert_eq!(told, Some("10.1.2.3:7443".parse().unwrap()));
        let here = "127.0.0.1:1".parse().unwrap();
        assert_eq!(settings(None).address(here), Some(here));
    }
}
