//! Builds the three programs from `tests/control-plane` into the user's cache.
//!
//! The cache, not `target/`: `cargo clean` would cost ten CPU-minutes. The folder's name says what
//! it was built from, and it appears by a rename, so a folder that is there is whole.

use std::collections::VecDeque;
use std::fs::{self, File, TryLockError};
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::{ChildStderr, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::program::{Program, Programs};
use super::progress::{self, Progress};

/// What `k8s.io/kubernetes` v1.36 asks for in its own go.mod.
pub(super) const OLDEST_GO: (u32, u32) = (1, 26);

// Compiled in, so that the build works wherever the source tree is, or is not.
const SOURCES: [(&str, &str); 3] = [
    ("go.mod", include_str!("../../control-plane/go.mod")),
    ("go.sum", include_str!("../../control-plane/go.sum")),
    ("main.go", include_str!("../../control-plane/main.go")),
];

/// A build that can be run here.
#[derive(Debug)]
pub struct Build {
    kubernetes: &'static str,
    into: PathBuf,
}

impl Build {
    /// Checks for Go and names the folder; the error says what is missing.
    pub(super) fn plan() -> Result<Self, String> {
        let go = Go::find()?;
        let kubernetes = kubernetes_version(SOURCES[0].1)
            .ok_or_else(|| "go.mod does not require k8s.io/kubernetes".to_owned())?;
        let name = format!("{kubernetes}-{}", digest(&go));
        Ok(Self { kubernetes, into: cache_folder().join(name) })
    }

    /// The folder it builds into.
    pub fn folder(&self) -> &Path {
        &self.into
    }

    /// What an earlier run built from the same sources with the same Go.
    pub(super) fn built(&self) -> Option<Programs> {
        Programs::find(&self.into).ok()
    }

    /// Builds, unless another process does or did: then waits for that one.
    pub(super) fn run(&self) -> Result<Programs> {
        let parent = self.into.parent().context("the cache folder has no parent")?;
        fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
        let lock = File::create(self.sibling("lock")).context("opening the build's lock file")?;
        wait_for(&lock).context("locking the build")?;
        if let Some(programs) = self.built() {
            return Ok(programs);
        }
        let workshop = self.sibling("building");
        self.build_in(&workshop).context("building the control plane")?;
        fs::rename(&workshop, &self.into)
            .with_context(|| format!("renaming the build to {}", self.into.display()))?;
        Programs::find(&self.into).map_err(anyhow::Error::msg)
    }

    fn build_in(&self, workshop: &Path) -> Result<()> {
        // What an interrupted build left; the lock says that nobody is at it.
        match fs::remove_dir_all(workshop) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
            _ => fs::create_dir(workshop)?,
        }
        for (name, text) in SOURCES {
            fs::write(workshop.join(name), text)?;
        }
        go_build(workshop, &self.linker_flags()?)?;
        for program in Program::ALL {
            std::os::unix::fs::symlink("control-plane", workshop.join(program.name()))?;
        }
        Ok(())
    }

    /// Without a version the server calls itself v0.0.0-master, and clients' checks go wrong.
    fn linker_flags(&self) -> Result<String> {
        let version = self.kubernetes;
        let mut parts = version.trim_start_matches('v').split('.');
        let (Some(major), Some(minor)) = (parts.next(), parts.next()) else {
            bail!("{version} is no Kubernetes version");
        };
        let package = "k8s.io/component-base/version";
        Ok(format!(
            "-s -w -X {package}.gitVersion={version} -X {package}.gitMajor={major} \
             -X {package}.gitMinor={minor}"
        ))
    }

    // Not `with_extension`: the name has dots of its own.
    fn sibling(&self, suffix: &str) -> PathBuf {
        let mut name = self.into.clone().into_os_string();
        name.push(".");
        name.push(suffix);
        name.into()
    }
}

/// Takes the lock; a line now and then tells a waiting run from a hanging one.
fn wait_for(lock: &File) -> Result<(), TryLockError> {
    let mut seconds = 0_u32;
    while let Err(error) = lock.try_lock() {
        let TryLockError::WouldBlock = error else { return Err(error) };
        if seconds.is_multiple_of(30) {
            progress::say("control plane: another process builds it, waiting");
        }
        std::thread::sleep(Duration::from_secs(1));
        seconds += 1;
    }
    Ok(())
}

fn go_build(workshop: &Path, linker_flags: &str) -> Result<()> {
    let mut child = go()
        .args(["build", "-v", "-trimpath", "-ldflags", linker_flags, "-o", "control-plane", "."])
        .env("CGO_ENABLED", "0")
        .current_dir(workshop)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting go")?;
    let complaints = child.stderr.take().map(follow).unwrap_or_default();
    let status = child.wait().context("waiting for go build")?;
    if !status.success() {
        bail!("go build ended with {status}:\n{complaints}");
    }
    Ok(())
}

