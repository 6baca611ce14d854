//! Who wrote: what the User-Agent of a run says.

use std::collections::BTreeMap;

/// The run that a request belongs to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Author {
    /// `namespace/name` of the WasmController.
    pub controller: String,
    /// The first digits of the revision's digest.
    pub revision: String,
    /// The executor's generation.
    pub generation: u64,
    /// The epoch of the host's Lease; none: a host without a Lease.
    pub epoch: Option<u64>,
    /// A hash of the reconciled key.
    pub key: String,
    /// The run.
    pub reconcile: String,
}

impl Author {
    /// Reads `nagaya/0.1.0 (controller=…; revision=…; generation=…; key=…; reconcile=…)`, in any order and with
    /// further fields; none: no run sent this.
    pub fn of(agent: &str) -> Option<Self> {
        let fields = agent.strip_prefix("nagaya/")?.split_once('(')?.1.strip_suffix(')')?;
        let fields: BTreeMap<_, _> =
            fields.split(';').filter_map(|field| field.trim().split_once('=')).collect();
        let text = |name: &str| fields.get(name).map(|text| (*text).to_owned());
        Some(Self {
            controller: text("controller")?,
            revision: text("revision")?,
            generation: fields.get("generation")?.parse().ok()?,
            epoch: fields.get("epoch").and_then(|epoch| epoch.parse().ok()),
            key: text("key")?,
            reconcile: text("reconcile")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_told_from_the_host_and_from_others() {
        let agent = "nagaya/0.1.0 (controller=a/b; revision=0123456789ab; generation=7; epoch=3; \
                     key=deadbeef; reconcile=r1)";
        let author = Author::of(agent).unwrap();
        assert_eq!((&*author.controller, author.generation, author.epoch), ("a/b", 7, Some(3)));
        assert_eq!((&*author.key, &*author.reconcile), ("deadbeef", "r1"));
        assert_eq!(Author::of(&agent.replace("epoch=3; ", "")).unwrap().epoch, None);
        assert_eq!(Author::of("nagaya/0.1.0"), None);
        assert_eq!(Author::of("kubectl/1.36 (controller=a/b)"), None);
    }
}
