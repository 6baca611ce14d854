//! The tables. A new edge between modules, or a foreign crate in a new place, is a decision: change its row in the same
//! commit and say why in the message.

/// Every module at the top of `host/src`, with those it may name: none that comes later. A folder is one module here.
pub(crate) const EDGES: &[(&str, &[&str])] = &[
    ("clock", &[]),
    ("text", &[]),
    ("causes", &[]),
    ("fail", &[]),
    ("child", &[]),
    ("rate", &[]),
    ("journal", &[]),
    ("metrics", &[]),
    // What all speak about.
    ("model", &[]),
    ("kubeconfig", &[]),
    ("apiserver", &["model", "kubeconfig"]),
    // rate: of retries; metrics of the keys that wait.
    ("queue", &["rate", "model"]),
    // queue: the priorities of a change and of an initial list.
    ("watch", &["model", "apiserver", "queue"]),
    // Whose turn it is.
    ("share", &[]),
    ("access", &["model", "apiserver", "queue", "watch"]),
    ("leader", &["kubeconfig", "apiserver"]),
    // rate: of events.
    ("events", &["rate", "model", "apiserver"]),
    ("cluster", &["model"]),
    ("client", &["cluster", "rate", "model", "apiserver", "watch", "access", "leader", "events"]),
    // child: it speaks with registries.
    ("modules", &["model", "child"]),
    // share: whose turn it is to compile, and to compute.
    ("sandbox", &["model", "share", "cluster", "journal", "modules", "child"]),
    // access: a watch that fails, which the team is told of.
    (
        "controller",
        &[
            "model",
            "apiserver",
            "queue",
            "watch",
            "share",
            "access",
            "leader",
            "events",
            "cluster",
            "client",
            "journal",
            "sandbox",
        ],
    ),
    // What a revision would do: it runs as the controller's runs do.
    (
        "preview",
        &[
            "model",
            "apiserver",
            "watch",
            "share",
            "access",
            "client",
            "journal",
            "sandbox",
            "controller",
        ],
    ),
    (
        "manager",
        &[
            "model",
            "apiserver",
            "queue",
            "watch",
            "share",
            "access",
            "leader",
            "events",
            "cluster",
            "client",
            "journal",
            "modules",
            "sandbox",
            "controller",
            "preview",
        ],
    ),
    // manager: how a controller does; apiserver: for rights, and what the host's own API rests on.
    ("http", &["model", "apiserver", "leader", "journal", "modules", "manager"]),
    // Plain settings.
    ("config", &["kubeconfig", "leader", "modules", "http"]),
    (
        "app",
        &[
            "model",
            "apiserver",
            "watch",
            "share",
            "access",
            "leader",
            "events",
            "journal",
            "modules",
            "sandbox",
            "preview",
            "manager",
            "http",
            "config",
        ],
    ),
    // sandbox: the verb of the child process that compiles; access: which rights a revision needs, for people who
    // give them; preview: which gates hold.
    (
        "cli",
        &[
            "model",
            "kubeconfig",
            "apiserver",
            "access",
            "leader",
            "journal",
            "modules",
            // A component describes itself on this machine, with a cluster that answers nothing.
            "cluster",
            "sandbox",
            "preview",
            "http",
            "config",
            "app",
            "child",
        ],
    ),
    ("main", &[]),
    ("lib", &[]),
];

/// What every module may name: the metrics' names, points at which a test breaks in, an error's causes for the log, the clock,
/// and how a text from outside is cut.
pub(crate) const FOR_ALL: &[&str] = &["metrics", "fail", "causes", "clock", "text"];

/// Files that decide and do nothing else: they are handed values and `now`. A file whose first line ends in `; pure`
/// is held to the same.
pub(crate) const PURE: &[&str] = &[
    "queue.rs",
    "rate.rs",
    "share/schedule.rs",
    "share/fair.rs",
    "controller/rollout.rs",
    "controller/health.rs",
    "access/grant.rs",
    "client/gates/budget.rs",
    "client/gates/fight.rs",
    "model/manifest/mod.rs",
    "model/manifest/limits.rs",
    "model/stored.rs",
    "modules/garbage.rs",
    "causes.rs",
    "kubeconfig/choose.rs",
    "kubeconfig/file.rs",
    "kubeconfig/proxy.rs",
    "text.rs",
    "watch/envelope.rs",
    "watch/fault.rs",
    "watch/feed/place.rs",
    "watch/feed/route.rs",
    "watch/feed/worth.rs",
    "watch/lenient.rs",
    "watch/fingerprint.rs",
    "watch/index.rs",
    "watch/stream.rs",
    "watch/trigger.rs",
    "leader/lease/election.rs",
    "leader/lease/record.rs",
    "client/answer.rs",
    "client/flow.rs",
    "events/lanes.rs",
    "events/series.rs",
    "client/gates/noop.rs",
    "client/object.rs",
    "sandbox/entrance.rs",
];

