//! What all hooks do with a packet.

use core::hint::cold_path;
use core::ptr::read_volatile;

use fib::layout::AT_GENERATION;
use fib::packet::{self, Link};
use fib::service::step;
use fib::tunnel;
use fib::verdict::{decide_linked, decide_plain_v4, decide_served};
use fib::{Decision, Image as _, Met, PacketMut, Reason};

use crate::events;
use crate::filter;
use crate::image::KernelImage;
use crate::maps::{self, KernelNode};
use crate::service;

/// Which slot of `GENERATIONS` this instance reads: 0 live, 1 candidate. Constant to the verifier.
///
/// The loader always overrides the value here. It is one that no other constant has, since the compiler may let an
/// anonymous constant of equal value share the place: a key `&0` would then read as the slot.
#[unsafe(no_mangle)]
static SLOT: u32 = 0x5107_5107;

/// Which stages this instance has: 0 routes alone, else filters and services, too. Constant to the verifier, which follows nothing of
/// the stages that an instance does not have: it loads in a tenth of the time. The loader always overrides the value here, as `SLOT`'s.
#[unsafe(no_mangle)]
static STAGES: u32 = 0x57a6_e557;

/// A place in the kernel's receive path where a frame can be decided on.
pub(crate) trait Hook: PacketMut + Sized {
    const PASS: i32;
    const DROP: i32;
    /// What becomes of a frame whose rewriting failed half-way.
    const GIVE_UP: i32;
    /// What the kernel calls a program of this hook with.
    type Context;
    fn of(context: *mut Self::Context) -> Self;
    /// Kernel index of the device that the frame came in by.
    fn ingress_device(&self) -> u32;
    /// Copies the frame's first `bytes` (1 to `fib::event::CAPTURE_MAX`), wherever they lie; `false`: they were not read.
    fn copy(&self, to: *mut u8, bytes: u32) -> bool;
    /// The action that sends the frame back by the device that it came in by.
    fn send_back(&self) -> i32;
    /// The action that sends the frame out by a port; touches no byte of it. `None`: the port has no device.
    fn redirect(&self, port: u32) -> Option<i32>;
}

#[inline(always)]
pub(crate) fn run<H: Hook>(context: *mut H::Context) -> i32 {
    let mut frame = H::of(context);
    let bytes = frame.length();
    let Some(image) = KernelImage::of(slot()) else {
        return stay::<H>(context, Met::only(Reason::NoGeneration).word(), bytes, 0, 0);
    };
    if fib::filter::has_filters(&image) {
        // Packets of images without filters go straight on.
        cold_path();
        if !has_all_stages() {
            return stay::<H>(context, Met::only(Reason::BadImage).word(), bytes, 0, 0);
        }
        let met = filter::judge::<H>(context, image.bytes());
        if met != 0 {
            return stay::<H>(context, met, bytes, image.u64(AT_GENERATION).unwrap_or(0), 0);
        }
        // To make the headers readable voids pointers into the frame.
        frame = H::of(context);
    }
    if fib::service::has_services(&image) {
        if !has_all_stages() {
            return stay::<H>(context, Met::only(Reason::BadImage).word(), bytes, 0, 0);
        }
        return run_served::<H>(context, &image, bytes);
    }
    let node = KernelNode { context: context.cast(), device: frame.ingress_device() };
    let met = match packet::link(&frame) {
        // Most frames: all their offsets are constants.
        Ok(link) if link.is_plain_v4() => {
            let decision = decide_plain_v4(&image, &frame, &node);
            match forward::<H>(context, &frame, &Link::PLAIN_V4, &decision, bytes) {
                Ok(action) => return action,
                Err(met) => met,
            }
        }
        Ok(link) => {
            let decision = decide_linked(&image, &frame, &link, &node);
            match forward::<H>(context, &frame, &link, &decision, bytes) {
                Ok(action) => return action,
                Err(met) => met,
            }
        }
        Err(reason) => Met::only(reason),
    };
    stay::<H>(context, met.word(), bytes, image.u64(AT_GENERATION).unwrap_or(0), 0)
}

/// The slot that this instance reads.
#[inline(always)]
pub(crate) fn slot() -> u32 {
    // SAFETY: the loader sets `SLOT` once, before the program is loaded.
    unsafe { read_volatile(&raw const SLOT) }
}

/// Whether this instance has more than the routes' stage.
#[inline(always)]
fn has_all_stages() -> bool {
    // SAFETY: the loader sets `STAGES` once, before the program is loaded.
    unsafe { read_volatile(&raw const STAGES) != 0 }
}

