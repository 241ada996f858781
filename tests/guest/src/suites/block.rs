// SPDX-License-Identifier: GPL-2.0

//! The block driver: every operation, at the edges, seen from user space.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use anyhow::{ensure, Context, Result};
use nix::errno::Errno;
use proto::{Machine, Tag};

use crate::fixture::driver::{expect_errno, ranges};
use crate::fixture::fs::fallocate;
use crate::fixture::io::{errno_of, pread2, pwrite2, read_at, same, write_at, Aligned};
use crate::fixture::trace::Trace;
use crate::fixture::{pattern, sh, sh_fails, Disk, Driver, Fs, KIB, MIB, PAGE};
use crate::test::{Ctx, Suite};

pub fn suite(s: &mut Suite) {
    s.test("disks_match_ranges", disks_match_ranges)
        .tag(Tag::Smoke);
    s.test("queue_attributes", queue_attributes);
    s.test("sizes_and_offsets", sizes_and_offsets)
        .tag(Tag::Smoke);
    s.test("segments", segments);
    s.test("buffered", buffered);
    s.test("beyond_the_end", beyond_the_end);
    s.test("random_against_model", random_against_model)
        .tag(Tag::Stress);
    s.test("threads", threads)
        .machine(Machine::default().smp(2));
    s.test("disks_are_apart", disks_are_apart);
    s.test("partitions", partitions);
    s.test("fua_and_preflush_fence", fua_and_preflush_fence)
        .tag(Tag::RustOnly)
        .tag(Tag::Smoke);
    s.test("flushes_are_counted", flushes_are_counted);
    s.test("write_zeroes", write_zeroes).tag(Tag::Smoke);
    s.test("discard_refused", discard_refused);
    s.test("iostat", iostat);
    s.test("read_only", read_only);
    s.test("nowait", nowait).tag(Tag::RustOnly);
    s.test("write_cache_attributes", write_cache_attributes);
    s.test("badblocks_read", badblocks_read).tag(Tag::Smoke);
    s.test("badblocks_write_clears", badblocks_write_clears);
    s.test("memory_failure", memory_failure).tag(Tag::RustOnly);
    s.test("lsblk_and_blkid", lsblk_and_blkid);
}

/// One disk per range, where and as large as the range is.
fn disks_match_ranges(ctx: &Ctx) -> Result<()> {
    let driver = Driver::load(ctx, &[])?;
    let ranges = ranges()?;
    ensure!(
        driver.disks().len() == ranges.len(),
        "{} disks",
        driver.disks().len()
    );
    for (disk, (start, size)) in driver.disks().iter().zip(ranges) {
        ensure!(
            disk.start == start,
            "{} starts at {:#x}, not {start:#x}",
            disk.name,
            disk.start
        );
        ensure!(
            disk.size == size,
            "{} has {} bytes, not {size}",
            disk.name,
            disk.size
        );
    }
    Ok(())
}

fn queue_attributes(ctx: &Ctx) -> Result<()> {
    let driver = Driver::load(ctx, &[])?;
    let mut want = vec![
        ("queue/logical_block_size", "512"),
        ("queue/physical_block_size", "4096"),
        ("queue/dax", "1"),
        ("queue/rotational", "0"),
        ("queue/discard_max_bytes", "0"),
        ("queue/write_cache", "write back"),
        ("queue/fua", "1"),
        ("dax/write_cache", "1"),
        ("ro", "0"),
        ("removable", "0"),
    ];
    if ctx.on_c() {
        // nd_pmem has statistics off, and with nd_e820 promises no persistence and so has no cache
        // to write back.
        let differs = [
            "queue/iostats",
            "queue/write_cache",
            "dax/write_cache",
            "queue/fua",
        ];
        want.retain(|(name, _)| !differs.contains(name));
    }
    for disk in driver.disks() {
        for (name, value) in &want {
            let is = disk.sysfs(name)?;
            ensure!(
                is == *value,
                "{}/{name} is '{is}', not '{value}'",
                disk.name
            );
        }
        if !ctx.on_c() {
            let max: u64 = disk.sysfs("queue/write_zeroes_max_bytes")?.parse()?;
            ensure!(max > 0, "no REQ_OP_WRITE_ZEROES");
        }
    }
    Ok(())
}

