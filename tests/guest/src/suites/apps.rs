// SPDX-License-Identifier: GPL-2.0

//! Programs and layers that nobody here wrote, on top of the disks: stress-ng, fsx, LMDB,
//! SQLite, device mapper, LUKS, md and the tools that look at disks.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use heed::byteorder::BigEndian;
use heed::types::{Bytes, U64};
use heed::{Database, Env, EnvFlags, EnvOpenOptions};
use nix::errno::Errno;
use proto::{On, Tag};
use rusqlite::{params, Connection};

use crate::fixture::dax::{shutdown, Dax};
use crate::fixture::flushes::Counters;
use crate::fixture::fs::{fallocate, is_dax, physical, Made};
use crate::fixture::io::{read_at, same, write_at};
use crate::fixture::kmsg::KernelLog;
use crate::fixture::{pattern, sh, sh_fails, Driver, Fs, Mapping, Mount, MIB, PAGE};
use crate::test::{Ctx, Suite};

pub fn suite(s: &mut Suite) {
    for fs in Fs::ALL {
        s.test(format!("stress_ng_{fs}"), move |ctx| stress_ng(ctx, fs))
            .limit(180)
            .tag(Tag::Stress);
        s.test(format!("fsx_{fs}"), move |ctx| fsx(ctx, fs))
            .limit(180)
            .tag(Tag::Stress);
        s.test(format!("fsx_direct_{fs}"), move |ctx| fsx_direct(ctx, fs))
            .limit(180)
            .tag(Tag::Stress);
        s.test(format!("lmdb_{fs}"), move |ctx| lmdb(ctx, fs))
            .limit(120)
            .tag(Tag::Stress);
        s.test(format!("sqlite_{fs}"), move |ctx| sqlite(ctx, fs))
            .limit(120)
            .tag(Tag::Stress);
        for kind in ["linear", "striped"] {
            s.test(format!("dm_{kind}_{fs}"), move |ctx| dm(ctx, fs, kind))
                .limit(120)
                .tag(Tag::Stress);
        }
        s.test(format!("luks_{fs}"), move |ctx| luks(ctx, fs))
            .limit(180)
            .tag(Tag::Stress);
        s.test(format!("write_and_store_{fs}"), move |ctx| {
            write_and_store(ctx, fs)
        })
        .tag(Tag::Stress)
        .c_is_wrong("ext4 gives out blocks before it has zeroed them (generic/346)");
        s.test(format!("mdadm_{fs}"), move |ctx| mdadm(ctx, fs))
            .limit(120)
            .tag(Tag::Stress);
    }
    s.test("tools", tools).limit(120);
    s.test("fstrim", fstrim).limit(120);
    s.test("udev", udev).limit(120).tag(Tag::RustOnly);
}

/// Pseudorandom numbers from a seed, the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 16) % limit
    }
}

/// Counters of the layer that a program moves which stores to mappings and makes that durable.
pub(super) const STORES: &[&str] = &["pte_write_faults+pmd_write_faults", "bytes_fsync"];
/// Counters that read(2) and write(2) move.
pub(super) const CALLS: &[&str] = &["bytes_read", "bytes_written"];

/// Runs `f` on a fresh file system in DAX mode. If the Rust layer serves it each of these counters, or one of
/// several joined by '+', must have moved. Then unmounts and checks the file system.
pub(super) fn served(
    ctx: &Ctx,
    fs: Fs,
    counters: &[&str],
    f: impl FnOnce(Dax) -> Result<Dax>,
) -> Result<()> {
    let driver = Driver::load(ctx, &[])?;
    let dax = Dax::on(driver.disk(0), fs)?;
    let read = || {
        let ours = !ctx.c_fs_dax();
        ours.then(|| Counters::of_layer(driver.disk(0))).transpose()
    };
    let before = read()?;
    f(dax)?.check()?;
    if let (Some(before), Some(now)) = (before, read()?) {
        for names in counters {
            let grown = names.split('+').map(|name| now.since(&before, name));
            let grown: u64 = grown.sum::<Result<u64>>()?;
            ensure!(grown > 0, "the layer's counter {names} has not moved");
        }
    }
    driver.unload()
}

