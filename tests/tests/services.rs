//! Services: real connections to a virtual address, through a real node, to servers in namespaces of their own.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use aya::Pod;
use aya::maps::{HashMap, Map, MapData};
use fib::service::{FlowKey, FlowWords, HalfOpenWords};
use rustix::process::Signal;
use serde_json::Value;
use wayleave::kernel::program::object_id;
use wayleave_tests::{Blaster, Daemon, Host, Packet, TestNode, Topology, binary, require_root_and_bpf, tcp_flags};

const SECOND: Duration = Duration::from_secs(1);
/// Local on every upstream of the lab, as a virtual address is on the backends of `l2-dsr`.
const VIP: &str = "198.51.100.10";
const VIP6: &str = "2001:db8:100::10";
const PORT: u16 = 443;
/// Where the servers listen.
const TARGET: u16 = 8099;

fn lab() -> Topology {
    require_root_and_bpf().unwrap();
    let lab = Topology::with_upstreams(3).unwrap();
    lab.fix_neighbours().unwrap();
    for upstream in &lab.upstreams {
        for (listen, name) in [("0.0.0.0", upstream.v4.to_string()), ("::", upstream.v6.to_string())] {
            for port in [TARGET, PORT] {
                serve_tcp(upstream, &format!("[{listen}]:{port}").replace("[0.0.0.0]", "0.0.0.0"), &name);
            }
        }
    }
    lab
}

/// A server that answers every line with its name, for as long as the test runs.
fn serve_tcp(host: &Host, listen: &str, name: &str) {
    let bind = || -> std::io::Result<TcpListener> {
        let address: SocketAddr = listen.parse().unwrap();
        if address.is_ipv4() {
            return TcpListener::bind(address);
        }
        // Beside the one for IPv4.
        let socket = rustix::net::socket(rustix::net::AddressFamily::INET6, rustix::net::SocketType::STREAM, None)?;
        rustix::net::sockopt::set_ipv6_v6only(&socket, true)?;
        rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
        rustix::net::bind(&socket, &address)?;
        rustix::net::listen(&socket, 128)?;
        Ok(TcpListener::from(socket))
    };
    let listener = host.namespace.enter(bind).unwrap().unwrap();
    let name = name.to_owned();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { return };
            let name = name.clone();
            thread::spawn(move || {
                let mut reader = BufReader::new(stream);
                let mut line = String::new();
                while reader.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
                    // With the client's address: it must be the client's own.
                    let peer = reader.get_ref().peer_addr().map_or_else(|e| e.to_string(), |a| a.ip().to_string());
                    if writeln!(reader.get_mut(), "{name} {peer}").is_err() {
                        return;
                    }
                    line.clear();
                }
            });
        }
    });
}

/// A server that answers every datagram with its name.
fn serve_udp(host: &Host, listen: &str, name: &str) {
    let socket = host.namespace.enter(|| UdpSocket::bind(listen)).unwrap().unwrap();
    let name = name.to_owned();
    thread::spawn(move || {
        let mut bytes = [0; 2048];
        while let Ok((_, from)) = socket.recv_from(&mut bytes) {
            if socket.send_to(name.as_bytes(), from).is_err() {
                return;
            }
        }
    });
}

/// A client's connection.
struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(lab: &Topology, vip: &str) -> std::io::Result<Self> {
        let to = SocketAddr::new(vip.parse().unwrap(), PORT);
        let stream = lab.client.namespace.enter(|| TcpStream::connect_timeout(&to, 2 * SECOND)).unwrap()?;
        stream.set_read_timeout(Some(2 * SECOND))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Who answers a line.
    fn ask(&mut self) -> std::io::Result<String> {
        self.0.get_mut().write_all(b"who\n")?;
        let mut line = String::new();
        if self.0.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let (name, peer) = line.trim().split_once(' ').unwrap();
        assert!(peer.starts_with("10.77.0.2") || peer.starts_with("fd77::2"), "the client's address is kept: {peer}");
        Ok(name.to_owned())
    }
}

