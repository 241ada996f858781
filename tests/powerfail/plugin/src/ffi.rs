// SPDX-License-Identifier: GPL-2.0

//! The part of QEMU's plugin interface (version 4, QEMU 10.0) that is used here,
//! declared from its documentation, and safe wrappers over it.
//!
//! See <https://www.qemu.org/docs/master/devel/tcg-plugins.html>. All `unsafe` of
//! the plugin is in this file.

use memmap2::MmapMut;
use std::ffi::{c_char, c_int, c_uint, c_void, CStr};
use std::fs::File;
use std::os::fd::AsRawFd;

/// The interface version this plugin is written for; QEMU checks it at load.
#[no_mangle]
pub static qemu_plugin_version: c_int = 4;

/// What QEMU tells at load (`struct qemu_info_t`), up to what is used here.
#[repr(C)]
pub struct Info {
    target_name: *const c_char,
    version_min: c_int,
    version_cur: c_int,
    system_emulation: bool,
}

/// glib's `GByteArray`, which QEMU appends register values to.
#[repr(C)]
struct GByteArray {
    data: *mut u8,
    len: c_uint,
}

/// glib's `GArray`, here of [`RegDescriptor`].
#[repr(C)]
struct GArray {
    data: *mut c_char,
    len: c_uint,
}

#[repr(C)]
struct RegDescriptor {
    handle: *mut c_void,
    name: *const c_char,
    feature: *const c_char,
}

/// A `uint64_t` of a scoreboard entry (`qemu_plugin_u64`).
#[repr(C)]
#[derive(Clone, Copy)]
struct ScoreU64 {
    score: *mut c_void,
    offset: usize,
}

const CB_R_REGS: c_int = 1;
const COND_NE: c_int = 3;
const MEM_W: c_int = 2;

type ExecCb = extern "C" fn(c_uint, *mut c_void);
type MemCb = extern "C" fn(c_uint, u32, u64, *mut c_void);

extern "C" {
    fn qemu_plugin_register_vcpu_init_cb(id: u64, cb: extern "C" fn(u64, c_uint));
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
    fn qemu_plugin_register_vcpu_insn_exec_cb(
        insn: *mut c_void,
        cb: ExecCb,
        flags: c_int,
        data: *mut c_void,
    );
    fn qemu_plugin_register_vcpu_insn_exec_cond_cb(
        insn: *mut c_void,
        cb: ExecCb,
        flags: c_int,
        cond: c_int,
        entry: ScoreU64,
        imm: u64,
        data: *mut c_void,
    );
    fn qemu_plugin_register_vcpu_mem_cb(
        insn: *mut c_void,
        cb: MemCb,
        flags: c_int,
        rw: c_int,
        data: *mut c_void,
    );
    fn qemu_plugin_mem_size_shift(info: u32) -> c_uint;
    fn qemu_plugin_get_hwaddr(info: u32, vaddr: u64) -> *mut c_void;
    fn qemu_plugin_hwaddr_is_io(haddr: *const c_void) -> bool;
    fn qemu_plugin_hwaddr_phys_addr(haddr: *const c_void) -> u64;
    fn qemu_plugin_get_registers() -> *mut GArray;
    fn qemu_plugin_read_register(handle: *mut c_void, buf: *mut GByteArray) -> c_int;
    fn qemu_plugin_scoreboard_new(element_size: usize) -> *mut c_void;
    fn qemu_plugin_u64_set(entry: ScoreU64, vcpu: c_uint, value: u64);

    fn g_byte_array_new() -> *mut GByteArray;
    fn g_byte_array_set_size(array: *mut GByteArray, length: c_uint) -> *mut GByteArray;
    fn g_array_free(array: *mut GArray, free_segment: c_int) -> *mut c_char;
}

/// A vCPU's number.
pub type Cpu = usize;

