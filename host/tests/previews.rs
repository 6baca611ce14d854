//! Runs whose writes are only tried: what they read, what they leave, and plans over many objects.

use std::time::Duration;

use nagaya::sandbox::Action;
use serde_json::{Value, json};

use crate::fake::{
    Asked, Fake, Guest, Host, Stop,
    guest::{Answer, Cx, child, config_map, site, sites},
    host::{condition, what},
};

const SITES: &str = "demo/sites";

/// One ConfigMap with this text for each Site.
fn one_child(name: &str, text: &'static str) -> Guest {
    Guest::new(name, sites(), move |cx| async move {
        let Some(site) = cx.site().await? else { return Ok(Action::AwaitChange) };
        cx.apply(child(&site, cx.name(), text)).await?;
        Ok(Action::AwaitChange)
    })
}

/// Blue-green, with so many Sites whose ConfigMaps are there.
async fn live(api: &Fake, guest: &Guest, sites: usize) -> Host {
    let host = Host::over(api, guest).await;
    api.edit(&what(SITES), |object| {
        object["spec"]["rollout"] = json!({ "strategy": "BlueGreen" });
        object["spec"]["limits"] = json!({ "writesPerMinute": 1_000_000 });
    });
    for number in 0..sites {
        api.put(site(&format!("site-{number:05}")));
    }
    api.until("the children are there", |api: &Fake| {
        (api.names("configmaps").len() >= sites).then_some(())
    })
    .await;
    api.quiet().await;
    host
}

/// Stages `guest` and waits until its plan is as `wanted`; the plan.
async fn planned(api: &Fake, host: &Host, guest: &Guest, wanted: impl Fn(&Value) -> bool) -> Value {
    host.upload(guest);
    api.edit(&what(SITES), |object| {
        object["spec"]["module"]["digest"] = guest.digest().to_string().into();
    });
    let digest = guest.digest().to_string();
    api.until("the plan is so", |api: &Fake| {
        let names = api.names("wasmrevisions");
        let revisions =
            names.iter().filter_map(|name| api.get(&name.replace('/', "/wasmrevisions/")));
        let mut plans = revisions.filter(|one| one["spec"]["digest"] == *digest);
        plans.find_map(|one| Some(one["status"]["plan"].clone()).filter(|plan| wanted(plan)))
    })
    .await
}

fn is_whole(plan: &Value) -> bool {
    plan["phase"] == "Complete"
}

/// The writes of the guests' account, real ones and dry runs.
fn writes(api: &Fake) -> (Vec<String>, usize) {
    let all = api.asked();
    let own = all.iter().filter(|asked| asked.account == SITES && asked.method != "GET");
    let (dry, real): (Vec<_>, Vec<_>) = own.partition(|asked| asked.is_dry_run());
    (real.into_iter().map(Asked::shown).collect(), dry.len())
}

/// Writes, and reads each time what it would have written.
async fn reads_its_own_writes(cx: Cx) -> Answer {
    let Some(site) = cx.site().await? else { return Ok(Action::AwaitChange) };
    let wrong =
        |what: &str, found: &dyn std::fmt::Debug| Stop::terminal(&format!("{what}: {found:?}"));
    let made = format!("{}-new", cx.name());
    cx.apply(child(&site, cx.name(), "changed")).await?;
    cx.apply(child(&site, &made, "new")).await?;
    let own = cx.get("v1", "ConfigMap", cx.name()).await?;
    if own.as_ref().is_none_or(|own| own["data"]["text"] != "changed") {
        return Err(wrong("its own change", &own));
    }
    let names = cx.list("v1", "ConfigMap").await?;
    if !names.contains(&made) {
        return Err(wrong("a list with what it made", &names));
    }
    cx.delete("v1", "ConfigMap", &made).await?;
    if let Some(gone) = cx.get("v1", "ConfigMap", &made).await? {
        return Err(wrong("what it has deleted again", &gone));
    }
    if cx.name() == "site-00000" {
        cx.delete("v1", "ConfigMap", "site-00000-old").await?;
        let names = cx.list("v1", "ConfigMap").await?;
        if names.iter().any(|name| name == "site-00000-old" || *name == made) {
            return Err(wrong("a list without what it deleted", &names));
        }
    }
    cx.apply_status(json!({ "ready": true })).await?;
    let site = cx.site().await?.unwrap_or_default();
    if site["status"]["ready"] != true || site["spec"]["replicas"] != 1 {
        return Err(wrong("its status", &site));
    }
    cx.event("Done", "it is")?;
    Ok(Action::AwaitChange)
}

