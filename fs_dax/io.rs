// SPDX-License-Identifier: GPL-2.0

//! read(2), write(2), zeroing and unsharing.
//!
//! Follows `dax_iomap_rw()`, `dax_zero_range()` and `dax_file_unshare()` of fs/dax.c. What differs,
//! all about what is durable or stale after a power failure or an error:
//!
//! - Whatever is stored through the cache (edges of copy-on-write, parts of pages, unshared blocks)
//!   is written back; C leaves it in the cache with nothing to tell a later fsync of it.
//! - Before copy-on-write, dirty source pages are written back. C clears their dirty marks, for the
//!   whole extent, also where the write then fails.
//! - After a short copy from the user the rest of the block is copied from the source. C leaves what
//!   was on the medium.
//! - Copies that do not become the file's, as the end of their extent fails, are an error, EIO. C says
//!   nothing if bytes were copied.
//! - When a copy-on-write is done, entries of the old blocks are invalidated once more: a read fault
//!   may have mapped them meanwhile.
//! - Zero pages mapped where write(2) writes are taken away also if the file system does not call the
//!   blocks new: when ext4 makes a block of an unwritten extent a written one it may fill those
//!   around it with zeroes and tell nobody. C leaves zeroes in the mappings then.
//! - Zeroing goes over extents with non-temporal stores, not page by page.
//! - Zeroing and unsharing end only the extents in which they have copied something, see
//!   [`super::making`].
//! - After [`COPY_BATCH`] bytes write(2), zeroing and unsharing let faults in that wait for their end.

use super::{
    entry::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    layout,
    making::{
        self,
        Making, //
    },
    range::{
        device_pgoff,
        edges, //
    },
    stats::Stats,
    writeback::{
        self,
        write_back, //
    }, //
};
use crate::{
    arch::{
        self,
        Durable,
        WrittenBack, //
    },
    include::{
        dax_access::{
            DaxReadLock,
            Extent, //
        },
        errno,
        inode::Inode,
        iomap::{
            flags,
            Iomap,
            IomapIter,
            IomapOps,
            Type, //
        },
        iov_iter::{
            Bounce,
            IovIter,
            Kiocb, //
        },
        pmem::Pmem,
        task::{
            self,
            NoPageFaults, //
        },
        trace, //
    },
};
use kernel::prelude::*;

/// Pages zeroed before others may run.
const ZERO_BATCH: usize = 512;

/// Bytes copied on write or zeroed before faults may go in between that wait for the end of it.
const COPY_BATCH: u64 = 16 << 20;

/// Bytes of the caller's memory that are made to be there before a write(2) that cannot wait for them.
const FAULT_IN: usize = 1 << 20;

/// How often memory may be gone again when it is copied from, without a byte of progress, before its
/// bytes are taken out of it first ([`Bounce`]).
const PATIENCE: usize = 2;

/// C's `dax_iomap_direct_access()`: the memory of up to `nr` pages of an extent, from the page with
/// the file's byte `pos` on; at least one page.
pub(super) fn direct_access<'r>(
    alive: &'r DaxReadLock,
    iomap: &Iomap,
    pos: i64,
    nr: usize,
) -> Result<Extent<'r>> {
    let pgoff = device_pgoff(iomap.addr(), iomap.offset(), pos);
    iomap
        .dax()
        .ok_or(EIO)?
        .direct_access(alive, pgoff, nr, false)
}

/// C's `dax_mem2blk_err()`: bad memory is an I/O error to read(2) and write(2).
fn mem_to_block(e: Error) -> Error {
    if e == errno::hwpoison() {
        EIO
    } else {
        e
    }
}

/// Fills `dest` with what the source extent has at the file's byte `pos`: for copy-on-write. `EIO`
/// if the source is bad.
pub(super) fn copy_source(
    alive: &DaxReadLock,
    srcmap: &Iomap,
    pos: i64,
    dest: &Pmem<'_>,
) -> Result {
    // A shared source is the destination itself: there is nothing below it.
    if srcmap.is_shared() || srcmap.is_zero() {
        dest.fill_zero();
        return Ok(());
    }
    let mut done = 0;
    while done < dest.len() {
        let at = pos + done as i64;
        let offset = at as usize % PAGE_SIZE;
        let left = dest.len() - done;
        let source = direct_access(alive, srcmap, at, (offset + left).div_ceil(PAGE_SIZE))
            .map_err(mem_to_block)?;
        let source = source.mem.slice(offset, left);
        dest.slice(done, source.len()).copy_from(&source)?;
        done += source.len();
    }
    Ok(())
}

