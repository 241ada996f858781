// SPDX-License-Identifier: GPL-2.0

//! Page faults in DAX mappings: holes and zero pages, unwritten blocks, PMDs and what makes them
//! PTEs, copies on write, shared blocks, the end of the file; and that read(2), write(2) and
//! fallocate(2) see and change the same bytes.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use nix::errno::Errno;
use proto::Tag;

use crate::fixture::child::{expect_done, expect_sigbus, BUS_ADRERR};
use crate::fixture::dax::{
    allocated, clone_range, dedupe, on_both, on_both_sizes, on_each, punch, shutdown, Model,
};
use crate::fixture::fs::{extents, fallocate};
use crate::fixture::io::{pread2, pwrite2, same};
use crate::fixture::{pattern, Dax, Driver, Flushes, Fs, Mapping, MIB, PAGE, PMD};
use crate::test::Suite;

pub fn suite(s: &mut Suite) {
    s.test("hole", |ctx| on_both_sizes(ctx, hole))
        .tag(Tag::Smoke);
    s.test("hole_filled_by_write", |ctx| {
        on_both(ctx, hole_filled_by_write)
    });
    s.test("zero_pmd_to_ptes", |ctx| on_both(ctx, zero_pmd_to_ptes));
    s.test("pte_store_in_pmd", |ctx| on_both(ctx, pte_store_in_pmd));
    s.test("mappings_are_counted", |ctx| {
        on_both_sizes(ctx, mappings_are_counted)
    });
    s.test("fallback", |ctx| on_both(ctx, fallback));
    s.test("unwritten", |ctx| on_both_sizes(ctx, unwritten));
    s.test("private", |ctx| on_both_sizes(ctx, private));
    s.test("private_and_truncate", |ctx| {
        let time = ctx.pick(Duration::from_secs(2), Duration::from_secs(60));
        on_both(ctx, |dax| private_and_truncate(dax, time))
    })
    .tag(Tag::Stress);
    s.test("end_of_file", |ctx| on_both(ctx, end_of_file))
        .tag(Tag::Smoke);
    s.test("farthest_page", |ctx| {
        on_each(ctx, &[Fs::Xfs], farthest_page)
    })
    .limit(60);
    s.test("mapsync", |ctx| {
        for (fs, huge) in [Fs::Ext4, Fs::Xfs]
            .into_iter()
            .flat_map(|fs| [(fs, false), (fs, true)])
        {
            let driver = Driver::load(ctx, &[])?;
            // Recovery must not meet the log of an older file system, which mkfs leaves there.
            driver.disk(0).zero_out(0, driver.disk(0).size)?;
            mapsync(Dax::on(driver.disk(0), fs)?, huge)
                .with_context(|| format!("{fs}, huge: {huge}"))?;
            driver.unload()?;
        }
        Ok(())
    });
    s.test("mapsync_copied", |ctx| {
        let driver = Driver::load(ctx, &[])?;
        // See above.
        driver.disk(0).zero_out(0, driver.disk(0).size)?;
        mapsync_copied(Dax::on(driver.disk(0), Fs::Xfs)?)?;
        driver.unload()
    })
    .c_is_wrong("it allows a MAP_SYNC store to a copied block before the log has the block");
    s.test("mapsync_page_of_a_pmd", |ctx| {
        on_both(ctx, mapsync_page_of_a_pmd)
    })
    .limit(60)
    .tag(Tag::RustOnly);
    s.test("nowait", |ctx| on_both(ctx, nowait));
    s.test("read_write", |ctx| on_both(ctx, read_write));
    s.test("fallocate_modes", |ctx| on_both(ctx, fallocate_modes));
    s.test("moved_mapping", |ctx| on_both(ctx, moved_mapping));
    s.test("reflink", |ctx| {
        on_each(ctx, &[Fs::Xfs], |dax| reflink(dax, false))?;
        on_each(ctx, &[Fs::Xfs], |dax| reflink(dax, true))
    });
    s.test("reflink_write", |ctx| {
        on_each(ctx, &[Fs::Xfs], reflink_write)
    })
    .c_is_wrong("a warning in dax_disassociate_entry() as a page of a shared block goes");
    s.test("dedupe", |ctx| on_each(ctx, &[Fs::Xfs], dedupe_xfs));
    s.test("unshare", |ctx| on_each(ctx, &[Fs::Xfs], unshare));
}

/// Size of a file that takes PMDs, and of one that takes none.
fn size(huge: bool) -> u64 {
    if huge {
        2 * PMD
    } else {
        64 * PAGE
    }
}

/// Reading a hole gives zeros and allocates nothing; a store then gets blocks, is seen through
/// every mapping that had the zero page, and leaves zeros around it.
fn hole(dax: Dax, huge: bool) -> Result<()> {
    let file = dax.mount.create("f")?;
    let len = size(huge);
    file.set_len(len)?;
    let empty = allocated(&file)?;
    let map = Mapping::shared(&file, 0, len)?;
    let second = Mapping::shared(&file, 0, len)?;
    let private = Mapping::private(&file, 0, len)?;
    for m in [&map, &second, &private] {
        ensure!(
            m.read(0, len as usize).iter().all(|b| *b == 0),
            "a hole is not zero"
        );
    }
    ensure!(
        allocated(&file)? == empty,
        "reading a hole allocated blocks"
    );
    map.expect_huge(0, huge)?;
    if !huge {
        let zero = map.physical(0)?;
        ensure!(
            zero.is_some() && zero == map.physical(5 * PAGE)?,
            "two pages of a hole differ"
        );
    }

    let mut model = Model::zeroed(len);
    let page = if huge { 600 } else { 9 };
    let data = pattern(1, 0, 100);
    map.write(page * PAGE + 50, &data);
    model.put(page * PAGE + 50, &data);
    model.expect("first store", &file, Some(&map))?;
    model.expect("first store, second mapping", &file, Some(&second))?;
    model.expect("first store, private mapping", &file, Some(&private))?;
    ensure!(allocated(&file)? > empty, "a store allocated nothing");

    // The other mapping had a zero page there as well; now it writes beside.
    let data = pattern(2, 0, 64);
    second.write(page * PAGE + 1000, &data);
    second.write((page + 3) * PAGE, &data);
    model.put(page * PAGE + 1000, &data);
    model.put((page + 3) * PAGE, &data);
    model.expect("second store", &file, Some(&map))?;
    file.sync_all()?;
    // The private mapping writes to what is a hole still: a copy of its own.
    private.touch(2 * PAGE, 77);
    ensure!(private.peek(2 * PAGE) == 77 && private.peek(2 * PAGE + 1) == 0);
    model.expect("private store", &file, Some(&map))?;
    drop((map, second, private, file));
    dax.check()
}

