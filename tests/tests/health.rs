//! Health checks: real servers in namespaces that stop and come back, and where connections go meanwhile.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use wayleave_tests::{Daemon, Host, TestNode, Topology, require_root_and_bpf};

const SECOND: Duration = Duration::from_secs(1);
const VIP: &str = "198.51.100.10";
/// Where the servers listen.
const TARGET: u16 = 8099;
/// What the daemon may need beyond the times that the policy says, on a busy machine.
const SLACK: Duration = Duration::from_millis(2500);

/// A server that answers GETs with `status`, whose body is its name, until it is stopped.
struct Server {
    stop: Arc<AtomicBool>,
    status: Arc<AtomicU16>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(host: &Host) -> Self {
        let bind = || TcpListener::bind(("0.0.0.0", TARGET));
        let listener = host.namespace.enter(bind).unwrap().unwrap();
        listener.set_nonblocking(true).unwrap();
        let (stop, status) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU16::new(200)));
        let (stopped, says, name) = (Arc::clone(&stop), Arc::clone(&status), host.v4.to_string());
        let serve = move || {
            while !stopped.load(Ordering::Relaxed) {
                let Ok((stream, _)) = listener.accept() else {
                    thread::sleep(Duration::from_millis(2));
                    continue;
                };
                stream.set_nonblocking(false).unwrap();
                stream.set_read_timeout(Some(SECOND / 5)).unwrap();
                let mut reader = BufReader::new(stream);
                let mut line = String::new();
                while reader.read_line(&mut line).is_ok_and(|bytes| bytes > 2) {
                    line.clear();
                }
                let (status, length) = (says.load(Ordering::Relaxed), name.len());
                let _ = write!(
                    reader.get_mut(),
                    "HTTP/1.1 {status} It\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{name}"
                );
            }
        };
        Self { stop, status, thread: Some(thread::spawn(serve)) }
    }

    fn says(&self, status: u16) {
        self.status.store(status, Ordering::Relaxed);
    }
}

/// Its port is closed then.
impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lab() -> (Topology, Vec<Server>) {
    require_root_and_bpf().unwrap();
    let lab = Topology::with_upstreams(3).unwrap();
    lab.fix_neighbours().unwrap();
    let servers = lab.upstreams.iter().map(Server::start).collect();
    (lab, servers)
}

/// The node with routes to everybody and a service of all upstreams.
fn node<'t>(lab: &'t Topology, more: &str) -> TestNode<'t> {
    let node = TestNode::router(lab).unwrap();
    let mut hops = String::from("    - {name: client, via: 10.77.0.2, port: lan}\n");
    let mut routes = String::from("    - {prefix: 10.77.0.0/24, nextHops: [{name: client}]}\n");
    let mut backends = String::new();
    for (upstream, letter) in lab.upstreams.iter().zip('a'..) {
        let _ = writeln!(hops, "    - {{name: {letter}, via: {}, port: uplink-{letter}}}", upstream.v4);
        let _ = writeln!(routes, "    - {{prefix: {}/32, nextHops: [{{name: {letter}}}]}}", upstream.v4);
        let _ = writeln!(backends, "    - {{address: {}}}", upstream.v4);
    }
    let routes = format!(
        "apiVersion: wayleave/v1\nkind: RoutePolicy\nmetadata: {{name: backends}}\nspec:\n  nextHops:\n{hops}  routes:\n{routes}"
    );
    node.write("routes.yaml", &routes).unwrap();
    let service = format!(
        "apiVersion: wayleave/v1\nkind: ServicePolicy\nmetadata: {{name: api}}\nspec:\n  vip: {VIP}\n  \
         ports: [{{port: 80, targetPort: {TARGET}}}]\n  forwarding: nat\n  backends:\n{backends}{more}"
    );
    node.write("api.yaml", &service).unwrap();
    node
}

/// Who answers a new connection.
fn ask(lab: &Topology) -> Option<String> {
    let to: SocketAddr = format!("{VIP}:80").parse().unwrap();
    let mut stream = lab.client.namespace.enter(|| TcpStream::connect_timeout(&to, SECOND)).unwrap().ok()?;
    stream.set_read_timeout(Some(SECOND)).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: api\r\n\r\n").ok()?;
    BufReader::new(stream).lines().map_while(Result::ok).last().filter(|line| line.starts_with("10."))
}

/// Who answers so many, none of which may fail.
fn answers(lab: &Topology, times: usize) -> BTreeSet<String> {
    (0..times).map(|_| ask(lab).unwrap_or_else(|| panic!("a connection failed"))).collect()
}

/// The service as `status` has it.
fn api(node: &TestNode<'_>) -> Value {
    node.status().unwrap()["service_list"][0].clone()
}

fn states(node: &TestNode<'_>) -> Vec<String> {
    let api = api(node);
    let state = |backend: &Value| backend["health"]["state"].as_str().unwrap_or("none").to_owned();
    api["backends"].as_array().unwrap().iter().map(state).collect()
}

