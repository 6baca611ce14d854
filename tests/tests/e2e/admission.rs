//! Who may ship and who may promote, as the chart's rules tell it to the API server.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::control_plane::client;
use e2e::helm::Helm;
use e2e::wait::within;
use e2e::{Test, host, manifest, test};
use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};

/// The API server reads new policies every few seconds.
const IN_FORCE: Duration = Duration::from_secs(60);

/// An account with the role `edit`, and its name as the API server has it.
async fn editor(test: &Test, name: &str) -> Result<(Client, String)> {
    let namespace = test.namespace.as_str();
    test.apply(&[
        json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": name, "namespace": namespace},
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": name, "namespace": namespace},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
        }),
    ])
    .await?;
    let token = host::token_of(&test.control_plane, (namespace, name)).await?;
    let file = test.control_plane.kubeconfig_with_token(&format!("{name}-{namespace}"), &token)?;
    Ok((client(&file).await?, test.username(name)))
}

async fn patched(user: &Client, test: &Test, patch: Value) -> Result<(), kube::Error> {
    let kind = manifest::resource("nagaya.dev/v1alpha1", "WasmController");
    let api = Api::<DynamicObject>::namespaced_with(user.clone(), &test.namespace, &kind);
    api.patch("web", &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
}

/// Refused by the rule, with words that say who may.
async fn is_refused(user: &Client, test: &Test, patch: Value, words: &str) -> Result<()> {
    let refused = patched(user, test, patch.clone()).await;
    let text = refused.err().with_context(|| format!("{patch} was taken"))?.to_string();
    ensure!(text.contains(words) && text.contains("admission.rules"), "{patch}: {text}");
    Ok(())
}

/// What the chart makes of a rule for this test's namespace.
async fn rules(test: &Test, ships: &str, promotes: &str) -> Result<Vec<Value>> {
    let rule = json!({
        "name": test.namespace, "namespaces": [test.namespace],
        "ship": {"users": [ships]}, "promote": {"users": [promotes]},
        "images": ["registry.example.com/"],
    });
    let values = test.folder().join("values.yaml");
    fs::write(&values, json!({"admission": {"rules": [rule]}}).to_string())?;
    let values = values.display().to_string();
    let helm = tokio::task::spawn_blocking(Helm::find).await??;
    let rendered = helm.run(&[
        "template",
        "nagaya",
        "deploy/chart",
        "-n",
        "nagaya-system",
        "-f",
        &values,
        "--show-only",
        "templates/admission.yaml",
    ])?;
    Ok(serde_saphyr::from_multiple(&rendered)?)
}

#[test]
fn the_charts_rules_say_who_ships_and_who_promotes() -> Result<()> {
    test(async |test| {
        let (ann, ships) = editor(test, "ann").await?;
        let (bob, promotes) = editor(test, "bob").await?;
        let objects = rules(test, &ships, &promotes).await?;
        test.bare_controller("web", "web", json!({"suspend": true})).await?;
        test.apply(&objects).await?;
        let mut tries = 0;
        within(IN_FORCE, "the rule is in force", async || {
            // The same one again would change nothing, and that is nobody's to refuse.
            tries += 1;
            let image = format!("other.example.com/web:{tries}");
            let image = json!({"spec": {"module": {"image": image, "digest": null}}});
            is_refused(&ann, test, image, "registry.example.com/").await
        })
        .await?;
        let image =
            json!({"spec": {"module": {"image": "registry.example.com/web:1", "digest": null}}});
        is_refused(&bob, test, image.clone(), "module, config or account").await?;
        patched(&ann, test, image).await?;
        let config = json!({"spec": {"config": {"a": 1}}});
        is_refused(&bob, test, config.clone(), "module, config or account").await?;
        patched(&ann, test, config).await?;
        let active = json!({"spec": {"rollout": {"active": "web-0123456789"}}});
        is_refused(&ann, test, active.clone(), "live revision").await?;
        patched(&bob, test, active).await?;
        let immediate = json!({"spec": {"rollout": {"strategy": "Immediate"}}});
        is_refused(&ann, test, immediate.clone(), "live revision").await?;
        patched(&bob, test, immediate).await?;
        let account = json!({"spec": {"serviceAccountName": "another"}});
        is_refused(&bob, test, account, "module, config or account").await?;
        // Now shipping is promoting, which nobody may do both of.
        let again = json!({"spec": {"module": {"image": "registry.example.com/web:2"}}});
        is_refused(&ann, test, again, "live revision").await?;
        patched(&bob, test, json!({"spec": {"suspend": false}})).await?;
        let name = format!("nagaya-{}", test.namespace);
        let gone = DeleteParams::default();
        Api::<ValidatingAdmissionPolicyBinding>::all(test.admin.clone())
            .delete(&name, &gone)
            .await?;
        Api::<ValidatingAdmissionPolicy>::all(test.admin.clone()).delete(&name, &gone).await?;
        Ok(())
    })
}
