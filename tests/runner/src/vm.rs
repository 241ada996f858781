// SPDX-License-Identifier: GPL-2.0

//! One guest: a QEMU process, its console and its channel.
//!
//! The console (first serial port) goes to a log file and is watched for kernel trouble. The
//! channel (second serial port) carries [`proto`] messages over a Unix socket.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use proto::{Event, Machine, Outcome, Request};

use crate::{initramfs, Accel, Environment, GuestFile, Kernel};

/// Time a guest may take until it is ready. Emulated, on a busy machine.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// The fsx of crates.io below the cache, a program that suites run.
const FSX: &str = "tools/fsx-0.3.2/bin/fsx";

/// What to boot.
pub struct Boot<'a> {
    pub env: &'a Environment,
    pub kernel: &'a Kernel,
    pub machine: Machine,
    /// Where the console goes.
    pub log: PathBuf,
    /// The guest's memory as a file that outlives the guest: booting it again finds the pmem
    /// ranges as they were left. `None`: memory of its own.
    pub memory: Option<PathBuf>,
    /// Cached archives (of [`crate::packages`]) that go over the usual ones.
    pub layers: Vec<PathBuf>,
    /// Files for the guest besides the guest program and the module.
    pub files: Vec<GuestFile>,
    /// Further arguments for QEMU (plugins).
    pub qemu_args: Vec<String>,
    /// `-icount shift=N,sleep=off`: guest time counts instructions.
    pub icount: Option<u32>,
    /// What the guest does on its own instead of waiting for requests; then it powers off.
    /// For runs that must be the same to the instruction each time.
    pub plan: Vec<Request>,
    /// The console is the terminal, for a shell.
    pub interactive: bool,
    /// All kernel messages on the console.
    pub verbose: bool,
}

impl<'a> Boot<'a> {
    pub fn new(env: &'a Environment, kernel: &'a Kernel, machine: Machine) -> Self {
        Boot {
            env,
            kernel,
            machine,
            log: env.log("console"),
            memory: None,
            layers: Vec::new(),
            files: Vec::new(),
            qemu_args: Vec::new(),
            icount: None,
            plan: Vec::new(),
            interactive: false,
            verbose: false,
        }
    }

    /// Emulation even where KVM works: plugins and instruction counts need it.
    fn accel(&self) -> Accel {
        if self.icount.is_some() || self.qemu_args.iter().any(|a| a == "-plugin") {
            Accel::Tcg
        } else {
            self.env.accel
        }
    }

    fn kernel_parameters(&self) -> String {
        let mut all: Vec<String> = proto::BASE_PARAMETERS
            .iter()
            .map(|p| p.to_string())
            .collect();
        all.extend(self.machine.ranges.iter().map(|r| r.parameter()));
        if self.verbose {
            all.push("loglevel=8".into());
        }
        all.extend(self.machine.append.iter().cloned());
        all.join(" ")
    }

    fn qemu(&self, initrd: &Path, socket: &Path) -> Result<Command> {
        let m = &self.machine;
        let size = m.memory_size();
        let backend = match &self.memory {
            Some(path) => {
                let file = File::options()
                    .create(true)
                    .truncate(false)
                    .write(true)
                    .open(path)
                    .with_context(|| path.display().to_string())?;
                file.set_len(size)?;
                format!(
                    "memory-backend-file,id=ram,size={size},mem-path={},share=on",
                    path.display()
                )
            }
            None => format!("memory-backend-ram,id=ram,size={size},reserve=off"),
        };
        let mut cmd = Command::new("qemu-system-x86_64");
        cmd.args(["-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-display", "none", "-monitor", "none"])
            .arg("-machine")
            .arg(format!(
                "pc,memory-backend=ram,max-ram-below-4g={}M",
                m.ram_mib
            ))
            .args(["-object", &backend])
            .args(["-m", &format!("{}M", size / proto::MIB)])
            .args(["-smp", &m.smp.to_string()])
            .args(["-cpu", &m.cpu])
            .arg("-kernel")
            .arg(self.kernel.dir.join("vmlinuz"))
            .arg("-initrd")
            .arg(initrd)
            .args(["-append", &self.kernel_parameters()])
            .arg("-chardev")
            .arg(if self.interactive {
                "stdio,id=console,signal=off"
            } else {
                "stdio,id=console"
            })
            .args(["-serial", "chardev:console"])
            .arg("-chardev")
            .arg(format!("socket,id=channel,path={}", socket.display()))
            .args(["-serial", "chardev:channel"]);
        match (self.accel(), self.icount) {
            (Accel::Kvm, _) => cmd.args(["-accel", "kvm"]),
            (Accel::Tcg, None) => cmd.args(["-accel", "tcg"]),
            (Accel::Tcg, Some(shift)) => cmd
                .args(["-accel", "tcg,thread=single"])
                .args(["-icount", &format!("shift={shift},sleep=off")]),
        };
        cmd.args(&self.qemu_args);
        if self.interactive {
            cmd.stdin(Stdio::inherit()).stdout(Stdio::inherit());
        } else {
            cmd.stdin(Stdio::null()).stdout(Stdio::piped());
        }
        cmd.stderr(Stdio::piped());
        // SAFETY: prctl is async-signal-safe. A guest must not outlive the runner.
        unsafe {
            cmd.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            })
        };
        Ok(cmd)
    }

    fn guest_files(&self) -> Vec<GuestFile> {
        let mut files = vec![GuestFile::program("/init", &self.env.guest)];
        if self.kernel.module.exists() {
            files.push(GuestFile::program("/rust_pmem.ko", &self.kernel.module));
        }
        if !self.plan.is_empty() {
            let plan = serde_json::to_vec(&self.plan).expect("requests are plain data");
            files.push(GuestFile::text("/plan.json", plan));
        }
        // scripts/runner.sh installs it for `test` and `stress`.
        let fsx = self.env.cache.join(FSX);
        if fsx.exists() {
            files.push(GuestFile::program("/usr/bin/fsx", fsx));
        }
        files.extend(self.files.iter().cloned());
        files
    }
}

