//! What was asked of the fake API server, by whom.

use std::sync::Arc;

use serde_json::Value;
use tokio::sync::watch;

/// The one that the host itself is.
pub(crate) const HOST: &str = "host";

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) method: String,
    /// Without the query.
    pub(crate) path: String,
    pub(crate) query: Vec<(String, String)>,
    /// `namespace/name` of an impersonated ServiceAccount, or [`HOST`].
    pub(crate) account: String,
    pub(crate) user_agent: String,
    pub(crate) body: Value,
    /// What it is about: `configmaps/web`, with its namespace in front unless that is `demo`.
    pub(crate) what: String,
    /// The HTTP status that it got; `None`: no answer yet.
    pub(crate) code: Option<u16>,
}

impl Asked {
    /// As assertions and failures show it.
    pub(crate) fn shown(&self) -> String {
        format!("{} {} as {}", self.method, self.what, self.account)
    }

    /// Whether it only asks what a write would lead to.
    pub(crate) fn is_dry_run(&self) -> bool {
        self.query.iter().any(|(key, value)| key == "dryRun" && value == "All")
    }

    /// Whether it changes something, Events and questions about rights aside.
    pub(crate) fn is_write(&self) -> bool {
        let aside = ["/events", "accessreviews", "subjectreviews"];
        self.method != "GET"
            && !self.is_dry_run()
            && !aside.iter().any(|part| self.path.contains(part))
    }
}

#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) asked: Vec<Asked>,
    /// Up to where `writes` has told.
    pub(crate) told: usize,
    moved: Arc<watch::Sender<u64>>,
}

impl Default for Log {
    fn default() -> Self {
        Self { asked: vec![], told: 0, moved: Arc::new(watch::channel(0).0) }
    }
}

impl Log {
    /// Enters a request; its number.
    pub(crate) fn enter(&mut self, asked: Asked) -> usize {
        self.asked.push(asked);
        self.changed();
        self.asked.len() - 1
    }

    pub(crate) fn answered(&mut self, number: usize, code: u16) {
        self.asked[number].code = Some(code);
        self.changed();
    }

    /// Something has happened that a test may wait for.
    pub(crate) fn changed(&self) {
        self.moved.send_modify(|count| *count += 1);
    }

    pub(crate) fn moves(&self) -> watch::Receiver<u64> {
        self.moved.subscribe()
    }
}
