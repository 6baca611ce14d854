//! What the host serves: [`uploads`] for teams, [`aggregated`] the same and more behind the API server, [`admin`] for probes
//! and metrics.

pub mod admin;
pub mod aggregated;
mod answer;
pub mod door;
mod linger;
pub mod uploads;
