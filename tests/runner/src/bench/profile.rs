// SPDX-License-Identifier: GPL-2.0

//! `make bench PROFILE=case`: guest instructions by function, exact, by a QEMU plugin
//! (tests/profile) that counts how often each piece of code runs.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};
use proto::On;
use runner::symbols::Symbols;
use runner::{Boot, Environment};

use super::{job, machine, Options, Row};

/// Functions shown.
const SHOWN: usize = 70;

pub fn run(env: &Environment, o: &Options<'_>, on: On) -> Result<bool> {
    let plugin = std::env::current_exe()?.with_file_name("libprofile_plugin.so");
    anyhow::ensure!(plugin.exists(), "{} is not built", plugin.display());
    let scratch = runner::vm::scratch_dir()?;
    let memory = scratch.path().join("memory");
    let counts = scratch.path().join("counts");
    let machine = machine(1);
    let symbols_at = machine.file_offset(machine.ranges[4].start);

    let mut boot = Boot::new(env, env.default_kernel(), machine);
    boot.log = env.log("bench-profile");
    boot.icount = Some(0);
    boot.memory = Some(memory.clone());
    boot.qemu_args = vec![
        "-plugin".into(),
        format!("{},out={}", plugin.display(), counts.display()),
    ];
    let sides = if on == On::C {
        "profile-c"
    } else {
        "profile-rust"
    };
    let mut rows: Vec<Row> = Vec::new();
    job(env, boot, o, sides, &mut |row| rows.push(row))?;

    let symbols = symbols(&File::open(&memory)?, symbols_at)?;
    let text = fs::read_to_string(&counts).context("the plugin left no counts")?;
    let mut cases: Vec<HashMap<&str, u64>> = vec![HashMap::new(); rows.len()];
    for line in text.lines() {
        let mut words = line.split(' ');
        let mut word = || words.next().context("counts");
        let case: usize = word()?.parse()?;
        let address = u64::from_str_radix(word()?, 16)?;
        let functions = cases.get_mut(case).context("more cases than figures")?;
        *functions.entry(symbols.name(address)).or_default() += word()?.parse::<u64>()?;
    }
    for (row, functions) in rows.iter().zip(cases) {
        let figures = if on == On::C { &row.c } else { &row.ours };
        let figure = Row::median(figures).unwrap_or(0.0);
        println!();
        println!(
            "{}, {}, {on:?}: {figure:.0} instructions per {}",
            row.case, row.fs, row.unit
        );
        let total: u64 = functions.values().sum();
        let mut list: Vec<_> = functions.into_iter().collect();
        list.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        for (name, count) in list.iter().take(SHOWN) {
            let share = *count as f64 / total as f64;
            println!("{:6.2}% {:9.1}  {name}", share * 100.0, share * figure);
        }
    }
    Ok(true)
}

/// The guest left the length and text of its /proc/kallsyms at `offset` of its memory.
fn symbols(memory: &File, offset: u64) -> Result<Symbols> {
    let mut len = [0; 8];
    memory.read_exact_at(&mut len, offset)?;
    let mut text = vec![0; u64::from_le_bytes(len) as usize];
    memory.read_exact_at(&mut text, offset + 8)?;
    Symbols::parse(&String::from_utf8_lossy(&text))
}
