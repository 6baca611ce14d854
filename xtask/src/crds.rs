//! `cargo xtask crds`: writes the generated CustomResourceDefinitions into `deploy/crd/`, and the schema of a manifest into `wit/`.

use anyhow::{Context, Result};

use crate::generated::{Args, Files};

/// Writes or compares the files.
pub(crate) fn run(args: &Args) -> Result<()> {
    let definitions = nagaya::model::crd::definitions().context("generating the definitions")?;
    let files = Files {
        folder: crate::root()?.join("deploy/crd"),
        texts: &definitions,
        source: "host/src/model/crd.rs",
        command: "cargo xtask crds",
    };
    files.settle(args)?;
    let files = Files {
        folder: crate::root()?.join("wit"),
        texts: &[("manifest.schema.json", nagaya::model::manifest::schema())],
        source: "host/src/model/manifest/wire.rs",
        command: "cargo xtask crds",
    };
    files.settle(args)
}
