//! The only module that talks to the kernel.

pub mod link;
pub mod neighbour;
pub mod watch;