/// See [`crate::include::fs_dax_ops::Operations::iomap_rw`].
pub(super) fn iomap_rw(
    iocb: &mut Kiocb<'_>,
    user: &mut IovIter<'_>,
    ops: &IomapOps,
) -> Result<usize> {
    if iocb.is_atomic() {
        super::bug("an atomic write to a DAX file");
        return Err(EIO);
    }
    let len = user.count();
    if len == 0 {
        return Ok(0);
    }
    let inode = iocb.inode();
    let mapping = inode.mapping();
    let write = user.is_write();
    let start = iocb.pos();
    let mut why = flags::DAX;
    if write {
        why |= flags::WRITE;
    }
    if iocb.is_nowait() {
        why |= flags::NOWAIT;
    }

    let mut iter = IomapIter::new(inode, start, len as u64, why);
    let result = if write && iocb.may_share_blocks() {
        write_sharing(&mut iter, user, ops, iocb.is_nowait())
    } else {
        rw_plain(&mut iter, user, ops, write)
    };
    let done = (iter.pos() - start) as usize;
    let ret = match result {
        // Also of what came before: nobody is to go on behind it.
        Err(e) if done == 0 || iter.has_lost() => Err(e),
        _ => {
            iocb.set_pos(iter.pos());
            Ok(done)
        }
    };
    let code = ret.map_or_else(|e| e.to_errno() as isize, |n| n as isize);
    Stats::of(mapping, |s| s.count_rw(write, done));
    trace::rw(inode, start, len, write, code);
    ret
}

/// read(2), and write(2) to what shares no blocks. What was written is durable when it returns, up to
/// metadata.
fn rw_plain(
    iter: &mut IomapIter<'_>,
    user: &mut IovIter<'_>,
    ops: &IomapOps,
    write: bool,
) -> Result {
    let mapping = iter.inode().mapping();
    let mut written = WrittenBack::nothing();
    let result = loop {
        // The last call asks for no blocks.
        let makes = write && !iter.is_done();
        let making = makes.then(|| Making::blocks(mapping));
        let next = iter.next(ops);
        drop(making);
        match next {
            Ok(true) => {}
            Ok(false) => break Ok(()),
            Err(e) => break Err(e),
        }
        let (result, stored) = rw_extent(iter, user, write, u64::MAX);
        written = written.and(stored);
        if let Err(e) = result {
            iter.fail(e);
        }
    };
    if write {
        let _: Durable = written.fence();
    }
    result
}

