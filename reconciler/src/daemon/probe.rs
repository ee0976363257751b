//! Probes, tried: each in a thread of its own, all at once, in the network namespace of the caller.

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fd::OwnedFd;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, connect, ipproto, recv, send, socket};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

use crate::policy::{Check, HealthCheck, HealthChecks, HealthCommand, Probe};
use crate::tls::trusting;

/// What became of every probe, by its name; the error says what went wrong, for people.
pub type Results = BTreeMap<String, Result<(), String>>;

/// What is left of a probe's own limit when its thread is given up: a resolver that hangs, for one.
const LATE: Duration = Duration::from_millis(500);
/// Where programs that health checks run are found that are named without a path.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Bytes of a command's last words that are kept.
const WORDS_MAX: usize = 300;

/// Tries all probes at once; takes as long as the slowest one, and never much longer than its timeout.
pub fn try_all(probes: &[Probe]) -> Results {
    let (done, results) = mpsc::channel();
    for probe in probes.iter().cloned() {
        let done = done.clone();
        // A thread that cannot be made is a probe without an answer, below.
        let _ = thread::Builder::new().name("probe".to_owned()).spawn(move || {
            let result = try_one(&probe);
            // Nobody waits any more for one that is late.
            let _ = done.send((probe.name, result));
        });
    }
    drop(done);
    let latest = Instant::now() + probes.iter().map(|p| p.timeout).max().unwrap_or_default() + LATE;
    let mut all: Results = BTreeMap::new();
    while all.len() < probes.len() {
        match results.recv_timeout(latest.saturating_duration_since(Instant::now())) {
            Ok((name, result)) => _ = all.insert(name, result),
            Err(_) => break,
        }
    }
    for probe in probes {
        all.entry(probe.name.clone()).or_insert_with(|| Err(format!("no answer within {:?}", probe.timeout)));
    }
    all
}

fn try_one(probe: &Probe) -> Result<(), String> {
    match &probe.check {
        Check::Tcp(address) => tcp(*address, probe.timeout),
        Check::Http { url, status } => http(url, None, *status, probe.timeout),
        Check::Ping(address) => ping(*address, probe.timeout),
        Check::Command(run) => command(run, None, probe.timeout),
    }
}

fn tcp(address: SocketAddr, timeout: Duration) -> Result<(), String> {
    TcpStream::connect_timeout(&address, timeout).map(drop).map_err(|error| format!("tcp {address}: {error}"))
}

/// Checks a backend once; `commands` are those that the node allows.
pub fn check_backend(
    address: SocketAddr,
    checks: &HealthChecks,
    commands: &BTreeMap<String, HealthCommand>,
) -> Result<(), String> {
    match &checks.check {
        HealthCheck::Command { name, .. } => {
            let Some(allowed) = commands.get(name) else {
                return Err(format!("this node has no health command `{name}`"));
            };
            let timeout = allowed.timeout.map_or(checks.timeout, |timeout| timeout.min(checks.timeout));
            command(&allowed.run, Some(address), timeout)
        }
        HealthCheck::Tcp { .. } => tcp(address, checks.timeout),
        HealthCheck::Http { tls, path, host, status, .. } => {
            let scheme = if *tls { "https" } else { "http" };
            let authority =
                host.as_ref().map_or_else(|| address.to_string(), |host| format!("{host}:{}", address.port()));
            http(&format!("{scheme}://{authority}{path}"), Some(address), *status, checks.timeout)
        }
    }
}

/// Leads every name to one address.
#[derive(Debug)]
struct To(SocketAddr);

impl Resolver for To {
    fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let mut found = self.empty();
        found.push(self.0);
        Ok(found)
    }
}

