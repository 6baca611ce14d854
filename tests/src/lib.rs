//! What the end-to-end tests and the demo stand on: a real API server on loopback and the real
//! host.
//!
//! In reading order: [`control_plane`] starts the server, [`install`] puts on it what a platform
//! team would, [`host`] starts the host's binary, [`Test`] gives each test a namespace and a host
//! of its own, [`test_alone`] a server too; [`test_in_turn`] is for what compares times. [`controller`] is a
//! WasmController as its team sees it,
//! [`cli`] the same through the command line, [`component`] what is uploaded, [`account`] and
//! [`manifest`] the objects around it, [`credentials`] the host's, [`site`] the objects that tests
//! reconcile, [`load`] changes them. [`wait`] and [`witness`] look at what happens, [`history`] at
//! what has happened, [`bystander`] and [`memory`] at what it costs others. [`proxy`] stands between
//! host and server and makes faults, [`webhook`] behind the server, which asks it about writes; `code`
//! spares hosts what others have compiled; [`bombs`] are components that no compiler should see. [`helm`]
//! renders and installs `deploy/chart`; `go` builds it, and the control plane.

pub mod account;
pub mod bombs;
pub mod bystander;
pub mod cargo;
pub mod cli;
mod code;
pub mod component;
pub mod control_plane;
pub mod controller;
pub mod credentials;
mod evidence;
mod go;
pub mod helm;
pub mod history;
pub mod host;
pub mod install;
pub mod load;
pub mod log;
pub mod manifest;
pub mod memory;
pub mod own_api;
pub mod proxy;
pub mod registry;
pub mod rights;
pub mod signing;
pub mod site;
mod standstill;
mod test;
pub mod wait;
pub mod webhook;
pub mod witness;

/// Whether the full form of a test is wanted: `cargo xtask test --long` sets `NAGAYA_LONG=1`.
pub fn long() -> bool {
    std::env::var_os("NAGAYA_LONG").is_some_and(|value| value == "1")
}

pub use test::{Test, test, test_alone, test_in_turn};
