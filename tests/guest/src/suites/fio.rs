// SPDX-License-Identifier: GPL-2.0

//! fio with verification, on the raw disk and on both file systems.

use anyhow::{ensure, Result};
use proto::Tag;

use super::apps::{served, CALLS, STORES};
use crate::fixture::{sh, Driver, Fs};
use crate::test::{Ctx, Suite};

pub fn suite(s: &mut Suite) {
    for engine in ["psync", "libaio", "io_uring"] {
        s.test(format!("raw_{engine}"), move |ctx| raw(ctx, engine))
            .limit(120)
            .tag(Tag::Stress);
    }
    for fs in Fs::ALL {
        for engine in ["psync", "mmap"] {
            s.test(format!("{engine}_{fs}"), move |ctx| on_fs(ctx, fs, engine))
                .limit(120)
                .tag(Tag::Stress);
        }
    }
}

/// Random writes of mixed sizes, each block with a crc32c that is checked afterwards.
fn fio(ctx: &Ctx, target: &str, engine: &str, more: &str) -> Result<()> {
    let size = ctx.pick("24m", "192m");
    let loops = ctx.pick(1, 8);
    sh(format!(
        "fio --name=verify --filename={target} --size={size} --loops={loops} --rw=randrw \
         --rwmixread=30 --bsrange=4k-256k --ioengine={engine} --randseed=1 --verify=crc32c \
         --verify_fatal=1 --do_verify=1 --verify_backlog=64 --group_reporting {more}"
    ))?;
    Ok(())
}

fn raw(ctx: &Ctx, engine: &str) -> Result<()> {
    let driver = Driver::load(ctx, &[])?;
    let depth = if engine == "psync" { 1 } else { 8 };
    fio(
        ctx,
        &driver.disk(0).path,
        engine,
        &format!("--direct=1 --iodepth={depth}"),
    )
}

fn on_fs(ctx: &Ctx, fs: Fs, engine: &str) -> Result<()> {
    let counters = match engine {
        "mmap" => STORES,
        _ => CALLS,
    };
    served(ctx, fs, counters, |dax| {
        let target = dax.mount.path("f").display().to_string();
        fio(ctx, &target, engine, "--fsync=32")?;
        let sum = || sh(format!("sha256sum {target}"));
        let before = sum()?;
        let dax = dax.remount()?;
        let after = sum()?;
        ensure!(before == after, "{before} is {after} after a remount");
        Ok(dax)
    })
}
