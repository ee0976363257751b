//! `wayleave doctor`: whether this machine and this process can do it, and what to do when not.

use std::fs;
use std::path::Path;

use serde_json::json;

use super::node::block_on;
use super::{Exit, Format, Global, print};
use crate::daemon::node::Node;
use crate::kernel::attach::ONE_BUFFER_MTU_MAX;
use crate::kernel::link::{Link, XdpMode, links};
use crate::kernel::tables::DEVICE_INDEX_MAX;
use crate::kernel::xdp_features::xdp_features;
use crate::kernel::{KernelError, layout, probe};
use crate::policy::{self, Attach, Port};
use crate::source::{Limits, ReadSource as _, Source};

/// The kernel series that the tests run on (docs/testing.md).
const KERNELS_TESTED: [&str; 3] = ["6.1", "6.12", "6.18"];
/// Since Linux 5.11 the memory of BPF objects counts to the cgroup, before to `RLIMIT_MEMLOCK`.
const NO_MEMLOCK_SINCE: (u32, u32) = (5, 11);

/// Check whether this machine can do it, and say what to do when not
///
/// Exits with 1 when something fails. Changes nothing; without root it says what it could not check.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(long, value_enum, default_value_t = Format::Human)]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ok,
    Warn,
    Fail,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

struct Check {
    state: State,
    what: String,
    /// Empty when there is nothing to do.
    fix: String,
}

#[derive(Default)]
struct Checks(Vec<Check>);

impl Checks {
    fn ok(&mut self, what: impl Into<String>) {
        self.0.push(Check { state: State::Ok, what: what.into(), fix: String::new() });
    }

    fn warn(&mut self, what: impl Into<String>, fix: impl Into<String>) {
        self.0.push(Check { state: State::Warn, what: what.into(), fix: fix.into() });
    }

    fn fail(&mut self, what: impl Into<String>, fix: impl Into<String>) {
        self.0.push(Check { state: State::Fail, what: what.into(), fix: fix.into() });
    }

    fn failed(&self) -> bool {
        self.0.iter().any(|check| check.state == State::Fail)
    }
}

pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let mut checks = Checks::default();
    let release = read("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".to_owned());
    kernel(&release, &mut checks);
    let privileged = capabilities(&mut checks);
    bpf(privileged, &mut checks);
    forwarding(&mut checks);
    node(global, &mut checks)?;
    match args.format {
        Format::Human => print(&human(&checks))?,
        Format::Json => print(&format!("{:#}\n", document(&checks)))?,
    }
    Ok(if checks.failed() { Exit::Error } else { Exit::Ok })
}

fn kernel(release: &str, checks: &mut Checks) {
    if KERNELS_TESTED.iter().any(|series| release.starts_with(&format!("{series}."))) {
        checks.ok(format!("kernel {release}"));
    } else {
        checks.warn(
            format!("kernel {release} is untested"),
            format!("Linux {} are tested; `wayleave demo` shows whether this one does it", KERNELS_TESTED.join(", ")),
        );
    }
    match read("/proc/sys/net/core/bpf_jit_enable").as_deref() {
        Some("0") => checks.warn("the BPF compiler is off: slow", "sysctl -w net.core.bpf_jit_enable=1"),
        Some(_) => checks.ok("the BPF compiler (JIT) is on"),
        None => checks.warn("whether the BPF compiler is on cannot be seen", "look at net.core.bpf_jit_enable as root"),
    }
    if Path::new("/sys/kernel/btf/vmlinux").exists() {
        checks.ok("the kernel describes its types (BTF)");
    } else {
        checks.warn(
            "the kernel has no BTF",
            "tracing tools want a kernel with CONFIG_DEBUG_INFO_BTF=y; forwarding does not",
        );
    }
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse::<u32>().ok());
    if (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= NO_MEMLOCK_SINCE {
        checks.ok("memory for BPF objects is not bound by RLIMIT_MEMLOCK");
    } else {
        checks.warn(
            "this kernel binds BPF objects to RLIMIT_MEMLOCK",
            "set LimitMEMLOCK=infinity in the service, or `ulimit -l unlimited`",
        );
    }
}

/// Whether this process has every capability.
fn capabilities(checks: &mut Checks) -> bool {
    let all = match probe::capabilities() {
        Ok(all) => all,
        Err(error) => {
            checks.fail(format!("capabilities: {}", chain(error)), "mount /proc");
            return false;
        }
    };
    let missing: Vec<String> =
        all.iter().filter(|c| !c.effective).map(|c| format!("{} ({})", c.name, c.purpose)).collect();
    if missing.is_empty() {
        let names: Vec<&str> = all.iter().map(|c| c.name).collect();
        checks.ok(format!("capabilities {}", names.join(", ")));
        return true;
    }
    let what = format!("missing capabilities: {}", missing.join(", "));
    if rustix::process::geteuid().is_root() {
        checks.fail(what, "root without them runs in a container or a restricted service: grant them there");
    } else {
        checks.warn(what, "run doctor as root to check the kernel as well");
    }
    false
}

