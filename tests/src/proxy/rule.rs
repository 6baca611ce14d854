//! Which requests a fault is for, and what it does to them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::frozen::Recording;

/// A request, as the proxy saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// `GET`, `POST` and so on.
    pub method: String,
    /// Path and query, as they were sent.
    pub uri: String,
    /// The User-Agent.
    pub agent: String,
    /// Whom it acts as (`Impersonate-User`); empty: the sender itself.
    pub actor: String,
    /// The media type that is asked for.
    pub accept: String,
    /// A hash of what it authenticates with, which tells one token from another.
    pub credential: u64,
}

impl Asked {
    /// Whether it opens a watch.
    pub fn is_watch(&self) -> bool {
        self.parameter("watch").is_some_and(|value| value == "true" || value == "1")
    }

    /// Whether it changes something.
    pub fn is_write(&self) -> bool {
        self.method != "GET"
    }

    /// Without the query.
    pub fn path(&self) -> &str {
        self.uri.split_once('?').map_or(self.uri.as_str(), |(path, _)| path)
    }

    /// A parameter of the query, not decoded.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        let (_, query) = self.uri.split_once('?')?;
        query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
    }
}

/// Says which requests are meant; each part narrows it.
#[derive(Debug, Clone, Default)]
pub struct Matcher {
    methods: Vec<&'static str>,
    uri: Vec<String>,
    agent: Option<String>,
    actor: Option<String>,
    watch: Option<bool>,
    credential: Option<u64>,
}

impl Matcher {
    /// All requests.
    pub fn all() -> Self {
        Self::default()
    }

    /// All watches.
    pub fn watches() -> Self {
        Self { watch: Some(true), ..Self::default() }
    }

    /// Everything that is no watch.
    pub fn calls() -> Self {
        Self { watch: Some(false), ..Self::default() }
    }

    /// Requests that change something.
    pub fn writes() -> Self {
        Self { methods: vec!["POST", "PUT", "PATCH", "DELETE"], ..Self::default() }
    }

    /// Only this method, or one of those given so far.
    #[must_use]
    pub fn method(mut self, method: &'static str) -> Self {
        self.methods.push(method);
        self
    }

    /// Only if path and query contain `part`; all parts that are given.
    #[must_use]
    pub fn uri(mut self, part: impl Into<String>) -> Self {
        self.uri.push(part.into());
        self
    }

    /// Only if the User-Agent contains `part`.
    #[must_use]
    pub fn agent(self, part: impl Into<String>) -> Self {
        Self { agent: Some(part.into()), ..self }
    }

    /// Only in this user's name.
    #[must_use]
    pub fn actor(self, user: impl Into<String>) -> Self {
        Self { actor: Some(user.into()), ..self }
    }

    /// Only with this credential.
    #[must_use]
    pub fn credential(self, hash: u64) -> Self {
        Self { credential: Some(hash), ..self }
    }

    /// Whether it is meant.
    pub fn matches(&self, asked: &Asked) -> bool {
        (self.methods.is_empty() || self.methods.contains(&&*asked.method))
            && self.uri.iter().all(|part| asked.uri.contains(part))
            && self.agent.as_ref().is_none_or(|part| asked.agent.contains(part))
            && self.actor.as_ref().is_none_or(|user| asked.actor == *user)
            && self.watch.is_none_or(|watch| asked.is_watch() == watch)
            && self.credential.is_none_or(|hash| asked.credential == hash)
    }
}

