//! Native guests obey what holds for every run, as far as it can hold for them.

use std::time::Duration;

use nagaya::sandbox::Action;
use serde_json::json;

use crate::fake::{
    Fake, Guest, HOST, Host, Stop,
    guest::{config_map, site, sites},
    host::{condition, controller, what},
    native,
};

#[tokio::test(start_paused = true)]
async fn a_native_guest_ends_at_its_wall() {
    let api = Fake::new();
    let guest = native(|_| async {
        tokio::time::sleep(Duration::from_secs(3_600)).await;
        Ok(Action::AwaitChange)
    });
    let _host = Host::over(&api, &guest).await;
    api.put(site("web"));
    let trapped = api.until("an Event about the wall", |api| {
        let notes = api.asked().into_iter().filter(|asked| asked.path.ends_with("/events"));
        notes.map(|asked| asked.body["note"].to_string()).find(|note| note.contains("30 s"))
    });
    assert!(trapped.await.contains("demo/web"));
}

#[tokio::test(start_paused = true)]
async fn a_native_guest_that_panics_is_a_trap() {
    let api = Fake::new();
    let guest = native(|_| async { panic!("no such luck") });
    let _host = Host::over(&api, &guest).await;
    api.put(site("web"));
    let note = api.until("an Event about the panic", |api| {
        let notes = api.asked().into_iter().filter(|asked| asked.path.ends_with("/events"));
        notes.map(|asked| asked.body["note"].to_string()).find(|note| note.contains("trapped"))
    });
    assert!(note.await.contains("it panicked: no such luck"));
}

#[tokio::test(start_paused = true)]
async fn another_module_is_another_revision_and_takes_over() {
    let api = Fake::new();
    let saying = |word: &'static str| {
        Guest::new(word, sites(), move |cx| async move {
            if cx.site().await?.is_some() {
                cx.apply_status(json!({ "said": word })).await?;
            }
            Ok(Action::AwaitChange)
        })
    };
    let (first, second) = (saying("first"), saying("second"));
    let host = Host::over(&api, &first).await;
    api.put(site("web"));
    api.until_object("sites/web", |site| site["status"]["said"] == "first").await;
    host.upload(&second);
    api.put(controller("demo/sites", &second.digest()));
    api.until_object("sites/web", |site| site["status"]["said"] == "second").await;
    assert_eq!(host.ready("demo/sites").await["status"]["executorGeneration"], 2);
    host.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_refuses_its_config_is_said_in_the_status() {
    let api = Fake::new();
    let picky = Guest::describing(
        "picky",
        || Err("no colour".to_owned()),
        |_| async { Err(Stop::terminal("never")) },
    );
    let host = Host::start(&api).await;
    host.upload(&picky);
    api.put(crate::fake::host::account("demo/sites"));
    api.put(controller("demo/sites", &picky.digest()));
    let said = api.until_object(&what("demo/sites"), |controller| {
        condition(controller, "Ready")["message"].to_string().contains("no colour")
            || controller["status"]["message"].to_string().contains("no colour")
    });
    said.await;
    let _ = (HOST, config_map("a", "b"));
}
