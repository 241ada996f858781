// SPDX-License-Identifier: GPL-2.0

//! `make bench`: the kernel's C code against ours, in guest instructions.
//!
//! The guest measures (tests/guest, job `bench`); this boots it with `-icount`, collects the
//! figures, and writes them down: a table on the terminal, `bench.tsv`, `report.html` and plots.

mod plot;
mod profile;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use proto::{Event, Machine, On, Outcome, Request};
use runner::{Accel, Boot, Environment, Vm};
use serde::Deserialize;

/// What one boot may take on the host.
const LIMIT: Duration = Duration::from_secs(3600);

/// A case's figures as the guest reports them: instructions per unit, one per repeat.
#[derive(Clone, Debug, Deserialize)]
pub struct Row {
    pub case: String,
    pub fs: String,
    pub unit: String,
    pub x: Option<f64>,
    pub plot: Option<String>,
    /// What ours / C should be at most.
    pub target: Option<f64>,
    pub c: Option<Vec<f64>>,
    pub ours: Option<Vec<f64>>,
}

/// The spread above which a figure is said not to be steady.
const STEADY: f64 = 0.01;

impl Row {
    pub fn median(figures: &Option<Vec<f64>>) -> Option<f64> {
        let f = sorted(figures.as_ref()?);
        Some(f[f.len() / 2])
    }

    pub fn ratio(&self) -> Option<f64> {
        Some(Self::median(&self.ours)? / Self::median(&self.c)?.max(f64::MIN_POSITIVE))
    }

    /// Distance of the quartiles relative to the median, of the side that has more of it.
    pub fn spread(&self) -> f64 {
        let of = |figures: &Option<Vec<f64>>| {
            let f = sorted(figures.as_ref()?);
            let (q1, q3) = (f[f.len() / 4], f[f.len() - 1 - f.len() / 4]);
            Some((q3 - q1) / f[f.len() / 2].max(1.0))
        };
        f64::max(of(&self.c).unwrap_or(0.0), of(&self.ours).unwrap_or(0.0))
    }

    pub fn verdict(&self) -> &'static str {
        match (self.target, self.ratio()) {
            (Some(target), Some(ratio)) if ratio <= target => "met",
            (Some(_), Some(_)) => "NOT MET",
            _ => "",
        }
    }
}

fn sorted(figures: &[f64]) -> Vec<f64> {
    let mut figures = figures.to_vec();
    figures.sort_by(f64::total_cmp);
    figures
}

/// The machine of the guest's job: two ranges for C, two for ours, one for the profiler.
fn machine(smp: u32) -> Machine {
    let machine = Machine::bare().ram(2048).smp(smp);
    (0..4).fold(machine, |m, _| m.pmem(4096)).pmem(32)
}

/// What to measure.
pub struct Options<'a> {
    /// Part of the cases' names; empty: all.
    pub name: &'a str,
    /// [`On::C`]: the C code only.
    pub on: On,
    pub params: &'a [String],
    /// Count instructions by function in the one case of that name, on one side.
    pub profile: Option<On>,
}

pub fn run(env: &Environment, o: &Options<'_>) -> Result<bool> {
    if let Some(on) = o.profile {
        return profile::run(env, o, on);
    }
    let started = Instant::now();
    let mut rows = Vec::new();
    println!("{}", provenance(env, o));
    println!("guest instructions per unit (QEMU -icount shift=0), medians");
    println!("{}", HEAD);
    let threads = o.name.is_empty() || "threads".contains(o.name) || o.name.contains("thread");
    // Time too, where it is the processor's own: cycles of the time stamp counter under KVM.
    for timed in [false, true] {
        for smp in [1, 4] {
            if timed && env.accel != Accel::Kvm || smp > 1 && !threads {
                continue;
            }
            boot(env, o, smp, timed, &mut |mut row| {
                if timed {
                    row.unit += ", cycles";
                    (row.plot, row.target) = (None, None);
                }
                println!("{}", line(&row));
                rows.push(row);
            })?;
        }
    }
    ensure!(!rows.is_empty(), "no case of the name '{}'", o.name);
    if !o.name.is_empty() {
        // Not over the figures of a whole run.
        let path = env.results.join("bench-some.tsv");
        write_tsv(&path, &rows)?;
        println!("{}", path.display());
        return Ok(true);
    }
    let unsteady = rows.iter().filter(|r| r.spread() >= STEADY).count();
    let missed: Vec<_> = rows.iter().filter(|r| r.verdict() == "NOT MET").collect();
    write_tsv(&env.results.join("bench.tsv"), &rows)?;
    plot::write_report(&env.results, &provenance(env, o), &rows)?;
    println!(
        "{} figures in {:.0} s; spread (distance of the quartiles, of the median) {}",
        rows.len(),
        started.elapsed().as_secs_f64(),
        match unsteady {
            0 => "under 1 % everywhere".into(),
            n => format!("of 1 % or more in {n} (marked ~)"),
        }
    );
    println!(
        "{} of {} targets met",
        rows.iter().filter(|r| r.verdict() == "met").count(),
        rows.iter().filter(|r| !r.verdict().is_empty()).count()
    );
    for row in &missed {
        println!(
            "  not met: {}, {}: {:.2}",
            row.case,
            row.fs,
            row.ratio().unwrap_or(0.0)
        );
    }
    println!("{0}/bench.tsv, {0}/report.html", env.results.display());
    Ok(true)
}

