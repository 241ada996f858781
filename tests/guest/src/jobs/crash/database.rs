// SPDX-License-Identifier: GPL-2.0

//! LMDB and SQLite: after a crash a database holds every transaction that was acknowledged,
//! perhaps the one that was under way, wholly, and nothing else.

use std::collections::BTreeMap;

use anyhow::{ensure, Context, Result};
use heed::byteorder::BigEndian;
use heed::types::{Bytes, U64};
use heed::{Database, Env, EnvFlags, EnvOpenOptions};
use powerfail::job::Progress;
use powerfail::marker::{mark, Call};
use powerfail::model::Verdict;
use powerfail::workload::{database_after, transaction, Workload};
use rusqlite::Connection;

use crate::fixture::Mount;

type Content = BTreeMap<u64, Vec<u8>>;

/// Runs the transactions of a seed, one after the other.
fn transactions(
    workload: Workload,
    seed: u64,
    mut commit: impl FnMut(Vec<(u64, Option<Vec<u8>>)>) -> Result<()>,
) -> Result<()> {
    mark(Call::Start, 0, 0);
    for number in 1..=workload.length() {
        let changes = transaction(seed, number);
        mark(Call::Begin, number, 0);
        commit(changes).with_context(|| format!("transaction {number}"))?;
        mark(Call::Ack, number, 0);
    }
    mark(Call::Stop, 0, 0);
    Ok(())
}

fn judge(got: Content, seed: u64, progress: Progress) -> Verdict {
    let acknowledged = database_after(seed, progress.acked);
    let bytes = |content: &Content| content.values().map(|v| v.len() as u64).sum();
    let mut verdict = Verdict {
        acknowledged: bytes(&acknowledged),
        ..Verdict::default()
    };
    if got == acknowledged || got == database_after(seed, progress.begun) {
        return verdict;
    }
    let wrong: Content = acknowledged
        .into_iter()
        .filter(|(key, value)| got.get(key) != Some(value))
        .collect();
    verdict.lose(
        bytes(&wrong).max(1),
        format!(
            "neither as after transaction {} nor {}: keys {:?}",
            progress.acked,
            progress.begun,
            wrong.keys()
        ),
    );
    verdict
}

fn lmdb_open(mount: &Mount) -> Result<Env> {
    let mut options = EnvOpenOptions::new();
    options.map_size(4 << 20);
    // SAFETY: nobody else has the file open. WRITE_MAP is what is tested: stores go to the
    // mapping of the file itself, and commits are msync.
    unsafe {
        options.flags(EnvFlags::WRITE_MAP | EnvFlags::NO_SUB_DIR);
        Ok(options.open(mount.path("lmdb"))?)
    }
}

fn lmdb_close(env: Env) {
    env.prepare_for_closing().wait();
}

pub fn lmdb_run(mount: &Mount, seed: u64) -> Result<()> {
    let env = lmdb_open(mount)?;
    let mut txn = env.write_txn()?;
    let table: Database<U64<BigEndian>, Bytes> = env.create_database(&mut txn, None)?;
    txn.commit()?;
    // SAFETY: no arguments, no memory.
    unsafe { libc::sync() };
    let result = transactions(Workload::Lmdb, seed, |changes| {
        let mut txn = env.write_txn()?;
        for (key, value) in changes {
            match value {
                Some(value) => table.put(&mut txn, &key, &value)?,
                None => table.delete(&mut txn, &key).map(drop)?,
            }
        }
        Ok(txn.commit()?)
    });
    lmdb_close(env);
    result
}

pub fn lmdb_verify(mount: &Mount, seed: u64, progress: Progress) -> Result<Verdict> {
    let env = lmdb_open(mount)?;
    let read = || -> Result<Content> {
        let txn = env.read_txn()?;
        let table: Database<U64<BigEndian>, Bytes> = env
            .open_database(&txn, None)?
            .context("the main table is gone")?;
        let mut content = Content::new();
        for entry in table.iter(&txn)? {
            let (key, value) = entry?;
            content.insert(key, value.to_vec());
        }
        ensure!(
            table.len(&txn)? == content.len() as u64,
            "the number of entries is wrong"
        );
        Ok(content)
    };
    let content = read();
    lmdb_close(env);
    Ok(judge(content?, seed, progress))
}

fn sqlite_open(mount: &Mount, workload: Workload) -> Result<Connection> {
    let db = Connection::open(mount.path("sqlite"))?;
    // A rollback journal is deleted to commit; only EXTRA syncs the directory then.
    let mode = match workload {
        Workload::Wal => "wal",
        _ => "delete",
    };
    let got: String = db.query_row(&format!("PRAGMA journal_mode={mode}"), [], |r| r.get(0))?;
    ensure!(got == mode, "journal_mode is {got}, not {mode}");
    let mmap: i64 = db.query_row("PRAGMA mmap_size=16777216", [], |r| r.get(0))?;
    ensure!(mmap == 16_777_216, "mmap_size is {mmap}");
    db.execute_batch("PRAGMA synchronous=EXTRA")?;
    Ok(db)
}

pub fn sqlite_run(mount: &Mount, workload: Workload, seed: u64) -> Result<()> {
    let mut db = sqlite_open(mount, workload)?;
    db.execute_batch("CREATE TABLE t (k INTEGER PRIMARY KEY, v BLOB)")?;
    // SAFETY: no arguments, no memory.
    unsafe { libc::sync() };
    transactions(workload, seed, |changes| {
        let txn = db.transaction()?;
        for (key, value) in changes {
            match value {
                Some(value) => txn.execute(
                    "INSERT INTO t VALUES (?1, ?2) ON CONFLICT DO UPDATE SET v = ?2",
                    (key as i64, value),
                )?,
                None => txn.execute("DELETE FROM t WHERE k = ?1", [key as i64])?,
            };
        }
        Ok(txn.commit()?)
    })
}

pub fn sqlite_verify(
    mount: &Mount,
    workload: Workload,
    seed: u64,
    progress: Progress,
) -> Result<Verdict> {
    let db = sqlite_open(mount, workload)?;
    let integrity: String = db.query_row("PRAGMA integrity_check", [], |r| r.get(0))?;
    ensure!(integrity == "ok", "integrity_check: {integrity}");
    let mut content = Content::new();
    let mut query = db.prepare("SELECT k, v FROM t")?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        content.insert(row.get::<_, i64>(0)? as u64, row.get(1)?);
    }
    Ok(judge(content, seed, progress))
}
