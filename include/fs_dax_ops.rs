// SPDX-License-Identifier: GPL-2.0

//! The entry points of fs/dax.c, as a trait, and how they are taken over.
//!
//! C header: [`include/linux/dax.h`](srctree/include/linux/dax.h)
//!
//! [`attach`] redirects the functions to an implementation of [`Operations`], for calls that
//! concern file systems on a driver's disks. They must all go together: C's functions wait for
//! locked entries on a wait table of their own.

pub(crate) use super::ftrace::HookError;
use super::{
    bindings,
    folio::{
        Folio,
        LayoutCallback,
        SharingLock, //
    },
    ftrace::{
        Hooks,
        Redirect,
        Subject, //
    },
    gendisk,
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
    writeback_control::WritebackControl,
    zero_pmd, //
};
use core::{
    marker::PhantomData,
    pin::Pin, //
};
use kernel::{
    error::from_result,
    ffi::{
        c_int,
        c_uint,
        c_ulong, //
    },
    prelude::*, //
};

/// An entry that was locked for the memory failure of its folio.
///
/// # Invariants
///
/// The entry at `index` of the mapping is locked. The mapping is valid: the eviction of its inode
/// waits for that entry.
pub(crate) struct LockedFolio {
    mapping: *const AddressSpace,
    index: usize,
    cookie: usize,
    sharing: Option<SharingLock>,
}

impl LockedFolio {
    /// The entry at `index` has just been locked; `cookie` is for
    /// [`Operations::unlock_mapping_entry`].
    pub(crate) fn new(mapping: &AddressSpace, index: usize, cookie: usize) -> Self {
        // INVARIANT: By the caller, who has locked it.
        Self {
            mapping,
            index,
            cookie,
            sharing: None,
        }
    }

    /// Keeps others from sharing the folio, so that it is this file's until the entry is unlocked: who
    /// has it locked for a memory failure goes by the folio's mapping, and C finds NULL there if
    /// another file takes the block up meanwhile. False: one has. May sleep.
    fn keep_unshared(&mut self, folio: &Folio) -> bool {
        self.sharing = Some(SharingLock::new());
        core::ptr::eq(folio.mapping_ptr().cast(), self.mapping)
    }

    fn unlock<T: Operations>(self) {
        // SAFETY: By the type's invariants.
        let mapping = unsafe { &*self.mapping };
        T::unlock_mapping_entry(mapping, self.index, self.cookie);
    }
}

