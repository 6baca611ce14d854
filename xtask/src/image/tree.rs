//! A tree of files and its tar form: the same bytes on every machine and at any time, for order, dates and owners are given
//! and never looked up.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

/// What lies where; sorted, so that a folder comes before what is in it.
#[derive(Debug, Default)]
pub(super) struct Tree(BTreeMap<String, Entry>);

#[derive(Debug)]
struct Entry {
    mode: u32,
    owner: u64,
    /// None for a folder.
    content: Option<Vec<u8>>,
}

impl Tree {
    /// A file of root's, with the folders above it.
    pub(super) fn file(&mut self, path: &str, mode: u32, content: impl Into<Vec<u8>>) {
        self.put(path, Entry { mode, owner: 0, content: Some(content.into()) });
    }

    /// A folder, empty unless something is put into it.
    pub(super) fn folder(&mut self, path: &str, mode: u32, owner: u64) {
        self.put(path, Entry { mode, owner, content: None });
    }

    fn put(&mut self, path: &str, entry: Entry) {
        let path = path.trim_matches('/');
        for (place, _) in path.match_indices('/') {
            let above = || Entry { mode: 0o755, owner: 0, content: None };
            self.0.entry(path[..place].to_owned()).or_insert_with(above);
        }
        self.0.insert(path.to_owned(), entry);
    }

    #[cfg(test)]
    pub(super) fn files(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter(|(_, entry)| entry.content.is_some()).map(|(path, _)| path.as_str())
    }

    /// The tar file.
    pub(super) fn tar(&self) -> Result<Vec<u8>> {
        let mut tar = tar::Builder::new(vec![]);
        for (path, entry) in &self.0 {
            let content = entry.content.as_deref().unwrap_or_default();
            let mut header = tar::Header::new_ustar();
            let kind = match entry.content {
                Some(_) => tar::EntryType::Regular,
                None => tar::EntryType::Directory,
            };
            header.set_entry_type(kind);
            header.set_mode(entry.mode);
            header.set_uid(entry.owner);
            header.set_gid(entry.owner);
            header.set_mtime(0);
            header.set_size(content.len() as u64);
            let path = if entry.content.is_some() { path.clone() } else { format!("{path}/") };
            tar.append_data(&mut header, &path, content)
                .with_context(|| format!("packing {path}"))?;
        }
        tar.into_inner().context("ending a tar file")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_the_owners_and_modes_that_were_given_and_no_date() {
        let mut tree = Tree::default();
        tree.file("/nagaya", 0o755, "host");
        tree.folder("/var/lib/nagaya", 0o700, 65532);
        tree.file("/etc/passwd", 0o644, "root");
        let bytes = tree.tar().unwrap();
        let mut tar = tar::Archive::new(bytes.as_slice());
        let told = tar.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            let header = entry.header();
            assert_eq!(header.mtime().unwrap(), 0);
            assert_eq!(header.uid().unwrap(), header.gid().unwrap());
            let path = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
            format!("{:o} {} {path}", header.mode().unwrap(), header.uid().unwrap())
        });
        let wanted = [
            "755 0 etc/",
            "644 0 etc/passwd",
            "755 0 nagaya",
            "755 0 var/",
            "755 0 var/lib/",
            "700 65532 var/lib/nagaya/",
        ];
        assert_eq!(told.collect::<Vec<_>>(), wanted);
    }

    #[test]
    fn the_order_in_which_files_are_put_changes_nothing() {
        let pack = |paths: &[&str]| {
            let mut tree = Tree::default();
            for path in paths {
                tree.file(path, 0o644, *path);
            }
            tree.tar().unwrap()
        };
        assert_eq!(pack(&["/a/b", "/c", "/a/d"]), pack(&["/c", "/a/d", "/a/b"]));
    }
}
