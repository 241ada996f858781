// SPDX-License-Identifier: GPL-2.0

//! The page cache's XArray, with the advanced API: cursors, marks and multi-index entries.
//!
//! C header: [`include/linux/xarray.h`](srctree/include/linux/xarray.h)
//!
//! A cursor ([`XaState`]) belongs to an array. What reads or changes the array is a method of
//! [`XaLocked`], which is a cursor whose array is locked with interrupts off; dropping it unlocks.
//! After the lock was given away ([`XaLocked::unlocked`]) the cursor starts from the top again.

use super::{
    bindings,
    inode::AddressSpace,
    task::cond_resched,
    wait, //
};
use core::{
    marker::PhantomData,
    sync::atomic::{
        AtomicPtr,
        Ordering, //
    }, //
};
use kernel::{
    ffi::c_void,
    prelude::*,
    types::Opaque, //
};

/// A `struct xarray` whose lock is taken with interrupts off, such as `mapping->i_pages`.
#[repr(transparent)]
pub(crate) struct XArray(Opaque<bindings::xarray>);

/// Marks of entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Mark {
    /// `PAGECACHE_TAG_DIRTY`.
    Dirty = 0,
}

/// `XAS_RESTART`: the cursor is not at a node.
const RESTART: usize = 3;
/// Slots of a node minus one.
const CHUNK_MASK: usize = 63;

impl XArray {
    /// # Safety
    ///
    /// `raw` must be valid, and locked with interrupts off everywhere, for as long as `'a`.
    #[inline]
    pub(super) unsafe fn from_raw<'a>(raw: *mut bindings::xarray) -> &'a Self {
        // SAFETY: By the function's requirements; the layout is the same.
        unsafe { &*raw.cast() }
    }

    /// Tells arrays apart.
    #[inline]
    pub(crate) fn id(&self) -> usize {
        self.0.get() as usize
    }
}

/// A cursor in an array.
///
/// # Invariants
///
/// `raw.xa` is the array, valid for as long as `'a`; `raw.xa_node` is used only as long as the lock
/// is held that was held when it was set.
pub(crate) struct XaState<'a> {
    raw: bindings::xa_state,
    _array: PhantomData<&'a XArray>,
}

impl<'a> XaState<'a> {
    /// C's `XA_STATE_ORDER()`: a cursor at `index`, for entries of 2^`order` indices.
    #[inline]
    pub(crate) fn new(xa: &'a XArray, index: usize, order: u32) -> Self {
        // INVARIANT: The cursor has no node.
        Self {
            raw: bindings::xa_state {
                xa: xa.0.get(),
                xa_index: (index >> order) << order,
                xa_shift: (order - order % 6) as u8,
                xa_sibs: ((1u32 << (order % 6)) - 1) as u8,
                xa_offset: 0,
                xa_pad: 0,
                xa_node: RESTART as *mut _,
                xa_alloc: core::ptr::null_mut(),
                xa_update: None,
                xa_lru: core::ptr::null_mut(),
            },
            _array: PhantomData,
        }
    }

    /// Locks the array, with interrupts off. Interrupts must be on.
    #[inline]
    pub(crate) fn lock(&mut self) -> XaLocked<'_, 'a> {
        // SAFETY: The array is valid.
        unsafe { bindings::rpmem_xa_lock_irq(self.raw.xa) };
        // INVARIANT: It is locked.
        XaLocked { xas: self }
    }

    /// C's `xas_nomem()`: if a store has failed for want of memory, allocates it and returns true:
    /// try again. Otherwise false. May sleep.
    #[inline]
    pub(crate) fn nomem(&mut self, mapping: &AddressSpace) -> bool {
        // SAFETY: The cursor is valid and the array not locked by us.
        unsafe { bindings::rpmem_xas_nomem(&mut self.raw, mapping.as_raw()) }
    }

    /// The error that a store has left in the cursor.
    #[inline]
    pub(crate) fn error(&self) -> Option<Error> {
        // C's xa_err(): errors are internal entries, negative numbers shifted by two.
        let node = self.raw.xa_node as isize;
        if node & 3 == 2 && node < 0 {
            Some(Error::from_errno((node >> 2) as i32))
        } else {
            None
        }
    }
}

