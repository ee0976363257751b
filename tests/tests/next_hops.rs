//! Next hops that go down under traffic, and come back.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use wayleave_tests::{Daemon, Namespace, Packet, PacketSocket, Seen, TestNode, Topology, require_root_and_bpf};

const SECOND: Duration = Duration::from_secs(1);
/// Flows of the traffic, told apart by their source port.
const FLOWS: u16 = 64;
const FIRST_PORT: u16 = 20_000;
/// Between two packets.
const PACE: Duration = Duration::from_millis(1);

fn lab() -> Topology {
    require_root_and_bpf().unwrap();
    Topology::router().unwrap()
}

/// Sends 198.51.100.0/24 to both upstreams, by three to one.
fn both(on_all_down: &str) -> String {
    format!(
        "apiVersion: wayleave/v1\nkind: RoutePolicy\nmetadata: {{name: probe}}\nspec:\n  onAllDown: {on_all_down}\n  \
         nextHops:\n    - {{name: edge-a, via: 10.77.1.2, port: uplink-a}}\n    - {{name: edge-b, via: 10.77.2.2, port: \
         uplink-b}}\n  routes:\n    - {{prefix: 198.51.100.0/24, nextHops: [{{name: edge-a, weight: 3}}, {{name: edge-b, \
         weight: 1}}]}}\n"
    )
}

/// A node that carries `rules`, with its daemon in step.
fn running<'n>(node: &'n TestNode<'n>, rules: &str) -> Daemon<'n> {
    node.write("probe.yaml", rules).unwrap();
    Daemon::start(node)
}

fn flow_packet(lab: &Topology, flow: u16, payload: &[u8]) -> Vec<u8> {
    Packet::between(lab.client.v4.into(), "198.51.100.9".parse().unwrap())
        .macs(lab.client.mac, lab.client.router_mac)
        .udp(FIRST_PORT + flow, 4000)
        .payload(payload)
        .frame()
}

/// One packet that was sent, and where it came out.
#[derive(Clone, Copy, Debug)]
struct Sent {
    at: Instant,
    flow: u16,
    arrived: Option<usize>,
}

/// A steady stream of packets of many flows, about a thousand a second.
struct Traffic {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<Vec<(Instant, u16)>>,
    receivers: Vec<JoinHandle<()>>,
    arrived: Arc<Mutex<BTreeMap<u32, usize>>>,
}

impl Traffic {
    fn start(lab: &Topology, ends: &[&Namespace]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let arrived = Arc::new(Mutex::new(BTreeMap::new()));
        let receivers = ends.iter().enumerate().map(|(end, namespace)| {
            let mut socket = PacketSocket::open(namespace, "eth0").unwrap();
            let (stop, arrived) = (Arc::clone(&stop), Arc::clone(&arrived));
            thread::spawn(move || {
                let mut last = false;
                loop {
                    let ending = stop.load(Ordering::Relaxed);
                    // A device that is switched off ends a call with an error; the next one waits for it to come back.
                    match socket.receive(20 * PACE, |frame| Seen::parse(frame).is_some_and(|s| number(&s).is_some())) {
                        Ok(Some(frame)) => {
                            let number = number(&Seen::parse(&frame).unwrap()).unwrap();
                            arrived.lock().unwrap().insert(number, end);
                        }
                        Ok(None) if last => return,
                        Ok(None) => last = ending,
                        Err(_) if last => return,
                        Err(_) => thread::sleep(PACE),
                    }
                }
            })
        });
        let receivers = receivers.collect();
        let socket = PacketSocket::open(&lab.client.namespace, "eth0").unwrap();
        let frames: Vec<Vec<u8>> = (0..FLOWS).map(|flow| flow_packet(lab, flow, b"flow0000")).collect();
        let stopping = Arc::clone(&stop);
        let sender = thread::spawn(move || {
            let mut sent = Vec::new();
            let begun = Instant::now();
            while !stopping.load(Ordering::Relaxed) {
                let number = u32::try_from(sent.len()).unwrap();
                let flow = u16::try_from(number % u32::from(FLOWS)).unwrap();
                let mut frame = frames[usize::from(flow)].clone();
                let end = frame.len();
                frame[end - 4..].copy_from_slice(&number.to_be_bytes());
                // The checksum is not looked at: nobody along the way computes it.
                sent.push((Instant::now(), flow));
                socket.send(&frame).unwrap();
                thread::sleep((begun + PACE * (number + 1)).saturating_duration_since(Instant::now()));
            }
            sent
        });
        Self { stop, sender, receivers, arrived }
    }

    fn stop(self) -> Log {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().unwrap();
        self.receivers.into_iter().for_each(|receiver| receiver.join().unwrap());
        let arrived = self.arrived.lock().unwrap();
        let sent = (0..).zip(sent).map(|(n, (at, flow))| Sent { at, flow, arrived: arrived.get(&n).copied() });
        Log(sent.collect())
    }
}

fn number(seen: &Seen) -> Option<u32> {
    let number = seen.payload.strip_prefix(b"flow")?;
    Some(u32::from_be_bytes(number.try_into().ok()?))
}

