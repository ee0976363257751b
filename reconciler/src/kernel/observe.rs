//! What the kernel holds now, reconstructed from the kernel alone.
//!
//! Reads only. What it finds beside the live state (a candidate, an image that was never published, another class's
//! programs) is the trace of a process that was killed; [`Observed::strays`] names it for the next apply to remove.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use crate::compile::ImageError;

use super::attach::{self, Facts, Hook};
use super::image_map::ImageMap;
use super::layout::{self, OtherLayout};
use super::pins::{Pins, names};
use super::program::{CANDIDATE, Entry, LIVE, Stages, object_id};
use super::{KernelError, restore, sys};

/// One generation that the kernel holds.
#[derive(Debug)]
pub struct Generation {
    pub number: u64,
    pub image: ImageMap,
}

/// An attachment of the program to a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkState {
    /// Name of the device when it was attached; of the oldest layout, of one of its ports.
    pub device: String,
    /// Kernel index of the device; 0 when it is gone.
    pub index: u32,
    /// Id of the program that gets its packets; 0: none does any more.
    pub program: u32,
    pub hook: Hook,
    pub pin: PathBuf,
    /// It is pinned in an older layout.
    pub older: bool,
}

/// Something that a killed process left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stray {
    /// An image in the candidate slot of a class.
    Candidate { bits: u32 },
    /// A pin that belongs to no live or retained generation.
    Pin(PathBuf),
    /// A class that does not carry the live generation.
    Class { bits: u32 },
}

/// Everything that wayleave has in the kernel.
#[derive(Debug, Default)]
pub struct Observed {
    /// What packets meet now.
    pub live: Option<Generation>,
    /// Older generations kept for rollback, newest first.
    pub retained: Vec<Generation>,
    /// The capacity class of the live generation: images of 2^bits bytes.
    pub class_bits: Option<u32>,
    pub links: Vec<LinkState>,
    /// Ids of the programs that should be attached, for the hooks that they are loaded for.
    pub programs: BTreeMap<Entry, u32>,
    /// What these programs can do; both kinds are there while a node changes from one to the other.
    pub stages: BTreeSet<Stages>,
    /// Layouts of other versions, oldest first.
    pub layouts: Vec<OtherLayout>,
    pub strays: Vec<Stray>,
    /// Why the map in the live slot is no generation, where one is there: somebody else put it there. Nothing is live then.
    pub foreign: Option<String>,
    /// Pins that are gone under the program that still runs.
    pub lost: Vec<PathBuf>,
    /// The live generation's pin is gone, or holds another map.
    pub live_unpinned: bool,
    /// Retained pins whose images this version cannot read.
    pub unreadable: Vec<(u64, String)>,
}

impl Observed {
    /// Number of the live generation; 0 before the first.
    pub fn live_number(&self) -> u64 {
        self.live.as_ref().map_or(0, |g| g.number)
    }

    /// A generation by its number, live or retained.
    pub fn generation(&self, number: u64) -> Option<&Generation> {
        self.live.iter().chain(&self.retained).find(|g| g.number == number)
    }
}

/// The image of one generation, live or retained; `None`: it was retired.
pub fn generation(pins: &Pins, number: u64) -> Result<Option<Generation>, KernelError> {
    Ok(ImageMap::from_pin(&pins.generation(number))?.map(|image| Generation { number, image }))
}

/// Reads everything below `pins`; nothing pinned is an empty result.
pub fn observe(pins: &Pins) -> Result<Observed, KernelError> {
    let mut observed = Observed { layouts: layout::others(pins)?, ..Observed::default() };
    observe_links(pins, &mut observed)?;
    if !pins.exist() {
        return Ok(observed);
    }
    let mut classes = Vec::new();
    let mut found = pins.classes()?;
    if found.is_empty() {
        found.extend(restore::class(pins)?);
    }
    let mut foreign = None;
    for bits in found {
        let Some(generations) = restore::generations(pins, bits)? else {
            classes.push((bits, None));
            continue;
        };
        if sys::slot(generations.as_fd(), CANDIDATE)?.is_some() {
            observed.strays.push(Stray::Candidate { bits });
        }
        let live = match sys::slot(generations.as_fd(), LIVE)?.map(|id| open(pins, id)).transpose()? {
            Some(Err(why)) => {
                foreign = Some((bits, why));
                None
            }
            Some(Ok(live)) => Some(live),
            None => None,
        };
        classes.push((bits, live));
    }
    // While a class is being left, both classes carry the same generation until the new one publishes a newer: the
    // newest is live, and of equals the larger class, to which the move goes.
    let best = classes
        .iter()
        .enumerate()
        .filter_map(|(i, (bits, live))| live.as_ref().map(|g| (g.number, *bits, i)))
        .max()
        .map(|(_, _, i)| i);
    for (i, (bits, live)) in classes.into_iter().enumerate() {
        if Some(i) == best {
            observed.live = live;
            observed.class_bits = Some(bits);
        } else if best.is_some() {
            observed.strays.push(Stray::Class { bits });
        }
    }
    if let (None, Some((bits, why))) = (best, foreign) {
        observed.class_bits = Some(bits);
        observed.foreign = Some(why);
    }
    observe_retained(pins, &mut observed)?;
    observe_programs(pins, &mut observed)?;
    if let Some(bits) = observed.class_bits {
        observed.lost = restore::lost(pins, bits)?;
    }
    Ok(observed)
}

