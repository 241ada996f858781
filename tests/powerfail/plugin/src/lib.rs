// SPDX-License-Identifier: GPL-2.0

//! A QEMU TCG plugin that models the persistence domain of a pmem range.
//!
//! Guest RAM is a shared file. Of the pmem range in it the plugin keeps a second
//! copy, the media: what would be left if the power went now. A guest program takes
//! jobs from it, runs them, and says when operations begin and are acknowledged;
//! the plugin draws crash points on the way and writes them to files (see
//! [`powerfail::image`]).
//!
//! Arguments: `ram=` the file behind guest RAM, `low=` how much of it is below 4 GiB
//! (the rest follows from 4 GiB on), `base=` and `size=` the range's physical address
//! and length, `jobs=` and `results=` the lists of [`powerfail::job`], and
//! - `track=off`: jobs and their images only, no model (for verification);
//! - `stores=on`: every store to the range is an instant of its own and a candidate for a crash;
//! - `ignore=write-back`, `nt-store` or `fence`: these instructions do nothing to the
//!   media, as in a kernel that forgets them (to see that a campaign notices).
//!
//! It is made for one thread (`-accel tcg,thread=single`), where each callback sees
//! all of RAM as of one instant.

mod ffi;

use anyhow::{bail, ensure, Context, Result};
use ffi::{Callbacks, Cpu, Flag, Insn, RegisterHandle, RegisterReader, Store};
use iced_x86::Register;
use memmap2::{MmapMut, MmapOptions};
use powerfail::decode::{decode, Action, Decoded};
use powerfail::domain::{Domain, LINE, PAGE};
use powerfail::image::{data_extents, load_base, save_range, Instant, Name, Point};
use powerfail::job::{read_lines, Job, LastStore, Outcome};
use powerfail::marker::Call;
use powerfail::sample::Reservoir;
use powerfail::walk::{self, Control};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::sync::Mutex;

qemu_plugin!(Plugin::new);

/// How the plugin was told to behave.
struct Config {
    /// The range's physical address.
    base: u64,
    /// Where it lies in the RAM file.
    range: Range<usize>,
    layout: Layout,
    track: bool,
    stores: bool,
    /// Some job has a trace.
    trace: bool,
    ignore: Option<Action>,
}

/// How physical addresses lie in the RAM file.
#[derive(Clone, Copy)]
struct Layout {
    low: u64,
}

impl Layout {
    fn file_offset(self, phys: u64) -> Option<usize> {
        const HIGH: u64 = 4 << 30;
        match phys.checked_sub(HIGH) {
            Some(above) => Some((self.low + above) as usize),
            None => (phys < self.low).then_some(phys as usize),
        }
    }
}

struct Plugin {
    config: Config,
    /// Per vCPU: something is pending, so that a fence matters.
    pending: Flag,
    /// Every instruction that is instrumented, so that translating it again needs no
    /// new memory. By address and bytes.
    known: Mutex<HashMap<(u64, [u8; 16]), &'static Hook>>,
    state: Mutex<State>,
}

/// What is attached to an instrumented instruction.
struct Hook {
    vaddr: u64,
    /// What it does to the persistence domain. None: any instruction, for `stores=on` and traces.
    decoded: Option<Decoded>,
}

/// How much of the stack a trace looks at, in words.
const STACK: usize = 128;
/// The kernel's text and its modules' lie above this.
const KERNEL_TEXT: u64 = 0xffff_ffff_8000_0000;
/// Position-independent programs and libraries lie above this.
const USER_TEXT: u64 = 0x5000_0000_0000;

struct State {
    ram_file: File,
    ram: MmapMut,
    media: MmapMut,
    domain: Domain,
    registers: HashMap<String, RegisterHandle>,
    reader: RegisterReader,
    jobs: std::vec::IntoIter<(usize, Job)>,
    results: File,
    run: Option<Run>,
}

