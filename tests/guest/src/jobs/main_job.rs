// SPDX-License-Identifier: GPL-2.0

//! The main job of `make run`: a file mapped, written and fsynced on ext4 and xfs is found in
//! the raw device at its physical offset, after a remount, and after a reboot. And for each way to
//! make stores durable, who did it: the counters of fs_dax before and after.

use std::os::unix::fs::FileExt;
use std::time::Instant;

use anyhow::{bail, ensure, Context, Result};

use crate::fixture::fs::{is_dax, physical, Made};
use crate::fixture::io::{read_at, same};
use crate::fixture::{pattern, Disk, Driver, Flow, Fs, Mapping, Mount, MIB, PAGE};
use crate::test::Ctx;

const FILE: &str = "data";
const SIZE: u64 = 4 * MIB;

/// Which file system lies on which disk.
const PLACES: [(usize, Fs); 2] = [(0, Fs::Ext4), (1, Fs::Xfs)];

fn content(fs: Fs) -> Vec<u8> {
    pattern(fs as u64 + 1, 0, SIZE as usize)
}

fn load(ctx: &Ctx) -> Result<Driver> {
    let mut t = Instant::now();
    let driver = Driver::load(ctx, &[])?;
    for disk in driver.disks() {
        let (start, end) = (disk.start, disk.start + disk.size - 1);
        let mib = disk.size / MIB;
        ctx.step(
            t,
            format!("range {start:#x}-{end:#x} is {} ({mib} MiB)", disk.path),
        );
        t = Instant::now();
    }
    ensure!(driver.disks().len() >= PLACES.len(), "too few disks");
    Ok(driver)
}

/// First boot: everything up to the remount. Reports where the bytes lie, for the second.
pub fn write(ctx: &Ctx) -> Result<()> {
    let driver = load(ctx)?;
    for (i, fs) in PLACES {
        let disk = driver.disk(i);
        let t = Instant::now();
        let made = fs.make(disk)?;
        ctx.step(t, format!("{fs}: mkfs on {}", disk.path));

        let t = Instant::now();
        let mount = made.mount("dax=always")?;
        let file = mount.create(FILE)?;
        ensure!(
            is_dax(&mount.path(FILE))?,
            "{fs}: the file is not in DAX mode"
        );
        ctx.step(
            t,
            format!("{fs}: mounted -o dax=always, statx says STATX_ATTR_DAX"),
        );

        let t = Instant::now();
        file.set_len(SIZE)?;
        let mapping = Mapping::shared(&file, 0, SIZE)?;
        mapping.write(0, &content(fs));
        ctx.step(t, format!("{fs}: {} MiB written through mmap", SIZE / MIB));

        let t = Instant::now();
        file.sync_all()?;
        drop(mapping);
        ctx.step(t, format!("{fs}: fsync"));

        let t = Instant::now();
        let offsets = page_offsets(&file)?;
        raw_check(disk.open_direct()?, fs, &offsets)?;
        ctx.step(
            t,
            format!("{fs}: the bytes are in {} where FIEMAP says", disk.path),
        );

        drop(file);
        for flow in Flow::ALL {
            show_flow(ctx, &mount, disk, flow)?;
        }

        let t = Instant::now();
        let mount = mount.remount()?;
        file_check(&mount.path(FILE), fs)?;
        ctx.step(t, format!("{fs}: the bytes after a remount"));
        mount.unmount()?;
        ctx.data(serde_json::to_value(offsets)?);
    }
    driver.unload()
}

/// Pages that each flow dirties.
const DIRTY: u64 = 16;

/// Takes a new file through a flow and shows what that did to the counters of the Rust layer, if it
/// is there.
fn show_flow(ctx: &Ctx, mount: &Mount, disk: &Disk, flow: Flow) -> Result<()> {
    let t = Instant::now();
    let name = flow.name();
    let file = mount.create(name)?;
    file.write_all_at(&vec![0; (DIRTY * PAGE) as usize], 0)?;
    file.sync_all()?;
    let counters = || -> Result<[u64; 3]> {
        Ok([
            disk.counter("pte_write_faults")?,
            disk.counter("pages_flushed")?,
            disk.counter("bytes_unmap")?,
        ])
    };
    let rust = !ctx.on_c();
    let before = if rust { counters()? } else { [0; 3] };
    let data = pattern(flow as u64 + 10, 0, (DIRTY * PAGE) as usize);
    let mut after = before;
    flow.run(
        &mount.path(name),
        |map| {
            map.write(0, &data);
            Ok(())
        },
        |_| {
            if rust {
                after = counters()?;
            }
            Ok(())
        },
    )?;
    let raw = disk.open_direct()?;
    for (page, want) in data.chunks(PAGE as usize).enumerate() {
        let at = physical(&file, page as u64 * PAGE)?;
        same(name, &read_at(&raw, at, PAGE as usize)?, want)?;
    }
    let fs = mount.fs();
    if !rust {
        ctx.step(t, format!("{fs}: {name}: the kernel's own fs/dax"));
        return Ok(());
    }
    let [faults, flushed, unmap] = std::array::from_fn(|i| format!("{}->{}", before[i], after[i]));
    ctx.step(
        t,
        format!("{fs}: {name}: rust faults {faults}, flushed {flushed}, unmap bytes {unmap}"),
    );
    ensure!(
        after[1] - before[1] == DIRTY,
        "{fs}: {name}: {DIRTY} pages were dirty, {} were flushed",
        after[1] - before[1]
    );
    Ok(())
}

/// Second boot, on the same memory: `facts` has the offsets per file system.
pub fn verify(ctx: &Ctx, facts: &[&str]) -> Result<()> {
    ensure!(
        facts.len() == PLACES.len(),
        "the first boot reported too little"
    );
    let driver = load(ctx)?;
    for ((i, fs), fact) in PLACES.into_iter().zip(facts) {
        let disk = driver.disk(i);
        let offsets: Vec<u64> = serde_json::from_str(fact)?;

        let t = Instant::now();
        raw_check(disk.open_direct()?, fs, &offsets)?;
        ctx.step(t, format!("{fs}: the bytes are still in {}", disk.path));

        let t = Instant::now();
        let made = Made {
            fs,
            device: disk.path.clone(),
        };
        made.check()?;
        let mount = made.mount("dax=always")?;
        file_check(&mount.path(FILE), fs)?;
        ctx.step(
            t,
            format!("{fs}: checked, mounted, the bytes are in the file"),
        );
        mount.unmount()?;
    }
    driver.unload()
}

/// Where each page of the file lies in the block device.
fn page_offsets(file: &std::fs::File) -> Result<Vec<u64>> {
    (0..SIZE)
        .step_by(PAGE as usize)
        .map(|o| physical(file, o))
        .collect()
}

fn raw_check(raw: std::fs::File, fs: Fs, offsets: &[u64]) -> Result<()> {
    ensure!(offsets.len() as u64 == SIZE / PAGE, "wrong number of pages");
    let want = content(fs);
    for (page, want) in offsets.iter().zip(want.chunks(PAGE as usize)) {
        let got = read_at(&raw, *page, PAGE as usize)?;
        same(&format!("{fs}: raw device at {page:#x}"), &got, want)?;
    }
    Ok(())
}

fn file_check(path: &std::path::Path, fs: Fs) -> Result<()> {
    let got = std::fs::read(path).with_context(|| path.display().to_string())?;
    if got.is_empty() {
        bail!("{fs}: the file is empty");
    }
    same(&format!("{fs}: file"), &got, &content(fs))
}
