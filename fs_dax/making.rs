// SPDX-License-Identifier: GPL-2.0

//! Keeping faults and file operations apart while blocks are made or copied.
//!
//! Faults lock an entry; write(2) and the like lock the inode. What the file system gives to both of
//! them at the same time:
//!
//! # Blocks that are to be zeroed (ext4)
//!
//! When ext4 makes a block of an unwritten extent a written one for DAX it fills it with zeroes, but
//! says already before that, in its extent status tree, that the block is written:
//! ext4_split_convert_extents() does, ext4_map_create_blocks(), which does the zeroing, says why
//! nobody may. A lookup takes no lock if the tree has the answer, so it can give a block out that is
//! still to be zeroed: what is stored to it then is wiped out, and what is read is what a deleted file
//! has left there. (generic/346 on C: stores of one thread to a mapping, and write(2) of another one
//! to the same pages of a preallocated file.)
//!
//! - A write(2) finds a block that a fault is making. The fault has the entry locked, and the entry
//!   stands for no blocks yet: [`super::io`] waits for such entries after its lookup. So does a
//!   read(2), if there is such a fault ([`Making::in_fault`]).
//! - A fault finds a block that a write(2) is making ([`Making::blocks`]): a fault that is told of a
//!   block which is not new meanwhile is tried again. It cannot wait: it has a journal handle open,
//!   and the write may be waiting for that to be closed before it gets its own.
//! - Two faults lock the same entry, two writes the same inode.
//!
//! # Blocks for copy-on-write (xfs)
//!
//! xfs has one set of them ready for whoever wants to write to a shared range, until somebody ends his
//! extent: that makes them the file's, or frees them if nothing was done. So a write(2) and a fault
//! at the same page would each copy the old bytes over what the other has stored, and a write(2) that
//! fails would free what the fault maps.
//!
//! They are made ready for more than was asked for: also in place of blocks that are not shared, and
//! whoever asks after that is given them. The end of an extent that was looked up before makes them the
//! file's too, filled or not.
//!
//! - Who is no fault and may get such blocks says so before it asks ([`Making::copies`]). With the first
//!   ones it waits for the faults that have entries locked, and looks the blocks up again.
//! - A write fault that is told of such blocks meanwhile ([`Copies`]) is tried again ([`Turn`]).
//!   A write(2) does not wait for its caller's memory meanwhile: that would be for somebody else to
//!   end, who may be such a fault. Who copies much looks now and then whether faults wait
//!   ([`is_awaited`]), and lets them in between.
//! - Who was given blocks that are not shared, or a hole, does not end the extent
//!   ([`IomapIter::again`]): blocks that somebody else has had made ready there, and has not filled,
//!   would become the file's, and show what a deleted file has left there.
//! - Who was given blocks for copy-on-write, and does not fill them, frees them by ending the extent
//!   with nothing done. (Not all: xfs makes ready whatever of them it has in the range of the source,
//!   and tells of the first only. The rest stays allocated until the inode leaves memory.) A fault
//!   may if nobody else fills them; who begins to from then on waits for its entry before. A fault that
//!   is tried again leaves them ([`IomapIter::leave`]) for the next try.
//!
//! [`IomapIter::again`]: crate::include::iomap::IomapIter::again
//! [`IomapIter::leave`]: crate::include::iomap::IomapIter::leave

use crate::include::{
    inode::AddressSpace,
    task, //
};
use kernel::{
    sync::atomic::{
        Acquire,
        Atomic,
        Full,
        Release, //
    },
    time::{
        delay::fsleep,
        Delta, //
    },
};

const SLOTS: usize = 512;

/// How many do something (lower half), and how many have done it (upper half), by mapping. A mapping
/// that shares its slot with another one has faults that are tried again for nothing.
struct Counts([Atomic<i64>; SLOTS]);

const ONE: i64 = 1;
const ONE_DONE: i64 = 1 << 32;

impl Counts {
    const fn new() -> Self {
        Self([const { Atomic::new(0) }; SLOTS])
    }

    fn slot(&self, mapping: &AddressSpace) -> &Atomic<i64> {
        &self.0[mapping.hash() % SLOTS]
    }

    fn begin(&'static self, mapping: &AddressSpace) -> Making {
        let slot = self.slot(mapping);
        // Seen by whoever sees what the file system does next.
        slot.fetch_add(ONE, Full);
        Making(slot)
    }

    fn any(&self, mapping: &AddressSpace) -> bool {
        self.slot(mapping).load(Acquire) % ONE_DONE != 0
    }
}

/// Asking for blocks, in a write(2).
static BLOCKS: Counts = Counts::new();
/// Asking for blocks, in a fault.
static FAULTS: Counts = Counts::new();
/// Writing to blocks for copy-on-write, not in a fault.
static COPIES: Counts = Counts::new();
/// Waiting in a fault for the end of somebody's copies.
static WAITING: Counts = Counts::new();

