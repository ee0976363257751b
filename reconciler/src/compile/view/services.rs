//! Services of an image.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fib::image::Image as _;
use fib::layout::{
    AT_SERVICES, BACKEND_FILE, BACKEND_ID, BACKEND_LINE, BACKEND_PORT, BACKEND_SERVICE, BACKEND_WEIGHT,
    DECAPSULATION_MASK, DECAPSULATION_ROWS_MAX, DECAPSULATION_WHAT, SERVICE_ADDRESS_FIRST_PORT,
    SERVICE_ADDRESS_PORTS_AT, SERVICE_ADDRESS_VIP, SERVICE_ADDRESS_WORD, SERVICE_AFFINITY_V4_AT,
    SERVICE_AFFINITY_V6_AT, SERVICE_BACKEND_COUNT, SERVICE_BACKENDS, SERVICE_BUCKET_ENTRIES, SERVICE_CLOSING_S,
    SERVICE_ESTABLISHED_S, SERVICE_FILE, SERVICE_FLAGS, SERVICE_FLAGS_AFFINITY, SERVICE_FLAGS_DROP, SERVICE_FLAGS_ECHO,
    SERVICE_FLAGS_IPIP, SERVICE_FLAGS_NAT, SERVICE_FLAGS_REJECT, SERVICE_HEALTH, SERVICE_ID, SERVICE_LINE,
    SERVICE_NAME, SERVICE_PORT_AFTER, SERVICE_PORT_BEFORE, SERVICE_PORT_LAST, SERVICE_PORT_SERVICE,
    SERVICE_PORT_TARGET, SERVICE_PORTS_MAX, SERVICE_SLOT_COUNT, SERVICE_SLOTS, SERVICE_UDP_S, SERVICE_VIP, Section,
    decapsulation,
};
use fib::service::{Address, is_v4};

use super::{ImageError, View};
use crate::policy::{Affinity, Echo, FlowTimeouts, Forwarding, OnNoBackend, Protocol, ServicePort, backend_name};

/// A row of the service table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceView<'a> {
    pub row: u32,
    pub id: u32,
    pub name: &'a str,
    pub vip: IpAddr,
    pub forwarding: Forwarding,
    pub on_no_backend: OnNoBackend,
    pub echo: Echo,
    pub affinity: Option<Affinity>,
    pub timeouts: FlowTimeouts,
    /// How backends are checked, as [`HealthChecks::text`](crate::policy::HealthChecks::text) writes it.
    pub health: Option<&'a str>,
    pub file: &'a str,
    pub line: u32,
}

/// A backend of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendView<'a> {
    pub id: u32,
    pub address: IpAddr,
    pub port: Option<u16>,
    /// 0: it takes no new flows.
    pub weight: u16,
    pub file: &'a str,
    pub line: u32,
}

impl BackendView<'_> {
    /// Its address and, where it has one, its port.
    pub fn name(&self) -> String {
        backend_name(self.address, self.port)
    }
}

/// An address as people write it.
pub fn ip(address: Address) -> IpAddr {
    if is_v4(address) {
        #[expect(clippy::cast_possible_truncation, reason = "the mapped address is the low half of the word")]
        return Ipv4Addr::from_bits(address[1] as u32).into();
    }
    Ipv6Addr::from_bits(u128::from(address[0]) << 64 | u128::from(address[1])).into()
}

impl<'a> View<'a> {
    /// Sorted by name.
    pub fn services(&self) -> impl ExactSizeIterator<Item = ServiceView<'a>> + '_ {
        self.rows(Section::Services).map(|row| self.service(row))
    }

