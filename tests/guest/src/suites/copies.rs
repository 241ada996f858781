// SPDX-License-Identifier: GPL-2.0

//! Copy-on-write (xfs) that does not come to its end: blocks that were made ready for it and are not
//! used must not show up in a file, stay allocated, or keep others waiting.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use nix::errno::Errno;
use nix::sys::statvfs::statvfs;
use proto::{Machine, Tag};

use crate::fixture::child::{expect_done, expect_sigbus, BUS_ADRERR};
use crate::fixture::dax::{clone_range, on_each, punch, Model};
use crate::fixture::flushes::Counters;
use crate::fixture::fs::{fallocate, physical};
use crate::fixture::io::{read_at, same, scratch_file, Aligned};
use crate::fixture::{pattern, sh, Dax, Driver, Fs, Mapping, MIB, PAGE, PMD};
use crate::test::{Ctx, Suite};

pub fn suite(s: &mut Suite) {
    const XFS: &[Fs] = &[Fs::Xfs];
    s.test("fault_then_punch", |ctx| stale(ctx, fault_in_pieces))
        .limit(60);
    s.test("failed_write_then_punch", |ctx| stale(ctx, failed_write))
        .limit(60);
    s.test("fault_then_unshare_hole", |ctx| stale(ctx, unshare_hole))
        .limit(60);
    s.test("blocks_are_given_back", |ctx| {
        on_each(ctx, XFS, blocks_are_given_back)
    })
    .limit(60);
    s.test("bad_source_of_a_pmd", |ctx: &Ctx| {
        let rust = !ctx.c_fs_dax();
        on_each(ctx, XFS, |dax| bad_source_of_a_pmd(dax, rust))
    })
    .c_is_wrong("a PMD whose copy failed is ended as if it had been copied");
    s.test("no_space", |ctx| on_each(ctx, XFS, no_space))
        .c_is_wrong("a warning in dax_disassociate_entry() as a page of a shared block goes");
    s.test("no_space_to_end", |ctx| on_each(ctx, XFS, no_space_to_end))
        .c_is_wrong(
            "copies that do not become the file's are stored to, and lost, without an error",
        );
    s.test("faults_are_let_in", |ctx| {
        on_each(ctx, XFS, faults_are_let_in)
    })
    .machine(Machine::default().smp(2))
    .limit(120)
    .tag(Tag::RustOnly);
}

/// What a deleted file has left in all free blocks.
const LEFT: u8 = 0xaa;

/// Runs `f` on a file system whose free blocks do not hold zeroes. It returns a file, and what
/// it ought to hold.
fn stale(ctx: &Ctx, f: fn(&Dax) -> Result<(File, Model)>) -> Result<()> {
    let driver = Driver::load(ctx, &[])?;
    let disk = driver.disk(0);
    let raw = disk.open_direct()?;
    let data = Aligned::from(&vec![LEFT; MIB as usize]);
    for offset in (0..disk.size / MIB * MIB).step_by(data.len()) {
        raw.write_all_at(&data, offset)?;
    }
    drop(raw);
    let dax = Dax::on(disk, Fs::Xfs)?;
    let (file, model) = f(&dax)?;
    model.expect("the file", &file, None)?;
    drop(file);
    dax.check()?;
    driver.unload()
}

/// A file, and a clone of it in pieces of `piece` bytes that are not beside each other on the disk.
fn clone_in_pieces(dax: &Dax, len: u64, piece: u64) -> Result<(File, File, Model)> {
    let (a, b) = (dax.mount.create("a")?, dax.mount.create("b")?);
    let data = pattern(1, 0, len as usize);
    for at in (0..len).step_by(piece as usize) {
        let part = &data[at as usize..][..piece as usize];
        // Each piece of A with one behind it that B does not have.
        a.write_all_at(part, 2 * at)?;
        a.write_all_at(&vec![2; piece as usize], 2 * at + piece)?;
    }
    a.sync_all()?;
    for at in (0..len).step_by(piece as usize) {
        clone_range(&a, 2 * at, piece, &b, at)?;
    }
    Ok((a, b, Model(data)))
}

/// A store to 2 MiB of shared blocks that cannot be mapped by a PMD: the fault that tried so had more
/// blocks made ready than the one at which a page was mapped.
fn fault_in_pieces(dax: &Dax) -> Result<(File, Model)> {
    let (_, b, mut model) = clone_in_pieces(dax, PMD, MIB)?;
    let map = Mapping::shared(&b, 0, PMD)?;
    map.touch(0, 7);
    model.put(0, &[7]);
    map.expect_huge(0, false)?;
    for (at, how) in [
        (
            10 * PAGE,
            libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
        ),
        (200 * PAGE, libc::FALLOC_FL_ZERO_RANGE),
        // A part of a page in a hole.
        (10 * PAGE, libc::FALLOC_FL_ZERO_RANGE),
    ] {
        fallocate(&b, how, at, PAGE)?;
        model.put(at, &[0; PAGE as usize]);
        model.expect("b", &b, Some(&map))?;
    }
    // The edge of a truncation is in a hole.
    punch(&b, 300 * PAGE, 2 * PAGE)?;
    b.set_len(301 * PAGE + 100)?;
    b.set_len(PMD)?;
    model.0[300 * PAGE as usize..].fill(0);
    Ok((b, model))
}

