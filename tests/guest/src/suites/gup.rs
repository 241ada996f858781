// SPDX-License-Identifier: GPL-2.0

//! DAX pages that somebody else uses: direct I/O, pipes, other processes, io_uring. What they
//! store is dirty and gets flushed; while they hold a page its block stays where it is.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use io_uring::{opcode, types, IoUring};
use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::signal::{kill, raise, Signal};
use nix::sys::wait::{waitpid, WaitStatus};

use crate::fixture::child::{spawn, End};
use crate::fixture::dax::{clone_range, on_both, on_each, punch, Model};
use crate::fixture::flushes::{expect_clean, Counters, Reason, DIRTY_FOR_EVER};
use crate::fixture::fs::fallocate;
use crate::fixture::io::{same, Aligned};
use crate::fixture::thread::Waiter;
use crate::fixture::trace::Trace;
use crate::fixture::{pattern, sh, Dax, Driver, Flushes, Fs, Mapping, PAGE, PMD};
use crate::test::{Ctx, Suite};

pub fn suite(s: &mut Suite) {
    s.test("direct_io", direct_io).c_is_wrong(DIRTY_FOR_EVER);
    s.test("own_file_as_buffer", |ctx| on_both(ctx, own_file_as_buffer));
    s.test("dma_after_fsync", dma_after_fsync)
        .c_is_wrong("it forgets pages that a device writes to after an fsync has cleaned them");
    s.test("dirty_while_held", |ctx| on_both(ctx, dirty_while_held))
        .c_is_wrong("it forgets pages that a device writes to after an fsync has cleaned them");
    s.test("interrupted", |ctx| on_both(ctx, interrupted));
    s.test("pinned", |ctx| {
        on_both(ctx, |dax| pinned(dax, !ctx.c_fs_dax()))
    });
    s.test("mapped_again_while_pinned", |ctx| {
        on_both(ctx, mapped_again_while_pinned)
    })
    .c_is_wrong("dax_break_layout() waits for the last reference, also that of a mapping");
    s.test("copied_while_pinned", |ctx| {
        on_each(ctx, &[Fs::Xfs], copied_while_pinned)
    })
    .c_is_wrong("dax_disassociate_entry() takes a folio apart that somebody holds");
    s.test("unmount_while_pinned", |ctx| {
        on_both(ctx, unmount_while_pinned)
    });
    s.test("ptrace", |ctx| on_both(ctx, ptrace_pokes))
        .c_is_wrong(DIRTY_FOR_EVER);
    s.test("process_vm", |ctx| on_both(ctx, process_vm))
        .c_is_wrong(DIRTY_FOR_EVER);
    s.test("fork", |ctx| on_both(ctx, fork))
        .c_is_wrong(DIRTY_FOR_EVER);
    s.test("io_uring", uring);
}

/// Direct I/O between a disk and mapped files, PTEs and PMDs.
fn direct_io(ctx: &Ctx) -> Result<()> {
    let driver = Driver::load(ctx, &[])?;
    let raw = driver.disk(1).open_direct()?;
    for fs in Fs::ALL {
        let dax = Dax::on(driver.disk(0), fs)?;
        for (name, huge) in [("small", false), ("huge", true)] {
            let file = dax.file(name, huge)?;
            let len = file.metadata()?.len();
            let mut model = Model::zeroed(len);
            let map = Mapping::shared(&file, 0, len)?;
            let flushes = Flushes::watch()?;
            let data = pattern(1, 0, 64 * PAGE as usize);
            raw.write_all_at(&Aligned::from(&data), 0)?;
            // From the disk into pages 5..69: a store by a device.
            let n = map.read_from(&raw, 5 * PAGE, data.len(), 0)?;
            ensure!(n == data.len(), "read {n} bytes");
            model.put(5 * PAGE, &data);
            model.expect("read from the disk", &file, Some(&map))?;
            file.sync_all()?;
            let got = flushes.take(&file)?.pages();
            let missing: Vec<_> = (5..69).filter(|p| !got.contains(p)).collect();
            ensure!(missing.is_empty(), "{fs}, {name}: not flushed: {missing:?}");
            expect_clean("after fsync", &flushes, &file, Some(&map))?;
            // From the pages to the disk, and once more into the same pages.
            let n = map.write_to(&raw, 3 * PAGE, 8 * PAGE as usize, PAGE * 100)?;
            ensure!(n == 8 * PAGE as usize, "wrote {n} bytes");
            let got = crate::fixture::io::read_at(&raw, PAGE * 100, 8 * PAGE as usize)?;
            same(
                "written to the disk",
                &got,
                &model.0[3 * PAGE as usize..11 * PAGE as usize],
            )?;
            flushes.forget()?;
            let n = map.read_from(&raw, 9 * PAGE, PAGE as usize, 0)?;
            ensure!(n == PAGE as usize, "read {n} bytes");
            model.put(9 * PAGE, &data[..PAGE as usize]);
            file.sync_data()?;
            let got = flushes.take(&file)?.pages();
            ensure!(got.contains(&9), "{fs}, {name}: flushed {got:?}");
            model.expect("in the end", &file, Some(&map))?;
        }
        dax.check().with_context(|| fs.name())?;
    }
    drop(raw);
    driver.unload()
}

