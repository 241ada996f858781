// SPDX-License-Identifier: GPL-2.0

//! Iteration over a file's extents: what a file system says where the bytes are.
//!
//! C header: [`include/linux/iomap.h`](srctree/include/linux/iomap.h)

use super::{
    bindings,
    dax_access::DaxAccess,
    inode::Inode, //
};
use core::marker::PhantomData;
use kernel::{
    error::to_result,
    prelude::*,
    types::Opaque, //
};

/// Why extents are asked for: C's `IOMAP_*` without a prefix of its own.
pub(crate) mod flags {
    use crate::include::bindings;
    /// Blocks are to be written: allocates.
    pub(crate) const WRITE: u32 = bindings::IOMAP_WRITE;
    /// For zeroing.
    pub(crate) const ZERO: u32 = bindings::IOMAP_ZERO;
    /// For a page fault.
    pub(crate) const FAULT: u32 = bindings::IOMAP_FAULT;
    /// Must not block.
    pub(crate) const NOWAIT: u32 = bindings::IOMAP_NOWAIT;
    /// For unsharing.
    pub(crate) const UNSHARE: u32 = bindings::IOMAP_UNSHARE;
    /// For DAX.
    pub(crate) const DAX: u32 = bindings::IOMAP_DAX;
}

/// `struct iomap_ops` of a file system.
#[repr(transparent)]
pub(crate) struct IomapOps(Opaque<bindings::iomap_ops>);

impl IomapOps {
    /// # Safety
    ///
    /// `raw` must be valid for as long as `'a`.
    #[inline]
    pub(super) unsafe fn from_raw<'a>(raw: *const bindings::iomap_ops) -> &'a Self {
        // SAFETY: By the function's requirements; the layout is the same.
        unsafe { &*raw.cast() }
    }
}

/// What kind of extent it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    /// No blocks.
    Hole,
    /// Blocks that hold no data yet: read as zeroes.
    Unwritten,
    /// Blocks with data.
    Mapped,
    /// Something that DAX cannot handle.
    Other,
}

/// `struct iomap`: an extent.
#[repr(transparent)]
pub(crate) struct Iomap(bindings::iomap);

impl Iomap {
    /// `type`.
    #[inline]
    pub(crate) fn type_(&self) -> Type {
        match u32::from(self.0.type_) {
            bindings::IOMAP_HOLE => Type::Hole,
            bindings::IOMAP_UNWRITTEN => Type::Unwritten,
            bindings::IOMAP_MAPPED => Type::Mapped,
            _ => Type::Other,
        }
    }

    /// Whether it reads as zeroes: a hole or unwritten.
    #[inline]
    pub(crate) fn is_zero(&self) -> bool {
        matches!(self.type_(), Type::Hole | Type::Unwritten)
    }

    /// `IOMAP_F_NEW`: blocks have just been allocated.
    #[inline]
    pub(crate) fn is_new(&self) -> bool {
        u32::from(self.0.flags) & bindings::IOMAP_F_NEW != 0
    }

    /// `IOMAP_F_DIRTY`: metadata needed to find the data is not on the medium yet.
    #[inline]
    pub(crate) fn is_dirty(&self) -> bool {
        u32::from(self.0.flags) & bindings::IOMAP_F_DIRTY != 0
    }

    /// `IOMAP_F_SHARED`: blocks are, or were until now, shared with another file: copy-on-write.
    #[inline]
    pub(crate) fn is_shared(&self) -> bool {
        u32::from(self.0.flags) & bindings::IOMAP_F_SHARED != 0
    }

    /// `addr`: byte of the device.
    #[inline]
    pub(crate) fn addr(&self) -> u64 {
        self.0.addr
    }

    /// The byte of the device less that of the file.
    #[inline]
    fn base(&self) -> u64 {
        self.0.addr.wrapping_sub(self.0.offset as u64)
    }

    /// `offset`: byte of the file.
    #[inline]
    pub(crate) fn offset(&self) -> i64 {
        self.0.offset
    }

    /// The byte of the file behind the extent.
    #[inline]
    pub(crate) fn end(&self) -> u64 {
        self.0.offset as u64 + self.0.length
    }

    /// The device's memory.
    #[inline]
    pub(crate) fn dax(&self) -> Option<DaxAccess<'_>> {
        // SAFETY: The file system holds the dax_device as long as it is mounted.
        unsafe { DaxAccess::from_raw(self.0.dax_dev) }
    }
}

/// `struct iomap_iter`: walks over the extents of a range of a file.
pub(crate) struct IomapIter<'a> {
    raw: bindings::iomap_iter,
    /// What was copied on write has not become the file's.
    lost: bool,
    _inode: PhantomData<&'a Inode>,
}

impl<'a> IomapIter<'a> {
    /// `len` bytes from `pos` on; see [`flags`].
    #[inline]
    pub(crate) fn new(inode: &'a Inode, pos: i64, len: u64, flags: u32) -> Self {
        Self {
            raw: bindings::iomap_iter {
                inode: inode.as_raw(),
                pos,
                len,
                flags,
                ..Default::default()
            },
            lost: false,
            _inode: PhantomData,
        }
    }

    /// C's `iomap_iter()`: ends the extent at hand and gets the next one. False at the end of the
    /// range, or when nothing was done with the last extent. Must be called until it returns false
    /// or an error, but see [`IomapIter::leave`]. May sleep.
    ///
    /// `EIO` also if what was copied on write in the extent that is ended did not become the file's
    /// ([`IomapIter::has_lost`]), for want of space for metadata, or in a file system that is shut down.
    /// C says nothing then: iomap_iter_continue() drops such an error where there was progress.
    #[inline]
    pub(crate) fn next(&mut self, ops: &IomapOps) -> Result<bool> {
        let start = self.raw.iter_start_pos;
        let copies = self.has_copies() && self.raw.pos != start;
        let copies = copies.then(|| self.iomap().base());
        let next = self.step(ops);
        if let Some(base) = copies {
            if !self.has_become_the_files(ops, start, base) {
                self.lost = true;
                self.again();
                return Err(EIO);
            }
        }
        next
    }

