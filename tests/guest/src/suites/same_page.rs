// SPDX-License-Identifier: GPL-2.0

//! Stores to a mapping and file operations at the same page at the same time, on two CPUs, where one
//! of them makes blocks or copies them. Whatever the order, nothing that was stored or written may be
//! lost to what was there before, and nobody may see what a deleted file has left.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use nix::errno::Errno;
use proto::{Machine, Tag};

use super::races::{until, Rng};
use crate::fixture::dax::{clone_range, on_each, Model};
use crate::fixture::fs::{fallocate, physical};
use crate::fixture::thread::Waiter;
use crate::fixture::{pattern, sh, Dax, Driver, Fs, Mapping, MIB, PAGE, PMD};
use crate::test::{Ctx, Suite};

pub fn suite(s: &mut Suite) {
    let time = |ctx: &Ctx| ctx.pick(Duration::from_secs(3), Duration::from_secs(60));
    let mut add = |name: &str, fs: &'static [Fs], run: fn(Dax, Duration) -> Result<()>, why| {
        s.test(name, move |ctx| on_each(ctx, fs, |dax| run(dax, time(ctx))))
            .machine(Machine::default().smp(2))
            .limit(120)
            .tag(Tag::Stress)
            .c_is_wrong(why);
    };
    add(
        "store_and_write_copy",
        &[Fs::Xfs],
        store_and_write_copy,
        "a fault and a write(2) copy the same old bytes over what the other has stored",
    );
    add(
        "store_and_write_beside_copy",
        &[Fs::Xfs],
        store_and_write_beside_copy,
        "xfs makes blocks for copy-on-write ready for neighbours too, and ends them with theirs",
    );
    add(
        "store_and_failed_write",
        &[Fs::Xfs],
        store_and_failed_write,
        "a write(2) that fails frees the blocks that a fault maps",
    );
    add(
        "load_and_make",
        &[Fs::Ext4],
        load_and_make,
        "ext4 gives out blocks before it has zeroed them (generic/346)",
    );
    s.test("slow_source", slow_source).limit(120);
    s.test("source_is_destination", |ctx| {
        on_each(ctx, &Fs::ALL, source_is_destination)
    });
}

/// Pages of the file.
const PAGES: u64 = 8;
const OLD: u8 = 0x11;
const STORED: u8 = 0x22;
const WRITTEN: u8 = 0x33;

/// Where a thread stores one byte after the other.
type Stores = [u64; 2];

/// Runs `write` on a file that shares all its blocks, or every second one, with another one, while
/// another thread stores to two pages beside each other, then `check`; again and again.
fn copies(
    dax: &Dax,
    time: Duration,
    all: bool,
    write: impl Fn(&File) -> Result<()> + Sync,
    check: impl Fn(&File, &Mapping, Stores) -> Result<()>,
) -> Result<()> {
    let origin = dax.mount.create("origin")?;
    origin.write_all_at(&[OLD; (PAGES * PAGE) as usize], 0)?;
    origin.sync_all()?;
    let file = dax.mount.create("f")?;
    file.set_len(PAGES * PAGE)?;
    let map = Mapping::shared(&file, 0, PAGES * PAGE)?;
    let (start, at, delay) = (Barrier::new(2), AtomicU64::new(0), AtomicU64::new(0));
    let (end, failed) = (Instant::now() + time, AtomicBool::new(false));
    let mut rng = Rng::new(time.as_secs());
    let mut rounds = 0;
    std::thread::scope(|scope| {
        let storer = scope.spawn(|| loop {
            start.wait();
            let offset = at.load(Ordering::SeqCst);
            if offset == u64::MAX {
                return;
            }
            let from = Instant::now();
            while from.elapsed() < Duration::from_nanos(delay.load(Ordering::SeqCst)) {
                std::hint::spin_loop();
            }
            map.touch(offset, STORED);
            map.touch(offset ^ PAGE, STORED);
            start.wait();
        });
        let result = until(end, &failed, || {
            rounds += 1;
            clone_range(&origin, 0, PAGES * PAGE, &file, 0).context("clone")?;
            if !all {
                for page in (1..PAGES).step_by(2) {
                    file.write_all_at(&[OLD; PAGE as usize], page * PAGE)?;
                }
            }
            at.store(rng.below(PAGES * PAGE), Ordering::SeqCst);
            delay.store(rng.below(400_000), Ordering::SeqCst);
            start.wait();
            let result = write(&file);
            start.wait();
            result?;
            let at = at.load(Ordering::SeqCst);
            check(&file, &map, [at, at ^ PAGE]).with_context(|| format!("round {rounds}"))
        });
        at.store(u64::MAX, Ordering::SeqCst);
        start.wait();
        storer.join().expect("the storing thread panicked");
        println!("{rounds} rounds");
        result
    })
}

