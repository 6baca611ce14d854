//! Signs images of a test's registry as `cosign sign --key` does, in each of its forms, with a key that nobody else has.

use anyhow::{Context, Result, anyhow, ensure};
use k8s_openapi::ByteString;
use rcgen::{KeyPair, PublicKeyData};
use reqwest::{Client, header};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use serde_json::{Value, json};

use crate::component::digest;

const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const STATEMENT: &str = "application/vnd.in-toto+json";

/// Where a signature is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A bundle that the registry lists among the image's referrers.
    Referrer,
    /// The same in a registry without such lists.
    Tag,
    /// As it was before bundles.
    Older,
}

/// A key.
#[derive(Debug)]
pub struct Signer {
    pem: String,
    pair: EcdsaKeyPair,
    random: SystemRandom,
}

impl Signer {
    /// A new one.
    pub fn new() -> Result<Self> {
        let (made, random) = (KeyPair::generate().context("making a key")?, SystemRandom::new());
        let sort = &ECDSA_P256_SHA256_ASN1_SIGNING;
        let pair = EcdsaKeyPair::from_pkcs8(sort, &made.serialize_der(), &random)
            .map_err(|error| anyhow!("reading a key: {error}"))?;
        let der = serde_json::to_value(ByteString(made.subject_public_key_info()))?;
        let body = der.as_str().unwrap_or_default();
        let pem = format!("-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n");
        Ok(Self { pem, pair, random })
    }

    /// The public key.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Signs what is `image`, such as `registry/repository:tag`, now.
    pub async fn sign(&self, image: &str, form: Form) -> Result<()> {
        self.sign_as(image, (None, form), |_| ()).await
    }

    /// Puts beside `image` a signature of `named`, a digest, if there is one; `change` is what happens to it after it was signed.
    pub async fn sign_as(
        &self,
        image: &str,
        (named, form): (Option<&str>, Form),
        change: impl FnOnce(&mut Vec<u8>),
    ) -> Result<()> {
        let (registry, rest) = image.split_once('/').context("no registry")?;
        let (repository, tag) = rest.rsplit_once(':').context("no tag")?;
        let at =
            Repository { base: format!("http://{registry}/v2/{repository}"), http: Client::new() };
        let manifest = at.manifest(tag).await?;
        let subject = digest(&manifest);
        let named = named.unwrap_or(&subject).to_owned();
        let tag = subject.replace(':', "-");
        if form == Form::Older {
            let payload = json!({ "critical": {
                "identity": {"docker-reference": format!("{registry}/{repository}")},
                "image": {"docker-manifest-digest": named},
                "type": "cosign container image signature",
            }, "optional": null });
            let mut payload = payload.to_string().into_bytes();
            let signature = self.signature(&payload)?;
            change(&mut payload);
            let kind = "application/vnd.dev.cosign.simplesigning.v1+json";
            let mut layer = at.blob(kind, payload).await?;
            layer["annotations"] = json!({"dev.cosignproject.cosign/signature": signature});
            at.put(&format!("{tag}.sig"), IMAGE, &at.image(&[layer]).await?).await?;
            return Ok(());
        }
        let hex = named.strip_prefix("sha256:").unwrap_or_default();
        let statement = json!({
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"digest": {"sha256": hex}, "annotations": {}}],
            "predicateType": "https://sigstore.dev/cosign/sign/v1",
            "predicate": {},
        });
        let mut payload = statement.to_string().into_bytes();
        let head = format!("DSSEv1 {} {STATEMENT} {} ", STATEMENT.len(), payload.len());
        let sig = self.signature(&[head.as_bytes(), &payload].concat())?;
        change(&mut payload);
        let bundle = json!({
            "mediaType": BUNDLE,
            "verificationMaterial": {"publicKey": {"hint": "of no use"}},
            "dsseEnvelope": {
                "payload": ByteString(payload), "payloadType": STATEMENT, "signatures": [{"sig": sig}],
            },
        });
        let layer = at.blob(BUNDLE, bundle.to_string().into_bytes()).await?;
        let mut referrer = at.image(&[layer]).await?;
        referrer["artifactType"] = json!(BUNDLE);
        referrer["subject"] =
            json!({"mediaType": IMAGE, "size": manifest.len(), "digest": subject});
        let named = digest(referrer.to_string().as_bytes());
        at.put(&named, IMAGE, &referrer).await?;
        if form == Form::Tag {
            let listed = json!({
                "mediaType": IMAGE, "size": referrer.to_string().len(), "digest": named, "artifactType": BUNDLE,
            });
            let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [listed]});
            at.put(&tag, INDEX, &index).await?;
        }
        Ok(())
    }

    fn signature(&self, message: &[u8]) -> Result<Value> {
        let signed = self.pair.sign(&self.random, message);
        let signed = signed.map_err(|error| anyhow!("signing: {error}"))?;
        Ok(serde_json::to_value(ByteString(signed.as_ref().to_vec()))?)
    }
}

struct Repository {
    base: String,
    http: Client,
}

impl Repository {
    async fn manifest(&self, reference: &str) -> Result<Vec<u8>> {
        let asked = self.http.get(format!("{}/manifests/{reference}", self.base));
        let answer = asked.header(header::ACCEPT, IMAGE).send().await?.error_for_status()?;
        Ok(answer.bytes().await?.to_vec())
    }

    async fn put(&self, reference: &str, kind: &str, manifest: &Value) -> Result<()> {
        let url = format!("{}/manifests/{reference}", self.base);
        let sent = self.http.put(url).header(header::CONTENT_TYPE, kind).body(manifest.to_string());
        let answer = sent.send().await?;
        let status = answer.status();
        ensure!(status.is_success(), "{status}: {}", answer.text().await?);
        Ok(())
    }

    /// Writes a blob; its descriptor.
    async fn blob(&self, kind: &str, bytes: Vec<u8>) -> Result<Value> {
        let (named, size) = (digest(&bytes), bytes.len());
        let url = format!("{}/blobs/uploads/?digest={named}", self.base);
        let answer = self.http.post(url).body(bytes).send().await?;
        let status = answer.status();
        ensure!(status.is_success(), "{status}: {}", answer.text().await?);
        Ok(json!({"mediaType": kind, "size": size, "digest": named}))
    }

    async fn image(&self, layers: &[Value]) -> Result<Value> {
        let config = self.blob(EMPTY, b"{}".to_vec()).await?;
        Ok(json!({"schemaVersion": 2, "mediaType": IMAGE, "config": config, "layers": layers}))
    }
}
