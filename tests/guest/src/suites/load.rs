// SPDX-License-Identifier: GPL-2.0

//! Loading and unloading: refused while in use, and nothing is left behind.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{ensure, Context, Result};
use nix::errno::Errno;
use proto::Tag;

use crate::fixture::driver::{expect_errno, rmmod};
use crate::fixture::io::{read_at, same, write_at};
use crate::fixture::{pattern, sh, Driver, Fs, Mapping, MIB, PAGE};
use crate::test::{Ctx, Suite};

pub fn suite(s: &mut Suite) {
    s.test("refused_while_open", refused_while_open)
        .tag(Tag::RustOnly)
        .tag(Tag::Smoke);
    s.test("content_survives", content_survives);
    s.test("fifty_times", fifty_times)
        .limit(300)
        .tag(Tag::Stress);
    s.test("takes_turns_with_nd_pmem", takes_turns_with_nd_pmem)
        .tag(Tag::RustOnly);
}

/// An open disk, a mount and a mapping each hold the module.
fn refused_while_open(ctx: &Ctx) -> Result<()> {
    let driver = Driver::load(ctx, &[])?;
    let disk = driver.disk(0);
    let file = disk.open()?;
    expect_errno(rmmod(), Errno::EWOULDBLOCK).context("while the disk is open")?;
    drop(file);
    let made = Fs::Ext4.make(disk)?;
    let mount = made.mount("dax=always")?;
    expect_errno(rmmod(), Errno::EWOULDBLOCK).context("while mounted")?;
    let file = mount.allocate("f", MIB)?;
    let mapping = Mapping::shared(&file, 0, MIB)?;
    mapping.touch(0, 1);
    drop(file);
    expect_errno(rmmod(), Errno::EWOULDBLOCK).context("while mapped")?;
    drop(mapping);
    mount.unmount()?;
    driver.unload()
}

/// The data stays in memory while the module is away.
fn content_survives(ctx: &Ctx) -> Result<()> {
    let data = pattern(1, 0, 4 * MIB as usize);
    let driver = Driver::load(ctx, &[])?;
    let at = driver.disk(0).size - 4 * MIB;
    write_at(&driver.disk(0).open_direct()?, at, &data)?;
    driver.unload()?;
    let driver = Driver::load(ctx, &[])?;
    same(
        "after reload",
        &read_at(&driver.disk(0).open_direct()?, at, data.len())?,
        &data,
    )
}

/// What the kernel has allocated: objects per slab cache, vmalloc areas, the resource tree.
struct Inventory {
    slabs: BTreeMap<String, i64>,
    vmalloc: BTreeMap<String, i64>,
    iomem: String,
}

impl Inventory {
    fn take() -> Result<Self> {
        // What is only cached, and what waits for a grace period, is no leak. Free objects that
        // a CPU keeps count as active until the cache is shrunk.
        sh(
            "sync; echo 3 >/proc/sys/vm/drop_caches; sleep 1; echo 3 >/proc/sys/vm/drop_caches; \
            for s in /sys/kernel/slab/*/shrink; do echo 1 >$s; done",
        )?;
        let mut slabs = BTreeMap::new();
        for line in fs::read_to_string("/proc/slabinfo")?.lines().skip(2) {
            let mut words = line.split_whitespace();
            if let (Some(name), Some(active)) = (words.next(), words.next()) {
                slabs.insert(name.to_string(), active.parse()?);
            }
        }
        let mut vmalloc = BTreeMap::new();
        for line in fs::read_to_string("/proc/vmallocinfo")?.lines() {
            // "start-end size caller …": count areas by caller, with their sizes.
            let mut words = line.split_whitespace().skip(1);
            let size = words.next().unwrap_or_default();
            let caller = words.next().unwrap_or_default();
            *vmalloc
                .entry(format!("{caller} of {size} bytes"))
                .or_insert(0) += 1;
        }
        Ok(Inventory {
            slabs,
            vmalloc,
            iomem: fs::read_to_string("/proc/iomem")?,
        })
    }