/// Gets a page, of the server at `to` where that is given, whatever the name in `url` leads to.
fn http(url: &str, to: Option<SocketAddr>, status: Option<u16>, timeout: Duration) -> Result<(), String> {
    let mut config = ureq::Agent::config_builder();
    if url.starts_with("https:") {
        config = config.tls_config(trusting(None).map_err(|error| format!("{url}: {error}"))?);
    }
    let config = config
        .timeout_global(Some(timeout))
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        // A proxy's answer says nothing about this node's routes.
        .proxy(None)
        .build();
    let agent = match to {
        Some(to) => ureq::Agent::with_parts(config, DefaultConnector::default(), To(to)),
        None => ureq::Agent::new_with_config(config),
    };
    let response = agent.get(url).call().map_err(|error| format!("{url}: {error}"))?;
    let got = response.status().as_u16();
    let expected = status.map_or((200..400).contains(&got), |status| got == status);
    if expected { Ok(()) } else { Err(format!("{url}: status {got}")) }
}

/// Length of the headers of an echo, RFC 792 and RFC 4443.
const ECHO_BYTES: usize = 8;

fn ping(address: IpAddr, timeout: Duration) -> Result<(), String> {
    let said = |error: io::Error| format!("ping {address}: {error}");
    match echo(address, timeout) {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!("ping {address}: no answer within {timeout:?}")),
        Err(error) => Err(said(error)),
    }
}

/// Whether an echo came back in time.
fn echo(address: IpAddr, timeout: Duration) -> io::Result<bool> {
    let (family, protocol, request, reply) = match address {
        IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP, 8, 0),
        IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6, 128, 129),
    };
    let socket = socket(family, SocketType::RAW, Some(protocol))?;
    connect(&socket, &SocketAddr::new(address, 0))?;
    // Other echoes of this process and of others come to this socket, too: the cookie tells ours.
    let mut cookie = [0; 16];
    rustix::rand::getrandom(&mut cookie, rustix::rand::GetRandomFlags::empty())?;
    let mut packet = [&[request, 0, 0, 0, cookie[0], cookie[1], 0, 1][..], &cookie].concat();
    // ICMPv6's checksum covers addresses that the kernel chooses, so the kernel makes it.
    if address.is_ipv4() {
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    send(&socket, &packet, SendFlags::empty())?;
    let deadline = Instant::now() + timeout;
    while let Some(answer) = answer(&socket, deadline)? {
        // A raw IPv4 socket shows the IP header.
        let header = match address {
            IpAddr::V4(_) => usize::from(answer.first().copied().unwrap_or(0) & 0xf) * 4,
            IpAddr::V6(_) => 0,
        };
        let Some(echo) = answer.get(header..) else { continue };
        if echo.first() == Some(&reply) && echo.get(ECHO_BYTES..) == Some(&cookie[..]) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The next datagram before `deadline`.
fn answer(socket: &OwnedFd, deadline: Instant) -> io::Result<Option<Vec<u8>>> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Ok(None);
    }
    set_socket_timeout(socket, Timeout::Recv, Some(left))?;
    let mut buffer = [0_u8; 1500];
    match recv(socket, &mut buffer[..], RecvFlags::empty()) {
        Ok((bytes, _)) => Ok(Some(buffer[..bytes].to_vec())),
        Err(rustix::io::Errno::AGAIN) => Ok(None),
        Err(rustix::io::Errno::INTR) => Ok(Some(Vec::new())),
        Err(error) => Err(error.into()),
    }
}

/// The Internet checksum, RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |b| u32::from(*b))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !u16::try_from(sum & 0xffff).unwrap_or(0)
}

/// Runs a program to its end; about a backend, that is all it is told.
fn command(run: &[String], backend: Option<SocketAddr>, timeout: Duration) -> Result<(), String> {
    let Some((program, arguments)) = run.split_first() else { return Err("no program".to_owned()) };
    let mut command = Command::new(program);
    if let Some(backend) = backend {
        // The daemon's own environment may hold secrets of its sources.
        command.env_clear().env("PATH", PATH);
        command.env("WAYLEAVE_BACKEND_ADDRESS", backend.ip().to_string());
        command.env("WAYLEAVE_BACKEND_PORT", backend.port().to_string());
    }
    // A group of its own: what it starts is killed with it.
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().map_err(|error| format!("{program}: {error}"))?;
    let stderr = child.stderr.take();
    let words = thread::spawn(move || last_words(stderr));
    let ended = wait(&mut child, timeout).map_err(|error| format!("{program}: {error}"))?;
    let Some(status) = ended else { return Err(format!("{program}: not done within {timeout:?}, and killed")) };
    if status.success() {
        return Ok(());
    }
    let words = words.join().unwrap_or_default();
    let separator = if words.is_empty() { "" } else { ": " };
    Err(format!("{program}: {status}{separator}{words}"))
}

