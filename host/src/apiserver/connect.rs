//! From a kubeconfig to a client: certificates, credentials, the proxy.
//!
//! kube would do most of it, but it tries the pod's account after a kubeconfig that is broken, compares `NO_PROXY` with
//! the proxy instead of the server, and ends the process over a token that no header can carry.

use std::{fs, path::PathBuf};

use k8s_openapi::ByteString;
use kube::config::{AuthInfo, Config, ExecAuthCluster};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde_json::json;

use super::token::TokenFile;
use crate::kubeconfig::{Access, Chosen, Proxies, User};

/// What a client is made of.
pub(super) struct Connection {
    pub(super) config: Config,
    /// The token that changes while the process runs.
    pub(super) token: Option<TokenFile>,
}

type Wrong = Box<dyn std::error::Error + Send + Sync>;

pub(super) fn connection(access: Access, proxies: &Proxies) -> Result<Connection, Wrong> {
    match access {
        Access::Pod => {
            let mut config = Config::incluster()?;
            config.proxy_url = proxies.for_server(&config.cluster_url)?;
            Ok(Connection { config, token: None })
        }
        Access::Cluster(chosen) => {
            if let Some(user) = &chosen.nobody {
                tracing::warn!(
                    user,
                    "the kubeconfig's context names a user that is not in it: the API server is asked without credentials"
                );
            }
            by_kubeconfig(*chosen)
        }
    }
}

fn by_kubeconfig(chosen: Chosen) -> Result<Connection, Wrong> {
    let Chosen { server, proxy, namespace, cluster, user, .. } = chosen;
    let mut config = Config::new(server);
    config.proxy_url = proxy;
    if let Some(namespace) = namespace {
        config.default_namespace = namespace;
    }
    config.accept_invalid_certs = cluster.insecure_skip_tls_verify;
    config.tls_server_name.clone_from(&cluster.tls_server_name);
    if let Some(data) = &cluster.certificate_authority_data {
        let pem = decoded(data, "certificate-authority-data")?;
        config.root_cert = Some(authorities(&pem, "certificate-authority-data")?);
    } else if let Some(file) = &cluster.certificate_authority {
        let pem = read(file, "certificate-authority")?;
        config.root_cert = Some(authorities(&pem, file)?);
        // Read again every minute, as in a pod: authorities change without a restart.
        config.root_cert_file = Some(PathBuf::from(file));
    }
    for (file, what) in
        [(&user.client_certificate, "client-certificate"), (&user.client_key, "client-key")]
    {
        if let Some(file) = file {
            read(file, what)?;
        }
    }
    let token = token_file(&user)?;
    let told = user.exec.as_ref().is_some_and(|exec| exec.provide_cluster_info);
    let mut info = auth_info(user, token.is_some())?;
    if let Some(exec) = info.exec.as_mut().filter(|_| told) {
        let cluster: kube::config::Cluster =
            serde_json::from_value(serde_json::to_value(&cluster)?)?;
        exec.cluster = Some(ExecAuthCluster::try_from(&cluster)?);
    }
    config.auth_info = info;
    Ok(Connection { config, token })
}

/// A token file counts before the token beside it, which serves while the file cannot be read.
fn token_file(user: &User) -> Result<Option<TokenFile>, Wrong> {
    let Some(path) = &user.token_file else { return Ok(None) };
    let inline = user.token.as_deref().map(str::trim).map(str::to_owned);
    Ok(Some(TokenFile::open(PathBuf::from(path), inline)?))
}

/// The user as kube has it.
fn auth_info(mut user: User, has_token_file: bool) -> Result<AuthInfo, serde_json::Error> {
    user.token_file = None;
    for data in [&mut user.client_certificate_data, &mut user.client_key_data] {
        *data = data.take().map(|text| text.split_whitespace().collect());
    }
    user.token = user.token.filter(|_| !has_token_file).map(|token| token.trim().to_owned());
    // With a token, kubectl does not ask the program.
    if user.token.is_some() || has_token_file {
        user.exec = None;
    }
    if user.username.is_some() {
        user.password.get_or_insert_default();
    }
    let exec = user.exec.take();
    let mut value = serde_json::to_value(user)?;
    if let Some(exec) = exec {
        let env: Vec<_> =
            exec.env.iter().map(|v| json!({"name": v.name, "value": v.value})).collect();
        value["exec"] = json!({
            "apiVersion": exec.api_version, "command": exec.command, "args": exec.args, "env": env,
            "installHint": exec.install_hint, "interactiveMode": exec.interactive_mode,
            "provideClusterInfo": exec.provide_cluster_info,
        });
    }
    serde_json::from_value(value)
}

fn read(file: &str, what: &str) -> Result<Vec<u8>, Wrong> {
    fs::read(file).map_err(|error| format!("cannot read {what} {file}: {error}").into())
}

fn decoded(text: &str, what: &str) -> Result<Vec<u8>, Wrong> {
    let text: String = text.split_whitespace().collect();
    let bytes: Result<ByteString, _> = serde_json::from_value(json!(text));
    bytes.map(|bytes| bytes.0).map_err(|_| format!("{what} is not base64").into())
}

fn authorities(pem: &[u8], from: &str) -> Result<Vec<Vec<u8>>, Wrong> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates =
        certificates.map_err(|error| format!("{from} is no PEM of certificates: {error:?}"))?;
    if certificates.is_empty() {
        return Err(format!("{from} has no certificate").into());
    }
    Ok(certificates.into_iter().map(|certificate| certificate.to_vec()).collect())
}
