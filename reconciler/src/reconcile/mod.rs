//! The reconciler's decisions: what to do next, and when to look again. Pure: no clock, no file, no kernel.

pub mod schedule;
pub mod steps;

pub use schedule::{Outcome, Schedule, poll_pause};
pub use steps::{Found, PortDevice, Step, Wanted, steps};
