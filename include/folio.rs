// SPDX-License-Identifier: GPL-2.0

//! Folios of DAX memory.
//!
//! C headers: [`include/linux/mm_types.h`](srctree/include/linux/mm_types.h),
//! [`include/linux/memremap.h`](srctree/include/linux/memremap.h)
//!
//! A DAX folio that no file has is a page of order 0 with `mapping` and `share` 0. The first file
//! that has it is in `mapping`, with the page's place in `index`. When it is in several files
//! (reflink), `mapping` is null and `share`, which is the same word as `index`, counts them. These
//! words are guarded by a lock that is hashed by folio ([`ShareLock`]), as the files have no lock in
//! common; C changes them under the lock of one of the files only.

use super::{
    bindings,
    dev_pagemap,
    inode::AddressSpace,
    pmem::Pmem,
    xarray::{
        XaLocked,
        XaState, //
    }, //
};
use core::marker::PhantomData;
use kernel::{
    sync::rcu,
    types::{
        NotThreadSafe,
        Opaque, //
    }, //
};

/// `nr` pages of persistent memory from a page frame number on.
///
/// # Invariants
///
/// For as long as `'a` they have `struct page`s of a pagemap of type `MEMORY_DEVICE_FS_DAX` and are
/// mapped in the kernel's direct map, as [`Pmem`](super::pmem::Pmem) is.
#[derive(Clone, Copy)]
pub(crate) struct Pages<'a> {
    pfn: usize,
    nr: usize,
    _mapped: PhantomData<&'a ()>,
}

impl<'a> Pages<'a> {
    /// The pages, if these are such pages. `_mapping` is a file's on the device they are of, which
    /// keeps the pagemap.
    #[inline]
    pub(crate) fn new(_mapping: &'a AddressSpace, pfn: usize, nr: usize) -> Option<Self> {
        // Almost always pages of our own; a file system may have others on a second device.
        let valid = dev_pagemap::has_pfns(pfn, nr)
            // SAFETY: Checks before it looks at the pages.
            || unsafe { bindings::rpmem_pfns_are_fsdax(pfn, nr) };
        // INVARIANT: A file system on the device is mounted as long as one of its files is in use,
        // and the pagemap stays as long as the device is open. Ranges are contiguous: the first and
        // last page are checked.
        valid.then_some(Self {
            pfn,
            nr,
            _mapped: PhantomData,
        })
    }

    /// The first page frame number.
    #[inline]
    pub(crate) fn pfn(&self) -> usize {
        self.pfn
    }

    /// How many pages.
    #[inline]
    pub(crate) fn nr(&self) -> usize {
        self.nr
    }

    /// The folio that the first page is in.
    #[inline]
    pub(crate) fn folio(&self) -> &'a Folio {
        // SAFETY: By the type's invariant.
        unsafe { &*bindings::rpmem_pfn_folio(self.pfn).cast() }
    }

    /// Whether somebody other than page tables has a reference to the folio that page number `i` is
    /// in; false behind the last page. While nobody can get a new one, false is for good.
    #[inline]
    pub(crate) fn is_held(&self, i: usize) -> bool {
        // SAFETY: By the type's invariant.
        i < self.nr && unsafe { bindings::rpmem_pfn_is_held(self.pfn + i) }
    }

    /// The raw first page.
    #[inline]
    pub(super) fn page(&self) -> *mut bindings::page {
        // SAFETY: By the type's invariant.
        unsafe { bindings::rpmem_pfn_page(self.pfn) }
    }

    /// The bytes.
    #[inline]
    pub(crate) fn mem(&self) -> Pmem<'a> {
        // SAFETY: By the type's invariant.
        unsafe {
            Pmem::new(
                bindings::rpmem_pfn_virt(self.pfn) as usize,
                self.nr * bindings::PAGE_SIZE,
            )
        }
    }
}

