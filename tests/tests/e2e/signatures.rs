//! Components that the platform takes only if somebody whom it trusts has signed them.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::account::GUEST_RULES;
use e2e::component::Component;
use e2e::registry::Registry;
use e2e::signing::{Form, Signer};
use e2e::wait::within;
use e2e::{Test, test};
use nagaya::model::crd::revision_name;
use serde_json::json;

use super::images::{know, named, serving, told, write, writing};

const LIMIT: Duration = Duration::from_secs(60);

/// The host begins anew and takes only what `signer` has signed.
async fn demand(test: &mut Test, signer: &Signer, mode: &str) -> Result<()> {
    let file = test.folder().join("policy.yaml");
    let policy = json!({
        "signers": {"platform": signer.pem()},
        "rules": [
            {"namespaces": ["elsewhere-*"], "signedBy": []},
            {"namespaces": [test.namespace], "signedBy": ["platform"], "mode": mode},
        ],
    });
    fs::write(&file, policy.to_string())?;
    let mut options = test.options();
    options.arguments.retain(|argument| !argument.contains("policy"));
    options.arguments.extend(["--policy".into(), file.display().to_string()]);
    test.host.stop().await?;
    test.start_host_as(options).await
}

/// Signs the image in a way that counts for nothing.
async fn sign_badly([platform, stranger]: [&Signer; 2], image: &str, how: &str) -> Result<()> {
    let flip = |bytes: &mut Vec<u8>| {
        if let Some(byte) = bytes.iter_mut().rfind(|byte| **byte == b'c') {
            *byte = b'C';
        }
    };
    let zero = format!("sha256:{}", "0".repeat(64));
    match how {
        "by-a-stranger" => {
            stranger.sign(image, Form::Referrer).await?;
            stranger.sign(image, Form::Older).await
        }
        "changed" => platform.sign_as(image, (None, Form::Referrer), flip).await,
        "changed-before" => platform.sign_as(image, (None, Form::Older), flip).await,
        _ => platform.sign_as(image, (Some(&zero), Form::Referrer), |_| ()).await,
    }
}

#[test]
fn what_is_not_signed_as_the_platform_demands_is_refused() -> Result<()> {
    test(async |test| {
        let (registry, component, image) = serving(test, "team/web:1", ("", false)).await?;
        let [platform, stranger] = [Signer::new()?, Signer::new()?];
        demand(test, &platform, "Enforce").await?;
        let hostile = named(test, &image, "signed").await?;
        let parts = ["SignatureRefused", "it is not signed", "platform", "cosign sign"];
        println!("{}", told(&hostile, &parts).await?);
        for (name, words) in [
            ("by-a-stranger", "by other keys, or they were changed"),
            ("changed", "by other keys, or they were changed"),
            ("changed-before", "by other keys, or they were changed"),
            ("of-another", "the signature by platform that is put beside it is of sha256:00"),
        ] {
            let (image, it) =
                (format!("{}/team/{name}:1", registry.address()), component.marked(name)?);
            write(test, &it, &image, None).await?;
            sign_badly([&platform, &stranger], &image, name).await?;
            let spec = json!({"module": {"image": image}, "config": writing(name)});
            let guest = test.guest(name, GUEST_RULES, spec).await?;
            println!("{name}: {}", told(&guest, &["SignatureRefused", words]).await?);
            ensure!(guest.get().await?.status.unwrap_or_default().active.is_none(), "{name} lives");
            let hex = it.digest.strip_prefix("sha256:").unwrap_or_default();
            let file = test.folder().join(format!("data/modules/{hex}.wasm"));
            ensure!(!file.exists(), "{name} was pulled");
        }
        // It is asked for again, and found.
        stranger.sign(&image, Form::Referrer).await?;
        platform.sign(&image, Form::Referrer).await?;
        let revision = revision_name("hostile", &component.digest, Some(&writing("signed")));
        within(2 * LIMIT, "it is live", async || hostile.active(&revision).await.map(drop)).await?;
        test.website("web", "Web").await?;
        test.written("web", "signed").await?;
        // The older form is a signature, too.
        let (image, older) =
            (format!("{}/team/web:2", registry.address()), component.marked("older")?);
        write(test, &older, &image, None).await?;
        platform.sign(&image, Form::Older).await?;
        hostile.patch(&json!({"spec": {"module": {"image": image}}})).await?;
        let revision = revision_name("hostile", &older.digest, Some(&writing("signed")));
        let staged = |line: &e2e::log::Line| {
            line.message() == "a revision is staged" && line.text("revision") == Some(&revision)
        };
        test.host.logged(LIMIT, "it is staged", staged).await?;
        // Bytes alone carry no signature.
        let bytes =
            json!({"spec": {"module": {"image": null, "digest": component.marked("u")?.digest}}});
        hostile.patch(&bytes).await?;
        println!("{}", told(&hostile, &["SignatureRefused", "was uploaded", "--to"]).await?);
        test.website("later", "Later").await?;
        test.written("later", "signed").await
    })
}

#[test]
fn what_was_signed_runs_without_its_registry() -> Result<()> {
    test(async |test| {
        let registry = Registry::without_referrers(test.folder(), None)?;
        know(test, &registry, false).await?;
        let address = registry.address().to_owned();
        let (component, image) = (Component::load("hostile")?, format!("{address}/team/web:1"));
        write(test, &component, &image, None).await?;
        let platform = Signer::new()?;
        platform.sign(&image, Form::Tag).await?;
        demand(test, &platform, "Enforce").await?;
        let hostile = named(test, &image, "on").await?;
        let revision = revision_name("hostile", &component.digest, Some(&writing("on")));
        hostile.active(&revision).await?;

        registry.stop()?;
        test.host.stop().await?;
        test.start_host().await?;
        test.website("kept", "Kept").await?;
        test.written("kept", "on").await?;

        // What is kept is checked by today's policy: another key lets nothing in that it has not signed.
        let registry = Registry::without_referrers(test.folder(), Some(&address))?;
        write(test, &component, &image, None).await?;
        platform.sign(&image, Form::Tag).await?;
        let next = Signer::new()?;
        demand(test, &next, "Enforce").await?;
        let hostile = test.controller("hostile")?;
        println!("{}", told(&hostile, &["SignatureRefused", "by other keys"]).await?);
        // A platform that only wants to know is told by the log.
        demand(test, &next, "Warn").await?;
        test.website("warned", "Warned").await?;
        test.written("warned", "on").await?;
        let warned = |line: &e2e::log::Line| {
            line.level() == "WARN" && line.text("reason") == Some("SignatureRefused")
        };
        test.host.logged(LIMIT, "a warning", warned).await?;
        // Signed by the next key, too, it needs no registry again.
        next.sign(&image, Form::Tag).await?;
        demand(test, &next, "Enforce").await?;
        test.website("next", "Next").await?;
        test.written("next", "on").await?;
        registry.stop()?;
        demand(test, &platform, "Enforce").await?;
        test.website("both", "Both").await?;
        test.written("both", "on").await
    })
}
