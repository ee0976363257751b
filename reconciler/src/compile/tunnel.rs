//! The node's ends of tunnels in an image.

use std::net::IpAddr;

use fib::layout::{DECAPSULATION_ROWS_MAX, SERVICE_BUCKET_ENTRIES, decapsulation};

use super::CompileError;
use super::service::{ServiceTables, address};
use crate::policy::{Forwarding, Policy, Prefix, Tunnels};

/// The tables as they stand in the image.
#[derive(Debug, Default)]
pub(super) struct TunnelTables {
    /// Of IPv4 and of IPv6; none where no service needs them.
    pub sources: Vec<[u64; 2]>,
    /// Address, mask, and what must lie in it; sorted.
    pub decapsulation: Vec<[u64; 5]>,
}

impl TunnelTables {
    pub(super) fn of(policy: &Policy, node: &Tunnels) -> Result<Self, CompileError> {
        let sends = policy.service_policies.iter().any(|service| service.forwarding == Forwarding::Ipip);
        // Whoever has none compiles for no particular node: `check_names` has refused all others.
        let sources = [node.source_v4.map(IpAddr::V4), node.source_v6.map(IpAddr::V6)];
        let sources = sources.map(|source| source.map_or([0; 2], address));
        let whole = node.addresses.iter().map(|address| Prefix::containing(*address, u8::MAX));
        let mut decapsulation: Vec<[u64; 5]> = whole
            .map(|prefix| row(prefix, decapsulation::ADDRESS))
            .chain(node.from.iter().map(|prefix| row(*prefix, decapsulation::FROM)))
            .chain(node.to.iter().map(|prefix| row(*prefix, decapsulation::TO)))
            .collect();
        decapsulation.sort_unstable();
        decapsulation.dedup();
        let (table, max) = ("prefixes of what is decapsulated", DECAPSULATION_ROWS_MAX as usize);
        if decapsulation.len() > max {
            return Err(CompileError::TableFull { table, needed: decapsulation.len(), max });
        }
        Ok(Self { sources: if sends { sources.to_vec() } else { Vec::new() }, decapsulation })
    }

    /// Gives an image that decapsulates and has no services a table of their addresses with nothing in it: packets go by way of it.
    pub(super) fn place(&self, services: &mut ServiceTables) {
        if !self.decapsulation.is_empty() && services.addresses.is_empty() {
            services.addresses = vec![[0; 4]; SERVICE_BUCKET_ENTRIES as usize];
        }
    }
}

fn row(prefix: Prefix, what: u64) -> [u64; 5] {
    let (of, first, length) = match prefix {
        Prefix::V4(v4, length) => (IpAddr::V4(v4), 96, u32::from(length)),
        Prefix::V6(v6, length) => (IpAddr::V6(v6), 0, u32::from(length)),
    };
    let [high, low] = address(of);
    let [mask_high, mask_low] = address(IpAddr::V6(u128::MAX.checked_shl(128 - first - length).unwrap_or(0).into()));
    [high, low, mask_high, mask_low, what]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_compares_as_many_bits_as_its_prefix_has() {
        let v4 = row("192.0.2.0/24".parse().expect("a prefix"), 2);
        assert_eq!(v4, [0, 0xffff_c000_0200, u64::MAX, 0xffff_ffff_ffff_ff00, 2]);
        let v6 = row("2001:db8::/32".parse().expect("a prefix"), 4);
        assert_eq!(v6, [0x2001_0db8_0000_0000, 0, 0xffff_ffff_0000_0000, 0, 4]);
        assert_eq!(row("::/0".parse().expect("a prefix"), 4), [0, 0, 0, 0, 4]);
        assert_eq!(row("0.0.0.0/0".parse().expect("a prefix"), 4)[2..4], [u64::MAX, 0xffff_ffff_0000_0000]);
        assert_eq!(row("192.0.2.1/32".parse().expect("a prefix"), 1)[2..4], [u64::MAX; 2]);
    }
}
