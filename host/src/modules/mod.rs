//! Components by content: received, verified, kept on disk under their SHA-256.
//!
//! No name from a request reaches the file system: a file is called by the hex digits of its own hash, written
//! under a temporary name, synced, renamed, and the folder synced. Modules are code, not secrets.
//!
//! Invariants: `a_file_appears_whole_or_not_at_all`, `bytes_that_changed_on_disk_are_not_given_out`.

pub mod garbage;
pub mod oci;
pub mod policy;
mod proofs;
pub mod screen;
mod upload;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::future::BoxFuture;
use tokio::sync::watch;

pub use upload::Upload;

use crate::model::digest::{Digest, NotADigest};

/// No upload and no compiled file takes as long as this to write.
const ABANDONED_AFTER: Duration = Duration::from_secs(3_600);

/// Why bytes were not taken or not given.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not a digest.
    #[error(transparent)]
    NotADigest(#[from] NotADigest),
    /// The bytes have another digest.
    #[error(
        "the bytes have the digest {found}, not {named}: send those that spec.module.digest names, or name these"
    )]
    OtherBytes {
        /// What they were sent as.
        named: Digest,
        /// What they are.
        found: Digest,
    },
    /// Over the limit.
    #[error("the component is larger than {0} bytes: strip debug information (`strip = true`)")]
    TooLarge(u64),
    /// The store's disk.
    #[error("the host cannot {what} in its module store; whoever runs it must see to its disk")]
    Disk {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// The modules on this host's disk; cheap to clone.
#[derive(Clone, Debug)]
pub struct Modules {
    folder: Arc<Path>,
    /// Moves when a module has arrived.
    arrivals: Arc<watch::Sender<u64>>,
    /// The digests that each WasmController names; `None` until the API has been read.
    named: Arc<watch::Sender<Option<Named>>>,
}

/// Where a module may be that is not here.
pub trait Elsewhere: std::fmt::Debug + Send + Sync {
    /// Brings it here, if it is there.
    fn fetch(&self, digest: Digest) -> BoxFuture<'static, ()>;
}

/// A host that has no other beside it.
#[derive(Clone, Copy, Debug)]
pub struct Nowhere;

impl Elsewhere for Nowhere {
    fn fetch(&self, _: Digest) -> BoxFuture<'static, ()> {
        Box::pin(async {})
    }
}

/// What each WasmController names.
type Named = BTreeMap<String, HashSet<Digest>>;

/// What an upload under a digest would meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Welcome {
    /// A WasmController names it and it is missing: send it.
    Wanted,
    /// It is here already.
    Stored,
    /// Nobody names it.
    Unnamed,
    /// The host has not read the API yet.
    NotSynced,
}

