// SPDX-License-Identifier: GPL-2.0

//! Page faults: PTE and PMD, read and write, MAP_SYNC.
//!
//! Follows `dax_iomap_fault()` and `dax_finish_sync_fault()` of fs/dax.c. What differs:
//!
//! - A write to a private mapping is handled as a read: the page (or the zero page) is mapped
//!   read-only, and the core copies it when the store faults again. C copies it here and sets the
//!   page table with a function that is not exported. The core's way costs a second fault; it holds
//!   the page table lock over the check that the page is still there, so a truncation cannot get in
//!   between, and it survives bad memory.
//! - A hole is mapped with a huge zero page of our own ([`crate::include::zero_pmd`]), as the
//!   kernel's is not exported.
//! - Copy-on-write unmaps and copies before the new entry is put in place; if the copy fails the old
//!   one stays, and the blocks made ready for it are freed. A PMD falls back then; C makes all of it,
//!   copied or not, the file's.
//! - A copy that does not become the file's, as the end of its extent fails, is SIGBUS (of a PMD: a
//!   fall-back to pages). C lets stores go on to blocks that will be freed.
//! - An entry whose pfn is not that of the extent (a fault has raced with the end of a copy-on-write
//!   write(2)) is replaced. C maps the new page and flushes the old one.
//! - With MAP_SYNC a store to a block copied on write waits for the log, and one to a page of a PMD
//!   entry does not go round in circles (C looks for an entry of the page's own).
//! - The dirty mark is set when the entry is locked: one cycle of `xa_lock` less.

use super::{
    ahead,
    entry::{
        Entry,
        Kind,
        PAGE_SHIFT,
        PAGE_SIZE,
        PG_PMD_COLOUR,
        PMD_ORDER, //
    },
    io,
    lock::{
        next_unlocked,
        pass_on,
        Found,
        LockedEntry, //
    },
    making::{
        self,
        Copies,
        Making,
        Turn, //
    },
    owner,
    range::{
        pages_of_size,
        pmd_fits,
        PmdFault, //
    },
    stats::Stats,
    writeback::write_back, //
};
use crate::arch::Durable;
use crate::include::{
    dax_access::DaxReadLock,
    folio::Pages,
    iomap::{
        flags,
        IomapIter,
        IomapOps,
        Type, //
    },
    trace,
    vm_fault::{
        count_major_fault,
        count_thp_fallback,
        FaultResult,
        VmFault, //
    },
    xarray::{
        Mark,
        XaState, //
    },
    zero_pmd::ZeroPmd, //
};
use kernel::prelude::*;

/// See [`crate::include::fs_dax_ops::Operations::iomap_fault`].
pub(super) fn iomap_fault(
    vmf: &mut VmFault<'_>,
    order: u32,
    mut pfn: Option<&mut usize>,
    err: &mut Result,
    ops: &IomapOps,
) -> FaultResult {
    let mut turn = Turn::new();
    let result = loop {
        let (result, refused) = match order {
            0 => pte_fault(vmf, pfn.as_deref_mut(), err, ops),
            PMD_ORDER => pmd_fault(vmf, pfn.as_deref_mut(), ops),
            _ => return FaultResult::FALLBACK,
        };
        if !refused || !turn.wait(vmf.mapping()) {
            break result;
        }
    };
    if order > 0 && result == FaultResult::FALLBACK {
        // C splits a huge page that is mapped there. The core does that itself when a write fault
        // falls back; a read fault finds none.
        count_thp_fallback();
    }
    Stats::of(vmf.mapping(), |s| s.count_fault(vmf, order, result));
    trace::fault(
        vmf.mapping().host(),
        vmf.pgoff(),
        order,
        vmf.flags(),
        result,
    );
    result
}

/// Whether stores to the page will go to the file.
#[inline]
fn is_file_write(vmf: &VmFault<'_>) -> bool {
    vmf.is_write() && vmf.is_shared()
}

fn fault_flags(write: bool) -> u32 {
    flags::DAX | flags::FAULT | if write { flags::WRITE } else { 0 }
}

