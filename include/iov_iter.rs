// SPDX-License-Identifier: GPL-2.0

//! The user's side of read(2) and write(2): `struct kiocb` and `struct iov_iter`.
//!
//! C headers: [`include/linux/uio.h`](srctree/include/linux/uio.h),
//! [`include/linux/fs.h`](srctree/include/linux/fs.h)

use super::{
    bindings,
    inode::Inode,
    pmem::Pmem, //
};

/// A valid `struct iov_iter`.
pub(crate) struct IovIter<'a>(&'a mut bindings::iov_iter);

impl<'a> IovIter<'a> {
    /// # Safety
    ///
    /// `raw` must be valid and ours for as long as `'a`.
    #[inline]
    pub(super) unsafe fn from_raw(raw: *mut bindings::iov_iter) -> Self {
        // SAFETY: By the function's requirements.
        Self(unsafe { &mut *raw })
    }

    /// For the other abstractions.
    #[inline]
    pub(super) fn as_raw(&mut self) -> *mut bindings::iov_iter {
        self.0
    }

    /// `iov_iter_count()`: bytes left.
    #[inline]
    pub(crate) fn count(&self) -> usize {
        // SAFETY: Valid.
        unsafe { bindings::rpmem_iov_iter_count(self.0) }
    }

    /// Whether it is the source of a write.
    #[inline]
    pub(crate) fn is_write(&self) -> bool {
        // SAFETY: Valid.
        unsafe { bindings::rpmem_iov_iter_is_write(self.0) }
    }

    /// `fault_in_iov_iter_readable()`: sees to it that up to `len` bytes of the user's memory can be
    /// read, for now. False: not even the first one. May sleep.
    pub(crate) fn fault_in(&self, len: usize) -> bool {
        let len = len.min(self.count());
        // SAFETY: Valid.
        len == 0 || unsafe { bindings::fault_in_iov_iter_readable(self.0, len) } < len
    }

    /// Copies into `mem`, past the cache, and returns how many bytes: fewer if the user's memory
    /// faults. What was copied is durable after a fence. May sleep.
    #[inline]
    pub(crate) fn copy_to_pmem(&mut self, mem: &Pmem<'_>) -> usize {
        // SAFETY: Both are valid, `mem` writable.
        unsafe {
            bindings::rpmem_copy_from_iter_flushcache(mem.addr() as *mut _, mem.len(), self.0)
        }
    }

    /// Copies from `mem` and returns how many bytes: fewer at bad memory or if the user's memory
    /// faults. May sleep.
    #[inline]
    pub(crate) fn copy_from_pmem(&mut self, mem: &Pmem<'_>) -> usize {
        // SAFETY: Both are valid.
        unsafe { bindings::rpmem_copy_mc_to_iter(mem.addr() as *mut _, mem.len(), self.0) }
    }

    /// Fills `len` bytes with zeroes and returns how many. May sleep.
    #[inline]
    pub(crate) fn zero(&mut self, len: usize) -> usize {
        // SAFETY: Valid.
        unsafe { bindings::iov_iter_zero(len, self.0) }
    }
}

/// A valid `struct kiocb`: an I/O request on a file.
pub(crate) struct Kiocb<'a>(&'a mut bindings::kiocb);

impl<'a> Kiocb<'a> {
    /// # Safety
    ///
    /// `raw` must be valid and ours for as long as `'a`.
    #[inline]
    pub(super) unsafe fn from_raw(raw: *mut bindings::kiocb) -> Self {
        // SAFETY: By the function's requirements.
        Self(unsafe { &mut *raw })
    }

    /// The inode of the file.
    #[inline]
    pub(crate) fn inode(&self) -> &'a Inode {
        // SAFETY: The request holds the file, the file its inode.
        unsafe { Inode::from_raw((*(*self.0.ki_filp).f_mapping).host) }
    }

    /// Whether the file's blocks can be other files' as well (reflink).
    #[inline]
    pub(crate) fn may_share_blocks(&self) -> bool {
        // SAFETY: The request holds the file; an open one has operations.
        unsafe { (*(*self.0.ki_filp).f_op).remap_file_range.is_some() }
    }

    /// `ki_pos`.
    #[inline]
    pub(crate) fn pos(&self) -> i64 {
        self.0.ki_pos
    }

    /// Sets `ki_pos`.
    #[inline]
    pub(crate) fn set_pos(&mut self, pos: i64) {
        self.0.ki_pos = pos;
    }

    /// `IOCB_NOWAIT`.
    #[inline]
    pub(crate) fn is_nowait(&self) -> bool {
        self.0.ki_flags & bindings::RPMEM_IOCB_NOWAIT as i32 != 0
    }

    /// `IOCB_ATOMIC`.
    #[inline]
    pub(crate) fn is_atomic(&self) -> bool {
        self.0.ki_flags & bindings::RPMEM_IOCB_ATOMIC as i32 != 0
    }
}