/// O_DIRECT reads and writes of many sizes at the first, last and middle sectors; what lies
/// around them stays.
fn sizes_and_offsets(ctx: &Ctx) -> Result<()> {
    let driver = Driver::load(ctx, &[])?;
    let disk = driver.disk(0);
    let file = disk.open_direct()?;
    let sizes = [
        512,
        1024,
        3584,
        4096,
        4608,
        8192,
        65536,
        MIB,
        MIB + 512,
        4 * MIB,
    ];
    for (seed, len) in (1..).zip(sizes) {
        for offset in [
            0,
            512,
            PAGE - 512,
            PAGE,
            disk.size / 2 - 512,
            disk.size - len,
        ] {
            let around_start = offset.saturating_sub(512);
            let around_end = (offset + len + 512).min(disk.size);
            let around = (around_end - around_start) as usize;
            let mut want = pattern(seed + 100, around_start, around);
            write_at(&file, around_start, &want)?;
            let data = pattern(seed, offset, len as usize);
            write_at(&file, offset, &data)?;
            let at = (offset - around_start) as usize;
            want[at..at + len as usize].copy_from_slice(&data);
            let got = read_at(&file, around_start, around)?;
            same(&format!("{len} bytes at {offset:#x}"), &got, &want)?;
        }
    }
    Ok(())
}

/// One bio of many segments, none of them page-aligned.
fn segments(ctx: &Ctx) -> Result<()> {
    let driver = Driver::load(ctx, &[])?;
    let file = driver.disk(0).open_direct()?;
    let lens = [512usize, 1024, 1536, 512, 7168, 512];
    let total: usize = lens.iter().sum();
    let data = pattern(1, 0, total);
    let mut memory = Aligned::zeroed(32 * PAGE as usize);
    // Each segment at its own page, 512 bytes before or after its beginning.
    let places: Vec<usize> = (0..lens.len())
        .map(|i| (3 * i + 1) * 4096 + 512 * (i % 7))
        .collect();
    let mut from = 0;
    for (place, len) in places.iter().zip(lens) {
        memory[*place..place + len].copy_from_slice(&data[from..from + len]);
        from += len;
    }
    let vectors = |memory: &mut Aligned| -> Vec<libc::iovec> {
        let base = memory.as_mut_ptr();
        places
            .iter()
            .zip(lens)
            .map(|(place, len)| libc::iovec {
                // SAFETY: the places lie within the buffer.
                iov_base: unsafe { base.add(*place) }.cast(),
                iov_len: len,
            })
            .collect()
    };
    for offset in [0i64, 512, 8 * 4096 - 512] {
        let iov = vectors(&mut memory);
        // SAFETY: the vectors point into `memory`, which outlives the call.
        let n = unsafe { libc::pwritev(file.as_raw_fd(), iov.as_ptr(), iov.len() as i32, offset) };
        ensure!(Errno::result(n)? as usize == total, "short write");
        same(
            "written in segments",
            &read_at(&file, offset as u64, total)?,
            &data,
        )?;

        let mut other = Aligned::zeroed(32 * PAGE as usize);
        let iov = vectors(&mut other);
        // SAFETY: as above.
        let n = unsafe { libc::preadv(file.as_raw_fd(), iov.as_ptr(), iov.len() as i32, offset) };
        ensure!(Errno::result(n)? as usize == total, "short read");
        let mut expected = Aligned::zeroed(32 * PAGE as usize);
        for (place, len) in places.iter().zip(lens) {
            expected[*place..place + len].copy_from_slice(&memory[*place..place + len]);
        }
        same("read in segments", &other, &expected)?;
    }
    Ok(())
}

