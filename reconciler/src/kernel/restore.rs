//! Pins that somebody removed under a program that still runs: found again from the program, which holds its maps.
//!
//! Nothing that packets meet is lost with a pin. To make a map anew beside the one that the program reads would be worse than
//! no pin: whatever is written there, no packet meets it.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;

use super::pins::{Pins, names};
use super::program::{Entry, LIVE, Stages, candidate_pins, load_object, map_names};
use super::sys::{self, GENERATIONS};
use super::{KernelError, attach};

/// Bytes of a name that the kernel keeps.
const NAME_BYTES_MAX: usize = 15;

/// Ids of the live programs: those that are pinned in a class, else the one that the first link runs, if it is of that class.
fn programs(pins: &Pins, bits: Option<u32>) -> Result<Vec<u32>, KernelError> {
    let mut programs = Vec::new();
    if let Some(bits) = bits {
        let class = pins.class(bits);
        for name in names(&class)?.iter().filter(|name| name.starts_with("live-")) {
            if let Some(program) = sys::pinned(&class.join(name))? {
                programs.push(sys::program_id(program.as_fd())?);
            }
        }
    }
    if programs.is_empty() {
        for (_, pin) in pins.links()? {
            let Some(facts) = attach::facts(&pin)?.filter(|facts| facts.program != 0) else { continue };
            let name = sys::program_name(facts.program)?;
            if name.is_some_and(|name| Entry::ALL.into_iter().any(|entry| entry.is_called(&name))) {
                programs.push(facts.program);
                break;
            }
        }
        // While the class changes, links still run a program of the one before, whose maps are no match.
        if bits.is_some() && class_of(&programs)? != bits {
            programs.clear();
        }
    }
    Ok(programs)
}

/// A map of the live programs by its name.
fn map_of(programs: &[u32], name: &str) -> Result<Option<OwnedFd>, KernelError> {
    let kept = &name[..name.len().min(NAME_BYTES_MAX)];
    for program in programs {
        if let Some((_, map)) = sys::maps_of_program(*program)?.into_iter().find(|(name, _)| name == kept) {
            return Ok(Some(map));
        }
    }
    Ok(None)
}

/// The class of the program that is attached, where the class has no directory any more.
pub(super) fn class(pins: &Pins) -> Result<Option<u32>, KernelError> {
    class_of(&programs(pins, None)?)
}

fn class_of(programs: &[u32]) -> Result<Option<u32>, KernelError> {
    let Some(generations) = map_of(programs, GENERATIONS)? else { return Ok(None) };
    let Some(live) = sys::slot(generations.as_fd(), LIVE)? else { return Ok(None) };
    let (_, capacity) = sys::map_facts(sys::map_by_id(live)?.as_fd())?;
    Ok(Some(capacity.trailing_zeros()))
}

/// The outer map of a class: by its pin, else by the live program.
pub(super) fn generations(pins: &Pins, bits: u32) -> Result<Option<OwnedFd>, KernelError> {
    match sys::pinned(&pins.generations(bits))? {
        Some(generations) => Ok(Some(generations)),
        None => map_of(&programs(pins, Some(bits))?, GENERATIONS),
    }
}

/// One of the maps that outlive generations and programs: by its pin, else by a live program.
pub(super) fn map(pins: &Pins, name: &'static str) -> Result<OwnedFd, KernelError> {
    if let Some(map) = sys::pinned(&pins.map(name))? {
        return Ok(map);
    }
    for bits in pins.classes()?.into_iter().map(Some).chain([None]) {
        if let Some(map) = map_of(&programs(pins, bits)?, name)? {
            return Ok(map);
        }
    }
    Err(KernelError::NoMap { map: name })
}

/// Pins that the live class needs and does not have; none where no program was loaded yet that could miss them.
pub(super) fn lost(pins: &Pins, bits: u32) -> Result<Vec<PathBuf>, KernelError> {
    if programs(pins, Some(bits))?.is_empty() {
        return Ok(Vec::new());
    }
    let mut paths = vec![pins.generations(bits)];
    let stages = stages(pins, bits);
    paths.extend(map_names(stages.unwrap_or_default()).map(|name| pins.map(name)));
    // Another version's program has another name, and is loaded anyway.
    if let Some(stages) = stages {
        paths.extend(candidate_pins(pins, bits, stages));
    }
    paths.retain(|path| !path.exists());
    Ok(paths)
}

/// What the live programs of this version can do.
fn stages(pins: &Pins, bits: u32) -> Option<Stages> {
    let is_there = |stages: &Stages| pins.class(bits).join(Entry::Xdp.live_pin(*stages)).exists();
    Stages::ALL.into_iter().rev().find(is_there)
}

/// Pins again what [`lost`] found. What no program uses yet holds nothing, and is made anew.
pub fn restore(pins: &Pins, bits: u32) -> Result<(), KernelError> {
    let class = pins.class(bits);
    std::fs::create_dir_all(&class).map_err(|source| KernelError::Directory { path: class.clone(), source })?;
    let programs = programs(pins, Some(bits))?;
    let stages = stages(pins, bits).unwrap_or_default();
    let maps = map_names(stages).map(|name| (name, pins.map(name)));
    for (name, path) in maps.chain([(GENERATIONS, pins.generations(bits))]).filter(|(_, path)| !path.exists()) {
        if let Some(map) = map_of(&programs, name)? {
            sys::pin(map.as_fd(), &path)?;
        }
    }
    if map_names(stages).any(|name| !pins.map(name).exists()) {
        load_object(pins, bits, stages, LIVE)?;
    }
    if candidate_pins(pins, bits, stages).any(|path| !path.exists()) {
        // The instance under test and its maps belong together: all are made anew with the programs.
        for path in Stages::ALL.into_iter().flat_map(|stages| candidate_pins(pins, bits, stages)) {
            pins.remove(&path)?;
        }
    }
    Ok(())
}
