//! The host's own API, `run.nagaya.dev`, reached through the API server with the user's own kubeconfig.

use std::time::Duration;

use anyhow::{Result, anyhow};
use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::Value;

use super::{cluster::Cluster, planned::Wanted};
use crate::{
    apiserver::{Call, Error, Lines, query},
    model::{
        digest::Digest,
        live::{GROUP, Live, VERSION},
    },
};

/// How long the host may take to say something small.
const ASK_LIMIT: Duration = Duration::from_secs(5);
/// A little more than the 30 s that the host itself waits for a body.
const SEND_LIMIT: Duration = Duration::from_secs(40);

/// Who is missing, if the API server does not pass on.
const NOT_SERVED: &str = "this cluster does not serve run.nagaya.dev, the host's own API: is the host installed, with api.aggregated? Without it \
     push with --to a registry, or with --host to an address of the host";

impl Cluster {
    /// Makes sure that the host can be asked at all.
    pub(super) async fn reach_own(&self) -> Result<()> {
        let call = Call { limit: ASK_LIMIT, ..Call::new(Method::GET, root()) };
        match self.api().call(call).await {
            Ok(_) => Ok(()),
            Err(error) => Err(explained(error, "cannot reach the host through the API server")),
        }
    }

    /// Whether the host has a module, or wants it: its answer's status, and its words.
    pub(super) async fn ask_for_module(&self, digest: &Digest) -> Result<(StatusCode, String)> {
        let call = Call { limit: ASK_LIMIT, ..Call::new(Method::GET, self.module(digest)) };
        match self.api().fetch::<Value>(call).await {
            Ok(module) if module["status"]["phase"] == "Stored" => {
                Ok((StatusCode::OK, String::new()))
            }
            Ok(_) => Ok((StatusCode::ACCEPTED, String::new())),
            Err(error) => refused(error, "cannot ask the host for the component"),
        }
    }

    /// Sends a module: the answer's status, and its words.
    pub(super) async fn send_module(
        &self,
        digest: &Digest,
        bytes: &Bytes,
    ) -> Result<(StatusCode, String)> {
        let call = Call { limit: SEND_LIMIT, ..Call::new(Method::PUT, self.module(digest)) };
        match self.api().send_bytes(call, bytes.clone()).await {
            Ok(_) => Ok((StatusCode::CREATED, String::new())),
            Err(error) => refused(error, "cannot send the component"),
        }
    }

    /// How a controller does, if its host can be asked.
    pub(super) async fn live(&self, name: &str) -> Option<Live> {
        let call =
            Call { limit: ASK_LIMIT, ..Call::new(Method::GET, self.own("controllers", name)) };
        self.api().fetch(call).await.ok()
    }

    /// The lines of a controller's log; a stream that follows ends now and then, and is to be opened again.
    pub(super) async fn log(&self, name: &str, pairs: &[(&str, String)]) -> Result<Lines, Error> {
        let path = format!("{}/log", self.own("controllers", name));
        let pairs = pairs.iter().map(|(key, value)| (*key, value.as_str()));
        self.api().lines(Call::new(Method::GET, query(&path, pairs))).await
    }

    /// The lines of a plan that is begun by asking for it.
    pub(super) async fn plan(&self, wanted: &Wanted) -> Result<Lines, Error> {
        let path = format!("{}/namespaces/{}/plans", root(), self.namespace());
        let selector = format!("metadata.name={}", wanted.name);
        let watch = [("watch", "true"), ("fieldSelector", selector.as_str())];
        let pairs = [("revision", &wanted.revision), ("object", &wanted.object)];
        let pairs = pairs.into_iter().filter_map(|(key, value)| Some((key, value.as_deref()?)));
        let pairs = pairs.chain(wanted.values.then_some(("values", "true")));
        let pairs = watch.into_iter().chain(pairs);
        self.api().lines(Call::new(Method::GET, query(&path, pairs))).await
    }

    fn module(&self, digest: &Digest) -> String {
        self.own("modules", &digest.to_string())
    }

    fn own(&self, resource: &str, name: &str) -> String {
        format!("{}/namespaces/{}/{resource}/{name}", root(), self.namespace())
    }
}

fn root() -> String {
    format!("/apis/{GROUP}/{VERSION}")
}

/// The host's own answers are told by their status; what has none is an error.
fn refused(error: Error, what: &str) -> Result<(StatusCode, String)> {
    match &error {
        Error::Refused(status) if !is_not_served(&error) => {
            let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::BAD_GATEWAY);
            Ok((code, status.message.clone()))
        }
        _ => Err(explained(error, what)),
    }
}

/// A path that the API server does not know is answered without a `Status`.
fn is_not_served(error: &Error) -> bool {
    matches!(error, Error::Refused(status) if status.code == 404 && status.reason.is_empty())
}

/// The error in words that say what to do.
pub(super) fn explained(error: Error, what: &str) -> anyhow::Error {
    if is_not_served(&error) {
        return anyhow!(NOT_SERVED).context(what.to_owned());
    }
    let hint = match error.code() {
        Some(503) => {
            ": the API server has no connection to a host (kubectl describe apiservice v1alpha1.run.nagaya.dev says why)"
        }
        Some(403) => {
            ": the roles view, edit and admin of the namespace let people read, edit and admin let them push"
        }
        _ => "",
    };
    anyhow::Error::new(error).context(format!("{what}{hint}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::Status;

    fn refusal(code: u16, reason: &str) -> Error {
        let message = "no".to_owned();
        Error::Refused(Box::new(Status {
            code,
            reason: reason.into(),
            message,
            ..Status::default()
        }))
    }

    #[test]
    fn an_api_that_is_not_there_is_told_from_what_it_refuses() {
        let missing = refused(refusal(404, ""), "cannot send").unwrap_err();
        assert!(format!("{missing:#}").contains("api.aggregated"), "{missing:#}");
        let (code, text) = refused(refusal(404, "NotFound"), "cannot send").unwrap();
        assert_eq!((code.as_u16(), &*text), (404, "no"));
        let denied = explained(refusal(403, "Forbidden"), "cannot read").to_string();
        assert!(denied.contains("edit and admin"), "{denied}");
        let down = explained(refusal(503, "ServiceUnavailable"), "cannot read").to_string();
        assert!(down.contains("describe apiservice"), "{down}");
        assert!(refused(Error::Timeout(ASK_LIMIT), "cannot send").is_err());
    }
}
