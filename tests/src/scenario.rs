//! Scenarios: text files that a person can review, with what somebody types on a node of the lab and what he then sees.
//!
//! A scenario is prose, commands and what they print:
//!
//! ```text
//! What this shows, in prose: any line that is neither a command nor indented.
//!
//! $ wayleave --config config.yaml apply --auto-approve
//!   what it printed, standard output and error together, indented by two spaces
//!   [exit 4]
//! $ cat > policies/web.yaml <<'END'
//! a here-document is not indented
//! END
//! ```
//!
//! Commands are bash's, run in the router's namespace in the node's directory, one shell each. Some are the scenario's own:
//!
//! | command                        | does |
//! |--------------------------------|------|
//! | `eventually COMMAND`           | repeats a command until it succeeds, for 20 s at most, and prints what it said last |
//! | `config source TEXT`           | gives the node another source |
//! | `config spec <<'END'`          | gives the configuration these further lines in `spec` |
//! | `daemon start`, `stop`, `kill` | `wayleave run`; `stop` by SIGTERM, `kill` by SIGKILL |
//! | `packet to ADDRESS`            | sends a datagram from the client, and says which of the lab's hosts gets it |
//! | `listen a ADDRESS:PORT`        | has upstream a take TCP connections from then on |
//! | `hand …`                       | what somebody can do to the kernel's objects behind the node's back |
//! | `post SECRET BODY`             | posts a body to the webhook, signed with a secret, and prints the status |
//!
//! What differs from run to run is printed as a word instead: the node's directory, times, ids of commits and of objects.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use crate::hands::{class, detach_link, put_live, put_zeros_live, update_link, with_prefix};
use crate::{Daemon, Packet, PacketSocket, TestNode, Topology, binary};

const EVENTUALLY: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(50);
/// How long a packet may take to arrive.
const TRANSIT: Duration = Duration::from_millis(300);
const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");
const HOOK: &str = "127.0.0.1:9797";

/// One file.
#[derive(Debug)]
pub struct Scenario {
    steps: Vec<Step>,
    /// Prose behind the last command.
    rest: String,
}

#[derive(Debug)]
struct Step {
    prose: String,
    /// With its here-document.
    command: String,
    printed: String,
}

impl Scenario {
    /// Reads the text of a file.
    pub fn parse(text: &str) -> Result<Self> {
        let mut steps: Vec<Step> = Vec::new();
        let mut prose = String::new();
        // Blank lines belong to what is printed if more of it follows.
        let mut blank = 0;
        let mut lines = text.lines().enumerate();
        while let Some((number, line)) = lines.next() {
            let number = number + 1;
            if let Some(command) = line.strip_prefix("$ ") {
                let mut command = format!("{command}\n");
                prose.push_str(&"\n".repeat(std::mem::take(&mut blank)));
                if let Some((_, delimiter)) = command.clone().split_once("<<") {
                    let end = delimiter.trim_start_matches(['\'', ' ']);
                    let end: String = end.chars().take_while(char::is_ascii_alphanumeric).collect();
                    loop {
                        let (_, line) = lines.next().with_context(|| format!("line {number}: {end} never comes"))?;
                        writeln!(command, "{line}")?;
                        if line == end {
                            break;
                        }
                    }
                }
                steps.push(Step { prose: std::mem::take(&mut prose), command, printed: String::new() });
            } else if let Some(printed) = line.strip_prefix("  ") {
                ensure!(prose.is_empty(), "line {number}: is indented like what a command prints, and follows none");
                let step = steps.last_mut().with_context(|| format!("line {number}: no command printed this"))?;
                writeln!(step.printed, "{}{printed}", "\n".repeat(std::mem::take(&mut blank)))?;
            } else if line.is_empty() {
                blank += 1;
            } else {
                writeln!(prose, "{}{line}", "\n".repeat(std::mem::take(&mut blank)))?;
            }
        }
        Ok(Self { steps, rest: prose })
    }

    /// Runs every command on a node of its own; returns the text of the file as this run would have it.
    pub fn run(&self) -> Result<String> {
        let lab = Topology::router()?;
        lab.fix_neighbours()?;
        let node = TestNode::router(&lab)?;
        let mut stage = Stage::new(&lab, &node)?;
        let mut text = String::new();
        for step in &self.steps {
            let printed =
                stage.act(&step.command).with_context(|| format!("$ {}", step.command.lines().next().unwrap_or("")))?;
            write!(text, "{}$ {}", step.prose, step.command)?;
            for line in stage.plain(&printed).lines() {
                writeln!(text, "{}", format!("  {line}").trim_end())?;
            }
        }
        text.push_str(&self.rest);
        Ok(text)
    }
}

