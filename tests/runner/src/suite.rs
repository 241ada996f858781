// SPDX-License-Identifier: GPL-2.0

//! Runs tests in as few boots as possible.
//!
//! Tests with equal kernels and machines form a group. Each worker has one guest at a time and
//! takes the next test of its group; when a guest dies or is left unclean, the rest goes on in a
//! fresh one.

use std::collections::{BTreeMap, VecDeque};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use proto::{Machine, On, Outcome, Request, TestInfo};

use crate::report::{Record, Report};
use crate::{Boot, Environment, Kernel, Vm};

/// How tests are run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub on: On,
    /// Our driver with the kernel's fs/dax.c.
    pub c_fs_dax: bool,
    pub stress: bool,
    /// Guests at a time.
    pub jobs: usize,
    pub verbose: bool,
}

impl Options {
    /// Whether the kernel's fs/dax.c is under test.
    fn is_c(&self) -> bool {
        self.on == On::C || self.c_fs_dax
    }
}

/// Tests that fail because the C layer is wrong, and what is wrong.
pub type WrongOnC = Vec<(String, String)>;

struct Group<'a> {
    kernel: &'a Kernel,
    machine: Machine,
    tests: VecDeque<TestInfo>,
    /// Boots in a row that did not come up.
    failed_boots: usize,
}

type Queue<'a> = Mutex<Vec<Group<'a>>>;

/// Runs every test on its kernel and reports each. Returns where the C layer was found wrong.
pub fn run(
    env: &Environment,
    tests: Vec<(&Kernel, TestInfo)>,
    options: Options,
    report: &Report,
) -> Result<WrongOnC> {
    let mut groups: BTreeMap<(String, Machine), Group> = BTreeMap::new();
    for (kernel, test) in tests {
        groups
            .entry((kernel.name.clone(), test.machine.clone()))
            .or_insert_with(|| Group {
                kernel,
                machine: test.machine.clone(),
                tests: VecDeque::new(),
                failed_boots: 0,
            })
            .tests
            .push_back(test);
    }
    // The largest first, so that the end is not one long group alone.
    let mut groups: Vec<_> = groups.into_values().collect();
    groups.sort_by_key(|g| std::cmp::Reverse(g.tests.len()));
    // Archives are made once, before several workers want them.
    for kernel in groups.iter().map(|g| g.kernel) {
        crate::initramfs::layers(&env.cache, kernel)?;
    }
    let queue = Mutex::new(groups);
    let boots = AtomicUsize::new(0);
    let wrong = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..options.jobs.max(1))
            .map(|_| scope.spawn(|| work(env, &queue, options, report, &boots, &wrong)))
            .collect();
        workers
            .into_iter()
            .try_for_each(|w| w.join().expect("a worker panicked"))
    })?;
    Ok(wrong.into_inner().unwrap())
}

/// Why a test failed that was never begun.
const NO_GUEST: &str = "no guest to run it in";

fn work(
    env: &Environment,
    queue: &Queue<'_>,
    options: Options,
    report: &Report,
    boots: &AtomicUsize,
    wrong: &Mutex<WrongOnC>,
) -> Result<()> {
    loop {
        let picked = {
            let groups = queue.lock().unwrap();
            groups
                .iter()
                .position(|g| !g.tests.is_empty())
                .map(|at| (at, groups[at].kernel, groups[at].machine.clone()))
        };
        let Some((at, kernel, machine)) = picked else {
            return Ok(());
        };
        let number = boots.fetch_add(1, Ordering::Relaxed);
        let mut boot = Boot::new(env, kernel, machine);
        boot.log = env.log(&format!("console-{number}"));
        boot.verbose = options.verbose;
        let console = boot.log.clone();
        report.now(format!("booting {}", kernel.name));
        let mut vm = match Vm::boot(boot) {
            Ok(vm) => vm,
            Err(e) => {
                report.say(format!("a guest did not boot: {e:#}"));
                let mut groups = queue.lock().unwrap();
                groups[at].failed_boots += 1;
                if groups[at].failed_boots > 1 {
                    let tests = std::mem::take(&mut groups[at].tests);
                    drop(groups);
                    for test in tests {
                        let outcome = Outcome::Failed(format!("{NO_GUEST}: {e:#}"));
                        add(report, kernel, &test, outcome, 0.0, &console_text(&console))?;
                    }
                }
                continue;
            }
        };
        queue.lock().unwrap()[at].failed_boots = 0;
        let mut alive = true;
        loop {
            let Some(test) = queue.lock().unwrap()[at].tests.pop_front() else {
                break;
            };
            if !run_one(&mut vm, kernel, &test, options, report, &console, wrong)? {
                alive = false;
                break;
            }
        }
        if alive {
            // What goes wrong when the guest comes up, between its tests or when it goes down
            // belongs to none. (A guest with trouble in a test is not used any more.)
            let after = match vm.poweroff() {
                Ok(trouble) => trouble.first().cloned(),
                Err(e) => Some(format!("{e:#}")),
            };
            if let Some(line) = after {
                report.more(1);
                let record = Record {
                    suite: "guest".into(),
                    test: format!("poweroff-{number}"),
                    kernel: kernel.name.clone(),
                    outcome: Outcome::Failed(line),
                    seconds: 0.0,
                };
                report.add(record, &console_text(&console))?;
            }
        } else {
            vm.kill();
        }
    }
}

