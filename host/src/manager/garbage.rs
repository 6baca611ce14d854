//! Removes components and native code that no WasmController and no WasmRevision names any more.
//!
//! Invariant: `what_nobody_names_goes_after_an_hour_and_what_is_named_stays`.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use crate::{
    model::digest::Digest,
    modules::{Modules, garbage::Garbage},
    sandbox::Sandbox,
    watch::{Cache, envelope},
};

/// How often is looked.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(600);

/// What the looks so far have found.
#[derive(Debug, Default)]
pub(super) struct Collector {
    modules: Garbage,
    code: Garbage,
}

type Failed = Box<dyn std::error::Error + Send + Sync>;

impl Collector {
    /// One look, for a thread that may wait for the disk. `needed` are hex digits of digests, as of now.
    pub(super) fn look(
        &mut self,
        (modules, sandbox): (&Modules, &Sandbox),
        needed: &HashSet<String>,
        now: Instant,
    ) -> Result<(), Failed> {
        let stored = modules.stored()?.iter().map(|digest| digest.hex().to_owned()).collect();
        for hex in self.modules.look(stored, |hex| needed.contains(hex), now) {
            let digest: Digest = format!("sha256:{hex}").parse()?;
            if modules.remove_unnamed(&digest)? {
                tracing::info!(%digest, "a module that nobody names any more is removed");
            }
        }
        let is_needed = |name: &str| {
            let hex = name.split_once('-').map(|(hex, _)| hex);
            hex.is_some_and(|hex| needed.contains(hex)) && sandbox.loads_code(name)
        };
        for name in self.code.look(sandbox.stored_code()?, is_needed, now) {
            sandbox.remove_code(&name)?;
            tracing::info!(name, "native code that nobody needs any more is removed");
        }
        Ok(())
    }
}

/// The hex digits of every digest that an object names, also one that this host cannot read as a whole.
pub(super) fn named(controllers: &Cache, revisions: &Cache) -> HashSet<String> {
    let of = |cache: &Cache, path: &'static str| {
        let entries = cache.entries().into_iter();
        entries.flat_map(|entry| envelope::field(entry.body(), path)).collect::<Vec<_>>()
    };
    let texts =
        of(controllers, "spec.module.digest").into_iter().chain(of(revisions, "spec.digest"));
    let digests = texts.filter_map(|text| text.parse::<Digest>().ok());
    digests.map(|digest| digest.hex().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use std::{fs, time::SystemTime};

    use super::*;
    use crate::{modules::garbage::GRACE, sandbox::SandboxConfig};

    #[tokio::test]
    #[expect(clippy::disallowed_methods, reason = "a start to count from")]
    async fn what_nobody_names_goes_after_an_hour_and_what_is_named_stays() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let modules = Modules::open(&at("modules")).unwrap();
        modules.synced();
        let config = SandboxConfig { slots: 2, ..SandboxConfig::new(at("code")) };
        let sandbox = Sandbox::start(config, tokio::runtime::Handle::current()).unwrap();
        let [kept, gone] = [b"kept", b"gone"].map(|text| {
            let digest = Digest::of(text);
            let mut upload = modules.upload(digest.clone(), 9).unwrap();
            upload.write(text).unwrap();
            upload.finish().unwrap();
            let path = at("modules").join(digest.hex()).with_extension("wasm");
            let file = fs::File::options().write(true).open(path).unwrap();
            file.set_modified(SystemTime::now() - GRACE * 2).unwrap();
            for end in ["cwasm", "hmac"] {
                for name in [sandbox.code_name(&digest), format!("{}-0", digest.hex())] {
                    fs::write(at("code").join(name).with_extension(end), b"").unwrap();
                }
            }
            digest
        });
        let needed = HashSet::from([kept.hex().to_owned()]);
        let (mut collector, start) = (Collector::default(), Instant::now());
        let mut look = |now| collector.look((&modules, &sandbox), &needed, now).unwrap();
        let count = || (modules.stored().unwrap().len(), sandbox.stored_code().unwrap().len());
        look(start);
        look(start + GRACE / 2);
        assert_eq!(count(), (2, 4));
        look(start + GRACE);
        assert_eq!(modules.stored().unwrap(), [kept.clone()]);
        assert_eq!(sandbox.stored_code().unwrap(), [sandbox.code_name(&kept)], "no older engine's");
        assert!(!modules.has(&gone) && at("code").join("key").is_file());
    }
}
