//! Components from a real OCI registry.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::account::GUEST_RULES;
use e2e::component::Component;
use e2e::controller::Controller;
use e2e::host::{self, Host};
use e2e::registry::Registry;
use e2e::wait::within;
use e2e::{Test, test};
use k8s_openapi::ByteString;
use nagaya::model::crd::{ModuleStatus, WasmController, revision_name};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);
/// More than a failure's second pause.
const TRIED_AGAIN: Duration = Duration::from_secs(60);

pub(super) fn writing(value: &str) -> Value {
    json!({"reconcile": "write", "value": value})
}

/// The host begins anew and knows the registry, and none other if `only`.
pub(super) async fn know(test: &mut Test, registry: &Registry, only: bool) -> Result<()> {
    let file = test.folder().join("registries.yaml");
    let known = json!({
        "registries": [{"name": registry.address(), "plainHttp": true}],
        "onlyListed": only,
    });
    fs::write(&file, known.to_string())?;
    let mut options = test.options();
    options.arguments = vec!["--registries".into(), file.display().to_string()];
    test.host.stop().await?;
    test.start_host_as(options).await
}

/// A controller whose spec names this image.
pub(super) async fn named(test: &Test, image: &str, value: &str) -> Result<Controller> {
    let spec = json!({"module": {"image": image}, "config": writing(value)});
    test.guest("hostile", GUEST_RULES, spec).await
}

/// Writes a component to the registry as a person does, under a controller that nobody looks at.
pub(super) async fn write(
    test: &Test,
    component: &Component,
    to: &str,
    login: Option<&str>,
) -> Result<()> {
    let folder = test.folder().join("docker");
    fs::create_dir_all(&folder)?;
    let registry = to.split('/').next().unwrap_or_default();
    let auth = login.map(|login| serde_json::to_value(ByteString(login.into()))).transpose()?;
    let auths = auth.map_or(json!({}), |auth| json!({registry: {"auth": auth}}));
    fs::write(folder.join("config.json"), json!({"auths": auths}).to_string())?;
    let file = test.folder().join("component.wasm");
    fs::write(&file, &component.bytes)?;
    if test.controller("writer")?.get().await.is_err() {
        test.bare_controller("writer", "nobody", json!({"suspend": true})).await?;
    }
    let shown = file.display().to_string();
    let arguments =
        ["push", "writer", &shown, "--to", to, "-n", &test.namespace, "--timeout", "30s"];
    let output =
        test.cli().command(&arguments).await?.env("DOCKER_CONFIG", folder).output().await?;
    let said = String::from_utf8_lossy(&output.stderr);
    // The account of the writer does not exist: it is told, once the artifact is written and named.
    ensure!(said.contains("ServiceAccount"), "{said}");
    Ok(())
}

/// A registry with the component `hostile` under `path`, which the host knows; and the component, and its image.
pub(super) async fn serving(
    test: &mut Test,
    path: &str,
    (login, only): (&str, bool),
) -> Result<(Registry, Component, String)> {
    let registry = Registry::start(test.folder(), None, login)?;
    know(test, &registry, only).await?;
    let component = Component::load("hostile")?;
    let image = format!("{}/{path}", registry.address());
    write(test, &component, &image, Some(login).filter(|login| !login.is_empty())).await?;
    Ok((registry, component, image))
}

async fn module(controller: &Controller, digest: &str) -> Result<ModuleStatus> {
    let has = |seen: &WasmController| {
        let module = seen.status.as_ref().and_then(|status| status.module.as_ref());
        module.is_some_and(|module| module.digest == digest)
    };
    let seen = controller.until(LIMIT, "its image is resolved", has).await?;
    seen.status.and_then(|status| status.module).context("no module")
}

/// Waits for a condition that says all of this; its message.
pub(super) async fn told(controller: &Controller, parts: &[&str]) -> Result<String> {
    let find = |seen: &WasmController| {
        let conditions = seen.status.iter().flat_map(|status| &status.conditions);
        let mut said = conditions.map(|it| format!("{}: {}", it.reason, it.message));
        said.find(|said| parts.iter().all(|part| said.contains(part)))
    };
    let seen = controller.until(LIMIT, &format!("{parts:?}"), |seen| find(seen).is_some()).await?;
    find(&seen).context("no such condition")
}

/// What is stored of modules and code is gone.
fn forget(host: &host::Options) -> Result<()> {
    fs::remove_dir_all(host.folder.join("data/modules")).context("removing the modules")
}

