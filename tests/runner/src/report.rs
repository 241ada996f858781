// SPDX-License-Identifier: GPL-2.0

//! Results: printed as they come, kept as data.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use proto::Outcome;

/// One test's result.
#[derive(Clone, Debug)]
pub struct Record {
    pub suite: String,
    pub test: String,
    pub kernel: String,
    pub outcome: Outcome,
    pub seconds: f64,
}

struct State {
    tsv: File,
    passed: usize,
    failed: Vec<String>,
    skipped: usize,
}

/// Takes results from several threads: a line each (above a progress bar on a terminal), a row
/// in the table, and the log of each test in a file of its own.
pub struct Report {
    logs: PathBuf,
    bar: ProgressBar,
    state: Mutex<State>,
    started: Instant,
}

impl Report {
    /// `table` is the .tsv file; logs go to `logs` beside it.
    pub fn new(table: &Path, total: usize) -> Result<Report> {
        let dir = table.parent().context("table without directory")?;
        let logs = dir.join("logs");
        fs::create_dir_all(&logs)?;
        let mut tsv = File::create(table).with_context(|| table.display().to_string())?;
        writeln!(tsv, "suite\ttest\tkernel\tresult\tseconds")?;
        let bar = ProgressBar::new(total as u64);
        bar.set_style(ProgressStyle::with_template(
            "{elapsed_precise} [{bar:30}] {pos}/{len} {msg}",
        )?);
        Ok(Report {
            logs,
            bar,
            state: Mutex::new(State {
                tsv,
                passed: 0,
                failed: Vec::new(),
                skipped: 0,
            }),
            started: Instant::now(),
        })
    }

    /// A line for the reader.
    pub fn say(&self, line: impl AsRef<str>) {
        self.bar.suspend(|| println!("{}", line.as_ref()));
    }

    /// What is under way, shown beside the bar.
    pub fn now(&self, text: impl Into<String>) {
        self.bar.set_message(text.into());
        self.bar.tick();
    }

    /// More tests than thought at first.
    pub fn more(&self, count: usize) {
        self.bar.inc_length(count as u64);
    }

    /// Adds a result; `log` goes to a file, which a failure's line names.
    pub fn add(&self, record: Record, log: &str) -> Result<()> {
        let name = format!("{}::{}", record.suite, record.test);
        let path = self.logs.join(format!(
            "{}-{}-{}.log",
            record.kernel,
            record.suite,
            record.test.replace(['/', ':', ' '], "-")
        ));
        if !log.is_empty() {
            fs::write(&path, log)?;
        }
        let (word, line) = match &record.outcome {
            Outcome::Passed => ("passed", String::new()),
            Outcome::Skipped(why) => ("skipped", format!(": {why}")),
            Outcome::Failed(why) => ("failed", format!(": {why}\n       log: {}", path.display())),
        };
        self.say(format!(
            "{word:7} {name} [{}] {:.1} s{line}",
            record.kernel, record.seconds
        ));
        let mut state = self.state.lock().unwrap();
        writeln!(
            state.tsv,
            "{}\t{}\t{}\t{word}\t{:.2}",
            record.suite, record.test, record.kernel, record.seconds
        )?;
        match record.outcome {
            Outcome::Passed => state.passed += 1,
            Outcome::Skipped(_) => state.skipped += 1,
            Outcome::Failed(why) => state
                .failed
                .push(format!("{name} [{}]: {why}", record.kernel)),
        }
        self.bar.inc(1);
        Ok(())
    }

    /// Prints the sum as the last line. True: nothing failed.
    pub fn finish(self) -> bool {
        self.bar.finish_and_clear();
        let state = self.state.into_inner().unwrap();
        if !state.failed.is_empty() {
            println!("failed:");
            for failure in &state.failed {
                println!("  {failure}");
            }
        }
        println!("in {:.0} s", self.started.elapsed().as_secs_f64());
        print!("{} passed, {} failed", state.passed, state.failed.len());
        if state.skipped > 0 {
            print!(", {} skipped", state.skipped);
        }
        println!();
        state.failed.is_empty()
    }
}
