// SPDX-License-Identifier: GPL-2.0

//! PID 1: prepares the system, runs what the runner asks for, cleans up after each, powers off.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::mount::{mount, umount2, MntFlags, MsFlags};
use nix::sys::reboot::{reboot, RebootMode};
use nix::sys::signal::{kill, Signal};
use nix::sys::termios::{cfmakeraw, tcgetattr, tcsetattr, SetArg};
use nix::sys::wait::{waitpid, WaitPidFlag, WaitStatus};
use nix::unistd::Pid;
use proto::{Event, Outcome, Request};

use crate::fixture::driver::{Driver, MODULE, UNLOAD_C};
use crate::fixture::kmsg::KernelLog;
use crate::test::{say, Ctx, CHANNEL, OUTCOME};

/// Output of the process under way.
const OUTPUT: &str = "/run/output";
/// Longest log that goes over the channel, from the end: the channel is a serial line.
const LOG_LIMIT: usize = 48 << 10;

pub fn main() -> ! {
    if let Err(e) = serve() {
        eprintln!("init: {e:?}");
    }
    // SAFETY: no arguments, no memory.
    unsafe { libc::sync() };
    let _ = reboot(RebootMode::RB_POWER_OFF);
    // Without ACPI there is no power off; a restart ends QEMU as well (-no-reboot).
    let _ = reboot(RebootMode::RB_AUTOBOOT);
    unreachable!("PID 1 cannot go on after reboot(2)");
}

fn serve() -> Result<()> {
    prepare()?;
    let mut kmsg = KernelLog::open()?;
    if let Ok(plan) = fs::read("/plan.json") {
        for request in serde_json::from_slice::<Vec<Request>>(&plan)? {
            if !handle(request, &mut kmsg) {
                break;
            }
        }
        return Ok(());
    }
    let channel = File::open(CHANNEL).context(CHANNEL)?;
    let mut mode = tcgetattr(&channel)?;
    cfmakeraw(&mut mode);
    tcsetattr(&channel, SetArg::TCSANOW, &mode)?;
    let uptime = fs::read_to_string("/proc/uptime")?;
    say(&Event::Ready {
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?
            .trim()
            .into(),
        uptime_s: uptime.split(' ').next().unwrap_or("0").parse()?,
    });
    for line in BufReader::new(channel).lines() {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        if !handle(serde_json::from_str(&line).context(line)?, &mut kmsg) {
            break;
        }
    }
    Ok(())
}

fn prepare() -> Result<()> {
    let fs = |what: &str, on: &str, data: Option<&str>| {
        fs::create_dir_all(on)?;
        mount(Some(what), on, Some(what), MsFlags::empty(), data)
            .with_context(|| format!("mount {what} on {on}"))
    };
    fs("devtmpfs", "/dev", None)?;
    fs("proc", "/proc", None)?;
    fs("sysfs", "/sys", None)?;
    fs("tmpfs", "/run", None)?;
    fs("tmpfs", "/tmp", None)?;
    fs("tmpfs", "/dev/shm", None)?;
    fs("devpts", "/dev/pts", None)?;
    fs("debugfs", "/sys/kernel/debug", None)?;
    fs("tracefs", "/sys/kernel/tracing", None)?;
    for (link, to) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        let _ = std::os::unix::fs::symlink(to, link);
    }
    // Programs inherit these. There is no udevd for device mapper to wait for.
    std::env::set_var("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    std::env::set_var("HOME", "/root");
    std::env::set_var("LC_ALL", "C");
    std::env::set_var("DM_DISABLE_UDEV", "1");
    std::env::set_var("RUST_BACKTRACE", "1");
    std::env::set_current_dir("/root")?;
    nix::unistd::sethostname("guest")?;
    let _ = Command::new("/sbin/ip")
        .args(["link", "set", "lo", "up"])
        .status();
    // Only a line with a test's name on the console tells which one was running when it died;
    // user space may write more than the rate limit allows.
    let _ = fs::write("/proc/sys/kernel/printk_devkmsg", "on");
    // khugepaged holds the file of a mapping (without DAX) that it looks at, at nice 19 on a busy
    // CPU: whoever unmounts after the mapping has gone finds the mount busy. It is left the
    // anonymous memory.
    for (file, value) in [
        ("hugepages-2048kB/enabled", "always"),
        ("enabled", "madvise"),
    ] {
        let path = Path::new("/sys/kernel/mm/transparent_hugepage").join(file);
        if path.exists() {
            fs::write(&path, value).with_context(|| path.display().to_string())?;
        }
    }
    // Nor, at nice 19, does it get out of an RCU read-side section for as long as somebody computes on
    // the only CPU: a stall (seen after 21 s of generic/067).
    for pid in pids_of("khugepaged") {
        // SAFETY: Plain numbers.
        let n = unsafe { libc::setpriority(libc::PRIO_PROCESS, pid, 0) };
        nix::errno::Errno::result(n).context("setpriority(khugepaged)")?;
    }
    Ok(())
}

