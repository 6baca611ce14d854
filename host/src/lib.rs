//! Nagaya: one host process for Kubernetes controllers written as WebAssembly components.
//!
//! In reading order. The path of an event: [`watch`], [`queue`], [`schedule`], [`controller`], [`rollout`],
//! [`sandbox`], [`client`], [`grant`]; beneath them [`apiserver`]. The path of a version: [`crd`], [`module`],
//! [`manifest`], [`manager`]. Around them: [`app`], [`events`], [`api`], [`admin`], [`metrics`].

pub mod apiserver;
pub mod client;
pub mod manifest;
pub mod sandbox;
pub mod watch;