/// What the plugin does. The functions are called on the vCPU's own thread.
pub trait Callbacks: Sync + 'static {
    /// Data that [`Insn`] registrations carry to the callbacks below.
    type Data: Sync + 'static;

    /// A vCPU exists; its registers can be listed now.
    fn vcpu_init(&self, cpu: Cpu);
    /// A guest instruction is translated: register what it needs.
    fn translate(&self, insn: &Insn);
    /// An instruction registered with [`Insn::before`] or [`Insn::before_if`] is about to run.
    fn before(&self, cpu: Cpu, data: &'static Self::Data);
    /// An instruction registered with [`Insn::on_store`] has stored to memory.
    fn stored(&self, cpu: Cpu, store: Store, data: &'static Self::Data);
    /// QEMU ends.
    fn at_exit(&self);
}

/// Loads the plugin: called by the macro [`qemu_plugin!`].
///
/// # Safety
///
/// The arguments must be those QEMU gave to `qemu_plugin_install`.
pub unsafe fn install<C: Callbacks>(
    id: u64,
    info: *const Info,
    argc: c_int,
    argv: *const *const c_char,
    new: fn(Vec<String>) -> anyhow::Result<&'static C>,
) -> c_int {
    // SAFETY: QEMU passes a valid `info` with a NUL-terminated name and `argc` strings.
    let (system, target, args) = unsafe {
        let args = (0..argc as usize)
            .map(|i| CStr::from_ptr(*argv.add(i)).to_string_lossy().into_owned())
            .collect();
        (
            (*info).system_emulation,
            CStr::from_ptr((*info).target_name),
            args,
        )
    };
    if !system || target.to_bytes() != b"x86_64" {
        eprintln!("powerfail: only x86_64 system emulation is supported");
        return 1;
    }
    match new(args) {
        Ok(callbacks) => {
            CALLBACKS
                .set(callbacks as *const C as usize)
                .expect("loaded once");
            // SAFETY: the functions match the callback types and live as long as QEMU.
            unsafe {
                qemu_plugin_register_vcpu_init_cb(id, vcpu_init_thunk::<C>);
                qemu_plugin_register_vcpu_tb_trans_cb(id, translate_thunk::<C>);
                qemu_plugin_register_atexit_cb(id, at_exit_thunk::<C>, std::ptr::null_mut());
            }
            0
        }
        Err(e) => {
            eprintln!("powerfail: {e:#}");
            1
        }
    }
}

static CALLBACKS: std::sync::OnceLock<usize> = std::sync::OnceLock::new();

fn callbacks<C: Callbacks>() -> &'static C {
    let address = *CALLBACKS.get().expect("set by install");
    // SAFETY: `install` stored a `&'static C` there; one plugin has one type `C`.
    unsafe { &*(address as *const C) }
}

extern "C" fn vcpu_init_thunk<C: Callbacks>(_id: u64, cpu: c_uint) {
    callbacks::<C>().vcpu_init(cpu as Cpu);
}

extern "C" fn at_exit_thunk<C: Callbacks>(_id: u64, _data: *mut c_void) {
    callbacks::<C>().at_exit();
}

extern "C" fn translate_thunk<C: Callbacks>(_id: u64, tb: *mut c_void) {
    let callbacks = callbacks::<C>();
    // SAFETY: `tb` is valid during this callback.
    let n = unsafe { qemu_plugin_tb_n_insns(tb) };
    for i in 0..n {
        // SAFETY: `i` is below the number of instructions.
        let raw = unsafe { qemu_plugin_tb_get_insn(tb, i) };
        callbacks.translate(&Insn { raw });
    }
}

extern "C" fn before_thunk<C: Callbacks>(cpu: c_uint, data: *mut c_void) {
    // SAFETY: registered by `Insn::before*` with a `&'static C::Data`.
    let data = unsafe { &*(data as *const C::Data) };
    callbacks::<C>().before(cpu as Cpu, data);
}

