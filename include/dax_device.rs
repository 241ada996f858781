// SPDX-License-Identifier: GPL-2.0

//! Devices whose memory file systems may map: DAX.
//!
//! C header: [`include/linux/dax.h`](srctree/include/linux/dax.h)

use super::{
    bindings,
    dev_pagemap::Extent,
    gendisk::{self, GenDisk}, //
};
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};
use kernel::{
    error::{from_err_ptr, from_result, to_result},
    ffi::{c_int, c_long, c_ulong, c_void},
    iov::IovIterSource,
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        Arc,
        UniqueArc, //
    }, //
};

/// Why `->direct_access()` is called.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum AccessMode {
    /// `DAX_ACCESS`: to map, read or write.
    Access,
    /// `DAX_RECOVERY_WRITE`: to write over bad memory next, by `->recovery_write()`.
    RecoveryWrite,
}

/// What a driver does for file systems on its memory. Offsets are in pages, from the beginning of
/// the whole disk.
pub(crate) trait Operations: Sized + Send + Sync + 'static {
    /// The driver's table, a `static`.
    fn table() -> &'static Table<Self>;

    /// The pages at `pgoff`; `nr_pages` is how many the caller can use, the answer may be more or
    /// less. `EHWPOISON` if they are bad.
    ///
    /// Context: any, must not sleep.
    fn direct_access(&self, pgoff: u64, nr_pages: usize, mode: AccessMode) -> Result<Extent>;

    /// Fills pages with zeroes. May sleep.
    fn zero_page_range(&self, pgoff: u64, nr_pages: usize) -> Result;

    /// Writes over bad memory, `len` bytes at the byte `offset` of the disk, and returns how many
    /// bytes were written. May sleep.
    fn recovery_write(&self, offset: u64, len: usize, iter: &mut IovIterSource<'_>) -> usize;
}

/// `struct dax_operations` of a driver.
///
/// # Invariants
///
/// The private data of every dax_device with such a table is a `*const T`.
#[repr(transparent)]
pub(crate) struct Table<T> {
    raw: bindings::dax_operations,
    _data: PhantomData<fn(&T)>,
}

// SAFETY: The table is never written to.
unsafe impl<T> Sync for Table<T> {}

impl<T: Operations> Table<T> {
    /// The table, to be put in a `static`.
    pub(crate) const fn new() -> Self {
        // INVARIANT: `Registration::new` is the only user.
        Self {
            raw: bindings::dax_operations {
                direct_access: Some(Self::direct_access),
                zero_page_range: Some(Self::zero_page_range),
                recovery_write: Some(Self::recovery_write),
            },
            _data: PhantomData,
        }
    }

    /// The driver's data, or `ENXIO` once the device is being killed.
    ///
    /// # Safety
    ///
    /// Must be called in an operation of a dax_device with this table, and the reference not be
    /// used after that operation.
    unsafe fn data<'a>(dax: *mut bindings::dax_device) -> Result<&'a T> {
        // SAFETY: `dax` is valid. Its private data is null once kill_dax() has begun, and else a
        // `T` that lives until kill_dax() has waited for all operations (they hold dax_read_lock()).
        unsafe { bindings::dax_get_private(dax).cast::<T>().as_ref() }.ok_or(ENXIO)
    }

    /// # Safety
    ///
    /// Called by dax_direct_access(); `kaddr` and `pfn` are null or valid for writing.
    unsafe extern "C" fn direct_access(
        dax: *mut bindings::dax_device,
        pgoff: c_ulong,
        nr_pages: c_long,
        mode: bindings::dax_access_mode,
        kaddr: *mut *mut c_void,
        pfn: *mut c_ulong,
    ) -> c_long {
        let mode = if mode == bindings::dax_access_mode_DAX_RECOVERY_WRITE {
            AccessMode::RecoveryWrite
        } else {
            AccessMode::Access
        };
        from_result(|| {
            // SAFETY: This is an operation of a dax_device with this table.
            let data = unsafe { Self::data(dax) }?;
            let nr_pages = usize::try_from(nr_pages).map_err(|_| EINVAL)?;
            let extent = data.direct_access(pgoff as u64, nr_pages, mode)?;
            // SAFETY: By the function's requirements.
            unsafe {
                if !kaddr.is_null() {
                    *kaddr = extent.kaddr;
                }
                if !pfn.is_null() {
                    *pfn = extent.pfn as c_ulong;
                }
            }
            Ok(extent.nr_pages as c_long)
        })
    }

