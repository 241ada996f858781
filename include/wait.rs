// SPDX-License-Identifier: GPL-2.0

//! Hashed wait queues: waiting for something that has a key but no room for a queue.
//!
//! C header: [`include/linux/wait.h`](srctree/include/linux/wait.h)

use super::bindings;
use core::sync::atomic::{
    AtomicBool,
    AtomicUsize,
    Ordering, //
};
use kernel::{
    ffi::{
        c_int,
        c_uint,
        c_void, //
    },
    types::Opaque, //
};

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    /// What it is in, such as [`super::xarray::XArray::id`].
    pub(crate) owner: usize,
    /// Which one in there.
    pub(crate) index: usize,
}

/// Number of queues, a power of two.
const QUEUES: usize = 1024;

/// A table of wait queues, to be put in a `static`.
///
/// # Invariants
///
/// The queues are initialised if `ready`.
pub(crate) struct Table {
    ready: AtomicBool,
    queues: [Opaque<bindings::wait_queue_head>; QUEUES],
    /// How many threads are waiting on any queue: what makes a wake-up cheap in the usual case.
    waiters: AtomicUsize,
}

// SAFETY: Queues have their own locks.
unsafe impl Sync for Table {}

/// A thread's place in a queue.
#[repr(C)]
struct Waiter {
    wait: bindings::wait_queue_entry,
    key: Key,
}

impl Table {
    /// A table, to be put in a `static`. [`Table::init`] must be called before anybody waits.
    pub(crate) const fn new() -> Self {
        Self {
            ready: AtomicBool::new(false),
            queues: [const { Opaque::uninit() }; QUEUES],
            waiters: AtomicUsize::new(0),
        }
    }

    /// Initialises the queues.
    pub(crate) fn init(&'static self) {
        if self.ready.load(Ordering::Acquire) {
            return;
        }
        for queue in &self.queues {
            // SAFETY: The queue is not in use, as `ready` is false, and stays where it is.
            unsafe { bindings::rpmem_init_waitqueue(queue.get()) };
        }
        // INVARIANT: They are initialised now.
        self.ready.store(true, Ordering::Release);
    }

    fn queue(&'static self, key: Key) -> *mut bindings::wait_queue_head {
        // C's hash_long().
        let hash = (key.owner ^ key.index).wrapping_mul(0x61c8_8646_80b5_83eb);
        self.queues[hash >> (usize::BITS - QUEUES.trailing_zeros())].get()
    }

    /// Sleeps, uninterruptibly, until [`Table::wake`] for `key`. `unlock` is called when this
    /// thread is in the queue; it must give away the lock under which was found that there is
    /// something to wait for, and the waker must take that lock before it wakes.
    ///
    /// An exclusive waiter is woken alone and has to pass the wake-up on.
    pub(crate) fn wait(&'static self, key: Key, exclusive: bool, unlock: impl FnOnce()) {
        assert!(self.ready.load(Ordering::Acquire));
        let queue = self.queue(key);
        let mut waiter = Waiter {
            wait: bindings::wait_queue_entry::default(),
            key,
        };
        // Seen by the waker, who takes the lock that the caller still has.
        self.waiters.fetch_add(1, Ordering::Relaxed);
        // SAFETY: The queue is initialised. The waiter stays on the stack, where it is, until
        // finish_wait() has taken it out of the queue; `wake_function` knows its type.
        unsafe {
            bindings::rpmem_init_wait(&raw mut waiter.wait, Some(wake_function));
            if exclusive {
                bindings::prepare_to_wait_exclusive(
                    queue,
                    &raw mut waiter.wait,
                    bindings::TASK_UNINTERRUPTIBLE as c_int,
                );
            } else {
                bindings::prepare_to_wait(
                    queue,
                    &raw mut waiter.wait,
                    bindings::TASK_UNINTERRUPTIBLE as c_int,
                );
            }
            unlock();
            bindings::schedule();
            bindings::finish_wait(queue, &raw mut waiter.wait);
        }
        self.waiters.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether anybody waits for anything. If false under the lock that guards a key, nobody waits
    /// for that key.
    #[inline]
    pub(crate) fn has_waiters(&'static self) -> bool {
        self.waiters.load(Ordering::Relaxed) != 0
    }

    /// Wakes those who wait for `key`: all that are not exclusive, and of the others all or one.
    #[inline]
    pub(crate) fn wake(&'static self, key: Key, all: bool) {
        if self.has_waiters() {
            self.wake_slow(key, all);
        }
    }

    #[cold]
    fn wake_slow(&'static self, key: Key, all: bool) {
        let queue = self.queue(key);
        // SAFETY: The queue is initialised; `wake_function` gets the key as the type it expects.
        unsafe {
            if bindings::rpmem_waitqueue_active(queue) {
                bindings::__wake_up(
                    queue,
                    bindings::TASK_NORMAL,
                    if all { 0 } else { 1 },
                    (&raw const key).cast_mut().cast(),
                );
            }
        }
    }
}

/// Wakes a waiter if it is meant.
///
/// # Safety
///
/// Called by `__wake_up()` from [`Table::wake`]: `wait` is in a [`Waiter`], `key` is a [`Key`].
unsafe extern "C" fn wake_function(
    wait: *mut bindings::wait_queue_entry,
    mode: c_uint,
    sync: c_int,
    key: *mut c_void,
) -> c_int {
    // SAFETY: By the function's requirements; `wait` is the first field of `Waiter`.
    unsafe {
        if (*wait.cast::<Waiter>()).key != *key.cast::<Key>() {
            return 0;
        }
        bindings::autoremove_wake_function(wait, mode, sync, core::ptr::null_mut())
    }
}
