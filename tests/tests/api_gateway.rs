//! The gateway's front of `examples/api-gateway`: its demonstration as a user runs it, and ten thousand requests to nginx while
//! backends come, are drained, go and die.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use wayleave::daemon::apply::{apply, propose};
use wayleave_tests::{Host, TestNode, Topology, binary, require_root_and_bpf};

#[test]
fn the_demonstration_shows_what_it_says_and_leaves_nothing() {
    require_root_and_bpf().unwrap();
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/api-gateway/demo");
    let left = || -> Vec<PathBuf> {
        let names = fs::read_dir("/run/netns").into_iter().flatten().flatten().map(|entry| entry.path());
        names.filter(|path| path.to_string_lossy().contains("/gateway-")).collect()
    };
    let before = left();
    let output = Command::new(example).env("WAYLEAVE", binary().unwrap()).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "it ended with {}", output.status);
    for step in ["1. Balancing", "2. Drain", "3. A dying", "4. A blocked", "5. A rate-limited", "6. A rolling"] {
        assert!(said.contains(step), "no {step}");
    }
    assert_eq!(left(), before, "namespaces are left");
}

// ---- requests under changes

const SECOND: Duration = Duration::from_secs(1);
const REQUESTS_MIN: usize = 10_000;
const PUBLISHES_MIN: usize = 100;
/// Requests on a connection that is kept.
const KEPT: usize = 25;
/// Between two requests of a worker.
const PAUSE: Duration = Duration::from_millis(1);
const NAT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
const DIRECT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 20);
/// The upstream that is killed.
const KILLED: usize = 1;

/// An instance of nginx on an upstream; it answers with the upstream's number.
struct Instance {
    process: Child,
}

impl Instance {
    fn start(node: &TestNode, host: &Host, number: usize) -> Self {
        let directory = node.scratch().join(format!("nginx-{number}"));
        fs::create_dir_all(&directory).unwrap();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|of| format!("  {of}_temp_path {}/{of};\n", directory.display()))
            .concat();
        let text = format!(
            "daemon off;\nmaster_process off;\npid {directory}/pid;\nerror_log {directory}/error.log;\nevents {{ worker_connections \
             4096; }}\nhttp {{\n  access_log off;\n  keepalive_requests 100000;\n{temporary}  server {{\n    listen 80;\n    listen \
             8080;\n    default_type text/plain;\n    location / {{ return 200 \"{number}\"; }}\n  }}\n}}\n",
            directory = directory.display()
        );
        let config = directory.join("nginx.conf");
        fs::write(&config, text).unwrap();
        let mut command = host.namespace.command("nginx");
        command.arg("-e").arg(directory.join("error.log")).arg("-p").arg(&directory).arg("-c").arg(&config);
        let process = command.stdin(Stdio::null()).spawn().expect("nginx is needed: Debian's nginx-light");
        let instance = Self { process };
        let deadline = Instant::now() + 5 * SECOND;
        let address = SocketAddr::from((host.v4, 8080));
        while host.namespace.enter(|| TcpStream::connect(address)).unwrap().is_err() {
            assert!(Instant::now() < deadline, "nginx does not listen");
            thread::sleep(Duration::from_millis(10));
        }
        instance
    }

    /// Without a word to its clients.
    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[derive(Debug)]
struct Failure {
    at: Instant,
    /// Whose connection it was, once it has answered.
    instance: Option<usize>,
    what: String,
}

#[derive(Debug, Default)]
struct Tally {
    /// Requests that were answered with 200, by address, whether the connection is kept, and instance.
    answered: BTreeMap<(Ipv4Addr, bool, usize), usize>,
    failures: Vec<Failure>,
}

impl Tally {
    fn count(&self, wanted: impl Fn(&(Ipv4Addr, bool, usize)) -> bool) -> usize {
        self.answered.iter().filter(|(key, _)| wanted(key)).map(|(_, count)| count).sum()
    }
}

/// One request on a connection; the number of the instance that answers.
fn request(stream: &mut BufReader<TcpStream>, is_kept: bool) -> Result<usize, String> {
    let connection = if is_kept { "keep-alive" } else { "close" };
    let text = format!("GET / HTTP/1.1\r\nHost: api.example.org\r\nConnection: {connection}\r\n\r\n");
    stream.get_mut().write_all(text.as_bytes()).map_err(|e| format!("sending: {e}"))?;
    let mut length = 0;
    let mut status = None;
    loop {
        let mut line = String::new();
        let bytes = stream.read_line(&mut line).map_err(|e| format!("receiving: {e}"))?;
        if bytes == 0 {
            return Err("closed before the end of the answer".to_owned());
        }
        let line = line.trim_end();
        if status.is_none() {
            status = Some(line.to_owned());
        } else if line.is_empty() {
            break;
        } else if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().map_err(|_| format!("a length of {value}"))?;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).map_err(|e| format!("receiving the body: {e}"))?;
    if status.as_deref() != Some("HTTP/1.1 200 OK") {
        return Err(format!("{status:?}"));
    }
    if !is_kept {
        let more = stream.read(&mut [0; 1]).map_err(|e| format!("the end: {e}"))?;
        if more != 0 {
            return Err("more than the answer".to_owned());
        }
    }
    String::from_utf8_lossy(&body).parse().map_err(|_| format!("a body of {body:?}"))
}

