// SPDX-License-Identifier: GPL-2.0

//! Cache lines, and the flush and zero loops on memory of this process.

#![allow(dead_code)]

#[path = "../../../arch"]
mod arch {
    pub(crate) mod lines;
    #[cfg(target_arch = "x86_64")]
    pub(crate) mod x86;
}

use arch::lines::{lines, LINE};
use proptest::prelude::*;

proptest! {
    #[test]
    fn every_byte_is_in_a_line_and_every_line_has_one(addr in 0..usize::MAX / 2, len in 0..1usize << 30) {
        let l = lines(addr, len);
        prop_assert_eq!(l.first % LINE, 0);
        if len == 0 {
            prop_assert_eq!(l.nr, 0);
            return Ok(());
        }
        let end = l.first + l.nr * LINE;
        prop_assert!(l.first <= addr && addr - l.first < LINE, "head");
        prop_assert!(addr + len <= end && end - (addr + len) < LINE, "tail");
    }
}

#[cfg(target_arch = "x86_64")]
mod on_x86 {
    use super::*;
    use arch::x86::{fence, write_back, zero, Features, Isa};

    fn isas() -> Vec<Isa> {
        let mut isas = vec![Isa::Clflush];
        // CPUID leaf 7: EBX bit 23 is CLFLUSHOPT, bit 24 CLWB.
        // SAFETY: Every x86-64 processor has leaf 7.
        let ebx = unsafe { core::arch::x86_64::__cpuid_count(7, 0) }.ebx;
        if ebx & (1 << 23) != 0 {
            isas.push(Isa::Clflushopt);
        }
        if ebx & (1 << 24) != 0 {
            isas.push(Isa::Clwb);
        }
        isas
    }

    #[test]
    fn the_best_instruction_is_chosen() {
        let f = |clwb, clflushopt, clflush| Features {
            clwb,
            clflushopt,
            clflush,
        };
        assert_eq!(Isa::best(&f(true, true, true)), Some(Isa::Clwb));
        assert_eq!(Isa::best(&f(false, true, true)), Some(Isa::Clflushopt));
        assert_eq!(Isa::best(&f(false, false, true)), Some(Isa::Clflush));
        assert_eq!(Isa::best(&f(false, false, false)), None);
        for isa in [Isa::Clwb, Isa::Clflushopt, Isa::Clflush] {
            assert_eq!(Isa::from_u8(isa as u8), isa);
        }
    }

    proptest! {
        #[test]
        fn writing_back_changes_nothing(start in 0..5000usize, len in 0..9000usize) {
            let mem: Vec<u8> = (0..16384u32).map(|i| (i * 7) as u8).collect();
            let copy = mem.clone();
            for isa in isas() {
                // SAFETY: The bytes are in `mem`; the processor has the instruction.
                unsafe { write_back(isa, mem.as_ptr() as usize + start, len) };
                fence();
            }
            prop_assert_eq!(mem, copy);
        }

        #[test]
        fn zeroing_is_exact(first in 1..100usize, nr in 0..100usize) {
            let mut mem = vec![0xffu8; 16384 + LINE];
            let base = (mem.as_mut_ptr() as usize).next_multiple_of(LINE);
            // SAFETY: At most 200 of 256 lines of `mem`, which is ours.
            unsafe { zero(base + first * LINE, nr * LINE) };
            fence();
            let skip = base - mem.as_ptr() as usize;
            for (i, byte) in mem[skip..].iter().enumerate() {
                let zeroed = (first * LINE..(first + nr) * LINE).contains(&i);
                prop_assert_eq!(*byte, if zeroed { 0 } else { 0xff }, "byte {}", i);
            }
        }
    }
}
