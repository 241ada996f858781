// SPDX-License-Identifier: GPL-2.0

//! Disks of bio-based drivers.
//!
//! C headers: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h)
//!
//! A driver gives its per-disk data type the trait [`Operations`], one `static` [`Table`], makes a
//! [`GenDisk`] and adds it. The table's address tells the driver's disks from all others, which is
//! how a superblock finds its way back to the data ([`super::super_block`]).

use super::{
    badblocks::BadBlocks,
    bindings,
    bio::Bio, //
};
use core::{
    fmt::Write,
    marker::PhantomData,
    ptr::NonNull, //
};
use kernel::{
    error::{from_err_ptr, to_result},
    prelude::*,
    str::NullTerminatedFormatter,
    sync::Arc, //
};

/// Features of a queue: C's `BLK_FEAT_*`, whose casts bindgen cannot read.
pub(crate) mod feature {
    /// `BLK_FEAT_WRITE_CACHE`: completed writes need a flush to be durable.
    pub(crate) const WRITE_CACHE: u32 = 1 << 0;
    /// `BLK_FEAT_FUA`: REQ_FUA is honoured.
    pub(crate) const FUA: u32 = 1 << 1;
    /// `BLK_FEAT_IO_STAT`: I/O accounting is on.
    pub(crate) const IO_STAT: u32 = 1 << 4;
    /// `BLK_FEAT_SYNCHRONOUS`: a bio is done when `->submit_bio()` returns.
    pub(crate) const SYNCHRONOUS: u32 = 1 << 6;
    /// `BLK_FEAT_NOWAIT`: `->submit_bio()` does not wait, REQ_NOWAIT may be used.
    pub(crate) const NOWAIT: u32 = 1 << 7;
    /// `BLK_FEAT_DAX`: the disk has a dax_device.
    pub(crate) const DAX: u32 = 1 << 8;
}

/// What a bio-based driver does.
pub(crate) trait Operations: Sized + Send + Sync + 'static {
    /// The driver's table, a `static`.
    fn table() -> &'static Table<Self>;

    /// Does what `bio` asks for and ends it.
    ///
    /// Context: process context. May sleep unless the queue has [`feature::NOWAIT`].
    fn submit_bio(&self, bio: Bio);

    /// The disk's bad blocks, for its sysfs attribute `badblocks`.
    fn bad_blocks(&self) -> &BadBlocks;
}

/// `struct block_device_operations` of a driver.
///
/// # Invariants
///
/// Disks whose `fops` is such a table have `*const T` as their private data.
#[repr(transparent)]
pub(crate) struct Table<T> {
    raw: bindings::block_device_operations,
    _data: PhantomData<fn(&T)>,
}

// SAFETY: The table is never written to.
unsafe impl<T> Sync for Table<T> {}

impl<T: Operations> Table<T> {
    /// The table, to be put in a `static`.
    pub(crate) const fn new() -> Self {
        let mut raw: bindings::block_device_operations = pin_init::zeroed();
        raw.submit_bio = Some(Self::submit_bio);
        // An open disk holds this module.
        raw.owner = &raw mut bindings::__this_module;
        // INVARIANT: `Builder::build` is the only user.
        Self {
            raw,
            _data: PhantomData,
        }
    }

    /// # Safety
    ///
    /// Called by the block layer for a disk made by [`Builder::build`] that has been added and not
    /// been deleted.
    unsafe extern "C" fn submit_bio(bio: *mut bindings::bio) {
        // SAFETY: The block layer passes a valid bio whose disk has our table, so its private data
        // is a `T`, which lives until after `del_gendisk()`. `bio` is ours to end from here on.
        let (data, bio) = unsafe {
            (
                &*(*(*(*bio).bi_bdev).bd_disk).private_data.cast::<T>(),
                Bio::from_raw(NonNull::new_unchecked(bio)),
            )
        };
        data.submit_bio(bio);
    }
}

/// The data of the driver `T` behind a disk, if the disk is one of `T`'s.
///
/// # Safety
///
/// `disk` must be a valid disk that is open for as long as `'a`.
#[inline]
pub(super) unsafe fn data_of<'a, T: Operations>(disk: *const bindings::gendisk) -> Option<&'a T> {
    // SAFETY: The disk is valid. If it has our table its private data is a `T`, which lives until
    // the `GenDisk` is dropped. That happens when this module exits, which an open disk prevents.
    unsafe {
        core::ptr::eq((*disk).fops, (&raw const T::table().raw).cast())
            .then(|| &*(*disk).private_data.cast::<T>())
    }
}

/// How to make a disk.
pub(crate) struct Builder {
    /// Bytes; a power of two from 512 to the page size.
    pub(crate) logical_block_size: u32,
    /// Bytes; a power of two, not less than the logical block size.
    pub(crate) physical_block_size: u32,
    /// Or of [`feature`]s.
    pub(crate) features: u32,
    /// NUMA node for the disk's structures.
    pub(crate) node: i32,
    /// In sectors of 512 bytes.
    pub(crate) capacity: u64,
}

