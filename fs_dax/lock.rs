// SPDX-License-Identifier: GPL-2.0

//! Entry states, the lock order and the wait protocol of the fs/dax layer.
//!
//! # Entry states
//!
//! An index of a mapping has no entry, or one that is empty, zero (a hole) or real (blocks), for a
//! page or a PMD ([`super::entry`]). Every entry can be locked: a bit in it, changed under the
//! array's lock (`xa_lock`). What belongs to whom:
//!
//! - Only who has an entry locked changes what it stands for or takes it away, changes page tables
//!   to map what it stands for, or cleans them and flushes. Page tables may lose a mapping at any
//!   time.
//! - `DIRTY` (`PAGECACHE_TAG_DIRTY`) is set before a page table allows stores to a page, and cleared
//!   only by who has the entry locked, after page tables do not allow stores any more and the page
//!   is durable. So as long as there may be data that is not durable, there is the mark.
//! - A device that writes to a page it has pinned waits for nobody. So write-back asks who holds a page
//!   once page tables do not allow stores, and leaves `DIRTY` if somebody does.
//! - `TOWRITE`, which is for C a list of what one fsync has to do, is not used: a range is walked once,
//!   in ascending order.
//! - An entry that is not real is dirty only while a write fault has it locked.
//!
//! # Lock order
//!
//! Each line may be taken while those above it are held, none below:
//!
//! 1. the file system's locks (`i_rwsem`, invalidate lock, journal), `mmap_lock`
//! 2. an entry's lock. Who has one never waits for another one: write-back, which locks many, takes
//!    up only entries that are not locked once it has the first
//! 3. `SharingLock` (mutex)
//! 4. `i_mmap_rwsem`, page table locks, folio lock
//! 5. `i_pages.xa_lock`, interrupts off
//! 6. `ShareLock` (hashed, interrupts off), `i_lock`, wait queue locks
//!
//! Under 5 and 6 nothing sleeps or allocates other than atomically.
//!
//! # Waiting
//!
//! Who finds an entry locked, under `xa_lock`, puts himself into the queue for the entry (mapping
//! and index, aligned to the PMD for a PMD entry) before he gives `xa_lock` away, and sleeps
//! ([`wait_for`]). Who unlocks or removes an entry does it under `xa_lock` and wakes after that, so
//! he sees everybody who saw the entry locked. Waits are exclusive: an unlock wakes one waiter, who
//! finds the entry unlocked and either locks it, and wakes the next when he unlocks it, or passes
//! the wake-up on ([`pass_on`]). Removing an entry wakes all. Who cannot be sure to pass it on, as
//! the inode may be gone ([`wait_and_leave`]), waits non-exclusively.

use super::entry::{
    Entry,
    Kind,
    PG_PMD_COLOUR,
    PG_PMD_NR, //
};
use super::stats::Stats;
use crate::include::{
    inode::AddressSpace,
    trace,
    vm_fault::FaultResult,
    wait,
    xarray::{
        Mark,
        XaLocked,
        XaState, //
    }, //
};
use kernel::prelude::*;

static WAITERS: wait::Table = wait::Table::new();

/// Makes waiting possible; once, before the layer is used.
pub(super) fn init() {
    WAITERS.init();
}

fn key(mapping: &AddressSpace, index: usize, entry: Entry) -> wait::Key {
    wait::Key {
        owner: mapping.i_pages().id(),
        index: entry.first_index(index),
    }
}

/// Who is to be woken.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Wake {
    /// One waiter.
    Next,
    /// Everybody.
    All,
}

/// Wakes those who wait for `entry`, which is or was at `index`. Called after the change that they
/// wait for, under the same hold of `xa_lock` or later.
#[inline]
pub(super) fn wake(mapping: &AddressSpace, index: usize, entry: Entry, whom: Wake) {
    WAITERS.wake(key(mapping, index, entry), whom == Wake::All);
}

/// Passes on the wake-up that somebody may have got who found `entry` unlocked but does not lock
/// it.
#[inline]
pub(super) fn pass_on(mapping: &AddressSpace, index: usize, entry: Entry) {
    wake(mapping, index, entry, Wake::Next);
}

