//! What a real API server answers to a guest's writes, and what the guest hears of it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::account::{self, GUEST_RULES, Rule};
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
async fn probe(test: &Test) -> Result<()> {
    probe_of(test, test.guest("probe", GUEST_RULES, json!({})).await?).await
}

async fn probe_of(test: &Test, controller: Controller) -> Result<()> {
    let config = json!({
        "calls": [],
        "manifest": {
            "primary": {
                "apiVersion": "examples.nagaya.dev/v1", "kind": "Website",
            },
            "owns": [{"apiVersion": "v1", "kind": "ConfigMap", "projection": "full"}],
            "writes": [{
                "apiVersion": "v1", "kind": "ConfigMap", "verbs": ["apply", "patch", "create"],
            }],
        },
    });
    let revision = controller.push_config(&Component::load("probe")?, &config).await?;
    controller.active(&revision).await?;
    test.website("web", "Web").await
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
        probe(test).await?;
        others(test).await?;
        let web = owner(test, "web").await?;
        let kind = json!({"apiVersion": "v1", "kind": "ConfigMap"});
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

/// Who says that an object is the primary's writes no reference of its own.
#[test]
fn a_child_is_made_by_the_host_and_refused_where_kubernetes_allows_none() -> Result<()> {
    test(async |test| {
        probe(test).await?;
        others(test).await?;
        let namespace = test.namespace.as_str();
        let plain = |name: &str| map(namespace, name, &[]);
        let call = |call: &str, object: Value| json!({"call": call, "object": object});
        let named = map(namespace, "named", &[owner(test, "web").await?]);
        let mut generated = plain("");
        generated["metadata"] = json!({"generateName": "made-", "namespace": namespace});
        let answers = answers(
            test,
            &[
                call("apply-child", plain("child")),
                call("apply-child", plain("child")),
                call("apply-child", named),
                call("create-child", generated),
                call("apply-child", plain("users")),
                call("adopt", plain("adopted")),
                call("adopt", plain("neighbours")),
                call("apply-child", map("default", "elsewhere", &[])),
                call("apply", plain("plain")),
            ],
        )
        .await?;
        let expected = ["ok", "ok", "ok", "ok", "conflict", "ok", "conflict", "invalid", "ok"];
        assert_eq!(told(&answers), expected, "{answers:#?}");
        let owners = |at: usize| answers[at]["ok"]["metadata"]["ownerReferences"].clone();
        let uid = owner(test, "web").await?["uid"].clone();
        for at in [0, 1, 2, 3, 5] {
            let owner = &owners(at)[0];
            assert_eq!((&owner["uid"], &owner["controller"]), (&uid, &json!(true)), "{at}");
            assert_eq!(owners(at).as_array().map(Vec::len), Some(1), "{at}");
        }
        assert_eq!(owners(8), Value::Null);
        let message = answers[7]["message"].as_str().unwrap_or_default();
        assert!(message.contains("crosses namespaces"), "{message}");
        Ok(())
    })
}

/// The server's own words, which the host tells apart.
#[test]
fn what_the_server_says_of_a_write_is_told_by_its_reason() -> Result<()> {
    test(async |test| {
        probe(test).await?;
        let web = owner(test, "web").await?;
        let kind = json!({"apiVersion": "v1", "kind": "ConfigMap"});
        let apply = |object: Value| json!({"call": "apply", "object": object});
        let namespace = test.namespace.as_str();
        let twice = map(namespace, "twice", &[web.clone(), web.clone()]);
        let mut unknown = map(namespace, "unknown", &[]);
        unknown["sise"] = json!(1);
        let mut another = map(namespace, "one", &[]);
        another["metadata"]["uid"] = json!("11111111-1111-1111-1111-111111111111");
        let mut wrong = map(namespace, "wrong", &[]);
        wrong["data"]["config"] = json!(1);
        let missed = json!({"call": "patch-json", "kind": kind, "namespace": namespace, "name": "one",
            "body": [{"op": "test", "path": "/data/config", "value": "another"}]});
        let answers = answers(
            test,
            &[
                apply(map(namespace, "one", &[])),
                apply(twice),
                apply(unknown),
                apply(another),
                apply(wrong),
                missed,
                apply(map("kube-system", "one", &[])),
                apply(map(namespace, "Not_A_Name", &[])),
            ],
        )
        .await?;
        let expected =
            ["ok", "invalid", "invalid", "conflict", "invalid", "conflict", "forbidden", "invalid"];
        assert_eq!(told(&answers), expected, "{answers:#?}");
        let message = |at: usize| answers[at]["message"].as_str().unwrap_or_default().to_owned();
        assert!(message(1).contains("duplicate entries"), "{}", message(1));
        assert!(message(2).contains("ahead of the CustomResourceDefinition"), "{}", message(2));
        assert!(message(6).contains("cannot patch"), "{}", message(6));
        Ok(())
    })
}

/// docs/decisions/0008-what-an-apply-needs.md.
#[test]
fn an_apply_needs_create_of_the_account_and_only_patch_of_the_host() -> Result<()> {
    /// What an apply of a ConfigMap takes, besides `create`.
    const PATCHES: &[Rule] = &[
        Rule {
            group: "examples.nagaya.dev",
            resource: "websites",
            verbs: &["get", "list", "watch", "patch"],
        },
        Rule { group: "examples.nagaya.dev", resource: "websites/status", verbs: &["patch"] },
        Rule { group: "", resource: "configmaps", verbs: &["get", "list", "watch", "patch"] },
        Rule { group: "events.k8s.io", resource: "events", verbs: &["create", "patch"] },
    ];
    const CREATES: Rule = Rule { group: "", resource: "configmaps", verbs: &["create"] };
    test(async |test| {
        let everything: Vec<_> = PATCHES.iter().copied().chain([CREATES]).collect();
        // The host may patch as the account, and not create.
        let mut objects = account::own(&test.namespace, "probe", &everything);
        objects.extend(account::impersonation(&test.namespace, "probe", PATCHES));
        test.apply(&objects).await?;
        probe_of(test, test.bare_controller("probe", "probe", json!({})).await?).await?;
        let object = |name: &str| self::map(&test.namespace, name, &[]);
        test.apply(&[object("there")]).await?;
        let calls = |absent: &str| {
            [
                ("apply", "there"),
                ("apply-forced", "there"),
                ("apply", absent),
                ("apply-forced", absent),
            ]
            .map(|(call, name)| json!({"call": call, "object": object(name)}))
        };
        let granted = answers(test, &calls("absent")).await?;
        assert_eq!(told(&granted), ["ok"; 4], "{granted:#?}");
        // It was staged with what staging asks for; now the account may no longer create.
        test.apply(&account::own(&test.namespace, "probe", PATCHES)).await?;
        let tries = AtomicUsize::new(1);
        within(LIMIT, "the account may not create any more", async || {
            // Another name and another number of calls, so that the answers are these.
            let others = tries.fetch_add(1, Ordering::Relaxed);
            let mut more = calls(&format!("absent-{others}")).to_vec();
            more.extend(std::iter::repeat_n(json!({"call": "now"}), others));
            let answers = answers(test, &more).await?;
            ensure!(told(&answers[..4]) == ["ok", "ok", "forbidden", "forbidden"], "{answers:#?}");
            let message = answers[2]["message"].as_str().unwrap_or_default();
            ensure!(message.contains("cannot create"), "{message}");
            Ok(())
        })
        .await
    })
}
