// SPDX-License-Identifier: GPL-2.0

//! Persistent memory as the kernel sees it: bytes in the direct map.

use super::bindings;
use core::marker::PhantomData;
use kernel::prelude::*;

/// Bytes of persistent memory.
///
/// User space and devices may change them at any time, so there is never a Rust reference to them;
/// all access is raw.
///
/// # Invariants
///
/// For as long as `'a`, `len` bytes from `addr` on are mapped writable in the kernel's direct map, but
/// for pages that a machine check has taken out of it. Those fault: cache write-back passes over them,
/// copies from them and from a process to them end there; what else stores is an oops, as in C.
#[derive(Clone, Copy)]
pub(crate) struct Pmem<'a> {
    addr: usize,
    len: usize,
    _mapped: PhantomData<&'a ()>,
}

impl Pmem<'_> {
    /// # Safety
    ///
    /// For as long as `'a`, `len` bytes from `addr` on must be mapped writable in the kernel's
    /// direct map, and nobody may hold Rust references to them.
    #[inline]
    pub(super) unsafe fn new(addr: usize, len: usize) -> Self {
        // INVARIANT: By the function's requirements.
        Self {
            addr,
            len,
            _mapped: PhantomData,
        }
    }

    /// The kernel's address of the first byte.
    #[inline]
    pub(crate) fn addr(&self) -> usize {
        self.addr
    }

    /// Number of bytes.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// `len` bytes from `offset` on, less where there are less.
    #[inline]
    pub(crate) fn slice(&self, offset: usize, len: usize) -> Self {
        let offset = offset.min(self.len);
        // INVARIANT: A part of what is mapped.
        Self {
            addr: self.addr + offset,
            len: len.min(self.len - offset),
            _mapped: PhantomData,
        }
    }

    /// Fills all bytes with zeroes, in the cache.
    #[inline]
    pub(crate) fn fill_zero(&self) {
        // SAFETY: The bytes are mapped writable and not referenced.
        unsafe { core::ptr::write_bytes(self.addr as *mut u8, 0, self.len) };
    }

    /// Copies as many bytes as both have from `src`, in the cache. `EIO` if `src` has bad memory.
    ///
    /// Context: any.
    pub(crate) fn copy_from(&self, src: &Pmem<'_>) -> Result {
        let len = self.len.min(src.len);
        // SAFETY: Both are mapped, the destination writable; machine checks on the source are
        // handled by the function.
        let left = unsafe {
            bindings::copy_mc_to_kernel(self.addr as *mut _, src.addr as *const _, len as u32)
        };
        if left == 0 {
            Ok(())
        } else {
            Err(EIO)
        }
    }
}