/// `true`: somebody's copies have kept it from being handled.
fn pte_fault(
    vmf: &mut VmFault<'_>,
    mut pfn: Option<&mut usize>,
    err: &mut Result,
    ops: &IomapOps,
) -> (FaultResult, bool) {
    let mapping = vmf.mapping();
    let inode = mapping.host();
    // The file system's lock keeps truncation out. (Not by bytes, as C does: mremap(2) makes mappings
    // that go beyond 2^63.)
    if vmf.pgoff() >= pages_of_size(inode.size()) {
        return (FaultResult::SIGBUS, false);
    }
    let pos = (vmf.pgoff() << PAGE_SHIFT) as i64;
    let write = is_file_write(vmf);
    let mut locked = match LockedEntry::grab(mapping, vmf.pgoff(), 0, write) {
        Ok(locked) => locked,
        Err(result) => return (result, false),
    };
    // A PMD fault was faster: try again.
    if vmf.pmd_is_huge() {
        return (FaultResult::NOPAGE, false);
    }

    let making = (write && !locked.entry().is_real()).then(|| Making::in_fault(mapping));
    let mut result = FaultResult::NONE;
    let mut copies = Copies::before_lookup(mapping);
    let mut iter = IomapIter::new(inode, pos, PAGE_SIZE as u64, fault_flags(write));
    *err = loop {
        match iter.next(ops) {
            Ok(true) => {}
            Ok(false) => break Ok(()),
            Err(e) => {
                if iter.has_lost() {
                    unmap_lost(&mut locked);
                    result = FaultResult::SIGBUS;
                }
                break Err(e);
            }
        }
        if iter.length() < PAGE_SIZE as u64 {
            super::bug("an extent is smaller than a page");
            break Err(EIO);
        }
        result = map_extent(vmf, &iter, pfn.as_deref_mut(), &mut locked, 0, &mut copies);
        // NONE: nothing done and no error, the fault is to be tried again.
        let failed = result.is_error() || result == FaultResult::NONE;
        if result != FaultResult::SIGBUS && result != FaultResult::NONE && iter.iomap().is_new() {
            count_major_fault();
            result = result.and(FaultResult::MAJOR);
        }
        if failed && !copies.are_filled() {
            give_back(iter, ops, result, &copies);
            break Ok(());
        }
        // To xfs the end would be that of copy-on-write at the same place, which somebody may have
        // prepared since.
        if !iter.iomap().is_shared() {
            iter.leave();
            break Ok(());
        }
        if let Err(e) = iter.advance(PAGE_SIZE as u64) {
            break Err(e);
        }
    };
    drop(making);
    if result == FaultResult::NOPAGE && locked.entry().is_real() && !locked.entry().is_pmd() {
        ahead::map_ahead(vmf, write, locked.before(), ops);
    }
    drop(locked);
    let result = match err {
        Err(e) if result == FaultResult::NONE => FaultResult::from_error(*e),
        Ok(()) if result == FaultResult::NONE => {
            making::give_way(mapping);
            FaultResult::NOPAGE
        }
        _ => result,
    };
    (result, copies.are_refused())
}