/// The job in progress.
struct Run {
    number: usize,
    job: Job,
    reservoir: Reservoir,
    /// How many instants there were, and how many of each of [`Instant::DRAWN`].
    instants: u64,
    nth: [u64; Instant::DRAWN.len()],
    drawn: Vec<Option<Point>>,
    marked: Vec<Point>,
    active: bool,
    /// What the job's trace has seen, by line.
    stores: BTreeMap<usize, LastStore>,
    /// Write-backs and non-temporal stores since the last fence.
    burst: u64,
    begun: Option<u64>,
    acked: Option<u64>,
    result: Option<String>,
}

impl Plugin {
    fn new(args: Vec<String>) -> Result<&'static Plugin> {
        let mut args: HashMap<_, _> = args
            .iter()
            .map(|a| {
                a.split_once('=')
                    .with_context(|| format!("'{a}' is not name=value"))
            })
            .collect::<Result<_>>()?;
        let mut take = |name: &str| args.remove(name);
        let mut required = |name: &str| take(name).with_context(|| format!("{name}= is missing"));
        let ram_file = File::options()
            .read(true)
            .write(true)
            .open(required("ram")?)
            .context("ram=")?;
        let layout = Layout {
            low: number(required("low")?)?,
        };
        let (base, size) = (
            number(required("base")?)?,
            number(required("size")?)? as usize,
        );
        let start = layout
            .file_offset(base)
            .context("base= is in the hole below 4 GiB")?;
        let jobs: Vec<Job> = read_lines(required("jobs")?.as_ref())?;
        let results = File::options()
            .append(true)
            .create(true)
            .open(required("results")?)
            .context("results=")?;
        let mut switch = |name: &str, default| match take(name) {
            None => Ok(default),
            Some("on") => Ok(true),
            Some("off") => Ok(false),
            Some(other) => bail!("{name}={other}: on or off is expected"),
        };
        let config = Config {
            base,
            range: start..start + size,
            layout,
            track: switch("track", true)?,
            stores: switch("stores", false)?,
            trace: jobs.iter().any(|job| job.trace.is_some()),
            ignore: match take("ignore") {
                None => None,
                Some("write-back") => Some(Action::WriteBack),
                Some("nt-store") => Some(Action::NtStore),
                Some("fence") => Some(Action::Fence),
                Some(other) => bail!("ignore={other}: write-back, nt-store or fence is expected"),
            },
        };
        ensure!(args.is_empty(), "unknown arguments: {args:?}");
        let ram = ffi::map_shared(&ram_file)?;
        ensure!(
            start % PAGE == 0 && size % PAGE == 0,
            "base= and size= must be whole pages"
        );
        ensure!(
            start + size <= ram.len(),
            "the range ends after RAM ({} bytes)",
            ram.len()
        );
        let state = State {
            ram_file,
            ram,
            media: MmapOptions::new().len(size).map_anon()?,
            domain: Domain::new(size),
            registers: HashMap::new(),
            reader: RegisterReader::new(),
            jobs: jobs.into_iter().enumerate().collect::<Vec<_>>().into_iter(),
            results,
            run: None,
        };
        Ok(Box::leak(Box::new(Plugin {
            config,
            pending: Flag::new(),
            known: Mutex::default(),
            state: Mutex::new(state),
        })))
    }
}

impl Plugin {
    /// What is attached to an instruction, the same each time it is translated.
    fn hook(&self, vaddr: u64, bytes: [u8; 16], decoded: Option<Decoded>) -> &'static Hook {
        let mut known = self.known.lock().unwrap();
        known
            .entry((vaddr, bytes))
            .or_insert_with(|| Box::leak(Box::new(Hook { vaddr, decoded })))
    }
}

fn number(text: &str) -> Result<u64> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.with_context(|| format!("'{text}' is not a number"))
}

impl Callbacks for Plugin {
    type Data = Hook;

    fn vcpu_init(&self, _cpu: Cpu) {
        let mut state = self.state.lock().unwrap();
        if state.registers.is_empty() {
            state.registers = ffi::list_registers().into_iter().collect();
        }
    }

