// SPDX-License-Identifier: GPL-2.0

//! The plugin against a guest program without a kernel (`bare/`): for every kind of
//! instruction the expected image of the media, byte by byte.
//!
//! It needs QEMU and the plugin library; both are in the build root (`make test`).

use powerfail::domain::PAGE;
use powerfail::image::{Instant, Kind, Point};
use powerfail::job::{read_lines, write_lines, Job, LastStore, Outcome, Sample, Trace};
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
        /* 26 */
        vec![
            vec![],
            (0..4).map(|i| a(2 * i + 1, 1)).chain([a(64, 8)]).collect(),
        ],
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

/// Runs the payload's cases; returns the outcome and the points by number.
fn run(strict: bool, arguments: &str) -> (Outcome, Vec<(u64, Point)>) {
    let sample = Sample {
        points: 0,
        at: None,
        seed: 0,
        strict,
        out: PathBuf::new(),
    };
    run_job("cases", sample, None, arguments)
}

/// Runs the part of the payload that `text` says.
fn run_job(
    text: &str,
    sample: Sample,
    trace: Option<Trace>,
    arguments: &str,
) -> (Outcome, Vec<(u64, Point)>) {
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
        out: dir.path().into(),
        ..sample
    });
    let job = Job {
        base: path("base"),
        crash: None,
        sample,
        trace,
        keep: None,
        text: text.into(),
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
    // Cases 10 to 13, 24 and 26; the plugin sees a vector store as QEMU splits it, and
    // MASKMOVDQU and MASKMOVQ byte by byte. A store over two pages counts for each.
    assert!((9..=40).contains(&c("nt-stores")), "{}", c("nt-stores"));
    assert_eq!(c("locked"), 2);
    assert_eq!(outcome.candidates, 0, "the payload never said start");
}

/// The instants of `instants()` in the payload with all stores looked at: kind, number of its
/// kind, the operations begun and acknowledged. The third write-back since a fence is one too,
/// but no candidate.
const INSTANTS: [(Instant, u64, Option<u64>, Option<u64>); 14] = {
    use Instant::*;
    [
        (Operation, 1, Some(1), None),
        (Store, 1, Some(1), None),
        (Flush, 1, Some(1), None),
        (Flush, 2, Some(1), None),
        (Flush, 3, Some(1), None),
        (BeforeFence, 1, Some(1), None),
        (AfterFence, 1, Some(1), None),
        (Operation, 2, Some(1), Some(1)),
        (Operation, 3, Some(2), Some(1)),
        (Store, 2, Some(2), Some(1)),
        (Store, 3, Some(2), Some(1)),
        (BeforeFence, 2, Some(2), Some(1)),
        (AfterFence, 2, Some(2), Some(1)),
        (Operation, 4, Some(2), Some(2)),
    ]
};

fn instants(points: usize, at: Option<&str>, until: u64, arguments: &str) -> (Outcome, Vec<Point>) {
    let sample = Sample {
        points,
        at: at.map(|at| at.parse().unwrap()),
        seed: 1,
        strict: true,
        out: PathBuf::new(),
    };
    let lines = [0, 64, 128].into();
    let trace = (until > 0).then_some(Trace { lines, until });
    let (outcome, points) = run_job("instants", sample, trace, arguments);
    (
        outcome,
        points.into_iter().map(|(_, point)| point).collect(),
    )
}

/// Each of these is the instant of [`INSTANTS`] that its number says.
fn assert_instants(points: &[Point]) {
    for point in points {
        let name = point.header.name;
        let want = INSTANTS[name.number as usize - 1];
        assert_eq!((name.instant, name.nth, name.begun, name.acked), want);
    }
}

#[test]
fn every_candidate_is_drawn_if_there_is_room() {
    let (outcome, points) = instants(100, None, 0, ",stores=on");
    assert_eq!(outcome.candidates, 13);
    assert_instants(&points);
    let numbers: Vec<_> = points.iter().map(|p| p.header.name.number).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14]);
    // After the first fence, and after the second, of which the last store is not part.
    let media = |i: usize| image(&points[i], Kind::Media)[..192].to_vec();
    let mut want = [0; 192];
    want[..8].fill(B as u8);
    want[60..68].fill(A as u8);
    assert_eq!(media(5), want);
    want[128..136].fill(B as u8);
    assert_eq!(media(11), want);
}

#[test]
fn some_are_drawn_by_the_seed() {
    let drawn = || {
        let (_, points) = instants(4, None, 0, ",stores=on");
        assert_eq!(points.len(), 4);
        assert_instants(&points);
        points
    };
    assert_eq!(drawn(), drawn());
}

#[test]
fn a_chosen_instant_is_taken() {
    for (number, (instant, nth, ..)) in (1..).zip(INSTANTS) {
        let (_, points) = instants(1, Some(&format!("{instant}:{nth}")), 0, ",stores=on");
        assert_instants(&points);
        let numbers: Vec<_> = points.iter().map(|p| p.header.name.number).collect();
        assert_eq!(numbers, [number]);
    }
    let (_, points) = instants(1, Some("fence:3"), 0, "");
    assert!(points.is_empty(), "there are two");
    // Where stores are not looked at the non-temporal ones are instants of their own kind.
    let (_, points) = instants(1, Some("nt-store:1"), 0, "");
    assert_eq!(points.len(), 1);
    assert_eq!(points[0].header.name.begun, Some(2));
}

#[test]
fn the_last_store_to_a_line() {
    let stores = |until| {
        let (outcome, _) = instants(0, None, until, ",stores=on");
        outcome.stores
    };
    let begun =
        |stores: &[LastStore]| -> Vec<_> { stores.iter().map(|s| (s.line, s.begun)).collect() };
    // Until the second acknowledgement: the line at 64 was stored to again, what follows is not
    // looked at.
    let last = stores(14);
    assert_eq!(begun(&last), [(0, Some(1)), (64, Some(2)), (128, Some(2))]);
    assert_ne!(last[0].stack, last[1].stack);
    // Until the second begins: one store to two lines.
    let last = stores(9);
    assert_eq!(begun(&last), [(0, Some(1)), (64, Some(1))]);
    assert_eq!(last[0].stack, last[1].stack);
    assert!(last[0].stack[0] >= 0x10_0000, "an address in the payload");
}
