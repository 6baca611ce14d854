//! An At waits for its time and then hands its command over, once, in a `ConfigMap` shaped like a job.
//!
//! It shows waiting: before its time an object costs no run an hour but one, and whatever restarts meanwhile, the
//! time is neither missed nor used twice.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::Time};
use kube::CustomResource;
use nagaya_sdk::{
    Action, Config, Context, Error, Event, Manifest, Predicate, Reconciler, Verbs, child,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The longest wait in one go, so that a clock that was set is noticed.
const LONGEST_WAIT: Duration = Duration::from_hours(1);

/// A command to hand over at a time.
#[derive(CustomResource, JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "examples.nagaya.dev",
    version = "v1",
    kind = "At",
    namespaced,
    status = "AtStatus",
    doc = "A command to hand over at a time.",
    printcolumn = r#"{"name":"Time","type":"string","jsonPath":".spec.time"}"#,
    printcolumn = r#"{"name":"Phase","type":"string","jsonPath":".status.phase"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct AtSpec {
    /// When, for example `2026-01-01T00:00:00Z`.
    pub time: Time,
    /// What to run.
    #[schemars(length(min = 1, max = 100))]
    pub command: Vec<String>,
}

/// Whether the command was handed over.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Its time has not come.
    #[default]
    Pending,
    /// The job exists.
    Done,
}

/// What became of an At.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AtStatus {
    /// Whether the command was handed over.
    #[serde(default)]
    pub phase: Phase,
    /// When it was.
    #[serde(default)]
    pub done_at: Option<Time>,
}

/// The reconciler.
pub struct Ats;

impl Reconciler for Ats {
    type Primary = At;

    fn manifest(_: &Config) -> Result<Manifest, Error> {
        Ok(Manifest::of::<At>()
            .when(Predicate::generation_changed())
            .status()
            .writes::<ConfigMap>(Verbs::CREATE))
    }

    fn reconcile(at: &At, cx: &Context) -> Result<Action, Error> {
        if at.status.as_ref().is_some_and(|status| status.phase == Phase::Done) {
            return Ok(Action::await_change());
        }
        let wait = Duration::try_from(at.spec.time.0.duration_since(cx.now())).unwrap_or_default();
        if !wait.is_zero() {
            cx.apply_status(at, &AtStatus::default())?;
            return Ok(Action::requeue_after(wait.min(LONGEST_WAIT)));
        }
        match cx.create(&job(at)) {
            Ok(_) => cx.event(at, Event::normal("Started", "Create", "its time has come"))?,
            // A run before this one came to an end between the two writes.
            Err(Error::AlreadyExists(_)) => (),
            Err(error) => return Err(error),
        }
        cx.apply_status(at, &AtStatus { phase: Phase::Done, done_at: Some(Time(cx.now())) })?;
        Ok(Action::await_change())
    }
}

fn job(at: &At) -> ConfigMap {
    let mut metadata =
        child(at, format!("{}-job", at.metadata.name.as_deref().unwrap_or_default()));
    let label = ("examples.nagaya.dev/shape".to_owned(), "job".to_owned());
    metadata.labels = Some(BTreeMap::from([label]));
    let data = BTreeMap::from([("command".to_owned(), at.spec.command.join("\n"))]);
    ConfigMap { metadata, data: Some(data), immutable: Some(true), ..ConfigMap::default() }
}

nagaya_sdk::export!(Ats);

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::SignedDuration;
    use kube::CustomResourceExt;
    use nagaya_sdk::testing::Cluster;

    use super::*;

    fn cluster() -> Cluster {
        let cluster = Cluster::new();
        let time = Time("2026-01-01T02:30:00Z".parse().unwrap());
        let mut at = At::new("tea", AtSpec { time, command: vec!["echo".into(), "tea".into()] });
        at.metadata.namespace = Some("demo".into());
        cluster.put(&at).unwrap();
        cluster
    }

    fn status(cluster: &Cluster) -> AtStatus {
        cluster.get::<At>("demo", "tea").unwrap().unwrap().status.unwrap()
    }

    #[test]
    fn it_waits_in_hours_and_then_runs_once() {
        let cluster = cluster();
        for wait in [3_600, 3_600, 1_800] {
            let expected = Action::RequeueAfter(Duration::from_secs(wait));
            assert_eq!(cluster.run::<Ats>("demo", "tea"), Ok(expected));
            assert_eq!(status(&cluster).phase, Phase::Pending);
            assert_eq!(cluster.list::<ConfigMap>().unwrap(), []);
            cluster.advance(SignedDuration::from_secs(i64::try_from(wait).unwrap()));
        }
        assert_eq!(cluster.run::<Ats>("demo", "tea"), Ok(Action::AwaitChange));
        let job: ConfigMap = cluster.get("demo", "tea-job").unwrap().unwrap();
        assert_eq!(job.data.unwrap()["command"], "echo\ntea");
        let done = AtStatus {
            phase: Phase::Done,
            done_at: Some(Time("2026-01-01T02:30:00Z".parse().unwrap())),
        };
        assert_eq!(status(&cluster), done);
        assert_eq!(cluster.events().len(), 1);
        cluster.delete::<ConfigMap>("demo", "tea-job").unwrap();
        assert_eq!(cluster.run::<Ats>("demo", "tea"), Ok(Action::AwaitChange));
        assert_eq!(cluster.list::<ConfigMap>().unwrap(), [], "what is done is done");
    }

    #[test]
    fn a_run_that_was_cut_off_is_completed() {
        let cluster = cluster();
        cluster.advance(SignedDuration::from_hours(3));
        let at: At = cluster.get("demo", "tea").unwrap().unwrap();
        cluster.put(&job(&at)).unwrap();
        assert_eq!(cluster.run::<Ats>("demo", "tea"), Ok(Action::AwaitChange));
        assert_eq!(status(&cluster).phase, Phase::Done);
        assert_eq!(cluster.events().len(), 0);
    }

    #[test]
    fn the_committed_crd_is_the_generated_one() {
        let generated = serde_saphyr::to_string(&At::crd()).unwrap();
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/crd.yaml");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(path, &generated).unwrap();
        }
        assert_eq!(
            std::fs::read_to_string(path).unwrap_or_default(),
            generated,
            "UPDATE=1 renews it"
        );
    }
}
