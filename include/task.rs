// SPDX-License-Identifier: GPL-2.0

//! Giving the CPU away.
//!
//! C header: [`include/linux/sched.h`](srctree/include/linux/sched.h)

use super::bindings;

/// Lets others run if they should. Context: may sleep.
#[inline]
pub(crate) fn cond_resched() {
    // SAFETY: May be called wherever sleeping is allowed; where it is not, C complains.
    unsafe { bindings::rpmem_cond_resched() };
}

/// Whether others should run.
#[inline]
pub(crate) fn need_resched() -> bool {
    // SAFETY: Has no requirements.
    unsafe { bindings::rpmem_need_resched() }
}

/// Whether this thread is to be killed.
#[inline]
pub(crate) fn fatal_signal_pending() -> bool {
    // SAFETY: Has no requirements.
    unsafe { bindings::rpmem_fatal_signal_pending() }
}