/// A write(2) of all but the ends of the file. What it has written stays, or what was stored there;
/// what was stored beside it stays.
fn store_and_write_copy(dax: Dax, time: Duration) -> Result<()> {
    store_and_write(dax, time, true)
}

/// The same where every second block is not shared.
fn store_and_write_beside_copy(dax: Dax, time: Duration) -> Result<()> {
    store_and_write(dax, time, false)
}

fn store_and_write(dax: Dax, time: Duration, all: bool) -> Result<()> {
    const END: u64 = 1000;
    let written = END..PAGES * PAGE - END;
    let new = [WRITTEN; (PAGES * PAGE - 2 * END) as usize];
    copies(
        &dax,
        time,
        all,
        |file| Ok(file.write_all_at(&new, END)?),
        |file, map, stored| {
            let mut data = [0; (PAGES * PAGE) as usize];
            file.read_exact_at(&mut data, 0)?;
            ensure!(
                map.read(0, data.len()) == data,
                "the mapping and read(2) differ"
            );
            for (i, &byte) in (0..).zip(&data) {
                let right = match (stored.contains(&i), written.contains(&i)) {
                    (true, true) => byte == STORED || byte == WRITTEN,
                    (true, false) => byte == STORED,
                    (false, true) => byte == WRITTEN,
                    (false, false) => byte == OLD,
                };
                ensure!(right, "{byte:#x} at {i:#x}; stored to at {stored:x?}");
            }
            Ok(())
        },
    )?;
    dax.check()
}

/// A write(2) that cannot read its caller's memory, or only the first page. What was stored is in the
/// file, in a block that is the file's.
fn store_and_failed_write(dax: Dax, time: Duration) -> Result<()> {
    // One page, and what follows is not to be read.
    let source = Mapping::with_one_page(PAGES * PAGE, &[OLD; PAGE as usize])?;
    copies(
        &dax,
        time,
        true,
        |file| {
            for (first, want) in [(PAGE, Err(Errno::EFAULT)), (0, Ok(PAGE as isize))] {
                let first = source.as_ptr().wrapping_add(first as usize).cast();
                let len = ((PAGES - 1) * PAGE) as usize;
                // SAFETY: Plain numbers; the kernel finds out what can be read.
                let n = unsafe { libc::pwrite(file.as_raw_fd(), first, len, 0) };
                let got = Errno::result(n);
                ensure!(got == want, "pwrite: {got:?}, not {want:?}");
            }
            Ok(())
        },
        |file, map, stored| {
            let mut data = [0; (PAGES * PAGE) as usize];
            file.read_exact_at(&mut data, 0)?;
            for (i, &byte) in (0..).zip(&data) {
                let want = if stored.contains(&i) { STORED } else { OLD };
                // The first page was written.
                ensure!(
                    byte == want || (i < PAGE && byte == OLD),
                    "{byte:#x} at {i:#x}; stored to at {stored:x?}"
                );
            }
            for page in stored.map(|at| at / PAGE * PAGE) {
                let mapped = map.physical(page)?;
                let block = dax.disk().start + physical(file, page)?;
                ensure!(
                    mapped.is_none_or(|mapped| mapped == block),
                    "the page at {page:#x} is mapped at {mapped:x?}, and its block is at {block:#x}"
                );
            }
            Ok(())
        },
    )?;
    drop(source);
    dax.check()
}

