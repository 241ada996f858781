// SPDX-License-Identifier: GPL-2.0

//! QEMU itself provides the plugin functions when it loads the plugin, so they stay undefined in
//! the library.

fn main() {
    println!("cargo:rustc-link-arg-cdylib=-Wl,-z,undefs");
}
