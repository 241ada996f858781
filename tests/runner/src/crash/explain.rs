// SPDX-License-Identifier: GPL-2.0

//! Who stored to the lines that a crash has lost: the runs are done again, which goes the same way to
//! the instruction, and the plugin notes the last store to each of those lines.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{ensure, Context, Result};
use powerfail::image::Point;
use powerfail::job::{self, Job, LastStore, Trace, MAPS, SYMBOLS};
use runner::symbols::Symbols;

use super::{progress, table, Campaign, Check, Ground, Run};

/// Crashes explained of one boot's, stacks shown of each, functions of a stack.
const CRASHES: usize = 3;
const STACKS: usize = 4;
const FUNCTIONS: usize = 10;
/// The guest program, where it runs.
const PROGRAM: &str = "init";
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
        if failed.len() > chosen.len() {
            self.say(format!(
                "who stored what is lost: looked up for {} of {} crashes of this boot",
                chosen.len(),
                failed.len()
            ));
        }
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
            text: SYMBOLS.into(),
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
        let text = outcomes.last().and_then(|o| o.result.as_deref());
        let places = Places::new(text.context("the guest has no symbols")?, &self.env.guest)?;
        for (at, check) in chosen {
            let lost = jobs[at].trace.take().map(|t| t.lines).unwrap_or_default();
            let outcome = &outcomes[at];
            let run = &check.run;
            let mut text = format!(
                "{} on {} (seed {:#x}) at {}: {} lines lost",
                run.workload,
                run.fs,
                run.seed,
                table::point(&check.name),
                lost.len(),
            );
            if outcome.candidates == check.candidates {
                let stores: BTreeMap<usize, (u64, String)> = outcome
                    .stores
                    .iter()
                    .map(|s| (s.line, (s.begun.unwrap_or(0), places.stack(s))))
                    .collect();
                text += &stacks(&stores, progress(&check.name).acked);
                write_lines(&self.kept(check, "lines"), &lost, &stores)?;
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

/// Writes the lost lines of a point to a file: offset in the range, and if it is known the
/// operation of the last store to it and its stack.
pub(super) fn write_lines(
    path: &Path,
    lost: &BTreeSet<usize>,
    stores: &BTreeMap<usize, (u64, String)>,
) -> Result<()> {
    let mut text = String::from("line\toperation\tstack\n");
    for line in lost {
        text += &match stores.get(line) {
            Some((begun, stack)) => format!("{line:#x}\t{begun}\t{stack}\n"),
            None => format!("{line:#x}\t\t\n"),
        };
    }
    fs::write(path, text).with_context(|| path.display().to_string())
}

/// Lines with the same stack together, those of acknowledged operations first.
fn stacks(stores: &BTreeMap<usize, (u64, String)>, acked: u64) -> String {
    let mut groups: BTreeMap<(bool, u64, &str), Vec<usize>> = BTreeMap::new();
    for (&line, (begun, stack)) in stores {
        let key = (*begun > acked, *begun, stack.as_str());
        groups.entry(key).or_default().push(line);
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

/// A mapping of a program or library that holds code.
struct Code {
    start: u64,
    end: u64,
    /// The address that is 0 in the file's own symbols.
    base: u64,
    name: String,
}

/// Names for addresses in the kernel, in the program that runs the workloads, and in its libraries.
struct Places {
    kernel: Symbols,
    program: Symbols,
    code: Vec<Code>,
}

impl Places {
    /// From the guest's answer to [`SYMBOLS`] and its program, which it has as /init.
    fn new(answer: &str, program: &Path) -> Result<Self> {
        let (kernel, maps) = answer.split_once(MAPS).context("no maps")?;
        let nm = Command::new("nm").arg("-C").arg(program).output();
        let nm = nm.context("cannot run nm")?;
        ensure!(nm.status.success(), "nm of the guest program failed");
        Ok(Places {
            kernel: Symbols::parse(kernel)?,
            program: Symbols::parse(&String::from_utf8_lossy(&nm.stdout))?,
            code: maps.lines().filter_map(parse_mapping).collect(),
        })
    }

    /// The function or library that an address is in, and how far behind its beginning.
    fn place(&self, address: u64) -> Option<(&str, u64)> {
        if address >= 1 << 63 {
            return self.kernel.place(address);
        }
        let code = self
            .code
            .iter()
            .find(|c| (c.start..c.end).contains(&address))?;
        let offset = address - code.base;
        match code.name.as_str() {
            PROGRAM => self.program.place(offset),
            library => Some((library, offset)),
        }
    }

    fn stack(&self, store: &LastStore) -> String {
        let mut words = store.stack.iter();
        let Some(&pc) = words.next() else {
            return "an unknown instruction".into();
        };
        let functions = words
            .filter_map(|&word| self.place(word))
            .filter(|(name, offset)| name.contains(".so") || (1..LONGEST).contains(offset))
            .map(|(name, offset)| format!("{name}+{offset:#x}"));
        let first = match self.place(pc) {
            Some((name, offset)) => format!("{name}+{offset:#x}"),
            None => format!("{pc:#x}"),
        };
        std::iter::once(first)
            .chain(functions)
            .take(FUNCTIONS)
            .collect::<Vec<_>>()
            .join(" < ")
    }
}

/// A line of /proc/PID/maps, if it is of a file's code.
fn parse_mapping(line: &str) -> Option<Code> {
    let mut words = line.split_whitespace();
    let (range, rights, offset) = (words.next()?, words.next()?, words.next()?);
    let (_device, _inode, path) = (words.next()?, words.next()?, words.next()?);
    let (start, end) = range.split_once('-')?;
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let (start, end) = (hex(start)?, hex(end)?);
    (rights.contains('x') && path.starts_with('/')).then_some(Code {
        start,
        end,
        base: start - hex(offset)?,
        name: path.rsplit('/').next()?.into(),
    })
}
