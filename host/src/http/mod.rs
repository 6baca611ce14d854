//! What the host serves: [`uploads`] for teams, [`admin`] for probes and metrics.

pub mod admin;
pub mod uploads;
