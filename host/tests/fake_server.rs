//! The fake API server answers as a real one does, as far as the host can tell.

use std::time::Duration;

use http::Method;
use nagaya::apiserver::{ApiServer, Call, Error, Identity, Lines, Media};
use serde_json::{Value, json};

use crate::fake::{
    Effect, Fake, Fault, Served, Verdict,
    guest::{config_map, site},
};

const MAPS: &str = "/api/v1/namespaces/demo/configmaps";

fn over(api: &Fake) -> ApiServer {
    ApiServer::over(api.clone(), "test")
}

async fn call(
    api: &Fake,
    method: Method,
    path: &str,
    body: Option<(Media, Value)>,
) -> Result<Value, Error> {
    let call = Call::new(method, path);
    let call = match body {
        Some((media, body)) => call.body(media, body.to_string()),
        None => call,
    };
    over(api).fetch(call).await
}

async fn get(api: &Fake, path: &str) -> Value {
    call(api, Method::GET, path, None).await.unwrap()
}

/// The code and words of a refusal.
fn refused(answer: Result<Value, Error>) -> (u16, String) {
    match answer {
        Err(Error::Refused(status)) => (status.code, status.message),
        other => panic!("a refusal: {other:?}"),
    }
}

async fn watched(api: &Fake, query: &str) -> Lines {
    over(api).lines(Call::new(Method::GET, format!("{MAPS}?watch=true&{query}"))).await.unwrap()
}

/// Kind and name of the next event.
async fn next(lines: &mut Lines) -> String {
    let line = lines.next().await.unwrap().unwrap();
    let event: Value = serde_json::from_str(&line).unwrap();
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    format!("{} {}", word(&event["type"]), word(&event["object"]["metadata"]["name"]))
}

#[tokio::test(start_paused = true)]
async fn a_list_has_pages_and_says_how_it_goes_on() {
    let api = Fake::new();
    for name in ["a", "b", "c"] {
        api.put(config_map(name, "x"));
    }
    let first = get(&api, &format!("{MAPS}?limit=2")).await;
    assert_eq!(first["items"].as_array().unwrap().len(), 2);
    assert!(first["items"][0].get("kind").is_none(), "as the server lists its own kinds");
    let token = first["metadata"]["continue"].as_str().unwrap();
    let second = get(&api, &format!("{MAPS}?limit=2&continue={token}")).await;
    assert_eq!(second["items"][0]["metadata"]["name"], "c");
    assert_eq!(second["metadata"]["continue"], Value::Null);
    let token = token.to_owned();
    api.compact();
    api.put(config_map("d", "x"));
    api.compact();
    let late = call(&api, Method::GET, &format!("{MAPS}?limit=2&continue={token}"), None).await;
    assert_eq!(refused(late).0, 410);
    let empty = "/api/v1/namespaces/demo/secrets";
    assert_eq!(get(&api, empty).await["items"], json!([]));
    api.with_null_items();
    assert_eq!(get(&api, empty).await["items"], Value::Null);
}

