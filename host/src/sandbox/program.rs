//! From bytes to a [`Program`]: the screen, the cache of native code or the compile child, the linker.
//!
//! Invariants, held by `tests/sandbox.rs`: `loaded_code_needs_no_second_compilation`,
//! `changed_code_on_disk_is_compiled_again`, `an_import_that_is_not_built_is_refused_by_name`.

use std::{
    fmt,
    future::Future,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use wasmtime::component::Component;

use super::{
    Error, Inner, Sandbox,
    cache::Verified,
    idle::{Code, Counted},
    imports::{State, bindings::ReconcilerPre},
    machine::Mappings,
    native::Native,
};
use crate::{model::digest::Digest, modules::screen::screen, share::slots::Slot};

/// What every reconciler exports.
const OURS: &str = "nagaya:controller/guest@0.2.0";
/// What to do about a component of another world.
const WORLD: &str = "a reconciler is a component of the world nagaya:controller/reconciler, which nagaya-sdk builds";

/// A component ready to run; cheap to clone.
#[derive(Clone)]
pub struct Program {
    pub(super) guest: Guest,
    pub(super) digest: Digest,
}

/// What answers a call.
#[derive(Clone)]
pub(super) enum Guest {
    Component(Arc<Code>),
    /// In tests.
    Native(Arc<dyn Native>),
}

impl Sandbox {
    /// Makes a program of a component: screened, compiled in a turn of `team` or found in the cache, loaded and linked.
    /// Programs of the same component share their code.
    pub async fn compile(
        &self,
        bytes: Arc<[u8]>,
        digest: &Digest,
        team: &str,
    ) -> Result<Program, Error> {
        if let Some(native) = self.0.natives.get(digest) {
            return Ok(Program { guest: Guest::Native(native), digest: digest.clone() });
        }
        let name = self.0.code_name(digest);
        let found = self.0.loaded.get_or_make(&name, self.find(&name, &bytes, digest)).await?;
        let code = match found {
            Some(code) => Some(code),
            None => {
                // Nobody else's wish for the same component waits behind this team's others: each waits for a turn of
                // its own, and whoever has one first makes it for all.
                let turn = self.0.compiler.turn(team).await;
                self.0.loaded.get_or_make(&name, self.make(&name, &bytes, digest, &turn)).await?
            }
        };
        let code = code.ok_or_else(|| Error::Host("it was neither found nor made".to_owned()))?;
        Ok(Program { guest: Guest::Component(code), digest: digest.clone() })
    }

    /// The code in the cache, if the bytes pass the screen.
    async fn find(
        &self,
        name: &str,
        bytes: &Arc<[u8]>,
        digest: &Digest,
    ) -> Result<Option<Arc<Code>>, Error> {
        let (inner, named, screened) = (self.0.clone(), digest.clone(), bytes.clone());
        let file = name.to_owned();
        let found = blocking(move || {
            let found = Digest::of(&screened);
            if found != named {
                return Err(Error::OtherBytes { named, found });
            }
            screen(&screened)?;
            if let Some(Mappings { used, limit }) = Mappings::now().filter(|now| now.are_scarce()) {
                return Err(Error::Host(format!(
                    "{used} of {limit} memory mappings are in use; raise vm.max_map_count or remove controllers"
                )));
            }
            Ok(inner.find(&file))
        })
        .await?;
        match found {
            Some(component) => self.linked(component).await.map(Some),
            None => Ok(None),
        }
    }

    async fn make(
        &self,
        name: &str,
        bytes: &Arc<[u8]>,
        digest: &Digest,
        turn: &Slot,
    ) -> Result<Option<Arc<Code>>, Error> {
        // Another host, or a team that gave up meanwhile, may have made it.
        if let Some(code) = self.find(name, bytes, digest).await? {
            return Ok(Some(code));
        }
        let code = self.0.compiler.compile(bytes, turn).await?;
        let (inner, file) = (self.0.clone(), name.to_owned());
        let component = blocking(move || inner.keep_and_load(&file, &code)).await?;
        self.linked(component).await.map(Some)
    }

    /// The names of all native code on disk. Each begins with the hex digits of its component's digest.
    pub fn stored_code(&self) -> Result<Vec<String>, Error> {
        let disk = |source| Error::Disk { what: "list the files", source };
        self.0.cache.names().map_err(disk)
    }

    /// Whether native code of this name is what this host's engine has made, or would make.
    pub fn loads_code(&self, name: &str) -> bool {
        name.rsplit_once('-').is_some_and(|(_, engine)| engine == self.0.engine_name())
    }

    /// How the native code of a component is called.
    pub fn code_name(&self, digest: &Digest) -> String {
        self.0.code_name(digest)
    }

    /// Removes native code from the disk: what is loaded runs on, and what is needed again is compiled again.
    pub fn remove_code(&self, name: &str) -> Result<(), Error> {
        let disk = |source| Error::Disk { what: "remove a file", source };
        self.0.cache.remove(name).map_err(disk)
    }

    async fn linked(&self, component: Component) -> Result<Arc<Code>, Error> {
        let inner = self.0.clone();
        let pre = blocking(move || inner.link(&component)).await?;
        let code = Arc::new(Counted::new(pre));
        self.0.idle.add(&code);
        Ok(code)
    }
}

impl Inner {
    /// Component and engine; `DefaultHasher::new()` has no random state, so that a restart finds the file again.
    fn code_name(&self, digest: &Digest) -> String {
        format!("{}-{}", digest.hex(), self.engine_name())
    }

    fn engine_name(&self) -> String {
        let mut hasher = DefaultHasher::new();
        self.engine.precompile_compatibility_hash().hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    }

    /// Loads from the cache. Whatever is wrong with it, the component can be compiled again.
    fn find(&self, name: &str) -> Option<Component> {
        let found = match self.cache.find(name) {
            Ok(found) => found?,
            Err(error) => {
                tracing::error!(%error, name, "cannot read cached code");
                return None;
            }
        };
        match found.load(&self.engine) {
            Ok(component) => Some(component),
            Err(error) => {
                tracing::warn!(error = %format!("{error:#}"), name, "cached code does not load and is deleted");
                if let Err(error) = self.cache.remove(name) {
                    tracing::error!(%error, name, "cannot delete cached code");
                }
                None
            }
        }
    }

    fn keep_and_load(&self, name: &str, code: &[u8]) -> Result<Component, Error> {
        let kept: Verified = self
            .cache
            .keep(name, code)
            .map_err(|source| Error::Disk { what: "write a file", source })?;
        // The caps of a slot are checked here and not by the compiler.
        kept.load(&self.engine).map_err(|error| Error::DoesNotFit(format!("{error:#}")))
    }

    fn link(&self, component: &Component) -> Result<ReconcilerPre<State>, Error> {
        let kind = component.component_type();
        let refused: Vec<String> =
            kind.imports(&self.engine).filter_map(|(name, _)| refusal(name)).collect();
        if !refused.is_empty() {
            return Err(Error::Link(refused.join("; ")));
        }
        let mut names = kind.imports(&self.engine).chain(kind.exports(&self.engine));
        let other = names.find_map(|(name, _)| other_version(name));
        let exports = kind.exports(&self.engine).any(|(name, _)| name == OURS);
        let pre = self.linker.instantiate_pre(component).and_then(ReconcilerPre::new);
        pre.map_err(|error| match other {
            Some(advice) => Error::Link(advice),
            None if !exports => Error::Link(format!("it does not export {OURS}: {WORLD}")),
            None => Error::Link(format!("{error:#}; {WORLD}")),
        })
    }
}

fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> impl Future<Output = Result<T, Error>> {
    let task = tokio::task::spawn_blocking(work);
    async move { task.await.unwrap_or_else(|error| Err(Error::Host(error.to_string()))) }
}

/// What to say of a component that was built for another version of the world than this host has.
fn other_version(name: &str) -> Option<String> {
    let theirs = name.strip_prefix("nagaya:controller/")?.split_once('@')?.1;
    let ours = OURS.split_once('@').map(|(_, version)| version)?;
    (theirs != ours).then(|| {
        format!(
            "it is built for version {theirs} of nagaya:controller, and this host has {ours}: build it with the nagaya-sdk \
             of that version, or have the host brought up to date"
        )
    })
}

/// What to say of an import that is known and not offered.
fn refusal(import: &str) -> Option<String> {
    let advice = if import.starts_with("nagaya:controller/http@") {
        "it is built for the world `reconciler-http`, and outbound HTTP is not built yet; build it for the world `reconciler`, \
         and leave out what calls `http`"
    } else if import.starts_with("wasi:http/") {
        "it is not offered, and outbound HTTP through nagaya:controller is not built yet; leave it out of the build \
         (for JavaScript: `componentize-js --disable http`)"
    } else if import.starts_with("wasi:sockets/") && !import.contains("@0.2.") {
        "there is no network in the sandbox; build for wasm32-wasip2 (WASI 0.2), where opening a socket fails"
    } else {
        return None;
    };
    Some(format!("it imports {import}: {advice}"))
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program").field("digest", &self.digest).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_version_of_the_world_is_another_version() {
        for name in ["nagaya:controller/cluster@0.1.0", "nagaya:controller/guest@1.0.0"] {
            let text = other_version(name).unwrap();
            assert!(text.contains("this host has 0.2.0"), "{text}");
        }
        for name in [OURS, "wasi:cli/exit@0.2.6", "run"] {
            assert_eq!(other_version(name), None);
        }
    }

    #[test]
    fn the_version_is_that_of_the_contract() {
        let package = include_str!("../../../wit/cluster.wit").lines().next().unwrap();
        let version = package.trim_end_matches(';').split_once('@').unwrap().1;
        assert!(OURS.ends_with(&format!("@{version}")), "{package}");
    }
}
