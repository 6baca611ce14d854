//! An admission webhook, as other people's software brings one: HTTPS on loopback, asked by the API server before it
//! writes objects of one resource in the test's namespace.
//!
//! ```no_run
//! # use e2e::webhook::{Does, Webhook};
//! # use serde_json::json;
//! # async fn example(test: &e2e::Test) -> anyhow::Result<()> {
//! let does = Does::Stamps { pointer: "/metadata/annotations/stamp" };
//! let probe = json!({"kind": "ConfigMap"});
//! let webhook = Webhook::start(test, "stamps", ("", "v1", "configmaps"), does, &probe).await?;
//! // … whoever writes a ConfigMap here finds a stamp in it …
//! webhook.end().await
//! # }
//! ```
//!
//! [`Does`] says what is answered, `Answers` answers and counts, `Probe` finds out whether the API server asks. The
//! certificate is its own authority, which Go takes for one as soon as it is among those that it trusts.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use http::{Request, Response, header};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_openapi::ByteString;
use kube::Api;
use kube::api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, PostParams};
use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::{JoinHandle, JoinSet, block_in_place};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::Test;
use crate::control_plane::GIVEN_CLUSTER;
use crate::manifest;
use crate::wait::within;

/// The API server hears of a configuration within milliseconds; a busy machine takes seconds.
const LIMIT: Duration = Duration::from_secs(30);
/// Whoever drops a webhook may have stopped its server, and should not wait long for nothing.
const DROPPED_WITHIN: Duration = Duration::from_secs(5);
/// What the API server says for one that has side effects.
const NO_SUPPORT: &str = "does not support dry run";
/// What [`Does::RefusesDryRuns`] says.
const NO_DRY_RUNS: &str = "this webhook has side effects and takes no dry runs";

/// What a webhook does about a creation or an update.
#[derive(Debug, Clone)]
pub enum Does {
    /// Puts a value where the object has none. Parents that it lacks become objects.
    Defaults {
        /// Where, as a JSON pointer.
        pointer: &'static str,
        /// What.
        value: Value,
    },
    /// Puts another text there each time, dry runs included: a number that grows.
    Stamps {
        /// Where, as a JSON pointer.
        pointer: &'static str,
    },
    /// Refuses with a 403 and these words.
    Refuses(&'static str),
    /// Lets all pass but dry runs, which it refuses with a 400.
    RefusesDryRuns,
    /// Lets all pass. It says that this has side effects, so that the API server refuses dry runs by itself. Only servers
    /// before 1.22 took such a webhook (`sideEffects: Some`); their successors go on to obey it, so it is put into etcd.
    HasEffects,
}

impl Does {
    /// Whether it changes objects: then it is asked before they are validated.
    fn mutates(&self) -> bool {
        matches!(self, Self::Defaults { .. } | Self::Stamps { .. })
    }

    /// The `response` of a review, without its uid; `number` is another each time.
    fn response(&self, object: &Value, dry: bool, number: usize) -> Value {
        match self {
            Self::Defaults { pointer, value } => {
                let is_there = object.pointer(pointer).is_some_and(|there| !there.is_null());
                if is_there { allowed() } else { patched(&additions(object, pointer, value)) }
            }
            Self::Stamps { pointer } => {
                patched(&additions(object, pointer, &json!(number.to_string())))
            }
            Self::Refuses(words) => refused(403, "Forbidden", words),
            Self::RefusesDryRuns if dry => refused(400, "BadRequest", NO_DRY_RUNS),
            Self::RefusesDryRuns | Self::HasEffects => allowed(),
        }
    }

    /// What registers it for `resource` in `namespace` with `client`, which says how it is reached.
    fn configuration(
        &self,
        name: &str,
        namespace: &str,
        resource: (&str, &str, &str),
        client: &Value,
    ) -> Value {
        let (group, version, plural) = resource;
        let kind = if self.mutates() { "Mutating" } else { "Validating" };
        let has_effects = matches!(self, Self::RefusesDryRuns | Self::HasEffects);
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": format!("{kind}WebhookConfiguration"),
            // Configurations are in no namespace, and the server is that of all tests.
            "metadata": {"name": format!("{namespace}-{name}")},
            "webhooks": [{
                "name": format!("{name}.e2e.nagaya.dev"),
                "clientConfig": client,
                "rules": [{
                    "apiGroups": [group],
                    "apiVersions": [version],
                    "resources": [plural],
                    "operations": ["CREATE", "UPDATE"],
                    // A namespaceSelector does not keep objects without a namespace out.
                    "scope": "Namespaced",
                }],
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
                "failurePolicy": "Fail",
                "matchPolicy": "Equivalent",
                "sideEffects": if has_effects { "NoneOnDryRun" } else { "None" },
                "timeoutSeconds": 5,
                "admissionReviewVersions": ["v1"],
            }],
        })
    }
}

