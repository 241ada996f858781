// SPDX-License-Identifier: GPL-2.0

//! Workloads on files, and on the device as if it were one.

use std::collections::hash_map::{Entry, HashMap};
use std::fs::{self, File};
use std::io::IoSlice;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

use anyhow::{ensure, Context, Result};
use nix::errno::Errno;
use powerfail::job::{Progress, Task};
use powerfail::marker::{mark, Call};
use powerfail::model::{Model, Verdict};
use powerfail::workload::{fill, How, Op, Workload, INITIAL};

use crate::fixture::dax::clone_range;
use crate::fixture::fs::fallocate;
use crate::fixture::io::Aligned;
use crate::fixture::{Disk, Mapping, Mount, PAGE};

/// Where the files of a workload are.
struct Place<'a> {
    mount: Option<&'a Mount>,
    disk: &'a Disk,
}

impl Place<'_> {
    fn path(&self, file: usize) -> PathBuf {
        match self.mount {
            Some(mount) => mount.path(&format!("f{file}")),
            None => self.disk.path.clone().into(),
        }
    }

    fn open(&self, file: usize, flags: i32) -> Result<File> {
        let path = self.path(file);
        File::options()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))
    }

    fn sync_dir(&self) -> Result<()> {
        if let Some(mount) = self.mount {
            File::open(&mount.dir)?.sync_all()?;
        }
        Ok(())
    }
}

fn content(number: u16, file: usize, offset: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    fill(number, file, offset, &mut bytes);
    bytes
}

pub fn perform(task: &Task, disk: &Disk, mount: Option<&Mount>) -> Result<()> {
    let place = Place { mount, disk };
    for (i, start) in task.workload.files().iter().enumerate() {
        let Some(mount) = mount else { break };
        let name = format!("f{i}");
        let content_of = task.workload.content_of(i);
        let file = match task.workload {
            Workload::Huge => mount.allocate_huge(&name, start.size, disk)?,
            _ => mount.create(&name)?,
        };
        file.set_len(start.size)?;
        if start.filled {
            file.write_all_at(&content(INITIAL, content_of, 0, start.size), 0)?;
        }
        file.sync_all()?;
    }
    place.sync_dir()?;
    // SAFETY: no arguments, no memory.
    unsafe { libc::sync() };
    let mut run = Run {
        place,
        workload: task.workload,
        kept: HashMap::new(),
    };
    mark(Call::Start, 0, 0);
    for (op, number) in task.workload.operations(task.seed).iter().zip(1..) {
        mark(Call::Begin, number, 0);
        run.perform(op, number as u16)
            .with_context(|| format!("operation {number}: {op:?}"))?;
        mark(Call::Ack, number, 0);
    }
    mark(Call::Stop, 0, 0);
    Ok(())
}

struct Run<'a> {
    place: Place<'a>,
    workload: Workload,
    /// Mappings that stay, by file and whether with MAP_SYNC.
    kept: HashMap<(usize, bool), Mapping>,
}

impl Run<'_> {
    fn kept(&mut self, file: usize, sync: bool) -> Result<&Mapping> {
        Ok(match self.kept.entry((file, sync)) {
            Entry::Occupied(mapping) => mapping.into_mut(),
            Entry::Vacant(place) => {
                let opened = self.place.open(file, 0)?;
                let len = opened.metadata()?.len();
                place.insert(if sync {
                    Mapping::sync(&opened, 0, len).context("mmap with MAP_SYNC")?
                } else {
                    Mapping::shared(&opened, 0, len)?
                })
            }
        })
    }

    fn perform(&mut self, op: &Op, number: u16) -> Result<()> {
        // A mapping does not outlive a change of the size.
        if matches!(op.how, How::Append | How::Truncate | How::Replace) {
            self.kept.retain(|(file, _), _| *file != op.file);
        }
        match op.how {
            How::Store => {
                let of = self.workload.content_of(op.file);
                store(self.kept(op.file, false)?, op, of, number);
            }
            How::MsyncPart => msync(self.kept(op.file, false)?, op)?,
            How::Mapsync => {
                let of = self.workload.content_of(op.file);
                let mapping = self.kept(op.file, true)?;
                store(mapping, op, of, number);
                for range in &op.ranges {
                    write_back(mapping, range.start, range.end);
                }
                sfence();
            }
            How::Msync
            | How::Fsync
            | How::MunmapFsync
            | How::Sync
            | How::CloseMsync
            | How::Unmap => self.flow(op, number)?,
            How::Write
            | How::WriteFsync
            | How::WriteFdatasync
            | How::WriteDsync
            | How::WriteSync => self.write(op, number)?,
            How::Append => {
                let file = self.place.open(op.file, 0)?;
                let range = &op.ranges[0];
                let data = content(number, op.file, range.start, range.end - range.start);
                file.write_all_at(&data, range.start)?;
                file.sync_data()?;
            }
            How::Truncate => {
                let file = self.place.open(op.file, 0)?;
                file.set_len(op.ranges[0].end)?;
                file.sync_all()?;
            }
            How::Clone => {
                let from = self.place.open(self.workload.twin(op.file), 0)?;
                let to = self.place.open(op.file, 0)?;
                clone_range(&from, 0, 0, &to, 0)?;
                from.sync_all()?;
                to.sync_all()?;
            }
            How::Punch | How::Zero | How::Unshare => {
                let file = self.place.open(op.file, 0)?;
                let mode = match op.how {
                    How::Punch => libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                    How::Zero => libc::FALLOC_FL_ZERO_RANGE,
                    _ => libc::FALLOC_FL_UNSHARE_RANGE,
                };
                for range in &op.ranges {
                    fallocate(&file, mode, range.start, range.end - range.start)?;
                }
            }
            How::Replace => {
                let path = self.place.path(op.file);
                let temporary = path.with_extension("new");
                let file = File::create(&temporary)?;
                file.write_all_at(&content(number, op.file, 0, op.ranges[0].end), 0)?;
                file.sync_all()?;
                fs::rename(&temporary, &path)?;
                self.place.sync_dir()?;
            }
        }
        Ok(())
    }

    /// Opens, maps, stores and makes durable in the way the flow says.
    fn flow(&self, op: &Op, number: u16) -> Result<()> {
        let file = self.place.open(op.file, 0)?;
        let mapping = Mapping::shared(&file, 0, file.metadata()?.len())?;
        let of = self.workload.content_of(op.file);
        match op.how {
            How::Msync => {
                store(&mapping, op, of, number);
                msync(&mapping, op)?;
            }
            How::Fsync => {
                store(&mapping, op, of, number);
                file.sync_all()?;
            }
            How::MunmapFsync => {
                store(&mapping, op, of, number);
                drop(mapping);
                file.sync_all()?;
            }
            How::Sync => {
                store(&mapping, op, of, number);
                // SAFETY: no arguments, no memory.
                unsafe { libc::sync() };
            }
            How::CloseMsync => {
                drop(file);
                store(&mapping, op, of, number);
                msync(&mapping, op)?;
            }
            // Unmap.
            _ => {
                store(&mapping, op, of, number);
                drop(mapping);
            }
        }
        Ok(())
    }

    fn write(&self, op: &Op, number: u16) -> Result<()> {
        let mut flags = if op.how == How::WriteSync {
            libc::O_SYNC
        } else {
            0
        };
        if self.workload.is_direct() {
            flags |= libc::O_DIRECT;
        }
        let file = self.place.open(op.file, flags)?;
        for range in &op.ranges {
            let of = self.workload.content_of(op.file);
            let data = content(number, of, range.start, range.end - range.start);
            let data = Aligned::from(&data);
            if op.how == How::WriteDsync {
                write_dsync(&file, &data, range.start)?;
            } else {
                file.write_all_at(&data, range.start)?;
            }
        }
        match op.how {
            How::WriteFsync => file.sync_all()?,
            How::WriteFdatasync => file.sync_data()?,
            _ => {}
        }
        Ok(())
    }
}