/// The stressors of mappings, with their own verification; each has to get something done.
fn stress_ng(ctx: &Ctx, fs: Fs) -> Result<()> {
    const METRICS: &str = "/tmp/stress-ng.yaml";
    served(ctx, fs, STORES, |dax| {
        let dir = dax.mount.dir.display();
        let seconds = ctx.pick(1, 60);
        for (names, options) in [
            (&["mmap"][..], "--mmap 1 --mmap-bytes 8m --mmap-file"),
            (&["msync"], "--msync 1 --msync-bytes 8m"),
            (&["fallocate"], "--fallocate 1 --fallocate-bytes 16m"),
            (&["madvise"], "--madvise 1"),
            (&["fault"], "--fault 1"),
            (
                &["mmapfork", "mmap"],
                "--mmapfork 1 --mmap 1 --mmap-bytes 4m --mmap-file --mmap-async",
            ),
        ] {
            sh(format!(
                "stress-ng {options} --verify --temp-path {dir} --timeout {seconds}s --oom-avoid \
                 --metrics --yaml {METRICS}"
            ))?;
            let metrics = fs::read_to_string(METRICS)?;
            // In a short run one of two may not come to its turn.
            let done: Option<f64> = names.iter().map(|name| bogo_ops(&metrics, name)).sum();
            ensure!(
                done.is_some_and(|ops| ops > 0.0),
                "{names:?}: {done:?} bogo ops\n{metrics}"
            );
        }
        Ok(dax)
    })
}

/// What the file of stress-ng's --yaml says of a stressor.
fn bogo_ops(metrics: &str, name: &str) -> Option<f64> {
    let after = metrics
        .split("- stressor: ")
        .find(|part| part.lines().next().is_some_and(|l| l.trim() == name))?;
    let line = after
        .lines()
        .find_map(|l| l.trim().strip_prefix("bogo-ops:"))?;
    line.trim().parse().ok()
}

/// fsx of crates.io, run as a program: random operations on one file, every read checked.
fn fsx(ctx: &Ctx, fs: Fs) -> Result<()> {
    ensure!(
        Path::new("/usr/bin/fsx").exists(),
        "fsx is not installed (scripts/runner.sh does it)"
    );
    served(ctx, fs, &[STORES, CALLS].concat(), |dax| {
        run_fsx(&dax.mount, ctx.pick(1500, 30_000))?;
        Ok(dax)
    })
}

fn run_fsx(mount: &Mount, operations: u32) -> Result<()> {
    let config = "flen = 1048576\n\
        [weights]\n\
        close_open = 1\nread = 10\nwrite = 10\nmapread = 10\nmapwrite = 10\ninvalidate = 1\n\
        truncate = 3\nfsync = 1\nfdatasync = 1\npunch_hole = 5\nposix_fallocate = 3\n\
        sendfile = 2\ncopy_file_range = 3\nposix_fadvise = 1\n";
    fs::write("/tmp/fsx.toml", config)?;
    let file = mount.path("fsx");
    sh(format!(
        "fsx -f /tmp/fsx.toml -N {operations} -S 7 -P /tmp {}",
        file.display()
    ))?;
    Ok(())
}

