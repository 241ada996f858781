// SPDX-License-Identifier: GPL-2.0

//! Direct access to a pmem device by file systems.
//!
//! Follows pmem_dax_ops in drivers/nvdimm/pmem.c. `nocache`, `nomc` and `synchronous` are set as C
//! sets them.

use super::{
    bad_sectors::{recovery_stride, Sectors, SECTORS_PER_PAGE},
    device::Device, //
};
use crate::{
    arch::WrittenBack,
    include::{
        dax_device::{self, AccessMode},
        dev_pagemap::Extent,
        errno, //
    },
};
use kernel::{
    block::SECTOR_SHIFT,
    iov::IovIterSource,
    page::{PAGE_SHIFT, PAGE_SIZE},
    prelude::*, //
};

/// What the kernel's DAX core calls.
pub(super) static DAX_OPS: dax_device::Table<Device> = dax_device::Table::new();

/// As many pages are looked at for bad blocks, 256 GiB: badblocks_check() counts sectors with an `int`, and
/// does not come back from a negative number.
const MOST_CHECKED: usize = 1 << 26;

/// The sectors of `nr_pages` pages that are on the device.
fn sectors_of(pgoff: u64, nr_pages: usize) -> Sectors {
    Sectors {
        start: pgoff * SECTORS_PER_PAGE,
        len: nr_pages as u64 * SECTORS_PER_PAGE,
    }
}

impl dax_device::Operations for Device {
    fn table() -> &'static dax_device::Table<Self> {
        &DAX_OPS
    }

    /// 1:1 and without sleeping: the pages at `pgoff` are those of the range. While there are bad
    /// blocks, no more pages are returned than were asked for, since only those were looked at.
    fn direct_access(&self, pgoff: u64, nr_pages: usize, mode: AccessMode) -> Result<Extent> {
        if self.bad_blocks.is_empty() {
            return self.extent(pgoff, usize::MAX);
        }
        // The list counts with 31 bits.
        let extent = self.extent(pgoff, nr_pages.min(MOST_CHECKED))?;
        let sectors = sectors_of(pgoff, extent.nr_pages());
        match self.bad_blocks.check(sectors.start, sectors.len) {
            None => Ok(extent),
            Some((first_bad, _)) if mode == AccessMode::RecoveryWrite => self.extent(
                pgoff,
                recovery_stride(sectors.start, extent.nr_pages(), first_bad),
            ),
            Some(_) => Err(errno::hwpoison()),
        }
    }

    fn zero_page_range(&self, pgoff: u64, nr_pages: usize) -> Result {
        if self.extent(pgoff, nr_pages)?.nr_pages() != nr_pages {
            return Err(ERANGE);
        }
        self.zero_sectors(sectors_of(pgoff, nr_pages))?
            .claim_nothing();
        Ok(())
    }

    /// Only whole pages can be recovered, and only those that were written in full are good again.
    /// As in C, the list is cleared after the write, and competing recovery writes are kept apart
    /// by the inode lock that dax_iomap_rw() runs under.
    fn recovery_write(&self, offset: u64, len: usize, iter: &mut IovIterSource<'_>) -> usize {
        if self.pmem(offset, len).is_err() {
            return 0;
        }
        let first = offset >> PAGE_SHIFT;
        let end = (offset + len as u64).div_ceil(PAGE_SIZE as u64);
        let sectors = sectors_of(first, (end - first) as usize);
        if self.bad_blocks.check(sectors.start, sectors.len).is_none() {
            return self.copy_from_iter(offset, len, iter).unwrap_or(0);
        }
        if offset % PAGE_SIZE as u64 != 0 || len % PAGE_SIZE != 0 || self.recover(sectors).is_err()
        {
            return 0;
        }
        let written = self.copy_from_iter(offset, len, iter).unwrap_or(0);
        let good = Sectors {
            start: sectors.start,
            len: (written / PAGE_SIZE * PAGE_SIZE) as u64 >> SECTOR_SHIFT,
        };
        self.recovered(good, WrittenBack::nothing()).claim_nothing();
        written
    }
}
