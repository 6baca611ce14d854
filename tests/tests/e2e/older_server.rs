//! The watches and rights on a server like those before 1.34 and 1.36: without initial watch events, and with only the
//! whole right to act as an account.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::account::{self, GUEST_RULES};
use e2e::component::Component;
use e2e::control_plane::{Options, Program};
use e2e::controller::Controller;
use e2e::site::{datum, owning};
use e2e::wait::within;
use e2e::{Test, test_alone};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::api::DeleteParams;
use nagaya::model::crd::WasmController;
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(30);
/// A denial counts for 30 s at most; an outage makes pauses of seconds.
const RETURNS: Duration = Duration::from_secs(60);

fn older() -> Options {
    let gates = "--feature-gates=WatchList=false,ConstrainedImpersonation=false";
    Options {
        controller_manager: true,
        apiserver_flags: vec![gates.to_owned()],
        ..Options::default()
    }
}

/// Waits for a condition whose message has `text`; the message.
async fn message_with(controller: &Controller, text: &str) -> Result<String> {
    let find = |seen: &WasmController| {
        let conditions = seen.status.iter().flat_map(|status| &status.conditions);
        let mut messages = conditions.map(|condition| condition.message.clone());
        messages.find(|message| message.contains(text))
    };
    let what = format!("a condition that says {text}");
    let seen = controller.until(LIMIT, &what, |seen| find(seen).is_some()).await?;
    find(&seen).context("no such message")
}

async fn do_as_told(test: &Test, message: &str) -> Result<()> {
    let start = message.find("apiVersion:").with_context(|| format!("no YAML in {message}"))?;
    let documents = message[start..].split("---\n");
    let objects =
        documents.map(|text| Ok(serde_saphyr::from_str(text)?)).collect::<Result<Vec<_>>>();
    test.apply(&objects.with_context(|| format!("the YAML of {message}"))?).await
}

/// Children come, are made again, and their end is heard of.
async fn works(test: &Test, name: &str) -> Result<()> {
    test.website(name, name).await?;
    let maps = test.api::<ConfigMap>();
    within(RETURNS, &format!("the child of {name}"), async || datum(&maps, name, "config").await)
        .await?;
    let uid = maps.get(name).await?.metadata.uid;
    maps.delete(name, &DeleteParams::default()).await?;
    within(RETURNS, &format!("another child of {name}"), async || {
        let now = maps.get(name).await?.metadata.uid;
        ensure!(now != uid, "it is still the first one");
        Ok(())
    })
    .await
}

#[test]
fn an_older_server_is_listed_watched_and_acted_on_by_its_own_right() -> Result<()> {
    test_alone(older(), async |test, server| {
        // The rights that newer servers have are there, and do nothing.
        let mut config = owning("write");
        config["value"] = json!("written");
        test.apply(&account::objects(&test.namespace, "older", GUEST_RULES)).await?;
        let older = test.bare_controller("older", "older", json!({})).await?;
        let revision = older.push_config(&Component::load("hostile")?, &config).await?;
        let message = message_with(&older, "may not act as").await?;
        ensure!(message.contains(r#"verbs: ["impersonate"]"#), "{message}");
        ensure!(!message.contains("impersonate-on"), "{message}");
        do_as_told(test, &message).await?;
        older.active(&revision).await?;
        works(test, "first").await?;

        // What was forgotten meanwhile is listed again.
        server.compact().await?;
        server.restart(Program::ApiServer).await?;
        works(test, "after").await?;

        let bindings = test.api::<RoleBinding>();
        let binding = bindings.get("older").await?;
        bindings.delete("older", &DeleteParams::default()).await?;
        message_with(&older, &test.username("older")).await?;
        let again = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": "older", "namespace": test.namespace},
            "roleRef": binding.role_ref, "subjects": binding.subjects,
        });
        test.apply(&[again]).await?;
        works(test, "returned").await
    })
}