/// `true`: somebody's copies have kept it from being handled.
fn pmd_fault(
    vmf: &mut VmFault<'_>,
    mut pfn: Option<&mut usize>,
    ops: &IomapOps,
) -> (FaultResult, bool) {
    let mapping = vmf.mapping();
    let inode = mapping.host();
    let index = vmf.pgoff() & !PG_PMD_COLOUR;
    // The file system's lock keeps truncation out.
    let file_pages = pages_of_size(inode.size());
    if index >= file_pages {
        return (FaultResult::SIGBUS, false);
    }
    let fault = PmdFault {
        pgoff: vmf.pgoff(),
        address: vmf.address(),
        vma: vmf.vma_range(),
        file_pages,
        private_write: vmf.is_write() && !vmf.is_shared(),
    };
    if !pmd_fits(&fault) {
        return (FaultResult::FALLBACK, false);
    }
    let write = vmf.is_write();
    let mut locked = match LockedEntry::grab(mapping, index, PMD_ORDER, write) {
        Ok(locked) => locked,
        Err(result) => return (result, false),
    };
    // A PTE fault was faster: try again.
    if !vmf.pmd_is_none() && !vmf.pmd_is_huge() {
        return (FaultResult::NONE, false);
    }

    let making = (write && !locked.entry().is_real()).then(|| Making::in_fault(mapping));
    let mut result = FaultResult::FALLBACK;
    let size = (PAGE_SIZE as u64) << PMD_ORDER;
    let mut copies = Copies::before_lookup(mapping);
    let mut iter = IomapIter::new(
        inode,
        (index << PAGE_SHIFT) as i64,
        size,
        fault_flags(write),
    );
    loop {
        match iter.next(ops) {
            Ok(true) => {}
            Err(_) if iter.has_lost() => {
                unmap_lost(&mut locked);
                result = FaultResult::FALLBACK;
                break;
            }
            _ => break,
        }
        if iter.length() >= size {
            result = map_extent(
                vmf,
                &iter,
                pfn.as_deref_mut(),
                &mut locked,
                PMD_ORDER,
                &mut copies,
            );
        }
        let failed =
            result.is_error() || result == FaultResult::NONE || result == FaultResult::FALLBACK;
        if failed && !copies.are_filled() {
            give_back(iter, ops, result, &copies);
            break;
        }
        if !iter.iomap().is_shared() || iter.advance(size).is_err() {
            iter.leave();
            break;
        }
    }
    drop(making);
    drop(locked);
    if result == FaultResult::NONE {
        making::give_way(mapping);
    }
    (result, copies.are_refused())
}

/// Ends the walk of a fault that has done nothing with its extent. The entry is still locked. Blocks
/// that were made ready for its copy-on-write are freed, but if it is tried again (`NONE`) or somebody
/// else may be filling them. (Whoever begins to after this has looked waits for the entry, and looks
/// his blocks up again.)
fn give_back(mut iter: IomapIter<'_>, ops: &IomapOps, result: FaultResult, copies: &Copies) {
    let again = result == FaultResult::NONE;
    if again || !iter.iomap().is_shared() || copies.are_others(iter.inode().mapping()) {
        iter.leave();
    } else {
        // Ends the extent. An error would be that of freeing: the blocks stay, as above.
        let _ = iter.next(ops);
    }
}