    /// Row `row` of the service table, which must be below its count.
    pub fn service(&self, row: u32) -> ServiceView<'a> {
        let at = self.at(Section::Services, row);
        let flags = self.u32(at + SERVICE_FLAGS);
        let bits = |first: u32| flags.to_le_bytes()[first as usize / 8];
        let affinity = Affinity { ipv4: bits(SERVICE_AFFINITY_V4_AT), ipv6: bits(SERVICE_AFFINITY_V6_AT) };
        ServiceView {
            row,
            id: self.u32(at + SERVICE_ID),
            name: self.string(self.u32(at + SERVICE_NAME)),
            vip: ip(self.service_address(at + SERVICE_VIP)),
            forwarding: if flags & SERVICE_FLAGS_NAT != 0 {
                Forwarding::Nat
            } else if flags & SERVICE_FLAGS_IPIP != 0 {
                Forwarding::Ipip
            } else {
                Forwarding::L2Dsr
            },
            on_no_backend: if flags & SERVICE_FLAGS_DROP != 0 {
                OnNoBackend::Drop
            } else if flags & SERVICE_FLAGS_REJECT != 0 {
                OnNoBackend::Reject
            } else {
                OnNoBackend::Pass
            },
            echo: if flags & SERVICE_FLAGS_ECHO == 0 { Echo::Pass } else { Echo::Answer },
            affinity: (flags & SERVICE_FLAGS_AFFINITY != 0).then_some(affinity),
            timeouts: FlowTimeouts {
                established_s: self.u32(at + SERVICE_ESTABLISHED_S),
                closing_s: self.u32(at + SERVICE_CLOSING_S),
                udp_s: self.u32(at + SERVICE_UDP_S),
            },
            health: self.u32(at + SERVICE_HEALTH).checked_sub(1).map(|health| self.string(health)),
            file: self.file(self.u32(at + SERVICE_FILE)),
            line: self.u32(at + SERVICE_LINE),
        }
    }

    /// Backends of a service, sorted by address and port.
    pub fn backends(&self, service: &ServiceView<'_>) -> impl ExactSizeIterator<Item = BackendView<'a>> + '_ {
        let at = self.at(Section::Services, service.row);
        let (first, count) = (self.u32(at + SERVICE_BACKENDS), self.u32(at + SERVICE_BACKEND_COUNT));
        (first..first + count).map(|row| {
            let at = self.at(Section::Backends, row);
            BackendView {
                id: self.u32(at + BACKEND_ID),
                address: ip(self.service_address(at)),
                port: Some(self.u16(at + BACKEND_PORT)).filter(|port| *port != 0),
                weight: self.u16(at + BACKEND_WEIGHT),
                file: self.file(self.u32(at + BACKEND_FILE)),
                line: self.u32(at + BACKEND_LINE),
            }
        })
    }

    /// Ports with the row of their service; by vip, protocol and port.
    pub fn service_ports(&self) -> impl ExactSizeIterator<Item = (u32, ServicePort)> + '_ {
        self.rows(Section::ServicePorts).map(|row| {
            let at = self.at(Section::ServicePorts, row);
            let target = self.u16(at + SERVICE_PORT_TARGET);
            let port = ServicePort {
                protocol: if self.u16(at + 2) == u16::from(Protocol::Tcp.number()) {
                    Protocol::Tcp
                } else {
                    Protocol::Udp
                },
                first: self.u16(at),
                last: self.u16(at + SERVICE_PORT_LAST),
                target: Some(target).filter(|target| *target != 0),
            };
            (self.u32(at + SERVICE_PORT_SERVICE), port)
        })
    }

    /// The Maglev table of a service: for each slot the backend's place among the service's; empty where none takes flows.
    pub fn service_slots(&self, service: &ServiceView<'_>) -> impl ExactSizeIterator<Item = u16> + '_ {
        let at = self.at(Section::Services, service.row);
        let (first, count) = (self.u32(at + SERVICE_SLOTS), self.u32(at + SERVICE_SLOT_COUNT));
        (first..first + count).map(|slot| self.u16(self.at(Section::BackendSlots, slot)))
    }

    /// The outer source of packets that go to this backend by a tunnel; `None`: the image has none, since it was compiled for no
    /// particular node.
    pub fn tunnel_source(&self, backend: IpAddr) -> Option<IpAddr> {
        let row = u32::from(backend.is_ipv6());
        let sources = self.count(Section::TunnelSources);
        let address = (row < sources).then(|| self.service_address(self.at(Section::TunnelSources, row)))?;
        (address != [0; 2]).then(|| ip(address))
    }

    /// What is decapsulated, in words, sorted: `10.1.0.11`, `from 192.0.2.0/24`, `to 198.51.100.10/32`.
    pub fn decapsulation(&self) -> Vec<String> {
        let words = |row| {
            let at = self.at(Section::Decapsulation, row);
            let (address, mask) = (self.service_address(at), self.service_address(at + DECAPSULATION_MASK));
            let bits = mask[0].count_ones() + mask[1].count_ones();
            let length = if is_v4(address) { bits.saturating_sub(96) } else { bits };
            match self.u64(at + DECAPSULATION_WHAT) {
                decapsulation::ADDRESS => ip(address).to_string(),
                decapsulation::FROM => format!("from {}/{length}", ip(address)),
                _ => format!("to {}/{length}", ip(address)),
            }
        };
        let mut rows: Vec<String> = (0..self.count(Section::Decapsulation)).map(words).collect();
        rows.sort_unstable();
        rows
    }

    fn service_address(&self, at: u32) -> Address {
        [self.u64(at), self.u64(at + 8)]
    }

    pub(super) fn check_services(&self) -> Result<(), ImageError> {
        let entries = self.count(Section::ServiceAddresses);
        let expected = if entries == 0 { 0 } else { self.at(Section::ServiceAddresses, 0) };
        let whole = entries.is_multiple_of(SERVICE_BUCKET_ENTRIES)
            && (entries == 0 || (entries / SERVICE_BUCKET_ENTRIES).is_power_of_two());
        if self.u32(AT_SERVICES) != expected || !whole {
            return Err(ImageError::Section { section: Section::ServiceAddresses });
        }
        let rows = |section: Section, holds: &dyn Fn(u32) -> bool| match (0..self.count(section))
            .find(|row| !holds(self.at(section, *row)))
        {
            Some(row) => Err(ImageError::Row { section, row }),
            None => Ok(()),
        };
        let within = |first: u32, count: u32, section: Section| {
            first.checked_add(count).is_some_and(|end| end <= self.count(section))
        };
        rows(Section::ServiceAddresses, &|at| {
            let word = self.u64(at + SERVICE_ADDRESS_WORD);
            let first = u32::try_from(word & SERVICE_ADDRESS_FIRST_PORT).unwrap_or(u32::MAX);
            let count = u32::try_from(word >> SERVICE_ADDRESS_PORTS_AT & 0xffff).unwrap_or(u32::MAX);
            let is_vip = word & SERVICE_ADDRESS_VIP != 0;
            is_vip == (count > 0) && count <= SERVICE_PORTS_MAX && within(first, count, Section::ServicePorts)
        })?;
        let services = self.count(Section::Services);
        let ports = self.count(Section::ServicePorts);
        rows(Section::ServicePorts, &|at| {
            self.u32(at + SERVICE_PORT_SERVICE) < services
                && self.u32(at + SERVICE_PORT_BEFORE) <= ports
                && self.u32(at + SERVICE_PORT_AFTER) <= ports
        })?;
        rows(Section::Services, &|at| {
            let (backends, count) = (self.u32(at + SERVICE_BACKENDS), self.u32(at + SERVICE_BACKEND_COUNT));
            let (slots, size) = (self.u32(at + SERVICE_SLOTS), self.u32(at + SERVICE_SLOT_COUNT));
            self.u32(at + SERVICE_NAME) < self.count(Section::Strings)
                && self.u32(at + SERVICE_HEALTH) <= self.count(Section::Strings)
                && self.u32(at + SERVICE_FILE) < self.count(Section::Files)
                && within(backends, count, Section::Backends)
                && within(slots, size, Section::BackendSlots)
                && (slots..slots + size).all(|slot| u32::from(self.u16(self.at(Section::BackendSlots, slot))) < count)
        })?;
        let ids = self.count(Section::BackendRows);
        rows(Section::Backends, &|at| {
            let service = self.u32(at + BACKEND_SERVICE);
            service < services
                && self.u32(at + BACKEND_FILE) < self.count(Section::Files)
                && self.u32(at + BACKEND_ID) < ids
        })?;
        let tunnels = (0..services)
            .any(|row| self.u32(self.at(Section::Services, row) + SERVICE_FLAGS) & SERVICE_FLAGS_IPIP != 0);
        if self.count(Section::TunnelSources) != if tunnels { 2 } else { 0 } {
            return Err(ImageError::Section { section: Section::TunnelSources });
        }
        let decapsulated = self.count(Section::Decapsulation);
        if decapsulated > DECAPSULATION_ROWS_MAX || decapsulated > 0 && entries == 0 {
            return Err(ImageError::Section { section: Section::Decapsulation });
        }
        rows(Section::Decapsulation, &|at| {
            matches!(
                self.u64(at + DECAPSULATION_WHAT),
                decapsulation::ADDRESS | decapsulation::FROM | decapsulation::TO
            )
        })?;
        rows(Section::BackendRows, &|at| self.bytes.u32(at).is_some_and(|row| row <= self.count(Section::Backends)))
    }
}
