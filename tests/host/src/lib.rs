// SPDX-License-Identifier: GPL-2.0

//! Host tests of the module's plain logic.
//!
//! Files of the module that need no kernel (entry encoding, range arithmetic, flush loops,
//! parameter checks) are included here by `#[path]`, so that `cargo test` runs on exactly the
//! code that goes into `rust_pmem.ko`. Property tests of a file live in `tests/` beside this one.
