//! The watch hub.

pub mod selector;
