// SPDX-License-Identifier: GPL-2.0

//! A last call before the machine goes down.
//!
//! C header: [`include/linux/reboot.h`](srctree/include/linux/reboot.h)

use super::bindings;
use kernel::{
    error::to_result,
    ffi::{c_int, c_ulong, c_void},
    prelude::*,
    types::Opaque, //
};

/// A function that runs at reboot, halt and power-off, registered as long as this lives.
///
/// # Invariants
///
/// `raw` is registered and pinned.
#[pin_data(PinnedDrop)]
pub(crate) struct RebootNotifier {
    #[pin]
    raw: Opaque<bindings::notifier_block>,
}

// SAFETY: A notifier is not tied to a thread.
unsafe impl Send for RebootNotifier {}
// SAFETY: There is nothing to do with a `&RebootNotifier`.
unsafe impl Sync for RebootNotifier {}

impl RebootNotifier {
    /// Registers the function `F`, which captures nothing. It may sleep.
    pub(crate) fn new<F: Fn() + Copy + 'static>(_f: F) -> impl PinInit<Self, Error> {
        // `F` is a zero-sized function item or closure; `call` needs its type only.
        const { assert!(core::mem::size_of::<F>() == 0) };

        extern "C" fn call<F: Fn() + Copy + 'static>(
            _nb: *mut bindings::notifier_block,
            _action: c_ulong,
            _data: *mut c_void,
        ) -> c_int {
            // SAFETY: `F` has no size, so nothing is read; a value of it was given to `new`, and
            // it is `Copy`.
            let f: F = unsafe { core::ptr::NonNull::<F>::dangling().as_ptr().read() };
            f();
            bindings::NOTIFY_DONE as c_int
        }

        try_pin_init!(Self {
            raw <- Opaque::try_ffi_init(|slot: *mut bindings::notifier_block| {
                // SAFETY: `slot` is valid for writing one `notifier_block`, for which all zeroes is
                // a valid value, and stays pinned until it is unregistered.
                to_result(unsafe {
                    slot.write_bytes(0, 1);
                    (*slot).notifier_call = Some(call::<F>);
                    bindings::register_reboot_notifier(slot)
                })
            }),
        })
    }
}

#[pinned_drop]
impl PinnedDrop for RebootNotifier {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type's invariant.
        unsafe { bindings::unregister_reboot_notifier(self.raw.get()) };
    }
}
