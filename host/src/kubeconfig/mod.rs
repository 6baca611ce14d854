//! Finds and reads the kubeconfig by kubectl's rules; what each field and each odd form means is in docs/kubeconfig.md.
//!
//! Nothing here reads the environment: the command line hands it over in [`Environment`], and a test its own.
//!
//! Invariants: `the_flag_and_the_environment_treat_a_file_alike`, `a_broken_kubeconfig_never_becomes_the_pods_account`.

mod choose;
mod file;
mod proxy;

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

pub use choose::{Access, Chosen, Invalid};
pub use file::{Cluster, User};
pub use proxy::Proxies;

use file::File;

/// Which kubeconfig is meant.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// `--kubeconfig`.
    pub file: Option<PathBuf>,
    /// `--context`.
    pub context: Option<String>,
    /// What the environment says.
    pub environment: Environment,
}

/// What of the environment decides how the API server is reached.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// `KUBECONFIG`: files, separated as in `PATH`.
    pub kubeconfig: Option<OsString>,
    /// The user's home folder.
    pub home: Option<PathBuf>,
    /// `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY`.
    pub proxies: Proxies,
    /// Whether this is a pod that has the token of an account.
    pub in_pod: bool,
}

/// Why there is no kubeconfig that can be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot read the kubeconfig {0}")]
    File(PathBuf, #[source] io::Error),
    /// A file is not what it should be.
    #[error("{0} is no kubeconfig: {1}")]
    Form(PathBuf, String),
    /// Nothing says where the cluster is.
    #[error(
        "there is no kubeconfig{0}, and this is no pod with an account: give --kubeconfig or set KUBECONFIG"
    )]
    Nothing(String),
    /// Its parts do not fit together.
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

impl Source {
    /// Reads the files and chooses a context.
    pub fn load(&self) -> Result<Access, Error> {
        let given = self.file.as_deref().filter(|file| !file.as_os_str().is_empty());
        let (merged, missing) = match given {
            Some(path) => (read(path)?, vec![]),
            None => self.merged()?,
        };
        if !merged.is_empty() || self.context.is_some() {
            let proxies = &self.environment.proxies;
            let chosen = choose::choose(&merged, self.context.as_deref(), proxies)?;
            return Ok(Access::Cluster(Box::new(chosen)));
        }
        if given.is_none() && self.environment.in_pod {
            return Ok(Access::Pod);
        }
        let looked = match (given, missing.is_empty()) {
            (Some(path), _) => format!(" ({} is empty)", path.display()),
            (None, true) => String::new(),
            (None, false) => format!(" (not there or empty: {})", missing.join(", ")),
        };
        Err(Error::Nothing(looked))
    }

    /// All files of `KUBECONFIG` as one, or that of the home folder; and which of them say nothing.
    fn merged(&self) -> Result<(File, Vec<String>), Error> {
        let mut merged = File::default();
        let mut silent = vec![];
        for path in self.files() {
            match read(&path) {
                Ok(file) if file.is_empty() => silent.push(path.display().to_string()),
                Ok(file) => merged.merge(file),
                Err(Error::File(_, error)) if error.kind() == io::ErrorKind::NotFound => {
                    silent.push(path.display().to_string());
                }
                Err(error) => return Err(error),
            }
        }
        Ok((merged, silent))
    }

    fn files(&self) -> Vec<PathBuf> {
        let Environment { kubeconfig, home, .. } = &self.environment;
        match kubeconfig.as_ref().filter(|text| !text.is_empty()) {
            Some(text) => {
                let mut files: Vec<PathBuf> = vec![];
                for file in std::env::split_paths(text).filter(|file| !file.as_os_str().is_empty())
                {
                    if !files.contains(&file) {
                        files.push(file);
                    }
                }
                files
            }
            None => home.iter().map(|home| home.join(".kube/config")).collect(),
        }
    }
}

/// One file, its paths made independent of the folder in which the program runs.
fn read(path: &Path) -> Result<File, Error> {
    let bytes = fs::read(path).map_err(|error| Error::File(path.to_owned(), error))?;
    let wrong = |why| Error::Form(path.to_owned(), why);
    let mut file = file::parse(&bytes).map_err(wrong)?;
    file.resolve(path.parent().unwrap_or(Path::new("")));
    Ok(file)
}
