// SPDX-License-Identifier: GPL-2.0

//! The guest program: PID 1 of the initramfs, and every test that runs in the guest.
//!
//! - As PID 1 it prepares the system and answers the runner's requests ([`init`]).
//! - `guest --list` prints the tests as JSON ([`test`] says how one is written).
//! - `guest exec KIND NAME …` runs one test or job; PID 1 starts it so, in a process of its own.

mod fixture;
mod init;
mod jobs;
mod suites;
mod test;

use anyhow::{bail, Result};

fn main() -> Result<()> {
    if std::process::id() == 1 {
        init::main();
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--list"] => {
            let list: Vec<_> = suites::all().iter().map(|t| t.info()).collect();
            println!("{}", serde_json::to_string(&list)?);
            Ok(())
        }
        ["exec", request] => test::exec(&serde_json::from_str(request)?),
        _ => bail!("usage: guest --list (everything else happens in a guest)"),
    }
}