/// The same kind of operations with O_DIRECT, which that fsx has not.
fn fsx_direct(ctx: &Ctx, fs: Fs) -> Result<()> {
    const LIMIT: u64 = MIB;
    const SECTOR: u64 = 512;
    served(ctx, fs, &[STORES, CALLS].concat(), |dax| {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .custom_flags(libc::O_DIRECT)
            .open(dax.mount.path("direct"))?;
        let mut good: Vec<u8> = Vec::new();
        let mut random = Random(0x5eed + fs as u64);
        for step in 0..ctx.pick(1500u64, 30_000) {
            let offset = random.below(LIMIT / SECTOR - 1) * SECTOR;
            let len = (1 + random.below(128)).min((LIMIT - offset) / SECTOR) * SECTOR;
            let size = good.len() as u64;
            let inside = (offset + len).min(size).saturating_sub(offset);
            let (from, to) = (offset as usize, (offset + len) as usize);
            let what = || format!("step {step} at {offset:#x}+{len:#x}, size {size:#x}");
            match random.below(16) {
                0..=3 => {
                    let data = pattern(step, offset, len as usize);
                    write_at(&file, offset, &data).with_context(what)?;
                    good.resize(good.len().max(to), 0);
                    good[from..to].copy_from_slice(&data);
                }
                4..=6 if inside > 0 => {
                    let got = read_at(&file, offset, inside as usize).with_context(what)?;
                    same(&what(), &got, &good[from..from + inside as usize])?;
                }
                7..=10 if inside > 0 => {
                    let map = Mapping::shared(&file, 0, size)?;
                    let data = pattern(step, offset, inside as usize);
                    map.write(offset, &data);
                    good[from..from + inside as usize].copy_from_slice(&data);
                    if random.below(2) == 0 {
                        map.msync(offset & !(PAGE - 1), inside)?;
                    }
                }
                11 | 12 if inside > 0 => {
                    let map = Mapping::shared(&file, 0, size)?;
                    let got = map.read(offset, inside as usize);
                    same(&what(), &got, &good[from..from + inside as usize])?;
                }
                13 => {
                    file.set_len(offset)?;
                    good.resize(from, 0);
                }
                14 => {
                    // FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
                    fallocate(&file, 3, offset, len)?;
                    if inside > 0 {
                        good[from..from + inside as usize].fill(0);
                    }
                }
                _ => file.sync_data()?,
            }
        }
        file.sync_all()?;
        drop(file);
        let dax = dax.remount()?;
        same(
            "after a remount",
            &fs::read(dax.mount.path("direct"))?,
            &good,
        )?;
        Ok(dax)
    })
}

/// What generic/346 does: two threads go over the pages of a preallocated file, one with write(2),
/// the other with stores to a mapping, each to its own bytes. Nothing may be lost.
fn write_and_store(ctx: &Ctx, fs: Fs) -> Result<()> {
    const SIZE: u64 = 16 * MIB;
    const PLACES: [u64; 2] = [1024, 3072];
    let counters = ["pte_write_faults+pmd_write_faults", "bytes_written"];
    served(ctx, fs, &counters, |dax| {
        let mount = &dax.mount;
        for round in 0..ctx.pick(4u8, 40) {
            let file = mount.allocate("f", SIZE)?;
            let map = Mapping::shared(&file, 0, SIZE)?;
            let marks = [2 * round + 1, 2 * round + 2].map(|m| [m; 8]);
            let pages = || (0..SIZE).step_by(PAGE as usize);
            std::thread::scope(|scope| {
                let writer = scope.spawn(|| -> Result<()> {
                    for page in pages() {
                        file.write_all_at(&marks[0], page + PLACES[0])?;
                    }
                    Ok(())
                });
                for page in pages() {
                    map.write(page + PLACES[1], &marks[1]);
                }
                writer.join().expect("the writer panicked")
            })?;
            for page in pages() {
                for (place, mark) in PLACES.into_iter().zip(&marks) {
                    let what = format!("round {round}, page at {page:#x}, byte {place}");
                    same(&what, &map.read(page + place, 8), mark)?;
                }
            }
            drop((map, file));
            fs::remove_file(mount.path("f"))?;
        }
        Ok(dax)
    })
}

