//! What patch of a WasmController follows from what was read and what its team wants; pure.
//!
//! Promote, abort and rollback are each one write to the spec. The patch carries the
//! resourceVersion of what was read, so that it can never undo an edit that nobody here has seen.
//!
//! Invariants, each held by the test of that name:
//!
//! - `an_edit_is_refused_rather_than_guessed`
//! - `a_revision_is_never_active_and_rejected`
//! - `promote_then_rollback_rejects_the_loser_only`
//! - `a_push_leaves_every_decision_as_it_is`
//! - `a_conflict_is_tried_again_only_if_the_status_alone_moved`

use serde_json::{Value, json};

use crate::model::{
    crd::{
        RevisionPhase, RolloutSpec, WasmController, WasmControllerStatus, WasmRevision,
        revision_name,
    },
    digest::Digest,
    plan::Enforcement,
};

/// The CRD refuses a longer `rollout.rejected`.
const MAX_REJECTED: usize = 100;

/// A controller with its revisions, as they were read.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// The controller.
    pub(super) controller: WasmController,
    /// Its revisions, in no order.
    pub(super) revisions: Vec<WasmRevision>,
}

/// What is to be edited.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Edit {
    /// The spec says so already.
    Stands {
        /// The revision it is about.
        revision: String,
    },
    /// A merge patch that makes it so.
    Patch {
        /// The revision it is about.
        revision: String,
        /// The body.
        patch: Value,
    },
}

/// Why an edit is refused; nothing was written.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Error {
    /// Promote without a candidate.
    #[error("{name} has no candidate to promote: {why}")]
    NoCandidate {
        /// The controller.
        name: String,
        /// What to do instead.
        why: String,
    },
    /// Abort without a candidate.
    #[error("{name} has no candidate to abort{hint}")]
    NothingToAbort {
        /// The controller.
        name: String,
        /// What to do instead.
        hint: String,
    },
    /// A revision that is not there.
    #[error("{name} has no revision {revision}; {known}")]
    Unknown {
        /// The controller.
        name: String,
        /// What was asked for.
        revision: String,
        /// Those that are there.
        known: String,
    },
    /// A revision that cannot run.
    #[error("{revision} cannot go live, it failed: {message}")]
    Failed {
        /// What was asked for.
        revision: String,
        /// Why it failed.
        message: String,
    },
    /// Rollback without a way back.
    #[error("{name} has no previous revision to go back to; {others}")]
    NoPrevious {
        /// The controller.
        name: String,
        /// What to do instead.
        others: String,
    },
    /// Rollback with nothing live.
    #[error(
        "{0} has no live revision to roll back; `nagaya promote {0} --revision R` makes one live"
    )]
    NothingLive(String),
    /// Rollback to where it is.
    #[error("{revision} is live already; {known}")]
    LiveAlready {
        /// The live revision.
        revision: String,
        /// The others.
        known: String,
    },
    /// Somebody else was faster.
    #[error(
        "{name} was edited by somebody else while this command ran, nothing was changed: look with `nagaya get {name}` and run the command again"
    )]
    Edited {
        /// The controller.
        name: String,
    },
}

impl Seen {
    /// The controller's name.
    pub(super) fn name(&self) -> &str {
        self.controller.metadata.name.as_deref().unwrap_or_default()
    }

    /// Its `metadata.generation`.
    pub(super) fn generation(&self) -> i64 {
        self.controller.metadata.generation.unwrap_or_default()
    }

    /// What the host says of it.
    pub(super) fn status(&self) -> WasmControllerStatus {
        self.controller.status.clone().unwrap_or_default()
    }

    /// The revision of this name.
    pub(super) fn revision(&self, name: &str) -> Option<&WasmRevision> {
        self.revisions.iter().find(|revision| revision.metadata.name.as_deref() == Some(name))
    }

    /// The name of the revision that the spec's digest and config make.
    pub(super) fn desired(&self) -> String {
        self.revision_of(&self.controller.module().unwrap_or_default().digest)
    }

