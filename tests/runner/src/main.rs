// SPDX-License-Identifier: GPL-2.0

//! `runner`: what the Makefile's targets call, inside the cached root.

mod bench;
mod crash;
mod main_job;
mod xfstests;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{bail, ensure, Result};
use clap::{Args, Parser, Subcommand};
use proto::{Machine, On, Request, Tag, TestInfo};
use runner::report::Report;
use runner::suite::{self, Options};
use runner::{Boot, Environment, Kernel, Vm};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

#[derive(Parser)]
#[command(about = "Boots guests with persistent memory and runs tests in them")]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Args)]
struct Global {
    /// A kernel, VERSION=DIR (of `scripts/env.sh kernel`); the first is the default
    #[arg(long = "kernel", global = true)]
    kernels: Vec<Kernel>,
    /// The module under test; build/VERSION/rust_pmem.ko if not given
    #[arg(long, global = true)]
    module: Option<PathBuf>,
    /// Where results and logs go
    #[arg(long, global = true, default_value = "build/results")]
    results: PathBuf,
    /// Test the kernel's own nd_pmem and fs/dax.c instead (c), or, for test and stress, our
    /// driver with fs/dax.c (fs_dax=0)
    #[arg(long, global = true, value_parser = parse_target, default_value = "rust")]
    on: Target,
    /// Guests at a time; the number of CPUs if not given
    #[arg(long, global = true, env = "RPMEM_JOBS")]
    jobs: Option<usize>,
    /// All kernel messages on the console
    #[arg(short, long, global = true)]
    verbose: bool,
}

#[derive(Subcommand)]
enum Cmd {
    /// The main job: range, disk, mkfs, mount, mmap, fsync, raw bytes, remount, reboot
    Run,
    /// The test suites
    Test {
        /// Only tests whose suite::name contains this, or one of several with commas between
        name: Option<String>,
        /// Every test on every kernel; else only the smoke run on all but the first
        #[arg(long)]
        all: bool,
        /// Without the host tests
        #[arg(long)]
        no_host: bool,
        /// Each test so many times, to find one that fails now and then
        #[arg(long, default_value_t = 1)]
        repeat: usize,
    },
    /// The long forms of the tests, on every kernel given
    Stress { name: Option<String> },
    /// A shell in a guest, with the module loaded
    Shell {
        /// Module parameters
        params: Vec<String>,
        #[arg(long, default_value_t = 2)]
        smp: u32,
    },
    /// The kernel's C code against ours, in guest instructions
    Bench {
        /// Only cases whose name contains this (fdatasync-64)
        name: Option<String>,
        /// Instructions by function, of the case with that name on one side (rust, c)
        #[arg(long, value_parser = parse_on)]
        profile: Option<On>,
        /// Module parameters
        #[arg(long = "param")]
        params: Vec<String>,
    },
    /// Power failures: what was acknowledged must be on the media
    Crash(crash::Options),
    /// Tests of a built xfstests tree
    Xfstests(xfstests::Xfstests),
    /// List the tests
    List { name: Option<String> },
}

/// What `--on` says.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Target {
    driver: On,
    /// fs/dax.c on our driver.
    c_fs_dax: bool,
}

fn parse_target(s: &str) -> Result<Target, String> {
    let c_fs_dax = s == "fs_dax=0";
    let driver = if c_fs_dax { Ok(On::Rust) } else { parse_on(s) };
    driver
        .map(|driver| Target { driver, c_fs_dax })
        .map_err(|_| "rust, c or fs_dax=0".into())
}

fn parse_on(s: &str) -> Result<On, String> {
    match s {
        "rust" | "" => Ok(On::Rust),
        "c" => Ok(On::C),
        _ => Err("rust or c".into()),
    }
}

/// Ctrl-C and the like: guests die with the runner, their memory files are removed here.
fn clean_up_on_signals() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            runner::vm::remove_scratch(|pid| pid == std::process::id());
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}

fn main() -> ExitCode {
    if let Err(e) = clean_up_on_signals() {
        eprintln!("runner: {e:#}");
    }
    match start(Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("runner: {e:#}");
            ExitCode::from(2)
        }
    }
}

