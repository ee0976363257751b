//! Documents as written: the only types that are deserialized, and the source of the published schemas.
//!
//! Doc comments here are the descriptions in the schemas: users read them in their editors.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;

/// The version of the document format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
pub(super) enum ApiVersion {
    #[serde(rename = "wayleave/v1")]
    V1,
}

/// Routes with the next hops that they use.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RoutePolicy {
    #[expect(dead_code, reason = "checked by the schema; the field makes the schema require it")]
    pub(super) api_version: ApiVersion,
    #[expect(dead_code, reason = "checked by the schema; the field makes the schema require it")]
    pub(super) kind: RoutePolicyKind,
    pub(super) metadata: Metadata,
    pub(super) spec: RouteSpec,
}

/// The kind of this document.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) enum RoutePolicyKind {
    RoutePolicy,
}

/// What the policy is called and whose it is.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Metadata {
    /// Identifies the policy in plans, counters and traces; unique among the policies of its kind.
    #[schemars(regex(pattern = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"), length(min = 1, max = 63))]
    pub(super) name: String,
    /// Who answers for the policy, such as a team.
    #[serde(default)]
    #[schemars(with = "String", length(min = 1, max = 253))]
    pub(super) owner: Option<String>,
    /// Free key and value pairs for tools around wayleave.
    #[expect(dead_code, reason = "for people and for tools that read the documents")]
    #[serde(default)]
    pub(super) labels: BTreeMap<String, String>,
}

/// Which nodes a document is for, by the labels in their own configuration.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Nodes {
    /// Only nodes that have every one of these labels with this value.
    #[schemars(length(min = 1, max = 16))]
    pub(super) labels: BTreeMap<String, String>,
}

/// Next hops, and the routes that use them.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RouteSpec {
    /// Which nodes the policy is for; all of them when left out.
    #[serde(default)]
    #[schemars(with = "Nodes")]
    pub(super) nodes: Option<Nodes>,
    /// The gateways that routes of this policy name.
    #[serde(default)]
    pub(super) next_hops: Vec<NextHop>,
    /// What happens to packets of a route when all its next hops are down; routes may say otherwise.
    #[serde(default)]
    #[schemars(extend("default" = "pass"))]
    pub(super) on_all_down: OnAllDown,
    /// What happens to packets, by destination; the longest prefix wins.
    pub(super) routes: Vec<Route>,
    /// What must work after a change if it worked before it: else the change is rolled back.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub(super) probes: Vec<Probe>,
}

/// Something that a node tries before and after a change. Exactly one of tcp, http and ping.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Probe {
    /// Unique among the probes of this document.
    #[schemars(regex(pattern = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"), length(min = 1, max = 63))]
    pub(super) name: String,
    /// A connection is made.
    #[serde(default)]
    #[schemars(with = "TcpProbe")]
    pub(super) tcp: Option<TcpProbe>,
    /// A page is got.
    #[serde(default)]
    #[schemars(with = "HttpProbe")]
    pub(super) http: Option<HttpProbe>,
    /// An ICMP echo is answered.
    #[serde(default)]
    #[schemars(with = "PingProbe")]
    pub(super) ping: Option<PingProbe>,
    /// How long one try may take, such as 1s.
    #[serde(default = "probe_timeout_default")]
    #[schemars(extend("default" = "1s"))]
    pub(super) timeout: String,
}

/// Where a connection is made to.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct TcpProbe {
    /// An IPv4 or IPv6 address.
    pub(super) address: String,
    #[schemars(range(min = 1))]
    pub(super) port: u16,
}

/// What is got, and what is expected.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct HttpProbe {
    /// Such as `http://198.51.100.10/health`; redirections are not followed.
    #[schemars(regex(pattern = r"^https?://[^\s]+$"), length(max = 2048))]
    pub(super) url: String,
    /// The status that is expected; any from 200 to 399 when left out.
    #[serde(default)]
    #[schemars(with = "u16", range(min = 100, max = 599))]
    pub(super) status: Option<u16>,
}

/// Who is asked for an echo.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PingProbe {
    /// An IPv4 or IPv6 address.
    pub(super) address: String,
}

fn probe_timeout_default() -> String {
    "1s".to_owned()
}

/// A named gateway behind a port.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct NextHop {
    /// Unique within the policy.
    #[schemars(regex(pattern = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"), length(min = 1, max = 63))]
    pub(super) name: String,
    /// The gateway's IPv4 or IPv6 address, such as `192.0.2.1` or `2001:db8::1`.
    pub(super) via: String,
    /// The policy's name for an interface; a node's configuration maps it to a device.
    #[schemars(regex(pattern = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"), length(min = 1, max = 63))]
    pub(super) port: String,
}

/// One prefix, or the prefixes of a list, and what happens to packets for them.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Route {
    /// The destination, such as `10.20.0.0/16` or `2001:db8::/32`, without host bits. Either this or prefixesFrom.
    #[serde(default)]
    #[schemars(with = "String")]
    pub(super) prefix: Option<String>,
    /// Path of a list in this source: one `PREFIX` or `PREFIX,NEXT-HOP-NAME` a line, `#` begins a comment. Either this or
    /// prefix.
    #[serde(default)]
    #[schemars(with = "String", length(min = 1, max = 1024))]
    pub(super) prefixes_from: Option<String>,
    /// The next hops that share the traffic. Implies `action: forward`.
    #[serde(default)]
    #[schemars(with = "Vec<NextHopShare>", length(min = 1, max = 256))]
    pub(super) next_hops: Option<Vec<NextHopShare>>,
    /// forward (implied by nextHops), drop, or pass to the kernel.
    #[serde(default)]
    #[schemars(with = "RouteAction")]
    pub(super) action: Option<RouteAction>,
    /// What happens to packets when all next hops of the route are down; what the policy says when left out.
    #[serde(default)]
    #[schemars(with = "OnAllDown")]
    pub(super) on_all_down: Option<OnAllDown>,
}

/// What happens to packets whose next hops are all down: pass to the kernel, or drop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnAllDown {
    #[default]
    Pass,
    Drop,
}

