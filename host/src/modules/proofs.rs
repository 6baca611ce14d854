//! What shows that an image is signed, kept beside its component: a registry that is down stops nothing that ran.
//!
//! A proof is checked whenever it is used, so nobody gains by changing one. It is named by the component and the manifest, and goes
//! with the component.
//!
//! Invariant: `a_proof_is_kept_beside_its_component_and_goes_with_it`.

use std::{
    fs, io,
    io::Write,
    path::{Path, PathBuf},
};

use super::{Digest, Error, Modules, oci::Proof};

impl Modules {
    /// What is kept to show that the image with this manifest holds `component` and is signed.
    pub fn proof(&self, component: &Digest, manifest: &Digest) -> Result<Option<Proof>, Error> {
        let bytes = match fs::read(self.proof_path(component, manifest)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::Disk { what: "read a proof", source }),
        };
        // One that cannot be read is asked for again.
        Ok(serde_json::from_slice(&bytes).ok())
    }

    /// Keeps `proof`; blocks until the disk has it.
    pub fn keep_proof(
        &self,
        (component, manifest): (&Digest, &Digest),
        proof: &Proof,
    ) -> Result<(), Error> {
        let (mut file, part) = self.part(component)?;
        let path = self.proof_path(component, manifest);
        let kept = serde_json::to_vec(proof)
            .map_err(io::Error::from)
            .and_then(|bytes| file.write_all(&bytes))
            .and_then(|()| file.sync_all())
            .and_then(|()| fs::rename(&part, path))
            .and_then(|()| fs::File::open(&self.folder)?.sync_all());
        kept.map_err(|source| {
            // Gone already if all but the last step has worked.
            let _ = fs::remove_file(&part);
            Error::Disk { what: "keep a proof", source }
        })
    }

    /// The files that belong to a component.
    pub(super) fn files(&self, digest: &Digest) -> io::Result<Vec<PathBuf>> {
        let mut files = vec![];
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if component(&path).as_ref() == Some(digest) {
                files.push(path);
            }
        }
        Ok(files)
    }

    fn proof_path(&self, component: &Digest, manifest: &Digest) -> PathBuf {
        let name = format!("{}-{}", component.hex(), manifest.hex());
        self.folder.join(name).with_extension("proof")
    }
}

/// The component that a stored file is, or is about.
pub(super) fn component(path: &Path) -> Option<Digest> {
    let (stem, extension) = (path.file_stem()?.to_str()?, path.extension()?.to_str()?);
    let hex = match extension {
        "wasm" => stem,
        "proof" => stem.split_once('-')?.0,
        _ => return None,
    };
    format!("sha256:{hex}").parse().ok()
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, time::SystemTime};

    use k8s_openapi::ByteString;
    use serde_json::json;

    use super::*;
    use crate::modules::garbage::GRACE;

    #[test]
    fn a_proof_is_kept_beside_its_component_and_goes_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let modules = Modules::open(folder.path()).unwrap();
        let [named, unnamed, manifest] = [b"a".as_slice(), b"b", b"m"].map(Digest::of);
        let proof = |text: &[u8]| -> Proof {
            let proof = json!({ "manifest": ByteString(text.to_vec()), "signatures": [] });
            serde_json::from_value(proof).unwrap()
        };
        for component in [&named, &unnamed] {
            assert_eq!(modules.proof(component, &manifest).unwrap(), None);
            modules.keep_proof((component, &manifest), &proof(b"1")).unwrap();
            modules.keep_proof((component, &manifest), &proof(b"2")).unwrap();
            modules.keep_proof((component, component), &proof(b"3")).unwrap();
            assert_eq!(modules.proof(component, &manifest).unwrap(), Some(proof(b"2")));
            assert!(!modules.has(component));
        }
        assert_eq!(modules.stored().unwrap().len(), 2);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4, "no part is left");
        modules.name("demo/web", HashSet::from([named.clone()]));
        assert!(!modules.remove_unnamed(&unnamed).unwrap(), "it is young");
        for entry in fs::read_dir(folder.path()).unwrap() {
            let file = fs::File::options().write(true).open(entry.unwrap().path()).unwrap();
            file.set_modified(SystemTime::now() - GRACE * 2).unwrap();
        }
        assert!(!modules.remove_unnamed(&named).unwrap());
        assert!(modules.remove_unnamed(&unnamed).unwrap());
        assert_eq!(modules.stored().unwrap(), [named.clone()]);
        assert_eq!(modules.proof(&unnamed, &manifest).unwrap(), None);
        fs::write(modules.proof_path(&named, &manifest), b"{").unwrap();
        assert_eq!(modules.proof(&named, &manifest).unwrap(), None, "it is asked for again");
    }
}
