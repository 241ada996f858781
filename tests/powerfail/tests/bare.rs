// SPDX-License-Identifier: GPL-2.0

//! The plugin against a guest program without a kernel (`bare/`): for every kind of
//! instruction the expected image of the media, byte by byte.
//!
//! It needs QEMU and the plugin library; both are in the build root (`make test`).

use powerfail::domain::PAGE;
use powerfail::image::{Kind, Point};
use powerfail::job::{read_lines, write_lines, Job, Outcome, Sample};
use std::path::{Path, PathBuf};
use std::process::Command;

const SIZE: usize = 4 << 20;
const LOW: usize = 64 << 20;

const A: u64 = 0x1111_1111_1111_1111;
const B: u64 = 0x2222_2222_2222_2222;

/// A run of equal bytes: offset in the case's pages, length, value.
type Run = (usize, usize, u8);

/// What each point's media holds in the case's two pages; all else is zero. In order of
/// `bare/cases.rs`: one list for each stage.
fn expected(strict: bool) -> Vec<Vec<Vec<Run>>> {
    let a = |at, len| (at, len, A as u8);
    let b = |at, len| (at, len, B as u8);
    let unless_strict = |runs: Vec<Run>| if strict { vec![] } else { runs };
    vec![
        /* 0 */ vec![vec![]],
        /* 1 */ vec![vec![], vec![a(0, 8)]],
        /* 2 */ vec![vec![], vec![a(0, 8)]],
        /* 3 */ vec![vec![a(0, 8)]],
        /* 4 */ vec![vec![], vec![a(0, 8)]],
        /* 5 */ vec![vec![a(0, 8)]],
        /* 6 */ vec![vec![a(60, 4)], vec![a(60, 8)]],
        /* 7 */ vec![vec![a(4096, 5)], vec![a(4093, 8)]],
        /* 8 */ vec![vec![(10, 182, 0xab)]],
        /* 9 */ vec![vec![b(64, 64)]],
        /* 10 */ vec![vec![], vec![a(0, 8)]],
        /* 11 */ vec![vec![a(61, 8), b(128, 4)]],
        /* 12 */ vec![vec![], vec![a(0, 16), a(64, 32), a(128, 16), a(192, 32)]],
        /* 13 */ vec![(0..8).map(|i| a(2 * i + 1, 1)).collect()],
        /* 14 */ vec![vec![a(64, 8), a(176, 16)]],
        /* 15 */ vec![unless_strict(vec![a(0, 8)]), vec![a(0, 8)]],
        /* 16 */ vec![unless_strict(vec![a(0, 8)]), vec![a(0, 8)]],
        /* 17 */ vec![vec![], vec![a(0, 8)]],
        /* 18 */ vec![vec![a(0, 8), (15, 1, 0x80), a(16, 8), b(24, 8)]],
        /* 19 */ vec![vec![a(0, 8), a(64, 8), a(128, 8)]],
        /* 20 */ vec![vec![a(0, 8)]],
        /* 21 */ vec![vec![a(0, 8)]],
        /* 22 */ vec![vec![a(0, 8)]],
        /* 23 */ vec![vec![]],
        // In the last two pages, see `SWAPPED`.
        /* 24 */
        vec![
            vec![a(4096 + 4093, 3), a(0, 5)],
            vec![a(4096 + 4093, 3), a(0, 5), a(4096 + 4024, 8)],
        ],
        /* 25 */ vec![vec![a(0, 8), b(4096, 8)]],
    ]
}

/// The case whose pages are the last two of the range.
const SWAPPED: usize = 24;
/// The case after which nothing is dirty.
const WBINVD: usize = 25;

fn first_page(case: usize) -> usize {
    if case == SWAPPED {
        SIZE / PAGE - 2
    } else {
        2 * case
    }
}

fn build_payload(dir: &Path) -> PathBuf {
    let out = dir.join("payload");
    let status = Command::new("rustc")
        .args(["--edition", "2021", "--crate-type", "bin", "-O", "-C", "panic=abort"])
        .args(["-C", "relocation-model=static", "-C"])
        .arg("link-args=-nostartfiles -nostdlib -static -no-pie -Wl,-Ttext=0x100000,--build-id=none,-e,start32,--defsym=rip_alias=0x40028000")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bare/payload.rs"))
        .arg("-o")
        .arg(&out)
        .status()
        .expect("rustc runs");
    assert!(status.success(), "the payload does not build");
    out
}

/// The plugin library, built: a test cannot depend on a cdylib, and QEMU takes no other.
fn plugin() -> PathBuf {
    static BUILT: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    let build = || {
        // The profile's directory, which holds `deps` with this test.
        let dir = std::env::current_exe()
            .unwrap()
            .ancestors()
            .nth(2)
            .unwrap()
            .to_owned();
        let profile = match dir.file_name().unwrap().to_str().unwrap() {
            "debug" => "dev",
            other => other,
        }
        .to_owned();
        let status = Command::new(env!("CARGO"))
            .args([
                "build",
                "--quiet",
                "-p",
                "powerfail-plugin",
                "--profile",
                &profile,
            ])
            .status()
            .expect("cargo runs");
        assert!(status.success(), "the plugin does not build");
        dir.join("libpowerfail_plugin.so")
    };
    BUILT.get_or_init(build).clone()
}

