//! The whole path on one page: what happens between a change in the cluster and the write that answers it.
//!
//! ```text
//!  api.put(site("web"))              somebody makes an object
//!    │  a line of the one watch of Sites                           watch::task, watch::stream, watch::cache
//!    ▼
//!  the key demo/web                  whom it wakes, and who may hear   watch::trigger, access::view
//!    │  a set of keys                                              queue, share
//!    ▼
//!  one_child(cx)                     a run of the live revision       controller::{rollout, run}, sandbox
//!    │  cx.apply(…), an Ask of its Cluster                            client: grant ▸ no-op ▸ fight, budget ▸ fence
//!    ▼
//!  PATCH configmaps/web as demo/sites                              and its event wakes demo/web once more
//! ```
//!
//! Time is paused: it moves on when everybody waits, so an hour takes milliseconds, and each run is the same. The API server
//! is in memory (`fake/`), the guests are Rust; all between the two is the host as it is.

use std::time::Duration;

use nagaya::{model::manifest::Verb, sandbox::Action};
use serde_json::json;

use crate::fake::{
    Effect, Fake, Fault, Guest, Host, Stop,
    guest::{child, config_map, site, sites, writes},
    host::{condition, controller, what},
    native,
};

/// A reconciler: one ConfigMap for each Site.
fn one_child() -> Guest {
    native(|cx| async move {
        let Some(site) = cx.site().await? else { return Ok(Action::AwaitChange) };
        cx.apply(child(&site, cx.name(), "hello")).await?;
        Ok(Action::AwaitChange)
    })
}

#[tokio::test(start_paused = true)]
async fn a_new_object_is_reconciled_and_its_child_written_as_the_account() {
    let (api, guest) = (Fake::new(), one_child());
    let _host = Host::over(&api, &guest).await;
    api.put(site("web"));
    assert_eq!(api.writes().await, ["PATCH configmaps/web as demo/sites"]);
    assert_eq!(api.get("configmaps/web").unwrap()["data"]["text"], "hello");
}

#[tokio::test(start_paused = true)]
async fn a_changed_child_makes_its_owner_run_once() {
    let (api, guest) = (Fake::new(), one_child());
    let _host = Host::over(&api, &guest).await;
    api.put(site("web"));
    api.put(site("db"));
    api.writes().await;
    guest.runs();

    api.edit("configmaps/web", |child| child["data"]["text"] = "spoilt".into());
    assert_eq!(api.writes().await, ["PATCH configmaps/web as demo/sites"]);
    assert_eq!(api.get("configmaps/web").unwrap()["data"]["text"], "hello");
    assert_eq!(guest.runs(), ["demo/web", "demo/web"], "the spoilt one, and its own repair");
}

#[tokio::test(start_paused = true)]
async fn a_second_run_without_a_change_writes_nothing_over_the_fake() {
    let (api, guest) = (Fake::new(), one_child());
    let _host = Host::over(&api, &guest).await;
    api.put(site("web"));
    api.writes().await;
    guest.runs();
    api.touch("sites/web");
    assert_eq!(api.writes().await, [""; 0]);
    assert_eq!(guest.runs(), ["demo/web"]);
}

#[tokio::test(start_paused = true)]
async fn a_deleted_child_comes_back_and_a_deleted_owner_is_the_guests_to_see() {
    let (api, guest) = (Fake::new(), one_child());
    let _host = Host::over(&api, &guest).await;
    api.put(site("web"));
    api.writes().await;
    api.delete("configmaps/web");
    assert_eq!(api.writes().await, ["PATCH configmaps/web as demo/sites"]);
    guest.runs();
    api.delete("sites/web");
    assert_eq!(api.writes().await, [""; 0]);
    assert_eq!(guest.runs(), ["demo/web"], "it sees that its object is gone");
}

#[tokio::test(start_paused = true)]
async fn a_run_that_fails_is_tried_again_later_and_later() {
    let api = Fake::new();
    let guest = native(|_| async { Err(Stop::retry("not today")) });
    let _host = Host::over(&api, &guest).await;
    api.put(site("web"));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let first = guest.runs().len();
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    let later = guest.runs().len();
    assert!(first >= 3 && later < 100, "{first} runs in a second, {later} in an hour");
    let end = native(|_| async { Err(Stop::terminal("never")) });
    assert!(end.runs().is_empty());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_seen_without_the_right_to_see_it() {
    let (api, guest) = (Fake::new(), one_child());
    let _host = Host::over(&api, &guest).await;
    api.deny("demo/sites", "watch", "sites");
    tokio::time::sleep(Duration::from_secs(15)).await;
    api.put(site("web"));
    assert_eq!(api.writes().await, [""; 0]);
    api.allow("demo/sites", "watch", "sites");
    api.until("the child, once it may be seen", |api| api.get("configmaps/web")).await;
}

#[tokio::test(start_paused = true)]
async fn a_candidate_waits_for_its_promotion_and_then_every_object_is_its_own() {
    let api = Fake::new();
    let saying = |word: &'static str| {
        Guest::new(word, sites(), move |cx| async move {
            if let Some(site) = cx.site().await? {
                cx.apply(child(&site, cx.name(), word)).await?;
            }
            Ok(Action::AwaitChange)
        })
    };
    let (blue, green) = (saying("blue"), saying("green"));
    let host = Host::over(&api, &blue).await;
    api.put(site("web"));
    api.writes().await;

    host.upload(&green);
    let mut next = controller("demo/sites", &green.digest());
    next["spec"]["rollout"]["strategy"] = json!("BlueGreen");
    api.put(next);
    let is_staged = |controller: &serde_json::Value| controller["status"]["candidate"].is_string();
    let staged = api.until_object(&what("demo/sites"), is_staged).await;
    assert_eq!(api.writes().await, [""; 0], "it is staged and does nothing");

    api.edit(&what("demo/sites"), |controller| {
        controller["spec"]["rollout"]["active"] = staged["status"]["candidate"].clone();
    });
    api.until_object("configmaps/web", |child| child["data"]["text"] == "green").await;
    let (blue_ran, green_ran) = (blue.runs(), green.runs());
    api.touch("sites/web");
    api.quiet().await;
    assert!(blue.runs().is_empty(), "{blue_ran:?} before, nothing since");
    assert!(!green.runs().is_empty(), "{green_ran:?} before");
}