impl Drop for XaState<'_> {
    #[inline]
    fn drop(&mut self) {
        if !self.raw.xa_alloc.is_null() {
            // SAFETY: The cursor is valid.
            unsafe { bindings::xas_destroy(&mut self.raw) };
        }
    }
}

/// A cursor whose array is locked.
///
/// # Invariants
///
/// The array is locked, and interrupts are off, by this thread.
#[must_use = "the array is unlocked when this is dropped"]
pub(crate) struct XaLocked<'x, 'a> {
    xas: &'x mut XaState<'a>,
}

impl XaLocked<'_, '_> {
    #[inline]
    fn raw(&mut self) -> *mut bindings::xa_state {
        &raw mut self.xas.raw
    }

    /// Whether a store has failed, see [`XaState::error`].
    #[inline]
    pub(crate) fn failed(&self) -> bool {
        self.xas.error().is_some()
    }

    /// The node the cursor is at, if it is at one.
    #[inline]
    fn node(&self) -> Option<*mut bindings::xa_node> {
        let node = self.xas.raw.xa_node;
        (!node.is_null() && node as usize & 3 == 0).then_some(node)
    }

    /// Where the cursor is.
    #[inline]
    pub(crate) fn index(&self) -> usize {
        self.xas.raw.xa_index
    }

    /// What `xas_load()` does for a fresh cursor of order 0 in an array with nodes, inline: the walks
    /// are a good part of what a page costs. `None`, and the cursor stays as it is, in all other
    /// cases.
    #[inline]
    fn walk(&mut self) -> Option<usize> {
        /// A node's address plus this is an entry, if it is above the small internal entries.
        const NODE: usize = 2;
        const MAX_SMALL: usize = 4096;

        let xas = &mut self.xas.raw;
        if xas.xa_node as usize != RESTART || xas.xa_shift != 0 || xas.xa_sibs != 0 {
            return None;
        }
        // SAFETY: The array is valid and locked, so nodes that are in it are.
        unsafe {
            let mut entry = (*xas.xa).xa_head as usize;
            let mut above = usize::BITS;
            loop {
                if entry & 3 != NODE || entry <= MAX_SMALL {
                    // Nothing, a single entry, a sibling.
                    return None;
                }
                let node = (entry - NODE) as *mut bindings::xa_node;
                let shift = u32::from((*node).shift);
                let offset = xas.xa_index >> shift;
                if above == usize::BITS && offset > CHUNK_MASK {
                    return None;
                }
                above = shift;
                let offset = offset & CHUNK_MASK;
                entry = (*node).slots[offset] as usize;
                // Nothing or a value.
                if entry == 0 || entry & 1 == 1 {
                    xas.xa_node = node;
                    xas.xa_offset = offset as u8;
                    return Some(entry);
                }
                if shift == 0 {
                    return None;
                }
            }
        }
    }

    /// C's `xas_load()`: the entry at the cursor, 0 if there is none.
    #[inline]
    pub(crate) fn load(&mut self) -> usize {
        if let Some(entry) = self.walk() {
            return entry;
        }
        // SAFETY: The cursor is valid, the array locked.
        unsafe { bindings::xas_load(self.raw()) as usize }
    }

    /// C's `xas_store()`: puts `entry` at the cursor, or removes what is there if it is 0. A failed
    /// allocation is left in the cursor, see [`XaState::error`].
    #[inline]
    pub(crate) fn store(&mut self, entry: usize) {
        // SAFETY: The cursor is valid, the array locked. Entries of these arrays own nothing.
        unsafe { bindings::xas_store(self.raw(), entry as *mut c_void) };
    }

    /// Replaces the value entry the cursor is at by another one of the same order: what
    /// [`XaLocked::store`] does, without the bookkeeping, as no count changes. The cursor must have
    /// been walked to that entry under this lock.
    #[inline]
    pub(crate) fn replace(&mut self, entry: usize) {
        let slot: *mut *mut c_void = match self.node() {
            // SAFETY: The node is valid under the lock. `xa_offset` is below 64 as long as the
            // cursor is at an entry.
            Some(node) => unsafe {
                &raw mut (*node).slots[self.xas.raw.xa_offset as usize & CHUNK_MASK]
            },
            // SAFETY: The array is valid.
            None if self.xas.raw.xa_node.is_null() => unsafe {
                &raw mut (*self.xas.raw.xa).xa_head
            },
            None => return self.store(entry),
        };
        // SAFETY: `slot` is valid and aligned; concurrent readers under RCU make atomic accesses.
        unsafe { AtomicPtr::from_ptr(slot) }.store(entry as *mut c_void, Ordering::Release);
    }

