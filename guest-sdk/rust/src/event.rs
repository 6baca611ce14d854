//! What is told about an object, for people.

use crate::Severity;

/// An Event about an object; the host merges like ones and limits their number.
#[derive(Clone, Debug)]
pub struct Event {
    /// Normal or Warning.
    pub severity: Severity,
    /// Why, in one CamelCase word.
    pub reason: String,
    /// What was done, in one CamelCase word.
    pub action: String,
    /// For people; at most 1,024 bytes.
    pub note: String,
}

impl Event {
    /// All is well.
    pub fn normal(reason: &str, action: &str, note: impl Into<String>) -> Self {
        Self::new(Severity::Normal, reason, action, note.into())
    }

    /// Somebody should look.
    pub fn warning(reason: &str, action: &str, note: impl Into<String>) -> Self {
        Self::new(Severity::Warning, reason, action, note.into())
    }

    fn new(severity: Severity, reason: &str, action: &str, note: String) -> Self {
        Self { severity, reason: reason.to_owned(), action: action.to_owned(), note }
    }
}
