//! `nagaya serve`: runs the host.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use super::logging;
use crate::{
    app::App,
    config::Config,
    fail,
    http::aggregated,
    kubeconfig::Source,
    leader::lease::{LeaseName, Profile},
    model::{crd::LimitsSpec, digest::Digest},
    modules::oci,
};

/// No uploaded module may be larger: a Python component has 18 MiB.
const MAX_MODULE: u64 = 32 << 20;

/// How the host runs.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Folder for uploaded modules and compiled code; on a disk, and the host's alone
    #[arg(long, value_name = "DIR", env = "NAGAYA_DATA_DIR", default_value = "/var/lib/nagaya")]
    data_dir: PathBuf,
    /// Where uploads are taken
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7420")]
    api_bind_address: SocketAddr,
    /// Where the API server reaches run.nagaya.dev, the host's own API [default: it is not served]
    #[arg(long, value_name = "ADDRESS")]
    aggregated_bind_address: Option<SocketAddr>,
    /// The Service that the `APIService` v1alpha1.run.nagaya.dev names; a Secret of that name keeps the CA
    #[arg(long, value_name = "NAME.NAMESPACE.svc", default_value = "nagaya-api.nagaya-system.svc")]
    aggregated_service: aggregated::Service,
    /// Under which address other hosts of the deployment reach it [default: that of --aggregated-bind-address]
    #[arg(long, value_name = "IP", env = "NAGAYA_POD_IP")]
    aggregated_advertise_ip: Option<IpAddr>,
    /// Where /healthz and /readyz are
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8081")]
    health_probe_bind_address: SocketAddr,
    /// Where /metrics is
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    metrics_bind_address: SocketAddr,
    /// Keep only WasmControllers with these labels, so that several hosts can share a cluster
    #[arg(long, value_name = "SELECTOR")]
    controllers: Option<String>,
    /// The Lease that decides which host of a deployment works, as NAME or NAMESPACE/NAME; hosts of one deployment
    /// share it and their data folder [default: nagaya, or nagaya- and a hash of --controllers]
    #[arg(long, value_name = "LEASE")]
    lease: Option<LeaseName>,
    /// How soon another host takes over from a dead one: within 22 s, or within 10 s for twice the requests
    #[arg(long, value_name = "PROFILE", default_value = "standard")]
    lease_profile: LeaseProfile,
    /// Runs at the same time, of all controllers together
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=256))]
    slots: u32,
    /// The largest limits.memory that a controller may ask for
    #[arg(long, value_name = "SIZE", default_value = "64Mi", value_parser = size)]
    memory_ceiling: usize,
    /// Memory of all guests together; one team gets three quarters of it [default: a quarter to two thirds of what the
    /// container or the machine has, after the host's own part and the compiler's]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    guest_memory: Option<usize>,
    /// Memory of the watch caches that one team uses; of a cache that several teams share, each is charged its part
    /// [default: an eighth of what the container or the machine has]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    team_caches: Option<usize>,
    /// A YAML file that says what is to be known of registries: mirrors, authorities, plain HTTP, and whether images of others are
    /// refused (docs/platform.md#registries)
    #[arg(long, value_name = "FILE")]
    registries: Option<PathBuf>,
    /// A YAML file that says who must have signed the components of which namespaces; read at the start
    /// (docs/platform.md#signatures)
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// How log lines look; the environment variable `NAGAYA_LOG` filters them
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log_format: logging::Format,
}

/// The times of the Lease.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum LeaseProfile {
    /// 15, 10 and 2 s, as every Kubernetes component has it
    Standard,
    /// 6, 4 and 1 s
    Fast,
}

const EXAMPLES: &str = "\
Examples:
  nagaya serve --data-dir ./data                                   with your kubeconfig, on loopback
  nagaya serve --controllers team=storage --log-format json        one of several hosts
  NAGAYA_LOG=info,nagaya::watch=debug nagaya serve                 with the story of each watch";

/// Runs the host until SIGTERM or SIGINT, then drains and gives up its Lease: no new runs, the last ones may take 30 s.
pub(super) fn run(args: Args, kubeconfig: Source) -> Result<()> {
    // kube calls each broken connection an error; whoever asked says what it means.
    logging::start(args.log_format, "info,kube_client::client::builder=off");
    if let Ok(point) = std::env::var("NAGAYA_FAIL") {
        fail::arm(&point).context("reading NAGAYA_FAIL")?;
    }
    let config = Config {
        kubeconfig,
        data: args.data_dir,
        api: args.api_bind_address,
        aggregated: args.aggregated_bind_address.map(|bind| aggregated::Settings {
            bind,
            advertise: args.aggregated_advertise_ip,
            service: args.aggregated_service,
        }),
        probes: args.health_probe_bind_address,
        metrics: args.metrics_bind_address,
        lease: args.lease.unwrap_or_else(|| default_lease(args.controllers.as_deref())),
        lease_profile: match args.lease_profile {
            LeaseProfile::Standard => Profile::STANDARD,
            LeaseProfile::Fast => Profile::FAST,
        },
        controllers: args.controllers,
        slots: args.slots,
        memory_ceiling: args.memory_ceiling,
        guest_memory: args.guest_memory,
        team_caches: args.team_caches,
        max_module: MAX_MODULE,
        registries: registries(args.registries.as_deref())?,
        policy: yaml(args.policy.as_deref(), "--policy")?,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_name("control")
        .enable_all()
        .build()
        .context("starting the control runtime")?;
    let worked = runtime.block_on(serve(config));
    runtime.shutdown_background();
    worked
}

async fn serve(config: Config) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let (stop, stopping) = watch::channel(false);
    let app = App::new(config).await?;
    let told = async {
        tokio::select! {
            _ = terminate.recv() => (),
            _ = tokio::signal::ctrl_c() => (),
        }
        tracing::info!("the host drains and stops");
        stop.send_replace(true);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        worked = app.run(stopping) => worked,
        () = told => Ok(()),
    }
}

/// Hosts that keep the same controllers are one deployment.
fn default_lease(controllers: Option<&str>) -> LeaseName {
    let name = match controllers {
        None => "nagaya".to_owned(),
        Some(selector) => format!("nagaya-{}", Digest::of(selector.as_bytes()).short()),
    };
    LeaseName { namespace: None, name }
}

/// What the platform says of registries, and the proxy that the environment names for them.
fn registries(file: Option<&Path>) -> Result<oci::Settings> {
    let mut settings: oci::Settings = yaml(file, "--registries")?;
    let variable = |name: &str| {
        let upper = std::env::var(name).or_else(|_| std::env::var(name.to_lowercase()));
        upper.ok().filter(|value| !value.is_empty())
    };
    settings.proxy = variable("HTTPS_PROXY");
    settings.no_proxy = variable("NO_PROXY");
    Ok(settings)
}

/// What the file of a flag says; without one, what nobody says.
fn yaml<T: Default + DeserializeOwned>(file: Option<&Path>, flag: &str) -> Result<T> {
    let Some(file) = file else { return Ok(T::default()) };
    let shown = file.display();
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("reading {shown}, the file of {flag}"))?;
    serde_saphyr::from_str(&text)
        .with_context(|| format!("{shown}, the file of {flag}, does not say what it should"))
}

/// A size like 64Mi.
fn size(text: &str) -> Result<usize, String> {
    let limits = LimitsSpec { memory: text.to_owned(), ..LimitsSpec::default() };
    let bytes = limits.memory_bytes().map_err(|_| format!("{text:?} is not like 64Mi"))?;
    usize::try_from(bytes).map_err(|_| format!("{text} is more than this machine can address"))
}
