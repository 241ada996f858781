// SPDX-License-Identifier: GPL-2.0

//! Guest archives of whole Debian packages and of whole directories.
//!
//! The usual initramfs has single programs, which is what boots fastest. A test suite made of
//! shell scripts wants the programs of a small Debian system. They go into the initramfs as
//! well: a root in memory needs no image, no virtio drivers and no overlay to be writable, and
//! under emulation nothing is faster to open and execute from. 9p of the same root was the other
//! choice; every open(2) there is a few round trips to the host, and these scripts do little
//! else.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{ensure, Context, Result};

use crate::initramfs::{cached, key, libraries, Content, Node, Tree};

/// Changes when the making of these archives changes.
const VERSION: &str = "1";

/// What of a package no guest needs.
const LEFT_OUT: &[&str] = &[
    "/usr/share/doc",
    "/usr/share/man",
    "/usr/share/locale",
    "/usr/share/info",
    "/usr/share/lintian",
    "/usr/share/bash-completion",
    "/usr/share/bug",
    "/usr/include",
];

/// An archive of these installed packages, with the libraries their programs need, and of the
/// directories of `trees`, each as (where in the guest, where on the host). `texts` are small
/// files (path, content) over all of it.
pub fn layer(
    cache: &Path,
    name: &str,
    packages: &[&str],
    trees: &[(&str, &Path)],
    texts: &[(&str, &str)],
) -> Result<PathBuf> {
    let installed = fs::read("/var/lib/dpkg/status").unwrap_or_default();
    let mut files = Vec::new();
    for (to, from) in trees {
        walk(from, from, to, &mut files)?;
    }
    let mut stamp = String::new();
    for file in &files {
        let meta = fs::symlink_metadata(&file.from)?;
        stamp += &format!("{} {} {}\n", file.to, meta.size(), meta.mtime());
    }
    let words = format!("{packages:?} {texts:?}");
    let parts = [
        VERSION.as_bytes(),
        words.as_bytes(),
        &installed,
        stamp.as_bytes(),
    ];
    cached(cache, name, &key(&parts), || {
        let mut tree = Tree::default();
        let mut programs = Vec::new();
        for package in packages {
            add_package(&mut tree, package, &mut programs)?;
        }
        for file in files {
            let meta = fs::symlink_metadata(&file.from)?;
            let node = if meta.is_symlink() {
                Node::Link(fs::read_link(&file.from)?.to_string_lossy().into())
            } else {
                if is_program(&file.from) {
                    programs.push(file.from.clone());
                }
                Node::File {
                    mode: meta.permissions().mode() & 0o7777,
                    content: Content::Path(file.from),
                }
            };
            tree.put(&file.to, node);
        }
        for lib in libraries(&programs)? {
            tree.host(&lib)?;
        }
        for (path, text) in texts {
            let content = Content::Bytes(text.as_bytes().into());
            tree.put(
                path,
                Node::File {
                    mode: 0o644,
                    content,
                },
            );
        }
        Ok(tree)
    })
}

/// Adds what dpkg says a package has, and the alternatives that lead to it.
fn add_package(tree: &mut Tree, package: &str, programs: &mut Vec<PathBuf>) -> Result<()> {
    let info = Path::new("/var/lib/dpkg/info");
    let list = [format!("{package}.list"), format!("{package}:amd64.list")]
        .iter()
        .find_map(|f| fs::read_to_string(info.join(f)).ok())
        .with_context(|| format!("the root has no package '{package}'"))?;
    for line in list.lines() {
        let path = Path::new(line);
        if LEFT_OUT.iter().any(|d| path.starts_with(d)) {
            continue;
        }
        // Left out where the root was made, or a directory.
        let Ok(meta) = fs::symlink_metadata(path) else {
            continue;
        };
        if meta.is_dir() || (meta.is_symlink() && !path.is_file()) {
            continue;
        }
        tree.host(path)?;
        if is_program(path) {
            programs.push(path.into());
        }
    }
    Ok(())
}

/// Whether ldd has something to say about it: an executable in ELF format.
fn is_program(path: &Path) -> bool {
    let executable = fs::metadata(path).is_ok_and(|m| m.is_file() && m.mode() & 0o100 != 0);
    executable && {
        let mut head = [0; 4];
        fs::File::open(path)
            .and_then(|mut f| std::io::Read::read_exact(&mut f, &mut head))
            .is_ok_and(|()| head == *b"\x7fELF")
    }
}

struct Found {
    from: PathBuf,
    to: String,
}

/// Every file below `dir`, but version control and what a build leaves between source and
/// program.
fn walk(top: &Path, dir: &Path, to: &str, found: &mut Vec<Found>) -> Result<()> {
    ensure!(dir.is_dir(), "{} is no directory", dir.display());
    let mut entries: Vec<_> = fs::read_dir(dir)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(|e| e.file_name());
    for entry in entries {
        let path = entry.path();
        let extension = path
            .extension()
            .and_then(|e| e.to_str())
            .unwrap_or_default();
        if entry.file_name() == ".git" || ["o", "lo", "a", "la"].contains(&extension) {
            continue;
        }
        let kind = entry.file_type()?;
        if kind.is_dir() {
            walk(top, &path, to, found)?;
        } else if kind.is_file() || kind.is_symlink() {
            let rest = path
                .strip_prefix(top)?
                .to_str()
                .context("path is not UTF-8")?;
            let to = format!("{to}/{rest}");
            found.push(Found { from: path, to });
        }
    }
    Ok(())
}
