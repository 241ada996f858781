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
use core::ops::Range;
use kernel::{
    iov::IovIterSource,
    prelude::*,
    types::Opaque, //
};

/// A valid `struct iov_iter`.
///
/// # Invariants
///
/// It has been advanced by `copied` bytes at least.
pub(crate) struct IovIter<'a> {
    raw: &'a mut bindings::iov_iter,
    /// By the last write to persistent memory.
    pub(super) copied: usize,
}

impl<'a> IovIter<'a> {
    /// # Safety
    ///
    /// `raw` must be valid and ours for as long as `'a`.
    #[inline]
    pub(super) unsafe fn from_raw(raw: *mut bindings::iov_iter) -> Self {
        // INVARIANT: 0 bytes.
        Self {
            // SAFETY: By the function's requirements.
            raw: unsafe { &mut *raw },
            copied: 0,
        }
    }

    /// For the other abstractions.
    #[inline]
    pub(super) fn as_raw(&mut self) -> *mut bindings::iov_iter {
        self.raw
    }

    /// `iov_iter_count()`: bytes left.
    #[inline]
    pub(crate) fn count(&self) -> usize {
        // SAFETY: Valid; a plain field, in a union of structs that all have it there.
        unsafe { self.raw.__bindgen_anon_1.__bindgen_anon_1.as_ref().count }
    }

    /// Whether it is the source of a write.
    #[inline]
    pub(crate) fn is_write(&self) -> bool {
        u32::from(self.raw.data_source) == bindings::ITER_SOURCE
    }

    /// `fault_in_iov_iter_readable()`: sees to it that up to `len` bytes of the user's memory can be
    /// read, for now. False: not even the first one. May sleep.
    pub(crate) fn fault_in(&self, len: usize) -> bool {
        let len = len.min(self.count());
        // SAFETY: Valid.
        len == 0 || unsafe { bindings::fault_in_iov_iter_readable(self.raw, len) } < len
    }

    /// Copies into `mem`, past the cache, and returns how many bytes: fewer if the user's memory
    /// faults. What was copied is durable after a fence. May sleep.
    #[inline]
    pub(crate) fn copy_to_pmem(&mut self, mem: &Pmem<'_>) -> usize {
        // SAFETY: Both are valid, `mem` writable.
        // INVARIANT: It is advanced by what is copied.
        self.copied = unsafe {
            bindings::rpmem_copy_from_iter_flushcache(mem.addr() as *mut _, mem.len(), self.raw)
        };
        self.copied
    }

    /// The last `len` bytes of what the last write to persistent memory has copied, or all of it, are
    /// to be copied again.
    #[cold]
    pub(crate) fn take_back(&mut self, len: usize) {
        let len = len.min(self.copied);
        // SAFETY: Valid, and advanced by as much by the invariant.
        unsafe { bindings::iov_iter_revert(self.raw, len) };
        // INVARIANT: As many less.
        self.copied -= len;
    }

    /// Copies from `mem` and returns how many bytes: fewer at bad memory or if the user's memory
    /// faults. May sleep.
    #[inline]
    pub(crate) fn copy_from_pmem(&mut self, mem: &Pmem<'_>) -> usize {
        // SAFETY: Both are valid.
        unsafe { bindings::rpmem_copy_mc_to_iter(mem.addr() as *mut _, mem.len(), self.raw) }
    }

    /// Fills `len` bytes of the destination of a read with zeroes and returns how many. May sleep.
    #[inline]
    pub(crate) fn zero(&mut self, len: usize) -> usize {
        if self.is_write() {
            return 0;
        }
        // SAFETY: Valid.
        unsafe { bindings::iov_iter_zero(len, self.raw) }
    }
}

/// Bytes that have been taken from the caller of a write and are still to be written.
pub(crate) struct Bounce {
    data: KVec<u8>,
    left: Range<usize>,
}

impl Bounce {
    /// Bytes taken at a time.
    const SIZE: usize = 32 << 10;

    /// Empty. `ENOMEM`.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            data: KVec::from_elem(0, Self::SIZE, GFP_KERNEL)?,
            left: 0..0,
        })
    }

    /// Whether nothing is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    /// Takes the next bytes. False: the caller's memory cannot be read, not even the first byte of it,
    /// or not all was written of what was taken before. May sleep.
    pub(crate) fn fill(&mut self, user: &mut IovIter<'_>) -> bool {
        if !self.is_empty() {
            return false;
        }
        // SAFETY: Valid, and the source of a write; the type is the kernel crate's for the same.
        let source = unsafe { IovIterSource::from_raw(user.as_raw()) };
        self.left = 0..source.copy_from_iter(&mut self.data);
        !self.is_empty()
    }

    /// Has `f` write of what is left, as if it were the caller's.
    pub(crate) fn write<R>(&mut self, f: impl FnOnce(&mut IovIter<'_>) -> R) -> R {
        let left = &mut self.data[self.left.clone()];
        let part = bindings::kvec {
            iov_base: left.as_mut_ptr().cast(),
            iov_len: left.len(),
        };
        let raw = Opaque::<bindings::iov_iter>::uninit();
        // SAFETY: `raw` is initialised by this; `part` and the bytes are there for longer.
        let mut iter = unsafe {
            bindings::iov_iter_kvec(raw.get(), bindings::ITER_SOURCE, &part, 1, part.iov_len);
            IovIter::from_raw(raw.get())
        };
        let result = f(&mut iter);
        self.left.start = self.left.end - iter.count();
        result
    }

    /// Gives back to the caller what is left.
    pub(crate) fn give_back(self, user: &mut IovIter<'_>) {
        // SAFETY: Valid, and it has been advanced over these bytes.
        unsafe { bindings::iov_iter_revert(user.as_raw(), self.left.len()) };
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