/// What shows that a file does something: waits, reads a clock, speaks to the world.
pub(crate) const NOT_PURE: &[&str] = &[
    ".await",
    "async fn",
    "async move",
    "Instant::now",
    "clock::now",
    "SystemTime",
    "Timestamp::now",
    "std::env",
    "std::fs",
    "std::net",
    "std::process",
    "std::thread",
    "tokio::",
];

/// Anywhere in `host/src`.
const ANYWHERE: &[&str] = &[""];

/// Which files of `host/src` may name a dependency of `host/Cargo.toml`. A place is a file without `.rs`, or a folder.
pub(crate) const FOREIGN: &[(&str, &[&str])] = &[
    // The engine is narrowed to a few types of ours.
    ("wasmtime", &["sandbox"]),
    ("wasmtime_wasi", &["sandbox"]),
    ("wasmtime_wasi_io", &["sandbox"]),
    // cli/inspect: it reads a component's imports for people.
    ("wasmparser", &["sandbox", "modules/screen", "cli/inspect"]),
    // Three majors a year then touch one place; crd.rs has the derives.
    ("kube", &["apiserver", "model/crd"]),
    ("schemars", &["model/crd", "model/kind", "model/manifest", "model/plan"]),
    // HTTP: served in one place; sent by apiserver (kube), by cli/upload, and to registries (oci_client, below).
    ("axum", &["http", "app"]),
    // Below axum: it lets no client be slow, or one too many.
    ("hyper", &["http/door"]),
    ("hyper_util", &["http/door"]),
    // http/aggregated: what one host asks another.
    ("reqwest", &["cli/upload", "http/aggregated"]),
    // The client over any service, for tests.
    ("tower", &["http/door", "apiserver"]),
    ("http", ANYWHERE),
    ("http_body_util", ANYWHERE),
    ("bytes", ANYWHERE),
    // One TLS provider, installed once.
    // apiserver: PEM of authorities; http: the API server's front proxy and other hosts show certificates.
    ("rustls", &["main", "cli", "apiserver", "http/door", "http/aggregated"]),
    ("tokio_rustls", &["http/door"]),
    ("rcgen", &["http/aggregated"]),
    ("x509_parser", &["http/aggregated"]),
    (
        "ring",
        &[
            "main",
            "app",
            "cli",
            "model/crd",
            "model/digest",
            "manager",
            "modules",
            "controller/run",
            "sandbox",
            "watch/fingerprint",
        ],
    ),
    // Library modules have errors of their own. What the host's own API rests on is only ever told in the log.
    ("anyhow", &["main", "app", "cli", "http/aggregated"]),
    ("thiserror", ANYWHERE),
    // Only the command line parses arguments, draws, and decides what is logged.
    ("clap", &["main", "cli"]),
    ("indicatif", &["cli"]),
    ("similar", &["cli/diff"]),
    // `nagaya build` makes components; nothing that runs them does.
    ("wit_component", &["cli/build"]),
    ("wit_parser", &["cli/build"]),
    ("wasi_preview1_component_adapter_provider", &["cli/build"]),
    ("serde_path_to_error", &["model/manifest"]),
    ("tempfile", &["cli/build", "cli/described"]),
    ("tracing_subscriber", &["main", "cli"]),
    ("tracing", ANYWHERE),
    ("prometheus_client", &["metrics"]),
    // System calls: limits of the compile child, files that are whole or absent, the clock of Leases, this process's time.
    (
        "rustix",
        &["app", "share/cpu", "child", "clock", "fail", "metrics/process", "modules", "sandbox"],
    ),
    ("serde_saphyr", &["cli", "model/crd", "config", "kubeconfig"]),
    ("json_patch", &["client", "cli", "manager"]),
    ("k8s_openapi", ANYWHERE),
    ("jiff", ANYWHERE),
    ("serde", ANYWHERE),
    ("serde_json", ANYWHERE),
    ("tokio", ANYWHERE),
    ("parking_lot", ANYWHERE),
    // sandbox: a sequence of chances that can be told again.
    ("fastrand", &["watch/stream", "leader/lease/election", "controller/upkeep", "sandbox/chance"]),
    ("hex", &["app", "controller/run", "model", "sandbox/cache"]),
    ("lru", &["events"]),
    ("oci_client", &["modules/oci", "cli/registry"]),
    ("nagaya_selector", &["model", "watch", "client", "manager"]),
    ("percent_encoding", &["apiserver", "http/aggregated"]),
    ("futures", ANYWHERE),
];

