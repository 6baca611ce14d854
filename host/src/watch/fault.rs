//! Why a request of a watch has failed, and whether the same request may do later; pure.

use std::time::Duration;

/// Why a request failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    /// HTTP status; `None`: no answer, or none that is one.
    pub code: Option<u16>,
    /// One CamelCase word of the server.
    pub reason: String,
    /// For people.
    pub message: String,
    /// The server asks to wait so long.
    pub retry_after: Option<Duration>,
    /// What is wrong with an answer that was no refusal.
    pub flaw: Option<Flaw>,
}

/// What makes an answer useless, so that the same request would most likely be answered in the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// It is not what the API promises.
    Unreadable,
    /// It is larger than the host takes in one piece.
    TooLarge,
    /// It was not complete in time.
    Slow,
    /// An initial state does not end: the server knows nothing of `sendInitialEvents`, or has forgotten it.
    Endless,
    /// Watch after watch ended before anything came.
    CutShort,
}

impl Fault {
    /// An answer that is of no use.
    pub(super) fn flawed(flaw: Flaw, message: String) -> Self {
        Self { message, flaw: Some(flaw), ..Self::default() }
    }

    /// What concerns those who use the watch, and not the connection: the status, 0 for an answer that is none.
    pub fn number(&self) -> Option<u16> {
        self.code.or(self.flaw.filter(|flaw| *flaw != Flaw::Slow).map(|_| 0))
    }

    /// Whether the version that was asked for is no longer known.
    pub(super) fn is_expired(&self) -> bool {
        self.code == Some(410) || matches!(self.reason.as_str(), "Expired" | "Gone")
    }

    /// Whether the version that was asked for is not known yet: the server's data are older than ours.
    pub(super) fn is_too_new(&self) -> bool {
        self.code == Some(504) && self.message.contains("Too large resource version")
    }

    /// Whether somebody must lift it: a right is missing, or the kind is not served.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self.code, Some(401 | 403 | 404))
    }

    /// Whether the same request may do later.
    pub(super) fn is_passing(&self) -> bool {
        let later = self.code.is_none_or(|code| code == 429 || code >= 500);
        self.flaw.is_none()
            && !self.is_too_new()
            && !self.is_expired()
            && (self.is_refusal() || later)
    }
}
