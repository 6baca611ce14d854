//! What stands in one kubeconfig file, and how several become one; pure.
//!
//! Absent, null and empty mean the same everywhere, as they do to kubectl. Secrets are in no `Debug` text.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::Path,
};

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// A file. Fields that are not here are ignored.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct File {
    #[serde(deserialize_with = "filled")]
    pub(super) kind: Option<String>,
    #[serde(rename = "apiVersion", deserialize_with = "filled")]
    pub(super) api_version: Option<String>,
    #[serde(rename = "current-context", deserialize_with = "filled")]
    pub(super) current_context: Option<String>,
    #[serde(deserialize_with = "or_default")]
    pub(super) clusters: Vec<Named<Cluster>>,
    #[serde(deserialize_with = "or_default")]
    pub(super) contexts: Vec<Named<Context>>,
    #[serde(deserialize_with = "or_default")]
    pub(super) users: Vec<Named<User>>,
}

/// A name and what has it.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Named<T> {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) name: String,
    #[serde(
        default,
        alias = "cluster",
        alias = "context",
        alias = "user",
        deserialize_with = "or_default",
        bound(deserialize = "T: Default + Deserialize<'de>")
    )]
    pub(super) value: T,
}

/// Where an API server is, and how it shows that it is the one.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Cluster {
    /// Its URL.
    #[serde(deserialize_with = "filled", skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// A file with its authorities.
    #[serde(deserialize_with = "filled", skip_serializing_if = "Option::is_none")]
    pub certificate_authority: Option<String>,
    /// Its authorities, in base64.
    #[serde(deserialize_with = "filled", skip_serializing_if = "Option::is_none")]
    pub certificate_authority_data: Option<String>,
    /// Its certificate is not checked.
    #[serde(deserialize_with = "or_default")]
    pub insecure_skip_tls_verify: bool,
    /// The name that its certificate must have.
    #[serde(deserialize_with = "filled", skip_serializing_if = "Option::is_none")]
    pub tls_server_name: Option<String>,
    /// By which proxy it is reached.
    #[serde(deserialize_with = "filled", skip_serializing_if = "Option::is_none")]
    pub proxy_url: Option<String>,
    /// What others have put there; an exec plugin is handed its own part.
    #[serde(deserialize_with = "or_default")]
    pub extensions: Vec<Value>,
}

/// Which cluster, as whom, in which namespace.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Context {
    #[serde(deserialize_with = "filled")]
    pub(super) cluster: Option<String>,
    #[serde(deserialize_with = "filled")]
    pub(super) user: Option<String>,
    #[serde(deserialize_with = "filled")]
    pub(super) namespace: Option<String>,
}

/// Who somebody is.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct User {
    /// A bearer token.
    #[serde(deserialize_with = "filled", skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// A file that has one, and may change.
    #[serde(
        rename = "tokenFile",
        deserialize_with = "filled",
        skip_serializing_if = "Option::is_none"
    )]
    pub token_file: Option<String>,
    /// For HTTP's basic authentication.
    #[serde(deserialize_with = "filled", skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// Its password.
    #[serde(deserialize_with = "filled", skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
    /// A file with a certificate.
    #[serde(deserialize_with = "filled", skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<String>,
    /// A certificate, in base64.
    #[serde(deserialize_with = "filled", skip_serializing_if = "Option::is_none")]
    pub client_certificate_data: Option<String>,
    /// A file with the certificate's key.
    #[serde(deserialize_with = "filled", skip_serializing_if = "Option::is_none")]
    pub client_key: Option<String>,
    /// The certificate's key, in base64.
    #[serde(deserialize_with = "filled", skip_serializing_if = "Option::is_none")]
    pub client_key_data: Option<String>,
    /// As whom to act.
    #[serde(rename = "as", deserialize_with = "filled", skip_serializing_if = "Option::is_none")]
    pub impersonate: Option<String>,
    /// With which uid.
    #[serde(deserialize_with = "filled", skip_serializing_if = "Option::is_none")]
    pub as_uid: Option<String>,
    /// In which groups.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub as_groups: Vec<String>,
    /// With what else.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub as_user_extra: BTreeMap<String, Vec<String>>,
    /// A program that gives credentials.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exec: Option<Exec>,
    /// The form before programs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth_provider: Option<Value>,
}

/// A program that gives credentials.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Exec {
    /// The version of its protocol.
    #[serde(deserialize_with = "filled")]
    pub api_version: Option<String>,
    /// The program.
    #[serde(deserialize_with = "filled")]
    pub command: Option<String>,
    /// Its arguments.
    #[serde(deserialize_with = "or_default")]
    pub args: Vec<String>,
    /// Its environment, beside that of this process.
    #[serde(deserialize_with = "or_default")]
    pub env: Vec<Variable>,
    /// What to do where it is missing.
    #[serde(deserialize_with = "filled")]
    pub install_hint: Option<String>,
    /// Whether it may ask a person.
    #[serde(deserialize_with = "filled")]
    pub interactive_mode: Option<String>,
    /// Whether it is told which cluster is meant.
    #[serde(deserialize_with = "or_default")]
    pub provide_cluster_info: bool,
}