/// LMDB with a writable map: its pages are stored to through the mapping and msynced, while another
/// thread reads snapshots.
fn lmdb(ctx: &Ctx, fs: Fs) -> Result<()> {
    type Table = Database<U64<BigEndian>, Bytes>;
    served(ctx, fs, STORES, |mut dax| {
        let mut good: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        let mut random = Random(0x1db + fs as u64);
        let open = |path: PathBuf| -> Result<(Env, Table)> {
            let mut options = EnvOpenOptions::new();
            options.map_size(32 << 20);
            // SAFETY: nobody else has the file open.
            let env = unsafe {
                options.flags(EnvFlags::WRITE_MAP | EnvFlags::NO_SUB_DIR);
                options.open(path)?
            };
            let mut txn = env.write_txn()?;
            let table: Table = env.create_database(&mut txn, None)?;
            txn.commit()?;
            Ok((env, table))
        };
        for round in 0..2u64 {
            let (env, table) = open(dax.mount.path("lmdb"))?;
            // Of the round before, after a remount.
            expect_entries(&env, &table, &good)?;
            let done = AtomicBool::new(false);
            std::thread::scope(|scope| -> Result<()> {
                let reader = scope.spawn(|| -> Result<u32> {
                    let mut snapshots = 0;
                    while !done.load(Relaxed) {
                        let txn = env.read_txn()?;
                        let (len, there) = (table.len(&txn)?, table.iter(&txn)?.count());
                        ensure!(len == there as u64, "{there} entries of {len}");
                        snapshots += 1;
                    }
                    Ok(snapshots)
                });
                let mut write = || -> Result<()> {
                    for number in 0..ctx.pick(40u64, 800) {
                        let mut txn = env.write_txn()?;
                        let mut next = good.clone();
                        for i in 0..20 {
                            let key = random.below(2000);
                            if random.below(4) == 0 {
                                let there = table.delete(&mut txn, &key)?;
                                ensure!(
                                    there == next.remove(&key).is_some(),
                                    "key {key}: there is {there}"
                                );
                            } else {
                                let len = random.below(6000) as usize;
                                let value = pattern((round << 32) | (number << 8) | i, key, len);
                                table.put(&mut txn, &key, &value)?;
                                next.insert(key, value);
                            }
                        }
                        // Some are taken back.
                        if random.below(8) == 0 {
                            txn.abort();
                        } else {
                            txn.commit()?;
                            good = next;
                        }
                    }
                    Ok(())
                };
                let written = write();
                done.store(true, Relaxed);
                let snapshots = reader.join().expect("the reader panicked")?;
                println!("round {round}: {snapshots} snapshots");
                written
            })?;
            expect_entries(&env, &table, &good)?;
            env.prepare_for_closing().wait();
            dax = dax.remount()?;
        }
        let (env, table) = open(dax.mount.path("lmdb"))?;
        expect_entries(&env, &table, &good)?;
        env.prepare_for_closing().wait();
        let said = sh(format!("mdb_stat -n {}", dax.mount.path("lmdb").display()))?;
        let want = format!("Entries: {}", good.len());
        ensure!(said.lines().any(|l| l.trim() == want), "mdb_stat: {said}");
        Ok(dax)
    })
}

fn expect_entries(
    env: &Env,
    table: &Database<U64<BigEndian>, Bytes>,
    good: &BTreeMap<u64, Vec<u8>>,
) -> Result<()> {
    let txn = env.read_txn()?;
    let len = table.len(&txn)?;
    ensure!(
        len == good.len() as u64,
        "{len} entries, not {}",
        good.len()
    );
    for (entry, (key, value)) in table.iter(&txn)?.zip(good) {
        let (k, v) = entry?;
        ensure!(k == *key, "key {k}, not {key}");
        same(&format!("key {key}"), v, value)?;
    }
    Ok(())
}

/// SQLite that reads and (in WAL mode) shares its index through mappings.
fn sqlite(ctx: &Ctx, fs: Fs) -> Result<()> {
    let counters = ["pte_read_faults+pmd_read_faults", "bytes_written"];
    served(ctx, fs, &counters, |mut dax| {
        for mode in ["wal", "delete"] {
            let path = dax.mount.path(&format!("{mode}.db"));
            let open = || -> Result<Connection> {
                let db = Connection::open(&path)?;
                let got: String =
                    db.query_row(&format!("PRAGMA journal_mode={mode}"), [], |r| r.get(0))?;
                ensure!(got == mode, "journal_mode is {got}, not {mode}");
                let mmap: i64 = db.query_row("PRAGMA mmap_size=67108864", [], |r| r.get(0))?;
                ensure!(mmap == 64 << 20, "mmap_size is {mmap}");
                Ok(db)
            };
            let mut db = open()?;
            db.execute_batch(
                "CREATE TABLE t (k INTEGER PRIMARY KEY, v BLOB); CREATE INDEX i ON t (v)",
            )?;
            let mut good: BTreeMap<i64, Vec<u8>> = BTreeMap::new();
            let mut random = Random(0x5ca1e + fs as u64);
            for number in 0..ctx.pick(20u64, 400) {
                let txn = db.transaction()?;
                let mut next = good.clone();
                for _ in 0..20 {
                    let key = random.below(500) as i64;
                    if random.below(4) == 0 {
                        txn.execute("DELETE FROM t WHERE k = ?1", [key])?;
                        next.remove(&key);
                    } else {
                        let value = pattern(number, key as u64, random.below(5000) as usize);
                        txn.execute(
                            "INSERT OR REPLACE INTO t VALUES (?1, ?2)",
                            params![key, value],
                        )?;
                        next.insert(key, value);
                    }
                }
                if random.below(8) == 0 {
                    txn.rollback()?;
                } else {
                    txn.commit()?;
                    good = next;
                }
            }
            db.close().map_err(|(_, e)| e)?;
            dax = dax.remount()?;
            let db = open()?;
            let verdict: String = db.query_row("PRAGMA integrity_check", [], |r| r.get(0))?;
            ensure!(verdict == "ok", "integrity_check: {verdict}");
            let mut statement = db.prepare("SELECT k, v FROM t ORDER BY k")?;
            let rows =
                statement.query_map([], |r| Ok((r.get::<_, i64>(0)?, r.get::<_, Vec<u8>>(1)?)))?;
            let rows: BTreeMap<_, _> = rows.collect::<rusqlite::Result<_>>()?;
            ensure!(rows == good, "{mode}: the rows are not those committed");
        }
        Ok(dax)
    })
}

