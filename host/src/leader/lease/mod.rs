//! One Lease decides which of several hosts works: the others keep their caches warm and wait.
//!
//! The elector has an operating-system thread, a runtime and connections of its own, so that neither guests nor
//! requests of teams can hold up a renewal. It publishes a [`Claim`], which ends by itself if the
//! renewals stop. A watch on the Lease tells a follower of a release; polls and the local clock do without it.
//!
//! A Lease is no fence: a request that was already sent may still land. What bounds that are the time limit
//! of a write, which is shorter than the gap between the end of a claim and the next one, and the
//! preconditions of each write.
//!
//! Invariants, on a real server: `f19_a_dead_leader_is_followed_and_nothing_is_lost`,
//! `f20_a_frozen_leader_writes_nothing_when_it_wakes`.

pub mod election;
mod record;

use std::{
    fmt, io,
    net::SocketAddr,
    str::FromStr,
    thread,
    time::{Duration, Instant},
};

use http::Method;
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;
use tokio::sync::{oneshot, watch};

pub use election::Profile;
pub use record::ADDRESS;

use crate::{
    apiserver::{self, ApiServer, Call, Lines, Media, query},
    causes,
    clock::{self, since_boot},
    kubeconfig::Source,
    leader::fence::Claim,
    metrics::Metrics,
};
use election::{Election, Record, Step};
use record::News;

/// How long a host that ends waits for its Lease to be given up; others then take it when it expires.
const RELEASE_LIMIT: Duration = Duration::from_secs(3);
/// A refusal is told again after this many.
const TELL_EVERY: u32 = 30;

/// Which Lease: namespace and name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseName {
    /// `None`: that of the host's own account, else that of the kubeconfig's context.
    pub namespace: Option<String>,
    /// The object's name.
    pub name: String,
}

/// What the elector needs.
#[derive(Clone, Debug)]
pub struct Options {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease.
    pub name: String,
    /// Names this process; no other has ever had the same.
    pub identity: String,
    /// Where other hosts ask this one, which the Lease tells them.
    pub address: Option<SocketAddr>,
    /// Times.
    pub profile: Profile,
    /// How it connects.
    pub kubeconfig: Source,
}

/// The handle of the elector's thread.
#[derive(Debug)]
pub struct Elector {
    release: Option<oneshot::Sender<()>>,
    released: watch::Receiver<bool>,
}

struct Work {
    options: Options,
    api: ApiServer,
    election: Election,
    claim: watch::Sender<Option<Claim>>,
    metrics: Metrics,
    /// Failures in a row.
    failures: u32,
    /// The last epoch that was led, and since when.
    led: Option<(i64, Instant)>,
}

impl FromStr for LeaseName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (namespace, name) = match text.split_once('/') {
            Some((namespace, name)) => (Some(namespace.to_owned()), name),
            None => (None, text),
        };
        let good = |part: &str| {
            let middle = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-".contains(c);
            let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
            part.len() <= 253
                && part.chars().all(middle)
                && ends(part.chars().next())
                && ends(part.chars().last())
        };
        if good(name) && namespace.as_deref().is_none_or(good) {
            return Ok(Self { namespace, name: name.to_owned() });
        }
        Err("a Lease is called NAME or NAMESPACE/NAME, of lower-case letters, digits, - and ."
            .to_owned())
    }
}

impl Elector {
    /// Starts the thread, which tells `claim` what this host holds until [`Elector::release`].
    pub fn start(
        options: Options,
        claim: watch::Sender<Option<Claim>>,
        metrics: Metrics,
    ) -> io::Result<Self> {
        let (release, released) = oneshot::channel();
        let (ended, is_ended) = watch::channel(false);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let work = async move {
            if let Err(error) = elect(options, claim, metrics, released).await {
                tracing::error!(
                    error = causes::all(&error),
                    "the election has ended: it cannot connect to the API server"
                );
            }
            ended.send_replace(true);
        };
        thread::Builder::new().name("lease".to_owned()).spawn(move || runtime.block_on(work))?;
        Ok(Self { release: Some(release), released: is_ended })
    }

    /// Returns when the thread has ended by itself.
    pub fn ended(&self) -> impl Future<Output = ()> + use<> {
        let mut ended = self.released.clone();
        async move {
            let _ = ended.wait_for(|ended| *ended).await;
        }
    }

    /// Gives the Lease up, so that the next host need not wait; all work must have ended before.
    pub async fn release(mut self) {
        drop(self.release.take());
        if tokio::time::timeout(RELEASE_LIMIT, self.ended()).await.is_err() {
            tracing::warn!("the Lease could not be given up in time; it expires by itself");
        }
    }
}

async fn elect(
    options: Options,
    claim: watch::Sender<Option<Claim>>,
    metrics: Metrics,
    release: oneshot::Receiver<()>,
) -> Result<(), apiserver::Error> {
    let api = ApiServer::connect(&options.kubeconfig, "nagaya").await?.counted(&metrics);
    let me = options.identity.clone();
    tracing::info!(lease = %options, identity = me, "waiting for the Lease");
    metrics.leader(&options.name).set(0);
    let election = Election::new(me, options.profile, seed());
    Work { options, api, election, claim, metrics, failures: 0, led: None }.run(release).await;
    Ok(())
}

