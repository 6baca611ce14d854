//! The rights of a revision, asked for while it is staged: its account's, and the host's to act as the account.
//!
//! What a manifest declares is asked for whole: to watch, to read live, to write, and to put the finalizer. What is
//! missing becomes YAML that gives it, and the revision waits. Without the rights to tell people what became of
//! their objects a revision runs all the same, and its controller says so.
//!
//! Invariants: `every_declared_write_is_asked_for`, `what_nobody_declares_is_asked_for_to_tell_people`.

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
        view::View,
    },
    apiserver::{Error, Identity, Resource},
    model::{
        kind::Kind,
        manifest::{Manifest, Verb},
    },
};

/// Questions of one staging at the same time.
const ASKS: usize = 8;

/// What a revision does, and where.
#[derive(Clone, Copy)]
pub(super) struct Needs<'a> {
    pub(super) manifest: &'a Manifest,
    pub(super) resources: &'a BTreeMap<(String, String), Resource>,
    /// The controller's scope; `None`: the whole cluster.
    pub(super) namespaces: Option<&'a [Arc<str>]>,
}

/// Whose right it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    /// The account's own.
    Account,
    /// The host's, to act as the account.
    Host,
}

impl Needs<'_> {
    /// get, list and watch of every watched kind; of one object only where the watch is of one.
    fn reads(&self) -> BTreeSet<Right> {
        let mut rights = BTreeSet::new();
        for watch in self.manifest.all_watches() {
            for (resource, namespace) in self.places(&watch.kind) {
                let field = watch.field_selector.as_deref();
                rights.extend(reading(field, resource, namespace.as_deref()));
            }
        }
        rights
    }

    /// What is written, read live, and patched for the finalizer: what the account needs for it, or the host as the
    /// account.
    fn writes(&self, of: Whose) -> BTreeSet<Right> {
        let mut rights = BTreeSet::new();
        let declared = self
            .manifest
            .writes
            .iter()
            .flat_map(|write| write.verbs.iter().map(|verb| (&write.kind, *verb)));
        let finalizer = self.manifest.finalizer.as_ref().map(|_| &self.manifest.primary.kind);
        for (kind, verb) in declared.chain(finalizer.map(|kind| (kind, Verb::Patch))) {
            for (resource, namespace) in self.places(kind) {
                rights.extend(writing((verb, of), resource, namespace.as_deref()));
            }
        }
        for kind in &self.manifest.live {
            for (resource, namespace) in self.places(kind) {
                rights.insert(Right::on("get", resource, namespace.as_deref()));
            }
        }
        rights
    }

    /// Events, and the condition `Accepted` of the primaries.
    fn reports(&self) -> BTreeSet<Right> {
        let primary = &self.manifest.primary.kind;
        let mut rights = BTreeSet::new();
        for (resource, namespace) in self.places(primary) {
            if resource.has_status {
                let patch = Right::on("patch", resource, namespace.as_deref());
                rights.insert(patch.subresource("status"));
            }
            // Events about an object that lies in no namespace lie in this one.
            let namespace =
                if resource.namespaced { namespace } else { Some(Arc::from("default")) };
            rights.extend(["create", "patch"].map(|verb| Right {
                verb: verb.into(),
                group: "events.k8s.io".into(),
                resource: "events".into(),
                namespace: namespace.clone(),
                name: None,
            }));
        }
        rights
    }

    /// How and in which namespaces a kind is watched and written: one `None` for all.
    fn places(&self, kind: &Kind) -> Vec<(&Resource, Option<Arc<str>>)> {
        let Some(resource) = resource(self.resources, kind) else { return vec![] };
        match self.namespaces {
            Some(namespaces) if resource.namespaced => {
                namespaces.iter().map(|namespace| (resource, Some(namespace.clone()))).collect()
            }
            _ => vec![(resource, None)],
        }
    }
}

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

pub(super) fn resource<'a>(
    resources: &'a BTreeMap<(String, String), Resource>,
    kind: &Kind,
) -> Option<&'a Resource> {
    resources.get(&(kind.group.clone(), kind.kind.clone()))
}

/// get, list and watch; of one object only where the watch is of one.
pub(super) fn reading(
    field_selector: Option<&str>,
    resource: &Resource,
    namespace: Option<&str>,
) -> Vec<Right> {
    let name = field_selector.and_then(|text| text.strip_prefix("metadata.name="));
    let right = |verb| Right { name: name.map(Into::into), ..Right::on(verb, resource, namespace) };
    ["get", "list", "watch"].map(right).into()
}