/// write(2) into a hole replaces the zero pages that mappings have.
fn hole_filled_by_write(dax: Dax) -> Result<()> {
    for len in [64 * PAGE, 2 * PMD] {
        let file = dax.mount.create(&format!("f{len}"))?;
        file.set_len(len)?;
        let mut model = Model::zeroed(len);
        let map = Mapping::shared(&file, 0, len)?;
        let small = Mapping::pages_only(&file, 0, len)?;
        for m in [&map, &small] {
            ensure!(
                m.read(0, len as usize).iter().all(|b| *b == 0),
                "a hole is not zero"
            );
        }
        for (seed, (offset, count)) in [(3 * PAGE, 10u64), (9 * PAGE + 17, 3 * PAGE), (len - 5, 5)]
            .into_iter()
            .enumerate()
        {
            let data = pattern(seed as u64, offset, count as usize);
            file.write_all_at(&data, offset)?;
            model.put(offset, &data);
            model.expect("mapping", &file, Some(&map))?;
            model.expect("mapping of PTEs", &file, Some(&small))?;
        }
        // Blocks that write(2) made take stores.
        map.write(3 * PAGE + 2, &[9; 4]);
        model.put(3 * PAGE + 2, &[9; 4]);
        model.expect("store after write", &file, Some(&small))?;
    }
    dax.check()
}

/// A zero page for a whole PMD, of which then one page is written by a PTE fault: the other 511
/// stay zero, and no mapping keeps the old zero PMD.
fn zero_pmd_to_ptes(dax: Dax) -> Result<()> {
    let file = dax.mount.create("f")?;
    let len = 2 * PMD;
    file.set_len(len)?;
    let mut model = Model::zeroed(len);
    let huge = Mapping::shared(&file, 0, len)?;
    let small = Mapping::pages_only(&file, 0, len)?;
    ensure!(huge.peek(7 * PAGE) == 0 && huge.peek(PMD + 7 * PAGE) == 0);
    huge.expect_huge(7 * PAGE, true)?;
    // By a store into a PTE mapping; by write(2) of a page.
    small.write(7 * PAGE, &[1, 2, 3]);
    model.put(7 * PAGE, &[1, 2, 3]);
    file.write_all_at(&[4; 4096], PMD + 7 * PAGE)?;
    model.put(PMD + 7 * PAGE, &[4; 4096]);
    model.expect("PMD mapping", &file, Some(&huge))?;
    model.expect("PTE mapping", &file, Some(&small))?;
    // Faults of both kinds go on in both halves.
    let flushes = Flushes::watch()?;
    for (seed, page) in [8u64, 100, 511, 512, 519, 520, 1023]
        .into_iter()
        .enumerate()
    {
        let data = pattern(seed as u64, page * PAGE, 64);
        let map = if seed % 2 == 0 { &huge } else { &small };
        map.write(page * PAGE + 64, &data);
        model.put(page * PAGE + 64, &data);
    }
    model.expect("PMD mapping, more stores", &file, Some(&huge))?;
    model.expect("PTE mapping, more stores", &file, Some(&small))?;
    file.sync_all()?;
    let pages = flushes.take(&file)?.pages();
    for page in [7, 8, 100, 511, 512, 520, 1023] {
        ensure!(pages.contains(&page), "page {page} was not flushed");
    }
    let dirty = huge.dirty()? + small.dirty()?;
    ensure!(dirty == 0, "{dirty} bytes are dirty after fsync");
    drop((huge, small, file));
    dax.check()
}

/// A PTE store into blocks that are cached as a PMD: the PMD stays, is dirtied as a whole and is
/// flushed as a whole, through whichever mapping the store came.
fn pte_store_in_pmd(dax: Dax) -> Result<()> {
    let file = dax.file("f", true)?;
    let len = 2 * PMD;
    let mut model = Model::zeroed(len);
    let huge = Mapping::shared(&file, 0, len)?;
    let small = Mapping::pages_only(&file, 0, len)?;
    huge.peek(0);
    huge.peek(PMD);
    huge.expect_huge(0, true)?;
    let flushes = Flushes::watch()?;
    small.write(40 * PAGE, &[5; 100]);
    model.put(40 * PAGE, &[5; 100]);
    small.expect_huge(40 * PAGE, false)?;
    file.sync_all()?;
    flushes
        .take(&file)?
        .expect("store by a PTE in a PMD entry", 0..512)?;
    ensure!(small.dirty()? == 0, "the PTE is still dirty");
    // The PTE has lost its write access like the PMD.
    small.write(40 * PAGE, &[6; 100]);
    huge.write(PMD + 9, &[7; 10]);
    small.write(PMD + 4096, &[8; 10]);
    model.put(40 * PAGE, &[6; 100]);
    model.put(PMD + 9, &[7; 10]);
    model.put(PMD + 4096, &[8; 10]);
    file.sync_all()?;
    flushes.take(&file)?.expect("PTE and PMD stores", 0..1024)?;
    ensure!(
        small.dirty()? + huge.dirty()? == 0,
        "something is still dirty"
    );
    model.expect("in the end", &file, Some(&huge))?;
    model.expect("in the end", &file, Some(&small))?;
    drop((huge, small, file));
    dax.check()
}

/// The core knows how often a page is mapped: the counters of a fresh folio, small or large, are
/// right.
fn mappings_are_counted(dax: Dax, huge: bool) -> Result<()> {
    let file = dax.file("f", huge)?;
    let len = file.metadata()?.len();
    let first = Mapping::shared(&file, 0, len)?;
    first.touch(0, 1);
    first.expect_huge(0, huge)?;
    ensure!(first.is_exclusive(0)?, "one mapping is not the only one");
    let second = Mapping::shared(&file, 0, len)?;
    second.touch(0, 2);
    ensure!(
        !first.is_exclusive(0)? && !second.is_exclusive(0)?,
        "one of two mappings is the only one"
    );
    drop(second);
    ensure!(first.is_exclusive(0)?, "a mapping that has gone counts");
    drop((first, file));
    dax.check()
}