/// What is being done, while this lives.
#[must_use]
pub(super) struct Making(&'static Atomic<i64>);

impl Making {
    /// A write(2) may be making blocks. Any context.
    pub(super) fn blocks(mapping: &AddressSpace) -> Self {
        BLOCKS.begin(mapping)
    }

    /// A fault may be making blocks; it has an entry locked that stands for none. Any context.
    pub(super) fn in_fault(mapping: &AddressSpace) -> Self {
        FAULTS.begin(mapping)
    }

    /// Blocks for copy-on-write are being filled. Faults that have waited for the end of others go
    /// first: may sleep, up to [`TURN`] milliseconds, with the inode's locks held. (Where these keep
    /// the file's own faults out, in zeroing and unsharing, only those of files in the same slot wait.)
    pub(super) fn copies(mapping: &AddressSpace) -> Self {
        for _ in 0..TURN {
            if !is_awaited(mapping) {
                break;
            }
            fsleep(Delta::from_millis(1));
        }
        COPIES.begin(mapping)
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        // Who sees this sees the zeroes.
        self.0.fetch_add(ONE_DONE - ONE, Release);
    }
}

/// Whether a block that has just been looked up by a fault, and is not new, may be waiting for its
/// zeroes.
#[inline]
pub(super) fn may_be_unready(mapping: &AddressSpace) -> bool {
    BLOCKS.any(mapping)
}

/// Whether a block that has just been looked up may be waiting for the zeroes of a fault.
#[inline]
pub(super) fn in_faults(mapping: &AddressSpace) -> bool {
    FAULTS.any(mapping)
}

/// For a fault, from before its lookup on.
pub(super) struct Copies {
    seen: i64,
    filled: bool,
    refused: bool,
}

impl Copies {
    /// Looks at what is being done now.
    #[inline]
    pub(super) fn before_lookup(mapping: &AddressSpace) -> Self {
        Self {
            seen: COPIES.slot(mapping).load(Acquire),
            filled: false,
            refused: false,
        }
    }

    /// The fault has filled its blocks for copy-on-write, and its entry stands for them.
    #[inline]
    pub(super) fn fill(&mut self) {
        self.filled = true;
    }

    /// See [`Copies::fill`].
    #[inline]
    pub(super) fn are_filled(&self) -> bool {
        self.filled
    }

    /// Notes that they are somebody else's: the fault is to be tried again.
    #[inline]
    pub(super) fn refuse(&mut self) {
        self.refused = true;
    }

    /// See [`Copies::refuse`].
    #[inline]
    pub(super) fn are_refused(&self) -> bool {
        self.refused
    }

    /// Whether blocks for copy-on-write that the lookup has found must be left alone: somebody else
    /// fills them, or did when they were looked up, and they may have been freed since.
    #[inline]
    pub(super) fn are_others(&self, mapping: &AddressSpace) -> bool {
        self.seen % ONE_DONE != 0 || COPIES.slot(mapping).load(Acquire) != self.seen
    }
}

/// Whether somebody who is no fault writes to blocks for copy-on-write.
#[inline]
pub(super) fn are_copied(mapping: &AddressSpace) -> bool {
    COPIES.any(mapping)
}

/// Whether faults wait for the end of somebody's copies.
#[inline]
pub(super) fn is_awaited(mapping: &AddressSpace) -> bool {
    WAITING.any(mapping)
}

/// How often a fault waits a millisecond for its turn, and who copies for that of faults.
const TURN: u32 = 32;

/// How often it waits before it asks for its turn: there are gaps between most copies, and who lets
/// others go first waits longer than they need.
const PATIENCE: u32 = 4;

/// The turn of a fault which somebody's copies have kept from being handled. As long as this lives, who
/// copies lets it go first.
pub(super) struct Turn {
    waiting: Option<Making>,
    left: u32,
}

impl Turn {
    #[inline]
    pub(super) fn new() -> Self {
        Self {
            waiting: None,
            left: TURN,
        }
    }

    /// Sleeps for a moment if somebody copies. False: not any more, the fault is the process's to try
    /// again, or the process was killed. The entry must be unlocked, as the other side may be waiting
    /// for it; what the core and xfs hold for a fault (mmap_lock or the VMA's, the mapping's
    /// invalidate_lock shared) stays held, none of which a write(2) that copies wants.
    pub(super) fn wait(&mut self, mapping: &AddressSpace) -> bool {
        if self.left == 0 || task::fatal_signal_pending() {
            return false;
        }
        self.left -= 1;
        if are_copied(mapping) {
            if self.left < TURN - PATIENCE {
                self.waiting.get_or_insert_with(|| WAITING.begin(mapping));
            }
            fsleep(Delta::from_millis(1));
        }
        true
    }
}

/// For a fault that is to be tried again because somebody makes blocks: sleeps for a moment. (Not until
/// they are made, see above.) The entry must be unlocked.
#[inline]
pub(super) fn give_way(mapping: &AddressSpace) {
    if may_be_unready(mapping) {
        fsleep(Delta::from_micros(50));
    }
}