fn bpf(privileged: bool, checks: &mut Checks) {
    if !privileged {
        checks.warn("not checked: image maps, loading the program", "run doctor as root");
        return;
    }
    match probe::image_maps() {
        Ok(()) => checks.ok("image maps: mapped, frozen, held by an outer map"),
        Err(error) => {
            checks
                .fail(format!("image maps: {}", chain(error)), "a kernel with CONFIG_BPF_SYSCALL=y, and lockdown off");
        }
    }
    match probe::program() {
        Ok(()) => checks.ok("the program loads and runs (tried in a bpf file system of its own)"),
        Err(error) => {
            checks.fail(format!("the program: {}", chain(error)), "`wayleave demo --simulate` works without it");
        }
    }
}

fn forwarding(checks: &mut Checks) {
    for (key, what) in [("net.ipv4.ip_forward", "IPv4"), ("net.ipv6.conf.all.forwarding", "IPv6")] {
        match read(&format!("/proc/sys/{}", key.replace('.', "/"))).as_deref() {
            Some("0") => checks.warn(
                format!("the kernel does not forward {what}: packets without a rule, or to a neighbour not yet known, end here"),
                format!("sysctl -w {key}=1"),
            ),
            Some(_) => checks.ok(format!("the kernel forwards {what} packets that pass")),
            None => checks.warn(format!("{key} cannot be read"), "look at it as root"),
        }
    }
}

fn node(global: &Global, checks: &mut Checks) -> anyhow::Result<()> {
    let path = global.config_path();
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if !global.names_config() && error.kind() == std::io::ErrorKind::NotFound => {
            bpffs(&Node::new(default_places()?), checks);
            checks.warn(
                format!("no configuration at {}: ports and source were not checked", path.display()),
                "name one with --config",
            );
            return Ok(());
        }
        Err(error) => {
            checks.fail(
                format!("the configuration {} cannot be read: {error}", path.display()),
                "name another with --config",
            );
            return Ok(());
        }
    };
    let config = match policy::node_config(&text, path) {
        Ok(config) => config,
        Err(faults) => {
            for fault in faults {
                let line = fault.span.map_or(String::new(), |span| format!(":{}", span.start.line));
                checks.fail(
                    format!("{}{line}: {}", fault.file, fault.message),
                    format!("wayleave explain {}", fault.code),
                );
            }
            return Ok(());
        }
    };
    checks.ok(format!("configuration {} of node {}", path.display(), config.name));
    let node = Node::new(config);
    bpffs(&node, checks);
    layouts(&node, checks);
    match block_on(links())? {
        Ok(links) => {
            for (name, port) in &node.config.ports {
                check_port(name, port, links.iter().find(|link| link.name == port.device), checks);
            }
        }
        Err(error) => checks.fail(format!("devices cannot be listed: {}", chain(error)), "a kernel with rtnetlink"),
    }
    check_source(&node, checks);
    Ok(())
}

/// The places of a node whose configuration names none.
fn default_places() -> anyhow::Result<policy::NodeConfig> {
    let text = "apiVersion: wayleave/v1\nkind: NodeConfig\nmetadata: {name: default}\nspec:\n  source: {directory: .}\n  ports: {any: {device: lo}}\n";
    policy::node_config(text.as_bytes(), Path::new("default")).map_err(|faults| anyhow::anyhow!("{faults:?}"))
}

fn bpffs(node: &Node, checks: &mut Checks) {
    match node.pins.check_file_system() {
        Ok(()) => checks.ok(format!("{} lies on a bpf file system", node.pins.place().display())),
        Err(_) => checks.fail(
            format!("{} does not lie on a bpf file system", node.pins.place().display()),
            "mount -t bpf bpf /sys/fs/bpf, or set `bpffs` in the configuration",
        ),
    }
}

fn layouts(node: &Node, checks: &mut Checks) {
    match layout::refuse_newer(&node.pins) {
        Ok(()) => {}
        Err(error @ KernelError::NewerLayout { .. }) => {
            checks.fail(chain(error), "use the newer wayleave on this node");
        }
        Err(error) => checks.fail(chain(error), "run doctor as root"),
    }
}

