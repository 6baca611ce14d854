//! Lets a candidate repeat some of the live runs, without writing, once each is over; it holds none of them up.
//!
//! One is repeated at a time: what comes faster than that is counted as skipped.

use std::time::Duration;

use tokio::{
    sync::{
        broadcast::{self, error::RecvError},
        watch,
    },
    time::Instant,
};

use super::{Pair, Previewer};
use crate::model::{
    object::ObjectKey,
    plan::{PlannedObject, Sample, ShadowStatus},
};

/// How often it is told.
const TELL_EVERY: Duration = Duration::from_secs(2);
/// What was found last.
const LAST: usize = 10;
/// Bytes of what is said of one.
const TEXT: usize = 300;

/// A shadow of the live revision's runs.
#[derive(Debug)]
pub struct Shadow {
    /// Looks at one object.
    pub previewer: Previewer,
    /// Of whom.
    pub pair: Pair,
    /// So many of a hundred.
    pub percent: u32,
    /// Objects whose live run is over.
    pub ran: broadcast::Receiver<ObjectKey>,
}

impl Shadow {
    /// Goes on from what `status` says until it is dropped or the controller ends.
    pub async fn run(mut self, mut status: ShadowStatus, told: watch::Sender<ShadowStatus>) {
        let mut sample = Sampler { percent: self.percent.min(100), left: 0 };
        let mut due: Option<Instant> = None;
        loop {
            let tick = async {
                match due {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = tick => {
                    due = None;
                    told.send_replace(status.clone());
                }
                ran = self.ran.recv() => {
                    match ran {
                        Ok(key) if sample.takes() => self.look(&key, &mut status).await,
                        Ok(_) => continue,
                        Err(RecvError::Lagged(missed)) => status.skipped += sample.of(missed),
                        Err(RecvError::Closed) => return,
                    }
                    due.get_or_insert(Instant::now() + TELL_EVERY);
                }
            }
        }
    }

    async fn look(&self, key: &ObjectKey, status: &mut ShadowStatus) {
        if self.pair.candidate.view.primary(key).is_none() {
            return;
        }
        let found = self.previewer.find(&self.pair, key, "shadow").await;
        self.previewer.shadowed(is_same(&found.planned));
        note(status, &found.planned);
    }
}

fn is_same(found: &PlannedObject) -> bool {
    found.changes.is_empty()
        && found.untold.is_empty()
        && (found.error.is_none() || found.failing_already)
}

/// Counts one run.
fn note(status: &mut ShadowStatus, found: &PlannedObject) {
    status.runs += 1;
    status.differing += i64::from(!found.changes.is_empty());
    status.failed += i64::from(found.error.is_some() && !found.failing_already);
    status.untold += i64::from(!found.untold.is_empty());
    if is_same(found) {
        return;
    }
    let changes = found.changes.iter().map(|change| {
        let paths: Vec<_> = change.paths.iter().map(|path| path.path.as_str()).collect();
        format!("{:?} {} {} {}", change.change, change.named_kind(), change.name, paths.join(", "))
    });
    let texts = found.error.iter().cloned().chain(changes).chain(found.untold.iter().cloned());
    let text = texts.map(|text| text.trim_end().to_owned()).collect::<Vec<_>>().join("; ");
    let sort = match () {
        () if found.error.is_some() => "Error",
        () if !found.changes.is_empty() => "Change",
        () => "Untold",
    };
    let text = crate::text::cut(&text, TEXT).into_owned();
    let sample = Sample { object: found.object.clone(), sort: sort.to_owned(), text };
    status.last.retain(|last| last.object != sample.object);
    status.last.insert(0, sample);
    status.last.truncate(LAST);
}

/// Takes so many of a hundred, evenly.
struct Sampler {
    percent: u32,
    left: u32,
}

impl Sampler {
    fn takes(&mut self) -> bool {
        self.left += self.percent;
        let takes = self.left >= 100;
        if takes {
            self.left -= 100;
        }
        takes
    }

    fn of(&self, runs: u64) -> i64 {
        i64::try_from(runs.saturating_mul(self.percent.into()) / 100).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::plan::PlannedChange;

    #[test]
    fn a_share_of_the_runs_is_taken() {
        for percent in [0, 1, 10, 33, 100] {
            let mut sample = Sampler { percent, left: 0 };
            let taken = (0..1_000).filter(|_| sample.takes()).count();
            assert_eq!(taken, percent as usize * 10);
            assert_eq!(sample.of(1_000), i64::from(percent) * 10);
        }
    }

    #[test]
    fn what_a_shadow_found_is_kept_in_a_fixed_space() {
        let mut status = ShadowStatus::default();
        note(&mut status, &PlannedObject { object: "a/0".into(), ..PlannedObject::default() });
        for number in 0..100 {
            let changes =
                vec![PlannedChange { kind: "ConfigMap".into(), ..PlannedChange::default() }];
            let object = format!("a/{}", number % 20);
            let error = (number % 2 == 0).then(|| "it traps".repeat(100));
            note(
                &mut status,
                &PlannedObject { object, changes, error, ..PlannedObject::default() },
            );
        }
        assert_eq!((status.runs, status.differing, status.failed), (101, 100, 50));
        assert_eq!(status.last.len(), LAST);
        assert_eq!(status.last[0].object, "a/19");
        assert!(serde_json::to_string(&status).unwrap().len() < 8 << 10);
    }
}
