//! One write on its way, and what all writes pass in one order.
//!
//! A call of a guest is read, asked for the grant, the owners it names are judged, and one that would change nothing is answered.
//! What is left is an [`Intent`]. It passes, in this order: the tries against other writers, the fight and the budget (both or
//! none is charged), the barrier of own writes, the account's wait, and last, before each try, whether the guest is gone and
//! the fence. A write of a preview passes none of these: it is tried, in [`super::dry`].
//!
//! Invariant: `what_the_fight_or_the_budget_refuses_is_charged_to_neither`.

use std::time::Instant;

use super::{
    Client, Error,
    gates::{
        budget::{Budget, Exceeded},
        fight::{Fights, Place, Side},
    },
    send::Unwritten,
};
use crate::{
    apiserver::Call,
    clock,
    model::{kind::Kind, manifest::Verb, object::ObjectKey},
};

/// What is to be written, and how.
#[derive(Clone, Debug)]
pub(super) struct Intent {
    pub(super) verb: Verb,
    pub(super) kind: Kind,
    /// Without a name if the server is to choose it.
    pub(super) key: ObjectKey,
    /// Which side of the object others may fight over; `None`: this write is no revert.
    pub(super) side: Option<Side>,
    /// The uid that it deletes.
    pub(super) deletes: Option<String>,
    /// The host's own word on the object: the guest may be gone.
    pub(super) by_host: bool,
    /// It holds only if the object does not exist; a conflict says that it does, and not that another was faster.
    pub(super) is_probe: bool,
    pub(super) call: Call,
}

impl Intent {
    pub(super) fn new(verb: Verb, (kind, key): (&Kind, &ObjectKey), call: Call) -> Self {
        Self {
            verb,
            kind: kind.clone(),
            key: key.clone(),
            side: None,
            deletes: None,
            by_host: false,
            is_probe: false,
            call,
        }
    }
}

impl Client {
    /// The one way of a write to the API server.
    pub(super) async fn write(&self, intent: Intent) -> Result<String, Unwritten> {
        if let Some(dry) = self.dry() {
            return self.try_out(dry, intent).await;
        }
        let admitted = self.check_tries(&intent.kind, &intent.key);
        admitted.and_then(|()| self.charge(&intent)).map_err(Unwritten::Refused)?;
        self.send(intent).await
    }

    /// Charges the fight and the budget, or neither.
    fn charge(&self, intent: &Intent) -> Result<(), Error> {
        let now = clock::now();
        let place = intent.side.map(|side| (intent.kind.clone(), intent.key.clone(), side));
        let charged = {
            let mut fights = self.fights();
            let mut budget = self.0.account.budget.lock();
            charge((&mut fights, &mut budget), place.as_ref(), intent.verb, now)
        };
        let Err((quota, Exceeded(wait))) = charged else { return Ok(()) };
        self.0.account.metrics.over_quota(quota);
        self.over_budget_until(now.checked_add(wait).map(Into::into));
        Err(Error::BudgetExceeded(match place {
            Some((kind, key, _)) if quota == "fights" => format!(
                "another writer keeps changing {kind} {key} back: this controller may write it again in {wait:.1?}"
            ),
            _ => format!("the controller's {quota} are used up for {wait:.1?}"),
        }))
    }
}

/// Takes of the fight and of the budget, or of neither; the error says which of them has nothing left.
fn charge(
    (fights, budget): (&mut Fights, &mut Budget),
    place: Option<&Place>,
    verb: Verb,
    now: Instant,
) -> Result<(), (&'static str, Exceeded)> {
    if let Some(place) = place {
        fights.allows(place, now).map_err(|exceeded| ("fights", exceeded))?;
    }
    match verb {
        Verb::Delete => budget.delete(now).map_err(|exceeded| ("deletes", exceeded)),
        _ => budget.write(now).map_err(|exceeded| ("writes", exceeded)),
    }?;
    if let Some(place) = place {
        fights.write(place, now);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an arbitrary starting point")]
    fn what_the_fight_or_the_budget_refuses_is_charged_to_neither() {
        let (mut fights, start) = (Fights::default(), Instant::now());
        // A burst of ten writes, then one a second.
        let mut budget = Budget::new(60, 1_000);
        let place = (Kind::new("v1", "ConfigMap"), ObjectKey::new(None, "x"), Side::Object);
        while !fights.took_back(place.clone(), start) {}
        let mut ask = |place: Option<&Place>, after: u64| {
            let now = start + Duration::from_secs(after);
            charge((&mut fights, &mut budget), place, Verb::Patch, now).map_err(|error| error.0)
        };
        for _ in 0..20 {
            assert_eq!(ask(Some(&place), 0), Err("fights"));
        }
        assert_eq!((0..20).filter(|_| ask(None, 0).is_ok()).count(), 10, "no refusal cost a write");
        // Twenty seconds later the fight allows one; the budget, used up by others, does not.
        while ask(None, 20).is_ok() {}
        assert_eq!(ask(Some(&place), 20), Err("writes"));
        assert_eq!(ask(Some(&place), 21), Ok(()), "the fight's one write is still there");
        assert_eq!(ask(Some(&place), 22), Err("fights"));
    }
}
