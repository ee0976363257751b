//! The route tables: what was written, prefix by prefix, and a longest-prefix match of their own.
//!
//! Nothing here reads the lookup tables, so that the two can witness against each other.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fib::image::Image as _;
use fib::layout::Section;

use super::{ImageError, Target, View};
use crate::compile::fib::Rule;
use crate::policy::Prefix;

/// What a route does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteAction {
    /// By a group; [`View::members`] lists it.
    Forward {
        group: u32,
    },
    Drop,
    Pass,
}

/// One route with the place that says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteView<'a> {
    pub prefix: Prefix,
    pub action: RouteAction,
    /// Index of the target, which means something in this image only.
    pub target: u16,
    pub policy: &'a str,
    pub file: &'a str,
    pub line: u32,
}

/// What an address meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match<'a> {
    /// The longest matching prefix.
    Route(RouteView<'a>),
    /// An address of the node itself.
    Local,
    None,
}

/// What the packet path found: a [`Match`] without the prefix, which the lookup tables do not keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetView<'a> {
    None,
    Local,
    Route { action: RouteAction, policy: &'a str },
}

impl TargetView<'_> {
    /// Whether both say the same about a packet.
    pub fn agrees_with(&self, found: &Match) -> bool {
        match (self, found) {
            (Self::None, Match::None) | (Self::Local, Match::Local) => true,
            (Self::Route { action, policy }, Match::Route(route)) => *action == route.action && *policy == route.policy,
            _ => false,
        }
    }
}

/// Which prefix lengths a family's table holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Lengths([u64; 3]);

impl Lengths {
    fn add(&mut self, length: u8) {
        self.0[usize::from(length / 64)] |= 1 << (length % 64);
    }

    fn holds(self, length: u8) -> bool {
        self.0[usize::from(length / 64)] >> (length % 64) & 1 != 0
    }
}

/// Routes of one family, sorted by (address, length).
#[derive(Clone, Debug)]
pub struct Routes<'v, 'a> {
    view: &'v View<'a>,
    section: Section,
    rows: std::ops::Range<u32>,
}

impl<'a> Iterator for Routes<'_, 'a> {
    type Item = RouteView<'a>;

    fn next(&mut self) -> Option<RouteView<'a>> {
        let row = self.rows.next()?;
        Some(if self.section == Section::V4Routes { self.view.v4_route(row) } else { self.view.v6_route(row) })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.rows.size_hint()
    }
}

impl ExactSizeIterator for Routes<'_, '_> {}

impl<'a> View<'a> {
    pub fn routes_v4(&self) -> Routes<'_, 'a> {
        Routes { view: self, section: Section::V4Routes, rows: 0..self.count(Section::V4Routes) }
    }

    pub fn routes_v6(&self) -> Routes<'_, 'a> {
        Routes { view: self, section: Section::V6Routes, rows: 0..self.count(Section::V6Routes) }
    }

