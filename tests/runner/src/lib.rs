// SPDX-License-Identifier: GPL-2.0

//! Boots guests and talks to them: what `make run`, `make test`, `make crash` and `make bench`
//! have in common.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use std::time::Duration;
//! let env = runner::Environment::new("build/results", vec!["7.3.4=/cache/kernels/x".parse()?])?;
//! let boot = runner::Boot::new(&env, env.default_kernel(), proto::Machine::default());
//! let mut vm = runner::Vm::boot(boot)?;
//! let request = proto::Request::Job {
//!     name: "main".into(),
//!     args: vec![],
//!     on: proto::On::Rust,
//!     limit_s: 60,
//! };
//! let answer = vm.request(&request, Duration::from_secs(70), &mut |event| println!("{event:?}"))?;
//! vm.poweroff()?;
//! # let _ = answer;
//! # Ok(()) }
//! ```

pub mod initramfs;
pub mod packages;
pub mod report;
pub mod suite;
pub mod symbols;
pub mod vm;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::{bail, ensure, Context, Result};

pub use initramfs::GuestFile;
pub use vm::{Answer, Boot, Death, Vm};

/// A kernel: `VERSION=DIR`, where DIR has `vmlinuz` and `modules` as `scripts/env.sh kernel`
/// makes them.
#[derive(Clone, Debug)]
pub struct Kernel {
    pub name: String,
    pub dir: PathBuf,
    /// rust_pmem.ko built for it.
    pub module: PathBuf,
}

impl FromStr for Kernel {
    type Err = anyhow::Error;

    fn from_str(s: &str) -> Result<Self> {
        let (name, dir) = s.split_once('=').context("a kernel is VERSION=DIRECTORY")?;
        Ok(Kernel {
            name: name.into(),
            dir: dir.into(),
            module: Path::new("build").join(name).join("rust_pmem.ko"),
        })
    }
}

/// KVM, or emulation by TCG.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    Kvm,
    Tcg,
}

impl Accel {
    /// KVM where it really works: /dev/kvm may be there on a CPU without virtualisation.
    pub fn detect() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let capable = cpuinfo
            .lines()
            .filter(|l| l.starts_with("flags"))
            .take(1)
            .flat_map(str::split_whitespace)
            .any(|f| f == "vmx" || f == "svm");
        let usable = fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_ok();
        if capable && usable {
            Accel::Kvm
        } else {
            Accel::Tcg
        }
    }
}

impl std::fmt::Display for Accel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Accel::Kvm => "KVM",
            Accel::Tcg => "TCG (emulation: no usable KVM here)",
        })
    }
}

/// Where things are on the host.
#[derive(Clone, Debug)]
pub struct Environment {
    /// The kernels to test on; the first is the default.
    pub kernels: Vec<Kernel>,
    /// The guest program.
    pub guest: PathBuf,
    /// For what is kept from run to run.
    pub cache: PathBuf,
    /// For results and logs of this run.
    pub results: PathBuf,
    pub accel: Accel,
}

impl Environment {
    /// The guest program is expected beside the running one; the cache is /cache.
    pub fn new(results: impl Into<PathBuf>, kernels: Vec<Kernel>) -> Result<Self> {
        ensure!(
            !kernels.is_empty(),
            "no kernel given (--kernel VERSION=DIR)"
        );
        let exe = std::env::current_exe()?;
        let guest = exe
            .ancestors()
            .skip(1)
            .take(2) // examples and tests lie one level deeper
            .map(|d| d.join("guest"))
            .find(|p| p.is_file())
            .context("the guest program is not built (cargo build -p guest)")?;
        let results = results.into();
        fs::create_dir_all(results.join("logs"))?;
        Ok(Environment {
            kernels,
            guest,
            cache: "/cache".into(),
            results,
            accel: Accel::detect(),
        })
    }

    pub fn default_kernel(&self) -> &Kernel {
        &self.kernels[0]
    }

    /// Every test the guest program knows.
    pub fn tests(&self) -> Result<Vec<proto::TestInfo>> {
        let out = Command::new(&self.guest).arg("--list").output()?;
        if !out.status.success() {
            bail!("guest --list: {}", String::from_utf8_lossy(&out.stderr));
        }
        Ok(serde_json::from_slice(&out.stdout)?)
    }

    /// A path for a log below the results.
    pub fn log(&self, name: &str) -> PathBuf {
        let name: String = name
            .chars()
            .map(|c| {
                if c.is_alphanumeric() || "._+-".contains(c) {
                    c
                } else {
                    '-'
                }
            })
            .collect();
        self.results.join("logs").join(name + ".log")
    }
}