/// Shows what the compiler prints, and gives back its last lines that are not package names.
fn follow(stderr: ChildStderr) -> String {
    // Lines come by a channel because progress must be shown while none come: linking is silent.
    let (sender, lines) = mpsc::sync_channel(64);
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    let mut progress = Progress::new();
    let mut complaints = VecDeque::new();
    loop {
        match lines.recv_timeout(progress::PLAIN_INTERVAL) {
            Ok(line) if line.contains(' ') => {
                progress.note(&line);
                complaints.push_back(line);
                if complaints.len() > 20 {
                    complaints.pop_front();
                }
            }
            Ok(package) => progress.package(&package),
            Err(mpsc::RecvTimeoutError::Timeout) => progress.still(),
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
    }
    // It ended when the channel did; only a panic could be lost here.
    let _ = reader.join();
    progress.finish();
    Vec::from(complaints).join("\n")
}

/// The Go on this machine.
struct Go {
    version: String,
    platform: String,
}

impl Go {
    fn find() -> Result<Self, String> {
        let wanted = format!("Go {}.{} or newer", OLDEST_GO.0, OLDEST_GO.1);
        let output = go()
            .args(["env", "GOVERSION", "GOOS", "GOARCH"])
            // Away from any go.mod, which could make Go refuse or fetch another version.
            .current_dir(std::env::temp_dir())
            .output()
            .map_err(|error| format!("{wanted} not found (starting go: {error})"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let mut lines = text.lines();
        let version = lines.next().unwrap_or_default().to_owned();
        match go_version(&version) {
            Some(found) if found >= OLDEST_GO => {
                Ok(Self { version, platform: lines.collect::<Vec<_>>().join("/") })
            }
            Some(_) => Err(format!("{wanted} not found (found {version})")),
            None => Err(format!("{wanted} not found (go env answers `{version}`)")),
        }
    }
}

fn go() -> Command {
    let mut command = Command::new("go");
    // The version in the folder's name must be the one that builds, and a workspace elsewhere
    // must not change what is built.
    command.env("GOTOOLCHAIN", "local").env("GOWORK", "off");
    command
}

/// `go1.26.8` and `devel go1.27-abcdef` to major and minor.
fn go_version(text: &str) -> Option<(u32, u32)> {
    let numbers = text.split_whitespace().find_map(|word| word.strip_prefix("go"))?;
    let mut parts = numbers.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn kubernetes_version(go_mod: &str) -> Option<&str> {
    go_mod.lines().find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes ")).map(str::trim)
}

/// Twelve hex digits over all that the result depends on.
fn digest(go: &Go) -> String {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    let parts = SOURCES.iter().map(|(_, text)| *text).chain([&*go.version, &*go.platform]);
    for part in parts {
        context.update(&(part.len() as u64).to_le_bytes());
        context.update(part.as_bytes());
    }
    hex::encode(context.finish().as_ref().get(..6).unwrap_or_default())
}

fn cache_folder() -> PathBuf {
    let given = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
    let of_home = if cfg!(target_os = "macos") { "Library/Caches" } else { ".cache" };
    given
        .or_else(|| std::env::home_dir().map(|home| home.join(of_home)))
        .filter(|folder| folder.is_absolute())
        .map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/control-plane"),
            |folder| folder.join("nagaya/control-plane"),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_versions_are_read_and_compared_by_number() {
        assert_eq!(go_version("go1.26.8"), Some((1, 26)));
        assert_eq!(go_version("go1.27rc1"), Some((1, 27)));
        assert_eq!(go_version("devel go1.28-abcdef Tue"), Some((1, 28)));
        assert_eq!(go_version(""), None);
        assert!(go_version("go1.9") < Some(OLDEST_GO));
    }

    #[test]
    fn the_module_names_its_kubernetes_version() {
        let version = kubernetes_version(SOURCES[0].1).unwrap();
        assert!(version.starts_with("v1."), "{version}");
        let build = Build { kubernetes: version, into: "cache/v1.2.3-00".into() };
        assert!(build.linker_flags().unwrap().contains("gitMajor=1 "));
        assert_eq!(build.sibling("lock"), Path::new("cache/v1.2.3-00.lock"));
    }

    #[test]
    fn another_go_is_another_folder() {
        let go = |version: &str| Go { version: version.into(), platform: "linux/amd64".into() };
        assert_eq!(digest(&go("go1.26.8")).len(), 12);
        assert_ne!(digest(&go("go1.26.8")), digest(&go("go1.26.9")));
    }
}
