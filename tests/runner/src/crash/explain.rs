// SPDX-License-Identifier: GPL-2.0

//! Who stored to the lines that a crash has lost: the runs are done again, which goes the same way to
//! the instruction, and the plugin notes the last store to each of those lines.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use powerfail::image::Point;
use powerfail::job::{self, Job, LastStore, Trace, KALLSYMS};
use runner::symbols::Symbols;

use super::{progress, table, Campaign, Check, Ground, Run};

/// Crashes explained of one boot's, stacks shown of each, functions of a stack.
const CRASHES: usize = 3;
const STACKS: usize = 4;
const FUNCTIONS: usize = 10;
/// Longer functions than this hardly exist: a word farther behind a symbol is none of its addresses.
const LONGEST: u64 = 16 << 10;

impl Campaign<'_> {
    /// Says of some of the failed points which lines were lost, and the stack of the last store to
    /// them. `runs` are those of the boot that the points are from, in their order.
    pub(super) fn explain(&self, runs: &[Run], failed: &[Check], scratch: &Path) -> Result<()> {
        // The first of each run.
        let mut chosen: BTreeMap<usize, &Check> = BTreeMap::new();
        for check in failed {
            if let Some(at) = runs.iter().position(|run| *run == check.run) {
                if chosen.len() < CRASHES {
                    chosen.entry(at).or_insert(check);
                }
            }
        }
        let Some(last) = chosen.keys().last() else {
            return Ok(());
        };
        let dir = scratch.join("explain");
        fs::create_dir_all(&dir)?;
        let mut jobs = Vec::new();
        for (at, run) in runs.iter().enumerate().take(last + 1) {
            let mut job = self.job(run, &dir)?;
            if let Some(check) = chosen.get(&at) {
                let crash = &check.crash;
                job.trace = Some(Trace {
                    lines: Point::load(&crash.point)?
                        .lost(crash.kind, crash.seed)
                        .collect(),
                    until: check.name.number,
                });
            }
            jobs.push(job);
        }
        jobs.push(Job {
            base: self.base(Ground::Raw),
            crash: None,
            sample: None,
            trace: None,
            keep: None,
            text: KALLSYMS.into(),
        });
        let names: Vec<_> = jobs
            .iter()
            .map(|_| "who stored what is lost".into())
            .collect();
        let death = self.boot("explain", &jobs, &names, &dir, true, &|_| {})?;
        let outcomes: Vec<job::Outcome> = job::read_lines(&dir.join("results"))?;
        if outcomes.len() < jobs.len() {
            let why = death.map_or(String::new(), |(why, _)| format!(": {why}"));
            self.say(format!("who stored what is lost: the guest died{why}"));
            return Ok(());
        }
        let kallsyms = outcomes.last().and_then(|o| o.result.as_deref());
        let symbols = Symbols::parse(kallsyms.context("the guest has no /proc/kallsyms")?)?;
        for (at, check) in chosen {
            let lines = jobs[at].trace.as_ref().map_or(0, |t| t.lines.len());
            let outcome = &outcomes[at];
            let run = &check.run;
            let mut text = format!(
                "{} on {} (seed {:#x}) at {}: {lines} lines lost",
                run.workload,
                run.fs,
                run.seed,
                table::point(&check.name),
            );
            if outcome.candidates == check.candidates {
                text += &stacks(&outcome.stores, progress(&check.name).acked, &symbols);
            } else {
                text += &format!(
                    "; no stacks: the run went another way ({} candidates, not {})",
                    outcome.candidates, check.candidates
                );
            }
            self.say(text);
        }
        Ok(())
    }
}

/// Lines with the same stack together, those of acknowledged operations first.
fn stacks(stores: &[LastStore], acked: u64, symbols: &Symbols) -> String {
    let mut groups: BTreeMap<(bool, u64, String), Vec<usize>> = BTreeMap::new();
    for store in stores {
        let begun = store.begun.unwrap_or(0);
        let key = (begun > acked, begun, stack(store, symbols));
        groups.entry(key).or_default().push(store.line);
    }
    let mut text = String::new();
    for ((pending, begun, stack), lines) in groups.iter().take(STACKS) {
        text += &format!(
            "\n    {} line{} (the first at {:#x}), last stored to in operation {begun}{} by\n        {stack}",
            lines.len(),
            if lines.len() == 1 { "" } else { "s" },
            lines[0],
            if *pending { ", in progress" } else { ", acknowledged" },
        );
    }
    if groups.len() > STACKS {
        text += &format!("\n    and by {} others", groups.len() - STACKS);
    }
    text
}

fn stack(store: &LastStore, symbols: &Symbols) -> String {
    let mut words = store.stack.iter();
    let Some(&pc) = words.next() else {
        return "an unknown instruction".into();
    };
    if pc < 1 << 63 {
        return format!("user space at {pc:#x}");
    }
    let functions = words
        .filter_map(|&word| symbols.place(word))
        .filter(|(_, offset)| (1..LONGEST).contains(offset))
        .map(|(name, offset)| format!("{name}+{offset:#x}"));
    let (name, offset) = symbols.place(pc).unwrap_or(("(unknown)", 0));
    std::iter::once(format!("{name}+{offset:#x}"))
        .chain(functions)
        .take(FUNCTIONS)
        .collect::<Vec<_>>()
        .join(" < ")
}
