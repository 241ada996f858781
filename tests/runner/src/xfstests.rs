// SPDX-License-Identifier: GPL-2.0

//! `make xfstests`: tests of a built xfstests tree in a guest, on our devices or on nd_pmem.
//!
//! The tree and a small Debian system go into the guest's initramfs ([`runner::packages`]);
//! the guest's job runs the tree's `check` once for the whole list and reports each test as it
//! starts and ends. When a guest dies or a test takes too long, that is the test's result, and
//! the rest of the list goes on in a fresh guest.

mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use clap::Args;
use proto::xfstests::{Progress, Verdict};
use proto::{Event, Machine, On, Outcome, Request};
use runner::{Boot, Environment, GuestFile, Vm};

use table::{Key, Results, Row};

const CONFIG: &str = "xfstests-config";

#[derive(Args)]
pub struct Xfstests {
    /// A built xfstests tree
    #[arg(long, env = "XFSTESTS_DIR")]
    dir: PathBuf,
    /// Sections of xfstests-config/config, separated by commas or blanks; all if not given
    #[arg(long, default_value = "")]
    section: String,
    /// Tests (generic/080, ext4/03*), groups (mmap, ext4/quick) and lists (of
    /// xfstests-config/lists), separated by commas or blanks
    #[arg(long, default_value = "dax")]
    tests: String,
    /// Leave out tests that have a result already
    #[arg(long)]
    resume: bool,
    /// Stop after this many minutes; --resume goes on with the test that was under way
    #[arg(long)]
    minutes: Option<u64>,
    /// Longest time for one test, in seconds
    #[arg(long, default_value_t = 900)]
    test_limit: u64,
    /// Keep the results that the table shows as the expected ones
    #[arg(long)]
    accept: bool,
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split([',', ' ', '\n']).filter(|w| !w.is_empty())
}

/// Lines of one of our lists, without comments.
fn list(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .map(|l| l.split('#').next().unwrap_or_default().trim())
        .filter(|l| !l.is_empty())
}

/// The sections of our configuration, each with its file system, in order.
fn sections(config: &str) -> Vec<(&str, &str)> {
    let mut found: Vec<(&str, &str)> = Vec::new();
    for line in config.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            found.push((name, ""));
        } else if let (Some(fs), Some(last)) = (line.strip_prefix("FSTYP="), found.last_mut()) {
            last.1 = fs;
        }
    }
    found
}

/// One section of our configuration.
fn section_text(config: &str, section: &str) -> String {
    let head = format!("[{section}]");
    let lines = config.lines().skip_while(|l| **l != head).enumerate();
    let lines = lines.take_while(|(i, l)| *i == 0 || !l.starts_with('['));
    lines.flat_map(|(_, l)| [l, "\n"]).collect()
}

/// The tests of a tree, with their groups.
struct Tree(Vec<(String, BTreeSet<String>)>);

impl Tree {
    /// Tests for `fs` and those for every file system.
    fn read(dir: &Path, fs: &str) -> Result<Tree> {
        let mut tests = Vec::new();
        for kind in ["generic", fs] {
            let path = dir.join("tests").join(kind).join("group.list");
            let text = std::fs::read_to_string(&path)
                .with_context(|| format!("{} (is the tree built?)", path.display()))?;
            for line in list(&text) {
                let mut words = line.split_whitespace();
                if let Some(number) = words.next() {
                    let groups = words.map(|g| g.to_string()).collect();
                    tests.push((format!("{kind}/{number}"), groups));
                }
            }
        }
        Ok(Tree(tests))
    }

    /// "generic" or the tree's file system.
    fn has_kind(&self, kind: &str) -> bool {
        let mut kinds = self.0.iter().map(|(name, _)| name.split_once('/'));
        kinds.any(|name| name.is_some_and(|(k, _)| k == kind))
    }