/// Where a PMD cannot be mapped, pages are: the file's end, the mapping's end, blocks that do not
/// lie so, a hole in the middle, private stores. Contents are right, and no stale PMD stays.
fn fallback(dax: Dax) -> Result<()> {
    let file = dax.file("f", true)?;
    let len = 2 * PMD;
    let mut model = Model::zeroed(len);
    let data = pattern(1, 0, len as usize);
    file.write_all_at(&data, 0)?;
    model.put(0, &data);

    // The mapping ends inside the second PMD, or begins inside the first.
    let map = Mapping::shared(&file, 0, PMD + 5 * PAGE)?;
    model.expect("mapping of a part", &file, Some(&map))?;
    map.expect_huge(0, true)?;
    map.expect_huge(PMD, false)?;
    let tail = Mapping::shared(&file, PMD - PAGE, PMD + PAGE)?;
    same(
        "tail",
        &tail.read(0, (PMD + PAGE) as usize),
        &data[(PMD - PAGE) as usize..],
    )?;
    tail.expect_huge(0, false)?;
    tail.touch(3 * PAGE, 9);
    model.put(PMD + 2 * PAGE, &[9]);
    model.expect("store into the tail", &file, Some(&map))?;
    drop((map, tail));

    // The file ends inside the second PMD.
    file.set_len(len - PAGE)?;
    model.0.truncate((len - PAGE) as usize);
    let map = Mapping::shared(&file, 0, len)?;
    model.expect("a file that ends in a PMD", &file, Some(&map))?;
    map.expect_huge(PMD, false)?;
    map.touch(PMD + 5, 3);
    model.put(PMD + 5, &[3]);

    // A hole in the middle of a mapped PMD: the PMD goes, PTEs come.
    map.touch(0, data[0]);
    map.expect_huge(0, true)?;
    punch(&file, 100 * PAGE, 3 * PAGE)?;
    model.put(100 * PAGE, &[0; 3 * 4096]);
    model.expect("after punching", &file, Some(&map))?;
    map.expect_huge(0, false)?;
    map.write(101 * PAGE, &[8; 20]);
    model.put(101 * PAGE, &[8; 20]);
    file.sync_all()?;
    model.expect("a store into the hole", &file, Some(&map))?;
    drop(map);

    // Blocks beside 2 MiB boundaries.
    let odd = dax.mount.create("odd")?;
    odd.write_all_at(&[1; 4096], 3 * PMD)?;
    for chunk in 0..1024 {
        // Backwards, so that no allocator makes one aligned extent of it.
        odd.write_all_at(&[chunk as u8; 4096], (1023 - chunk) * PAGE)?;
    }
    let map = Mapping::shared(&odd, 0, 2 * PMD)?;
    for page in 0..1024 {
        let want = (1023 - page) as u8;
        map.touch(page * PAGE + 1, want ^ 0xff);
        ensure!(map.peek(page * PAGE) == want, "page {page} of odd blocks");
        ensure!(
            map.peek(page * PAGE + 1) == want ^ 0xff,
            "page {page} of odd blocks"
        );
    }
    drop((map, odd, file));
    dax.check()
}

/// Blocks that are allocated and not written read as zeros whatever was in them before, and a
/// store leaves the rest of its block zero.
fn unwritten(dax: Dax, huge: bool) -> Result<()> {
    // Blocks with old data in them, free again.
    let old = dax.mount.create("old")?;
    let garbage = vec![0xa5; MIB as usize];
    for at in 0..24 {
        old.write_all_at(&garbage, at * MIB)?;
    }
    old.sync_all()?;
    drop(old);
    std::fs::remove_file(dax.mount.path("old"))?;
    // SAFETY: no arguments, no memory.
    unsafe { libc::sync() };

    let len = size(huge);
    let file = if huge {
        dax.mount.allocate_huge("f", len, dax.disk())?
    } else {
        dax.mount.allocate("f", len)?
    };
    ensure!(
        extents(&file)?.iter().all(|e| e.is_unwritten()),
        "the blocks are not unwritten"
    );
    let mut model = Model::zeroed(len);
    let map = Mapping::shared(&file, 0, len)?;
    let second = Mapping::shared(&file, 0, len)?;
    // Half of it is read before it is written.
    let half = (len / 2) as usize;
    ensure!(
        map.read(0, half).iter().all(|b| *b == 0),
        "old data in unwritten blocks"
    );
    ensure!(
        second.read(0, half).iter().all(|b| *b == 0),
        "old data in unwritten blocks"
    );
    for (seed, offset) in [0, 5 * PAGE + 1, len / 2 - 8, len / 2 + 4090, len - 16]
        .into_iter()
        .enumerate()
    {
        let data = pattern(seed as u64, offset, 16);
        map.write(offset, &data);
        model.put(offset, &data);
    }
    map.expect_huge(0, huge)?;
    model.expect("after stores", &file, Some(&map))?;
    model.expect("after stores, second mapping", &file, Some(&second))?;
    file.sync_all()?;
    let written = extents(&file)?.iter().filter(|e| !e.is_unwritten()).count();
    ensure!(written > 0, "stores left all blocks unwritten");
    // write(2) into the middle of an unwritten block.
    let third = dax.mount.allocate("g", 8 * PAGE)?;
    let mut model2 = Model::zeroed(8 * PAGE);
    third.write_all_at(&[7; 10], 2 * PAGE + 100)?;
    model2.put(2 * PAGE + 100, &[7; 10]);
    third.write_all_at(&[8; 5000], 4 * PAGE + 10)?;
    model2.put(4 * PAGE + 10, &[8; 5000]);
    model2.expect("write(2) into unwritten blocks", &third, None)?;
    drop((map, second, third, file));
    let dax = dax.remount()?;
    model.expect("after a remount", &dax.mount.open("f")?, None)?;
    model2.expect("after a remount", &dax.mount.open("g")?, None)?;
    dax.check()
}

