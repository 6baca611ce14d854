//! Bytes come after the object that names them, and only they.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::account::GUEST_RULES;
use e2e::component::Component;
use e2e::controller::Controller;
use e2e::{Test, test};
use nagaya::model::crd::{RevisionPhase, revision_name};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const LIMIT: Duration = Duration::from_secs(20);

/// A controller that names `component` and waits for its bytes; the revision's name.
async fn waiting(test: &Test, component: &Component) -> Result<(Controller, String)> {
    let spec = json!({"module": {"digest": component.digest}});
    let hostile = test.guest("hostile", GUEST_RULES, spec).await?;
    hostile.observed(1).await?;
    Ok((hostile, revision_name("hostile", &component.digest, None)))
}

#[test]
fn a_revision_without_its_bytes_waits_and_says_how_to_push() -> Result<()> {
    test(async |test| {
        let component = Component::load("hostile")?;
        let (hostile, revision) = waiting(test, &component).await?;
        hostile.stands(&revision, RevisionPhase::Pending).await?;
        hostile
            .until(LIMIT, "a condition that says how to push", |seen| {
                let conditions = seen.status.iter().flat_map(|status| &status.conditions);
                conditions.into_iter().any(|condition| condition.message.contains("nagaya push"))
            })
            .await?;
        let (status, answer) = hostile.upload(&component).await?;
        assert_eq!(status, 201, "{answer}");
        hostile.active(&revision).await?;
        let (status, answer) = hostile.upload(&component).await?;
        assert_eq!(status, 200, "stored already: {answer}");
        Ok(())
    })
}

#[test]
fn bytes_that_nobody_names_are_refused() -> Result<()> {
    test(async |test| {
        let component = Component::load("hostile")?;
        let (hostile, _) = waiting(test, &component).await?;
        let stranger = component.marked("stranger")?;
        let (status, answer) = hostile.upload(&stranger).await?;
        assert_eq!(status, 404, "{answer}");
        assert!(answer.contains("spec.module.digest"), "{answer}");
        Ok(())
    })
}

#[test]
fn bytes_of_another_digest_are_refused() -> Result<()> {
    test(async |test| {
        let component = Component::load("hostile")?;
        let (hostile, revision) = waiting(test, &component).await?;
        let forged = Component { bytes: component.marked("forged")?.bytes, ..component.clone() };
        let (status, answer) = hostile.upload(&forged).await?;
        assert_eq!(status, 422, "{answer}");
        hostile.stands(&revision, RevisionPhase::Pending).await?;
        let (status, answer) = hostile.upload(&component).await?;
        assert_eq!(status, 201, "{answer}");
        hostile.active(&revision).await?;
        Ok(())
    })
}

#[test]
fn an_upload_that_breaks_off_leaves_nothing_behind() -> Result<()> {
    test(async |test| {
        let component = Component::load("hostile")?;
        let (hostile, revision) = waiting(test, &component).await?;
        let address = test.host.api().trim_start_matches("http://").to_owned();
        let (digest, bytes) = (&component.digest, &component.bytes);
        let head = format!(
            "PUT /v1/modules/{digest} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {}\r\n\r\n",
            bytes.len()
        );
        let mut stream = TcpStream::connect(&address).await?;
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(&bytes[..bytes.len() / 2]).await?;
        stream.shutdown().await?;
        let mut answer = String::new();
        // Whether the host still answers half a request is its own affair.
        let _ = stream.read_to_string(&mut answer).await;
        ensure!(!answer.starts_with("HTTP/1.1 2"), "half an upload was answered {answer}");

        let (status, answer) = hostile.upload(&component).await?;
        assert_eq!(status, 201, "the whole is still wanted: {answer}");
        hostile.active(&revision).await?;
        Ok(())
    })
}

#[test]
fn what_is_no_component_is_refused_or_fails_with_a_reason() -> Result<()> {
    test(async |test| {
        let script = component_of(b"#!/bin/sh\necho no component\n");
        let (hostile, _) = waiting(test, &script).await?;
        let (status, answer) = hostile.upload(&script).await?;
        assert!((400..500).contains(&status) && answer.contains("not WebAssembly"), "{answer}");

        // A core module is WebAssembly, and still no component.
        let module = component_of(b"\0asm\x01\0\0\0");
        let revision = hostile.push(&module).await?;
        let failed =
            hostile.revision(&revision, "failed", |status| status.phase == RevisionPhase::Failed);
        let message = failed.await?.status.and_then(|status| status.message);
        let message = message.context("no reason")?;
        assert!(message.contains("component"), "{message}");
        Ok(())
    })
}

fn component_of(bytes: &[u8]) -> Component {
    let hash = ring::digest::digest(&ring::digest::SHA256, bytes);
    let digest = format!("sha256:{}", hex::encode(hash.as_ref()));
    Component { path: "none".into(), bytes: bytes.into(), digest }
}
