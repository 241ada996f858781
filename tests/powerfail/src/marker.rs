// SPDX-License-Identifier: GPL-2.0

//! How a guest program calls the plugin: `nopl MAGIC(%rax)`, with the call's number
//! in RDI and its arguments in RSI and RDX. It needs no device, no privilege and no
//! kernel, and happens at an exact place among the guest's stores and fences.
//!
//! Buffers are passed by virtual address and must be present in memory: the plugin
//! cannot take a page fault for the guest.

#[path = "marker_numbers.rs"]
mod numbers;
pub use numbers::{Call, MAGIC};

impl Call {
    /// The call with this number.
    pub fn from_number(number: u64) -> Option<Call> {
        use Call::*;
        [Next, Start, Stop, Begin, Ack, Point, Result]
            .into_iter()
            .find(|&c| c as u64 == number)
    }
}

/// Emits a marker. On a machine without the plugin it does nothing.
#[inline(always)]
pub fn mark(call: Call, a: u64, b: u64) {
    // SAFETY: a NOP; the plugin writes only to the buffer that `next` passes.
    unsafe {
        std::arch::asm!(
            ".byte 0x0f, 0x1f, 0x80",
            ".long {magic}",
            magic = const MAGIC,
            in("rdi") call as u64,
            in("rsi") a,
            in("rdx") b,
            options(nostack, preserves_flags),
        );
    }
}

/// Asks for the next job; `None` if there is none.
pub fn next() -> Option<String> {
    // Written to, so that its pages are present and its own.
    let mut buffer = vec![0xffu8; 4096];
    buffer[0] = 0;
    mark(Call::Next, buffer.as_mut_ptr() as u64, buffer.len() as u64);
    let end = buffer.iter().position(|&b| b == 0)?;
    (end > 0).then(|| String::from_utf8_lossy(&buffer[..end]).into_owned())
}

/// Reports the job's result.
pub fn result(text: &str) {
    mark(Call::Result, text.as_ptr() as u64, text.len() as u64);
}
