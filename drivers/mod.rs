// SPDX-License-Identifier: GPL-2.0

//! The drivers of this module: safe code only, on the abstractions of `include/`.

pub(crate) mod pmem;