#[tokio::test(start_paused = true)]
async fn a_previewed_run_reads_what_it_would_have_written() {
    let api = Fake::new();
    let host = live(&api, &one_child("one", "hello"), 2).await;
    api.put(config_map("site-00000-old", "x"));
    let before = writes(&api).0.len();
    let candidate = Guest::new("two", sites(), reads_its_own_writes);
    let events = api.names("events").len();
    let plan = planned(&api, &host, &candidate, is_whole).await;
    assert_eq!(plan["objects"]["failed"], Value::from(0), "{plan}");
    let expected = json!({ "total": 2, "looked": 2, "changed": 2, "failed": 0, "failingAlready": 0, "untold": 0, "creates": 0, "updates": 4, "deletes": 1 });
    assert_eq!(plan["objects"], expected, "{plan}");
    let count = |kind: &str, objects: i64| json!({ "kind": kind, "objects": objects });
    assert_eq!(
        plan["updates"],
        json!([count("ConfigMap", 2), count("Site.example.io", 2)]),
        "{plan}"
    );
    assert_eq!(plan["deletes"], json!([count("ConfigMap", 1)]), "{plan}");
    assert!(plan.get("creates").is_none(), "made and deleted is nothing: {plan}");
    assert_eq!(plan["events"], 2, "{plan}");
    let (real, dry) = writes(&api);
    assert_eq!(real.len(), before, "{real:?}");
    assert!(dry >= 7, "{dry}");
    assert_eq!(api.names("configmaps").len(), 3);
    assert_eq!(
        api.names("events").iter().filter(|name| name.contains("site-")).count(),
        0,
        "{events}"
    );
    host.stop().await;
}

