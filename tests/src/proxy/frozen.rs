//! Time travel: what a watch has said so far, told again to those who come later.

use super::line;
use super::rule::Asked;

/// What one watch has said up to some point.
#[derive(Debug, Clone)]
pub struct Recording {
    pub(super) asked: Asked,
    pub(super) lines: Vec<String>,
}

impl Recording {
    /// Whether `asked` wants the same objects in the same form.
    pub(super) fn is_of(&self, asked: &Asked) -> bool {
        let selectors = |one: &Asked| {
            ["labelSelector", "fieldSelector"].map(|name| one.parameter(name).map(str::to_owned))
        };
        asked.is_watch()
            && asked.path() == self.asked.path()
            && asked.accept == self.asked.accept
            && selectors(asked) == selectors(&self.asked)
    }

    /// What a server that has not seen anything later would send: all from the initial state on, or
    /// what is newer than the version that is asked for.
    pub(super) fn answer(&self, asked: &Asked) -> String {
        let initial = asked.parameter("sendInitialEvents") == Some("true");
        let from = asked.parameter("resourceVersion").and_then(|text| text.parse::<u128>().ok());
        let wanted = |text: &&String| {
            initial || from.is_none_or(|from| line::version(text).is_some_and(|it| it > from))
        };
        self.lines.iter().filter(wanted).flat_map(|text| [text, "\n"]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::rule::tests::asked;
    use super::*;

    #[test]
    fn a_record_answers_as_the_server_of_then() {
        let line = |version: u32| {
            format!(
                r#"{{"type":"ADDED","object":{{"metadata":{{"resourceVersion":"{version}"}}}}}}"#
            )
        };
        let first = asked("GET", "/x?watch=true&sendInitialEvents=true&labelSelector=a");
        let record = Recording { asked: first.clone(), lines: vec![line(3), line(4)] };
        let resumed = asked("GET", "/x?watch=true&labelSelector=a&resourceVersion=3");
        assert!(record.is_of(&first) && record.is_of(&resumed));
        assert!(!record.is_of(&asked("GET", "/x?watch=true&labelSelector=b")));
        assert!(!record.is_of(&asked("GET", "/y?watch=true&labelSelector=a")));
        assert_eq!(record.answer(&first).lines().count(), 2);
        assert_eq!(record.answer(&resumed), line(4) + "\n");
        let later = asked("GET", "/x?watch=true&labelSelector=a&resourceVersion=9");
        assert_eq!(record.answer(&later), "");
    }
}
