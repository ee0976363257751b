//! What must hold for any bytes at all: one function a fuzz target, `bytes -> ()`, which panics when something does not.
//!
//! `tests/fuzz` drives them by libFuzzer; `tests/tests/fuzz_crashes.rs` replays in every run what once made them panic.

mod headers;
mod image;
mod packet;
mod policy;
mod seeds;
mod world;

pub use image::image;
pub use packet::packet;
pub use policy::policy;
pub use seeds::write_seeds;

/// Looks at any bytes; panics when something does not hold.
pub type Target = fn(&[u8]);

/// The targets by name.
pub const TARGETS: [(&str, Target); 3] = [("packet", packet), ("image", image), ("policy", policy)];
