// SPDX-License-Identifier: GPL-2.0

//! How a store into a mapping becomes durable: the five flows of an application, and the other
//! ways that lead to write-back. Each test knows which pages it dirtied and says which pages have
//! to be flushed: those, no others, each once.
//!
//! What "once" means: a page's entry is flushed as a whole, so one dirty byte of a 2 MiB (PMD)
//! entry flushes its 512 pages, and one of a 4 KiB (PTE) entry its page.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use nix::errno::Errno;
use proto::{Machine, Tag};

use crate::fixture::child::{spawn, End};
use crate::fixture::dax::{allocated, on_both, on_both_sizes, Model};
use crate::fixture::flushes::{expect_clean, Counters, Flushed, Reason};
use crate::fixture::fs::{extents, fallocate, physical};
use crate::fixture::io::{read_at, same};
use crate::fixture::{
    pattern, sh, Dax, Driver, Flow, Flushes, Fs, KernelLog, Mapping, MIB, PAGE, PMD,
};
use crate::test::{Ctx, Suite};

pub fn suite(s: &mut Suite) {
    for flow in Flow::ALL {
        let test = s.test(flow.name(), move |ctx| {
            on_both_sizes(ctx, |dax, huge| run(dax, huge, flow))
        });
        if flow == Flow::MmapWriteFsyncClose {
            test.tag(Tag::Smoke);
        }
    }
    s.test("store_after_fsync", |ctx| {
        on_both_sizes(ctx, store_after_fsync)
    });
    s.test("times_and_blocks", |ctx| {
        on_both_sizes(ctx, times_and_blocks)
    });
    s.test("other_ways", |ctx| on_both_sizes(ctx, other_ways));
    s.test("one_page_of_1g", |ctx| on_both(ctx, one_page_of_1g));
    s.test("msync_of_a_part", |ctx| on_both(ctx, msync_of_a_part));
    s.test("dirty_outlives_layout_breaks", dirty_outlives_layout_breaks)
        .c_is_wrong("breaking the layout of one range forgets what is dirty in others");
    for (name, cpu) in [
        ("Clwb", "max"),
        ("Clflushopt", "max,-clwb"),
        ("Clflush", "max,-clwb,-clflushopt"),
    ] {
        s.test(format!("by_{}", name.to_lowercase()), move |ctx| {
            by(ctx, name)
        })
        .machine(Machine::default().cpu(cpu))
        .tag(Tag::RustOnly);
    }
    s.test("unmount", unmount).tag(Tag::RustOnly);
    s.test("deleted", |ctx| on_both(ctx, deleted))
        .tag(Tag::RustOnly);
    s.test("being_unmapped", |ctx| on_both(ctx, being_unmapped))
        .tag(Tag::RustOnly);
    s.test("part_of_a_pmd", |ctx| on_both(ctx, part_of_a_pmd));
    s.test("many_runs", |ctx| on_both(ctx, many_runs));
    s.test("entries_stay_usable", |ctx| {
        on_both(ctx, entries_stay_usable)
    });
}

/// What is dirty in a file that is deleted goes with it: nothing is flushed.
fn deleted(dax: Dax) -> Result<()> {
    let file = dax.file("f", false)?;
    // No flush when a mapping goes.
    std::fs::write("/sys/module/rust_pmem/parameters/flush_on_unmap", "N")?;
    let map = Mapping::shared(&file, 0, 64 * PAGE)?;
    for page in 0..64 {
        map.touch(page * PAGE, 1);
    }
    drop(map);
    let before = Counters::read(dax.disk())?;
    drop(file);
    std::fs::remove_file(dax.mount.path("f"))?;
    let now = Counters::read(dax.disk())?;
    std::fs::write("/sys/module/rust_pmem/parameters/flush_on_unmap", "Y")?;
    for counter in ["bytes_fsync", "bytes_unmap"] {
        let n = now.since(&before, counter)?;
        ensure!(n == 0, "{n} {counter} for a file that is deleted");
    }
    dax.check()
}

