//! The components of `tests/guests`.

use std::{
    path::Path,
    process::Command,
    sync::{Arc, OnceLock},
};

const GUESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/guests");

/// The bytes of a guest of `tests/guests`, which cargo builds if it is not fresh.
pub(crate) fn guest(name: &str) -> Arc<[u8]> {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(|| {
        let mut cargo = Command::new("cargo");
        cargo.args(["build", "--release", "--locked", "--target", "wasm32-wasip2"]);
        for leak in
            ["CARGO_BUILD_TARGET", "CARGO_ENCODED_RUSTFLAGS", "CARGO_TARGET_DIR", "RUSTFLAGS"]
        {
            cargo.env_remove(leak);
        }
        assert!(cargo.current_dir(GUESTS).status().unwrap().success(), "the guests do not build");
    });
    let file =
        Path::new(GUESTS).join("target/wasm32-wasip2/release").join(name).with_extension("wasm");
    std::fs::read(file).unwrap().into()
}
