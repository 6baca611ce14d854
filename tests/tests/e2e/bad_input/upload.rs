//! Bytes that do not arrive as they should.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use e2e::component::Component;
use e2e::controller::{SEEN_WITHIN, condition};
use e2e::wait::within;
use e2e::{Test, test};
use nagaya::model::crd::{RevisionPhase, WasmRevisionStatus};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{LIMIT, goes_on, says, well};

/// Where the host keeps components.
fn store(test: &Test) -> PathBuf {
    test.options().folder.join("data/modules")
}

#[test]
fn an_upload_cut_off_half_way_leaves_the_revision_waiting() -> Result<()> {
    test(async |test| {
        let (hostile, revision) = well(test).await?;
        let next = Component::load("hostile")?.marked("next")?;
        hostile.patch(&json!({"spec": {"module": {"digest": next.digest}}})).await?;
        let waiting =
            nagaya::model::crd::revision_name("hostile", &next.digest, Some(&super::config()));
        hostile.stands(&waiting, RevisionPhase::Pending).await?;

        let address = test.host.api().trim_start_matches("http://").to_owned();
        let (digest, length) = (&next.digest, next.bytes.len());
        let head = format!(
            "PUT /v1/modules/{digest} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {length}\r\n\r\n"
        );
        let mut stream = TcpStream::connect(&address).await?;
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(&next.bytes[..length / 2]).await?;
        stream.shutdown().await?;
        let mut answer = String::new();
        // Whether the host still answers half a request is its own affair.
        let _ = stream.read_to_string(&mut answer).await;
        ensure!(!answer.starts_with("HTTP/1.1 2"), "half an upload was answered {answer}");
        within(LIMIT, "no half of a file", async || {
            let files = std::fs::read_dir(store(test))?.collect::<Result<Vec<_>, _>>()?;
            let parts =
                files.iter().filter(|file| file.path().extension().is_some_and(|e| e == "part"));
            ensure!(parts.count() == 0, "{files:?}");
            Ok(())
        })
        .await?;
        let said = |status: &WasmRevisionStatus| {
            status.phase == RevisionPhase::Pending && status.message.is_some()
        };
        let seen = hostile.revision(&waiting, "waits and says for what", said).await?;
        let message = seen.status.and_then(|status| status.message).context("no message")?;
        says(&message, &[&next.digest, "nagaya push hostile FILE"]);
        goes_on(test, &revision, "web").await?;

        let (status, answer) = hostile.upload(&next).await?;
        assert_eq!(status, 201, "{answer}");
        hostile.candidate(&waiting).await?;
        Ok(())
    })
}

#[test]
fn an_upload_that_is_not_welcome_is_told_why() -> Result<()> {
    test(async |test| {
        let (hostile, revision) = well(test).await?;
        let good = Component::load("hostile")?;
        let (next, other) = (good.marked("next")?, good.marked("other")?);
        hostile.patch(&json!({"spec": {"module": {"digest": next.digest}}})).await?;
        let waiting =
            nagaya::model::crd::revision_name("hostile", &next.digest, Some(&super::config()));
        hostile.stands(&waiting, RevisionPhase::Pending).await?;

        let forged = Component { bytes: other.bytes.clone(), ..next.clone() };
        let (status, answer) = hostile.upload(&forged).await?;
        assert_eq!(status, 422, "{answer}");
        says(&answer, &[&other.digest, &next.digest, "send those that spec.module.digest names"]);

        let (status, answer) = hostile.upload(&other).await?;
        assert_eq!(status, 404, "{answer}");
        says(&answer, &[&other.digest, "set spec.module.digest first"]);

        let nonsense = Component { digest: "sha256:nonsense".to_owned(), ..next.clone() };
        let (status, answer) = hostile.upload(&nonsense).await?;
        assert_eq!(status, 400, "{answer}");
        says(&answer, &["sha256:nonsense", "64 lower-case hexadecimal digits"]);
        goes_on(test, &revision, "web").await
    })
}

#[test]
fn a_lost_module_store_is_said_and_made_again() -> Result<()> {
    test(async |test| {
        let (hostile, revision) = well(test).await?;
        let good = Component::load("hostile")?;
        std::fs::remove_dir_all(test.options().folder.join("data"))?;
        // By itself the host looks once a minute; a change makes it look now.
        hostile.patch(&json!({"spec": {"limits": {"concurrency": 3}}})).await?;
        let lost = hostile.condition("ModuleStored", "False").await?;
        says(&lost.message, &["after a restart", "nagaya push"]);
        goes_on(test, &revision, "lost").await?;
        let (status, answer) = hostile.upload(&good).await?;
        assert_eq!(status, 201, "{answer}");
        let is_stored =
            |seen: &nagaya::model::crd::WasmController| condition(seen, "ModuleStored").is_none();
        hostile.until(SEEN_WITHIN, "it is stored", is_stored).await?;
        // Code is kept again too.
        let next = good.marked("next")?;
        let second = hostile.push(&next).await?;
        hostile.candidate(&second).await?;

        test.host.stop().await?;
        std::fs::remove_dir_all(test.options().folder.join("data"))?;
        test.start_host().await?;
        let hostile = test.controller("hostile")?;
        let not_ready = hostile.condition("Ready", "False").await?;
        let message = within(LIMIT, "it says how to push", async || {
            let seen = hostile.get().await?;
            let ready = condition(&seen, "Ready").context("no condition")?;
            ensure!(ready.message.contains("nagaya push"), "{}", ready.message);
            Ok(ready.message.clone())
        });
        let message = message.await.with_context(|| not_ready.message.clone())?;
        says(&message, &[&good.digest]);
        for component in [&good, &next] {
            let (status, answer) = hostile.upload(component).await?;
            assert_eq!(status, 201, "{answer}");
        }
        hostile.condition("Ready", "True").await?;
        goes_on(test, &revision, "back").await
    })
}