/// Who flushes waits for whoever is taking dirty mappings of the file away: their page table may
/// be gone already, and TLBs still allow stores. (That moment is too short for a test to be in it.)
fn being_unmapped(dax: Dax) -> Result<()> {
    let file = dax.file("f", false)?;
    let map = Mapping::shared(&file, 0, 256 * PAGE)?;
    let waits = || Counters::of_layer(dax.disk())?.get("zap_waits");
    let expect = |what: &str, before: u64, want: u64| -> Result<()> {
        let got = waits()? - before;
        ensure!(got == want, "{what}: {got} waits, not {want}");
        Ok(())
    };
    map.touch(0, 1);
    file.sync_data()?;

    let before = waits()?;
    map.touch(0, 2);
    file.sync_data()?;
    expect("fsync, nothing was unmapped", before, 0)?;
    map.touch(0, 3);
    map.madvise(0, 256 * PAGE, libc::MADV_DONTNEED)?;
    file.sync_data()?;
    expect("fsync after MADV_DONTNEED", before, 1)?;
    map.touch(0, 4);
    file.sync_data()?;
    expect("the next fsync", before, 1)?;
    drop((map, file));
    dax.check()
}

/// Pages that a flow writes: alone, next to each other, the first and the last.
const PAGES: &[u64] = &[0, 3, 4, 5, 17, 100, 101, 102, 103, 104, 200, 255];

/// The pages that have to be flushed when these are written.
fn entries_of(pages: &[u64], huge: bool) -> Vec<u64> {
    if !huge {
        return pages.to_vec();
    }
    let pmds: std::collections::BTreeSet<_> = pages.iter().map(|p| p / 512).collect();
    pmds.into_iter()
        .flat_map(|p| p * 512..(p + 1) * 512)
        .collect()
}

/// Stores a pattern into each of the pages; all of them in the first PMD.
fn store(map: &Mapping, model: &mut Model, seed: u64, pages: &[u64]) {
    for &page in pages {
        let data = pattern(seed, page * PAGE, PAGE as usize);
        map.write(page * PAGE, &data);
        model.put(page * PAGE, &data);
    }
}

fn run(dax: Dax, huge: bool, flow: Flow) -> Result<()> {
    let file = dax.file("f", huge)?;
    let len = file.metadata()?.len();
    let mut model = Model::zeroed(len);
    let flushes = Flushes::watch()?;

    flow.run(
        &dax.mount.path("f"),
        |map| {
            store(map, &mut model, 1, PAGES);
            map.expect_huge(0, huge)?;
            ensure!(map.dirty()? > 0, "nothing is dirty before the call");
            Ok(())
        },
        |map| finish(&flushes, &file, huge, map),
    )?;
    flushes.take(&file)?.expect_none("after close")?;

    // What was stored is in the device, in the file, and there after a remount.
    let raw = dax.disk().open_direct()?;
    for &page in PAGES {
        let at = physical(&file, page * PAGE)?;
        let got = read_at(&raw, at, PAGE as usize)?;
        let want = &model.0[(page * PAGE) as usize..][..PAGE as usize];
        same(&format!("page {page} in the device"), &got, want)?;
    }
    drop((raw, file, flushes));
    let dax = dax.remount()?;
    model.expect("after a remount", &dax.mount.open("f")?, None)?;
    dax.check()
}

/// The pages were flushed, and nothing dirty is left.
fn finish(flushes: &Flushes, file: &File, huge: bool, map: Option<&Mapping>) -> Result<()> {
    let flushed = flushes.take(file)?;
    expect_all(&flushed, &entries_of(PAGES, huge))?;
    expect_clean("after the call", flushes, file, map)
}