    /// The tests that a word of TESTS means. A list has such words too, and so other lists;
    /// it names tests of every file system.
    fn select(&self, word: &str) -> Vec<&str> {
        if let Ok(text) = fs::read_to_string(Path::new(CONFIG).join("lists").join(word)) {
            return list(&text).flat_map(|w| self.select(w)).collect();
        }
        let matches = |name: &str, groups: &BTreeSet<String>| {
            let Some((kind, rest)) = word.split_once('/') else {
                return groups.contains(word);
            };
            name.split_once('/').is_some_and(|(k, number)| {
                let begin = rest.strip_suffix('*');
                k == kind
                    && (number == rest
                        || groups.contains(rest)
                        || begin.is_some_and(|b| number.starts_with(b)))
            })
        };
        let found = self.0.iter().filter(|(name, groups)| matches(name, groups));
        found.map(|(name, _)| name.as_str()).collect()
    }

    /// The tests that all of TESTS means, each once, in order, but those of `slow` last.
    fn choose(&self, tests: &str, slow: &BTreeSet<&str>) -> Vec<&str> {
        let mut seen = BTreeSet::new();
        let mut chosen: Vec<_> = words(tests).flat_map(|word| self.select(word)).collect();
        chosen.retain(|test| seen.insert(*test));
        chosen.sort_by_key(|test| slow.contains(test));
        chosen
    }
}

/// What a word of TESTS, or of the lists that it means, says that none of the trees has. A test
/// of a list may be one of a file system that is not chosen.
fn meaningless(word: &str, trees: &[&Tree]) -> Option<String> {
    if let Ok(text) = fs::read_to_string(Path::new(CONFIG).join("lists").join(word)) {
        let of_chosen = |word: &&str| {
            word.split_once('/')
                .is_none_or(|(kind, _)| trees.iter().any(|tree| tree.has_kind(kind)))
        };
        return list(&text)
            .filter(of_chosen)
            .find_map(|w| meaningless(w, trees));
    }
    let means = trees.iter().any(|tree| !tree.select(word).is_empty());
    (!means).then(|| word.to_string())
}

/// TEST and REASON of our list of tests that are not run (TEST SECTION,… REASON).
fn excluded<'a>(text: &'a str, section: &str) -> Result<BTreeMap<&'a str, &'a str>> {
    let mut excluded = BTreeMap::new();
    for line in list(text) {
        let parse = || {
            let (test, rest) = line.split_once(' ')?;
            let (which, reason) = rest.trim().split_once(' ')?;
            Some((test, which, reason))
        };
        let (test, which, reason) =
            parse().with_context(|| format!("{CONFIG}/exclude: no reason in '{line}'"))?;
        if which == "*" || which.split(',').any(|s| s == section) {
            excluded.insert(test, reason);
        }
    }
    Ok(excluded)
}

/// A guest is stopped: what its kernel has said on the console that it should not is trouble.
fn look_at_kernel(
    last: &Key,
    trouble: &[String],
    console: &Path,
    results: &mut Results,
) -> Result<()> {
    let Some(first) = trouble.first() else {
        return Ok(());
    };
    let log = fs::read(console).unwrap_or_default();
    results.trouble(last, first, &String::from_utf8_lossy(&log))
}

/// What the guest has over the usual initramfs: the tree, and the programs it needs.
fn layer(env: &Environment, dir: &Path) -> Result<PathBuf> {
    let packages = fs::read_to_string(Path::new(CONFIG).join("packages"))?;
    let packages: Vec<_> = list(&packages).collect();
    let mut passwd = "root:x:0:0:root:/root:/bin/bash\n\
        daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n\
        bin:x:2:2:bin:/bin:/usr/sbin/nologin\n\
        nobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n"
        .to_string();
    let mut group =
        "root:x:0:\ndaemon:x:1:\nbin:x:2:\nsys:x:3:\ndisk:x:6:\nnogroup:x:65534:\n".to_string();
    let mut shadow = "root:*:19000:0:99999:7:::\n".to_string();
    // The users that the tree's README asks for.
    for (id, user) in (1000..).zip(["fsgqa", "fsgqa2", "123456-fsgqa"]) {
        passwd += &format!("{user}:x:{id}:{id}::/tmp:/bin/bash\n");
        group += &format!("{user}:x:{id}:\n");
        shadow += &format!("{user}:*:19000:0:99999:7:::\n");
    }
    // su asks PAM; root may become anybody, which is all that tests do.
    let su = "auth sufficient pam_rootok.so\n\
        account sufficient pam_permit.so\n\
        session sufficient pam_permit.so\n";
    let texts = [
        ("/etc/passwd", passwd.as_str()),
        ("/etc/group", &group),
        ("/etc/shadow", &shadow),
        ("/etc/hosts", "127.0.0.1 localhost guest\n"),
        ("/etc/pam.d/su", su),
        ("/etc/pam.d/su-l", su),
        // Debian's includes files that its maintainer scripts would make.
        ("/etc/pam.d/other", su),
    ];
    runner::packages::layer(
        &env.cache,
        "xfstests",
        &packages,
        &[("/xfstests", dir)],
        &texts,
    )
}

