//! Where a guest's time and randomness come from: the machine, or two numbers, so that two runs can be told the same.
//!
//! A monotonic clock is always the machine's: it measures waits and names no moment.
//!
//! Invariants: `what_is_fixed_is_the_same_twice`, `what_is_of_the_machine_moves_on`.

use std::time::SystemTime;

use ring::rand::{SecureRandom, SystemRandom};

/// Bytes of randomness in one call.
pub(super) const RANDOM: usize = 64 << 10;

/// What a run's guest is told of time and chance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Chance {
    /// The machine's.
    #[default]
    Live,
    /// A moment that does not move, and a sequence that begins anew with each run.
    Fixed {
        /// Milliseconds since 1970.
        at: u64,
        /// Where the sequence begins.
        seed: u64,
    },
}

/// The same in one run.
#[derive(Debug)]
pub(super) enum Source {
    Live,
    Fixed { at: u64, sequence: fastrand::Rng },
}

impl Chance {
    /// Time stands still now, and chance begins at `seed`.
    pub fn fixed(seed: u64) -> Self {
        Self::Fixed { at: machine_time(), seed }
    }

    /// Another moment, a day later, and another sequence.
    #[must_use]
    pub fn another(self) -> Self {
        match self {
            Self::Live => Self::Live,
            Self::Fixed { at, seed } => {
                Self::Fixed { at: at.saturating_add(86_400_000), seed: !seed }
            }
        }
    }
}

impl From<Chance> for Source {
    fn from(chance: Chance) -> Self {
        match chance {
            Chance::Live => Self::Live,
            Chance::Fixed { at, seed } => {
                Self::Fixed { at, sequence: fastrand::Rng::with_seed(seed) }
            }
        }
    }
}

impl Source {
    /// Milliseconds since 1970.
    pub(super) fn now(&self) -> u64 {
        match self {
            Self::Live => machine_time(),
            Self::Fixed { at, .. } => *at,
        }
    }

    /// `length` random bytes.
    pub(super) fn random(&mut self, length: u64) -> wasmtime::Result<Vec<u8>> {
        let length = usize::try_from(length).ok().filter(|length| *length <= RANDOM);
        let Some(length) = length else {
            return Err(wasmtime::Error::msg(format!(
                "the guest asked for more than {RANDOM} random bytes in one call"
            )));
        };
        let mut bytes = vec![0; length];
        match self {
            Self::Live => SystemRandom::new()
                .fill(&mut bytes)
                .map_err(|_| wasmtime::Error::msg("the host has no randomness"))?,
            Self::Fixed { sequence, .. } => sequence.fill(&mut bytes),
        }
        Ok(bytes)
    }

    /// A random number.
    pub(super) fn number(&mut self) -> wasmtime::Result<u64> {
        Ok(self.random(8)?.into_iter().fold(0, |number, byte| number << 8 | u64::from(byte)))
    }
}

fn machine_time() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_fixed_is_the_same_twice() {
        let chance = Chance::fixed(7);
        let told = |chance: Chance| {
            let mut source = Source::from(chance);
            (source.now(), source.random(16).unwrap(), source.number().unwrap())
        };
        assert_eq!(told(chance), told(chance));
        let (one, other) = (told(chance), told(chance.another()));
        assert!(one.0 != other.0 && one.1 != other.1 && one.2 != other.2);
        assert!(Source::from(chance).random(RANDOM as u64 + 1).is_err());
    }

    #[test]
    fn what_is_of_the_machine_moves_on() {
        let mut source = Source::from(Chance::Live);
        assert_ne!(source.random(16).unwrap(), source.random(16).unwrap());
        assert!(source.random(RANDOM as u64 + 1).is_err());
        assert_eq!(Chance::Live.another(), Chance::Live);
    }
}