extern "C" fn stored_thunk<C: Callbacks>(cpu: c_uint, info: u32, vaddr: u64, data: *mut c_void) {
    // SAFETY: registered by `Insn::on_store` with a `&'static C::Data`.
    let data = unsafe { &*(data as *const C::Data) };
    // SAFETY: `info` is valid during this callback.
    let (size, phys) = unsafe {
        let haddr = qemu_plugin_get_hwaddr(info, vaddr);
        let io = haddr.is_null() || qemu_plugin_hwaddr_is_io(haddr);
        let phys = if io {
            None
        } else {
            Some(qemu_plugin_hwaddr_phys_addr(haddr))
        };
        (1usize << qemu_plugin_mem_size_shift(info), phys)
    };
    if let Some(phys) = phys {
        callbacks::<C>().stored(cpu as Cpu, Store { vaddr, phys, size }, data);
    }
}

/// A store to RAM that has just happened.
#[derive(Clone, Copy, Debug)]
pub struct Store {
    /// Its virtual address.
    pub vaddr: u64,
    /// The physical address of its first byte.
    pub phys: u64,
    /// Its length in bytes.
    pub size: usize,
}

/// A guest instruction under translation.
pub struct Insn {
    raw: *mut c_void,
}

impl Insn {
    /// Its bytes: a buffer and how much of it is used.
    pub fn bytes(&self) -> ([u8; 16], usize) {
        let mut buffer = [0; 16];
        // SAFETY: the handle is valid during translation, the buffer has 16 bytes.
        let n = unsafe { qemu_plugin_insn_data(self.raw, buffer.as_mut_ptr().cast(), 16) };
        (buffer, n.min(16))
    }

    /// Its virtual address.
    pub fn vaddr(&self) -> u64 {
        // SAFETY: the handle is valid during translation.
        unsafe { qemu_plugin_insn_vaddr(self.raw) }
    }

    /// Calls [`Callbacks::before`] each time it runs; registers can be read there.
    pub fn before<C: Callbacks>(&self, data: &'static C::Data) {
        let data = data as *const C::Data as *mut c_void;
        // SAFETY: the handle is valid during translation; the thunk fits the data's type.
        unsafe {
            qemu_plugin_register_vcpu_insn_exec_cb(self.raw, before_thunk::<C>, CB_R_REGS, data)
        }
    }

    /// As [`Insn::before`], but only while the vCPU's `flag` is not 0.
    pub fn before_if<C: Callbacks>(&self, flag: &Flag, data: &'static C::Data) {
        let data = data as *const C::Data as *mut c_void;
        // SAFETY: as in `before`; a `Flag`'s scoreboard is never freed.
        unsafe {
            qemu_plugin_register_vcpu_insn_exec_cond_cb(
                self.raw,
                before_thunk::<C>,
                CB_R_REGS,
                COND_NE,
                flag.0,
                0,
                data,
            )
        }
    }

    /// Calls [`Callbacks::stored`] after each of its stores; registers can be read there.
    pub fn on_store<C: Callbacks>(&self, data: &'static C::Data) {
        let data = data as *const C::Data as *mut c_void;
        // SAFETY: the handle is valid during translation; the thunk fits the data's type.
        unsafe {
            qemu_plugin_register_vcpu_mem_cb(self.raw, stored_thunk::<C>, CB_R_REGS, MEM_W, data)
        }
    }
}

/// A number per vCPU that translated code can test without calling the plugin.
pub struct Flag(ScoreU64);

// SAFETY: the scoreboard is QEMU's and made for concurrent use by vCPUs.
unsafe impl Send for Flag {}
// SAFETY: as above.
unsafe impl Sync for Flag {}

impl Flag {
    /// A new one, 0 on every vCPU.
    pub fn new() -> Self {
        // SAFETY: no preconditions.
        let score = unsafe { qemu_plugin_scoreboard_new(size_of::<u64>()) };
        Flag(ScoreU64 { score, offset: 0 })
    }

    /// Sets it for one vCPU.
    pub fn set(&self, cpu: Cpu, value: bool) {
        // SAFETY: the scoreboard was made by `new` and is never freed.
        unsafe { qemu_plugin_u64_set(self.0, cpu as c_uint, value as u64) }
    }
}

