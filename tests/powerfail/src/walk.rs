// SPDX-License-Identifier: GPL-2.0

//! Virtual to physical addresses by the guest's own page tables, as the CPU walks
//! them in long mode (Intel SDM volume 3, chapter 5).

const PRESENT: u64 = 1;
const PAGE_SIZE_BIT: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const CR0_PG: u64 = 1 << 31;
const CR4_LA57: u64 = 1 << 12;

/// The control registers the walk depends on.
#[derive(Clone, Copy, Debug)]
pub struct Control {
    /// Paging is on or off here.
    pub cr0: u64,
    /// Where the tables begin.
    pub cr3: u64,
    /// How many levels they have.
    pub cr4: u64,
}

/// Translates `vaddr`; `None` if it is not mapped. `read` reads a physical,
/// 8-byte aligned word and returns `None` outside RAM.
pub fn translate(control: Control, vaddr: u64, read: impl Fn(u64) -> Option<u64>) -> Option<u64> {
    if control.cr0 & CR0_PG == 0 {
        return Some(vaddr);
    }
    let levels = if control.cr4 & CR4_LA57 != 0 { 5 } else { 4 };
    let mut table = control.cr3 & ADDRESS;
    for level in (0..levels).rev() {
        let shift = 12 + 9 * level;
        let index = (vaddr >> shift) & 0x1ff;
        let entry = read(table + index * 8)?;
        if entry & PRESENT == 0 {
            return None;
        }
        let leaf = level == 0 || (level <= 2 && entry & PAGE_SIZE_BIT != 0);
        if leaf {
            let offset = (1u64 << shift) - 1;
            return Some(entry & ADDRESS & !offset | vaddr & offset);
        }
        table = entry & ADDRESS;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const WRITE: u64 = 2;
    const NX: u64 = 1 << 63;

    /// Page tables built the obvious way: `map` enters one leaf.
    #[derive(Default)]
    struct Tables {
        words: HashMap<u64, u64>,
        next: u64,
    }

    impl Tables {
        fn map(&mut self, levels: u32, leaf_level: u32, vaddr: u64, phys: u64) {
            let mut table = 0;
            for level in (leaf_level..levels).rev() {
                let slot = table + ((vaddr >> (12 + 9 * level)) & 0x1ff) * 8;
                if level == leaf_level {
                    let large = if level > 0 { PAGE_SIZE_BIT } else { 0 };
                    self.words.insert(slot, phys | NX | large | PRESENT | WRITE);
                } else {
                    if let std::collections::hash_map::Entry::Vacant(e) = self.words.entry(slot) {
                        self.next += 0x1000;
                        e.insert(self.next | PRESENT | WRITE);
                    }
                    table = self.words[&slot] & ADDRESS;
                }
            }
        }

        fn translate(&self, levels: u32, vaddr: u64) -> Option<u64> {
            let control = Control {
                cr0: CR0_PG,
                // PCID bits and the no-flush bit must not leak into the address.
                cr3: 0x8000_0000_0000_0fff,
                cr4: if levels == 5 { CR4_LA57 } else { 0 },
            };
            translate(control, vaddr, |p| {
                Some(self.words.get(&p).copied().unwrap_or(0))
            })
        }
    }

    #[test]
    fn without_paging_addresses_are_physical() {
        let control = Control {
            cr0: 1,
            cr3: 0,
            cr4: 0,
        };
        assert_eq!(translate(control, 0x1234, |_| None), Some(0x1234));
    }

    #[test]
    fn tables_outside_ram_translate_nothing() {
        let control = Control {
            cr0: CR0_PG,
            cr3: 0,
            cr4: 0,
        };
        assert_eq!(translate(control, 0x1234, |_| None), None);
    }

    proptest! {
        #[test]
        fn every_page_size(vaddr in any::<u64>(), frame in 1u64..1 << 20, leaf in 0u32..3,
                           five in any::<bool>(), other in any::<u64>()) {
            let levels = if five { 5 } else { 4 };
            let size = 1u64 << (12 + 9 * leaf);
            let phys = (frame * size) & ADDRESS;
            let mut tables = Tables::default();
            tables.map(levels, leaf, vaddr, phys);
            prop_assert_eq!(tables.translate(levels, vaddr), Some(phys | vaddr & (size - 1)));
            let top = (1u64 << (12 + 9 * levels)) - 1;
            if (vaddr & top) / size != (other & top) / size {
                prop_assert_eq!(tables.translate(levels, other), None);
            }
        }
    }
}