/// Routes to each upstream by itself, and to the client.
fn routes(lab: &Topology) -> String {
    let mut hops = String::from(
        "    - {name: client, via: 10.77.0.2, port: lan}\n    - {name: client6, via: \"fd77::2\", port: lan}\n",
    );
    let mut routes = String::from(
        "    - {prefix: 10.77.0.0/24, nextHops: [{name: client}]}\n    - {prefix: \"fd77::/64\", nextHops: [{name: client6}]}\n",
    );
    for (upstream, letter) in lab.upstreams.iter().zip('a'..) {
        writeln!(hops, "    - {{name: {letter}, via: {}, port: uplink-{letter}}}", upstream.v4).unwrap();
        writeln!(hops, "    - {{name: {letter}6, via: \"{}\", port: uplink-{letter}}}", upstream.v6).unwrap();
        writeln!(routes, "    - {{prefix: {}/32, nextHops: [{{name: {letter}}}]}}", upstream.v4).unwrap();
        writeln!(routes, "    - {{prefix: \"{}/128\", nextHops: [{{name: {letter}6}}]}}", upstream.v6).unwrap();
    }
    format!(
        "apiVersion: wayleave/v1\nkind: RoutePolicy\nmetadata: {{name: backends}}\nspec:\n  nextHops:\n{hops}  routes:\n{routes}"
    )
}

/// A service with these backends, as `ADDRESS` or `ADDRESS weight=N`.
fn service(name: &str, vip: &str, forwarding: &str, port: &str, backends: &[String], more: &str) -> String {
    let rows: String = backends
        .iter()
        .map(|backend| {
            let (address, weight) = backend.split_once(" weight=").unwrap_or((backend, "1"));
            format!("    - {{address: \"{address}\", weight: {weight}}}\n")
        })
        .collect();
    format!(
        "apiVersion: wayleave/v1\nkind: ServicePolicy\nmetadata: {{name: {name}}}\nspec:\n  vip: \"{vip}\"\n  ports: [{port}]\n  \
         forwarding: {forwarding}\n  backends:\n{rows}{more}"
    )
}

const NAT_PORT: &str = "{port: 443, targetPort: 8099}";

fn v4(lab: &Topology, numbers: &[usize]) -> Vec<String> {
    numbers.iter().map(|number| lab.upstreams[*number].v4.to_string()).collect()
}

/// Who answers so many new connections, and how often.
fn ask_often(lab: &Topology, vip: &str, times: usize) -> BTreeMap<String, usize> {
    let mut answers = BTreeMap::new();
    for _ in 0..times {
        let name = Client::connect(lab, vip).and_then(|mut client| client.ask()).unwrap();
        *answers.entry(name).or_default() += 1;
    }
    answers
}

fn row<'s>(status: &'s Value, list: &str, key: &str, name: &str) -> &'s Value {
    status[list].as_array().unwrap().iter().find(|row| row[key] == name).unwrap_or_else(|| panic!("{name}: {status:#}"))
}

#[test]
fn connections_are_translated_there_and_back_and_shared_out() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    node.write("routes.yaml", &routes(&lab)).unwrap();
    node.write("api.yaml", &service("api", VIP, "nat", NAT_PORT, &v4(&lab, &[0, 1, 2]), "")).unwrap();
    let backends6: Vec<String> = lab.upstreams.iter().map(|upstream| upstream.v6.to_string()).collect();
    node.write("api6.yaml", &service("api6", VIP6, "nat", NAT_PORT, &backends6, "")).unwrap();
    node.apply().unwrap();
    for vip in [VIP, VIP6] {
        let answers = ask_often(&lab, vip, 90);
        assert_eq!(answers.len(), 3, "each of three gets some: {answers:?}");
        assert!(answers.values().all(|count| (12..=48).contains(count)), "about a third each: {answers:?}");
    }
}

#[test]
fn connections_to_backends_that_answer_by_themselves() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    node.write("routes.yaml", &routes(&lab)).unwrap();
    node.write("api.yaml", &service("api", VIP, "l2-dsr", "{port: 443}", &v4(&lab, &[0, 1, 2]), "")).unwrap();
    node.apply().unwrap();
    let answers = ask_often(&lab, VIP, 60);
    assert_eq!(answers.len(), 3, "each of three gets some: {answers:?}");
}

