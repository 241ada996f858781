// SPDX-License-Identifier: GPL-2.0

//! DAX on our disks through the kernel's own fs/dax.c (`fs_dax=0`): is direct_access right?
//! The same with our own fs/dax layer is other suites' business, but for bad blocks, on which both
//! have to agree.

use std::os::unix::fs::FileExt;

use anyhow::{ensure, Result};
use nix::errno::Errno;
use proto::{Machine, Tag};

use crate::fixture::driver::expect_errno;
use crate::fixture::fs::{fallocate, is_dax, physical};
use crate::fixture::io::{errno_of, read_at, same, write_at};
use crate::fixture::{pattern, sh, Disk, Driver, Fs, Mapping, MIB, PAGE, PMD};
use crate::test::{Ctx, Suite};

pub fn suite(s: &mut Suite) {
    for fs in Fs::ALL {
        s.test(format!("pte_{fs}"), move |ctx| pte(ctx, fs))
            .tag(Tag::Smoke);
        s.test(format!("pmd_{fs}"), move |ctx| pmd(ctx, fs))
            .tag(Tag::Smoke);
        s.test(format!("whole_device_{fs}"), move |ctx| {
            whole_device(ctx, fs)
        });
        s.test(format!("read_write_{fs}"), move |ctx| read_write(ctx, fs));
        s.test(format!("dax_option_{fs}"), move |ctx| dax_option(ctx, fs));
        s.test(format!("map_sync_{fs}"), move |ctx| map_sync(ctx, fs));
        s.test(format!("remount_{fs}"), move |ctx| remount(ctx, fs));
        s.test(format!("bad_block_in_file_{fs}"), move |ctx| {
            bad_block_in_file(load(ctx)?, fs, Errno::EFAULT)
        });
        s.test(format!("bad_block_in_file_rust_{fs}"), move |ctx| {
            bad_block_in_file(Driver::load(ctx, &[])?, fs, Errno::EIO)
        })
        .tag(Tag::RustOnly);
        for (name, cpu) in [
            ("clflushopt", "max,-clwb"),
            ("clflush", "max,-clwb,-clflushopt"),
        ] {
            s.test(format!("remount_{name}_{fs}"), move |ctx| remount(ctx, fs))
                .machine(Machine::default().cpu(cpu));
        }
    }
}

fn load(ctx: &Ctx) -> Result<Driver> {
    Driver::load(ctx, &["fs_dax=0"])
}

/// Checks that each page of a mapped range is the physical page where the file system put it,
/// and that the raw disk has these bytes there.
fn check_pages(
    disk: &Disk,
    file: &std::fs::File,
    mapping: &Mapping,
    range: std::ops::Range<u64>,
) -> Result<()> {
    let raw = disk.open_direct()?;
    for offset in range.step_by(PAGE as usize) {
        let on_disk = physical(file, offset)?;
        let mapped = mapping.physical(offset)?;
        ensure!(
            mapped == Some(disk.start + on_disk),
            "page {offset:#x} of the file lies at {on_disk:#x} of {} (physical {:#x}), \
             but {mapped:x?} is mapped",
            disk.name,
            disk.start + on_disk
        );
        let want = mapping.read(offset, PAGE as usize);
        same(
            &format!("raw disk at {on_disk:#x}"),
            &read_at(&raw, on_disk, PAGE as usize)?,
            &want,
        )?;
    }
    Ok(())
}

/// 4 KiB mappings: stores land where the file system's block is, and a change of the raw disk
/// is seen in the mapping at once.
fn pte(ctx: &Ctx, fs: Fs) -> Result<()> {
    let driver = load(ctx)?;
    let disk = driver.disk(0);
    let mount = fs.make(disk)?.mount("dax=always")?;
    // Blocks that do not begin at 2 MiB.
    let file = mount.create("f")?;
    file.write_all_at(&pattern(1, 0, 64 * PAGE as usize), 0)?;
    let mapping = Mapping::shared(&file, 0, 64 * PAGE)?;
    let data = pattern(2, 0, 64 * PAGE as usize);
    mapping.write(0, &data);
    mapping.expect_huge(0, false)?;
    file.sync_all()?;
    check_pages(disk, &file, &mapping, 0..64 * PAGE)?;
    let other = pattern(3, 0, PAGE as usize);
    write_at(&disk.open_direct()?, physical(&file, 5 * PAGE)?, &other)?;
    same(
        "mapping after a raw write",
        &mapping.read(5 * PAGE, PAGE as usize),
        &other,
    )
}

