// SPDX-License-Identifier: GPL-2.0

//! `make bench`: what operations cost on the kernel's nd_pmem and fs/dax.c and on ours, in one
//! boot, taken in turns.
//!
//! The runner boots with `-icount shift=0`, so that the time stamp counter counts the guest's
//! instructions: those of user space, kernel and interrupts alike. A case prepares its files on
//! both sides; then each repeat is run on C, on ours, on C, and so on, until the medians are
//! steady. [`cases`] has what is measured.

mod cases;
mod probe;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use proto::On;
use serde_json::json;

use crate::fixture::driver::{insmod, ranges, rmmod, UNLOAD_C};
use crate::fixture::fs::fallocate;
use crate::fixture::{sh, Disk, Fs, Mount, MIB};
use crate::test::Ctx;

pub use cases::{Case, Kind};

/// See [`ballast`].
const BALLAST: &str = "ballast";

/// Repeats per side: at least, at most. Odd, so that the median is one of them.
const REPEATS: (usize, usize) = (7, 31);
/// The relative quartile spread below which a case is steady.
const STEADY: f64 = 0.01;

/// The machine's pmem ranges, in this order in memory.
const C_EXT4: usize = 0;
const C_XFS: usize = 1;
const OURS_EXT4: usize = 2;
const OURS_XFS: usize = 3;
/// Where the kernel's symbols go for the profiler; nd_pmem's.
const SCRATCH: usize = 4;

/// One side of a comparison: a file system (or a bare disk) on one of the drivers.
pub struct Place {
    pub on: On,
    pub disk: Disk,
    /// Not set in cases of [`Kind::Raw`].
    pub mount: Option<Mount>,
}

impl Place {
    pub fn mount(&self) -> &Mount {
        self.mount
            .as_ref()
            .expect("a case of a file system has one mounted")
    }
}

/// The arguments of the job: `PATTERN SIDES [PARAM…]`. A pattern `name@ext4` means one file
/// system.
/// SIDES is `c` or `both`, or the side that the profiler is to look at; the parameters are the
/// module's.
pub fn run(ctx: &Ctx, args: &[&str]) -> Result<()> {
    let [pattern, sides, params @ ..] = args else {
        bail!("bench PATTERN c|both|profile-c|profile-rust [PARAM…]");
    };
    let profile = match *sides {
        "profile-c" => Some(On::C),
        "profile-rust" => Some(On::Rust),
        _ => None,
    };
    // "case@ext4": on one file system.
    let (pattern, only) = pattern.split_once('@').unwrap_or((pattern, ""));
    let both = !matches!(*sides, "c" | "profile-c");
    let drivers = Drivers::load(both, params)?;
    let chosen: Vec<Case> = cases::all()
        .into_iter()
        .filter(|c| {
            // "a|b" is any of them.
            pattern
                .split('|')
                .any(|part| slug(&c.name).contains(&slug(part)))
        })
        .collect();
    ensure!(!chosen.is_empty(), "there is no case '{pattern}'");
    let smp = std::thread::available_parallelism()?.get();

    for fs in Fs::ALL {
        let cases: Vec<&Case> = chosen
            .iter()
            .filter(|c| c.kind == Kind::FileSystem && (c.threads > 1) == (smp > 1))
            .collect();
        if cases.is_empty() || !only.is_empty() && only != fs.name() {
            continue;
        }
        let mut places = drivers.places(fs, both)?;
        for place in &mut places {
            place.mount = Some(fs.make(&place.disk)?.mount("dax=always")?);
            ballast(place)?;
        }
        for case in cases {
            measure(ctx, case, fs.name(), &places, profile)?;
        }
        for place in places {
            place.mount.context("mounted above")?.unmount()?;
        }
    }
    for case in chosen.iter().filter(|c| c.kind == Kind::Raw && smp == 1) {
        let places = drivers.places(Fs::Ext4, both)?;
        measure(ctx, case, "raw", &places, profile)?;
    }
    for case in chosen
        .iter()
        .filter(|c| c.kind == Kind::Hooks && smp == 1 && both)
    {
        hooks(ctx, case, &drivers, params)?;
    }
    if profile.is_some() {
        symbols(&drivers.disks[SCRATCH])?;
    }
    drivers.unload()
}

