// SPDX-License-Identifier: GPL-2.0

//! A huge page of zeroes, to be mapped where a file has a hole.
//!
//! The kernel's own (`mm_get_huge_zero_folio()`) is not exported. This one is an ordinary folio of
//! PMD order that nobody writes to: it is mapped read-only, and a write to it faults into
//! `fs_dax`. It differs from the kernel's in that it counts as resident file memory of who maps it.

use super::bindings;
use core::{
    ptr::null_mut,
    sync::atomic::{
        AtomicPtr,
        Ordering, //
    }, //
};
use kernel::types::Opaque;

/// The page, of which there is at most one. Allocated when first needed.
static FOLIO: AtomicPtr<bindings::folio> = AtomicPtr::new(null_mut());

/// The huge zero page.
#[repr(transparent)]
pub(crate) struct ZeroPmd(Opaque<bindings::folio>);

impl ZeroPmd {
    /// The page, or `None` if there is no memory for it. May sleep.
    pub(crate) fn get() -> Option<&'static Self> {
        let mut folio = FOLIO.load(Ordering::Acquire);
        if folio.is_null() {
            // SAFETY: Has no requirements.
            let new = unsafe { bindings::rpmem_alloc_zero_pmd() };
            if new.is_null() {
                return None;
            }
            match FOLIO.compare_exchange(null_mut(), new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => folio = new,
                Err(other) => {
                    // SAFETY: The reference is ours; nobody else knows the folio.
                    unsafe { bindings::rpmem_folio_put(new) };
                    folio = other;
                }
            }
        }
        // SAFETY: Valid until `release`, which is called when nobody can come here any more.
        Some(unsafe { &*folio.cast() })
    }

    /// For the other abstractions.
    #[inline]
    pub(super) fn as_raw(&self) -> *mut bindings::folio {
        self.0.get()
    }

    /// Its first page frame number.
    #[inline]
    pub(crate) fn pfn(&self) -> usize {
        // SAFETY: Valid.
        unsafe { bindings::rpmem_folio_pfn(self.0.get()) }
    }
}

/// Gives the page back, if there is one.
///
/// # Safety
///
/// Nobody may use a [`ZeroPmd`] any more: no file system is mounted on one of our devices, and no
/// new one can be.
pub(super) unsafe fn release() {
    let folio = FOLIO.swap(null_mut(), Ordering::AcqRel);
    if !folio.is_null() {
        // SAFETY: The reference is ours. Whoever still has the page pinned has his own.
        unsafe { bindings::rpmem_folio_put(folio) };
    }
}
