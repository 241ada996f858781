// SPDX-License-Identifier: GPL-2.0

//! Many threads at once, on two CPUs: faults of both sizes, stores, write(2), punching, truncation,
//! fsync, reflink, freezing. Each of the threads that write has pages of its own, in between those
//! of the others and in the same PMDs, and knows what they hold at any time; so whatever is lost
//! or mixed up is seen, while it goes on and in the end.
//!
//! A few seconds in `make test`, a minute in `make stress`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use nix::errno::Errno;
use proto::{Machine, Tag};

use crate::fixture::dax::{clone_range, on_both, on_each, punch, Model};
use crate::fixture::flushes::{expect_clean, Reason, DIRTY_FOR_EVER};
use crate::fixture::io::same;
use crate::fixture::trace::Trace;
use crate::fixture::{Dax, Driver, Flushes, Fs, Mapping, PAGE, PMD};
use crate::test::{Ctx, Suite};

pub fn suite(s: &mut Suite) {
    let time = |ctx: &Ctx| ctx.pick(Duration::from_secs(2), Duration::from_secs(60));
    let machine = || Machine::default().smp(2);
    let mut add = |name: &str, run: fn(Dax, Duration) -> Result<()>| {
        s.test(name, move |ctx| on_both(ctx, |dax| run(dax, time(ctx))))
            .machine(machine())
            .limit(120)
            .tag(Tag::Stress)
            .c_is_wrong(
                "dirty flags of pages that nothing clears (smaps calls them dirty for ever), \
                 and ext4 gives out blocks before it has zeroed them (generic/346)",
            );
    };
    add("pmds_and_ptes", |dax, time| {
        let what = Mix {
            huge: true,
            ..Mix::default()
        };
        mixed(dax, time, what)
    });
    add("punch_and_fsync", |dax, time| {
        let what = Mix {
            punch: true,
            sync: true,
            ..Mix::default()
        };
        mixed(dax, time, what)
    });
    add("truncate_and_fault", |dax, time| {
        let what = Mix {
            punch: true,
            truncate: true,
            ..Mix::default()
        };
        mixed(dax, time, what)
    });
    add("freeze", |dax, time| {
        let what = Mix {
            huge: true,
            freeze: true,
            ..Mix::default()
        };
        mixed(dax, time, what)
    });
    add("everything", |dax, time| {
        let what = Mix {
            huge: true,
            punch: true,
            truncate: true,
            freeze: true,
            reflink: true,
            sync: false,
        };
        mixed(dax, time, what)
    });
    s.test("reflink", move |ctx| {
        on_each(ctx, &[Fs::Xfs], |dax| {
            let what = Mix {
                reflink: true,
                ..Mix::default()
            };
            mixed(dax, time(ctx), what)
        })
    })
    .machine(machine())
    .limit(120)
    .tag(Tag::Stress)
    .c_is_wrong(DIRTY_FOR_EVER);
    s.test("fsync_waits_for_flush", fsync_waits_for_flush)
        .machine(machine())
        .limit(120)
        .tag(Tag::RustOnly)
        .tag(Tag::Stress);
    s.test("bounds_move", move |ctx| {
        on_both(ctx, |dax| bounds_move(dax, time(ctx)))
    })
    .machine(machine())
    .limit(120)
    .tag(Tag::Stress);
    s.test("fsync_from_many", move |ctx| {
        on_both(ctx, |dax| fsync_from_many(dax, time(ctx)))
    })
    .machine(machine())
    .limit(120)
    .tag(Tag::Stress);
}

/// What goes on besides stores, loads, write(2), read(2), msync and fsync.
#[derive(Clone, Copy, Debug, Default)]
struct Mix {
    /// The file's blocks can be mapped by PMDs.
    huge: bool,
    /// Threads punch their own pages.
    punch: bool,
    /// A thread cuts the file's tail off and lets it grow again, another touches the tail.
    truncate: bool,
    freeze: bool,
    /// A thread clones the file and maps the clone, xfs only.
    reflink: bool,
    /// A thread stores through a MAP_SYNC mapping to pages that another punches. Not with
    /// `truncate`, which has the same pages.
    sync: bool,
}

