//! Asks registries for a team: with the login that the team's account has for them, and no oftener than its turn comes.

use http::Method;
use k8s_openapi::{
    ByteString,
    api::core::v1::{Secret, ServiceAccount},
};

use super::{
    estate::Estate,
    refusal::{Again, Refusal},
};
use crate::{
    access::grant::Right,
    apiserver::{Call, Error as CallError, Identity},
    causes,
    model::{crd::ModuleStatus, digest::Digest},
    modules::oci::{self, Image, Login},
    share::slots::Slot,
};

/// Pull secrets of one account that are looked into.
const SECRETS: usize = 10;
/// Questions to registries at the same time, and of these so many of one team: a registry that answers slowly, or without end, costs
/// its own team a turn, and the host little memory.
pub(super) const PULLS: usize = 4;
pub(super) const PULLS_OF_ONE_TEAM: usize = 1;
/// The type of a Secret with logins, and its key.
const LOGINS: &str = "kubernetes.io/dockerconfigjson";
const CONFIG: &str = ".dockerconfigjson";

impl Estate {
    /// What `image` is now.
    pub(super) async fn resolve(
        &self,
        account: &Identity,
        image: &str,
    ) -> Result<ModuleStatus, Refusal> {
        let named: Image =
            image.parse().map_err(|error| Refusal::failed("BadImage", format!("{error}")))?;
        let login = self.login(account, &named).await?;
        let _turn = self.turn(account).await;
        let resolved = self.host.registries.resolve(&named, login.as_ref()).await;
        let resolved = resolved.map_err(|error| refused(&error))?;
        Ok(ModuleStatus {
            image: image.to_owned(),
            pinned: resolved.image.to_string(),
            digest: resolved.digest.to_string(),
        })
    }

    /// Puts the component `digest` of `image` into the store.
    pub(super) async fn pull(
        &self,
        account: &Identity,
        image: &str,
        digest: &Digest,
    ) -> Result<(), Refusal> {
        let image: Image =
            image.parse().map_err(|error| Refusal::failed("BadImage", format!("{error}")))?;
        let login = self.login(account, &image).await?;
        let _turn = self.turn(account).await;
        let pulled = self.host.registries.pull(&image, digest, login.as_ref(), &self.host.modules);
        pulled.await.map_err(|error| refused(&error))?;
        tracing::info!(%image, %digest, "a component was pulled");
        Ok(())
    }

    /// The team's turn to ask a registry.
    pub(super) async fn turn(&self, account: &Identity) -> Slot {
        self.pulls.take(team(account)).await
    }

    /// The login that the account's pull secrets have for `image`, read as the account.
    pub(super) async fn login(
        &self,
        account: &Identity,
        image: &Image,
    ) -> Result<Option<Login>, Refusal> {
        let Identity::ServiceAccount { namespace, name } = account else { return Ok(None) };
        let asking = |what: &str| {
            let what = what.to_owned();
            move |error: CallError| Refusal::api(&what, &error)
        };
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}");
        let own: ServiceAccount = self
            .host
            .api
            .fetch(Call::new(Method::GET, path))
            .await
            .map_err(asking("read the account's pull secrets"))?;
        let mut names: Vec<_> =
            own.image_pull_secrets.into_iter().flatten().map(|secret| secret.name).collect();
        names.retain(|name| !name.is_empty());
        names.truncate(SECRETS);
        let rights = names.iter().map(|name| Right {
            verb: "get".into(),
            group: "".into(),
            resource: "secrets".into(),
            namespace: Some(namespace.clone()),
            name: Some(name.as_str().into()),
        });
        self.host.may(account, rights.collect()).await?;
        for name in names {
            let path = format!("/api/v1/namespaces/{namespace}/secrets/{name}");
            let call = Call::new(Method::GET, path).identity(account.clone());
            let secret: Secret = match self.host.guests.fetch(call).await {
                Ok(secret) => secret,
                // As the kubelet does it: another one may do.
                Err(error) if error.code() == Some(404) => continue,
                Err(error) => return Err(asking("read a pull secret")(error)),
            };
            let config = secret.data.and_then(|mut data| data.remove(CONFIG));
            let Some(ByteString(config)) =
                config.filter(|_| secret.type_.as_deref() == Some(LOGINS))
            else {
                continue;
            };
            let found = oci::login(&config, &image.repository()).map_err(|why| {
                let text = format!("the pull secret {namespace}/{name} cannot be read: {why}");
                Refusal::failed("BadPullSecret", text)
            })?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }
}

fn team(account: &Identity) -> &str {
    match account {
        Identity::ServiceAccount { namespace, .. } => namespace,
        Identity::Host => "",
    }
}

pub(super) fn refused(error: &oci::Error) -> Refusal {
    let words = causes::all(error);
    let again = Again::Pulling;
    match error {
        oci::Error::NotListed(_) => Refusal::failed("RegistryNotAllowed", words),
        oci::Error::Unauthorized { .. } => {
            Refusal { again, ..Refusal::failed("ImageUnauthorized", words) }
        }
        oci::Error::Unreachable { .. } => {
            Refusal { again, ..Refusal::waiting("RegistryUnreachable", words) }
        }
        oci::Error::Tampered { .. } => Refusal { again, ..Refusal::failed("ImageTampered", words) },
        oci::Error::NotSigned { .. } => {
            Refusal { again, ..Refusal::failed("SignatureRefused", words) }
        }
        oci::Error::Odd { .. } => {
            Refusal { again, ..Refusal::failed("ImageHasNoComponent", words) }
        }
        oci::Error::TooLarge { .. } => Refusal { again, ..Refusal::failed("ImageTooLarge", words) },
        oci::Error::Refused { .. } => Refusal { again, ..Refusal::failed("ImageRefused", words) },
        oci::Error::Child { .. } | oci::Error::Store(_) => {
            Refusal { again, ..Refusal::waiting("ImageNotPulled", words) }
        }
    }
}
