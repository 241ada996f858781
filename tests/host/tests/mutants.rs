// SPDX-License-Identifier: GPL-2.0

//! `make mutants` takes an hour, so it is run now and then only. Here: that each mistake of its table
//! can still be made. (Whether its test is there is for `make mutants` to find out.)

use std::{
    fs,
    path::Path, //
};

#[test]
fn each_replaces_what_is_there_once() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let table = fs::read_to_string(root.join("tests/mutants/table")).expect("the table");
    let mut mutants = 0;
    for line in table
        .lines()
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
    {
        let fields: Vec<&str> = line.split(" | ").map(str::trim).collect();
        let [name, file, _test, from, to] = fields[..] else {
            panic!("not five fields: {line}");
        };
        let source = fs::read_to_string(root.join(file)).expect(file);
        assert_eq!(source.matches(from).count(), 1, "{name}: {file}: {from}");
        assert_ne!(from, to, "{name}");
        mutants += 1;
    }
    assert!(mutants > 0, "no mutants");
}
