// SPDX-License-Identifier: GPL-2.0

//! Memory with `struct page`s that is not the kernel's own: `ZONE_DEVICE`.
//!
//! C header: [`include/linux/memremap.h`](srctree/include/linux/memremap.h)
//!
//! A [`Pagemap`] owns a reserved range, its pages, its mapping in the kernel's linear map, and data
//! of the driver's. All access to the range goes through its methods, which check bounds. Others
//! (user mappings, other CPUs) may access the same memory at any time, so no reference to its
//! contents is ever made.

use super::{
    bindings,
    bio::Segment,
    pmem::Pmem,
    resource::MemRegion, //
};
use crate::arch::WrittenBack;
use core::{
    cell::Cell,
    marker::PhantomData,
    ops::Deref,
    ptr::{null_mut, NonNull},
    sync::atomic::{AtomicUsize, Ordering}, //
};
use kernel::{
    container_of,
    error::{from_err_ptr, from_result},
    ffi::{c_int, c_ulong, c_void},
    iov::IovIterSource,
    page::{PAGE_SHIFT, PAGE_SIZE},
    prelude::*,
    sync::Arc,
    types::Opaque, //
};

/// What a driver does for its pages.
pub(crate) trait Operations: Sized + Send + Sync + 'static {
    /// The driver's table, a `static`.
    fn table() -> &'static Table<Self>;

    /// `len` bytes at `offset` of the range are corrupted. `EOPNOTSUPP` makes the core kill those
    /// who map the pages itself. `flags` are `MF_*`.
    ///
    /// Context: may sleep; a reference to the pagemap is held.
    fn memory_failure(map: &Pagemap<Self>, offset: u64, len: u64, flags: i32) -> Result;
}

/// Whether the `flags` of a memory failure are those of madvise(MADV_HWPOISON): a process tries out
/// what poison does to those who have a page mapped. Memory that is bad, or that an administrator
/// takes out of use, has others.
pub(crate) fn is_simulated_by_process(flags: i32) -> bool {
    let both = bindings::mf_flags_MF_SW_SIMULATED | bindings::mf_flags_MF_COUNT_INCREASED;
    flags as u32 & both == both
}

/// `struct dev_pagemap_ops` of a driver.
///
/// # Invariants
///
/// Every `dev_pagemap` whose `ops` is such a table is the `map.raw` of an initialised
/// [`Pagemap<T>`].
#[repr(transparent)]
pub(crate) struct Table<T> {
    raw: bindings::dev_pagemap_ops,
    _data: PhantomData<fn(&T)>,
}

// SAFETY: The table is never written to.
unsafe impl<T> Sync for Table<T> {}

impl<T: Operations> Table<T> {
    /// The table, to be put in a `static`.
    pub(crate) const fn new() -> Self {
        let mut raw: bindings::dev_pagemap_ops = pin_init::zeroed();
        raw.memory_failure = Some(Self::memory_failure);
        // INVARIANT: `Pagemap::new` is the only user.
        Self {
            raw,
            _data: PhantomData,
        }
    }

    /// # Safety
    ///
    /// Called by memory_failure() for a live pagemap with this table, with a reference held.
    unsafe extern "C" fn memory_failure(
        pgmap: *mut bindings::dev_pagemap,
        pfn: c_ulong,
        nr_pages: c_ulong,
        flags: c_int,
    ) -> c_int {
        // SAFETY: By the type's invariant `pgmap` is in a `Pagemap<T>`, and the caller's reference
        // keeps memunmap_pages(), with which its drop begins, waiting.
        let map = unsafe { &*Pagemap::<T>::container(pgmap) };
        from_result(|| {
            let offset = ((pfn as u64) << PAGE_SHIFT) - map.phys();
            T::memory_failure(map, offset, (nr_pages as u64) << PAGE_SHIFT, flags)?;
            Ok(0)
        })
    }
}

/// A range of device memory with its pages (`MEMORY_DEVICE_FS_DAX`) and the data `T` that the
/// driver keeps with it, which it dereferences to.
///
/// # Invariants
///
/// `map.raw.ops` is null or `T::table()`; once it is the latter, all fields are initialised.
#[pin_data]
pub(crate) struct Pagemap<T> {
    // Dropped first: nobody comes in through the pages once the data goes.
    #[pin]
    map: Map,
    #[pin]
    data: T,
}

