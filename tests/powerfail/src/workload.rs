// SPDX-License-Identifier: GPL-2.0

//! What is run until the power fails: operations drawn from a seed, so that host and
//! guest, before and after the crash, all know the same list.

use crate::job::Ground;
use crate::sample::{below, rng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// A mix of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Workload {
    /// The five ways from a store in a mapping to durable data.
    Flows,
    /// Stores in mappings that stay, msync of parts.
    Partial,
    /// The flows on files of holes: blocks must be durable with the data.
    Sparse,
    /// Whole 2 MiB mappings.
    Huge,
    /// Mappings with MAP_SYNC, made durable from user space.
    Mapsync,
    /// Stores in a mapping that is then unmapped: no msync, no fsync.
    Unmap,
    /// write(2) with fsync, fdatasync, O_SYNC and RWF_DSYNC.
    Write,
    /// Writes, stores, zeroing and unsharing, each in a file just cloned or a clone: parts of blocks
    /// are copied, and must be as durable.
    Reflink,
    /// Appends with fdatasync.
    Append,
    /// Truncate, hole punch and rename among writes and stores.
    Meta,
    /// O_DIRECT without DAX: an overwrite with O_DSYNC is a write with FUA and no more.
    Direct,
    /// O_DIRECT, FUA and PREFLUSH on the device itself.
    Raw,
    /// LMDB transactions, writing through its mapping.
    Lmdb,
    /// SQLite transactions in rollback mode, reading through its mapping.
    Sqlite,
    /// The same in WAL mode.
    Wal,
}

impl Workload {
    /// All of them.
    pub const ALL: [Workload; 15] = {
        use Workload::*;
        [
            Flows, Partial, Sparse, Huge, Mapsync, Unmap, Write, Reflink, Append, Meta, Direct,
            Raw, Lmdb, Sqlite, Wal,
        ]
    };

    /// Its name, as in serialised form.
    pub fn name(self) -> &'static str {
        use Workload::*;
        match self {
            Flows => "flows",
            Partial => "partial",
            Sparse => "sparse",
            Huge => "huge",
            Mapsync => "mapsync",
            Unmap => "unmap",
            Write => "write",
            Reflink => "reflink",
            Append => "append",
            Meta => "meta",
            Direct => "direct",
            Raw => "raw",
            Lmdb => "lmdb",
            Sqlite => "sqlite",
            Wal => "wal",
        }
    }

    /// Transactions of a database instead of operations on files.
    pub fn is_database(self) -> bool {
        matches!(self, Workload::Lmdb | Workload::Sqlite | Workload::Wal)
    }

    /// With O_DIRECT.
    pub fn is_direct(self) -> bool {
        matches!(self, Workload::Direct | Workload::Raw)
    }

    /// What it runs on.
    pub fn grounds(self) -> &'static [Ground] {
        match self {
            Workload::Raw => &[Ground::Raw],
            // ext4 has no clones.
            Workload::Reflink => &[Ground::Xfs],
            _ => &[Ground::Ext4, Ground::Xfs],
        }
    }

    /// Only promised by rust_pmem: C keeps what was stored before munmap in the cache.
    pub fn rust_only(self) -> bool {
        self == Workload::Unmap
    }

    /// Whether an image may hold some lines of a store that was under way and not others. LMDB
    /// takes its meta page, three lines of it, for something that a disk writes whole.
    pub fn stands_torn_lines(self) -> bool {
        self != Workload::Lmdb
    }

    /// How many operations a run has.
    pub fn length(self) -> u64 {
        match self {
            Workload::Huge => 12,
            Workload::Lmdb | Workload::Sqlite | Workload::Wal => 24,
            _ => 48,
        }
    }

    /// The files a run starts with.
    pub fn files(self) -> Vec<Start> {
        let file = |size, filled| Start { size, filled };
        match self {
            Workload::Sparse | Workload::Mapsync => {
                vec![file(1 << 20, false), file(300_000, false)]
            }
            Workload::Huge => vec![file(4 << 20, true)],
            Workload::Raw => vec![file(1 << 20, false)],
            Workload::Direct => vec![file(1 << 20, true)],
            // The last two are the clones of the first two, or the other way round.
            Workload::Reflink => [file(128 << 10, true), file(70_001, true)].repeat(2),
            Workload::Append => vec![file(0, false), file(5_000, true)],
            Workload::Lmdb | Workload::Sqlite | Workload::Wal => vec![],
            _ => vec![
                file(256 << 10, true),
                file(256 << 10, true),
                file(70_001, true),
            ],
        }
    }

    /// The file that this one is cloned from.
    pub fn twin(self, file: usize) -> usize {
        match self {
            Workload::Reflink => file ^ 2,
            _ => file,
        }
    }

    /// The file whose number is in this one's content (see [`fill`]): clones share it.
    pub fn content_of(self, file: usize) -> usize {
        file.min(self.twin(file))
    }

    /// The operations of a run; they are numbered from 1.
    pub fn operations(self, seed: u64) -> Vec<Op> {
        let mut draw = Draw {
            rng: rng(seed),
            sizes: self.files().iter().map(|f| f.size).collect(),
            cloned: None,
        };
        (0..self.length()).map(|_| draw.op(self)).collect()
    }
}

