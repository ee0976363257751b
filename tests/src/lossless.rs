//! Whether anything is lost while something happens.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::{Host, PacketSocket, Topology, attach_xdp_drop};

/// Packets sent at once, before a pause: as many as every ring on the way takes.
const BURST: u64 = 16;
const PAUSE: Duration = Duration::from_millis(1);
/// How long the last packets may be on their way.
const SETTLE: Duration = Duration::from_secs(2);
/// The kernels' own neighbour discovery adds some.
const OTHERS_MAX: u64 = 50;

/// Sends `frame` from the client without end, and counts what the upstreams get in XDP: nothing that was sent may be lost.
///
/// # Panics
///
/// When something was, or when the lab could not do it.
pub fn lossless(lab: &Topology, upstreams: &[&Host], frame: &[u8], during: impl FnOnce()) {
    let sinks: Vec<_> = upstreams.iter().map(|one| attach_xdp_drop(&one.namespace, "eth0").expect("a sink")).collect();
    let packets = |namespace: &crate::Namespace, device| namespace.counters(device).expect("counters").rx_packets;
    let count = || -> u64 { upstreams.iter().map(|one| packets(&one.namespace, "eth0")).sum() };
    let taken_by_router = || packets(&lab.router, "lan");
    let (before, router_before) = (count(), taken_by_router());
    let sender = PacketSocket::open(&lab.client.namespace, "eth0").expect("a sender");
    let stop = AtomicBool::new(false);
    let sent = thread::scope(|scope| {
        // The question is what the event loses, not what a full ring does.
        let sending = scope.spawn(|| {
            let mut sent = 0u64;
            while !stop.load(Ordering::Relaxed) {
                for _ in 0..BURST {
                    sender.send(frame).expect("sending");
                    sent += 1;
                }
                thread::sleep(PAUSE);
            }
            sent
        });
        during();
        stop.store(true, Ordering::Relaxed);
        sending.join().expect("the sender ends")
    });
    let deadline = Instant::now() + SETTLE;
    while count() - before < sent && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
    }
    let (arrived, taken) = (count() - before, taken_by_router() - router_before);
    println!("{sent} packets sent, {taken} came to the router, {arrived} to the upstreams");
    assert!(sent > 500 && taken >= sent, "sent {sent}, the router took {taken}");
    assert!(arrived >= sent && arrived < sent + OTHERS_MAX, "sent {sent}, arrived {arrived}");
    drop(sinks);
}
