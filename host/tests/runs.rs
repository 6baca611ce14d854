//! What runs lead to: gone means gone, failing objects are told, and `Accepted` is said soundly.

use std::{
    collections::BTreeSet,
    io::Write,
    sync::{Arc, Mutex},
    time::Duration,
};

use nagaya::{
    cluster::PatchBody,
    model::{
        kind::Kind,
        manifest::{Manifest, Verb, Write as Writes},
    },
    sandbox::Action,
};
use serde_json::{Value, json};

use crate::fake::{
    Fake, Fault, Guest, Host, Served, Stop,
    guest::{Cx, site, sites},
    host::{condition, controller, what},
    native,
};

const FINALIZER: &str = "example.io/cleanup";
const MINUTE: Duration = Duration::from_secs(60);

/// What a guest has seen.
type Diary = Arc<Mutex<Vec<String>>>;

fn read(diary: &Diary) -> Vec<String> {
    std::mem::take(&mut *diary.lock().unwrap())
}

/// Sites with this label, under a finalizer.
fn selecting(team: &str) -> Manifest {
    let mut manifest = sites();
    manifest.primary.label_selector = Some(format!("team={team}"));
    manifest.finalizer = Some(FINALIZER.to_owned());
    let kind = Kind::new("example.io/v1", "Site");
    let verbs = BTreeSet::from([Verb::ApplyStatus, Verb::Patch]);
    manifest.writes = vec![Writes { kind, verbs }];
    manifest
}

/// A guest that notes what it finds, and cleans up.
fn cleaner(name: &str, team: &str) -> (Guest, Diary) {
    let diary = Diary::default();
    let written = diary.clone();
    let guest = Guest::new(name, selecting(team), move |cx: Cx| {
        let diary = written.clone();
        async move {
            let note = |found: &str| diary.lock().unwrap().push(format!("{found} {}", cx.name()));
            match cx.site().await? {
                None => note("gone"),
                Some(site) if site["metadata"]["deletionTimestamp"].is_null() => note("there"),
                Some(_) => {
                    note("cleanup");
                    let body = json!({"metadata": {"finalizers": []}}).to_string();
                    let kind = Kind::new("example.io/v1", "Site");
                    let body = PatchBody::Merge(body);
                    cx.client().patch(&kind, cx.namespace(), cx.name(), body).await?;
                }
            }
            Ok(Action::AwaitChange)
        }
    });
    (guest, diary)
}

fn labelled(name: &str, team: &str) -> Value {
    let mut site = site(name);
    site["metadata"]["labels"] = json!({"team": team});
    site
}

async fn held(api: &Fake, name: &str) {
    let what = format!("sites/{name}");
    api.until_object(&what, |site| site["metadata"]["finalizers"] == json!([FINALIZER])).await;
    api.quiet().await;
}

fn relabel(api: &Fake, name: &str, team: &str) {
    api.edit(&format!("sites/{name}"), |site| site["metadata"]["labels"]["team"] = team.into());
}

async fn gone(api: &Fake, name: &str) {
    let what = format!("sites/{name}");
    api.until("the object is gone", |api| api.get(&what).is_none().then_some(())).await;
}

#[tokio::test(start_paused = true)]
async fn an_object_that_leaves_the_selector_is_not_called_gone() {
    let (api, (guest, diary)) = (Fake::new(), cleaner("a", "a"));
    let _host = Host::over(&api, &guest).await;
    api.put(labelled("web", "a"));
    held(&api, "web").await;
    assert!(read(&diary).iter().all(|found| found == "there web"));

    relabel(&api, "web", "b");
    tokio::time::sleep(MINUTE).await;
    assert!(read(&diary).is_empty(), "it is let alone");
    relabel(&api, "web", "a");
    api.quiet().await;
    assert_eq!(read(&diary).first().map(String::as_str), Some("there web"), "it is back");

    // What really goes is gone.
    api.delete("sites/web");
    gone(&api, "web").await;
    api.quiet().await;
    assert_eq!(read(&diary), ["cleanup web", "gone web"]);
}