impl OnAllDown {
    /// As documents and command output write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Drop => "drop",
        }
    }
}

/// A next hop's part in a route.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct NextHopShare {
    /// The name of one of this policy's next hops.
    pub(super) name: String,
    /// Share of the traffic relative to the others of the route.
    #[serde(default = "weight_default")]
    #[schemars(range(min = 1, max = 65_535), extend("default" = 1))]
    pub(super) weight: u16,
}

fn weight_default() -> u16 {
    1
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum RouteAction {
    Forward,
    Drop,
    Pass,
}

/// Which packets are taken at all: ordered rules, of which the first that matches decides.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct FilterPolicy {
    #[expect(dead_code, reason = "checked by the schema; the field makes the schema require it")]
    pub(super) api_version: ApiVersion,
    #[expect(dead_code, reason = "checked by the schema; the field makes the schema require it")]
    pub(super) kind: FilterPolicyKind,
    pub(super) metadata: Metadata,
    pub(super) spec: FilterSpec,
}

/// The kind of this document.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) enum FilterPolicyKind {
    FilterPolicy,
}

/// Rules on packets, before any route is asked.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct FilterSpec {
    /// Which nodes the policy is for; all of them when left out.
    #[serde(default)]
    #[schemars(with = "Nodes")]
    pub(super) nodes: Option<Nodes>,
    /// Where the policy stands among those of a node: the lowest number first, equal ones by name.
    #[serde(default = "filter_priority_default")]
    #[schemars(range(min = 0, max = 10_000), extend("default" = 1000))]
    pub(super) priority: u16,
    /// What happens to packets that no rule of any policy matches. Policies of one node must not contradict each other; allow
    /// when none says anything.
    #[serde(default)]
    #[schemars(with = "FilterAction")]
    pub(super) default: Option<FilterAction>,
    /// In order: the first that matches a packet decides.
    pub(super) rules: Vec<FilterRule>,
}

fn filter_priority_default() -> u16 {
    1000
}

/// Take the packet, or drop it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FilterAction {
    Allow,
    Deny,
}

/// One rule. It matches packets for which everything that it says holds. Either action or rateLimit.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct FilterRule {
    /// Unique within the policy; its counter and its buckets belong to this name.
    #[schemars(regex(pattern = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"), length(min = 1, max = 63))]
    pub(super) name: String,
    /// Source prefixes, such as `10.20.0.0/16` or `2001:db8::/32`; any of them. Together with those of fromList.
    #[serde(default)]
    #[schemars(with = "Vec<String>", length(min = 1, max = 10_000))]
    pub(super) from: Option<Vec<String>>,
    /// Path of a list in this source: one prefix a line, `#` begins a comment.
    #[serde(default)]
    #[schemars(with = "String", length(min = 1, max = 1024))]
    pub(super) from_list: Option<String>,
    /// Destination prefixes; any of them. Together with those of toList.
    #[serde(default)]
    #[schemars(with = "Vec<String>", length(min = 1, max = 10_000))]
    pub(super) to: Option<Vec<String>>,
    /// Path of a list of destination prefixes, as fromList.
    #[serde(default)]
    #[schemars(with = "String", length(min = 1, max = 1024))]
    pub(super) to_list: Option<String>,
    /// tcp, udp, icmp (of the packet's family), or a number in quotes.
    #[serde(default)]
    #[schemars(with = "String", length(min = 1, max = 16))]
    pub(super) protocol: Option<String>,
    /// Destination ports, such as 443, or ranges in quotes, such as "8000-8099"; any of them.
    #[serde(default)]
    #[schemars(schema_with = "filter_ports_schema")]
    pub(super) ports: Option<Vec<FilterPort>>,
    /// Source ports, likewise.
    #[serde(default)]
    #[schemars(schema_with = "filter_ports_schema")]
    pub(super) source_ports: Option<Vec<FilterPort>>,
    /// The port that the packet comes in by, or a list of ports; the policy's names of interfaces.
    #[serde(default)]
    #[schemars(schema_with = "names_schema")]
    pub(super) in_port: Option<Names>,
    /// Flags of TCP.
    #[serde(default)]
    #[schemars(with = "TcpFlags")]
    pub(super) tcp_flags: Option<TcpFlags>,
    /// Whether a rule with ports or flags also matches fragments that are not the first, which show neither.
    #[serde(default)]
    #[schemars(extend("default" = false))]
    pub(super) fragments: bool,
    /// allow or deny. Either this or rateLimit.
    #[serde(default)]
    #[schemars(with = "FilterAction")]
    pub(super) action: Option<FilterAction>,
    /// Packets within the limit are allowed, the others dropped. Either this or action.
    #[serde(default)]
    #[schemars(with = "RateLimit")]
    pub(super) rate_limit: Option<RateLimit>,
}

/// A port, or a range of ports in quotes.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum FilterPort {
    One(u16),
    Text(String),
}

fn filter_ports_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "array", "minItems": 1, "maxItems": 256,
        "items": {"type": ["integer", "string"], "minimum": 0, "maximum": 65_535, "minLength": 1, "maxLength": 11}})
}

/// Which flags of TCP must be set, and which clear.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("minProperties" = 1))]
pub(super) struct TcpFlags {
    /// All of these are set.
    #[serde(default)]
    #[schemars(length(max = 8))]
    pub(super) set: Vec<TcpFlag>,
    /// None of these is set.
    #[serde(default)]
    #[schemars(length(max = 8))]
    pub(super) clear: Vec<TcpFlag>,
}

/// A flag of TCP, as RFC 9293 names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum TcpFlag {
    Fin,
    Syn,
    Rst,
    Psh,
    Ack,
    Urg,
    Ece,
    Cwr,
}