/// A name as a command line may have it: "fdatasync-64-contiguous".
fn slug(name: &str) -> String {
    let words = name
        .split(|c: char| !c.is_alphanumeric())
        .filter(|w| !w.is_empty());
    words.collect::<Vec<_>>().join("-").to_lowercase()
}

/// Both drivers, with the ranges divided between them.
struct Drivers {
    disks: Vec<Disk>,
    ours: bool,
}

impl Drivers {
    /// nd_pmem takes all ranges, gives ours up, and rust_pmem takes what is left.
    fn load(ours: bool, params: &[&str]) -> Result<Drivers> {
        let ranges = ranges()?;
        ensure!(
            ranges.len() > SCRATCH,
            "the benchmark's machine has {} pmem ranges",
            SCRATCH + 1
        );
        sh("modprobe nd_pmem && modprobe nd_e820")?;
        let mut disks = Vec::new();
        let mut names = Vec::new();
        for (start, size) in ranges {
            let name = pmem_at(start)?;
            if ours && [OURS_EXT4, OURS_XFS].contains(&disks.len()) {
                let device = fs::canonicalize(format!("/sys/block/{name}/device"))?;
                names.push(
                    device
                        .file_name()
                        .context("device")?
                        .to_string_lossy()
                        .into_owned(),
                );
            }
            disks.push(Disk {
                path: format!("/dev/{name}"),
                name,
                start,
                size,
            });
        }
        for name in names {
            sh(format!("echo {name} > /sys/bus/nd/drivers/nd_pmem/unbind"))?;
        }
        let mut drivers = Drivers { disks, ours: false };
        if ours {
            drivers.load_ours(params)?;
        }
        Ok(drivers)
    }

    fn load_ours(&mut self, params: &[&str]) -> Result<()> {
        insmod(params).with_context(|| format!("insmod rust_pmem.ko {}", params.join(" ")))?;
        self.ours = true;
        for (number, at) in [OURS_EXT4, OURS_XFS].into_iter().enumerate() {
            let name = format!("rpmem{number}");
            let sectors = fs::read_to_string(format!("/sys/block/{name}/size"))?;
            let disk = &mut self.disks[at];
            ensure!(
                sectors.trim().parse::<u64>()? * 512 == disk.size,
                "{name} is not the range at {:#x}",
                disk.start
            );
            disk.path = format!("/dev/{name}");
            disk.name = name;
        }
        Ok(())
    }

    /// C's place first, then ours.
    fn places(&self, fs: Fs, both: bool) -> Result<Vec<Place>> {
        let (c, ours) = match fs {
            Fs::Ext4 => (C_EXT4, OURS_EXT4),
            Fs::Xfs => (C_XFS, OURS_XFS),
        };
        let mut places = vec![(On::C, c)];
        if both {
            places.push((On::Rust, ours));
        }
        let place = |(on, at): (On, usize)| Place {
            on,
            disk: self.disks[at].clone(),
            mount: None,
        };
        Ok(places.into_iter().map(place).collect())
    }

    fn unload(self) -> Result<()> {
        if self.ours {
            rmmod().context("rmmod rust_pmem")?;
        }
        sh(UNLOAD_C).map(drop)
    }
}

/// Fills most of a file system with a file that is never written to: what cases allocate and free
/// over and over stays in a small part of the guest's memory, which is the host's. Cases that want a
/// large file use this one.
fn ballast(place: &Place) -> Result<()> {
    const LEFT: u64 = 320 * MIB;
    let stat = nix::sys::statvfs::statvfs(&place.mount().dir)?;
    let free = stat.blocks_available() * stat.fragment_size();
    let size = free.saturating_sub(LEFT) / MIB * MIB;
    let file = place.mount().create(BALLAST)?;
    fallocate(&file, 0, 0, size)
}

