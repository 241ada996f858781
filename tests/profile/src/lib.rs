// SPDX-License-Identifier: GPL-2.0

//! A QEMU TCG plugin (interface version 4, QEMU 10.0) for `make bench PROFILE=case`: how many
//! instructions of each piece of guest code ran between two markers.
//!
//! The guest brackets what is to be profiled with two NOPs of a certain displacement (see the
//! guest's bench/probe.rs), and says with a third one that another case begins. Every translated
//! block counts how often it runs, in a counter that translated code adds to without leaving it; the
//! markers take the difference. At exit the file named by the argument `out=` gets a line
//! `CASE ADDRESS INSTRUCTIONS-RUN` per case, counted from 0, and block.

use std::collections::HashMap;
use std::ffi::{c_char, c_int, c_uint, c_void, CStr};
use std::fmt::Write;
use std::sync::Mutex;

/// `nopl DISP(%rax)`: begin and end of a piece, another case.
const BEGIN: [u8; 7] = [0x0f, 0x1f, 0x80, 0x50, 0x42, 0x50, 0x31];
const END: [u8; 7] = [0x0f, 0x1f, 0x80, 0x50, 0x42, 0x50, 0x32];
const CASE: [u8; 7] = [0x0f, 0x1f, 0x80, 0x50, 0x42, 0x50, 0x33];

/// The interface version this plugin is written for; QEMU checks it at load.
#[no_mangle]
pub static qemu_plugin_version: c_int = 4;

/// A `uint64_t` of a scoreboard entry (`qemu_plugin_u64`).
#[repr(C)]
#[derive(Clone, Copy)]
struct Score {
    score: *mut c_void,
    offset: usize,
}

// SAFETY: a scoreboard is QEMU's and made for concurrent use by vCPUs.
unsafe impl Send for Score {}

const NO_REGS: c_int = 0;
const ADD: c_int = 0;

extern "C" {
    fn qemu_plugin_register_vcpu_tb_trans_cb(id: u64, cb: extern "C" fn(u64, *mut c_void));
    fn qemu_plugin_register_atexit_cb(
        id: u64,
        cb: extern "C" fn(u64, *mut c_void),
        data: *mut c_void,
    );
    fn qemu_plugin_tb_n_insns(tb: *const c_void) -> usize;
    fn qemu_plugin_tb_get_insn(tb: *const c_void, index: usize) -> *mut c_void;
    fn qemu_plugin_insn_data(insn: *const c_void, dest: *mut c_void, len: usize) -> usize;
    fn qemu_plugin_insn_vaddr(insn: *const c_void) -> u64;
    fn qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(
        tb: *mut c_void,
        op: c_int,
        entry: Score,
        imm: u64,
    );
    fn qemu_plugin_register_vcpu_insn_exec_cb(
        insn: *mut c_void,
        cb: extern "C" fn(c_uint, *mut c_void),
        flags: c_int,
        data: *mut c_void,
    );
    fn qemu_plugin_scoreboard_new(element_size: usize) -> *mut c_void;
    fn qemu_plugin_u64_sum(entry: Score) -> u64;
}

/// A piece of guest code.
struct Block {
    /// Instructions run since QEMU started.
    score: Score,
    /// The same when the last piece to be profiled began.
    begin: u64,
    /// Instructions run in pieces that were profiled, by case.
    sums: Vec<u64>,
}

struct State {
    /// By address and number of instructions: a block may be translated again.
    blocks: HashMap<(u64, usize), Block>,
    /// How many cases have begun.
    cases: usize,
    out: String,
}

static STATE: Mutex<Option<State>> = Mutex::new(None);

