//! Floods of handshakes from invented sources beside connections that are established: none of these breaks.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]
#![expect(clippy::cast_precision_loss, reason = "a rate is rounded")]

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use aya::maps::{HashMap, Map, MapData};
use fib::service::{FlowKey, FlowWords};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use wayleave_tests::{Blaster, Host, Packet, TestNode, Topology, require_root_and_bpf, tcp_flags};

const SECOND: Duration = Duration::from_secs(1);
const VIP: &str = "198.51.100.10";
const PORT: u16 = 443;
/// Where the servers listen.
const TARGET: u16 = 8099;
const CONNECTIONS: usize = 1_000;
/// How long each flood lasts.
const FLOOD: Duration = Duration::from_secs(10);
/// Sources of a flood, and how often each sends its handshake: again while it may still be in a table.
const SOURCES: u32 = 300_000;
const REPEATS: u32 = 3;
/// How many other sources send between two handshakes of one.
const APART: u32 = 10_000;
/// Handshakes of a flood that comes in bursts, in each second.
const BURST: u32 = 100_000;
/// What one that begins may take.
const NEW: Duration = Duration::from_secs(5);
/// What a connection may wait for an answer: what is lost in full queues is sent again, at last long after the flood.
const PATIENCE: Duration = Duration::from_mins(1);

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

struct Client {
    reader: BufReader<TcpStream>,
    /// Who answered it at first; empty until then.
    backend: String,
}

impl Client {
    fn try_connect(lab: &Topology) -> std::io::Result<TcpStream> {
        let to: SocketAddr = format!("{VIP}:{PORT}").parse().unwrap();
        lab.client.namespace.enter(|| TcpStream::connect_timeout(&to, NEW)).unwrap()
    }

    fn connect(lab: &Topology) -> Self {
        let stream = Self::try_connect(lab).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { reader: BufReader::new(stream), backend: String::new() }
    }

    fn ask(&mut self) -> std::io::Result<()> {
        self.reader.get_mut().write_all(b"who\n")
    }

    /// Whether it is who answered before.
    fn hear(&mut self) -> std::io::Result<()> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let name = line.trim();
        if self.backend.is_empty() {
            name.clone_into(&mut self.backend);
        }
        assert_eq!(name, self.backend, "another backend answers");
        Ok(())
    }
}

/// All ask at once and all hear; how long the slowest waited.
fn ask_all(clients: &mut [Client], when: &str) -> Duration {
    let asked = Instant::now();
    for (number, client) in clients.iter_mut().enumerate() {
        client.ask().unwrap_or_else(|error| panic!("connection {number} broke {when}: {error}"));
    }
    for (number, client) in clients.iter_mut().enumerate() {
        client.hear().unwrap_or_else(|error| panic!("connection {number} broke {when}: {error}"));
    }
    asked.elapsed()
}

