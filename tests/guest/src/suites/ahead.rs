// SPDX-License-Identifier: GPL-2.0

//! Pages that faults map ahead (`fault_around`, `fault_around_write`; the rule is in
//! fs_dax/ahead.rs): never more than the rule says, never what has no written blocks, and nobody can
//! tell but by the clock, and for writes by what is flushed.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use proto::Tag;

use crate::fixture::dax::allocated;
use crate::fixture::flushes::{expect_clean, Counters};
use crate::fixture::fs::extents;
use crate::fixture::{Dax, Driver, Flushes, Fs, Mapping, PAGE};
use crate::test::{Ctx, Suite};

pub fn suite(s: &mut Suite) {
    s.test("reads", |ctx| each(ctx, "fault_around=16", reads))
        .tag(Tag::RustOnly)
        .tag(Tag::Smoke);
    s.test("reads_beyond_the_most", |ctx| {
        each(ctx, "fault_around=65", reads_beyond_the_most)
    })
    .tag(Tag::RustOnly);
    s.test("set_while_loaded", |ctx| {
        each(ctx, "fault_around=0", set_while_loaded)
    })
    .tag(Tag::RustOnly);
    s.test("writes", |ctx| each(ctx, "fault_around_write=16", writes))
        .tag(Tag::RustOnly);
    s.test("only_written_blocks", |ctx| {
        each(
            ctx,
            "fault_around=16 fault_around_write=16",
            only_written_blocks,
        )
    })
    .tag(Tag::RustOnly);
}

/// Runs `f` on ext4 and xfs with these parameters.
fn each(ctx: &Ctx, params: &str, f: impl Fn(Dax) -> Result<()>) -> Result<()> {
    let driver = Driver::load(ctx, &[params])?;
    for fs in Fs::ALL {
        f(Dax::on(driver.disk(0), fs)?).with_context(|| fs.name())?;
    }
    driver.unload()
}

/// What nobody may see change by mapping ahead: mtime, ctime and blocks.
fn state(file: &File) -> Result<(i64, i64, i64, i64, u64)> {
    let m = file.metadata()?;
    let blocks = allocated(file)?;
    Ok((m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec(), blocks))
}

/// Reads each page in turn; no fault may map more than `most` pages ahead. Returns how many one
/// fault mapped ahead at most.
fn in_sequence(map: &Mapping, most: u64) -> Result<u64> {
    let mut seen = 0;
    for page in 0..map.len() as u64 / PAGE {
        let before = map.mapped()?;
        if before.contains(&page) {
            map.peek(page * PAGE);
            ensure!(
                map.mapped()? == before,
                "page {page}: mapped, yet it faulted"
            );
            continue;
        }
        map.peek(page * PAGE);
        let ahead = map.mapped()?.difference(&before).count() as u64 - 1;
        ensure!(ahead <= most, "page {page}: {ahead} pages mapped ahead");
        seen = seen.max(ahead);
    }
    Ok(seen)
}

/// With 0 every page costs a fault; another number is obeyed from the next fault on.
fn set_while_loaded(dax: Dax) -> Result<()> {
    const PARAM: &str = "/sys/module/rust_pmem/parameters/fault_around";
    let file = dax.file("f", false)?;
    let len = file.metadata()?.len();
    for (value, want) in [("0", 0), ("16", 16), ("0", 0)] {
        std::fs::write(PARAM, value).context(PARAM)?;
        let most = in_sequence(&Mapping::shared(&file, 0, len)?, want)?;
        ensure!(most == want, "{value}: {most} pages mapped ahead");
    }
    drop(file);
    dax.check()
}