/// Through the page cache, then seen by O_DIRECT.
fn buffered(ctx: &Ctx) -> Result<()> {
    let driver = Driver::load(ctx, &[])?;
    let disk = driver.disk(0);
    let cached = disk.open()?;
    let data = pattern(3, 100, 300_000);
    cached.write_all_at(&data, 100)?;
    cached.sync_all()?;
    let raw = read_at(&disk.open_direct()?, 0, 400 * 1024)?;
    same("raw after fsync", &raw[100..100 + data.len()], &data)?;
    let mut got = vec![0; data.len()];
    cached.read_exact_at(&mut got, 100)?;
    same("page cache", &got, &data)
}

fn beyond_the_end(ctx: &Ctx) -> Result<()> {
    let driver = Driver::load(ctx, &[])?;
    let disk = driver.disk(0);
    let file = disk.open_direct()?;
    let last = pattern(1, 0, 512);
    write_at(&file, disk.size - 512, &last)?;
    ensure!(
        pread2(&file, disk.size, 512, 0)?.is_empty(),
        "read beyond the end"
    );
    same(
        "last sector",
        &pread2(&file, disk.size - 512, 4096, 0)?,
        &last,
    )?;
    expect_errno(pwrite2(&file, disk.size, &last, 0), Errno::ENOSPC)?;
    let two = pattern(2, 0, 1024);
    let written = pwrite2(&file, disk.size - 512, &two, 0)?;
    ensure!(written == 512, "{written} bytes written over the end");
    same(
        "last sector",
        &read_at(&file, disk.size - 512, 512)?,
        &two[..512],
    )?;
    // Not a multiple of the logical block.
    expect_errno(pwrite2(&file, 0, &last[..100], 0), Errno::EINVAL)?;
    expect_errno(pwrite2(&file, 100, &last, 0), Errno::EINVAL)?;
    expect_errno(disk.zero_out(disk.size - 512, 1024), Errno::EINVAL)
}

/// A small generator of random numbers (xorshift64*): runs can be repeated.
struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % below
    }
}

/// Random reads, writes and zeroing, direct and buffered, against a copy in memory.
fn random_against_model(ctx: &Ctx) -> Result<()> {
    let driver = Driver::load(ctx, &[])?;
    let disk = driver.disk(0);
    let direct = disk.open_direct()?;
    let base = disk.size / 2 / PAGE * PAGE - 512;
    let area = 2 * MIB;
    let mut model = pattern(9, 0, area as usize);
    write_at(&direct, base, &model)?;
    let mut random = Random(0x5eed);
    for step in 0..ctx.pick(600, 20_000) {
        let sector = random.next(area / 512);
        let most = (area / 512 - sector).min(random.next(300) + 1);
        let (offset, len) = (sector * 512, (most * 512) as usize);
        let range = offset as usize..offset as usize + len;
        match random.next(8) {
            0 => {
                disk.zero_out(base + offset, len as u64)?;
                model[range].fill(0);
            }
            1 => {
                let data = pattern(step, offset, len);
                let written = pwrite2(&direct, base + offset, &data, libc::RWF_DSYNC)?;
                ensure!(written == len, "short write");
                model[range].copy_from_slice(&data);
            }
            2 | 3 => {
                let data = pattern(step, offset, len);
                write_at(&direct, base + offset, &data)?;
                model[range].copy_from_slice(&data);
            }
            _ => same(
                &format!("step {step}, {len} bytes at {offset:#x}"),
                &read_at(&direct, base + offset, len)?,
                &model[range],
            )?,
        }
    }
    same(
        "the whole area",
        &read_at(&direct, base, area as usize)?,
        &model,
    )
}

