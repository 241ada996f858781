// SPDX-License-Identifier: GPL-2.0

//! What is measured. A case prepares files on one side and returns a closure; each call of it
//! sets its piece of work up, does it, and returns instructions per unit.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use anyhow::{ensure, Context, Result};
use nix::errno::Errno;
use proto::On;

use super::probe::count;
use super::{Place, BALLAST};
use crate::fixture::fs::fallocate;
use crate::fixture::io::{pread2, Aligned};
use crate::fixture::{Mapping, KIB, MIB, PAGE, PMD};

/// One repeat: instructions per unit.
pub type Repeat<'a> = Box<dyn FnMut() -> Result<f64> + 'a>;
type Prepare = Box<dyn Fn(&Place) -> Result<Repeat<'_>>>;

/// What a case runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Each file system, on nd_pmem and on ours.
    FileSystem,
    /// The bare disks.
    Raw,
    /// C's file system, without and with our module loaded.
    Hooks,
}

pub struct Case {
    pub name: String,
    pub unit: &'static str,
    pub kind: Kind,
    pub threads: usize,
    /// The plot it belongs to, and where it lies on its x axis.
    pub plot: Option<&'static str>,
    pub x: Option<f64>,
    /// What ours / C should be at most.
    pub target: Option<f64>,
    pub prepare: Prepare,
}

impl Case {
    fn target(&mut self, ratio: f64) -> &mut Self {
        self.target = Some(ratio);
        self
    }

    fn plot(&mut self, plot: &'static str, x: f64) -> &mut Self {
        self.plot = Some(plot);
        self.x = Some(x);
        self
    }

    fn kind(&mut self, kind: Kind) -> &mut Self {
        self.kind = kind;
        self
    }
}

struct List(Vec<Case>);

impl List {
    fn add(
        &mut self,
        name: impl Into<String>,
        unit: &'static str,
        prepare: impl Fn(&Place) -> Result<Repeat<'_>> + 'static,
    ) -> &mut Case {
        self.0.push(Case {
            name: name.into(),
            unit,
            kind: Kind::FileSystem,
            threads: 1,
            plot: None,
            x: None,
            target: None,
            prepare: Box::new(prepare),
        });
        self.0.last_mut().expect("just pushed")
    }
}

pub fn all() -> Vec<Case> {
    let mut list = List(Vec::new());
    faults(&mut list);
    syncs(&mut list);
    unmaps(&mut list);
    calls(&mut list);
    raw(&mut list);
    threads(&mut list);
    list.0
}

/// The blocks behind a file before a case touches it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Blocks {
    Hole,
    Unwritten,
    Written,
}

/// Empties a file and gives it `size` bytes of blocks, with no entry in its mapping.
fn refill(file: &File, size: u64, blocks: Blocks) -> Result<()> {
    file.set_len(0)?;
    match blocks {
        Blocks::Hole => file.set_len(size)?,
        Blocks::Unwritten => fallocate(file, 0, 0, size)?,
        Blocks::Written => {
            fallocate(file, 0, 0, size)?;
            let data = vec![0x5a; size.min(MIB) as usize];
            for offset in (0..size).step_by(data.len()) {
                file.write_all_at(&data[..data.len().min((size - offset) as usize)], offset)?;
            }
        }
    }
    file.sync_all()?;
    Ok(())
}

/// In what order pages are touched.
#[derive(Clone, Copy)]
enum Order {
    Sequential,
    /// Neighbours never one after the other.
    Scattered,
}
use Order::*;

/// Pages 0 to `n - 1` (`n` a power of two), each once.
fn pages(n: u64, order: Order) -> impl Iterator<Item = u64> {
    let step = match order {
        Sequential => 1,
        Scattered => 97,
    };
    (0..n).map(move |i| i * step % n)
}

fn fdatasync(file: &File) -> Result<()> {
    // SAFETY: a system call on an open file.
    Errno::result(unsafe { libc::fdatasync(file.as_raw_fd()) })
        .context("fdatasync")
        .map(drop)
}

fn unlink(place: &Place) {
    let _ = std::fs::remove_file(place.mount().path("bench"));
}

fn new_file(place: &Place) -> Result<File> {
    unlink(place);
    place.mount().create("bench")
}

// ---- faults -----------------------------------------------------------------

/// Pages of most cases.
const N: u64 = 256;

