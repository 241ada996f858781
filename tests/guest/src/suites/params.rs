// SPDX-License-Identifier: GPL-2.0

//! Parameters and ranges: each wrong one gives its errno and one line in the log.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{bail, ensure, Context, Result};
use nix::errno::Errno;
use nix::kmod::{delete_module, init_module, DeleteModuleFlags};
use proto::{Machine, RangeKind, Tag, MIB, PMEM_BASE};

use crate::fixture::driver::{insmod, iomem, ranges, rmmod, Driver, FILE, UNLOAD_C};
use crate::fixture::io::{read_at, same, write_at};
use crate::fixture::{pattern, sh, KernelLog, Mapping, MODULE, PAGE};
use crate::test::{Ctx, Skip, Suite};

pub fn suite(s: &mut Suite) {
    s.test("bad_parameters", bad_parameters)
        .tag(Tag::RustOnly)
        .tag(Tag::Smoke);
    s.test("hook_taken", hook_taken)
        .tag(Tag::RustOnly)
        .tag(Tag::Smoke);
    s.test("no_hook", no_hook)
        .tag(Tag::RustOnly)
        .tag(Tag::Smoke);
    s.test("explicit_legacy_range", explicit_legacy_range)
        .tag(Tag::RustOnly);
    s.test("held_by_nd_pmem", held_by_nd_pmem)
        .tag(Tag::RustOnly);
    s.test("one_held_by_nd_pmem", one_held_by_nd_pmem)
        .tag(Tag::RustOnly);
    s.test("other_format", other_format).tag(Tag::RustOnly);
    s.test("no_write_back", |_: &Ctx| {
        refused(&[], Errno::ENODEV, "cannot write cache lines back")
    })
    .tag(Tag::RustOnly)
    .machine(Machine::default().cpu("max,-clwb,-clflushopt,-clflush"));
    s.test("no_range", no_range)
        .tag(Tag::RustOnly)
        .machine(Machine::bare());
    s.test("reserved_range", reserved_range)
        .tag(Tag::RustOnly)
        .machine(Machine::bare().reserved(64));
    // 1 MiB off at the start and at the end; the second has no aligned 2 MiB in it.
    s.test("unaligned_ranges", unaligned_ranges)
        .tag(Tag::RustOnly)
        .machine(
            Machine::bare()
                .range(PMEM_BASE + MIB, 64 * MIB, RangeKind::Legacy)
                .range(PMEM_BASE + 129 * MIB, 2 * MIB, RangeKind::Legacy),
        );
    s.test("other_format_before_aligned", other_format_before_aligned)
        .tag(Tag::RustOnly)
        .machine(Machine::bare().range(PMEM_BASE + MIB, 64 * MIB, RangeKind::Legacy));
    s.test("only_unusable_ranges", only_unusable_ranges)
        .tag(Tag::RustOnly)
        .machine(Machine::bare().range(PMEM_BASE + MIB, 2 * MIB, RangeKind::Legacy));
}

/// insmod that must fail with `errno`, one line of the module at error level in the log saying
/// `text`, and nothing left behind.
fn refused(params: &[&str], errno: Errno, text: &str) -> Result<()> {
    let mut log = KernelLog::open()?;
    let before = std::fs::read_to_string("/proc/iomem")?;
    let result = insmod(params);
    let lines: Vec<_> = log.drain();
    for line in &lines {
        println!("<{}> {}", line.level, line.text);
    }
    if result.is_ok() {
        rmmod().context("rmmod after a load that should have failed")?;
    }
    ensure!(
        result == Err(errno),
        "insmod {params:?}: {result:?}, not {errno}"
    );
    let errors: Vec<_> = lines.iter().filter(|m| m.level <= 3).collect();
    ensure!(
        errors.len() == 1,
        "insmod {params:?}: {} error lines",
        errors.len()
    );
    ensure!(
        errors[0].text.contains(text),
        "insmod {params:?} says '{}', without '{text}'",
        errors[0].text
    );
    ensure!(
        std::fs::read_to_string("/proc/iomem")? == before,
        "/proc/iomem changed"
    );
    ensure!(
        std::fs::metadata("/sys/module/rust_pmem").is_err(),
        "still there"
    );
    Ok(())
}