/// The router's end of tunnels.
const TUNNEL: &str = "tunnel: {sources: [10.77.0.1, \"fd77::1\"]}\n";

/// Every upstream as a node that takes packets to the vips out of packets to its own addresses.
fn decapsulating<'l>(lab: &'l Topology, attach: &'static str) -> Vec<TestNode<'l>> {
    let node = |upstream: &'l Host| {
        let mut node = TestNode::new(&upstream.namespace, &[("dc", "eth0")]).unwrap();
        node.set_attach("dc", attach).unwrap();
        let addresses = format!("[{}, \"{}\"]", upstream.v4, upstream.v6);
        let spec = format!(
            "decapsulate: {{addresses: {addresses}, from: [10.77.0.1, \"fd77::1\"], to: [{VIP}, \"{VIP6}\"]}}\n"
        );
        node.set_spec(&spec).unwrap();
        let nothing = "apiVersion: wayleave/v1\nkind: RoutePolicy\nmetadata: {name: none}\nspec:\n  routes:\n    \
                       - {prefix: 192.0.2.0/24, action: drop}\n";
        node.write("routes.yaml", nothing).unwrap();
        node.apply().unwrap();
        node
    };
    lab.upstreams.iter().map(node).collect()
}

/// Connections by tunnels between nodes whose programs are attached so; `outer` are the backends' addresses.
fn check_tunnels(attach: &'static str, vip: &str, outer: fn(&Host) -> IpAddr) {
    let lab = lab();
    let mut node = TestNode::router(&lab).unwrap();
    for port in ["lan", "uplink-a", "uplink-b", "uplink-c"] {
        node.set_attach(port, attach).unwrap();
    }
    node.set_spec(TUNNEL).unwrap();
    node.write("routes.yaml", &routes(&lab)).unwrap();
    let backends: Vec<String> = lab.upstreams.iter().map(|upstream| outer(upstream).to_string()).collect();
    node.write("api.yaml", &service("api", vip, "ipip", "{port: 443}", &backends, "")).unwrap();
    node.apply().unwrap();
    let before = Client::connect(&lab, vip).err();
    assert!(before.is_some(), "nobody takes the packets out yet");
    let backends = decapsulating(&lab, attach);
    let answers = ask_often(&lab, vip, 60);
    assert_eq!(answers.len(), 3, "each of three gets some: {answers:?}");
    for backend in &backends {
        let counters = backend.counters().unwrap();
        assert!(counters.get("pass/decapsulated") >= 30, "three packets of each connection: {counters:?}");
    }
    // A long line goes in segments that are as large as the vip's host takes, until the node says what the tunnel takes.
    let mut client = Client::connect(&lab, vip).unwrap();
    let mut line = vec![b'x'; 300_000];
    line.push(b'\n');
    client.0.get_mut().write_all(&line).unwrap();
    let mut answer = String::new();
    client.0.read_line(&mut answer).unwrap();
    assert!(answer.contains(' '), "{answer}");
    let told = node.counters().unwrap();
    assert!(told.get("answer/tunnel-mtu") >= 1, "{told:?}");
    let overhead = if outer(&lab.upstreams[0]).is_ipv4() { 20 } else { 40 };
    let learnt = lab.client.namespace.ip(&format!("route get {vip}")).unwrap();
    assert!(learnt.contains(&format!("mtu {}", 1500 - overhead)), "{learnt}");
    let status = node.status().unwrap();
    let row = row(&status, "service_list", "service", "api");
    assert_eq!(row["forwarding"], "ipip");
    assert!(row["packets"].as_u64().unwrap() > 200, "{row:#}");
}

#[test]
fn connections_through_tunnels_of_ipv4() {
    check_tunnels("native", VIP, |upstream| upstream.v4.into());
}

#[test]
fn connections_of_ipv4_through_tunnels_of_ipv6() {
    check_tunnels("native", VIP, |upstream| upstream.v6.into());
}

#[test]
fn connections_of_ipv6_through_tunnels_of_ipv6() {
    check_tunnels("native", VIP6, |upstream| upstream.v6.into());
}

#[test]
fn connections_through_tunnels_by_tc() {
    check_tunnels("tc", VIP, |upstream| upstream.v4.into());
}

