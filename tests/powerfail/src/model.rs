// SPDX-License-Identifier: GPL-2.0

//! Which contents files may have after a crash.
//!
//! For every byte there is the content that was acknowledged as durable, and what was
//! written since and may or may not have become so. Anything else is a loss: an older
//! byte, a byte of another file, rubbish.

use crate::workload::{fill, How, Op, Workload, INITIAL};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// A page, the unit of msync.
const PAGE: u64 = 4096;

/// The number of the operation that wrote a byte; 0 for none.
type Source = u16;

#[derive(Clone, Debug)]
struct File {
    /// What a reader sees, byte by byte.
    now: Vec<Source>,
    /// What was acknowledged; as long as the longest state of the file.
    durable: Vec<Source>,
    /// Changes since, each byte of which may or may not be durable.
    pending: Vec<(Range<u64>, Source)>,
    /// The acknowledged size, then those since.
    sizes: Vec<u64>,
    /// The file whose number its content has.
    content_of: usize,
}

impl File {
    fn new(size: u64, source: Source, content_of: usize) -> Self {
        let bytes = vec![source; size as usize];
        File {
            now: bytes.clone(),
            durable: bytes,
            pending: Vec::new(),
            sizes: vec![size],
            content_of,
        }
    }

    fn change(&mut self, range: Range<u64>, source: Source) {
        self.pending.push((range, source));
    }

    fn resize(&mut self, size: u64) {
        self.sizes.push(size);
        let longest = self.durable.len().max(size as usize);
        self.durable.resize(longest, 0);
    }

    fn sync(&mut self) {
        self.durable.clone_from(&self.now);
        self.pending.clear();
        self.sizes = vec![self.now.len() as u64];
    }

    fn sync_range(&mut self, range: Range<u64>) {
        let range = range.start..range.end.min(self.now.len() as u64);
        if range.is_empty() {
            return;
        }
        let bytes = range.start as usize..range.end as usize;
        self.durable[bytes.clone()].copy_from_slice(&self.now[bytes]);
        let rest = |(old, source): (Range<u64>, Source)| {
            let before = old.start..old.end.min(range.start);
            let after = old.start.max(range.end)..old.end;
            [before, after]
                .into_iter()
                .filter(|r| !r.is_empty())
                .map(move |r| (r, source))
        };
        self.pending = std::mem::take(&mut self.pending)
            .into_iter()
            .flat_map(rest)
            .collect();
    }

    fn check(&self, index: usize, content: &[u8]) -> Verdict {
        let written = |source: &&Source| !matches!(**source, 0 | INITIAL);
        let mut verdict = Verdict {
            acknowledged: self.durable.iter().filter(written).count() as u64,
            ..Verdict::default()
        };
        if !self.sizes.contains(&(content.len() as u64)) {
            let sizes = &self.sizes;
            verdict.lose(
                self.sizes[0].max(1),
                format!("file {index}: {} bytes long, not {sizes:?}", content.len()),
            );
            return verdict;
        }
        let mut expected = vec![0; PAGE as usize];
        for start in (0..content.len()).step_by(PAGE as usize) {
            let end = (start + PAGE as usize).min(content.len());
            let expected = &mut expected[..end - start];
            self.durable_content(start, expected);
            if *expected == content[start..end] {
                continue;
            }
            for at in start..end {
                if content[at] != expected[at - start] && !self.may_be(at, content[at]) {
                    verdict.lose(
                        1,
                        format!(
                            "file {index} at {at:#x}: {:02x?}, not {:02x?} of operation {}",
                            &content[at..(at + 8).min(end)],
                            &expected[at - start..(at + 8).min(end) - start],
                            self.durable[at],
                        ),
                    );
                }
            }
        }
        verdict
    }

    fn durable_content(&self, start: usize, buffer: &mut [u8]) {
        let sources = &self.durable[start..start + buffer.len()];
        let mut at = 0;
        for run in sources.chunk_by(|a, b| a == b) {
            fill(
                run[0],
                self.content_of,
                (start + at) as u64,
                &mut buffer[at..at + run.len()],
            );
            at += run.len();
        }
    }