    /// The name of the revision that `digest` and the spec's config make.
    pub(super) fn revision_of(&self, digest: &str) -> String {
        revision_name(self.name(), digest, self.controller.spec.config.as_ref())
    }

    /// Whether the team has rejected the revision of this name.
    pub(super) fn rejects(&self, name: &str) -> bool {
        self.rollout().rejected.iter().any(|rejected| rejected == name)
    }

    /// The revision's phase and what the host says about it.
    pub(super) fn standing(&self, name: &str) -> Option<(RevisionPhase, String)> {
        let status = self.revision(name)?.status.clone().unwrap_or_default();
        Some((status.phase, status.message.unwrap_or_default()))
    }

    /// The revisions' names in the order of their numbers, newest first.
    pub(super) fn newest_first(&self) -> Vec<&WasmRevision> {
        let mut revisions: Vec<_> = self.revisions.iter().collect();
        revisions.sort_by_key(|revision| std::cmp::Reverse(revision.spec.number));
        revisions
    }

    /// Whether a promotion by hand is held by gates.
    pub(super) fn enforces_gates(&self) -> bool {
        let gates = self.rollout().gates.as_ref();
        gates.is_some_and(|gates| gates.enforcement == Enforcement::Enforce)
    }

    fn rollout(&self) -> &RolloutSpec {
        &self.controller.spec.rollout
    }

    fn known(&self) -> String {
        let names: Vec<_> =
            self.newest_first().into_iter().filter_map(|r| r.metadata.name.as_deref()).collect();
        match names.as_slice() {
            [] => "there is no revision yet".to_owned(),
            names => format!("there are: {}", names.join(", ")),
        }
    }

    /// The revisions that a rollback can go to, or what to do if there is none.
    fn ways_back(&self) -> String {
        let status = self.status();
        let can_be = |revision: &&WasmRevision| {
            let phase = revision.status.as_ref().map(|status| status.phase).unwrap_or_default();
            revision.metadata.name != status.active
                && !matches!(phase, RevisionPhase::Failed | RevisionPhase::Pending)
        };
        let names: Vec<_> = self
            .newest_first()
            .into_iter()
            .filter(can_be)
            .filter_map(|revision| revision.metadata.name.as_deref())
            .collect();
        if names.is_empty() {
            return format!(
                "there is no other revision that could run: push one that works, nagaya push {} FILE",
                self.name()
            );
        }
        format!("name one with --to: {}", names.join(", "))
    }

    fn must_be_able_to_run(&self, revision: &str) -> Result<(), Error> {
        match self.standing(revision) {
            None => Err(Error::Unknown {
                name: self.name().to_owned(),
                revision: revision.to_owned(),
                known: self.known(),
            }),
            Some((RevisionPhase::Failed, message)) => {
                Err(Error::Failed { revision: revision.to_owned(), message })
            }
            Some(_) => Ok(()),
        }
    }

    /// `rejected` without `keep` and, if given, with `add`. A full list forgets what is no revision any more.
    fn rejected(&self, keep: Option<&str>, add: Option<&str>) -> Vec<String> {
        let mut list: Vec<String> = self.rollout().rejected.clone();
        list.retain(|name| Some(name.as_str()) != keep && Some(name.as_str()) != add);
        if list.len() >= MAX_REJECTED {
            list.retain(|name| self.revision(name).is_some());
        }
        list.extend(add.map(str::to_owned));
        list
    }

    fn patch(&self, spec: &Value) -> Value {
        json!({
            "metadata": { "resourceVersion": self.controller.metadata.resource_version },
            "spec": spec,
        })
    }

    fn plan(&self, revision: &str, active: Option<&str>, rejected: &[String]) -> Edit {
        let now = self.rollout();
        let revision = revision.to_owned();
        let mut rollout = serde_json::Map::new();
        if now.active.as_deref() != active {
            rollout.insert("active".to_owned(), json!(active));
        }
        if now.rejected != rejected {
            let list = if rejected.is_empty() { Value::Null } else { json!(rejected) };
            rollout.insert("rejected".to_owned(), list);
        }
        if rollout.is_empty() {
            return Edit::Stands { revision };
        }
        Edit::Patch { revision, patch: self.patch(&json!({ "rollout": rollout })) }
    }
}

