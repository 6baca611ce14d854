//! What everything else speaks about: pure values, which know nobody.
//!
//! In reading order: [`kind`] and [`object`] name what is on the API server, [`manifest`] is what a
//! component says of itself, [`digest`] names its bytes, [`crd`] and [`stored`] are the host's own kinds, written and read, and
//! [`live`] is how a controller does at a moment, and [`plan`] what a revision would do.

pub mod crd;
pub mod digest;
pub mod kind;
pub mod live;
pub mod manifest;
pub mod object;
pub mod plan;
pub mod stored;
