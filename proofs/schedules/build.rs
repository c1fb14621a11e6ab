//! Takes the files of the store in memory as they are, and once more with each seeded fault, for the library to compile
//! them over other primitives.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a build that cannot continue stops")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

mod faults {
    include!("src/faults.rs");
}

const FILES: [&str; 5] = ["mod.rs", "claims.rs", "janitor.rs", "quota.rs", "records.rs"];

/// What is changed in every copy: few shards, so that keys meet; and a janitor that works when a test tells it to.
const ALWAYS: &[(&str, &str, &str)] = &[
    (
        "mod.rs",
        "let shards = (self.max_entries / KEYS_PER_SHARD).next_power_of_two().min(MAX_SHARDS);",
        "let shards = 2;",
    ),
    (
        "mod.rs",
        "#[cfg(test)]\nmod tests;",
        "impl MemoryStore {\n    /// One round of the janitor.\n    pub fn round(&self) {\n        \
         janitor::round(&Arc::downgrade(&self.inner.shared));\n    }\n}",
    ),
];

fn main() {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR").unwrap());
    let source = root.join("../../idem-runtime/src/memory");
    println!("cargo::rerun-if-changed={}", source.display());
    println!("cargo::rerun-if-changed=src/faults.rs");
    let out = PathBuf::from(env::var("OUT_DIR").unwrap());
    let mut modules = String::new();
    let sound = ("sound", &[][..]);
    for (name, changes) in [sound].into_iter().chain(faults::FAULTS.iter().copied()) {
        copy(&source, &out.join(name), &[ALWAYS, changes].concat());
        let path = out.join(name).join("mod.rs");
        writeln!(modules, "#[path = {path:?}]\n#[allow(warnings, clippy::all, clippy::pedantic, reason = \"a copy\")]\npub mod {name};").unwrap();
    }
    fs::write(out.join("stores.rs"), modules).unwrap();
}

fn copy(from: &Path, to: &Path, changes: &[(&str, &str, &str)]) {
    fs::create_dir_all(to).unwrap();
    for file in FILES {
        let mut text = fs::read_to_string(from.join(file)).unwrap();
        for (_, old, new) in changes.iter().filter(|(changed, _, _)| *changed == file) {
            // A fault that does not fit any more must be fitted again, or its test would prove nothing.
            assert_eq!(text.matches(old).count(), 1, "{file} does not have this exactly once: {old}");
            text = text.replace(old, new);
        }
        // Their unit tests run where the files are at home, and not under the scheduler.
        fs::write(to.join(file), text.replace("#[cfg(test)]", "#[cfg(any())]")).unwrap();
    }
}