    /// # Safety
    ///
    /// Called by dax_zero_page_range().
    unsafe extern "C" fn zero_page_range(
        dax: *mut bindings::dax_device,
        pgoff: c_ulong,
        nr_pages: usize,
    ) -> c_int {
        from_result(|| {
            // SAFETY: This is an operation of a dax_device with this table.
            let data = unsafe { Self::data(dax) }?;
            data.zero_page_range(pgoff as u64, nr_pages)?;
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// Called by dax_recovery_write() with a valid source iterator.
    unsafe extern "C" fn recovery_write(
        dax: *mut bindings::dax_device,
        pgoff: c_ulong,
        addr: *mut c_void,
        bytes: usize,
        iter: *mut bindings::iov_iter,
    ) -> usize {
        // SAFETY: This is an operation of a dax_device with this table.
        let Ok(data) = (unsafe { Self::data(dax) }) else {
            return 0;
        };
        // `addr` is where `pgoff` is mapped plus an offset in that page: the page is known, the
        // address is not to be trusted.
        let offset = pgoff as u64 * PAGE_SIZE as u64 + (addr as usize % PAGE_SIZE) as u64;
        // SAFETY: The caller passes a valid iterator to copy from.
        let iter = unsafe { IovIterSource::from_raw(iter) };
        data.recovery_write(offset, bytes, iter)
    }
}

/// A `struct dax_device`.
///
/// # Invariants
///
/// Holds one reference to a valid dax_device.
pub(crate) struct DaxDevice(NonNull<bindings::dax_device>);

// SAFETY: A dax_device is not tied to a thread.
unsafe impl Send for DaxDevice {}
// SAFETY: All methods may be called by several threads at once.
unsafe impl Sync for DaxDevice {}

impl DaxDevice {
    /// The raw device, valid as long as `self`.
    pub(crate) fn as_raw(&self) -> *mut bindings::dax_device {
        self.0.as_ptr()
    }

    /// Whether flushes write CPU cache lines back (`dax/write_cache`). May change at any time.
    #[inline]
    pub(crate) fn write_cache(&self) -> bool {
        // SAFETY: By the type's invariant.
        unsafe { bindings::dax_write_cache_enabled(self.0.as_ptr()) }
    }

    /// Tells the holder (a file system) that `len` bytes at `offset` are corrupted. `EOPNOTSUPP` if
    /// there is no holder that wants to know. May sleep.
    pub(crate) fn notify_failure(&self, offset: u64, len: u64, flags: i32) -> Result {
        // SAFETY: By the type's invariant.
        to_result(unsafe {
            bindings::dax_holder_notify_failure(self.0.as_ptr(), offset, len, flags)
        })
    }
}

impl Drop for DaxDevice {
    fn drop(&mut self) {
        // SAFETY: The reference is ours, and not used any more.
        unsafe { bindings::put_dax(self.0.as_ptr()) };
    }
}

/// The dax_device of a disk, found by file systems on the disk.
///
/// Dropping it takes it from the disk, tells the holder, and waits for running operations. It must
/// be dropped before the disk is, as drivers/nvdimm/pmem.c does it.
///
/// # Invariants
///
/// `device` is alive, its private data is `data`, and it is the host of `disk`, to which this value
/// owns a reference.
pub(crate) struct Registration<T> {
    device: Arc<DaxDevice>,
    disk: NonNull<bindings::gendisk>,
    _data: Arc<T>,
}

// SAFETY: The disk is only used as a key, and to give the reference back.
unsafe impl<T: Send + Sync> Send for Registration<T> {}
// SAFETY: See `Send`.
unsafe impl<T: Send + Sync> Sync for Registration<T> {}

impl<T: Operations> Registration<T> {
    /// Makes the dax_device of a disk that has not been added yet: synchronous (its mappings may
    /// be `MAP_SYNC`), with a write cache, not leaving writes in CPU caches (`nocache`), and
    /// handling machine checks on reads (`nomc`).
    pub(crate) fn new<D: gendisk::Operations>(disk: &GenDisk<D>, data: Arc<T>) -> Result<Self> {
        // Nothing must fail between the making of the device and its owner's.
        let owner = UniqueArc::new_uninit(GFP_KERNEL)?;
        let private = Arc::as_ptr(&data).cast_mut().cast();
        // SAFETY: The table is static. `data` outlives the device's operations: it is dropped after
        // kill_dax().
        let dax = from_err_ptr(unsafe {
            bindings::alloc_dax(private, (&raw const T::table().raw).cast())
        })?;
        // SAFETY: `dax` is new.
        unsafe {
            bindings::set_dax_nocache(dax);
            bindings::set_dax_nomc(dax);
            bindings::set_dax_synchronous(dax);
            bindings::dax_write_cache(dax, true);
        }
        let device = NonNull::new(dax).ok_or(ENOMEM)?;
        // INVARIANT: The reference that alloc_dax() took.
        let device = Arc::from(owner.write(DaxDevice(device)));
        // SAFETY: `dax` and the disk are valid.
        if let Err(e) = to_result(unsafe { bindings::dax_add_host(dax, disk.as_raw()) }) {
            // SAFETY: `dax` is alive; nobody has found it yet.
            unsafe { bindings::kill_dax(dax) };
            return Err(e);
        }
        // SAFETY: The disk is valid. With the reference, no other disk gets its address while it
        // is a key.
        unsafe { bindings::rpmem_get_disk(disk.as_raw()) };
        // INVARIANT: As just done; a disk's pointer is not null.
        Ok(Self {
            device,
            // SAFETY: A valid disk's address is not null.
            disk: unsafe { NonNull::new_unchecked(disk.as_raw()) },
            _data: data,
        })
    }
}

impl<T> Registration<T> {
    /// The device.
    pub(crate) fn device(&self) -> Arc<DaxDevice> {
        self.device.clone()
    }
}

impl<T> Drop for Registration<T> {
    fn drop(&mut self) {
        // SAFETY: By the type's invariant. `put_dax()` follows when the last handle goes.
        unsafe {
            bindings::dax_remove_host(self.disk.as_ptr());
            bindings::kill_dax(self.device.as_raw());
            bindings::put_disk(self.disk.as_ptr());
        }
    }
}
