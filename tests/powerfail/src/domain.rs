// SPDX-License-Identifier: GPL-2.0

//! The persistence domain: what of a pmem range has reached the media.
//!
//! The caller owns two byte slices of the range: `ram`, what the CPUs see, and
//! `media`, what survives a power failure. Ordinary stores need no call at all:
//! they are in `ram` and not in `media`. A line is taken from `ram` when it is
//! written back, and enters `media` when the CPU that did so fences.

use std::ops::Range;

/// Bytes in a cache line.
pub const LINE: usize = 64;
/// Bytes in a page.
pub const PAGE: usize = 4096;

/// The pages, by index, of ranges of bytes.
pub fn pages(ranges: &[Range<usize>]) -> impl Iterator<Item = usize> + '_ {
    ranges
        .iter()
        .flat_map(|r| r.start / PAGE..r.end.div_ceil(PAGE))
}

/// Something written back or stored past the cache, but not fenced yet.
#[derive(Clone, Copy, Debug)]
struct Pending {
    /// When it was taken, counted over all CPUs.
    taken: u64,
    /// Where in the range; a piece never crosses a line.
    offset: usize,
    len: usize,
    bytes: [u8; LINE],
}

/// How many of each there were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Lines written back by CLWB and CLFLUSHOPT.
    pub write_backs: u64,
    /// Lines written back by CLFLUSH.
    pub flushes: u64,
    /// Non-temporal stores.
    pub nt_stores: u64,
    /// SFENCE and MFENCE that made something durable.
    pub fences: u64,
    /// Locked operations that made something durable.
    pub locked: u64,
}

/// The state between `ram` and `media`.
///
/// # Invariants
///
/// A pending piece is never older than the same bytes of `media`: what one CPU
/// commits replaces the older copy that another holds.
#[derive(Debug)]
pub struct Domain {
    now: u64,
    pending: Vec<Vec<Pending>>,
    /// One bit per page of the range that `media` was written in.
    touched: Vec<u64>,
    /// What happened so far.
    pub counters: Counters,
}

impl Domain {
    /// A domain for a range of `size` bytes in which nothing has happened.
    pub fn new(size: usize) -> Self {
        Domain {
            now: 0,
            pending: Vec::new(),
            touched: vec![0; size.div_ceil(PAGE).div_ceil(64)],
            counters: Counters::default(),
        }
    }

    /// Forgets everything, as when `ram` and `media` were replaced.
    pub fn reset(&mut self) {
        self.pending.iter_mut().for_each(Vec::clear);
        self.touched.fill(0);
        self.counters = Counters::default();
    }

    /// Whether `cpu` has something that a fence would make durable.
    pub fn has_pending(&self, cpu: usize) -> bool {
        self.pending.get(cpu).is_some_and(|p| !p.is_empty())
    }

