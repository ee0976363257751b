//! A flood of handshakes from spoofed sources beside connections that are established: none of these breaks.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]
#![expect(clippy::cast_precision_loss, reason = "a rate is rounded")]

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use wayleave_tests::{Blaster, Host, Packet, TestNode, Topology, require_root_and_bpf, tcp_flags};

const SECOND: Duration = Duration::from_secs(1);
const VIP: &str = "198.51.100.10";
const PORT: u16 = 443;
/// Where the servers listen.
const TARGET: u16 = 8099;
const CONNECTIONS: usize = 1_000;
/// How long the flood lasts.
const FLOOD: Duration = Duration::from_secs(10);
/// Handshakes a second: eight times as many as the node takes, and no more than leave it a processor for the rest. With as many as one
/// processor can send, 400,000, connections here starve: the README says so.
const RATE: u32 = 100_000;
/// What a connection may wait for an answer: retransmissions in between are no break.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server that answers every line with its name.
fn serve(host: &Host) {
    let listener = host.namespace.enter(|| TcpListener::bind(("0.0.0.0", TARGET))).unwrap().unwrap();
    let name = host.v4.to_string();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { return };
            let name = name.clone();
            let work = move || {
                let mut reader = BufReader::new(stream);
                let mut line = String::new();
                while reader.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
                    if writeln!(reader.get_mut(), "{name}").is_err() {
                        return;
                    }
                    line.clear();
                }
            };
            // A thousand of them do nearly nothing.
            thread::Builder::new().stack_size(64 << 10).spawn(work).unwrap();
        }
    });
}

/// The flow table may be filled anew in five seconds (`kernel/flows.rs`): what is silent for as long may be forgotten. Only a machine
/// with other work comes that far between two questions.
const SILENCE: Duration = Duration::from_secs(4);

struct Client {
    reader: BufReader<TcpStream>,
    /// When it last had an answer.
    heard: Instant,
    backend: String,
    is_forgotten: bool,
}

impl Client {
    fn connect(lab: &Topology) -> Self {
        let to: SocketAddr = format!("{VIP}:{PORT}").parse().unwrap();
        let stream = lab.client.namespace.enter(|| TcpStream::connect_timeout(&to, 5 * SECOND)).unwrap().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut client =
            Self { reader: BufReader::new(stream), heard: Instant::now(), backend: String::new(), is_forgotten: false };
        client.backend = client.ask().unwrap();
        client
    }

    /// Who answers.
    fn ask(&mut self) -> std::io::Result<String> {
        self.reader.get_mut().write_all(b"who\n")?;
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        self.heard = Instant::now();
        Ok(line.trim().to_owned())
    }
}

fn policies(lab: &Topology, node: &TestNode<'_>) {
    let mut hops = String::from("    - {name: client, via: 10.77.0.2, port: lan}\n");
    let mut routes = String::from("    - {prefix: 10.77.0.0/24, nextHops: [{name: client}]}\n");
    let mut backends = String::new();
    for (upstream, letter) in lab.upstreams.iter().zip('a'..) {
        writeln!(hops, "    - {{name: {letter}, via: {}, port: uplink-{letter}}}", upstream.v4).unwrap();
        writeln!(routes, "    - {{prefix: {}/32, nextHops: [{{name: {letter}}}]}}", upstream.v4).unwrap();
        writeln!(backends, "    - {{address: {}}}", upstream.v4).unwrap();
    }
    let routes = format!(
        "apiVersion: wayleave/v1\nkind: RoutePolicy\nmetadata: {{name: backends}}\nspec:\n  nextHops:\n{hops}  routes:\n{routes}"
    );
    node.write("routes.yaml", &routes).unwrap();
    let service = format!(
        "apiVersion: wayleave/v1\nkind: ServicePolicy\nmetadata: {{name: api}}\nspec:\n  vip: {VIP}\n  ports: [{{port: {PORT}, \
         targetPort: {TARGET}}}]\n  forwarding: nat\n  backends:\n{backends}"
    );
    node.write("api.yaml", &service).unwrap();
}

#[test]
fn a_thousand_connections_live_through_a_flood_of_handshakes() {
    require_root_and_bpf().unwrap();
    // Both ends of every connection are this process's.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
    let lab = Topology::with_upstreams(3).unwrap();
    lab.fix_neighbours().unwrap();
    lab.upstreams.iter().for_each(serve);
    let node = TestNode::router(&lab).unwrap();
    policies(&lab, &node);
    node.apply().unwrap();
    let mut clients: Vec<Client> = (0..CONNECTIONS).map(|_| Client::connect(&lab)).collect();

    let syn = |number: u32| {
        let [_, a, b, c] = number.to_be_bytes();
        Packet::between(IpAddr::from([198, 18 + a % 2, b, c]), VIP.parse().unwrap())
            .macs(lab.client.mac, lab.client.router_mac)
            .tcp(1024 + u16::try_from(number % 60_000).unwrap(), PORT, tcp_flags::SYN)
            .frame()
    };
    let started = Instant::now();
    // Each second's all at once.
    let flood = |second: u32| {
        let frames = (second * RATE..(second + 1) * RATE).map(syn).collect();
        Blaster::frames(&lab.client.namespace, "eth0", frames, Some(RATE.into())).unwrap()
    };
    let mut bursts = vec![flood(0)];
    let (mut rounds, mut slowest, mut forgotten) = (0, Duration::ZERO, 0);
    while started.elapsed() < FLOOD || rounds < 2 {
        for (number, client) in clients.iter_mut().enumerate().filter(|(_, client)| !client.is_forgotten) {
            let (asked, silent) = (Instant::now(), client.heard.elapsed());
            let answer = match client.ask() {
                Ok(answer) => answer,
                Err(_) if silent > SILENCE => {
                    client.is_forgotten = true;
                    forgotten += 1;
                    continue;
                }
                Err(error) => panic!("connection {number} broke in round {rounds} after {silent:?}: {error}"),
            };
            assert_eq!(answer, client.backend, "connection {number} in round {rounds}");
            slowest = slowest.max(asked.elapsed());
        }
        rounds += 1;
        let due = u32::try_from(started.elapsed().as_secs()).unwrap();
        if u32::try_from(bursts.len()).unwrap() <= due {
            bursts.push(flood(due));
        }
    }
    let lasted = started.elapsed();
    let sent: u64 = bursts.into_iter().map(|burst| burst.wait().unwrap()).sum();
    for (number, client) in clients.iter_mut().enumerate().filter(|(_, client)| !client.is_forgotten) {
        let answer = client.ask().unwrap_or_else(|error| panic!("connection {number} broke after the flood: {error}"));
        assert_eq!(answer, client.backend, "connection {number} after the flood");
    }
    let table = node.status().unwrap()["flow_table"].clone();
    let (begun, refused) = (table["begun"].as_u64().unwrap(), table["refused"].as_u64().unwrap());
    println!(
        "{CONNECTIONS} connections, {rounds} rounds of one question each in {lasted:?}, the slowest answer after {slowest:?}, \
         {forgotten} silent for too long; {sent} \
         handshakes sent, {:.0} a second; {begun} flows begun, {refused} refused: {table}",
        sent as f64 / lasted.as_secs_f64()
    );
    assert!(forgotten < CONNECTIONS / 2, "{forgotten} connections were silent for {SILENCE:?} and more");
    assert!(sent > 500_000, "{sent} handshakes are no flood");
    assert!(refused > sent / 2, "most of the flood is over the rate: {table}");
}
