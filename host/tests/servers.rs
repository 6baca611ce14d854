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

/// Whatever it is that comes instead of a list and a watch: the condition says so, and goes with its cause.
#[tokio::test(start_paused = true)]
async fn a_kind_that_nobody_can_read_is_a_condition_until_it_can_be_read() {
    let (api, guest) = (Fake::new(), one_child());
    let _host = Host::over(&api, &guest).await;
    for (number, (asked, effect, words)) in [
        // Items without names, where a watch has only half a line.
        ("sites?", Effect::Answer(200, json!({"items": [{"metadata": {}}]})), "cannot be watched"),
        ("sites?", Effect::Answer(500, json!({"kind": "Status", "code": 500})), "500"),
        ("sites?", Effect::Answer(400, json!("no")), "400"),
        ("sites?", Effect::Down, "cannot be watched"),
        ("sites?", Effect::Never, "cannot be watched"),
    ]
    .into_iter()
    .enumerate()
    {
        api.fault(Fault::does("GET", asked, effect));
        api.end_watches("sites");
        let told = api.until_object(&what("demo/sites"), |controller| {
            condition(controller, "Degraded")["reason"] == "WatchFailing"
        });
        let told = condition(&told.await, "Degraded");
        let message = told["message"].as_str().unwrap_or_default();
        assert!(message.contains(words), "{number}: {message}");
        api.heal();
        let name = format!("web-{number}");
        api.put(site(&name));
        let mended =
            |controller: &serde_json::Value| condition(controller, "Degraded")["status"] == "False";
        api.until_object(&what("demo/sites"), mended).await;
        assert_eq!(api.writes().await, [format!("PATCH configmaps/{name} as demo/sites")]);
    }
}

/// What stands between accepts every watch and ends it: the state is listed instead, ever more seldom.
#[tokio::test(start_paused = true)]
async fn where_no_watch_lasts_lists_show_what_changes() {
    let (api, guest) = (Fake::new(), one_child());
    let _host = Host::over(&api, &guest).await;
    api.fault(Fault::does("GET", "watch=true", Effect::Answer(200, json!(""))));
    api.end_watches("sites");
    tokio::time::sleep(std::time::Duration::from_secs(30)).await;
    for number in 0..3 {
        let name = format!("web-{number}");
        api.put(site(&name));
        api.until_object(&format!("configmaps/{name}"), |_| true).await;
    }
    let asked = api.asked().len();
    tokio::time::sleep(std::time::Duration::from_secs(600)).await;
    let lists = api.asked()[asked..].iter().filter(|it| it.path.ends_with("/sites")).count();
    assert!(lists < 100, "{lists} requests in ten minutes");
}