    /// Whatever has `least` more of than `before` had.
    fn grown(&self, before: &Self, least: i64) -> Vec<String> {
        let mut grown = Vec::new();
        for (now, then) in [
            (&self.slabs, &before.slabs),
            (&self.vmalloc, &before.vmalloc),
        ] {
            for (name, count) in now {
                let more = count - then.get(name).unwrap_or(&0);
                if more.abs() > 5 {
                    println!("{name}: {more:+}");
                }
                if more >= least {
                    grown.push(format!("{name}: {more:+}"));
                }
            }
        }
        grown
    }
}

/// Load, mount, write, unmount, unload; 50 times, and nothing has grown by one a time.
fn fifty_times(ctx: &Ctx) -> Result<()> {
    const WARM_UP: u64 = 5;
    let rounds = ctx.pick(50, 200);
    let mut before = None;
    for round in 0..rounds {
        if round == WARM_UP {
            before = Some(Inventory::take()?);
        }
        let driver = Driver::load(ctx, &[])?;
        let fs = Fs::ALL[(round % 2) as usize];
        let disk = driver.disk((round % 2) as usize);
        let made = if round < 2 {
            fs.make(disk)?
        } else {
            crate::fixture::fs::Made {
                fs,
                device: disk.path.clone(),
            }
        };
        let mount = made.mount("dax=always")?;
        let file = mount.allocate("f", 4 * MIB)?;
        let mapping = Mapping::shared(&file, 0, 4 * MIB)?;
        for at in (0..4 * MIB).step_by(16 * PAGE as usize) {
            mapping.touch(at, round as u8);
        }
        file.sync_all()?;
        drop((mapping, file));
        mount.unmount()?;
        driver.unload()?;
    }
    let before = before.expect("more rounds than warm-up");
    // Half an object a round: caches breathe, a leak grows every time. And it stays: what a grace
    // period frees after a cache was shrunk counts as in use until the next look.
    let mut looks = 0;
    loop {
        let after = Inventory::take()?;
        ensure!(
            after.iomem == before.iomem,
            "/proc/iomem differs:\n{}",
            after.iomem
        );
        let grown = after.grown(&before, (rounds - WARM_UP) as i64 / 2);
        if grown.is_empty() {
            break;
        }
        looks += 1;
        ensure!(
            looks < 5,
            "after {} rounds more: {}",
            rounds - WARM_UP,
            grown.join(", ")
        );
    }
    Ok(())
}

/// What one driver wrote, the other finds: ours and nd_pmem agree on where a sector lies.
fn takes_turns_with_nd_pmem(ctx: &Ctx) -> Result<()> {
    let data = pattern(1, 0, 2 * MIB as usize);
    let other = pattern(2, 0, 2 * MIB as usize);
    let driver = Driver::load(ctx, &[])?;
    let size = driver.disk(0).size;
    let start = driver.disk(0).start;
    write_at(&driver.disk(0).open_direct()?, size - 2 * MIB, &data)?;
    driver.unload()?;
    let c = Driver::load(
        &Ctx {
            on: proto::On::C,
            fs_dax_off: false,
            stress: false,
        },
        &[],
    )?;
    let disk = c
        .disks()
        .iter()
        .find(|d| d.start == start)
        .context("nd_pmem has no such range")?;
    let file = disk.open_direct()?;
    same(
        "nd_pmem",
        &read_at(&file, size - 2 * MIB, data.len())?,
        &data,
    )?;
    write_at(&file, 0, &other)?;
    drop(file);
    c.unload()?;
    let driver = Driver::load(ctx, &[])?;
    same(
        "ours",
        &read_at(&driver.disk(0).open_direct()?, 0, other.len())?,
        &other,
    )?;
    Ok(())
}
