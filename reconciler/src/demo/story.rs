//! The story in the kernel: real commands of this program, and real packets.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use fib::Reason;

use super::narration::Narration;
use super::network::{self, BLOCKED_V4, Network, SERVICE_V4, SERVICE_V6};
use super::repository::{CHANGE, Repository, UPLINKS, uplinks};
use super::traffic::{self, Answered, PORT, Stream};
use crate::daemon::node::Node;
use crate::kernel::counters::{Objects, Owners};
use crate::policy;
use crate::trace::{Fields, Offline, PacketDescription, trace};

/// TCP connections by family.
const CONNECTIONS: [(IpAddr, usize); 2] = [(IpAddr::V4(SERVICE_V4), 300), (IpAddr::V6(SERVICE_V6), 100)];
/// Percent of connections that the edge with weight 3 of 4 may get: seven standard deviations of 400 fair choices.
const SHARES: std::ops::RangeInclusive<usize> = 60..=90;
/// Echo requests to the blocked host.
const PINGS: u64 = 25;

/// What every command of the story works on.
struct Stage<'t> {
    tell: &'t mut Narration,
    place: PathBuf,
    network: Network,
    node: Node,
    /// What the last command printed.
    shown: String,
}

/// Tells the story. The calling thread moves into namespaces of its own and stays there.
pub(super) fn tell(tell: &mut Narration) -> anyhow::Result<()> {
    tell.say("wayleave demo: a routing change from git into the kernel and back, with real packets.\n")?;
    tell.say("The network, the policies and everything in the kernel belong to this process alone: nothing else on")?;
    tell.say("this machine changes, and nothing is left when it ends, however it ends.")?;
    let mut stage = Stage::set(tell)?;
    stage.policies()?;
    stage.first_publish()?;
    stage.traffic("edge-a", "edge-b")?;
    stage.change()?;
    stage.traffic("edge-b", "edge-a")?;
    stage.mistake()?;
    stage.roll_back()?;
    stage.traffic("edge-a", "edge-b")?;
    stage.leave()
}

impl<'t> Stage<'t> {
    /// Makes the network and the node's files.
    fn set(tell: &'t mut Narration) -> anyhow::Result<Self> {
        let place = network::private_files()?;
        tell.step("A network: four namespaces, joined by veth pairs")?;
        let network = Network::new()?;
        // From here on this thread, and every command that it starts, is on the router.
        network.router.join_thread()?;
        traffic::serve(&network)?;
        tell.output(
            "client 10.77.0.2 ---- lan [router] up-a ---- edge-a 10.77.1.2\n\
             \u{20}       fd77::2               [      ] up-b ---- edge-b 10.77.2.2\n\n\
             Both edges carry the service 198.51.100.10 and 2001:db8:100::10, and each says its name when asked.\n\
             wayleave runs on the router.",
        )?;
        fs::write(place.join("node.yaml"), node_yaml(&place))?;
        let text = fs::read(place.join("node.yaml"))?;
        let config = policy::node_config(&text, &place.join("node.yaml"))
            .map_err(|faults| anyhow::anyhow!("the demo's own node.yaml is not valid: {faults:?}"))?;
        let stage = Self { tell, place, network, node: Node::new(config), shown: String::new() };
        let client = &stage.network.client;
        let router = traffic::pings(client, [10, 77, 0, 1].into(), 1, Duration::from_secs(2))?;
        let service = traffic::pings(client, SERVICE_V4.into(), 1, Duration::from_millis(200))?;
        stage.tell.check(router == 1, "the client reaches the router")?;
        stage.tell.check(service == 0, "it does not reach the service: nothing routes it yet")?;
        Ok(stage)
    }

    /// Shows the repo and checks it.
    fn policies(&mut self) -> anyhow::Result<()> {
        self.tell.step("Route policies, in git")?;
        let repository = Repository::create(&self.place.join("policies"))?;
        if repository.has_git() {
            self.git(&repository, "log --oneline --stat")?;
        } else {
            self.tell.say("(git is not installed: the policies are plain files here)")?;
        }
        self.tell.say("uplinks.yaml says:")?;
        self.tell.output(&without_comments(&uplinks().0))?;
        let code = self.wayleave("validate policies")?;
        self.tell.check(code == 0, "the policies are valid")
    }

    fn first_publish(&mut self) -> anyhow::Result<()> {
        self.tell.step("The plan, then the first publish")?;
        let plan = self.wayleave("plan --config node.yaml")?;
        let apply = self.wayleave("apply --config node.yaml --auto-approve")?;
        let live = self.live()?;
        self.tell.check(plan == 0 && apply == 0 && live == 1, "generation 1 is live in the kernel")
    }