/// Waits until `entry`, locked and found at the cursor, is unlocked or gone. `xa_lock` is given away
/// meanwhile, the cursor reset. The caller must lock the entry or [`pass_on`].
#[cold]
fn wait_for(xa: &mut XaLocked<'_, '_>, mapping: &AddressSpace, entry: Entry) {
    let index = xa.index();
    Stats::of(mapping, |s| s.waits.inc());
    trace::wait(mapping.host(), index);
    xa.wait(&WAITERS, key(mapping, index, entry));
}

/// C's `wait_entry_unlocked()`: waits, without a way back, as the mapping may be gone after that.
pub(super) fn wait_and_leave(xa: XaLocked<'_, '_>, mapping: &AddressSpace, entry: Entry) {
    let key = key(mapping, xa.index(), entry);
    Stats::of(mapping, |s| s.waits.inc());
    trace::wait(mapping.host(), xa.index());
    xa.wait_and_leave(&WAITERS, key);
}

/// What [`next_unlocked`] found.
pub(super) enum Found {
    /// Nothing.
    Nothing,
    /// An unlocked entry, maybe of a larger order; the cursor is at it.
    Unlocked(Entry),
    /// An entry of a smaller order.
    Conflict,
    /// Something that is not a DAX entry: a bug.
    Foreign,
}

/// C's `get_next_unlocked_entry()`: an entry in the cursor's range of 2^`order` indices, waited for
/// until it is unlocked. The caller must lock it or [`pass_on`].
pub(super) fn next_unlocked(
    xa: &mut XaLocked<'_, '_>,
    mapping: &AddressSpace,
    order: u32,
) -> Found {
    loop {
        let raw = xa.find_conflict();
        if raw == 0 {
            return Found::Nothing;
        }
        let Some(entry) = Entry::from_xa(raw) else {
            return Found::Foreign;
        };
        if entry.order() < order {
            return Found::Conflict;
        }
        if !entry.is_locked() {
            return Found::Unlocked(entry);
        }
        wait_for(xa, mapping, entry);
    }
}

/// C's `wait_entry_unlocked_exclusive()`: waits until the entry that was found at the cursor is
/// unlocked, and returns what is there then. The caller must lock it or [`pass_on`].
pub(super) fn wait_unlocked(
    xa: &mut XaLocked<'_, '_>,
    mapping: &AddressSpace,
    mut entry: Entry,
) -> Option<Entry> {
    while entry.is_locked() {
        wait_for(xa, mapping, entry);
        entry = Entry::from_xa(xa.load())?;
    }
    Some(entry)
}

/// A locked entry; dropping it unlocks it.
///
/// What the entry is to stand for is kept here ([`LockedEntry::set`]) and stored at unlock, in one
/// step.
#[must_use = "the entry is unlocked when this is dropped"]
pub(super) struct LockedEntry<'m> {
    mapping: &'m AddressSpace,
    /// The first index of the entry.
    index: usize,
    /// Unlocked form of what it will be.
    entry: Entry,
    /// It was marked dirty when it was locked for a write, and no store was allowed yet.
    undo_dirty: bool,
    /// Entries right before it when it was locked; for a write only dirty ones count.
    before: usize,
}

impl<'m> LockedEntry<'m> {
    /// C's `grab_mapping_entry()`: the entry for the page or PMD at `index`, locked. If there is
    /// none an empty one is made.
    ///
    /// A real PMD entry is taken where a page is wanted. A zero or empty one is taken apart.
    /// [`FaultResult::FALLBACK`] if a PMD is wanted and there are pages already.
    ///
    /// With `write` the entry is marked dirty in the same step: it has to be before a store is
    /// allowed. If it does not come to that ([`LockedEntry::keep_dirty`] is not called) the mark goes
    /// away at unlock. May sleep.
    pub(super) fn grab(
        mapping: &'m AddressSpace,
        index: usize,
        order: u32,
        write: bool,
    ) -> core::result::Result<Self, FaultResult> {
        let mut xas = XaState::new(mapping.i_pages(), index, order);
        loop {
            let mut xa = xas.lock();
            let mut entry = match next_unlocked(&mut xa, mapping, order) {
                Found::Nothing => None,
                Found::Unlocked(entry) => Some(entry),
                Found::Conflict => return Err(FaultResult::FALLBACK),
                Found::Foreign => {
                    super::bug("an entry of a DAX file is not a DAX entry");
                    return Err(FaultResult::SIGBUS);
                }
            };
            if let Some(pmd) = entry.filter(|e| order == 0 && e.is_pmd() && !e.is_real()) {
                take_apart(&mut xa, mapping, index, pmd);
                entry = None;
            }
            match entry {
                Some(entry) => xa.replace(entry.locked().to_xa()),
                None => xa.store(Entry::empty(order).locked().to_xa()),
            }
            if xa.failed() {
                drop(xa);
                if xas.nomem(mapping) {
                    continue;
                }
                return Err(match xas.error() {
                    Some(e) if e == ENOMEM => FaultResult::OOM,
                    _ => FaultResult::SIGBUS,
                });
            }
            if entry.is_none() {
                mapping.add_pages(&xa, 1 << order);
            }
            let mut undo_dirty = false;
            let before = xa.before(write.then_some(Mark::Dirty));
            if write {
                undo_dirty = !xa.is_marked(Mark::Dirty);
                xa.set_mark(Mark::Dirty);
            }
            drop(xa);
            let entry = entry.unwrap_or(Entry::empty(order));
            return Ok(Self {
                mapping,
                index: entry.first_index(index),
                entry,
                undo_dirty,
                before,
            });
        }
    }

