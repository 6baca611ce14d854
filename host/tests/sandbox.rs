//! The sandbox with real guests, the real engine and the real compile child, without a cluster.
//!
//! Guests misbehave in `describe`, which needs no cluster. Times are asserted at five times their bound.

#![cfg(test)] // Tells clippy that helpers are test code too.
#![expect(clippy::disallowed_methods, reason = "how long a guest was let run")]

mod contract;
mod guests;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use nagaya::{
    cluster::Refusing,
    journal::Speaker,
    metrics::{Metrics, QueueStats, Watched},
    model::{
        digest::Digest,
        kind::Kind,
        manifest::{Manifest, Mapping, PredicateStep, Projection, Verb},
    },
    sandbox::{
        Allocation, Chance, CompilerConfig, ControllerLog, Error, Failure, NoManifest, Program,
        Returned, Run, RunLimits, Sandbox, SandboxConfig,
    },
};
use serde_json::{Value, json};
use tokio::{runtime::Handle, sync::watch};

use guests::{build, built, guest};

/// One folder for all tests and test runs: code is compiled once.
fn config() -> SandboxConfig {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sandbox-code");
    SandboxConfig { slots: 8, compiler: compiler(), ..SandboxConfig::new(folder) }
}

fn compiler() -> CompilerConfig {
    CompilerConfig {
        program: Some(PathBuf::from(env!("CARGO_BIN_EXE_nagaya"))),
        ..CompilerConfig::default()
    }
}

/// A compiler that cannot be started.
fn no_compiler() -> CompilerConfig {
    CompilerConfig { program: Some("/nonexistent".into()), ..CompilerConfig::default() }
}

fn sandbox(config: SandboxConfig) -> Sandbox {
    Sandbox::start(config, Handle::current()).unwrap()
}

async fn compile(sandbox: &Sandbox, bytes: Arc<[u8]>) -> Result<Program, Error> {
    let digest = Digest::of(&bytes);
    sandbox.compile(bytes, &digest, "test").await
}

struct NoQueue;

impl Watched for NoQueue {
    fn stats(&self) -> QueueStats {
        QueueStats::default()
    }
}

/// The hostile guest in a sandbox of its own.
struct Hostile {
    sandbox: Sandbox,
    program: Program,
    limits: RunLimits,
    metrics: Metrics,
    quota: Arc<ControllerLog>,
    stop: watch::Sender<bool>,
}

impl Hostile {
    async fn new() -> Self {
        Self::with(config()).await
    }

    async fn with(config: SandboxConfig) -> Self {
        let sandbox = sandbox(config);
        let program = compile(&sandbox, guest("hostile")).await.unwrap();
        let metrics = Metrics::default();
        let queue: Weak<NoQueue> = Weak::new();
        let quota =
            Arc::new(ControllerLog::new(metrics.controller("demo/hostile", queue), Arc::default()));
        // Long enough never to be what ends a test on a loaded machine.
        let limits = RunLimits {
            deadline: Duration::from_secs(60),
            host_call: Duration::from_secs(60),
            wall: Duration::from_secs(120),
            ..RunLimits::default()
        };
        Self { sandbox, program, limits, metrics, quota, stop: watch::channel(false).0 }
    }

    fn run(&self, config: &Value) -> Run {
        Run {
            cluster: Arc::new(Refusing),
            team: "demo".into(),
            behind: false,
            chance: Chance::Live,
            config: config.to_string().into(),
            limits: self.limits.clone(),
            stop: self.stop.subscribe(),
            span: tracing::Span::none(),
            speaker: Speaker::default(),
            log: self.quota.clone(),
        }
    }

    async fn configured(&self, config: Value) -> Result<Manifest, NoManifest> {
        self.sandbox.describe(&self.program, self.run(&config)).await
    }

    async fn does(&self, steps: &str) -> Result<Manifest, NoManifest> {
        self.configured(json!({ "describe": steps })).await
    }

    async fn fails(&self, steps: &str) -> Failure {
        match self.does(steps).await {
            Err(NoManifest::Failed(failure)) => failure,
            other => panic!("{steps}: {other:?}"),
        }
    }

