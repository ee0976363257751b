//! The one table of diagnostic codes: number, severity and the text of `wayleave explain`.
//!
//! The first two digits are the stage: 00 files, 01 YAML, 02 structure, 03 routes, 04 lists, 05 limits, 06 nodes, 07 tests,
//! 08 probes, 09 sync windows, 10 filters, 11 services.
//! A code that was released never changes its meaning.

use std::fmt;

use super::diagnostic::Severity;

/// One row of the table.
#[derive(Debug)]
pub struct Entry {
    /// As printed: `WL0302`.
    pub number: &'static str,
    pub severity: Severity,
    /// A few words, for the list of all codes.
    pub title: &'static str,
    /// What it is, why it is a fault, and an example of wrong and right.
    pub explain: &'static str,
}

macro_rules! codes {
    ($($name:ident $number:literal $severity:ident $title:literal $explain:literal)*) => {
        /// A stable diagnostic code.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code { $($name),* }

        impl Code {
            /// Every code, by number.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            pub fn entry(self) -> &'static Entry {
                match self {
                    $(Self::$name => &Entry {
                        number: $number,
                        severity: Severity::$severity,
                        title: $title,
                        explain: $explain,
                    }),*
                }
            }
        }
    };
}

impl Code {
    pub fn number(self) -> &'static str {
        self.entry().number
    }

    /// The code printed as `number`, in any case of letters.
    pub fn from_number(number: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.number().eq_ignore_ascii_case(number))
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.number())
    }
}