/// The weight is that of the first backend.
fn policies(lab: &Topology, node: &TestNode<'_>, weight: u32) {
    let mut hops = String::from("    - {name: client, via: 10.77.0.2, port: lan}\n");
    let mut routes = String::from("    - {prefix: 10.77.0.0/24, nextHops: [{name: client}]}\n");
    let mut backends = String::new();
    for (upstream, letter) in lab.upstreams.iter().zip('a'..) {
        writeln!(hops, "    - {{name: {letter}, via: {}, port: uplink-{letter}}}", upstream.v4).unwrap();
        writeln!(routes, "    - {{prefix: {}/32, nextHops: [{{name: {letter}}}]}}", upstream.v4).unwrap();
        let weight = if letter == 'a' { weight } else { 1 };
        writeln!(backends, "    - {{address: {}, weight: {weight}}}", upstream.v4).unwrap();
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

/// Handshakes from random sources, in the order in which they are sent.
fn handshakes(lab: &Topology) -> Vec<Vec<u8>> {
    let syn = |number: u32| {
        // Of RFC 2544's addresses, which nobody here has.
        let random = fib::hash::mix(u64::from(number) + 1).to_be_bytes();
        let port = u16::from_be_bytes([random[3], random[4]]).max(1024);
        Packet::between(IpAddr::from([198, 18 + random[0] % 2, random[1], random[2]]), VIP.parse().unwrap())
            .macs(lab.client.mac, lab.client.router_mac)
            .tcp(port, PORT, tcp_flags::SYN)
            .frame()
    };
    let rounds = (0..SOURCES).step_by(APART as usize).flat_map(|first| (0..REPEATS).map(move |_| first..first + APART));
    rounds.flatten().map(syn).collect()
}

/// Entries of a map of flows.
fn entries(node: &TestNode<'_>, map: &str) -> usize {
    let map = MapData::from_pin(node.pins().join("maps").join(map)).unwrap();
    let flows: HashMap<_, FlowKey, FlowWords> = HashMap::try_from(Map::LruHashMap(map)).unwrap();
    flows.keys().count()
}

/// What a flood did.
struct Flooded {
    sent: u64,
    lasted: Duration,
    /// Rounds of one question of each connection that spoke, and the longest wait for an answer.
    rounds: u32,
    slowest: Duration,
    /// Connections that were tried meanwhile, five seconds long each, and those of them that were made.
    tried: u32,
    made: u32,
}

/// Sends as the blasters that `flood` makes do, while these connections speak; it is asked again every second.
fn flood(lab: &Topology, clients: &mut [Client], what: &str, mut flood: impl FnMut() -> Option<Blaster>) -> Flooded {
    let started = Instant::now();
    let mut blasters: Vec<Blaster> = flood().into_iter().collect();
    let mut asked = 1;
    thread::scope(|scope| {
        let speaking = scope.spawn(|| {
            let (mut rounds, mut slowest) = (0, Duration::ZERO);
            while started.elapsed() < FLOOD {
                slowest = slowest.max(ask_all(clients, what));
                rounds += 1;
            }
            (rounds, slowest)
        });
        // They compete with the flood for the rate of new flows: how many come through says nothing of those that are established.
        let new = [(); 20].map(|()| {
            scope.spawn(|| {
                let (mut tried, mut made) = (0, 0);
                while started.elapsed() + NEW < FLOOD {
                    // Few enough that they do not fill the table themselves.
                    thread::sleep(SECOND / 50);
                    tried += 1;
                    made += u32::from(Client::try_connect(lab).is_ok());
                }
                (tried, made)
            })
        });
        while started.elapsed() < FLOOD {
            thread::sleep(Duration::from_millis(10));
            if started.elapsed() >= asked * SECOND && asked * SECOND < FLOOD {
                asked += 1;
                blasters.extend(flood());
            }
        }
        let lasted = started.elapsed();
        let sent = blasters.into_iter().map(|blaster| blaster.stop().unwrap()).sum::<u64>();
        let (rounds, slowest) = speaking.join().unwrap();
        let new = new.map(|thread| thread.join().unwrap());
        let (tried, made) = new.iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        Flooded { sent, lasted, rounds, slowest, tried, made }
    })
}

#[test]
fn a_thousand_connections_live_through_floods_of_handshakes() {
    require_root_and_bpf().unwrap();
    // Both ends of every connection are this process's.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
    let lab = Topology::with_upstreams(3).unwrap();
    lab.fix_neighbours().unwrap();
    lab.upstreams.iter().for_each(serve);
    let node = TestNode::router(&lab).unwrap();
    policies(&lab, &node, 1);
    node.apply().unwrap();
    let mut clients: Vec<Client> = (0..CONNECTIONS).map(|_| Client::connect(&lab)).collect();
    // A half speaks all the time; of those that will be silent, a half has said something and a half never.
    let (speaking, silent) = clients.split_at_mut(CONNECTIONS / 2);
    ask_all(speaking, "before the flood");
    ask_all(&mut silent[..CONNECTIONS / 4], "before the flood");
    // From here on only the flow table knows where the flows of the first backend are: neither Maglev's table nor that of the generation
    // before would send them there.
    for weight in [0, 0] {
        policies(&lab, &node, weight);
        node.write(&format!("again-{weight}.txt"), "").unwrap();
        node.apply().unwrap();
    }
    ask_all(speaking, "when its backend was drained");

    let frames = handshakes(&lab);
    let (mut seen, mut made) = (0, 0);
    let mut report = |what: &str, flooded: &Flooded| {
        let table = node.status().unwrap()["flow_table"].clone();
        let all = table["begun"].as_u64().unwrap() + table["refused"].as_u64().unwrap();
        let established = entries(&node, "FLOWS");
        println!(
            "{what}: {} handshakes sent, {:.0} a second, of which the program saw {}; {} rounds of {} questions, the slowest answer after {:?}; {} of {} new \
             connections made; \
             {established} entries of established flows: {table}",
            flooded.sent,
            flooded.sent as f64 / flooded.lasted.as_secs_f64(),
            all - seen,
            flooded.rounds,
            CONNECTIONS / 2,
            flooded.slowest,
            flooded.made,
            flooded.tried,
        );
        seen = all;
        made += flooded.made as usize;
        assert!(
            established <= 2 * (CONNECTIONS + made),
            "{established} entries of established flows: the flood is among them"
        );
        table
    };
    let mut is_first = true;
    let steady = flood(&lab, speaking, "under a steady flood", || {
        std::mem::take(&mut is_first)
            .then(|| Blaster::frames(&lab.client.namespace, "eth0", frames.clone(), None).unwrap())
    });
    report("a steady flood from one processor", &steady);
    let mut bursts = frames.chunks_exact(BURST as usize).cycle();
    let bursts = flood(&lab, speaking, "under a flood in bursts", || {
        let frames = bursts.next().unwrap().to_vec();
        Some(Blaster::frames(&lab.client.namespace, "eth0", frames, Some(BURST.into())).unwrap())
    });
    let table = report("a flood in bursts", &bursts);

    ask_all(silent, "after the flood");
    ask_all(speaking, "after the flood");
    let sent = steady.sent + bursts.sent;
    assert!(sent > 500_000, "{sent} handshakes are no flood");
    let (begun, refused) = (table["begun"].as_u64().unwrap(), table["refused"].as_u64().unwrap());
    assert!(refused > begun, "most of the flood is over the rate: {table}");
    // And new ones come.
    ask_all(&mut [Client::connect(&lab)], "though it is new");
}
