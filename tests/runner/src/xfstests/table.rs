// SPDX-License-Identifier: GPL-2.0

//! Results of xfstests as data: `build/results/xfstests.tsv`, which keeps the latest result of
//! each test over all runs, and `xfstests-config/expected.tsv`, which is compared with.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use proto::xfstests::Verdict;
use proto::On;

/// What identifies a result.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    section: String,
    test: String,
    on: &'static str,
    kernel: String,
}

impl Key {
    pub fn new(section: &str, test: &str, on: On, kernel: &str) -> Self {
        Key {
            section: section.into(),
            test: test.into(),
            on: match on {
                On::Rust => "rust",
                On::C => "c",
            },
            kernel: kernel.into(),
        }
    }

    fn on(&self, on: &'static str) -> Key {
        Key { on, ..self.clone() }
    }
}

#[derive(Clone, Debug)]
pub struct Row {
    pub verdict: Verdict,
    pub seconds: f64,
    /// One line; empty for a pass.
    pub reason: String,
}

#[derive(Default)]
struct Table(BTreeMap<Key, Row>);

const HEAD: &str = "section\ttest\ton\tkernel\tresult\tseconds\treason";

impl Table {
    /// Of two rows with one key the later counts. No file: an empty table.
    fn read(path: &Path) -> Result<Table> {
        let mut table = Table::default();
        let Ok(text) = fs::read_to_string(path) else {
            return Ok(table);
        };
        for line in text.lines().filter(|l| *l != HEAD) {
            let (key, row) = Self::parse(line)
                .with_context(|| format!("{}: {line:?} is no result", path.display()))?;
            table.0.insert(key, row);
        }
        Ok(table)
    }

    fn parse(line: &str) -> Option<(Key, Row)> {
        let mut fields = line.splitn(7, '\t');
        let mut next = || fields.next();
        let key = Key {
            section: next()?.into(),
            test: next()?.into(),
            on: match next()? {
                "c" => "c",
                "rust" => "rust",
                _ => return None,
            },
            kernel: next()?.into(),
        };
        let row = Row {
            verdict: Verdict::from_word(next()?)?,
            seconds: next()?.parse().ok()?,
            reason: next().unwrap_or_default().into(),
        };
        Some((key, row))
    }

    fn line(key: &Key, row: &Row) -> String {
        format!(
            "{}\t{}\t{}\t{}\t{}\t{:.0}\t{}",
            key.section,
            key.test,
            key.on,
            key.kernel,
            row.verdict.word(),
            row.seconds,
            row.reason.replace(['\t', '\n'], " ")
        )
    }

    fn write(&self, path: &Path) -> Result<()> {
        let dir = path.parent().context("table without directory")?;
        fs::create_dir_all(dir)?;
        let mut text = format!("{HEAD}\n");
        for (key, row) in &self.0 {
            text += &Self::line(key, row);
            text.push('\n');
        }
        let new = path.with_extension("tsv.new");
        fs::write(&new, text)?;
        fs::rename(new, path)?;
        Ok(())
    }

    /// A result with this kernel, else with any.
    fn nearest(&self, key: &Key) -> Option<&Row> {
        self.0.get(key).or_else(|| {
            let same = |k: &Key| k.on == key.on && k.section == key.section && k.test == key.test;
            self.0.iter().find(|(k, _)| same(k)).map(|(_, row)| row)
        })
    }
}

/// Takes results: a line each above a progress bar, a row in the table at once, and the log of
/// what went wrong in a file.
pub struct Results {
    table: Table,
    expected: Table,
    path: PathBuf,
    expected_path: PathBuf,
    file: File,
    logs: PathBuf,
    bar: ProgressBar,
    /// Of this run, in order.
    fresh: Vec<Key>,
}

impl Results {
    /// `dir` has the table and the logs.
    pub fn open(dir: &Path, expected: &Path) -> Result<Self> {
        let path = dir.join("xfstests.tsv");
        let table = Table::read(&path)?;
        // Sorted, and without rows that later ones replaced.
        table.write(&path)?;
        let logs = dir.join("logs/xfstests");
        fs::create_dir_all(&logs)?;
        let bar = ProgressBar::new(0);
        bar.set_style(ProgressStyle::with_template(
            "{elapsed_precise} [{bar:30}] {pos}/{len} {msg}",
        )?);
        Ok(Results {
            table,
            expected: Table::read(expected)?,
            file: File::options().append(true).open(&path)?,
            path,
            expected_path: expected.into(),
            logs,
            bar,
            fresh: Vec::new(),
        })
    }

    pub fn has(&self, key: &Key) -> bool {
        self.table.0.contains_key(key)
    }

    /// The number of results to come.
    pub fn expect(&self, total: usize) {
        self.bar.set_length(total as u64);
    }

    pub fn say(&self, line: impl AsRef<str>) {
        self.bar.suspend(|| println!("{}", line.as_ref()));
    }

    /// What is under way, shown beside the bar.
    pub fn now(&self, text: impl Into<String>) {
        self.bar.set_message(text.into());
        self.bar.tick();
    }