#[test]
fn a_tag_is_resolved_once_and_pinned() -> Result<()> {
    test(async |test| {
        let (registry, first, tag) = serving(test, "team/web:stable", ("", true)).await?;

        let hostile = named(test, &tag, "pulled").await?;
        let revision = revision_name("hostile", &first.digest, Some(&writing("pulled")));
        hostile.active(&revision).await?;
        test.website("web", "Web").await?;
        test.written("web", "pulled").await?;
        let pinned = module(&hostile, &first.digest).await?;
        ensure!(pinned.image == tag && pinned.pinned.contains("/team/web@sha256:"), "{pinned:?}");
        let revisions = hostile.revisions().await?;
        let made = revisions.iter().find(|one| one.spec.digest == first.digest);
        let image = made.context("no revision")?.spec.image.clone();
        ensure!(image.as_ref() == Some(&pinned.pinned), "{image:?}");

        // The tag moves, and nothing else does: not after a restart, nor with an empty store.
        write(test, &first.marked("moved")?, &tag, None).await?;
        test.host.stop().await?;
        forget(&test.options())?;
        test.start_host().await?;
        let hostile = test.controller("hostile")?;
        hostile.active(&revision).await?;
        test.website("later", "Later").await?;
        test.written("later", "pulled").await?;
        ensure!(module(&hostile, &first.digest).await? == pinned, "it was resolved again");

        let both = json!({"spec": {"module": {"digest": first.digest}}});
        let refused = hostile.patch(&both).await.err().context("both were let in")?;
        ensure!(format!("{refused:#}").contains("and not by both"), "{refused:#}");
        // Another text is another question.
        let again = format!("{}/team/web:missing", registry.address());
        hostile.patch(&json!({"spec": {"module": {"image": again}}})).await?;
        let said = told(&hostile, &["ImageRefused", "team/web:missing"]).await?;
        println!("{said}");
        test.website("still", "Still").await?;
        test.written("still", "pulled").await?;
        let elsewhere = "elsewhere.example.com/web:1";
        hostile.patch(&json!({"spec": {"module": {"image": elsewhere}}})).await?;
        println!("{}", told(&hostile, &["RegistryNotAllowed", "--registries"]).await?);
        hostile.patch(&json!({"spec": {"module": {"image": "web:1"}}})).await?;
        println!("{}", told(&hostile, &["BadImage", "begins with no registry"]).await?);
        Ok(())
    })
}

#[test]
fn a_private_registry_is_read_with_the_accounts_pull_secret() -> Result<()> {
    test(async |test| {
        let (registry, component, image) =
            serving(test, "team/web:1", ("jane:s3cret", false)).await?;

        let hostile = named(test, &image, "private").await?;
        println!("{}", told(&hostile, &["ImageUnauthorized", "imagePullSecrets"]).await?);
        // Without the third field, which other tools insist on.
        let login = json!({"username": "jane", "password": "s3cret"});
        let config = json!({"auths": {registry.address(): login}}).to_string();
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/dockerconfigjson",
            "metadata": {"name": "login", "namespace": test.namespace},
            "stringData": {".dockerconfigjson": config},
        });
        let account = json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": "hostile", "namespace": test.namespace},
            "imagePullSecrets": [{"name": "login"}],
        });
        test.apply(&[secret, account]).await?;
        let said = within(TRIED_AGAIN, "the missing right", async || {
            told(&hostile, &["Forbidden", "secrets", "kind: Role"]).await
        })
        .await?;
        ensure!(!said.contains("s3cret"), "{said}");
        super::authority::do_as_told(test, &said).await?;
        let revision = revision_name("hostile", &component.digest, Some(&writing("private")));
        within(2 * TRIED_AGAIN, "it is live", async || hostile.active(&revision).await.map(drop))
            .await?;
        test.website("web", "Web").await?;
        test.written("web", "private").await?;
        if let Some(log) = test.audit() {
            let reads = log.events()?;
            let mut reads = reads.iter().filter(|event| event.is_about("secrets", &test.namespace));
            ensure!(
                reads.all(|event| event.verb != "get" || event.actor() == test.username("hostile")),
                "a pull secret was read by somebody else"
            );
        }
        Ok(())
    })
}

#[test]
fn a_tampered_layer_is_refused() -> Result<()> {
    test(async |test| {
        let (registry, component, image) = serving(test, "team/web:1", ("", false)).await?;
        fs::write(&registry.tamper, "")?;
        let hostile = named(test, &image, "genuine").await?;
        let said = told(&hostile, &["ImageTampered", "not what was asked for"]).await?;
        println!("{said}");
        ensure!(hostile.get().await?.status.unwrap_or_default().active.is_none(), "it is live");
        fs::remove_file(&registry.tamper)?;
        let revision = revision_name("hostile", &component.digest, Some(&writing("genuine")));
        within(TRIED_AGAIN, "it is live", async || hostile.active(&revision).await.map(drop)).await
    })
}

#[test]
fn a_registry_that_is_down_stops_nothing_that_ran() -> Result<()> {
    test(async |test| {
        let (registry, component, image) = serving(test, "team/web:1", ("", false)).await?;
        let hostile = named(test, &image, "on").await?;
        let revision = revision_name("hostile", &component.digest, Some(&writing("on")));
        hostile.active(&revision).await?;

        // A standby that shares nothing has pulled it, too.
        let folder = test.folder().join("apart");
        fs::create_dir_all(&folder)?;
        let standby = Host::start(&host::Options { folder, ..test.options() }).await?;
        standby
            .logged(LIMIT, "the standby has pulled it", |line| {
                line.message() == "a revision is staged"
            })
            .await?;
        let address = registry.address().to_owned();
        registry.stop()?;
        test.host.stop().await?;
        let apart = test.switch_to(standby);
        test.website("web", "Web").await?;
        test.written("web", "on").await?;
        drop(apart);
        test.host.stop().await?;
        test.start_host().await?;
        test.website("kept", "Kept").await?;
        test.written("kept", "on").await?;

        // With nothing stored it waits for the registry, and says so.
        test.host.stop().await?;
        forget(&test.options())?;
        test.start_host().await?;
        let hostile = test.controller("hostile")?;
        println!("{}", told(&hostile, &["RegistryUnreachable", "tries again"]).await?);
        let registry = Registry::start(test.folder(), Some(&address), "")?;
        write(test, &component, &image, None).await?;
        within(TRIED_AGAIN, "it works again", async || {
            test.website("back", "Back").await?;
            test.written("back", "on").await
        })
        .await?;
        drop(registry);
        Ok(())
    })
}
