// SPDX-License-Identifier: GPL-2.0

//! Block I/O as a bio-based driver sees it.
//!
//! C headers: [`include/linux/bio.h`](srctree/include/linux/bio.h),
//! [`include/linux/bvec.h`](srctree/include/linux/bvec.h)

use super::bindings;
use core::{
    marker::PhantomData,
    mem::ManuallyDrop,
    ptr::NonNull, //
};
use kernel::{
    block::SECTOR_SHIFT,
    ffi::c_ulong, //
};

// A segment is one run of the kernel's linear map.
#[cfg(CONFIG_HIGHMEM)]
compile_error!("rust_pmem needs all memory in the linear map (no CONFIG_HIGHMEM)");

/// What a bio asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    /// `REQ_OP_READ`.
    Read,
    /// `REQ_OP_WRITE`.
    Write,
    /// `REQ_OP_WRITE_ZEROES`: no data.
    WriteZeroes,
    /// An operation that this project's drivers do not offer.
    Other,
}

/// How a bio ends: C's `BLK_STS_*`, whose casts bindgen cannot read.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Status {
    /// `BLK_STS_OK`.
    Ok = 0,
    /// `BLK_STS_NOTSUPP`: -EOPNOTSUPP for user space.
    NotSupported = 1,
    /// `BLK_STS_IOERR`: -EIO for user space.
    IoError = 10,
}

/// A bio that was given to a driver and has not been ended.
///
/// Dropping it ends it with an I/O error; [`Bio::end`] says how it went.
///
/// # Invariants
///
/// `raw` points to a valid bio that this value owns: nobody else ends it or changes its iterator.
pub(crate) struct Bio {
    raw: NonNull<bindings::bio>,
}

impl Bio {
    /// # Safety
    ///
    /// `raw` must be a bio that was passed to `->submit_bio()`, and be passed here only once.
    pub(super) unsafe fn from_raw(raw: NonNull<bindings::bio>) -> Self {
        // INVARIANT: By the function's requirements.
        Self { raw }
    }

    #[inline]
    fn opf(&self) -> u32 {
        // SAFETY: By the type's invariant the bio is valid.
        unsafe { (*self.raw.as_ptr()).bi_opf }
    }

    /// The operation.
    #[inline]
    pub(crate) fn op(&self) -> Op {
        match self.opf() & ((1 << bindings::REQ_OP_BITS) - 1) {
            bindings::req_op_REQ_OP_READ => Op::Read,
            bindings::req_op_REQ_OP_WRITE => Op::Write,
            bindings::req_op_REQ_OP_WRITE_ZEROES => Op::WriteZeroes,
            _ => Op::Other,
        }
    }

    /// `REQ_PREFLUSH`: what was completed before this bio must be durable before it begins.
    #[inline]
    pub(crate) fn preflush(&self) -> bool {
        self.opf() & (1 << bindings::req_flag_bits___REQ_PREFLUSH) != 0
    }

    /// `REQ_FUA`: this bio's data must be durable before it completes.
    #[inline]
    pub(crate) fn fua(&self) -> bool {
        self.opf() & (1 << bindings::req_flag_bits___REQ_FUA) != 0
    }

    /// First sector on the disk, in units of 512 bytes.
    #[inline]
    pub(crate) fn sector(&self) -> u64 {
        // SAFETY: By the type's invariant the bio is valid; the copy does not need alignment.
        unsafe { (&raw const (*self.raw.as_ptr()).bi_iter.bi_sector).read_unaligned() }
    }

    /// Length in bytes.
    #[inline]
    pub(crate) fn len(&self) -> u32 {
        // SAFETY: By the type's invariant the bio is valid.
        unsafe { (*self.raw.as_ptr()).bi_iter.bi_size }
    }

    /// Length in sectors of 512 bytes.
    #[inline]
    pub(crate) fn sectors(&self) -> u64 {
        u64::from(self.len() >> SECTOR_SHIFT)
    }