    /// Whether there is an extent at hand that was given out for copy-on-write, and not for reading.
    #[inline]
    fn has_copies(&self) -> bool {
        self.raw.iomap.length != 0
            && self.iomap().is_shared()
            && self.raw.flags & (flags::WRITE | flags::ZERO) != 0
    }

    /// Whether an [`IomapIter::next`] had to say that copies were lost.
    #[inline]
    pub(crate) fn has_lost(&self) -> bool {
        self.lost
    }

    /// Whether the file's bytes from `start` to the position are not in the blocks for copy-on-write at
    /// `base` any more, which xfs would have ready still.
    fn has_become_the_files(&self, ops: &IomapOps, start: i64, base: u64) -> bool {
        let len = self.raw.pos.wrapping_sub(start) as u64;
        let why = self.raw.flags & !flags::NOWAIT;
        let mut now = IomapIter::new(self.inode(), start, len, why);
        while !now.is_done() {
            let Ok(true) = now.step(ops) else {
                return false;
            };
            if now.iomap().is_shared() && now.iomap().base() == base {
                return false;
            }
            let len = now.length();
            if now.advance(len).is_err() {
                return false;
            }
            now.again();
        }
        true
    }

    #[inline]
    fn step(&mut self, ops: &IomapOps) -> Result<bool> {
        // SAFETY: Both are valid.
        let ret = unsafe { bindings::rpmem_iomap_iter(&mut self.raw, ops.0.get()) };
        // Not inlined, and errors are rare.
        if ret < 0 {
            to_result(ret)?;
        }
        Ok(ret > 0)
    }

    /// For faults: ends the walk without telling the file system that nothing was done with its
    /// extent. xfs would free the blocks that it has ready for copy-on-write there, and a write(2)
    /// may be filling them (it holds another lock than faults do). They stay for the next try; what
    /// nobody fills is allocated until the file is truncated or its inode leaves memory (xfs's garbage
    /// collection passes over blocks that were ready to be written to).
    #[inline]
    pub(crate) fn leave(self) {}

    /// The next [`IomapIter::next`] gets the extent at the position anew, without telling the file
    /// system what was done with the one at hand; see [`IomapIter::leave`].
    pub(crate) fn again(&mut self) {
        self.raw.iomap = Default::default();
        self.raw.srcmap = Default::default();
    }

    /// Tells the file system, in the next [`IomapIter::next`], that it went wrong.
    #[inline]
    pub(crate) fn fail(&mut self, err: Error) {
        self.raw.status = err.to_errno();
    }

    /// C's `iomap_iter_advance()`: `count` bytes are done. `EIO` if that is more than there is.
    #[inline]
    pub(crate) fn advance(&mut self, count: u64) -> Result {
        if count > self.length() {
            return Err(EIO);
        }
        // The last page of the largest file ends at 2^63.
        self.raw.pos = self.raw.pos.wrapping_add(count as i64);
        self.raw.len -= count;
        Ok(())
    }

    /// Where the iteration is in the file, bytes.
    #[inline]
    pub(crate) fn pos(&self) -> i64 {
        self.raw.pos
    }

    /// Whether nothing is left of the range.
    #[inline]
    pub(crate) fn is_done(&self) -> bool {
        self.raw.len == 0
    }

    /// The byte of the file behind the range that is left.
    #[inline]
    pub(crate) fn end(&self) -> u64 {
        self.raw.pos as u64 + self.raw.len
    }

    /// The inode.
    #[inline]
    pub(crate) fn inode(&self) -> &'a Inode {
        // SAFETY: Valid for 'a, see `new`.
        unsafe { Inode::from_raw(self.raw.inode) }
    }

    /// Whether it is for writing.
    #[inline]
    pub(crate) fn is_write(&self) -> bool {
        self.raw.flags & flags::WRITE != 0
    }

    /// The extent.
    #[inline]
    pub(crate) fn iomap(&self) -> &Iomap {
        // SAFETY: The layout is the same.
        unsafe { &*(&raw const self.raw.iomap).cast() }
    }

    /// C's `iomap_iter_srcmap()`: where to copy from, for copy-on-write; else the extent itself.
    #[inline]
    pub(crate) fn srcmap(&self) -> &Iomap {
        if u32::from(self.raw.srcmap.type_) == bindings::IOMAP_HOLE {
            return self.iomap();
        }
        // SAFETY: The layout is the same.
        unsafe { &*(&raw const self.raw.srcmap).cast() }
    }

    /// C's `iomap_want_unshare_iter()`.
    #[inline]
    pub(crate) fn wants_unshare(&self) -> bool {
        self.iomap().is_shared() && u32::from(self.raw.srcmap.type_) == bindings::IOMAP_MAPPED
    }

    /// C's `iomap_length()`: bytes from the position on that the extent, and the source extent if
    /// there is one, cover.
    #[inline]
    pub(crate) fn length(&self) -> u64 {
        let mut end = self.iomap().end();
        if u32::from(self.raw.srcmap.type_) != bindings::IOMAP_HOLE {
            end = end.min(self.srcmap().end());
        }
        self.raw.len.min(end.wrapping_sub(self.raw.pos as u64))
    }
}
