// SPDX-License-Identifier: GPL-2.0

//! Page faults.
//!
//! C header: [`include/linux/mm.h`](srctree/include/linux/mm.h)

use super::{
    bindings,
    folio::Pages,
    inode::AddressSpace,
    zero_pmd::ZeroPmd, //
};
use kernel::prelude::*;

/// `vm_fault_t`: what became of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct FaultResult(pub(super) u32);

impl FaultResult {
    /// Nothing done: try again, or (where `fault` must return a page) an error.
    pub(crate) const NONE: Self = Self(0);
    /// Out of memory.
    pub(crate) const OOM: Self = Self(bindings::vm_fault_reason_VM_FAULT_OOM);
    /// Bad access.
    pub(crate) const SIGBUS: Self = Self(bindings::vm_fault_reason_VM_FAULT_SIGBUS);
    /// Bad memory.
    pub(crate) const HWPOISON: Self = Self(bindings::vm_fault_reason_VM_FAULT_HWPOISON);
    /// The page table entry is set.
    pub(crate) const NOPAGE: Self = Self(bindings::vm_fault_reason_VM_FAULT_NOPAGE);
    /// Counts as a major fault.
    pub(crate) const MAJOR: Self = Self(bindings::vm_fault_reason_VM_FAULT_MAJOR);
    /// Not in this size: try pages.
    pub(crate) const FALLBACK: Self = Self(bindings::vm_fault_reason_VM_FAULT_FALLBACK);
    /// Metadata must be written before the page can be mapped writable.
    pub(crate) const NEEDDSYNC: Self = Self(bindings::vm_fault_reason_VM_FAULT_NEEDDSYNC);
    /// `VM_FAULT_ERROR`: any of these.
    const ERROR: u32 = bindings::vm_fault_reason_VM_FAULT_OOM
        | bindings::vm_fault_reason_VM_FAULT_SIGBUS
        | bindings::vm_fault_reason_VM_FAULT_HWPOISON
        | bindings::vm_fault_reason_VM_FAULT_HWPOISON_LARGE
        | bindings::vm_fault_reason_VM_FAULT_SIGSEGV
        | bindings::vm_fault_reason_VM_FAULT_FALLBACK;

    /// C's `vmf_error()`.
    pub(crate) fn from_error(err: Error) -> Self {
        if err == ENOMEM {
            Self::OOM
        } else if err.to_errno() == -(bindings::EHWPOISON as i32) {
            Self::HWPOISON
        } else {
            Self::SIGBUS
        }
    }

    /// Whether it is one of `VM_FAULT_ERROR`.
    #[inline]
    pub(crate) fn is_error(self) -> bool {
        self.0 & Self::ERROR != 0
    }

    /// Both.
    #[inline]
    pub(crate) fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The number.
    #[inline]
    pub(crate) fn as_u32(self) -> u32 {
        self.0
    }
}

/// A valid `struct vm_fault` of a file mapping, being handled by this thread.
pub(crate) struct VmFault<'a>(&'a mut bindings::vm_fault);

impl<'a> VmFault<'a> {
    /// # Safety
    ///
    /// `raw` must be valid and ours, and its VMA that of a file, for as long as `'a`.
    #[inline]
    pub(super) unsafe fn from_raw(raw: *mut bindings::vm_fault) -> Self {
        // SAFETY: By the function's requirements.
        Self(unsafe { &mut *raw })
    }

    #[inline]
    fn vma(&self) -> *mut bindings::vm_area_struct {
        self.0.__bindgen_anon_1.vma
    }