/// Waits until the backends are in these states; returns how long that took.
fn wait_for(node: &TestNode<'_>, expected: [&str; 3], within: Duration) -> Duration {
    let started = Instant::now();
    loop {
        let states = states(node);
        if states == expected {
            return started.elapsed();
        }
        assert!(started.elapsed() < within, "{states:?} instead of {expected:?} after {within:?}: {:#}", api(node));
        thread::sleep(Duration::from_millis(20));
    }
}

const TCP: &str = "  health: {tcp: {}, interval: 500ms, timeout: 300ms, rise: 3, fall: 2}\n";

#[test]
fn a_backend_that_dies_gets_no_connection_and_gets_them_again_when_it_is_back() {
    let (lab, mut servers) = lab();
    let node = node(&lab, TCP);
    let daemon = Daemon::start(&node);
    wait_for(&node, ["healthy"; 3], 2 * SECOND + SLACK);
    assert_eq!(answers(&lab, 40).len(), 3, "all serve");
    let dead = lab.upstreams[1].v4.to_string();
    drop(servers.remove(1));
    // One interval, and two tries of which each is refused at once.
    let took = wait_for(&node, ["healthy", "unhealthy", "healthy"], SECOND / 2 + SLACK);
    println!("out after {took:?}");
    let rest = answers(&lab, 60);
    assert!(rest.len() == 2 && !rest.contains(&dead), "{rest:?}");
    let status = node.status().unwrap();
    assert_eq!((&status["health"]["state"], &status["health"]["reason"]), (&"degraded".into(), &"backend-down".into()));
    let backend = &status["service_list"][0]["backends"][1];
    assert_eq!((&backend["weight"], &backend["health"]["used"]), (&1.into(), &false.into()), "{backend:#}");
    assert!(backend["health"]["reason"].as_str().unwrap().contains("refused"), "{backend:#}");
    assert!(backend["health"]["since"].is_string() && backend["health"]["checks"].as_u64() > Some(0), "{backend:#}");
    let human = node.succeed(&["status"]).unwrap().stdout;
    assert!(human.contains(&format!("{dead} ×1, unhealthy since ")) && human.contains("(backend-down)"), "{human}");
    // A plan shows it apart from what it would change.
    let plan = node.succeed(&["plan"]).unwrap().stdout;
    assert!(
        plan.contains("Runtime (not part of the plan)") && plan.contains(&format!("api/{dead} is unhealthy")),
        "{plan}"
    );
    servers.insert(1, Server::start(&lab.upstreams[1]));
    // Three checks: the first within an interval, then one each interval.
    let took = wait_for(&node, ["healthy"; 3], 2 * SECOND + SLACK);
    assert!(took > Duration::from_millis(700), "not before three checks: {took:?}");
    assert_eq!(answers(&lab, 40).len(), 3, "all serve again");
    assert_eq!(node.status().unwrap()["health"]["state"], "healthy");
    daemon.stop(Signal::TERM);
}

#[test]
fn a_page_with_another_status_is_no_health() {
    let (lab, servers) = lab();
    let health =
        "  health: {http: {path: /health, host: api.example.net, status: 200}, interval: 500ms, timeout: 400ms}\n";
    let node = node(&lab, health);
    let _daemon = Daemon::start(&node);
    wait_for(&node, ["healthy"; 3], 2 * SECOND + SLACK);
    servers[0].says(503);
    wait_for(&node, ["unhealthy", "healthy", "healthy"], SECOND + SLACK);
    let api = api(&node);
    assert!(api["backends"][0]["health"]["reason"].as_str().unwrap().ends_with("status 503"), "{api:#}");
    assert!(!answers(&lab, 30).contains(&lab.upstreams[0].v4.to_string()));
    servers[0].says(200);
    wait_for(&node, ["healthy"; 3], 2 * SECOND + SLACK);
}

#[test]
fn with_too_few_healthy_ones_all_are_used_and_status_says_so() {
    let (lab, servers) = lab();
    let health = "  health: {http: {path: /health}, interval: 500ms, timeout: 400ms, minHealthy: 50%}\n";
    let node = node(&lab, health);
    let _daemon = Daemon::start(&node);
    wait_for(&node, ["healthy"; 3], 2 * SECOND + SLACK);
    servers[0].says(500);
    wait_for(&node, ["unhealthy", "healthy", "healthy"], SECOND + SLACK);
    assert_eq!(answers(&lab, 40).len(), 2, "half of three, rounded up, is two");
    servers[1].says(500);
    wait_for(&node, ["unhealthy", "unhealthy", "healthy"], SECOND + SLACK);
    assert_eq!(answers(&lab, 40).len(), 3, "one is fewer than half: all are used");
    let status = node.status().unwrap();
    assert_eq!(status["service_list"][0]["health"]["fail_open"], true, "{status:#}");
    assert!(status["health"]["message"].as_str().unwrap().contains("api uses all backends"), "{}", status["health"]);
    servers[0].says(200);
    wait_for(&node, ["healthy", "unhealthy", "healthy"], 2 * SECOND + SLACK);
    assert_eq!(answers(&lab, 40).len(), 2);
}

