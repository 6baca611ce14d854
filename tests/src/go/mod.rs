//! Programs in Go that tests need, built once a machine into the user's cache.
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

mod progress;

use progress::Progress;
pub(crate) use progress::say;

/// What `k8s.io/kubernetes` v1.36 and Helm 4.2 ask for in their own go.mod.
pub(crate) const OLDEST_GO: (u32, u32) = (1, 26);

/// What to build, and from what.
#[derive(Debug)]
pub(crate) struct Program {
    /// The file, and the cache folder of all its builds.
    pub(crate) name: &'static str,
    /// What the lines of progress begin with.
    pub(crate) title: &'static str,
    /// What is built and how long it takes, for people.
    pub(crate) what: &'static str,
    pub(crate) takes: &'static str,
    /// How many packages a cold build prints; fewer if Go's own cache is warm.
    pub(crate) packages: u64,
    /// The module whose version the folder is named by.
    pub(crate) module: &'static str,
    /// What Go is told to build, in the folder of the sources.
    pub(crate) package: &'static str,
    /// go.mod first. Compiled in, so that the build works wherever the source tree is, or is not.
    pub(crate) sources: &'static [(&'static str, &'static str)],
}

/// A build that can be run here.
#[derive(Debug)]
pub(crate) struct Build {
    program: &'static Program,
    /// Of the module.
    pub(crate) version: &'static str,
    /// The folder it builds into.
    pub(crate) into: PathBuf,
}

impl Build {
    /// Checks for Go and names the folder; the error says what is missing.
    pub(crate) fn plan(program: &'static Program) -> Result<Self, String> {
        let go = Go::find()?;
        let version = program.version()?;
        let name = format!("{version}-{}", program.digest(&go));
        Ok(Self { program, version, into: cache_folder(program.name).join(name) })
    }

    /// Builds, unless another process does or did: then waits for that one. `finish` is handed the new folder before
    /// anybody can see it.
    pub(crate) fn run(
        &self,
        linker_flags: &str,
        finish: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        if self.into.is_dir() {
            return Ok(());
        }
        let title = self.program.title;
        let parent = self.into.parent().context("the cache folder has no parent")?;
        fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
        let lock = File::create(self.sibling("lock")).context("opening the build's lock file")?;
        wait_for(&lock, title).context("locking the build")?;
        if self.into.is_dir() {
            return Ok(());
        }
        let workshop = self.sibling("building");
        let built = self.build_in(&workshop, linker_flags).and_then(|()| finish(&workshop));
        built.with_context(|| format!("building {}", self.program.what))?;
        fs::rename(&workshop, &self.into)
            .with_context(|| format!("renaming the build to {}", self.into.display()))
    }

    fn build_in(&self, workshop: &Path, linker_flags: &str) -> Result<()> {
        // What an interrupted build left; the lock says that nobody is at it.
        match fs::remove_dir_all(workshop) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
            _ => fs::create_dir(workshop)?,
        }
        for (name, text) in self.program.sources {
            fs::write(workshop.join(name), text)?;
        }
        go_build(self.program, workshop, linker_flags)
    }

    // Not `with_extension`: the name has dots of its own.
    fn sibling(&self, suffix: &str) -> PathBuf {
        let mut name = self.into.clone().into_os_string();
        name.push(".");
        name.push(suffix);
        name.into()
    }
}

impl Program {
    fn version(&self) -> Result<&'static str, String> {
        let go_mod = self.sources.first().map_or("", |(_, text)| text);
        let required = go_mod.lines().find_map(|line| {
            let line = line.trim().trim_start_matches("require ");
            line.strip_prefix(self.module)?.strip_prefix(' ')?.split(' ').next()
        });
        required.ok_or_else(|| format!("go.mod does not require {}", self.module))
    }

    /// Twelve hex digits over all that the result depends on.
    fn digest(&self, go: &Go) -> String {
        let mut context = ring::digest::Context::new(&ring::digest::SHA256);
        let sources = self.sources.iter().map(|(_, text)| *text);
        for part in sources.chain([&*go.version, &*go.platform]) {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part.as_bytes());
        }
        hex::encode(context.finish().as_ref().get(..6).unwrap_or_default())
    }
}

/// Takes the lock; a line now and then tells a waiting run from a hanging one.
fn wait_for(lock: &File, title: &str) -> Result<(), TryLockError> {
    let mut seconds = 0_u32;
    while let Err(error) = lock.try_lock() {
        let TryLockError::WouldBlock = error else { return Err(error) };
        if seconds.is_multiple_of(30) {
            say(&format!("{title}: another process builds it, waiting"));
        }
        std::thread::sleep(Duration::from_secs(1));
        seconds += 1;
    }
    Ok(())
}

/// With the same flags for all: what programs have in common is then compiled once.
fn go_build(program: &'static Program, workshop: &Path, linker_flags: &str) -> Result<()> {
    let mut child = go()
        .args(["build", "-v", "-trimpath", "-ldflags", linker_flags])
        .args(["-o", program.name, program.package])
        .env("CGO_ENABLED", "0")
        .current_dir(workshop)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting go")?;
    let complaints = child.stderr.take().map(|stderr| follow(program, stderr)).unwrap_or_default();
    let status = child.wait().context("waiting for go build")?;
    if !status.success() {
        bail!("go build ended with {status}:\n{complaints}");
    }
    Ok(())
}

/// Shows what the compiler prints, and gives back its last lines that are not package names.
fn follow(program: &'static Program, stderr: ChildStderr) -> String {
    // Lines come by a channel because progress must be shown while none come: linking is silent.
    let (sender, lines) = mpsc::sync_channel(64);
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    let mut progress = Progress::new(program);
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

fn cache_folder(name: &str) -> PathBuf {
    let given = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
    let of_home = if cfg!(target_os = "macos") { "Library/Caches" } else { ".cache" };
    given
        .or_else(|| std::env::home_dir().map(|home| home.join(of_home)))
        .filter(|folder| folder.is_absolute())
        .map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"),
            |folder| folder.join("nagaya"),
        )
        .join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOME: Program = Program {
        name: "some",
        title: "some",
        what: "some",
        takes: "no time",
        packages: 1,
        module: "example.com/some",
        package: ".",
        sources: &[("go.mod", "module x\n\nrequire (\n\texample.com/some v1.2.3 // indirect\n)\n")],
    };

    #[test]
    fn go_versions_are_read_and_compared_by_number() {
        assert_eq!(go_version("go1.26.8"), Some((1, 26)));
        assert_eq!(go_version("go1.27rc1"), Some((1, 27)));
        assert_eq!(go_version("devel go1.28-abcdef Tue"), Some((1, 28)));
        assert_eq!(go_version(""), None);
        assert!(go_version("go1.9") < Some(OLDEST_GO));
    }

    #[test]
    fn a_module_names_the_version_of_its_program() {
        assert_eq!(SOME.version().unwrap(), "v1.2.3");
        let error = Program { module: "example.com/so", ..SOME }.version().unwrap_err();
        assert!(error.contains("example.com/so"), "{error}");
        let build = Build { program: &SOME, version: "v1.2.3", into: "cache/v1.2.3-00".into() };
        assert_eq!(build.sibling("lock"), Path::new("cache/v1.2.3-00.lock"));
    }

    #[test]
    fn another_go_is_another_folder() {
        let go = |version: &str| Go { version: version.into(), platform: "linux/amd64".into() };
        assert_eq!(SOME.digest(&go("go1.26.8")).len(), 12);
        assert_ne!(SOME.digest(&go("go1.26.8")), SOME.digest(&go("go1.26.9")));
    }
}
