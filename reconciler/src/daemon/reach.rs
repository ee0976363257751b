//! Whether a next hop can be sent to: from what the kernel says of its link and its neighbour. Pure.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use fib::Reach;
use netlink_packet_route::neighbour::NeighbourState;

use crate::kernel::link::Link;
use crate::kernel::neighbour::Neighbour;

/// How long a known MAC stays in use after the kernel's own probes found no answer. `ip neigh delete` looks the same as such a
/// failure, and one more question tells the two apart: a neighbour that is alive answers it long before.
pub const FAILED_GRACE: Duration = Duration::from_millis(100);
/// How long it stays in use after its entry vanished, which alone means nothing: the kernel collects entries that nobody used.
pub const VANISHED_GRACE: Duration = Duration::from_millis(800);

/// Why a next hop is down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The port has no device on this node.
    NoDevice,
    /// The device is switched off or has no carrier.
    LinkDown,
    /// The kernel's probes had no answer.
    NeighbourFailed,
    /// The neighbour's entry went away, or the link came back, and nobody answers.
    NoAnswer,
}

impl Cause {
    /// In words, for `via` behind a port and its device.
    pub fn words(self, via: IpAddr, port: &str, device: Option<&str>) -> String {
        let device = device.unwrap_or(port);
        match self {
            Self::NoDevice => format!("port {port} has no device"),
            Self::LinkDown => format!("link {device} down"),
            Self::NeighbourFailed => format!("neighbour {via} failed"),
            Self::NoAnswer => format!("neighbour {via} does not answer"),
        }
    }
}

/// A next hop's state in one word.
pub fn word(reach: &Reach) -> &'static str {
    match reach {
        Reach::Up(_) => "up",
        Reach::Down => "down",
        Reach::Unknown => "unknown",
    }
}

/// What packets to a next hop are to meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The kernel knows the neighbour's MAC.
    Up([u8; 6]),
    /// The kernel does no longer; the MAC known until now is used until then, and the neighbour asked for.
    Kept(Instant),
    Down(Cause),
    /// Never known, and not failed: packets go to the kernel, which asks and keeps them meanwhile.
    Unknown,
}

/// What the kernel says of one next hop.
#[derive(Clone, Copy, Debug)]
pub struct Signs<'k> {
    /// Of the port's device; `None`: it has none.
    pub link: Option<&'k Link>,
    pub entry: Option<&'k Neighbour>,
    /// What packets meet now.
    pub before: Reach,
    /// Until when a MAC that is no longer known stays in use, since an earlier look.
    pub kept_until: Option<Instant>,
}

