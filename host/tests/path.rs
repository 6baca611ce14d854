//! The whole path on one page: what happens between a change in the cluster and the write that answers it.
//!
//! Time is paused: it moves on when everybody waits, so a test of an hour takes milliseconds, and each one the same.

use std::time::Duration;

use nagaya::sandbox::Action;

use crate::fake::{
    Fake, Guest, Host,
    guest::{child, config_map, site, sites},
    native,
};

/// A reconciler: one ConfigMap for each Site, with the Site's text.
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
