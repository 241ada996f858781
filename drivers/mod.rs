// SPDX-License-Identifier: GPL-2.0

//! The drivers of this module. There is no `unsafe` here.

pub(crate) mod pmem;