/// Judges one next hop.
pub fn judge(signs: &Signs, now: Instant) -> Standing {
    let Some(link) = signs.link else { return Standing::Down(Cause::NoDevice) };
    if !(link.up && link.carrier) {
        return Standing::Down(Cause::LinkDown);
    }
    if let Some(mac) = signs.entry.and_then(Neighbour::usable_mac) {
        return Standing::Up(mac);
    }
    let failed = signs.entry.is_some_and(|entry| entry.state == NeighbourState::Failed);
    match signs.before {
        Reach::Up(_) => {
            let grace = now + if failed { FAILED_GRACE } else { VANISHED_GRACE };
            let until = signs.kept_until.map_or(grace, |until| until.min(grace));
            match (now < until, failed) {
                (true, _) => Standing::Kept(until),
                (false, true) => Standing::Down(Cause::NeighbourFailed),
                (false, false) => Standing::Down(Cause::NoAnswer),
            }
        }
        Reach::Unknown if !failed => Standing::Unknown,
        Reach::Down if !failed => Standing::Down(Cause::NoAnswer),
        Reach::Unknown | Reach::Down => Standing::Down(Cause::NeighbourFailed),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "any point in time will do to count from")]

    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
    const UP: Reach = Reach::Up(fib::Neighbour {
        destination: 9,
        source: 1,
        mtu: 1500,
        tags: fib::packet::Tags { outer: 0, inner: 0 },
        one_buffer: true,
    });

    fn link(up: bool, carrier: bool) -> Link {
        let (mac, vlan) = (Some([2; 6]), None);
        Link { index: 2, name: "eth0".into(), mac, mtu: 1500, up, carrier, xdp: None, driver: None, vlan }
    }

    fn entry(state: NeighbourState) -> Neighbour {
        let mac = (state != NeighbourState::Incomplete).then_some(MAC);
        Neighbour { ifindex: 2, ip: [192, 0, 2, 1].into(), mac, state }
    }

    fn check(link: Option<&Link>, state: Option<NeighbourState>, before: Reach, expected: Standing) {
        let entry = state.map(entry);
        let signs = Signs { link, entry: entry.as_ref(), before, kept_until: None };
        let mut found = judge(&signs, Instant::now());
        if let (Standing::Kept(found), Standing::Kept(expected)) = (&mut found, expected) {
            *found = expected;
        }
        assert_eq!(found, expected, "{state:?} {before:?}");
    }

    #[test]
    fn a_link_that_is_down_decides_alone() {
        for before in [UP, Reach::Down, Reach::Unknown] {
            for state in [None, Some(NeighbourState::Reachable), Some(NeighbourState::Permanent)] {
                check(None, state, before, Standing::Down(Cause::NoDevice));
                check(Some(&link(false, false)), state, before, Standing::Down(Cause::LinkDown));
                check(Some(&link(true, false)), state, before, Standing::Down(Cause::LinkDown));
            }
        }
    }

    #[test]
    fn every_state_in_which_the_kernel_itself_would_send_is_up() {
        use NeighbourState::{Delay, Noarp, Permanent, Probe, Reachable, Stale};
        for before in [UP, Reach::Down, Reach::Unknown] {
            for state in [Permanent, Noarp, Reachable, Stale, Delay, Probe] {
                check(Some(&link(true, true)), Some(state), before, Standing::Up(MAC));
            }
        }
    }

    #[test]
    fn what_was_never_known_is_unknown_until_it_fails() {
        let up = link(true, true);
        for state in [None, Some(NeighbourState::Incomplete), Some(NeighbourState::None)] {
            check(Some(&up), state, Reach::Unknown, Standing::Unknown);
            check(Some(&up), state, Reach::Down, Standing::Down(Cause::NoAnswer));
            check(Some(&up), state, UP, Standing::Kept(Instant::now()));
        }
        for before in [Reach::Down, Reach::Unknown] {
            check(Some(&up), Some(NeighbourState::Failed), before, Standing::Down(Cause::NeighbourFailed));
        }
    }

    #[test]
    fn a_lost_neighbour_is_kept_for_its_grace_and_no_longer() {
        let up = link(true, true);
        let start = Instant::now();
        let look = |state: Option<NeighbourState>, kept_until, after| {
            let entry = state.map(entry);
            judge(&Signs { link: Some(&up), entry: entry.as_ref(), before: UP, kept_until }, start + after)
        };
        let millisecond = Duration::from_millis(1);
        let vanished = start + VANISHED_GRACE;
        assert_eq!(look(None, None, Duration::ZERO), Standing::Kept(vanished));
        // Later looks do not make it longer, and a failure makes it shorter.
        assert_eq!(look(None, Some(vanished), VANISHED_GRACE.saturating_sub(millisecond)), Standing::Kept(vanished));
        assert_eq!(look(None, Some(vanished), VANISHED_GRACE), Standing::Down(Cause::NoAnswer));
        let failed = start + FAILED_GRACE;
        let state = Some(NeighbourState::Failed);
        assert_eq!(look(state, Some(vanished), Duration::ZERO), Standing::Kept(failed));
        assert_eq!(look(state, Some(failed), FAILED_GRACE), Standing::Down(Cause::NeighbourFailed));
        // The question that is asked meanwhile makes the entry incomplete.
        assert_eq!(look(Some(NeighbourState::Incomplete), Some(failed), FAILED_GRACE), Standing::Down(Cause::NoAnswer));
    }
}