/// Processes and kernel threads of this name.
fn pids_of(name: &str) -> Vec<u32> {
    let Ok(all) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    all.flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name)
        })
        .collect()
}

/// Does what is asked. False: it was the last request.
fn handle(request: Request, kmsg: &mut KernelLog) -> bool {
    match &request {
        Request::Poweroff => return false,
        Request::Shell { on, params } => {
            if let Err(e) = shell(*on, params) {
                eprintln!("shell: {e:?}");
            }
            return false;
        }
        Request::Test { name, limit_s, .. } | Request::Job { name, limit_s, .. } => {
            kmsg.write(4, &format!("rpmem-test: begin {name}"));
            let done = supervise(&request, Duration::from_secs(*limit_s), kmsg);
            kmsg.write(4, &format!("rpmem-test: end {name}"));
            kmsg.drain();
            say(&done);
        }
    }
    true
}

/// Runs a test or job in a process of its own and cleans up after it.
fn supervise(request: &Request, limit: Duration, kmsg: &mut KernelLog) -> Event {
    kmsg.drain();
    let started = Instant::now();
    let mut log = String::new();
    let mut outcome = run(request, limit, &mut log)
        .unwrap_or_else(|e| Outcome::Failed(format!("the guest could not run it: {e:#}")));
    let seconds = started.elapsed().as_secs_f64();
    let left = clean_up();

    let messages = kmsg.drain();
    log.push_str("--- kernel log ---\n");
    let mut trouble = None;
    for m in &messages {
        if proto::is_trouble(&m.text) {
            trouble.get_or_insert_with(|| m.text.clone());
        }
        log.push_str(&format!("<{}>[{:12.6}] {}\n", m.level, m.seconds, m.text));
    }
    let taint = fs::read_to_string("/proc/sys/kernel/tainted").unwrap_or_default();
    let taint = taint.trim().parse::<u64>().unwrap_or(0) & !proto::EXPECTED_TAINT;
    let tainted = || format!("{} ({taint:#x})", proto::TAINTED);
    let problem = match (trouble, taint) {
        (Some(line), 0) => Some(format!("kernel: {line}")),
        (Some(line), _) => Some(format!("kernel: {line}; {}", tainted())),
        (None, 0) => left.first().map(|l| format!("left behind: {l}")),
        (None, _) => Some(tainted()),
    };
    let clean = problem.is_none();
    if let Some(problem) = problem {
        for line in &left {
            log.push_str(&format!("left behind: {line}\n"));
        }
        outcome = match outcome {
            Outcome::Failed(reason) => Outcome::Failed(format!("{reason}; {problem}")),
            _ => Outcome::Failed(problem),
        };
    }
    if log.len() > LOG_LIMIT {
        let mut cut = log.len() - LOG_LIMIT;
        while !log.is_char_boundary(cut) {
            cut += 1;
        }
        log = format!("[… {cut} bytes left out]\n{}", &log[cut..]);
    }
    Event::Done {
        outcome,
        seconds,
        log,
        clean,
    }
}

fn run(request: &Request, limit: Duration, log: &mut String) -> Result<Outcome> {
    let _ = fs::remove_file(OUTCOME);
    let output = File::create(OUTPUT)?;
    let child = Command::new("/init")
        .arg("exec")
        .arg(serde_json::to_string(request)?)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .process_group(0)
        .spawn()?;
    let pid = Pid::from_raw(child.id() as i32);
    let status = wait_for(pid, limit);
    let mut stacks = String::new();
    if status.is_none() {
        stacks = all_stacks();
        let _ = kill(Pid::from_raw(-pid.as_raw()), Signal::SIGKILL);
        wait_for(pid, Duration::from_secs(10));
    }
    let mut text = Vec::new();
    File::open(OUTPUT)?.read_to_end(&mut text)?;
    log.push_str(&String::from_utf8_lossy(&text));
    log.push_str(&stacks);
    let said = fs::read(OUTCOME)
        .ok()
        .and_then(|json| serde_json::from_slice(&json).ok());
    Ok(match (status, said) {
        (None, _) => Outcome::Failed(format!("no end within {} s", limit.as_secs())),
        (Some(WaitStatus::Exited(_, 0)), Some(outcome)) => outcome,
        (Some(status), _) => Outcome::Failed(format!("its process ended with {status:?}")),
    })
}

/// Waits for a child, reaping every other process that ends meanwhile. `None`: not in time.
fn wait_for(pid: Pid, limit: Duration) -> Option<WaitStatus> {
    let end = Instant::now() + limit;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(nix::Error::EINTR) => {
                if Instant::now() > end {
                    return None;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(status) if status.pid() == Some(pid) => return Some(status),
            Ok(_) => {}
            Err(_) => return None,
        }
    }
}