    fn translate(&self, insn: &Insn) {
        let (bytes, len) = insn.bytes();
        let vaddr = insn.vaddr();
        let stores = self.config.stores || self.config.trace;
        let decoded = decode(&bytes[..len], vaddr);
        let Some(action) = decoded.map(|d| d.action) else {
            if stores {
                insn.on_store::<Plugin>(self.hook(vaddr, bytes, None));
            }
            return;
        };
        if !self.config.track && action != Action::Marker {
            return;
        }
        let hook = self.hook(vaddr, bytes, decoded);
        match action {
            Action::Fence | Action::Locked => insn.before_if::<Plugin>(&self.pending, hook),
            Action::NtStore => insn.on_store::<Plugin>(hook),
            _ => insn.before::<Plugin>(hook),
        }
        if stores && action == Action::Locked {
            insn.on_store::<Plugin>(hook);
        }
    }

    fn before(&self, cpu: Cpu, hook: &'static Hook) {
        let Some(decoded) = &hook.decoded else { return };
        let mut state = self.state.lock().unwrap();
        if let Err(e) = state.execute(&self.config, cpu, decoded) {
            // A harness that went wrong must not look like a guest that went right.
            eprintln!("powerfail: {e:#}");
            std::process::abort();
        }
        self.pending.set(cpu, state.domain.has_pending(cpu));
    }

    fn stored(&self, cpu: Cpu, store: Store, hook: &'static Hook) {
        let mut state = self.state.lock().unwrap();
        let parts = state.parts(&self.config, store);
        if parts == [None, None] {
            return;
        }
        if self.config.trace {
            state.trace(&self.config, hook.vaddr, parts);
        }
        let nt = hook.decoded.is_some_and(|d| d.action == Action::NtStore);
        if nt && self.config.ignore != Some(Action::NtStore) {
            state.nt_store(&self.config, cpu, parts);
            self.pending.set(cpu, state.domain.has_pending(cpu));
        }
        if self.config.stores {
            state.instant(&self.config, Instant::Store, true);
        } else if nt {
            state.burst(&self.config, Instant::NtStore);
        }
    }

    fn at_exit(&self) {
        if let Err(e) = self.state.lock().unwrap().finish(&self.config) {
            eprintln!("powerfail: {e:#}");
        }
    }
}

impl State {
    fn register(&mut self, name: &str) -> u64 {
        let handle = self.registers[name];
        self.reader.read(handle)
    }

    fn translate(&mut self, layout: Layout, vaddr: u64) -> Option<u64> {
        let control = Control {
            cr0: self.register("cr0"),
            cr3: self.register("cr3"),
            cr4: self.register("cr4"),
        };
        walk::translate(control, vaddr, |phys| {
            let at = layout.file_offset(phys)?;
            let word = self.ram.get(at..at.checked_add(8)?)?;
            Some(u64::from_le_bytes(word.try_into().expect("8 bytes")))
        })
    }

    fn in_range(&self, config: &Config, phys: u64) -> Option<usize> {
        let offset = phys.checked_sub(config.base)? as usize;
        (offset < config.range.len()).then_some(offset)
    }

