// SPDX-License-Identifier: GPL-2.0

//! Prints the operations of a run, to read a failure: `operations WORKLOAD SEED`.

use powerfail::workload::{transaction, Workload};

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    anyhow::ensure!(args.len() == 3, "usage: operations WORKLOAD SEED");
    let workload: Workload = args[1].parse()?;
    let seed = powerfail::parse_seed(&args[2])?;
    if workload.is_database() {
        for number in 1..=workload.length() {
            let keys: Vec<_> = transaction(seed, number)
                .into_iter()
                .map(|(key, value)| (key, value.map(|v| v.len())))
                .collect();
            println!("{number}: {keys:?}");
        }
        return Ok(());
    }
    for (number, op) in (1..).zip(workload.operations(seed)) {
        println!("{number}: file {} {:?} {:x?}", op.file, op.how, op.ranges);
    }
    Ok(())
}