/// The same where the image has services: a way of its own, so that packets of other images bear none of it.
#[inline(always)]
fn run_served<H: Hook>(context: *mut H::Context, image: &KernelImage, bytes: u32) -> i32 {
    let Some(steer) = service::steer() else { return H::PASS };
    let at = service::stage::<H>(context, image.bytes(), steer);
    service::parse::<H>(context, steer, at);
    let frame = H::of(context);
    let node = KernelNode { context: context.cast(), device: frame.ingress_device() };
    // SAFETY: the entry belongs to this CPU while the program runs.
    let decision = decide_served(image, &node, unsafe { &*steer });
    if tunnel::is_tunnel(at) {
        // SAFETY: as above.
        tunnel::note(at, decision.sent_to(), unsafe { &mut *steer });
    }
    let mut met = match forward_served::<H>(context, &frame, image, &decision, at, steer, bytes) {
        Ok(action) => return action,
        Err(met) => service::forgotten(met, steer),
    };
    if Reason::ANSWERS >> (met.reason() & 63) & 1 != 0 {
        met = met.because_of(service::answer_packet::<H>(context, steer, met.reason()));
    }
    if met.reason() == Reason::Decapsulated as u8 && service::decapsulate::<H>(context, steer) == 0 {
        met = met.because(Reason::NoRoom);
    }
    let chosen = service::stays::<H>(context, steer, at, met, bytes);
    stay::<H>(context, met.word(), bytes, image.u64(AT_GENERATION).unwrap_or(0), chosen)
}

/// [`forward`] for a packet that the service stage has seen.
#[inline(always)]
fn forward_served<H: Hook>(
    context: *mut H::Context,
    frame: &H,
    image: &KernelImage,
    decision: &Decision,
    at: u32,
    steer: *mut fib::Steer,
    bytes: u32,
) -> Result<i32, Met> {
    let met = decision.met;
    if !met.is_forwarded() {
        return Err(met);
    }
    let Some(action) = frame.redirect(decision.port) else { return Err(met.because(Reason::NoPort)) };
    if tunnel::is_tunnel(at) {
        if service::encapsulate::<H>(context, image.bytes(), steer) == 0 {
            return Err(met.because(Reason::NoRoom));
        }
        service::count(steer, bytes, 1);
        maps::count_next_hop(met.next_hop(), bytes.into());
        return Ok(action);
    }
    let mut frame = H::of(context);
    // The tags first: where there is no room for them the packet is still as it came.
    let Some(()) = packet::forward(&mut frame, decision.sent_to()) else { return Err(met.because(Reason::NoRoom)) };
    if at == step::STEERED {
        if service::translate::<H>(context, steer) == 0 {
            return Ok(H::DROP);
        }
        service::count(steer, bytes, 1);
    }
    maps::count_next_hop(met.next_hop(), bytes.into());
    Ok(action)
}

/// Sends the packet to its next hop, or says why not.
#[inline(always)]
fn forward<H: Hook>(
    context: *mut H::Context,
    frame: &H,
    link: &Link,
    decision: &Decision,
    bytes: u32,
) -> Result<i32, Met> {
    let met = decision.met;
    if !met.is_forwarded() {
        return Err(met);
    }
    let neighbour = decision.sent_to();
    // Redirect first: it touches no byte of the packet, so a port without a device still passes it unchanged.
    let Some(action) = frame.redirect(decision.port) else { return Err(met.because(Reason::NoPort)) };
    // Its pointers are read anew: none has to live through the lookup.
    let mut frame = H::of(context);
    let rewritten = if link.is_plain_v4() && neighbour.tags.outer == 0 {
        packet::forward_plain_v4(&mut frame, neighbour)
    } else {
        packet::forward(&mut frame, neighbour)
    };
    match rewritten {
        Some(()) => {
            maps::count_next_hop(met.next_hop(), bytes.into());
            Ok(action)
        }
        None => Err(met.because(Reason::NoRoom)),
    }
}

/// Counts a packet that is not forwarded, shows it to a listener, and returns its action.
///
/// Not inlined: the ways that lead here are many, and the program for the packets that are forwarded is the smaller.
#[inline(never)]
fn stay<H: Hook>(context: *mut H::Context, met: u64, bytes: u32, generation: u64, chosen: u32) -> i32 {
    let met = Met::from_word(met);
    let count = maps::count(met.reason().into(), bytes.into());
    if met.policy() != 0 {
        maps::count_policy(met.policy(), bytes.into());
    }
    events::offer::<H>(context, met, generation, count, chosen);
    if Reason::DROPS >> (met.reason() & 63) & 1 != 0 {
        H::DROP
    } else if Reason::ANSWERS >> (met.reason() & 63) & 1 != 0 {
        H::of(context).send_back()
    } else if met.reason() == Reason::NoRoom as u8 {
        H::GIVE_UP
    } else {
        H::PASS
    }
}
