//! What a reconciler computes in one run: a custom resource is parsed into types, a `ConfigMap` is built from it.
//!
//! The guest `worker` does it in a sandbox and `bench/` natively, so that the same code is compared.

use std::{collections::BTreeMap, fmt::Write};

use k8s_openapi::{
    api::core::v1::ConfigMap,
    apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, OwnerReference},
};
use serde::Deserialize;

/// A Gateway of 4,090 bytes, as the API server would send it.
pub const GATEWAY: &str = include_str!("gateway.json");

/// Reads a Gateway and makes the `ConfigMap` of its proxy, both as JSON.
pub fn work(gateway: &str) -> Result<String, serde_json::Error> {
    let gateway: Gateway = serde_json::from_str(gateway)?;
    serde_json::to_string(&config_map(&gateway))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Gateway {
    api_version: String,
    kind: String,
    metadata: ObjectMeta,
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Deserialize)]
struct Spec {
    host: String,
    environment: Vec<Variable>,
    routes: Vec<Route>,
    backends: Vec<Backend>,
    greeting: String,
}

#[derive(Debug, Deserialize)]
struct Variable {
    name: String,
    value: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Route {
    path: String,
    service: String,
    port: u16,
    timeout_seconds: u32,
    methods: Vec<String>,
    headers: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Backend {
    name: String,
    addresses: Vec<String>,
    weight: u32,
    health_check: HealthCheck,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct HealthCheck {
    path: String,
    interval_seconds: u32,
    unhealthy_after: u32,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    #[serde(default)]
    observed_generation: i64,
    #[serde(default)]
    conditions: Vec<Condition>,
}

fn config_map(gateway: &Gateway) -> ConfigMap {
    let spec = &gateway.spec;
    let data = BTreeMap::from([
        ("environment".to_owned(), environment(&spec.environment)),
        ("routes.conf".to_owned(), routes(spec)),
        ("backends.conf".to_owned(), backends(&spec.backends)),
        ("greeting.html".to_owned(), greeting(spec)),
        ("status".to_owned(), status(gateway)),
    ]);
    ConfigMap { metadata: metadata(gateway), data: Some(data), ..ConfigMap::default() }
}

fn metadata(gateway: &Gateway) -> ObjectMeta {
    let from = &gateway.metadata;
    let owner = OwnerReference {
        api_version: gateway.api_version.clone(),
        kind: gateway.kind.clone(),
        name: from.name.clone().unwrap_or_default(),
        uid: from.uid.clone().unwrap_or_default(),
        controller: Some(true),
        ..OwnerReference::default()
    };
    ObjectMeta {
        name: from.name.as_ref().map(|name| format!("{name}-proxy")),
        namespace: from.namespace.clone(),
        labels: from.labels.clone(),
        annotations: from.annotations.clone(),
        owner_references: Some(vec![owner]),
        ..ObjectMeta::default()
    }
}

fn environment(variables: &[Variable]) -> String {
    variables.iter().map(|Variable { name, value }| format!("{name}={value}\n")).collect()
}

fn routes(spec: &Spec) -> String {
    let mut text = format!("server_name {};\n", spec.host);
    for route in &spec.routes {
        let methods = route.methods.join(" ");
        // Writing to a string cannot fail.
        let _ = writeln!(text, "location {} {{\n  allow_methods {methods};", route.path);
        let _ = writeln!(text, "  proxy_pass http://{}:{};", route.service, route.port);
        let _ = writeln!(text, "  proxy_read_timeout {}s;", route.timeout_seconds);
        text.push_str("  proxy_http_version 1.1;\n  proxy_set_header Host $host;\n");
        for (name, value) in &route.headers {
            let _ = writeln!(text, "  proxy_set_header {name} \"{value}\";");
        }
        text.push_str("}\n");
    }
    text
}

fn backends(backends: &[Backend]) -> String {
    let mut text = String::new();
    for Backend { name, addresses, weight, health_check } in backends {
        let HealthCheck { path, interval_seconds, unhealthy_after } = health_check;
        let _ = writeln!(text, "upstream {name} {{");
        for address in addresses {
            let _ = writeln!(text, "  server {address} weight={weight};");
        }
        let _ =
            writeln!(text, "  check {path} every={interval_seconds}s fall={unhealthy_after};\n}}");
    }
    text
}

fn greeting(spec: &Spec) -> String {
    format!("<!doctype html>\n<title>{}</title>\n<p>{}</p>\n", spec.host, spec.greeting)
}

fn status(gateway: &Gateway) -> String {
    let Status { observed_generation, conditions } = &gateway.status;
    let mut text = format!("generation {observed_generation}\n");
    for Condition { type_, status, reason, message, .. } in conditions {
        let _ = writeln!(text, "{type_}={status} {reason}: {message}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_of_4_kib_becomes_another() {
        assert_eq!(GATEWAY.len(), 4_090);
        let made = work(GATEWAY).unwrap();
        assert!((4_300..4_500).contains(&made.len()), "{} bytes", made.len());
        let made: ConfigMap = serde_json::from_str(&made).unwrap();
        let routes = &made.data.unwrap()["routes.conf"];
        assert!(routes.contains("location /api/v1/carts {\n  allow_methods GET POST;"), "{routes}");
    }
}
