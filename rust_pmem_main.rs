// SPDX-License-Identifier: GPL-2.0

//! Persistent memory as disks with direct access (DAX).
//!
//! - `drivers/pmem`: the block driver, /dev/rpmemN
//! - `fs_dax`: direct access to files on these devices, in place of the kernel's fs/dax.c
//! - `arch`: what the CPU must do for stores to be durable
//! - `include`: safe abstractions over the kernel's C types
//!
//! The module's parameters are in `include/helpers.c`; `modinfo -p` lists them.

mod arch;
mod drivers;
mod fs_dax;
mod include;

use drivers::pmem;
use fs_dax::FsDax;
use include::{
    debugfs,
    fs_dax_ops::Attached,
    module_param,
    reboot::RebootNotifier, //
};
use kernel::prelude::*;

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
    _fs_dax: Option<Attached<FsDax>>,
    _reboot: Pin<KBox<RebootNotifier>>,
    _debugfs: debugfs::Dir,
}

impl kernel::Module for RustPmem {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        // Whether there is anything to do at all, before the expensive part.
        let regions = pmem::Regions::reserve()?;
        let isa = arch::init().inspect_err(|_| {
            pr_err!("this processor cannot write cache lines back in a way that is known\n");
        })?;
        pr_info!("cache lines are written back by {isa:?}\n");

        let debugfs = debugfs::Dir::new(c"rust_pmem")?;
        let reboot = KBox::pin_init(RebootNotifier::new(pmem::flush), GFP_KERNEL)?;
        // Before the first disk: what handles a file system's DAX is the same for all its life.
        let fs_dax = if module_param::fs_dax() {
            Some(fs_dax::attach()?)
        } else {
            pr_info!("fs_dax=0: DAX is left to the kernel's fs/dax.c\n");
            None
        };
        // Last: once a disk is there it may be in use, and the load must not fail any more.
        let devices = pmem::Devices::new(regions, &debugfs)?;
        Ok(Self {
            _devices: devices,
            _fs_dax: fs_dax,
            _reboot: reboot,
            _debugfs: debugfs,
        })
    }
}
