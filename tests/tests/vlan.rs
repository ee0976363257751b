//! Ports that are VLANs of a trunk: which frames belong to them, and what frames that leave by them look like.
//!
//! The kernel must have VLAN devices (`CONFIG_VLAN_8021Q`), so `tests/kernels.rs` runs this in its virtual machines.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use wayleave_tests::{
    Daemon, Host, Offload, Packet, PacketSocket, Seen, TestNode, Topology, ping, require_root_and_bpf,
};

const SECOND: Duration = Duration::from_secs(1);
const QUIET: Duration = Duration::from_millis(150);

/// The trunk is the router's `upa`: untagged it is `uplink-a`, and above it lie
///
/// ```text
/// office  802.1Q 100          10.78.100.0/24
/// shop    802.1Q 200          10.78.200.0/24
/// outer 802.1ad 300         no port, no address
/// deep    802.1Q 7 in outer 10.78.7.0/24
/// other   802.1Q 400          10.78.144.0/24, no port
/// ```
///
/// each with address .1 on the router and .2 at the other end.
const VLANS: [(&str, &str, &str, &str); 5] = [
    ("upa", "office", "id 100", "10.78.100"),
    ("upa", "shop", "id 200", "10.78.200"),
    ("upa", "outer", "proto 802.1ad id 300", ""),
    ("outer", "deep", "id 7", "10.78.7"),
    ("upa", "other", "id 400", "10.78.144"),
];

const POLICY: &str = "\
apiVersion: wayleave/v1
kind: RoutePolicy
metadata: {name: trunk}
spec:
  nextHops:
    - {name: shop, via: 10.78.200.2, port: shop}
    - {name: deep, via: 10.78.7.2, port: deep}
    - {name: plain, via: 10.77.1.2, port: uplink-a}
    - {name: lan, via: 10.77.0.2, port: lan}
  routes:
    - {prefix: 198.51.100.0/24, nextHops: [{name: shop}]}
    - {prefix: 203.0.113.0/24, nextHops: [{name: deep}]}
    - {prefix: 198.18.5.0/24, nextHops: [{name: plain}]}
    - {prefix: 198.18.6.0/24, nextHops: [{name: lan}]}
";

fn lab() -> Topology {
    require_root_and_bpf().unwrap();
    let lab = Topology::router().unwrap();
    let far = trunk(&lab);
    for prefix in ["198.51.100.0/24", "203.0.113.0/24"] {
        far.namespace.ip(&format!("route delete local {prefix} dev lo")).unwrap();
    }
    for (namespace, trunk, own) in [(&lab.router, "upa", 1), (&far.namespace, "eth0", 2)] {
        for (below, name, kind, net) in VLANS {
            let below = if below == "upa" { trunk } else { below };
            namespace.ip(&format!("link add link {below} name {name} type vlan {kind}")).unwrap();
            namespace.set_up(name, true).unwrap();
            if !net.is_empty() {
                namespace.add_address(name, &format!("{net}.{own}/24")).unwrap();
            }
        }
    }
    lab
}

fn trunk(lab: &Topology) -> &Host {
    lab.upstream(0).unwrap()
}

/// A node with the ports lan, uplink-a, uplink-b, office, shop and deep.
fn node<'n>(lab: &'n Topology, attach: &'static str) -> TestNode<'n> {
    let mut node = TestNode::router(lab).unwrap();
    for port in ["office", "shop", "deep"] {
        node.set_port(port, port).unwrap();
        node.set_attach(port, attach).unwrap();
    }
    node.set_attach("uplink-a", attach).unwrap();
    node.write("trunk.yaml", POLICY).unwrap();
    node
}

/// Sends a packet from the other end of the trunk, tagged by `tags`, outermost first and with `true` for 802.1ad.
fn send(lab: &Topology, tags: &[(bool, u16)], destination: &str, payload: &[u8]) {
    let far = trunk(lab);
    let mut packet = Packet::between("10.78.100.2".parse().unwrap(), destination.parse().unwrap())
        .macs(far.mac, far.router_mac)
        .udp(4000, 9)
        .payload(payload);
    for (service, id) in tags {
        packet = if *service { packet.service_vlan(*id) } else { packet.vlan(*id) };
    }
    PacketSocket::open(&far.namespace, "eth0").unwrap().send(&packet.frame()).unwrap();
}

fn arrival(socket: &mut PacketSocket, payload: &[u8], timeout: Duration) -> Option<Seen> {
    let wanted = |frame: &[u8]| Seen::parse(frame).is_some_and(|seen| seen.payload.starts_with(payload));
    socket.receive(timeout, wanted).unwrap().map(|frame| Seen::parse(&frame).unwrap())
}

