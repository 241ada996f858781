// SPDX-License-Identifier: GPL-2.0

//! Three ways to write cache lines back and wait for it: the module's own loops (the files of
//! arch/), libpmem's, and one instruction per line as the kernel's `clwb_cache_range()` has it.

#![allow(dead_code, reason = "of arch/ only the loops are used")]

use std::arch::asm;
use std::ffi::c_void;

#[path = "../../../arch"]
mod arch {
    pub(crate) mod lines;
    pub(crate) mod x86;
}

use arch::lines::lines;
use arch::x86;

/// The instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    Clwb,
    Clflushopt,
    Clflush,
}

impl Isa {
    pub const ALL: [Isa; 3] = [Isa::Clwb, Isa::Clflushopt, Isa::Clflush];

    pub fn name(self) -> &'static str {
        match self {
            Isa::Clwb => "clwb",
            Isa::Clflushopt => "clflushopt",
            Isa::Clflush => "clflush",
        }
    }

    /// Whether this processor has it.
    pub fn is_here(self) -> bool {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let flags = cpuinfo
            .lines()
            .find(|l| l.starts_with("flags"))
            .unwrap_or_default();
        let flag = match self {
            Isa::Clflush => "clflush",
            isa => isa.name(),
        };
        flags.split_whitespace().any(|f| f == flag)
    }

    /// The environment in which libpmem chooses it.
    pub fn libpmem_environment(self) -> &'static [&'static str] {
        match self {
            Isa::Clwb => &[],
            Isa::Clflushopt => &["PMEM_NO_CLWB"],
            Isa::Clflush => &["PMEM_NO_CLWB", "PMEM_NO_CLFLUSHOPT"],
        }
    }

    fn ours(self) -> x86::Isa {
        match self {
            Isa::Clwb => x86::Isa::Clwb,
            Isa::Clflushopt => x86::Isa::Clflushopt,
            Isa::Clflush => x86::Isa::Clflush,
        }
    }
}

/// How many cache lines hold these bytes.
pub fn line_count(memory: &[u8]) -> usize {
    lines(memory.as_ptr() as usize, memory.len()).nr
}

/// The module's loops.
#[inline(never)]
pub fn ours(isa: Isa, memory: &[u8]) {
    // SAFETY: the memory is mapped; the caller has checked that the processor has `isa`.
    unsafe { x86::write_back(isa.ours(), memory.as_ptr() as usize, memory.len()) };
    x86::fence();
}

#[link(name = "pmem")]
extern "C" {
    fn pmem_flush(address: *const c_void, len: usize);
    fn pmem_drain();
}

/// libpmem's; its environment decides about the instruction when it is loaded.
#[inline(never)]
pub fn libpmem(memory: &[u8]) {
    // SAFETY: the memory is mapped.
    unsafe {
        pmem_flush(memory.as_ptr().cast(), memory.len());
        pmem_drain();
    }
}

/// One instruction, one addition and one branch per line.
#[inline(never)]
pub fn plain(isa: Isa, memory: &[u8]) {
    let l = lines(memory.as_ptr() as usize, memory.len());
    let end = l.first + l.nr * 64;
    macro_rules! each_line {
        ($insn:literal) => {{
            let mut p = l.first;
            while p < end {
                // SAFETY: the line is mapped; the caller has checked that the processor has `isa`.
                unsafe { asm!(concat!($insn, " [{}]"), in(reg) p, options(nostack, preserves_flags)) };
                p += 64;
            }
        }};
    }
    match isa {
        Isa::Clwb => each_line!("clwb"),
        Isa::Clflushopt => each_line!("clflushopt"),
        Isa::Clflush => each_line!("clflush"),
    }
    x86::fence();
}

/// Makes every line dirty, or leaves all of them clean and cached where the instruction does.
pub fn prepare(memory: &mut [u8], dirty: bool) {
    let base = memory.as_mut_ptr();
    for offset in (0..memory.len()).step_by(64) {
        // SAFETY: inside the slice.
        unsafe {
            let p = base.add(offset);
            if dirty {
                p.write_volatile(p.read_volatile().wrapping_add(1));
            } else {
                p.read_volatile();
            }
        }
    }
    // The last line of an unaligned piece.
    if let (true, Some(last)) = (dirty, memory.last_mut()) {
        *last = last.wrapping_add(1);
    }
}

/// The time stamp counter, with everything before it done.
#[inline(always)]
pub fn cycles() -> u64 {
    // SAFETY: neither instruction has requirements.
    unsafe {
        core::arch::x86_64::_mm_mfence();
        core::arch::x86_64::_mm_lfence();
        let t = core::arch::x86_64::_rdtsc();
        core::arch::x86_64::_mm_lfence();
        t
    }
}