/// read(2) and write(2), also with O_DIRECT, of a file with a mapping of itself as the buffer:
/// another page, the same page, a page that is a hole. Nothing waits for itself.
fn own_file_as_buffer(dax: Dax) -> Result<()> {
    for flags in [0, libc::O_DIRECT] {
        let name = format!("f{flags}");
        drop(dax.mount.create(&name)?);
        let file = File::options()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(dax.mount.path(&name))?;
        let len = 32 * PAGE;
        file.set_len(len)?;
        let mut model = Model::zeroed(len);
        let data = pattern(3, 0, 8 * PAGE as usize);
        file.write_all_at(&Aligned::from(&data), 0)?;
        model.put(0, &data);
        let map = Mapping::shared(&file, 0, len)?;
        let page = PAGE as usize;
        // (from a mapped page, to a position in the file)
        for (from, to) in [(0, 10), (2, 2), (20, 21), (1, 31)] {
            let n = map.write_to(&file, from * PAGE, page, to * PAGE)?;
            ensure!(n == page, "wrote {n} bytes from page {from} to {to}");
            let data = model.0[(from * PAGE) as usize..][..page].to_vec();
            model.put(to * PAGE, &data);
            model.expect("write(2)", &file, Some(&map))?;
        }
        // (from a position in the file, into a mapped page)
        for (from, to) in [(0, 12), (3, 3), (22, 23), (4, 24), (25, 5)] {
            let n = map.read_from(&file, to * PAGE, page, from * PAGE)?;
            ensure!(n == page, "read {n} bytes of page {from} into {to}");
            let data = model.0[(from * PAGE) as usize..][..page].to_vec();
            model.put(to * PAGE, &data);
            model.expect("read(2)", &file, Some(&map))?;
        }
        file.sync_all()?;
    }
    dax.check()
}

/// A disk whose reads take as long as wanted, and give zeros.
struct SlowDisk;

impl SlowDisk {
    fn load(time: Duration) -> Result<(SlowDisk, File)> {
        sh(format!(
            "modprobe null_blk nr_devices=1 gb=1 irqmode=2 completion_nsec={}",
            time.as_nanos()
        ))?;
        let disk = SlowDisk;
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_DIRECT)
            .open("/dev/nullb0")
            .context("/dev/nullb0")?;
        Ok((disk, file))
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        let _ = sh("rmmod null_blk");
    }
}

