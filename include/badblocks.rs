// SPDX-License-Identifier: GPL-2.0

//! Lists of bad blocks.
//!
//! C header: [`include/linux/badblocks.h`](srctree/include/linux/badblocks.h)

use super::bindings;
use kernel::{
    error::to_result,
    prelude::*,
    types::Opaque, //
};

/// A list of bad ranges of a disk, in sectors of 512 bytes.
///
/// # Invariants
///
/// `raw` was initialised by `badblocks_init()` with accounting enabled and is pinned.
#[pin_data(PinnedDrop)]
pub(crate) struct BadBlocks {
    #[pin]
    raw: Opaque<bindings::badblocks>,
}

// SAFETY: A `badblocks` is not tied to a thread.
unsafe impl Send for BadBlocks {}
// SAFETY: All methods synchronise through the list's own seqlock.
unsafe impl Sync for BadBlocks {}

impl BadBlocks {
    /// An empty list, able to hold what fits in one page (512 ranges of up to 512 sectors).
    pub(crate) fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            // INVARIANT: Initialised with accounting enabled.
            raw <- Opaque::try_ffi_init(|slot: *mut bindings::badblocks| {
                // SAFETY: `slot` is valid for writing one `badblocks`, for which all zeroes is a
                // valid value.
                unsafe { slot.write_bytes(0, 1) };
                // SAFETY: `slot` is zeroed memory that stays pinned until `badblocks_exit()`.
                to_result(unsafe { bindings::badblocks_init(slot, 1) })
            }),
        })
    }

    /// For the other abstractions.
    pub(super) fn as_raw(&self) -> *mut bindings::badblocks {
        self.raw.get()
    }

    /// Whether nothing is bad. Cheap: one load, for the fast path of every I/O.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        // SAFETY: `raw` is initialised. The volatile load is C's READ_ONCE(): the count may change
        // at any time, and either value is a right answer then.
        unsafe { (&raw const (*self.raw.get()).count).read_volatile() == 0 }
    }

    /// The first bad range that overlaps `sectors` sectors from `sector`, as (start, length).
    ///
    /// The range returned may begin before `sector`. Does not sleep.
    pub(crate) fn check(&self, sector: u64, sectors: u64) -> Option<(u64, u64)> {
        // C warns about an empty question.
        if sectors == 0 || self.is_empty() {
            return None;
        }
        let (mut first, mut len) = (0, 0);
        // SAFETY: `raw` is initialised and accounting is enabled; `sectors` is not 0.
        let bad = unsafe {
            bindings::badblocks_check(self.raw.get(), sector, sectors, &mut first, &mut len)
        };
        (bad != 0).then_some((first, len))
    }

    /// Notes a range as bad. `false`: the list is full, and part of the range may not be noted.
    #[must_use]
    pub(crate) fn set(&self, sector: u64, sectors: u64) -> bool {
        // SAFETY: `raw` is initialised.
        unsafe { bindings::badblocks_set(self.raw.get(), sector, sectors, 1) }
    }

    /// Takes a range off the list. Part of it may stay noted if the list is full and an entry
    /// would have to be split.
    ///
    /// Context: process context, interrupts on.
    pub(crate) fn clear(&self, sector: u64, sectors: u64) {
        // SAFETY: `raw` is initialised.
        unsafe { bindings::badblocks_clear(self.raw.get(), sector, sectors) };
    }
}

#[pinned_drop]
impl PinnedDrop for BadBlocks {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: `raw` is initialised and used for the last time.
        unsafe { bindings::badblocks_exit(self.raw.get()) };
    }
}