    /// An instruction that matters is about to run.
    fn execute(&mut self, config: &Config, cpu: Cpu, decoded: &Decoded) -> Result<()> {
        let range = config.range.clone();
        match decoded.action {
            Action::WriteBack | Action::Flush => {
                let vaddr = decoded.operand(|register| {
                    let name = match register {
                        Register::FS => "fs_base".to_owned(),
                        Register::GS => "gs_base".to_owned(),
                        other => format!("{other:?}").to_lowercase(),
                    };
                    self.register(&name)
                });
                let Some(offset) = self
                    .translate(config.layout, vaddr)
                    .and_then(|p| self.in_range(config, p))
                else {
                    return Ok(());
                };
                if config.ignore == Some(Action::WriteBack) {
                    return Ok(());
                }
                let ram = &self.ram[range];
                if decoded.action == Action::WriteBack {
                    self.domain.write_back(cpu, offset, ram);
                } else {
                    self.domain.flush(offset, ram, &mut self.media);
                }
                self.burst(config, Instant::Flush);
            }
            Action::FlushAll => {
                let live = self.live(config)?;
                self.domain
                    .flush_all(&self.ram[range], &mut self.media, &live);
            }
            Action::Locked if self.is_strict() => {}
            Action::Fence | Action::Locked => {
                if config.ignore == Some(Action::Fence) {
                    return Ok(());
                }
                self.instant(config, Instant::BeforeFence, true);
                if decoded.action == Action::Fence {
                    self.domain.fence(cpu, &mut self.media);
                } else {
                    self.domain.locked(cpu, &mut self.media);
                }
                self.instant(config, Instant::AfterFence, true);
                if let Some(run) = &mut self.run {
                    run.burst = 0;
                }
            }
            Action::NtStore => unreachable!("stores have their own callback"),
            Action::Marker => {
                let (call, a, b) = (
                    self.register("rdi"),
                    self.register("rsi"),
                    self.register("rdx"),
                );
                self.call(config, call, a, b)?;
            }
        }
        Ok(())
    }

    /// Whether the job in progress counts no locked operation as a fence.
    fn is_strict(&self) -> bool {
        let sample = self.run.as_ref().and_then(|run| run.job.sample.as_ref());
        sample.is_some_and(|sample| sample.strict)
    }

    /// The parts of a store that lie in the range: offset and length. The part in the next page, if
    /// any, may be anywhere.
    fn parts(&mut self, config: &Config, store: Store) -> [Option<(usize, usize)>; 2] {
        let first = store.size.min(PAGE - store.phys as usize % PAGE);
        let part = |state: &State, phys: u64, len| Some((state.in_range(config, phys)?, len));
        let mut parts = [part(self, store.phys, first), None];
        if first < store.size {
            parts[1] = self
                .translate(config.layout, store.vaddr + first as u64)
                .and_then(|phys| part(self, phys, store.size - first));
        }
        parts
    }

    fn nt_store(&mut self, config: &Config, cpu: Cpu, parts: [Option<(usize, usize)>; 2]) {
        let ram = &self.ram[config.range.clone()];
        for (offset, len) in parts.into_iter().flatten() {
            self.domain.nt_store(cpu, offset, len, ram);
        }
    }

    /// Notes a store if the job wants to know who stored to its lines last.
    fn trace(&mut self, config: &Config, pc: u64, parts: [Option<(usize, usize)>; 2]) {
        let Some(run) = &self.run else { return };
        let Some(trace) = &run.job.trace else { return };
        if run.instants >= trace.until {
            return;
        }
        let begun = run.begun;
        let lines: Vec<usize> = parts
            .into_iter()
            .flatten()
            .flat_map(|(at, len)| (at / LINE * LINE..at + len).step_by(LINE))
            .filter(|line| trace.lines.contains(line))
            .collect();
        if lines.is_empty() {
            return;
        }
        let sp = self.register("rsp");
        // The stack may end before: the next page is not mapped then.
        let room = PAGE - sp as usize % PAGE;
        let words = self
            .read_guest(config, sp, STACK * 8)
            .or_else(|_| self.read_guest(config, sp, (STACK * 8).min(room)))
            .unwrap_or_default();
        let words = words
            .chunks_exact(8)
            .map(|w| u64::from_le_bytes(w.try_into().expect("8 bytes")));
        // The kernel's code or the program's: its own addresses and those of its libraries.
        let code = |w: &u64| match pc >= KERNEL_TEXT {
            true => *w >= KERNEL_TEXT && *w != u64::MAX,
            false => (USER_TEXT..1 << 47).contains(w),
        };
        let stack: Vec<u64> = std::iter::once(pc).chain(words.filter(code)).collect();
        let Some(run) = &mut self.run else { return };
        for line in lines {
            let stack = stack.clone();
            run.stores.insert(line, LastStore { line, begun, stack });
        }
    }

