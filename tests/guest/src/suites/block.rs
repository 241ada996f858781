// SPDX-License-Identifier: GPL-2.0

//! The block driver: every operation, at the edges.

use anyhow::Result;
use proto::Tag;

use crate::fixture::io::{read_at, same, write_at};
use crate::fixture::{pattern, Driver};
use crate::test::{Ctx, Suite};

pub fn suite(s: &mut Suite) {
    s.test("sizes_and_offsets", sizes_and_offsets).tag(Tag::Smoke);
}

/// O_DIRECT reads and writes of many sizes at the first, last and middle sectors.
fn sizes_and_offsets(ctx: &Ctx) -> Result<()> {
    let driver = Driver::load(ctx, &[])?;
    let disk = driver.disk(0);
    let file = disk.open_direct()?;
    for (seed, len) in [512u64, 1024, 4096, 4608, 65536, 1 << 20].into_iter().enumerate() {
        for offset in [0, 512, 4096 - 512, disk.size / 2 - 512, disk.size - len] {
            let data = pattern(seed as u64, offset, len as usize);
            write_at(&file, offset, &data)?;
            same("read back", &read_at(&file, offset, len as usize)?, &data)?;
        }
    }
    Ok(())
}
