// SPDX-License-Identifier: GPL-2.0

//! Runs tests of an xfstests tree (at /xfstests, put there by the runner) on the first two disks
//! and reports each as it ends.

use std::collections::HashSet;
use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{channel, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use proto::xfstests::{Progress, Verdict};

use crate::fixture::flushes::Counters;
use crate::fixture::fs::is_dax;
use crate::fixture::{sh, Disk, Driver};
use crate::test::Ctx;

const TREE: &str = "/xfstests";
const CONFIG: &str = "/xfstests.config";
/// Below /run: a tmpfs, so that results take nothing of the devices under test.
const RESULTS: &str = "/run/xfstests";

/// `limit_s` is for each test. Ends early, after reporting it, when a test takes longer: what it
/// leaves behind is for PID 1 to clean up, or for the runner to boot afresh.
pub fn run(ctx: &Ctx, section: &str, limit_s: u64, tests: &[&str]) -> Result<()> {
    let driver = Driver::load(ctx, &[])?;
    ensure!(driver.disks().len() >= 2, "xfstests needs two disks");
    // A device for dm-log-writes, which must not be DAX-capable.
    sh("modprobe brd rd_nr=1 rd_size=1048576")?;
    // Without udevd nobody makes /dev/loop-control, which loads it.
    sh("modprobe loop")?;
    // Nor loads anybody the driver of the disks that scsi_debug makes.
    sh("modprobe sd_mod")?;
    for dir in ["/mnt/test", "/mnt/scratch", RESULTS] {
        fs::create_dir_all(dir)?;
    }
    // check wants TEST_DEV made already.
    let config = fs::read_to_string(CONFIG).context(CONFIG)?;
    let option = |name: &str| {
        let found = config
            .lines()
            .find_map(|l| l.strip_prefix(name)?.strip_prefix('='));
        found.unwrap_or_default().trim_matches('"')
    };
    let force = if option("FSTYP") == "xfs" { "-f" } else { "-F" };
    let test_dev = &driver.disk(0).path;
    sh(format!(
        "mkfs.{} -q {force} {} {test_dev}",
        option("FSTYP"),
        option("MKFS_OPTIONS")
    ))?;
    let options = option("MOUNT_OPTIONS");
    if options.contains("dax=always") {
        expect_served(ctx, driver.disk(0), options)?;
    }
    let mut check = Command::new("./check")
        .args(["-s", section, "--exact-order"])
        .args(tests)
        .current_dir(TREE)
        .env("HOST_OPTIONS", CONFIG)
        .env("TEST_DEV", test_dev)
        .env("TEST_DIR", "/mnt/test")
        .env("SCRATCH_DEV", &driver.disk(1).path)
        .env("SCRATCH_MNT", "/mnt/scratch")
        .env("LOGWRITES_DEV", "/dev/ram0")
        .env("RESULT_BASE", RESULTS)
        .env("DIFF_LENGTH", "30")
        // The group soak, which would not end within the limit of a test without KVM.
        .env("SOAK_DURATION", "120")
        .env("TERM", "dumb")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .context("./check")?;
    let mut output = check.stdout.take().context("stdout")?;
    let (sender, chunks) = channel();
    std::thread::spawn(move || {
        let mut chunk = vec![0; 4096];
        while let Ok(n @ 1..) = output.read(&mut chunk) {
            if sender.send(chunk[..n].to_vec()).is_err() {
                break;
            }
        }
    });

    let mut parser = Parser::new(tests);
    let limit = Duration::from_secs(limit_s);
    let mut end = Instant::now() + limit;
    loop {
        match chunks.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(chunk) => {
                let text = String::from_utf8_lossy(&chunk);
                print!("{text}");
                for progress in parser.feed(&text) {
                    end = Instant::now() + limit;
                    tell(ctx, section, progress)?;
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                let stacks = crate::init::all_stacks();
                if let Some(mut test) = parser.under_way() {
                    test.end(Verdict::Timeout, format!("no end within {limit_s} s"));
                    test.log.push_str(&stacks);
                    tell(ctx, section, test.progress())?;
                }
                bail!("no progress within {limit_s} s");
            }
        }
    }
    if let Some(progress) = parser.finish() {
        tell(ctx, section, progress)?;
    }
    // check's status only says whether a test failed; if none was run, something else is wrong.
    check.wait()?;
    ensure!(parser.seen > 0, "check ran no test: {}", parser.last_line);
    sh(format!(
        "umount {} /mnt/scratch /mnt/test 2>/dev/null; true",
        driver.disk(1).path
    ))?;
    driver.unload()
}

/// Without DAX, or by other code than that under test, most tests would pass as well.
fn expect_served(ctx: &Ctx, disk: &Disk, options: &str) -> Result<()> {
    let ours = !ctx.c_fs_dax();
    let counters = || ours.then(|| Counters::of_layer(disk)).transpose();
    let before = counters()?;
    sh(format!("mount {options} {} /mnt/test", disk.path))?;
    let file = Path::new("/mnt/test/dax");
    fs::write(file, "x")?;
    ensure!(is_dax(file)?, "{options}: no DAX");
    fs::remove_file(file)?;
    sh("umount /mnt/test")?;
    if let (Some(before), Some(now)) = (before, counters()?) {
        ensure!(
            now.since(&before, "bytes_written")? > 0,
            "the Rust layer has not served a write(2)"
        );
    }
    Ok(())
}

/// Adds the files a failed test left and sends it to the runner.
fn tell(ctx: &Ctx, section: &str, mut progress: Progress) -> Result<()> {
    if let Progress::Ended {
        test, verdict, log, ..
    } = &mut progress
    {
        if verdict.is_bad() {
            for kind in ["full", "dmesg"] {
                let path = format!("{RESULTS}/{section}/{test}.{kind}");
                if let Ok(bytes) = fs::read(&path) {
                    let text =
                        String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(6 << 10)..]);
                    log.push_str(&format!("--- the end of {path} ---\n{text}\n"));
                }
            }
        }
    }
    ctx.data(serde_json::to_value(progress)?);
    Ok(())
}