/// Every packet of a stream, in order.
struct Log(Vec<Sent>);

impl Log {
    fn between(&self, from: Instant, to: Instant) -> impl Iterator<Item = &Sent> {
        self.0.iter().filter(move |sent| sent.at >= from && sent.at < to)
    }

    /// Which end each flow went to in that time; none was lost and none moved.
    fn steady(&self, from: Instant, to: Instant, what: &str) -> BTreeMap<u16, usize> {
        let mut flows = BTreeMap::new();
        for sent in self.between(from, to) {
            let at = sent.arrived.unwrap_or_else(|| panic!("{what}: lost {:?} in", sent.at - from));
            assert_eq!(*flows.entry(sent.flow).or_insert(at), at, "{what}: flow {} moved", sent.flow);
        }
        assert_eq!(flows.len(), usize::from(FLOWS), "{what}");
        flows
    }

    /// How long after `from` the last packet was sent that did not arrive at what `wanted` says for its flow.
    fn settled(&self, from: Instant, to: Instant, wanted: &BTreeMap<u16, usize>) -> Duration {
        let wrong = self.between(from, to).filter(|sent| sent.arrived != wanted.get(&sent.flow).copied());
        wrong.last().map_or(Duration::ZERO, |sent| sent.at - from)
    }
}

fn next_hop(node: &TestNode, name: &str) -> Value {
    let status = node.status().unwrap();
    let all = status["next_hops"].as_array().unwrap().clone();
    all.into_iter().find(|hop| hop["next_hop"] == name).unwrap()
}

/// Waits until a next hop's state is as wanted; returns what the status says of it then.
fn wait_for(node: &TestNode, name: &str, state: &str, bound: Duration) -> Value {
    let begun = Instant::now();
    loop {
        let hop = next_hop(node, name);
        if hop["state"] == state {
            return hop;
        }
        assert!(begun.elapsed() < bound, "{hop} is not {state}");
        thread::sleep(5 * PACE);
    }
}

#[test]
fn flows_of_a_dead_link_go_by_the_other_and_come_back() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    let daemon = running(&node, &both("pass"));
    // Switched off here, and by the other end, which takes the carrier away.
    for (what, namespace, device) in
        [("link down", &lab.router, "upa"), ("carrier lost", &lab.upstream(0).unwrap().namespace, "eth0")]
    {
        let traffic = Traffic::start(&lab, &[&lab.upstreams[0].namespace, &lab.upstreams[1].namespace]);
        thread::sleep(SECOND);
        let down = Instant::now();
        namespace.set_up(device, false).unwrap();
        thread::sleep(2 * SECOND);
        let up = Instant::now();
        namespace.set_up(device, true).unwrap();
        thread::sleep(3 * SECOND);
        let log = traffic.stop();
        let end = up + 5 * SECOND / 2;
        let before = log.steady(down - SECOND / 2, down, what);
        assert!(before.values().any(|at| *at == 0) && before.values().any(|at| *at == 1), "{before:?}");
        let all_b = before.keys().map(|flow| (*flow, 1)).collect();
        let gone = log.settled(down, up, &all_b);
        let back = log.settled(up, end, &before);
        println!("{what}: all flows by the other after {gone:?}; back after {back:?}");
        assert!(gone < SECOND && back < SECOND, "{what}: {gone:?} {back:?}\n{}", daemon.log());
        for sent in log.between(down - SECOND / 2, end).filter(|sent| before[&sent.flow] == 1) {
            assert_eq!(sent.arrived, Some(1), "{what}: a flow of the other member, {:?} after", sent.at - down);
        }
    }
}

#[test]
fn a_daemon_that_dies_leaves_what_it_knew_and_its_successor_converges() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    let daemon = running(&node, &both("pass"));
    wait_for(&node, "probe/edge-a", "up", SECOND);
    lab.router.set_up("upa", false).unwrap();
    wait_for(&node, "probe/edge-a", "down", SECOND);
    assert_eq!(daemon.stop(Signal::KILL), None);
    let ends = [&lab.upstreams[0].namespace, &lab.upstreams[1].namespace];
    let traffic = Traffic::start(&lab, &ends);
    thread::sleep(SECOND / 2);
    let begun = Instant::now();
    let daemon = Daemon::start(&node);
    thread::sleep(SECOND / 2);
    let log = traffic.stop();
    let flows = log.steady(log.0[0].at, Instant::now(), "with nobody there, and through the start");
    assert!(flows.values().all(|at| *at == 1), "{flows:?}");
    println!("successor ready after {:?}", begun.elapsed());
    // And what changed while nobody was there.
    assert_eq!(daemon.stop(Signal::KILL), None);
    lab.router.set_up("upa", true).unwrap();
    lab.router.set_up("upb", false).unwrap();
    let daemon = Daemon::start(&node);
    wait_for(&node, "probe/edge-a", "up", SECOND);
    wait_for(&node, "probe/edge-b", "down", SECOND);
    drop(daemon);
}
