//! `cargo xtask test --node`: the host's image, as it is installed, in pods of a real kubelet.
//!
//! The node, its network and its API server live in namespaces of their own for as long as the test does (`tests/node`).

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use e2e::cargo::cargo;
use e2e::component::BINARY;
use e2e::control_plane::{GIVEN_CLUSTER, locate};
use e2e::helm::Helm;
use serde_json::Value;

use crate::image;

/// The script's word for: this machine gives no namespaces, or no root.
const SKIPPED: i32 = 77;

/// Builds what is needed besides the host, and runs the one test on the node; a text says why it was not run.
pub(crate) async fn run(root: &Path, binary: &Path) -> Result<Option<String>> {
    let test = build_test(root)?;
    let programs = tokio::task::spawn_blocking(|| locate().programs()).await.context("building")?;
    let Ok(programs) = programs else {
        return Ok(Some("there is no control plane of our own".to_owned()));
    };
    // Inside there is no way to build it either.
    tokio::task::spawn_blocking(Helm::find).await??;
    let archive = image::pack_binary(binary)?;
    let mut path = binary.parent().map(Path::as_os_str).unwrap_or_default().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let mut script = Command::new(root.join("tests/node/node.sh"));
    script
        .arg("run")
        .arg("--image")
        .arg(&archive)
        .args(["--", "sh", "-c", &format!("{GIVEN_CLUSTER}=$KUBECONFIG exec \"$@\""), "sh"])
        .arg(&test)
        .args(["--ignored", "--nocapture"])
        .env("NAGAYA_CONTROL_PLANE", programs.folder())
        .env(BINARY, binary)
        .env("PATH", path);
    let status = tokio::task::spawn_blocking(move || script.status()).await?;
    match status.context("running tests/node/node.sh")?.code() {
        Some(0) => Ok(None),
        Some(SKIPPED) => Ok(Some("this machine has no room for a node (see above)".to_owned())),
        other => bail!("the test on the node ended with {other:?}"),
    }
}

/// The test program: inside there is no way to build one.
fn build_test(root: &Path) -> Result<PathBuf> {
    let mut cargo = cargo(root);
    cargo.args(["test", "--locked", "--package", "e2e", "--test", "node", "--no-run"]);
    let output = cargo.arg("--message-format=json").stderr(Stdio::inherit()).output();
    let output = output.context("building the test")?;
    ensure!(output.status.success(), "the test cannot be built");
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    let messages = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut found = messages.filter(|message| message["target"]["name"] == "node");
    let program = found.find_map(|message| message["executable"].as_str().map(PathBuf::from));
    program.context("cargo names no test program")
}
