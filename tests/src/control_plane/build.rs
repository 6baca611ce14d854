//! Builds the three programs from `tests/control-plane` into the user's cache.

use std::path::Path;

use anyhow::{Result, bail};

use super::program::{Program, Programs};
use crate::go;

static CONTROL_PLANE: go::Program = go::Program {
    name: "control-plane",
    title: "control plane",
    what: "kube-apiserver and etcd",
    takes: "five to ten minutes",
    packages: 2500,
    module: "k8s.io/kubernetes",
    package: ".",
    sources: &[
        ("go.mod", include_str!("../../control-plane/go.mod")),
        ("go.sum", include_str!("../../control-plane/go.sum")),
        ("main.go", include_str!("../../control-plane/main.go")),
    ],
};

/// A build that can be run here.
#[derive(Debug)]
pub struct Build(go::Build);

impl Build {
    /// Checks for Go and names the folder; the error says what is missing.
    pub(super) fn plan() -> Result<Self, String> {
        go::Build::plan(&CONTROL_PLANE).map(Self)
    }

    /// The folder it builds into.
    pub fn folder(&self) -> &Path {
        &self.0.into
    }

    /// What an earlier run built from the same sources with the same Go.
    pub(super) fn built(&self) -> Option<Programs> {
        Programs::find(&self.0.into).ok()
    }

    /// Builds, unless another process does or did: then waits for that one.
    pub(super) fn run(&self) -> Result<Programs> {
        self.0.run(&linker_flags(self.0.version)?, |folder| {
            for program in Program::ALL {
                std::os::unix::fs::symlink(CONTROL_PLANE.name, folder.join(program.name()))?;
            }
            Ok(())
        })?;
        Programs::find(&self.0.into).map_err(anyhow::Error::msg)
    }
}

/// Without a version the server calls itself v0.0.0-master, and clients' checks go wrong.
fn linker_flags(version: &str) -> Result<String> {
    let mut parts = version.trim_start_matches('v').split('.');
    let (Some(major), Some(minor)) = (parts.next(), parts.next()) else {
        bail!("{version} is no Kubernetes version");
    };
    let package = "k8s.io/component-base/version";
    Ok(format!(
        "-s -w -X {package}.gitVersion={version} -X {package}.gitMajor={major} \
         -X {package}.gitMinor={minor}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_says_its_version() {
        assert!(linker_flags("v1.36.2").unwrap().contains("gitMajor=1 "));
        assert!(linker_flags("master").is_err());
    }
}
