// SPDX-License-Identifier: GPL-2.0

//! `make crash`: power failures. tests/powerfail has the model; this is the campaign.
//!
//! One guest runs every workload under the QEMU plugin, which draws crash points on the way
//! without stopping it. Guests with a fresh kernel then get the images of those points one
//! after the other, recover and check them. Both take their jobs from the plugin, so a boot is
//! paid for once, not once for each point.

mod explain;
mod table;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{ensure, Context, Result};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use powerfail::image::{self, Kind, Name, Point};
use powerfail::job::{self, At, Crash, Ground, Job, Progress, Sample, Task};
use powerfail::model::Verdict;
use powerfail::sample::{below, rng};
use powerfail::workload::{mix, Workload};
use proto::{Event, Machine, On, Outcome, Request};
use runner::report::{Record, Report};
use runner::vm::scratch_dir;
use runner::{Boot, Environment, Kernel, Vm};

use table::Row;

/// Size of the pmem range, in MiB: mkfs.xfs refuses less than 300.
const RANGE_MIB: u64 = 320;
/// Crash points drawn from one run of a workload, at most.
const POINTS_PER_RUN: usize = 40;
/// What one job may take on the host.
const JOB_LIMIT: Duration = Duration::from_secs(180);

/// `runner crash`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// How many crash points (200), with --at how many runs (one of each workload)
    #[arg(long)]
    points: Option<usize>,
    /// Where all chance comes from; drawn and printed if not given
    #[arg(long)]
    seed: Option<u64>,
    /// Only this workload (may be repeated)
    #[arg(long = "workload")]
    workloads: Vec<Workload>,
    /// The seed of a run, as a failure names it: only such runs
    #[arg(long, value_parser = powerfail::parse_seed)]
    run_seed: Option<u64>,
    /// The N-th instant of a kind in each run instead of drawn ones, with all its images: fence:N
    /// (just after it), before-fence:N, flush:N, nt-store:N, store:N (of any kind), operation:N
    /// (1: the first begins, 2: it is acknowledged, 3: the second begins …)
    #[arg(long)]
    at: Option<At>,
    /// Locked operations fence too, as they do on real CPUs. Without it only SFENCE and MFENCE
    /// count, so that a missing one is not hidden by whatever comes next
    #[arg(long)]
    lenient: bool,
    /// Every store to the range is a candidate for a crash, not only write-backs and fences
    #[arg(long)]
    stores: bool,
    /// Instructions that do nothing to the media: write-back, nt-store or fence; to see that
    /// the campaign notices
    #[arg(long)]
    ignore: Option<String>,
    /// QEMU's -cpu
    #[arg(long, default_value = "max")]
    cpu: String,
}

/// The campaigns of `make test`, as tests of the suite `crash`.
pub const TESTS: [&str; 4] = [
    "crash::short",
    "crash::clflushopt",
    "crash::clflush",
    "crash::notices",
];

impl Options {
    /// What one of [`TESTS`] runs.
    fn of_test(name: &str) -> Self {
        use Workload::{Flows, Reflink, Write};
        let mut options = Options {
            points: Some(15),
            seed: Some(1),
            workloads: vec![Flows, Reflink],
            run_seed: None,
            at: None,
            lenient: false,
            stores: false,
            ignore: None,
            cpu: "max".into(),
        };
        match name {
            "crash::clflushopt" => options.cpu += ",-clwb",
            "crash::clflush" => options.cpu += ",-clwb,-clflushopt",
            // On a machine whose write-back instructions do nothing data must be lost, or the
            // other campaigns would not see a module that forgets them.
            "crash::notices" => {
                options.points = Some(12);
                options.workloads = vec![Flows, Write];
                options.ignore = Some("write-back".into());
            }
            _ => {
                options.points = Some(84);
                options.workloads.clear();
            }
        }
        options
    }