/// What fs/dax.c does, for file systems on disks of [`Operations::Disk`]. Every function follows
/// the C function of its name with `dax_` before it; locks and context are those of C.
pub(crate) trait Operations: Sized + 'static {
    /// The driver whose disks are meant.
    type Disk: gendisk::Operations;

    /// `dax_iomap_rw()`: read(2) and write(2). Returns bytes. `i_rwsem` is held. May sleep.
    fn iomap_rw(iocb: &mut Kiocb<'_>, iter: &mut IovIter<'_>, ops: &IomapOps) -> Result<usize>;

    /// `dax_iomap_fault()`: a fault of 2^`order` pages. `pfn` is where to put the page frame number
    /// with [`FaultResult::NEEDDSYNC`], `err` what went wrong. The file system holds its lock
    /// against truncation. May sleep.
    fn iomap_fault(
        vmf: &mut VmFault<'_>,
        order: u32,
        pfn: Option<&mut usize>,
        err: &mut Result,
        ops: &IomapOps,
    ) -> FaultResult;

    /// `dax_finish_sync_fault()`: second half of a fault that returned `NEEDDSYNC`. May sleep.
    fn finish_sync_fault(vmf: &mut VmFault<'_>, order: u32, pfn: usize) -> FaultResult;

    /// `dax_writeback_mapping_range()`: makes the dirty pages of the range durable. May sleep.
    fn writeback_mapping_range(mapping: &AddressSpace, wbc: &WritebackControl<'_>) -> Result;

    /// `dax_layout_busy_page_range()`: unmaps the bytes `start..=end` and returns a folio in use by
    /// somebody else, if there is one. May sleep.
    fn layout_busy_page_range(mapping: &AddressSpace, start: i64, end: i64) -> Option<&Folio>;

    /// `dax_break_layout()`: unmaps the bytes `start..=end`, waits with `cb` until nobody uses them,
    /// and deletes their entries. Without `cb`: does not wait but fails with `ERESTARTSYS`.
    fn break_layout(inode: &Inode, start: i64, end: i64, cb: Option<LayoutCallback>) -> Result;

    /// `dax_break_layout_final()`: the same for a whole file that is going away. May sleep.
    fn break_layout_final(inode: &Inode);

    /// `dax_delete_mapping_range()`: deletes the entries of the bytes `start..=end`. May sleep.
    fn delete_mapping_range(mapping: &AddressSpace, start: i64, end: i64);

    /// `dax_delete_mapping_entry()`: deletes an entry, whether it was there. May sleep.
    fn delete_mapping_entry(mapping: &AddressSpace, index: usize) -> bool;

    /// `dax_invalidate_mapping_entry_sync()`: deletes an entry if it is clean, whether it was. May
    /// sleep.
    fn invalidate_mapping_entry_sync(mapping: &AddressSpace, index: usize) -> bool;

    /// `dax_lock_folio()`: locks the entry of a folio. `None` if no file has it for itself, or none of
    /// ours. May sleep.
    fn lock_folio(folio: &Folio) -> Option<LockedFolio>;

    /// `dax_lock_mapping_entry()`: locks an entry and returns a cookie and the page frame number
    /// at `index`; the cookie is `usize::MAX` and there is no number if nothing is mapped. May sleep.
    fn lock_mapping_entry(mapping: &AddressSpace, index: usize) -> (usize, Option<usize>);

    /// `dax_unlock_mapping_entry()`, and `dax_unlock_folio()` where the entry was found.
    fn unlock_mapping_entry(mapping: &AddressSpace, index: usize, cookie: usize);

    /// `dax_zero_range()`: fills bytes with zeroes; returns also whether there was anything to
    /// fill. May sleep.
    fn zero_range(inode: &Inode, pos: i64, len: i64, ops: &IomapOps) -> (Result, bool);

    /// `dax_truncate_page()`: fills the rest of a block with zeroes. May sleep.
    fn truncate_page(inode: &Inode, pos: i64, ops: &IomapOps) -> (Result, bool);

    /// `dax_file_unshare()`: makes copies of shared blocks. May sleep.
    fn file_unshare(inode: &Inode, pos: i64, len: i64, ops: &IomapOps) -> Result;

    /// `noop_dirty_folio()`, called by `folio_mark_dirty()`: a dirty mapping of the folio was
    /// removed, or a device has written to it. Page table or folio lock held: must not sleep.
    /// Whether it has become dirty by this.
    fn dirty_folio(mapping: &AddressSpace, folio: &Folio) -> bool;
}

/// The functions are redirected as long as this lives.
pub(crate) struct Attached<T> {
    hooks: Option<Pin<KBox<Hooks>>>,
    _ops: PhantomData<fn(T)>,
}

impl<T> Drop for Attached<T> {
    fn drop(&mut self) {
        // The hooks first: nobody is in `T` after that, as no file system is on its disks.
        drop(self.hooks.take());
        // SAFETY: See above.
        unsafe { zero_pmd::release() };
    }
}

/// Redirects the functions to `T`, all or none.
///
/// To be called before the driver's first disk appears and undone after the last one is gone. Takes
/// about half a second under emulation. May sleep.
pub(crate) fn attach<T: Operations>() -> core::result::Result<Attached<T>, HookError> {
    // SAFETY: The thunks have the types of the C functions. The caller sees to the disks; the block
    // layer sees to it that the module stays as long as one is open.
    let hooks = unsafe { Hooks::set::<T::Disk>(Thunks::<T>::TABLE) }?;
    Ok(Attached {
        hooks: Some(hooks),
        _ops: PhantomData,
    })
}

/// What C calls. All are called by C code of the kernel and the file systems in place of the
/// function of their name, so their arguments are what that function's documentation says.
struct Thunks<T>(PhantomData<T>);

macro_rules! redirect {
    ($name:literal, $subject:ident, $target:expr) => {
        Redirect {
            name: $name,
            subject: Subject::$subject,
            target: $target as *const (),
        }
    };
}

impl<T: Operations> Thunks<T> {
    const TABLE: &'static [Redirect] = &[
        redirect!(c"dax_iomap_rw", Kiocb, Self::iomap_rw),
        redirect!(c"dax_iomap_fault", VmFault, Self::iomap_fault),
        redirect!(c"dax_finish_sync_fault", VmFault, Self::finish_sync_fault),
        redirect!(c"dax_writeback_mapping_range", Mapping, Self::writeback),
        redirect!(c"dax_layout_busy_page", Mapping, Self::busy_page),
        redirect!(
            c"dax_layout_busy_page_range",
            Mapping,
            Self::busy_page_range
        ),
        redirect!(c"dax_break_layout", Inode, Self::break_layout),
        redirect!(c"dax_break_layout_final", Inode, Self::break_layout_final),
        redirect!(c"dax_delete_mapping_range", Mapping, Self::delete_range),
        redirect!(c"dax_delete_mapping_entry", Mapping, Self::delete_entry),
        redirect!(
            c"dax_invalidate_mapping_entry_sync",
            Mapping,
            Self::invalidate
        ),
        redirect!(c"dax_lock_folio", Folio, Self::lock_folio),
        redirect!(c"dax_unlock_folio", LockedFolio, Self::unlock_folio),
        redirect!(c"dax_lock_mapping_entry", Mapping, Self::lock_entry),
        redirect!(c"dax_unlock_mapping_entry", Mapping, Self::unlock_entry),
        redirect!(c"dax_zero_range", Inode, Self::zero_range),
        redirect!(c"dax_truncate_page", Inode, Self::truncate_page),
        redirect!(c"dax_file_unshare", Inode, Self::file_unshare),
        redirect!(c"noop_dirty_folio", Mapping, Self::dirty_folio),
    ];

    /// # Safety
    ///
    /// Called as `dax_iomap_rw()`.
    unsafe extern "C" fn iomap_rw(
        iocb: *mut bindings::kiocb,
        iter: *mut bindings::iov_iter,
        ops: *const bindings::iomap_ops,
    ) -> isize {
        // SAFETY: The caller's arguments are valid for the call.
        let (mut iocb, mut iter, ops) = unsafe {
            (
                Kiocb::from_raw(iocb),
                IovIter::from_raw(iter),
                IomapOps::from_raw(ops),
            )
        };
        match T::iomap_rw(&mut iocb, &mut iter, ops) {
            Ok(n) => n as isize,
            Err(e) => e.to_errno() as isize,
        }
    }

    /// # Safety
    ///
    /// Called as `dax_iomap_fault()`.
    unsafe extern "C" fn iomap_fault(
        vmf: *mut bindings::vm_fault,
        order: c_uint,
        pfn: *mut c_ulong,
        errp: *mut c_int,
        ops: *const bindings::iomap_ops,
    ) -> bindings::vm_fault_t {
        // SAFETY: The caller's arguments are valid for the call; `pfn` and `errp` may be null.
        let (mut vmf, pfn, errp, ops) = unsafe {
            (
                VmFault::from_raw(vmf),
                pfn.as_mut(),
                errp.as_mut(),
                IomapOps::from_raw(ops),
            )
        };
        let mut err = Ok(());
        let ret = T::iomap_fault(&mut vmf, order, pfn, &mut err, ops);
        if let (Some(errp), 0) = (errp, order) {
            *errp = err.map_or_else(Error::to_errno, |()| 0);
        }
        match (order, ret) {
            // To the core that would be a page in `vmf`.
            (0, FaultResult::NONE) => FaultResult::SIGBUS.0,
            _ => ret.0,
        }
    }

    /// # Safety
    ///
    /// Called as `dax_finish_sync_fault()`.
    unsafe extern "C" fn finish_sync_fault(
        vmf: *mut bindings::vm_fault,
        order: c_uint,
        pfn: c_ulong,
    ) -> bindings::vm_fault_t {
        // SAFETY: The caller's argument is valid for the call.
        let mut vmf = unsafe { VmFault::from_raw(vmf) };
        T::finish_sync_fault(&mut vmf, order, pfn).0
    }

    /// # Safety
    ///
    /// Called as `dax_writeback_mapping_range()`.
    unsafe extern "C" fn writeback(
        mapping: *mut bindings::address_space,
        _dax: *mut bindings::dax_device,
        wbc: *mut bindings::writeback_control,
    ) -> c_int {
        // SAFETY: The caller's arguments are valid for the call.
        let (mapping, wbc) = unsafe {
            (
                AddressSpace::from_raw(mapping),
                WritebackControl::from_raw(wbc),
            )
        };
        from_result(|| {
            T::writeback_mapping_range(mapping, &wbc)?;
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// Called as `dax_layout_busy_page()`.
    unsafe extern "C" fn busy_page(mapping: *mut bindings::address_space) -> *mut bindings::page {
        // SAFETY: As our own caller's.
        unsafe { Self::busy_page_range(mapping, 0, i64::MAX) }
    }

    /// # Safety
    ///
    /// Called as `dax_layout_busy_page_range()`.
    unsafe extern "C" fn busy_page_range(
        mapping: *mut bindings::address_space,
        start: i64,
        end: i64,
    ) -> *mut bindings::page {
        // SAFETY: The caller's argument is valid for the call.
        let mapping = unsafe { AddressSpace::from_raw(mapping) };
        T::layout_busy_page_range(mapping, start, end)
            .map_or(core::ptr::null_mut(), |folio| folio.as_raw().cast())
    }

    /// # Safety
    ///
    /// Called as `dax_break_layout()`.
    unsafe extern "C" fn break_layout(
        inode: *mut bindings::inode,
        start: i64,
        end: i64,
        cb: Option<unsafe extern "C" fn(*mut bindings::inode)>,
    ) -> c_int {
        // SAFETY: The caller's argument is valid for the call.
        let inode = unsafe { Inode::from_raw(inode) };
        from_result(|| {
            T::break_layout(inode, start, end, cb.map(LayoutCallback))?;
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// Called as `dax_break_layout_final()`.
    unsafe extern "C" fn break_layout_final(inode: *mut bindings::inode) {
        // SAFETY: The caller's argument is valid for the call.
        T::break_layout_final(unsafe { Inode::from_raw(inode) });
    }

    /// # Safety
    ///
    /// Called as `dax_delete_mapping_range()`.
    unsafe extern "C" fn delete_range(mapping: *mut bindings::address_space, start: i64, end: i64) {
        // SAFETY: The caller's argument is valid for the call.
        T::delete_mapping_range(unsafe { AddressSpace::from_raw(mapping) }, start, end);
    }

    /// # Safety
    ///
    /// Called as `dax_delete_mapping_entry()`.
    unsafe extern "C" fn delete_entry(
        mapping: *mut bindings::address_space,
        index: c_ulong,
    ) -> c_int {
        // SAFETY: The caller's argument is valid for the call.
        T::delete_mapping_entry(unsafe { AddressSpace::from_raw(mapping) }, index).into()
    }

    /// # Safety
    ///
    /// Called as `dax_invalidate_mapping_entry_sync()`.
    unsafe extern "C" fn invalidate(
        mapping: *mut bindings::address_space,
        index: c_ulong,
    ) -> c_int {
        // SAFETY: The caller's argument is valid for the call.
        T::invalidate_mapping_entry_sync(unsafe { AddressSpace::from_raw(mapping) }, index).into()
    }

    /// # Safety
    ///
    /// Called as `dax_lock_folio()`.
    unsafe extern "C" fn lock_folio(folio: *mut bindings::folio) -> c_ulong {
        // Without memory it is as if it could not be locked: memory_failure() says EBUSY.
        let Ok(place) = KBox::<LockedFolio>::new_uninit(GFP_KERNEL) else {
            return 0;
        };
        // SAFETY: The caller's argument is valid for the call, and a folio that is in a file on one
        // of our disks, or in their memory, is DAX memory.
        let folio = unsafe { Folio::from_raw(folio) };
        let Some(mut locked) = T::lock_folio(folio) else {
            return 0;
        };
        if !locked.keep_unshared(folio) {
            locked.unlock::<T>();
            return 0;
        }
        KBox::into_raw(place.write(locked)) as c_ulong
    }

    /// # Safety
    ///
    /// Called as `dax_unlock_folio()`. Where the entry is that was locked is what the cookie says.
    unsafe extern "C" fn unlock_folio(_folio: *mut bindings::folio, cookie: c_ulong) {
        // SAFETY: `lock_folio` has returned it, for one call of this.
        let locked = unsafe { KBox::from_raw(cookie as *mut LockedFolio) };
        KBox::into_inner(locked).unlock::<T>();
    }

    /// # Safety
    ///
    /// Called as `dax_lock_mapping_entry()`.
    unsafe extern "C" fn lock_entry(
        mapping: *mut bindings::address_space,
        index: c_ulong,
        page: *mut *mut bindings::page,
    ) -> c_ulong {
        // SAFETY: The caller's argument is valid for the call.
        let mapping = unsafe { AddressSpace::from_raw(mapping) };
        let (cookie, pfn) = T::lock_mapping_entry(mapping, index);
        if let Some(pfn) = pfn {
            // SAFETY: `page` is valid for writing; the pfn is that of an entry.
            unsafe { *page = bindings::rpmem_pfn_page(pfn) };
        }
        cookie
    }

    /// # Safety
    ///
    /// Called as `dax_unlock_mapping_entry()`.
    unsafe extern "C" fn unlock_entry(
        mapping: *mut bindings::address_space,
        index: c_ulong,
        cookie: c_ulong,
    ) {
        // SAFETY: The caller's argument is valid for the call.
        T::unlock_mapping_entry(unsafe { AddressSpace::from_raw(mapping) }, index, cookie);
    }

    /// Hands the results of zeroing to C.
    ///
    /// # Safety
    ///
    /// `did_zero` must be null or valid for writing.
    unsafe fn zeroed((result, zeroed): (Result, bool), did_zero: *mut bool) -> c_int {
        if zeroed && !did_zero.is_null() {
            // SAFETY: By the function's requirement.
            unsafe { *did_zero = true };
        }
        from_result(|| result.map(|()| 0))
    }

    /// # Safety
    ///
    /// Called as `dax_zero_range()`.
    unsafe extern "C" fn zero_range(
        inode: *mut bindings::inode,
        pos: i64,
        len: i64,
        did_zero: *mut bool,
        ops: *const bindings::iomap_ops,
    ) -> c_int {
        // SAFETY: The caller's arguments are valid for the call.
        unsafe {
            let done = T::zero_range(Inode::from_raw(inode), pos, len, IomapOps::from_raw(ops));
            Self::zeroed(done, did_zero)
        }
    }

    /// # Safety
    ///
    /// Called as `dax_truncate_page()`.
    unsafe extern "C" fn truncate_page(
        inode: *mut bindings::inode,
        pos: i64,
        did_zero: *mut bool,
        ops: *const bindings::iomap_ops,
    ) -> c_int {
        // SAFETY: The caller's arguments are valid for the call.
        unsafe {
            let done = T::truncate_page(Inode::from_raw(inode), pos, IomapOps::from_raw(ops));
            Self::zeroed(done, did_zero)
        }
    }

    /// # Safety
    ///
    /// Called as `dax_file_unshare()`.
    unsafe extern "C" fn file_unshare(
        inode: *mut bindings::inode,
        pos: i64,
        len: i64,
        ops: *const bindings::iomap_ops,
    ) -> c_int {
        // SAFETY: The caller's arguments are valid for the call.
        let (inode, ops) = unsafe { (Inode::from_raw(inode), IomapOps::from_raw(ops)) };
        from_result(|| T::file_unshare(inode, pos, len, ops).map(|()| 0))
    }

    /// # Safety
    ///
    /// Called as `noop_dirty_folio()`, with a mapping that is on one of our disks.
    unsafe extern "C" fn dirty_folio(
        mapping: *mut bindings::address_space,
        folio: *mut bindings::folio,
    ) -> bool {
        // SAFETY: The caller's arguments are valid for the call. Of a file that is not DAX the folio
        // may be other memory: `T` asks that first, and then only sets its flag.
        let (mapping, folio) = unsafe { (AddressSpace::from_raw(mapping), Folio::from_raw(folio)) };
        T::dirty_folio(mapping, folio)
    }
}