    /// The routes as they were compiled.
    pub(in crate::compile) fn v4_rules(&self) -> impl Iterator<Item = Rule<u32>> + '_ {
        self.rows(Section::V4Routes).map(|row| {
            let at = self.at(Section::V4Routes, row);
            Rule {
                address: self.u32(at),
                length: self.byte(at + 12),
                target: self.u16(at + 10),
                file: self.u16(at + 8),
                line: self.u32(at + 4),
            }
        })
    }

    /// The routes as they were compiled.
    pub(in crate::compile) fn v6_rules(&self) -> impl Iterator<Item = Rule<u128>> + '_ {
        self.rows(Section::V6Routes).map(|row| {
            let at = self.at(Section::V6Routes, row);
            Rule {
                address: self.u128(at),
                length: self.byte(at + 24),
                target: self.u16(at + 22),
                file: self.u16(at + 20),
                line: self.u32(at + 16),
            }
        })
    }

    /// The route with the longest prefix that contains `address`; the node's own addresses are not asked.
    pub fn find(&self, address: IpAddr) -> Option<RouteView<'a>> {
        match address {
            IpAddr::V4(address) => {
                let key = |row| {
                    let at = self.at(Section::V4Routes, row);
                    (u128::from(self.u32(at)) << 96, self.byte(at + 12))
                };
                let row =
                    longest(self.count(Section::V4Routes), self.v4_lengths, u128::from(address.to_bits()) << 96, key);
                row.map(|row| self.v4_route(row))
            }
            IpAddr::V6(address) => {
                let key = |row| {
                    let at = self.at(Section::V6Routes, row);
                    (self.u128(at), self.byte(at + 24))
                };
                let row = longest(self.count(Section::V6Routes), self.v6_lengths, address.to_bits(), key);
                row.map(|row| self.v6_route(row))
            }
        }
    }

    /// What a packet to `address` meets: a route, the node itself, or nothing.
    pub fn lookup(&self, address: IpAddr) -> Match<'a> {
        let route = self.find(address);
        let exact = |route: &RouteView| route.prefix.length() == if address.is_ipv4() { 32 } else { 128 };
        match route {
            Some(route) if exact(&route) => Match::Route(route),
            _ if self.is_local(address) => Match::Local,
            Some(route) => Match::Route(route),
            None => Match::None,
        }
    }

    fn is_local(&self, address: IpAddr) -> bool {
        let count = self.count(Section::Locals);
        let local = |row| {
            let at = self.at(Section::Locals, row);
            self.address(at, at + 16)
        };
        let row = partition_point(count, |row| local(row) < address);
        row < count && local(row) == address
    }

    /// What target `target` of the packet path means; `None` for an index that the image does not have.
    pub fn target(&self, target: u16) -> Option<TargetView<'a>> {
        Some(match self.targets.get(usize::from(target))? {
            Target::None => TargetView::None,
            Target::Local => TargetView::Local,
            _ => {
                let (action, policy) = self.action(target);
                TargetView::Route { action, policy }
            }
        })
    }

    fn v4_route(&self, row: u32) -> RouteView<'a> {
        let at = self.at(Section::V4Routes, row);
        let prefix = Prefix::V4(Ipv4Addr::from_bits(self.u32(at)), self.byte(at + 12));
        self.route(prefix, self.u16(at + 10), self.u16(at + 8), self.u32(at + 4))
    }

    fn v6_route(&self, row: u32) -> RouteView<'a> {
        let at = self.at(Section::V6Routes, row);
        let prefix = Prefix::V6(Ipv6Addr::from_bits(self.u128(at)), self.byte(at + 24));
        self.route(prefix, self.u16(at + 22), self.u16(at + 20), self.u32(at + 16))
    }

    fn route(&self, prefix: Prefix, target: u16, file: u16, line: u32) -> RouteView<'a> {
        let (action, policy) = self.action(target);
        RouteView { prefix, action, target, policy, file: self.file(u32::from(file)), line }
    }

    fn action(&self, target: u16) -> (RouteAction, &'a str) {
        match self.targets.get(usize::from(target)) {
            Some(&Target::Forward(group)) => {
                let policy = self.policy_name(self.u32(self.at(Section::Groups, group)));
                (RouteAction::Forward { group }, policy)
            }
            Some(&Target::Drop(policy)) => (RouteAction::Drop, self.policy_name(policy)),
            Some(&Target::Pass(policy)) => (RouteAction::Pass, self.policy_name(policy)),
            // Refused by the checks: no route names another target.
            _ => (RouteAction::Pass, ""),
        }
    }

    pub(super) fn check_v4_routes(&self) -> Result<Lengths, ImageError> {
        self.check_routes(Section::V4Routes, 32, |view, at| {
            (u128::from(view.u32(at)) << 96, view.byte(at + 12), view.u16(at + 10), view.u16(at + 8))
        })
    }

    pub(super) fn check_v6_routes(&self) -> Result<Lengths, ImageError> {
        self.check_routes(Section::V6Routes, 128, |view, at| {
            (view.u128(at), view.byte(at + 24), view.u16(at + 22), view.u16(at + 20))
        })
    }

    /// Sorted, no host bits, targets and files that exist; `read` gives (address, length, target, file).
    fn check_routes(
        &self,
        section: Section,
        length_max: u8,
        read: impl Fn(&Self, u32) -> (u128, u8, u16, u16),
    ) -> Result<Lengths, ImageError> {
        let files = self.count(Section::Files);
        let mut lengths = Lengths::default();
        let mut previous = None;
        for row in 0..self.count(section) {
            let (address, length, target, file) = read(self, self.at(section, row));
            let routed = matches!(
                self.targets.get(usize::from(target)),
                Some(Target::Forward(_) | Target::Drop(_) | Target::Pass(_))
            );
            let holds = length <= length_max
                && address & !mask(length) == 0
                && previous < Some((address, length))
                && routed
                && u32::from(file) < files;
            if !holds {
                return Err(ImageError::Row { section, row });
            }
            lengths.add(length);
            previous = Some((address, length));
        }
        Ok(lengths)
    }

    fn byte(&self, at: u32) -> u8 {
        self.bytes.get(at as usize).copied().unwrap_or_default()
    }

    fn u128(&self, at: u32) -> u128 {
        u128::from(self.bytes.u64(at).unwrap_or_default())
            | u128::from(self.bytes.u64(at.wrapping_add(8)).unwrap_or_default()) << 64
    }
}

/// The row of the longest prefix that contains `address` (left-aligned), among rows sorted by `key`.
fn longest(count: u32, lengths: Lengths, address: u128, key: impl Fn(u32) -> (u128, u8)) -> Option<u32> {
    // Every prefix that contains the address sorts before it, and so does not come after the last row that does; and
    // that row lies between each of them and the address, hence inside each of them: none is longer than the bits that
    // the row and the address have in common.
    let end = partition_point(count, |row| key(row).0 <= address);
    let (nearest, _) = key(end.checked_sub(1)?);
    let common = u8::try_from((nearest ^ address).leading_zeros()).unwrap_or(128);
    (0..=common).rev().filter(|&length| lengths.holds(length)).find_map(|length| {
        let wanted = (address & mask(length), length);
        let row = partition_point(end, |row| key(row) < wanted);
        (row < end && key(row) == wanted).then_some(row)
    })
}

fn mask(length: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
}

/// The first row for which `before` is false.
fn partition_point(count: u32, before: impl Fn(u32) -> bool) -> u32 {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        if before(middle) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}