/// A `struct folio` of DAX memory.
#[repr(transparent)]
pub(crate) struct Folio(Opaque<bindings::folio>);

impl Folio {
    /// # Safety
    ///
    /// `raw` must be a folio of a pagemap of type `MEMORY_DEVICE_FS_DAX` for as long as `'a`.
    #[inline]
    pub(super) unsafe fn from_raw<'a>(raw: *mut bindings::folio) -> &'a Self {
        // SAFETY: By the function's requirements; the layout is the same.
        unsafe { &*raw.cast() }
    }

    /// For the other abstractions.
    #[inline]
    pub(super) fn as_raw(&self) -> *mut bindings::folio {
        self.0.get()
    }

    fn fields(&self) -> *mut bindings::folio__bindgen_ty_1__bindgen_ty_1 {
        self.0.get().cast()
    }

    fn share_word(&self) -> *mut usize {
        // SAFETY: Valid; `index` and `share` are the variants of a union.
        unsafe { (&raw mut (*self.fields()).__bindgen_anon_2).cast() }
    }

    /// The first page frame number.
    #[inline]
    pub(crate) fn pfn(&self) -> usize {
        // SAFETY: Valid.
        unsafe { bindings::rpmem_folio_pfn(self.0.get()) }
    }

    /// log2 of the number of pages.
    #[inline]
    pub(crate) fn order(&self) -> u32 {
        // SAFETY: Valid.
        unsafe { bindings::rpmem_folio_order(self.0.get()) }
    }

    fn is_head(&self) -> bool {
        // SAFETY: Valid.
        unsafe { is_head(self.0.get()) }
    }

    /// `mapping`, to be compared.
    #[inline]
    pub(crate) fn mapping_ptr(&self) -> *mut bindings::address_space {
        // SAFETY: Valid; may change at any time.
        unsafe { (&raw const (*self.fields()).mapping).read_volatile() }
    }

    /// `index`: of use only while the folio belongs to one file and that file's entry is locked.
    #[inline]
    pub(crate) fn index(&self) -> usize {
        // SAFETY: Valid; may change at any time.
        unsafe { self.share_word().read_volatile() }
    }

    /// Whether somebody has locked it: who has a device write to it does, for a moment.
    #[inline]
    pub(crate) fn is_locked(&self) -> bool {
        // SAFETY: Valid.
        unsafe { bindings::rpmem_folio_is_locked(self.0.get()) }
    }

    /// Whether somebody other than page tables has a reference: a device, GUP.
    #[inline]
    pub(crate) fn is_busy(&self) -> bool {
        // SAFETY: Valid.
        unsafe { bindings::rpmem_folio_extra_refs(self.0.get()) != 0 }
    }

    /// Whether no single file owns the folio: none has it, or it is or was shared. May change at any
    /// time.
    #[inline]
    pub(crate) fn has_no_owner(&self) -> bool {
        self.mapping_ptr().is_null()
    }

    /// Whether no file has the folio. May change at any time.
    #[inline]
    pub(crate) fn is_free(&self) -> bool {
        self.has_no_owner() && self.index() == 0
    }

    /// Whether it is of several pages and has to stay so: references to any of them are held by the
    /// folio. Of use while nobody has it mapped.
    #[inline]
    pub(crate) fn is_held_together(&self) -> bool {
        self.order() > 0 && self.is_busy()
    }

