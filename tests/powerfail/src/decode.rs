// SPDX-License-Identifier: GPL-2.0

//! Which guest instructions matter to the persistence domain.

use crate::marker;
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

/// What an instruction does to the persistence domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// CLWB or CLFLUSHOPT: the line is written back, ordered only by a fence.
    WriteBack,
    /// CLFLUSH: the line is written back, ordered by itself.
    Flush,
    /// WBINVD or WBNOINVD: every line is written back.
    FlushAll,
    /// SFENCE or MFENCE: what this CPU has written back before it is on the media.
    Fence,
    /// A locked operation, which fences as well.
    Locked,
    /// A store that bypasses the cache, ordered only by a fence.
    NtStore,
    /// The guest program calls the plugin (see [`marker`]).
    Marker,
}

/// An instruction that matters.
#[derive(Clone, Copy, Debug)]
pub struct Decoded {
    /// What it does.
    pub action: Action,
    insn: Instruction,
}

/// Decodes one 64-bit mode instruction at `vaddr`; `None` if it does not matter.
pub fn decode(bytes: &[u8], vaddr: u64) -> Option<Decoded> {
    let insn = Decoder::with_ip(64, bytes, vaddr, DecoderOptions::NONE).decode();
    let action = match insn.mnemonic() {
        Mnemonic::Clwb | Mnemonic::Clflushopt => Action::WriteBack,
        Mnemonic::Clflush => Action::Flush,
        Mnemonic::Wbinvd | Mnemonic::Wbnoinvd => Action::FlushAll,
        Mnemonic::Sfence | Mnemonic::Mfence => Action::Fence,
        Mnemonic::Movnti
        | Mnemonic::Movntq
        | Mnemonic::Movntdq
        | Mnemonic::Movntps
        | Mnemonic::Movntpd
        | Mnemonic::Movntss
        | Mnemonic::Movntsd
        | Mnemonic::Maskmovq
        | Mnemonic::Maskmovdqu
        | Mnemonic::Vmovntdq
        | Mnemonic::Vmovntps
        | Mnemonic::Vmovntpd
        | Mnemonic::Vmaskmovdqu
        | Mnemonic::Movdiri
        | Mnemonic::Movdir64b => Action::NtStore,
        Mnemonic::Nop
            if insn.op0_kind() == OpKind::Memory
                && insn.memory_base() == Register::RAX
                && insn.memory_displacement64() == marker::MAGIC as u64 =>
        {
            Action::Marker
        }
        // XCHG with memory is locked without the prefix.
        Mnemonic::Xchg if insn.op0_kind() == OpKind::Memory => Action::Locked,
        _ if insn.has_lock_prefix() => Action::Locked,
        _ => return None,
    };
    Some(Decoded { action, insn })
}