/// write(2) where blocks can be shared (xfs, which gives none out before its zeroes). What was written
/// is durable when it returns, up to metadata.
///
/// Faults leave blocks for copy-on-write alone from before the first lookup on. This must not last as
/// long as somebody likes who is asked for the caller's memory: nothing is waited for then, and the
/// memory made to be there before. It may be gone then each time: it can be a mapping of what is
/// written to.
fn write_sharing(
    iter: &mut IomapIter<'_>,
    user: &mut IovIter<'_>,
    ops: &IomapOps,
    nowait: bool,
) -> Result {
    let mapping = iter.inode().mapping();
    let start = iter.pos();
    let mut copies = None;
    // Bytes since.
    let mut copied = 0;
    let mut settled = false;
    // Blocks for copy-on-write were made ready for what is still to be written.
    let mut ready = false;
    let mut stuck = 0;
    let mut bounce: Option<Bounce> = None;
    let mut cow = false;
    let mut written = WrittenBack::nothing();
    let result = loop {
        if copies.is_none() {
            if stuck >= PATIENCE && bounce.is_none() {
                bounce = match Bounce::new() {
                    Ok(bounce) => Some(bounce),
                    Err(e) => break Err(e),
                };
            }
            let there = match &mut bounce {
                Some(bounce) => bounce.fill(user),
                None => user.fault_in(FAULT_IN),
            };
            if !there {
                break Err(EFAULT);
            }
            // Faults go first, but this must not wait: the caller may, and call again.
            if nowait && making::is_awaited(mapping) {
                break Err(EAGAIN);
            }
            copies = Some(Making::copies(mapping));
            copied = 0;
            settled = false;
            ready = false;
        }
        match iter.next(ops) {
            Ok(true) => {}
            Ok(false) => break Ok(()),
            Err(e) => break Err(e),
        }
        let shared = iter.iomap().is_shared();
        if shared && !settled {
            if let Err(e) = wait_for_faults(iter) {
                break Err(e);
            }
            settled = true;
            continue;
        }
        cow |= shared;
        let from = iter.pos();
        let (result, stored) = {
            let _no_faults = NoPageFaults::new();
            match &mut bounce {
                Some(bounce) => bounce.write(|user| rw_extent(iter, user, true, COPY_BATCH)),
                None => rw_extent(iter, user, true, COPY_BATCH),
            }
        };
        written = before_end(iter, written.and(stored));
        let moved = iter.pos() != from;
        copied += (iter.pos() - from) as u64;
        stuck = if moved { 0 } else { stuck + 1 };
        let used_up = bounce.as_ref().is_some_and(Bounce::is_empty);
        let pauses = copied >= COPY_BATCH && bounce.is_none() && making::is_awaited(mapping);
        let goes_on = result.is_ok() && !iter.is_done() && (used_up || pauses);
        if result == Err(EFAULT) || goes_on {
            // The end of what was copied; the rest anew, when its source is there.
            if moved && shared {
                if let Err(e) = iter.next(ops) {
                    break Err(e);
                }
            }
            ready = !iter.is_done() && iter.iomap().is_shared();
            iter.again();
            copies = None;
        } else if !shared && moved {
            // To xfs its end would be that of copy-on-write at the same place, which a fault that is
            // tried again may have prepared.
            if result.is_err() || iter.is_done() {
                break result;
            }
            iter.again();
        } else if let Err(e) = result {
            // What was done becomes the file's; the rest stays ready.
            ready = shared && moved;
            iter.fail(e);
        }
    };
    if let Some(bounce) = bounce {
        bounce.give_back(user);
    }
    if ready {
        copies.get_or_insert_with(|| Making::copies(mapping));
        free_copies(iter, ops);
    }
    let _: Durable = written.fence();
    if cow && iter.pos() > start {
        // Pages dirtied since are of the new blocks and stay.
        let _ = mapping.invalidate(
            start as usize >> PAGE_SHIFT,
            (iter.pos() - 1) as usize >> PAGE_SHIFT,
        );
    }
    result
}

/// Frees the blocks for copy-on-write that were made ready for the rest of a write(2), which will not
/// come. (If its source was waited for, a fault may have filled them: they are asked for once more.)
/// Faults are to stay away from them ([`Making::copies`]).
fn free_copies(iter: &mut IomapIter<'_>, ops: &IomapOps) {
    // The last one was ended.
    iter.again();
    for settled in [false, true] {
        match iter.next(ops) {
            Ok(true) if iter.iomap().is_shared() => {}
            // Nothing is ready any more, or it cannot be found out: they stay.
            _ => return,
        }
        if settled {
            // Ends the extent with nothing done.
            iter.fail(EFAULT);
            let _ = iter.next(ops);
        } else if wait_for_faults(iter).is_err() {
            return;
        }
    }
}

/// When copied blocks become the file's, as an extent of copy-on-write is ended, they must be durable:
/// what they replace was.
fn before_end(iter: &IomapIter<'_>, written: WrittenBack) -> WrittenBack {
    if iter.iomap().is_shared() {
        let _: Durable = written.fence();
        return WrittenBack::nothing();
    }
    written
}

/// The extent at hand has the first blocks for copy-on-write of an operation that faults are to stay
/// away from ([`Making::copies`]). Those that did not have come to their end after this, and what they
/// have stored is durable and not mapped any more. The blocks may be the file's now: they are to be
/// looked up again, which [`IomapIter::next`] does.
fn wait_for_faults(iter: &mut IomapIter<'_>) -> Result {
    let mapping = iter.inode().mapping();
    let first = iter.pos() as usize >> PAGE_SHIFT;
    let last = (iter.end() - 1) as usize >> PAGE_SHIFT;
    // Also if this fails the extent must not be ended: a fault may have it.
    iter.again();
    writeback::clean(mapping, first, last, &mut 0)?;
    let _ = mapping.invalidate(first, last);
    Ok(())
}

