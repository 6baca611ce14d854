//! Finds the component in an OCI manifest; pure.
//!
//! The layout of the CNCF's runtime group has one layer `application/wasm`, which is the component itself, so the layer's digest is
//! the component's. Older tools write other types; an artifact with a single layer that is no archive is taken for the same.
//!
//! Invariants: `the_component_of_each_known_layout_is_found`, `what_has_no_component_is_refused_with_what_it_has`.

use serde::Deserialize;

use crate::{
    model::digest::Digest,
    text::{NAME, cut},
};

/// The types of a manifest and of an index that are asked for.
pub(super) const MANIFESTS: [&str; 4] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
/// The types of a layer that is a WebAssembly binary.
const WASM: [&str; 4] = [
    "application/wasm",
    "application/vnd.wasm.content.layer.v1+wasm",
    "application/vnd.module.wasm.content.layer.v1+wasm",
    "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
];
/// How many types are shown of an artifact that has no component.
const SHOWN: usize = 5;

/// What a manifest leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A component of so many bytes.
    Component(Digest, u64),
    /// It is an index, and this manifest of it is of WebAssembly.
    Manifest(Digest),
}

/// Why there is no component.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Odd {
    /// It is no JSON of that form.
    #[error("its manifest cannot be read: {0}")]
    Unreadable(String),
    /// Nothing in it is a component.
    #[error(
        "it has no component: its parts are {0}; push a component as one layer of the type application/wasm, for example by nagaya push --to"
    )]
    NoComponent(String),
    /// Several are.
    #[error(
        "it has {0} components, and a revision is one: name the one that is meant by its digest"
    )]
    Several(usize),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    #[serde(default)]
    layers: Vec<Descriptor>,
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    #[serde(default)]
    architecture: String,
}

/// What `manifest` leads to.
pub(super) fn found(manifest: &[u8]) -> Result<Found, Odd> {
    let unreadable = |error: String| Odd::Unreadable(cut(&error, NAME).into_owned());
    let manifest: Manifest =
        serde_json::from_slice(manifest).map_err(|error| unreadable(error.to_string()))?;
    let digest = |of: &Descriptor| {
        of.digest.parse::<Digest>().map_err(|error| unreadable(error.to_string()))
    };
    if !manifest.manifests.is_empty() {
        let is_wasm = |one: &&Descriptor| {
            one.platform.as_ref().is_some_and(|platform| platform.architecture == "wasm")
        };
        let all = &manifest.manifests;
        let wasm: Vec<_> = all.iter().filter(is_wasm).collect();
        return match (&wasm[..], &all[..]) {
            ([one], _) => Ok(Found::Manifest(digest(one)?)),
            ([], [one]) => Ok(Found::Manifest(digest(one)?)),
            ([], _) => Err(none(all)),
            (several, _) => Err(Odd::Several(several.len())),
        };
    }
    let all = &manifest.layers;
    let wasm: Vec<_> = all.iter().filter(|one| WASM.contains(&&*one.media_type)).collect();
    match (&wasm[..], &all[..]) {
        ([one], _) => Ok(Found::Component(digest(one)?, one.size)),
        ([], [one]) if !is_archive(&one.media_type) => Ok(Found::Component(digest(one)?, one.size)),
        ([], _) => Err(none(all)),
        (several, _) => Err(Odd::Several(several.len())),
    }
}

fn is_archive(media_type: &str) -> bool {
    ["tar", "zip", "rootfs", "config"].iter().any(|word| media_type.contains(word))
}

fn none(parts: &[Descriptor]) -> Odd {
    let mut words: Vec<_> =
        parts.iter().take(SHOWN).map(|one| format!("{:?}", cut(&one.media_type, NAME))).collect();
    if parts.len() > SHOWN {
        words.push(format!("{} more", parts.len() - SHOWN));
    }
    if words.is_empty() {
        words.push("none".to_owned());
    }
    Odd::NoComponent(words.join(", "))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn digest(of: &str) -> String {
        Digest::of(of.as_bytes()).to_string()
    }

    fn layer(media_type: &str, of: &str) -> Value {
        json!({ "mediaType": media_type, "digest": digest(of), "size": 7 })
    }

    fn image(layers: &[Value]) -> Vec<u8> {
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFESTS[0],
            "config": { "mediaType": "application/vnd.wasm.config.v0+json", "digest": digest("c"), "size": 2 },
            "layers": layers,
        });
        manifest.to_string().into_bytes()
    }

    #[test]
    fn the_component_of_each_known_layout_is_found() {
        let it = Found::Component(Digest::of(b"x"), 7);
        for media_type in WASM {
            let layers = [layer("application/vnd.oci.empty.v1+json", "e"), layer(media_type, "x")];
            assert_eq!(found(&image(&layers)), Ok(it.clone()), "{media_type}");
        }
        for media_type in ["application/octet-stream", "", "application/vnd.acme.module"] {
            assert_eq!(found(&image(&[layer(media_type, "x")])), Ok(it.clone()), "{media_type}");
        }
        let of = |architecture: &str, of: &str| {
            let mut one = layer(MANIFESTS[0], of);
            one["platform"] = json!({ "architecture": architecture, "os": "wasip2" });
            one
        };
        let index =
            |manifests: &[Value]| json!({ "manifests": manifests }).to_string().into_bytes();
        let one = Ok(Found::Manifest(Digest::of(b"x")));
        assert_eq!(found(&index(&[of("amd64", "y"), of("wasm", "x")])), one);
        assert_eq!(found(&index(&[layer(MANIFESTS[0], "x")])), one);
        assert_eq!(found(&index(&[of("wasm", "y"), of("wasm", "x")])), Err(Odd::Several(2)));
    }

    #[test]
    fn what_has_no_component_is_refused_with_what_it_has() {
        let tar = "application/vnd.oci.image.layer.v1.tar+gzip";
        for layers in [vec![layer(tar, "x")], vec![layer(tar, "x"); 9], vec![]] {
            let count = layers.len();
            let words = found(&image(&layers)).unwrap_err().to_string();
            assert!(words.contains("application/wasm"), "{words}");
            assert_eq!(words.contains("tar+gzip"), count > 0, "{words}");
            assert_eq!(words.contains("4 more"), count == 9, "{words}");
        }
        let two = [layer("application/wasm", "x"), layer("application/wasm", "y")];
        assert_eq!(found(&image(&two)), Err(Odd::Several(2)));
        for odd in ["", "[]", "{\"layers\": 3}", "{\"layers\": [{\"digest\": \"md5:1\"}]}"] {
            let words = found(odd.as_bytes()).unwrap_err().to_string();
            assert!(words.contains("cannot be read") || words.contains("none"), "{odd}: {words}");
        }
        let long = image(&[layer(&"tar".repeat(100_000), "x")]);
        assert!(found(&long).unwrap_err().to_string().len() < 1_000);
    }
}
