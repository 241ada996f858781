// SPDX-License-Identifier: GPL-2.0

//! A guest without a kernel, whose stores, write-backs and fences are known one by one.
//!
//! QEMU starts it by its PVH note in 32-bit protected mode. It goes to long mode and
//! runs the cases of `bare.rs` beside it in the same order: each has two pages of the
//! pmem range to itself, and `point(case, stage)` lets the plugin take an image.

#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

#[path = "../../src/marker_numbers.rs"]
mod marker_numbers;
use marker_numbers::{Call, MAGIC};

global_asm!(
    r#"
    .section .note.pvh, "a", @note
    .align 4
    .long 4, 8, 18              // name and descriptor length, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad start32

    .section .text
    .code32
start32:
    cli
    mov $stack_top, %esp
    // 1 GiB pages: 0 to 16 GiB as they are, but 1 GiB and 3 GiB lead to the pmem range.
    movl $pdpt + 3, pml4
    xor %ecx, %ecx
1:  mov %ecx, %eax
    mov %ecx, %edx
    shl $30, %eax
    shr $2, %edx
    or $0x83, %eax
    mov %eax, pdpt(,%ecx,8)
    mov %edx, pdpt + 4(,%ecx,8)
    inc %ecx
    cmp $16, %ecx
    jne 1b
    movl $0x83, pdpt + 8
    movl $1, pdpt + 12
    movl $0x83, pdpt + 24
    movl $1, pdpt + 28
    // 16 GiB: 4 KiB pages, the first two of the range's end in the wrong order.
    movl $pd + 3, pdpt + 128
    movl $pt + 3, pd
    movl $0x003ff003, pt
    movl $1, pt + 4
    movl $0x003fe003, pt + 8
    movl $1, pt + 12

    mov $pml4, %eax
    mov %eax, %cr3
    mov $0x40620, %eax          // PAE, OSFXSR, OSXMMEXCPT, OSXSAVE
    mov %eax, %cr4
    mov $0xc0000080, %ecx       // EFER.LME
    rdmsr
    or $0x100, %eax
    wrmsr
    mov $0x80000003, %eax       // PG, MP, PE
    mov %eax, %cr0
    xor %ecx, %ecx              // XCR0: x87, SSE, AVX
    xor %edx, %edx
    mov $7, %eax
    xsetbv
    lgdt gdt_pointer
    ljmp $8, $start64
    .code64
start64:
    xor %eax, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    call payload
1:  hlt
    jmp 1b

    .section .data
    .align 8
gdt:
    .quad 0, 0x00af9a000000ffff
gdt_pointer:
    .short 15
    .long gdt
    .section .bss
    .align 4096
pml4: .skip 4096
pdpt: .skip 4096
pd: .skip 4096
pt: .skip 4096
    .skip 65536
stack_top:
    "#,
    options(att_syntax)
);

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    exit(3)
}

/// Ends QEMU through its isa-debug-exit device.
fn exit(code: u8) -> ! {
    unsafe { asm!("out 0xf4, al", in("al") code) };
    loop {}
}

fn mark(call: Call, a: u64, b: u64) {
    unsafe {
        asm!(".byte 0x0f, 0x1f, 0x80", ".long {magic}", magic = const MAGIC,
             in("rdi") call as u64, in("rsi") a, in("rdx") b, options(nostack))
    };
}

/// The pmem range by its own address, and by those that lead there too.
const PMEM: u64 = 4 << 30;
const BELOW_4G: u64 = 3 << 30;
const SWAPPED: u64 = 16 << 30;

extern "C" {
    /// The address of case 20 through the alias at 1 GiB, within reach of the code;
    /// the linker is told.
    static rip_alias: u8;
}

const A: u64 = 0x1111_1111_1111_1111;
const B: u64 = 0x2222_2222_2222_2222;

fn store(at: u64, value: u64) {
    unsafe { asm!("mov [{}], {}", in(reg) at, in(reg) value, options(nostack)) }
}
fn clwb(at: u64) {
    unsafe { asm!("clwb [{}]", in(reg) at, options(nostack)) }
}
fn clflushopt(at: u64) {
    unsafe { asm!("clflushopt [{}]", in(reg) at, options(nostack)) }
}
fn clflush(at: u64) {
    unsafe { asm!("clflush [{}]", in(reg) at, options(nostack)) }
}
fn movnti(at: u64, value: u64) {
    unsafe { asm!("movnti [{}], {}", in(reg) at, in(reg) value, options(nostack)) }
}
fn sfence() {
    unsafe { asm!("sfence", options(nostack)) }
}
fn mfence() {
    unsafe { asm!("mfence", options(nostack)) }
}
#[no_mangle]
extern "C" fn payload() -> ! {
    let mut text = [0u8; 64];
    mark(Call::Next, text.as_mut_ptr() as u64, 64);
    match &text[..5] {
        b"cases" => cases(),
        b"insta" => instants(),
        _ => exit(4),
    }
    mark(Call::Result, b"done".as_ptr() as u64, 4);
    mark(Call::Next, text.as_mut_ptr() as u64, 64);
    exit(if text[0] == 0 { 0 } else { 5 })
}

fn cases() {
    let mut case = 0;
    // Runs the body with the address of the case's pages and a way to take images.
    let mut run = |body: &dyn Fn(u64, &dyn Fn(u64))| {
        body(PMEM + case * 8192, &|stage| mark(Call::Point, case * 10 + stage, 0));
        case += 1;
    };
    include!("cases.rs");
}

/// Two operations with instants of every kind; `INSTANTS` of bare.rs has the list.
fn instants() {
    let p = PMEM;
    store(p, B);
    mark(Call::Start, 0, 0);
    mark(Call::Begin, 1, 0);
    store(p + 60, A);
    clwb(p);
    clwb(p + 64);
    clwb(p + 64);
    sfence();
    mark(Call::Ack, 1, 0);
    mark(Call::Begin, 2, 0);
    movnti(p + 128, B);
    store(p + 64, B);
    sfence();
    mark(Call::Ack, 2, 0);
    mark(Call::Stop, 0, 0);
    store(p, B);
    clwb(p);
    sfence();
}
