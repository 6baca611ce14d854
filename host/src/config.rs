//! What the host was told to be: plain, validated values.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// The host's configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The kubeconfig; `None`: what the environment or the pod offers.
    pub kubeconfig: Option<PathBuf>,
    /// Where modules and compiled code are kept.
    pub data: PathBuf,
    /// Where uploads are taken.
    pub api: SocketAddr,
    /// Where `/healthz` and `/readyz` are.
    pub probes: SocketAddr,
    /// Where `/metrics` is.
    pub metrics: SocketAddr,
    /// A write of a guest takes no longer: what lies between a Lease's last renewal and its expiry (R68).
    pub write_timeout: Duration,
    /// Only WasmControllers with these labels.
    pub controllers: Option<String>,
    /// Runs at the same time.
    pub slots: u32,
    /// No guest may have more memory, in bytes.
    pub memory_ceiling: usize,
    /// No uploaded module may be larger, in bytes.
    pub max_module: u64,
}
