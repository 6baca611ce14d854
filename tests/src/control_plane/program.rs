//! The three programs of a control plane and the folder they lie in.

use std::path::{Path, PathBuf};

/// One of the programs that make a control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// The store.
    Etcd,
    /// The API server.
    ApiServer,
    /// Garbage collection, namespace deletion, default `ServiceAccount`s. Optional.
    ControllerManager,
}

impl Program {
    /// The file name, which is also how the multi-call binary knows what to be.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ApiServer => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
        }
    }

    /// All three, in the order they start.
    pub const ALL: [Self; 3] = [Self::Etcd, Self::ApiServer, Self::ControllerManager];
}

/// A folder that holds at least etcd and kube-apiserver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    folder: PathBuf,
}

impl Programs {
    /// Looks into `folder`; the error says what is not there.
    pub(super) fn find(folder: &Path) -> Result<Self, String> {
        let found = Self { folder: folder.to_owned() };
        let absent: Vec<_> = [Program::Etcd, Program::ApiServer]
            .into_iter()
            .filter(|program| !found.has(*program))
            .map(Program::name)
            .collect();
        if absent.is_empty() {
            Ok(found)
        } else {
            Err(format!("{} has no {}", folder.display(), absent.join(" and no ")))
        }
    }

    /// The folder itself.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether the folder holds `program`; envtest's archives have no controller manager.
    pub fn has(&self, program: Program) -> bool {
        self.path(program).is_file()
    }

    pub(super) fn path(&self, program: Program) -> PathBuf {
        self.folder.join(program.name())
    }
}
