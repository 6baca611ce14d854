//! Components from OCI registries: a tag is resolved once, and the bytes are pulled under their own digest.
//!
//! A registry is chosen by a team, and its answers may do anything to whoever reads them. So a child of the same binary speaks with
//! it, under limits of memory and time, and what it brings is hashed here: a manifest must be what its digest says, a component
//! what the manifest says. Nothing that a registry says decides more than that; whether an image is signed is decided here, too.
//!
//! Invariants, on a real registry: `a_tag_is_resolved_once_and_pinned`, `a_tampered_layer_is_refused`,
//! `what_is_not_signed_as_the_platform_demands_is_refused`.

mod child;
mod layout;
mod login;
mod referrers;
mod signature;

use std::{fmt, io, path::PathBuf, str::FromStr, sync::Arc, time::Duration};

use oci_client::Reference;
use serde::{Deserialize, Serialize};

use super::{Modules, policy::Demand};
use crate::{
    child::{self as process, Limits},
    model::digest::Digest,
    text::{MESSAGE, cut, line},
};
pub use child::child_main;
use child::{Job, Want};
use layout::Found;
pub use layout::Odd;
pub use login::{Login, login};
pub use signature::{Flaw, Proof};

/// The hidden subcommand.
pub const SUBCOMMAND: &str = "pull-child";

/// The longest image that is read: the registry's name has 253 characters, a repository 255, a digest 71.
const LONGEST: usize = 600;
/// Address space of the child, most of which is never touched, and what it may really use: a component twice, while the place for it
/// grows.
const MEMORY: u64 = 2 << 30;
const HEAP: u64 = 128 << 20;
/// CPU seconds of the child: a pull hardly computes.
const CPU: u64 = 30;
/// The largest manifest that registries take.
const MANIFEST: u64 = 4 << 20;
/// A manifest and what may be signatures of it, in base64.
const PROOF: u64 = 8 << 20;
/// How long a question may take, a proof, which is many, and a pull.
const ASK: Duration = Duration::from_secs(30);
const PROVE: Duration = Duration::from_secs(60);
const PULL: Duration = Duration::from_secs(180);

/// Where an artifact is: a registry, a repository, and a tag, a digest or both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image(Reference);

/// What was given names no artifact.
#[derive(Debug, thiserror::Error)]
#[error(
    "{text:?} is no image: {why}; write registry/repository:tag or registry/repository@sha256:…, for example ghcr.io/team/web:1.0"
)]
pub struct NotAnImage {
    text: String,
    why: String,
}

impl FromStr for Image {
    type Err = NotAnImage;

    fn from_str(text: &str) -> Result<Self, NotAnImage> {
        let wrong = |why: &str| NotAnImage {
            text: cut(text, 200).into_owned(),
            why: cut(why, 200).into_owned(),
        };
        if text.len() > LONGEST {
            return Err(wrong(&format!("it has more than {LONGEST} characters")));
        }
        let host = text.split_once('/').map_or("", |(host, _)| host);
        if !(host.contains(['.', ':']) || host == "localhost") {
            return Err(wrong("it begins with no registry"));
        }
        let reference: Reference = text.parse().map_err(|_| wrong("its form is another"))?;
        // Only what is named so that its bytes can be checked here.
        if reference.digest().is_some_and(|digest| digest.parse::<Digest>().is_err()) {
            return Err(wrong("its digest is not sha256: and 64 hexadecimal digits"));
        }
        Ok(Self(reference))
    }
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.0.registry(), self.0.repository())?;
        match (self.0.tag(), self.0.digest()) {
            (_, Some(digest)) => write!(f, "@{digest}"),
            (Some(tag), None) => write!(f, ":{tag}"),
            (None, None) => Ok(()),
        }
    }
}

impl Image {
    /// The registry and the path in it.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.0.registry(), self.0.repository())
    }

    /// The digest of its manifest, if it is pinned.
    pub fn manifest(&self) -> Option<Digest> {
        self.0.digest().and_then(|digest| digest.parse().ok())
    }

    /// The same repository, by this manifest.
    #[must_use]
    pub fn pinned(&self, manifest: &Digest) -> Self {
        let (registry, repository) = (self.0.registry(), self.0.repository());
        let reference =
            Reference::with_digest(registry.into(), repository.into(), manifest.to_string());
        Self(reference)
    }
}