    /// An instant that may be drawn if it is the 1st, 2nd, 4th, 8th … since the last fence: long
    /// flushes must not crowd out everything else.
    fn burst(&mut self, config: &Config, instant: Instant) {
        let Some(run) = &mut self.run else { return };
        run.burst += 1;
        let candidate = run.burst.is_power_of_two();
        self.instant(config, instant, candidate);
    }

    /// An instant of a run: a crash point if it is the chosen one, or drawn as a candidate.
    fn instant(&mut self, config: &Config, instant: Instant, candidate: bool) {
        let Some(run) = self.run.as_mut().filter(|r| r.active) else {
            return;
        };
        let kind = Instant::DRAWN.iter().position(|&i| i == instant);
        let kind = kind.expect("a marker is no instant of a run");
        run.instants += 1;
        run.nth[kind] += 1;
        let drawn = candidate.then(|| run.reservoir.offer()).flatten();
        let slot = match run.job.sample.as_ref().and_then(|s| s.at) {
            Some(at) => (at.instant == instant && at.nth == run.nth[kind]).then_some(0),
            None => drawn,
        };
        let Some(slot) = slot else { return };
        let (number, nth) = (run.instants, run.nth[kind]);
        let point = self.capture(config, instant, number, nth);
        let drawn = &mut self.run.as_mut().expect("checked above").drawn;
        drawn.resize_with(drawn.len().max(slot + 1), || None);
        drawn[slot] = Some(point);
    }

    fn capture(&self, config: &Config, instant: Instant, number: u64, nth: u64) -> Point {
        let (begun, acked) = self
            .run
            .as_ref()
            .map_or((None, None), |r| (r.begun, r.acked));
        let live = self
            .live(config)
            .expect("the RAM file can be searched for data");
        let ram = &self.ram[config.range.clone()];
        let name = Name {
            instant,
            number,
            nth,
            begun,
            acked,
        };
        Point::capture(name, &self.media, ram, self.domain.touched_pages(), &live)
    }

    fn live(&self, config: &Config) -> Result<Vec<Range<usize>>> {
        data_extents(
            &self.ram_file,
            config.range.start as u64,
            config.range.len() as u64,
        )
    }

    fn call(&mut self, config: &Config, call: u64, a: u64, b: u64) -> Result<()> {
        let call = Call::from_number(call).with_context(|| format!("unknown marker {call}"))?;
        match call {
            Call::Next => {
                self.finish(config)?;
                let text = match self.jobs.next() {
                    Some((number, job)) => self.start(config, number, job)?,
                    None => String::new(),
                };
                ensure!(
                    text.len() < b as usize,
                    "a job's text does not fit into {b} bytes"
                );
                return self.write_guest(config, a, &[text.as_bytes(), b"\0"].concat());
            }
            Call::Result => {
                let text = self.read_guest(config, a, b as usize)?;
                let run = self.run.as_mut().context("a result without a job")?;
                run.result = Some(String::from_utf8_lossy(&text).into_owned());
            }
            Call::Point => {
                let point = self.capture(config, Instant::Marker, a, a);
                self.run
                    .as_mut()
                    .context("a point without a job")?
                    .marked
                    .push(point);
            }
            Call::Start | Call::Stop => {
                self.run.as_mut().context("start without a job")?.active = call == Call::Start;
            }
            Call::Begin => {
                self.run
                    .as_mut()
                    .context("an operation without a job")?
                    .begun = Some(a);
                self.instant(config, Instant::Operation, true);
            }
            Call::Ack => {
                self.run
                    .as_mut()
                    .context("an operation without a job")?
                    .acked = Some(a);
                self.instant(config, Instant::Operation, true);
            }
        }
        Ok(())
    }

