//! What is known of each revision of one setup: it is being staged, it can run, or it was refused.
//!
//! A result counts only for the attempt that it answers: an attempt of an earlier setup, or of one whose question has
//! changed meanwhile, answers nothing, however good it is. Attempts are told apart by tickets that are never given twice.
//!
//! Invariants: `an_answer_to_an_older_question_is_none`, `a_refusal_is_kept_while_it_is_tried_again`,
//! `at_random_only_the_newest_attempt_counts`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{refusal::Refusal, status::Standing};
use crate::model::{crd::LimitsSpec, kind::Kind};

/// What an attempt was made for, besides digest and config, which are in the revision's name.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Question {
    /// The controller's primary kind and finalizer, if a revision has fixed them.
    pub(super) fixed: (Option<Kind>, Option<String>),
    /// Whether the controller asks for its kind alone.
    pub(super) exclusive: bool,
    /// What the team asks for.
    pub(super) limits: LimitsSpec,
}

/// The revisions of one setup; `E` is what can run, `T` ends an attempt when it is dropped.
#[derive(Debug)]
pub(super) struct Loads<E, T> {
    tickets: u64,
    of: BTreeMap<String, Load<E, T>>,
}

#[derive(Debug)]
enum Load<E, T> {
    Begun {
        ticket: u64,
        question: Question,
        /// How many modules had arrived.
        arrivals: u64,
        /// What the attempt before was refused, and how many were in a row.
        before: Option<Refusal>,
        failures: u32,
        _task: T,
    },
    Ready(Arc<E>),
    Refused {
        refusal: Refusal,
        failures: u32,
        again: Instant,
    },
}

/// What became of a result.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It can run.
    Ready,
    /// It was refused.
    Refused(Refusal),
    /// It answers a question that nobody asks any more.
    Stale,
}

impl<E, T> Default for Loads<E, T> {
    fn default() -> Self {
        Self { tickets: 0, of: BTreeMap::new() }
    }
}

impl<E, T> Loads<E, T> {
    /// Begins an attempt; `task` gets its ticket.
    pub(super) fn begin(
        &mut self,
        name: &str,
        question: Question,
        arrivals: u64,
        task: impl FnOnce(u64) -> T,
    ) {
        self.tickets += 1;
        let ticket = self.tickets;
        let (before, failures) = match self.of.remove(name) {
            Some(Load::Refused { refusal, failures, .. }) => (Some(refusal), failures),
            Some(Load::Begun { before, failures, .. }) => (before, failures),
            Some(Load::Ready(_)) | None => (None, 0),
        };
        let begun =
            Load::Begun { ticket, question, arrivals, before, failures, _task: task(ticket) };
        self.of.insert(name.to_owned(), begun);
    }

    /// Takes the result of the attempt `ticket`; `now_asked` and `arrivals` are what they are now.
    pub(super) fn finish(
        &mut self,
        (ticket, name): (u64, &str),
        result: Result<E, Refusal>,
        (now_asked, arrivals): (&Question, u64),
        now: Instant,
    ) -> Taken {
        let Some(Load::Begun { ticket: newest, question, arrivals: then, failures, .. }) =
            self.of.get(name)
        else {
            return Taken::Stale;
        };
        if *newest != ticket {
            return Taken::Stale;
        }
        let same = match &result {
            // What limits a run, and who else wants the kind, does not make it another program.
            Ok(_) => question.fixed == now_asked.fixed,
            Err(_) => question == now_asked,
        };
        // Its bytes may have come after it had looked, and before anybody knew that it waits for them.
        let missed = result.as_ref().is_err_and(Refusal::lacks_bytes) && *then != arrivals;
        let failures = failures + 1;
        match result {
            _ if !same => {
                self.of.remove(name);
                Taken::Stale
            }
            Ok(ready) => {
                self.of.insert(name.to_owned(), Load::Ready(Arc::new(ready)));
                Taken::Ready
            }
            Err(refusal) => {
                let refusal = refusal.after(failures);
                let pause = refusal.again.pause(failures);
                let again = now + if missed { Duration::ZERO } else { pause };
                let load = Load::Refused { refusal: refusal.clone(), failures, again };
                self.of.insert(name.to_owned(), load);
                Taken::Refused(refusal)
            }
        }
    }

    /// Forgets all others.
    pub(super) fn keep(&mut self, wanted: &BTreeSet<String>) {
        self.of.retain(|name, _| wanted.contains(name));
    }

    /// Forgets what can run, and no longer fits, so that it is staged again.
    pub(super) fn drop_ready(&mut self, is_outdated: impl Fn(&E) -> bool) {
        self.of.retain(|_, load| !matches!(load, Load::Ready(ready) if is_outdated(ready)));
    }

    /// Forgets all: none of the results that are still to come counts.
    pub(super) fn clear(&mut self) {
        self.of.clear();
    }

