//! Hands in the kernel: what `drift` says of them, and that `apply` mends it.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs;

use wayleave::kernel::tables::Tables;
use wayleave_tests::{TestNode, Topology, require_root_and_bpf};

const POLICY: &str = "\
apiVersion: wayleave/v1
kind: RoutePolicy
metadata: {name: probe}
spec:
  nextHops:
    - {name: up-a, via: 10.77.1.2, port: uplink-a}
  routes:
    - {prefix: 198.51.100.0/24, nextHops: [{name: up-a}]}
";

/// What `drift` says, which must end as it says.
fn drift(node: &TestNode) -> String {
    let outcome = node.run(&["drift"]).unwrap();
    let expected = if outcome.stdout.starts_with("No drift") { 0 } else { 2 };
    assert_eq!(outcome.code, Some(expected), "{outcome:?}");
    outcome.stdout
}

fn mend(node: &TestNode) {
    node.apply().unwrap();
    assert_eq!(drift(node), "No drift: the kernel is as the last publish left it.\n");
}

#[test]
fn every_hand_in_the_kernel_is_named_and_mended() {
    require_root_and_bpf().unwrap();
    let lab = Topology::router().unwrap();
    lab.fix_neighbours().unwrap();
    let node = TestNode::router(&lab).unwrap();
    assert!(drift(&node).starts_with("No drift"), "nothing was published yet");
    node.write("probe.yaml", POLICY).unwrap();
    mend(&node);

    // A link's pin is deleted: the kernel detaches the program.
    fs::remove_file(node.pins().join("link/xdp/upa")).unwrap();
    assert_eq!(drift(&node), "upa: the program is not attached as the configuration says, for uplink-a\n");
    mend(&node);

    // A port's entry is changed.
    lab.router
        .enter(|| {
            let library = node.library().unwrap();
            let observed = library.observe().unwrap();
            let view = observed.live.as_ref().unwrap().image.view().unwrap();
            let port = view.ports().next().unwrap().id;
            Tables::open(&library.pins).unwrap().clear_port(port).unwrap();
        })
        .unwrap();
    assert_eq!(drift(&node), "the tables of ports are not what the devices ask for\n");
    mend(&node);

    // A device that is no port any more keeps its program until the next apply.
    let mut node = node;
    node.remove_port("sink").unwrap();
    assert_eq!(drift(&node), "upz: the program is attached, and the configuration has no port there\n");
    mend(&node);

    // Everything is gone, as by a script that cleans up bpffs.
    fs::remove_dir_all(node.place()).unwrap();
    assert!(drift(&node).contains("was published last, and nothing is live"), "{}", drift(&node));
    mend(&node);
}