/// Reads in sequence and at random places. A read fault in sequence maps up to 16 pages ahead, one at
/// a random place the other three of its aligned four.
fn reads(dax: Dax) -> Result<()> {
    let file = dax.file("sequence", false)?;
    let nr = file.metadata()?.len() / PAGE;
    let before = state(&file)?;
    let c = Counters::read(dax.disk())?;
    let map = Mapping::shared(&file, 0, nr * PAGE)?;
    let most = in_sequence(&map, 16)?;
    ensure!(most == 16, "the window grew to {most} pages only");
    let now = Counters::read(dax.disk())?;
    let (faults, ahead) = (
        now.since(&c, "pte_read_faults")?,
        now.since(&c, "pages_ahead")?,
    );
    println!("{faults} faults and {ahead} pages ahead for {nr} pages");
    ensure!(
        faults + ahead == nr,
        "{faults} faults and {ahead} pages ahead for {nr} pages"
    );

    // generic/080: a store to a page that has been mapped ahead faults, as after any read.
    ensure!(state(&file)? == before, "reading changed times or blocks");
    std::thread::sleep(Duration::from_millis(30));
    let c = Counters::read(dax.disk())?;
    map.touch(100 * PAGE, 1);
    let after = state(&file)?;
    ensure!(
        (after.0, after.1) > (before.0, before.1) && (after.2, after.3) > (before.2, before.3),
        "mtime or ctime stayed: {before:?}, {after:?}"
    );
    let now = Counters::read(dax.disk())?;
    ensure!(now.since(&c, "pte_write_faults")? == 1, "no write fault");
    ensure!(
        now.since(&c, "pages_ahead")? == 0,
        "a write fault mapped ahead, with fault_around_write=0"
    );
    let flushes = Flushes::watch()?;
    file.sync_all()?;
    flushes.take(&file)?.expect("fsync", [100])?;
    drop((map, file));

    let file = dax.file("random", false)?;
    let before = state(&file)?;
    let c = Counters::read(dax.disk())?;
    let random = Mapping::shared(&file, 0, nr * PAGE)?;
    let places = [202, 33, 96, 0, 131, 255];
    for page in places {
        random.peek(page * PAGE);
    }
    let want: BTreeSet<u64> = places
        .iter()
        .flat_map(|p| p / 4 * 4..p / 4 * 4 + 4)
        .collect();
    let got = random.mapped()?;
    ensure!(got == want, "mapped: {got:?}, not {want:?}");
    let ahead = Counters::read(dax.disk())?.since(&c, "pages_ahead")?;
    ensure!(
        ahead == 3 * places.len() as u64,
        "{ahead} pages counted ahead"
    );
    ensure!(state(&file)? == before, "reading changed times or blocks");
    drop((random, file, flushes));
    dax.check()
}

/// More than 64 may be asked for, but at most 64 are mapped ahead.
fn reads_beyond_the_most(dax: Dax) -> Result<()> {
    let file = dax.file("f", false)?;
    let map = Mapping::shared(&file, 0, file.metadata()?.len())?;
    let most = in_sequence(&map, 64)?;
    ensure!(most > 16, "the window grew to {most} pages only");
    drop((map, file));
    dax.check()
}

