//! Requests to the API server, by the names of client-go.

use std::time::Duration;

use http::{Method, StatusCode};
use prometheus_client::{
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::Registry,
};

use super::Labels;

/// Buckets of client-go.
const SECONDS: [f64; 12] = [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0];

/// The families; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Families {
    total: Family<Labels, Counter>,
    seconds: Family<Labels, Histogram>,
}

/// Counts the requests to one API server; cheap to clone.
#[derive(Clone, Debug)]
pub struct Requests {
    families: Families,
    host: String,
}

impl Families {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let new: fn() -> Histogram = || Histogram::new(SECONDS);
        let (total, seconds) = (Family::default(), Family::new_with_constructor(new));
        let help = "Requests to the API server by status, method and host; <error>: no answer";
        registry.register("rest_client_requests", help, total.clone());
        let help = "How long the API server took to begin its answer";
        registry.register("rest_client_request_duration_seconds", help, seconds.clone());
        Self { total, seconds }
    }

    pub(super) fn to(&self, host: &str) -> Requests {
        Requests { families: self.clone(), host: host.to_owned() }
    }
}

impl Requests {
    /// Counts one; `code`: the status, `None` without an answer.
    pub fn sent(&self, method: &Method, code: Option<StatusCode>, took: Duration) {
        let code = code.map_or_else(|| "<error>".to_owned(), |code| code.as_u16().to_string());
        let host = || ("host", self.host.clone());
        let labels = vec![("code", code), ("method", method.to_string()), host()];
        self.families.total.get_or_create(&labels).inc();
        let labels = vec![("verb", method.to_string()), host()];
        self.families.seconds.get_or_create(&labels).observe(took.as_secs_f64());
    }
}
