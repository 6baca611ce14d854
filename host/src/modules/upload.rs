//! One upload: bytes hashed while they are written, kept only if they are what they were called.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
};

use ring::digest::{Context, SHA256};

use super::{Digest, Error, Modules};
use crate::fail;

/// Bytes on their way into the store; dropping it removes them.
pub struct Upload {
    modules: Modules,
    digest: Digest,
    file: File,
    part: PathBuf,
    hash: Option<Context>,
    left: u64,
    limit: u64,
}

static UPLOADS: AtomicU64 = AtomicU64::new(0);

impl Modules {
    /// Begins an upload of at most `limit` bytes.
    pub fn upload(&self, digest: Digest, limit: u64) -> Result<Upload, Error> {
        let (file, part) = self.part(&digest)?;
        let hash = Some(Context::new(&SHA256));
        Ok(Upload { modules: self.clone(), digest, file, part, hash, left: limit, limit })
    }

    /// A new file beside the component, under a name that no other writer has.
    pub(super) fn part(&self, digest: &Digest) -> Result<(File, PathBuf), Error> {
        // Somebody may have removed the folder under the host's feet.
        fs::create_dir_all(&self.folder)
            .map_err(|source| Error::Disk { what: "make its folder", source })?;
        let number = UPLOADS.fetch_add(1, Ordering::Relaxed);
        let part =
            self.folder.join(format!("{}.{}.{number}.part", digest.hex(), std::process::id()));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&part)
            .map_err(|source| Error::Disk { what: "begin an upload", source })?;
        Ok((file, part))
    }
}

impl Upload {
    /// Adds `bytes`; blocks on the disk.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.left = self.left.checked_sub(length).ok_or(Error::TooLarge(self.limit))?;
        if let Some(hash) = &mut self.hash {
            hash.update(bytes);
        }
        self.file.write_all(bytes).map_err(|source| Error::Disk { what: "write an upload", source })
    }

    /// Checks the digest and puts the file in its place; blocks until the disk has it.
    pub fn finish(mut self) -> Result<(), Error> {
        let found = self.hash.take().map(|hash| Digest::from_hash(hash.finish().as_ref()));
        fail::point("hash");
        if let Some(found) = found.filter(|found| *found != self.digest) {
            return Err(Error::OtherBytes { named: self.digest.clone(), found });
        }
        fail::point("verify");
        self.place().map_err(|source| Error::Disk { what: "finish an upload", source })?;
        self.modules.arrivals.send_modify(|count| *count += 1);
        Ok(())
    }

    fn place(&self) -> io::Result<()> {
        self.file.sync_all()?;
        fail::point("fsync");
        fs::rename(&self.part, self.modules.path(&self.digest))?;
        fail::point("rename");
        File::open(&self.modules.folder)?.sync_all()
    }
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upload").field("digest", &self.digest).finish_non_exhaustive()
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        // Gone already if the upload was finished.
        let _ = fs::remove_file(&self.part);
    }
}
