// SPDX-License-Identifier: GPL-2.0

//! Entries of a DAX mapping in `mapping->i_pages`: encoding and decoding.
//!
//! The encoding is the one of [`fs/dax.c`](srctree/fs/dax.c), bit by bit, so that what looks at the
//! page cache of a DAX file from outside sees no difference. An entry is an XArray value entry
//! (bit 0 of the word set); the value is four flag bits and the page frame number above them:
//!
//! ```text
//! 63                                   5      4      3      2        1     0
//! | pfn                                | EMPTY | ZERO | PMD | LOCKED | value |
//! ```
//!
//! Plain code without kernel imports: `tests/host` runs it with property tests.

/// `PAGE_SHIFT` of x86-64.
pub(crate) const PAGE_SHIFT: u32 = 12;
/// Bytes in a page.
pub(crate) const PAGE_SIZE: usize = 1 << PAGE_SHIFT;
/// `PMD_ORDER`: a PMD maps 2^9 pages.
pub(crate) const PMD_ORDER: u32 = 9;
/// Pages in a PMD, C's `PG_PMD_NR`.
pub(crate) const PG_PMD_NR: usize = 1 << PMD_ORDER;
/// Bytes in a PMD.
pub(crate) const PMD_SIZE: usize = PG_PMD_NR << PAGE_SHIFT;
/// The low bits of a page offset within its PMD, C's `PG_PMD_COLOUR`.
pub(crate) const PG_PMD_COLOUR: usize = PG_PMD_NR - 1;

/// Where the pfn begins in the value.
const DAX_SHIFT: u32 = 4;
/// Somebody has the entry locked.
const DAX_LOCKED: usize = 1 << 0;
/// The entry is for a whole PMD, otherwise for one page.
const DAX_PMD: usize = 1 << 1;
/// A hole: the pfn is that of a zero page.
const DAX_ZERO_PAGE: usize = 1 << 2;
/// Nothing is there yet; the entry exists to be locked.
const DAX_EMPTY: usize = 1 << 3;

/// An entry, never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Entry(usize);

/// What an entry stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Blocks of the file.
    Real,
    /// A hole, mapped by zero pages.
    Zero,
    /// Nothing.
    Empty,
}

impl Entry {
    /// C's `dax_make_entry()`: an unlocked entry for the page or PMD at `pfn`.
    #[inline]
    pub(crate) const fn new(pfn: usize, order: u32, kind: Kind) -> Self {
        let size = if order == PMD_ORDER { DAX_PMD } else { 0 };
        let kind = match kind {
            Kind::Real => 0,
            Kind::Zero => DAX_ZERO_PAGE,
            Kind::Empty => DAX_EMPTY,
        };
        Self::from_value(pfn << DAX_SHIFT | size | kind)
    }

    /// An unlocked entry that only serves to be locked.
    #[inline]
    pub(crate) const fn empty(order: u32) -> Self {
        Self::new(0, order, Kind::Empty)
    }

    const fn from_value(value: usize) -> Self {
        Self(value << 1 | 1)
    }

    const fn value(self) -> usize {
        self.0 >> 1
    }

    /// What the XArray returned, if it is a value entry.
    #[inline]
    pub(crate) const fn from_xa(raw: usize) -> Option<Self> {
        if raw & 1 == 1 {
            Some(Self(raw))
        } else {
            None
        }
    }

    /// The word to be stored in the XArray.
    #[inline]
    pub(crate) const fn to_xa(self) -> usize {
        self.0
    }

    /// The page frame number; that of the first page for a PMD. 0 for an empty entry.
    #[inline]
    pub(crate) const fn pfn(self) -> usize {
        self.value() >> DAX_SHIFT
    }

    /// What it stands for.
    #[inline]
    pub(crate) const fn kind(self) -> Kind {
        if self.value() & DAX_EMPTY != 0 {
            Kind::Empty
        } else if self.value() & DAX_ZERO_PAGE != 0 {
            Kind::Zero
        } else {
            Kind::Real
        }
    }

    /// Whether blocks of the file are behind it.
    #[inline]
    pub(crate) const fn is_real(self) -> bool {
        self.value() & (DAX_EMPTY | DAX_ZERO_PAGE) == 0
    }

    /// Whether it is for a PMD.
    #[inline]
    pub(crate) const fn is_pmd(self) -> bool {
        self.value() & DAX_PMD != 0
    }

    /// 0 or [`PMD_ORDER`].
    #[inline]
    pub(crate) const fn order(self) -> u32 {
        if self.is_pmd() {
            PMD_ORDER
        } else {
            0
        }
    }

    /// How many pages it is for.
    #[inline]
    pub(crate) const fn nr_pages(self) -> usize {
        1 << self.order()
    }

    /// The first index of the entry that was found at `index`.
    #[inline]
    pub(crate) const fn first_index(self, index: usize) -> usize {
        index & !(self.nr_pages() - 1)
    }

    /// Whether somebody has it locked.
    #[inline]
    pub(crate) const fn is_locked(self) -> bool {
        self.value() & DAX_LOCKED != 0
    }

    /// The same entry, locked.
    #[inline]
    pub(crate) const fn locked(self) -> Self {
        Self::from_value(self.value() | DAX_LOCKED)
    }

    /// The same entry, unlocked.
    #[inline]
    pub(crate) const fn unlocked(self) -> Self {
        Self::from_value(self.value() & !DAX_LOCKED)
    }
}
