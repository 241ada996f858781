// SPDX-License-Identifier: GPL-2.0

//! What the host asks the plugin to do: a list of jobs, one JSON object a line.
//! The guest takes them one after the other with [`crate::marker::next`].

use crate::image::{Instant, Kind};
use crate::workload::Workload;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What a job's text says: the guest's part of it, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// What to run, or what was run.
    pub workload: Workload,
    /// On which file system.
    pub fs: Ground,
    /// The seed of its operations.
    pub seed: u64,
    /// Run it (`None`), or check what is left of it when the power failed then.
    pub crash: Option<Progress>,
}

/// How far a run was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Operations begun.
    pub begun: u64,
    /// Operations acknowledged.
    pub acked: u64,
}

/// What a workload runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ground {
    /// ext4 with `-o dax=always`.
    Ext4,
    /// xfs with `-o dax=always`.
    Xfs,
    /// The block device itself.
    Raw,
}

impl std::fmt::Display for Ground {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.pad(match self {
            Ground::Ext4 => "ext4",
            Ground::Xfs => "xfs",
            Ground::Raw => "raw",
        })
    }
}

/// The text of a job that has no task: the guest's result is its /proc/kallsyms, [`MAPS`], and
/// the /proc/self/maps of the program that runs the workloads.
pub const SYMBOLS: &str = "symbols";
/// What is between the two.
pub const MAPS: &str = "\n--- maps\n";

/// One job: an image to put into the pmem range and what the guest does with it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// The image the range starts from; sparse, not longer than the range.
    pub base: PathBuf,
    /// A crash point on top of it, and which of its images.
    pub crash: Option<Crash>,
    /// Draw crash points from what the guest does.
    pub sample: Option<Sample>,
    /// Note who stored last to some lines.
    pub trace: Option<Trace>,
    /// Write what is in the range at the end of the job to this file, sparse.
    pub keep: Option<PathBuf>,
    /// Passed to the guest.
    pub text: String,
}

/// An image after a crash.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Crash {
    /// The point's file.
    pub point: PathBuf,
    /// Which lines that were dirty survive.
    pub kind: Kind,
    /// The seed that draws them for [`Kind::Random`].
    pub seed: u64,
}

/// How crash points are drawn.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sample {
    /// How many.
    pub points: usize,
    /// This one instead of drawing.
    pub at: Option<At>,
    /// The seed that draws them.
    pub seed: u64,
    /// Locked operations are no fences, so that a missing SFENCE shows.
    pub strict: bool,
    /// The directory they are written to.
    pub out: PathBuf,
}

/// A chosen crash point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct At {
    /// The kind of instant.
    pub instant: Instant,
    /// Its number among those of this kind in the run, from 1.
    pub nth: u64,
}

impl std::fmt::Display for At {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{}:{}", self.instant, self.nth)
    }
}

impl std::str::FromStr for At {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> Result<Self> {
        let (name, nth) = text.split_once(':').context("KIND:N is expected")?;
        let instant = Instant::DRAWN
            .into_iter()
            .find(|i| i.name() == name)
            .with_context(|| {
                format!(
                    "'{name}': {} is expected",
                    Instant::DRAWN.map(Instant::name).join(", ")
                )
            })?;
        let nth = nth.parse().ok().filter(|&n| n > 0);
        Ok(At {
            instant,
            nth: nth.context("instants are numbered from 1")?,
        })
    }
}

/// Which stores are to be noted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Trace {
    /// Lines, by their byte offset in the range.
    pub lines: BTreeSet<usize>,
    /// Until the run's instant of this number.
    pub until: u64,
}

/// The last store to a line before a crash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastStore {
    /// The line's byte offset in the range.
    pub line: usize,
    /// The operation in progress.
    pub begun: Option<u64>,
    /// The instruction, and what lies on the stack above it: return addresses and whatever looks
    /// like one.
    pub stack: Vec<u64>,
}

/// The result of a job, one JSON object a line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// The job's number in the list, from 0.
    pub job: usize,
    /// What the guest reported; `None` if it went on without a result.
    pub result: Option<String>,
    /// The crash points that were taken.
    pub points: Vec<PathBuf>,
    /// What the trace found.
    pub stores: Vec<LastStore>,
    /// How many instants were candidates.
    pub candidates: u64,
    /// The last operation that was acknowledged.
    pub acked: Option<u64>,
    /// What happened in the persistence domain, by name.
    pub counters: BTreeMap<String, u64>,
}

/// One line of a list.
pub fn to_line<T: Serialize>(item: &T) -> Result<String> {
    Ok(serde_json::to_string(item)? + "\n")
}

/// Writes a list of lines.
pub fn write_lines<T: Serialize>(path: &Path, list: &[T]) -> Result<()> {
    let text = list.iter().map(to_line).collect::<Result<String>>()?;
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

/// Reads a list of lines; a last line that is still being written is left out.
pub fn read_lines<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<Vec<T>> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole
        .lines()
        .map(|line| {
            serde_json::from_str(line).with_context(|| format!("{}: {line}", path.display()))
        })
        .collect()
}
