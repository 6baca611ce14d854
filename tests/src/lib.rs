//! What the end-to-end tests and the demo stand on: a real API server on loopback.

pub mod control_plane;