/// Connections to one address until `stop`, one after the other; in the client's namespace.
fn work(to: Ipv4Addr, is_kept: bool, stop: &AtomicBool, tally: &Mutex<Tally>) {
    while !stop.load(Ordering::Relaxed) {
        let mut instance = None;
        let mut connection = || -> Result<(), String> {
            let stream =
                TcpStream::connect_timeout(&(to, 80).into(), 3 * SECOND).map_err(|e| format!("connecting: {e}"))?;
            stream.set_read_timeout(Some(3 * SECOND)).unwrap();
            stream.set_nodelay(true).unwrap();
            let mut stream = BufReader::new(stream);
            for _ in 0..if is_kept { KEPT } else { 1 } {
                let by = request(&mut stream, is_kept)?;
                if instance.is_some_and(|before| before != by) {
                    return Err(format!("answered by {by} on a connection of {instance:?}"));
                }
                instance = Some(by);
                *tally.lock().unwrap().answered.entry((to, is_kept, by)).or_default() += 1;
                thread::sleep(PAUSE);
            }
            Ok(())
        };
        if let Err(what) = connection() {
            let what = format!("{to} {}: {what}", if is_kept { "kept" } else { "short" });
            tally.lock().unwrap().failures.push(Failure { at: Instant::now(), instance, what });
        }
    }
}

/// Connections of the server that somebody may still wait for an answer on.
fn open_connections(host: &Host) -> usize {
    let table = host.namespace.enter(|| fs::read_to_string("/proc/thread-self/net/tcp")).unwrap().unwrap();
    let is_open = |line: &&str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, local, _, state, ..] = words[..] else { return false };
        // ESTABLISHED, SYN_RECV, FIN_WAIT1 and CLOSE_WAIT of include/net/tcp_states.h; NEW_SYN_RECV is shown as SYN_RECV.
        [":0050", ":1F90"].iter().any(|port| local.ends_with(port)) && ["01", "03", "04", "08"].contains(&state)
    };
    table.lines().filter(is_open).count()
}

/// Services, routes and filter of one generation: the weight of each upstream, `None` where it is no backend.
fn write(lab: &Topology, node: &TestNode, weights: &[Option<u16>], number: usize) {
    let mut hops = String::from("    - {name: client, via: 10.77.0.2, port: lan}\n");
    let mut routes = String::from("    - {prefix: 10.77.0.0/24, nextHops: [{name: client}]}\n");
    for (upstream, letter) in lab.upstreams.iter().zip('a'..) {
        writeln!(hops, "    - {{name: {letter}, via: {}, port: uplink-{letter}}}", upstream.v4).unwrap();
        writeln!(routes, "    - {{prefix: {}/32, nextHops: [{{name: {letter}}}]}}", upstream.v4).unwrap();
    }
    let document = |kind: &str, name: &str, spec: &str| {
        format!("apiVersion: wayleave/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec:\n{spec}")
    };
    let spec = format!("  nextHops:\n{hops}  routes:\n{routes}");
    node.write("routes.yaml", &document("RoutePolicy", "backends", &spec)).unwrap();
    let backends: String = lab
        .upstreams
        .iter()
        .zip(weights)
        .filter_map(|(upstream, weight)| Some(format!("    - {{address: {}, weight: {}}}\n", upstream.v4, (*weight)?)))
        .collect();
    for (name, vip, how, port) in
        [("api", NAT, "nat", "{port: 80, targetPort: 8080}"), ("direct", DIRECT, "l2-dsr", "{port: 80}")]
    {
        let spec = format!("  vip: {vip}\n  ports: [{port}]\n  forwarding: {how}\n  backends:\n{backends}");
        node.write(&format!("{name}.yaml"), &document("ServicePolicy", name, &spec)).unwrap();
    }
    let spec = format!(
        "  default: deny\n  rules:\n    - {{name: moving, from: [192.0.2.{}/32], action: deny}}\n    - {{name: requests, inPort: lan, \
         protocol: tcp, ports: [80], action: allow}}\n    - {{name: answers, protocol: tcp, sourcePorts: [80, 8080], action: \
         allow}}\n",
        number % 250
    );
    node.write("edge.yaml", &document("FilterPolicy", "edge", &spec)).unwrap();
}

