//! What the published crates promise beside what they do: which API they have, whose types are in it, and which Rust they
//! and their dependencies need.

mod api;
mod manifests;
mod rust_version;

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// The crates that are published.
pub const CRATES: [&str; 6] = ["idem-admin", "idem-axum", "idem-macros", "idem-redis", "idem-runtime", "idem-sqlx"];

/// The file with the public API of a crate.
pub fn snapshot(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/published/api/{name}.txt"))
}

/// Has rustdoc write down all crates, with all features, and gives the folder in which it did.
pub fn described() -> PathBuf {
    let rustdoc = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/published/rustdoc");
    // As CI documents the workspace, so that nothing is built again for this.
    let output = cargo(&["doc", "--quiet", "--no-deps", "--workspace", "--all-features"])
        .env("RUSTDOC", rustdoc)
        .env("RUSTDOCFLAGS", "-Z unstable-options --output-format json")
        .output()
        .unwrap_or_else(|error| panic!("cargo does not start: {error}"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let folder = metadata()["target_directory"].as_str().map(PathBuf::from);
    folder.unwrap_or_else(|| panic!("cargo names no target directory")).join("doc")
}

/// What cargo knows of the workspace and of everything that it depends on, with all features.
pub fn metadata() -> Value {
    let output = cargo(&["metadata", "--format-version", "1", "--all-features", "--locked"])
        .output()
        .unwrap_or_else(|error| panic!("cargo does not start: {error}"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("not what cargo says: {error}"))
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments);
    // The build script of `ring` reads what cargo says of the package, and a test has these variables too: with them it would be built
    // again, and once more in the next build without them.
    for (name, _) in std::env::vars_os() {
        let is_of_this_package = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
        if name.to_str().is_some_and(is_of_this_package) {
            command.env_remove(name);
        }
    }
    command
}
