//! An error with its causes as one text, for log lines: as a field it would lose them in JSON; pure.
//!
//! Invariant: `a_cause_that_is_said_already_is_not_repeated`.

use std::error::Error;

/// `error` and what caused it, from the outside in.
pub fn all(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        // Many libraries repeat their source in their own text.
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Layer(&'static str, #[source] Option<Box<Layer>>);

    #[test]
    fn a_cause_that_is_said_already_is_not_repeated() {
        let inner = Layer("refused", None);
        let middle = Layer("cannot connect: refused", Some(Box::new(inner)));
        let outer = Layer("no answer", Some(Box::new(middle)));
        assert_eq!(all(&outer), "no answer: cannot connect: refused");
        assert_eq!(all(&Layer("alone", None)), "alone");
    }
}