/// Exactly `want` was flushed by the call. What went away dirty with its mapping may have been
/// flushed there and then (`flush_on_unmap`), and is then not flushed for the call again.
fn expect_all(flushed: &Flushed, want: &[u64]) -> Result<()> {
    flushed.of(Reason::Unmap).pages().iter().try_for_each(|p| {
        ensure!(
            want.contains(p),
            "unmap flushed page {p}, which was not written"
        );
        Ok(())
    })?;
    if flushed.of(Reason::Unmap).is_empty() {
        return flushed.expect("flushed", want.iter().copied());
    }
    let got = flushed.pages();
    let missing: Vec<_> = want.iter().filter(|p| !got.contains(p)).collect();
    ensure!(missing.is_empty(), "pages not flushed: {missing:?}");
    Ok(())
}

/// Changing the size of a file and punching holes into it breaks the layouts of all of it; what is
/// dirty elsewhere is flushed then, or by the next fsync. The C layer forgets it.
fn dirty_outlives_layout_breaks(ctx: &Ctx) -> Result<()> {
    let driver = Driver::load(ctx, &["flush_on_unmap=0"])?;
    for fs in Fs::ALL {
        for huge in [false, true] {
            let dax = Dax::on(driver.disk(0), fs)?;
            let file = dax.file("f", huge)?;
            let len = file.metadata()?.len();
            let pages = [1, 2, 40];
            let map = Mapping::shared(&file, 0, len)?;
            let mut model = Model::zeroed(len);
            let flushes = Flushes::watch()?;
            for (seed, way) in ["growing", "shrinking", "punching", "zeroing"]
                .iter()
                .enumerate()
            {
                let what = format!("{fs}, huge: {huge}, {way}");
                store(&map, &mut model, seed as u64, &pages);
                let keep = libc::FALLOC_FL_KEEP_SIZE;
                match *way {
                    "growing" => file.set_len(len + PAGE)?,
                    "shrinking" => file.set_len(len)?,
                    "punching" => {
                        fallocate(&file, libc::FALLOC_FL_PUNCH_HOLE | keep, len - PAGE, PAGE)?
                    }
                    _ => fallocate(&file, libc::FALLOC_FL_ZERO_RANGE | keep, len - PAGE, PAGE)?,
                }
                let mut got = flushes.take(&file)?.pages();
                file.sync_all()?;
                let flushed = flushes.take(&file)?;
                got.extend(flushed.pages());
                let want = entries_of(&pages, huge);
                let missing: Vec<_> = want.iter().filter(|p| !got.contains(p)).collect();
                ensure!(missing.is_empty(), "{what}: not flushed: {missing:?}");
                expect_clean(&what, &flushes, &file, Some(&map))?;
            }
            model.expect("in the end", &file, None)?;
            drop((map, file, flushes));
            dax.check()?;
        }
    }
    driver.unload()
}

/// Unmounting the file system writes back what was stored and unmapped without an fsync: it is what
/// the next mount finds, and the counters tell of each page.
fn unmount(ctx: &Ctx) -> Result<()> {
    let driver = Driver::load(ctx, &["flush_on_unmap=0"])?;
    for fs in Fs::ALL {
        for huge in [false, true] {
            let what = format!("{fs}, huge: {huge}");
            let dax = Dax::on(driver.disk(0), fs)?;
            let file = dax.file("f", huge)?;
            let len = file.metadata()?.len();
            let mut model = Model::zeroed(len);
            let map = Mapping::shared(&file, 0, len)?;
            store(&map, &mut model, 1, PAGES);
            let before = Counters::read(dax.disk())?;
            drop((map, file));
            let now = Counters::read(dax.disk())?;
            let early = now.since(&before, "bytes_fsync")? + now.since(&before, "bytes_unmap")?;
            ensure!(early == 0, "{what}: {early} bytes flushed at munmap");
            let dax = dax.remount()?;
            let bytes = Counters::read(dax.disk())?.since(&before, "bytes_fsync")?;
            let want = entries_of(PAGES, huge).len() as u64 * PAGE;
            ensure!(bytes == want, "{what}: {bytes} bytes flushed, not {want}");
            model.expect(&what, &dax.mount.open("f")?, None)?;
            dax.check()?;
        }
    }
    driver.unload()
}