#[tokio::test(start_paused = true)]
async fn a_stray_is_let_go_when_it_is_deleted() {
    let (api, (guest, diary)) = (Fake::new(), cleaner("a", "a"));
    let _host = Host::over(&api, &guest).await;
    for name in ["web", "db", "late"] {
        api.put(labelled(name, "a"));
        held(&api, name).await;
    }
    relabel(&api, "web", "b");
    // Another may be deleted at the moment it leaves, and one much later.
    api.delete("sites/db");
    relabel(&api, "late", "b");
    read(&diary);
    tokio::time::sleep(MINUTE).await;
    api.delete("sites/web");
    gone(&api, "web").await;
    gone(&api, "db").await;
    tokio::time::sleep(MINUTE).await;
    let seen = read(&diary);
    let of = |name: &str| seen.iter().filter(|found| found.ends_with(name)).collect::<Vec<_>>();
    assert_eq!(of("web"), ["cleanup web", "gone web"], "and nobody is told twice");
    assert_eq!(of("late"), [""; 0]);
    tokio::time::sleep(60 * MINUTE).await;
    api.delete("sites/late");
    gone(&api, "late").await;
}

#[tokio::test(start_paused = true)]
async fn a_stray_is_found_after_a_restart() {
    let (api, (guest, diary)) = (Fake::new(), cleaner("a", "a"));
    let host = Host::over(&api, &guest).await;
    api.put(labelled("web", "a"));
    held(&api, "web").await;
    host.stop().await;
    relabel(&api, "web", "b");
    read(&diary);

    let host = Host::start(&api).await;
    host.upload(&guest);
    host.ready("demo/sites").await;
    tokio::time::sleep(MINUTE).await;
    assert!(read(&diary).is_empty());
    api.delete("sites/web");
    gone(&api, "web").await;
    assert_eq!(read(&diary).first().map(String::as_str), Some("cleanup web"));
}

#[tokio::test(start_paused = true)]
async fn a_new_revision_with_another_selector_lets_go_of_the_old_ones_objects() {
    let api = Fake::new();
    let (first, _) = cleaner("a", "a");
    let (second, diary) = cleaner("b", "b");
    let host = Host::over(&api, &first).await;
    api.put(labelled("web", "a"));
    held(&api, "web").await;
    host.deploy("demo/sites", &second).await;
    api.quiet().await;
    tokio::time::sleep(MINUTE).await;
    assert!(read(&diary).iter().all(|found| !found.contains("gone")), "it is not gone");
    api.delete("sites/web");
    gone(&api, "web").await;
    assert_eq!(read(&diary).first().map(String::as_str), Some("cleanup web"));
}

/// A kind that is not served for a while says nothing of its objects.
#[tokio::test(start_paused = true)]
async fn an_object_that_nobody_can_look_at_is_not_called_gone() {
    let (api, (guest, diary)) = (Fake::new(), cleaner("a", "a"));
    let _host = Host::over(&api, &guest).await;
    api.put(labelled("web", "a"));
    held(&api, "web").await;
    read(&diary);
    let lost = "the server could not find the requested resource";
    for fault in [
        Fault::answers("GET", "/sites/web", 503),
        Fault::answers("GET", "/sites/web", 403),
        Fault::answers("GET", "/sites/web", 404).saying(lost),
    ] {
        api.fault(fault);
        relabel(&api, "web", "b");
        tokio::time::sleep(MINUTE).await;
        assert!(read(&diary).is_empty());
        api.heal();
        relabel(&api, "web", "a");
        tokio::time::sleep(MINUTE).await;
        read(&diary);
    }
}

fn selected(guest: &Guest, team: &str) -> Value {
    let mut controller = controller("demo/sites", &guest.digest());
    controller["metadata"]["labels"] = json!({"team": team});
    controller
}