    /// Pages of `media` that were written since the last reset, in order.
    pub fn touched_pages(&self) -> impl Iterator<Item = usize> + '_ {
        self.touched.iter().enumerate().flat_map(|(i, &word)| {
            (0..64)
                .filter(move |bit| (word >> bit) & 1 != 0)
                .map(move |bit| i * 64 + bit)
        })
    }

    /// CLWB or CLFLUSHOPT of the line that holds `offset`.
    pub fn write_back(&mut self, cpu: usize, offset: usize, ram: &[u8]) {
        self.counters.write_backs += 1;
        let piece = self.line(offset, ram);
        self.pend(cpu, piece);
    }

    /// CLFLUSH of the line that holds `offset`.
    pub fn flush(&mut self, offset: usize, ram: &[u8], media: &mut [u8]) {
        self.counters.flushes += 1;
        let piece = self.line(offset, ram);
        self.commit(&piece, media);
    }

    /// A non-temporal store of `len` bytes at `offset`, which `ram` already has.
    pub fn nt_store(&mut self, cpu: usize, offset: usize, len: usize, ram: &[u8]) {
        self.counters.nt_stores += 1;
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let len = (end - at).min(LINE - at % LINE);
            let mut bytes = [0; LINE];
            bytes[..len].copy_from_slice(&ram[at..at + len]);
            self.now += 1;
            self.pend(
                cpu,
                Pending {
                    taken: self.now,
                    offset: at,
                    len,
                    bytes,
                },
            );
            at += len;
        }
    }

    /// SFENCE or MFENCE on `cpu`.
    pub fn fence(&mut self, cpu: usize, media: &mut [u8]) {
        self.counters.fences += self.commit_all(cpu, media) as u64;
    }

    /// A locked operation on `cpu`.
    pub fn locked(&mut self, cpu: usize, media: &mut [u8]) {
        self.counters.locked += self.commit_all(cpu, media) as u64;
    }

    /// WBINVD: all that the CPUs see is on the media. `live` are the parts of the
    /// range that can differ from it.
    pub fn flush_all(&mut self, ram: &[u8], media: &mut [u8], live: &[Range<usize>]) {
        self.pending.iter_mut().for_each(Vec::clear);
        for page in pages(live) {
            let range = page * PAGE..(page + 1) * PAGE;
            if media[range.clone()] != ram[range.clone()] {
                media[range.clone()].copy_from_slice(&ram[range]);
                self.touched[page / 64] |= 1 << (page % 64);
            }
        }
    }

    fn line(&mut self, offset: usize, ram: &[u8]) -> Pending {
        self.now += 1;
        let offset = offset / LINE * LINE;
        let bytes = ram[offset..offset + LINE]
            .try_into()
            .expect("the length of a line");
        Pending {
            taken: self.now,
            offset,
            len: LINE,
            bytes,
        }
    }

    fn pend(&mut self, cpu: usize, piece: Pending) {
        if self.pending.len() <= cpu {
            self.pending.resize_with(cpu + 1, Vec::new);
        }
        self.pending[cpu].push(piece);
    }

    fn commit_all(&mut self, cpu: usize, media: &mut [u8]) -> bool {
        let Some(list) = self.pending.get_mut(cpu) else {
            return false;
        };
        let mut list = std::mem::take(list);
        for piece in &list {
            self.commit(piece, media);
        }
        let any = !list.is_empty();
        list.clear();
        // Keeps the allocation.
        self.pending[cpu] = list;
        any
    }

    fn commit(&mut self, piece: &Pending, media: &mut [u8]) {
        let new = &piece.bytes[..piece.len];
        media[piece.offset..piece.offset + piece.len].copy_from_slice(new);
        let page = piece.offset / PAGE;
        self.touched[page / 64] |= 1 << (page % 64);
        // A copy of the line taken earlier must not undo this later.
        for older in self
            .pending
            .iter_mut()
            .flatten()
            .filter(|p| p.taken < piece.taken)
        {
            let start = piece.offset.max(older.offset);
            let end = (piece.offset + piece.len).min(older.offset + older.len);
            if start < end {
                older.bytes[start - older.offset..end - older.offset]
                    .copy_from_slice(&piece.bytes[start - piece.offset..end - piece.offset]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Machine {
        ram: Vec<u8>,
        media: Vec<u8>,
        domain: Domain,
    }

    impl Machine {
        fn new(size: usize) -> Self {
            Machine {
                ram: vec![0; size],
                media: vec![0; size],
                domain: Domain::new(size),
            }
        }
        fn store(&mut self, at: usize, value: u8, len: usize) {
            self.ram[at..at + len].fill(value);
        }
        fn nt(&mut self, cpu: usize, at: usize, value: u8, len: usize) {
            self.store(at, value, len);
            self.domain.nt_store(cpu, at, len, &self.ram);
        }
        fn clwb(&mut self, cpu: usize, at: usize) {
            self.domain.write_back(cpu, at, &self.ram);
        }
        fn fence(&mut self, cpu: usize) {
            self.domain.fence(cpu, &mut self.media);
        }
    }

    #[test]
    fn a_store_is_durable_after_write_back_and_fence() {
        let mut m = Machine::new(2 * PAGE);
        m.store(100, 7, 8);
        assert_eq!(m.media[100], 0);
        m.fence(0);
        assert_eq!(m.media[100], 0, "a fence alone writes nothing back");
        m.clwb(0, 127);
        assert_eq!(m.media[100], 0, "written back, not fenced");
        m.store(100, 9, 8);
        m.fence(0);
        assert_eq!(m.media[100], 7, "the value at the write-back");
        assert_eq!(m.media[64..128].iter().filter(|&&b| b != 0).count(), 8);
        assert_eq!(m.domain.touched_pages().collect::<Vec<_>>(), [0]);
        assert_eq!(
            m.domain.counters,
            Counters {
                write_backs: 1,
                fences: 1,
                ..Default::default()
            }
        );
    }

    #[test]
    fn a_fence_orders_its_own_cpu_only() {
        let mut m = Machine::new(PAGE);
        m.store(0, 1, 1);
        m.clwb(1, 0);
        m.fence(0);
        assert_eq!(m.media[0], 0);
        assert!(m.domain.has_pending(1) && !m.domain.has_pending(0));
        m.fence(1);
        assert_eq!(m.media[0], 1);
    }

    #[test]
    fn an_older_copy_does_not_undo_a_newer_commit() {
        let mut m = Machine::new(PAGE);
        m.store(0, 1, 64);
        m.clwb(0, 0);
        m.store(0, 2, 1);
        m.clwb(1, 0);
        m.fence(1);
        m.fence(0);
        assert_eq!((m.media[0], m.media[1]), (2, 1));
    }

    #[test]
    fn an_older_commit_leaves_a_newer_copy_alone() {
        let mut m = Machine::new(PAGE);
        m.store(0, 1, 1);
        m.clwb(0, 0);
        m.store(0, 2, 1);
        m.clwb(1, 0);
        m.fence(0);
        assert_eq!(m.media[0], 1);
        m.fence(1);
        assert_eq!(m.media[0], 2);
    }

    #[test]
    fn a_commit_of_some_bytes_keeps_the_rest_of_another_copy() {
        let mut m = Machine::new(PAGE);
        m.store(0, 1, 64);
        m.clwb(0, 0);
        m.nt(1, 8, 3, 8);
        m.fence(1);
        assert_eq!((m.media[0], m.media[8]), (0, 3));
        m.fence(0);
        assert_eq!((m.media[0], m.media[8], m.media[16]), (1, 3, 1));
    }

    #[test]
    fn non_temporal_stores_take_only_their_bytes_and_may_cross_lines() {
        let mut m = Machine::new(PAGE);
        m.store(0, 9, 128);
        m.nt(0, 60, 5, 8);
        assert_eq!(m.media[60], 0);
        m.domain.locked(0, &mut m.media);
        assert_eq!(
            m.media[56..72],
            [0, 0, 0, 0, 5, 5, 5, 5, 5, 5, 5, 5, 0, 0, 0, 0]
        );
        assert_eq!(m.domain.counters.locked, 1);
    }

    #[test]
    fn clflush_needs_no_fence_and_supersedes_what_is_pending() {
        let mut m = Machine::new(PAGE);
        m.store(0, 1, 1);
        m.clwb(0, 0);
        m.store(0, 2, 1);
        m.domain.flush(0, &m.ram, &mut m.media);
        assert_eq!(m.media[0], 2);
        m.fence(0);
        assert_eq!(m.media[0], 2);
    }

    #[test]
    fn wbinvd_takes_everything() {
        let mut m = Machine::new(3 * PAGE);
        m.store(2 * PAGE + 5, 1, 1);
        m.store(0, 1, 1);
        m.clwb(0, 0);
        m.store(0, 2, 1);
        m.domain
            .flush_all(&m.ram, &mut m.media, &[0..PAGE, 2 * PAGE..3 * PAGE]);
        m.fence(0);
        assert_eq!(m.media, m.ram);
        assert_eq!(m.domain.touched_pages().collect::<Vec<_>>(), [0, 2]);
    }

    #[derive(Clone, Debug)]
    enum Op {
        Store(usize, u8, usize),
        Nt(usize, usize, u8, usize),
        Clwb(usize, usize),
        Clflush(usize),
        Fence(usize),
    }

    fn ops(size: usize) -> impl Strategy<Value = Vec<Op>> {
        let cpu = 0usize..3;
        let at = 0..size - 16;
        proptest::collection::vec(
            prop_oneof![
                (at.clone(), any::<u8>(), 1usize..16).prop_map(|(a, v, l)| Op::Store(a, v, l)),
                (cpu.clone(), at.clone(), any::<u8>(), 1usize..16)
                    .prop_map(|(c, a, v, l)| Op::Nt(c, a, v, l)),
                (cpu.clone(), at.clone()).prop_map(|(c, a)| Op::Clwb(c, a)),
                at.prop_map(Op::Clflush),
                cpu.prop_map(Op::Fence),
            ],
            0..60,
        )
    }

    proptest! {
        /// Every byte of the media is a value the CPUs once saw there, never older
        /// than what was durable before, and at a fence at least as new as what its
        /// CPU had written back.
        #[test]
        #[allow(clippy::needless_range_loop)] // over several lists at once
        fn history(ops in ops(512)) {
            let mut m = Machine::new(512);
            // For each byte: all values it ever had, in order; the index that is durable.
            let mut history = vec![vec![0u8]; 512];
            let mut durable = vec![0usize; 512];
            // For each CPU: bytes written back, with their index in the history.
            let mut promised = vec![Vec::new(); 3];
            for op in &ops {
                let taken = match *op {
                    Op::Store(at, v, len) => { m.store(at, v, len); None }
                    Op::Nt(cpu, at, v, len) => { m.nt(cpu, at, v, len); Some((cpu, at..at + len)) }
                    Op::Clwb(cpu, at) => {
                        m.clwb(cpu, at);
                        Some((cpu, at / LINE * LINE..(at / LINE + 1) * LINE))
                    }
                    Op::Clflush(at) => { m.domain.flush(at, &m.ram, &mut m.media); None }
                    Op::Fence(cpu) => { m.fence(cpu); None }
                };
                for i in 0..512 {
                    if *history[i].last().unwrap() != m.ram[i] {
                        history[i].push(m.ram[i]);
                    }
                }
                if let Some((cpu, bytes)) = taken {
                    promised[cpu].extend(bytes.map(|i| (i, history[i].len() - 1)));
                }
                if let Op::Fence(cpu) = *op {
                    for (i, index) in promised[cpu].drain(..) {
                        durable[i] = durable[i].max(index);
                    }
                }
                for i in 0..512 {
                    match history[i][durable[i]..].iter().position(|&v| v == m.media[i]) {
                        Some(later) => durable[i] += later,
                        None => prop_assert!(false, "byte {} is older than what was durable", i),
                    }
                }
            }
        }
    }
}