/// A register that [`RegisterReader`] can read.
#[derive(Clone, Copy)]
pub struct RegisterHandle(*mut c_void);

// SAFETY: an opaque number that QEMU gives out; it is the same for all vCPUs.
unsafe impl Send for RegisterHandle {}

/// The current vCPU's registers by name; call it from [`Callbacks::vcpu_init`].
pub fn list_registers() -> Vec<(String, RegisterHandle)> {
    // SAFETY: QEMU returns an array of descriptors with NUL-terminated names; the
    // caller frees the array.
    unsafe {
        let array = qemu_plugin_get_registers();
        let descriptors = std::slice::from_raw_parts(
            (*array).data.cast::<RegDescriptor>(),
            (*array).len as usize,
        );
        let list = descriptors
            .iter()
            .map(|d| {
                (
                    CStr::from_ptr(d.name).to_string_lossy().into_owned(),
                    RegisterHandle(d.handle),
                )
            })
            .collect();
        g_array_free(array, 1);
        list
    }
}

/// Reads registers of the vCPU that runs the current callback.
pub struct RegisterReader {
    buffer: *mut GByteArray,
}

// SAFETY: the buffer belongs to this object alone.
unsafe impl Send for RegisterReader {}

impl RegisterReader {
    /// A new reader.
    pub fn new() -> Self {
        // SAFETY: no preconditions; never freed, as the plugin lives as long as QEMU.
        RegisterReader {
            buffer: unsafe { g_byte_array_new() },
        }
    }

    /// The value of a register of up to 64 bits.
    pub fn read(&mut self, register: RegisterHandle) -> u64 {
        // SAFETY: called from callbacks registered with CB_R_REGS; QEMU appends the
        // value to the buffer and returns its length.
        unsafe {
            g_byte_array_set_size(self.buffer, 0);
            let n = qemu_plugin_read_register(register.0, self.buffer);
            let mut value = [0; 8];
            let n = n.clamp(0, 8) as usize;
            std::ptr::copy_nonoverlapping((*self.buffer).data, value.as_mut_ptr(), n);
            u64::from_le_bytes(value)
        }
    }
}

/// Maps a file that QEMU maps too.
pub fn map_shared(file: &File) -> anyhow::Result<MmapMut> {
    // SAFETY: nobody truncates the file. QEMU's vCPUs change it, but not while a
    // callback runs: they share one thread.
    Ok(unsafe { MmapMut::map_mut(file)? })
}

/// Makes a part of a file read as zeros and gives its memory back.
pub fn punch_hole(file: &File, offset: u64, len: u64) -> anyhow::Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: a system call on a descriptor that `file` keeps open.
    let error = unsafe { libc::fallocate(file.as_raw_fd(), mode, offset as i64, len as i64) };
    anyhow::ensure!(
        error == 0,
        "punching a hole into guest RAM: {}",
        std::io::Error::last_os_error()
    );
    Ok(())
}

/// Makes an anonymous mapping read as zeros and gives its memory back.
pub fn drop_contents(map: &mut MmapMut) -> anyhow::Result<()> {
    // SAFETY: the mapping is private and anonymous, so its pages become zeros; the
    // exclusive borrow says that nobody looks at it meanwhile.
    unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed)? };
    Ok(())
}

/// Defines the symbol QEMU calls when it loads the plugin.
#[macro_export]
macro_rules! qemu_plugin {
    ($new:path) => {
        /// Called by QEMU.
        ///
        /// # Safety
        ///
        /// Only QEMU calls this, with the arguments its documentation names.
        #[no_mangle]
        pub unsafe extern "C" fn qemu_plugin_install(
            id: u64,
            info: *const $crate::ffi::Info,
            argc: std::ffi::c_int,
            argv: *const *const std::ffi::c_char,
        ) -> std::ffi::c_int {
            // SAFETY: the arguments are passed on unchanged.
            unsafe { $crate::ffi::install(id, info, argc, argv, $new) }
        }
    };
}