/// Called by QEMU.
///
/// # Safety
///
/// Only QEMU calls this, with the arguments its documentation names.
#[no_mangle]
pub unsafe extern "C" fn qemu_plugin_install(
    id: u64,
    _info: *const c_void,
    argc: c_int,
    argv: *const *const c_char,
) -> c_int {
    let mut out = None;
    for i in 0..argc as usize {
        // SAFETY: QEMU passes `argc` strings.
        let arg = unsafe { CStr::from_ptr(*argv.add(i)) }.to_string_lossy();
        out = arg.strip_prefix("out=").map(String::from).or(out);
    }
    let Some(out) = out else {
        eprintln!("profile: out= is missing");
        return 1;
    };
    *STATE.lock().unwrap() = Some(State {
        blocks: HashMap::new(),
        cases: 0,
        out,
    });
    // SAFETY: the functions match the callback types and live as long as QEMU.
    unsafe {
        qemu_plugin_register_vcpu_tb_trans_cb(id, translate);
        qemu_plugin_register_atexit_cb(id, at_exit, std::ptr::null_mut());
    }
    0
}

extern "C" fn translate(_id: u64, tb: *mut c_void) {
    // SAFETY: `tb` and its instructions are valid during this callback; the buffer has 16 bytes;
    // a scoreboard has elements of the size of a `u64` and is never freed.
    unsafe {
        let n = qemu_plugin_tb_n_insns(tb);
        let address = qemu_plugin_insn_vaddr(qemu_plugin_tb_get_insn(tb, 0));
        let mut guard = STATE.lock().unwrap();
        let state = guard.as_mut().expect("set at load");
        let block = state.blocks.entry((address, n)).or_insert_with(|| Block {
            score: Score {
                score: qemu_plugin_scoreboard_new(size_of::<u64>()),
                offset: 0,
            },
            begin: 0,
            sums: Vec::new(),
        });
        qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(tb, ADD, block.score, n as u64);
        for i in 0..n {
            let insn = qemu_plugin_tb_get_insn(tb, i);
            let mut bytes = [0u8; 16];
            let len = qemu_plugin_insn_data(insn, bytes.as_mut_ptr().cast(), bytes.len());
            let marker: Option<extern "C" fn(c_uint, *mut c_void)> = match &bytes[..len.min(16)] {
                b if b == BEGIN => Some(begin),
                b if b == END => Some(end),
                b if b == CASE => Some(case),
                _ => None,
            };
            if let Some(marker) = marker {
                qemu_plugin_register_vcpu_insn_exec_cb(insn, marker, NO_REGS, std::ptr::null_mut());
            }
        }
    }
}

extern "C" fn begin(_cpu: c_uint, _data: *mut c_void) {
    let mut guard = STATE.lock().unwrap();
    for block in guard.as_mut().expect("set at load").blocks.values_mut() {
        // SAFETY: the scoreboard is never freed.
        block.begin = unsafe { qemu_plugin_u64_sum(block.score) };
    }
}

extern "C" fn case(_cpu: c_uint, _data: *mut c_void) {
    STATE.lock().unwrap().as_mut().expect("set at load").cases += 1;
}

extern "C" fn end(_cpu: c_uint, _data: *mut c_void) {
    let mut guard = STATE.lock().unwrap();
    let state = guard.as_mut().expect("set at load");
    let case = state.cases.saturating_sub(1);
    for block in state.blocks.values_mut() {
        // SAFETY: the scoreboard is never freed.
        let now = unsafe { qemu_plugin_u64_sum(block.score) };
        if now > block.begin {
            block.sums.resize(block.sums.len().max(case + 1), 0);
            block.sums[case] += now - block.begin;
        }
        // A block may see an end without its begin: it was not translated then.
        block.begin = now;
    }
}

extern "C" fn at_exit(_id: u64, _data: *mut c_void) {
    let guard = STATE.lock().unwrap();
    let state = guard.as_ref().expect("set at load");
    let mut text = String::new();
    for ((address, _), block) in &state.blocks {
        for (case, sum) in block.sums.iter().enumerate().filter(|(_, sum)| **sum > 0) {
            writeln!(text, "{case} {address:x} {sum}").expect("to a string");
        }
    }
    if let Err(e) = std::fs::write(&state.out, text) {
        eprintln!("profile: {}: {e}", state.out);
    }
}