/// Which RBAC verbs a declared write takes. An apply is a patch also where it makes the object: then the account needs
/// `create` besides, and the host nothing more (docs/decisions/0008-what-an-apply-needs.md).
fn writing((verb, of): (Verb, Whose), resource: &Resource, namespace: Option<&str>) -> Vec<Right> {
    let on = |verb: &str| Right::on(verb, resource, namespace);
    match (verb, of) {
        (Verb::Create, _) => vec![on("create")],
        (Verb::Apply, Whose::Account) => vec![on("create"), on("patch")],
        (Verb::Apply, Whose::Host) | (Verb::Patch, _) => vec![on("patch")],
        (Verb::ApplyStatus, _) => vec![on("patch").subresource("status")],
        (Verb::Delete, _) => vec![on("delete")],
    }
}

fn listed(rights: &BTreeSet<Right>) -> String {
    rights.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::manifest::{Mapping, Projection, Watch, Write};

    fn served(kind: &Kind, plural: &str, namespaced: bool) -> ((String, String), Resource) {
        let resource =
            Resource { kind: kind.clone(), plural: plural.into(), namespaced, has_status: true };
        ((kind.group.clone(), kind.kind.clone()), resource)
    }

    fn site() -> Kind {
        Kind::new("x.io/v1", "Site")
    }

    fn manifest(verbs: &[Verb]) -> Manifest {
        let primary = Watch {
            kind: site(),
            projection: Projection::Full,
            label_selector: None,
            field_selector: None,
            predicate: vec![],
            mapping: Mapping::Same,
        };
        let map = Kind::new("v1", "ConfigMap");
        Manifest {
            primary,
            owned: vec![],
            watches: vec![],
            live: vec![],
            writes: vec![Write { kind: map, verbs: verbs.iter().copied().collect() }],
            indexes: vec![],
            http: vec![],
            finalizer: None,
        }
    }

    fn words(rights: &BTreeSet<Right>) -> Vec<String> {
        rights.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_declared_write_is_asked_for() {
        let resources = BTreeMap::from([
            served(&site(), "sites", true),
            served(&Kind::new("v1", "ConfigMap"), "configmaps", true),
        ]);
        let scope = [Arc::from("a"), Arc::from("b")];
        for (verb, word) in [
            (Verb::Create, "create configmaps in namespace "),
            (Verb::Apply, "patch configmaps in namespace "),
            (Verb::ApplyStatus, "patch configmaps/status in namespace "),
            (Verb::Patch, "patch configmaps in namespace "),
            (Verb::Delete, "delete configmaps in namespace "),
        ] {
            let manifest = manifest(&[verb]);
            let needs =
                |namespaces| Needs { manifest: &manifest, resources: &resources, namespaces };
            let rights = words(&needs(Some(&scope[..])).writes(Whose::Host));
            assert!(rights.contains(&format!("{word}a")), "{verb:?}: {rights:?}");
            assert!(rights.contains(&format!("{word}b")), "{verb:?}: {rights:?}");
            let rights = words(&needs(None).writes(Whose::Account));
            assert!(rights.iter().all(|right| right.contains("in the whole cluster")));
        }
        // An apply may create: of the account that is asked for, of the host's requests it is none.
        let apply = manifest(&[Verb::Apply]);
        let needs = Needs { manifest: &apply, resources: &resources, namespaces: None };
        let create = |rights: BTreeSet<Right>| rights.iter().any(|right| &*right.verb == "create");
        assert!(create(needs.writes(Whose::Account)) && !create(needs.writes(Whose::Host)));
        let mut manifest = manifest(&[]);
        manifest.finalizer = Some("x.io/cleanup".into());
        manifest.live = vec![Kind::new("v1", "ConfigMap")];
        let needs = Needs { manifest: &manifest, resources: &resources, namespaces: None };
        let expected =
            ["get configmaps in the whole cluster", "patch sites.x.io in the whole cluster"];
        assert_eq!(words(&needs.writes(Whose::Account)), expected);
    }

    #[test]
    fn what_nobody_declares_is_asked_for_to_tell_people() {
        let manifest = manifest(&[]);
        let scope = [Arc::from("a")];
        for (namespaced, namespaces, events, status) in [
            (true, Some(&scope[..]), "in namespace a", "in namespace a"),
            (true, None, "in the whole cluster", "in the whole cluster"),
            (false, Some(&scope[..]), "in namespace default", "in the whole cluster"),
        ] {
            let resources = BTreeMap::from([served(&site(), "sites", namespaced)]);
            let needs = Needs { manifest: &manifest, resources: &resources, namespaces };
            let expected = [
                format!("create events.events.k8s.io {events}"),
                format!("patch events.events.k8s.io {events}"),
                format!("patch sites/status.x.io {status}"),
            ];
            assert_eq!(words(&needs.reports()), expected);
        }
    }
}
