// SPDX-License-Identifier: GPL-2.0

//! What goes wrong: poisoned pages, a full disk, a read-only mount, a killed process, a module
//! that is in use. And what must not be touched: other file systems, tracing, the C layer.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use nix::errno::Errno;
use nix::sys::signal::{kill, Signal};
use nix::sys::wait::{waitpid, WaitStatus};
use proto::Tag;

use crate::fixture::child::{
    child, expect_done, expect_sigbus, spawn, End, BUS_ADRERR, BUS_MCEERR_AO, BUS_MCEERR_AR,
};
use crate::fixture::dax::{clone_range, on_both, punch, shutdown, Model};
use crate::fixture::driver::{expect_errno, rmmod, UNLOAD_C};
use crate::fixture::flushes::{expect_clean, Counters, Reason, DIRTY_FOR_EVER};
use crate::fixture::fs::{fallocate, physical, Made};
use crate::fixture::io::{pread2, pwrite2, same, scratch_file};
use crate::fixture::trace::Trace;
use crate::fixture::{
    pattern, sh, sh_fails, Dax, Driver, Flushes, Fs, Mapping, MIB, MODULE, PAGE, PMD,
};
use crate::test::{Ctx, Suite};

pub fn suite(s: &mut Suite) {
    s.test("hwpoison", |ctx| on_both(ctx, |dax| hwpoison(dax, false)));
    s.test("hwpoison_pmd", |ctx| {
        on_both(ctx, |dax| hwpoison(dax, true))
    });
    s.test("bad_page_of_a_pmd", |ctx| on_both(ctx, bad_page_of_a_pmd))
        .tag(Tag::RustOnly);
    s.test("bad_page_and_absent_source", |ctx| {
        on_both(ctx, bad_page_and_absent_source)
    });
    s.test("after_shutdown", |ctx| on_both(ctx, after_shutdown));
    s.test("no_space", |ctx| on_both(ctx, no_space));
    s.test("read_only", |ctx| on_both(ctx, read_only));
    s.test("killed", |ctx| on_both(ctx, killed))
        .c_is_wrong(DIRTY_FOR_EVER);
    s.test("rmmod_while_mounted", rmmod_while_mounted)
        .tag(Tag::RustOnly);
    s.test(
        "rmmod_while_counters_are_read",
        rmmod_while_counters_are_read,
    )
    .tag(Tag::RustOnly)
    .tag(Tag::Smoke);
    s.test("others_keep_c", others_keep_c)
        .tag(Tag::RustOnly)
        .tag(Tag::Smoke);
    s.test("left_to_c", left_to_c)
        .tag(Tag::RustOnly)
        .tag(Tag::Smoke);
    s.test("ftrace_enabled", ftrace_enabled)
        .tag(Tag::RustOnly)
        .tag(Tag::Smoke);
    s.test("flush_on_unmap", flush_on_unmap).tag(Tag::RustOnly);
    s.test("persistent_caches", persistent_caches)
        .tag(Tag::RustOnly);
    s.test("realtime_device", realtime_device)
        .tag(Tag::RustOnly);
    s.test("trace_events", |ctx| on_both(ctx, trace_events))
        .tag(Tag::RustOnly)
        .tag(Tag::Smoke);
    s.test("counters", counters)
        .tag(Tag::RustOnly)
        .tag(Tag::Smoke);
}