fn check_port(name: &str, port: &Port, link: Option<&Link>, checks: &mut Checks) {
    let device = &port.device;
    let here = format!("port {name} on {device}");
    let Some(link) = link else {
        checks.fail(
            format!("{here}: there is no such device"),
            "`ip link` lists them; correct `ports` in the configuration",
        );
        return;
    };
    let failed = checks.0.len();
    if !link.up {
        checks.warn(format!("{here}: the device is down"), format!("ip link set {device} up"));
    } else if !link.carrier {
        checks.warn(format!("{here}: no carrier"), "look at the cable, or the peer");
    }
    if link.mac.is_none() {
        checks.fail(format!("{here}: the device has no MAC address"), "packets leave by Ethernet devices only");
    }
    if link.index >= DEVICE_INDEX_MAX {
        checks.fail(
            format!("{here}: its kernel index {} is {DEVICE_INDEX_MAX} or more", link.index),
            "make the device anew, or restart the machine: indexes begin at 1 again",
        );
    }
    native_xdp(&here, port, link, checks);
    let strict =
        |name: &str| read(&format!("/proc/sys/net/ipv4/conf/{name}/rp_filter")).and_then(|v| v.parse::<u8>().ok());
    if strict("all").max(strict(device)) == Some(1) {
        checks.warn(
            format!("{here}: rp_filter is strict: of packets that pass, the kernel drops those that came another way than answers go"),
            format!("sysctl -w net.ipv4.conf.{device}.rp_filter=2"),
        );
    }
    if checks.0.len() == failed {
        let how = if port.attach == Attach::Tc { "TC" } else { "native XDP" };
        checks.ok(format!("{here}: up, Ethernet, {how}"));
    }
}

fn native_xdp(here: &str, port: &Port, link: &Link, checks: &mut Checks) {
    match xdp_features(link.index) {
        Ok(features) => {
            if !features.native && matches!(port.attach, Attach::Native | Attach::Auto) {
                let what = format!("{here}: its driver has no native XDP");
                match port.attach {
                    Attach::Native => checks.fail(what, "use `attach: auto` or `attach: tc`"),
                    _ => checks.warn(what, "it works by TC, slower; `attach: tc` says that this is meant"),
                }
            }
            if port.attach != Attach::Tc && features.native && link.mtu > ONE_BUFFER_MTU_MAX && !features.native_frags {
                checks.warn(
                    format!(
                        "{here}: its driver may refuse XDP at MTU {}, as it takes no frames of several buffers",
                        link.mtu
                    ),
                    "a smaller MTU, or `attach: tc`",
                );
            }
            // A device that carries the program natively already is a target in most drivers; veth asks its peer.
            if features.native && !features.target && link.xdp.is_none_or(|xdp| xdp.mode != XdpMode::Generic) {
                checks.warn(
                    format!("{here}: as it is set up now, packets cannot be sent to it from other ports"),
                    "of a veth, turn GRO on at its peer after both are up (`ethtool -K PEER gro on`); other drivers may need their own XDP program attached first",
                );
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            checks.warn(format!("{here}: this kernel does not say what its driver can do"), "Linux 6.3 and newer do");
        }
        Err(error) => checks.warn(format!("{here}: what its driver can do is not known ({error})"), ""),
    }
}

fn check_source(node: &Node, checks: &mut Checks) {
    let source = &node.config.source;
    let shown = source.to_string();
    let snapshot = match source.read(&Limits::default()) {
        Ok(snapshot) => snapshot,
        Err(error) => {
            checks.fail(chain(error), "correct `source` in the configuration");
            return;
        }
    };
    let validated = policy::validate(&snapshot);
    let policy = validated.policy.map(|policy| policy.for_node(&node.config.labels));
    let unknown = policy.map(|policy| policy::check_names(&policy, &node.config)).unwrap_or_default();
    let errors = validated.diagnostics.iter().filter(|d| d.severity == policy::Severity::Error).count() + unknown.len();
    if errors == 0 {
        checks.ok(format!("the policies in {shown} are valid"));
    } else {
        checks.fail(
            format!("the policies in {shown} have {errors} errors"),
            match source {
                Source::Directory(_) => format!("wayleave validate {shown} shows them"),
                Source::Local { .. } | Source::Git(_) => "`wayleave validate` shows them".to_owned(),
            },
        );
    }
}

fn human(checks: &Checks) -> String {
    let line = |check: &Check| {
        let fix = if check.fix.is_empty() { String::new() } else { format!("  — {}", check.fix) };
        format!("{:<6}{}{fix}\n", check.state.name(), check.what)
    };
    checks.0.iter().map(line).collect::<Vec<_>>().concat()
}

fn document(checks: &Checks) -> serde_json::Value {
    let list: Vec<_> = checks
        .0
        .iter()
        .map(|check| json!({"state": check.state.name(), "what": check.what, "fix": (!check.fix.is_empty()).then_some(&check.fix)}))
        .collect();
    json!({"format_version": 1, "ok": !checks.failed(), "checks": list})
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// An error and what caused it, in one line.
fn chain(error: impl std::error::Error + Send + Sync + 'static) -> String {
    format!("{:#}", anyhow::Error::new(error)).replace('\n', " ")
}