    fn may_be(&self, at: usize, byte: u8) -> bool {
        self.pending
            .iter()
            .filter(|(r, _)| r.contains(&(at as u64)))
            .any(|&(_, source)| {
                let mut one = [0];
                fill(source, self.content_of, at as u64, &mut one);
                one[0] == byte
            })
    }
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Bytes that an operation wrote, that were acknowledged as durable, and that were looked at.
    pub acknowledged: u64,
    /// Bytes that are neither that nor anything written since.
    pub lost: u64,
    /// What went wrong first.
    pub error: Option<String>,
}

impl Verdict {
    /// Adds a loss of so many bytes.
    pub fn lose(&mut self, bytes: u64, error: String) {
        self.lost += bytes;
        self.error.get_or_insert(error);
    }

    /// Adds another verdict.
    pub fn add(&mut self, other: Verdict) {
        self.acknowledged += other.acknowledged;
        self.lost += other.lost;
        self.error = self.error.take().or(other.error);
    }
}

/// The files of a run.
#[derive(Clone, Debug)]
pub struct Model {
    workload: Workload,
    files: Vec<File>,
    /// The file that is being replaced, and by what.
    replacement: Option<(usize, File)>,
}

impl Model {
    /// As a run of this workload starts.
    pub fn new(workload: Workload) -> Self {
        let files = workload
            .files()
            .iter()
            .enumerate()
            .map(|(i, f)| {
                let source = if f.filled { INITIAL } else { 0 };
                File::new(f.size, source, workload.content_of(i))
            })
            .collect();
        Model {
            workload,
            files,
            replacement: None,
        }
    }

    /// The run's files when `acked` operations were acknowledged and `begun` begun.
    pub fn after(workload: Workload, seed: u64, begun: u64, acked: u64) -> Self {
        let mut model = Model::new(workload);
        for (op, number) in workload.operations(seed).iter().zip(1..=begun) {
            model.begin(op, number as Source);
            if number <= acked {
                model.ack(op, number as Source);
            }
        }
        model
    }

    /// How many files there are.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Any part of the operation's effects may be durable from now on.
    pub fn begin(&mut self, op: &Op, number: Source) {
        if op.how == How::Clone {
            let from = self.files[self.workload.twin(op.file)].now.clone();
            let mut at = 0;
            for run in from.chunk_by(|a, b| a == b) {
                let end = at + run.len() as u64;
                self.files[op.file].change(at..end, run[0]);
                at = end;
            }
            return;
        }
        let file = &mut self.files[op.file];
        match op.how {
            How::MsyncPart | How::Unshare => {}
            How::Punch | How::Zero => op.ranges.iter().for_each(|r| file.change(r.clone(), 0)),
            How::Truncate => {
                let end = op.ranges[0].end;
                file.change(end..u64::MAX, 0);
                file.resize(end);
            }
            How::Append => {
                file.change(op.ranges[0].clone(), number);
                file.resize(op.ranges[0].end);
            }
            How::Replace => {
                let new = File::new(op.ranges[0].end, number, op.file);
                self.replacement = Some((op.file, new));
            }
            _ => op
                .ranges
                .iter()
                .for_each(|r| file.change(r.clone(), number)),
        }
    }

