//! What was measured: a number, how far it strays, and what it should be at most.

use std::time::Duration;

use serde::Serialize;

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figure {
    /// What it says.
    pub(crate) what: String,
    /// In which unit.
    pub(crate) unit: &'static str,
    /// The median where there are several samples.
    pub(crate) value: f64,
    /// Among several samples: the one of ten, or of all, that was worst.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) worst: Option<Worst>,
    /// At most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) target: Option<f64>,
    /// Whether a miss is a bug, and not a wish.
    #[serde(skip)]
    must: bool,
    /// Whether it belongs to those that the README shows.
    #[serde(skip)]
    headline: bool,
}

/// How far samples stray.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Worst {
    /// Nine in ten are no larger.
    P90(f64),
    /// None is larger.
    Max(f64),
}

impl Figure {
    /// A single value.
    pub(crate) fn new(what: impl Into<String>, unit: &'static str, value: f64) -> Self {
        let what = what.into();
        Self { what, unit, value, worst: None, target: None, must: false, headline: false }
    }

    /// Of many samples, the median and the 90th percentile.
    pub(crate) fn of_many(what: impl Into<String>, unit: &'static str, samples: &[f64]) -> Self {
        let worst = Some(Worst::P90(percentile(samples, 90)));
        Self { worst, ..Self::new(what, unit, median(samples)) }
    }

    /// Of a few samples, the median and the largest.
    pub(crate) fn of_few(what: impl Into<String>, unit: &'static str, samples: &[f64]) -> Self {
        let worst = Some(Worst::Max(percentile(samples, 100)));
        Self { worst, ..Self::new(what, unit, median(samples)) }
    }

    /// It should be no more than `target`.
    pub(crate) fn at_most(self, target: f64) -> Self {
        Self { target: Some(target), headline: true, ..self }
    }

    /// It must be no more than `limit`, or the benchmark fails.
    pub(crate) fn never_above(self, limit: f64) -> Self {
        Self { must: true, ..self.at_most(limit) }
    }

    /// One of those that the README shows.
    pub(crate) fn headline(self) -> Self {
        Self { headline: true, ..self }
    }

    /// Whether the README shows it.
    pub(crate) fn is_headline(&self) -> bool {
        self.headline
    }

    /// Whether it shows a bug.
    pub(crate) fn is_broken(&self) -> bool {
        self.must && self.is_met() == Some(false)
    }

    /// Whether it is as it should be; none: nothing was asked.
    pub(crate) fn is_met(&self) -> Option<bool> {
        self.target.map(|target| self.value <= target)
    }
}

/// Half of the samples are no larger.
pub(crate) fn median(samples: &[f64]) -> f64 {
    percentile(samples, 50)
}

/// So many in a hundred of the samples are no larger; 0 of none.
fn percentile(samples: &[f64], percent: usize) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(place).copied().unwrap_or_default()
}

/// In microseconds.
pub(crate) fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// In milliseconds.
pub(crate) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let samples: Vec<f64> = (1..=10).rev().map(f64::from).collect();
        assert_eq!([50, 90, 100].map(|percent| percentile(&samples, percent)), [5.0, 9.0, 10.0]);
        assert_eq!((median(&[7.0]), median(&[])), (7.0, 0.0));
    }

    #[test]
    fn a_figure_may_be_its_target() {
        let figure = Figure::new("x", "ms", 2.0);
        assert_eq!(figure.is_met(), None);
        assert_eq!(figure.clone().at_most(2.0).is_met(), Some(true));
        let missed = figure.clone().at_most(1.9);
        assert_eq!((missed.is_met(), missed.is_broken()), (Some(false), false));
        assert!(figure.clone().never_above(1.9).is_broken());
        assert!(!figure.never_above(2.0).is_broken());
    }
}