impl Edit {
    /// The revision that the edit is about.
    pub(super) fn revision(&self) -> &str {
        match self {
            Self::Stands { revision } | Self::Patch { revision, .. } => revision,
        }
    }
}

/// Names `digest` in the spec, and decides nothing else: what was rejected stays rejected.
pub(super) fn push(seen: &Seen, digest: &Digest) -> Edit {
    let text = digest.to_string();
    let revision = seen.revision_of(&text);
    let module = &seen.controller.spec.module;
    if module.digest == text {
        return Edit::Stands { revision };
    }
    // A merge patch leaves alone what it does not name.
    let named = match module.image {
        Some(_) => json!({ "digest": text, "image": null }),
        None => json!({ "digest": text }),
    };
    Edit::Patch { revision, patch: seen.patch(&json!({ "module": named })) }
}

/// Names `image`, whose component is `digest`, in the spec, and decides nothing else.
pub(super) fn push_image(seen: &Seen, image: &str, digest: &Digest) -> Edit {
    let revision = seen.revision_of(&digest.to_string());
    let module = &seen.controller.spec.module;
    if module.image.as_deref() == Some(image) {
        return Edit::Stands { revision };
    }
    let named = if module.digest.is_empty() {
        json!({ "image": image })
    } else {
        json!({ "image": image, "digest": null })
    };
    Edit::Patch { revision, patch: seen.patch(&json!({ "module": named })) }
}

/// Makes `revision` live, or else the candidate.
pub(super) fn promote(seen: &Seen, revision: Option<&str>) -> Result<Edit, Error> {
    let target = match (revision, seen.status().candidate) {
        (Some(revision), _) => revision.to_owned(),
        (None, Some(candidate)) => candidate,
        (None, None) => return Err(no_candidate(seen)),
    };
    seen.must_be_able_to_run(&target)?;
    Ok(seen.plan(&target, Some(&target), &seen.rejected(Some(&target), None)))
}

/// Rejects the candidate, or the revision that is on its way to become it.
pub(super) fn abort(seen: &Seen) -> Result<Edit, Error> {
    let status = seen.status();
    let desired = seen.desired();
    let staging = || {
        let (phase, _) = seen.standing(&desired)?;
        let on_its_way =
            matches!(phase, RevisionPhase::Pending | RevisionPhase::Loading | RevisionPhase::Ready);
        (on_its_way && status.active.as_ref() != Some(&desired)).then(|| desired.clone())
    };
    let Some(loser) = status.candidate.clone().or_else(staging) else {
        let name = seen.name().to_owned();
        let hint = match status.active {
            Some(active) => format!("; {active} is live, and `nagaya rollback {name}` leaves it"),
            None => String::new(),
        };
        return Err(Error::NothingToAbort { name, hint });
    };
    let named = seen.rollout().active.as_deref();
    let active = if named == Some(&loser) { status.active.as_deref() } else { named };
    Ok(seen.plan(&loser, active, &seen.rejected(active, Some(&loser))))
}

/// Leaves the live revision for `to`, or else for the previous one, and rejects it.
pub(super) fn rollback(seen: &Seen, to: Option<&str>) -> Result<Edit, Error> {
    let status = seen.status();
    let name = seen.name().to_owned();
    let Some(loser) = status.active else { return Err(Error::NothingLive(name)) };
    let target = match (to, status.previous) {
        (Some(to), _) => to.to_owned(),
        (None, Some(previous)) => previous,
        (None, None) => return Err(Error::NoPrevious { name, others: seen.ways_back() }),
    };
    if target == loser {
        return Err(Error::LiveAlready { revision: target, known: seen.ways_back() });
    }
    seen.must_be_able_to_run(&target)?;
    Ok(seen.plan(&target, Some(&target), &seen.rejected(Some(&target), Some(&loser))))
}

