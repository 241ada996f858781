// SPDX-License-Identifier: GPL-2.0

//! Mapping ahead: a fault maps the pages behind its own too, if they are there already.
//!
//! A fault costs several times what mapping one page more costs. C maps one page per fault.
//!
//! It is done when faults come in sequence: as many pages are mapped ahead as have entries (for a
//! write: dirty ones) right before the fault, up to a parameter. So the window doubles with each
//! fault. A write fault at a random place maps one page, a read fault a few.
//!
//! Reads (`fault_around`, pages, 16): the pages are mapped read-only. Nobody can tell, except by the
//! clock.
//!
//! Writes (`fault_around_write`, pages, 0 = off): they are mapped writable and marked dirty. If they
//! are not stored to they are written back in vain: at most the parameter's value for each fault
//! that follows a dirty page. Off by default, as a store to such a page does not change the file's
//! times: it does not fault. (Nor does a second store to any page before it is cleaned; but the
//! first one does.)
//!
//! Blocks are never allocated for it, and nothing is waited for: not for file systems (without
//! [`flags::WRITE`], with [`flags::NOWAIT`] they only look up extents that exist), not for entries.
//! Never beyond the extent, the end of the file, the VMA or the PMD.

use super::{
    entry::{
        Entry,
        Kind,
        PAGE_SHIFT,
        PG_PMD_NR, //
    },
    io,
    lock::{
        self,
        Wake, //
    },
    making,
    owner,
    range::pages_of_size,
    stats::Stats, //
};
use crate::include::{
    dax_access::DaxReadLock,
    folio::Pages,
    inode::AddressSpace,
    iomap::{
        flags,
        IomapIter,
        IomapOps,
        Type, //
    },
    module_param,
    trace,
    vm_fault::VmFault,
    xarray::{
        Mark,
        XaLocked,
        XaState, //
    }, //
};

/// A read fault at a random place maps an aligned block of so many pages.
const BLOCK: usize = 4;

/// Pages mapped ahead at most: a leaf node of the array.
const MAX: usize = 64;

/// Maps pages behind the one that `vmf`, a PTE fault, has just mapped. `before` is how many entries
/// (dirty ones for a write) there are right before it. The fault's own entry may be locked.
pub(super) fn map_ahead(vmf: &mut VmFault<'_>, write: bool, before: usize, ops: &IomapOps) {
    let limit = if write {
        module_param::fault_around_write()
    } else {
        module_param::fault_around()
    };
    let (in_front, behind) = room(vmf);
    let (first, nr) = if before == 0 && !write && limit >= BLOCK {
        let in_front = in_front.min(vmf.pgoff() % BLOCK);
        let behind = behind.min(BLOCK - 1 - vmf.pgoff() % BLOCK);
        (vmf.pgoff() - in_front, in_front + 1 + behind)
    } else {
        (vmf.pgoff() + 1, before.min(limit).min(behind).min(MAX))
    };
    if nr == 0 || vmf.is_sync() || !vmf.may_map_around() {
        return;
    }
    let mapping = vmf.mapping();
    let Some((pfn, nr)) = ready(mapping, first, nr, ops) else {
        return;
    };
    let Some(pages) = Pages::new(mapping, pfn, nr) else {
        return;
    };
    let nr = map_pages(vmf, first, &pages, write, || {
        // What was looked up before the entries were locked may have been replaced by a write(2) to
        // a file with copy-on-write, which has invalidated these pages before we had them. (It is
        // refused for write faults ahead.)
        write || ready(mapping, first, nr, ops) == Some((pfn, nr))
    });
    Stats::of(mapping, |s| s.pages_ahead.add(nr as u64));
    trace::ahead(mapping.host(), first, nr, write);
}

/// The page frame number of the file's page `first`, and how many of the `nr` pages from there on are
/// allocated, written, contiguous and this file's alone.
fn ready(
    mapping: &AddressSpace,
    first: usize,
    nr: usize,
    ops: &IomapOps,
) -> Option<(usize, usize)> {
    let pos = (first << PAGE_SHIFT) as i64;
    let len = (nr << PAGE_SHIFT) as u64;
    let why = flags::DAX | flags::FAULT | flags::NOWAIT;
    let mut iter = IomapIter::new(mapping.host(), pos, len, why);
    let Ok(true) = iter.next(ops) else {
        return None;
    };
    let iomap = iter.iomap();
    let nr = (iter.length() as usize) >> PAGE_SHIFT;
    let mut found = None;
    if iomap.type_() == Type::Mapped
        && !iomap.is_shared()
        && !iomap.is_new()
        && !making::may_be_unready(mapping)
        && nr > 0
    {
        let alive = DaxReadLock::new();
        found = io::direct_access(&alive, iomap, pos, nr)
            .ok()
            .map(|extent| (extent.pfn, extent.nr));
    }
    // xfs would free blocks that are ready for copy-on-write.
    iter.leave();
    found
}

