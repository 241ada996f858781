// SPDX-License-Identifier: GPL-2.0

//! Files of debugfs that show something.
//!
//! C header: [`include/linux/debugfs.h`](srctree/include/linux/debugfs.h)
//!
//! In place of the kernel crate's `debugfs`, whose file operations have no owner: an open file does
//! not hold the module that they are in, and closing it after the module has gone calls what is no
//! longer there (`full_proxy_release()` of fs/debugfs/file.c).
//!
//! As in C, what debugfs cannot make is left out, and nobody fails for it.

use super::bindings;
use core::ffi::c_void;
use kernel::{
    ffi::c_int,
    fmt,
    prelude::*,
    seq_file::SeqFile,
    seq_print,
    sync::Arc, //
};

/// A directory or a file, there as long as this lives.
///
/// # Invariants
///
/// `dentry` is what `debugfs_create_*()` have returned, and nobody else removes it: not the parent
/// either, which lives longer.
struct Entry {
    dentry: *mut bindings::dentry,
    _parent: Option<Arc<Entry>>,
}

// SAFETY: debugfs does its own locking, and entries are not tied to threads.
unsafe impl Send for Entry {}
// SAFETY: As above.
unsafe impl Sync for Entry {}

impl Drop for Entry {
    fn drop(&mut self) {
        // SAFETY: By the type's invariant; errors are ignored.
        unsafe { bindings::debugfs_remove(self.dentry) };
    }
}

/// A directory, there as long as this or something in it lives.
pub(crate) struct Dir(Arc<Entry>);

impl Dir {
    /// A directory in the root of debugfs. `ENOMEM`. May sleep.
    pub(crate) fn new(name: &CStr) -> Result<Self> {
        Self::make(name, None)
    }

    /// A directory in this one. `ENOMEM`. May sleep.
    pub(crate) fn subdir(&self, name: &CStr) -> Result<Self> {
        Self::make(name, Some(self.0.clone()))
    }

    fn make(name: &CStr, parent: Option<Arc<Entry>>) -> Result<Self> {
        let above = parent.as_ref().map_or(core::ptr::null_mut(), |p| p.dentry);
        // SAFETY: The parent, if there is one, is an entry; an error is handed on.
        let dentry = unsafe { bindings::debugfs_create_dir(name.as_char_ptr(), above) };
        // INVARIANT: Just created. An error is nothing to debugfs_remove().
        let entry = Entry {
            dentry,
            _parent: parent,
        };
        Ok(Self(Arc::new(entry, GFP_KERNEL)?))
    }

    /// A file in this directory that root can read: what `show` writes of `data`. An open file holds
    /// the module. `ENOMEM`. May sleep, and so may `show`.
    pub(crate) fn file<T: Send + Sync + 'static>(
        &self,
        name: &CStr,
        data: T,
        show: fn(&T, &mut fmt::Formatter<'_>) -> fmt::Result,
    ) -> Result<File<T>> {
        let shown = KBox::new(Shown { data, show }, GFP_KERNEL)?;
        // SAFETY: The directory is an entry. `shown` stays where it is, and is there for longer than
        // the entry, whose removal waits for who reads it. The table is for a `Shown<T>`.
        let dentry = unsafe {
            bindings::debugfs_create_file_full(
                name.as_char_ptr(),
                0o400,
                self.0.dentry,
                core::ptr::from_ref(&*shown).cast_mut().cast(),
                core::ptr::null(),
                &Shown::<T>::OPERATIONS,
            )
        };
        Ok(File {
            // INVARIANT: Just created.
            _entry: Entry {
                dentry,
                _parent: Some(self.0.clone()),
            },
            _shown: shown,
        })
    }
}

/// A file, there as long as this lives.
pub(crate) struct File<T> {
    // Dropped first.
    _entry: Entry,
    _shown: KBox<Shown<T>>,
}

struct Shown<T> {
    data: T,
    show: fn(&T, &mut fmt::Formatter<'_>) -> fmt::Result,
}

impl<T> fmt::Display for Shown<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (self.show)(&self.data, f)
    }
}

impl<T: Send + Sync + 'static> Shown<T> {
    /// For inodes whose private data is a `Shown<T>`.
    const OPERATIONS: bindings::file_operations = bindings::file_operations {
        owner: &raw mut bindings::__this_module,
        open: Some(Self::open),
        read: Some(bindings::seq_read),
        llseek: Some(bindings::seq_lseek),
        release: Some(bindings::single_release),
        ..pin_init::zeroed()
    };

    /// # Safety
    ///
    /// Called by debugfs for a file made by [`Dir::file`].
    unsafe extern "C" fn open(inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        // SAFETY: Both are valid. What the file shows is there for as long as debugfs lets it be read.
        unsafe { bindings::single_open(file, Some(Self::print), (*inode).i_private) }
    }

    /// # Safety
    ///
    /// Called by seq_file for a file opened by [`Self::open`].
    unsafe extern "C" fn print(m: *mut bindings::seq_file, _v: *mut c_void) -> c_int {
        // SAFETY: `m` is valid, and this thread's while this runs; its private data is what `open` has
        // given.
        let (m, shown) = unsafe { (SeqFile::from_raw(m), &*(*m).private.cast::<Self>()) };
        seq_print!(m, "{shown}");
        0
    }
}