/// 2 MiB mappings, seen as such in the page table.
fn pmd(ctx: &Ctx, fs: Fs) -> Result<()> {
    let driver = load(ctx)?;
    let disk = driver.disk(0);
    let mount = fs.make(disk)?.mount("dax=always")?;
    let file = mount.allocate_huge("f", 4 * PMD, disk)?;
    let mapping = Mapping::shared(&file, 0, 4 * PMD)?;
    for at in [0, PMD + 5 * PAGE, 4 * PMD - PAGE] {
        mapping.write(at, &pattern(at, 0, PAGE as usize));
        mapping.expect_huge(at, true)?;
    }
    file.sync_all()?;
    check_pages(disk, &file, &mapping, 0..PMD)?;
    check_pages(disk, &file, &mapping, 3 * PMD..4 * PMD)?;
    let got = mapping.read(PMD + 5 * PAGE, PAGE as usize);
    same("PMD", &got, &pattern(PMD + 5 * PAGE, 0, PAGE as usize))
}

/// A file over most of the disk: the last blocks are as right as the first.
fn whole_device(ctx: &Ctx, fs: Fs) -> Result<()> {
    let driver = load(ctx)?;
    let disk = driver.disk(0);
    let mount = fs.make(disk)?.mount("dax=always")?;
    let size = disk.size * 3 / 5 / PMD * PMD;
    let file = mount.allocate("f", size)?;
    let mapping = Mapping::shared(&file, 0, size)?;
    // A page in every 8 MiB, and the last.
    let places: Vec<u64> = (0..size).step_by(8 << 20).chain([size - PAGE]).collect();
    for at in &places {
        mapping.write(*at, &pattern(*at, *at, PAGE as usize));
    }
    file.sync_all()?;
    for at in &places {
        check_pages(disk, &file, &mapping, *at..*at + PAGE)?;
        same(
            "mapping",
            &mapping.read(*at, PAGE as usize),
            &pattern(*at, *at, PAGE as usize),
        )?;
    }
    Ok(())
}

/// read(2) and write(2), whole and partial pages, holes, O_DIRECT.
fn read_write(ctx: &Ctx, fs: Fs) -> Result<()> {
    let driver = load(ctx)?;
    let mount = fs.make(driver.disk(0))?.mount("dax=always")?;
    let file = mount.create("f")?;
    let mut model = vec![0; 3 * MIB as usize];
    for (seed, (offset, len)) in (1..).zip([
        (0, 10),
        (4000, 200),
        (PAGE, PAGE),
        (MIB - 1, 2),
        (MIB + 100_000, 500_000),
        (3 * MIB - 77, 77),
    ]) {
        let data = pattern(seed, offset, len as usize);
        file.write_all_at(&data, offset)?;
        model[offset as usize..(offset + len) as usize].copy_from_slice(&data);
    }
    file.sync_all()?;
    let mut got = vec![0xff; model.len()];
    file.read_exact_at(&mut got, 0)?;
    same("read", &got, &model)?;
    let mapping = Mapping::read_only(&file, 0, model.len() as u64)?;
    same("mmap", &mapping.read(0, model.len()), &model)?;
    sh(format!(
        "dd if={0} of={0}.copy bs=64k iflag=direct oflag=direct status=none && cmp {0} {0}.copy",
        mount.path("f").display()
    ))?;
    Ok(())
}

/// dax=always, never and inode do what they say.
fn dax_option(ctx: &Ctx, fs: Fs) -> Result<()> {
    let driver = load(ctx)?;
    let made = fs.make(driver.disk(0))?;
    for (option, want) in [("dax=always", true), ("dax=never", false)] {
        let mount = made.mount(option)?;
        mount.create("f")?;
        let is = is_dax(&mount.path("f"))?;
        ensure!(is == want, "-o {option}: STATX_ATTR_DAX is {is}");
        mount.unmount()?;
    }
    let mount = made.mount("dax=inode")?;
    ensure!(
        !is_dax(&mount.path("f"))?,
        "-o dax=inode: DAX without asking"
    );
    let dir = mount.path("d");
    sh(format!(
        "mkdir {0} && xfs_io -c 'chattr +x' {0} && touch {0}/f",
        dir.display()
    ))?;
    ensure!(
        is_dax(&dir.join("f"))?,
        "-o dax=inode: not inherited from the directory"
    );
    Ok(())
}

/// MAP_SYNC works with DAX and is refused without.
fn map_sync(ctx: &Ctx, fs: Fs) -> Result<()> {
    let driver = load(ctx)?;
    let disk = driver.disk(0);
    let made = fs.make(disk)?;
    let mount = made.mount("dax=always")?;
    let file = mount.allocate("f", MIB)?;
    let mapping = Mapping::sync(&file, 0, MIB)?;
    let data = pattern(1, 0, PAGE as usize);
    mapping.write(8 * PAGE, &data);
    check_pages(disk, &file, &mapping, 8 * PAGE..9 * PAGE)?;
    drop((mapping, file));
    mount.unmount()?;
    let mount = made.mount("dax=never")?;
    let file = mount.open("f")?;
    expect_errno(
        Mapping::sync(&file, 0, MIB).map(|m| m.len()),
        Errno::EOPNOTSUPP,
    )
}