#[test]
fn when_none_is_healthy_packets_meet_what_the_service_says() {
    let (lab, servers) = lab();
    let node = node(&lab, &format!("{TCP}  onNoBackend: drop\n"));
    let _daemon = Daemon::start(&node);
    wait_for(&node, ["healthy"; 3], 2 * SECOND + SLACK);
    drop(servers);
    wait_for(&node, ["unhealthy"; 3], SECOND + SLACK);
    assert_eq!(ask(&lab), None);
    assert!(node.counters().unwrap().get("drop/no-backend-drop") > 0);
    let words = ["trace", "--src", "10.77.0.2", "--dst", VIP, "--sport", "7", "--dport", "80"];
    let text = node.succeed(&words).unwrap().stdout;
    assert!(text.contains("is down, and so are all others"), "{text}");
}

#[test]
fn what_was_found_outlives_the_daemon_and_a_new_one_does_not_forget_it() {
    let (lab, mut servers) = lab();
    let node = node(&lab, TCP);
    let daemon = Daemon::start(&node);
    wait_for(&node, ["healthy"; 3], 2 * SECOND + SLACK);
    let dead = lab.upstreams[2].v4.to_string();
    drop(servers.remove(2));
    wait_for(&node, ["healthy", "healthy", "unhealthy"], SECOND / 2 + SLACK);
    let since = api(&node)["backends"][2]["health"]["since"].clone();
    daemon.stop(Signal::KILL);
    assert!(!answers(&lab, 40).contains(&dead), "without a daemon");
    let human = node.succeed(&["status"]).unwrap().stdout;
    assert!(human.contains("no daemon checks now") && human.contains("as of "), "{human}");
    // A trace says who is down, and who takes over.
    let stands_in = (1..200).any(|sport: u16| {
        let sport = sport.to_string();
        let words = ["trace", "--src", "10.77.0.2", "--dst", VIP, "--sport", &sport, "--dport", "80"];
        node.succeed(&words).unwrap().stdout.contains(&format!("stands in for {dead}"))
    });
    assert!(stands_in, "a third of the slots is its");
    // A publish without a daemon keeps it, too.
    node.write(
        "api.yaml",
        &std::fs::read_to_string(node.source().join("api.yaml")).unwrap().replace("rise: 3", "rise: 2"),
    )
    .unwrap();
    node.apply().unwrap();
    assert_eq!(states(&node), ["healthy", "healthy", "unhealthy"]);
    let _daemon = Daemon::start(&node);
    let until = Instant::now() + 2 * SECOND;
    while Instant::now() < until {
        assert_eq!(states(&node), ["healthy", "healthy", "unhealthy"]);
        assert!(!answers(&lab, 5).contains(&dead));
    }
    assert_eq!(api(&node)["backends"][2]["health"]["since"], since);
    servers.push(Server::start(&lab.upstreams[2]));
    wait_for(&node, ["healthy"; 3], 2 * SECOND + SLACK);
}

#[test]
fn an_established_flow_of_a_dead_backend_is_told_so_by_another_one() {
    let (lab, servers) = lab();
    let node = node(&lab, TCP);
    let _daemon = Daemon::start(&node);
    wait_for(&node, ["healthy"; 3], 2 * SECOND + SLACK);
    // Connections that say nothing yet stay in each server's backlog or its read.
    let to: SocketAddr = format!("{VIP}:80").parse().unwrap();
    let mut stream = lab.client.namespace.enter(|| TcpStream::connect_timeout(&to, SECOND)).unwrap().unwrap();
    let sport = stream.local_addr().unwrap().port().to_string();
    let words = ["trace", "--src", "10.77.0.2", "--dst", VIP, "--sport", &sport, "--dport", "80", "--format", "json"];
    let trace = |node: &TestNode<'_>| -> Value { serde_json::from_str(&node.succeed(&words).unwrap().stdout).unwrap() };
    let backend = trace(&node)["backend"].as_str().unwrap().to_owned();
    let at = lab.upstreams.iter().position(|upstream| upstream.v4.to_string() == backend).unwrap();
    // As when its machine is gone: nothing answers, nothing is refused.
    lab.upstreams[at].namespace.ip("link set eth0 down").unwrap();
    let mut expected = ["healthy"; 3];
    expected[at] = "unhealthy";
    wait_for(&node, expected, 2 * SECOND + SLACK);
    stream.set_read_timeout(Some(4 * SECOND)).unwrap();
    let started = Instant::now();
    let _ = stream.write_all(b"GET / HTTP/1.1\r\n\r\n");
    let mut line = String::new();
    let error = BufReader::new(&stream).read_line(&mut line).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error} after {:?}", started.elapsed());
    drop(servers);
}
