//! `nagaya push`: names a component in a WasmController, sends its bytes and waits until it is staged.

use std::{ops::ControlFlow, path::PathBuf};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use tokio::time::Instant;

use super::{
    Patience,
    cluster::Cluster,
    component,
    edit::{self, Seen},
    print::{Progress, short},
    registry, say,
    upload::{Host, Sent},
    wait::{self, Staged},
};
use crate::model::digest::Digest;

/// What to push, and where.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  nagaya push website target/wasm32-wasip2/release/website.wasm
  nagaya push website website.wasm --host http://nagaya.example.com:7420 --timeout 5m
  nagaya push website website.wasm --to ghcr.io/team/website:1.2

It writes spec.module.digest of the WasmController, which must exist, and then sends the bytes through the API server, with your
kubeconfig and nothing else; the roles edit and admin of the namespace are enough. With --to it writes them to an
OCI registry instead, and names the artifact in spec.module.image by its digest; the login is the one of `docker login`. A
first revision goes live as soon as it is staged; a later one waits as the candidate for `nagaya promote`.")]
pub(super) struct Args {
    /// The WasmController
    name: String,
    /// The component, a.wasm file
    file: PathBuf,
    /// A host's own address, for example from a port-forward [default: through the API server, by run.nagaya.dev]
    #[arg(long, env = "NAGAYA_HOST", value_name = "URL")]
    host: Option<String>,
    /// Write the component to this registry, repository and tag instead, from where the host pulls it
    #[arg(long, value_name = "IMAGE")]
    to: Option<String>,
    #[command(flatten)]
    patience: Patience,
}

/// Pushes and says what is live, what waits and what to type next.
pub(super) async fn run(args: Args, cluster: Cluster) -> Result<()> {
    let deadline = Instant::now() + args.patience.timeout;
    let shown = args.file.display();
    let bytes = std::fs::read(&args.file).with_context(|| format!("cannot read {shown}"))?;
    component::check(&bytes).with_context(|| format!("cannot push {shown}"))?;
    let digest = Digest::of(&bytes);
    let bytes = Bytes::from(bytes);

    let push = Push { cluster: &cluster, name: &args.name, deadline, progress: Progress::new() };
    let Some(seen) = cluster.see(&args.name).await? else {
        bail!("{}", missing(&args.name, cluster.namespace(), &digest));
    };
    if let Some(to) = &args.to {
        return by_registry(push, (to, &bytes, &digest), &seen).await;
    }
    let host = match args.host.as_deref() {
        None | Some("") => Host::through(&cluster),
        Some(url) => Host::at(url)?,
    };
    host.reach(&digest).await?;
    let (plan, controller) = cluster.make_so(&seen, |seen| Ok(edit::push(seen, &digest))).await?;
    let generation = controller.metadata.generation.unwrap_or_default();
    let revision = plan.revision();
    push.progress
        .note(&format!("{revision} is the revision of {shown} ({})", short(&digest.to_string())));

    push.noticed(generation, revision).await?;
    let sent = tokio::select! {
        biased;
        sent = host.send(&digest, &bytes, deadline, &push.progress) => Some(sent?),
        // A standby takes no bytes, but those who work may have them from before.
        staged = push.staged_elsewhere(&host, generation, revision) => {
            staged?;
            None
        }
    };
    push.progress.note(match sent {
        Some(Sent::Now) => "the component is stored",
        Some(Sent::Before) => "the host has the component already",
        None => "this host takes no uploads now; the one that works has the component already",
    });
    let (staged, seen) = push.staged(generation, revision).await?;
    drop(push);
    say(&summary(&seen, revision, staged, cluster.namespace()))
}

/// Writes the component to a registry, and waits until the host has pulled and staged it.
async fn by_registry(
    push: Push<'_>,
    (to, bytes, digest): (&str, &Bytes, &Digest),
    seen: &Seen,
) -> Result<()> {
    push.progress.wait(format!("writing to {to}"));
    let image = registry::write(to, bytes).await?.to_string();
    push.progress.note(&format!("{image} has the component"));
    let wanted = |seen: &Seen| Ok(edit::push_image(seen, &image, digest));
    let (plan, controller) = push.cluster.make_so(seen, wanted).await?;
    let generation = controller.metadata.generation.unwrap_or_default();
    push.noticed(generation, plan.revision()).await?;
    let (staged, seen) = push.staged(generation, plan.revision()).await?;
    let namespace = push.cluster.namespace();
    drop(push.progress);
    say(&summary(&seen, plan.revision(), staged, namespace))
}

struct Push<'a> {
    cluster: &'a Cluster,
    name: &'a str,
    deadline: Instant,
    progress: Progress,
}