    fn wants(&self, workload: Workload, on: On) -> bool {
        match self.workloads[..] {
            // What C does not promise is looked at on C only by name.
            [] => !(workload.rust_only() && on == On::C),
            _ => self.workloads.contains(&workload),
        }
    }

    /// How many images of each point are checked, at most.
    fn images(&self) -> usize {
        self.at.map_or(1, |_| 3)
    }

    /// Every store to the range is an instant.
    fn stores(&self) -> bool {
        self.stores
            || self
                .at
                .is_some_and(|at| at.instant == image::Instant::Store)
    }
}

/// A run of a workload, from which points are drawn.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Run {
    workload: Workload,
    fs: Ground,
    seed: u64,
    points: usize,
}

/// A crash point whose image is to be checked.
struct Check {
    run: Run,
    name: Name,
    crash: Crash,
    /// Its number in the campaign.
    number: usize,
    /// Of the run's candidates this is one of so many.
    candidates: u64,
}

/// `make crash`: a campaign with its table. True: nothing failed.
pub fn run(env: &Environment, options: &Options, on: On, jobs: usize) -> Result<bool> {
    let bar = ProgressBar::new(0);
    bar.set_style(ProgressStyle::with_template(
        "{elapsed_precise} [{bar:30}] {pos}/{len} {msg}",
    )?);
    let kernel = env.default_kernel();
    let sum = campaign(env, kernel, options, on, jobs, bar, "crash", false)?;
    Ok(sum.points > 0 && sum.failed == 0 && sum.broken == 0)
}

/// One of [`TESTS`].
pub fn test(
    env: &Environment,
    kernel: &Kernel,
    name: &'static str,
    on: On,
    jobs: usize,
    report: &Report,
) -> Result<()> {
    let started = Instant::now();
    report.more(1);
    report.now(name);
    let mut options = Options::of_test(name);
    if on == On::C {
        // dax_break_layout() forgets dirty pages there, so `meta` loses data now and then; what
        // copy-on-write copies around a write(2) stays in the cache, so does `reflink`.
        let wrong = [Workload::Meta, Workload::Reflink];
        options.workloads = Workload::ALL
            .into_iter()
            .filter(|w| options.wants(*w, on) && !wrong.contains(w))
            .collect();
    }
    let must_lose = options.ignore.is_some();
    let bar = ProgressBar::hidden();
    let outcome = match campaign(env, kernel, &options, on, jobs, bar, name, must_lose) {
        Ok(Sum { points: 0, .. }) => Outcome::Failed("no crash point was checked".into()),
        Ok(sum) if sum.broken > 0 => Outcome::Failed(format!("{} runs failed", sum.broken)),
        Ok(sum) if must_lose && sum.lost > 0 => Outcome::Passed,
        Ok(sum) if must_lose => Outcome::Failed(format!(
            "nothing was lost at {} crash points without write-back instructions",
            sum.points
        )),
        Ok(sum) if sum.failed == 0 => Outcome::Passed,
        Ok(sum) => Outcome::Failed(format!("{} of {} crash points", sum.failed, sum.points)),
        Err(e) => Outcome::Failed(format!("{e:#}")),
    };
    let record = Record {
        suite: "crash".into(),
        test: name.trim_start_matches("crash::").into(),
        kernel: kernel.name.clone(),
        outcome,
        seconds: started.elapsed().as_secs_f64(),
    };
    report.add(record, "")
}

