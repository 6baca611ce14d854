//! What stands in the way of a promotion.

use super::*;

#[test]
fn gates_hold_what_promotes_itself_and_a_promotion_by_hand() -> Result<()> {
    test(async |test| {
        let (shaper, first) = live(test, &json!({}), 10).await?;
        let gates = json!({"maxChangedObjects": "20%", "protectedPaths": [{"kind": "Deployment.apps", "path": "spec.template"}],
            "enforcement": "Enforce"});
        shaper.patch(&json!({"spec": {"rollout": {"autoPromote": true, "gates": gates}}})).await?;
        let held = candidate(&shaper, &json!({"image": "web:2"})).await?;
        plan(&shaper, &held).await?;
        let gated = shaper.condition("Gated", "True").await?;
        within(LIMIT, "the gate holds", async || {
            ensure!(reason(&shaper).await? == "GateHolds");
            Ok(())
        })
        .await?;
        let gated = match gated.reason.as_str() {
            "GateHolds" => gated,
            _ => shaper.condition("Gated", "True").await?,
        };
        for words in [
            "maxChangedObjects: 10 objects would change, and 20% of 10, that is 2, may",
            "/site-0",
            "protectedPaths",
        ] {
            ensure!(gated.message.contains(words), "{words}: {}", gated.message);
        }
        // By hand, with kubectl's means.
        shaper.promote(&held).await?;
        let seen =
            shaper.observed(shaper.get().await?.metadata.generation.unwrap_or_default()).await?;
        let active = |seen: &nagaya::model::crd::WasmController| {
            seen.status.as_ref().and_then(|status| status.active.clone())
        };
        ensure!(active(&seen).as_deref() == Some(&first), "{:?}", seen.status);
        ensure!(
            condition(&seen, "Degraded").is_some_and(|one| one.status == "False"),
            "what runs is well"
        );
        // A version that passes goes live by itself, once nobody names another.
        shaper.patch(&json!({"spec": {"rollout": {"active": null}}})).await?;
        let passes = shaper
            .push_config(&Component::load("shaper")?, &json!({"image": null, "none": 1}))
            .await?;
        shaper.active(&passes).await?;
        // A rollback is never held.
        shaper.roll_back(&passes, &first).await?;
        shaper.active(&first).await?;
        advice_is_passed_over(test, &shaper).await
    })
}

/// A promotion by hand goes through where gates advise, and an Event says so.
async fn advice_is_passed_over(test: &Test, shaper: &Controller) -> Result<()> {
    shaper.patch(&json!({"spec": {"rollout": {"autoPromote": false, "gates": {"enforcement": "Advise"}}}})).await?;
    let advised = candidate(shaper, &json!({"image": "web:3"})).await?;
    plan(shaper, &advised).await?;
    within(LIMIT, "the gate holds", async || {
        ensure!(reason(shaper).await? == "GateHolds");
        Ok(())
    })
    .await?;
    shaper.promote(&advised).await?;
    shaper.active(&advised).await?;
    within(LIMIT, "an Event says it", async || {
        let events =
            test.api::<k8s_openapi::api::events::v1::Event>().list(&ListParams::default()).await?;
        let found =
            events.items.iter().any(|event| event.reason.as_deref() == Some("GatesPassedOver"));
        ensure!(found, "{} events", events.items.len());
        Ok(())
    })
    .await
}

#[test]
fn what_makes_no_sense_together_is_refused_by_the_server() -> Result<()> {
    test(async |test| {
        let shaper = test.guest("shaper", RULES, json!({})).await?;
        for (rollout, words) in [
            (
                json!({"strategy": "Immediate", "autoPromote": true}),
                "autoPromote is for the strategy BlueGreen",
            ),
            (
                json!({"strategy": "Immediate", "gates": {"enforcement": "Enforce"}}),
                "enforced with the strategy BlueGreen",
            ),
            (json!({"gates": {"maxChangedObjects": "many"}}), "a share like 5%"),
            (json!({"gates": {"maxChangedObjects": -1}}), "a share like 5%"),
            (json!({"gates": {"maxDeletes": -1}}), "maxDeletes"),
            (json!({"shadow": {"percent": 101}}), "percent"),
            (json!({"plan": "Sometimes"}), "Unsupported value"),
        ] {
            let refused = shaper.patch(&json!({"spec": {"rollout": rollout}})).await;
            let text =
                format!("{:#}", refused.err().with_context(|| format!("{rollout} was taken"))?);
            ensure!(text.contains(words), "{rollout}: {text}");
        }
        Ok(())
    })
}
