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
    fn nearest(&self, key: &Key) -> Option<(&Key, &Row)> {
        self.0.get_key_value(key).or_else(|| {
            let same = |k: &Key| k.on == key.on && k.section == key.section && k.test == key.test;
            self.0.iter().find(|(k, _)| same(k))
        })
    }
}

/// A result that is shown or compared with, and where it is from.
#[derive(Clone, Copy)]
struct Known<'a> {
    row: &'a Row,
    /// expected.tsv, not build/results/xfstests.tsv.
    expected: bool,
    other_kernel: bool,
}

impl Known<'_> {
    fn is(&self, verdict: Verdict) -> bool {
        self.row.verdict == verdict
    }
}

/// What a section comes to on one side.
#[derive(Default)]
struct Sums {
    passed: usize,
    failed: usize,
    notrun: usize,
    excluded: usize,
    /// Of these, from expected.tsv.
    expected: usize,
    /// Of these, with another kernel.
    other_kernel: usize,
}

impl Sums {
    fn add(&mut self, known: Known) {
        match known.row.verdict {
            Verdict::Pass => self.passed += 1,
            Verdict::Fail | Verdict::Timeout | Verdict::Died => self.failed += 1,
            Verdict::Notrun => self.notrun += 1,
            Verdict::Excluded => self.excluded += 1,
        }
        self.expected += usize::from(known.expected);
        self.other_kernel += usize::from(known.other_kernel);
    }

