// SPDX-License-Identifier: GPL-2.0

//! Trace events, defined in `rust_pmem_trace.h`. Each function is a no-op of a few instructions
//! while its event is off.

use super::{
    bindings,
    inode::Inode,
    vm_fault::FaultResult, //
};
use kernel::prelude::*;

/// A fault was handled.
#[inline]
pub(crate) fn fault(inode: &Inode, index: usize, order: u32, flags: u32, result: FaultResult) {
    // SAFETY: The inode is valid.
    unsafe { bindings::rpmem_trace_fault(inode.as_raw(), index, order, flags, result.as_u32()) };
}

/// A fault at another page mapped some of the `nr` pages from `index` on too.
#[inline]
pub(crate) fn ahead(inode: &Inode, index: usize, nr: usize, write: bool) {
    // SAFETY: The inode is valid.
    unsafe { bindings::rpmem_trace_ahead(inode.as_raw(), index, nr, write) };
}

/// A fault changed an entry from `old` to `new`.
#[inline]
pub(crate) fn insert(inode: &Inode, index: usize, old: usize, new: usize) {
    // SAFETY: The inode is valid.
    unsafe { bindings::rpmem_trace_insert(inode.as_raw(), index, old, new) };
}

/// Write-back of a range of pages begins.
#[inline]
pub(crate) fn writeback(inode: &Inode, first: usize, last: usize) {
    // SAFETY: The inode is valid.
    unsafe { bindings::rpmem_trace_writeback(inode.as_raw(), first, last) };
}

/// A run of pages was flushed.
#[inline]
pub(crate) fn run(inode: &Inode, index: usize, pfn: usize, nr: usize) {
    // SAFETY: The inode is valid.
    unsafe { bindings::rpmem_trace_run(inode.as_raw(), index, pfn, nr) };
}

/// Write-back has ended.
#[inline]
pub(crate) fn writeback_done(inode: &Inode, pages: usize, result: &Result) {
    let err = result.as_ref().map_or_else(|e| e.to_errno(), |()| 0);
    // SAFETY: The inode is valid.
    unsafe { bindings::rpmem_trace_writeback_done(inode.as_raw(), pages, err) };
}

/// A dirty mapping went away, or a device has written.
#[inline]
pub(crate) fn unmap(inode: &Inode, index: usize, nr: usize, flushed: bool) {
    // SAFETY: The inode is valid.
    unsafe { bindings::rpmem_trace_unmap(inode.as_raw(), index, nr, flushed) };
}

/// Somebody waits for a locked entry.
#[inline]
pub(crate) fn wait(inode: &Inode, index: usize) {
    // SAFETY: The inode is valid.
    unsafe { bindings::rpmem_trace_wait(inode.as_raw(), index) };
}

/// A page is in use by a device.
#[inline]
pub(crate) fn busy(inode: &Inode, index: usize) {
    // SAFETY: The inode is valid.
    unsafe { bindings::rpmem_trace_busy(inode.as_raw(), index) };
}

/// Entries were deleted.
#[inline]
pub(crate) fn delete(inode: &Inode, first: usize, last: usize, entries: usize) {
    // SAFETY: The inode is valid.
    unsafe { bindings::rpmem_trace_delete(inode.as_raw(), first, last, entries) };
}

/// read() or write() was handled.
#[inline]
pub(crate) fn rw(inode: &Inode, pos: i64, len: usize, write: bool, ret: isize) {
    // SAFETY: The inode is valid.
    unsafe { bindings::rpmem_trace_rw(inode.as_raw(), pos, len, u32::from(write), ret) };
}

/// A range was zeroed.
#[inline]
pub(crate) fn zero(inode: &Inode, pos: i64, len: i64, result: &Result) {
    let err = result.as_ref().map_or_else(|e| e.to_errno(), |()| 0);
    // SAFETY: The inode is valid.
    unsafe { bindings::rpmem_trace_zero(inode.as_raw(), pos, len, err) };
}

/// A range has blocks of its own now.
#[inline]
pub(crate) fn unshare(inode: &Inode, pos: i64, len: i64, result: &Result) {
    let err = result.as_ref().map_or_else(|e| e.to_errno(), |()| 0);
    // SAFETY: The inode is valid.
    unsafe { bindings::rpmem_trace_unshare(inode.as_raw(), pos, len, err) };
}

/// Memory failure handling looked for an entry.
#[inline]
pub(crate) fn hwpoison(inode: &Inode, index: usize, by_folio: bool, locked: bool) {
    // SAFETY: The inode is valid.
    unsafe { bindings::rpmem_trace_hwpoison(inode.as_raw(), index, by_folio, locked) };
}