#[test]
fn ten_thousand_requests_under_a_hundred_publishes_and_none_fails() {
    require_root_and_bpf().unwrap();
    let lab = Topology::with_upstreams(4).unwrap();
    lab.fix_neighbours().unwrap();
    let node = TestNode::router(&lab).unwrap();
    let start = |number: usize| Instance::start(&node, &lab.upstreams[number], number);
    let mut instances: Vec<Instance> = (0..4).map(start).collect();
    let (stop, tally) = (AtomicBool::new(false), Mutex::new(Tally::default()));
    let publishes = Cell::new(0);
    let mut weights = [Some(1), Some(1), Some(1), None];
    write(&lab, &node, &weights, 0);
    node.apply().unwrap();

    // From the kill until no packet can meet a generation with the killed instance.
    let mut dying = None;
    let begun = Instant::now();
    thread::scope(|scope| {
        for (to, is_kept) in [(NAT, true), (NAT, false), (DIRECT, true), (DIRECT, false)].repeat(2) {
            let (lab, stop, tally) = (&lab, &stop, &tally);
            scope.spawn(move || {
                lab.client.namespace.join_current_thread().unwrap();
                work(to, is_kept, stop, tally);
            });
        }
        let library = node.library().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        // Publishes the weights; `between` runs when all that is left is the publish itself.
        let publish = |weights: &[Option<u16>; 4], between: &mut (dyn FnMut() + Send)| {
            publishes.set(publishes.get() + 1);
            write(&lab, &node, weights, publishes.get());
            let all = || {
                runtime.block_on(async {
                    let proposal = propose(&library, &node.source()).await.unwrap();
                    between();
                    let applied = apply(&library, proposal, &mut |_| {}).await.unwrap();
                    assert!(applied.report.published.is_some());
                });
            };
            lab.router.enter(all).unwrap();
        };
        // Once no client waits for anything there.
        let wait_for_the_last = |number: usize| {
            let deadline = Instant::now() + 20 * SECOND;
            loop {
                thread::sleep(Duration::from_millis(20));
                if open_connections(&lab.upstreams[number]) == 0 {
                    break;
                }
                assert!(Instant::now() < deadline, "{number} is drained and gets new connections");
            }
        };
        let mut round = 0;
        loop {
            // The fourth comes, and gets more.
            for weight in [1, 3] {
                weights[3] = Some(weight);
                publish(&weights, &mut || ());
            }
            // Another one is drained, goes and comes back.
            let other = round % 3;
            for weight in [Some(0), None, Some(1)] {
                if weight.is_none() {
                    wait_for_the_last(other);
                }
                weights[other] = weight;
                publish(&weights, &mut || ());
            }
            weights[3] = Some(0);
            publish(&weights, &mut || ());
            wait_for_the_last(3);
            weights[3] = None;
            publish(&weights, &mut || ());
            if round == 5 {
                weights[KILLED] = None;
                let mut killed = None;
                publish(&weights, &mut || {
                    killed = Some(Instant::now());
                    instances[KILLED].kill();
                });
                dying = Some((killed.unwrap(), Instant::now()));
                thread::sleep(SECOND / 2);
                instances[KILLED] = start(KILLED);
                weights[KILLED] = Some(1);
                publish(&weights, &mut || ());
            }
            round += 1;
            if round > 6 && publishes.get() >= PUBLISHES_MIN && tally.lock().unwrap().count(|_| true) >= REQUESTS_MIN {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    let (took, publishes) = (begun.elapsed(), publishes.get());
    let tally = tally.into_inner().unwrap();
    let (killed, gone) = dying.unwrap();
    // What was under way to the killed instance when it died; a request that began just before may be told a little later.
    let (in_flight, failed): (Vec<&Failure>, Vec<&Failure>) = tally.failures.iter().partition(|failure| {
        failure.at >= killed
            && failure.at <= gone + SECOND / 4
            && failure.instance.is_none_or(|instance| instance == KILLED)
    });
    println!(
        "{} requests in {took:?} under {publishes} publishes; {} failed on the killed instance in {:?}, {} others: {:?}",
        tally.count(|_| true),
        in_flight.len(),
        gone - killed,
        failed.len(),
        tally.answered
    );
    let reasons: Vec<String> = failed
        .iter()
        .map(|failure| {
            format!("{:?} after the start, instance {:?}: {}", failure.at - begun, failure.instance, failure.what)
        })
        .collect();
    assert!(failed.is_empty(), "{}\n{:?}", reasons.join("\n"), node.counters());
    assert!(in_flight.len() <= tally.count(|_| true) / 100, "the killed instance was in use for long: {in_flight:?}");
    assert!(publishes >= PUBLISHES_MIN && tally.count(|_| true) >= REQUESTS_MIN);
    for (to, is_kept) in [(NAT, true), (NAT, false), (DIRECT, true), (DIRECT, false)] {
        let count = tally.count(|key| (key.0, key.1) == (to, is_kept));
        assert!(count >= REQUESTS_MIN / 20, "{to}, kept: {is_kept}: only {count}");
    }
    for instance in 0..4 {
        let count = tally.count(|key| key.2 == instance);
        assert!(count >= REQUESTS_MIN / 50, "instance {instance} answered only {count}");
    }
}
