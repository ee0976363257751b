//! The reconciler's decisions: what to do next, and when to look again. Pure: no clock, no file, no kernel.

pub mod hold;
pub mod probation;
pub mod schedule;
pub mod steps;

pub use schedule::{Outcome, Schedule, poll_pause};
pub use steps::{Attachment, Found, Held, PortDevice, Step, Wanted, Wire, steps};