    /// Puts the job's image into place; returns its text.
    fn start(&mut self, config: &Config, number: usize, job: Job) -> Result<String> {
        ffi::punch_hole(
            &self.ram_file,
            config.range.start as u64,
            config.range.len() as u64,
        )?;
        let ram = &mut self.ram[config.range.clone()];
        load_base(&job.base, ram)?;
        if let Some(crash) = &job.crash {
            Point::load(&crash.point)?.apply(crash.kind, crash.seed, ram);
        }
        if config.track {
            ffi::drop_contents(&mut self.media)?;
            for extent in data_extents(
                &self.ram_file,
                config.range.start as u64,
                config.range.len() as u64,
            )? {
                let at = config.range.start + extent.start;
                self.media[extent.clone()].copy_from_slice(&self.ram[at..at + extent.len()]);
            }
            self.domain.reset();
        }
        let (points, seed) = job.sample.as_ref().map_or((0, 0), |s| (s.points, s.seed));
        let text = job.text.clone();
        self.run = Some(Run {
            number,
            job,
            reservoir: Reservoir::new(points, seed),
            instants: 0,
            nth: [0; Instant::DRAWN.len()],
            drawn: Vec::new(),
            marked: Vec::new(),
            active: false,
            stores: BTreeMap::new(),
            burst: 0,
            begun: None,
            acked: None,
            result: None,
        });
        Ok(text)
    }

    /// Writes down what came of the job in progress.
    fn finish(&mut self, config: &Config) -> Result<()> {
        let Some(run) = self.run.take() else {
            return Ok(());
        };
        if let Some(path) = &run.job.keep {
            let live = self.live(config)?;
            save_range(path, &self.ram[config.range.clone()], &live)?;
        }
        let mut points = Vec::new();
        if let Some(sample) = &run.job.sample {
            let mut all: Vec<Point> = run.drawn.into_iter().flatten().chain(run.marked).collect();
            all.sort_by_key(|p| {
                (
                    p.header.name.instant == Instant::Marker,
                    p.header.name.number,
                )
            });
            for (i, point) in all.iter().enumerate() {
                let path = sample.out.join(format!("{:x}-{i}.point", sample.seed));
                point.save(&path)?;
                points.push(path);
            }
        }
        let c = self.domain.counters;
        let counters = BTreeMap::from(
            [
                ("write-backs", c.write_backs),
                ("flushes", c.flushes),
                ("nt-stores", c.nt_stores),
                ("fences", c.fences),
                ("locked", c.locked),
            ]
            .map(|(name, n)| (name.to_owned(), n)),
        );
        let outcome = Outcome {
            job: run.number,
            result: run.result,
            points,
            stores: run.stores.into_values().collect(),
            candidates: run.reservoir.seen(),
            acked: run.acked,
            counters,
        };
        // One write, so that who follows the file sees whole lines.
        let line = powerfail::job::to_line(&outcome)?;
        Ok(self.results.write_all(line.as_bytes())?)
    }

    fn read_guest(&mut self, config: &Config, vaddr: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(len);
        self.guest_pieces(config, vaddr, len, |ram, _| bytes.extend_from_slice(ram))?;
        Ok(bytes)
    }

    fn write_guest(&mut self, config: &Config, vaddr: u64, bytes: &[u8]) -> Result<()> {
        self.guest_pieces(config, vaddr, bytes.len(), |ram, at| {
            ram.copy_from_slice(&bytes[at..at + ram.len()])
        })
    }

    /// Calls `f` with each piece of a guest buffer that lies in one page, and where in
    /// the buffer it is.
    fn guest_pieces(
        &mut self,
        config: &Config,
        vaddr: u64,
        len: usize,
        mut f: impl FnMut(&mut [u8], usize),
    ) -> Result<()> {
        let mut at = 0;
        while at < len {
            let here = vaddr + at as u64;
            let n = (len - at).min(PAGE - here as usize % PAGE);
            let phys = self
                .translate(config.layout, here)
                .with_context(|| format!("guest address {here:#x} is not present"))?;
            let offset = config
                .layout
                .file_offset(phys)
                .context("guest buffer outside RAM")?;
            let ram = self
                .ram
                .get_mut(offset..offset + n)
                .context("guest buffer outside RAM")?;
            f(ram, at);
            at += n;
        }
        Ok(())
    }
}
