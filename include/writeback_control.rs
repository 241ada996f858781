// SPDX-License-Identifier: GPL-2.0

//! What write-back is asked to do.
//!
//! C header: [`include/linux/writeback.h`](srctree/include/linux/writeback.h)

use super::bindings;

/// A valid `struct writeback_control`.
pub(crate) struct WritebackControl<'a>(&'a mut bindings::writeback_control);

impl WritebackControl<'_> {
    /// # Safety
    ///
    /// `raw` must be valid and ours for as long as the returned value.
    #[inline]
    pub(super) unsafe fn from_raw(raw: *mut bindings::writeback_control) -> Self {
        // SAFETY: By the function's requirements.
        Self(unsafe { &mut *raw })
    }

    /// First and last byte of the file.
    #[inline]
    pub(crate) fn range(&self) -> (i64, i64) {
        (self.0.range_start, self.0.range_end)
    }

    /// `WB_SYNC_ALL`: for data integrity, not just to clean memory.
    #[inline]
    pub(crate) fn is_sync_all(&self) -> bool {
        self.0.sync_mode == bindings::writeback_sync_modes_WB_SYNC_ALL
    }
}