/// C's `dax_iomap_iter()`: what read(2) or write(2) do with one extent, `most` bytes of it.
fn rw_extent(
    iter: &mut IomapIter<'_>,
    user: &mut IovIter<'_>,
    write: bool,
    most: u64,
) -> (Result, WrittenBack) {
    let mut written = WrittenBack::nothing();
    let mut end = iter.pos() + iter.length().min(most) as i64;
    let mapping = iter.inode().mapping();
    if !write {
        end = end.min(iter.inode().size());
        if iter.pos() >= end {
            return (Ok(()), written);
        }
        if iter.iomap().is_zero() {
            let done = user.zero((end - iter.pos()) as usize);
            return (iter.advance(done as u64), written);
        }
    }
    let cow = write && iter.iomap().is_shared();
    if iter.iomap().type_() != Type::Mapped && !iter.iomap().is_shared() {
        super::bug("a file system gave no blocks to read or write");
        return (Err(EIO), written);
    }

    // What is mapped there, zero pages or the source of copy-on-write, is not the file's any more.
    // A fault that is making the blocks (see `making`) has a locked entry there which stands for
    // nothing yet: invalidating waits for it.
    let first = iter.pos() as usize >> PAGE_SHIFT;
    let last = (end - 1) as usize >> PAGE_SHIFT;
    if iter.iomap().is_new() || cow || (write && layout::has_holes(mapping, first, last)) {
        let _ = mapping.invalidate(first, last);
    } else if !write && making::in_faults(mapping) {
        layout::wait_for_makers(mapping, first, last);
    }

    let alive = DaxReadLock::new();
    while iter.pos() < end {
        if task::fatal_signal_pending() {
            return (Err(EINTR), written);
        }
        if user.count() == 0 {
            // That was all for now.
            break;
        }
        let pos = iter.pos();
        let offset = pos as usize % PAGE_SIZE;
        let left = (end - pos) as usize;
        let nr = (offset + left).div_ceil(PAGE_SIZE);
        let iomap = iter.iomap();
        let Some(dax) = iomap.dax() else {
            return (Err(EIO), written);
        };
        let pgoff = device_pgoff(iomap.addr(), iomap.offset(), pos);
        let mut access = dax.direct_access(&alive, pgoff, nr, false);
        let is_bad = |access: &Result<Extent<'_>>| {
            write && matches!(access, Err(e) if *e == errno::hwpoison())
        };
        if is_bad(&access) && nr > 1 {
            // What is bad may be farther behind.
            access = dax.direct_access(&alive, pgoff, 1, false);
        }
        let recover = is_bad(&access);
        if recover {
            access = dax.direct_access(&alive, pgoff, nr, true);
        }
        let extent = match access {
            Ok(extent) => extent,
            Err(e) => return (Err(mem_to_block(e)), written),
        };
        let mem = extent.mem.slice(offset, left);
        if recover && offset > 0 {
            // Only whole pages can be recovered.
            return (Err(EIO), written);
        }
        if cow && offset > 0 {
            let head = extent.mem.slice(0, offset);
            match copy_source(&alive, iter.srcmap(), pos - offset as i64, &head) {
                Ok(()) => written = written.and(write_back(mapping, &head)),
                Err(e) => return (Err(e), written),
            }
        }
        let done = if recover {
            let done = dax.recovery_write(&alive, pgoff, &mem, user);
            // A page that is only half of it written is bad still, and nobody could write the rest: all
            // of it again, when its source is there.
            let whole = if done < mem.len() {
                done & !(PAGE_SIZE - 1)
            } else {
                done
            };
            if whole < done {
                user.take_back(done - whole);
            }
            whole
        } else if write {
            user.copy_to_pmem(&mem)
        } else {
            user.copy_from_pmem(&mem)
        };
        if cow && done > 0 {
            let edge = edges(pos, done, PAGE_SIZE);
            let tail = extent.mem.slice(offset + done, edge.tail);
            match copy_source(&alive, iter.srcmap(), pos + done as i64, &tail) {
                Ok(()) => written = written.and(write_back(mapping, &tail)),
                Err(e) => {
                    // Not written: to be the caller's next bytes again (io_uring goes on behind what
                    // is said to be written).
                    user.take_back(done);
                    return (Err(e), written);
                }
            }
        }
        if let Err(e) = iter.advance(done as u64) {
            return (Err(e), written);
        }
        if done == 0 {
            // Of bad pages only whole ones can be written.
            let whole = !recover || mem.len() % PAGE_SIZE == 0;
            return (Err(if whole { EFAULT } else { EIO }), written);
        }
        if done < mem.len() {
            break;
        }
    }
    (Ok(()), written)
}

