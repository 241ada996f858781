// SPDX-License-Identifier: GPL-2.0

//! Inodes and their page caches.
//!
//! C headers: [`include/linux/fs.h`](srctree/include/linux/fs.h),
//! [`include/linux/pagemap.h`](srctree/include/linux/pagemap.h)

use super::{
    bindings,
    super_block::SuperBlock,
    xarray::{
        XArray,
        XaLocked, //
    }, //
};
use kernel::{
    error::to_result,
    prelude::*,
    types::Opaque, //
};

/// A `struct inode` in use.
#[repr(transparent)]
pub(crate) struct Inode(Opaque<bindings::inode>);

impl Inode {
    /// # Safety
    ///
    /// `raw` must be valid and in use for as long as `'a`.
    #[inline]
    pub(super) unsafe fn from_raw<'a>(raw: *mut bindings::inode) -> &'a Self {
        // SAFETY: By the function's requirements; the layout is the same.
        unsafe { &*raw.cast() }
    }

    /// The raw inode.
    #[inline]
    pub(super) fn as_raw(&self) -> *mut bindings::inode {
        self.0.get()
    }

    /// `i_mapping`.
    #[inline]
    pub(crate) fn mapping(&self) -> &AddressSpace {
        // SAFETY: Set once, valid as long as the inode.
        unsafe { AddressSpace::from_raw((*self.0.get()).i_mapping) }
    }

    /// `i_sb`.
    #[inline]
    pub(crate) fn sb(&self) -> &SuperBlock {
        // SAFETY: An inode in use has an active superblock.
        unsafe { SuperBlock::from_raw((*self.0.get()).i_sb) }
    }

    /// `i_size_read()`, bytes.
    #[inline]
    pub(crate) fn size(&self) -> i64 {
        // SAFETY: The inode is valid.
        unsafe { bindings::rpmem_i_size(self.0.get()) }
    }

    /// Whether the file has no name any more: `i_nlink` is 0.
    #[inline]
    pub(crate) fn is_unlinked(&self) -> bool {
        // SAFETY: The inode is valid; a plain field of a union that is there for its constness.
        unsafe { (*self.0.get()).__bindgen_anon_1.i_nlink == 0 }
    }

    /// `i_blkbits`: log2 of the block size.
    #[inline]
    pub(crate) fn blkbits(&self) -> u32 {
        // SAFETY: The inode is valid; set once.
        unsafe { u32::from((*self.0.get()).i_blkbits) }
    }

    /// `IS_DAX()`.
    #[inline]
    pub(crate) fn is_dax(&self) -> bool {
        // SAFETY: The inode is valid; a flag that changes only while nobody uses the file.
        unsafe { (*self.0.get()).i_flags & bindings::S_DAX != 0 }
    }

    /// `__mark_inode_dirty(inode, I_DIRTY_PAGES)`: sync(2) will find the inode. Context: any where
    /// `i_lock` may be taken.
    #[inline]
    pub(crate) fn mark_dirty_pages(&self) {
        // SAFETY: The inode is valid.
        unsafe {
            bindings::__mark_inode_dirty(
                self.0.get(),
                bindings::inode_state_flags_enum_I_DIRTY_PAGES as i32,
            )
        };
    }
}

/// A `struct address_space` of an inode in use.
#[repr(transparent)]
pub(crate) struct AddressSpace(Opaque<bindings::address_space>);

impl AddressSpace {
    /// # Safety
    ///
    /// `raw` must be valid, and belong to an inode in use, for as long as `'a`.
    #[inline]
    pub(super) unsafe fn from_raw<'a>(raw: *mut bindings::address_space) -> &'a Self {
        // SAFETY: By the function's requirements; the layout is the same.
        unsafe { &*raw.cast() }
    }

    /// The raw address space.
    #[inline]
    pub(super) fn as_raw(&self) -> *mut bindings::address_space {
        self.0.get()
    }

