//! Whether a host works at all, as far as its Lease tells: a status says what the last one has seen; pure.
//!
//! Invariant: `a_host_that_is_gone_is_told_from_one_that_cannot_be_seen`.

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use crate::model::crd::WasmController;

/// The namespace in which a deployment's Lease lies, unless it was given another.
pub(super) const NAMESPACE: &str = "nagaya-system";
/// What the Lease of a deployment is called; one that keeps some controllers only has a hash behind it.
const NAME: &str = "nagaya";
/// A Lease that is older than this many of its lifetimes is nobody's: clocks differ a little.
const LIFETIMES: i64 = 2;

/// What the Leases tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    /// No Lease could be seen: it may have another name, or this user may not read it.
    Unknown,
    /// A host works, or did a moment ago; in words.
    Here(String),
    /// None does; in words.
    Gone(String),
}

/// What the Leases `items` of [`NAMESPACE`] tell at `now`.
pub(super) fn read(items: &[Value], now: Timestamp) -> Presence {
    let ours = |lease: &&Value| {
        let name = lease["metadata"]["name"].as_str().unwrap_or_default();
        name.strip_prefix(NAME).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    let mut told: Vec<(i64, bool, String)> =
        items.iter().filter(ours).filter_map(|lease| of(lease, now)).collect();
    told.sort_by_key(|(age, ..)| *age);
    match told.into_iter().next() {
        None => Presence::Unknown,
        Some((_, true, text)) => Presence::Here(text),
        Some((_, false, text)) => Presence::Gone(text),
    }
}

/// Age in seconds, whether a host holds it, and that in words.
fn of(lease: &Value, now: Timestamp) -> Option<(i64, bool, String)> {
    let spec = &lease["spec"];
    let renewed: Timestamp = spec["renewTime"].as_str()?.parse().ok()?;
    let name = lease["metadata"]["name"].as_str()?;
    let holder = spec["holderIdentity"].as_str().unwrap_or_default();
    let age = (now.as_second() - renewed.as_second()).max(0);
    let lasts = spec["leaseDurationSeconds"].as_i64().unwrap_or(15);
    let is_held = !holder.is_empty() && age <= lasts.saturating_mul(LIFETIMES);
    let ago = super::print::age(Some(renewed), now);
    let text = if is_held {
        format!("{holder} holds the Lease {NAMESPACE}/{name}, renewed {ago} ago")
    } else {
        format!(
            "no host runs: nobody has renewed the Lease {NAMESPACE}/{name} for {ago}; what is shown is what the last one has said"
        )
    };
    Some((age, is_held, text))
}

/// Why a controller's status may not be so any more; `None`: it is as new as it can be.
pub(super) fn doubt(controller: &WasmController, presence: &Presence) -> Option<String> {
    let asked = controller.metadata.generation.unwrap_or_default();
    let seen = controller.status.as_ref().and_then(|status| status.observed_generation);
    if let Presence::Gone(text) = presence {
        return Some(text.clone());
    }
    match seen {
        Some(seen) if seen < asked => Some(format!(
            "no host has read the last change yet: this is how it stood with generation {seen}, and it has {asked}"
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::edit::tests::seen, *};

    fn lease(name: &str, holder: &str, renewed: &str) -> Value {
        json!({
            "metadata": { "name": name },
            "spec": { "holderIdentity": holder, "renewTime": renewed, "leaseDurationSeconds": 15 },
        })
    }

    #[test]
    fn a_host_that_is_gone_is_told_from_one_that_cannot_be_seen() {
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        let [new, old] = ["2026-01-01T00:59:50.000000Z", "2026-01-01T00:10:00.000000Z"];
        let told = |leases: &[Value]| read(leases, now);
        assert_eq!(told(&[]), Presence::Unknown);
        assert_eq!(told(&[lease("other", "a", old)]), Presence::Unknown);
        assert!(
            matches!(told(&[lease("nagaya", "a", new)]), Presence::Here(text) if text.starts_with("a holds"))
        );
        let gone = told(&[lease("nagaya", "a", old)]);
        assert!(matches!(&gone, Presence::Gone(text) if text.contains("for 50m")), "{gone:?}");
        assert!(matches!(told(&[lease("nagaya", "", new)]), Presence::Gone(_)), "given up");
        let two = [lease("nagaya", "a", old), lease("nagaya-0123456789ab", "b", new)];
        assert!(matches!(told(&two), Presence::Here(_)));

        let mut controller = seen().controller;
        let here = Presence::Here(String::new());
        assert_eq!(doubt(&controller, &here), None);
        assert!(doubt(&controller, &gone).unwrap().contains("no host runs"));
        controller.metadata.generation = Some(4);
        let text = doubt(&controller, &Presence::Unknown).unwrap();
        assert!(text.contains("generation 3, and it has 4"), "{text}");
        controller.status = None;
        assert_eq!(doubt(&controller, &here), None, "it says nothing yet");
    }
}
