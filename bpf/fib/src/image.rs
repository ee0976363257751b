//! Read access to an image.

use crate::layout::Section;

/// Bounds-checked little-endian reads; `None` outside the image.
pub trait Image {
    fn u8(&self, offset: u32) -> Option<u8>;
    fn u16(&self, offset: u32) -> Option<u16>;
    fn u32(&self, offset: u32) -> Option<u32>;
    fn u64(&self, offset: u32) -> Option<u64>;
    /// A word of the header, at an offset that the caller knows when it is compiled.
    #[inline(always)]
    fn head(&self, offset: u32) -> Option<u32> {
        self.u32(offset)
    }
    /// Words in a row.
    fn words<const COUNT: usize>(&self, offset: u32) -> Option<[u64; COUNT]>;
}

impl Image for [u8] {
    #[inline]
    fn u8(&self, offset: u32) -> Option<u8> {
        self.get(offset as usize).copied()
    }
    #[inline]
    fn u16(&self, offset: u32) -> Option<u16> {
        Some(u16::from_le_bytes(*self.get(offset as usize..)?.first_chunk()?))
    }
    #[inline]
    fn u32(&self, offset: u32) -> Option<u32> {
        Some(u32::from_le_bytes(*self.get(offset as usize..)?.first_chunk()?))
    }
    #[inline]
    fn u64(&self, offset: u32) -> Option<u64> {
        Some(u64::from_le_bytes(*self.get(offset as usize..)?.first_chunk()?))
    }
    #[inline]
    fn words<const COUNT: usize>(&self, offset: u32) -> Option<[u64; COUNT]> {
        let (words, _) = self.get(offset as usize..)?.as_chunks::<8>();
        words.first_chunk().map(|words| words.map(u64::from_le_bytes))
    }
}

impl<T: Image + ?Sized> Image for &T {
    #[inline(always)]
    fn u8(&self, offset: u32) -> Option<u8> {
        (**self).u8(offset)
    }
    #[inline(always)]
    fn u16(&self, offset: u32) -> Option<u16> {
        (**self).u16(offset)
    }
    #[inline(always)]
    fn u32(&self, offset: u32) -> Option<u32> {
        (**self).u32(offset)
    }
    #[inline(always)]
    fn u64(&self, offset: u32) -> Option<u64> {
        (**self).u64(offset)
    }
    #[inline(always)]
    fn head(&self, offset: u32) -> Option<u32> {
        (**self).head(offset)
    }
    #[inline(always)]
    fn words<const COUNT: usize>(&self, offset: u32) -> Option<[u64; COUNT]> {
        (**self).words(offset)
    }
}

/// Offset of entry `index` of a section, or `None` when the section has no such entry.
pub fn entry<I: Image + ?Sized>(image: &I, section: Section, index: u32) -> Option<u32> {
    let offset = image.u32(section.at())?;
    let count = image.u32(section.at() + 4)?;
    if index >= count {
        return None;
    }
    offset.checked_add(index.checked_mul(section.entry_bytes())?)
}
