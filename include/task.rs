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
