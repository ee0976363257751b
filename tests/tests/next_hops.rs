//! Next hops that go down under traffic, and come back.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use fib::packet::Tags;
use fib::{Image, Ingress, Neighbour, Reach, ReachWords, Reason};
use rustix::process::Signal;
use serde_json::Value;
use wayleave::compile::{LiveIds, NodeFacts, compile};
use wayleave::kernel::tables::Tables;
use wayleave::kernel::watch::{Event, Watch};
use wayleave::policy::validate;
use wayleave::source::{Limits, read_directory};
use wayleave_tests::{
    Daemon, Namespace, Packet, PacketSocket, Seen, TestNode, Topology, attach_xdp_pass, require_root_and_bpf, veth,
};

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
                        Ok(None) | Err(_) if last => return,
                        Ok(None) => last = ending,
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
        let before = log.steady(down.checked_sub(SECOND / 2).unwrap(), down, what);
        assert!(before.values().any(|at| *at == 0) && before.values().any(|at| *at == 1), "{before:?}");
        let all_b = before.keys().map(|flow| (*flow, 1)).collect();
        let gone = log.settled(down, up, &all_b);
        let back = log.settled(up, end, &before);
        println!("{what}: all flows by the other after {gone:?}; back after {back:?}");
        assert!(gone < SECOND && back < SECOND, "{what}: {gone:?} {back:?}\n{}", daemon.log());
        for sent in log.between(down.checked_sub(SECOND / 2).unwrap(), end).filter(|sent| before[&sent.flow] == 1) {
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

/// Notes when the kernel says of `ip` that it failed, and when that it is usable again.
fn watch_neighbour(namespace: &Namespace, ip: IpAddr, stop: &AtomicBool, news: &Mutex<Vec<(Instant, bool)>>) {
    namespace
        .enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut watch = Watch::open().unwrap();
                while !stop.load(Ordering::Relaxed) {
                    let Ok(event) = tokio::time::timeout(20 * PACE, watch.next()).await else { continue };
                    if let Event::Neighbour(neighbour) = event.unwrap()
                        && neighbour.ip == ip
                    {
                        let usable = neighbour.usable_mac().is_some();
                        let mut news = news.lock().unwrap();
                        if news.last().is_none_or(|(_, was)| *was != usable) {
                            news.push((Instant::now(), usable));
                        }
                    }
                }
            });
        })
        .unwrap();
}

#[test]
fn a_neighbour_that_dies_behind_a_bridge_is_found_out_and_avoided() {
    let lab = lab();
    let (switch, far) = (Namespace::new("switch").unwrap(), Namespace::new("far").unwrap());
    veth(&lab.router, "upc", &switch, "p0").unwrap();
    veth(&switch, "p1", &far, "eth0").unwrap();
    switch
        .ip_batch("link add br0 type bridge\nlink set p0 master br0\nlink set p1 master br0\nlink set br0 up\n")
        .unwrap();
    lab.router.add_address("upc", "10.78.1.1/24").unwrap();
    far.add_address("eth0", "10.78.1.2/24").unwrap();
    lab.router.sysctl("net/ipv4/neigh/upc/retrans_time_ms", "200").unwrap();
    let mut node = TestNode::router(&lab).unwrap();
    node.set_port("uplink-a", "upc").unwrap();
    let daemon = running(&node, &both("pass").replace("10.77.1.2", "10.78.1.2"));
    let stop = AtomicBool::new(false);
    let news = Mutex::new(Vec::new());
    let (died, revived, log) = thread::scope(|scope| {
        scope.spawn(|| watch_neighbour(&lab.router, "10.78.1.2".parse().unwrap(), &stop, &news));
        let traffic = Traffic::start(&lab, &[&far, &lab.upstreams[1].namespace]);
        thread::sleep(2 * SECOND);
        let died = Instant::now();
        far.set_up("eth0", false).unwrap();
        // Five seconds to the next probe at most, and three probes.
        thread::sleep(8 * SECOND);
        let hop = next_hop(&node, "probe/edge-a");
        assert_eq!((&hop["state"], &hop["why"]), (&"down".into(), &"neighbour 10.78.1.2 failed".into()), "{hop}");
        let revived = Instant::now();
        far.set_up("eth0", true).unwrap();
        thread::sleep(5 * SECOND);
        stop.store(true, Ordering::Relaxed);
        (died, revived, traffic.stop())
    });
    let news = news.into_inner().unwrap();
    let failed = news.iter().find(|(at, usable)| *at > died && !usable).expect("the kernel found out").0;
    let answered = news.iter().find(|(at, usable)| *at > revived && *usable).expect("the kernel found it again").0;
    let before = log.steady(died.checked_sub(SECOND / 2).unwrap(), died, "before");
    let all_b = before.keys().map(|flow| (*flow, 1)).collect();
    let gone = log.settled(failed, revived, &all_b);
    let back = log.settled(answered, answered + 2 * SECOND, &before);
    println!(
        "died to FAILED {:?}, then avoided after {gone:?}; revived to answered {:?}, then back after {back:?}",
        failed - died,
        answered - revived
    );
    assert!(failed - died < 6 * SECOND, "probed every five seconds");
    assert!(gone < SECOND && back < SECOND, "{}", daemon.log());
    assert!(answered - revived < 4 * SECOND, "asked for again and again");
}