/// A variable of an environment.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Variable {
    /// Its name.
    #[serde(deserialize_with = "or_default")]
    pub name: String,
    /// Its value.
    #[serde(deserialize_with = "or_default")]
    pub value: String,
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("User").finish_non_exhaustive()
    }
}

/// Reads the first document of a file. The error quotes nothing of it: there are secrets in it.
pub(super) fn parse(bytes: &[u8]) -> Result<File, String> {
    let text = text(bytes).ok_or("it is no text")?;
    let unlike = |error: serde_saphyr::Error| match error.location() {
        Some(at) => format!("line {}, column {} is not as it should be", at.line(), at.column()),
        None => "it is no YAML, or not of a kubeconfig's form".to_owned(),
    };
    let documents: Vec<Option<File>> = serde_saphyr::from_multiple(&text).map_err(unlike)?;
    let file = documents.into_iter().next().flatten().unwrap_or_default();
    if let Some(kind) = file.kind.as_deref().filter(|kind| *kind != "Config") {
        return Err(format!("its kind is {kind}, not Config"));
    }
    if let Some(version) = file.api_version.as_deref().filter(|version| *version != "v1") {
        return Err(format!("its apiVersion is {version}, not v1"));
    }
    let twice = |names: Vec<&String>, what: &str| {
        let mut seen = BTreeSet::new();
        let again = names.into_iter().find(|name| !seen.insert(*name));
        again.map_or(Ok(()), |name| Err(format!("it has two {what} with the name {name}")))
    };
    twice(file.clusters.iter().map(|named| &named.name).collect(), "clusters")?;
    twice(file.contexts.iter().map(|named| &named.name).collect(), "contexts")?;
    twice(file.users.iter().map(|named| &named.name).collect(), "users")?;
    Ok(file)
}

/// Editors of other systems put marks in front, or write 16 bits a character.
fn text(bytes: &[u8]) -> Option<String> {
    let wide = |bytes: &[u8], read: fn([u8; 2]) -> u16| {
        let pairs = bytes.chunks_exact(2);
        let units: Vec<u16> = pairs.map(|pair| read([pair[0], pair[1]])).collect();
        String::from_utf16(&units).ok()
    };
    match bytes {
        [0xFF, 0xFE, rest @ ..] => wide(rest, u16::from_le_bytes),
        [0xFE, 0xFF, rest @ ..] => wide(rest, u16::from_be_bytes),
        [0xEF, 0xBB, 0xBF, rest @ ..] => String::from_utf8(rest.to_vec()).ok(),
        _ => String::from_utf8(bytes.to_vec()).ok(),
    }
}

impl File {
    /// Whether it says nothing at all.
    pub(super) fn is_empty(&self) -> bool {
        let Self { current_context, clusters, contexts, users, .. } = self;
        let lists = clusters.is_empty() && contexts.is_empty() && users.is_empty();
        current_context.is_none() && lists
    }

    /// Adds what `next` says and this does not: the first file that has a name has all of it.
    pub(super) fn merge(&mut self, next: Self) {
        fn add<T>(to: &mut Vec<Named<T>>, next: Vec<Named<T>>) {
            for named in next {
                if to.iter().all(|known| known.name != named.name) {
                    to.push(named);
                }
            }
        }
        self.current_context = self.current_context.take().or(next.current_context);
        add(&mut self.clusters, next.clusters);
        add(&mut self.contexts, next.contexts);
        add(&mut self.users, next.users);
    }

    /// Makes relative paths start at `folder`, in which the file lies. A bare command is looked for in `PATH`.
    pub(super) fn resolve(&mut self, folder: &Path) {
        let resolve = |path: &mut Option<String>| {
            if let Some(text) = path
                && Path::new(text).is_relative()
                && let Some(joined) = folder.join(&*text).to_str()
            {
                joined.clone_into(text);
            }
        };
        for Named { value, .. } in &mut self.clusters {
            resolve(&mut value.certificate_authority);
        }
        for Named { value, .. } in &mut self.users {
            resolve(&mut value.client_certificate);
            resolve(&mut value.client_key);
            resolve(&mut value.token_file);
            if let Some(exec) = &mut value.exec
                && exec.command.as_ref().is_some_and(|command| command.contains('/'))
            {
                resolve(&mut exec.command);
            }
        }
    }
}

fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A text that says something.
fn filled<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(Option::deserialize(deserializer)?.filter(|text: &String| !text.is_empty()))
}