/// A node with everything around it while a scenario runs.
struct Stage<'n> {
    lab: &'n Topology,
    node: &'n TestNode<'n>,
    daemon: Option<Daemon<'n>>,
    /// What listens.
    listeners: Vec<TcpListener>,
    /// Ids of the commits that were seen, oldest first.
    commits: Vec<String>,
}

impl<'n> Stage<'n> {
    fn new(lab: &'n Topology, node: &'n TestNode<'n>) -> Result<Self> {
        let place = node.scratch();
        fs::create_dir(place.join("bin"))?;
        // A copy: scenarios run it as users who may not read where it was built.
        fs::copy(binary()?, place.join("bin/wayleave"))?;
        fs::set_permissions(place, fs::Permissions::from_mode(0o755))?;
        Ok(Self { lab, node, daemon: None, listeners: Vec::new(), commits: Vec::new() })
    }

    fn act(&mut self, command: &str) -> Result<String> {
        let (line, body) = command.split_once('\n').unwrap_or((command, ""));
        let (first, rest) = line.split_once(' ').unwrap_or((line, ""));
        match (first, rest) {
            ("eventually", _) => self.eventually(&format!("{rest}\n{body}")),
            ("config", _) => self.configure(rest, body),
            ("daemon", "start") => {
                ensure!(self.daemon.is_none(), "a daemon runs already");
                self.daemon = Some(Daemon::start(self.node));
                Ok(String::new())
            }
            ("daemon", "stop" | "kill") => {
                let signal = if rest == "kill" { Signal::KILL } else { Signal::TERM };
                let code = self.daemon.take().context("no daemon runs")?.stop(signal);
                Ok(code.filter(|code| *code != 0).map_or_else(String::new, |code| format!("[exit {code}]\n")))
            }
            ("packet", _) => self.packet(rest),
            ("listen", _) => self.listen(rest).map(|()| String::new()),
            ("hand", _) => self.hand(rest).map(|()| String::new()),
            ("post", _) => self.post(rest),
            _ => self.run(command),
        }
    }

    /// Runs a script; returns both streams as they came, and the exit code when it is not zero.
    fn run(&self, script: &str) -> Result<String> {
        let mut bash = self.node.namespace().command(Path::new("bash"));
        let place = self.node.scratch();
        let path = std::env::var("PATH").unwrap_or_default();
        let (mut reader, writer) = std::io::pipe()?;
        bash.args(["-o", "pipefail", "-c", script])
            .current_dir(place)
            .env("PATH", format!("{}:{path}", place.join("bin").display()))
            .env("HOME", place)
            .env("PINS", self.node.pins())
            .env("BPFFS", self.node.place())
            .env("EXAMPLES", EXAMPLES)
            .env("CLIENT", self.lab.client.namespace.name())
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .envs(["AUTHOR", "COMMITTER"].iter().flat_map(|who| {
                [
                    (format!("GIT_{who}_NAME"), "net-team"),
                    (format!("GIT_{who}_EMAIL"), "net-team@example.org"),
                    (format!("GIT_{who}_DATE"), "2026-11-02T10:00:00Z"),
                ]
            }))
            .env_remove("NOTIFY_SOCKET")
            .env_remove("SUDO_USER")
            .env("USER", "alice")
            .env("LOGNAME", "alice")
            .stdin(Stdio::null())
            .stderr(writer.try_clone()?)
            .stdout(writer);
        let mut child = bash.spawn().context("starting bash")?;
        // Its ends of the pipe, without which the reader would never see the end.
        drop(bash);
        let mut printed = Vec::new();
        reader.read_to_end(&mut printed)?;
        let mut printed = String::from_utf8_lossy(&printed).into_owned();
        let status = child.wait()?;
        if !printed.is_empty() && !printed.ends_with('\n') {
            printed.push('\n');
        }
        if !status.success() {
            let code = status.code().map_or_else(|| "by a signal".to_owned(), |code| code.to_string());
            writeln!(printed, "[exit {code}]")?;
        }
        Ok(printed)
    }

