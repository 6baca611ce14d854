//! Websites and their children, as the example `website` and the guests of `tests/guests` make them.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::manifest::resource;
use crate::wait::within;

/// The label of every child of the example; its value is the Website's name.
pub const WEBSITE: &str = "examples.nagaya.dev/website";
/// The label that only version 2 of the example puts on its children.
pub const DESIGN: &str = "examples.nagaya.dev/design";

/// A Website as YAML would have it.
pub fn website(namespace: &str, name: &str, title: &str) -> Value {
    json!({
        "apiVersion": "examples.nagaya.dev/v1",
        "kind": "Website",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"title": title},
    })
}

/// The kinds of a Website's children.
pub fn child_kinds() -> [ApiResource; 3] {
    [("v1", "ConfigMap"), ("apps/v1", "Deployment"), ("v1", "Service")]
        .map(|(version, kind)| resource(version, kind))
}

/// All children of all Websites of the example in a namespace.
pub async fn children(client: &Client, namespace: &str) -> Result<Vec<DynamicObject>> {
    let mut all = vec![];
    for kind in child_kinds() {
        let api = Api::<DynamicObject>::namespaced_with(client.clone(), namespace, &kind);
        let list = api.list(&ListParams::default().labels(WEBSITE)).await;
        all.extend(list.with_context(|| format!("listing {}", kind.plural))?.items);
    }
    Ok(all)
}

/// One entry of a ConfigMap's data.
pub async fn datum(maps: &Api<ConfigMap>, name: &str, key: &str) -> Result<String> {
    let map = maps.get_opt(name).await?.with_context(|| format!("no ConfigMap {name}"))?;
    let found = map.data.as_ref().and_then(|data| data.get(key).cloned());
    found.with_context(|| format!("the ConfigMap {name} has no {key}: {:?}", map.data))
}

/// Waits until `copier` has copied what every one of these Websites says now.
pub async fn copied(
    maps: &Api<ConfigMap>,
    titles: &BTreeMap<String, String>,
    limit: Duration,
) -> Result<()> {
    within(limit, "every title is copied", async || all_copied(maps, titles).await).await
}

/// Whether `copier` has copied what every one of these Websites says, at this moment.
pub async fn all_copied(maps: &Api<ConfigMap>, titles: &BTreeMap<String, String>) -> Result<()> {
    let found = maps.list(&ListParams::default()).await?.items;
    let found: BTreeMap<_, _> = found
        .into_iter()
        .filter_map(|map| Some((map.metadata.name?, map.data?.remove("title")?)))
        .collect();
    let late: Vec<_> =
        titles.iter().filter(|(name, title)| found.get(*name) != Some(*title)).collect();
    ensure!(late.is_empty(), "{} of {} are not, such as {:?}", late.len(), titles.len(), late[0]);
    Ok(())
}

/// A config by which `hostile` does these steps and owns the ConfigMaps that it writes: a change of
/// one wakes its Website.
pub fn owning(steps: &str) -> Value {
    json!({
        "reconcile": steps,
        "manifest": {
            "primary": {
                "apiVersion": "examples.nagaya.dev/v1",
                "kind": "Website",
                "when": "generationChanged",
            },
            "owns": [{"apiVersion": "v1", "kind": "ConfigMap", "projection": "full"}],
            "writes": [{
                "apiVersion": "v1", "kind": "ConfigMap",
                "verbs": ["create", "apply", "patch", "delete"],
            }],
        },
    })
}
