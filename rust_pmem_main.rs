// SPDX-License-Identifier: GPL-2.0

//! Persistent memory as disks with direct access (DAX).
//!
//! - `drivers/pmem`: the block driver, /dev/rpmemN
//! - `arch`: what the CPU must do for stores to be durable
//! - `include`: safe abstractions over the kernel's C types
//!
//! The module's parameters are in `include/helpers.c`; `modinfo -p` lists them.

mod arch;
mod drivers;
mod include;

use drivers::pmem;
use include::reboot::RebootNotifier;
use kernel::{
    debugfs,
    prelude::*, //
};

module! {
    type: RustPmem,
    name: "rust_pmem",
    authors: ["The rust-pmem authors"],
    description: "Persistent memory block driver with DAX",
    license: "GPL",
}

/// The loaded module. Unloading takes things down in the order of the fields.
struct RustPmem {
    _devices: pmem::Devices,
    _reboot: Pin<KBox<RebootNotifier>>,
    _debugfs: debugfs::Dir,
}

impl kernel::Module for RustPmem {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        let isa = arch::init().inspect_err(|_| {
            pr_err!("this processor cannot write cache lines back in a way that is known\n");
        })?;
        pr_info!("cache lines are written back by {isa:?}\n");

        let debugfs = debugfs::Dir::new(c"rust_pmem");
        let reboot = KBox::pin_init(RebootNotifier::new(pmem::flush), GFP_KERNEL)?;
        // Last: once a disk is there it may be in use, and the load must not fail any more.
        let devices = pmem::Devices::new(&debugfs)?;
        Ok(Self {
            _devices: devices,
            _reboot: reboot,
            _debugfs: debugfs,
        })
    }
}
