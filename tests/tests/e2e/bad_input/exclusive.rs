//! A primary kind that a controller has for itself.

use anyhow::{Context, Result, ensure};
use e2e::account::GUEST_RULES;
use e2e::component::Component;
use e2e::controller::{Controller, STAGED_WITHIN, condition};
use e2e::site::datum;
use e2e::wait::within;
use e2e::{Test, test};
use k8s_openapi::api::core::v1::ConfigMap;
use nagaya::model::crd::WasmController;
use serde_json::{Value, json};

use super::{LIMIT, says};

/// A guest called `name` that writes a ConfigMap of that name.
fn writing(name: &str) -> Value {
    json!({"reconcile": format!("grab:{name}"), "value": name})
}

async fn guest(test: &Test, name: &str, exclusive: bool) -> Result<Controller> {
    test.guest(name, GUEST_RULES, json!({"exclusive": exclusive})).await
}

fn is_live(seen: &WasmController) -> bool {
    seen.status.as_ref().is_some_and(|status| status.active.is_some())
}

#[test]
fn f46_two_teams_claim_one_kind_at_once() -> Result<()> {
    test(async |test| {
        let (one, two) = (guest(test, "one", true).await?, guest(test, "two", true).await?);
        let component = Component::load("hostile")?;
        let (first, second) = (writing("one"), writing("two"));
        let pushed = tokio::try_join!(
            one.push_config(&component, &first),
            two.push_config(&component, &second)
        );
        let revisions = pushed?;
        let (holder, other, waiting) = within(STAGED_WITHIN, "one is live", async || {
            let (a, b) = (is_live(&one.get().await?), is_live(&two.get().await?));
            ensure!(a || b, "neither is live");
            Ok(if a { (&one, &two, &revisions.1) } else { (&two, &one, &revisions.0) })
        })
        .await?;
        let message = other.refused(waiting, "Conflict").await?;
        let named = format!("{}/{}", test.namespace, holder.name());
        says(&message, &[&named, "Website", "spec.scope"]);
        let seen = other.get().await?;
        assert!(!is_live(&seen) && is_live(&holder.get().await?));
        let degraded = condition(&seen, "Degraded").context("no condition Degraded")?;
        assert_eq!((degraded.status.as_str(), degraded.reason.as_str()), ("True", "Conflict"));
        let maps = test.api::<ConfigMap>();
        test.website("web", "Web").await?;
        let written = async || datum(&maps, holder.name(), "config").await;
        within(LIMIT, "the holder's write", written).await?;
        assert_eq!(
            (maps.get_opt(other.name()).await?, test.runs(other.name()).await?),
            (None, 0.0)
        );

        // Who waited is next, by itself.
        holder.delete().await?;
        holder.gone(LIMIT).await?;
        other.active(waiting).await?;
        let written = async || datum(&maps, other.name(), "config").await;
        within(LIMIT, "the other's write", written).await?;
        Ok(())
    })
}

#[test]
fn a_claim_by_the_elder_stops_the_younger_until_it_is_given_up() -> Result<()> {
    test(async |test| {
        let component = Component::load("hostile")?;
        let elder = guest(test, "elder", false).await?;
        elder.active(&elder.push_config(&component, &writing("elder")).await?).await?;
        // A newcomer cannot have for itself what another reconciles.
        let younger = guest(test, "younger", true).await?;
        let revision = younger.push_config(&component, &writing("younger")).await?;
        let message = younger.refused(&revision, "Conflict").await?;
        says(&message, &[&format!("{}/elder", test.namespace), "reconciles it already"]);
        younger.patch(&json!({"spec": {"exclusive": false}})).await?;
        younger.active(&revision).await?;

        elder.patch(&json!({"spec": {"exclusive": true}})).await?;
        let ready = younger.condition("Ready", "False").await?;
        assert_eq!(ready.reason, "Conflict", "{}", ready.message);
        test.idle("younger").await?;
        let runs = test.runs("younger").await?;
        test.website("web", "Web").await?;
        let maps = test.api::<ConfigMap>();
        within(LIMIT, "the elder's write", async || datum(&maps, "elder", "config").await).await?;
        assert_eq!((test.runs("younger").await?, maps.get_opt("younger").await?), (runs, None));

        elder.patch(&json!({"spec": {"exclusive": false}})).await?;
        younger.condition("Ready", "True").await?;
        within(LIMIT, "the younger's", async || datum(&maps, "younger", "config").await).await?;
        Ok(())
    })
}
