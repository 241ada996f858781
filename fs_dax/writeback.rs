// SPDX-License-Identifier: GPL-2.0

//! Write-back: making dirty pages durable for fsync, msync and sync.
//!
//! Follows `dax_writeback_mapping_range()` of fs/dax.c, but in batches ([`super::run`]) where C
//! goes entry by entry: lock the entries in one hold of `xa_lock`, write-protect runs of them with
//! one reverse-map walk, flush, fence once, unlock all in one hold. An entry of which somebody holds a
//! page without a page table (DMA, a pipe) stays dirty.

use super::{
    entry::{
        Entry,
        PAGE_SHIFT, //
    },
    lock::{
        self,
        pass_on,
        wait_unlocked,
        Wake, //
    },
    range::page_range,
    run::{
        Batch,
        MAX_PAGES, //
    },
    stats::Stats,
    unmap::wait_for_zaps, //
};
use crate::{
    arch::{
        self,
        Durable,
        WrittenBack, //
    },
    include::{
        folio::Pages,
        inode::AddressSpace,
        pmem::Pmem,
        task,
        trace,
        writeback_control::WritebackControl,
        xarray::{
            Mark,
            XaLocked,
            XaState, //
        }, //
    },
};
use kernel::prelude::*;

/// See [`crate::include::fs_dax_ops::Operations::writeback_mapping_range`].
pub(super) fn writeback_mapping_range(
    mapping: &AddressSpace,
    wbc: &WritebackControl<'_>,
) -> Result {
    let inode = mapping.host();
    if inode.blkbits() != PAGE_SHIFT {
        super::bug("a DAX file has blocks that are not pages");
        return Err(EIO);
    }
    // As in C, cleaning without need of durability would gain nothing.
    if mapping.is_empty() || !wbc.is_sync_all() {
        return Ok(());
    }
    let (start, end) = wbc.range();
    let (first, last) = page_range(start, end);
    trace::writeback(inode, first, last);
    let mut pages = 0;
    let result = clean(mapping, first, last, &mut pages);
    if let Err(e) = result {
        mapping.set_error(e);
    }
    trace::writeback_done(inode, pages, &result);
    result
}

/// Makes what is dirty from index `first` to `last` durable; a PMD entry that the range touches, in
/// whole. `pages` counts what was done. May sleep.
pub(super) fn clean(
    mapping: &AddressSpace,
    first: usize,
    last: usize,
    pages: &mut usize,
) -> Result {
    let mut xas = XaState::new(mapping.i_pages(), first, 0);
    let mut xa = xas.lock();
    loop {
        let mut batch = Batch::new();
        collect(&mut xa, mapping, last, &mut batch)?;
        let Some(end) = batch.runs().last().map(|run| run.end()) else {
            return Ok(());
        };
        let mut held = Held::default();
        let durable = xa.unlocked(|| make_durable(mapping, &batch, &mut held));
        release(
            &mut xa,
            mapping,
            &batch,
            durable.as_ref().ok().copied(),
            &held,
        );
        durable?;
        *pages += batch.pages();
        if end > last {
            return Ok(());
        }
        xa.set(end);
        if task::need_resched() {
            xa.resched();
        }
    }
}

/// Locks dirty entries, from the cursor on up to `last`, as many as are one batch. Waits for the
/// first of them if need be, but for no other: who has entries locked does not wait.
fn collect(
    xa: &mut XaLocked<'_, '_>,
    mapping: &AddressSpace,
    last: usize,
    batch: &mut Batch,
) -> Result {
    let mut raw = xa.find_marked(last, Mark::Dirty);
    while raw != 0 {
        let Some(mut entry) = Entry::from_xa(raw) else {
            if batch.is_empty() {
                super::bug("a dirty entry of a DAX file is not a DAX entry");
                return Err(EIO);
            }
            break;
        };
        if entry.is_locked() {
            if !batch.is_empty() {
                break;
            }
            // Not `next_unlocked()`, which looks behind an entry that the cursor is at already and
            // would find nothing: the fsync would return before the other one's flush is done.
            match wait_unlocked(xa, mapping, entry) {
                Some(now) if xa.is_marked(Mark::Dirty) => entry = now,
                found => {
                    // Written back by somebody else, or gone.
                    if let Some(now) = found {
                        pass_on(mapping, xa.index(), now);
                    }
                    raw = xa.find_marked(last, Mark::Dirty);
                    continue;
                }
            }
        }
        if !entry.is_real() {
            super::bug("a dirty entry of a DAX file has no blocks");
            pass_on(mapping, xa.index(), entry);
            if batch.is_empty() {
                return Err(EIO);
            }
            break;
        }
        let index = entry.first_index(xa.index());
        if !batch.push(index, entry.pfn(), entry.nr_pages()) {
            break;
        }
        xa.replace(entry.locked().to_xa());
        if batch.is_full() {
            break;
        }
        raw = next_dirty(xa, last);
    }
    Ok(())
}

