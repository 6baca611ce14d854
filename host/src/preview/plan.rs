//! Looks at every primary that a revision sees, in the order of their names, and counts what it would change.
//!
//! What is counted so far is a value that goes into the revision's status: a host that is killed meanwhile goes on from
//! there.

use std::{collections::BTreeSet, panic::AssertUnwindSafe, time::Duration};

use futures::{FutureExt, StreamExt, stream};
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use super::{AT_ONCE, Pair, Previewer, declared, rights, tally::Tally};
use crate::{
    access::view::View,
    model::{
        object::ObjectKey,
        plan::{KindCount, NewRight, PlanLine, PlanPhase, PlanStatus, ProtectedPath},
    },
};

/// How often it is told how far it is.
const TELL_EVERY: Duration = Duration::from_secs(2);
/// Whoever lets a plan wait for so long in all is told nothing more.
const PATIENCE: Duration = Duration::from_secs(20);

/// A plan about to be made.
#[derive(Debug)]
pub struct Planner {
    /// Looks at one object.
    pub previewer: Previewer,
    /// Of whom.
    pub pair: Pair,
    /// Paths to be counted apart.
    pub protected: Vec<ProtectedPath>,
    /// Whoever wants to hear of each object.
    pub follower: Option<Follower>,
    /// Whether it is kept; another ends with its follower.
    pub is_kept: bool,
}

/// Whoever wants to hear of each object, and how much longer a plan waits for him.
#[derive(Debug)]
pub struct Follower {
    lines: mpsc::Sender<PlanLine>,
    patience: Duration,
}

impl From<mpsc::Sender<PlanLine>> for Follower {
    fn from(lines: mpsc::Sender<PlanLine>) -> Self {
        Self { lines, patience: PATIENCE }
    }
}

impl Planner {
    /// Makes it, from where `from` stands. A bug of the host that it meets ends it alone.
    pub async fn run(self, from: PlanStatus, told: watch::Sender<PlanStatus>) {
        let work = AssertUnwindSafe(self.make(from, &told)).catch_unwind().await;
        if work.is_err() {
            tracing::error!("the host panicked while it made a plan");
            let message = "the host panicked while it made the plan, which is a bug of the host: its log says where";
            told.send_modify(|status| {
                status.phase = PlanPhase::Interrupted;
                status.message = Some(message.to_owned());
            });
        }
    }

    async fn make(mut self, from: PlanStatus, told: &watch::Sender<PlanStatus>) {
        let keys = keys(&self.pair.candidate.view, from.position.as_deref());
        let mut from = from;
        let left = i64::try_from(keys.len()).unwrap_or(i64::MAX);
        from.objects.total = from.objects.looked.saturating_add(left);
        from.started_at.get_or_insert_with(now);
        let mut tally = Tally::from(from, self.protected.clone());
        told.send_replace(tally.status());
        self.progress(&tally).await;
        let mut last = Instant::now();
        let (previewer, pair) = (self.previewer.clone(), self.pair.clone());
        let looks = stream::iter(keys).map(|key| {
            let (previewer, pair) = (previewer.clone(), pair.clone());
            async move { previewer.find(&pair, &key, "plan").await }
        });
        let mut looks = std::pin::pin!(looks.buffered(AT_ONCE));
        while let Some(found) = looks.next().await {
            if !self.is_kept && self.follower.is_none() {
                return;
            }
            let used = rights(&pair.candidate, &found.used);
            tally.add(&found.planned, used, found.events);
            let planned = found.planned;
            if !planned.changes.is_empty() || planned.error.is_some() || !planned.untold.is_empty()
            {
                self.tell(PlanLine::Object(planned)).await;
            }
            if last.elapsed() >= TELL_EVERY {
                last = Instant::now();
                told.send_replace(tally.status());
                self.progress(&tally).await;
            }
        }
        let status = self.whole(tally.status());
        let (revision, plan) = (pair.candidate.name.clone(), Box::new(status.clone()));
        self.tell(PlanLine::Plan { revision, plan }).await;
        told.send_replace(status);
    }

