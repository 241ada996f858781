// SPDX-License-Identifier: GPL-2.0

//! Breaking layouts: before blocks are taken from a file, nobody may use them; then their entries
//! are deleted. And deleting and invalidating single entries.
//!
//! Follows `dax_layout_busy_page_range()`, `dax_break_layout()` and what is around them in
//! fs/dax.c. What differs:
//!
//! - Deleting a range gives way to others now and then, where C keeps interrupts off for all of it.
//! - What is dirty is written back before it is deleted by breaking layouts. File systems break those
//!   of the whole file, whatever part they are about to change, and the core insists that no entry
//!   is left then; C forgets what is dirty in the rest of the file, and the next fsync does not
//!   flush it.

use super::{
    entry::Entry,
    lock::{
        next_unlocked,
        pass_on,
        wait_unlocked,
        wake,
        Found,
        Wake, //
    },
    owner,
    range::page_range,
    stats::Stats,
    writeback::clean, //
};
use crate::include::{
    errno::restartsys,
    folio::{
        Folio,
        LayoutCallback, //
    },
    inode::{
        AddressSpace,
        Inode, //
    },
    trace,
    xarray::{
        Mark,
        XaLocked,
        XaState, //
    }, //
};
use kernel::prelude::*;

/// Entries after which a scan lets others have the lock.
const BATCH: usize = 1024;

/// See [`crate::include::fs_dax_ops::Operations::layout_busy_page_range`].
pub(super) fn layout_busy_page_range(
    mapping: &AddressSpace,
    start: i64,
    end: i64,
) -> Option<&Folio> {
    if !mapping.is_dax() {
        return None;
    }
    let (first, last) = page_range(start, end);
    // Either we see the reference that get_user_pages_fast() has taken, or it sees that the page is
    // not mapped any more and drops it: page table entries are cleared under the page table lock.
    mapping.unmap_pages(first, last.wrapping_sub(first).wrapping_add(1));

    let mut xas = XaState::new(mapping.i_pages(), first, 0);
    let mut xa = xas.lock();
    let mut scanned = 0;
    loop {
        let raw = xa.find(last);
        if raw == 0 {
            return None;
        }
        if let Some(entry) = Entry::from_xa(raw) {
            if let Some(entry) = wait_unlocked(&mut xa, mapping, entry) {
                let index = xa.index();
                let busy = owner::busy_folio(mapping, entry);
                pass_on(mapping, index, entry);
                if busy.is_some() {
                    drop(xa);
                    Stats::of(mapping, |s| s.busy_pages.inc());
                    trace::busy(mapping.host(), index);
                    return busy;
                }
            }
        }
        scanned += 1;
        if scanned % BATCH == 0 {
            xa.pause();
            xa.resched();
        }
    }
}

/// See [`crate::include::fs_dax_ops::Operations::break_layout`].
pub(super) fn break_layout(
    inode: &Inode,
    start: i64,
    end: i64,
    cb: Option<LayoutCallback>,
) -> Result {
    let mapping = inode.mapping();
    if !mapping.is_dax() {
        return Ok(());
    }
    // From the start each time: `cb` lets faults in while it sleeps.
    while let Some(folio) = layout_busy_page_range(mapping, start, end) {
        folio.wait_idle(inode, cb.ok_or_else(restartsys)?)?;
    }
    // Nothing is mapped now, and the caller keeps faults out: nothing becomes dirty again.
    let (first, last) = page_range(start, end);
    if let Err(e) = clean(mapping, first, last, &mut 0) {
        mapping.set_error(e);
    }
    delete_mapping_range(mapping, start, end);
    Ok(())
}

/// See [`crate::include::fs_dax_ops::Operations::break_layout_final`].
pub(super) fn break_layout_final(inode: &Inode) {
    let mapping = inode.mapping();
    if !mapping.is_dax() {
        return;
    }
    while let Some(folio) = layout_busy_page_range(mapping, 0, i64::MAX) {
        folio.wait_idle_uninterruptible();
    }
    // The last write-back may have been before a device was done with a page. Nobody is left who could
    // be told of an error.
    if !inode.is_unlinked() {
        let _ = clean(mapping, 0, usize::MAX, &mut 0);
    }
    delete_mapping_range(mapping, 0, i64::MAX);
}