/// See [`crate::include::fs_dax_ops::Operations::zero_range`].
pub(super) fn zero_range(inode: &Inode, pos: i64, len: i64, ops: &IomapOps) -> (Result, bool) {
    let mut iter = IomapIter::new(inode, pos, len as u64, flags::DAX | flags::ZERO);
    let mut copies = None;
    let mut zeroed = 0;
    let mut written = WrittenBack::nothing();
    let result = loop {
        match iter.next(ops) {
            Ok(true) => {}
            Ok(false) => break Ok(()),
            Err(e) => break Err(e),
        }
        if iter.iomap().is_shared() && copies.is_none() {
            copies = Some(Making::copies(inode.mapping()));
            if let Err(e) = wait_for_faults(&mut iter) {
                break Err(e);
            }
            continue;
        }
        let from = iter.pos();
        let (result, stored) = match zero_extent(&mut iter) {
            Ok(stored) => (Ok(()), stored),
            Err(e) => (Err(e), None),
        };
        if let Some(stored) = stored {
            zeroed += iter.pos().wrapping_sub(from) as usize;
            written = written.and(stored);
        }
        // Also of what was done before it went wrong.
        written = before_end(&iter, written);
        let copied = iter.iomap().is_shared();
        if let Some(result) = end_extent(&mut iter, ops, result, copied, &mut copies) {
            break result;
        }
    };
    let _: Durable = written.fence();
    Stats::of(inode.mapping(), |s| s.count_zero(zeroed));
    trace::zero(inode, pos, len, &result);
    (result, zeroed > 0)
}

/// After zeroing or unsharing (a part of) an extent, which had blocks for copy-on-write if `copied`:
/// `Some` if that was all, else the next one is the caller's to get. Faults that wait for the end of
/// `copies` may go in between.
///
/// Where nothing was copied, in a hole above all, the extent is not ended: to xfs that would be the
/// end of copy-on-write at the same place, and blocks that a fault has had made ready and has not
/// filled would become the file's.
fn end_extent(
    iter: &mut IomapIter<'_>,
    ops: &IomapOps,
    result: Result,
    copied: bool,
    copies: &mut Option<Making>,
) -> Option<Result> {
    if !copied && (result.is_err() || iter.is_done()) {
        return Some(result);
    }
    if let Err(e) = result {
        iter.fail(e);
        return None;
    }
    let pauses = copies.is_some() && making::is_awaited(iter.inode().mapping());
    if copied {
        if iter.is_done() || !pauses {
            return None;
        }
        // The end of what was copied comes before that of the copies.
        match iter.next(ops) {
            Ok(true) => {}
            result => return Some(result.map(|_| ())),
        }
    }
    iter.again();
    if pauses {
        *copies = None;
    }
    None
}

/// C's `dax_zero_iter()`: zeroes one extent, or the first [`COPY_BATCH`] bytes; `None` if it reads as
/// zeroes already.
fn zero_extent(iter: &mut IomapIter<'_>) -> Result<Option<WrittenBack>> {
    if iter.srcmap().is_zero() {
        let len = iter.length();
        iter.advance(len)?;
        return Ok(None);
    }
    let mapping = iter.inode().mapping();
    if iter.iomap().is_shared() {
        let last = iter.pos() + (iter.length() as i64 - 1);
        let _ = mapping.invalidate(
            iter.pos() as usize >> PAGE_SHIFT,
            last as usize >> PAGE_SHIFT,
        );
    }
    let mut written = WrittenBack::nothing();
    let mut left = COPY_BATCH;
    while iter.length() > 0 && left > 0 {
        let (done, stored) = {
            let alive = DaxReadLock::new();
            zero_piece(iter, &alive)?
        };
        written = written.and(stored);
        iter.advance(done as u64)?;
        left = left.saturating_sub(done as u64);
        task::cond_resched();
    }
    Ok(Some(written))
}