/// Copy on write: a private store changes neither the file nor other mappings; what was not
/// copied follows the file.
fn private(dax: Dax, huge: bool) -> Result<()> {
    let file = dax.file("f", huge)?;
    let len = file.metadata()?.len();
    let data = pattern(1, 0, len as usize);
    file.write_all_at(&data, 0)?;
    file.sync_all()?;
    let mut model = Model(data.clone());
    let mut own = Model(data);
    let flushes = Flushes::watch()?;
    let shared = Mapping::shared(&file, 0, len)?;
    let private = Mapping::private(&file, 0, len)?;
    own.expect("before", &file, Some(&private))?;
    for (page, value) in [(1, 11), (2, 12), (100, 13)] {
        // Once after a read fault, once without.
        if value == 13 {
            private.madvise(page * PAGE, PAGE, libc::MADV_DONTNEED)?;
        }
        private.write(page * PAGE + 10, &[value; 30]);
        own.put(page * PAGE + 10, &[value; 30]);
    }
    model.expect("the file", &file, Some(&shared))?;
    same("the copy", &private.read(0, len as usize), &own.0)?;
    file.sync_all()?;
    flushes
        .take(&file)?
        .expect_none("fsync after private stores")?;
    // Pages that were not copied are the file's.
    shared.write(50 * PAGE, &[42; 64]);
    model.put(50 * PAGE, &[42; 64]);
    own.put(50 * PAGE, &[42; 64]);
    shared.write(PAGE, &[43; 4]);
    model.put(PAGE, &[43; 4]);
    same("the copy, later", &private.read(0, len as usize), &own.0)?;
    model.expect("the file, later", &file, Some(&shared))?;
    // Given back, a page is the file's again.
    private.madvise(PAGE, PAGE, libc::MADV_DONTNEED)?;
    own.put(PAGE, &model.0[PAGE as usize..2 * PAGE as usize]);
    same(
        "after MADV_DONTNEED",
        &private.read(0, len as usize),
        &own.0,
    )?;
    // A hole: the copy is of zeros.
    punch(&file, 10 * PAGE, 2 * PAGE)?;
    model.put(10 * PAGE, &[0; 2 * 4096]);
    own.put(10 * PAGE, &[0; 2 * 4096]);
    private.write(10 * PAGE + 4, &[1; 4]);
    own.put(10 * PAGE + 4, &[1; 4]);
    same("copy of a hole", &private.read(0, len as usize), &own.0)?;
    model.expect("a hole stays one", &file, Some(&shared))?;
    drop((shared, private, file));
    dax.check()
}

/// Private stores race with truncation of what they copy: each either gets the page as it was, or
/// SIGBUS (here: EFAULT, by a store through a system call); never another file's bytes.
fn private_and_truncate(dax: Dax, time: Duration) -> Result<()> {
    let pages = 16;
    let len = pages * PAGE;
    let file = dax.mount.create("f")?;
    let other = dax.mount.create("other")?;
    let fill = vec![0x11; len as usize];
    let foreign = vec![0x22; len as usize];
    let stop = AtomicBool::new(false);
    let end = Instant::now() + time;
    let copied = std::thread::scope(|scope| -> Result<(u64, u64)> {
        let truncater = scope.spawn(|| -> Result<()> {
            while !stop.load(Ordering::Relaxed) {
                file.write_all_at(&fill, 0)?;
                file.set_len(0)?;
                // Takes the blocks that have become free.
                other.write_all_at(&foreign, 0)?;
                other.set_len(0)?;
            }
            Ok(())
        });
        let zero = File::open("/dev/zero")?;
        let (mut copied, mut refused) = (0, 0);
        let result = (|| -> Result<()> {
            while Instant::now() < end && !truncater.is_finished() {
                let map = Mapping::private(&file, 0, len)?;
                for page in 0..pages {
                    // One byte: the rest of the page is the copy.
                    match map.fill_from(&zero, page * PAGE, 1) {
                        Ok(()) => {}
                        Err(Errno::EFAULT) => {
                            refused += 1;
                            continue;
                        }
                        Err(e) => bail!("store: {e}"),
                    }
                    copied += 1;
                    // The copy may be gone again by truncation.
                    let mut got = vec![0; 4096];
                    match map.copy_out(page * PAGE, &mut got) {
                        Ok(()) => {}
                        Err(Errno::EFAULT) => continue,
                        Err(e) => bail!("load: {e}"),
                    }
                    ensure!(
                        got[1..].iter().all(|b| *b == 0x11 || *b == 0),
                        "a private copy of page {page} has other bytes: {:x?}",
                        got.iter().find(|b| **b != 0 && **b != 0x11)
                    );
                }
            }
            Ok(())
        })();
        stop.store(true, Ordering::Relaxed);
        truncater.join().expect("the truncating thread panicked")?;
        result?;
        Ok((copied, refused))
    })?;
    println!("{} private copies, {} refused", copied.0, copied.1);
    ensure!(copied.0 > 0, "there was not one copy");
    drop((file, other));
    dax.check()
}

/// The last page of the largest file ends at 2^63, which is no position any more: its bytes are as
/// good as others, and what a mapping has behind it is behind the end.
fn farthest_page(dax: Dax) -> Result<()> {
    const SIZE: u64 = i64::MAX as u64;
    // mmap(2) refuses what does not end below 2^63; mremap(2) does not.
    let map_end = |file: &File| -> Result<(Mapping, u64)> {
        let offset = SIZE / PMD * PMD - PMD;
        let map = Mapping::shared(file, offset, 2 * PMD - PAGE)?.grown(2 * PMD + 2 * PAGE)?;
        Ok((map, offset))
    };
    let file = dax.mount.create("far")?;
    for _ in 0..2 {
        // The same again zeroes the rest of the last block.
        file.set_len(SIZE)?;
    }
    let (map, offset) = map_end(&file)?;
    let last = SIZE / PAGE * PAGE - offset;
    ensure!(map.peek(last) == 0, "the hole");
    for (what, at) in [("behind the end", 2 * PMD), ("farther", 2 * PMD + PAGE)] {
        let address = map.as_ptr().wrapping_add(at as usize);
        expect_sigbus(what, BUS_ADRERR, address, || {
            map.peek(at);
            Ok(())
        })?;
        expect_sigbus(what, BUS_ADRERR, address, || {
            map.touch(at, 1);
            Ok(())
        })?;
    }
    // The last byte, and that behind it in its page: 2^63 - 1.
    map.touch(last + PAGE - 2, 7);
    map.touch(last + PAGE - 1, 9);
    file.sync_all()?;
    map.msync(last, PAGE)?;
    file.set_len(SIZE)?;
    ensure!(map.peek(last + PAGE - 1) == 0, "not zeroed");
    file.write_all_at(&[6], SIZE - 2)?;
    let mut end = [1; 3];
    file.read_exact_at(&mut end, SIZE - 3)?;
    same("the end", &end, &[0, 6, 7])?;

    // Its blocks shared: copied by a store, by zeroing, by write(2).
    let other = dax.mount.create("other")?;
    for change in ["store", "truncate", "write", "zero", "unshare"] {
        file.write_all_at(&[3], SIZE - 1)?;
        other.set_len(0)?;
        clone_range(&file, 0, 0, &other, 0).context("clone")?;
        match change {
            "store" => map.touch(last + PAGE - 2, 1),
            "truncate" => file.set_len(SIZE)?,
            "write" => file.write_all_at(&[2], SIZE - 1)?,
            "zero" => fallocate(&file, libc::FALLOC_FL_ZERO_RANGE, SIZE - 1, 1)?,
            _ => fallocate(&file, libc::FALLOC_FL_UNSHARE_RANGE, SIZE - PAGE, PAGE - 1)?,
        }
        let mut byte = [0];
        other.read_exact_at(&mut byte, SIZE - 1)?;
        ensure!(byte == [3], "{change}: the clone has {byte:?}");
    }
    drop(map);

    // A PMD, also with MAP_SYNC.
    let huge = dax.mount.create("huge")?;
    huge.set_len(SIZE)?;
    fallocate(&huge, 0, SIZE / PMD * PMD, PMD - 1)?;
    let (map, _) = map_end(&huge)?;
    map.peek(last);
    map.touch(last, 4);
    huge.sync_all()?;
    drop(map);
    let offset = SIZE / PMD * PMD - PMD;
    let map = Mapping::sync(&huge, offset, 2 * PMD - PAGE)?.grown(2 * PMD)?;
    map.touch(last + 1, 5);
    let mut bytes = [0; 2];
    huge.read_exact_at(&mut bytes, SIZE / PAGE * PAGE)?;
    same("stored", &bytes, &[4, 5])?;
    punch(&huge, SIZE - PAGE, PAGE)?;
    huge.set_len(SIZE - PMD)?;
    drop((map, huge, file, other));
    dax.check()
}