/// Two ranges, TEST_DEV and SCRATCH_DEV.
fn machine() -> Machine {
    Machine::bare().ram(2048).pmem(1536).pmem(1536)
}

pub fn run(env: &Environment, args: &Xfstests, on: On, verbose: bool) -> Result<bool> {
    let shard = args.minutes.map(|m| Shard {
        end: Instant::now() + Duration::from_secs(60 * m),
        tests: 0,
    });
    let dir = &args.dir;
    ensure!(
        dir.join("check").is_file() && dir.join("ltp/fsstress").is_file(),
        "{} is no built xfstests tree (its README says how to build it)",
        dir.display()
    );
    let config = fs::read_to_string(Path::new(CONFIG).join("config"))?;
    let exclude = fs::read_to_string(Path::new(CONFIG).join("exclude"))?;
    let slow = fs::read_to_string(Path::new(CONFIG).join("slow"))?;
    let slow = list(&slow).collect();
    let known = sections(&config);
    let mut chosen: Vec<_> = words(&args.section).collect();
    if chosen.is_empty() {
        chosen = known.iter().map(|s| s.0).collect();
    }
    let mut sections = Vec::new();
    for section in chosen {
        let Some((_, fs)) = known.iter().find(|s| s.0 == section) else {
            let all: Vec<_> = known.iter().map(|s| s.0).collect();
            bail!("no section '{section}'; there are {}", all.join(", "));
        };
        sections.push((section, Tree::read(dir, fs)?));
    }
    let trees: Vec<_> = sections.iter().map(|(_, tree)| tree).collect();
    for word in words(&args.tests) {
        if let Some(nothing) = meaningless(word, &trees) {
            bail!("TESTS '{word}': '{nothing}' is no test, group or list here");
        }
    }
    let mut results = Results::open(&env.results, &Path::new(CONFIG).join("expected.tsv"))?;
    let kernel = env.default_kernel().name.clone();
    let mut work = Vec::new();
    for (section, tree) in &sections {
        let excluded = excluded(&exclude, section)?;
        let mut tests: Vec<String> = Vec::new();
        for test in tree.choose(&args.tests, &slow) {
            let key = Key::new(section, test, on, &kernel);
            if let Some(reason) = excluded.get(test) {
                results.exclude(key, reason)?;
                continue;
            }
            if !(args.resume && results.has(&key)) {
                tests.push(test.into());
            }
            results.choose(key);
        }
        work.push((section.to_string(), tests));
    }
    ensure!(results.chosen() > 0, "no test is given");
    let total: usize = work.iter().map(|(_, tests)| tests.len()).sum();
    results.expect(total);
    let whose = match on {
        On::Rust => "rust_pmem",
        On::C => "the kernel's nd_pmem",
    };
    results.say(format!(
        "{total} tests on {whose}, kernel {kernel}, {}",
        env.accel
    ));
    let mut run = Run {
        env,
        args,
        on,
        verbose,
        layer: layer(env, dir)?,
        config,
        shard,
        guests: 0,
    };
    for (section, tests) in work {
        if !run.section(&section, tests, &mut results)? {
            results.say("time is up; RESUME=1 goes on");
            break;
        }
    }
    if args.accept {
        results.accept()?;
    }
    results.finish(on)
}

/// A run that stops after some minutes.
struct Shard {
    end: Instant,
    /// That were started.
    tests: usize,
}

impl Shard {
    /// Every test that is started has this long at least: the first ones would not end else.
    const LEAST: Duration = Duration::from_secs(60);

    fn is_over(&self) -> bool {
        Instant::now() >= self.end
    }

    /// How long a test that started at `started` may still take.
    fn left(&self, started: Instant) -> Duration {
        let end = self.end.max(started + Self::LEAST);
        end.saturating_duration_since(Instant::now())
    }
}