/// Writes a file through a mapping, fsyncs, and finds its bytes on the block device below the
/// file system, then again after a remount.
fn write_and_find(made: &Made, options: &str) -> Result<()> {
    const SIZE: u64 = 8 * MIB;
    let mount = made.mount(options)?;
    let data = pattern(3, 0, SIZE as usize);
    let file = mount.create("data")?;
    file.set_len(SIZE)?;
    let map = Mapping::shared(&file, 0, SIZE)?;
    map.write(0, &data);
    file.sync_all()?;
    let raw = File::options()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(&made.device)?;
    for (page, want) in (0..SIZE)
        .step_by(PAGE as usize)
        .zip(data.chunks(PAGE as usize))
    {
        let got = read_at(&raw, physical(&file, page)?, PAGE as usize)?;
        same(&format!("{} at page {page:#x}", made.device), &got, want)?;
    }
    drop((map, file));
    let mount = mount.remount()?;
    same("after a remount", &fs::read(mount.path("data"))?, &data)?;
    mount.unmount()?.check()
}

/// Device mapper hands DAX through: the file system's superblock is on the dm device, the
/// memory is ours.
fn dm(ctx: &Ctx, fs: Fs, kind: &str) -> Result<()> {
    let driver = Driver::load(ctx, &[])?;
    let disks = driver.disks();
    ensure!(disks.len() == 2, "two disks are needed");
    // In sectors; whole stripes of 2 MiB.
    let sizes = [(disks[0].size / 512) & !4095, (disks[1].size / 512) & !4095];
    let table = match kind {
        "linear" => format!(
            "0 {} linear {} 0\\n{} {} linear {} 0",
            sizes[0], disks[0].path, sizes[0], sizes[1], disks[1].path
        ),
        _ => format!(
            "0 {} striped 2 4096 {} 0 {} 0",
            2 * sizes[0].min(sizes[1]),
            disks[0].path,
            disks[1].path
        ),
    };
    sh(format!("printf '{table}\\n' | dmsetup create both"))?;
    sh("dmsetup mknodes both")?;
    let made = fs.make_on("/dev/mapper/both", &[])?;
    let mount = made.mount("dax=always")?;
    fs::write(mount.path("f"), "x")?;
    ensure!(is_dax(&mount.path("f"))?, "no DAX through dm-{kind}");
    mount.unmount()?;
    for _ in 0..ctx.pick(1, 20) {
        write_and_find(&made, "dax=always")?;
    }

    // A file over both disks. Where its bytes are on them is what the table says.
    let below = |at: u64| match kind {
        "linear" if at < sizes[0] * 512 => (0, at),
        "linear" => (1, at - sizes[0] * 512),
        _ => {
            let (stripe, inside) = (at / (2 * MIB), at % (2 * MIB));
            ((stripe % 2) as usize, stripe / 2 * 2 * MIB + inside)
        }
    };
    let raw = [disks[0].open_direct()?, disks[1].open_direct()?];
    let mount = made.mount("dax=always")?;
    let size = fs::read_to_string("/sys/block/dm-0/size")?
        .trim()
        .parse::<u64>()?
        * 512;
    let big = (size / 4 * 3) & !(PAGE - 1);
    let file = mount.allocate("big", big)?;
    let places = || {
        (0..big - PAGE)
            .step_by(5 * MIB as usize)
            .chain([big - PAGE])
    };
    for offset in places() {
        let map = Mapping::shared(&file, offset, PAGE)?;
        map.write(0, &pattern(5, offset, PAGE as usize));
    }
    file.sync_all()?;
    let mut met = [0; 2];
    for offset in places() {
        let (disk, at) = below(physical(&file, offset)?);
        met[disk] += 1;
        let got = read_at(&raw[disk], at, PAGE as usize)?;
        let what = format!("big at {offset:#x}, disk {disk} at {at:#x}");
        same(&what, &got, &pattern(5, offset, PAGE as usize))?;
    }
    ensure!(!met.contains(&0), "pages on the disks: {met:?}");
    drop((file, raw));
    let mount = mount.remount()?;
    let file = mount.open("big")?;
    for offset in places() {
        let got = read_at(&file, offset, PAGE as usize)?;
        let what = format!("big at {offset:#x}");
        same(&what, &got, &pattern(5, offset, PAGE as usize))?;
    }
    drop(file);
    // No more in stress: the kernel's C, which serves files behind device mapper, warns in
    // dax_disassociate_entry() some thousand operations later.
    run_fsx(&mount, 300)?;
    mount.unmount()?.check()?;
    sh("dmsetup remove both")?;
    driver.unload()
}

