//! A host whose disk is full.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use e2e::component::Component;
use e2e::{host, test};
use nagaya::model::crd::RevisionPhase;

use super::{complaint, config, goes_on, says};

/// Bytes of the host's disk.
const DISK: usize = 16 << 20;

/// A command that becomes another one with a small disk of its own in `folder`; none where that is not allowed.
///
/// Root may mount in a namespace of its own, and others in most places too, within a user namespace.
fn with_small_disk(folder: &Path) -> Option<Vec<String>> {
    let folder = folder.to_string_lossy();
    let script = format!("mount -t tmpfs -o size={DISK} disk '{folder}' && exec \"$@\"");
    let allowed = [vec!["unshare", "-m"], vec!["unshare", "-rm"]].into_iter().find(|unshare| {
        let mut command = Command::new(unshare[0]);
        let done = command.args(&unshare[1..]).args(["sh", "-c", &script, "sh", "true"]).output();
        done.is_ok_and(|output| output.status.success())
    })?;
    let words = allowed.into_iter().chain(["sh", "-c", &script, "sh"]);
    Some(words.map(str::to_owned).collect())
}

#[test]
fn f17_a_full_disk_refuses_uploads_and_stops_nothing() -> Result<()> {
    test(async |test| {
        let folder = test.options().folder.join("data");
        std::fs::create_dir_all(&folder)?;
        let Some(wrapper) = with_small_disk(&folder) else {
            eprintln!("not looked at: a full disk, because this machine lets nobody mount one");
            return Ok(());
        };
        test.expect_error("an upload cannot be stored");
        test.host.stop().await?;
        test.start_host_as(host::Options { wrapper, ..test.options() }).await?;
        let good = Component::load("hostile")?;
        let (hostile, revision) = test.hostile(serde_json::json!({}), &config()).await?;

        // The way into the host's own view of the file system.
        let disk: PathBuf = format!("/proc/{}/root{}", test.host.id(), folder.display()).into();
        let filler = disk.join("filler");
        // The last write of a disk that becomes full is a short one.
        let _ = std::fs::write(&filler, vec![0; DISK]);
        let next = good.marked("next")?;
        let file = test.options().folder.join("next.wasm");
        std::fs::write(&file, &next.bytes)?;
        let file = file.to_str().context("a strange folder")?;
        let said = complaint(test, &["push", "hostile", file, "-n", &test.namespace]).await?;
        says(&said, &["disk is full or read-only", "must make room, then push again"]);
        let (status, answer) = hostile.upload(&next).await?;
        assert_eq!(status, 507, "{answer}");
        says(&answer, &["module store", "must see to its disk"]);
        let waiting = nagaya::model::crd::revision_name("hostile", &next.digest, Some(&config()));
        hostile.stands(&waiting, RevisionPhase::Pending).await?;
        let parts = std::fs::read_dir(disk.join("modules"))?.filter_map(Result::ok);
        let parts: Vec<_> = parts
            .map(|file| file.path())
            .filter(|path| path.extension().is_some_and(|e| e == "part"))
            .collect();
        assert_eq!(parts, Vec::<PathBuf>::new(), "no half of a file");
        goes_on(test, &revision, "full").await?;

        std::fs::remove_file(&filler)?;
        let (status, answer) = hostile.upload(&next).await?;
        assert_eq!(status, 201, "without a restart: {answer}");
        hostile.candidate(&waiting).await?;
        goes_on(test, &revision, "room").await
    })
}