fn boot(
    env: &Environment,
    o: &Options<'_>,
    smp: u32,
    timed: bool,
    on_row: &mut dyn FnMut(Row),
) -> Result<()> {
    let sides = if o.on == On::C { "c" } else { "both" };
    let mut boot = Boot::new(env, env.default_kernel(), machine(smp));
    boot.log = env.log(&format!("bench-{smp}"));
    boot.icount = (!timed).then_some(0);
    job(env, boot, o, sides, on_row)
}

/// Boots, runs the guest's job, powers off.
fn job(
    env: &Environment,
    boot: Boot<'_>,
    o: &Options<'_>,
    sides: &str,
    on_row: &mut dyn FnMut(Row),
) -> Result<()> {
    let log = boot.log.clone();
    let mut vm = Vm::boot(boot)?;
    let mut args = vec![o.name.to_string(), sides.to_string()];
    args.extend(o.params.iter().cloned());
    let request = Request::Job {
        name: "bench".into(),
        args,
        on: o.on,
        limit_s: 1 << 20,
    };
    let mut bad = None;
    let answer = vm.request(&request, LIMIT, &mut |event| {
        if let Event::Data(value) = event {
            match serde_json::from_value(value) {
                Ok(row) => on_row(row),
                Err(e) => bad = Some(e),
            }
        }
    })?;
    let path = env.log("bench-job");
    fs::write(&path, &answer.log)?;
    if let Outcome::Failed(why) | Outcome::Skipped(why) = answer.outcome {
        bail!("{why} (logs: {}, {})", path.display(), log.display());
    }
    if let Some(e) = bad {
        return Err(e).context("the guest reported what is no figure");
    }
    let trouble = vm.poweroff()?;
    ensure!(
        trouble.is_empty(),
        "kernel: {} (log: {})",
        trouble[0],
        log.display()
    );
    Ok(())
}

const HEAD: &str = "case                                  fs    unit             C       ours  ratio target spread";

fn line(row: &Row) -> String {
    let number = |figures| Row::median(figures).map_or("-".into(), |n| format!("{n:.0}"));
    let mut line = format!(
        "{:<37} {:<5} {:<8} {:>9} {:>10}",
        row.case,
        row.fs,
        row.unit,
        number(&row.c),
        number(&row.ours)
    );
    match row.ratio() {
        Some(ratio) => write!(line, " {ratio:>6.2}"),
        None => write!(line, "      -"),
    }
    .expect("to a string");
    match row.target {
        Some(target) => write!(line, " {target:>6.2}"),
        None => write!(line, "       "),
    }
    .expect("to a string");
    let mark = if row.spread() >= STEADY { "~" } else { " " };
    write!(
        line,
        " {mark}{:>4.1}% {}",
        row.spread() * 100.0,
        row.verdict()
    )
    .expect("to a string");
    line
}

fn write_tsv(path: &Path, rows: &[Row]) -> Result<()> {
    let mut text = String::from("case\tfs\tunit\tC\tours\tratio\tspread\trepeats\ttarget\n");
    for row in rows {
        let number = |n: Option<f64>| n.map_or(String::new(), |n| format!("{n:.3}"));
        let repeats = row.c.as_ref().or(row.ours.as_ref()).map_or(0, Vec::len);
        writeln!(
            text,
            "{}\t{}\t{}\t{}\t{}\t{}\t{:.4}\t{repeats}\t{}",
            row.case,
            row.fs,
            row.unit,
            number(Row::median(&row.c)),
            number(Row::median(&row.ours)),
            number(row.ratio()),
            row.spread(),
            number(row.target),
        )?;
    }
    fs::write(path, text).with_context(|| path.display().to_string())
}

/// Kernel, module and command: what a figure must be read with.
fn provenance(env: &Environment, o: &Options<'_>) -> String {
    let git = |args: &[&str]| {
        let out = Command::new("git")
            .args(["-c", "safe.directory=*"])
            .args(args)
            .output()
            .ok()?;
        Some(String::from_utf8_lossy(&out.stdout).trim().to_string())
    };
    let commit = std::env::var("RPMEM_COMMIT")
        .ok()
        .filter(|c| !c.is_empty())
        .or_else(|| git(&["describe", "--always", "--dirty"]))
        .unwrap_or_else(|| "unknown".into());
    let kernel = &env.default_kernel().name;
    let mut command = format!("make bench KERNEL={kernel}");
    if !o.name.is_empty() {
        command += &format!(" T='{}'", o.name);
    }
    if o.on == On::C {
        command += " ON=c";
    }
    if !o.params.is_empty() {
        command += &format!(" PARAMS='{}'", o.params.join(" "));
    }
    format!("kernel {kernel}, module {commit}, {command}")
}
