// SPDX-License-Identifier: GPL-2.0

//! What the runner on the host and the guest program say to each other.
//!
//! The runner boots a [`Machine`], the guest program (PID 1) answers with [`Event::Ready`] on
//! its second serial port, and from then on each [`Request`] of the runner is answered by any
//! number of [`Event::Step`] and [`Event::Data`] and one [`Event::Done`]. Both directions are
//! JSON, one value per line.

pub mod xfstests;

use serde::{Deserialize, Serialize};

pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;

/// Physical address at which persistent memory starts. RAM proper ends below the PCI hole, so
/// that neither firmware nor boot loader ever touches pmem when the same memory boots again.
pub const PMEM_BASE: u64 = 4 * GIB;

/// Ordinary RAM between two pmem ranges; without it the kernel may merge them.
pub const PMEM_GAP: u64 = 16 * MIB;

/// How a range of memory is taken out of the guest's RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum RangeKind {
    /// `memmap=nn!ss`: e820 type 12, "Persistent Memory (legacy)".
    Legacy,
    /// `memmap=nn$ss`: reserved; used through the module's `phys_addr=` and `size=`.
    Reserved,
}

/// A range of physical memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Range {
    pub start: u64,
    pub size: u64,
    pub kind: RangeKind,
}

impl Range {
    pub fn end(&self) -> u64 {
        self.start + self.size
    }

    /// The kernel parameter that makes this range.
    pub fn parameter(&self) -> String {
        let kind = match self.kind {
            RangeKind::Legacy => '!',
            RangeKind::Reserved => '$',
        };
        format!("memmap={:#x}{kind}{:#x}", self.size, self.start)
    }
}

/// A virtual machine: what a test needs to be there before the kernel boots.
///
/// Tests with equal machines share a boot.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Machine {
    /// QEMU's `-cpu`.
    pub cpu: String,
    pub smp: u32,
    /// Ordinary RAM, below [`PMEM_BASE`].
    pub ram_mib: u64,
    pub ranges: Vec<Range>,
    /// Further kernel parameters.
    pub append: Vec<String>,
}

impl Default for Machine {
    /// Two pmem ranges of 512 and 320 MiB (mkfs.xfs refuses less than 300), one CPU.
    fn default() -> Self {
        Machine {
            cpu: "max".into(),
            smp: 1,
            ram_mib: 1024,
            ranges: Vec::new(),
            append: Vec::new(),
        }
        .pmem(512)
        .pmem(320)
    }
}

impl Machine {
    /// The default machine without any pmem range.
    pub fn bare() -> Self {
        Machine {
            ranges: Vec::new(),
            ..Machine::default()
        }
    }

    pub fn cpu(mut self, cpu: &str) -> Self {
        self.cpu = cpu.into();
        self
    }

    pub fn smp(mut self, smp: u32) -> Self {
        self.smp = smp;
        self
    }

    pub fn ram(mut self, mib: u64) -> Self {
        self.ram_mib = mib;
        self
    }

    /// Adds a kernel parameter.
    pub fn append(mut self, parameter: &str) -> Self {
        self.append.push(parameter.into());
        self
    }

    /// Adds a legacy pmem range of `mib` MiB after the last range and a gap.
    pub fn pmem(self, mib: u64) -> Self {
        let start = self.next_start();
        self.range(start, mib * MIB, RangeKind::Legacy)
    }

    /// Adds a reserved range (`memmap=nn$ss`) of `mib` MiB after the last range and a gap.
    pub fn reserved(self, mib: u64) -> Self {
        let start = self.next_start();
        self.range(start, mib * MIB, RangeKind::Reserved)
    }

    /// Adds exactly this range; `start` must not be below [`PMEM_BASE`].
    pub fn range(mut self, start: u64, size: u64, kind: RangeKind) -> Self {
        assert!(start >= PMEM_BASE);
        self.ranges.push(Range { start, size, kind });
        self
    }

    fn next_start(&self) -> u64 {
        let end = self.ranges.iter().map(|r| r.end() + PMEM_GAP).max();
        end.unwrap_or(PMEM_BASE).next_multiple_of(2 * MIB)
    }

    /// Size of the guest's whole memory (and of the file behind it), in bytes.
    pub fn memory_size(&self) -> u64 {
        let high = self.ranges.iter().map(|r| r.end() - PMEM_BASE).max();
        (self.ram_mib * MIB + high.unwrap_or(0)).next_multiple_of(MIB)
    }

    /// Where a physical address lies in the file behind the guest's memory.
    pub fn file_offset(&self, phys: u64) -> u64 {
        match phys.checked_sub(PMEM_BASE) {
            Some(above) => self.ram_mib * MIB + above,
            None => phys,
        }
    }
}

/// Whose driver and fs/dax layer is tested.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum On {
    /// rust_pmem.ko.
    #[default]
    Rust,
    /// The kernel's own nd_pmem and fs/dax.c.
    C,
}

/// What a test is for. A test without tags runs in `make test` on the default kernel and on C.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Tag {
    /// Part of the smoke run on the other kernels.
    Smoke,
    /// Has a longer form, which `make stress` runs.
    Stress,
    /// Only means something with rust_pmem.ko.
    RustOnly,
}

/// A test as `guest --list` describes it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TestInfo {
    pub suite: String,
    pub name: String,
    pub tags: Vec<Tag>,
    pub machine: Machine,
    /// Time limit of the short form, in seconds. The stress form has [`STRESS_LIMIT`] more.
    pub limit_s: u64,
    /// Why the kernel's C layer does not pass it, where it does not.
    #[serde(default)]
    pub c_is_wrong: Option<String>,
    /// A test of the harness itself: it passes if it fails with this text in the reason.
    pub must_fail: Option<String>,
}