    /// C's `xas_find()`: the next entry up to `max`; the one at the cursor if it is fresh.
    #[inline]
    pub(crate) fn find(&mut self, max: usize) -> usize {
        // SAFETY: The cursor is valid, the array locked.
        let entry = unsafe { bindings::xas_find(self.raw(), max) as usize };
        if entry == 0 {
            // It may be at the end of one node with the index of the next.
            self.reset_node();
        }
        entry
    }

    /// C's `xas_find_marked()`: the next marked entry up to `max`; also the one at a fresh cursor.
    #[inline]
    pub(crate) fn find_marked(&mut self, max: usize, mark: Mark) -> usize {
        // SAFETY: The cursor is valid, the array locked.
        unsafe { bindings::xas_find_marked(self.raw(), max, mark as u32) as usize }
    }

    /// C's `xas_find_conflict()`: an entry in the cursor's range, 0 if there is none.
    #[inline]
    pub(crate) fn find_conflict(&mut self) -> usize {
        if let Some(entry) = self.walk() {
            return entry;
        }
        // SAFETY: The cursor is valid, the array locked.
        unsafe { bindings::xas_find_conflict(self.raw()) as usize }
    }

    /// The entry at the next index if it is in the same leaf node as the cursor, which moves there.
    /// 0, and the cursor stays, if it is not or if there is nothing.
    #[inline]
    pub(crate) fn next_in_node(&mut self) -> usize {
        let Some(node) = self.node() else {
            return 0;
        };
        let next = self.xas.raw.xa_offset as usize + 1;
        // SAFETY: The node is valid under the lock.
        let entry = unsafe {
            if (*node).shift != 0 || next > CHUNK_MASK {
                return 0;
            }
            (*node).slots[next] as usize
        };
        // Not a sibling, retry or node entry.
        if entry & 1 == 1 {
            self.xas.raw.xa_offset = next as u8;
            self.xas.raw.xa_index += 1;
            entry
        } else {
            0
        }
    }

    /// Whether the entry at the cursor has the mark.
    #[inline]
    pub(crate) fn is_marked(&self, mark: Mark) -> bool {
        match self.node() {
            // SAFETY: The node is valid under the lock; all variants of the union are the same.
            Some(node) => unsafe {
                (*node).__bindgen_anon_2.marks[mark as usize][0]
                    & 1 << (self.xas.raw.xa_offset as usize & CHUNK_MASK)
                    != 0
            },
            // SAFETY: The cursor is valid, the array locked.
            None => unsafe { bindings::xas_get_mark(&self.xas.raw, mark as u32) },
        }
    }

    /// How many value entries, with the mark if there is one, are right before the cursor, within its
    /// leaf node.
    #[inline]
    pub(crate) fn before(&self, mark: Option<Mark>) -> usize {
        let Some(node) = self.node() else {
            return 0;
        };
        let offset = self.xas.raw.xa_offset as usize & CHUNK_MASK;
        // SAFETY: The node is valid under the lock; all variants of the union are the same.
        unsafe {
            if (*node).shift != 0 || offset == 0 {
                return 0;
            }
            match mark {
                Some(mark) => {
                    let marks = (*node).__bindgen_anon_2.marks[mark as usize][0];
                    (marks << (64 - offset)).leading_ones() as usize
                }
                None => {
                    let slots = &raw const (*node).slots;
                    (0..offset)
                        .rev()
                        .take_while(|&i| (*slots)[i] as usize & 1 == 1)
                        .count()
                }
            }
        }
    }

    /// Marks the entry at the cursor.
    #[inline]
    pub(crate) fn set_mark(&mut self, mark: Mark) {
        // SAFETY: The cursor is valid, the array locked.
        unsafe { bindings::xas_set_mark(self.raw(), mark as u32) };
    }