/// What can have no DAX says so: ext4 refuses the mount, xfs goes on without.
fn expect_no_dax(made: &Made) -> Result<()> {
    let mut log = KernelLog::open()?;
    match made.fs {
        Fs::Ext4 => {
            let refused = made.mount("dax=always").map(drop);
            let error = refused.err().context("mounted -o dax=always")?;
            ensure!(
                error.downcast_ref() == Some(&Errno::EINVAL),
                "{}: {error:#}",
                made.device
            );
        }
        Fs::Xfs => {
            let mount = made.mount("dax=always")?;
            fs::write(mount.path("f"), "x")?;
            ensure!(
                !is_dax(&mount.path("f"))?,
                "a file on {} is in DAX mode",
                made.device
            );
            mount.unmount()?;
        }
    }
    let said = log.drain();
    ensure!(
        said.iter().any(|m| m.text.contains("DAX unsupported")),
        "the kernel does not say why: {said:?}"
    );
    Ok(())
}

/// For mkfs: the log that mkfs.xfs takes by itself on a device a little smaller than our disks
/// is smaller than it allows.
fn small(fs: Fs) -> &'static [&'static str] {
    match fs {
        Fs::Ext4 => &[],
        Fs::Xfs => &["-l", "size=64m", "-d", "agcount=2"],
    }
}

/// LUKS over a disk: no DAX, and what was fsynced is there after the device was closed.
fn luks(ctx: &Ctx, fs: Fs) -> Result<()> {
    let driver = Driver::load(ctx, &[])?;
    let disk = &driver.disk(0).path;
    fs::write("/tmp/key", "correct horse battery staple")?;
    sh(format!(
        "cryptsetup luksFormat -q --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 \
         --key-file /tmp/key {disk}"
    ))?;
    let open = format!("cryptsetup open --key-file /tmp/key {disk} secret");
    sh(&open)?;
    let made = fs.make_on("/dev/mapper/secret", small(fs))?;
    expect_no_dax(&made)?;
    for _ in 0..ctx.pick(1, 20) {
        write_and_find(&made, "")?;
    }
    // Only what was fsynced may be relied upon: the file system is shut down before it can write more.
    let mount = made.mount("")?;
    let data = pattern(9, 0, MIB as usize);
    fs::write(mount.path("kept"), &data)?;
    mount.open("kept")?.sync_all()?;
    fs::File::open(&mount.dir)?.sync_all()?;
    shutdown(&mount)?;
    mount.unmount()?;
    sh("cryptsetup close secret")?;
    sh(&open)?;
    let mount = made.mount("")?;
    same(
        "after closing and opening",
        &fs::read(mount.path("kept"))?,
        &data,
    )?;
    mount.unmount()?;
    sh("cryptsetup close secret")?;
    driver.unload()
}