/// A thread touches preallocated memory, which makes 2 MiB of blocks at a time, another one reads
/// there: zeroes, whatever files were in these blocks before.
fn load_and_make(dax: Dax, time: Duration) -> Result<()> {
    const LEN: u64 = 32 * PMD;
    let (end, failed) = (Instant::now() + time, AtomicBool::new(false));
    let left = vec![OLD; MIB as usize];
    let file = dax.mount.allocate_huge("f", LEN, dax.disk())?;
    let mut rounds = 0;
    until(end, &failed, || {
        rounds += 1;
        for offset in (0..LEN).step_by(left.len()) {
            file.write_all_at(&left, offset)?;
        }
        // The same blocks, as if they had just been given to the file.
        fallocate(&file, libc::FALLOC_FL_ZERO_RANGE, 0, LEN)?;
        let map = Mapping::shared(&file, 0, LEN)?;
        let at = AtomicU64::new(0);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut rng = Rng::new(rounds);
                let mut page = [0; PAGE as usize];
                loop {
                    let now = at.load(Ordering::SeqCst);
                    if now == LEN {
                        return Ok(());
                    }
                    let offset = now + rng.below(PMD / PAGE) * PAGE;
                    file.read_exact_at(&mut page, offset)?;
                    ensure!(
                        page.iter().all(|b| *b == 0),
                        "round {rounds}: read(2) at {offset:#x} has what was there before"
                    );
                }
            });
            for offset in (0..LEN).step_by(PMD as usize) {
                at.store(offset, Ordering::SeqCst);
                map.peek(offset);
                map.touch(offset, 0);
            }
            at.store(LEN, Ordering::SeqCst);
            reader.join().expect("the reading thread panicked")
        })?;
        Ok(())
    })?;
    drop(file);
    println!("{rounds} rounds");
    dax.check()
}