fn faults(list: &mut List) {
    use Blocks::*;
    // More of them, so that every repeat has its share of timer interrupts.
    const N: u64 = 1024;
    for (name, blocks, order, write, target) in [
        ("write fault", Written, Scattered, true, Some(1.0)),
        (
            "write fault, sequential",
            Written,
            Sequential,
            true,
            Some(1.0),
        ),
        (
            "write fault, unwritten",
            Unwritten,
            Scattered,
            true,
            Some(1.0),
        ),
        (
            "write fault, unwritten, sequential",
            Unwritten,
            Sequential,
            true,
            Some(1.0),
        ),
        ("write fault, allocating", Hole, Sequential, true, Some(1.0)),
        ("read fault", Written, Scattered, false, Some(0.9)),
        (
            "read fault, sequential",
            Written,
            Sequential,
            false,
            Some(0.9),
        ),
        ("hole read", Hole, Scattered, false, Some(0.9)),
    ] {
        let case = list.add(name, "page", move |place| {
            let file = new_file(place)?;
            Ok(Box::new(move || {
                refill(&file, N * PAGE, blocks)?;
                let map = Mapping::pages_only(&file, 0, N * PAGE)?;
                let (n, ()) = count(|| {
                    for page in pages(N, order) {
                        if write {
                            map.touch(page * PAGE, 1);
                        } else {
                            map.peek(page * PAGE);
                        }
                    }
                });
                Ok(n as f64 / N as f64)
            }))
        });
        case.target = target;
    }
    list.add("write fault after fdatasync", "page", |place| {
        let file = new_file(place)?;
        refill(&file, N * PAGE, Written)?;
        let map = Mapping::pages_only(&file, 0, N * PAGE)?;
        Ok(Box::new(move || {
            pages(N, Sequential).for_each(|page| map.touch(page * PAGE, 1));
            fdatasync(&file)?;
            let (n, ()) = count(|| pages(N, Scattered).for_each(|page| map.touch(page * PAGE, 2)));
            Ok(n as f64 / N as f64)
        }))
    })
    .target(1.0);
    list.add("MAP_SYNC first touch", "page", |place| {
        let file = new_file(place)?;
        Ok(Box::new(move || {
            const N: u64 = 64;
            refill(&file, N * PAGE, Blocks::Unwritten)?;
            let map = Mapping::sync(&file, 0, N * PAGE).context("MAP_SYNC")?;
            let (n, ()) = count(|| pages(N, Scattered).for_each(|page| map.touch(page * PAGE, 1)));
            Ok(n as f64 / N as f64)
        }))
    });
    for (name, blocks, write) in [
        ("write fault 2 MiB", Written, true),
        ("write fault 2 MiB, unwritten", Unwritten, true),
        ("read fault 2 MiB", Written, false),
    ] {
        list.add(name, "PMD", move |place| {
            const N: u64 = 8;
            unlink(place);
            let file = place.mount().allocate_huge("bench", N * PMD, &place.disk)?;
            Ok(Box::new(move || {
                refill(&file, N * PMD, blocks)?;
                let map = Mapping::shared(&file, 0, N * PMD)?;
                let (n, ()) = count(|| {
                    for i in 0..N {
                        if write {
                            map.touch(i * PMD, 1);
                        } else {
                            map.peek(i * PMD);
                        }
                    }
                });
                map.expect_huge(0, true)?;
                Ok(n as f64 / N as f64)
            }))
        })
        .target(if write { 1.0 } else { 0.9 });
    }
}

// ---- fdatasync, msync -------------------------------------------------------

