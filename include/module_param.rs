// SPDX-License-Identifier: GPL-2.0

//! The module's parameters.
//!
//! They are declared in `helpers.c`, since `module!` knows neither strings nor parameters that can
//! be changed at run time.
//!
//! C header: [`include/linux/moduleparam.h`](srctree/include/linux/moduleparam.h)

use super::bindings;
use kernel::{ffi::c_char, prelude::*};

/// A string parameter that is set at load time only, or `None` if it was not given.
///
/// # Safety
///
/// `value` must be the value of a `charp` parameter with mode 0444.
unsafe fn string(value: *mut c_char) -> Option<&'static CStr> {
    // SAFETY: A `charp` parameter is null or a C string that is freed after the module's exit; with
    // mode 0444 it does not change.
    (!value.is_null()).then(|| unsafe { CStr::from_char_ptr(value) })
}

/// `phys_addr=`: start of the one range to use.
pub(crate) fn phys_addr() -> Option<&'static CStr> {
    // SAFETY: Written before init only; a `charp` parameter with mode 0444.
    unsafe { string(bindings::rpmem_param_phys_addr) }
}

/// `size=`: length of the one range to use.
pub(crate) fn size() -> Option<&'static CStr> {
    // SAFETY: Written before init only; a `charp` parameter with mode 0444.
    unsafe { string(bindings::rpmem_param_size) }
}

/// `fs_dax=`: whether DAX of file systems on our devices is handled in Rust.
pub(crate) fn fs_dax() -> bool {
    // SAFETY: Written before init only.
    unsafe { bindings::rpmem_param_fs_dax }
}

/// `flush_on_unmap=`: whether dirty lines are written back at unmap. May change at any time.
#[inline]
pub(crate) fn flush_on_unmap() -> bool {
    // SAFETY: A `bool` that lives as long as the module; C stores 0 or 1 in one byte, and a
    // volatile load is C's READ_ONCE().
    unsafe { (&raw const bindings::rpmem_param_flush_on_unmap).read_volatile() }
}

/// `fault_around=`: pages that a read fault maps ahead at most. May change at any time.
#[inline]
pub(crate) fn fault_around() -> usize {
    // SAFETY: An `unsigned int` that lives as long as the module; as C's READ_ONCE().
    unsafe { (&raw const bindings::rpmem_param_fault_around).read_volatile() as usize }
}

/// `fault_around_write=`: pages that a write fault maps ahead at most. May change at any time.
#[inline]
pub(crate) fn fault_around_write() -> usize {
    // SAFETY: An `unsigned int` that lives as long as the module; as C's READ_ONCE().
    unsafe { (&raw const bindings::rpmem_param_fault_around_write).read_volatile() as usize }
}
