//! Services in an image: addresses, ports, services, backends and Maglev tables.

mod addresses;
mod maglev;
#[cfg(test)]
pub(super) mod tests;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use fib::layout::{
    BACKEND_BYTES, SERVICE_ADDRESS_ECHO, SERVICE_ADDRESS_PORTS_AT, SERVICE_ADDRESS_TRANSLATED, SERVICE_ADDRESS_VIP,
    SERVICE_AFFINITY_V4_AT, SERVICE_AFFINITY_V6_AT, SERVICE_BYTES, SERVICE_FLAGS_AFFINITY, SERVICE_FLAGS_DROP,
    SERVICE_FLAGS_ECHO, SERVICE_FLAGS_HEALTH, SERVICE_FLAGS_IPIP, SERVICE_FLAGS_NAT, SERVICE_FLAGS_REJECT,
    SERVICE_HEALTH, SERVICE_PORTS_MAX,
};
use fib::service::{Address, mapped};

use super::CompileError;
use super::ids::{Ids, backend_key};
use super::tables::Tables;
use crate::policy::{Echo, Forwarding, OnNoBackend, Policy, ServicePolicy, ServicePort};

/// The tables as they stand in the image.
#[derive(Debug, Default)]
pub(super) struct ServiceTables {
    pub addresses: Vec<addresses::Entry>,
    /// (first, last, service, target, row before, row after)
    pub ports: Vec<[u32; 6]>,
    pub services: Vec<[u8; SERVICE_BYTES as usize]>,
    pub backends: Vec<[u8; BACKEND_BYTES as usize]>,
    /// By id: row and one.
    pub backend_rows: Vec<u32>,
    pub slots: Vec<u16>,
}

/// Slot tables that services share: what backends are called and their weights -> (first slot, slots).
type SlotTables = HashMap<Vec<(String, u16)>, [u32; 2]>;

/// An address in the form of the packet path.
pub(super) fn address(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(v4) => mapped(4, [u64::from(v4.to_bits()) << 32, 0]),
        IpAddr::V6(v6) => {
            let [high, low] = [v6.to_bits() >> 64, v6.to_bits() & u128::from(u64::MAX)];
            [half(high), half(low)]
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "half of a u128")]
fn half(bits: u128) -> u64 {
    bits as u64
}

/// Makes the tables; names go to those of `tables`.
pub(super) fn collect<'p>(
    policy: &'p Policy,
    ids: &Ids<'p>,
    tables: &mut Tables<'p>,
) -> Result<ServiceTables, CompileError> {
    let mut services = ServiceTables::default();
    let mut slot_tables = SlotTables::new();
    for service in &policy.service_policies {
        let name = tables.intern(&service.name);
        let health = service.health.as_ref().map_or(0, |_| tables.intern(&service.health_text) + 1);
        services.add(service, ids, [name, health], policy.service_policies.len(), &mut slot_tables);
    }
    services.place_addresses(policy)?;
    let rows = ids.backends.values().max().map_or(0, |max| *max as usize + 1);
    services.backend_rows = vec![0; rows];
    let in_order = policy.service_policies.iter().flat_map(|s| s.backends.iter().map(|b| backend_key(&s.name, b)));
    for (row, key) in (1..).zip(in_order) {
        let id = ids.backends.get(&key).copied().unwrap_or_default();
        services.backend_rows[id as usize] = row;
    }
    Ok(services)
}

impl ServiceTables {
    fn add(
        &mut self,
        service: &ServicePolicy,
        ids: &Ids<'_>,
        [name, health]: [u32; 2],
        count: usize,
        slot_tables: &mut SlotTables,
    ) {
        let row = index(self.services.len());
        let first_backend = index(self.backends.len());
        for backend in &service.backends {
            let id = ids.backends.get(&backend_key(&service.name, backend)).copied().unwrap_or_default();
            let [high, low] = address(backend.address);
            let ports = u32::from(backend.port.unwrap_or(0)) | u32::from(backend.weight) << 16;
            let mut bytes = [0; BACKEND_BYTES as usize];
            bytes[..8].copy_from_slice(&high.to_le_bytes());
            bytes[8..16].copy_from_slice(&low.to_le_bytes());
            for (at, word) in [id, row, ports, backend.origin.file, backend.origin.line].into_iter().enumerate() {
                bytes[16 + at * 4..][..4].copy_from_slice(&word.to_le_bytes());
            }
            self.backends.push(bytes);
        }
        let named: Vec<(String, u16)> = service.backends.iter().map(|b| (b.to_string(), b.weight)).collect();
        let size = maglev::size(count, service.backends.len());
        let slots = *slot_tables.entry(named).or_insert_with_key(|named| {
            let permutations: Vec<_> =
                named.iter().map(|(name, weight)| (maglev::Permutation::of(name, size), *weight)).collect();
            let table = maglev::table(&permutations, size);
            let first = index(self.slots.len());
            self.slots.extend_from_slice(&table);
            [first, index(table.len())]
        });
        let [high, low] = address(service.vip);
        let timeouts = service.timeouts;
        let words = [
            ids.services.get(service.name.as_str()).copied().unwrap_or_default(),
            flags(service),
            slots[0],
            slots[1],
            first_backend,
            index(service.backends.len()),
            timeouts.established_s,
            timeouts.closing_s,
            timeouts.udp_s,
            name,
            service.origin.file,
            service.origin.line,
        ];
        let mut bytes = [0; SERVICE_BYTES as usize];
        for (at, word) in words.into_iter().enumerate() {
            bytes[at * 4..][..4].copy_from_slice(&word.to_le_bytes());
        }
        bytes[48..56].copy_from_slice(&high.to_le_bytes());
        bytes[56..64].copy_from_slice(&low.to_le_bytes());
        bytes[SERVICE_HEALTH as usize..][..4].copy_from_slice(&health.to_le_bytes());
        self.services.push(bytes);
    }

