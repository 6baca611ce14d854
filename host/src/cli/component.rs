//! Whether a file can be a component at all, before anything is touched; pure.
//!
//! Invariant: `what_is_plainly_no_component_is_refused`.

use crate::modules::screen::FILE;

/// WebAssembly files begin with this.
const MAGIC: [u8; 4] = *b"\0asm";
/// Then comes a version and, in the place that is 0 in core modules, the layer.
const COMPONENT_LAYER: [u8; 2] = [1, 0];

/// Why a file cannot be a component; says how to get one.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Error {
    /// No bytes.
    #[error("the file is empty")]
    Empty,
    /// WAT.
    #[error(
        "the file is WebAssembly text; `wasm-tools parse` turns it into the binary form, which is what the host takes"
    )]
    Text,
    /// Something else.
    #[error(
        "the file is not WebAssembly; `nagaya build` makes a component of a project in Rust, Go, TypeScript or Python"
    )]
    NotWasm,
    /// A module without the component around it.
    #[error(
        "the file is a core module, not a component; build it with `nagaya build`, or wrap it with `wasm-tools component new`"
    )]
    CoreModule,
    /// More than any host takes.
    #[error(
        "the file has {0} bytes, the limit is {FILE}; a release build, `strip = true` and `opt-level = \"s\"` make it smaller"
    )]
    TooLarge(usize),
}

/// Refuses `bytes` that are plainly not a component. The host decides about the rest.
pub(super) fn check(bytes: &[u8]) -> Result<(), Error> {
    if bytes.is_empty() {
        return Err(Error::Empty);
    }
    if !bytes.starts_with(&MAGIC) {
        let text = bytes.trim_ascii_start();
        let is_text =
            ["(module", "(component", ";;"].iter().any(|start| text.starts_with(start.as_bytes()));
        return Err(if is_text { Error::Text } else { Error::NotWasm });
    }
    match bytes.get(6..8) {
        Some(_) if bytes.len() > FILE => Err(Error::TooLarge(bytes.len())),
        Some(layer) if layer == COMPONENT_LAYER => Ok(()),
        Some(_) => Err(Error::CoreModule),
        None => Err(Error::NotWasm),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_plainly_no_component_is_refused() {
        assert_eq!(check(b""), Err(Error::Empty));
        assert_eq!(check(b"\x7fELF\x02\x01\x01\0"), Err(Error::NotWasm));
        assert_eq!(check(b"\0asm"), Err(Error::NotWasm));
        assert_eq!(check(b"\n (component)"), Err(Error::Text));
        assert_eq!(check(b"\0asm\x01\0\0\0rest"), Err(Error::CoreModule));
        assert_eq!(check(b"\0asm\x0d\0\x01\0"), Ok(()));
        let mut large = b"\0asm\x0d\0\x01\0".to_vec();
        large.resize(FILE + 1, 0);
        assert_eq!(check(&large), Err(Error::TooLarge(FILE + 1)));
    }
}
