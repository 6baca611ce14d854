//! The built guests of `examples/` and `tests/guests`, and the host's binary.

use std::path::{Path, PathBuf};

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use tokio::sync::OnceCell;

use crate::cargo::cargo;
use crate::manifest::root;

/// Names the host's binary; without it the one beside the test's own is built and used.
pub const BINARY: &str = "NAGAYA_BINARY";

/// What cargo builds as the host under test: with failpoints. The SDK is named because its macros share crates with the
/// engine's: without it these have other features, and the engine is compiled a second time.
pub const HOST: [&str; 8] = [
    "--package",
    "nagaya",
    "--package",
    "nagaya-sdk",
    "--bin",
    "nagaya",
    "--features",
    "nagaya/failpoints",
];

/// A component that can be uploaded.
#[derive(Debug, Clone)]
pub struct Component {
    /// Its file.
    pub path: PathBuf,
    /// Its bytes.
    pub bytes: Arc<[u8]>,
    /// Its SHA-256, as `sha256:<hex>`.
    pub digest: String,
}

impl Component {
    /// The guest of this name, such as `website_v1` or `hostile`.
    pub fn load(name: &str) -> Result<Self> {
        let path = Self::find(name)?;
        let bytes = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        Ok(Self { digest: digest(&bytes), bytes: bytes.into(), path })
    }

    /// One that lies in no file.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self { path: PathBuf::from("(no file)"), digest: digest(bytes), bytes: bytes.into() }
    }

    /// Its file, if it is built.
    pub fn find(name: &str) -> Result<PathBuf> {
        let folders = ["examples", "tests/guests"];
        let paths = folders.map(|folder| {
            root().join(folder).join(format!("target/wasm32-wasip2/release/{name}.wasm"))
        });
        let found = paths.into_iter().find(|path| path.is_file());
        let found =
            found.with_context(|| format!("{name}.wasm is not built: run `cargo xtask guests`"))?;
        found.canonicalize().with_context(|| format!("looking at {}", found.display()))
    }

    /// The same code under another digest: a custom section with `mark` is put behind it.
    pub fn marked(&self, mark: &str) -> Result<Self> {
        let mark = u8::try_from(mark.len()).ok().zip(Some(mark));
        let (length, mark) = mark.filter(|(length, _)| *length < 100).context("a long mark")?;
        // Section 0, its size, the length of its name and the name; all fit into one byte of LEB128.
        let mut bytes = self.bytes.to_vec();
        bytes.extend([0, length + 1, length]);
        bytes.extend(mark.as_bytes());
        Ok(Self { path: self.path.clone(), digest: digest(&bytes), bytes: bytes.into() })
    }
}

/// The SHA-256 of these bytes, as `sha256:<hex>`.
pub fn digest(bytes: &[u8]) -> String {
    let hash = ring::digest::digest(&ring::digest::SHA256, bytes);
    format!("sha256:{}", hex::encode(hash.as_ref()))
}

/// The host's binary. If nobody named one it is built first, once a process: a test must not run
/// against yesterday's host.
pub async fn binary() -> Result<&'static Path> {
    static BINARY_FILE: OnceCell<PathBuf> = OnceCell::const_new();
    let find = || async {
        if let Some(file) = std::env::var_os(BINARY).filter(|file| !file.is_empty()) {
            let file = PathBuf::from(file);
            ensure!(file.is_file(), "{BINARY}={}: no such file", file.display());
            return Ok(file);
        }
        tokio::task::spawn_blocking(build).await.context("building the host")?
    };
    Ok(BINARY_FILE.get_or_try_init(find).await?.as_path())
}

fn build() -> Result<PathBuf> {
    let folder = profile_folder()?;
    let mut cargo = cargo(&root());
    cargo.args(["build", "--quiet", "--locked"]).args(HOST);
    if folder.ends_with("release") {
        cargo.arg("--release");
    }
    let status = cargo.status().context("starting cargo")?;
    let file = folder.join("nagaya");
    if !status.success() || !file.is_file() {
        bail!("cargo left no host in {}: {status}", file.display());
    }
    Ok(file)
}

/// Cargo's folder that this program was built into: `target/debug`.
pub fn profile_folder() -> Result<PathBuf> {
    let program = std::env::current_exe().context("looking for this program")?;
    let folder = program.parent().context("this program lies nowhere")?;
    let folder = if folder.ends_with("deps") { folder.parent() } else { Some(folder) };
    Ok(folder.context("this program lies in no profile's folder")?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_changes_the_digest_and_keeps_the_code() {
        let bytes = b"\0asm".as_slice();
        let plain = Component { path: "x".into(), digest: digest(bytes), bytes: bytes.into() };
        let marked = plain.marked("two").unwrap();
        assert_eq!(&*marked.bytes, b"\0asm\0\x04\x03two");
        assert_ne!(marked.digest, plain.digest);
        assert_eq!(marked.digest.len(), "sha256:".len() + 64);
    }
}
