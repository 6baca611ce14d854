//! The primary kind: fixed for life, of the cluster or of a namespace, perhaps not installed yet,
//! perhaps shared; and whose children are whose.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::account::{self, GUEST_RULES, Rule};
use e2e::component::Component;
use e2e::manifest::api_of;
use e2e::site::{datum, website};
use e2e::wait::within;
use e2e::{Test, test};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use nagaya::model::crd::WasmController;
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(30);

/// The same rights in the whole cluster, under names of this test's own.
fn cluster_wide(namespace: &str, objects: Vec<Value>) -> Vec<Value> {
    let widen = |mut object: Value| {
        let kind = object["kind"].as_str().unwrap_or_default().to_owned();
        if !kind.starts_with("Role") {
            return object;
        }
        let own =
            |name: &Value| json!(format!("{namespace}-{}", name.as_str().unwrap_or_default()));
        object["kind"] = json!(format!("Cluster{kind}"));
        object["metadata"] = json!({"name": own(&object["metadata"]["name"])});
        if kind == "RoleBinding" {
            object["roleRef"]["kind"] = json!("ClusterRole");
            object["roleRef"]["name"] = own(&object["roleRef"]["name"]);
        }
        object
    };
    objects.into_iter().map(widen).collect()
}

#[test]
fn the_primary_kind_is_fixed_for_life() -> Result<()> {
    test(async |test| {
        let config = json!({"reconcile": "write", "value": "first"});
        let (hostile, first) = test.hostile(json!({}), &config).await?;
        let component = Component::load("hostile")?;
        let config = json!({
            "reconcile": "grab:stolen",
            "primary": {"apiVersion": "v1", "kind": "ConfigMap"},
        });
        let other = hostile.push_config(&component, &config).await?;
        let message = hostile.refused(&other, "PrimaryChanged").await?;
        assert!(message.contains("Website") && message.contains("ConfigMap"), "{message}");
        // Naming it does not help it.
        let patched = hostile.promote(&other).await?;
        let seen = hostile.observed(patched.metadata.generation.context("no generation")?).await?;
        let status = seen.status.context("no status")?;
        assert_eq!((status.active, status.candidate), (Some(first), None));
        test.website("web", "Web").await?;
        test.written("web", "first").await?;
        assert_eq!(test.api::<ConfigMap>().get_opt("stolen").await?, None);
        Ok(())
    })
}

#[test]
fn a_primary_may_be_cluster_scoped() -> Result<()> {
    const RULES: &[Rule] = &[
        Rule { group: "", resource: "namespaces", verbs: &["get", "list", "watch"] },
        Rule {
            group: "",
            resource: "configmaps",
            verbs: &["get", "list", "watch", "create", "patch"],
        },
        Rule { group: "events.k8s.io", resource: "events", verbs: &["create"] },
    ];
    test(async |test| {
        let rights = account::objects(&test.namespace, "probe", RULES);
        test.apply(&cluster_wide(&test.namespace, rights)).await?;
        let one =
            test.another_namespace(&[("decisions.nagaya.dev/of", &test.namespace.clone())]).await?;
        let stranger = test.another_namespace(&[]).await?;
        let note = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "$name", "namespace": test.namespace},
            "data": {"config": "$uid"},
        });
        let config = json!({
            "calls": [{"call": "apply", "object": note}],
            "report": "terminal",
            "manifest": {
                "primary": {
                    "apiVersion": "v1", "kind": "Namespace",
                    "labelSelector": format!("decisions.nagaya.dev/of={}", test.namespace),
                },
                "writes": [{"apiVersion": "v1", "kind": "ConfigMap", "verbs": ["apply"]}],
            },
        });
        let probe = test.bare_controller("probe", "probe", json!({})).await?;
        let revision = probe.push_config(&Component::load("probe")?, &config).await?;
        let seen = probe.active(&revision).await?;
        let primary = seen.status.and_then(|status| status.primary).context("no primary")?;
        assert_eq!(primary.kind, "Namespace");
        let namespaces = Api::<Namespace>::all(test.admin.clone());
        let uid = namespaces.get(&one).await?.uid().context("no uid")?;
        test.written(&one, &uid).await?;
        test.idle("probe").await?;
        assert_eq!(test.api::<ConfigMap>().get_opt(&stranger).await?, None);
        // One that comes to match is one like any other.
        let label = json!({"decisions.nagaya.dev/of": test.namespace});
        let patch = Patch::Merge(json!({"metadata": {"labels": label}}));
        let uid = namespaces.patch(&stranger, &PatchParams::default(), &patch).await?.uid();
        test.written(&stranger, &uid.context("no uid")?).await
    })
}

