// SPDX-License-Identifier: GPL-2.0

//! Redirecting kernel functions, for some of their calls: what livepatch does, decided per call.
//!
//! C header: [`include/linux/ftrace.h`](srctree/include/linux/ftrace.h)
//!
//! One `ftrace_ops` has all functions as filters, as each registration costs a stop of the whole
//! machine. Its handler runs at the entry of each of these functions, finds by its first argument
//! which superblock the call is about, and lets the call go to the Rust function if the superblock
//! is on one of the driver's disks. All others go on in C. Two functions have a folio, which may be
//! no file's: see [`Subject`].

use super::{
    bindings,
    dev_pagemap::has_pfns,
    folio::is_head,
    gendisk, //
};
use core::{
    marker::PhantomPinned,
    pin::Pin,
    ptr::null_mut,
    sync::atomic::{
        AtomicPtr,
        AtomicUsize,
        Ordering, //
    }, //
};
use kernel::{
    error::to_result,
    ffi::{
        c_int,
        c_uchar,
        c_ulong, //
    },
    prelude::*,
    sync::rcu,
    types::Opaque, //
};

/// What the first argument of a function is, or whose calls are ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    /// `struct kiocb *`
    Kiocb,
    /// `struct vm_fault *`
    VmFault,
    /// `struct address_space *`
    Mapping,
    /// `struct inode *`
    Inode,
    /// `struct folio *`: of a file on our disks, or of our memory (as far as [`has_pfns`] knows it) and
    /// no file's for itself. (The C function would look for its file once more, and find one of ours
    /// that has come meanwhile.)
    Folio,
    /// The second argument is what the function for [`Subject::Folio`] has returned: an address if that
    /// was ours, odd if it was C's.
    LockedFolio,
}

/// A function to be redirected.
pub(super) struct Redirect {
    /// Its name.
    pub(super) name: &'static CStr,
    /// What its first argument is.
    pub(super) subject: Subject,
    /// The function to go to, of the same type.
    pub(super) target: *const (),
}

// SAFETY: `target` is the address of a function.
unsafe impl Sync for Redirect {}

/// Functions that can be redirected, as many as are known by address.
const SLOTS: usize = 256;

/// The redirection at an address, found by hash. Filled when an address is met for the first time,
/// never changed after that.
struct Slot {
    ip: AtomicUsize,
    redirect: AtomicPtr<Redirect>,
}

static TABLE: [Slot; SLOTS] = [const {
    Slot {
        ip: AtomicUsize::new(0),
        redirect: AtomicPtr::new(null_mut()),
    }
}; SLOTS];

/// The registered hooks. Dropping it takes them out and waits until nobody is in the handler.
///
/// # Invariants
///
/// `ops` is registered and pinned.
#[pin_data(PinnedDrop)]
#[repr(transparent)]
pub(super) struct Hooks {
    #[pin]
    ops: Opaque<bindings::ftrace_ops>,
    #[pin]
    _pin: PhantomPinned,
}

// SAFETY: Registered ops are not tied to a thread.
unsafe impl Send for Hooks {}
// SAFETY: There are no methods.
unsafe impl Sync for Hooks {}