    fn from(&self) -> String {
        let mut from = Vec::new();
        for (n, what) in [
            (self.expected, "from expected.tsv"),
            (self.other_kernel, "with another kernel"),
        ] {
            if n > 0 {
                from.push(format!("{n} {what}"));
            }
        }
        from.join(", ")
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
    /// The sections and tests that the run is about, in order; those that it leaves out because
    /// they have a result already, or because they are excluded, as well.
    chosen: Vec<Key>,
    /// What went wrong in a guest outside of its tests.
    troubles: Vec<String>,
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
            chosen: Vec::new(),
            troubles: Vec::new(),
        })
    }

    pub fn has(&self, key: &Key) -> bool {
        let row = self.table.0.get(key);
        row.is_some_and(|row| row.verdict != Verdict::Excluded)
    }

    /// The table is to have this test.
    pub fn choose(&mut self, key: Key) {
        self.chosen.push(key);
    }

    /// The table is to have this test, as one that is not tried.
    pub fn exclude(&mut self, key: Key, reason: &str) -> Result<()> {
        let row = Row {
            verdict: Verdict::Excluded,
            seconds: 0.0,
            reason: reason.into(),
        };
        writeln!(self.file, "{}", Table::line(&key, &row))?;
        self.table.0.insert(key.clone(), row);
        self.choose(key);
        Ok(())
    }

    pub fn chosen(&self) -> usize {
        self.chosen.len()
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
        self.table.0.insert(key, row);
        self.bar.inc(1);
        Ok(())
    }

    /// What went wrong in a guest, after `test`, and was no test's fault: the kernel log when all
    /// is unmounted, the unloading of the module. It is as bad as a failed test.
    pub fn trouble(&mut self, key: &Key, what: &str, log: &str) -> Result<()> {
        let name = format!(
            "{}-{}-{}-after-{}.log",
            key.kernel, key.on, key.section, key.test
        );
        let path = self.logs.join(name.replace('/', "-"));
        fs::write(&path, log)?;
        let text = format!(
            "{what} [{} {}, after {}] (log: {})",
            key.section,
            key.on,
            key.test,
            path.display()
        );
        self.say(&text);
        self.troubles.push(text);
        Ok(())
    }

    /// Makes the results of the chosen tests the expected ones, on both sides.
    pub fn accept(&mut self) -> Result<()> {
        for key in &self.chosen {
            for key in [key.on("c"), key.on("rust")] {
                let row = self.table.0.get(&key);
                if let Some(row) = row.filter(|row| row.verdict != Verdict::Excluded) {
                    self.expected.0.insert(key, row.clone());
                }
            }
        }
        self.expected.write(&self.expected_path)
    }

    /// The result of a test: the latest one, else the expected one, rather with this kernel.
    fn known(&self, key: &Key) -> Option<Known<'_>> {
        let both = [(&self.table, false), (&self.expected, true)];
        let known = both.into_iter().filter_map(|(table, expected)| {
            let (found, row) = table.nearest(key)?;
            Some(Known {
                row,
                expected,
                other_kernel: found.kernel != key.kernel,
            })
        });
        known.min_by_key(|known| known.other_kernel)
    }

    /// A result of ours that must not be: anything but a pass where C, or ours before, passed;
    /// bad where C's is not known to be bad as well; a guest that died or hung, a corrupt file system
    /// or a complaint of the kernel, which no failure on C of another kind excuses; a test that is left
    /// out and passes on C. C itself is compared with what is expected of it.
    fn unexpected(&self, key: &Key) -> bool {
        let Some(row) = self.table.0.get(key) else {
            return false;
        };
        let before = self.expected.nearest(key).map(|(_, row)| row);
        let c = match key.on {
            "c" => before,
            _ => self.known(&key.on("c")).map(|known| known.row),
        };
        let others = [before, c].into_iter().flatten();
        let is = |verdict| others.clone().any(|row| row.verdict == verdict);
        let worse = is(Verdict::Pass);
        let says = |row: &Row, what: &str| row.reason.contains(what);
        let grave = ["_check_dmesg", "inconsistent"]
            .into_iter()
            .any(|what| says(row, what) && !others.clone().any(|other| says(other, what)));
        match row.verdict {
            Verdict::Pass => false,
            Verdict::Notrun => worse,
            Verdict::Excluded => c.is_some_and(|c| c.verdict == Verdict::Pass),
            Verdict::Fail => worse || grave || !c.is_some_and(|c| c.verdict.is_bad()),
            same @ (Verdict::Timeout | Verdict::Died) => worse || !is(same),
        }
    }

    /// A test that is not run on ours, and never was tried on C: nobody knows whether it could be.
    fn unknown_on_c(&self, key: &Key) -> bool {
        let ours = self.known(&key.on("rust"));
        ours.is_some_and(|ours| ours.is(Verdict::Notrun)) && self.known(&key.on("c")).is_none()
    }

    /// Prints the table of the chosen tests, C beside ours, and the sums. True: nothing
    /// unexpected. `on` is the side of this run.
    pub fn finish(self, on: On) -> Result<bool> {
        self.bar.finish_and_clear();
        self.table.write(&self.path)?;
        let cell = |known: Option<Known>| match known {
            Some(Known { row, expected, .. }) => {
                let mark = if expected { '*' } else { ' ' };
                match row.verdict {
                    Verdict::Excluded => format!("{:16}{mark}", row.verdict.word()),
                    _ => format!("{:8} {:5.0} s{mark}", row.verdict.word(), row.seconds),
                }
            }
            None => format!("{:17}", "-"),
        };
        println!("{:12} {:12} {:17} {:17}", "section", "test", "C", "ours");
        let mut sums: BTreeMap<(&str, &str), Sums> = BTreeMap::new();
        let mut unexpected = Vec::new();
        let mut better = Vec::new();
        for key in &self.chosen {
            let sides = [key.on("c"), key.on("rust")];
            let [c, ours] = [0, 1].map(|i| self.known(&sides[i]));
            for (on, known) in [("C", c), ("ours", ours)] {
                if let Some(known) = known {
                    sums.entry((&key.section, on)).or_default().add(known);
                }
            }
            let mut reasons = [ours, c].into_iter().flatten().map(|k| &k.row.reason);
            let reason = reasons.find(|r| !r.is_empty());
            if c.is_some() || ours.is_some() {
                println!(
                    "{:12} {:12} {} {} {}",
                    key.section,
                    key.test,
                    cell(c),
                    cell(ours),
                    reason.map_or("", |r| r)
                );
            }
            if c.is_some_and(|c| c.row.verdict.is_bad())
                && ours.is_some_and(|o| o.is(Verdict::Pass))
            {
                better.push(sides[0].clone());
            }
            unexpected.extend(sides.into_iter().filter(|key| self.unexpected(key)));
        }
        println!(
            "* from expected.tsv; the rest is from {}",
            self.path.display()
        );
        println!(
            "{:12} {:5} {:>6} {:>7} {:>7} {:>8} {:>9}",
            "section", "on", "run", "passed", "failed", "not run", "excluded"
        );
        for ((section, on), sum) in &sums {
            println!(
                "{section:12} {on:5} {:6} {:7} {:7} {:8} {:9}  {}",
                sum.passed + sum.failed,
                sum.passed,
                sum.failed,
                sum.notrun,
                sum.excluded,
                sum.from()
            );
        }
        for (what, keys) in [
            ("bad on C, passed on ours", &better),
            ("unexpected", &unexpected),
        ] {
            if !keys.is_empty() {
                println!("{what}:");
            }
            for key in keys {
                let known = self.known(key);
                let (verdict, reason) =
                    known.map_or(("", ""), |k| (k.row.verdict.word(), &k.row.reason));
                println!(
                    "  {} [{} {}] {verdict}: {reason}",
                    key.test, key.section, key.on
                );
            }
        }
        if !self.troubles.is_empty() {
            println!("in guests, but in none of their tests:");
        }
        for trouble in &self.troubles {
            println!("  {trouble}");
        }
        let untried = self
            .chosen
            .iter()
            .filter(|key| !self.table.0.contains_key(key));
        let unknown = self.chosen.iter().filter(|key| self.unknown_on_c(key));
        match unknown.count() {
            0 => {}
            n => println!("{n} tests are not run on ours and were not tried on C (ON=c)"),
        }
        println!(
            "{} tests, {} not tried yet on {}, {} unexpected results",
            self.chosen.len(),
            untried.count(),
            match on {
                On::Rust => "ours",
                On::C => "C",
            },
            unexpected.len() + self.troubles.len()
        );
        Ok(unexpected.is_empty() && self.troubles.is_empty())
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
    fn worse_than_c_is_unexpected() {
        let dir = tempfile::tempdir().unwrap();
        let expected = dir.path().join("expected.tsv");
        fs::write(
            &expected,
            "s\tgeneric/001\tc\t7.2\tpass\t1\t\n\
             s\tgeneric/002\tc\t7.2\tfail\t1\twhy\n\
             s\tgeneric/004\tc\t7.3\tnotrun\t1\twhy\n\
             s\tgeneric/006\tc\t7.2\tfail\t1\twhy\n\
             s\tgeneric/006\trust\t7.2\tpass\t1\t\n\
             s\tgeneric/007\tc\t7.2\ttimeout\t1\twhy\n\
             s\tgeneric/008\tc\t7.2\ttimeout\t1\twhy\n\
             s\tgeneric/008\trust\t7.2\tpass\t1\t\n\
             s\tgeneric/009\tc\t7.2\tfail\t1\t_check_dmesg: look\n",
        )
        .unwrap();
        let mut results = Results::open(dir.path(), &expected).unwrap();
        for (test, verdict, want) in [
            ("generic/001", "fail", true),
            ("generic/001", "notrun", true),
            ("generic/001", "pass", false),
            ("generic/002", "fail", false),
            ("generic/002", "notrun", false),
            ("generic/002", "died", true),
            ("generic/002", "timeout", true),
            ("generic/003", "fail", true),
            ("generic/004", "notrun", false),
            ("generic/004", "died", true),
            ("generic/006", "fail", true),
            ("generic/006", "notrun", true),
            ("generic/006", "pass", false),
            ("generic/007", "timeout", false),
            ("generic/007", "died", true),
            ("generic/008", "timeout", true),
            ("generic/001", "excluded", true),
            ("generic/002", "excluded", false),
        ] {
            let (key, r) = row(&format!("s\t{test}\trust\t7.3\t{verdict}\t1\tx"));
            results.add(key.clone(), r, "").unwrap();
            assert_eq!(results.unexpected(&key), want, "{test} {verdict}");
        }
        for (test, reason, want) in [
            ("generic/002", "file system on /dev/x is inconsistent", true),
            ("generic/009", "_check_dmesg: look", false),
            ("generic/009", "file system on /dev/x is inconsistent", true),
        ] {
            let (key, r) = row(&format!("s\t{test}\trust\t7.3\tfail\t1\t{reason}"));
            results.add(key.clone(), r, "").unwrap();
            assert_eq!(results.unexpected(&key), want, "{test} {reason}");
        }
        let key = Key::new("s", "generic/007", On::Rust, "7.3");
        assert!(results.has(&key));
        // What came is in the file already.
        let file = Table::read(&dir.path().join("xfstests.tsv")).unwrap();
        assert_eq!(file.0.len(), 8);
        // An excluded test has a row, but may be tried once it is excluded no more.
        let key = Key::new("s", "generic/005", On::Rust, "7.3");
        results.exclude(key.clone(), "why").unwrap();
        assert!(!results.has(&key) && !results.unexpected(&key));
        assert!(results.known(&key).unwrap().is(Verdict::Excluded));
    }

    #[test]
    fn trouble_outside_of_a_test_is_a_failure() {
        let dir = tempfile::tempdir().unwrap();
        for trouble in [false, true] {
            let mut results = Results::open(dir.path(), &dir.path().join("expected.tsv")).unwrap();
            let (key, r) = row("s\tgeneric/001\trust\t7.3\tpass\t1\t");
            results.choose(key.clone());
            results.add(key.clone(), r, "").unwrap();
            if trouble {
                results.trouble(&key, "cannot be unloaded", "log").unwrap();
            }
            assert_eq!(results.finish(On::Rust).unwrap(), !trouble);
        }
    }

    #[test]
    fn what_is_known_is_rather_of_this_kernel_than_of_this_run() {
        let dir = tempfile::tempdir().unwrap();
        let expected = dir.path().join("expected.tsv");
        fs::write(&expected, "s\tgeneric/001\tc\t7.3\tpass\t1\t\n").unwrap();
        let mut results = Results::open(dir.path(), &expected).unwrap();
        let (key, r) = row("s\tgeneric/001\tc\t7.2\tfail\t1\tx");
        results.add(key.clone(), r, "").unwrap();
        assert!(!results.known(&key).unwrap().expected);
        for (kernel, verdict) in [("7.3", Verdict::Pass), ("7.4", Verdict::Fail)] {
            let key = Key::new("s", "generic/001", On::C, kernel);
            assert!(results.known(&key).unwrap().is(verdict), "{kernel}");
        }
    }
}