/// Stores in sequence and at random places. Pages mapped ahead by a write fault are dirty; what is
/// flushed in vain is at most 16 pages for each write fault at a page behind a dirty one, and none
/// for the others.
fn writes(dax: Dax) -> Result<()> {
    let file = dax.file("sequence", false)?;
    let len = file.metadata()?.len();
    let map = Mapping::shared(&file, 0, len)?;
    let blocks = allocated(&file)?;
    let flushes = Flushes::watch()?;
    let c = Counters::read(dax.disk())?;
    let touched = 100;
    for page in 0..touched {
        map.touch(page * PAGE, 1);
    }
    let now = Counters::read(dax.disk())?;
    let (faults, ahead) = (
        now.since(&c, "pte_write_faults")?,
        now.since(&c, "pages_ahead")?,
    );
    println!("{faults} faults and {ahead} pages ahead for {touched} pages");
    // Not one fault for each page, and the last one went beyond the last page by 16 at most.
    ensure!(
        faults < touched / 2 && faults + ahead >= touched,
        "{faults} faults, {ahead} pages ahead for {touched} pages"
    );
    file.sync_all()?;
    let flushed = flushes.take(&file)?;
    let pages = flushed.pages();
    ensure!(
        (0..touched).all(|p| pages.contains(&p)),
        "not flushed: some of the pages written; {pages:?}"
    );
    ensure!(
        pages.len() as u64 == faults + ahead && pages.iter().all(|p| *p < touched + 16),
        "flushed for {faults} faults and {ahead} pages ahead: {pages:?}"
    );
    expect_clean("after a sequence", &flushes, &file, Some(&map))?;
    ensure!(allocated(&file)? == blocks, "blocks were allocated");
    drop((map, file));

    // 41 and 71 are behind a dirty page, so each maps one ahead; the others are alone. A store to 42
    // does not fault then, 72 is flushed in vain.
    let file = dax.file("random", false)?;
    let map = Mapping::shared(&file, 0, len)?;
    let blocks = allocated(&file)?;
    let c = Counters::read(dax.disk())?;
    for page in [200, 40, 90, 41, 42, 10, 70, 71] {
        map.touch(page * PAGE, 1);
    }
    let now = Counters::read(dax.disk())?;
    let faults = now.since(&c, "pte_write_faults")?;
    ensure!(faults == 7, "{faults} write faults, not 7");
    ensure!(now.since(&c, "pages_ahead")? == 2, "not 2 pages ahead");
    flushes.forget()?;
    file.sync_all()?;
    let want = [10, 40, 41, 42, 70, 71, 72, 90, 200];
    flushes.take(&file)?.expect("random places", want)?;
    expect_clean("after random places", &flushes, &file, Some(&map))?;
    ensure!(allocated(&file)? == blocks, "blocks were allocated");
    drop((map, file, flushes));
    dax.check()
}

/// Neither reads nor stores map holes or unwritten blocks ahead, nor do they get blocks for them.
fn only_written_blocks(dax: Dax) -> Result<()> {
    // Eight written pages, many unwritten ones (a few ext4 would zero at once), a hole.
    let file = dax.mount.allocate("f", 64 * PAGE)?;
    file.write_all_at(&[1; 8 * PAGE as usize], 0)?;
    file.set_len(96 * PAGE)?;
    file.sync_all()?;
    let blocks = allocated(&file)?;
    let written = |what: &str| -> Result<()> {
        for e in extents(&file)? {
            let end = (e.logical + e.len) / PAGE;
            ensure!(
                e.is_unwritten() || end <= 8,
                "{what}: written up to page {end}"
            );
        }
        let now = allocated(&file)?;
        ensure!(now == blocks, "{what}: {blocks} bytes became {now}");
        Ok(())
    };
    written("before")?;
    for store in [false, true] {
        let what = if store { "stores" } else { "loads" };
        let map = Mapping::shared(&file, 0, 96 * PAGE)?;
        let c = Counters::read(dax.disk())?;
        for page in 0..8 {
            if store {
                map.touch(page * PAGE, 2);
            } else {
                map.peek(page * PAGE);
            }
        }
        let got = map.mapped()?;
        ensure!(got == (0..8).collect(), "{what}: mapped {got:?}");
        let now = Counters::read(dax.disk())?;
        ensure!(
            now.since(&c, "pages_ahead")? > 0,
            "{what}: nothing was mapped ahead"
        );
        // Zero pages are not mapped ahead either.
        for page in 8..96 {
            ensure!(map.peek(page * PAGE) == 0, "page {page} is not zero");
        }
        let ahead = Counters::read(dax.disk())?.since(&now, "pages_ahead")?;
        ensure!(ahead == 0, "{what}: {ahead} zero pages mapped ahead");
        file.sync_all()?;
        written(what)?;
    }
    drop(file);
    dax.check()
}