/// Poison in a mapped page kills those who have it mapped (and asked to be told early) and nobody
/// else; the file system goes on, and the rest of the file is there.
fn hwpoison(dax: Dax, huge: bool) -> Result<()> {
    let file = dax.file("f", huge)?;
    let len = file.metadata()?.len();
    let data = pattern(1, 0, len as usize);
    file.write_all_at(&data, 0)?;
    file.sync_all()?;
    // A file of its own: a PMD is one mapping, whoever looks at another page of it.
    let other = dax.file("other", huge)?;

    let ready = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open("/tmp/ready")?;
    ready.set_len(PAGE)?;
    let ready = Mapping::shared(&ready, 0, PAGE)?;
    let poisoned = 7 * PAGE;
    let wait = |number: u64, file: &File, offset: u64| -> Result<()> {
        // SAFETY: plain numbers.
        let n = unsafe {
            libc::prctl(
                libc::PR_MCE_KILL,
                libc::PR_MCE_KILL_SET,
                libc::PR_MCE_KILL_EARLY,
                0,
                0,
            )
        };
        Errno::result(n)?;
        let map = Mapping::shared(file, 0, file.metadata()?.len())?;
        map.touch(offset, data[offset as usize]);
        ready.touch(number, 1);
        for _ in 0..600 {
            std::thread::sleep(Duration::from_millis(100));
            if ready.peek(3) != 0 {
                return Ok(());
            }
        }
        bail!("never told to end")
    };
    let victim = spawn(|| wait(1, &file, poisoned))?;
    let bystander = spawn(|| wait(2, &other, poisoned))?;
    let end = Instant::now() + Duration::from_secs(20);
    while ready.peek(1) == 0 || ready.peek(2) == 0 {
        ensure!(Instant::now() < end, "the children did not start");
        std::thread::sleep(Duration::from_millis(10));
    }
    // The disk, if it is ours, counts it.
    let ours = dax.disk().name.starts_with("rpmem");
    let failures = || match ours {
        true => dax.disk().counter("memory_failures"),
        false => Ok(0),
    };
    let before = failures()?;
    let trace = Trace::start(if ours {
        &["rust_pmem/rpmem_hwpoison"]
    } else {
        &[]
    })?;
    let got = child(|| {
        let map = Mapping::shared(&file, 0, len)?;
        map.peek(poisoned);
        map.expect_huge(poisoned, huge)?;
        map.madvise(poisoned, PAGE, libc::MADV_HWPOISON)?;
        map.peek(poisoned);
        bail!("alive after its page was poisoned")
    })?;
    match got {
        End::Signal {
            signal: libc::SIGBUS,
            code,
            ..
        } if code == BUS_MCEERR_AR || code == BUS_MCEERR_AO => {}
        other => bail!("who poisons a page: {other:?}"),
    }
    // The device tells xfs, which finds the file and its entry by the block; for ext4 the core goes by
    // the folio.
    if ours {
        let (page, by) = match dax.fs() {
            Fs::Xfs => (poisoned / PAGE, "index"),
            Fs::Ext4 if huge => (0, "folio"),
            Fs::Ext4 => (poisoned / PAGE, "folio"),
        };
        let want = format!("index {page:#x} by {by} locked");
        let told = trace.take()?;
        ensure!(
            told.iter().any(|l| l.contains(&want)),
            "no event with `{want}` among\n{}",
            told.join("\n")
        );
    }
    drop(trace);
    let counted = failures()? - before;
    ensure!(
        counted == u64::from(ours),
        "{counted} memory failures counted"
    );
    match victim.end()? {
        End::Signal {
            signal: libc::SIGBUS,
            code: BUS_MCEERR_AO,
            ..
        } => {}
        other => bail!("who has the page mapped: {other:?}"),
    }
    ready.touch(3, 1);
    let end = bystander.end()?;
    ensure!(end == End::Done, "who has another file mapped: {end:?}");

    // The file system works: this file's other pages, other files, new files.
    let far = len - PAGE;
    if !huge {
        let mut got = vec![0; PAGE as usize];
        file.read_exact_at(&mut got, far)?;
        ensure!(
            got == data[far as usize..],
            "another page of the file is wrong"
        );
        expect_done("another page of the file", || {
            let map = Mapping::shared(&file, 0, len)?;
            map.touch(far, 3);
            Ok(())
        })?;
    }
    let map = Mapping::shared(&other, 0, len)?;
    map.write(20 * PAGE, &[5; 100]);
    other.sync_all()?;
    let new = dax.mount.create("new")?;
    new.write_all_at(&data, 0)?;
    new.sync_all()?;
    let model = Model(data.clone());
    model.expect("a new file", &new, None)?;
    drop((map, new, other, file, ready));
    std::fs::remove_file(dax.mount.path("other"))?;
    dax.check()
}

/// A page in the middle of a folio of 2 MiB goes bad: the core marks the folio's first page. It is the
/// bad one that no part can be written of, and that writing all of it makes good again: write(2) to the
/// file, or zeroes to sectors of the disk, 1 MiB of which ends in the page.
fn bad_page_of_a_pmd(dax: Dax) -> Result<()> {
    let file = dax.file("f", true)?;
    let bad = 300 * PAGE;
    let map = Mapping::shared(&file, 0, file.metadata()?.len())?;
    map.touch(bad, 1);
    map.expect_huge(bad, true)?;
    file.sync_all()?;
    // Nobody has it mapped, to be killed.
    drop(map);
    let disk = dax.disk();
    let raw = disk.open_direct()?;
    let at = physical(&file, bad)?;
    let told = std::fs::write(
        "/sys/devices/system/memory/hard_offline_page",
        format!("{:#x}", disk.start + at),
    );
    let list = disk.sysfs("badblocks")?;
    ensure!(
        list == format!("{} 8", at / 512),
        "told: {told:?}; the list is '{list}', the page at {at:#x}"
    );
    let recovered = disk.counter("pages_recovered")?;
    expect_errno(pread2(&raw, at, PAGE as usize, 0).map(drop), Errno::EIO)?;
    expect_errno(pwrite2(&raw, at + 512, &[2; 512], 0).map(drop), Errno::EIO)?;
    ensure!(disk.sysfs("badblocks")? == list, "the page is good again");
    let mut data = pattern(3, bad, PAGE as usize);
    match dax.fs() {
        Fs::Ext4 => file.write_all_at(&data, bad)?,
        Fs::Xfs => {
            disk.zero_out(at + 512 - MIB, MIB + PAGE)
                .context("BLKZEROOUT")?;
            data.fill(0);
        }
    }
    let mut got = vec![1; PAGE as usize];
    file.read_exact_at(&mut got, bad)?;
    ensure!(got == data, "the page has not what was written");
    ensure!(disk.sysfs("badblocks")?.is_empty(), "the page is still bad");
    let recovered = disk.counter("pages_recovered")? - recovered;
    ensure!(recovered == 1, "{recovered} pages were made good");
    drop((file, raw));
    dax.check()
}

