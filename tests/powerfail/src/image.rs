// SPDX-License-Identifier: GPL-2.0

//! The media after a crash.
//!
//! A [`Point`] is one instant: the pages that had reached the media since the base
//! image, and the lines that were dirty in caches and buffers. From it come several
//! images ([`Kind`]), as any dirty line may have been evicted before the power went.

use crate::domain::{self, LINE, PAGE};
use crate::sample;
use anyhow::{ensure, Context, Result};
use rand_chacha::rand_core::RngCore;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::Path;

/// Which dirty lines are in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// None: the media only.
    Media,
    /// All of them.
    All,
    /// Some of them, drawn from a seed.
    Random,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.pad(match self {
            Kind::Media => "media",
            Kind::All => "all",
            Kind::Random => "random",
        })
    }
}

/// What kind of instant a point is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Instant {
    /// Just before a fence that has something to make durable.
    BeforeFence,
    /// Just after it.
    #[serde(rename = "fence")]
    AfterFence,
    /// Between two write-backs.
    Flush,
    /// Between two non-temporal stores.
    NtStore,
    /// After a store to the range of any kind, if they are all looked at.
    Store,
    /// At the begin or the acknowledgement of an operation.
    Operation,
    /// The guest asked for it.
    Marker,
}

impl Instant {
    /// Those that points are drawn from; the number of each is its place in this list.
    pub const DRAWN: [Instant; 6] = {
        use Instant::*;
        [BeforeFence, AfterFence, Flush, NtStore, Store, Operation]
    };

    /// Its name, as in serialised form.
    pub fn name(self) -> &'static str {
        match self {
            Instant::BeforeFence => "before-fence",
            Instant::AfterFence => "fence",
            Instant::Flush => "flush",
            Instant::NtStore => "nt-store",
            Instant::Store => "store",
            Instant::Operation => "operation",
            Instant::Marker => "marker",
        }
    }
}

impl std::fmt::Display for Instant {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// Which instant a point is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Name {
    /// What kind of instant it is.
    pub instant: Instant,
    /// Its number among all instants of the run, or the marker's.
    pub number: u64,
    /// Its number among those of its kind, or the marker's.
    pub nth: u64,
    /// The number of the last operation begun, if any.
    pub begun: Option<u64>,
    /// The number of the last operation acknowledged, if any.
    pub acked: Option<u64>,
}

/// What a point's file begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Which instant it is.
    #[serde(flatten)]
    pub name: Name,
    /// How many pages of the media differ from the base image.
    pub pages: usize,
    /// How many lines were dirty.
    pub lines: usize,
}

/// One instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    /// What is known of it.
    pub header: Header,
    /// Pages of the media, by index in the range, that are not as in the base image.
    pages: Vec<(u32, Box<[u8; PAGE]>)>,
    /// Lines, by index in the range, that the CPUs see otherwise than the media.
    lines: Vec<(u32, [u8; LINE])>,
}

impl Point {
    /// Takes an instant. `touched` are the pages of the media written so far, `live`
    /// the parts of the range that can differ from the media.
    pub fn capture(
        name: Name,
        media: &[u8],
        ram: &[u8],
        touched: impl Iterator<Item = usize>,
        live: &[Range<usize>],
    ) -> Point {
        let pages: Vec<_> = touched
            .map(|page| {
                let bytes = &media[page * PAGE..(page + 1) * PAGE];
                (
                    page as u32,
                    Box::new(bytes.try_into().expect("the length of a page")),
                )
            })
            .collect();
        let mut lines = Vec::new();
        for page in domain::pages(live) {
            let range = page * PAGE..(page + 1) * PAGE;
            if ram[range.clone()] == media[range.clone()] {
                continue;
            }
            for at in range.step_by(LINE) {
                let line = &ram[at..at + LINE];
                if *line != media[at..at + LINE] {
                    lines.push((
                        (at / LINE) as u32,
                        line.try_into().expect("the length of a line"),
                    ));
                }
            }
        }
        let header = Header {
            name,
            pages: pages.len(),
            lines: lines.len(),
        };
        Point {
            header,
            pages,
            lines,
        }
    }

    /// The lines that were dirty: byte offset and content.
    pub fn dirty(&self) -> impl Iterator<Item = (usize, &[u8; LINE])> {
        self.lines
            .iter()
            .map(|(line, bytes)| (*line as usize * LINE, bytes))
    }

    /// Makes `range`, which holds the base image, the image of this kind.
    pub fn apply(&self, kind: Kind, seed: u64, range: &mut [u8]) {
        for (page, bytes) in &self.pages {
            let at = *page as usize * PAGE;
            range[at..at + PAGE].copy_from_slice(&bytes[..]);
        }
        for (at, bytes) in self
            .dirty()
            .zip(Self::survivors(kind, seed))
            .filter_map(|(l, keep)| keep.then_some(l))
        {
            range[at..at + LINE].copy_from_slice(bytes);
        }
    }

