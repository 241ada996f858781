// SPDX-License-Identifier: GPL-2.0

//! Power failures on emulated persistent memory.
//!
//! - [`decode`], [`walk`], [`domain`] and [`sample`] are what the QEMU plugin in
//!   `plugin/` is made of: which instructions matter, where they point, what has
//!   reached the media, and which instants become crash points.
//! - [`image`] is the image of the media after a crash; [`job`] what the host asks
//!   the plugin to do; [`marker`] how a guest program calls the plugin.
//! - [`model`] says which contents a file system may have after a crash, given
//!   what was acknowledged before it; [`workload`] the operations that are run.

pub mod decode;
pub mod domain;
pub mod image;
pub mod job;
pub mod marker;
pub mod model;
pub mod sample;
pub mod walk;
pub mod workload;

/// A seed as it is printed and given: hexadecimal with `0x` before it, else decimal.
pub fn parse_seed(text: &str) -> Result<u64, std::num::ParseIntError> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    }
}