/// C's `dax_fault_iter()`: puts what the extent has at the fault's place into the entry and the page
/// table.
fn map_extent(
    vmf: &mut VmFault<'_>,
    iter: &IomapIter<'_>,
    pfn: Option<&mut usize>,
    locked: &mut LockedEntry<'_>,
    order: u32,
    copies: &mut Copies,
) -> FaultResult {
    let iomap = iter.iomap();
    let write = iter.is_write();
    let error = |e: Error| {
        if order > 0 {
            FaultResult::FALLBACK
        } else {
            FaultResult::from_error(e)
        }
    };

    if !write && iomap.is_zero() {
        return map_hole(vmf, locked, order);
    }
    if iomap.type_() != Type::Mapped && !iomap.is_shared() {
        super::bug("a file system gave no blocks to write to");
        return error(EIO);
    }

    let cow = write && iomap.is_shared();
    if !iomap.is_new() && making::may_be_unready(locked.mapping()) {
        return FaultResult::NONE;
    }
    if cow && copies.are_others(locked.mapping()) {
        copies.refuse();
        return FaultResult::NONE;
    }

    let nr = 1 << order;
    let alive = DaxReadLock::new();
    let extent = match io::direct_access(&alive, iomap, iter.pos(), nr) {
        Ok(extent) if extent.nr >= nr && extent.pfn % nr == 0 => extent,
        Ok(_) => return error(EINVAL),
        Err(e) => return error(e),
    };
    let Some(pages) = extent.pages(locked.mapping()) else {
        return error(EINVAL);
    };
    // MAP_SYNC: metadata must be on the medium before a store is allowed. What copy-on-write changes
    // is yet to be logged, so that C, which asks the extent alone, allows the store too early.
    let sync = write && vmf.is_sync() && (iomap.is_dirty() || cow);

    let new = Entry::new(extent.pfn, order, Kind::Real);
    let old = locked.entry();
    let offset = |entry: Entry| vmf.pgoff() & (entry.nr_pages() - 1);
    let stale =
        old.is_real() && old.pfn().wrapping_add(offset(old)) != new.pfn().wrapping_add(offset(new));
    if cow || stale || old.kind() == Kind::Zero {
        locked.mapping().unmap_pages(locked.index(), old.nr_pages());
    }
    if stale && old.order() != order {
        // The next try will take the empty PMD entry apart.
        drop_stale(locked);
        return FaultResult::NONE;
    }
    if cow {
        if let Err(e) = io::copy_source(&alive, iter.srcmap(), iter.pos(), &extent.mem) {
            // Bad memory may be in another of 512 pages.
            return error(e);
        }
        // The blocks become the file's, with what was durable before, once the extent is ended. If that
        // fails the old ones stay: what was stored to them (they need not be shared) is to be durable too.
        let mut written = write_back(locked.mapping(), &extent.mem);
        if locked.is_dirty() {
            if let Some(pages) = owner::pages(locked.mapping(), old) {
                written = written.and(write_back(locked.mapping(), &pages.mem()));
            }
        }
        let _: Durable = written.fence();
    }
    // A real PMD entry stays where a page is wanted: all of it will be dirty.
    if stale || !old.is_real() {
        if !replace(locked, new, iomap.is_shared()) {
            return error(EBUSY);
        }
    } else if !iomap.is_shared() {
        owner::last_of_many(locked.mapping(), locked.index(), old);
    }
    if cow {
        copies.fill();
    }
    drop(alive);
    if (write && !sync) || cow {
        locked.mapping().host().mark_dirty_pages();
        locked.keep_dirty();
    }

    if sync {
        return match pfn {
            Some(pfn) => {
                *pfn = pages.pfn();
                FaultResult::NEEDDSYNC
            }
            None => FaultResult::SIGBUS,
        };
    }
    let _ref = pages.folio().get();
    if order > 0 {
        vmf.insert_pmd(&pages, write)
    } else {
        vmf.insert_page(&pages, write)
    }
}

/// The locked entry, unmapped if there was a page, now stands for `new`, or for nothing if that cannot
/// be: false. Then the old blocks stay the file's: what was stored to them is made durable.
fn replace(locked: &mut LockedEntry<'_>, new: Entry, shared: bool) -> bool {
    let mapping = locked.mapping();
    let old = locked.entry();
    owner::give_up(mapping, old);
    let fits = owner::associate(mapping, locked.index(), new, shared);
    let new = if fits {
        new
    } else {
        let pages = old
            .is_real()
            .then(|| Pages::new(mapping, old.pfn(), old.nr_pages()));
        if let Some(pages) = pages.flatten() {
            let _: Durable = write_back(mapping, &pages.mem()).fence();
        }
        locked.forget_dirty();
        Entry::empty(new.order())
    };
    locked.set(new);
    trace::insert(mapping.host(), locked.index(), old.to_xa(), new.to_xa());
    fits
}

/// Empties an entry, unmapped already, whose blocks are not the file's any more where the fault is.
/// What was stored to them is made durable: the rest of them may be the file's.
fn drop_stale(locked: &mut LockedEntry<'_>) {
    let mapping = locked.mapping();
    if let Some(pages) = owner::pages(mapping, locked.entry()) {
        let _: Durable = write_back(mapping, &pages.mem()).fence();
    }
    owner::give_up(mapping, locked.entry());
    locked.set(Entry::empty(locked.entry().order()));
    locked.forget_dirty();
}

/// The blocks that were copied on write and mapped have not become the file's: the entry stands for nothing
/// any more.
#[cold]
fn unmap_lost(locked: &mut LockedEntry<'_>) {
    let nr = locked.entry().nr_pages();
    locked.mapping().unmap_pages(locked.index(), nr);
    drop_stale(locked);
}