/// What was written through a mapping is there after each of fsync, msync, sync and unmount.
fn remount(ctx: &Ctx, fs: Fs) -> Result<()> {
    let driver = load(ctx)?;
    let mut mount = fs.make(driver.disk(0))?.mount("dax=always")?;
    for (seed, how) in (1..).zip(["fsync", "fdatasync", "msync", "sync", "unmount"]) {
        let file = mount.allocate("f", 4 * MIB)?;
        let mapping = Mapping::shared(&file, 0, 4 * MIB)?;
        let data = pattern(seed, 0, 4 * MIB as usize);
        mapping.write(0, &data);
        match how {
            "fsync" => file.sync_all()?,
            "fdatasync" => file.sync_data()?,
            "msync" => mapping.msync(0, 4 * MIB)?,
            "sync" => {
                sh("sync")?;
            }
            _ => {}
        }
        drop((mapping, file));
        mount = mount.remount()?;
        same(how, &std::fs::read(mount.path("f"))?, &data)?;
    }
    mount.unmount()?.check()
}

/// A bad block in a file: EIO from read(2) and SIGBUS from a load, until write(2) replaces the
/// page. A write(2) that begins inside the page is an error (C's says EFAULT, ours EIO), zeroing a
/// part of the page as well; zeroing the whole page, or cutting it off, gives it up.
fn bad_block_in_file(driver: Driver, fs: Fs, inside: Errno) -> Result<()> {
    let disk = driver.disk(0);
    let made = fs.make(disk)?;
    let mount = made.mount("dax=always")?;
    let file = mount.create("f")?;
    file.write_all_at(&pattern(1, 0, 16 * PAGE as usize), 0)?;
    file.sync_all()?;
    let bad = 7 * PAGE;
    let sector = physical(&file, bad)? / 512;
    disk.set_sysfs("badblocks", &format!("{sector} 8"))?;
    let mut page = vec![0; PAGE as usize];
    let e = file
        .read_exact_at(&mut page, bad)
        .expect_err("read a bad block");
    ensure!(errno_of(&e) == Errno::EIO, "{e}");
    file.read_exact_at(&mut page, bad - PAGE)?;
    // A load ends in SIGBUS; another process takes it.
    let path = mount.path("f");
    let said = crate::fixture::sh_fails(format!(
        "xfs_io -r -c 'mmap -r 0 64k' -c 'mread {bad} 8' {}; exit $?",
        path.display()
    ))?;
    ensure!(said.contains("Bus error"), "a load of a bad block: {said}");
    let data = pattern(2, bad, PAGE as usize);
    for (at, len) in [(bad + 100, 200), (bad + 512, PAGE as usize)] {
        let e = file
            .write_at(&data[..len], at)
            .expect_err("wrote into a bad page");
        ensure!(errno_of(&e) == inside, "write(2) at {at:#x}: {e}");
    }
    ensure!(
        disk.sysfs("badblocks")? == format!("{sector} 8"),
        "the list is '{}'",
        disk.sysfs("badblocks")?
    );
    file.write_all_at(&data, bad)?;
    file.read_exact_at(&mut page, bad)?;
    same("rewritten", &page, &data)?;
    ensure!(
        disk.sysfs("badblocks")?.is_empty(),
        "the list is '{}'",
        disk.sysfs("badblocks")?
    );

    // A write(2) that begins before the page may begin anywhere.
    disk.set_sysfs("badblocks", &format!("{sector} 8"))?;
    let around = pattern(3, 0, PAGE as usize + 200);
    let n = file.write_at(&around, bad - 100)?;
    ensure!(n == around.len(), "{n} bytes written around the page");
    let mut got = vec![0; around.len()];
    file.read_exact_at(&mut got, bad - 100)?;
    same("written around the page", &got, &around)?;

    // A part of the page cannot be zeroed, and stays as it is.
    disk.set_sysfs("badblocks", &format!("{sector} 8"))?;
    let zero = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
    let e = fallocate(&file, zero, bad + 100, 200).expect_err("zeroed a part of a bad page");
    ensure!(e.downcast_ref() == Some(&Errno::EIO), "zero range: {e:#}");
    let e = file
        .read_exact_at(&mut page, bad)
        .expect_err("read a bad block");
    ensure!(errno_of(&e) == Errno::EIO, "{e}");
    // All of it can: the file has other blocks there, or none until they are written.
    fallocate(&file, zero, bad, PAGE)?;
    file.read_exact_at(&mut page, bad)?;
    same("zeroed", &page, &[0; PAGE as usize])?;
    // Without the page the file is as good as new.
    file.set_len(bad)?;
    file.set_len(16 * PAGE)?;
    file.write_all_at(&data, bad)?;
    file.read_exact_at(&mut page, bad)?;
    same("after truncation", &page, &data)?;
    drop(file);
    mount.unmount()?.check()
}
