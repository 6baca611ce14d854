//! Native code on disk, by the component's digest and the engine that made it, authenticated.
//!
//! A file that does not verify is deleted, never mapped: mapping runs native code. The folder is the host's alone
//! (mode 0700). Files are written under a temporary name, synced and renamed, never rewritten, so that what is mapped
//! stays as it was verified; unlinking is safe.
//!
//! Invariants: `what_does_not_verify_is_deleted`, `code_of_another_name_does_not_verify`,
//! `a_lost_or_readable_key_is_replaced`.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::AsRawFd,
        unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use ring::{
    hmac,
    rand::{SecureRandom, SystemRandom},
};
use wasmtime::{Engine, component::Component};

/// Bytes of the key.
const KEY: usize = 32;

/// The code cache of one folder.
#[derive(Debug)]
pub(super) struct CodeCache {
    folder: PathBuf,
    key: hmac::Key,
}

/// An open file whose bytes carry the host's own mark.
#[derive(Debug)]
pub(super) struct Verified(File);

impl CodeCache {
    /// Opens the cache in `folder`, making folder and key if need be and removing what a crash left.
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
        crate::modules::sweep(folder)?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key(folder)?);
        Ok(Self { folder: folder.to_owned(), key })
    }

    /// The code under `name`, if it is there and the host made it.
    pub(super) fn find(&self, name: &str) -> io::Result<Option<Verified>> {
        let (code, tag) = self.paths(name);
        let mut file = match File::open(&code) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = vec![];
        file.read_to_end(&mut bytes)?;
        let tag = fs::read(tag).unwrap_or_default();
        if hmac::verify(&self.key, &message(name, &bytes), &tag).is_ok() {
            return Ok(Some(Verified(file)));
        }
        tracing::warn!(file = %code.display(), "cached code does not verify and is deleted");
        self.remove(name)?;
        Ok(None)
    }

    /// Keeps `code` under `name`.
    pub(super) fn keep(&self, name: &str, code: &[u8]) -> io::Result<Verified> {
        // Somebody may have removed the folder under the host's feet.
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let (code_path, tag_path) = self.paths(name);
        let tag = hmac::sign(&self.key, &message(name, code));
        // Old code beside a new tag does not verify, so the order does not matter.
        self.write(&tag_path, tag.as_ref())?;
        let file = self.write(&code_path, code)?;
        File::open(&self.folder)?.sync_all()?;
        Ok(Verified(file))
    }

    /// Forgets the code under `name`.
    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        let (code, tag) = self.paths(name);
        for path in [code, tag] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => (),
            }
        }
        Ok(())
    }

    /// The names of all code in the folder.
    pub(super) fn names(&self) -> io::Result<Vec<String>> {
        let mut names = vec![];
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let ours = path
                .extension()
                .is_some_and(|extension| extension == "cwasm" || extension == "hmac");
            names.extend(
                path.file_stem().filter(|_| ours).map(|name| name.to_string_lossy().into_owned()),
            );
        }
        names.sort();
        names.dedup();
        Ok(names)
    }

    fn paths(&self, name: &str) -> (PathBuf, PathBuf) {
        (self.folder.join(format!("{name}.cwasm")), self.folder.join(format!("{name}.hmac")))
    }

    /// Two writers of one name have parts of their own.
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<File> {
        let part = self.folder.join(format!("{}.part", random_name()?));
        let mut file =
            OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&part)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&part, path)?;
        Ok(file)
    }
}

impl Verified {
    /// Maps the code.
    ///
    /// It is opened once more through its descriptor, so that it is the verified file whatever its name stands for
    /// by now.
    pub(super) fn load(&self, engine: &Engine) -> wasmtime::Result<Component> {
        let path = format!("/proc/self/fd/{}", self.0.as_raw_fd());
        #[expect(
            unsafe_code,
            reason = "the bytes are what `precompile_component` of this very version and configuration returned: their \
                      HMAC, whose key only the host can read, was checked on this open file, and files in the host's \
                      own folder (0700) are replaced by rename, never written again"
        )]
        // SAFETY: see the reason above.
        unsafe {
            Component::deserialize_file(engine, path)
        }
    }
}

/// The name is part of what is marked: code of one component must not stand in for another's.
fn message(name: &str, code: &[u8]) -> Vec<u8> {
    [name.as_bytes(), b"\0", code].concat()
}

/// The key beside the code; a new one, with which nothing old verifies, if there is none that only the host can read.
fn key(folder: &Path) -> io::Result<[u8; KEY]> {
    let path = folder.join("key");
    if let Ok(metadata) = fs::metadata(&path)
        && metadata.permissions().mode().trailing_zeros() >= 6
        && let Ok(key) = <[u8; KEY]>::try_from(fs::read(&path)?)
    {
        return Ok(key);
    }
    let mut key = [0; KEY];
    fill(&mut key)?;
    let part = folder.join(format!("{}.part", random_name()?));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part)?;
    file.write_all(&key)?;
    file.sync_all()?;
    fs::rename(&part, &path)?;
    Ok(key)
}

fn random_name() -> io::Result<String> {
    let mut bytes = [0; 8];
    fill(&mut bytes)?;
    Ok(hex::encode(bytes))
}

fn fill(bytes: &mut [u8]) -> io::Result<()> {
    SystemRandom::new().fill(bytes).map_err(|_| io::Error::other("there is no randomness"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_does_not_verify_is_deleted() {
        let folder = tempfile::tempdir().unwrap();
        let cache = CodeCache::open(folder.path()).unwrap();
        assert!(cache.find("a").unwrap().is_none());
        cache.keep("a", b"code").unwrap();
        assert!(cache.find("a").unwrap().is_some());
        assert_eq!(names(folder.path()), ["a.cwasm", "a.hmac", "key"]);
        assert_eq!(cache.names().unwrap(), ["a"]);
        for (file, bytes) in [
            ("a.cwasm", &b"codf"[..]),
            ("a.cwasm", b"code2"),
            ("a.hmac", b""),
            ("a.hmac", &[7; 32]),
        ] {
            cache.keep("a", b"code").unwrap();
            fs::write(folder.path().join(file), bytes).unwrap();
            assert!(cache.find("a").unwrap().is_none(), "{file}");
            assert_eq!(names(folder.path()), ["key"], "{file}");
        }
    }

    #[test]
    fn code_of_another_name_does_not_verify() {
        let folder = tempfile::tempdir().unwrap();
        let cache = CodeCache::open(folder.path()).unwrap();
        cache.keep("a", b"code").unwrap();
        for end in ["cwasm", "hmac"] {
            let at = |name: &str| folder.path().join(name).with_extension(end);
            fs::rename(at("a"), at("b")).unwrap();
        }
        assert!(cache.find("b").unwrap().is_none());
    }

    #[test]
    fn a_lost_or_readable_key_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("key");
        let open = || CodeCache::open(folder.path()).unwrap();
        open().keep("a", b"code").unwrap();
        assert!(open().find("a").unwrap().is_some(), "a restart recompiles nothing");
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(folder.path()).unwrap().permissions().mode() & 0o777, 0o700);
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(open().find("a").unwrap().is_none());
        open().keep("a", b"code").unwrap();
        fs::write(&key, b"short").unwrap();
        assert!(open().find("a").unwrap().is_none());
        let part = File::create(folder.path().join("x.part")).unwrap();
        let yesterday = Duration::from_secs(24 * 3_600);
        part.set_modified(std::time::SystemTime::now() - yesterday).unwrap();
        open();
        assert_eq!(names(folder.path()), ["key"]);
    }
}
