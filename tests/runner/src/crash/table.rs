// SPDX-License-Identifier: GPL-2.0

//! The results of a campaign as data and as a table.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result};
use powerfail::image::{Instant, Kind, Name};
use powerfail::job::At;
use proto::On;

use super::{Check, Found, Run, Sum};

/// One crash point, or a run that failed before it had any.
pub struct Row {
    workload: &'static str,
    fs: String,
    run_seed: u64,
    /// Of a run that failed: none.
    point: Option<(Name, Kind, u64)>,
    acknowledged: u64,
    lost: u64,
    ok: bool,
}

impl Row {
    pub fn new(run: &Run, check: Option<&Check>, found: &Found) -> Self {
        Row {
            workload: run.workload.name(),
            fs: run.fs.to_string(),
            run_seed: run.seed,
            point: check.map(|c| (c.name, c.crash.kind, c.crash.seed)),
            acknowledged: found.acknowledged,
            lost: found.lost,
            ok: found.error.is_none(),
        }
    }
}

/// What the campaign is on, as its first column says.
pub fn side(on: On) -> &'static str {
    match on {
        On::Rust => "rust",
        On::C => "c",
    }
}

/// "fence:123": what kind of instant, and its number among those of the run.
pub fn point(name: &Name) -> String {
    let (instant, nth) = (name.instant, name.nth);
    At { instant, nth }.to_string()
}

const HEADER: &str =
    "on\tworkload\tfs\tpoint\tseed\timage\tacknowledged bytes\tlost bytes\tresult\timage seed";

/// Writes the results of one side to a file; those of the other that are in it stay.
pub fn write(path: &Path, on: On, rows: &[Row]) -> Result<()> {
    let before = match fs::read_to_string(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => String::new(),
        text => text.with_context(|| path.display().to_string())?,
    };
    let side = side(on);
    let mut text = format!("{HEADER}\n");
    let mut lines = before.lines();
    if lines.next() == Some(HEADER) {
        for line in lines.filter(|l| l.split('\t').next() != Some(side)) {
            writeln!(text, "{line}")?;
        }
    }
    for r in rows {
        let (at, kind, image_seed) = match &r.point {
            Some((name, kind, seed)) => (point(name), kind.to_string(), *seed),
            None => ("run".into(), "none".into(), 0),
        };
        writeln!(
            text,
            "{side}\t{}\t{}\t{at}\t{:#x}\t{kind}\t{}\t{}\t{}\t{image_seed}",
            r.workload,
            r.fs,
            r.run_seed,
            r.acknowledged,
            r.lost,
            if r.ok { "ok" } else { "failed" },
        )?;
    }
    // Whoever reads it meanwhile finds the old one or the new.
    let new = path.with_extension("tsv.new");
    fs::write(&new, text)
        .and_then(|()| fs::rename(&new, path))
        .with_context(|| path.display().to_string())
}

/// How many points there are, how many of them failed, and how many runs had none.
pub fn sum(rows: &[Row]) -> Sum {
    let points = || rows.iter().filter(|r| r.point.is_some());
    Sum {
        points: points().count(),
        failed: points().filter(|r| !r.ok).count(),
        lost: points().map(|r| r.lost).sum(),
        broken: rows.len() - points().count(),
    }
}

/// Workload and file system against kinds of instants, each with its results.
pub fn summary(rows: &[Row]) -> String {
    /// Points and failed ones by kind of instant; bytes acknowledged, bytes lost.
    type Line = ([(usize, usize); Instant::DRAWN.len()], u64, u64);
    let mut lines: BTreeMap<(&str, &str), Line> = BTreeMap::new();
    let mut images: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for row in rows {
        let Some((name, kind, _)) = &row.point else {
            continue;
        };
        let (cells, acknowledged, lost) = lines.entry((row.workload, &row.fs)).or_default();
        let cell = Instant::DRAWN.iter().position(|i| *i == name.instant);
        let image = images.entry(kind.to_string()).or_default();
        for (points, failed) in cell.map(|c| &mut cells[c]).into_iter().chain([image]) {
            *points += 1;
            *failed += usize::from(!row.ok);
        }
        *acknowledged += row.acknowledged;
        *lost += row.lost;
    }
    let result = |(points, failed): (usize, usize)| match (points, failed) {
        (0, _) => "-".into(),
        (_, 0) => format!("{points} ok"),
        _ => format!("{failed}/{points} FAILED"),
    };
    let mut text = format!("{:8} {:4}", "workload", "fs");
    for instant in Instant::DRAWN {
        text += &format!(" {:>12}", instant.name());
    }
    text += &format!(" {:>14} {:>10}\n", "acknowledged", "lost");
    for ((workload, fs), (cells, acknowledged, lost)) in lines {
        text += &format!("{workload:8} {fs:4}");
        for cell in cells {
            text += &format!(" {:>12}", result(cell));
        }
        text += &format!(" {acknowledged:12} B {lost:8} B\n");
    }
    let images: Vec<_> = images
        .into_iter()
        .map(|(kind, cell)| format!("{kind} {}", result(cell)))
        .collect();
    text += &format!("images: {}\n", images.join(", "));
    let broken: Vec<_> = rows
        .iter()
        .filter(|r| r.point.is_none())
        .map(|r| format!("{} on {} (seed {:#x})", r.workload, r.fs, r.run_seed))
        .collect();
    if !broken.is_empty() {
        let n = broken.len();
        text += &format!(
            "{n} runs failed before they had points: {}\n",
            broken.join(", ")
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(point: Option<(Name, Kind, u64)>, ok: bool) -> Row {
        Row {
            workload: "flows",
            fs: "xfs".into(),
            run_seed: 7,
            point,
            acknowledged: 10,
            lost: 0,
            ok,
        }
    }

    fn rows() -> Vec<Row> {
        let name = Name {
            instant: Instant::AfterFence,
            number: 5,
            nth: 2,
            begun: None,
            acked: None,
        };
        let point = Some((name, Kind::Media, 3));
        vec![row(point, true), row(point, false), row(None, false)]
    }

    #[test]
    fn each_side_keeps_the_others_rows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("crash.tsv");
        write(&path, On::Rust, &rows()).unwrap();
        write(&path, On::C, &rows()[..1]).unwrap();
        write(&path, On::Rust, &rows()[2..]).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<_> = text.lines().collect();
        let c = "c\tflows\txfs\tfence:2\t0x7\tmedia\t10\t0\tok\t3";
        let rust = "rust\tflows\txfs\trun\t0x7\tnone\t10\t0\tfailed\t0";
        assert_eq!(lines, [HEADER, c, rust]);
        // Of other columns nothing can be kept.
        fs::write(&path, "on\tworkload\nrust\tflows\n").unwrap();
        write(&path, On::C, &[]).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{HEADER}\n"));
    }

    #[test]
    fn a_run_that_failed_is_no_point() {
        let sum = sum(&rows());
        assert_eq!((sum.points, sum.failed, sum.broken), (2, 1, 1));
        let text = summary(&rows());
        assert!(text.contains("1/2 FAILED"), "{text}");
        assert!(text.contains("1 runs failed before"), "{text}");
    }
}
