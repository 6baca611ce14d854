//! Servers that differ: what they leave out, refuse, or answer in a way that nobody can read.

use nagaya::sandbox::Action;
use serde_json::json;

use crate::fake::{
    Effect, Fake, Fault, Guest, Host,
    guest::{child, site},
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
