#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use fib::layout::AT_V4_FIB;
use fib::packet::Tags;
use fib::{Ingress, Node, ReachWords};

use super::*;
use crate::compile::{Image, LiveIds, NodeFacts, compile};
use crate::policy::{Action, NextHop, NextHopGroup, OnAllDown, Origin, Policy, Route, RoutePolicy};

/// `on_all_down` is that of the first group, of edge-a and edge-b.
fn image(on_all_down: OnAllDown) -> Image {
    let hop = |name: &str, via: IpAddr, line| NextHop {
        name: name.to_owned(),
        via,
        port: "uplink".to_owned(),
        origin: Origin { file: 0, line },
    };
    let routes = [
        ("10.20.0.0/16", Action::Forward(0)),
        ("10.20.9.0/24", Action::Forward(1)),
        ("192.0.2.0/24", Action::Pass),
        ("203.0.113.0/24", Action::Drop),
        ("2001:db8:1::/48", Action::Forward(2)),
    ];
    let route = |(line, (prefix, action)): (u32, (&str, Action))| Route {
        prefix: prefix.parse().unwrap(),
        action,
        origin: Origin { file: 1, line },
    };
    let policy = Policy {
        revision: "main@sha1:0123".to_owned(),
        files: vec!["branch.yaml".to_owned(), "lists/all.txt".to_owned()],
        filter_policies: vec![],
        service_policies: Vec::new(),
        route_policies: vec![RoutePolicy {
            probes: vec![],
            name: "branch-offices".to_owned(),
            owner: None,
            nodes: crate::policy::Selector::default(),
            origin: Origin { file: 0, line: 1 },
            next_hops: vec![
                hop("edge-a", Ipv4Addr::new(192, 0, 2, 1).into(), 6),
                hop("edge-b", Ipv4Addr::new(192, 0, 2, 2).into(), 7),
                hop("edge-6", "2001:db8::1".parse::<Ipv6Addr>().unwrap().into(), 8),
            ],
            groups: [vec![(0, 3), (1, 1)], vec![(1, 1)], vec![(2, 1)]]
                .map(|members| NextHopGroup {
                    on_all_down: if members.len() > 1 { on_all_down } else { OnAllDown::Pass },
                    members,
                })
                .into(),
            routes: (1..).zip(routes).map(route).collect(),
        }],
    };
    let node = NodeFacts { local_addresses: vec![[10, 20, 0, 1].into()], ..NodeFacts::default() };
    let mut image = compile(&policy, &node, &LiveIds::default()).unwrap();
    image.stamp(7, 6, 0);
    image
}

