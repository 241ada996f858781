// SPDX-License-Identifier: GPL-2.0

//! Safe abstractions over C types, one file per type, and the raw bindings under them.
//!
//! `unsafe` lives here and in `arch/` only.

pub(crate) mod badblocks;
pub(crate) mod bindings;
pub(crate) mod bio;
pub(crate) mod cpu;
pub(crate) mod dax_access;
pub(crate) mod dax_device;
pub(crate) mod debugfs;
pub(crate) mod dev_pagemap;
pub(crate) mod errno;
pub(crate) mod folio;
pub(crate) mod fs_dax_ops;
mod ftrace;
pub(crate) mod gendisk;
pub(crate) mod inode;
pub(crate) mod iomap;
pub(crate) mod iov_iter;
pub(crate) mod module_param;
pub(crate) mod pmem;
pub(crate) mod reboot;
pub(crate) mod resource;
pub(crate) mod stack_vec;
pub(crate) mod super_block;
pub(crate) mod task;
pub(crate) mod trace;
pub(crate) mod vm_fault;
pub(crate) mod wait;
pub(crate) mod writeback_control;
pub(crate) mod xarray;
pub(crate) mod zero_pmd;
