//! What the conditions of all controllers say at the moment of a scrape, in the form of kube-state-metrics: a series for each
//! status that a condition can have, of which one is 1.

use std::fmt;

use prometheus_client::{collector::Collector, encoding::DescriptorEncoder};

use super::gauges;

/// What a condition's status can be.
const STATUSES: [&str; 3] = ["True", "False", "Unknown"];

/// One condition of a controller.
#[derive(Clone, Debug)]
pub struct ConditionStats {
    /// The controller, as `namespace/name`.
    pub controller: String,
    /// The condition's type.
    pub kind: String,
    /// Its status.
    pub status: String,
}

type Ask = Box<dyn Fn() -> Vec<ConditionStats> + Send + Sync>;

/// Asks for the conditions at every scrape.
pub(super) struct Conditions(pub(super) Ask);

impl fmt::Debug for Conditions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conditions").finish_non_exhaustive()
    }
}

impl Collector for Conditions {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let mut all = vec![];
        for condition in (self.0)() {
            for status in STATUSES {
                let labels = vec![
                    ("controller", condition.controller.clone()),
                    ("type", condition.kind.clone()),
                    ("status", status.to_owned()),
                ];
                all.push((labels, i64::from(condition.status == status)));
            }
        }
        let help = "1 for the status that a condition of a WasmController has, else 0";
        gauges(&mut encoder, "nagaya_controller_condition", help, all)
    }
}
