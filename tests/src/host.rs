//! The real host: the binary, under its own ServiceAccount, on ports of its own choice.
//!
//! It ends with its owner, even with one that is killed: a small shell waits for the end of a pipe
//! that only this process holds, and then kills the host (`a_killed_owner_leaves_no_host`).

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use kube::api::PostParams;
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep};

use crate::account::HOST;
use crate::code;
use crate::component;
use crate::control_plane::{ControlPlane, User};
use crate::log::{Line, Log};
use crate::standstill;
use crate::wait::within;

/// A busy machine starts it in a few seconds.
const START_WITHIN: Duration = Duration::from_secs(60);
/// Its runs may take 30 s to drain, and then it has connections to close.
const STOP_WITHIN: Duration = Duration::from_secs(45);

/// Where a host lives and what it serves.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Its log goes here as `host.log`, its data under `data/`. The same folder again is a restart.
    pub folder: PathBuf,
    /// Who it is.
    pub kubeconfig: PathBuf,
    /// Which WasmControllers are its own; none: all.
    pub controllers: Option<String>,
    /// Further arguments of `nagaya serve`.
    pub arguments: Vec<String>,
    /// Further variables of its environment, such as the failpoint `NAGAYA_FAIL`.
    pub environment: Vec<(String, String)>,
    /// A command in front of it, such as `unshare`, that becomes the host in its own process.
    pub wrapper: Vec<String>,
}

/// A running host, killed when dropped.
#[derive(Debug)]
pub struct Host {
    child: Child,
    _lifeline: Lifeline,
    log: Log,
    command: String,
    api: String,
    probes: String,
    metrics: String,
    http: reqwest::Client,
}

impl Host {
    /// Starts it and waits until it is ready.
    pub async fn start(options: &Options) -> Result<Self> {
        let mut host = Self::spawn(options).await?;
        host.await_readiness().await?;
        Ok(host)
    }

    /// Starts it and waits until it listens, which it does before it is ready.
    pub async fn start_unready(options: &Options) -> Result<Self> {
        let mut host = Self::spawn(options).await?;
        within(START_WITHIN, "the host listens", async || {
            host.find_addresses()?;
            ensure!(!host.probes.is_empty(), "{}", host.log.tail(20));
            Ok(())
        })
        .await?;
        Ok(host)
    }

