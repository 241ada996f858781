// SPDX-License-Identifier: GPL-2.0

//! Giving the CPU away.
//!
//! C header: [`include/linux/sched.h`](srctree/include/linux/sched.h)

use super::bindings;
use kernel::types::NotThreadSafe;

/// Lets others run if they should. Context: may sleep.
#[inline]
pub(crate) fn cond_resched() {
    // SAFETY: May be called wherever sleeping is allowed; where it is not, C complains.
    unsafe { bindings::rpmem_cond_resched() };
}

/// Waits for whoever is in an RCU read-side section, or has page tables locked. Context: may sleep; some
/// 10 microseconds.
pub(crate) fn synchronize_rcu_expedited() {
    // SAFETY: May be called wherever sleeping is allowed.
    unsafe { bindings::synchronize_rcu_expedited() };
}

/// Whether others should run.
#[inline]
pub(crate) fn need_resched() -> bool {
    // SAFETY: Has no requirements.
    unsafe { bindings::rpmem_need_resched() }
}

/// `pagefault_disable()`: accesses to user memory that is not there fail, while this lives.
pub(crate) struct NoPageFaults(NotThreadSafe);

impl NoPageFaults {
    /// From now on.
    #[inline]
    pub(crate) fn new() -> Self {
        // SAFETY: Has no requirements.
        unsafe { bindings::rpmem_pagefault_disable() };
        Self(NotThreadSafe)
    }
}

impl Drop for NoPageFaults {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: Disabled by `new`, in this thread.
        unsafe { bindings::rpmem_pagefault_enable() };
    }
}

/// Whether this thread is to be killed.
#[inline]
pub(crate) fn fatal_signal_pending() -> bool {
    // SAFETY: Has no requirements.
    unsafe { bindings::rpmem_fatal_signal_pending() }
}
