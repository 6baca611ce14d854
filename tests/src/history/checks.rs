//! What must not be in a history.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use super::{Author, History, Object, Outcome, Violation, Write};

impl History {
    /// Writes to an object by an older executor generation after a newer one's first write to it.
    pub fn late_generations(&self) -> Vec<Violation> {
        let writes = self.by_runs().map(|(write, author)| {
            let about = format!("{} by {}", write.object, author.controller);
            (about, author.generation, write)
        });
        late("executor generation", writes).into_iter().map(|(_, told)| told).collect()
    }

    /// Writes by an older leader of the hosts after the first write of a newer one, of whatever object.
    pub fn late_leaders(&self) -> Vec<Violation> {
        let epochs = || self.by_runs().filter_map(|(write, by)| Some((write, by.epoch?)));
        let versioned = epochs().filter(|(write, _)| write.version.is_some());
        let versioned = versioned.map(|(write, epoch)| ("all objects".to_owned(), epoch, write));
        // Where a deletion stands among the writes to other objects is not known.
        let each = epochs().map(|(write, epoch)| (write.object.to_string(), epoch, write));
        let mut found = late("leader's epoch", versioned);
        let deletions = late("leader's epoch", each).into_iter();
        found.extend(deletions.filter(|(write, _)| write.version.is_none()));
        found.into_iter().map(|(_, told)| told).collect()
    }

    /// Two runs of one key that wrote in turns: they ran at the same time.
    pub fn interleaved_runs(&self) -> Vec<Violation> {
        let mut current = BTreeMap::<(&str, &str), &Author>::new();
        let mut past = BTreeSet::<&str>::new();
        let mut found = vec![];
        for (write, author) in self.by_runs().filter(|(write, _)| write.version.is_some()) {
            let Author { controller, key, reconcile, .. } = author;
            if past.contains(&**reconcile) {
                found.push(Violation(format!(
                    "run {reconcile} of key {key} of {controller} writes after the next run has \
                     written: {}",
                    write.line
                )));
            } else if let Some(before) = current.insert((controller, key), author)
                && before.reconcile != *reconcile
            {
                past.insert(&before.reconcile);
            }
        }
        found
    }

    /// Objects that runs created while an object of that name was there.
    pub fn duplicate_creates(&self) -> Vec<Violation> {
        let mut there = BTreeMap::<&Object, &str>::new();
        let mut found = vec![];
        for write in self.writes().iter().filter(|write| write.outcome == Outcome::Done) {
            let Write { object, uid, .. } = write;
            if write.verb == "deletecollection" {
                let place =
                    |one: &Object| (one.group.clone(), one.resource.clone(), one.namespace.clone());
                there.retain(|other, _| place(other) != place(object));
            } else if write.removes {
                there.remove(object);
            } else if write.is_creation()
                && let Some(before) = there.insert(object, uid)
                && write.author.is_some()
                && !self.is_unclear(object)
            {
                let line = &write.line;
                found.push(Violation(format!(
                    "{object} is created while {before} is there: {line}"
                )));
            }
        }
        found
    }

    /// Whether something may have happened to the object that nobody knows of.
    fn is_unclear(&self, object: &Object) -> bool {
        let mut unknown = self.writes().iter().filter(|write| write.outcome == Outcome::Unknown);
        unknown.any(|write| write.object == *object)
    }

    /// Owners for which runs made more than one object of a kind: what a run makes that does not see what the one
    /// before it made.
    pub fn duplicate_children(&self, resource: &str) -> Vec<Violation> {
        let mut children = BTreeMap::<&str, Vec<&Write>>::new();
        let creations = self.by_runs().map(|(write, _)| write);
        for write in creations.filter(|one| one.is_creation() && one.object.resource == resource) {
            for owner in &write.owners {
                children.entry(owner).or_default().push(write);
            }
        }
        let several = children.into_iter().filter(|(_, children)| children.len() > 1);
        let told = several.map(|(owner, children)| {
            let names: Vec<_> = children.iter().map(|write| write.object.to_string()).collect();
            Violation(format!("owner {owner} has {}: {}", names.len(), names.join(", ")))
        });
        told.collect()
    }

    /// Deletions by runs that do not say which uid and resourceVersion they mean, and deletions of collections.
    pub fn bare_deletes(&self) -> Vec<Violation> {
        let deletes = self.writes().iter().filter(|write| {
            let bare = write.preconditions.0.is_none() || write.preconditions.1.is_none();
            write.author.is_some()
                && (write.verb == "deletecollection" || (write.verb == "delete" && bare))
        });
        let told = deletes.map(|write| {
            Violation(format!(
                "without uid and resourceVersion ({:?}): {}",
                write.preconditions, write.line
            ))
        });
        told.collect()
    }

    /// The most requests that one run sent to write one object, conflicts included.
    pub fn most_tries(&self) -> usize {
        let mut tries = BTreeMap::<_, usize>::new();
        for write in self.writes() {
            if let Some(author) = &write.author {
                let about = (&write.object, &write.subresource, &write.verb);
                *tries.entry((&author.reconcile, about)).or_default() += 1;
            }
        }
        tries.into_values().max().unwrap_or_default()
    }
}

/// Writes whose author's `number` is lower than that of an earlier write to the same thing. A write that shares its
/// version with the newer one's first changed nothing.
fn late<'a>(
    number: &str,
    writes: impl Iterator<Item = (String, u64, &'a Write)>,
) -> Vec<(&'a Write, Violation)> {
    let mut newest = BTreeMap::<String, (u64, &Write)>::new();
    let mut found = vec![];
    for (about, of, write) in writes {
        let (highest, first) = *newest.entry(about.clone()).or_insert((of, write));
        if of > highest {
            newest.insert(about, (of, write));
        } else if of < highest && (write.version.is_none() || write.version > first.version) {
            let (first, late) = (&first.line, &write.line);
            let told = format!(
                "{about}: {number} {of} writes after {highest} has written\n  first: {first}\n  late:  {late}"
            );
            found.push((write, Violation(told)));
        }
    }
    found
}

/// Where `found` is not as `expected`: what is missing, different, or too much.
pub fn differences<V: PartialEq + Display>(
    expected: &BTreeMap<String, V>,
    found: &BTreeMap<String, V>,
) -> Vec<Violation> {
    let mut all = vec![];
    for (name, wanted) in expected {
        match found.get(name) {
            None => all.push(Violation(format!("{name} is missing; it should say {wanted}"))),
            Some(is) if is != wanted => {
                all.push(Violation(format!("{name} says {is} instead of {wanted}")));
            }
            Some(_) => (),
        }
    }
    let surplus = found.iter().filter(|(name, _)| !expected.contains_key(*name));
    all.extend(surplus.map(|(name, is)| Violation(format!("{name} should not be; it says {is}"))));
    all
}
