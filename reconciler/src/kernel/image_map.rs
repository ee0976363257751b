//! One image in kernel memory: filled by a mapping, frozen, and read through another.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;

use crate::compile::view::Checked;
use crate::compile::{ImageError, View};

use super::{KernelError, sys};

/// A frozen inner map and the read-only mapping of its image.
#[derive(Debug)]
pub struct ImageMap {
    map: OwnedFd,
    id: u32,
    bytes: memmap2::Mmap,
    checked: OnceLock<Checked>,
}

impl ImageMap {
    /// Makes an inner map of `capacity` bytes that holds `image`, frozen.
    pub fn create(image: &[u8], capacity: u32) -> Result<Self, KernelError> {
        let map = sys::create_image_map(capacity)?;
        let mut writable = sys::map_write(map.as_fd(), capacity)?;
        let Some(room) = writable.get_mut(..image.len()) else {
            return Err(KernelError::TooLarge { image_bytes: image.len(), capacity });
        };
        room.copy_from_slice(image);
        drop(writable);
        sys::freeze(map.as_fd())?;
        Self::open(map)
    }

    fn open(map: OwnedFd) -> Result<Self, KernelError> {
        let (id, capacity) = sys::map_facts(map.as_fd())?;
        // Somebody else's: what can still be written is no generation, and must not be mapped as bytes that stay.
        if !sys::is_frozen(map.as_fd())? {
            return Err(KernelError::NotFrozen { id });
        }
        let bytes = sys::map_read(map.as_fd(), capacity)?;
        Ok(Self { map, id, bytes, checked: OnceLock::new() })
    }

    pub(super) fn from_pin(path: &Path) -> Result<Option<Self>, KernelError> {
        sys::pinned(path)?.map(Self::open).transpose()
    }

    pub(super) fn from_id(id: u32) -> Result<Self, KernelError> {
        Self::open(sys::map_by_id(id)?)
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The map's id in the kernel.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Bytes of kernel memory that the map takes.
    pub fn capacity(&self) -> usize {
        self.bytes.len()
    }

    /// The image, read from kernel memory; checked the first time only, since nobody can write a frozen map.
    pub fn view(&self) -> Result<View<'_>, ImageError> {
        View::once(&self.bytes, &self.checked)
    }
}
