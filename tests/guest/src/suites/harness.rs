// SPDX-License-Identifier: GPL-2.0

//! The harness itself: what must make a test fail does, and the next test runs all the same.

use std::fs;
use std::time::Duration;

use anyhow::{bail, ensure, Result};
use proto::Machine;

use crate::fixture::{sh, KernelLog};
use crate::test::{Ctx, Suite};

pub fn suite(s: &mut Suite) {
    // A machine of its own: these end their guests.
    // Half of what the packed initramfs leaves must hold the unpacked one.
    let machine = || Machine::bare().ram(768);
    s.test("error", |_| bail!("as told"))
        .machine(machine())
        .must_fail("as told");
    s.test("panic", |_| panic!("at once"))
        .machine(machine())
        .must_fail("panicked: at once");
    s.test("killed", killed)
        .machine(machine())
        .must_fail("ended with Signaled");
    s.test("kernel_warning", kernel_warning)
        .machine(machine())
        .must_fail("kernel: WARNING: ");
    s.test("fresh_guest", fresh_guest).machine(machine());
    s.test("left_mounted", left_mounted)
        .machine(machine())
        .must_fail("left behind: /mnt/x");
    s.test("no_end", no_end)
        .machine(machine())
        .limit(2)
        .must_fail("no end within 2 s");
    s.test("kernel_panic", kernel_panic)
        .machine(machine())
        .must_fail("the guest died: ");
    s.test("after_all_that", fresh_guest).machine(machine());
}

fn killed(_ctx: &Ctx) -> Result<()> {
    std::process::abort()
}

/// A line as WARN_ON() prints it; the rest of the harness cannot tell it from a real one.
fn kernel_warning(_ctx: &Ctx) -> Result<()> {
    KernelLog::open()?.write(4, "WARNING: none.c:1 at nothing, CPU#0: guest/1");
    Ok(())
}

/// An earlier test's trouble is not this one's.
fn fresh_guest(_ctx: &Ctx) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    ensure!(
        !mounts.contains(" /mnt/"),
        "something is mounted:\n{mounts}"
    );
    let tainted = fs::read_to_string("/proc/sys/kernel/tainted")?;
    ensure!(tainted.trim() == "0", "tainted: {tainted}");
    Ok(())
}

/// A mount that cannot be undone: something that outlives the test sits in it.
fn left_mounted(_ctx: &Ctx) -> Result<()> {
    sh(
        "modprobe loop && mkdir -p /mnt/x && mount -t tmpfs none /mnt/x && \
        truncate -s 16M /mnt/x/disk && mkfs.ext4 -q /mnt/x/disk && \
        mkdir -p /run/inner && mount -o loop /mnt/x/disk /run/inner",
    )?;
    Ok(())
}

fn no_end(_ctx: &Ctx) -> Result<()> {
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn kernel_panic(_ctx: &Ctx) -> Result<()> {
    fs::write("/proc/sysrq-trigger", "c")?;
    Ok(())
}
