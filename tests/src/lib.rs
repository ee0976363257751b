//! The lab: network namespaces, links, frames and tiny XDP programs for tests against the real kernel.
//!
//! Everything here is made by the test, lives in namespaces the test made, and disappears when dropped. What a run
//! that was killed left behind is removed by the next run.
//!
//! Read in this order: [`require_root_and_bpf`], [`Bpffs`], [`Namespace`], [`veth`], [`Topology`]; then the packet
//! tools: [`Packet`] builds frames, [`Seen`] reads them, [`PacketSocket`] sends and receives them one by one,
//! [`CountingSink`] counts many, [`Blaster`] sends as many as it can. [`TestNode`] is the program under test on a node,
//! [`BpfObjects`] what it has in the kernel, [`corpus`] the packets that it must decide,
//! [`fuzz`] the bytes that must not upset anything.

mod blaster;
mod bpf_objects;
mod bpffs;
pub mod corpus;
mod daemon;
mod device;
pub mod fuzz;
pub mod git;
pub mod hands;
mod lossless;
mod namespace;
mod node;
mod packet;
mod packet_socket;
mod ping;
mod ptrace;
pub mod scenario;
mod seen;
mod sink;
mod socket;
mod topology;
pub mod verifier;
mod xdp;

pub use blaster::Blaster;
pub use bpf_objects::BpfObjects;
pub use bpffs::Bpffs;
pub use daemon::Daemon;
pub use device::{LinkCounters, Mac, veth};
pub use lossless::lossless;
pub use namespace::Namespace;
pub use node::{Counters, Outcome, TestNode, binary};
pub use packet::{Extension, Packet, tcp_flags};
pub use packet_socket::PacketSocket;
pub use ping::ping;
pub use ptrace::{Fate, kill_before};
pub use seen::Seen;
pub use sink::{CountingSink, SinkCount};
pub use topology::{Host, Topology};
pub use wayleave::kernel::ethtool::Offload;
pub use xdp::{AttachedXdp, XdpMode, attach_xdp_drop, attach_xdp_pass, require_root_and_bpf};