/// What a registry's name means on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Registry {
    /// Its name, as images begin with it.
    pub name: String,
    /// A registry and a path below it that is asked first, without a login.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<String>,
    /// Whether it speaks plain HTTP.
    #[serde(default)]
    pub plain_http: bool,
    /// Authorities that sign its certificate, beside those of the system, as PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
}

/// The registries of this host's platform.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Settings {
    /// Those of which something is to be known.
    #[serde(default)]
    pub registries: Vec<Registry>,
    /// Whether images of all others are refused.
    #[serde(default)]
    pub only_listed: bool,
    /// The proxy for HTTPS, and what is reached without it.
    #[serde(skip)]
    pub proxy: Option<String>,
    /// Hosts that are reached without the proxy, as in `NO_PROXY`.
    #[serde(skip)]
    pub no_proxy: Option<String>,
}

/// Why an image could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The platform lets no image of this registry in.
    #[error(
        "this host takes no images of {0}: have the platform add it to the file of --registries, or push to one that is in it"
    )]
    NotListed(String),
    /// The registry says no, or that there is no such thing.
    #[error("{image}: {words}")]
    Refused {
        /// What was asked for.
        image: String,
        /// What the registry said.
        words: String,
    },
    /// The registry wants another login, or one at all.
    #[error(
        "{image}: the registry does not let this login in: {words}; imagePullSecrets of the ServiceAccount must name a Secret that is there, of the type kubernetes.io/dockerconfigjson, with a login for this registry"
    )]
    Unauthorized {
        /// What was asked for.
        image: String,
        /// What the registry said.
        words: String,
    },
    /// The registry cannot be reached, or has trouble.
    #[error(
        "{image}: the registry cannot be reached or does not answer: {words}; the host tries again"
    )]
    Unreachable {
        /// What was asked for.
        image: String,
        /// What went wrong.
        words: String,
    },
    /// What came is not what its digest says.
    #[error("{image}: what the registry sent is not what was asked for: {words}")]
    Tampered {
        /// What was asked for.
        image: String,
        /// Both digests.
        words: String,
    },
    /// The artifact is none of a component.
    #[error("{image}: {odd}")]
    Odd {
        /// What was asked for.
        image: String,
        /// What is wrong with it.
        odd: Odd,
    },
    /// It is not signed as the platform demands.
    #[error(
        "{image}: {flaw}; in this namespace the platform demands a signature by one of: {signers}. Sign this very digest (cosign sign --key KEY and the image as it stands here), or ship one that is signed"
    )]
    NotSigned {
        /// What was asked for.
        image: String,
        /// What is wrong.
        flaw: Flaw,
        /// Who may have signed.
        signers: String,
    },
    /// The component is too large.
    #[error("{image}: its component has {size} bytes, and this host takes at most {limit}")]
    TooLarge {
        /// What was asked for.
        image: String,
        /// Its bytes.
        size: u64,
        /// What is allowed.
        limit: u64,
    },
    /// The child ended badly.
    #[error("cannot pull {image}")]
    Child {
        /// What was asked for.
        image: String,
        /// Why.
        #[source]
        source: process::Error,
    },
    /// The disk.
    #[error(transparent)]
    Store(#[from] super::Error),
}

impl Error {
    /// `image` is not signed as `demand` has it.
    pub fn not_signed(image: &Image, flaw: Flaw, demand: &Demand) -> Self {
        Self::NotSigned { image: image.to_string(), flaw, signers: demand.names() }
    }
}

/// An image that was resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// By its manifest.
    pub image: Image,
    /// The component.
    pub digest: Digest,
}

/// Speaks with registries; cheap to clone.
#[derive(Clone, Debug)]
pub struct Registries {
    settings: Arc<Settings>,
    /// No component may be larger.
    limit: u64,
    /// The binary that is the child; `None`: the one that runs.
    program: Option<PathBuf>,
}

impl Registries {
    /// With the platform's settings; no component may have more than `limit` bytes.
    pub fn new(settings: Settings, limit: u64, program: Option<PathBuf>) -> Self {
        Self { settings: Arc::new(settings), limit, program }
    }

