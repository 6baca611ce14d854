//! What one host of a deployment asks another: the bytes of a module that was uploaded there.
//!
//! So replicas need no disk that they share: a standby stages what the host that works runs, and asks it for what it lacks.
//! The store hashes what comes, as it does with every upload.
//!
//! Invariant, on a real server: `a_standby_passes_on_to_the_host_that_works`, whose standby has a disk of its own.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, bail};
use axum::{
    body::Body,
    extract::{Path, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use futures::future::BoxFuture;
use serde_json::Value;

use super::Served;
use crate::{
    apiserver::Call,
    causes,
    http::answer::status,
    leader::lease::ADDRESS,
    model::digest::Digest,
    modules::{Elsewhere, Modules},
};

/// A module comes within this, or is asked for again.
const LIMIT: Duration = Duration::from_secs(60);

/// The other hosts.
#[derive(Clone, Debug)]
pub struct Hosts(pub Served);

/// The bytes of a module, for another host.
pub(super) async fn give(State(served): State<Served>, Path(digest): Path<String>) -> Response {
    let Ok(digest) = digest.parse::<Digest>() else {
        return status(StatusCode::BAD_REQUEST, "it is no digest");
    };
    let modules = served.uploads.modules.clone();
    match tokio::task::spawn_blocking(move || modules.read(&digest)).await {
        Ok(Ok(Some(bytes))) => {
            let body = Body::from(axum::body::Bytes::from_owner(bytes));
            ([(header::CONTENT_TYPE, "application/wasm")], body).into_response()
        }
        Ok(Ok(None)) => status(StatusCode::NOT_FOUND, "this host has no such module"),
        _ => status(StatusCode::INTERNAL_SERVER_ERROR, "this host cannot read its modules"),
    }
}

/// Where the host that works is asked; an error says why nobody knows.
pub(super) async fn leader(served: &Served) -> Result<SocketAddr, String> {
    let Some(path) = served.lease.get() else {
        return Err("this host has only just begun; try again in a moment".to_owned());
    };
    let lease: Value = served
        .api
        .fetch(Call::new(http::Method::GET, path))
        .await
        .map_err(|error| format!("which host works cannot be read: {}", causes::all(&error)))?;
    let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
    if holder.is_empty() {
        return Err("no host works at present; try again in a moment".to_owned());
    }
    let address = lease["metadata"]["annotations"][ADDRESS].as_str().unwrap_or_default();
    address.parse().map_err(|_| {
        format!(
            "the host that works, {holder}, has told no address at which it can be asked (--aggregated-advertise-ip)"
        )
    })
}

impl Elsewhere for Hosts {
    fn fetch(&self, digest: Digest) -> BoxFuture<'static, ()> {
        let served = self.0.clone();
        Box::pin(async move {
            if served.uploads.leads() {
                return;
            }
            match tokio::time::timeout(LIMIT, fetch(&served, &digest)).await {
                Ok(Ok(true)) => tracing::info!(%digest, "the host that works has given a module"),
                Ok(Ok(false)) => (),
                Ok(Err(error)) => {
                    let error = causes::all(&*error);
                    tracing::info!(%digest, error, "the host that works does not give a module");
                }
                Err(_) => {
                    tracing::info!(%digest, "the host that works takes too long to give a module");
                }
            }
        })
    }
}

/// False: it has none.
async fn fetch(served: &Served, digest: &Digest) -> Result<bool> {
    let Some(standing) = served.standing.borrow().clone() else { return Ok(false) };
    let Ok(leader) = leader(served).await else { return Ok(false) };
    let client = standing.client(&served.service, leader)?;
    let url = format!("https://{}:{}/v1/modules/{digest}", served.service.host(), leader.port());
    let mut answer = client.get(url).send().await.context("asking for it")?;
    match answer.status() {
        StatusCode::OK => (),
        StatusCode::NOT_FOUND => return Ok(false),
        other => bail!("it answers {other}"),
    }
    let (modules, most): (Modules, _) = (served.uploads.modules.clone(), served.uploads.max_bytes);
    let begun = digest.clone();
    let mut upload = tokio::task::spawn_blocking(move || modules.upload(begun, most)).await??;
    while let Some(bytes) = answer.chunk().await.context("reading it")? {
        upload =
            tokio::task::spawn_blocking(move || upload.write(&bytes).map(|()| upload)).await??;
    }
    tokio::task::spawn_blocking(move || upload.finish()).await??;
    Ok(true)
}
