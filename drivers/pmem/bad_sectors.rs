// SPDX-License-Identifier: GPL-2.0

//! Sectors and pages of a range: arithmetic only.
//!
//! This file uses nothing of the kernel, so that tests/host can test it.

/// Sectors of 512 bytes in a page of 4 KiB.
pub(crate) const SECTORS_PER_PAGE: u64 = 8;

/// A range of sectors of 512 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sectors {
    /// First sector.
    pub(crate) start: u64,
    /// How many.
    pub(crate) len: u64,
}

impl Sectors {
    /// The pages that lie in the range with all their sectors, as page offsets.
    pub(crate) fn whole_pages(self) -> core::ops::Range<u64> {
        let first = self.start.div_ceil(SECTORS_PER_PAGE);
        let end = (self.start + self.len) / SECTORS_PER_PAGE;
        first..end.max(first)
    }

    /// The pages that the range touches with some of their sectors only: at most the first and
    /// the last.
    pub(crate) fn partial_pages(self) -> impl Iterator<Item = u64> {
        let whole = self.whole_pages();
        let first = self.start / SECTORS_PER_PAGE;
        let end = (self.start + self.len).div_ceil(SECTORS_PER_PAGE);
        let last = end.saturating_sub(1);
        let first = (self.len != 0 && !whole.contains(&first)).then_some(first);
        let last = (self.len != 0 && !whole.contains(&last) && Some(last) != first).then_some(last);
        first.into_iter().chain(last)
    }
}

/// How many pages a recovery write may take on at once, as drivers/nvdimm/pmem.c has it: when
/// `nr_pages` pages were asked for from `sector`, a page's first, and `first_bad` is the first bad
/// sector among them, it is the pages up to that sector, rounded up; never 0, so that a page which
/// begins with a bad sector is taken on alone; never more than was asked for. `first_bad` may lie
/// before `sector` if a bad range begins there.
pub(crate) fn recovery_stride(sector: u64, nr_pages: usize, first_bad: u64) -> usize {
    let good = first_bad.saturating_sub(sector);
    let pages = good.div_ceil(SECTORS_PER_PAGE).max(1);
    pages.min(nr_pages as u64) as usize
}
