//! Decides whether the live revision keeps breaking down; pure (R89).
//!
//! A run breaks down when its guest traps, exits, or meets a limit; an error that it returns is an answer. Once ill, a
//! revision is well again when most runs of the last minute are: one good run among many bad ones is no cure.
//!
//! Invariants, each held by the test of that name:
//!
//! - `five_in_a_row_are_an_illness_and_four_are_none`
//! - `more_than_half_of_a_minutes_runs_are_an_illness`
//! - `one_good_run_is_no_cure`

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Breakdowns in a row that make a revision ill.
const IN_A_ROW: u32 = 5;
/// The time whose runs are counted.
const WINDOW: Duration = Duration::from_secs(60);
/// Runs in that time below which their share says nothing.
const ENOUGH: u32 = 10;
/// Runs are counted in steps of this length.
const STEP: Duration = Duration::from_secs(1);

/// What is known of the runs of one revision.
#[derive(Debug, Default)]
pub struct Health {
    in_a_row: u32,
    steps: VecDeque<Step>,
    illness: Option<String>,
}

#[derive(Debug)]
struct Step {
    began: Instant,
    runs: u32,
    broken: u32,
}

impl Health {
    /// A run has ended; `broken` says how it broke down, if it did.
    pub fn ran(&mut self, broken: Option<&str>, now: Instant) {
        match self.steps.back_mut() {
            Some(step) if now.saturating_duration_since(step.began) < STEP => step.count(broken),
            _ => {
                let mut step = Step { began: now, runs: 0, broken: 0 };
                step.count(broken);
                self.steps.push_back(step);
            }
        }
        self.in_a_row = if broken.is_some() { self.in_a_row.saturating_add(1) } else { 0 };
        let (runs, breakdowns) = self.last_minute(now);
        let Some(how) = broken.filter(|_| self.illness.is_none()) else { return };
        if self.in_a_row >= IN_A_ROW {
            let text =
                format!("{IN_A_ROW} runs in a row broke down, the last one like this: {how}");
            self.illness = Some(text);
        } else if runs >= ENOUGH && breakdowns * 2 > runs {
            let text = format!(
                "{breakdowns} of {runs} runs within a minute broke down, the last one like this: {how}"
            );
            self.illness = Some(text);
        }
    }

    /// What is wrong, in the words of the moment when it began; `None`: the revision is well.
    pub fn illness(&mut self, now: Instant) -> Option<&str> {
        let (runs, broken) = self.last_minute(now);
        if self.in_a_row < IN_A_ROW && broken * 2 <= runs {
            self.illness = None;
        }
        self.illness.as_deref()
    }

    fn last_minute(&mut self, now: Instant) -> (u32, u32) {
        let is_old = |step: &Step| now.saturating_duration_since(step.began) >= WINDOW;
        while self.steps.front().is_some_and(is_old) {
            self.steps.pop_front();
        }
        self.steps
            .iter()
            .fold((0, 0), |(runs, broken), step| (runs + step.runs, broken + step.broken))
    }
}

impl Step {
    fn count(&mut self, broken: Option<&str>) {
        self.runs = self.runs.saturating_add(1);
        self.broken = self.broken.saturating_add(u32::from(broken.is_some()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "an arbitrary starting point")]
    fn health() -> (Health, Instant) {
        (Health::default(), Instant::now())
    }

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn five_in_a_row_are_an_illness_and_four_are_none() {
        let (mut health, now) = health();
        for _ in 0..3 {
            for _ in 0..4 {
                health.ran(Some("it trapped"), now);
            }
            health.ran(None, now);
            health.ran(None, now);
            health.ran(None, now);
            health.ran(None, now);
        }
        assert_eq!(health.illness(now), None);
        for second in 0..5 {
            health.ran(Some(&format!("trap {second}")), after(now, 100 + 100 * second));
        }
        let said = health.illness(after(now, 500)).unwrap().to_owned();
        assert!(said.starts_with("5 runs in a row") && said.ends_with("trap 4"), "{said}");
        health.ran(Some("another"), after(now, 600));
        assert_eq!(health.illness(after(now, 9_000)), Some(&*said), "it is told once");
    }

    #[test]
    fn more_than_half_of_a_minutes_runs_are_an_illness() {
        let (mut health, now) = health();
        for second in 0..100 {
            health.ran((second % 2 == 1).then_some("trap"), after(now, second));
            assert_eq!(health.illness(after(now, second)), None, "half is not more than half");
        }
        for second in 100..160 {
            health.ran((second % 3 != 0).then_some("trap"), after(now, second));
        }
        let said = health.illness(after(now, 160)).unwrap();
        assert!(said.contains(" runs within a minute broke down"), "{said}");
        let (mut few, now) = super::tests::health();
        for second in 0..9 {
            few.ran((second % 3 != 0).then_some("trap"), after(now, second));
        }
        assert_eq!(few.illness(after(now, 9)), None, "too few to tell");
    }

    #[test]
    fn one_good_run_is_no_cure() {
        let (mut health, now) = health();
        for _ in 0..6 {
            health.ran(Some("trap"), now);
        }
        health.ran(None, after(now, 1));
        assert!(health.illness(after(now, 2)).is_some());
        assert_eq!(health.illness(after(now, 60)), None, "the bad ones are long ago");
        for _ in 0..5 {
            health.ran(Some("trap"), after(now, 70));
        }
        for _ in 0..4 {
            health.ran(None, after(now, 71));
        }
        assert!(health.illness(after(now, 71)).is_some());
        health.ran(None, after(now, 71));
        assert_eq!(health.illness(after(now, 71)), None, "half are well");
    }
}
