//! Files that a command generates and that are committed all the same: people read and apply them without the command.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, ensure};

/// What to do with them.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Write nothing; fail if a committed file is not the generated one
    #[arg(long)]
    check: bool,
}

impl Args {
    /// Compare only.
    pub(crate) fn checking() -> Self {
        Self { check: true }
    }
}

/// The files of one command.
pub(crate) struct Files<'a> {
    /// Where they lie.
    pub(crate) folder: PathBuf,
    /// Their names and what belongs into them.
    pub(crate) texts: &'a [(&'a str, String)],
    /// What they are made from.
    pub(crate) source: &'a str,
    /// The command that writes them.
    pub(crate) command: &'a str,
}

impl Files<'_> {
    /// Writes or compares them.
    pub(crate) fn settle(&self, args: &Args) -> Result<()> {
        if args.check { self.check() } else { self.write() }
    }

    /// Fails, naming them, if files are not the generated ones.
    fn check(&self) -> Result<()> {
        let read = |name: &str| fs::read_to_string(self.folder.join(name)).ok();
        let old = self.texts.iter().filter(|(name, text)| read(name).as_ref() != Some(text));
        let old: Vec<_> = old.map(|(name, _)| *name).collect();
        let (folder, old) = (self.folder.display(), old.join(", "));
        ensure!(old.is_empty(), "{folder} is old: {old}; run `{}`", self.command);
        eprintln!("{folder} is what {} makes", self.source);
        Ok(())
    }

    fn write(&self) -> Result<()> {
        let folder = &self.folder;
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        for (name, text) in self.texts {
            let file = folder.join(name);
            fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
            println!("{}", file.display());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_differs_or_is_missing_is_named() {
        let folder = std::env::temp_dir().join(format!("nagaya-generated-{}", std::process::id()));
        let texts = [("a.yaml", "a".to_owned()), ("b.yaml", "b".to_owned())];
        let files =
            Files { folder: folder.clone(), texts: &texts, source: "", command: "cargo xtask x" };
        files.write().unwrap();
        files.check().unwrap();
        fs::write(folder.join("b.yaml"), "c").unwrap();
        let text = files.check().unwrap_err().to_string();
        assert!(text.contains("b.yaml") && !text.contains("a.yaml"), "{text}");
        assert!(text.contains("cargo xtask x"), "{text}");
        fs::remove_dir_all(&folder).unwrap();
        assert!(files.check().is_err());
    }
}
