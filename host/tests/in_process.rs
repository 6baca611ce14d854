//! The host in one process, over an API server in memory, with guests in Rust and paused time: hours of a controller's life
//! in milliseconds.
//!
//! A file a subject, each a module here, so that all of them are linked once. `path.rs` is where to begin.

#![cfg(test)] // Tells clippy that helpers are test code too.

mod fake;
mod fake_server;
mod feed;
mod guests;
mod keeping;
mod loops;
mod monitoring;
mod native;
mod path;
mod previews;
mod registries;
mod rights;
mod runs;
mod servers;
mod signatures;
mod writes;