fn syncs(list: &mut List) {
    // Every `stride`th page of a file, `n` pages in all.
    let mut dirty = |name: String, n: u64, stride: u64, target: f64, plot: &'static str| {
        list.add(name, "page", move |place| {
            let size = n * stride * PAGE;
            let file = if size <= 32 * MIB {
                let file = new_file(place)?;
                refill(&file, size, Blocks::Written)?;
                file
            } else {
                place.mount().open(BALLAST)?
            };
            let map = Mapping::pages_only(&file, 0, size)?;
            // Short ones several times, for a figure of some length.
            let times = (64 / n).max(1);
            Ok(Box::new(move || {
                let mut sum = 0;
                for t in 0..times {
                    (0..n).for_each(|i| map.touch(i * stride * PAGE, t as u8));
                    let (count, done) = count(|| fdatasync(&file));
                    done?;
                    sum += count;
                }
                Ok(sum as f64 / (times * n) as f64)
            }))
        })
        .target(target)
        .plot(plot, n as f64);
    };
    for n in [1, 4, 16, 64, 256, 4096] {
        let target = match n {
            1 => 1.05,
            64.. => 0.45,
            _ => 1.0,
        };
        dirty(
            format!("fdatasync {n} contiguous"),
            n,
            1,
            target,
            "contiguous",
        );
    }
    for n in [16, 64, 256, 4096] {
        dirty(
            format!("fdatasync {n} scattered by 2"),
            n,
            2,
            0.8,
            "scattered by 2",
        );
    }
    // 4,096 would need a file of 8 GiB.
    for n in [16, 64, 256] {
        dirty(
            format!("fdatasync {n} scattered by 512"),
            n,
            512,
            0.8,
            "scattered by 512",
        );
    }

    // The largest is the file that fills the file system.
    for (name, size) in [
        ("64 MiB", Some(64 * MIB)),
        ("1 GiB", Some(1024 * MIB)),
        ("all there is", None),
    ] {
        list.add(
            format!("fdatasync 1 page of {name}"),
            "page",
            move |place| {
                let file = place.mount().open(BALLAST)?;
                let all = file.metadata()?.len() / PMD * PMD;
                let size = size.unwrap_or(all);
                ensure!(all >= size, "the file system is too small");
                let map = Mapping::pages_only(&file, 0, size)?;
                // Clean entries all over the file, as after earlier use.
                (0..size)
                    .step_by(4 * PMD as usize)
                    .for_each(|offset| map.touch(offset, 1));
                fdatasync(&file)?;
                Ok(Box::new(move || {
                    let mut sum = 0;
                    for i in 0..64 {
                        map.touch(size / 2 + i % 4 * 4 * PMD, i as u8);
                        let (count, done) = count(|| fdatasync(&file));
                        done?;
                        sum += count;
                    }
                    Ok(sum as f64 / 64.0)
                }))
            },
        )
        .target(1.05)
        // All there is are about 3.5 GiB of a range of 4.
        .plot("mapping", size.map_or(3584.0, |s| (s / MIB) as f64));
    }

    list.add("msync 16 of 256 dirty", "page", |place| {
        let file = new_file(place)?;
        refill(&file, N * PAGE, Blocks::Written)?;
        let map = Mapping::pages_only(&file, 0, N * PAGE)?;
        Ok(Box::new(move || {
            (0..N).for_each(|i| map.touch(i * PAGE, 1));
            let (n, done) = count(|| map.msync(100 * PAGE, 16 * PAGE));
            done?;
            Ok(n as f64 / 16.0)
        }))
    });
    list.add("fdatasync 1 PMD", "PMD", |place| {
        unlink(place);
        let file = place.mount().allocate_huge("bench", 4 * PMD, &place.disk)?;
        let map = Mapping::shared(&file, 0, 4 * PMD)?;
        Ok(Box::new(move || {
            map.touch(PMD, 1);
            map.expect_huge(PMD, true)?;
            let (n, done) = count(|| fdatasync(&file));
            done?;
            Ok(n as f64)
        }))
    });
    // Not mapped before is what a program sees that writes a file once.
    for (name, mapped, ahead, target) in [
        ("touch and fdatasync 256", false, None, 0.5),
        ("touch and fdatasync 256, mapped", true, None, 0.5),
        (
            "touch and fdatasync 256, fault_around_write=16",
            false,
            Some("16"),
            0.5,
        ),
        (
            "touch and fdatasync 256, fault_around_write=0",
            false,
            Some("0"),
            1.0,
        ),
    ] {
        list.add(name, "page", move |place| {
            let param = ahead
                .map(|n| Param::set(place, "fault_around_write", n))
                .transpose()?;
            let file = new_file(place)?;
            refill(&file, N * PAGE, Blocks::Written)?;
            let kept = Mapping::pages_only(&file, 0, N * PAGE)?;
            Ok(Box::new(move || {
                let _param = &param;
                let fresh;
                let map = if mapped {
                    &kept
                } else {
                    refill(&file, N * PAGE, Blocks::Written)?;
                    fresh = Mapping::pages_only(&file, 0, N * PAGE)?;
                    &fresh
                };
                let (n, done) = count(|| {
                    pages(N, Sequential).for_each(|i| map.touch(i * PAGE, 1));
                    fdatasync(&file)
                });
                done?;
                Ok(n as f64 / N as f64)
            }))
        })
        .target(target);
    }
}