    /// The dirty lines that are not in the image of this kind, by their byte offset.
    pub fn lost(&self, kind: Kind, seed: u64) -> impl Iterator<Item = usize> + '_ {
        self.dirty()
            .zip(Self::survivors(kind, seed))
            .filter_map(|((at, _), keep)| (!keep).then_some(at))
    }

    /// For each dirty line in turn whether it survives. A seed draws first how many
    /// do (one in eight, half, or all but one in eight), then which.
    fn survivors(kind: Kind, seed: u64) -> impl Iterator<Item = bool> {
        let mut rng = sample::rng(seed);
        let eighths = [1, 4, 7][sample::below(&mut rng, 3) as usize];
        std::iter::repeat_with(move || match kind {
            Kind::Media => false,
            Kind::All => true,
            Kind::Random => rng.next_u64() % 8 < eighths,
        })
    }

    /// Writes the point to a file.
    pub fn save(&self, path: &Path) -> Result<()> {
        let write = || -> std::io::Result<()> {
            let mut out = BufWriter::new(File::create(path)?);
            writeln!(out, "{}", serde_json::to_string(&self.header)?)?;
            for (page, bytes) in &self.pages {
                out.write_all(&page.to_le_bytes())?;
                out.write_all(&bytes[..])?;
            }
            for (line, bytes) in &self.lines {
                out.write_all(&line.to_le_bytes())?;
                out.write_all(bytes)?;
            }
            out.flush()
        };
        write().with_context(|| format!("writing {}", path.display()))
    }

    /// Reads a point from a file.
    pub fn load(path: &Path) -> Result<Point> {
        let read = || -> Result<Point> {
            let mut file = BufReader::new(File::open(path)?);
            let header = read_header(&mut file)?;
            let mut pages = Vec::with_capacity(header.pages);
            for _ in 0..header.pages {
                let index = read_u32(&mut file)?;
                let mut bytes = Box::new([0; PAGE]);
                file.read_exact(&mut bytes[..])?;
                pages.push((index, bytes));
            }
            let mut lines = Vec::with_capacity(header.lines);
            for _ in 0..header.lines {
                let index = read_u32(&mut file)?;
                let mut bytes = [0; LINE];
                file.read_exact(&mut bytes)?;
                lines.push((index, bytes));
            }
            ensure!(file.read(&mut [0])? == 0, "bytes after the end");
            Ok(Point {
                header,
                pages,
                lines,
            })
        };
        read().with_context(|| format!("reading {}", path.display()))
    }

    /// Reads only the header of a point's file.
    pub fn load_header(path: &Path) -> Result<Header> {
        let read = || read_header(&mut BufReader::new(File::open(path)?));
        read().with_context(|| format!("reading {}", path.display()))
    }
}

fn read_header(file: &mut BufReader<File>) -> Result<Header> {
    let mut line = String::new();
    std::io::BufRead::read_line(file, &mut line)?;
    Ok(serde_json::from_str(&line)?)
}

fn read_u32(file: &mut impl Read) -> Result<u32> {
    let mut bytes = [0; 4];
    file.read_exact(&mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

/// The parts of `file` that hold data, cut to `[start, start + len)` and relative to
/// `start`. The rest are holes, which read as zeros.
pub fn data_extents(file: &File, start: u64, len: u64) -> Result<Vec<Range<usize>>> {
    let seek = |at: u64, whence| {
        // SAFETY: plain lseek on a descriptor that `file` keeps open.
        match unsafe { libc::lseek(file.as_raw_fd(), at as libc::off_t, whence) } {
            -1 => match std::io::Error::last_os_error() {
                e if e.raw_os_error() == Some(libc::ENXIO) => Ok(None),
                e => Err(e),
            },
            found => Ok(Some(found as u64)),
        }
    };
    let (mut at, end) = (start, start + len);
    let mut extents = Vec::new();
    while at < end {
        let Some(data) = seek(at, libc::SEEK_DATA)?.filter(|&data| data < end) else {
            break;
        };
        let hole = seek(data, libc::SEEK_HOLE)?.unwrap_or(end).min(end);
        extents.push((data - start) as usize..(hole - start) as usize);
        at = hole;
    }
    Ok(extents)
}

/// Writes the parts of a range that hold data to a sparse file.
pub fn save_range(path: &Path, range: &[u8], data: &[Range<usize>]) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let file = File::create(path)?;
        file.set_len(range.len() as u64)?;
        for extent in data {
            let bytes = &range[extent.clone()];
            std::os::unix::fs::FileExt::write_all_at(&file, bytes, extent.start as u64)?;
        }
        Ok(())
    };
    write().with_context(|| format!("writing {}", path.display()))
}

