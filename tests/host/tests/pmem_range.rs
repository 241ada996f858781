// SPDX-License-Identifier: GPL-2.0

//! Parameters and ranges of the block driver.

#![allow(dead_code)]

#[path = "../../../drivers/pmem/range.rs"]
mod range;

use proptest::prelude::*;
use range::{explicit, parse_bytes, BadParam, PhysRange, ALIGN};

#[test]
fn numbers() {
    for (text, bytes) in [
        ("0", 0),
        ("4096", 4096),
        ("0x100000000", 1 << 32),
        ("0XAbc", 0xabc),
        ("1k", 1 << 10),
        ("4K", 4 << 10),
        ("3m", 3 << 20),
        ("64M", 64 << 20),
        ("1G", 1 << 30),
        ("2T", 2 << 40),
        ("0x10M", 16 << 20),
        ("1G\n", 1 << 30),
        ("18446744073709551615", u64::MAX),
        ("0xffffffffffffffff", u64::MAX),
    ] {
        assert_eq!(parse_bytes(text.as_bytes()), Some(bytes), "{text}");
    }
    for text in [
        "",
        "\n",
        "G",
        "0x",
        "0xG",
        "abc",
        "-1",
        "+1",
        " 1",
        "1 ",
        "1.5G",
        "1GB",
        "1Gi",
        "1GG",
        "0b1",
        "1e3",
        "18446744073709551616",
        "16777216T",
        "0x10000000000000000",
        "1\n\n",
        "99999999999999999999G",
    ] {
        assert_eq!(parse_bytes(text.as_bytes()), None, "{text:?}");
    }
}

fn explicit_str(
    phys_addr: Option<&str>,
    size: Option<&str>,
) -> Result<Option<(u64, u64)>, BadParam> {
    explicit(phys_addr.map(str::as_bytes), size.map(str::as_bytes))
        .map(|range| range.map(|r| (r.start, r.len)))
}

#[test]
fn parameters() {
    assert_eq!(explicit_str(None, None), Ok(None));
    assert_eq!(
        explicit_str(Some("4G"), Some("1G")),
        Ok(Some((4 << 30, 1 << 30)))
    );
    for (phys_addr, size, bad) in [
        (Some("4G"), None, BadParam::NoSize),
        (None, Some("1G"), BadParam::NoPhysAddr),
        (Some("x"), Some("1G"), BadParam::PhysAddr),
        (Some("4G"), Some("x"), BadParam::Size),
        (Some("4G"), Some("0"), BadParam::Empty),
        (Some("4097M"), Some("1G"), BadParam::Unaligned),
        (Some("4G"), Some("1M"), BadParam::Unaligned),
        (Some("0xffffffffffe00000"), Some("2M"), BadParam::Overflow),
    ] {
        assert_eq!(
            explicit_str(phys_addr, size),
            Err(bad),
            "{phys_addr:?} {size:?}"
        );
    }
}

proptest! {
    #[test]
    fn parse_is_the_inverse_of_printing(n: u64) {
        prop_assert_eq!(parse_bytes(n.to_string().as_bytes()), Some(n));
        prop_assert_eq!(parse_bytes(format!("{n:#x}").as_bytes()), Some(n));
        let k = n >> 10;
        prop_assert_eq!(parse_bytes(format!("{k}K").as_bytes()), Some(k << 10));
    }

    #[test]
    fn parse_takes_anything(text: Vec<u8>) {
        let _ = parse_bytes(&text);
    }

    /// What is left is aligned, inside, and the largest such.
    #[test]
    fn trimmed(start: u64, len in 1u64..) {
        let range = PhysRange { start, len };
        match (range.trim(), start.checked_add(len)) {
            (Some(t), Some(end)) => {
                prop_assert_eq!(t.start % ALIGN, 0);
                prop_assert_eq!(t.len % ALIGN, 0);
                prop_assert!(t.len > 0 && t.start >= start && t.start + t.len <= end);
                prop_assert!(t.start - start < ALIGN && end - (t.start + t.len) < ALIGN);
                prop_assert_eq!(t.last(), t.start + t.len - 1);
            }
            (Some(_), None) => prop_assert!(false, "a range that overflows was accepted"),
            (None, Some(_)) => prop_assert!(len < 2 * ALIGN),
            (None, None) => {}
        }
    }

    #[test]
    fn small_ranges_are_trimmed_too(start in 0u64..16 * ALIGN, len in 1u64..4 * ALIGN) {
        let trimmed = PhysRange { start, len }.trim();
        let holds_one = (0..20).any(|i| i * ALIGN >= start && (i + 1) * ALIGN <= start + len);
        prop_assert_eq!(trimmed.is_some(), holds_one);
    }
}