#[tokio::test(start_paused = true)]
async fn what_the_manifest_lacks_is_said_and_not_sent() {
    let api = Fake::new();
    let mut manifest = sites();
    manifest.writes = vec![writes("v1", "Secret", &[Verb::Apply])];
    let guest = Guest::new("undeclared", manifest, |cx| async move {
        let Some(site) = cx.site().await? else { return Ok(Action::AwaitChange) };
        let refused = cx.apply(child(&site, cx.name(), "hello")).await.unwrap_err();
        assert!(refused.to_string().contains("does not declare"), "{refused}");
        Ok(Action::AwaitChange)
    });
    let _host = Host::over(&api, &guest).await;
    api.put(site("web"));
    assert_eq!(api.writes().await, [""; 0]);
    assert_eq!(guest.runs(), ["demo/web"]);
}

#[tokio::test(start_paused = true)]
async fn a_host_that_lost_its_claim_writes_nothing_and_the_next_one_goes_on() {
    let (api, guest) = (Fake::new(), one_child());
    let (first, second) = (Host::over(&api, &guest).await, Host::standby(&api, None).await);
    second.upload(&guest);
    tokio::time::sleep(Duration::from_secs(10)).await;
    first.follow();
    api.put(site("web"));
    assert_eq!(api.writes().await, [""; 0]);
    second.lead();
    assert_eq!(api.writes().await, ["PATCH configmaps/web as demo/sites"]);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_was_lost_is_found_out_before_the_next_run() {
    let (api, guest) = (Fake::new(), one_child());
    let _host = Host::over(&api, &guest).await;
    api.fault(Fault::does("PATCH", "configmaps", Effect::Lost).times(1));
    api.put(site("web"));
    api.quiet().await;
    assert_eq!(api.get("configmaps/web").unwrap()["data"]["text"], "hello");
    assert!(guest.runs().len() >= 2, "what became of its write was unknown");
    let ready = condition(&api.get(&what("demo/sites")).unwrap(), "Ready");
    assert_eq!(ready["status"], "True", "{ready}");
}

#[tokio::test(start_paused = true)]
async fn a_guest_makes_and_removes_what_it_lists_and_tells_of_it() {
    let api = Fake::new();
    let guest = native(|cx| async move {
        if cx.site().await?.is_none() {
            for name in cx.list("v1", "ConfigMap").await? {
                cx.delete("v1", "ConfigMap", &name).await?;
            }
        } else if cx.list("v1", "ConfigMap").await?.is_empty() {
            cx.create(config_map(cx.name(), "hello")).await?;
            cx.event("Made", "one ConfigMap")?;
        }
        Ok(Action::AwaitChange)
    });
    let host = Host::over(&api, &guest).await;
    api.all_writes().await;
    api.put(site("web"));
    assert_eq!(api.all_writes().await, ["POST configmaps/web as demo/sites"]);
    let told = api.asked().into_iter().find(|asked| asked.body["reason"] == "Made").unwrap();
    assert_eq!((&*told.account, &told.body["regarding"]["name"]), ("demo/sites", &json!("web")));
    api.delete("sites/web");
    assert_eq!(api.all_writes().await, ["DELETE configmaps/web as demo/sites"]);
    let watched: Vec<_> =
        host.hub.open_watches().into_iter().map(|key| key.resource.plural).collect();
    let own = ["serviceaccounts", "wasmcontrollers", "wasmrevisions"];
    let guests = ["configmaps", "sites"];
    assert!(
        own.iter().chain(&guests).all(|plural| watched.iter().any(|it| it == plural)),
        "{watched:?}"
    );
    let ready =
        r#"nagaya_controller_condition{controller="demo/sites",type="Ready",status="True"} 1"#;
    let page = host.metrics.page().unwrap();
    assert!(page.contains(ready), "{page}");
}

#[tokio::test(start_paused = true)]
async fn an_invalid_object_carries_the_reason_until_it_is_valid() {
    let api = Fake::new();
    let guest = native(|cx| async move {
        match cx.site().await? {
            Some(site) if site["spec"]["replicas"] == 0 => Err(Stop::invalid("no replicas")),
            _ => Ok(Action::AwaitChange),
        }
    });
    let _host = Host::over(&api, &guest).await;
    let mut none = site("web");
    none["spec"]["replicas"] = json!(0);
    api.put(none);
    let said =
        api.until_object("sites/web", |site| condition(site, "Accepted")["status"] == "False");
    assert_eq!(condition(&said.await, "Accepted")["message"], "no replicas");
    api.edit("sites/web", |site| site["spec"]["replicas"] = json!(1));
    api.until_object("sites/web", |site| condition(site, "Accepted")["status"] != "False").await;
}