/// Write-back by each of the instructions that a processor may have: the log says which one was
/// chosen.
fn by(ctx: &Ctx, instruction: &str) -> Result<()> {
    let mut log = KernelLog::open()?;
    let driver = Driver::load(ctx, &[])?;
    let said = log.drain_matching("cache lines are written back by");
    ensure!(
        said.len() == 1 && said[0].ends_with(&format!(" by {instruction}")),
        "not {instruction}: {said:?}"
    );
    for fs in Fs::ALL {
        for huge in [false, true] {
            let dax = Dax::on(driver.disk(0), fs)?;
            run(dax, huge, Flow::MmapWriteFsyncClose)
                .with_context(|| format!("{fs}, huge: {huge}"))?;
        }
    }
    driver.unload()
}

/// A store after write-back dirties its page again: write-back has to take write access away, or
/// the store goes unnoticed and the next fsync loses it.
fn store_after_fsync(dax: Dax, huge: bool) -> Result<()> {
    let file = dax.file("f", huge)?;
    let len = file.metadata()?.len();
    // A second mapping of the same pages must lose write access as well.
    let map = Mapping::shared(&file, 0, len)?;
    let other = Mapping::shared(&file, 0, len)?;
    let mut model = Model::zeroed(len);
    let flushes = Flushes::watch()?;
    for round in 0..4 {
        let first = if round % 2 == 0 { &map } else { &other };
        store(first, &mut model, round * 2, &[7, 8, 9]);
        store(&other, &mut model, round * 2 + 1, &[8]);
        file.sync_all()?;
        let flushed = flushes.take(&file)?;
        flushed.expect(&format!("round {round}"), entries_of(&[7, 8, 9], huge))?;
        flushed.expect_memory(&file, dax.disk())?;
        for (name, map) in [("first", &map), ("second", &other)] {
            let dirty = map.dirty()?;
            ensure!(
                dirty == 0,
                "{dirty} bytes of the {name} mapping are dirty after fsync"
            );
        }
        model.expect("after fsync", &file, Some(&map))?;
    }
    drop((map, other, file));
    dax.check()
}

/// What generic/080 of xfstests asks for: a page that was read first and then written through the
/// mapping updates mtime and ctime and gets its blocks, and so again after fsync.
fn times_and_blocks(dax: Dax, huge: bool) -> Result<()> {
    let len = if huge { 2 * PMD } else { 16 * PAGE };
    let file = if huge {
        dax.mount.allocate_huge("f", len, dax.disk())?
    } else {
        dax.mount.create("f")?
    };
    file.set_len(len)?;
    file.sync_all()?;
    let times = |file: &File| -> Result<_> {
        let m = file.metadata()?;
        Ok(((m.mtime(), m.mtime_nsec()), (m.ctime(), m.ctime_nsec())))
    };
    let map = Mapping::shared(&file, 0, len)?;
    let blocks = allocated(&file)?;
    ensure!(
        map.peek(0) == 0 && map.peek(PAGE) == 0,
        "a new file is not zero"
    );
    ensure!(allocated(&file)? == blocks, "reading allocated blocks");

    let mut before = times(&file)?;
    for (round, write_back) in ["read", "fsync", "msync", "fsync"].into_iter().enumerate() {
        // Times move in ticks.
        std::thread::sleep(Duration::from_millis(30));
        map.touch(5, round as u8 + 1);
        let after = times(&file)?;
        ensure!(
            after.0 > before.0,
            "mtime stayed after {write_back} and a store: {before:?}"
        );
        ensure!(
            after.1 > before.1,
            "ctime stayed after {write_back} and a store: {before:?}"
        );
        before = after;
        match round {
            1 => map.msync(0, PAGE)?,
            _ => file.sync_all()?,
        }
        let synced = times(&file)?;
        ensure!(synced == before, "write-back changed the times");
    }
    if !huge {
        let got = allocated(&file)?;
        ensure!(
            got >= blocks + PAGE && got <= blocks + len,
            "{blocks} bytes were allocated before the store, {got} after it"
        );
    }
    drop((map, file));
    dax.check()
}