/// A device still writes to pages that an fsync has already cleaned: when it is done they are
/// dirty again, and the next fsync flushes them.
fn dma_after_fsync(ctx: &Ctx) -> Result<()> {
    let driver = Driver::load(ctx, &[])?;
    for fs in Fs::ALL {
        let dax = Dax::on(driver.disk(0), fs)?;
        let (slow, disk) = SlowDisk::load(Duration::from_millis(4000))?;
        for (name, huge) in [("small", false), ("huge", true)] {
            let file = dax.file(name, huge)?;
            let map = Mapping::shared(&file, 0, file.metadata()?.len())?;
            let flushes = Flushes::watch()?;
            let before = (!ctx.c_fs_dax())
                .then(|| Counters::read(dax.disk()))
                .transpose()?;
            std::thread::scope(|scope| -> Result<()> {
                let io = scope.spawn(|| map.read_from(&disk, 8 * PAGE, 4 * PAGE as usize, 0));
                std::thread::sleep(Duration::from_millis(250));
                ensure!(!io.is_finished(), "the slow disk is not slow");
                file.sync_all()?;
                let first = flushes.take(&file)?.pages();
                ensure!(
                    !io.is_finished(),
                    "the fsync waited for the device, or was too slow"
                );
                println!("{fs}, {name}: {} pages flushed during the I/O", first.len());
                let n = io.join().expect("the reading thread panicked")?;
                ensure!(n == 4 * PAGE as usize, "read {n} bytes");
                Ok(())
            })?;
            // The block layer may mark pages dirty in the background.
            std::thread::sleep(Duration::from_millis(100));
            file.sync_all()?;
            let got = flushes.take(&file)?.pages();
            let missing: Vec<_> = (8..12).filter(|p| !got.contains(p)).collect();
            ensure!(
                missing.is_empty(),
                "{fs}, {name}: written by a device after an fsync, not flushed by the next: {missing:?}"
            );
            if let Some(before) = before {
                let now = Counters::read(dax.disk())?;
                let kept = now.since(&before, "kept_dirty")?;
                ensure!(kept > 0, "the counter of entries kept dirty is still 0");
                let unmapped = now.since(&before, "bytes_unmap")?;
                ensure!(
                    unmapped <= 8 * PAGE,
                    "{fs}, {name}: {unmapped} bytes flushed for DMA to four pages"
                );
            }
            expect_clean("afterwards", &flushes, &file, Some(&map))?;
        }
        drop((disk, slow));
        dax.check().with_context(|| fs.name())?;
    }
    driver.unload()
}

/// Holds the pages of a part of a mapping in a pipe (vmsplice(2)) until dropped.
struct Held {
    reader: File,
    _writer: File,
    len: usize,
}

impl Held {
    fn pages(map: &Mapping, offset: u64, len: usize) -> Result<Held> {
        let (reader, writer) = nix::unistd::pipe()?;
        let (reader, writer) = (File::from(reader), File::from(writer));
        let iov = libc::iovec {
            iov_base: map.as_ptr().wrapping_add(offset as usize).cast(),
            iov_len: len,
        };
        // SAFETY: one iovec, inside the mapping.
        let n = unsafe { libc::vmsplice(writer.as_raw_fd(), &iov, 1, 0) };
        ensure!(Errno::result(n)? as usize == len, "vmsplice took {n} bytes");
        Ok(Held {
            reader,
            _writer: writer,
            len,
        })
    }

    /// What the pages hold; lets go of them.
    fn take(mut self) -> Result<Vec<u8>> {
        let mut data = vec![0; self.len];
        self.reader.read_exact(&mut data)?;
        Ok(data)
    }
}

/// Until the thread waits, by all appearance for a page in use: it is asleep for long, or, if
/// `it_polls`, just there for long.
fn waits_for_page(waiter: &Waiter, it_polls: bool) -> Result<()> {
    let states: &[char] = if it_polls {
        &['R', 'S', 'D']
    } else {
        &['S', 'D']
    };
    waiter
        .wait_until_asleep(states, Duration::from_millis(200))
        .context("nobody waits for a page in use")
}

/// Whoever holds a page may store to it at any time and tell later, or never: each fsync flushes it, and
/// one more when nobody holds it.
fn dirty_while_held(dax: Dax) -> Result<()> {
    for (name, huge) in [("small", false), ("huge", true)] {
        let file = dax.file(name, huge)?;
        let map = Mapping::shared(&file, 0, file.metadata()?.len())?;
        map.touch(3 * PAGE, 1);
        map.expect_huge(3 * PAGE, huge)?;
        let held = Held::pages(&map, 3 * PAGE, 10)?;
        let pages = if huge { 0..512 } else { 3..4 };
        let flushes = Flushes::watch()?;
        for what in ["held", "held still"] {
            file.sync_all()?;
            flushes.take(&file)?.expect(what, pages.clone())?;
        }
        held.take()?;
        file.sync_all()?;
        flushes.take(&file)?.expect("free again", pages)?;
        expect_clean("afterwards", &flushes, &file, Some(&map))?;
    }
    dax.check()
}

