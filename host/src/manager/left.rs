//! Counts the objects that still carry a deleted controller's finalizer, where no loaded revision has them cached.

use http::Method;

use super::running::Setup;
use crate::{
    apiserver::{ApiServer, Call, Error, Identity, Resource, query},
    crd::WasmController,
    manifest::Kind,
    watch::{envelope, intern::Interner},
};

const METADATA_LIST: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
const PAGE: &str = "500";

/// How many objects of `primary` in the controller's scope carry `finalizer`.
pub(super) async fn count(
    api: &ApiServer,
    controller: &WasmController,
    primary: &Kind,
    finalizer: &str,
) -> Result<usize, Error> {
    let Some(resource) = api.discover(primary).await? else { return Ok(0) };
    let setup = Setup::of(controller);
    let namespaces = match &setup.namespaces {
        Some(namespaces) if resource.namespaced => {
            namespaces.iter().map(|ns| Some(&**ns)).collect()
        }
        _ => vec![None],
    };
    let mut count = 0;
    for namespace in namespaces {
        // A shared kind is the host's to read, another only the account's.
        let own = in_namespace(api, &resource, namespace, Identity::Host, finalizer).await;
        count += match own {
            Err(error) if error.code() == Some(403) => {
                in_namespace(api, &resource, namespace, setup.account.clone(), finalizer).await?
            }
            result => result?,
        };
    }
    Ok(count)
}

async fn in_namespace(
    api: &ApiServer,
    resource: &Resource,
    namespace: Option<&str>,
    identity: Identity,
    finalizer: &str,
) -> Result<usize, Error> {
    let path = resource.path(namespace, None, None)?;
    let (mut count, mut next) = (0, Some(String::new()));
    while let Some(page) = next {
        let path = query(&path, [("limit", PAGE), ("continue", &page)]);
        let call = Call::new(Method::GET, path).identity(identity.clone());
        let text = api.call(Call { accept: Some(METADATA_LIST), ..call }).await?;
        let list = envelope::list(&text, &resource.kind, &mut Interner::default())
            .map_err(|error| Error::Answer(error.into()))?;
        let carriers = list.entries.iter().filter(|e| e.finalizers().any(|name| name == finalizer));
        count += carriers.count();
        next = list.next;
    }
    Ok(count)
}
