//! The reconciler: what to do, in which order, so that the kernel holds what the policies say.
//!
//! [`steps`] is pure: facts in, an ordered list out, no choice left to whoever executes it. The order is the safety
//! argument of the whole system: everything that can fail comes before [`Step::Publish`], and what comes after it only
//! frees memory. A kill between any two steps leaves the old generation live, or the new one.

use std::fmt;
use std::path::PathBuf;

use fib::packet::Tags;

use crate::kernel::attach::Mode;
use crate::kernel::observe::{LinkState, Stray};

/// A port of this node and the device that carries it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortDevice {
    pub port: String,
    pub device: String,
    /// Kernel index of the device.
    pub index: u32,
    pub wire: Wire,
    pub mode: Mode,
}

/// Where a port's frames are: on its device itself, or tagged on the one below its VLAN devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wire {
    pub device: String,
    /// Kernel index of the device.
    pub index: u32,
    pub tags: Tags,
    /// The device takes tags out of frames before XDP sees them, and there are VLANs on it: only TC tells its ports apart.
    pub hides_tags: bool,
}

/// A device that the program is to be attached to, once, for all ports that it carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    pub device: String,
    /// Kernel index of the device.
    pub index: u32,
    pub mode: Mode,
    /// The ports that it is for, in the order of their names; at least one.
    pub ports: Vec<String>,
}

impl Attachment {
    /// Whether this link is what is wanted, whatever program it runs.
    fn is(&self, link: &LinkState) -> bool {
        self.index == link.index && self.device == link.device && (self.mode == Mode::Tc) == link.tc
    }

    /// Whether this link stands where the attachment is to be.
    fn replaces(&self, link: &LinkState) -> bool {
        self.index == link.index || self.device == link.device
    }
}

/// What was found, as far as the steps depend on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Number of the live generation; 0 before the first.
    pub live: u64,
    /// Digest of the live rules.
    pub live_digest: Option<[u8; 32]>,
    pub class_bits: Option<u32>,
    /// Numbers and capacities (bytes) of retained generations, newest first, without the live one.
    pub retained: Vec<(u64, usize)>,
    pub links: Vec<LinkState>,
    /// Id of the current version of the program in the current class, when loaded.
    pub program: Option<u32>,
    /// The same for TC.
    pub program_tc: Option<u32>,
    pub strays: Vec<Stray>,
    /// Whether the tables of ports are not what the node's devices ask for.
    pub ports_differ: bool,
    /// Highest number ever seen, retired generations included.
    pub newest: u64,
}

/// What is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub digest: [u8; 32],
    /// The capacity class that the image needs.
    pub class_bits: u32,
    pub attachments: Vec<Attachment>,
    /// How many generations to keep, the live one included.
    pub retain_generations: usize,
    /// How many bytes of kernel memory generations may take; the live one and its parent are always kept.
    pub retain_bytes: Option<u64>,
    /// A generation that is kept whatever else is retained.
    pub keep: Option<u64>,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Empty the candidate slot that a killed process left full.
    ClearCandidate { bits: u32 },
    /// Remove a pin that a killed process or an older version left.
    RemovePin { path: PathBuf },
    /// Remove the programs and the outer map of a class that is no longer used.
    RemoveClass { bits: u32 },
    /// Make sure that the live generation has its pin.
    PinLive,
    /// Make the outer map and load both instances of the program, where they are not there yet.
    LoadPrograms { bits: u32 },
    /// Copy the live generation into the larger class, so that programs can move there without a change of rules.
    CopyLive { from: u32, to: u32 },
    /// Give a link the current program, in one step.
    UpdateLink { device: String },
    /// Detach the program from a device.
    Detach { device: String },
    /// Attach the program to a device.
    Attach { attachment: Attachment },
    /// Write devices, ports and neighbours that the desired generation uses.
    WriteTables,
    /// Fill and freeze a new inner map, and put it into the candidate slot.
    Stage { generation: u64 },
    /// Compare the bytes in the kernel and run the candidate on packets.
    Verify { generation: u64 },
    /// The one write.
    Publish { generation: u64 },
    /// Free an old generation.
    Retire { generation: u64 },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClearCandidate { bits } => write!(f, "clear the candidate left in class {bits}"),
            Self::RemovePin { path } => write!(f, "remove the stray pin {}", path.display()),
            Self::RemoveClass { bits } => write!(f, "remove the unused class {bits}"),
            Self::PinLive => write!(f, "keep the live generation"),
            Self::LoadPrograms { bits } => write!(f, "load the programs for images of {} bytes", 1u64 << bits),
            Self::CopyLive { from, to } => write!(f, "copy the live generation from class {from} to class {to}"),
            Self::UpdateLink { device } => write!(f, "replace the program on {device}"),
            Self::Detach { device } => write!(f, "detach {device}"),
            Self::Attach { attachment: Attachment { device, ports, .. } } => {
                let plural = if ports.len() == 1 { "" } else { "s" };
                write!(f, "attach {device} for port{plural} {}", ports.join(", "))
            }
            Self::WriteTables => write!(f, "write ports and neighbours"),
            Self::Stage { generation } => write!(f, "stage generation {generation}"),
            Self::Verify { generation } => write!(f, "verify generation {generation} in the kernel"),
            Self::Publish { generation } => write!(f, "publish generation {generation}"),
            Self::Retire { generation } => write!(f, "retire generation {generation}"),
        }
    }
}

