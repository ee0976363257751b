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

/// Next hops, and the routes that use them.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RouteSpec {
    /// The gateways that routes of this policy name.
    #[serde(default)]
    pub(super) next_hops: Vec<NextHop>,
    /// What happens to packets of a route when all its next hops are down; routes may say otherwise.
    #[serde(default)]
    #[schemars(extend("default" = "pass"))]
    pub(super) on_all_down: OnAllDown,
    /// What happens to packets, by destination; the longest prefix wins.
    pub(super) routes: Vec<Route>,
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
    /// How often the source is read even when nothing seems to have changed, such as 30s.
    #[serde(default = "rescan_interval_default")]
    #[schemars(extend("default" = "30s"))]
    pub(super) rescan_interval: String,
    /// How long the source must be quiet after a change before it is read, such as 20ms.
    #[serde(default = "settle_default")]
    #[schemars(extend("default" = "20ms"))]
    pub(super) settle: String,
    /// Makes the daemon look when a server says that something was pushed.
    #[serde(default)]
    #[schemars(with = "Webhook")]
    pub(super) webhook: Option<Webhook>,
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
    /// How the program is attached: auto takes the driver's own XDP where the driver has it, else the generic one.
    #[serde(default)]
    #[schemars(extend("default" = "auto"))]
    pub(super) attach: Attach,
}

/// How the program is attached to a device: by XDP in the driver or behind it, or by TC (kernels from 6.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Attach {
    #[default]
    Auto,
    Native,
    Generic,
    Tc,
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
