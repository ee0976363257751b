//! Image layout, packet parsing, lookup and verdict, compiled once for the kernel and once for the CLI.
//!
//! The BPF program and the command line call the same functions here, so a trace on a laptop and the packet path of a
//! node cannot disagree. All access goes through two traits, [`Image`] (the rules) and [`Packet`] (the frame), whose
//! every read is bounds-checked and returns `None` instead of panicking: a corrupted image gives a wrong verdict at
//! worst, never a fault.
//!
//! Must not: allocate, panic, loop without a constant bound, or use `unsafe`.
#![no_std]
#![forbid(unsafe_code)]
#![expect(clippy::cast_possible_truncation, reason = "taking the low bits of a word is how packed fields are read")]
#![expect(clippy::inline_always, reason = "BPF programs are verified as one function; calls cost stack and registers")]

#[cfg(test)]
extern crate std;

pub mod answer;
pub mod event;
pub mod filter;
pub mod hash;
pub mod icmp;
pub mod image;
pub mod layout;
pub mod lookup;
pub mod packet;
pub mod service;
pub mod tunnel;
pub mod verdict;

#[cfg(test)]
mod tests;

pub use image::Image;
pub use packet::{Packet, PacketMut};
pub use service::Steer;
pub use verdict::{Decision, Ingress, Met, Neighbour, Node, Reach, ReachWords, Reason, Verdict, decide, decide_with};