/// Why a guest no longer answers.
#[derive(Debug)]
pub struct Death {
    pub reason: String,
    /// Kernel trouble seen on the console, oldest first.
    pub trouble: Vec<String>,
    /// The last lines of the console.
    pub tail: Vec<String>,
}

impl std::fmt::Display for Death {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.reason)?;
        match self.trouble.first() {
            Some(line) => write!(f, ": {line}"),
            None => self
                .tail
                .iter()
                .rev()
                .find(|l| !l.trim().is_empty())
                .map_or(Ok(()), |l| write!(f, "; last console line: {l}")),
        }
    }
}

impl std::error::Error for Death {}

/// The guest's answer to a request.
#[derive(Debug)]
pub struct Answer {
    pub outcome: Outcome,
    pub seconds: f64,
    pub log: String,
    pub clean: bool,
}

#[derive(Default)]
struct Console {
    trouble: Vec<String>,
    tail: std::collections::VecDeque<String>,
}

/// A running guest. Dropping it kills QEMU.
pub struct Vm {
    child: Child,
    requests: Option<UnixStream>,
    events: Receiver<Event>,
    console: Arc<Mutex<Console>>,
    readers: Vec<JoinHandle<()>>,
    /// Seconds from the start of QEMU until the guest was ready.
    pub boot_seconds: f64,
    /// Initramfs and socket.
    _scratch: tempfile::TempDir,
}