/// nd_pmem's disk over the range at `start`.
fn pmem_at(start: u64) -> Result<String> {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        for entry in fs::read_dir("/sys/block")?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = format!("/sys/block/{name}/device/resource");
            if let Ok(text) = fs::read_to_string(path) {
                if u64::from_str_radix(text.trim().trim_start_matches("0x"), 16) == Ok(start) {
                    return Ok(name);
                }
            }
        }
        ensure!(
            Instant::now() < end,
            "nd_pmem made no disk of the range at {start:#x}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs a case on all places in turns and reports every figure.
fn measure(ctx: &Ctx, case: &Case, fs: &str, places: &[Place], profile: Option<On>) -> Result<()> {
    let started = Instant::now();
    let name = format!("{}, {fs}", case.name);
    let mut repeats = Vec::new();
    for place in places {
        let repeat =
            (case.prepare)(place).with_context(|| format!("{name}: prepare on {:?}", place.on))?;
        repeats.push((place.on, repeat, Vec::new()));
    }
    probe::next_case();
    // The first runs warm caches up and touch what is allocated once.
    for (on, repeat, _) in &mut repeats {
        repeat().with_context(|| format!("{name} on {on:?}"))?;
    }
    loop {
        for (on, repeat, figures) in &mut repeats {
            probe::record(profile == Some(*on));
            figures.push(repeat().with_context(|| format!("{name} on {on:?}"))?);
            probe::record(false);
        }
        let n = repeats[0].2.len();
        let steady = repeats
            .iter()
            .all(|(_, _, figures)| spread(figures) < STEADY);
        if n >= REPEATS.1 || n >= REPEATS.0 && n % 2 == 1 && steady {
            break;
        }
    }
    report(
        ctx,
        case,
        fs,
        repeats.iter().map(|(on, _, figures)| (*on, &figures[..])),
        started,
    );
    drop(repeats);
    Ok(())
}

fn report<'a>(
    ctx: &Ctx,
    case: &Case,
    fs: &str,
    sides: impl Iterator<Item = (On, &'a [f64])>,
    started: Instant,
) {
    let sides: Vec<_> = sides.collect();
    let text: Vec<_> = sides
        .iter()
        .map(|(on, figures)| format!("{on:?} {:.1}", median(figures)))
        .collect();
    ctx.data(json!({
        "case": case.name, "fs": fs, "unit": case.unit, "x": case.x, "plot": case.plot,
        "target": case.target,
        "c": sides.iter().find(|(on, _)| *on == On::C).map(|(_, f)| f),
        "ours": sides.iter().find(|(on, _)| *on == On::Rust).map(|(_, f)| f),
        "seconds": started.elapsed().as_secs_f64(),
    }));
    println!("{} {fs}: {} per {}", case.name, text.join(", "), case.unit);
}

/// What our hooks cost a DAX file system that is not ours: C's own, measured without and with
/// the module, in turns.
fn hooks(ctx: &Ctx, case: &Case, drivers: &Drivers, params: &[&str]) -> Result<()> {
    const TURNS: usize = 5;
    for fs in Fs::ALL {
        let started = Instant::now();
        let mut place = drivers.places(fs, false)?.remove(0);
        place.mount = Some(fs.make(&place.disk)?.mount("dax=always")?);
        let mut repeat = (case.prepare)(&place)?;
        repeat()?;
        let (mut without, mut with) = (Vec::new(), Vec::new());
        for _ in 0..TURNS {
            rmmod().context("rmmod rust_pmem")?;
            for _ in 0..3 {
                without.push(repeat()?);
            }
            insmod(params).context("insmod rust_pmem.ko")?;
            for _ in 0..3 {
                with.push(repeat()?);
            }
        }
        drop(repeat);
        let sides = [(On::C, &without[..]), (On::Rust, &with[..])];
        report(ctx, case, fs.name(), sides.into_iter(), started);
        place.mount.take().context("mounted above")?.unmount()?;
    }
    Ok(())
}

/// The profiler's symbols: the kernel's own list, written to a disk that the host can read.
fn symbols(disk: &Disk) -> Result<()> {
    let mut text = fs::read(Path::new("/proc/kallsyms"))?;
    ensure!(
        text.len() as u64 + 8 < disk.size,
        "/proc/kallsyms is too large"
    );
    let mut data = (text.len() as u64).to_le_bytes().to_vec();
    data.append(&mut text);
    let file = disk.open()?;
    std::os::unix::fs::FileExt::write_all_at(&file, &data, 0)?;
    file.sync_all()?;
    Ok(())
}

fn sorted(figures: &[f64]) -> Vec<f64> {
    let mut figures = figures.to_vec();
    figures.sort_by(f64::total_cmp);
    figures
}

fn median(figures: &[f64]) -> f64 {
    sorted(figures)[figures.len() / 2]
}

/// Distance of the quartiles relative to the median.
fn spread(figures: &[f64]) -> f64 {
    let f = sorted(figures);
    let (q1, q3) = (f[f.len() / 4], f[f.len() - 1 - f.len() / 4]);
    (q3 - q1) / median(&f).max(1.0)
}