impl Work {
    async fn run(mut self, mut release: oneshot::Receiver<()>) {
        let mut lease_watch = LeaseWatch::default();
        loop {
            let step = self.election.next(since_boot());
            self.publish();
            let until = self.election.leading().map(|(_, until)| until);
            let acted = async {
                match step {
                    Step::Wait(at) => self.wait(at, &mut lease_watch).await,
                    Step::Read => self.read().await,
                    Step::Write(record) => self.write(record).await,
                }
            };
            // At the deadline of a renewal the claim ends, whatever the request still waits for.
            let ended = tokio::select! {
                biased;
                _ = &mut release => break,
                () = acted => false,
                () = sleep_until(until) => true,
            };
            if ended {
                self.election.failed(since_boot());
            }
        }
        self.claim.send_replace(None);
        self.release().await;
    }

    /// Tells everybody what is held now. The claim of one epoch is one value, whose end moves.
    fn publish(&mut self) {
        self.election.expire(since_boot());
        let leading = self.election.leading();
        let gauge = self.metrics.leader(&self.options.name);
        self.claim.send_if_modified(|claim| match (leading, claim.as_ref()) {
            (Some((epoch, until)), Some(held)) if held.epoch == epoch => {
                held.extend(until);
                false
            }
            (Some((epoch, until)), _) => {
                tracing::info!(lease = %self.options, epoch, "this host leads");
                gauge.set(1);
                // If nobody else has led meanwhile, nobody else has written.
                let again = self.led.filter(|(led, _)| *led == epoch);
                let since = again.map_or_else(clock::now, |(_, since)| since);
                self.led = Some((epoch, since));
                *claim = Some(Claim::new(epoch, since, until));
                true
            }
            (None, Some(held)) => {
                tracing::warn!(lease = %self.options, epoch = held.epoch, holder = self.election.holder(), "this host leads no more; its runs are cut");
                gauge.set(0);
                *claim = None;
                true
            }
            (None, None) => false,
        });
    }

    async fn wait(&mut self, at: Duration, lease_watch: &mut LeaseWatch) {
        let now = since_boot();
        if self.election.leading().is_some() {
            lease_watch.close();
            return tokio::time::sleep(at.saturating_sub(now)).await;
        }
        let poll = self.election.poll_at(now);
        let until = at.min(poll);
        let heard = lease_watch.heard(&self.api, &self.options, self.election.version());
        match tokio::time::timeout(until.saturating_sub(now), heard).await {
            Ok(News::Changed(record)) => self.election.read(Some(record), since_boot()),
            Ok(News::Gone) => self.election.read(None, since_boot()),
            // The watch may be broken without having said so.
            Err(_) if poll < at => self.read().await,
            Ok(News::Nothing) | Err(_) => (),
        }
    }

    async fn read(&mut self) {
        let path = self.path(Some(&self.options.name));
        match self.call(Call::new(Method::GET, path)).await {
            Ok(record) => self.election.read(Some(record), since_boot()),
            Err(error) if error.code() == Some(404) => self.election.read(None, since_boot()),
            Err(error) => self.failed("read", &error),
        }
    }

    async fn write(&mut self, record: Record) {
        let begun = since_boot();
        match self.call(self.write_call(&record)).await {
            Ok(record) => self.election.written(record, begun, since_boot()),
            // To make it, its namespace must be there: that is nobody who was faster.
            Err(error) if error.code() == Some(404) && record.version.is_empty() => {
                self.failed("make", &error);
            }
            Err(error) if matches!(error.code(), Some(404 | 409)) => {
                self.metrics.lease_slow_path(&self.options.name).inc();
                self.election.outrun(since_boot());
            }
            Err(error) => self.failed("write", &error),
        }
    }

    fn write_call(&self, record: &Record) -> Call {
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
        let body = record::object(&self.options, record, &now).to_string();
        let call = if record.version.is_empty() {
            Call::new(Method::POST, self.path(None))
        } else {
            Call::new(Method::PUT, self.path(Some(&self.options.name)))
        };
        call.body(Media::Json, body)
    }

    /// A renewal that was under way may have changed the version: then it is read, and tried once more.
    async fn release(&mut self) {
        for _ in 0..2 {
            let Some(record) = self.election.release() else { return };
            match self.call(self.write_call(&record)).await {
                Ok(_) => {
                    tracing::info!(lease = %self.options, "the Lease is given up");
                    return;
                }
                Err(error) if error.code() == Some(409) => self.read().await,
                Err(error) => {
                    tracing::warn!(lease = %self.options, error = causes::all(&error), "the Lease cannot be given up; it expires by itself");
                    return;
                }
            }
        }
    }

    async fn call(&self, call: Call) -> Result<Record, apiserver::Error> {
        let call = Call { limit: self.options.profile.call(), ..call };
        let lease: Value = self.api.fetch(call).await?;
        Ok(record::read(&lease))
    }

