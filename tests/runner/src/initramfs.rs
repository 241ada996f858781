// SPDX-License-Identifier: GPL-2.0

//! The guest's root file system: an initramfs of just what is needed.
//!
//! It is three cpio archives one after another, which the kernel unpacks in turn: programs with
//! their libraries, kernel modules, and what changes with every boot (guest program, module under
//! test, further files). The first two are cached, keyed by what goes into them. All are left
//! uncompressed: unpacking costs an emulated CPU more than copying.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{bail, ensure, Context, Result};
use cpio::newc::{trailer, Builder};
use sha2::{Digest, Sha256};

use crate::Kernel;

/// What the guest holds; see the head of the file.
const LIST: &str = include_str!("../../guest/initramfs.list");
/// Goes into the keys of cached archives: change it when the archives' making changes.
const VERSION: &str = "2";

/// A file to put into the guest.
#[derive(Clone, Debug)]
pub struct GuestFile {
    /// Absolute path in the guest.
    pub path: String,
    pub mode: u32,
    pub content: Content,
}

#[derive(Clone, Debug)]
pub enum Content {
    Path(PathBuf),
    Bytes(Vec<u8>),
}

impl GuestFile {
    /// An executable copied from the host.
    pub fn program(path: &str, from: impl Into<PathBuf>) -> Self {
        GuestFile {
            path: path.into(),
            mode: 0o755,
            content: Content::Path(from.into()),
        }
    }

    pub fn text(path: &str, text: impl Into<Vec<u8>>) -> Self {
        GuestFile {
            path: path.into(),
            mode: 0o644,
            content: Content::Bytes(text.into()),
        }
    }
}

pub(crate) enum Node {
    Dir,
    Link(String),
    File { mode: u32, content: Content },
}

/// The tree of one archive, by path without the leading slash.
#[derive(Default)]
pub(crate) struct Tree(BTreeMap<String, Node>);

impl Tree {
    fn dir(&mut self, path: &str) {
        let mut sofar = String::new();
        for part in path.split('/').filter(|p| !p.is_empty()) {
            if !sofar.is_empty() {
                sofar.push('/');
            }
            sofar.push_str(part);
            self.0.entry(sofar.clone()).or_insert(Node::Dir);
        }
    }

    pub(crate) fn put(&mut self, path: &str, node: Node) {
        let path = path.trim_start_matches('/');
        if let Some((dir, _)) = path.rsplit_once('/') {
            self.dir(dir);
        }
        self.0.insert(path.to_string(), node);
    }

    /// A file or symbolic link of the host, links with what they lead to. Directories on the
    /// way are resolved (/bin is usr/bin), the last component is not.
    pub(crate) fn host(&mut self, path: &Path) -> Result<()> {
        let dir = fs::canonicalize(path.parent().context("no parent")?)?;
        let path = dir.join(path.file_name().context("no file name")?);
        let meta = fs::symlink_metadata(&path).with_context(|| path.display().to_string())?;
        let name = path.to_str().context("path is not UTF-8")?.to_string();
        if meta.is_symlink() {
            let target = fs::read_link(&path)?;
            self.put(&name, Node::Link(target.to_string_lossy().into()));
            self.host(&dir.join(target))
        } else {
            let mode = meta.permissions().mode() & 0o7777;
            let content = Content::Path(path);
            self.put(&name, Node::File { mode, content });
            Ok(())
        }
    }

    fn write(&self, to: &Path) -> Result<()> {
        let mut out = BufWriter::with_capacity(1 << 20, File::create(to)?);
        for (inode, (path, node)) in self.0.iter().enumerate() {
            let data;
            let (mode, bytes) = match node {
                Node::Dir => (0o040755, &[][..]),
                Node::Link(target) => (0o120777, target.as_bytes()),
                Node::File { mode, content } => {
                    data = match content {
                        Content::Path(p) => fs::read(p).with_context(|| p.display().to_string())?,
                        Content::Bytes(b) => b.clone(),
                    };
                    (0o100000 | mode, &data[..])
                }
            };
            let size = bytes.len().try_into().context("file over 4 GiB")?;
            let mut entry = Builder::new(path)
                .ino(inode as u32 + 1)
                .mode(mode)
                .nlink(1)
                .write(&mut out, size);
            entry.write_all(bytes)?;
            entry.finish()?;
        }
        trailer(&mut out)?;
        out.flush()?;
        let mut file = out.into_inner()?;
        // Archives are put one after another: keep the next one aligned.
        let rest = file.metadata()?.len().next_multiple_of(512) - file.metadata()?.len();
        file.write_all(&vec![0; rest as usize])?;
        Ok(())
    }
}

