//! The control plane that all other tier-3 tests stand on, itself under test.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use e2e::control_plane::{
    ControlPlane, GIVEN_CLUSTER, Options, Program, SHARED_INSTANCE, User, audit, client, running_in,
};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret, ServiceAccount};
use kube::Api;
use kube::api::{DeleteParams, ListParams, ObjectMeta, PostParams, WatchParams};
use serde_json::json;
use tokio::time::{Instant, sleep};

/// These tests are about servers of our own; a given cluster is what it is.
fn given_cluster() -> bool {
    let given = std::env::var_os(GIVEN_CLUSTER).is_some_and(|file| !file.is_empty());
    if given {
        eprintln!("not run: {GIVEN_CLUSTER} is set, and this needs a server of our own");
    }
    given
}

async fn within(limit: Duration, what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !holds().await {
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

async fn create_namespace(control_plane: &ControlPlane) -> String {
    let admin = control_plane.client(User::Admin).await.unwrap();
    let metadata = ObjectMeta { generate_name: Some("t-".into()), ..ObjectMeta::default() };
    let namespace = Namespace { metadata, ..Namespace::default() };
    let created = Api::all(admin).create(&PostParams::default(), &namespace).await.unwrap();
    created.metadata.name.unwrap()
}

fn config_map(name: &str) -> ConfigMap {
    let metadata = ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() };
    ConfigMap { metadata, data: Some([("k".into(), "v".into())].into()), ..ConfigMap::default() }
}

#[tokio::test]
async fn a_stopped_control_plane_leaves_nothing_behind() {
    if given_cluster() {
        return;
    }
    let before = Instant::now();
    let control_plane = ControlPlane::start(Options::default()).await.unwrap();
    eprintln!("started in {:?}", before.elapsed());
    let folder = control_plane.folder().to_owned();
    assert_eq!(running_in(&folder).len(), 2);

    let admin = control_plane.client(User::Admin).await.unwrap();
    assert_eq!(admin.apiserver_version().await.unwrap().git_version, "v1.36.2");
    let alice = control_plane.client(User::Alice).await.unwrap();
    let refused = Api::<Namespace>::all(alice).list(&ListParams::default()).await.unwrap_err();
    assert!(refused.to_string().contains("forbidden"), "{refused}");

    // A client that still watches must not hold the server up.
    let watched = Api::<Namespace>::all(admin.clone());
    let stream = watched.watch(&WatchParams::default(), "0").await.unwrap();
    let before = Instant::now();
    control_plane.stop().await.unwrap();
    let took = before.elapsed();
    eprintln!("stopped in {took:?}");
    // Whoever does not end when asked is killed after ten seconds.
    assert!(took < Duration::from_secs(10), "a stop without a kill takes about 1 s, not {took:?}");
    drop(stream);
    assert_eq!((running_in(&folder), folder.exists()), (vec![], false));
}

#[tokio::test]
async fn two_instances_run_side_by_side_and_a_dropped_one_is_gone() {
    if given_cluster() {
        return;
    }
    let own = ControlPlane::start(Options::default()).await.unwrap();
    let shared = ControlPlane::shared().await.unwrap();
    assert_ne!((own.url(), own.ca_pem()), (shared.url(), shared.ca_pem()));
    assert_ne!(own.token(User::Alice).unwrap(), shared.token(User::Alice).unwrap());

    let admin = own.client(User::Admin).await.unwrap();
    let maps = Api::<ConfigMap>::namespaced(admin, "default");
    maps.create(&PostParams::default(), &config_map("only-here")).await.unwrap();
    let other = shared.client(User::Admin).await.unwrap();
    let there = Api::<ConfigMap>::namespaced(other, "default").get_opt("only-here").await.unwrap();
    assert_eq!(there, None);

    let folder = own.folder().to_owned();
    drop(own);
    assert_eq!((running_in(&folder), folder.exists()), (vec![], false));
    assert!(!running_in(shared.folder()).is_empty());
}

/// Set for the child process that plays the parent which is killed.
const ACT_AS_PARENT: &str = "NAGAYA_TEST_LIFELINE_PARENT";

#[tokio::test]
async fn a_killed_parent_leaves_no_server() {
    if given_cluster() {
        return;
    }
    if std::env::var_os(ACT_AS_PARENT).is_some() {
        let control_plane = ControlPlane::start(Options::default()).await.unwrap();
        println!("\nfolder={}", control_plane.folder().display());
        std::future::pending::<()>().await;
    }
    let mut parent = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "control_plane::a_killed_parent_leaves_no_server", "--nocapture"])
        .env(ACT_AS_PARENT, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(parent.stdout.take().unwrap()).lines().map_while(Result::ok);
    let folder = lines.find_map(|l| l.strip_prefix("folder=").map(PathBuf::from)).unwrap();
    let lifeline = !running_in(&folder).iter().any(|pid| !is_ours(*pid));
    assert_eq!(running_in(&folder).len(), 2);

    parent.kill().unwrap();
    parent.wait().unwrap();
    // Given binaries know no lifeline; the next start ends those.
    if lifeline {
        let gone = async || running_in(&folder).is_empty();
        within(Duration::from_secs(30), "all servers ended", gone).await;
    }
    ControlPlane::start(Options::default()).await.unwrap().stop().await.unwrap();
    assert_eq!((running_in(&folder), folder.exists()), (vec![], false));
}

