//! What the host's own API stands on: the front proxy's settings, the CA in the Secret, the bundle in the `APIService`.
//!
//! It is looked after once a minute for as long as the host runs: what somebody changed or took away is put right again, and what
//! will end is renewed. Whoever serves holds the last that was good.
//!
//! Invariants: `a_renewed_front_proxy_is_let_in`, and on a real server `namespaces_are_deleted_again_as_soon_as_a_host_answers`, which takes
//! the CA away as well.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use http::Method;
use k8s_openapi::jiff::Timestamp;
use reqwest::Client;
use rustls::ServerConfig;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{
    Service,
    certificates::{Authority, LEAF_EVERY},
    front::Front,
    tls,
};
use crate::{
    apiserver::{ApiServer, Call, Error, Media},
    causes, clock,
    model::live::{GROUP, VERSION},
};

/// How often it is looked after.
const EVERY: Duration = Duration::from_secs(60);
/// The same while it fails.
const AGAIN: Duration = Duration::from_secs(3);
/// A host that another one asks must answer the handshake within this.
const CONNECT: Duration = Duration::from_secs(5);

const FRONT: &str = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication";

/// All that is needed to serve.
#[derive(Debug)]
pub struct Standing {
    pub(super) front: Front,
    pub(super) server: Arc<ServerConfig>,
    /// For what another host is to answer.
    pub(super) to_hosts: rustls::ClientConfig,
}

/// Looks after it.
#[derive(Debug)]
pub struct Upkeep {
    api: ApiServer,
    service: Service,
    tell: watch::Sender<Option<Arc<Standing>>>,
    held: Option<Held>,
    /// What was last said to be wrong.
    said: String,
}

#[derive(Debug)]
struct Held {
    front: Front,
    authority: Authority,
    since: Instant,
}

impl Upkeep {
    /// For what is served as `service`; what it finds goes to `tell`.
    pub fn new(
        api: ApiServer,
        service: Service,
        tell: watch::Sender<Option<Arc<Standing>>>,
    ) -> Self {
        Self { api, service, tell, held: None, said: String::new() }
    }

