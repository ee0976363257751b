//! Taking everything out of the kernel again.

use crate::kernel::attach;

use super::journal::{Entry, Event};
use super::node::{Node, NodeError, operator, unix_ms};

/// What was taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removed {
    pub devices: usize,
    pub generations: usize,
}

/// Detaches every device, then frees programs, maps and generations. Works on what a killed process left, too.
pub fn detach(node: &Node) -> Result<Removed, NodeError> {
    if !node.pins.exist() {
        return Ok(Removed { devices: 0, generations: 0 });
    }
    let lock = node.lock()?;
    let pins = &node.pins;
    let observed = node.observe()?;
    let devices = pins.links()?;
    for device in &devices {
        attach::detach(pins, device)?;
    }
    for bits in pins.classes()? {
        pins.remove_directory(&pins.class(bits))?;
    }
    let generations = pins.generation_numbers()?.len();
    for directory in ["generation", "link", "maps"] {
        pins.remove_directory(&pins.root().join(directory))?;
    }
    drop(lock);
    // The directory itself may be the operator's.
    let _ = std::fs::remove_dir(pins.root());
    let entry = Entry { generation: observed.live_number(), by: operator(), ..Entry::new(Event::Detached, unix_ms()) };
    node.journal.append(&entry).map_err(|source| NodeError::State { path: node.config.state_dir.clone(), source })?;
    Ok(Removed { devices: devices.len(), generations })
}