#[tokio::test(start_paused = true)]
async fn twenty_thousand_objects_are_planned_in_a_fixed_space() {
    let api = Fake::new();
    let host = live(&api, &one_child("one", "hello"), 20_000).await;
    let before = writes(&api).0.len();
    let plan = planned(&api, &host, &one_child("same", "hello"), is_whole).await;
    assert_eq!(
        (&plan["objects"]["looked"], &plan["objects"]["changed"]),
        (&json!(20_000), &json!(0)),
        "{plan}"
    );
    assert_eq!(writes(&api), (writes(&api).0, 0), "not one request");
    // At the pace of previews it takes more than two minutes.
    let changed = one_child("two", "changed");
    let half = |plan: &Value| plan["objects"]["looked"].as_i64() > Some(10_000);
    planned(&api, &host, &changed, half).await;
    let plan = planned(&api, &host, &changed, is_whole).await;
    assert_eq!(
        plan["paths"],
        json!([{ "kind": "ConfigMap", "path": "data.text", "objects": 20_000 }])
    );
    assert_eq!(plan["objects"]["changed"], 20_000);
    assert!(plan.to_string().len() < 16 << 10, "{} bytes", plan.to_string().len());
    assert_eq!(writes(&api).0.len(), before);
    host.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_plan_goes_on_where_its_host_has_ended() {
    let api = Fake::new();
    let guest = one_child("one", "hello");
    let host = live(&api, &guest, 300).await;
    // A burst of a hundred, then ten a second: there is a middle.
    api.edit(&what(SITES), |object| object["spec"]["limits"] = json!({ "writesPerMinute": 600 }));
    let candidate = one_child("two", "changed");
    let open =
        |plan: &Value| plan["phase"] == "Running" && plan["objects"]["looked"].as_i64() > Some(50);
    let half = planned(&api, &host, &candidate, open).await;
    host.stop().await;
    candidate.runs();
    let host = Host::standby(&api, None).await;
    host.upload(&guest);
    host.upload(&candidate);
    host.lead();
    let whole = planned(&api, &host, &candidate, is_whole).await;
    assert_eq!(whole["startedAt"], half["startedAt"], "it has begun anew");
    let expected = json!({ "total": 300, "looked": 300, "changed": 300, "failed": 0, "failingAlready": 0, "untold": 0, "creates": 0, "updates": 300, "deletes": 0 });
    assert_eq!(whole["objects"], expected);
    let runs = candidate.runs().len();
    assert!(runs <= 260, "{runs} runs for what was left");
    // What it was made of changes under it: it begins anew, and is whole again.
    api.edit(&what(SITES), |object| {
        object["spec"]["limits"] = json!({ "writesPerMinute": 1_000_000, "memory": "32Mi" });
    });
    let of = whole["of"].clone();
    let anew = planned(&api, &host, &candidate, |plan| is_whole(plan) && plan["of"] != of).await;
    assert_eq!(anew["objects"], expected);
    host.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_candidate_that_fails_as_the_live_one_does_is_no_news() {
    let api = Fake::new();
    let failing = |name: &str, also: &'static str| {
        Guest::new(name, sites(), move |cx| async move {
            if cx.name() == "site-00001" || cx.name() == also {
                return Err(Stop::retry("the moon is full"));
            }
            let Some(site) = cx.site().await? else { return Ok(Action::AwaitChange) };
            cx.apply(child(&site, cx.name(), "hello")).await?;
            Ok(Action::AwaitChange)
        })
    };
    let host = live(&api, &failing("one", ""), 0).await;
    for number in 0..3 {
        api.put(site(&format!("site-{number:05}")));
    }
    api.until("two children are there", |api: &Fake| {
        (api.names("configmaps").len() == 2).then_some(())
    })
    .await;
    let plan = planned(&api, &host, &failing("two", "site-00002"), is_whole).await;
    let counts = &plan["objects"];
    assert_eq!((&counts["failed"], &counts["failingAlready"]), (&json!(1), &json!(1)), "{plan}");
    assert_eq!(plan["samples"][0]["object"], "demo/site-00002", "{plan}");
    host.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_enforced_gate_waits_for_its_plan_and_then_lets_pass() {
    let api = Fake::new();
    let host = live(&api, &one_child("one", "hello"), 20).await;
    api.edit(&what(SITES), |object| {
        object["spec"]["rollout"] = json!({ "strategy": "BlueGreen", "plan": "Manual",
            "gates": { "enforcement": "Enforce", "maxChangedObjects": 19 } });
    });
    let candidate = one_child("two", "changed");
    host.upload(&candidate);
    api.edit(&what(SITES), |object| {
        object["spec"]["module"]["digest"] = candidate.digest().to_string().into();
    });
    let seen = api.until_object(&what(SITES), |one| one["status"]["candidate"].is_string()).await;
    let (first, second) = (seen["status"]["active"].clone(), seen["status"]["candidate"].clone());
    api.edit(&what(SITES), |object| object["spec"]["rollout"]["active"] = second.clone());
    let gated =
        |reason: &'static str| move |one: &Value| condition(one, "Gated")["reason"] == reason;
    let seen = api.until_object(&what(SITES), gated("GatesWait")).await;
    assert_eq!(seen["status"]["active"], first);
    api.edit(&what(SITES), |object| {
        object["metadata"]["annotations"] = json!({ "nagaya.dev/plan": "1" });
    });
    let seen = api.until_object(&what(SITES), gated("GateHolds")).await;
    assert_eq!(seen["status"]["active"], first, "{}", condition(&seen, "Gated"));
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(api.get(&what(SITES)).unwrap()["status"]["active"], first);
    api.edit(&what(SITES), |object| {
        object["spec"]["rollout"]["gates"]["maxChangedObjects"] = json!(20);
    });
    api.until_object(&what(SITES), |one| one["status"]["active"] == second).await;
    host.stop().await;
}

/// The live revision's component is not there when another host begins: nobody can be compared, and nobody is let through.
#[tokio::test(start_paused = true)]
async fn an_enforced_gate_holds_while_the_live_revision_is_loaded() {
    let api = Fake::new();
    let (first, candidate) = (one_child("one", "hello"), one_child("two", "changed"));
    let host = live(&api, &first, 20).await;
    let plan = planned(&api, &host, &candidate, is_whole).await;
    assert_eq!(plan["objects"]["changed"], 20);
    api.edit(&what(SITES), |object| {
        object["spec"]["rollout"]["gates"] =
            json!({ "enforcement": "Enforce", "maxChangedObjects": 3 });
    });
    let gated = |one: &Value| condition(one, "Gated")["reason"] == "GateHolds";
    let seen = api.until_object(&what(SITES), gated).await;
    let active = seen["status"]["active"].clone();
    host.stop().await;
    api.edit(&what(SITES), |object| {
        object["spec"]["rollout"]["active"] = object["status"]["candidate"].clone();
    });
    let host = Host::standby(&api, None).await;
    host.upload(&candidate);
    host.lead();
    let name = seen["status"]["candidate"].as_str().unwrap_or_default().to_owned();
    api.until_object(&format!("demo/wasmrevisions/{name}"), |one| {
        one["status"]["phase"] == "Ready"
    })
    .await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let seen = api.get(&what(SITES)).unwrap_or_default();
    assert_eq!(seen["status"]["active"], active, "{}", seen["status"]["message"]);
    host.upload(&first);
    api.until_object(&what(SITES), |one| condition(one, "Ready")["status"] == "True").await;
    assert_eq!(api.get(&what(SITES)).unwrap_or_default()["status"]["active"], active);
    host.stop().await;
}
