// SPDX-License-Identifier: GPL-2.0

//! `make bench-flush`: criterion over the contenders, and a table in which they take turns, in
//! time stamp counter cycles per cache line, fence included.
//!
//! libpmem chooses its instruction when it is loaded, so there is one process per instruction.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use anyhow::{ensure, Result};
use criterion::measurement::{Measurement, ValueFormatter};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use flush::{cycles, libpmem, line_count, ours, plain, prepare, Isa};

const ISA: &str = "RPMEM_FLUSH_ISA";
/// Turns of the table per contender: enough for short pieces to be steady, few for long ones.
const TURN_BYTES: usize = 512 << 20;
/// What the same loop differs by from run to run.
const NOISE: f64 = 0.02;

fn main() -> Result<()> {
    if let Ok(name) = std::env::var(ISA) {
        let isa = Isa::ALL
            .into_iter()
            .find(|i| i.name() == name)
            .expect("set below");
        return measure(isa);
    }
    println!("isa\tlines\tbytes\toffset\tours\tlibpmem\tplain\tours/libpmem\t(cycles per line, fence included, lower quartiles of turns)");
    let mut rows = String::from("isa\tlines\tbytes\toffset\tours\tlibpmem\tplain\tratio\n");
    for isa in Isa::ALL {
        if !isa.is_here() {
            println!("{}: not on this processor", isa.name());
            continue;
        }
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(std::env::args_os().skip(1))
            .env(ISA, isa.name());
        for variable in isa.libpmem_environment() {
            command.env(variable, "1");
        }
        let status = command.process_group(0).status()?;
        ensure!(status.success(), "{}: {status}", isa.name());
        rows.push_str(&std::fs::read_to_string(part(isa))?);
        let _ = std::fs::remove_file(part(isa));
    }
    std::fs::create_dir_all(RESULTS)?;
    std::fs::write(format!("{RESULTS}/bench-flush.tsv"), &rows)?;
    let ratios: Vec<f64> = rows
        .lines()
        .filter_map(|row| row.rsplit('\t').next()?.parse().ok())
        .collect();
    let slower = ratios.iter().filter(|r| **r > 1.0 + NOISE).count();
    println!(
        "slower than libpmem by more than {:.0} %: {slower} of {}",
        NOISE * 100.0,
        ratios.len()
    );
    println!("build/results/bench-flush.tsv");
    Ok(())
}

const RESULTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../build/results");

fn part(isa: Isa) -> String {
    format!("{RESULTS}/bench-flush.{}.part", isa.name())
}

/// Length and offset within a line of what is written back.
const PIECES: &[(usize, usize)] = &[
    (64, 0),
    (256, 0),
    (1 << 10, 0),
    (4 << 10, 0),
    (16 << 10, 0),
    (64 << 10, 0),
    (1 << 20, 0),
    (16 << 20, 0),
    (64 << 20, 0),
    (8, 60),
    (100, 17),
    (4 << 10, 17),
    (1 << 20, 33),
];

fn measure(isa: Isa) -> Result<()> {
    let longest = PIECES
        .iter()
        .map(|(len, _)| *len)
        .max()
        .expect("there are pieces");
    let mut memory = vec![0u8; longest + 4096 + 64];
    let aligned = memory.as_ptr().align_offset(4096);
    let memory = &mut memory[aligned..];
    prepare(memory, true);
    table(isa, memory)?;
    with_criterion(isa, memory);
    Ok(())
}

type Contender = (&'static str, fn(Isa, &[u8]));

const CONTENDERS: [Contender; 3] = [
    ("ours", ours),
    ("libpmem", |_, memory| libpmem(memory)),
    ("plain", plain),
];

/// The contenders in turns: what decides, as all of them see the same disturbances.
fn table(isa: Isa, memory: &mut [u8]) -> Result<()> {
    let mut rows = String::new();
    for dirty in [true, false] {
        for &(len, offset) in PIECES {
            let piece = &mut memory[offset..offset + len];
            let lines = line_count(piece);
            let turns = (TURN_BYTES / (lines * 64)).clamp(25, 4001);
            let mut figures = [const { Vec::new() }; 3];
            for turn in 0..turns {
                for at in 0..CONTENDERS.len() {
                    // Who comes first changes, so that nobody always follows the same one.
                    let at = (at + turn) % CONTENDERS.len();
                    prepare(piece, dirty);
                    let start = cycles();
                    CONTENDERS[at].1(isa, piece);
                    figures[at].push(cycles() - start);
                }
            }
            // The lower quartile: a long piece is rarely left alone for all of its time.
            let [ours, libpmem, plain] = figures.map(|mut f| {
                f.sort();
                f[f.len() / 4] as f64 / lines as f64
            });
            let kind = if dirty { "dirty" } else { "clean" };
            let row = format!(
                "{}\t{kind}\t{len}\t{offset}\t{ours:.2}\t{libpmem:.2}\t{plain:.2}\t{:.3}",
                isa.name(),
                ours / libpmem
            );
            println!("{row}");
            rows.push_str(&row);
            rows.push('\n');
        }
    }
    std::fs::create_dir_all(RESULTS)?;
    Ok(std::fs::write(part(isa), rows)?)
}

fn with_criterion(isa: Isa, memory: &mut [u8]) {
    let mut criterion = Criterion::default()
        .with_measurement(Cycles)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(600))
        .sample_size(20)
        .without_plots()
        .configure_from_args();
    for dirty in [true, false] {
        let kind = if dirty { "dirty" } else { "clean" };
        let mut group = criterion.benchmark_group(format!("{} {kind}", isa.name()));
        for &(len, offset) in PIECES {
            let piece = &mut memory[offset..offset + len];
            group.throughput(Throughput::Elements(line_count(piece) as u64));
            for (name, contender) in CONTENDERS {
                let id = BenchmarkId::new(name, format!("{len}+{offset}"));
                let start = piece.as_mut_ptr() as usize;
                group.bench_with_input(id, &len, |b, &len| {
                    // SAFETY: the piece is borrowed for the loop's whole body, and nothing else
                    // uses it while criterion runs setup and routine one after the other.
                    let piece =
                        move || unsafe { std::slice::from_raw_parts_mut(start as *mut u8, len) };
                    b.iter_batched(
                        || prepare(piece(), dirty),
                        |()| contender(isa, piece()),
                        BatchSize::PerIteration,
                    )
                });
            }
        }
        group.finish();
    }
    criterion.final_summary();
}

/// Criterion's measurement in time stamp counter cycles.
struct Cycles;

impl Measurement for Cycles {
    type Intermediate = u64;
    type Value = u64;

    fn start(&self) -> u64 {
        cycles()
    }

    fn end(&self, start: u64) -> u64 {
        cycles() - start
    }

    fn add(&self, a: &u64, b: &u64) -> u64 {
        a + b
    }

    fn zero(&self) -> u64 {
        0
    }

    fn to_f64(&self, value: &u64) -> f64 {
        *value as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        &CyclesFormatter
    }
}

struct CyclesFormatter;

impl ValueFormatter for CyclesFormatter {
    fn scale_values(&self, _typical: f64, _values: &mut [f64]) -> &'static str {
        "cycles"
    }

    fn scale_throughputs(
        &self,
        _typical: f64,
        throughput: &Throughput,
        values: &mut [f64],
    ) -> &'static str {
        if let Throughput::Elements(lines) = throughput {
            values.iter_mut().for_each(|v| *v /= *lines as f64);
        }
        "cycles/line"
    }

    fn scale_for_machines(&self, _values: &mut [f64]) -> &'static str {
        "cycles"
    }
}
