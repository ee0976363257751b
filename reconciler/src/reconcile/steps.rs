//! The reconciler: what to do, in which order, so that the kernel holds what the policies say.
//!
//! [`steps`] is pure: facts in, an ordered list out, no choice left to whoever executes it. The order is the safety
//! argument of the whole system: everything that can fail comes before [`Step::Publish`], and what comes after it only
//! frees memory. A kill between any two steps leaves the old generation live, or the new one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use fib::packet::Tags;

use crate::kernel::attach::{Hook, Mode, Target};
use crate::kernel::layout::OtherLayout;
use crate::kernel::link::Link;
use crate::kernel::observe::{LinkState, Stray};
use crate::kernel::program::{Entry, Stages};

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
    /// The device that sends and receives them.
    pub link: Link,
    pub tags: Tags,
    /// The device takes tags out of frames before XDP sees them, and there are VLANs on it: only TC tells its ports apart.
    pub hides_tags: bool,
}

/// A device that the program is to be attached to, once, for all ports that it carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    pub target: Target,
    /// The ports that it is for, in the order of their names; at least one.
    pub ports: Vec<String>,
}

impl Attachment {
    /// Whether this link is what is wanted, whatever program it runs. `auto` decides when it attaches, and stays with that.
    fn is(&self, Held { link, mode }: &Held) -> bool {
        let Target { device, index, mode: wanted, not_native, only_tc, .. } = &self.target;
        // The oldest layout named links after ports.
        let same = *index == link.index && (link.older || *device == link.device);
        same && match wanted {
            Mode::Auto if only_tc.is_some() => link.hook == Hook::Tc,
            Mode::Auto => not_native.is_none() || *mode != Some(Mode::Native),
            Mode::Tc => link.hook == Hook::Tc,
            // Where a link's mode cannot be seen, it is taken to be right.
            Mode::Native | Mode::Generic => link.hook == Hook::Xdp && mode.is_none_or(|mode| mode == *wanted),
        }
    }

    /// Whether this link holds the attachment's device.
    fn concerns(&self, link: &LinkState) -> bool {
        self.target.index == link.index || !link.older && self.target.device == link.device
    }
}

/// A link and how its program is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub link: LinkState,
    /// `None`: it cannot be seen, or nothing is attached.
    pub mode: Option<Mode>,
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
    pub links: Vec<Held>,
    /// Ids of the current version of the programs in the current class, as far as they are loaded.
    pub programs: BTreeMap<Entry, u32>,
    /// What the programs can do that are loaded; both kinds while the node changes from one to the other.
    pub stages: BTreeSet<Stages>,
    /// What the live image needs.
    pub live_stages: Stages,
    /// Older layouts, oldest first.
    pub layouts: Vec<OtherLayout>,
    pub strays: Vec<Stray>,
    /// Pins that are gone under the program that still runs.
    pub lost: Vec<PathBuf>,
    /// The live generation's pin is gone, or holds another map.
    pub live_unpinned: bool,
    /// Whether the tables of ports are not what the node's devices ask for.
    pub ports_differ: bool,
    /// Whether the table of neighbours is not what the kernel's own says.
    pub neighbours_differ: bool,
    /// Highest number ever seen, retired generations included.
    pub newest: u64,
}