#[test]
fn connections_of_ipv4_through_tunnels_of_ipv6_by_tc() {
    check_tunnels("tc", VIP, |upstream| upstream.v6.into());
}

#[test]
fn a_tunnel_needs_a_source_and_trace_names_it() {
    let lab = lab();
    let mut node = TestNode::router(&lab).unwrap();
    node.write("routes.yaml", &routes(&lab)).unwrap();
    node.write("api.yaml", &service("api", VIP, "ipip", "{port: 443}", &v4(&lab, &[0]), "")).unwrap();
    let refused = node.run(&["apply", "--auto-approve"]).unwrap();
    assert_eq!(refused.code, Some(3), "{refused:?}");
    for words in ["WL0604", "api.yaml:7:15", "tunnel: {sources: [192.0.2.1]}"] {
        assert!(refused.stderr.contains(words), "{words}: {}", refused.stderr);
    }
    node.set_spec(TUNNEL).unwrap();
    node.apply().unwrap();
    let packet = ["--src", "10.77.0.2", "--dst", VIP, "--protocol", "tcp", "--dport", "443"];
    let traced = node.succeed(&[&["trace"], &packet[..]].concat()).unwrap();
    assert!(traced.stdout.contains("; in a packet from 10.77.0.1 to 10.77.1.2  [api.yaml:9]"), "{}", traced.stdout);
    let json = node.succeed(&[&["trace", "--format", "json"], &packet[..]].concat()).unwrap();
    let json: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(json["service"]["tunnel"], serde_json::json!({"source": "10.77.0.1", "destination": "10.77.1.2"}));
    // Without a node nobody knows where it comes from.
    let source = node.source();
    let offline =
        Command::new(binary().unwrap()).args(["trace", "--against"]).arg(source).args(packet).output().unwrap();
    let offline = String::from_utf8(offline.stdout).unwrap();
    assert!(offline.contains("from the node's tunnel source to 10.77.1.2"), "{offline}");
}

#[test]
fn datagrams_are_translated_and_a_flow_stays_where_it_is() {
    let lab = lab();
    for upstream in &lab.upstreams {
        serve_udp(upstream, &format!("{}:5300", upstream.v4), &upstream.v4.to_string());
    }
    let node = TestNode::router(&lab).unwrap();
    node.write("routes.yaml", &routes(&lab)).unwrap();
    let port = "{port: 53, protocol: udp, targetPort: 5300}";
    node.write("dns.yaml", &service("dns", VIP, "nat", port, &v4(&lab, &[0, 1, 2]), "")).unwrap();
    node.apply().unwrap();
    let to: SocketAddr = format!("{VIP}:53").parse().unwrap();
    let mut all = BTreeMap::new();
    for _ in 0..30 {
        let socket = lab.client.namespace.enter(|| UdpSocket::bind("10.77.0.2:0")).unwrap().unwrap();
        socket.set_read_timeout(Some(2 * SECOND)).unwrap();
        let mut names = Vec::new();
        for _ in 0..3 {
            let mut bytes = [0; 64];
            socket.send_to(b"who", to).unwrap();
            let (length, from) = socket.recv_from(&mut bytes).unwrap();
            assert_eq!(from, to, "the answer comes from the virtual address");
            names.push(String::from_utf8_lossy(&bytes[..length]).into_owned());
        }
        assert!(names.iter().all(|name| *name == names[0]), "one flow, one backend: {names:?}");
        *all.entry(names[0].clone()).or_insert(0) += 1;
    }
    assert_eq!(all.len(), 3, "{all:?}");
}

