//! No preview changes anything, whatever the guest and however often it runs.

use super::*;

/// Websites in these tests.
const SITES: i64 = 5;

/// What the hostile guest is told to do.
const STEPS: &[&str] = &[
    "write",
    "trap",
    "panic",
    "exit:3",
    "loop",
    "stack",
    "alloc",
    "handles:2000",
    "log-flood:100",
    "huge-output:4",
    "deep-json:60",
    "storm:50",
    "grab:other",
    "events:20",
    "names:700",
    "write,sleep:200,write,trap",
    "retry",
    "terminal",
    "invalid",
    "explore",
    "huge-answer",
];

#[test]
fn a_preview_changes_nothing_whatever_the_guest() -> Result<()> {
    test_in_turn(async |test| {
        let (hostile, _) =
            test.hostile(json!({}), &json!({"reconcile": "write", "value": 1})).await?;
        for number in 0..SITES {
            test.website(&format!("site-{number}"), "one").await?;
            test.written(&format!("site-{number}"), "1").await?;
        }
        test.idle("hostile").await?;
        hostile.patch(&json!({"spec": {"rollout": {"shadow": {"percent": 100}}, "limits": {"deadline": "500ms"}}})).await?;
        let component = Component::load("hostile")?;
        for steps in STEPS {
            let mut before = versions(test).await?;
            let log = test.audit().map(|log| log.from_now()).transpose()?;
            let config = json!({"reconcile": steps, "value": 2, "message": "no"});
            let revision = hostile.push_config(&component, &config).await?;
            hostile.candidate(&revision).await?;
            let whole = plan(&hostile, &revision).await.with_context(|| (*steps).to_owned())?;
            ensure!(whole.objects.looked == SITES, "{steps}: {}", words(&whole));
            ensure!(versions(test).await? == before, "{steps}: a plan has changed something");
            if let Some(log) = &log {
                let (real, _) = requests(log, &test.username("hostile"))?;
                ensure!(real.is_empty(), "{steps}: {real:?}");
            }
            live_runs_are_repeated(test, steps).await?;
            if let Some(log) = &log {
                let previews = |event: &audit::Event| event.user_agent.contains("; preview=");
                let real: Vec<_> = log.events()?.into_iter().filter(previews).collect();
                let is_read =
                    |event: &audit::Event| ["get", "list", "watch"].contains(&&*event.verb);
                let real = real.iter().filter(|event| !is_read(event) && !event.is_dry_run());
                let real: Vec<_> = real.map(audit::Event::summary).collect();
                ensure!(real.is_empty(), "{steps}: {real:?}");
            }
            let mut after = versions(test).await?;
            // The test itself changes Websites.
            for all in [&mut before, &mut after] {
                all.retain(|object, _| !object.starts_with("Website "));
            }
            ensure!(after == before, "{steps}: a shadow has changed something");
        }
        let unseen = test.host.metrics().await?.sum("nagaya_ryow_timeouts_total", &[]);
        ensure!(unseen == 0.0, "no live run waits for what a preview would have written");
        Ok(())
    })
}

/// Lets the live revision run for every Website, which writes what it did before, nothing, until all are repeated.
async fn live_runs_are_repeated(test: &Test, steps: &str) -> Result<()> {
    let controller = format!("{}/hostile", test.namespace);
    let runs = async || -> Result<f64> {
        let metrics = test.host.metrics().await?;
        Ok(metrics.sum("nagaya_shadow_runs_total", &[("controller", &controller)]))
    };
    let seen = runs().await?;
    for number in 0..SITES {
        test.website(&format!("site-{number}"), steps).await?;
    }
    within(LIMIT, &format!("live runs are repeated with {steps}"), async || {
        let repeated = runs().await? - seen;
        ensure!(repeated >= 5.0, "{repeated} were");
        Ok(())
    })
    .await
}

#[test]
fn a_shadow_repeats_live_runs_and_changes_nothing() -> Result<()> {
    test(async |test| {
        let (shaper, _) = live(test, &json!({}), 5).await?;
        shaper.patch(&json!({"spec": {"rollout": {"plan": "Off", "shadow": {"percent": 100}, "gates": {"minShadowRuns": 3}}}})).await?;
        let same = candidate(&shaper, &json!({"none": 1})).await?;
        ensure!(reason(&shaper).await? == "GatesWait", "it waits for shadow runs");
        let shadow = async |revision: &str,
                            wanted: &dyn Fn(&ShadowStatus) -> bool|
               -> Result<ShadowStatus> {
            let mut title = 0;
            within(LIMIT, &format!("{revision} has shadow runs"), async || {
                title += 1;
                for number in 0..5 {
                    test.website(&format!("site-{number}"), &format!("title {title}")).await?;
                }
                let seen = shaper.revisions().await?;
                let one =
                    seen.into_iter().find(|one| one.metadata.name.as_deref() == Some(revision));
                let told = one.and_then(|one| one.status).and_then(|status| status.shadow);
                let told = told.unwrap_or_default();
                ensure!(wanted(&told), "{told:?}");
                Ok(told)
            })
            .await
        };
        let told = shadow(&same, &|told| told.runs >= 5).await?;
        ensure!(told.differing + told.failed + told.untold == 0, "{told:?}");
        within(LIMIT, "no gate holds", async || {
            let seen = shaper.get().await?;
            ensure!(condition(&seen, "Gated").is_none(), "{:?}", condition(&seen, "Gated"));
            Ok(())
        })
        .await?;
        let other = candidate(&shaper, &json!({"label": "front"})).await?;
        let told = shadow(&other, &|told| told.differing >= 2).await?;
        ensure!(told.last[0].text.contains("metadata.labels.tier"), "{told:?}");
        within(LIMIT, "the gate holds", async || {
            ensure!(reason(&shaper).await? == "GateHolds");
            Ok(())
        })
        .await?;
        let deployments =
            test.api::<Deployment>().list(&ListParams::default().labels("tier")).await?;
        ensure!(deployments.items.is_empty(), "it has written");
        Ok(())
    })
}