/// One write(2) over bad pages, from memory that is not there yet and lies at another offset of its pages:
/// what is there when these are reached ends in the middle of one. All is written, and they are good. Before
/// that, what maps them gets SIGBUS.
fn bad_page_and_absent_source(dax: Dax) -> Result<()> {
    const LEN: u64 = 3 * MIB;
    let file = dax.mount.allocate_huge("f", 2 * PMD, dax.disk())?;
    file.write_all_at(&vec![1; LEN as usize], 0)?;
    file.sync_all()?;
    let source = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open("/tmp/source")?;
    let data = pattern(6, 0, LEN as usize);
    source.write_all_at(&data, 1000)?;
    let source = Mapping::private(&source, 0, LEN + PAGE)?;
    // Where the first MiB and what faults map around it end.
    let bad = MIB;
    let sector = physical(&file, bad)? / 512;
    dax.disk()
        .set_sysfs("badblocks", &format!("{sector} 512"))?;
    let mut byte = [0];
    let got = file.read_exact_at(&mut byte, bad);
    ensure!(
        got.as_ref()
            .is_err_and(|e| e.raw_os_error() == Some(libc::EIO)),
        "the page is not bad: {got:?}"
    );
    let mapped = Mapping::shared(&file, bad, PAGE)?;
    expect_sigbus("a load", BUS_MCEERR_AR, mapped.as_ptr(), || {
        mapped.peek(0);
        Ok(())
    })?;
    expect_sigbus("a store", BUS_MCEERR_AR, mapped.as_ptr(), || {
        mapped.touch(0, 1);
        Ok(())
    })?;
    drop(mapped);
    let mut at = 0;
    while at < LEN {
        let n = source.write_to(&file, 1000 + at, (LEN - at) as usize, at);
        println!("{n:?} of {} bytes written at {at:#x}", LEN - at);
        at += n.with_context(|| format!("write at {at:#x}"))? as u64;
    }
    ensure!(dax.disk().sysfs("badblocks")?.is_empty(), "still bad");
    Model(data).expect("written", &file, None)?;
    drop((source, file));
    dax.check()
}

/// A file system that has been shut down: loads of what is mapped work, whatever needs it fails with an
/// errno or SIGBUS, and after a remount all that was synced is there.
fn after_shutdown(dax: Dax) -> Result<()> {
    let file = dax.file("f", false)?;
    let len = file.metadata()?.len();
    let holes = dax.mount.create("holes")?;
    holes.set_len(len)?;
    let (map, sync) = (
        Mapping::shared(&file, 0, len)?,
        Mapping::sync(&holes, 0, len)?,
    );
    let hole = Mapping::shared(&holes, 0, len)?;
    let data = pattern(8, 0, len as usize);
    map.write(0, &data);
    file.sync_all()?;
    holes.sync_all()?;
    File::open(&dax.mount.dir)?.sync_all()?;
    shutdown(&dax.mount)?;
    same("mapped", &map.read(0, data.len()), &data)?;
    for (what, map) in [("a hole", &hole), ("a hole with MAP_SYNC", &sync)] {
        let address = map.as_ptr().wrapping_add(7 * PAGE as usize);
        expect_sigbus(what, BUS_ADRERR, address, || {
            map.touch(7 * PAGE, 1);
            Ok(())
        })?;
    }
    let written = file
        .write_all_at(&[1; 100], 0)
        .map_err(|e| e.raw_os_error());
    ensure!(
        matches!(written, Err(Some(libc::EIO | libc::EROFS))),
        "write(2): {written:?}"
    );
    // To what an fsync has cleaned.
    let address = map.as_ptr().wrapping_add(3 * PAGE as usize);
    expect_sigbus("a page that is clean", BUS_ADRERR, address, || {
        map.touch(3 * PAGE, 1);
        Ok(())
    })?;
    let synced = file.sync_all().map_err(|e| e.raw_os_error());
    ensure!(
        matches!(synced, Err(Some(libc::EIO | libc::EROFS))),
        "fsync: {synced:?}"
    );
    drop((map, hole, sync, file, holes));
    let dax = dax.remount()?;
    let file = dax.mount.open("f")?;
    Model(data).expect("after a remount", &file, None)?;
    drop(file);
    dax.check()
}

/// No block for a store into a hole: SIGBUS, and nothing else changes; with space again the same
/// store works.
fn no_space(dax: Dax) -> Result<()> {
    let file = dax.mount.create("f")?;
    let len = 64 * MIB;
    file.set_len(len)?;
    let map = Mapping::pages_only(&file, 0, len)?;
    let filler = dax.fill("filler")?;
    // File systems keep some blocks back; stores take them one after the other.
    let stored = |page: u64| -> Result<bool> {
        let end = child(|| {
            map.touch(page * PAGE + 1, 1 + (page % 251) as u8);
            Ok(())
        })?;
        match end {
            End::Done => Ok(true),
            End::Signal {
                signal: libc::SIGBUS,
                code: BUS_ADRERR,
                address,
            } => {
                let want = map.as_ptr() as u64 + page * PAGE + 1;
                ensure!(address == want, "SIGBUS at {address:#x}, not {want:#x}");
                Ok(false)
            }
            other => bail!("page {page}: {other:?}"),
        }
    };
    // In one process as long as it goes, as a process for each store is slow.
    let zero = File::open("/dev/zero")?;
    let one = scratch_file()?;
    let mut page = 0;
    loop {
        ensure!(page < len / PAGE, "the file system never got full");
        one.write_all_at(&[1 + (page % 251) as u8], 0)?;
        match map.fill_from(&one, page * PAGE + 1, 1) {
            Ok(()) => page += 1,
            Err(Errno::EFAULT) => break,
            Err(e) => bail!("{e}"),
        }
    }
    println!("{page} pages were to be had");
    ensure!(
        !stored(page)?,
        "a store after the disk was full found a block"
    );
    ensure!(map.fill_from(&zero, (page + 5) * PAGE, 1) == Err(Errno::EFAULT));
    // Reading the hole still works, and what was stored is there.
    ensure!(map.peek((page + 9) * PAGE) == 0);
    for p in (0..page).step_by(7) {
        ensure!(map.peek(p * PAGE + 1) == 1 + (p % 251) as u8 && map.peek(p * PAGE) == 0);
    }
    file.sync_all()?;
    drop(filler);
    std::fs::remove_file(dax.mount.path("filler"))?;
    // SAFETY: no arguments, no memory.
    unsafe { libc::sync() };
    ensure!(stored(page)?, "no store after there was space again");
    ensure!(map.peek(page * PAGE + 1) == 1 + (page % 251) as u8);
    drop((map, file));
    dax.check()
}

