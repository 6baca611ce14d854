//! The command line: one file a verb, each a `run(args)`; the only reader of the environment.
//!
//! Verbs other than `serve` are clients: they write a WasmController with the user's own kubeconfig, exactly as
//! kubectl would, and wait for what the host makes of it. Results go to stdout, progress to stderr.

use std::{
    ffi::OsString,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

mod abort;
mod build;
mod cluster;
mod component;
mod decision;
mod described;
mod diff;
mod edit;
mod explain;
mod get;
mod inspect;
pub mod logging;
mod logs;
mod new;
mod own_api;
mod plan;
mod planned;
mod presence;
mod print;
mod promote;
mod push;
mod rbac;
mod registry;
mod rollback;
mod serve;
mod tree;
mod upload;
mod wait;

use crate::kubeconfig::{Environment, Proxies, Source};
use cluster::Cluster;

/// Kubernetes controllers as WebAssembly components: many in one host, versions swapped by a pointer.
#[derive(Debug, Parser)]
#[command(name = "nagaya", version, propagate_version = true, after_help = EXAMPLES)]
struct Args {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Where a pod finds the token of its account.
const POD_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

const EXAMPLES: &str = "\
Examples:
  nagaya new shop --lang go --sdk SDK          make a project of a controller
  nagaya build                                 make a component of the project in this folder
  nagaya push website website.wasm -n demo     upload a component; it becomes the candidate
  nagaya get website -n demo                   what is live, what waits, and what is wrong
  nagaya logs website -n demo -f               what its guests say, as they say it
  nagaya plan website -n demo                  what the candidate would change, before it does
  nagaya promote website -n demo               make the candidate live
  nagaya rollback website -n demo              go back to the revision that was live before

Everything is a field of the WasmController: kubectl and GitOps can do the same.";

/// What every verb understands.
#[derive(Debug, clap::Args)]
struct Global {
    /// The kubeconfig to use [default: $KUBECONFIG, ~/.kube/config, or the pod's account]
    #[arg(long, global = true, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The kubeconfig's context [default: its current one]
    #[arg(long, global = true, value_name = "NAME")]
    context: Option<String>,
    /// The namespace [default: the kubeconfig's]
    #[arg(short, long, global = true, value_name = "NS")]
    namespace: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the host
    Serve(Box<serve::Args>),
    /// Make a project of a controller in Rust, Go, TypeScript or Python
    New(new::Args),
    /// Make a component of a project in Rust, Go, TypeScript or Python
    Build(build::Args),
    /// Show what a component is, imports and asks for
    Inspect(inspect::Args),
    /// Show the rights that a component needs, as YAML
    Rbac(rbac::Args),
    /// Upload a component and stage it as a new revision
    Push(push::Args),
    /// Show controllers, or one with its revisions and problems
    Get(get::Args),
    /// Show what a controller's guests have said
    Logs(logs::Args),
    /// Show which rights a revision needs, and what another needs besides
    ExplainAccess(explain::Args),
    /// Show what a revision would change in the whole fleet, without changing anything
    Plan(plan::Args),
    /// Show what a revision would change in full, as unified diffs
    Diff(diff::Args),
    /// Make the candidate live
    Promote(promote::Args),
    /// Reject the candidate
    Abort(abort::Args),
    /// Go back to the revision that was live before
    Rollback(rollback::Args),
    /// Compile one component from stdin; the host starts this by itself
    #[command(hide = true)]
    CompileChild(ChildLimits),
    /// Ask a registry what stdin says; the host starts this by itself
    #[command(hide = true)]
    PullChild(ChildLimits),
}

impl Global {
    /// Which kubeconfig is meant, by the flags and the environment.
    fn source(&self) -> Source {
        let says = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
        // As everywhere, the name in capitals counts first.
        let proxy = |name: &str| says(name).or_else(|| says(&name.to_ascii_lowercase()));
        let in_pod = ["KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"].map(says);
        Source {
            file: self.kubeconfig.clone(),
            context: self.context.clone().filter(|name| !name.is_empty()),
            environment: Environment {
                kubeconfig: std::env::var_os("KUBECONFIG"),
                home: std::env::home_dir(),
                proxies: Proxies {
                    http: proxy("HTTP_PROXY"),
                    https: proxy("HTTPS_PROXY"),
                    none: proxy("NO_PROXY"),
                },
                in_pod: in_pod.iter().all(Option::is_some) && Path::new(POD_TOKEN).is_file(),
            },
        }
    }
}

/// What a child of the host may use.
#[derive(Clone, Copy, Debug, clap::Args)]
struct ChildLimits {
    /// Bytes of address space
    memory: u64,
    /// Bytes to write to
    heap: u64,
    /// Seconds of CPU time
    cpu: u64,
    /// Bytes of output
    output: u64,
}

impl From<&ChildLimits> for crate::child::Limits {
    fn from(limits: &ChildLimits) -> Self {
        let ChildLimits { memory, heap, cpu, output } = *limits;
        Self { memory, heap, cpu, output }
    }
}

/// In which form a verb prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Text,
    Json,
}

/// How long a verb waits for the host.
#[derive(Clone, Copy, Debug, clap::Args)]
struct Patience {
    /// Give up waiting after this long, for example 90s or 5m
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = span)]
    timeout: Duration,
}

