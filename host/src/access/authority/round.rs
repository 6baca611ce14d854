//! Decides which right is reviewed next; pure.
//!
//! What is due waits in one line an account, and the account with the fewest reviews in flight is next: however many
//! rights one has, another's is not held up behind them. A review that failed says nothing about the others; while no
//! failed one succeeds, only a few of them are tried again at a time.
//!
//! Invariants: `no_account_waits_behind_the_rights_of_another`, `a_failed_review_stops_no_other`,
//! `while_nothing_succeeds_only_a_few_are_tried_again`.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    time::Instant,
};

use crate::{access::grant::Right, apiserver::Identity};

/// Reviews at the same time: a hundred a second where one takes 300 ms.
const AT_ONCE: usize = 32;
/// The same of one account, so that one that is answered slowly leaves places to the others.
const EACH: usize = 16;
/// Failed reviews that are tried again in one look while none succeeds.
const PROBES: usize = 16;

type Question = (Identity, Right);

/// The reviews in flight, and those that wait for it.
#[derive(Debug, Default)]
pub(super) struct Round {
    waiting: BTreeMap<Identity, Line>,
    /// Waiting or in flight.
    known: HashSet<Question>,
    flying: usize,
    turn: u64,
    /// Failed at its last try, which began then.
    failed: HashMap<Question, Instant>,
    /// Whether a failed one has succeeded since one last failed.
    recovers: bool,
}

#[derive(Debug, Default)]
struct Line {
    rights: VecDeque<Right>,
    flying: usize,
    /// When it was last served, in turns.
    served: u64,
}

impl Round {
    /// Takes in what is due, most urgent first.
    pub(super) fn due(&mut self, due: impl IntoIterator<Item = Question>) {
        let mut again = vec![];
        let mut all = HashSet::new();
        for question in due {
            all.insert(question.clone());
            match self.failed.get(&question) {
                Some(tried) => again.push((*tried, question)),
                None => self.enter(question),
            }
        }
        self.failed.retain(|question, _| all.contains(question));
        again.sort_by_key(|(tried, _)| *tried);
        let most = if self.recovers { usize::MAX } else { PROBES };
        for (_, question) in again.into_iter().take(most) {
            self.enter(question);
        }
    }

    fn enter(&mut self, question: Question) {
        if self.known.insert(question.clone()) {
            let (account, right) = question;
            self.waiting.entry(account).or_default().rights.push_back(right);
        }
    }

    /// The next review to begin; `None`: there is none, or enough are in flight.
    pub(super) fn next(&mut self) -> Option<Question> {
        if self.flying >= AT_ONCE {
            return None;
        }
        let lines = self.waiting.iter_mut();
        let able = lines.filter(|(_, line)| !line.rights.is_empty() && line.flying < EACH);
        let (account, line) = able.min_by_key(|(_, line)| (line.flying, line.served))?;
        let right = line.rights.pop_front()?;
        self.turn += 1;
        line.served = self.turn;
        line.flying += 1;
        self.flying += 1;
        Some((account.clone(), right))
    }

