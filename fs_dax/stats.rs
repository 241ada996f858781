// SPDX-License-Identifier: GPL-2.0

//! Counters of the fs/dax layer, per device, shown in debugfs as `rust_pmem/rpmemN/fs_dax`.

use super::run::Batch;
use crate::{
    drivers::pmem::Device,
    include::{
        cpu,
        inode::AddressSpace,
        pmem::Pmem,
        vm_fault::{
            FaultResult,
            VmFault, //
        }, //
    },
};
use kernel::{
    fmt,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};

/// Parts of a counter; CPUs with different numbers modulo this do not share a cache line.
const SHARDS: usize = 8;

/// A number that only grows.
pub(super) struct Counter<'a>(&'a Atomic<u64>);

impl Counter<'_> {
    /// Adds 1.
    #[inline]
    pub(super) fn inc(&self) {
        self.add(1);
    }

    /// Adds `n`.
    #[inline]
    pub(super) fn add(&self, n: u64) {
        self.0.add(n, Relaxed);
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// One CPU's part of the counters.
        #[repr(align(64))]
        struct Shard {
            $($name: Atomic<u64>,)*
        }

        impl Shard {
            fn new() -> Self {
                Self { $($name: Atomic::new(0),)* }
            }
        }

        /// The counters of a device, on this CPU.
        pub(super) struct Counters<'a> {
            $($(#[$doc])* pub(super) $name: Counter<'a>,)*
        }

        impl<'a> Counters<'a> {
            #[inline]
            fn new(shard: &'a Shard) -> Self {
                Self { $($name: Counter(&shard.$name),)* }
            }
        }

        impl Stats {
            /// One line per counter, its name and the sum over all CPUs.
            pub(crate) fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                $(
                    let sum: u64 = self.0.iter().map(|s| s.$name.load(Relaxed)).sum();
                    writeln!(f, concat!(stringify!($name), " {}"), sum)?;
                )*
                Ok(())
            }
        }
    };
}

counters! {
    /// Faults that mapped a page, read.
    pte_read_faults,
    /// Faults that mapped a page, write.
    pte_write_faults,
    /// Faults that mapped a PMD, read.
    pmd_read_faults,
    /// Faults that mapped a PMD, write.
    pmd_write_faults,
    /// Pages that faults have mapped ahead.
    pages_ahead,
    /// PMD faults that were left to pages.
    pmd_fallbacks,
    /// Faults that ended in an error.
    fault_errors,
    /// Second halves of MAP_SYNC faults.
    sync_faults,
    /// Page entries written back, by what is counted in `bytes_fsync`.
    pages_flushed,
    /// PMD entries, the same.
    pmds_flushed,
    /// Runs of contiguous pages written back.
    runs,
    /// Batches of runs: fences.
    batches,
    /// Bytes flushed by fsync, msync or sync, and before layouts are broken, blocks shared by files
    /// are copied, or ranges zeroed.
    bytes_fsync,
    /// Bytes flushed at unmap.
    bytes_unmap,
    /// Bytes zeroed; not what reads as zeroes already.
    bytes_zero,
    /// Bytes read by read(2).
    bytes_read,
    /// Bytes written by write(2).
    bytes_written,
    /// Dirty mappings removed, and pages that devices have written to.
    unmaps,
    /// Entries that stayed dirty after a flush, as somebody may still write to a page of them without a
    /// page table.
    kept_dirty,
    /// Waits for a locked entry.
    waits,
    /// Waits for others who were taking dirty mappings away.
    zap_waits,
    /// Pages in use by a device that layout breaking met.
    busy_pages,
}

/// The counters of a device.
pub(crate) struct Stats([Shard; SHARDS]);

impl Stats {
    /// All 0.
    pub(crate) fn new() -> Self {
        Self(core::array::from_fn(|_| Shard::new()))
    }

    /// Calls `f` with the counters of the device that a file is on.
    #[inline]
    pub(super) fn of(mapping: &AddressSpace, f: impl FnOnce(&Counters<'_>)) {
        if let Some(device) = Device::from_superblock(mapping.host().sb()) {
            f(&Counters::new(&device.fs_dax.0[cpu::id() % SHARDS]));
        }
    }

    /// Whether dirty lines of a file's memory have to be written back. (The files of xfs's realtime
    /// device are not on the superblock's: theirs are.)
    #[inline]
    pub(super) fn write_cache(mapping: &AddressSpace, mem: &Pmem<'_>) -> bool {
        Device::from_superblock(mapping.host().sb())
            .is_none_or(|device| device.write_cache() || !device.contains(mem))
    }
}

impl Counters<'_> {
    /// A fault of 2^`order` pages was handled.
    #[inline]
    pub(super) fn count_fault(&self, vmf: &VmFault<'_>, order: u32, result: FaultResult) {
        if result == FaultResult::FALLBACK {
            self.pmd_fallbacks.inc();
        } else if result.is_error() {
            self.fault_errors.inc();
        } else {
            match (order > 0, vmf.is_write()) {
                (false, false) => self.pte_read_faults.inc(),
                (false, true) => self.pte_write_faults.inc(),
                (true, false) => self.pmd_read_faults.inc(),
                (true, true) => self.pmd_write_faults.inc(),
            }
        }
    }

    /// A batch was written back; flushed if `flushed`.
    #[inline]
    pub(super) fn count_batch(&self, batch: &Batch, flushed: bool) {
        let pages = batch.pages() as u64;
        if batch.is_pmd() {
            self.pmds_flushed.inc();
        } else {
            self.pages_flushed.add(pages);
        }
        self.runs.add(batch.runs().len() as u64);
        self.batches.inc();
        if flushed {
            self.bytes_fsync.add(pages << super::entry::PAGE_SHIFT);
        }
    }

    /// A dirty mapping of `nr` pages has gone.
    #[inline]
    pub(super) fn count_unmap(&self, nr: usize, flushed: bool) {
        self.unmaps.inc();
        if flushed {
            self.bytes_unmap
                .add((nr as u64) << super::entry::PAGE_SHIFT);
        }
    }

    /// read(2) or write(2) has moved `bytes`.
    #[inline]
    pub(super) fn count_rw(&self, write: bool, bytes: usize) {
        if write {
            self.bytes_written.add(bytes as u64);
        } else {
            self.bytes_read.add(bytes as u64);
        }
    }

    /// `bytes` were zeroed.
    #[inline]
    pub(super) fn count_zero(&self, bytes: usize) {
        self.bytes_zero.add(bytes as u64);
    }
}
