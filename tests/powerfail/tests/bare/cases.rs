// SPDX-License-Identifier: GPL-2.0

// The cases of the payload. The number in the comment is the entry in bare.rs.
{
    // 0: a store alone
    run(&|p, point| {
        store(p, A);
        sfence();
        point(0);
    });
    // 1: CLWB, SFENCE
    run(&|p, point| {
        store(p, A);
        clwb(p + 63);
        point(0);
        sfence();
        point(1);
    });
    // 2: CLFLUSHOPT, MFENCE
    run(&|p, point| {
        store(p, A);
        clflushopt(p);
        point(0);
        mfence();
        point(1);
    });
    // 3: CLFLUSH orders itself
    run(&|p, point| {
        store(p, A);
        clflush(p + 8);
        point(0);
    });
    // 4: a fence before the write-back does not count
    run(&|p, point| {
        store(p, A);
        sfence();
        clwb(p);
        point(0);
        sfence();
        point(1);
    });
    // 5: a store after the write-back stays in the cache
    run(&|p, point| {
        store(p, A);
        clwb(p);
        store(p, B);
        store(p + 8, B);
        sfence();
        point(0);
    });
    // 6: an unaligned store over two lines, the first written back, then both
    run(&|p, point| {
        store(p + 60, A);
        clwb(p);
        sfence();
        point(0);
        clwb(p + 64);
        sfence();
        point(1);
    });
    // 7: an unaligned store over two pages
    run(&|p, point| {
        store(p + 4093, A);
        clwb(p + 4096);
        sfence();
        point(0);
        clwb(p + 4032);
        sfence();
        point(1);
    });
    // 8: REP MOVSB of 200 bytes from byte 10 on, all lines but the last
    run(&|p, point| {
        let from = [0xabu8; 200];
        unsafe {
            asm!("rep movsb", inout("rcx") 200u64 => _, inout("rsi") from.as_ptr() => _,
                 inout("rdi") p + 10 => _, options(nostack))
        }
        for line in 0..3 {
            clwb(p + line * 64);
        }
        sfence();
        point(0);
    });
    // 9: REP STOSQ of 128 bytes, CLFLUSHOPT of the second line
    run(&|p, point| {
        unsafe {
            asm!("rep stosq", inout("rcx") 16u64 => _, in("rax") B, inout("rdi") p => _,
                 options(nostack))
        }
        clflushopt(p + 64);
        sfence();
        point(0);
    });
    // 10: MOVNTI takes its bytes, not the line
    run(&|p, point| {
        store(p + 8, B);
        movnti(p, A);
        point(0);
        sfence();
        point(1);
    });
    // 11: MOVNTI over two lines, and of 4 bytes
    run(&|p, point| {
        movnti(p + 61, A);
        unsafe { asm!("movnti [{}], {:e}", in(reg) p + 128, in(reg) B, options(nostack)) }
        sfence();
        point(0);
    });
    // 12: MOVNTDQ, VMOVNTDQ (32 bytes), MOVNTPS, VMOVNTPD
    run(&|p, point| {
        unsafe {
            asm!("movq xmm0, {a}", "punpcklqdq xmm0, xmm0", "vinsertf128 ymm1, ymm0, xmm0, 1",
                 "movntdq [{p}], xmm0", "vmovntdq [{p} + 64], ymm1",
                 "movntps [{p} + 128], xmm0", "vmovntpd [{p} + 192], ymm1",
                 a = in(reg) A, p = in(reg) p, out("xmm0") _, out("xmm1") _, options(nostack))
        }
        point(0);
        sfence();
        point(1);
    });
    // 13: MASKMOVDQU stores the bytes whose mask has the top bit: here every other one
    run(&|p, point| {
        let mask = 0x80_00_80_00_80_00_80_00u64;
        unsafe {
            asm!("movq xmm0, {a}", "punpcklqdq xmm0, xmm0", "movq xmm1, {m}",
                 "punpcklqdq xmm1, xmm1", "maskmovdqu xmm0, xmm1",
                 a = in(reg) A, m = in(reg) mask, in("rdi") p, out("xmm0") _, out("xmm1") _,
                 options(nostack))
        }
        sfence();
        point(0);
    });
    // 14: ordinary vector stores over two lines: MOVDQU, VMOVDQU
    run(&|p, point| {
        unsafe {
            asm!("movq xmm0, {a}", "punpcklqdq xmm0, xmm0", "vinsertf128 ymm1, ymm0, xmm0, 1",
                 "movdqu [{p} + 56], xmm0", "vmovdqu [{p} + 176], ymm1",
                 a = in(reg) A, p = in(reg) p, out("xmm0") _, out("xmm1") _, options(nostack))
        }
        clwb(p + 64);
        clwb(p + 128);
        sfence();
        point(0);
    });
    // 15: a locked operation fences (unless strict); it does not write back what it stores
    run(&|p, point| {
        store(p, A);
        clwb(p);
        unsafe { asm!("lock add qword ptr [{}], 1", in(reg) p + 64, options(nostack)) }
        point(0);
        sfence();
        point(1);
    });
    // 16: so does XCHG with memory, without the prefix
    run(&|p, point| {
        store(p, A);
        clwb(p);
        let mut x = B;
        unsafe { asm!("xchg [{}], {}", in(reg) p + 64, inout(reg) x, options(nostack)) }
        point(0);
        sfence();
        point(1);
        let _ = x;
    });
    // 17: XCHG of registers and LFENCE do not
    run(&|p, point| {
        store(p, A);
        clwb(p);
        let (mut x, mut y) = (A, B);
        unsafe { asm!("xchg {}, {}", "lfence", inout(reg) x, inout(reg) y, options(nostack)) }
        let _ = (x, y);
        point(0);
        sfence();
        point(1);
    });
    // 18: atomic read-modify-writes, written back: LOCK XADD, LOCK CMPXCHG16B, LOCK BTS
    run(&|p, point| {
        unsafe {
            asm!("lock xadd [{p}], {a}", "lock bts qword ptr [{p} + 8], 63",
                 p = in(reg) p, a = inout(reg) A => _, options(nostack));
            asm!("push rbx", "mov rbx, {a}", "lock cmpxchg16b [rdi + 16]", "pop rbx",
                 a = in(reg) A, in("rdi") p, inout("rax") 0u64 => _, inout("rdx") 0u64 => _,
                 in("rcx") B)
        }
        clwb(p);
        sfence();
        point(0);
    });
    // 19: operands: base + index * 8 + displacement, R13 and R12 as bases
    run(&|p, point| {
        store(p, A);
        store(p + 64, A);
        store(p + 128, A);
        unsafe {
            asm!("clwb [r13 + r12 * 8 - 0x800]", in("r13") p + 0x700, in("r12") 0x20u64, options(nostack));
            asm!("clwb [r12 + 64]", in("r12") p, options(nostack));
            asm!("clwb [r13 + 128]", in("r13") p, options(nostack));
        }
        sfence();
        point(0);
    });
    // 20: relative to RIP, through the alias at 1 GiB (case 20 lies at 20 * 8192 = 0x28000)
    run(&|p, point| {
        store(p, A);
        unsafe { asm!("clwb [rip + {}]", sym rip_alias, options(nostack)) }
        sfence();
        point(0);
    });
    // 21: a 32-bit address, through the alias at 3 GiB, with junk above bit 31
    run(&|p, point| {
        store(p, A);
        let short = BELOW_4G + (p - PMEM) | 0xdead_0000_0000_0000;
        unsafe { asm!(".byte 0x67", "clwb [rax]", in("rax") short, options(nostack)) }
        sfence();
        point(0);
    });
    // 22: a segment base
    run(&|p, point| {
        store(p, A);
        unsafe {
            asm!("wrmsr", in("ecx") 0xc000_0101u32, in("eax") p as u32, in("edx") (p >> 32) as u32);
            asm!("clwb gs:[{}]", in(reg) 0u64, options(nostack));
            asm!("wrmsr", in("ecx") 0xc000_0101u32, in("eax") 0, in("edx") 0);
        }
        sfence();
        point(0);
    });
    // 23: nothing of the range: System RAM, and an address that is not mapped
    run(&|p, point| {
        store(p, A);
        clwb(0x10_0000);
        clwb(SWAPPED + (1 << 30));
        sfence();
        point(0);
    });
    // 24: stores over two pages that lie elsewhere physically: the range's last two,
    // swapped. A non-temporal one, then an ordinary one.
    run(&|_, point| {
        movnti(SWAPPED + 4093, A);
        sfence();
        point(0);
        store(SWAPPED + 4088 - 64, A);
        clwb(SWAPPED + 4088 - 64);
        sfence();
        point(1);
    });
    // 25: WBINVD takes all that is dirty, here and in the cases before
    run(&|p, point| {
        store(p, A);
        store(p + 4096, B);
        unsafe { asm!("wbinvd", options(nostack)) }
        point(0);
    });
    // 26: MOVNTQ, and MASKMOVQ of every other byte. (MOVDIRI is not in TCG; decode.rs tests it.)
    run(&|p, point| {
        let mask = 0x80_00_80_00_80_00_80_00u64;
        unsafe {
            asm!("movq mm0, {a}", "movq mm1, {m}", "movntq [{to}], mm0", "maskmovq mm0, mm1",
                 "emms", a = in(reg) A, m = in(reg) mask, to = in(reg) p + 64, in("rdi") p,
                 out("mm0") _, out("mm1") _, options(nostack))
        }
        point(0);
        sfence();
        point(1);
    });
}