/// Four threads, each with sectors of its own between the others'.
fn threads(ctx: &Ctx) -> Result<()> {
    const THREADS: u64 = 4;
    let driver = Driver::load(ctx, &[])?;
    let disk = driver.disk(0);
    let file = disk.open_direct()?;
    let rounds = ctx.pick(200, 5000);
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..THREADS)
            .map(|me| {
                let file = &file;
                scope.spawn(move || -> Result<()> {
                    for round in 0..rounds {
                        let offset = (round % 64 * THREADS + me) * 1536;
                        let data = pattern(round * THREADS + me, offset, 1536);
                        write_at(file, offset, &data)?;
                        same("own sectors", &read_at(file, offset, 1536)?, &data)?;
                    }
                    Ok(())
                })
            })
            .collect();
        all.into_iter()
            .try_for_each(|t| t.join().expect("thread panicked"))
    })
}

/// What goes to one disk does not appear on the other.
fn disks_are_apart(ctx: &Ctx) -> Result<()> {
    let driver = Driver::load(ctx, &[])?;
    let files: Vec<File> = driver
        .disks()
        .iter()
        .map(Disk::open_direct)
        .collect::<Result<_>>()?;
    ensure!(files.len() > 1, "one disk only");
    let ends = |disk: &Disk| [0, disk.size - MIB];
    for (seed, (disk, file)) in (1..).zip(driver.disks().iter().zip(&files)) {
        for offset in ends(disk) {
            write_at(file, offset, &pattern(seed, offset, MIB as usize))?;
        }
    }
    for (seed, (disk, file)) in (1..).zip(driver.disks().iter().zip(&files)) {
        for offset in ends(disk) {
            let want = pattern(seed, offset, MIB as usize);
            same(&disk.name, &read_at(file, offset, MIB as usize)?, &want)?;
        }
    }
    Ok(())
}

/// Partitions: their I/O lands at their offset, an aligned one has DAX, another has not.
fn partitions(ctx: &Ctx) -> Result<()> {
    let driver = Driver::load(ctx, &[])?;
    let disk = driver.disk(0);
    let path = &disk.path;
    sh(format!(
        "dd if=/dev/zero of={path} bs=1M count=2 oflag=direct"
    ))?;
    sh(format!(
        "printf 'label: gpt\\nstart=4096,size=131072\\nstart=200001,size=100000\\n' | sfdisk -q {path}"
    ))?;
    let names: Vec<String> = [1, 2].iter().map(|n| format!("{path}p{n}")).collect();
    for (name, start) in names.iter().zip([4096u64, 200_001]) {
        let data = pattern(start, 0, 64 * 1024);
        let part = File::options()
            .read(true)
            .write(true)
            .open(name)
            .context(name.clone())?;
        part.write_all_at(&data, 512)?;
        part.sync_all()?;
        let raw = read_at(&disk.open_direct()?, start * 512 + 512, data.len())?;
        same(name, &raw, &data)?;
    }
    let made = Fs::Ext4.make_on(&names[0], &[])?;
    let mount = made.mount("dax=always")?;
    let file = mount.create("x")?;
    let data = pattern(5, 0, PAGE as usize);
    file.set_len(PAGE)?;
    crate::fixture::Mapping::shared(&file, 0, PAGE)?.write(0, &data);
    file.sync_all()?;
    let at = 4096 * 512 + crate::fixture::fs::physical(&file, 0)?;
    same(
        "file on a partition",
        &read_at(&disk.open_direct()?, at, PAGE as usize)?,
        &data,
    )?;
    drop(file);
    mount.unmount()?;
    // A partition that does not begin at a page cannot be mapped.
    let made = Fs::Ext4.make_on(&names[1], &[])?;
    ensure!(
        made.mount("dax=always").is_err(),
        "DAX on a partition at sector 200001"
    );
    sh(format!("partx -d {path}; wipefs -q -a {path}"))?;
    Ok(())
}

