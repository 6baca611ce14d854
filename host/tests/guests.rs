//! The components of `tests/guests`.

use std::{
    path::Path,
    process::Command,
    sync::{Arc, OnceLock},
};

const GUESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/guests");

/// The bytes of a guest of `tests/guests` as it is shipped, which cargo builds if it is not fresh.
pub(crate) fn guest(name: &str) -> Arc<[u8]> {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(|| build(&["--release"]));
    built("release", name)
}

/// Builds guests for WebAssembly, with these arguments of cargo.
pub(crate) fn build(what: &[&str]) {
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--locked", "--target", "wasm32-wasip2"]).args(what);
    for leak in ["CARGO_BUILD_TARGET", "CARGO_ENCODED_RUSTFLAGS", "CARGO_TARGET_DIR", "RUSTFLAGS"] {
        cargo.env_remove(leak);
    }
    assert!(cargo.current_dir(GUESTS).status().unwrap().success(), "the guests do not build");
}

/// The bytes of a guest that was built in this profile.
pub(crate) fn built(profile: &str, name: &str) -> Arc<[u8]> {
    let folder = Path::new(GUESTS).join("target/wasm32-wasip2").join(profile);
    std::fs::read(folder.join(name).with_extension("wasm")).unwrap().into()
}