/// Runs one test. False: the guest cannot run another.
fn run_one(
    vm: &mut Vm,
    kernel: &Kernel,
    test: &TestInfo,
    options: Options,
    report: &Report,
    console: &std::path::Path,
    wrong: &Mutex<WrongOnC>,
) -> Result<bool> {
    let limit_s = test.limit_s
        + if options.stress {
            proto::STRESS_LIMIT
        } else {
            0
        };
    let name = test.full_name();
    report.now(&name);
    let request = Request::Test {
        name,
        on: options.on,
        c_fs_dax: options.c_fs_dax,
        stress: options.stress,
        limit_s,
    };
    let started = Instant::now();
    // The guest ends a test that takes too long by itself and says where it was.
    let patience = Duration::from_secs(limit_s + 60);
    let answer = vm.request(&request, patience, &mut |_| {});
    let seconds = started.elapsed().as_secs_f64();
    // Where the C layer is known to be wrong, that is what the test shows; but not if our driver,
    // which is below it with fs_dax=0, may have to do with it.
    let judged = |outcome, died: bool| match (&test.c_is_wrong, outcome) {
        (Some(reason), Outcome::Failed(why))
            if options.is_c() && !(options.c_fs_dax && (died || why.contains("rust_pmem"))) =>
        {
            let found = (test.full_name(), reason.clone());
            wrong.lock().unwrap().push(found);
            Outcome::Skipped(format!("the C layer is wrong here: {reason} ({why})"))
        }
        (_, outcome) => outcome,
    };
    match answer {
        Ok(answer) => {
            add(
                report,
                kernel,
                test,
                judged(answer.outcome, false),
                answer.seconds,
                &answer.log,
            )?;
            Ok(answer.clean)
        }
        Err(death) => {
            let outcome = judged(Outcome::Failed(death.to_string()), true);
            add(
                report,
                kernel,
                test,
                outcome,
                seconds,
                &console_text(console),
            )?;
            Ok(false)
        }
    }
}

fn console_text(path: &std::path::Path) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn add(
    report: &Report,
    kernel: &Kernel,
    test: &TestInfo,
    outcome: Outcome,
    seconds: f64,
    log: &str,
) -> Result<()> {
    let outcome = match (&test.must_fail, outcome) {
        (None, outcome) => outcome,
        (Some(text), Outcome::Failed(reason))
            if reason.contains(text) && !reason.starts_with(NO_GUEST) =>
        {
            Outcome::Passed
        }
        (Some(text), other) => {
            Outcome::Failed(format!("should have failed with '{text}', but: {other:?}"))
        }
    };
    let record = Record {
        suite: test.suite.clone(),
        test: test.name.clone(),
        kernel: kernel.name.clone(),
        outcome,
        seconds,
    };
    report.add(record, log)
}

/// Runs `cargo test` over the workspace (plain logic of the module, the runner's own parts) and
/// reports each test. Returns how many there are.
pub fn run_host(report: &Report, filter: &str) -> Result<usize> {
    report.now("host tests");
    let started = Instant::now();
    let out = Command::new("cargo")
        .args([
            "test",
            "--release",
            "--workspace",
            "--no-fail-fast",
            "--color=never",
            "--",
        ])
        .arg(filter)
        .output()
        .context("cannot run cargo test")?;
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    let mut results = Vec::new();
    for line in text.lines() {
        let Some((name, result)) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.rsplit_once(" ... "))
        else {
            continue;
        };
        let outcome = match result {
            "ok" => Outcome::Passed,
            "FAILED" => Outcome::Failed("see the log".into()),
            other => Outcome::Skipped(other.into()),
        };
        results.push((name.to_string(), outcome));
    }
    if !out.status.success() && !results.iter().any(|(_, o)| matches!(o, Outcome::Failed(_))) {
        let why = text.lines().rev().find(|l| l.starts_with("error"));
        let why = why.unwrap_or("cargo test failed").to_string();
        results.push(("build".into(), Outcome::Failed(why)));
    }
    let found = results.len();
    report.more(found);
    let each = started.elapsed().as_secs_f64() / results.len().max(1) as f64;
    for (test, outcome) in results {
        let log = match outcome {
            Outcome::Failed(_) => text.as_str(),
            _ => "",
        };
        let record = Record {
            suite: "host".into(),
            test,
            kernel: "-".into(),
            outcome,
            seconds: each,
        };
        report.add(record, log)?;
    }
    Ok(found)
}