#[test]
fn established_connections_survive_whatever_is_published() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    node.write("routes.yaml", &routes(&lab)).unwrap();
    let publish = |backends: &[String]| {
        node.write("api.yaml", &service("api", VIP, "nat", NAT_PORT, backends, "")).unwrap();
        node.apply().unwrap();
    };
    publish(&v4(&lab, &[0, 1]));
    let mut clients: Vec<(Client, String)> = (0..40)
        .map(|_| {
            let mut client = Client::connect(&lab, VIP).unwrap();
            let name = client.ask().unwrap();
            (client, name)
        })
        .collect();
    let mut unchanged = |what: &str| {
        for (client, name) in &mut clients {
            assert_eq!(client.ask().map_err(|e| format!("{what}: {e}")).as_ref(), Ok(&*name), "{what}");
        }
    };
    unchanged("at first");
    publish(&v4(&lab, &[0, 1, 2]));
    unchanged("a backend came");
    let drained = [format!("{} weight=0", lab.upstreams[0].v4), lab.upstreams[1].v4.to_string()];
    publish(&drained);
    unchanged("a backend is drained");
    let answers = ask_often(&lab, VIP, 20);
    assert_eq!(answers.into_iter().collect::<Vec<_>>(), [(lab.upstreams[1].v4.to_string(), 20)], "none is new there");
    // What a program of another version would have pinned.
    let class = node.pins().join("class-20");
    for entry in std::fs::read_dir(&class).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if let Some(role) = name.strip_suffix(&object_id()) {
            std::fs::rename(&path, class.join(format!("{role}0123456789abcdef"))).unwrap();
        }
    }
    publish(&v4(&lab, &[0, 1]));
    unchanged("another version of the program");
    for _ in 0..2 {
        let daemon = Daemon::start(&node);
        thread::sleep(SECOND);
        daemon.stop(Signal::KILL);
        unchanged("the daemon was killed");
    }
    // Only those of a backend that is gone end.
    publish(&v4(&lab, &[1]));
    let gone = lab.upstreams[0].v4.to_string();
    for (client, name) in &mut clients {
        assert_eq!(client.ask().is_ok(), *name != gone, "{name}");
    }
}

/// Forgets every flow, as the tables do with the least recently used ones when others need the room; returns the number of entries of
/// established ones.
fn forget_flows(node: &TestNode) -> usize {
    forget::<HalfOpenWords>(node, "HALF_OPEN");
    forget::<FlowWords>(node, "FLOWS")
}

fn forget<W: Pod>(node: &TestNode, map: &str) -> usize {
    let map = MapData::from_pin(node.pins().join("maps").join(map)).unwrap();
    let mut flows: HashMap<_, FlowKey, W> = HashMap::try_from(Map::LruHashMap(map)).unwrap();
    let keys: Vec<FlowKey> = flows.keys().collect::<Result<_, _>>().unwrap();
    for key in &keys {
        flows.remove(key).unwrap();
    }
    keys.len()
}

#[test]
fn flows_that_are_forgotten_go_where_the_generation_before_sent_them() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    node.write("routes.yaml", &routes(&lab)).unwrap();
    let publish = |numbers: &[usize]| {
        node.write("api.yaml", &service("api", VIP, "nat", NAT_PORT, &v4(&lab, numbers), "")).unwrap();
        node.apply().unwrap();
    };
    publish(&[0, 1]);
    let mut clients: Vec<(Client, String)> = (0..40)
        .map(|_| {
            let mut client = Client::connect(&lab, VIP).unwrap();
            let name = client.ask().unwrap();
            (client, name)
        })
        .collect();
    // A third of the slots and more has another backend now.
    publish(&[0, 1, 2]);
    assert!(forget_flows(&node) >= 80, "two entries a connection");
    for (client, name) in &mut clients {
        assert_eq!(client.ask().as_ref().map_err(ToString::to_string), Ok(&*name));
    }
    // And new ones go to the new one, too.
    assert_eq!(ask_often(&lab, VIP, 40).len(), 3);
}

