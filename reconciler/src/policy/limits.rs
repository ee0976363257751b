//! Sizes of the tables: whatever is larger is a diagnostic, never a failed system call later.

/// Routes of one address family, over all policies.
pub const ROUTES_PER_FAMILY_MAX: usize = 4_194_304;
/// Next hops over all policies.
pub const NEXT_HOPS_MAX: usize = 65_535;
/// Next-hop groups over all policies, each distinct set of members and weights counted once a policy.
pub const GROUPS_MAX: usize = 16_384;
/// Next hops of one group.
pub const GROUP_MEMBERS_MAX: usize = 256;
/// Distinct port names over all policies.
pub const PORTS_MAX: usize = 256;
/// Filter rules over all policies of a node.
pub const FILTER_RULES_MAX: usize = 1_024;
/// Prefixes of filter rules over all policies, each list counted once for every rule that reads it.
pub const FILTER_PREFIXES_MAX: usize = 4_194_304;
/// Files that rules come from.
pub const FILES_MAX: usize = 65_535;

/// Services.
pub const SERVICES_MAX: usize = 16_383;
/// Backends over all services.
pub const BACKENDS_MAX: usize = 131_071;

/// Nesting of a YAML document.
pub const YAML_DEPTH_MAX: usize = 64;
/// Values in a YAML document; tables larger than this belong in lists.
pub const YAML_VALUES_MAX: usize = 250_000;
/// Diagnostics kept a file; the rest is counted.
pub const DIAGNOSTICS_PER_FILE_MAX: usize = 100;
