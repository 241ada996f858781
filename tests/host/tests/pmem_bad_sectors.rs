// SPDX-License-Identifier: GPL-2.0

//! Sectors and pages of the block driver.

#![allow(dead_code)]

#[path = "../../../drivers/pmem/bad_sectors.rs"]
mod bad_sectors;

use bad_sectors::{recovery_stride, Sectors, SECTORS_PER_PAGE};
use proptest::prelude::*;

proptest! {
    /// Page by page, against what the words mean.
    #[test]
    fn whole_and_partial_pages(start in 0u64..100, len in 0u64..100) {
        let sectors = Sectors { start, len };
        let partial: Vec<u64> = sectors.partial_pages().collect();
        for page in 0..30 {
            let of_page = page * SECTORS_PER_PAGE..(page + 1) * SECTORS_PER_PAGE;
            let inside = of_page.filter(|s| (start..start + len).contains(s)).count() as u64;
            prop_assert_eq!(
                sectors.whole_pages().contains(&page),
                inside == SECTORS_PER_PAGE,
                "page {}", page
            );
            prop_assert_eq!(
                partial.iter().filter(|&&p| p == page).count(),
                usize::from(inside != 0 && inside != SECTORS_PER_PAGE),
                "page {}", page
            );
        }
    }

    /// Never nothing, never more than was asked for, and not past the page of the first bad sector.
    #[test]
    fn stride(page in 0u64..50, nr_pages in 1usize..50, bad in 0u64..800) {
        let sector = page * SECTORS_PER_PAGE;
        let end = sector + nr_pages as u64 * SECTORS_PER_PAGE;
        prop_assume!(bad < end);
        let stride = recovery_stride(sector, nr_pages, bad);
        prop_assert!((1..=nr_pages).contains(&stride));
        let last_page = page + stride as u64 - 1;
        prop_assert!(last_page <= (bad / SECTORS_PER_PAGE).max(page));
    }
}
