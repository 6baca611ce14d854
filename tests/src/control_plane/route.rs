//! Where a control plane would come from. Looks only: builds nothing, starts nothing.
//!
//! The ordinary `KUBECONFIG` and `~/.kube/config` are never read: a test run must not reach a
//! cluster by accident (`the_ordinary_kubeconfig_is_never_a_route`). A variable that is set and
//! wrong is an error, not a reason to try the next one.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use super::build::Build;
use super::program::Programs;
use crate::go::OLDEST_GO;

/// Names a kubeconfig of an existing cluster that is there for tests.
pub const GIVEN_CLUSTER: &str = "NAGAYA_TEST_KUBECONFIG";
/// Names a folder with `kube-apiserver`, `etcd` and perhaps `kube-controller-manager`.
pub const GIVEN_PROGRAMS: &str = "NAGAYA_CONTROL_PLANE";
/// The same, as people who use envtest have it set already.
pub const ENVTEST_PROGRAMS: &str = "KUBEBUILDER_ASSETS";

/// Where a control plane comes from, or why there is none.
#[derive(Debug)]
pub enum Route {
    /// An existing cluster, by its kubeconfig.
    Cluster(PathBuf),
    /// Programs that are there: given, or built earlier.
    Programs(Programs),
    /// Programs that can be built here, which takes minutes once.
    Build(Build),
    /// None of these.
    Missing(Missing),
}

impl Route {
    /// The programs, built now if need be: blocks for minutes then, with progress on stderr.
    pub fn programs(self) -> anyhow::Result<Programs> {
        match self {
            Self::Programs(programs) => Ok(programs),
            Self::Build(build) => build.run(),
            Self::Cluster(file) => {
                anyhow::bail!("{GIVEN_CLUSTER}={} is a cluster, not programs", file.display())
            }
            Self::Missing(missing) => Err(missing.into()),
        }
    }
}

/// Why there is no control plane; printed, it also says how to provide one.
#[derive(Debug, Clone)]
pub struct Missing {
    /// What is missing, in one line.
    pub reason: String,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "no control plane: {}\n\
             Any of these provides one:\n  \
             {GIVEN_CLUSTER}=<file>: a kubeconfig of a cluster for tests, as its administrator\n  \
             {GIVEN_PROGRAMS}=<folder>: with kube-apiserver and etcd ({ENVTEST_PROGRAMS} works too)\n  \
             Go {}.{} or newer and the Go module proxy: both are then built, once, in five to ten \
             minutes",
            self.reason, OLDEST_GO.0, OLDEST_GO.1,
        )
    }
}

impl std::error::Error for Missing {}

/// The route that [`ControlPlane::start`](super::ControlPlane::start) would take.
pub fn locate() -> Route {
    choose(
        |name| std::env::var_os(name),
        || match Build::plan() {
            Ok(build) => build.built().map_or(Route::Build(build), Route::Programs),
            Err(reason) => Route::Missing(Missing { reason }),
        },
    )
}

fn choose(environment: impl Fn(&str) -> Option<OsString>, cached: impl FnOnce() -> Route) -> Route {
    let named = |name| environment(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(file) = named(GIVEN_CLUSTER) {
        return if file.is_file() {
            Route::Cluster(file)
        } else {
            let reason = format!("{GIVEN_CLUSTER}={}: no such file", file.display());
            Route::Missing(Missing { reason })
        };
    }
    for name in [GIVEN_PROGRAMS, ENVTEST_PROGRAMS] {
        if let Some(folder) = named(name) {
            return match Programs::find(&folder) {
                Ok(programs) => Route::Programs(programs),
                Err(reason) => Route::Missing(Missing { reason: format!("{name}: {reason}") }),
            };
        }
    }
    cached()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(set: &[(&str, &str)]) -> String {
        let environment =
            |name: &str| set.iter().find(|(n, _)| *n == name).map(|(_, value)| value.into());
        let cached = || Route::Missing(Missing { reason: "asked the cache".into() });
        match choose(environment, cached) {
            Route::Cluster(file) => format!("cluster {}", file.display()),
            Route::Programs(programs) => format!("programs {}", programs.folder().display()),
            Route::Build(_) => "build".into(),
            Route::Missing(missing) => missing.reason,
        }
    }

    fn folder_with(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        folder
    }

    #[test]
    fn the_ordinary_kubeconfig_is_never_a_route() {
        let folder = folder_with(&["config"]);
        let file = folder.path().join("config");
        assert_eq!(check(&[("KUBECONFIG", file.to_str().unwrap())]), "asked the cache");
    }

    #[test]
    fn a_given_cluster_comes_before_programs_and_ours_before_those_of_envtest() {
        let (one, two) = (folder_with(&["etcd", "kube-apiserver"]), folder_with(&["file"]));
        let (programs, file) = (one.path().to_str().unwrap(), two.path().join("file"));
        let file = file.to_str().unwrap();
        assert_eq!(
            check(&[(GIVEN_PROGRAMS, programs), (GIVEN_CLUSTER, file)]),
            format!("cluster {file}")
        );
        assert_eq!(
            check(&[(ENVTEST_PROGRAMS, "/nowhere"), (GIVEN_PROGRAMS, programs)]),
            format!("programs {programs}")
        );
        assert_eq!(check(&[(ENVTEST_PROGRAMS, programs)]), format!("programs {programs}"));
    }

    #[test]
    fn a_wrong_variable_is_missing_and_an_empty_one_is_unset() {
        assert!(check(&[(GIVEN_CLUSTER, "/nowhere")]).contains("no such file"));
        let folder = folder_with(&["etcd"]);
        let said = check(&[(GIVEN_PROGRAMS, folder.path().to_str().unwrap())]);
        assert!(said.ends_with("has no kube-apiserver"), "{said}");
        assert_eq!(check(&[(GIVEN_CLUSTER, ""), (GIVEN_PROGRAMS, "")]), "asked the cache");
    }
}
