//! Measures what Nagaya promises about speed and memory, all of it in one run: `cargo xtask bench`.
//!
//! In reading order: [`run`] and [`waits`] need no cluster; [`memory`], [`watches`], [`scopes`], [`steady`],
//! [`swap`] and [`plan`] are on a real API server with the real host, by [`server`]. What they find is a [`figure`], and all of it a [`report`].

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};

use report::Report;

mod figure;
mod memory;
mod plan;
mod process;
mod report;
mod run;
mod scopes;
mod server;
mod steady;
mod swap;
mod waits;
mod watches;

/// Objects of the plan whose memory is measured.
const MANY: u32 = 10_000;

/// Measures Nagaya's speed and memory.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench")]
struct Args {
    /// What to measure; all if none is named
    parts: Vec<Part>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Objects on the server
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(4..=5_000))]
    objects: u32,
    /// Swaps there and back
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=20))]
    swaps: u32,
}

/// In the order in which they are measured: `mirror` watches everybody's ConfigMaps, so memory comes before there are
/// many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// One run against the same code natively
    Run,
    /// The host with the three examples
    Memory,
    /// Many controllers of one kind
    Watches,
    /// Many controllers, each of a namespace of its own
    Scopes,
    /// A stream of changes: latency and CPU of each
    Steady,
    /// Promote and roll back
    Swap,
    /// What a candidate would do to all objects
    Plan,
}

fn main() -> ExitCode {
    match measure(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let causes: Vec<_> = error.chain().map(ToString::to_string).collect();
            eprintln!("error: {}", causes.join("\n  caused by: "));
            ExitCode::FAILURE
        }
    }
}

fn measure(args: &Args) -> Result<()> {
    let wanted = |part| args.parts.is_empty() || args.parts.contains(&part);
    let (objects, swaps) = (args.objects, args.swaps);
    let mut report = Report::new()?;
    if wanted(Part::Run) {
        let about = "an object of 4,090 bytes is read, a ConfigMap made and applied".to_owned();
        report.add("run", about, || runtime()?.block_on(run::measure()))?;
    }
    let on_server =
        [Part::Memory, Part::Watches, Part::Scopes, Part::Steady, Part::Swap, Part::Plan];
    if on_server.into_iter().any(wanted) {
        runtime()?.block_on(server::prepare())?;
    }
    if wanted(Part::Memory) {
        let about = "Websites and their children, 10 s after the last write".to_owned();
        report.add("memory", about, || memory::measure(objects))?;
    }
    if wanted(Part::Watches) {
        let about =
            "controllers of Websites that own ConfigMaps, each with its own code".to_owned();
        report.add("watches", about, watches::measure)?;
    }
    if wanted(Part::Scopes) {
        let about = "controllers of one code, each bound to a namespace of its own".to_owned();
        report.add("scopes", about, scopes::measure)?;
    }
    if wanted(Part::Steady) {
        let about =
            format!("{} changes a second of 50 objects, one ConfigMap each", steady::CHANGES);
        report.add("steady", about, steady::measure)?;
    }
    if wanted(Part::Swap) {
        let about =
            format!("{objects} objects of one ConfigMap each, {swaps} times there and back");
        report.add("swap", about, || swap::measure(objects, swaps))?;
    }
    if wanted(Part::Plan) {
        let about = format!("{objects} objects of one ConfigMap each, whose writes are only tried");
        report.add("plan", about, || plan::measure(objects))?;
        let about = format!("the same with {MANY} objects");
        report.add("plan-memory", about, || plan::memory(MANY))?;
    }
    let text = if args.json {
        report.json()?
    } else {
        format!("{}\nFor the README:\n\n{}", report.table(), report.markdown())
    };
    println!("{}", text.trim_end());
    report.verdict()
}

/// As the host's own for everything that is no guest.
fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting a runtime")
}