impl Builder {
    /// Makes a disk with no limit on the size of a bio. Nobody sees it until [`GenDisk::add`].
    pub(crate) fn build<T: Operations>(
        &self,
        name: kernel::fmt::Arguments<'_>,
        data: Arc<T>,
    ) -> Result<GenDisk<T>> {
        let mut lim: bindings::queue_limits = pin_init::zeroed();
        lim.logical_block_size = self.logical_block_size;
        lim.physical_block_size = self.physical_block_size;
        lim.features = self.features;
        lim.max_hw_sectors = u32::MAX;
        // Whole pages: the next bio begins where one ends. (The block layer's own limit, in bytes, is
        // not one of pages.)
        lim.max_write_zeroes_sectors = (u32::MAX >> 9) & !7;

        // SAFETY: `lim` is valid for the call.
        let disk = from_err_ptr(unsafe { bindings::rpmem_alloc_disk(&mut lim, self.node) })?;
        // INVARIANT: `disk` is new; the table and the private data are set before it is added.
        let disk = GenDisk {
            raw: NonNull::new(disk).ok_or(ENOMEM)?,
            added: false,
            data,
        };
        let raw = disk.raw.as_ptr();
        // SAFETY: The disk is new, nobody else knows it. `data` lives in an `Arc` that is dropped
        // after `del_gendisk()`, and the bad blocks live as long as `data`, where they are pinned.
        unsafe {
            (*raw).fops = (&raw const T::table().raw).cast();
            (*raw).private_data = Arc::as_ptr(&disk.data).cast_mut().cast();
            (*raw).bb = disk.data.bad_blocks().as_raw().cast();
            let mut writer = NullTerminatedFormatter::new(&mut (*raw).disk_name).ok_or(EINVAL)?;
            writer.write_fmt(name)?;
            bindings::set_capacity(raw, self.capacity);
        }
        Ok(disk)
    }
}

/// A disk.
///
/// Dropping it deletes it: open file systems are told, running I/O is waited for.
///
/// # Invariants
///
/// - `raw` is a valid disk whose `fops` is `T`'s table and whose private data is `data`; this value
///   owns one reference to it.
/// - It was added, and not deleted, if `added`.
pub(crate) struct GenDisk<T: Operations> {
    raw: NonNull<bindings::gendisk>,
    added: bool,
    data: Arc<T>,
}

// SAFETY: A disk is not tied to a thread, and `T` is `Send` and `Sync`.
unsafe impl<T: Operations> Send for GenDisk<T> {}
// SAFETY: All methods of `&GenDisk` may be called by several threads at once.
unsafe impl<T: Operations> Sync for GenDisk<T> {}

impl<T: Operations> GenDisk<T> {
    /// For the other abstractions.
    pub(super) fn as_raw(&self) -> *mut bindings::gendisk {
        self.raw.as_ptr()
    }

    /// Adds the disk: scans partitions and tells user space. I/O may arrive before this returns.
    /// `EBUSY` if it has been added before.
    pub(crate) fn add(&mut self) -> Result {
        if self.added {
            return Err(EBUSY);
        }
        // SAFETY: The disk is valid, fully set up and has not been added.
        to_result(unsafe { bindings::rpmem_add_disk(self.raw.as_ptr()) })?;
        // INVARIANT: It is added now.
        self.added = true;
        Ok(())
    }

    /// A handle that wakes those who poll one of the disk's sysfs attributes; `None` before the
    /// disk is added.
    pub(crate) fn attribute(&self, name: &CStr) -> Option<Attribute> {
        if !self.added {
            return None;
        }
        // SAFETY: The disk is valid and in sysfs, `name` a C string.
        let node = unsafe { bindings::rpmem_disk_attribute(self.raw.as_ptr(), name.as_char_ptr()) };
        // INVARIANT: The reference that the call took is the handle's.
        NonNull::new(node).map(Attribute)
    }
}

impl<T: Operations> Drop for GenDisk<T> {
    fn drop(&mut self) {
        if self.added {
            // SAFETY: By the type's invariant the disk was added and not deleted.
            unsafe { bindings::del_gendisk(self.raw.as_ptr()) };
        }
        // SAFETY: The reference is ours, and not used any more.
        unsafe { bindings::put_disk(self.raw.as_ptr()) };
    }
}

/// A sysfs attribute that can be polled.
///
/// # Invariants
///
/// Holds a reference to a valid `kernfs_node` of a file.
pub(crate) struct Attribute(NonNull<bindings::kernfs_node>);

// SAFETY: A kernfs node is not tied to a thread.
unsafe impl Send for Attribute {}
// SAFETY: Notifying takes the locks it needs.
unsafe impl Sync for Attribute {}

impl Attribute {
    /// Wakes those who poll the attribute. Does not sleep.
    pub(crate) fn notify(&self) {
        // SAFETY: By the type's invariant.
        unsafe { bindings::rpmem_sysfs_notify(self.0.as_ptr()) };
    }
}

impl Drop for Attribute {
    fn drop(&mut self) {
        // SAFETY: The reference is ours, and not used any more.
        unsafe { bindings::rpmem_sysfs_put(self.0.as_ptr()) };
    }
}