/// Why hooks could not be set.
pub(crate) enum HookError {
    /// This kernel does not have the function, or not where it can be hooked.
    NoFunction(&'static CStr, Error),
    /// `EBUSY`: somebody else (a livepatch) redirects one of the functions, or function tracing is
    /// switched off.
    Register(Error),
    /// No memory.
    NoMemory,
}

impl Hooks {
    /// Sets all hooks or none, for calls that concern a superblock on a disk of `D`'s.
    ///
    /// # Safety
    ///
    /// The targets must have the types of the functions, and work for calls that concern such
    /// superblocks. No such superblock may exist yet, and none may exist when the hooks are dropped.
    pub(super) unsafe fn set<D: gendisk::Operations>(
        redirects: &'static [Redirect],
    ) -> core::result::Result<Pin<KBox<Self>>, HookError> {
        REDIRECTS.store(redirects.as_ptr().cast_mut(), Ordering::Relaxed);
        NR_REDIRECTS.store(redirects.len(), Ordering::Release);

        let ops = bindings::ftrace_ops {
            func: Some(handler::<D>),
            // The handler calls nothing that is hooked: no recursion protection needed. Permanent:
            // live mappings must not change sides when tracing is switched off.
            flags: (bindings::FTRACE_OPS_FL_IPMODIFY | bindings::FTRACE_OPS_FL_PERMANENT) as usize,
            ..Default::default()
        };
        let ops: Pin<KBox<Opaque<bindings::ftrace_ops>>> =
            KBox::pin(Opaque::new(ops), GFP_KERNEL).map_err(|_| HookError::NoMemory)?;
        let found = filter_by_address(ops.get(), redirects);
        for (i, r) in redirects.iter().enumerate() {
            if found & 1 << i != 0 {
                continue;
            }
            // SAFETY: `ops` is valid; the name is only read.
            let ret = unsafe {
                bindings::ftrace_set_filter(
                    ops.get(),
                    r.name.as_char_ptr().cast_mut().cast::<c_uchar>(),
                    r.name.to_bytes().len() as c_int,
                    0,
                )
            };
            if let Err(e) = to_result(ret) {
                // SAFETY: Not registered.
                unsafe { bindings::ftrace_free_filter(ops.get()) };
                return Err(HookError::NoFunction(r.name, e));
            }
        }
        // SAFETY: `ops` is pinned, and stays until it is unregistered.
        if let Err(e) = to_result(unsafe { bindings::register_ftrace_function(ops.get()) }) {
            // SAFETY: Not registered.
            unsafe { bindings::ftrace_free_filter(ops.get()) };
            return Err(HookError::Register(e));
        }
        // SAFETY: `Hooks` is an `Opaque<ftrace_ops>` and a zero-sized marker, pinned in both forms.
        // INVARIANT: Registered above.
        Ok(unsafe {
            Pin::new_unchecked(KBox::from_raw(
                KBox::into_raw(Pin::into_inner_unchecked(ops)).cast(),
            ))
        })
    }
}

#[pinned_drop]
impl PinnedDrop for Hooks {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: Registered by the type's invariant. Waits for handlers that are running.
        unsafe {
            bindings::unregister_ftrace_function(self.ops.get());
            bindings::ftrace_free_filter(self.ops.get());
        }
        for slot in &TABLE {
            slot.redirect.store(null_mut(), Ordering::Relaxed);
            slot.ip.store(0, Ordering::Relaxed);
        }
    }
}

static REDIRECTS: AtomicPtr<Redirect> = AtomicPtr::new(null_mut());
static NR_REDIRECTS: AtomicUsize = AtomicUsize::new(0);

/// The superblock that a call is about.
///
/// # Safety
///
/// `arg` must be what `subject` says, valid for the call, and the caller in RCU if it is a folio.
#[inline(always)]
unsafe fn superblock(subject: Subject, arg: usize) -> Option<*mut bindings::super_block> {
    // SAFETY: The objects hold each other: request, file, mapping, inode, superblock. A folio does
    // not hold its mapping, but inodes are freed after a grace period, and the caller is in RCU.
    unsafe {
        let mapping: *mut bindings::address_space = match subject {
            Subject::Inode => return Some((*(arg as *mut bindings::inode)).i_sb),
            Subject::Mapping => arg as *mut _,
            Subject::Kiocb => (*(*(arg as *mut bindings::kiocb)).ki_filp).f_mapping,
            Subject::VmFault => {
                let vma = (*(arg as *mut bindings::vm_fault)).__bindgen_anon_1.vma;
                (*(*vma).vm_file).f_mapping
            }
            Subject::LockedFolio => return None,
            Subject::Folio => bindings::rpmem_folio_mapping(arg as *mut _),
        };
        // Nobody holds the folio: it can be a part of a larger one by now, with other words.
        if subject == Subject::Folio && !is_head(arg as *mut _) {
            return None;
        }
        // Null, or not a pointer to an address space (anonymous memory and the like).
        if mapping.is_null() || mapping as usize & 3 != 0 {
            return None;
        }
        // The swap cache has no host.
        let host = (*mapping).host;
        (!host.is_null()).then(|| (*host).i_sb)
    }
}

/// # Safety
///
/// Called by ftrace at the entry of one of the redirected functions.
unsafe extern "C" fn handler<D: gendisk::Operations>(
    ip: c_ulong,
    _parent_ip: c_ulong,
    _ops: *mut bindings::ftrace_ops,
    fregs: *mut bindings::ftrace_regs,
) {
    // SAFETY: On x86-64 `ftrace_regs` begins with the registers (asm/ftrace.h).
    let regs = unsafe { &mut *fregs.cast::<bindings::pt_regs>() };
    let Some(redirect) = lookup(ip) else {
        return;
    };
    let _rcu = (redirect.subject == Subject::Folio).then(rcu::read_lock);
    // SAFETY: The first argument of these functions is what the table says; the superblock is in
    // use, so its block device is null or open. One that is found through a folio was so when the RCU
    // section began: inode, superblock and disk are freed after a grace period.
    let ours = unsafe {
        match superblock(redirect.subject, regs.di) {
            Some(sb) => {
                let bdev = (*sb).s_bdev;
                !bdev.is_null() && gendisk::data_of::<D>((*bdev).bd_disk).is_some()
            }
            None => match redirect.subject {
                Subject::Folio => has_pfns(bindings::rpmem_folio_pfn(regs.di as *mut _), 1),
                Subject::LockedFolio => regs.si & 1 == 0,
                _ => false,
            },
        }
    };
    if ours {
        // ftrace_regs_set_instruction_pointer()
        regs.ip = redirect.target as usize;
    }
}

