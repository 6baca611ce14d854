//! The rules in force, and what they say about one request or one line; decides by a seed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::frozen::Recording;
use super::line;
use super::rule::{Action, Asked, Rule};

/// How a request ends.
#[derive(Debug, Clone)]
pub(super) enum Fate {
    Forward,
    /// Forwarded, and the answer is lost.
    LoseAnswer,
    Answer {
        code: u16,
        retry_after: Option<u64>,
    },
    Reset,
    /// Never answered while this rule is there.
    Hold(u64),
    /// Answered from a record while this rule is there.
    Frozen(u64, Arc<Vec<Recording>>),
}

/// Whether a watch passes its lines on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    Open,
    Stalled,
    /// Stands still, and breaks afterwards.
    Hole,
}

#[derive(Debug)]
struct Active {
    rule: Rule,
    random: fastrand::Rng,
    hits: Arc<AtomicU64>,
    /// Watches with a number below it were open when the rule came.
    since: u64,
}

/// All rules, oldest first.
#[derive(Debug, Default)]
pub(super) struct Rules {
    seed: u64,
    next: u64,
    active: BTreeMap<u64, Active>,
}

impl Rules {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, ..Self::default() }
    }

    /// `watches`: the number that the next watch will have.
    pub(super) fn add(&mut self, rule: Rule, watches: u64) -> (u64, Arc<AtomicU64>) {
        let id = self.next;
        self.next += 1;
        let hits = Arc::new(AtomicU64::new(0));
        let random = fastrand::Rng::with_seed(self.seed.wrapping_mul(31).wrapping_add(id));
        self.active.insert(id, Active { rule, random, hits: hits.clone(), since: watches });
        (id, hits)
    }

    pub(super) fn remove(&mut self, id: u64) {
        self.active.remove(&id);
    }

    pub(super) fn has(&self, id: u64) -> bool {
        self.active.contains_key(&id)
    }

    /// How long a request waits, and how it then ends: the first rule that says so decides.
    pub(super) fn request(&mut self, asked: &Asked) -> (Duration, Fate) {
        let mut wait = Duration::ZERO;
        for (id, active) in &mut self.active {
            // A stall lets the headers through.
            let action = &active.rule.action;
            if action.is_for_lines() || matches!(action, Action::Stall { .. }) {
                continue;
            }
            if let Action::Frozen(records) = action
                && !records.iter().any(|record| record.is_of(asked))
            {
                continue;
            }
            if !active.rule.matcher.matches(asked) || !active.strikes() {
                continue;
            }
            let fate = match &active.rule.action {
                Action::Delay(delay) => {
                    wait += *delay;
                    continue;
                }
                Action::Answer { code, retry_after } => {
                    Fate::Answer { code: *code, retry_after: *retry_after }
                }
                Action::Reset { answered: true } => Fate::LoseAnswer,
                Action::Reset { answered: false } => Fate::Reset,
                Action::Frozen(records) => Fate::Frozen(*id, records.clone()),
                _ => Fate::Hold(*id),
            };
            return (wait, fate);
        }
        (wait, Fate::Forward)
    }

    /// What happens to one line of a watch, in the order of the rules.
    pub(super) fn line(&mut self, asked: &Asked, text: &str) -> Vec<line::Effect> {
        let mut effects = vec![];
        for active in self.active.values_mut() {
            let Rule { matcher, action, line, .. } = &active.rule;
            if !action.is_for_lines()
                || !matcher.matches(asked)
                || line.as_ref().is_some_and(|wanted| !wanted(text))
                || !active.strikes()
            {
                continue;
            }
            match &active.rule.action {
                Action::DelayLines(delay) => effects.push(line::Effect::Delay(*delay)),
                Action::Drop => effects.push(line::Effect::Drop),
                Action::Duplicate => effects.push(line::Effect::Duplicate),
                Action::Swap { same_object } => {
                    effects.push(line::Effect::Swap { same_object: *same_object });
                }
                Action::Again => effects.push(line::Effect::Again(active.random.u64(..))),
                _ => (),
            }
        }
        effects
    }

    /// Whether the watch with this number passes its lines on.
    pub(super) fn flow(&self, asked: &Asked, number: u64) -> Flow {
        let mut flow = Flow::Open;
        for (id, active) in &self.active {
            let found = match active.rule.action {
                Action::Stall { open_only: true } if number >= active.since => continue,
                Action::Stall { .. } => Flow::Stalled,
                Action::BlackHole => Flow::Hole,
                _ => continue,
            };
            // The same answer each time it is asked about one watch.
            let seed = self.seed ^ (id << 32) ^ number;
            let share = fastrand::Rng::with_seed(seed).f64();
            if active.rule.matcher.matches(asked) && share < active.rule.share {
                flow = found;
            }
        }
        flow
    }
}

