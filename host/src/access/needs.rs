//! Which rights a manifest asks for: its account's, and the host's to act as the account; pure.
//!
//! What is declared is asked for whole: to watch, to read live, to write, and to put the finalizer. What the host does for
//! every controller comes to it: to tell people what became of their objects.
//!
//! Invariants: `every_declared_write_is_asked_for`, `what_nobody_declares_is_asked_for_to_tell_people`,
//! `the_host_reads_nothing_as_the_account_but_secrets`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::grant::Right;
use crate::{
    apiserver::Resource,
    model::{
        kind::Kind,
        manifest::{Manifest, Verb},
    },
};

/// What a revision does, and where.
#[derive(Clone, Copy, Debug)]
pub struct Needs<'a> {
    /// What it declares.
    pub manifest: &'a Manifest,
    /// How its kinds are served, by group and kind.
    pub resources: &'a BTreeMap<(String, String), Resource>,
    /// The controller's scope; `None`: the whole cluster.
    pub namespaces: Option<&'a [Arc<str>]>,
}

/// Whose right it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// The account's own.
    Account,
    /// The host's, to act as the account.
    Host,
}

impl Needs<'_> {
    /// All that the account needs.
    pub fn account(&self) -> BTreeSet<Right> {
        let mut rights = self.reads();
        rights.extend(self.writes(Whose::Account));
        rights.extend(self.reports());
        rights
    }

    /// What the host needs to be let do as the account. What it shares it watches as itself; Secrets it never shares,
    /// and which other kinds it does not is known only by asking (`unshared` of the manager).
    pub fn host(&self) -> BTreeSet<Right> {
        let mut rights = self.writes(Whose::Host);
        rights.extend(self.reports());
        for watch in self.manifest.all_watches().filter(|watch| watch.kind.is_secret()) {
            for (resource, namespace) in self.places(&watch.kind) {
                let namespace = namespace.as_deref();
                rights.extend(["list", "watch"].map(|verb| Right::on(verb, resource, namespace)));
            }
        }
        rights
    }

    /// get, list and watch of every watched kind; of one object only where the watch is of one.
    pub fn reads(&self) -> BTreeSet<Right> {
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
    pub fn writes(&self, of: Whose) -> BTreeSet<Right> {
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
    pub fn reports(&self) -> BTreeSet<Right> {
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
    pub fn places(&self, kind: &Kind) -> Vec<(&Resource, Option<Arc<str>>)> {
        let Some(resource) = resource(self.resources, kind) else { return vec![] };
        match self.namespaces {
            Some(namespaces) if resource.namespaced => {
                namespaces.iter().map(|namespace| (resource, Some(namespace.clone()))).collect()
            }
            _ => vec![(resource, None)],
        }
    }
}

/// How `kind` is served, whatever its version.
pub fn resource<'a>(
    resources: &'a BTreeMap<(String, String), Resource>,
    kind: &Kind,
) -> Option<&'a Resource> {
    resources.get(&(kind.group.clone(), kind.kind.clone()))
}

/// get, list and watch; of one object only where the watch is of one.
pub fn reading(
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
pub fn writing(
    (verb, of): (Verb, Whose),
    resource: &Resource,
    namespace: Option<&str>,
) -> Vec<Right> {
    let on = |verb: &str| Right::on(verb, resource, namespace);
    match (verb, of) {
        (Verb::Create, _) => vec![on("create")],
        (Verb::Apply, Whose::Account) => vec![on("create"), on("patch")],
        (Verb::Apply, Whose::Host) | (Verb::Patch, _) => vec![on("patch")],
        (Verb::ApplyStatus, _) => vec![on("patch").subresource("status")],
        (Verb::Delete, _) => vec![on("delete")],
    }
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

    #[test]
    fn the_host_reads_nothing_as_the_account_but_secrets() {
        let secret = Kind::new("v1", "Secret");
        let mut manifest = manifest(&[Verb::Apply]);
        manifest.watches = vec![Watch {
            kind: secret.clone(),
            projection: Projection::Metadata,
            field_selector: Some("metadata.name=password".into()),
            ..manifest.primary.clone()
        }];
        let resources = BTreeMap::from([
            served(&site(), "sites", true),
            served(&Kind::new("v1", "ConfigMap"), "configmaps", true),
            served(&secret, "secrets", true),
        ]);
        let scope = [Arc::from("a")];
        let namespaces = Some(&scope[..]);
        let needs = Needs { manifest: &manifest, resources: &resources, namespaces };
        let expected = [
            "create events.events.k8s.io in namespace a",
            "list secrets in namespace a",
            "patch configmaps in namespace a",
            "patch events.events.k8s.io in namespace a",
            "patch sites/status.x.io in namespace a",
            "watch secrets in namespace a",
        ];
        let mut rights = words(&needs.host());
        rights.sort();
        assert_eq!(rights, expected);
        let account = needs.account();
        let parts = [needs.reads(), needs.writes(Whose::Account), needs.reports()];
        assert!(parts.iter().all(|part| part.is_subset(&account)), "{account:?}");
        assert_eq!(account.len(), parts.iter().map(BTreeSet::len).sum::<usize>());
    }
}