/// A signal ends the waiting for a page that a pipe holds: EINTR, the file is as it was; without the
/// signal, and the pipe, it is truncated. A process can be killed meanwhile.
fn interrupted(dax: Dax) -> Result<()> {
    extern "C" fn nothing(_: i32) {}
    let file = dax.file("f", false)?;
    let len = file.metadata()?.len();
    let map = Mapping::shared(&file, 0, len)?;
    let data = pattern(4, 0, len as usize);
    map.write(0, &data);
    let held = Held::pages(&map, 10 * PAGE, PAGE as usize)?;
    let wait = |killed: bool| -> Result<()> {
        let child = spawn(|| {
            // SAFETY: the handler does nothing; without SA_RESTART.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = nothing as usize;
                libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut());
            }
            let result = nix::unistd::ftruncate(&file, 5 * PAGE as i64);
            ensure!(result == Err(Errno::EINTR), "truncated: {result:?}");
            punch(&file, 4 * PAGE, 8 * PAGE).map_or_else(
                |e| {
                    ensure!(
                        e.downcast_ref::<Errno>() == Some(&Errno::EINTR),
                        "punched: {e:?}"
                    );
                    Ok(())
                },
                |()| anyhow::bail!("punched a page in use"),
            )
        })?;
        let signals = if killed {
            vec![Signal::SIGKILL]
        } else {
            vec![Signal::SIGUSR1; 2]
        };
        for signal in signals {
            Waiter::of(child.pid).wait_until_asleep(&['S'], Duration::from_millis(300))?;
            kill(child.pid, signal)?;
        }
        if killed {
            let status = waitpid(child.pid, None)?;
            ensure!(
                matches!(status, WaitStatus::Signaled(_, Signal::SIGKILL, _)),
                "{status:?}"
            );
        } else {
            let end = child.end()?;
            ensure!(end == End::Done, "{end:?}");
        }
        Ok(())
    };
    wait(false)?;
    wait(true)?;
    ensure!(file.metadata()?.len() == len, "the file has another size");
    Model(data.clone()).expect("interrupted", &file, Some(&map))?;
    let tenth = 10 * PAGE as usize..11 * PAGE as usize;
    same("the pipe", &held.take()?, &data[tenth])?;
    drop(map);
    file.set_len(5 * PAGE)?;
    Model(data[..5 * PAGE as usize].to_vec()).expect("truncated", &file, None)?;
    drop(file);
    dax.check()
}

/// Truncation, punching, collapsing and sharing (xfs) wait as long as a pipe holds a page of the
/// range, with the page's old bytes in it; the Rust layer counts the pages that it waits for.
fn pinned(dax: Dax, rust: bool) -> Result<()> {
    type Change = fn(&File, &Dax) -> Result<()>;
    let mut changes: Vec<(&str, Change)> = vec![
        ("truncate", |f, _| Ok(f.set_len(5 * PAGE)?)),
        ("punch", |f, _| punch(f, 4 * PAGE, 8 * PAGE)),
        ("collapse", |f, _| {
            fallocate(f, libc::FALLOC_FL_COLLAPSE_RANGE, 4 * PAGE, 4 * PAGE)
        }),
    ];
    if dax.fs() == Fs::Xfs {
        changes.push(("reflink", |f, dax| {
            let clone = dax.mount.create("clone")?;
            Ok(clone_range(f, 8 * PAGE, 8 * PAGE, &clone, 0)?)
        }));
    }
    for huge in [false, true] {
        for &(what, change) in &changes {
            let file = dax.file(&format!("{what}{huge}"), huge)?;
            let len = file.metadata()?.len();
            let map = Mapping::shared(&file, 0, len)?;
            let data = pattern(7, 0, 2 * PAGE as usize);
            map.write(10 * PAGE, &data);
            let held = Held::pages(&map, 10 * PAGE, data.len())?;
            let before = rust.then(|| Counters::read(dax.disk())).transpose()?;
            // xfs, sharing, locks two inodes again and again: an event each time, too many.
            let polls = what == "reflink";
            let events: &[&str] = match rust && !polls {
                true => &["rust_pmem/rpmem_busy"],
                false => &[],
            };
            let trace = Trace::start(events)?;
            let (waiter, released) = (Waiter::default(), AtomicBool::new(false));
            std::thread::scope(|scope| -> Result<()> {
                let changer = scope.spawn(|| {
                    waiter.here();
                    let result = change(&file, &dax);
                    (result, released.load(Ordering::SeqCst))
                });
                let asleep = waits_for_page(&waiter, polls);
                released.store(true, Ordering::SeqCst);
                let got = held.take()?;
                let (result, waited) = changer.join().expect("the changing thread panicked");
                result?;
                asleep.with_context(|| format!("{what} (huge: {huge})"))?;
                ensure!(
                    waited,
                    "{what} did not wait for a page in use (huge: {huge})"
                );
                same(what, &got, &data)
            })?;
            if let Some(before) = before {
                let busy = Counters::read(dax.disk())?.since(&before, "busy_pages")?;
                ensure!(busy > 0, "{what}: no page counted as in use");
                let events = trace.take()?;
                let index = if huge { "index 0x0" } else { "index 0xa" };
                ensure!(
                    polls
                        || events
                            .iter()
                            .any(|l| l.contains("rpmem_busy") && l.ends_with(index)),
                    "{what}: no event with {index} among\n{}",
                    events.join("\n")
                );
            }
            drop((map, file));
        }
    }
    dax.check()
}