#[test]
fn every_packet_gets_its_verdict_and_its_line() {
    let image = image(OnAllDown::Pass);
    let view = image.view().unwrap();
    let check = |packet: &str, expected: &str| {
        let packet = PacketDescription::from_json(packet).unwrap();
        let trace = trace(&view, packet, &Offline).unwrap();
        let json = serde_json::to_value(trace).unwrap();
        let got = format!(
            "{} {} {} {}:{} {}",
            json["verdict"].as_str().unwrap(),
            json["reason"].as_str().unwrap(),
            json["prefix"].as_str().unwrap_or("-"),
            json["file"].as_str().unwrap_or("-"),
            json["line"],
            json["next_hop"]["name"].as_str().unwrap_or("-"),
        );
        assert_eq!(got, expected, "{packet}");
        assert_eq!((&json["generation"], &json["revision"]), (&7.into(), &"main@sha1:0123".into()));
        assert!(json["backend"].is_null());
    };
    check(
        r#"{"src": "198.18.0.1", "dst": "10.20.9.4", "protocol": "tcp", "dport": 443}"#,
        "forward forwarded 10.20.9.0/24 lists/all.txt:2 edge-b",
    );
    check(r#"{"src": "198.18.0.1", "dst": "203.0.113.9"}"#, "drop route-drop 203.0.113.0/24 lists/all.txt:4 -");
    check(r#"{"src": "198.18.0.1", "dst": "192.0.2.9"}"#, "pass route-pass 192.0.2.0/24 lists/all.txt:3 -");
    check(r#"{"src": "198.18.0.1", "dst": "8.8.8.8", "protocol": 47}"#, "pass no-route - -:null -");
    check(r#"{"src": "198.18.0.1", "dst": "10.20.0.1", "protocol": "icmp"}"#, "pass local - -:null -");
    check(r#"{"src": "198.18.0.1", "dst": "224.0.0.1", "protocol": "udp"}"#, "pass not-forwardable - -:null -");
    check(
        r#"{"src": "198.18.0.1", "dst": "10.20.9.4", "ttl": 1}"#,
        "pass ttl-expired 10.20.9.0/24 lists/all.txt:2 edge-b",
    );
    check(
        r#"{"src": "2001:db8::9", "dst": "2001:db8:1::4", "protocol": "icmp", "length": 1500}"#,
        "forward forwarded 2001:db8:1::/48 lists/all.txt:5 edge-6",
    );
}

#[test]
fn flows_spread_by_weight() {
    let image = image(OnAllDown::Pass);
    let view = image.view().unwrap();
    let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
    for sport in 1..=40_000 {
        let fields = Fields {
            src: Some([198, 18, 0, 1].into()),
            dst: Some([10, 20, 3, 4].into()),
            sport: Some(sport),
            ..Fields::default()
        };
        let trace = trace(&view, PacketDescription::new(&fields).unwrap(), &Offline).unwrap();
        *counts.entry(trace.next_hop().unwrap().name).or_default() += 1;
    }
    // 30,000 expected; the standard deviation of 40,000 draws at 3 : 1 is 87.
    assert!(counts["edge-a"].abs_diff(30_000) < 500 && counts.len() == 2, "{counts:?}");
}

/// Knows one neighbour only, with an MTU.
struct OneNeighbour(u32);

impl Node for OneNeighbour {
    fn ingress(&self, tags: Tags) -> Option<Ingress> {
        Offline.ingress(tags)
    }
    fn reach(&self, id: u32) -> ReachWords {
        let neighbour = Neighbour { destination: 1, source: 2, mtu: 1400, ..Neighbour::default() };
        if id == self.0 { Reach::Up(neighbour) } else { Reach::Unknown }.encode()
    }
    fn ask<I: fib::Image + ?Sized>(&self, _image: &I, _at: u32, _port: u32) -> Option<Neighbour> {
        None
    }
    fn takes(&self, _ingress: &Ingress, _mac: Option<u64>) -> bool {
        true
    }
}

impl TraceNode for OneNeighbour {}

#[test]
fn the_nodes_neighbours_decide() {
    let image = image(OnAllDown::Pass);
    let view = image.view().unwrap();
    let edge_b = view.next_hops().find(|hop| hop.name == "edge-b").unwrap().id;
    let reason = |packet: &str, id| {
        let packet = PacketDescription::from_json(packet).unwrap();
        trace(&view, packet, &OneNeighbour(id)).unwrap().reason()
    };
    let packet = r#"{"src": "198.18.0.1", "dst": "10.20.9.4", "length": 1400}"#;
    assert_eq!(reason(packet, edge_b), Reason::Forwarded);
    assert_eq!(reason(packet, edge_b + 100), Reason::NoNeighbour);
    assert_eq!(reason(r#"{"src": "198.18.0.1", "dst": "10.20.9.4", "length": 1401}"#, edge_b), Reason::OverMtu);
}

#[test]
fn stages_read_top_to_bottom() {
    let image = image(OnAllDown::Pass);
    let view = image.view().unwrap();
    let fields = Fields {
        src: Some([198, 18, 0, 1].into()),
        dst: Some([10, 20, 3, 4].into()),
        dport: Some(443),
        ..Fields::default()
    };
    let trace = trace(&view, PacketDescription::new(&fields).unwrap(), &Offline).unwrap();
    let hop = trace.next_hop().unwrap();
    let expected = format!(
        "\
packet    198.18.0.1 → 10.20.3.4, tcp 0 → 443, ttl 64, 40 bytes
rules     main@sha1:0123, generation 7
route     10.20.0.0/16 of branch-offices  [lists/all.txt:1]
action    forward by one of edge-a ×3, edge-b ×1, by flow
next hop  {} via {} port uplink  [branch.yaml:{}]
neighbour offline: assumed up
egress    port uplink
verdict   forward, forwarded: sent to the next hop
",
        hop.name, hop.via, hop.line
    );
    assert_eq!(trace.to_string(), expected);
}

#[test]
fn an_error_quotes_the_packet_that_it_is_about() {
    let of = |line: &str| PacketDescription::from_json(line);
    let packet =
        of(r#"{"src": "203.0.113.1", "dst": "198.51.100.10", "about": "tcp 198.51.100.10:443 198.18.0.1:40000"}"#)
            .unwrap();
    let frame = packet.frame(Tags::default());
    // Fragmentation needed, the MTU, then the packet with its addresses and ports.
    assert_eq!((frame.len(), &frame[34..36], &frame[40..43]), (14 + 20 + 8 + 40, &[3, 4][..], &[5, 0, 0x45][..]));
    assert_eq!(frame[54..66], [198, 51, 100, 10, 198, 18, 0, 1, 0x01, 0xbb, 0x9c, 0x40]);
    let text =
        "203.0.113.1 → 198.51.100.10, icmp error about tcp 198.51.100.10:443 → 198.18.0.1:40000, ttl 64, 68 bytes";
    assert_eq!(packet.to_string(), text);
    let packet =
        of(r#"{"src": "2001:db8::9", "dst": "2001:db8::1", "about": "udp [2001:db8::1]:53 [2001:2::1]:9"}"#).unwrap();
    let frame = packet.frame(Tags::default());
    assert_eq!((frame.len(), frame[20], frame[54], frame[62]), (14 + 40 + 8 + 48, 58, 2, 0x60));
    let refused = |rest: &str| {
        of(&format!(r#"{{"src": "203.0.113.1", "dst": "198.51.100.10", {rest}}}"#)).expect_err(rest).to_string()
    };
    for rest in [
        r#""about": "icmp 198.51.100.10:443 198.18.0.1:40000""#,
        r#""about": "tcp 198.51.100.10 198.18.0.1""#,
        r#""about": "tcp 198.51.100.10:443 [2001:2::1]:40000""#,
        r#""about": 7"#,
    ] {
        assert!(refused(rest).starts_with("`about` is written as in"), "{rest}");
    }
    let said = refused(r#""about": "tcp 198.51.100.11:443 198.18.0.1:40000""#);
    assert_eq!(said, "an error about a packet from 198.51.100.11 is sent to 198.51.100.11, not to 198.51.100.10");
    let said = refused(r#""protocol": "tcp", "about": "tcp 198.51.100.10:443 198.18.0.1:40000""#);
    assert!(said.starts_with("only an ICMP error is about another packet"), "{said}");
}

/// A node with a device for its port and with what it knows of each next hop, by name.
#[derive(Clone, Copy)]
struct Resolved<'v> {
    view: &'v View<'v>,
    down: &'v [&'v str],
    unknown: &'v [&'v str],
    device: Option<&'v str>,
}

impl Node for Resolved<'_> {
    fn ingress(&self, tags: Tags) -> Option<Ingress> {
        Offline.ingress(tags)
    }
    fn reach(&self, id: u32) -> ReachWords {
        let hop = self.view.next_hops().find(|hop| hop.id == id).unwrap();
        let neighbour = Neighbour {
            destination: u64::from_le_bytes([2, 0, 0, 0, 0x0a, hop.name.as_bytes()[5], 0, 0]),
            source: u64::from_le_bytes([2, 0, 0, 0, 1, 0, 0, 0]),
            mtu: 1500,
            tags: Tags { outer: 0x88a8_00c8, inner: 0x8100_0064 },
            ..Neighbour::default()
        };
        match hop.name {
            name if self.down.contains(&name) => Reach::Down,
            name if self.unknown.contains(&name) => Reach::Unknown,
            _ => Reach::Up(neighbour),
        }
        .encode()
    }
    fn ask<I: fib::Image + ?Sized>(&self, _image: &I, _at: u32, _port: u32) -> Option<Neighbour> {
        None
    }
    fn takes(&self, _ingress: &Ingress, _mac: Option<u64>) -> bool {
        true
    }
}

impl TraceNode for Resolved<'_> {
    fn egress(&self, _port: u32) -> Egress {
        self.device.map_or(Egress::NoDevice, |device| Egress::Device(device.to_owned()))
    }
    fn in_port(&self) -> Option<&str> {
        Some("dc")
    }
}

#[test]
fn the_way_out_is_shown_stage_by_stage() {
    let image = image(OnAllDown::Drop);
    let view = image.view().unwrap();
    // A flow that falls on edge-a when nobody is down.
    let packet =
        |dst: &str| PacketDescription::from_json(&format!(r#"{{"src": "198.18.0.1", "dst": "{dst}"}}"#)).unwrap();
    let to_both = packet("10.20.3.4");
    let falls_on = trace(&view, to_both, &Offline).unwrap().next_hop().unwrap().name;
    let other = if falls_on == "edge-a" { "edge-b" } else { "edge-a" };
    let check = |node: &Resolved, packet, expected: &str, state: serde_json::Value, instead_of: serde_json::Value| {
        let trace = trace(&view, packet, node).unwrap();
        let text = trace.to_string();
        let lines: Vec<&str> =
            text.lines().filter(|line| !line.starts_with("rules") && !line.starts_with("action")).collect();
        assert_eq!(lines[2..].join("\n"), expected.replace("FIRST", falls_on).replace("OTHER", other));
        assert!(lines[0].ends_with(", in by dc"), "{text}");
        let json = serde_json::to_value(&trace).unwrap();
        assert_eq!((&json["neighbour"]["state"], &json["instead_of"]), (&state, &instead_of), "{json}");
        json
    };
    let up = Resolved { view: &view, down: &[], unknown: &[], device: Some("eth1") };
    let (mac, line) = if falls_on == "edge-a" { ("61", 6) } else { ("62", 7) };
    let (other_mac, other_line) = if falls_on == "edge-a" { ("62", 7) } else { ("61", 6) };
    let (via, other_via) = (format!("192.0.2.{}", line - 5), format!("192.0.2.{}", other_line - 5));
    let json = check(
        &up,
        to_both,
        &format!(
            "next hop  FIRST via {via} port uplink  [branch.yaml:{line}]\n\
             neighbour 02:00:00:00:0a:{mac}, up, MTU 1500\n\
             egress    port uplink, device eth1, from 02:00:00:00:01:00, tags s200.100\n\
             verdict   forward, forwarded: sent to the next hop"
        ),
        "up".into(),
        serde_json::Value::Null,
    );
    assert_eq!(json["egress"], serde_json::json!({"port": "uplink", "device": "eth1", "tags": "s200.100"}));
    assert_eq!(json["neighbour"]["mtu"], 1500);
    assert_eq!(json["next_hop"]["file"], "branch.yaml");
    let down = [falls_on];
    check(
        &Resolved { down: &down, ..up },
        to_both,
        &format!(
            "next hop  FIRST is down, OTHER instead: OTHER via {other_via} port uplink  [branch.yaml:{other_line}]\n\
             neighbour 02:00:00:00:0a:{other_mac}, up, MTU 1500\n\
             egress    port uplink, device eth1, from 02:00:00:00:01:00, tags s200.100\n\
             verdict   forward, forwarded: sent to the next hop"
        ),
        "up".into(),
        falls_on.into(),
    );
    let down = [other];
    let unmoved = trace(&view, to_both, &Resolved { down: &down, ..up }).unwrap();
    assert_eq!((unmoved.next_hop().unwrap().name, unmoved.instead_of().is_none()), (falls_on, true));
    check(
        &Resolved { down: &["edge-a", "edge-b"], ..up },
        to_both,
        "next hop  none: down: edge-a, edge-b\n\
         verdict   drop, all-down-drop: every next hop of the route is down, and the route says to drop it then",
        serde_json::Value::Null,
        serde_json::Value::Null,
    );
    check(
        &Resolved { unknown: &["edge-b"], ..up },
        packet("10.20.9.4"),
        "next hop  edge-b via 192.0.2.2 port uplink  [branch.yaml:7]\n\
         neighbour unknown\n\
         egress    port uplink, device eth1\n\
         verdict   pass, no-neighbour: the next hop's MAC address is not known, the kernel resolves it",
        "unknown".into(),
        serde_json::Value::Null,
    );
    check(
        &Resolved { device: None, ..up },
        packet("10.20.9.4"),
        "next hop  edge-b via 192.0.2.2 port uplink  [branch.yaml:7]\n\
         neighbour 02:00:00:00:0a:62, up, MTU 1500\n\
         egress    port uplink has no device on this node\n\
         verdict   pass, no-port: the next hop's port has no device on this node",
        "up".into(),
        serde_json::Value::Null,
    );
}

#[test]
fn what_is_done_when_all_are_down_is_shown() {
    let image = image(OnAllDown::Drop);
    let view = image.view().unwrap();
    let check = |dst: &str, json: serde_json::Value, action: &str| {
        let packet = PacketDescription::from_json(&format!(r#"{{"src": "198.18.0.1", "dst": "{dst}"}}"#)).unwrap();
        let trace = trace(&view, packet, &Offline).unwrap();
        assert_eq!(serde_json::to_value(&trace).unwrap()["on_all_down"], json);
        assert!(trace.to_string().contains(action), "{trace}");
    };
    check(
        "10.20.3.4",
        "drop".into(),
        "action    forward by one of edge-a ×3, edge-b ×1, by flow; drop when all are down\n",
    );
    check("10.20.9.4", "pass".into(), "action    forward by edge-b\n");
    check("203.0.113.9", serde_json::Value::Null, "action    drop\n");
}

#[test]
fn an_image_that_disagrees_with_itself_is_an_error() {
    let mut bytes = image(OnAllDown::Pass).into_bytes();
    // The direct entry of 8.0.0.0/6 (6 bits) becomes that of 0.0.0.0/6, where no route is: 10.20.0.0/16 vanishes from the
    // lookup tables, not from the routes.
    let direct = u32::from_le_bytes(*bytes[AT_V4_FIB as usize..].first_chunk().unwrap()) as usize;
    bytes.copy_within(direct..direct + 4, direct + 2 * 4);
    let view = View::new(&bytes).unwrap();
    assert!(view.verify_digest().is_err());
    let packet = PacketDescription::from_json(r#"{"src": "198.18.0.1", "dst": "10.20.9.4"}"#).unwrap();
    let error = trace(&view, packet, &Offline).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the image disagrees with itself about 10.20.9.4: its routes say next-hop group 2 of policy branch-offices by \
         10.20.9.0/24, its lookup tables say no route"
    );
}

#[test]
fn what_is_not_a_packet_is_refused_with_the_reason() {
    let check = |text: &str, expected: &str| {
        let error = PacketDescription::from_json(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    };
    check("nonsense", "one JSON object a line");
    check("[]", "a packet is a JSON object");
    check(r#"{"src": "10.0.0.1"}"#, "needs `dst`");
    check(r#"{"src": "10.0.0.1", "dst": "x"}"#, "`dst` must be an IP address, not \"x\"");
    check(r#"{"src": "10.0.0.1", "dst": "::1"}"#, "different families");
    check(r#"{"src": "10.0.0.1", "dst": "10.0.0.2", "port": 1}"#, "no `port`");
    check(r#"{"src": "10.0.0.1", "dst": "10.0.0.2", "dport": 65536}"#, "0 to 65535, not 65536");
    check(r#"{"src": "10.0.0.1", "dst": "10.0.0.2", "protocol": "tcpp"}"#, "not `tcpp`");
    check(r#"{"src": "10.0.0.1", "dst": "10.0.0.2", "protocol": "icmp", "dport": 7}"#, "protocol 1 has no ports");
    check(r#"{"src": "10.0.0.1", "dst": "10.0.0.2", "length": 39}"#, "headers alone need 40 bytes");
}

#[test]
fn frames_have_valid_headers() {
    for (text, length) in [
        (
            r#"{"src": "198.18.0.1", "dst": "10.20.9.4", "protocol": "udp", "sport": 7, "dport": 9, "length": 1500}"#,
            1500,
        ),
        (r#"{"src": "198.18.0.1", "dst": "10.20.9.4"}"#, 40),
        (r#"{"src": "2001:db8::1", "dst": "2001:db8::2", "protocol": "udp", "sport": 7, "dport": 9}"#, 48),
    ] {
        let frame = PacketDescription::from_json(text).unwrap().frame(Tags::default());
        let parsed = fib::packet::parse(frame.as_slice(), u16::from_be_bytes([frame[12], frame[13]])).unwrap();
        assert_eq!((parsed.ip_bytes, frame.len()), (length, 14 + length as usize), "{text}");
        assert_eq!(parsed.flow.ports, if text.contains("udp") { 7 << 16 | 9 } else { 0 });
        if parsed.family == 4 {
            // RFC 1071: the one's-complement sum over a header with its checksum is all ones.
            let sum: u32 = frame[14..34].chunks_exact(2).map(|p| u32::from(p[0]) << 8 | u32::from(p[1])).sum();
            assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
        }
    }
}
