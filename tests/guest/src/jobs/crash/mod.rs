// SPDX-License-Identifier: GPL-2.0

//! Power failures, the guest's part: takes tasks from the QEMU plugin (tests/powerfail) until
//! there are none, and either runs a workload on the image that is in the pmem range, or checks
//! what a crash left of one.

mod database;
mod files;

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::time::Instant;

use anyhow::{anyhow, ensure, Context, Result};
use powerfail::job::{Ground, Progress, Task, MAPS, SYMBOLS};
use powerfail::marker;
use powerfail::model::Verdict;
use powerfail::workload::Workload;

use crate::fixture::fs::{is_dax, Made};
use crate::fixture::{Disk, Driver, Fs, Mount};
use crate::test::Ctx;

pub fn run(ctx: &Ctx) -> Result<()> {
    let driver = Driver::load(ctx, &[])?;
    let disk = driver.disk(0);
    while let Some(text) = marker::next() {
        let started = Instant::now();
        if text == SYMBOLS {
            let read = std::fs::read_to_string::<&str>;
            marker::result(&(read("/proc/kallsyms")? + MAPS + &read("/proc/self/maps")?));
            ctx.step(started, SYMBOLS);
            continue;
        }
        let task: Task = serde_json::from_str(&text).context(text)?;
        // One that goes wrong is a result; the next starts from its own image.
        let verdict = catch_unwind(AssertUnwindSafe(|| match task.crash {
            None => perform(&task, disk).map(|()| Verdict::default()),
            Some(progress) => verify(&task, disk, progress),
        }))
        .unwrap_or_else(|_| Err(anyhow!("it panicked")));
        let verdict = verdict.unwrap_or_else(|e| {
            println!("error: {e:?}");
            let mut verdict = Verdict::default();
            verdict.lose(0, format!("{e:#}"));
            verdict
        });
        marker::result(&serde_json::to_string(&verdict)?);
        // The runner sees that it goes on.
        ctx.step(started, format!("{} on {}", task.workload, task.fs));
    }
    Ok(())
}

/// The file system of a task on the disk, as mkfs or a crash left it.
fn made(task: &Task, disk: &Disk) -> Option<Made> {
    let fs = match task.fs {
        Ground::Ext4 => Fs::Ext4,
        Ground::Xfs => Fs::Xfs,
        Ground::Raw => return None,
    };
    Some(Made {
        fs,
        device: disk.path.clone(),
    })
}

fn mount(made: &Made, workload: Workload) -> Result<Mount> {
    let dax = workload != Workload::Direct;
    let mount = made.mount(if dax { "dax=always" } else { "dax=never" })?;
    // xfs mounts without it, and without an error, if it cannot have it.
    drop(mount.create("is-dax")?);
    ensure!(
        is_dax(&mount.path("is-dax"))? == dax,
        "{}: DAX is not as mounted",
        mount.fs()
    );
    Ok(mount)
}

fn perform(task: &Task, disk: &Disk) -> Result<()> {
    let mount = made(task, disk)
        .map(|m| mount(&m, task.workload))
        .transpose()?;
    match (task.workload, &mount) {
        (Workload::Lmdb, Some(mount)) => database::lmdb_run(mount, task.seed),
        (workload @ (Workload::Sqlite | Workload::Wal), Some(mount)) => {
            database::sqlite_run(mount, workload, task.seed)
        }
        _ => files::perform(task, disk, mount.as_ref()),
    }
}

fn verify(task: &Task, disk: &Disk, progress: Progress) -> Result<Verdict> {
    let Some(made) = made(task, disk) else {
        return files::verify(task, disk, None, progress);
    };
    // The journal is replayed here.
    let mount = mount(&made, task.workload).context("after the crash")?;
    let verdict = match task.workload {
        Workload::Lmdb => database::lmdb_verify(&mount, task.seed, progress),
        workload @ (Workload::Sqlite | Workload::Wal) => {
            database::sqlite_verify(&mount, workload, task.seed, progress)
        }
        _ => files::verify(task, disk, Some(&mount), progress),
    };
    // The runner checks what is on the media then (e2fsck, xfs_repair): it has no emulator
    // to wait for.
    mount.unmount()?;
    verdict
}
