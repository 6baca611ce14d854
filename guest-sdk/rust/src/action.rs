//! What the host does with an object after a run that went well.

use std::time::Duration;

use crate::bindings::nagaya::controller::common;

/// The answer of a run that went well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing until something changes that the manifest watches.
    AwaitChange,
    /// Run again after this long, or sooner if something changes.
    RequeueAfter(Duration),
}

impl Action {
    /// Nothing until something changes that the manifest watches.
    pub fn await_change() -> Self {
        Self::AwaitChange
    }

    /// Run again after `delay`, or sooner if something changes. The host counts whole milliseconds, at most
    /// 49 days; a longer wait ends early, a part of a millisecond is rounded up.
    pub fn requeue_after(delay: Duration) -> Self {
        Self::RequeueAfter(delay)
    }
}

impl From<Action> for common::Action {
    fn from(action: Action) -> Self {
        match action {
            Action::AwaitChange => Self::AwaitChange,
            Action::RequeueAfter(delay) => {
                let millis = delay.as_nanos().div_ceil(1_000_000);
                Self::RequeueAfter(u32::try_from(millis).unwrap_or(u32::MAX))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_rounded_up_and_capped() {
        for (delay, millis) in [
            (Duration::ZERO, 0),
            (Duration::from_nanos(1), 1),
            (Duration::from_secs(2), 2_000),
            (Duration::from_secs(1 << 40), u32::MAX),
        ] {
            let action = common::Action::from(Action::requeue_after(delay));
            assert_eq!(action, common::Action::RequeueAfter(millis), "{delay:?}");
        }
    }
}