fn bad_parameters(_ctx: &Ctx) -> Result<()> {
    let (start, size) = ranges()?[0];
    let inside = format!("phys_addr={start:#x}");
    let beyond = format!("size={:#x}", size + 64 * MIB);
    // Nothing is behind the last one.
    let (start, size) = ranges()?[1];
    let last = format!("phys_addr={start:#x}");
    let over = format!("size={:#x}", size + 64 * MIB);
    for (params, text) in [
        (vec!["phys_addr=x", "size=64M"], "phys_addr="),
        (vec!["phys_addr=-1", "size=64M"], "phys_addr="),
        (vec!["phys_addr=4G4", "size=64M"], "phys_addr="),
        (
            vec!["phys_addr=99999999999999999999", "size=64M"],
            "phys_addr=",
        ),
        (vec!["phys_addr=", "size=64M"], "phys_addr="),
        (vec!["phys_addr=4G", "size=abc"], "size="),
        (vec!["phys_addr=4G", "size=0"], "size="),
        (vec!["phys_addr=4G", "size="], "size="),
        (vec!["phys_addr=4G"], "size="),
        (vec!["size=64M"], "phys_addr="),
        (vec!["phys_addr=0x100001000", "size=64M"], "2M"),
        (vec!["phys_addr=4G", "size=1M"], "2M"),
        (vec!["phys_addr=0xffffffffffe00000", "size=4M"], "beyond"),
        // System RAM, and memory that is nobody's.
        (vec!["phys_addr=512M", "size=64M"], "System RAM"),
        (vec!["phys_addr=64G", "size=64M"], "not set aside"),
        (vec![&inside, &beyond], "System RAM"),
        (vec![&last, &over], "not set aside as a whole"),
    ] {
        refused(&params, Errno::EINVAL, text)?;
    }
    // Booleans and numbers are the kernel's to parse.
    for params in [
        ["fs_dax=2"],
        ["flush_on_unmap=perhaps"],
        ["fault_around=x"],
        ["fault_around_write=-1"],
    ] {
        refused(&params, Errno::EINVAL, "invalid for parameter")?;
    }
    Ok(())
}

/// Somebody else has redirected the functions already: EBUSY, and nothing is left behind. That is a
/// second module of the same code.
fn hook_taken(ctx: &Ctx) -> Result<()> {
    const OTHER: &str = "other_dax";
    let named = |name: &str| [name.as_bytes(), b"\0"].concat();
    let (from, to) = (named(MODULE), named(OTHER));
    let mut module = std::fs::read(FILE)?;
    let mut at = 0;
    while let Some(i) = module[at..].windows(from.len()).position(|w| w == from) {
        module[at + i..][..to.len()].copy_from_slice(&to);
        at += i + to.len();
    }
    let range = |i: usize| -> Result<[String; 2]> {
        let (start, _) = ranges()?[i];
        Ok([format!("phys_addr={start:#x}"), "size=64M".into()])
    };
    let params = std::ffi::CString::new(range(0)?.join(" "))?;
    init_module(&module, &params).context("the other module")?;
    let [address, size] = range(1)?;
    let result = refused(
        &[&address, &size],
        Errno::EBUSY,
        "cannot be redirected (EBUSY): a livepatch has one of them",
    );
    let name = std::ffi::CString::new(OTHER)?;
    delete_module(&name, DeleteModuleFlags::O_NONBLOCK)?;
    result?;
    Driver::load(ctx, &[])?.unload()
}

