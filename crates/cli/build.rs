//! How the binary is linked where the C library can load it so.

use std::env;
use std::process::Command;

/// The first glibc that loads packed relative relocations (`DT_RELR`).
const PACKED_RELOCATIONS: (u32, u32) = (2, 36);

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Some 240,000 addresses in tables of the engine are put right at the start: a record of 24 bytes each, which stays
    // in memory, or 0.1 bytes packed.
    if native_glibc().is_some_and(|version| version >= PACKED_RELOCATIONS) {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// Version of the C library the binary is built for and runs with; nothing where that is not known, for instance when
/// cross-compiling.
fn native_glibc() -> Option<(u32, u32)> {
    let gnu = env::var("CARGO_CFG_TARGET_OS").ok()? == "linux" && env::var("CARGO_CFG_TARGET_ENV").ok()? == "gnu";
    if !gnu || env::var("HOST").ok()? != env::var("TARGET").ok()? {
        return None;
    }
    let said = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let said = String::from_utf8(said.stdout).ok()?;
    let (major, minor) = said.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