/// Whether a process runs the multi-call binary.
fn is_ours(pid: u32) -> bool {
    let file = std::fs::read_link(Path::new("/proc").join(pid.to_string()).join("exe"));
    file.is_ok_and(|file| file.ends_with("control-plane"))
}

#[tokio::test]
async fn the_audit_log_tells_who_did_what() {
    if given_cluster() {
        return;
    }
    let shared = ControlPlane::shared().await.unwrap();
    let namespace = create_namespace(shared).await;
    let log = shared.audit().unwrap().from_now().unwrap();
    let seen = |verb: &str, resource: &str| -> Vec<audit::Event> {
        let events = log.events().unwrap().into_iter();
        events.filter(|e| e.verb == verb && e.is_about(resource, &namespace)).collect()
    };

    let alice = shared.client(User::Alice).await.unwrap();
    let maps = Api::<ConfigMap>::namespaced(alice, &namespace);
    maps.create(&PostParams::default(), &config_map("refused")).await.unwrap_err();
    let admin = shared.client(User::Admin).await.unwrap();
    let maps = Api::<ConfigMap>::namespaced(admin.clone(), &namespace);
    maps.create(&PostParams::default(), &config_map("made")).await.unwrap();
    let creates: Vec<_> = seen("create", "configmaps")
        .into_iter()
        .filter(|event| !event.user.username.starts_with("system:"))
        .map(|event| (event.actor().to_owned(), event.code()))
        .collect();
    assert_eq!(creates, [("alice".to_owned(), Some(403)), ("admin".to_owned(), Some(201))]);

    // Right after its answer a write is there with both objects, a secret without.
    let metadata = ObjectMeta { name: Some("s".into()), ..ObjectMeta::default() };
    let secret = Secret { metadata, ..Secret::default() };
    let secrets = Api::<Secret>::namespaced(admin.clone(), &namespace);
    secrets.create(&PostParams::default(), &secret).await.unwrap();
    let [secret] = &seen("create", "secrets")[..] else { panic!("one create of a secret") };
    assert_eq!((&secret.request_object, &secret.response_object), (&None, &None));
    let map = seen("create", "configmaps").into_iter().find(|e| e.actor() == "admin").unwrap();
    assert_eq!(map.request_object.unwrap()["data"], json!({"k": "v"}));
    assert_eq!(map.response_object.unwrap()["metadata"]["namespace"], namespace);

    // A watch is open from its first line to its last.
    let of_ours = |event: &audit::Event| event.is_about("configmaps", &namespace);
    let stream = maps.watch(&WatchParams::default(), "0").await.unwrap();
    let open = async |count| log.open_watches(of_ours).unwrap().len() == count;
    within(Duration::from_secs(30), "one open watch", async || open(1).await).await;
    drop(stream);
    within(Duration::from_secs(30), "no open watch", async || open(0).await).await;
}

