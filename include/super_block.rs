// SPDX-License-Identifier: GPL-2.0

//! Superblocks, and the way from one to the driver under it.
//!
//! C header: [`include/linux/fs.h`](srctree/include/linux/fs.h)

use super::{bindings, gendisk};
use kernel::types::Opaque;

/// A `struct super_block`.
///
/// # Invariants
///
/// A reference to it means that the superblock is active: its block device, if any, is open.
#[repr(transparent)]
pub(crate) struct SuperBlock(Opaque<bindings::super_block>);

impl SuperBlock {
    /// # Safety
    ///
    /// `raw` must be an active superblock for as long as `'a`, such as that of an inode in use.
    #[inline]
    pub(crate) unsafe fn from_raw<'a>(raw: *const bindings::super_block) -> &'a Self {
        // SAFETY: By the function's requirement; the layout is the same.
        unsafe { &*raw.cast() }
    }

    /// The data of the driver `T` if the file system is on one of `T`'s disks or a partition of
    /// one. Cheap: three loads and a comparison.
    #[inline]
    pub(crate) fn disk_data<T: gendisk::Operations>(&self) -> Option<&T> {
        // SAFETY: The superblock is active, so its block device is null or open, and its disk
        // valid and open too.
        unsafe {
            let bdev = (*self.0.get()).s_bdev;
            if bdev.is_null() {
                return None;
            }
            gendisk::data_of::<T>((*bdev).bd_disk)
        }
    }
}