#[test]
fn all_down_is_counted_and_shown_as_the_policy_says() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    let daemon = running(&node, &both("pass"));
    wait_for(&node, "probe/edge-a", "up", SECOND);
    assert_eq!(node.status().unwrap()["state"], "forwarding");
    let quiet = node.succeed(&["plan"]).unwrap().stdout;
    assert!(!quiet.contains("Runtime"), "{quiet}");
    // The far ends go: the carrier is lost, and the router's addresses stay.
    lab.upstreams[0].namespace.set_up("eth0", false).unwrap();
    wait_for(&node, "probe/edge-a", "down", SECOND);
    let status = node.status().unwrap();
    assert_eq!((&status["state"], &status["health"]["reason"]), (&"degraded".into(), &"next-hop-down".into()));
    let group = &status["degraded_groups"][0];
    assert_eq!((&group["weight"], &group["weight_down"], &group["routes"]), (&4.into(), &3.into(), &1.into()));
    lab.upstreams[1].namespace.set_up("eth0", false).unwrap();
    let hop = wait_for(&node, "probe/edge-b", "down", SECOND);
    assert_eq!((&hop["why"], &hop["device"]), (&"link upb down".into(), &"upb".into()));
    assert!(hop["since"].as_str().is_some_and(|since| since.starts_with("20")), "{hop}");

    let socket = PacketSocket::open(&lab.client.namespace, "eth0").unwrap();
    for (policy, counter) in [("pass", "pass/all-down"), ("drop", "drop/all-down-drop")] {
        node.write("probe.yaml", &both(policy)).unwrap();
        let begun = Instant::now();
        while node.status().unwrap()["degraded_groups"][0]["on_all_down"] != policy {
            assert!(begun.elapsed() < 5 * SECOND, "{}", daemon.log());
            thread::sleep(20 * PACE);
        }
        let before = node.counters().unwrap();
        for flow in 0..FLOWS {
            socket.send(&flow_packet(&lab, flow, b"all down")).unwrap();
        }
        thread::sleep(SECOND / 5);
        let counted = node.counters().unwrap().since(&before);
        assert_eq!(counted.get(counter), u64::from(FLOWS), "{policy}: {counted:?}");
    }

    // Beside the plan, not in it.
    let plan = node.run(&["plan", "--detailed-exitcode"]).unwrap();
    assert_eq!(plan.code, Some(0), "{plan:?}");
    assert!(plan.stdout.starts_with("No changes."), "{}", plan.stdout);
    let (_, runtime) = plan.stdout.split_once("\nRuntime (not part of the plan):\n").unwrap();
    assert!(runtime.starts_with("  next hop probe/edge-a is down since 20"), "{runtime}");
    assert!(runtime.contains("(link upa down)") && runtime.contains("4 of 4 weight down for route 198.51.100.0/24"));
    let json: Value = serde_json::from_str(&node.succeed(&["plan", "--format", "json"]).unwrap().stdout).unwrap();
    assert_eq!(json["changes"].as_array().map(Vec::len), Some(0));
    assert_eq!(json["runtime"]["next_hops"].as_array().map(Vec::len), Some(2), "{json}");
    let human = node.succeed(&["status"]).unwrap().stdout;
    assert!(human.contains("next hops   0 up, 2 down, 0 unknown"), "{human}");
    assert!(human.contains("probe/edge-b via 10.77.2.2 on port uplink-b (upb): down since 20"), "{human}");
    // A port whose device is gone altogether.
    lab.router.ip("link delete upa").unwrap();
    let begun = Instant::now();
    while next_hop(&node, "probe/edge-a")["why"] != "port uplink-a has no device" {
        assert!(begun.elapsed() < SECOND, "{}", next_hop(&node, "probe/edge-a"));
        thread::sleep(20 * PACE);
    }
}