    /// `host`.
    #[inline]
    pub(crate) fn host(&self) -> &Inode {
        // SAFETY: Belongs to an inode in use.
        unsafe { Inode::from_raw((*self.0.get()).host) }
    }

    /// `dax_mapping()`.
    #[inline]
    pub(crate) fn is_dax(&self) -> bool {
        self.host().is_dax()
    }

    /// `i_pages`.
    #[inline]
    pub(crate) fn i_pages(&self) -> &XArray {
        // SAFETY: Part of the address space; C takes its lock with interrupts off.
        unsafe { XArray::from_raw(&raw mut (*self.0.get()).i_pages) }
    }

    /// A number for tables that several mappings may share a slot of.
    #[inline]
    pub(crate) fn hash(&self) -> usize {
        // Mappings are parts of inodes, several hundred bytes each, a power of two from each other or
        // not: the upper bits of a product (Knuth's multiplicative hash) depend on all of them.
        let id = (self.i_pages().id() >> 6) as u64;
        (id.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize
    }

    /// Whether nothing is in the page cache.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        // SAFETY: Valid; racy by nature, as C's `mapping_empty()`.
        unsafe {
            (&raw const (*self.0.get()).i_pages.xa_head)
                .read_volatile()
                .is_null()
        }
    }

    /// Changes `nrpages`, which the array's lock guards.
    #[inline]
    pub(crate) fn add_pages(&self, _lock: &XaLocked<'_, '_>, nr: isize) {
        // SAFETY: Valid; the lock is held.
        unsafe {
            let nrpages = &raw mut (*self.0.get()).nrpages;
            nrpages.write_volatile(nrpages.read().wrapping_add_signed(nr));
        }
    }

    /// `mapping_writably_mapped()`: whether any VMA may allow stores to the file. Unlike
    /// `mapping_mapped()` this stays so while a VMA changes its bounds: vma_prepare() takes it out of
    /// the tree until vma_complete(), with its page tables as they are.
    #[inline]
    pub(crate) fn is_writably_mapped(&self) -> bool {
        // SAFETY: Valid.
        unsafe { bindings::rpmem_mapping_writably_mapped(self.0.get()) }
    }

    /// `unmap_mapping_pages(…, even_cows = false)`: takes the pages out of all page tables. May
    /// sleep.
    #[inline]
    pub(crate) fn unmap_pages(&self, index: usize, nr: usize) {
        // SAFETY: Valid.
        unsafe { bindings::unmap_mapping_pages(self.0.get(), index, nr, false) };
    }

    /// `mapping_wrprotect_range()`: write-protects and cleans all shared mappings of pages that are
    /// at `pages` in memory and from `index` on in the file, both contiguous. One call sees at most
    /// one PMD mapping per VMA. May sleep.
    #[inline]
    pub(crate) fn wrprotect(&self, index: usize, pfn: usize, nr: usize) {
        // SAFETY: Valid; pfns are only compared with those in page tables.
        unsafe { bindings::mapping_wrprotect_range(self.0.get(), index, pfn, nr) };
    }

    /// `mapping_set_error()`: the next fsync reports it.
    pub(crate) fn set_error(&self, err: Error) {
        // SAFETY: Valid.
        unsafe { bindings::rpmem_mapping_set_error(self.0.get(), err.to_errno()) };
    }

    /// `invalidate_inode_pages2_range()`: deletes clean entries from `first` to `last` and unmaps
    /// them. `EBUSY` if some were dirty. May sleep.
    pub(crate) fn invalidate(&self, first: usize, last: usize) -> Result {
        // SAFETY: Valid.
        to_result(unsafe { bindings::invalidate_inode_pages2_range(self.0.get(), first, last) })
    }

    /// Whether it is that one.
    #[inline]
    pub(crate) fn is_same(&self, other: *const bindings::address_space) -> bool {
        core::ptr::eq(self.0.get(), other)
    }
}
