// SPDX-License-Identifier: GPL-2.0

//! Which cache lines a range of bytes touches.
//!
//! Plain code without kernel imports: `tests/host` runs it with property tests.

/// Bytes in a cache line of all x86-64 processors; checked at load.
pub(crate) const LINE: usize = 64;

/// Cache lines, whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lines {
    /// Address of the first line.
    pub(crate) first: usize,
    /// How many.
    pub(crate) nr: usize,
}

/// The lines that hold the bytes `addr..addr + len`: an unaligned head or tail means its whole line.
#[inline]
pub(crate) const fn lines(addr: usize, len: usize) -> Lines {
    let first = addr & !(LINE - 1);
    if len == 0 {
        return Lines { first, nr: 0 };
    }
    let last = (addr + len - 1) & !(LINE - 1);
    Lines {
        first,
        nr: (last - first) / LINE + 1,
    }
}