/// A parameter of our module that has another value for a while.
struct Param {
    path: String,
    old: String,
}

impl Param {
    /// Nothing happens on C.
    fn set(place: &Place, name: &str, value: &str) -> Result<Option<Param>> {
        if place.on == On::C {
            return Ok(None);
        }
        let path = format!("/sys/module/rust_pmem/parameters/{name}");
        let old = std::fs::read_to_string(&path).context(path.clone())?;
        std::fs::write(&path, value).with_context(|| format!("{value} > {path}"))?;
        Ok(Some(Param { path, old }))
    }
}

impl Drop for Param {
    fn drop(&mut self) {
        let _ = std::fs::write(&self.path, &self.old);
    }
}

// ---- munmap, truncate, punch ------------------------------------------------

fn unmaps(list: &mut List) {
    for (name, flush, target) in [
        ("munmap dirty", "Y", 1.25),
        ("munmap dirty, flush_on_unmap=N", "N", 1.25),
    ] {
        list.add(name, "page", move |place| {
            let param = Param::set(place, "flush_on_unmap", flush)?;
            let file = new_file(place)?;
            refill(&file, N * PAGE, Blocks::Written)?;
            Ok(Box::new(move || {
                let _param = &param;
                let map = Mapping::pages_only(&file, 0, N * PAGE)?;
                (0..N).for_each(|i| map.touch(i * PAGE, 1));
                let (n, ()) = count(|| drop(map));
                fdatasync(&file)?;
                Ok(n as f64 / N as f64)
            }))
        })
        .target(target);
    }
    list.add("munmap clean", "page", |place| {
        let file = new_file(place)?;
        refill(&file, N * PAGE, Blocks::Written)?;
        Ok(Box::new(move || {
            let map = Mapping::pages_only(&file, 0, N * PAGE)?;
            for i in 0..N {
                map.peek(i * PAGE);
            }
            let (n, ()) = count(|| drop(map));
            Ok(n as f64 / N as f64)
        }))
    });
    list.add("truncate mapped", "page", |place| {
        let file = new_file(place)?;
        Ok(Box::new(move || {
            refill(&file, N * PAGE, Blocks::Written)?;
            let map = Mapping::pages_only(&file, 0, N * PAGE)?;
            (0..N).for_each(|i| map.touch(i * PAGE, 1));
            let (n, done) = count(|| file.set_len(0));
            done?;
            Ok(n as f64 / N as f64)
        }))
    });
    list.add("punch hole mapped", "page", |place| {
        let file = new_file(place)?;
        Ok(Box::new(move || {
            refill(&file, N * PAGE, Blocks::Written)?;
            let map = Mapping::pages_only(&file, 0, N * PAGE)?;
            (0..N).for_each(|i| map.touch(i * PAGE, 1));
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            let (n, done) = count(|| fallocate(&file, mode, 64 * PAGE, 128 * PAGE));
            done?;
            Ok(n as f64 / 128.0)
        }))
    });
    list.add("tracking memory", "byte/GiB", |place| {
        let file = new_file(place)?;
        const SIZE: u64 = 64 * MIB;
        Ok(Box::new(move || {
            refill(&file, SIZE, Blocks::Unwritten)?;
            let map = Mapping::pages_only(&file, 0, SIZE)?;
            let before = nodes()?;
            (0..SIZE / PAGE).for_each(|i| map.touch(i * PAGE, 1));
            let grown = nodes()?.saturating_sub(before);
            ensure!(grown > 0, "{} dirty pages took no memory", SIZE / PAGE);
            Ok((grown * (1024 * MIB / SIZE)) as f64)
        }))
    });
}

/// Bytes in the XArray nodes of the whole system: all that either side keeps per dirty page. What
/// the caches of the CPUs hold counts as in use, so they are emptied first; what was freed just now
/// has to wait for a grace period.
fn nodes() -> Result<u64> {
    std::thread::sleep(std::time::Duration::from_millis(300));
    let shrink = "/sys/kernel/slab/radix_tree_node/shrink";
    std::fs::write(shrink, "1").context(shrink)?;
    let text = std::fs::read_to_string("/proc/slabinfo").context("/proc/slabinfo")?;
    let line = text.lines().find(|l| l.starts_with("radix_tree_node"));
    let mut fields = line.context("no radix_tree_node")?.split_whitespace();
    let active: u64 = fields.nth(1).context("slabinfo")?.parse()?;
    let size: u64 = fields.nth(1).context("slabinfo")?.parse()?;
    Ok(active * size)
}

