//! Whether a revision is signed as the platform demands, asked before anything of it is compiled, on every host that stages it.
//!
//! What a registry has shown once is kept, and checked again by today's policy: a registry that is down stops nothing, and a key that
//! the platform has taken away lets nothing in.
//!
//! Invariants, on a real registry: `what_is_not_signed_as_the_platform_demands_is_refused`,
//! `what_was_signed_runs_without_its_registry`.

use super::{
    estate::Estate,
    images::refused,
    refusal::{Again, Refusal},
    stage::Staging,
};
use crate::{
    apiserver::Identity,
    causes,
    model::digest::Digest,
    modules::{
        Error,
        oci::{self, Image},
        policy::Demand,
    },
};

impl Staging {
    /// Refuses what is not signed as the platform demands in this namespace.
    pub(super) async fn check_signed(&self, digest: &Digest) -> Result<(), Refusal> {
        let account = &self.shared.account;
        let Some(demand) = self.estate.host.policy.demand(account.team()) else { return Ok(()) };
        let checked = match &self.image {
            Some(image) => self.estate.prove(&account.identity, (image, digest), demand).await,
            None => Err(uploaded(digest, demand)),
        };
        match checked {
            Err(refusal) if demand.only_warns => {
                tracing::warn!(
                    controller = account.controller,
                    revision = self.name,
                    reason = refusal.reason,
                    message = refusal.message,
                    "a revision runs that the policy would refuse if it did not only warn"
                );
                Ok(())
            }
            checked => checked,
        }
    }
}

impl Estate {
    /// Whether `image` holds the component and is signed as demanded, by what is kept or else by what the registry has.
    async fn prove(
        &self,
        account: &Identity,
        (image, component): (&str, &Digest),
        demand: &Demand,
    ) -> Result<(), Refusal> {
        let image: Image =
            image.parse().map_err(|error| Refusal::failed("BadImage", format!("{error}")))?;
        let Some(manifest) = image.manifest() else {
            let error = oci::Error::not_signed(&image, oci::Flaw::NotPinned, demand);
            return Err(refused(&error));
        };
        let names = (component.clone(), manifest);
        let (modules, (of, manifest), signers) =
            (self.host.modules.clone(), names.clone(), demand.signers.clone());
        let kept = blocking(move || {
            let kept = modules.proof(&of, &manifest)?;
            let is_good =
                kept.clone().is_some_and(|kept| kept.check((&of, &manifest), &signers).is_ok());
            Ok((kept, is_good))
        });
        let (kept, is_good) = kept.await?;
        if is_good {
            return Ok(());
        }
        let login = self.login(account, &image).await?;
        let proved = {
            let _turn = self.turn(account).await;
            self.host.registries.prove((&image, component), login.as_ref(), demand).await
        };
        let proof = proved.map_err(|error| refused(&error))?;
        tracing::info!(%image, digest = %component, "an image is signed as the policy demands");
        let modules = self.host.modules.clone();
        blocking(move || {
            let proof = match kept {
                Some(kept) => proof.with(kept),
                None => proof,
            };
            modules.keep_proof((&names.0, &names.1), &proof)
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Refusal> {
    let words = match tokio::task::spawn_blocking(work).await {
        Ok(Ok(done)) => return Ok(done),
        Ok(Err(error)) => causes::all(&error),
        Err(error) => format!("cannot look at a proof: {error}"),
    };
    Err(Refusal::waiting("ModuleUnreadable", words))
}

/// Bytes alone carry no signature.
fn uploaded(digest: &Digest, demand: &Demand) -> Refusal {
    let text = format!(
        "{digest} was uploaded, and so nobody can have signed it; in this namespace the platform demands a signature by one of: {}. Ship it as an image (nagaya push NAME FILE --to REGISTRY/REPOSITORY:TAG) and sign that (cosign sign --key KEY)",
        demand.names()
    );
    Refusal { again: Again::Pulling, ..Refusal::failed("SignatureRefused", text) }
}