/// Pages that the threads own, in all.
const OWNED: u64 = 1024;
/// Pages behind them that come and go.
const TAIL: u64 = 256;
const WORKERS: u64 = 4;

/// xorshift64*
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
    }
}

/// A page whose words all say whose page they are: page number above, a running number below.
fn stamp(page: u64, number: u64) -> Vec<u8> {
    let word = (((page + 1) << 40) | (number & 0xff_ffff_ffff)).to_le_bytes();
    word.repeat(PAGE as usize / 8)
}

/// Fails if a word is neither zero nor a stamp of this page.
fn check_stamp(what: &str, page: u64, data: &[u8]) -> Result<()> {
    for word in data.chunks_exact(8) {
        let word = u64::from_le_bytes(word.try_into().expect("eight bytes"));
        ensure!(
            word == 0 || word >> 40 == page + 1,
            "{what}: page {page} has a word of page {}: {word:#x}",
            (word >> 40).wrapping_sub(1)
        );
    }
    Ok(())
}

/// A mapping of a file from some page on.
struct View {
    map: Mapping,
    first: u64,
}

/// Mappings of one file; the first has all of it.
struct Views([View; 3]);

impl Views {
    /// One of those that have this byte of the file, and the offset in it.
    fn any(&self, rng: &mut Rng, at: u64) -> (&Mapping, u64) {
        let view = &self.0[rng.below(3) as usize];
        match at.checked_sub(view.first * PAGE) {
            Some(offset) => (&view.map, offset),
            None => (&self.0[0].map, at),
        }
    }
}

/// One thread's pages: every `WORKERS`th from `id` on.
struct Worker<'a> {
    id: u64,
    what: Mix,
    file: &'a File,
    maps: &'a Views,
    pages: Vec<Vec<u8>>,
    rng: Rng,
    number: u64,
    done: [u64; 6],
}

impl<'a> Worker<'a> {
    fn new(id: u64, what: Mix, file: &'a File, maps: &'a Views) -> Self {
        Worker {
            id,
            what,
            file,
            maps,
            pages: vec![vec![0; PAGE as usize]; (OWNED / WORKERS) as usize],
            rng: Rng::new(id + 1),
            number: 0,
            done: [0; 6],
        }
    }

    fn step(&mut self) -> Result<()> {
        let slot = self.rng.below(self.pages.len() as u64) as usize;
        let page = slot as u64 * WORKERS + self.id;
        let at = page * PAGE;
        let (map, mapped) = self.maps.any(&mut self.rng, at);
        self.number += 1;
        let new = stamp(page, self.number);
        let from = (self.rng.below(64) * 64) as usize;
        let len = if self.rng.below(2) == 0 {
            64
        } else {
            PAGE as usize - from
        };
        let kind = match self.rng.below(100) {
            0..30 => {
                map.write(mapped + from as u64, &new[..len]);
                self.pages[slot][from..from + len].copy_from_slice(&new[..len]);
                0
            }
            30..45 => {
                self.file
                    .write_all_at(&new[..len], at + from as u64)
                    .context("write(2)")?;
                self.pages[slot][from..from + len].copy_from_slice(&new[..len]);
                1
            }
            45..65 => {
                same(
                    &format!("page {page}, mapped"),
                    &map.read(mapped, PAGE as usize),
                    &self.pages[slot],
                )?;
                2
            }
            65..75 => {
                let mut got = vec![0; PAGE as usize];
                self.file.read_exact_at(&mut got, at).context("read(2)")?;
                same(&format!("page {page}, read(2)"), &got, &self.pages[slot])?;
                2
            }
            75..82 => {
                map.madvise(mapped, PAGE, libc::MADV_DONTNEED)?;
                3
            }
            82..90 => {
                map.msync(mapped, PAGE)?;
                4
            }
            90..92 => {
                self.file.sync_data()?;
                4
            }
            92..94 => {
                let own = Mapping::shared(self.file, at, PAGE)?;
                own.write(from as u64, &new[..len]);
                self.pages[slot][from..from + len].copy_from_slice(&new[..len]);
                3
            }
            _ if self.what.punch => {
                punch(self.file, at, PAGE)?;
                self.pages[slot].fill(0);
                5
            }
            _ => {
                map.touch(mapped, self.pages[slot][0]);
                0
            }
        };
        self.done[kind] += 1;
        Ok(())
    }