/// Runs the payload; returns the outcome and the points by number.
fn run(strict: bool, arguments: &str) -> (Outcome, Vec<(u64, Point)>) {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let payload = build_payload(dir.path());
    for (name, size) in [("ram", LOW + SIZE), ("base", SIZE)] {
        std::fs::File::create(path(name))
            .unwrap()
            .set_len(size as u64)
            .unwrap();
    }
    let sample = Some(Sample {
        points: 0,
        seed: 0,
        strict,
        out: dir.path().into(),
    });
    let job = Job {
        base: path("base"),
        crash: None,
        sample,
        trace: None,
        keep: None,
        text: "bare".into(),
    };
    write_lines(&path("jobs"), &[job]).unwrap();
    let d = dir.path().display();
    let output = Command::new("timeout")
        .args(["60", "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot"])
        .args(["-display", "none", "-monitor", "none", "-accel", "tcg,thread=single", "-cpu", "max"])
        .args(["-device", "isa-debug-exit,iobase=0xf4"])
        .args(["-m", &format!("{}M", (LOW + SIZE) >> 20)])
        .args(["-machine", &format!("pc,memory-backend=ram,max-ram-below-4g={LOW}")])
        .args(["-object", &format!("memory-backend-file,id=ram,size={},mem-path={d}/ram,share=on", LOW + SIZE)])
        .arg("-kernel")
        .arg(payload)
        .arg("-plugin")
        .arg(format!(
            "file={},ram={d}/ram,low={LOW},base=0x100000000,size={SIZE},jobs={d}/jobs,results={d}/results{arguments}",
            plugin().display()
        ))
        .output()
        .unwrap();
    // isa-debug-exit turns 0 into 1.
    assert_eq!(
        output.status.code(),
        Some(1),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let outcome = read_lines::<Outcome>(&path("results")).unwrap().remove(0);
    let points = outcome
        .points
        .iter()
        .map(|p| Point::load(p).unwrap())
        .map(|p| (p.header.name.number, p))
        .collect();
    (outcome, points)
}

fn image(point: &Point, kind: Kind) -> Vec<u8> {
    let mut image = vec![0; SIZE];
    point.apply(kind, 0, &mut image);
    image
}

fn check(strict: bool) {
    let (outcome, points) = run(strict, "");
    assert_eq!(outcome.result.as_deref(), Some("done"));
    let expected = expected(strict);
    let stages: usize = expected.iter().map(Vec::len).sum();
    assert_eq!(points.len(), stages, "a point for each stage");
    let mut points = points.iter();
    for (case, stages) in expected.iter().enumerate() {
        for (stage, runs) in stages.iter().enumerate() {
            let (number, point) = points.next().unwrap();
            assert_eq!(*number, (case * 10 + stage) as u64);
            let mut want = vec![0u8; 2 * PAGE];
            for &(at, len, value) in runs {
                want[at..at + len].fill(value);
            }
            let got = &image(point, Kind::Media)[first_page(case) * PAGE..][..2 * PAGE];
            let wrong: Vec<_> = (0..2 * PAGE)
                .filter(|&i| got[i] != want[i])
                .map(|i| (i, got[i], want[i]))
                .collect();
            assert!(
                wrong.is_empty(),
                "case {case} stage {stage}: (byte, got, want): {wrong:x?}"
            );
            if case == WBINVD {
                assert_eq!(point.dirty().count(), 0, "nothing is dirty after WBINVD");
            }
        }
    }
}

#[test]
fn every_kind_of_instruction() {
    check(false);
}

#[test]
fn locked_operations_do_not_fence_in_strict_mode() {
    check(true);
}

/// What is dirty is known too: with all of it the image is what the CPU sees.
#[test]
fn dirty_lines() {
    let (_, points) = run(false, "");
    let (_, point) = points.iter().find(|(number, _)| *number == 50).unwrap();
    let page = first_page(5) * PAGE;
    let all = image(point, Kind::All);
    assert_eq!(all[page..page + 16], [B as u8; 16]);
    // Case 0 left one dirty line, case 5 another.
    let dirty: Vec<_> = point.dirty().map(|(at, _)| at).collect();
    assert_eq!(dirty, [0, page]);
}

/// A plugin that is told to forget an instruction shows the difference a kernel that
/// forgets it makes.
#[test]
fn ignored_instructions() {
    let media_of = |arguments, number| {
        let (_, points) = run(false, arguments);
        let (_, point) = points.iter().find(|(n, _)| *n == number).unwrap();
        let case = number as usize / 10;
        image(point, Kind::Media)[first_page(case) * PAGE..][..PAGE].to_vec()
    };
    assert_eq!(media_of(",ignore=write-back", 11), [0; PAGE]);
    assert_eq!(media_of(",ignore=nt-store", 101), [0; PAGE]);
    assert_eq!(media_of(",ignore=fence", 11), [0; PAGE]);
}

/// Counters tell how many of each instruction touched the range.
#[test]
fn counters() {
    let (outcome, _) = run(false, "");
    let c = |name: &str| outcome.counters[name];
    assert_eq!(c("flushes"), 1);
    // Cases 10 to 13 and 24; the plugin sees a vector store as QEMU splits it, and
    // MASKMOVDQU byte by byte. A store over two pages counts for each.
    assert!((9..=40).contains(&c("nt-stores")), "{}", c("nt-stores"));
    assert_eq!(c("locked"), 2);
    assert_eq!(outcome.candidates, 0, "the payload never said start");
}