/// A write(2) for copy-on-write from memory that somebody takes his time to provide, here a disk
/// that is suspended: from the first byte on, or in the middle. Stores to the file's mapping do not
/// wait for it.
fn slow_source(ctx: &Ctx) -> Result<()> {
    const LEN: u64 = 4 * MIB;
    let driver = Driver::load(ctx, &[])?;
    let dax = Dax::on(driver.disk(0), Fs::Xfs)?;
    let disk = driver.disk(1);
    File::options()
        .write(true)
        .open(&disk.path)?
        .write_all_at(&vec![WRITTEN; LEN as usize], 0)?;
    sh(format!(
        "dmsetup create slow --table '0 {} linear {} 0' && dmsetup mknodes slow",
        LEN / 512,
        disk.path
    ))?;
    let origin = dax.mount.create("origin")?;
    origin.write_all_at(&vec![OLD; LEN as usize], 0)?;
    for loaded in [0, 3 * MIB / 2] {
        sh("echo 3 > /proc/sys/vm/drop_caches")?;
        let file = dax.mount.create("f")?;
        clone_range(&origin, 0, 0, &file, 0)?;
        let map = Mapping::shared(&file, 0, LEN)?;
        let slow = File::open("/dev/mapper/slow")?;
        let source = Mapping::read_only(&slow, 0, LEN)?;
        source.madvise(0, LEN, libc::MADV_RANDOM)?;
        for offset in (0..loaded).step_by(PAGE as usize) {
            source.peek(offset);
        }
        sh("dmsetup suspend slow")?;

        // All but the last page.
        let written = 0..LEN - PAGE;
        let stored = [5 * PAGE, 3 * MIB, LEN - PAGE];
        let (waiter, done) = (Waiter::default(), AtomicBool::new(false));
        let (sender, ended) = channel();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                waiter.here();
                let len = (written.end - written.start) as usize;
                // SAFETY: Plain numbers; the kernel finds out what can be read.
                let n = unsafe { libc::pwrite(file.as_raw_fd(), source.as_ptr().cast(), len, 0) };
                done.store(true, Ordering::SeqCst);
                Errno::result(n).map(|n| n as usize == len)
            });
            let waits = waiter.wait_until_asleep(&['D'], Duration::from_secs(1));
            scope.spawn(|| {
                for at in stored {
                    map.touch(at, STORED);
                }
                let _ = sender.send(());
            });
            let stores = ended.recv_timeout(Duration::from_secs(20));
            let early = done.load(Ordering::SeqCst);
            // Before anything can fail here: nobody could be waited for else.
            sh("dmsetup resume slow")?;
            let wrote = writer.join().expect("the writing thread panicked");
            waits?;
            ensure!(!early, "the write(2) did not wait for its source");
            ensure!(
                stores.is_ok(),
                "{loaded} bytes loaded: stores waited for somebody else's write(2)"
            );
            ensure!(wrote == Ok(true), "write(2): {wrote:?}");
            Ok(())
        })?;
        let mut data = vec![0; LEN as usize];
        file.read_exact_at(&mut data, 0)?;
        for (i, &byte) in (0..).zip(&data) {
            // The write(2) had passed what was loaded.
            let last = stored.contains(&i) && (i < loaded || !written.contains(&i));
            let want = match written.contains(&i) {
                _ if last => STORED,
                true => WRITTEN,
                false => OLD,
            };
            ensure!(byte == want, "{byte:#x}, not {want:#x}, at {i:#x}");
        }
        drop((map, source, slow, file));
        std::fs::remove_file(dax.mount.path("f"))?;
    }
    sh("dmsetup remove slow")?;
    drop(origin);
    dax.check()?;
    driver.unload()
}

/// A write(2) from a mapping of the same file, of the same range or of one that overlaps it from
/// behind. Where blocks are shared the write itself takes its source's pages away.
fn source_is_destination(dax: Dax) -> Result<()> {
    const LEN: u64 = 40 * PAGE;
    let data = pattern(9, 0, LEN as usize);
    for (shared, from, to) in [
        (false, 1000, 1000),
        (true, 1000, 1000),
        (true, 0, 0),
        (true, PAGE, 0),
        (true, 5 * PAGE + 77, 3 * PAGE + 5),
    ] {
        let what = format!("shared: {shared}, from {from:#x} to {to:#x}");
        let file = dax.mount.create("f")?;
        if shared && dax.fs() == Fs::Xfs {
            let origin = dax.mount.create("origin")?;
            origin.write_all_at(&data, 0)?;
            clone_range(&origin, 0, 0, &file, 0)?;
        } else {
            file.write_all_at(&data, 0)?;
        }
        let map = Mapping::shared(&file, 0, LEN)?;
        let n = (LEN - from - 10) as usize;
        let source = map.as_ptr().wrapping_add(from as usize);
        // SAFETY: Plain numbers; the mapping is there.
        let wrote = unsafe { libc::pwrite(file.as_raw_fd(), source.cast(), n, to as i64) };
        let wrote = Errno::result(wrote);
        ensure!(wrote == Ok(n as isize), "{what}: {wrote:?} of {n} bytes");
        let mut want = data.clone();
        want.copy_within(from as usize..from as usize + n, to as usize);
        let model = Model(want);
        model.expect(&what, &file, Some(&map))?;
        drop((map, file));
        let file = dax.mount.open("f")?;
        model.expect(&what, &file, None)?;
        drop(file);
        std::fs::remove_file(dax.mount.path("f"))?;
    }
    dax.check()
}
