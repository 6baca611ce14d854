//! Whose turn it is: [`slots`] and [`schedule`] for slots, [`cpu`] and [`fair`] for processor time.

pub mod cpu;
pub mod fair;
pub mod schedule;
pub mod slots;