codes! {
    LinkLeavesSource "WL0001" Error "a symbolic link leaves the source"
"A symbolic link in the source leads to a place outside it, or back to a directory above itself.

A source must hold everything that its revision names: the target of such a link can change without a new revision, and
it could bring in files that nobody reviewed.

In a git source no symbolic link is followed.

Wrong:  lists/partners.txt -> /etc/partners.txt
Right:  lists/partners.txt as a file, or in a directory source a link to another file of the same source"

    FileTooLarge "WL0002" Error "a file is too large"
"A file is larger than what is read at most. It was not read at all.

A policy document may have 4 MiB, a prefix list 128 MiB. Large tables belong in prefix lists, not in YAML.

Wrong:  routes: [{prefix: 1.0.0.0/24, …}, … 500,000 more]
Right:  routes: [{prefixesFrom: lists/table.txt, nextHops: [{name: edge-a}]}]"

    FileUnreadable "WL0003" Error "a file cannot be read"
"A file of the source cannot be read: a dangling link, missing permission, or something that is not a regular file.

Rules that cannot be read are not the same as rules that were removed, so nothing is applied.

Wrong:  offices.yaml -> renamed-away.yaml
Right:  offices.yaml is a readable file"

    NotUtf8 "WL0004" Error "the text is not UTF-8"
"Policy documents and prefix lists are UTF-8 text.

Editors on some systems write UTF-16 or Latin-1. Save the file again as UTF-8.

Wrong:  owner: B\\xfcro            (Latin-1)
Right:  owner: Büro              (UTF-8)"

    ControlCharacter "WL0005" Error "the text holds a control character"
"The text holds a character that no editor shows, such as NUL, escape, or a carriage return without a line feed.

Such a character makes what reviewers see differ from what is read.

Wrong:  name: edge\\0a
Right:  name: edge-a"

    NoPolicy "WL0006" Error "the source holds no policy document"
"There are files, but none of them is a policy document (`*.yaml` or `*.yml`).

An empty source never means \"remove every rule\": most often the path is wrong.

Wrong:  wayleave validate docs/
Right:  wayleave validate policies/"

    Submodule "WL0007" Error "a submodule is not fetched"
"A directory of a git source is a submodule: a pointer to a commit of another repository.

A source must hold everything that its revision names. Only the repository of the source is fetched, so the files of a
submodule are not there, and leaving them out could look like removed rules.

Wrong:  git submodule add https://git.example.org/partners.git policies/partners
Right:  policies/partners/ as a directory of this repository"

    YamlSyntax "WL0101" Error "the YAML cannot be read"
"The text is not YAML: a missing colon, a bracket that is not closed, or an indentation that fits nothing above it.

Wrong:  metadata: {name: offices
Right:  metadata: {name: offices}"

    YamlTab "WL0102" Error "a tab is used as indentation"
"YAML is indented with spaces. A tab looks like some number of spaces, and every tool has its own.

Wrong:  metadata:
        <tab>name: offices
Right:  metadata:
          name: offices"

    YamlUnclosedQuote "WL0103" Error "a quote is not closed"
"A text begins with a quote that is never closed, so everything after it would belong to the text.

Wrong:  owner: \"net-team
Right:  owner: \"net-team\""

    ConflictMarker "WL0104" Error "a git conflict marker is left"
"A merge was committed, or is under way, with its conflict not resolved.

Keep one of the two sides, and remove the lines that begin with <<<<<<<, =======, and >>>>>>>.

Wrong:  <<<<<<< HEAD
        via: 192.0.2.1
        =======
        via: 192.0.2.2
        >>>>>>> branch
Right:  via: 192.0.2.2"

    YamlAnchor "WL0105" Error "anchors and aliases are refused"
"A value is named with `&name` or repeated with `*name`.

What a reviewer reads in a diff must be all there is: an alias changes lines that the diff does not show. A text that
begins with `*` or `&` needs quotes.

Wrong:  nextHops: &both [{name: edge-a}, {name: edge-b}]
Right:  nextHops: [{name: edge-a}, {name: edge-b}]       (written where it is used)"

    YamlTag "WL0106" Error "tags are refused"
"A value carries a tag such as `!!str` or `!secret`.

The schema says which type each value has; tags can only contradict it. Use quotes to make a text of a number.

Wrong:  name: !!str 64512
Right:  name: \"64512\""

    DuplicateKey "WL0107" Error "a key is written twice"
"A mapping has the same key twice. YAML readers differ in which one they take.

Wrong:  {name: edge-a, via: 192.0.2.1, via: 192.0.2.2}
Right:  {name: edge-a, via: 192.0.2.2}"

    SeveralDocuments "WL0108" Error "several documents in one file"
"A file holds one document; `---` begins another one.

One document a file makes `git log` and `git blame` of the file those of the policy.

Wrong:  offices.yaml with two documents and `---` between them
Right:  offices.yaml and partners.yaml"

    YamlTooDeep "WL0109" Error "the YAML is nested too deeply or has too many values"
"A document may be nested 64 levels deep and have 250,000 values. Policies need five levels.

Wrong:  [[[[[[[[…]]]]]]]]
Right:  large tables as a list that `prefixesFrom` names"

    EmptyDocument "WL0110" Error "the document is empty"
"A YAML file holds no document, only white space or comments.

An empty file is more often an accident than a wish to remove rules. Delete the file if its rules are to go.

Wrong:  # TODO
Right:  apiVersion: wayleave/v1
        kind: RoutePolicy
        …"

    YamlKey "WL0111" Error "a key is not a text"
"The key of a mapping is itself a list or a mapping, or it is missing.

Wrong:  ? [a, b]
        : value
Right:  name: value"

    YamlMergeKey "WL0112" Error "merge keys are refused"
"The key `<<` merges another mapping into this one in YAML 1.1.

What a reviewer reads must be all there is. Write the keys where they are used.

Wrong:  {<<: {port: uplink}, name: edge-a}
Right:  {name: edge-a, port: uplink}"

    YamlDirective "WL0113" Error "YAML directives are refused"
"A line begins with `%`, such as `%YAML 1.1` or `%TAG`. Directives change how the rest of the file is read.

Wrong:  %YAML 1.1
        ---
        apiVersion: wayleave/v1
Right:  apiVersion: wayleave/v1"

    ApiVersion "WL0201" Error "apiVersion is missing or unknown"
"Every document begins with the version of its format. This program knows `wayleave/v1`.

Wrong:  apiVersion: v1
Right:  apiVersion: wayleave/v1"

    Kind "WL0202" Error "kind is missing or unknown"
"The kind of a document says what its spec holds.

Wrong:  kind: RoutesPolicy
Right:  kind: RoutePolicy"

    KindElsewhere "WL0203" Error "this kind does not belong here"
"A node's own configuration (`NodeConfig`) is not part of the policies, and policies are not part of it.

Policies are shared by many nodes and reviewed; what is particular to one node stays on it.

Wrong:  policies/config.yaml with kind: NodeConfig
Right:  /etc/wayleave/config.yaml on the node"

    UnknownKey "WL0204" Error "unknown key"
"The schema does not know this key in this place. A misspelt key is never ignored.

`wayleave schema policy` prints the schema; editors complete keys when the file's first line names it.

Wrong:  {prefix: 10.0.0.0/8, nexthop: [{name: edge-a}]}
Right:  {prefix: 10.0.0.0/8, nextHops: [{name: edge-a}]}"

    MissingKey "WL0205" Error "a required key is missing"
"The schema requires a key that is not there.

Wrong:  {name: edge-a, via: 192.0.2.1}
Right:  {name: edge-a, via: 192.0.2.1, port: uplink}"

    WrongType "WL0206" Error "a value has the wrong type"
"The value is a text where a number belongs, a mapping where a list belongs, and so on.

Wrong:  nextHops: {name: edge-a}
Right:  nextHops: [{name: edge-a}]"

    OutOfRange "WL0207" Error "a value is outside its range"
"A number is too small or too large, a text or a list too short or too long.

Wrong:  {name: edge-a, weight: 0}
Right:  {name: edge-a, weight: 1}      (1 to 65,535)"

    NotAChoice "WL0208" Error "a value is not one of the choices"
"Only a few words are known here, and this is none of them.

Wrong:  {prefix: 10.0.0.0/8, action: deny}
Right:  {prefix: 10.0.0.0/8, action: drop}"

    MalformedValue "WL0209" Error "a value is malformed"
"The value has the right type but not the form that belongs here: a name, an address, a duration or a size.

Names are 1 to 63 lower-case letters, digits and `-`, beginning and ending with a letter or digit. Durations are
`200ms`, `5s`, `2m`, `1h`; sizes `64KiB`, `512MiB`, `1GiB`.

Wrong:  name: Edge_A
Right:  name: edge-a"

    SchemaOther "WL0210" Error "a value breaks another rule of the format"
"The document breaks a rule of the format that has no code of its own, such as a whole number written with a fraction.

Wrong:  {name: edge-a, weight: 2.0}
Right:  {name: edge-a, weight: 2}"

    NotAPrefix "WL0301" Error "this is not an IP prefix"
"A prefix is ADDRESS/LENGTH. A single address needs its length as well: /32 or /128.

Wrong:  prefix: 10.20.0.0
Right:  prefix: 10.20.0.0/16"

    HostBits "WL0302" Error "a prefix has host bits set"
"The address has bits set after the length, so it is unclear whether the address or the length is the mistake.

Wrong:  prefix: 10.0.0.1/8
Right:  prefix: 10.0.0.0/8"

    DuplicatePrefix "WL0303" Error "a prefix is written twice"
"The same prefix occurs twice in the source, in one file or in two. Which one would win is not for a program to guess.

Both places are shown. A longer prefix inside a shorter one is no duplicate: the longer one wins.

Wrong:  a.yaml: {prefix: 10.0.0.0/8, action: drop}    b.yaml: {prefix: 10.0.0.0/8, action: pass}
Right:  one of the two"

    UnknownNextHop "WL0304" Error "unknown next hop"
"A route names a next hop that its policy does not declare. Next hops belong to the policy that declares them.

Wrong:  nextHops: [{name: edge-a, …}]   routes: [{prefix: 10.0.0.0/8, nextHops: [{name: edge-c}]}]
Right:  routes: [{prefix: 10.0.0.0/8, nextHops: [{name: edge-a}]}]"

    UnusedNextHop "WL0305" Warning "a next hop is used by no route"
"A next hop is declared and no route of its policy names it.

That may be on purpose while traffic is being moved, so it is a warning.

Wrong:  nextHops: [{name: edge-a, …}, {name: edge-b, …}]   routes that name only edge-a
Right:  remove edge-b, or use it"

    MixedFamilies "WL0306" Error "IPv4 and IPv6 are mixed in one route"
"A route's prefix and its next hops, and all next hops of a group, are of one address family.

Wrong:  {prefix: 10.0.0.0/8, nextHops: [{name: edge-v6}]}        (edge-v6 has via: 2001:db8::1)
Right:  {prefix: 10.0.0.0/8, nextHops: [{name: edge-v4}]}"

    DuplicatePolicy "WL0307" Error "a policy name is used twice"
"Two policies of the same kind have the same name. Names identify policies in plans, counters and traces.

Wrong:  a.yaml and b.yaml, both metadata: {name: offices}
Right:  metadata: {name: offices-north} in one of them"

    DuplicateNextHop "WL0308" Error "a next-hop name is used twice"
"A policy declares two next hops of the same name.

Wrong:  nextHops: [{name: edge, via: 192.0.2.1, …}, {name: edge, via: 192.0.2.2, …}]
Right:  nextHops: [{name: edge-a, via: 192.0.2.1, …}, {name: edge-b, via: 192.0.2.2, …}]"

    RoutePrefixes "WL0309" Error "a route needs either prefix or prefixesFrom"
"A route says which packets it is for with exactly one of `prefix` and `prefixesFrom`.

Wrong:  {action: drop}
Right:  {prefix: 10.0.0.0/8, action: drop}"

    RouteAction "WL0310" Error "a route's action and next hops do not fit together"
"A route forwards by `nextHops`, or has `action: drop` or `action: pass` and no next hops.

Without both of them it would not say what to do with a packet. Only a list whose every line names its own next hop
needs neither.

Wrong:  {prefix: 10.0.0.0/8, action: drop, nextHops: [{name: edge-a}]}
Right:  {prefix: 10.0.0.0/8, action: drop}"

    GroupMemberTwice "WL0311" Error "a next hop is twice in one group"
"A route names the same next hop twice. To give it a larger share, use its weight.

Wrong:  nextHops: [{name: edge-a}, {name: edge-a}, {name: edge-b}]
Right:  nextHops: [{name: edge-a, weight: 2}, {name: edge-b}]"

    NotAGateway "WL0312" Error "an address cannot be a gateway"
"The address of a next hop is unspecified, multicast, broadcast or loopback: no neighbour can have it.

Wrong:  via: 224.0.0.1
Right:  via: 192.0.2.1"

    OnAllDownUnused "WL0313" Error "onAllDown on a route that does not forward"
"`onAllDown` says what happens to packets when every next hop of a route is down: its neighbour is gone, or the link of
its port. `pass` (the default) leaves them to the kernel's own routes, `drop` drops them.

A route with `action: drop` or `action: pass` has no next hops. Beside `nextHops`, `onAllDown` in the policy's spec is
the default of all its routes, and `onAllDown` of a route overrides it.

Wrong:  {prefix: 10.0.0.0/8, action: pass, onAllDown: drop}
Right:  {prefix: 10.0.0.0/8, nextHops: [{name: edge-a}], onAllDown: drop}"

    RedundantRoute "WL0314" Warning "a route does what its covering route does"
"Without this route its packets would meet the next shorter prefix, which belongs to the same policy and does the same.
So removing the route changes nothing for any packet.

Often it is left over from a time when the two differed. Where it is meant to stay when the covering route changes, the
warning is the price. Of a prefix list all such lines are one warning.

Wrong:  - {prefix: 10.0.0.0/8, action: drop}
        - {prefix: 10.1.0.0/16, action: drop}
Right:  - {prefix: 10.0.0.0/8, action: drop}"

    ShadowedRoute "WL0315" Warning "a route decides no packet"
"Longer prefixes cover every address of this route, so no packet ever meets it.

Wrong:  - {prefix: 10.0.0.0/8, action: pass}
        - {prefix: 10.0.0.0/9, action: drop}
        - {prefix: 10.128.0.0/9, action: drop}
Right:  - {prefix: 10.0.0.0/8, action: drop}"

    ListMissing "WL0401" Error "a prefix list does not exist"
"`prefixesFrom` names a file that the source does not have. Paths start at the top of the source, not at the policy's
folder. Files whose name begins with a dot are not part of a source.

Wrong:  prefixesFrom: partners.txt             (the file is lists/partners.txt)
Right:  prefixesFrom: lists/partners.txt"

    ListPath "WL0402" Error "the path of a prefix list is not usable"
"`prefixesFrom` is a relative path inside the source, with `/` between its parts and without `.` and `..`.

Wrong:  prefixesFrom: ../shared/partners.txt
Right:  prefixesFrom: lists/partners.txt"

    ListLine "WL0403" Error "a line of a prefix list is malformed"
"A line of a list is `PREFIX` or `PREFIX,NEXT-HOP-NAME`; `#` begins a comment.

Wrong:  10.20.0.0/16,edge-a,3
Right:  10.20.0.0/16,edge-a"

    ListNextHop "WL0404" Error "a line of a prefix list needs a next hop"
"The route that reads this list has neither `nextHops` nor an action, so every line must name its own next hop.

Wrong:  10.20.0.0/16
Right:  10.20.0.0/16,edge-a"

    ListEmpty "WL0405" Warning "a prefix list holds no prefix"
"The list has comments or blank lines at most, so its route does nothing.

That happens when the program that writes the list failed. Remove the route if it is no longer wanted.

Wrong:  # generated: 0 prefixes
Right:  10.20.0.0/16"

    MoreFaults "WL0406" Error "more faults than are shown"
"A file has more than 100 faults; the first ones are shown and the rest are counted.

Wrong:  a list in which every line has the same mistake
Right:  correct what is shown, and validate again"

    TableFull "WL0501" Error "a table would be too small"
"The source holds more than a table in the kernel can take. The message names the table, its size and the size needed.

Wrong:  more than 4,194,304 IPv4 prefixes, 65,535 next hops, 16,384 groups or 256 ports
Right:  aggregate prefixes, or split the policies between nodes"

    UnknownPort "WL0601" Error "a port is unknown to the node"
"A next hop uses a port that the node's configuration does not map to a device.

Wrong:  port: upling                         (the node has ports: {uplink: {device: eth0}})
Right:  port: uplink"

    DeviceTwice "WL0602" Error "one device is mapped to two ports"
"A node maps two ports to the same device. Counters and routes of the two could not be told apart.

Wrong:  ports: {uplink: {device: eth0}, dc: {device: eth0}}
Right:  ports: {uplink: {device: eth0}, dc: {device: eth1}}"

    UnknownHealthCommand "WL0603" Error "a health command is unknown to the node"
"A service's health check runs a program by a name that the node's `healthCommands` do not have. What is run is said by
the node's owner alone: correct the name in the policy, or add the program to the node's configuration.

Wrong:  health: {command: {name: api-redy}}   (the node has healthCommands: {api-ready: {run: [/opt/api-ready]}})
Right:  health: {command: {name: api-ready}}"

    NoTunnelSource "WL0604" Error "the node has no source address for a tunnel"
"A service with `forwarding: ipip` sends packets to its backends in packets of their own, and those come from an address
of the node that its configuration names: one of each family that backends have. It is not guessed from the node's
addresses, since backends let in nothing from others.

Wrong:  forwarding: ipip, backends: [{address: \"2001:db8:1::11\"}]   (the node has tunnel: {sources: [192.0.2.1]})
Right:  spec: {tunnel: {sources: [192.0.2.1, \"2001:db8::1\"]}}   in the node's configuration"

    TestPacket "WL0701" Error "the packet of a test is no packet"
"The case describes a packet that cannot be: addresses of two families, ports where the protocol has none, or a length
that does not hold its own headers.

Wrong:  packet: {src: 198.18.0.1, dst: \"2001:db8::1\"}
Right:  packet: {src: \"2001:db8:1::1\", dst: \"2001:db8::1\"}"

    TestReference "WL0702" Error "a test names what no policy has"
"A test expects a policy, a next hop or a route that is nowhere in this source, or only in policies for other nodes than
the test is for. It could never hold.

Wrong:  expect: {nextHop: egde-a}
Right:  expect: {nextHop: edge-a}"

    TestContradiction "WL0703" Error "the expectations of a test contradict each other"
"No packet can do all that the case expects, such as being dropped and sent to a next hop.

Wrong:  expect: {verdict: drop, nextHop: edge-a}
Right:  expect: {verdict: drop}"

    ProbeCheck "WL0801" Error "a probe does not say what to try"
"A probe makes a TCP connection, gets a page or asks for an echo: exactly one of the three.

Wrong:  {name: gateway}
Right:  {name: gateway, tcp: {address: 198.51.100.10, port: 443}}"

    DuplicateProbe "WL0802" Error "a probe name is used twice"
"Two probes of one document have the same name. Reports of a rollback could not tell them apart.

Wrong:  probes: [{name: api, ping: {address: 10.0.0.1}}, {name: api, ping: {address: 10.0.0.2}}]
Right:  probes: [{name: api-1, ping: {address: 10.0.0.1}}, {name: api-2, ping: {address: 10.0.0.2}}]"

    CronSchedule "WL0901" Error "this is no cron schedule"
"A sync window opens at the times of a cron schedule: minute, hour, day of month, month and day of week. Each is `*`, a
number, a range `1-5`, a list `1,15` or a step `*/15`; months and days of the week have names, too. There are no seconds
and no years, and a schedule must come some time.

Where day of month and day of week are both given, either is enough, as cron has it.

Wrong:  schedule: 22:00
Right:  schedule: 0 22 * * 1-5"

    TimeZone "WL0902" Error "unknown time zone"
"The time zone of a sync window is a name of the IANA database, which is part of this program: a window opens at the
same time on every machine. Abbreviations such as CEST mean different zones to different people and are no names.

Wrong:  timeZone: CEST
Right:  timeZone: Europe/Berlin"

    WindowDuration "WL0903" Error "a sync window is open for no time, or for too long"
"A sync window stays open for 1 s to 7 d after each time of its schedule. Elapsed time counts, whatever daylight saving
time does to the clock meanwhile.

Wrong:  duration: 0h
Right:  duration: 4h"

    DuplicateFilterRule "WL1001" Error "a filter rule's name is used twice"
"Two rules of one filter policy have the same name. Counters, traces and tests name a rule by its policy and its name.

Wrong:  rules: [{name: web, ports: [80], action: allow}, {name: web, ports: [443], action: allow}]
Right:  rules: [{name: web, ports: [80, 443], action: allow}]"

    FilterAction "WL1002" Error "it is unclear what a filter rule does"
"A filter rule says either `action` (allow or deny) or `rateLimit`, which allows what is within the limit.

Wrong:  {name: web, ports: [443]}
Right:  {name: web, ports: [443], action: allow}"

    FilterPorts "WL1003" Error "a range of ports is not one"
"A range is two numbers from 0 to 65535, the lower one first.

Wrong:  ports: [\"8099-8000\"]
Right:  ports: [\"8000-8099\"]"

    FilterNothing "WL1004" Error "no packet can match a filter rule"
"What the rule asks for excludes itself: a source and a destination of different families, ports of a protocol that has
none, or a flag that is set and clear.

Wrong:  {name: ping, protocol: icmp, ports: [7], action: deny}
Right:  {name: ping, protocol: icmp, action: deny}"

    FilterShadowed "WL1005" Warning "an earlier filter rule decides first"
"Every packet that the rule matches is matched by another one before it, so it never decides. Policies stand in the order
of their `priority`, then of their names; rules in the order written.

Wrong:  rules: [{name: all, action: deny}, {name: web, ports: [443], action: allow}]
Right:  rules: [{name: web, ports: [443], action: allow}, {name: all, action: deny}]"

    FilterDefaults "WL1006" Error "two filter policies have different defaults"
"A node has one default, for packets that no rule of any policy matches. One policy says allow, another one deny.

Wrong:  default: allow     in one policy, and default: deny in another one for the same nodes
Right:  default: deny      in one of them; the other one says nothing"

    FilterLimit "WL1007" Error "a rate limit is not one"
"A limit is in packets or in bytes, not both; its burst is at most what comes in an hour, and in bytes at least one large
packet; prefix lengths go with `per: sourcePrefix`.

Wrong:  rateLimit: {packetsPerSecond: 100, bytesPerSecond: 100000}
Right:  rateLimit: {packetsPerSecond: 100, burst: 200, per: source}"

    ServiceAddress "WL1101" Error "an address of a service is no place for packets"
"The vip or a backend of a service has an address that no packet is routed to, such as a multicast or loopback
address, or the vip is its own backend.

Wrong:  vip: 127.0.0.1
Right:  vip: 198.51.100.10"

    ServicePorts "WL1102" Error "a range of ports is none"
"A range begins with its lowest port and ends with its highest, both from 1 to 65535; so do the backend's ports that a
targetPort means.

Wrong:  ports: [{port: \"8099-8000\"}]
Right:  ports: [{port: \"8000-8099\"}]"

    ServiceTwice "WL1103" Error "a port of a vip belongs to two services"
"Two services, or two rows of one, have the same port of the same vip and protocol. Nobody could say whose backends
get its packets. Services that no node can both have may share one.

Wrong:  ports: [{port: 443}, {port: \"400-500\"}]
Right:  ports: [{port: 443}, {port: \"444-500\"}]"

    BackendFamily "WL1104" Error "a backend is of another family than the vip"
"A packet to an IPv4 vip cannot become one of IPv6, and the other way round. `forwarding: ipip` carries packets of IPv4
to a backend of IPv6 in packets of IPv6, but none of IPv6 in IPv4.

Wrong:  vip: 198.51.100.10, backends: [{address: \"2001:db8::11\"}]
Right:  vip: 198.51.100.10, backends: [{address: 10.1.0.11}]"

    BackendTwice "WL1105" Error "a backend is written twice"
"Two backends of one service have the same address and port. They would be one object with two weights.

Wrong:  backends: [{address: 10.1.0.11}, {address: 10.1.0.11}]
Right:  backends: [{address: 10.1.0.11, weight: 2}]"

    BackendPort "WL1106" Error "a backend's port cannot be"
"Ports are translated with `forwarding: nat` only. And a backend that has a port of its own serves a service with one
port: from several, a client may use the same port of its own at the same time, and the answers, which all come from
the one port of the backend, could not be told apart.

Wrong:  ports: [{port: 80}, {port: 443}], backends: [{address: 10.1.0.11, port: 8099}]
Right:  ports: [{port: 80, targetPort: 8080}, {port: 443, targetPort: 8443}], backends: [{address: 10.1.0.11}]"

    AllDrained "WL1107" Warning "every backend of a service is being drained"
"All backends have the weight 0. Flows that they have stay, and no new one is taken: `onNoBackend` says what becomes
of it.

Wrong:  backends: [{address: 10.1.0.11, weight: 0}, {address: 10.1.0.12, weight: 0}]
Right:  backends: [{address: 10.1.0.11, weight: 0}, {address: 10.1.0.12}]"

    HealthCheck "WL1108" Error "health checks need exactly one kind of check"
"A backend is checked by a TCP connection, by a page that is got by HTTP or HTTPS, or by a command of the node.

Wrong:  health: {tcp: {}, http: {path: /health}}
Right:  health: {http: {path: /health}}"

    HealthTimes "WL1109" Error "a health check's times cannot be"
"A backend is checked every 100ms to 1h, and a check may take 10ms up to that interval: one begins when the one before
has ended.

Wrong:  health: {tcp: {}, interval: 1s, timeout: 2s}
Right:  health: {tcp: {}, interval: 2s, timeout: 1s}"

    HealthPort "WL1110" Error "a health check has no port"
"Checks are made by TCP. A service with ports of UDP alone does not say at which one its backends can be checked.

Wrong:  ports: [{port: 53, protocol: udp}], health: {tcp: {}}
Right:  ports: [{port: 53, protocol: udp}], health: {tcp: {port: 53}}"

    MinHealthy "WL1111" Error "so many backends cannot be healthy"
"With fewer healthy backends than `minHealthy` all are used. It is a number, or a share from 0% to 100%, of the backends
that take new flows. With more than there are the checks would never count.

Wrong:  backends: [{address: 10.1.0.11}, {address: 10.1.0.12}], health: {tcp: {}, minHealthy: 3}
Right:  backends: [{address: 10.1.0.11}, {address: 10.1.0.12}], health: {tcp: {}, minHealthy: \"50%\"}"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_unique_ascending_and_found_again() {
        assert!(Code::ALL.is_sorted_by(|a, b| a.number() < b.number()));
        for code in Code::ALL {
            assert_eq!(Code::from_number(&code.number().to_lowercase()), Some(*code));
        }
        assert_eq!(Code::from_number("WL9999"), None);
    }

    #[test]
    fn every_explanation_shows_wrong_and_right_and_fits_a_terminal() {
        for code in Code::ALL {
            let text = code.entry().explain;
            assert!(text.contains("\nWrong:  ") && text.contains("\nRight:  "), "{code}");
            assert!(text.lines().all(|line| line.chars().count() <= 120), "{code}");
        }
    }
}