    async fn spawn(options: &Options) -> Result<Self> {
        let binary = component::binary().await?;
        code::lend(&options.folder.join("data"))?;
        let log = options.folder.join("host.log");
        let file = File::options().create(true).append(true).open(&log);
        let file = file.with_context(|| format!("opening {}", log.display()))?;
        let log = Log::open(log).from_now()?;
        let arguments = arguments(options);
        let command = format!("nagaya {}", arguments.join(" "));
        let program = binary.to_string_lossy().into_owned();
        let line: Vec<_> = options.wrapper.iter().chain([&program]).collect();
        let mut child = Command::new(line[0])
            .args(&line[1..])
            .args(&arguments)
            .env_remove("KUBECONFIG")
            .envs(options.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(file.try_clone().context("duplicating the log's handle")?)
            .stderr(file)
            // A group of its own: Ctrl-C is for its owner, who then stops it politely.
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {}", binary.display()))?;
        let lifeline = match Lifeline::of(&child) {
            Ok(lifeline) => lifeline,
            Err(error) => {
                child.kill().context("ending a host without a lifeline")?;
                return Err(error);
            }
        };
        let http = client()?;
        Ok(Self {
            child,
            _lifeline: lifeline,
            log,
            command,
            api: String::new(),
            probes: String::new(),
            metrics: String::new(),
            http,
        })
    }

    async fn await_readiness(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_WITHIN;
        loop {
            self.find_addresses()?;
            if !self.probes.is_empty() && self.is_ready().await {
                return Ok(());
            }
            let what = match self.ended()? {
                Some(status) => format!("it ended with {status}"),
                None if Instant::now() > deadline => {
                    format!("it is not ready after {START_WITHIN:?}")
                }
                None => {
                    sleep(Duration::from_millis(25)).await;
                    continue;
                }
            };
            bail!("the host does not start: {what}\n{}\n{}", self.command, self.log.tail(20));
        }
    }

    fn find_addresses(&mut self) -> Result<()> {
        for line in self.log.lines()?.iter().filter(|line| line.message() == "listening") {
            let address = format!("http://{}", line.text("address").unwrap_or_default());
            match line.text("server") {
                Some("api") => self.api = address,
                Some("probes") => self.probes = address,
                Some("metrics") => self.metrics = address,
                _ => (),
            }
        }
        Ok(())
    }

    async fn is_ready(&self) -> bool {
        let answer = self.http.get(format!("{}/readyz", self.probes)).send().await;
        answer.is_ok_and(|answer| answer.status().is_success())
            && !self.api.is_empty()
            && !self.metrics.is_empty()
    }

    /// Where uploads go.
    pub fn api(&self) -> &str {
        &self.api
    }

    /// The command that started it.
    pub fn command(&self) -> &str {
        &self.command
    }

    /// What it logged since it was started.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Waits for a line of the log.
    pub async fn logged(
        &self,
        limit: Duration,
        what: &str,
        wanted: impl Fn(&Line) -> bool,
    ) -> Result<Line> {
        within(limit, what, async || {
            let lines = self.log.lines()?;
            let last = lines.last().map(ToString::to_string).unwrap_or_default();
            lines.into_iter().find(&wanted).with_context(|| format!("the log ends with {last}"))
        })
        .await
    }

    /// Asks `/healthz` or `/readyz`: the status.
    pub async fn probe(&self, path: &str) -> Result<u16> {
        let answer = self.http.get(format!("{}{path}", self.probes)).send().await;
        Ok(answer.with_context(|| format!("asking {path}"))?.status().as_u16())
    }

    /// The page of metrics.
    pub async fn metrics(&self) -> Result<Metrics> {
        let answer = self.http.get(format!("{}/metrics", self.metrics)).send().await;
        let page = answer.context("asking for metrics")?.error_for_status()?.text().await;
        Ok(Metrics(page.context("reading metrics")?))
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().context("looking after the host")
    }

    /// Asks it to end (SIGTERM) and waits; the error says so if it did not end well.
    pub async fn stop(&mut self) -> Result<()> {
        if self.ended()?.is_none() {
            self.signal(Signal::TERM).context("asking the host to end")?;
        }
        let ended = async || self.ended()?.context("it still runs");
        let status = within(STOP_WITHIN, "the host ends after SIGTERM", ended).await?;
        ensure!(status.success(), "the host ended with {status}\n{}", self.log.tail(20));
        Ok(())
    }

    /// Stops its threads where they are, until [`Host::thaw`] (SIGSTOP).
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::STOP).context("freezing the host")?;
        standstill::wait(self.child.id())
    }

    /// Lets it go on (SIGCONT).
    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::CONT).context("thawing the host")
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        Ok(kill_process(pid.context("a process id out of range")?, signal)?)
    }

    /// Whether it holds its deployment's Lease.
    pub async fn leads(&self) -> Result<bool> {
        Ok(self.metrics().await?.sum("leader_election_master_status", &[]) == 1.0)
    }

    /// Kills it: no drain, no goodbye.
    pub fn kill(&mut self) -> Result<()> {
        if self.ended()?.is_none() {
            self.child.kill().context("killing the host")?;
            self.child.wait().context("waiting for the killed host")?;
        }
        Ok(())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client for the host's plain HTTP; proxies of the environment are not for it.
pub fn client() -> Result<reqwest::Client> {
    let builder = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(30));
    builder.build().context("building an HTTP client")
}

