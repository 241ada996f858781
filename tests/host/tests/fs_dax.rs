// SPDX-License-Identifier: GPL-2.0

//! Entries, batches and ranges of the fs/dax layer.

#![allow(dead_code)]

/// Where the module's files look for it.
#[path = "../../../include"]
mod include {
    pub(crate) mod stack_vec;
}

#[path = "../../../fs_dax/entry.rs"]
mod entry;
#[path = "../../../fs_dax/range.rs"]
mod range;
#[path = "../../../fs_dax/run.rs"]
mod run;

use entry::{Entry, Kind, PAGE_SHIFT, PAGE_SIZE, PG_PMD_COLOUR, PG_PMD_NR, PMD_ORDER, PMD_SIZE};
use proptest::prelude::*;
use range::{device_pgoff, edges, page_range, pages_of_size, pmd_fits, PmdFault};
use run::{Batch, Run, MAX_GAP, MAX_PAGES, MAX_RUNS};

/// Page frame numbers of x86-64: 52 bits of physical address.
const MAX_PFN: usize = 1 << 40;

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![Just(Kind::Real), Just(Kind::Zero), Just(Kind::Empty)]
}

fn order() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0), Just(PMD_ORDER)]
}

/// fs/dax.c and include/linux/xarray.h, in numbers.
fn c_entry(pfn: usize, order: u32, kind: Kind, locked: bool) -> usize {
    let mut value = pfn << 4;
    if locked {
        value |= 1;
    }
    if order == 9 {
        value |= 2;
    }
    match kind {
        Kind::Zero => value |= 4,
        Kind::Empty => value |= 8,
        Kind::Real => {}
    }
    value << 1 | 1
}

proptest! {
    #[test]
    fn encoding_is_that_of_c(pfn in 0..MAX_PFN, order in order(), kind in kind()) {
        let entry = Entry::new(pfn, order, kind);
        prop_assert_eq!(entry.to_xa(), c_entry(pfn, order, kind, false));
        prop_assert_eq!(entry.locked().to_xa(), c_entry(pfn, order, kind, true));
    }

    #[test]
    fn decoding_gives_back(pfn in 0..MAX_PFN, order in order(), kind in kind(), locked: bool) {
        let raw = c_entry(pfn, order, kind, locked);
        let entry = Entry::from_xa(raw).unwrap();
        prop_assert_eq!(entry.pfn(), pfn);
        prop_assert_eq!(entry.order(), order);
        prop_assert_eq!(entry.nr_pages(), 1usize << order);
        prop_assert_eq!(entry.is_pmd(), order == PMD_ORDER);
        prop_assert_eq!(entry.kind(), kind);
        prop_assert_eq!(entry.is_real(), kind == Kind::Real);
        prop_assert_eq!(entry.is_locked(), locked);
        prop_assert!(!entry.unlocked().is_locked());
        prop_assert!(entry.locked().is_locked());
        prop_assert_eq!(entry.locked().unlocked(), entry.unlocked());
        prop_assert_eq!(entry.to_xa(), raw);
    }

    #[test]
    fn pointers_and_internal_entries_are_not_entries(word in any::<usize>()) {
        prop_assert_eq!(Entry::from_xa(word).is_some(), word & 1 == 1);
    }

    #[test]
    fn first_index_is_aligned(index: usize, order in order()) {
        let first = Entry::empty(order).first_index(index);
        prop_assert_eq!(first % (1 << order), 0);
        prop_assert!(first <= index && index - first < 1 << order);
    }
}

/// Ascending dirty entries of a file in a few extents: (index, pfn, pages).
fn entries() -> impl Strategy<Value = Vec<(usize, usize, usize)>> {
    let step = (
        prop_oneof![8 => Just(0usize), 2 => 1..4usize, 1 => 1..2000usize],
        prop_oneof![9 => Just(false), 1 => Just(true)],
        prop_oneof![12 => Just(false), 1 => Just(true)],
    );
    prop::collection::vec(step, 0..1500).prop_map(|steps| {
        let (mut index, mut delta) = (0usize, 1usize << 20);
        let mut entries = Vec::new();
        for (gap, new_extent, pmd) in steps {
            index += gap;
            if new_extent {
                delta += 7 * PG_PMD_NR;
            }
            if pmd {
                index = index.next_multiple_of(PG_PMD_NR);
                delta = delta.next_multiple_of(PG_PMD_NR);
            }
            let nr = if pmd { PG_PMD_NR } else { 1 };
            entries.push((index, index + delta, nr));
            index += nr;
        }
        entries
    })
}

/// Batches as write-back makes them.
fn batches(entries: &[(usize, usize, usize)]) -> Vec<Batch> {
    let mut all = Vec::new();
    let mut rest = entries;
    while !rest.is_empty() {
        let mut batch = Batch::new();
        let mut taken = 0;
        for &(index, pfn, nr) in rest {
            if !batch.push(index, pfn, nr) {
                break;
            }
            taken += 1;
        }
        assert!(taken > 0, "an empty batch took nothing");
        rest = &rest[taken..];
        all.push(batch);
    }
    all
}

fn pages_of(runs: impl IntoIterator<Item = Run>) -> Vec<(usize, usize)> {
    runs.into_iter()
        .flat_map(|r| (0..r.nr).map(move |i| (r.index + i, r.pfn + i)))
        .collect()
}