/// # Invariants
///
/// `raw` has been passed to memremap_pages() and not yet to memunmap_pages(); `kaddr` is valid for
/// access to all of `region`.
#[pin_data(PinnedDrop)]
struct Map {
    #[pin]
    raw: Opaque<bindings::dev_pagemap>,
    kaddr: NonNull<u8>,
    // Released once the pages are gone.
    region: MemRegion,
}

// SAFETY: The pages and their mapping are not tied to a thread; all access is through raw pointers.
unsafe impl Send for Map {}
// SAFETY: See `Send`.
unsafe impl Sync for Map {}

/// Page frame numbers of the live pagemaps, so that pages can be told apart from others without a
/// look at the memory map. A pagemap that finds no room is left out.
static RANGES: [PfnRange; 16] = [const { PfnRange::empty() }; 16];

/// From `first` up to `end`, empty if `end` is 0. Used ranges come before unused ones: they are taken
/// at load and given up at unload.
struct PfnRange {
    first: AtomicUsize,
    end: AtomicUsize,
}

impl PfnRange {
    const fn empty() -> Self {
        Self {
            first: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
        }
    }
}

/// Whether all `nr` pages from `pfn` on are of one live [`Pagemap`]. False may also mean that it is
/// not known.
#[inline]
pub(super) fn has_pfns(pfn: usize, nr: usize) -> bool {
    for range in &RANGES {
        let end = range.end.load(Ordering::Acquire);
        if end == 0 {
            break;
        }
        // `nr` first, as the sum may overflow.
        if pfn < end && nr <= end - pfn && pfn >= range.first.load(Ordering::Relaxed) {
            return true;
        }
    }
    false
}

impl Map {
    /// Makes the range known to [`has_pfns`].
    fn publish(&self) {
        let first = (self.region.start() >> PAGE_SHIFT) as usize;
        let end = first + (self.region.len() >> PAGE_SHIFT) as usize;
        // Nobody else loads or unloads at the same time.
        if let Some(range) = RANGES.iter().find(|r| r.end.load(Ordering::Relaxed) == 0) {
            range.first.store(first, Ordering::Relaxed);
            range.end.store(end, Ordering::Release);
        }
    }

    fn withdraw(&self) {
        let first = (self.region.start() >> PAGE_SHIFT) as usize;
        for range in &RANGES {
            if range.first.load(Ordering::Relaxed) == first {
                range.end.store(0, Ordering::Release);
            }
        }
    }
}

#[pinned_drop]
impl PinnedDrop for Map {
    fn drop(self: Pin<&mut Self>) {
        self.withdraw();
        // SAFETY: By the type's invariant.
        unsafe { bindings::memunmap_pages(self.raw.get()) };
    }
}

/// A run of pages as `->direct_access()` returns it.
///
/// # Invariants
///
/// `kaddr` and `pfn` are those of the first of `nr_pages` pages of one [`Pagemap`].
pub(crate) struct Extent {
    /// How many pages.
    pub(super) nr_pages: usize,
    /// Where the kernel has the first one mapped.
    pub(super) kaddr: *mut c_void,
    /// Page frame number of the first one.
    pub(super) pfn: usize,
}

impl Extent {
    /// How many pages.
    pub(crate) fn nr_pages(&self) -> usize {
        self.nr_pages
    }
}