impl Push<'_> {
    /// Waits until the host has read the spec: before that it refuses the bytes.
    async fn noticed(&self, generation: i64, revision: &str) -> Result<()> {
        self.progress.wait("waiting for the host to read the WasmController");
        let mut last = None;
        let waited = self.cluster.until(self.name, self.deadline, |seen| {
            last = Some(seen.clone());
            Ok(wait::noticed(seen, generation))
        });
        if waited.await?.is_none() {
            bail!("{}", overdue(last.as_ref(), generation, revision));
        }
        Ok(())
    }

    /// Waits until a host other than `host`, which takes nothing, has staged the revision; says nothing meanwhile.
    async fn staged_elsewhere(&self, host: &Host, generation: i64, revision: &str) -> Result<()> {
        host.passes().await;
        let is_staged = |seen: &Seen| Ok(wait::staged(seen, revision)?);
        match self.cluster.until(self.name, self.deadline, is_staged).await? {
            Some(_) => Ok(()),
            None => bail!("{revision} of generation {generation} is not staged yet"),
        }
    }

    /// Waits until the revision is staged, and shows what happens to it meanwhile.
    async fn staged(&self, generation: i64, revision: &str) -> Result<(Staged, Seen)> {
        let (mut last, mut said) = (None, String::new());
        let waited = self.cluster.until(self.name, self.deadline, |seen| {
            last = Some(seen.clone());
            let answer = wait::staged(seen, revision)?;
            let news = wait::news(seen, revision);
            if answer.is_continue() && news != said {
                self.progress.wait(&news);
                said = news;
            }
            Ok(match answer {
                ControlFlow::Break(staged) => ControlFlow::Break((staged, seen.clone())),
                ControlFlow::Continue(()) => ControlFlow::Continue(()),
            })
        });
        match waited.await? {
            Some(staged) => Ok(staged),
            None => bail!(
                "{revision} is not staged yet: {}",
                overdue(last.as_ref(), generation, revision)
            ),
        }
    }
}

fn overdue(last: Option<&Seen>, generation: i64, revision: &str) -> String {
    match last {
        Some(seen) => wait::overdue(seen, generation, revision),
        None => "the API server did not answer in time".to_owned(),
    }
}

/// What is live, what waits, and the next command.
fn summary(seen: &Seen, revision: &str, staged: Staged, namespace: &str) -> String {
    let name = seen.name();
    let status = seen.status();
    let live = status.active.as_deref().unwrap_or("nothing");
    let (candidate, next) = match staged {
        Staged::Live => (
            status.candidate.as_deref().unwrap_or("none").to_owned(),
            format!("nagaya get {name} -n {namespace}"),
        ),
        Staged::Candidate => (revision.to_owned(), format!("nagaya promote {name} -n {namespace}")),
        Staged::Rejected => (
            format!("none; {revision} was rejected before, and a push does not take that back"),
            format!("nagaya promote {name} -n {namespace} --revision {revision}"),
        ),
    };
    format!("live:       {live}\ncandidate:  {candidate}\nnext:       {next}\n")
}

/// That the controller is missing, with one that can be applied.
fn missing(name: &str, namespace: &str, digest: &Digest) -> String {
    format!(
        "there is no WasmController {name} in namespace {namespace}; make it, then push again:\n
kubectl apply -f - <<'EOF'
apiVersion: nagaya.dev/v1alpha1
kind: WasmController
metadata:
  name: {name}
  namespace: {namespace}
spec:
  serviceAccountName: {name}      # must exist, and says what the controller may do
  module:
    digest: {digest}
  scope:
    namespaces: [{namespace}]     # without it: the whole cluster
EOF"
    )
}

#[cfg(test)]
mod tests {
    use super::{
        super::edit::tests::{seen, v},
        *,
    };

    const OLD: &str = "sha256:1111111111111111111111111111111111111111111111111111111111111111";
    const NEW: &str = "sha256:2222222222222222222222222222222222222222222222222222222222222222";

    #[test]
    fn the_summary_ends_in_the_next_command() {
        let mut seen = seen();
        let text = summary(&seen, &v(NEW), Staged::Candidate, "demo");
        assert!(text.starts_with(&format!("live:       {}\n", v(OLD))), "{text}");
        assert!(text.ends_with("nagaya promote web -n demo\n"), "{text}");
        let text = summary(&seen, &v(NEW), Staged::Rejected, "demo");
        assert!(
            text.ends_with(&format!("nagaya promote web -n demo --revision {}\n", v(NEW))),
            "{text}"
        );
        seen.controller.status.as_mut().unwrap().candidate = None;
        let text = summary(&seen, &v(OLD), Staged::Live, "demo");
        assert!(text.contains("candidate:  none\nnext:       nagaya get web"), "{text}");
    }

    #[test]
    fn a_missing_controller_is_shown_as_yaml_that_makes_it() {
        let text = missing("web", "demo", &Digest::of(b"x"));
        let yaml = text.split("<<'EOF'\n").nth(1).unwrap().trim_end_matches("EOF");
        let object: serde_json::Value = serde_saphyr::from_str(yaml).unwrap();
        let controller: crate::model::crd::WasmController = serde_json::from_value(object).unwrap();
        assert_eq!(controller.metadata.namespace.as_deref(), Some("demo"));
        assert_eq!(controller.spec.module.digest, Digest::of(b"x").to_string());
    }
}