/// A page in use is mapped again while a truncation waits for it: once the pipe has let go of it, its
/// mapping alone must not keep the truncation waiting. (It has given its locks away, and nobody is
/// woken when a reference goes that is not the last.)
fn mapped_again_while_pinned(dax: Dax) -> Result<()> {
    for huge in [false, true] {
        let file = dax.file(&format!("f{huge}"), huge)?;
        let map = Mapping::shared(&file, 0, file.metadata()?.len())?;
        map.touch(10 * PAGE, 1);
        let held = Held::pages(&map, 10 * PAGE, PAGE as usize)?;
        let waiter = Waiter::default();
        std::thread::scope(|scope| -> Result<()> {
            let changer = scope.spawn(|| {
                waiter.here();
                file.set_len(5 * PAGE)
            });
            waits_for_page(&waiter, false)?;
            map.peek(10 * PAGE);
            held.take()?;
            let end = Instant::now() + Duration::from_secs(10);
            while !changer.is_finished() && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(10));
            }
            let done = changer.is_finished();
            drop(map);
            changer.join().expect("the changing thread panicked")?;
            ensure!(
                done,
                "waited for a page that was only mapped (huge: {huge})"
            );
            Ok(())
        })?;
    }
    dax.check()
}

/// Copy-on-write at a 2 MiB mapping while a pipe holds one of its pages: the pipe keeps what it has, and
/// later nobody waits for the page for ever. (The reference is the folio's: it must not be taken apart.)
fn copied_while_pinned(dax: Dax) -> Result<()> {
    let page = |n: usize| n * PAGE as usize..(n + 1) * PAGE as usize;
    for by_write in [false, true] {
        let file = dax.file(&format!("f{by_write}"), true)?;
        let len = file.metadata()?.len();
        let mut data = pattern(7, 0, len as usize);
        file.write_all_at(&data, 0)?;
        file.sync_all()?;
        let clone = dax.mount.create(&format!("clone{by_write}"))?;
        clone_range(&file, 0, len, &clone, 0)?;
        let map = Mapping::shared(&file, 0, len)?;
        map.peek(10 * PAGE);
        map.expect_huge(10 * PAGE, true)?;
        let held = Held::pages(&map, 10 * PAGE, PAGE as usize)?;
        let new = pattern(8, 0, PAGE as usize);
        if by_write {
            file.write_all_at(&new, 10 * PAGE)?;
        } else {
            map.write(10 * PAGE, &new);
        }
        // The clone has the old blocks, and maps them while the pipe has that page.
        let other = Mapping::shared(&clone, 0, len)?;
        same("the clone", &other.read(0, len as usize), &data)?;
        same("the pipe", &held.take()?, &data[page(10)])?;
        clone.write_all_at(&new, 20 * PAGE)?;
        let mut theirs = data.clone();
        theirs[page(20)].copy_from_slice(&new);
        same("the clone, written", &other.read(0, len as usize), &theirs)?;
        data[page(10)].copy_from_slice(&new);
        same("the file", &map.read(0, len as usize), &data)?;
        drop((map, other));
        let (map, other) = (
            Mapping::shared(&file, 0, len)?,
            Mapping::shared(&clone, 0, len)?,
        );
        same("the file, anew", &map.read(0, len as usize), &data)?;
        same("the clone, anew", &other.read(0, len as usize), &theirs)?;
        for file in [&file, &clone] {
            file.set_len(5 * PAGE)?;
            file.set_len(0)?;
        }
    }
    // What the blocks are used for next.
    let file = dax.file("next", true)?;
    let map = Mapping::shared(&file, 0, 2 * PMD)?;
    let data = pattern(9, 0, 2 * PMD as usize);
    map.write(0, &data);
    let held = Held::pages(&map, 10 * PAGE, PAGE as usize)?;
    same("the pipe", &held.take()?, &data[page(10)])?;
    file.set_len(0)?;
    drop((map, file));
    dax.check()
}