/// `name` is that of its results. `quiet`: what fails is not told.
#[allow(clippy::too_many_arguments)] // once each, by name
fn campaign(
    env: &Environment,
    kernel: &Kernel,
    options: &Options,
    on: On,
    jobs: usize,
    bar: ProgressBar,
    name: &'static str,
    quiet: bool,
) -> Result<Sum> {
    ensure!(
        !(options.stores && options.at.is_some()),
        "--at chooses the instant: it goes without --stores"
    );
    let seed = options.seed.unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.map_or(0, |n| n.as_nanos() as u64) % 1_000_000
    });
    let runs = plan(options, on, seed);
    let images: usize = runs.iter().map(|r| r.points * options.images()).sum();
    bar.set_length(images as u64);
    let mut campaign = Campaign {
        env,
        kernel,
        options,
        on,
        // The names of tests are those of suites, too.
        name: name.replace("::", "-"),
        quiet,
        seed,
        bases: tempfile::tempdir()?,
        rows: Vec::new(),
        bar,
        started: Instant::now(),
    };
    campaign.make_bases()?;
    campaign.clear_kept()?;
    let whom = match on {
        On::Rust => "rust_pmem",
        On::C => "the kernel's nd_pmem and fs/dax.c",
    };
    let fences = if options.lenient {
        "SFENCE, MFENCE and locked operations"
    } else {
        "only SFENCE and MFENCE"
    };
    let ignored = options.ignore.as_ref();
    campaign.say(format!(
        "{images} crash points from {} runs on {whom}, kernel {}, -cpu {}, seed {seed}, {fences} as fences{}",
        runs.len(),
        kernel.name,
        options.cpu,
        ignored.map_or(String::new(), |i| format!(", every {i} ignored")),
    ));
    // Points take memory: not more runs at a time than that has room for. One of each kind fits.
    for some in runs.chunks(28) {
        let scratch = scratch_dir()?;
        let checks = campaign.draw(some, scratch.path())?;
        let failed = campaign.check(checks, scratch.path(), jobs)?;
        campaign.save()?;
        if !quiet {
            campaign.explain(some, &failed, scratch.path())?;
        }
    }
    Ok(campaign.finish())
}

/// The runs of a campaign: every workload on all it runs on, as often as it takes.
fn plan(options: &Options, on: On, seed: u64) -> Vec<Run> {
    let kinds: Vec<(Workload, Ground)> = Workload::ALL
        .into_iter()
        .filter(|w| options.wants(*w, on))
        .flat_map(|w| w.grounds().iter().map(move |&g| (w, g)))
        .collect();
    let (points, per_run) = match options.at {
        Some(_) => (options.points.unwrap_or(kinds.len()), 1),
        None => (options.points.unwrap_or(200), POINTS_PER_RUN),
    };
    let rounds = points.div_ceil(kinds.len() * per_run).max(1);
    let total = rounds * kinds.len();
    (0..total)
        .map(|i| {
            let (workload, fs) = kinds[i % kinds.len()];
            // Both spread evenly and exact in the sum.
            let points = points * (i + 1) / total - points * i / total;
            Run {
                workload,
                fs,
                seed: options.run_seed.unwrap_or_else(|| {
                    mix(seed.wrapping_mul(1 << 20).wrapping_add(i as u64)) >> 16
                }),
                points,
            }
        })
        .filter(|r| r.points > 0)
        .collect()
}

struct Campaign<'a> {
    env: &'a Environment,
    kernel: &'a Kernel,
    options: &'a Options,
    on: On,
    /// Of its results.
    name: String,
    quiet: bool,
    seed: u64,
    /// Images as mkfs leaves them.
    bases: tempfile::TempDir,
    rows: Vec<Row>,
    bar: ProgressBar,
    started: Instant,
}