/// Sends a burst while the next hop's entry is gone and it does not answer for a while; returns how many arrive.
fn burst(lab: &Topology, packets: usize) -> usize {
    let a = lab.upstream(0).unwrap();
    let mut receiver = PacketSocket::open(&a.namespace, "eth0").unwrap();
    let sender = PacketSocket::open(&lab.client.namespace, "eth0").unwrap();
    let frame = flow_packet(lab, 0, b"burst");
    a.namespace.sysctl("net/ipv4/conf/all/arp_ignore", "8").unwrap();
    // There may be none.
    let _ = lab.router.ip("neighbour delete 10.77.1.2 dev upa");
    for _ in 0..packets {
        sender.send(&frame).unwrap();
    }
    thread::sleep(SECOND / 10);
    a.namespace.sysctl("net/ipv4/conf/all/arp_ignore", "0").unwrap();
    receiver.receive_all(SECOND, |frame| frame.ends_with(b"burst")).unwrap().len()
}

#[test]
fn a_burst_to_an_unresolved_next_hop_loses_no_more_than_the_kernel() {
    const PACKETS: usize = 100;
    let lab = lab();
    lab.route_in_kernel("198.51.100.0/24", lab.upstream(0).unwrap()).unwrap();
    lab.router.sysctl("net/ipv4/neigh/upa/retrans_time_ms", "200").unwrap();
    let node = TestNode::router(&lab).unwrap();
    let one = both("pass").replace("{name: edge-a, weight: 3}, {name: edge-b, weight: 1}", "{name: edge-a}");
    let one = one.replace("    - {name: edge-b, via: 10.77.2.2, port: uplink-b}\n", "");
    // The kernel's queue as it is, and one that is too short for the burst.
    for queue in ["212992", "20480"] {
        lab.router.sysctl("net/ipv4/neigh/upa/unres_qlen_bytes", queue).unwrap();
        let kernel = burst(&lab, PACKETS);
        // The queue counts memory, and a veth with any XDP program has larger buffers.
        let program = attach_xdp_pass(&lab.router, "lan").unwrap();
        let with_xdp = burst(&lab, PACKETS);
        drop(program);
        // Known until now: its MAC stays in use while it is asked for.
        let daemon = running(&node, &one);
        wait_for(&node, "probe/edge-a", "up", SECOND);
        let known = burst(&lab, PACKETS);
        wait_for(&node, "probe/edge-a", "up", 3 * SECOND);
        // Never known: the packets go to the kernel, which keeps them.
        assert_eq!(daemon.stop(Signal::TERM), Some(0));
        let unknown = lab
            .router
            .enter(|| {
                let library = node.library().unwrap();
                let observed = library.observe().unwrap();
                let view = observed.live.as_ref().unwrap().image.view().unwrap();
                let id = view.next_hop(0).id;
                Tables::open(&library.pins).unwrap().set_reach(id, &Reach::Unknown).unwrap();
            })
            .map(|()| burst(&lab, PACKETS))
            .unwrap();
        node.succeed(&["detach", "--auto-approve"]).unwrap();
        println!(
            "queue of {queue} bytes: of {PACKETS} arrive {kernel} by the kernel, {with_xdp} with an XDP program that does nothing, {known} known before, {unknown} unknown"
        );
        assert!(known >= kernel, "{kernel} {known}");
        // Where the queue is too short for the burst, buffers of another size may cost the last packets.
        let short = if kernel == PACKETS { 0 } else { 3 };
        assert!(unknown + short >= with_xdp, "{kernel} {with_xdp} {known} {unknown}");
    }
}

fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    // utime and stime, in ticks of 1/100 s.
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

#[test]
fn a_flapping_link_keeps_nobody_busy() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    let daemon = running(&node, &both("pass"));
    wait_for(&node, "probe/edge-a", "up", SECOND);
    let stop = AtomicBool::new(false);
    let begun = Instant::now();
    let cpu = cpu_seconds(daemon.pid());
    let (flaps, rewrites) = thread::scope(|scope| {
        let flapping = scope.spawn(|| {
            let mut flaps = 0u32;
            while begun.elapsed() < 4 * SECOND {
                // As fast as it goes, and as slow as every look sees another state.
                lab.upstreams[0].namespace.ip_batch(&"link set eth0 down\nlink set eth0 up\n".repeat(10)).unwrap();
                for up in [false, true, false, true] {
                    lab.upstreams[0].namespace.set_up("eth0", up).unwrap();
                    thread::sleep(25 * PACE);
                }
                flaps += 12;
            }
            stop.store(true, Ordering::Relaxed);
            flaps
        });
        let watching = || {
            let library = node.library().unwrap();
            let observed = library.observe().unwrap();
            let view = observed.live.as_ref().unwrap().image.view().unwrap();
            let id = view.next_hops().find(|hop| hop.name == "edge-a").unwrap().id;
            let tables = Tables::open(&library.pins).unwrap();
            let (mut rewrites, mut last) = (0u32, tables.reach(id).unwrap());
            while !stop.load(Ordering::Relaxed) {
                let now = tables.reach(id).unwrap();
                rewrites += u32::from(now != last);
                last = now;
                thread::sleep(PACE / 2);
            }
            rewrites
        };
        let rewrites = lab.router.enter(watching).unwrap();
        (flapping.join().unwrap(), rewrites)
    });
    let took = begun.elapsed().as_secs_f64();
    let busy = (cpu_seconds(daemon.pid()) - cpu) / took;
    println!("{flaps} flaps in {took:.1} s: {rewrites} rewrites seen, daemon at {:.0} % of a core", busy * 100.0);
    assert!(f64::from(rewrites) <= 50.0 * took, "{rewrites}");
    assert!(busy < 0.5, "{busy}");
    wait_for(&node, "probe/edge-a", "up", 3 * SECOND);
}