/// Everything else that has to write back: fdatasync, syncfs, sync_file_range, freezing,
/// remounting read-only, unmounting, the death of the process.
fn other_ways(dax: Dax, huge: bool) -> Result<()> {
    let file = dax.file("f", huge)?;
    let len = file.metadata()?.len();
    let map = Mapping::shared(&file, 0, len)?;
    let mut model = Model::zeroed(len);
    let flushes = Flushes::watch()?;
    let pages = [1, 2, 64];
    let want = || entries_of(&pages, huge);
    let mut seed = 10;
    let mut dirty = |model: &mut Model| {
        seed += 1;
        store(&map, model, seed, &pages);
    };

    dirty(&mut model);
    file.sync_data()?;
    flushes.take(&file)?.expect("fdatasync", want())?;

    dirty(&mut model);
    // SAFETY: a descriptor.
    Errno::result(unsafe { libc::syncfs(file.as_raw_fd()) })?;
    flushes.take(&file)?.expect("syncfs", want())?;

    dirty(&mut model);
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE
        | libc::SYNC_FILE_RANGE_WRITE
        | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: plain numbers.
    Errno::result(unsafe { libc::sync_file_range(file.as_raw_fd(), 0, len as i64, flags) })?;
    // A full sync_file_range is a data integrity write-out only by WAIT_BEFORE|WAIT_AFTER; what
    // it leaves the next fsync takes.
    let by_range = flushes.take(&file)?;
    file.sync_data()?;
    let by_fsync = flushes.take(&file)?;
    let both: Vec<u64> = by_range.pages().union(&by_fsync.pages()).copied().collect();
    ensure!(
        both == want(),
        "sync_file_range, then fdatasync, flushed {both:?}"
    );

    dirty(&mut model);
    dax.mount.freeze()?;
    let frozen = flushes.take(&file)?;
    dax.mount.thaw()?;
    frozen.expect("freeze", want())?;
    expect_clean("after freeze", &flushes, &file, Some(&map))?;

    // A process that dies with a dirty mapping; nothing is flushed twice for one store.
    let path = dax.mount.path("f");
    let data = pattern(99, 7 * PAGE, PAGE as usize);
    let end = spawn(|| {
        let file = File::options().read(true).write(true).open(&path)?;
        let map = Mapping::shared(&file, 0, len)?;
        map.write(7 * PAGE, &data);
        std::mem::forget(map);
        Ok(())
    })?
    .end()?;
    ensure!(end == End::Done, "{end:?}");
    model.put(7 * PAGE, &data);
    file.sync_data()?;
    expect_all(&flushes.take(&file)?, &entries_of(&[7], huge))?;

    let dir = dax.mount.dir.display().to_string();
    drop(map);
    flushes.forget()?;
    let map = Mapping::shared(&file, 0, len)?;
    store(&map, &mut model, 50, &pages);
    drop(map);
    drop(file);
    sh(format!("mount -o remount,ro {dir}"))?;
    let file = File::open(dax.mount.path("f"))?;
    expect_all(&flushes.take(&file)?, &want())?;
    drop(file);
    sh(format!("mount -o remount,rw {dir}"))?;

    let file = dax.mount.open("f")?;
    model.expect("after remount,ro", &file, None)?;
    let map = Mapping::shared(&file, 0, len)?;
    store(&map, &mut model, 51, &pages);
    drop((map, file));
    let dax = dax.remount()?;
    model.expect("after unmounting", &dax.mount.open("f")?, None)?;
    drop(flushes);
    dax.check()
}

