//! What the host was told to be: plain, validated values.

use std::{net::SocketAddr, path::PathBuf};

use crate::{
    http::aggregated,
    kubeconfig::Source,
    leader::lease::{LeaseName, Profile},
    modules::{oci, policy::Policy},
};

/// The host's configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which kubeconfig says where the API server is.
    pub kubeconfig: Source,
    /// Where modules and compiled code are kept.
    pub data: PathBuf,
    /// Where uploads are taken.
    pub api: SocketAddr,
    /// Where `/healthz` and `/readyz` are.
    pub probes: SocketAddr,
    /// Where `/metrics` is.
    pub metrics: SocketAddr,
    /// Where the API server finds the host's own API; `None`: it is not served.
    pub aggregated: Option<aggregated::Settings>,
    /// Only WasmControllers with these labels.
    pub controllers: Option<String>,
    /// The Lease that decides which host of a deployment works.
    pub lease: LeaseName,
    /// Its times.
    pub lease_profile: Profile,
    /// Runs at the same time.
    pub slots: u32,
    /// No guest may have more memory, in bytes.
    pub memory_ceiling: usize,
    /// The memory of all guests together, in bytes; `None`: a part of what the container or the machine has.
    pub guest_memory: Option<usize>,
    /// Bytes of the caches that one team uses; `None`: a part of what the container or the machine has.
    pub team_caches: Option<usize>,
    /// No module may be larger, in bytes.
    pub max_module: u64,
    /// What the platform says of registries.
    pub registries: oci::Settings,
    /// What it demands of components.
    pub policy: Policy,
}