/// Beyond the last page of a file there is SIGBUS; the rest of the last page is zero; truncation
/// takes mapped pages away, growing brings zeros.
fn end_of_file(dax: Dax) -> Result<()> {
    for (name, huge) in [("small", false), ("huge", true)] {
        let file = dax.file(name, huge)?;
        let len = file.metadata()?.len();
        file.write_all_at(&vec![0x77; len as usize], 0)?;
        let map = Mapping::shared(&file, 0, len + 2 * PMD)?;
        let at = |offset: u64| map.as_ptr().wrapping_add(offset as usize) as *const u8;
        let load = |offset: u64| {
            let map = &map;
            move || {
                map.peek(offset);
                Ok(())
            }
        };
        let store = |offset: u64| {
            let map = &map;
            move || {
                map.touch(offset, 1);
                Ok(())
            }
        };
        expect_done("the last byte", load(len - 1))?;
        for (what, offset) in [
            ("the page after the end", len),
            ("far behind", len + PMD + 5),
        ] {
            expect_sigbus(what, BUS_ADRERR, at(offset), load(offset))?;
            expect_sigbus(what, BUS_ADRERR, at(offset), store(offset))?;
        }
        let private = Mapping::private(&file, 0, len + PAGE)?;
        let beyond = private.as_ptr().wrapping_add(len as usize);
        expect_sigbus("private", BUS_ADRERR, beyond, || {
            private.touch(len, 1);
            Ok(())
        })?;
        drop(private);

        // Mapped, then truncated.
        map.touch(len - 1, 0x77);
        let cut = len / 2 + 100;
        file.set_len(cut)?;
        let gone = (cut + PAGE) / PAGE * PAGE;
        ensure!(map.peek(cut - 1) == 0x77, "the last byte is wrong");
        ensure!(
            map.peek(cut) == 0,
            "bytes behind the end in the last page are not zero"
        );
        expect_sigbus("truncated", BUS_ADRERR, at(gone), load(gone))?;
        expect_sigbus("truncated", BUS_ADRERR, at(gone), store(gone))?;
        // What is stored behind the end in the last page is not to be seen when it grows.
        map.touch(cut + 10, 0x55);
        file.set_len(len)?;
        expect_done("grown", load(gone))?;
        ensure!(
            map.peek(gone) == 0 && map.peek(len - 1) == 0,
            "old data after growing"
        );
        let mut want = vec![0; len as usize];
        want[..cut as usize].fill(0x77);
        let mut got = vec![0; len as usize];
        file.read_exact_at(&mut got, 0)?;
        same("after growing", &got, &want)?;
        expect_sigbus("the new end", BUS_ADRERR, at(len), load(len))?;
        // A system call gets EFAULT for the same.
        let zero = File::open("/dev/zero")?;
        let got = map.fill_from(&zero, len, 10);
        ensure!(
            got == Err(Errno::EFAULT),
            "read(2) to behind the end: {got:?}"
        );
    }
    dax.check()
}

/// MAP_SYNC: when a store has succeeded, the blocks behind it are part of the file, even if the
/// file system's log is lost right then. A store through an ordinary mapping has no such promise.
fn mapsync(dax: Dax, huge: bool) -> Result<()> {
    let len = size(huge);
    let file = dax.mount.create("f")?;
    let plain = dax.mount.create("plain")?;
    file.set_len(len)?;
    plain.set_len(len)?;
    file.sync_all()?;
    plain.sync_all()?;
    File::open(&dax.mount.dir)?.sync_all()?;
    let map = Mapping::sync(&file, 0, len)?;
    // Read first, then write; and write at once.
    ensure!(map.peek(PAGE) == 0);
    let mut model = Model::zeroed(len);
    for (seed, offset) in [PAGE, 3 * PAGE + 5, len - 64].into_iter().enumerate() {
        let data = pattern(seed as u64, offset, 64);
        map.write(offset, &data);
        model.put(offset, &data);
    }
    let other = Mapping::shared(&plain, 0, len)?;
    other.write(PAGE, &[1; 64]);
    shutdown(&dax.mount)?;
    drop((map, other, file, plain));
    let dax = dax.remount()?;
    model.expect("after losing the log", &dax.mount.open("f")?, None)?;
    let plain = dax.mount.open("plain")?;
    println!("the ordinary mapping kept {} bytes", allocated(&plain)?);
    drop(plain);
    // Only DAX files can have it.
    let tmp = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open("/tmp/f")?;
    tmp.set_len(PAGE)?;
    let got = Mapping::sync(&tmp, 0, PAGE).err();
    ensure!(got == Some(Errno::EOPNOTSUPP), "MAP_SYNC on tmpfs: {got:?}");
    dax.check()
}

