//! The folder of one instance: private, locked while its owner lives, gone afterwards.
//!
//! A new instance first clears away what killed owners left: a folder without a lock, and whatever
//! still runs in it. Given binaries have no lifeline and need that; for ours it is the disk space.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};

use super::process;
use crate::go::say;

const PREFIX: &str = "nagaya-cp-";
const LOCK: &str = "lock";
/// Its presence keeps the folder after its owner.
const KEPT: &str = "kept";
/// Long enough to look at a failure after a weekend; each folder is 63 MB.
const KEPT_FOR: Duration = Duration::from_hours(72);

#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    keep: bool,
    _lock: File,
}

impl Folder {
    /// A new folder, after clearing away abandoned ones.
    pub(super) fn create(keep: bool) -> Result<Self> {
        let parent = std::env::temp_dir();
        sweep(&parent);
        Self::create_in(&parent, keep).context("creating the instance's folder")
    }

    fn create_in(parent: &Path, keep: bool) -> Result<Self> {
        // Locked under a name that no sweep looks at, then renamed: never seen without its lock.
        // tempfile makes folders with mode 0700.
        let hidden = tempfile::Builder::new().prefix(&format!(".{PREFIX}")).tempdir_in(parent)?;
        let lock = File::create(hidden.path().join(LOCK))?;
        lock.lock()?;
        let name = hidden.path().file_name().and_then(OsStr::to_str);
        let name = name.context("a temporary folder has a name")?.trim_start_matches('.');
        let path = parent.join(name);
        fs::rename(hidden.path(), &path)?;
        let _ = hidden.keep();
        // The kernel knows the folder by this path; `/tmp` is a link on some systems.
        Ok(Self { path: path.canonicalize()?, keep, _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.keep || std::thread::panicking() {
            if let Err(error) = fs::write(self.path.join(KEPT), "") {
                say(&format!("control plane: {} will not be kept: {error}", self.path.display()));
            }
            say(&format!("control plane: kept {}", self.path.display()));
        } else if let Err(error) = fs::remove_dir_all(&self.path) {
            say(&format!("control plane: cannot remove {}: {error}", self.path.display()));
        }
    }
}

fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX))
            && let Ok(path) = entry.path().canonicalize()
        {
            clear(&path);
        }
    }
}

/// Ends and removes `folder`, if nobody holds its lock and nobody asked to keep it.
fn clear(folder: &Path) {
    // No file: not ours, or another sweep is just removing it. Another user's cannot be opened.
    let Ok(lock) = File::open(folder.join(LOCK)) else { return };
    if lock.try_lock().is_err() {
        return;
    }
    process::kill_in(folder);
    let kept = fs::metadata(folder.join(KEPT)).and_then(|marker| marker.modified());
    let keep = kept
        .is_ok_and(|since| SystemTime::now().duration_since(since).is_ok_and(|age| age < KEPT_FOR));
    if !keep && let Err(error) = fs::remove_dir_all(folder) {
        tracing::warn!(folder = %folder.display(), %error, "cannot remove an abandoned instance");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_takes_what_is_abandoned_and_nothing_else() {
        let parent = tempfile::tempdir().unwrap();
        let held = Folder::create_in(parent.path(), false).unwrap();
        let kept = Folder::create_in(parent.path(), true).unwrap();
        let kept_path = kept.path().to_owned();
        drop(kept);
        let abandoned = parent.path().join("nagaya-cp-old");
        fs::create_dir(&abandoned).unwrap();
        fs::write(abandoned.join(LOCK), "").unwrap();
        let strange = parent.path().join("nagaya-cp-other");
        fs::create_dir(&strange).unwrap();

        sweep(parent.path());
        let is_there = [held.path(), &kept_path, &strange, &abandoned].map(Path::exists);
        assert_eq!(is_there, [true, true, true, false]);
    }

    #[test]
    fn a_folder_goes_with_its_owner_unless_kept() {
        let parent = tempfile::tempdir().unwrap();
        let mut folder = Folder::create_in(parent.path(), false).unwrap();
        let gone = folder.path().to_owned();
        drop(folder);
        folder = Folder::create_in(parent.path(), false).unwrap();
        folder.keep();
        let there = folder.path().to_owned();
        drop(folder);
        assert_eq!((gone.exists(), there.exists()), (false, true));
    }
}