/// Bios with PREFLUSH and with FUA, seen on their way to the driver.
///
/// The letters of block_bio_queue: F for PREFLUSH, the operation, F for FUA, others.
fn durable_bios(trace: &Trace) -> Result<(u64, u64)> {
    let (mut preflush, mut fua) = (0, 0);
    for line in trace.take()? {
        println!("{line}");
        let letters = line
            .split("block_bio_queue: ")
            .nth(1)
            .and_then(|l| l.split_whitespace().nth(1))
            .with_context(|| line.clone())?;
        let operation = letters.strip_prefix('F').unwrap_or(letters);
        preflush += u64::from(operation.len() < letters.len());
        fua += u64::from(operation.get(1..).is_some_and(|rest| rest.contains('F')));
    }
    Ok((preflush, fua))
}

/// The driver fences once for each PREFLUSH and once for each FUA, and for nothing else.
fn fua_and_preflush_fence(ctx: &Ctx) -> Result<()> {
    let driver = Driver::load(ctx, &[])?;
    let disk = driver.disk(0);
    let file = disk.open_direct()?;
    let dsync = disk.open_with(libc::O_DIRECT | libc::O_DSYNC)?;
    let data = pattern(1, 0, 8192);
    let trace = Trace::start(&["block/block_bio_queue"])?;
    // The fences so far, and the bios since the last call, at a moment when there are none between: a
    // file system's threads send some of their own.
    let settled = || -> Result<(u64, (u64, u64))> {
        let mut bios = (0, 0);
        loop {
            let fences = disk.counter("fences")?;
            match durable_bios(&trace)? {
                (0, 0) => return Ok((fences, bios)),
                (preflush, fua) => bios = (bios.0 + preflush, bios.1 + fua),
            }
        }
    };
    // What `work` must have sent at least: bios with PREFLUSH, bios with FUA.
    let check = |what: &str, least: (u64, u64), work: &dyn Fn() -> Result<()>| -> Result<()> {
        let (before, _) = settled()?;
        work().context(what.to_string())?;
        let (after, (preflush, fua)) = settled()?;
        let fences = after - before;
        println!("{what}: {preflush} PREFLUSH, {fua} FUA, {fences} fences");
        ensure!(
            preflush >= least.0 && fua >= least.1,
            "{what}: only {preflush} PREFLUSH and {fua} FUA: nothing is tested"
        );
        ensure!(
            fences == preflush + fua,
            "{what}: {fences} fences for {preflush} PREFLUSH and {fua} FUA"
        );
        Ok(())
    };
    check("plain write", (0, 0), &|| write_at(&file, 0, &data))?;
    check("plain read", (0, 0), &|| read_at(&file, 0, 8192).map(drop))?;
    check("RWF_DSYNC", (0, 1), &|| {
        let written = pwrite2(&file, 0, &data, libc::RWF_DSYNC)?;
        ensure!(written == data.len(), "short write");
        Ok(())
    })?;
    check("O_DSYNC", (0, 1), &|| write_at(&dsync, 0, &data))?;
    check("fsync", (1, 0), &|| Ok(file.sync_all()?))?;
    check("fdatasync", (1, 0), &|| Ok(file.sync_data()?))?;
    for fs in Fs::ALL {
        let mount = fs.make(disk)?.mount("dax=always")?;
        check(&format!("{fs} journal commit"), (1, 1), &|| {
            Ok(mount.create("x")?.sync_all()?)
        })?;
    }
    Ok(())
}

/// The block layer sees the disk's flushes (field 15 of stat) as long as it has a write cache.
fn flushes_are_counted(ctx: &Ctx) -> Result<()> {
    let driver = Driver::load(ctx, &[])?;
    let disk = driver.disk(0);
    let file = disk.open()?;
    let trace = || -> Result<u64> {
        let trace = Trace::start(&["block/block_bio_queue"])?;
        file.sync_all()?;
        Ok(durable_bios(&trace)?.0)
    };
    disk.set_sysfs("queue/write_cache", "write back")?;
    let flushes = trace()?;
    ensure!(flushes == 1, "{flushes} flushes for one fsync");
    disk.set_sysfs("queue/write_cache", "write through")?;
    let flushes = trace()?;
    ensure!(
        flushes == 0,
        "{flushes} flushes although the cache writes through"
    );
    Ok(())
}