/// How many packets, or bytes of whole frames. Either packetsPerSecond or bytesPerSecond.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RateLimit {
    #[serde(default)]
    #[schemars(with = "u64", range(min = 1, max = 1_000_000_000))]
    pub(super) packets_per_second: Option<u64>,
    #[serde(default)]
    #[schemars(with = "u64", range(min = 1, max = 100_000_000_000_u64))]
    pub(super) bytes_per_second: Option<u64>,
    /// Packets or bytes that may come at once after a pause; what comes in a second when left out, and at least 65,575 bytes.
    #[serde(default)]
    #[schemars(with = "u64", range(min = 1, max = 1_000_000_000_000_u64))]
    pub(super) burst: Option<u64>,
    /// What has a limit of its own: each source address, each prefix of sources, or the rule as a whole.
    #[serde(default)]
    #[schemars(extend("default" = "rule"))]
    pub(super) per: LimitPer,
    /// Bits of an IPv4 source that share a limit, with per: sourcePrefix.
    #[serde(default)]
    #[schemars(with = "u8", range(min = 1, max = 32), extend("default" = 24))]
    pub(super) ipv4_prefix_length: Option<u8>,
    /// Bits of an IPv6 source that share a limit, with per: sourcePrefix.
    #[serde(default)]
    #[schemars(with = "u8", range(min = 1, max = 128), extend("default" = 64))]
    pub(super) ipv6_prefix_length: Option<u8>,
}

/// What has a limit of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) enum LimitPer {
    Source,
    SourcePrefix,
    #[default]
    Rule,
}

/// Packets, and what must happen to them.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PolicyTest {
    #[expect(dead_code, reason = "checked by the schema; the field makes the schema require it")]
    pub(super) api_version: ApiVersion,
    #[expect(dead_code, reason = "checked by the schema; the field makes the schema require it")]
    pub(super) kind: PolicyTestKind,
    pub(super) metadata: Metadata,
    pub(super) spec: TestSpec,
}

/// The kind of this document.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) enum PolicyTestKind {
    PolicyTest,
}

/// The cases of a test.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct TestSpec {
    /// Which nodes the test is for; all of them when left out.
    #[serde(default)]
    #[schemars(with = "Nodes")]
    pub(super) nodes: Option<Nodes>,
    #[schemars(length(min = 1, max = 10_000))]
    pub(super) cases: Vec<TestCase>,
}

/// One packet and what must happen to it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct TestCase {
    /// What the case is about, in a few words; shown when it fails.
    #[serde(default)]
    #[schemars(with = "String", length(min = 1, max = 200))]
    pub(super) name: Option<String>,
    pub(super) packet: TestPacket,
    pub(super) expect: Expect,
}

/// A packet as it comes in.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct TestPacket {
    /// Source address.
    pub(super) src: String,
    /// Destination address, of the same family.
    pub(super) dst: String,
    /// tcp (the default), udp, icmp, or a number in quotes.
    #[serde(default)]
    #[schemars(with = "String")]
    pub(super) protocol: Option<String>,
    #[serde(default)]
    #[schemars(with = "u16", range(min = 0, max = 65_535))]
    pub(super) sport: Option<u16>,
    #[serde(default)]
    #[schemars(with = "u16", range(min = 0, max = 65_535))]
    pub(super) dport: Option<u16>,
    /// TTL or hop limit; 64 when left out.
    #[serde(default)]
    #[schemars(with = "u8", range(min = 0, max = 255))]
    pub(super) ttl: Option<u8>,
    /// Bytes of the IP packet; just its headers when left out.
    #[serde(default)]
    #[schemars(with = "u32", range(min = 20, max = 65_575))]
    pub(super) length: Option<u32>,
    /// The packet is an ICMP error (fragmentation needed or packet too big) that quotes this one, as in
    /// `"tcp 198.51.100.10:443 198.18.0.1:40000"`: source and destination of the packet that could not be delivered.
    #[serde(default)]
    #[schemars(with = "String", length(min = 1, max = 128))]
    pub(super) about: Option<String>,
    /// The port that it comes in by. A node without this port leaves the case out.
    #[serde(default)]
    #[schemars(with = "String", regex(pattern = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"), length(min = 1, max = 63))]
    pub(super) in_port: Option<String>,
}

/// What must happen to the packet; every key that is written must hold.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("minProperties" = 1))]
pub(super) struct Expect {
    #[serde(default)]
    #[schemars(with = "TestVerdict")]
    pub(super) verdict: Option<TestVerdict>,
    /// Why: one of the reasons that `wayleave trace` gives.
    #[serde(default)]
    #[schemars(schema_with = "reason_schema")]
    pub(super) reason: Option<String>,
    /// The next hop that the packet is sent to, as NAME or POLICY/NAME, or a list of those that it may be sent to. Those
    /// that are down at the moment are taken to be up. A node none of whose policies has them leaves the case out.
    #[serde(default)]
    #[schemars(schema_with = "names_schema")]
    pub(super) next_hop: Option<Names>,
    /// The policy whose route decides.
    #[serde(default)]
    #[schemars(with = "String", length(min = 1, max = 63))]
    pub(super) policy: Option<String>,
    /// The prefix of the route that decides.
    #[serde(default)]
    #[schemars(with = "String")]
    pub(super) prefix: Option<String>,
    /// Policy and prefix in one, as POLICY/PREFIX, or policy and name of the filter rule that decides, as POLICY/RULE.
    #[serde(default)]
    #[schemars(with = "String")]
    pub(super) rule: Option<String>,
    /// The service whose vip and port the packet meets. A node that does not have it leaves the case out.
    #[serde(default)]
    #[schemars(with = "String", length(min = 1, max = 63))]
    pub(super) service: Option<String>,
    /// The backend that the packet is sent to, as ADDRESS or ADDRESS:PORT, or a list of those that it may be sent to.
    #[serde(default)]
    #[schemars(schema_with = "names_schema")]
    pub(super) backend: Option<Names>,
}

/// What becomes of a packet: sent to a next hop, left to the kernel, dropped, or answered in the place of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum TestVerdict {
    Forward,
    Pass,
    Drop,
    Answer,
}

/// One name or several.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Names {
    One(String),
    Several(Vec<String>),
}