/// Parses the process's arguments and does what they say.
pub fn main() -> ExitCode {
    let args = parse(std::env::args_os());
    match &args.command {
        Command::CompileChild(limits) => return crate::sandbox::child_main(limits.into()),
        Command::PullChild(limits) => return crate::modules::oci::child_main(limits.into()),
        _ => (),
    }
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprint!("{}", complaint(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<()> {
    let Args { global, command } = args;
    match command {
        Command::Serve(args) => serve::run(*args, global.source()),
        Command::CompileChild(_) | Command::PullChild(_) => Ok(()),
        Command::New(args) => new::run(&args),
        Command::Build(args) => build::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Rbac(args) => client(global, async |cluster| rbac::run(args, cluster).await),
        Command::Push(args) => client(global, async |cluster| push::run(args, cluster).await),
        Command::Get(args) => client(global, async |cluster| get::run(args, cluster).await),
        Command::Logs(args) => client(global, async |cluster| logs::run(args, cluster).await),
        Command::ExplainAccess(args) => {
            client(global, async |cluster| explain::run(args, cluster).await)
        }
        Command::Plan(args) => client(global, async |cluster| plan::run(args, cluster).await),
        Command::Diff(args) => client(global, async |cluster| diff::run(args, cluster).await),
        Command::Promote(args) => client(global, async |cluster| promote::run(args, cluster).await),
        Command::Abort(args) => client(global, async |cluster| abort::run(args, cluster).await),
        Command::Rollback(args) => {
            client(global, async |cluster| rollback::run(args, cluster).await)
        }
    }
}

/// Runs a client verb on a runtime of its own.
fn client(global: Global, verb: impl AsyncFnOnce(Cluster) -> Result<()>) -> Result<()> {
    // What the libraries have to say comes back as an error and is shown once.
    logging::start(logging::Format::Text, "nagaya=warn");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let cluster = Cluster::connect(&global.source(), global.namespace).await?;
        verb(cluster).await
    })
}

/// Parses, under the name by which the program was called: kubectl runs `kubectl-nagaya` as `kubectl nagaya`.
fn parse(arguments: impl IntoIterator<Item = OsString>) -> Args {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let matches = command(arguments.first().map(Path::new)).get_matches_from(&arguments);
    Args::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

fn command(program: Option<&Path>) -> clap::Command {
    let plugin = program.and_then(Path::file_stem).is_some_and(|stem| stem == "kubectl-nagaya");
    let command = Args::command();
    if plugin { command.bin_name("kubectl nagaya").display_name("kubectl-nagaya") } else { command }
}

/// The error and its causes, one a line.
fn complaint(error: &anyhow::Error) -> String {
    let mut text = format!("error: {error}\n");
    let mut last = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        // Many libraries repeat their source in their own text.
        if !last.contains(&cause) {
            text.push_str(&format!("  caused by: {cause}\n"));
            last = cause;
        }
    }
    text
}

/// Writes `text` to stdout; a reader that has gone away, as in `| head`, is no error.
fn say(text: &str) -> Result<()> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to stdout")
        }
        _ => Ok(()),
    }
}

/// A span of time like 500ms, 90s or 5m.
fn span(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not like 500ms, 90s or 5m");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let span = match unit {
        "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        "m" => Duration::from_secs(number.saturating_mul(60)),
        _ => return Err(wrong()),
    };
    if span.is_zero() { Err(wrong()) } else { Ok(span) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command(None).debug_assert();
    }

    #[test]
    fn help_lists_the_verbs_in_the_order_of_their_use() {
        let help = command(None).render_help().to_string();
        let verbs = ["serve", "new", "build", "push", "get", "promote", "abort", "rollback"];
        let places: Vec<_> = verbs.map(|verb| help.find(&format!("\n  {verb} ")).unwrap()).into();
        assert!(places.is_sorted(), "{help}");
        assert!(!help.contains("compile-child"), "{help}");
    }

    #[test]
    fn kubectl_calls_it_by_its_own_name() {
        let help = command(Some(Path::new("/usr/bin/kubectl-nagaya"))).render_help().to_string();
        assert!(help.contains("Usage: kubectl nagaya "), "{help}");
        let help = command(Some(Path::new("/usr/bin/nagaya"))).render_help().to_string();
        assert!(help.contains("Usage: nagaya "), "{help}");
    }

    #[test]
    fn the_global_flags_stand_before_or_after_the_verb() {
        for line in [
            "nagaya -n a --context c --kubeconfig k get x",
            "nagaya get x --kubeconfig k -n a --context c",
            "nagaya serve --kubeconfig k -n a --context c",
        ] {
            let args = parse(line.split(' ').map(OsString::from));
            assert_eq!(args.global.source().context.as_deref(), Some("c"), "{line}");
            assert_eq!(args.global.namespace.as_deref(), Some("a"), "{line}");
            assert_eq!(args.global.kubeconfig.as_deref(), Some(Path::new("k")), "{line}");
        }
    }

    #[test]
    fn an_error_is_shown_with_its_causes_a_line_each() {
        let error = anyhow::anyhow!("refused").context("cannot open").context("cannot open: no");
        assert_eq!(complaint(&error), "error: cannot open: no\n  caused by: refused\n");
    }

    #[test]
    fn a_span_has_a_unit() {
        assert_eq!(span("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(span("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(span("250ms"), Ok(Duration::from_millis(250)));
        for bad in ["", "5", "s", "0s", "5h", "-1s", "1.5s"] {
            assert!(span(bad).is_err(), "{bad}");
        }
    }
}