/// What to do, in order; empty when the kernel holds what is wanted.
pub fn steps(found: &Found, wanted: &Wanted) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut leaving = Vec::new();
    for stray in &found.strays {
        match stray {
            Stray::Candidate { bits } => steps.push(Step::ClearCandidate { bits: *bits }),
            Stray::Pin(path) => steps.push(Step::RemovePin { path: path.clone() }),
            // Links may still run its programs: it goes last.
            Stray::Class { bits } => leaving.push(*bits),
        }
    }
    let rules_change = found.live_digest != Some(wanted.digest);
    // A class never shrinks: the images before this one must still fit for a rollback.
    let bits = found.class_bits.map_or(wanted.class_bits, |b| b.max(wanted.class_bits));
    let class_changes = found.class_bits.is_some_and(|from| from != bits);
    // The class that a killed process was about to enter is entered now: a stray no more.
    leaving.retain(|stray| *stray != bits);
    let program_changes = class_changes || found.program.is_none();

    let (keep, detach): (Vec<_>, Vec<_>) =
        found.links.iter().partition(|link| wanted.attachments.iter().any(|attachment| attachment.is(link)));
    let updates: Vec<_> = keep
        .iter()
        .filter(|link| program_changes || Some(link.program) != if link.tc { found.program_tc } else { found.program })
        .collect();
    let attaches: Vec<_> =
        wanted.attachments.iter().filter(|attachment| !keep.iter().any(|link| attachment.is(link))).collect();
    let replaced = |link: &&&LinkState| attaches.iter().any(|attachment| attachment.replaces(link));

    let work = rules_change || found.ports_differ || !steps.is_empty() || !leaving.is_empty();
    if !(work || program_changes || !updates.is_empty() || !attaches.is_empty() || !detach.is_empty()) {
        steps.extend(retire(found, wanted, found.live));
        return steps;
    }
    if found.live != 0 {
        steps.push(Step::PinLive);
    }
    steps.push(Step::LoadPrograms { bits });
    if let (true, Some(from)) = (class_changes, found.class_bits) {
        steps.push(Step::CopyLive { from, to: bits });
        leaving.push(from);
    }
    steps.extend(updates.iter().map(|link| Step::UpdateLink { device: link.device.clone() }));
    steps.push(Step::WriteTables);
    steps.extend(detach.iter().filter(replaced).map(|link| Step::Detach { device: link.device.clone() }));
    steps.extend(attaches.iter().map(|a| Step::Attach { attachment: (*a).clone() }));
    let mut live = found.live;
    if rules_change {
        live = found.newest.max(found.live) + 1;
        steps.push(Step::Stage { generation: live });
        steps.push(Step::Verify { generation: live });
        steps.push(Step::Publish { generation: live });
    }
    steps.extend(detach.iter().filter(|l| !replaced(l)).map(|link| Step::Detach { device: link.device.clone() }));
    leaving.sort_unstable();
    leaving.dedup();
    steps.extend(leaving.into_iter().map(|bits| Step::RemoveClass { bits }));
    steps.extend(retire(found, wanted, live));
    steps
}

