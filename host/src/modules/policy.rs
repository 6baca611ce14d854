//! Who must have signed the components of a namespace: the platform's file, and the keys that it names; pure.
//!
//! The first rule that fits a namespace decides; where none does, nothing is demanded. The file is read at the start: what it says
//! then holds for everything that this host stages, and it stages all that runs.
//!
//! Invariants: `the_first_rule_that_fits_decides`, `a_policy_that_cannot_be_meant_is_refused_with_its_place`.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::ByteString;
use ring::signature::{ECDSA_P256_SHA256_ASN1, ED25519, UnparsedPublicKey, VerificationAlgorithm};
use serde::Deserialize;
use serde_json::Value;

use crate::text::{NAME, cut};

/// What stands before the key in a public key of each sort (RFC 5480, RFC 8410): the names of its algorithm and curve, which leave
/// nothing open.
const P256: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
const EDWARDS: &[u8] = &[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// The bytes of each key: an uncompressed point, which begins with 4, and a point of Ed25519.
const P256_KEY: usize = 65;
const EDWARDS_KEY: usize = 32;
const BEGIN: &str = "-----BEGIN PUBLIC KEY-----";
const END: &str = "-----END PUBLIC KEY-----";

/// What the platform demands of components, namespace by namespace; cheap to clone.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(try_from = "File")]
pub struct Policy(Arc<[(Vec<String>, Demand)]>);

/// What it demands of one.
#[derive(Clone, Debug)]
pub struct Demand {
    /// One of these must have signed.
    pub signers: Arc<[Signer]>,
    /// Whether what does not meet it runs nevertheless, and is only told in the log.
    pub only_warns: bool,
}

/// A key, and what the platform calls it.
#[derive(Clone, Debug)]
pub struct Signer {
    /// Its name.
    pub name: String,
    sort: Sort,
    key: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
enum Sort {
    P256,
    Edwards,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    #[serde(default)]
    signers: BTreeMap<String, String>,
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    namespaces: Vec<String>,
    signed_by: Vec<String>,
    #[serde(default)]
    mode: Mode,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
enum Mode {
    #[default]
    Enforce,
    Warn,
}

/// What is wrong with a policy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A signer's key cannot be used.
    #[error("signers.{signer} is no public key of ECDSA P-256 or Ed25519 as PEM: {why}")]
    Key {
        /// Whose.
        signer: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A rule names a signer that there is not.
    #[error("rules[{rule}].signedBy names {signer:?}, and signers has {known}")]
    UnknownSigner {
        /// The rule, counted from 0.
        rule: usize,
        /// Whom it names.
        signer: String,
        /// Whom it could name.
        known: String,
    },
    /// A rule is for no namespace.
    #[error("rules[{rule}].namespaces is empty: write \"*\" for all")]
    NoNamespace {
        /// The rule.
        rule: usize,
    },
    /// What a rule names can be no namespace.
    #[error(
        "rules[{rule}].namespaces has {pattern:?}, which fits no namespace: lower-case letters, digits, - and, for anything, *"
    )]
    NotANamespace {
        /// The rule.
        rule: usize,
        /// What it names.
        pattern: String,
    },
    /// A rule before this one is for all namespaces.
    #[error(
        "rules[{rule}] is never asked: the first rule that fits decides, and one before it is for all namespaces; put that one last"
    )]
    Hidden {
        /// The rule.
        rule: usize,
    },
}

impl TryFrom<File> for Policy {
    type Error = Error;

    fn try_from(file: File) -> Result<Self, Error> {
        let signers = file.signers.into_iter().map(|(name, pem)| {
            let name = cut(&name, NAME).into_owned();
            match key(&pem) {
                Ok((sort, key)) => Ok((name.clone(), Signer { name, sort, key })),
                Err(why) => Err(Error::Key { signer: name, why }),
            }
        });
        let signers: BTreeMap<String, Signer> = signers.collect::<Result<_, _>>()?;
        let mut rules = vec![];
        let mut is_hidden = false;
        for (at, rule) in file.rules.into_iter().enumerate() {
            if is_hidden {
                return Err(Error::Hidden { rule: at });
            }
            if rule.namespaces.is_empty() {
                return Err(Error::NoNamespace { rule: at });
            }
            let letter = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'*');
            let odd = |pattern: &&String| pattern.is_empty() || !pattern.bytes().all(letter);
            if let Some(pattern) = rule.namespaces.iter().find(odd) {
                let pattern = cut(pattern, NAME).into_owned();
                return Err(Error::NotANamespace { rule: at, pattern });
            }
            is_hidden = rule.namespaces.iter().any(|pattern| pattern == "*");
            let named = rule.signed_by.iter().map(|signer| {
                signers.get(signer).cloned().ok_or_else(|| Error::UnknownSigner {
                    rule: at,
                    signer: cut(signer, NAME).into_owned(),
                    known: names(signers.values()),
                })
            });
            let signers = named.collect::<Result<_, _>>()?;
            let demand = Demand { signers, only_warns: rule.mode == Mode::Warn };
            rules.push((rule.namespaces, demand));
        }
        Ok(Self(rules.into()))
    }
}