    /// The rows of ports, by vip, and the table that leads to them.
    fn place_addresses(&mut self, policy: &Policy) -> Result<(), CompileError> {
        let mut vips: BTreeMap<Address, Vec<(ServicePort, u32)>> = BTreeMap::new();
        let mut words: BTreeMap<Address, u64> = BTreeMap::new();
        for (row, service) in (0..).zip(&policy.service_policies) {
            vips.entry(address(service.vip)).or_default().extend(service.ports.iter().map(|port| (*port, row)));
            if service.echo == Echo::Answer {
                *words.entry(address(service.vip)).or_default() |= SERVICE_ADDRESS_ECHO;
            }
            if service.forwarding == Forwarding::Nat {
                for backend in &service.backends {
                    *words.entry(address(backend.address)).or_default() |= SERVICE_ADDRESS_TRANSLATED;
                }
            }
        }
        for (vip, mut ports) in vips {
            if ports.len() > SERVICE_PORTS_MAX as usize {
                let (table, max) = ("port rows of one vip", SERVICE_PORTS_MAX as usize);
                return Err(CompileError::TableFull { table, needed: ports.len(), max });
            }
            ports.sort_unstable();
            let overlap = ports.windows(2).find(|pair| {
                let [(port, _), (next, _)] = [pair[0], pair[1]];
                port.protocol == next.protocol && next.first <= port.last
            });
            if let Some([(_, one), (_, other)]) = overlap {
                let name = |row: u32| policy.service_policies[row as usize].name.clone();
                return Err(CompileError::ServiceTwice { services: [name(*one), name(*other)] });
            }
            let first = index(self.ports.len());
            *words.entry(vip).or_default() |=
                SERVICE_ADDRESS_VIP | u64::from(first) | (ports.len() as u64) << SERVICE_ADDRESS_PORTS_AT;
            let protocol = |port: &ServicePort| u32::from(port.protocol.number()) << 16;
            self.ports.extend(ports.iter().map(|(port, service)| {
                [
                    protocol(port) | u32::from(port.first),
                    protocol(port) | u32::from(port.last),
                    *service,
                    u32::from(port.target.unwrap_or(0)),
                    0,
                    0,
                ]
            }));
            grow(&mut self.ports, first, first + index(ports.len()));
        }
        self.addresses = addresses::place(&words);
        Ok(())
    }
}

/// Makes a search tree of the rows from `first` up to `end`; returns its root, counted from 1, 0 where there is none.
fn grow(ports: &mut [[u32; 6]], first: u32, end: u32) -> u32 {
    if first == end {
        return 0;
    }
    let middle = first + (end - first) / 2;
    let (before, after) = (grow(ports, first, middle), grow(ports, middle + 1, end));
    ports[middle as usize][4..].copy_from_slice(&[before, after]);
    middle + 1
}

fn flags(service: &ServicePolicy) -> u32 {
    let forwarding = match service.forwarding {
        Forwarding::Nat => SERVICE_FLAGS_NAT,
        Forwarding::L2Dsr => 0,
        Forwarding::Ipip => SERVICE_FLAGS_IPIP,
    };
    let none = match service.on_no_backend {
        OnNoBackend::Pass => 0,
        OnNoBackend::Drop => SERVICE_FLAGS_DROP,
        OnNoBackend::Reject => SERVICE_FLAGS_REJECT,
    };
    let echo = if service.echo == Echo::Answer { SERVICE_FLAGS_ECHO } else { 0 };
    let affinity = service.affinity.map_or(0, |affinity| {
        SERVICE_FLAGS_AFFINITY
            | u32::from(affinity.ipv4) << SERVICE_AFFINITY_V4_AT
            | u32::from(affinity.ipv6) << SERVICE_AFFINITY_V6_AT
    });
    let health = if service.health.is_some() { SERVICE_FLAGS_HEALTH } else { 0 };
    forwarding | none | echo | affinity | health
}

#[expect(clippy::cast_possible_truncation, reason = "the image's size limit is checked before anything is written")]
fn index(i: usize) -> u32 {
    i as u32
}