    fn finish(self, model: &mut Model) -> [u64; 6] {
        for (slot, data) in self.pages.iter().enumerate() {
            model.put((slot as u64 * WORKERS + self.id) * PAGE, data);
        }
        self.done
    }
}

/// Runs until `end`, or until another thread has failed.
pub(super) fn until(
    end: Instant,
    failed: &AtomicBool,
    mut step: impl FnMut() -> Result<()>,
) -> Result<()> {
    while Instant::now() < end && !failed.load(Ordering::Relaxed) {
        if let Err(e) = step() {
            failed.store(true, Ordering::Relaxed);
            return Err(e);
        }
    }
    Ok(())
}

fn mixed(dax: Dax, time: Duration, what: Mix) -> Result<()> {
    let reflink = what.reflink && dax.fs() == Fs::Xfs;
    let file = if what.huge {
        dax.mount.allocate_huge("f", OWNED * PAGE, dax.disk())?
    } else {
        dax.mount.create("f")?
    };
    let len = (OWNED + TAIL) * PAGE;
    file.set_len(len)?;
    // The same pages at the addresses of PMDs, at others, and from the second PMD on.
    let half = PMD / PAGE;
    let maps = [
        (Mapping::shared(&file, 0, len)?, 0),
        (Mapping::pages_only(&file, 0, len)?, 0),
        (Mapping::shared(&file, PMD, len - PMD)?, half),
    ];
    let maps = Views(maps.map(|(map, first)| View { map, first }));
    let flushes = Flushes::watch()?;
    flushes.pause()?;
    // In a process of its own: who faults on a frozen file system holds this one's mmap_lock.
    let freezer = what.freeze.then(|| {
        let dir = dax.mount.dir.display();
        let rounds = time.as_millis() / 150;
        // On a slow machine a round takes longer.
        let seconds = time.as_secs() + 2;
        let script = format!(
            "for i in $(seq {rounds}); do [ $SECONDS -lt {seconds} ] || break; \
               sleep 0.1; fsfreeze -f {dir} || exit 1; sleep 0.01; fsfreeze -u {dir} || exit 1; \
             done"
        );
        std::process::Command::new("/bin/bash")
            .args(["-c", &script])
            .spawn()
    });
    let freezer = freezer.transpose()?;
    let end = Instant::now() + time;
    let failed = AtomicBool::new(false);
    let mut model = Model::zeroed(OWNED * PAGE);

    std::thread::scope(|scope| -> Result<()> {
        let (file, maps, failed) = (&file, &maps, &failed);
        let dax = &dax;
        let workers: Vec<_> = (0..WORKERS)
            .map(|id| {
                scope.spawn(move || {
                    let mut worker = Worker::new(id, what, file, maps);
                    let result = until(end, failed, || worker.step());
                    (worker, result)
                })
            })
            .collect();
        let mut helpers = Vec::new();
        helpers.push(scope.spawn(move || {
            until(end, failed, || {
                file.sync_all()?;
                std::thread::sleep(Duration::from_millis(3));
                Ok(())
            })
        }));
        if what.truncate {
            helpers.push(scope.spawn(move || {
                let mut rng = Rng::new(77);
                until(end, failed, || {
                    let pages = OWNED + rng.below(TAIL);
                    // Between two words of the stamp.
                    file.set_len(pages * PAGE + rng.below(PAGE / 8) * 8)?;
                    let page = OWNED + rng.below(TAIL);
                    file.write_all_at(&stamp(page, rng.below(1 << 30)), page * PAGE)?;
                    file.set_len(len)?;
                    Ok(())
                })
            }));
            helpers.push(scope.spawn(move || {
                let mut rng = Rng::new(78);
                let source = File::options()
                    .read(true)
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .open("/tmp/stamp")?;
                until(end, failed, || {
                    let page = OWNED + rng.below(TAIL);
                    let (map, mapped) = maps.any(&mut rng, page * PAGE);
                    let mut got = vec![0; PAGE as usize];
                    // Beyond the end right now: no harm.
                    match map.copy_out(mapped, &mut got) {
                        Ok(()) => check_stamp("the tail", page, &got)?,
                        Err(Errno::EFAULT) => {}
                        Err(e) => bail!("the tail: {e}"),
                    }
                    source.write_all_at(&stamp(page, rng.below(1 << 30)), 0)?;
                    match map.fill_from(&source, mapped, PAGE as usize) {
                        Ok(()) | Err(Errno::EFAULT) => Ok(()),
                        Err(e) => bail!("the tail: {e}"),
                    }
                })
            }));
        }
        if what.sync {
            let map = Mapping::sync(file, OWNED * PAGE, TAIL * PAGE)?;
            helpers.push(scope.spawn(move || {
                let mut rng = Rng::new(79);
                until(end, failed, || {
                    let page = rng.below(TAIL);
                    let new = stamp(OWNED + page, rng.below(1 << 30));
                    map.write(page * PAGE, &new);
                    let page = rng.below(TAIL);
                    let got = map.read(page * PAGE, PAGE as usize);
                    check_stamp("MAP_SYNC", OWNED + page, &got)
                })
            }));
            helpers.push(scope.spawn(move || {
                let mut rng = Rng::new(80);
                until(end, failed, || {
                    let page = rng.below(TAIL);
                    let nr = 1 + rng.below((TAIL - page).min(8));
                    punch(file, (OWNED + page) * PAGE, nr * PAGE)
                })
            }));
        }
        if reflink {
            helpers.push(scope.spawn(move || {
                let clone = dax.mount.create("clone")?;
                let mut data = vec![0; PAGE as usize];
                let mut rng = Rng::new(81);
                until(end, failed, || {
                    clone.set_len(0)?;
                    clone_range(file, 0, OWNED * PAGE, &clone, 0).context("clone")?;
                    let map = Mapping::shared(&clone, 0, OWNED * PAGE)?;
                    for page in 0..OWNED {
                        match rng.below(4) {
                            // A copy on write of the clone's own: the file must not have it, which
                            // the workers see.
                            0 => {
                                let new = stamp(page, u64::MAX);
                                map.write(page * PAGE, &new);
                                same("the clone", &map.read(page * PAGE, new.len()), &new)?;
                                continue;
                            }
                            1 => clone.read_exact_at(&mut data, page * PAGE)?,
                            _ => data = map.read(page * PAGE, PAGE as usize),
                        }
                        check_stamp("the clone", page, &data)?;
                    }
                    Ok(())
                })
            }));
        }
        let mut result = Ok(());
        let mut sum = [0; 6];
        for worker in workers {
            let (worker, outcome) = worker.join().expect("a worker panicked");
            result = result.and(outcome);
            for (total, n) in sum.iter_mut().zip(worker.finish(&mut model)) {
                *total += n;
            }
        }
        for helper in helpers {
            result = result.and(helper.join().expect("a helper panicked"));
        }
        println!("stores, writes, loads, unmaps, syncs, punches: {sum:?}");
        result
    })?;

    if let Some(mut freezer) = freezer {
        ensure!(freezer.wait()?.success(), "freezing failed");
    }
    model.expect("in the end", &file, Some(&maps.0[0].map))?;
    for View { map, first } in &maps.0[1..] {
        let want = &model.0[(first * PAGE) as usize..];
        same("in the end, mapped", &map.read(0, want.len()), want)?;
    }
    flushes.resume()?;
    file.sync_all()?;
    for view in &maps.0 {
        expect_clean("in the end", &flushes, &file, Some(&view.map))?;
    }
    drop((maps, flushes, file));
    let dax = dax.remount()?;
    model.expect("after a remount", &dax.mount.open("f")?, None)?;
    dax.check()
}