/// Spoofed handshakes as fast as this machine sends them: no more than the rate become flows, the others are dropped and said.
#[test]
fn a_flood_of_handshakes_is_held_to_the_rate_of_new_flows() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    node.write("routes.yaml", &routes(&lab)).unwrap();
    node.write("api.yaml", &service("api", VIP, "nat", NAT_PORT, &v4(&lab, &[0, 1, 2]), "")).unwrap();
    node.apply().unwrap();
    let syn = |number: u32| {
        let [_, a, b, c] = number.to_be_bytes();
        Packet::between(IpAddr::from([198, 18 + a % 2, b, c]), VIP.parse().unwrap())
            .macs(lab.client.mac, lab.client.router_mac)
            .tcp(1024 + u16::try_from(number % 60_000).unwrap(), PORT, tcp_flags::SYN)
            .frame()
    };
    let flood = Blaster::frames(&lab.client.namespace, "eth0", (0..120_000).map(syn).collect(), None).unwrap();
    let started = Instant::now();
    thread::sleep(3 * SECOND);
    let sent = flood.stop().unwrap();
    let seconds = started.elapsed().as_secs() + 1;
    let status = node.status().unwrap();
    let table = &status["flow_table"];
    println!("{sent} handshakes in {:?}: {table}", started.elapsed());
    let cpus = u64::try_from(thread::available_parallelism().unwrap().get()).unwrap();
    // What a CPU may begin at once is as much as it may begin in a second.
    let most = table["new_flows_per_second_and_cpu"].as_u64().unwrap() * cpus * (seconds + 1);
    let begun = table["begun"].as_u64().unwrap();
    assert!((1..=most).contains(&begun), "{begun} flows begun, {most} at most: {table}");
    assert!(table["refused"].as_u64().unwrap() > begun, "the flood was above the rate: {table}");
    assert!(node.counters().unwrap().get("drop/new-flow-rate") > 10_000);
}

#[test]
fn a_trace_names_service_backend_and_why() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    node.write("routes.yaml", &routes(&lab)).unwrap();
    node.write("api.yaml", &service("api", VIP, "nat", NAT_PORT, &v4(&lab, &[0, 1, 2]), "")).unwrap();
    node.apply().unwrap();
    let mut client = Client::connect(&lab, VIP).unwrap();
    let name = client.ask().unwrap();
    let port = client.0.get_ref().local_addr().unwrap().port().to_string();
    let trace = |sport: &str| {
        let words = ["trace", "--src", "10.77.0.2", "--dst", VIP, "--sport", sport, "--dport", "443"];
        let outcome = node.succeed(&[&words[..], &["--format", "json"]].concat()).unwrap();
        (serde_json::from_str::<Value>(&outcome.stdout).unwrap(), node.succeed(&words).unwrap().stdout)
    };
    let (json, text) = trace(&port);
    assert_eq!(
        (json["service"]["service"].as_str(), json["backend"].as_str()),
        (Some("api"), Some(&*name)),
        "{json:#}"
    );
    assert_eq!(json["service"]["why"], "flow-table", "{json:#}");
    assert!(text.contains("the flow table has this flow there") && text.contains(":8099"), "{text}");
    let (json, text) = trace("1");
    assert_eq!(
        (json["service"]["why"].as_str(), json["service"]["slots"].as_u64()),
        (Some("maglev-slot"), Some(65_537))
    );
    assert!(text.contains(" of 65537"), "{text}");
    let answer = ["trace", "--src", &name, "--dst", "10.77.0.2", "--sport", "8099", "--dport", &port];
    let text = node.succeed(&answer).unwrap().stdout;
    assert!(text.contains(&format!("source becomes {VIP}:443")), "{text}");
    // Errors about both, from a router before the client and from one before the backend.
    let about = format!("tcp {VIP}:443 10.77.0.2:{port}");
    let text = node.succeed(&["trace", "--src", "203.0.113.1", "--dst", VIP, "--about", &about]).unwrap().stdout;
    assert!(text.contains("an error about a packet from it") && text.contains("has this flow there"), "{text}");
    assert!(text.contains(&format!("destination and quoted source become {name}:8099")), "{text}");
    let about = format!("tcp 10.77.0.2:{port} {name}:8099");
    let error = ["trace", "--src", &name, "--dst", "10.77.0.2", "--about", &about, "--format", "json"];
    let json = node.succeed(&error).unwrap();
    let json: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(
        (json["service"]["icmp_error"].as_bool(), json["service"]["translated"].as_str()),
        (Some(true), Some("source"))
    );
    assert_eq!(json["service"]["to"], format!("{VIP}:443"), "{json:#}");
}

#[test]
fn what_no_backend_takes_passes_or_is_dropped_and_is_counted() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    node.write("routes.yaml", &routes(&lab)).unwrap();
    let drained = [format!("{} weight=0", lab.upstreams[0].v4)];
    for (word, reason) in [("pass", "pass/no-backend"), ("drop", "drop/no-backend-drop")] {
        let more = format!("  onNoBackend: {word}\n");
        node.write("api.yaml", &service("api", VIP, "nat", NAT_PORT, &drained, &more)).unwrap();
        node.apply().unwrap();
        assert!(Client::connect(&lab, VIP).is_err());
        assert!(node.counters().unwrap().get(reason) > 0, "{word}");
    }
}

