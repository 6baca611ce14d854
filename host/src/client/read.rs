//! Reads: from the cache under the grant, or live as the controller's account.

use std::{collections::BTreeMap, sync::Arc};

use http::Method;
use nagaya_selector::Selector;
use serde_json::Value;

use super::{Client, Error, ListOptions, Page, answer, dry::Use, object::key, shown};
use crate::{
    access::{
        grant::{Right, Verdict},
        view::Source,
    },
    apiserver::Call,
    model::{kind::Kind, object::ObjectKey},
    watch::{Entry, Query, envelope, fingerprint::Part},
};

/// Objects in a page when the guest leaves it to the host.
const PAGE: usize = 500;
/// Bytes in a page: data into a guest is not covered by its fuel, so pages keep it from drowning.
const PAGE_BYTES: usize = 1 << 20;

/// Which objects a list asks for.
struct Wanted<'a> {
    namespace: Option<&'a str>,
    selector: Option<&'a Selector>,
    /// Path and value.
    index: Option<(&'a str, &'a str)>,
    after: Option<&'a ObjectKey>,
}

impl Wanted<'_> {
    fn takes(&self, entry: &Entry) -> bool {
        let namespace = entry.key().namespace.as_deref();
        self.namespace.is_none_or(|wanted| namespace == Some(wanted))
            && self.selector.is_none_or(|selector| selector.matches(|key| entry.label(key)))
            && self.index.is_none_or(|(path, value)| {
                envelope::field(entry.body(), path).iter().any(|found| found == value)
            })
    }
}

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
        if let Some(left) = self.dry().and_then(|dry| dry.overlaid(kind, &key)) {
            return left.here().map(|entry| self.projected(kind, &entry)).ok_or(Error::NotFound);
        }
        if self.0.run.is_hidden && self.0.view.is_primary(kind) && key == self.0.run.request {
            return self.get_live(kind, namespace, name).await.map(Into::into);
        }
        if self.catch_up(kind, &key).await? {
            return self.get_live(kind, namespace, name).await.map(Into::into);
        }
        let entry = sources.into_iter().find_map(|s| s.cache().get(&key));
        match (self.dry(), &entry) {
            (Some(dry), Some(entry)) => dry.saw(kind, entry),
            (Some(dry), None) => dry.missed(kind, &key),
            _ => (),
        }
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
        if let Some(dry) = self.dry() {
            for entry in found.values() {
                dry.saw(kind, entry);
            }
            dry.listed(kind, &format!("{options:?}"), found.keys());
            let of =
                Wanted { selector: selector.as_ref(), index, namespace, after: after.as_ref() };
            self.overlay_page(&of, (kind, &mut found), more);
        }
        Ok(page(found, limit, more))
    }

    /// Puts into a page of a list what this run would have written.
    fn overlay_page(
        &self,
        of: &Wanted<'_>,
        (kind, found): (&Kind, &mut BTreeMap<ObjectKey, Arc<Entry>>),
        more: bool,
    ) {
        let Some(dry) = self.dry() else { return };
        let last = found.keys().next_back().filter(|_| more).cloned();
        for (key, left) in dry.all_overlaid(kind) {
            let is_here = of.after.is_none_or(|after| key > *after)
                && last.as_ref().is_none_or(|last| key <= *last);
            let shows = |entry: &Arc<Entry>| {
                let covers = |source: &&Source| source.covers(key.namespace.as_deref());
                let mut sources = self.0.view.sources(kind).filter(covers);
                of.takes(entry) && sources.any(|source| shown::selects(&source.watch, entry))
            };
            match left.filter(shows).filter(|_| is_here) {
                Some(entry) => {
                    let body = self.projected(kind, &entry);
                    let entry = as_object(&body).unwrap_or(entry);
                    found.insert(key, entry);
                }
                None => drop(found.remove(&key)),
            }
        }
    }

    /// An object's text as a cache of its kind shows it.
    fn projected(&self, kind: &Kind, entry: &Entry) -> Arc<str> {
        if self.part(kind) != Part::Metadata {
            return entry.body().clone();
        }
        let mut object: Value = serde_json::from_str(entry.body()).unwrap_or_default();
        if let Some(fields) = object.as_object_mut() {
            fields.retain(|name, _| ["apiVersion", "kind", "metadata"].contains(&name.as_str()));
        }
        object.to_string().into()
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
        if let Some(dry) = self.dry() {
            dry.used(kind, Use::Live);
        }
        let entry = self.live(kind, &key(namespace, name)?).await?;
        Ok(entry.body().to_string())
    }

    /// The object as the API server has it.
    pub(super) async fn live(&self, kind: &Kind, key: &ObjectKey) -> Result<Arc<Entry>, Error> {
        if let Some(left) = self.dry().and_then(|dry| dry.overlaid(kind, key)) {
            return left.here().ok_or(Error::NotFound);
        }
        let resource = self.resource(kind)?;
        let path = resource.path(key.namespace.as_deref(), Some(&key.name), None);
        let path = path.map_err(|error| answer::error(&error))?;
        match self.read(self.call(Method::GET, path)).await {
            Ok(text) => {
                let entry = as_object(&text)?;
                if let Some(dry) = self.dry() {
                    dry.saw(kind, &entry);
                }
                Ok(entry)
            }
            Err(error) => {
                if let Some(dry) = self.dry() {
                    dry.missed(kind, key);
                }
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
