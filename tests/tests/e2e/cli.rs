//! The command line saves typing and does nothing that a patch and a PUT would not.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::component::Component;
use e2e::manifest;
use e2e::site::{DESIGN, children, datum};
use e2e::wait::within;
use e2e::{Test, test};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;
use nagaya::model::crd::revision_name;
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(30);

/// Runs a verb on the example in the test's namespace; what it printed.
async fn nagaya(test: &Test, arguments: &[&str]) -> Result<String> {
    let mut arguments = arguments.to_vec();
    arguments.extend(["-n", &test.namespace]);
    test.cli().run(&arguments).await
}

async fn labelled(test: &Test, wanted: usize) -> Result<()> {
    within(LIMIT, &format!("{wanted} children of version 2"), async || {
        let all = children(&test.admin, &test.namespace).await?;
        let labelled = all.iter().filter(|child| child.labels().contains_key(DESIGN)).count();
        ensure!(labelled == wanted && all.len() == 3, "{labelled} of {}", all.len());
        Ok(())
    })
    .await
}

#[test]
fn a_team_pushes_promotes_and_rolls_back() -> Result<()> {
    test(async |test| {
        let website = test.example("website").await?;
        let files = [Component::load("website_v1")?, Component::load("website_v2")?];
        let [v1, v2] = files.each_ref().map(|file| revision_name("website", &file.digest, None));
        let [first, second] = files.each_ref().map(|file| file.path.to_string_lossy().into_owned());

        let said = nagaya(test, &["push", "website", &first]).await?;
        assert!(said.contains(&v1), "{said}");
        website.active(&v1).await?;
        test.website("web", "Web").await?;
        labelled(test, 0).await?;
        let said = nagaya(test, &["push", "website", &second]).await?;
        assert!(said.contains(&v2), "{said}");
        let seen = website.candidate(&v2).await?.status.unwrap_or_default();
        assert_eq!(seen.active.as_deref(), Some(&*v1));

        let said = nagaya(test, &["get", "website"]).await?;
        assert!(said.contains(&v1) && said.contains(&v2), "{said}");
        let json: Value =
            serde_json::from_str(&nagaya(test, &["get", "website", "-o", "json"]).await?)
                .context("-o json prints JSON")?;
        assert!(json.to_string().contains(&v2), "{json}");

        nagaya(test, &["promote", "website"]).await?;
        website.active(&v2).await?;
        labelled(test, 3).await?;
        nagaya(test, &["rollback", "website"]).await?;
        let seen = website.active(&v1).await?;
        assert_eq!(seen.spec.rollout.rejected, [v2.clone()]);
        labelled(test, 0).await?;
        nagaya(test, &["promote", "website", "--revision", &v2]).await?;
        let seen = website.active(&v2).await?;
        assert!(seen.spec.rollout.rejected.is_empty());
        labelled(test, 3).await
    })
}

/// With what `nagaya rbac` prints and nothing else; that each rule is needed the rights' own tests show.
#[test]
fn what_rbac_prints_is_all_that_a_component_needs() -> Result<()> {
    test(async |test| {
        let file = Component::load("first")?.path.to_string_lossy().into_owned();
        let printed = nagaya(test, &["rbac", &file]).await?;
        test.apply(&manifest::parse(&printed)?).await?;
        let said = nagaya(test, &["rbac", &file, "-o", "json"]).await?;
        let said: Value = serde_json::from_str(&said)?;
        let account = said["account"].as_array().context("no rights")?;
        let expected = ["create", "get", "list", "patch", "watch"]
            .map(|verb| json!(format!("{verb} configmaps in namespace {}", test.namespace)));
        assert!(expected.iter().all(|right| account.contains(right)), "{said}");
        assert!(!account.iter().any(|right| right.to_string().contains("delete")), "{said}");

        let controller = test.bare_controller("first", "first", json!({})).await?;
        nagaya(test, &["push", "first", &file]).await?;
        let digest = Component::load("first")?.digest;
        controller.active(&revision_name("first", &digest, None)).await?;
        let greeting = json!({
            "apiVersion": "examples.nagaya.dev/v1", "kind": "Greeting",
            "metadata": {"name": "hello", "namespace": test.namespace},
            "spec": {"name": "Nagaya"},
        });
        test.apply(&[greeting]).await?;
        let maps = test.api::<ConfigMap>();
        within(LIMIT, "the words", async || {
            ensure!(datum(&maps, "hello", "words").await? == "Hello, Nagaya!");
            Ok(())
        })
        .await
    })
}

#[test]
fn what_inspect_shows_is_what_the_host_would_find() -> Result<()> {
    test(async |test| {
        let file = Component::load("first")?.path.to_string_lossy().into_owned();
        let said = test.cli().run(&["inspect", &file, "-o", "json"]).await?;
        let said: Value = serde_json::from_str(&said)?;
        assert_eq!(said["manifest"]["primary"]["kind"]["kind"], "Greeting", "{said}");
        assert_eq!(said["digest"], Component::load("first")?.digest);
        let text = test.cli().run(&["inspect", &file]).await?;
        assert!(text.contains("owns        ConfigMap (v1), metadata"), "{text}");
        // What the host would refuse is refused here, in the same words.
        let http = Component::load("http_user")?.path.to_string_lossy().into_owned();
        let output = test.cli().output(&["inspect", &http]).await?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && said.contains("outbound HTTP is not built yet"),
            "{said}"
        );
        Ok(())
    })
}

#[test]
fn an_aborted_candidate_does_not_go_live() -> Result<()> {
    test(async |test| {
        let website = test.example("website").await?;
        let files = [Component::load("website_v1")?, Component::load("website_v2")?];
        let [v1, v2] = files.each_ref().map(|file| revision_name("website", &file.digest, None));
        for file in &files {
            nagaya(test, &["push", "website", &file.path.to_string_lossy()]).await?;
        }
        website.candidate(&v2).await?;
        nagaya(test, &["abort", "website"]).await?;
        let seen = website
            .until(LIMIT, "no candidate", |seen| {
                seen.status.as_ref().is_some_and(|status| status.candidate.is_none())
            })
            .await?;
        assert_eq!(seen.spec.rollout.rejected, [v2]);
        assert_eq!(seen.status.unwrap_or_default().active.as_deref(), Some(&*v1));
        let output = test.cli().output(&["promote", "website", "-n", &test.namespace]).await?;
        assert!(!output.status.success(), "there is nothing to promote");
        Ok(())
    })
}

#[test]
fn a_mistake_is_answered_with_what_to_do() -> Result<()> {
    test(async |test| {
        let output = test.cli().output(&["promote", "nobody", "-n", &test.namespace]).await?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("nobody"), "{said}");
        let file = Component::load("hostile")?.path.to_string_lossy().into_owned();
        let output = test.cli().output(&["push", "nobody", &file, "-n", &test.namespace]).await?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("nobody"), "{said}");
        Ok(())
    })
}