impl std::fmt::Display for Workload {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for Workload {
    type Err = anyhow::Error;
    fn from_str(name: &str) -> anyhow::Result<Self> {
        Self::ALL
            .into_iter()
            .find(|w| w.name() == name)
            .ok_or_else(|| anyhow::anyhow!("there is no workload '{name}'"))
    }
}

/// A file as a run finds it; durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// In bytes.
    pub size: u64,
    /// Written with the content of operation [`INITIAL`], or a hole.
    pub filled: bool,
}

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// mmap, store, msync, close.
    Msync,
    /// mmap, store, fsync, close.
    Fsync,
    /// mmap, store, munmap, fsync, close.
    MunmapFsync,
    /// mmap, store, sync.
    Sync,
    /// open, mmap, close, store, msync.
    CloseMsync,
    /// Store in a mapping that stays; nothing is promised.
    Store,
    /// msync of the ranges in a mapping that stays.
    MsyncPart,
    /// Store in a MAP_SYNC mapping, CLWB and SFENCE from user space.
    Mapsync,
    /// mmap, store, munmap; no sync at all.
    Unmap,
    /// write(2); nothing is promised.
    Write,
    /// write(2), fsync.
    WriteFsync,
    /// write(2), fdatasync.
    WriteFdatasync,
    /// write(2) with RWF_DSYNC (on a device: with FUA).
    WriteDsync,
    /// write(2) on a file opened with O_SYNC.
    WriteSync,
    /// write(2) at the end, fdatasync.
    Append,
    /// ftruncate to the end of the range, fsync.
    Truncate,
    /// FICLONE of the file's twin over the whole file, fsync of both.
    Clone,
    /// Hole punch, nothing promised.
    Punch,
    /// Zeroes over the ranges (FALLOC_FL_ZERO_RANGE), nothing promised.
    Zero,
    /// FALLOC_FL_UNSHARE_RANGE over the ranges: nothing changes, and nothing may be lost.
    Unshare,
    /// A new file of the range's size, fsync, rename over the old one, fsync of the directory.
    Replace,
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    /// Which file.
    pub file: usize,
    /// What.
    pub how: How,
    /// Where, in bytes.
    pub ranges: Vec<Range<u64>>,
}

struct Draw {
    rng: ChaCha8Rng,
    sizes: Vec<u64>,
    /// The file that the next operation is on: one that shares its blocks.
    cloned: Option<usize>,
}

impl Draw {
    fn below(&mut self, limit: u64) -> u64 {
        below(&mut self.rng, limit)
    }

    fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len() as u64) as usize]
    }

    /// A range within `size`: a few bytes, lines, parts of pages, pages or many pages.
    fn range(&mut self, size: u64) -> Range<u64> {
        let (unit, most) = self.pick(&[
            (1, 16),
            (64, 8),
            (1, 4096),
            (4096, 4),
            (4096, 12),
            (1, 20_000),
        ]);
        let most = most.min(size / unit).max(1);
        let len = ((1 + self.below(most)) * unit).min(size);
        let start = self.below((size - len) / unit + 1) * unit;
        start..start + len
    }

    fn ranges(&mut self, size: u64) -> Vec<Range<u64>> {
        (0..1 + self.below(3)).map(|_| self.range(size)).collect()
    }

    #[allow(clippy::single_range_in_vec_init)] // ranges of a file, of which there may be more
    fn op(&mut self, workload: Workload) -> Op {
        use How::*;
        let how = match workload {
            Workload::Flows | Workload::Sparse => {
                self.pick(&[Msync, Fsync, MunmapFsync, Sync, CloseMsync])
            }
            Workload::Huge => self.pick(&[Msync, Fsync, MunmapFsync, MsyncPart, Store]),
            Workload::Partial => self.pick(&[Store, Store, MsyncPart, MsyncPart, Fsync]),
            Workload::Mapsync => Mapsync,
            Workload::Unmap => Unmap,
            Workload::Reflink if self.cloned.is_none() => Clone,
            Workload::Write => {
                self.pick(&[Write, WriteFsync, WriteFdatasync, WriteDsync, WriteSync])
            }
            Workload::Reflink => self.pick(&[
                Write,
                WriteFsync,
                WriteFdatasync,
                WriteDsync,
                WriteSync,
                Store,
                Store,
                Mapsync,
                Mapsync,
                Msync,
                Fsync,
                MunmapFsync,
                Punch,
                Zero,
                Unshare,
            ]),
            Workload::Append => Append,
            Workload::Meta => self.pick(&[
                Msync, Store, Write, WriteFsync, Truncate, Punch, Punch, Replace, Append,
            ]),
            Workload::Direct | Workload::Raw => {
                self.pick(&[Write, WriteFsync, WriteDsync, WriteDsync])
            }
            Workload::Lmdb | Workload::Sqlite | Workload::Wal => {
                unreachable!("databases have transactions")
            }
        };
        let mut file = self.below(self.sizes.len() as u64) as usize;
        if workload == Workload::Reflink {
            let next = (how == Clone).then_some(file);
            // Twice the same, or its twin: they share all blocks.
            file = std::mem::replace(&mut self.cloned, next).unwrap_or(file);
        }
        let size = self.sizes[file];
        let ranges = match how {
            Clone => vec![0..size],
            Append => {
                let len = 1 + self.below(9000);
                self.sizes[file] += len;
                vec![size..size + len]
            }
            Truncate => {
                // Up to 20,000 bytes shorter or longer, never under one page.
                let end = (size + self.below(20_000)).max(24_096) - self.below(20_000);
                self.sizes[file] = end;
                vec![end.min(size)..end]
            }
            Replace => {
                let end = 4096 + self.below(60_000);
                self.sizes[file] = end;
                vec![0..end]
            }
            // The whole of what O_DIRECT can do.
            _ if workload.is_direct() => {
                let len = (1 + self.below(8)) * 4096;
                let start = self.below((size - len) / 4096 + 1) * 4096;
                vec![start..start + len]
            }
            _ if workload == Workload::Huge => {
                (0..1 + self.below(2)).map(|_| self.range(size)).collect()
            }
            _ => self.ranges(size),
        };
        Op { file, how, ranges }
    }
}

/// The operation number whose content a filled file starts with.
pub const INITIAL: u16 = u16::MAX;

