//! Cargo, started from within cargo: without what the outer one tells its programs.
//!
//! Build scripts (ring's, for one) ask to be run again when such a variable changes; each change of the caller would
//! compile everything above them once more.

use std::path::Path;
use std::process::Command;

/// What cargo sets for a program that it runs, beside everything that begins with `CARGO_PKG_`.
const SET_BY_CARGO: [&str; 6] = [
    "CARGO",
    "CARGO_BIN_NAME",
    "CARGO_CRATE_NAME",
    "CARGO_MANIFEST_DIR",
    "CARGO_MANIFEST_PATH",
    "CARGO_PRIMARY_PACKAGE",
];

/// Cargo in `folder`, as if a person had started it.
pub fn cargo(folder: &Path) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if SET_BY_CARGO.contains(&&*text) || text.starts_with("CARGO_PKG_") {
            cargo.env_remove(&name);
        }
    }
    cargo.current_dir(folder);
    cargo
}