fn names_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    // One type list instead of `anyOf`, whose faults nobody can read.
    schemars::json_schema!({"type": ["string", "array"], "items": {"type": "string"}, "minItems": 1, "maxItems": 256})
}

fn reason_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let names: Vec<&str> = fib::Reason::ALL.iter().map(|reason| reason.name()).collect();
    schemars::json_schema!({"enum": names})
}

/// A node's own configuration: where its policies come from and which devices its ports are.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct NodeConfig {
    #[expect(dead_code, reason = "checked by the schema; the field makes the schema require it")]
    pub(super) api_version: ApiVersion,
    #[expect(dead_code, reason = "checked by the schema; the field makes the schema require it")]
    pub(super) kind: NodeConfigKind,
    pub(super) metadata: NodeMetadata,
    pub(super) spec: NodeSpec,
}

/// The kind of this document.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) enum NodeConfigKind {
    NodeConfig,
}

/// What the node is called.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct NodeMetadata {
    /// The node's name in reports.
    #[schemars(regex(pattern = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"), length(min = 1, max = 253))]
    pub(super) name: String,
    /// Free key and value pairs, such as the site.
    #[serde(default)]
    pub(super) labels: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct NodeSpec {
    pub(super) source: NodeSource,
    /// The device of every port name that policies use.
    #[schemars(length(min = 1, max = 256))]
    pub(super) ports: BTreeMap<String, Port>,
    /// A directory on a bpf file system, where programs and maps are pinned.
    #[serde(default = "bpffs_default")]
    #[schemars(with = "String", length(min = 1), extend("default" = "/sys/fs/bpf/wayleave"))]
    pub(super) bpffs: PathBuf,
    /// Where the journal of applied generations is kept.
    #[serde(default = "state_dir_default")]
    #[schemars(with = "String", length(min = 1), extend("default" = "/var/lib/wayleave"))]
    pub(super) state_dir: PathBuf,
    #[serde(default)]
    pub(super) retain: Retain,
    #[serde(default)]
    pub(super) guards: Guards,
    /// What must work after a change if it worked before it: else the change is rolled back.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub(super) probes: Vec<Probe>,
    /// Programs that must succeed after a change if they did before it. Only a node's own configuration may name programs.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub(super) probe_commands: Vec<ProbeCommand>,
    /// Programs that health checks of services may run here, by the names that policies know them by. A policy never says what
    /// is run.
    #[serde(default)]
    #[schemars(extend("maxProperties" = 64))]
    pub(super) health_commands: BTreeMap<String, HealthCommand>,
    /// Which addresses packets to backends of `forwarding: ipip` come from.
    #[serde(default)]
    pub(super) tunnel: Tunnel,
    /// Packets in packets that this node takes out, where it is a backend of `forwarding: ipip`; none when left out.
    #[serde(default)]
    #[schemars(with = "Decapsulate")]
    pub(super) decapsulate: Option<Decapsulate>,
    #[serde(default)]
    pub(super) probation: Probation,
    #[serde(default)]
    pub(super) drift: Drift,
    /// How often the source is read even when nothing seems to have changed, such as 30s.
    #[serde(default = "rescan_interval_default")]
    #[schemars(extend("default" = "30s"))]
    pub(super) rescan_interval: String,
    /// How long the source must be quiet after a change before it is read, such as 20ms.
    #[serde(default = "settle_default")]
    #[schemars(extend("default" = "20ms"))]
    pub(super) settle: String,
    #[serde(default)]
    pub(super) sync: Sync,
    /// Makes the daemon look when a server says that something was pushed.
    #[serde(default)]
    #[schemars(with = "Webhook")]
    pub(super) webhook: Option<Webhook>,
}

/// The node's end of tunnels to backends.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Tunnel {
    /// The outer source address, one of each family that backends have. Backends must let it in.
    #[serde(default)]
    #[schemars(length(max = 2))]
    pub(super) sources: Vec<String>,
}

/// What a backend takes out of its outer header. The inner packet goes to this node's own network stack and nowhere else.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Decapsulate {
    /// Addresses of this node that packets are sent to: the backend's in the services' policies.
    #[schemars(length(min = 1, max = 8))]
    pub(super) addresses: Vec<String>,
    /// Prefixes or addresses of the nodes that may send such packets: their `tunnel.sources`. Others are dropped.
    #[schemars(length(min = 1, max = 12))]
    pub(super) from: Vec<String>,
    /// Prefixes or addresses that packets inside may be for: the vips. Others are dropped.
    #[schemars(length(min = 1, max = 12))]
    pub(super) to: Vec<String>,
}

/// When changes of the source are taken.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Sync {
    /// Times at which changes are taken or not: one that denies wins, and where any allows, one that allows must be open. A
    /// rollback is always allowed.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub(super) windows: Vec<SyncWindow>,
}

/// Times at which changes are taken, or not.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct SyncWindow {
    pub(super) kind: WindowKind,
    /// When it opens: minute, hour, day of month, month and day of week as cron has them, such as `0 22 * * 1-5`.
    #[schemars(length(min = 1, max = 256))]
    pub(super) schedule: String,
    /// How long it stays open, such as 30m, 4h or 2d; at most 7d.
    #[schemars(length(min = 1, max = 32))]
    pub(super) duration: String,
    /// The time zone of the schedule, such as Europe/Berlin.
    #[serde(default = "time_zone_default")]
    #[schemars(length(min = 1, max = 64), extend("default" = "UTC"))]
    pub(super) time_zone: String,
    /// Why, for whoever is held up by it.
    #[serde(default)]
    #[schemars(with = "String", length(min = 1, max = 256))]
    pub(super) reason: Option<String>,
}

/// Whether changes are taken while a window is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum WindowKind {
    Allow,
    Deny,
}