#[tokio::test(start_paused = true)]
async fn a_watch_tells_what_a_selector_gains_and_loses() {
    let api = Fake::new();
    api.put(config_map("a", "x"));
    let mut lines = watched(&api, "labelSelector=app%3Dweb&sendInitialEvents=true&allowWatchBookmarks=true&timeoutSeconds=300").await;
    assert_eq!(next(&mut lines).await, "BOOKMARK ");
    api.edit("configmaps/a", |map| map["metadata"]["labels"]["app"] = json!("web"));
    assert_eq!(next(&mut lines).await, "ADDED a");
    api.touch("configmaps/a");
    assert_eq!(next(&mut lines).await, "MODIFIED a");
    api.edit("configmaps/a", |map| map["metadata"]["labels"]["app"] = json!("db"));
    assert_eq!(next(&mut lines).await, "DELETED a");
    assert_eq!(next(&mut lines).await, "BOOKMARK ", "after a minute");
    api.end_watches("configmaps");
    assert!(lines.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_watch_goes_on_where_it_was_unless_that_is_forgotten() {
    let api = Fake::new();
    let seen = api.put(config_map("a", "x"))["metadata"]["resourceVersion"].clone();
    let from = format!("resourceVersion={}", seen.as_str().unwrap());
    api.put(config_map("b", "x"));
    let mut lines = watched(&api, &from).await;
    assert_eq!(next(&mut lines).await, "ADDED b");
    api.delete("configmaps/b");
    assert_eq!(next(&mut lines).await, "DELETED b");
    api.break_watches("configmaps");
    assert!(lines.next().await.unwrap().is_err());
    api.compact();
    let mut lines = watched(&api, &from).await;
    assert!(lines.next().await.unwrap().unwrap().contains("410"));
    let mut lines = watched(&api, "sendInitialEvents=true&resourceVersion=99999").await;
    assert!(lines.next().await.unwrap().unwrap().contains("Too large resource version"));
    api.without_watch_list();
    let initial = format!("{MAPS}?watch=true&sendInitialEvents=true");
    let refused = over(&api).lines(Call::new(Method::GET, initial)).await.err().unwrap();
    assert_eq!(refused.code(), Some(422));
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_is_held_back_hears_it_later() {
    let api = Fake::new();
    let mut lines = watched(&api, "resourceVersion=0").await;
    api.hold("configmaps");
    api.put(config_map("a", "x"));
    let wait = Duration::from_secs(10);
    assert!(tokio::time::timeout(wait, lines.next()).await.is_err());
    api.release("configmaps");
    assert_eq!(next(&mut lines).await, "ADDED a");
}

#[tokio::test(start_paused = true)]
async fn what_is_deleted_stays_while_something_holds_it() {
    let api = Fake::new();
    let mut held = config_map("a", "x");
    held["metadata"]["finalizers"] = json!(["example.io/x"]);
    api.put(held);
    api.delete("configmaps/a");
    assert!(api.get("configmaps/a").unwrap()["metadata"]["deletionTimestamp"].is_string());
    let more = json!({ "metadata": { "finalizers": ["example.io/x", "example.io/y"] } });
    let path = format!("{MAPS}/a");
    let answer = call(&api, Method::PATCH, &path, Some((Media::MergePatch, more))).await;
    assert_eq!(refused(answer).0, 422);
    let less = json!([{ "op": "remove", "path": "/metadata/finalizers" }]);
    call(&api, Method::PATCH, &path, Some((Media::JsonPatch, less))).await.unwrap();
    assert_eq!(api.get("configmaps/a"), None);
    api.put(json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p" } }));
    let pod = "/api/v1/namespaces/demo/pods/p";
    call(&api, Method::DELETE, pod, None).await.unwrap();
    assert!(api.get("pods/p").is_some());
    tokio::time::sleep(Duration::from_secs(31)).await;
    assert_eq!(api.get("pods/p"), None, "its grace is over");
    api.put(json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "q" } }));
    api.finish("pods/q");
    assert_eq!(api.names("pods"), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn preconditions_and_names_are_checked() {
    let api = Fake::new();
    let made = api.put(config_map("a", "x"));
    let path = format!("{MAPS}/a");
    let other = json!({ "preconditions": { "uid": "another" } });
    assert_eq!(refused(call(&api, Method::DELETE, &path, Some((Media::Json, other))).await).0, 409);
    let stale = json!({ "metadata": { "resourceVersion": "1" }, "data": { "text": "y" } });
    let put = call(&api, Method::PUT, &path, Some((Media::Json, stale))).await;
    assert_eq!(refused(put).0, 409);
    let mut new = made.clone();
    new["data"]["text"] = json!("y");
    call(&api, Method::PUT, &path, Some((Media::Json, new))).await.unwrap();
    let again = call(&api, Method::POST, MAPS, Some((Media::Json, config_map("a", "z")))).await;
    assert_eq!(refused(again).0, 409);
    let mut unnamed = config_map("", "z");
    unnamed["metadata"] = json!({ "generateName": "web-" });
    let made = call(&api, Method::POST, MAPS, Some((Media::Json, unnamed))).await.unwrap();
    assert!(made["metadata"]["name"].as_str().unwrap().starts_with("web-"));
    let missing = call(&api, Method::GET, &format!("{MAPS}/none"), None).await;
    assert_eq!(refused(missing).0, 404);
}

#[tokio::test(start_paused = true)]
async fn the_generation_counts_what_is_not_status() {
    let api = Fake::new();
    let made = api.put(site("web"));
    assert_eq!(made["metadata"]["generation"], 1);
    let status = json!({ "spec": { "replicas": 9 }, "status": { "said": "x" } });
    let path = "/apis/example.io/v1/namespaces/demo/sites/web";
    let sent = Some((Media::MergePatch, status.clone()));
    let written = call(&api, Method::PATCH, &format!("{path}/status"), sent).await.unwrap();
    assert_eq!(
        (&written["spec"]["replicas"], &written["status"]["said"]),
        (&json!(1), &json!("x"))
    );
    assert_eq!(written["metadata"]["generation"], 1);
    let other = json!({ "spec": { "replicas": 9 }, "status": { "said": "y" } });
    let written = call(&api, Method::PATCH, path, Some((Media::MergePatch, other))).await.unwrap();
    assert_eq!(
        (&written["spec"]["replicas"], &written["status"]["said"]),
        (&json!(9), &json!("x"))
    );
    assert_eq!(written["metadata"]["generation"], 2);
    assert_eq!(api.touch("sites/web")["metadata"]["generation"], 2);
}

#[tokio::test(start_paused = true)]
async fn an_account_does_what_it_may() {
    let api = Fake::new();
    let as_account = async |method: Method, path: &str| {
        let account = Identity::ServiceAccount { namespace: "demo".into(), name: "sites".into() };
        over(&api).call(Call::new(method, path).identity(account)).await
    };
    as_account(Method::GET, MAPS).await.unwrap();
    api.deny("demo/sites", "list", "configmaps");
    let refused = as_account(Method::GET, MAPS).await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "403 configmaps is forbidden: User \"system:serviceaccount:demo:sites\" cannot list resource \"configmaps\" in API group \"\" in the namespace \"demo\""
    );
    api.allow("demo/sites", "*", "configmaps");
    as_account(Method::GET, MAPS).await.unwrap();
    let asked = api.asked();
    assert_eq!(asked.last().unwrap().shown(), "GET configmaps as demo/sites");
    assert_eq!(asked[1].code, Some(403));
}

#[tokio::test(start_paused = true)]
async fn a_question_about_a_right_is_answered_by_its_rule() {
    let api = Fake::new();
    let asks = async |name: &str| {
        let spec = json!({
            "user": format!("system:serviceaccount:demo:{name}"),
            "resourceAttributes": { "verb": "get", "resource": "secrets", "namespace": "demo" },
        });
        let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
        let answer = call(&api, Method::POST, path, Some((Media::Json, json!({ "spec": spec }))));
        answer.await.map(|review| review["status"]["allowed"].clone())
    };
    api.rule("demo/a", "get", "secrets", Verdict::Denied);
    api.rule("demo/b", "*", "secrets", Verdict::Fails(503));
    api.rule("demo/c", "get", "*", Verdict::Never);
    api.rule("demo/d", "get", "secrets", Verdict::Late(Duration::from_secs(2)));
    assert_eq!(asks("a").await.unwrap(), json!(false));
    assert_eq!(asks("b").await.unwrap_err().code(), Some(503));
    assert!(matches!(asks("c").await, Err(Error::Timeout(_))));
    let before = tokio::time::Instant::now();
    assert_eq!(asks("d").await.unwrap(), json!(true));
    assert_eq!(before.elapsed().as_secs(), 2);
    assert_eq!(asks("e").await.unwrap(), json!(true));
}

#[tokio::test(start_paused = true)]
async fn faults_happen_as_often_as_they_were_asked_for() {
    let api = Fake::new();
    api.put(config_map("a", "x"));
    let path = format!("{MAPS}/a");
    api.fault(
        Fault::answers("GET", "configmaps", 503)
            .saying("down")
            .reason("Down")
            .retry_after(7)
            .of("host")
            .times(1),
    );
    let answer = call(&api, Method::GET, &path, None).await.unwrap_err();
    assert_eq!((answer.code(), answer.retry_after()), (Some(503), Some(Duration::from_secs(7))));
    get(&api, &path).await;
    api.fault(Fault::does("DELETE", "", Effect::Lost).times(1));
    assert!(call(&api, Method::DELETE, &path, None).await.is_err());
    assert_eq!(api.get("configmaps/a"), None, "it was executed");
    api.fault(Fault::does("GET", "", Effect::Cut(5)).times(1));
    assert!(matches!(call(&api, Method::GET, MAPS, None).await, Err(Error::Connection(_))));
    api.fault(Fault::does("GET", "", Effect::Never).times(1));
    assert!(matches!(call(&api, Method::GET, MAPS, None).await, Err(Error::Timeout(_))));
    api.fault(Fault::does("GET", "", Effect::Late(Duration::from_secs(2))).times(1));
    let before = tokio::time::Instant::now();
    get(&api, MAPS).await;
    assert_eq!(before.elapsed().as_secs(), 2);
    api.fault(Fault::does("GET", "", Effect::Down));
    assert!(call(&api, Method::GET, MAPS, None).await.is_err());
    api.heal();
    get(&api, MAPS).await;
}

#[tokio::test(start_paused = true)]
async fn kinds_come_and_go() {
    let api = Fake::new();
    let served = Served::new("x.io/v1", "Tree", "trees").cluster_scoped().without_status();
    api.serve(served.with_atomic_conditions().with_grace(Duration::from_secs(1)));
    api.put(json!({ "apiVersion": "x.io/v1", "kind": "Tree", "metadata": { "name": "oak" } }));
    assert_eq!(api.names("trees"), ["oak"]);
    assert_eq!(get(&api, "/apis/x.io/v1/trees/oak").await["metadata"]["namespace"], Value::Null);
    let served = get(&api, "/apis/x.io/v1").await;
    assert_eq!(served["resources"].as_array().unwrap().len(), 1, "without a status");
    let mut lines = over(&api)
        .lines(Call::new(Method::GET, "/apis/x.io/v1/trees?watch=true&resourceVersion=0"))
        .await
        .unwrap();
    assert_eq!(next(&mut lines).await, "ADDED oak");
    assert_eq!(api.watched(), [("trees".to_owned(), "host".to_owned())]);
    api.withdraw("trees");
    assert!(lines.next().await.is_none());
    assert_eq!(refused(call(&api, Method::GET, "/apis/x.io/v1", None).await).0, 404);
    assert_eq!(refused(call(&api, Method::GET, "/apis/x.io/v1/trees", None).await).0, 404);
}
