//! Native code that the tests' hosts share, so that each component is compiled once for all of them.
//!
//! A host begins with copies of what others have compiled and with the key that it verifies by; what it compiled itself is
//! there for the next ones when it has ended. Names stand for component and engine, so old code is never taken for new.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::component::profile_folder;

/// What the folder may hold; beyond it, it begins anew.
const MOST: usize = 400;

/// Gives a host that has no code yet all that others have compiled.
pub(crate) fn lend(data: &Path) -> Result<()> {
    let own = data.join("code");
    if own.exists() {
        return Ok(());
    }
    let shared = shared()?;
    private_folder(&own)?;
    // Another test may be beginning the folder anew: then there is nothing to lend.
    for entry in names(&shared).unwrap_or_default() {
        // The same of a single file.
        let _ = fs::hard_link(shared.join(&entry), own.join(&entry));
    }
    Ok(())
}

/// Has a host that is not running begin without code.
pub(crate) fn begin(data: &Path) -> Result<()> {
    let own = data.join("code");
    if own.exists() {
        fs::remove_dir_all(&own).with_context(|| format!("removing {}", own.display()))?;
    }
    private_folder(&own)
}

/// Takes what a host has compiled that nobody had before.
pub(crate) fn take(data: &Path) -> Result<()> {
    let (own, shared) = (data.join("code"), shared()?);
    if fs::read(own.join("key")).ok() != fs::read(shared.join("key")).ok() {
        return Ok(());
    }
    let names = names(&own)?;
    let is_whole = |name: &String| {
        let stem = name.rsplit_once('.').map_or(&**name, |(stem, _)| stem);
        names.contains(&format!("{stem}.cwasm")) && names.contains(&format!("{stem}.hmac"))
    };
    // The mark first: code without one would be compiled again, and told.
    for end in [".hmac", ".cwasm"] {
        for name in names.iter().filter(|name| name.ends_with(end) && is_whole(name)) {
            let _ = fs::hard_link(own.join(name), shared.join(name));
        }
    }
    Ok(())
}

fn shared() -> Result<PathBuf> {
    let folder = profile_folder()?.join("e2e-code");
    if names(&folder).is_ok_and(|names| names.len() > MOST) {
        // Another test may be doing the same.
        let _ = fs::remove_dir_all(&folder);
    }
    private_folder(&folder)?;
    let key = folder.join("key");
    if !key.exists() {
        // Whole or not at all: another test may be looking.
        let part = folder.join(format!("key-{:?}", std::thread::current().id()));
        let mut file = fs::File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&part)
            .with_context(|| format!("making {}", part.display()))?;
        // Nothing is protected by it: these hosts are tests.
        file.write_all(&[7; 32]).context("writing a key")?;
        fs::rename(&part, &key).with_context(|| format!("making {}", key.display()))?;
    }
    Ok(folder)
}

fn private_folder(folder: &Path) -> Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.with_context(|| format!("making {}", folder.display()))
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let read = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    read.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}
