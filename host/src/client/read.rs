//! Reads: from the cache under the grant, or live as the controller's account.

use std::{collections::BTreeMap, sync::Arc};

use http::Method;
use nagaya_selector::Selector;

use super::{Client, Error, ListOptions, Page, answer, object::key};
use crate::{
    access::{
        grant::{Right, Verdict},
        view::Source,
    },
    apiserver::Call,
    model::{kind::Kind, object::ObjectKey},
    watch::{Entry, Query, envelope},
};

/// Objects in a page when the guest leaves it to the host.
const PAGE: usize = 500;
/// Bytes in a page: data into a guest is not covered by its fuel, so pages keep it from drowning.
const PAGE_BYTES: usize = 1 << 20;

impl Client {
    /// One object from the cache.
    pub async fn get(
        &self,
        kind: &Kind,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Arc<str>, Error> {
        let key = key(namespace, name)?;
        let sources = self.readable(kind, namespace).await?;
        if self.0.run.is_hidden && self.0.view.is_primary(kind) && key == self.0.run.request {
            return self.get_live(kind, namespace, name).await.map(Into::into);
        }
        if self.catch_up(kind, &key).await? {
            return self.get_live(kind, namespace, name).await.map(Into::into);
        }
        let entry = sources.into_iter().find_map(|s| s.cache().get(&key));
        entry.map(|entry| entry.body().clone()).ok_or(Error::NotFound)
    }

    /// A page of objects from the cache, in the order of namespace and name.
    pub async fn list(&self, kind: &Kind, options: ListOptions) -> Result<Page, Error> {
        let namespace = options.namespace.as_deref();
        let sources = self.readable(kind, namespace).await?;
        self.catch_up_all(kind, namespace).await?;
        let selector = match &options.label_selector {
            Some(text) => {
                Some(Selector::parse(text).map_err(|error| Error::Invalid(error.to_string()))?)
            }
            None => None,
        };
        let index = match &options.index {
            Some((name, value)) => Some((self.index_path(kind, name)?, value.as_str())),
            None => None,
        };
        let after = options.from.as_deref().map(parse_position).transpose()?;
        let limit = if options.limit == 0 { PAGE } else { PAGE.min(options.limit as usize) };
        let mut found: BTreeMap<ObjectKey, Arc<Entry>> = BTreeMap::new();
        let mut more = false;
        for source in sources {
            let query = Query {
                namespace,
                selector: selector.as_ref(),
                index,
                after: after.as_ref(),
                limit,
                ..Query::default()
            };
            let mut scan = source.cache().scan(&query);
            while scan.step() {
                // Neither the guest's thread nor anybody else's is kept for as long as a cache may be large.
                tokio::task::yield_now().await;
            }
            let (entries, rest) = scan.found();
            more |= rest;
            // The first watch that shows an object shows the most of it.
            for entry in entries {
                found.entry(entry.key().clone()).or_insert(entry);
            }
        }
        Ok(page(found, limit, more))
    }

    /// One object from the API server, as the controller's account.
    pub async fn get_live(
        &self,
        kind: &Kind,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<String, Error> {
        if !self.0.view.manifest().reads(kind) {
            return Err(Error::NotDeclared(format!(
                "the manifest does not declare reading {kind}"
            )));
        }
        let entry = self.live(kind, &key(namespace, name)?).await?;
        Ok(entry.body().to_string())
    }

    /// The object as the API server has it.
    pub(super) async fn live(&self, kind: &Kind, key: &ObjectKey) -> Result<Arc<Entry>, Error> {
        let resource = self.resource(kind)?;
        let path = resource.path(key.namespace.as_deref(), Some(&key.name), None);
        let path = path.map_err(|error| answer::error(&error))?;
        match self.read(self.call(Method::GET, path)).await {
            Ok(text) => as_object(&text),
            Err(error) => {
                self.learn_anew(kind, &error).await;
                Err(self.heard(&error))
            }
        }
    }

    /// The primary as the API server has it; `None`: it is gone.
    pub async fn look(&self) -> Result<Option<Arc<Entry>>, Error> {
        self.look_at(&self.0.view.manifest().primary.kind, &self.0.run.request).await
    }

    /// A call in the name of this run.
    pub(super) fn call(&self, method: Method, path: String) -> Call {
        Call {
            user_agent: Some(self.0.run.user_agent.clone()),
            ..Call::new(method, path).identity(self.0.account.identity.clone())
        }
    }

    async fn readable(&self, kind: &Kind, namespace: Option<&str>) -> Result<Vec<&Source>, Error> {
        let view = &self.0.view;
        if view.sources(kind).next().is_none() {
            return Err(Error::NotDeclared(format!("the manifest declares no watch of {kind}")));
        }
        match view.readable(kind, namespace).await {
            Ok(sources) if sources.is_empty() => Err(Error::NotFound),
            Ok(sources) => Ok(sources),
            Err((right, verdict)) => Err(self.no_right(&right, verdict)),
        }
    }

    fn no_right(&self, right: &Right, verdict: Verdict) -> Error {
        if verdict == Verdict::Unknown {
            return Error::Unavailable(format!("cannot confirm the right to {right}"));
        }
        let text = format!("{} may not {right}", self.0.account.identity);
        self.lacks(&text);
        Error::Forbidden(text)
    }

    fn index_path(&self, kind: &Kind, name: &str) -> Result<&str, Error> {
        let indexes = &self.0.view.manifest().indexes;
        let index = indexes.iter().find(|index| index.name == name);
        match index {
            Some(index) if crate::model::kind::same_kind(&index.kind, kind) => Ok(&index.path),
            _ => Err(Error::NotDeclared(format!(
                "the manifest declares no index {name} over {kind}"
            ))),
        }
    }
}

/// The API server's answer as an object.
pub(super) fn as_object(text: &str) -> Result<Arc<Entry>, Error> {
    envelope::object(text).map(Arc::new).map_err(|error| Error::Unavailable(error.to_string()))
}

fn page(found: BTreeMap<ObjectKey, Arc<Entry>>, limit: usize, more: bool) -> Page {
    let (mut page, mut bytes, mut last) = (Page::default(), 0, None);
    let total = found.len();
    for (key, entry) in found {
        bytes += entry.body().len();
        if page.items.len() == limit || (bytes > PAGE_BYTES && !page.items.is_empty()) {
            break;
        }
        page.items.push(entry.body().clone());
        last = Some(key);
    }
    if more || page.items.len() < total {
        page.next = last.map(|key| format_position(&key));
    }
    page
}

fn format_position(key: &ObjectKey) -> String {
    format!("{}/{}", key.namespace.as_deref().unwrap_or_default(), key.name)
}

fn parse_position(text: &str) -> Result<ObjectKey, Error> {
    let (namespace, name) = text
        .split_once('/')
        .ok_or_else(|| Error::Invalid(format!("{text:?} is not the `next` of a page")))?;
    Ok(ObjectKey::new(Some(namespace).filter(|namespace| !namespace.is_empty()), name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_survives_its_text() {
        for key in [ObjectKey::new(Some("a"), "b.c"), ObjectKey::new(None, "b")] {
            assert_eq!(parse_position(&format_position(&key)).unwrap(), key);
        }
        assert!(parse_position("x").is_err());
    }
}