/// A read-only file system: mappings for reading work, nothing can be written.
fn read_only(dax: Dax) -> Result<()> {
    let file = dax.file("f", true)?;
    let data = pattern(1, 0, 2 * PMD as usize);
    file.write_all_at(&data, 0)?;
    let hole = dax.mount.create("hole")?;
    hole.set_len(2 * PMD)?;
    drop((file, hole));
    let fs = dax.fs();
    let disk = dax.disk().clone();
    let made = dax.mount.unmount()?;
    let mount = made.mount("dax=always,ro")?;
    for (name, model) in [("f", Model(data)), ("hole", Model::zeroed(2 * PMD))] {
        let path = mount.path(name);
        let file = File::open(&path)?;
        let map = Mapping::read_only(&file, 0, 2 * PMD)?;
        model.expect(name, &file, Some(&map))?;
        if name == "f" {
            map.expect_huge(0, true)?;
        }
        let got = child(|| {
            map.touch(5, 1);
            Ok(())
        })?;
        ensure!(
            matches!(
                got,
                End::Signal {
                    signal: libc::SIGSEGV,
                    ..
                }
            ),
            "a store into a read-only mapping: {got:?}"
        );
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let refused = Mapping::with(&file, 0, PAGE, prot, libc::MAP_SHARED).err();
        ensure!(
            refused == Some(Errno::EACCES),
            "a writable mapping: {refused:?}"
        );
        let private = Mapping::private(&file, 0, 2 * PMD)?;
        private.write(PAGE, &[7; 20]);
        ensure!(private.peek(PAGE) == 7);
        model.expect(name, &file, Some(&map))?;
        let opened = File::options().write(true).open(&path).map(drop);
        let errno = opened.err().and_then(|e| e.raw_os_error());
        ensure!(errno == Some(libc::EROFS), "opened for writing: {errno:?}");
        file.sync_all()?;
    }
    mount.unmount()?;
    Made {
        fs,
        device: disk.path,
    }
    .check()
}

/// Processes killed in the middle of faults, stores and fsync leave nothing locked.
fn killed(dax: Dax) -> Result<()> {
    let file = dax.file("f", true)?;
    let len = 2 * PMD;
    for round in 0..6u64 {
        let children: Vec<_> = (0..2)
            .map(|who| {
                spawn(|| {
                    let file = dax.mount.open("f")?;
                    let huge = Mapping::shared(&file, 0, len)?;
                    let small = Mapping::pages_only(&file, 0, len)?;
                    loop {
                        for page in (who..1024).step_by(37) {
                            small.touch(page * PAGE + 9, page as u8);
                            huge.touch(page * PAGE + 9, page as u8);
                        }
                        file.sync_data()?;
                        file.write_all_at(&[1; 5000], 700 * PAGE)?;
                    }
                })
            })
            .collect::<Result<_>>()?;
        std::thread::sleep(Duration::from_millis(60 + round * 13));
        for c in &children {
            kill(c.pid, Signal::SIGKILL)?;
        }
        for c in &children {
            let status = waitpid(c.pid, None)?;
            ensure!(
                matches!(status, WaitStatus::Signaled(_, Signal::SIGKILL, _)),
                "a child that stores and syncs for ever ended before: {status:?}"
            );
        }
        // Every entry can be locked, cleaned and deleted.
        let map = Mapping::shared(&file, 0, len)?;
        for page in 0..1024 {
            map.touch(page * PAGE, page as u8);
        }
        file.sync_all()?;
        let dirty = map.dirty()?;
        ensure!(dirty == 0, "{dirty} bytes are dirty after fsync");
    }
    file.set_len(0)?;
    drop(file);
    dax.check()
}

/// The module cannot go while a file system is mounted; it can right after.
fn rmmod_while_mounted(ctx: &Ctx) -> Result<()> {
    let driver = Driver::load(ctx, &[])?;
    for fs in Fs::ALL {
        let dax = Dax::on(driver.disk(0), fs)?;
        let file = dax.file("f", false)?;
        let map = Mapping::shared(&file, 0, PAGE)?;
        map.touch(0, 1);
        expect_errno(rmmod(), Errno::EWOULDBLOCK)?;
        map.touch(1, 2);
        file.sync_all()?;
        expect_errno(rmmod(), Errno::EWOULDBLOCK)?;
        ensure!(map.peek(0) == 1 && map.peek(1) == 2);
        drop((map, file));
        expect_errno(rmmod(), Errno::EWOULDBLOCK)?;
        dax.check()?;
    }
    driver.unload()?;
    ensure!(
        std::fs::metadata(format!("/sys/module/{MODULE}")).is_err(),
        "still loaded"
    );
    Ok(())
}

