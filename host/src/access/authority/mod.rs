//! Asks the API server what an account may do, and keeps the answers fresh.
//!
//! One table for all controllers: accounts that ask the same share the answer. Whoever holds an [`Interest`] has its
//! rights asked again before they grow old, so that a cached read rarely waits.

mod constraint;
mod round;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use http::Method;
use parking_lot::{Mutex, MutexGuard};
use serde::Deserialize;
use serde_json::json;
use tokio::{task::JoinSet, time::MissedTickBehavior};

use crate::{
    access::grant::{ALLOW_VALID, Answers, Right, Verdict},
    apiserver::{ApiServer, Call, Error, Identity, Media},
    clock,
    metrics::Metrics,
};
use round::Round;

/// Answers older than this are asked for again while somebody is interested.
const REFRESH_AFTER: Duration = Duration::from_secs(6);
/// How often ages are looked at: a renewal begins at 6 to 6.5 s and has [`IN_TIME`] until the answer counts no more.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// An API server that answers within this never makes a right unknown.
const IN_TIME: Duration = Duration::from_millis(3_500);

/// The shared table of answers.
#[derive(Clone, Debug)]
pub struct Authority {
    api: ApiServer,
    state: Arc<Mutex<State>>,
    metrics: Metrics,
}

#[derive(Debug, Default)]
struct State {
    answers: Answers,
    interests: HashMap<(Identity, Right), usize>,
}

/// Keeps the answers to its rights fresh until dropped.
#[derive(Debug)]
pub struct Interest {
    authority: Authority,
    account: Identity,
    rights: Vec<Right>,
}

impl Authority {
    /// An empty table; what it asks is counted in `metrics`.
    pub fn new(api: ApiServer, metrics: Metrics) -> Self {
        Self { api, state: Arc::default(), metrics }
    }

    /// What is known now, without asking.
    pub fn verdict(&self, account: &Identity, right: &Right) -> Verdict {
        self.state().answers.verdict(account, right, clock::now())
    }

    /// Whether `account` has `right`, by an answer that is at most [`ALLOW_VALID`] old.
    pub async fn allows(&self, account: &Identity, right: &Right) -> Result<bool, Error> {
        match self.verdict(account, right) {
            Verdict::Allowed => Ok(true),
            Verdict::Denied => Ok(false),
            Verdict::Unknown => self.ask(account, right).await,
        }
    }

    /// Asks the API server, whatever is known.
    pub async fn ask(&self, account: &Identity, right: &Right) -> Result<bool, Error> {
        let asked = clock::now();
        let answer: Result<Review, Error> = self.api.fetch(review(account, right)).await;
        let result = match &answer {
            Ok(review) if review.status.allowed => "allowed",
            Ok(_) => "denied",
            Err(_) => "error",
        };
        self.metrics.access_reviews(result).inc();
        let review = answer?;
        self.state().answers.learn(account, right, review.status.allowed, asked);
        Ok(review.status.allowed)
    }

    /// Asks again for `rights` from now on before the answers grow old.
    pub fn keep_fresh(&self, account: Identity, rights: Vec<Right>) -> Interest {
        let mut state = self.state();
        for right in &rights {
            *state.interests.entry((account.clone(), right.clone())).or_default() += 1;
        }
        drop(state);
        Interest { authority: self.clone(), account, rights }
    }

    /// Renews what somebody is interested in, for ever.
    pub async fn run(self) {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut round = Round::default();
        let mut asking = JoinSet::new();
        loop {
            tokio::select! {
                _ = looks.tick() => round.due(self.due(clock::now())),
                Some(Ok((question, begun, answered))) = asking.join_next() => {
                    round.ended(question, begun, answered);
                }
            }
            while let Some(question) = round.next() {
                asking.spawn(self.clone().renew(question));
            }
        }
    }

    async fn renew(self, question: (Identity, Right)) -> ((Identity, Right), Instant, bool) {
        let (account, right) = &question;
        let begun = clock::now();
        let answer = self.ask(account, right).await;
        if let Err(error) = &answer {
            tracing::debug!(%account, %right, %error, "cannot review a right");
        }
        (question, begun, answer.is_ok())
    }

    /// What is to be asked for again, the oldest answers first.
    fn due(&self, now: Instant) -> Vec<(Identity, Right)> {
        let mut state = self.state();
        state.answers.sweep(now);
        let State { answers, interests } = &*state;
        let age = |account: &Identity, right: &Right| {
            answers.age(account, right, now).unwrap_or(Duration::MAX)
        };
        let all = interests.keys().map(|(account, right)| (age(account, right), account, right));
        let mut due: Vec<_> = all.filter(|(age, ..)| *age > REFRESH_AFTER).collect();
        due.sort_unstable_by(|one, other| other.cmp(one));
        due.into_iter().map(|(_, account, right)| (account.clone(), right.clone())).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

const _: () = assert!(
    REFRESH_AFTER.as_millis() + LOOK_EVERY.as_millis() + IN_TIME.as_millis()
        <= ALLOW_VALID.as_millis()
);

impl Drop for Interest {
    fn drop(&mut self) {
        let mut state = self.authority.state();
        for right in self.rights.drain(..) {
            let key = (self.account.clone(), right);
            if let Some(count) = state.interests.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    state.interests.remove(&key);
                }
            }
        }
    }
}

#[derive(Deserialize)]
struct Review {
    status: ReviewStatus,
}

#[derive(Deserialize)]
struct ReviewStatus {
    #[serde(default)]
    allowed: bool,
}

fn review(account: &Identity, right: &Right) -> Call {
    let (resource, subresource) =
        right.resource.split_once('/').unwrap_or((right.resource.as_ref(), ""));
    let attributes = json!({
        "verb": right.verb, "group": right.group, "version": "*", "resource": resource,
        "subresource": subresource, "namespace": right.namespace.as_deref().unwrap_or_default(),
        "name": right.name.as_deref().unwrap_or_default(),
    });
    let (plural, kind, spec) = match account {
        Identity::Host => (
            "selfsubjectaccessreviews",
            "SelfSubjectAccessReview",
            json!({ "resourceAttributes": attributes }),
        ),
        Identity::ServiceAccount { namespace, .. } => (
            "subjectaccessreviews",
            "SubjectAccessReview",
            json!({
                "user": account.to_string(),
                "groups": ["system:serviceaccounts", format!("system:serviceaccounts:{namespace}"),
                           "system:authenticated"],
                "resourceAttributes": attributes,
            }),
        ),
    };
    let body = json!({ "apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": spec });
    Call::new(Method::POST, format!("/apis/authorization.k8s.io/v1/{plural}"))
        .body(Media::Json, body.to_string())
}
