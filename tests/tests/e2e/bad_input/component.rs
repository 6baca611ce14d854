//! Files that cannot be what a controller runs.

use std::path::Path;

use anyhow::{Context, Result};
use e2e::bombs::{component, section};
use e2e::component::Component;
use e2e::test;

use super::{complaint, goes_on, says, well};

/// A component around one core module of these sections.
fn around(sections: &[Vec<u8>]) -> Component {
    let module = [b"\0asm\x01\0\0\0".as_slice(), &sections.concat()].concat();
    Component::from_bytes(&component(&[module]))
}

/// The same component as a later SDK would build it.
fn newer(old: &Component) -> Component {
    let (old_version, new_version) = (b"@0.2.0", b"@0.3.0");
    let mut bytes = old.bytes.to_vec();
    let name = b"nagaya:controller/";
    for at in 0..bytes.len() {
        if !bytes[at..].starts_with(name) {
            continue;
        }
        let end = at + name.len() + 24;
        let end = end.min(bytes.len());
        let found = bytes[at..end].windows(6).position(|window| window == old_version);
        if let Some(found) = found {
            bytes[at + found..][..6].copy_from_slice(new_version);
        }
    }
    Component::from_bytes(&bytes)
}

#[test]
fn a_component_that_cannot_run_is_refused_with_its_remedy() -> Result<()> {
    test(async |test| {
        let (hostile, revision) = well(test).await?;
        let good = Component::load("hostile")?;
        let empty = Component::from_bytes(&component(&[]));
        let gc = around(&[section(1, &[1, 0x5f, 0])]);
        let memory64 = around(&[section(5, &[1, 4, 1])]);
        let threads = around(&[section(5, &[1, 3, 1, 1])]);
        let plain = "build without it";
        for (number, (bad, words)) in [
            (empty, ["does not export nagaya:controller/guest@0.2.0", "nagaya-sdk"]),
            (newer(&good), ["built for version 0.3.0", "this host has 0.2.0"]),
            (threads, ["threads", plain]),
            (memory64, ["memory64", plain]),
            (gc, ["gc", plain]),
        ]
        .into_iter()
        .enumerate()
        {
            let refused = hostile.push(&bad).await?;
            let message = hostile.refused(&refused, "CompileFailed").await?;
            println!("{message}");
            says(&message, &words);
            goes_on(test, &revision, &format!("site-{number}")).await?;
        }
        Ok(())
    })
}

#[test]
fn the_command_line_refuses_a_file_that_cannot_be_right() -> Result<()> {
    test(async |test| {
        let (hostile, revision) = well(test).await?;
        let before = hostile.get().await?.spec.module.digest;
        let folder = tempfile::tempdir()?;
        let mut large = component(&[]);
        large.resize(33 << 20, 0);
        for (name, bytes, words) in [
            ("script", b"#!/bin/sh\n".to_vec(), ["not WebAssembly", "nagaya build"]),
            ("module", b"\0asm\x01\0\0\0".to_vec(), ["core module", "wasm-tools component new"]),
            ("nothing", vec![], ["empty", "cannot push"]),
            ("large", large, ["34603008 bytes", "strip"]),
        ] {
            let file = folder.path().join(name);
            std::fs::write(&file, bytes)?;
            let said = push(test, &file).await?;
            says(&said, &words);
            says(&said, &[name]);
        }
        let said = push(test, &folder.path().join("missing")).await?;
        says(&said, &["cannot read", "missing", "No such file"]);
        assert_eq!(hostile.get().await?.spec.module.digest, before, "nothing was written");
        goes_on(test, &revision, "web").await
    })
}

async fn push(test: &e2e::Test, file: &Path) -> Result<String> {
    let file = file.to_str().context("a strange folder")?;
    complaint(test, &["push", "hostile", file, "-n", &test.namespace]).await
}
