//! `cargo xtask crds`: writes the generated CustomResourceDefinitions into `deploy/crd/`.

use std::{fs, path::Path};

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

/// Writes or compares the files.
pub(crate) fn run(args: &Args) -> Result<()> {
    let folder = crate::root()?.join("deploy/crd");
    let definitions = nagaya::model::crd::definitions().context("generating the definitions")?;
    if args.check { check(&folder, &definitions) } else { write(&folder, &definitions) }
}

/// Fails, naming them, if files of `deploy/crd/` are not the generated ones.
fn check(folder: &Path, definitions: &[(&str, String)]) -> Result<()> {
    let old: Vec<_> = definitions
        .iter()
        .filter(|(name, text)| fs::read_to_string(folder.join(name)).ok().as_ref() != Some(text))
        .map(|(name, _)| *name)
        .collect();
    ensure!(old.is_empty(), "deploy/crd is old: {}; run `cargo xtask crds`", old.join(", "));
    eprintln!("deploy/crd is what host/src/model/crd.rs makes");
    Ok(())
}

fn write(folder: &Path, definitions: &[(&str, String)]) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    for (name, text) in definitions {
        let file = folder.join(name);
        fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
        println!("{}", file.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_differs_or_is_missing_is_named() {
        let folder = std::env::temp_dir().join(format!("nagaya-crds-{}", std::process::id()));
        let definitions = [("a.yaml", "a".to_owned()), ("b.yaml", "b".to_owned())];
        write(&folder, &definitions).unwrap();
        check(&folder, &definitions).unwrap();
        fs::write(folder.join("b.yaml"), "c").unwrap();
        let text = check(&folder, &definitions).unwrap_err().to_string();
        assert!(text.contains("b.yaml") && !text.contains("a.yaml"), "{text}");
        fs::remove_dir_all(&folder).unwrap();
        assert!(check(&folder, &definitions).is_err());
    }
}