    /// An entry that has been locked under a lock held before.
    pub(super) fn adopt(mapping: &'m AddressSpace, index: usize, entry: Entry) -> Self {
        Self {
            mapping,
            index: entry.first_index(index),
            entry: entry.unlocked(),
            undo_dirty: false,
            before: 0,
        }
    }

    /// Unlocked form of the entry.
    #[inline]
    pub(super) fn entry(&self) -> Entry {
        self.entry
    }

    /// The first index of the entry.
    #[inline]
    pub(super) fn index(&self) -> usize {
        self.index
    }

    /// How many entries (dirty ones for a write) there are right before it, or less: for
    /// [`super::ahead`].
    #[inline]
    pub(super) fn before(&self) -> usize {
        self.before
    }

    /// The mapping.
    #[inline]
    pub(super) fn mapping(&self) -> &'m AddressSpace {
        self.mapping
    }

    /// Makes it stand for something else, of the same order.
    #[inline]
    pub(super) fn set(&mut self, entry: Entry) {
        super::check(
            entry.order() == self.entry.order() && !entry.is_locked(),
            "an entry changed its order under its lock",
        );
        self.entry = entry;
    }

    /// Whether it was dirty before it was locked, or is to stay so.
    #[inline]
    pub(super) fn is_dirty(&self) -> bool {
        !self.undo_dirty
    }

    /// There is nothing to write back: the dirty mark goes away at unlock.
    #[inline]
    pub(super) fn forget_dirty(&mut self) {
        self.undo_dirty = true;
    }

    /// Stores will be allowed: the dirty mark stays.
    #[inline]
    pub(super) fn keep_dirty(&mut self) {
        self.undo_dirty = false;
    }
}

impl Drop for LockedEntry<'_> {
    fn drop(&mut self) {
        let mut xas = XaState::new(self.mapping.i_pages(), self.index, 0);
        let mut xa = xas.lock();
        let old = xa.load();
        super::check(
            Entry::from_xa(old).is_some_and(|e| e.is_locked() && e.order() == self.entry.order()),
            "an entry was not locked at unlock",
        );
        xa.replace(self.entry.to_xa());
        if self.undo_dirty {
            xa.clear_mark(Mark::Dirty);
        }
        drop(xa);
        wake(self.mapping, self.index, self.entry, Wake::Next);
    }
}

/// Takes a zero or empty PMD entry, which the cursor for `index` is at, apart so that there can be
/// entries for pages: unmaps it and removes it.
fn take_apart(xa: &mut XaLocked<'_, '_>, mapping: &AddressSpace, index: usize, entry: Entry) {
    // Locked, so that it stays while xa_lock is not held.
    xa.replace(entry.locked().to_xa());
    if entry.kind() == Kind::Zero {
        xa.unlocked(|| mapping.unmap_pages(index & !PG_PMD_COLOUR, PG_PMD_NR));
    }
    xa.set(index);
    xa.store(0);
    mapping.add_pages(xa, -(PG_PMD_NR as isize));
    wake(mapping, index, entry, Wake::All);
    xa.set(index);
}