/// An open file of debugfs holds the module; closed after the module had gone it would be the end.
fn rmmod_while_counters_are_read(ctx: &Ctx) -> Result<()> {
    let driver = Driver::load(ctx, &[])?;
    let dir = format!("/sys/kernel/debug/{MODULE}/{}", driver.disk(0).name);
    for name in ["driver", "fs_dax"] {
        let mut file = File::open(format!("{dir}/{name}"))?;
        expect_errno(rmmod(), Errno::EWOULDBLOCK)?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        ensure!(text.lines().count() > 3, "{name} has\n{text}");
        expect_errno(rmmod(), Errno::EWOULDBLOCK)?;
    }
    driver.unload()?;
    ensure!(std::fs::metadata(&dir).is_err(), "{dir} is still there");
    Ok(())
}

/// Another DAX file system, on a disk of nd_pmem, goes on with the C layer while ours is hooked in
/// and used; one without DAX does not notice.
fn others_keep_c(ctx: &Ctx) -> Result<()> {
    let ranges = crate::fixture::driver::ranges()?;
    let (start, size) = (
        format!("phys_addr={:#x}", ranges[0].0),
        format!("size={:#x}", ranges[0].1),
    );
    let driver = Driver::load(ctx, &[&start, &size])?;
    sh("modprobe nd_pmem && modprobe nd_e820")?;
    let end = Instant::now() + Duration::from_secs(10);
    let device = loop {
        let found = std::fs::read_dir("/sys/block")?
            .flatten()
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .find(|n| n.starts_with("pmem"));
        match found {
            Some(name) => break format!("/dev/{name}"),
            None if Instant::now() > end => bail!("nd_pmem made no disk"),
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    for fs in Fs::ALL {
        let ours = Dax::on(driver.disk(0), fs)?;
        // Of four groups, none of a device this small would have room for the log.
        let args: &[&str] = if fs == Fs::Xfs {
            &["-d agcount=2"]
        } else {
            &[]
        };
        let theirs = fs.make_on(&device, args)?.mount("dax=always")?;
        let their_file = theirs.allocate("f", 64 * PAGE)?;
        ensure!(
            crate::fixture::fs::is_dax(&theirs.path("f"))?,
            "{fs} is not in DAX mode on nd_pmem"
        );
        let our_file = ours.file("f", false)?;
        let (their_map, our_map) = (
            Mapping::shared(&their_file, 0, 64 * PAGE)?,
            Mapping::shared(&our_file, 0, 64 * PAGE)?,
        );
        let flushes = Flushes::watch()?;
        let before = Counters::of_layer(ours.disk())?;
        for page in 3..6 {
            their_map.write(page * PAGE, &[page as u8; 4096]);
        }
        their_file.sync_all()?;
        let flushed = flushes.take(&their_file)?;
        flushed.expect("C", 3..6)?;
        ensure!(
            flushed.0.iter().all(|f| !f.rust),
            "{fs}: the Rust layer flushed C's pages"
        );
        ensure!(
            Counters::of_layer(ours.disk())? == before,
            "{fs}: C's faults are in our counters"
        );

        our_map.write(8 * PAGE, &[1; 10]);
        our_file.sync_all()?;
        let flushed = flushes.take(&our_file)?;
        flushed.expect("Rust", [8])?;
        ensure!(
            flushed.0.iter().all(|f| f.rust),
            "{fs}: the C layer flushed our pages"
        );
        let mut model = Model::zeroed(64 * PAGE);
        for page in 3..6 {
            model.put(page * PAGE, &[page as u8; 4096]);
        }
        model.expect("C's file", &their_file, Some(&their_map))?;
        their_file.set_len(4 * PAGE)?;
        expect_sigbus(
            "behind the end on C",
            BUS_ADRERR,
            their_map.as_ptr().wrapping_add(5 * PAGE as usize),
            || {
                their_map.peek(5 * PAGE);
                Ok(())
            },
        )?;
        drop((their_map, our_map, their_file, our_file, flushes));
        ours.check()?;
        theirs.unmount()?.check()?;
        // The same device without DAX: the page cache.
        let plain = fs.make_on(&device, args)?.mount("")?;
        let file = plain.create("f")?;
        file.set_len(16 * PAGE)?;
        let map = Mapping::shared(&file, 0, 16 * PAGE)?;
        map.write(5 * PAGE, &[9; 4096]);
        file.sync_all()?;
        ensure!(map.peek(5 * PAGE) == 9);
        drop((map, file));
        plain.unmount()?.check()?;
    }
    sh(UNLOAD_C)?;
    driver.unload()
}

/// `fs_dax=0`: the kernel's C layer works on our disk.
fn left_to_c(ctx: &Ctx) -> Result<()> {
    let driver = Driver::load(ctx, &["fs_dax=0"])?;
    for fs in Fs::ALL {
        let dax = Dax::on(driver.disk(0), fs)?;
        let file = dax.file("f", true)?;
        let map = Mapping::shared(&file, 0, 2 * PMD)?;
        let flushes = Flushes::watch()?;
        map.touch(PMD + 5, 1);
        map.expect_huge(PMD, true)?;
        file.sync_all()?;
        let flushed = flushes.take(&file)?;
        flushed.expect("fsync", 512..1024)?;
        ensure!(flushed.0.iter().all(|f| !f.rust), "the Rust layer did it");
        expect_clean("after fsync", &flushes, &file, Some(&map))?;
        drop((map, file, flushes));
        dax.check()?;
    }
    driver.unload()
}

/// Switching function tracing off cannot hand live mappings back to C in the middle. (7.2 refuses it
/// because our hooks are permanent, 7.3 to anybody.)
fn ftrace_enabled(ctx: &Ctx) -> Result<()> {
    let driver = Driver::load(ctx, &[])?;
    let dax = Dax::on(driver.disk(0), Fs::Ext4)?;
    let file = dax.file("f", false)?;
    let map = Mapping::shared(&file, 0, 16 * PAGE)?;
    let flushes = Flushes::watch()?;
    map.touch(3 * PAGE, 1);
    let said = sh_fails("echo 0 > /proc/sys/kernel/ftrace_enabled")?;
    println!("refused: {}", said.trim());
    map.touch(4 * PAGE, 1);
    file.sync_all()?;
    let flushed = flushes.take(&file)?;
    flushed.expect("fsync", 3..5)?;
    ensure!(flushed.0.iter().all(|f| f.rust), "the C layer did it");
    drop((map, file, flushes));
    dax.check()?;
    driver.unload()
}

/// Each step leaves a trace event with its numbers. (Waits and pages in use: `races` and `gup`; memory
/// failures: `hwpoison`.)
fn trace_events(dax: Dax) -> Result<()> {
    let file = dax.file("f", false)?;
    let meta = file.metadata()?;
    let id = |file: &File| -> Result<String> {
        let meta = file.metadata()?;
        let (major, minor) = (libc::major(meta.dev()), libc::minor(meta.dev()));
        Ok(format!("dev {major}:{minor} ino {:#x}", meta.ino()))
    };
    let map = Mapping::shared(&file, 0, meta.len())?;
    let trace = Trace::start(&["rust_pmem"])?;
    let expect = |what: &str, file: &File, wanted: &[(&str, &str)]| -> Result<()> {
        let id = id(file)?;
        let events = trace.take()?;
        for (name, rest) in wanted {
            let wanted = format!("rpmem_{name}: {id} {rest}");
            ensure!(
                events.iter().any(|l| l.contains(&wanted)),
                "{what}: no `{wanted}` among\n{}",
                events.join("\n")
            );
        }
        Ok(())
    };
    map.touch(3 * PAGE, 1);
    expect(
        "a store",
        &file,
        &[("fault", "index 0x3 order 0"), ("insert", "index 0x3 old")],
    )?;
    file.sync_all()?;
    expect(
        "fsync",
        &file,
        &[
            ("writeback", "index 0x0.."),
            ("run", "index 0x3 pfn"),
            ("writeback_done", "pages 1 err 0"),
        ],
    )?;
    map.peek(20 * PAGE);
    expect("a load", &file, &[("ahead", "index 0x14 pages 3 read")])?;
    map.touch(5 * PAGE, 1);
    map.madvise(0, meta.len(), libc::MADV_DONTNEED)?;
    expect("an unmap", &file, &[("unmap", "index 0x5 pages 1 flushed")])?;
    file.write_all_at(&[1; 100], 7 * PAGE)?;
    file.read_exact_at(&mut [0; 50], 8 * PAGE)?;
    expect(
        "write(2) and read(2)",
        &file,
        &[
            ("rw", "pos 0x7000 len 0x64 write ret 100"),
            ("rw", "pos 0x8000 len 0x32 read ret 50"),
        ],
    )?;
    map.touch(60 * PAGE, 1);
    file.set_len(50 * PAGE + 1000)?;
    expect(
        "a truncation",
        &file,
        &[
            ("zero", "pos 0x323e8 len 0xc18 err 0"),
            ("delete", "index 0x"),
        ],
    )?;
    if dax.fs() == Fs::Xfs {
        let clone = dax.mount.create("clone")?;
        clone_range(&file, 0, 16 * PAGE, &clone, 0)?;
        fallocate(&clone, libc::FALLOC_FL_UNSHARE_RANGE, 0, 16 * PAGE)?;
        expect(
            "unsharing",
            &clone,
            &[("unshare", "pos 0x0 len 0x10000 err 0")],
        )?;
    }
    drop((trace, map, file));
    dax.check()
}

/// The parameter `flush_on_unmap`, changed at run time: what goes away dirty is flushed there and
/// then, or by the next fsync only. Either way that fsync leaves nothing dirty.
fn flush_on_unmap(ctx: &Ctx) -> Result<()> {
    let parameter = format!("/sys/module/{MODULE}/parameters/flush_on_unmap");
    let driver = Driver::load(ctx, &[])?;
    ensure!(
        std::fs::read_to_string(&parameter)?.trim() == "Y",
        "not on by default"
    );
    for fs in Fs::ALL {
        let dax = Dax::on(driver.disk(0), fs)?;
        for (name, huge) in [("small", false), ("huge", true)] {
            let file = dax.file(name, huge)?;
            let len = file.metadata()?.len();
            let want = if huge { 0..512 } else { 5..8 };
            let flushes = Flushes::watch()?;
            for on in [true, false, true] {
                std::fs::write(&parameter, if on { "1" } else { "0" })?;
                for way in ["munmap", "MADV_DONTNEED", "exit", "mremap"] {
                    let what = format!("{fs}, {name}, {way}, on: {on}");
                    let before = Counters::read(dax.disk())?;
                    let mut map = Mapping::shared(&file, 0, len)?;
                    let store = |map: &Mapping| {
                        for page in 5..8 {
                            map.touch(page * PAGE, 1);
                        }
                    };
                    match way {
                        "exit" => {
                            let end = child(|| {
                                store(&map);
                                Ok(())
                            })?;
                            ensure!(end == End::Done, "{what}: {end:?}");
                            drop(map);
                        }
                        "munmap" => {
                            store(&map);
                            drop(map);
                        }
                        // The rest of a PMD goes on as pages.
                        "mremap" => {
                            store(&map);
                            map.shrink(PAGE)?;
                            drop(map);
                        }
                        _ => {
                            store(&map);
                            map.madvise(0, len, libc::MADV_DONTNEED)?;
                            drop(map);
                        }
                    }
                    let bytes = Counters::read(dax.disk())?.since(&before, "bytes_unmap")?;
                    let flushed = flushes.take(&file)?;
                    if on {
                        flushed.of(Reason::Unmap).expect(&what, want.clone())?;
                        let pages = want.end - want.start;
                        ensure!(bytes == pages * PAGE, "{what}: {bytes} bytes counted");
                    } else {
                        flushed.expect_none(&what)?;
                        ensure!(bytes == 0, "{what}: {bytes} bytes counted");
                    }
                    file.sync_all()?;
                    flushes
                        .take(&file)?
                        .expect(&format!("{what}, then fsync"), want.clone())?;
                    expect_clean(&what, &flushes, &file, None)?;
                }
            }
        }
        dax.check()?;
    }
    driver.unload()
}

/// `dax/write_cache` is 0 where the caches are persistent: fsync cleans pages, but flushes no line;
/// back at 1 it flushes again.
fn persistent_caches(ctx: &Ctx) -> Result<()> {
    let driver = Driver::load(ctx, &[])?;
    for fs in Fs::ALL {
        let dax = Dax::on(driver.disk(0), fs)?;
        for (name, huge) in [("small", false), ("huge", true)] {
            let file = dax.file(name, huge)?;
            let map = Mapping::shared(&file, 0, file.metadata()?.len())?;
            for cache in [1, 0, 1] {
                dax.disk()
                    .set_sysfs("dax/write_cache", &cache.to_string())?;
                let what = format!("{fs}, {name}, write_cache={cache}");
                let before = Counters::read(dax.disk())?;
                for page in 3..6 {
                    map.touch(page * PAGE, 1);
                }
                ensure!(map.dirty()? > 0, "{what}: nothing is dirty after stores");
                file.sync_all()?;
                ensure!(map.dirty()? == 0, "{what}: dirty after fsync");
                let now = Counters::read(dax.disk())?;
                let (pages, pmds) = if huge { (0, 1) } else { (3, 0) };
                for (counter, want) in [
                    ("pages_flushed", pages),
                    ("pmds_flushed", pmds),
                    ("bytes_fsync", cache * (pages * PAGE + pmds * PMD)),
                ] {
                    let got = now.since(&before, counter)?;
                    ensure!(got == want, "{what}: {counter} grew by {got}, not {want}");
                }
                // Nor is anything flushed as it is unmapped.
                map.touch(3 * PAGE, 2);
                map.madvise(0, map.len() as u64, libc::MADV_DONTNEED)?;
                let bytes = Counters::read(dax.disk())?.since(&now, "bytes_unmap")?;
                ensure!(
                    (bytes > 0) == (cache == 1),
                    "{what}: {bytes} bytes flushed at unmap"
                );
                file.sync_all()?;
            }
        }
        dax.check()?;
    }
    driver.unload()
}

/// The files of an xfs are on its realtime device, whose caches are not persistent; those of its other
/// device are. What is in files is flushed.
fn realtime_device(ctx: &Ctx) -> Result<()> {
    let driver = Driver::load(ctx, &[])?;
    let (data, realtime) = (driver.disk(0), driver.disk(1));
    data.set_sysfs("dax/write_cache", "0")?;
    let made = Fs::Xfs.make_on(
        &data.path,
        &[
            "-m reflink=0,rmapbt=0 -d agcount=2,rtinherit=1",
            &format!("-r rtdev={}", realtime.path),
        ],
    )?;
    let mount = made.mount(&format!("dax=always,rtdev={}", realtime.path))?;
    let file = mount.create("f")?;
    file.write_all_at(&pattern(1, 0, 16 * PAGE as usize), 0)?;
    file.sync_all()?;
    let map = Mapping::shared(&file, 0, 16 * PAGE)?;
    let mut before = Counters::read(data)?;
    let mut flushed = |what: &str, counter: &str, want: u64| -> Result<()> {
        let now = Counters::read(data)?;
        let got = now.since(&before, counter)?;
        ensure!(got == want, "{what}: {counter} grew by {got}, not {want}");
        before = now;
        Ok(())
    };
    map.touch(3 * PAGE, 7);
    let at = map.physical(3 * PAGE)?.context("the page is not mapped")?;
    ensure!(
        (realtime.start..realtime.start + realtime.size).contains(&at),
        "the page at {at:#x} is not of the realtime device"
    );
    file.sync_all()?;
    flushed("fsync", "bytes_fsync", PAGE)?;
    map.touch(4 * PAGE, 7);
    map.madvise(0, map.len() as u64, libc::MADV_DONTNEED)?;
    flushed("unmapping", "bytes_unmap", PAGE)?;
    file.sync_all()?;
    flushed("fsync", "bytes_fsync", PAGE)?;
    // Of what stays, too.
    map.touch(5 * PAGE, 7);
    file.set_len(8 * PAGE)?;
    file.sync_all()?;
    flushed("truncation and fsync", "bytes_fsync", PAGE)?;
    map.touch(5 * PAGE, 8);
    punch(&file, 5 * PAGE, PAGE)?;
    flushed("a hole", "bytes_fsync", PAGE)?;
    drop((map, file));
    mount.unmount()?;
    data.set_sysfs("dax/write_cache", "1")?;
    driver.unload()
}

/// The counters say what happened: faults by kind, pages, PMDs, runs, bytes by reason.
fn counters(ctx: &Ctx) -> Result<()> {
    let driver = Driver::load(ctx, &[])?;
    for fs in Fs::ALL {
        let dax = Dax::on(driver.disk(0), fs)?;
        let file = dax.file("small", false)?;
        let huge = dax.file("huge", true)?;
        let map = Mapping::shared(&file, 0, 256 * PAGE)?;
        let huge_map = Mapping::shared(&huge, 0, 2 * PMD)?;
        let expect = |what: &str, before: &Counters, want: &[(&str, u64)]| -> Result<Counters> {
            let now = Counters::read(dax.disk())?;
            for (name, want) in want {
                let got = now.since(before, name)?;
                ensure!(
                    got == *want,
                    "{fs}, {what}: {name} grew by {got}, not {want}"
                );
            }
            Ok(now)
        };
        let c = Counters::read(dax.disk())?;
        for page in [1, 2, 3, 9] {
            map.touch(page * PAGE, 1);
        }
        let c = expect(
            "stores",
            &c,
            &[("pte_write_faults", 4), ("pmd_write_faults", 0)],
        )?;
        map.peek(20 * PAGE);
        let c = expect(
            "load",
            &c,
            &[("pte_read_faults", 1), ("pte_write_faults", 0)],
        )?;
        file.sync_all()?;
        let c = expect(
            "fsync",
            &c,
            &[
                ("pages_flushed", 4),
                ("pmds_flushed", 0),
                ("runs", 2),
                ("bytes_fsync", 4 * PAGE),
            ],
        )?;
        huge_map.touch(PMD, 1);
        let c = expect(
            "PMD store",
            &c,
            &[("pmd_write_faults", 1), ("pte_write_faults", 0)],
        )?;
        huge.sync_all()?;
        let c = expect(
            "PMD fsync",
            &c,
            &[
                ("pages_flushed", 0),
                ("pmds_flushed", 1),
                ("bytes_fsync", PMD),
            ],
        )?;
        file.write_all_at(&[1; 5000], 100)?;
        let c = expect(
            "write(2)",
            &c,
            &[("bytes_written", 5000), ("bytes_read", 0)],
        )?;
        file.read_exact_at(&mut [0; 300], 0)?;
        let c = expect(
            "read(2)",
            &c,
            &[
                ("bytes_read", 300),
                ("bytes_written", 0),
                ("fault_errors", 0),
            ],
        )?;
        expect_sigbus(
            "behind the end",
            BUS_ADRERR,
            {
                file.set_len(250 * PAGE)?;
                map.as_ptr().wrapping_add(252 * PAGE as usize)
            },
            || {
                map.peek(252 * PAGE);
                Ok(())
            },
        )?;
        let errors = Counters::read(dax.disk())?.since(&c, "fault_errors")?;
        ensure!(errors > 0, "{fs}: an access behind the end is no error");
        // A part of a page behind the new end is zeroed.
        let c = Counters::read(dax.disk())?;
        file.set_len(240 * PAGE + 1000)?;
        let c = expect("truncation", &c, &[("bytes_zero", PAGE - 1000)])?;
        // Blocks that no PMD can map: the fault is left to pages.
        punch(&huge, 5 * PAGE, PAGE)?;
        huge_map.touch(7 * PAGE, 1);
        let now = expect(
            "store beside a hole",
            &c,
            &[("pmd_write_faults", 0), ("pte_write_faults", 1)],
        )?;
        // The core may begin anew, with the mmap_lock held, after ours has said no.
        let fallbacks = now.since(&c, "pmd_fallbacks")?;
        ensure!(
            (1..=2).contains(&fallbacks),
            "{fs}: {fallbacks} PMD faults left to pages, for one store"
        );
        let c = now;
        huge.sync_all()?;
        let c = expect(
            "fsync of a page",
            &c,
            &[("pages_flushed", 1), ("batches", 1)],
        )?;
        // New blocks in a MAP_SYNC mapping: the metadata first, then the second half.
        let new = dax.mount.create("sync")?;
        new.set_len(16 * PAGE)?;
        let sync = Mapping::sync(&new, 0, 16 * PAGE)?;
        sync.touch(3 * PAGE, 1);
        expect("MAP_SYNC", &c, &[("sync_faults", 1)])?;
        drop((sync, new));
        drop((map, huge_map, file, huge));
        dax.check()?;
    }
    driver.unload()
}
