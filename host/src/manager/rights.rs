//! The rights of a revision, asked for while it is staged: its account's, and the host's to act as the account.
//!
//! Which rights a manifest asks for is decided in `access/needs.rs`. What is missing becomes YAML that gives it, and the
//! revision waits. Without the rights to tell people what became of their objects a revision runs all the same, and its
//! controller says so.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use futures::{StreamExt, TryStreamExt, stream};

use super::{
    estate::Host,
    stage::{Refusal, Staging},
};
use crate::{
    access::{
        grant::{self, Right},
        needs::{Needs, Whose},
        view::View,
    },
    apiserver::{Error, Identity, Resource},
    model::manifest::Manifest,
};

/// Questions of one staging at the same time.
const ASKS: usize = 8;

impl Staging {
    pub(super) fn needs<'a>(
        &'a self,
        manifest: &'a Manifest,
        resources: &'a BTreeMap<(String, String), Resource>,
    ) -> Needs<'a> {
        Needs { manifest, resources, namespaces: self.namespaces.as_deref() }
    }

    /// The account may see what it watches and write what it declares, and the host may act as the account.
    pub(super) async fn check_rights(
        &self,
        manifest: &Manifest,
        resources: &BTreeMap<(String, String), Resource>,
    ) -> Result<(), Refusal> {
        let account = &self.shared.account.identity;
        let needs = self.needs(manifest, resources);
        // What runs already goes on without a right to write: its runs tell what they are refused.
        let writes = |of| if self.is_live { BTreeSet::new() } else { needs.writes(of) };
        let own = needs.reads().into_iter().chain(writes(Whose::Account)).collect();
        let asked = async {
            let lacking = self.estate.host.lacking(account, own).await?;
            let unshared = self.unshared(&needs).await?;
            let used: BTreeSet<_> = writes(Whose::Host).into_iter().chain(unshared).collect();
            Ok((lacking, self.estate.host.lacking_as(account, &used).await?, used))
        };
        let (lacking, of_host, used) = asked
            .await
            .map_err(|error| Refusal::api(&format!("ask what {account} may"), &error))?;
        self.estate
            .host
            .lack(account, &lacking, (&of_host, &used))
            .map_or(Ok(()), |text| Err(Refusal::forbidden(text)))
    }

    /// The watches that the host may not open as itself, and opens as the account.
    async fn unshared(&self, needs: &Needs<'_>) -> Result<BTreeSet<Right>, Error> {
        let mut rights = BTreeSet::new();
        for watch in needs.manifest.all_watches() {
            for (resource, namespace) in needs.places(&watch.kind) {
                let namespace = namespace.as_deref();
                let both = ["list", "watch"].map(|verb| Right::on(verb, resource, namespace));
                // What the host may is asked anew: a kind may have left the shared ones just now.
                let lacking =
                    self.estate.host.lacking(&Identity::Host, both.clone().into()).await?;
                if resource.kind.is_secret() || !lacking.is_empty() {
                    rights.extend(both);
                }
            }
        }
        Ok(rights)
    }

    /// Whether the host itself may watch the kind, so that all controllers share one watch.
    pub(super) async fn is_shared(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
    ) -> Result<bool, Refusal> {
        if resource.kind.is_secret() {
            return Ok(false);
        }
        for verb in ["list", "watch"] {
            let right = Right::on(verb, resource, namespace);
            let answer = self.estate.host.authority.allows(&Identity::Host, &right).await;
            if !answer.map_err(|error| Refusal::api("ask what the host may watch", &error))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The namespaces in which a kind is watched: one `None` for all.
    pub(super) fn scopes(&self, resource: &Resource) -> Vec<Option<Arc<str>>> {
        match &self.namespaces {
            Some(namespaces) if resource.namespaced => {
                namespaces.iter().cloned().map(Some).collect()
            }
            _ => vec![None],
        }
    }
}

impl Host {
    /// Whether `account` has these rights, and the host may use them as the account; a refusal has the YAML that gives them.
    pub(super) async fn may(
        &self,
        account: &Identity,
        rights: BTreeSet<Right>,
    ) -> Result<(), Refusal> {
        if rights.is_empty() {
            return Ok(());
        }
        let asked = async {
            let lacking = self.lacking(account, rights.clone()).await?;
            Ok((lacking, self.lacking_as(account, &rights).await?))
        };
        let (lacking, of_host) = asked
            .await
            .map_err(|error| Refusal::api(&format!("ask what {account} may"), &error))?;
        let text = self.lack(account, &lacking, (&of_host, &rights));
        text.map_or(Ok(()), |text| Err(Refusal::forbidden(text)))
    }

    /// What `account` lacks to tell people what became of their objects, with the YAML that gives it.
    pub(super) async fn unheard(
        &self,
        account: &Identity,
        view: &View,
        namespaces: Option<&[Arc<str>]>,
    ) -> Result<Option<String>, Error> {
        let resources = view.resources();
        let needs = Needs { manifest: view.manifest(), resources: &resources, namespaces };
        let used = needs.reports();
        let lacking = self.lacking(account, used.clone()).await?;
        let of_host = self.lacking_as(account, &used).await?;
        Ok(self.lack(account, &lacking, (&of_host, &used)))
    }

    /// What is missing, in words and as YAML; `of_host` are those of `used` that the host may not use as the account.
    fn lack(
        &self,
        account: &Identity,
        lacking: &BTreeSet<Right>,
        (of_host, used): (&BTreeSet<Right>, &BTreeSet<Right>),
    ) -> Option<String> {
        let (mut words, mut documents) = (vec![], vec![]);
        if !lacking.is_empty() {
            words.push(format!("{account} may not {}", listed(lacking)));
            documents.push(grant::rbac_for_account(account, lacking));
        }
        if !of_host.is_empty() {
            let list = listed(of_host);
            words.push(format!("the host may not act as {account}: it lacks {list}"));
            let whole = of_host.iter().any(|right| &*right.verb == "impersonate");
            documents.push(if whole {
                grant::rbac_for_whole_impersonation(account, &self.user)
            } else {
                grant::rbac_for_impersonation(account, &self.user, used)
            });
        }
        let (words, yaml) = (words.join("; "), documents.join("---\n"));
        (!words.is_empty()).then(|| format!("{words}. This gives the right:\n{yaml}"))
    }

    /// Those of `rights` that `who` does not have, whatever was known before.
    async fn lacking(
        &self,
        who: &Identity,
        rights: BTreeSet<Right>,
    ) -> Result<BTreeSet<Right>, Error> {
        let asks = stream::iter(rights).map(|right| async {
            let may = self.authority.ask(who, &right).await?;
            Ok((!may).then_some(right))
        });
        asks.buffer_unordered(ASKS).try_filter_map(async |right| Ok(right)).try_collect().await
    }

    /// What the host lacks to use `used` as `account`: constrained impersonation, or the older verb that allows
    /// everything.
    async fn lacking_as(
        &self,
        account: &Identity,
        used: &BTreeSet<Right>,
    ) -> Result<BTreeSet<Right>, Error> {
        let whole = Right::to_impersonate(account, "impersonate", "");
        if let Some(right) = &whole
            && self.authority.ask(&Identity::Host, right).await?
        {
            return Ok(BTreeSet::new());
        }
        if !self.authority.knows_limited_impersonation(account).await? {
            return Ok(whole.into_iter().collect());
        }
        let be =
            Right::to_impersonate(account, "impersonate:serviceaccount", "authentication.k8s.io");
        let all = be.into_iter().chain(used.iter().map(Right::impersonated)).collect();
        self.lacking(&Identity::Host, all).await
    }
}

fn listed(rights: &BTreeSet<Right>) -> String {
    rights.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