/// Kernel stacks of all processes of user space: where a test that does not end is.
pub fn all_stacks() -> String {
    let mut text = String::from("--- stacks ---\n");
    let Ok(processes) = fs::read_dir("/proc") else {
        return text;
    };
    for process in processes.flatten() {
        let path = process.path();
        // Kernel threads have this flag. The command line would say more, but reading it waits for
        // the process's mmap_lock, which may be what hangs.
        const PF_KTHREAD: u64 = 0x0020_0000;
        let stat = fs::read_to_string(path.join("stat")).unwrap_or_default();
        let flags = stat
            .rsplit(')')
            .next()
            .and_then(|s| s.split_whitespace().nth(6));
        match flags.and_then(|f| f.parse::<u64>().ok()) {
            Some(flags) if flags & PF_KTHREAD == 0 => {
                let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
                text.push_str(&format!("{}: {}\n", path.display(), name.trim()));
            }
            _ => continue,
        }
        for task in fs::read_dir(path.join("task"))
            .into_iter()
            .flatten()
            .flatten()
        {
            text.push_str(&fs::read_to_string(task.path().join("stack")).unwrap_or_default());
            text.push('\n');
        }
    }
    text
}

/// Ends every process and undoes what a test may have left. Returns what could not be undone.
fn clean_up() -> Vec<String> {
    let mut left = Vec::new();
    // From PID 1 this is everybody else.
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    let end = Instant::now() + Duration::from_secs(10);
    while !matches!(
        waitpid(None, Some(WaitPidFlag::WNOHANG)),
        Err(nix::Error::ECHILD)
    ) {
        if Instant::now() > end {
            left.push("a process that cannot be killed".into());
            break;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let mounts = |prefix: &str| -> Vec<String> {
        fs::read_to_string("/proc/self/mounts")
            .unwrap_or_default()
            .lines()
            .filter_map(|l| l.split(' ').nth(1))
            .filter(|d| d.starts_with(prefix))
            .map(String::from)
            .collect()
    };
    for dir in mounts("/mnt").iter().rev() {
        if let Err(e) = umount2(dir.as_str(), MntFlags::empty()) {
            left.push(format!("{dir} is mounted ({e})"));
        }
    }
    let modules = fs::read_to_string("/proc/modules").unwrap_or_default();
    let loaded: HashSet<_> = modules
        .lines()
        .filter_map(|l| l.split(' ').next())
        .collect();
    let quietly = |program: &str, args: &[&str]| {
        let _ = Command::new(program)
            .args(args)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    };
    if loaded.contains("dm_mod") {
        quietly("dmsetup", &["remove_all", "--force"]);
    }
    if loaded.contains("md_mod") {
        quietly("mdadm", &["--stop", "--scan"]);
    }
    if loaded.contains("loop") {
        quietly("losetup", &["-D"]);
    }
    if loaded.contains("nd_e820") {
        quietly("/bin/sh", &["-c", UNLOAD_C]);
    }
    for name in [MODULE, "nd_e820", "brd", "null_blk"] {
        if loaded.contains(name) {
            if name != "nd_e820" {
                quietly("rmmod", &[name]);
            }
            if fs::metadata(format!("/sys/module/{name}")).is_ok() {
                left.push(format!("{name} is loaded and cannot be unloaded"));
            }
        }
    }
    for dir in ["/tmp", "/mnt"] {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let _ = fs::remove_dir_all(entry.path()).or_else(|_| fs::remove_file(entry.path()));
        }
    }
    left
}

/// A shell on the console, with a module loaded.
fn shell(on: proto::On, params: &[String]) -> Result<()> {
    let params: Vec<_> = params.iter().map(String::as_str).collect();
    let driver = Driver::load(
        &Ctx {
            on,
            fs_dax_off: false,
            stress: false,
        },
        &params,
    );
    match &driver {
        Ok(driver) => {
            for disk in driver.disks() {
                println!(
                    "{}: {} MiB at {:#x}",
                    disk.path,
                    disk.size >> 20,
                    disk.start
                );
            }
        }
        Err(e) => println!("the module could not be loaded: {e:#}"),
    }
    println!("exit or Ctrl-D powers the guest off");
    let tty = File::options().read(true).write(true).open("/dev/ttyS0")?;
    let mut command = Command::new("/bin/bash");
    command
        .arg("-i")
        .env("PS1", "guest:\\w\\$ ")
        .env("TERM", "vt220")
        .stdin(tty.try_clone()?)
        .stdout(tty.try_clone()?)
        .stderr(tty.try_clone()?);
    // SAFETY: setsid and ioctl are async-signal-safe. Job control wants a controlling terminal.
    unsafe {
        command.pre_exec(move || {
            libc::setsid();
            libc::ioctl(tty.as_raw_fd(), libc::TIOCSCTTY, 0);
            Ok(())
        });
    }
    let shell = command.spawn()?;
    wait_for(
        Pid::from_raw(shell.id() as i32),
        Duration::from_secs(1 << 30),
    );
    drop(driver);
    Ok(())
}
