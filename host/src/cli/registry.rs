//! Writes a component to an OCI registry, as the CNCF's runtime group lays it out: the component is the one layer.
//!
//! The same bytes make the same artifact, so that pushing again changes nothing: it says no time.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use oci_client::{
    Client, Reference,
    client::{ClientConfig, ClientProtocol, Config, ImageLayer},
    secrets::RegistryAuth,
};
use serde_json::{Value, json};

use crate::{
    model::digest::Digest,
    modules::oci::{self, Image},
};

const CONFIG: &str = "application/vnd.wasm.config.v0+json";
const LAYER: &str = "application/wasm";

/// Writes `component` to `to`; the same image by the digest of its manifest.
pub(super) async fn write(to: &str, component: &Bytes) -> Result<Image> {
    let image: Image = to.parse().context("reading --to")?;
    if image.manifest().is_some() {
        bail!("--to names a digest, which follows from what is written: name a tag");
    }
    let reference: Reference =
        to.parse().with_context(|| format!("{to} is no image that can be written to"))?;
    let login = login(&image)?;
    let auth = login
        .map_or(RegistryAuth::Anonymous, |login| RegistryAuth::Basic(login.name, login.password));
    // As every container tool does it.
    let host = reference.registry().split(':').next().unwrap_or_default();
    let is_here = ["localhost", "127.0.0.1"].contains(&host);
    let protocol = if is_here { ClientProtocol::Http } else { ClientProtocol::Https };
    let client = Client::try_from(ClientConfig { protocol, ..ClientConfig::default() })
        .context("preparing to speak with a registry")?;
    let layer = ImageLayer::new(component.clone(), LAYER.to_owned(), None);
    let config = Config::new(config(component).to_string(), CONFIG.to_owned(), None);
    let pushed = client.push(&reference, &[layer], config, &auth, None).await;
    pushed.with_context(|| {
        format!(
            "cannot write to {to}: is it there, and are you logged in? The login is read from {}",
            file().display()
        )
    })?;
    let manifest = client.fetch_manifest_digest(&reference, &auth).await;
    let manifest = manifest.with_context(|| format!("asking what {to} is now"))?;
    let manifest: Digest = manifest.parse().context("reading the registry's digest")?;
    Ok(image.pinned(&manifest))
}

fn config(component: &[u8]) -> Value {
    json!({
        "created": "1970-01-01T00:00:00Z",
        "architecture": "wasm",
        "os": "wasip2",
        "layerDigests": [Digest::of(component).to_string()],
    })
}

/// Where `docker login` and its like leave what they were told.
fn file() -> PathBuf {
    let folder = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    let home = || std::env::home_dir().unwrap_or_default().join(".docker");
    folder.unwrap_or_else(home).join("config.json")
}

fn login(image: &Image) -> Result<Option<oci::Login>> {
    let file = file();
    let shown = file.display();
    let text = match std::fs::read(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("reading {shown}")),
    };
    match oci::login(&text, &image.repository()) {
        Ok(login) => Ok(login),
        // A helper keeps it: then the entry is empty.
        Err(why) => bail!(
            "cannot read a login for {image} from {shown}: {why}; a credential helper is not asked, so log in without one, or set DOCKER_CONFIG to a folder with a config.json that has the login"
        ),
    }
}