impl Vm {
    /// Starts a guest and waits until it is ready. With a plan or an interactive console it
    /// returns at once.
    pub fn boot(boot: Boot<'_>) -> Result<Vm> {
        let mut layers = initramfs::layers(&boot.env.cache, boot.kernel)?;
        layers.extend(boot.layers.iter().cloned());
        let scratch = scratch_dir()?;
        let initrd = scratch.path().join("initrd");
        initramfs::write(&initrd, &layers, &boot.guest_files())?;
        let socket = scratch.path().join("channel");
        let listener = UnixListener::bind(&socket)?;
        listener.set_nonblocking(true)?;

        let started = Instant::now();
        let mut child = boot
            .qemu(&initrd, &socket)?
            .spawn()
            .context("cannot start qemu-system-x86_64")?;

        let console = Arc::new(Mutex::new(Console::default()));
        let mut readers = Vec::new();
        if let Some(out) = child.stdout.take() {
            let log = File::create(&boot.log).with_context(|| boot.log.display().to_string())?;
            readers.push(watch_console(out, log, console.clone()));
        }
        // QEMU's own complaints count as console lines: they say why it did not start.
        if let Some(err) = child.stderr.take() {
            let log = File::options().create(true).append(true).open(&boot.log)?;
            readers.push(watch_console(err, log, console.clone()));
        }

        let (sender, events) = channel();
        let mut vm = Vm {
            child,
            requests: None,
            events,
            console,
            readers,
            boot_seconds: 0.0,
            _scratch: scratch,
        };
        // QEMU connects as it starts.
        let stream = loop {
            match listener.accept() {
                Ok((stream, _)) => break stream,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) => return Err(e.into()),
            }
            if vm.child.try_wait()?.is_some() || started.elapsed() > BOOT_LIMIT {
                return Err(vm.death("QEMU did not start".into()).into());
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        stream.set_nonblocking(false)?;
        let lines = BufReader::new(stream.try_clone()?);
        vm.readers.push(std::thread::spawn(move || {
            for line in lines.lines() {
                let Ok(line) = line else { break };
                match serde_json::from_str(line.trim()) {
                    Ok(event) => {
                        if sender.send(event).is_err() {
                            break;
                        }
                    }
                    Err(e) if !line.trim().is_empty() => {
                        eprintln!("runner: the guest said what is no event: {line:?} ({e})");
                    }
                    Err(_) => {}
                }
            }
        }));
        vm.requests = Some(stream);
        if boot.plan.is_empty() && !boot.interactive {
            match vm.next_event(BOOT_LIMIT) {
                Ok(Event::Ready { .. }) => {}
                Ok(other) => {
                    return Err(vm
                        .death(format!("instead of being ready it said {other:?}"))
                        .into())
                }
                Err(death) => return Err(death.into()),
            }
        }
        vm.boot_seconds = started.elapsed().as_secs_f64();
        Ok(vm)
    }

    /// Sends a request without waiting.
    pub fn send(&mut self, request: &Request) -> Result<()> {
        let mut line = serde_json::to_string(request)?;
        line.push('\n');
        let stream = self.requests.as_mut().context("no channel")?;
        stream.write_all(line.as_bytes())?;
        Ok(())
    }

    /// The next thing the guest says, within `limit`.
    pub fn next_event(&mut self, limit: Duration) -> Result<Event, Death> {
        match self.events.recv_timeout(limit) {
            Ok(event) => Ok(event),
            Err(RecvTimeoutError::Timeout) => {
                Err(self.death(format!("no answer within {} s", limit.as_secs())))
            }
            Err(RecvTimeoutError::Disconnected) => Err(self.death("the guest died".into())),
        }
    }

    /// Sends a request and waits for its answer; other events go to `on_event`. A guest that
    /// dies or does not answer within `limit` is killed.
    pub fn request(
        &mut self,
        request: &Request,
        limit: Duration,
        on_event: &mut dyn FnMut(Event),
    ) -> Result<Answer, Death> {
        if let Err(e) = self.send(request) {
            return Err(self.death(format!("cannot reach the guest ({e})")));
        }
        let end = Instant::now() + limit;
        loop {
            match self.next_event(end.saturating_duration_since(Instant::now()))? {
                Event::Done {
                    outcome,
                    seconds,
                    log,
                    clean,
                } => {
                    return Ok(Answer {
                        outcome,
                        seconds,
                        log,
                        clean,
                    })
                }
                event => on_event(event),
            }
        }
    }

    /// Kernel trouble seen on the console so far.
    pub fn trouble(&self) -> Vec<String> {
        self.console.lock().unwrap().trouble.clone()
    }

    /// Asks the guest to power off and waits for it. Returns kernel trouble seen on the console.
    pub fn poweroff(mut self) -> Result<Vec<String>> {
        self.send(&Request::Poweroff)?;
        self.wait(Duration::from_secs(30))
    }

    /// Waits until the guest has powered off by itself.
    pub fn wait(mut self, limit: Duration) -> Result<Vec<String>> {
        let end = Instant::now() + limit;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > end {
                return Err(self
                    .death(format!("still running after {} s", limit.as_secs()))
                    .into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.finish();
        Ok(self.trouble())
    }

    /// Ends QEMU at once, as a power failure would.
    pub fn kill(mut self) {
        self.finish();
    }

    fn finish(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.requests = None;
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
    }

    fn death(&mut self, reason: String) -> Death {
        // A guest that is about to die says more for a moment.
        let end = Instant::now() + Duration::from_millis(500);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.finish();
        let console = self.console.lock().unwrap();
        Death {
            reason,
            trouble: console.trouble.clone(),
            tail: console.tail.iter().cloned().collect(),
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Memory-backed where there is room: initramfs and guest memory are read and written once.
///
/// The name has the runner's pid. What a killed runner left is removed by the next one.
pub fn scratch_dir() -> Result<tempfile::TempDir> {
    let shm = Path::new("/dev/shm");
    remove_scratch(|pid| !Path::new(&format!("/proc/{pid}")).exists());
    let roomy = nix::sys::statvfs::statvfs(shm)
        .map(|s| s.blocks_available() * s.fragment_size() > 4 * proto::GIB)
        .unwrap_or(false);
    let prefix = format!("{SCRATCH}{}-", std::process::id());
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix);
    let dir = if roomy {
        builder.tempdir_in(shm)
    } else {
        builder.tempdir()
    };
    dir.context("cannot make a temporary directory")
}

/// How names of scratch directories begin; the pid of their runner follows.
const SCRATCH: &str = "rpmem-";

/// Removes the scratch directories of those runners that `whose` picks by pid.
pub fn remove_scratch(whose: impl Fn(u32) -> bool) {
    for parent in [PathBuf::from("/dev/shm"), std::env::temp_dir()] {
        for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let pid = name
                .strip_prefix(SCRATCH)
                .and_then(|rest| rest.split_once('-'))
                .and_then(|(pid, _)| pid.parse().ok());
            if pid.is_some_and(&whose) {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
    }
}

fn watch_console(
    from: impl Read + Send + 'static,
    mut log: File,
    console: Arc<Mutex<Console>>,
) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        while matches!(from.read_until(b'\n', &mut line), Ok(n) if n > 0) {
            let _ = log.write_all(&line);
            let text = String::from_utf8_lossy(&line).trim_end().to_string();
            line.clear();
            let mut console = console.lock().unwrap();
            if proto::is_trouble(proto::strip_stamp(&text)) {
                console.trouble.push(text.clone());
            }
            if console.tail.len() == 40 {
                console.tail.pop_front();
            }
            console.tail.push_back(text);
        }
    })
}
