//! Nagaya: one host process for Kubernetes controllers written as WebAssembly components.
//!
//! In layers, of which none knows one that comes later (`the_module_graph_has_no_cycle`):
//!
//! 1. [`clock`], [`text`], [`causes`], [`fail`], [`rate`], [`metrics`]: what every layer may use; [`model`]: what all of them speak about.
//! 2. [`kubeconfig`], [`apiserver`], [`watch`]: the API server and what it shows; [`queue`]: which object is next; [`share`]: which team.
//! 3. [`access`]: who may see what; [`leader`]: which host, until when; [`events`]: what people are told.
//! 4. [`cluster`]: what a guest may ask; [`client`]: its reads and writes; [`modules`]: components by content; [`sandbox`]: where they run.
//! 5. [`controller`]: one controller's loop; [`manager`]: all of them, as their objects say.
//! 6. [`http`], [`config`], [`app`], [`cli`]: the process around it.

pub mod access;
pub mod apiserver;
pub mod app;
pub mod causes;
pub mod child;
pub mod cli;
pub mod client;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod controller;
pub mod events;
pub mod fail;
pub mod http;
pub mod journal;
pub mod kubeconfig;
pub mod leader;
pub mod manager;
pub mod metrics;
pub mod model;
pub mod modules;
pub mod preview;
pub mod queue;
pub mod rate;
pub mod sandbox;
pub mod share;
pub mod text;
pub mod watch;