/// RAID-1 of both disks: no DAX, each half has the data.
fn mdadm(ctx: &Ctx, fs: Fs) -> Result<()> {
    let driver = Driver::load(ctx, &[])?;
    let (a, b) = (&driver.disk(0).path, &driver.disk(1).path);
    // --assume-clean: nothing to copy; --bitmap=none: nothing but data is written later.
    sh(format!(
        "yes | mdadm --create /dev/md0 --level=1 --raid-devices=2 --assume-clean --bitmap=none \
         --metadata=1.0 {a} {b}"
    ))?;
    let made = fs.make_on("/dev/md0", small(fs))?;
    expect_no_dax(&made)?;
    for _ in 0..ctx.pick(1, 20) {
        write_and_find(&made, "")?;
    }
    let mount = made.mount("")?;
    let data = pattern(11, 0, MIB as usize);
    fs::write(mount.path("kept"), &data)?;
    mount.unmount()?;
    sh("mdadm --stop /dev/md0")?;
    // With metadata 1.0, at the end, each half is the file system itself.
    for half in [a, b] {
        let made = Made {
            fs,
            device: half.clone(),
        };
        let mount = made.mount("ro")?;
        same(
            &format!("half {half}"),
            &fs::read(mount.path("kept"))?,
            &data,
        )?;
        mount.unmount()?;
    }
    sh(format!("mdadm --zero-superblock {a} {b}"))?;
    driver.unload()
}

/// With the rules that `make modules_install` installs, udev has links for the file systems on our disks
/// and partitions, and looks again when somebody has written to one.
fn udev(ctx: &Ctx) -> Result<()> {
    const RULES: &str = include_str!("../../../../drivers/pmem/60-rpmem.rules");
    const UUID: [&str; 2] = [
        "5eed0000-0000-4000-8000-000000000001",
        "5eed0000-0000-4000-8000-000000000002",
    ];
    fs::create_dir_all("/run/udev")?;
    fs::create_dir_all("/etc/udev/rules.d")?;
    fs::write("/etc/udev/rules.d/60-rpmem.rules", RULES)?;
    let mut daemon = Command::new("/usr/bin/udevadm")
        .arg0("/usr/lib/systemd/systemd-udevd")
        .spawn()
        .context("udevd")?;
    let links = || -> Result<()> {
        // Up when it answers.
        sh("for i in $(seq 100); do udevadm control --ping 2>/dev/null && exit; sleep 0.1; done; exit 1")?;
        let driver = Driver::load(ctx, &[])?;
        let path = &driver.disk(0).path;
        // A disk is looked at again when somebody closes it, once it has been looked at.
        let settle = || sh("udevadm settle --timeout=30");
        settle()?;
        for (uuid, label) in UUID.into_iter().zip(["one", "two"]) {
            Fs::Ext4.make_on(path, &["-U", uuid, "-L", label])?;
            for link in [format!("by-uuid/{uuid}"), format!("by-label/{label}")] {
                expect_link(&link, &driver.disk(0).name)?;
            }
            settle()?;
        }
        ensure!(
            fs::symlink_metadata("/dev/disk/by-label/one").is_err(),
            "the first label is still there"
        );
        sh(format!(
            "wipefs -q -a {path} && printf 'label: gpt\\nsize=64MiB,name=part,uuid={}\\n' | sfdisk -q {path}",
            UUID[0]
        ))?;
        for link in [
            format!("by-partuuid/{}", UUID[0]),
            "by-partlabel/part".into(),
        ] {
            expect_link(&link, &format!("{}p1", driver.disk(0).name))?;
        }
        sh(format!(
            "wipefs -q -a {path} && sfdisk -q --delete {path}; wipefs -q -a {path}"
        ))?;
        settle()?;
        driver.unload()?;
        settle().map(drop)
    };
    let result = links();
    daemon.kill()?;
    daemon.wait()?;
    fs::remove_file("/etc/udev/rules.d/60-rpmem.rules")?;
    result
}