/// What is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub digest: [u8; 32],
    /// The capacity class that the image needs.
    pub class_bits: u32,
    /// What the image needs of the programs.
    pub stages: Stages,
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
    /// Pin again what lost its pin under the program that still runs.
    RestorePins { bits: u32 },
    /// Empty the candidate slot that a killed process left full.
    ClearCandidate { bits: u32 },
    /// Remove a pin that a killed process or an older version left.
    RemovePin { path: PathBuf },
    /// Remove the programs for routes alone, which those with every stage have replaced.
    RemovePrograms { bits: u32 },
    /// Remove the programs and the outer map of a class that is no longer used.
    RemoveClass { bits: u32 },
    /// Make sure that the live generation has its pin.
    PinLive,
    /// Make the outer map and load both instances of the program, where they are not there yet.
    LoadPrograms { bits: u32, stages: Stages },
    /// Copy the live generation into the larger class, so that programs can move there without a change of rules.
    CopyLive { from: u32, to: u32 },
    /// Give a link the current program, in one step.
    UpdateLink { link: LinkState },
    /// Take a link of an older layout over: pin it in this one, and give it this one's program, in one step.
    TakeLink { link: LinkState, device: String },
    /// Detach the program from a device.
    Detach { link: LinkState },
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
    /// Remove an older layout and all that it still holds.
    RemoveLayout { layout: OtherLayout },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RestorePins { bits } => write!(f, "pin the maps of class {bits} again"),
            Self::ClearCandidate { bits } => write!(f, "clear the candidate left in class {bits}"),
            Self::RemovePin { path } => write!(f, "remove the stray pin {}", path.display()),
            Self::RemoveClass { bits } => write!(f, "remove the unused class {bits}"),
            Self::PinLive => write!(f, "keep the live generation"),
            Self::LoadPrograms { bits, stages } => {
                let with = if *stages == Stages::All { ", with filters and services" } else { "" };
                write!(f, "load the programs for images of {} bytes{with}", 1u64 << bits)
            }
            Self::RemovePrograms { bits } => write!(f, "remove the programs for routes alone of class {bits}"),
            Self::CopyLive { from, to } => write!(f, "copy the live generation from class {from} to class {to}"),
            Self::UpdateLink { link } => write!(f, "replace the program on {}", link.device),
            Self::TakeLink { device, .. } => write!(f, "replace the program of the older layout on {device}"),
            Self::Detach { link } => write!(f, "detach {}", link.device),
            Self::RemoveLayout { layout: OtherLayout { version: Some(version), .. } } => {
                write!(f, "remove the older layout {version}")
            }
            Self::RemoveLayout { .. } => write!(f, "remove the oldest layout"),
            Self::Attach { attachment: Attachment { target: Target { device, .. }, ports } } => {
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
    if let (false, Some(bits)) = (found.lost.is_empty(), found.class_bits) {
        steps.push(Step::RestorePins { bits });
    }
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
    // Nor do the programs lose a stage: the live image and those before it may need it.
    let stages = found.stages.last().copied().unwrap_or_default().max(found.live_stages).max(wanted.stages);
    let program_changes = class_changes || !found.stages.contains(&stages) || !found.programs.contains_key(&Entry::Xdp);
    let replaced = !class_changes && stages == Stages::All && found.stages.contains(&Stages::Routes);

    let mut keep: Vec<&Held> = Vec::new();
    let mut detach: Vec<&LinkState> = Vec::new();
    let mut takes: Vec<Step> = Vec::new();
    for held in &found.links {
        let link = &held.link;
        let taken =
            || found.links.iter().any(|h| !h.link.older && h.link.index == link.index && h.link.hook == link.hook);
        match wanted.attachments.iter().find(|attachment| attachment.is(held)) {
            // A killed process has taken it already.
            _ if link.older && taken() => {}
            Some(attachment) if link.older => {
                let device = attachment.target.device.clone();
                takes.push(Step::TakeLink { link: link.clone(), device });
                keep.push(held);
            }
            Some(_) => keep.push(held),
            None => detach.push(link),
        }
    }
    let is_current = |link: &LinkState| {
        let runs = |entry| found.programs.get(&entry) == Some(&link.program);
        match link.hook {
            Hook::Xdp => runs(Entry::Xdp) || runs(Entry::XdpFrags),
            Hook::Tc => runs(Entry::Tc),
        }
    };
    let updates: Vec<_> = keep
        .iter()
        .map(|held| &held.link)
        .filter(|link| !link.older && (program_changes || !is_current(link)))
        .collect();
    let attaches: Vec<_> =
        wanted.attachments.iter().filter(|attachment| !keep.iter().any(|held| attachment.is(held))).collect();
    // A device has two places for programs. What stands where a new link is to be goes before it; what stands in the other
    // place goes when the new link is there, so that no packet is missed.
    let in_the_way = |link: &LinkState| {
        attaches.iter().any(|attachment| {
            let Target { mode, not_native, only_tc, .. } = &attachment.target;
            let tc = *mode == Mode::Tc || *mode == Mode::Auto && (not_native.is_some() || only_tc.is_some());
            // Where `auto` ends is not known yet.
            let same_place = *mode == Mode::Auto && !tc || tc == (link.hook == Hook::Tc);
            attachment.concerns(link) && same_place
        })
    };
    let (before, after): (Vec<_>, Vec<_>) = detach.into_iter().partition(|link| in_the_way(link));

    let tables_differ = found.ports_differ || found.neighbours_differ;
    let work = rules_change
        || tables_differ
        || found.live_unpinned
        || !steps.is_empty()
        || !leaving.is_empty()
        || replaced
        || !found.layouts.is_empty();
    let moves =
        !(updates.is_empty() && takes.is_empty() && attaches.is_empty() && before.is_empty() && after.is_empty());
    if !(work || program_changes || moves) {
        steps.extend(retire(found, wanted, found.live));
        return steps;
    }
    if found.live != 0 {
        steps.push(Step::PinLive);
    }
    steps.push(Step::LoadPrograms { bits, stages });
    if let (true, Some(from)) = (class_changes, found.class_bits) {
        // Under somebody else's map nothing is live that could be copied.
        if found.live != 0 {
            steps.push(Step::CopyLive { from, to: bits });
        }
        leaving.push(from);
    }
    steps.extend(updates.iter().map(|link| Step::UpdateLink { link: (*link).clone() }));
    steps.push(Step::WriteTables);
    steps.extend(before.into_iter().map(|link| Step::Detach { link: link.clone() }));
    steps.extend(attaches.iter().map(|a| Step::Attach { attachment: (*a).clone() }));
    let mut live = found.live;
    if rules_change {
        live = found.newest.max(found.live) + 1;
        steps.push(Step::Stage { generation: live });
        steps.push(Step::Verify { generation: live });
        steps.push(Step::Publish { generation: live });
    }
    // This layout's program decides by this layout's generation, which is complete now.
    steps.append(&mut takes);
    steps.extend(after.into_iter().map(|link| Step::Detach { link: link.clone() }));
    steps.extend(replaced.then_some(Step::RemovePrograms { bits }));
    leaving.sort_unstable();
    leaving.dedup();
    steps.extend(leaving.into_iter().map(|bits| Step::RemoveClass { bits }));
    steps.extend(retire(found, wanted, live));
    steps.extend(found.layouts.iter().map(|layout| Step::RemoveLayout { layout: layout.clone() }));
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
        let device = format!("{name}0");
        let target =
            Target { device, index, mode: Mode::Auto, mtu: 1500, driver: None, not_native: None, only_tc: None };
        Attachment { target, ports: vec![name.into()] }
    }

    fn link(name: &str, index: u32, program: u32) -> Held {
        let (device, pin) = (format!("{name}0"), format!("/bpf/link/xdp/{name}0").into());
        let link = LinkState { device, index, program, hook: Hook::Xdp, pin, older: false };
        Held { link, mode: Some(Mode::Native) }
    }

    fn wanted(digest: u8, attachments: &[Attachment]) -> Wanted {
        Wanted {
            digest: [digest; 32],
            class_bits: 20,
            stages: Stages::Routes,
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
            programs: [(Entry::Xdp, 40), (Entry::XdpFrags, 41), (Entry::Tc, 42)].into(),
            stages: [Stages::Routes].into(),
            live_stages: Stages::Routes,
            layouts: vec![],
            strays: vec![],
            lost: Vec::new(),
            live_unpinned: false,
            ports_differ: false,
            neighbours_differ: false,
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
    fn programs_get_filters_and_services_before_the_first_rules_that_have_them() {
        let mut wanted = wanted(2, &[port("lan", 3)]);
        wanted.stages = Stages::All;
        let steps = [
            "keep the live generation",
            "load the programs for images of 1048576 bytes, with filters and services",
            "replace the program on lan0",
            "write ports and neighbours",
            "stage generation 8",
            "verify generation 8 in the kernel",
            "publish generation 8",
            "remove the programs for routes alone of class 20",
            "retire generation 5",
        ];
        check(&running(), &wanted, &steps);
        // Killed when they had been loaded, or when the links had them.
        let mut found = running();
        found.stages.insert(Stages::All);
        found.programs = [(Entry::Xdp, 50)].into();
        check(&found, &wanted, &steps);
        found.links = vec![link("lan", 3, 50)];
        check(&found, &wanted, &[&steps[..2], &steps[3..]].concat());
    }

    #[test]
    fn programs_keep_the_stages_that_an_image_in_the_kernel_may_need() {
        let mut found = running();
        found.stages = [Stages::All].into();
        check(&found, &wanted(1, &[port("lan", 3)]), &[]);
        let steps = |found: &Found| {
            let steps = steps(found, &wanted(2, &[port("lan", 3)]));
            steps.iter().map(ToString::to_string).find(|step| step.starts_with("load"))
        };
        let all = Some("load the programs for images of 1048576 bytes, with filters and services".to_owned());
        assert_eq!(steps(&found), all);
        // Another version has pinned none of this one's, and what is live has filters until the publish.
        (found.programs, found.stages) = Default::default();
        found.live_stages = Stages::All;
        assert_eq!(steps(&found), all);
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
        renamed.target.device = "wan0".into();
        assert_eq!(moves(&running(), &[renamed]), ["detach lan0", "attach wan0 for port lan"]);
    }

    /// How attachments move from what `found` has to these.
    fn moves(found: &Found, attachments: &[Attachment]) -> Vec<String> {
        let is_move = |step: &Step| {
            matches!(step, Step::Attach { .. } | Step::Detach { .. } | Step::UpdateLink { .. } | Step::TakeLink { .. })
        };
        let steps = steps(found, &wanted(1, attachments));
        steps.iter().filter(|step| is_move(step)).map(ToString::to_string).collect()
    }

    #[test]
    fn a_device_changes_its_mode_without_a_gap_where_the_places_differ() {
        let mut port = port("lan", 3);
        port.target.mode = Mode::Tc;
        assert_eq!(moves(&running(), &[port.clone()]), ["attach lan0 for port lan", "detach lan0"]);
        port.target.mode = Mode::Generic;
        assert_eq!(moves(&running(), &[port.clone()]), ["detach lan0", "attach lan0 for port lan"]);
        port.target.mode = Mode::Auto;
        port.target.not_native = Some("nothing can leave by lo".into());
        assert_eq!(moves(&running(), &[port]), ["attach lan0 for port lan", "detach lan0"]);
    }

    #[test]
    fn auto_stays_with_what_it_decided() {
        for (hook, mode, program) in
            [(Hook::Xdp, Mode::Generic, 40), (Hook::Xdp, Mode::Native, 41), (Hook::Tc, Mode::Tc, 42)]
        {
            let mut found = running();
            found.links[0].mode = Some(mode);
            (found.links[0].link.hook, found.links[0].link.program) = (hook, program);
            assert_eq!(moves(&found, &[port("lan", 3)]), [""; 0]);
            // A program of another version, or none at all where somebody has removed a filter.
            for other in [39, 0] {
                found.links[0].link.program = other;
                assert_eq!(moves(&found, &[port("lan", 3)]), ["replace the program on lan0"]);
            }
        }
    }

    /// A link and a class in an older layout: nothing of this one is there yet.
    fn older() -> Found {
        let mut lan = link("lan", 3, 20);
        // Named after the port, as the oldest layout does.
        lan.link.device = "lan".into();
        lan.link.older = true;
        let layout = OtherLayout { directory: "/bpf".into(), version: None, written_by: None, newest: 4 };
        Found { links: vec![lan], layouts: vec![layout], newest: 4, ..Found::default() }
    }

    #[test]
    fn links_of_an_older_layout_are_taken_over_after_the_publish() {
        check(
            &older(),
            &wanted(1, &[port("lan", 3)]),
            &[
                "load the programs for images of 1048576 bytes",
                "write ports and neighbours",
                "stage generation 5",
                "verify generation 5 in the kernel",
                "publish generation 5",
                "replace the program of the older layout on lan0",
                "remove the oldest layout",
            ],
        );
    }

    #[test]
    fn a_move_to_this_layout_goes_on_where_it_was_killed() {
        let mut published = running();
        published.links = older().links;
        published.layouts = older().layouts;
        check(
            &published,
            &wanted(1, &[port("lan", 3)]),
            &[
                "keep the live generation",
                "load the programs for images of 1048576 bytes",
                "write ports and neighbours",
                "replace the program of the older layout on lan0",
                "remove the oldest layout",
            ],
        );
        // Pinned in both layouts, with the older program.
        published.links.push(link("lan", 3, 20));
        assert_eq!(moves(&published, &[port("lan", 3)]), ["replace the program on lan0"]);
        published.links[1].link.program = 40;
        assert_eq!(moves(&published, &[port("lan", 3)]), [""; 0]);
    }

    #[test]
    fn a_link_of_an_older_layout_that_is_not_wanted_goes_after_the_publish() {
        let mut found = older();
        found.links.push(Held {
            link: LinkState { index: 9, device: "old".into(), ..found.links[0].link.clone() },
            mode: None,
        });
        let steps: Vec<_> = steps(&found, &wanted(1, &[port("lan", 3)])).iter().map(ToString::to_string).collect();
        assert_eq!(
            steps[4..],
            [
                "publish generation 5",
                "replace the program of the older layout on lan0",
                "detach old",
                "remove the oldest layout"
            ]
        );
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