/// After a 409: whether the patch may be made again from `now`, since only the status has moved since `read`.
pub(super) fn after_conflict(read: &Seen, now: &Seen) -> Result<(), Error> {
    let same = read.controller.metadata.uid == now.controller.metadata.uid
        && read.generation() == now.generation();
    if same { Ok(()) } else { Err(Error::Edited { name: now.name().to_owned() }) }
}

fn no_candidate(seen: &Seen) -> Error {
    let name = seen.name().to_owned();
    let status = seen.status();
    let desired = seen.desired();
    let why = if status.active.as_ref() == Some(&desired) {
        format!("{desired} is live; push another component, or name a revision: {}", seen.known())
    } else if seen.rejects(&desired) {
        format!(
            "{desired} is rejected; `nagaya promote {name} --revision {desired}` makes it live all the same"
        )
    } else {
        match seen.standing(&desired) {
            Some((RevisionPhase::Failed, message)) => format!("{desired} failed: {message}"),
            Some((phase, message)) if !message.is_empty() => {
                format!("{desired} is {phase:?}: {message}")
            }
            Some((phase, _)) => format!("{desired} is {phase:?}; try again when it is staged"),
            None => format!(
                "the host has not made {desired} yet; `nagaya get {name}` shows what it waits for"
            ),
        }
    };
    Error::NoCandidate { name, why }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::model::crd::{WasmControllerSpec, WasmRevisionSpec, WasmRevisionStatus};

    const OLD: &str = "sha256:1111111111111111111111111111111111111111111111111111111111111111";
    const NEW: &str = "sha256:2222222222222222222222222222222222222222222222222222222222222222";

    pub(crate) fn v(digest: &str) -> String {
        revision_name("web", digest, None)
    }

    pub(crate) fn revision(digest: &str, number: i64, phase: RevisionPhase) -> WasmRevision {
        let spec = WasmRevisionSpec {
            controller: "web".into(),
            number,
            digest: digest.into(),
            image: None,
            config: None,
        };
        let mut revision = WasmRevision::new(&v(digest), spec);
        revision.status = Some(WasmRevisionStatus { phase, ..WasmRevisionStatus::default() });
        revision
    }

    /// `OLD` is live, `NEW` is the candidate.
    pub(crate) fn seen() -> Seen {
        let mut spec = WasmControllerSpec::default();
        spec.module.digest = NEW.into();
        let mut controller = WasmController::new("web", spec);
        controller.metadata.namespace = Some("demo".into());
        controller.metadata.resource_version = Some("7".into());
        controller.metadata.generation = Some(3);
        controller.metadata.uid = Some("u".into());
        controller.status = Some(WasmControllerStatus {
            active: Some(v(OLD)),
            candidate: Some(v(NEW)),
            observed_generation: Some(3),
            ..WasmControllerStatus::default()
        });
        let revisions =
            vec![revision(OLD, 1, RevisionPhase::Active), revision(NEW, 2, RevisionPhase::Ready)];
        Seen { controller, revisions }
    }

    fn status(seen: &mut Seen) -> &mut WasmControllerStatus {
        seen.controller.status.as_mut().unwrap()
    }

    /// What the API server makes of a plan, and the host of that: the named revision goes live.
    fn apply(seen: &mut Seen, plan: &Edit) {
        if let Edit::Patch { patch, .. } = plan {
            assert_eq!(patch["metadata"]["resourceVersion"], "7", "{patch}");
            let mut spec = serde_json::to_value(&seen.controller.spec).unwrap();
            json_patch::merge(&mut spec, &patch["spec"]);
            seen.controller.spec = serde_json::from_value(spec).unwrap();
        }
        let rollout = seen.controller.spec.rollout.clone();
        let desired = seen.desired();
        let waits = Some(&desired) != rollout.active.as_ref() && !seen.rejects(&desired);
        let status = status(seen);
        if rollout.active.is_some() && rollout.active != status.active {
            status.previous = status.active.take().filter(|name| !rollout.rejected.contains(name));
            status.active = rollout.active;
        }
        status.candidate = waits.then_some(desired);
    }

    #[test]
    fn promote_makes_the_candidate_live() {
        let seen = seen();
        let plan = promote(&seen, None).unwrap();
        let patch = json!({
            "metadata": { "resourceVersion": "7" },
            "spec": { "rollout": { "active": v(NEW) } },
        });
        assert_eq!(plan, Edit::Patch { revision: v(NEW), patch });
    }

    #[test]
    fn a_rejected_revision_is_promoted_by_name_and_taken_back() {
        let mut seen = seen();
        let plan = abort(&seen).unwrap();
        apply(&mut seen, &plan);
        assert_eq!(seen.controller.spec.rollout.rejected, [v(NEW)]);
        let refused = promote(&seen, None).unwrap_err().to_string();
        assert!(
            refused.contains(&format!("nagaya promote web --revision {}", v(NEW))),
            "{refused}"
        );
        let plan = promote(&seen, Some(&v(NEW))).unwrap();
        let Edit::Patch { patch, .. } = &plan else { panic!("{plan:?}") };
        assert_eq!(patch["spec"]["rollout"]["rejected"], Value::Null);
        assert!(patch["spec"]["rollout"].as_object().unwrap().contains_key("rejected"));
        apply(&mut seen, &plan);
        assert_eq!(status(&mut seen).active, Some(v(NEW)));
        assert!(seen.controller.spec.rollout.rejected.is_empty());
    }

    #[test]
    fn promote_then_rollback_rejects_the_loser_only() {
        let mut seen = seen();
        seen.controller.spec.rollout.rejected = vec![v(OLD), "web-gone".into()];
        let plan = promote(&seen, None).unwrap();
        apply(&mut seen, &plan);
        seen.controller.spec.rollout.rejected = vec!["web-gone".into()];
        status(&mut seen).previous = Some(v(OLD));
        let plan = rollback(&seen, None).unwrap();
        assert_eq!(plan.revision(), v(OLD));
        apply(&mut seen, &plan);
        assert_eq!(status(&mut seen).active, Some(v(OLD)));
        assert_eq!(seen.controller.spec.rollout.rejected, ["web-gone".to_owned(), v(NEW)]);
        assert_eq!(status(&mut seen).candidate, None, "the loser is no candidate again");
    }

    #[test]
    fn what_stands_is_not_written_again() {
        let mut seen = seen();
        let plan = promote(&seen, None).unwrap();
        apply(&mut seen, &plan);
        assert_eq!(promote(&seen, Some(&v(NEW))), Ok(Edit::Stands { revision: v(NEW) }));
        let digest: Digest = NEW.parse().unwrap();
        assert_eq!(push(&seen, &digest), Edit::Stands { revision: v(NEW) });
    }

    #[test]
    fn aborting_what_was_just_promoted_names_the_live_one_again() {
        let mut seen = seen();
        seen.controller.spec.rollout.active = Some(v(NEW));
        let plan = abort(&seen).unwrap();
        let Edit::Patch { patch, revision } = &plan else { panic!("{plan:?}") };
        assert_eq!(*revision, v(NEW));
        assert_eq!(patch["spec"]["rollout"], json!({ "active": v(OLD), "rejected": [v(NEW)] }));
    }

    #[test]
    fn a_revision_on_its_way_can_be_aborted() {
        let mut seen = seen();
        status(&mut seen).candidate = None;
        seen.revisions[1] = revision(NEW, 2, RevisionPhase::Loading);
        assert_eq!(abort(&seen).unwrap().revision(), v(NEW));
    }

    #[test]
    fn an_edit_is_refused_rather_than_guessed() {
        let mut live = seen();
        live.controller.spec.module.digest = OLD.into();
        status(&mut live).candidate = None;
        let text = promote(&live, None).unwrap_err().to_string();
        assert!(text.contains("is live; push another component"), "{text}");
        assert!(matches!(abort(&live), Err(Error::NothingToAbort { .. })));
        let text = rollback(&live, None).unwrap_err().to_string();
        assert!(text.ends_with(&format!("name one with --to: {}", v(NEW))), "{text}");
        let text = rollback(&live, Some(&v(OLD))).unwrap_err().to_string();
        assert!(text.ends_with(&format!("name one with --to: {}", v(NEW))), "{text}");
        // One that cannot run is no way back.
        for phase in [RevisionPhase::Failed, RevisionPhase::Pending] {
            let mut live = live.clone();
            live.revisions.iter_mut().find(|r| r.metadata.name == Some(v(NEW))).unwrap().status =
                revision(NEW, 2, phase).status;
            let text = rollback(&live, None).unwrap_err().to_string();
            assert!(text.contains("no other revision that could run"), "{phase:?}: {text}");
        }
        for refused in [promote(&live, Some("web-x")), rollback(&live, Some("web-x"))] {
            let text = refused.unwrap_err().to_string();
            let known = format!("there are: {}, {}", v(NEW), v(OLD));
            assert!(text.contains("no revision web-x") && text.contains(&known), "{text}");
        }
        let mut failed = seen();
        failed.revisions[1] = revision(NEW, 2, RevisionPhase::Failed);
        assert!(matches!(promote(&failed, Some(&v(NEW))), Err(Error::Failed { .. })));
        assert!(matches!(rollback(&failed, Some(&v(NEW))), Err(Error::Failed { .. })));
        let mut fresh = seen();
        *status(&mut fresh) = WasmControllerStatus::default();
        assert!(matches!(rollback(&fresh, None), Err(Error::NothingLive(_))));
        fresh.revisions.clear();
        let text = promote(&fresh, None).unwrap_err().to_string();
        assert!(text.contains("has not made"), "{text}");
    }

    #[test]
    fn a_push_leaves_every_decision_as_it_is() {
        let mut seen = seen();
        seen.controller.spec.module.digest = OLD.into();
        seen.controller.spec.rollout.rejected = vec![v(NEW)];
        let plan = push(&seen, &NEW.parse().unwrap());
        let patch = json!({
            "metadata": { "resourceVersion": "7" },
            "spec": { "module": { "digest": NEW } },
        });
        assert_eq!(plan, Edit::Patch { revision: v(NEW), patch });
    }

    #[test]
    fn a_full_list_of_rejections_forgets_what_is_gone() {
        let mut seen = seen();
        let gone = (0..MAX_REJECTED - 1).map(|number| format!("web-{number}"));
        seen.controller.spec.rollout.rejected = gone.chain([v(OLD)]).collect();
        assert_eq!(seen.rejected(None, Some(&v(NEW))), [v(OLD), v(NEW)]);
    }

    #[test]
    fn a_conflict_is_tried_again_only_if_the_status_alone_moved() {
        let read = seen();
        let mut now = seen();
        now.controller.metadata.resource_version = Some("8".into());
        assert_eq!(after_conflict(&read, &now), Ok(()));
        now.controller.metadata.generation = Some(4);
        assert!(after_conflict(&read, &now).is_err());
        now.controller.metadata.generation = Some(3);
        now.controller.metadata.uid = Some("other".into());
        assert!(after_conflict(&read, &now).is_err(), "deleted and made again");
    }

    /// Random edits one after the other, each applied as the server and the host would.
    #[test]
    fn a_revision_is_never_active_and_rejected() {
        for seed in 1..=300_u64 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut seen = seen();
            for _ in 0..40 {
                let random = rng.u64(..);
                let named = [None, Some(v(OLD)), Some(v(NEW))]
                    [usize::try_from(random / 8 % 3).unwrap()]
                .clone();
                let plan = match random % 4 {
                    0 => promote(&seen, named.as_deref()),
                    1 => abort(&seen),
                    2 => rollback(&seen, named.as_deref()),
                    _ => Ok(push(
                        &seen,
                        &[OLD, NEW][usize::from((random / 64).is_multiple_of(2))].parse().unwrap(),
                    )),
                };
                if let Ok(plan) = plan {
                    apply(&mut seen, &plan);
                }
                let rollout = &seen.controller.spec.rollout;
                let both = rollout.active.as_ref().filter(|name| rollout.rejected.contains(name));
                assert_eq!(both, None, "seed {seed}");
            }
        }
    }
}