/// The cost of fsync is that of what is dirty: one page of a 1 GiB mapping.
fn one_page_of_1g(dax: Dax) -> Result<()> {
    let file = dax.mount.create("f")?;
    let size = 1024 * MIB;
    file.set_len(size)?;
    let page = 150_001;
    // A single block; a store into a hole of this size would get 2 MiB of blocks and a PMD.
    file.write_all_at(&[1], page * PAGE)?;
    file.sync_all()?;
    let map = Mapping::shared(&file, 0, size)?;
    let flushes = Flushes::watch()?;
    map.touch(page * PAGE, 1);
    map.expect_huge(page * PAGE, false)?;
    file.sync_all()?;
    let flushed = flushes.take(&file)?;
    flushed.expect("fsync", [page])?;
    flushed.expect_memory(&file, dax.disk())?;
    map.touch(page * PAGE + 9, 2);
    map.msync(0, size)?;
    flushes.take(&file)?.expect("msync of everything", [page])?;
    expect_clean("after msync", &flushes, &file, None)?;
    // Many clean entries in between do not make it more.
    for p in 0..512 {
        map.peek((150_000 - 256 + p) * PAGE);
    }
    map.touch(page * PAGE + 10, 3);
    let t = Instant::now();
    file.sync_data()?;
    println!("fdatasync of one page in 1 GiB: {:?}", t.elapsed());
    flushes
        .take(&file)?
        .expect("fsync among clean entries", [page])?;
    drop((map, file));
    dax.check()
}

/// msync of a part leaves the rest dirty.
fn msync_of_a_part(dax: Dax) -> Result<()> {
    let file = dax.file("f", false)?;
    let len = file.metadata()?.len();
    let map = Mapping::shared(&file, 0, len)?;
    let mut model = Model::zeroed(len);
    let flushes = Flushes::watch()?;
    let pages: Vec<u64> = (10..30).collect();
    store(&map, &mut model, 1, &pages);
    map.msync(14 * PAGE, 4 * PAGE)?;
    flushes.take(&file)?.expect("msync of 14..18", 14..18)?;
    let dirty = map.dirty()?;
    ensure!(
        dirty == 16 * PAGE,
        "{dirty} bytes are dirty after 4 of 20 pages were written back"
    );
    // A length that is no multiple of a page takes the page it ends in.
    map.msync(18 * PAGE, PAGE + 1)?;
    flushes
        .take(&file)?
        .expect("msync of a page and a byte", 18..20)?;
    file.sync_all()?;
    flushes
        .take(&file)?
        .expect("fsync", (10..14).chain(20..30))?;
    expect_clean("after fsync", &flushes, &file, Some(&map))?;
    model.expect("in the end", &file, Some(&map))?;
    drop((map, file));
    dax.check()
}

/// A range that begins and ends inside PMDs flushes both of them whole.
fn part_of_a_pmd(dax: Dax) -> Result<()> {
    let file = dax.mount.allocate_huge("f", 4 * PMD, dax.disk())?;
    let map = Mapping::shared(&file, 0, 4 * PMD)?;
    let flushes = Flushes::watch()?;
    let stores = |map: &Mapping| {
        for pmd in 0..4 {
            map.touch(pmd * PMD + 300 * PAGE, pmd as u8 + 1);
        }
    };
    stores(&map);
    for pmd in 0..4 {
        map.expect_huge(pmd * PMD, true)?;
    }
    map.msync(PMD + 400 * PAGE, PMD)?;
    let flushed = flushes.take(&file)?;
    flushed.expect("msync from the middle to the middle", 512..3 * 512)?;
    flushed.expect_memory(&file, dax.disk())?;
    let dirty = map.dirty()?;
    ensure!(dirty == 2 * PMD, "{dirty} bytes are dirty");
    file.sync_all()?;
    flushes
        .take(&file)?
        .expect("fsync", (0..512).chain(3 * 512..4 * 512))?;
    // One page of a clean PMD entry: the store faults, dirties and flushes all of it.
    stores(&map);
    map.msync(300 * PAGE, PAGE)?;
    flushes.take(&file)?.expect("msync of a page", 0..512)?;
    file.sync_all()?;
    flushes
        .take(&file)?
        .expect("fsync of the others", 512..4 * 512)?;
    expect_clean("in the end", &flushes, &file, Some(&map))?;
    drop((map, file));
    dax.check()
}