    /// The operation is over, and what it promises is durable.
    pub fn ack(&mut self, op: &Op, number: Source) {
        if op.how == How::Clone {
            let twin = self.workload.twin(op.file);
            self.files[op.file].now = self.files[twin].now.clone();
            self.files[op.file].sync();
            self.files[twin].sync();
            return;
        }
        let source = match op.how {
            How::Punch | How::Zero => 0,
            _ => number,
        };
        let file = &mut self.files[op.file];
        match op.how {
            How::MsyncPart | How::Replace | How::Clone | How::Unshare => {}
            How::Truncate => file.now.resize(op.ranges[0].end as usize, 0),
            _ => {
                for range in &op.ranges {
                    let end = file.now.len().max(range.end as usize);
                    file.now.resize(end, 0);
                    file.now[range.start as usize..range.end as usize].fill(source);
                }
            }
        }
        match op.how {
            How::Store | How::Write | How::Punch | How::Zero | How::Unshare | How::Clone => {}
            How::Replace => self.files[op.file] = self.replacement.take().expect("begun").1,
            How::Sync => self.files.iter_mut().for_each(File::sync),
            How::Fsync
            | How::MunmapFsync
            | How::WriteFsync
            | How::WriteFdatasync
            | How::Append
            | How::Truncate => file.sync(),
            How::Msync | How::CloseMsync | How::MsyncPart => {
                for r in &op.ranges {
                    file.sync_range(r.start / PAGE * PAGE..r.end.next_multiple_of(PAGE));
                }
            }
            How::Mapsync | How::Unmap | How::WriteDsync | How::WriteSync => {
                op.ranges.iter().for_each(|r| file.sync_range(r.clone()))
            }
        }
    }

