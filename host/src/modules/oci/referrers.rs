//! The child's part of a proof: an image's manifest, and what may be a signature of it, wherever cosign puts one.
//!
//! Asked are the referrers API, the tag that stands for it where a registry has none (`sha256-<hex>`), and the tag of the older form
//! (`sha256-<hex>.sig`). What lists call a referrer is not believed: some registries call it by its config's type, and some answer a tag
//! like these with the image itself. So each manifest is opened, those that look like a signature first, and must name the image as
//! its subject.

use std::collections::BTreeMap;

use futures::TryStreamExt;
use k8s_openapi::ByteString;
use oci_client::{Client, Reference, manifest::OciDescriptor, secrets::RegistryAuth};
use serde::{Deserialize, de::DeserializeOwned};

use super::{
    child::{REFUSED, TAMPERED, UNREACHABLE, broken, judge},
    layout::MANIFESTS,
    signature::{PREDICATE, Proof, SIGNATURES, Signature},
};

/// So many referrers are opened: an image may have any number of reports beside its signatures.
const OPENED: usize = 64;
/// No bundle and no payload is larger; one with a certificate and a log's promise has some 10 KiB.
const LARGEST: usize = 64 << 10;
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle";
const SIMPLE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// Annotations: what a bundle says, and the signature beside a payload of the older form.
const SAYS: &str = "dev.sigstore.bundle.predicateType";
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";

type Failed = (i32, String);

#[derive(Default, Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Listed>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    digest: String,
    #[serde(default)]
    artifact_type: Option<String>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Default, Deserialize)]
struct Manifest {
    #[serde(default)]
    layers: Vec<Layer>,
    #[serde(default)]
    subject: Option<Subject>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    #[serde(default)]
    media_type: String,
    digest: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Subject {
    digest: String,
}

/// Speaks with the registry of one image.
pub(super) struct Asking<'a> {
    pub(super) client: &'a Client,
    pub(super) image: &'a Reference,
    pub(super) auth: &'a RegistryAuth,
}

impl Asking<'_> {
    /// Brings the proof of the image, which is named by its digest.
    pub(super) async fn proof(&self) -> Result<Proof, Failed> {
        let digest = self.image.digest().ok_or((REFUSED, "it is not pinned".to_owned()))?;
        let manifest = self.client.pull_manifest_raw(self.image, self.auth, &MANIFESTS).await;
        let (manifest, _) = manifest.map_err(|error| judge(&error))?;
        let tag = digest.replace(':', "-");
        let mut signatures = vec![];
        let mut listed = self.listed(&tag).await?;
        listed.sort_by_key(rank);
        for one in listed.into_iter().take(OPENED) {
            let referrer: Manifest = self.manifest(&self.at(&one.digest)).await?;
            if referrer.subject.is_none_or(|subject| subject.digest != digest) {
                continue;
            }
            for layer in referrer.layers.iter().filter(|it| it.media_type.starts_with(BUNDLE)) {
                signatures.extend(self.blob(layer).await?.map(Signature::Bundle));
            }
            if signatures.len() >= SIGNATURES {
                break;
            }
        }
        let older: Manifest = self.manifest(&self.tagged(&format!("{tag}.sig"))).await?;
        for layer in older.layers.iter().filter(|it| it.media_type == SIMPLE).take(SIGNATURES) {
            let signature = layer.annotations.get(SIGNATURE).filter(|it| it.len() <= LARGEST);
            let Some(signature) = signature.cloned() else { continue };
            if let Some(payload) = self.blob(layer).await? {
                signatures.push(Signature::Simple { payload, signature });
            }
        }
        signatures.truncate(SIGNATURES);
        Ok(Proof { manifest: ByteString(manifest.into()), signatures })
    }

    /// What the registry lists as referrers.
    async fn listed(&self, tag: &str) -> Result<Vec<Listed>, Failed> {
        // No type is asked for, as it might be called by another.
        let answer = self.client.pull_referrers(self.image, None).await;
        match answer.map_err(|error| judge(&error)) {
            Ok(index) => {
                let listed = index.manifests.into_iter().map(|one| Listed {
                    digest: one.digest,
                    artifact_type: one.artifact_type,
                    annotations: one.annotations,
                });
                Ok(listed.collect())
            }
            Err(failed) if failed.0 == UNREACHABLE => Err(failed),
            // Registries say in many ways that they have no such list.
            Err(_) => Ok(self.manifest::<Index>(&self.tagged(tag)).await?.manifests),
        }
    }

    /// A manifest or an index; an empty one where there is none that can be read.
    async fn manifest<T: Default + DeserializeOwned>(&self, at: &Reference) -> Result<T, Failed> {
        match self.client.pull_manifest_raw(at, self.auth, &MANIFESTS).await {
            Ok((body, _)) => Ok(serde_json::from_slice(&body).unwrap_or_default()),
            Err(error) => none(judge(&error)),
        }
    }

    /// A blob, unless it is too large or is not there.
    async fn blob(&self, layer: &Layer) -> Result<Option<ByteString>, Failed> {
        let layer = OciDescriptor { digest: layer.digest.clone(), ..OciDescriptor::default() };
        let mut stream = match self.client.pull_blob_stream(self.image, &layer).await {
            Ok(pulled) => pulled.stream,
            Err(error) => return none(judge(&error)),
        };
        let mut bytes = vec![];
        loop {
            match stream.try_next().await.map_err(|error| broken(&error)) {
                Ok(Some(part)) if bytes.len() + part.len() > LARGEST => return Ok(None),
                Ok(Some(part)) => bytes.extend_from_slice(&part),
                // What was changed is for the host to tell.
                Ok(None) | Err((TAMPERED, _)) => return Ok(Some(ByteString(bytes))),
                Err(failed) => return Err(failed),
            }
        }
    }

    fn at(&self, digest: &str) -> Reference {
        let (registry, repository) = (self.image.registry(), self.image.repository());
        Reference::with_digest(registry.into(), repository.into(), digest.into())
    }

    fn tagged(&self, tag: &str) -> Reference {
        let (registry, repository) = (self.image.registry(), self.image.repository());
        Reference::with_tag(registry.into(), repository.into(), tag.into())
    }
}

/// In which order referrers are opened.
fn rank(one: &Listed) -> u8 {
    let says = one.annotations.as_ref().and_then(|all| all.get(SAYS));
    let is_bundle = one.artifact_type.as_ref().is_some_and(|kind| kind.starts_with(BUNDLE));
    match says {
        Some(says) if says == PREDICATE => 0,
        None if is_bundle => 1,
        None => 2,
        Some(_) => 3,
    }
}

/// What cannot be had is not there, but for a registry that may have it when it is asked again.
fn none<T: Default>(failed: Failed) -> Result<T, Failed> {
    if failed.0 == UNREACHABLE { Err(failed) } else { Ok(T::default()) }
}
