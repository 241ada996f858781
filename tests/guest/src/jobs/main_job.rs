// SPDX-License-Identifier: GPL-2.0

//! The main job of `make run`: a file mapped, written and fsynced on ext4 and xfs is found in
//! the raw device at its physical offset, after a remount, and after a reboot.

use std::time::Instant;

use anyhow::{bail, ensure, Context, Result};

use crate::fixture::fs::{is_dax, physical, Made};
use crate::fixture::io::{read_at, same};
use crate::fixture::{pattern, Driver, Fs, Mapping, MIB, PAGE};
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
        let t = Instant::now();
        let mount = mount.remount()?;
        file_check(&mount.path(FILE), fs)?;
        ctx.step(t, format!("{fs}: the bytes after a remount"));
        mount.unmount()?;
        ctx.data(serde_json::to_value(offsets)?);
    }
    driver.unload()
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