/// Writes the bytes that operation `number` puts at `offset` of `file`. They depend on
/// all three, so that a byte of another place, time or file is seen. Number 0 is a hole.
pub fn fill(number: u16, file: usize, offset: u64, buffer: &mut [u8]) {
    if number == 0 {
        return buffer.fill(0);
    }
    let key = ((number as u64) << 48) ^ ((file as u64) << 40);
    let mut at = 0;
    while at < buffer.len() {
        let position = offset + at as u64;
        let word = mix(key ^ (position / 8)).to_le_bytes();
        let skip = (position % 8) as usize;
        let n = (8 - skip).min(buffer.len() - at);
        buffer[at..at + n].copy_from_slice(&word[skip..skip + n]);
        at += n;
    }
}

/// A bijection that spreads every bit (the finaliser of splitmix64).
pub fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A transaction of a database: keys to put (with a value of so many bytes) or delete.
pub fn transaction(seed: u64, number: u64) -> Vec<(u64, Option<Vec<u8>>)> {
    let mut rng = rng(mix(seed ^ (number << 32)));
    (0..1 + below(&mut rng, 6))
        .map(|_| {
            let key = below(&mut rng, 60);
            let len = below(&mut rng, 1500) as usize;
            let mut value = vec![0; len];
            fill(number as u16, key as usize, 0, &mut value);
            (key, (below(&mut rng, 5) != 0).then_some(value))
        })
        .collect()
}

/// What a database holds after this many transactions.
pub fn database_after(seed: u64, transactions: u64) -> std::collections::BTreeMap<u64, Vec<u8>> {
    let mut all = std::collections::BTreeMap::new();
    for number in 1..=transactions {
        for (key, value) in transaction(seed, number) {
            match value {
                Some(value) => all.insert(key, value),
                None => all.remove(&key),
            };
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_the_same_for_a_seed_and_stay_in_their_files() {
        for workload in Workload::ALL.into_iter().filter(|w| !w.is_database()) {
            for seed in 0..50 {
                let ops = workload.operations(seed);
                assert_eq!(ops, workload.operations(seed));
                assert_eq!(ops.len() as u64, workload.length());
                let mut sizes: Vec<u64> = workload.files().iter().map(|f| f.size).collect();
                for op in &ops {
                    for range in &op.ranges {
                        match op.how {
                            How::Append => assert_eq!(range.start, sizes[op.file]),
                            How::Truncate | How::Replace => {}
                            _ => assert!(
                                range.end <= sizes[op.file] && range.start < range.end,
                                "{op:?}"
                            ),
                        }
                    }
                    if matches!(op.how, How::Append | How::Truncate | How::Replace) {
                        sizes[op.file] = op.ranges[0].end;
                    }
                }
            }
            assert_ne!(workload.operations(1), workload.operations(2), "{workload}");
            assert_eq!(workload.name().parse::<Workload>().unwrap(), workload);
        }
    }

    #[test]
    fn content_depends_on_operation_file_and_place() {
        let bytes = |number, file, offset: u64, len: usize| {
            let mut b = vec![0; len];
            fill(number, file, offset, &mut b);
            b
        };
        let all = bytes(3, 1, 0, 100);
        assert_eq!(bytes(3, 1, 13, 50), all[13..63]);
        assert_ne!(bytes(3, 2, 0, 100), all);
        assert_ne!(bytes(4, 1, 0, 100), all);
        assert_ne!(bytes(3, 1, 8, 100), all);
        assert_eq!(bytes(0, 1, 5, 10), [0; 10]);
    }

    #[test]
    fn databases_follow_from_their_transactions() {
        assert!(database_after(7, 0).is_empty());
        let (before, after) = (database_after(7, 10), database_after(7, 11));
        assert_ne!(before, after);
        for (key, value) in transaction(7, 11) {
            // Only the last change of a key in a transaction counts.
            if transaction(7, 11).iter().filter(|(k, _)| *k == key).count() == 1 {
                assert_eq!(after.get(&key), value.as_ref());
            }
        }
    }
}
