// SPDX-License-Identifier: GPL-2.0

//! Persistence: writing CPU cache lines back, and the proof that it has been done.
//!
//! A line of persistent memory is dirty, then written back, then fenced; only the last is durable.
//! The types follow that order (as SquirrelFS, OSDI'24, does for file systems): [`write_back`] and
//! [`zero`] yield a [`WrittenBack`], only [`WrittenBack::fence`] turns it into [`Durable`], and what
//! must not happen before data is durable asks for a [`Durable`]. A forgotten fence does not
//! compile.

pub(crate) mod lines;
mod x86;

#[cfg(not(CONFIG_X86_64))]
compile_error!("how this architecture writes cache lines back is not known here");

use crate::include::{
    cpu,
    pmem::Pmem, //
};
use core::sync::atomic::{
    AtomicU8,
    Ordering, //
};
use kernel::prelude::*;

use x86 as isa;
pub(crate) use x86::{
    Features,
    Isa, //
};

/// The instruction in use, as a number of [`Isa`]. Written once, by [`init`].
static CHOSEN: AtomicU8 = AtomicU8::new(Isa::LEAST as u8);

/// Chooses the instruction for the life of the module. Called once, before anything else here.
///
/// `ENODEV` if this processor cannot write lines back in a way we know.
pub(crate) fn init() -> Result<Isa> {
    if cpu::cache_line_size() != lines::LINE {
        return Err(ENODEV);
    }
    let isa = Isa::best(&cpu::Features::get()).ok_or(ENODEV)?;
    CHOSEN.store(isa as u8, Ordering::Relaxed);
    Ok(isa)
}

/// The instruction in use.
#[inline]
pub(crate) fn chosen() -> Isa {
    Isa::from_u8(CHOSEN.load(Ordering::Relaxed))
}

/// Stores that are on their way to memory, but not known to be there: no fence followed yet.
#[must_use = "written back is not durable: only `fence()` makes it so"]
pub(crate) struct WrittenBack(());

/// Proof that what was written back before is durable.
#[derive(Clone, Copy)]
pub(crate) struct Durable(());

impl WrittenBack {
    /// Nothing had to be written back: caches are persistent (eADR), or the stores were
    /// non-temporal ones.
    #[inline]
    pub(crate) fn nothing() -> Self {
        Self(())
    }

    /// Both of them.
    #[inline]
    pub(crate) fn and(self, _other: Self) -> Self {
        self
    }

    /// Waits until all that this CPU has written back is in the power-fail safe domain. The thread
    /// must not have moved to another CPU since in a way that is not a full barrier itself; the
    /// scheduler's context switch is one.
    #[inline]
    pub(crate) fn fence(self) -> Durable {
        isa::fence();
        Durable(())
    }

    /// Gives the proof up: nothing is claimed about this data. Whoever promises durability later
    /// writes it back again, which is cheap then.
    #[inline]
    pub(crate) fn claim_nothing(self) {}
}

/// Starts to write `mem` back to memory. Heads and tails that do not fill a cache line are included.
///
/// Context: any.
#[inline]
pub(crate) fn write_back(mem: &Pmem<'_>) -> WrittenBack {
    // SAFETY: `Pmem` is mapped by its invariant; `chosen()` is an instruction of this processor.
    unsafe { isa::write_back(chosen(), mem.addr(), mem.len()) };
    WrittenBack(())
}

/// Fills `mem` with zeroes: whole cache lines past the cache, what is left of a line at either end in
/// the cache, and starts to write that back, unless caches are persistent (no `write_cache`).
///
/// Context: any.
pub(crate) fn zero(mem: &Pmem<'_>, write_cache: bool) -> WrittenBack {
    let head = (mem.addr().wrapping_neg() % lines::LINE).min(mem.len());
    let body = (mem.len() - head) / lines::LINE * lines::LINE;
    if body > 0 {
        // SAFETY: `Pmem` is mapped writable, and only raw accesses are made to it. Whole lines, inside.
        unsafe { isa::zero(mem.addr() + head, body) };
    }
    let mut written = WrittenBack(());
    for (at, len) in [(0, head), (head + body, mem.len() - head - body)] {
        if len > 0 {
            let part = mem.slice(at, len);
            part.fill_zero();
            if write_cache {
                written = written.and(write_back(&part));
            }
        }
    }
    written
}
