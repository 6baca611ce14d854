//! What a real API server answers to a guest's writes, and what the guest hears of it.

#![cfg(test)] // Tells clippy that helpers are test code too.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::account::{GUEST_RULES, Rule};
use e2e::component::Component;
use e2e::controller::Controller;
use e2e::manifest::api_of;
use e2e::site::{datum, website};
use e2e::wait::within;
use e2e::{Test, test};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(30);

/// A controller of Websites that makes the calls which the website `web` names.
async fn probe(test: &Test, rules: &[Rule]) -> Result<Controller> {
    let map = json!({"version": "v1", "kind": "ConfigMap"});
    let config = json!({
        "calls": [],
        "manifest": {
            "primary": {
                "kind": {"group": "examples.nagaya.dev", "version": "v1", "kind": "Website"},
            },
            "owned": [{"kind": map}],
            "writes": [{"kind": map, "verbs": ["apply", "patch", "create"]}],
        },
    });
    let probe = test.guest("probe", rules, json!({})).await?;
    let revision = probe.push_config(&Component::load("probe")?, &config).await?;
    probe.active(&revision).await?;
    test.website("web", "Web").await?;
    Ok(probe)
}

/// Has the website `web` call, and waits for as many answers.
async fn answers(test: &Test, calls: &[Value]) -> Result<Vec<Value>> {
    let websites = api_of(&test.admin, &website(&test.namespace, "web", ""))?;
    let annotations = json!({"probe.nagaya.dev/calls": Value::from(calls).to_string()});
    let patch = Patch::Merge(json!({"metadata": {"annotations": annotations}}));
    websites.patch("web", &PatchParams::default(), &patch).await?;
    let maps = test.api::<ConfigMap>();
    within(LIMIT, "the answers", async || {
        let report = datum(&maps, "web-probe", "report").await?;
        let answers: Vec<Value> = serde_json::from_str(&report)?;
        ensure!(answers.len() == calls.len(), "{} answers", answers.len());
        Ok(answers)
    })
    .await
}

fn told(answers: &[Value]) -> Vec<&str> {
    answers.iter().map(|answer| answer["error"].as_str().unwrap_or("ok")).collect()
}

async fn owner(test: &Test, name: &str) -> Result<Value> {
    let websites = api_of(&test.admin, &website(&test.namespace, name, ""))?;
    let uid = websites.get(name).await?.uid().context("no uid")?;
    Ok(json!({
        "apiVersion": "examples.nagaya.dev/v1", "kind": "Website", "name": name,
        "uid": uid, "controller": true,
    }))
}

fn map(namespace: &str, name: &str, owners: &[Value]) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace, "ownerReferences": owners},
        "data": {"config": "ours"},
    })
}

/// What others have made: `users`, which nobody controls, and `neighbours`, which the website `neighbour` does.
async fn others(test: &Test) -> Result<()> {
    test.website("neighbour", "Web").await?;
    let neighbour = owner(test, "neighbour").await?;
    for (name, owners) in [("users", vec![]), ("adopted", vec![]), ("neighbours", vec![neighbour])]
    {
        let mut object = map(&test.namespace, name, &owners);
        object["data"]["config"] = json!("theirs");
        test.apply(&[object]).await?;
    }
    Ok(())
}

#[test]
fn an_object_of_somebody_else_is_not_taken_over() -> Result<()> {
    test(async |test| {
        probe(test, GUEST_RULES).await?;
        others(test).await?;
        let web = owner(test, "web").await?;
        let kind = json!({"version": "v1", "kind": "ConfigMap"});
        let child = |name: &str| map(&test.namespace, name, std::slice::from_ref(&web));
        let call = |call: &str, name: &str| json!({"call": call, "object": child(name)});
        let patch = |call: &str, body: Value| json!({"call": call, "kind": kind, "namespace": test.namespace, "name": "users", "body": body});
        let add = json!([{"op": "add", "path": "/metadata/ownerReferences", "value": [web]}]);
        let elsewhere = map("default", "users", std::slice::from_ref(&web));
        let answers = answers(
            test,
            &[
                call("apply", "users"),
                call("apply-forced", "users"),
                call("create", "users"),
                patch("patch-merge", json!({"metadata": {"ownerReferences": [web]}})),
                patch("patch-json", add),
                call("apply", "neighbours"),
                call("adopt", "neighbours"),
                call("adopt", "adopted"),
                call("apply", "new"),
                call("apply", "new"),
                json!({"call": "apply", "object": elsewhere}),
                json!({"call": "adopt", "object": map(&test.namespace, "users", &[])}),
            ],
        )
        .await?;
        let expected = [
            "conflict",
            "conflict",
            "already-exists",
            "conflict",
            "conflict",
            "conflict",
            "conflict",
            "ok",
            "ok",
            "ok",
            "invalid",
            "invalid",
        ];
        assert_eq!(told(&answers), expected, "{answers:#?}");
        let maps = test.api::<ConfigMap>();
        for (name, owner, value) in [
            ("users", None, "theirs"),
            ("neighbours", Some("neighbour"), "theirs"),
            ("adopted", Some("web"), "ours"),
            ("new", Some("web"), "ours"),
        ] {
            let object = maps.get(name).await?;
            let owners = object.owner_references();
            assert_eq!(owners.first().map(|owner| owner.name.as_str()), owner, "{name}");
            assert_eq!(datum(&maps, name, "config").await?, value, "{name}");
        }
        Ok(())
    })
}