    /// A review that began at `begun` has ended.
    pub(super) fn ended(&mut self, question: Question, begun: Instant, answered: bool) {
        self.known.remove(&question);
        self.flying = self.flying.saturating_sub(1);
        if let Some(line) = self.waiting.get_mut(&question.0) {
            line.flying = line.flying.saturating_sub(1);
            if line.flying == 0 && line.rights.is_empty() {
                self.waiting.remove(&question.0);
            }
        }
        if !answered {
            self.recovers = false;
            self.failed.insert(question, begun);
        } else if self.failed.remove(&question).is_some() {
            self.recovers = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{apiserver::Resource, model::kind::Kind};

    fn question(team: &str, number: usize) -> Question {
        let account = Identity::ServiceAccount { namespace: team.into(), name: "a".into() };
        let resource = Resource {
            kind: Kind::new("v1", "ConfigMap"),
            plural: format!("k{number}"),
            namespaced: true,
            has_status: false,
        };
        (account, Right::on("list", &resource, None))
    }

    fn fill(round: &mut Round) -> Vec<Question> {
        std::iter::from_fn(|| round.next()).collect()
    }

    #[test]
    fn no_account_waits_behind_the_rights_of_another() {
        let mut round = Round::default();
        round.due((0..1_000).map(|number| question("many", number)));
        let first = fill(&mut round);
        assert_eq!(first.len(), EACH, "one account leaves places to others");
        round.due([question("few", 0), question("other", 0)]);
        assert_eq!(fill(&mut round).len(), 2, "they begin at once");
        for (seed, mut random) in (1_u64..200).map(|seed| (seed, seed * 0x9E37_79B9)) {
            let mut round = Round::default();
            let teams = ["a", "b", "c", "d"];
            for (team, count) in teams.iter().zip([400, 40, 4, 1]) {
                round.due((0..count).map(|number| question(team, number)));
            }
            let mut flying = vec![];
            let mut begun = vec![];
            while begun.len() < 445 {
                let next = fill(&mut round);
                begun.extend(next.iter().cloned());
                flying.extend(next);
                assert!(flying.len() <= AT_ONCE, "seed {seed}");
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let which = (random >> 33) as usize % flying.len();
                round.ended(flying.swap_remove(which), crate::clock::now(), true);
            }
            let last_of = |team: &str| {
                begun.iter().rposition(|(account, _)| *account == question(team, 0).0).unwrap()
            };
            assert!(last_of("d") < 8 && last_of("c") < 24, "seed {seed}");
            assert!(last_of("b") < 250, "seed {seed}: {}", last_of("b"));
        }
    }

    #[test]
    fn a_right_is_asked_for_once_at_a_time() {
        let mut round = Round::default();
        round.due([question("a", 1)]);
        round.due([question("a", 1)]);
        assert_eq!(fill(&mut round), [question("a", 1)]);
        round.due([question("a", 1)]);
        assert_eq!(fill(&mut round), []);
        round.ended(question("a", 1), crate::clock::now(), true);
        assert!(round.waiting.is_empty() && round.known.is_empty(), "nothing is left behind");
        round.due([question("a", 1)]);
        assert_eq!(fill(&mut round), [question("a", 1)]);
    }

    #[test]
    fn a_failed_review_stops_no_other() {
        let mut round = Round::default();
        let all: Vec<_> = (0..40).map(|number| question("a", number)).collect();
        round.due(all.clone());
        let mut begun = 0;
        loop {
            let next = fill(&mut round);
            if next.is_empty() {
                break;
            }
            begun += next.len();
            for one in next {
                round.ended(one, crate::clock::now(), false);
            }
        }
        assert_eq!(begun, all.len());
    }

    #[test]
    fn while_nothing_succeeds_only_a_few_are_tried_again() {
        let start = crate::clock::now();
        let mut round = Round::default();
        let all = || (0..100).map(|number| question(["a", "b"][number % 2], number));
        let mut tried = HashMap::<Question, usize>::new();
        let mut look = |round: &mut Round, second: u64, answers: bool| {
            round.due(all());
            let mut begun = 0;
            loop {
                let next = fill(round);
                if next.is_empty() {
                    return begun;
                }
                begun += next.len();
                for one in next {
                    *tried.entry(one.clone()).or_default() += 1;
                    round.ended(one, start + Duration::from_secs(second), answers);
                }
            }
        };
        assert_eq!(look(&mut round, 0, false), 100);
        for second in 1..=7 {
            assert_eq!(look(&mut round, second, false), PROBES);
        }
        assert_eq!(look(&mut round, 8, true), PROBES);
        assert_eq!(look(&mut round, 9, true), 100, "the server answers again");
        assert!(round.failed.is_empty());
        assert!(tried.values().all(|count| *count >= 3), "each in its turn");
    }
}