impl WindowKind {
    /// As documents write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

fn time_zone_default() -> String {
    "UTC".to_owned()
}

/// Where the node's policies come from: a directory or a git repository, one of them.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("minProperties" = 1, "maxProperties" = 1))]
pub(super) struct NodeSource {
    /// A directory of policies; a relative path starts at the folder of this configuration file.
    #[serde(default)]
    #[schemars(with = "String", length(min = 1))]
    pub(super) directory: Option<PathBuf>,
    /// A git repository that is fetched and read, never checked out.
    #[serde(default)]
    #[schemars(with = "GitSource")]
    pub(super) git: Option<GitSource>,
}

/// A git repository of policies.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct GitSource {
    /// `https://HOST/PATH`, `ssh://USER@HOST/PATH`, `USER@HOST:PATH`, `file:///PATH` or a path, which starts at the folder of
    /// this configuration file. Without a password: credentials belong into files, see auth.
    #[schemars(length(min = 1, max = 2048))]
    pub(super) url: String,
    /// What is followed.
    #[serde(rename = "ref")]
    pub(super) reference: GitReference,
    /// The folder of the repository that holds the policies; all of it when left out.
    #[serde(default)]
    #[schemars(with = "String", length(min = 1, max = 1024))]
    pub(super) subpath: Option<String>,
    /// How often the server is asked, such as 1m; each time a tenth more or less, and less often while it fails.
    #[serde(default = "git_interval_default")]
    #[schemars(extend("default" = "1m"))]
    pub(super) interval: String,
    /// How long a fetch may take; then it is killed.
    #[serde(default = "git_timeout_default")]
    #[schemars(extend("default" = "60s"))]
    pub(super) timeout: String,
    /// How long connecting may take.
    #[serde(default = "git_connect_timeout_default")]
    #[schemars(extend("default" = "10s"))]
    pub(super) connect_timeout: String,
    /// How much one fetch may bring, such as 1GiB.
    #[serde(default = "git_transfer_limit_default")]
    #[schemars(extend("default" = "1GiB"))]
    pub(super) transfer_limit: String,
    /// Files with what the server wants to see.
    #[serde(default)]
    pub(super) auth: GitAuth,
    /// What fetches: the library that is built in, or the git program.
    #[serde(default)]
    #[schemars(extend("default" = "libgit2"))]
    pub(super) backend: GitBackend,
    /// What becomes of a history that was rewritten, and of a tag that moved: allow takes it, warn takes it and says so, refuse
    /// stays with what was taken before.
    #[serde(default)]
    #[schemars(extend("default" = "warn"))]
    pub(super) force_push: GitForcePush,
    /// Whose signatures a commit must carry to be taken.
    #[serde(default)]
    #[schemars(with = "GitVerify")]
    pub(super) verify: Option<GitVerify>,
}

/// What is followed: exactly one of these.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("minProperties" = 1, "maxProperties" = 1))]
pub(super) struct GitReference {
    /// The newest commit of a branch.
    #[serde(default)]
    #[schemars(with = "String", length(min = 1, max = 255))]
    pub(super) branch: Option<String>,
    /// A tag.
    #[serde(default)]
    #[schemars(with = "String", length(min = 1, max = 255))]
    pub(super) tag: Option<String>,
    /// The tag with the highest version in a range, such as `^1.2`, `~1.4` or `>=2, <3`; tags may begin with v.
    #[serde(default)]
    #[schemars(with = "String", length(min = 1, max = 255))]
    pub(super) semver: Option<String>,
    /// One commit, by all forty digits of its id.
    #[serde(default)]
    #[schemars(with = "String", regex(pattern = r"^[0-9a-f]{40}$"))]
    pub(super) commit: Option<String>,
}

/// Files with credentials, read at each fetch and never shown. Relative paths start at the folder of this file.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct GitAuth {
    /// The name that is sent with the token; `git` when left out, which most servers take.
    #[serde(default)]
    #[schemars(with = "String", regex(pattern = r"^[^\s:]+$"), length(min = 1, max = 255))]
    pub(super) username: Option<String>,
    /// A file with a token or password for https, in one line.
    #[serde(default)]
    #[schemars(with = "String", length(min = 1))]
    pub(super) token_file: Option<PathBuf>,
    /// A file with a private key for ssh, without a passphrase.
    #[serde(default)]
    #[schemars(with = "String", length(min = 1))]
    pub(super) ssh_key_file: Option<PathBuf>,
    /// The host keys to trust, as ssh has them in `known_hosts`; required for ssh.
    #[serde(default)]
    #[schemars(with = "String", length(min = 1))]
    pub(super) known_hosts_file: Option<PathBuf>,
    /// Certificates (PEM) to trust for https, instead of the system's.
    #[serde(default)]
    #[schemars(with = "String", length(min = 1))]
    pub(super) ca_file: Option<PathBuf>,
}

/// Only commits with an SSH signature of an allowed signer are taken, and no older one than was taken before.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct GitVerify {
    /// head: the commit that is taken; all-since-last: every commit since the one taken before; tag: the annotated tag, with a
    /// ref of tag or semver.
    pub(super) mode: GitVerifyMode,
    /// Who may sign, in the format of ssh-keygen's allowed signers; options namespaces, valid-after and valid-before (in UTC,
    /// against this machine's clock).
    #[schemars(with = "String", length(min = 1))]
    pub(super) allowed_signers: PathBuf,
    /// Take a signed commit that does not contain the one taken before.
    #[serde(default)]
    #[schemars(extend("default" = false))]
    pub(super) allow_rollback: bool,
}

/// What must be signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum GitVerifyMode {
    Head,
    AllSinceLast,
    Tag,
}

/// What fetches.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum GitBackend {
    #[default]
    Libgit2,
    Git,
}

/// What becomes of a history that was rewritten.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum GitForcePush {
    Allow,
    #[default]
    Warn,
    Refuse,
}

/// An HTTP endpoint, `POST /hook`, that makes the daemon look at the source at once. What is posted says nothing else.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Webhook {
    /// The address and port to listen on; one that others reach should lie behind a proxy with TLS.
    #[serde(default = "webhook_listen_default")]
    #[schemars(extend("default" = "127.0.0.1:9797"))]
    pub(super) listen: String,
    /// A file with the secret, in one line, that requests are signed with (X-Hub-Signature-256) or carry (X-Gitlab-Token);
    /// read at each request.
    #[schemars(with = "String", length(min = 1))]
    pub(super) secret_file: PathBuf,
}

