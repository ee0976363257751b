//! Health checks: real servers in namespaces that stop and come back, and where connections go meanwhile.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use aya::maps::{Array, Map, MapData};
use rustix::process::Signal;
use serde_json::Value;
use wayleave_tests::{Daemon, Host, TestNode, Topology, binary, require_root_and_bpf};

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
    /// How long it takes to answer, in milliseconds.
    delay_ms: Arc<AtomicU16>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(host: &Host) -> Self {
        let bind = || TcpListener::bind(("0.0.0.0", TARGET));
        let listener = host.namespace.enter(bind).unwrap().unwrap();
        listener.set_nonblocking(true).unwrap();
        let (stop, status) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU16::new(200)));
        let delay_ms = Arc::new(AtomicU16::new(0));
        let (stopped, says, delay, name) =
            (Arc::clone(&stop), Arc::clone(&status), Arc::clone(&delay_ms), host.v4.to_string());
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
                thread::sleep(Duration::from_millis(delay.load(Ordering::Relaxed).into()));
                let (status, length) = (says.load(Ordering::Relaxed), name.len());
                let _ = write!(
                    reader.get_mut(),
                    "HTTP/1.1 {status} It\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{name}"
                );
            }
        };
        Self { stop, status, delay_ms, thread: Some(thread::spawn(serve)) }
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