/// Which retained generations go, oldest first, once `live` is live.
fn retire(found: &Found, wanted: &Wanted, live: u64) -> Vec<Step> {
    let mut kept = 1;
    let mut bytes = 0u64;
    let mut retire = Vec::new();
    let published = live != found.live && found.live != 0;
    let mut older: Vec<(u64, usize)> = Vec::new();
    if published {
        older.push((found.live, found.class_bits.map_or(0, |b| 1 << b)));
    }
    older.extend(&found.retained);
    for (number, capacity) in older {
        kept += 1;
        bytes = bytes.saturating_add(capacity as u64);
        let over_budget = kept > 2 && wanted.retain_bytes.is_some_and(|budget| bytes > budget);
        if (kept > wanted.retain_generations || over_budget) && wanted.keep != Some(number) {
            retire.push(Step::Retire { generation: number });
        }
    }
    retire.reverse();
    retire
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The port `lan` on the device `lan0`, and so on.
    fn port(name: &str, index: u32) -> Attachment {
        Attachment { device: format!("{name}0"), index, mode: Mode::Auto, ports: vec![name.into()] }
    }

    fn link(name: &str, index: u32, program: u32) -> LinkState {
        LinkState { device: format!("{name}0"), index, program, tc: false }
    }

    fn wanted(digest: u8, attachments: &[Attachment]) -> Wanted {
        Wanted {
            digest: [digest; 32],
            class_bits: 20,
            attachments: attachments.to_vec(),
            retain_generations: 3,
            retain_bytes: None,
            keep: None,
        }
    }

    fn running() -> Found {
        Found {
            live: 7,
            live_digest: Some([1; 32]),
            class_bits: Some(20),
            retained: vec![(6, 1 << 20), (5, 1 << 20)],
            links: vec![link("lan", 3, 40)],
            program: Some(40),
            program_tc: None,
            strays: vec![],
            ports_differ: false,
            newest: 7,
        }
    }

    fn check(found: &Found, wanted: &Wanted, expected: &[&str]) {
        let steps: Vec<String> = steps(found, wanted).iter().map(ToString::to_string).collect();
        assert_eq!(steps, expected);
    }

    #[test]
    fn first_apply_attaches_before_it_publishes() {
        check(
            &Found::default(),
            &wanted(1, &[port("lan", 3)]),
            &[
                "load the programs for images of 1048576 bytes",
                "write ports and neighbours",
                "attach lan0 for port lan",
                "stage generation 1",
                "verify generation 1 in the kernel",
                "publish generation 1",
            ],
        );
    }

    #[test]
    fn nothing_to_do_is_no_step() {
        check(&running(), &wanted(1, &[port("lan", 3)]), &[]);
    }

    #[test]
    fn a_change_of_rules_retires_the_oldest() {
        check(
            &running(),
            &wanted(2, &[port("lan", 3)]),
            &[
                "keep the live generation",
                "load the programs for images of 1048576 bytes",
                "write ports and neighbours",
                "stage generation 8",
                "verify generation 8 in the kernel",
                "publish generation 8",
                "retire generation 5",
            ],
        );
    }

    #[test]
    fn a_larger_class_moves_every_link_before_the_rules_change() {
        let mut wanted = wanted(2, &[port("lan", 3)]);
        wanted.class_bits = 25;
        check(
            &running(),
            &wanted,
            &[
                "keep the live generation",
                "load the programs for images of 33554432 bytes",
                "copy the live generation from class 20 to class 25",
                "replace the program on lan0",
                "write ports and neighbours",
                "stage generation 8",
                "verify generation 8 in the kernel",
                "publish generation 8",
                "remove the unused class 20",
                "retire generation 5",
            ],
        );
    }

    #[test]
    fn a_class_never_shrinks() {
        let mut found = running();
        found.class_bits = Some(25);
        check(&found, &wanted(1, &[port("lan", 3)]), &[]);
    }

    #[test]
    fn a_replaced_device_and_a_dropped_port() {
        let mut found = running();
        found.links.push(link("old", 9, 40));
        check(
            &found,
            &wanted(1, &[port("lan", 4)]),
            &[
                "keep the live generation",
                "load the programs for images of 1048576 bytes",
                "write ports and neighbours",
                "detach lan0",
                "attach lan0 for port lan",
                "detach old0",
            ],
        );
    }

    #[test]
    fn ports_of_one_device_share_its_link() {
        let mut both = port("lan", 3);
        both.ports.push("dc".into());
        let mut found = running();
        check(&found, &wanted(1, &[both.clone()]), &[]);
        found.links.clear();
        let attaches = |step: &Step| matches!(step, Step::Attach { .. }).then(|| step.to_string());
        let steps: Vec<_> = steps(&found, &wanted(1, &[both])).iter().filter_map(attaches).collect();
        assert_eq!(steps, ["attach lan0 for ports lan, dc"]);
    }

    #[test]
    fn a_renamed_device_is_attached_by_its_new_name() {
        let mut renamed = port("lan", 3);
        renamed.device = "wan0".into();
        let moves = |step: &Step| matches!(step, Step::Attach { .. } | Step::Detach { .. }).then(|| step.to_string());
        let steps: Vec<_> = steps(&running(), &wanted(1, &[renamed])).iter().filter_map(moves).collect();
        assert_eq!(steps, ["detach lan0", "attach wan0 for port lan"]);
    }

    #[test]
    fn ports_that_moved_are_written_though_the_rules_stay() {
        check(
            &Found { ports_differ: true, ..running() },
            &wanted(1, &[port("lan", 3)]),
            &[
                "keep the live generation",
                "load the programs for images of 1048576 bytes",
                "write ports and neighbours",
            ],
        );
    }

    #[test]
    fn what_a_killed_process_left_is_removed_first() {
        let mut found = running();
        found.strays =
            vec![Stray::Candidate { bits: 20 }, Stray::Pin("/bpf/generation/8".into()), Stray::Class { bits: 21 }];
        check(
            &found,
            &wanted(1, &[port("lan", 3)]),
            &[
                "clear the candidate left in class 20",
                "remove the stray pin /bpf/generation/8",
                "keep the live generation",
                "load the programs for images of 1048576 bytes",
                "write ports and neighbours",
                "remove the unused class 21",
            ],
        );
    }

    #[test]
    fn a_class_that_a_killed_process_began_to_enter_is_entered_not_removed() {
        let mut wanted = wanted(2, &[port("lan", 3)]);
        wanted.class_bits = 25;
        let mut found = running();
        found.strays = vec![Stray::Class { bits: 25 }, Stray::Class { bits: 22 }];
        let removed: Vec<_> =
            steps(&found, &wanted).into_iter().filter(|s| matches!(s, Step::RemoveClass { .. })).collect();
        assert_eq!(removed, [Step::RemoveClass { bits: 20 }, Step::RemoveClass { bits: 22 }]);
    }

    #[test]
    fn what_would_be_rolled_back_to_is_kept() {
        let mut wanted = wanted(2, &[port("lan", 3)]);
        wanted.keep = Some(5);
        assert!(!steps(&running(), &wanted).iter().any(|s| matches!(s, Step::Retire { .. })));
    }

    #[test]
    fn the_memory_budget_keeps_the_parent() {
        let mut wanted = wanted(2, &[port("lan", 3)]);
        wanted.retain_bytes = Some(1);
        let retired: Vec<_> =
            steps(&running(), &wanted).into_iter().filter(|s| matches!(s, Step::Retire { .. })).collect();
        assert_eq!(retired, [Step::Retire { generation: 5 }, Step::Retire { generation: 6 }]);
    }
}