/// The next dirty entry up to `last`; quick if it is the neighbour.
#[inline]
fn next_dirty(xa: &mut XaLocked<'_, '_>, last: usize) -> usize {
    let raw = xa.next_in_node();
    if raw != 0 && xa.index() <= last && xa.is_marked(Mark::Dirty) {
        return raw;
    }
    xa.find_marked(last, Mark::Dirty)
}

/// Starts to write `mem`, which is or will be of a file, back, unless caches are persistent.
pub(super) fn write_back(mapping: &AddressSpace, mem: &Pmem<'_>) -> WrittenBack {
    if Stats::write_cache(mapping, mem) {
        arch::write_back(mem)
    } else {
        WrittenBack::nothing()
    }
}

/// Which pages of a batch, counted through, somebody held when they were written back.
#[derive(Default)]
struct Held([u64; MAX_PAGES / 64]);

impl Held {
    // A batch has no more pages: the remainder spares a check that could panic.
    fn set(&mut self, page: usize) {
        self.0[page / 64 % (MAX_PAGES / 64)] |= 1 << (page % 64);
    }

    fn contains(&self, page: usize) -> bool {
        self.0[page / 64 % (MAX_PAGES / 64)] & 1 << (page % 64) != 0
    }
}

/// Takes the right to store to the pages of a batch away, writes them back and waits until they are
/// durable. The entries are locked.
///
/// `held` gets the pages that may be written to meanwhile, by a device for instance. Nobody can get
/// hold of a page to write to it once the page tables do not allow it: faults wait for the entry.
fn make_durable(mapping: &AddressSpace, batch: &Batch, held: &mut Held) -> Result<Durable> {
    // A file that nobody maps for stores has no page tables to clean: mappings that come now fault,
    // and wait for the entries.
    if mapping.is_writably_mapped() {
        for span in batch.spans() {
            mapping.wrprotect(span.index, span.pfn, span.nr);
        }
        wait_for_zaps(mapping);
    }
    let mut written = WrittenBack::nothing();
    let mut flushed = false;
    let mut before = 0;
    for run in batch.runs() {
        let pages = Pages::new(mapping, run.pfn, run.nr).ok_or(EIO)?;
        for i in (0..run.nr).step_by(batch.step()) {
            if pages.is_held(i) {
                held.set(before + i);
            }
        }
        before += run.nr;
        // Else caches are persistent.
        if Stats::write_cache(mapping, &pages.mem()) {
            written = written.and(arch::write_back(&pages.mem()));
            flushed = true;
        }
        trace::run(mapping.host(), run.index, run.pfn, run.nr);
    }
    Stats::of(mapping, |s| s.count_batch(batch, flushed));
    Ok(written.fence())
}

/// Unlocks the entries of a batch, clean if there is proof that they are durable.
fn release(
    xa: &mut XaLocked<'_, '_>,
    mapping: &AddressSpace,
    batch: &Batch,
    durable: Option<Durable>,
    held: &Held,
) {
    let mut before = 0;
    for run in batch.runs() {
        let step = batch.step();
        for index in (run.index..run.end()).step_by(step) {
            let Some(entry) = Entry::from_xa(xa.walk_to(index)) else {
                super::bug("a locked entry has gone");
                continue;
            };
            super::check(
                entry.is_locked(),
                "an entry was not locked after write-back",
            );
            let entry = entry.unlocked();
            xa.replace(entry.to_xa());
            // Through page tables nothing can have been stored since the flush: they do not allow it, and
            // faults wait for us. But who held the page, a device for instance, may have written to it or
            // be about to, and may tell only when a read(2) into the page is over and an fsync behind it
            // has found nothing, or never (C loses that).
            let held = held.contains(before + (index - run.index));
            if held {
                Stats::of(mapping, |s| s.kept_dirty.inc());
            }
            if durable.is_some() && !held {
                xa.clear_mark(Mark::Dirty);
            }
            lock::wake(mapping, index, entry, Wake::Next);
        }
        before += run.nr;
    }
}