/// A CRD of a group that only this test has.
fn gadgets(group: &str) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("gadgets.{group}")},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {
                "kind": "Gadget", "listKind": "GadgetList",
                "plural": "gadgets", "singular": "gadget",
            },
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object"}},
            }],
        },
    })
}

#[test]
fn a_controller_waits_for_its_primary_kind() -> Result<()> {
    test(async |test| {
        // RBAC takes names of kinds that do not exist; the rules of tests want them for ever.
        let group: &'static str = format!("{}.nagaya.example", test.namespace).leak();
        let verbs = GUEST_RULES[0].verbs;
        let rules = [GUEST_RULES, &[Rule { group, resource: "gadgets", verbs }]].concat();
        let hostile = test.guest("hostile", &rules, json!({})).await?;
        let config = json!({
            "reconcile": "write", "value": "at last",
            "primary": {"apiVersion": format!("{group}/v1"), "kind": "Gadget"},
        });
        let revision = hostile.push_config(&Component::load("hostile")?, &config).await?;
        let seen = hostile
            .until(LIMIT, "a condition that names the kind", |seen| {
                let conditions = seen.status.iter().flat_map(|status| &status.conditions);
                conditions.into_iter().any(|condition| {
                    condition.reason == "KindMissing"
                        && condition.message.contains(&format!("Gadget.{group}"))
                        && condition.message.contains("CustomResourceDefinition")
                })
            })
            .await?;
        assert_eq!(seen.status.and_then(|status| status.active), None);

        test.apply(&[gadgets(group)]).await?;
        hostile.active(&revision).await?;
        let gadget = json!({
            "apiVersion": format!("{group}/v1"), "kind": "Gadget",
            "metadata": {"name": "one", "namespace": test.namespace},
        });
        within(LIMIT, "a Gadget can be made", async || {
            test.apply(std::slice::from_ref(&gadget)).await
        })
        .await?;
        test.written("one", "at last").await?;

        // It goes, is said to be gone, and is watched again when it is back.
        let definitions = Api::<CustomResourceDefinition>::all(test.admin.clone());
        let name = format!("gadgets.{group}");
        definitions.delete(&name, &DeleteParams::default()).await?;
        let ill = hostile.condition("Degraded", "True").await?;
        assert_eq!(ill.reason, "KindNotServed", "{}", ill.message);
        assert!(ill.message.contains(&format!("Gadget.{group}")), "{}", ill.message);
        within(LIMIT, "the kind is there again", async || {
            test.apply(&[gadgets(group)]).await?;
            test.apply(std::slice::from_ref(&gadget)).await
        })
        .await?;
        let mut second = gadget.clone();
        second["metadata"]["name"] = json!("two");
        within(LIMIT, "a Gadget can be made", async || {
            test.apply(std::slice::from_ref(&second)).await
        })
        .await?;
        test.written("two", "at last").await?;
        hostile.condition("Degraded", "False").await?;

        hostile.delete().await?;
        hostile.gone(LIMIT).await?;
        definitions.delete(&name, &DeleteParams::default()).await?;
        Ok(())
    })
}

