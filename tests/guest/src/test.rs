// SPDX-License-Identifier: GPL-2.0

//! What a test is, and how one is run.
//!
//! A suite is a function that adds tests to a [`Suite`]:
//!
//! ```ignore
//! pub fn suite(s: &mut Suite) {
//!     for fs in Fs::ALL {
//!         s.test(format!("msync_{fs}"), move |ctx| msync(ctx, fs)).tag(Tag::Smoke);
//!     }
//! }
//!
//! fn msync(ctx: &Ctx, fs: Fs) -> Result<()> {
//!     let driver = Driver::load(ctx, &[])?;
//!     let mount = fs.make(driver.disk(0))?.mount("dax=always")?;
//!     …
//! }
//! ```
//!
//! Every test starts from nothing (no module loaded, nothing mounted) and ends there: fixtures
//! undo themselves when dropped, PID 1 checks. An `Err` or a panic fails the test, as does a
//! kernel warning or worse in the log while it ran.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::time::Instant;

use anyhow::{anyhow, Result};
use proto::{Event, Machine, On, Outcome, Request, Tag, TestInfo};

/// Where a test's process leaves its [`Outcome`] for PID 1.
pub const OUTCOME: &str = "/run/outcome";
/// The channel to the runner.
pub const CHANNEL: &str = "/dev/ttyS1";

/// How a test or job is run.
pub struct Ctx {
    pub on: On,
    /// Our driver is loaded with `fs_dax=0`, unless a test says otherwise.
    pub fs_dax_off: bool,
    /// The full-length form, of `make stress`.
    pub stress: bool,
}

impl Ctx {
    /// Whether the driver is the kernel's.
    pub fn on_c(&self) -> bool {
        self.on == On::C
    }

    /// Whether the kernel's fs/dax.c serves the files, whoever's the disk is.
    pub fn c_fs_dax(&self) -> bool {
        self.on_c() || self.fs_dax_off
    }

    /// `short` in `make test`, `full` in `make stress`.
    pub fn pick<T>(&self, short: T, full: T) -> T {
        if self.stress {
            full
        } else {
            short
        }
    }

    /// Tells the runner that a step of a job is done; prints it as well.
    pub fn step(&self, since: Instant, text: impl Into<String>) {
        let text = text.into();
        println!("{text}");
        say(&Event::Step {
            text,
            seconds: since.elapsed().as_secs_f64(),
        });
    }

    /// Hands the runner a result of a job.
    pub fn data(&self, value: serde_json::Value) {
        say(&Event::Data(value));
    }
}

/// Sends an event to the runner: one line in one write, so that lines never mix.
pub fn say(event: &Event) {
    let mut line = serde_json::to_vec(event).expect("events are plain data");
    line.push(b'\n');
    // Without a runner (the channel is missing) there is nobody to tell.
    if let Ok(mut channel) = std::fs::File::options().write(true).open(CHANNEL) {
        let _ = std::io::Write::write_all(&mut channel, &line);
    }
}

/// A test that cannot be run here says so with `bail!(Skip("reason"))`.
#[derive(Debug)]
pub struct Skip(pub String);

impl std::fmt::Display for Skip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "skipped: {}", self.0)
    }
}

impl std::error::Error for Skip {}

type Run = Box<dyn Fn(&Ctx) -> Result<()>>;

pub struct Test {
    suite: &'static str,
    name: String,
    tags: Vec<Tag>,
    machine: Machine,
    limit_s: u64,
    must_fail: Option<String>,
    c_is_wrong: Option<&'static str>,
    run: Run,
}

impl Test {
    pub fn tag(&mut self, tag: Tag) -> &mut Self {
        self.tags.push(tag);
        self
    }

    /// The machine it needs; tests with equal machines share a boot.
    pub fn machine(&mut self, machine: Machine) -> &mut Self {
        self.machine = machine;
        self
    }

    /// Time limit of the short form in seconds; 60 if not set. Emulated on a busy machine.
    pub fn limit(&mut self, seconds: u64) -> &mut Self {
        self.limit_s = seconds;
        self
    }

    /// The kernel's C layer does not pass it, for this reason: there, failing counts as skipped.
    pub fn c_is_wrong(&mut self, reason: &'static str) -> &mut Self {
        self.c_is_wrong = Some(reason);
        self
    }

    /// It passes if it fails with this text in the reason.
    pub fn must_fail(&mut self, reason: &str) -> &mut Self {
        self.must_fail = Some(reason.into());
        self
    }

    pub fn info(&self) -> TestInfo {
        TestInfo {
            suite: self.suite.into(),
            name: self.name.clone(),
            tags: self.tags.clone(),
            machine: self.machine.clone(),
            limit_s: self.limit_s,
            c_is_wrong: self.c_is_wrong.map(String::from),
            must_fail: self.must_fail.clone(),
        }
    }
}

/// Takes the tests of one suite.
pub struct Suite {
    name: &'static str,
    pub tests: Vec<Test>,
}

impl Suite {
    pub fn new(name: &'static str) -> Self {
        Suite {
            name,
            tests: Vec::new(),
        }
    }

    pub fn test(
        &mut self,
        name: impl Into<String>,
        run: impl Fn(&Ctx) -> Result<()> + 'static,
    ) -> &mut Test {
        self.tests.push(Test {
            suite: self.name,
            name: name.into(),
            tags: Vec::new(),
            machine: Machine::default(),
            limit_s: 60,
            must_fail: None,
            c_is_wrong: None,
            run: Box::new(run),
        });
        self.tests.last_mut().expect("just pushed")
    }
}

/// Runs the test or job of a request in this process and leaves its outcome for PID 1.
pub fn exec(request: &Request) -> Result<()> {
    let result = catch_unwind(AssertUnwindSafe(|| match request {
        Request::Test {
            name,
            on,
            c_fs_dax,
            stress,
            ..
        } => {
            let tests = crate::suites::all();
            let test = tests
                .iter()
                .find(|t| t.info().full_name() == *name)
                .ok_or_else(|| anyhow!("there is no test '{name}'"))?;
            (test.run)(&Ctx {
                on: *on,
                fs_dax_off: *c_fs_dax,
                stress: *stress,
            })
        }
        Request::Job { name, args, on, .. } => crate::jobs::run(
            name,
            &Ctx {
                on: *on,
                fs_dax_off: false,
                stress: false,
            },
            args,
        ),
        Request::Shell { .. } | Request::Poweroff => Err(anyhow!("not for a process")),
    }));
    let outcome = match result {
        Ok(Ok(())) => Outcome::Passed,
        Ok(Err(e)) => match e.downcast_ref::<Skip>() {
            Some(skip) => Outcome::Skipped(skip.0.clone()),
            None => {
                println!("error: {e:?}");
                Outcome::Failed(format!("{e:#}"))
            }
        },
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string()));
            Outcome::Failed(format!("panicked: {}", text.unwrap_or_default()))
        }
    };
    std::fs::write(OUTCOME, serde_json::to_vec(&outcome)?)?;
    Ok(())
}