fn start(cli: Cli) -> Result<bool> {
    let g = cli.global;
    let mut env = Environment::new(&g.results, g.kernels)?;
    if let Some(module) = g.module {
        env.kernels[0].module = module;
    }
    let (on, c_fs_dax) = (g.on.driver, g.on.c_fs_dax);
    ensure!(
        !c_fs_dax || matches!(cli.command, Cmd::Test { .. } | Cmd::Stress { .. }),
        "only the tests run on fs_dax=0"
    );
    let mut options = Options {
        on,
        c_fs_dax,
        stress: false,
        jobs: g
            .jobs
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)),
        verbose: g.verbose,
    };
    if on == On::Rust && !matches!(cli.command, Cmd::List { .. }) {
        for kernel in &env.kernels {
            ensure!(
                kernel.module.exists(),
                "{} is not built (make modules)",
                kernel.module.display()
            );
        }
    }
    match cli.command {
        Cmd::Run => main_job::run(&env, on, g.verbose),
        Cmd::Test {
            name,
            all,
            no_host,
            repeat,
        } => {
            let name = name.unwrap_or_default();
            ensure!(
                name.is_empty() || name.split(',').all(|part| !part.is_empty()),
                "a name is empty in '{name}'"
            );
            let chosen = select(&env, &name, options, |kernel, test| {
                kernel == 0 || all || test.has(Tag::Smoke)
            })?;
            let crash: Vec<_> = crash::TESTS
                .into_iter()
                .filter(|t| !c_fs_dax && name.split(',').any(|part| t.contains(part)))
                .collect();
            // What means no test of a guest or a campaign means one of the host.
            let in_guests = |part: &&str| {
                let guest = chosen.iter().any(|(_, t)| t.full_name().contains(part));
                guest || crash.iter().any(|t| t.contains(part))
            };
            let host: Vec<_> = match &*name {
                "" if no_host => vec![],
                "" => vec![""],
                _ => name.split(',').filter(|part| !in_guests(part)).collect(),
            };
            ensure!(
                !no_host || host.is_empty(),
                "no test of the name '{}' in a guest",
                host[0]
            );
            let kernels = if all { env.kernels.len() } else { 1 };
            let chosen = vec![chosen; repeat].concat();
            test(&env, chosen, options, &host, &crash, kernels)
        }
        Cmd::Stress { name } => {
            options.stress = true;
            let chosen = select(&env, &name.unwrap_or_default(), options, |_, test| {
                test.has(Tag::Stress)
            })?;
            test(&env, chosen, options, &[], &[], 0)
        }
        Cmd::Shell { params, smp } => {
            let kernel = env.default_kernel();
            let mut boot = Boot::new(&env, kernel, Machine::default().smp(smp));
            boot.interactive = true;
            boot.plan = vec![Request::Shell { on, params }];
            eprintln!("booting {} on {}", kernel.name, env.accel);
            Vm::boot(boot)?.wait(std::time::Duration::from_secs(1 << 30))?;
            Ok(true)
        }
        Cmd::Bench {
            name,
            profile,
            params,
        } => bench::run(
            &env,
            &bench::Options {
                name: &name.unwrap_or_default(),
                on,
                params: &params,
                profile,
            },
        ),
        Cmd::Crash(args) => crash::run(&env, &args, on, options.jobs),
        Cmd::Xfstests(args) => xfstests::run(&env, &args, on, g.verbose),
        Cmd::List { name } => {
            for test in env.tests()? {
                if test
                    .full_name()
                    .contains(name.as_deref().unwrap_or_default())
                {
                    println!("{} {:?} {} s", test.full_name(), test.tags, test.limit_s);
                }
            }
            Ok(true)
        }
    }
}

/// Tests that contain `name` and mean something on what is tested, for each kernel (by its position) that
/// `wanted` takes.
fn select<'a>(
    env: &'a Environment,
    name: &str,
    options: Options,
    wanted: impl Fn(usize, &TestInfo) -> bool,
) -> Result<Vec<(&'a Kernel, TestInfo)>> {
    let tests = env.tests()?;
    let mut chosen = Vec::new();
    for (at, kernel) in env.kernels.iter().enumerate() {
        for test in &tests {
            let rust = options.on == On::Rust && !options.c_fs_dax;
            let meant = rust || !test.has(Tag::RustOnly);
            // A test asked for by name runs whatever its tags.
            let asked = !name.is_empty() && at == 0;
            let full_name = test.full_name();
            let named = name.split(',').any(|part| full_name.contains(part));
            if meant && named && (asked || wanted(at, test)) {
                chosen.push((kernel, test.clone()));
            }
        }
    }
    Ok(chosen)
}

/// Workloads that the crash campaigns leave out on C, and why.
const LEFT_OUT_ON_C: [(&str, &str); 3] = [
    (
        "meta",
        "breaking the layout of one range forgets what is dirty in others",
    ),
    (
        "reflink",
        "what copy-on-write copies around a write(2) stays in the cache",
    ),
    ("unmap", "what is unmapped dirty stays in the cache"),
];

/// Runs what was chosen, host tests that contain one of `host`, and the `crash` campaigns on the first
/// `kernels` kernels.
fn test(
    env: &Environment,
    chosen: Vec<(&Kernel, TestInfo)>,
    options: Options,
    host: &[&str],
    crash: &[&'static str],
    kernels: usize,
) -> Result<bool> {
    if chosen.is_empty() && host.is_empty() && crash.is_empty() {
        bail!("no test of that name");
    }
    let file = if options.stress {
        "stress.tsv"
    } else {
        "test.tsv"
    };
    let report = Report::new(&env.results.join(file), chosen.len())?;
    let names: Vec<_> = env.kernels.iter().map(|k| k.name.as_str()).collect();
    report.say(format!(
        "{} tests in guests, kernels {}, {}",
        chosen.len(),
        names.join(" and "),
        env.accel
    ));
    for filter in host {
        let found = suite::run_host(&report, filter)?;
        ensure!(found > 0, "no test of the name '{filter}'");
    }
    let (on, jobs) = (options.on, options.jobs);
    let mut wrong = suite::run(env, chosen, options, &report)?;
    for kernel in env.kernels.iter().take(kernels) {
        for name in crash {
            crash::test(env, kernel, name, on, jobs, &report)?;
        }
    }
    if on == On::C && !crash.is_empty() {
        wrong.extend(LEFT_OUT_ON_C.map(|(workload, why)| {
            let name = format!("crash (without the workload {workload})");
            (name, why.into())
        }));
    }
    if !wrong.is_empty() {
        report.say("where the C layer is wrong:");
        for (name, why) in wrong {
            report.say(format!("  {name}: {why}"));
        }
    }
    Ok(report.finish())
}
