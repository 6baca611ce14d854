//! What a test has the fake API server do wrong, and whom it lets do what.

use std::time::Duration;

use serde_json::{Value, json};

use super::log::Asked;

/// What happens to the requests that a fault is about.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Effect {
    /// This answer; nothing is executed.
    Answer(u16, Value),
    /// No answer, for ever; nothing is executed.
    Never,
    /// The answer comes so much later; what is asked is executed at once.
    Late(Duration),
    /// It is executed, and the connection breaks before the answer.
    Lost,
    /// The answer breaks off after so many bytes.
    Cut(usize),
    /// The connection cannot be made.
    Down,
}

/// A rule about requests.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    method: String,
    path: String,
    account: String,
    /// What the body must contain.
    body: String,
    effect: Effect,
    /// How often more; `None`: until it is taken back.
    left: Option<usize>,
}

impl Fault {
    /// Requests with this method (`*`: any) whose path and query contain `path` are answered with this code.
    pub(crate) fn answers(method: &str, path: &str, code: u16) -> Self {
        let reason = match code {
            400 => "BadRequest",
            401 => "Unauthorized",
            403 => "Forbidden",
            404 => "NotFound",
            409 => "Conflict",
            410 => "Expired",
            422 => "Invalid",
            429 => "TooManyRequests",
            500 => "InternalError",
            503 => "ServiceUnavailable",
            504 => "Timeout",
            _ => "Unknown",
        };
        Self::does(method, path, Effect::Answer(code, status(code, reason, "the test says so")))
    }

    pub(crate) fn does(method: &str, path: &str, effect: Effect) -> Self {
        Self {
            method: method.to_owned(),
            path: path.to_owned(),
            account: "*".to_owned(),
            body: String::new(),
            effect,
            left: None,
        }
    }

    /// With this message of the server.
    pub(crate) fn saying(mut self, message: &str) -> Self {
        if let Effect::Answer(_, body) = &mut self.effect {
            body["message"] = json!(message);
        }
        self
    }

    /// With this `reason` of the server.
    pub(crate) fn reason(mut self, reason: &str) -> Self {
        if let Effect::Answer(_, body) = &mut self.effect {
            body["reason"] = json!(reason);
        }
        self
    }

    /// The server asks to wait so long.
    pub(crate) fn retry_after(mut self, seconds: u64) -> Self {
        if let Effect::Answer(_, body) = &mut self.effect {
            body["details"]["retryAfterSeconds"] = json!(seconds);
        }
        self
    }

    /// Only requests of this account: `namespace/name`, or `host`.
    pub(crate) fn of(self, account: &str) -> Self {
        Self { account: account.to_owned(), ..self }
    }

    /// Only requests whose body has this text.
    pub(crate) fn about(self, text: &str) -> Self {
        Self { body: text.to_owned(), ..self }
    }

    /// So often.
    pub(crate) fn times(self, times: usize) -> Self {
        Self { left: Some(times), ..self }
    }

    /// What it does to this request, if anything; one time less is left.
    pub(crate) fn meets(&mut self, asked: &Asked, whole: &str) -> Option<Effect> {
        let is = |wanted: &str, found: &str| wanted == "*" || wanted == found;
        let meets = is(&self.method, &asked.method)
            && whole.contains(&self.path)
            && is(&self.account, &asked.account)
            && (self.body.is_empty() || asked.body.to_string().contains(&self.body))
            && self.left != Some(0);
        meets.then(|| {
            self.left = self.left.map(|left| left - 1);
            self.effect.clone()
        })
    }
}

/// Whether an account has a right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Allowed,
    Denied,
    /// Whoever asks gets this code; who acts is let.
    Fails(u16),
    /// Whoever asks gets no answer.
    Never,
    /// Whoever asks hears so much later that it is allowed.
    Late(Duration),
}

/// A rule about rights; the last one that is about a right decides, and without any it is there.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    pub(crate) account: String,
    pub(crate) verb: String,
    /// The plural, with its subresource.
    pub(crate) resource: String,
    pub(crate) namespace: String,
    pub(crate) verdict: Verdict,
}

/// A right that is asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asks {
    pub(crate) account: String,
    pub(crate) verb: String,
    pub(crate) group: String,
    pub(crate) resource: String,
    pub(crate) namespace: String,
}

impl Access {
    pub(crate) fn new(
        (account, verb, resource): (&str, &str, &str),
        namespace: &str,
        verdict: Verdict,
    ) -> Self {
        let [account, verb, resource, namespace] =
            [account, verb, resource, namespace].map(str::to_owned);
        Self { account, verb, resource, namespace, verdict }
    }

    pub(crate) fn is_about(&self, asks: &Asks) -> bool {
        let is = |wanted: &str, found: &str| wanted == "*" || wanted == found;
        is(&self.account, &asks.account)
            && is(&self.verb, &asks.verb)
            && is(&self.resource, &asks.resource)
            && is(&self.namespace, &asks.namespace)
    }
}

pub(crate) fn verdict(rules: &[Access], asks: &Asks) -> Verdict {
    let last = rules.iter().rev().find(|rule| rule.is_about(asks));
    last.map_or(Verdict::Allowed, |rule| rule.verdict)
}

/// A `Status`.
pub(crate) fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    })
}
