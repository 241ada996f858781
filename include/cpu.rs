// SPDX-License-Identifier: GPL-2.0

//! What the processor can do.
//!
//! C header: [`arch/x86/include/asm/cpufeature.h`](srctree/arch/x86/include/asm/cpufeature.h)

use super::bindings;

pub(crate) use crate::arch::Features;

impl Features {
    /// The boot processor's features; the kernel refuses to bring up processors that have less.
    pub(crate) fn get() -> Self {
        // SAFETY: These read constants of a running kernel.
        unsafe {
            Self {
                clwb: bindings::rpmem_cpu_has_clwb(),
                clflushopt: bindings::rpmem_cpu_has_clflushopt(),
                clflush: bindings::rpmem_cpu_has_clflush(),
            }
        }
    }
}

/// Bytes that one cache write-back instruction writes back.
pub(crate) fn cache_line_size() -> usize {
    // SAFETY: Reads a constant of a running kernel.
    unsafe { bindings::rpmem_cpu_cache_line() as usize }
}

/// The number of the CPU this runs on; it may be another one right after.
#[inline]
pub(crate) fn id() -> usize {
    // SAFETY: Has no requirements.
    unsafe { bindings::rpmem_cpu_id() as usize }
}