/// What comes back on the trunk, or goes to the client, for a packet with these tags.
fn check(lab: &Topology, tags: &[(bool, u16)], destination: &str, on: &Host, vlans: &[u16]) {
    let payload = format!("{tags:?} {destination}").into_bytes();
    let mut socket = PacketSocket::open(&on.namespace, "eth0").unwrap();
    send(lab, tags, destination, &payload);
    let seen = arrival(&mut socket, &payload, SECOND).unwrap_or_else(|| panic!("{tags:?} to {destination} is lost"));
    assert_eq!((seen.ttl, seen.checksums_hold, &seen.vlans[..]), (63, true, vlans), "{tags:?} to {destination}");
    assert_eq!((seen.source_mac, seen.destination_mac), (on.router_mac, on.mac), "{tags:?} to {destination}");
}

/// Tags of what comes from there; what is sent there, where it arrives and with which identifiers.
type Side<'t> = (&'t [(bool, u16)], &'t str, &'t Host, &'t [u16]);

fn every_pair(lab: &Topology) {
    let sides: [Side; 5] = [
        (&[], "198.18.5.1", trunk(lab), &[]),
        (&[(false, 100)], "", trunk(lab), &[]),
        (&[(false, 200)], "198.51.100.1", trunk(lab), &[200]),
        (&[(true, 300), (false, 7)], "203.0.113.1", trunk(lab), &[300, 7]),
        (&[], "198.18.6.1", &lab.client, &[]),
    ];
    for (tags, ..) in sides {
        for (_, destination, on, vlans) in sides.iter().filter(|side| !side.1.is_empty()) {
            check(lab, tags, destination, on, vlans);
        }
    }
}

fn mode(node: &TestNode, port: &str) -> Value {
    let status = node.status().unwrap();
    let all = status["interfaces"].as_array().unwrap();
    all.iter().find(|one| one["port"] == port).unwrap_or_else(|| panic!("no {port} in {status:#}")).clone()
}

fn forwards_between_vlans(attach: &'static str) {
    let lab = lab();
    let node = node(&lab, attach);
    node.apply().unwrap();
    assert_eq!(mode(&node, "deep")["mode"], attach);
    let before = node.counters().unwrap();
    every_pair(&lab);
    // The kernel has no route to any of these: the program forwarded them all.
    assert_eq!(node.counters().unwrap().since(&before).get("forward/forwarded"), 20);
}

#[test]
#[ignore = "needs the 8021q module; tests/kernels.rs runs it"]
fn packets_change_vlans_by_native_xdp() {
    forwards_between_vlans("native");
}

#[test]
#[ignore = "needs the 8021q module; tests/kernels.rs runs it"]
fn packets_change_vlans_by_generic_xdp() {
    forwards_between_vlans("generic");
}

#[test]
#[ignore = "needs the 8021q module; tests/kernels.rs runs it"]
fn packets_change_vlans_by_tc() {
    forwards_between_vlans("tc");
}

#[test]
#[ignore = "needs the 8021q module; tests/kernels.rs runs it"]
fn other_vlans_of_the_trunk_are_the_kernels() {
    let lab = lab();
    let node = node(&lab, "auto");
    node.apply().unwrap();
    let before = node.counters().unwrap();
    assert!(ping(&trunk(&lab).namespace, "10.78.144.1".parse().unwrap(), SECOND).unwrap().is_some());
    // Neither a VLAN that nobody has, nor the outer tag of a port alone.
    for tags in [&[(false, 999)][..], &[(true, 300)], &[(true, 300), (false, 8)], &[(false, 7)]] {
        let mut socket = PacketSocket::open(&lab.client.namespace, "eth0").unwrap();
        send(&lab, tags, "198.18.6.1", b"stranger");
        assert!(arrival(&mut socket, b"stranger", QUIET).is_none(), "{tags:?}");
    }
    let counted = node.counters().unwrap().since(&before);
    assert!(counted.get("pass/vlan") >= 5, "{counted:?}");
    assert_eq!(counted.get("forward/forwarded"), 0, "{counted:?}");
}

