// SPDX-License-Identifier: GPL-2.0

//! A short list on the stack that costs nothing until it is filled.
//!
//! Plain code without kernel imports: `tests/host` runs it too.

use core::mem::MaybeUninit;

/// At most `N` values.
///
/// # Invariants
///
/// The first `len` elements of `values` are initialised.
pub(crate) struct StackVec<T: Copy, const N: usize> {
    len: usize,
    values: [MaybeUninit<T>; N],
}

impl<T: Copy, const N: usize> StackVec<T, N> {
    /// An empty list. The memory for the values is not touched.
    #[inline]
    pub(crate) const fn new() -> Self {
        // INVARIANT: No element has to be initialised.
        Self {
            len: 0,
            values: [const { MaybeUninit::uninit() }; N],
        }
    }

    /// Appends a value, or returns false if there is no room.
    #[inline]
    pub(crate) fn push(&mut self, value: T) -> bool {
        let Some(slot) = self.values.get_mut(self.len) else {
            return false;
        };
        slot.write(value);
        // INVARIANT: Just initialised.
        self.len += 1;
        true
    }

    /// The values.
    #[inline]
    pub(crate) fn as_slice(&self) -> &[T] {
        // SAFETY: By the type's invariant.
        unsafe { core::slice::from_raw_parts(self.values.as_ptr().cast(), self.len) }
    }

    /// The last value.
    #[inline]
    pub(crate) fn last_mut(&mut self) -> Option<&mut T> {
        let last = self.len.checked_sub(1)?;
        // SAFETY: By the type's invariant.
        Some(unsafe { self.values[last].assume_init_mut() })
    }
}
