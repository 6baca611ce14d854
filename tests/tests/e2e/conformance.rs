//! The cases of `wit/conformance.json` on the host and a real server: what every SDK's cluster in memory answers too.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::account::{GUEST_RULES, Rule};
use e2e::component::Component;
use e2e::manifest::api_of;
use e2e::site::{datum, website};
use e2e::test;
use e2e::wait::within;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(30);
const SUITE: &str = include_str!("../../../wit/conformance.json");

/// Every field that is expected is there and alike; a null means that there is none.
fn fits(found: &Value, expected: &Value) -> bool {
    match expected {
        Value::Array(list) => found.as_array().is_some_and(|found| {
            found.len() == list.len() && found.iter().zip(list).all(|(one, other)| fits(one, other))
        }),
        Value::Object(fields) => {
            found.is_object() && fields.iter().all(|(field, one)| fits(&found[field], one))
        }
        other => found == other,
    }
}

#[test]
fn the_host_answers_as_the_contract_says() -> Result<()> {
    test(async |test| {
        // The garbage collector deletes what an owner that is not there controls.
        test.website("other", "Web").await?;
        let websites = api_of(&test.admin, &website(&test.namespace, "other", ""))?;
        let other = websites.get("other").await?.metadata.uid.unwrap_or_default();
        let placed = SUITE.replace("$namespace", &test.namespace).replace("$other", &other);
        let suite: Value = serde_json::from_str(&placed)?;
        let list = |field: &str| suite[field].as_array().cloned().unwrap_or_default();
        test.apply(&list("objects")).await?;
        let secrets = Rule { group: "", resource: "secrets", verbs: &["get"] };
        let rules = [GUEST_RULES, &[secrets]].concat();
        let probe = test.guest("probe", &rules, json!({})).await?;
        let config = json!({"calls": [], "manifest": suite["manifest"]});
        let revision = probe.push_config(&Component::load("probe")?, &config).await?;
        probe.active(&revision).await?;
        test.website("web", "Web").await?;

        let cases = list("cases");
        let calls: Value = cases.iter().map(|case| case["call"].clone()).collect();
        let uid = websites.get("web").await?.metadata.uid.unwrap_or_default();
        let annotations = json!({"probe.nagaya.dev/calls": calls.to_string()});
        let patch = Patch::Merge(json!({"metadata": {"annotations": annotations}}));
        websites.patch("web", &PatchParams::default(), &patch).await?;
        let maps = test.api::<ConfigMap>();
        let answers: Vec<Value> = within(LIMIT, "the answers", async || {
            let report = datum(&maps, "web-probe", "report").await?;
            let answers: Vec<Value> = serde_json::from_str(&report)?;
            ensure!(answers.len() == cases.len(), "{} answers", answers.len());
            Ok(answers)
        })
        .await?;
        let wrong: Vec<_> = cases
            .iter()
            .zip(&answers)
            .filter(|(case, answer)| {
                let expected = case["expect"].to_string();
                let expected = expected.replace("$name", "web").replace("$uid", &uid);
                let expected: Value = serde_json::from_str(&expected).unwrap_or_default();
                match expected.get("error") {
                    Some(error) => answer["error"] != *error,
                    None => answer.get("ok").is_none_or(|ok| !fits(ok, &expected["ok"])),
                }
            })
            .map(|(case, answer)| {
                format!("{}: {answer} instead of {}", case["name"], case["expect"])
            })
            .collect();
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    })
}
