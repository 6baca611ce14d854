//! Images, and the archive that they go into: an OCI layout in a tar file, with the list that `docker load` reads beside it.

use std::fmt;
use std::io::Write;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use nagaya::model::digest::Digest;
use serde_json::{Map, Value, json};

use super::arch::Arch;
use super::tree::Tree;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Where in the archive a blob lies.
const BLOBS: &str = "blobs/sha256";

/// What an image is called: `NAME:TAG`.
#[derive(Clone, Debug)]
pub(crate) struct Name {
    name: String,
    tag: String,
}

impl FromStr for Name {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        // Not the colon of a registry's port.
        match text.rsplit_once(':').filter(|(name, tag)| !name.is_empty() && !tag.contains('/')) {
            Some((name, tag)) if !tag.is_empty() => Ok(Self { name: name.into(), tag: tag.into() }),
            _ => bail!("{text:?} is not NAME:TAG"),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.tag)
    }
}

impl Name {
    /// As containerd keeps it, and a kubelet asks for it.
    fn in_full(&self) -> String {
        match self.name.split_once('/') {
            None => format!("docker.io/library/{self}"),
            Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => {
                self.to_string()
            }
            Some(_) => format!("docker.io/{self}"),
        }
    }
}

/// One layer, compressed.
#[derive(Clone)]
pub(super) struct Layer {
    blob: Vec<u8>,
    /// The digest of the tar file before it was compressed.
    content: Digest,
}

impl Layer {
    /// The same files make the same bytes: the header of gzip has neither date nor system.
    pub(super) fn of(files: &Tree) -> Result<Self> {
        let tar = files.tar()?;
        let gzip = flate2::GzBuilder::new().mtime(0).operating_system(255);
        let mut gzip = gzip.write(vec![], flate2::Compression::best());
        gzip.write_all(&tar).context("compressing a layer")?;
        Ok(Self { blob: gzip.finish().context("compressing a layer")?, content: Digest::of(&tar) })
    }
}

/// An image for one kind of processor.
pub(super) struct Image {
    arch: Arch,
    layers: Vec<Layer>,
    config: Vec<u8>,
    manifest: Vec<u8>,
}

impl Image {
    /// One that runs `config` (its `Entrypoint`, `User` and so on); `labels` are the annotations of the OCI specification.
    pub(super) fn new(
        arch: Arch,
        layers: Vec<Layer>,
        mut config: Value,
        labels: &Map<String, Value>,
    ) -> Result<Self> {
        config["Labels"] = labels.clone().into();
        let created = labels.get("org.opencontainers.image.created");
        let history =
            layers.iter().map(|_| json!({ "created": created, "created_by": "cargo xtask image" }));
        let config = serde_json::to_vec(&json!({
            "architecture": arch.name(),
            "os": "linux",
            "created": created,
            "config": config,
            "rootfs": {
                "type": "layers",
                "diff_ids": layers.iter().map(|layer| layer.content.to_string()).collect::<Vec<_>>(),
            },
            "history": history.collect::<Vec<_>>(),
        }))?;
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(CONFIG, &config),
            "layers": layers.iter().map(|layer| descriptor(LAYER, &layer.blob)).collect::<Vec<_>>(),
            "annotations": labels,
        }))?;
        Ok(Self { arch, layers, config, manifest })
    }

    /// What a registry would call it.
    pub(super) fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    /// What is pulled, in bytes.
    pub(super) fn size(&self) -> usize {
        self.layers.iter().map(|layer| layer.blob.len()).sum()
    }

    /// The same, for people.
    #[expect(clippy::cast_precision_loss, reason = "it is shown with one decimal")]
    pub(super) fn megabytes(&self) -> f64 {
        self.size() as f64 / 1e6
    }

    fn descriptor(&self) -> Value {
        let mut descriptor = descriptor(MANIFEST, &self.manifest);
        descriptor["platform"] = json!({ "architecture": self.arch.name(), "os": "linux" });
        descriptor
    }

    fn store(&self, archive: &mut Tree) {
        let blobs = self.layers.iter().map(|layer| &layer.blob);
        for blob in blobs.chain([&self.config, &self.manifest]) {
            store(archive, blob);
        }
    }
}

fn store(archive: &mut Tree, blob: &[u8]) {
    archive.file(&place(blob), 0o644, blob);
}

fn place(blob: &[u8]) -> String {
    format!("{BLOBS}/{}", Digest::of(blob).hex())
}

fn descriptor(media_type: &str, blob: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": Digest::of(blob).to_string(), "size": blob.len() })
}

/// The archive of one image, which Docker reads too.
pub(super) fn single(name: &Name, image: &Image) -> Result<Vec<u8>> {
    let mut archive = Tree::default();
    image.store(&mut archive);
    let layers: Vec<_> = image.layers.iter().map(|layer| place(&layer.blob)).collect();
    let docker = json!([{ "Config": place(&image.config), "RepoTags": [name.to_string()], "Layers": layers }]);
    archive.file("manifest.json", 0o644, serde_json::to_vec(&docker)?);
    layout(archive, name, image.descriptor())
}