/// Without function tracing nothing can be hooked: EBUSY, and the message names the way out, which
/// works.
fn no_hook(ctx: &Ctx) -> Result<()> {
    const ENABLED: &str = "/proc/sys/kernel/ftrace_enabled";
    // 7.3 has the file, but what it says is so for ever: it cannot come to this. EBUSY instead
    // would be a hook that somebody left behind.
    match std::fs::write(ENABLED, "0") {
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => bail!(Skip(format!(
            "function tracing cannot be switched off: {e}"
        ))),
        result => result.context(ENABLED)?,
    }
    let result = (|| {
        refused(&[], Errno::EBUSY, "ftrace_enabled is 0; load with fs_dax=0")?;
        let driver = Driver::load(ctx, &["fs_dax=0"])?;
        write_at(&driver.disk(0).open_direct()?, 0, &[1; 4096])?;
        driver.unload()
    })();
    std::fs::write(ENABLED, "1")?;
    result?;
    Driver::load(ctx, &[])?.unload()
}

/// phys_addr= and size= take a part of a legacy range, and no other range.
fn explicit_legacy_range(ctx: &Ctx) -> Result<()> {
    let (start, _) = ranges()?[1];
    let driver = Driver::load(
        ctx,
        &[&format!("phys_addr={:#x}", start + 2 * MIB), "size=64M"],
    )?;
    ensure!(driver.disks().len() == 1, "{} disks", driver.disks().len());
    let disk = driver.disk(0);
    ensure!(
        disk.start == start + 2 * MIB && disk.size == 64 * MIB,
        "{disk:?}"
    );
    Ok(())
}

/// All ranges are nd_pmem's: EBUSY, and the message names the remedy.
fn held_by_nd_pmem(_ctx: &Ctx) -> Result<()> {
    sh("modprobe nd_pmem && modprobe nd_e820 && \
        for i in $(seq 100); do [ -e /dev/pmem0 -a -e /dev/pmem1 ] && break; sleep 0.1; done")?;
    let mut log = KernelLog::open()?;
    refused(&[], Errno::EBUSY, "in use")?;
    let remedy = log.drain_matching("blacklist=nd_e820");
    ensure!(
        remedy.len() == 2,
        "{} lines name the remedy, not one per range",
        remedy.len()
    );
    sh(UNLOAD_C)?;
    Ok(())
}

/// One of two ranges is nd_pmem's: the other is used.
fn one_held_by_nd_pmem(ctx: &Ctx) -> Result<()> {
    sh("modprobe nd_pmem && modprobe nd_e820 && \
        for i in $(seq 100); do [ -e /dev/pmem0 -a -e /dev/pmem1 ] && break; sleep 0.1; done; \
        r=$(cat /sys/block/pmem1/device/resource); \
        echo namespace1.0 >/sys/bus/nd/drivers/nd_pmem/unbind; [ ! -e /dev/pmem1 ]")?;
    let mut log = KernelLog::open()?;
    let driver = Driver::load(ctx, &[])?;
    ensure!(driver.disks().len() == 1, "{} disks", driver.disks().len());
    let held = crate::fixture::driver::iomem("namespace0.0")
        .or_else(|_| iomem("pmem0"))
        .context("nd_pmem's range")?;
    ensure!(driver.disk(0).start != held.0, "took nd_pmem's range");
    ensure!(
        log.drain_matching("blacklist=nd_e820").len() == 1,
        "no line names the remedy"
    );
    write_at(&driver.disk(0).open_direct()?, 0, &[1; 4096])?;
    driver.unload()?;
    sh(UNLOAD_C)?;
    Ok(())
}