/// Copies a sparse image into `range`, which is all zeros.
pub fn load_base(path: &Path, range: &mut [u8]) -> Result<()> {
    let read = |range: &mut [u8]| -> Result<()> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        ensure!(
            len <= range.len() as u64,
            "{len} bytes do not fit into a range of {}",
            range.len()
        );
        for extent in data_extents(&file, 0, len)? {
            let at = extent.start as u64;
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut range[extent], at)?;
        }
        Ok(())
    };
    read(range).with_context(|| format!("reading {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Domain;
    use proptest::prelude::*;
    use std::os::unix::fs::FileExt;

    const SIZE: usize = 8 * PAGE;

    /// A base image, then stores, some of them durable.
    fn example(stores: &[(usize, u8, bool)]) -> (Vec<u8>, Vec<u8>, Vec<u8>, Point) {
        let base: Vec<u8> = (0..SIZE).map(|i| (i / 100) as u8).collect();
        let (mut ram, mut media, mut domain) = (base.clone(), base.clone(), Domain::new(SIZE));
        for &(at, value, durable) in stores {
            ram[at] = value;
            if durable {
                domain.write_back(0, at, &ram);
                domain.fence(0, &mut media);
            }
        }
        let live: Vec<_> = std::iter::once(0..SIZE).collect();
        let name = Name {
            instant: Instant::Store,
            number: 5,
            nth: 2,
            begun: Some(3),
            acked: None,
        };
        let point = Point::capture(name, &media, &ram, domain.touched_pages(), &live);
        (base, ram, media, point)
    }

    proptest! {
        #[test]
        fn images(stores in proptest::collection::vec((0..SIZE, any::<u8>(), any::<bool>()), 0..40),
                  seed in any::<u64>()) {
            let (base, ram, media, point) = example(&stores);
            let image = |kind| {
                let mut range = base.clone();
                point.apply(kind, seed, &mut range);
                range
            };
            prop_assert_eq!(image(Kind::Media), media.clone());
            prop_assert_eq!(image(Kind::All), ram.clone());
            let random = image(Kind::Random);
            for at in (0..SIZE).step_by(LINE) {
                let line = &random[at..at + LINE];
                prop_assert!(line == &media[at..at + LINE] || line == &ram[at..at + LINE]);
            }
            prop_assert_eq!(random, image(Kind::Random));
        }

        #[test]
        fn files(stores in proptest::collection::vec((0..SIZE, any::<u8>(), any::<bool>()), 0..10)) {
            let (_, _, _, point) = example(&stores);
            let file = tempfile::NamedTempFile::new().unwrap();
            point.save(file.path()).unwrap();
            prop_assert_eq!(Point::load_header(file.path()).unwrap(), point.header);
            prop_assert_eq!(Point::load(file.path()).unwrap(), point);
        }
    }

    #[test]
    fn seeds_draw_different_lines() {
        let stores: Vec<_> = (0..SIZE / LINE).map(|i| (i * LINE, 0xee, false)).collect();
        let (_, ram, media, point) = example(&stores);
        let survivors = |seed| {
            let mut range = media.clone();
            point.apply(Kind::Random, seed, &mut range);
            range
                .chunks(LINE)
                .zip(ram.chunks(LINE))
                .map(|(a, b)| a == b)
                .collect::<Vec<_>>()
        };
        let (a, b) = (survivors(1), survivors(2));
        assert_ne!(a, b);
        for s in [a, b] {
            let share = s.iter().filter(|&&keep| keep).count() as f64 / s.len() as f64;
            assert!((0.05..0.95).contains(&share), "{share}");
        }
    }

    #[test]
    fn sparse_images() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("base");
        let file = File::create(&path).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(b"data", 32 << 20).unwrap();
        let mut range = vec![0; 64 << 20];
        load_base(&path, &mut range).unwrap();
        assert_eq!(&range[32 << 20..][..4], b"data");
        assert!(range[..32 << 20].iter().all(|&b| b == 0));
        let copy = dir.path().join("copy");
        let data = data_extents(&file, 0, 64 << 20).unwrap();
        assert!(data.iter().map(|r| r.len()).sum::<usize>() < 1 << 20);
        save_range(&copy, &range, &data).unwrap();
        assert_eq!(std::fs::read(&copy).unwrap(), range);
        let error = load_base(&path, &mut range[..4096]).unwrap_err();
        assert!(format!("{error:#}").contains("do not fit"), "{error:#}");
        assert!(load_base(&dir.path().join("none"), &mut range).is_err());
    }
}
