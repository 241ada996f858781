// SPDX-License-Identifier: GPL-2.0

//! A short list on the stack that costs nothing until it is filled.
//!
//! Plain code without kernel imports: `tests/host` runs it too.

use core::mem::MaybeUninit;

/// At most `N` values.
///
/// # Invariants
///
/// The first `len` elements of `values` are initialised; `len` is at most `N`.
pub(crate) struct StackVec<T: Copy, const N: usize> {
    len: usize,
    // Not an array of `MaybeUninit`: making that one copies a constant.
    values: MaybeUninit<[T; N]>,
}

impl<T: Copy, const N: usize> StackVec<T, N> {
    /// An empty list. The memory for the values is not touched.
    #[inline(always)]
    pub(crate) fn new() -> Self {
        // INVARIANT: No element has to be initialised.
        Self {
            len: 0,
            values: MaybeUninit::uninit(),
        }
    }

    fn slot(&mut self, index: usize) -> *mut T {
        self.values.as_mut_ptr().cast::<T>().wrapping_add(index)
    }

    /// Appends a value, or returns false if there is no room.
    #[inline]
    pub(crate) fn push(&mut self, value: T) -> bool {
        if self.len == N {
            return false;
        }
        // SAFETY: Within the array.
        unsafe { self.slot(self.len).write(value) };
        // INVARIANT: Just initialised; there was room.
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
        // SAFETY: By the type's invariant it is initialised; borrowed with `self`.
        Some(unsafe { &mut *self.slot(last) })
    }
}
