//! Starts the programs, waits until the server is ready, and stops them in the one order that works.

use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use super::Options;
use super::flags;
use super::process::{Launch, Process};
use super::program::{Program, Programs};

/// An empty server is ready after 3 to 5 s, on a busy machine after 6.
const READY_WITHIN: Duration = Duration::from_mins(1);
/// Short beside the seconds of the start, and the server is not yet listening most of the time.
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// The port is free when chosen; another process may take it before the server does.
const PORT_ATTEMPTS: u32 = 3;

/// The running programs of one instance. Dropped, they are killed in the order of the fields.
#[derive(Debug)]
pub(super) struct Running {
    manager: Option<Process>,
    apiserver: Process,
    etcd: Process,
    probe: Probe,
}

impl Running {
    /// Starts etcd and the server together, waits for readiness, then starts the controller manager.
    pub(super) async fn start(
        programs: &Programs,
        folder: &Path,
        ca_pem: &str,
        options: &Options,
    ) -> Result<Self> {
        let etcd = Launch::new(programs, Program::Etcd, flags::etcd(), folder).start()?;
        let apiserver = |port| {
            let arguments = flags::apiserver(port, options);
            Launch::new(programs, Program::ApiServer, arguments, folder).start()
        };
        let port = free_port()?;
        let mut running = Self {
            manager: None,
            apiserver: apiserver(port)?,
            etcd,
            probe: Probe::new(port, ca_pem)?,
        };
        let mut attempts = 1;
        while let Err(error) = running.ready().await {
            if attempts == PORT_ATTEMPTS || !running.port_was_taken() {
                return Err(error);
            }
            attempts += 1;
            let port = free_port()?;
            running.apiserver = apiserver(port)?;
            running.probe = Probe::new(port, ca_pem)?;
        }
        Ok(running)
    }

    /// The controller manager reads the server's configuration as it starts: only once it is ready.
    pub(super) fn start_manager(&mut self, programs: &Programs, folder: &Path) -> Result<()> {
        let program = Program::ControllerManager;
        let launch = Launch::new(programs, program, flags::controller_manager(), folder);
        self.manager = Some(launch.start()?);
        Ok(())
    }

    pub(super) fn url(&self) -> &str {
        &self.probe.url
    }

    /// Waits for `/readyz`, which includes the roles of RBAC, while both processes live.
    async fn ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            for process in [&mut self.etcd, &mut self.apiserver] {
                if let Some(status) = process.ended()? {
                    let (name, said) = (process.name(), process.last_lines());
                    bail!("{name} ended with {status} before the server was ready:\n{said}");
                }
            }
            if self.probe.is_ready().await {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!(
                    "the server is not ready after {READY_WITHIN:?}\nkube-apiserver:\n{}\netcd:\n{}",
                    self.apiserver.last_lines(),
                    self.etcd.last_lines()
                );
            }
            sleep(LOOK_EVERY).await;
        }
    }

    fn port_was_taken(&mut self) -> bool {
        matches!(self.apiserver.ended(), Ok(Some(_)))
            && self.apiserver.last_lines().contains("address already in use")
    }

    fn process(&mut self, program: Program) -> Result<&mut Process> {
        match program {
            Program::Etcd => Ok(&mut self.etcd),
            Program::ApiServer => Ok(&mut self.apiserver),
            Program::ControllerManager => {
                self.manager.as_mut().context("the controller manager was not started")
            }
        }
    }

    pub(super) fn freeze(&mut self, program: Program) -> Result<()> {
        self.process(program)?.freeze()
    }

    pub(super) fn signal(&mut self, program: Program, signal: Signal) -> Result<()> {
        self.process(program)?.signal(signal)
    }

    /// Kills `program` and waits for its end.
    pub(super) async fn kill(&mut self, program: Program) -> Result<()> {
        let process = self.process(program)?;
        process.signal(Signal::KILL)?;
        while process.ended()?.is_none() {
            sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Starts a killed program as it was, on the same port and data.
    pub(super) async fn revive(&mut self, program: Program) -> Result<()> {
        let process = self.process(program)?;
        *process = process.launch().clone().start()?;
        self.ready().await
    }

    /// Controller manager, server, etcd: the other order hangs, a server without its etcd does not
    /// end for minutes.
    pub(super) async fn stop(self) -> Result<()> {
        if let Some(manager) = self.manager {
            manager.stop().await?;
        }
        self.apiserver.stop().await?;
        self.etcd.stop().await
    }
}

/// Asks one server whether it is ready, which needs no credentials.
#[derive(Debug)]
struct Probe {
    url: String,
    client: reqwest::Client,
}

impl Probe {
    fn new(port: u16, ca_pem: &str) -> Result<Self> {
        let ca = reqwest::Certificate::from_pem(ca_pem.as_bytes()).context("reading the CA")?;
        let client = reqwest::Client::builder()
            // Only this CA: at this port might be another instance, until ours has it.
            .tls_certs_only([ca])
            .no_proxy()
            .timeout(Duration::from_secs(2))
            .build()
            .context("building the probe's client")?;
        Ok(Self { url: format!("https://127.0.0.1:{port}"), client })
    }

    async fn is_ready(&self) -> bool {
        let answer = self.client.get(format!("{}/readyz", self.url)).send().await;
        answer.is_ok_and(|response| response.status().is_success())
    }
}

/// A port nobody has now; the server cannot be told to choose one itself.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("looking for a free port")?;
    Ok(listener.local_addr()?.port())
}
