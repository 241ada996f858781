// SPDX-License-Identifier: GPL-2.0

//! Architectures whose cache write-back this module does not know: it refuses to work there rather
//! than claim durability. [`Isa`] has no value, so nothing below can be reached.

/// What is known of the processor: nothing.
pub(crate) struct Features {}

/// No instruction is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Isa {}

impl Isa {
    /// Not used: there is none.
    pub(crate) const LEAST: u8 = 0;

    /// None.
    pub(crate) fn best(_features: &Features) -> Option<Self> {
        None
    }

    /// Not reached: [`super::init`] has failed.
    pub(crate) fn from_u8(_n: u8) -> Self {
        unreachable!("no cache write-back on this architecture")
    }
}

/// # Safety
///
/// None: there is no [`Isa`] to call it with.
pub(crate) unsafe fn write_back(isa: Isa, _addr: usize, _len: usize) {
    match isa {}
}

/// Not reached.
pub(crate) fn fence() {
    unreachable!("no cache write-back on this architecture")
}

/// # Safety
///
/// None: it is not reached.
pub(crate) unsafe fn zero(_addr: usize, _len: usize) {
    unreachable!("no cache write-back on this architecture")
}