fn allowed() -> Value {
    json!({"allowed": true})
}

fn patched(patch: &[Value]) -> Value {
    let patch = ByteString(json!(patch).to_string().into_bytes());
    json!({"allowed": true, "patchType": "JSONPatch", "patch": patch})
}

fn refused(code: u16, reason: &str, message: &str) -> Value {
    json!({"allowed": false, "status": {"code": code, "reason": reason, "message": message}})
}

/// The operations that put `value` at `pointer`: before it the parents that `object` lacks, from the outermost.
fn additions(object: &Value, pointer: &str, value: &Value) -> Vec<Value> {
    let parents = pointer.match_indices('/').skip(1).map(|(end, _)| &pointer[..end]);
    let missing = parents.filter(|parent| object.pointer(parent).is_none_or(Value::is_null));
    let all = missing.map(|parent| (parent, json!({}))).chain([(pointer, value.clone())]);
    all.map(|(path, value)| json!({"op": "add", "path": path, "value": value})).collect()
}

/// A registered webhook. When it is dropped it is deleted first, and then its server ends.
#[must_use = "it ends when it is dropped"]
pub struct Webhook {
    answers: Arc<Answers>,
    probe: Probe,
    configurations: Api<DynamicObject>,
    /// The name of its configuration.
    name: String,
    is_registered: bool,
    serving: JoinHandle<()>,
}

impl Webhook {
    /// Starts one for a resource (group, version, plural), and waits until the API server asks it.
    ///
    /// It is asked about `probe`, which is created as a dry run again and again: a valid object of that resource, with
    /// its `kind`. Namespace and name are put into it, the name since the history takes a dry run for a creation.
    /// On a given cluster this is an error: the server there does not reach this process.
    pub async fn start(
        test: &Test,
        name: &str,
        resource: (&str, &str, &str),
        does: Does,
        probe: &Value,
    ) -> Result<Self> {
        if test.control_plane.is_given() {
            bail!("{GIVEN_CLUSTER} is set, and this needs a server that reaches 127.0.0.1");
        }
        let probe = Probe::new(test, &format!("{name}-probe"), resource, probe)?;
        let (tls, ca_pem) = certificate()?;
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.context("opening a port")?;
        let url = format!("https://{}/{name}", listener.local_addr()?);
        let client = json!({"url": url, "caBundle": ByteString(ca_pem.into_bytes())});
        let configuration = does.configuration(name, &test.namespace, resource, &client);
        let configurations = manifest::api_of(&test.admin, &configuration)?;

        let answers = Arc::new(Answers { does, counts: Mutex::default() });
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let webhook = Self {
            answers: answers.clone(),
            probe,
            configurations,
            name: format!("{}-{name}", test.namespace),
            // Not yet; but whichever way the next step fails, it may be.
            is_registered: true,
            serving: tokio::spawn(listen(listener, acceptor, answers)),
        };
        test.apply(&[configuration]).await?;
        within(LIMIT, &format!("the API server asks the webhook {name}"), async || {
            let (is_asked, outcome) = webhook.is_asked().await;
            ensure!(is_asked, "it was not asked about a dry run: {outcome}");
            Ok(())
        })
        .await?;
        if matches!(webhook.answers.does, Does::HasEffects) {
            webhook.admit_effects(test).await?;
        }
        webhook.answers.forget();
        Ok(webhook)
    }

    /// Makes it one that the API server would not take, and waits until it has noticed.
    async fn admit_effects(&self, test: &Test) -> Result<()> {
        let mut stored = serde_json::to_value(self.configurations.get(&self.name).await?)?;
        stored["webhooks"][0]["sideEffects"] = json!("Some");
        let key = format!("validatingwebhookconfigurations/{}", self.name);
        test.control_plane.store(&key, &stored).await?;
        within(LIMIT, "the API server refuses dry runs because of it", async || {
            let (is_asked, outcome) = self.is_asked().await;
            ensure!(!is_asked && outcome.contains(NO_SUPPORT), "{outcome}");
            Ok(())
        })
        .await
    }

