//! `cargo xtask image`: builds the host and packs it as a container image, without a container engine. What it
//! packs depends on the commit and the tools alone.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use e2e::component::profile_folder;
use serde_json::{Map, Value, json};

use arch::Arch;
use archive::{Image, Layer, Name};

mod arch;
mod archive;
mod binary;
mod build;
mod contents;
mod tree;

/// What an image may have to be pulled, compressed: so much that nobody waits for it on a small node.
const MAX_SIZE: usize = 40_000_000;

/// Which images to make.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// For which processors; of several, one more archive has all [default: this machine's]
    #[arg(long, value_delimiter = ',', value_name = "ARCH")]
    arch: Vec<Arch>,
    /// The folder that the archives go into [default: target/image]
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,
    /// What the image is called
    #[arg(long, value_name = "NAME:TAG", default_value = concat!("nagaya:", env!("CARGO_PKG_VERSION")))]
    tag: Name,
    /// Pack this host, with the shared libraries that it needs, instead of building one
    #[arg(long, value_name = "FILE", conflicts_with = "arch")]
    binary: Option<PathBuf>,
}

/// Builds and packs; prints the archives' paths.
pub(crate) fn run(args: Args) -> Result<()> {
    let root = crate::root()?;
    let profile = profile_folder()?;
    let target = profile.parent().context("the profile's folder lies nowhere")?;
    let output = args.output.unwrap_or_else(|| target.join("image"));
    std::fs::create_dir_all(&output).with_context(|| format!("making {}", output.display()))?;
    let write = |part: &str, archive: Vec<u8>| {
        let file = output.join(format!("nagaya-{}-{part}.tar", env!("CARGO_PKG_VERSION")));
        std::fs::write(&file, archive).with_context(|| format!("writing {}", file.display()))?;
        println!("{}", file.display());
        anyhow::Ok(())
    };
    let archs = if args.arch.is_empty() { vec![Arch::here()?] } else { args.arch };
    let labels = labels(&root)?;
    let base = Layer::of(&contents::base()?)?;
    let mut images = vec![];
    for arch in archs {
        let program = match &args.binary {
            Some(program) => program.clone(),
            None => build::host(&root, target, arch)?,
        };
        let layers = vec![base.clone(), Layer::of(&contents::host(&program, arch)?)?];
        let image = Image::new(arch, layers, config(), &labels)?;
        eprintln!("{} {}: {:.1} MB to pull", arch.name(), image.digest(), image.megabytes());
        ensure!(
            args.binary.is_some() || image.size() <= MAX_SIZE,
            "the image is larger than {} MB",
            MAX_SIZE / 1_000_000
        );
        write(arch.name(), archive::single(&args.tag, &image)?)?;
        images.push(image);
    }
    if images.len() > 1 {
        write("all", archive::several(&args.tag, &images)?)?;
    }
    Ok(())
}

/// Packs a host that was built for this machine, with the libraries that it needs; the archive's path.
pub(crate) fn pack_binary(program: &Path) -> Result<PathBuf> {
    let (root, arch) = (crate::root()?, Arch::here()?);
    let layers = vec![Layer::of(&contents::base()?)?, Layer::of(&contents::host(program, arch)?)?];
    let image = Image::new(arch, layers, config(), &labels(&root)?)?;
    let file = profile_folder()?.join("nagaya-test-image.tar");
    let name: Name = concat!("nagaya:", env!("CARGO_PKG_VERSION")).parse()?;
    let written = std::fs::write(&file, archive::single(&name, &image)?);
    written.with_context(|| format!("writing {}", file.display()))?;
    Ok(file)
}

/// How the image is run, unless something else is said.
fn config() -> Value {
    json!({
        "User": format!("{0}:{0}", contents::USER),
        "Entrypoint": ["/nagaya"],
        "Cmd": ["serve"],
        "WorkingDir": "/",
    })
}

/// What the image says of itself. Its date is that of the commit, unless `SOURCE_DATE_EPOCH` gives another.
fn labels(root: &Path) -> Result<Map<String, Value>> {
    let revision = git(root, &["rev-parse", "HEAD"]);
    let changed = git(root, &["status", "--porcelain"]).is_some_and(|files| !files.is_empty());
    let seconds = std::env::var("SOURCE_DATE_EPOCH").ok();
    let seconds = seconds.or_else(|| git(root, &["log", "-1", "--format=%ct"]));
    let seconds = seconds.as_deref().unwrap_or("0").parse().context("reading SOURCE_DATE_EPOCH")?;
    let created = jiff::Timestamp::from_second(seconds)?;
    let mut labels = Map::new();
    let mut label = |name: &str, value: String| {
        labels.insert(format!("org.opencontainers.image.{name}"), value.into());
    };
    label("title", "nagaya".to_owned());
    label(
        "description",
        "One host process for Kubernetes controllers written as WebAssembly components.".to_owned(),
    );
    label("version", env!("CARGO_PKG_VERSION").to_owned());
    label("licenses", "Apache-2.0".to_owned());
    label("created", created.to_string());
    if let Some(revision) = revision {
        label("revision", if changed { format!("{revision}-changed") } else { revision });
    }
    Ok(labels)
}

/// What git says of the sources, if they come from it.
fn git(root: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).current_dir(root).output().ok()?;
    let told = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| told.trim().to_owned())
}
