//! Makes a plain [`Manifest`] of the guest's answer to `describe`; pure.

use std::collections::BTreeSet;

use super::imports::bindings::exports::nagaya::controller::guest as wit;
use crate::model::manifest::{
    Index, Manifest, Mapping, PredicateStep, Projection, Reference, Verb, Watch, Write,
};

impl From<wit::Manifest> for Manifest {
    fn from(manifest: wit::Manifest) -> Self {
        Self {
            primary: primary(manifest.primary),
            owned: manifest.owned.into_iter().map(owned).collect(),
            watches: manifest.watches.into_iter().map(watch).collect(),
            live: manifest.live.into_iter().map(Into::into).collect(),
            writes: manifest.writes.into_iter().map(write).collect(),
            indexes: manifest.indexes.into_iter().map(index).collect(),
            http: manifest.http.iter().map(http_host).collect(),
            finalizer: manifest.finalizer,
        }
    }
}

fn primary(primary: wit::Primary) -> Watch {
    Watch {
        kind: primary.kind.into(),
        projection: Projection::Full,
        label_selector: primary.label_selector,
        field_selector: primary.field_selector,
        predicate: steps(primary.predicate),
        mapping: Mapping::Same,
    }
}

fn owned(owned: wit::Owned) -> Watch {
    Watch {
        kind: owned.kind.into(),
        projection: projection(owned.projection),
        label_selector: owned.label_selector,
        field_selector: None,
        predicate: steps(owned.predicate),
        mapping: Mapping::Controller,
    }
}

fn watch(watch: wit::Watch) -> Watch {
    Watch {
        kind: watch.kind.into(),
        projection: projection(watch.projection),
        label_selector: watch.label_selector,
        field_selector: watch.field_selector,
        predicate: steps(watch.predicate),
        mapping: mapping(watch.mapping),
    }
}

fn projection(projection: wit::Projection) -> Projection {
    match projection {
        wit::Projection::Full => Projection::Full,
        wit::Projection::Metadata => Projection::Metadata,
    }
}

fn steps(steps: Vec<wit::PredicateStep>) -> Vec<PredicateStep> {
    let step = |step| match step {
        wit::PredicateStep::GenerationChanged => PredicateStep::GenerationChanged,
        wit::PredicateStep::ResourceVersionChanged => PredicateStep::ResourceVersionChanged,
        wit::PredicateStep::LabelsChanged => PredicateStep::LabelsChanged,
        wit::PredicateStep::AnnotationsChanged => PredicateStep::AnnotationsChanged,
        wit::PredicateStep::MatchesLabels(selector) => PredicateStep::MatchesLabels(selector),
        wit::PredicateStep::Both => PredicateStep::Both,
        wit::PredicateStep::Either => PredicateStep::Either,
        wit::PredicateStep::Negate => PredicateStep::Negate,
    };
    steps.into_iter().map(step).collect()
}

fn mapping(mapping: wit::Mapping) -> Mapping {
    match mapping {
        wit::Mapping::Same => Mapping::Same,
        wit::Mapping::Owner => Mapping::Owner,
        wit::Mapping::Controller => Mapping::Controller,
        wit::Mapping::Label(at) => Mapping::Label(reference(at)),
        wit::Mapping::Annotation(at) => Mapping::Annotation(reference(at)),
        wit::Mapping::Field(at) => Mapping::Field(reference(at)),
        wit::Mapping::Index(name) => Mapping::Index(name),
        wit::Mapping::Every => Mapping::Every,
    }
}

fn reference(reference: wit::Reference) -> Reference {
    Reference { name: reference.name, namespace: reference.namespace }
}

fn write(write: wit::Write) -> Write {
    let all = [
        (wit::Verbs::CREATE, Verb::Create),
        (wit::Verbs::APPLY, Verb::Apply),
        (wit::Verbs::APPLY_STATUS, Verb::ApplyStatus),
        (wit::Verbs::PATCH, Verb::Patch),
        (wit::Verbs::DELETE, Verb::Delete),
    ];
    let verbs: BTreeSet<Verb> = all
        .into_iter()
        .filter(|(flag, _)| write.verbs.contains(*flag))
        .map(|(_, verb)| verb)
        .collect();
    Write { kind: write.kind.into(), verbs }
}

fn index(index: wit::Index) -> Index {
    Index { name: index.name, kind: index.kind.into(), path: index.path }
}

fn http_host(host: &wit::HttpHost) -> String {
    format!("{} {}://{}:{}", host.methods.join(","), host.scheme, host.host, host.port)
}
