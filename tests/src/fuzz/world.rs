//! The good image and the node that the targets share.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use fib::packet::Tags;
use fib::{Image, Ingress, Neighbour, Node, Reach, ReachWords};
use wayleave::compile::View;

use crate::corpus::Theme;

const TEXT: &str = include_str!("world.packets");

/// One image, what the node knows beside it, and the ports that packets come in by.
#[derive(Debug)]
pub(super) struct World {
    pub(super) view: View<'static>,
    /// By VLAN identifiers, outer and inner.
    ingress: BTreeMap<[u16; 2], Ingress>,
    reach: BTreeMap<u32, Reach>,
}

pub(super) static WORLD: LazyLock<World> = LazyLock::new(|| {
    let theme = Theme::parse("world.packets", TEXT).unwrap_or_else(|error| panic!("{error:#}"));
    // Kept for as long as the process runs: a look at it must cost a fuzzed packet nothing.
    let image: &'static [u8] = theme.image.bytes().to_vec().leak();
    let view = View::new(image).unwrap_or_else(|error| panic!("{error}"));
    let reach = |hop: wayleave::compile::view::NextHopView| {
        (hop.id, theme.node.reach(hop.name, hop.port, &[]).unwrap_or_else(|error| panic!("{error:#}")))
    };
    let reach = view.next_hops().map(reach).collect();
    let ingress = theme.node.ingress(0, |_| 0).map(|(vids, port)| (halves(vids), port)).collect();
    World { view, ingress, reach }
});

impl World {
    /// The MAC of the port that takes frames with these VLAN identifiers.
    pub(super) fn port(&self, vids: [u16; 2]) -> Option<[u8; 6]> {
        self.ingress.get(&vids)?.mac.to_le_bytes().first_chunk().copied()
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the low half is meant")]
fn halves(vids: u32) -> [u16; 2] {
    [(vids >> 16) as u16, vids as u16]
}

impl Node for World {
    fn ingress(&self, tags: Tags) -> Option<Ingress> {
        self.ingress.get(&halves(tags.vids())).copied()
    }

    fn reach(&self, id: u32) -> ReachWords {
        self.reach.get(&id).copied().unwrap_or(Reach::Unknown).encode()
    }

    fn ask<I: Image + ?Sized>(&self, _image: &I, _at: u32, _port: u32) -> Option<Neighbour> {
        None
    }
}

/// The policy of the good image, as a document: a seed for the policy target.
pub(super) fn world_policy() -> String {
    let body = TEXT.lines().skip_while(|line| *line != "policy:").skip(1);
    body.take_while(|line| line.starts_with(' ')).map(|line| format!("{}\n", &line[2..])).collect()
}
