//! Which login of a team's pull secrets is meant for an image; pure.
//!
//! As the kubelet does it: keys of a `.dockerconfigjson` are a registry, with or without a scheme, or a path below one, and the
//! longest that fits is taken (`pkg/credentialprovider/keyring.go`).
//!
//! Invariant: `the_longest_key_that_fits_is_taken`.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A name and a password.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Login {
    /// The name.
    pub name: String,
    /// The password.
    pub password: String,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").field("name", &self.name).finish_non_exhaustive()
    }
}

#[derive(Default, Deserialize)]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Value>,
}

/// The login for `repository`, which is a registry and a path, in the text of a `.dockerconfigjson`; an error says what cannot be
/// read, and shows nothing of it.
pub fn login(config: &[u8], repository: &str) -> Result<Option<Login>, &'static str> {
    let file: File =
        serde_json::from_slice(config).map_err(|_| "its .dockerconfigjson is no such JSON")?;
    let fitting = file.auths.iter().filter(|(key, _)| fits(plain(key), repository));
    let Some((_, entry)) = fitting.max_by_key(|(key, _)| plain(key).len()) else {
        return Ok(None);
    };
    let word = |field: &str| entry[field].as_str().unwrap_or_default().to_owned();
    if !word("username").is_empty() {
        return Ok(Some(Login { name: word("username"), password: word("password") }));
    }
    let bytes: ByteString = serde_json::from_value(entry["auth"].clone())
        .map_err(|_| "an entry has neither a username nor an auth in base64")?;
    let text = String::from_utf8(bytes.0).map_err(|_| "an entry's auth is no text")?;
    let (name, password) = text.split_once(':').ok_or("an entry's auth has no colon")?;
    Ok(Some(Login { name: name.to_owned(), password: password.trim_end_matches('\0').to_owned() }))
}

/// A key without its scheme, and without the path that names a version of the registry's API.
fn plain(key: &str) -> &str {
    let key = key.split_once("://").map_or(key, |(_, rest)| rest).trim_end_matches('/');
    key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).unwrap_or(key)
}

fn fits(key: &str, repository: &str) -> bool {
    repository.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(auths: &Value, repository: &str) -> Option<String> {
        let config = json!({ "auths": auths }).to_string();
        login(config.as_bytes(), repository).unwrap().map(|login| login.name)
    }

    #[test]
    fn the_longest_key_that_fits_is_taken() {
        let named = |name: &str| json!({ "username": name, "password": "p" });
        let auths = json!({
            "https://ghcr.io/v1/": named("all"),
            "ghcr.io/team": named("team"),
            "ghcr.io/tea": named("other"),
            "localhost:5000": { "auth": "bG9jYWw6YTpi" },
        });
        for (repository, name) in [
            ("ghcr.io/team/web", Some("team")),
            ("ghcr.io/team", Some("team")),
            ("ghcr.io/others/web", Some("all")),
            ("localhost:5000/web", Some("local")),
            ("localhost:50001/web", None),
            ("quay.io/team/web", None),
        ] {
            assert_eq!(of(&auths, repository).as_deref(), name, "{repository}");
        }
        let local = login(json!({ "auths": auths }).to_string().as_bytes(), "localhost:5000/x");
        assert_eq!(local.unwrap().unwrap().password, "a:b", "only the first colon counts");
    }

    #[test]
    fn what_cannot_be_read_is_told_without_being_shown() {
        for config in [
            "s3cret".to_owned(),
            json!({ "auths": { "r.io": { "auth": "s3cret!" } } }).to_string(),
            json!({ "auths": { "r.io": { "auth": "czNjcmV0" } } }).to_string(),
            json!({ "auths": { "r.io": 3 } }).to_string(),
        ] {
            let told = login(config.as_bytes(), "r.io/x").unwrap_err();
            assert!(!told.contains("s3cret"), "{told}");
        }
        assert_eq!(login(b"{}", "r.io/x"), Ok(None));
        let shown = format!("{:?}", Login { name: "n".into(), password: "s3cret".into() });
        assert!(!shown.contains("s3cret"), "{shown}");
    }
}
