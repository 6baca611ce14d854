//! The nagaya binary.
fn main() {}