// ---- read, write, zero ------------------------------------------------------

fn calls(list: &mut List) {
    for (text, len) in [("4 KiB", 4 * KIB), ("1 MiB", MIB)] {
        for write in [false, true] {
            let name = format!("{} {text}", if write { "write" } else { "read" });
            list.add(name, "call", move |place| {
                let file = new_file(place)?;
                refill(&file, 4 * MIB, Blocks::Written)?;
                let mut buffer = Aligned::zeroed(len as usize);
                buffer.fill(3);
                let times = 4 * MIB / len.max(64 * KIB);
                Ok(Box::new(move || {
                    let (n, done) = count(|| -> std::io::Result<()> {
                        for i in 0..times {
                            let offset = i * 7 % times * len;
                            if write {
                                file.write_all_at(&buffer, offset)?;
                            } else {
                                file.read_exact_at(&mut buffer, offset)?;
                            }
                        }
                        Ok(())
                    });
                    done?;
                    Ok(n as f64 / times as f64)
                }))
            });
        }
    }
    list.add("append 4 KiB", "call", |place| {
        let file = new_file(place)?;
        let buffer = Aligned::zeroed(4096);
        Ok(Box::new(move || {
            refill(&file, 0, Blocks::Hole)?;
            let (n, done) = count(|| -> std::io::Result<()> {
                (0..64).try_for_each(|i| file.write_all_at(&buffer, i * PAGE))
            });
            done?;
            Ok(n as f64 / 64.0)
        }))
    });
    list.add("zero range 1 MiB", "call", |place| {
        const FALLOC_FL_ZERO_RANGE: i32 = 0x10;
        let file = new_file(place)?;
        refill(&file, 4 * MIB, Blocks::Written)?;
        Ok(Box::new(move || {
            let (n, done) = count(|| fallocate(&file, FALLOC_FL_ZERO_RANGE, MIB, MIB));
            done?;
            file.write_all_at(&vec![1; MIB as usize], MIB)?;
            Ok(n as f64)
        }))
    });
    list.add("zero range, edges", "call", |place| {
        const FALLOC_FL_ZERO_RANGE: i32 = 0x10;
        let file = new_file(place)?;
        refill(&file, MIB, Blocks::Written)?;
        Ok(Box::new(move || {
            // Inside one block: zeroed in place.
            let (n, done) = count(|| -> Result<()> {
                (0..64)
                    .try_for_each(|i| fallocate(&file, FALLOC_FL_ZERO_RANGE, i * PAGE + 100, 3000))
            });
            done?;
            Ok(n as f64 / 64.0)
        }))
    })
    .target(0.5);
    list.add("truncate into a page", "call", |place| {
        let file = new_file(place)?;
        Ok(Box::new(move || {
            refill(&file, 64 * PAGE, Blocks::Written)?;
            let (n, done) = count(|| -> std::io::Result<()> {
                (0..64).rev().try_for_each(|i| file.set_len(i * PAGE + 100))
            });
            done?;
            Ok(n as f64 / 64.0)
        }))
    });
}

// ---- the bare disk ----------------------------------------------------------

