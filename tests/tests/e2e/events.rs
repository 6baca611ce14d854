//! Kubernetes Events are bounded: what comes again is counted, and no object is flooded.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::wait::within;
use e2e::{Test, test};
use k8s_openapi::api::events::v1::Event;
use kube::api::ListParams;
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(30);

/// The Events about a Website of this name.
async fn about(test: &Test, name: &str) -> Result<Vec<Event>> {
    let mut events = test.api::<Event>().list(&ListParams::default()).await?.items;
    events.retain(|event| {
        event.regarding.as_ref().is_some_and(|of| of.name.as_deref() == Some(name))
    });
    Ok(events)
}

#[test]
fn the_same_event_again_is_one_object_with_a_count() -> Result<()> {
    test(async |test| {
        test.hostile(json!({}), &json!({"reconcile": "events:1,requeue:20"})).await?;
        test.website("web", "Says the same again and again").await?;
        within(LIMIT, "twenty runs", async || {
            let runs = test.runs("hostile").await?;
            ensure!(runs >= 20.0, "{runs}");
            Ok(())
        })
        .await?;
        let events = within(LIMIT, "a series", async || {
            let events = about(test, "web").await?;
            let count = events.iter().find_map(|event| event.series.as_ref()).map(|one| one.count);
            ensure!(count.context("no series")? == 2, "{count:?}");
            Ok(events)
        })
        .await?;
        assert_eq!(events.len(), 1, "{events:?}");
        Ok(())
    })
}

#[test]
fn one_object_gets_twenty_five_events_at_once_and_another_its_own() -> Result<()> {
    test(async |test| {
        test.hostile(json!({}), &json!({"reconcile": "events:60"})).await?;
        test.website("loud", "Says sixty things").await?;
        within(LIMIT, "what is let through", async || {
            let count = about(test, "loud").await?.len();
            ensure!(count >= 25, "{count}");
            Ok(())
        })
        .await?;
        test.website("other", "Says sixty things too").await?;
        within(LIMIT, "the other's", async || {
            let count = about(test, "other").await?.len();
            ensure!(count >= 25, "{count}");
            Ok(())
        })
        .await?;
        for name in ["loud", "other"] {
            assert_eq!(about(test, name).await?.len(), 25, "{name}");
        }
        Ok(())
    })
}