/// MAP_SYNC stores to blocks that are shared, one after the other: xfs makes many blocks ready for the
/// first, so that the second finds its own and nothing to be logged yet but that it is the file's now.
fn mapsync_copied(dax: Dax) -> Result<()> {
    let len = 64 * PAGE;
    let a = dax.mount.create("a")?;
    let mut model = Model(pattern(1, 0, len as usize));
    a.write_all_at(&model.0, 0)?;
    let b = dax.mount.create("b")?;
    clone_range(&a, 0, len, &b, 0)?;
    a.sync_all()?;
    b.sync_all()?;
    File::open(&dax.mount.dir)?.sync_all()?;
    let original = model.0.clone();
    let map = Mapping::sync(&b, 0, len)?;
    for page in 0..4 {
        let data = pattern(2 + page, 0, 100);
        map.write(page * PAGE + 7, &data);
        model.put(page * PAGE + 7, &data);
    }
    shutdown(&dax.mount)?;
    drop((map, a, b));
    let dax = dax.remount()?;
    model.expect("after losing the log", &dax.mount.open("b")?, None)?;
    Model(original).expect("the other file", &dax.mount.open("a")?, None)?;
    dax.check()
}

/// A MAP_SYNC store to one page of what a PMD entry stands for, the last one of the file, for which the
/// file systems want the log written each time: it is done after one try. C tries for ever.
fn mapsync_page_of_a_pmd(dax: Dax) -> Result<()> {
    let file = dax.mount.allocate_huge("f", PMD, dax.disk())?;
    file.set_len(PMD - 100)?;
    file.sync_all()?;
    File::open(&dax.mount.dir)?.sync_all()?;
    let huge = Mapping::sync(&file, 0, PMD)?;
    huge.touch(5, 1);
    huge.expect_huge(0, true)?;
    // Where no PMD fits.
    let small = Mapping::sync(&file, PAGE, PMD - PAGE)?;
    small.touch(PMD - PAGE - 200, 2);
    small.expect_huge(PMD - 2 * PAGE, false)?;
    file.sync_all()?;
    let flushes = Flushes::watch()?;
    small.touch(PMD - PAGE - 200, 3);
    file.sync_all()?;
    flushes
        .take(&file)?
        .expect("the entry of the page", 0..512)?;
    let mut model = Model::zeroed(PMD - 100);
    model.put(5, &[1]);
    model.put(PMD - 200, &[3]);
    model.expect("by read(2)", &file, None)?;
    drop((huge, small, file, flushes));
    dax.check()
}

/// RWF_NOWAIT: either the whole answer or EAGAIN, and never a wrong one.
fn nowait(dax: Dax) -> Result<()> {
    let file = dax.file("f", false)?;
    let len = file.metadata()?.len();
    let data = pattern(1, 0, len as usize);
    file.write_all_at(&data, 0)?;
    file.sync_all()?;
    let mut model = Model(data.clone());
    drop(file);
    // Without O_DIRECT neither file system takes RWF_NOWAIT for writing.
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(dax.mount.path("f"))?;
    let flag = libc::RWF_NOWAIT;
    let got = pread2(&file, 5, 10_000, flag).context("read")?;
    same("read", &got, &data[5..10_005])?;
    let new = pattern(2, 0, 9000);
    // EAGAIN: the times of the inode have to be updated first. Not right after that was done.
    let mut tries = 0;
    loop {
        match pwrite2(&file, 3 * PAGE + 7, &new, flag) {
            Ok(9000) => break,
            Err(Errno::EAGAIN) if tries < 1000 => tries += 1,
            other => bail!("overwriting allocated blocks: {other:?} after {tries} EAGAIN"),
        }
        model.expect("EAGAIN", &file, None)?;
        file.write_all_at(&data[..1], 0)?;
    }
    println!("overwriting: EAGAIN {tries} times");
    model.put(3 * PAGE + 7, &new);
    model.expect("overwritten", &file, None)?;
    // Beyond the end, and into a hole: no blocks without waiting.
    for (what, offset) in [("behind the end", len + 5 * PAGE), ("hole", 20 * PAGE)] {
        if what == "hole" {
            punch(&file, 20 * PAGE, 2 * PAGE)?;
            model.put(20 * PAGE, &[0; 2 * 4096]);
        }
        match pwrite2(&file, offset, &new[..100], flag) {
            Err(Errno::EAGAIN) => {
                ensure!(file.metadata()?.len() == len, "EAGAIN changed the size");
            }
            Ok(100) if what == "hole" => model.put(offset, &new[..100]),
            other => bail!("{what}: {other:?}"),
        }
        model.expect(what, &file, None)?;
    }
    drop(file);
    dax.check()
}

/// read(2) and write(2) at the edges of pages, PMDs, blocks and the file, seen by a mapping; what
/// write(2) wrote is durable after fsync without any entry to be flushed.
fn read_write(dax: Dax) -> Result<()> {
    let file = dax.mount.create("f")?;
    let len = 5 * MIB + 123;
    file.set_len(len)?;
    let mut model = Model::zeroed(len);
    let map = Mapping::shared(&file, 0, len)?;
    let spots = [
        (0, 1),
        (1, 4095),
        (PAGE - 1, 2),
        (PMD - 3, 7),
        (PMD - PAGE, 2 * PAGE),
        (3 * PAGE + 100, 3 * PAGE),
        (MIB, MIB + 1),
        (len - 200, 200),
    ];
    for (seed, (offset, count)) in spots.into_iter().enumerate() {
        let data = pattern(seed as u64, offset, count as usize);
        if seed % 2 == 1 {
            map.touch(offset, 1);
        }
        file.write_all_at(&data, offset)?;
        model.put(offset, &data);
        model.expect("write(2)", &file, Some(&map))?;
    }
    // Reads that end at, and begin behind, the end.
    let mut buffer = vec![0xee; 1000];
    let n = file.read_at(&mut buffer, len - 100)?;
    ensure!(n == 100, "read {n} bytes at the end");
    same("the end", &buffer[..100], &model.0[len as usize - 100..])?;
    ensure!(
        buffer[100..].iter().all(|b| *b == 0xee),
        "read(2) wrote behind what it returned"
    );
    ensure!(file.read_at(&mut buffer, len)? == 0 && file.read_at(&mut buffer, len + PMD)? == 0);
    // Growing by a write behind the end: zeros between.
    file.write_all_at(&[1, 2, 3], len + 3 * PAGE)?;
    model.0.resize((len + 3 * PAGE) as usize, 0);
    model.0.extend_from_slice(&[1, 2, 3]);
    model.expect("grown", &file, None)?;
    // From and into its own mapping.
    let zero = Mapping::shared(&file, 0, PMD)?;
    let n = zero.write_to(&file, 100, 3000, 3 * MIB)?;
    ensure!(n == 3000, "wrote {n} bytes from the file's own mapping");
    let part = model.0[100..3100].to_vec();
    model.put(3 * MIB, &part);
    model.expect("write(2) from its own mapping", &file, Some(&map))?;
    drop((map, zero, file));
    let dax = dax.remount()?;
    model.expect("after a remount", &dax.mount.open("f")?, None)?;
    dax.check()
}