/// See [`crate::include::fs_dax_ops::Operations::delete_mapping_range`].
pub(super) fn delete_mapping_range(mapping: &AddressSpace, start: i64, end: i64) {
    let (first, last) = page_range(start, end);
    let mut xas = XaState::new(mapping.i_pages(), first, 0);
    let mut xa = xas.lock();
    let mut deleted = 0;
    let mut pages = 0;
    loop {
        let raw = xa.find(last);
        if raw == 0 {
            break;
        }
        let Some(entry) = Entry::from_xa(raw) else {
            continue;
        };
        let Some(entry) = wait_unlocked(&mut xa, mapping, entry) else {
            continue;
        };
        delete(&mut xa, mapping, entry);
        deleted += 1;
        pages += entry.nr_pages();
        // An entry of a PMD costs as much as its pages.
        if pages >= BATCH {
            pages = 0;
            xa.pause();
            xa.resched();
        }
    }
    drop(xa);
    if deleted > 0 {
        trace::delete(mapping.host(), first, last, deleted);
    }
}

/// Whether there are entries without blocks from `first` to `last`: zero pages may be mapped there, or
/// be about to be by who has such an entry locked.
pub(super) fn has_holes(mapping: &AddressSpace, first: usize, last: usize) -> bool {
    if mapping.is_empty() {
        return false;
    }
    let mut xas = XaState::new(mapping.i_pages(), first, 0);
    let mut xa = xas.lock();
    let mut scanned = 0;
    loop {
        match xa.find(last) {
            0 => return false,
            raw if Entry::from_xa(raw).is_some_and(|e| !e.is_real()) => return true,
            _ => {}
        }
        scanned += 1;
        if scanned % BATCH == 0 {
            xa.pause();
            xa.resched();
        }
    }
}

/// Waits for the faults that are making blocks from `first` to `last`: they have entries locked that
/// stand for none yet. May sleep.
#[cold]
pub(super) fn wait_for_makers(mapping: &AddressSpace, first: usize, last: usize) {
    let mut xas = XaState::new(mapping.i_pages(), first, 0);
    let mut xa = xas.lock();
    let mut scanned = 0;
    while let Some(entry) = Entry::from_xa(xa.find(last)) {
        if entry.is_locked() && !entry.is_real() {
            let found = wait_unlocked(&mut xa, mapping, entry);
            pass_on(mapping, xa.index(), found.unwrap_or(entry));
        }
        scanned += 1;
        if scanned % BATCH == 0 {
            xa.pause();
            xa.resched();
        }
    }
}

/// Deletes the unlocked entry that the cursor is at.
fn delete(xa: &mut XaLocked<'_, '_>, mapping: &AddressSpace, entry: Entry) {
    owner::disassociate(mapping, entry);
    xa.store(0);
    mapping.add_pages(xa, -(entry.nr_pages() as isize));
    wake(mapping, xa.index(), entry, Wake::All);
}

/// See [`crate::include::fs_dax_ops::Operations::delete_mapping_entry`].
pub(super) fn delete_mapping_entry(mapping: &AddressSpace, index: usize) -> bool {
    let mut xas = XaState::new(mapping.i_pages(), index, 0);
    let mut xa = xas.lock();
    let Found::Unlocked(entry) = next_unlocked(&mut xa, mapping, 0) else {
        return false;
    };
    delete(&mut xa, mapping, entry);
    trace::delete(mapping.host(), index, index, 1);
    true
}

/// See [`crate::include::fs_dax_ops::Operations::invalidate_mapping_entry_sync`]. May sleep.
pub(super) fn invalidate_mapping_entry_sync(mapping: &AddressSpace, index: usize) -> bool {
    let mut xas = XaState::new(mapping.i_pages(), index, 0);
    let mut xa = xas.lock();
    let Found::Unlocked(entry) = next_unlocked(&mut xa, mapping, 0) else {
        return false;
    };
    if xa.is_marked(Mark::Dirty) {
        pass_on(mapping, xa.index(), entry);
        return false;
    }
    if entry.is_real() {
        // The core unmaps what it was asked for, and afterwards. But all pages of the entry must be
        // unmapped, and nobody may hold one, before its folio is taken apart.
        let first = entry.first_index(xa.index());
        xa.replace(entry.locked().to_xa());
        let busy = xa.unlocked(|| {
            mapping.unmap_pages(first, entry.nr_pages());
            owner::busy_folio(mapping, entry).is_some()
        });
        xa.walk_to(first);
        if busy || xa.is_marked(Mark::Dirty) {
            xa.replace(entry.to_xa());
            wake(mapping, first, entry, Wake::Next);
            return false;
        }
    }
    delete(&mut xa, mapping, entry);
    trace::delete(mapping.host(), index, index, 1);
    true
}