/// Waits until `status` says so of a backend: what the kernel knows is there first, why it is so follows.
fn wait_for_reason(node: &TestNode<'_>, number: usize, expected: &str) {
    let until = Instant::now() + 2 * SECOND;
    loop {
        let api = api(node);
        let reason = api["backends"][number]["health"]["reason"].as_str().unwrap_or_default();
        if reason.contains(expected) {
            return;
        }
        assert!(Instant::now() < until, "{reason} is not {expected}");
        thread::sleep(SECOND / 20);
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

/// How many of so many new connections each backend answers.
fn count(lab: &Topology, times: usize) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for _ in 0..times {
        *counts.entry(ask(lab).expect("a connection failed")).or_default() += 1;
    }
    counts
}

#[test]
fn a_slow_backend_gets_fewer_new_flows_and_its_share_back_when_it_is_quick_again() {
    let (lab, servers) = lab();
    let health = "  health: {http: {path: /}, interval: 500ms, timeout: 500ms, adaptive: {minShare: 20%}}\n";
    let node = node(&lab, health);
    let daemon = Daemon::start(&node);
    wait_for(&node, ["healthy"; 3], 2 * SECOND + SLACK);
    let slow = lab.upstreams[1].v4.to_string();
    let share = || api(&node)["backends"][1]["health"]["share_percent"].as_u64().unwrap();
    let wait_for_share = |expected: std::ops::RangeInclusive<u64>| {
        let started = Instant::now();
        while !expected.contains(&share()) {
            assert!(started.elapsed() < 25 * SECOND, "{:#}", api(&node));
            thread::sleep(SECOND / 20);
        }
        started.elapsed()
    };
    assert_eq!(share(), 100);
    servers[1].delay_ms.store(150, Ordering::Relaxed);
    let took = wait_for_share(20..=22);
    println!("down to the floor after {took:?}");
    // Never below the floor, and the weight that the policy says stays what it says.
    thread::sleep(2 * SECOND);
    let backend = api(&node)["backends"][1].clone();
    assert_eq!((&backend["weight"], &backend["health"]["state"]), (&1.into(), &"healthy".into()), "{backend:#}");
    assert!((20..=22).contains(&share()) && backend["health"]["latency_ms"].as_f64() > Some(80.0), "{backend:#}");
    let counts = count(&lab, 300);
    println!("{counts:?}");
    // A fifth of a third, where it would be a third: 20 and 100.
    assert!((6..45).contains(&counts[&slow]), "{counts:?}");
    let human = node.succeed(&["status"]).unwrap().stdout;
    assert!(human.contains(&format!("{slow} ×1, healthy since ")), "{human}");
    assert!(human.contains(", slow: gets 20 % of its new flows, as checks take "), "{human}");
    let plan = node.succeed(&["plan"]).unwrap().stdout;
    assert!(plan.contains(&format!("backend api/{slow} is slow: gets 20 % of its new flows")), "{plan}");
    let passed_on = (1..200).any(|sport: u16| {
        let sport = sport.to_string();
        let words = ["trace", "--src", "10.77.0.2", "--dst", VIP, "--sport", &sport, "--dport", "80"];
        node.succeed(&words).unwrap().stdout.contains(&format!("passed on by {slow} of slot"))
    });
    assert!(passed_on, "four fifths of its slots");
    // It outlives the daemon, and the next one goes on from there.
    daemon.stop(Signal::KILL);
    assert_eq!(share(), 20);
    let _daemon = Daemon::start(&node);
    thread::sleep(SECOND);
    assert_eq!(share(), 20);
    servers[1].delay_ms.store(0, Ordering::Relaxed);
    let took = wait_for_share(100..=100);
    println!("all of it after {took:?}");
    let counts = count(&lab, 150);
    assert!(counts[&slow] > 30, "{counts:?}");
}

#[test]
fn a_command_of_the_node_decides_and_no_policy_says_what_is_run() {
    let (lab, _servers) = lab();
    let node_policies = "  health: {command: {name: api-ready}, interval: 500ms, timeout: 400ms}\n";
    let mut node = node(&lab, node_policies);
    // Nobody allowed it: offline that is no fault, on the node it is one, and nothing is published.
    let source = node.source().display().to_string();
    let offline = node.namespace().command(binary().unwrap()).args(["validate", &source]).output().unwrap();
    assert_eq!(offline.status.code(), Some(0), "{}", String::from_utf8_lossy(&offline.stdout));
    for command in [&["apply", "--auto-approve"][..], &["validate"]] {
        let refused = node.run(command).unwrap();
        assert_eq!(refused.code, Some(3), "{refused:?}");
        let said = refused.stdout + &refused.stderr;
        assert!(said.contains("WL0603") && said.contains("api.yaml:12") && said.contains("healthCommands"), "{said}");
    }
    let marks = node.scratch().join("marks");
    std::fs::create_dir(&marks).unwrap();
    for upstream in &lab.upstreams {
        std::fs::write(marks.join(format!("{}-{TARGET}", upstream.v4)), "").unwrap();
    }
    let script = format!(
        "test -e {}/$WAYLEAVE_BACKEND_ADDRESS-$WAYLEAVE_BACKEND_PORT || {{ echo no mark >&2; exit 4; }}",
        marks.display()
    );
    node.set_spec(&format!("healthCommands:\n  api-ready: {{run: [/bin/sh, -c, '{script}'], timeout: 300ms}}\n"))
        .unwrap();
    let daemon = Daemon::start(&node);
    wait_for(&node, ["healthy"; 3], 2 * SECOND + SLACK);
    assert_eq!(answers(&lab, 40).len(), 3, "all serve");
    let gone = lab.upstreams[2].v4.to_string();
    std::fs::remove_file(marks.join(format!("{gone}-{TARGET}"))).unwrap();
    wait_for(&node, ["healthy", "healthy", "unhealthy"], SECOND + SLACK);
    wait_for_reason(&node, 2, "/bin/sh: exit status: 4: no mark");
    let api_row = api(&node);
    assert!(api_row["health"]["checks"].as_str().unwrap().starts_with("command api-ready every 500ms"), "{api_row:#}");
    assert!(!answers(&lab, 40).contains(&gone));
    // The owner takes it back: the next daemon runs nothing, says so, and nobody is held to be down by what nobody checks.
    daemon.stop(Signal::TERM);
    node.set_spec("").unwrap();
    let daemon = Daemon::start(&node);
    wait_for(&node, ["unknown"; 3], 2 * SECOND + SLACK);
    assert!(daemon.log().contains("this node has no health command `api-ready`"), "{}", daemon.log());
    assert_eq!(answers(&lab, 40).len(), 3);
}

/// nginx that serves `/health` by TLS.
struct Tls(std::process::Child);

impl Tls {
    const PORT: u16 = 8443;

    fn start(node: &TestNode<'_>, host: &Host, certificates: &Path, name: &str) -> Self {
        let directory = node.scratch().join(format!("tls-{}", host.v4));
        std::fs::create_dir_all(&directory).unwrap();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|of| format!("  {of}_temp_path {}/{of};\n", directory.display()))
            .concat();
        let (folder, from, port) = (directory.display(), certificates.display(), Self::PORT);
        let text = format!(
            "daemon off;\nmaster_process off;\npid {folder}/pid;\nerror_log {folder}/error.log;\nevents {{}}\nhttp {{\n  access_log \
             off;\n{temporary}  server {{\n    listen {port} ssl;\n    ssl_certificate {from}/{name}.pem;\n    ssl_certificate_key \
             {from}/{name}.key;\n    location = /health {{ return 204; }}\n  }}\n}}\n"
        );
        std::fs::write(directory.join("nginx.conf"), text).unwrap();
        let mut command = host.namespace.command("nginx");
        command
            .arg("-e")
            .arg(directory.join("error.log"))
            .arg("-p")
            .arg(&directory)
            .arg("-c")
            .arg(directory.join("nginx.conf"));
        Self(command.stdin(Stdio::null()).spawn().expect("nginx is needed: Debian's nginx-light"))
    }
}