/// What the stress form of a test may take beyond its ordinary limit, in seconds.
pub const STRESS_LIMIT: u64 = 420;

impl TestInfo {
    /// `suite::name`, unique.
    pub fn full_name(&self) -> String {
        format!("{}::{}", self.suite, self.name)
    }

    pub fn has(&self, tag: Tag) -> bool {
        self.tags.contains(&tag)
    }
}

/// The runner asks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// Run a test of the list in a process of its own, then clean up after it.
    Test {
        name: String,
        on: On,
        /// On our driver with the kernel's fs/dax.c (`fs_dax=0`).
        c_fs_dax: bool,
        stress: bool,
        limit_s: u64,
    },
    /// Run a named job of the guest program (see `jobs` there) the same way.
    Job {
        name: String,
        args: Vec<String>,
        on: On,
        limit_s: u64,
    },
    /// An interactive shell on the console, with the module loaded.
    Shell {
        on: On,
        params: Vec<String>,
    },
    Poweroff,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    Passed,
    Failed(String),
    Skipped(String),
}

/// The guest says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Event {
    /// Up and waiting for requests.
    Ready { kernel: String, uptime_s: f64 },
    /// One line of progress of a job, with the time it took.
    Step { text: String, seconds: f64 },
    /// A result of a job: figures, acknowledgements.
    Data(serde_json::Value),
    /// The answer to a request.
    Done {
        outcome: Outcome,
        seconds: f64,
        /// Output of the process and kernel messages of the time.
        log: String,
        /// The guest is as it was at boot: nothing mounted, no module loaded, no taint.
        clean: bool,
    },
}

/// Beginnings of kernel messages after which a run cannot count as passed.
const TROUBLE: &[&str] = &[
    "BUG: ",
    "WARNING: ",
    "Oops: ",
    "Oops[",
    "Kernel panic",
    "general protection fault",
    "KASAN: ",
    "UBSAN: ",
    "INFO: task ",
    "INFO: rcu",
    "rcu: INFO: ",
    "watchdog: BUG",
    "Call Trace:",
    "kernel BUG at",
    "refcount_t: ",
    "list_add corruption",
    "list_del corruption",
    "possible circular locking",
    "possible recursive locking",
    "BUG kmalloc",
    "Bad page state",
    "bad page map",
];

/// What a guest says of a test or job after which the kernel is tainted.
pub const TAINTED: &str = "the kernel is tainted";

/// Whether a kernel log line (without its time stamp) tells of an oops, a warning, a lockup or
/// the like.
pub fn is_trouble(message: &str) -> bool {
    let message = message.trim_start();
    TROUBLE.iter().any(|t| message.starts_with(t))
        // Ours: a line of a Rust module begins with its name.
        || message.contains(": BUG: ")
        || message.contains("soft lockup")
        || message.contains("Internal error")
        || message.contains("self-detected stall")
}

/// A console line without its `[   12.345678] ` (and `[ T123] `) prefixes.
pub fn strip_stamp(line: &str) -> &str {
    let mut rest = line.trim_start_matches('\r');
    while let Some(inner) = rest.strip_prefix('[') {
        match inner.split_once(']') {
            Some((stamp, after))
                if stamp
                    .trim()
                    .trim_start_matches(['T', 'C'])
                    .bytes()
                    .all(|b| b.is_ascii_digit() || b == b'.') =>
            {
                rest = after.trim_start();
            }
            _ => break,
        }
    }
    rest
}

/// Kernel taints that are expected: an out-of-tree (bit 12), unsigned (bit 13) module.
pub const EXPECTED_TAINT: u64 = (1 << 12) | (1 << 13);

/// Kernel parameters that every guest gets: what costs time under emulation and is not under
/// test is off, and an oops ends the guest at once.
pub const BASE_PARAMETERS: &[&str] = &[
    "console=ttyS0",
    "loglevel=5",
    "panic=-1",
    "oops=panic",
    "nokaslr",
    "mitigations=off",
    "init_on_alloc=0",
    "audit=0",
    "apparmor=0",
    "lsm=capability",
    "nmi_watchdog=0",
    "rcupdate.rcu_expedited=1",
    "cryptomgr.notests",
    "tsc=reliable",
    "no_timer_check",
    "random.trust_cpu=on",
    "fsck.mode=skip",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_have_gaps_and_stay_above_ram() {
        let m = Machine::default();
        assert_eq!(m.ranges[0].start, PMEM_BASE);
        assert_eq!(m.ranges[1].start, m.ranges[0].end() + PMEM_GAP);
        assert_eq!(m.ranges[0].parameter(), "memmap=0x20000000!0x100000000");
        assert_eq!(m.memory_size(), (1024 + 512 + 16 + 320) * MIB);
        assert_eq!(m.file_offset(PMEM_BASE + 5), 1024 * MIB + 5);
    }

    #[test]
    fn trouble_is_seen_through_stamps() {
        let line = "[   12.345678] [  T123] WARNING: CPU: 0 PID: 1 at fs/dax.c:1";
        assert!(is_trouble(strip_stamp(line)));
        assert!(!is_trouble(strip_stamp("[    1.0] EXT4-fs warning: x")));
        let ours = "[    1.0] rust_pmem: BUG: fs_dax: a locked entry has gone (fs_dax/x.rs:1)";
        assert!(is_trouble(strip_stamp(ours)));
        assert_eq!(strip_stamp("[rpmem] x"), "[rpmem] x");
    }
}