    /// How often it was asked since [`start`](Self::start) returned, and how often of these by a dry run.
    pub fn asked(&self) -> (usize, usize) {
        let counts = self.answers.counts.lock();
        (counts.asked, counts.dry)
    }

    /// Deletes it, waits until the API server does not ask it any more, and ends its server.
    pub async fn end(mut self) -> Result<()> {
        let outcome = self.withdraw().await;
        self.is_registered = false;
        outcome
    }

    async fn withdraw(&self) -> Result<()> {
        let deleted = self.configurations.delete(&self.name, &DeleteParams::default()).await;
        deleted.with_context(|| format!("deleting the webhook {}", self.name))?;
        // Without its server writes would fail that the API server still asks about.
        within(LIMIT, &format!("the API server forgets the webhook {}", self.name), async || {
            let (is_asked, outcome) = self.is_asked().await;
            ensure!(!is_asked, "it was asked about a dry run: {outcome}");
            ensure!(!outcome.contains(NO_SUPPORT), "it still has a say: {outcome}");
            Ok(())
        })
        .await
    }

    /// Whether the API server asks it about a dry run; and what became of that, for people.
    async fn is_asked(&self) -> (bool, String) {
        let (before, _) = self.asked();
        let outcome = self.probe.send().await;
        (self.asked().0 > before, outcome)
    }
}

impl Drop for Webhook {
    fn drop(&mut self) {
        let runtime = Handle::try_current().ok().filter(|_| self.is_registered);
        // In a runtime of one thread nobody would be left to do it.
        if let Some(runtime) = runtime
            && runtime.runtime_flavor() == RuntimeFlavor::MultiThread
        {
            let withdraw = async { timeout(DROPPED_WITHIN, self.withdraw()).await };
            // If it stays, only this test's namespace is the worse for it.
            let _ = block_in_place(|| runtime.block_on(withdraw));
        }
        self.serving.abort();
    }
}

/// An object that is created again and again and never there.
struct Probe {
    api: Api<DynamicObject>,
    object: DynamicObject,
}

impl Probe {
    fn new(test: &Test, name: &str, resource: (&str, &str, &str), object: &Value) -> Result<Self> {
        let (group, version, plural) = resource;
        let kind = object["kind"].as_str().context("a probe without kind")?;
        let kind = GroupVersionKind::gvk(group, version, kind);
        let resource = ApiResource::from_gvk_with_plural(&kind, plural);
        let mut object = object.clone();
        object["apiVersion"] = json!(resource.api_version);
        object["metadata"]["namespace"] = json!(test.namespace);
        object["metadata"]["name"] = json!(name);
        Ok(Self {
            api: Api::namespaced_with(test.admin.clone(), &test.namespace, &resource),
            object: manifest::typed(&object)?,
        })
    }

    /// Creates it, dry; what the API server said, for people. A webhook that refuses it was asked too.
    async fn send(&self) -> String {
        let parameters = PostParams { dry_run: true, ..PostParams::default() };
        match self.api.create(&parameters, &self.object).await {
            Ok(_) => "it passed".to_owned(),
            Err(error) => format!("{:#}", anyhow::Error::new(error)),
        }
    }
}

/// What the server says, and how often it was asked.
struct Answers {
    does: Does,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    asked: usize,
    dry: usize,
    /// Of all reviews ever: what stamps are made of.
    ever: usize,
}

impl Answers {
    /// The answer to a review.
    fn answer(&self, review: &[u8]) -> Result<Value> {
        let review: Value = serde_json::from_slice(review).context("understanding a review")?;
        let request = &review["request"];
        ensure!(request["uid"].is_string(), "a review without uid: {review}");
        let dry = request["dryRun"] == true;
        let number = self.count(dry);
        let mut response = self.does.response(&request["object"], dry, number);
        response["uid"] = request["uid"].clone();
        Ok(json!({
            "apiVersion": review["apiVersion"],
            "kind": review["kind"],
            "response": response,
        }))
    }

    fn count(&self, dry: bool) -> usize {
        let mut counts = self.counts.lock();
        counts.asked += 1;
        counts.dry += usize::from(dry);
        counts.ever += 1;
        counts.ever
    }

    /// From now on it is counted from nought; no stamp comes again.
    fn forget(&self) {
        let mut counts = self.counts.lock();
        (counts.asked, counts.dry) = (0, 0);
    }
}