/// A client's datagram to port 53 of a vip; what its socket says within two seconds.
fn datagram(lab: &Topology, vip: &str) -> std::io::Result<usize> {
    let to = SocketAddr::new(vip.parse().unwrap(), 53);
    let from = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = lab.client.namespace.enter(|| UdpSocket::bind(from)).unwrap()?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(2 * SECOND))?;
    socket.send(b"who")?;
    socket.recv(&mut [0; 64])
}

/// A node with the routes, attached to every device in one way.
fn attached<'n>(lab: &'n Topology, attach: &'static str) -> TestNode<'n> {
    let mut node = TestNode::router(lab).unwrap();
    for port in ["lan", "uplink-a", "uplink-b", "uplink-c"] {
        node.set_attach(port, attach).unwrap();
    }
    node.write("routes.yaml", &routes(lab)).unwrap();
    node
}

#[test]
fn what_no_backend_takes_is_rejected_and_the_vip_answers_pings() {
    let lab = lab();
    for attach in ["native", "tc", "generic"] {
        let node = attached(&lab, attach);
        let ports = "{port: 443}, {port: 53, protocol: udp}";
        for (name, vip, backend) in
            [("four", VIP, lab.upstreams[0].v4.to_string()), ("six", VIP6, lab.upstreams[0].v6.to_string())]
        {
            let drained = [format!("{backend} weight=0")];
            let more = "  onNoBackend: reject\n  echo: answer\n";
            node.write(&format!("{name}.yaml"), &service(name, vip, "nat", ports, &drained, more)).unwrap();
        }
        node.apply().unwrap();
        for vip in [VIP, VIP6] {
            let refused = Client::connect(&lab, vip).err().map(|error| error.kind());
            assert_eq!(refused, Some(std::io::ErrorKind::ConnectionRefused), "{attach} {vip}: a reset");
            let refused = datagram(&lab, vip).err().map(|error| error.kind());
            assert_eq!(refused, Some(std::io::ErrorKind::ConnectionRefused), "{attach} {vip}: port unreachable");
            let answer = wayleave_tests::ping(&lab.client.namespace, vip.parse().unwrap(), 2 * SECOND).unwrap();
            assert!(answer.is_some(), "{attach} {vip}: a ping");
        }
        let counters = node.counters().unwrap();
        assert_eq!(
            (counters.get("answer/no-backend-reject"), counters.get("answer/echo-answered")),
            (4, 2),
            "{attach}"
        );
    }
}

/// Handshakes as fast as this machine sends them, to a service without backends: no more are answered than a CPU may.
#[test]
fn a_flood_is_not_answered_above_the_rate() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    node.write("routes.yaml", &routes(&lab)).unwrap();
    let drained = [format!("{} weight=0", lab.upstreams[0].v4)];
    node.write("api.yaml", &service("api", VIP, "nat", NAT_PORT, &drained, "  onNoBackend: reject\n")).unwrap();
    node.apply().unwrap();
    let syn = |number: u16| {
        Packet::between(lab.client.v4.into(), VIP.parse().unwrap())
            .macs(lab.client.mac, lab.client.router_mac)
            .tcp(1024 + number, PORT, tcp_flags::SYN)
            .frame()
    };
    let started = Instant::now();
    let flood = Blaster::frames(&lab.client.namespace, "eth0", (0..60_000).map(syn).collect(), None).unwrap();
    thread::sleep(2 * SECOND);
    let sent = flood.stop().unwrap();
    let seconds = started.elapsed().as_secs() + 1;
    let counters = node.counters().unwrap();
    let (answered, dropped) = (counters.get("answer/no-backend-reject"), counters.get("drop/answer-rate"));
    println!("{sent} handshakes in {:?}: {answered} answered, {dropped} not", started.elapsed());
    let cpus = u64::try_from(thread::available_parallelism().unwrap().get()).unwrap();
    // What a CPU may answer at once is as much as it may in a second.
    assert!((1..=1000 * cpus * (seconds + 1)).contains(&answered), "{answered} answered");
    assert!(dropped > answered, "the flood was above the rate: {dropped} dropped");
}