    /// The bio's memory, run by run. Unlike C's `bio_for_each_segment()`, a run that is contiguous
    /// in physical memory is one segment, however many pages it has (`bio_for_each_bvec()`).
    #[inline]
    pub(crate) fn segments(&self) -> Segments<'_> {
        // SAFETY: By the type's invariant the bio is valid. A bio with data has its vector at
        // `bi_io_vec`, and its iterator points inside it; one without data has `bi_size` 0 or is
        // not read or written, so that its vector is not looked at.
        unsafe {
            let bio = self.raw.as_ptr();
            let iter = (*bio).bi_iter;
            #[cfg(kernel_7_3)]
            let done = iter.bi_offset;
            #[cfg(not(kernel_7_3))]
            let done = iter.bi_bvec_done;
            let left = if (*bio).bi_io_vec.is_null() {
                0
            } else {
                iter.bi_size
            };
            Segments {
                next: (*bio).bi_io_vec.wrapping_add(iter.bi_idx as usize),
                done,
                left,
                _bio: PhantomData,
            }
        }
    }

    /// Begins I/O accounting if the queue has it switched on (`queue/iostats`).
    #[inline]
    pub(crate) fn start_accounting(&self) -> Accounting {
        // SAFETY: By the type's invariant the bio, its block device, disk and queue are valid; the
        // features are read as C's blk_queue_io_stat() reads them.
        let on = unsafe {
            let queue = (*(*(*self.raw.as_ptr()).bi_bdev).bd_disk).queue;
            (&raw const (*queue).limits.features).read_volatile() & super::gendisk::feature::IO_STAT
                != 0
        };
        Accounting(on.then(|| {
            // SAFETY: The bio is valid and about to be worked on.
            unsafe { bindings::bio_start_io_acct(self.raw.as_ptr()) }
        }))
    }

    /// Ends what [`Bio::start_accounting`] began.
    #[inline]
    pub(crate) fn end_accounting(&self, accounting: Accounting) {
        if let Some(start) = accounting.0 {
            // SAFETY: The bio is valid; `start` is from bio_start_io_acct() on it. This is C's
            // inline bio_end_io_acct().
            unsafe {
                let bio = self.raw.as_ptr();
                bindings::bio_end_io_acct_remapped(bio, start, (*bio).bi_bdev)
            };
        }
    }

    /// Ends the bio.
    #[inline]
    pub(crate) fn end(self, status: Status) {
        let status = status as u8;
        let this = ManuallyDrop::new(self);
        // SAFETY: By the type's invariant the bio is valid and ours to end; `self` is gone, so it
        // is ended once.
        unsafe {
            // As in C, a status that is set already is not taken back.
            if status != 0 {
                (*this.raw.as_ptr()).bi_status = status;
            }
            bindings::bio_endio(this.raw.as_ptr());
        }
    }
}

impl Drop for Bio {
    fn drop(&mut self) {
        // SAFETY: By the type's invariant the bio is valid, ours to end, and not ended yet.
        unsafe {
            (*self.raw.as_ptr()).bi_status = Status::IoError as u8;
            bindings::bio_endio(self.raw.as_ptr());
        }
    }
}

/// When accounting of a bio began, if it is on.
pub(crate) struct Accounting(Option<c_ulong>);

/// A run of memory that a bio reads into or writes from.
///
/// The memory may be user space's: others may change it at any time, so no reference to its
/// contents is ever made.
///
/// # Invariants
///
/// `ptr` is valid for reading and writing `len` bytes while the bio `'a` is not ended.
pub(crate) struct Segment<'a> {
    ptr: *mut u8,
    len: usize,
    _bio: PhantomData<&'a Bio>,
}

impl Segment<'_> {
    /// Its first byte.
    #[inline]
    pub(super) fn as_ptr(&self) -> *mut u8 {
        self.ptr
    }

    /// Length in bytes, never 0.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

/// Iterator over a bio's memory; see [`Bio::segments`].
///
/// # Invariants
///
/// `next` points to an entry of the bio's vector if `left` is not 0; `done` bytes of that entry are
/// behind us, and the vector holds at least `left` bytes from there.
pub(crate) struct Segments<'a> {
    next: *const bindings::bio_vec,
    done: u32,
    left: u32,
    _bio: PhantomData<&'a Bio>,
}

impl<'a> Iterator for Segments<'a> {
    type Item = Segment<'a>;

    #[inline]
    fn next(&mut self) -> Option<Segment<'a>> {
        while self.left != 0 {
            // SAFETY: By the type's invariant, since `left` is not 0.
            let bv = unsafe { &*self.next };
            let (start, len) = (
                bv.bv_offset as usize + self.done as usize,
                (bv.bv_len - self.done).min(self.left),
            );
            // SAFETY: The entry's page is valid, and there is no high memory.
            let base = unsafe { bindings::rpmem_page_virt(bv.bv_page) }.cast::<u8>();
            // INVARIANT: The entry is used up; what is left lies in the next ones.
            self.next = self.next.wrapping_add(1);
            self.done = 0;
            self.left -= len;
            if len != 0 {
                // INVARIANT: The pages of an entry are contiguous in the linear map, and the bio
                // holds them until it is ended.
                return Some(Segment {
                    ptr: base.wrapping_add(start),
                    len: len as usize,
                    _bio: PhantomData,
                });
            }
        }
        None
    }
}