#[tokio::test]
async fn a_service_account_gets_a_token_and_the_controller_manager_works() {
    let shared = ControlPlane::shared().await.unwrap();
    let namespace = create_namespace(shared).await;
    let admin = shared.client(User::Admin).await.unwrap();
    let accounts = Api::<ServiceAccount>::namespaced(admin.clone(), &namespace);
    if shared.has_controller_manager() {
        let default = async || accounts.get_opt("default").await.unwrap().is_some();
        within(Duration::from_secs(30), "the default ServiceAccount", default).await;
    }
    let metadata = ObjectMeta { name: Some("host".into()), ..ObjectMeta::default() };
    let account = ServiceAccount { metadata, ..ServiceAccount::default() };
    accounts.create(&PostParams::default(), &account).await.unwrap();
    let spec = TokenRequestSpec { expiration_seconds: Some(3600), ..TokenRequestSpec::default() };
    let request = TokenRequest { spec, ..TokenRequest::default() };
    let answer =
        accounts.create_token_request("host", &PostParams::default(), &request).await.unwrap();

    let file = shared.kubeconfig_with_token(&namespace, &answer.status.unwrap().token).unwrap();
    let host = client(&file).await.unwrap();
    let refused = Api::<Secret>::namespaced(host, &namespace).get_opt("s").await.unwrap_err();
    let name = format!("system:serviceaccount:{namespace}:host");
    assert!(refused.to_string().contains(&name), "{refused}");
    // A server of ours goes as a whole.
    if shared.is_given() {
        let namespaces = Api::<Namespace>::all(admin);
        namespaces.delete(&namespace, &DeleteParams::default()).await.unwrap();
    }
}

#[tokio::test]
async fn an_attached_instance_is_its_owners() {
    let shared = ControlPlane::shared().await.unwrap();
    let attached = ControlPlane::attach(shared.folder()).unwrap();
    assert_eq!((attached.url(), attached.ca_pem()), (shared.url(), shared.ca_pem()));
    assert_eq!(attached.has_controller_manager(), shared.has_controller_manager());
    attached.stop().await.unwrap();
    let admin = shared.client(User::Admin).await.unwrap();
    admin.apiserver_version().await.unwrap();

    let error = ControlPlane::attach("nowhere").unwrap_err();
    assert!(error.to_string().contains("attaching to the instance in nowhere"), "{error}");
    assert_eq!(SHARED_INSTANCE, "NAGAYA_TEST_CONTROL_PLANE");
}

#[tokio::test]
async fn a_server_of_our_own_can_stand_still_and_start_again() {
    if given_cluster() {
        return;
    }
    let mut own = ControlPlane::start(Options::default()).await.unwrap();
    let admin = own.client(User::Admin).await.unwrap();
    let maps = Api::<ConfigMap>::namespaced(admin, "default");
    maps.create(&PostParams::default(), &config_map("kept")).await.unwrap();
    for program in [Program::ApiServer, Program::Etcd] {
        own.restart(program).await.unwrap();
        let there = async || maps.get("kept").await.is_ok();
        within(Duration::from_secs(10), "the object is still there", there).await;
    }
    own.pause(Program::Etcd).unwrap();
    let write = async { maps.create(&PostParams::default(), &config_map("late")).await };
    tokio::time::timeout(Duration::from_millis(500), write).await.unwrap_err();
    own.resume(Program::Etcd).unwrap();
    within(Duration::from_secs(10), "a read", async || maps.get("kept").await.is_ok()).await;
    own.stop().await.unwrap();
}
