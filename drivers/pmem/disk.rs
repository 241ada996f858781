// SPDX-License-Identifier: GPL-2.0

//! Block I/O on a pmem device: /dev/rpmemN.
//!
//! Follows pmem_submit_bio() in drivers/nvdimm/pmem.c. What differs:
//!
//! - Memory that a bio has in one piece is copied in one piece, not page by page.
//! - `REQ_OP_WRITE_ZEROES` is done by storing zeroes; C leaves it to the block layer, which sends
//!   bios full of zero pages that are read and copied.
//! - A bad block is written first and taken off the list then, so that a reader gets an error or
//!   the new data, never the old.
//! - A write of a part of a page that memory_failure() took out of the linear map is an error; C
//!   writes to it and faults.

use super::{
    bad_sectors::{
        Sectors,
        SECTORS_PER_PAGE, //
    },
    device::Device, //
};
use crate::{
    arch::{
        self,
        Durable,
        WrittenBack, //
    },
    include::{
        badblocks::BadBlocks,
        bio::{Bio, Op, Status},
        gendisk::{self, feature},
        task::cond_resched, //
    },
};
use kernel::{
    block::{SECTOR_SHIFT, SECTOR_SIZE},
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        atomic::Relaxed,
        Arc, //
    },
};

/// Sectors zeroed before others may run: 1 MiB, some 100 µs.
const ZERO_BATCH: u64 = (1 << 20) >> SECTOR_SHIFT;

static DISK_OPS: gendisk::Table<Device> = gendisk::Table::new();

/// Makes the disk of a device; it is not added yet.
pub(super) fn new(device: Arc<Device>, node: i32) -> Result<gendisk::GenDisk<Device>> {
    gendisk::Builder {
        logical_block_size: SECTOR_SIZE,
        physical_block_size: PAGE_SIZE as u32,
        features: feature::WRITE_CACHE
            | feature::FUA
            | feature::SYNCHRONOUS
            | feature::NOWAIT
            | feature::DAX,
        node,
        capacity: device.len() >> SECTOR_SHIFT,
    }
    .build(fmt!("rpmem{}", device.index()), device)
}

impl gendisk::Operations for Device {
    fn table() -> &'static gendisk::Table<Self> {
        &DISK_OPS
    }

    fn bad_blocks(&self) -> &BadBlocks {
        &self.bad_blocks
    }

    /// All is done when this returns. Completed writes wait in write-combining buffers for a fence:
    /// that is the write cache the disk claims to have, and PREFLUSH and FUA are fences. A fence
    /// drains this CPU's buffers only; those of a CPU that completed a bio before are drained by
    /// then, as completing a bio and handing that on to another CPU takes locked instructions.
    fn submit_bio(&self, bio: Bio) {
        if bio.preflush() {
            self.fence(WrittenBack::nothing());
        }
        let mut done = Ok(WrittenBack::nothing());
        if bio.len() != 0 {
            let accounting = bio.start_accounting();
            done = match bio.op() {
                Op::Read => self.do_read(&bio),
                Op::Write => self.do_write(&bio),
                Op::WriteZeroes => self.do_write_zeroes(&bio),
                Op::Other => Err(Status::NotSupported),
            };
            bio.end_accounting(accounting);
        }
        let fua = bio.fua();
        bio.end(match done {
            Ok(written) => {
                if fua {
                    self.fence(written);
                } else {
                    written.claim_nothing();
                }
                Status::Ok
            }
            Err(status) => status,
        });
    }
}

impl Device {
    /// Makes durable what this CPU wrote around its caches.
    fn fence(&self, written: WrittenBack) -> Durable {
        self.counters.fences.add(1, Relaxed);
        written.fence()
    }

    fn do_read(&self, bio: &Bio) -> Result<WrittenBack, Status> {
        let bad = self.bad_blocks.check(bio.sector(), bio.sectors()).is_some();
        let mut offset = bio.sector() << SECTOR_SHIFT;
        let done = if bad {
            Err(EIO)
        } else {
            bio.segments().try_for_each(|segment| {
                self.read(offset, &segment)?;
                offset += segment.len() as u64;
                Ok(())
            })
        };
        match done {
            Ok(()) => Ok(WrittenBack::nothing()),
            Err(_) => {
                self.counters.read_errors.add(1, Relaxed);
                Err(Status::IoError)
            }
        }
    }

    fn do_write(&self, bio: &Bio) -> Result<WrittenBack, Status> {
        let sectors = Sectors {
            start: bio.sector(),
            len: bio.sectors(),
        };
        self.write_over(sectors, || {
            let mut offset = sectors.start << SECTOR_SHIFT;
            let mut written = WrittenBack::nothing();
            for segment in bio.segments() {
                written = written.and(self.write(offset, &segment)?);
                offset += segment.len() as u64;
            }
            Ok(written)
        })
        .map_err(|_| Status::IoError)
    }

    fn do_write_zeroes(&self, bio: &Bio) -> Result<WrittenBack, Status> {
        let (mut start, mut left) = (bio.sector(), bio.sectors());
        let mut written = WrittenBack::nothing();
        while left != 0 {
            // No page that is zeroed as a whole is cut: its parts could not be made good.
            let len = left.min(ZERO_BATCH - start % SECTORS_PER_PAGE);
            written = self
                .zero_sectors(Sectors { start, len })
                .map_err(|_| Status::IoError)?
                .and(written);
            start += len;
            left -= len;
            if left != 0 {
                cond_resched();
            }
        }
        Ok(written)
    }

    /// Fills sectors with zeroes, also bad ones.
    pub(super) fn zero_sectors(&self, sectors: Sectors) -> Result<WrittenBack> {
        self.write_over(sectors, || {
            let len = (sectors.len << SECTOR_SHIFT) as usize;
            // Sectors are whole cache lines: nothing goes through the cache.
            Ok(arch::zero(
                &self.pmem(sectors.start << SECTOR_SHIFT, len)?,
                true,
            ))
        })
    }

    /// Runs `write`, which writes all of `sectors`, and takes care of bad ones among them.
    #[inline]
    fn write_over(
        &self,
        sectors: Sectors,
        write: impl FnOnce() -> Result<WrittenBack>,
    ) -> Result<WrittenBack> {
        if self.bad_blocks.check(sectors.start, sectors.len).is_none() {
            return write();
        }
        self.recover(sectors)?;
        let written = write()?;
        Ok(self.recovered(sectors, written))
    }

    /// Makes bad sectors writable. There is no firmware to ask for a legacy range, so that the
    /// write itself is the cure, as C has it (nvdimm_clear_poison() without ndctl); what is to be
    /// done is to map pages again that memory_failure() took out of the linear map. That works for
    /// whole pages only: the rest of a page would still be bad. `EIO` if it cannot be done.
    #[cold]
    pub(super) fn recover(&self, sectors: Sectors) -> Result {
        for pgoff in sectors.partial_pages() {
            if self.is_page_poisoned(pgoff)? {
                return Err(EIO);
            }
        }
        for pgoff in sectors.whole_pages() {
            if self.is_page_poisoned(pgoff)? {
                self.clear_page_poison(pgoff)?;
                self.counters.pages_recovered.add(1, Relaxed);
            }
        }
        Ok(())
    }

    /// To be called when sectors that were bad have been written. A reader on another CPU that
    /// finds them good must find the new data too, hence the fence.
    #[cold]
    pub(super) fn recovered(&self, sectors: Sectors, written: WrittenBack) -> WrittenBack {
        let _: Durable = written.fence();
        self.clear_bad_blocks(sectors);
        WrittenBack::nothing()
    }
}
