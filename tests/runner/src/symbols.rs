// SPDX-License-Identifier: GPL-2.0

//! Names for addresses of the guest's kernel.

use anyhow::Result;

/// The functions of /proc/kallsyms.
pub struct Symbols(Vec<(u64, String)>);

impl Symbols {
    /// From the text of that file.
    pub fn parse(text: &str) -> Result<Symbols> {
        let mut symbols = Vec::new();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let (Some(address), Some(kind), Some(name)) =
                (words.next(), words.next(), words.next())
            else {
                continue;
            };
            if matches!(kind, "t" | "T" | "w" | "W") {
                let module = words.next().unwrap_or_default();
                symbols.push((
                    u64::from_str_radix(address, 16)?,
                    format!("{name} {module}").trim().to_string(),
                ));
            }
        }
        symbols.sort();
        Ok(Symbols(symbols))
    }

    /// The function that an address is in.
    pub fn name(&self, address: u64) -> &str {
        if address < 1 << 63 {
            return "(user space)";
        }
        self.place(address).map_or("(unknown)", |(name, _)| name)
    }

    /// That function, and how far behind its beginning the address is.
    pub fn place(&self, address: u64) -> Option<(&str, u64)> {
        let n = self.0.partition_point(|(a, _)| *a <= address);
        let (start, name) = &self.0[n.checked_sub(1)?];
        Some((name, address - start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_function_before_an_address() {
        let text = "ffffffff81000000 T _stext\nffffffff81000010 t second\n\
                    ffffffff81000018 D data\nffffffffc0000000 t third\t[rust_pmem]\n";
        let symbols = Symbols::parse(text).unwrap();
        assert_eq!(symbols.name(0x1000), "(user space)");
        assert_eq!(symbols.name(0xffffffff80ffffff), "(unknown)");
        assert_eq!(symbols.place(0xffffffff81000000), Some(("_stext", 0)));
        assert_eq!(symbols.place(0xffffffff81000020), Some(("second", 16)));
        assert_eq!(symbols.name(0xffffffffc0000004), "third [rust_pmem]");
    }
}
