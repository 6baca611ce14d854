//! A real OCI registry for one test: built once from `tests/registry`, on loopback, in memory.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};
use parking_lot::Mutex;

use crate::component::profile_folder;

const SOURCES: [(&str, &str); 3] = [
    ("go.mod", include_str!("../registry/go.mod")),
    ("go.sum", include_str!("../registry/go.sum")),
    ("main.go", include_str!("../registry/main.go")),
];

/// A running registry; it ends with its owner, however that ends.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    _lifeline: Option<ChildStdin>,
    address: String,
    /// As long as this file is there, the registry sends other bytes than it was given.
    pub tamper: PathBuf,
}

impl Registry {
    /// Starts one; with a `login` of the form `name:password` it lets nobody else in.
    pub fn start(folder: &Path, address: Option<&str>, login: &str) -> Result<Self> {
        Self::start_with(folder, address, &["-login", login])
    }

    /// One that lists no referrers.
    pub fn without_referrers(folder: &Path, address: Option<&str>) -> Result<Self> {
        Self::start_with(folder, address, &["-referrers=false"])
    }

    fn start_with(folder: &Path, address: Option<&str>, arguments: &[&str]) -> Result<Self> {
        let tamper = folder.join("tamper");
        let mut child = Command::new(program()?)
            .args(["-address", address.unwrap_or("127.0.0.1:0"), "-tamper"])
            .arg(&tamper)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting a registry")?;
        let lifeline = child.stdin.take();
        let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        let address = lines.next().context("the registry did not start")??;
        Ok(Self { child, _lifeline: lifeline, address, tamper })
    }

    /// Where it listens, as images begin with it.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Ends it; what it had is gone.
    pub fn stop(mut self) -> Result<()> {
        self.child.kill().context("ending a registry")?;
        self.child.wait().context("waiting for a registry").map(drop)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program, built by Go unless it is there: one after the other in one process, and Go itself looks after several.
fn program() -> Result<PathBuf> {
    static BUILT: OnceLock<Mutex<Option<PathBuf>>> = OnceLock::new();
    let mut built = BUILT.get_or_init(Mutex::default).lock();
    if let Some(program) = &*built {
        return Ok(program.clone());
    }
    let folder = profile_folder()?.join("e2e-registry");
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    for (name, text) in SOURCES {
        fs::write(folder.join(name), text).with_context(|| format!("writing {name}"))?;
    }
    let output = Command::new("go")
        .args(["build", "-o", "registry", "."])
        .current_dir(&folder)
        .output()
        .context("running go")?;
    ensure!(
        output.status.success(),
        "cannot build the registry: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let program = folder.join("registry");
    *built = Some(program.clone());
    Ok(program)
}