fn arguments(options: &Options) -> Vec<String> {
    let mut arguments = vec!["serve".to_owned()];
    let mut add = |name: &str, value: &str| arguments.extend([name.to_owned(), value.to_owned()]);
    add("--kubeconfig", &options.kubeconfig.to_string_lossy());
    add("--data-dir", &options.folder.join("data").to_string_lossy());
    for name in ["--api-bind-address", "--health-probe-bind-address", "--metrics-bind-address"] {
        add(name, "127.0.0.1:0");
    }
    add("--log-format", "json");
    if let Some(selector) = &options.controllers {
        add("--controllers", selector);
    }
    arguments.extend(options.arguments.iter().cloned());
    arguments
}

/// Kills the host once this process is gone.
#[derive(Debug)]
struct Lifeline {
    shell: Child,
    _pipe: Option<ChildStdin>,
}

impl Lifeline {
    fn of(child: &Child) -> Result<Self> {
        let mut shell = Command::new("sh")
            .args(["-c", "cat; kill -KILL \"$1\"", "lifeline", &child.id().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("starting the shell that looks after the host")?;
        // Out of the child: `Child::wait` closes what it finds there.
        let pipe = shell.stdin.take();
        Ok(Self { shell, _pipe: pipe })
    }
}

impl Drop for Lifeline {
    fn drop(&mut self) {
        // Before the pipe closes: the host's number may be another process's by now. `cat` then
        // ends with the pipe.
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

/// A page of metrics.
#[derive(Debug, Clone)]
pub struct Metrics(String);

impl Metrics {
    /// The page.
    pub fn page(&self) -> &str {
        &self.0
    }

    /// The sum of the samples called `name` that carry all of `labels`.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let labels: Vec<_> =
            labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
        let samples = self.0.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (found, set) = series.split_once('{').unwrap_or((series, ""));
            let matches = found == name && labels.iter().all(|label| set.contains(label.as_str()));
            matches.then(|| value.parse::<f64>().ok())?
        });
        samples.sum()
    }
}

/// Writes a kubeconfig of the host's own account, by a token as a pod would have it.
///
/// `name` must be one nobody else uses on a shared control plane.
pub async fn kubeconfig(control_plane: &ControlPlane, name: &str) -> Result<PathBuf> {
    control_plane.kubeconfig_with_token(name, &token(control_plane).await?)
}

/// A new token of the host's own account.
pub async fn token(control_plane: &ControlPlane) -> Result<String> {
    token_of(control_plane, HOST).await
}

/// A new token of an account: namespace and name.
pub async fn token_of(
    control_plane: &ControlPlane,
    (namespace, account): (&str, &str),
) -> Result<String> {
    let admin = control_plane.client(User::Admin).await?;
    let accounts = Api::<ServiceAccount>::namespaced(admin, namespace);
    let spec = TokenRequestSpec { expiration_seconds: Some(86_400), ..TokenRequestSpec::default() };
    let request = TokenRequest { spec, ..TokenRequest::default() };
    let token = accounts.create_token_request(account, &PostParams::default(), &request).await;
    let token = token.with_context(|| format!("asking for a token of {namespace}/{account}"))?;
    Ok(token.status.context("the server gave no token")?.token)
}

/// Whether a process of this id runs; zombies do not.
pub fn is_running(id: u32) -> bool {
    let status = std::fs::read_to_string(Path::new("/proc").join(id.to_string()).join("stat"));
    // The state stands behind the name, which may have spaces and parentheses of its own.
    status.is_ok_and(|text| {
        text.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_found_by_name_and_labels() {
        let page =
            "# TYPE a counter\na_total{x=\"1\",y=\"2\"} 3\na_total{x=\"1\",y=\"4\"} 5\nb 7.5\n";
        let metrics = Metrics(page.to_owned());
        assert_eq!(metrics.sum("a_total", &[("x", "1")]), 8.0);
        assert_eq!(metrics.sum("a_total", &[("y", "4")]), 5.0);
        assert_eq!(metrics.sum("b", &[]), 7.5);
        assert_eq!(metrics.sum("a", &[]), 0.0);
    }
}
