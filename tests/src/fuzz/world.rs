//! The good image and the node that the targets share.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use fib::packet::Tags;
use fib::{Image, Ingress, Neighbour, Node, Reach, ReachWords};
use wayleave::compile::View;

use crate::corpus::Theme;
use crate::corpus::node::word;

const TEXT: &str = include_str!("world.packets");

/// One image, what the node knows beside it, and the MAC of the port that packets come in by.
#[derive(Debug)]
pub(super) struct World {
    pub(super) view: View<'static>,
    pub(super) ingress: [u8; 6],
    neighbours: BTreeMap<u32, Neighbour>,
}

pub(super) static WORLD: LazyLock<World> = LazyLock::new(|| {
    let theme = Theme::parse("world.packets", TEXT).unwrap_or_else(|error| panic!("{error:#}"));
    // Kept for as long as the process runs: a look at it must cost a fuzzed packet nothing.
    let image: &'static [u8] = theme.image.bytes().to_vec().leak();
    let view = View::new(image).unwrap_or_else(|error| panic!("{error}"));
    let known = |hop: &wayleave::compile::view::NextHopView| {
        let neighbour = theme.node.neighbour(hop.name, hop.port).unwrap_or_else(|error| panic!("{error:#}"));
        neighbour.map(|neighbour| (hop.id, neighbour))
    };
    let neighbours = view.next_hops().filter_map(|hop| known(&hop)).collect();
    World { view, ingress: theme.node.ports[0].mac.0, neighbours }
});

impl Node for World {
    fn ingress(&self, tags: Tags) -> Option<Ingress> {
        (tags.vids() == 0).then(|| Ingress { mac: word(crate::Mac(self.ingress)), port: 0 })
    }

    fn reach(&self, id: u32) -> ReachWords {
        self.neighbours.get(&id).map_or(Reach::Unknown, |neighbour| Reach::Up(*neighbour)).encode()
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