    /// Sends traffic and compares who answered with what the live rules say.
    fn traffic(&mut self, most: &str, least: &str) -> anyhow::Result<()> {
        self.tell.step("Real traffic: who answers?")?;
        let forwarded = self.counter(Reason::Forwarded)?;
        let mut answered = Vec::new();
        for (to, count) in CONNECTIONS {
            let some = traffic::connections(&self.network.client, to, count)?;
            let by_edge = traffic::by_edge(&some);
            let words: Vec<String> = by_edge.iter().map(|(name, n)| format!("{name} {n}")).collect();
            self.tell.say(&format!("{count} TCP connections from the client to {to}: {}", words.join(", ")))?;
            answered.extend(some.into_iter().map(|one| (to, one)));
        }
        let as_traced = self.as_traced(&answered)?;
        let total = answered.len();
        self.tell.check(
            as_traced == total,
            &format!("{as_traced} of {total} answers came from the edge that the live rules name"),
        )?;
        let share = answered.iter().filter(|(_, (_, name))| name == most).count() * 100 / total;
        self.tell.check(
            SHARES.contains(&share),
            &format!("{most} took {share} % of the flows: three of four, {least} the rest"),
        )?;
        let by_xdp = self.counter(Reason::Forwarded)? - forwarded;
        // Four packets a connection at the very least, both ways.
        self.tell.check(by_xdp >= 4 * total as u64, &format!("{by_xdp} packets were forwarded by the XDP program"))?;
        if let Some((to, one)) = answered.first() {
            self.show_trace(*to, one)?;
        }
        let dropped = self.counter(Reason::RouteDrop)?;
        let reached = traffic::pings(&self.network.client, BLOCKED_V4.into(), PINGS, Duration::from_millis(100))?;
        let dropped = self.counter(Reason::RouteDrop)? - dropped;
        self.tell.say(&format!("{PINGS} pings to {BLOCKED_V4}, which blocked.yaml drops: {reached} answered"))?;
        self.tell.check(reached == 0 && dropped == PINGS, &format!("the counter drop/route-drop went up by {dropped}"))
    }

    fn change(&mut self) -> anyhow::Result<()> {
        self.tell.step("A reviewed change: edge-b takes three flows of four")?;
        let repository = Repository::open(&self.place.join("policies"));
        repository.change(UPLINKS, &uplinks().1, CHANGE)?;
        if repository.has_git() {
            self.git(&repository, "log -1 --oneline --stat --patch --unified=0")?;
        }
        self.tell.say("What it would do to packets:")?;
        self.wayleave("plan --config node.yaml")?;
        self.tell.step("The swap, while packets flow")?;
        self.publish_under_traffic("apply --config node.yaml --auto-approve", 2)
    }

    /// A policy with a fault reaches the node: nothing happens to packets.
    fn mistake(&mut self) -> anyhow::Result<()> {
        self.tell.step("A mistake gets past review: the live rules stay")?;
        let repository = Repository::open(&self.place.join("policies"));
        let (_, good) = uplinks();
        repository.change(UPLINKS, &good.replace("198.51.100.0/24", "198.51.100.7/24"), "uplinks: a typing error")?;
        let live = self.live()?;
        let code = self.wayleave("apply --config node.yaml --auto-approve")?;
        let same = self.live()? == live;
        self.tell.check(
            code == 3 && same,
            &format!("apply refuses it with exit code {code}; generation {live} is still live"),
        )?;
        repository.change(UPLINKS, &good, "uplinks: typing error corrected")
    }

    fn roll_back(&mut self) -> anyhow::Result<()> {
        self.tell.step("Back to the rules of before, again while packets flow")?;
        self.publish_under_traffic("rollback --config node.yaml --auto-approve", 3)?;
        self.wayleave("history --config node.yaml").map(drop)
    }

    fn publish_under_traffic(&mut self, command: &str, generation: u64) -> anyhow::Result<()> {
        let stream = Stream::start(&self.network.client)?;
        let code = self.wayleave(command)?;
        let streamed = stream.stop()?;
        let live = self.live()?;
        self.tell.check(code == 0 && live == generation, &format!("generation {generation} is live"))?;
        self.tell.say(&format!(
            "{} flows of UDP and ICMP, IPv4 and IPv6, ran all the time: {} packets sent, {} lost",
            streamed.flows, streamed.sent, streamed.lost
        ))?;
        self.tell.check(streamed.lost == 0, "no packet was lost")?;
        let claim = format!("{} flows moved to the other edge, each in one step", streamed.moved);
        self.tell.check(streamed.moved > 0 && streamed.wavered == 0, &claim)
    }

