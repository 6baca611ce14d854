//! Servers that differ: what they leave out, refuse, or answer in a way that nobody can read.

use nagaya::sandbox::Action;
use serde_json::json;

use crate::fake::{
    Effect, Fake, Fault, Guest, Host,
    guest::{child, site},
    host::{condition, what},
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
async fn a_server_without_initial_events_and_with_null_lists_is_worked_on() {
    let (api, guest) = (Fake::new(), one_child());
    api.without_watch_list();
    api.with_null_items();
    let _host = Host::over(&api, &guest).await;
    api.put(site("web"));
    assert_eq!(api.writes().await, ["PATCH configmaps/web as demo/sites"]);
    api.compact();
    api.delete("configmaps/web");
    assert_eq!(api.writes().await, ["PATCH configmaps/web as demo/sites"]);
}

#[tokio::test(start_paused = true)]
async fn a_first_list_that_is_too_large_for_one_answer_is_read_in_pages() {
    let (api, guest) = (Fake::new(), one_child());
    api.without_watch_list();
    for number in 0..3 {
        api.put(site(&format!("web{number}")));
    }
    let large = json!("x".repeat(65 << 20));
    api.fault(Fault::does("GET", "sites?limit=500&resourceVersion=0", Effect::Answer(200, large)));
    let _host = Host::over(&api, &guest).await;
    assert_eq!(api.writes().await.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_nobody_can_read_is_a_condition_until_it_can_be_read() {
    let (api, guest) = (Fake::new(), one_child());
    let _host = Host::over(&api, &guest).await;
    api.fault(Fault::does(
        "GET",
        "sites?",
        Effect::Answer(200, json!({"items": [{"metadata": {}}]})),
    ));
    api.compact();
    let told = api.until_object(&what("demo/sites"), |controller| {
        condition(controller, "Degraded")["reason"] == "WatchFailing"
    });
    let told = condition(&told.await, "Degraded");
    let message = told["message"].as_str().unwrap_or_default();
    assert!(message.contains("cannot read"), "{message}");
    api.heal();
    api.put(site("web"));
    let mended =
        |controller: &serde_json::Value| condition(controller, "Degraded")["status"] == "False";
    api.until_object(&what("demo/sites"), mended).await;
    assert_eq!(api.writes().await, ["PATCH configmaps/web as demo/sites"]);
}
