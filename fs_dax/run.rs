// SPDX-License-Identifier: GPL-2.0

//! Batches of dirty entries: what one round of write-back locks, protects, flushes and unlocks.
//!
//! A batch is a list of [`Run`]s, pages contiguous both in the file (index) and in memory (pfn), in
//! ascending order. Runs keep the number of calls small, the batch keeps the number of fences and
//! of lock cycles small. A PMD entry is a batch of its own.
//!
//! Plain code without kernel imports: `tests/host` runs it with property tests.

use super::entry::PG_PMD_NR;
use crate::include::stack_vec::StackVec;

/// Runs in a batch at most; the batch lives on the stack.
pub(crate) const MAX_RUNS: usize = 32;
/// Pages in a batch at most: bounds how long entries stay locked and interrupts off.
pub(crate) const MAX_PAGES: usize = PG_PMD_NR;
/// Pages between two runs that are write-protected along with them, see [`Batch::spans`].
pub(crate) const MAX_GAP: usize = 16;

/// `nr` pages from file index `index` on, in memory from `pfn` on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Run {
    /// Page offset in the file.
    pub(crate) index: usize,
    /// Page frame number of the first page.
    pub(crate) pfn: usize,
    /// Number of pages.
    pub(crate) nr: usize,
}

impl Run {
    /// The index behind the last page.
    #[inline]
    pub(crate) const fn end(&self) -> usize {
        self.index + self.nr
    }

    /// How far the memory is from the file; equal for runs of one extent.
    #[inline]
    const fn delta(&self) -> usize {
        self.pfn.wrapping_sub(self.index)
    }
}

/// Dirty entries that are written back together.
pub(crate) struct Batch {
    runs: StackVec<Run, MAX_RUNS>,
    pages: usize,
    pmd: bool,
}

impl Batch {
    /// An empty batch.
    #[inline(always)]
    pub(crate) fn new() -> Self {
        Self {
            runs: StackVec::new(),
            pages: 0,
            pmd: false,
        }
    }

    /// Takes up the entry of `nr` pages (1 or [`PG_PMD_NR`]) at `index`, or returns false if it has
    /// to wait for the next batch. Indices must be pushed in ascending order.
    #[inline]
    pub(crate) fn push(&mut self, index: usize, pfn: usize, nr: usize) -> bool {
        if self.pages + nr > MAX_PAGES || self.pmd {
            return false;
        }
        match self.runs.last_mut() {
            Some(last) if last.end() == index && last.pfn + last.nr == pfn && nr == 1 => {
                last.nr += 1;
            }
            _ => {
                if !self.runs.push(Run { index, pfn, nr }) {
                    return false;
                }
            }
        }
        self.pages += nr;
        self.pmd = nr > 1;
        true
    }

    /// Whether nothing can be pushed any more.
    #[inline]
    pub(crate) const fn is_full(&self) -> bool {
        self.pages >= MAX_PAGES
    }

    /// Whether nothing was pushed.
    #[inline]
    pub(crate) const fn is_empty(&self) -> bool {
        self.pages == 0
    }

    /// Whether it is one PMD entry.
    #[inline]
    pub(crate) const fn is_pmd(&self) -> bool {
        self.pmd
    }

    /// How many pages an entry of it has.
    #[inline]
    pub(crate) const fn step(&self) -> usize {
        if self.pmd {
            PG_PMD_NR
        } else {
            1
        }
    }

    /// How many pages are in it.
    #[inline]
    pub(crate) const fn pages(&self) -> usize {
        self.pages
    }

    /// The runs, ascending.
    #[inline]
    pub(crate) fn runs(&self) -> &[Run] {
        self.runs.as_slice()
    }

    /// What to write-protect: runs of one extent with small gaps between them become one span, as
    /// one reverse-map walk over a few pages more is cheaper than two walks. It does no harm to the
    /// pages in the gaps: those that are clean are write-protected already, those that have just
    /// been dirtied keep their dirty tag and fault once more.
    pub(crate) fn spans(&self) -> Spans<'_> {
        Spans { runs: self.runs() }
    }
}

/// Iterator of [`Batch::spans`].
pub(crate) struct Spans<'a> {
    runs: &'a [Run],
}

impl Iterator for Spans<'_> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        let (mut span, mut rest) = match self.runs {
            [] => return None,
            [first, rest @ ..] => (*first, rest),
        };
        while let [next, after @ ..] = rest {
            if next.delta() != span.delta() || next.index - span.end() > MAX_GAP {
                break;
            }
            span.nr = next.end() - span.index;
            rest = after;
        }
        self.runs = rest;
        Some(span)
    }
}