/// Packages that must not come in by the back door, each with its reason.
pub(crate) const BANNED: &[(&str, &str)] = &[
    ("kube-runtime", "the watch hub replaces it (docs/decisions/0001-own-watch-hub.md)"),
    ("aws-lc-rs", "ring is the one TLS provider"),
    ("aws-lc-sys", "ring is the one TLS provider"),
    ("openssl-sys", "ring is the one TLS provider"),
    ("native-tls", "rustls is the one TLS library"),
    ("serde_yaml", "deprecated; serde-saphyr is in the tree"),
];

/// Every place of `host/src` that waits for several things or is polled by hand, and the tests that count its polls: the file,
/// how many such places it has, who holds them. A new one needs a test: a loop that spins is as right as one that waits.
pub(crate) const WAITS: &[(&str, usize, &[&str])] = &[
    // The four of the start and the end wait once; the fifth asks by an interval.
    ("app.rs", 5, &["a_sandbox_that_must_restart_ends_the_host_with_an_error"]),
    ("http/aggregated/log.rs", 1, &["who_follows_a_quiet_log_waits"]),
    // Waits for the next connection, and for the end of one.
    ("http/door.rs", 2, &["a_client_that_never_ends_its_head_is_cut_off"]),
    ("access/authority/mod.rs", 1, &["an_idle_host_waits", "a_host_that_is_refused_waits"]),
    ("http/linger.rs", 1, &["a_body_that_does_not_come_is_not_asked_for"]),
    ("cli/cluster.rs", 1, &["what_follows_a_quiet_controller_waits"]),
    // Waits once: for the answer to an upload, or for what `cli/cluster.rs` follows.
    ("cli/push.rs", 1, &[]),
    // Waits for the end of the process.
    ("cli/serve.rs", 2, &[]),
    ("client/own.rs", 1, &["a_run_that_waits_for_its_own_write_waits"]),
    (
        "controller.rs",
        3,
        &["an_idle_host_waits", "a_controller_that_may_not_go_on_waits", "a_drain_waits"],
    ),
    (
        "share/cpu.rs",
        2,
        &[
            "who_waits_is_polled_when_it_is_woken_and_not_before",
            "a_guest_that_waits_for_one_call_is_polled_at_most_five_times",
        ],
    ),
    ("events/mod.rs", 1, &["an_idle_host_waits", "a_host_that_is_refused_waits"]),
    ("leader/lease/mod.rs", 1, &["an_election_waits_between_its_turns"]),
    (
        "manager/keeper/mod.rs",
        2,
        &["a_refused_controller_without_its_account_waits", "a_standby_waits"],
    ),
    ("manager/keeper/preview.rs", 1, &["what_looks_ahead_waits"]),
    ("manager/mod.rs", 2, &["an_idle_host_waits", "a_host_without_an_api_server_waits"]),
    ("preview/shadow.rs", 1, &["what_looks_ahead_waits"]),
    ("sandbox/native.rs", 1, &["a_native_guest_ends_at_its_wall"]),
    ("sandbox/run.rs", 1, &["a_guest_that_waits_for_one_call_is_polled_at_most_five_times"]),
    ("watch/feed/mod.rs", 1, &["namespaces_that_share_a_connection_wait"]),
    ("watch/feed/task.rs", 2, &["namespaces_that_share_a_connection_wait"]),
    (
        "watch/health.rs",
        1,
        &["a_host_without_an_api_server_waits", "namespaces_that_share_a_connection_wait"],
    ),
    ("watch/task.rs", 2, &["an_idle_host_waits", "a_host_that_is_refused_waits"]),
    ("watch/wire.rs", 1, &["an_idle_host_waits", "a_host_whose_watches_end_at_once_waits"]),
];

/// What makes a place wait for several things, or be polled by hand.
pub(crate) const WAITING: &[&str] = &["select!", "poll_fn(", " Future for ", " Stream for "];

/// What ends a process or a task instead of returning an error.
pub(crate) const PANICS: &[&str] =
    &[".unwrap()", ".expect(", "panic!(", "todo!(", "unimplemented!(", "unreachable!(", "dbg!("];

/// A place for things without a name is where nobody looks.
pub(crate) const NO_NAMES: &[&str] =
    &["utils", "util", "common", "types", "errors", "prelude", "helpers"];

/// Lines of code above which a file probably holds a second noun; above the second number the test fails.
pub(crate) const LONG: usize = 400;
/// See [`LONG`].
pub(crate) const TOO_LONG: usize = 600;