    pub fn add(&mut self, key: Key, row: Row, log: &str) -> Result<()> {
        writeln!(self.file, "{}", Table::line(&key, &row))?;
        let mut line = format!(
            "{:7} {} [{} {}] {:.0} s",
            row.verdict.word(),
            key.test,
            key.section,
            key.on,
            row.seconds
        );
        if !row.reason.is_empty() {
            line += &format!(": {}", row.reason);
        }
        if row.verdict.is_bad() {
            let name = format!("{}-{}-{}-{}.log", key.kernel, key.on, key.section, key.test);
            let path = self.logs.join(name.replace('/', "-"));
            fs::write(&path, log)?;
            line += &format!("\n        log: {}", path.display());
        }
        self.say(line);
        self.table.0.insert(key.clone(), row);
        self.fresh.push(key);
        self.bar.inc(1);
        Ok(())
    }

    /// Makes this run's results the expected ones.
    pub fn accept(&mut self) -> Result<()> {
        for key in &self.fresh {
            self.expected
                .0
                .insert(key.clone(), self.table.0[key].clone());
        }
        self.expected.write(&self.expected_path)
    }

    fn on_c(&self, key: &Key) -> Option<&Row> {
        let key = key.on("c");
        self.table
            .nearest(&key)
            .or_else(|| self.expected.nearest(&key))
    }

    /// A result that must not be: bad, and not known to be bad on C as well.
    fn unexpected(&self, key: &Key) -> bool {
        let known_bad = match key.on {
            "c" => self
                .expected
                .nearest(key)
                .is_some_and(|r| r.verdict.is_bad()),
            _ => self.on_c(key).is_some_and(|r| r.verdict.is_bad()),
        };
        self.table.0[key].verdict.is_bad() && !known_bad
    }

    /// Prints the table of this run, C beside ours, and the sums. True: nothing unexpected.
    pub fn finish(self) -> Result<bool> {
        self.bar.finish_and_clear();
        self.table.write(&self.path)?;
        let cell = |row: Option<&Row>| match row {
            Some(row) => format!("{:8}{:5.0} s", row.verdict.word(), row.seconds),
            None => format!("{:15}", "-"),
        };
        println!("{:12} {:12} {:15}  {:15}", "section", "test", "C", "ours");
        let mut sums: BTreeMap<(&str, &str), BTreeMap<&str, usize>> = BTreeMap::new();
        let mut unexpected = Vec::new();
        let mut better = Vec::new();
        for key in &self.fresh {
            let row = &self.table.0[key];
            let ours = key.on("rust");
            let ours = self
                .table
                .nearest(&ours)
                .or_else(|| self.expected.nearest(&ours));
            let c = self.on_c(key);
            let (left, right) = (cell(c), cell(ours));
            println!(
                "{:12} {:12} {left}  {right}  {}",
                key.section, key.test, row.reason
            );
            let sum = sums.entry((&key.section, key.on)).or_default();
            *sum.entry(row.verdict.word()).or_default() += 1;
            if self.unexpected(key) {
                unexpected.push(key);
            }
            let c_bad = c.is_some_and(|c| c.verdict.is_bad());
            if key.on == "rust" && row.verdict == Verdict::Pass && c_bad {
                better.push(key);
            }
        }
        for ((section, on), sum) in &sums {
            let words: Vec<_> = sum.iter().map(|(word, n)| format!("{n} {word}")).collect();
            println!("{section} on {on}: {}", words.join(", "));
        }
        for (what, keys) in [
            ("bad on C, passed on ours", &better),
            ("unexpected", &unexpected),
        ] {
            if !keys.is_empty() {
                println!("{what}:");
            }
            for key in keys {
                let reason = &self.table.0[*key].reason;
                println!("  {} [{} {}] {reason}", key.test, key.section, key.on);
            }
        }
        println!("results: {}", self.path.display());
        println!(
            "{} tests, {} unexpected results",
            self.fresh.len(),
            unexpected.len()
        );
        Ok(unexpected.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(line: &str) -> (Key, Row) {
        Table::parse(line).unwrap()
    }

    #[test]
    fn rows_survive_being_written_and_read() {
        let line = "ext4\tgeneric/080\tc\t7.3.4\tfail\t12\toutput mismatch: a b";
        let (key, r) = row(line);
        assert_eq!(Table::line(&key, &r), line);
        assert!(Table::parse("ext4\tgeneric/080\tc\t7.3.4\twhat\t12\t").is_none());
        assert!(Table::parse("ext4\tgeneric/080\td\t7.3.4\tpass\t12\t").is_none());
    }

    #[test]
    fn only_what_c_passes_is_unexpected() {
        let dir = tempfile::tempdir().unwrap();
        let expected = dir.path().join("expected.tsv");
        fs::write(
            &expected,
            "s\tgeneric/001\tc\t7.2\tpass\t1\t\ns\tgeneric/002\tc\t7.2\tfail\t1\twhy\n",
        )
        .unwrap();
        let mut results = Results::open(dir.path(), &expected).unwrap();
        for (test, want) in [
            ("generic/001", true),
            ("generic/002", false),
            ("generic/003", true),
        ] {
            let (key, r) = row(&format!("s\t{test}\trust\t7.3\tfail\t1\tx"));
            results.add(key.clone(), r, "").unwrap();
            assert_eq!(results.unexpected(&key), want, "{test}");
        }
        assert!(results.has(&Key::new("s", "generic/001", On::Rust, "7.3")));
        // What came is in the file already.
        assert_eq!(
            Table::read(&dir.path().join("xfstests.tsv"))
                .unwrap()
                .0
                .len(),
            3
        );
    }
}