    /// Unmarks the entry at the cursor.
    #[inline]
    pub(crate) fn clear_mark(&mut self, mark: Mark) {
        if self.is_marked(mark) {
            // SAFETY: The cursor is valid, the array locked.
            unsafe { bindings::xas_clear_mark(self.raw(), mark as u32) };
        }
    }

    /// C's `xas_pause()`: the lock can be given away; [`XaLocked::find`] will go on behind the
    /// entry the cursor is at.
    #[inline]
    pub(crate) fn pause(&mut self) {
        // SAFETY: The cursor is valid, the array locked.
        unsafe { bindings::xas_pause(self.raw()) };
    }

    /// C's `xas_reset()`: the cursor will walk to its index anew.
    #[inline]
    pub(crate) fn reset(&mut self) {
        self.xas.raw.xa_node = RESTART as *mut _;
    }

    /// C's `xas_set()`: moves to another index.
    #[inline]
    pub(crate) fn set(&mut self, index: usize) {
        self.xas.raw.xa_index = index;
        self.reset();
    }

    /// Moves to another index and returns the entry there, 0 if there is none; cheaply if it is in
    /// the same leaf node. If the array has been unlocked since the cursor was walked the cursor must
    /// have been reset.
    #[inline]
    pub(crate) fn walk_to(&mut self, index: usize) -> usize {
        if let Some(node) = self.node() {
            if index & !CHUNK_MASK == self.xas.raw.xa_index & !CHUNK_MASK {
                let offset = index & CHUNK_MASK;
                // SAFETY: The node is valid under the lock.
                let (shift, entry) = unsafe { ((*node).shift, (*node).slots[offset] as usize) };
                // Nothing or a value: not a sibling, retry or node entry.
                if shift == 0 && (entry == 0 || entry & 1 == 1) {
                    self.xas.raw.xa_index = index;
                    self.xas.raw.xa_offset = offset as u8;
                    return entry;
                }
            }
        }
        self.set(index);
        self.load()
    }

    /// Gives the lock away, calls `f`, and takes it again. The cursor is reset: whoever wants to go
    /// on behind its entry must [`XaLocked::pause`] first.
    #[inline]
    pub(crate) fn unlocked<R>(&mut self, f: impl FnOnce() -> R) -> R {
        self.reset_node();
        self.unlock_raw();
        let ret = f();
        // SAFETY: The array is valid. INVARIANT: Locked again.
        unsafe { bindings::rpmem_xa_lock_irq(self.xas.raw.xa) };
        ret
    }

    /// Lets others have the lock, and the CPU if they should. As [`XaLocked::unlocked`].
    #[inline]
    pub(crate) fn resched(&mut self) {
        self.unlocked(cond_resched);
    }

    /// Gives the lock away, sleeps until `key` is woken, and takes the lock again. The cursor is
    /// reset.
    pub(crate) fn wait(&mut self, table: &'static wait::Table, key: wait::Key) {
        self.reset();
        table.wait(key, true, || self.unlock_raw());
        // SAFETY: The array is valid. INVARIANT: Locked again.
        unsafe { bindings::rpmem_xa_lock_irq(self.xas.raw.xa) };
    }

    /// Gives the lock away for good and sleeps until `key` is woken; the array may be gone then.
    pub(crate) fn wait_and_leave(self, table: &'static wait::Table, key: wait::Key) {
        table.wait(key, false, || drop(self));
    }

    /// Forgets the node, but not that the cursor has run off the array or met an error.
    #[inline]
    fn reset_node(&mut self) {
        if self.node().is_some() || self.xas.raw.xa_node.is_null() {
            self.reset();
        }
    }

    #[inline]
    fn unlock_raw(&self) {
        // SAFETY: By the type's invariant this thread has the lock.
        unsafe { bindings::rpmem_xa_unlock_irq(self.xas.raw.xa) };
    }
}

impl Drop for XaLocked<'_, '_> {
    #[inline]
    fn drop(&mut self) {
        // Whoever locks next must not walk on from a node that may be gone then.
        self.reset_node();
        self.unlock_raw();
    }
}