    /// Takes the lock on whom the folio belongs to.
    #[inline]
    pub(crate) fn lock_share(&self) -> ShareLock<'_> {
        // SAFETY: Valid.
        let flags = unsafe { bindings::rpmem_share_lock(self.0.get()) };
        // INVARIANT: Just taken.
        ShareLock { folio: self, flags }
    }

    /// Makes a folio of 2^`order` pages of pages of order 0 that no file has. Context: may sleep;
    /// nobody else may be doing the same.
    pub(crate) fn make_compound(&self, order: u32) {
        // SAFETY: Valid.
        unsafe { bindings::rpmem_folio_make_compound(self.0.get(), order) };
    }

    /// What C's `noop_dirty_folio()` does, for files that are not DAX: whether the folio was clean.
    pub(crate) fn set_dirty(&self) -> bool {
        // SAFETY: Valid.
        unsafe { bindings::rpmem_folio_set_dirty(self.0.get()) }
    }

    /// Calls `f` with the page cache of the file that has the folio, locked, and with a cursor at the
    /// folio's index. `None` if no DAX file has the folio for itself. While the folio comes to the file
    /// or goes from it the index may be any: whether the entry there is the folio's is for `f` to see.
    pub(crate) fn with_owner<R>(
        &self,
        f: impl FnOnce(&AddressSpace, XaLocked<'_, '_>) -> R,
    ) -> Option<R> {
        loop {
            // Inodes are freed after a grace period.
            let rcu = rcu::read_lock();
            // Nobody needs to hold the folio. If it is a part of a larger one by now its words are
            // something else.
            let was_head = self.is_head();
            // SAFETY: Valid.
            let mapping = unsafe { bindings::rpmem_folio_mapping(self.0.get()) };
            if mapping.is_null() || !was_head || !self.is_head() {
                return None;
            }
            // SAFETY: Inodes are freed after a grace period: not under RCU, and after that not while
            // the array's lock is held, under which interrupts are off. Inodes of DAX files with
            // folios have a superblock.
            let mapping = unsafe { AddressSpace::from_raw(mapping) };
            if !mapping.is_dax() {
                return None;
            }
            let mut xas = XaState::new(mapping.i_pages(), 0, 0);
            let mut xa = xas.lock();
            drop(rcu);
            if mapping.is_same(self.mapping_ptr()) {
                xa.set(self.index());
                return Some(f(mapping, xa));
            }
        }
    }

    /// A reference, even if there was none; idle DAX folios have none.
    #[inline]
    pub(crate) fn get(&self) -> FolioRef<'_> {
        // SAFETY: Valid.
        unsafe { bindings::rpmem_folio_ref_inc(self.0.get()) };
        // INVARIANT: Just taken.
        FolioRef(self)
    }

    /// Sleeps until nobody but page tables has a reference, where `cb` is what C's
    /// `___wait_var_event()` does to sleep. `ERESTARTSYS` if a signal came.
    pub(crate) fn wait_idle(
        &self,
        inode: &super::inode::Inode,
        cb: LayoutCallback,
    ) -> kernel::error::Result {
        // SAFETY: Both are valid; the callback is that of the file system the inode is of.
        kernel::error::to_result(unsafe {
            bindings::rpmem_wait_page_idle(self.0.get().cast(), Some(cb.0), inode.as_raw())
        })
    }

    /// Sleeps until nobody but page tables has a reference.
    pub(crate) fn wait_idle_uninterruptible(&self) {
        // SAFETY: Valid.
        unsafe { bindings::rpmem_wait_page_idle_uninterruptible(self.0.get().cast()) };
    }
}

/// How a file system sleeps while a page is busy: gives its locks away, sleeps, takes them again.
#[derive(Clone, Copy)]
pub(crate) struct LayoutCallback(pub(super) unsafe extern "C" fn(*mut bindings::inode));

/// Whether the page that was found to begin a folio still does.
///
/// # Safety
///
/// It must have begun one.
pub(super) unsafe fn is_head(folio: *mut bindings::folio) -> bool {
    // SAFETY: By the function's requirements; `struct page`s stay.
    unsafe {
        core::ptr::eq(
            bindings::rpmem_pfn_folio(bindings::rpmem_folio_pfn(folio)),
            folio,
        )
    }
}

/// A reference to a folio.
///
/// # Invariants
///
/// Owns one reference.
pub(crate) struct FolioRef<'a>(&'a Folio);

impl Drop for FolioRef<'_> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: The reference is ours.
        unsafe { bindings::rpmem_folio_put(self.0.as_raw()) };
    }
}