    fn eventually(&self, script: &str) -> Result<String> {
        let deadline = Instant::now() + EVENTUALLY;
        loop {
            let printed = self.run(script)?;
            if !printed.ends_with("]\n") || !printed.contains("[exit ") {
                return Ok(printed);
            }
            if Instant::now() > deadline {
                let log = self.daemon.as_ref().map(Daemon::log).unwrap_or_default();
                bail!("never succeeds; the last time it said\n{printed}and the daemon logged\n{log}");
            }
            thread::sleep(PAUSE);
        }
    }

    fn configure(&self, what: &str, body: &str) -> Result<String> {
        let here = self.node.scratch().display().to_string();
        let text = fs::read_to_string(self.node.config())?;
        let text = match what.split_once(' ') {
            Some(("source", source)) => {
                let line = format!("  source: {}", source.replace("$PWD", &here));
                let lines = text.lines().map(|old| if old.starts_with("  source:") { line.as_str() } else { old });
                lines.map(|line| format!("{line}\n")).collect::<String>()
            }
            Some(("spec", _)) => {
                let (lines, _) = body.trim_end().rsplit_once('\n').context("nothing between the delimiters")?;
                let lines = lines.replace("$PWD", &here).replace("$CLIENT", self.lab.client.namespace.name());
                let lines: Vec<_> = lines.lines().map(|line| format!("  {line}\n")).collect();
                let keys: Vec<_> = lines.iter().filter_map(|line| line.split_once(':')).map(|(key, _)| key).collect();
                // What is said again replaces what was said before, one line each.
                let kept = text
                    .lines()
                    .filter(|old| !keys.iter().any(|key| old.split_once(':').is_some_and(|(k, _)| k == *key)));
                kept.map(|line| format!("{line}\n")).chain(lines.iter().cloned()).collect()
            }
            _ => bail!("neither `config source TEXT` nor `config spec <<'END'`"),
        };
        fs::write(self.node.config(), text)?;
        Ok(String::new())
    }

    fn packet(&self, what: &str) -> Result<String> {
        let destination: IpAddr = what.strip_prefix("to ").context("packet to ADDRESS")?.parse()?;
        let client = &self.lab.client;
        let source = if destination.is_ipv4() { IpAddr::from(client.v4) } else { client.v6.into() };
        let mark = format!("scenario {:?}", Instant::now());
        let packet =
            Packet::between(source, destination).macs(client.mac, client.router_mac).payload(mark.as_bytes()).frame();
        let hosts = self.lab.upstreams.iter().chain([&self.lab.sink]);
        let mut ears: Vec<_> =
            hosts.map(|host| Ok((host, PacketSocket::open(&host.namespace, "eth0")?))).collect::<Result<_>>()?;
        PacketSocket::open(&client.namespace, "eth0")?.send(&packet)?;
        let deadline = Instant::now() + TRANSIT;
        while Instant::now() < deadline {
            for (host, ear) in &mut ears {
                if ear.receive(Duration::from_millis(5), |frame| frame.ends_with(mark.as_bytes()))?.is_some() {
                    return Ok(format!("arrives behind {}\n", host.router_device));
                }
            }
        }
        Ok("arrives nowhere\n".to_owned())
    }

    fn listen(&mut self, what: &str) -> Result<()> {
        let (letter, address) = what.split_once(' ').context("listen LETTER ADDRESS:PORT")?;
        let device = format!("up{letter}");
        let host = self.lab.upstreams.iter().find(|host| host.router_device == device).context("no such upstream")?;
        // Connections wait to be accepted, which is enough for a client.
        let listener = host.namespace.enter(|| TcpListener::bind(address))?;
        self.listeners.push(listener.with_context(|| format!("listening on {address}"))?);
        Ok(())
    }

