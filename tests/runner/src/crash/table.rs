// SPDX-License-Identifier: GPL-2.0

//! The results of a campaign as data and as a table.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use powerfail::image::{Kind, Name};
use proto::On;

use super::{Check, Found, Run};

/// One crash point, or a run that failed before it had any.
pub struct Row {
    on: &'static str,
    workload: &'static str,
    fs: String,
    point: String,
    seed: u64,
    kind: Option<Kind>,
    image_seed: u64,
    acknowledged: u64,
    lost: u64,
    pub ok: bool,
}

impl Row {
    pub fn new(on: On, run: &Run, check: Option<&Check>, found: &Found) -> Self {
        Row {
            on: match on {
                On::Rust => "rust",
                On::C => "c",
            },
            workload: run.workload.name(),
            fs: run.fs.to_string(),
            point: check.map_or("run".into(), |c| point(&c.name)),
            seed: run.seed,
            kind: check.map(|c| c.crash.kind),
            image_seed: check.map_or(0, |c| c.crash.seed),
            acknowledged: found.acknowledged,
            lost: found.lost,
            ok: found.error.is_none(),
        }
    }
}

/// "after-fence:123": what kind of instant, and its number among the run's candidates.
pub fn point(name: &Name) -> String {
    let kind = serde_json::to_value(name.instant).ok();
    let kind = kind
        .and_then(|k| k.as_str().map(String::from))
        .unwrap_or_default();
    format!("{kind}:{}", name.number)
}

/// Writes crash.tsv.
pub fn write(path: &Path, rows: &[Row]) -> Result<()> {
    let mut text = String::from(
        "on\tworkload\tfs\tpoint\tseed\timage\timage seed\tacknowledged bytes\tlost bytes\tresult\n",
    );
    for r in rows {
        let kind = r.kind.map_or("none".into(), |k| k.to_string());
        writeln!(
            text,
            "{}\t{}\t{}\t{}\t{:#x}\t{kind}\t{}\t{}\t{}\t{}",
            r.on,
            r.workload,
            r.fs,
            r.point,
            r.seed,
            r.image_seed,
            r.acknowledged,
            r.lost,
            if r.ok { "ok" } else { "failed" },
        )?;
    }
    fs::write(path, text).with_context(|| path.display().to_string())
}

#[derive(Default)]
struct Sum {
    points: [usize; 3],
    acknowledged: u64,
    lost: u64,
    failed: usize,
}

/// Workload and file system against image kinds and results.
pub fn summary(rows: &[Row]) -> String {
    let mut sums: BTreeMap<(&str, &str), Sum> = BTreeMap::new();
    for row in rows {
        let sum = sums.entry((row.workload, &row.fs)).or_default();
        match row.kind {
            Some(Kind::Media) => sum.points[0] += 1,
            Some(Kind::Random) => sum.points[1] += 1,
            Some(Kind::All) => sum.points[2] += 1,
            None => {}
        }
        sum.acknowledged += row.acknowledged;
        sum.lost += row.lost;
        sum.failed += usize::from(!row.ok);
    }
    let mut text = format!(
        "{:10} {:5} {:>6} {:>6} {:>6} {:>14} {:>10} {:>7}\n",
        "workload", "fs", "media", "random", "all", "acknowledged", "lost", "failed"
    );
    for ((workload, fs), s) in sums {
        let [media, random, all] = s.points;
        let _ = writeln!(
            text,
            "{workload:10} {fs:5} {media:6} {random:6} {all:6} {:12} B {:8} B {:7}",
            s.acknowledged, s.lost, s.failed
        );
    }
    text
}