impl<T: Operations> Pagemap<T> {
    /// Makes pages for `region` on a NUMA node, maps it, and puts `data` with it.
    ///
    /// Start and length of the region must be multiples of 2 MiB, and none of it System RAM.
    pub(crate) fn new(
        region: MemRegion,
        node: i32,
        data: impl PinInit<T, Error>,
    ) -> Result<Arc<Self>> {
        let (start, len) = (region.start(), region.len());
        let kaddr = Cell::new(null_mut());
        let map = try_pin_init!(Map {
            raw <- Opaque::try_ffi_init(|slot: *mut bindings::dev_pagemap| {
                // SAFETY: `slot` is valid for writing one `dev_pagemap`, for which all zeroes is a
                // valid value; it stays pinned until memunmap_pages().
                let addr = unsafe {
                    slot.write_bytes(0, 1);
                    (*slot).type_ = bindings::memory_type_MEMORY_DEVICE_FS_DAX;
                    // Tells these pages from those of other owners; nobody looks behind it.
                    (*slot).owner = slot.cast();
                    (*slot).nr_range = 1;
                    *(*slot).__bindgen_anon_1.range.as_mut() = bindings::range {
                        start,
                        end: start + len - 1,
                    };
                    bindings::memremap_pages(slot, node)
                };
                kaddr.set(from_err_ptr(addr)?.cast::<u8>());
                Ok::<(), Error>(())
            }),
            // INVARIANT: memremap_pages() returned where all of the region is mapped.
            kaddr: NonNull::new(kaddr.get()).ok_or(ENXIO)?,
            region,
        });
        let this = Arc::pin_init(
            try_pin_init!(Self {
                map <- map,
                data <- data,
            }),
            GFP_KERNEL,
        )?;
        // INVARIANT: All is initialised. Until here, a memory failure was handled by the core.
        // SAFETY: `raw` is valid; whoever reads `ops` sees null or the table, and with the table
        // all that was written before.
        unsafe {
            let ops = &raw mut (*this.map.raw.get()).ops;
            let table: *const bindings::dev_pagemap_ops = (&raw const T::table().raw).cast();
            bindings::smp_wmb();
            ops.write_volatile(table);
        }
        this.map.publish();
        Ok(this)
    }

    /// The `Pagemap` around a `dev_pagemap`.
    ///
    /// # Safety
    ///
    /// `pgmap` must be the `map.raw` of a `Pagemap<T>`.
    unsafe fn container(pgmap: *const bindings::dev_pagemap) -> *const Self {
        let raw = Opaque::cast_from(pgmap).cast_mut();
        // SAFETY: By the function's requirement.
        unsafe { container_of!(raw, Self, map.raw) }
    }
}

impl<T> Pagemap<T> {
    /// First physical address.
    #[inline]
    pub(crate) fn phys(&self) -> u64 {
        self.map.region.start()
    }

    /// Length in bytes, a multiple of 2 MiB.
    #[inline]
    pub(crate) fn len(&self) -> u64 {
        self.map.region.len()
    }

    /// What all the `struct page`s of the range take in memory, in bytes.
    pub(crate) fn memmap_len(&self) -> u64 {
        // SAFETY: Returns a constant.
        let page = unsafe { bindings::rpmem_sizeof_page() };
        (self.len() >> PAGE_SHIFT) * page as u64
    }

    /// Where `len` bytes at `offset` are mapped; `EINVAL` if they are not all in the range.
    #[inline]
    fn at(&self, offset: u64, len: usize) -> Result<*mut u8> {
        let end = offset.checked_add(len as u64).ok_or(EINVAL)?;
        if end > self.len() {
            return Err(EINVAL);
        }
        // SAFETY: `offset` is inside the mapping or at its end.
        Ok(unsafe { self.map.kaddr.as_ptr().add(offset as usize) })
    }

    /// Copies a segment to `offset`, around the CPU's caches.
    #[inline]
    pub(crate) fn write(&self, offset: u64, src: &Segment<'_>) -> Result<WrittenBack> {
        let dst = self.at(offset, src.len())?;
        // SAFETY: Both are valid for `len` bytes. They may overlap only if the bio's memory is a
        // mapping of this very range, in which case any contents are as good as any other.
        unsafe { bindings::__memcpy_flushcache(dst.cast(), src.as_ptr().cast(), src.len()) };
        Ok(WrittenBack::nothing())
    }

