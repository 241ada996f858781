// SPDX-License-Identifier: GPL-2.0

//! `make run`: the main job, step by step, over a reboot.

use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::ProgressBar;
use proto::{Event, Machine, On, Outcome, Request};
use runner::{Boot, Environment, Vm};

/// Time limit of each of the two boots' work.
const LIMIT: Duration = Duration::from_secs(120);

/// A line for a step that is done, with the time it took.
fn step(spinner: &ProgressBar, text: &str, seconds: f64) {
    spinner.suspend(|| println!("{text:<60} {seconds:6.1} s"));
}

/// Runs it, prints each step, and ends with `main job: ok` or `main job: FAILED: …`.
pub fn run(env: &Environment, on: On, verbose: bool) -> Result<bool> {
    let started = Instant::now();
    match job(env, on, verbose) {
        Ok(()) => {
            println!("in {:.1} s", started.elapsed().as_secs_f64());
            println!("main job: ok");
            Ok(true)
        }
        Err(e) => {
            println!("main job: FAILED: {e:#}");
            Ok(false)
        }
    }
}

fn job(env: &Environment, on: On, verbose: bool) -> Result<()> {
    let kernel = env.default_kernel();
    println!("kernel {}, {}", kernel.name, env.accel);
    // Only seen on a terminal.
    let spinner = ProgressBar::new_spinner();
    spinner.enable_steady_tick(Duration::from_millis(200));
    let scratch = runner::vm::scratch_dir()?;
    let memory = scratch.path().join("memory");
    // What the first boot found out (where the bytes lie) goes to the second.
    let mut facts: Vec<String> = Vec::new();
    for part in ["write", "verify"] {
        let mut boot = Boot::new(env, kernel, Machine::default());
        boot.memory = Some(memory.clone());
        boot.log = env.log(&format!("run-{part}"));
        boot.verbose = verbose;
        let log = boot.log.clone();
        spinner.set_message("booting");
        let mut vm = Vm::boot(boot)?;
        let what = if part == "write" {
            "booted"
        } else {
            "rebooted on the same memory"
        };
        step(&spinner, what, vm.boot_seconds);
        spinner.set_message("the guest works");
        let mut args = vec![part.to_string()];
        args.append(&mut facts);
        let request = Request::Job {
            name: "main".into(),
            args,
            on,
            limit_s: LIMIT.as_secs() - 20,
        };
        let answer = vm.request(&request, LIMIT, &mut |event| match event {
            Event::Step { text, seconds } => step(&spinner, &text, seconds),
            Event::Data(value) => facts.push(value.to_string()),
            _ => {}
        })?;
        if let Outcome::Failed(why) | Outcome::Skipped(why) = answer.outcome {
            let path = env.log(&format!("run-{part}-job"));
            std::fs::write(&path, &answer.log)?;
            anyhow::bail!("{why} (logs: {}, {})", path.display(), log.display());
        }
        let trouble = vm.poweroff()?;
        if let Some(line) = trouble.first() {
            anyhow::bail!("kernel: {line} (log: {})", log.display());
        }
    }
    spinner.finish_and_clear();
    Ok(())
}
