// SPDX-License-Identifier: GPL-2.0

//! Locking entries for memory failure handling, which collects and kills the processes that have a
//! bad page mapped.
//!
//! Follows `dax_lock_folio()` and `dax_lock_mapping_entry()` of fs/dax.c. A locked entry keeps its
//! inode alive, as the inode's eviction waits for it.

use super::{
    entry::Entry,
    lock::{
        wait_and_leave,
        LockedEntry, //
    },
};
use crate::{
    drivers::pmem::Device,
    include::{
        folio::Folio,
        fs_dax_ops::LockedFolio,
        inode::AddressSpace,
        trace,
        xarray::XaState, //
    }, //
};

/// The cookie for "nothing is locked, but that is no error".
const NOTHING: usize = usize::MAX;

/// See [`crate::include::fs_dax_ops::Operations::lock_folio`].
pub(super) fn lock_folio(folio: &Folio) -> Option<LockedFolio> {
    loop {
        // The entry that was locked, if it was, or `None` after a wait.
        let locked = folio.with_owner(|mapping, mut xa| match Entry::from_xa(xa.load()) {
            // A file on a disk that only uses ours (dm-linear): its entries are for C to lock.
            _ if Device::from_superblock(mapping.host().sb()).is_none() => Some(None),
            Some(entry) if entry.is_locked() => {
                wait_and_leave(xa, mapping, entry);
                None
            }
            Some(entry) if entry.is_real() && entry.pfn() == folio.pfn() => {
                xa.replace(entry.locked().to_xa());
                trace::hwpoison(mapping.host(), xa.index(), true, true);
                Some(Some(LockedFolio::new(mapping, xa.index(), entry.to_xa())))
            }
            // It is being given to the file, or taken from it.
            _ => Some(None),
        });
        match locked {
            None => return None,
            Some(None) => {}
            Some(Some(locked)) => return locked,
        }
    }
}

/// See [`crate::include::fs_dax_ops::Operations::lock_mapping_entry`].
pub(super) fn lock_mapping_entry(mapping: &AddressSpace, index: usize) -> (usize, Option<usize>) {
    if !mapping.is_dax() {
        return (0, None);
    }
    loop {
        let mut xas = XaState::new(mapping.i_pages(), index, 0);
        let mut xa = xas.lock();
        let (cookie, pfn) = match Entry::from_xa(xa.load()) {
            Some(entry) if entry.is_locked() => {
                wait_and_leave(xa, mapping, entry);
                continue;
            }
            Some(entry) if entry.is_real() => {
                xa.replace(entry.locked().to_xa());
                (entry.to_xa(), Some(entry.pfn()))
            }
            // Not mapped: not an error.
            _ => (NOTHING, None),
        };
        drop(xa);
        trace::hwpoison(mapping.host(), index, false, pfn.is_some());
        return (cookie, pfn);
    }
}

/// See [`crate::include::fs_dax_ops::Operations::unlock_mapping_entry`].
pub(super) fn unlock_mapping_entry(mapping: &AddressSpace, index: usize, cookie: usize) {
    if cookie == NOTHING {
        return;
    }
    if let Some(entry) = Entry::from_xa(cookie) {
        drop(LockedEntry::adopt(mapping, index, entry));
    }
}
