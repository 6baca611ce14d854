//! Nagaya: one host process for Kubernetes controllers written as WebAssembly components.
//!
//! In reading order. The path of an event: [`watch`], [`inbox`] and [`queue`], [`places`] and [`schedule`], [`cpu`] and [`fair`],
//! [`controller`], [`health`], [`rollout`], [`run`], [`strays`], [`sandbox`], [`client`]; what they may do: [`manifest`], [`view`], [`grant`],
//! [`authority`], [`budget`], [`fight`], [`barrier`], [`fence`], [`lease`] and [`clock`]; beneath them [`rate`], [`apiserver`] and [`kubeconfig`].
//! The path of a version: [`crd`], [`stored`], [`module`], [`manager`]. Around them: [`config`], [`app`], [`events`], [`api`],
//! [`admin`], [`metrics`], [`causes`], [`text`], [`cli`].

pub mod admin;
pub mod api;
pub mod apiserver;
pub mod app;
pub mod authority;
pub mod barrier;
pub mod budget;
pub mod causes;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod controller;
pub mod cpu;
pub mod crd;
pub mod events;
pub mod fail;
pub mod fair;
pub mod fence;
pub mod fight;
pub mod grant;
pub mod health;
pub mod inbox;
pub mod kubeconfig;
pub mod lease;
pub mod manager;
pub mod manifest;
pub mod metrics;
pub mod module;
pub mod places;
pub mod queue;
pub mod rate;
pub mod rollout;
pub mod run;
pub mod sandbox;
pub mod schedule;
pub mod stored;
pub mod strays;
pub mod text;
pub mod view;
pub mod watch;