    /// The file's page cache.
    #[inline]
    pub(crate) fn mapping(&self) -> &'a AddressSpace {
        // SAFETY: The VMA holds the file, the file its inode.
        unsafe { AddressSpace::from_raw((*(*self.vma()).vm_file).f_mapping) }
    }

    /// The page's offset in the file.
    #[inline]
    pub(crate) fn pgoff(&self) -> usize {
        self.0.__bindgen_anon_1.pgoff
    }

    /// The faulting address, aligned to its page.
    #[inline]
    pub(crate) fn address(&self) -> usize {
        self.0.__bindgen_anon_1.address
    }

    /// Start and end of the VMA.
    #[inline]
    pub(crate) fn vma_range(&self) -> (usize, usize) {
        // SAFETY: The VMA is valid and cannot change during a fault.
        unsafe {
            let range = (*self.vma()).__bindgen_anon_1.__bindgen_anon_1;
            (range.vm_start, range.vm_end)
        }
    }

    #[inline]
    fn vm_flags(&self) -> usize {
        // SAFETY: The VMA is valid and cannot change during a fault.
        unsafe { (*self.vma()).__bindgen_anon_2.vm_flags }
    }

    /// `VM_SHARED`: stores are to go to the file.
    #[inline]
    pub(crate) fn is_shared(&self) -> bool {
        self.vm_flags() & bindings::VM_SHARED != 0
    }

    /// `VM_SYNC`: mapped with MAP_SYNC.
    #[inline]
    pub(crate) fn is_sync(&self) -> bool {
        self.vm_flags() & bindings::VM_SYNC != 0
    }

    /// `flags`.
    #[inline]
    pub(crate) fn flags(&self) -> u32 {
        self.0.flags
    }

    /// `FAULT_FLAG_WRITE`.
    #[inline]
    pub(crate) fn is_write(&self) -> bool {
        self.0.flags & bindings::fault_flag_FAULT_FLAG_WRITE != 0
    }

    /// Whether nothing is mapped in this PMD.
    #[inline]
    pub(crate) fn pmd_is_none(&self) -> bool {
        // SAFETY: Valid.
        unsafe { bindings::rpmem_vmf_pmd_none(self.0) }
    }

    /// Whether a huge page is mapped in this PMD.
    #[inline]
    pub(crate) fn pmd_is_huge(&self) -> bool {
        // SAFETY: Valid.
        unsafe { bindings::rpmem_vmf_pmd_huge(self.0) }
    }

    /// `vmf_insert_page_mkwrite()`: maps the first of `pages`. It needs a reference, see
    /// [`super::folio::Folio::get`]. May sleep.
    #[inline]
    pub(crate) fn insert_page(&mut self, pages: &Pages<'_>, write: bool) -> FaultResult {
        // SAFETY: Both are valid.
        FaultResult(unsafe { bindings::vmf_insert_page_mkwrite(self.0, pages.page(), write) })
    }

    /// As [`VmFault::insert_page`], `distance` pages behind the fault's address. It must be in the
    /// VMA.
    #[inline]
    pub(crate) fn insert_page_at(
        &mut self,
        pages: &Pages<'_>,
        distance: isize,
        write: bool,
    ) -> FaultResult {
        let mut vmf = *self.0;
        let bytes = distance * bindings::PAGE_SIZE as isize;
        vmf.__bindgen_anon_1.address = self.address().wrapping_add_signed(bytes);
        // SAFETY: Both are valid; the function uses only the VMA and the address, and refuses an
        // address that is not in the VMA.
        FaultResult(unsafe { bindings::vmf_insert_page_mkwrite(&mut vmf, pages.page(), write) })
    }

    /// Whether neighbours of the page may be mapped along with it: no userfaultfd wants to know of
    /// faults in the VMA, nobody has said that accesses are random, and there are no guard markers in
    /// page table entries, at which `vmf_insert_page_mkwrite()` would warn.
    #[inline]
    pub(crate) fn may_map_around(&self) -> bool {
        // SAFETY: The VMA is valid.
        unsafe { bindings::rpmem_vma_may_map_around(self.vma()) }
    }

    /// `vmf_insert_folio_pmd()`: maps the folio that the pages are, of PMD order. It needs a
    /// reference. May sleep.
    #[inline]
    pub(crate) fn insert_pmd(&mut self, pages: &Pages<'_>, write: bool) -> FaultResult {
        // SAFETY: Both are valid.
        FaultResult(unsafe {
            bindings::vmf_insert_folio_pmd(self.0, pages.folio().as_raw(), write)
        })
    }

    /// The page frame number of the zero page for this address.
    #[inline]
    pub(crate) fn zero_pfn(&self) -> usize {
        // SAFETY: Has no requirements.
        unsafe { bindings::rpmem_zero_pfn(self.address()) }
    }

    /// Maps the zero page read-only. May sleep.
    #[inline]
    pub(crate) fn insert_zero_page(&mut self) -> FaultResult {
        // SAFETY: Valid, as is the zero page.
        FaultResult(unsafe {
            bindings::vmf_insert_page_mkwrite(
                self.0,
                bindings::rpmem_pfn_page(self.zero_pfn()),
                false,
            )
        })
    }

    /// Maps the huge zero page read-only. May sleep.
    #[inline]
    pub(crate) fn insert_zero_pmd(&mut self, zero: &ZeroPmd) -> FaultResult {
        // SAFETY: Both are valid.
        FaultResult(unsafe { bindings::vmf_insert_folio_pmd(self.0, zero.as_raw(), false) })
    }

    /// `vfs_fsync_range(…, datasync = 1)` of a range of the file, bytes. May sleep.
    pub(crate) fn fsync(&self, first: i64, last: i64) -> Result {
        // SAFETY: The VMA holds the file.
        kernel::error::to_result(unsafe {
            bindings::vfs_fsync_range((*self.vma()).vm_file, first, last, 1)
        })
    }
}

/// Counts a `PGMAJFAULT`. The memory cgroup's counter cannot be reached from a module.
#[inline]
pub(crate) fn count_major_fault() {
    // SAFETY: Has no requirements.
    unsafe { bindings::rpmem_count_major_fault() };
}

/// Counts a `THP_FAULT_FALLBACK`.
#[inline]
pub(crate) fn count_thp_fallback() {
    // SAFETY: Has no requirements.
    unsafe { bindings::rpmem_count_thp_fallback() };
}