/// An fsync that finds a page being flushed by another one waits for it: no fsync returns before
/// the pages that were dirty when it began have been flushed. The trace has the order: C reports
/// pages only after it has let go of them, so this can be seen of the Rust layer only.
fn fsync_waits_for_flush(ctx: &Ctx) -> Result<()> {
    let driver = Driver::load(ctx, &[])?;
    let dax = Dax::on(driver.disk(0), Fs::Ext4)?;
    let trace = Trace::start(&[
        "rust_pmem/rpmem_run",
        "rust_pmem/rpmem_writeback",
        "rust_pmem/rpmem_writeback_done",
        "rust_pmem/rpmem_wait",
    ])?;
    trace.exact_order()?;
    let mut overlaps = 0;
    for huge in [true, false] {
        let file = dax.file(if huge { "huge" } else { "small" }, huge)?;
        let other = dax.mount.open(if huge { "huge" } else { "small" })?;
        // One batch: what is left to flush once it is under way is nothing.
        let map = Mapping::shared(&file, 0, file.metadata()?.len().min(PMD))?;
        let start = Barrier::new(2);
        let delay = AtomicU64::new(0);
        let rounds = ctx.pick(150, 2000);
        trace.take()?;
        for round in 0..rounds {
            for page in 0..(map.len() as u64 / PAGE) {
                map.touch(page * PAGE + 3, round as u8 + 1);
                if huge {
                    break;
                }
            }
            delay.store(round % 40 * 25, Ordering::Relaxed);
            std::thread::scope(|scope| -> Result<()> {
                let second = scope.spawn(|| -> Result<()> {
                    start.wait();
                    let t = Instant::now();
                    while t.elapsed() < Duration::from_micros(delay.load(Ordering::Relaxed)) {
                        std::hint::spin_loop();
                    }
                    other.sync_data()?;
                    Trace::mark("second returned")
                });
                start.wait();
                file.sync_data()?;
                Trace::mark("first returned")?;
                second.join().expect("the second thread panicked")
            })?;
            let events = trace.take()?;
            let flushed = events.iter().position(|l| l.contains("rpmem_run:"));
            let returned = events.iter().position(|l| l.contains("returned"));
            match (flushed, returned) {
                (Some(flushed), Some(returned)) if flushed < returned => {}
                _ => bail!(
                    "round {round}: an fsync returned before the flush (huge: {huge}):\n{}",
                    events.join("\n")
                ),
            }
            overlaps += usize::from(events.iter().any(|l| l.contains("rpmem_wait:")));
        }
        drop((map, file, other));
    }
    println!("one fsync waited for the other in {overlaps} rounds");
    ensure!(overlaps > 0, "no fsync ever had to wait for the other");
    drop(trace);
    dax.check()?;
    driver.unload()
}

