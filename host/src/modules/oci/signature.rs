//! Whether somebody whom the platform trusts has signed an image; pure.
//!
//! A chain of three links, each checked here over the very bytes: a signature names a manifest, the manifest names its one
//! component, and a component is what its digest says. Read are the two forms of cosign: a bundle (v0.3) around an in-toto statement,
//! and the older simple signing. The key is tried before a word of what it has signed counts. An attestation by the same key is no
//! signature: that somebody has scanned an image does not say that it may run.
//!
//! Invariants: `what_cosign_has_signed_is_signed`, `no_changed_byte_is_accepted`, `a_signature_of_something_else_is_none`.

use k8s_openapi::ByteString;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::layout::{self, Found};
use crate::{
    model::digest::Digest,
    modules::policy::Signer,
    text::{NAME, cut},
};

/// So many signatures of one image are looked at.
pub(super) const SIGNATURES: usize = 16;
/// So many signatures of one envelope; cosign makes one.
const OF_ONE_ENVELOPE: usize = 4;
/// What cosign says that it has signed.
pub(super) const PREDICATE: &str = "https://sigstore.dev/cosign/sign/v1";
const STATEMENT: &str = "application/vnd.in-toto+json";
const SIMPLE: &str = "cosign container image signature";

/// What is said to show that an image is signed. A child or a disk has brought it, and neither is believed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    pub(super) manifest: ByteString,
    pub(super) signatures: Vec<Signature>,
}

/// One signature, in one of its forms.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Signature {
    /// A bundle.
    Bundle(ByteString),
    /// Simple signing: the payload, and beside it the signature in base64.
    Simple { payload: ByteString, signature: String },
}

/// Why a proof shows nothing: of several signatures, what the one lacked that came furthest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Flaw {
    /// There is no signature.
    #[error("it is not signed")]
    Unsigned,
    /// What is there is none.
    #[error("what stands for its signature cannot be read: {0}")]
    Unreadable(String),
    /// Somebody else has signed, or something was changed.
    #[error("it has signatures, but by other keys, or they were changed")]
    OtherKey,
    /// One of the signers has signed it for another purpose.
    #[error("what {signer} has signed of it is {what:?}, which is no signature of cosign sign")]
    OtherPurpose {
        /// Who.
        signer: String,
        /// What for.
        what: String,
    },
    /// One of the signers has signed something else.
    #[error("the signature by {signer} that is put beside it is of {named}")]
    OtherImage {
        /// Who.
        signer: String,
        /// What.
        named: String,
    },
    /// The image holds another component.
    #[error("it holds {found}, and the revision is of another component")]
    OtherComponent {
        /// What it holds.
        found: String,
    },
    /// The image is not named by its manifest's digest.
    #[error("the revision names it by no digest")]
    NotPinned,
    /// It is another manifest.
    #[error("its manifest was changed")]
    OtherManifest,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bundle {
    dsse_envelope: Envelope,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload: ByteString,
    payload_type: String,
    signatures: Vec<Signed>,
}

#[derive(Deserialize)]
struct Signed {
    sig: ByteString,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    subject: Vec<Subject>,
    predicate_type: String,
}

#[derive(Deserialize)]
struct Subject {
    digest: Hashes,
}

#[derive(Deserialize)]
struct Hashes {
    #[serde(default)]
    sha256: String,
}

#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    image: SimpleImage,
    #[serde(rename = "type")]
    purpose: String,
}

#[derive(Deserialize)]
struct SimpleImage {
    #[serde(rename = "docker-manifest-digest")]
    digest: String,
}

impl Proof {
    /// Puts the signature first that shows that one of `signers` has signed `manifest`, which holds `component`.
    pub fn check(
        mut self,
        (component, manifest): (&Digest, &Digest),
        signers: &[Signer],
    ) -> Result<Self, Flaw> {
        if Digest::of(&self.manifest.0) != *manifest {
            return Err(Flaw::OtherManifest);
        }
        match layout::found(&self.manifest.0) {
            Ok(Found::Component(found, _)) if found == *component => (),
            Ok(Found::Component(found, _)) => {
                return Err(Flaw::OtherComponent { found: found.to_string() });
            }
            Ok(Found::Manifest(_)) => {
                return Err(Flaw::OtherComponent { found: "other images".into() });
            }
            Err(odd) => return Err(Flaw::Unreadable(odd.to_string())),
        }
        let mut worst = Flaw::Unsigned;
        for (at, signature) in self.signatures.iter().take(SIGNATURES).enumerate() {
            match signature.check(manifest, signers) {
                Ok(()) => {
                    self.signatures.swap(0, at);
                    return Ok(self);
                }
                Err(flaw) => worst = worst.max(flaw),
            }
        }
        Err(worst)
    }

