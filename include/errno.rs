// SPDX-License-Identifier: GPL-2.0

//! Error codes that the kernel crate of 7.2 does not have.
//!
//! C header: [`include/uapi/asm-generic/errno.h`](srctree/include/uapi/asm-generic/errno.h)

use super::bindings;
use kernel::error::Error;

/// `-EOPNOTSUPP`: operation not supported.
pub(crate) fn opnotsupp() -> Error {
    Error::from_errno(-(bindings::EOPNOTSUPP as i32))
}

/// `-EHWPOISON`: memory page has a hardware error.
pub(crate) fn hwpoison() -> Error {
    Error::from_errno(-(bindings::EHWPOISON as i32))
}

/// `-ERESTARTSYS`: the system call is to be restarted.
pub(crate) fn restartsys() -> Error {
    Error::from_errno(-(bindings::ERESTARTSYS as i32))
}