/// A process maps a file and moves the bound between two of its mappings (mprotect); the kernel takes
/// both out of the file's tree for that, with their page tables as they are. An fsync at that moment
/// takes the right to store away all the same: what is stored later is flushed by the next one.
fn bounds_move(dax: Dax, time: Duration) -> Result<()> {
    const STORED: u64 = 16;
    const READ: i32 = libc::PROT_READ;
    let file = dax.file("f", false)?;
    let map = Mapping::pages_only(&file, 0, 64 * PAGE)?;
    map.protect(32 * PAGE, 32 * PAGE, READ)?;
    let (end, moves) = (AtomicBool::new(false), AtomicU64::new(0));
    let syncs = std::thread::scope(|scope| -> Result<u64> {
        let mover = scope.spawn(|| -> Result<()> {
            while !end.load(Ordering::Relaxed) {
                map.protect(31 * PAGE, PAGE, READ)?;
                map.protect(31 * PAGE, PAGE, READ | libc::PROT_WRITE)?;
                moves.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        let until = Instant::now() + time;
        let mut syncs = 0;
        while Instant::now() < until && !mover.is_finished() {
            for page in 0..STORED {
                map.touch(page * PAGE, syncs as u8);
            }
            file.sync_data()?;
            syncs += 1;
        }
        end.store(true, Ordering::Relaxed);
        mover.join().expect("the moving thread panicked")?;
        Ok(syncs)
    })?;
    let moves = moves.into_inner();
    println!("{syncs} fsyncs, {moves} moves");
    ensure!(syncs > 10 && moves > 10, "too few to meet");
    file.sync_all()?;
    let flushes = Flushes::watch()?;
    for page in 0..STORED {
        map.touch(page * PAGE, 7);
    }
    file.sync_all()?;
    flushes
        .take(&file)?
        .of(Reason::Sync)
        .expect("stored after an fsync", 0..STORED)?;
    drop((map, file, flushes));
    dax.check()
}

/// fsync, msync and stores from eight threads; after each fsync, what the thread stored before it
/// is clean unless somebody stored again.
fn fsync_from_many(dax: Dax, time: Duration) -> Result<()> {
    let file = dax.mount.allocate_huge("f", 4 * PMD, dax.disk())?;
    let huge = Mapping::shared(&file, 0, 2 * PMD)?;
    let small = Mapping::pages_only(&file, 0, 4 * PMD)?;
    let end = Instant::now() + time;
    let failed = AtomicBool::new(false);
    let threads = 8u64;
    let counts: Vec<AtomicU64> = (0..threads).map(|_| AtomicU64::new(0)).collect();
    std::thread::scope(|scope| -> Result<()> {
        let (file, huge, small, failed, counts) = (&file, &huge, &small, &failed, &counts);
        let all: Vec<_> = (0..threads)
            .map(|id| {
                scope.spawn(move || {
                    let mut rng = Rng::new(id + 100);
                    until(end, failed, || {
                        let n = counts[id as usize].fetch_add(1, Ordering::Relaxed) + 1;
                        // Its own word in pages that all threads use.
                        for _ in 0..4 {
                            let page = rng.below(64) * 16;
                            let at = page * PAGE + id * 64;
                            let map = if rng.below(2) == 0 { huge } else { small };
                            map.write(at, &n.to_le_bytes());
                            let got = map.read(at, 8);
                            ensure!(got == n.to_le_bytes(), "thread {id}: {got:?}, not {n}");
                        }
                        match rng.below(3) {
                            0 => file.sync_all()?,
                            1 => file.sync_data()?,
                            _ => {
                                let first = rng.below(900);
                                huge.msync(first * PAGE, (1 + rng.below(100)) * PAGE)?
                            }
                        }
                        Ok(())
                    })
                })
            })
            .collect();
        all.into_iter()
            .map(|t| t.join().expect("a thread panicked"))
            .fold(Ok(()), Result::and)
    })?;
    let counts: Vec<_> = counts.iter().map(|c| c.load(Ordering::Relaxed)).collect();
    println!("rounds of each thread: {counts:?}");
    file.sync_all()?;
    let flushes = Flushes::watch()?;
    expect_clean("in the end", &flushes, &file, Some(&huge))?;
    expect_clean("in the end", &flushes, &file, Some(&small))?;
    drop((huge, small, file, flushes));
    dax.check()
}
