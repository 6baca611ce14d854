//! `cargo xtask test`: every test there is, from pure functions to the real host on a real API
//! server.
//!
//! All cargo calls build the same dependencies with the same features, so that wasmtime is compiled
//! once for tests, demo and this program.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::cargo::cargo;
use e2e::component::{BINARY, HOST, profile_folder};
use e2e::control_plane::{ControlPlane, Options, Program, Route, SHARED_INSTANCE, locate};
use e2e::rights;
use tokio::time::Instant;

use crate::guests;
use crate::languages;
use crate::node;
use crate::progress::span;

/// Set to 1 where the end-to-end tests must not be left out.
const REQUIRED: &str = "NAGAYA_REQUIRE_CONTROL_PLANE";

/// Each end-to-end test has a host and waits for it most of the time: more at once only wait for each other on two cores.
const TEST_THREADS: &str = "6";

/// How the end-to-end tests are run.
pub(crate) struct EndToEnd {
    pub(crate) cargo: &'static [&'static str],
    /// For the test programs.
    pub(crate) harness: &'static [&'static str],
    pub(crate) environment: &'static [(&'static str, &'static str)],
}

const E2E: EndToEnd =
    EndToEnd { cargo: &[], harness: &["--test-threads", TEST_THREADS], environment: &[] };

/// Each compiles for a while.
const LANGUAGES: EndToEnd = EndToEnd {
    cargo: &["--test", "e2e"],
    harness: &["--test-threads", "1", "--nocapture"],
    environment: &[],
};

/// One at a time, because they measure; their tables are for people.
pub(crate) const HOSTILE: EndToEnd = EndToEnd {
    cargo: &["--test", "hostile"],
    harness: &["--test-threads", "1", "--nocapture"],
    environment: &[("NAGAYA_HOSTILE", "long")],
};

/// Which tests to run.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only these parts
    #[arg(long, value_delimiter = ',', value_name = "PART")]
    only: Vec<Part>,
    /// Only the host as it is installed, in pods of a real kubelet; needs root, namespaces and cgroups
    #[arg(long, conflicts_with_all = ["only", "hostile", "long", "pass"])]
    node: bool,
    /// Only the guests that mean harm and the compile bombs, longer, with a table of what caught each
    #[arg(long, conflicts_with = "only")]
    hostile: bool,
    /// The long forms: 200 swaps, 10,000 creates, three random fault runs of 5 minutes and the like, one after the
    /// other; what has passed with the same code is not run again
    #[arg(long, conflicts_with_all = ["only", "hostile", "pass"])]
    pub(crate) long: bool,
    /// Arguments for the test programs of these parts, such as a part of a test's name
    #[arg(last = true, value_name = "ARGUMENT")]
    pass: Vec<String>,
}

/// A part of the tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// The host, the guest SDK and xtask, without a server
    Unit,
    /// The examples' own tests, without host and WebAssembly
    Examples,
    /// The host on a real API server
    E2e,
    /// Go, TypeScript and Python: their SDKs, and a reconciler in each on the host
    Languages,
    /// Guests that mean harm, with their figures
    #[value(skip)]
    Hostile,
    /// The host as it is installed
    #[value(skip)]
    Node,
}

impl Part {
    /// What runs unless something else is asked for.
    const ALL: [Self; 4] = [Self::Unit, Self::Examples, Self::E2e, Self::Languages];

    const fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit: host, guest SDK, xtask",
            Self::Examples => "examples",
            Self::E2e => "end to end",
            Self::Languages => "Go, TypeScript, Python",
            Self::Hostile => "hostile guests, compile bombs",
            Self::Node => "on a node",
        }
    }
}

/// How a part ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    Passed,
    NotRun(String),
    Failed(anyhow::Error),
}

/// Builds what the tests need, runs them and sums up.
pub(crate) async fn run(args: Args) -> Result<()> {
    let wanted = |part: &Part| args.only.is_empty() || args.only.contains(part);
    let parts: Vec<_> = if args.hostile {
        vec![Part::Hostile]
    } else if args.node {
        vec![Part::Node]
    } else {
        Part::ALL.into_iter().filter(wanted).collect()
    };
    let root = crate::root()?;
    let started = Instant::now();
    if parts.iter().any(|part| *part != Part::Examples) {
        say("building the guests");
        guests::build()?;
        say("building the host");
        build_host(&root)?;
    }
    let mut outcomes = vec![];
    for part in parts {
        say(part.name());
        let started = Instant::now();
        let outcome = match part {
            Part::Unit => judge(cargo_test(&root, &[], &args.pass)),
            Part::Examples => judge(examples(&root, &args.pass)),
            Part::E2e => end_to_end(&root, &E2E, &args.pass).await,
            Part::Languages => other_languages(&root).await,
            Part::Hostile => end_to_end(&root, &HOSTILE, &args.pass).await,
            Part::Node => judge_node(node::run(&root, &profile_folder()?.join("nagaya")).await),
        };
        if let Outcome::Failed(error) = &outcome {
            eprintln!("{error:#}");
        }
        outcomes.push((part, outcome, started.elapsed()));
    }
    sum_up(&outcomes, started.elapsed())
}