    /// Checks what a file holds after a crash; `None` if it is gone.
    pub fn check(&self, index: usize, content: Option<&[u8]>) -> Verdict {
        let file = &self.files[index];
        let Some(content) = content else {
            let mut verdict = Verdict::default();
            verdict.lose(file.sizes[0].max(1), format!("file {index} is gone"));
            return verdict;
        };
        let verdict = file.check(index, content);
        match &self.replacement {
            Some((replaced, new)) if *replaced == index && verdict.error.is_some() => {
                // It must be wholly one or the other.
                let other = new.check(index, content);
                if other.error.is_none() {
                    other
                } else {
                    verdict
                }
            }
            _ => verdict,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{below, rng};
    use proptest::prelude::*;

    /// A file system that keeps what the model says it must, and of the rest whatever
    /// chance decides byte by byte.
    struct Disk {
        now: Vec<Vec<u8>>,
    }

    fn after(workload: Workload, seed: u64, ops: u64) -> Disk {
        let start = |(i, f): (usize, &crate::workload::Start)| {
            let mut bytes = vec![0; f.size as usize];
            let source = if f.filled { INITIAL } else { 0 };
            fill(source, workload.content_of(i), 0, &mut bytes);
            bytes
        };
        let mut now: Vec<Vec<u8>> = workload.files().iter().enumerate().map(start).collect();
        for (op, number) in workload.operations(seed).iter().zip(1..=ops) {
            if op.how == How::Clone {
                now[op.file] = now[workload.twin(op.file)].clone();
                continue;
            }
            let file = &mut now[op.file];
            match op.how {
                How::MsyncPart | How::Unshare => {}
                How::Truncate => file.resize(op.ranges[0].end as usize, 0),
                how => {
                    if how == How::Replace {
                        file.clear();
                    }
                    for r in &op.ranges {
                        file.resize(file.len().max(r.end as usize), 0);
                        let zero = matches!(how, How::Punch | How::Zero);
                        let source = if zero { 0 } else { number as u16 };
                        fill(
                            source,
                            workload.content_of(op.file),
                            r.start,
                            &mut file[r.start as usize..r.end as usize],
                        );
                    }
                }
            }
        }
        Disk { now }
    }

    fn workload() -> impl Strategy<Value = Workload> {
        let all: Vec<_> = Workload::ALL
            .into_iter()
            .filter(|w| !w.is_database() && *w != Workload::Huge)
            .collect();
        proptest::sample::select(all)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// What the CPUs saw last is always allowed: all caches may have been evicted.
        #[test]
        fn everything_survives(workload in workload(), seed in any::<u64>(), acked in 0u64..48, more in 0u64..2) {
            let begun = (acked + more).min(workload.length());
            let model = Model::after(workload, seed, begun, acked);
            for ops in [acked, begun] {
                for (i, content) in after(workload, seed, ops).now.iter().enumerate() {
                    let verdict = model.check(i, Some(content));
                    prop_assert_eq!(verdict.error, None);
                }
            }
        }

        /// A byte that was acknowledged and not written since must be itself.
        #[test]
        fn a_lost_byte_is_seen(workload in workload(), seed in any::<u64>(), acked in 1u64..48, pick in any::<u64>()) {
            let model = Model::after(workload, seed, acked, acked);
            let mut disk = after(workload, seed, acked).now;
            let mut r = rng(pick);
            let file = below(&mut r, disk.len() as u64) as usize;
            if disk[file].is_empty() {
                return Ok(());
            }
            let at = below(&mut r, disk[file].len() as u64) as usize;
            let f = &model.files[file];
            let settled = !f.pending.iter().any(|(r, _)| r.contains(&(at as u64)));
            disk[file][at] ^= 0x5a;
            let verdict = model.check(file, Some(&disk[file]));
            if settled {
                prop_assert_eq!(verdict.lost, 1);
            }
            prop_assert!(model.check(file, None).lost > 0);
        }
    }

    fn op(how: How, range: Range<u64>) -> Op {
        Op {
            file: 0,
            how,
            ranges: Vec::from([range]),
        }
    }

    fn content(number: u16, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        fill(number, 0, 0, &mut bytes);
        bytes
    }

    fn model(size: u64) -> Model {
        Model {
            workload: Workload::Write,
            files: vec![File::new(size, INITIAL, 0)],
            replacement: None,
        }
    }

    #[test]
    fn a_store_may_be_old_or_new_until_it_is_synced() {
        let mut m = model(100);
        m.begin(&op(How::Store, 0..100), 1);
        m.ack(&op(How::Store, 0..100), 1);
        let (old, new) = (content(INITIAL, 100), content(1, 100));
        let mixed = [&old[..50], &new[50..]].concat();
        for c in [&old, &new, &mixed] {
            assert_eq!(m.check(0, Some(c)).error, None);
        }
        m.begin(&op(How::Fsync, 0..0), 2);
        m.ack(&op(How::Fsync, 0..0), 2);
        assert_eq!(m.check(0, Some(&new)).error, None);
        assert!(m.check(0, Some(&mixed)).lost > 45);
        assert!(m
            .check(0, Some(&old))
            .error
            .unwrap()
            .contains("of operation 1"));
    }

    #[test]
    fn msync_covers_the_pages_of_its_range() {
        let mut m = model(3 * PAGE);
        m.begin(&op(How::Store, 0..3 * PAGE), 1);
        m.ack(&op(How::Store, 0..3 * PAGE), 1);
        m.ack(&op(How::MsyncPart, PAGE + 5..PAGE + 6), 2);
        let (mut old, new) = (
            content(INITIAL, 3 * PAGE as usize),
            content(1, 3 * PAGE as usize),
        );
        assert!(m.check(0, Some(&old)).lost > 4000);
        old[4096..8192].copy_from_slice(&new[4096..8192]);
        assert_eq!(m.check(0, Some(&old)).error, None);
    }

    #[test]
    fn sizes_are_old_or_new() {
        let mut m = model(100);
        m.begin(&op(How::Append, 100..150), 1);
        for size in [100, 150] {
            let mut c = content(INITIAL, 100);
            c.resize(size, 0);
            assert_eq!(m.check(0, Some(&c)).error, None, "{size}");
        }
        assert!(m.check(0, Some(&content(INITIAL, 120))).error.is_some());
        m.ack(&op(How::Append, 100..150), 1);
        assert!(m.check(0, Some(&content(INITIAL, 100))).error.is_some());
    }

    #[test]
    fn a_replaced_file_is_wholly_one_or_the_other() {
        let mut m = model(100);
        m.begin(&op(How::Replace, 0..80), 1);
        assert_eq!(m.check(0, Some(&content(INITIAL, 100))).error, None);
        assert_eq!(m.check(0, Some(&content(1, 80))).error, None);
        let mixed = [&content(1, 80)[..40], &content(INITIAL, 100)[40..80]].concat();
        assert!(m.check(0, Some(&mixed)).error.is_some());
        m.ack(&op(How::Replace, 0..80), 1);
        assert!(m.check(0, Some(&content(INITIAL, 100))).error.is_some());
    }
}
