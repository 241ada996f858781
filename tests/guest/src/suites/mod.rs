// SPDX-License-Identifier: GPL-2.0

//! The suites. Each file is one; a test's full name is `suite::name`.

mod block;

use crate::test::{Suite, Test};

/// Every test of every suite, in the order in which they are run.
pub fn all() -> Vec<Test> {
    let suites: &[(&'static str, fn(&mut Suite))] = &[("block", block::suite)];
    let mut tests = Vec::new();
    for (name, fill) in suites {
        let mut suite = Suite::new(name);
        fill(&mut suite);
        tests.append(&mut suite.tests);
    }
    tests
}