    fn path(&self, name: Option<&str>) -> String {
        path(&self.options, name)
    }

    fn failed(&mut self, what: &str, error: &apiserver::Error) {
        let remedy = match error.code() {
            Some(404) => "; its namespace must exist, see --lease",
            Some(401 | 403) => {
                "; the host needs get, create, update and watch on leases of coordination.k8s.io there, see deploy/rbac.yaml"
            }
            _ => "",
        };
        if self.failures.is_multiple_of(TELL_EVERY) {
            tracing::warn!(lease = %self.options, error = causes::all(error), "cannot {what} the Lease{remedy}");
        }
        self.failures = self.failures.wrapping_add(1);
        self.election.failed(since_boot());
    }
}

/// A watch on the Lease, opened when a follower waits.
#[derive(Default)]
struct LeaseWatch(Option<Lines>);

impl LeaseWatch {
    fn close(&mut self) {
        self.0 = None;
    }

    /// Returns when the Lease has changed, and how it is now; never, if the watch cannot be had.
    async fn heard(&mut self, api: &ApiServer, options: &Options, version: &str) -> News {
        if self.0.is_none() {
            let field = format!("metadata.name={}", options.name);
            let pairs =
                [("watch", "true"), ("fieldSelector", &field), ("resourceVersion", version)];
            let call = Call::new(Method::GET, query(&path(options, None), pairs));
            self.0 = api.lines(call).await.ok();
        }
        let Some(lines) = &mut self.0 else { return std::future::pending().await };
        let news = match lines.next().await {
            Some(Ok(line)) => record::news(&line),
            _ => News::Nothing,
        };
        if news == News::Nothing {
            self.0 = None;
            return std::future::pending().await;
        }
        news
    }
}

/// Where the API server has the Lease.
pub fn path_of(options: &Options) -> String {
    path(options, Some(&options.name))
}

fn path(options: &Options, name: Option<&str>) -> String {
    let leases = format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", options.namespace);
    name.map_or_else(|| leases.clone(), |name| format!("{leases}/{name}"))
}

async fn sleep_until(at: Option<Duration>) {
    match at {
        Some(at) => tokio::time::sleep(at.saturating_sub(since_boot())).await,
        None => std::future::pending().await,
    }
}

/// Spreads the polls of hosts; it need not be hard to guess.
fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the API server answers, to everything.
    #[tokio::test]
    async fn an_election_waits_between_its_turns() {
        let lease = |holder: &str| {
            serde_json::json!({
                "metadata": { "resourceVersion": "1" },
                "spec": { "holderIdentity": holder, "leaseDurationSeconds": 15, "leaseTransitions": 1,
                          "renewTime": "2026-01-01T00:00:00.000000Z" },
            })
        };
        let answers = [
            (200, lease("me")),
            (200, lease("another")),
            (200, lease("")),
            (200, serde_json::json!({})),
            (401, Value::Null),
            (403, Value::Null),
            (404, Value::Null),
            (409, Value::Null),
            (410, Value::Null),
            (429, Value::Null),
            (503, Value::Null),
        ];
        let elections = answers.map(async |(code, body)| {
            let (polls, calls) = election_over(code, body.to_string()).await;
            assert!(calls <= 20, "{calls} requests while the answer is {code} {body}");
            assert!(polls <= 200, "{polls} polls while the answer is {code} {body}");
        });
        futures::future::join_all(elections).await;
    }

    /// The polls and the requests of two seconds.
    async fn election_over(code: u16, body: String) -> (u64, u64) {
        let calls = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
        let asked = calls.clone();
        let api = crate::apiserver::answering(move |_| {
            asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            (code, Some(body.clone()))
        });
        let options = Options {
            namespace: "sys".to_owned(),
            name: "nagaya".to_owned(),
            identity: "me".to_owned(),
            address: None,
            profile: Profile::FAST,
            kubeconfig: Source::default(),
        };
        let work = Work {
            election: Election::new("me".to_owned(), options.profile, 1),
            options,
            api,
            claim: watch::channel(None).0,
            metrics: Metrics::default(),
            failures: 0,
            led: None,
        };
        let (_keep, release) = oneshot::channel();
        let mut run = Box::pin(work.run(release));
        let mut polls = 0;
        let counted = std::future::poll_fn(|context| {
            polls += 1;
            run.as_mut().poll(context)
        });
        assert!(tokio::time::timeout(Duration::from_secs(2), counted).await.is_err());
        (polls, calls.load(std::sync::atomic::Ordering::SeqCst))
    }

    #[test]
    fn a_lease_is_named_with_or_without_its_namespace() {
        let parsed = |text: &str| text.parse::<LeaseName>();
        let plain = LeaseName { namespace: None, name: "nagaya".into() };
        assert_eq!(parsed("nagaya"), Ok(plain));
        let full = LeaseName { namespace: Some("sys".into()), name: "n-1".into() };
        assert_eq!(parsed("sys/n-1"), Ok(full));
        for bad in ["", "/", "a/", "/a", "A", "a/b/c", "-a", "a..%2F"] {
            assert!(parsed(bad).is_err(), "{bad:?}");
        }
    }
}