    /// With what `other` has beside it: whoever else signed may be asked for in another namespace.
    #[must_use]
    pub fn with(mut self, other: Self) -> Self {
        for signature in other.signatures {
            if !self.signatures.contains(&signature) {
                self.signatures.push(signature);
            }
        }
        self.signatures.truncate(SIGNATURES);
        self
    }
}

impl Signature {
    fn check(&self, manifest: &Digest, signers: &[Signer]) -> Result<(), Flaw> {
        let (signer, purpose, named) = match self {
            Self::Bundle(bundle) => {
                let Bundle { dsse_envelope: envelope } = read(&bundle.0)?;
                let signed: Vec<_> = envelope.signatures.iter().map(|one| &*one.sig.0).collect();
                let signer = signer(&envelope.message(), &signed, signers)?;
                if envelope.payload_type != STATEMENT {
                    return Err(other_purpose(signer, &envelope.payload_type));
                }
                let Statement { subject, predicate_type } = read(&envelope.payload.0)?;
                if predicate_type != PREDICATE {
                    return Err(other_purpose(signer, &predicate_type));
                }
                let named = subject.into_iter().map(|one| format!("sha256:{}", one.digest.sha256));
                (signer, predicate_type, named.collect())
            }
            Self::Simple { payload, signature } => {
                let signature: ByteString = serde_json::from_value(signature.as_str().into())
                    .map_err(|_| Flaw::Unreadable("its signature is no base64".into()))?;
                let signer = signer(&payload.0, &[&signature.0], signers)?;
                let Critical { image, purpose } = read::<Payload>(&payload.0)?.critical;
                (signer, purpose, vec![image.digest])
            }
        };
        if ![PREDICATE, SIMPLE].contains(&&*purpose) {
            return Err(other_purpose(signer, &purpose));
        }
        if named.iter().any(|named| *named == manifest.to_string()) {
            return Ok(());
        }
        let named = cut(&named.join(", "), NAME).into_owned();
        Err(Flaw::OtherImage { signer: signer.name.clone(), named })
    }
}

impl Envelope {
    /// What is signed of it (DSSE 1.0): each part after its length, so that none can be taken for another.
    fn message(&self) -> Vec<u8> {
        let (kind, payload) = (&self.payload_type, &self.payload.0);
        let head = format!("DSSEv1 {} {kind} {} ", kind.len(), payload.len());
        [head.as_bytes(), payload].concat()
    }
}

fn signer<'a>(
    message: &[u8],
    signatures: &[&[u8]],
    signers: &'a [Signer],
) -> Result<&'a Signer, Flaw> {
    let few = &signatures[..signatures.len().min(OF_ONE_ENVELOPE)];
    let has_signed = |one: &&Signer| few.iter().any(|signature| one.has_signed(message, signature));
    signers.iter().find(has_signed).ok_or(Flaw::OtherKey)
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Flaw> {
    serde_json::from_slice(bytes)
        .map_err(|error| Flaw::Unreadable(cut(&error.to_string(), NAME).into_owned()))
}

fn other_purpose(signer: &Signer, what: &str) -> Flaw {
    Flaw::OtherPurpose { signer: signer.name.clone(), what: cut(what, NAME).into_owned() }
}

