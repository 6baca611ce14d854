//! The requests of one watch: whatever it asks has its path, its selectors, its projection and its identity.

use std::time::{Duration, Instant};

use futures::{FutureExt, future::BoxFuture};
use http::Method;
use serde::Deserialize;

use super::{WatchKey, envelope::Version, lenient::or_default};
use crate::{
    apiserver::{self, ApiServer, Call, Lines, query},
    clock,
    model::manifest::Projection,
};

const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
const METADATA_LIST: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";

/// Asks for one watch.
#[derive(Clone, Debug)]
pub(super) struct Asks {
    api: ApiServer,
    key: WatchKey,
}

/// Names and values of a query.
pub(super) type Parameters = [(&'static str, String)];

/// A connection that is being opened.
pub(super) type Opening = BoxFuture<'static, Result<Lines, apiserver::Error>>;

#[derive(Deserialize)]
struct List {
    #[serde(default, deserialize_with = "or_default")]
    metadata: Meta,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Meta {
    #[serde(deserialize_with = "or_default")]
    resource_version: String,
}

impl Asks {
    /// The requests of the watch `key`.
    pub(super) fn new(api: ApiServer, key: WatchKey) -> Self {
        Self { api, key }
    }

    /// One page of a LIST.
    pub(super) fn list(
        &self,
        parameters: &Parameters,
        limit: Duration,
    ) -> BoxFuture<'static, Result<String, apiserver::Error>> {
        let (api, call) = (self.api.clone(), self.call(parameters, METADATA_LIST, limit));
        async move { api.call(call?).await }.boxed()
    }

    /// Opens the watch; its headers come within `limit`.
    pub(super) fn open(&self, parameters: &Parameters, limit: Duration) -> Opening {
        let (api, call) = (self.api.clone(), self.call(parameters, METADATA, limit));
        async move { api.lines(call?).await }.boxed()
    }

    /// The newest version there is, and when it was asked for: a consistent LIST of one object, which is not read.
    pub(super) async fn newest(&self) -> Result<(Instant, Version), apiserver::Error> {
        let begun = clock::now();
        let call = self.call(&[("limit", "1".to_owned())], METADATA_LIST, apiserver::CALL_LIMIT)?;
        let list: List = self.api.fetch(call).await?;
        Ok((begun, Version::parse(&list.metadata.resource_version)))
    }

    fn call(
        &self,
        parameters: &Parameters,
        metadata: &'static str,
        limit: Duration,
    ) -> Result<Call, apiserver::Error> {
        let WatchKey { resource, namespace, projection, identity, .. } = &self.key;
        let path = resource.path(namespace.as_deref(), None, None)?;
        let selectors = [
            ("labelSelector", &self.key.label_selector),
            ("fieldSelector", &self.key.field_selector),
        ];
        let selectors =
            selectors.into_iter().filter_map(|(name, text)| Some((name, text.as_deref()?)));
        let parameters = parameters.iter().map(|(name, value)| (*name, value.as_str()));
        let call = Call::new(Method::GET, query(&path, parameters.chain(selectors)));
        let accept = (*projection == Projection::Metadata).then_some(metadata);
        Ok(Call { accept, limit, ..call.identity(identity.clone()) })
    }
}