impl Modules {
    /// Opens the store in `folder`, making it if need be and removing what interrupted uploads left.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let disk = |what| move |source| Error::Disk { what, source };
        fs::create_dir_all(folder).map_err(disk("make the folder"))?;
        sweep(folder).map_err(disk("remove unfinished uploads"))?;
        Ok(Self {
            folder: folder.into(),
            arrivals: Arc::new(watch::channel(0).0),
            named: Arc::new(watch::channel(None).0),
        })
    }

    /// The API has been read: what nobody names now is not welcome.
    pub fn synced(&self) {
        self.named.send_modify(|named| {
            named.get_or_insert_default();
        });
    }

    /// Says which digests `controller` names now.
    pub fn name(&self, controller: &str, digests: HashSet<Digest>) {
        self.named.send_modify(|named| {
            named.get_or_insert_default().insert(controller.to_owned(), digests);
        });
    }

    /// `controller` is gone and names nothing any more.
    pub fn forget(&self, controller: &str) {
        self.named.send_modify(|named| {
            if let Some(named) = named {
                named.remove(controller);
            }
        });
    }

    /// Whether the bytes of `digest` are stored.
    pub fn has(&self, digest: &Digest) -> bool {
        self.path(digest).is_file()
    }

    /// What an upload of `digest` would meet now; only what WasmControllers of `namespace` name counts, if one is given.
    pub fn welcome(&self, digest: &Digest, namespace: Option<&str>) -> Welcome {
        let counts = |controller: &String| {
            let of = controller.split_once('/').map(|(namespace, _)| namespace);
            namespace.is_none() || of == namespace
        };
        let names = |(controller, digests): (&String, &HashSet<Digest>)| {
            counts(controller) && digests.contains(digest)
        };
        match &*self.named.borrow() {
            None => Welcome::NotSynced,
            Some(named) if !named.iter().any(names) => Welcome::Unnamed,
            Some(_) if self.has(digest) => Welcome::Stored,
            Some(_) => Welcome::Wanted,
        }
    }

    /// Whether so many WasmControllers have said what they name, and all of it is here.
    pub fn has_all_of(&self, controllers: usize) -> bool {
        self.named.borrow().as_ref().is_some_and(|named| {
            named.len() >= controllers && named.values().flatten().all(|digest| self.has(digest))
        })
    }

    /// Moves on with every module that arrives.
    pub fn arrivals(&self) -> watch::Receiver<u64> {
        self.arrivals.subscribe()
    }

    /// The digests of all stored modules, and of those of which a proof is stored.
    pub fn stored(&self) -> Result<Vec<Digest>, Error> {
        let disk = |source| Error::Disk { what: "list the modules", source };
        let mut found = BTreeSet::new();
        for entry in fs::read_dir(&self.folder).map_err(disk)? {
            let path = entry.map_err(disk)?.path();
            found.extend(proofs::component(&path));
        }
        Ok(found.into_iter().collect())
    }

    /// Removes a module that nobody names, with its proofs; whether it did. Nobody can be told meanwhile that it is stored.
    pub fn remove_unnamed(&self, digest: &Digest) -> Result<bool, Error> {
        let disk = |source| Error::Disk { what: "remove a module", source };
        let files = self.files(digest).map_err(disk)?;
        let mut removed = Ok(false);
        self.named.send_if_modified(|named| {
            let is_named = named
                .as_ref()
                .is_none_or(|named| named.values().any(|digests| digests.contains(digest)));
            // Just uploaded: whoever named it may be about to do so again.
            let is_old = |file: &PathBuf| {
                let age = fs::metadata(file).and_then(|file| file.modified());
                age.is_ok_and(|at| at.elapsed().is_ok_and(|age| age >= garbage::GRACE))
            };
            if !is_named && files.iter().all(is_old) {
                removed = files.iter().try_for_each(fs::remove_file).map(|()| !files.is_empty());
            }
            false
        });
        removed.map_err(disk)
    }

    /// The bytes of `digest`, hashed again; `None` if there are none or others.
    pub fn read(&self, digest: &Digest) -> Result<Option<Arc<[u8]>>, Error> {
        let path = self.path(digest);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::Disk { what: "read a module", source }),
        };
        let found = Digest::of(&bytes);
        if found != *digest {
            tracing::error!(%digest, %found, "a stored module has changed on disk and is removed");
            fs::remove_file(&path)
                .map_err(|source| Error::Disk { what: "remove a module", source })?;
            return Ok(None);
        }
        Ok(Some(bytes.into()))
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(digest.hex()).with_extension("wasm")
    }
}

