// SPDX-License-Identifier: GPL-2.0

//! Counts instructions around a piece of code, and tells the profiler (tests/profile) where it
//! begins and ends.

use std::arch::asm;
use std::sync::atomic::{AtomicBool, Ordering};

/// `nopl DISP(%rax)` with a displacement that tests/profile looks for.
macro_rules! mark {
    ($n:literal) => {
        // SAFETY: a NOP.
        unsafe {
            asm!(
                ".byte 0x0f, 0x1f, 0x80",
                concat!(".long ", $n),
                options(nostack, preserves_flags)
            )
        }
    };
}

/// Whether pieces are recorded by the profiler.
static RECORD: AtomicBool = AtomicBool::new(false);

/// What follows is recorded by the profiler, or not.
pub fn record(on: bool) {
    RECORD.store(on, Ordering::Relaxed);
}

/// Tells the profiler that another case begins.
pub fn next_case() {
    mark!("0x33504250"); // "PBP3"
}

/// The time stamp counter: guest instructions under `-icount shift=0`.
#[inline(always)]
fn now() -> u64 {
    // SAFETY: RDTSC has no requirements.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Instructions that `f` takes, and what it returns.
#[inline(always)]
pub fn count<R>(f: impl FnOnce() -> R) -> (u64, R) {
    if RECORD.load(Ordering::Relaxed) {
        mark!("0x31504250"); // "PBP1"
    }
    let start = now();
    let result = f();
    let end = now();
    if RECORD.load(Ordering::Relaxed) {
        mark!("0x32504250"); // "PBP2"
    }
    (end.wrapping_sub(start), result)
}
