// SPDX-License-Identifier: GPL-2.0

// The numbers of the marker protocol, apart from the rest of `marker.rs` for the bare
// guest program, which has no std.

/// The displacement that makes a NOP a marker ("PMK1").
pub const MAGIC: u32 = 0x314b_4d50;

/// What a marker asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
#[allow(dead_code)]
pub enum Call {
    /// Ends the job in progress, puts the next one's image into the pmem range and
    /// its text into the buffer (address, length), then a NUL. No text: no more jobs.
    Next = 1,
    /// From here on instants are candidates for a crash.
    Start = 2,
    /// From here on they are not.
    Stop = 3,
    /// Operation (number) begins: any of its effects may be durable.
    Begin = 4,
    /// Operation (number) was reported durable to its caller.
    Ack = 5,
    /// Crash here: this instant is always taken, with the number as its name.
    Point = 6,
    /// The job's result is the text in the buffer (address, length).
    Result = 7,
}
