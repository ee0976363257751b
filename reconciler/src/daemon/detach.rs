//! Taking everything out of the kernel again.

use std::collections::BTreeSet;

use crate::kernel::{attach, layout};

use super::journal::{Entry, Event};
use super::node::{Node, NodeError, operator, unix_ms};
use super::settled;

/// What was taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removed {
    pub devices: usize,
    pub generations: usize,
}

/// Detaches every device, then frees programs, maps and generations, those of older layouts included. Works on what a killed
/// process left, too.
pub fn detach(node: &Node) -> Result<Removed, NodeError> {
    let pins = &node.pins;
    node.refuse_newer_layout()?;
    let state = |source| NodeError::State { path: node.config.state_dir.clone(), source };
    // First: a node that was to have no rules must not come up with them.
    settled::forget(node).map_err(state)?;
    if !pins.exist() && layout::others(pins)?.is_empty() {
        return Ok(Removed { devices: 0, generations: 0 });
    }
    let lock = node.lock()?;
    let observed = node.observe()?;
    for link in &observed.links {
        attach::detach(&link.pin)?;
    }
    // A killed migration leaves a link pinned in two layouts.
    let devices: BTreeSet<_> = observed.links.iter().map(|link| (link.index, link.hook)).collect();
    let generations = pins.generation_numbers()?.len();
    for layout in &observed.layouts {
        layout::remove(pins, &layout.directory)?;
    }
    pins.remove_all()?;
    drop(lock);
    // The directory itself may be the operator's.
    let _ = std::fs::remove_dir(pins.place());
    let entry = Entry { generation: observed.live_number(), by: operator(), ..Entry::new(Event::Detached, unix_ms()) };
    node.journal.append(&entry).map_err(state)?;
    Ok(Removed { devices: devices.len(), generations })
}