/// Lines of the list of one kind.
fn listed(kind: &'static str) -> impl Iterator<Item = &'static str> {
    LIST.lines().filter_map(move |line| {
        let (k, v) = line.split_once(' ')?;
        (k == kind).then(|| v.trim())
    })
}

fn which(name: &str) -> Result<PathBuf> {
    ["/usr/bin", "/usr/sbin", "/bin", "/sbin"]
        .iter()
        .map(|d| Path::new(d).join(name))
        .find(|p| p.exists())
        .with_context(|| format!("the root has no program '{name}'"))
}

/// Every shared library the programs need, by path.
pub(crate) fn libraries(programs: &[PathBuf]) -> Result<BTreeSet<PathBuf>> {
    let out = Command::new("ldd")
        .args(programs)
        .output()
        .context("cannot run ldd")?;
    let text = String::from_utf8_lossy(&out.stdout);
    let mut found = BTreeSet::new();
    for line in text.lines().map(str::trim) {
        if line.contains("=> not found") {
            bail!("a guest program lacks a library: {line}");
        }
        let path = line.split("=> ").last().unwrap_or(line);
        if let Some((path, _)) = path.split_once(" (0x") {
            if path.starts_with('/') {
                found.insert(PathBuf::from(path));
            }
        }
    }
    Ok(found)
}

fn programs_tree() -> Result<Tree> {
    let mut tree = Tree::default();
    for dir in [
        "dev",
        "etc",
        "mnt",
        "proc",
        "root",
        "run",
        "sys",
        "tmp",
        "var/tmp",
        "usr/lib64",
    ] {
        tree.dir(dir);
    }
    for dir in ["bin", "sbin", "lib", "lib64"] {
        tree.put(dir, Node::Link(format!("usr/{dir}")));
    }
    let programs: Vec<_> = listed("program").map(which).collect::<Result<_>>()?;
    for path in &programs {
        tree.host(path)?;
    }
    let mut libs = libraries(&programs)?;
    libs.extend(listed("library").map(|l| Path::new("/usr/lib/x86_64-linux-gnu").join(l)));
    for lib in libs {
        tree.host(&lib)?;
    }
    for file in listed("file") {
        if Path::new(file).exists() {
            tree.host(Path::new(file))?;
        }
    }
    let text = |t: &str| Node::File {
        mode: 0o644,
        content: Content::Bytes(t.into()),
    };
    tree.put(
        "etc/passwd",
        text("root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
    );
    tree.put(
        "etc/group",
        text("root:x:0:\ndisk:x:6:\nnogroup:x:65534:\n"),
    );
    tree.put("etc/mtab", Node::Link("/proc/self/mounts".into()));
    Ok(tree)
}

fn modules_tree(kernel: &Kernel) -> Result<Tree> {
    let from = kernel.dir.join("modules/lib/modules").join(&kernel.name);
    let dep = fs::read_to_string(from.join("modules.dep"))
        .with_context(|| format!("no modules.dep in {}", from.display()))?;
    let plain = |path: &str| -> String {
        let name = path.rsplit('/').next().unwrap_or(path);
        name.split(".ko").next().unwrap_or(name).replace('-', "_")
    };
    let mut paths = HashMap::new();
    for line in dep.lines() {
        if let Some((module, needs)) = line.split_once(':') {
            paths.insert(plain(module), (module, needs));
        }
    }
    let mut wanted = BTreeSet::new();
    for name in listed("module") {
        // What this kernel has built in or lacks is no module of it.
        if let Some((module, needs)) = paths.get(name) {
            wanted.insert(*module);
            wanted.extend(needs.split_whitespace());
        }
    }
    ensure!(!wanted.is_empty(), "no modules in {}", from.display());

    // Modules go in decompressed; depmod then writes the index for just these.
    let dir = tempfile::tempdir()?;
    let to = dir.path().join("lib/modules").join(&kernel.name);
    for module in wanted {
        let source = from.join(module);
        let target = to.join(module.trim_end_matches(".xz").trim_end_matches(".zst"));
        fs::create_dir_all(target.parent().context("module without directory")?)?;
        let tool = match source.extension().and_then(|e| e.to_str()) {
            Some("xz") => "xz",
            Some("zst") => "zstd",
            _ => "cat",
        };
        let mut cmd = Command::new(tool);
        if tool != "cat" {
            cmd.arg("-dc");
        }
        let status = cmd.arg(&source).stdout(File::create(&target)?).status()?;
        ensure!(status.success(), "cannot unpack {}", source.display());
    }
    for index in fs::read_dir(&from)?.flatten() {
        if index.file_name().to_string_lossy().starts_with("modules.") {
            fs::copy(index.path(), to.join(index.file_name()))?;
        }
    }
    // It complains of a missing modules.order, which only matters where two modules fit.
    let out = Command::new("depmod")
        .arg("-b")
        .arg(dir.path())
        .arg(&kernel.name)
        .output()?;
    let said = String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.success(), "depmod failed: {said}");

    let mut tree = Tree::default();
    let mut todo = vec![to.clone()];
    while let Some(d) = todo.pop() {
        for entry in fs::read_dir(&d)? {
            let path = entry?.path();
            if path.is_dir() {
                todo.push(path);
                continue;
            }
            let rel = path.strip_prefix(&to)?.to_string_lossy().into_owned();
            let content = Content::Bytes(fs::read(&path)?);
            tree.put(
                &format!("usr/lib/modules/{}/{rel}", kernel.name),
                Node::File {
                    mode: 0o644,
                    content,
                },
            );
        }
    }
    Ok(tree)
}

pub(crate) fn key(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let first = hash.finalize()[..8].try_into().expect("eight bytes");
    format!("{:016x}", u64::from_be_bytes(first))
}

/// The archive `NAME-KEY.cpio` of the cache, made if it is not there.
pub(crate) fn cached(
    cache: &Path,
    name: &str,
    key: &str,
    make: impl FnOnce() -> Result<Tree>,
) -> Result<PathBuf> {
    let dir = cache.join("guest");
    let path = dir.join(format!("{name}-{key}.cpio"));
    if !path.exists() {
        fs::create_dir_all(&dir)?;
        let temp = tempfile::NamedTempFile::new_in(&dir)?;
        make()?.write(temp.path())?;
        // Whole or not at all; two runs at once write the same thing.
        temp.persist(&path)?;
        for old in fs::read_dir(&dir)?.flatten() {
            let file = old.file_name().to_string_lossy().into_owned();
            if file.starts_with(&format!("{name}-")) && old.path() != path {
                let age = old.metadata()?.modified()?.elapsed().unwrap_or_default();
                if age.as_secs() > 24 * 3600 {
                    let _ = fs::remove_file(old.path());
                }
            }
        }
    }
    Ok(path)
}

/// Cached archives that every boot of this kernel uses.
pub fn layers(cache: &Path, kernel: &Kernel) -> Result<Vec<PathBuf>> {
    let installed = fs::read("/var/lib/dpkg/status").unwrap_or_default();
    let programs = key(&[VERSION.as_bytes(), LIST.as_bytes(), &installed]);
    let dir = kernel.dir.to_string_lossy();
    let modules = key(&[VERSION.as_bytes(), LIST.as_bytes(), dir.as_bytes()]);
    Ok(vec![
        cached(cache, "programs", &programs, programs_tree)?,
        cached(cache, &format!("modules-{}", kernel.name), &modules, || {
            modules_tree(kernel)
        })?,
    ])
}

/// Writes the whole initramfs of one boot: the layers, then `files`.
pub fn write(to: &Path, layers: &[PathBuf], files: &[GuestFile]) -> Result<()> {
    let mut tree = Tree::default();
    for file in files {
        tree.put(
            &file.path,
            Node::File {
                mode: file.mode,
                content: file.content.clone(),
            },
        );
    }
    let mut out = File::create(to)?;
    for layer in layers {
        std::io::copy(&mut File::open(layer)?, &mut out)?;
    }
    let boot = tempfile::NamedTempFile::new_in(to.parent().context("no directory")?)?;
    tree.write(boot.path())?;
    std::io::copy(&mut File::open(boot.path())?, &mut out)?;
    Ok(())
}