/// The archive of one name for several kinds of processors. Docker's list cannot say this, so it is not there.
pub(super) fn several(name: &Name, images: &[Image]) -> Result<Vec<u8>> {
    let mut archive = Tree::default();
    for image in images {
        image.store(&mut archive);
    }
    let manifests: Vec<_> = images.iter().map(Image::descriptor).collect();
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
    let index = serde_json::to_vec(&index)?;
    store(&mut archive, &index);
    layout(archive, name, descriptor(INDEX, &index))
}

/// Adds what makes the archive an OCI layout of one entry: containerd takes the name from the first annotation, others
/// look for the second.
fn layout(mut archive: Tree, name: &Name, mut entry: Value) -> Result<Vec<u8>> {
    entry["annotations"] = json!({
        "io.containerd.image.name": name.in_full(),
        "org.opencontainers.image.ref.name": name.tag,
    });
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] });
    archive.file("index.json", 0o644, serde_json::to_vec(&index)?);
    archive.file("oci-layout", 0o644, r#"{"imageLayoutVersion":"1.0.0"}"#);
    archive.tar()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;

    use super::*;

    fn image(arch: Arch) -> Image {
        let mut files = Tree::default();
        files.file("/nagaya", 0o755, arch.name());
        let labels = json!({ "org.opencontainers.image.created": "2026-11-30T00:00:00Z" });
        let config = json!({ "Entrypoint": ["/nagaya"] });
        let layers = vec![Layer::of(&files).unwrap()];
        Image::new(arch, layers, config, labels.as_object().unwrap()).unwrap()
    }

    fn unpack(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(archive).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = vec![];
            entry.read_to_end(&mut content).unwrap();
            files.insert(String::from_utf8(entry.path_bytes().into_owned()).unwrap(), content);
        }
        files
    }

    fn json_of(files: &BTreeMap<String, Vec<u8>>, path: &str) -> Value {
        serde_json::from_slice(&files[path]).unwrap()
    }

    fn blob(descriptor: &Value) -> String {
        let digest = descriptor["digest"].as_str().unwrap();
        digest.replace("sha256:", "blobs/sha256/")
    }

    #[test]
    fn dockers_list_and_the_oci_index_name_the_same_image() {
        let name = "nagaya:0.1.0".parse().unwrap();
        let files = unpack(&single(&name, &image(Arch::Amd64)).unwrap());
        let docker = &json_of(&files, "manifest.json")[0];
        let entry = &json_of(&files, "index.json")["manifests"][0];
        let manifest = json_of(&files, &blob(entry));
        assert_eq!(docker["Config"], blob(&manifest["config"]));
        assert_eq!(docker["Layers"][0], blob(&manifest["layers"][0]));
        assert_eq!(docker["RepoTags"][0], "nagaya:0.1.0");
        assert_eq!(
            entry["annotations"]["io.containerd.image.name"],
            "docker.io/library/nagaya:0.1.0"
        );
        let config = json_of(&files, &blob(&manifest["config"]));
        let mut layer = vec![];
        let packed = files[&blob(&manifest["layers"][0])].as_slice();
        flate2::read::GzDecoder::new(packed).read_to_end(&mut layer).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], Digest::of(&layer).to_string());
        assert_eq!(config["config"]["Labels"], manifest["annotations"]);
    }

    #[test]
    fn every_blob_has_the_digest_that_it_is_called_by() {
        let name = "nagaya:0.1.0".parse().unwrap();
        let files = unpack(&several(&name, &[image(Arch::Amd64), image(Arch::Arm64)]).unwrap());
        let blobs = files.iter().filter_map(|(path, content)| {
            Some((path.strip_prefix("blobs/sha256/")?, content)).filter(|(hex, _)| !hex.is_empty())
        });
        let blobs: Vec<_> = blobs.collect();
        assert!(blobs.iter().all(|(hex, content)| Digest::of(content).hex() == *hex));
        assert_eq!(blobs.len(), 7, "an index, and a manifest, a config and a layer of each");
        let index = json_of(&files, &blob(&json_of(&files, "index.json")["manifests"][0]));
        let archs = [0, 1].map(|at| index["manifests"][at]["platform"]["architecture"].clone());
        assert_eq!(archs, ["amd64", "arm64"]);
    }

    #[test]
    fn the_same_files_make_the_same_archive() {
        let name = "nagaya:0.1.0".parse().unwrap();
        let make = || single(&name, &image(Arch::Amd64)).unwrap();
        assert_eq!(make(), make());
    }

    #[test]
    fn a_name_is_stored_as_a_kubelet_asks_for_it() {
        let full = |text: &str| text.parse::<Name>().map(|name| name.in_full());
        assert_eq!(full("nagaya:1").unwrap(), "docker.io/library/nagaya:1");
        assert_eq!(full("team/nagaya:1").unwrap(), "docker.io/team/nagaya:1");
        assert_eq!(full("localhost:5000/nagaya:1").unwrap(), "localhost:5000/nagaya:1");
        for wrong in ["nagaya", "localhost:5000/nagaya", ":1", "nagaya:"] {
            assert!(full(wrong).unwrap_err().to_string().contains("NAME:TAG"), "{wrong}");
        }
    }
}