    /// One object alone, for whoever asks; it counts nowhere.
    pub async fn one(mut self, key: ObjectKey) {
        if self.pair.candidate.view.primary(&key).is_none() {
            let kind = &self.pair.candidate.view.manifest().primary.kind;
            let message = format!("the revision sees no {kind} {key}");
            return self.tell(PlanLine::Failed { message }).await;
        }
        let found = self.previewer.find(&self.pair, &key, "plan").await;
        let used = rights(&self.pair.candidate, &found.used);
        let mut tally = Tally::from(PlanStatus::default(), self.protected.clone());
        tally.add(&found.planned, used, found.events);
        self.tell(PlanLine::Object(found.planned)).await;
        let mut plan = tally.status();
        plan.objects.total = 1;
        let plan = Box::new(self.whole(plan));
        let revision = self.pair.candidate.name.clone();
        self.tell(PlanLine::Plan { revision, plan }).await;
    }

    fn whole(&self, mut status: PlanStatus) -> PlanStatus {
        let used: BTreeSet<&String> = status.rights.iter().collect();
        let new = declared(&self.pair.candidate);
        let live = declared(&self.pair.live);
        let new = new
            .difference(&live)
            .map(|right| NewRight { right: right.clone(), used: used.contains(right) });
        status.new_rights = new.collect();
        status.phase = PlanPhase::Complete;
        status.against.clone_from(&self.pair.live.name);
        status.completed_at = Some(now());
        status.position = None;
        status.message = Some(summary(&status));
        status
    }

    async fn progress(&mut self, tally: &Tally) {
        let counts = tally.status().objects;
        let revision = self.pair.candidate.name.clone();
        let (looked, total) = (counts.looked, counts.total);
        self.tell(PlanLine::Progress { revision, looked, total }).await;
    }

    /// Tells whoever follows; one that does not read holds nothing up for long.
    async fn tell(&mut self, line: PlanLine) {
        let Some(follower) = &mut self.follower else { return };
        let begun = Instant::now();
        let sent = follower.lines.send_timeout(line, follower.patience).await;
        follower.patience = follower.patience.saturating_sub(begun.elapsed());
        if sent.is_err() {
            self.follower = None;
        }
    }
}

/// What a plan came to, in a sentence.
pub fn summary(plan: &PlanStatus) -> String {
    let counts = &plan.objects;
    let mut parts = vec![];
    for (word, kinds) in
        [("creates", &plan.creates), ("updates", &plan.updates), ("deletes", &plan.deletes)]
    {
        if !kinds.is_empty() {
            let kinds: Vec<_> = kinds.iter().take(3).map(of_kind).collect();
            parts.push(format!("{word} {}", kinds.join(", ")));
        }
    }
    for (count, words) in [
        (counts.failed, "fail"),
        (counts.failing_already, "fail already"),
        (counts.untold, "cannot be told"),
    ] {
        if count > 0 {
            parts.push(format!("{count} {words}"));
        }
    }
    let of = format!("{} of {} objects", counts.changed, counts.total);
    if counts.changed == 0 && parts.is_empty() {
        return format!("changes nothing in {} objects", counts.total);
    }
    if parts.is_empty() {
        format!("changes {of}")
    } else {
        format!("changes {of}: {}", parts.join("; "))
    }
}

fn of_kind(count: &KindCount) -> String {
    format!("{} {}", count.objects, count.kind)
}

/// The primaries behind `position`, in order.
fn keys(view: &View, position: Option<&str>) -> Vec<ObjectKey> {
    let after = position.map(|text| match text.split_once('/') {
        Some((namespace, name)) => ObjectKey::new(Some(namespace), name),
        None => ObjectKey::new(None, text),
    });
    let keys = view.primaries().map(|entry| entry.key().clone());
    let keys: BTreeSet<_> =
        keys.filter(|key| after.as_ref().is_none_or(|after| key > after)).collect();
    keys.into_iter().collect()
}

fn now() -> Time {
    // Statuses have whole seconds.
    let now = Timestamp::now();
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::plan::PlanCounts;

    #[test]
    fn a_plan_is_one_sentence() {
        let counts = PlanCounts { total: 1_000, looked: 1_000, ..PlanCounts::default() };
        let plan = PlanStatus { objects: counts.clone(), ..PlanStatus::default() };
        assert_eq!(summary(&plan), "changes nothing in 1000 objects");
        let kind = |kind: &str, objects| KindCount { kind: kind.into(), objects };
        let plan = PlanStatus {
            objects: PlanCounts { changed: 500, failed: 3, ..counts },
            updates: vec![kind("Deployment.apps", 500)],
            deletes: vec![kind("ConfigMap", 1)],
            ..PlanStatus::default()
        };
        let expected =
            "changes 500 of 1000 objects: updates 500 Deployment.apps; deletes 1 ConfigMap; 3 fail";
        assert_eq!(summary(&plan), expected);
    }
}
