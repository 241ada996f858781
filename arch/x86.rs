// SPDX-License-Identifier: GPL-2.0

//! Cache write-back on x86-64: CLWB, CLFLUSHOPT or CLFLUSH, and SFENCE.
//!
//! No kernel imports, so that `bench-flush` can run the same loops in user space.

use super::lines::{
    lines,
    LINE, //
};
use core::arch::asm;

/// The instruction that writes a line back, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Isa {
    /// Writes back, may keep the line; ordered by SFENCE.
    Clwb = 1,
    /// Writes back and evicts; ordered by SFENCE.
    Clflushopt = 2,
    /// Writes back and evicts; ordered with other CLFLUSHes and stores to the line.
    Clflush = 3,
}

/// What a processor can do, as far as it matters here.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Features {
    /// CLWB.
    pub(crate) clwb: bool,
    /// CLFLUSHOPT.
    pub(crate) clflushopt: bool,
    /// CLFLUSH.
    pub(crate) clflush: bool,
}

impl Isa {
    /// What every processor has.
    pub(crate) const LEAST: Self = Self::Clflush;

    /// The best instruction of a processor.
    pub(crate) fn best(f: &Features) -> Option<Self> {
        if f.clwb {
            Some(Self::Clwb)
        } else if f.clflushopt {
            Some(Self::Clflushopt)
        } else if f.clflush {
            Some(Self::Clflush)
        } else {
            None
        }
    }

    /// The instruction with this number.
    #[inline]
    pub(crate) fn from_u8(n: u8) -> Self {
        match n {
            1 => Self::Clwb,
            2 => Self::Clflushopt,
            _ => Self::Clflush,
        }
    }
}

/// Lines per turn of the unrolled loops: a page.
const UNROLL: usize = 64;

/// One write-back instruction, at `$addr`. A page that a machine check has taken out of the linear map
/// (set_mce_nospec()) faults: its lines are passed over, there is nothing in them to be saved. An entry
/// of the exception table is as `_ASM_EXTABLE()` of the kernel's asm/asm.h makes it; in user space
/// nobody reads it.
macro_rules! write_back_line {
    ($insn:literal, $addr:literal) => {
        concat!(
            "771: ",
            $insn,
            " ",
            $addr,
            "\n",
            "772:\n",
            ".pushsection __ex_table, \"a\"\n",
            ".balign 4\n",
            ".long 771b - .\n",
            ".long 772b - .\n",
            ".long 1\n", // EX_TYPE_DEFAULT
            ".popsection",
        )
    };
}

macro_rules! write_back_loop {
    ($(#[$doc:meta])* $name:ident, $insn:literal) => {
        $(#[$doc])*
        ///
        /// # Safety
        ///
        /// All `nr` lines from `p` on must be in memory that is, or was, in the linear map.
        #[inline]
        unsafe fn $name(mut p: usize, mut nr: usize) {
            while nr >= UNROLL {
                // SAFETY: The instruction does not change what is in memory, and may fault.
                unsafe {
                    asm!(
                        concat!(
                            ".irp line, ",
                            "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, ",
                            "16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, ",
                            "32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47, ",
                            "48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63",
                        ),
                        write_back_line!($insn, "[{p} + 64 * \\line]"),
                        ".endr",
                        p = in(reg) p,
                        options(nostack, preserves_flags),
                    );
                }
                p += UNROLL * LINE;
                nr -= UNROLL;
            }
            while nr > 0 {
                // SAFETY: As above.
                unsafe {
                    asm!(
                        write_back_line!($insn, "[{p}]"),
                        p = in(reg) p,
                        options(nostack, preserves_flags),
                    );
                }
                p += LINE;
                nr -= 1;
            }
        }
    };
}

write_back_loop!(
    /// Writes lines back with CLWB.
    clwb,
    "clwb"
);
write_back_loop!(
    /// Writes lines back with CLFLUSHOPT.
    clflushopt,
    "clflushopt"
);
write_back_loop!(
    /// Writes lines back with CLFLUSH.
    clflush,
    "clflush"
);

/// Starts to write back all lines that hold the bytes `addr..addr + len`. They are durable only
/// after [`fence`].
///
/// # Safety
///
/// The bytes must be in memory that is, or was, in the linear map, and the processor must have the
/// instruction.
#[inline]
pub(crate) unsafe fn write_back(isa: Isa, addr: usize, len: usize) {
    let l = lines(addr, len);
    // SAFETY: Lines do not cross pages, so they are where their bytes are.
    unsafe {
        match isa {
            Isa::Clwb => clwb(l.first, l.nr),
            Isa::Clflushopt => clflushopt(l.first, l.nr),
            Isa::Clflush => clflush(l.first, l.nr),
        }
    }
}

/// Orders all write-backs and non-temporal stores of this CPU before what follows.
#[inline]
pub(crate) fn fence() {
    // SAFETY: SFENCE has no operands.
    unsafe { asm!("sfence", options(nostack, preserves_flags)) };
}

/// Stores of 8 bytes of zeroes to the cache line at `{p} + $base`, past the cache.
macro_rules! zero_line {
    ($base:literal) => {
        concat!(
            "movnti [{p} + ",
            $base,
            "], {z}\n",
            "movnti [{p} + ",
            $base,
            " + 8], {z}\n",
            "movnti [{p} + ",
            $base,
            " + 16], {z}\n",
            "movnti [{p} + ",
            $base,
            " + 24], {z}\n",
            "movnti [{p} + ",
            $base,
            " + 32], {z}\n",
            "movnti [{p} + ",
            $base,
            " + 40], {z}\n",
            "movnti [{p} + ",
            $base,
            " + 48], {z}\n",
            "movnti [{p} + ",
            $base,
            " + 56], {z}\n",
        )
    };
}

/// Lines per turn of the zeroing loop: nothing but the stores is left to be saved.
const ZERO_UNROLL: usize = 4;

/// Fills `len` bytes from `addr` on with zeroes, past the cache. They are durable only after
/// [`fence`].
///
/// # Safety
///
/// The bytes must be mapped writable and nobody may hold a reference to them. `addr` and `len` must
/// be multiples of [`LINE`].
#[inline]
pub(crate) unsafe fn zero(addr: usize, len: usize) {
    let mut p = addr;
    for _ in 0..len / (ZERO_UNROLL * LINE) {
        // SAFETY: The caller promises that these lines are ours to write.
        unsafe {
            asm!(
                zero_line!("0"),
                zero_line!("64"),
                zero_line!("128"),
                zero_line!("192"),
                p = in(reg) p,
                z = in(reg) 0usize,
                options(nostack, preserves_flags),
            );
        }
        p = p.wrapping_add(ZERO_UNROLL * LINE);
    }
    for _ in 0..len / LINE % ZERO_UNROLL {
        // SAFETY: As above.
        unsafe {
            asm!(
                zero_line!("0"),
                p = in(reg) p,
                z = in(reg) 0usize,
                options(nostack, preserves_flags),
            );
        }
        p = p.wrapping_add(LINE);
    }
}