/// The device behind a port name.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Port {
    /// The interface's name in the kernel, such as eth0.
    #[schemars(regex(pattern = r"^[^\s/]+$"), length(min = 1, max = 15))]
    pub(super) device: String,
    /// How the program is attached: native by XDP in the driver, generic by XDP behind it, tc by TC ingress; auto takes native
    /// where the driver has it, else tc.
    #[serde(default)]
    #[schemars(extend("default" = "auto"))]
    pub(super) attach: Attach,
}

/// How the program is attached to a device: by XDP in the driver (native) or behind it (generic), or by TC ingress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Attach {
    #[default]
    Auto,
    Native,
    Generic,
    Tc,
}

/// What the daemon does where the kernel is not as the last publish left it: where somebody else had a hand in it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Drift {
    /// Not looked for (off); said in status, log and journal (report); said and put right (heal).
    #[serde(default)]
    #[schemars(extend("default" = "heal"))]
    pub(super) mode: DriftMode,
    /// How often the daemon looks, such as 30s.
    #[serde(default = "drift_interval_default")]
    #[schemars(extend("default" = "30s"))]
    pub(super) interval: String,
}

impl Default for Drift {
    fn default() -> Self {
        Self { mode: DriftMode::default(), interval: drift_interval_default() }
    }
}

fn drift_interval_default() -> String {
    "30s".to_owned()
}

/// What becomes of drift.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DriftMode {
    Off,
    Report,
    #[default]
    Heal,
}

impl DriftMode {
    /// As a node's configuration says it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Report => "report",
            Self::Heal => "heal",
        }
    }
}

/// What an apply refuses until somebody says that it is meant. Plans are never refused.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Guards {
    /// The share of the live routes that an apply may remove, in percent. Fewer than 10 routes are never too many.
    #[serde(default = "removed_percent_default")]
    #[schemars(range(min = 0, max = 100), extend("default" = 10))]
    pub(super) removed_percent: u8,
    /// How many routes an apply may remove, however many there are; no such limit when left out.
    #[serde(default)]
    #[schemars(with = "u32", range(min = 0))]
    pub(super) removed_routes: Option<u32>,
    /// Prefixes from which this node is managed, beside its own addresses on devices that carry no port.
    #[serde(default)]
    pub(super) management: Vec<String>,
    /// Guards that are off on this node.
    #[serde(default)]
    pub(super) allow: Vec<Guard>,
}

impl Default for Guards {
    fn default() -> Self {
        Self {
            removed_percent: removed_percent_default(),
            removed_routes: None,
            management: Vec::new(),
            allow: Vec::new(),
        }
    }
}

fn removed_percent_default() -> u8 {
    10
}

/// A guard: many routes removed, all routes removed, a default route touched, management addresses covered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Guard {
    Removals,
    Empty,
    DefaultRoute,
    Management,
}

/// A program that tells by its exit code whether something works.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ProbeCommand {
    /// Unique among the probes of this document.
    #[schemars(regex(pattern = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"), length(min = 1, max = 63))]
    pub(super) name: String,
    /// The program and its arguments; no shell reads them.
    #[schemars(length(min = 1, max = 64))]
    pub(super) run: Vec<String>,
    /// How long it may take, such as 1s; it is killed then.
    #[serde(default = "probe_timeout_default")]
    #[schemars(extend("default" = "1s"))]
    pub(super) timeout: String,
}

/// A program that tells by its exit code whether a backend serves: 0, it does. It gets the backend in the environment variables
/// `WAYLEAVE_BACKEND_ADDRESS` and `WAYLEAVE_BACKEND_PORT`, beside them only `PATH`, and has the daemon's rights.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct HealthCommand {
    /// The program and its arguments; no shell reads them.
    #[schemars(length(min = 1, max = 64))]
    pub(super) run: Vec<String>,
    /// How long it may take here, such as 1s, if the policy does not say less: it is killed then, with all that it started.
    #[serde(default)]
    #[schemars(with = "String")]
    pub(super) timeout: Option<String>,
}

/// How long a change must prove itself by probes.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Probation {
    /// How long probes are tried after a change, such as 10s.
    #[serde(default = "probation_window_default")]
    #[schemars(extend("default" = "10s"))]
    pub(super) window: String,
    /// Pause between two rounds of probes, such as 1s.
    #[serde(default = "probation_interval_default")]
    #[schemars(extend("default" = "1s"))]
    pub(super) interval: String,
    /// How often a probe must fail in a row until the change is rolled back; tries after a failure follow at once.
    #[serde(default = "probation_failures_default")]
    #[schemars(range(min = 1, max = 100), extend("default" = 2))]
    pub(super) failures: u8,
}

impl Default for Probation {
    fn default() -> Self {
        Self {
            window: probation_window_default(),
            interval: probation_interval_default(),
            failures: probation_failures_default(),
        }
    }
}

fn probation_window_default() -> String {
    "10s".to_owned()
}

fn probation_interval_default() -> String {
    "1s".to_owned()
}

fn probation_failures_default() -> u8 {
    2
}

/// How much of the past is kept for rollback.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Retain {
    /// Generations kept, the live one included.
    #[serde(default = "generations_default")]
    #[schemars(range(min = 1, max = 64), extend("default" = 8))]
    pub(super) generations: u8,
    /// Memory that retained generations may take, such as 512MiB; no limit of its own when left out.
    #[serde(default)]
    #[schemars(with = "String")]
    pub(super) memory: Option<String>,
}

impl Default for Retain {
    fn default() -> Self {
        Self { generations: generations_default(), memory: None }
    }
}

fn generations_default() -> u8 {
    8
}

fn bpffs_default() -> PathBuf {
    "/sys/fs/bpf/wayleave".into()
}

fn state_dir_default() -> PathBuf {
    "/var/lib/wayleave".into()
}

fn rescan_interval_default() -> String {
    "30s".to_owned()
}

fn webhook_listen_default() -> String {
    "127.0.0.1:9797".to_owned()
}

