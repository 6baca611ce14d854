//! Writes a kubeconfig a user: one cluster, one user, one context, nothing referred to by path.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use k8s_openapi::ByteString;
use kube::config::Kubeconfig;
use serde_json::{Value, json};

use super::user::{Tokens, User};

/// How to reach the API server: the `cluster` part of a kubeconfig.
#[derive(Debug, Clone)]
pub(super) struct Cluster {
    fields: Value,
    pub(super) url: String,
    pub(super) ca_pem: String,
}

impl Cluster {
    pub(super) fn new(url: String, ca_pem: String) -> Result<Self> {
        let ca = serde_json::to_value(ByteString(ca_pem.clone().into_bytes()))?;
        let fields = json!({"server": url, "certificate-authority-data": ca});
        Ok(Self { fields, url, ca_pem })
    }

    /// The one an instance's kubeconfig names.
    pub(super) fn read(folder: &Path) -> Result<Self> {
        Ok(read(&path(folder, User::Admin.name()))?.0)
    }

    /// Writes `<name>.kubeconfig` with the given `user` part.
    pub(super) fn write(&self, folder: &Path, name: &str, user: &Value) -> Result<PathBuf> {
        let file = path(folder, name);
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "nagaya-test", "cluster": self.fields}],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": name, "context": {"cluster": "nagaya-test", "user": name}}],
            "current-context": name,
        });
        let text = serde_saphyr::to_string(&kubeconfig).context("formatting a kubeconfig")?;
        std::fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
        Ok(file)
    }

    /// One kubeconfig a user, by token.
    pub(super) fn write_users(&self, folder: &Path, tokens: &Tokens) -> Result<()> {
        for user in User::ALL {
            self.write(folder, user.name(), &json!({"token": tokens.of(user)?}))?;
        }
        Ok(())
    }
}

pub(super) fn path(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.kubeconfig"))
}

/// Writes the users of a given cluster: its administrator, and the others by impersonation,
/// because no token of ours is known there.
pub(super) fn write_given(file: &Path, folder: &Path) -> Result<Cluster> {
    let (cluster, admin) = read(file)?;
    for user in User::ALL {
        let mut fields = admin.clone();
        if let (Value::Object(fields), true) = (&mut fields, user != User::Admin) {
            fields.insert("as".into(), json!(user.username()));
            if let Some(group) = user.group() {
                fields.insert("as-groups".into(), json!([group]));
            }
        }
        cluster.write(folder, user.name(), &fields)?;
    }
    Ok(cluster)
}

/// Writes `<original>-<port>.kubeconfig` beside `original`: the same credentials for another server,
/// such as a proxy. Further ones in between overwrite each other only if the URL is the same.
pub fn through(original: &Path, url: &str, ca_pem: &str) -> Result<PathBuf> {
    let (_, user) = read(original)?;
    let folder = original.parent().context("a kubeconfig that lies nowhere")?;
    let stem = original.file_stem().unwrap_or_default().to_string_lossy();
    let port = url.rsplit(':').next().unwrap_or_default();
    Cluster::new(url.to_owned(), ca_pem.to_owned())?.write(folder, &format!("{stem}-{port}"), &user)
}

/// The cluster and the user of the current context.
fn read(file: &Path) -> Result<(Cluster, Value)> {
    let config =
        Kubeconfig::read_from(file).with_context(|| format!("reading {}", file.display()))?;
    let context = config
        .contexts
        .iter()
        .find(|context| Some(&context.name) == config.current_context.as_ref())
        .and_then(|named| named.context.as_ref())
        .with_context(|| format!("{} has no current context", file.display()))?;
    let cluster = config.clusters.iter().find(|cluster| cluster.name == context.cluster);
    let cluster = cluster.and_then(|named| named.cluster.as_ref()).context("no such cluster")?;
    let user = config.auth_infos.iter().find(|user| Some(&user.name) == context.user.as_ref());
    let user = user.and_then(|named| named.auth_info.as_ref()).context("no such user")?;

    let ca_pem = if let Some(data) = &cluster.certificate_authority_data {
        let ByteString(bytes) = serde_json::from_value(json!(data)).context("decoding the CA")?;
        String::from_utf8(bytes).context("the CA is not PEM")?
    } else if let Some(ca) = &cluster.certificate_authority {
        std::fs::read_to_string(ca).with_context(|| format!("reading {ca}"))?
    } else {
        bail!("{} names no certificate authority", file.display());
    };
    let url = cluster.server.clone().context("the cluster has no server")?;
    let fields = serde_json::to_value(cluster)?;
    Ok((Cluster { fields, url, ca_pem }, serde_json::to_value(user)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let cluster = Cluster::new("https://127.0.0.1:1".into(), "the CA\n".into()).unwrap();
        cluster.write(folder.path(), "admin", &json!({"token": "yes"})).unwrap();
        let (read, user) = read(&path(folder.path(), "admin")).unwrap();
        assert_eq!((read.url, read.ca_pem), (cluster.url, cluster.ca_pem));
        assert_eq!(user["token"], "yes");
    }

    #[test]
    fn a_kubeconfig_through_a_proxy_keeps_the_credentials() {
        let folder = tempfile::tempdir().unwrap();
        let cluster = Cluster::new("https://127.0.0.1:1".into(), "the CA\n".into()).unwrap();
        let original = cluster.write(folder.path(), "host", &json!({"token": "yes"})).unwrap();
        let file = through(&original, "https://127.0.0.1:2", "another\n").unwrap();
        assert_eq!(file, path(folder.path(), "host-2"));
        let (read, user) = read(&file).unwrap();
        assert_eq!((&*read.url, &*read.ca_pem), ("https://127.0.0.1:2", "another\n"));
        assert_eq!(user["token"], "yes");
    }

    #[test]
    fn users_of_a_given_cluster_are_its_administrator_acting_for_them() {
        let folder = tempfile::tempdir().unwrap();
        let cluster = Cluster::new("https://127.0.0.1:1".into(), "the CA\n".into()).unwrap();
        let given = cluster.write(folder.path(), "given", &json!({"token": "yes"})).unwrap();
        write_given(&given, folder.path()).unwrap();
        let user = |user: User| read(&path(folder.path(), user.name())).unwrap().1;
        assert_eq!(user(User::Admin).get("as"), None);
        assert_eq!(user(User::Alice)["as"], "alice");
        assert_eq!(user(User::Alice)["as-groups"], json!(["team-a"]));
    }
}
