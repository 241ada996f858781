// SPDX-License-Identifier: GPL-2.0

//! Writes the image of a kept crash point (build/results/crash/rust-N.point or c-N.point), to look into it:
//! `image BASE POINT media|all|random SEED OUT`. BASE is the file system before the run.

use powerfail::image::{load_base, save_range, Kind, Point};
use std::path::Path;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    anyhow::ensure!(
        args.len() == 6,
        "usage: image BASE POINT media|all|random SEED OUT"
    );
    let size = std::fs::metadata(&args[1])?.len() as usize;
    let mut range = vec![0; size];
    load_base(Path::new(&args[1]), &mut range)?;
    let point = Point::load(Path::new(&args[2]))?;
    let kind: Kind = serde_json::from_value(args[3].clone().into())?;
    point.apply(kind, args[4].parse()?, &mut range);
    println!("{:?}", point.header);
    save_range(
        Path::new(&args[5]),
        &range,
        std::slice::from_ref(&(0..size)),
    )
}