#[cfg(test)]
mod tests {
    use ring::{
        rand::SystemRandom,
        signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _},
    };
    use serde_json::{Value, json};

    use super::*;
    use crate::modules::policy::Policy;

    /// Made by cosign 3.1.3 with a key of its own.
    const MANIFEST: &[u8] = include_bytes!("../../../tests/vectors/artifact.manifest.json");
    const BUNDLE: &[u8] = include_bytes!("../../../tests/vectors/bundle.v0.3.json");
    const PAYLOAD: &[u8] = include_bytes!("../../../tests/vectors/simplesigning.payload.json");
    const OLDER: &[u8] = include_bytes!("../../../tests/vectors/simplesigning.manifest.json");
    const KEY: &str = include_str!("../../../tests/vectors/cosign.pub");

    fn signers(named: &[(&str, &str)]) -> std::sync::Arc<[Signer]> {
        let keys = named.iter().map(|(name, pem)| ((*name).to_owned(), json!(pem)));
        let names: Vec<_> = named.iter().map(|(name, _)| name).collect();
        let policy = json!({
            "signers": keys.collect::<serde_json::Map<_, _>>(),
            "rules": [{ "namespaces": ["*"], "signedBy": names }],
        });
        let policy: Policy = serde_json::from_value(policy).unwrap();
        policy.demand("demo").unwrap().signers.clone()
    }

    fn simple() -> Signature {
        let older: Value = serde_json::from_slice(OLDER).unwrap();
        let signature = &older["layers"][0]["annotations"]["dev.cosignproject.cosign/signature"];
        let signature = signature.as_str().unwrap().to_owned();
        Signature::Simple { payload: ByteString(PAYLOAD.to_vec()), signature }
    }

    fn bundle() -> Signature {
        Signature::Bundle(ByteString(BUNDLE.to_vec()))
    }

    fn proof(signatures: Vec<Signature>) -> Proof {
        Proof { manifest: ByteString(MANIFEST.to_vec()), signatures }
    }

    /// The component that cosign's image holds, and its manifest.
    fn image() -> (Digest, Digest) {
        let component = "sha256:6ef0457ff2d8eab8a35d54d91ea824c4c4f733a3f94f7c3661276161c0eab69f";
        (component.parse().unwrap(), Digest::of(MANIFEST))
    }

    fn check(proof: Proof, signers: &[Signer]) -> Result<Proof, Flaw> {
        let (component, manifest) = image();
        proof.check((&component, &manifest), signers)
    }

    /// Signs what it is given; and its key as PEM.
    fn own() -> (impl Fn(&[u8]) -> ByteString, String) {
        let (random, sort) = (SystemRandom::new(), &ECDSA_P256_SHA256_ASN1_SIGNING);
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(sort, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(sort, pkcs8.as_ref(), &random).unwrap();
        let mut der = hex::decode("3059301306072a8648ce3d020106082a8648ce3d030107034200").unwrap();
        der.extend(pair.public_key().as_ref());
        let body = json!(ByteString(der));
        let pem = format!(
            "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
            body.as_str().unwrap()
        );
        let sign = move |message: &[u8]| {
            ByteString(pair.sign(&random, message).unwrap().as_ref().to_vec())
        };
        (sign, pem)
    }

    fn enveloped(sign: impl Fn(&[u8]) -> ByteString, kind: &str, payload: &[u8]) -> Signature {
        let envelope = Envelope {
            payload: ByteString(payload.to_vec()),
            payload_type: kind.to_owned(),
            signatures: vec![],
        };
        let sig = json!(sign(&envelope.message()));
        let bundle = json!({ "dsseEnvelope": {
            "payload": ByteString(payload.to_vec()), "payloadType": kind, "signatures": [{ "sig": sig }],
        } });
        Signature::Bundle(ByteString(bundle.to_string().into_bytes()))
    }

    #[test]
    fn what_cosign_has_signed_is_signed() {
        let (_, other) = own();
        let both = signers(&[("other", &other), ("platform", KEY)]);
        for signature in [bundle(), simple()] {
            let one = proof(vec![signature.clone()]);
            assert_eq!(check(one.clone(), &both), Ok(one.clone()));
            let flaw = check(one, &signers(&[("other", &other)])).unwrap_err();
            assert_eq!(flaw, Flaw::OtherKey);
            // Behind others that are of no use.
            let odd = Signature::Bundle(ByteString(b"{}".to_vec()));
            let many = proof(vec![odd.clone(), odd.clone(), signature.clone()]);
            assert_eq!(check(many, &both).unwrap().signatures[0], signature, "it is first now");
            let many = proof([vec![odd; SIGNATURES], vec![signature]].concat());
            assert!(matches!(check(many, &both), Err(Flaw::Unreadable(_))), "so many are read");
        }
        assert_eq!(check(proof(vec![]), &both), Err(Flaw::Unsigned));
        assert_eq!(check(proof(vec![bundle()]), &[]), Err(Flaw::OtherKey));
    }

    #[test]
    fn a_proof_is_of_one_component_and_one_manifest() {
        let (signers, (component, manifest)) = (signers(&[("platform", KEY)]), image());
        let good = proof(vec![bundle()]);
        let other = Digest::of(b"uploaded by somebody");
        let flaw = good.clone().check((&other, &manifest), &signers).unwrap_err();
        assert!(matches!(flaw, Flaw::OtherComponent { .. }), "{flaw}");
        let flaw = good.clone().check((&component, &other), &signers).unwrap_err();
        assert_eq!(flaw, Flaw::OtherManifest);
        let index = json!({ "manifests": [{ "digest": manifest.to_string() }] }).to_string();
        let index = Proof { manifest: ByteString(index.into_bytes()), ..good.clone() };
        let named = Digest::of(&index.manifest.0);
        let flaw = index.check((&component, &named), &signers).unwrap_err();
        assert!(matches!(flaw, Flaw::OtherComponent { .. }), "{flaw}");
        let mut changed = good;
        changed.manifest.0.push(b' ');
        assert_eq!(check(changed, &signers), Err(Flaw::OtherManifest));
    }

    /// What is signed, or signs, differs in one byte, wherever that is. What is around it, in the bundle, says nothing.
    #[test]
    fn no_changed_byte_is_accepted() {
        let signers = signers(&[("platform", KEY)]);
        let mut rng = fastrand::Rng::with_seed(11);
        let flip =
            |rng: &mut fastrand::Rng, bytes: &mut ByteString, at: usize| bytes.0[at] ^= rng.u8(1..);
        let whole: Value = serde_json::from_slice(BUNDLE).unwrap();
        let envelope = &whole["dsseEnvelope"];
        let of = |value: &Value| serde_json::from_value::<ByteString>(value.clone()).unwrap();
        let (payload, sig) = (of(&envelope["payload"]), of(&envelope["signatures"][0]["sig"]));
        let mut refused = 0;
        for (part, length) in [("payload", payload.0.len()), ("sig", sig.0.len())] {
            for at in 0..length {
                let (mut payload, mut sig) = (payload.clone(), sig.clone());
                flip(&mut rng, if part == "sig" { &mut sig } else { &mut payload }, at);
                let mut changed = whole.clone();
                changed["dsseEnvelope"]["payload"] = json!(payload);
                changed["dsseEnvelope"]["signatures"][0]["sig"] = json!(sig);
                let changed = Signature::Bundle(ByteString(changed.to_string().into_bytes()));
                assert_eq!(
                    check(proof(vec![changed]), &signers),
                    Err(Flaw::OtherKey),
                    "{part} {at}"
                );
                refused += 1;
            }
        }
        let mut kind = whole.clone();
        kind["dsseEnvelope"]["payloadType"] = json!("application/vnd.in-toto+jsom");
        let kind = Signature::Bundle(ByteString(kind.to_string().into_bytes()));
        assert_eq!(check(proof(vec![kind]), &signers), Err(Flaw::OtherKey));
        let Signature::Simple { payload: words, signature } = simple() else { unreachable!() };
        let signature = of(&json!(signature));
        for at in 0..words.0.len() + signature.0.len() {
            let (mut payload, mut signature) = (words.clone(), signature.clone());
            match at.checked_sub(words.0.len()) {
                Some(at) => flip(&mut rng, &mut signature, at),
                None => flip(&mut rng, &mut payload, at),
            }
            let signature = json!(signature).as_str().unwrap().to_owned();
            let changed = Signature::Simple { payload, signature };
            assert_eq!(check(proof(vec![changed]), &signers), Err(Flaw::OtherKey), "{at}");
            refused += 1;
        }
        assert!(refused > 600, "{refused}");
        // And any byte of the whole text: it is refused, or says the same.
        for _ in 0..2_000 {
            let mut text = ByteString(BUNDLE.to_vec());
            text.0[rng.usize(..BUNDLE.len())] ^= rng.u8(1..);
            let changed = Signature::Bundle(text.clone());
            if check(proof(vec![changed]), &signers).is_ok() {
                let read: Bundle = read(&text.0).unwrap();
                assert_eq!(read.dsse_envelope.payload, payload, "it says something else");
            }
        }
        let cut = BUNDLE[..BUNDLE.len() - 1].to_vec();
        let flaw = check(proof(vec![Signature::Bundle(ByteString(cut))]), &signers).unwrap_err();
        assert!(matches!(flaw, Flaw::Unreadable(_)), "{flaw}");
    }

    #[test]
    fn a_signature_of_something_else_is_none() {
        let (sign, pem) = own();
        let signers = signers(&[("platform", &pem)]);
        let (_, manifest) = image();
        let of = |digest: &str, predicate: &str| {
            json!({
                "_type": "https://in-toto.io/Statement/v1", "predicateType": predicate,
                "subject": [{ "name": "x", "digest": { "sha512": "00" } }, { "digest": { "sha256": digest } }],
            })
            .to_string()
            .into_bytes()
        };
        let good = enveloped(&sign, STATEMENT, &of(manifest.hex(), PREDICATE));
        check(proof(vec![good.clone()]), &signers).expect("the test signs as cosign does");
        let other = Digest::of(b"another image");
        let simple = |digest: &str, purpose: &str| {
            let payload = json!({ "critical": {
                "identity": { "docker-reference": "r.io/x" }, "image": { "docker-manifest-digest": digest },
                "type": purpose,
            } });
            let payload = payload.to_string().into_bytes();
            let signature = json!(sign(&payload)).as_str().unwrap().to_owned();
            Signature::Simple { payload: ByteString(payload), signature }
        };
        let named = manifest.to_string();
        check(proof(vec![simple(&named, SIMPLE)]), &signers).expect("and in the older form");
        let report = "https://slsa.dev/provenance/v1";
        for (signature, words) in [
            (enveloped(&sign, STATEMENT, &of(other.hex(), PREDICATE)), other.hex()),
            (enveloped(&sign, STATEMENT, &of(manifest.hex(), report)), "slsa.dev"),
            (enveloped(&sign, "text/plain", &of(manifest.hex(), PREDICATE)), "text/plain"),
            (enveloped(&sign, STATEMENT, b"[]"), "cannot be read"),
            (enveloped(&sign, STATEMENT, &vec![b'['; 60_000]), "cannot be read"),
            (simple(&other.to_string(), SIMPLE), other.hex()),
            (simple(&named, "a receipt"), "a receipt"),
            (simple(manifest.hex(), SIMPLE), "is of"),
            (simple(&"x".repeat(60_000), SIMPLE), "is of"),
        ] {
            let told = check(proof(vec![signature.clone()]), &signers).unwrap_err().to_string();
            assert!(told.contains(words) && told.len() < 500, "{words}: {told}");
            check(proof(vec![signature, good.clone()]), &signers).expect("the other one is good");
        }
        // What is told is what came furthest.
        let (stranger, _) = own();
        let (strange, odd) =
            (enveloped(stranger, STATEMENT, b"{}"), Signature::Bundle(ByteString(vec![])));
        let named = enveloped(&sign, STATEMENT, &of(other.hex(), PREDICATE));
        let flaw = |signatures: &[&Signature]| {
            let signatures = signatures.iter().map(|one| (*one).clone()).collect();
            check(proof(signatures), &signers).unwrap_err()
        };
        assert!(matches!(flaw(&[&odd, &strange, &named, &odd]), Flaw::OtherImage { .. }));
        assert_eq!(flaw(&[&odd, &strange, &odd]), Flaw::OtherKey);
    }

    #[test]
    fn what_others_have_signed_is_kept_beside_it() {
        let [one, two] = [bundle(), simple()];
        let both = proof(vec![one.clone()]).with(proof(vec![one.clone(), two.clone()]));
        assert_eq!(both.signatures, [one.clone(), two.clone()]);
        let many = (0..40_u8).map(|at| Signature::Bundle(ByteString(vec![at]))).collect();
        let many = both.with(proof(many));
        assert_eq!((many.signatures.len(), &many.signatures[1]), (SIGNATURES, &two));
        let text = serde_json::to_vec(&many).unwrap();
        assert_eq!(serde_json::from_slice::<Proof>(&text).unwrap(), many);
    }
}
