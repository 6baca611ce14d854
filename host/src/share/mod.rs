//! Whose turn it is: [`places`] and [`schedule`] for slots, [`cpu`] and [`fair`] for processor time.

pub mod cpu;
pub mod fair;
pub mod places;
pub mod schedule;