fn raw(list: &mut List) {
    for (text, len) in [("4 KiB", 4 * KIB), ("1 MiB", MIB)] {
        for (what, write, flags) in [
            ("read", false, 0),
            ("write", true, 0),
            ("write FUA", true, libc::RWF_DSYNC),
        ] {
            list.add(format!("O_DIRECT {what} {text}"), "call", move |place| {
                let file = place.disk.open_direct()?;
                let mut buffer = Aligned::zeroed(len as usize);
                buffer.fill(7);
                let times = 4 * MIB / len.max(64 * KIB);
                Ok(Box::new(move || {
                    let (n, done) = count(|| -> Result<()> {
                        for i in 0..times {
                            let offset = MIB + i * 7 % times * len;
                            if write {
                                write_with(&file, offset, &buffer, flags)?;
                            } else {
                                file.read_exact_at(&mut buffer, offset)?;
                            }
                        }
                        Ok(())
                    });
                    done?;
                    Ok(n as f64 / times as f64)
                }))
            })
            .target(1.0)
            .kind(Kind::Raw);
        }
    }
    list.add("flush", "call", |place| {
        let file = place.disk.open_direct()?;
        Ok(Box::new(move || {
            let (n, done) = count(|| (0..64).try_for_each(|_| fdatasync(&file)));
            done?;
            Ok(n as f64 / 64.0)
        }))
    })
    .target(1.0)
    .kind(Kind::Raw);
    list.add("write zeroes 1 MiB", "call", |place| {
        let disk = place.disk.clone();
        Ok(Box::new(move || {
            let (n, done) = count(|| (0..4).try_for_each(|i| disk.zero_out(MIB * i, MIB)));
            done.context("BLKZEROOUT")?;
            let first = pread2(&disk.open_direct()?, MIB, 4096, 0)?;
            ensure!(first.iter().all(|b| *b == 0), "not zeroed");
            Ok(n as f64 / 4.0)
        }))
    })
    .target(0.5)
    .kind(Kind::Raw);

    for name in ["hooks: write fault", "hooks: touch and fdatasync 256"] {
        let sync = name.ends_with("256");
        list.add(name, "page", move |place| {
            let file = new_file(place)?;
            Ok(Box::new(move || {
                refill(&file, N * PAGE, Blocks::Written)?;
                let map = Mapping::pages_only(&file, 0, N * PAGE)?;
                let (n, done) = count(|| {
                    pages(N, Scattered).for_each(|i| map.touch(i * PAGE, 1));
                    if sync {
                        fdatasync(&file)?;
                    }
                    anyhow::Ok(())
                });
                done?;
                Ok(n as f64 / N as f64)
            }))
        })
        .kind(Kind::Hooks);
    }
}

fn write_with(file: &File, offset: u64, buffer: &[u8], flags: i32) -> Result<()> {
    let iov = libc::iovec {
        iov_base: buffer.as_ptr() as *mut _,
        iov_len: buffer.len(),
    };
    // SAFETY: one iovec over a buffer that outlives the call.
    let n = unsafe { libc::pwritev2(file.as_raw_fd(), &iov, 1, offset as i64, flags) };
    let n = Errno::result(n).context("pwritev2")?;
    ensure!(n as usize == buffer.len(), "short write");
    Ok(())
}

// ---- threads ----------------------------------------------------------------

fn threads(list: &mut List) {
    const PAGES: u64 = 64;
    const ROUNDS: u8 = 4;
    for (name, same) in [("on one file", true), ("on separate files", false)] {
        for n in [1, 2, 4] {
            let case = list.add(format!("{n} threads {name}"), "page", move |place| {
                let mut files = Vec::new();
                for i in 0..n {
                    let file = place
                        .mount()
                        .create(&format!("bench{}", if same { 0 } else { i }))?;
                    if !same || i == 0 {
                        refill(&file, 4 * PAGES * PAGE, Blocks::Written)?;
                    }
                    files.push(file);
                }
                if same {
                    refill(&files[0], 4 * PAGES * PAGE, Blocks::Written)?;
                }
                Ok(Box::new(move || {
                    let maps = (0..n)
                        .map(|i| {
                            Mapping::pages_only(&files[i as usize], i * PAGES * PAGE, PAGES * PAGE)
                        })
                        .collect::<Result<Vec<_>>>()?;
                    let (count, done) = count(|| {
                        std::thread::scope(|scope| {
                            let work = |file, map: &Mapping| -> Result<()> {
                                for round in 0..ROUNDS {
                                    (0..PAGES).for_each(|i| map.touch(i * PAGE, round));
                                    fdatasync(file)?;
                                }
                                Ok(())
                            };
                            let handles: Vec<_> = files
                                .iter()
                                .zip(&maps)
                                .map(|(file, map)| scope.spawn(move || work(file, map)))
                                .collect();
                            handles
                                .into_iter()
                                .try_for_each(|h| h.join().expect("a thread panicked"))
                        })
                    });
                    done?;
                    Ok(count as f64 / (n * PAGES * u64::from(ROUNDS)) as f64)
                }))
            });
            // All on a machine with four CPUs, also the single thread.
            case.threads = 4;
            case.plot(if same { "one file" } else { "separate files" }, n as f64);
        }
    }
}
