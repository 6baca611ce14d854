//! Who stands behind a request that the API server passes on: its front proxy's settings, and the headers that it sets; pure
//!
//! As the authenticating proxy of Kubernetes has it: the settings are in the ConfigMap `extension-apiserver-authentication`, and
//! the headers count because of the certificate under which they come.
//!
//! Invariants: `only_the_configured_headers_say_who_asks`, `settings_that_cannot_be_read_let_nobody_in`.

use std::collections::BTreeMap;

use http::HeaderMap;
use percent_encoding::percent_decode_str;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde_json::{Value, json};

/// What the API server says of the way in which it passes requests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Front {
    /// Whose signature its client certificate has.
    pub(super) roots: Vec<CertificateDer<'static>>,
    /// Its names; none: any.
    pub(super) names: Vec<String>,
    users: Vec<String>,
    uids: Vec<String>,
    groups: Vec<String>,
    extras: Vec<String>,
}

/// Who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct User {
    /// The name.
    pub(super) name: String,
    uid: Option<String>,
    groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
}

impl Front {
    /// The settings in the ConfigMap; an error says what is missing.
    pub(super) fn read(config: &Value) -> Result<Self, String> {
        let text = |key: &str| config["data"][key].as_str();
        let list = |key: &str| -> Result<Vec<String>, String> {
            let Some(text) = text(key) else { return Ok(vec![]) };
            serde_json::from_str(text).map_err(|error| format!("{key} is no list: {error}"))
        };
        let pem = text("requestheader-client-ca-file").unwrap_or_default();
        let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
        let front = Self {
            roots: roots.map_err(|error| format!("requestheader-client-ca-file: {error}"))?,
            names: list("requestheader-allowed-names")?,
            users: list("requestheader-username-headers")?,
            uids: list("requestheader-uid-headers")?,
            groups: list("requestheader-group-headers")?,
            extras: list("requestheader-extra-headers-prefix")?,
        };
        if front.roots.is_empty() || front.users.is_empty() {
            return Err("the API server has no front proxy: it needs --requestheader-client-ca-file and the flags beside it".to_owned());
        }
        Ok(front)
    }

    /// Who asks; `None`: nobody is named.
    pub(super) fn user(&self, headers: &HeaderMap) -> Option<User> {
        let all = |names: &[String]| -> Vec<String> {
            let values = names.iter().flat_map(|name| headers.get_all(name));
            values.filter_map(|value| value.to_str().ok()).map(str::to_owned).collect()
        };
        let name = all(&self.users).into_iter().find(|name| !name.is_empty())?;
        let mut extra = BTreeMap::<_, Vec<_>>::new();
        for (header, value) in headers {
            let prefixed = |prefix: &String| {
                let name = header.as_str();
                let (start, rest) = name.split_at_checked(prefix.len())?;
                start.eq_ignore_ascii_case(prefix).then_some(rest)
            };
            let Some(key) = self.extras.iter().find_map(prefixed) else { continue };
            let key = percent_decode_str(key).decode_utf8_lossy().into_owned();
            let value = value.to_str().unwrap_or_default().to_owned();
            extra.entry(key).or_default().push(value);
        }
        let uid = all(&self.uids).into_iter().next();
        Some(User { name, uid, groups: all(&self.groups), extra })
    }
}

impl User {
    /// A question to the API server whether this user may do what `attributes` say.
    pub(super) fn review(&self, attributes: &Value) -> Value {
        json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": self.name,
                "uid": self.uid,
                "groups": self.groups,
                "extra": self.extra,
                "resourceAttributes": attributes,
            },
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use http::HeaderName;

    use super::*;

    /// The settings of a usual API server with this CA.
    pub(in crate::http::aggregated) fn config(pem: &str) -> Value {
        json!({ "data": {
            "client-ca-file": "another",
            "requestheader-client-ca-file": pem,
            "requestheader-allowed-names": "[\"front-proxy-client\"]",
            "requestheader-username-headers": "[\"X-Remote-User\"]",
            "requestheader-uid-headers": "[\"X-Remote-Uid\"]",
            "requestheader-group-headers": "[\"X-Remote-Group\"]",
            "requestheader-extra-headers-prefix": "[\"X-Remote-Extra-\"]",
        }})
    }

    fn pem() -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        rcgen::CertificateParams::default().self_signed(&key).unwrap().pem()
    }

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| {
            (name.parse::<HeaderName>().unwrap(), value.parse().unwrap())
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn only_the_configured_headers_say_who_asks() {
        let front = Front::read(&config(&pem())).unwrap();
        let user = front.user(&headers(&[
            ("X-Remote-User", "ann"),
            ("X-Remote-User", "eve"),
            ("X-Remote-Group", "team"),
            ("X-Remote-Group", "system:authenticated"),
            ("X-Remote-Extra-Acme.com%2Fproject", "p1"),
            ("X-Remote-Extra-Acme.com%2Fproject", "p2"),
            ("X-Remote-Uid", "7"),
            ("X-Forwarded-User", "root"),
            ("Impersonate-User", "root"),
        ]));
        let user = user.unwrap();
        let attributes = json!({ "verb": "get" });
        let review = user.review(&attributes);
        assert_eq!(
            review["spec"],
            json!({
                "user": "ann", "uid": "7", "groups": ["team", "system:authenticated"],
                "extra": { "acme.com/project": ["p1", "p2"] }, "resourceAttributes": { "verb": "get" },
            })
        );
        for nobody in [headers(&[]), headers(&[("X-Remote-User", "")]), headers(&[("User", "ann")])]
        {
            assert_eq!(front.user(&nobody), None, "{nobody:?}");
        }
    }

    #[test]
    fn settings_that_cannot_be_read_let_nobody_in() {
        let good = config(&pem());
        for (key, bad) in [
            ("requestheader-client-ca-file", ""),
            (
                "requestheader-client-ca-file",
                "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n",
            ),
            ("requestheader-allowed-names", "front-proxy-client"),
            ("requestheader-username-headers", "[]"),
            ("requestheader-group-headers", "{}"),
        ] {
            let mut config = good.clone();
            config["data"][key] = bad.into();
            assert!(Front::read(&config).is_err(), "{key}: {bad:?}");
        }
        assert!(Front::read(&Value::Null).unwrap_err().contains("--requestheader-client-ca-file"));
    }
}