/// C's `dax_load_hole()` and `dax_pmd_load_hole()`: maps zeroes read-only. A write will fault again
/// and get blocks.
fn map_hole(vmf: &mut VmFault<'_>, locked: &mut LockedEntry<'_>, order: u32) -> FaultResult {
    if order == 0 {
        if locked.entry().kind() == Kind::Empty {
            let _ = replace(locked, Entry::new(vmf.zero_pfn(), 0, Kind::Zero), false);
        }
        return vmf.insert_zero_page();
    }
    let Some(zero) = ZeroPmd::get() else {
        return FaultResult::FALLBACK;
    };
    if locked.entry().kind() == Kind::Empty {
        let _ = replace(locked, Entry::new(zero.pfn(), order, Kind::Zero), false);
    }
    vmf.insert_zero_pmd(zero)
}

/// See [`crate::include::fs_dax_ops::Operations::finish_sync_fault`].
pub(super) fn finish_sync_fault(vmf: &mut VmFault<'_>, order: u32, pfn: usize) -> FaultResult {
    let first = (vmf.pgoff() << PAGE_SHIFT) as i64;
    // The last 2 MiB of the largest file end at 2^63.
    let last = first.saturating_add((PAGE_SIZE << order) as i64 - 1);
    let mut turn = Turn::new();
    let result = match vmf.fsync(first, last) {
        Ok(()) => loop {
            // None: what is copied on write has to stay as it is.
            match map_written(vmf, order, pfn) {
                Some(result) => break result,
                None if turn.wait(vmf.mapping()) => {}
                None => break FaultResult::NOPAGE,
            }
        },
        Err(_) => FaultResult::SIGBUS,
    };
    Stats::of(vmf.mapping(), |s| s.sync_faults.inc());
    trace::fault(
        vmf.mapping().host(),
        vmf.pgoff(),
        order,
        vmf.flags(),
        result,
    );
    result
}

/// C's `dax_insert_pfn_mkwrite()`: marks the entry dirty and maps its page writable. `None`: not while
/// somebody copies.
fn map_written(vmf: &mut VmFault<'_>, order: u32, pfn: usize) -> Option<FaultResult> {
    let mapping = vmf.mapping();
    let mut xas = XaState::new(mapping.i_pages(), vmf.pgoff(), order);
    let mut xa = xas.lock();
    let entry = match next_unlocked(&mut xa, mapping, order) {
        // Of a larger order if a page of a PMD entry is wanted.
        Found::Unlocked(entry) if entry.is_real() => entry,
        // Somebody was faster: try again.
        Found::Unlocked(entry) => {
            pass_on(mapping, xa.index(), entry);
            return Some(FaultResult::NOPAGE);
        }
        _ => return Some(FaultResult::NOPAGE),
    };
    let first = vmf.pgoff() & !((1 << order) - 1);
    let of_entry = entry.pfn() + (first & (entry.nr_pages() - 1));
    let Some(pages) = Pages::new(mapping, pfn, 1 << order).filter(|_| pfn == of_entry) else {
        pass_on(mapping, xa.index(), entry);
        return Some(FaultResult::NOPAGE);
    };
    if making::are_copied(mapping) {
        pass_on(mapping, xa.index(), entry);
        return None;
    }
    xa.replace(entry.locked().to_xa());
    xa.set_mark(Mark::Dirty);
    let locked = LockedEntry::adopt(mapping, xa.index(), entry);
    drop(xa);
    mapping.host().mark_dirty_pages();
    // A PMD fault was faster: try again.
    if order == 0 && vmf.pmd_is_huge() {
        return Some(FaultResult::NOPAGE);
    }

    // Not held any more when the entry is unlocked: who comes next takes it for somebody's use.
    let reference = pages.folio().get();
    let result = match order {
        0 => vmf.insert_page(&pages, true),
        PMD_ORDER => vmf.insert_pmd(&pages, true),
        _ => FaultResult::FALLBACK,
    };
    drop(reference);
    drop(locked);
    Some(result)
}