/// Waits for a child; kills it when that takes too long. What it started ends with it in any case.
fn wait(child: &mut Child, timeout: Duration) -> io::Result<Option<std::process::ExitStatus>> {
    const POLL: Duration = Duration::from_millis(5);
    let deadline = Instant::now() + timeout;
    // Seen and not reaped: until then nobody else can have the number of its group.
    let ended = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let id = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    loop {
        if waitid(WaitId::Pid(id), ended)?.is_some() {
            kill_group(child);
            return child.wait().map(Some);
        }
        if Instant::now() >= deadline {
            kill_group(child);
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(POLL);
    }
}

fn kill_group(child: &Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // None is left of it: then there is nothing to kill.
        let _ = kill_process_group(group, Signal::KILL);
    }
}

/// The end of what a command said, in one line.
fn last_words(stderr: Option<impl io::Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(stderr) = stderr {
        // Cut where the pipe is: what was said until then is shown.
        let _ = stderr.take(1 << 20).read_to_end(&mut bytes);
    }
    let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(WORDS_MAX)..]).into_owned();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use std::io::Write as _;
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn probe(name: &str, check: Check, timeout: Duration) -> Probe {
        Probe { name: name.to_owned(), check, timeout }
    }

    /// A server on loopback that answers every connection with `text`.
    fn server(text: &'static str) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = [0; 1024];
                let _ = stream.read(&mut request);
                let _ = stream.write_all(text.as_bytes());
            }
        });
        address
    }

    fn shell(script: &str) -> Check {
        Check::Command(vec!["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned()])
    }

    #[test]
    fn every_kind_says_whether_it_worked() {
        let good = server("HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n");
        let moved = server("HTTP/1.1 302 Found\r\nlocation: http://192.0.2.1/\r\ncontent-length: 0\r\n\r\n");
        let bad = server("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n");
        let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let http = |address: SocketAddr, status| Check::Http { url: format!("http://{address}/x"), status };
        let all = try_all(&[
            probe("tcp", Check::Tcp(good), SECOND),
            probe("tcp-closed", Check::Tcp(closed), SECOND),
            probe("http", http(good, None), SECOND),
            probe("http-moved", http(moved, None), SECOND),
            probe("http-bad", http(bad, None), SECOND),
            probe("http-503", http(bad, Some(503)), SECOND),
            probe("http-200", http(good, Some(200)), SECOND),
            probe("true", shell("exit 0"), SECOND),
            probe("false", shell("echo out of luck >&2; exit 7"), SECOND),
            probe("gone", Check::Command(vec!["/no/such/program".to_owned()]), SECOND),
        ]);
        let text: Vec<String> = all
            .iter()
            .map(|(name, r)| format!("{name}: {}", r.as_ref().map_or_else(String::as_str, |()| "ok")))
            .collect();
        assert_eq!(
            text,
            [
                "false: /bin/sh: exit status: 7: out of luck".to_owned(),
                "gone: /no/such/program: No such file or directory (os error 2)".to_owned(),
                "http: ok".to_owned(),
                "http-200: ".to_owned() + &format!("http://{good}/x: status 204"),
                "http-503: ok".to_owned(),
                "http-bad: ".to_owned() + &format!("http://{bad}/x: status 503"),
                "http-moved: ok".to_owned(),
                "tcp: ok".to_owned(),
                format!("tcp-closed: tcp {closed}: Connection refused (os error 111)"),
                "true: ok".to_owned(),
            ]
        );
    }

    #[test]
    fn what_hangs_is_cut_at_its_timeout_and_killed() {
        let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let url = format!("http://{}/", silent.local_addr().unwrap());
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("mark");
        let begun = Instant::now();
        let short = Duration::from_millis(200);
        let all = try_all(&[
            probe("http", Check::Http { url, status: None }, short),
            probe("command", shell(&format!("(sleep 1; touch {}) & sleep 30", mark.display())), short),
        ]);
        assert!(begun.elapsed() < SECOND, "{:?}", begun.elapsed());
        assert!(all.values().all(Result::is_err), "{all:?}");
        assert!(all["command"].as_ref().unwrap_err().ends_with("not done within 200ms, and killed"), "{all:?}");
        thread::sleep(2 * SECOND);
        assert!(!mark.exists(), "what the command started went on");
    }

    /// A check of a backend by a shell script; the node allows it so long, and the policy `policy_ms`.
    fn check_by(script: &str, allowed: Option<Duration>, policy_ms: u64) -> Result<(), String> {
        let run = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let commands = BTreeMap::from([("ready".to_owned(), HealthCommand { run, timeout: allowed })]);
        let checks = HealthChecks {
            check: HealthCheck::Command { name: "ready".to_owned(), port: None },
            interval: SECOND,
            timeout: Duration::from_millis(policy_ms),
            rise: 1,
            fall: 1,
            min_healthy: crate::policy::MinHealthy::Count(0),
            min_share: None,
        };
        check_backend("[2001:db8::1]:8099".parse().unwrap(), &checks, &commands)
    }

    #[test]
    fn a_command_is_told_its_backend_and_nothing_else() {
        let told = r#"test "$WAYLEAVE_BACKEND_ADDRESS $WAYLEAVE_BACKEND_PORT" = "2001:db8::1 8099""#;
        assert_eq!(check_by(told, None, 900), Ok(()));
        // PATH, both variables, and those that the shell sets itself.
        let rest =
            "env | grep -v -e ^PATH= -e ^WAYLEAVE_BACKEND_ -e ^PWD= -e ^_= -e ^SHLVL= -e ^OLDPWD= && exit 1 || exit 0";
        assert_eq!(check_by(rest, None, 900), Ok(()));
        assert_eq!(check_by("echo not yet >&2; exit 3", None, 900), Err("/bin/sh: exit status: 3: not yet".to_owned()));
        assert_eq!(check_by("kill -9 $$", None, 900), Err("/bin/sh: signal: 9 (SIGKILL)".to_owned()));
    }

    #[test]
    fn a_command_ends_at_the_shorter_of_both_times_with_all_that_it_started() {
        for (allowed, policy_ms) in [(Some(Duration::from_millis(150)), 900), (None, 150)] {
            let begun = Instant::now();
            let error = check_by("sleep 20 & sleep 30", allowed, policy_ms).unwrap_err();
            assert!(error.ends_with("not done within 150ms, and killed"), "{error}");
            assert!(begun.elapsed() < SECOND, "{:?}", begun.elapsed());
        }
        // One that is done ends what it left behind, too.
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("mark");
        assert_eq!(check_by(&format!("(sleep 1; touch {}) & exit 0", mark.display()), None, 900), Ok(()));
        thread::sleep(2 * SECOND);
        assert!(!mark.exists(), "what the command started went on");
    }

    #[test]
    fn a_name_that_the_node_does_not_have_runs_nothing() {
        let checks = HealthChecks {
            check: HealthCheck::Command { name: "/bin/true".to_owned(), port: None },
            interval: SECOND,
            timeout: SECOND,
            rise: 1,
            fall: 1,
            min_healthy: crate::policy::MinHealthy::Count(0),
            min_share: None,
        };
        let result = check_backend("192.0.2.1:1".parse().unwrap(), &checks, &BTreeMap::new());
        assert_eq!(result, Err("this node has no health command `/bin/true`".to_owned()));
    }

    #[test]
    fn checksums_fold() {
        // RFC 1071, section 3.
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        assert_eq!(checksum(&[0xff]), !0xff00);
    }
}