/// Zeroing: exact to the sector, at the edges, over batches, by ioctl and by fallocate.
fn write_zeroes(ctx: &Ctx) -> Result<()> {
    let driver = Driver::load(ctx, &[])?;
    let disk = driver.disk(0);
    let file = disk.open_direct()?;
    let base = disk.size - 16 * MIB;
    // No page is cut in two by the limit: a bad one could not be made good.
    let most: u64 = disk.sysfs("queue/write_zeroes_max_bytes")?.parse()?;
    ensure!(most % PAGE == 0, "up to {most} bytes at once");
    let cases = [
        (512, 512),
        (PAGE - 512, 1024),
        (0, PAGE),
        (PAGE, 2 * PAGE),
        (512, MIB),
        (1024, 5 * MIB + 512),
        (15 * MIB, MIB),
    ];
    for (offset, len) in cases {
        for by_fallocate in [false, true] {
            // What lies before and after must stay.
            let start = (base + offset).saturating_sub(PAGE).max(base);
            let end = (base + offset + len + PAGE).min(disk.size);
            let mut want = pattern(offset + len, start, (end - start) as usize);
            write_at(&file, start, &want)?;
            if by_fallocate {
                let mode = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
                fallocate(&disk.open()?, mode, base + offset, len)?;
            } else {
                disk.zero_out(base + offset, len)?;
            }
            let at = (base + offset - start) as usize;
            want[at..at + len as usize].fill(0);
            let got = read_at(&file, start, want.len())?;
            same(&format!("{len} bytes zeroed at {offset:#x}"), &got, &want)?;
        }
    }
    Ok(())
}

/// There is nothing to discard: refused, and the data stays.
fn discard_refused(ctx: &Ctx) -> Result<()> {
    let driver = Driver::load(ctx, &[])?;
    let disk = driver.disk(0);
    let file = disk.open_direct()?;
    let data = pattern(1, 0, MIB as usize);
    write_at(&file, 0, &data)?;
    expect_errno(disk.discard(0, MIB), Errno::EOPNOTSUPP)?;
    sh_fails(format!("blkdiscard -f {}", disk.path))?;
    sh_fails(format!("blkdiscard -f -s {}", disk.path))?;
    same(
        "after a refused discard",
        &read_at(&file, 0, data.len())?,
        &data,
    )?;
    let mount = Fs::Ext4.make(disk)?.mount("dax=always")?;
    let said = sh_fails(format!("fstrim {}", mount.dir.display()))?;
    ensure!(said.contains("not supported"), "fstrim says: {said}");
    Ok(())
}

/// /sys/block/…/stat counts what was done, in sectors.
fn iostat(ctx: &Ctx) -> Result<()> {
    let driver = Driver::load(ctx, &[])?;
    let disk = driver.disk(0);
    let file = disk.open_direct()?;
    disk.set_sysfs("queue/iostats", "1")?;
    let fields = || -> Result<Vec<u64>> { [0, 2, 4, 6].iter().map(|f| disk.stat(*f)).collect() };
    let before = fields()?;
    write_at(&file, 0, &vec![1; 64 * 1024])?;
    write_at(&file, 0, &[2; 512])?;
    read_at(&file, 0, 128 * 1024)?;
    let after = fields()?;
    let grown: Vec<u64> = after.iter().zip(before).map(|(a, b)| a - b).collect();
    ensure!(grown[1] == 256, "{} sectors read, not 256", grown[1]);
    ensure!(grown[3] == 129, "{} sectors written, not 129", grown[3]);
    ensure!(
        grown[0] >= 1 && grown[2] >= 2,
        "reads and writes: {grown:?}"
    );
    Ok(())
}

