//! The host on a real API server: what only it can show. One program, so that tests which wait share the time.
//!
//! What compares times has programs of its own, which run alone: `faults_flood` and `hostile`.

#![cfg(test)] // Tells clippy that helpers are test code too.

mod admission;
mod aggregated;
mod authority;
mod bad_input;
mod chart;
mod cli;
mod conformance;
mod control_plane;
mod decisions;
mod events;
mod failpoints;
mod faults_requests;
mod faults_server;
mod faults_watch;
mod fights;
mod finalizer;
mod health;
mod host;
mod images;
mod install;
mod languages;
mod leases;
mod lifecycle;
mod namespaces;
mod older_server;
mod own_writes;
mod people;
mod preview;
mod primary;
mod proxy;
mod random;
mod reconcile;
mod rollout;
mod shares;
mod signatures;
mod swaps;
mod upload;
mod watches;
mod writes;