    /// Asks what `image` is now.
    pub async fn resolve(&self, image: &Image, login: Option<&Login>) -> Result<Resolved, Error> {
        let mut at = image.clone();
        // An index leads to a manifest, and that to a component.
        for _ in 0..2 {
            let body = self.ask(&at, login, Want::Manifest).await?;
            let found = Digest::of(&body);
            if let Some(wanted) = at.manifest().filter(|wanted| *wanted != found) {
                return Err(tampered(&at, &wanted, &found));
            }
            let odd = |odd| Error::Odd { image: image.to_string(), odd };
            match layout::found(&body).map_err(odd)? {
                Found::Component(digest, size) if size <= self.limit => {
                    return Ok(Resolved { image: at.pinned(&found), digest });
                }
                Found::Component(_, size) => {
                    let image = image.to_string();
                    return Err(Error::TooLarge { image, size, limit: self.limit });
                }
                Found::Manifest(manifest) => at = at.pinned(&manifest),
            }
        }
        let odd = Odd::Unreadable("an index leads to an index".to_owned());
        Err(Error::Odd { image: image.to_string(), odd })
    }

    /// Puts the component `digest` of `image` into the store.
    pub async fn pull(
        &self,
        image: &Image,
        digest: &Digest,
        login: Option<&Login>,
        modules: &Modules,
    ) -> Result<(), Error> {
        let want = Want::Layer { digest: digest.to_string() };
        let bytes = self.ask(image, login, want).await?;
        let (modules, wanted, limit) = (modules.clone(), digest.clone(), self.limit);
        let stored = tokio::task::spawn_blocking(move || {
            let mut upload = modules.upload(wanted, limit)?;
            upload.write(&bytes)?;
            upload.finish()
        });
        let host = |error: tokio::task::JoinError| super::Error::Disk {
            what: "store a pulled module",
            source: io::Error::other(error),
        };
        match stored.await.map_err(host)? {
            Err(super::Error::OtherBytes { named, found }) => Err(tampered(image, &named, &found)),
            stored => Ok(stored?),
        }
    }

    /// What shows that `image`, pinned, holds `component` and is signed as `demand` has it: the mirror's word, or else the registry's.
    pub async fn prove(
        &self,
        (image, component): (&Image, &Digest),
        login: Option<&Login>,
        demand: &Demand,
    ) -> Result<Proof, Error> {
        if let Some(mirror) = self.mirror(image)? {
            match self.ask_at(mirror, None, Want::Proof).await {
                Ok(body) => {
                    if let Ok(proof) = checked((image, component), body, demand).await {
                        return Ok(proof);
                    }
                }
                Err(error) => told(image, &error),
            }
        }
        let body = self.ask_at(image.to_string(), login, Want::Proof).await?;
        checked((image, component), body, demand).await
    }

    /// Asks the mirror, if there is one, and then the registry itself.
    async fn ask(
        &self,
        image: &Image,
        login: Option<&Login>,
        want: Want,
    ) -> Result<Vec<u8>, Error> {
        if let Some(mirror) = self.mirror(image)? {
            match self.ask_at(mirror, None, want.clone()).await {
                Ok(body) => return Ok(body),
                Err(error) => told(image, &error),
            }
        }
        self.ask_at(image.to_string(), login, want).await
    }

    /// Where `image` is asked for first, if its registry is one of the platform's and has a mirror.
    fn mirror(&self, image: &Image) -> Result<Option<String>, Error> {
        let name = image.0.registry();
        let known = self.settings.registries.iter().find(|registry| registry.name == name);
        if known.is_none() && self.settings.only_listed {
            return Err(Error::NotListed(name.to_owned()));
        }
        let mirror = known.and_then(|registry| registry.mirror.as_deref());
        Ok(mirror.map(|mirror| mirrored(image, mirror)))
    }

    async fn ask_at(
        &self,
        at: String,
        login: Option<&Login>,
        want: Want,
    ) -> Result<Vec<u8>, Error> {
        let (output, wall) = match want {
            Want::Manifest => (MANIFEST, ASK),
            Want::Proof => (PROOF, PROVE),
            Want::Layer { .. } => (self.limit, PULL),
        };
        let host = at.split('/').next().unwrap_or_default();
        let known = self.settings.registries.iter().find(|registry| registry.name == host);
        let job = Job {
            image: at.clone(),
            login: login.cloned(),
            want,
            limit: output,
            plain_http: known.is_some_and(|registry| registry.plain_http),
            ca: known.and_then(|registry| registry.ca.clone()),
            proxy: self.settings.proxy.clone(),
            no_proxy: self.settings.no_proxy.clone(),
        };
        let input = serde_json::to_vec(&job).unwrap_or_default();
        let limits = Limits { memory: MEMORY, heap: HEAP, cpu: CPU, output };
        let program = (self.program.as_deref(), &[SUBCOMMAND][..]);
        match process::run(program, &input, (limits, wall)).await {
            Ok(ended) if ended.status.success() => Ok(ended.output),
            Ok(ended) => Err(failed(at, &ended, output)),
            Err(process::Error::TooLong(wall)) => {
                let words = format!("nothing whole came within {wall:?}");
                Err(Error::Unreachable { image: at, words })
            }
            Err(source) => Err(Error::Child { image: at, source }),
        }
    }
}

