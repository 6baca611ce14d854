//! `cargo xtask test --long`: the long forms of the end-to-end tests, part by part.
//!
//! It takes the better part of an hour, so it goes on where it stopped: what has passed with the same code is written
//! down, and not run again.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use e2e::component::{digest, profile_folder};
use tokio::time::Instant;

use crate::guests;
use crate::progress::span;
use crate::test::{self, EndToEnd, HOSTILE, Outcome, build_host, say};

const LONG: (&str, &str) = ("NAGAYA_LONG", "1");

/// Each part by its name.
const PARTS: [(&str, EndToEnd); 8] = [
    ("200 swaps under load", part(&["--test-threads", "1", "--nocapture", "swaps::"], &[LONG])),
    (
        "killed at each step of a swap, five times each",
        part(&["--test-threads", "1", "--nocapture", "failpoints::"], &[LONG]),
    ),
    (
        "10,000 creates, the cache five seconds behind",
        part(&["--test-threads", "1", "--nocapture", "faults_watch::"], &[LONG]),
    ),
    (
        "random faults for 5 minutes, seed 1",
        part(&["--test-threads", "1", "--nocapture", "random::"], &[LONG, ("NAGAYA_SEED", "1")]),
    ),
    (
        "random faults for 5 minutes, seed 2",
        part(&["--test-threads", "1", "--nocapture", "random::"], &[LONG, ("NAGAYA_SEED", "2")]),
    ),
    (
        "random faults for 5 minutes, seed 3",
        part(&["--test-threads", "1", "--nocapture", "random::"], &[LONG, ("NAGAYA_SEED", "3")]),
    ),
    ("two hosts", part(&["--test-threads", "1", "--nocapture", "leases::"], &[LONG])),
    ("hostile guests, compile bombs", HOSTILE),
];

/// The tests of one module, one at a time.
const fn part(
    harness: &'static [&'static str],
    environment: &'static [(&'static str, &'static str)],
) -> EndToEnd {
    EndToEnd { cargo: &["--test", "e2e"], harness, environment }
}

/// Runs what has not passed yet.
pub(crate) async fn run() -> Result<()> {
    let root = crate::root()?;
    say("building the guests");
    guests::build()?;
    say("building the host");
    let binary = build_host(&root)?;
    let mut done = Done::open(&root, &binary)?;
    let mut failed = vec![];
    for (name, tests) in &PARTS {
        if done.parts.contains(*name) {
            say(&format!("{name}: has passed with this code"));
            continue;
        }
        say(name);
        let started = Instant::now();
        match test::end_to_end(&root, tests, &[]).await {
            Outcome::Passed => done.passed(name)?,
            Outcome::NotRun(why) => bail!("{name}: not run: {why}"),
            Outcome::Failed(error) => {
                eprintln!("{error:#}");
                failed.push(*name);
            }
        }
        eprintln!("{name}: {}", span(started.elapsed()));
    }
    say("summary");
    for (name, _) in &PARTS {
        eprintln!("{name:<52} {}", if failed.contains(name) { "FAILED" } else { "passed" });
    }
    ensure!(failed.is_empty(), "some parts failed; the same command runs these again");
    Ok(())
}

/// What has passed, in a file: the code in the first line, then a part a line.
struct Done {
    file: PathBuf,
    code: String,
    parts: BTreeSet<String>,
}

impl Done {
    fn open(root: &Path, binary: &Path) -> Result<Self> {
        let file = profile_folder()?.join("long-passed");
        let code = code(root, binary)?;
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let mut lines = text.lines().map(str::to_owned);
        let same = lines.next().as_ref() == Some(&code);
        let parts = if same { lines.collect() } else { BTreeSet::new() };
        Ok(Self { file, code, parts })
    }

    fn passed(&mut self, name: &str) -> Result<()> {
        self.parts.insert(name.to_owned());
        let lines: Vec<_> =
            std::iter::once(&self.code).chain(&self.parts).map(String::as_str).collect();
        let written = std::fs::write(&self.file, lines.join("\n") + "\n");
        written.with_context(|| format!("writing {}", self.file.display()))
    }
}

/// The host's binary and the sources of its tests.
fn code(root: &Path, binary: &Path) -> Result<String> {
    let mut bytes = std::fs::read(binary).context("reading the host's binary")?;
    for arguments in [&["rev-parse", "HEAD"][..], &["diff", "HEAD"]] {
        let git = Command::new("git").arg("-C").arg(root).args(arguments).output();
        bytes.extend(git.context("asking git")?.stdout);
    }
    Ok(digest(&bytes))
}