fn read_only(ctx: &Ctx) -> Result<()> {
    let driver = Driver::load(ctx, &[])?;
    let disk = driver.disk(0);
    let data = pattern(1, 0, PAGE as usize);
    write_at(&disk.open_direct()?, 0, &data)?;
    sh(format!("blockdev --setro {}", disk.path))?;
    ensure!(disk.sysfs("ro")? == "1", "not read-only");
    let file = File::open(&disk.path)?;
    same("read-only", &read_at(&file, 0, data.len())?, &data)?;
    ensure!(
        disk.open_direct()
            .and_then(|f| write_at(&f, 0, &data))
            .is_err(),
        "a read-only disk was written"
    );
    sh(format!("blockdev --setrw {}", disk.path))?;
    write_at(&disk.open_direct()?, 0, &data)
}

/// Nothing here ever sleeps, so that RWF_NOWAIT always succeeds.
fn nowait(ctx: &Ctx) -> Result<()> {
    let driver = Driver::load(ctx, &[])?;
    let file = driver.disk(0).open_direct()?;
    let data = pattern(1, 0, 64 * 1024);
    ensure!(
        pwrite2(&file, 0, &data, libc::RWF_NOWAIT)? == data.len(),
        "short write"
    );
    same(
        "nowait",
        &pread2(&file, 0, data.len(), libc::RWF_NOWAIT)?,
        &data,
    )
}

/// dax/write_cache: whether fs/dax writes back; takes booleans, refuses the rest.
fn write_cache_attributes(ctx: &Ctx) -> Result<()> {
    let driver = Driver::load(ctx, &[])?;
    let disk = driver.disk(0);
    for (set, is) in [("0", "0"), ("1", "1"), ("n", "0"), ("y", "1")] {
        disk.set_sysfs("dax/write_cache", set)?;
        let got = disk.sysfs("dax/write_cache")?;
        ensure!(got == is, "{set} gives {got}");
    }
    ensure!(
        disk.set_sysfs("dax/write_cache", "maybe").is_err(),
        "took 'maybe'"
    );
    ensure!(
        disk.sysfs("dax/write_cache")? == "1",
        "a refused value changed it"
    );
    for set in ["write through", "write back"] {
        disk.set_sysfs("queue/write_cache", set)?;
        let got = disk.sysfs("queue/write_cache")?;
        ensure!(got == set, "'{set}' gives '{got}'");
    }
    Ok(())
}

/// Sectors on the list of bad blocks are read errors, exactly they.
fn badblocks_read(ctx: &Ctx) -> Result<()> {
    let driver = Driver::load(ctx, &[])?;
    let disk = driver.disk(0);
    let file = disk.open_direct()?;
    let data = pattern(1, 0, 64 * 1024);
    write_at(&file, 0, &data)?;
    disk.set_sysfs("badblocks", "16 4")?;
    ensure!(
        disk.sysfs("badblocks")? == "16 4",
        "the list is '{}'",
        disk.sysfs("badblocks")?
    );
    for (sector, len, bad) in [
        (0, 16, false),
        (20, 16, false),
        (16, 1, true),
        (19, 1, true),
        (15, 1, false),
        (20, 1, false),
        (8, 16, true),
        (0, 128, true),
    ] {
        let result = pread2(&file, sector * 512, len * 512, 0);
        if bad {
            expect_errno(result.map(|b| b.len()), Errno::EIO)
                .with_context(|| format!("{len} sectors at {sector}"))?;
        } else {
            let at = sector as usize * 512;
            same("beside bad blocks", &result?, &data[at..at + len * 512])?;
        }
    }
    // Through the page cache as well.
    let mut one = [0; 512];
    let e = disk
        .open()?
        .read_exact_at(&mut one, 17 * 512)
        .expect_err("a bad block was read");
    ensure!(errno_of(&e) == Errno::EIO, "{e}");
    Ok(())
}

