//! From an image to what packets meet: stage, verify, publish, retire.
//!
//! The types carry the order: a [`Staged`] comes only from [`stage`], a [`Verified`] only from [`Staged::verify`], and
//! [`Verified::publish`] consumes it.

use std::os::fd::AsFd as _;

use crate::compile::{Image, View};

use super::image_map::ImageMap;
use super::observe::Generation;
use super::pins::Pins;
use super::program::{CANDIDATE, LIVE, PREVIOUS, Programs};
use super::{KernelError, flows, sys};

/// An image in the candidate slot, frozen and pinned.
#[derive(Debug)]
pub struct Staged<'k> {
    pins: &'k Pins,
    programs: &'k Programs,
    generation: Generation,
}

/// A candidate whose bytes were compared and whose packets the kernel has decided as the library does.
#[derive(Debug)]
pub struct Verified<'k>(Staged<'k>);

/// Copies a stamped image into a new inner map, freezes and pins it, and puts it into the candidate slot.
pub fn stage<'k>(pins: &'k Pins, programs: &'k Programs, image: &Image) -> Result<Staged<'k>, KernelError> {
    let number = image.view().map_err(KernelError::image("desired"))?.generation();
    let map = ImageMap::create(image.bytes(), 1 << programs.bits)?;
    sys::pin(map.fd(), &pins.generation(number))?;
    let staged = Staged { pins, programs, generation: Generation { number, image: map } };
    match sys::set_slot(programs.generations(), CANDIDATE, staged.generation.image.fd()) {
        Ok(()) => Ok(staged),
        Err(e) => Err(staged.abandon(e)),
    }
}

impl<'k> Staged<'k> {
    /// Compares the bytes in the kernel with the digest, and runs `check` with the candidate's program; a failure frees
    /// the candidate.
    pub fn verify<E: From<KernelError>>(
        self,
        check: impl FnOnce(&Programs, &View<'_>) -> Result<(), E>,
    ) -> Result<Verified<'k>, E> {
        let verified = self.generation.image.view().and_then(|view| {
            view.verify_digest()?;
            Ok(view)
        });
        let result = match verified {
            Ok(view) => check(self.programs, &view),
            Err(e) => Err(KernelError::image("candidate")(e).into()),
        };
        match result {
            Ok(()) => Ok(Verified(self)),
            Err(e) => Err(self.abandon(e)),
        }
    }

    /// What is live now is the generation before from now on: until the one write both slots hold it. Only services ask for
    /// it; without them its memory is not kept.
    fn remember_live(&self) -> Result<(), KernelError> {
        let generations = self.programs.generations();
        let has_services = |image: &ImageMap| {
            image.view().map(|view| fib::service::has_services(view.bytes())).map_err(KernelError::image("candidate"))
        };
        match sys::slot(generations, LIVE)? {
            Some(live) if has_services(&self.generation.image)? => {
                flows::set_limits(self.pins)?;
                sys::set_slot(generations, PREVIOUS, sys::map_by_id(live)?.as_fd())
            }
            None if has_services(&self.generation.image)? => flows::set_limits(self.pins),
            _ if sys::slot(generations, PREVIOUS)?.is_some() => sys::clear_slot(generations, PREVIOUS),
            _ => Ok(()),
        }
    }

    /// Frees the candidate and returns the error that was the reason. A failure to free is not the error to report: the
    /// next start finds the stray and removes it.
    fn abandon<E>(self, error: E) -> E {
        let freed = sys::clear_slot(self.programs.generations(), CANDIDATE)
            .and_then(|()| self.pins.remove(&self.pins.generation(self.generation.number)));
        if let Err(e) = freed {
            tracing::warn!(error = %e, generation = self.generation.number, "the candidate was not freed");
        }
        error
    }

    /// Frees the candidate without an error: nothing was to be published.
    pub fn release(self) -> Result<(), KernelError> {
        sys::clear_slot(self.programs.generations(), CANDIDATE)?;
        self.pins.remove(&self.pins.generation(self.generation.number))
    }
}

impl Verified<'_> {
    /// Makes the candidate live: one write to the outer map. Then reads back what the kernel holds: which map the slot
    /// names, and the digest of the rules in that map's memory.
    pub fn publish(self) -> Result<Generation, KernelError> {
        let Self(staged) = self;
        let generations = staged.programs.generations();
        if let Err(e) = staged.remember_live() {
            return Err(staged.abandon(e));
        }
        if let Err(e) = sys::set_slot(generations, LIVE, staged.generation.image.fd()) {
            return Err(staged.abandon(e));
        }
        let number = staged.generation.number;
        let found = sys::slot(generations, LIVE)?;
        if found != Some(staged.generation.image.id()) {
            let found = found.map_or_else(|| "no generation".to_owned(), |id| format!("the image map {id}"));
            return Err(KernelError::ReadBack { generation: number, found });
        }
        let view = staged.generation.image.view().map_err(KernelError::image("live"))?;
        view.verify_digest().map_err(KernelError::image("live"))?;
        sys::clear_slot(generations, CANDIDATE)?;
        Ok(staged.generation)
    }
}

/// Copies the live image into another class's live slot, so that programs can be moved there before anything changes.
pub fn copy_live(programs: &Programs, live: &Generation) -> Result<(), KernelError> {
    let view = live.image.view().map_err(KernelError::image("live"))?;
    let copy = ImageMap::create(view.bytes(), 1 << programs.bits)?;
    sys::set_slot(programs.generations(), LIVE, copy.fd())
}

/// Empties the candidate slot of a class.
pub fn clear_candidate(pins: &Pins, bits: u32) -> Result<(), KernelError> {
    match sys::pinned(&pins.generations(bits))? {
        Some(generations) => sys::clear_slot(generations.as_fd(), CANDIDATE),
        None => Ok(()),
    }
}

/// Restores the pin of the live generation where a killed process left it without one.
pub fn pin_live(pins: &Pins, live: &Generation) -> Result<(), KernelError> {
    let path = pins.generation(live.number);
    let pinned = ImageMap::from_pin(&path)?.map(|image| image.id());
    if pinned == Some(live.image.id()) {
        return Ok(());
    }
    if pinned.is_some() {
        pins.remove(&path)?;
    }
    sys::pin(live.image.fd(), &path)
}