impl Decoded {
    /// The address of its memory operand. `read` gives the value of a 64-bit
    /// general register, and for a segment register its base.
    pub fn operand(&self, mut read: impl FnMut(Register) -> u64) -> u64 {
        self.insn
            .virtual_address(0, 0, |register, _, _| {
                Some(match register {
                    Register::FS | Register::GS => read(register),
                    // The bases of the others are 0 in 64-bit mode.
                    _ if register.is_segment_register() => 0,
                    _ => {
                        let value = read(register.full_register());
                        match register.size() {
                            4 => value & 0xffff_ffff,
                            _ => value,
                        }
                    }
                })
            })
            .expect("the closure answers for every register")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::code_asm::*;
    use proptest::prelude::*;

    const AT: u64 = 0xffff_ffff_8100_0000;

    fn assemble(f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
        let mut a = CodeAssembler::new(64).unwrap();
        f(&mut a).unwrap();
        a.assemble(AT).unwrap()
    }

    fn action(bytes: &[u8]) -> Option<Action> {
        decode(bytes, AT).map(|d| d.action)
    }

    /// The encodings as the Intel manual gives them, byte by byte.
    #[test]
    fn encodings() {
        let cases: &[(&[u8], Option<Action>)] = &[
            (&[0x66, 0x0f, 0xae, 0x30], Some(Action::WriteBack)), // clwb (%rax)
            (&[0x66, 0x0f, 0xae, 0x38], Some(Action::WriteBack)), // clflushopt (%rax)
            (&[0x0f, 0xae, 0x38], Some(Action::Flush)),           // clflush (%rax)
            (&[0x3e, 0x0f, 0xae, 0x38], Some(Action::Flush)),     // the kernel's patchable clflush
            (&[0x0f, 0x38, 0xf9, 0x08], Some(Action::NtStore)),   // movdiri %ecx, (%rax)
            (&[0x66, 0x0f, 0x38, 0xf8, 0x08], Some(Action::NtStore)), // movdir64b (%rax), %rcx
            (&[0x0f, 0xae, 0xf8], Some(Action::Fence)),           // sfence
            (&[0x0f, 0xae, 0xf0], Some(Action::Fence)),           // mfence
            (&[0x0f, 0xae, 0xe8], None),                          // lfence
            (&[0x0f, 0xae, 0x30], None),                          // xsaveopt (%rax)
            (&[0x0f, 0xae, 0x00], None),                          // fxsave (%rax)
            (&[0x66, 0x0f, 0xae, 0xf0], None),                    // tpause %eax
            (&[0xf3, 0x0f, 0xae, 0xf0], None),                    // umonitor %rax
            (&[0x0f, 0x09], Some(Action::FlushAll)),              // wbinvd
            (&[0xf3, 0x0f, 0x09], Some(Action::FlushAll)),        // wbnoinvd
            (&[0x87, 0x00], Some(Action::Locked)),                // xchg %eax,(%rax)
            (&[0x87, 0xc3], None),                                // xchg %eax,%ebx
            (&[0xf0, 0x83, 0x04, 0x24, 0x00], Some(Action::Locked)), // lock addl $0,(%rsp)
            (&[0xf0, 0x48, 0x0f, 0xb1, 0x0a], Some(Action::Locked)), // lock cmpxchg
            (&[0x0f, 0xb1, 0x0a], None),                          // cmpxchg without lock
            (&[0x48, 0x0f, 0xc3, 0x07], Some(Action::NtStore)),   // movnti %rax,(%rdi)
            (&[0x66, 0x0f, 0xe7, 0x07], Some(Action::NtStore)),   // movntdq %xmm0,(%rdi)
            (&[0x0f, 0x2b, 0x07], Some(Action::NtStore)),         // movntps %xmm0,(%rdi)
            (&[0xc5, 0xfd, 0xe7, 0x07], Some(Action::NtStore)),   // vmovntdq %ymm0,(%rdi)
            (&[0x66, 0x0f, 0xf7, 0xc1], Some(Action::NtStore)),   // maskmovdqu
            (&[0x48, 0x89, 0x07], None),                          // mov %rax,(%rdi)
            (&[0xf3, 0x48, 0xa5], None),                          // rep movsq
            (&[0x0f, 0x1f, 0x80, 0, 0, 0, 0], None),              // nopl 0(%rax)
            (&[0x0f], None),                                      // cut off
            (&[], None),
        ];
        for (bytes, want) in cases {
            assert_eq!(action(bytes), *want, "{bytes:02x?}");
        }
    }

    #[test]
    fn the_marker_is_a_nop_with_the_magic_displacement() {
        let magic = marker::MAGIC.to_le_bytes();
        let bytes = [&[0x0f, 0x1f, 0x80], &magic[..]].concat();
        assert_eq!(action(&bytes), Some(Action::Marker));
        // The same on another base register is somebody else's NOP.
        let bytes = [&[0x0f, 0x1f, 0x83], &magic[..]].concat();
        assert_eq!(action(&bytes), None);
    }

    #[test]
    fn rip_relative_operands_count_from_the_next_instruction() {
        let bytes = [0x66, 0x0f, 0xae, 0x35, 0x10, 0, 0, 0]; // clwb 0x10(%rip)
        let operand = decode(&bytes, AT).unwrap().operand(|_| 0);
        assert_eq!(operand, AT + 8 + 0x10);
    }

    #[test]
    fn segment_and_address_size_prefixes() {
        let prefixed = assemble(|a| a.clwb(byte_ptr(rax + 8).gs()));
        let read = |r| match r {
            Register::GS => 0x1_0000_0000,
            Register::RAX => 0x8000_0000_1000,
            r => panic!("{r:?} was read"),
        };
        assert_eq!(
            decode(&prefixed, AT).unwrap().operand(read),
            0x8001_0000_1008
        );
        let short = assemble(|a| a.clwb(byte_ptr(eax + 8)));
        assert_eq!(decode(&short, AT).unwrap().operand(read), 0x1008);
    }

    proptest! {
        /// Base, index, scale and displacement against plain arithmetic.
        #[test]
        fn operands(base in 0usize..16, index in 0usize..15, shift in 0u32..4,
                    disp in any::<i32>(), values in proptest::array::uniform16(any::<u64>())) {
            const GPR: [AsmRegister64; 16] =
                [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15];
            // RSP cannot be an index.
            let index = if index == 4 { 15 } else { index };
            let bytes = assemble(|a| a.clwb(byte_ptr(GPR[base] + GPR[index] * (1i32 << shift) + disp)));
            let decoded = decode(&bytes, AT).unwrap();
            prop_assert_eq!(decoded.action, Action::WriteBack);
            let operand = decoded.operand(|r| values[r.number()]);
            let want = values[base]
                .wrapping_add(values[index] << shift)
                .wrapping_add(disp as i64 as u64);
            prop_assert_eq!(operand, want);
        }

        /// No byte sequence makes the decoder panic.
        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..16)) {
            if let Some(decoded) = decode(&bytes, AT) {
                if decoded.action == Action::WriteBack {
                    decoded.operand(|_| 0);
                }
            }
        }
    }
}