/// Writing bad sectors makes them good again, and only those written.
fn badblocks_write_clears(ctx: &Ctx) -> Result<()> {
    let driver = Driver::load(ctx, &[])?;
    let disk = driver.disk(0);
    let file = disk.open_direct()?;
    write_at(&file, 0, &pattern(1, 0, 64 * 1024))?;
    disk.set_sysfs("badblocks", "16 16")?;
    // The first page of two.
    let data = pattern(2, 8192, 4096);
    write_at(&file, 8192, &data)?;
    same("rewritten", &read_at(&file, 8192, 4096)?, &data)?;
    expect_errno(pread2(&file, 12288, 4096, 0).map(|b| b.len()), Errno::EIO)?;
    ensure!(
        disk.sysfs("badblocks")? == "24 8",
        "the list is '{}'",
        disk.sysfs("badblocks")?
    );
    // The rest by zeroing.
    disk.zero_out(12288, 4096)?;
    same("zeroed", &read_at(&file, 12288, 4096)?, &[0; 4096])?;
    ensure!(
        disk.sysfs("badblocks")?.is_empty(),
        "the list is '{}'",
        disk.sysfs("badblocks")?
    );
    Ok(())
}

/// A page the kernel gives up (memory_failure) is a read error, until it is written as a whole.
fn memory_failure(ctx: &Ctx) -> Result<()> {
    let driver = Driver::load(ctx, &[])?;
    let disk = driver.disk(0);
    let file = disk.open_direct()?;
    let at = 64 * KIB;
    write_at(&file, 0, &pattern(1, 0, 256 * 1024))?;
    let page = disk.start + at;
    let told = std::fs::write(
        "/sys/devices/system/memory/hard_offline_page",
        format!("{page:#x}"),
    );
    // The page is in no file, so that there is nobody to kill: the kernel calls that busy.
    let errno = told.as_ref().err().map(errno_of);
    ensure!(errno == Some(Errno::EBUSY), "hard_offline_page: {told:?}");
    ensure!(
        disk.counter("memory_failures")? == 1,
        "not told of the failure"
    );
    let sector = at / 512;
    let list = disk.sysfs("badblocks")?;
    ensure!(list == format!("{sector} 8"), "the list is '{list}'");
    expect_errno(pread2(&file, at, 4096, 0).map(|b| b.len()), Errno::EIO)?;
    for near in [at - 4096, at + 4096] {
        let got = read_at(&file, near, 4096)?;
        same("a page beside it", &got, &pattern(1, near, 4096))?;
    }
    let data = pattern(2, at, 4096);
    write_at(&file, at, &data)?;
    same("rewritten", &read_at(&file, at, 4096)?, &data)?;
    ensure!(
        disk.sysfs("badblocks")?.is_empty(),
        "the list is '{}'",
        disk.sysfs("badblocks")?
    );
    Ok(())
}

/// Tools see an ordinary disk.
fn lsblk_and_blkid(ctx: &Ctx) -> Result<()> {
    let driver = Driver::load(ctx, &[])?;
    let disk = driver.disk(0);
    Fs::Xfs.make(disk)?;
    let seen = sh(format!("lsblk -n -b -o NAME,SIZE,TYPE,DAX {}", disk.path))?;
    let words: Vec<&str> = seen.split_whitespace().collect();
    let size = disk.size.to_string();
    ensure!(
        words == [disk.name.as_str(), &size, "disk", "1"],
        "lsblk says {words:?}"
    );
    let kind = sh(format!("blkid -p -s TYPE -o value {}", disk.path))?;
    ensure!(kind == "xfs", "blkid says {kind}");
    ensure!(
        sh(format!("blockdev --getsize64 {}", disk.path))? == size,
        "blockdev differs"
    );
    Ok(())
}