    fn leave(&mut self) -> anyhow::Result<()> {
        self.tell.step("The way out: the router is an ordinary router again")?;
        let code = self.wayleave("detach --config node.yaml --auto-approve")?;
        let service = traffic::pings(&self.network.client, SERVICE_V4.into(), 1, Duration::from_millis(200))?;
        self.tell.check(code == 0 && service == 0, "detached: the service is unreachable as in the beginning")?;
        self.tell.say("The namespaces, mounts and files go with this process; there is nothing to clean up.")
    }

    fn git(&self, repository: &Repository, arguments: &str) -> anyhow::Result<()> {
        self.tell.command(&format!("git -C policies {arguments}"))?;
        self.tell.output(&repository.run(&arguments.split(' ').collect::<Vec<_>>())?)
    }

    /// Runs this program on the router and shows what it printed; returns its exit code.
    fn wayleave(&mut self, arguments: &str) -> anyhow::Result<i32> {
        self.tell.command(&format!("wayleave {arguments}"))?;
        let output = Command::new("/proc/self/exe")
            .current_dir(&self.place)
            .args(arguments.split(' '))
            .output()
            .context("the program cannot start itself")?;
        let data = String::from_utf8_lossy(&output.stdout).into_owned();
        if !data.is_empty() && data == self.shown {
            self.tell.output("… the same plan again …")?;
        } else {
            self.tell.output(&data)?;
        }
        self.shown = data;
        self.tell.output(&String::from_utf8_lossy(&output.stderr))?;
        output.status.code().context("the command was killed")
    }

    fn live(&self) -> anyhow::Result<u64> {
        Ok(self.node.observe()?.live_number())
    }

    fn counter(&self, wanted: Reason) -> anyhow::Result<u64> {
        let observed = self.node.observe()?;
        let views = observed.live.iter().chain(&observed.retained).map(|g| g.image.view());
        let owners = Owners::of(&views.collect::<Result<Vec<_>, _>>()?);
        let counters = Objects::open(&self.node.pins)?.context("nothing is loaded")?.reasons(&owners)?;
        counters.iter().find(|(reason, _)| *reason == wanted).map(|(_, count)| count.packets).context("a counter")
    }

    /// How many connections were answered by the edge that the live rules give them.
    fn as_traced(&self, answered: &[(IpAddr, Answered)]) -> anyhow::Result<usize> {
        let observed = self.node.observe()?;
        let view = observed.live.as_ref().context("nothing is live")?.image.view()?;
        let mut agreed = 0;
        for (to, (from, name)) in answered {
            let trace = trace(&view, packet(*to, from)?, &Offline)?;
            // The IPv6 next hops are named for their family, the edges are not.
            agreed += usize::from(trace.next_hop().is_some_and(|hop| hop.name.trim_end_matches("-v6") == name));
        }
        Ok(agreed)
    }

    fn show_trace(&mut self, to: IpAddr, (from, _): &Answered) -> anyhow::Result<()> {
        self.tell.say("Why that edge? Every rule knows its file and line:")?;
        self.wayleave(&format!(
            "trace --config node.yaml --src {} --dst {to} --protocol tcp --sport {} --dport {PORT}",
            from.ip(),
            from.port()
        ))
        .map(drop)
    }
}

/// The packet that opens a connection.
fn packet(to: IpAddr, from: &SocketAddr) -> anyhow::Result<PacketDescription> {
    Ok(PacketDescription::new(&Fields {
        src: Some(from.ip()),
        dst: Some(to),
        protocol: Some("tcp"),
        sport: Some(from.port()),
        dport: Some(PORT),
        ..Fields::default()
    })?)
}

fn node_yaml(place: &Path) -> String {
    let place = place.display();
    format!(
        "apiVersion: wayleave/v1\n\
         kind: NodeConfig\n\
         metadata: {{name: demo-router}}\n\
         spec:\n\
         \u{20} source: {{directory: policies}}\n\
         \u{20} ports:\n\
         \u{20}   lan: {{device: lan}}\n\
         \u{20}   uplink-a: {{device: up-a}}\n\
         \u{20}   uplink-b: {{device: up-b}}\n\
         \u{20} bpffs: {place}/bpffs/wayleave\n\
         \u{20} stateDir: {place}/state\n"
    )
}

fn without_comments(text: &str) -> String {
    text.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n")
}