/// The lock under which shared folios are taken up by one more file.
pub(crate) struct SharingLock(NotThreadSafe);

impl SharingLock {
    /// Takes the lock. May sleep.
    pub(crate) fn new() -> Self {
        // SAFETY: Has no requirements.
        unsafe { bindings::rpmem_sharing_lock() };
        Self(NotThreadSafe)
    }
}

impl Drop for SharingLock {
    fn drop(&mut self) {
        // SAFETY: Taken by `new`.
        unsafe { bindings::rpmem_sharing_unlock() };
    }
}

/// The lock on whom a folio belongs to.
///
/// # Invariants
///
/// The folio's hashed spinlock is held with interrupts off, `flags` are to be restored.
pub(crate) struct ShareLock<'a> {
    folio: &'a Folio,
    flags: usize,
}

impl ShareLock<'_> {
    /// Whether no file has the folio.
    #[inline]
    pub(crate) fn is_free(&self) -> bool {
        self.folio.is_free()
    }

    /// How many files have it, if several had it once; else 0.
    #[inline]
    pub(crate) fn files(&self) -> usize {
        if self.is_shared() {
            self.folio.index()
        } else {
            0
        }
    }

    /// C's `dax_folio_is_shared()`: whether several files have it.
    #[inline]
    pub(crate) fn is_shared(&self) -> bool {
        self.folio.mapping_ptr().is_null() && self.folio.index() != 0
    }

    /// The folio, which no other file has, now belongs to `mapping` at `index`.
    #[inline]
    pub(crate) fn set_owner(&mut self, mapping: &AddressSpace, index: usize) {
        // SAFETY: Valid, and guarded by the lock. The C layer, if it had the folio before (under
        // dm-linear), leaves it marked dirty for ever; we would not be told of its stores then.
        unsafe {
            bindings::rpmem_folio_clear_dirty(self.folio.as_raw());
            // In this order: `with_owner` reads the index after it has found the mapping.
            self.folio.share_word().write_volatile(index);
            (&raw mut (*self.folio.fields()).mapping).write_volatile(mapping.as_raw());
        }
    }

    /// One more file has the folio, which is not the only one's any more even if it was free.
    #[inline]
    pub(crate) fn share(&mut self) {
        let files = if self.folio.has_no_owner() {
            self.folio.index()
        } else {
            1
        };
        // SAFETY: Valid, and guarded by the lock.
        unsafe {
            (&raw mut (*self.folio.fields()).mapping).write_volatile(core::ptr::null_mut());
            self.folio.share_word().write_volatile(files + 1);
        }
    }

    /// One file less has the folio. The last one leaves pages of order 0, or a free folio as it was if
    /// somebody holds it.
    #[inline]
    pub(crate) fn unshare(&mut self) {
        if self.is_shared() {
            let files = self.folio.index() - 1;
            if files > 0 {
                // SAFETY: Valid, and guarded by the lock.
                unsafe { self.folio.share_word().write_volatile(files) };
                return;
            }
        }
        // SAFETY: Valid, and guarded by the lock.
        unsafe {
            bindings::rpmem_folio_clear_dirty(self.folio.as_raw());
            (&raw mut (*self.folio.fields()).mapping).write_volatile(core::ptr::null_mut());
            self.folio.share_word().write_volatile(0);
        }
        if !self.folio.is_held_together() {
            self.take_apart();
        }
    }

    /// Makes pages of order 0 of a free folio that nobody holds.
    #[inline]
    pub(crate) fn take_apart(&mut self) {
        // SAFETY: Valid, guarded by the lock, and without references.
        unsafe { bindings::dax_folio_reset_order(self.folio.as_raw()) };
    }
}

impl Drop for ShareLock<'_> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type's invariant.
        unsafe { bindings::rpmem_share_unlock(self.folio.as_raw(), self.flags) };
    }
}
