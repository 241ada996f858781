// SPDX-License-Identifier: GPL-2.0

//! Arithmetic on ranges of files, pages and addresses.
//!
//! Plain code without kernel imports: `tests/host` runs it with property tests.

use super::entry::{
    PAGE_SHIFT,
    PAGE_SIZE,
    PG_PMD_COLOUR,
    PMD_SIZE, //
};

/// First and last index of the pages that hold the bytes `start..=end`. An `end` of `i64::MAX`
/// means all pages from `start` on.
#[inline]
pub(crate) const fn page_range(start: i64, end: i64) -> (usize, usize) {
    let last = if end == i64::MAX {
        usize::MAX
    } else {
        end as usize >> PAGE_SHIFT
    };
    (start as usize >> PAGE_SHIFT, last)
}

/// Number of pages that a file of `size` bytes has.
#[inline]
pub(crate) const fn pages_of_size(size: i64) -> usize {
    (size as usize).div_ceil(PAGE_SIZE)
}

/// C's `dax_iomap_pgoff()`: the page of the device at file position `pos`, where a mapping has the
/// bytes from file position `offset` on at the device's byte `addr`.
#[inline]
pub(crate) const fn device_pgoff(addr: u64, offset: i64, pos: i64) -> usize {
    let page = pos & !(PAGE_SIZE as i64 - 1);
    (addr.wrapping_add(page.wrapping_sub(offset) as u64) >> PAGE_SHIFT) as usize
}

/// What a PMD fault is about, for [`pmd_fits`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct PmdFault {
    /// The faulting page's offset in the file.
    pub(crate) pgoff: usize,
    /// The faulting address.
    pub(crate) address: usize,
    /// Start and end of the VMA.
    pub(crate) vma: (usize, usize),
    /// Pages in the file.
    pub(crate) file_pages: usize,
    /// A write to a private mapping: copy-on-write is done in pages.
    pub(crate) private_write: bool,
}

/// Whether a PMD can be mapped at all, the opposite of C's `dax_fault_check_fallback()`.
pub(crate) const fn pmd_fits(f: &PmdFault) -> bool {
    let pmd_addr = f.address & !(PMD_SIZE - 1);

    // The PMD in the page table must overlap exactly with a PMD in the file.
    (f.pgoff & PG_PMD_COLOUR) == ((f.address >> PAGE_SHIFT) & PG_PMD_COLOUR)
        && !f.private_write
        && pmd_addr >= f.vma.0
        && f.vma.1 - pmd_addr >= PMD_SIZE
        && (f.pgoff | PG_PMD_COLOUR) < f.file_pages
}

/// The parts of an aligned area around a write that the write does not cover: lengths in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Edges {
    /// Bytes before the write.
    pub(crate) head: usize,
    /// Bytes behind the write.
    pub(crate) tail: usize,
    /// Bytes in the whole area.
    pub(crate) size: usize,
}

/// What surrounds the bytes `pos..pos + len` in the area of `align`-sized blocks that holds them.
/// `align` must be a power of two, `len` not 0.
#[inline]
pub(crate) const fn edges(pos: i64, len: usize, align: usize) -> Edges {
    let head = pos as usize & (align - 1);
    let size = (head + len + align - 1) & !(align - 1);
    Edges {
        head,
        tail: size - head - len,
        size,
    }
}