/// A test whose lines are being read.
struct Current {
    test: String,
    started: Instant,
    seconds: f64,
    verdict: Verdict,
    reason: String,
    log: String,
}

impl Current {
    fn new(test: &str) -> Self {
        Current {
            test: test.into(),
            started: Instant::now(),
            seconds: 0.0,
            verdict: Verdict::Fail,
            reason: String::new(),
            log: String::new(),
        }
    }

    fn end(&mut self, verdict: Verdict, reason: impl Into<String>) {
        self.seconds = self.started.elapsed().as_secs_f64();
        self.verdict = verdict;
        self.reason = reason.into();
    }

    fn progress(self) -> Progress {
        Progress::Ended {
            test: self.test,
            verdict: self.verdict,
            seconds: self.seconds,
            reason: self.reason,
            log: self.log,
        }
    }
}

/// Reads what check prints: `NAME ` when a test starts; then, on the same line, ` 12s` for a
/// pass, `[not run] why`, or something else for a failure, with more about it on further lines.
struct Parser<'a> {
    known: HashSet<&'a str>,
    /// The line under way.
    line: String,
    current: Option<Current>,
    /// The line of `current` is complete.
    ended: bool,
    seen: usize,
    last_line: String,
}

impl<'a> Parser<'a> {
    fn new(tests: &[&'a str]) -> Self {
        Parser {
            known: tests.iter().copied().collect(),
            line: String::new(),
            current: None,
            ended: false,
            seen: 0,
            last_line: String::new(),
        }
    }

    fn feed(&mut self, text: &str) -> Vec<Progress> {
        let mut told = Vec::new();
        for part in text.split_inclusive('\n') {
            self.line.push_str(part);
            if let Some((name, _)) = self.line.split_once(char::is_whitespace) {
                let name = name.to_string();
                let starts = self.known.contains(name.as_str());
                let new = self
                    .current
                    .as_ref()
                    .is_none_or(|c| c.test != name || self.ended);
                if starts && new {
                    told.extend(self.finish());
                    told.push(Progress::Started { test: name.clone() });
                    self.current = Some(Current::new(&name));
                    self.ended = false;
                    self.seen += 1;
                }
            }
            if !self.line.ends_with('\n') {
                continue;
            }
            let line = std::mem::take(&mut self.line);
            if !line.trim().is_empty() {
                self.last_line = line.trim().into();
            }
            told.extend(self.complete(line.trim_end()));
        }
        told
    }

    fn complete(&mut self, line: &str) -> Vec<Progress> {
        let ended = std::mem::replace(&mut self.ended, true);
        let Some(current) = &mut self.current else {
            return Vec::new();
        };
        if ended {
            if line.starts_with("Ran: ") {
                return self.finish().into_iter().collect();
            }
            // More about a failure.
            current.log.push_str(line);
            current.log.push('\n');
            // The first difference says more than "output mismatch".
            if let Some(got) = line.trim_start().strip_prefix('+') {
                if current.reason.contains("- output mismatch") && !got.starts_with("++") {
                    current.reason = format!("output mismatch: {}", got.trim());
                }
            }
            return Vec::new();
        }
        let said = line[current.test.len()..].trim();
        if let Some(why) = said.strip_prefix("[not run]") {
            current.end(Verdict::Notrun, why.trim());
        } else if said
            .strip_suffix('s')
            .is_some_and(|n| n.parse::<u64>().is_ok())
        {
            current.end(Verdict::Pass, "");
        } else {
            current.end(Verdict::Fail, said);
            current.log = format!("{line}\n");
            return Vec::new();
        }
        self.finish().into_iter().collect()
    }

    /// The test that check was running when it was stopped.
    fn under_way(&mut self) -> Option<Current> {
        self.current.take()
    }

    /// Ends the current test with what is known of it.
    fn finish(&mut self) -> Option<Progress> {
        let mut current = self.current.take()?;
        if !self.ended {
            current.end(Verdict::Fail, "check ended in the middle of it");
        }
        Some(current.progress())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdicts(chunks: &[&str]) -> Vec<(String, String, String)> {
        let mut parser = Parser::new(&["generic/001", "generic/002", "ext4/003"]);
        let mut all: Vec<_> = chunks.iter().flat_map(|c| parser.feed(c)).collect();
        all.extend(parser.finish());
        let row = |p| match p {
            Progress::Started { test } => (test, "started".into(), String::new()),
            Progress::Ended {
                test,
                verdict,
                reason,
                ..
            } => (test, verdict.word().into(), reason),
        };
        all.into_iter().map(row).collect()
    }

    #[test]
    fn a_pass_a_notrun_and_a_failure() {
        let got = verdicts(&[
            "SECTION       -- ext4\nFSTYP         -- ext4\n\ngeneric/001       ",
            " 6s\ngeneric/002       [not run] no such thing\next4/003       ",
            "- output mismatch (see /x)\n    --- a\n    +++ b\n    @@ -1 +1 @@\n    -good\n    +bad\n    ...\n\n",
            "Ran: generic/001 generic/002 ext4/003\nFailures: ext4/003\n",
        ]);
        let want = [
            ("generic/001", "started", ""),
            ("generic/001", "pass", ""),
            ("generic/002", "started", ""),
            ("generic/002", "notrun", "no such thing"),
            ("ext4/003", "started", ""),
            ("ext4/003", "fail", "output mismatch: bad"),
        ];
        let want: Vec<_> = want.map(|(a, b, c)| (a.into(), b.into(), c.into())).into();
        assert_eq!(got, want);
    }

    #[test]
    fn a_failed_check_after_the_test_is_no_pass() {
        let got = verdicts(&["generic/001  _check_generic_filesystem: inconsistent\n(see y)\n"]);
        assert_eq!(got[1].1, "fail");
        assert!(got[1].2.contains("inconsistent"));
    }

    #[test]
    fn check_that_dies_is_a_failure() {
        let got = verdicts(&["generic/001  "]);
        assert_eq!(got[1].1, "fail");
    }
}