/// A server for loopback with a new certificate, and that certificate, which is its own authority.
fn certificate() -> Result<(ServerConfig, String)> {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]);
    let made = made.context("making the webhook's certificate")?;
    let key = made.signing_key.serialize_der();
    let key = PrivateKeyDer::try_from(key).map_err(anyhow::Error::msg)?;
    let server = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .context("serving with the webhook's certificate")?;
    Ok((server, made.cert.pem()))
}

/// Serves whoever connects, until it is dropped together with all connections.
async fn listen(listener: TcpListener, acceptor: TlsAcceptor, answers: Arc<Answers>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // An error is about one client that has gone already.
                if let Ok((stream, _)) = accepted {
                    connections.spawn(serve(stream, acceptor.clone(), answers.clone()));
                }
            }
            Some(_) = connections.join_next() => (),
        }
    }
}

async fn serve(stream: TcpStream, acceptor: TlsAcceptor, answers: Arc<Answers>) {
    // Who does not like the certificate goes away, and the probe says why.
    let Ok(stream) = acceptor.accept(stream).await else { return };
    let service = service_fn(move |request| answer(answers.clone(), request));
    // Whichever way it ended, the API server knows.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// An error breaks the connection: the API server then says that the webhook failed.
async fn answer(
    answers: Arc<Answers>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>> {
    let review = request.into_body().collect().await.context("reading a review")?.to_bytes();
    let answer = answers.answer(&review)?.to_string();
    let response = Response::builder().header(header::CONTENT_TYPE, "application/json");
    Ok(response.body(Full::from(answer))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: &str = "/metadata/annotations/e2e~1stamp";

    fn patch(response: &Value) -> Value {
        let patch: ByteString = manifest::typed(&response["patch"]).unwrap();
        serde_json::from_slice(&patch.0).unwrap()
    }

    fn add(path: &str, value: &Value) -> Value {
        json!({"op": "add", "path": path, "value": value})
    }

    #[test]
    fn missing_parents_are_added_from_the_outermost() {
        let stamps = Does::Stamps { pointer: STAMP };
        let stamp = add(STAMP, &json!("7"));
        let parents = [add("/metadata", &json!({})), add("/metadata/annotations", &json!({}))];
        for (object, missing) in [
            (json!({"metadata": {"annotations": {"e2e/stamp": "6"}}}), &parents[2..]),
            (json!({"metadata": {"annotations": null}}), &parents[1..]),
            (json!({"metadata": {"name": "web"}}), &parents[1..]),
            (json!({}), &parents[..]),
        ] {
            let found = patch(&stamps.response(&object, false, 7));
            let wanted: Vec<_> = missing.iter().chain([&stamp]).cloned().collect();
            assert_eq!(found, Value::Array(wanted), "{object}");
        }
    }

    #[test]
    fn a_default_leaves_what_is_there() {
        let does = Does::Defaults { pointer: "/spec/replicas", value: json!(3) };
        let response = |object: &Value| does.response(object, false, 1);
        assert_eq!(response(&json!({"spec": {"replicas": 0}})), allowed());
        let wanted = json!([add("/spec/replicas", &json!(3))]);
        assert_eq!(patch(&response(&json!({"spec": {"replicas": null}}))), wanted);
        assert_eq!(patch(&response(&json!({"spec": {}}))), wanted);
    }

    #[test]
    fn an_answer_has_the_uid_of_its_review_and_is_counted() {
        let answers = Answers { does: Does::RefusesDryRuns, counts: Mutex::default() };
        let answer = |dry: bool| {
            let request = json!({"uid": "u-1", "dryRun": dry, "object": {}});
            let review = json!({"apiVersion": "v1", "kind": "Review", "request": request});
            answers.answer(review.to_string().as_bytes()).unwrap()
        };
        let wanted =
            |response: Value| json!({"apiVersion": "v1", "kind": "Review", "response": response});
        assert_eq!(answer(false), wanted(json!({"uid": "u-1", "allowed": true})));
        let status = json!({"code": 400, "reason": "BadRequest", "message": NO_DRY_RUNS});
        let refused = json!({"uid": "u-1", "allowed": false, "status": status});
        assert_eq!(answer(true), wanted(refused));
        let counts = answers.counts.lock();
        assert_eq!((counts.asked, counts.dry), (2, 1));
    }
}
