// SPDX-License-Identifier: GPL-2.0

//! Which file a folio belongs to: memory failure handling has to find the way back from a page.
//!
//! A real entry is associated with the folio at its pfn when it comes into being and disassociated
//! when it goes. See [`crate::include::folio`] for the words in the folio and their lock.

use super::entry::Entry;
use crate::include::{
    folio::{
        Folio,
        Pages,
        SharingLock, //
    },
    inode::AddressSpace, //
};
use kernel::sync::atomic::{
    Atomic,
    Relaxed, //
};

/// The pages of a real entry.
#[inline]
pub(super) fn pages(mapping: &AddressSpace, entry: Entry) -> Option<Pages<'_>> {
    if !entry.is_real() {
        return None;
    }
    let pages = Pages::new(mapping, entry.pfn(), entry.nr_pages());
    super::check(pages.is_some(), "an entry is not for DAX memory");
    pages
}

/// Set for ever once a fault has taken pages from a file that somebody held ([`give_up`]): such pages
/// may be anywhere.
static HELD: Atomic<i32> = Atomic::new(0);

/// C's `dax_associate_entry()`: the pages of `entry`, which is or will be at `index`, belong to
/// `mapping`; with `shared` maybe to other files too. The caller has the entry locked. May sleep.
///
/// False if `entry` is for a PMD of whose pages some belong to another file one by one, or are held:
/// they cannot be one folio then. C does not look, and warns or fails later.
#[must_use]
pub(super) fn associate(mapping: &AddressSpace, index: usize, entry: Entry, shared: bool) -> bool {
    let Some(pages) = pages(mapping, entry) else {
        return true;
    };
    let folio = pages.folio();
    // Other files can take the folio up at the same time only if it is shared. They are kept out,
    // so that a free folio stays free until its order is right.
    // A block that is not shared any more may have been part of a folio that others have still, or
    // that somebody held when its last file gave it up.
    let shared = shared
        || !folio.is_free()
        || folio.order() > 0
        || (entry.is_pmd() && HELD.load(Relaxed) != 0);
    let _sharing = shared.then(SharingLock::new);
    if shared {
        let (folio, mut owner) = loop {
            let folio = pages.folio();
            let owner = folio.lock_share();
            // Whoever takes it apart has that lock.
            if core::ptr::eq(folio, pages.folio()) {
                break (folio, owner);
            }
        };
        if !owner.is_free() || folio.is_held_together() {
            // A page may be part of a folio of another file's PMD, not the other way round.
            let fits = folio.order() >= entry.order();
            if fits {
                owner.share();
            }
            return fits;
        }
        owner.take_apart();
        drop(owner);
        // References to single pages would be the folio's.
        let is_idle = |i| {
            Pages::new(mapping, entry.pfn() + i, 1).is_some_and(|page| {
                let folio = page.folio();
                let owner = folio.lock_share();
                owner.is_free() && !folio.is_busy()
            })
        };
        if entry.is_pmd() && !(0..entry.nr_pages()).all(is_idle) {
            return false;
        }
    }
    let folio = pages.folio();
    if entry.is_pmd() {
        folio.make_compound(entry.order());
    }
    folio.lock_share().set_owner(mapping, index);
    true
}

/// `entry` is for blocks that only `mapping` has now. If other files had them too their folio has no
/// owner: from now on it is `mapping`, so that it is told when the folio gets dirty.
#[inline]
pub(super) fn last_of_many(mapping: &AddressSpace, index: usize, entry: Entry) {
    if let Some(pages) = pages(mapping, entry) {
        let folio = pages.folio();
        if folio.has_no_owner() && folio.order() == entry.order() {
            let mut owner = folio.lock_share();
            if owner.files() == 1 {
                owner.set_owner(mapping, index);
            }
        }
    }
}

/// C's `dax_disassociate_entry()`: the pages of `entry` do not belong to `mapping` any more. The
/// caller has the entry locked, or found it unlocked under `xa_lock`. Does not sleep.
pub(super) fn disassociate(mapping: &AddressSpace, entry: Entry) {
    if let Some(pages) = pages(mapping, entry) {
        pages.folio().lock_share().unshare();
    }
}

/// [`disassociate`] for a fault that gives the file other blocks. Nobody has waited for who holds pages
/// of the old ones, as breaking layouts does; they are not mapped any more.
pub(super) fn give_up(mapping: &AddressSpace, entry: Entry) {
    if busy_folio(mapping, entry).is_some() {
        HELD.store(1, Relaxed);
    }
    disassociate(mapping, entry);
}

/// C's `dax_busy_page()`: the folio of `entry` if somebody other than page tables uses it.
pub(super) fn busy_folio(mapping: &AddressSpace, entry: Entry) -> Option<&Folio> {
    let folio = pages(mapping, entry)?.folio();
    folio.is_busy().then_some(folio)
}