/// Unmounting while a pipe holds a page of a file that is closed: it waits, and nothing is lost.
fn unmount_while_pinned(dax: Dax) -> Result<()> {
    let file = dax.file("f", false)?;
    let map = Mapping::shared(&file, 0, 16 * PAGE)?;
    let data = pattern(9, 0, PAGE as usize);
    map.write(3 * PAGE, &data);
    let held = Held::pages(&map, 3 * PAGE, data.len())?;
    drop((map, file));
    let released = AtomicBool::new(false);
    let waiter = Waiter::default();
    let (got, made) = std::thread::scope(|scope| -> Result<_> {
        let unmounter = scope.spawn(|| {
            waiter.here();
            let made = dax.mount.unmount();
            (made, released.load(Ordering::SeqCst))
        });
        let asleep = waits_for_page(&waiter, false);
        released.store(true, Ordering::SeqCst);
        let got = held.take()?;
        let (made, waited) = unmounter.join().expect("the unmounting thread panicked");
        let made = made?;
        asleep?;
        ensure!(waited, "unmounted while a page is in use");
        Ok((got, made))
    })?;
    same("the pipe", &got, &data)?;
    let mount = made.mount("dax=always")?;
    let file = mount.open("f")?;
    let mut now = vec![0; PAGE as usize];
    file.read_exact_at(&mut now, 3 * PAGE)?;
    same("the file", &now, &data)?;
    drop(file);
    mount.unmount()?.check()
}

/// A debugger reads and writes a process's DAX mapping; what it writes is dirty, again after
/// each fsync.
fn ptrace_pokes(dax: Dax) -> Result<()> {
    for (name, huge) in [("small", false), ("huge", true)] {
        let file = dax.file(name, huge)?;
        let len = file.metadata()?.len();
        let map = Mapping::shared(&file, 0, len)?;
        let address = map.as_ptr() as u64;
        let child = spawn(|| {
            ptrace::traceme()?;
            raise(Signal::SIGSTOP)?;
            Ok(())
        })?;
        let status = waitpid(child.pid, None)?;
        ensure!(
            matches!(status, WaitStatus::Stopped(_, Signal::SIGSTOP)),
            "{status:?}"
        );
        let flushes = Flushes::watch()?;
        let mut model = Model::zeroed(len);
        for round in 0..3u64 {
            let at = 6 * PAGE + 8 * round;
            let value = 0x0102_0304_0506_0708i64 + round as i64;
            let target = (address + at) as ptrace::AddressType;
            ensure!(ptrace::read(child.pid, target)? == 0, "peek");
            ptrace::write(child.pid, target, value)?;
            ensure!(ptrace::read(child.pid, target)? == value, "peek after poke");
            model.put(at, &value.to_ne_bytes());
            model.expect("poke", &file, Some(&map))?;
            file.sync_all()?;
            let got = flushes.take(&file)?.pages();
            ensure!(
                got.contains(&6),
                "{name}: poked, not flushed, round {round}"
            );
        }
        // It goes on, and ends.
        ptrace::cont(child.pid, None)?;
        ensure!(child.end()? == End::Done);
        expect_clean("after pokes", &flushes, &file, Some(&map))?;
        drop((map, file));
    }
    dax.check()
}