proptest! {
    #[test]
    fn batches_have_every_page_once(entries in entries()) {
        let batches = batches(&entries);
        let got: Vec<_> = batches.iter().flat_map(|b| pages_of(b.runs().iter().copied())).collect();
        let want: Vec<_> = entries
            .iter()
            .flat_map(|&(index, pfn, nr)| (0..nr).map(move |i| (index + i, pfn + i)))
            .collect();
        prop_assert_eq!(got, want);
    }

    #[test]
    fn batches_keep_their_bounds(entries in entries()) {
        for batch in batches(&entries) {
            prop_assert!(!batch.is_empty());
            prop_assert!(batch.pages() <= MAX_PAGES);
            prop_assert!(batch.runs().len() <= MAX_RUNS);
            prop_assert_eq!(batch.pages(), batch.runs().iter().map(|r| r.nr).sum::<usize>());
            if batch.is_pmd() {
                prop_assert_eq!(batch.runs().len(), 1);
                prop_assert_eq!(batch.runs()[0].index & PG_PMD_COLOUR, 0);
            }
            // Runs are as long as they can be.
            for pair in batch.runs().windows(2) {
                prop_assert!(pair[0].end() != pair[1].index || pair[0].pfn + pair[0].nr != pair[1].pfn);
            }
        }
    }

    #[test]
    fn spans_cover_the_runs_and_little_else(entries in entries()) {
        for batch in batches(&entries) {
            let spans: Vec<_> = batch.spans().collect();
            let covered: std::collections::HashSet<_> = pages_of(spans.iter().copied()).into_iter().collect();
            for page in pages_of(batch.runs().iter().copied()) {
                prop_assert!(covered.contains(&page));
            }
            prop_assert!(covered.len() <= batch.pages() + batch.runs().len() * MAX_GAP);
            for pair in spans.windows(2) {
                prop_assert!(pair[0].end() <= pair[1].index);
            }
        }
    }
}

#[test]
fn a_full_batch_takes_nothing() {
    let mut batch = Batch::new();
    for i in 0..MAX_PAGES {
        assert!(batch.push(i, i, 1));
    }
    assert!(batch.is_full() && !batch.push(MAX_PAGES, MAX_PAGES, 1));
    assert_eq!(batch.runs().len(), 1);
}

#[test]
fn a_pmd_is_alone() {
    let mut batch = Batch::new();
    assert!(batch.push(512, 1024, PG_PMD_NR));
    assert!(batch.is_pmd() && !batch.push(1024, 1536, 1));

    let mut batch = Batch::new();
    assert!(batch.push(511, 1023, 1));
    assert!(!batch.push(512, 1024, PG_PMD_NR) && !batch.is_pmd());
}

proptest! {
    #[test]
    fn page_ranges(start in 0..i64::MAX, len in 1..1i64 << 40) {
        let end = start.saturating_add(len - 1);
        let (first, last) = page_range(start, end);
        prop_assert_eq!(first, (start / PAGE_SIZE as i64) as usize);
        if end == i64::MAX {
            prop_assert_eq!(last, usize::MAX);
        } else {
            prop_assert_eq!(last, (end / PAGE_SIZE as i64) as usize);
        }
    }

    #[test]
    fn sizes(size in 0..1i64 << 50) {
        let pages = pages_of_size(size) as i64;
        prop_assert!(pages * PAGE_SIZE as i64 >= size);
        prop_assert!((pages - 1) * (PAGE_SIZE as i64) < size);
    }

    #[test]
    fn device_pages(page in 0..1i64 << 30, extent in 0..1i64 << 20, block in 0..1u64 << 30, byte in 0..PAGE_SIZE as i64) {
        let (offset, pos) = (page << PAGE_SHIFT, (page + extent) << PAGE_SHIFT);
        let pgoff = device_pgoff(block << PAGE_SHIFT, offset, pos + byte);
        prop_assert_eq!(pgoff, block as usize + extent as usize);
    }

    #[test]
    fn edges_add_up(pos in 0..1i64 << 40, len in 1..1usize << 24, pmd: bool) {
        let align = if pmd { PMD_SIZE } else { PAGE_SIZE };
        let e = edges(pos, len, align);
        prop_assert_eq!(e.head + len + e.tail, e.size);
        prop_assert_eq!(e.size % align, 0);
        prop_assert!(e.head < align && e.tail < align);
        prop_assert_eq!((pos as usize - e.head) % align, 0);
    }

    #[test]
    fn a_pmd_that_fits_is_within_vma_and_file(
        index in 0..1usize << 12,
        page in 0..1usize << 12,
        start in 0..1usize << 12,
        len in 1..1usize << 12,
        file_pages in 0..1usize << 12,
        private_write: bool,
    ) {
        let base = 1usize << 40;
        let vma = (base + (start << PAGE_SHIFT), base + ((start + len) << PAGE_SHIFT));
        let f = PmdFault {
            pgoff: index,
            address: vma.0 + (page % len << PAGE_SHIFT),
            vma,
            file_pages,
            private_write,
        };
        let first = index & !PG_PMD_COLOUR;
        let pmd = f.address / PMD_SIZE * PMD_SIZE;
        let fits = index % PG_PMD_NR == f.address / PAGE_SIZE % PG_PMD_NR
            && pmd >= vma.0
            && pmd + PMD_SIZE <= vma.1
            && first + PG_PMD_NR <= file_pages
            && !private_write;
        prop_assert_eq!(pmd_fits(&f), fits);
    }
}
