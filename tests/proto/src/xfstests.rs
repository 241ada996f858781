// SPDX-License-Identifier: GPL-2.0

//! What the guest's job `xfstests` tells the runner, each as one [`Event::Data`](crate::Event).

use serde::{Deserialize, Serialize};

/// What became of a test. The words are those of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Pass,
    Fail,
    /// The test itself found that it cannot be run here.
    Notrun,
    /// It took longer than the limit.
    Timeout,
    /// The guest died of it.
    Died,
    /// Not tried: our list of such tests has it.
    Excluded,
}

impl Verdict {
    pub const ALL: [Verdict; 6] = [
        Verdict::Pass,
        Verdict::Fail,
        Verdict::Notrun,
        Verdict::Timeout,
        Verdict::Died,
        Verdict::Excluded,
    ];

    pub fn word(self) -> &'static str {
        match self {
            Verdict::Pass => "pass",
            Verdict::Fail => "fail",
            Verdict::Notrun => "notrun",
            Verdict::Timeout => "timeout",
            Verdict::Died => "died",
            Verdict::Excluded => "excluded",
        }
    }

    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|v| v.word() == word)
    }

    /// It was run and did not pass.
    pub fn is_bad(self) -> bool {
        matches!(self, Verdict::Fail | Verdict::Timeout | Verdict::Died)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Progress {
    Started {
        test: String,
    },
    Ended {
        test: String,
        verdict: Verdict,
        seconds: f64,
        /// Why, in one line; empty for a pass.
        reason: String,
        /// What there is to see of a failure.
        log: String,
    },
}