/// The SDKs by themselves, then a reconciler of each on the host.
async fn other_languages(root: &Path) -> Outcome {
    let built = match build_host(root).and_then(|host| languages::run(root, &host)) {
        Ok(built) => built,
        Err(error) => return Outcome::Failed(error),
    };
    let tests = built.names.iter().map(|name| format!("{name}_runs_on_the_host"));
    let pass: Vec<_> = ["--ignored".to_owned()].into_iter().chain(tests).collect();
    let outcome = match built.names.as_slice() {
        [] => Outcome::Passed,
        _ => end_to_end(root, &LANGUAGES, &pass).await,
    };
    match outcome {
        Outcome::Passed if !built.missing.is_empty() => {
            let passed = built.names.join(", ");
            Outcome::NotRun(format!("{}; passed: {passed}", built.missing.join("; ")))
        }
        other => other,
    }
}

fn judge_node(result: Result<Option<String>>) -> Outcome {
    match result {
        Ok(None) => Outcome::Passed,
        Ok(Some(why)) => Outcome::NotRun(why),
        Err(error) => Outcome::Failed(error),
    }
}

fn judge(result: Result<()>) -> Outcome {
    result.map_or_else(Outcome::Failed, |()| Outcome::Passed)
}

fn sum_up(outcomes: &[(Part, Outcome, Duration)], took: Duration) -> Result<()> {
    say("summary");
    for (part, outcome, took) in outcomes {
        let said = match outcome {
            Outcome::Passed => "passed".to_owned(),
            Outcome::NotRun(why) => format!("not run: {why}"),
            Outcome::Failed(_) => "FAILED".to_owned(),
        };
        eprintln!("{:<32} {said} ({})", part.name(), span(*took));
    }
    eprintln!("{:<32} {}", "all, with the builds", span(took));
    let failed = |outcome: &Outcome| matches!(outcome, Outcome::Failed(_));
    ensure!(!outcomes.iter().any(|(_, outcome, _)| failed(outcome)), "some tests failed");
    Ok(())
}

/// Builds the binary that the end-to-end tests and the demo start.
pub(crate) fn build_host(root: &Path) -> Result<PathBuf> {
    let mut cargo = cargo(root);
    succeed(cargo.args(["build", "--locked"]).args(HOST))?;
    let binary = profile_folder()?.join("nagaya");
    ensure!(binary.is_file(), "cargo left no host in {}", binary.display());
    Ok(binary)
}

fn examples(root: &Path, pass: &[String]) -> Result<()> {
    let folder = root.join("examples");
    cargo_test(&folder, &[], pass)?;
    // The test guests' native crates; in the examples' folder its dependencies are compiled.
    let mut target = folder.join("target");
    if let Some(given) = std::env::var_os("CARGO_TARGET_DIR") {
        target = given.into();
    }
    let target = target.to_string_lossy().into_owned();
    let guests = root.join("tests/guests");
    let native = ["--package", "declared", "--package", "work", "--target-dir", &target];
    cargo_test(&guests, &native, pass)
}

pub(crate) async fn end_to_end(root: &Path, tests: &EndToEnd, pass: &[String]) -> Outcome {
    let route = locate();
    if let Route::Missing(missing) = route {
        let required = std::env::var_os(REQUIRED).is_some_and(|value| value == "1");
        eprintln!("{missing}");
        return if required {
            Outcome::Failed(anyhow::anyhow!("{REQUIRED}=1, and there is no control plane"))
        } else {
            Outcome::NotRun(format!("no control plane (see above; {REQUIRED}=1 makes it an error)"))
        };
    }
    judge(on_a_server(root, route, tests, pass).await)
}

/// Starts the one server that all end-to-end tests share.
async fn on_a_server(root: &Path, route: Route, tests: &EndToEnd, pass: &[String]) -> Result<()> {
    let binary = build_host(root)?;
    let controller_manager = match route {
        Route::Cluster(_) => true,
        route => {
            let programs = tokio::task::spawn_blocking(|| route.programs()).await;
            programs.context("building")??.has(Program::ControllerManager)
        }
    };
    let options = Options { controller_manager, ..Options::default() };
    let mut control_plane = ControlPlane::start(options).await?;
    let mut command = cargo(root);
    command
        .args(["test", "--locked", "--package", "e2e", "--no-fail-fast"])
        .args(tests.cargo)
        .arg("--")
        .args(tests.harness)
        .args(pass)
        .envs(tests.environment.iter().copied())
        .env(SHARED_INSTANCE, control_plane.folder())
        .env(BINARY, binary);
    let mut passed = tokio::task::spawn_blocking(move || succeed(&mut command)).await?;
    // Only all tests together use all of them.
    if passed.is_ok() && pass.is_empty() && tests.cargo.is_empty() && !control_plane.is_given() {
        passed = control_plane.audit().and_then(|log| rights::all_used(&log));
    }
    if passed.is_err() {
        control_plane.keep();
    }
    let stopped = control_plane.stop().await;
    passed.and(stopped)
}

fn cargo_test(folder: &Path, arguments: &[&str], pass: &[String]) -> Result<()> {
    let mut cargo = cargo(folder);
    cargo.args(["test", "--locked", "--no-fail-fast"]).args(arguments).arg("--").args(pass);
    succeed(&mut cargo)
}

fn succeed(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("starting {command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}

pub(crate) fn say(what: &str) {
    eprintln!("\n=== {what}");
}