fn git_interval_default() -> String {
    "1m".to_owned()
}

fn git_timeout_default() -> String {
    "60s".to_owned()
}

fn git_connect_timeout_default() -> String {
    "10s".to_owned()
}

fn git_transfer_limit_default() -> String {
    "1GiB".to_owned()
}

fn settle_default() -> String {
    "20ms".to_owned()
}

/// A virtual address whose packets go to one of several backends.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ServicePolicy {
    #[expect(dead_code, reason = "checked by the schema; the field makes the schema require it")]
    pub(super) api_version: ApiVersion,
    #[expect(dead_code, reason = "checked by the schema; the field makes the schema require it")]
    pub(super) kind: ServicePolicyKind,
    pub(super) metadata: Metadata,
    pub(super) spec: ServiceSpec,
}

/// The kind of this document.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) enum ServicePolicyKind {
    ServicePolicy,
}

/// A virtual address, its ports, and who serves them.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ServiceSpec {
    /// Which nodes the policy is for; all of them when left out.
    #[serde(default)]
    #[schemars(with = "Nodes")]
    pub(super) nodes: Option<Nodes>,
    /// The address that clients use, IPv4 or IPv6. Packets for other ports of it are routed as any others.
    pub(super) vip: String,
    /// The ports of the address that belong to this service.
    #[schemars(length(min = 1, max = 256))]
    pub(super) ports: Vec<ServicePort>,
    /// nat: the destination becomes the backend's, and its answers come back from the vip. l2-dsr: the packet stays as it is,
    /// only its frame is sent to the backend, which has the vip on its loopback and answers by itself. ipip: the packet goes to the
    /// backend as it is, in a packet of its own; the backend takes it out, has the vip on its loopback and answers by itself.
    pub(super) forwarding: Forwarding,
    /// Who serves. A route must lead to each of them; with l2-dsr by the backend itself as next hop. Of the vip's family, or of IPv6
    /// with ipip.
    #[schemars(length(min = 1, max = 1024))]
    pub(super) backends: Vec<Backend>,
    /// What keeps flows together; each flow by itself when left out.
    #[serde(default)]
    #[schemars(with = "Affinity")]
    pub(super) affinity: Option<Affinity>,
    /// What happens to packets of new flows when no backend takes any.
    #[serde(default)]
    #[schemars(extend("default" = "pass"))]
    pub(super) on_no_backend: OnNoBackend,
    /// What happens to pings of the vip. It answers them when one of its services says so.
    #[serde(default)]
    #[schemars(extend("default" = "pass"))]
    pub(super) echo: Echo,
    /// How the daemon finds out which backends serve; none is checked when left out.
    #[serde(default)]
    #[schemars(with = "Health")]
    pub(super) health: Option<Health>,
    /// How long flows are known without a packet.
    #[serde(default)]
    pub(super) flow_timeouts: FlowTimeouts,
}

/// How packets reach a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Forwarding {
    Nat,
    L2Dsr,
    Ipip,
}

impl Forwarding {
    /// As documents and command output write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::L2Dsr => "l2-dsr",
            Self::Ipip => "ipip",
        }
    }
}

/// A port or a range of ports.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ServicePort {
    /// A port, or a range such as `"8000-8099"`.
    #[schemars(schema_with = "port_range_schema")]
    pub(super) port: PortRange,
    #[serde(default)]
    #[schemars(extend("default" = "tcp"))]
    pub(super) protocol: Protocol,
    /// The backend's port, of a range for its first one; the same port when left out. Only with nat.
    #[serde(default)]
    #[schemars(with = "u16", range(min = 1))]
    pub(super) target_port: Option<u16>,
}

/// A port, or a range in words.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum PortRange {
    One(u16),
    Text(String),
}

fn port_range_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": ["integer", "string"], "minimum": 1, "maximum": 65_535, "pattern": "^[0-9]{1,5}-[0-9]{1,5}$",
        "description": "A port, or a range such as `\"8000-8099\"`.",
    })
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    #[default]
    Tcp,
    Udp,
}

impl Protocol {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// Its number in the IANA registry.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => fib::packet::TCP,
            Self::Udp => fib::packet::UDP,
        }
    }
}

/// One of those that serve.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Backend {
    /// Its address, of the vip's family; with ipip also of IPv6 for a vip of IPv4.
    pub(super) address: String,
    /// Its port, instead of what the service's ports say. Only with nat and one port.
    #[serde(default)]
    #[schemars(with = "u16", range(min = 1))]
    pub(super) port: Option<u16>,
    /// Its share of new flows relative to the others. 0 drains it: flows that it has stay, new ones do not come.
    #[serde(default = "weight_default")]
    #[schemars(range(min = 0, max = 65_535), extend("default" = 1))]
    pub(super) weight: u16,
}

/// What decides alone which backend a flow goes to.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Affinity {
    /// The client's address: all its flows go to one backend.
    pub(super) source: SourceAffinity,
}

/// How much of the client's address counts.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct SourceAffinity {
    /// The first so many bits of an IPv4 address.
    #[serde(default = "affinity_ipv4_default")]
    #[schemars(range(min = 1, max = 32), extend("default" = 32))]
    pub(super) ipv4: u8,
    /// The first so many bits of an IPv6 address.
    #[serde(default = "affinity_ipv6_default")]
    #[schemars(range(min = 1, max = 128), extend("default" = 128))]
    pub(super) ipv6: u8,
}

fn affinity_ipv4_default() -> u8 {
    32
}

fn affinity_ipv6_default() -> u8 {
    128
}