#[test]
fn two_controllers_may_have_one_primary_kind() -> Result<()> {
    test(async |test| {
        let component = Component::load("hostile")?;
        for name in ["one", "two"] {
            let controller = test.guest(name, GUEST_RULES, json!({})).await?;
            let config = json!({"reconcile": format!("grab:{name}"), "value": name});
            let revision = controller.push_config(&component, &config).await?;
            controller.active(&revision).await?;
        }
        test.website("web", "Web").await?;
        for name in ["one", "two"] {
            test.written(name, name).await?;
        }
        for (name, other) in [("one", "two"), ("two", "one")] {
            let controller = test.controller(name)?;
            // By itself the host looks at the others once a minute; a change makes it look now.
            controller.patch(&json!({"spec": {"limits": {"concurrency": 3}}})).await?;
            let other = format!("{}/{other}", test.namespace);
            let names = |seen: &WasmController| {
                seen.status.as_ref().is_some_and(|status| status.shares_primary_with == [&*other])
            };
            controller.until(LIMIT, &format!("{name} shares with {other}"), names).await?;
        }
        Ok(())
    })
}

/// A ConfigMap that somebody else has applied.
async fn theirs(test: &Test, name: &str, owner: Option<Value>) -> Result<()> {
    let object = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "ownerReferences": owner.into_iter().collect::<Vec<_>>()},
        "data": {"config": "theirs"},
    });
    let somebody = PatchParams::apply("somebody");
    test.api::<ConfigMap>().patch(name, &somebody, &Patch::Apply(&object)).await?;
    Ok(())
}

#[test]
#[expect(clippy::too_many_lines, reason = "one story of four writers")]
fn an_apply_takes_fields_by_force_only_of_the_primarys_child() -> Result<()> {
    test(async |test| {
        let config = json!({
            "calls": [],
            "manifest": {
                "primary": {"apiVersion": "examples.nagaya.dev/v1", "kind": "Website"},
                "owns": [{"apiVersion": "v1", "kind": "ConfigMap", "projection": "full"}],
                "writes": [{"apiVersion": "v1", "kind": "ConfigMap", "verbs": ["apply"]}],
            },
        });
        let probe = test.guest("probe", GUEST_RULES, json!({})).await?;
        let revision = probe.push_config(&Component::load("probe")?, &config).await?;
        probe.active(&revision).await?;
        test.website("web", "Web").await?;
        test.website("neighbour", "Web").await?;
        let owner = async |name: &str| {
            let websites = api_of(&test.admin, &website(&test.namespace, name, ""))?;
            let uid = websites.get(name).await?.uid();
            Ok::<_, anyhow::Error>(json!({
                "apiVersion": "examples.nagaya.dev/v1", "kind": "Website", "name": name,
                "uid": uid, "controller": true,
            }))
        };
        theirs(test, "child", Some(owner("web").await?)).await?;
        theirs(test, "neighbours", Some(owner("neighbour").await?)).await?;
        theirs(test, "stray", None).await?;
        theirs(test, "asked", None).await?;

        let call = |call: &str, name: &str| {
            let metadata = json!({"name": name, "namespace": test.namespace});
            json!({"call": call, "object": {
                "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata,
                "data": {"config": "ours"},
            }})
        };
        let calls = json!([
            call("apply", "child"),
            call("apply", "neighbours"),
            call("apply", "stray"),
            call("apply-forced", "asked"),
        ]);
        let websites = api_of(&test.admin, &website(&test.namespace, "web", ""))?;
        let annotations = json!({"probe.nagaya.dev/calls": calls.to_string()});
        let patch = Patch::Merge(json!({"metadata": {"annotations": annotations}}));
        websites.patch("web", &PatchParams::default(), &patch).await?;

        let maps = test.api::<ConfigMap>();
        within(LIMIT, "the answers", async || {
            let report = datum(&maps, "web-probe", "report").await?;
            let answers: Vec<Value> = serde_json::from_str(&report)?;
            let told: Vec<_> =
                answers.iter().map(|answer| answer["error"].as_str().unwrap_or("ok")).collect();
            ensure!(told == ["ok", "conflict", "conflict", "ok"], "{told:?}");
            // The other manager is named, so that a person knows whom to talk to.
            let message = answers[2]["message"].as_str().unwrap_or_default();
            ensure!(message.contains("somebody"), "{message}");
            Ok(())
        })
        .await?;
        for (name, value) in
            [("child", "ours"), ("neighbours", "theirs"), ("stray", "theirs"), ("asked", "ours")]
        {
            assert_eq!(datum(&maps, name, "config").await?, value, "{name}");
        }
        Ok(())
    })
}