/// The live generation alone, for those that look often. `None`: nothing is live.
pub fn live(pins: &Pins) -> Result<Option<Generation>, KernelError> {
    let mut live = None;
    if !pins.exist() {
        return Ok(None);
    }
    for bits in pins.classes()? {
        let Some(generations) = restore::generations(pins, bits)? else { continue };
        if let Some(id) = sys::slot(generations.as_fd(), LIVE)?
            && live.replace(id).is_some()
        {
            return Ok(observe(pins)?.live);
        }
    }
    Ok(live.map(|id| open(pins, id)).transpose()?.and_then(Result::ok))
}

/// Opens a slot's image, by its pin where it has one; the inner error says why it is no generation.
fn open(pins: &Pins, id: u32) -> Result<Result<Generation, String>, KernelError> {
    for number in pins.generation_numbers()?.into_iter().rev() {
        if let Some(image) = ImageMap::from_pin(&pins.generation(number))?
            && image.id() == id
        {
            return Ok(Ok(Generation { number, image }));
        }
    }
    let image = match ImageMap::from_id(id) {
        Err(error @ KernelError::NotFrozen { .. }) => return Ok(Err(error.to_string())),
        image => image?,
    };
    let number = match image.view() {
        Ok(view) => view.generation(),
        // An upgrade's business, with a message of its own.
        Err(error @ ImageError::LayoutVersion { .. }) => return Err(KernelError::image("live")(error)),
        Err(error) => return Ok(Err(error.to_string())),
    };
    Ok(Ok(Generation { number, image }))
}

fn observe_retained(pins: &Pins, observed: &mut Observed) -> Result<(), KernelError> {
    // Under somebody else's map none is live, and all were.
    let live = if observed.foreign.is_some() { u64::MAX } else { observed.live_number() };
    observed.live_unpinned = match &observed.live {
        Some(live) => {
            ImageMap::from_pin(&pins.generation(live.number))?.map(|image| image.id()) != Some(live.image.id())
        }
        None => false,
    };
    for number in pins.generation_numbers()?.into_iter().rev() {
        let path = pins.generation(number);
        if number > live {
            // Staged, never published.
            observed.strays.push(Stray::Pin(path));
        } else if number < live {
            let Some(image) = ImageMap::from_pin(&path)? else { continue };
            let readable = image.view().map(|_| ());
            match readable {
                Ok(()) => observed.retained.push(Generation { number, image }),
                Err(e @ (ImageError::LayoutVersion { .. } | _)) => observed.unreadable.push((number, e.to_string())),
            }
        }
    }
    Ok(())
}

fn observe_programs(pins: &Pins, observed: &mut Observed) -> Result<(), KernelError> {
    if let Some(bits) = observed.class_bits {
        let class = pins.class(bits);
        let object = object_id();
        for name in names(&class)? {
            let found = Stages::ALL.into_iter().find(|stages| stages.pins().any(|pin| pin == name));
            observed.stages.extend(found);
            if found.is_some() {
                // Those that can do most are the ones to be attached.
            } else if name != "GENERATIONS" && !name.ends_with(&object) {
                observed.strays.push(Stray::Pin(class.join(name)));
            }
        }
        let Some(stages) = observed.stages.last() else { return Ok(()) };
        for entry in Entry::ALL {
            if let Some(program) = sys::pinned(&class.join(entry.live_pin(*stages)))? {
                observed.programs.insert(entry, sys::program_id(program.as_fd())?);
            }
        }
    }
    Ok(())
}

fn observe_links(pins: &Pins, observed: &mut Observed) -> Result<(), KernelError> {
    let older = observed.layouts.iter().filter(|layout| !layout.is_newer());
    let older: Vec<_> = older.map(OtherLayout::links).collect::<Result<_, _>>()?;
    let links = pins.links()?.into_iter().map(|link| (link, false));
    for ((device, pin), older) in links.chain(older.into_iter().flatten().map(|link| (link, true))) {
        if let Some(Facts { hook, index, program }) = attach::facts(&pin)? {
            observed.links.push(LinkState { device, index, program, hook, pin, older });
        }
    }
    Ok(())
}
