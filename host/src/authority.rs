//! Asks the API server what an account may do, and keeps the answers fresh.
//!
//! One table for all controllers: accounts that ask the same share the answer. Whoever holds an [`Interest`] has its
//! rights asked again before they grow old, so that a cached read rarely waits (R53–R55).

mod constraint;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use http::Method;
use serde::Deserialize;
use serde_json::json;

use crate::{
    apiserver::{ApiServer, Call, Error, Identity, Media},
    clock,
    grant::{ALLOW_VALID, Answers, Right, Verdict},
};

/// Answers older than this are asked for again while somebody is interested.
const REFRESH_AFTER: Duration = Duration::from_secs(5);
/// How often ages are looked at: an answer is renewed at 5 to 6.5 s, well before [`ALLOW_VALID`].
const LOOK_EVERY: Duration = Duration::from_millis(1_500);

/// The shared table of answers.
#[derive(Clone, Debug)]
pub struct Authority {
    api: ApiServer,
    state: Arc<Mutex<State>>,
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
    /// An empty table.
    pub fn new(api: ApiServer) -> Self {
        Self { api, state: Arc::default() }
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
        let review: Review = self.api.fetch(review(account, right)).await?;
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
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        loop {
            ticks.tick().await;
            for (account, right) in self.due(clock::now()) {
                if let Err(error) = self.ask(&account, &right).await {
                    tracing::debug!(%account, %right, %error, "cannot review a right");
                    break;
                }
            }
        }
    }

    fn due(&self, now: Instant) -> Vec<(Identity, Right)> {
        let mut state = self.state();
        state.answers.sweep(now);
        let State { answers, interests } = &*state;
        let old = |account: &Identity, right: &Right| {
            answers.age(account, right, now).is_none_or(|age| age > REFRESH_AFTER)
        };
        interests.keys().filter(|(account, right)| old(account, right)).cloned().collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const _: () =
    assert!(REFRESH_AFTER.as_millis() + 2 * LOOK_EVERY.as_millis() < ALLOW_VALID.as_millis());

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