impl Drop for Tls {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Two authorities, `ca` and `other`, and one server's certificate for each (file, who signs, whom it is for).
fn certificates(folder: &Path, servers: &[(&str, &str, &str)]) {
    let openssl = |arguments: &[&str]| {
        let output = Command::new("openssl").current_dir(folder).args(arguments).output().expect("openssl is needed");
        assert!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"];
    for authority in ["ca", "other"] {
        let (key_file, file, subject) =
            (format!("{authority}.key"), format!("{authority}.pem"), format!("/CN=test {authority}"));
        openssl(&[&["req", "-x509"][..], &key, &["-subj", &subject, "-keyout", &key_file, "-out", &file]].concat());
    }
    for (name, authority, whom) in servers {
        let [key_file, request, file, extensions] =
            ["key", "csr", "pem", "ext"].map(|ending| format!("{name}.{ending}"));
        openssl(&[&["req"][..], &key[..5], &["-subj", "/CN=backend", "-keyout", &key_file, "-out", &request]].concat());
        std::fs::write(folder.join(&extensions), format!("subjectAltName={whom}\nbasicConstraints=CA:FALSE\n"))
            .unwrap();
        let (signer, signer_key) = (format!("{authority}.pem"), format!("{authority}.key"));
        openssl(&[
            "x509",
            "-req",
            "-in",
            &request,
            "-CA",
            &signer,
            "-CAkey",
            &signer_key,
            "-CAcreateserial",
            "-days",
            "30",
            "-extfile",
            &extensions,
            "-out",
            &file,
        ]);
    }
}

#[test]
fn a_page_by_tls_counts_only_with_a_certificate_that_is_trusted_and_meant() {
    let (lab, _servers) = lab();
    let keys = tempfile::tempdir().unwrap();
    let [first, _, third] = [0, 1, 2].map(|number: usize| format!("IP:{}", lab.upstreams[number].v4));
    let good_for_all = format!("{first},{third},DNS:api.example.net");
    // The second is signed by nobody whom the node trusts.
    let second = format!("IP:{},DNS:api.example.net", lab.upstreams[1].v4);
    let servers =
        [("good", "ca", good_for_all.as_str()), ("stranger", "other", &second), ("named", "ca", "DNS:api.example.net")];
    certificates(keys.path(), &servers);
    let health = |host: &str| {
        format!("  health: {{https: {{path: /health, port: {}{host}}}, interval: 500ms, timeout: 400ms}}\n", Tls::PORT)
    };
    let node = node(&lab, &health(""));
    let _tls: Vec<Tls> = ["good", "stranger", "named"]
        .iter()
        .zip(&lab.upstreams)
        .map(|(name, host)| Tls::start(&node, host, keys.path(), name))
        .collect();
    let _daemon = Daemon::start_trusting(&node, &keys.path().join("ca.pem"));
    // By address: one certificate of a stranger, one for somebody else.
    wait_for(&node, ["healthy", "unhealthy", "unhealthy"], 3 * SECOND + SLACK);
    wait_for_reason(&node, 1, "UnknownIssuer");
    wait_for_reason(&node, 2, "not valid for name");
    assert_eq!(answers(&lab, 30), BTreeSet::from([lab.upstreams[0].v4.to_string()]));
    // By a name: the last one is meant, too.
    let policy = std::fs::read_to_string(node.source().join("api.yaml")).unwrap();
    let named = policy.replace(&health(""), &health(", host: api.example.net"));
    assert_ne!(policy, named);
    node.write("api.yaml", &named).unwrap();
    wait_for(&node, ["healthy", "unhealthy", "healthy"], 5 * SECOND + SLACK);
    assert_eq!(answers(&lab, 40).len(), 2);
}

/// Writes a backend's word into the kernel's table, as somebody with other tools would.
fn set_word(node: &TestNode<'_>, id: u32, word: u32) -> u32 {
    let map = MapData::from_pin(node.pins().join("maps/BACKEND_HEALTH")).unwrap();
    let mut table: Array<_, u32> = Array::try_from(Map::Array(map)).unwrap();
    let was = table.get(&id, 0).unwrap();
    table.set(id, word, 0).unwrap();
    was
}

fn word(node: &TestNode<'_>, id: u32) -> u32 {
    let map = MapData::from_pin(node.pins().join("maps/BACKEND_HEALTH")).unwrap();
    Array::<_, u32>::try_from(Map::Array(map)).unwrap().get(&id, 0).unwrap()
}

#[test]
fn a_foreign_hand_in_the_table_of_health_is_found_and_undone_where_that_is_wanted() {
    let (lab, _servers) = lab();
    let mut node = node(&lab, TCP);
    let victim = format!("api/{}", lab.upstreams[0].v4);
    for (mode, event) in [("heal", "repaired"), ("report", "drifted")] {
        node.set_spec(&format!("drift: {{mode: {mode}, interval: 1s}}\n")).unwrap();
        let daemon = Daemon::start(&node);
        wait_for(&node, ["healthy"; 3], 2 * SECOND + SLACK);
        let drift = |code| {
            let drift = node.run(&["drift"]).unwrap();
            assert_eq!(drift.code, Some(code), "{mode}: {drift:?}");
            drift.stdout
        };
        drift(0);
        // Ids are given out from 1 on, in the order of names.
        let was = set_word(&node, 1, 1);
        assert_ne!(was, 1);
        let said = |node: &TestNode<'_>| {
            let history = node.succeed(&["history", "--format", "json"]).unwrap().stdout;
            history.contains(event) && history.contains(&format!("backend {victim}: somebody changed its entry"))
        };
        let until = Instant::now() + 8 * SECOND;
        while !said(&node) {
            assert!(
                Instant::now() < until,
                "{mode}: {}",
                node.succeed(&["history", "--format", "json"]).unwrap().stdout
            );
            thread::sleep(SECOND / 10);
        }
        assert_eq!(word(&node, 1), if mode == "heal" { was } else { 1 }, "{mode}");
        if mode == "heal" {
            assert_eq!(answers(&lab, 40).len(), 3, "all serve");
            drift(0);
        } else {
            let said = drift(2);
            assert!(said.contains(&format!("backend {victim}: somebody changed its entry")), "{said}");
        }
        daemon.stop(Signal::TERM);
    }
}