/// Punching, zeroing, collapsing and inserting, at odd and even offsets, under a mapping.
fn fallocate_modes(dax: Dax) -> Result<()> {
    let file = dax.file("f", true)?;
    let len = 2 * PMD;
    let data = pattern(1, 0, len as usize);
    let map = Mapping::shared(&file, 0, 4 * PMD)?;
    map.write(0, &data);
    let mut model = Model(data);
    map.expect_huge(PMD, true)?;
    let zero = |model: &mut Model, offset: u64, len: u64| {
        model.0[offset as usize..(offset + len) as usize].fill(0);
    };
    for (offset, count) in [
        (100, 50),
        (PAGE - 10, 20),
        (5 * PAGE + 3, 3 * PAGE),
        (PMD - 1, PAGE),
    ] {
        punch(&file, offset, count)?;
        zero(&mut model, offset, count);
        model.expect("punched", &file, Some(&map))?;
    }
    for (offset, count) in [
        (20 * PAGE + 77, 30),
        (30 * PAGE, 2 * PAGE),
        (40 * PAGE + 1, 5 * PAGE),
    ] {
        fallocate(&file, libc::FALLOC_FL_ZERO_RANGE, offset, count)?;
        zero(&mut model, offset, count);
        model.expect("zeroed", &file, Some(&map))?;
    }
    map.write(PMD + 700, &[1; 9000]);
    model.put(PMD + 700, &[1; 9000]);
    fallocate(&file, libc::FALLOC_FL_COLLAPSE_RANGE, 50 * PAGE, 10 * PAGE)?;
    model.0.drain(50 * PAGE as usize..60 * PAGE as usize);
    model.expect("collapsed", &file, Some(&map))?;
    map.write(60 * PAGE, &[2; 100]);
    model.put(60 * PAGE, &[2; 100]);
    fallocate(&file, libc::FALLOC_FL_INSERT_RANGE, 70 * PAGE, 4 * PAGE)?;
    let at = 70 * PAGE as usize;
    model.0.splice(at..at, vec![0; 4 * 4096]);
    model.expect("inserted", &file, Some(&map))?;
    map.write(71 * PAGE, &[3; 5000]);
    model.put(71 * PAGE, &[3; 5000]);
    file.sync_all()?;
    // Cut in the middle of a page that is mapped and dirty.
    map.touch(80 * PAGE + 5, 9);
    model.put(80 * PAGE + 5, &[9]);
    file.set_len(80 * PAGE + 10)?;
    model.0.truncate(80 * PAGE as usize + 10);
    file.set_len(90 * PAGE)?;
    model.0.resize(90 * PAGE as usize, 0);
    model.expect("cut and grown", &file, Some(&map))?;
    drop((map, file));
    let dax = dax.remount()?;
    model.expect("after a remount", &dax.mount.open("f")?, None)?;
    dax.check()
}

/// mremap of dirty PTEs and PMDs loses nothing, and munmap of a part keeps the rest.
fn moved_mapping(dax: Dax) -> Result<()> {
    for (name, huge) in [("small", false), ("huge", true)] {
        let file = dax.file(name, huge)?;
        let len = file.metadata()?.len();
        let mut model = Model::zeroed(len);
        let map = Mapping::shared(&file, 0, len)?;
        map.write(10 * PAGE, &[1; 100]);
        model.put(10 * PAGE, &[1; 100]);
        let map = map.moved()?;
        map.write(11 * PAGE, &[2; 100]);
        map.write(10 * PAGE + 200, &[3; 10]);
        model.put(11 * PAGE, &[2; 100]);
        model.put(10 * PAGE + 200, &[3; 10]);
        let flushes = Flushes::watch()?;
        file.sync_all()?;
        let pages = flushes.take(&file)?.pages();
        ensure!(
            pages.contains(&10) && pages.contains(&11),
            "{name}: flushed {pages:?}"
        );
        ensure!(map.dirty()? == 0, "{name}: dirty after fsync");
        map.madvise(11 * PAGE, PAGE, libc::MADV_DONTNEED)?;
        model.expect(name, &file, Some(&map))?;
    }
    dax.check()
}

/// Stores into shared blocks: the writer gets blocks of its own with all of the old bytes around
/// the new, the other file keeps the old ones, whichever of the two writes.
fn reflink(dax: Dax, huge: bool) -> Result<()> {
    let a = dax.file("a", huge)?;
    let len = a.metadata()?.len();
    let data = pattern(1, 0, len as usize);
    a.write_all_at(&data, 0)?;
    a.sync_all()?;
    let b = dax.mount.create("b")?;
    let map_a = Mapping::shared(&a, 0, len)?;
    map_a.touch(3 * PAGE, data[3 * PAGE as usize]);
    map_a.expect_huge(3 * PAGE, huge)?;
    clone_range(&a, 0, len, &b, 0)?;
    ensure!(
        extents(&b)?.iter().any(|e| e.is_shared()),
        "nothing is shared"
    );
    let (mut model_a, mut model_b) = (Model(data.clone()), Model(data));
    let map_b = Mapping::shared(&b, 0, len)?;
    // A is mapped since before the clone, B since after it; read, then write, and write at once.
    model_b.expect("b", &b, Some(&map_b))?;
    for (seed, page) in [3u64, 4, 80, 200].into_iter().enumerate() {
        let data = pattern(seed as u64 + 10, 0, 33);
        map_a.write(page * PAGE + 1000, &data);
        model_a.put(page * PAGE + 1000, &data);
        let data = pattern(seed as u64 + 20, 0, 33);
        map_b.write((page + 2) * PAGE + 500, &data);
        model_b.put((page + 2) * PAGE + 500, &data);
        model_a.expect("a", &a, Some(&map_a))?;
        model_b.expect("b", &b, Some(&map_b))?;
    }
    a.sync_all()?;
    b.sync_all()?;
    // Both write the same page; a third file shares what is left, at another offset.
    map_a.write(30 * PAGE, &[1; 64]);
    model_a.put(30 * PAGE, &[1; 64]);
    map_b.write(30 * PAGE, &[2; 64]);
    model_b.put(30 * PAGE, &[2; 64]);
    let c = dax.mount.create("c")?;
    clone_range(&b, 16 * PAGE, 64 * PAGE, &c, 0)?;
    let model_c = Model(model_b.0[16 * PAGE as usize..80 * PAGE as usize].to_vec());
    let map_c = Mapping::shared(&c, 0, 64 * PAGE)?;
    model_c.expect("c", &c, Some(&map_c))?;
    map_b.write(20 * PAGE + 9, &[7; 9]);
    model_b.put(20 * PAGE + 9, &[7; 9]);
    for round in 0..2 {
        model_a.expect("a", &a, Some(&map_a))?;
        model_b.expect("b", &b, Some(&map_b))?;
        model_c.expect("c", &c, Some(&map_c))?;
        if round == 0 {
            for file in [&a, &b, &c] {
                file.sync_all()?;
            }
        }
    }
    // The file that shares goes away: nothing of the others does.
    drop((map_a, a));
    std::fs::remove_file(dax.mount.path("a"))?;
    model_b.expect("b after a is gone", &b, Some(&map_b))?;
    model_c.expect("c after a is gone", &c, Some(&map_c))?;
    drop((map_b, map_c, b, c));
    let dax = dax.remount()?;
    model_b.expect("b after a remount", &dax.mount.open("b")?, None)?;
    model_c.expect("c after a remount", &dax.mount.open("c")?, None)?;
    dax.check()
}