/// A write(2) of all of `source`, of which the kernel can read a page.
fn write_a_page_of(file: &File, source: &Mapping, offset: u64) -> Result<()> {
    // SAFETY: Plain numbers; the kernel finds out what can be read.
    let n = unsafe {
        libc::pwrite(
            file.as_raw_fd(),
            source.as_ptr().cast(),
            source.len(),
            offset as i64,
        )
    };
    ensure!(Errno::result(n) == Ok(PAGE as isize), "pwrite: {n}");
    Ok(())
}

/// A write(2) whose source ends early: the rest of its blocks were made ready as well.
fn failed_write(dax: &Dax) -> Result<(File, Model)> {
    let (_, b, mut model) = clone_in_pieces(dax, 16 * PAGE, 16 * PAGE)?;
    let new = pattern(9, 0, PAGE as usize);
    let source = Mapping::with_one_page(8 * PAGE, &new)?;
    write_a_page_of(&b, &source, 0)?;
    model.put(0, &new);
    punch(&b, 2 * PAGE, PAGE)?;
    model.put(2 * PAGE, &[0; PAGE as usize]);
    Ok((b, model))
}

/// A page is shared, the rest of the file is a hole: xfs makes blocks for neighbours ready too, and
/// to unshare the file is to leave the hole alone.
fn unshare_hole(dax: &Dax) -> Result<(File, Model)> {
    let (_, b, mut model) = clone_in_pieces(dax, PAGE, PAGE)?;
    b.set_len(64 * PAGE)?;
    model.0.resize(64 * PAGE as usize, 0);
    let map = Mapping::shared(&b, 0, 64 * PAGE)?;
    map.touch(0, 7);
    model.put(0, &[7]);
    fallocate(&b, libc::FALLOC_FL_UNSHARE_RANGE, 0, 64 * PAGE)?;
    drop(map);
    Ok((b, model))
}

fn free_bytes(dax: &Dax) -> Result<u64> {
    // What was freed in the background is counted.
    sh("sync")?;
    let stat = statvfs(&dax.mount.dir)?;
    Ok(stat.blocks_free() * stat.fragment_size())
}

/// One store to each 2 MiB of shared blocks, and a write(2) that ends early, take the blocks that they
/// need, and the few that xfs gets beforehand for what is beside them.
fn blocks_are_given_back(dax: Dax) -> Result<()> {
    const PMDS: u64 = 8;
    /// Of xfs, 32 blocks each time, aligned.
    const BESIDE: u64 = 2 * 32 * PAGE;
    let (_, b, mut model) = clone_in_pieces(&dax, PMDS * PMD, MIB)?;
    b.sync_all()?;
    let map = Mapping::shared(&b, 0, PMDS * PMD)?;
    let mut before = free_bytes(&dax)?;
    let mut taken = |what: &str, most: u64| -> Result<()> {
        let now = free_bytes(&dax)?;
        println!("{what}: {} KiB", before.saturating_sub(now) / 1024);
        ensure!(
            before.saturating_sub(now) <= most,
            "{what} took {} bytes, more than {most}",
            before - now
        );
        before = now;
        Ok(())
    };
    for at in (0..PMDS * PMD).step_by(PMD as usize) {
        map.touch(at, 7);
        model.put(at, &[7]);
    }
    taken("stores", PMDS * BESIDE)?;
    let new = pattern(9, 0, PAGE as usize);
    let source = Mapping::with_one_page(MIB - 64 * PAGE, &new)?;
    write_a_page_of(&b, &source, 64 * PAGE)?;
    model.put(64 * PAGE, &new);
    taken("the write(2)", BESIDE)?;
    model.expect("b", &b, Some(&map))?;
    drop((map, b));
    dax.check()
}