/// Waits for a link in /dev/disk to a disk.
fn expect_link(link: &str, disk: &str) -> Result<()> {
    let path = Path::new("/dev/disk").join(link);
    let want = Path::new("../..").join(disk);
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let found = fs::read_link(&path);
        if found.as_ref().is_ok_and(|found| *found == want) {
            return Ok(());
        }
        ensure!(Instant::now() < end, "{}: {found:?}", path.display());
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// What the tools that look at disks say.
fn tools(ctx: &Ctx) -> Result<()> {
    let driver = Driver::load(ctx, &[])?;
    let disk = driver.disk(0);
    let path = &disk.path;

    let line = sh(format!(
        "lsblk -b -n -d -o NAME,SIZE,RO,DAX,ROTA,TYPE {path}"
    ))?;
    let fields: Vec<_> = line.split_whitespace().collect();
    let size = disk.size.to_string();
    ensure!(
        fields == [&disk.name, &size, "0", "1", "0", "disk"],
        "lsblk: {line}"
    );

    let mount = Fs::Ext4
        .make_on(path, &["-L", "label"])?
        .mount("dax=always")?;
    let said = sh(format!("blkid -p -o export {path}"))?;
    ensure!(
        said.contains("TYPE=ext4") && said.contains("LABEL=label"),
        "blkid: {said}"
    );
    let said = sh(format!(
        "findmnt -n -o SOURCE,FSTYPE,OPTIONS {}",
        mount.dir.display()
    ))?;
    ensure!(
        said.contains(path.as_str()) && said.contains("dax=always"),
        "findmnt: {said}"
    );
    // In use, it is not to be wiped by accident.
    sh_fails(format!("wipefs -a {path}"))?;
    mount.unmount()?;
    sh(format!("wipefs -q -a {path}"))?;
    let said = sh(format!("blkid -p {path}; true"))?;
    ensure!(said.is_empty(), "blkid after wipefs: {said}");

    // Partitions, aligned, have DAX as well.
    sh(format!(
        "printf 'start=2MiB,size=128MiB\\n,\\n' | sfdisk -q {path}"
    ))?;
    let part = format!("{path}p1");
    ensure!(Path::new(&part).exists(), "no {part} after sfdisk");
    let made = Fs::Ext4.make_on(&part, &[])?;
    let mount = made.mount("dax=always")?;
    fs::write(mount.path("f"), "x")?;
    ensure!(is_dax(&mount.path("f"))?, "no DAX on a partition");
    mount.unmount()?;
    write_and_find(&made, "dax=always")?;
    sh(format!("sfdisk -q --delete {path} && wipefs -q -a {path}"))?;

    // ndctl and daxctl know the nvdimm bus: with nd_pmem the namespaces, with ours none, and
    // no complaint.
    let said = sh("ndctl list -N")?;
    ensure!(
        said.contains("pmem0") == (ctx.on == On::C),
        "ndctl list: {said}"
    );
    let said = sh("daxctl list")?;
    ensure!(!said.contains("chardev"), "daxctl list: {said}");
    driver.unload()
}

/// fstrim: does it or says that it cannot, as the disk's limits say.
fn fstrim(ctx: &Ctx) -> Result<()> {
    let driver = Driver::load(ctx, &[])?;
    let disk = driver.disk(0);
    let can = disk.sysfs("queue/discard_max_bytes")? != "0";
    for fs in Fs::ALL {
        let dax = Dax::on(disk, fs)?;
        let mount = &dax.mount;
        let data = pattern(1, 0, MIB as usize);
        fs::write(mount.path("kept"), &data)?;
        mount.open("kept")?.sync_all()?;
        let command = format!("fstrim -v {}", mount.dir.display());
        if can {
            sh(command)?;
        } else {
            let said = sh_fails(command)?;
            ensure!(said.contains("not supported"), "fstrim: {said}");
        }
        let dax = dax.remount()?;
        same("after fstrim", &fs::read(dax.mount.path("kept"))?, &data)?;
        dax.check()?;
    }
    driver.unload()
}