impl Policy {
    /// What is demanded in this namespace, if anything is.
    pub fn demand(&self, namespace: &str) -> Option<&Demand> {
        let fits = |patterns: &[String]| patterns.iter().any(|pattern| fits(pattern, namespace));
        let (_, demand) = self.0.iter().find(|(patterns, _)| fits(patterns))?;
        Some(demand).filter(|demand| !demand.signers.is_empty())
    }
}

impl Demand {
    /// Who may have signed, for people.
    pub fn names(&self) -> String {
        names(self.signers.iter())
    }
}

impl Signer {
    /// Whether this key has signed `message`.
    pub fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        let algorithm: &dyn VerificationAlgorithm = match self.sort {
            Sort::P256 => &ECDSA_P256_SHA256_ASN1,
            Sort::Edwards => &ED25519,
        };
        UnparsedPublicKey::new(algorithm, &self.key).verify(message, signature).is_ok()
    }
}

fn names<'a>(signers: impl Iterator<Item = &'a Signer>) -> String {
    let names: Vec<_> = signers.map(|signer| &*signer.name).collect();
    if names.is_empty() { "none".to_owned() } else { cut(&names.join(", "), NAME).into_owned() }
}

/// The key in a PEM text, whether or not its lines have become one.
fn key(pem: &str) -> Result<(Sort, Vec<u8>), &'static str> {
    if pem.contains("PRIVATE KEY") {
        return Err("it is a private key, which belongs to whoever signs and in no other place");
    }
    if pem.contains("CERTIFICATE") {
        return Err("it is a certificate: openssl x509 -pubkey -noout has its key");
    }
    let body = pem.trim().strip_prefix(BEGIN).and_then(|rest| rest.strip_suffix(END));
    let body =
        body.ok_or("it does not go from -----BEGIN PUBLIC KEY----- to the line that ends it")?;
    let body: String = body.split_whitespace().collect();
    let der: ByteString =
        serde_json::from_value(Value::String(body)).map_err(|_| "its lines are no base64")?;
    for (sort, prefix, length) in
        [(Sort::P256, P256, P256_KEY), (Sort::Edwards, EDWARDS, EDWARDS_KEY)]
    {
        if let Some(key) = der.0.strip_prefix(prefix).filter(|key| key.len() == length) {
            return Ok((sort, key.to_owned()));
        }
    }
    Err("it is a key of another sort: make one with cosign generate-key-pair")
}

/// Whether `name` is what `pattern` says, in which each * stands for anything, or nothing.
fn fits(pattern: &str, name: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == name };
    let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
    let inner = name.strip_prefix(first).and_then(|inner| inner.strip_suffix(last));
    let find = |inner: &'_ str, part: &str| inner.find(part).map(|at| at + part.len());
    inner.is_some_and(|inner| {
        let found = middle.split('*').try_fold(inner, |left, part| left.get(find(left, part)?..));
        found.is_some()
    })
}

