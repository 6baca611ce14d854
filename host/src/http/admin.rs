//! Probes and metrics: `/healthz`, `/readyz`, `/metrics`.

use axum::{
    Router, extract::State, http::StatusCode, http::header, response::IntoResponse, routing::get,
};
use tokio::sync::watch;

use crate::metrics::Metrics;

/// What the handlers share.
#[derive(Clone, Debug)]
pub struct Admin {
    /// The page.
    pub metrics: Metrics,
    /// True once the host's own watches are synced.
    pub ready: watch::Receiver<bool>,
}

/// The three pages.
pub fn router(admin: Admin) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(admin)
}

async fn ready(State(admin): State<Admin>) -> impl IntoResponse {
    if *admin.ready.borrow() {
        (StatusCode::OK, "ok")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the host has not synced its own watches yet")
    }
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    let media = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    // The page counts the lines of the memory map, of which there may be tens of thousands.
    let page = tokio::task::spawn_blocking(move || admin.metrics.page()).await;
    match page {
        Ok(Ok(page)) => (StatusCode::OK, [(header::CONTENT_TYPE, media)], page).into_response(),
        Ok(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
