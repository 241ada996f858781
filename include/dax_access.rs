// SPDX-License-Identifier: GPL-2.0

//! DAX devices as a file system sees them; [`super::dax_device`] is the driver's side.
//!
//! C header: [`include/linux/dax.h`](srctree/include/linux/dax.h)

use super::{
    bindings,
    folio::Pages,
    inode::AddressSpace,
    iov_iter::IovIter,
    pmem::Pmem, //
};
use core::marker::PhantomData;
use kernel::{
    error::to_result,
    ffi::c_int,
    prelude::*,
    types::NotThreadSafe, //
};

/// A dax_device that a file system holds.
///
/// # Invariants
///
/// `raw` is valid for as long as `'a`.
#[derive(Clone, Copy)]
pub(crate) struct DaxAccess<'a> {
    raw: *mut bindings::dax_device,
    _held: PhantomData<&'a ()>,
}

impl<'a> DaxAccess<'a> {
    /// # Safety
    ///
    /// `raw` must be null or valid for as long as `'a`.
    #[inline]
    pub(super) unsafe fn from_raw(raw: *mut bindings::dax_device) -> Option<Self> {
        // INVARIANT: By the function's requirements.
        (!raw.is_null()).then_some(Self {
            raw,
            _held: PhantomData,
        })
    }

    /// `dax_write_cache_enabled()`: whether cached stores have to be written back.
    #[inline]
    pub(crate) fn write_cache(&self) -> bool {
        // SAFETY: By the type's invariant.
        unsafe { bindings::dax_write_cache_enabled(self.raw) }
    }

    /// `dax_direct_access()`: the memory of up to `nr` pages from the device's page `pgoff` on, at
    /// least one. `EHWPOISON` if the first is bad, unless `recovery` says it is to be overwritten.
    #[inline]
    pub(crate) fn direct_access<'r>(
        &self,
        _alive: &'r DaxReadLock,
        pgoff: usize,
        nr: usize,
        recovery: bool,
    ) -> Result<Extent<'r>> {
        let mut kaddr = core::ptr::null_mut();
        let mut pfn = 0;
        let mode = if recovery {
            bindings::dax_access_mode_DAX_RECOVERY_WRITE
        } else {
            bindings::dax_access_mode_DAX_ACCESS
        };
        // SAFETY: By the type's invariant; the out pointers are valid.
        let got = unsafe {
            bindings::dax_direct_access(
                self.raw,
                pgoff,
                nr.try_into()?,
                mode,
                &raw mut kaddr,
                &raw mut pfn,
            )
        };
        if got < 0 {
            return Err(Error::from_errno(got as c_int));
        }
        if kaddr.is_null() {
            return Err(EFAULT);
        }
        let nr = (got as usize).min(nr);
        Ok(Extent {
            // SAFETY: The driver has mapped these pages; they stay mapped until kill_dax() has
            // waited for us.
            mem: unsafe { Pmem::new(kaddr as usize, nr * bindings::PAGE_SIZE) },
            pfn,
            nr,
        })
    }

    /// `dax_zero_page_range()` of one page: also clears bad memory. May sleep.
    pub(crate) fn zero_page(&self, _alive: &DaxReadLock, pgoff: usize) -> Result {
        // SAFETY: By the type's invariant.
        to_result(unsafe { bindings::dax_zero_page_range(self.raw, pgoff, 1) })
    }

    /// `dax_recovery_write()`: writes over bad memory, returns how many bytes. May sleep.
    pub(crate) fn recovery_write(
        &self,
        _alive: &DaxReadLock,
        pgoff: usize,
        mem: &Pmem<'_>,
        iter: &mut IovIter<'_>,
    ) -> usize {
        // SAFETY: By the type's invariant; the iterator is valid.
        // INVARIANT: It is advanced by what is copied.
        iter.copied = unsafe {
            bindings::dax_recovery_write(
                self.raw,
                pgoff,
                mem.addr() as *mut _,
                mem.len(),
                iter.as_raw(),
            )
        };
        iter.copied
    }
}

/// What [`DaxAccess::direct_access`] found.
pub(crate) struct Extent<'r> {
    /// The bytes.
    pub(crate) mem: Pmem<'r>,
    /// Page frame number of the first page.
    pub(crate) pfn: usize,
    /// Number of pages.
    pub(crate) nr: usize,
}

impl Extent<'_> {
    /// The pages, for a file on the device.
    pub(crate) fn pages<'a>(&self, mapping: &'a AddressSpace) -> Option<Pages<'a>> {
        Pages::new(mapping, self.pfn, self.nr)
    }
}

/// `dax_read_lock()`: devices that were alive under it stay usable. May be held while sleeping.
pub(crate) struct DaxReadLock {
    id: c_int,
    _thread: NotThreadSafe,
}

impl DaxReadLock {
    /// Takes it.
    #[inline]
    pub(crate) fn new() -> Self {
        Self {
            // SAFETY: Has no requirements.
            id: unsafe { bindings::dax_read_lock() },
            _thread: NotThreadSafe,
        }
    }
}

impl Drop for DaxReadLock {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: Taken by `new`.
        unsafe { bindings::dax_read_unlock(self.id) };
    }
}
