// SPDX-License-Identifier: GPL-2.0

//! The suites. Each file is one; a test's full name is `suite::name`.

mod ahead;
mod apps;
mod block;
mod copies;
mod dax;
mod errors;
mod faults;
mod fio;
mod flows;
mod gup;
mod harness;
mod load;
mod params;
mod races;
mod same_page;

use crate::test::{Suite, Test};

/// Adds a suite's tests.
type Fill = fn(&mut Suite);

/// Every suite: its name and what fills it.
const SUITES: &[(&str, Fill)] = &[
    ("block", block::suite),
    ("flows", flows::suite),
    ("faults", faults::suite),
    ("ahead", ahead::suite),
    ("gup", gup::suite),
    ("errors", errors::suite),
    ("races", races::suite),
    ("copies", copies::suite),
    ("same_page", same_page::suite),
    ("dax", dax::suite),
    ("params", params::suite),
    ("load", load::suite),
    ("fio", fio::suite),
    ("apps", apps::suite),
    ("harness", harness::suite),
];

/// Every test of every suite, in the order in which they are run.
pub fn all() -> Vec<Test> {
    let mut tests = Vec::new();
    for (name, fill) in SUITES {
        let mut suite = Suite::new(name);
        fill(&mut suite);
        tests.append(&mut suite.tests);
    }
    tests
}