/// A page of the shared 2 MiB is bad. A store to another one maps that page alone; nothing becomes the
/// file's that was not copied, and the bad page is the file's still.
fn bad_source_of_a_pmd(dax: Dax, rust: bool) -> Result<()> {
    let a = dax.file("a", true)?;
    let len = a.metadata()?.len();
    let data = pattern(1, 0, len as usize);
    a.write_all_at(&data, 0)?;
    a.sync_all()?;
    for bad in [false, true] {
        let b = dax.mount.create(&format!("b{bad}"))?;
        // Else xfs takes the next best blocks for copy-on-write.
        sh(format!(
            "xfs_io -c 'cowextsize 2m' {}",
            dax.mount.path(&format!("b{bad}")).display()
        ))?;
        clone_range(&a, 0, len, &b, 0)?;
        let map = Mapping::shared(&b, 0, len)?;
        let sector = physical(&a, 300 * PAGE)? / 512;
        if bad {
            dax.disk().set_sysfs("badblocks", &format!("{sector} 8"))?;
        }
        let before = rust.then(|| Counters::read(dax.disk())).transpose()?;
        map.touch(5 * PAGE, 7);
        map.expect_huge(5 * PAGE, !bad)?;
        if let Some(before) = before {
            let copied = Counters::read(dax.disk())?.since(&before, "pmd_write_faults")?;
            ensure!(copied == u64::from(!bad), "{copied} PMDs were copied");
        }
        if bad {
            // By hand: the page was never bad but in the list.
            let raw = dax.disk().open_direct()?;
            let page = Aligned::from(&data[300 * PAGE as usize..][..PAGE as usize]);
            raw.write_all_at(&page, sector * 512)?;
            ensure!(dax.disk().sysfs("badblocks")?.is_empty(), "still bad");
        }
        let mut want = data.clone();
        want[5 * PAGE as usize] = 7;
        same("the clone", &map.read(0, len as usize), &want)?;
        let mut read = vec![0; len as usize];
        b.read_exact_at(&mut read, 0)?;
        same("the clone by read(2)", &read, &want)?;
        drop((map, b));
    }
    drop(a);
    dax.check()
}

/// No block to copy a shared one to: SIGBUS for a store, ENOSPC for write(2) and unsharing, and both
/// files are as they were; with space again all of that works.
fn no_space(dax: Dax) -> Result<()> {
    let a = dax.mount.create("a")?;
    let len = 32 * MIB;
    let data = pattern(1, 0, len as usize);
    a.write_all_at(&data, 0)?;
    let b = dax.mount.create("b")?;
    clone_range(&a, 0, len, &b, 0)?;
    let filler = dax.fill("filler")?;
    let map = Mapping::pages_only(&b, 0, len)?;
    let mut model = Model(data.clone());
    let one = scratch_file()?;
    one.write_all_at(&[7], 0)?;
    let mut page = 0;
    // What read(2) cannot store is EFAULT.
    while map.fill_from(&one, page * PAGE + 1, 1).is_ok() {
        model.put(page * PAGE + 1, &[7]);
        page += 1;
        ensure!(page < len / PAGE / 2, "the file system never got full");
    }
    println!("{page} pages were copied");
    let full = Full {
        errno: Errno::ENOSPC,
        store: page * PAGE + 5,
        write: (page + 3) * PAGE + 7,
        unshare: (len / 2, 4 * MIB),
    };
    full.refuses_until(&dax, &b, &map, &mut model, filler)?;
    Model(data).expect("the other file", &a, None)?;
    drop((map, a, b));
    dax.check()
}

/// What a disk that is full refuses in a file of shared blocks, and where.
struct Full {
    /// Of write(2) and unsharing.
    errno: Errno,
    store: u64,
    write: u64,
    unshare: (u64, u64),
}

impl Full {
    /// Sees all of it refused and the file as it was, then done when `filler` is gone.
    fn refuses_until(
        &self,
        dax: &Dax,
        file: &File,
        map: &Mapping,
        model: &mut Model,
        filler: File,
    ) -> Result<()> {
        let store = || {
            map.touch(self.store, 9);
            Ok(())
        };
        let address = map.as_ptr().wrapping_add(self.store as usize);
        expect_sigbus("a store", BUS_ADRERR, address, store)?;
        let write = || file.write_all_at(&[9; 100], self.write);
        let written = write().map_err(|e| e.raw_os_error());
        ensure!(
            written == Err(Some(self.errno as i32)),
            "write(2): {written:?}"
        );
        let (at, len) = self.unshare;
        let unshare = || fallocate(file, libc::FALLOC_FL_UNSHARE_RANGE, at, len);
        let unshared = unshare();
        ensure!(
            unshared
                .as_ref()
                .is_err_and(|e| e.downcast_ref() == Some(&self.errno)),
            "unshare: {unshared:?}"
        );
        model.expect("full", file, Some(map))?;

        drop(filler);
        std::fs::remove_file(dax.mount.path("filler"))?;
        // SAFETY: no arguments, no memory.
        unsafe { libc::sync() };
        expect_done("a store", store)?;
        model.put(self.store, &[9]);
        write().context("write(2) with space again")?;
        model.put(self.write, &[9; 100]);
        unshare()?;
        model.expect("with space again", file, Some(map))
    }
}

