//! A Lease as JSON, both ways; pure

use std::time::Duration;

use serde_json::{Value, json};

use super::{Options, election::Record};

/// The annotation that says where the holder is asked.
pub const ADDRESS: &str = "nagaya.dev/address";

/// The record in a Lease.
pub(super) fn read(lease: &Value) -> Record {
    let spec = &lease["spec"];
    let text = |value: &Value| value.as_str().map(str::to_owned);
    Record {
        holder: text(&spec["holderIdentity"]).unwrap_or_default(),
        lasts: Duration::from_secs(spec["leaseDurationSeconds"].as_u64().unwrap_or_default()),
        transitions: spec["leaseTransitions"].as_i64().unwrap_or_default(),
        acquired: text(&spec["acquireTime"]),
        renewed: text(&spec["renewTime"]),
        version: text(&lease["metadata"]["resourceVersion"]).unwrap_or_default(),
    }
}

/// What a line of a watch says of the Lease.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum News {
    /// How it is now.
    Changed(Record),
    /// There is none any more.
    Gone,
    /// Nothing.
    Nothing,
}

/// Reads a line of a watch on one Lease.
pub(super) fn news(line: &str) -> News {
    let event: Value = serde_json::from_str(line).unwrap_or_default();
    match event["type"].as_str() {
        Some("ADDED" | "MODIFIED") => News::Changed(read(&event["object"])),
        Some("DELETED") => News::Gone,
        _ => News::Nothing,
    }
}

/// The Lease that says `record`, renewed at `now`, a time as the API writes it.
pub(super) fn object(options: &Options, record: &Record, now: &str) -> Value {
    let Options { namespace, name, address, .. } = options;
    let mut lease = json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": { "namespace": namespace, "name": name },
        "spec": {
            "holderIdentity": record.holder,
            "leaseDurationSeconds": record.lasts.as_secs(),
            "leaseTransitions": record.transitions,
            "acquireTime": record.acquired.as_deref().unwrap_or(now),
            "renewTime": now,
        },
    });
    if let Some(address) = address {
        lease["metadata"]["annotations"] = json!({ ADDRESS: address.to_string() });
    }
    if !record.version.is_empty() {
        lease["metadata"]["resourceVersion"] = json!(record.version);
    }
    lease
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{kubeconfig::Source, leader::lease::Profile};

    #[test]
    fn a_record_survives_the_way_through_an_object() {
        let record = Record {
            holder: "host_1".into(),
            lasts: Duration::from_secs(15),
            transitions: 3,
            acquired: Some("2026-01-02T03:04:05.000006Z".into()),
            renewed: None,
            version: "17".into(),
        };
        let now = "2026-02-03T04:05:06.000007Z";
        let options = Options {
            namespace: "sys".into(),
            name: "nagaya".into(),
            identity: "host_1".into(),
            address: Some("10.1.2.3:7443".parse().unwrap()),
            profile: Profile::FAST,
            kubeconfig: Source::default(),
        };
        let lease = object(&options, &record, now);
        assert_eq!(lease["metadata"]["annotations"][ADDRESS], "10.1.2.3:7443");
        let found = Record { renewed: Some(now.to_owned()), ..record };
        assert_eq!(read(&lease), found);
        let line = json!({ "type": "MODIFIED", "object": lease }).to_string();
        assert_eq!(news(&line), News::Changed(found));
        let gone = json!({ "type": "DELETED", "object": lease }).to_string();
        assert_eq!(news(&gone), News::Gone);
        assert_eq!(news(r#"{"type":"ERROR","object":{"code":410}}"#), News::Nothing);
        let created = object(&options, &Record::default(), now);
        assert!(created["metadata"].get("resourceVersion").is_none());
        assert_eq!(created["spec"]["acquireTime"], now);
    }
}
