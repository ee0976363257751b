//! `wayleave trace` on a node: every stage with the line behind it, and the loaded program asked beside the library.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use serde_json::Value;
use wayleave_tests::{BpfObjects, TestNode, Topology, require_root_and_bpf};

const POLICY: &str = "\
apiVersion: wayleave/v1
kind: RoutePolicy
metadata: {name: probe}
spec:
  nextHops:
    - {name: up-a, via: 10.77.1.2, port: uplink-a}
  routes:
    - {prefix: 198.51.100.0/24, nextHops: [{name: up-a}]}
    - {prefix: 203.0.113.0/24, action: drop}
";

fn lab() -> Topology {
    require_root_and_bpf().unwrap();
    let lab = Topology::router().unwrap();
    lab.fix_neighbours().unwrap();
    lab
}

fn packet<'a>(dst: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["trace", "--src", "198.18.0.1", "--dst", dst, "--protocol", "udp", "--dport", "9"], more].concat()
}

#[test]
fn every_stage_is_shown_and_the_kernel_agrees() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    node.write("probe.yaml", POLICY).unwrap();
    node.apply().unwrap();
    let upstream = lab.upstream(0).unwrap();
    let text = node.succeed(&packet("198.51.100.9", &["--kernel", "--in-port", "lan"])).unwrap().stdout;
    let text: Vec<&str> = text.lines().filter(|line| !line.starts_with("rules")).collect();
    let expected = format!(
        "packet    198.18.0.1 → 198.51.100.9, udp 0 → 9, ttl 64, 28 bytes, in by lan\n\
         route     198.51.100.0/24 of probe  [probe.yaml:8]\n\
         action    forward by up-a\n\
         next hop  up-a via 10.77.1.2 port uplink-a  [probe.yaml:6]\n\
         neighbour {}, up, MTU 1500\n\
         egress    port uplink-a, device {}, from {}\n\
         verdict   forward, forwarded: sent to the next hop\n\
         kernel    agrees: forward, forwarded; frame leaves by uplink-a, 42 bytes",
        upstream.mac, upstream.router_device, upstream.router_mac
    );
    assert_eq!(text.join("\n"), expected);
    let json = node.succeed(&packet("203.0.113.9", &["--kernel", "--format", "json"])).unwrap().stdout;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["verdict"], &json["line"]), (&"drop".into(), &9.into()), "{json}");
    assert_eq!((&json["kernel"]["agrees"], &json["kernel"]["reason"]), (&true.into(), &"route-drop".into()), "{json}");
}

#[test]
fn asking_the_kernel_moves_no_counter_and_leaves_nothing() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    node.write("probe.yaml", POLICY).unwrap();
    node.apply().unwrap();
    let held = BpfObjects::pinned(&node.pins()).unwrap();
    let before = node.counters().unwrap();
    let changed = POLICY.replace("action: drop", "action: pass");
    node.write("probe.yaml", &changed).unwrap();
    let live = node.succeed(&packet("203.0.113.9", &["--kernel"])).unwrap().stdout;
    assert!(live.ends_with("kernel    agrees: drop, route-drop\n"), "{live}");
    let candidate = node.succeed(&packet("203.0.113.9", &["--kernel", "--against", "candidate"])).unwrap().stdout;
    assert!(candidate.ends_with("kernel    agrees: pass, route-pass\n"), "{candidate}");
    for reason in ["route-drop", "route-pass"] {
        assert_eq!(node.counters().unwrap().get(reason), before.get(reason), "{reason}");
    }
    assert_eq!(BpfObjects::pinned(&node.pins()).unwrap(), held);
    // What is live has not changed, and an apply finds nothing to clean up.
    node.apply().unwrap();
    let live = node.succeed(&packet("203.0.113.9", &["--kernel"])).unwrap().stdout;
    assert!(live.ends_with("kernel    agrees: pass, route-pass\n"), "{live}");
}

#[test]
fn a_neighbour_that_only_the_kernel_knows_is_no_disagreement() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    node.write("probe.yaml", POLICY).unwrap();
    node.apply().unwrap();
    lab.router
        .enter(|| {
            let library = node.library().unwrap();
            let view_of = library.observe().unwrap();
            let view = view_of.live.as_ref().unwrap().image.view().unwrap();
            let hop = view.next_hops().next().unwrap();
            let mut tables = wayleave::kernel::tables::Tables::open(&library.pins).unwrap();
            tables.set_reach(hop.id, &fib::Reach::Unknown).unwrap();
        })
        .unwrap();
    // Without an entry the program asks the kernel, which knows the neighbour; that is no disagreement.
    let text = node.succeed(&packet("198.51.100.9", &["--kernel"])).unwrap().stdout;
    assert!(text.contains("neighbour unknown\n"), "{text}");
    assert!(text.contains("kernel    agrees: forward, forwarded"), "{text}");
}

#[test]
fn what_cannot_be_asked_is_said() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    node.write("probe.yaml", POLICY).unwrap();
    let nothing = node.run(&packet("198.51.100.9", &["--kernel"])).unwrap();
    assert!(nothing.code == Some(1) && nothing.stderr.contains("no generation is live"), "{nothing:?}");
    node.apply().unwrap();
    let port = node.run(&packet("198.51.100.9", &["--in-port", "nowhere"])).unwrap();
    assert!(port.code == Some(1) && port.stderr.contains("this node has no port `nowhere`"), "{port:?}");
    let long = node.run(&packet("198.51.100.9", &["--kernel", "--length", "9000"])).unwrap();
    assert!(long.code == Some(1) && long.stderr.contains("up to 3386 bytes"), "{long:?}");
    let source = node.source();
    let path = node.run(&packet("198.51.100.9", &["--kernel", "--against", source.to_str().unwrap()])).unwrap();
    assert!(path.code == Some(1) && path.stderr.contains("--against live"), "{path:?}");
}
