// SPDX-License-Identifier: GPL-2.0

//! Flush on unmap, and pages that devices have written to.
//!
//! The core calls `folio_mark_dirty()` when it takes a dirty mapping of a page out of a page table
//! (munmap, exit, MADV_DONTNEED, truncation) and when a device has written to a pinned page
//! (`unpin_user_pages_dirty_lock()`, direct I/O). For DAX files that ends in `noop_dirty_folio()`,
//! which only sets a flag that nobody reads. Here:
//!
//! - The page's cache lines are written back and fenced there and then, if the parameter
//!   `flush_on_unmap` says so: what was unmapped is durable, as far as the file system knows its
//!   blocks. An fsync later finds clean lines. (Not every unmap ends in a locked instruction, which
//!   would be a fence as well: a kernel on one CPU has none.)
//!   Not those of a folio of many pages that is locked: it is for DMA, or somebody has a device write to
//!   another page of it at that moment.
//! - The entry is dirty already and stays so: what allowed the stores has marked it, and an fsync leaves
//!   pages dirty that somebody holds, a device or who has just unmapped them, whether they tell or not
//!   ([`super::writeback`]). C loses what a device writes after an fsync has cleaned the page.
//!
//! MADV_DONTNEED of whole page tables takes a table away before other CPUs' TLBs have been flushed, in
//! which there are still entries that allow stores; meanwhile nobody who looks for mappings finds any.
//! Write-back, which relies on that nothing can be stored through mappings any more, therefore waits for
//! whoever is unmapping something dirty of the file ([`wait_for_zaps`]). C loses what is stored then.
//! (Truncation unmaps: that flushes the TLBs of all who are unmapping at the same time. And who unmaps a
//! PMD, flushing TLBs after all locks are given up, holds its pages until then, which write-back sees.)
//!
//! The folio's own dirty flag is not set here, so that the core, which looks at it first at unpin, tells
//! us of every page. (KVM sets it without asking anybody: after that the core is silent about guests'
//! memory until the file loses the page. Nothing rests on it.)

use super::{
    entry::Entry,
    owner,
    stats::Stats, //
};
use crate::{
    arch,
    include::{
        folio::Folio,
        inode::AddressSpace,
        module_param,
        task,
        trace, //
    },
};
use kernel::sync::atomic::{
    Acquire,
    Atomic,
    Full,
    Relaxed, //
};

const SLOTS: usize = 64;

/// Dirty mappings taken away, of the mappings of files that share a slot.
struct Zaps {
    /// So many times.
    begun: Atomic<u64>,
    /// So many of them are over for sure.
    over: Atomic<u64>,
}

static ZAPS: [Zaps; SLOTS] = [const {
    Zaps {
        begun: Atomic::new(0),
        over: Atomic::new(0),
    }
}; SLOTS];

/// After this no CPU can store to a page through a mapping that was being taken away, and that who has
/// looked for mappings before the call has not found. Context: may sleep.
pub(super) fn wait_for_zaps(mapping: &AddressSpace) {
    let zaps = &ZAPS[mapping.hash() % SLOTS];
    let begun = zaps.begun.load(Acquire);
    if zaps.over.load(Relaxed) != begun {
        // A page table that is being emptied is locked, which holds RCU as well, until the TLBs have been
        // flushed.
        task::synchronize_rcu_expedited();
        // If somebody else has stored a later number since, the next one waits for nothing.
        zaps.over.store(begun, Relaxed);
        Stats::of(mapping, |s| s.zap_waits.inc());
    }
}

/// See [`crate::include::fs_dax_ops::Operations::dirty_folio`].
pub(super) fn dirty_folio(mapping: &AddressSpace, folio: &Folio) -> bool {
    if !mapping.is_dax() {
        return folio.set_dirty();
    }
    // Before the table that has the mapping is taken away. (A device's writes are counted for nothing.)
    ZAPS[mapping.hash() % SLOTS].begun.fetch_add(1, Full);
    let index = folio.index();
    let nr = 1 << folio.order();
    let entry = Entry::new(folio.pfn(), folio.order(), super::entry::Kind::Real);
    // A folio is locked for DMA, not for page tables: its 2 MiB would be flushed for every page of it,
    // when a read into it begins and again when it ends.
    let mut flush = module_param::flush_on_unmap() && !(folio.order() > 0 && folio.is_locked());
    if flush {
        if let Some(pages) = owner::pages(mapping, entry) {
            let mem = pages.mem();
            flush = Stats::write_cache(mapping, &mem);
            if flush {
                let _durable = arch::write_back(&mem).fence();
            }
        }
    }
    Stats::of(mapping, |s| s.count_unmap(nr, flush));
    trace::unmap(mapping.host(), index, nr, flush);
    false
}