#[inline(always)]
fn slot_of(ip: usize) -> usize {
    // Fibonacci hashing: functions begin at multiples of 16.
    (ip >> 4).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (usize::BITS - SLOTS.trailing_zeros())
}

#[inline(always)]
fn lookup(ip: usize) -> Option<&'static Redirect> {
    let slot = &TABLE[slot_of(ip)];
    if slot.ip.load(Ordering::Acquire) == ip {
        // SAFETY: Null or an element of the static table.
        return unsafe { slot.redirect.load(Ordering::Relaxed).as_ref() };
    }
    lookup_slow(ip)
}

/// Finds the slot of an address by probing, or the name of a new one by asking for its symbol.
#[cold]
fn lookup_slow(ip: usize) -> Option<&'static Redirect> {
    let first = slot_of(ip);
    for i in 0..SLOTS {
        let slot = &TABLE[(first + i) % SLOTS];
        match slot.ip.load(Ordering::Acquire) {
            0 => break,
            found if found == ip => {
                // SAFETY: Null or an element of the static table.
                return unsafe { slot.redirect.load(Ordering::Relaxed).as_ref() };
            }
            _ => {}
        }
    }
    let redirect = by_name(ip)?;
    for i in 0..SLOTS {
        let slot = &TABLE[(first + i) % SLOTS];
        // The pointer is claimed first, so that whoever sees the address sees the pointer.
        let claimed = slot.redirect.compare_exchange(
            null_mut(),
            core::ptr::from_ref(redirect).cast_mut(),
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
        match claimed {
            Ok(_) => {
                slot.ip.store(ip, Ordering::Release);
                break;
            }
            // Another CPU has just met the same address.
            Err(other) if core::ptr::eq(other, redirect) => break,
            Err(_) => {}
        }
    }
    Some(redirect)
}

/// Sets filters for those functions whose addresses are easily found, and returns which, as a bit
/// mask.
///
/// A filter by name makes ftrace look at the names of all functions of the kernel, 0.1 s each under
/// emulation. But all of them are neighbours of two that are exported: the names around those are
/// looked at here. What is not found so is left to a filter by name.
fn filter_by_address(ops: *mut bindings::ftrace_ops, redirects: &[Redirect]) -> u64 {
    /// Bytes looked at on either side of an exported function; fs/dax.c is some 20 KiB long.
    const AROUND: usize = 32 << 10;
    /// No function begins between multiples of this (CONFIG_FUNCTION_ALIGNMENT_16B).
    const STEP: usize = 16;

    let dax = bindings::dax_iomap_rw as usize;
    let neighbours = (dax.saturating_sub(AROUND)..dax.saturating_add(AROUND)).step_by(STEP);
    let mut found = 0u64;
    let dirty = bindings::noop_dirty_folio as usize;
    for ip in Iterator::chain(neighbours, [dirty]) {
        let Some(i) = redirect_at(ip, redirects) else {
            continue;
        };
        // The first address with the name is where the function begins.
        if found & 1 << i == 0 {
            // SAFETY: `ops` is valid. ftrace refuses an address that is no function's.
            let ret = unsafe { bindings::ftrace_set_filter_ip(ops, ip, 0, 0) };
            if ret == 0 {
                found |= 1 << i;
            }
        }
    }
    found
}

/// The redirection of the function at `ip`.
fn by_name(ip: usize) -> Option<&'static Redirect> {
    // SAFETY: Set before the hooks were.
    let redirects = unsafe {
        core::slice::from_raw_parts(
            REDIRECTS.load(Ordering::Relaxed),
            NR_REDIRECTS.load(Ordering::Acquire),
        )
    };
    redirects.get(redirect_at(ip, redirects)?)
}

/// Which of the functions is at `ip`.
fn redirect_at(ip: usize, redirects: &[Redirect]) -> Option<usize> {
    let mut buf = [0u8; bindings::RPMEM_KSYM_SYMBOL_LEN as usize];
    // SAFETY: The buffer is as long as symbols can be.
    let len = unsafe { bindings::sprint_symbol_no_offset(buf.as_mut_ptr().cast(), ip) };
    let name = buf.get(..usize::try_from(len).ok()?)?;
    redirects.iter().position(|r| r.name.to_bytes() == name)
}