    fn hand(&self, what: &str) -> Result<()> {
        let pins = self.node.pins();
        let link = |device: &str| pins.join("link/xdp").join(device);
        match what.split(' ').collect::<Vec<_>>()[..] {
            ["puts", "zeros", "live"] => put_zeros_live(&class(&pins)?, true),
            ["puts", "generation", number, "live"] => {
                let number: u64 = number.parse()?;
                let generations = fs::read_dir(pins.join("generation"))?.flatten().map(|entry| entry.path());
                let named = |path: &std::path::PathBuf| {
                    path.file_name().and_then(|name| name.to_str()?.parse::<u64>().ok()) == Some(number)
                };
                put_live(&class(&pins)?, &generations.into_iter().find(named).context("no such generation")?)
            }
            ["detaches", device] => detach_link(&link(device)),
            ["swaps", a, b] => {
                let aside = pins.join("link/xdp/aside");
                fs::rename(link(a), &aside)?;
                fs::rename(link(b), link(a))?;
                Ok(fs::rename(&aside, link(b))?)
            }
            ["replaces", "the", "program", "of", device] => {
                update_link(&link(device), &with_prefix(&class(&pins)?, "candidate-")?)
            }
            _ => bail!("no hand does this"),
        }
    }

    fn post(&self, what: &str) -> Result<String> {
        let (secret, body) = what.split_once(' ').context("post SECRET BODY")?;
        let script = format!("printf %s '{body}' | openssl dgst -sha256 -hmac '{secret}' -r | cut -d' ' -f1");
        let signature = self.run(&script)?;
        let mut stream = self.node.namespace().enter(|| TcpStream::connect(HOOK))??;
        stream.set_read_timeout(Some(EVENTUALLY))?;
        write!(
            stream,
            "POST /hook HTTP/1.1\r\nHost: node\r\nX-Hub-Signature-256: sha256={}\r\nContent-Length: {}\r\n\r\n{body}",
            signature.trim(),
            body.len()
        )?;
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        Ok(format!("{}\n", answer.lines().next().unwrap_or("no answer")))
    }

    /// What was printed without what differs from run to run.
    fn plain(&mut self, printed: &str) -> String {
        let place = self.node.scratch();
        for repository in ["repo", "server.git"] {
            let mut git = Command::new("git");
            git.arg("-C").arg(place.join(repository)).args(["-c", "safe.directory=*"]);
            git.args(["log", "--all", "--reverse", "--topo-order", "--format=%H"]);
            let listed = git.stderr(Stdio::null()).output().map(|output| output.stdout).unwrap_or_default();
            for id in String::from_utf8_lossy(&listed).lines() {
                if !self.commits.iter().any(|known| known == id) {
                    self.commits.push(id.to_owned());
                }
            }
        }
        let mut text = printed.replace(&self.node.place().display().to_string(), "/sys/fs/bpf/node");
        text = text.replace(&place.display().to_string(), "/node");
        text = text.replace(self.lab.client.namespace.name(), "CLIENT");
        words(&text, |word| self.word(word))
    }

    /// A word, or what is printed instead of it.
    fn word(&self, word: &str) -> Option<String> {
        if let Some((algorithm @ ("sha1" | "sha256"), id)) = word.split_once(':') {
            return self.word(id).map(|id| format!("{algorithm}:{id}"));
        }
        let is_hex = word.len() >= 7 && word.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f'));
        if is_hex {
            let number = self.commits.iter().position(|id| id.starts_with(word) || word.starts_with(id.as_str()));
            return number.map(|number| format!("COMMIT-{}", number + 1)).or_else(|| {
                (word.len() >= 8 && word.bytes().any(|byte| byte.is_ascii_alphabetic())).then(|| "DIGEST".to_owned())
            });
        }
        let digits: String = word.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        match digits.as_str() {
            "0000-00-00T00:00:00Z" | "00:00:00" | "00:00" => return Some("TIME".to_owned()),
            "0000-00-00" => return Some("DATE".to_owned()),
            _ => {}
        }
        let unit = word.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
        (unit.len() < word.len() && matches!(unit, "ms" | "µs" | "ns")).then(|| format!("N{unit}"))
    }
}

/// Replaces words: runs of letters, digits, and `-:.` between them.
fn words(text: &str, replace: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::new();
    let mut word = String::new();
    let end = |word: &mut String, out: &mut String| {
        let bare = word.trim_end_matches(['.', ':', '-']);
        match replace(bare) {
            Some(instead) => {
                out.push_str(&instead);
                out.push_str(word.get(bare.len()..).unwrap_or_default());
            }
            None => out.push_str(word),
        }
        word.clear();
    };
    for c in text.chars() {
        if c.is_alphanumeric() || matches!(c, '-' | ':' | '.') {
            word.push(c);
        } else {
            end(&mut word, &mut out);
            out.push(c);
        }
    }
    end(&mut word, &mut out);
    out
}