/// How many pages there are in front of the fault's and behind it in the file, the VMA and the PMD.
fn room(vmf: &VmFault<'_>) -> (usize, usize) {
    let file = pages_of_size(vmf.mapping().host().size()).saturating_sub(vmf.pgoff() + 1);
    let page = vmf.address() >> PAGE_SHIFT;
    let (start, end) = vmf.vma_range();
    let vma = (end >> PAGE_SHIFT) - page - 1;
    let pmd = PG_PMD_NR - 1 - page % PG_PMD_NR;
    let in_front = (page - (start >> PAGE_SHIFT)).min(page % PG_PMD_NR);
    (in_front, file.min(vma).min(pmd))
}

/// Maps `pages` from index `first` on but for the fault's own, as many as can be had without waiting,
/// if they are the right ones still once their entries are locked. Returns how many.
fn map_pages(
    vmf: &mut VmFault<'_>,
    first: usize,
    pages: &Pages<'_>,
    write: bool,
    still_right: impl FnOnce() -> bool,
) -> usize {
    let mapping = vmf.mapping();
    let nr = pages.nr();
    let mut xas = XaState::new(mapping.i_pages(), first, 0);
    // A bit for each page that had no entry, and has none that is real yet.
    let mut new = 0u64;
    let mut locked = 0;
    {
        let mut xa = xas.lock();
        while locked < nr {
            if first + locked == vmf.pgoff() {
                locked += 1;
                continue;
            }
            let found = xa.walk_to(first + locked);
            match take(&mut xa, mapping, found, pages.pfn() + locked, write) {
                Some(is_new) => new |= u64::from(is_new) << locked,
                None => break,
            }
            locked += 1;
        }
    }
    let mut mapped = 0;
    let own = vmf.pgoff();
    let right = still_right();
    for i in (0..locked).filter(|i| right && first + i != own) {
        let entry = Entry::new(pages.pfn() + i, 0, Kind::Real);
        if new & 1 << i != 0 {
            if !owner::associate(mapping, first + i, entry, false) {
                continue;
            }
            new &= !(1 << i);
        }
        if let Some(page) = owner::pages(mapping, entry) {
            let _ref = page.folio().get();
            let distance = (first + i).wrapping_sub(own) as isize;
            if !vmf.insert_page_at(&page, distance, write).is_error() {
                mapped += 1;
            }
        }
    }
    if write && locked > 0 {
        mapping.host().mark_dirty_pages();
    }
    let mut xa = xas.lock();
    xa.set(first);
    for i in (0..locked).filter(|i| first + i != own) {
        let entry = Entry::new(pages.pfn() + i, 0, Kind::Real);
        xa.walk_to(first + i);
        if new & 1 << i == 0 {
            xa.replace(entry.to_xa());
            lock::wake(mapping, first + i, entry, Wake::Next);
        } else {
            // Made for nothing.
            xa.store(0);
            mapping.add_pages(&xa, -1);
            lock::wake(mapping, first + i, entry, Wake::All);
        }
    }
    mapped
}

/// Locks `raw`, the entry at the cursor, which must be for the page at `pfn` or not be there; whether it was
/// not there. `None` if that cannot be without waiting, or there is nothing to be gained.
fn take(
    xa: &mut XaLocked<'_, '_>,
    mapping: &AddressSpace,
    raw: usize,
    pfn: usize,
    write: bool,
) -> Option<bool> {
    let wanted = Entry::new(pfn, 0, Kind::Real);
    if raw == 0 {
        // Does not wait for memory; if there is none, the next page will have its own fault.
        xa.store(Entry::empty(0).locked().to_xa());
        if xa.failed() {
            return None;
        }
        mapping.add_pages(xa, 1);
    } else {
        if raw != wanted.to_xa() {
            return None;
        }
        xa.replace(wanted.locked().to_xa());
    }
    if write {
        xa.set_mark(Mark::Dirty);
    }
    Some(raw == 0)
}