struct Run<'a> {
    env: &'a Environment,
    args: &'a Xfstests,
    on: On,
    verbose: bool,
    layer: PathBuf,
    config: String,
    shard: Option<Shard>,
    guests: usize,
}

impl Run<'_> {
    /// Runs the tests of a section in as many guests as it takes. False: the time is up.
    fn section(
        &mut self,
        section: &str,
        mut tests: Vec<String>,
        results: &mut Results,
    ) -> Result<bool> {
        let mut fruitless = 0;
        while !tests.is_empty() {
            if self.shard.as_ref().is_some_and(Shard::is_over) {
                return Ok(false);
            }
            let before = tests.len();
            if !self.guest(section, &mut tests, results)? {
                return Ok(false);
            }
            fruitless = if tests.len() == before {
                fruitless + 1
            } else {
                0
            };
            ensure!(
                fruitless < 2,
                "section {section}: no test is run; see the logs above"
            );
        }
        Ok(true)
    }

    /// One guest: takes from `tests` what it has done. False: the time is up.
    fn guest(
        &mut self,
        section: &str,
        tests: &mut Vec<String>,
        results: &mut Results,
    ) -> Result<bool> {
        self.guests += 1;
        let kernel = self.env.default_kernel();
        let mut boot = Boot::new(self.env, kernel, machine());
        let console = self.env.log(&format!("xfstests-{section}-{}", self.guests));
        boot.log = console.clone();
        boot.verbose = self.verbose;
        boot.layers = vec![self.layer.clone()];
        let config = section_text(&self.config, section);
        boot.files = vec![GuestFile::text("/xfstests.config", config)];
        // Tests look there for what the kernel can do.
        if let Ok(config) = fs::read(kernel.dir.join("tree/.config")) {
            boot.files.push(GuestFile::text(
                &format!("/boot/config-{}", kernel.name),
                config,
            ));
        }
        results.now(format!("{section}: booting"));
        let mut vm = Vm::boot(boot)?;
        let mut args = vec![section.to_string(), self.args.test_limit.to_string()];
        args.extend(tests.iter().cloned());
        vm.send(&Request::Job {
            name: "xfstests".into(),
            args,
            on: self.on,
            // The whole list; each test has its own limit.
            limit_s: 7 * 24 * 3600,
        })?;
        let mut started: Option<(String, Instant)> = None;
        let mut last = self.key(section, "boot");
        // A test that has said what the kernel does explains it, and what follows.
        let mut explained = false;
        // The guest itself reports a test that is too slow; more silence than that is a death.
        let patience = Duration::from_secs(self.args.test_limit + 120);
        let booted = Instant::now();
        loop {
            let since = started.as_ref().map_or(booted, |(_, since)| *since);
            let left = self.shard.as_ref().map_or(patience, |s| s.left(since));
            match vm.next_event(patience.min(left)) {
                Ok(Event::Data(value)) => match serde_json::from_value(value)? {
                    Progress::Started { test } => {
                        if let Some(shard) = &mut self.shard {
                            if shard.is_over() {
                                if !explained {
                                    look_at_kernel(&last, &vm.trouble(), &console, results)?;
                                }
                                vm.kill();
                                return Ok(false);
                            }
                            shard.tests += 1;
                        }
                        results.now(format!("{section}: {test}"));
                        started = Some((test, Instant::now()));
                    }
                    Progress::Ended {
                        test,
                        verdict,
                        seconds,
                        reason,
                        log,
                    } => {
                        tests.retain(|t| *t != test);
                        started.take_if(|(t, _)| *t == test);
                        let row = Row {
                            verdict,
                            seconds,
                            reason,
                        };
                        last = self.key(section, &test);
                        explained |= row.reason.contains("_check_dmesg");
                        results.add(last.clone(), row, &log)?;
                    }
                },
                Ok(Event::Done { outcome, log, .. }) => {
                    match outcome {
                        Outcome::Failed(why) if explained => {
                            results.say(format!("{section}: {why}"));
                        }
                        Outcome::Failed(why) => results.trouble(&last, &why, &log)?,
                        _ if explained => {}
                        _ => look_at_kernel(&last, &vm.trouble(), &console, results)?,
                    }
                    // However it goes down, the next list begins in a fresh one.
                    vm.kill();
                    return Ok(true);
                }
                Ok(_) => {}
                Err(death) => {
                    let cut = self.shard.as_ref().is_some_and(|s| s.left(since).is_zero());
                    let whole_shard = self.shard.as_ref().is_some_and(|s| s.tests == 1);
                    let log = fs::read(&console).unwrap_or_default();
                    if cut && !explained {
                        look_at_kernel(&last, &death.trouble, &console, results)?;
                    }
                    match started {
                        // The next shard has more time for it, unless this one was all its own.
                        Some((test, _)) if cut && !whole_shard => {
                            results.say(format!("{section}: {test} is left for the next run"));
                        }
                        Some((test, since)) => {
                            tests.retain(|t| *t != test);
                            let (verdict, reason) = if cut {
                                (Verdict::Timeout, "no end in a run of its own".into())
                            } else {
                                (Verdict::Died, death.to_string())
                            };
                            let row = Row {
                                verdict,
                                seconds: since.elapsed().as_secs_f64(),
                                reason,
                            };
                            let log = String::from_utf8_lossy(&log);
                            results.add(self.key(section, &test), row, &log)?;
                        }
                        None if cut => {}
                        None => {
                            let log = String::from_utf8_lossy(&log);
                            results.trouble(&last, &death.to_string(), &log)?;
                        }
                    }
                    return Ok(!cut);
                }
            }
        }
    }

    fn key(&self, section: &str, test: &str) -> Key {
        Key::new(section, test, self.on, &self.env.default_kernel().name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_mean_tests_groups_and_beginnings() {
        let groups = |g: &[&str]| g.iter().map(|s| s.to_string()).collect();
        let tree = Tree(vec![
            ("generic/080".into(), groups(&["auto", "mmap"])),
            ("generic/081".into(), groups(&["auto"])),
            ("ext4/001".into(), groups(&["auto", "mmap"])),
        ]);
        assert_eq!(tree.select("mmap"), ["generic/080", "ext4/001"]);
        assert_eq!(tree.select("generic/mmap"), ["generic/080"]);
        assert_eq!(tree.select("generic/08*"), ["generic/080", "generic/081"]);
        assert_eq!(tree.select("ext4/001"), ["ext4/001"]);
        assert!(tree.select("generic/999").is_empty());
        let slow = ["generic/080"].into();
        assert_eq!(
            tree.choose("mmap generic/08*", &slow),
            ["ext4/001", "generic/081", "generic/080"]
        );
    }

    #[test]
    fn words_without_a_meaning_are_told() {
        let tree = |kinds: &[&str]| {
            let test = |kind: &&str| (format!("{kind}/080"), ["auto".to_string()].into());
            Tree(kinds.iter().map(test).collect())
        };
        let (ext4, xfs) = (tree(&["generic", "ext4"]), tree(&["generic", "xfs"]));
        for word in ["generic/080", "auto", "xfs/08*"] {
            assert_eq!(meaningless(word, &[&ext4, &xfs]), None);
        }
        for word in ["generic/081", "mmpa", "xfs/081"] {
            assert_eq!(meaningless(word, &[&ext4, &xfs]).as_deref(), Some(word));
        }
        assert_eq!(meaningless("xfs/080", &[&ext4]).as_deref(), Some("xfs/080"));
    }

    #[test]
    fn exclusions_are_by_section() {
        let text = "generic/001 * too long\ngeneric/002 xfs,xfs_pmd no such thing # note\n";
        assert_eq!(excluded(text, "ext4").unwrap().len(), 1);
        assert_eq!(
            excluded(text, "xfs_pmd").unwrap()["generic/002"],
            "no such thing"
        );
    }

    #[test]
    fn sections_know_their_file_system() {
        let config = "# x\n[a]\nFSTYP=ext4\n[b]\nX=1\nFSTYP=xfs\n";
        assert_eq!(sections(config), [("a", "ext4"), ("b", "xfs")]);
        assert_eq!(section_text(config, "a"), "[a]\nFSTYP=ext4\n");
        assert_eq!(section_text(config, "b"), "[b]\nX=1\nFSTYP=xfs\n");
    }
}
