// SPDX-License-Identifier: GPL-2.0

//! Ranges of physical memory and the parameters that name one: arithmetic only.
//!
//! This file uses nothing of the kernel, so that tests/host can test it.

/// What a range must be a multiple of, in bytes: memremap_pages() works in subsections of 2 MiB,
/// and a PMD maps 2 MiB.
pub(crate) const ALIGN: u64 = 2 << 20;

/// A range of physical addresses, not empty, whose end does not overflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PhysRange {
    /// First address.
    pub(crate) start: u64,
    /// Length in bytes.
    pub(crate) len: u64,
}

/// What is wrong with `phys_addr=` and `size=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadParam {
    /// `phys_addr=` is not a number of bytes.
    PhysAddr,
    /// `size=` is not a number of bytes.
    Size,
    /// `phys_addr=` without `size=`.
    NoSize,
    /// `size=` without `phys_addr=`.
    NoPhysAddr,
    /// `size=` is 0.
    Empty,
    /// One of them is not a multiple of [`ALIGN`].
    Unaligned,
    /// The end is beyond what an address can be.
    Overflow,
}

impl BadParam {
    /// For the log.
    pub(crate) fn message(self) -> &'static str {
        match self {
            Self::PhysAddr => "phys_addr= is not a number of bytes (4294967296, 0x100000000, 4G)",
            Self::Size => "size= is not a number of bytes (1073741824, 0x40000000, 1G)",
            Self::NoSize => "phys_addr= needs size=",
            Self::NoPhysAddr => "size= needs phys_addr=",
            Self::Empty => "size= is 0",
            Self::Unaligned => "phys_addr= and size= must be multiples of 2M",
            Self::Overflow => "phys_addr= + size= is beyond the address space",
        }
    }
}

/// Parses a number of bytes: decimal or 0x hexadecimal, with an optional suffix K, M, G or T.
/// `None` for anything else and for what does not fit.
pub(crate) fn parse_bytes(text: &[u8]) -> Option<u64> {
    // A parameter file or a shell may leave a newline.
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let (text, shift) = match text.split_last()? {
        (b'k' | b'K', rest) => (rest, 10),
        (b'm' | b'M', rest) => (rest, 20),
        (b'g' | b'G', rest) => (rest, 30),
        (b't' | b'T', rest) => (rest, 40),
        _ => (text, 0),
    };
    let (digits, radix) = match text {
        [b'0', b'x' | b'X', rest @ ..] => (rest, 16),
        _ => (text, 10),
    };
    if digits.is_empty() {
        return None;
    }
    let number = digits.iter().try_fold(0u64, |number, &c| {
        let digit = char::from(c).to_digit(radix)?;
        number
            .checked_mul(u64::from(radix))?
            .checked_add(u64::from(digit))
    })?;
    number.checked_mul(1 << shift)
}

/// The range that `phys_addr=` and `size=` name; `None` if neither was given.
pub(crate) fn explicit(
    phys_addr: Option<&[u8]>,
    size: Option<&[u8]>,
) -> Result<Option<PhysRange>, BadParam> {
    let (phys_addr, size) = match (phys_addr, size) {
        (None, None) => return Ok(None),
        (Some(_), None) => return Err(BadParam::NoSize),
        (None, Some(_)) => return Err(BadParam::NoPhysAddr),
        (Some(phys_addr), Some(size)) => (phys_addr, size),
    };
    let start = parse_bytes(phys_addr).ok_or(BadParam::PhysAddr)?;
    let len = parse_bytes(size).ok_or(BadParam::Size)?;
    if len == 0 {
        return Err(BadParam::Empty);
    }
    if start % ALIGN != 0 || len % ALIGN != 0 {
        return Err(BadParam::Unaligned);
    }
    start.checked_add(len).ok_or(BadParam::Overflow)?;
    Ok(Some(PhysRange { start, len }))
}

impl PhysRange {
    /// The largest range inside this one that begins and ends at a multiple of [`ALIGN`]; `None`
    /// if there is none.
    pub(crate) fn trim(self) -> Option<Self> {
        let start = self.start.checked_add(ALIGN - 1)? / ALIGN * ALIGN;
        let end = self.start.checked_add(self.len)? / ALIGN * ALIGN;
        (start < end).then(|| Self {
            start,
            len: end - start,
        })
    }

    /// Last address, for messages.
    pub(crate) fn last(self) -> u64 {
        self.start + (self.len - 1)
    }
}