/// Removes what interrupted writers have left in `folder`: `.part` files that nobody has touched for an hour. Younger ones
/// may be another host's work.
pub fn sweep(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "part") {
            continue;
        }
        let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        let age = fs::metadata(&path).and_then(|metadata| metadata.modified());
        let abandoned = match age {
            Ok(modified) => modified.elapsed().is_ok_and(|age| age > ABANDONED_AFTER),
            Err(error) if gone(&error) => false,
            Err(error) => return Err(error),
        };
        if abandoned {
            fs::remove_file(&path)
                .or_else(|error| if gone(&error) { Ok(()) } else { Err(error) })?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Modules) {
        let folder = tempfile::tempdir().unwrap();
        let modules = Modules::open(folder.path()).unwrap();
        (folder, modules)
    }

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let (folder, modules) = store();
        let digest = Digest::of(b"hello");
        let mut upload = modules.upload(digest.clone(), 5).unwrap();
        upload.write(b"hel").unwrap();
        assert_eq!(modules.read(&digest).unwrap(), None);
        drop(upload);
        assert_eq!(
            fs::read_dir(folder.path()).unwrap().count(),
            0,
            "an aborted upload leaves nothing"
        );
        let mut upload = modules.upload(digest.clone(), 5).unwrap();
        upload.write(b"hel").unwrap();
        upload.write(b"lo").unwrap();
        assert!(matches!(upload.write(b"!"), Err(Error::TooLarge(5))));
        drop(upload);
        let mut upload = modules.upload(digest.clone(), 5).unwrap();
        upload.write(b"hallo").unwrap();
        assert!(matches!(upload.finish(), Err(Error::OtherBytes { .. })));
        let mut upload = modules.upload(digest.clone(), 5).unwrap();
        upload.write(b"hello").unwrap();
        upload.finish().unwrap();
        assert_eq!(modules.read(&digest).unwrap().as_deref(), Some(&b"hello"[..]));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_was_abandoned_is_swept_and_what_is_being_written_is_not() {
        let (folder, modules) = store();
        let old = folder.path().join("old.part");
        let file = fs::File::create(&old).unwrap();
        file.set_modified(std::time::SystemTime::now() - ABANDONED_AFTER * 2).unwrap();
        let digest = Digest::of(b"hello");
        let mut upload = modules.upload(digest.clone(), 5).unwrap();
        Modules::open(folder.path()).unwrap();
        assert!(!old.exists());
        upload.write(b"hello").unwrap();
        upload.finish().unwrap();
        assert!(modules.has(&digest), "another host's start does not disturb an upload");
    }

    #[test]
    fn bytes_that_changed_on_disk_are_not_given_out() {
        let (folder, modules) = store();
        let digest = Digest::of(b"hello");
        let mut upload = modules.upload(digest.clone(), 5).unwrap();
        upload.write(b"hello").unwrap();
        upload.finish().unwrap();
        let file = folder.path().join(format!("{}.wasm", digest.hex()));
        fs::write(file, b"hallo").unwrap();
        assert_eq!(modules.read(&digest).unwrap(), None);
        modules.name("demo/web", HashSet::from([digest.clone()]));
        assert_eq!(modules.welcome(&digest, None), Welcome::Wanted, "it can be sent again");
    }

    #[test]
    fn only_a_module_that_nobody_names_is_removed() {
        let (folder, modules) = store();
        let keep = |text: &'static [u8], old: bool| {
            let digest = Digest::of(text);
            let mut upload = modules.upload(digest.clone(), 50).unwrap();
            upload.write(text).unwrap();
            upload.finish().unwrap();
            if old {
                let path = folder.path().join(digest.hex()).with_extension("wasm");
                let file = fs::File::options().write(true).open(path).unwrap();
                file.set_modified(std::time::SystemTime::now() - garbage::GRACE * 2).unwrap();
            }
            digest
        };
        let [named, unnamed] = [keep(b"named", true), keep(b"unnamed", true)];
        let young = keep(b"young", false);
        fs::write(folder.path().join("x.part"), b"").unwrap();
        assert!(!modules.remove_unnamed(&unnamed).unwrap(), "the API has not been read");
        modules.name("demo/web", HashSet::from([named.clone()]));
        let mut stored = modules.stored().unwrap();
        stored.sort();
        let mut all = vec![named.clone(), unnamed.clone(), young.clone()];
        all.sort();
        assert_eq!(stored, all);
        assert!(!modules.remove_unnamed(&named).unwrap());
        assert!(!modules.remove_unnamed(&young).unwrap());
        assert!(modules.remove_unnamed(&unnamed).unwrap());
        modules.name("demo/web", HashSet::from([unnamed.clone()]));
        assert_eq!(modules.welcome(&unnamed, None), Welcome::Wanted, "it can be sent again");
        modules.forget("demo/web");
        assert!(modules.remove_unnamed(&named).unwrap());
    }

    #[test]
    fn only_a_named_digest_is_welcome() {
        let (_folder, modules) = store();
        let digest = Digest::of(b"hello");
        assert_eq!(modules.welcome(&digest, None), Welcome::NotSynced);
        modules.synced();
        assert_eq!(modules.welcome(&digest, None), Welcome::Unnamed);
    }
}