    /// Something about these refusals has changed: they are tried again at once.
    pub(super) fn hurry(&mut self, at: Instant, which: impl Fn(&Refusal) -> bool) {
        for load in self.of.values_mut() {
            match load {
                Load::Refused { refusal, again, failures } if which(refusal) => {
                    (*again, *failures) = (at, 0);
                }
                _ => (),
            }
        }
    }

    /// Whether an attempt is to be begun.
    pub(super) fn is_due(&self, name: &str, now: Instant) -> bool {
        match self.of.get(name) {
            None => true,
            Some(Load::Refused { again, .. }) => *again <= now,
            Some(Load::Begun { .. } | Load::Ready(_)) => false,
        }
    }

    /// When the next refused one is to be tried again.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let dues = self.of.values().filter_map(|load| match load {
            Load::Refused { again, .. } => Some(*again),
            Load::Begun { .. } | Load::Ready(_) => None,
        });
        dues.min()
    }

    /// What can run under this name.
    pub(super) fn ready(&self, name: &str) -> Option<&Arc<E>> {
        match self.of.get(name) {
            Some(Load::Ready(ready)) => Some(ready),
            _ => None,
        }
    }

    /// Takes what can run under this name away.
    pub(super) fn take(&mut self, name: &str) -> Option<Arc<E>> {
        match self.of.remove(name)? {
            Load::Ready(ready) => Some(ready),
            load => {
                self.of.insert(name.to_owned(), load);
                None
            }
        }
    }

    /// Puts another in the place of what can run under this name.
    pub(super) fn replace(&mut self, name: &str, renewed: Arc<E>) {
        if let Some(Load::Ready(ready)) = self.of.get_mut(name) {
            *ready = renewed;
        }
    }

    /// All that can run.
    pub(super) fn all_ready(&self) -> impl Iterator<Item = &Arc<E>> {
        self.of.values().filter_map(|load| match load {
            Load::Ready(ready) => Some(ready),
            _ => None,
        })
    }

    /// Where a revision stands. One that is tried again stands where it stood, until there is another answer.
    pub(super) fn standing(&self, name: &str) -> Option<Standing> {
        let told = |refusal: &Refusal| {
            let refusal = refusal.clone();
            if refusal.waits { Standing::Staging(Some(refusal)) } else { Standing::Failed(refusal) }
        };
        Some(match self.of.get(name)? {
            Load::Ready(_) => Standing::Ready,
            Load::Begun { before, .. } => before.as_ref().map_or(Standing::Staging(None), told),
            Load::Refused { refusal, .. } => told(refusal),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::kind::Kind;

    fn question(limits: &str) -> Question {
        let limits = LimitsSpec { memory: limits.to_owned(), ..LimitsSpec::default() };
        Question { limits, ..Question::default() }
    }

    fn start() -> Instant {
        Instant::now()
    }

    #[test]
    fn an_answer_to_an_older_question_is_none() {
        let (mut loads, now, asked) = (Loads::<u8, ()>::default(), start(), question("64Mi"));
        let mut tickets = vec![];
        loads.begin("v1", asked.clone(), 0, |ticket| tickets.push(ticket));
        // Another account: all is forgotten and begun anew, before the first attempt has answered.
        loads.clear();
        loads.begin("v1", asked.clone(), 0, |ticket| tickets.push(ticket));
        let late = loads.finish((tickets[0], "v1"), Ok(1), (&asked, 0), now);
        assert_eq!((late, loads.ready("v1")), (Taken::Stale, None), "the old account's reads");
        let refused = Err(Refusal::failed("DescribeFailed", "no"));
        assert_eq!(loads.finish((tickets[0], "v1"), refused, (&asked, 0), now), Taken::Stale);
        assert_eq!(loads.standing("v1"), Some(Standing::Staging(None)));
        assert_eq!(loads.finish((tickets[1], "v1"), Ok(2), (&asked, 0), now), Taken::Ready);
        assert_eq!(loads.ready("v1").map(|ready| **ready), Some(2));
    }

    #[test]
    fn a_renewal_takes_the_place_of_what_is_loaded_and_of_nothing_else() {
        let (mut loads, mut renewals) = (Loads::<u8, ()>::default(), Loads::<u8, ()>::default());
        let (now, asked, mut at) = (start(), question("64Mi"), 0);
        loads.begin("v1", asked.clone(), 0, |ticket| at = ticket);
        loads.finish((at, "v1"), Ok(1), (&asked, 0), now);
        renewals.begin("v1", asked.clone(), 0, |ticket| at = ticket);
        assert_eq!(renewals.take("v1"), None, "it is not there yet");
        renewals.finish((at, "v1"), Ok(2), (&asked, 0), now);
        let renewed = renewals.take("v1").unwrap();
        loads.replace("v2", renewed.clone());
        assert_eq!(loads.ready("v2"), None);
        loads.replace("v1", renewed);
        assert_eq!(loads.ready("v1").map(|ready| **ready), Some(2));
        assert!(renewals.is_due("v1", now), "the next one may be begun");
    }

    #[test]
    fn a_refusal_under_other_limits_is_none() {
        let (mut loads, now) = (Loads::<u8, ()>::default(), start());
        let (small, large) = (question("1Mi"), question("64Mi"));
        let mut at = 0;
        loads.begin("v1", small.clone(), 0, |ticket| at = ticket);
        let refused = Err(Refusal::failed("DescribeFailed", "more memory than limits.memory"));
        assert_eq!(loads.finish((at, "v1"), refused, (&large, 0), now), Taken::Stale);
        assert!(loads.is_due("v1", now));
        loads.begin("v1", small, 0, |ticket| at = ticket);
        assert_eq!(
            loads.finish((at, "v1"), Ok(1), (&large, 0), now),
            Taken::Ready,
            "it is the same"
        );
        let fixed = Question { fixed: (Some(Kind::new("v1", "Pod")), None), ..large.clone() };
        loads.begin("v2", large, 0, |ticket| at = ticket);
        assert_eq!(loads.finish((at, "v2"), Ok(1), (&fixed, 0), now), Taken::Stale);
        assert!(loads.is_due("v2", now), "whether it fits what is fixed now is to be checked");
    }

    #[test]
    fn bytes_that_came_during_an_attempt_are_not_missed() {
        let (mut loads, now, asked) = (Loads::<u8, ()>::default(), start(), question("64Mi"));
        let mut at = 0;
        for (arrivals, due) in [(3, false), (4, true)] {
            loads.begin("v1", asked.clone(), 3, |ticket| at = ticket);
            let refused = Err(Refusal::without_bytes("push it"));
            loads.finish((at, "v1"), refused, (&asked, arrivals), now);
            assert_eq!(loads.is_due("v1", now), due, "{arrivals}");
        }
        let later = now + Duration::from_secs(60);
        assert!(loads.is_due("v1", later), "also without a bell");
    }

    #[test]
    fn a_refusal_is_kept_while_it_is_tried_again() {
        let (mut loads, now, asked) = (Loads::<u8, ()>::default(), start(), question("64Mi"));
        let mut at = 0;
        loads.begin("v1", asked.clone(), 0, |ticket| at = ticket);
        let refusal = Refusal::failed("CompileFailed", "too big");
        loads.finish((at, "v1"), Err(refusal.clone()), (&asked, 0), now);
        assert!(!loads.is_due("v1", now + Duration::from_secs(1_000)));
        assert!(loads.is_due("v1", loads.next_due().unwrap()));
        loads.hurry(now, |refusal| !refusal.waits);
        assert!(loads.is_due("v1", now));
        loads.begin("v1", asked.clone(), 0, |ticket| at = ticket);
        assert_eq!(loads.standing("v1"), Some(Standing::Failed(refusal)));
        assert_eq!(loads.finish((at, "v1"), Ok(1), (&asked, 0), now), Taken::Ready);
        assert_eq!(loads.standing("v1"), Some(Standing::Ready));
        loads.keep(&BTreeSet::new());
        assert_eq!(loads.standing("v1"), None);
    }

    #[test]
    fn at_random_only_the_newest_attempt_counts() {
        for seed in 1..200_u64 {
            let (mut loads, now, mut rng) =
                (Loads::<u64, ()>::default(), start(), fastrand::Rng::with_seed(seed));
            // The obvious model: the newest ticket of each name since the last change of the setup.
            let mut newest: BTreeMap<String, u64> = BTreeMap::new();
            let mut flying: Vec<(u64, String)> = vec![];
            for _ in 0..200 {
                let random = rng.u64(..);
                let name = format!("v{}", random / 8 % 3);
                match random % 5 {
                    0 | 1 => loads.begin(&name, question("64Mi"), 0, |ticket| {
                        newest.insert(name.clone(), ticket);
                        flying.push((ticket, name.clone()));
                    }),
                    2 if random % 7 == 0 => {
                        loads.clear();
                        newest.clear();
                    }
                    _ if !flying.is_empty() => {
                        let at = usize::try_from(random / 64).unwrap_or_default() % flying.len();
                        let (ticket, name) = flying.swap_remove(at);
                        let asked = question("64Mi");
                        let taken = loads.finish((ticket, &name), Ok(ticket), (&asked, 0), now);
                        let counts = newest.get(&name) == Some(&ticket);
                        assert_eq!(taken == Taken::Ready, counts, "seed {seed}: {name} {ticket}");
                    }
                    _ => (),
                }
                for (name, ticket) in &newest {
                    let ready = loads.ready(name).map(|ready| **ready);
                    assert!(ready.is_none_or(|ready| ready == *ticket), "seed {seed}");
                }
            }
        }
    }
}
