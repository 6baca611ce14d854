//! What a write passes before it leaves: each gate decides by itself and knows nothing of the others.

pub mod barrier;
pub mod budget;
pub mod fight;
pub mod noop;