/// The proof in `body`, if it is one. Its signatures are checked beside the runtime: there may be hundreds of them and keys.
async fn checked(
    (image, component): (&Image, &Digest),
    body: Vec<u8>,
    demand: &Demand,
) -> Result<Proof, Error> {
    let (signers, component, manifest) =
        (demand.signers.clone(), component.clone(), image.manifest());
    let check = move || {
        let unreadable = |error: serde_json::Error| Flaw::Unreadable(error.to_string());
        let proof: Proof = serde_json::from_slice(&body).map_err(unreadable)?;
        proof.check((&component, &manifest.ok_or(Flaw::OtherManifest)?), &signers)
    };
    let checked = tokio::task::spawn_blocking(check).await;
    let checked = checked.unwrap_or_else(|error| Err(Flaw::Unreadable(error.to_string())));
    checked.map_err(|flaw| Error::not_signed(image, flaw, demand))
}

fn told(image: &Image, error: &Error) {
    tracing::info!(%image, %error, "the mirror does not have it: the registry is asked");
}

/// Why a child came back with nothing.
fn failed(image: String, ended: &process::Ended, limit: u64) -> Error {
    // Words of a registry, in a condition and in the log.
    let words = line(&ended.words, MESSAGE / 2).into_owned();
    match ended.status.code() {
        Some(child::REFUSED) => Error::Refused { image, words },
        Some(child::UNAUTHORIZED) => Error::Unauthorized { image, words },
        Some(child::TAMPERED) => Error::Tampered { image, words },
        Some(child::UNREACHABLE) => Error::Unreachable { image, words },
        Some(child::TOO_LARGE) => Error::TooLarge { image, size: limit + 1, limit },
        _ => {
            let words = match ended.excess() {
                Some(excess) => format!("its answers take more than a pull may use ({excess:?})"),
                None => format!("the child ended with {}: {words}", ended.status),
            };
            Error::Refused { image, words }
        }
    }
}

fn tampered(image: &Image, wanted: &Digest, found: &Digest) -> Error {
    let words = format!("its digest is {found}, not {wanted}");
    Error::Tampered { image: image.to_string(), words }
}

/// `image` below `mirror`, which is a registry and a path.
fn mirrored(image: &Image, mirror: &str) -> String {
    let text = image.to_string();
    let path = text.split_once('/').map_or("", |(_, path)| path);
    format!("{}/{path}", mirror.trim_end_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_names_its_registry_and_something_in_it() {
        let digest = Digest::of(b"x");
        for text in [
            "ghcr.io/team/web:1.0".to_owned(),
            "localhost:5000/web:a".to_owned(),
            format!("registry.example.com/a/b/c@{digest}"),
        ] {
            assert_eq!(text.parse::<Image>().unwrap().to_string(), text);
        }
        let image: Image = "ghcr.io/team/web:1.0".parse().unwrap();
        assert_eq!(image.manifest(), None);
        let pinned = image.pinned(&digest);
        assert_eq!(
            (pinned.to_string(), pinned.manifest()),
            (format!("ghcr.io/team/web@{digest}"), Some(digest.clone()))
        );
        assert_eq!(
            mirrored(&pinned, "mirror.local/ghcr/"),
            format!("mirror.local/ghcr/team/web@{digest}")
        );
        let both: Image = format!("ghcr.io/team/web:1.0@{digest}").parse().unwrap();
        assert_eq!(both.to_string(), format!("ghcr.io/team/web@{digest}"), "the digest counts");
        for bad in [
            "",
            "web",
            "team/web:1",
            "library/web",
            "ghcr.io/",
            "ghcr.io/Team/Web:1",
            "http://ghcr.io/web",
            "ghcr.io/web@sha256:12",
            "ghcr.io/web@sha512:aa",
            "ghcr.io/web:a b",
            "ghcr.io/../web",
        ] {
            let told = bad.parse::<Image>().expect_err(bad).to_string();
            assert!(told.contains("registry/repository:tag") && told.len() < 500, "{told}");
        }
        let long = format!("ghcr.io/{}", "a".repeat(100_000));
        assert!(long.parse::<Image>().unwrap_err().to_string().len() < 1_000);
    }
}