/// Blocks for the copies are there, and no space for what says whose they are: nothing that was stored or
/// written may be taken for done. With space again all of it works.
fn no_space_to_end(dax: Dax) -> Result<()> {
    // xfs has blocks ready for so many pages, of each GROUP, once one of them was copied.
    const READY: u64 = 32;
    const GROUP: u64 = 64;
    let a = dax.mount.create("a")?;
    let len = 16 * MIB;
    let data = pattern(1, 0, len as usize);
    a.write_all_at(&data, 0)?;
    let b = dax.mount.create("b")?;
    clone_range(&a, 0, len, &b, 0)?;
    let map = Mapping::pages_only(&b, 0, len)?;
    let mut model = Model(data.clone());
    for group in 0..len / PAGE / GROUP {
        map.touch(group * GROUP * PAGE, 7);
        model.put(group * GROUP * PAGE, &[7]);
    }
    b.sync_all()?;
    let dir = dax.mount.dir.display();
    sh(format!("xfs_io -x -c 'resblks 0' {dir}"))?;
    let filler = dax.fill("filler")?;
    let one = scratch_file()?;
    one.write_all_at(&[8], 0)?;
    // Every other page: the more extents the more blocks for metadata, until there is none.
    let pages =
        (0..len / PAGE).filter(|page| page % 2 == 0 && (1..READY).contains(&(page % GROUP)));
    let mut refused = None;
    for page in pages {
        // What read(2) cannot store is EFAULT.
        if map.fill_from(&one, page * PAGE + 1, 1).is_err() {
            refused = Some(page);
            break;
        }
        model.put(page * PAGE + 1, &[8]);
        let got = read_at(&b, page * PAGE + 1, 1)?;
        ensure!(
            got[..] == [8],
            "page {page} was not copied, its store not refused"
        );
    }
    let refused = refused.context("every copy became the file's")?;
    println!("page {refused} cannot be copied");
    let at = refused * PAGE;
    model.expect("a refused store", &b, Some(&map))?;
    let full = Full {
        errno: Errno::EIO,
        store: at + 5,
        write: at + 7,
        unshare: (at, PAGE),
    };
    full.refuses_until(&dax, &b, &map, &mut model, filler)?;
    Model(data).expect("the other file", &a, None)?;
    drop((map, a, b));
    let dax = dax.remount()?;
    model.expect("after a remount", &dax.mount.open("b")?, None)?;
    dax.check()
}

/// A thread writes to a file without end, in calls of many MiB; another one stores to shared pages of
/// it. Each of these faults has to wait for what is being copied, but not for all of a call.
fn faults_are_let_in(dax: Dax) -> Result<()> {
    const WRITE: u64 = 160 * MIB;
    const STORES: u64 = 10;
    let a = dax.mount.create("a")?;
    let data = pattern(1, 0, (STORES * 64 * PAGE) as usize);
    a.write_all_at(&data, 0)?;
    a.sync_all()?;
    let b = dax.mount.create("b")?;
    clone_range(&a, 0, 0, &b, WRITE)?;
    let mut model = Model(vec![3; WRITE as usize]);
    let new = model.0.clone();
    model.0.extend(&data);
    let map = Mapping::shared(&b, WRITE, data.len() as u64)?;
    let (end, calls) = (AtomicBool::new(false), AtomicU64::new(0));
    let waits = std::thread::scope(|scope| -> Result<_> {
        let writer = scope.spawn(|| -> Result<()> {
            while !end.load(Ordering::SeqCst) {
                b.write_all_at(&new, 0)?;
                calls.fetch_add(1, Ordering::SeqCst);
            }
            Ok(())
        });
        while calls.load(Ordering::SeqCst) == 0 && !writer.is_finished() {
            std::thread::sleep(Duration::from_millis(10));
        }
        let mut waits = Vec::new();
        for i in 0..STORES {
            let at = i * 64 * PAGE;
            // Not all of them at the same place of a call.
            std::thread::sleep(Duration::from_millis(110));
            let before = calls.load(Ordering::SeqCst);
            map.touch(at, 7);
            waits.push(calls.load(Ordering::SeqCst) - before);
            model.put(WRITE + at, &[7]);
        }
        end.store(true, Ordering::SeqCst);
        writer.join().expect("the writing thread panicked")?;
        Ok(waits)
    })?;
    println!("calls of write(2) that each store waited for: {waits:?}");
    let sum: u64 = waits.iter().sum();
    ensure!(
        sum * 2 <= STORES,
        "{STORES} stores waited for {sum} calls of write(2)"
    );
    model.expect("b", &b, None)?;
    drop((map, a, b));
    dax.check()
}