/// process_vm_readv and process_vm_writev on a DAX mapping of another process.
fn process_vm(dax: Dax) -> Result<()> {
    let file = dax.file("f", false)?;
    let len = file.metadata()?.len();
    let map = Mapping::shared(&file, 0, len)?;
    let address = map.as_ptr() as u64;
    let child = spawn(|| loop {
        std::thread::sleep(Duration::from_secs(1000));
    })?;
    let flushes = Flushes::watch()?;
    let mut model = Model::zeroed(len);
    let move_bytes = |write: bool, at: u64, data: &mut [u8]| -> Result<usize> {
        let local = libc::iovec {
            iov_base: data.as_mut_ptr().cast(),
            iov_len: data.len(),
        };
        let remote = libc::iovec {
            iov_base: (address + at) as *mut _,
            iov_len: data.len(),
        };
        let pid = child.pid.as_raw();
        // SAFETY: the local buffer is `data`; the remote one is memory of the child.
        let n = unsafe {
            if write {
                libc::process_vm_writev(pid, &local, 1, &remote, 1, 0)
            } else {
                libc::process_vm_readv(pid, &local, 1, &remote, 1, 0)
            }
        };
        Ok(Errno::result(n)? as usize)
    };
    for round in 0..3 {
        let at = 20 * PAGE - 100;
        let mut data = pattern(round, 0, 3 * PAGE as usize);
        let n = move_bytes(true, at, &mut data)?;
        ensure!(n == data.len(), "wrote {n} bytes");
        model.put(at, &data);
        model.expect("written by another process", &file, Some(&map))?;
        file.sync_all()?;
        // The pages may also have been flushed as they were let go.
        let flushed = flushes.take(&file)?.of(Reason::Sync);
        flushed.expect("process_vm_writev", 19..23)?;
        let mut back = vec![0; data.len()];
        let n = move_bytes(false, at, &mut back)?;
        ensure!(n == data.len(), "read {n} bytes");
        same("process_vm_readv", &back, &data)?;
    }
    kill(child.pid, Signal::SIGKILL)?;
    waitpid(child.pid, None)?;
    expect_clean("in the end", &flushes, &file, Some(&map))?;
    drop((map, file));
    dax.check()
}

/// fork with shared and private DAX mappings.
fn fork(dax: Dax) -> Result<()> {
    for (name, huge) in [("small", false), ("huge", true)] {
        let file = dax.file(name, huge)?;
        let len = file.metadata()?.len();
        let mut model = Model::zeroed(len);
        let shared = Mapping::shared(&file, 0, len)?;
        let private = Mapping::private(&file, 0, len)?;
        shared.write(PAGE, &[1; 50]);
        private.write(2 * PAGE, &[2; 50]);
        model.put(PAGE, &[1; 50]);
        let flushes = Flushes::watch()?;
        let end = spawn(|| {
            ensure!(
                shared.peek(PAGE) == 1 && private.peek(2 * PAGE) == 2,
                "inherited"
            );
            shared.write(3 * PAGE, &[3; 50]);
            private.write(2 * PAGE, &[4; 50]);
            private.write(4 * PAGE, &[5; 50]);
            Ok(())
        })?
        .end()?;
        ensure!(end == End::Done, "{end:?}");
        model.put(3 * PAGE, &[3; 50]);
        model.expect("the child's shared store", &file, Some(&shared))?;
        ensure!(
            private.peek(2 * PAGE) == 2,
            "the child's private store is the parent's"
        );
        ensure!(
            private.peek(4 * PAGE) == 0,
            "the child's private store is the parent's"
        );
        file.sync_all()?;
        let got = flushes.take(&file)?.pages();
        ensure!(
            got.contains(&1) && got.contains(&3),
            "{name}: flushed {got:?}"
        );
        expect_clean("after fsync", &flushes, &file, Some(&shared))?;
        drop((shared, private, file));
    }
    dax.check()
}

