//! Writes the condition `Accepted` on an object, and takes it back: under a second field manager, so that the guest's own
//! conditions stay the guest's. Where that cannot be, an Event says the same.
//!
//! Invariants, on a real server: `an_invalid_object_says_so_until_it_is_valid`.

use std::time::Duration;

use serde_json::{Value, json};

use super::{
    Start,
    accepted::{Opinion, REASON, Shown, Step, TYPE},
};
use crate::{client::Client, clock, cluster::Error, model::object::ObjectKey, text, watch::Entry};

/// Bytes of the guest's words where the reason must fit behind them.
const WORDS: usize = 400;
/// What is done about writers of conditions that own all of them.
const REMEDY: &str = "; in the kind's schema status.conditions must be a list map by type: x-kubernetes-list-type: map, x-kubernetes-list-map-keys: [type]";
/// The pause where the budget says for itself when it allows the write.
const AT_ONCE: Duration = Duration::ZERO;

impl Start {
    /// `invalid(message)`. When the object must run again because the condition could not be written yet.
    pub(super) async fn refuse(
        &self,
        client: &Client,
        entry: &Entry,
        message: &str,
    ) -> Option<Duration> {
        let (key, shown) = (&self.taken.key, self.shown(entry));
        let verdict = Opinion { uid: entry.uid(), generation: entry.generation(), message };
        let step = self.ledger().refused(key, verdict, &shown, clock::now());
        match step {
            Step::Rest => return None,
            Step::Wait(wait) => return Some(wait),
            Step::Write => (),
        }
        if matches!(shown, Shown::Nowhere) {
            self.tell(Some(entry), REASON, message);
            self.ledger().written(key, verdict, clock::now());
            return None;
        }
        let since = shown.refusal().and_then(|condition| condition.last_transition_time.clone());
        let mut condition = json!({
            "type": TYPE, "status": "False", "reason": REASON, "message": message,
            "lastTransitionTime": since.unwrap_or_else(now),
        });
        if let Some(generation) = entry.generation() {
            condition["observedGeneration"] = generation.into();
        }
        let status = self.status(entry, &json!({ "conditions": [condition] }));
        match client.apply_condition(status).await {
            Ok(()) => {
                self.ledger().written(key, verdict, clock::now());
                None
            }
            Err(error) => {
                let words = text::cut(message, WORDS);
                let note = format!("{words} (the condition {TYPE} cannot be written: {error}");
                self.unwritten(entry, &error, REASON, &note)
            }
        }
    }

    /// Takes the condition back once the guest accepts the object.
    pub(super) async fn accept(&self, client: &Client, entry: &Entry) -> Option<Duration> {
        let (key, shown) = (&self.taken.key, self.shown(entry));
        let step = self.ledger().accepted(key, entry.uid(), &shown, clock::now());
        match step {
            Step::Rest => return None,
            Step::Wait(wait) => return Some(wait),
            Step::Write => (),
        }
        match client.apply_condition(self.status(entry, &json!({}))).await {
            Ok(()) => {
                let of = (entry.uid(), entry.generation());
                self.ledger().taken_back(key, of, &shown, clock::now());
                None
            }
            Err(error) => {
                let note = format!(
                    "the object is accepted now (the condition {TYPE}=False cannot be taken back: {error}"
                );
                self.unwritten(entry, &error, "ConditionStays", &note)
            }
        }
    }

    fn unwritten(
        &self,
        entry: &Entry,
        error: &Error,
        reason: &str,
        note: &str,
    ) -> Option<Duration> {
        match error {
            Error::NotFound => return None,
            Error::BudgetExceeded(_) => return Some(AT_ONCE),
            _ => (),
        }
        let failed = self.ledger().failed(&self.taken.key, entry.uid(), clock::now());
        if failed.tell {
            tracing::debug!(%error, object = %self.taken.key, "cannot write the condition Accepted");
            let is_owned = |text: &String| text.contains("status.conditions");
            let owned = matches!(error, Error::Conflict(text) if is_owned(text));
            let remedy = if owned { REMEDY } else { "" };
            self.tell(Some(entry), reason, &format!("{note}{remedy})"));
        }
        Some(failed.wait)
    }

    fn shown(&self, entry: &Entry) -> Shown {
        let view = &self.executor.view;
        let resource = view.resource(&view.manifest().primary.kind);
        if resource.is_some_and(|resource| resource.has_status) {
            Shown::of(entry.body())
        } else {
            Shown::Nowhere
        }
    }

    fn status(&self, entry: &Entry, status: &Value) -> String {
        let kind = &self.executor.view.manifest().primary.kind;
        let ObjectKey { namespace, name } = &self.taken.key;
        let mut object = json!({
            "apiVersion": kind.api_version(), "kind": kind.kind,
            "metadata": { "name": name, "uid": entry.uid() }, "status": status,
        });
        if let Some(namespace) = namespace {
            object["metadata"]["namespace"] = json!(namespace);
        }
        object.to_string()
    }
}

fn now() -> String {
    k8s_openapi::jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
