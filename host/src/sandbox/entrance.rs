//! Measures the names that a guest hands over, before anything is kept, asked or answered because of them; pure.
//!
//! A name that the API server cannot have is no name: the guest is told, and nothing of it stays.
//!
//! Invariant: `a_name_that_cannot_be_is_refused_at_the_entrance`.

use super::imports::bindings::nagaya::controller::{
    cluster::{Error, Event, FindOptions},
    common::{Kind, ObjectReference},
};
use crate::text::{self, MESSAGE, NAME};

/// Bytes of a version or a kind.
const WORD: usize = 63;
/// Bytes of a value in an index: namespace, slash and name, and room.
pub(super) const VALUE: usize = 512;

/// The name of an object, or of where it is looked for.
pub(super) fn object(kind: &Kind, namespace: &str, name: &str) -> Result<(), Error> {
    self::kind(kind)?;
    short("the namespace", namespace, NAME)?;
    short("the name", name, NAME)
}

/// What a list is asked for; the label selector is measured where it is parsed.
pub(super) fn find(kind: &Kind, options: &FindOptions) -> Result<(), Error> {
    object(kind, &options.namespace, "")?;
    short("the name of the index", &options.index, NAME)?;
    short("the value in the index", &options.value, VALUE)?;
    short("the position", &options.after, VALUE)
}

/// The preconditions of a deletion.
pub(super) fn preconditions(uid: &str, version: &str) -> Result<(), Error> {
    short("the uid", uid, NAME)?;
    short("the resourceVersion", version, NAME)
}

/// What an Event is about; of its words the note is cut.
pub(super) fn event(event: Event) -> Result<Event, Error> {
    let ObjectReference { kind, namespace, name } = &event.regarding;
    object(kind, namespace, name)?;
    Ok(Event { note: text::cut_owned(event.note, MESSAGE), ..event })
}

fn kind(kind: &Kind) -> Result<(), Error> {
    short("the group", &kind.group, NAME)?;
    short("the version", &kind.version, WORD)?;
    short("the kind", &kind.name, WORD)
}

fn short(what: &str, text: &str, most: usize) -> Result<(), Error> {
    if text.len() <= most {
        return Ok(());
    }
    let (bytes, shown) = (text.len(), text::line(text, 40));
    Err(Error::Invalid(format!(
        "{what} has {bytes} bytes, and there may be at most {most}: {shown}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::imports::bindings::nagaya::controller::cluster::Severity;

    fn kind() -> Kind {
        Kind { group: "g".repeat(NAME), version: "v".repeat(WORD), name: "k".repeat(WORD) }
    }

    fn options() -> FindOptions {
        FindOptions {
            namespace: "n".repeat(NAME),
            label_selector: String::new(),
            index: "i".repeat(NAME),
            value: "v".repeat(VALUE),
            limit: 0,
            after: "p".repeat(VALUE),
        }
    }

    #[track_caller]
    fn refused(result: Result<(), Error>, words: &str) {
        let Err(Error::Invalid(text)) = result else { panic!("{words} must be refused") };
        assert!(text.contains(words) && text.len() < 150, "{text}");
    }

    #[test]
    fn a_name_that_cannot_be_is_refused_at_the_entrance() {
        let (most, more) = ("n".repeat(NAME), "n".repeat(NAME + 1));
        assert!(object(&kind(), &most, &most).is_ok() && find(&kind(), &options()).is_ok());
        assert!(preconditions(&most, &most).is_ok());
        refused(object(&kind(), "", &more), "the name has 254 bytes");
        refused(object(&kind(), &more, "n"), "the namespace has 254 bytes");
        refused(object(&kind(), "", &"\n".repeat(600_000)), "the name has 600000 bytes");
        refused(object(&Kind { group: more.clone(), ..kind() }, "", ""), "the group");
        refused(object(&Kind { version: more.clone(), ..kind() }, "", ""), "the version");
        refused(object(&Kind { name: more.clone(), ..kind() }, "", ""), "the kind");
        for (options, words) in [
            (FindOptions { namespace: more.clone(), ..options() }, "the namespace"),
            (FindOptions { index: more.clone(), ..options() }, "the index"),
            (
                FindOptions { value: "v".repeat(513), ..options() },
                "the value in the index has 513 bytes",
            ),
            (FindOptions { after: "p".repeat(513), ..options() }, "the position"),
        ] {
            refused(find(&kind(), &options), words);
        }
        refused(preconditions(&more, ""), "the uid");
        refused(preconditions("", &more), "the resourceVersion");
    }

    #[test]
    fn an_event_is_measured_and_its_note_cut() {
        let event = |name: &str, note: &str| Event {
            regarding: ObjectReference {
                kind: kind(),
                namespace: String::new(),
                name: name.to_owned(),
            },
            severity: Severity::Normal,
            reason: "R".to_owned(),
            action: "A".to_owned(),
            note: note.to_owned(),
        };
        let cut = super::event(event("n", &"ä".repeat(600_000))).unwrap().note;
        assert!(cut.len() <= MESSAGE && cut.ends_with('…') && cut.capacity() < 2 * MESSAGE);
        refused(super::event(event(&"n".repeat(600_000), "")).map(drop), "600000 bytes");
    }
}
