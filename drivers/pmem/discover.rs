// SPDX-License-Identifier: GPL-2.0

//! Which ranges of memory are ours to use.

use super::range::{self, PhysRange};
use crate::include::{
    module_param,
    resource::{self, Kind, MemRegion}, //
};
use kernel::{
    prelude::*,
    str::CString, //
};

/// Finds and reserves ranges: the one that `phys_addr=` and `size=` name, or all that the
/// firmware's memory map has as legacy persistent memory (`memmap=nn!ss`).
/// Every range that cannot be used is reported with the reason, and why there is none at all. `EINVAL`,
/// `EBUSY`, `ENODEV`, `ENOMEM`.
pub(super) fn reserve() -> Result<KVec<MemRegion>> {
    let explicit = range::explicit(
        module_param::phys_addr().map(CStr::to_bytes),
        module_param::size().map(CStr::to_bytes),
    )
    .map_err(|bad| {
        pr_err!("{}\n", bad.message());
        EINVAL
    })?;

    let mut candidates = KVec::new();
    if let Some(range) = explicit {
        check_explicit(range)?;
        candidates.push(range, GFP_KERNEL)?;
    } else {
        let mut pushed = Ok(());
        resource::for_each_legacy_pmem(|start, len| {
            if pushed.is_ok() {
                pushed = trimmed(PhysRange { start, len })
                    .map_or(Ok(()), |range| candidates.push(range, GFP_KERNEL));
            }
        });
        pushed?;
    }

    let mut regions = KVec::new();
    let mut busy = false;
    for range in &candidates {
        let name = CString::try_from_fmt(fmt!("rpmem{}", regions.len()))?;
        let Ok(region) = MemRegion::request(range.start, range.len, name) else {
            busy = true;
            pr_warn!(
                "[mem {:#x}-{:#x}] is in use, most likely by nd_pmem: boot with modprobe.blacklist=nd_e820, or write its namespace to /sys/bus/nd/drivers/nd_pmem/unbind\n",
                range.start,
                range.last(),
            );
            continue;
        };
        if let Some(mode) = format(*range)? {
            busy = true;
            pr_warn!(
                "[mem {:#x}-{:#x}] left to nd_pmem: it has a namespace of mode {}, whose data would be lost; have ndctl make a raw one of it\n",
                range.start,
                range.last(),
                mode,
            );
            continue;
        }
        regions.push(region, GFP_KERNEL)?;
    }
    if !regions.is_empty() {
        return Ok(regions);
    }
    if busy {
        pr_err!("all persistent memory is in use by others, or theirs by its format\n");
        Err(EBUSY)
    } else {
        pr_err!("no usable persistent memory: boot with memmap=nn!ss, or give phys_addr= and size= of memory reserved with memmap=nn$ss\n");
        Err(ENODEV)
    }
}

/// The mode of the namespace that C's nd_pmem_probe() would find in a range that is reserved for us.
/// It looks behind the start of what the firmware has, which may lie before an aligned start. Bad
/// memory there is for whoever reads the disk to meet; `ENOMEM` if it cannot be looked at.
fn format(range: PhysRange) -> Result<Option<&'static str>> {
    let mut found = range.start;
    resource::for_each_legacy_pmem(|start, len| {
        if (start..=start + (len - 1)).contains(&range.start) {
            found = start;
        }
    });
    for start in [found, range.start] {
        let signature = match resource::peek::<16>(start + 4096) {
            Err(e) if e == EIO => continue,
            signature => signature?,
        };
        let mode = match &signature {
            b"NVDIMM_PFN_INFO\0" => "fsdax",
            b"NVDIMM_DAX_INFO\0" => "devdax",
            b"BTT_ARENA_INFO\0\0" => "sector",
            _ => continue,
        };
        return Ok(Some(mode));
    }
    Ok(None)
}

/// Whether the range that the parameters name may be touched at all.
fn check_explicit(range: PhysRange) -> Result {
    let reason = match resource::kind(range.start, range.len) {
        Kind::SetAside => return Ok(()),
        Kind::SystemRam => "is, or contains, System RAM",
        Kind::Described => {
            "is persistent memory that ACPI describes: nd_pmem knows its namespaces and bad blocks"
        }
        Kind::Other => {
            "is not set aside as a whole: see Reserved and Persistent Memory in /proc/iomem"
        }
    };
    pr_err!("[mem {:#x}-{:#x}] {reason}\n", range.start, range.last());
    Err(EINVAL)
}

/// What can be used of a range that was found.
fn trimmed(found: PhysRange) -> Option<PhysRange> {
    let range = found.trim();
    match range {
        Some(range) if range == found => {}
        Some(range) => pr_warn!(
            "[mem {:#x}-{:#x}] trimmed to [mem {:#x}-{:#x}], multiples of 2M\n",
            found.start,
            found.last(),
            range.start,
            range.last(),
        ),
        None => pr_warn!(
            "[mem {:#x}-{:#x}] left out: there is no aligned piece of 2M in it\n",
            found.start,
            found.last(),
        ),
    }
    // A memory map that calls the same memory both would be a broken one.
    range.filter(|range| {
        let ram = resource::kind(range.start, range.len) == Kind::SystemRam;
        if ram {
            pr_warn!(
                "[mem {:#x}-{:#x}] left out: it is, or contains, System RAM\n",
                range.start,
                range.last(),
            );
        }
        !ram
    })
}