impl Active {
    /// Draws once; counts a hit.
    fn strikes(&mut self) -> bool {
        let so_far = self.hits.load(Ordering::Relaxed);
        if self.rule.times.is_some_and(|times| so_far >= times) {
            return false;
        }
        let strikes = self.rule.share >= 1.0 || self.random.f64() < self.rule.share;
        if strikes {
            self.hits.fetch_add(1, Ordering::Relaxed);
        }
        strikes
    }
}

#[cfg(test)]
mod tests {
    use super::super::rule::Matcher;
    use super::super::rule::tests::asked;
    use super::*;

    fn answers(rules: &mut Rules, count: usize) -> Vec<bool> {
        let one = asked("GET", "/x");
        (0..count).map(|_| matches!(rules.request(&one).1, Fate::Answer { .. })).collect()
    }

    const DENY: Action = Action::Answer { code: 500, retry_after: None };

    #[test]
    fn a_share_is_drawn_by_the_seed() {
        let draw = |seed| {
            let mut rules = Rules::new(seed);
            rules.add(Rule::new(Matcher::all(), DENY).share(0.25), 0);
            answers(&mut rules, 400)
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        let hits = draw(7).iter().filter(|hit| **hit).count();
        assert!((60..140).contains(&hits), "{hits}");
    }

    #[test]
    fn a_rule_strikes_only_so_often_and_not_after_its_removal() {
        let mut rules = Rules::new(1);
        let (id, hits) = rules.add(Rule::new(Matcher::all(), DENY).times(2), 0);
        assert_eq!(answers(&mut rules, 4), [true, true, false, false]);
        assert_eq!(hits.load(Ordering::Relaxed), 2);
        let (second, _) = rules.add(Rule::new(Matcher::all(), DENY), 0);
        rules.remove(second);
        assert!(rules.has(id) && !rules.has(second));
        assert_eq!(answers(&mut rules, 1), [false]);
    }

    #[test]
    fn delays_add_up_and_the_first_end_decides() {
        let mut rules = Rules::new(1);
        let second = Duration::from_secs(1);
        rules.add(Rule::new(Matcher::all(), Action::Delay(second)), 0);
        rules.add(Rule::new(Matcher::writes(), Action::Delay(second)), 0);
        rules.add(Rule::new(Matcher::writes(), Action::Reset { answered: true }), 0);
        rules.add(Rule::new(Matcher::all(), DENY), 0);
        let (wait, fate) = rules.request(&asked("POST", "/x"));
        assert!(wait == 2 * second && matches!(fate, Fate::LoseAnswer));
        let (wait, fate) = rules.request(&asked("GET", "/x"));
        assert!(wait == second && matches!(fate, Fate::Answer { code: 500, .. }));
    }

    #[test]
    fn a_stall_is_for_open_watches_or_for_all() {
        let mut rules = Rules::new(1);
        let watch = asked("GET", "/x?watch=true");
        let (id, _) =
            rules.add(Rule::new(Matcher::watches(), Action::Stall { open_only: true }), 3);
        assert_eq!(rules.flow(&watch, 2), Flow::Stalled);
        assert_eq!(rules.flow(&watch, 3), Flow::Open);
        rules.remove(id);
        assert_eq!(rules.flow(&watch, 2), Flow::Open);
        rules.add(Rule::new(Matcher::all().uri("/x"), Action::BlackHole), 3);
        assert_eq!(rules.flow(&watch, 9), Flow::Hole);
        assert_eq!(rules.flow(&asked("GET", "/y?watch=true"), 9), Flow::Open);
        assert!(matches!(rules.request(&watch).1, Fate::Hold(_)));
    }

    #[test]
    fn lines_are_chosen_by_what_they_say() {
        let mut rules = Rules::new(1);
        let drop =
            Rule::new(Matcher::watches(), Action::Drop).line(|line| line.contains("BOOKMARK"));
        rules.add(drop, 0);
        let watch = asked("GET", "/x?watch=true");
        assert_eq!(rules.line(&watch, r#"{"type":"BOOKMARK"}"#), [line::Effect::Drop]);
        assert_eq!(rules.line(&watch, r#"{"type":"ADDED"}"#), []);
        assert_eq!(rules.line(&asked("GET", "/x"), r#"{"type":"BOOKMARK"}"#), []);
    }
}