    /// Copies from `offset` to a segment. A machine check on the way is `EIO`; the beginning of the
    /// segment may have been written to then.
    #[inline]
    pub(crate) fn read(&self, offset: u64, dst: &Segment<'_>) -> Result {
        let src = self.at(offset, dst.len())?;
        // A segment's length is an u32 in C.
        let len = dst.len() as u32;
        // SAFETY: Both are valid for `len` bytes.
        match unsafe { bindings::copy_mc_to_kernel(dst.as_ptr().cast(), src.cast(), len) } {
            0 => Ok(()),
            _ => Err(EIO),
        }
    }

    /// Whether `mem` is of the range.
    #[inline]
    pub(crate) fn contains(&self, mem: &Pmem<'_>) -> bool {
        let first = self.map.kaddr.as_ptr().addr();
        (first..first + self.len() as usize).contains(&mem.addr())
    }

    /// Bytes of the range; `EINVAL` if they are not all in it.
    #[inline]
    pub(crate) fn pmem(&self, offset: u64, len: usize) -> Result<Pmem<'_>> {
        let addr = self.at(offset, len)? as usize;
        // SAFETY: The range is mapped writable as long as `self`, and there are no references to
        // its contents.
        Ok(unsafe { Pmem::new(addr, len) })
    }

    /// Copies up to `len` bytes from an iterator to `offset`, around the CPU's caches, and returns
    /// how many.
    pub(crate) fn copy_from_iter(
        &self,
        offset: u64,
        len: usize,
        iter: &mut IovIterSource<'_>,
    ) -> Result<usize> {
        let dst = self.at(offset, len)?;
        // SAFETY: `dst` is valid for writing `len` bytes, and `iter` is a valid source.
        Ok(unsafe { bindings::_copy_from_iter_flushcache(dst.cast(), len, iter.as_raw()) })
    }

    /// Whether memory_failure() has marked the page at the page offset `pgoff`.
    pub(crate) fn is_page_poisoned(&self, pgoff: u64) -> Result<bool> {
        let pfn = self.pfn(pgoff)?;
        // SAFETY: The pfn is one of ours, so it has a page.
        Ok(unsafe { bindings::rpmem_page_poisoned(pfn) })
    }

    /// Marks the page at the page offset `pgoff` as one that memory_failure() has been called for, as
    /// the core does only for the first page of a folio. `EINVAL` behind the end.
    pub(crate) fn set_page_poisoned(&self, pgoff: u64) -> Result {
        let pfn = self.pfn(pgoff)?;
        // SAFETY: The pfn is one of ours, so it has a page.
        unsafe { bindings::rpmem_set_page_poisoned(pfn) };
        Ok(())
    }

    /// Takes the mark off the page at the page offset `pgoff`, maps it in the linear map again
    /// (clear_mce_nospec()), and drops its lines from the CPU's caches. All of the page must be
    /// written next.
    pub(crate) fn clear_page_poison(&self, pgoff: u64) -> Result {
        let pfn = self.pfn(pgoff)?;
        let addr = self.at(pgoff << PAGE_SHIFT, PAGE_SIZE)?;
        // SAFETY: The pfn is one of ours, so it has a page, and `addr` is where it is mapped.
        unsafe {
            bindings::rpmem_clear_page_poison(pfn);
            bindings::arch_invalidate_pmem(addr.cast(), PAGE_SIZE);
        }
        Ok(())
    }

    fn pfn(&self, pgoff: u64) -> Result<usize> {
        if pgoff >= self.len() >> PAGE_SHIFT {
            return Err(EINVAL);
        }
        Ok(((self.phys() >> PAGE_SHIFT) + pgoff) as usize)
    }

    /// The pages from the page offset `pgoff`, `max` at most. `ERANGE` past the end.
    #[inline]
    pub(crate) fn extent(&self, pgoff: u64, max: usize) -> Result<Extent> {
        let pages = self.len() >> PAGE_SHIFT;
        if pgoff >= pages {
            return Err(ERANGE);
        }
        // INVARIANT: From `pgoff` on there are `pages - pgoff` pages.
        Ok(Extent {
            nr_pages: max.min((pages - pgoff) as usize),
            kaddr: self.at(pgoff << PAGE_SHIFT, 0)?.cast(),
            pfn: self.pfn(pgoff)?,
        })
    }
}

impl<T> Deref for Pagemap<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.data
    }
}
