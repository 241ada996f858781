// SPDX-License-Identifier: GPL-2.0

//! A block driver for persistent memory: ranges of the memory map become disks /dev/rpmemN whose
//! contents file systems can map directly (DAX).
//!
//! What it does is what drivers/nvdimm/pmem.c does for a namespace without labels:
//!
//! - `discover`: which ranges, and reserving them
//! - `device`: a range, its pages, and what the driver keeps with it
//! - `disk`: block I/O
//! - `dax`: direct access
//! - `range`, `bad_sectors`: arithmetic, also tested on the host
//!
//! No locks are held across I/O: the list of bad blocks has its own seqlock, and everything else
//! is set before the disk appears or is atomic.

mod bad_sectors;
mod dax;
mod device;
mod discover;
mod disk;
mod range;

pub(crate) use device::Device;

use crate::{
    arch::{
        Durable,
        WrittenBack, //
    },
    include::{
        dax_device,
        debugfs,
        dev_pagemap::Pagemap,
        gendisk::GenDisk,
        resource::{self, MemRegion}, //
    },
};
use device::State;
use kernel::{
    prelude::*,
    str::CString,
    sync::{
        atomic::Relaxed,
        Arc, //
    },
};

/// All devices. Dropping it removes them; nobody has one open then, as an open disk holds the
/// module.
pub(crate) struct Devices {
    _disks: KVec<Disk>,
}

/// A device that user space sees.
///
/// The fields are in the order in which C's pmem_release_disk() and what follows it take a device
/// down: no more direct access, no more disk, and last the pages and the reservation.
struct Disk {
    _counters: [debugfs::File<Arc<Device>>; 2],
    _dax: dax_device::Registration<Device>,
    _disk: GenDisk<Device>,
    _device: Arc<Device>,
}

/// Memory that is reserved for devices, and not touched yet.
pub(crate) struct Regions(KVec<MemRegion>);

impl Regions {
    /// Finds memory and reserves it. Every reason not to is reported: `EINVAL` for bad parameters,
    /// `EBUSY` if all memory there is is in use or formatted for nd_pmem, `ENODEV` if there is none.
    pub(crate) fn reserve() -> Result<Self> {
        discover::reserve().map(Self)
    }
}

impl Devices {
    /// Makes a disk of each region. One that cannot be made into a disk is reported and left out;
    /// only if none can is that an error: that of the last one.
    pub(crate) fn new(Regions(regions): Regions, debugfs: &debugfs::Dir) -> Result<Self> {
        let mut disks = KVec::with_capacity(regions.len(), GFP_KERNEL)?;
        let mut error = Ok(());
        for (index, region) in regions.into_iter().enumerate() {
            // From here on disks may be open: nothing that follows may fail the load.
            match Disk::new(index as u32, region, debugfs) {
                Ok(disk) => disks.push(disk, GFP_KERNEL)?,
                Err(e) => {
                    pr_err!("rpmem{index}: cannot be set up: {e:?}\n");
                    error = Err(e);
                }
            }
        }
        if disks.is_empty() {
            error?;
        }
        Ok(Self { _disks: disks })
    }
}

impl Drop for Devices {
    /// As C's nd_pmem_remove().
    fn drop(&mut self) {
        flush();
    }
}

/// Makes durable what was written to disks without asking for durability: at removal and, as C's
/// nd_pmem_shutdown(), when the machine goes down.
pub(crate) fn flush() {
    let _: Durable = WrittenBack::nothing().fence();
}

impl Disk {
    fn new(index: u32, region: MemRegion, debugfs: &debugfs::Dir) -> Result<Self> {
        let node = resource::node_of(region.start());
        let device = Pagemap::new(region, node, State::new(index))?;

        // What can fail comes before the disk is added, what cannot comes after.
        let name = CString::try_from_fmt(fmt!("rpmem{index}"))?;
        let dir = debugfs.subdir(&name)?;
        let counters = [
            dir.file(c"driver", device.clone(), show_counters)?,
            dir.file(c"fs_dax", device.clone(), show_fs_dax)?,
        ];
        let mut disk = disk::new(device.clone(), node)?;
        let dax = dax_device::Registration::new(&disk, device.clone())?;
        device.dax.populate(dax.device());
        pr_info!(
            "rpmem{index}: [mem {:#x}-{:#x}] {} MiB, NUMA node {node}; its struct pages take {} KiB of System RAM\n",
            device.phys(),
            device.phys() + (device.len() - 1),
            device.len() >> 20,
            device.memmap_len() >> 10
        );
        disk.add()?;
        match disk.attribute(c"badblocks") {
            Some(attribute) => {
                device.bad_blocks_attribute.populate(attribute);
            }
            None => pr_warn!("rpmem{index}: 'badblocks' notification disabled\n"),
        }
        Ok(Self {
            _counters: counters,
            _dax: dax,
            _disk: disk,
            _device: device,
        })
    }
}

/// debugfs: rust_pmem/rpmemN/fs_dax
fn show_fs_dax(device: &Arc<Device>, f: &mut kernel::fmt::Formatter<'_>) -> kernel::fmt::Result {
    device.fs_dax.show(f)
}

/// debugfs: rust_pmem/rpmemN/driver
fn show_counters(device: &Arc<Device>, f: &mut kernel::fmt::Formatter<'_>) -> kernel::fmt::Result {
    let counters = &device.counters;
    for (name, counter) in [
        ("fences", &counters.fences),
        ("read_errors", &counters.read_errors),
        ("pages_recovered", &counters.pages_recovered),
        ("memory_failures", &counters.memory_failures),
    ] {
        writeln!(f, "{name} {}", counter.load(Relaxed))?;
    }
    Ok(())
}