/// A node that knows every next hop but those that are down.
struct Reaches<'d> {
    down: &'d [u32],
}

impl fib::Node for Reaches<'_> {
    fn ingress(&self, _tags: Tags) -> Option<Ingress> {
        Some(Ingress { mac: 2, port: 0 })
    }

    fn reach(&self, id: u32) -> ReachWords {
        if self.down.contains(&id) { Reach::Down } else { Reach::Up(Neighbour::default()) }.encode()
    }

    fn ask<I: Image + ?Sized>(&self, _image: &I, _at: u32, _port: u32) -> Option<Neighbour> {
        None
    }
}

#[test]
fn what_is_left_of_a_group_keeps_its_flows_and_its_weights() {
    const ALL: u32 = 100_000;
    const WEIGHTS: [u32; 4] = [4, 3, 2, 1];
    let directory = tempfile::tempdir().unwrap();
    let hops: String = (1..=4).map(|n| format!("    - {{name: e{n}, via: 192.0.2.{n}, port: p}}\n")).collect();
    let members: Vec<_> = (1..).zip(WEIGHTS).map(|(n, weight)| format!("{{name: e{n}, weight: {weight}}}")).collect();
    let policy = format!(
        "apiVersion: wayleave/v1\nkind: RoutePolicy\nmetadata: {{name: p}}\nspec:\n  nextHops:\n{hops}  routes:\n    - \
         {{prefix: 198.51.100.0/24, nextHops: [{}]}}\n",
        members.join(", ")
    );
    std::fs::write(directory.path().join("p.yaml"), policy).unwrap();
    let policy = validate(&read_directory(directory.path(), &Limits::default()).unwrap()).policy.unwrap();
    let image = compile(&policy, &NodeFacts::default(), &LiveIds::default()).unwrap();
    let view = image.view().unwrap();
    let ids: Vec<u32> = view.next_hops().map(|hop| hop.id).collect();
    let chosen = |down: &[u32]| -> Vec<Option<u32>> {
        let flow = |flow: u32| {
            let source = IpAddr::from((0x0a00_0000 + flow).to_be_bytes());
            let packet = Packet::between(source, "198.51.100.9".parse().unwrap());
            let frame =
                packet.macs(wayleave_tests::Mac::default(), wayleave_tests::Mac([2, 0, 0, 0, 0, 0])).udp(1, 2).frame();
            let decision = fib::decide(view.bytes(), &frame[..], &Reaches { down });
            let expected = if down.len() == ids.len() { Reason::AllDown } else { Reason::Forwarded };
            assert_eq!(decision.reason(), expected);
            decision.next_hop
        };
        (0..ALL).map(flow).collect()
    };
    let before = chosen(&[]);
    for set in 1..1u32 << ids.len() {
        let is_down = |row: u32| set >> row & 1 == 1;
        let down: Vec<u32> = (0..).zip(&ids).filter(|(row, _)| is_down(*row)).map(|(_, id)| *id).collect();
        let after = chosen(&down);
        if down.len() == ids.len() {
            assert!(after.iter().all(Option::is_none));
            continue;
        }
        let mut counts = [0u32; 4];
        for (was, is) in before.iter().zip(&after) {
            let (was, is) = (was.unwrap(), is.unwrap());
            assert!(!is_down(is), "set {set:#b}");
            assert!(is_down(was) || was == is, "set {set:#b}: a flow moved whose member is up");
            counts[is as usize] += 1;
        }
        let up: u32 = (0..).zip(WEIGHTS).filter(|(row, _)| !is_down(*row)).map(|(_, weight)| weight).sum();
        for (row, (weight, count)) in (0..).zip(WEIGHTS.into_iter().zip(counts)).filter(|(row, _)| !is_down(*row)) {
            let (share, wanted) = (f64::from(count) / f64::from(ALL), f64::from(weight) / f64::from(up));
            assert!((share - wanted).abs() < 0.01, "set {set:#b}: member {row} has {share:.4}, not {wanted:.4}");
        }
    }
}
