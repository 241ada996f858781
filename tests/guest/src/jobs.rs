// SPDX-License-Identifier: GPL-2.0

//! Jobs: what the runner has the guest do besides tests.

mod bench;
mod crash;
mod main_job;
mod xfstests;

use anyhow::{bail, Result};

use crate::test::Ctx;

pub fn run(name: &str, ctx: &Ctx, args: &[String]) -> Result<()> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match (name, &args[..]) {
        ("main", ["write"]) => main_job::write(ctx),
        ("main", ["verify", facts @ ..]) => main_job::verify(ctx, facts),
        ("crash", []) => crash::run(ctx),
        ("bench", args) => bench::run(ctx, args),
        ("xfstests", [section, limit_s, tests @ ..]) => {
            xfstests::run(ctx, section, limit_s.parse()?, tests)
        }
        _ => bail!("there is no job '{name} {}'", args.join(" ")),
    }
}