/// Write-back in runs: long runs, runs cut by clean pages, runs cut where the extent changes, more
/// of each than one batch takes.
fn many_runs(dax: Dax) -> Result<()> {
    // Two files grow in turn, so that their extents are short and lie between each other's.
    let file = dax.mount.create("f")?;
    let other = dax.mount.create("g")?;
    let size = 6 * MIB;
    let mut at = 0;
    for step in 0.. {
        let len = [3, 1, 16, 7, 64, 2][step % 6] * PAGE;
        if at + len > size {
            break;
        }
        fallocate(&file, 0, at, len)?;
        fallocate(&other, 0, at, 2 * PAGE)?;
        at += len;
    }
    let pages = at / PAGE;
    file.sync_all()?;
    ensure!(
        extents(&file)?.len() > 60,
        "only {} extents",
        extents(&file)?.len()
    );
    let mut model = Model::zeroed(at);
    let map = Mapping::pages_only(&file, 0, at)?;
    let flushes = Flushes::watch()?;
    type Choice = fn(u64) -> bool;
    let choices: [(&str, Choice); 5] = [
        ("all", |_| true),
        ("every second", |p| p % 2 == 0),
        ("all but each 50th", |p| p % 50 != 0),
        ("one in 90", |p| p % 90 == 3),
        ("blocks of 33 in 64", |p| p % 64 < 33),
    ];
    for (seed, (what, chosen)) in choices.into_iter().enumerate() {
        let dirty: Vec<u64> = (0..pages).filter(|p| chosen(*p)).collect();
        for &page in &dirty {
            let data = pattern(seed as u64, page * PAGE, 64);
            map.write(page * PAGE + 128, &data);
            model.put(page * PAGE + 128, &data);
        }
        file.sync_all()?;
        let flushed = flushes.take(&file)?;
        println!(
            "{what}: {} pages in {} flushes",
            dirty.len(),
            flushed.0.len()
        );
        flushed.expect(what, dirty)?;
        flushed.expect_memory(&file, dax.disk())?;
        let left = map.dirty()?;
        ensure!(left == 0, "{what}: {left} bytes are still dirty");
    }
    expect_clean("in the end", &flushes, &file, Some(&map))?;
    model.expect("in the end", &file, Some(&map))?;
    drop((map, file, other));
    dax.check()
}

/// After write-back each entry is unlocked: the same pages take stores, reads, truncation and
/// another write-back. (An entry left locked shows as a test that never ends.)
fn entries_stay_usable(dax: Dax) -> Result<()> {
    let file = dax.file("f", false)?;
    let len = file.metadata()?.len();
    let mut model = Model::zeroed(len);
    for round in 0..3 {
        let map = Mapping::shared(&file, 0, len)?;
        let all: Vec<u64> = (0..len / PAGE).filter(|p| p % 16 != 15).collect();
        store(&map, &mut model, round, &all);
        file.sync_all()?;
        store(&map, &mut model, round + 10, &all);
        map.msync(0, len)?;
        for p in 0..len / PAGE {
            // A fresh fault on each, for writing.
            map.madvise(p * PAGE, PAGE, libc::MADV_DONTNEED)?;
            let value = model.0[(p * PAGE) as usize];
            ensure!(map.peek(p * PAGE) == value, "page {p} after MADV_DONTNEED");
            map.touch(p * PAGE, value);
        }
        file.sync_all()?;
        model.expect("after write-back", &file, Some(&map))?;
    }
    // Deleting every entry waits for locks as well.
    file.set_len(0).context("truncate")?;
    file.set_len(len)?;
    Model::zeroed(len).expect("after truncation", &file, None)?;
    drop(file);
    dax.check()
}