/// Waits until `status` says this of a next hop.
fn wait_for(node: &TestNode, next_hop: &str, state: &str) {
    let deadline = Instant::now() + 5 * SECOND;
    loop {
        let status = node.status().unwrap();
        let hop =
            status["next_hops"].as_array().and_then(|all| all.iter().find(|hop| hop["next_hop"] == next_hop).cloned());
        if hop.as_ref().is_some_and(|hop| hop["state"] == state) {
            return;
        }
        assert!(Instant::now() < deadline, "{next_hop} is not {state}: {hop:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
#[ignore = "needs the 8021q module; tests/kernels.rs runs it"]
fn a_vlan_that_goes_away_takes_only_its_port_along() {
    let lab = lab();
    let node = node(&lab, "auto");
    let _daemon = Daemon::start(&node);
    check(&lab, &[(false, 100)], "198.51.100.1", trunk(&lab), &[200]);
    lab.router.ip("link delete shop").unwrap();
    wait_for(&node, "trunk/shop", "down");
    check(&lab, &[(false, 100)], "203.0.113.1", trunk(&lab), &[300, 7]);
    // It comes back with another identifier.
    lab.router.ip("link add link upa name shop type vlan id 201").unwrap();
    trunk(&lab).namespace.ip("link add link eth0 name shop201 type vlan id 201").unwrap();
    trunk(&lab).namespace.ip("address flush dev shop").unwrap();
    for (namespace, name, address) in
        [(&lab.router, "shop", "10.78.200.1/24"), (&trunk(&lab).namespace, "shop201", "10.78.200.2/24")]
    {
        namespace.set_up(name, true).unwrap();
        namespace.add_address(name, address).unwrap();
    }
    wait_for(&node, "trunk/shop", "up");
    check(&lab, &[(false, 100)], "198.51.100.1", trunk(&lab), &[201]);
    check(&lab, &[(false, 201)], "203.0.113.1", trunk(&lab), &[300, 7]);
    // The identifier that it had belongs to nobody.
    let mut socket = PacketSocket::open(&trunk(&lab).namespace, "eth0").unwrap();
    send(&lab, &[(false, 200)], "203.0.113.1", b"former");
    let former = arrival(&mut socket, b"former", QUIET);
    assert!(former.is_none(), "{former:?}");
}

#[test]
#[ignore = "needs the 8021q module; tests/kernels.rs runs it"]
fn a_trunk_may_carry_vlans_only_and_ports_come_and_go() {
    let lab = lab();
    let mut node = node(&lab, "auto");
    node.remove_port("uplink-a").unwrap();
    node.write("trunk.yaml", &POLICY.replace("port: uplink-a", "port: uplink-b").replace("10.77.1.2", "10.77.2.2"))
        .unwrap();
    node.apply().unwrap();
    check(&lab, &[(false, 100)], "198.51.100.1", trunk(&lab), &[200]);
    let mut socket = PacketSocket::open(&lab.client.namespace, "eth0").unwrap();
    send(&lab, &[], "198.18.6.1", b"untagged");
    assert!(arrival(&mut socket, b"untagged", QUIET).is_none());
    // Another of the trunk's ports leaves: the program stays on it for the others.
    node.remove_port("office").unwrap();
    node.apply().unwrap();
    check(&lab, &[(false, 200)], "203.0.113.1", trunk(&lab), &[300, 7]);
    send(&lab, &[(false, 100)], "198.18.6.1", b"office");
    assert!(arrival(&mut socket, b"office", QUIET).is_none());
}

#[test]
#[ignore = "needs the 8021q module; tests/kernels.rs runs it"]
fn trace_and_the_loaded_program_agree_on_a_vlan() {
    let lab = lab();
    let node = node(&lab, "auto");
    node.apply().unwrap();
    // Both ends are known before the trace.
    check(&lab, &[(false, 100)], "203.0.113.1", trunk(&lab), &[300, 7]);
    let arguments = ["trace", "--src", "10.78.100.2", "--dst", "203.0.113.1", "--in-port", "deep", "--kernel"];
    let text = node.succeed(&arguments).unwrap().stdout;
    assert!(text.contains("in by deep"), "{text}");
    assert!(text.contains("device deep"), "{text}");
    assert!(text.contains("tags s300.7"), "{text}");
    assert!(text.contains("kernel    agrees: forward, forwarded; frame leaves by deep, 62 bytes"), "{text}");
}

#[test]
#[ignore = "needs the 8021q module; tests/kernels.rs runs it"]
fn tags_that_the_device_hides_are_seen_by_tc_only() {
    let lab = lab();
    lab.router.set_offload("upa", Offload::Vlan, true).unwrap();
    trunk(&lab).namespace.set_offload("eth0", Offload::Vlan, true).unwrap();
    let mut node = node(&lab, "auto");
    let said = node.apply().unwrap();
    assert_eq!(mode(&node, "deep")["mode"], "tc");
    assert!(said.stderr.contains("rxvlan"), "{said:?}");
    every_pair(&lab);
    for port in ["uplink-a", "office", "shop", "deep"] {
        node.set_attach(port, "native").unwrap();
    }
    let refused = node.run(&["apply", "--auto-approve"]).unwrap();
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("ethtool -K upa rxvlan off"), "{refused:?}");
    every_pair(&lab);
}

#[test]
#[ignore = "needs the 8021q module; tests/kernels.rs runs it"]
fn a_port_that_cannot_be_taken_from_the_wire_is_refused_with_the_reason() {
    let lab = lab();
    let mut node = node(&lab, "auto");
    lab.router.ip("link add link deep name deeper type vlan id 9").unwrap();
    lab.router.set_up("deeper", true).unwrap();
    node.set_port("deeper", "deeper").unwrap();
    let refused = node.run(&["apply", "--auto-approve"]).unwrap();
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(
        refused.stderr.contains("port `deeper`: outer is the third VLAN in a frame; two are the most"),
        "{refused:?}"
    );
}
