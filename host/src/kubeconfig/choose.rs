//! Chooses a context and checks that its cluster and user can be used, as kubectl does; pure.

use http::Uri;

use super::{
    Proxies,
    file::{Cluster, Context, Exec, File, Named, User},
    proxy,
};

/// How the API server is reached.
#[derive(Clone, Debug)]
pub enum Access {
    /// By the pod's own account.
    Pod,
    /// By a kubeconfig.
    Cluster(Box<Chosen>),
}

/// What a context means.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// The API server's URL.
    pub server: Uri,
    /// The proxy that leads there.
    pub proxy: Option<Uri>,
    /// The namespace that is meant where none is named.
    pub namespace: Option<String>,
    /// The rest of the cluster.
    pub cluster: Cluster,
    /// As whom.
    pub user: User,
    /// The context names a user that is not there, which is nobody.
    pub nobody: Option<String>,
}

/// Parts of a kubeconfig that do not fit together, each with what to do.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct Invalid(String);

pub(super) fn choose(
    file: &File,
    context: Option<&str>,
    proxies: &Proxies,
) -> Result<Chosen, Invalid> {
    let names: Vec<&str> = file.contexts.iter().map(|named| named.name.as_str()).collect();
    let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let Some(name) = context.or(file.current_context.as_deref()) else {
        return invalid(format!(
            "the kubeconfig has no current-context: choose one with --context ({known})"
        ));
    };
    let Some(context) = find::<Context>(&file.contexts, name) else {
        return invalid(format!("the kubeconfig has no context {name}; there is {known}"));
    };
    let Some(cluster_name) = &context.cluster else {
        return invalid(format!("the context {name} names no cluster"));
    };
    let Some(cluster) = find::<Cluster>(&file.clusters, cluster_name) else {
        return invalid(format!(
            "the context {name} names the cluster {cluster_name}, which is not in the kubeconfig"
        ));
    };
    let user = context.user.as_deref().and_then(|user| find::<User>(&file.users, user));
    let nobody = context.user.clone().filter(|_| user.is_none());
    let user = user.unwrap_or_default();
    check_user(context.user.as_deref().unwrap_or_default(), &user)?;
    let server = server(cluster_name, &cluster, &user)?;
    let proxy = match &cluster.proxy_url {
        Some(url) => proxy::parse(url)
            .map(Some)
            .map_err(|why| Invalid(format!("proxy-url of the cluster {cluster_name} {why}")))?,
        None => proxies.for_server(&server).map_err(Invalid)?,
    };
    Ok(Chosen { server, proxy, namespace: context.namespace, cluster, user, nobody })
}

fn find<T: Clone>(list: &[Named<T>], name: &str) -> Option<T> {
    list.iter().find(|named| named.name == name).map(|named| named.value.clone())
}

fn invalid<T>(text: String) -> Result<T, Invalid> {
    Err(Invalid(text))
}

/// The URL; a host without a scheme has TLS if anything else speaks of TLS.
fn server(name: &str, cluster: &Cluster, user: &User) -> Result<Uri, Invalid> {
    let Some(text) = cluster.server.as_deref().map(str::trim) else {
        return invalid(format!("the cluster {name} has no server: write its URL there"));
    };
    let authority =
        cluster.certificate_authority.is_some() || cluster.certificate_authority_data.is_some();
    if cluster.certificate_authority.is_some() && cluster.certificate_authority_data.is_some() {
        return invalid(format!(
            "the cluster {name} has both certificate-authority and certificate-authority-data: keep one of them"
        ));
    }
    if authority && cluster.insecure_skip_tls_verify {
        return invalid(format!(
            "the cluster {name} has a certificate authority and insecure-skip-tls-verify: keep one of them"
        ));
    }
    let certificate = user.client_certificate.is_some() || user.client_certificate_data.is_some();
    let tls = authority || certificate || cluster.insecure_skip_tls_verify;
    let scheme = if tls { "https" } else { "http" };
    let url = if text.contains("://") { text.to_owned() } else { format!("{scheme}://{text}") };
    let wrong = || {
        Invalid(format!(
            "the server of the cluster {name} is no URL like https://host:6443: {text}"
        ))
    };
    let url: Uri = url.parse().map_err(|_| wrong())?;
    let is_http = matches!(url.scheme_str(), Some("http" | "https"));
    if !is_http || url.host().is_none_or(str::is_empty) || url.query().is_some() {
        return Err(wrong());
    }
    Ok(url)
}

fn check_user(name: &str, user: &User) -> Result<(), Invalid> {
    let wrong = |text: &str| invalid(format!("the user {name} of the kubeconfig {text}"));
    let basic = user.username.is_some() || user.password.is_some();
    if user.token.is_some() && basic {
        return wrong("has a token and a username or password: keep one of them");
    }
    if user.token.as_ref().is_some_and(|token| {
        token.trim().is_empty() || !token.trim().bytes().all(|byte| (0x21..0x7f).contains(&byte))
    }) {
        return wrong("has a token with characters that no token has");
    }
    let (certificate, data) = (&user.client_certificate, &user.client_certificate_data);
    if certificate.is_some() && data.is_some() {
        return wrong("has both client-certificate and client-certificate-data: keep one of them");
    }
    if user.client_key.is_some() && user.client_key_data.is_some() {
        return wrong("has both client-key and client-key-data: keep one of them");
    }
    let (certificate, key) = (
        certificate.is_some() || data.is_some(),
        user.client_key.is_some() || user.client_key_data.is_some(),
    );
    if certificate && !key {
        return wrong("has a client certificate without a key: add client-key or client-key-data");
    }
    if key && !certificate {
        return wrong(
            "has a client key without a certificate: add client-certificate or client-certificate-data",
        );
    }
    let details =
        user.as_uid.is_some() || !user.as_groups.is_empty() || !user.as_user_extra.is_empty();
    if details && user.impersonate.is_none() {
        return wrong("has as-uid, as-groups or as-user-extra, but not `as`: say whom");
    }
    if user.exec.is_some() && user.auth_provider.is_some() {
        return wrong("has both exec and auth-provider: keep one of them");
    }
    user.exec.as_ref().map_or(Ok(()), |exec| check_exec(name, exec))
}

fn check_exec(name: &str, exec: &Exec) -> Result<(), Invalid> {
    let wrong = |text: &str| invalid(format!("the user {name} of the kubeconfig {text}"));
    if exec.command.is_none() {
        return wrong("has exec without a command");
    }
    if exec.api_version.is_none() {
        return wrong("has exec without an apiVersion, such as client.authentication.k8s.io/v1");
    }
    if exec.env.iter().any(|variable| variable.name.is_empty()) {
        return wrong("has exec with a variable that has no name");
    }
    match exec.interactive_mode.as_deref() {
        None | Some("Never" | "IfAvailable" | "Always") => Ok(()),
        Some(_) => wrong("has exec with an interactiveMode other than Never, IfAvailable, Always"),
    }
}