/// How backends are checked. Exactly one of tcp, http, https and command. One that fails gets no packets, neither of new flows nor of
/// those that it has; what was never checked gets them.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Health {
    /// A connection is made.
    #[serde(default)]
    #[schemars(with = "TcpHealth")]
    pub(super) tcp: Option<TcpHealth>,
    /// A page is got.
    #[serde(default)]
    #[schemars(with = "HttpHealth")]
    pub(super) http: Option<HttpHealth>,
    /// A page is got by TLS. The certificate must be valid for `host`, or else for the backend's address, by what the node trusts.
    #[serde(default)]
    #[schemars(with = "HttpHealth")]
    pub(super) https: Option<HttpHealth>,
    /// A program of the node is run.
    #[serde(default)]
    #[schemars(with = "CommandHealth")]
    pub(super) command: Option<CommandHealth>,
    /// How often each backend is checked, 100ms to 1h, such as 2s.
    #[serde(default = "health_interval_default")]
    #[schemars(extend("default" = "2s"))]
    pub(super) interval: String,
    /// How long one check may take, 10ms up to the interval, such as 1s.
    #[serde(default = "probe_timeout_default")]
    #[schemars(extend("default" = "1s"))]
    pub(super) timeout: String,
    /// Checks in a row that an unhealthy backend must pass until it gets packets again.
    #[serde(default = "health_count_default")]
    #[schemars(range(min = 1, max = 100), extend("default" = 2))]
    pub(super) rise: u8,
    /// Checks in a row that a healthy backend must fail until it gets none; those after the first failure follow at once.
    #[serde(default = "health_count_default")]
    #[schemars(range(min = 1, max = 100), extend("default" = 2))]
    pub(super) fall: u8,
    /// With fewer healthy backends than this, all are used as if none were checked: a number, or a share of those that take new
    /// flows such as `"50%"`, rounded up. 0 when left out: `onNoBackend` says what happens when none is healthy.
    #[serde(default)]
    #[schemars(schema_with = "min_healthy_schema")]
    pub(super) min_healthy: Option<MinHealthy>,
    /// Backends that answer their checks more slowly than the others get fewer new flows, for as long as they do; all get what
    /// their weights say when left out.
    #[serde(default)]
    #[schemars(with = "Adaptive")]
    pub(super) adaptive: Option<Adaptive>,
}

/// How far new flows follow the latency of checks.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Adaptive {
    /// What the slowest backend keeps of the new flows that its weight gives it, 1% to 99%. None ever gets more than its weight says.
    #[serde(default = "min_share_default")]
    #[schemars(regex(pattern = r"^[1-9][0-9]?%$"), extend("default" = "25%"))]
    pub(super) min_share: String,
}

fn min_share_default() -> String {
    "25%".to_owned()
}

/// Which of the programs that the node's configuration names in `healthCommands` is run.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct CommandHealth {
    /// Its name there.
    #[schemars(regex(pattern = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"), length(min = 1, max = 63))]
    pub(super) name: String,
    /// The port that it is told; when left out the backend's own, or else what the service's first TCP port means at the backend,
    /// or its first one.
    #[serde(default)]
    #[schemars(with = "u16", range(min = 1))]
    pub(super) port: Option<u16>,
}

/// Where a connection is made to.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct TcpHealth {
    /// A port of the backend; when left out its own, or else what the service's first TCP port means at the backend.
    #[serde(default)]
    #[schemars(with = "u16", range(min = 1))]
    pub(super) port: Option<u16>,
}

/// What is got of a backend, and what is expected; redirections are not followed.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct HttpHealth {
    /// Such as `/health`.
    #[schemars(regex(pattern = r"^/[!-~]*$"), length(max = 1024))]
    pub(super) path: String,
    /// A port of the backend; when left out its own, or else what the service's first TCP port means at the backend.
    #[serde(default)]
    #[schemars(with = "u16", range(min = 1))]
    pub(super) port: Option<u16>,
    /// The name that is asked for, such as `api.example.net`; the backend's address when left out.
    #[serde(default)]
    #[schemars(with = "String", regex(pattern = r"^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$"), length(max = 253))]
    pub(super) host: Option<String>,
    /// The status that is expected; any from 200 to 399 when left out.
    #[serde(default)]
    #[schemars(with = "u16", range(min = 100, max = 599))]
    pub(super) status: Option<u16>,
}

/// A number of backends, or a share of them in words.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum MinHealthy {
    Count(u16),
    Text(String),
}

fn min_healthy_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": ["integer", "string"], "minimum": 0, "maximum": 1024, "pattern": "^[0-9]{1,3}%$",
        "description": "With fewer healthy backends than this, all are used as if none were checked: a number, or a share of those that take new flows such as `\"50%\"`, rounded up. 0 when left out: `onNoBackend` says what happens when none is healthy.",
    })
}

fn health_interval_default() -> String {
    "2s".to_owned()
}

fn health_count_default() -> u8 {
    2
}

/// What happens to packets that no backend takes: pass to the kernel, drop, or reject, by a TCP reset or an ICMP error from the
/// vip, of which every CPU sends at most 1,000 a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnNoBackend {
    #[default]
    Pass,
    Drop,
    Reject,
}

impl OnNoBackend {
    /// As documents and command output write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Drop => "drop",
            Self::Reject => "reject",
        }
    }
}

/// What happens to ICMP echo requests: pass to the routes and the kernel as any other packet, or answer in the place of the
/// backends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Echo {
    #[default]
    Pass,
    Answer,
}

impl Echo {
    /// As documents and command output write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Answer => "answer",
        }
    }
}

/// How long flows are known without a packet; whole seconds, rounded up.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct FlowTimeouts {
    /// A TCP connection, such as 15m.
    #[serde(default = "established_default")]
    #[schemars(extend("default" = "15m"))]
    pub(super) established: String,
    /// A TCP connection that begins or ends, such as 1m.
    #[serde(default = "closing_default")]
    #[schemars(extend("default" = "1m"))]
    pub(super) closing: String,
    /// A flow of UDP, such as 2m.
    #[serde(default = "udp_default")]
    #[schemars(extend("default" = "2m"))]
    pub(super) udp: String,
}

impl Default for FlowTimeouts {
    fn default() -> Self {
        Self { established: established_default(), closing: closing_default(), udp: udp_default() }
    }
}

fn established_default() -> String {
    "15m".to_owned()
}

fn closing_default() -> String {
    "1m".to_owned()
}

fn udp_default() -> String {
    "2m".to_owned()
}