/// Zeroes from the iteration's position on: the rest of a page, or whole pages. Returns how many
/// bytes.
fn zero_piece(iter: &IomapIter<'_>, alive: &DaxReadLock) -> Result<(usize, WrittenBack)> {
    let iomap = iter.iomap();
    let pos = iter.pos();
    let offset = pos as usize % PAGE_SIZE;
    let left = iter.length() as usize;
    let pgoff = device_pgoff(iomap.addr(), iomap.offset(), pos);
    let dax = iomap.dax().ok_or(EIO)?;

    if offset == 0 && left >= PAGE_SIZE {
        let nr = (left / PAGE_SIZE).min(ZERO_BATCH);
        return match dax.direct_access(alive, pgoff, nr, false) {
            Ok(extent) => Ok((extent.mem.len(), arch::zero(&extent.mem, dax.write_cache()))),
            // The driver knows how to make bad memory good.
            Err(e) if e == errno::hwpoison() => {
                dax.zero_page(alive, pgoff).map_err(mem_to_block)?;
                Ok((PAGE_SIZE, WrittenBack::nothing()))
            }
            Err(e) => Err(e),
        };
    }

    let len = left.min(PAGE_SIZE - offset);
    let extent = dax
        .direct_access(alive, pgoff, 1, false)
        .map_err(mem_to_block)?;
    let mut written = arch::zero(&extent.mem.slice(offset, len), dax.write_cache());
    if iomap.is_shared() {
        let edge = edges(pos, len, PAGE_SIZE);
        let mapping = iter.inode().mapping();
        let srcmap = iter.srcmap();
        let head = extent.mem.slice(0, edge.head);
        copy_source(alive, srcmap, pos - edge.head as i64, &head)?;
        let tail = extent.mem.slice(offset + len, edge.tail);
        copy_source(alive, srcmap, pos.wrapping_add(len as i64), &tail)?;
        written = written
            .and(write_back(mapping, &head))
            .and(write_back(mapping, &tail));
    }
    Ok((len, written))
}

/// See [`crate::include::fs_dax_ops::Operations::truncate_page`].
pub(super) fn truncate_page(inode: &Inode, pos: i64, ops: &IomapOps) -> (Result, bool) {
    let block = 1i64 << inode.blkbits();
    match pos & (block - 1) {
        0 => (Ok(()), false),
        offset => zero_range(inode, pos, block - offset, ops),
    }
}

/// See [`crate::include::fs_dax_ops::Operations::file_unshare`].
pub(super) fn file_unshare(inode: &Inode, pos: i64, len: i64, ops: &IomapOps) -> Result {
    let size = inode.size();
    if pos < 0 || pos >= size {
        return Ok(());
    }
    let len = len.min(size - pos) as u64;
    let why = flags::WRITE | flags::UNSHARE | flags::DAX;
    let mut iter = IomapIter::new(inode, pos, len, why);
    let mut copies = None;
    let mut written = WrittenBack::nothing();
    let result = loop {
        match iter.next(ops) {
            Ok(true) => {}
            Ok(false) => break Ok(()),
            Err(e) => break Err(e),
        }
        if iter.iomap().is_shared() && copies.is_none() {
            copies = Some(Making::copies(inode.mapping()));
            if let Err(e) = wait_for_faults(&mut iter) {
                break Err(e);
            }
            continue;
        }
        let copied = iter.wants_unshare();
        let (result, stored) = match unshare_extent(&mut iter) {
            Ok(stored) => (Ok(()), stored),
            Err(e) => (Err(e), WrittenBack::nothing()),
        };
        written = before_end(&iter, written.and(stored));
        if let Some(result) = end_extent(&mut iter, ops, result, copied, &mut copies) {
            break result;
        }
    };
    let _: Durable = written.fence();
    trace::unshare(inode, pos, len as i64, &result);
    result
}

/// C's `dax_unshare_iter()`: copies the whole blocks of one extent, or of its first [`COPY_BATCH`]
/// bytes.
fn unshare_extent(iter: &mut IomapIter<'_>) -> Result<WrittenBack> {
    let mut len = iter.length();
    let mut written = WrittenBack::nothing();
    if !iter.wants_unshare() {
        iter.advance(len)?;
        return Ok(written);
    }
    // Up to the end of a page: the next part begins there.
    len = len.min(COPY_BATCH - iter.pos() as u64 % PAGE_SIZE as u64);
    let edge = edges(iter.pos(), len as usize, PAGE_SIZE);
    let pos = iter.pos() - edge.head as i64;
    let first = pos as usize >> PAGE_SHIFT;
    let last = first + (edge.size >> PAGE_SHIFT) - 1;
    let mapping = iter.inode().mapping();
    let _ = mapping.invalidate(first, last);

    let alive = DaxReadLock::new();
    let mut done = 0;
    while done < edge.size {
        let at = pos + done as i64;
        let nr = ((edge.size - done) >> PAGE_SHIFT).min(ZERO_BATCH);
        let dest = direct_access(&alive, iter.iomap(), at, nr).map_err(mem_to_block)?;
        copy_source(&alive, iter.srcmap(), at, &dest.mem)?;
        written = written.and(write_back(mapping, &dest.mem));
        done += dest.mem.len();
        task::cond_resched();
    }
    drop(alive);
    iter.advance(len)?;
    Ok(written)
}
