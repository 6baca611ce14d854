//! What is kept of a failed test: the namespace's objects and the audit lines that speak of it,
//! beside the host's log.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Write as _};
use std::path::Path;

use anyhow::{Context, Result};
use kube::api::{DynamicObject, ListParams};
use kube::{Api, Client};

use crate::control_plane::audit;
use crate::manifest::resource;

const KINDS: [(&str, &str); 12] = [
    ("nagaya.dev/v1alpha1", "WasmController"),
    ("nagaya.dev/v1alpha1", "WasmRevision"),
    ("examples.nagaya.dev/v1", "Website"),
    ("examples.nagaya.dev/v1", "At"),
    ("examples.nagaya.dev/v1", "Mirror"),
    ("v1", "ConfigMap"),
    ("v1", "Service"),
    ("v1", "ServiceAccount"),
    ("apps/v1", "Deployment"),
    ("rbac.authorization.k8s.io/v1", "Role"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding"),
    ("events.k8s.io/v1", "Event"),
];

/// Writes `objects.yaml` into `folder`.
pub(crate) async fn objects(admin: &Client, namespace: &str, folder: &Path) -> Result<()> {
    let mut text = String::new();
    for (api_version, kind) in KINDS {
        let resource = resource(api_version, kind);
        let api = Api::<DynamicObject>::namespaced_with(admin.clone(), namespace, &resource);
        match api.list(&ListParams::default()).await {
            Ok(list) => {
                for mut object in list {
                    object.metadata.managed_fields = None;
                    writeln!(text, "---\n{}", serde_saphyr::to_string(&object)?)?;
                }
            }
            Err(error) => writeln!(text, "---\n# no {kind}: {error}")?,
        }
    }
    fs::write(folder.join("objects.yaml"), text).context("writing objects.yaml")
}

/// Writes `audit.jsonl` into `folder`: the lines that name the namespace.
pub(crate) fn audit_lines(log: &audit::Log, namespace: &str, folder: &Path) -> Result<()> {
    let from = BufReader::new(File::open(log.path()).context("opening the audit log")?);
    let to = File::create(folder.join("audit.jsonl")).context("creating audit.jsonl")?;
    let mut to = BufWriter::new(to);
    for line in from.lines() {
        let line = line.context("reading the audit log")?;
        if line.contains(namespace) {
            writeln!(to, "{line}").context("writing audit.jsonl")?;
        }
    }
    to.flush().context("writing audit.jsonl")
}
