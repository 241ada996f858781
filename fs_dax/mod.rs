// SPDX-License-Identifier: GPL-2.0

//! The fs/dax layer: direct access to files on our devices, in place of the kernel's fs/dax.c.
//!
//! [`attach`] redirects the entry points of fs/dax.c to the functions here, for file systems on our
//! devices ([`crate::include::fs_dax_ops`]). Start reading at [`lock`]: entry states, lock order and
//! the wait protocol.
//!
//! - `entry`, `run`, `range`: encoding, batches and arithmetic, also tested on the host
//! - `lock`: locked entries
//! - `owner`: from folios back to files
//! - `fault`, `ahead`: page faults, and mapping more than was asked for
//! - `making`: blocks that are not ready yet
//! - `writeback`: fsync, msync, sync
//! - `unmap`: flush on unmap, pages written by devices
//! - `layout`: truncation, hole punching, invalidation
//! - `io`: read(2), write(2), zeroing, unsharing
//! - `memory_failure`: bad memory
//! - `stats`: counters

mod ahead;
mod entry;
mod fault;
mod io;
mod layout;
mod lock;
mod making;
mod memory_failure;
mod owner;
mod range;
mod run;
mod stats;
mod unmap;
mod writeback;

pub(crate) use stats::Stats;

use crate::{
    drivers::pmem::Device,
    include::{
        folio::{
            Folio,
            LayoutCallback, //
        },
        fs_dax_ops::{
            self,
            Attached,
            HookError,
            LockedFolio,
            Operations, //
        },
        inode::{
            AddressSpace,
            Inode, //
        },
        iomap::IomapOps,
        iov_iter::{
            IovIter,
            Kiocb, //
        },
        vm_fault::{
            FaultResult,
            VmFault, //
        },
        writeback_control::WritebackControl, //
    },
};
use kernel::prelude::*;

/// The layer, as [`Operations`] for our devices.
pub(crate) struct FsDax;

/// Takes over DAX of file systems on our devices, until the returned value is dropped. Must be
/// called before the first device appears.
///
/// `EBUSY`, with a line that says why, if one of the functions cannot be had: a livepatch has it,
/// function tracing is switched off, or this kernel does not have it. Nothing is half done then.
pub(crate) fn attach() -> Result<Attached<FsDax>> {
    lock::init();
    fs_dax_ops::attach().map_err(|e| match e {
        HookError::NoFunction(name, e) => {
            pr_err!("fs_dax: this kernel's {name:?} cannot be redirected ({e:?}); load with fs_dax=0 to leave DAX to the kernel\n");
            EBUSY
        }
        HookError::Register(e) => {
            pr_err!("fs_dax: the functions of fs/dax.c cannot be redirected ({e:?}): a livepatch has one of them, or kernel.ftrace_enabled is 0; load with fs_dax=0 to leave DAX to the kernel\n");
            EBUSY
        }
        HookError::NoMemory => ENOMEM,
    })
}

/// Something is as it must never be: says so once, with the place.
#[cold]
#[track_caller]
fn bug(what: &str) {
    let place = core::panic::Location::caller();
    kernel::pr_err_once!("BUG: fs_dax: {what} ({}:{})\n", place.file(), place.line());
}

/// With `RPMEM_DEBUG=1` at build, checks what must hold.
#[inline(always)]
#[track_caller]
fn check(holds: bool, otherwise: &str) {
    if cfg!(rpmem_debug) && !holds {
        bug(otherwise);
    }
}

impl Operations for FsDax {
    type Disk = Device;

    fn iomap_rw(iocb: &mut Kiocb<'_>, iter: &mut IovIter<'_>, ops: &IomapOps) -> Result<usize> {
        io::iomap_rw(iocb, iter, ops)
    }

    fn iomap_fault(
        vmf: &mut VmFault<'_>,
        order: u32,
        pfn: Option<&mut usize>,
        err: &mut Result,
        ops: &IomapOps,
    ) -> FaultResult {
        fault::iomap_fault(vmf, order, pfn, err, ops)
    }

    fn finish_sync_fault(vmf: &mut VmFault<'_>, order: u32, pfn: usize) -> FaultResult {
        fault::finish_sync_fault(vmf, order, pfn)
    }

    fn writeback_mapping_range(mapping: &AddressSpace, wbc: &WritebackControl<'_>) -> Result {
        writeback::writeback_mapping_range(mapping, wbc)
    }

    fn layout_busy_page_range(mapping: &AddressSpace, start: i64, end: i64) -> Option<&Folio> {
        layout::layout_busy_page_range(mapping, start, end)
    }

    fn break_layout(inode: &Inode, start: i64, end: i64, cb: Option<LayoutCallback>) -> Result {
        layout::break_layout(inode, start, end, cb)
    }

    fn break_layout_final(inode: &Inode) {
        layout::break_layout_final(inode);
    }

    fn delete_mapping_range(mapping: &AddressSpace, start: i64, end: i64) {
        layout::delete_mapping_range(mapping, start, end);
    }

    fn delete_mapping_entry(mapping: &AddressSpace, index: usize) -> bool {
        layout::delete_mapping_entry(mapping, index)
    }

    fn invalidate_mapping_entry_sync(mapping: &AddressSpace, index: usize) -> bool {
        layout::invalidate_mapping_entry_sync(mapping, index)
    }

    fn lock_folio(folio: &Folio) -> Option<LockedFolio> {
        memory_failure::lock_folio(folio)
    }

    fn lock_mapping_entry(mapping: &AddressSpace, index: usize) -> (usize, Option<usize>) {
        memory_failure::lock_mapping_entry(mapping, index)
    }

    fn unlock_mapping_entry(mapping: &AddressSpace, index: usize, cookie: usize) {
        memory_failure::unlock_mapping_entry(mapping, index, cookie);
    }

    fn zero_range(inode: &Inode, pos: i64, len: i64, ops: &IomapOps) -> (Result, bool) {
        io::zero_range(inode, pos, len, ops)
    }

    fn truncate_page(inode: &Inode, pos: i64, ops: &IomapOps) -> (Result, bool) {
        io::truncate_page(inode, pos, ops)
    }

    fn file_unshare(inode: &Inode, pos: i64, len: i64, ops: &IomapOps) -> Result {
        io::file_unshare(inode, pos, len, ops)
    }

    fn dirty_folio(mapping: &AddressSpace, folio: &Folio) -> bool {
        unmap::dirty_folio(mapping, folio)
    }
}