#[cfg(test)]
mod tests {
    use ring::{
        rand::SystemRandom,
        signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _},
    };
    use serde_json::json;

    use super::*;

    const PEM: &str = include_str!("../../tests/vectors/cosign.pub");

    fn pem(prefix: &[u8], key: &[u8]) -> String {
        let body = serde_json::to_value(ByteString([prefix, key].concat())).unwrap();
        format!("{BEGIN}\n{}\n{END}\n", body.as_str().unwrap())
    }

    fn policy(text: &str) -> Result<Policy, String> {
        serde_saphyr::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let indented = PEM.replace('\n', "\n    ");
        let text = format!(
            "signers:\n  platform: |\n    {indented}\n  release: |\n    {indented}\nrules:\n\
             - namespaces: [team-*, prod]\n  signedBy: [platform, release]\n\
             - namespaces: [staging]\n  signedBy: [release]\n  mode: Warn\n\
             - namespaces: [sandbox]\n  signedBy: []\n\
             - namespaces: [\"*\"]\n  signedBy: [release]\n"
        );
        let policy = policy(&text).unwrap();
        let of = |namespace: &str| {
            policy.demand(namespace).map(|demand| (demand.names(), demand.only_warns))
        };
        let both = Some(("platform, release".to_owned(), false));
        assert_eq!((of("team-a"), of("prod"), of("team-")), (both.clone(), both.clone(), both));
        assert_eq!(of("staging"), Some(("release".to_owned(), true)));
        assert_eq!(of("sandbox"), None);
        assert_eq!(of("team"), Some(("release".to_owned(), false)));
        assert!(Policy::default().demand("prod").is_none());
    }

    /// Against the obvious model: what a star stands for is tried out.
    #[test]
    fn a_star_stands_for_anything() {
        fn obvious(pattern: &[u8], name: &[u8]) -> bool {
            match (pattern, name) {
                ([], []) => true,
                ([b'*', rest @ ..], _) => {
                    obvious(rest, name) || (!name.is_empty() && obvious(pattern, &name[1..]))
                }
                ([one, rest @ ..], [other, left @ ..]) => one == other && obvious(rest, left),
                _ => false,
            }
        }
        let mut rng = fastrand::Rng::with_seed(7);
        let mut text = |letters: &[u8], most: usize| -> String {
            (0..rng.usize(..=most))
                .map(|_| char::from(letters[rng.usize(..letters.len())]))
                .collect()
        };
        let mut fitted = 0;
        for _ in 0..20_000 {
            let (pattern, name) = (text(b"ab*", 6), text(b"ab", 7));
            let expected = obvious(pattern.as_bytes(), name.as_bytes());
            assert_eq!(fits(&pattern, &name), expected, "{pattern:?} {name:?}");
            fitted += usize::from(expected);
        }
        assert!(fitted > 1_000, "{fitted}");
    }

    #[test]
    fn a_policy_that_cannot_be_meant_is_refused_with_its_place() {
        let of = |signers: Value, rules: Value| json!({ "signers": signers, "rules": rules });
        let one = json!([{ "namespaces": ["*"], "signedBy": ["platform"] }]);
        let signer = |key: &str| of(json!({ "platform": key }), one.clone());
        let rule = |rule: Value| of(json!({ "platform": PEM }), json!([rule]));
        let rsa = pem(&[0x30, 0x5c, 0x30, 0x0d], &[0; 90]);
        for (text, words) in [
            (json!({}), "rules"),
            (json!({ "rules": [], "signer": {} }), "signer"),
            (json!({ "rules": [{ "namespaces": ["a"], "signedby": [] }] }), "signedby"),
            (json!({ "rules": [{ "namespaces": ["a"] }] }), "signedBy"),
            (rule(json!({ "namespaces": ["a"], "signedBy": [], "mode": "Audit" })), "Audit"),
            (rule(json!({ "namespaces": [], "signedBy": [] })), "rules[0].namespaces is empty"),
            (
                rule(json!({ "namespaces": ["Team"], "signedBy": [] })),
                "rules[0].namespaces has \"Team\"",
            ),
            (rule(json!({ "namespaces": [""], "signedBy": [] })), "fits no namespace"),
            (
                rule(json!({ "namespaces": ["a"], "signedBy": ["plattform"] })),
                "rules[0].signedBy names \"plattform\", and signers has platform",
            ),
            (
                of(
                    json!({ "platform": PEM }),
                    json!([one[0], { "namespaces": ["prod"], "signedBy": [] }]),
                ),
                "rules[1] is never asked",
            ),
            (signer(""), "signers.platform is no public key"),
            (signer("MFkwEwYH"), "-----BEGIN PUBLIC KEY-----"),
            (signer(&PEM.replace("PUBLIC", "PRIVATE")), "it is a private key"),
            (signer(&PEM.replace("PUBLIC KEY", "CERTIFICATE")), "openssl x509"),
            (signer(&PEM.replace('+', "!")), "no base64"),
            (signer(&rsa), "another sort"),
            (signer(&pem(P256, &[4; 64])), "another sort"),
        ] {
            let told = policy(&text.to_string()).expect_err(words);
            assert!(told.contains(words), "{words}: {told}");
        }
        let told = policy("signers: {}\nsigners: {}\nrules: []\n").unwrap_err();
        assert!(told.contains("signers"), "{told}");
        policy(&signer(&PEM.replace('\n', " ")).to_string()).expect("lines that became one");
    }

    #[test]
    fn keys_of_both_sorts_tell_their_signatures_from_others() {
        let random = SystemRandom::new();
        let sort = &ECDSA_P256_SHA256_ASN1_SIGNING;
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(sort, &random).unwrap();
        let ecdsa = EcdsaKeyPair::from_pkcs8(sort, pkcs8.as_ref(), &random).unwrap();
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
        let edwards = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
        let signer = |prefix: &[u8], point: &[u8]| {
            let (sort, key) = key(&pem(prefix, point)).unwrap();
            Signer { name: "platform".into(), sort, key }
        };
        let signed = [
            (
                signer(P256, ecdsa.public_key().as_ref()),
                ecdsa.sign(&random, b"words").unwrap().as_ref().to_vec(),
            ),
            (
                signer(EDWARDS, edwards.public_key().as_ref()),
                edwards.sign(b"words").as_ref().to_vec(),
            ),
        ];
        for (one, (signer, signature)) in signed.iter().enumerate() {
            assert!(signer.has_signed(b"words", signature));
            assert!(!signer.has_signed(b"wards", signature));
            assert!(!signer.has_signed(b"words", &signed[1 - one].1));
            assert!(!signer.has_signed(b"words", b""));
        }
    }
}