    fn dropped_bytes(&self) -> u64 {
        let page = self.metrics.page().unwrap();
        let line =
            page.lines().find(|line| line.starts_with("nagaya_guest_log_dropped_bytes_total{"));
        line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
    }
}

fn trap(failure: Failure) -> String {
    match failure {
        Failure::Trap(text) => text,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_guest_says_what_it_needs() {
    let hostile = Hostile::new().await;
    let example = "example.com/v1";
    let manifest = hostile
        .configured(json!({ "manifest": {
            "primary": { "apiVersion": example, "kind": "Site", "labelSelector": "a=b",
                         "when": { "any": ["generationChanged", { "matchesLabels": "c" }] } },
            "owns": [{ "apiVersion": example, "kind": "Page" }],
            "watches": [{ "apiVersion": example, "kind": "Theme", "wakes": { "index": "theme" } }],
            "readsLive": [{ "apiVersion": "v1", "kind": "Secret" }],
            "writes": [{ "apiVersion": example, "kind": "Page", "verbs": ["apply", "delete"] }],
            "indexes": [{ "name": "theme", "apiVersion": example, "kind": "Site", "path": "spec.theme" }],
            "finalizer": "example.com/site",
        } }))
        .await
        .unwrap();
    let site = Kind::new("example.com/v1", "Site");
    assert_eq!((&manifest.primary.kind, &manifest.primary.mapping), (&site, &Mapping::Same));
    assert_eq!(manifest.primary.label_selector.as_deref(), Some("a=b"));
    let steps = [
        PredicateStep::GenerationChanged,
        PredicateStep::MatchesLabels("c".into()),
        PredicateStep::Either,
    ];
    assert_eq!(manifest.primary.predicate, steps);
    assert_eq!(manifest.owned[0].projection, Projection::Metadata);
    assert_eq!(manifest.owned[0].mapping, Mapping::Controller);
    assert_eq!(manifest.watches[0].mapping, Mapping::Index("theme".into()));
    assert!(manifest.live[0].is_secret());
    assert_eq!(
        manifest.verbs(&Kind::new("example.com/v1", "Page")),
        [Verb::Apply, Verb::Delete].into()
    );
    assert_eq!(manifest.indexes[0].path, "spec.theme");
    assert_eq!(manifest.finalizer.as_deref(), Some("example.com/site"));
}

#[tokio::test]
async fn a_guest_may_refuse_its_config_and_the_host_its_manifest() {
    let hostile = Hostile::new().await;
    let refused =
        hostile.configured(json!({ "describe": "refuse", "message": "no such region" })).await;
    assert!(matches!(refused, Err(NoManifest::Refused(text)) if text == "no such region"));
    let unfit = hostile.configured(json!({ "manifest": {
        "primary": { "apiVersion": "a.b/v1", "kind": "C" }, "finalizer": "plain" } }));
    assert!(matches!(unfit.await, Err(NoManifest::Unfit(_))));
    let newer = hostile.configured(json!({ "manifest": {
        "primary": { "apiVersion": "a.b/v1", "kind": "C" }, "moods": [] } }));
    let Err(NoManifest::Unfit(error)) = newer.await else { panic!("it is taken") };
    let said = error.to_string();
    assert!(said.contains("unknown field `moods`") && said.contains("a newer host"), "{said}");
}

#[tokio::test]
async fn describe_reads_no_cluster() {
    let hostile = Hostile::new().await;
    let Err(NoManifest::Refused(text)) = hostile.does("write").await else { panic!("it wrote") };
    assert!(
        text.contains("NotDeclared") && text.contains("describe may not read the cluster"),
        "{text}"
    );
}

#[tokio::test]
async fn what_a_run_returns_is_data() {
    let hostile = Hostile::new().await;
    let run = hostile.run(&json!({}));
    let result = hostile.sandbox.reconcile(&hostile.program, run, Some("demo"), "a").await;
    let Err(Failure::Returned(Returned::Retry(text))) = result else { panic!("{result:?}") };
    assert!(
        text.contains("NotDeclared"),
        "the hostile guest hands on what the cluster said: {text}"
    );
}

#[tokio::test]
async fn what_a_guest_returns_is_one_line_of_a_kibibyte() {
    let hostile = Hostile::new().await;
    let evil = format!("first\nERROR nagaya: forged\r\u{1b}[31m{}", "x".repeat(1 << 20));
    let is_fit = |text: &str| {
        assert!(text.len() <= 1_024 && text.starts_with("first\\nERROR"), "{text}");
        assert!(!text.contains(char::is_control), "{text:?}");
    };
    for failure in ["refuse", "retry", "terminal", "invalid"] {
        let refused = hostile.configured(json!({"describe": failure, "message": evil})).await;
        let Err(NoManifest::Refused(text)) = refused else { panic!("{failure}: {refused:?}") };
        is_fit(&text);
    }
    // A panic's words have come through the log, which shows line ends in its own way.
    let broken = hostile.configured(json!({"describe": "panic", "message": evil})).await;
    let Err(NoManifest::Failed(Failure::Trap(text))) = broken else { panic!("{broken:?}") };
    assert!(text.len() <= 1_024 && !text.contains(char::is_control), "{text:?}");
}

#[tokio::test]
async fn an_instance_lives_for_one_call() {
    let hostile = Hostile::new().await;
    for _ in 0..20 {
        let Err(NoManifest::Refused(said)) = hostile.does("count").await else {
            panic!("it answers how often it was called")
        };
        assert_eq!(said, "0 times before");
    }
}

#[tokio::test]
async fn an_endless_loop_ends_at_its_deadline() {
    let mut hostile = Hostile::new().await;
    let deadline = Duration::from_millis(200);
    hostile.limits.deadline = deadline;
    // A fill of 32 MiB is one instruction, which no tick interrupts.
    for steps in ["loop", "fill", "log-flood", "stdout-flood"] {
        let start = Instant::now();
        assert_eq!(hostile.fails(steps).await, Failure::Deadline, "{steps}");
        let took = start.elapsed();
        assert!((deadline / 2..deadline * 5).contains(&took), "{steps} took {took:?}");
    }
    assert!(hostile.does("ok").await.is_ok());
}

#[tokio::test]
async fn a_log_flood_is_dropped_and_counted() {
    let mut hostile = Hostile::new().await;
    hostile.does("log-flood:10").await.unwrap();
    assert_eq!(hostile.dropped_bytes(), 0, "10 KiB fit");
    hostile.does("log-flood:1000").await.unwrap();
    let dropped = hostile.dropped_bytes();
    assert!((1_024..1_000 * 1_024).contains(&dropped), "{dropped}");
    hostile.limits.deadline = Duration::from_millis(100);
    hostile.fails("stdout-flood").await;
    assert!(hostile.dropped_bytes() > dropped);
}

#[tokio::test]
async fn a_memory_bomb_is_called_memory() {
    let mut hostile = Hostile::new().await;
    assert_eq!(hostile.fails("alloc").await, Failure::Memory);
    hostile.limits.memory = 256 << 10;
    assert_eq!(hostile.fails("ok").await, Failure::Memory, "its first memory is larger already");
    hostile.limits.memory = 8 << 20;
    assert!(hostile.does("ok").await.is_ok());
    assert_eq!(hostile.fails("fill").await, Failure::Memory, "32 MiB of 8");
}

#[tokio::test]
async fn a_panic_is_a_trap_with_its_words() {
    let hostile = Hostile::new().await;
    let text = trap(hostile.fails("panic").await);
    assert!(text.contains("panicked or aborted") && text.contains("told to panic"), "{text}");
    let text = trap(hostile.fails("trap").await);
    assert!(!text.contains("told to panic"), "nothing of another run: {text}");
    let text = trap(hostile.fails("stack").await);
    assert!(text.contains("stack overflow"), "{text}");
}

#[tokio::test]
async fn an_exit_is_a_failure() {
    let hostile = Hostile::new().await;
    assert_eq!(hostile.fails("exit:0").await, Failure::Exit(0));
    assert_eq!(
        hostile.fails("exit:3").await,
        Failure::Exit(1),
        "WASI 0.2 knows good and bad alone"
    );
}

#[tokio::test]
async fn a_huge_answer_is_too_large() {
    let hostile = Hostile::new().await;
    for (steps, words) in [
        ("huge-answer", "in its answer"),
        ("now:1,huge-output", "import called before was runtime.now"),
    ] {
        let Failure::TooLarge(text) = hostile.fails(steps).await else { panic!("{steps}") };
        assert!(text.contains(words), "{text}");
    }
}

#[tokio::test]
async fn a_sleep_is_cut_by_the_limit_of_a_host_call() {
    let mut hostile = Hostile::new().await;
    let limit = Duration::from_millis(300);
    hostile.does("sleep:20").await.unwrap();
    for limits in [
        RunLimits { host_call: limit, ..hostile.limits.clone() },
        RunLimits { wall: limit, ..hostile.limits.clone() },
    ] {
        hostile.limits = limits;
        let start = Instant::now();
        assert_eq!(hostile.fails("sleep:60000").await, Failure::Wall);
        assert!((limit..limit * 5).contains(&start.elapsed()), "{:?}", start.elapsed());
        hostile.limits.host_call = Duration::from_secs(60);
    }
}

#[tokio::test]
async fn a_stop_flag_ends_a_run() {
    // The flood shows that the run has begun.
    for steps in ["log-flood:100,loop", "log-flood:100,sleep:60000"] {
        let hostile = Hostile::new().await;
        let (failure, ()) = tokio::join!(hostile.fails(steps), async {
            while hostile.dropped_bytes() == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            hostile.stop.send_replace(true);
        });
        assert_eq!(failure, Failure::Drained, "{steps}");
        assert_eq!(hostile.fails("ok").await, Failure::Drained, "nothing starts afterwards");
    }
}

#[tokio::test]
async fn a_slot_is_free_again_after_every_end() {
    let mut hostile = Hostile::with(SandboxConfig { slots: 1, ..config() }).await;
    hostile.limits.wall = Duration::from_millis(500);
    hostile.limits.deadline = Duration::from_millis(50);
    for steps in ["loop", "panic", "alloc", "exit:1", "huge-answer", "sleep:60000", "stack"] {
        hostile.fails(steps).await;
        hostile.does("ok").await.unwrap();
    }
    let dropped =
        tokio::time::timeout(Duration::from_millis(20), hostile.does("sleep:60000")).await;
    assert!(dropped.is_err());
    hostile.does("ok").await.unwrap();
}

#[tokio::test]
async fn runs_beyond_the_slots_wait() {
    let hostile = Hostile::with(SandboxConfig { slots: 2, ..config() }).await;
    let runs = (0..20).map(|_| hostile.does("spin:1,sleep:5"));
    for result in futures::future::join_all(runs).await {
        result.unwrap();
    }
}

#[tokio::test]
async fn an_endless_loop_does_not_keep_others_from_running() {
    let hostile = Hostile::new().await;
    let loops = futures::future::join_all((0..6).map(|_| hostile.fails("loop")));
    let bystander = async {
        for _ in 0..20 {
            hostile.does("ok").await.unwrap();
        }
        hostile.stop.send_replace(true);
    };
    let (failures, ()) = tokio::join!(loops, bystander);
    assert!(
        failures.iter().all(|failure| *failure == Failure::Drained),
        "they ran all the time: {failures:?}"
    );
}

#[tokio::test]
async fn the_fallback_allocator_works_too() {
    let hostile =
        Hostile::with(SandboxConfig { allocation: Allocation::OnDemand, ..config() }).await;
    hostile.does("ok").await.unwrap();
    assert_eq!(hostile.fails("alloc").await, Failure::Memory);
    let text = trap(hostile.fails("stack").await);
    assert!(text.contains("stack overflow"), "{text}");
}

#[tokio::test]
async fn an_import_that_is_not_built_is_refused_by_name() {
    let sandbox = sandbox(config());
    let error = compile(&sandbox, guest("http_user")).await.unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("nagaya:controller/http@0.2.0") && text.contains("not built yet"),
        "{text}"
    );
    assert!(error.is_refusal());
}

#[tokio::test]
async fn bytes_under_another_digest_are_refused() {
    let sandbox = sandbox(config());
    let other = Digest::of(b"other");
    let error = sandbox.compile(guest("hostile"), &other, "test").await.unwrap_err();
    assert!(matches!(error, Error::OtherBytes { .. }), "{error}");
}

#[tokio::test]
async fn what_is_no_component_is_refused_with_advice() {
    let sandbox = sandbox(SandboxConfig { compiler: no_compiler(), ..config() });
    let error = compile(&sandbox, b"\0asm\x01\0\0\0".as_slice().into()).await.unwrap_err();
    assert!(error.to_string().contains("wasm32-wasip2") && error.is_refusal(), "{error}");
    let error = compile(&sandbox, b"hello".as_slice().into()).await.unwrap_err();
    assert!(error.to_string().contains("not a WebAssembly component"), "{error}");
}

fn leb(mut number: usize) -> Vec<u8> {
    let mut bytes = vec![];
    while number > 0x7f {
        bytes.push(u8::try_from(number & 0x7f).unwrap() | 0x80);
        number >>= 7;
    }
    bytes.push(u8::try_from(number).unwrap());
    bytes
}

fn section(id: u8, content: &[u8]) -> Vec<u8> {
    [vec![id], leb(content.len()), content.to_vec()].concat()
}

fn component(sections: &[u8]) -> Arc<[u8]> {
    [b"\0asm\x0d\0\x01\0", sections].concat().into()
}

/// A component around one core module of these sections.
fn around(sections: &[Vec<u8>]) -> Arc<[u8]> {
    component(&section(1, &[b"\0asm\x01\0\0\0".to_vec(), sections.concat()].concat()))
}

/// A core module of one function without parameters.
fn function(instructions: &[u8]) -> Arc<[u8]> {
    let body = [&[0], instructions, &[0x0b]].concat();
    let code = [vec![1], leb(body.len()), body].concat();
    around(&[section(1, &[1, 0x60, 0, 0]), section(3, &[1, 0]), section(10, &code)])
}

#[tokio::test]
async fn what_no_slot_can_hold_is_refused() {
    let sandbox = sandbox(config());
    let with = |memory: &[u8], instances: usize| {
        let module =
            [b"\0asm\x01\0\0\0".to_vec(), section(5, &[&[1, 0], memory].concat())].concat();
        let instances = [leb(instances), [0, 0, 0].repeat(instances)].concat();
        component(&[section(1, &module), section(2, &instances)].concat())
    };
    for (bytes, words) in [
        (with(&[1], 5), "contains 5 Wasm linear memories"),
        (with(&leb(1_025), 1), "exceeds the limit"),
        (with(&[0], 65), "core"),
    ] {
        let error = compile(&sandbox, bytes).await.unwrap_err();
        assert!(matches!(error, Error::DoesNotFit(_)) && error.is_refusal(), "{error:?}");
        assert!(error.to_string().contains(words), "{words}: {error}");
    }
    let error = compile(&sandbox, with(&[1], 4)).await.unwrap_err();
    assert!(matches!(error, Error::Link(_)), "four memories fit: {error}");
}

fn v128_const() -> Vec<u8> {
    [vec![0xfd, 0x0c], vec![0; 16]].concat()
}

#[tokio::test]
async fn a_refused_proposal_is_named() {
    let sandbox = sandbox(config());
    let relaxed = [v128_const(), v128_const(), vec![0xfd, 0x80, 0x02, 0x1a]].concat();
    for (bytes, words) in [
        (around(&[section(5, &[1, 4, 1])]), "memory64"),
        (around(&[section(5, &[1, 3, 1, 1])]), "threads must be enabled for shared memories"),
        (
            around(&[section(1, &[1, 0x60, 0, 0]), section(13, &[1, 0, 0])]),
            "exceptions proposal not enabled",
        ),
        (around(&[section(1, &[1, 0x5f, 0])]), "without the gc feature"),
        (function(&relaxed), "relaxed SIMD"),
        (component(&section(7, &[1, 0x43, 0, 1, 0])), "component model async"),
    ] {
        let error = compile(&sandbox, bytes).await.unwrap_err();
        assert!(error.to_string().contains(words), "{words}: {error}");
        assert!(error.is_refusal(), "{error}");
    }
}

#[tokio::test]
async fn proposals_that_languages_need_are_compiled() {
    let sandbox = sandbox(config());
    let simd = [v128_const(), vec![0x1a]].concat();
    for bytes in [function(&simd), function(&[0x12, 0])] {
        let error = compile(&sandbox, bytes).await.unwrap_err();
        assert!(matches!(error, Error::Link(_)), "compiled, and then no reconciler: {error}");
    }
}

/// Workloads with many kinds of fields, by the names that the guest `workloads` has for them.
fn workloads() -> Value {
    let pod = json!({
        "containers": [{
            "name": "server", "image": "server:1",
            "env": [{"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            "livenessProbe": {"httpGet": {"path": "/", "port": "http"}},
            "ports": [{"containerPort": 8080, "name": "http"}],
            "resources": {"limits": {"cpu": "500m", "memory": "1Gi"}},
            "volumeMounts": [{"mountPath": "/page", "name": "page"}],
        }],
        "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"labelSelector": {"matchLabels": {"app": "web"}}, "topologyKey": "zone"}]}},
        "tolerations": [{"operator": "Exists"}],
        "volumes": [
            {"configMap": {"items": [{"key": "a", "path": "b"}], "name": "page"}, "name": "page"},
            {"emptyDir": {"sizeLimit": "1Gi"}, "name": "scratch"},
            {"name": "all", "projected": {"sources": [{"secret": {"name": "s"}}, {"serviceAccountToken": {"path": "t"}}]}},
            {"csi": {"driver": "d", "volumeAttributes": {"a": "b"}}, "name": "csi"},
        ],
    });
    let template = json!({"metadata": {"labels": {"app": "web"}}, "spec": pod});
    let selector = json!({"matchLabels": {"app": "web"}});
    let metadata = json!({"annotations": {"a": "b"}, "name": "web"});
    json!({
        "deployment": {
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata,
            "spec": {"replicas": 2, "selector": selector, "template": template,
                     "strategy": {"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 1}}},
            "status": {"conditions": [{"status": "True", "type": "Available"}], "readyReplicas": 2},
        },
        "statefulSet": {
            "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": metadata,
            "spec": {"selector": selector, "serviceName": "web", "template": template, "volumeClaimTemplates": [{
                "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"},
                "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}]},
        },
        "pod": {
            "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod,
            "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]},
        },
        "job": {
            "apiVersion": "batch/v1", "kind": "Job", "metadata": metadata,
            "spec": {"backoffLimit": 3, "template": template,
                     "podFailurePolicy": {"rules": [{"action": "FailJob"}]}},
        },
    })
}

#[tokio::test]
async fn reconcilers_that_read_workloads_whole_are_admitted() {
    let release = guest("workloads");
    build(&["--profile", "small", "--package", "workloads"]);
    let hostile = Hostile::new().await;
    for (profile, component) in [("release", release), ("small", built("small", "workloads"))] {
        let program = compile(&hostile.sandbox, component).await;
        let program = program.unwrap_or_else(|error| panic!("{profile}: {error}"));
        let describe =
            async |config: &Value| hostile.sandbox.describe(&program, hostile.run(config)).await;
        let manifest = describe(&workloads()).await.unwrap();
        assert_eq!(manifest.owned.len(), 4, "{profile}");
        let (mut config, mut text) = (workloads(), String::new());
        loop {
            config["echo"] = json!(text.len());
            let Err(NoManifest::Refused(part)) = describe(&config).await else {
                panic!("{profile}: it answers with what it has read")
            };
            text.push_str(&part);
            if part.len() < 900 {
                break;
            }
        }
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), workloads(), "{profile}");
    }
}

#[tokio::test]
async fn a_compile_bomb_is_refused_and_the_host_lives() {
    let hostile = Hostile::new().await;
    // It passes the screen, which counts no values that a loop carries: 20,000 times 1,000.
    let values = [leb(1_000), [0x7f].repeat(1_000)].concat();
    let types = [&[2, 0x60, 0, 0, 0x60], &*values, &*values].concat();
    let round = [0x03, 1, 0x41, 1, 0x6a, 0x20, 0, 0x0d, 0, 0x0b].repeat(20_000);
    let body = [vec![1, 1, 0x7f], [0x41, 1].repeat(1_000), round, [0x1a].repeat(1_000), vec![0x0b]];
    let body = body.concat();
    let code = [vec![1], leb(body.len()), body].concat();
    let bomb = around(&[section(1, &types), section(3, &[1, 0]), section(10, &code)]);
    let start = Instant::now();
    let (error, runs) = tokio::join!(compile(&hostile.sandbox, bomb), async {
        hostile.does("ok").await.unwrap();
    });
    let ((), error) = (runs, error.unwrap_err());
    assert!(error.is_refusal() && error.to_string().contains("which is the limit"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(300), "{:?}", start.elapsed());
    println!("the bomb was refused after {:?}: {error}", start.elapsed());
    hostile.does("ok").await.unwrap();
}

#[tokio::test]
async fn a_compile_that_takes_too_long_is_killed_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let wall = Duration::from_millis(1);
    let config = SandboxConfig {
        compiler: CompilerConfig { wall, ..compiler() },
        ..SandboxConfig::new(folder.path().to_owned())
    };
    let error = compile(&sandbox(config), guest("hostile")).await.unwrap_err();
    assert!(error.to_string().contains("more than 1ms, which is the limit"), "{error}");
}

#[tokio::test]
async fn a_compiler_that_crashes_or_does_not_start_is_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let with = |program: &str| SandboxConfig {
        compiler: CompilerConfig { program: Some(program.into()), ..CompilerConfig::default() },
        ..SandboxConfig::new(folder.path().to_owned())
    };
    let error = compile(&sandbox(with("/bin/false")), guest("hostile")).await.unwrap_err();
    assert!(error.is_refusal() && error.to_string().contains("crashed"), "{error}");
    let error = compile(&sandbox(with("/nonexistent")), guest("hostile")).await.unwrap_err();
    assert!(!error.is_refusal(), "the host's own fault: {error}");
    // Whatever a child writes, it is not code.
    let error = compile(&sandbox(with("/bin/echo")), guest("hostile")).await.unwrap_err();
    assert!(error.is_refusal(), "{error}");
}

#[tokio::test]
async fn loaded_code_needs_no_second_compilation() {
    let folder = tempfile::tempdir().unwrap();
    let with = |compiler| SandboxConfig {
        compiler,
        slots: 2,
        ..SandboxConfig::new(folder.path().to_owned())
    };
    compile(&sandbox(with(compiler())), guest("hostile")).await.unwrap();
    Hostile::with(with(no_compiler())).await.does("ok").await.unwrap();
    let on_demand = SandboxConfig { allocation: Allocation::OnDemand, ..with(no_compiler()) };
    Hostile::with(on_demand).await.does("ok").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_components_are_made_once_and_shared() {
    use std::os::unix::fs::PermissionsExt;

    let folder = tempfile::tempdir().unwrap();
    let (script, counted) = (folder.path().join("compiler"), folder.path().join("counted"));
    let text = format!(
        "#!/bin/sh\necho once >> {}\nexec {} \"$@\"\n",
        counted.display(),
        env!("CARGO_BIN_EXE_nagaya")
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let compiler = CompilerConfig { program: Some(script), ..compiler() };
    let config =
        SandboxConfig { compiler, slots: 2, ..SandboxConfig::new(folder.path().join("code")) };
    let sandbox = sandbox(config);
    let bytes = guest("probe");
    let made = futures::future::join_all((0..10).map(|_| compile(&sandbox, bytes.clone()))).await;
    assert!(made.iter().all(Result::is_ok), "{made:?}");
    assert_eq!(std::fs::read_to_string(counted).unwrap(), "once\n");
}

#[tokio::test]
async fn changed_code_on_disk_is_compiled_again() {
    let folder = tempfile::tempdir().unwrap();
    let with = |compiler| SandboxConfig {
        compiler,
        slots: 2,
        ..SandboxConfig::new(folder.path().to_owned())
    };
    Hostile::with(with(compiler())).await;
    let code = |end: &str| {
        let mut files =
            std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
        files.find(|path| path.extension().is_some_and(|extension| extension == end))
    };
    let file = code("cwasm").unwrap();
    let good = std::fs::read(&file).unwrap();
    for position in [0, good.len() / 2, good.len() - 1] {
        let mut bad = good.clone();
        bad[position] ^= 1;
        std::fs::write(&file, bad).unwrap();
        let error = compile(&sandbox(with(no_compiler())), guest("hostile")).await.unwrap_err();
        assert!(!error.is_refusal(), "it must go to the compiler, which is not there: {error}");
        assert_eq!(code("cwasm"), None, "and is gone");
        Hostile::with(with(compiler())).await.does("ok").await.unwrap();
    }
}

/// Bytes in memory of what is mapped from below `folder`.
fn resident(folder: &Path) -> usize {
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let folder = folder.to_str().unwrap();
    let (mut ours, mut sum) = (false, 0);
    for line in maps.lines() {
        match line.strip_prefix("Rss:") {
            Some(size) if ours => {
                sum += size.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() << 10;
            }
            None if line.contains('/') => ours = line.contains(folder),
            // The first line of a mapping without a file begins with its address.
            None if line.split(' ').next().is_some_and(|word| word.contains('-')) => ours = false,
            Some(_) | None => (),
        }
    }
    sum
}

#[tokio::test]
async fn a_program_runs_after_its_pages_were_given_back() {
    // On a disk: what is in memory only cannot be paged out.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let with = |quiet| SandboxConfig {
        quiet,
        slots: 2,
        compiler: compiler(),
        ..SandboxConfig::new(folder.path().to_owned())
    };
    let used = {
        let hostile = Hostile::with(with(Duration::from_secs(3_600))).await;
        hostile.does("ok").await.unwrap();
        resident(folder.path())
    };
    assert!(used > 128 << 10, "{used} bytes of code are in memory after a run");
    let hostile = Hostile::with(with(Duration::from_millis(60))).await;
    for _ in 0..2 {
        hostile.does("ok").await.unwrap();
        let start = Instant::now();
        let mut left = resident(folder.path());
        while left > used / 2 {
            assert!(start.elapsed() < Duration::from_secs(60), "{left} of {used} bytes stay");
            tokio::task::yield_now().await;
            left = resident(folder.path());
        }
    }
    hostile.does("ok").await.unwrap();
}

/// What a guest hands over ends in conditions, Events and logs: it is cut or refused where it enters.
#[tokio::test]
async fn names_and_answers_of_a_guest_are_measured_where_they_enter() {
    let hostile = Hostile::new().await;
    let refused = async |steps: &str| match hostile.does(steps).await {
        Err(NoManifest::Refused(text)) => text,
        other => panic!("{steps}: {other:?}"),
    };
    let long = refused("refuse:900").await;
    assert!(long.len() <= 1_024 && long.ends_with('…'), "{} bytes", long.len());
    for (steps, words) in [
        ("event-names:20", "the name has 600002 bytes, and there may be at most 253"),
        ("names:3000", "the name has 3000000 bytes"),
    ] {
        let said = refused(steps).await;
        assert!(said.contains(words) && said.len() <= 1_024, "{steps}: {said}");
    }
    for (steps, words) in [
        ("watches:150", "it has 150 watches, and a revision may have at most 64"),
        ("watches:9", "more than 8 different selectors"),
        ("selects:700", "there may be at most 65536 in all"),
        ("words:900", "there may be at most"),
    ] {
        let Err(NoManifest::Unfit(error)) = hostile.does(steps).await else { panic!("{steps}") };
        let said = error.to_string();
        assert!(said.contains(words) && said.len() <= 1_024, "{steps}: {said}");
    }
}

/// Four guests want more than there is: that is the host's reason, and no fault of theirs.
#[tokio::test]
async fn a_guest_that_finds_no_memory_is_not_to_blame() {
    let guest_memory = 128 << 20;
    let hostile = Hostile::with(SandboxConfig { guest_memory, ..config() }).await;
    let ends = futures::future::join_all((0..4).map(|_| hostile.does("hold:40"))).await;
    let mut refused = 0;
    for end in &ends {
        match end {
            Ok(_) => (),
            Err(NoManifest::Failed(failure @ Failure::Host(text))) => {
                refused += 1;
                assert!(text.contains("used up") && !failure.is_breakdown(), "{text}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert!((1..4).contains(&refused), "{ends:?}");
    let all = (0..3).map(|_| hostile.does("hold:20")).collect::<Vec<_>>();
    for end in futures::future::join_all(all).await {
        assert!(end.is_ok(), "what was taken is free again: {end:?}");
    }
    let small = SandboxConfig { guest_memory: 32 << 20, ..config() };
    let error = Sandbox::start(small, Handle::current()).unwrap_err().to_string();
    assert!(error.contains("--guest-memory"), "{error}");
}