/// A range that nd_pmem has formatted otherwise than as a plain disk is left alone; the others are not.
/// Named by parameters it is EBUSY.
fn other_format(_ctx: &Ctx) -> Result<()> {
    let (start, _) = ranges()?[0];
    let memory = File::options().write(true).open("/dev/mem")?;
    let put = |bytes: &[u8]| memory.write_all_at(bytes, start + 4096).context("/dev/mem");
    let result = [
        ("NVDIMM_PFN_INFO\0", "mode fsdax"),
        ("NVDIMM_DAX_INFO\0", "mode devdax"),
        ("BTT_ARENA_INFO\0\0", "mode sector"),
    ]
    .into_iter()
    .try_for_each(|(signature, text)| {
        put(signature.as_bytes())?;
        let mut log = KernelLog::open()?;
        insmod(&[])?;
        let lines = log.drain_matching(text);
        let disks = [0, 1].map(|n| Path::new(&format!("/dev/rpmem{n}")).exists());
        rmmod()?;
        ensure!(lines.len() == 1, "{} lines say '{text}'", lines.len());
        ensure!(disks == [true, false], "disks: {disks:?}");
        Ok(())
    });
    // By name as well, in whole or in part.
    let named = |start| [format!("phys_addr={start}"), format!("size={}", 64 * MIB)];
    let alone = [start, start + 64 * MIB].map(|start| {
        let [start, size] = named(start);
        refused(&[&start, &size], Errno::EBUSY, "by its format")
    });
    put(&[0; 16])?;
    result?;
    for alone in alone {
        alone?;
    }
    let [start, size] = named(start);
    insmod(&[&start, &size])?;
    rmmod()?;
    Ok(())
}

/// The namespace begins where the range does, 1 MiB before the first aligned address.
fn other_format_before_aligned(_ctx: &Ctx) -> Result<()> {
    let memory = File::options().read(true).write(true).open("/dev/mem")?;
    // write(2) goes as far as System RAM does.
    let memory = Mapping::shared(&memory, PMEM_BASE + MIB, 2 * PAGE)?;
    memory.write(PAGE, b"BTT_ARENA_INFO\0\0");
    let result = refused(&[], Errno::EBUSY, "by its format");
    memory.write(PAGE, &[0; 16]);
    result?;
    insmod(&[])?;
    rmmod()?;
    Ok(())
}

fn no_range(_ctx: &Ctx) -> Result<()> {
    refused(&[], Errno::ENODEV, "memmap=")
}

/// memmap=nn$ss: not found by itself, used when named.
fn reserved_range(ctx: &Ctx) -> Result<()> {
    refused(&[], Errno::ENODEV, "memmap=")?;
    let (start, size) = ranges()?[0];
    let params = [
        format!("phys_addr={start}"),
        format!("size={}M", size / MIB),
    ];
    let driver = Driver::load(ctx, &[&params[0], &params[1]])?;
    let disk = driver.disk(0);
    ensure!(disk.start == start && disk.size == size, "{disk:?}");
    let file = disk.open_direct()?;
    for at in [0, size - MIB] {
        let data = pattern(at, 0, MIB as usize);
        write_at(&file, at, &data)?;
        same("reserved range", &read_at(&file, at, MIB as usize)?, &data)?;
    }
    Ok(())
}

/// Ranges not aligned to 2 MiB are trimmed, or left out, with a line each.
fn unaligned_ranges(ctx: &Ctx) -> Result<()> {
    let mut log = KernelLog::open()?;
    let driver = Driver::load(ctx, &[])?;
    ensure!(driver.disks().len() == 1, "{} disks", driver.disks().len());
    let disk = driver.disk(0);
    ensure!(
        disk.start == PMEM_BASE + 2 * MIB && disk.size == 62 * MIB,
        "{disk:?}"
    );
    let lines = log.drain();
    let count = |what: &str| lines.iter().filter(|m| m.text.contains(what)).count();
    ensure!(
        count("trimmed to") == 1 && count("left out") == 1,
        "log: {lines:?}"
    );
    let file = disk.open_direct()?;
    let data = pattern(1, 0, MIB as usize);
    for at in [0, disk.size - MIB] {
        write_at(&file, at, &data)?;
        same("trimmed range", &read_at(&file, at, MIB as usize)?, &data)?;
    }
    Ok(())
}

fn only_unusable_ranges(_ctx: &Ctx) -> Result<()> {
    refused(&[], Errno::ENODEV, "no usable persistent memory")
}