#[test]
fn errors_reach_the_client_and_the_backend() {
    let lab = lab();
    for attach in ["native", "tc", "generic"] {
        let node = attached(&lab, attach);
        let port = "{port: 53, protocol: udp, targetPort: 5399}";
        let upstream = &lab.upstreams[0];
        for (name, vip, backend) in [("four", VIP, upstream.v4.to_string()), ("six", VIP6, upstream.v6.to_string())] {
            node.write(&format!("{name}.yaml"), &service(name, vip, "nat", port, &[backend], "")).unwrap();
        }
        node.apply().unwrap();
        for (vip, own) in [(VIP, IpAddr::from(upstream.v4)), (VIP6, upstream.v6.into())] {
            // Nobody listens there: the backend says so about its own address and port, and the client knows neither.
            let refused = datagram(&lab, vip).err().map(|error| error.kind());
            assert_eq!(refused, Some(std::io::ErrorKind::ConnectionRefused), "{attach} {vip}: at the client");
            // The client goes before the answer comes: its error is about a packet of the vip.
            let server = upstream.namespace.enter(|| UdpSocket::bind(SocketAddr::new(own, 5399))).unwrap().unwrap();
            server.set_read_timeout(Some(2 * SECOND)).unwrap();
            let to = SocketAddr::new(vip.parse().unwrap(), 53);
            let from = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let client = lab.client.namespace.enter(|| UdpSocket::bind(from)).unwrap().unwrap();
            client.send_to(b"who", to).unwrap();
            let (_, peer) = server.recv_from(&mut [0; 64]).unwrap();
            drop(client);
            server.connect(peer).unwrap();
            server.send(b"too late").unwrap();
            let refused = server.recv(&mut [0; 64]).err().map(|error| error.kind());
            assert_eq!(refused, Some(std::io::ErrorKind::ConnectionRefused), "{attach} {vip}: at the backend");
        }
    }
}

#[test]
fn status_counts_packets_by_service_and_backend() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    node.write("routes.yaml", &routes(&lab)).unwrap();
    node.write("api.yaml", &service("api", VIP, "nat", NAT_PORT, &v4(&lab, &[0]), "")).unwrap();
    node.apply().unwrap();
    ask_often(&lab, VIP, 5);
    thread::sleep(SECOND / 5);
    let status = node.status().unwrap();
    assert_eq!(status["services"], 1);
    let api = row(&status, "service_list", "service", "api");
    let packets = api["packets"].as_u64().unwrap();
    assert!(packets >= 20 && api["answers"]["packets"].as_u64().unwrap() >= 15, "{api:#}");
    let backend = &api["backends"][0];
    assert_eq!((backend["backend"].as_str().unwrap(), backend["weight"].as_u64()), ("10.77.1.2", Some(1)));
    assert_eq!(backend["packets"].as_u64(), Some(packets), "every packet went to the only one");
    assert!(status["flow_table"]["begun"].as_u64().unwrap() >= 5, "{}", status["flow_table"]);
    // A publish keeps the counts.
    node.write("api.yaml", &service("api", VIP, "nat", NAT_PORT, &v4(&lab, &[0, 1]), "")).unwrap();
    node.apply().unwrap();
    let status = node.status().unwrap();
    let api = row(&status, "service_list", "service", "api");
    assert!(api["packets"].as_u64().unwrap() >= packets);
    let human = node.succeed(&["status"]).unwrap().stdout;
    assert!(human.contains("api") && human.contains("10.77.1.2"), "{human}");
}

/// The addresses of the lab as the tests above write them.
#[test]
fn the_lab_is_as_the_policies_say() {
    let client: IpAddr = "10.77.0.2".parse().unwrap();
    require_root_and_bpf().unwrap();
    let lab = Topology::with_upstreams(3).unwrap();
    assert_eq!((IpAddr::from(lab.client.v4), lab.client.v6.to_string().as_str()), (client, "fd77::2"));
}
