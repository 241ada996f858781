// SPDX-License-Identifier: GPL-2.0

//! Writes that may be making blocks, for faults to stay away from.
//!
//! When ext4 makes a block of an unwritten extent a written one for DAX it fills it with zeroes, but
//! says already before that, in its extent status tree, that the block is written:
//! ext4_split_convert_extents() does, ext4_map_create_blocks(), which does the zeroing, says why
//! nobody may. A lookup takes no lock if the tree has the answer, so it can give a block out that is
//! still to be zeroed, and what is stored to it then is wiped out. (generic/346 on C: stores of one
//! thread to a mapping, and write(2) of another one to the same pages of a preallocated file.)
//!
//! Who can meet:
//!
//! - A write(2) finds a block that a fault is making. The fault has the entry locked, and the entry
//!   stands for no blocks yet: [`super::io`] waits for such entries after its lookup.
//! - A fault finds a block that a write(2) is making: this file. write(2) says that it is asking for
//!   blocks; a fault that is told of a block which is not new meanwhile is tried again. It cannot
//!   wait: it has a journal handle open, and the write may be waiting for that to be closed before it
//!   gets its own.
//! - Two faults lock the same entry, two writes the same inode.

use crate::include::inode::AddressSpace;
use kernel::sync::atomic::{
    Acquire,
    Atomic,
    Full,
    Release, //
};

const SLOTS: usize = 64;

/// How many write(2)s are asking for blocks, by mapping. A mapping that shares its slot with another
/// one has faults that are tried again for nothing.
static WRITES: [Atomic<i32>; SLOTS] = [const { Atomic::new(0) }; SLOTS];

fn slot(mapping: &AddressSpace) -> &'static Atomic<i32> {
    // Mappings are parts of inodes, several hundred bytes each.
    &WRITES[(mapping.i_pages().id() >> 9) % SLOTS]
}

/// While this lives a write(2) may be making blocks for the mapping.
#[must_use]
pub(super) struct Making(&'static Atomic<i32>);

impl Making {
    /// Begins. Any context.
    pub(super) fn blocks(mapping: &AddressSpace) -> Self {
        let slot = slot(mapping);
        // Seen by whoever sees what the file system does next.
        slot.fetch_add(1, Full);
        Self(slot)
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        // Who sees this sees the zeroes.
        self.0.fetch_add(-1, Release);
    }
}

/// Whether a block that has just been looked up, and is not new, may be waiting for its zeroes.
#[inline]
pub(super) fn may_be_unready(mapping: &AddressSpace) -> bool {
    slot(mapping).load(Acquire) != 0
}
