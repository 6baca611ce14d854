//! What a component in a file says it needs, found out on this machine as the host would: compiled by a child, and described in the
//! sandbox.

use std::{fs, path::Path, sync::Arc};

use anyhow::{Context, Result};
use tokio::{runtime::Handle, sync::watch};

use super::component;
use crate::{
    cluster::Refusing,
    journal::Speaker,
    metrics::{Metrics, QueueStats, Watched},
    model::{digest::Digest, manifest::Manifest},
    sandbox::{Chance, ControllerLog, Run, RunLimits, Sandbox, SandboxConfig},
};

/// A component that has described itself.
pub(super) struct Described {
    pub(super) bytes: Arc<[u8]>,
    pub(super) digest: Digest,
    pub(super) manifest: Manifest,
}

/// Nobody waits here.
struct NoQueue;

impl Watched for NoQueue {
    fn stats(&self) -> QueueStats {
        QueueStats::default()
    }
}

/// Reads `file` and lets it describe itself with this config, a text of JSON.
pub(super) async fn described(file: &Path, config: Option<&str>) -> Result<Described> {
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    component::check(&bytes).with_context(|| format!("cannot use {}", file.display()))?;
    let config = config.unwrap_or("null");
    serde_json::from_str::<serde_json::Value>(config).context("--config is no JSON")?;
    let (digest, bytes) = (Digest::of(&bytes), Arc::<[u8]>::from(bytes));
    // Code that is loaded from here runs in this process: nobody else may have put it there.
    let folder = tempfile::tempdir().context("cannot make a folder for compiled code")?;
    let slots = SandboxConfig { slots: 1, ..SandboxConfig::new(folder.path().join("code")) };
    let sandbox = Sandbox::start(slots, Handle::current()).context("cannot start a sandbox")?;
    eprintln!("compiling {} as the host would", file.display());
    let manifest = manifest(&sandbox, (&bytes, &digest), config)
        .await
        .with_context(|| format!("{} cannot be described", file.display()))?;
    Ok(Described { bytes, digest, manifest })
}

async fn manifest(
    sandbox: &Sandbox,
    (bytes, digest): (&Arc<[u8]>, &Digest),
    config: &str,
) -> Result<Manifest> {
    let program = sandbox.compile(bytes.clone(), digest, "cli").await?;
    let metrics = Metrics::default();
    let queue: std::sync::Weak<NoQueue> = std::sync::Weak::new();
    let log = ControllerLog::silent(metrics.controller("cli/described", queue));
    let run = Run {
        cluster: Arc::new(Refusing),
        team: "cli".into(),
        behind: false,
        chance: Chance::Live,
        config: config.into(),
        limits: RunLimits::default(),
        stop: watch::channel(false).1,
        span: tracing::Span::none(),
        speaker: Speaker::default(),
        log: Arc::new(log),
    };
    Ok(sandbox.describe(&program, run).await?)
}
