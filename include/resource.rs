// SPDX-License-Identifier: GPL-2.0

//! The map of physical memory: what is where, and reserving a range of it.
//!
//! C header: [`include/linux/ioport.h`](srctree/include/linux/ioport.h)

use super::bindings;
use kernel::{
    ffi::c_void,
    prelude::*,
    str::CString, //
};

/// What a range of physical addresses is, as /proc/iomem has it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// "System RAM", whole or in part: the kernel's own memory.
    SystemRam,
    /// Memory that firmware or the command line has set aside: "Persistent Memory (legacy)" or
    /// "Reserved".
    SetAside,
    /// "Persistent Memory" that ACPI's NFIT describes, whole or in part.
    Described,
    /// Anything else, nothing, or more than one of these.
    Other,
}

/// What `len` bytes at `start` are.
pub(crate) fn kind(start: u64, len: u64) -> Kind {
    let intersects = |flags: usize, desc: u32| {
        // SAFETY: Only looks at the resource tree, under its lock.
        unsafe { bindings::region_intersects(start, len as usize, flags, u64::from(desc) as usize) }
    };
    // IORESOURCE_SYSTEM_RAM is MEM | SYSRAM.
    let ram = (bindings::IORESOURCE_MEM | bindings::IORESOURCE_SYSRAM) as usize;
    if intersects(ram, bindings::IORES_DESC_NONE) != bindings::REGION_DISJOINT as i32 {
        return Kind::SystemRam;
    }
    let described = intersects(
        bindings::IORESOURCE_MEM as usize,
        bindings::IORES_DESC_PERSISTENT_MEMORY,
    );
    if described != bindings::REGION_DISJOINT as i32 {
        return Kind::Described;
    }
    let set_aside = [
        bindings::IORES_DESC_PERSISTENT_MEMORY_LEGACY,
        bindings::IORES_DESC_RESERVED,
    ];
    let mut whole = false;
    for desc in set_aside {
        for_each(desc, start, start + (len - 1), |_, part| {
            whole |= part == len
        });
    }
    if whole {
        Kind::SetAside
    } else {
        Kind::Other
    }
}

/// Calls `f` with the start and the length of every range that the firmware's memory map has as
/// type 12, "Persistent Memory (legacy)", in ascending order.
pub(crate) fn for_each_legacy_pmem(f: impl FnMut(u64, u64)) {
    for_each(
        bindings::IORES_DESC_PERSISTENT_MEMORY_LEGACY,
        0,
        u64::MAX,
        f,
    );
}

/// Calls `f` with the start and the length of what each resource of this kind has of the range.
fn for_each<F: FnMut(u64, u64)>(desc: u32, first: u64, last: u64, mut f: F) {
    extern "C" fn each<F: FnMut(u64, u64)>(res: *mut bindings::resource, arg: *mut c_void) -> i32 {
        // SAFETY: `arg` is the `f` below, which nobody else uses while the walk lasts.
        let f = unsafe { &mut *arg.cast::<F>() };
        // SAFETY: The walk passes a valid resource of its own.
        let (start, end) = unsafe { ((*res).start, (*res).end) };
        f(start, end - start + 1);
        0
    }
    // SAFETY: `each` is called with valid resources and `f`, only during this call. It is called
    // without the resource lock held.
    unsafe {
        bindings::walk_iomem_res_desc(
            desc as usize,
            bindings::IORESOURCE_MEM as usize,
            first,
            last,
            (&raw mut f).cast(),
            Some(each::<F>),
        )
    };
}

/// The `N` bytes at `addr`, which must be memory and not System RAM. `EIO` if they are bad, `ENOMEM` if
/// they cannot be mapped. May sleep.
pub(crate) fn peek<const N: usize>(addr: u64) -> Result<[u8; N]> {
    // SAFETY: Checks what it is asked for.
    let mem = unsafe { bindings::memremap(addr, N, bindings::MEMREMAP_WB as usize) };
    if mem.is_null() {
        return Err(ENOMEM);
    }
    let mut bytes = [0; N];
    // SAFETY: Both have `N` bytes; machine checks are handled by the function.
    let left = unsafe { bindings::copy_mc_to_kernel(bytes.as_mut_ptr().cast(), mem, N as u32) };
    // SAFETY: Mapped above.
    unsafe { bindings::memunmap(mem) };
    if left == 0 {
        Ok(bytes)
    } else {
        Err(EIO)
    }
}

/// The online NUMA node nearest to the memory at `start`.
pub(crate) fn node_of(start: u64) -> i32 {
    // SAFETY: Only looks at tables.
    unsafe { bindings::rpmem_phys_to_node(start) }
}

/// A reserved range of physical addresses.
///
/// # Invariants
///
/// `start` and `len` are those of a busy resource that `request_mem_region()` made, and its name
/// is `_name`.
pub(crate) struct MemRegion {
    start: u64,
    len: u64,
    _name: CString,
}

impl MemRegion {
    /// Reserves a range under a name for /proc/iomem. `EBUSY` if any of it is taken.
    pub(crate) fn request(start: u64, len: u64, name: CString) -> Result<Self> {
        // SAFETY: `name` lives as long as the resource, by the order of drop.
        if !unsafe { bindings::rpmem_request_mem_region(start, len, name.as_char_ptr()) } {
            return Err(EBUSY);
        }
        // INVARIANT: The request succeeded.
        Ok(Self {
            start,
            len,
            _name: name,
        })
    }

    /// First physical address.
    pub(crate) fn start(&self) -> u64 {
        self.start
    }

    /// Length in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }
}

impl Drop for MemRegion {
    fn drop(&mut self) {
        // SAFETY: By the type's invariant this range is ours.
        unsafe { bindings::rpmem_release_mem_region(self.start, self.len) };
    }
}
