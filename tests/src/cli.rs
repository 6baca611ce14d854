//! The command line, as a person would use it: the real binary with a kubeconfig.

use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::process::Command;
use tokio::time::timeout;

use crate::component;

/// Longer than any `--timeout` that tests pass.
const ENDS_WITHIN: Duration = Duration::from_secs(330);

/// Who uses it and which host it sends to.
#[derive(Debug, Clone)]
pub struct Cli {
    /// The user's kubeconfig.
    pub kubeconfig: PathBuf,
    /// The host's URL; empty: the host is reached through the API server.
    pub host: String,
}

impl Cli {
    /// Runs `nagaya` with these arguments; what it printed.
    pub async fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = self.output(arguments).await?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        let status = output.status;
        ensure!(status.success(), "nagaya {}: {status}\n{out}{err}", arguments.join(" "));
        Ok(out)
    }

    /// The same, whatever its exit status.
    pub async fn output(&self, arguments: &[&str]) -> Result<Output> {
        let output =
            self.command(arguments).await?.stdout(Stdio::piped()).stderr(Stdio::piped()).output();
        let output = timeout(ENDS_WITHIN, output).await;
        let output =
            output.with_context(|| format!("nagaya {} does not end", arguments.join(" ")))?;
        output.context("starting nagaya")
    }

    /// The command, ready to start: its output goes where this process's does.
    pub async fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(component::binary().await?);
        command
            .args(arguments)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("NAGAYA_HOST", &self.host)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        Ok(command)
    }
}