/// write(2), truncation and zeroing of shared blocks, at odd offsets.
fn reflink_write(dax: Dax) -> Result<()> {
    let a = dax.file("a", false)?;
    let len = a.metadata()?.len();
    let data = pattern(1, 0, len as usize);
    a.write_all_at(&data, 0)?;
    let model_a = Model(data.clone());
    let mut model_b = Model(data);
    let b = dax.mount.create("b")?;
    clone_range(&a, 0, 0, &b, 0)?;
    let map_b = Mapping::shared(&b, 0, len)?;
    map_b.peek(10 * PAGE);
    for (seed, (offset, count)) in [
        (10 * PAGE + 100, 50),
        (20 * PAGE - 5, 10),
        (30 * PAGE + 5, 3 * PAGE),
        (40 * PAGE, 2 * PAGE),
        (len - 3, 3),
    ]
    .into_iter()
    .enumerate()
    {
        let data = pattern(seed as u64 + 5, 0, count as usize);
        b.write_all_at(&data, offset)?;
        model_b.put(offset, &data);
        model_b.expect("b", &b, Some(&map_b))?;
        model_a.expect("a", &a, None)?;
    }
    fallocate(&b, libc::FALLOC_FL_ZERO_RANGE, 50 * PAGE + 100, 2 * PAGE)?;
    model_b.0[(50 * PAGE + 100) as usize..(52 * PAGE + 100) as usize].fill(0);
    punch(&b, 60 * PAGE + 100, 50)?;
    model_b.0[(60 * PAGE + 100) as usize..(60 * PAGE + 150) as usize].fill(0);
    b.set_len(70 * PAGE + 9)?;
    b.set_len(len)?;
    model_b.0[(70 * PAGE + 9) as usize..].fill(0);
    model_b.expect("b zeroed and cut", &b, Some(&map_b))?;
    model_a.expect("a", &a, None)?;
    b.sync_all()?;
    drop((map_b, a, b));
    let dax = dax.remount()?;
    model_a.expect("a after a remount", &dax.mount.open("a")?, None)?;
    model_b.expect("b after a remount", &dax.mount.open("b")?, None)?;
    dax.check()
}

/// Deduplication compares what is there now, stores through mappings included.
fn dedupe_xfs(dax: Dax) -> Result<()> {
    let (a, b) = (dax.file("a", false)?, dax.file("b", false)?);
    let len = a.metadata()?.len();
    let data = pattern(1, 0, len as usize);
    let map_a = Mapping::shared(&a, 0, len)?;
    let map_b = Mapping::shared(&b, 0, len)?;
    map_a.write(0, &data);
    b.write_all_at(&data, 0)?;
    map_b.touch(5 * PAGE + 1, !data[5 * PAGE as usize + 1]);
    ensure!(
        !dedupe(&a, 0, len, &b, 0)?,
        "files that differ in one byte were called equal"
    );
    map_b.touch(5 * PAGE + 1, data[5 * PAGE as usize + 1]);
    ensure!(
        dedupe(&a, 0, len, &b, 0)?,
        "equal files were called different"
    );
    ensure!(
        extents(&b)?.iter().all(|e| e.is_shared()),
        "equal files share nothing"
    );
    let (mut model_a, mut model_b) = (Model(data.clone()), Model(data));
    model_b.expect("b", &b, Some(&map_b))?;
    map_b.write(9 * PAGE, &[1; 10]);
    model_b.put(9 * PAGE, &[1; 10]);
    map_a.write(9 * PAGE + 20, &[2; 10]);
    model_a.put(9 * PAGE + 20, &[2; 10]);
    model_a.expect("a", &a, Some(&map_a))?;
    model_b.expect("b", &b, Some(&map_b))?;
    drop((map_a, map_b, a, b));
    dax.check()
}

/// FALLOC_FL_UNSHARE_RANGE gives a file blocks of its own with the same content.
fn unshare(dax: Dax) -> Result<()> {
    let a = dax.file("a", false)?;
    let len = a.metadata()?.len();
    let data = pattern(1, 0, len as usize);
    a.write_all_at(&data, 0)?;
    let model = Model(data);
    let b = dax.mount.create("b")?;
    clone_range(&a, 0, 0, &b, 0)?;
    let map = Mapping::shared(&b, 0, len)?;
    model.expect("shared", &b, Some(&map))?;
    // Half by a range that is not aligned, then all.
    fallocate(&b, libc::FALLOC_FL_UNSHARE_RANGE, PAGE + 5, 100 * PAGE)?;
    model.expect("half unshared", &b, Some(&map))?;
    fallocate(&b, libc::FALLOC_FL_UNSHARE_RANGE, 0, len)?;
    b.sync_all()?;
    ensure!(
        !extents(&b)?.iter().any(|e| e.is_shared()),
        "blocks are still shared"
    );
    model.expect("unshared", &b, Some(&map))?;
    map.touch(2 * PAGE, 1);
    model.expect("the other file", &a, None)?;
    drop((map, a, b));
    dax.check()
}