/// What happens to a request or to the lines of a watch.
#[derive(Debug, Clone)]
pub enum Action {
    /// The request waits so long before it is forwarded.
    Delay(Duration),
    /// Each line of a watch comes so much later, in the same order.
    DelayLines(Duration),
    /// A watch stands still while its connection stays open, until the rule is gone. A new watch is
    /// answered with headers and then stands still too, unless `open_only`.
    Stall {
        /// Only watches that are open when the rule comes.
        open_only: bool,
    },
    /// Nothing is answered and open watches stand still. When the rule is gone their connections break.
    BlackHole,
    /// Lines of a watch are swallowed.
    Drop,
    /// Lines of a watch come twice.
    Duplicate,
    /// A line of a watch changes places with the next one, if that is about another object or, if
    /// `same_object`, about any. Bookmarks keep their place: they speak about all lines before them.
    Swap {
        /// Also two events of one object.
        same_object: bool,
    },
    /// After a line of a watch an earlier one of the same watch comes again.
    Again,
    /// The proxy answers with this status itself, and nothing reaches the server.
    Answer {
        /// The HTTP status.
        code: u16,
        /// The header `Retry-After` and the same in the body, in seconds.
        retry_after: Option<u64>,
    },
    /// The connection breaks (TCP reset).
    Reset {
        /// After the server has answered: what was asked for is done and the answer is lost.
        answered: bool,
    },
    /// New watches are answered from a record; made by [`Proxy::freeze`](super::Proxy::freeze).
    Frozen(Arc<Vec<Recording>>),
}

impl Action {
    /// Whether it is for the lines of watches, else for requests.
    pub(super) fn is_for_lines(&self) -> bool {
        matches!(
            self,
            Self::DelayLines(_) | Self::Drop | Self::Duplicate | Self::Swap { .. } | Self::Again
        )
    }
}

type OfLine = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// A fault that can be switched on.
#[derive(Clone)]
pub struct Rule {
    pub(super) matcher: Matcher,
    pub(super) action: Action,
    pub(super) share: f64,
    pub(super) times: Option<u64>,
    pub(super) line: Option<OfLine>,
}

impl Rule {
    /// Does this to all that `matcher` means.
    pub fn new(matcher: Matcher, action: Action) -> Self {
        Self { matcher, action, share: 1.0, times: None, line: None }
    }

    /// Only to this share of them, from 0 to 1, by the proxy's seed.
    #[must_use]
    pub fn share(self, share: f64) -> Self {
        Self { share, ..self }
    }

    /// Only so often.
    #[must_use]
    pub fn times(self, times: u64) -> Self {
        Self { times: Some(times), ..self }
    }

    /// Only to such lines of a watch.
    #[must_use]
    pub fn line(self, wanted: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        Self { line: Some(Arc::new(wanted)), ..self }
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of {:?}", self.action, self.matcher)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn asked(method: &str, uri: &str) -> Asked {
        Asked {
            method: method.into(),
            uri: uri.into(),
            agent: "nagaya/0.1.0 (controller=a/b)".into(),
            actor: "system:serviceaccount:a:b".into(),
            accept: "application/json".into(),
            credential: 1,
        }
    }

    #[test]
    fn each_part_of_a_matcher_narrows_it() {
        let watch = asked("GET", "/api/v1/namespaces/a/configmaps?watch=true&resourceVersion=7");
        let write = asked("PATCH", "/api/v1/namespaces/a/configmaps/x?timeout=5s");
        let (all, maps) = (Matcher::all(), Matcher::all().uri("/namespaces/a/").uri("configmaps"));
        assert!(all.matches(&watch) && all.matches(&write));
        assert!(maps.matches(&watch) && !maps.clone().uri("secrets").matches(&watch));
        assert!(Matcher::watches().matches(&watch) && !Matcher::watches().matches(&write));
        assert!(Matcher::calls().matches(&write) && !Matcher::calls().matches(&watch));
        assert!(Matcher::writes().matches(&write) && !Matcher::writes().matches(&watch));
        assert!(maps.clone().method("GET").method("PATCH").matches(&write));
        assert!(!maps.clone().method("DELETE").matches(&write));
        assert!(maps.clone().agent("controller=a/b").matches(&write));
        assert!(!maps.clone().agent("controller=c").matches(&write));
        assert!(maps.clone().actor("system:serviceaccount:a:b").matches(&write));
        assert!(!maps.actor("alice").matches(&write));
        assert!(Matcher::all().credential(1).matches(&write));
        assert!(!Matcher::all().credential(2).matches(&write));
    }

    #[test]
    fn a_parameter_is_found_by_its_whole_name() {
        let one = asked("GET", "/x?allowWatchBookmarks=true&resourceVersion=7");
        assert_eq!(one.parameter("resourceVersion"), Some("7"));
        assert_eq!(one.parameter("Version"), None);
        assert!(!one.is_watch());
        assert_eq!(one.path(), "/x");
    }
}
