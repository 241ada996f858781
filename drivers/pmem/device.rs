// SPDX-License-Identifier: GPL-2.0

//! One pmem device: its memory, and what the driver keeps with it.

use super::bad_sectors::Sectors;
use crate::fs_dax::Stats;
use crate::include::{
    badblocks::BadBlocks,
    dax_device::DaxDevice,
    dev_pagemap::{self, Pagemap},
    errno,
    gendisk::Attribute,
    super_block::SuperBlock, //
};
use kernel::{
    block::SECTOR_SHIFT,
    page::PAGE_SHIFT,
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        Arc,
        SetOnce, //
    }, //
};

/// A pmem device: a [`Pagemap`] (the range, its pages, access to them) with a [`State`].
///
/// It lives from before its disk appears until after it is gone, and is found from a superblock
/// ([`Device::from_superblock`]).
pub(crate) type Device = Pagemap<State>;

/// What the driver keeps per device, besides its memory.
#[pin_data]
pub(crate) struct State {
    /// The disk is `rpmem{index}`.
    index: u32,
    /// Sectors of the disk that must not be read.
    #[pin]
    pub(super) bad_blocks: BadBlocks,
    /// Set once the device has it; a memory failure before that is the core's.
    pub(super) dax: SetOnce<Arc<DaxDevice>>,
    /// To wake those who poll the sysfs attribute `badblocks`.
    pub(super) bad_blocks_attribute: SetOnce<Attribute>,
    /// What the driver counts.
    pub(super) counters: Counters,
    /// What the fs/dax layer counts.
    pub(crate) fs_dax: Stats,
}

/// Events since load, for debugfs.
pub(super) struct Counters {
    /// Store fences for PREFLUSH and FUA.
    pub(super) fences: Atomic<u64>,
    /// Reads refused, in whole or after a machine check.
    pub(super) read_errors: Atomic<u64>,
    /// Pages that were bad and have been written over.
    pub(super) pages_recovered: Atomic<u64>,
    /// Calls from memory_failure().
    pub(super) memory_failures: Atomic<u64>,
}

static PAGEMAP_OPS: dev_pagemap::Table<State> = dev_pagemap::Table::new();

impl State {
    /// Of disk number `index`. `ENOMEM`.
    pub(super) fn new(index: u32) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            index,
            bad_blocks <- BadBlocks::new(),
            dax: SetOnce::new(),
            bad_blocks_attribute: SetOnce::new(),
            counters: Counters {
                fences: Atomic::new(0),
                read_errors: Atomic::new(0),
                pages_recovered: Atomic::new(0),
                memory_failures: Atomic::new(0),
            },
            fs_dax: Stats::new(),
        })
    }

    /// The N of /dev/rpmemN.
    pub(crate) fn index(&self) -> u32 {
        self.index
    }
}

impl Device {
    /// The device under a file system, if it is one of ours; a partition's offset is the file
    /// system's business. Cheap enough to ask at every fault.
    #[inline]
    pub(crate) fn from_superblock(sb: &SuperBlock) -> Option<&Self> {
        sb.disk_data::<Self>()
    }

    /// Whether dirty CPU cache lines must be written back for data to be durable
    /// (`dax/write_cache`); `true` until the device says otherwise. May change at any time.
    #[inline]
    pub(crate) fn write_cache(&self) -> bool {
        self.dax.as_ref().is_none_or(|dax| dax.write_cache())
    }

    /// Takes the sectors off the list of bad blocks and says so in sysfs.
    pub(super) fn clear_bad_blocks(&self, sectors: Sectors) {
        self.bad_blocks.clear(sectors.start, sectors.len);
        self.notify_bad_blocks();
    }

    fn notify_bad_blocks(&self) {
        if let Some(attribute) = self.bad_blocks_attribute.as_ref() {
            attribute.notify();
        }
    }
}

impl dev_pagemap::Operations for State {
    fn table() -> &'static dev_pagemap::Table<Self> {
        &PAGEMAP_OPS
    }

    /// Follows C's pmem_pagemap_memory_failure(), and also notes the range as bad. For other
    /// memory ACPI's machine check handler does that; for a legacy range nobody would, and the next
    /// read would trip over the same poison. What a process simulates in its own mapping is not
    /// noted, as on C: the memory is good, and other files of the file system may be in it later.
    fn memory_failure(device: &Device, offset: u64, len: u64, flags: i32) -> Result {
        device.counters.memory_failures.add(1, Relaxed);
        if !dev_pagemap::is_simulated_by_process(flags) {
            if !device
                .bad_blocks
                .set(offset >> SECTOR_SHIFT, len >> SECTOR_SHIFT)
            {
                pr_err!(
                    "rpmem{}: the list of bad blocks is full: {len} bytes at {offset:#x} are corrupted but not on it\n",
                    device.index
                );
            }
            device.notify_bad_blocks();
            // What the linear map loses is this page, whatever folio it is part of. The core calls for
            // pages of this range only: all of them have a mark.
            let pages = offset >> PAGE_SHIFT..(offset + len) >> PAGE_SHIFT;
            for pgoff in pages {
                device.set_page_poisoned(pgoff)?;
            }
        }
        let dax = device.dax.as_ref().ok_or_else(errno::opnotsupp)?;
        dax.notify_failure(offset, len, flags)
    }
}
