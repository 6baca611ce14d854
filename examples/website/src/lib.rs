//! A Website becomes a `ConfigMap` with its page, a Deployment that serves it and a Service.
//!
//! The crates `website-v1`, `website-v2` and `website-hasty` are components of this one, with different designs.

use std::{collections::BTreeMap, marker::PhantomData};

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentSpec},
        core::v1::{
            ConfigMap, ConfigMapVolumeSource, Container, ContainerPort, PodSpec, PodTemplateSpec,
            Service, ServicePort, ServiceSpec, Volume, VolumeMount,
        },
    },
    apimachinery::pkg::{
        apis::meta::v1::{Condition, LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};
use kube::CustomResource;
use nagaya_sdk::{
    Action, Config, Context, Error, Manifest, Predicate, Reconciler, Statement, child,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The label of everything that belongs to a Website; its value is the name.
const WEBSITE: &str = "examples.nagaya.dev/website";
const DESIGN: &str = "examples.nagaya.dev/design";

/// A page, served.
#[derive(CustomResource, JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "examples.nagaya.dev",
    version = "v1",
    kind = "Website",
    namespaced,
    status = "WebsiteStatus",
    derive = "Default",
    derive = "PartialEq",
    doc = "A page, served.",
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name":"URL","type":"string","jsonPath":".status.url"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct WebsiteSpec {
    /// The page's title.
    #[schemars(length(min = 1, max = 200))]
    pub title: String,
    /// The page's body in HTML.
    #[serde(default)]
    pub page: String,
    /// How many servers show it.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 100))]
    pub replicas: i32,
}

/// What became of a Website.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WebsiteStatus {
    /// The generation that this status speaks of.
    #[serde(default)]
    pub observed_generation: Option<i64>,
    /// Where the page is served inside the cluster.
    #[serde(default)]
    pub url: Option<String>,
    /// How many objects serve it.
    #[serde(default)]
    pub children: i32,
    /// Ready: the page and what serves it are applied.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

fn one() -> i32 {
    1
}

/// How a revision's pages look.
pub trait Design {
    /// The value of the label `examples.nagaya.dev/design` on every child; none: no such label.
    const LABEL: Option<&'static str>;
    /// What stands below the page.
    const FOOTER: &'static str;
    /// The server. Another one restarts every pod.
    const IMAGE: &'static str = "nginxinc/nginx-unprivileged:1.29-alpine";
}

/// The first revision's design.
pub struct Plain;

impl Design for Plain {
    const LABEL: Option<&'static str> = None;
    const FOOTER: &'static str = "";
}

/// The second revision's design.
pub struct Framed;

impl Design for Framed {
    const LABEL: Option<&'static str> = Some("v2");
    const FOOTER: &'static str = "<footer>Served from the row house.</footer>\n";
}

/// A design that brings another server with it, of which nobody has spoken.
pub struct Hasty;

impl Design for Hasty {
    const LABEL: Option<&'static str> = None;
    const FOOTER: &'static str = Framed::FOOTER;
    const IMAGE: &'static str = "nginxinc/nginx-unprivileged:1.29";
}

/// The reconciler.
pub struct Sites<D>(PhantomData<D>);

impl<D: Design> Reconciler for Sites<D> {
    type Primary = Website;

    fn manifest(_: &Config) -> Result<Manifest, Error> {
        Ok(Manifest::of::<Website>()
            .when(Predicate::generation_changed())
            .status()
            .owns::<ConfigMap>()
            .owns::<Deployment>()
            .owns::<Service>())
    }

    fn reconcile(site: &Website, cx: &Context) -> Result<Action, Error> {
        let metadata = metadata::<D>(site)?;
        cx.apply(&page::<D>(&site.spec, metadata.clone()))?;
        cx.apply(&deployment::<D>(&site.spec, metadata.clone()))?;
        cx.apply(&service(metadata))?;
        let before = site.status.clone().unwrap_or_default().conditions;
        let ready = Statement::yes("Ready", "Applied", "the page and what serves it are applied");
        let status = WebsiteStatus {
            observed_generation: site.metadata.generation,
            url: Some(url(site)),
            children: 3,
            conditions: vec![cx.condition(site, &before, ready)],
        };
        cx.apply_status(site, &status)?;
        Ok(Action::await_change())
    }
}

/// Name, labels and owner of every child.
fn metadata<D: Design>(site: &Website) -> Result<ObjectMeta, Error> {
    let name = site.metadata.name.clone().unwrap_or_default();
    if name.len() > 63 || name.contains('.') {
        return Err(Error::invalid(
            "the name must also do for a Service: at most 63 letters, no dot",
        ));
    }
    let mut metadata = child(site, name.as_str());
    let mut labels = BTreeMap::from([(WEBSITE.to_owned(), name)]);
    if let Some(design) = D::LABEL {
        labels.insert(DESIGN.to_owned(), design.to_owned());
    }
    metadata.labels = Some(labels);
    Ok(metadata)
}

fn page<D: Design>(spec: &WebsiteSpec, metadata: ObjectMeta) -> ConfigMap {
    let title = spec.title.replace('&', "&amp;").replace('<', "&lt;");
    let html = format!(
        "<!doctype html>\n<title>{title}</title>\n<h1>{title}</h1>\n{}\n{}",
        spec.page,
        D::FOOTER
    );
    let data = BTreeMap::from([("index.html".to_owned(), html)]);
    ConfigMap { metadata, data: Some(data), ..ConfigMap::default() }
}

/// The page is mounted, so a change of it needs no new pods.
fn deployment<D: Design>(spec: &WebsiteSpec, metadata: ObjectMeta) -> Deployment {
    let selector = selector(&metadata);
    let volume = Volume {
        name: "page".to_owned(),
        config_map: Some(ConfigMapVolumeSource {
            name: metadata.name.clone().unwrap_or_default(),
            ..ConfigMapVolumeSource::default()
        }),
        ..Volume::default()
    };
    let template = PodTemplateSpec {
        metadata: Some(ObjectMeta { labels: Some(selector.clone()), ..ObjectMeta::default() }),
        spec: Some(PodSpec {
            containers: vec![server(D::IMAGE)],
            volumes: Some(vec![volume]),
            ..PodSpec::default()
        }),
    };
    let spec = DeploymentSpec {
        replicas: Some(spec.replicas),
        selector: LabelSelector { match_labels: Some(selector), ..LabelSelector::default() },
        template,
        ..DeploymentSpec::default()
    };
    Deployment { metadata, spec: Some(spec), ..Deployment::default() }
}

fn server(image: &str) -> Container {
    Container {
        name: "server".to_owned(),
        image: Some(image.to_owned()),
        ports: Some(vec![ContainerPort {
            name: Some("http".to_owned()),
            container_port: 8080,
            ..ContainerPort::default()
        }]),
        volume_mounts: Some(vec![VolumeMount {
            name: "page".to_owned(),
            mount_path: "/usr/share/nginx/html".to_owned(),
            ..VolumeMount::default()
        }]),
        ..Container::default()
    }
}

fn service(metadata: ObjectMeta) -> Service {
    let port = ServicePort {
        name: Some("http".to_owned()),
        port: 80,
        target_port: Some(IntOrString::String("http".to_owned())),
        ..ServicePort::default()
    };
    let spec = ServiceSpec {
        selector: Some(selector(&metadata)),
        ports: Some(vec![port]),
        ..ServiceSpec::default()
    };
    Service { metadata, spec: Some(spec), ..Service::default() }
}

/// The label by which deployment and service find the pods.
fn selector(metadata: &ObjectMeta) -> BTreeMap<String, String> {
    BTreeMap::from([(WEBSITE.to_owned(), metadata.name.clone().unwrap_or_default())])
}

fn url(site: &Website) -> String {
    let metadata = &site.metadata;
    let name = metadata.name.as_deref().unwrap_or_default();
    format!("http://{name}.{}.svc", metadata.namespace.as_deref().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use kube::CustomResourceExt;
    use nagaya_sdk::testing::Cluster;

    use super::*;

    fn site(name: &str) -> Website {
        let spec = WebsiteSpec { title: "A <b>".into(), page: "<p>Hi.</p>".into(), replicas: 2 };
        let mut site = Website::new(name, spec);
        site.metadata.namespace = Some("demo".into());
        site
    }

    fn labels<K: nagaya_sdk::Object>(cluster: &Cluster) -> BTreeMap<String, String> {
        let child: K = cluster.get("demo", "web").unwrap().unwrap();
        child.meta().labels.clone().unwrap()
    }

    #[test]
    fn a_site_has_its_children_and_its_status() {
        let cluster = Cluster::new();
        let site = cluster.put(&site("web")).unwrap();
        assert_eq!(cluster.run::<Sites<Plain>>("demo", "web"), Ok(Action::AwaitChange));
        let page: ConfigMap = cluster.get("demo", "web").unwrap().unwrap();
        assert!(page.data.unwrap()["index.html"].contains("<h1>A &lt;b></h1>\n<p>Hi.</p>"));
        let owner = &page.metadata.owner_references.unwrap()[0];
        assert_eq!(
            (&owner.kind, Some(&owner.uid)),
            (&"Website".to_owned(), site.metadata.uid.as_ref())
        );
        let server: Deployment = cluster.get("demo", "web").unwrap().unwrap();
        assert_eq!(server.spec.unwrap().replicas, Some(2));
        assert!(cluster.get::<Service>("demo", "web").unwrap().is_some());
        let status = cluster.get::<Website>("demo", "web").unwrap().unwrap().status.unwrap();
        assert_eq!(status.url.as_deref(), Some("http://web.demo.svc"));
        assert_eq!((status.observed_generation, status.children), (Some(1), 3));
        assert_eq!(status.conditions[0].status, "True");
        let writes = cluster.writes();
        cluster.run::<Sites<Plain>>("demo", "web").unwrap();
        assert_eq!(cluster.writes(), writes, "a second run has nothing to do");
    }

    #[test]
    fn going_back_to_the_first_design_takes_the_label_away() {
        let cluster = Cluster::new();
        cluster.put(&site("web")).unwrap();
        cluster.run::<Sites<Plain>>("demo", "web").unwrap();
        let first: ConfigMap = cluster.get("demo", "web").unwrap().unwrap();
        cluster.run::<Sites<Framed>>("demo", "web").unwrap();
        for labels in [
            labels::<ConfigMap>(&cluster),
            labels::<Deployment>(&cluster),
            labels::<Service>(&cluster),
        ] {
            assert_eq!(labels[DESIGN], "v2");
        }
        let second: ConfigMap = cluster.get("demo", "web").unwrap().unwrap();
        assert!(second.data.unwrap()["index.html"].contains("<footer>"));
        cluster.run::<Sites<Plain>>("demo", "web").unwrap();
        let back: ConfigMap = cluster.get("demo", "web").unwrap().unwrap();
        assert_eq!((back.data, back.metadata.labels), (first.data, first.metadata.labels));
        assert!(!labels::<Deployment>(&cluster).contains_key(DESIGN));
    }

    #[test]
    fn a_name_that_no_service_can_have_is_invalid() {
        let cluster = Cluster::new();
        cluster.put(&site("web.example")).unwrap();
        let error = cluster.run::<Sites<Plain>>("demo", "web.example").unwrap_err();
        assert!(matches!(error, Error::Invalid(_)), "{error}");
    }

    #[test]
    fn the_committed_crd_is_the_generated_one() {
        let generated = serde_saphyr::to_string(&Website::crd()).unwrap();
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/crd.yaml");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(path, &generated).unwrap();
        }
        assert_eq!(
            std::fs::read_to_string(path).unwrap_or_default(),
            generated,
            "UPDATE=1 renews it"
        );
    }
}