#[tokio::test(start_paused = true)]
async fn a_controller_that_leaves_the_hosts_selector_is_let_go() {
    let (api, (guest, _)) = (Fake::new(), cleaner("a", "a"));
    let host = Host::standby(&api, Some("team=a")).await;
    host.lead();
    host.upload(&guest);
    api.put(crate::fake::host::account("demo/sites"));
    api.put(selected(&guest, "a"));
    host.ready("demo/sites").await;
    let drain = json!(["nagaya.dev/drain"]);
    assert_eq!(api.get(&what("demo/sites")).unwrap()["metadata"]["finalizers"], drain);
    api.edit(&what("demo/sites"), |it| it["metadata"]["labels"]["team"] = "b".into());
    api.until_object(&what("demo/sites"), |it| {
        it["metadata"]["finalizers"].as_array().is_none_or(Vec::is_empty)
    })
    .await;
    guest.runs();
    api.put(labelled("web", "a"));
    tokio::time::sleep(MINUTE).await;
    assert!(guest.runs().is_empty(), "it is not this host's any more");
    // And it is kept again when it is back.
    api.edit(&what("demo/sites"), |it| it["metadata"]["labels"]["team"] = "a".into());
    held(&api, "web").await;

    // It leaves while no host is there, and is deleted.
    host.stop().await;
    api.edit(&what("demo/sites"), |it| it["metadata"]["labels"]["team"] = "b".into());
    api.delete(&what("demo/sites"));
    // By the clock on the wall, which no test moves.
    api.edit(&what("demo/sites"), |it| {
        it["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    });
    let host = Host::standby(&api, Some("team=a")).await;
    host.lead();
    let is_gone = |api: &Fake| api.get(&what("demo/sites")).is_none().then_some(());
    tokio::time::sleep(5 * MINUTE).await;
    api.until("the controller is gone", is_gone).await;
}

/// Writes of the status of `web`, by any manager.
fn status_writes(api: &Fake) -> usize {
    let asked = api.asked();
    let is_one = |path: &str| path.ends_with("/sites/web/status");
    asked.iter().filter(|asked| asked.method == "PATCH" && is_one(&asked.path)).count()
}

fn accepted(object: &Value) -> Value {
    condition(object, "Accepted")
}

fn events(api: &Fake, reason: &str) -> Vec<Value> {
    let names = api.names("events");
    let all = names.iter().filter_map(|name| {
        let (namespace, name) = name.split_once('/').unwrap();
        api.get(&format!("{namespace}/events/{name}"))
    });
    all.filter(|event| event["reason"] == reason).collect()
}

#[tokio::test(start_paused = true)]
async fn a_refusal_with_a_time_in_it_is_no_loop() {
    let api = Fake::new();
    let count = Mutex::new(0);
    let guest = native(move |_| {
        let mut count = count.lock().unwrap();
        *count += 1;
        let text = format!("not at {count}");
        async move { Err(Stop::invalid(&text)) }
    });
    let _host = Host::over(&api, &guest).await;
    api.put(site("web"));
    api.until_object("sites/web", |site| accepted(site)["status"] == "False").await;
    tokio::time::sleep(60 * MINUTE).await;
    let writes = status_writes(&api);
    assert!((2..=15).contains(&writes), "{writes} writes in an hour");
    assert!(guest.runs().len() < 50);
}

#[tokio::test(start_paused = true)]
async fn a_refused_object_shows_the_generation_that_was_judged() {
    let api = Fake::new();
    let guest = native(|cx| async move {
        let site = cx.site().await?.unwrap_or_default();
        if site["spec"]["replicas"] == 0 {
            Ok(Action::AwaitChange)
        } else {
            Err(Stop::invalid("no"))
        }
    });
    let _host = Host::over(&api, &guest).await;
    api.put(site("web"));
    for replicas in 2..6 {
        let site = api.until_object("sites/web", |site| {
            accepted(site)["observedGeneration"] == site["metadata"]["generation"]
        });
        let since = accepted(&site.await)["lastTransitionTime"].clone();
        api.edit("sites/web", |site| site["spec"]["replicas"] = replicas.into());
        let site = api.until_object("sites/web", |site| {
            accepted(site)["observedGeneration"] == site["metadata"]["generation"]
        });
        assert_eq!(accepted(&site.await)["lastTransitionTime"], since, "the status is the same");
    }
    api.quiet().await;
    assert_eq!(status_writes(&api), 5);
    api.edit("sites/web", |site| site["spec"]["replicas"] = 0.into());
    api.until_object("sites/web", |site| accepted(site).is_null()).await;
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_cannot_be_written_is_written_later_and_told_once() {
    let api = Fake::new();
    let guest = native(|_| async { Err(Stop::invalid("no such colour")) });
    let _host = Host::over(&api, &guest).await;
    api.fault(Fault::answers("PATCH", "/sites/web/status", 403));
    api.put(site("web"));
    tokio::time::sleep(10 * MINUTE).await;
    let tries = status_writes(&api);
    assert!((5..20).contains(&tries), "{tries} tries in ten minutes");
    let told = events(&api, "Invalid");
    assert_eq!(told.len(), 1, "{told:?}");
    let note = told[0]["note"].as_str().unwrap();
    assert!(note.starts_with("no such colour") && note.contains("cannot be written"), "{note}");
    api.heal();
    tokio::time::sleep(6 * MINUTE).await;
    assert_eq!(accepted(&api.get("sites/web").unwrap())["message"], "no such colour");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_beside_conditions_that_one_writer_owns_is_told() {
    let api = Fake::new();
    api.serve(Served::new("example.io/v1", "Site", "sites").with_atomic_conditions());
    let guest = native(|cx| async move {
        let ready = json!({"type": "Ready", "status": "True", "reason": "R", "message": ""});
        cx.apply_status(json!({"conditions": [ready]})).await?;
        Err(Stop::invalid("no such colour"))
    });
    let _host = Host::over(&api, &guest).await;
    api.put(site("web"));
    tokio::time::sleep(10 * MINUTE).await;
    let told = events(&api, "Invalid");
    assert_eq!(told.len(), 1, "{told:?}");
    let note = told[0]["note"].as_str().unwrap();
    for words in ["no such colour", "status.conditions", "x-kubernetes-list-map-keys: [type]"] {
        assert!(note.contains(words), "{note}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_team_hears_of_an_object_whose_runs_keep_failing() {
    let api = Fake::new();
    let guest = native(|cx| async move {
        let site = cx.site().await?.unwrap_or_default();
        match site["spec"]["replicas"].as_i64() {
            Some(0) => Err(Stop::retry("no bucket is free")),
            Some(-1) => panic!("the guest breaks down"),
            _ => Ok(Action::AwaitChange),
        }
    });
    let _host = Host::over(&api, &guest).await;
    for number in 0..8 {
        api.put(site(&format!("well{number}")));
    }
    for (replicas, words) in [(0, "no bucket is free"), (-1, "the guest breaks down")] {
        let mut bad = site("bad");
        bad["spec"]["replicas"] = replicas.into();
        api.put(bad);
        let seen = api
            .until_object(&what("demo/sites"), |it| {
                let message = condition(it, "ObjectsFailing")["message"].clone();
                message.as_str().is_some_and(|text| text.contains(words))
            })
            .await;
        assert_eq!(seen["status"]["failingObjects"], 1);
        tokio::time::sleep(10 * MINUTE).await;
        let seen = api.get(&what("demo/sites")).unwrap();
        assert_eq!(condition(&seen, "Ready")["status"], "True");
        assert_eq!(condition(&seen, "Degraded")["status"], "False");
        let told = events(&api, "ReconcileFailing");
        let of_bad = told.iter().filter(|event| event["note"].as_str().unwrap().contains(words));
        assert!(of_bad.clone().all(|event| event["regarding"]["name"] == "bad"));
        assert_eq!(of_bad.count(), 1, "{told:?}");
    }
    let versions =
        |api: &Fake| api.get(&what("demo/sites")).unwrap()["metadata"]["resourceVersion"].clone();
    let before = versions(&api);
    tokio::time::sleep(60 * MINUTE).await;
    assert_eq!(versions(&api), before, "what stays as it is is not written again");
    api.delete("sites/bad");
    let seen =
        api.until_object(&what("demo/sites"), |it| condition(it, "ObjectsFailing").is_null()).await;
    assert!(seen["status"]["failingObjects"].is_null());
}

#[tokio::test(start_paused = true)]
async fn many_objects_that_break_down_are_told_by_one_that_is_there() {
    let api = Fake::new();
    let guest = native(|cx| async move {
        assert!(!cx.name().starts_with("bad"), "told to break down for {}", cx.name());
        Ok(Action::AwaitChange)
    });
    let host = Host::over(&api, &guest).await;
    for name in ["well", "bad1", "bad2", "bad3"] {
        api.put(site(name));
    }
    let ill = |it: &Value| condition(it, "Degraded")["reason"] == "GuestBreaksDown";
    let named = |it: &Value| {
        let message = condition(it, "Degraded")["message"].as_str().unwrap().to_owned();
        ["bad1", "bad2", "bad3", "bad4"].into_iter().find(|name| message.contains(name)).unwrap()
    };
    let first = named(&api.until_object(&what("demo/sites"), ill).await);
    api.put(site("bad4"));
    tokio::time::sleep(MINUTE).await;
    api.delete(&format!("sites/{first}"));
    tokio::time::sleep(Duration::from_secs(5)).await;
    let seen = api.get(&what("demo/sites")).unwrap();
    assert!(ill(&seen) && named(&seen) != first, "{first} is gone, and three others break down");
    for name in ["bad1", "bad2", "bad3", "bad4"].into_iter().filter(|name| *name != first) {
        api.delete(&format!("sites/{name}"));
    }
    host.ready("demo/sites").await;
}

/// The lines of the host's log.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_guest_returns_cannot_flood_or_forge_the_log() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(move || writer.clone())
        .with_max_level(tracing::Level::WARN)
        .with_ansi(false)
        .without_time()
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let api = Fake::new();
    let evil = format!("no\n ERROR nagaya: forged\r\n{}", "x".repeat(1 << 20));
    let guest = native(move |cx| {
        let evil = evil.clone();
        async move {
            match cx.name().as_bytes()[1] % 3 {
                0 => Err(Stop::retry(&evil)),
                1 => Err(Stop::terminal(&evil)),
                _ => Err(Stop::invalid(&evil)),
            }
        }
    });
    let _host = Host::over(&api, &guest).await;
    for number in 0..300 {
        api.put(site(&format!("s{number}")));
    }
    api.quiet().await;
    let bytes = log.0.lock().unwrap().clone();
    let text = String::from_utf8(bytes).unwrap();
    let said = text.lines().filter(|line| line.contains("the run failed"));
    assert!(said.clone().count() > 10, "some are said");
    let size: usize = said.clone().map(str::len).sum();
    // 64 KiB a second, and what the host says of each: without a limit it would be 0.8 MB.
    assert!(size < 400 << 10, "{size} bytes");
    assert!(said.clone().all(|line| line.len() < 2_000));
    assert!(text.lines().all(|line| !line.starts_with(" ERROR nagaya: forged")));
}

#[tokio::test(start_paused = true)]
async fn code_ahead_of_its_schema_is_told_with_the_field() {
    let api = Fake::new();
    let guest = native(|cx| async move {
        if cx.site().await?.is_some() {
            cx.apply_status(json!({"x": 1})).await?;
        }
        Ok(Action::AwaitChange)
    });
    let host = Host::over(&api, &guest).await;
    let said = "failed to create typed patch object (demo/web; example.io/v1, Kind=Site): .status.x: field not declared in schema";
    api.fault(Fault::answers("PATCH", "/sites/web/status", 500).reason("").saying(said));
    api.put(site("web"));
    let seen = api
        .until_object(&what("demo/sites"), |it| {
            condition(it, "Degraded")["reason"] == "SchemaMismatch"
        })
        .await;
    let told = condition(&seen, "Degraded")["message"].as_str().unwrap().to_owned();
    for words in [".status.x", "Site", "CustomResourceDefinition"] {
        assert!(told.contains(words), "{told}");
    }
    assert!(!told.contains("demo/web"), "one object's name is nobody else's business: {told}");
    assert_eq!(condition(&seen, "Ready")["status"], "False");
    api.heal();
    api.touch("sites/web");
    host.ready("demo/sites").await;
}