/// pwritev2(2) with RWF_DSYNC.
fn write_dsync(file: &File, data: &[u8], offset: u64) -> Result<()> {
    let part = IoSlice::new(data);
    // SAFETY: an IoSlice is an iovec; one is passed.
    let n = unsafe {
        let iovec = (&raw const part).cast();
        libc::pwritev2(file.as_raw_fd(), iovec, 1, offset as i64, libc::RWF_DSYNC)
    };
    let n = Errno::result(n).context("pwritev2 with RWF_DSYNC")?;
    ensure!(
        n as usize == data.len(),
        "pwritev2 wrote {n} of {} bytes",
        data.len()
    );
    Ok(())
}

fn store(mapping: &Mapping, op: &Op, of: usize, number: u16) {
    for range in &op.ranges {
        let data = content(number, of, range.start, range.end - range.start);
        mapping.write(range.start, &data);
    }
}

fn msync(mapping: &Mapping, op: &Op) -> Result<()> {
    for range in &op.ranges {
        let start = range.start / PAGE * PAGE;
        mapping.msync(start, range.end - start)?;
    }
    Ok(())
}

/// Writes every line of a range back, with the best of what the CPU has (`make crash CRASH='--cpu …'`).
fn write_back(mapping: &Mapping, start: u64, end: u64) {
    use std::arch::{asm, x86_64::__cpuid_count};
    // Leaf 7: EBX bit 24 is CLWB, bit 23 CLFLUSHOPT.
    // SAFETY: every 64-bit CPU has the instruction.
    let features = unsafe { __cpuid_count(7, 0) }.ebx;
    for line in (start / 64 * 64..end).step_by(64) {
        // SAFETY: inside the mapping; the instructions change no memory.
        unsafe {
            let address = mapping.as_ptr().add(line as usize);
            if features & (1 << 24) != 0 {
                asm!("clwb [{}]", in(reg) address, options(nostack, preserves_flags));
            } else if features & (1 << 23) != 0 {
                asm!("clflushopt [{}]", in(reg) address, options(nostack, preserves_flags));
            } else {
                asm!("clflush [{}]", in(reg) address, options(nostack, preserves_flags));
            }
        }
    }
}

fn sfence() {
    // SAFETY: always allowed.
    unsafe { std::arch::x86_64::_mm_sfence() }
}

pub fn verify(
    task: &Task,
    disk: &Disk,
    mount: Option<&Mount>,
    progress: Progress,
) -> Result<Verdict> {
    let place = Place { mount, disk };
    let model = Model::after(task.workload, task.seed, progress.begun, progress.acked);
    let mut verdict = Verdict::default();
    for file in 0..model.len() {
        let content = match (mount, fs::exists(place.path(file))?) {
            (Some(_), true) => Some(fs::read(place.path(file))?),
            (Some(_), false) => None,
            (None, _) => {
                // A device has no size of its own: as much of it as the model knows.
                let mut bytes = Aligned::zeroed(task.workload.files()[file].size as usize);
                place
                    .open(file, libc::O_DIRECT)?
                    .read_exact_at(&mut bytes, 0)?;
                Some(bytes.to_vec())
            }
        };
        verdict.add(model.check(file, content.as_deref()));
    }
    Ok(verdict)
}