    /// Looks after it until it is dropped.
    pub async fn run(mut self) {
        loop {
            let wait = match self.look().await {
                Ok(()) => {
                    self.said.clear();
                    EVERY
                }
                Err(error) => {
                    let words = causes::all(&*error);
                    if self.said != words {
                        tracing::warn!(
                            error = words,
                            "{GROUP} cannot be served as it should; teams that use it are refused, or see it as it was; the \
                             host tries again"
                        );
                        self.said = words;
                    }
                    AGAIN
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    async fn look(&mut self) -> Result<()> {
        let config: Value = self
            .get(FRONT)
            .await
            .context("reading how the API server passes requests on; the host's account needs the Role extension-apiserver-authentication-reader of kube-system")?;
        let front = Front::read(&config)
            .map_err(|text| anyhow!(text))
            .context("reading the ConfigMap kube-system/extension-apiserver-authentication")?;
        let authority = self.authority().await?;
        // The API server must trust it before it is shown.
        let trusted = self.trust(&authority).await;
        let is_same = self.held.as_ref().is_some_and(|held| {
            let age = clock::now().saturating_duration_since(held.since);
            let is_old = age >= LEAF_EVERY.unsigned_abs();
            held.front == front && held.authority == authority && !is_old
        });
        if !is_same {
            let leaf = authority.leaf(&self.service.host(), Timestamp::now())?;
            let standing = Standing {
                server: Arc::new(tls::server(&front, &authority, &leaf)?),
                to_hosts: tls::client(&authority, &leaf)?,
                front: front.clone(),
            };
            self.held = Some(Held { front, authority, since: clock::now() });
            self.tell.send_replace(Some(Arc::new(standing)));
            tracing::info!(service = self.service.host(), "{GROUP} is served");
        }
        trusted
    }

    /// The CA in the Secret, made or renewed if need be. Of several hosts that do so at a time the first one wins.
    async fn authority(&self) -> Result<Authority> {
        let Service { name, namespace } = &self.service;
        let path = format!("/api/v1/namespaces/{namespace}/secrets/{name}");
        let context = || {
            format!(
                "the Secret {namespace}/{name}, where the CA of {GROUP} is kept; it must exist, and the host's account may get and update it"
            )
        };
        loop {
            let mut secret = self.get(&path).await.with_context(context)?;
            let now = Timestamp::now();
            let new = match Authority::read(&secret) {
                Some(authority) if !authority.is_old(now) => return Ok(authority),
                Some(authority) => authority.renew(now)?,
                None => Authority::make(now)?,
            };
            secret["data"] = new.data();
            let call = Call::new(Method::PUT, &path).body(Media::Json, secret.to_string());
            match self.api.call(call).await {
                Ok(_) => {
                    let secret = format!("{namespace}/{name}");
                    tracing::info!(secret, "a CA was made for {GROUP}");
                }
                Err(error) if error.code() == Some(409) => (),
                Err(error) => return Err(error).with_context(context),
            }
        }
    }

    /// Makes the API server trust the CA.
    async fn trust(&self, authority: &Authority) -> Result<()> {
        let path = format!("/apis/apiregistration.k8s.io/v1/apiservices/{VERSION}.{GROUP}");
        let context = || {
            format!(
                "the APIService {VERSION}.{GROUP}, which makes the API server pass requests on; it must exist, and the host's account may get and patch it"
            )
        };
        let service = self.get(&path).await.with_context(context)?;
        let bundle = authority.ca_bundle();
        if service["spec"]["caBundle"] == bundle {
            return Ok(());
        }
        let patch = json!({ "spec": { "caBundle": bundle } });
        let path = format!("{path}?fieldManager=nagaya");
        let call = Call::new(Method::PATCH, path).body(Media::MergePatch, patch.to_string());
        self.api.call(call).await.map(drop).with_context(context)
    }

    async fn get(&self, path: &str) -> Result<Value, Error> {
        self.api.fetch(Call::new(Method::GET, path)).await
    }
}

impl Standing {
    /// With a CA of its own.
    #[cfg(test)]
    pub(super) fn for_tests(front: Front, service: &Service) -> Self {
        let authority = Authority::make(Timestamp::now()).unwrap();
        let leaf = authority.leaf(&service.host(), Timestamp::now()).unwrap();
        let server = Arc::new(tls::server(&front, &authority, &leaf).unwrap());
        Self { server, to_hosts: tls::client(&authority, &leaf).unwrap(), front }
    }

    /// A client of the host at `address`, which is asked as `service`.
    pub(super) fn client(
        &self,
        service: &Service,
        address: std::net::SocketAddr,
    ) -> Result<Client, reqwest::Error> {
        Client::builder()
            .tls_backend_preconfigured(self.to_hosts.clone())
            .resolve(&service.host(), address)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            .build()
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::{super::front::tests::config, *};
    use crate::apiserver::answering;

    fn pem() -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        rcgen::CertificateParams::default().self_signed(&key).unwrap().pem()
    }

    /// A front proxy's CA that was renewed counts without a restart: others let nobody in any more after a day.
    #[tokio::test]
    async fn a_renewed_front_proxy_is_let_in() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let authority = Authority::make(Timestamp::now()).unwrap();
        let pems = Arc::new(Mutex::new(pem()));
        let (shown, secret, bundle) = (pems.clone(), authority.data(), authority.ca_bundle());
        let api = answering(move |path| {
            let body = match path {
                path if path.ends_with(FRONT) => config(&shown.lock()),
                path if path.contains("/secrets/") => json!({ "data": secret }),
                _ => json!({ "spec": { "caBundle": bundle } }),
            };
            (200, Some(body.to_string()))
        });
        let (tell, mut told) = watch::channel(None);
        let service = "a.b.svc".parse().unwrap();
        let mut upkeep = Upkeep::new(api, service, tell);
        upkeep.look().await.unwrap();
        let first = told.borrow_and_update().clone().unwrap();
        upkeep.look().await.unwrap();
        assert!(!told.has_changed().unwrap(), "nothing has changed");
        *pems.lock() = pem();
        upkeep.look().await.unwrap();
        let second = told.borrow_and_update().clone().unwrap();
        assert_ne!(first.front.roots, second.front.roots);
        *pems.lock() = String::new();
        assert!(upkeep.look().await.is_err());
        assert!(!told.has_changed().unwrap(), "the last that was good stays");
    }
}