impl Campaign<'_> {
    fn say(&self, line: String) {
        if self.quiet {
            return;
        }
        self.bar.suspend(|| println!("{line}"));
    }

    fn base(&self, fs: Ground) -> PathBuf {
        self.bases.path().join(fs.to_string())
    }

    /// mkfs on the host, always the same.
    fn make_bases(&self) -> Result<()> {
        const ID: &str = "5eed0000-0000-4000-8000-000000000001";
        for fs in [Ground::Ext4, Ground::Xfs, Ground::Raw] {
            let path = self.base(fs);
            fs::File::create(&path)?.set_len(RANGE_MIB << 20)?;
            let mut mkfs = match fs {
                Ground::Raw => continue,
                Ground::Ext4 => {
                    let mut mkfs = Command::new("mkfs.ext4");
                    mkfs.args(["-q", "-F", "-b", "4096", "-U", ID, "-E"])
                        .arg(format!(
                        "lazy_itable_init=0,nodiscard,stride=512,stripe_width=512,hash_seed={ID}"
                    ));
                    mkfs
                }
                Ground::Xfs => {
                    let mut mkfs = Command::new("mkfs.xfs");
                    mkfs.args([
                        "-q",
                        "-f",
                        "-K",
                        "-d",
                        "su=2m,sw=1,agcount=2",
                        "-l",
                        "size=64m",
                    ])
                    .args(["-m", &format!("uuid={ID}")]);
                    mkfs
                }
            };
            let out = mkfs.arg(&path).output().context("cannot run mkfs")?;
            ensure!(
                out.status.success(),
                "mkfs of {fs}: {}",
                String::from_utf8_lossy(&out.stderr)
            );
            let _ = Command::new("fallocate")
                .arg("--dig-holes")
                .arg(&path)
                .status();
        }
        Ok(())
    }

    fn task(&self, run: &Run, crash: Option<Progress>) -> Result<String> {
        Ok(serde_json::to_string(&Task {
            workload: run.workload,
            fs: run.fs,
            seed: run.seed,
            crash,
        })?)
    }

    /// The job that runs a workload and draws its crash points.
    fn job(&self, run: &Run, out: &Path) -> Result<Job> {
        Ok(Job {
            base: self.base(run.fs),
            crash: None,
            trace: None,
            keep: None,
            sample: Some(Sample {
                points: run.points,
                at: self.options.at,
                seed: run.seed,
                strict: !self.options.lenient,
                out: out.into(),
            }),
            text: self.task(run, None)?,
        })
    }

    /// Runs the workloads and draws their crash points.
    fn draw(&mut self, runs: &[Run], scratch: &Path) -> Result<Vec<Check>> {
        let jobs = runs
            .iter()
            .map(|run| self.job(run, scratch))
            .collect::<Result<Vec<_>>>()?;
        let mut checks = Vec::new();
        let names: Vec<_> = runs
            .iter()
            .map(|r| format!("{} on {}", r.workload, r.fs))
            .collect();
        let results = self.boot_until_done("run", &jobs, &names, scratch, true, &|_| {})?;
        for (run, (outcome, mut verdict)) in runs.iter().zip(results) {
            // A run that acknowledges nothing would have nothing to lose.
            let acked = outcome.as_ref().and_then(|o| o.acked).unwrap_or(0);
            let length = run.workload.length();
            if verdict.error.is_none() && acked != length {
                verdict.error = Some(format!("{acked} of {length} operations acknowledged"));
            }
            if let Some(error) = verdict.error {
                self.fail(run, None, &verdict.trouble, error.clone());
                let died = Found::died(error);
                self.rows.push(Row::new(run, None, &died));
                continue;
            }
            let mut rng = rng(run.seed);
            let candidates = outcome.as_ref().map_or(0, |o| o.candidates);
            let drawn = outcome.as_ref().map_or(0, |o| o.points.len());
            if self.options.at.is_none() && drawn < run.points.min(candidates.max(1) as usize) {
                let error = format!("{drawn} crash points of {candidates} instants");
                self.fail(run, None, &[], error.clone());
                self.rows.push(Row::new(run, None, &Found::died(error)));
                continue;
            }
            for path in outcome.map(|o| o.points).unwrap_or_default() {
                let name = Point::load_header(&path)?.name;
                let random = run.workload.stands_torn_lines();
                let drawn = match below(&mut rng, 20) {
                    0..10 => Kind::Media,
                    10..17 if random => Kind::Random,
                    10..17 => Kind::Media,
                    _ => Kind::All,
                };
                let kinds = match (self.options.at, random) {
                    (None, _) => vec![drawn],
                    (Some(_), true) => vec![Kind::Media, Kind::Random, Kind::All],
                    (Some(_), false) => vec![Kind::Media, Kind::All],
                };
                for kind in kinds {
                    checks.push(Check {
                        run: run.clone(),
                        name,
                        crash: Crash {
                            point: path.clone(),
                            kind,
                            // Whatever else is drawn, the same for the same instant.
                            seed: mix(run.seed ^ name.number) >> 32,
                        },
                        number: self.rows.len() + checks.len(),
                        candidates,
                    });
                }
            }
        }
        Ok(checks)
    }

    /// Recovers and checks the images, in as many guests at a time as told. Returns the points that
    /// failed.
    fn check(&mut self, checks: Vec<Check>, scratch: &Path, guests: usize) -> Result<Vec<Check>> {
        if checks.is_empty() {
            return Ok(checks);
        }
        let shares: Vec<&[Check]> = checks.chunks(checks.len().div_ceil(guests)).collect();
        let this = &*self;
        let results = std::thread::scope(|scope| {
            let threads: Vec<_> = shares
                .iter()
                .enumerate()
                .map(|(i, share)| {
                    let dir = scratch.join(format!("check{i}"));
                    scope.spawn(move || this.check_share(share, &dir))
                })
                .collect();
            threads
                .into_iter()
                .map(|t| t.join().expect("a checking thread panicked"))
                .collect::<Result<Vec<_>>>()
        })?;
        let mut failed = Vec::new();
        let results: Vec<Found> = results.into_iter().flatten().collect();
        for (check, found) in checks.into_iter().zip(results) {
            let fine = found.error.is_none();
            self.judge(&check, found)?;
            if !fine {
                failed.push(check);
            }
        }
        Ok(failed)
    }

    fn check_share(&self, share: &[Check], dir: &Path) -> Result<Vec<Found>> {
        fs::create_dir_all(dir)?;
        let after = |i: usize| dir.join(format!("after-{i}"));
        let jobs = share
            .iter()
            .enumerate()
            .map(|(i, check)| {
                let progress = progress(&check.name);
                Ok(Job {
                    base: self.base(check.run.fs),
                    crash: Some(check.crash.clone()),
                    sample: None,
                    trace: None,
                    keep: (check.run.fs != Ground::Raw).then(|| after(i)),
                    text: self.task(&check.run, Some(progress))?,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let names: Vec<_> = share
            .iter()
            .map(|c| format!("check of {} on {}", c.run.workload, c.run.fs))
            .collect();
        let log = dir
            .file_name()
            .map_or("check".into(), |n| n.to_string_lossy().into_owned());
        let problems = Mutex::new(BTreeMap::new());
        let fsck = |i: usize| {
            let problem = match fsck(share[i].run.fs, &after(i)) {
                Ok(true) => None,
                // Of a check that went well there is one, and it is looked at once.
                Ok(false) => Some("no image was kept to check".into()),
                Err(e) => Some(format!("after recovery: {e:#}")),
            };
            problems.lock().unwrap().entry(i).or_insert(problem);
        };
        let results = self.boot_until_done(&log, &jobs, &names, dir, false, &|i| {
            self.bar.inc(1);
            // When a job is over its image is kept only as the guest takes the next.
            if i > 0 {
                fsck(i - 1);
            }
        })?;
        fsck(share.len() - 1);
        let mut problems = problems.into_inner().unwrap();
        let found = results.into_iter().enumerate().map(|(i, (_, mut found))| {
            let fsck = problems.remove(&i);
            found.error = found.error.or(fsck.unwrap_or(Some("not looked at".into())));
            found
        });
        Ok(found.collect())
    }

    /// Gives guests these jobs until each has a result: a guest that dies costs the job it was
    /// doing, and the next takes the rest. `done` is told the number of each job that is over.
    fn boot_until_done(
        &self,
        log: &str,
        jobs: &[Job],
        names: &[String],
        dir: &Path,
        model: bool,
        done: &(dyn Fn(usize) + Sync),
    ) -> Result<Vec<(Option<job::Outcome>, Found)>> {
        let mut results: Vec<(Option<job::Outcome>, Found)> = Vec::new();
        while results.len() < jobs.len() {
            let first = results.len();
            let death = self.boot(log, &jobs[first..], &names[first..], dir, model, &|n| {
                done(first + n)
            })?;
            for outcome in job::read_lines::<job::Outcome>(&dir.join("results"))? {
                let found = match &outcome.result {
                    Some(text) => serde_json::from_str::<Verdict>(text)?.into(),
                    None => continue,
                };
                results.push((Some(outcome), found));
            }
            if let Some(death) = death {
                if results.len() == jobs.len() {
                    // Every job has a result, but the kernel complained: the last one takes it.
                    let (_, last) = results.last_mut().context("no job")?;
                    last.error.get_or_insert(death.0);
                    last.trouble = death.1;
                } else {
                    let mut found = Found::died(format!("the guest died: {}", death.0));
                    found.trouble = death.1;
                    done(results.len());
                    results.push((None, found));
                }
            } else {
                ensure!(results.len() == jobs.len(), "the guest left jobs undone");
            }
        }
        Ok(results)
    }

    /// One guest. `Some`: it died, and why. `done` is told the number of each job when its
    /// guest is through with it.
    fn boot(
        &self,
        log: &str,
        jobs: &[Job],
        names: &[String],
        dir: &Path,
        model: bool,
        done: &(dyn Fn(usize) + Sync),
    ) -> Result<Option<(String, Vec<String>)>> {
        let (ram, list, results) = (dir.join("ram"), dir.join("jobs"), dir.join("results"));
        job::write_lines(&list, jobs)?;
        let _ = fs::remove_file(&results);
        let _ = fs::remove_file(&ram);
        // Two runs of the same seed are the same to the instruction.
        let machine = Machine::bare()
            .ram(640)
            .cpu(&format!("{},-rdrand,-rdseed", self.options.cpu))
            .pmem(RANGE_MIB);
        let range = machine.ranges[0];
        let mut plugin = format!(
            "file={},ram={},low={},base={},size={},jobs={},results={}",
            plugin()?.display(),
            ram.display(),
            machine.ram_mib * proto::MIB,
            range.start,
            range.size,
            list.display(),
            results.display(),
        );
        if model {
            if self.options.stores() {
                plugin += ",stores=on";
            }
            if let Some(ignore) = &self.options.ignore {
                plugin += &format!(",ignore={ignore}");
            }
        } else {
            plugin += ",track=off";
        }
        let mut boot = Boot::new(self.env, self.kernel, machine);
        boot.log = self.env.log(&format!("crash-{log}"));
        boot.memory = Some(ram);
        boot.qemu_args = vec!["-plugin".into(), plugin];
        if model {
            boot.icount = Some(1);
            let rtc = "base=2026-01-01T00:00:00,clock=vm";
            boot.qemu_args
                .extend(["-seed", "1", "-rtc", rtc].map(String::from));
        }
        boot.plan = vec![Request::Job {
            name: "crash".into(),
            args: vec![],
            on: self.on,
            limit_s: 24 * 3600,
        }];
        self.bar.set_message(names[0].clone());
        let mut vm = Vm::boot(boot)?;
        let mut finished = 0;
        loop {
            match vm.next_event(JOB_LIMIT) {
                Ok(Event::Step { .. }) => {
                    done(finished);
                    finished += 1;
                    if let Some(name) = names.get(finished) {
                        self.bar.set_message(name.clone());
                    }
                }
                Ok(Event::Done {
                    outcome, log: text, ..
                }) => {
                    // All of the console: the log is cut at its beginning.
                    let trouble: Vec<_> = vm
                        .wait(Duration::from_secs(30))?
                        .into_iter()
                        .filter(|line| is_trouble(proto::strip_stamp(line), model))
                        .collect();
                    let fine = match &outcome {
                        Outcome::Passed => true,
                        // Of messages the console has said enough.
                        Outcome::Failed(why) => {
                            why.starts_with("kernel: ") && !why.contains(proto::TAINTED)
                        }
                        Outcome::Skipped(_) => false,
                    };
                    if fine && trouble.is_empty() {
                        return Ok(None);
                    }
                    let path = self.env.log(&format!("crash-{log}-guest"));
                    fs::write(&path, text)?;
                    return Ok(Some((
                        format!("{outcome:?} (log: {})", path.display()),
                        trouble,
                    )));
                }
                Ok(_) => {}
                Err(death) => return Ok(Some((death.to_string(), death.trouble))),
            }
        }
    }

    fn judge(&mut self, check: &Check, found: Found) -> Result<()> {
        self.rows.push(Row::new(&check.run, Some(check), &found));
        let Some(error) = &found.error else {
            return Ok(());
        };
        // The image stays for whoever looks into it.
        let kept = self.kept(check, "point");
        fs::copy(&check.crash.point, &kept)?;
        let crash = &check.crash;
        let lost = Point::load(&kept)?.lost(crash.kind, crash.seed).collect();
        explain::write_lines(&self.kept(check, "lines"), &lost, &BTreeMap::new())?;
        self.fail(&check.run, Some(check), &found.trouble, error.clone());
        Ok(())
    }

    /// The directory for what stays of failed points.
    fn kept_dir(&self) -> PathBuf {
        self.env.results.join(&self.name)
    }

    fn kept(&self, check: &Check, extension: &str) -> PathBuf {
        let side = table::side(self.on);
        self.kept_dir()
            .join(format!("{side}-{}.{extension}", check.number))
    }

    /// Removes what an earlier campaign on this side kept.
    fn clear_kept(&self) -> Result<()> {
        fs::create_dir_all(self.kept_dir())?;
        let prefix = format!("{}-", table::side(self.on));
        for entry in fs::read_dir(self.kept_dir())? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// The command that does this campaign again. Instants depend on everything that ran in the
    /// boot before, so it is the whole of it; or one run alone and one instant, which is much
    /// faster and as good if the failure does not hang on the exact instruction.
    fn again(&self, check: Option<&Check>) -> String {
        let o = self.options;
        let mut words = vec!["make crash".to_string()];
        let mut crash = Vec::new();
        if self.on == On::C {
            words.push("ON=c".into());
        }
        match check {
            None => {
                words.extend(o.points.map(|n| format!("N={n}")));
                words.push(format!("SEED={}", self.seed));
                let names: Vec<_> = o.workloads.iter().map(|w| w.name()).collect();
                if !names.is_empty() {
                    words.push(format!("T='{}'", names.join(" ")));
                }
                crash.extend(o.run_seed.map(|seed| format!("--run-seed {seed:#x}")));
                crash.extend(o.at.map(|at| format!("--at {at}")));
                crash.extend(o.stores.then(|| "--stores".into()));
            }
            Some(check) => {
                words.push(format!("T={}", check.run.workload));
                let (instant, nth) = (check.name.instant, check.name.nth);
                crash.push(format!("--run-seed {:#x}", check.run.seed));
                crash.push(format!("--at {}", At { instant, nth }));
            }
        }
        crash.extend(o.lenient.then(|| "--lenient".into()));
        crash.extend(o.ignore.iter().map(|what| format!("--ignore {what}")));
        crash.extend((o.cpu != "max").then(|| format!("--cpu {}", o.cpu)));
        if !crash.is_empty() {
            words.push(format!("CRASH='{}'", crash.join(" ")));
        }
        words.join(" ")
    }

    fn fail(&self, run: &Run, check: Option<&Check>, trouble: &[String], error: String) {
        let mut text = format!(
            "FAILED {} on {} (seed {:#x})",
            run.workload, run.fs, run.seed
        );
        if let Some(check) = check {
            let Progress { begun, acked } = progress(&check.name);
            text += &format!(
                " crashed at {}, operation {begun} begun, {acked} acknowledged, image {} (seed {})",
                table::point(&check.name),
                check.crash.kind,
                check.crash.seed,
            );
        }
        text += &format!("\n    {error}");
        for line in trouble.iter().take(3) {
            text += &format!("\n    kernel: {line}");
        }
        text += &format!("\n    again: {}", self.again(None));
        if let Some(check) = check {
            text += &format!("\n    alone: {}", self.again(Some(check)));
            text += &format!("\n    lost lines: {}", self.kept(check, "lines").display());
        }
        self.say(text);
    }

    /// Writes down the results so far.
    fn save(&self) -> Result<()> {
        let path = self.env.results.join(format!("{}.tsv", self.name));
        table::write(&path, self.on, &self.rows)
    }

    fn finish(self) -> Sum {
        self.bar.finish_and_clear();
        let seconds = self.started.elapsed().as_secs_f64();
        let sum = table::sum(&self.rows);
        let broken = match (sum.broken, sum.points) {
            (0, 0) => ", nothing was checked".into(),
            (0, _) => String::new(),
            (n, _) => format!(", {n} runs failed"),
        };
        self.say(format!(
            "{}{seconds:.0} s, {:.0} points a minute",
            table::summary(&self.rows),
            sum.points as f64 / seconds.max(0.1) * 60.0
        ));
        let (points, failed) = (sum.points, sum.failed);
        self.say(format!("crash: {points} points, {failed} failed{broken}"));
        sum
    }
}

/// What a campaign came to.
struct Sum {
    points: usize,
    failed: usize,
    /// Bytes lost at all of them.
    lost: u64,
    /// Runs that failed before there was a point.
    broken: usize,
}

/// Kernel messages that no crash explains. XFS calls a torn log record an internal error, with a
/// stack, and goes on without it: that is what its recovery is for. Where workloads are run there is
/// nothing to recover.
fn is_trouble(message: &str, model: bool) -> bool {
    if model {
        return proto::is_trouble(message);
    }
    let recovery = message.starts_with("XFS") && message.contains("Internal error");
    proto::is_trouble(message) && !recovery && !message.starts_with("Call Trace:")
}

fn progress(name: &Name) -> Progress {
    Progress {
        begun: name.begun.unwrap_or(0),
        acked: name.acked.unwrap_or(0),
    }
}

/// What a check came to.
struct Found {
    acknowledged: u64,
    lost: u64,
    error: Option<String>,
    trouble: Vec<String>,
}

impl Found {
    fn died(error: String) -> Self {
        Found {
            acknowledged: 0,
            lost: 0,
            error: Some(error),
            trouble: Vec::new(),
        }
    }
}

impl From<Verdict> for Found {
    fn from(v: Verdict) -> Self {
        Found {
            acknowledged: v.acknowledged,
            lost: v.lost,
            error: v.error,
            trouble: Vec::new(),
        }
    }
}

/// Checks the file system in an image and removes the image. False: none is there, as the guest died.
fn fsck(fs: Ground, image: &Path) -> Result<bool> {
    let mut fsck = match fs {
        Ground::Ext4 => Command::new("e2fsck"),
        Ground::Xfs => Command::new("xfs_repair"),
        Ground::Raw => return Ok(true),
    };
    if !image.exists() {
        return Ok(false);
    }
    let out = fsck
        .arg(if fs == Ground::Ext4 { "-fn" } else { "-nf" })
        .arg(image)
        .output()
        .context("cannot run fsck")?;
    fs::remove_file(image)?;
    let text = String::from_utf8_lossy(&out.stdout);
    ensure!(
        out.status.success(),
        "{fs} is damaged: {}",
        text.lines()
            .filter(|l| !l.trim().is_empty())
            .take(6)
            .collect::<Vec<_>>()
            .join("; ")
    );
    Ok(true)
}

/// The plugin, which cargo builds beside the runner.
fn plugin() -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name("libpowerfail_plugin.so");
    ensure!(
        path.exists(),
        "{} is not built (cargo build -p powerfail-plugin)",
        path.display()
    );
    Ok(path)
}