/// io_uring: DAX memory cannot be registered as a fixed buffer (that would pin it for ever),
/// ordinary memory can and works with DAX files; DAX memory works as an ordinary buffer.
fn uring(ctx: &Ctx) -> Result<()> {
    let driver = Driver::load(ctx, &[])?;
    let raw = driver.disk(1).open_direct()?;
    for fs in Fs::ALL {
        let dax = Dax::on(driver.disk(0), fs)?;
        let file = dax.file("f", false)?;
        let len = file.metadata()?.len();
        let map = Mapping::shared(&file, 0, len)?;
        let mut model = Model::zeroed(len);
        let mut ring = IoUring::new(8).context("io_uring_setup")?;
        let submit = |ring: &mut IoUring, entry: io_uring::squeue::Entry| -> Result<usize> {
            // SAFETY: buffers outlive the completion that is waited for here.
            unsafe { ring.submission().push(&entry)? };
            ring.submit_and_wait(1)?;
            let result = ring.completion().next().context("no completion")?.result();
            Ok(Errno::result(if result < 0 {
                Errno::from_raw(-result).set();
                -1
            } else {
                result
            })? as usize)
        };

        let fixed = |base: *mut u8, len: usize| libc::iovec {
            iov_base: base.cast(),
            iov_len: len,
        };
        // SAFETY: refused, or unregistered with the ring.
        let refused = unsafe {
            ring.submitter()
                .register_buffers(&[fixed(map.as_ptr(), 4 * PAGE as usize)])
        };
        let errno = refused.err().and_then(|e| e.raw_os_error());
        ensure!(
            errno == Some(libc::EOPNOTSUPP),
            "registering DAX memory: {errno:?}, not EOPNOTSUPP"
        );

        let mut buffer = Aligned::zeroed(4 * PAGE as usize);
        // SAFETY: the buffer outlives the ring's use of it.
        unsafe {
            ring.submitter()
                .register_buffers(&[fixed(buffer.as_mut_ptr(), buffer.len())])?
        };
        let data = pattern(1, 0, buffer.len());
        buffer.copy_from_slice(&data);
        let fd = types::Fd(file.as_raw_fd());
        let n = submit(
            &mut ring,
            opcode::WriteFixed::new(fd, buffer.as_ptr(), buffer.len() as u32, 0)
                .offset(5 * PAGE)
                .build(),
        )?;
        ensure!(n == data.len(), "WriteFixed wrote {n} bytes");
        model.put(5 * PAGE, &data);
        model.expect("WriteFixed", &file, Some(&map))?;
        map.write(6 * PAGE, &[9; 10]);
        model.put(6 * PAGE, &[9; 10]);
        let n = submit(
            &mut ring,
            opcode::ReadFixed::new(fd, buffer.as_mut_ptr(), buffer.len() as u32, 0)
                .offset(5 * PAGE)
                .build(),
        )?;
        ensure!(n == data.len(), "ReadFixed read {n} bytes");
        same(
            "ReadFixed",
            &buffer,
            &model.0[5 * PAGE as usize..9 * PAGE as usize],
        )?;

        // DAX memory as the buffer of direct I/O on the other disk.
        let flushes = Flushes::watch()?;
        let disk = types::Fd(raw.as_raw_fd());
        let from = map.as_ptr().wrapping_add(5 * PAGE as usize);
        let n = submit(
            &mut ring,
            opcode::Write::new(disk, from, 2 * PAGE as u32)
                .offset(PMD)
                .build(),
        )?;
        ensure!(n == 2 * PAGE as usize, "Write wrote {n} bytes");
        let to = map.as_ptr().wrapping_add(30 * PAGE as usize);
        let n = submit(
            &mut ring,
            opcode::Read::new(disk, to, 2 * PAGE as u32)
                .offset(PMD)
                .build(),
        )?;
        ensure!(n == 2 * PAGE as usize, "Read read {n} bytes");
        let part = model.0[5 * PAGE as usize..7 * PAGE as usize].to_vec();
        model.put(30 * PAGE, &part);
        model.expect("direct I/O by io_uring", &file, Some(&map))?;
        file.sync_all()?;
        let got = flushes.take(&file)?.pages();
        ensure!(
            got.contains(&30) && got.contains(&31),
            "{fs}: flushed {got:?}"
        );
        drop((ring, buffer, map, file));
        dax.check().with_context(|| fs.name())?;
    }
    drop(raw);
    driver.unload()
}
